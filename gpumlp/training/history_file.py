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
from typing import Any, NamedTuple

from ..files import read_file, resolved, write_atomically
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


class _Line(NamedTuple):
    """The line of an epoch, and the part of the history that ends with it, with its SHA-256."""

    part: HistoryPart
    digest: Any
    content: bytes


class HistoryFile:
    """Adds lines to a history file and keeps the checksum of all of them.

    Args:
        path: of the file.
        content, epochs: the lines of the file, which `write` writes, and their number.
    """

    def __init__(self, path: Path, content: bytes = b"", epochs: int = 0) -> None:
        self.path = path
        digest = hashlib.sha256(content)
        # The last line in the file, and those to be added: one change of the list is whole or does not happen.
        self._lines = [_Line(HistoryPart(epochs, len(content), digest.hexdigest()), digest, content)]

    @property
    def part(self) -> HistoryPart:
        """What the file holds after the next `append`."""
        return self._lines[-1].part

    def write(self) -> None:
        """Write the file anew, with the content that this object was made with."""
        write_atomically(self.path, self._lines[0].content)

    def add(self, record: EpochRecord) -> None:
        """Add the line of the next epoch, in memory. Adding it again after an interrupt changes nothing."""
        before = self._lines[-1]
        if record.epoch > before.part.epochs:
            line, digest = record.to_json().encode() + b"\n", before.digest.copy()
            digest.update(line)
            part = HistoryPart(record.epoch, before.part.length + len(line), digest.hexdigest())
            self._lines.append(_Line(part, digest, line))

    def append(self) -> None:
        """Write the new lines in one piece: no reader sees half of one. On a full disk, none is left.

        After an interrupt, or an error, it can be called again.

        Raises:
            OSError: they cannot be written.
            CheckpointError: another program has changed the file.
        """
        start, content = self._lines[0].part.length, b"".join(line.content for line in self._lines[1:])
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | _ONLY_THIS_FILE)
            with open(descriptor, "r+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(start)
                written = file.read()  # before an interrupt
                if size < start or not content.startswith(written):
                    raise CheckpointError(f"{self.path} was changed by another program while the run was trained")
                _write(file, content[len(written) :], start)
                os.fsync(file.fileno())  # before the checkpoint that belongs to it
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._lines = self._lines[-1:]


# No links are followed and no line ends converted. Windows lacks the first flag, POSIX the second.
_ONLY_THIS_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def _write(file: Any, content: bytes, start: int) -> None:
    try:
        if file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(start)
        raise


def is_best(folder: Path) -> bool:
    """Does the folder hold the network of the best epoch of the run in the folder above it?"""
    folder = resolved(folder)
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
    return (resolved(folder).parent if is_best(folder) else folder) / HISTORY


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
