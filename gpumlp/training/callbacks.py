"""Callbacks: stop in time, keep the best network, and measure the test set after every epoch."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

from ..backends import Array
from ..files import make_folder, read_file, user_path, utf8, write_atomically
from ..nn.hyperparameters import number, whole
from ..nn.metrics import HIGHER_IS_BETTER, METRICS
from ..nn.model_file import describe, model_bytes
from ..nn.network import MLP
from ..nn.samples import LabelledData
from ..words import listed
from .history import Best, BestSoFar, checked_monitor
from .history_file import CONFIG, HISTORY, CheckpointError
from .run import RUN_FILES
from .trainer import Callback, Trainer


class _Monitoring(Callback):
    """A callback that watches a column of the history; checked when it is made and when training begins."""

    def __init__(self, monitor: str, min_delta: float = 0.0) -> None:
        self.monitor = checked_monitor(monitor)
        self.min_delta = number("min_delta", min_delta, 0)

    def on_train_begin(self, trainer: Trainer) -> None:
        self._so_far = BestSoFar(self.monitor, self.min_delta)
        part, _, metric = self.monitor.partition("_")
        metrics = ("loss", *METRICS[trainer.model.loss.task])
        if metric not in metrics:
            raise ValueError(
                f"{type(self).__name__} watches {self.monitor}, but the targets are {trainer.model.loss.task}; "
                f"watch one of {listed(f'{part}_{name}' for name in metrics)}"
            )
        if self.monitor.startswith("validation") and trainer.validation_batches is None:
            raise ValueError(
                f"{type(self).__name__} watches {self.monitor}, but there are no validation samples; give some, "
                f"as in fit(..., validation=1000), or watch {self.monitor.replace('validation', 'train')}"
            )

    def best(self, trainer: Trainer) -> Best | None:
        """The best epoch so far, from the history alone, which is saved with a run."""
        return self._so_far.add_new(trainer.history)


class EarlyStopping(_Monitoring):
    """Stops training that no longer improves.

    When to stop depends on the history alone, so that a resumed run stops where the uninterrupted one would have
    stopped.

    Args:
        monitor: what has to improve: ``"validation_loss"``; ``"validation_accuracy"`` of classes or labels,
            ``"validation_label_accuracy"`` of labels, ``"validation_r2"`` or ``"validation_mae"`` of numbers; or
            the same of the training samples, such as ``"train_loss"``.
        patience: training stops after this many epochs in a row without a new best value.
        min_delta: a value is a new best one only if it is better by more than this.
        restore_best: leave the network as it was after the best epoch, however training ends; otherwise as it was
            after the last one. Costs a copy of the parameters on the device at each new best value.

    Attributes:
        best_epoch: the best one, counted from 1; None before the first.
        stopped_epoch: the epoch after which training was stopped; None if it was not.

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
        if self.restore_best and self.monitor == "validation_loss":
            trainer.history.keeps_best()
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
                f"the best epoch, {self.best_epoch}, was before training was resumed, and its parameters are not "
                "known here: the network is left as it was after the last epoch",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        trainer.model.backend.xp.copyto(trainer.model.parameters.data, self._kept[1])


class BestCheckpoint(_Monitoring):
    """Saves the network whenever it is the best so far, as ``model.save`` does: ``MLP.load(path)`` reads it.

    Args:
        path: the file, replaced atomically. Missing parent folders are made.
        monitor: the column that decides which network is the best, see `EarlyStopping`.

    Raises:
        ValueError: as for `EarlyStopping`; when training begins, that the network cannot be saved.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path, monitor: str = "validation_loss") -> None:
        super().__init__(monitor)
        self.path = user_path(path)

    def on_train_begin(self, trainer: Trainer) -> None:
        super().on_train_begin(trainer)
        if self.path.is_dir():
            raise ValueError(f"path is expected to be that of a file, but {self.path} is a folder")
        folder = self.path.parent
        if self.path.name in RUN_FILES and any((folder / name).exists() for name in (CONFIG, HISTORY)):
            raise ValueError(f"{self.path} is a file of the run in {folder}; choose another name")
        describe(trainer.model)  # a network that cannot be saved is refused before it is trained
        make_folder(self.path.parent)

    def on_epoch_end(self, trainer: Trainer) -> None:
        best = self.best(trainer)
        if best is not None and best.since == 0:
            selection = {"epoch": best.epoch, "monitor": self.monitor, "value": best.value}
            write_atomically(self.path, model_bytes(trainer.model, selection))


class TestCurve(Callback):
    """Writes loss and metrics of the test set after every epoch into a CSV file; training does not depend on them.

    Of a run that is resumed, the lines of its earlier epochs stay. So the file may be ahead of the checkpoint, but
    not behind it by more than the checkpoint's own epoch, which is measured again: `write` comes before it.

    Args:
        path: the file, replaced atomically by `write` and at the end of training.
        test: the test set.

    Raises:
        ValueError: as for `MLP.evaluate`, after the first epoch.
        OSError: the file cannot be read or written.
    """

    __test__ = False  # not a test of pytest

    def __init__(self, path: Path, test: LabelledData) -> None:
        self.path, self._test = path, test
        self._rows: list[dict[str, float]] = []
        self._written = 0  # rows in the file

    def on_train_begin(self, trainer: Trainer) -> None:
        saved = read_curve(self.path) if trainer.epoch and self.path.exists() else []
        self._rows, self._written = [row for row in saved if row["epoch"] < trainer.epoch], 0
        if trainer.epoch:  # again: the run may have ended between its checkpoint and this file
            self.on_epoch_end(trainer)
            self.write()

    def on_epoch_end(self, trainer: Trainer) -> None:
        found = trainer.model.evaluate(self._test).metrics()
        self._rows.append({"epoch": trainer.epoch, **{f"test_{name}": value for name, value in found.items()}})

    def on_train_end(self, trainer: Trainer) -> None:
        self.write()

    def write(self) -> None:
        """Write the file, if there are new epochs."""
        if self._written == len(self._rows):
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self._rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self.path, utf8(text.getvalue()))
        self._written = len(self._rows)


def read_curve(path: Path) -> list[dict[str, float]]:
    """The epochs in a file of `TestCurve`: ``epoch``, ``test_loss`` and the test set's other metrics.

    Raises:
        CheckpointError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        rows = csv.DictReader(io.StringIO(read_file(path).decode()), strict=True)
        if not set(rows.fieldnames or ()) <= {"epoch", *(f"test_{name}" for name in HIGHER_IS_BETTER)}:
            raise ValueError("other columns")
        return [{name: float(value) for name, value in row.items()} | {"epoch": int(row["epoch"])} for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged: expected a table of epochs") from error
