"""The estimators: labels and predictions, parameters, weights, validation, stopping, saving and continuing."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import re
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install ".[sklearn]"')

import joblib
import scipy.sparse
import sklearn.neural_network
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import scale

import gpumlp.sklearn
from gpumlp import Dataset, DeviceError
from gpumlp.sklearn import MLPClassifier, MLPRegressor
from gpumlp.sklearn.solver import ROWS, Epochs

IRIS = scale(load_iris().data), load_iris().target
CANCER = scale(load_breast_cancer().data), load_breast_cancer().target


def classifier(**options: Any) -> MLPClassifier:
    return MLPClassifier(
        **{"hidden_layer_sizes": 16, "random_state": 0, "device": "cpu", "max_iter": 20} | options
    )


def regressor(**options: Any) -> MLPRegressor:
    return MLPRegressor(**{"hidden_layer_sizes": 16, "random_state": 0, "device": "cpu", "max_iter": 20} | options)


def fit(estimator: Any, *arguments: Any, **options: Any) -> Any:
    """Fit, without the warning that training has not converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*arguments, **options)


NAMES = np.array(["setosa", "versicolor", "virginica"], dtype=object)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "gelu", "silu", "softplus"])
def test_activations_that_scikit_learn_does_not_have(activation: str) -> None:
    model = fit(classifier(activation=activation, max_iter=60, learning_rate_init=0.01), *IRIS)
    assert model._network.activation.name == activation
    assert model.score(*IRIS) > 0.8
    assert (pickle.loads(pickle.dumps(model)).predict_proba(IRIS[0]) == model.predict_proba(IRIS[0])).all()


# -- Labels and predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [NAMES, np.array([7, -2, 40]), np.array([1.0, 2.0, 3.0])], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_labels_of_any_kind(labels: np.ndarray, classes: int) -> None:
    X, y = IRIS[0][IRIS[1] < classes], labels[IRIS[1][IRIS[1] < classes]]
    model = fit(classifier(max_iter=150, learning_rate_init=0.01), X, y)
    np.testing.assert_array_equal(model.classes_, np.unique(y))
    assert model.predict(X).dtype == model.classes_.dtype
    assert model.score(X, y) == accuracy_score(y, model.predict(X)) > 0.95
    proba = model.predict_proba(X)
    assert proba.shape == (len(X), classes)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.classes_[proba.argmax(axis=1)], model.predict(X))
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(proba), rtol=1e-4, atol=1e-6)


def test_log_proba_is_finite_where_the_probability_rounds_to_0() -> None:
    model = fit(classifier(), *CANCER)
    model.coefs_ = [1000 * weight for weight in model.coefs_]
    assert model.predict_proba(CANCER[0]).min() == 0
    assert np.isfinite(model.predict_log_proba(CANCER[0])).all()


def test_several_labels_per_sample() -> None:
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
    with pytest.raises(ValueError, match="class_weight is expected to be None if"):
        classifier(class_weight="balanced").fit(X, y)


@pytest.mark.parametrize("task", ["two classes", "three classes", "labels", "numbers"])
def test_an_estimators_network_is_evaluated_as_any_other(task: str) -> None:
    X, y = np.rint(IRIS[0] * 9 + 99).astype(np.uint8), IRIS[1]  # numbers, not pixels
    targets = {
        "two classes": np.minimum(y, 1),
        "three classes": y,
        "labels": np.stack([y > 0, y > 1], axis=1).astype(int),
        "numbers": IRIS[0][:, :2],
    }[task]
    model = fit(regressor() if task == "numbers" else classifier(), X, targets)
    result = model._network.evaluate(Dataset(X, targets, task=task.split()[-1]))
    assert next(iter(result.metrics().values())) == result.loss
    assert [*result.metrics().values()][1] == pytest.approx(model.score(X, targets), rel=1e-5)


