"""A run's folder: configuration, history, checkpoint and, at the end, metrics, or why it diverged.

`Run` is the one reader of it and `RunFolder` the writer.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

from ..files import (
    make_folder,
    new_folder_path,
    remove_leftovers,
    resolved,
    user_path,
    write_atomically,
)
from ..nn.metrics import HIGHER_IS_BETTER, Task
from ..nn.metrics import METRICS as METRICS_OF
from ..nn.model_file import BEST, CHECKPOINT, MODEL
from .checkpoint import Checkpoint, State
from .config import Config, ConfigError, with_present_names
from .history import MONITORS, BestSoFar, EpochRecord, Finding, History, best_epoch
from .history_file import (
    CONFIG,
    HISTORY,
    CheckpointError,
    HistoryFile,
    HistoryPart,
    history_path,
    is_best,
    is_number,
    is_own_run,
    read_lines,
    read_object,
)
from .lock import LOCK, RunLock
from .tensorboard import remove_event_files
from .trainer import Callback, Trainer

T = TypeVar("T")

_ENDS = METRICS, DIVERGED, PRUNED = "metrics.json", "diverged.json", "pruned.json"  # how a run has ended
# After a run was saved, it is not saved again for so many seconds, unless it ends. If this process trains several
# runs, not for longer, at most the second number, so that saving them takes this share of the time.
INTERVAL, LONGEST, SHARE = 1.0, 30.0, 0.05
REPORT, TEST_CURVE = "report.html", "test_curve.csv"
EXPORTED = ("network.onnx", "network.safetensors", "network.npz", "network.html")  # by `gpumlp.export`
SWEEP, TABLE = "sweep.json", "sweep.csv"  # in the folder of a sweep, which holds run folders
# What no other command may overwrite.
RUN_FILES = (CONFIG, HISTORY, CHECKPOINT, *_ENDS, MODEL, LOCK, TEST_CURVE)

_TEST_METRICS = tuple(f"test_{name}" for name in HIGHER_IS_BETTER)
_METRIC_NUMBERS = (*_TEST_METRICS, "network_epoch", "seconds", "samples_per_second")


def is_run(folder: Path) -> bool:
    """Does the folder hold files of a run? Raises OSError if that cannot be known."""
    return any(_is_file(folder / name) for name in (CONFIG, HISTORY, CHECKPOINT))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)  # from Python 3.14 on, Path.is_file hides that it may not look
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link may lead to itself
            return False
        raise


def find_runs(name: str) -> list[str]:
    """The runs that a folder stands for: itself, or those in it, by name."""
    folder = user_path(name)
    if _may_be_run(folder) or not folder.is_dir():
        return [name]
    return [str(path) for path in sorted(folder.iterdir()) if _may_be_run(path)] or [name]


def _may_be_run(folder: Path) -> bool:
    try:
        return is_run(folder)
    except OSError:  # no permission, which reading the run will report
        return True


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
        return is_best(self.path)

    @property
    def finished(self) -> bool:
        """Has training come to its end?"""
        return not self.is_best and (self.path / METRICS).exists()  # written at the end

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.load(self.path / CHECKPOINT)

    @cached_property
    def header(self) -> Checkpoint:
        """The checkpoint without its tensors, once the epochs and the best network that belong to it are found.

        Raises:
            CheckpointError: one of them is missing, damaged as far as headers show it, or not of this run.
        """
        checkpoint = Checkpoint.load(self.path / CHECKPOINT, header_only=True)
        checkpoint.part.read(history_path(self.path))
        _ = checkpoint.result_path
        return checkpoint

    @property
    def config(self) -> Config:
        """That of the checkpoint."""
        return self.checkpoint.config

    @cached_property
    def options(self) -> dict[str, Any]:
        """The configuration as JSON has it, with defaults for the options that the run's version did not know."""
        values = self._read(lambda: read_object(self.path / CONFIG), None) if self._has_files else None
        if values is None:  # that of the best network, or killed before it was written
            values = self._read(lambda: json.loads(self.config.to_json()), {})
        return {**json.loads(Config().to_json()), **with_present_names(values)}

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """A dictionary for each finished epoch, in order: the fields of `EpochRecord` and any others."""
        return self._read(self._read_epochs, [])

    @cached_property
    def history(self) -> History:
        """The epochs of the checkpoint; none if the history file is damaged and the run is read leniently."""
        if not self.epochs and self._damaged:
            return History()
        return self._read(lambda: self.checkpoint.history, History())

    @property
    def network_epoch(self) -> int:
        """The epoch whose network commands use: the best one if the run keeps it, otherwise the last."""
        return self.checkpoint.result.epochs

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """The results; None if the run is not finished."""
        return None if self.is_best else self._read(self._read_metrics, None)

    @cached_property
    def diverged(self) -> Finding | None:
        """Why training diverged; None if it did not."""
        return self._finding(DIVERGED, "diverged", "training diverged")

    @cached_property
    def pruned(self) -> Finding | None:
        """Why a search stopped the run before its end; None if it did not."""
        return self._finding(PRUNED, "pruned", "a search stopped it")

    @property
    def damaged(self) -> list[str]:
        """A sentence for each damaged file that was done without."""
        _ = self.options, self.metrics, self.diverged, self.history
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
            if (self.path / SWEEP).exists():
                raise CheckpointError(f"{self.path} holds a sweep; name one of the runs in its folder")
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

    @property
    def task(self) -> Task:
        """What the targets are, as the metrics of the epochs tell; classes before the first."""
        return next((record.task for record in self.records()), "classes")

    @property
    def monitor(self) -> str:
        """The column of the history by which the best epoch is known."""
        name = self.options.get("monitor")
        return name if name in MONITORS else "validation_loss"

    def summary(self) -> dict[str, Any]:
        """Final and best values, with the names of ``history.jsonl`` and ``metrics.json``, or None."""
        epochs, metrics = self.epochs, self.metrics or {}
        last = epochs[-1] if epochs else {}
        names = ("loss", *METRICS_OF[self.task])
        best = {name: best_epoch([epoch.get(name) for epoch in epochs], name) for name in MONITORS}
        watched = best[self.monitor]
        seconds = sum(epoch["seconds"] for epoch in epochs)
        samples = sum(epoch["samples_per_second"] * epoch["seconds"] for epoch in epochs)
        return {
            "run": self.name,
            "epochs": len(epochs),
            **{f"{part}_{name}": last.get(f"{part}_{name}") for part in ("train", "validation") for name in names},
            **{
                f"best_validation_{name}": None if (found := best[f"validation_{name}"]) is None else found.value
                for name in names
            },
            "best_epoch": None if watched is None else epochs[watched.epoch - 1]["epoch"],
            **{f"test_{name}": metrics.get(f"test_{name}") for name in names},
            "seconds": seconds,
            "samples_per_second": samples / seconds if seconds else None,
        }

    @property
    def _has_files(self) -> bool:
        """Does it have files of its own beside the checkpoint? What is beside a best network may be older."""
        return not self.is_best and ((self.path / CONFIG).exists() or (self.path / HISTORY).exists())

    def _finding(self, file: str, name: str, words: str) -> Finding | None:
        """What a file says of the run's end, or the given words if it is damaged; None without the file."""
        path = self.path / file
        if self.is_best or not path.exists():
            return None
        unknown = Finding(name, "")
        finding = self._read(lambda: _read_finding(path), unknown)
        return Finding(name, f"{words}; {self._damaged[-1]}") if finding is unknown else finding

    def _read(self, reader: Callable[[], T], otherwise: T) -> T:
        try:
            return reader()
        except CheckpointError as error:
            if not self._lenient:
                raise
            self._damaged.append(" ".join(str(error).split()))
            return otherwise

    def _read_epochs(self) -> list[dict[str, Any]]:
        path = history_path(self.path)
        lines = read_lines(path)
        if self.is_best:
            return lines[: self.checkpoint.epochs]
        if not path.exists() and (self.path / CHECKPOINT).exists() and self.checkpoint.epochs:
            raise CheckpointError(f"{path} is missing, which has the epochs of the run")
        return lines

    def _read_metrics(self) -> dict[str, Any] | None:
        metrics = read_object(self.path / METRICS)
        for name in _METRIC_NUMBERS:
            value = (metrics or {}).get(name)
            if value is not None and not is_number(value):
                raise CheckpointError(
                    f"{self.path / METRICS} is damaged: {name} is {str(value)[:100]!r}, expected a number"
                )
            low, high = -math.inf if name == "test_r2" else 0, 1 if name.endswith(("accuracy", "r2")) else math.inf
            if value is not None and not low <= value <= high:
                raise CheckpointError(
                    f"{self.path / METRICS} is damaged: {name} is {value:g}, which is impossible"
                )
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


