"""Training with deliberate problems: exactly the right finding is reported."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    Dataset,
    DivergenceError,
    EarlyStopping,
    History,
    Normal,
    OneCycle,
    SoftmaxCrossEntropy,
    fit,
)
from gpumlp.diagnostics import Finding, LayerStatistics, Setting, find
from gpumlp.training.history import ClassCounts
from tests.diagnostics_helpers import DIGITS, curve, found, names, train


def last_look(history: History) -> tuple[LayerStatistics, ...]:
    """The last epoch with statistics: the digits' epochs are short, and not all have them."""
    return [record.layers for record in history if record.layers][-1]


# -- Deliberate problems -------------------------------------------------------------------------------------


def test_dead_units() -> None:
    history = train([64, 64], optimizer=SGD(1.0, momentum=0.9))
    first, second, _ = last_look(history)
    (finding,) = found(history)  # one for both layers
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
    assert [(finding.name, finding.layer) for finding in found(history)] == [("dead units", 2)]
    look = last_look(history)
    assert look[1].dead >= 20 / 32
    message = found(history)[0].message
    assert f"all {look[1].samples} training samples" in message
    assert "they were so after the first epoch already, draw other weights" in message
    assert "learning_rate" not in message


@pytest.mark.parametrize(("activation", "scale"), [("tanh", 3), ("sigmoid", 10)])
def test_saturated_units(activation: str, scale: float) -> None:
    history = train([64, 64], activation, initializer=Normal(scale), optimizer=SGD(0.01, momentum=0.9))
    assert names(history) == {"saturated units"}
    assert "start from smaller weights (initializer glorot)" in found(history)[0].message


def test_units_saturated_by_large_steps_are_not_blamed_on_the_start() -> None:
    history = train([128], "tanh", optimizer=SGD(0.5, momentum=0.9))
    assert names(history) == {"saturated units"}
    assert "the steps are too large, lower learning_rate (now 0.5)" in found(history)[0].message


def test_units_that_steps_saturate_are_named_beside_the_loss_that_explodes() -> None:
    history = train([64], "tanh", optimizer=SGD(5.0))
    assert [(finding.name, finding.layer) for finding in found(history)] == [
        ("exploding loss", None),
        ("saturated units", 1),
    ]
    for finding in found(history):
        assert "the steps are too large, lower learning_rate (now 5.0)" in finding.message


@pytest.mark.parametrize(
    ("activation", "scale"), [("sigmoid", None), ("tanh", 0.05), ("relu", 0.05), ("silu", 0.05)]
)
def test_vanishing_gradients(activation: str, scale: float | None) -> None:
    start = {} if scale is None else {"initializer": Normal(scale)}
    history = train([32] * 6, activation, optimizer=SGD(0.1, momentum=0.9), **start)
    assert [(finding.name, finding.layer) for finding in found(history)] == [("vanishing gradients", 1)]
    advice = "initializer glorot" if activation == "tanh" else "initializer he"
    assert advice in found(history)[0].message


@pytest.mark.parametrize(("depth", "deviation"), [(5, 0.01), (3, 0.01), (2, 0.001)])
def test_weights_too_small_to_learn_from_are_not_taken_for_units_that_died(depth: int, deviation: float) -> None:
    history = train([64] * depth, initializer=Normal(deviation), optimizer=SGD(0.1, momentum=0.9))
    (finding,) = found(history)
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
    (finding,) = found(train(hidden, activation, data, optimizer=optimizer))
    assert finding.name == name
    assert finding.message.endswith(f": the inputs are up to {size:,} in absolute value, scale them to about 1")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_exploding_gradients(activation: str) -> None:
    history = train([64] * 3, activation, initializer=Normal(5), optimizer=SGD(1e-5))
    assert names(history) == {"exploding gradients"}
    assert "initializer he" in found(history)[0].message


def test_a_loss_that_explodes_and_stays_finite() -> None:
    history = train([], optimizer=SGD(500.0, momentum=0.9))
    assert names(history) == {"exploding loss"}
    assert history.trend() == "diverging"
    assert "lower learning_rate (now 500.0) or momentum (now 0.9)" in found(history)[0].message


def test_a_loss_that_explodes_when_the_learning_rate_is_raised() -> None:
    def raised(rate: float, epoch: int) -> float:
        return rate if epoch < 5 else 300 * rate

    history = train([64], "leaky_relu", optimizer=SGD(0.02), schedule=raised)
    (finding,) = found(history)
    assert finding.name == "exploding loss"
    assert "the steps are too large, lower learning_rate (now 6.0, 0.02 at first)" in finding.message
    assert "initializer" not in finding.message


