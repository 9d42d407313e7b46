"""How a history and the progress of training look in a notebook."""

from __future__ import annotations

import importlib
import sys
import time
from html import escape
from typing import Any

from .html import curves, progress_bar, table
from .training.history import History
from .training.progress import COLUMNS, epoch_cells, number, percent
from .training.trainer import Trainer

_MOST_ROWS = 100  # of a table; a longer history is shown in steps
_PAUSE = 0.2  # seconds between two changes of a cell's output
_SHARE = 20  # and this many times as long as a change takes, which grows with the epochs
_HEADER = [name for name, _ in COLUMNS]


def history_html(history: History) -> str:
    """The losses as curves, the last and the best epoch, and all epochs in a table that can be unfolded."""
    if not history.records:
        return "<p>History: no epochs</p>"
    state = ", interrupted" if history.interrupted else ""
    about = (
        f"History: {_count(len(history), 'epoch')}, {history.seconds:.3g} s of training, "
        f"{history.samples_per_second:,.0f} samples/s{state}"
    )
    rows = [["last", *epoch_cells(history.records[-1])]]
    best = history.best("validation_loss")
    if best is not None:
        rows.append(["best", *epoch_cells(history.records[best.epoch - 1])])
    step = -(-len(history) // _MOST_ROWS)
    every = "all epochs" if step == 1 else f"every {step} epochs"
    unfolded = table(_HEADER, [epoch_cells(record) for record in history.records[::step]], words=0)
    return (
        f"<div><p>{escape(about)}</p>{loss_curves(history)}{table(['', *_HEADER], rows)}"
        f"<details><summary>{every}</summary>{unfolded}</details></div>"
    )


def loss_curves(history: History) -> str:
    """Training and validation loss over the epochs, as an inline SVG."""
    series = {"training loss": history["train_loss"]}
    if any(loss is not None for loss in history["validation_loss"]):
        series["validation loss"] = [float("nan") if x is None else x for x in history["validation_loss"]]
    return curves(series, "epoch")


class Cell:
    """One output of a notebook's cell, which changes in place, however many epochs there are.

    Args:
        display: IPython's function of this name.
    """

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        self._next = 0.0

    def show(self, trainer: Trainer, samples: int = 0, *, at_once: bool = False) -> None:
        """Show the progress: `samples` into the next epoch. Does nothing soon after the last change."""
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        output = _Output(trainer, samples)
        if self._handle is None:
            self._handle = self._display(output, display_id=True)
        else:
            self._handle.update(output)
        end = time.monotonic()
        self._next = end + max(_PAUSE, _SHARE * (end - now))


class _Output:
    """What a cell shows, as HTML and as text."""

    def __init__(self, trainer: Trainer, samples: int) -> None:
        history, epochs = trainer.history, max(trainer.epochs, 1)
        lines = [f"epoch {len(history)}/{epochs}"]
        if history.records:
            last = history.records[-1]
            lines.append(f"train loss {number(last.train_loss)}, accuracy {percent(last.train_accuracy)}")
            if last.validation_loss is not None:
                accuracy = percent(last.validation_accuracy)
                lines.append(f"validation loss {number(last.validation_loss)}, accuracy {accuracy}")
            lines[0] += f", {last.samples_per_second:,.0f} samples/s"
        self._text = "; ".join(lines)
        done = (len(history) + samples / trainer.batches.samples) / epochs
        words = f"{progress_bar(done)} {escape(lines[0])}<br>{escape('; '.join(lines[1:]))}"
        self._html = f"<div>{words}<br>{loss_curves(history)}</div>"

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return self._text


def notebook_cell() -> Cell | None:
    """The output of the running cell; None outside a notebook. Imports IPython only if it is imported already."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:  # none in a terminal
        return None
    return Cell(importlib.import_module("IPython.display").display)


def _count(number: int, of_what: str) -> str:
    return f"{number:,} {of_what}{'' if number == 1 else 's'}"
