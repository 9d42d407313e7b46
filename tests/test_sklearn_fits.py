"""How fits of estimators end, and how they go on: stopping, diverging, saving, warm starts, changed weights."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install '.[sklearn]'")

import joblib
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from gpumlp.sklearn.solver import ROWS
from tests.sklearn_helpers import CANCER, IRIS, classifier, fit, regressor

# -- How it ends -------------------------------------------------------------------------------------------


def test_it_says_so_where_it_ends_too_early() -> None:
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached") as caught:
        classifier(max_iter=2).fit(*IRIS)
    assert caught[0].filename == __file__


def test_it_ends_where_nothing_improves() -> None:
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


def test_a_warm_start_that_spoils_the_network_leaves_the_best_of_the_fit_before() -> None:
    # scikit-learn's keeps the last weights here: the best ones are the same arrays, and are overwritten.
    model = fit(classifier(early_stopping=True, warm_start=True, learning_rate_init=0.01), *CANCER)
    best, before = model.best_validation_score_, model.predict_proba(CANCER[0])
    fit(model.set_params(learning_rate_init=10.0, max_iter=2), *CANCER)
    assert model.best_validation_score_ == best > model.validation_scores_[-1]
    np.testing.assert_array_equal(model.predict_proba(CANCER[0]), before)


def test_too_few_to_hold_out() -> None:
    with pytest.raises(ValueError, match=r"least populated classes in y have only 1 member.*\['b'\]"):
        classifier(early_stopping=True).fit(np.ones((4, 2)), ["a", "a", "a", "b"])
    with pytest.raises(ValueError, match="The validation set is too small"):
        regressor(early_stopping=True).fit([[1.0], [2.0]], [1.0, 2.0])


@pytest.mark.parametrize("partial", [False, True])
def test_a_diverging_training_leaves_nothing_behind(partial: bool) -> None:
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


def test_a_refused_fit_leaves_no_half_of_two_trainings() -> None:
    model = fit(classifier(), *IRIS)
    with pytest.raises(ValueError, match="alpha: expected"):
        model.set_params(alpha=-1).fit(*CANCER)
    assert model.score(*IRIS) > 0.5  # nothing was begun
    with pytest.raises(ValueError, match="all weights are zero"):
        model.set_params(alpha=0).fit(*CANCER, sample_weight=np.zeros(569))
    with pytest.raises(NotFittedError):
        model.predict(IRIS[0])
    going_on = classifier().partial_fit(*IRIS, classes=[0, 1, 2])
    before = going_on.predict_proba(IRIS[0])
    with pytest.raises(ValueError, match="all weights are zero"):
        going_on.partial_fit(*IRIS, sample_weight=np.zeros(150))
    np.testing.assert_array_equal(going_on.predict_proba(IRIS[0]), before)
    assert len(going_on.loss_curve_) == 1


def test_diverging_with_early_stopping_keeps_the_best() -> None:
    X, y = IRIS
    model = regressor(
        solver="sgd", activation="identity", learning_rate_init=1, early_stopping=True, hidden_layer_sizes=100
    )
    with pytest.warns(ConvergenceWarning, match="Training diverged in epoch"):
        model.fit(X, y)
    assert np.isnan(model.validation_scores_[-1])
    assert np.isfinite(model.predict(X)).all()


def test_an_interrupt_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpumlp.sklearn.solver import Epochs

    really_run, calls = Epochs.run, []

    def interrupted(self: Epochs, random: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return really_run(self, random)

    monkeypatch.setattr(Epochs, "run", interrupted)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model = classifier().fit(*IRIS)
    assert model.n_iter_ == 2
    assert model.predict(IRIS[0]).shape == (150,)
    calls[:] = [0, 0]
    with pytest.raises(KeyboardInterrupt):
        classifier().fit(*IRIS)


# -- Going on ----------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="class_weight='balanced' is not known from a part"):
        classifier(class_weight="balanced").partial_fit([[1.0]], ["a"], classes=["a", "b"])


def test_warm_start_needs_the_same_problem() -> None:
    model = fit(classifier(warm_start=True), *IRIS)
    with pytest.raises(ValueError, match="warm_start can only be used where `y` has the same classes"):
        model.fit(IRIS[0], np.minimum(IRIS[1], 1))
    with pytest.raises(ValueError, match="expected the hidden layers that were trained so far"):
        model.set_params(hidden_layer_sizes=(8,)).fit(*IRIS)
    cold = fit(classifier(), *IRIS)
    fit(cold.set_params(hidden_layer_sizes=(8,)), IRIS[0], np.minimum(IRIS[1], 1))
    assert cold.coefs_[0].shape == (4, 8)
    assert cold.coefs_[1].shape == (8, 1)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("way", ["pickle", "joblib", "mapped", "deepcopy"])
def test_what_was_saved_predicts_and_goes_on_alike(way: str, solver: str, tmp_path: Path) -> None:
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


def test_fitted_on_a_gpu_read_on_a_cpu() -> None:
    model = fit(classifier(), *IRIS)
    expected, model.device = model.predict(IRIS[0]), "cuda"
    read = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(read.set_params(device="cpu").predict(IRIS[0]), expected)


@pytest.mark.parametrize("how", ["in place", "one array", "all arrays", "after reading"])
def test_weights_that_are_changed_count(how: str) -> None:
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


def test_a_sample_has_one_answer_whatever_comes_with_it() -> None:
    X, y = load_digits(return_X_y=True)
    model = fit(classifier(max_iter=5), X, y)
    together = model.predict_proba(X)
    rounding = 0.0 if all(rows_are_computed_alike(weight) for weight in model.coefs_) else 1e-6
    for rows in ([5], range(3, 40), range(600), np.random.default_rng(0).permutation(len(X))):
        np.testing.assert_allclose(model.predict_proba(X[rows]), together[rows], rtol=0, atol=rounding)


def rows_are_computed_alike(weight: np.ndarray) -> bool:
    """Does NumPy's BLAS compute a row of a product alike, wherever the row stands?"""
    x = np.random.default_rng(0).random((ROWS, len(weight)), dtype=np.float32)
    return all(
        np.array_equal(np.roll(x, by, axis=0) @ weight, np.roll(x @ weight, by, axis=0)) for by in range(1, 9)
    )


def test_nothing_is_written_into_what_came_in() -> None:
    X, y, weights = IRIS[0].astype(np.float32), IRIS[1].astype(np.int64), np.ones(150)
    before = X.copy(), y.copy(), weights.copy()
    for array in (X, y, weights):
        array.flags.writeable = False
    fit(classifier(early_stopping=True, class_weight="balanced"), X, y, weights).predict(X)
    for array, kept in zip((X, y, weights), before, strict=True):
        np.testing.assert_array_equal(array, kept)