def test_overfitting() -> None:
    few = Dataset(DIGITS.images[:60], DIGITS.labels[:60], classes=10)
    others = Dataset(DIGITS.images[1000:1600], DIGITS.labels[1000:1600], classes=10)
    history = train([128], data=few, validation=others, optimizer=Adam(0.01), epochs=40)
    assert names(history) == {"overfitting"}
    assert history.trend() == "overfitting"
    assert "100 % in training" in found(history)[0].message


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
    assert advice in found(history)[0].message


def test_a_network_that_only_knows_which_class_is_frequent_is_underfitting() -> None:
    data = Dataset(DIGITS.images, (DIGITS.labels == 5).astype(int))
    history = train([32], data=data, optimizer=SGD(0.001), epochs=20)
    assert history["train_loss"][-1] < 0.5 * np.log(2)  # which is no more than that
    assert (names(history), history.trend()) == ({"underfitting"}, "underfitting")
    assert history.setting.guessing == pytest.approx(data.label_entropy, rel=0.05)  # of the samples to train on
    assert f"guessing has {history.setting.guessing:.3g}" in found(history)[0].message
    assert "raise learning_rate (now 0.001)" in found(history)[0].message


def test_a_narrow_network_that_still_learns_should_train_longer() -> None:
    options = {"activation": "tanh", "optimizer": Adam(0.002)}
    early = train([8, 8], epochs=5, **options)
    assert "still falling" in found(early)[0].message
    assert "train for more epochs, or use more hidden units (now 8 8)" in found(early)[0].message
    assert found(train([8, 8], epochs=40, **options)) == []


def test_a_deep_network_of_sigmoids_is_not_reported_as_too_small() -> None:
    history = train([64] * 4, "sigmoid", optimizer=SGD(0.1, momentum=0.9), epochs=60)
    assert (names(history), history.trend()) == ({"underfitting"}, "underfitting")
    assert "4 hidden layers of sigmoid: use relu or fewer layers" in found(history)[0].message
    assert "hidden units" not in found(history)[0].message


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
    assert advice in found(history)[0].message


def test_without_statistics_a_loss_that_has_grown_is_not_blamed_on_the_start() -> None:
    (finding,) = found(curve([2.0, 40.0, 4000.0]))
    assert "the steps are too large, lower learning_rate (now 0.1)" in finding.message
    (finding,) = found(curve([3000.0, 5000.0, 4000.0]))
    assert "start from smaller weights (initializer he), or lower learning_rate (now 0.1)" in finding.message


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_learning_rate_that_keeps_the_loss_from_settling(seed: int) -> None:
    history = train([64], "leaky_relu", optimizer=Adam(0.3), epochs=30, seed=seed)
    assert (names(history), history.trend()) == ({"unstable"}, "unstable")
    assert "of the last 10 epochs" in found(history)[0].message
    assert "lower learning_rate (now 0.3), or let it fall (schedule step)" in found(history)[0].message