def test_several_values_per_sample() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    Y = np.stack([X[:, 0], X[:, 1] * 2], axis=1)
    model = fit(regressor(max_iter=200, learning_rate_init=0.01), X, Y)
    assert model.predict(X).shape == Y.shape
    assert model.score(X, Y) == r2_score(Y, model.predict(X)) > 0.95
    one = fit(regressor(), X, Y[:, 0])
    assert one.predict(X).shape == (300,)


@pytest.mark.parametrize(
    ("kind", "y", "words"),
    [
        (classifier, [1, 1, 1], "one class"),
        (classifier, [0.5, 1.5, 2.5], "Unknown label type"),
        (classifier, [[1, 2], [3, 4], [5, 6]], "one label per sample"),
        (classifier, None, "requires y to be passed"),
        (classifier, ["a", float("nan"), "b"], "contains NaN"),
        (classifier, np.ma.masked_array([0, 1, 2], [0, 0, 1]), "y must be there, but 1 are masked"),
        (regressor, [1e300, 0, 1], r"computes in float32, but the values of y are up to 1e\+300; scale them"),
        (regressor, ["a", "b", "c"], "could not convert"),
        (
            functools.partial(regressor, loss="poisson"),
            [-1, 0, 1],
            "the values of y are not those of the loss poisson_deviance: expected targets of 0 or more, got -1",
        ),
        (regressor, [1, 2], "inconsistent numbers"),
    ],
)
def test_invalid_targets_are_refused(kind: Any, y: Any, words: str) -> None:
    model = kind()
    with pytest.raises(ValueError, match=words):
        model.fit([[1.0], [2.0], [3.0]], y)
    with pytest.raises(NotFittedError):
        model.predict([[1.0]])


def test_masked_samples_are_refused() -> None:
    X = np.ma.masked_equal([[1.0], [2.0], [-999.0]], -999)
    with pytest.raises(ValueError, match="X must be there, but 1 are masked; fill them in or leave them out"):
        classifier().fit(X, [0, 1, 0])
    with pytest.raises(ValueError, match="X must be there"):
        fit(classifier(), [[1.0], [2.0]], [0, 1]).predict(X)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba"])
def test_outputs_that_overflow_are_no_prediction(method: str) -> None:
    model = fit(classifier(), *IRIS)
    with pytest.raises(ValueError, match="not finite in float32 for 1 of 2 samples, first for sample 1"):
        getattr(model, method)(np.vstack([IRIS[0][:1], np.full((1, 4), 3.4e38)]))


def test_values_too_large_for_the_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"infinity or a value too large for dtype\('float32'\)"):
        classifier().fit(IRIS[0] * 1e300, IRIS[1])
    fit(classifier(dtype="float64", max_iter=1), IRIS[0] * 1e300, IRIS[1])


# -- Dtypes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["float32", "float64", "float16", "int64", "uint8", "bool", "list", "sparse"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_answers_have_the_dtype_of_scikit_learns(given: str, dtype: str) -> None:
    X = IRIS[0].tolist() if given == "list" else IRIS[0].astype("float32" if given == "sparse" else given)
    if given == "sparse":
        X = scipy.sparse.csr_matrix(X)
    for kind, ways in (
        ("MLPClassifier", ["predict", "predict_proba", "predict_log_proba"]),
        ("MLPRegressor", ["predict"]),
    ):
        mine = fit(getattr(gpumlp.sklearn, kind)(max_iter=1, dtype=dtype, device="cpu"), X, IRIS[1])
        other = fit(getattr(sklearn.neural_network, kind)(max_iter=1), X, IRIS[1])
        for way in ways:
            assert getattr(mine, way)(X).dtype == getattr(other, way)(X).dtype
        assert {array.dtype.name for array in mine.coefs_ + mine.intercepts_} == {dtype}


def test_answers_for_float64_can_be_written_as_json() -> None:
    X, y = IRIS
    model = fit(classifier(early_stopping=True), X, y)
    numbers = [*model.predict_proba(X)[0], model.score(X, y), *model.validation_scores_, model.loss_]
    assert json.loads(json.dumps([*numbers, fit(regressor(), X, y).predict(X)[0]]))[0] == numbers[0]