def network_note(path: str | Path) -> str | None:
    """Which network a run stands for, where that is not the one of its last epoch, or the run diverged.

    Raises:
        CheckpointError: a checkpoint is damaged or missing.
    """
    run = Run(path, lenient=True)
    if not (run.path / CHECKPOINT).is_file():
        return None
    last = run.checkpoint.epochs
    if run.network_epoch != last:
        end = ", of a run that diverged" if run.diverged else ""
        return f"network of the best epoch, {run.network_epoch:,} of {last:,}, in {run.path / BEST}{end}"
    return f"network of a run that diverged, after epoch {last:,}" if run.diverged else None


def has_parts(value: Any) -> bool:
    """Does a value of an epoch hold more than one number?"""
    return isinstance(value, list | tuple | dict)


def _read_finding(path: Path) -> Finding:
    values = read_object(path) or {}
    if not all(isinstance(values.get(name), str) for name in ("name", "message")):
        raise CheckpointError(f"{path} is damaged: expected a name and a message")
    layer = values.get("layer")
    return Finding(values["name"], values["message"], layer if isinstance(layer, int) else None)


def write_finding(path: Path, finding: Finding) -> None:
    """Write why a run has ended without results: `DIVERGED` or `PRUNED`."""
    write_atomically(path, (json.dumps(vars(finding), indent=2) + "\n").encode())


