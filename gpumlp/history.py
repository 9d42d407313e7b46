"""The history of runs: ``python -m gpumlp.history RUN [RUN ...]``, also installed as ``gpumlp-history``."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from . import command, terminal
from .files import distinct, user_path, utf8, write_atomically
from .nn.metrics import METRIC_WORDS, METRICS
from .nn.model_file import CHECKPOINT
from .training.checkpoint import CheckpointError
from .training.config import ConfigError, options_marked
from .training.history import MONITORS, EpochRecord, monitor_words
from .training.history_file import is_number
from .training.progress import epoch_line, header_line, metric, number
from .training.run import Run, find_runs, has_parts

PROGRAM = "gpumlp-history"

# Columns of a summary that a table has no room for; it can be sorted by them nevertheless.
_NOT_SHOWN = ("test_loss", *(f"train_{name}" for name in METRIC_WORDS if name != "loss"))
# Options that say nothing about how a run was trained, and the number of epochs, which is shown anyway.
_NOT_COMPARED = (*options_marked("per_call"), "diagnostics", "data_dir", "epochs")


@dataclass(frozen=True)
class Options:
    """Print the history of a run, epoch by epoch, or compare several runs in a table, with the options that
    differ."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of runs, or a folder that holds some."""
    sort: str | None = None
    """Sort the rows by this column: one that is shown, train_accuracy, best_validation_accuracy, test_loss or the
    like, or an option of gpumlp-train. Runs without a value come last."""
    reverse: bool = False
    """Sort in descending order."""
    csv: str | None = None
    """Write all epochs of all runs into FILE.csv, with a column run; with - print only them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, print, and return the exit code: 1 if a run could not be read, though the others were."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        if not options.runs:
            raise ConfigError("expected the folder of a run, or several, got none")
        if options.csv not in (None, "-"):
            command.check_output("csv", options.csv, endings=(".csv",))
        if options.reverse and options.sort is None:
            raise ConfigError("reverse: expected only with --sort")
        names = distinct(run for name in options.runs for run in find_runs(name))
        read, problems = _read(names)
        if not read:
            raise CheckpointError("\n".join(problems))
        runs = ordered(read, options.sort, options.reverse)
        for problem in problems:
            print(f"{PROGRAM}: {problem}", file=sys.stderr)
        code = command.FAILED if problems else command.OK
        if options.csv == "-":
            terminal.write_data(as_csv(runs))
            return code
        lines = (
            epochs_of(runs[0]) if len(names) == 1 and options.sort is None else side_by_side(runs, options.sort)
        )
        for line in lines:
            print(line)
        if options.csv is not None:
            write_atomically(user_path(options.csv), utf8(as_csv(runs)))
            print(f"written: {user_path(options.csv)}")
        return code

    return command.run(PROGRAM, work)


def _read(names: list[str]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and what is wrong with the others."""
    runs, problems = [], []
    for name in names:
        try:
            run = Run(name)
            run.check()
            runs.append(run)
            if run.finished and (run.path / CHECKPOINT).exists():  # the epochs of a run are of use without it
                _ = run.header
        except CheckpointError as error:
            problems.append(" ".join(str(error).split()))
        except OSError as error:
            problems.append(f"{error.filename or name}: {error.strerror or error}")
    return runs, problems


def ordered(runs: list[Run], column: str | None, reverse: bool = False) -> list[Run]:
    """The runs sorted by a column of their summaries, or by an option; those without a value last.

    Raises:
        ConfigError: no run has such a column.
    """
    if column is None:
        return runs
    name = column.replace("-", "_")
    rows = [_everything(run) for run in runs]
    if not any(name in row for row in rows):
        every = dict.fromkeys(name for run in runs for name in run.summary())
        raise ConfigError(
            f"sort: expected one of {', '.join(every)}, or an option of the training such as "
            f"learning_rate, got {column!r}"
        )
    pairs = [(row.get(name), run) for row, run in zip(rows, runs, strict=True)]
    known = [pair for pair in pairs if not _missing(pair[0])]
    known.sort(key=lambda pair: _sort_key(pair[0]), reverse=reverse)
    return [run for _, run in known] + [run for value, run in pairs if _missing(value)]


