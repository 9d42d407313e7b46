"""Metrics of each task against scikit-learn's, on whole data sets, in chunks, and while training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, Callback, Dataset, EarlyStopping, LogisticCrossEntropy, SquaredError, Trainer, fit
from gpumlp.nn.metrics import HIGHER_IS_BETTER, METRIC_WORDS, METRICS
from gpumlp.nn.network import CHUNK, evaluate_batches
from gpumlp.training.history import MONITORS
from tests.strict_device import StrictBackend

RNG = np.random.default_rng(0)
SAMPLES = 2 * CHUNK + 5
X = RNG.normal(size=(SAMPLES, 6))
WEIGHTS = RNG.uniform(0, 3, SAMPLES)
TARGETS: dict[str, Any] = {
    "classes": RNG.integers(0, 4, SAMPLES),
    "labels": RNG.integers(0, 2, (SAMPLES, 3)),
    "numbers": RNG.normal(2, 3, (SAMPLES, 3)) + 0.25,
}
TASKS = pytest.mark.parametrize("task", TARGETS)


def data(task: str, rows: slice = slice(None), weights: bool = False) -> Dataset:
    return Dataset(
        X[rows], TARGETS[task][rows], task=task, classes=4 if task == "classes" else None,
        weights=WEIGHTS[rows] if weights else None,
    )  # fmt: skip


def network(task: str, device: Any = "cpu", **options: Any) -> MLP:
    return MLP([6, 5, data(task).outputs], "tanh", dtype="float64", device=device, seed=3, **options)


def by_sklearn(model: MLP, task: str, rows: slice = slice(None)) -> dict[str, float]:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    found, y = model.predict(X[rows]), TARGETS[task][rows]
    if task == "numbers":
        return {"r2": metrics.r2_score(y, found), "mae": metrics.mean_absolute_error(y, found)}
    accuracy = {"accuracy": metrics.accuracy_score(y, found)}
    if task == "classes":
        return accuracy
    return {**accuracy, "label_accuracy": 1 - metrics.hamming_loss(y, found)}


# -- On a data set -------------------------------------------------------------------------------------------


@TASKS
@pytest.mark.parametrize("rows", [slice(0, 2), slice(0, 7), slice(None)], ids=str)
def test_metrics_are_those_of_scikit_learn(task: str, rows: slice) -> None:
    model, part = network(task), data(task, rows)
    found = model.evaluate(part)
    expected = by_sklearn(model, task, rows)
    assert tuple(expected) == METRICS[task]
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=1e-12)
    others = {"accuracy", "label_accuracy", "r2", "mae"} - set(expected)
    assert all(getattr(found, name) is None for name in others)
    assert found.samples == len(part)
    assert found.correct == (None if task == "numbers" else round(found.accuracy * len(part)))
    assert found.metrics() == {"loss": found.loss, **{name: getattr(found, name) for name in expected}}


@pytest.mark.parametrize("value", [2.0, 0.1, 1e9 + 0.1])
@pytest.mark.parametrize(("error", "expected"), [(0.0, 1.0), (0.5, 0.0)])
def test_a_constant_output_is_predicted_perfectly_or_not_at_all(
    value: float, error: float, expected: float
) -> None:
    """As in scikit-learn, whatever the rounding of the mean."""
    model = MLP([6, 2], device="cpu", dtype="float64")
    model.dense_layers[0].weight[...] = 0
    model.dense_layers[0].bias[:] = value + error, 0
    y = np.stack([np.full(7, value), [-3.0, -2, -1, 0, 1, 2, 3]], axis=1)
    found = model.evaluate(Dataset(X[:7], y, task="numbers"))
    assert found.r2 == (expected + 0) / 2  # the other output is predicted by its mean


@pytest.mark.parametrize("device", ["cpu", StrictBackend()], ids=["cpu", "strict"])
def test_r2_of_large_numbers_in_float32_is_finite(device: Any) -> None:
    """The sum of the squares is beyond float32, each square is not."""
    y = 1e18 * RNG.normal(size=(5000, 2))
    found = MLP([6, 2], device=device, seed=0).evaluate(Dataset(np.zeros((5000, 6)), y))
    assert found.r2 == pytest.approx(1 - (np.square(y).sum(axis=0) / (5000 * y.var(axis=0))).mean(), abs=1e-6)


def test_r2_does_not_lose_digits_far_from_0() -> None:
    """The spread is computed around the mean, and in float64 also for a network in float32."""
    y = 1e4 + RNG.normal(size=(50, 1))
    model = MLP([6, 1], device="cpu")
    model.dense_layers[0].weight[...] = 0
    model.dense_layers[0].bias[:] = 1e4
    mean = float(y.astype(np.float32).astype(float).mean())
    spread = np.square(y.astype(np.float32).astype(float) - mean).sum()
    expected = 1 - np.square(y.astype(np.float32).astype(float) - 1e4).sum() / spread
    assert model.evaluate(Dataset(X[:50], y)).r2 == pytest.approx(expected, abs=1e-5)


@TASKS
@pytest.mark.parametrize("batch_size", [1, 7, 500, CHUNK, 10**6])
def test_chunks_of_any_size_give_the_same(task: str, batch_size: int) -> None:
    model, part = network(task), data(task, slice(0, 300), weights=True)
    found = evaluate_batches(model, model.batches(part, batch_size))
    assert found.metrics() == pytest.approx(model.evaluate(part).metrics(), rel=1e-12)


@TASKS
def test_the_metrics_of_any_device_are_the_same_with_one_wait(task: str) -> None:
    backend = StrictBackend()
    model, part = network(task, backend), data(task, weights=True)
    batches = model.batches(part)
    with backend.ledger.counting() as ledger:
        found = evaluate_batches(model, batches)
    assert (ledger.waits, ledger.host_reads) == (1, 1)
    assert found.metrics() == pytest.approx(network(task).evaluate(part).metrics(), rel=1e-12)


@TASKS
def test_the_loss_is_the_weighted_mean_and_the_metrics_count_every_sample_once(task: str) -> None:
    model = network(task)
    plain, weighted = (model.evaluate(data(task, slice(0, 50), weights)) for weights in (False, True))
    each = [model.evaluate(data(task, slice(row, row + 1))).loss for row in range(50)]
    assert plain.loss == pytest.approx(np.mean(each), rel=1e-12)
    assert weighted.loss == pytest.approx(np.average(each, weights=WEIGHTS[:50]), rel=1e-12)
    assert plain.metrics() | {"loss": 0} == weighted.metrics() | {"loss": 0}


def test_only_the_ratios_of_weights_count() -> None:
    model = network("classes")
    for dtype in ("float32", "float64"):
        model = MLP([6, 5, 4], dtype=dtype, device="cpu")
        losses = [
            model.evaluate(Dataset(X[:50], TARGETS["classes"][:50], classes=4, weights=scale * WEIGHTS[:50])).loss
            for scale in (1.0, 1e-300, 1e300)
        ]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_accuracy_of_numbers_is_refused_with_what_to_ask() -> None:
    with pytest.raises(ValueError, match=r"predicts numbers, which have no accuracy; evaluate\(dataset\).r2"):
        network("numbers").accuracy(data("numbers"))
    assert network("labels").accuracy(data("labels")) == network("labels").evaluate(data("labels")).accuracy


# -- While training ------------------------------------------------------------------------------------------


def standing_still(learning_rate: float, epoch: int) -> float:
    return 0.0


@TASKS
@pytest.mark.parametrize("batch_size", [32, "full"])
@pytest.mark.parametrize("device", ["cpu", StrictBackend()], ids=["cpu", "strict"])
@pytest.mark.parametrize("weights", [False, True], ids=["", "weights"])
def test_the_metrics_of_training_are_those_of_a_network_that_does_not_change(
    task: str, batch_size: Any, device: Any, weights: bool
) -> None:
    model, part = network(task, device), data(task, slice(0, 301), weights)
    options: dict[str, Any] = {"batch_size": batch_size, "schedule": standing_still, "validation": data(task)}
    (record,) = fit(model, part, epochs=1, **options)
    for prefix, expected in (("train", model.evaluate(part)), ("validation", model.evaluate(data(task)))):
        for name in HIGHER_IS_BETTER:
            found, value = getattr(record, f"{prefix}_{name}"), getattr(expected, name)
            assert found == (value if value is None else pytest.approx(value, rel=1e-6)), name


@TASKS
def test_the_metrics_of_training_are_taken_before_each_update(task: str) -> None:
    """Those of a batch are of the network before its step."""
    model, part = network(task), data(task, slice(0, 64))
    seen: list[np.ndarray] = []

    class Watch(Callback):
        def on_progress(self, trainer: Trainer, samples: int) -> None:
            batch = trainer.batches.slices[len(seen)]
            rows = trainer.batches.order[batch]
            seen.append((before.predict(X[rows]), TARGETS[task][rows]))
            before.load_state_dict(trainer.model.state_dict())

    trainer = Trainer(model, part, batch_size=16)
    before = network(task, loss=model.loss)
    (record,) = trainer.run(1, Watch())
    found, y = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
    if task == "numbers":
        assert record.train_mae == pytest.approx(np.abs(found - y).mean(), rel=1e-12)
        spread = np.square(y - y.mean(axis=0)).sum(axis=0)
        assert record.train_r2 == pytest.approx((1 - np.square(found - y).sum(axis=0) / spread).mean(), rel=1e-12)
    elif task == "labels":
        assert record.train_label_accuracy == (found == y).mean()
        assert record.train_accuracy == (found == y).all(axis=1).mean()
    else:
        assert record.train_accuracy == (found == y).mean()


@TASKS
def test_the_history_has_a_column_for_each_metric_of_the_task(task: str) -> None:
    history = fit(network(task), data(task), epochs=2, validation=100)
    for name in ("loss", "accuracy", "label_accuracy", "r2", "mae"):
        exists = name == "loss" or name in METRICS[task]
        for part in ("train", "validation"):
            column = history[f"{part}_{name}"]
            assert all(isinstance(value, float) and math.isfinite(value) for value in column) or not exists
            assert exists or column == [None, None]
    line = json.loads(history.records[0].to_json())
    assert {"train_r2", "validation_mae", "train_label_accuracy"}.isdisjoint(line) or task != "classes"
    assert ("train_r2" in line) == (task == "numbers")


def test_every_metric_can_be_watched_and_has_a_name_for_people() -> None:
    assert set(MONITORS) == {f"{part}_{name}" for part in ("train", "validation") for name in HIGHER_IS_BETTER}
    assert set(METRIC_WORDS) == set(HIGHER_IS_BETTER) == {"loss"}.union(*METRICS.values())


@pytest.mark.parametrize(
    ("task", "monitor", "best"),
    [
        ("numbers", "validation_r2", max),
        ("numbers", "validation_mae", min),
        ("numbers", "train_r2", max),
        ("labels", "validation_label_accuracy", max),
        ("labels", "train_accuracy", max),
        ("classes", "validation_accuracy", max),
    ],
)
def test_training_stops_by_any_metric(task: str, monitor: str, best: Callable[[list[float]], float]) -> None:
    """Nothing can be learned from these targets, so that the best epoch is soon behind."""
    stopping = EarlyStopping(monitor, patience=2)
    history = fit(network(task), data(task, slice(0, 300)), epochs=200, validation=0.3, callbacks=stopping)
    found = history.best(monitor)
    assert found.value == best(history[monitor])
    assert len(history) < 200 or monitor.startswith("train")


@pytest.mark.parametrize("loss", [SquaredError(), LogisticCrossEntropy()], ids=repr)
def test_one_output_has_the_metrics_of_one_column(loss: Any) -> None:
    model = MLP([6, 1], loss=loss, dtype="float64", device="cpu")
    if loss.task == "numbers":
        y = TARGETS["numbers"][:40, 0]
        found = model.evaluate(Dataset(X[:40], y))
        assert found.mae == pytest.approx(np.abs(model.predict(X[:40])[:, 0] - y).mean(), rel=1e-12)
    else:
        y = TARGETS["labels"][:40, 0]
        found = model.evaluate(Dataset(X[:40], y))  # two classes
        assert found.accuracy == found.label_accuracy == (model.predict(X[:40])[:, 0] == y).mean()