def test_uint8_is_used_as_numbers() -> None:
    X, y = np.rint(IRIS[0] * 9 + 99).astype(np.uint8), IRIS[1]
    as_pixels, as_numbers = fit(classifier(), X, y), fit(classifier(), X.astype(np.float64), y)
    np.testing.assert_array_equal(as_pixels.predict_proba(X), as_numbers.predict_proba(X.astype(np.float64)))


def test_changing_the_dtype_keeps_the_network_and_the_state_of_its_optimizer() -> None:
    X, y = CANCER
    model = classifier(dtype="float64").partial_fit(X, y, classes=[0, 1])
    expected = copy.deepcopy(model)
    np.testing.assert_allclose(
        model.set_params(dtype="float32").predict_proba(X), expected.predict_proba(X), atol=1e-6
    )
    assert model.coefs_[0].dtype == np.float32
    model.partial_fit(X, y)
    expected.partial_fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-5)
    with pytest.raises(ValueError, match="dtype is expected to be float32 or float64, got float16"):
        model.set_params(dtype="float16").predict(X)


# -- Samples that are no plain array of numbers ----------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr_matrix", "csr_array", "csc_matrix", "coo_array", "lil_matrix"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [classifier, regressor])
def test_sparse_samples_give_what_dense_ones_give(kind: Any, dtype: str, form: str) -> None:
    X, y = load_digits(return_X_y=True)
    X, y, weights = X[:600], y[:600], np.random.default_rng(0).random(600)
    make = getattr(scipy.sparse, form)
    options = {"max_iter": 3, "dtype": dtype, "early_stopping": True}
    dense, sparse = (fit(kind(**options), samples, y, weights) for samples in (X, make(X)))
    assert sparse.validation_loss_curve_ == dense.validation_loss_curve_
    answer = "predict_proba" if kind is classifier else "predict"
    for samples in (X, make(X)):
        np.testing.assert_array_equal(getattr(sparse, answer)(samples), getattr(dense, answer)(X))
    own = fit(kind(**options), make(X), y, X_val=make(X[:50]), y_val=y[:50])
    assert own.validation_scores_[-1] == pytest.approx(own.score(make(X[:50]), y[:50]))


