"""Event files for TensorBoard, written as epochs end."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..extras import require
from ..files import make_folder, user_path
from ..nn.metrics import HIGHER_IS_BETTER
from .history import EpochRecord
from .trainer import Callback, Trainer

EVENT_FILES = "events.out.tfevents.*"
_BINS = 64  # of a histogram; TensorBoard shows about 30

# Tag of each column of the history. TensorBoard makes a section of what stands before the slash.
_TAGS = {
    **{f"{part}_{name}": f"{name}/{part}" for name in HIGHER_IS_BETTER for part in ("train", "validation")},
    "learning_rate": "training/learning_rate",
    "samples_per_second": "training/samples_per_second",
}


class TensorBoard(Callback):
    """Writes scalars and histograms of the weights after each epoch, as event files that TensorBoard reads.

    Losses, metrics, learning rate and samples a second, and by layer the weights and biases, these also before
    the first epoch; the step is the epoch. Every epoch is on the disk when the next one begins. A resumed run
    writes a file of its own, which replaces what the one before had written of later epochs.

    Args:
        folder: for the event files; ``tensorboard --logdir`` takes the folder above all runs. Event files in it
            are removed when training starts from the beginning.

    Raises:
        MissingExtraError: tensorboardX, which writes the files, is not installed.
        PathError: the path cannot be used.
        OSError: a file cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        check_installed()
        self.folder = user_path(folder)
        self._writer: Any = None

    def on_train_begin(self, trainer: Trainer) -> None:
        make_folder(self.folder)
        if trainer.epoch == 0:
            remove_event_files(self.folder)
        # The last epoch again, which may have been cut off as it was written; all where there is no log yet.
        records = trainer.history.records[-1:] if any(self.folder.glob(EVENT_FILES)) else trainer.history.records
        for record in records[:-1]:
            self._write(_scalars(record), record.epoch)
        self._write_epoch(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._write_epoch(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_epoch(self, trainer: Trainer) -> None:
        summaries = [summary for record in trainer.history.records[-1:] for summary in _scalars(record)]
        self._write([*summaries, *_histograms(trainer)], trainer.epoch)

    def _write(self, summaries: list[Any], epoch: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            if self._writer is None:
                self._writer = self._open(epoch)
            for summary in summaries:
                event = Event(wall_time=time.time(), step=epoch, summary=summary)
                self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            if self._writer is not None:
                with suppress(OSError):  # what it still holds; without this, Python 3.13 prints the error again
                    self._writer.close()
                self._writer = None
            error.filename = error.filename or str(self.folder / EVENT_FILES)
            raise

    def _open(self, epoch: int) -> Any:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        # Not tensorboardX's SummaryWriter: it writes in a thread of its own, and where that fails (a full disk),
        # training is not told and waits for ever.
        # TensorBoard reads files in the order of their names, which begin with the second: the part of it is next.
        # The end is random, so that there cannot be a link of that name.
        seconds, part = divmod(time.time_ns(), 10**9)
        name = f"{seconds:010d}.{socket.gethostname()}.{part:09d}.{epoch:06d}.{secrets.token_hex(4)}"
        writer = RecordWriter(str(self.folder / EVENT_FILES.replace("*", name)))
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        # From this epoch on, what files before this one say is void.
        start = SessionLog(status=SessionLog.START)
        writer.write(Event(wall_time=time.time(), step=epoch, session_log=start).SerializeToString())
        return writer


def check_installed() -> None:
    """Raises MissingExtraError where the files cannot be written."""
    require("TensorBoard's event files", "tensorboardX", "tensorboard")


def remove_event_files(folder: Path) -> None:
    """Remove the event files of an earlier run."""
    for file in folder.glob(EVENT_FILES):
        file.unlink(missing_ok=True)


def _scalars(record: EpochRecord) -> list[Any]:
    from tensorboardX.summary import scalar

    return [scalar(tag, value) for tag, value in scalars(record)]


def _histograms(trainer: Trainer) -> list[Any]:
    from tensorboardX.summary import histogram

    return [
        histogram(f"{name.rpartition('.')[2]}/{name.rpartition('.')[0]}", tensor, bins=_BINS)
        for name, tensor in trainer.model.state_dict().items()
    ]


def scalars(record: EpochRecord) -> Iterator[tuple[str, float]]:
    """Tags and values of an epoch: the columns of the history, and the layers' statistics, if any."""
    for name, tag in _TAGS.items():
        value = getattr(record, name)
        if value is not None:
            yield tag, float(value)
    for index, layer in enumerate(record.layers or ()):
        for name, value in vars(layer).items():
            if isinstance(value, float):  # not the numbers of samples
                yield f"{name}/layers.{index}", float(value)
