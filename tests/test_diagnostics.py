"""Statistics of layers, and findings: each illness made on purpose, and trainings that do well left in peace."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    Callback,
    Dataset,
    DivergenceError,
    Normal,
    Penalty,
    Trainer,
    fit,
    load_digits,
    load_mnist,
)  # fmt: skip
from gpumlp.backends import Backend
from gpumlp.data import DataError
from gpumlp.diagnostics import Finding, LayerStatistics, Setting, find, trend
from gpumlp.training.history import EpochRecord, History
from tests.strict_device import StrictBackend

DIGITS = load_digits()[0]
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid"]


def names(history: History) -> set[str]:
    return {finding.name for finding in history.findings()}


def train(hidden: list[int], activation: str = "relu", data: Dataset = DIGITS, **options: object) -> History:
    initializer = options.pop("initializer", "auto")
    model = MLP([data.features, *hidden, data.classes], activation, initializer=initializer, device="cpu")
    return fit(model, data, **{"epochs": 10, "batch_size": 32, "validation": 179, **options})


# -- The statistics -----------------------------------------------------------------------------------------


def expected(model: MLP, before: dict[str, np.ndarray], data: Dataset, rows: int) -> list[dict[str, float]]:
    """The statistics from their definitions, in float64 and with central differences' exact counterpart."""
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
                "largest_input": np.abs(outputs[index][:rows]).max(),
            }
        )
        if index:
            a = outputs[index][:rows]
            slope = {"relu": a > 0, "tanh": 1 - a * a, "sigmoid": a * (1 - a)}[model.activation.name]
            delta = (delta @ weight.T) * slope
            if model.activation.name == "relu":
                result[-1]["below"] = np.mean(outputs[index].max(axis=0) <= 0)
            else:
                level = np.abs(a if model.activation.name == "tanh" else 2 * a - 1)
                result[-1]["below"] = np.mean(level > 0.99)
    return result[::-1]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_statistics_are_what_they_say(backend: Backend, blobs: Dataset, activation: str) -> None:
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
        for name in ("gradient_norm", "update_ratio", "weight_norm", "largest_input"):
            assert getattr(layer, name) == pytest.approx(values[name], rel=1e-3), name
    share = "dead" if activation == "relu" else "saturated"
    other = "saturated" if activation == "relu" else "dead"
    for index, layer in enumerate(found[:-1]):
        assert getattr(layer, share) == pytest.approx(wanted[index + 1]["below"], abs=0.02)
        assert getattr(layer, other) is None
    assert found[-1].dead is found[-1].saturated is None
    assert any(wanted[index + 1]["below"] > 0 for index in range(2))


