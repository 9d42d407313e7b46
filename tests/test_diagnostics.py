"""Statistics of layers, and findings from curves; for findings of training runs see tests/test_findings.py."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Callback, Dataset, Normal, Penalty, Trainer, fit, get_backend
from gpumlp.backends import Backend
from gpumlp.diagnostics import Finding, LayerStatistics, LayerWatch, Setting, find, statistics, trend
from gpumlp.training.history import EpochRecord, History
from tests.diagnostics_helpers import curve, names
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend

SAMPLES_BETWEEN = {name: getattr(statistics, name) for name in ("SAMPLES_BETWEEN", "SAMPLES_BETWEEN_ON_GPU")}


@pytest.fixture(autouse=True)
def a_look_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the statistics after every epoch, regardless of its length."""
    monkeypatch.setattr(statistics, "SAMPLES_BETWEEN", 1)
    monkeypatch.setattr(statistics, "SAMPLES_BETWEEN_ON_GPU", 1)


# -- The statistics -----------------------------------------------------------------------------------------


def expected(model: MLP, before: dict[str, np.ndarray], data: Dataset, rows: int) -> list[dict[str, float]]:
    """The statistics by their definitions, in float64, with analytic gradients."""
    state = {name: tensor.astype(float) for name, tensor in model.state_dict().items()}
    a, outputs = data.images.reshape(len(data), -1) / 255, []
    outputs.append(a)
    for index in range(len(model.layers)):
        s = outputs[-1] @ state[f"layers.{index}.weight"] + state[f"layers.{index}.bias"]
        last = index == len(model.layers) - 1
        outputs.append(s if last else model.activation(s))
    logits = outputs[-1][:rows]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta = p / p.sum(axis=1, keepdims=True)
    delta[np.arange(rows), data.labels[:rows]] -= 1
    delta /= rows
    result = []
    for index in reversed(range(len(model.layers))):
        weight, old = state[f"layers.{index}.weight"], before[f"layers.{index}.weight"].astype(float)
        result.append(
            {
                "gradient_norm": np.linalg.norm(outputs[index][:rows].T @ delta),
                "update_ratio": np.linalg.norm(weight - old) / np.linalg.norm(weight),
                "weight_norm": np.linalg.norm(weight),
            }
        )
        if index:
            a = outputs[index][:rows]
            result[-1] |= {"mean": a.mean(), "deviation": a.std()}  # of the inputs: the outputs of the layer below
            slope = {"relu": a > 0, "tanh": 1 - a * a, "sigmoid": a * (1 - a)}[model.activation.name]
            delta = (delta @ weight.T) * slope
            if model.activation.name == "relu":
                result[-1]["below"] = np.mean(outputs[index].max(axis=0) <= 0)
            else:
                level = np.abs(a if model.activation.name == "tanh" else 2 * a - 1)
                result[-1]["below"] = np.mean(level > 0.99)
    return result[::-1]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_statistics_agree_with_their_definitions(backend: Backend, blobs: Dataset, activation: str) -> None:
    held_out = Dataset(blobs.images[200:], blobs.labels[200:], classes=4)
    start = Dataset(blobs.images[:200], blobs.labels[:200], classes=4)
    model = MLP([20, 16, 12, 4], activation, initializer=Normal(1.0), device=backend)
    before = []
    trainer = Trainer(model, start, optimizer=SGD(0.2, momentum=0.5), batch_size=32, validation=held_out)
    history = trainer.run(2, [lambda trainer: before.append(trainer.model.state_dict())])
    found = history.records[1].layers
    rows = found[0].gradient_samples
    assert rows < found[0].samples == 100
    wanted = expected(model, before[0], held_out, rows)
    for layer, values in zip(found, wanted, strict=True):
        for name in ("gradient_norm", "update_ratio", "weight_norm"):
            assert getattr(layer, name) == pytest.approx(values[name], rel=1e-3), name
    largest = np.abs(held_out.images.reshape(100, -1)[:rows] / 255).max()
    assert found[0].largest_input == pytest.approx(largest, rel=1e-6)
    assert found[1].largest_input is found[2].largest_input is None
    share = "dead" if activation == "relu" else "saturated"
    other = "saturated" if activation == "relu" else "dead"
    for index, layer in enumerate(found[:-1]):
        assert getattr(layer, share) == pytest.approx(wanted[index + 1]["below"], abs=0.02)
        assert getattr(layer, other) is None
        assert layer.mean == pytest.approx(wanted[index + 1]["mean"], rel=1e-4)
        assert layer.deviation == pytest.approx(wanted[index + 1]["deviation"], rel=1e-4)
    assert found[-1].mean is found[-1].deviation is None
    assert found[-1].dead is found[-1].saturated is None
    assert any(wanted[index + 1]["below"] > 0 for index in range(2))


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "silu", "elu", "softplus"])
def test_activations_that_neither_die_nor_saturate_have_no_such_share(activation: str, blobs: Dataset) -> None:
    model = MLP([20, 16, 12, 4], activation, initializer=Normal(3.0), device="cpu")
    trainer = Trainer(model, blobs, optimizer=SGD(0.01), batch_size=32, validation=blobs)
    for layer in trainer.run(2).records[1].layers:
        assert (layer.dead, layer.saturated) == (None, None)
        assert layer.gradient_norm > 0


