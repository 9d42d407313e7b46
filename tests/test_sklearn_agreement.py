"""Agreement with scikit-learn: its estimator checks, and the same run from the same random_state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install ".[sklearn]"')

import sklearn.neural_network as theirs
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    make_multilabel_classification,
)
from sklearn.preprocessing import scale
from sklearn.utils.estimator_checks import parametrize_with_checks

import gpumlp.sklearn as ours

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

EPOCHS = 20

ROUNDING = {
    f"check_sample_weight_equivalence_on_{kind}_data": "weighted and repeated samples differ by float32's rounding"
    for kind in ("dense", "sparse")
}


@parametrize_with_checks(
    [
        kind(device="cpu", dtype=dtype)
        for kind in (ours.MLPClassifier, ours.MLPRegressor)
        for dtype in ("float32", "float64")
    ],
    expected_failed_checks=lambda estimator: ROUNDING if estimator.dtype == "float32" else {},
)
def test_estimator_check(estimator: Any, check: Any) -> None:
    check(estimator)


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return X[:1000] / 16, y[:1000]
    if name == "all digits":
        X, y = load_digits(return_X_y=True)
        return X / 16, y
    if "count" in name:
        X, y = load_diabetes(return_X_y=True)
        counts = np.random.default_rng(0).poisson(y / 100)
        return scale(X), np.stack([counts, counts // 2], axis=1) if name == "two counts" else counts
    if name == "labels":
        return make_multilabel_classification(n_samples=300, random_state=0)
    if name == "two values":
        X, y = load_diabetes(return_X_y=True)
        return scale(X), np.stack([y, X[:, 2]], axis=1) / 100
    load = {"cancer": load_breast_cancer, "iris": load_iris, "diabetes": load_diabetes}[name]
    X, y = load(return_X_y=True)
    return scale(X), y / 100 if name == "diabetes" else y


SGD = {"solver": "sgd", "learning_rate_init": 0.1}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "softmax": ("MLPClassifier", "digits", {}),
    "no hidden layer": ("MLPClassifier", "digits", {"hidden_layer_sizes": ()}),
    "two hidden layers": ("MLPClassifier", "digits", {"hidden_layer_sizes": (30, 20), "activation": "tanh"}),
    "logistic units": ("MLPClassifier", "digits", {"activation": "logistic"}),
    "identity units": ("MLPClassifier", "digits", {"activation": "identity", "hidden_layer_sizes": 9}),
    "Adam's constants": ("MLPClassifier", "digits", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}),
    "a large penalty": ("MLPClassifier", "digits", {"alpha": 10.0, "batch_size": 64}),
    "a batch split into parts": ("MLPClassifier", "all digits", {"batch_size": 1500}),
    "no penalty": ("MLPClassifier", "digits", {"alpha": 0}),
    "two classes": ("MLPClassifier", "cancer", {"batch_size": 32}),
    "labels": ("MLPClassifier", "labels", {"learning_rate_init": 0.01}),
    "in the order given": ("MLPClassifier", "cancer", {"shuffle": False}),
    "sgd": ("MLPClassifier", "cancer", SGD),
    "momentum without Nesterov": ("MLPClassifier", "digits", SGD | {"nesterovs_momentum": False}),
    "no momentum": ("MLPClassifier", "digits", SGD | {"momentum": 0}),
    "no momentum, no penalty": ("MLPClassifier", "digits", SGD | {"momentum": 0, "alpha": 0}),
    "invscaling": ("MLPClassifier", "digits", SGD | {"learning_rate": "invscaling", "power_t": 0.1}),
    "adaptive, down to the smallest rate": (
        "MLPClassifier", "iris", SGD | {"learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1}
    ),
    "early stopping": ("MLPClassifier", "iris", {"early_stopping": True, "validation_fraction": 0.2}),
    "early stopping, two classes": ("MLPClassifier", "cancer", {"early_stopping": True}),
    "a value": ("MLPRegressor", "diabetes", {}),
    "two values": ("MLPRegressor", "two values", SGD | {"learning_rate_init": 0.01, "alpha": 1.0}),
    "counts": ("MLPRegressor", "counts", {"loss": "poisson"}),
    "two counts": ("MLPRegressor", "two counts", {"loss": "poisson", "early_stopping": True}),
    "a value, early stopping": ("MLPRegressor", "diabetes", {"early_stopping": True, "learning_rate_init": 0.01}),
}  # fmt: skip


def fitted(kind: str, name: str, options: dict[str, Any], weights: bool, dtype: str) -> tuple[Any, Any]:
    X, y = data(name)
    extra = {"sample_weight": np.random.default_rng(0).random(len(X)) * 3} if weights else {}
    options = {"random_state": 3, "max_iter": EPOCHS, **options}
    mine = getattr(ours, kind)(device="cpu", dtype=dtype, **options)
    other = getattr(theirs, kind)(**options)
    return mine.fit(X, y, **extra), other.fit(X, y, **extra)


@pytest.mark.parametrize("weights", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_in_float64_is_scikit_learns(case: tuple[str, str, dict[str, Any]], weights: bool) -> None:
    mine, other = fitted(*case, weights, "float64")
    assert mine.n_iter_ == other.n_iter_
    np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=1e-10)
    if other.validation_scores_ is not None:
        np.testing.assert_allclose(mine.validation_scores_, other.validation_scores_, rtol=1e-10)
        assert mine.best_validation_score_ == pytest.approx(other.best_validation_score_, rel=1e-10)
    else:
        assert mine.best_loss_ == pytest.approx(other.best_loss_, rel=1e-10)
    assert [w.shape for w in mine.coefs_] == [w.shape for w in other.coefs_]
    for one, two in zip(mine.coefs_ + mine.intercepts_, other.coefs_ + other.intercepts_, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)
    for name in ("t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(mine, name) == getattr(other, name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses_in_float32_agree_to_1e_5(case: tuple[str, str, dict[str, Any]]) -> None:
    mine, other = fitted(*case, weights=False, dtype="float32")
    assert mine.n_iter_ == other.n_iter_ <= EPOCHS
    assert all(weight.dtype == np.float32 for weight in mine.coefs_ + mine.intercepts_)
    np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, SGD, SGD | {"learning_rate": "invscaling"}], ids=["adam", "sgd", "falling"]
)
def test_partial_fit_continues_as_in_scikit_learn(options: dict[str, Any]) -> None:
    X, y = data("iris")
    mine = ours.MLPClassifier(random_state=0, device="cpu", dtype="float64", **options)
    other = theirs.MLPClassifier(random_state=0, **options)
    for epoch in range(6):
        rows = slice(0, 100) if epoch % 2 else slice(50, 150)
        for estimator in (mine, other):
            estimator.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=1e-10)
    assert (mine.n_iter_, mine.t_) == (other.n_iter_, other.t_) == (1, 600)
    np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), rtol=1e-7)
    np.testing.assert_allclose(mine.predict_log_proba(X), other.predict_log_proba(X), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "classes", [[0, 1, np.nan], [0, 1, np.inf], [0, 1, None], [0, 0.5, 1], [0, "a"], ["a", "b", np.nan]]
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_partial_fit_refuses_the_classes_that_scikit_learn_refuses(classes: list[Any]) -> None:
    messages = set()
    for estimator in (ours.MLPClassifier(device="cpu"), theirs.MLPClassifier()):
        with pytest.raises(ValueError, match=r".") as error:
            estimator.partial_fit([[0.0], [1.0]], classes[:2], classes=classes)
        messages.add(str(error.value))
    assert len(messages) == 1


@pytest.mark.parametrize("early_stopping", [False, True])
def test_warm_start_continues_as_in_scikit_learn(early_stopping: bool) -> None:
    X, y = data("cancer")
    options = {"random_state": 0, "warm_start": True, "max_iter": 4, "early_stopping": early_stopping}
    mine = ours.MLPClassifier(device="cpu", dtype="float64", **options)
    other = theirs.MLPClassifier(**options)
    for epochs, rate in ((4, 0.01), (2, 1e-4)):
        for estimator in (mine, other):
            estimator.set_params(max_iter=epochs, learning_rate_init=rate).fit(X, y)
    assert len(mine.loss_curve_) == 6
    assert mine.n_iter_ == other.n_iter_ == 2
    np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=1e-10)
    assert mine.validation_scores_ == other.validation_scores_
    np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), atol=1e-9)


def test_parameters_and_defaults_are_scikit_learns() -> None:
    for kind, own in (
        ("MLPClassifier", {"device", "dtype", "class_weight"}),
        ("MLPRegressor", {"device", "dtype"}),
    ):
        mine, other = getattr(ours, kind)().get_params(), getattr(theirs, kind)().get_params()
        assert set(mine) - set(other) == own
        assert {name: mine[name] for name in other} == other


def test_verbose_output_is_scikit_learns(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = data("iris")
    printed = []
    options = {"random_state": 1, "max_iter": 60, "early_stopping": True, "n_iter_no_change": 2, "verbose": True}
    for estimator in (ours.MLPClassifier(device="cpu", **options), theirs.MLPClassifier(**options)):
        estimator.fit(X, y)
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0][-1] == printed[1][-1]
    assert "Validation score did not improve more than tol=0.000100 for 2 consecutive" in printed[0][-1]
    words = [[line.rstrip("0123456789") for line in lines] for lines in printed]
    assert words[0] == words[1]
