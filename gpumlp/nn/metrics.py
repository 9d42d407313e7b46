"""Metrics: how good predictions are, by what the targets are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..backends import Array, Backend, HostArray, Totals

Task: TypeAlias = str  # "classes", "labels" or "numbers"

# The metrics of each kind of targets beside the loss; the first is the main one.
METRICS: dict[Task, tuple[str, ...]] = {
    "classes": ("accuracy",),
    "labels": ("accuracy", "label_accuracy"),
    "numbers": ("r2", "mae"),
}
HIGHER_IS_BETTER = {"loss": False, "accuracy": True, "label_accuracy": True, "r2": True, "mae": False}
METRIC_WORDS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "label_accuracy": "label accuracy",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "mae": "mean absolute error",
}
# The names of METRICS over the columns of a table.
COLUMN_WORDS: dict[Task, tuple[str, ...]] = {
    "classes": ("accuracy",),
    "labels": ("exact", "labels"),
    "numbers": ("R\N{SUPERSCRIPT TWO}", "MAE"),
}


class Evaluation(NamedTuple):
    """Results on a data set.

    Attributes:
        loss: the mean loss, weighted if the data has sample weights. The other metrics count every sample once.
        accuracy: the fraction of samples whose class, or all of whose labels, are predicted correctly; None for
            numbers.
        correct: the number of these samples; None for numbers.
        samples: the number of samples.
        label_accuracy: the fraction of correct labels, of one output the accuracy; None unless the loss is one of
            labels.
        r2: the coefficient of determination, 1 - sum (prediction - y)^2 / sum (y - mean)^2, mean over the outputs;
            of an output whose y are all equal it is 1 if they are predicted exactly, otherwise 0; None unless the
            targets are numbers.
        mae: the mean absolute error, mean over the outputs; None unless the targets are numbers.
    """

    loss: float
    accuracy: float | None
    correct: int | None
    samples: int
    label_accuracy: float | None = None
    r2: float | None = None
    mae: float | None = None

    def metrics(self) -> dict[str, float]:
        """The metrics that exist for these targets, with the loss, by name."""
        values = self._asdict()
        return {name: values[name] for name in HIGHER_IS_BETTER if values[name] is not None}


def new_scores(xp: Any, task: Task, samples: int, outputs: int, dtype: Any) -> Array:
    """An uninitialized array for the scores of `samples` samples, see `Loss.output_error`."""
    if task == "classes":
        return xp.empty(samples, dtype=bool)
    return xp.empty((samples, outputs), dtype=bool if task == "labels" else dtype)


def metric_totals(backend: Backend, task: Task, losses: Array, scores: Array) -> Totals:
    """What is summed up for `evaluation` to compute the metrics. Does not wait for the device.

    Args:
        backend: of the device.
        task: what the targets are.
        losses: ``(samples,)``.
        scores: of the same samples.
    """
    xp = backend.xp
    if task == "classes":
        return Totals([losses, scores])
    if task == "labels":
        exact = scores if scores.shape[1] == 1 else xp.all(scores, axis=1)
        return Totals([losses, exact, scores])
    squares = xp.empty(scores.shape[1], dtype="float64")  # float32 may overflow where the loss does not
    backend.column_sums(xp.square(scores.astype("float64")), squares)
    return Totals([losses, xp.abs(scores)], squares)


def accuracy_of(predictor: object, found: Evaluation) -> float:
    """The accuracy of a network or a committee; raise ValueError if it has none."""
    if found.accuracy is None:
        raise ValueError(
            f"{predictor} predicts numbers, which have no accuracy; evaluate(dataset).r2 says how good it is"
        )
    if not math.isfinite(found.loss):  # outputs that are NaN count as the first class
        raise ValueError(
            f"the loss of {predictor} is {found.loss} for these samples: the values are too large, or "
            "its training diverged"
        )
    return found.accuracy


def evaluation(
    task: Task, sums: Sequence[float], samples: int, outputs: int, spread: HostArray | None = None
) -> Evaluation:
    """The metrics from the sums of `metric_totals`, on the host.

    Args:
        task: what the targets are.
        sums: of `metric_totals`.
        samples, outputs: their numbers.
        spread: ``(outputs,)``, the sum of (y - mean)^2 of each output, for numbers.
    """
    loss, first, *rest = sums
    if task == "classes":
        return Evaluation(loss / samples, first / samples, int(first), samples)
    if task == "labels":
        share = rest[0] / (samples * outputs)
        return Evaluation(loss / samples, first / samples, int(first), samples, label_accuracy=share)
    assert spread is not None
    squares = np.array(rest)
    # A constant output is predicted perfectly or not at all, as in scikit-learn's r2_score.
    unexplained = np.where(spread > 0, squares / np.where(spread > 0, spread, 1), squares > 0)
    r2, mae = 1 - float(unexplained.mean()), first / (samples * outputs)
    return Evaluation(loss / samples, None, None, samples, r2=r2, mae=mae)
