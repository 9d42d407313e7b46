"""Test saved runs: ``python -m gpumlp.evaluate RUN...``, also installed as ``gpumlp-evaluate``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .files import require_distinct
from .nn import Committee
from .training.config import ConfigError
from .training.run import Run, network_note
from .training.session import describe_test, load_runs

PROGRAM = "gpumlp-evaluate"


@dataclass(frozen=True)
class Options:
    """Load a run and print its results on the test set; of several runs those of each, and of their committee,
    which averages their probabilities or numbers."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folder of the run, or of several."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1, ...; that of the run by default."""
    data_dir: str | None = None
    """Folder with MNIST's four files, if not that of the run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, evaluate, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        if not options.runs:
            raise ConfigError("expected the folder of a run, or several, got none")
        require_distinct(options.runs)
        runs, models, test = load_runs(options.runs, options.device, options.data_dir)
        compared = Committee(models).compare(test) if len(models) > 1 else None
        results = [models[0].evaluate(test)] if compared is None else compared.members
        notes = [list(_notes(name, run)) for name, run in zip(options.runs, runs, strict=True)]
        for model, result, lines in zip(models, results, notes, strict=True):
            print(repr(model), describe_test(test, result), *lines, sep="\n")
        if compared is not None:
            print(f"committee of {len(models)} networks")
            print(describe_test(test, compared.committee))
            if compared.disagreement is not None:
                print(command.disagreement_line(round(compared.disagreement * len(test)), len(test)))
        return command.OK

    return command.run(PROGRAM, work)


def _notes(name: str, run: Run) -> Iterator[str]:
    """Which network of a run was tested, where that is not the one of its last epoch."""
    note = network_note(name)
    if run.is_best:
        yield f"this is the network after the best epoch of the run in {run.path.parent}"
    elif note:
        yield f"this is the {note}"
    if run.metrics is None and not run.is_best and run.diverged is None:
        which = "best network so far" if note else "last checkpoint"
        yield f"the run in {run.path} is not finished: this is its {which}"


if __name__ == "__main__":
    sys.exit(main())
