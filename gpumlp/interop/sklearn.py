"""The network of a fitted MLPClassifier of scikit-learn, read from its documented attributes without an import."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Backend
from ..nn import MLP
from ..nn.activations import get_activation
from .importing import ImportedModelError, build, two_outputs

M = TypeVar("M", bound=MLP)

_ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid", "identity": "identity"}


def from_sklearn(kind: type[M], estimator: Any, device: str | Backend, dtype: npt.DTypeLike | None) -> M:
    """``MLP.from_sklearn``: the network of a fitted ``sklearn.neural_network.MLPClassifier``.

    For two classes scikit-learn has one output s with the probability 1 / (1 + e^-s); here it becomes the two
    outputs 0 and s, whose softmax is the same. The classifier's ``classes_`` become ``class_names``.

    The network uses all values as they are, whatever their dtype, as scikit-learn does.

    Args:
        kind: the class of the result.
        estimator: fitted, not inside a pipeline.
        device: as for `MLP`.
        dtype: that of the estimator's coefficients by default.

    Raises:
        ImportedModelError: the estimator is not an MLPClassifier, is not fitted, or is one for several labels per
            sample.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "hidden_layer_sizes"):
        hint = "; give its last step, and prepare the features as its other steps do" if name == "Pipeline" else ""
        raise ImportedModelError(f"expected a fitted MLPClassifier of scikit-learn, got {name}{hint}")
    if not hasattr(estimator, "coefs_"):
        raise ImportedModelError(f"expected a fitted MLPClassifier, got one without coefs_; call {name}.fit first")
    if not hasattr(estimator, "classes_"):
        raise ImportedModelError(f"expected an MLPClassifier, got {name}, which has no classes_")
    if estimator.activation not in _ACTIVATIONS:
        raise ImportedModelError(f"{name}: the activation {estimator.activation!r} has no equivalent here")
    weights = [np.asarray(weight) for weight in estimator.coefs_]
    biases = [np.asarray(bias) for bias in estimator.intercepts_]
    output = estimator.out_activation_
    if output == "logistic" and weights[-1].shape[1] == 1:
        weights[-1], biases[-1] = two_outputs(weights[-1], biases[-1])
    elif output != "softmax":
        raise ImportedModelError(
            f"{name}: the output layer has {weights[-1].shape[1]} outputs and the activation {output!r}, as for "
            "several labels per sample; expected one label per sample"
        )
    activation = get_activation(_ACTIVATIONS[estimator.activation])
    model = build(kind, weights, biases, activation, device, dtype or weights[0].dtype)
    model.class_names = tuple(estimator.classes_.tolist())
    return model
