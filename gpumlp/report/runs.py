"""The runs of a report: what their folders hold, and their networks on their test sets."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backends import HostArray, to_host
from ..data import Dataset, uses_data_dir
from ..diagnostics import Diagnosis, Finding, diagnose
from ..diagnostics.statistics import can_saturate, saturated_outputs
from ..files import require_distinct, resolved
from ..nn.activations import ReLU
from ..nn.layers import Dense, Dropout
from ..nn.metrics import Evaluation, Task
from ..nn.network import MLP, Workspace
from ..nn.samples import training_targets
from ..training.batches import trained_rows
from ..training.callbacks import read_curve
from ..training.checkpoint import CheckpointError
from ..training.config import Config, given, options_marked
from ..training.run import TEST_CURVE, open_run
from ..training.run import Run as TrainedRun
from ..training.session import load_run, load_training

ACTIVATION_SAMPLES = 1000  # test samples for the statistics of activations
SEEN_SAMPLES, SEEN_EPOCHS = 3, 9  # of which distorted images are shown


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
        epochs: the line of the history for each epoch of the checkpoint, as in JSON, with that of a test curve.
        metrics: of a finished run; None if there are none or they are damaged.
        diverged: why training diverged, or None.
        diagnosis: the result of the diagnostics.
        is_best: is this the network of the best epoch of another run?
        finished: is training complete?
        monitor: the column of the history by which the best epoch is known.
        damaged: a sentence for each file that cannot be read and is left out.
        seen: ``(samples, 1 + epochs, rows, columns)``, some training images and how the network saw them in its
            first epochs; None without distortions.
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
    monitor: str
    damaged: list[str]
    seen: HostArray | None = None

    @property
    def keeps_best(self) -> bool:
        """Is the network not that of the last epoch, but the best one?"""
        return self.network_epoch < len(self.epochs)

    @property
    def task(self) -> Task:
        """Of the network's loss, which the columns of the history depend on."""
        return self.model.loss.task

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
        PathError: a run is named twice.
        CheckpointError, DataError, DeviceError: a run or its data cannot be read.
    """
    require_distinct(paths)
    takes_folder = [uses_data_dir(str(open_run(path).config.dataset)) for path in paths]
    if not any(takes_folder):
        takes_folder = [True] * len(paths)  # loading the data refuses a data_dir without effect
    runs = [
        _read(path, device, data_dir if takes else None) for path, takes in zip(paths, takes_folder, strict=True)
    ]
    full = [resolved(run.path) for run in runs]
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
    tested, damaged = _test_curve(run)
    return Run(
        name=run.path.name,  # read_runs makes it unique
        path=run.path,
        config=run.config,
        model=model,
        network_epoch=run.network_epoch,
        test=test,
        data=run.checkpoint.dataset,
        epochs=_with_lines(_with_lines(known, run.epochs), tested),
        metrics=run.metrics,
        diverged=run.diverged,
        diagnosis=diagnose(run),
        is_best=run.is_best,
        finished=run.finished,
        monitor=run.monitor,
        damaged=run.damaged + damaged,
        seen=_seen(run, data_dir),
    )


def _test_curve(run: TrainedRun) -> tuple[list[dict[str, float]], list[str]]:
    """The lines of ``--test-curve``, if there are any, and why they cannot be read."""
    path = run.path / TEST_CURVE
    try:
        return (read_curve(path) if path.exists() else []), []
    except CheckpointError as error:
        return [], [str(error)]


def _seen(run: TrainedRun, data_dir: str | None) -> HostArray | None:
    """See `Run`."""
    augment, seed = run.config.make_augment(), run.config.seed
    if augment is None or not len(run.history):
        return None
    training = load_training(run, data_dir)
    rows = trained_rows(training, given(run.config.validation), seed)[:SEEN_SAMPLES]
    images = to_host(training.images[rows])
    preprocessing = run.config.make_preprocessing()
    if preprocessing is not None:
        images = preprocessing(images)
    epochs = range(min(SEEN_EPOCHS, len(run.history)))
    return np.stack(
        [images, *(augment.apply(images, seed=seed, epoch=each, rows=rows) for each in epochs)], axis=1
    )


def _with_lines(known: list[dict[str, Any]], epochs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs of the checkpoint, with the further values of a file."""
    lines = {epoch["epoch"]: epoch for epoch in epochs}
    return [{**record, **lines.get(record["epoch"], {})} for record in known]