def test_the_deviation_of_nearly_equal_outputs_is_accurate(blobs: Dataset) -> None:
    model = MLP([20, 16, 4], "sigmoid", initializer=Normal(1e-5), device="cpu")
    trainer = Trainer(model, blobs, optimizer=SGD(1e-9), validation=blobs)
    found = trainer.run(1).records[0].layers[0]
    inputs = blobs.images[: found.gradient_samples].reshape(found.gradient_samples, -1) / 255
    outputs = 1 / (1 + np.exp(-inputs @ model.state_dict()["layers.0.weight"].astype(float)))
    assert found.mean == pytest.approx(0.5, abs=1e-4)
    assert found.deviation == pytest.approx(outputs.std(), rel=0.01)


@pytest.mark.parametrize("validation", [None, 50])
def test_predictions_are_counted_by_class(backend: Backend, blobs: Dataset, validation: int | None) -> None:
    model = MLP([20, 16, 4], device=backend)
    trainer = Trainer(model, blobs, batch_size=32, validation=validation)
    counts = trainer.run(2).classes
    rows = (trainer.batches if validation is None else trainer.validation_batches).rows
    labels, predicted = blobs.labels[rows], model.predict(blobs.images[rows])
    assert counts.kind == ("training" if validation is None else "validation")
    assert counts.samples == tuple(np.bincount(labels, minlength=4))
    assert counts.predicted == tuple(np.bincount(predicted, minlength=4))
    assert counts.correct == tuple(np.bincount(labels[labels == predicted], minlength=4))
    assert counts.names == ("0", "1", "2", "3")


@pytest.mark.parametrize(("validation", "counted"), [(None, 10_000), (11_000, 11_000)])
def test_of_many_samples_some_are_examined(validation: int | None, counted: int) -> None:
    data = Dataset(np.linspace(0, 1, 12_000)[:, None], np.arange(12_000) % 2)
    history = fit(MLP([1, 2], device="cpu"), data, epochs=1, batch_size="full", validation=validation)
    assert (history.records[0].layers[0].samples, sum(history.classes.samples)) == (256, counted)


def test_predictions_are_not_counted_without_diagnostics(blobs: Dataset) -> None:
    assert Trainer(MLP([20, 8, 4], device="cpu"), blobs, diagnostics=False).run(1).classes is None


