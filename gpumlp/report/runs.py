"""The runs of a report: what their folders hold, and their networks on their test sets."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backends import HostArray, to_host
from ..data import Dataset, uses_data_dir
from ..diagnostics import Diagnosis, Finding, diagnose
from ..diagnostics.statistics import can_saturate, saturated_outputs
from ..files import user_path
from ..nn.activations import ReLU
from ..nn.layers import Dense
from ..nn.network import MLP, Workspace
from ..training.config import Config, ConfigError, options_marked
from ..training.run import open_run
from ..training.session import load_run

ACTIVATION_SAMPLES = 1000  # test samples for the statistics of activations


@dataclass(frozen=True)
class Run:
    """A run, as read from its folder.

    Attributes:
        name: of its folder, unique among the runs of a report.
        path: the folder.
        config: its configuration, resolved.
        model: the network of the best epoch if early stopping keeps it, otherwise of the last checkpoint.
        network_epoch: the epoch of that network.
        test: its test set.
        data: of the training set: ``name``, ``classes``, ``train_fingerprint``, ``label_entropy``.
        epochs: the line of the history for each epoch of the checkpoint, as in JSON.
        metrics: of a finished run; None if there are none or they are damaged.
        diverged: why training diverged, or None.
        diagnosis: the result of the diagnostics.
        is_best: is this the network of the best epoch of another run?
        finished: is training complete?
        damaged: a sentence for each file that cannot be read and is left out.
    """

    name: str
    path: Path
    config: Config
    model: MLP
    network_epoch: int
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
    def keeps_best(self) -> bool:
        """Is the network not that of the last epoch, but the best one?"""
        return self.network_epoch < len(self.epochs)

    @property
    def state(self) -> str:
        """How training ended, in words."""
        planned = self.config.epochs
        if self.is_best:
            return f"network of the best epoch, {len(self.epochs)}"
        if self.diverged is not None:
            return f"diverged after {len(self.epochs)} of {planned} epochs"
        if not self.finished:
            return f"not finished: {len(self.epochs)} of {planned} epochs"
        return "finished"

    def settings(self) -> dict[str, Any]:
        """The configuration without the options of a single call."""
        per_call = options_marked("per_call")
        return {name: value for name, value in dataclasses.asdict(self.config).items() if name not in per_call}

    def command_line(self) -> str:
        """The command that reproduces this training run."""
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
        paths: the folders of the runs.
        device: of the networks.
        data_dir: folder with the files of MNIST or a relative, for the runs on such data.

    Raises:
        ConfigError: a run is named twice.
        CheckpointError, DataError, DeviceError: a run or its data cannot be read.
    """
    resolved = [user_path(path).resolve() for path in paths]
    for path, folder in zip(paths, resolved, strict=True):
        if resolved.count(folder) > 1:
            raise ConfigError(f"{path}: expected each run once, got it {resolved.count(folder)} times")
    takes_folder = [uses_data_dir(open_run(path).config.dataset) for path in paths]
    if not any(takes_folder):
        takes_folder = [True] * len(paths)  # loading the data refuses a data_dir without effect
    runs = [
        _read(path, device, data_dir if takes else None) for path, takes in zip(paths, takes_folder, strict=True)
    ]
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
    known = [dataclasses.asdict(record) for record in run.history]
    return Run(
        name=run.path.name,  # read_runs makes it unique
        path=run.path,
        config=run.config,
        model=model,
        network_epoch=run.network_epoch,
        test=test,
        data=run.checkpoint.dataset,
        epochs=_with_lines(known, run.epochs),
        metrics=run.metrics,
        diverged=run.diverged,
        diagnosis=diagnose(run),
        is_best=run.is_best,
        finished=run.finished,
        damaged=run.damaged,
    )


def _with_lines(known: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs of the checkpoint, with the further values of the history file."""
    lines = {epoch["epoch"]: epoch for epoch in epochs}
    return [{**record, **lines.get(record["epoch"], {})} for record in known]


# -- Test results ----------------------------------------------------------------------------------------------


class Mistake(NamedTuple):
    """A test sample with a wrong prediction."""

    sample: int  # index in the test set
    truth: int
    prediction: int
    probability: float  # of the prediction
    probability_of_truth: float


class LayerActivity(NamedTuple):
    """Statistics of the outputs of a hidden layer; None if they do not apply to the activation."""

    units: int
    mean: float
    deviation: float
    zero: float | None  # fraction of the outputs
    dead: float | None  # fraction of the units: 0 for every sample
    saturated: float | None  # fraction of the outputs


@dataclass(frozen=True)
class Measures:
    """The results of a network on its test set.

    Attributes:
        confusion: ``(classes, classes)`` counts; rows are true classes, columns predictions.
        mistakes: those with the highest predicted probability, highest first.
        loss: mean cross-entropy.
        accuracy: fraction of correct answers.
        activity: of each hidden layer.
    """

    confusion: HostArray
    mistakes: list[Mistake]
    loss: float
    accuracy: float
    activity: list[LayerActivity]

    @property
    def samples(self) -> int:
        return int(self.confusion.sum())

    @property
    def wrong(self) -> int:
        return self.samples - int(np.trace(self.confusion))

    def recall(self) -> list[float | None]:
        """The fraction of each class that is recognised; None for a class without test samples."""
        return [_fraction(self.confusion[k, k], self.confusion[k].sum()) for k in range(len(self.confusion))]

    def precision(self) -> list[float | None]:
        """The fraction of the predictions of each class that are correct; None for a class never predicted."""
        return [_fraction(self.confusion[k, k], self.confusion[:, k].sum()) for k in range(len(self.confusion))]


def measure(model: MLP, test: Dataset, mistakes: int = 40) -> Measures:
    """Test a network; waits for its device."""
    probabilities = to_host(model.predict_proba(test.images)).astype(np.float64)
    predictions, labels = probabilities.argmax(axis=1), model.class_numbers(test)
    classes = probabilities.shape[1]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    wrong = np.flatnonzero(predictions != labels)
    order = wrong[np.argsort(-probabilities[wrong, predictions[wrong]], kind="stable")][:mistakes]
    result = model.evaluate(test)
    return Measures(
        confusion,
        [
            Mistake(
                int(row),
                int(labels[row]),
                int(predictions[row]),
                float(probabilities[row, predictions[row]]),
                float(probabilities[row, labels[row]]),
            )
            for row in order
        ],
        result.loss,
        result.accuracy,
        _activity(model, test),
    )


def _activity(model: MLP, test: Dataset) -> list[LayerActivity]:
    backend, samples = model.backend, min(ACTIVATION_SAMPLES, len(test))
    with backend.activate():
        batches = model.batches(test, samples)
        workspace = Workspace(model, samples, pixels=batches.pixels)
        batches.gather(slice(0, samples), workspace.staging, workspace.inputs)
        model.forward_pass(workspace)
        hidden = [
            (layer.activation, backend.to_numpy(output).astype(np.float64))
            for layer, output in zip(model.layers, workspace.outputs, strict=True)
            if isinstance(layer, Dense)
        ][:-1]
    result = []
    for activation, outputs in hidden:
        zero = dead = saturated = None
        if isinstance(activation, ReLU):
            zero, dead = float((outputs == 0).mean()), float((outputs == 0).all(axis=0).mean())
        if can_saturate(activation):
            saturated = float(saturated_outputs(np, activation, outputs.copy()).mean())
        result.append(
            LayerActivity(outputs.shape[1], float(outputs.mean()), float(outputs.std()), zero, dead, saturated)
        )
    return result


def _fraction(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
