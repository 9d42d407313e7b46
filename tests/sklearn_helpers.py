"""What several tests of the estimators share: data, and small estimators that are fitted quickly."""

from __future__ import annotations

import warnings
from typing import Any

from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import scale

from gpumlp.sklearn import MLPClassifier, MLPRegressor

IRIS = scale(load_iris().data), load_iris().target
CANCER = scale(load_breast_cancer().data), load_breast_cancer().target


def classifier(**options: Any) -> MLPClassifier:
    return MLPClassifier(
        **{"hidden_layer_sizes": 16, "random_state": 0, "device": "cpu", "max_iter": 20} | options
    )


def regressor(**options: Any) -> MLPRegressor:
    return MLPRegressor(**{"hidden_layer_sizes": 16, "random_state": 0, "device": "cpu", "max_iter": 20} | options)


def fit(estimator: Any, *arguments: Any, **options: Any) -> Any:
    """Fit, however far it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*arguments, **options)
