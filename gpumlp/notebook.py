"""How a history and the progress of training look in a notebook."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

from .html import curves, progress_bar, table
from .nn.metrics import METRIC_WORDS, METRICS, Task
from .training.history import History, monitor_words
from .training.progress import columns, drawn, epoch_cells, metric, number
from .training.trainer import Trainer
from .words import counted

_MOST_ROWS = 100  # of a table; a longer history is shown in steps
_PAUSE = 0.2  # seconds between two changes of a cell's output
_SHARE = 20  # and this many times as long as a change takes, which grows with the epochs


def history_html(history: History) -> str:
    """Loss and main metric as curves, the last and the best epoch, and all epochs in a table to unfold."""
    if not history.records:
        return "<p>History: no epochs</p>"
    state = ", interrupted" if history.interrupted else ""
    about = (
        f"History: {counted(len(history), 'epoch')}, {history.seconds:.3g} s of training, "
        f"{history.samples_per_second:,.0f} samples/s{state}"
    )
    task = history.records[-1].task
    header = [name for name, _ in columns(task)]
    rows = [["last", *epoch_cells(history.records[-1])]]
    best = history.best("validation_loss")
    if best is not None:
        rows.append(["best", *epoch_cells(history.records[best.epoch - 1])])
    step = -(-len(history) // _MOST_ROWS)
    every = "all epochs" if step == 1 else f"every {step} epochs"
    unfolded = table(header, [epoch_cells(record) for record in history.records[::step]], words=0)
    return (
        f"<div><p>{escape(about)}</p>{learning_curves(history, task)}{table(['', *header], rows)}"
        f"<details><summary>{every}</summary>{unfolded}</details></div>"
    )


def learning_curves(history: History, task: Task) -> str:
    """Loss and main metric in training and validation over the epochs, as inline SVGs."""
    pictures = []
    for name in ("loss", METRICS[task][0]):
        columns_of = {monitor: history[monitor] for monitor in (f"train_{name}", f"validation_{name}")}
        series = {
            monitor_words(monitor): [math.nan if x is None else x for x in drawn(monitor, column)]
            for monitor, column in columns_of.items()
            if any(x is not None for x in column)
        }
        pictures.append(curves(series, "epoch"))
    return "".join(pictures)


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
        self._change(partial(_Output, trainer, samples), at_once)

    def show_line(self, text: str, *, at_once: bool = False) -> None:
        """Show a line, likewise."""
        self._change(partial(_Line, text), at_once)

    def _change(self, make: Callable[[], object], at_once: bool) -> None:
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        output = make()
        if self._handle is None:
            self._handle = self._display(output, display_id=True)
        else:
            self._handle.update(output)
        end = time.monotonic()
        self._next = end + max(_PAUSE, _SHARE * (end - now))


class _Line(str):
    __repr__ = str.__str__  # without quotation marks


class _Output:
    """What a cell shows of a training run, as HTML and as text."""

    def __init__(self, trainer: Trainer, samples: int) -> None:
        history, epochs = trainer.history, max(trainer.epochs, 1)
        lines = [f"epoch {len(history)}/{epochs}"]
        if history.records:
            last = history.records[-1]
            for part in ("train", "validation"):
                loss = getattr(last, f"{part}_loss")
                if loss is not None:
                    values = {METRIC_WORDS[n]: metric(n, getattr(last, f"{part}_{n}")) for n in METRICS[last.task]}
                    words = ", ".join(f"{name} {value}" for name, value in values.items())
                    lines.append(f"{part} loss {number(loss)}, {words}")
            lines[0] += f", {last.samples_per_second:,.0f} samples/s"
        self._text = "; ".join(lines)
        done = (len(history) + samples / trainer.batches.samples) / epochs
        words = f"{progress_bar(done)} {escape(lines[0])}<br>{escape('; '.join(lines[1:]))}"
        self._html = f"<div>{words}<br>{learning_curves(history, trainer.model.loss.task)}</div>"

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
