"""What a network does with its test set: confusions, accuracy by class, mistakes, activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..backends import HostArray, to_host
from ..data import Dataset
from ..diagnostics.statistics import can_saturate, saturated_outputs
from ..nn.network import MLP, Workspace

ACTIVATION_SAMPLES = 1000  # of the test set, for the statistics of activations


class Mistake(NamedTuple):
    """A sample of the test set that the network takes for another class."""

    sample: int  # its place in the test set
    truth: int
    prediction: int
    probability: float  # of the prediction
    probability_of_truth: float


class LayerActivity(NamedTuple):
    """The outputs of a hidden layer; shares are fractions, None where the activation has no such thing."""

    units: int
    mean: float
    deviation: float
    zero: float | None  # of all outputs
    dead: float | None  # of all units: zero for every sample
    saturated: float | None  # of all outputs


@dataclass(frozen=True)
class Measures:
    """A network on its test set.

    Attributes:
        confusion: ``(classes, classes)`` counts, rows are truths and columns predictions.
        mistakes: the most confident ones, most confident first.
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
        """The fraction of each class that is recognised; None for a class that the test set lacks."""
        return [_share(self.confusion[k, k], self.confusion[k].sum()) for k in range(len(self.confusion))]

    def precision(self) -> list[float | None]:
        """The fraction of each answer that is right; None for an answer that is never given."""
        return [_share(self.confusion[k, k], self.confusion[:, k].sum()) for k in range(len(self.confusion))]


def measure(model: MLP, test: Dataset, mistakes: int = 40) -> Measures:
    """Test a network. Waits for its device."""
    probabilities = to_host(model.predict_proba(test.images)).astype(np.float64)
    predictions, labels = probabilities.argmax(axis=1), test.labels
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
        batches = test.batches(samples, backend, model.dtype)
        workspace = Workspace(model, samples, pixels=batches.pixels)
        batches.gather(slice(0, samples), workspace.staging, workspace.inputs)
        model.forward_pass(workspace)
        hidden = [backend.to_numpy(output).astype(np.float64) for output in workspace.outputs[:-1]]
    kind = model.activation.name
    result = []
    for outputs in hidden:
        zero = dead = saturated = None
        if kind == "relu":
            zero, dead = float((outputs == 0).mean()), float((outputs == 0).all(axis=0).mean())
        if can_saturate(model.activation):
            saturated = float(saturated_outputs(np, model.activation, outputs.copy()).mean())
        result.append(
            LayerActivity(outputs.shape[1], float(outputs.mean()), float(outputs.std()), zero, dead, saturated)
        )
    return result


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
