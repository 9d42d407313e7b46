"""The searches: scikit-learn's results, with the fits in worker processes or in the same launches of a GPU."""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install ".[sklearn]"')

import joblib
import scipy.sparse
import sklearn.model_selection as theirs
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_info, threadpool_limits

import gpumlp.sklearn as ours
from gpumlp.backends import ExecutionError, StepRun, get_backend
from gpumlp.sklearn import MLPClassifier, MLPRegressor
from gpumlp.sklearn.together import Fit
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = (array[:240] for array in load_digits(return_X_y=True))
X = X / 16
GRID = {"alpha": [0.0, 0.1], "solver": ["adam", "sgd"]}
EPOCHS = 4


class ManyAtOnce(StrictBackend):
    """A fake device that says that it trains several networks at once, and notes how many it was given."""

    def __init__(self, at_once: int = 100) -> None:
        super().__init__()
        self.at_once = at_once
        self.rounds: list[int] = []

    def __repr__(self) -> str:  # in the name of a test, the same in every process
        return f"{type(self).__name__}({self.at_once})"

    def networks_at_once(self, step: Any) -> int:
        return self.at_once

    def run_many(self, runs: Sequence[StepRun]) -> None:
        self.rounds.append(len(runs))
        super().run_many(runs)


def classifier(device: Any = "cpu", **options: Any) -> MLPClassifier:
    return MLPClassifier((8,), **{"random_state": 0, "device": device, "max_iter": EPOCHS} | options)


def regressor(device: Any = "cpu", **options: Any) -> MLPRegressor:
    return MLPRegressor(
        hidden_layer_sizes=8, **{"random_state": 0, "device": device, "max_iter": EPOCHS} | options
    )


def assert_same_results(found: Any, expected: Any) -> None:
    """`cv_results_` are equal bit for bit, apart from times."""
    assert found.cv_results_.keys() == expected.cv_results_.keys()
    assert found.cv_results_["params"] == expected.cv_results_["params"]
    for name, values in expected.cv_results_.items():
        if not name.endswith("_time") and name != "params":
            np.testing.assert_array_equal(np.ma.getmaskarray(found.cv_results_[name]), np.ma.getmaskarray(values))
            np.testing.assert_array_equal(np.ma.getdata(found.cv_results_[name]), np.ma.getdata(values), name)
    for name in ("best_index_", "best_score_", "best_params_", "multimetric_", "n_splits_"):
        assert getattr(found, name, None) == getattr(expected, name, None)


# -- scikit-learn's results --------------------------------------------------------------------------------


@parametrize_with_checks(
    [
        ours.GridSearchCV(
            MLPClassifier(
                (8,), random_state=0, dtype="float64", learning_rate_init=0.03, max_iter=60, device=ManyAtOnce()
            ),
            {"alpha": [1e-4, 1e-2]},
            cv=2,
            error_score="raise",
        ),
    ]
)
def test_estimator_check(estimator: Any, check: Any) -> None:
    check(estimator)


def data(name: str) -> tuple[Any, Any]:
    if name == "labels":
        return make_multilabel_classification(n_samples=200, n_features=10, random_state=0)
    if name == "sparse":
        return scipy.sparse.csr_matrix(X), Y
    if name == "frame":
        pandas = pytest.importorskip("pandas")
        return pandas.DataFrame(X, columns=[f"pixel {i}" for i in range(X.shape[1])]), pandas.Series(Y)
    if name == "values":
        return X[:, 3:], X[:, :3]
    return X, Y


SEARCHES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "classes": ("digits", classifier, {}),
    "two metrics": ("digits", classifier, {"scoring": ["accuracy", "neg_log_loss"], "refit": "neg_log_loss"}),
    "own refit": ("digits", classifier, {"refit": lambda results: 2}),
    "own metric": ("digits", classifier, {"scoring": lambda model, X, y: {"a": model.score(X, y)}, "refit": "a"}),
    "no refit": ("digits", classifier, {"refit": False}),
    "train scores": ("digits", classifier, {"return_train_score": True}),
    "early stopping": ("digits", lambda device: classifier(device, early_stopping=True), {}),
    "labels": ("labels", classifier, {}),
    "several values": ("values", regressor, {}),
    "sparse": ("sparse", classifier, {}),
    "frame": ("frame", classifier, {}),
    "a class is missing in a fold": ("digits", classifier, {"cv": PredefinedSplit(np.where(Y == 3, 0, Y % 2))}),
    "float64": ("digits", lambda device: classifier(device, dtype="float64"), {}),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("device", ["cpu", ManyAtOnce(5)], ids=["cpu", "device"])