@pytest.mark.parametrize("rate", [1, 5, 50, 500])
@pytest.mark.parametrize("optimizer", [SGD, partial(SGD, momentum=0.9), Adam], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_a_learning_rate_that_is_far_too_high_never_passes_in_silence(
    activation: str, optimizer: Any, rate: float
) -> None:
    try:
        history = train([64], activation, optimizer=optimizer(rate), epochs=8)
    except DivergenceError:
        return
    if history["train_loss"][-1] > 3 * np.log(10):
        assert (history.trend(), found(history)[0].name) == ("diverging", "exploding loss")
    elif history["train_accuracy"][-1] < 0.5:
        assert found(history)


# -- Classes: what is never predicted, and what only guesses ------------------------------------------------------


def with_rare_class(samples: int, names: tuple[str, str] | None = None, size: float = 1.0) -> tuple[Dataset, MLP]:
    """Three samples of a hundred are of a class that overlaps with the other."""
    rng = np.random.default_rng(0)
    labels = (rng.random(samples) < 0.03).astype(int)
    images = rng.normal(size=(samples, 20)).astype(np.float32)
    images[:, 0] += 1.2 * size * labels
    images[:, 1] -= size * labels
    model = MLP([20, 16, 2], device="cpu")
    model.class_names = names
    return Dataset(images, labels), model


RARE = {"optimizer": Adam(), "l2": 1e-3, "epochs": 15}


@pytest.mark.parametrize(("validation", "kind"), [(500, "of the 500 validation"), (None, "of the 5,000 training")])
def test_a_class_that_is_hardly_ever_predicted(validation: int | None, kind: str) -> None:
    data, model = with_rare_class(5000)
    (finding,) = fit(model, data, validation=validation, **RARE).findings()
    assert finding.name == "classes not predicted"
    assert re.search(f"^class 1 is (hardly ever|never) predicted.*{kind} samples", finding.message)
    assert "is no better than that of always answering class 0 (9" in finding.message
    assert "or weight them (class_weight balanced)" in finding.message


def test_classes_are_called_by_their_names() -> None:
    data, model = with_rare_class(5000, ("well", "ill"))
    (finding,) = fit(model, data, **RARE).findings()
    assert finding.message.startswith("class ill is hardly ever predicted")
    assert "always answering class well" in finding.message


def test_names_of_several_lines_are_shown_in_one() -> None:
    data, model = with_rare_class(5000, ("a\nwell", "b\nill"))
    (finding,) = fit(model, data, **RARE).findings()
    assert finding.message.startswith(r"class b\nill is hardly ever predicted")
    assert r"always answering class a\nwell (9" in finding.message
    assert "\n" not in finding.message


@pytest.mark.parametrize(("samples", "dead", "sick"), [(4, 0.6, False), (16, 0.6, True), (4, 1.0, True)])
def test_units_that_are_0_for_a_few_samples_are_not_called_dead(samples: int, dead: float, sick: bool) -> None:
    hidden = LayerStatistics(0.1, 0.1, 10.0, dead, None, samples, samples)
    layers = (hidden, dataclasses.replace(hidden, dead=None))
    records = [dataclasses.replace(record, layers=layers) for record in curve([0.5, 0.2]).records]
    kinds = [finding.name for finding in find(records, Setting(classes=10, hidden=(16,)))]
    assert kinds == ["dead units"] * sick


def test_a_rare_class_that_is_recognised_gives_no_finding() -> None:
    data, model = with_rare_class(5000, size=4)
    assert fit(model, data, validation=500, **RARE).findings() == []


def test_a_handful_of_samples_of_a_class_gives_no_finding() -> None:
    data, model = with_rare_class(5000)
    history = fit(model, data, validation=60, **RARE)
    assert 0 < history.classes.samples[1] < 5
    assert history.classes.predicted[1] == 0
    assert history.findings() == []


def counts(samples: list[int], predicted: list[int], correct: list[int]) -> ClassCounts:
    names = tuple(map(str, range(len(samples))))
    return ClassCounts("validation", tuple(samples), tuple(predicted), tuple(correct), names)


@pytest.mark.parametrize(
    ("found_in", "text"),
    [
        (
            counts([50] * 3, [150, 0, 0], [50, 0, 0]),
            "classes 1 and 2 are never predicted, although 100 of the 150 ",
        ),
        (
            counts([50] * 7, [350, *[0] * 6], [50, *[0] * 6]),
            "class 0 is predicted for all 350 validation samples; ",
        ),
        (counts([50, 50, 50], [80, 70, 0], [50, 45, 0]), "class 2 is never predicted, although 50 of the 150 "),
        (counts([60, 45, 45], [90, 60, 0], [40, 20, 0]), "; the accuracy of 40.0 % is no better than that of alw"),
        (counts([50, 50, 50], [80, 65, 5], [50, 45, 5]), "class 2 is hardly ever predicted (5 times), although"),
        (counts([50] * 3, [150, 0, 0], [50, 0, 0]), "check the labels and inputs of these classes"),
        (
            counts([90, 60], [75, 75], [45, 30]),
            "the accuracy of 50.0 % is no better than that of always answering",
        ),
        (counts([102, 98], [100, 100], [50, 48]), "commonest class: check the labels and inputs, then try more"),
        (counts([90, 10], [52, 48], [45, 3]), "commonest class: judge the network by the recall of each class"),
        (
            counts([30] * 10, [150, 150, *[0] * 8], [30, 30, *[0] * 8]),
            "classes 2, 3, 4, 5, 6 and 3 more are never",
        ),
        (counts([4, 96], [0, 100], [0, 96]), None),  # too few to tell
        (counts([0, 50, 50], [0, 50, 50], [0, 45, 45]), None),  # absent from the samples
        (counts([50, 50, 50], [80, 60, 10], [50, 50, 10]), None),
        (counts([970, 30], [970, 30], [955, 15]), None),  # half of the rare ones are found: not a guess
        (counts([5, 4], [9, 0], [5, 0]), None),
    ],
)
def test_what_the_counts_of_predictions_say(found_in: ClassCounts, text: str | None) -> None:
    messages = [finding.message for finding in find(curve([2.0, 1.0, 0.5]).records, Setting(10), found_in)]
    assert [text in message for message in messages] == ([] if text is None else [True])


def test_what_layers_and_curves_tell_comes_first() -> None:
    names_found = [finding.name for finding in train([32] * 6, "sigmoid").findings()]
    assert names_found == ["vanishing gradients", "classes not predicted"]


def test_classes_with_weights_are_not_advised_to_have_some() -> None:
    data, model = with_rare_class(5000)
    (finding,) = fit(model, data, class_weight={0: 1, 1: 1.01}, **RARE).findings()
    assert finding.message.endswith("repeat those that there are or give them larger weights")


# -- Dropout, label smoothing, averages and rates by step -------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "advice"),
    [({"dropout": 0.5}, "; or lower dropout (now 0.5)"), ({"augment": True}, "; or distort the images less")],
)
def test_a_loss_that_is_raised_in_training_is_judged_by_the_validation_loss(
    setting: dict[str, Any], advice: str
) -> None:
    training, validation = [2.2] * 10, [2.3 * 0.8**epoch for epoch in range(10)]
    high = curve(training, validation)
    assert high.trend() == "underfitting"
    high.setting = dataclasses.replace(high.setting, **setting)
    assert (high.findings(), high.trend()) == ([], "converging")
    unknown = curve(training)
    unknown.setting = high.setting
    assert (unknown.findings(), unknown.trend()) == ([], "converging")
    bad = curve(training, training)
    bad.setting = high.setting
    (finding,) = bad.findings()
    assert finding.name == "underfitting"
    assert finding.message.endswith(advice)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_lowest_loss_with_label_smoothing_is_the_entropy_of_the_targets(eps: float, classes: int) -> None:
    setting = Setting(classes=classes, label_smoothing=eps)
    targets = np.full(classes, eps / classes)
    targets[0] += 1 - eps
    loss = SoftmaxCrossEntropy(label_smoothing=eps)
    logits = np.log(np.maximum(targets, 1e-300))[None]
    assert setting.floor == pytest.approx(loss(logits, np.array([0])), abs=1e-12)
    assert setting.guessing == setting.ignorance == pytest.approx(loss(np.zeros((1, classes)), np.array([0])))
    history = curve([setting.floor + (setting.guessing - setting.floor) / 10] * 10)
    history.setting = setting
    assert (history.findings(), history.trend()) == ([], "converging")


