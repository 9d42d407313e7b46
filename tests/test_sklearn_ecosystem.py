"""The estimators in scikit-learn's tools, with data frames, with callbacks and on other devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install ".[sklearn]"')

import scipy.sparse
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpumlp.sklearn import MLPClassifier, MLPRegressor
from tests.strict_device import StrictArray, StrictBackend

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_breast_cancer(return_X_y=True)
Z = StandardScaler().fit_transform(X)


def classifier(**options: Any) -> MLPClassifier:
    model = MLPClassifier((16,), random_state=0, max_iter=30, learning_rate_init=0.01, device="cpu")
    return model.set_params(**options)


def regressor(**options: Any) -> MLPRegressor:
    model = MLPRegressor(hidden_layer_sizes=16, random_state=0, max_iter=30, learning_rate_init=0.01, device="cpu")
    return model.set_params(**options)


def test_pipeline_clone_and_cross_validation() -> None:
    pipeline = make_pipeline(StandardScaler(), classifier(max_iter=60))
    scores = cross_val_score(clone(pipeline), X, Y, cv=3)
    assert scores.min() > 0.94
    assert is_classifier(pipeline)
    assert is_regressor(MLPRegressor())
    np.testing.assert_array_equal(cross_val_score(pipeline, X, Y, cv=3), scores)


def test_grid_search_in_two_processes() -> None:
    grid = {"max_iter": [2, 5], "solver": ["adam", "sgd"]}
    search = GridSearchCV(classifier(), grid, n_jobs=2, cv=2).fit(Z, Y)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.score(Z, Y) > 0.5


def test_grid_search_reports_a_failing_candidate() -> None:
    search = GridSearchCV(classifier(), {"solver": ["adam", "lbfgs"]}, cv=2, error_score="raise")
    with pytest.raises(ValueError, match="gpumlp does not support solver='lbfgs'"):
        search.fit(Z, Y)


def test_calibration() -> None:
    model = CalibratedClassifierCV(classifier(), cv=2).fit(Z, Y, sample_weight=np.ones(len(Y)))
    assert model.score(Z, Y) > 0.94


def test_permutation_importance() -> None:
    importances = permutation_importance(regressor().fit(Z[:, :3], Z[:, 0]), Z[:, :3], Z[:, 0], random_state=0)
    assert importances.importances_mean.argmax() == 0


def test_scaled_targets() -> None:
    features, values = load_diabetes(return_X_y=True)
    model = make_pipeline(StandardScaler(), regressor(max_iter=100))
    wrapped = TransformedTargetRegressor(model, transformer=StandardScaler())
    assert wrapped.fit(features, 1e9 * values).score(features, 1e9 * values) > 0.5


def test_frames_and_set_output() -> None:
    pandas = pytest.importorskip("pandas", reason='pandas is not installed: pip install ".[test]"')
    frame = pandas.DataFrame(X, columns=[f"f{index}" for index in range(X.shape[1])])
    labels = pandas.Series(np.where(Y, "benign", "malignant"), name="kind")
    pipeline = make_pipeline(StandardScaler(), classifier(early_stopping=True)).set_output(transform="pandas")
    model = pipeline.fit(frame, labels)[-1]
    assert model.predict_proba(frame.astype("float32")).dtype == np.float32
    assert model.predict_proba(frame).dtype == np.float64
    assert list(model.feature_names_in_) == list(frame.columns)
    assert set(pipeline.predict(frame)) == {"benign", "malignant"}
    alone = classifier().fit(frame, labels, sample_weight=pandas.Series(np.ones(len(Y))))
    np.testing.assert_array_equal(alone.predict_proba(frame), classifier().fit(X, labels).predict_proba(X))
    with pytest.raises(ValueError, match="feature names should match"):
        alone.predict(frame[frame.columns[::-1]])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        alone.predict(X)


def test_a_pipeline_transforms_the_validation_set() -> None:
    with config_context(enable_metadata_routing=True):
        model = classifier(early_stopping=True, max_iter=100).set_fit_request(X_val=True, y_val=True)
        pipeline = make_pipeline(StandardScaler(), model, transform_input=["X_val"])
        pipeline.fit(X[:400], Y[:400], X_val=X[400:], y_val=Y[400:])
    assert pipeline[-1].best_validation_score_ == pipeline.score(X[400:], Y[400:]) > 0.94


# -- scikit-learn's callbacks --------------------------------------------------------------------------------


def test_scikit_learns_callbacks() -> None:
    callbacks = pytest.importorskip("sklearn.callback", reason="this scikit-learn has no callbacks")

    class Watch:
        def __init__(self, stop_after: int | None = None) -> None:
            self.stop_after = stop_after
            self.tasks: list[tuple[str, str]] = []
            self.scores: list[float] = []

        def setup(self, estimator: Any, context: Any) -> None:
            self.tasks.append(("setup", context.task_name))

        def teardown(self, estimator: Any, context: Any) -> None:
            self.tasks.append(("teardown", context.task_name))

        def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
            self.tasks.append(("begin", context.task_name))

        def on_fit_task_end(
            self, estimator: Any, context: Any, *, X: Any, y: Any, metadata: Any, fitted_estimator: Any
        ) -> bool:
            self.tasks.append(("end", context.task_name))
            assert metadata is None or set(metadata) == {"sample_weight"}
            self.scores.append(fitted_estimator.score(X, y))
            return self.stop_after is not None and context.task_id + 1 == self.stop_after

    watch = Watch()
    model = classifier(max_iter=3).set_callbacks(watch).fit(Z, Y)
    epochs = [("begin", "epoch"), ("end", "epoch")] * 3
    assert watch.tasks == [("setup", "fit"), ("begin", "fit"), *epochs, ("end", "fit"), ("teardown", "fit")]
    assert watch.scores[-1] == watch.scores[-2] == model.score(Z, Y)
    assert len(set(watch.scores)) > 1
    assert model.loss_curve_ == classifier(max_iter=3).fit(Z, Y).loss_curve_
    stopping = Watch(stop_after=2)
    assert classifier().set_callbacks(stopping).fit(Z, Y, np.ones(len(Y))).n_iter_ == 2
    monitor = callbacks.ScoringMonitor(scoring="accuracy")
    search = GridSearchCV(classifier(max_iter=3).set_callbacks(monitor), {"alpha": [0.0, 1.0]}, cv=2).fit(Z, Y)
    assert search.best_score_ > 0.5
    logs = monitor.get_logs()
    rows = [row for log in (logs if isinstance(logs, list) else [logs]) for row in log.data]
    assert len([row for row in rows if row["task_name"] == "epoch"]) == 3 * (2 * 2 + 1)


# -- Devices -------------------------------------------------------------------------------------------------


def device_array(backend: StrictBackend, array: np.ndarray) -> StrictArray:
    return backend.asarray(array.astype(np.float32))


@pytest.mark.parametrize("labels", [Y, Y + (X[:, 0] > 20), np.where(Y, "b", "m")], ids=["two", "three", "strings"])
def test_samples_on_a_device_stay_there(labels: np.ndarray) -> None:
    backend = StrictBackend()
    inputs = device_array(backend, Z)
    y = backend.asarray(labels) if labels.dtype.kind == "i" else labels
    on_device = classifier(device=backend, early_stopping=True).fit(inputs, y, sample_weight=np.ones(len(Y)))
    on_host = classifier(early_stopping=True).fit(Z, labels, sample_weight=np.ones(len(Y)))
    np.testing.assert_allclose(on_device.loss_curve_, on_host.loss_curve_, rtol=1e-3)
    with backend.ledger.counting() as ledger:
        found = on_device.predict_proba(inputs), on_device.predict_log_proba(inputs)
    assert ledger.host_reads == 1 * 2  # the check that all inputs are finite, once per call
    assert all(isinstance(array, StrictArray) for array in found)
    np.testing.assert_allclose(backend.to_numpy(found[0]), on_host.predict_proba(Z), atol=0.02)
    assert isinstance(on_device.predict_proba(Z), np.ndarray)  # NumPy in, NumPy out
    predicted = on_device.predict(inputs)
    assert isinstance(predicted, StrictArray if labels.dtype.kind == "i" else np.ndarray)
    assert on_device.score(inputs, y) == pytest.approx(on_host.score(Z, labels), abs=0.02)
    assert all(isinstance(weight, np.ndarray) for weight in on_device.coefs_ + on_device.intercepts_)
    with pytest.raises(ValueError, match="read-only"):
        on_device.coefs_[0][...] = 0  # a write would not reach the device
    on_device.coefs_ = [0 * weight for weight in on_device.coefs_]
    assert np.ptp(backend.to_numpy(on_device.predict_proba(inputs)), axis=0).max() == 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_answers_on_a_device_have_the_dtype_of_answers_on_the_host(dtype: str) -> None:
    backend, samples = StrictBackend(), (9 * Z + 99).astype(dtype)
    model = classifier(device=backend, max_iter=1).fit(samples, Y)
    found, expected = model.predict_proba(backend.asarray(samples)), model.predict_proba(samples)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(backend.to_numpy(found), expected)


def test_sparse_samples_train_a_network_on_a_device() -> None:
    backend, samples = StrictBackend(), scipy.sparse.csr_matrix(np.where(Z > 0, Z, 0))
    on_device = classifier(device=backend, early_stopping=True, max_iter=5).fit(samples, Y)
    on_host = classifier(early_stopping=True, max_iter=5).fit(samples, Y)
    np.testing.assert_allclose(on_device.loss_curve_, on_host.loss_curve_, rtol=1e-5)
    np.testing.assert_allclose(on_device.predict_proba(samples), on_host.predict_proba(samples), atol=1e-4)


def test_regression_on_a_device() -> None:
    backend = StrictBackend()
    options = {"max_iter": 20, "random_state": 0, "hidden_layer_sizes": 16}
    values = np.stack([Z[:, 0], Z[:, 1]], axis=1)
    on_device = MLPRegressor(device=backend, **options).fit(
        device_array(backend, Z), device_array(backend, values)
    )
    on_host = MLPRegressor(device="cpu", **options).fit(Z, values)
    np.testing.assert_allclose(on_device.loss_curve_, on_host.loss_curve_, rtol=1e-3)
    assert isinstance(on_device.predict(device_array(backend, Z)), StrictArray)
    score = on_device.score(device_array(backend, Z), device_array(backend, values))
    assert score == pytest.approx(on_host.score(Z, values), abs=1e-3)
    one = regressor(device=backend).fit(device_array(backend, Z), Z[:, 0])
    assert one.predict(device_array(backend, Z)).shape == (len(Z),)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full((4, 30), np.nan), "NaN or infinity"),
        (np.zeros(30), "Expected 2D array"),
        (np.zeros((0, 30)), "at least 1"),
        (np.zeros((4, 7)), "X has 7 features, but MLPClassifier is expecting 30"),
    ],
)
def test_device_arrays_are_checked(bad: np.ndarray, words: str) -> None:
    backend = StrictBackend()
    model = classifier(device=backend).fit(device_array(backend, Z), Y)
    with pytest.raises(ValueError, match=words):
        model.predict(device_array(backend, bad))


def test_an_epoch_reads_once_from_the_device() -> None:
    backend = StrictBackend()
    inputs = device_array(backend, Z)
    reads = []
    for epochs in (2, 5):
        with backend.ledger.counting() as ledger:
            classifier(device=backend, max_iter=epochs, batch_size=16).fit(inputs, Y)
        reads.append(ledger.host_reads)
    assert reads[1] - reads[0] == 3


def test_moving_a_fitted_estimator() -> None:
    model = classifier().fit(Z, Y)
    moved = model.__sklearn_array_api_convert__(np.asarray)
    assert moved.device == "cpu"
    np.testing.assert_array_equal(moved.predict_proba(Z), model.predict_proba(Z))

    class CupyLike:
        device = type("Device", (), {"id": 1})()

    CupyLike.__module__ = "cupy"
    on_gpu = model.__sklearn_array_api_convert__(lambda array: CupyLike())
    assert on_gpu.device == "cuda:1"
    np.testing.assert_array_equal(on_gpu.set_params(device="cpu").predict(Z), model.predict(Z))
    with pytest.raises(ValueError, match="expected arrays of NumPy or CuPy"):
        model.__sklearn_array_api_convert__(lambda array: object())


def test_gpumlp_itself_does_not_need_scikit_learn() -> None:
    script = (
        "import sys; sys.modules['sklearn'] = None; import gpumlp, gpumlp.train; gpumlp.MLP([3, 2], device='cpu')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpumlp.extras import MissingExtraError

    for name in [name for name in sys.modules if name.startswith("gpumlp.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r'need sklearn.*pip install.*"\.\[sklearn\]"'):
        import gpumlp.sklearn  # noqa: F401