def epochs_of(run: Run) -> list[str]:
    """The epochs of a run as lines, then how it ended."""
    planned = run.options["epochs"] or len(run.epochs)
    lines = [header_line(run.task), *(epoch_line(record, planned) for record in run.records())]
    summary = run.summary()
    if summary["best_epoch"] is not None:
        value = run.epochs[summary["best_epoch"] - 1][run.monitor]
        which = "highest" if MONITORS[run.monitor] else "lowest"
        words = f"{which} {monitor_words(run.monitor)}: {metric(run.monitor, value)}"
        lines.append(f"{words}, after epoch {summary['best_epoch']}")
    if run.diverged is not None:
        lines.append(f"diverged: {run.diverged.message}")
    elif run.is_best:
        lines.append(f"kept after the best epoch, {len(run.epochs)}, of {planned}")
    elif run.metrics is None:
        lines.append(f"unfinished: {len(run.epochs)} of {planned} epochs, and no test")
    elif summary["test_loss"] is not None:
        epoch = (run.metrics or {}).get("network_epoch", len(run.epochs))
        which = "" if epoch == len(run.epochs) else f" (network of the best epoch, {epoch})"
        values = [f"{METRIC_WORDS[n]}: {metric(n, summary[f'test_{n}'])}" for n in METRICS[run.task]]
        lines.append(f"test {', '.join(values)}, loss {number(summary['test_loss'])}{which}")
    return lines


def side_by_side(runs: list[Run], sorted_by: str | None = None) -> list[str]:
    """A table with a row a run: final and best values, and the options in which the runs differ."""
    options = differences(runs)
    by = None if sorted_by is None else sorted_by.replace("-", "_")
    every = dict.fromkeys(name for run in runs for name in run.summary())
    watched = [f"best_{run.monitor}" for run in runs]
    hidden = {*_NOT_SHOWN, *(name for name in every if name.startswith("best_validation") and name not in watched)}
    shown = [name for name in every if name not in hidden or name == by]
    names = [*shown, *options]
    if by is not None and by not in names:
        names.append(by)
    rows = []
    for run in runs:
        values = {**_everything(run), "epochs": run.progress}
        rows.append([terminal.cell(_cell(name, values.get(name))) for name in names])
    # A header of several words is stacked, so that its column is no wider than it must be.
    stacks = [name.split("_") for name in names]
    height = max(map(len, stacks))
    header = [[""] * (height - len(words)) + words for words in stacks]
    lines = [[words[level] for words in header] for level in range(height)] + rows
    widths = [max(len(line[index]) for line in lines) for index in range(len(names))]
    left = [name == "run" or any(isinstance(run.options.get(name), str) for run in runs) for name in names]
    table = [
        "  ".join(
            cell.ljust(width) if to_the_left else cell.rjust(width)
            for cell, width, to_the_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    ]
    diverged = [f"{run.name} diverged: {run.diverged.message}" for run in runs if run.diverged is not None]
    return table + diverged


def as_csv(runs: list[Run]) -> str:
    """All epochs of all runs, a line each, under a header; columns with more than one value are left out."""
    names = columns(runs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *names])
    for run in runs:
        for epoch in run.epochs:
            writer.writerow([run.name, *(epoch.get(name) for name in names)])
    return text.getvalue()


def differences(runs: list[Run]) -> list[str]:
    """The options in which runs differ, in the order of `Config`."""
    names = list(dict.fromkeys(name for run in runs for name in run.options))
    return [
        name
        for name in names
        if name not in _NOT_COMPARED and any(run.options.get(name) != runs[0].options.get(name) for run in runs)
    ]


def columns(runs: list[Run]) -> list[str]:
    """The columns of the runs' epochs that hold one value each: the fields of `EpochRecord` first."""
    epochs = [epoch for run in runs for epoch in run.epochs]
    known = [field.name for field in dataclasses.fields(EpochRecord)]
    always = [field.name for field in dataclasses.fields(EpochRecord) if field.default is dataclasses.MISSING]
    found = list(dict.fromkeys(name for epoch in epochs for name in epoch)) or always
    left_out = {name for epoch in epochs for name, value in epoch.items() if has_parts(value)}
    left_out.add("layers")  # also where it is empty, because the diagnostics were off
    return [name for name in dict.fromkeys([*known, *found]) if name in found and name not in left_out]


def _everything(run: Run) -> dict[str, Any]:
    """The summary and the options; where they share a name (epochs), the summary's value."""
    return {**run.options, **run.summary()}


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _sort_key(value: Any) -> tuple[int, Any]:
    """Numbers by size, before text by the alphabet, before lists."""
    if isinstance(value, int | float):
        return 0, value
    if isinstance(value, list | tuple):
        return 2, [_sort_key(part) for part in value]
    return 1, str(value)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if not is_number(value):
        return str(value)
    if name.endswith(tuple(METRIC_WORDS)):
        return metric(name, value)
    if name == "seconds":
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    if name == "samples_per_second":
        return f"{value:,.0f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
