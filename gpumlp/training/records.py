"""Reading what runs have left, however they ended and whatever version wrote them."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..diagnostics import Finding
from .checkpoint import Checkpoint, CheckpointError
from .config import OF_THE_CALL, Config
from .history import EpochRecord
from .monitoring import MONITORS
from .run import CHECKPOINT, CONFIG, HISTORY, RunFolder, read_object

# What an epoch's line must hold; other versions may write more.
_NUMBERS = ("train_loss", "train_accuracy", "learning_rate", "seconds", "samples_per_second")
# Options that say nothing about how a run trained, and that of the epochs, which are counted anyway.
_NOT_TRAINING = (*OF_THE_CALL, "diagnostics", "data_dir", "epochs")


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says of the run, as plain values.

    Attributes:
        name: the folder as it was named.
        config: the options, with this version's defaults for those that it did not know.
        epochs: a dictionary for each finished epoch, in order: the fields of `EpochRecord` and any others.
        metrics: of a finished run; None while it is trained, and where it was interrupted or has diverged.
        diverged: why it has diverged, or None.
        is_best: is it the network that was kept after the best epoch of another run?
    """

    name: str
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    diverged: Finding | None = None
    is_best: bool = False

    @property
    def progress(self) -> str:
        """How many epochs are done, and of how many where there are to be more."""
        planned = self.config.get("epochs")
        if self.metrics is not None or self.is_best or planned in (None, len(self.epochs)):
            return str(len(self.epochs))
        return f"{len(self.epochs)}/{planned}"

    def records(self) -> list[EpochRecord]:
        """The epochs as this version knows them, without what holds more than a value."""
        names = [field.name for field in dataclasses.fields(EpochRecord)]
        rows = [{name: epoch.get(name) for name in names} for epoch in self.epochs]
        return [
            EpochRecord.from_dict({name: None if _several(value) else value for name, value in row.items()})
            for row in rows
        ]

    def summary(self) -> dict[str, Any]:
        """Final and best values, in the words of ``history.jsonl`` and ``metrics.json``, or None."""
        last = self.epochs[-1] if self.epochs else {}
        metrics = self.metrics or {}
        best = {name: self._best(name) for name in ("validation_loss", "validation_accuracy")}
        seconds = sum(epoch["seconds"] for epoch in self.epochs)
        samples = sum(epoch["samples_per_second"] * epoch["seconds"] for epoch in self.epochs)
        return {
            "run": self.name,
            "epochs": len(self.epochs),
            "train_loss": last.get("train_loss"),
            "train_accuracy": last.get("train_accuracy"),
            "validation_loss": last.get("validation_loss"),
            "validation_accuracy": last.get("validation_accuracy"),
            "best_validation_loss": best["validation_loss"][1],
            "best_validation_accuracy": best["validation_accuracy"][1],
            "best_epoch": best["validation_loss"][0],
            "test_loss": metrics.get("test_loss"),
            "test_accuracy": metrics.get("test_accuracy"),
            "seconds": seconds,
            "samples_per_second": samples / seconds if seconds else None,
        }

    def _best(self, column: str) -> tuple[int | None, float | None]:
        values = [(epoch["epoch"], epoch[column]) for epoch in self.epochs if _finite(epoch.get(column))]
        if not values:
            return None, None
        choose = max if MONITORS[column] else min
        epoch, value = choose(values, key=lambda pair: pair[1])
        return epoch, value


def read_run(name: str) -> RunRecord:
    """Read a run's folder.

    Raises:
        CheckpointError: there is no run in it, or one of its files is damaged. A last line of the history that was
            cut off as it was written is no damage: that epoch is not finished.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise CheckpointError(f"there is no run {folder}: no such folder")
    if not is_run(folder):
        raise CheckpointError(f"there is no run in {folder}: it has neither {CONFIG}, {HISTORY} nor {CHECKPOINT}")
    run = RunFolder(folder, Config())
    # The best network of a run: what else versions before left beside it need not be about the same epoch.
    if not run.is_best and ((folder / CONFIG).exists() or (folder / HISTORY).exists()):
        config, epochs = read_object(folder / CONFIG) or {}, read_epochs(folder / HISTORY)
    else:
        checkpoint = Checkpoint.load(folder / CHECKPOINT)
        config = json.loads(checkpoint.config.to_json())
        epochs = [dataclasses.asdict(record) for record in checkpoint.history]
    values = {**json.loads(Config().to_json()), **config}
    if run.is_best:
        return RunRecord(name, values, epochs, None, is_best=True)
    return RunRecord(name, values, epochs, run.read_metrics(), run.read_divergence())


def find_runs(name: str) -> list[str]:
    """The runs that a folder stands for: itself, or those that lie in it, by name."""
    folder = Path(name)
    if is_run(folder) or not folder.is_dir():
        return [name]
    return [str(path) for path in sorted(folder.iterdir()) if is_run(path)] or [name]


def is_run(folder: Path) -> bool:
    """Has a training left its files there?"""
    return any((folder / name).is_file() for name in (CONFIG, HISTORY, CHECKPOINT))


def differences(runs: list[RunRecord]) -> list[str]:
    """The options in which runs differ, in the order of `Config`."""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    return [
        name
        for name in names
        if name not in _NOT_TRAINING and any(run.config.get(name) != runs[0].config.get(name) for run in runs)
    ]


def columns(runs: list[RunRecord]) -> list[str]:
    """The columns of the runs' epochs that hold one value each: the fields of `EpochRecord` first."""
    epochs = [epoch for run in runs for epoch in run.epochs]
    known = [field.name for field in dataclasses.fields(EpochRecord)]
    found = list(dict.fromkeys(name for epoch in epochs for name in epoch)) or known
    several = {name for epoch in epochs for name, value in epoch.items() if _several(value)}
    several.add("layers")  # also where it is empty, because the diagnostics were off
    return [name for name in dict.fromkeys([*known, *found]) if name in found and name not in several]


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of a history file; none if there is no such file.

    Raises:
        CheckpointError: a line that was written to its end is not that of an epoch.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    epochs = []
    for number, line in enumerate(lines[:-1], 1):  # after the last line's end there is nothing, or half a line
        try:
            epoch = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: line {number} is no JSON: {error}") from error
        if not isinstance(epoch, dict) or not all(_is_number(epoch.get(name)) for name in ("epoch", *_NUMBERS)):
            raise CheckpointError(f"{path} is damaged: line {number} is not that of an epoch")
        if not all(epoch.get(name) is None or _is_number(epoch[name]) for name in MONITORS):
            raise CheckpointError(f"{path} is damaged: line {number} is not that of an epoch")
        layers = epoch.get("layers")
        if layers is not None and not (isinstance(layers, list) and all(isinstance(x, dict) for x in layers)):
            raise CheckpointError(
                f"{path} is damaged: line {number} is not that of an epoch: layers is {layers!r}"
            )
        epochs.append(epoch)
    return epochs


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple | dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)
