"""A run's folder: configuration, history, checkpoint and, at the end, metrics, or why it diverged."""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..diagnostics import Finding
from ..files import write_atomically
from .callbacks import Callback
from .checkpoint import Checkpoint, CheckpointError
from .config import Config, ConfigError
from .tensorboard import remove_event_files
from .trainer import Trainer

CONFIG, HISTORY, CHECKPOINT, METRICS, DIVERGED = (
    "config.json",
    "history.jsonl",
    "checkpoint.safetensors",
    "metrics.json",
    "diverged.json",
)
BEST = "best"  # a folder in that of the run, for a checkpoint
_NUMBERS = ("test_accuracy", "test_loss", "seconds", "samples_per_second")  # of the metrics
# What other commands write beside a run, unless they are told where.
REPORT, EXPORTED = "report.html", ("network.onnx", "network.safetensors", "network.npz", "network.html")


class RunFolder(Callback):
    """Saves a training as it goes; whenever it dies, the folder holds a whole checkpoint.

    Of an epoch, the line of the history is written first and the checkpoint second. A checkpoint carries the
    history up to itself, so that a line which outran it is dropped when the run goes on.
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
        path = Path(config.out)
        if cls(path, config).is_best:
            raise ConfigError(
                f"out: {path} is where the run in {path.parent} keeps its best network; choose another folder"
            )
        if _holds_run(path) and not config.overwrite:
            state = "a finished" if (path / METRICS).exists() else "an unfinished"
            raise ConfigError(
                f"out: {path} holds {state} run; go on with it (--resume {path}), replace it (--overwrite), "
                "or choose another folder"
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, config)

    def load(self) -> Checkpoint:
        """The checkpoint. Raises CheckpointError if there is none or it is damaged."""
        return Checkpoint.load(self.path / CHECKPOINT)

    @property
    def saved(self) -> bool:
        """Has a checkpoint been written since this object was made?"""
        return self._saved != -1

    @property
    def is_best(self) -> bool:
        """Is this what a run keeps of its best epoch?"""
        path = self.path.resolve()
        return path.name == BEST and (path.parent / CHECKPOINT).exists()

    def on_train_begin(self, trainer: Trainer) -> None:
        # The checkpoint first: from the moment it exists, the run can be gone on with, and one that is to be
        # replaced is there until then. Metrics are those of a finished run, which this is no longer.
        used = _holds_run(self.path)
        self._save_checkpoint(trainer)
        self._remove(METRICS, DIVERGED)
        if used:  # otherwise files of these names are somebody's own
            self._remove(REPORT)
        if used and trainer.epoch == 0:  # nothing of the network before is to be taken for this one
            self._remove(*EXPORTED)
            best = RunFolder(self.path / BEST, self.config)
            best.remove_all_but_checkpoint()
            best._remove(CHECKPOINT)
            with suppress(OSError):  # there is none, or somebody's own files are in it
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
        """Remove what was written about an earlier state of the network, the samples it is trained on excepted."""
        self._remove(CONFIG, HISTORY, METRICS, DIVERGED, REPORT, *EXPORTED)
        remove_event_files(self.path)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the results of a finished run."""
        write_atomically(self.path / METRICS, (json.dumps(metrics, indent=2) + "\n").encode())

    def read_metrics(self) -> dict[str, Any] | None:
        """The results, or None if the run is not finished.

        Raises:
            CheckpointError: the file is no JSON object, or a result in it is no number.
        """
        metrics = read_object(self.path / METRICS)
        for name in _NUMBERS:
            value = (metrics or {}).get(name)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise CheckpointError(f"{self.path / METRICS} is damaged: {name} is {value!r}, expected a number")
        return metrics

    def write_divergence(self, finding: Finding) -> None:
        """Write why the run has ended without results."""
        write_atomically(self.path / DIVERGED, (json.dumps(vars(finding), indent=2) + "\n").encode())

    def read_divergence(self) -> Finding | None:
        """Why the run ended without results; None if it did not.

        Raises:
            CheckpointError: the file holds no finding.
        """
        values = read_object(self.path / DIVERGED)
        if values is None:
            return None
        if not all(isinstance(values.get(name), str) for name in ("name", "message")):
            raise CheckpointError(f"{self.path / DIVERGED} is damaged: expected a name and a message")
        layer = values.get("layer")
        return Finding(values["name"], values["message"], layer if isinstance(layer, int) else None)

    def _remove(self, *names: str) -> None:
        data = Path(self.config.dataset).resolve()
        for path in [self.path / name for name in names]:
            if path.is_file() and path.resolve() != data:
                path.unlink()

    def _save_checkpoint(self, trainer: Trainer) -> None:
        Checkpoint.of(trainer, self.config).save(self.path / CHECKPOINT)
        self._saved = trainer.epoch


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file.

    Raises:
        CheckpointError: the file holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object")
    return values


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


def open_run(path: str) -> RunFolder:
    """The folder of an existing run, with its configuration.

    Raises:
        CheckpointError: there is no run in it, or its checkpoint is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"there is no run {folder}: no such folder")
    return RunFolder(folder, Checkpoint.load(folder / CHECKPOINT).config)


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
