"""What training shows: a progress bar and the lines of a table on a terminal, one plain line per epoch elsewhere.

In a notebook it is one output that changes in place.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..nn.layers import Dropout
from ..nn.metrics import COLUMN_WORDS, METRICS, Task
from ..nn.network import MLP
from ..terminal import console, printable
from .history import EpochRecord
from .trainer import Callback, Trainer

if TYPE_CHECKING:
    from rich import progress


def columns(task: Task) -> list[tuple[str, int]]:
    """Name and width of each column for targets of a kind; together they fit into 80 characters."""
    words = COLUMN_WORDS[task]
    metrics = [(name, 8 if len(words) == 1 else 7) for name in words]
    rest = [("learning rate", 13), ("samples/s", 9)] if len(words) == 1 else [("rate", 9)]
    return [("epoch", 7), ("train loss", 10), *metrics, ("valid. loss", 11), *metrics, *rest]


def header_line(task: Task = "classes") -> str:
    """The names of the columns of `epoch_line`."""
    return "  ".join(f"{name:>{width}}" for name, width in columns(task))


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """An epoch in a line, under `header_line`."""
    cells = (f"{record.epoch}/{epochs}", *epoch_cells(record)[1:])
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, columns(record.task), strict=True))


def epoch_cells(record: EpochRecord) -> list[str]:
    """The values of an epoch as text, one for each of `columns`."""
    names = METRICS[record.task]
    digits = 2 if len(names) == 1 else 1
    cells = [str(record.epoch)]
    for part in ("train", "validation"):
        cells.append(number(getattr(record, f"{part}_loss")))
        cells += [metric(name, getattr(record, f"{part}_{name}"), digits) for name in names]
    cells.append(f"{record.learning_rate:.4g}")
    if len(names) == 1:
        cells.append(f"{record.samples_per_second:,.0f}" if record.samples_per_second else "-")
    return cells


def metric(name: str, value: float | None, digits: int = 2, missing: str = "-") -> str:
    """The value of a metric: a share as a percentage, anything else as a number.

    >>> metric("validation_accuracy", 0.98), metric("r2", 0.98)
    ('98.00 %', '0.9800')
    """
    return percent(value, digits, missing) if name.endswith("accuracy") else number(value, missing)


def dropout_words(model: MLP) -> str:
    """The rates of dropout, for a line about a network; empty without it.

    >>> dropout_words(MLP([784, 128, 10], dropout=0.5, input_dropout=0.2, device="cpu"))
    'dropout 0.2 of the inputs and 0.5, '
    """
    rates = [
        f"{layer.rate:g}{' of the inputs' * (index == 0)}"
        for index, layer in enumerate(model.layers)
        if isinstance(layer, Dropout)
    ]
    return f"dropout {' and '.join(dict.fromkeys(rates))}, " if rates else ""


def drawn(name: str, values: Sequence[float | None]) -> list[float | None]:
    """The values of a metric for a picture: an R^2 below -1, beside which others would not be seen, is NaN.

    >>> drawn("train_r2", [-50.0, 0.25, None])
    [nan, 0.25, None]
    """
    least = -1.0 if name.endswith("r2") and any(x is not None and x >= -1 for x in values) else -math.inf
    return [math.nan if x is not None and x < least else x for x in values]


def percent(fraction: float | None, digits: int = 2, missing: str = "-") -> str:
    """A fraction as a percentage: 0.1671 as "16.71 %".

    Args:
        fraction: from 0 to 1, or None.
        digits: decimals.
        missing: the text for None.
    """
    return missing if fraction is None else f"{100 * fraction:.{digits}f} %"


def number(value: float | None, missing: str = "-") -> str:
    """A loss or an error, with four decimals, or with five digits where it is large.

    >>> number(66.10271), number(3676.81), number(8.2563e23)
    ('66.1027', '3676.8', '8.2563e+23')
    """
    if value is None:
        return missing
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.5g}"


class Display:
    """Shows lines on standard output, and on a terminal a bar below them that changes in place.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        # Plain text: no colours guessed from numbers, no markup read into paths, no lines folded at 80 columns.
        self._console = console(quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.quiet = quiet
        self._bar: progress.Progress | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            if self._console.is_jupyter:  # there rich would make an HTML element of each line
                print(text)
            else:
                self._console.print(printable(text))

    @property
    def _changes(self) -> bool:
        """Can it change what it has shown?"""
        # A dumb terminal, a pipe with FORCE_COLOR, and the output of a command in a notebook ("!python ...") are
        # taken for terminals, but cannot move back.
        terminal = self._console.is_interactive and self._console.file.isatty()
        return terminal and not self.quiet and "JPY_PARENT_PID" not in os.environ

    def _start_bar(self, *columns: progress.ProgressColumn | str) -> None:
        from rich.progress import Progress

        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.add_task("")
        self._bar.start()

    def _update_bar(self, text: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=text, completed=done, total=total)

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class ProgressLine(Display):
    """A line on much work: beside a bar on a terminal, in a notebook's cell, or printed anew about 10 times."""

    _LINES = 10
    _said = 0  # of these lines
    _cell: Any = None  # gpumlp.notebook.Cell

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the line changes in place where it can, and lines that are printed are above it."""
        from ..notebook import notebook_cell  # imports this module

        self._cell = None if self.quiet else notebook_cell()
        if self._changes:
            from rich.progress import BarColumn, TextColumn
            from rich.table import Column

            line = Column(no_wrap=True, overflow="ellipsis")
            self._start_bar(BarColumn(10), TextColumn("{task.description}", table_column=line))
        try:
            yield
        finally:
            self._stop_bar()

    def show(self, text: str, done: int, total: int) -> None:
        """Show the line, which says among other things how much of the work is done."""
        self._update_bar(text, done, total)
        now = done * self._LINES // max(total, 1)
        if self._cell is not None:
            self._cell.show_line(text)
        elif self._bar is None and now > self._said:
            self._said = now
            self.say(text)

    def end(self, text: str) -> None:
        """Show the last line, which stays."""
        if self._cell is not None:
            self._cell.show_line(text, at_once=True)
        else:
            self.say(text)


class Progress(Display, Callback):
    """Shows the progress of training, on standard output or in a notebook's cell.

    `fit` alone is silent; use ``fit(..., callbacks=[Progress()])`` to see the epochs.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._cell: Any = None  # gpumlp.notebook.Cell
        self._slowdown = Slowdown()

    def on_train_begin(self, trainer: Trainer) -> None:
        from ..notebook import notebook_cell  # imports this module

        self._slowdown = Slowdown()
        self._cell = None if self.quiet else notebook_cell()
        if self._cell is not None:
            self._cell.show(trainer, at_once=True)
            return
        self.say(header_line(trainer.model.loss.task))
        if self._changes:
            from rich.progress import BarColumn, TimeRemainingColumn

            percent = "{task.percentage:3.0f} %"
            self._start_bar("{task.description}", BarColumn(), percent, TimeRemainingColumn())
            self._move_bar(trainer, 0)

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if self._slowdown.notices(samples):
            threads = trainer.execution.threads or 1
            if threads > 1:
                self.say(
                    f"steps take {self._slowdown.factor:.0f} times as long as this run's fastest: other programs "
                    f"compete for the processor, and {threads} BLAS threads wait for each other; "
                    "OPENBLAS_NUM_THREADS=1 may help"
                )
        if self._cell is not None:
            self._cell.show(trainer, samples)
        self._move_bar(trainer, samples)

    def _move_bar(self, trainer: Trainer, samples: int) -> None:
        size = trainer.batches.samples
        done, total = trainer.epoch * size + samples, trainer.epochs * size
        epoch = min(trainer.epoch + 1, trainer.epochs)  # a run that is resumed after its last one has no more
        self._update_bar(f"epoch {epoch}/{trainer.epochs}", done, total)

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self._cell is None:
            self.say(epoch_line(trainer.history.records[-1], trainer.epochs))

    def on_train_end(self, trainer: Trainer) -> None:
        if self._cell is not None:
            self._cell.show(trainer, at_once=True)
            self._cell = None
        self._stop_bar()


class Slowdown:
    """Notices, once, that the steps of a run have become several times slower than its fastest ones.

    Args:
        clock: in seconds.

    Attributes:
        factor: how many times slower they are.
    """

    FACTOR = 3.0  # of the fastest time per sample
    LEAST = 0.01  # seconds of steps that are timed together
    LASTING = 2.0  # seconds of steps that must be so slow on average

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._before: tuple[float, int] | None = None  # time and samples of the epoch at the start of a part
        self._fastest = float("inf")  # seconds per sample
        self._seconds, self._samples = 0.0, 0  # of the steps that are being averaged
        self._noticed = False
        self.factor = 1.0

    def notices(self, samples: int) -> bool:
        """To be called with the samples of an epoch that are done; True the first time that steps are so slow.

        The time between two epochs is not that of steps: the first call in an epoch only starts the clock.
        """
        now = self._clock()
        if self._before is None or samples <= self._before[1]:
            self._before = now, samples
            return False
        seconds, count = now - self._before[0], samples - self._before[1]
        if seconds < self.LEAST:
            return False
        self._before = now, samples
        self._fastest = min(self._fastest, seconds / count)
        self._seconds, self._samples = self._seconds + seconds, self._samples + count
        if self._seconds < self.LASTING:
            return False
        self.factor = self._seconds / self._samples / self._fastest
        self._seconds, self._samples = 0.0, 0
        if self.factor < self.FACTOR or self._noticed:
            return False
        self._noticed = True
        return True
