"""What does training by several processes bring on this machine? ``python -m benchmarks.parallel``.

A step of each network is timed with 1, 2, ... processes: with the same batch (strong scaling), and with a batch
that grows with the number of processes (weak scaling). One process is the plain trainer, with all BLAS threads;
several divide them. The numbers of processes take turns, each in a new mpiexec, so that all see the same machine.

``--model`` measures nothing. It computes what a cluster of machines like that of ``results/throughput-cpu.json``
would bring, from the steps measured there and a ring's cost: ``2 (P - 1) / P * bytes / bandwidth`` and
``2 (P - 1) * latency``. It does not wait for the slowest machine, so it is an upper bound.

Writes ``parallel-cpu.json`` with everything measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import command
from gpumlp.info import version
from gpumlp.training.config import ConfigError

from . import common, markdown
from .limits import flops_per_sample

PROGRAM = "parallel"
NETWORKS = ("784-128-10", "784-512-512-10", "784-2048-2048-10")
CLUSTER = (2, 4, 8)  # machines of the model
MODEL_BATCHES = (128, 1024, 8192)
THROUGHPUT = Path(__file__).parent / "results" / "throughput-cpu.json"
LINKS = {  # 10 and 100 Gbit/s: bytes per second, and seconds until a message arrives
    "Ethernet": (1.1e9, 30e-6),
    "InfiniBand": (12e9, 2e-6),
}
FLOP_BUDGET, LEAST_STEPS, MOST_STEPS = 6e9, 4, 200  # of a timed epoch


@dataclass(frozen=True)
class Options:
    """Time steps by several processes on this machine, and model larger clusters from them."""

    ranks: tuple[int, ...] = (1, 2)
    """Numbers of processes; 1 is always among them."""
    networks: tuple[str, ...] = NETWORKS
    """Units of each layer, from 784 to 10."""
    batch_sizes: tuple[int, ...] = (128, 1024)
    """Samples a step of one process; of all of them in strong scaling."""
    repeats: int = common.LEAST_REPEATS
    """Timed epochs of each setting, at least 5."""
    out: str = "benchmarks/results"
    """Folder for the results."""
    model: bool = False
    """Only compute what larger clusters would bring."""
    quick: bool = False
    """Only show that it works: one small network, few steps. No figures to quote."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = command.parse(Options, PROGRAM, words)
        check(options)
        if options.model:
            print("\n".join(markdown.aligned(model_table())))
            return command.OK
        common.check_clock()
        if options.quick:
            networks, batches, repeats = ("784-8-10",), (32,), 1
        else:
            networks, batches, repeats = options.networks, options.batch_sizes, options.repeats
        folder = common.output_folder(options)
        ranks = list(dict.fromkeys((1, *options.ranks)))
        times = measure(ranks, networks, batches, repeats, quick=options.quick)
        devices = common.chosen_devices(("cpu",))
        report = {
            "benchmark": "several processes",
            **common.circumstances(devices, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": ["Generated data of MNIST's shape."],
            "method": {
                "step": "of an epoch of few steps, with shuffling and reading the loss, after one of warm-up; SGD "
                "with momentum 0.9, float32, as many shards as processes",
                "exchange": "in `MPIGroup.sum`, waiting for the other processes included",
                "repeats": repeats,
                "interleaved": "the numbers of processes take turns",
            },
            "results": list(results(times, ranks, networks, batches)),
        }
        report["versions"].update({name: version(name) for name in ("mpi4py", "mpich")})
        markdown.show(report)
        print(f"wrote {common.write_json(report, folder / f'{PROGRAM}-cpu')}")
        return command.OK

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise ConfigError that names every wrong value."""
    problems = [
        *common.wrong_networks(options.networks),
        *common.too_small(options, ("ranks", "batch_sizes")),
        *common.too_few_repeats(options.repeats),
    ]
    least = max(options.ranks, default=1)
    problems += [f"batch_sizes: expected {least} or more, got {n}" for n in options.batch_sizes if n < least]
    if problems:
        raise ConfigError("\n".join(problems))


# A setting: processes, network, global batch size.
Times = dict[tuple[int, str, int], list[dict[str, Any]]]


def measure(
    ranks: Sequence[int], networks: Sequence[str], batches: Sequence[int], repeats: int, *, quick: bool
) -> Times:
    """The answers of `parallel_worker` to each setting, one for each repeat."""
    times: Times = {}
    with common.progress_bar() as progress:
        for _ in progress.track(range(repeats), description="processes take turns"):
            for count in ranks:
                sizes = sorted({batch * factor for batch in batches for factor in (1, count)})
                settings = [
                    {"network": name, "batch_size": size, "steps": steps(name, size, quick)}
                    for name in networks
                    for size in sizes
                ]
                for setting, answer in zip(settings, ask(count, settings), strict=True):
                    key = count, setting["network"], setting["batch_size"]
                    times.setdefault(key, []).append(answer)
    return times


def steps(network: str, batch_size: int, quick: bool) -> int:
    """Steps of a timed epoch."""
    affordable = int(FLOP_BUDGET / flops_per_sample(common.layers(network)) / batch_size)
    return 2 if quick else min(max(affordable, LEAST_STEPS), MOST_STEPS)


def ask(ranks: int, settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time settings in so many processes, which mpiexec starts."""
    beside = Path(sys.executable).parent
    mpiexec = shutil.which("mpiexec", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpiexec is None:
        raise ConfigError("there is no mpiexec: pip install mpich, or use that of the system")
    words = [mpiexec, "-n", str(ranks), sys.executable, "-m", "benchmarks.parallel_worker", json.dumps(settings)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigError(f"{ranks} processes failed with code {done.returncode}; their messages are above")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def results(
    times: Times, ranks: Sequence[int], networks: Sequence[str], batches: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A row for each setting that was timed."""
    for name in networks:
        for batch in batches:
            alone = common.summary([each["milliseconds"] for each in times[1, name, batch]])["median"]
            for count in ranks:
                for scaling in ("strong", "weak")[: 1 if count == 1 else 2]:
                    size = batch * (count if scaling == "weak" else 1)
                    runs = times[count, name, size]
                    found = common.summary([each["milliseconds"] for each in runs])
                    exchange = common.summary([each["exchange_milliseconds"] for each in runs])["median"]
                    yield {
                        "network": name,
                        "scaling": scaling if count > 1 else "one process",
                        "processes": count,
                        "batch_size": size,
                        "threads": runs[0]["threads"],
                        **found,
                        "exchange": exchange,
                        "speed_up": size / batch * alone / found["median"],
                        "runs": [each["milliseconds"] for each in runs],
                    }


def model_table() -> Iterator[str]:
    """A row for each network and batch size: the step of one machine, and how much faster several would be."""
    rows = json.loads(THROUGHPUT.read_text(encoding="utf-8"))["results"]
    seconds = {(row["network"], row["batch_size"]): row["batch_size"] / row["median"] for row in rows}
    cells = []
    for name in NETWORKS:
        size = 4 * sum((below + 1) * above for below, above in pairwise(common.layers(name)))
        for batch in MODEL_BATCHES:
            alone = seconds[name, batch]
            cells.append([name, f"{batch:,}", markdown.three_digits(1e3 * alone)])
            for link in LINKS.values():
                for machines in CLUSTER:
                    step = seconds[name, batch // machines] + ring_seconds(size, machines, *link)
                    cells[-1].append(f"{alone / step:.2f}")
    titles = [f"{machines}, {link}" for link in LINKS for machines in CLUSTER]
    yield from markdown.table(["network", "batch", "one machine, ms", *titles], cells)


def ring_seconds(size: float, machines: int, bandwidth: float, latency: float) -> float:
    """Seconds in which a ring of machines adds up arrays of so many bytes.

    R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective communication operations in MPICH", 2005.

    >>> ring_seconds(1e6, 2, 1e9, 1e-5)
    0.00102
    """
    return 2 * (machines - 1) * (size / machines / bandwidth + latency)


if __name__ == "__main__":
    sys.exit(main())