def test_an_average_that_still_consists_of_the_initial_parameters_is_found() -> None:
    model = MLP([64, 32, 10], device="cpu")
    history = fit(model, DIGITS, epochs=5, batch_size=32, validation=100, ema=0.999)
    assert history["validation_loss"][-1] > 3 * history["train_loss"][-1]
    found = [finding for finding in history.findings() if finding.name == "lagging average"]
    assert [finding.message for finding in found] == [
        "after 210 steps, 81 % of the moving average, which is the network, are still the initial parameters: "
        "lower ema (now 0.999) or train for more epochs"
    ]
    assert history.trend() == "converging"


def test_the_update_ratio_is_that_of_the_steps_and_not_of_the_average() -> None:
    def looks(**options: object) -> list[LayerStatistics]:
        model = MLP([64, 16, 10], device="cpu")
        return list(last_look(fit(model, DIGITS, epochs=1, batch_size=32, **options)))

    for plain, averaged in zip(looks(), looks(ema=0.999), strict=True):
        assert averaged.update_ratio == plain.update_ratio
        assert averaged.weight_norm == plain.weight_norm


def test_the_highest_rate_is_named_where_it_is_not_the_first() -> None:
    history = train([64], "leaky_relu", optimizer=SGD(2.0, momentum=0.9), schedule=OneCycle(400), epochs=6)
    rate = f"learning_rate (now {history['learning_rate'][-1]:.4g}, 2.0 at its highest)"
    assert rate in found(history)[0].message


def test_the_activations_that_saturate_are_named() -> None:
    model = MLP([64, 64, 64, 10], ["relu", "tanh"], initializer=Normal(1), device="cpu")
    (finding,) = found(fit(model, DIGITS, epochs=3, batch_size=32, optimizer=SGD(1e-4)))
    assert (finding.name, finding.layer) == ("saturated units", 2)
    assert "(tanh has there less than" in finding.message


