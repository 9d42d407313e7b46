"""Training with deliberate problems: exactly the right finding is reported."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, DivergenceError, History, Normal, fit
from gpumlp.diagnostics import Finding, LayerStatistics
from tests.diagnostics_helpers import DIGITS, curve, names, train


def last_look(history: History) -> tuple[LayerStatistics, ...]:
    """The last epoch with statistics: the digits' epochs are short, and not all have them."""
    return [record.layers for record in history if record.layers][-1]


# -- Deliberate problems -------------------------------------------------------------------------------------


def test_dead_units() -> None:
    history = train([64, 64], optimizer=SGD(1.0, momentum=0.9))
    first, second, _ = last_look(history)
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
    look = last_look(history)
    assert look[1].dead >= 20 / 32
    message = history.findings()[0].message
    assert f"all {look[1].samples} training samples" in message
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
def test_inputs_that_are_not_scaled(
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


def test_fitting_random_labels_is_overfitting() -> None:
    """The training loss stays above half of that of guessing."""
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(2400, 8)).astype(np.float32), rng.integers(0, 3, 2400))
    history = train([64], data=data, optimizer=SGD(0.1, momentum=0.9), epochs=60)
    assert history["train_loss"][-1] > 0.7 * np.log(3)
    assert (names(history), history.trend()) == ({"overfitting"}, "overfitting")


@pytest.mark.parametrize(
    ("hidden", "options", "advice"),
    [
        ([64], {"optimizer": SGD(1e-5)}, "raise learning_rate (now 1e-05)"),
        ([64], {"optimizer": SGD(0.001), "batch_size": 128, "epochs": 6}, "raise learning_rate (now 0.001)"),
        ([64], {"optimizer": SGD(0.01), "batch_size": 64, "epochs": 5}, "train for more epochs"),
        ([1], {"optimizer": SGD(0.03, momentum=0.9)}, "use more hidden units (now 1)"),
        ([2], {"optimizer": SGD(0.03, momentum=0.9), "epochs": 30}, "use more hidden units (now 2)"),
        ([64], {"optimizer": SGD(0.1, momentum=0.9), "l2": 0.1, "epochs": 20}, "lower l2 (now 0.1)"),
        ([64], {"optimizer": SGD(0.1, momentum=0.9), "l2": 0.3}, "lower l2 (now 0.3)"),
        ([64, 64], {"optimizer": SGD(1.4)}, "lower learning_rate (now 1.4)"),
    ],
)
def test_underfitting(hidden: list[int], options: dict[str, object], advice: str) -> None:
    history = train(hidden, "leaky_relu", **options)
    assert names(history) == {"underfitting"}
    assert history.trend() == "underfitting"
    assert advice in history.findings()[0].message


def test_a_network_that_only_knows_which_class_is_frequent_is_underfitting() -> None:
    data = Dataset(DIGITS.images, (DIGITS.labels == 5).astype(int))
    history = train([32], data=data, optimizer=SGD(0.001), epochs=20)
    assert history["train_loss"][-1] < 0.5 * np.log(2)  # which is no more than that
    assert (names(history), history.trend()) == ({"underfitting"}, "underfitting")
    assert f"guessing has {data.label_entropy:.3g}" in history.findings()[0].message
    assert "raise learning_rate (now 0.001)" in history.findings()[0].message


def test_a_narrow_network_that_still_learns_should_train_longer() -> None:
    options = {"activation": "tanh", "optimizer": Adam(0.002)}
    early = train([8, 8], epochs=5, **options)
    assert "still falling" in early.findings()[0].message
    assert "train for more epochs, or use more hidden units (now 8 8)" in early.findings()[0].message
    assert train([8, 8], epochs=40, **options).findings() == []


def test_a_deep_network_of_sigmoids_is_not_reported_as_too_small() -> None:
    history = train([64] * 4, "sigmoid", optimizer=SGD(0.1, momentum=0.9), epochs=60)
    assert (names(history), history.trend()) == ({"underfitting"}, "underfitting")
    assert "4 hidden layers of sigmoid: use relu or fewer layers" in history.findings()[0].message
    assert "hidden units" not in history.findings()[0].message


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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_learning_rate_that_keeps_the_loss_from_settling(seed: int) -> None:
    history = train([64], "leaky_relu", optimizer=Adam(0.3), epochs=30, seed=seed)
    assert (names(history), history.trend()) == ({"unstable"}, "unstable")
    assert "of the last 10 epochs" in history.findings()[0].message
    assert "lower learning_rate (now 0.3), or let it fall (schedule step)" in history.findings()[0].message


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
    assert "Try a learning_rate of 0.1 or less" in diverge(optimizer=SGD(100.0)).message


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
