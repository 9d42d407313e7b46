"""Test a saved run: ``python -m gpumlp.evaluate RUN``, also installed as ``gpumlp-evaluate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .training.run import network_note
from .training.session import describe_test, load_run

PROGRAM = "gpumlp-evaluate"


@dataclass(frozen=True)
class Options:
    """Load a run and print its results on the test set."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of the run."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1, ...; that of the run by default."""
    data_dir: str | None = None
    """Folder with MNIST's four files, if not that of the run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, evaluate, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        run, model, test = load_run(options.run, options.device, options.data_dir)
        metrics = run.metrics
        print(repr(model))
        print(describe_test(test, model.evaluate(test)))
        note = network_note(options.run)
        if run.is_best:
            print(f"this is the network after the best epoch of the run in {run.path.parent}")
        elif note:
            print(f"this is the {note}")
        if metrics is None and not run.is_best and run.diverged is None:
            which = "best network so far" if note else "last checkpoint"
            print(f"the run in {run.path} is not finished: this is its {which}")
        return command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