def test_a_regression_is_judged_by_its_units_alone() -> None:
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(200, 4)), rng.normal(size=200) * 1e3)
    model = MLP([4, 16, 1], initializer=Normal(0.5), device="cpu")
    state = model.state_dict()
    state["layers.0.bias"][:12] = -100
    model.load_state_dict(state)
    history = fit(model, data, optimizer=SGD(1e-9), epochs=3, validation=50)
    assert [finding.name for finding in history.findings()] == ["dead units"]
    assert (history.trend(), history.classes, history.setting.classes) == (None, None, 0)


# -- A validation loss that has ceased to fall ------------------------------------------------------------------


def stalled() -> History:
    """The curves of MNIST's default run: all training samples are right, and validation stands still."""
    losses = [0.27 / 1.33**epoch for epoch in range(20)]
    return curve(losses, [0.14, 0.12, 0.09, 0.085, 0.08, 0.078, 0.077, 0.076, 0.075, 0.0742, *[0.078] * 10])


def test_certainty_that_only_grows_on_the_training_samples_is_overfitting_in_the_loss() -> None:
    history = stalled()
    (finding,) = history.findings()
    assert (finding.name, history.trend()) == ("overfitting", "overfitting")
    assert finding.message.startswith(
        "the validation loss has not fallen since epoch 10 (0.0742, now 0.078), while the training loss fell from "
        "0.021 to 0.0012 at an accuracy of 90 %. The validation accuracy is 90.0 % (90.0 % in epoch 10)"
    )
    assert "Stop early (early_stopping 5), train for about 10 epochs, or raise l2 (now 0)" in finding.message


def test_early_stopping_keeps_the_best_network_which_does_not_overfit() -> None:
    history = stalled()
    history.setting = dataclasses.replace(history.setting, early_stopping=True)
    assert (history.findings(), history.trend()) == ([], "converging")
    stopped = train([128], optimizer=SGD(0.1, momentum=0.9), epochs=50, callbacks=[EarlyStopping(patience=25)])
    assert stopped.best().since == 25
    assert (stopped.findings(), stopped.trend()) == ([], "converging")


def test_a_gap_between_the_accuracies_is_overfitting_with_early_stopping_too() -> None:
    history = curve([0.5, 0.1, 0.01], [0.9, 0.8, 0.7])
    history.records = [dataclasses.replace(record, validation_accuracy=0.75) for record in history]
    history.setting = dataclasses.replace(history.setting, early_stopping=True)
    assert (names(history), history.trend()) == ({"overfitting"}, "overfitting")


def test_of_labels_and_numbers_only_units_and_averages_are_judged() -> None:
    dead, overfitting, lagging = train([64, 64], optimizer=SGD(1.0, momentum=0.9)), stalled(), stalled()
    lagging.setting = dataclasses.replace(lagging.setting, ema=0.999, steps=10)
    for history, expected in (dead, {"dead units"}), (overfitting, set()), (lagging, {"lagging average"}):
        history.setting = dataclasses.replace(history.setting, classes=0)
        assert (names(history), history.trend()) == (expected, None)


def test_early_stopping_that_leaves_the_last_network_does_not_hide_overfitting() -> None:
    stopping = EarlyStopping(patience=30, restore_best=False)
    history = train([128], optimizer=SGD(0.1, momentum=0.9), epochs=50, callbacks=[stopping])
    assert (names(history), history.trend()) == ({"overfitting"}, "overfitting")


def test_a_loss_that_stands_still_in_training_too_is_not_overfitting() -> None:
    losses = [2.0, 1.0, 0.6, *[0.55] * 17]
    assert (found(curve(losses, losses)), curve(losses, losses).trend()) == ([], "converging")


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


def test_large_targets_diverge() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    with pytest.raises(DivergenceError) as error:
        fit(MLP([3, 64, 1], device="cpu"), x, 500 + 100 * x[:, 0], optimizer=SGD(0.1, momentum=0.9), batch_size=32)
    found = r" inputs up to \d.\d+ and targets up to \d{3} in absolute value\."
    assert re.search(found, str(error.value))
    assert "Targets so large make every step too large: scale them to about 1" in str(error.value)


def test_a_large_penalty_diverges() -> None:
    message = diverge(optimizer=SGD(0.1), l2=50.0, epochs=30).message
    assert "try an l2 of 0.1 or less" in message