def test_sparse_samples_become_dense_batch_by_batch() -> None:
    X = scipy.sparse.random_array((20_000, 2000), density=1e-3, rng=0, dtype=np.float32, format="csr")
    y, model = np.arange(20_000) % 2, classifier(max_iter=1, early_stopping=True, hidden_layer_sizes=2)
    tracemalloc.start()
    fit(model, X, y).predict(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # as one dense array it would have 160 MB


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_sparse_samples_are_checked(bad: float) -> None:
    with pytest.raises(ValueError, match="Input X contains"):
        classifier().fit(scipy.sparse.csr_matrix([[0, bad], [1, 0]]), [0, 1])


@pytest.mark.parametrize(
    "column",
    [["a", "b", "c"], [None, 1, 2], [{}, 1, 2], [[1], 2, 3], [1j, 2, 3]],
    ids=["letters", "None", "dicts", "lists", "complex"],
)
def test_objects_are_refused_with_scikit_learns_message(column: list[Any]) -> None:
    X = np.array([[value, 1] for value in column], dtype=object)
    for kind in ("MLPClassifier", "MLPRegressor"):
        mine, other = getattr(gpumlp.sklearn, kind)(device="cpu"), getattr(sklearn.neural_network, kind)()
        with pytest.raises((TypeError, ValueError)) as expected:
            other.fit(X, [0, 1, 0])
        with pytest.raises(expected.type, match=re.escape(str(expected.value))):
            mine.fit(X, [0, 1, 0])


# -- Parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parameters", "words"),
    [
        (
            classifier,
            {"solver": "lbfgs"},
            "solver is expected to be 'sgd' or 'adam', got 'lbfgs'; gpumlp",
        ),
        (regressor, {"solver": "lbfgs"}, "gpumlp does not support solver='lbfgs', use sklearn.neural_network"),
        (classifier, {"max_fun": 10}, "max_fun is expected to be 15000 (the default), got 10"),
        (regressor, {"max_fun": 10}, "belongs to solver='lbfgs', which gpumlp does not support"),
        (regressor, {"loss": "gamma"}, "loss is expected to be 'squared_error' or 'poisson', got 'gamma'"),
        (classifier, {"momentum": 1}, "momentum is expected to be a number of at least 0 and below 1, got 1"),
        (classifier, {"alpha": -1, "tol": "a"}, "alpha is .* of 0 or more, got -1.*; tol is .* a number, got 'a'"),
        (classifier, {"alpha": True}, "alpha is expected to be a number"),
        (
            classifier,
            {"hidden_layer_sizes": (3, 0)},
            "hidden_layer_sizes is expected to be a whole number of 1 or more",
        ),
        (classifier, {"hidden_layer_sizes": "a"}, "hidden_layer_sizes is expected to be a whole number"),
        (
            classifier,
            {"activation": "sigmoid"},
            "'logistic' or .*, got 'sigmoid'",
        ),
        (
            classifier,
            {"batch_size": 0},
            "batch_size, if not 'auto', is expected to be a whole number of 1 or more",
        ),
        (classifier, {"learning_rate": 0.1}, "learning_rate is expected to be 'constant' or 'invscaling' or"),
        (classifier, {"max_iter": 2.5}, "max_iter is expected to be a whole number"),
        (classifier, {"shuffle": 1}, "shuffle is expected to be True or False, got 1"),
        (classifier, {"n_iter_no_change": 0}, "n_iter_no_change, if not inf, is expected to be a whole number"),
        (classifier, {"class_weight": "even"}, "class_weight is expected to be None, 'balanced' or a dict"),
        (classifier, {"class_weight": {0: 1, 7: 1}}, r"The classes, \[1, 2\], are not in class_weight"),
        (
            classifier,
            {"class_weight": {0: -1}},
            "class_weight is .* a finite number of 0 or more, got -1 for class 0",
        ),
        (regressor, {"device": "gpu"}, "device is expected to be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        (regressor, {"validation_fraction": float("nan")}, "validation_fraction is expected to be a number"),
        (regressor, {"dtype": "float16"}, "dtype is expected to be float32 or float64, got float16"),
        (classifier, {"dtype": "single float"}, "dtype is expected to be float32 or float64, got 'single float'"),
        (classifier, {"dtype": None}, "dtype is expected to be float32 or float64, got None"),
    ],
)
def test_wrong_and_unsupported_parameters_are_refused_by_fit(kind: Any, parameters: Any, words: str) -> None:
    model = kind(**parameters)
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        model.fit(*IRIS)
    assert not hasattr(model, "coefs_")


def test_numpy_scalars_are_accepted_as_parameters() -> None:
    model = classifier(
        hidden_layer_sizes=np.array([5, 4]), alpha=np.float32(0.1), max_iter=np.int64(3), shuffle=np.True_, tol=0
    )
    assert [w.shape for w in fit(model, *IRIS).coefs_] == [(4, 5), (5, 4), (4, 3)]


def test_a_missing_device_fails_in_fit_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
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
    np.testing.assert_array_equal(np.random.mtrand._rand.get_state()[1], state)  # the global state is unchanged


# -- Weights and validation ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_a_sample_of_weight_0_is_left_out(alpha: float) -> None:
    X, y = IRIS
    weights = np.ones(len(y))
    weights[:30] = 0  # whole batches, some of which are skipped
    options = {"alpha": alpha, "batch_size": 10, "shuffle": False}
    model = classifier(**options).fit(X, y, sample_weight=weights)
    others = classifier(**options).fit(X[30:], y[30:])
    np.testing.assert_allclose(model.loss_curve_[0] * 150, others.loss_curve_[0] * 120, rtol=1e-5)


def test_class_weight_multiplies_the_sample_weights() -> None:
    X, y = CANCER
    given = np.random.default_rng(0).random(len(y))
    by_class = fit(classifier(class_weight={0: 3.0, 1: 0.5}), X, y, given)
    by_sample = fit(classifier(), X, y, given * np.where(y == 0, 3.0, 0.5))
    np.testing.assert_array_equal(by_class.coefs_[0], by_sample.coefs_[0])
    balanced = fit(classifier(class_weight="balanced"), X, y)
    counts = np.bincount(y)
    by_hand = fit(classifier(class_weight={0: len(y) / 2 / counts[0], 1: len(y) / 2 / counts[1]}), X, y)
    np.testing.assert_array_equal(balanced.coefs_[0], by_hand.coefs_[0])
    again = fit(balanced, X[:300], y[:300])  # recomputed from the new targets
    np.testing.assert_array_equal(again.coefs_[0], fit(clone(balanced), X[:300], y[:300]).coefs_[0])
    assert fit(classifier(class_weight={0: 1e4, 1: 1e-4}, max_iter=200), X, y).predict(X).mean() < 0.1


@pytest.mark.parametrize("names", [[0, 1], [1.0, 2.0], ["b", "m"], [False, True]], ids=str)
def test_class_weight_names_classes_as_in_scikit_learn(names: list[Any]) -> None:
    X, y = CANCER[0], np.array(names)[CANCER[1]]
    expected = fit(classifier(class_weight={0: 3.0}), *CANCER).coefs_[0]
    whole = [int(name) if isinstance(name, float) else name for name in names]
    for weights in ({whole[0]: 3.0}, {whole[0]: 3, whole[1]: np.float32(1), "another": 5}):
        np.testing.assert_array_equal(fit(classifier(class_weight=weights), X, y).coefs_[0], expected)
    with pytest.raises(ValueError, match=r"The classes, \[.*\], are not in class_weight"):
        classifier(class_weight={whole[0]: 3.0, "another": 5}).fit(X, y)


def test_equal_weights_change_nothing_and_a_batch_of_zero_weights_is_skipped() -> None:
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
        ([1.0, 2.0], r"numbers of shape \(150,\), got shape \(2,\)"),
        (-np.ones(150), r"0 or more, but weights\[0\] is -1"),
        (np.zeros(150), "a value above 0, but all are zero"),
        (np.full(150, np.nan), "finite, but 150 of 150 values are NaN"),
        (np.ones((150, 1)), r"numbers of shape \(150,\), got shape \(150, 1\)"),
    ],
)
def test_invalid_sample_weights_are_refused(weights: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^sample_weight: weights must .*{words}"):
        classifier().fit(*IRIS, weights)


@pytest.mark.parametrize("kind", [classifier, regressor])
def test_given_validation_samples_do_not_change_training(kind: Any) -> None:
    X, y = CANCER
    plain = fit(kind(), X[:400], y[:400])
    model = fit(kind(), X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    assert model.loss_curve_ == plain.loss_curve_
    np.testing.assert_array_equal(model.coefs_[0], plain.coefs_[0])
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == model.n_iter_
    assert model.validation_scores_[-1] == pytest.approx(model.score(X[400:], y[400:]), rel=1e-5)
    assert model.best_validation_score_ == max(model.validation_scores_)
    if kind is regressor:
        expected = 0.5 * np.mean((model.predict(X[400:]) - y[400:]) ** 2)
    else:
        expected = -model.predict_log_proba(X[400:])[np.arange(169), y[400:]].mean()
    assert model.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-5)


def test_given_validation_samples_decide_early_stopping() -> None:
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
        ({"X_val": IRIS[0], "y_val": IRIS[1], "sample_weight_val": np.zeros(150)}, "sample_weight_val: .* zero"),
    ],
)
def test_an_incomplete_validation_set_is_refused(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classifier().fit(*IRIS, **options)


# -- Stopping ----------------------------------------------------------------------------------------------


def test_reaching_max_iter_warns() -> None:
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached") as caught:
        classifier(max_iter=2).fit(*IRIS)
    assert caught[0].filename == __file__


def test_training_stops_when_the_loss_stops_improving() -> None:
    model = classifier(tol=0.5, max_iter=1000, n_iter_no_change=3).fit(*IRIS)
    assert model.n_iter_ == len(model.loss_curve_) < 20
    assert model.best_loss_ == min(model.loss_curve_)
    assert model.validation_scores_ is model.best_validation_score_ is model.validation_loss_curve_ is None
    endless = fit(classifier(tol=1e9, max_iter=30, n_iter_no_change=np.inf), *IRIS)
    assert endless.n_iter_ == 30


def test_early_stopping_keeps_the_best_weights() -> None:
    X, y = CANCER
    model = classifier(early_stopping=True, max_iter=300, learning_rate_init=0.1, tol=0).fit(X, y)
    assert model.best_loss_ is None
    assert len(model.validation_scores_) == len(model.validation_loss_curve_) == model.n_iter_ < 300
    assert model.best_validation_score_ == max(model.validation_scores_)
    best = model.validation_scores_.index(model.best_validation_score_)
    again = fit(classifier(early_stopping=True, max_iter=best + 1, learning_rate_init=0.1, tol=0), X, y)
    np.testing.assert_array_equal(again.coefs_[0], model.coefs_[0])
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        model.partial_fit(X, y)


def test_a_warm_start_that_gets_worse_keeps_the_best_weights_of_the_fit_before() -> None:
    # scikit-learn keeps the last weights here: its best ones are the same arrays and are overwritten.
    model = fit(classifier(early_stopping=True, warm_start=True, learning_rate_init=0.01), *CANCER)
    best, before = model.best_validation_score_, model.predict_proba(CANCER[0])
    fit(model.set_params(learning_rate_init=10.0, max_iter=2), *CANCER)
    assert model.best_validation_score_ == best > model.validation_scores_[-1]
    np.testing.assert_array_equal(model.predict_proba(CANCER[0]), before)


def test_too_few_samples_to_hold_out() -> None:
    with pytest.raises(ValueError, match=r"least populated class(es)? in y ha(s|ve) only 1 member"):
        classifier(early_stopping=True).fit(np.ones((4, 2)), ["a", "a", "a", "b"])
    with pytest.raises(ValueError, match="The validation set is too small"):
        regressor(early_stopping=True).fit([[1.0], [2.0]], [1.0, 2.0])


@pytest.mark.parametrize("partial", [False, True])
def test_divergence_leaves_nothing_behind(partial: bool) -> None:
    X, y = np.random.default_rng(0).normal(size=(50, 3)) * 1e4, np.arange(50.0)
    model = regressor(solver="sgd", learning_rate_init=10.0)
    with pytest.raises(ValueError, match=r"non-finite parameter weights.*scale the features"):
        model.partial_fit(X, y).partial_fit(X, y).partial_fit(X, y) if partial else model.fit(X, y)
    if partial:
        assert all(np.isfinite(weight).all() for weight in model.coefs_)
        assert np.isfinite(model.loss_curve_).all()
    else:
        with pytest.raises(NotFittedError):
            model.predict(X)


def test_a_refused_fit_leaves_no_mixture_of_two_fits() -> None:
    model = fit(classifier(), *IRIS)
    with pytest.raises(ValueError, match="alpha is expected"):
        model.set_params(alpha=-1).fit(*CANCER)
    assert model.score(*IRIS) > 0.5
    with pytest.raises(ValueError, match="all are zero"):
        model.set_params(alpha=0).fit(*CANCER, sample_weight=np.zeros(569))
    with pytest.raises(NotFittedError):
        model.predict(IRIS[0])
    continued = classifier().partial_fit(*IRIS, classes=[0, 1, 2])
    before = continued.predict_proba(IRIS[0])
    with pytest.raises(ValueError, match="all are zero"):
        continued.partial_fit(*IRIS, sample_weight=np.zeros(150))
    np.testing.assert_array_equal(continued.predict_proba(IRIS[0]), before)
    assert len(continued.loss_curve_) == 1


def test_diverging_with_early_stopping_keeps_the_best() -> None:
    X, y = IRIS
    model = regressor(
        solver="sgd", activation="identity", learning_rate_init=1, early_stopping=True, hidden_layer_sizes=100
    )
    with pytest.warns(ConvergenceWarning, match="Training diverged in epoch"):
        model.fit(X, y)
    assert np.isnan(model.validation_scores_[-1])
    assert np.isfinite(model.predict(X)).all()


def test_an_interrupt_keeps_the_finished_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    run_epoch, calls = Epochs.run, []

    def interrupted(self: Epochs, *arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_epoch(self, *arguments)

    monkeypatch.setattr(Epochs, "run", interrupted)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model = classifier().fit(*IRIS)
    assert model.n_iter_ == 2
    assert model.predict(IRIS[0]).shape == (150,)
    calls[:] = [0, 0]
    with pytest.raises(KeyboardInterrupt):
        classifier().fit(*IRIS)


# -- Continuing and saving ----------------------------------------------------------------------------------


def test_partial_fit_needs_the_classes_once() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model.partial_fit([[1.0]], ["a"])
    model.partial_fit([[1.0], [2.0], [3.0]], ["a", "b", "c"], classes=["a", "b", "c", "d"])
    model.partial_fit([[4.0]], ["d"])
    assert list(model.classes_) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="is not the same as on last call"):
        model.partial_fit([[1.0]], ["a"], classes=["a", "b"])
    with pytest.raises(ValueError, match=r"`y` has classes not in `self.classes_`"):
        model.partial_fit([[1.0]], ["e"])
    with pytest.raises(ValueError, match="class_weight='balanced' cannot be computed from a part"):
        classifier(class_weight="balanced").partial_fit([[1.0]], ["a"], classes=["a", "b"])


def test_warm_start_needs_the_same_problem() -> None:
    model = fit(classifier(warm_start=True), *IRIS)
    with pytest.raises(ValueError, match="warm_start can only be used where `y` has the same classes"):
        model.fit(IRIS[0], np.minimum(IRIS[1], 1))
    with pytest.raises(ValueError, match="expected the hidden layers trained so far"):
        model.set_params(hidden_layer_sizes=(8,)).fit(*IRIS)
    with pytest.raises(ValueError, match="expected the loss squared_error trained with so far, got 'poisson'"):
        fit(regressor(warm_start=True), *IRIS).set_params(loss="poisson").fit(*IRIS)
    cold = fit(classifier(), *IRIS)
    fit(cold.set_params(hidden_layer_sizes=(8,)), IRIS[0], np.minimum(IRIS[1], 1))
    assert cold.coefs_[0].shape == (4, 8)
    assert cold.coefs_[1].shape == (8, 1)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("way", ["pickle", "joblib", "mapped", "deepcopy"])
def test_a_saved_estimator_predicts_and_continues_identically(way: str, solver: str, tmp_path: Path) -> None:
    X, y = IRIS
    model = classifier(solver=solver)
    for _ in range(3):
        model.partial_fit(X, y, classes=[0, 1, 2])
    if way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "deepcopy":
        other = copy.deepcopy(model)
    else:
        joblib.dump(model, tmp_path / "model.joblib")
        other = joblib.load(tmp_path / "model.joblib", mmap_mode="r" if way == "mapped" else None)
    np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))
    for estimator in (model, other):
        estimator.partial_fit(X, y)
    np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))
    assert other.loss_curve_ == model.loss_curve_


