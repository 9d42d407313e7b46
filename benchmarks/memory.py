"""How much memory does training take on the CPU? ``python -m benchmarks.memory``.

The peak resident memory of this process, beside what is needed: the interpreter with its libraries, the
data set as pixels of one byte, the parameters with their gradient and the optimizer's state, and the workspace of
a batch. A process has one peak, so a run measures one network and one batch size.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import MLP, SGD, Trainer, command, terminal
from gpumlp.training.config import ConfigError

from . import common

PROGRAM = "memory"
MIB = 2**20


@dataclass(frozen=True)
class Options(common.DataOptions):
    """Measure the peak memory of training on the CPU."""

    network: str = "784-128-10"
    """Units of each layer, from 784 to 10."""
    batch_size: int = 128
    """Samples a step."""
    json: bool = False
    """Print JSON."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        problems = common.wrong_networks([options.network])
        if options.batch_size < 1:
            problems.append(f"batch_size: expected 1 or more, got {options.batch_size}")
        if problems:
            raise ConfigError("\n".join(problems))
        sizes = common.layers(options.network)
        parts = measure(options, sizes)
        if options.json:
            terminal.write_data(json.dumps(parts) + "\n")
            return command.OK
        for name, size in parts.items():
            print(f"{name:<26}{size / MIB:8.1f} MiB")
        print(f"{'peak / needed':<26}{parts['peak'] / parts['needed']:8.2f}")
        return command.OK

    return command.run(PROGRAM, work)


def measure(options: Options, sizes: Sequence[int]) -> dict[str, int]:
    """Bytes of each part, their sum `needed`, and the `peak` of the process."""
    parts = {"interpreter and libraries": peak()}
    train, _ = common.load_data(options)
    if problems := common.too_large("batch_size", [options.batch_size], len(train)):
        raise ConfigError("\n".join(problems))
    trainer = Trainer(
        MLP(list(sizes), device="cpu"), train, optimizer=SGD(momentum=0.9), batch_size=options.batch_size
    )
    trainer.run(2)
    parameters, state = trainer.model.parameters, trainer.optimizer_state
    flat = [parameters.data, parameters.gradient, state.scratch, *state.buffers.values()]
    space = trainer.workspace
    parts["data set"] = train.images.nbytes + train.labels.nbytes
    parts["parameters and optimizer"] = sum(array.nbytes for array in flat)
    parts["workspace"] = sum(array.nbytes for array in space.arrays())
    parts["needed"] = sum(parts.values())
    parts["peak"] = peak()
    return parts


def peak() -> int:
    """The most memory that this process has had resident, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # rusage would count what the process was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    sys.exit(main())