class Gradients(Callback):
    """Records the gradients that a callback reads after each epoch."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def on_epoch_end(self, trainer: Trainer) -> None:
        backend, parameters = trainer.model.backend, trainer.model.parameters
        self.seen.append(backend.to_numpy(parameters.gradient).tobytes())


@pytest.mark.parametrize(
    ("optimizer", "validation", "keep"),
    [
        (SGD(0.1), None, False),
        (SGD(0.1), 50, True),
        (SGD(0.1, momentum=0.9, nesterov=True), 50, False),
        (Adam(0.01), None, True),
        (Adam(0.01), 50, False),
    ],
)
def test_training_gives_the_same_bits_with_and_without_diagnostics(
    backend: Backend, blobs: Dataset, optimizer: object, validation: int | None, keep: bool
) -> None:
    ends = []
    for diagnostics in (True, False):
        model = MLP([20, 16, 4], device=backend)
        trainer = Trainer(
            model, blobs, optimizer=optimizer, penalty=Penalty(l2=1e-3), batch_size=32, validation=validation,
            diagnostics=diagnostics,
        )  # fmt: skip
        if keep:
            trainer.keep_gradients()
        gradients = Gradients()
        history = trainer.run(3, [gradients])
        assert (history.records[-1].layers is not None) is diagnostics
        buffers = [backend.to_numpy(buffer).tobytes() for buffer in trainer.optimizer_state.buffers.values()]
        weights = [tensor.tobytes() for tensor in model.state_dict().values()]
        curves = [history[name] for name in ("train_loss", "validation_loss", "validation_accuracy")]
        ends.append((weights, buffers, curves, trainer.random_state(), gradients.seen))
    assert ends[0] == ends[1]


def test_a_number_too_large_for_the_dtype_is_none_and_the_line_is_json(blobs: Dataset) -> None:
    backend = StrictBackend()
    model = MLP([20, 8, 4], initializer=Normal(1e17), device=backend)
    trainer = Trainer(model, blobs, batch_size=32)
    values = [math.inf, 1.0, math.inf, 4.0, 4.0, 4.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0, math.inf, 0.0, 1.0, 0.0]
    first, second = LayerWatch(trainer).probe.statistics(values)
    assert (first.gradient_norm, first.update_ratio, first.weight_norm, first.dead) == (None, None, 2.0, 0.25)
    assert (second.gradient_norm, second.update_ratio, second.weight_norm, second.dead) == (1.0, 1.0, 2.0, None)
    assert (first.largest_input, second.largest_input) == (3.0, None)
    assert first.mean is first.deviation is None
    record = EpochRecord(1, 0.5, 0.8, None, None, 0.1, 2.0, 500.0, (first, second))
    assert "Infinity" not in record.to_json()
    assert "NaN" not in record.to_json()


@pytest.mark.parametrize(
    ("samples", "epochs"), [(3000, [1, 2, 3, 4, 5, 6]), (1500, [1, 2, 4, 6]), (1499, [1, 3, 6]), (7, [1, 5])]
)
def test_not_every_short_epoch_is_analysed(
    monkeypatch: pytest.MonkeyPatch, samples: int, epochs: list[int]
) -> None:
    monkeypatch.setattr(statistics, "SAMPLES_BETWEEN", 3000)
    data = Dataset(np.zeros((samples, 3), dtype=np.float32), np.arange(samples) % 2, classes=2)
    history = Trainer(MLP([3, 2, 2]), data, batch_size=1024).run(6)
    assert [record.epoch for record in history if record.layers is not None] == epochs


@pytest.mark.parametrize(
    ("samples", "epochs"),
    [(50_000, [1, 2, 3, 4, 5, 6]), (49_999, [1, 2, 4, 6]), (12_500, [1, 4]), (70, [1, 5])],
)
def test_epochs_of_fewer_than_5000_samples_or_50000_on_a_gpu_are_analysed_more_rarely(
    monkeypatch: pytest.MonkeyPatch, samples: int, epochs: list[int]
) -> None:
    for name, count in SAMPLES_BETWEEN.items():
        monkeypatch.setattr(statistics, name, count)
    for backend, count in ((host_cuda_backend(), samples), (get_backend("cpu"), samples // 10)):
        assert [epoch for epoch in range(1, 7) if statistics.is_due(epoch, count, backend)] == epochs


def test_a_dead_unit_is_found_although_the_last_epoch_was_not_analysed() -> None:
    look = LayerStatistics(1.0, 0.1, 10.0, 0.9, None, 1000, 128)
    records = [EpochRecord(n, 2.2, 0.2, 2.2, 0.2, 0.1, 1.0, 1.0, (look, look)) for n in (1, 2)]
    records.append(dataclasses.replace(records[-1], epoch=3, layers=None))
    found = find(records, Setting(classes=10, hidden=(16, 16)))
    assert [finding.name for finding in found] == ["dead units"]


def test_a_line_without_layers_still_loads() -> None:
    always = [field.name for field in dataclasses.fields(EpochRecord) if field.default is dataclasses.MISSING]
    assert EpochRecord.from_dict(dict.fromkeys(always, 1)).layers is None


def test_a_record_without_statistics_of_inputs_still_loads() -> None:
    layer = dict.fromkeys(("gradient_norm", "update_ratio", "weight_norm", "dead", "saturated"), 0.5)
    record = EpochRecord(1, 0.5, 0.8, None, None, 0.1, 2.0, 500.0)
    line = {**vars(record), "layers": [layer | {"samples": 100, "gradient_samples": 16}]}
    assert EpochRecord.from_dict(line).layers[0].largest_input is None


# -- The rules, on curves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "validation", "name"),
    [
        ([2.0, 1.0, 0.5, 0.3, 0.2, 0.15], None, "converging"),
        ([2.0, 1.0, 0.5, 0.3, 0.2, 0.15], [2.0, 1.1, 0.6, 0.4, 0.35, 0.36], "converging"),
        ([2.0, 1.0, 0.5, 0.2, 0.1, 0.05], [2.0, 0.5, 0.4, 0.7, 0.8, 0.9], "overfitting"),
        ([0.01, 0.001, 0.002, 0.001, 0.002, 0.003], None, "converging"),  # noise at the bottom
        ([2.0, 0.5, 0.4, 0.3, 0.2, 0.1], [2.0, 0.3, 0.2, 0.2, 0.2, 0.9], "converging"),  # a single bad epoch
        ([2.0, 1.0, 0.5, 0.2, 0.1, 0.05], [2.0, 0.5, 0.4, 0.5, 0.5, 0.5], "overfitting"),
        ([2.0, 1.0, 0.5, 0.2, 0.1, 0.05], [2.0, 0.1, 0.05, 0.06, 0.08, 0.1], "converging"),  # less than noise
        ([2.3, 1.9, 1.6, 1.5, 1.4, 1.3], None, "underfitting"),  # still falling
        ([2.3, 2.25, 2.2, 2.2, 2.2, 2.2], None, "underfitting"),  # hardly better than guessing
        ([2.3, 1.9, 1.6, 1.5, 1.5, 1.5], None, "converging"),  # as with noisy labels
        ([2.3, 1.9, 1.6, 1.5, 1.4, 1.3], [1.5, 1.4, 1.6, 1.8, 1.9, 2.0], "overfitting"),  # and far from a fit
        ([1.0, 0.5, 0.9, 0.5, 0.8, 0.4], None, "unstable"),
        ([1.0, 0.5, 0.9, 0.5, 0.8, *[0.3] * 9], None, "converging"),  # it has settled since
        ([1.0, 0.1, 0.05, 0.1, 0.05, 0.1], None, "converging"),  # by less than 0.04 of the loss of guessing
        ([2.3, 9.0, 50.0], None, "diverging"),
        ([90.0, 20.0, 7.0, 1.0, 0.5, 0.3], None, "converging"),  # on its way back
        ([2.3], None, None),
        ([24.8], [0.01], None),  # a bad start, and a good network at the end of the epoch
        ([60.0, 40.0, 20.0], [9.0, 3.0, 0.5], "converging"),
        ([60.0, 40.0, 50.0], [60.0, 50.0, 2.2], "diverging"),
        ([1.7e5, 88.0, 84.9, 87.0, 79.2, 76.9, 76.0], None, "diverging"),  # exploded, and stuck
        ([9e7, 223.0, 222.9, 222.8, 222.7, 222.6], None, "diverging"),  # although it falls in every epoch
        ([500.0, 300.0, 150.0, 70.0, 30.0], None, "underfitting"),  # on its way down from a bad start
    ],
)
def test_the_trend_of_a_curve(losses: list[float], validation: list[float] | None, name: str | None) -> None:
    history = curve(losses, validation)
    assert history.trend() == trend(history.records, Setting(classes=10)) == name
    illness = {"diverging": {"exploding loss"}, "converging": set(), None: set()}.get(name, {name})
    assert names(history) == illness


def test_a_gap_in_accuracy_is_overfitting_too() -> None:
    history = curve([0.5, 0.1, 0.01], [0.9, 0.8, 0.8])
    history.records = [dataclasses.replace(record, validation_accuracy=0.7) for record in history.records]
    assert names(history) == {"overfitting"}


def test_no_epochs_no_findings() -> None:
    assert find([], Setting(classes=10)) == []


def test_without_classes_only_units_are_diagnosed() -> None:
    history = curve([2.0, 9.0, 500.0], [2.0, 9.0, 500.0])
    assert names(history) == {"exploding loss"}
    history.setting = Setting(classes=1, hidden=(16,))
    assert (history.findings(), history.trend()) == ([], None)
    hidden = LayerStatistics(1e6, 0.1, 10.0, 0.9, None, 1000, 128)
    layers = (hidden, dataclasses.replace(hidden, dead=None))
    history.records[-1] = dataclasses.replace(history.records[-1], layers=layers)
    assert names(history) == {"dead units"}


def test_a_history_without_a_setting_has_no_findings() -> None:
    with pytest.raises(ValueError, match="need the history of a Trainer or of fit"):
        History().findings()
    with pytest.raises(ValueError, match="need the history of a Trainer or of fit"):
        History().trend()


def test_a_finding_is_a_whole_sentence_about_a_layer() -> None:
    healthy = LayerStatistics(1.0, 0.1, 10.0, 0.0, None, 1000, 256)
    history = curve([2.0, 1.0, 0.5], [2.0, 1.0, 0.6])
    layers = (healthy, dataclasses.replace(healthy, dead=0.61), dataclasses.replace(healthy, dead=None))
    history.records[-1] = dataclasses.replace(history.records[-1], layers=layers)
    history.setting = Setting(classes=10, hidden=(128, 64))
    assert history.findings() == [
        Finding(
            "dead units",
            "layer 2: 61 % of units are dead (output 0 for all 1,000 validation samples): lower learning_rate "
            "(now 0.1) or use leaky_relu",
            2,
        )
    ]
