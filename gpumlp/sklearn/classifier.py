"""The classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score

from ..backends import Array, HostArray, array_namespace
from ..nn.losses import sigmoid, softmax
from .base import BaseMLP
from .inputs import to_cpu
from .labels import Labels
from .parameters import MAX_FUN


class MLPClassifier(ClassifierMixin, Labels, BaseMLP):  # type: ignore[misc]
    """scikit-learn's `MLPClassifier`, trained by gpumlp: on an NVIDIA GPU, or faster on the CPU.

    The parameters are scikit-learn's, with its defaults and meanings: see `sklearn.neural_network.MLPClassifier`.
    One ``random_state`` gives the same initial weights, batches and, up to the rounding of float32, losses. One
    output unit with the logistic sigmoid where there are two classes, a softmax for more, and a sigmoid for each
    label where y is a matrix of 0 and 1.

    Not offered, and refused by `fit`: ``solver="lbfgs"`` and with it ``max_fun``, ``momentum=1``, sparse X.

    Args:
        class_weight: None, ``"balanced"`` (inversely to how often a class occurs in y), or a dict of weights by
            class; a factor of the sample weights, in training and validation.
        device: ``"auto"`` (a usable GPU, otherwise the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...

    Attributes:
        classes_: the labels.
        coefs_, intercepts_: weights and biases of each layer, NumPy arrays of float32.
        loss_curve_: the mean loss of each epoch, penalty included; `loss_` and `best_loss_` are of it.
        validation_scores_, validation_loss_curve_, best_validation_score_: accuracy and mean loss without penalty
            of each epoch on the validation samples, if there are any; otherwise None.
        n_iter_, n_layers_, n_outputs_, out_activation_, t_, n_features_in_, feature_names_in_: as in scikit-learn.

    >>> from gpumlp.sklearn import MLPClassifier
    >>> model = MLPClassifier(20, "tanh", max_iter=500, learning_rate_init=0.01, random_state=0, device="cpu")
    >>> model.fit([[0, 0], [0, 1], [1, 0], [1, 1]], ["same", "other", "other", "same"]).predict([[1, 0]])
    array(['other'], dtype='<U5')
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = MAX_FUN,
        class_weight: Any = None,
        device: str = "auto",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.class_weight = class_weight
        self.device = device

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Train for one epoch on X and y, going on from where the last call ended; arguments as for `fit`.

        Args:
            classes: all labels that will ever come; needed in the first call.

        Raises:
            ValueError: as `fit`, and if the classes are missing or change.
        """
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' is not known from a part of the samples: give partial_fit a dict of "
                "weights by class, or sample_weight"
            )
        first = not hasattr(self, "coefs_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is not None:
            self._note_classes(np.unique(to_cpu(classes, self._backend())), first=first)
        try:
            return self._train(X, y, sample_weight, None, first=first, incremental=True)
        finally:
            self.__dict__.pop("_expected_classes", None)

    def predict(self, X: Any) -> Any:
        """The most probable class of each sample, ``(samples,)``, or ``(samples, labels)`` of 0 and 1.

        On the GPU if X is, and the labels are numbers.
        """
        found = self._outputs_of(X)
        backend = self._network.backend
        with backend.activate():
            xp = array_namespace(found)
            if self._multilabel:
                return xp.greater(found, 0).astype("int64")
            index = xp.argmax(found, axis=1) if self.n_outputs_ > 1 else xp.greater(found[:, 0], 0).astype("int64")
            if isinstance(index, np.ndarray):
                return self.classes_[index]
            if self.classes_.dtype.kind in "biuf":
                return xp.take(backend.asarray(self.classes_), index, axis=0)
            return self.classes_[backend.to_numpy(index)]

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, ``(samples, classes)`` float32, or of each label; on the GPU if X is."""
        found = self._outputs_of(X)
        with self._network.backend.activate():
            xp = array_namespace(found)
            if self.out_activation_ == "softmax":
                return softmax(found)
            if self._multilabel:
                return sigmoid(found)
            return xp.concatenate([sigmoid(xp.negative(found)), sigmoid(found)], axis=1)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of `predict_proba`, also where that rounds to 0; on the GPU if X is."""
        found = self._outputs_of(X)
        with self._network.backend.activate():
            xp = array_namespace(found)
            if self.out_activation_ == "softmax":
                shifted = xp.subtract(found, xp.max(found, axis=1, keepdims=True))
                return xp.subtract(shifted, xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True)))
            both = found if self._multilabel else xp.concatenate([xp.negative(found), found], axis=1)
            return xp.subtract(xp.minimum(both, 0), xp.log1p(xp.exp(xp.negative(xp.abs(both)))))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy, a Python float; with several labels a sample, the fraction whose labels are all right."""
        found = self.predict(X)
        backend = self._network.backend
        found, y, sample_weight = (to_cpu(array, backend) for array in (found, y, sample_weight))
        return float(accuracy_score(y, found, sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _score_outputs(self, found: Array, targets: HostArray, correct: HostArray, weights: Any) -> float:
        return float(np.average(correct, weights=weights))