def test_an_estimator_fitted_on_a_gpu_is_read_on_a_cpu() -> None:
    model = fit(classifier(), *IRIS)
    expected, model.device = model.predict(IRIS[0]), "cuda"
    read = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(read.set_params(device="cpu").predict(IRIS[0]), expected)


@pytest.mark.parametrize("how", ["in place", "one array", "all arrays", "after reading"])
def test_changed_weights_are_used(how: str) -> None:
    X, y = CANCER
    model = fit(classifier(), X, y)
    if how == "after reading":
        model = pickle.loads(pickle.dumps(model))
        model.predict(X)
    rng = np.random.default_rng(0)
    new = [rng.normal(size=weight.shape) for weight in model.coefs_]
    if how == "all arrays":
        model.coefs_ = new
    else:
        for index, weight in enumerate(new):
            if how == "one array":
                model.coefs_[index] = weight
            else:
                model.coefs_[index][...] = weight
    hidden = np.maximum(X @ new[0] + model.intercepts_[0], 0)
    expected = 1 / (1 + np.exp(-(hidden @ new[1] + model.intercepts_[1])))
    np.testing.assert_allclose(model.predict_proba(X)[:, 1:], expected, rtol=1e-3, atol=1e-5)
    assert model.coefs_[0].dtype == np.float32
    model.partial_fit(X, y)
    assert not np.array_equal(model.coefs_[0], new[0].astype(np.float32))
    model.coefs_[0] = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"layers.0.weight is expected to have shape \(30, 16\), got \(3, 3\)"):
        model.predict(X)


