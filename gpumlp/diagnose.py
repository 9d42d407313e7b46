"""Say what is wrong with saved runs: ``python -m gpumlp.diagnose RUN``, also installed as ``gpumlp-diagnose``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .training.config import ConfigError
from .training.judging import judge
from .training.run import RunFolder, open_run

PROGRAM = "gpumlp-diagnose"


@dataclass(frozen=True)
class Options:
    """Say what is wrong with saved runs, finished or not: the evidence, the likely cause, and what to try."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of the runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, diagnose, and return the exit code: 0, or 2 where a folder holds no run."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        if not options.runs:
            raise ConfigError("runs: expected the folder of at least one run, got none")
        if not all(options.runs):  # an empty path would be the current folder
            raise ConfigError("runs: expected the folders of runs, got an empty name")
        for line in [line for run in options.runs for line in diagnosis(open_run(run))]:
            print(line)
        return command.OK

    return command.run(PROGRAM, work)


def diagnosis(folder: RunFolder) -> list[str]:
    """What is found in a run: a line for the course of its training, and one for each finding.

    Raises:
        CheckpointError: the run's files are damaged.
    """
    checkpoint = folder.load()
    judgement = judge(checkpoint, None if folder.is_best else folder.read_divergence())
    done, planned = judgement.epochs, checkpoint.config.epochs
    epochs = f"{done:,} epoch{'' if done == 1 else 's'}"
    if folder.read_metrics() is None:  # the training has not come to its end
        epochs = f"{done:,} of {planned:,} epoch{'' if planned == 1 else 's'}"
    lines = [f"{folder.path}: {epochs}, {judgement.trend or 'too few to tell how it goes'}"]
    lines += [f"  {finding.name}: {finding.message}" for finding in judgement.findings]
    if not judgement.findings and done > 1:
        lines.append("  nothing is wrong")
    if judgement.curves_only:
        lines.append("  only the curves were judged: the run was made without diagnostics")
    return lines


if __name__ == "__main__":
    sys.exit(main())
