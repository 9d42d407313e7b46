"""A run as the report reads it: what is in its folder, and its network on its test set."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..diagnostics import Diagnosis, Finding, diagnose
from ..nn.network import MLP
from ..training.config import Config, ConfigError, options_marked
from ..training.run import open_run
from ..training.session import load_run


@dataclass(frozen=True)
class Run:
    """What there is to report on.

    Attributes:
        name: of its folder, made unique among the runs of a report.
        path: the folder.
        config: resolved.
        model: the network of the last checkpoint.
        test: its test set.
        data: of the training set: ``name``, ``classes``, ``train_fingerprint``, ``label_entropy``.
        epochs: a line of the history for each epoch that the checkpoint knows, as JSON has it.
        metrics: at the end of a finished run, or None, also if they are damaged.
        diverged: what was noted when the loss was lost, or None.
        diagnosis: what the diagnostics say.
        is_best: is it the network that was kept after the best epoch of another run?
        finished: has the training come to its end?
        damaged: a sentence for each file that cannot be read, and is done without.
    """

    name: str
    path: Path
    config: Config
    model: MLP
    test: Dataset
    data: dict[str, Any]
    epochs: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    diverged: Finding | None
    diagnosis: Diagnosis
    is_best: bool
    finished: bool
    damaged: list[str]

    @property
    def state(self) -> str:
        """How the training ended, in words."""
        planned = self.config.epochs
        if self.is_best:
            return f"kept after the best epoch, {len(self.epochs)}"
        if self.diverged is not None:
            return f"diverged after {len(self.epochs)} of {planned} epochs"
        if not self.finished:
            return f"not finished: {len(self.epochs)} of {planned} epochs"
        return "finished"

    def settings(self) -> dict[str, Any]:
        """The configuration without what belongs to a single call."""
        per_call = options_marked("per_call")
        return {name: value for name, value in dataclasses.asdict(self.config).items() if name not in per_call}

    def command_line(self) -> str:
        """The command that trains this network again."""
        defaults = dataclasses.asdict(Config())
        words = ["python", "-m", "gpumlp.train"]
        for name, value in self.settings().items():
            if value == defaults[name] or value is None:
                continue
            words.append("--" + name.replace("_", "-"))
            if isinstance(value, list | tuple):
                words += map(str, value)
            elif value is not True:
                words.append(str(value))
        return shlex.join(words)


def read_runs(paths: Sequence[str], device: str, data_dir: str | None) -> list[Run]:
    """Read runs and load their test sets.

    Args:
        paths: of the folders.
        device: that the networks are put on.
        data_dir: folder with MNIST's files, for the runs on MNIST.

    Raises:
        ConfigError: a run is named twice.
        CheckpointError, DataError, DeviceError: a run or its data cannot be read.
    """
    resolved = [Path(path).resolve() for path in paths]
    for path, folder in zip(paths, resolved, strict=True):
        if resolved.count(folder) > 1:
            raise ConfigError(f"{path}: expected each run once, got it {resolved.count(folder)} times")
    on_mnist = [open_run(path).config.dataset == "mnist" for path in paths]
    if not any(on_mnist):
        on_mnist = [True] * len(paths)  # loading the data refuses a data_dir that has no meaning
    runs = [_read(path, device, data_dir if mnist else None) for path, mnist in zip(paths, on_mnist, strict=True)]
    full = [run.path.resolve() for run in runs]
    short = [
        f"{path.parent.name}/{path.name}" if run.is_best else path.name
        for path, run in zip(full, runs, strict=True)
    ]
    names = short if len(set(short)) == len(short) else list(paths)
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _read(path: str, device: str, data_dir: str | None) -> Run:
    _, model, test = load_run(path, device, data_dir)
    run = open_run(path, lenient=True)
    known = [dataclasses.asdict(record) for record in run.checkpoint.history]
    return Run(
        name=run.path.name,  # read_runs makes it unique
        path=run.path,
        config=run.config,
        model=model,
        test=test,
        data=run.checkpoint.dataset,
        epochs=_with_lines(known, run.lines),
        metrics=run.metrics,
        diverged=run.diverged,
        diagnosis=diagnose(run),
        is_best=run.is_best,
        finished=run.finished,
        damaged=run.damaged,
    )


def _with_lines(known: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the checkpoint knows of each epoch, and what the history file has beside it, of other versions, say."""
    lines = {epoch["epoch"]: epoch for epoch in epochs}
    return [{**record, **lines.get(record["epoch"], {})} for record in known]