def test_a_prediction_does_not_depend_on_the_other_samples() -> None:
    X, y = load_digits(return_X_y=True)
    model = fit(classifier(max_iter=5), X, y)
    together = model.predict_proba(X)
    rounding = 0.0 if all(rows_are_computed_identically(weight) for weight in model.coefs_) else 1e-6
    for rows in ([5], range(3, 40), range(600), np.random.default_rng(0).permutation(len(X))):
        np.testing.assert_allclose(model.predict_proba(X[rows]), together[rows], rtol=0, atol=rounding)


def rows_are_computed_identically(weight: np.ndarray) -> bool:
    """Does NumPy's BLAS compute a row of a product in the same way at every place?"""
    x = np.random.default_rng(0).random((ROWS, len(weight)), dtype=np.float32)
    return all(
        np.array_equal(np.roll(x, by, axis=0) @ weight, np.roll(x @ weight, by, axis=0)) for by in range(1, 9)
    )


def test_the_arguments_of_fit_are_not_written_to() -> None:
    X, y, weights = IRIS[0].astype(np.float32), IRIS[1].astype(np.int64), np.ones(150)
    before = X.copy(), y.copy(), weights.copy()
    for array in (X, y, weights):
        array.flags.writeable = False
    fit(classifier(early_stopping=True, class_weight="balanced"), X, y, weights).predict(X)
    for array, kept in zip((X, y, weights), before, strict=True):
        np.testing.assert_array_equal(array, kept)


