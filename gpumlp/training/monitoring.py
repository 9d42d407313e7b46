"""Callbacks that watch one column of the history: stop in time, and keep the best network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..backends import Array
from ..files import write_atomically
from ..nn.hyperparameters import number, whole
from ..nn.model_file import model_bytes
from ..nn.network import MLP
from .callbacks import Callback
from .history import History

if TYPE_CHECKING:
    from .trainer import Trainer

# The columns that can be watched, and whether more is better.
MONITORS = {"train_loss": False, "train_accuracy": True, "validation_loss": False, "validation_accuracy": True}


class Best(NamedTuple):
    """The best epoch, counted from 1, its value, and how many epochs have passed since."""

    epoch: int
    value: float
    since: int


def best_epoch(history: History, monitor: str, min_delta: float = 0.0) -> Best | None:
    """The best epoch of a history; None without an epoch or without values.

    Args:
        history: of a training, at any moment.
        monitor: a column: a loss is best where it is lowest, an accuracy where it is highest.
        min_delta: by how much more than this a value must be better than the best before it, to be the best.

    >>> from gpumlp.training import EpochRecord, History
    >>> losses = (0.5, 0.3, 0.4)
    >>> records = [EpochRecord(n, loss, 0.9, None, None, 0.1, 1.0, 9.0) for n, loss in enumerate(losses, 1)]
    >>> best_epoch(History(records), "train_loss")
    Best(epoch=2, value=0.3, since=1)
    """
    sign = -1.0 if MONITORS[monitor] else 1.0
    best: Best | None = None
    for epoch, value in enumerate(history[monitor], 1):
        if value is not None and (best is None or sign * value < sign * best.value - min_delta):
            best = Best(epoch, value, 0)
    return None if best is None else best._replace(since=len(history) - best.epoch)


class _Monitoring(Callback):
    """What the callbacks here share: a column to watch, checked when it is named and when training begins."""

    def __init__(self, monitor: str, min_delta: float = 0.0) -> None:
        if not isinstance(monitor, str) or monitor not in MONITORS:
            raise ValueError(f"monitor is expected to be one of {', '.join(MONITORS)}, got {monitor!r}")
        self.monitor = monitor
        self.min_delta = number("min_delta", min_delta, 0)

    def on_train_begin(self, trainer: Trainer) -> None:
        if self.monitor.startswith("validation") and trainer.validation_batches is None:
            raise ValueError(
                f"{type(self).__name__} watches {self.monitor}, but there are no validation samples; give some, "
                f"as in fit(..., validation=1000), or watch {self.monitor.replace('validation', 'train')}"
            )

    def best(self, trainer: Trainer) -> Best | None:
        """The best epoch so far. Nothing is remembered: the history, which is saved with a run, says it."""
        return best_epoch(trainer.history, self.monitor, self.min_delta)


class EarlyStopping(_Monitoring):
    """Stops a training that no longer gets better.

    When to stop is derived from the history alone, so that a training that goes on from a saved state stops where
    the uninterrupted one would have stopped.

    Args:
        monitor: what has to get better: ``"validation_loss"``, ``"validation_accuracy"``, ``"train_loss"`` or
            ``"train_accuracy"``.
        patience: epochs in a row that may pass without a new best value; the last of them is the last of all.
        min_delta: only what is better by more than this is a new best value.
        restore_best: leave the network, however the training ends, as it was after the best epoch; otherwise as it
            was after the last. Costs a copy of the parameters on the device at each new best value.

    Attributes:
        best_epoch: the best one, counted from 1; None before the first.
        stopped_epoch: the epoch after which the training was stopped; None if it was not.

    Raises:
        ValueError: a value is out of range; when training begins, that there are no validation samples to watch.

    >>> from gpumlp import MLP, SGD, EarlyStopping, fit, load_digits
    >>> train, test = load_digits()
    >>> stopping = EarlyStopping(patience=3)
    >>> model = MLP([64, 32, 10], device="cpu")
    >>> history = fit(model, train, optimizer=SGD(0.5), epochs=200, validation=200, callbacks=[stopping])
    >>> len(history) < 200, len(history) - stopping.best_epoch
    (True, 3)
    """

    def __init__(
        self,
        monitor: str = "validation_loss",
        *,
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, min_delta)
        self.patience = whole("patience", patience, 1)
        self.restore_best = restore_best
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._model: MLP | None = None
        self._kept: tuple[int, Array] | None = None  # an epoch and the model's parameters after it

    def on_train_begin(self, trainer: Trainer) -> None:
        super().on_train_begin(trainer)
        self.best_epoch = self.stopped_epoch = None
        if trainer.epoch == 0 or trainer.model is not self._model:
            self._model, self._kept = trainer.model, None
        if trainer.epoch:
            self.on_epoch_end(trainer)  # it may be over already

    def on_epoch_end(self, trainer: Trainer) -> None:
        best = self.best(trainer)
        if best is None:
            return
        self.best_epoch = best.epoch
        if self.restore_best and best.since == 0:
            parameters = trainer.model.parameters.data
            if self._kept is None:
                self._kept = best.epoch, parameters.copy()
            else:
                trainer.model.backend.xp.copyto(self._kept[1], parameters)
                self._kept = best.epoch, self._kept[1]
        if best.since >= self.patience:
            self.stopped_epoch = trainer.epoch
            trainer.stop()

    def on_train_end(self, trainer: Trainer) -> None:
        if not self.restore_best or self.best_epoch in (None, trainer.epoch):
            return
        if self._kept is None or self._kept[0] != self.best_epoch:
            warnings.warn(
                f"the best epoch, {self.best_epoch}, was before this training went on, and its parameters are not "
                "known here: the network is left as it was after the last epoch",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        trainer.model.backend.xp.copyto(trainer.model.parameters.data, self._kept[1])


class BestCheckpoint(_Monitoring):
    """Saves the network whenever it is the best so far, as ``model.save`` does: ``MLP.load(path)`` reads it.

    Args:
        path: the file, replaced whole or not at all. Folders on the way to it are made.
        monitor: what tells which network is the best, see `EarlyStopping`.

    Raises:
        ValueError: as for `EarlyStopping`.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path, monitor: str = "validation_loss") -> None:
        super().__init__(monitor)
        self.path = Path(path)

    def on_train_begin(self, trainer: Trainer) -> None:
        super().on_train_begin(trainer)
        if self.path.is_dir():
            raise ValueError(f"path is expected to be that of a file, but {self.path} is a folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, trainer: Trainer) -> None:
        best = self.best(trainer)
        if best is not None and best.since == 0:
            facts = {"epoch": str(best.epoch), self.monitor: json.dumps(best.value)}
            write_atomically(self.path, model_bytes(trainer.model, facts))
