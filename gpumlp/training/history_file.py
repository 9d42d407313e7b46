"""The history of a run as a file: a line of JSON for each finished epoch. Lines are only added.

A checkpoint does not hold the history but says which part of this file belongs to it, so that it costs the same
after any number of epochs.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_file, write_atomically
from ..nn.metrics import METRICS
from ..nn.model_file import BEST, CHECKPOINT, ModelFileError, read_content
from ..strict_json import parse_object
from .history import MONITORS, EpochRecord, History, LayerStatistics

CONFIG, HISTORY = "config.json", "history.jsonl"

# What the line of an epoch must hold; other versions may write more.
_NUMBERS = ("epoch", "train_loss", "learning_rate", "seconds", "samples_per_second")
_KNOWN = [field.name for field in dataclasses.fields(EpochRecord)]
_KNOWN_OF_LAYERS = [field.name for field in dataclasses.fields(LayerStatistics)]


class CheckpointError(ValueError):
    """A file of a run is missing, damaged, or does not fit the others; the message names it and the difference."""


@dataclass(frozen=True)
class HistoryPart:
    """The beginning of a history file that belongs to a checkpoint.

    Attributes:
        epochs: number of lines.
        length: in bytes.
        checksum: their SHA-256.
    """

    epochs: int = 0
    length: int = 0
    checksum: str = hashlib.sha256().hexdigest()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HistoryPart:
        """From what ``vars`` gave. Raises ValueError for anything else."""
        part = cls(**values) if set(values) == {"epochs", "length", "checksum"} else None
        counts = () if part is None else (part.epochs, part.length)
        if part is None or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"expected epochs, length and checksum of the history, got {str(values)[:100]}")
        return part

    def read(self, path: Path) -> bytes:
        """These lines.

        Raises:
            CheckpointError: the file does not begin with them, or cannot be read.
        """
        content = b""
        if self.length:
            try:
                content = read_file(path, self.length)
            except OSError as error:
                raise CheckpointError(
                    f"{path}, which has the epochs of the checkpoint, cannot be read: {error.strerror}"
                ) from error
        if len(content) != self.length or hashlib.sha256(content).hexdigest() != self.checksum:
            raise CheckpointError(
                f"{path} is damaged: it does not begin with the lines of the checkpoint's epochs, {self.epochs:,} "
                f"in {self.length:,} bytes"
            )
        return content


class HistoryFile:
    """Adds lines to a history file and keeps the checksum of all of them.

    Attributes:
        path: of the file.
        part: what the file holds.
    """

    def __init__(self, path: Path, content: bytes = b"", epochs: int = 0) -> None:
        self.path = path
        self._content, self._digest = content, hashlib.sha256(content)
        self.part = HistoryPart(epochs, len(content), self._digest.hexdigest())

    def write(self) -> None:
        """Write the file anew, with the content that this object was made with."""
        write_atomically(self.path, self._content)
        self._content = b""

    def append(self, record: EpochRecord) -> None:
        """Add the line of an epoch in one write: no reader sees half of it. On a full disk, none is left.

        Adding it again after an interrupt is no fault.

        Raises:
            OSError: it cannot be written.
            CheckpointError: another program has changed the file.
        """
        line = record.to_json().encode() + b"\n"
        start = self.part.length
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | _ONLY_THIS_FILE)
            with open(descriptor, "r+b", buffering=0) as file:
                if file.seek(0, os.SEEK_END) == start:
                    _write(file, line, start)
                else:
                    file.seek(start)
                    if file.read() != line:
                        raise CheckpointError(
                            f"{self.path} was changed by another program while the run was trained"
                        )
                os.fsync(file.fileno())  # before the checkpoint that belongs to it
        except OSError as error:
            error.filename = str(self.path)
            raise
        digest = self._digest.copy()
        digest.update(line)
        self._digest, self.part = digest, HistoryPart(record.epoch, start + len(line), digest.hexdigest())


# No links are followed and no line ends converted. Windows lacks the first flag, POSIX the second.
_ONLY_THIS_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def _write(file: Any, line: bytes, start: int) -> None:
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(start)
        raise


def is_best(folder: Path) -> bool:
    """Does the folder hold the network of the best epoch of the run in the folder above it?"""
    folder = folder.resolve()
    return folder.name == BEST and (folder.parent / CHECKPOINT).exists() and not is_own_run(folder)


def is_own_run(best: Path) -> bool:
    """Does a folder `best` within a run's hold a run of its own, not one with the same epochs?"""
    if not any((best / name).exists() for name in (CONFIG, HISTORY)):
        return False
    try:
        part = HistoryPart.from_dict(read_content(best / CHECKPOINT).groups["history"])
        return not part.epochs or not part.read(best.parent / HISTORY)
    except (CheckpointError, KeyError, ModelFileError, ValueError):
        return True


