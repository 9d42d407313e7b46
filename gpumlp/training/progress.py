"""What a training shows: a bar and a table's lines on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .callbacks import Callback
from .history import EpochRecord

if TYPE_CHECKING:
    from .trainer import Trainer


class ProgressDisplay(Callback):
    """Prints the course of a training to standard output.

    Args:
        quiet: print nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        # Plain text: no colours guessed from numbers, no markup read into paths, no lines folded at 80 columns.
        self._console = Console(quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text)

    def on_train_begin(self, trainer: Trainer) -> None:
        self.say(header_line())
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            total = trainer.epochs * trainer.batches.samples
            self._task = self._bar.add_task("", total=total, completed=trainer.epoch * trainer.batches.samples)
            self._bar.start()

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if self._bar is not None:
            done = trainer.epoch * trainer.batches.samples + samples
            self._bar.update(self._task, completed=done, description=f"epoch {trainer.epoch + 1}/{trainer.epochs}")

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.say(epoch_line(trainer.history.records[-1], trainer.epochs))

    def on_train_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


# Header and width of each column; together they fit into 80 characters.
_COLUMNS = (
    ("epoch", 7),
    ("train loss", 10),
    ("accuracy", 8),
    ("valid. loss", 11),
    ("accuracy", 8),
    ("learning rate", 13),
    ("samples/s", 9),
)


def header_line() -> str:
    """The names of the columns of `epoch_line`."""
    return "  ".join(f"{name:>{width}}" for name, width in _COLUMNS)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """An epoch in a line, under `header_line`."""
    cells = (
        f"{record.epoch}/{epochs}",
        _loss(record.train_loss),
        percent(record.train_accuracy),
        _loss(record.validation_loss),
        percent(record.validation_accuracy),
        f"{record.learning_rate:.4g}",
        f"{record.samples_per_second:,.0f}",
    )
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with two decimals."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def _loss(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1000 else f"{value:.3g}"
