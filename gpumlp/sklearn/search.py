"""Searches for hyperparameters: scikit-learn's, with the fits of all candidates and folds at once."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import joblib
import numpy as np
import sklearn.model_selection
from joblib.parallel import get_active_backend
from sklearn import get_config

from ..backends import Backend, DeviceError, get_backend
from .base import BaseMLP
from .together import SharedSamples, Together


class _FitsTogether:
    """What both searches add to scikit-learn's: how the fits are run."""

    estimator: Any
    n_jobs: int | None

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Fit and score all candidates on all folds, then fit the best one on X and y.

        Args:
            X, y, params: as for scikit-learn's search.

        Returns:
            The search.
        """
        with ExitStack() as stack:
            if self._fit_together(stack) and isinstance(self.estimator, BaseMLP):
                X = _shared(X)
            return super().fit(X, y, **params)  # type: ignore[misc]

    def _fit_together(self, stack: ExitStack) -> bool:
        """Select how joblib runs the fits, within the stack's context; whether it is on a GPU."""
        active, n_jobs = get_active_backend()
        n_jobs = n_jobs if self.n_jobs is None else self.n_jobs
        if n_jobs == 1 or type(active).__name__ != "LokyBackend" or active.nesting_level:
            return False  # as the user has selected, or in a worker of another search
        try:
            backends = {device: get_backend(device) for device in _devices(self.estimator)}
        except (DeviceError, TypeError, ValueError):
            return False  # each fit says what is wrong
        gpus = [backend for backend in backends.values() if backend.name != "cpu"]
        how: dict[str, Any] = {"backend": Together(backends)}
        if not gpus:  # with one thread each, results do not depend on the number of processes
            how = {"backend": "loky", "inner_max_num_threads": active.inner_max_num_threads or 1}
        if backends:
            stack.enter_context(joblib.parallel_config(n_jobs=n_jobs or -1, **how))
        for backend in gpus:
            stack.enter_context(backend.activate())
        return bool(gpus)


def _devices(estimator: Any) -> list[str | Backend]:
    """The devices of gpumlp's estimators: of this one, or of those among its parameters (steps of a pipeline)."""
    if isinstance(estimator, type) or not hasattr(estimator, "get_params"):
        return []
    found = [estimator, *estimator.get_params().values()]
    return [model.device for model in found if isinstance(model, BaseMLP)]


def _shared(X: Any) -> Any:
    """A NumPy array of numbers, as samples that the fits share; anything else unchanged."""
    numbers = type(X) is np.ndarray and X.ndim == 2 and X.dtype.kind in "fiub" and X.size > 0
    return X.view(SharedSamples) if numbers and not get_config()["array_api_dispatch"] else X


class GridSearchCV(_FitsTogether, sklearn.model_selection.GridSearchCV):  # type: ignore[misc]
    """scikit-learn's `GridSearchCV`, which fits all candidates on all folds at the same time.

    Parameters, attributes and results are scikit-learn's: see `sklearn.model_selection.GridSearchCV`. The
    estimator is one of gpumlp's, or contains some, as a pipeline does; for others, this is scikit-learn's search.

    On a GPU, the fits run in one process, and one launch trains as many networks as the GPU holds at once; a fit
    that ends leaves its place to the next. On the CPU, they run in worker processes with one BLAS thread each,
    which share the samples. ``fit_time`` of a fit includes the time in which it waits for others.

    Args:
        n_jobs: how many fits at most are in progress; None or -1 for as many as the GPU trains at once, or as the
            CPU has cores; 1 for one after another in this process, as in scikit-learn. A backend that was selected
            by `joblib.parallel_config` runs them as it would run scikit-learn's.

    >>> from sklearn.datasets import load_iris
    >>> from gpumlp.sklearn import GridSearchCV, MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((16,), max_iter=1000, learning_rate_init=0.01, random_state=0, device="cpu")
    >>> search = GridSearchCV(model, {"activation": ["relu", "tanh"], "alpha": [1e-4, 1.0]}, cv=3)
    >>> bool(search.fit(X, y).best_score_ > 0.9)
    True
    """


class RandomizedSearchCV(_FitsTogether, sklearn.model_selection.RandomizedSearchCV):  # type: ignore[misc]
    """scikit-learn's `RandomizedSearchCV`, which fits all candidates on all folds at the same time.

    Parameters, attributes and results are scikit-learn's: see `sklearn.model_selection.RandomizedSearchCV`. How
    the fits are run, and what ``n_jobs`` means, is described at `GridSearchCV`.

    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> from gpumlp.sklearn import MLPClassifier, RandomizedSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((16,), max_iter=1000, learning_rate_init=0.01, random_state=0, device="cpu")
    >>> search = RandomizedSearchCV(model, {"alpha": loguniform(1e-5, 1)}, n_iter=4, cv=3, random_state=0)
    >>> bool(search.fit(X, y).best_score_ > 0.9)
    True
    """
