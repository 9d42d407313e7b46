"""Say what is wrong with saved runs: ``python -m gpumlp.diagnose RUN``, also installed as ``gpumlp-diagnose``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .training.config import ConfigError
from .training.judging import Beside, judge, read_beside
from .training.run import RunFolder, open_run

PROGRAM = "gpumlp-diagnose"


@dataclass(frozen=True)
class Options:
    """Say what is wrong with saved runs, finished or not: the evidence, the likely cause, and what to try."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of the runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, diagnose, and return the exit code: 1 where a file beside a checkpoint is damaged, 2 for no run."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        if not options.runs:
            raise ConfigError("runs: expected the folder of at least one run, got none")
        if not all(options.runs):  # an empty path would be the current folder
            raise ConfigError("runs: expected the folders of runs, got an empty name")
        pairs = [(folder, read_beside(folder)) for folder in map(open_run, options.runs)]
        for line in [line for folder, beside in pairs for line in diagnosis(folder, beside)]:
            print(line)
        damaged = [problem for _, beside in pairs for problem in beside.damaged]
        for problem in damaged:
            print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return command.FAILED if damaged else command.OK

    return command.run(PROGRAM, work)


def diagnosis(folder: RunFolder, beside: Beside) -> list[str]:
    """What is found in a run: a line for the course of its training, and one for each finding.

    Raises:
        CheckpointError: the run's checkpoint is damaged.
    """
    checkpoint = folder.load()
    judgement = judge(checkpoint, beside.diverged)
    done, planned = judgement.epochs, checkpoint.config.epochs
    epochs = f"{done:,} epoch{'' if done == 1 else 's'}"
    if not beside.finished:
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