class Gradients(Callback):
    """What a callback sees of the gradients after each epoch."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def on_epoch_end(self, trainer: Trainer) -> None:
        backend, parameters = trainer.model.backend, trainer.model.parameters
        self.seen.append(backend.to_numpy(parameters.gradient).tobytes())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("validation", [None, 50])
@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, momentum=0.9, nesterov=True), Adam(0.01)])
def test_a_training_ends_with_the_same_bits_with_diagnostics_and_without(
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
    values = [math.inf, 1.0, math.inf, 4.0, 4.0, 4.0, 2.0, 0.0, 0.0, 0.0, 3.0, math.inf]  # squares, counts, sizes
    first, second = trainer._watcher._probe.statistics(values)
    assert (first.gradient_norm, first.update_ratio, first.weight_norm, first.dead) == (None, None, 2.0, 0.25)
    assert (second.gradient_norm, second.update_ratio, second.weight_norm, second.dead) == (1.0, 1.0, 2.0, None)
    assert (first.largest_input, second.largest_input) == (3.0, None)
    record = EpochRecord(1, 0.5, 0.8, None, None, 0.1, 2.0, 500.0, (first, second))
    assert "Infinity" not in record.to_json()
    assert "NaN" not in record.to_json()


def test_a_line_without_layers_still_loads() -> None:
    fields = dataclasses.fields(EpochRecord)
    assert (fields[-1].name, fields[-1].default) == ("layers", None)
    values = dict.fromkeys((field.name for field in fields[:-1]), 1)
    assert EpochRecord.from_dict(values).layers is None


def test_a_layer_of_before_its_inputs_were_looked_at_still_loads() -> None:
    layer = dict.fromkeys(("gradient_norm", "update_ratio", "weight_norm", "dead", "saturated"), 0.5)
    record = EpochRecord(1, 0.5, 0.8, None, None, 0.1, 2.0, 500.0)
    line = {**vars(record), "layers": [layer | {"samples": 100, "gradient_samples": 16}]}
    assert EpochRecord.from_dict(line).layers[0].largest_input is None


# -- Illnesses, made on purpose ------------------------------------------------------------------------------


def test_dead_units() -> None:
    history = train([64, 64], optimizer=SGD(1.0, momentum=0.9))
    first, second, _ = history.records[-1].layers
    (finding,) = history.findings()  # one for both layers
    assert (finding.name, finding.layer) == ("dead units", 1)
    assert finding.message == (
        f"layers 1 and 2: {100 * first.dead:.0f} % and {100 * second.dead:.0f} % of units are dead (output 0 for "
        "all 179 validation samples): lower learning_rate (now 1.0) or use leaky_relu"
    )


def test_units_that_are_born_dead_are_found_in_their_layer() -> None:
    model = MLP([64, 32, 32, 10], device="cpu")
    state = model.state_dict()
    state["layers.1.bias"][:20] = -100
    model.load_state_dict(state)
    history = fit(model, DIGITS, epochs=3, batch_size=32)
    assert [(finding.name, finding.layer) for finding in history.findings()] == [("dead units", 2)]
    assert history.records[-1].layers[1].dead >= 20 / 32
    message = history.findings()[0].message
    assert f"all {history.records[-1].layers[1].samples} training samples" in message
    assert "they were so after the first epoch already, draw other weights" in message
    assert "learning_rate" not in message


@pytest.mark.parametrize(("activation", "scale"), [("tanh", 3), ("sigmoid", 10)])
def test_saturated_units(activation: str, scale: float) -> None:
    history = train([64, 64], activation, initializer=Normal(scale), optimizer=SGD(0.01, momentum=0.9))
    assert names(history) == {"saturated units"}
    assert "start from smaller weights (initializer glorot)" in history.findings()[0].message


def test_units_saturated_by_large_steps_are_not_blamed_on_the_start() -> None:
    history = train([128], "tanh", optimizer=SGD(0.5, momentum=0.9))
    assert names(history) == {"saturated units"}
    assert "the steps are too large, lower learning_rate (now 0.5)" in history.findings()[0].message


def test_units_that_steps_saturate_are_named_beside_the_loss_that_explodes() -> None:
    history = train([64], "tanh", optimizer=SGD(5.0))
    assert [(finding.name, finding.layer) for finding in history.findings()] == [
        ("saturated units", 1),
        ("exploding loss", None),
    ]
    for finding in history.findings():
        assert "the steps are too large, lower learning_rate (now 5.0)" in finding.message


@pytest.mark.parametrize(("activation", "scale"), [("sigmoid", None), ("tanh", 0.05), ("relu", 0.05)])
def test_vanishing_gradients(activation: str, scale: float | None) -> None:
    start = {} if scale is None else {"initializer": Normal(scale)}
    history = train([32] * 6, activation, optimizer=SGD(0.1, momentum=0.9), **start)
    assert [(finding.name, finding.layer) for finding in history.findings()] == [("vanishing gradients", 1)]
    advice = "initializer glorot" if activation == "tanh" else "initializer he"
    assert advice in history.findings()[0].message


@pytest.mark.parametrize(("depth", "deviation"), [(5, 0.01), (3, 0.01), (2, 0.001)])
def test_weights_too_small_to_learn_from_are_not_taken_for_units_that_died(depth: int, deviation: float) -> None:
    history = train([64] * depth, initializer=Normal(deviation), optimizer=SGD(0.1, momentum=0.9))
    (finding,) = history.findings()
    assert (finding.name, finding.layer) == ("vanishing gradients", 1)
    assert f"none of the {depth} hidden layers gives on more than" in finding.message
    assert "the initial weights are too small, use initializer he" in finding.message
    assert "learning_rate" not in finding.message


@pytest.mark.parametrize(
    ("hidden", "activation", "size", "optimizer", "name"),
    [
        ([64], "relu", 1000, SGD(0.01), "dead units"),
        ([64], "relu", 1000, Adam(), "exploding gradients"),
        ([64], "tanh", 100, SGD(0.01), "saturated units"),
        ([], "relu", 1000, SGD(1.0), "exploding loss"),
    ],
)
def test_inputs_that_nobody_scaled(
    hidden: list[int], activation: str, size: int, optimizer: object, name: str
) -> None:
    data = Dataset((DIGITS.images * float(size)).astype(np.float32), DIGITS.labels)
    (finding,) = train(hidden, activation, data, optimizer=optimizer).findings()
    assert finding.name == name
    assert finding.message.endswith(f": the inputs are up to {size:,} in absolute value, scale them to about 1")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_exploding_gradients(activation: str) -> None:
    history = train([64] * 3, activation, initializer=Normal(5), optimizer=SGD(1e-5))
    assert names(history) == {"exploding gradients"}
    assert "initializer he" in history.findings()[0].message


def test_a_loss_that_explodes_and_stays_finite() -> None:
    history = train([], optimizer=SGD(500.0, momentum=0.9))
    assert names(history) == {"exploding loss"}
    assert history.trend() == "diverging"
    assert "lower learning_rate (now 500.0) or momentum (now 0.9)" in history.findings()[0].message


def test_a_loss_that_explodes_when_the_learning_rate_is_raised() -> None:
    def raised(rate: float, epoch: int) -> float:
        return rate if epoch < 5 else 300 * rate

    history = train([64], "leaky_relu", optimizer=SGD(0.02), schedule=raised)
    (finding,) = history.findings()
    assert finding.name == "exploding loss"
    assert "the steps are too large, lower learning_rate (now 6.0, 0.02 at first)" in finding.message
    assert "initializer" not in finding.message


def test_overfitting() -> None:
    few = Dataset(DIGITS.images[:60], DIGITS.labels[:60], classes=10)
    others = Dataset(DIGITS.images[1000:1600], DIGITS.labels[1000:1600], classes=10)
    history = train([128], data=few, validation=others, optimizer=Adam(0.01), epochs=40)
    assert names(history) == {"overfitting"}
    assert history.trend() == "overfitting"
    assert "100 % in training" in history.findings()[0].message


@pytest.mark.parametrize(
    ("hidden", "options", "advice"),
    [
        ([64], {"optimizer": SGD(1e-5)}, "raise learning_rate (now 1e-05)"),
        ([64], {"optimizer": SGD(0.001), "batch_size": 128, "epochs": 6}, "raise learning_rate (now 0.001)"),
        ([64], {"optimizer": SGD(0.01), "batch_size": 64, "epochs": 5}, "train for more epochs"),
        ([1], {"optimizer": SGD(0.03, momentum=0.9)}, "use more hidden units (now 1)"),
        ([64], {"optimizer": SGD(0.1, momentum=0.9), "l2": 0.3}, "lower l2 (now 0.3)"),
        ([64, 64], {"optimizer": SGD(1.4)}, "lower learning_rate (now 1.4)"),
    ],
)
def test_underfitting(hidden: list[int], options: dict[str, object], advice: str) -> None:
    history = train(hidden, "leaky_relu", **options)
    assert names(history) == {"underfitting"}
    assert history.trend() == "underfitting"
    assert advice in history.findings()[0].message


@pytest.mark.parametrize(
    ("hidden", "optimizer", "factor", "advice"),
    [
        ([64], SGD(0.05, momentum=0.9), 20, "lower learning_rate (now 0.05) or momentum (now 0.9)"),
        ([], SGD(0.1, momentum=0.9), 40, "lower learning_rate (now 0.1) or momentum (now 0.9)"),
        ([64], Adam(0.003), 40, "lower learning_rate (now 0.003)"),
    ],
    ids=["momentum", "softmax regression", "adam"],
)
def test_unstable(hidden: list[int], optimizer: object, factor: float, advice: str) -> None:
    def far_too_large_now_and_then(rate: float, epoch: int) -> float:
        return rate * factor if epoch % 3 == 2 else rate

    history = train(hidden, "leaky_relu", optimizer=optimizer, schedule=far_too_large_now_and_then)
    assert names(history) == {"unstable"}
    assert history.trend() == "unstable"
    assert advice in history.findings()[0].message


def test_without_statistics_a_loss_that_has_grown_is_not_blamed_on_the_start() -> None:
    (finding,) = curve([2.0, 40.0, 4000.0]).findings()
    assert "the steps are too large, lower learning_rate (now 0.1)" in finding.message
    (finding,) = curve([3000.0, 5000.0, 4000.0]).findings()
    assert "start from smaller weights (initializer he), or lower learning_rate (now 0.1)" in finding.message


def test_a_learning_rate_that_keeps_the_loss_from_settling() -> None:
    history = train([64], "leaky_relu", optimizer=Adam(0.1), epochs=50, validation=143)
    assert (names(history), history.trend()) == ({"unstable"}, "unstable")
    assert "of the last 10 epochs" in history.findings()[0].message
    assert "lower learning_rate (now 0.1), or let it fall (schedule step)" in history.findings()[0].message


# -- Divergence: the advice follows the evidence ----------------------------------------------------------------


def diverge(data: Dataset = DIGITS, initializer: object = "auto", **options: object) -> Finding:
    model = MLP([64, 32, 32, 10], "leaky_relu", initializer=initializer, device="cpu")
    with pytest.raises(DivergenceError) as error:
        fit(model, data, **{"epochs": 3, "batch_size": 32, **options})
    finding = error.value.finding
    assert str(error.value) == finding.message
    assert finding.name == "diverged"
    return finding


def test_large_steps_diverge() -> None:
    assert "Try a learning_rate of 10 or less" in diverge(optimizer=SGD(100.0)).message


def test_large_weights_diverge() -> None:
    message = diverge(initializer=Normal(50.0), optimizer=SGD(0.01, momentum=0.9)).message
    assert "the initial weights are too large; try initializer he" in message
    assert "Try a learning_rate" not in message


def test_large_inputs_diverge() -> None:
    data = Dataset(DIGITS.images.astype(np.float32) * 100, DIGITS.labels)
    assert "scale them to about 1" in diverge(data, optimizer=SGD(0.1)).message


def test_a_large_penalty_diverges() -> None:
    message = diverge(optimizer=SGD(0.1), l2=50.0, epochs=30).message
    assert "try an l2 of 0.1 or less" in message


# -- Health ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), SGD(0.1), Adam()], ids=["momentum", "sgd", "adam"])
@pytest.mark.parametrize("validation", [None, 179])
def test_trainings_on_the_digits_that_do_well_are_left_in_peace(
    activation: str, optimizer: object, validation: int | None
) -> None:
    history = train([128], activation, optimizer=optimizer, epochs=20, validation=validation)
    assert history["train_accuracy"][-1] > 0.9
    assert (history.findings(), history.trend()) == ([], "converging")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_so_are_deep_ones(activation: str) -> None:
    hidden = [64] * 3 if activation == "sigmoid" else [32] * 6
    rate = 0.1 if activation == "sigmoid" else 0.01
    history = train(hidden, activation, optimizer=SGD(rate, momentum=0.9), epochs=30)
    assert (history.findings(), history.trend()) == ([], "converging")


@pytest.mark.parametrize(
    ("hidden", "activation", "optimizer", "validation"),
    [
        ([128], "relu", SGD(0.1, momentum=0.9), 5000),
        ([128], "tanh", Adam(), None),
        ([128], "sigmoid", SGD(0.1, momentum=0.9), None),
        ([], "relu", SGD(0.1, momentum=0.9), 5000),
    ],
    ids=["default", "adam, tanh", "sigmoid", "softmax regression"],
)
def test_trainings_on_mnist_that_do_well_are_left_in_peace(
    hidden: list[int], activation: str, optimizer: object, validation: int | None
) -> None:
    try:
        data = load_mnist(download=False)[0]
    except DataError as error:
        pytest.skip(str(error))
    history = train(hidden, activation, data, optimizer=optimizer, epochs=3, validation=validation, batch_size=128)
    assert (history.findings(), history.trend()) == ([], "converging")


# -- The rules, on curves -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("losses", "validation", "name"),
    [
        ([2.0, 1.0, 0.5, 0.3, 0.2, 0.15], None, "converging"),
        ([2.0, 1.0, 0.5, 0.3, 0.2, 0.15], [2.0, 1.1, 0.6, 0.4, 0.35, 0.36], "converging"),
        ([2.0, 1.0, 0.5, 0.2, 0.1, 0.05], [2.0, 0.5, 0.4, 0.7, 0.8, 0.9], "overfitting"),
        ([0.01, 0.001, 0.002, 0.001, 0.002, 0.003], None, "converging"),  # noise at the bottom
        ([2.0, 0.5, 0.4, 0.3, 0.2, 0.1], [2.0, 0.3, 0.2, 0.2, 0.2, 0.9], "converging"),  # a single bad epoch
        ([2.3, 1.9, 1.6, 1.5, 1.5, 1.5], None, "underfitting"),
        ([1.0, 0.5, 0.9, 0.5, 0.8, 0.4], None, "unstable"),
        ([1.0, 0.5, 0.9, 0.5, 0.8, *[0.3] * 9], None, "converging"),  # it has settled since
        ([1.0, 0.1, 0.05, 0.1, 0.05, 0.1], None, "converging"),  # by less than 0.04 of the loss of guessing
        ([2.3, 9.0, 50.0], None, "diverging"),
        ([90.0, 20.0, 7.0, 1.0, 0.5, 0.3], None, "converging"),  # on its way back
        ([2.3], None, None),
    ],
)
def test_the_trend_of_a_curve(losses: list[float], validation: list[float] | None, name: str | None) -> None:
    history = curve(losses, validation)
    assert history.trend() == trend(history.records, 10) == name
    illness = {"diverging": {"exploding loss"}, "converging": set(), None: set()}.get(name, {name})
    assert names(history) == illness


def test_a_gap_in_accuracy_is_overfitting_too() -> None:
    history = curve([0.5, 0.1, 0.01], [0.9, 0.8, 0.8])
    history.records = [dataclasses.replace(record, validation_accuracy=0.7) for record in history.records]
    assert names(history) == {"overfitting"}


def test_no_epochs_no_findings() -> None:
    assert find([], Setting(classes=10)) == []


def test_where_nothing_is_classified_only_units_are_judged() -> None:
    history = curve([2.0, 9.0, 500.0], [2.0, 9.0, 500.0])
    assert names(history) == {"exploding loss"}
    history.setting = Setting(classes=1)
    assert (history.findings(), history.trend()) == ([], None)
    hidden = LayerStatistics(1e6, 0.1, 10.0, 0.9, None, 1000, 128)
    layers = (hidden, dataclasses.replace(hidden, dead=None))
    history.records[-1] = dataclasses.replace(history.records[-1], layers=layers)
    assert names(history) == {"dead units"}


def test_a_history_of_nobodys_training_says_so() -> None:
    with pytest.raises(ValueError, match="history of a training"):
        History().findings()
    with pytest.raises(ValueError, match="history of a training"):
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
