"""The network of a fitted MLP of scikit-learn or `gpumlp.sklearn`, read from its attributes without an import."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Backend
from ..nn import MLP
from ..nn.activations import ACTIVATIONS
from .importing import ImportedModelError, build, two_outputs

M = TypeVar("M", bound=MLP)

_LOSSES = {  # by the activation of the outputs
    "softmax": "softmax_cross_entropy",
    "logistic": "logistic_cross_entropy",
    "identity": "squared_error",
    "exp": "poisson_deviance",
}
_EXPECTED = "expected a fitted MLPClassifier or MLPRegressor of scikit-learn or gpumlp.sklearn"
_INSIDE = {
    "Pipeline": "its last step, and prepare the features as its other steps do",
    **dict.fromkeys(("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV"), "its best_estimator_"),
}


def from_sklearn(kind: type[M], estimator: Any, device: str | Backend, dtype: npt.DTypeLike | None) -> M:
    """``MLP.from_sklearn``: the network of a fitted MLPClassifier or MLPRegressor.

    The estimator is one of ``sklearn.neural_network`` or `gpumlp.sklearn`. The network has the loss that it was
    trained with, and gives the same predictions: ``"softmax_cross_entropy"`` for several classes,
    ``"logistic_cross_entropy"`` for several labels per sample, ``"squared_error"`` or ``"poisson_deviance"`` for a
    regression. The labels in ``classes_`` become ``class_names``. For two classes scikit-learn has one output s
    with the probability 1 / (1 + e^-s); here it becomes the two outputs 0 and s of a softmax, whose probabilities
    and cross-entropy are the same.

    The network uses all values as they are, whatever their dtype, as scikit-learn does.

    Args:
        kind: the class of the result.
        estimator: fitted, not inside a pipeline.
        device: as for `MLP`.
        dtype: that of the estimator's coefficients by default.

    Raises:
        ImportedModelError: the object is not such an estimator, is not fitted, or has weights that are not finite.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "hidden_layer_sizes") or isinstance(estimator, type):
        found = f"the class {estimator.__name__}" if isinstance(estimator, type) else name
        hint = f"; give {_INSIDE[name]}" if name in _INSIDE else ""
        raise ImportedModelError(f"{_EXPECTED}, got {found}{hint}")
    if not hasattr(estimator, "coefs_"):
        raise ImportedModelError(f"{_EXPECTED}, got one without coefs_; call {name}.fit first")
    activation = "sigmoid" if estimator.activation == "logistic" else estimator.activation
    if activation not in ACTIVATIONS:
        raise ImportedModelError(f"{name}: the activation {estimator.activation!r} has no equivalent here")
    output = estimator.out_activation_
    if output not in _LOSSES:
        raise ImportedModelError(f"{name}: the activation {output!r} of its outputs has no equivalent here")
    weights = [np.asarray(weight) for weight in estimator.coefs_]
    biases = [np.asarray(bias) for bias in estimator.intercepts_]
    classes = estimator.classes_.tolist() if hasattr(estimator, "classes_") else None
    if output == "logistic" and weights[-1].shape[1] == 1:
        if classes is None or len(classes) != 2:
            raise ImportedModelError(f"{name}: expected two classes or more, got {classes}")
        output = "softmax"
        weights[-1], biases[-1] = two_outputs(weights[-1], biases[-1])
    model = build(kind, weights, biases, activation, device, dtype or weights[0].dtype, _LOSSES[output])
    if classes is not None:
        model.class_names = tuple(
            label if isinstance(label, (str, int, float)) else str(label) for label in classes
        )
    return model