def history_path(folder: Path) -> Path:
    """The history file of the run in a folder, or of the run whose best network it is."""
    return (folder.resolve().parent if is_best(folder) else folder) / HISTORY


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The epochs in a history file, as JSON; none without the file.

    A last line that was cut off while it was written is left out.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return _epochs(path, content)


def read_history(path: Path, part: HistoryPart, layers: int) -> History:
    """The epochs that belong to a checkpoint of a network with so many layers.

    Raises:
        CheckpointError: they are not in the file, or it is damaged.
    """
    records = [_record(path, epoch, layers) for epoch in _epochs(path, part.read(path))]
    if len(records) != part.epochs:
        raise CheckpointError(f"{path} is damaged: expected {part.epochs:,} epochs, got {len(records):,}")
    return History(records)


def _epochs(path: Path, content: bytes) -> list[dict[str, Any]]:
    epochs = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            epoch = parse_object(line)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: line {number} is not that of an epoch: {error}") from error
        if not _is_epoch(epoch, number):
            raise CheckpointError(f"{path} is damaged: line {number} is not that of an epoch")
        layers = epoch.get("layers")
        if layers is not None and not (isinstance(layers, list) and all(isinstance(x, dict) for x in layers)):
            raise CheckpointError(
                f"{path} is damaged: line {number} is not that of an epoch: layers is {str(layers)[:100]}"
            )
        epochs.append(epoch)
    return epochs


def _is_epoch(epoch: dict[str, Any], number: int) -> bool:
    optional = (epoch.get(name) for name in MONITORS)
    main = (epoch.get(f"train_{metrics[0]}") for metrics in METRICS.values())
    return (
        epoch.get("epoch") == number
        and any(map(is_number, main))
        and all(is_number(epoch.get(name)) for name in _NUMBERS)
        and all(value is None or is_number(value) for value in optional)
    )


def _record(path: Path, epoch: dict[str, Any], count: int) -> EpochRecord:
    """An epoch with the values that this version knows; `count` layers are expected."""
    layers = [{name: layer.get(name) for name in _KNOWN_OF_LAYERS} for layer in epoch.get("layers") or ()]
    for layer in layers:
        wrong = [
            name
            for name, value in layer.items()
            if not (is_number(value) or (value is None and name not in ("samples", "gradient_samples")))
        ]
        if wrong:
            raise CheckpointError(
                f"{path} is damaged: {wrong[0]} in line {epoch['epoch']} is {str(layer[wrong[0]])[:100]!r}, "
                "expected a number"
            )
    if layers and (len(layers) != count or any(layers[-1][name] is not None for name in ("dead", "saturated"))):
        raise CheckpointError(
            f"{path} is damaged: the layers in line {epoch['epoch']} are not those of the network, which has "
            f"{count}"
        )
    known = {name: epoch.get(name) for name in _KNOWN}
    return EpochRecord.from_dict({**known, "layers": None if epoch.get("layers") is None else layers})


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of a run; None if there is no such file.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
    """
    try:
        return parse_object(read_file(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