# -- Test results ----------------------------------------------------------------------------------------------


class Mistake(NamedTuple):
    """A test sample with a wrong class as its prediction."""

    sample: int  # index in the test set
    truth: int
    prediction: int
    probability: float  # of the prediction
    probability_of_truth: float


class LabelMistake(NamedTuple):
    """A test sample with wrong labels."""

    sample: int
    missed: list[int]  # labels that it has
    wrong: list[int]  # labels that it has not


class NumberError(NamedTuple):
    """A number of a test sample, and its prediction."""

    sample: int
    output: int
    truth: float
    prediction: float


class LayerActivity(NamedTuple):
    """Statistics of the outputs of a hidden layer; None if they do not apply to the activation."""

    activation: str
    dropout: float | None  # the rate of the dropout above it
    units: int
    mean: float
    deviation: float
    zero: float | None  # fraction of the outputs
    dead: float | None  # fraction of the units: 0 for every sample
    saturated: float | None  # fraction of the outputs


class Counts(NamedTuple):
    """Test samples of a class or with a label."""

    samples: int
    predicted: int
    correct: int

    @property
    def missed(self) -> int:
        return self.samples - self.correct

    @property
    def recall(self) -> float | None:
        """The fraction of its samples that are recognised; None without samples."""
        return self.correct / self.samples if self.samples else None

    @property
    def precision(self) -> float | None:
        """The fraction of its predictions that are correct; None if it is never predicted."""
        return self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True)
class Measures:
    """The results of a network on its test set.

    Attributes:
        task: ``"classes"``, ``"labels"`` or ``"numbers"``; two classes with one output are classes.
        result: loss and metrics.
        truth: ``(samples,)`` class numbers, ``(samples, labels)`` bool, or ``(samples, outputs)`` float64.
        predictions: of the same shape and dtype.
        mistakes: the worst predictions, worst first: the wrong classes of the highest probability, the samples
            with the most wrong labels, or the numbers with the largest errors, in standard deviations of their
            output.
        activity: of each hidden layer.
        classes: number of classes or labels; 0 for numbers.
    """

    task: Task
    result: Evaluation
    truth: HostArray
    predictions: HostArray
    mistakes: Sequence[Any]
    activity: list[LayerActivity]
    classes: int

    @property
    def samples(self) -> int:
        return self.result.samples

    @property
    def wrong(self) -> int | None:
        """Number of samples with a wrong class or label; None for numbers."""
        return None if self.result.correct is None else self.samples - self.result.correct

    @cached_property
    def confusion(self) -> HostArray:
        """``(classes, classes)`` counts; rows are true classes, columns predictions."""
        confusion = np.zeros((self.classes, self.classes), dtype=np.int64)
        np.add.at(confusion, (self.truth, self.predictions), 1)
        return confusion

    def counts(self) -> list[Counts]:
        """Of each class or label."""
        has, says = self.truth, self.predictions
        if self.task == "classes":
            each = np.arange(self.classes)
            has, says = has[:, None] == each, says[:, None] == each
        totals = (has.sum(axis=0), says.sum(axis=0), (has & says).sum(axis=0))
        return [Counts(*map(int, column)) for column in zip(*totals, strict=True)]


