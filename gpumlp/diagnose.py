"""Say what is wrong with saved runs: ``python -m gpumlp.diagnose RUN``, also installed as ``gpumlp-diagnose``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .diagnostics import diagnose
from .files import distinct
from .training.config import ConfigError, given
from .training.run import Run, open_run
from .words import counted

PROGRAM = "gpumlp-diagnose"


@dataclass(frozen=True)
class Options:
    """Say what is wrong with saved runs, finished or not: the evidence, the likely cause, and what to try."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of the runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, diagnose, and return the exit code: 1 if a file beside a checkpoint is damaged, 2 without a run."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        if not options.runs:
            raise ConfigError("runs: expected the folder of at least one run, got none")
        runs = [open_run(path, lenient=True) for path in distinct(options.runs)]
        for line in [line for run in runs for line in diagnosis(run)]:
            print(line)
        damaged = [problem for run in runs for problem in run.damaged]
        for problem in damaged:
            print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return command.FAILED if damaged else command.OK

    return command.run(PROGRAM, work)


def diagnosis(run: Run) -> list[str]:
    """What is found in a run: a line on how training went, and one for each finding; none without its history."""
    checkpoint = run.checkpoint
    if checkpoint.epochs and not run.history.records:
        return []
    found = diagnose(run)
    done, planned = found.epochs, given(run.config.epochs)
    epochs = counted(done, "epoch")
    if not run.finished:
        epochs = f"{done:,} of {counted(planned, 'epoch')}"
    unknown = "too few to tell how it goes"
    if done > 1 and checkpoint.dataset["task"] != "classes":
        unknown = "of which only the units are judged, as there are no classes"
    lines = [f"{run.path}: {epochs}, {found.trend or unknown}"]
    lines += [f"  {finding.name}: {finding.message}" for finding in found.findings]
    if not found.findings and done > 1:
        lines.append("  nothing wrong was found")
    if found.curves_only:
        lines.append("  only the curves were judged: the run was made without diagnostics")
    return lines


if __name__ == "__main__":
    sys.exit(main())