# -- Writing -------------------------------------------------------------------------------------------------


class RunFolder(Callback):
    """Saves a run as it is trained; whenever the process dies, the folder holds a whole checkpoint.

    The run is saved when training begins; after an epoch, if `INTERVAL` has passed since; and when training ends,
    also by an interrupt or an error. So a process that is killed loses the epochs of a second, or the one that it
    was training; up to `LONGEST` where it trains so many runs that saving them would take more than `SHARE` of the
    time.

    The lines of the history are written first and the checkpoint second. A checkpoint says which part of the
    history belongs to it, so that lines which are ahead of it are dropped when the run is resumed. With early
    stopping, a checkpoint of the best epoch is kept in the folder ``best`` beside it. Until it is written, its
    state is kept in memory.

    Args:
        path: the folder.
        config: of the run.

    Attributes:
        resumed: the checkpoint from which the run is resumed, in the same folder; None for a new run.
        before_saving: called before the checkpoint is written: writes other files that must not be behind it.
    """

    _trained: ClassVar[WeakSet[RunFolder]] = WeakSet()  # by this process, now

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.resumed: Checkpoint | None = None
        self._history = HistoryFile(path / HISTORY)
        self._so_far = BestSoFar(self.config.monitor)
        self._best: HistoryPart | None = None  # of the history, up to the epoch whose network is kept
        self._kept: tuple[HistoryPart, State] | None = None  # of the best epoch, if it is to be written
        self._saved = -1  # epochs in the checkpoint
        self._saved_at, self._took = -math.inf, math.inf  # seconds: when it was saved, and how long that takes
        self._noted: tuple[Any, ...] = ()  # what tells the states after different epochs apart, of the last one
        self.before_saving: list[Callable[[], object]] = []
        self._lock: RunLock | None = None

    @classmethod
    def create(cls, config: Config, dataset: str) -> RunFolder:
        """A locked folder for a new run: ``config.out``, or ``runs/<time>-<dataset>``.

        Raises:
            PathError: `out` is the name of a file.
            ConfigError: there is a run in it and `overwrite` is not set, or another process is training one there.
            OSError: it cannot be made.
        """
        if config.out is None:
            path = new_folder(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(dataset).stem}")
            return cls(path, config).locked()
        path = new_folder_path(config.out)
        if Run(path).is_best:
            raise ConfigError(
                f"out: {path} is where the run in {path.parent} keeps its best network; choose another folder"
            )
        make_folder(path)
        if (path / SWEEP).exists():
            raise ConfigError(f"out: {path} holds a sweep; choose another folder")
        folder = cls(path, config).locked()
        if _holds_run(path) and not config.overwrite:
            folder.release()
            state = "a finished" if (path / METRICS).exists() else "an unfinished"
            raise ConfigError(
                f"out: {path} holds {state} run; resume it (--resume {path}), replace it (--overwrite), "
                "or choose another folder"
            )
        return folder

    def locked(self) -> RunFolder:
        """The same, once no other process writes into the folder.

        Raises:
            ConfigError: one does.
            OSError: the folder cannot be written.
        """
        self._lock = RunLock(self.path)
        return self

    def release(self) -> None:
        """Let other processes write into the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def abandon(self) -> None:
        """Release the folder, and remove it if it is empty."""
        self.release()
        with suppress(OSError):  # it was used before
            self.path.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def saved(self) -> bool:
        """Has a checkpoint been written since this object was made?"""
        return self._saved != -1

    def on_train_begin(self, trainer: Trainer) -> None:
        used, own = _holds_run(self.path), is_own_run(self.path / BEST)
        if used or self.config.early_stopping:
            self._best_folder()  # refused before anything is written
        if own and self.config.early_stopping:
            raise CheckpointError(
                f"{self.path / BEST} holds a run of its own, but this run keeps its best network there: rename it"
            )
        self._start_history(trainer)
        self._trained.add(self)
        self._note(trainer)
        # The checkpoint first: from then on the run can be resumed; one that it replaces is there until then. But
        # beside it the end of a run that is replaced would be taken for this one's.
        if not trainer.epoch:
            self._remove(*_ENDS)
        self._write_checkpoint(trainer)
        self._history.write()
        remove_leftovers(self.path)
        self._remove(*_ENDS)
        if used:  # otherwise files of these names are the user's own
            self._remove(REPORT)
            if not trainer.epoch:
                self._remove_replaced(own)
        write_atomically(self.path / CONFIG, self.config.to_json().encode())

    def _start_history(self, trainer: Trainer) -> None:
        """Take over the epochs so far: the lines of the file if the run is resumed, and which one is the best."""
        self._so_far, self._kept, self._best = BestSoFar(self.config.monitor), None, None
        if self.resumed is not None and self.resumed.epochs == trainer.epoch:
            lines = self.resumed.part.read(self.path / HISTORY)
            if self.resumed.config.monitor == self.config.monitor:
                self._best = self.resumed.best
        else:
            lines = "".join(record.to_json() + "\n" for record in trainer.history).encode()
        self._history = HistoryFile(self.path / HISTORY, lines, trainer.epoch)
        if self.config.early_stopping and self._best is None:
            self._best = self._kept_before(trainer.history, lines)

    def _remove_replaced(self, own: bool) -> None:
        """Remove files about the network of the run before, which must not be taken for this one's.

        `own` says that the folder `best` holds another run, which stays.
        """
        self._remove(TEST_CURVE, *EXPORTED)
        remove_event_files(self.path)
        if not own:
            best = RunFolder(self._best_folder(), self.config)
            best.remove_all_but_checkpoint()
            best._remove(CHECKPOINT)
            remove_leftovers(best.path)
            with suppress(OSError):  # there is none, or the user's own files are in it
                best.path.rmdir()

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._note(trainer)
        interval, runs = INTERVAL, len(self._trained)
        if runs > 1 and INTERVAL and self._took < math.inf:
            interval = min(max(INTERVAL, self._took * runs / SHARE), LONGEST)
        if time.monotonic() - self._saved_at >= interval:
            self._save(trainer)
        elif self._best == self._history.part:
            self._kept = self._history.part, State.of(trainer).copy()

    def on_train_end(self, trainer: Trainer) -> None:
        self._trained.discard(self)
        if not self.saved or self._saved == trainer.epoch:
            return
        if self._noted[0] == trainer.epoch and self._noted != _signature(trainer):
            # A second interrupt, or an error of the device, has come while an epoch was undone: the parameters are
            # those of no epoch, and the folder stays as it was saved last.
            if trainer.history.interrupted:
                raise KeyboardInterrupt
            return
        self._note(trainer)  # again: an interrupt may have come between the epoch and its end
        try:
            self._save(trainer)
        except KeyboardInterrupt:  # a second one may follow the first at once
            self._save(trainer)
            if not trainer.history.interrupted:
                raise

    def result(self) -> Checkpoint:
        """The checkpoint of the resulting network: that of the best epoch if it is kept, otherwise the last one.

        Raises:
            CheckpointError: it cannot be read.
        """
        return Checkpoint.load(self.path / CHECKPOINT).result

    def remove_all_but_checkpoint(self) -> None:
        """Remove what was written about an earlier state of the network, except its training data."""
        self._remove(CONFIG, HISTORY, *_ENDS, REPORT, TEST_CURVE, *EXPORTED)
        remove_event_files(self.path)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the results of a finished run."""
        write_atomically(self.path / METRICS, (json.dumps(metrics, indent=2) + "\n").encode())

    def write_divergence(self, finding: Finding) -> None:
        """Write why the run has ended without results."""
        write_finding(self.path / DIVERGED, finding)

    def _remove(self, *names: str) -> None:
        data = [resolved(user_path(path)) for path in self.config.data_files]
        for path in [self.path / name for name in names]:
            if path.is_file() and resolved(path) not in data:
                path.unlink()

    def _note(self, trainer: Trainer) -> None:
        """Take note of the last epoch, and whether it is the best one. Doing so again changes nothing."""
        if trainer.epoch:
            self._history.add(trainer.history.records[-1])
        if self.config.early_stopping:
            best = self._so_far.add_new(trainer.history)
            if best is not None and best.since == 0:
                self._best = self._history.part
        self._noted = _signature(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Write the epochs since the last time, and the present state."""
        start = time.monotonic()
        for write in self.before_saving:
            write()
        self._history.append()
        # What the folder held after the best epoch, if each were saved, comes first: ``best`` always fits the
        # checkpoint beside it.
        if self._kept is not None and self._kept[0] == self._best != self._history.part:
            self._write_checkpoint(trainer, *self._kept)
        self._write_checkpoint(trainer)
        self._kept, self._took = None, min(self._took, time.monotonic() - start)

    def _write_checkpoint(
        self, trainer: Trainer, part: HistoryPart | None = None, state: State | None = None
    ) -> None:
        """Write a state, the present one if None, and if it is that after the best epoch, the same into `best`."""
        best = self._best if self.config.early_stopping else None
        part = part or self._history.part
        content = Checkpoint.of(trainer, self.config, part, best, state).to_bytes()
        write_atomically(self.path / CHECKPOINT, content)
        if best == part:
            folder = self._best_folder()
            folder.mkdir(exist_ok=True)
            write_atomically(folder / CHECKPOINT, content)
            remove_leftovers(folder)
            RunFolder(folder, self.config).remove_all_but_checkpoint()  # it was about another network
        if state is None:
            self._saved, self._saved_at = trainer.epoch, time.monotonic()

    def _kept_before(self, history: History, lines: bytes) -> HistoryPart | None:
        """The part up to the best epoch, if its network was kept by an earlier version or before a pause."""
        best = history.best(self.config.monitor)
        with suppress(CheckpointError):
            part = Checkpoint.load(self.path / BEST / CHECKPOINT).part
            if best is not None and part == HistoryFile(Path(), lines[: part.length], best.epoch).part:
                return part
        return None

    def _best_folder(self) -> Path:
        """The folder for the best network. Raises CheckpointError if it is a link, which leads out of the run."""
        path = self.path / BEST
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a symbolic link, and a run writes only into its own folder: remove the link"
            )
        return path


def _signature(trainer: Trainer) -> tuple[Any, ...]:
    """Of a trainer's state, without its arrays: no other epoch, or part of one, leaves the same."""
    return trainer.epoch, trainer.optimizer_state.steps, trainer.random_state()


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CHECKPOINT, CONFIG, HISTORY, METRICS, DIVERGED))


def new_folder(parent: Path, name: str) -> Path:
    """A folder that did not exist before, also when two runs start within a second."""
    make_folder(parent)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