def measure(model: MLP, test: Dataset, mistakes: int = 40) -> Measures:
    """Test a network; waits for its device.

    Raises:
        DataError: a sample cannot be read or preprocessed.
    """
    result = model.evaluate(test)  # first: its errors name the data
    targets: HostArray = training_targets(model, test, model.class_names)
    truth: HostArray
    predictions: HostArray
    task: Task = "classes" if test.task == "classes" else model.loss.task
    if task == "numbers":
        predictions = to_host(model.predict(test.images)).astype(np.float64)
        truth, classes = targets.astype(np.float64), 0
        worst: Sequence[Any] = _largest_errors(truth, predictions)[:mistakes]
    else:
        probabilities = to_host(model.predict_proba(test.images)).astype(np.float64)
        if task == "labels":
            truth, predictions = targets > 0.5, probabilities > 0.5
            worst = _most_wrong(truth, probabilities)[:mistakes]
        else:
            if model.sizes[-1] == 1:  # two classes
                targets = targets[:, 0].astype(np.int64)
                probabilities = np.hstack([1 - probabilities, probabilities])
            truth, predictions = targets, probabilities.argmax(axis=1)
            worst = _most_confident(truth, predictions, probabilities)[:mistakes]
        classes = probabilities.shape[1]
    return Measures(task, result, truth, predictions, worst, _activity(model, test), classes)


def _most_confident(truth: HostArray, predictions: HostArray, probabilities: HostArray) -> list[Mistake]:
    wrong = np.flatnonzero(predictions != truth)
    order = wrong[np.argsort(-probabilities[wrong, predictions[wrong]], kind="stable")]
    return [
        Mistake(
            int(row),
            int(truth[row]),
            int(predictions[row]),
            float(probabilities[row, predictions[row]]),
            float(probabilities[row, truth[row]]),
        )
        for row in order
    ]


def _most_wrong(truth: HostArray, probabilities: HostArray) -> list[LabelMistake]:
    wrong = (probabilities > 0.5) != truth
    order = np.lexsort((-np.abs(probabilities - truth).max(axis=1), -wrong.sum(axis=1)))
    return [
        LabelMistake(
            int(row),
            np.flatnonzero(wrong[row] & truth[row]).tolist(),
            np.flatnonzero(wrong[row] & ~truth[row]).tolist(),
        )
        for row in order[: int(wrong.any(axis=1).sum())]
    ]


def _largest_errors(truth: HostArray, predictions: HostArray) -> list[NumberError]:
    deviations = truth.std(axis=0)
    errors = np.abs(predictions - truth) / np.where(deviations > 0, deviations, 1)
    order = np.argsort(-errors, axis=None, kind="stable")[: len(truth)]
    rows, outputs = np.unravel_index(order, errors.shape)
    return [
        NumberError(int(row), int(output), float(truth[row, output]), float(predictions[row, output]))
        for row, output in zip(rows, outputs, strict=True)
    ]


def _activity(model: MLP, test: Dataset) -> list[LayerActivity]:
    backend, samples = model.backend, min(ACTIVATION_SAMPLES, len(test))
    with backend.activate():
        batches = model.batches(test, samples)
        workspace = Workspace(model, samples, pixels=batches.pixels)
        batches.gather(slice(0, samples), workspace.staging, workspace.inputs)
        model.forward_pass(workspace)
    result = []
    for layer, cache, above in zip(model.layers, workspace.caches, model.layers[1:], strict=False):
        if not isinstance(layer, Dense):
            continue
        outputs: HostArray = backend.to_numpy(cache.output).astype(np.float64)
        zero = dead = saturated = None
        if isinstance(layer.activation, ReLU):
            zero, dead = float((outputs == 0).mean()), float((outputs == 0).all(axis=0).mean())
        if can_saturate(layer.activation):
            saturated = float(saturated_outputs(np, layer.activation, outputs.copy()).mean())
        mean, deviation = float(outputs.mean()), float(outputs.std())
        rate = above.rate if isinstance(above, Dropout) else None
        values = layer.out_features, mean, deviation, zero, dead, saturated
        result.append(LayerActivity(layer.activation.name, rate, *values))
    return result