# -- Memory maps ----------------------------------------------------------------------------------------------


def mapped(path: Path, X: np.ndarray) -> np.ndarray:
    """The array as a memory map of a file."""
    np.save(path, X)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_a_memory_map_gives_the_results_of_the_array(tmp_path: Path, dtype: str, order: str) -> None:
    X, y = load_digits(return_X_y=True)
    X = np.asarray(X, dtype, order=order)
    options = {"early_stopping": True, "class_weight": "balanced"}
    for estimator, targets in ((classifier(**options), y), (regressor(), y / 10)):
        memory, file = (
            fit(clone(estimator), X, targets),
            fit(clone(estimator), mapped(tmp_path / "X.npy", X), targets),
        )
        for one, other in zip(memory.coefs_, file.coefs_, strict=True):
            assert (one == other).all()
        assert file.n_iter_ == memory.n_iter_
        assert (file.predict(mapped(tmp_path / "X.npy", X)) == memory.predict(X)).all()


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_a_memory_map_is_not_copied_as_a_whole(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    X = mapped(tmp_path / "X.npy", rng.integers(0, 2, (20_000, 500)).astype(dtype))
    y = rng.integers(0, 2, len(X))
    model = classifier(hidden_layer_sizes=8, max_iter=1)
    tracemalloc.start()
    fit(model, X, y)
    model.predict(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.size  # a quarter of the array as float32


def test_a_value_of_a_memory_map_that_is_too_large_is_refused(tmp_path: Path) -> None:
    X, y = CANCER[0].copy(), CANCER[1]
    for value in (1e300, np.nan, -np.inf):
        X[500, 3] = value
        with pytest.raises(ValueError, match="Input X contains"):
            fit(classifier(), mapped(tmp_path / "X.npy", X), y)
