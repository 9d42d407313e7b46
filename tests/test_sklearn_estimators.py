"""What users of scikit-learn's MLPs rely on, and what they asked for beyond it: answers, parameters, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install '.[sklearn]'")

import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score

from gpumlp import DeviceError
from tests.sklearn_helpers import CANCER, IRIS, classifier, fit, regressor

NAMES = np.array(["setosa", "versicolor", "virginica"], dtype=object)


# -- Labels and answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [NAMES, np.array([7, -2, 40]), np.array([1.0, 2.0, 3.0])], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_labels_of_any_kind(labels: np.ndarray, classes: int) -> None:
    X, y = IRIS[0][IRIS[1] < classes], labels[IRIS[1][IRIS[1] < classes]]
    model = fit(classifier(max_iter=150, learning_rate_init=0.01), X, y)
    np.testing.assert_array_equal(model.classes_, np.unique(y))
    assert model.predict(X).dtype == model.classes_.dtype
    assert model.score(X, y) == accuracy_score(y, model.predict(X)) > 0.95
    proba = model.predict_proba(X)
    assert (proba.shape, proba.dtype) == ((len(X), classes), np.float32)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.classes_[proba.argmax(axis=1)], model.predict(X))
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(proba), rtol=1e-4, atol=1e-6)


def test_the_logarithm_of_a_probability_that_rounds_to_0() -> None:
    model = fit(classifier(), *CANCER)
    model.coefs_ = [1000 * weight for weight in model.coefs_]
    assert model.predict_proba(CANCER[0]).min() == 0
    assert np.isfinite(model.predict_log_proba(CANCER[0])).all()


def test_several_labels_a_sample() -> None:
    X, y = make_multilabel_classification(n_samples=200, random_state=0)
    assert fit(classifier(early_stopping=True), X, y).predict(X).shape == y.shape
    model = fit(classifier(max_iter=150, learning_rate_init=0.01), X, y)
    assert model.out_activation_ == "logistic"
    assert model.predict(X).shape == model.predict_proba(X).shape == y.shape
    np.testing.assert_array_equal(model.predict(X), model.predict_proba(X) > 0.5)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), rtol=1e-5)
    assert model.score(X, y) == (model.predict(X) == y).all(axis=1).mean() > 0.4
    by_parts = classifier()
    for _ in range(3):
        by_parts.partial_fit(X, scipy.sparse.csr_matrix(y), classes=range(5))
    assert by_parts.predict(X).shape == y.shape
    with pytest.raises(ValueError, match="y is expected to be 0 and 1 of shape"):
        by_parts.partial_fit(X, y[:, 0])
    with pytest.raises(ValueError, match="class_weight is expected to be None where"):
        classifier(class_weight="balanced").fit(X, y)


def test_several_values_a_sample() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    Y = np.stack([X[:, 0], X[:, 1] * 2], axis=1)
    model = fit(regressor(max_iter=200, learning_rate_init=0.01), X, Y)
    assert model.predict(X).shape == Y.shape
    assert model.score(X, Y) == r2_score(Y, model.predict(X)) > 0.95
    one = fit(regressor(), X, Y[:, 0])
    assert (one.predict(X).shape, one.predict(X).dtype) == ((300,), np.float32)


@pytest.mark.parametrize(
    ("kind", "y", "words"),
    [
        (classifier, [1, 1, 1], "one class"),
        (classifier, [0.5, 1.5, 2.5], "Unknown label type"),
        (classifier, [[1, 2], [3, 4], [5, 6]], "one label a sample"),
        (classifier, None, "requires y to be passed"),
        (regressor, [1e300, 0, 1], "expected to fit into float32"),
        (regressor, ["a", "b", "c"], "could not convert"),
        (regressor, [1, 2], "inconsistent numbers"),
    ],
)
def test_targets_that_make_no_sense_are_refused(kind: Any, y: Any, words: str) -> None:
    model = kind()
    with pytest.raises(ValueError, match=words):
        model.fit([[1.0], [2.0], [3.0]], y)
    with pytest.raises(NotFittedError):
        model.predict([[1.0]])


def test_sparse_samples_are_refused_with_the_cure() -> None:
    for kind, y in ((classifier, IRIS[1]), (regressor, IRIS[1])):
        with pytest.raises(TypeError, match=r"dense data is required. Use '.toarray\(\)'"):
            kind().fit(scipy.sparse.csr_matrix(IRIS[0]), y)


def test_what_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"infinity or a value too large for dtype\('float32'\)"):
        classifier().fit(IRIS[0] * 1e300, IRIS[1])


# -- Parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parameters", "words"),
    [
        (classifier, {"solver": "lbfgs"}, "solver='lbfgs' is not offered by gpumlp: expected sgd or adam"),
        (regressor, {"solver": "lbfgs"}, "solver='lbfgs' is not offered by gpumlp"),
        (classifier, {"max_fun": 10}, "max_fun belongs to solver='lbfgs', which gpumlp does not offer"),
        (regressor, {"max_fun": 10}, "max_fun belongs to solver='lbfgs'"),
        (regressor, {"loss": "poisson"}, "loss='poisson' is not offered by gpumlp: expected squared_error"),
        (classifier, {"momentum": 1}, "momentum: expected a number of at least 0 and below 1, got 1"),
        (classifier, {"alpha": -1, "tol": "a"}, "alpha: expected a number of 0 or more, got -1; tol: expected"),
        (classifier, {"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes: expected a whole number of 1 or more"),
        (classifier, {"hidden_layer_sizes": "a"}, "hidden_layer_sizes: expected"),
        (classifier, {"activation": "sigmoid"}, "one of identity, logistic, tanh, relu, got 'sigmoid'"),
        (classifier, {"batch_size": 0}, "batch_size: expected auto, 1 or more, got 0"),
        (classifier, {"learning_rate": 0.1}, "learning_rate: expected one of constant, invscaling, adaptive"),
        (classifier, {"max_iter": 2.5}, "max_iter: expected a whole number"),
        (classifier, {"shuffle": 1}, "shuffle: expected True or False, got 1"),
        (classifier, {"n_iter_no_change": 0}, "n_iter_no_change: expected"),
        (classifier, {"class_weight": "even"}, "class_weight: expected None, balanced, or a dict"),
        (classifier, {"class_weight": {0: -1}}, "class_weight is expected to be numbers of 0 or more"),
        (regressor, {"device": "gpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (regressor, {"validation_fraction": float("nan")}, "validation_fraction: expected"),
    ],
)
def test_what_is_not_offered_or_wrong_is_refused_by_fit(kind: Any, parameters: Any, words: str) -> None:
    model = kind(**parameters)
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        model.fit(*IRIS)
    assert not hasattr(model, "coefs_")


def test_what_numpy_calls_numbers_are_numbers() -> None:
    model = classifier(
        hidden_layer_sizes=np.array([5, 4]), alpha=np.float32(0.1), max_iter=np.int64(3), shuffle=np.True_, tol=0
    )
    assert [w.shape for w in fit(model, *IRIS).coefs_] == [(4, 5), (5, 4), (4, 3)]


def test_a_device_that_is_not_there_fails_in_fit_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = clone(classifier(device="cuda"))
    with pytest.raises(DeviceError, match="CuPy is not installed; install it with"):
        model.fit(*IRIS)


def test_a_batch_larger_than_the_samples_is_clipped_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="`batch_size` 1000 larger than sample size 150"):
        fit(classifier(batch_size=1000), *IRIS)


def test_one_random_state_one_run() -> None:
    first, second = (fit(classifier(), *IRIS).predict_proba(IRIS[0]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, fit(classifier(random_state=1), *IRIS).predict_proba(IRIS[0]))
    state = np.random.mtrand._rand.get_state()[1].copy()
    fit(classifier(), *IRIS)
    np.testing.assert_array_equal(np.random.mtrand._rand.get_state()[1], state)  # the global one is left alone


# -- Weights and validation ----------------------------------------------------------------------------------


def test_class_weight_is_a_factor_of_the_sample_weights() -> None:
    X, y = CANCER
    given = np.random.default_rng(0).random(len(y))
    by_class = fit(classifier(class_weight={0: 3.0, 1: 0.5}), X, y, given)
    by_sample = fit(classifier(), X, y, given * np.where(y == 0, 3.0, 0.5))
    np.testing.assert_array_equal(by_class.coefs_[0], by_sample.coefs_[0])
    balanced = fit(classifier(class_weight="balanced"), X, y)
    counts = np.bincount(y)
    by_hand = fit(classifier(class_weight={0: len(y) / 2 / counts[0], 1: len(y) / 2 / counts[1]}), X, y)
    np.testing.assert_array_equal(balanced.coefs_[0], by_hand.coefs_[0])
    again = fit(balanced, X[:300], y[:300])  # nothing is left of the first balance
    np.testing.assert_array_equal(again.coefs_[0], fit(clone(balanced), X[:300], y[:300]).coefs_[0])
    assert fit(classifier(class_weight={0: 1e4, 1: 1e-4}, max_iter=200), X, y).predict(X).mean() < 0.1


def test_equal_weights_are_no_weights_and_a_batch_without_any_is_passed_over() -> None:
    X, y = CANCER
    plain = fit(classifier(alpha=0), X, y)
    even = fit(classifier(alpha=0), X, y, sample_weight=3.0)
    np.testing.assert_allclose(even.loss_curve_, plain.loss_curve_, rtol=1e-5)
    weights = np.ones(len(y))
    weights[200:400] = 0  # the second batch
    some = fit(classifier(shuffle=False), X, y, weights)
    assert np.isfinite(some.loss_curve_).all()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, 2.0], "one for each of 150 samples, got 2"),
        (-np.ones(150), "expected to be 0 or more, got -1"),
        (np.zeros(150), "all weights are zero"),
        (np.full(150, np.nan), "contains NaN"),
        (np.ones((150, 1)), "expected to be 1D"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classifier().fit(*IRIS, weights)


@pytest.mark.parametrize("kind", [classifier, regressor])
def test_samples_of_ones_own_to_validate_on(kind: Any) -> None:
    X, y = CANCER
    plain = fit(kind(), X[:400], y[:400])
    model = fit(kind(), X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    assert model.loss_curve_ == plain.loss_curve_  # they only watch
    np.testing.assert_array_equal(model.coefs_[0], plain.coefs_[0])
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == model.n_iter_
    assert model.validation_scores_[-1] == pytest.approx(model.score(X[400:], y[400:]), rel=1e-5)
    assert model.best_validation_score_ == max(model.validation_scores_)
    if kind is regressor:
        expected = 0.5 * np.mean((model.predict(X[400:]) - y[400:]) ** 2)
    else:
        expected = -model.predict_log_proba(X[400:])[np.arange(169), y[400:]].mean()
    assert model.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-5)


def test_ones_own_samples_decide_with_early_stopping() -> None:
    X, y = CANCER
    options = {"early_stopping": True, "max_iter": 300, "learning_rate_init": 0.03}
    val = {"X_val": X[400:], "y_val": y[400:]}
    model = classifier(**options).fit(X[:400], y[:400], **val)
    assert model.t_ == 400 * model.n_iter_  # nothing was held out
    assert model.score(X[400:], y[400:]) == model.best_validation_score_ == max(model.validation_scores_)
    weights = (np.arange(169) < 20).astype(float)
    other = classifier(**options).fit(X[:400], y[:400], **val, sample_weight_val=weights)
    assert other.best_validation_score_ == pytest.approx(other.score(X[400:420], y[400:420]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"X_val": IRIS[0]}, "X_val is provided, but y_val was not"),
        ({"y_val": IRIS[1]}, "y_val is provided, but X_val was not"),
        ({"sample_weight_val": IRIS[1]}, "sample_weight_val is provided"),
        ({"X_val": IRIS[0], "y_val": IRIS[1][:3]}, "inconsistent numbers"),
        ({"X_val": IRIS[0][:, :2], "y_val": IRIS[1]}, "X has 2 features, but MLPClassifier is expecting 4"),
        ({"X_val": IRIS[0], "y_val": IRIS[1] + 1}, "`y` has classes not in"),
        ({"X_val": IRIS[0], "y_val": IRIS[1], "sample_weight_val": np.zeros(150)}, "sample_weight_val .* zero"),
    ],
)
def test_half_a_validation_set_is_refused(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classifier().fit(*IRIS, **options)