def test_results_are_those_of_scikit_learn(name: str, device: Any) -> None:
    source, make, options = SEARCHES[name]
    inputs, targets = data(source)
    options = {"cv": 3} | options
    with threadpool_limits(1):
        expected = theirs.GridSearchCV(make(device), GRID, **options).fit(inputs, targets)
    found = ours.GridSearchCV(make(device), GRID, **options).fit(inputs, targets)
    assert_same_results(found, expected)
    assert hasattr(found, "best_estimator_") == hasattr(expected, "best_estimator_")
    if hasattr(found, "best_estimator_"):
        np.testing.assert_array_equal(found.predict(inputs), expected.predict(inputs))
        assert vars(found.best_estimator_).keys() == vars(expected.best_estimator_).keys()
    if device != "cpu":
        assert max(device.rounds) == 5


@pytest.mark.parametrize("device", ["cpu", ManyAtOnce()], ids=["cpu", "device"])
def test_random_candidates_weights_and_groups(device: Any) -> None:
    weights, groups = np.random.default_rng(0).uniform(0.5, 2, len(Y)), np.arange(len(Y)) % 7
    given = {"alpha": loguniform(1e-4, 1)}, {"n_iter": 3, "cv": GroupKFold(3), "random_state": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        searches = [
            library.RandomizedSearchCV(classifier(device), given[0], **given[1]).fit(
                X, Y, sample_weight=weights, groups=groups
            )
            for library in (theirs, ours)
        ]
    assert_same_results(searches[1], searches[0])


def test_kernels_and_graphs_train_as_one_by_one() -> None:
    backends = [host_cuda_backend(cublaslt=True) for _ in range(2)]
    run_many, rounds = backends[0].run_many, []
    backends[0].networks_at_once = lambda step: 6
    backends[0].run_many = lambda runs: (rounds.append(len(runs)), run_many(runs))
    with backends[1].activate():
        expected = theirs.GridSearchCV(classifier(backends[1], batch_size=20), GRID, cv=2).fit(X, Y)
    found = ours.GridSearchCV(classifier(backends[0], batch_size=20), GRID, cv=2).fit(X, Y)
    assert_same_results(found, expected)
    assert max(rounds) == 6
    assert "graph" in backends[0].xp.launches


# -- How the fits are run on a device ----------------------------------------------------------------------


def test_all_fits_share_their_launches() -> None:
    device = ManyAtOnce()
    ours.GridSearchCV(classifier(device, batch_size=40, alpha=0), {"solver": ["adam", "sgd"]}, cv=3).fit(X, Y)
    assert device.rounds == [6] * EPOCHS + [1] * EPOCHS  # the last network is fitted alone
    device = ManyAtOnce()
    ours.GridSearchCV(classifier(device, batch_size=50), {"solver": ["adam", "sgd"]}, cv=3, refit=False).fit(X, Y)
    assert device.rounds == [6] * EPOCHS * 2  # a smaller last batch has another penalty


def test_all_fits_share_the_launches_of_their_validation() -> None:
    device, options = ManyAtOnce(), {"early_stopping": True, "n_iter_no_change": EPOCHS}
    grid = {"solver": ["adam", "sgd"]}
    search = ours.GridSearchCV(classifier(device, batch_size=36, alpha=0, **options), grid, cv=3, refit=False)
    assert_same_results(search.fit(X, Y), theirs.GridSearchCV(search.estimator, grid, cv=3, refit=False).fit(X, Y))
    assert device.rounds[: 2 * EPOCHS] == [6] * EPOCHS * 2


def test_a_fit_that_ends_leaves_its_place_to_the_next() -> None:
    device = ManyAtOnce(3)
    ours.GridSearchCV(classifier(device, alpha=0), {"max_iter": [2, 6, 2, 2]}, cv=2, refit=False).fit(X, Y)
    assert device.rounds == [3] * 8  # 2 (2 + 6 + 2 + 2) epochs


@pytest.mark.parametrize(("n_jobs", "most"), [(None, 6), (-1, 6), (2, 2), (1, 1)])
def test_n_jobs_is_how_many_fits_are_in_progress(n_jobs: int | None, most: int) -> None:
    device = ManyAtOnce()
    ours.GridSearchCV(classifier(device), {"alpha": [0.0, 1.0]}, cv=3, n_jobs=n_jobs).fit(X, Y)
    assert max(device.rounds) == most
    device.rounds.clear()
    with joblib.parallel_config(n_jobs=n_jobs):
        ours.GridSearchCV(classifier(device), {"alpha": [0.0, 1.0]}, cv=3).fit(X, Y)
    assert max(device.rounds) == most


@pytest.mark.parametrize("pre_dispatch", ["all", "2*n_jobs", 1])
def test_fits_may_be_dispatched_one_by_one(pre_dispatch: Any) -> None:
    device = ManyAtOnce()
    search = ours.GridSearchCV(classifier(device), GRID, cv=2, pre_dispatch=pre_dispatch).fit(X, Y)
    assert_same_results(search, theirs.GridSearchCV(classifier(), GRID, cv=2, pre_dispatch=1).fit(X, Y))


def test_pipelines_and_ensembles_share_launches_too() -> None:
    device = ManyAtOnce()
    for model, name in (
        (make_pipeline(StandardScaler(), classifier(device)), "mlpclassifier__solver"),
        (BaggingClassifier(classifier(device), n_estimators=2, n_jobs=2, random_state=0), "estimator__solver"),
    ):
        device.rounds.clear()
        search = ours.GridSearchCV(model, {name: ["adam", "sgd"]}, cv=3).fit(X, Y)
        assert set(device.rounds) == {6, 1}  # the best is fitted alone
        assert_same_results(search, theirs.GridSearchCV(model, {name: ["adam", "sgd"]}, cv=3).fit(X, Y))


def test_each_fold_is_copied_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device, copies, asarray = ManyAtOnce(), [], StrictBackend.asarray

    def count(self: Any, array: Any, dtype: Any = None) -> Any:
        if isinstance(array, np.ndarray) and array.shape[1:] == X.shape[1:]:
            copies.append(len(array))
        return asarray(self, array, dtype)

    monkeypatch.setattr(ManyAtOnce, "asarray", count)
    ours.GridSearchCV(classifier(device), {"alpha": [0, 1e-3, 1]}, cv=4, scoring=lambda *_: 0, refit=False).fit(
        X, Y
    )
    assert copies == [180] * 4
    assert X.flags.writeable


def test_the_persistent_kernel_trains_several_networks_in_one_launch() -> None:
    backends = [host_cuda_backend(execution="persistent", multiprocessors=2) for _ in range(2)]
    searches = []
    for backend, library in zip(backends, (ours, theirs), strict=True):
        backend.xp.attributes |= {"CooperativeLaunch": 1, "MultiProcessorCount": 12}
        model = classifier(backend, batch_size=50, max_iter=2)
        with backend.activate():
            search = library.GridSearchCV(model, {"alpha": [0.1, 1.0]}, cv=2, refit=False).fit(X, Y)
        searches.append(search)
    assert_same_results(*searches)
    # Two launches an epoch: the smaller last batch has another penalty.
    assert [backend.xp.launches.count("train_networks") for backend in backends] == [2 * 2, 4 * 2 * 2]


@pytest.mark.parametrize("several", [False, True])
def test_a_fit_has_the_same_bits_alone_and_beside_others(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, found = host_cuda_backend(cublaslt=True), {}
    backend.xp.attributes |= {"CooperativeLaunch": 1, "MultiProcessorCount": 12}
    # Alone, a network with batches above this size would be run by graphs.
    monkeypatch.setitem(type(backend)._first_supported.__globals__, "PERSISTENT_BATCH", 16)
    model: Any = classifier(backend, batch_size=20, max_iter=2, alpha=1.0)
    name = "learning_rate_init"
    if several:
        model, name = BaggingClassifier(model, n_estimators=2, random_state=0), f"estimator__{name}"

    def weights(fitted: Any, *_: Any) -> float:
        rate = fitted.get_params()[name]
        networks = [each._network for each in getattr(fitted, "estimators_", [fitted])]
        found.setdefault(rate, []).append([network.state_dict() for network in networks])
        return 0.0

    folds = [(np.arange(90), np.arange(90, 110))]  # a smaller last batch, with another penalty
    for rates in ([0.01], [0.01, 0.02]):
        search = ours.GridSearchCV(model, {name: rates}, cv=folds, refit=False, scoring=weights)
        search.fit(X[:110, :10].astype(np.float32), Y[:110])
    alone, beside = found[0.01]
    for one, other in zip(alone, beside, strict=True):
        for tensor, value in one.items():
            np.testing.assert_array_equal(value, other[tensor])


def test_a_fit_gives_room_when_its_next_network_leaves_some() -> None:
    class OneOrMany(ManyAtOnce):
        def networks_at_once(self, step: Any) -> int:
            return 1 if step.parameters.dtype == np.float64 else 100

    device = OneOrMany()
    members = [(dtype, classifier(device, dtype=dtype)) for dtype in ("float64", "float32")]
    grid = {"float32__alpha": [0.0, 0.1, 1.0]}
    ours.GridSearchCV(VotingClassifier(members), grid, cv=2, refit=False).fit(X, Y)
    assert max(device.rounds) > 1


@pytest.mark.parametrize("hidden", [8, (18, 9), (17, 8, 12)])
@pytest.mark.parametrize("execution", ["persistent", "graphs"])
def test_every_way_of_running_reports_the_penalty(execution: str, hidden: Any) -> None:
    models = []
    for way in ("eager", execution):
        backend = host_cuda_backend(cublaslt=True, execution=way)
        backend.xp.attributes |= {"CooperativeLaunch": 1, "MultiProcessorCount": 12}
        options: dict[str, Any] = {"solver": "sgd", "alpha": 10.0, "batch_size": 50, "hidden_layer_sizes": hidden}
        models.append(classifier(backend).set_params(**options))
    expected = models[0].fit(X, Y).loss_curve_
    found = models[1].fit(X, Y).loss_curve_
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    without = classifier().set_params(**options | {"alpha": 0}).fit(X, Y).loss_curve_
    assert without[0] < 0.9 * expected[0]


# -- What goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", ManyAtOnce()], ids=["cpu", "device"])
def test_a_candidate_that_fails_stops_no_other(device: Any) -> None:
    search = ours.GridSearchCV(classifier(device), {"solver": ["adam", "lbfgs"]}, cv=3, error_score=-1.0)
    threads = threading.active_count()
    with pytest.warns(FitFailedWarning, match="(?s)3 fits failed out of a total of 6.*does not support solver"):
        search.fit(X, Y)
    assert search.cv_results_["mean_test_score"][0] > search.cv_results_["mean_test_score"][1] == -1.0
    with pytest.raises(ValueError, match="gpumlp does not support solver='lbfgs'"):
        search.set_params(error_score="raise").fit(X, Y)
    assert device == "cpu" or threading.active_count() == threads


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (ExecutionError("no room on the device"), ValueError, r"(?s)All the 4 fits failed.*4 fits.*no room"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["device", "interrupt"],
)
def test_steps_that_cannot_be_run(
    error: BaseException, raised: type[BaseException], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, threads = ManyAtOnce(), threading.active_count()

    def fail(runs: Sequence[StepRun]) -> None:
        device.rounds.append(len(runs))
        if len(device.rounds) == 2:
            raise error

    monkeypatch.setattr(device, "run_many", fail)
    search = ours.GridSearchCV(classifier(device), {"alpha": [0.0, 1.0]}, cv=2, refit=False)
    with pytest.raises(raised, match=words):
        search.fit(X, Y)
    assert len(device.rounds) == 2
    assert threading.active_count() == threads


def test_a_second_interrupt_leaves_no_fits_either(monkeypatch: pytest.MonkeyPatch) -> None:
    device, threads, closed = ManyAtOnce(), threading.active_count(), []

    def interrupt(runs: Sequence[StepRun]) -> None:
        raise KeyboardInterrupt

    def close(fit: Fit) -> None:
        closed.append(fit)
        if len(closed) == 2:
            raise KeyboardInterrupt
        original(fit)

    original = Fit.close
    monkeypatch.setattr(device, "run_many", interrupt)
    monkeypatch.setattr(Fit, "close", close)
    with pytest.raises(KeyboardInterrupt):
        ours.GridSearchCV(classifier(device), {"alpha": [0.0, 1.0]}, cv=2, refit=False).fit(X, Y)
    assert len(closed) == 5
    assert threading.active_count() == threads


def test_an_unusable_device_fails_each_fit() -> None:
    search = ours.GridSearchCV(classifier("cuda:99"), {"alpha": [0.0, 1.0]}, cv=2)
    with pytest.raises(ValueError, match=r"(?s)All the 4 fits failed.*DeviceError"):
        search.fit(X, Y)


class Quiet(MLPClassifier):
    """Without a penalty, it shows no warnings."""

    def fit(self, X: Any, y: Any) -> Any:
        with warnings.catch_warnings():
            if self.alpha == 0:
                warnings.simplefilter("ignore")
            return super().fit(X, y)


def test_each_fit_has_warning_filters_of_its_own() -> None:
    model = Quiet((8,), random_state=0, device=ManyAtOnce())
    search = ours.GridSearchCV(model, [{"alpha": [0, 1], "max_iter": [2, 3]}], cv=2, refit=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = warnings.filters
        search.fit(X, Y)
        assert warnings.filters is before
    messages = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
    assert [sum(f"({epochs})" in message for message in messages) for epochs in (2, 3)] == [2, 2]
    assert len(messages) == 4


# -- Where scikit-learn's search decides --------------------------------------------------------------------


def test_on_the_cpu_fits_run_in_processes_with_one_blas_thread() -> None:
    def process(*_: Any) -> int:
        return os.getpid()

    def blas_threads(*_: Any) -> int:
        return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")

    scoring = {"process": process, "threads": blas_threads}
    search = ours.GridSearchCV(classifier(), {"alpha": [0.0, 1.0]}, cv=2, n_jobs=2, refit=False)
    search.set_params(scoring=lambda *_: {name: function() for name, function in scoring.items()}).fit(X, Y)
    for split in range(2):
        assert os.getpid() not in search.cv_results_[f"split{split}_test_process"]
        assert set(search.cv_results_[f"split{split}_test_threads"]) == {1}


def test_other_estimators_and_backends_are_left_to_joblib() -> None:
    def used(search: Any) -> set[float]:
        return set(search.fit(X, Y).cv_results_["mean_test_score"])

    options: dict[str, Any] = {"cv": 2, "scoring": lambda *_: os.getpid()}
    other = ours.GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, **options)
    assert used(other) == {os.getpid()}
    assert used(ours.GridSearchCV(classifier(), {"alpha": [0.0, 1.0]}, n_jobs=1, **options)) == {os.getpid()}
    device = ManyAtOnce()
    with joblib.parallel_config("threading", n_jobs=2):
        assert used(ours.GridSearchCV(classifier(device), {"alpha": [0.0, 1.0]}, **options)) == {os.getpid()}
    assert set(device.rounds) == {1}


def test_a_search_is_an_estimator_like_any_other() -> None:
    device = ManyAtOnce()
    search = ours.GridSearchCV(classifier(device), {"alpha": [1e-4, 1.0]}, cv=2)
    assert isinstance(search, theirs.GridSearchCV)
    assert issubclass(ours.RandomizedSearchCV, theirs.RandomizedSearchCV)
    assert search.get_params().keys() == theirs.GridSearchCV(classifier(), {}).get_params().keys()
    copy = clone(search).set_params(cv=3, estimator__max_iter=2).fit(X, Y)
    assert (copy.n_splits_, copy.best_estimator_.n_iter_, copy.estimator.device) == (3, 2, device)
    scores = cross_val_score(make_pipeline(StandardScaler(), search), X, Y, cv=2)
    assert scores.shape == (2,)
    outer = ours.GridSearchCV(search, {"estimator__solver": ["adam", "sgd"]}, cv=2).fit(X, Y)
    assert_same_results(outer, theirs.GridSearchCV(search, {"estimator__solver": ["adam", "sgd"]}, cv=2).fit(X, Y))
    fitted = ours.GridSearchCV(classifier(get_backend("cpu").name), {"alpha": [1e-4, 1.0]}, cv=2).fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), fitted.predict(X))


def test_callbacks_of_scikit_learn() -> None:
    callbacks = pytest.importorskip("sklearn.callback", reason="this version of scikit-learn has no callbacks")
    monitor = callbacks.ScoringMonitor(scoring="accuracy")
    device = ManyAtOnce()
    ours.GridSearchCV(classifier(device, max_iter=3).set_callbacks(monitor), {"alpha": [0.0, 1.0]}, cv=2).fit(X, Y)
    logs = monitor.get_logs()
    rows = [row for log in (logs if isinstance(logs, list) else [logs]) for row in log.data]
    assert len([row for row in rows if row["task_name"] == "epoch"]) == 3 * (2 * 2 + 1)
    assert max(device.rounds) == 4
