"""Estimators and searches for scikit-learn, with the parameters and attributes of its own, trained by gpumlp.

>>> from sklearn.datasets import load_breast_cancer
>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.preprocessing import StandardScaler
>>> from gpumlp.sklearn import MLPClassifier
>>> X, y = load_breast_cancer(return_X_y=True)
>>> model = make_pipeline(StandardScaler(), MLPClassifier((30,), max_iter=500, random_state=0, device="cpu"))
>>> model.fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.95
True
"""

from ..extras import require

require("gpumlp's estimators", "sklearn", "sklearn")

# After the check that scikit-learn is installed.
from .estimators import MLPClassifier, MLPRegressor  # noqa: E402
from .search import GridSearchCV, RandomizedSearchCV  # noqa: E402

__all__ = ["GridSearchCV", "MLPClassifier", "MLPRegressor", "RandomizedSearchCV"]
