"""A run's folder: configuration, history, checkpoint and, at the end, metrics, or why it diverged.

`Run` is the one reader of it and `RunFolder` the writer.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..files import remove_leftovers, user_path, write_atomically
from ..nn.model_file import CHECKPOINT, MODEL
from .checkpoint import Checkpoint, CheckpointError
from .config import Config, ConfigError, with_present_names
from .history import MONITORS, EpochRecord, Finding, best_epoch
from .tensorboard import remove_event_files
from .trainer import Callback, Trainer

T = TypeVar("T")

CONFIG, HISTORY, METRICS, DIVERGED = "config.json", "history.jsonl", "metrics.json", "diverged.json"
BEST = "best"  # the folder within a run's for the network of the best epoch
REPORT = "report.html"
EXPORTED = (
    "network.onnx",
    "network.safetensors",
    "network.npz",
    "network.html",
)  # by `gpumlp.export`
RUN_FILES = (CONFIG, HISTORY, CHECKPOINT, METRICS, DIVERGED, MODEL)  # that no other command may overwrite

# What the line of an epoch must hold; other versions may write more. Numbers of the metrics.
_EPOCH_NUMBERS = ("epoch", "train_loss", "train_accuracy", "learning_rate", "seconds", "samples_per_second")
_METRIC_NUMBERS = ("test_accuracy", "test_loss", "seconds", "samples_per_second")


def is_run(folder: Path) -> bool:
    """Does the folder hold files of a run?"""
    return any((folder / name).is_file() for name in (CONFIG, HISTORY, CHECKPOINT))


def find_runs(name: str) -> list[str]:
    """The runs that a folder stands for: itself, or those in it, by name."""
    folder = user_path(name)
    if is_run(folder) or not folder.is_dir():
        return [name]
    return [str(path) for path in sorted(folder.iterdir()) if is_run(path)] or [name]


class Run:
    """What a run's folder says, however the run ended and whatever version wrote it.

    Attributes read their files when they are asked for, and raise CheckpointError if a file is damaged.

    Args:
        path: the folder.
        lenient: do without damaged files other than the checkpoint, and name them in `damaged`.
    """

    def __init__(self, path: str | Path, *, lenient: bool = False) -> None:
        self.name = str(path)
        self.path = user_path(path)
        self._lenient = lenient
        self._damaged: list[str] = []

    @property
    def is_best(self) -> bool:
        """Is this the network of the best epoch of another run?"""
        path = self.path.resolve()
        return path.name == BEST and (path.parent / CHECKPOINT).exists()

    @property
    def finished(self) -> bool:
        """Has training come to its end?"""
        return not self.is_best and (self.path / METRICS).exists()  # written at the end

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.load(self.path / CHECKPOINT)

    @property
    def config(self) -> Config:
        """That of the checkpoint."""
        return self.checkpoint.config

    @cached_property
    def options(self) -> dict[str, Any]:
        """The configuration as JSON has it, with defaults for the options that the run's version did not know."""
        values = _read_object(self.path / CONFIG) or {} if self._has_files else json.loads(self.config.to_json())
        return {**json.loads(Config().to_json()), **with_present_names(values)}

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of the history file, an epoch each; none without the file."""
        return [] if self.is_best else self._read(lambda: _read_lines(self.path / HISTORY), [])

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """A dictionary for each finished epoch, in order: the fields of `EpochRecord` and any others."""
        if self._has_files:
            return self.lines
        return [dataclasses.asdict(record) for record in self.checkpoint.history]

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """The results; None if the run is not finished."""
        return None if self.is_best else self._read(self._read_metrics, None)

    @cached_property
    def diverged(self) -> Finding | None:
        """Why training diverged; None if it did not."""
        path = self.path / DIVERGED
        if self.is_best or not path.exists():
            return None
        unknown = Finding("diverged", "")
        finding = self._read(lambda: _read_finding(path), unknown)
        if finding is unknown:
            return Finding("diverged", f"training diverged; {self._damaged[-1]}")
        return finding

    @property
    def damaged(self) -> list[str]:
        """A sentence for each damaged file that was done without."""
        _ = self.metrics, self.diverged, self.lines
        return self._damaged

    def check(self) -> None:
        """Read what `summary` needs.

        Raises:
            CheckpointError: there is no run in the folder, or one of its files is damaged. A last line of the
                history that was cut off while it was written is no damage: that epoch is not finished.
        """
        self.check_exists()
        _ = self.options, self.epochs, self.metrics, self.diverged

    def check_exists(self) -> None:
        """Raise CheckpointError if there is no run in the folder."""
        if not self.path.is_dir():
            raise CheckpointError(f"there is no run {self.path}: no such folder")
        if not is_run(self.path):
            raise CheckpointError(
                f"there is no run in {self.path}: it has neither {CONFIG}, {HISTORY} nor {CHECKPOINT}"
            )

    @property
    def progress(self) -> str:
        """Number of finished epochs, and of how many where more are planned."""
        planned = self.options.get("epochs")
        if self.metrics is not None or self.is_best or planned in (None, len(self.epochs)):
            return str(len(self.epochs))
        return f"{len(self.epochs)}/{planned}"

    def records(self) -> list[EpochRecord]:
        """The epochs as this version knows them, without the statistics of layers."""
        names = [field.name for field in dataclasses.fields(EpochRecord)]
        rows = [{name: epoch.get(name) for name in names} for epoch in self.epochs]
        return [
            EpochRecord.from_dict({name: None if has_parts(value) else value for name, value in row.items()})
            for row in rows
        ]

    def summary(self) -> dict[str, Any]:
        """Final and best values, with the names of ``history.jsonl`` and ``metrics.json``, or None."""
        epochs, metrics = self.epochs, self.metrics or {}
        last = epochs[-1] if epochs else {}
        best = {
            name: best_epoch([epoch.get(name) for epoch in epochs], name)
            for name in ("validation_loss", "validation_accuracy")
        }
        lowest, highest = best["validation_loss"], best["validation_accuracy"]
        seconds = sum(epoch["seconds"] for epoch in epochs)
        samples = sum(epoch["samples_per_second"] * epoch["seconds"] for epoch in epochs)
        return {
            "run": self.name,
            "epochs": len(epochs),
            "train_loss": last.get("train_loss"),
            "train_accuracy": last.get("train_accuracy"),
            "validation_loss": last.get("validation_loss"),
            "validation_accuracy": last.get("validation_accuracy"),
            "best_validation_loss": None if lowest is None else lowest.value,
            "best_validation_accuracy": None if highest is None else highest.value,
            "best_epoch": None if lowest is None else epochs[lowest.epoch - 1]["epoch"],
            "test_loss": metrics.get("test_loss"),
            "test_accuracy": metrics.get("test_accuracy"),
            "seconds": seconds,
            "samples_per_second": samples / seconds if seconds else None,
        }

    @property
    def _has_files(self) -> bool:
        """Does it have files of its own beside the checkpoint? What is beside a best network may be older."""
        return not self.is_best and ((self.path / CONFIG).exists() or (self.path / HISTORY).exists())

    def _read(self, reader: Callable[[], T], otherwise: T) -> T:
        try:
            return reader()
        except CheckpointError as error:
            if not self._lenient:
                raise
            self._damaged.append(" ".join(str(error).split()))
            return otherwise

    def _read_metrics(self) -> dict[str, Any] | None:
        metrics = _read_object(self.path / METRICS)
        for name in _METRIC_NUMBERS:
            value = (metrics or {}).get(name)
            if value is not None and not _is_number(value):
                raise CheckpointError(f"{self.path / METRICS} is damaged: {name} is {value!r}, expected a number")
        return metrics


def open_run(path: str | Path, *, lenient: bool = False) -> Run:
    """The run in a folder, with its checkpoint.

    Raises:
        CheckpointError: there is no run in it, or its checkpoint is damaged.
    """
    run = Run(path, lenient=lenient)
    run.check_exists()
    _ = run.checkpoint
    return run


def has_parts(value: Any) -> bool:
    """Does a value of an epoch hold more than one number?"""
    return isinstance(value, list | tuple | dict)


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object")
    return values


def _read_finding(path: Path) -> Finding:
    values = _read_object(path) or {}
    if not all(isinstance(values.get(name), str) for name in ("name", "message")):
        raise CheckpointError(f"{path} is damaged: expected a name and a message")
    layer = values.get("layer")
    return Finding(values["name"], values["message"], layer if isinstance(layer, int) else None)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    epochs = []
    for number, line in enumerate(
        lines[:-1], 1
    ):  # after the end of the last line there is nothing, or half a line
        try:
            epoch = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: line {number} is no JSON: {error}") from error
        numbers_known = isinstance(epoch, dict) and all(_is_number(epoch.get(name)) for name in _EPOCH_NUMBERS)
        if not (numbers_known and all(epoch.get(name) is None or _is_number(epoch[name]) for name in MONITORS)):
            raise CheckpointError(f"{path} is damaged: line {number} is not that of an epoch")
        layers = epoch.get("layers")
        if layers is not None and not (isinstance(layers, list) and all(isinstance(x, dict) for x in layers)):
            raise CheckpointError(
                f"{path} is damaged: line {number} is not that of an epoch: layers is {layers!r}"
            )
        epochs.append(epoch)
    return epochs


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- Writing -------------------------------------------------------------------------------------------------


class RunFolder(Callback):
    """Saves a run as it is trained; whenever the process dies, the folder holds a whole checkpoint.

    Of an epoch, the line of the history is written first and the checkpoint second. A checkpoint carries the
    history up to itself, so that a line which is ahead of it is dropped when the run is resumed.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self._lines = self._saved = -1  # epochs in the history file and in the checkpoint

    @classmethod
    def create(cls, config: Config, dataset: str) -> RunFolder:
        """A folder for a new run: ``config.out``, or ``runs/<time>-<dataset>``.

        Raises:
            ConfigError: there is a run in it and `overwrite` is not set.
            OSError: it cannot be made.
        """
        if config.out is None:
            return cls(_new_folder(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(dataset).stem}"), config)
        path = user_path(config.out)
        if Run(path).is_best:
            raise ConfigError(
                f"out: {path} is where the run in {path.parent} keeps its best network; choose another folder"
            )
        if _holds_run(path) and not config.overwrite:
            state = "a finished" if (path / METRICS).exists() else "an unfinished"
            raise ConfigError(
                f"out: {path} holds {state} run; resume it (--resume {path}), replace it (--overwrite), "
                "or choose another folder"
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, config)

    @property
    def saved(self) -> bool:
        """Has a checkpoint been written since this object was made?"""
        return self._saved != -1

    def on_train_begin(self, trainer: Trainer) -> None:
        # The checkpoint first: from then on the run can be resumed; one that it replaces is there until then.
        # Metrics are those of a finished run, which this no longer is.
        used = _holds_run(self.path)
        self._save_checkpoint(trainer)
        remove_leftovers(self.path)
        self._remove(METRICS, DIVERGED)
        if used:  # otherwise files of these names are the user's own
            self._remove(REPORT)
        if used and trainer.epoch == 0:  # files about the network before must not be taken for this one's
            self._remove(*EXPORTED)
            best = RunFolder(self.path / BEST, self.config)
            best.remove_all_but_checkpoint()
            best._remove(CHECKPOINT)
            with suppress(OSError):  # there is none, or the user's own files are in it
                best.path.rmdir()
        if trainer.epoch == 0:
            remove_event_files(self.path)
        write_atomically(self.path / CONFIG, self.config.to_json().encode())
        lines = "".join(record.to_json() + "\n" for record in trainer.history)
        write_atomically(self.path / HISTORY, lines.encode())
        self._lines = trainer.epoch

    def on_epoch_end(self, trainer: Trainer) -> None:
        _append_line(self.path / HISTORY, trainer.history.records[-1].to_json())
        self._lines = trainer.epoch
        self._save_checkpoint(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        # An interrupt may have come between the epoch and its checkpoint.
        if self._saved != -1 and self._saved != trainer.epoch:
            if self._lines == trainer.epoch:
                self._save_checkpoint(trainer)
            else:
                self.on_epoch_end(trainer)

    def remove_all_but_checkpoint(self) -> None:
        """Remove what was written about an earlier state of the network, except its training data."""
        self._remove(CONFIG, HISTORY, METRICS, DIVERGED, REPORT, *EXPORTED)
        remove_event_files(self.path)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the results of a finished run."""
        write_atomically(self.path / METRICS, (json.dumps(metrics, indent=2) + "\n").encode())

    def write_divergence(self, finding: Finding) -> None:
        """Write why the run has ended without results."""
        write_atomically(self.path / DIVERGED, (json.dumps(vars(finding), indent=2) + "\n").encode())

    def _remove(self, *names: str) -> None:
        data = user_path(self.config.dataset).resolve()
        for path in [self.path / name for name in names]:
            if path.is_file() and path.resolve() != data:
                path.unlink()

    def _save_checkpoint(self, trainer: Trainer) -> None:
        Checkpoint.of(trainer, self.config).save(self.path / CHECKPOINT)
        self._saved = trainer.epoch


class BestFolder(Callback):
    """Keeps the state after the epoch of the lowest validation loss: a checkpoint in a folder within the run's."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.path / BEST

    def on_train_begin(self, trainer: Trainer) -> None:
        self.on_epoch_end(trainer)  # the process may have died before this was saved

    def on_epoch_end(self, trainer: Trainer) -> None:
        best = trainer.history.best("validation_loss")
        if best is not None and best.since == 0:
            self.path.mkdir(exist_ok=True)
            Checkpoint.of(trainer, self.run.config).save(self.path / CHECKPOINT)
            RunFolder(self.path, self.run.config).remove_all_but_checkpoint()  # it was about another network


def _append_line(path: Path, line: str) -> None:
    """Add a line to a file, in one write, so that a reader never sees half of it; on a full disk, none of it."""
    content = line.encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            written = file.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError as error:
            file.truncate(end)
            error.filename = error.filename or str(path)
            raise


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CHECKPOINT, CONFIG, METRICS))


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that did not exist before, also when two runs start within a second."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
