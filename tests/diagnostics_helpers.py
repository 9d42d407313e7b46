"""Trained networks and curves for the tests of findings."""

from __future__ import annotations

from gpumlp import MLP, Dataset, fit, load_digits
from gpumlp.diagnostics import Finding, Setting, find
from gpumlp.training.history import EpochRecord, History

DIGITS = load_digits()[0]


def found(history: History) -> list[Finding]:
    """What layers and curves tell, without the predictions of each class."""
    return find(history.records, history.setting)


def names(history: History) -> set[str]:
    return {finding.name for finding in found(history)}


def train(hidden: list[int], activation: str = "relu", data: Dataset = DIGITS, **options: object) -> History:
    initializer = options.pop("initializer", "auto")
    model = MLP([data.features, *hidden, data.classes], activation, initializer=initializer, device="cpu")
    return fit(model, data, **{"epochs": 10, "batch_size": 32, "validation": 179, **options})


def curve(train_loss: list[float], validation_loss: list[float] | None = None, accuracy: float = 0.9) -> History:
    held_out: list[float | None] = list(validation_loss or [None] * len(train_loss))
    history = History(
        [
            EpochRecord(n, loss, accuracy, other, None if other is None else accuracy, 0.1, 1.0, 1.0)
            for n, (loss, other) in enumerate(zip(train_loss, held_out, strict=True), 1)
        ]
    )
    history.setting = Setting(classes=10)
    return history
