"""What a training shows: a bar and a table's lines on a terminal, one plain line per epoch elsewhere.

In a notebook it is one output that changes in place.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .callbacks import Callback
from .lines import epoch_line, header_line, percent
from .notebook import Cell, notebook_cell

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from .trainer import Trainer


__all__ = ["ProgressDisplay", "percent"]


class ProgressDisplay(Callback):
    """Shows the course of a training, on standard output or in a notebook's cell.

    `fit` alone is silent: ``fit(..., callbacks=[Progress()])``, as `gpumlp` calls it, is not.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console  # not with the package: nobody but this needs it

        # Plain text: no colours guessed from numbers, no markup read into paths, no lines folded at 80 columns.
        self._console = Console(quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._quiet = quiet
        self._cell: Cell | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        if not self._quiet:
            if self._console.is_jupyter:  # there rich would make a page's element of each line
                print(text)
            else:
                self._console.print(text)

    def on_train_begin(self, trainer: Trainer) -> None:
        self._cell = None if self._quiet else notebook_cell()
        if self._cell is not None:
            self._cell.show(trainer, at_once=True)
            return
        self.say(header_line())
        # A command in a notebook ("!python ...") takes its output for a terminal, but cannot go back in it.
        in_notebook = "JPY_PARENT_PID" in os.environ
        if self._console.is_terminal and not self._console.quiet and not in_notebook:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
        if self._cell is not None:
            self._cell.show(trainer, samples)
        if self._bar is not None and self._task is not None:
            done = trainer.epoch * trainer.batches.samples + samples
            self._bar.update(self._task, completed=done, description=f"epoch {trainer.epoch + 1}/{trainer.epochs}")

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self._cell is None:
            self.say(epoch_line(trainer.history.records[-1], trainer.epochs))

    def on_train_end(self, trainer: Trainer) -> None:
        if self._cell is not None:
            self._cell.show(trainer, at_once=True)
            self._cell = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
