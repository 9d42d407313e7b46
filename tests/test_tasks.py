"""Classes, labels and numbers: ``fit(model, X, y)``, ``loss="auto"``, weights and validation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    DataError,
    Dataset,
    LogisticCrossEntropy,
    PoissonDeviance,
    SoftmaxCrossEntropy,
    Trainer,
    fit,
)

RNG = np.random.default_rng(0)
N = 200
X = RNG.normal(size=(N, 6))
CLEAR = X @ RNG.normal(size=(6, 3))  # what can be learned
CLASSES, LABELS, NUMBERS = CLEAR.argmax(axis=1), CLEAR > 0, CLEAR
NAMES = np.array(["cat", "dog", "bird"])[CLASSES]
YES = np.array(["no", "yes"])[LABELS[:, 0].astype(int)]
OPTIONS: dict[str, Any] = {"epochs": 5, "batch_size": 32, "optimizer": SGD(0.1, momentum=0.9)}


def net(outputs: int = 3, **options: Any) -> MLP:
    return MLP([6, 8, outputs], "tanh", seed=1, device="cpu", **options)


def weights(model: MLP) -> bytes:
    return model.parameters.data.tobytes()


def standing_still(learning_rate: float, epoch: int) -> float:
    return 0.0


# -- fit(model, X, y) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "outputs", "loss", "names"),
    [
        (CLASSES, 3, "softmax_cross_entropy", None),
        (CLASSES.tolist(), 3, "softmax_cross_entropy", None),
        (CLASSES.astype(np.uint8)[:, None], 3, "softmax_cross_entropy", None),
        (CLASSES + 4, 3, "softmax_cross_entropy", (4, 5, 6)),
        (NAMES, 3, "softmax_cross_entropy", ("bird", "cat", "dog")),
        (LABELS[:, 0], 2, "softmax_cross_entropy", (False, True)),
        (LABELS[:, 0].astype(int), 1, "logistic_cross_entropy", None),
        (YES, 1, "logistic_cross_entropy", ("no", "yes")),
        (LABELS, 3, "logistic_cross_entropy", None),
        (LABELS.astype(float), 3, "logistic_cross_entropy", None),
        (NUMBERS, 3, "squared_error", None),
        (NUMBERS[:, 0], 1, "squared_error", None),
        (NUMBERS[:, :1].astype(np.float32), 1, "squared_error", None),
    ],
    ids=lambda value: f"{np.asarray(value).dtype} {np.shape(value)}" if np.ndim(value) else str(value),
)
def test_the_loss_is_chosen_by_the_first_data(targets: Any, outputs: int, loss: str, names: Any) -> None:
    model = net(outputs)
    history = fit(model, X, targets, **OPTIONS)
    assert model.loss.name == loss
    assert model.class_names == names
    assert history.records[-1].train_loss < 0.7 * history.records[0].train_loss
    again, data = net(outputs, loss=loss), Dataset(X, targets)
    assert fit(again, data, **OPTIONS)["train_loss"] == history["train_loss"]
    assert weights(again) == weights(model)
    found = model.predict(X)
    assert found.shape == ((N,) if loss.startswith("softmax") else (N, outputs))
    assert model.evaluate(data).metrics() == again.evaluate(data).metrics()


@pytest.mark.parametrize(
    ("targets", "outputs", "message"),
    [
        (CLASSES, 1, r"\[6, 8, 1\]\) has the loss .*"),
        (CLASSES, 2, r"MLP\(\[6, 8, 2\]\) has 2 classes, but Dataset.* has 3"),
        (LABELS, 4, r"has 4 outputs, but Dataset.* has 3 labels a sample; make a network with 3"),
        (LABELS, 1, r"has 1 output, but Dataset.* has 3 labels a sample"),
        (NUMBERS, 1, r"has 1 output, but Dataset.* has 3 numbers a sample"),
        (NUMBERS[:, 0], 3, r"has 3 outputs, but Dataset.* has 1 number a sample"),
        (1e300 * NUMBERS, 3, r"computes in float32, but the targets of .* are up to \S+e\+30\d; scale them"),
    ],
)
def test_targets_that_do_not_fit_are_refused_and_choose_nothing(targets: Any, outputs: int, message: str) -> None:
    model = net(outputs)
    before, loss = weights(model), model.loss
    for use in (fit, lambda model, x, y: model.evaluate(Dataset(x, y))):
        with pytest.raises(ValueError, match=message):
            use(model, X, targets)
        assert (weights(model), model.loss, model.inputs, model.class_names) == (before, loss, None, None)
    other = (
        CLASSES if outputs == 3 else NUMBERS[:, :outputs] if outputs < 3 else np.hstack([NUMBERS, NUMBERS[:, :1]])
    )
    fit(model, X, other, epochs=1)  # it still chooses
    assert model.loss.task == ("classes" if outputs == 3 else "numbers")


def test_a_refused_validation_or_option_chooses_nothing() -> None:
    for wrong in (
        {"validation": N},
        {"validation": (X, CLASSES)},
        {"batch_size": 0},
        {"class_weight": "balanced"},
    ):
        model = net()
        with pytest.raises((ValueError, DataError)):
            fit(model, X, NUMBERS, **wrong)
        assert model.loss.name == "softmax_cross_entropy"
        fit(model, X, CLASSES, epochs=1)


def test_until_it_sees_data_a_network_has_the_loss_that_its_outputs_suggest() -> None:
    assert (net(3).loss.name, net(2).loss.name, net(1).loss.name) == (
        *("softmax_cross_entropy", "softmax_cross_entropy", "squared_error"),
    )
    np.testing.assert_allclose(net(3).predict_proba(X).sum(axis=1), 1, rtol=1e-6)
    assert net(1).predict(X).shape == (N, 1)


def test_the_first_evaluation_chooses_too() -> None:
    model = net()
    assert model.evaluate(Dataset(X, NUMBERS)).r2 is not None
    with pytest.raises(ValueError, match=r"the loss squared_error, whose targets are numbers, but .* one class"):
        model.evaluate(Dataset(X, CLASSES))


@pytest.mark.parametrize(
    ("first", "second", "loss"),
    [
        (CLASSES, NUMBERS, "softmax_cross_entropy"),
        (CLASSES, LABELS, "softmax_cross_entropy"),
        (LABELS, NUMBERS, "logistic_cross_entropy"),
        (LABELS, CLASSES, "logistic_cross_entropy"),
        (NUMBERS, LABELS, "squared_error"),
    ],
)
def test_a_network_keeps_its_first_task(first: Any, second: Any, loss: str) -> None:
    model = net()
    fit(model, X, first, epochs=1)
    before = weights(model)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=f"has the loss {loss}, whose targets are"):
            fit(other, X, second)
        fit(other, X, first, epochs=1)
    assert weights(model) != before


COPIES = [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_an_untrained_network_chooses_for_itself(copied: Callable[[MLP], MLP]) -> None:
    model = net()
    other = copied(model)
    fit(other, X, NUMBERS, epochs=1)
    fit(model, X, CLASSES, epochs=1)
    assert (other.loss.name, model.loss.name) == ("squared_error", "softmax_cross_entropy")


def test_a_saved_network_names_its_loss(tmp_path: Path) -> None:
    untrained, regression = net(), net()
    fit(regression, X, NUMBERS, epochs=1)
    for name, model in {"untrained": untrained, "regression": regression}.items():
        model.save(tmp_path / name)
        loaded = MLP.load(tmp_path / name, device="cpu")
        assert loaded.loss.name == model.loss.name
        with pytest.raises(ValueError, match="has the loss"):
            fit(loaded, X, NUMBERS if name == "untrained" else CLASSES)
    fit(untrained, X, NUMBERS, epochs=1)  # saving does not settle it


@pytest.mark.parametrize(
    "loss", [SoftmaxCrossEntropy(0.1), LogisticCrossEntropy(0.1), PoissonDeviance()], ids=repr
)
def test_a_given_loss_is_kept(loss: Any) -> None:
    model = net(loss=loss)
    targets = {"classes": CLASSES, "labels": LABELS, "numbers": np.exp(NUMBERS)}[loss.task]
    fit(model, X, targets, epochs=1)
    assert model.loss is loss


def test_a_loss_that_is_set_is_kept() -> None:
    model = net()
    model.loss = PoissonDeviance()
    fit(model, X, np.exp(NUMBERS), epochs=1)
    assert model.loss.name == "poisson_deviance"


def test_targets_that_the_loss_cannot_have_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"not those of the loss poisson_deviance: .* of 0 or more.*; correct them"
    ):
        fit(net(loss="poisson_deviance"), X, NUMBERS)


def test_two_classes_with_one_output_are_as_with_two() -> None:
    """The difference of two outputs is one: the probabilities of the same classes, with their names."""
    model = net(1)
    fit(model, X, YES, **OPTIONS | {"epochs": 20})
    assert model.accuracy(Dataset(X, YES, class_names=["no", "yes"])) > 0.9
    swapped = Dataset(X, YES, class_names=["yes", "no"])  # the names decide
    assert model.accuracy(swapped) == model.accuracy(Dataset(X, YES))
    np.testing.assert_array_equal(model.predict(X)[:, 0], model.predict_proba(X)[:, 0] > 0.5)


def test_a_network_of_two_named_classes_with_one_output_can_be_saved(tmp_path: Path) -> None:
    model = net(1)
    fit(model, X, YES, epochs=1)
    model.save(tmp_path)
    loaded = MLP.load(tmp_path, device="cpu")
    assert loaded.class_names == ("no", "yes")
    assert loaded.evaluate(Dataset(X, YES)) == model.evaluate(Dataset(X, YES))


# -- Weights ------------------------------------------------------------------------------------------------


def test_sample_weights_of_fit_are_those_of_a_dataset() -> None:
    sample_weight = RNG.uniform(0, 2, N)
    first, second = net(), net()
    fit(first, X, CLASSES, sample_weight=sample_weight, **OPTIONS)
    fit(second, Dataset(X, CLASSES, weights=sample_weight), **OPTIONS)
    assert weights(first) == weights(second)
    third = net()
    fit(third, X, CLASSES, sample_weight=1000 * sample_weight, **OPTIONS)  # only the ratios count
    np.testing.assert_allclose(third.parameters.data, first.parameters.data, rtol=1e-4, atol=1e-5)


def test_a_batch_without_weight_does_not_lower_the_training_loss() -> None:
    model, own = net(), (np.arange(N) < 5).astype(float)
    history = fit(model, X, CLASSES, sample_weight=own, batch_size=4, schedule=standing_still, epochs=1)
    expected = model.evaluate(Dataset(X[:5], CLASSES[:5], classes=3)).loss
    assert history["train_loss"] == pytest.approx([expected], rel=1e-6)


def test_a_sample_without_weight_does_not_count() -> None:
    """Whatever it is."""
    kept = np.arange(N) % 2 == 0
    scrambled = np.where(kept, CLASSES, RNG.integers(0, 3, N))
    trained = []
    for targets in (CLASSES, scrambled):
        model = net()
        fit(model, X, targets, sample_weight=kept.astype(float), **OPTIONS)
        trained.append(weights(model))
    assert trained[0] == trained[1]


@pytest.mark.parametrize(
    ("targets", "class_weight", "expected"),
    [
        (CLASSES, {0: 2.0, 1: 0.5, 2: 1.0}, np.array([2.0, 0.5, 1.0])[CLASSES]),
        (CLASSES, {1: 3}, np.array([1.0, 3.0, 1.0])[CLASSES]),
        (CLASSES, {0: 0, 1: 1, 2: 1}, np.array([0.0, 1.0, 1.0])[CLASSES]),
        (CLASSES, "balanced", (N / (3 * np.bincount(CLASSES)))[CLASSES]),
        (NAMES, {"dog": 2, "bird": 0.5}, np.where(NAMES == "dog", 2, np.where(NAMES == "bird", 0.5, 1))),
        (NAMES, "balanced", (N / (3 * np.bincount(CLASSES)))[CLASSES]),
        (CLASSES + 4, {5: 3}, np.array([1.0, 3.0, 1.0])[CLASSES]),
    ],
    ids=str,
)
@pytest.mark.parametrize("own", [None, RNG.uniform(0, 2, N)], ids=["", "and sample weights"])
def test_class_weights_multiply_the_weights_of_the_samples(
    targets: Any, class_weight: Any, expected: np.ndarray, own: np.ndarray | None
) -> None:
    first, second = net(), net()
    fit(first, X, targets, class_weight=class_weight, sample_weight=own, **OPTIONS)
    fit(second, X, targets, sample_weight=expected * (1 if own is None else own), **OPTIONS)
    np.testing.assert_allclose(first.parameters.data, second.parameters.data, rtol=1e-6, atol=1e-7)
    third = net()
    fit(third, X, targets, sample_weight=own, **OPTIONS)
    assert np.abs(third.parameters.data - first.parameters.data).max() > 1e-3


def test_weights_of_classes_and_samples_that_leave_nothing_are_refused() -> None:
    own = (CLASSES == 0).astype(float)
    with pytest.raises(ValueError, match=r"expected to leave some weight, but all .* training samples have 0"):
        fit(net(), X, CLASSES, sample_weight=own, class_weight={0: 0.0})
    with pytest.raises(ValueError, match=r"samples have 0 in float32 beside the largest weight; give"):
        fit(net(), X, CLASSES, sample_weight=np.where(np.arange(N) == 3, 1e50, 1e-10), validation=0.5)
    one, parts = np.eye(N)[3], set()
    for seed in range(10):  # the sample with weight is held out, or it is not
        with pytest.raises(ValueError, match=r"expected to leave some weight, but all .* samples have 0") as error:
            fit(net(), X, CLASSES, sample_weight=one, validation=0.5, seed=seed)
        parts.add("training" in str(error.value))
    assert parts == {True, False}


def test_balanced_weights_are_of_the_samples_that_are_trained_on() -> None:
    trainer = Trainer(net(), Dataset(X, CLASSES), class_weight="balanced", validation=0.5, batch_size="full")
    labels = CLASSES[trainer.batches.rows]
    totals = [trainer.batches.weights[labels == label].sum() for label in range(3)]
    np.testing.assert_allclose(totals, len(labels) / 3, rtol=1e-5)


@pytest.mark.parametrize("validation", [0.3, 60, (X[:50], CLASSES[:50]), Dataset(X[:50], CLASSES[:50])], ids=str)
def test_class_weights_do_not_change_the_validation(validation: Any) -> None:
    own = RNG.uniform(0, 2, N)
    losses = []
    for class_weight in (None, {0: 5.0}, "balanced"):
        history = fit(
            net(), X, CLASSES, sample_weight=own, validation=validation, class_weight=class_weight,
            schedule=standing_still, epochs=1,
        )  # fmt: skip
        losses.append((history["validation_loss"], history["validation_accuracy"]))
    assert losses[0] == losses[1] == losses[2]


# -- Validation ---------------------------------------------------------------------------------------------


def split(targets: Any, validation: Any, seed: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    data = Dataset(X, targets, **options)
    trainer = Trainer(net(1 if data.outputs == 1 else 3), data, validation=validation, seed=seed)
    assert trainer.validation_batches is not None
    rows = trainer.batches.rows, trainer.validation_batches.rows
    assert sorted([*rows[0], *rows[1]]) == list(range(N))
    return rows


@pytest.mark.parametrize("fraction", [0.05, 0.1, 1 / 3, 0.5, np.float32(0.25)])
def test_a_fraction_has_the_same_shares_of_the_classes(fraction: float) -> None:
    skewed = np.minimum(CLASSES, RNG.integers(0, 3, N))
    train, held_out = split(skewed, fraction)
    assert len(held_out) == round(fraction * N)
    counts = np.bincount(skewed[held_out], minlength=3)
    assert np.abs(counts - fraction * np.bincount(skewed)).max() < 1
    assert set(skewed[train]) == {0, 1, 2}


@pytest.mark.parametrize(("targets", "task"), [(LABELS, "labels"), (NUMBERS, "numbers")])
def test_a_fraction_of_other_targets_is_drawn_like_a_number(targets: np.ndarray, task: str) -> None:
    for one, other in zip(split(targets, 0.1, task=task), split(targets, 20, task=task), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_split_depends_on_the_seed_alone() -> None:
    for validation in (0.2, 40):
        one, same, other = (split(CLASSES, validation, seed)[1] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert one.tolist() != other.tolist()


def test_a_tuple_is_read_as_the_training_targets_are() -> None:
    """Its classes are those of the training set, of which it may lack some."""
    model = net()
    only = NAMES == "dog"
    history = fit(model, X, NAMES, validation=(X[only], NAMES[only]), epochs=3)
    found = model.evaluate(Dataset(X[only], NAMES[only], class_names=["bird", "cat", "dog"]))
    assert history["validation_accuracy"][-1] == found.accuracy
    for targets, part in ((LABELS, np.eye(3)[CLASSES]), (NUMBERS, CLASSES[:, None] * np.ones(3, int))):
        fit(net(), X, targets, validation=(X, part), epochs=1)  # what they would be alone does not matter


@pytest.mark.parametrize(
    ("targets", "validation", "message"),
    [
        (NAMES, (X, np.where(NAMES == "cat", "cow", NAMES)), "cow"),
        (CLASSES, (X, CLASSES + 1), "3"),
        (NUMBERS, (X, NUMBERS[:, :2]), "targets must have 3 columns as in Dataset.*, got 2"),
        (LABELS, (X, LABELS[:, :2]), "targets must have 3 columns|classes must be 2"),
        (CLASSES, (X[:, :5], CLASSES), "expects 6 features a sample, got 5"),
        (CLASSES, (X, CLASSES[:-1]), "one for each of 200 images, got 199"),
    ],
)
def test_a_tuple_that_does_not_fit_is_refused(targets: Any, validation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(net(), X, targets, validation=validation)


def test_every_form_of_validation_gives_its_columns() -> None:
    for validation in (0.2, 40, np.int64(40), (X, CLASSES), Dataset(X, CLASSES)):
        history = fit(net(), X, CLASSES, validation=validation, epochs=1)
        assert history["validation_loss"][0] is not None
    for validation in (None, 0):
        assert fit(net(), X, CLASSES, validation=validation, epochs=1)["validation_loss"] == [None]
