"""The classifier and the regressor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from ..backends import HostArray, array_namespace
from ..data.labels import class_weights, places_of
from ..nn.losses import PoissonDeviance, loss_for
from .base import BaseMLP
from .inputs import MAX_FUN, to_cpu


class MLPClassifier(ClassifierMixin, BaseMLP):  # type: ignore[misc]
    """scikit-learn's `MLPClassifier`, trained by gpumlp: on an NVIDIA GPU, or on the CPU.

    The parameters are scikit-learn's, with the same defaults and meanings: see
    `sklearn.neural_network.MLPClassifier`. The same ``random_state`` gives the same initial weights and batches
    and, up to rounding, the same losses. The output is one logistic sigmoid for two classes, a softmax for more,
    and one sigmoid per label if y is a matrix of 0 and 1. Answers are float32 for float32 X, otherwise float64.
    X may be sparse.

    Not supported, and refused by `fit`: ``solver="lbfgs"`` with its ``max_fun``, ``momentum=1``, a y of one class.

    Args:
        activation: also ``"leaky_relu"``, ``"elu"``, ``"gelu"``, ``"silu"`` and ``"softplus"``.
        class_weight: None, ``"balanced"`` (inversely proportional to the frequency of a class in y), or a dict of
            weights by class. Multiplies the sample weights, in training and validation.
        device: ``"auto"`` (a usable GPU, otherwise the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: in which the network computes: ``"float32"``, or ``"float64"`` as in scikit-learn, which is slower.

    Attributes:
        classes_: the labels.
        coefs_, intercepts_: weights ``(in, out)`` and biases ``(out,)`` of each layer, NumPy arrays of `dtype`.
        loss_curve_: mean loss of each epoch, penalty included; `loss_` is its last value, `best_loss_` its lowest.
        validation_scores_, validation_loss_curve_, best_validation_score_: accuracy and mean loss without penalty
            of each epoch on the validation samples; None without any.
        n_iter_, n_layers_, n_outputs_, out_activation_, t_, n_features_in_, feature_names_in_: as in scikit-learn.

    >>> from gpumlp.sklearn import MLPClassifier
    >>> model = MLPClassifier(20, "tanh", max_iter=500, learning_rate_init=0.01, random_state=0, device="cpu")
    >>> model.fit([[0, 0], [0, 1], [1, 0], [1, 1]], ["same", "other", "other", "same"]).predict([[1, 0]])
    array(['other'], dtype='<U5')
    """

    _numeric = False
    _metric = staticmethod(accuracy_score)

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
        dtype: Any = "float32",
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
        self.dtype = dtype

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Train for one more epoch on X and y; arguments as for `fit`.

        Args:
            classes: all labels that will ever occur; required in the first call.

        Raises:
            ValueError: as for `fit`, and if the classes are missing, change, or are no labels, such as NaN.
        """
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' cannot be computed from a part of the samples; give partial_fit a dict "
                "of weights by class, or sample_weight"
            )
        first = not hasattr(self, "coefs_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is not None:
            classes = unique_labels(to_cpu(classes, self._backend()))
            if not first and not np.array_equal(classes, self.classes_):
                raise ValueError(
                    f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
                )
        return self._train((X, y, sample_weight), None, first=first, incremental=True, classes=classes)

    def predict(self, X: Any) -> Any:
        """The most probable class of each sample, ``(samples,)``, or ``(samples, labels)`` of 0 and 1.

        On the GPU if X is and the labels are numbers.
        """
        found = self._outputs_of(X)
        backend = self._network.backend
        with backend.activate():
            index = self._network.loss.predictions(found)
            if self._multilabel:
                return index
            index = array_namespace(index).ravel(index)  # of one output for two classes
            if isinstance(index, np.ndarray):
                return self.classes_[index]
            if self.classes_.dtype.kind in "biuf":
                return backend.xp.take(backend.asarray(self.classes_), index, axis=0)
            return self.classes_[backend.to_numpy(index)]

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, ``(samples, classes)``, or of each label; on the GPU if X is."""
        found = self._class_outputs(X)
        with self._network.backend.activate():
            return self._network.loss.probabilities(found)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of `predict_proba`, finite even where that rounds to 0; on the GPU if X is."""
        found = self._class_outputs(X)
        with self._network.backend.activate():
            xp = array_namespace(found)
            if self.out_activation_ == "softmax":
                shifted = xp.subtract(found, xp.max(found, axis=1, keepdims=True))
                return xp.subtract(shifted, xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True)))
            return xp.subtract(xp.minimum(found, 0), xp.log1p(xp.exp(xp.negative(xp.abs(found)))))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; with several labels per sample, the fraction of samples whose labels are all correct."""
        return self._score(X, y, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _weighted_score(self, encoded: HostArray, predictions: HostArray, weights: HostArray) -> float:
        # As accuracy_score, but without its checks, which take longer than the evaluation of 180 samples.
        correct = (predictions == encoded).reshape(len(encoded), -1).all(axis=1)
        return float(np.average(correct, weights=weights))

    # -- Labels -------------------------------------------------------------------------------------------

    @property
    def _multilabel(self) -> bool:
        return bool(self.out_activation_ == "logistic" and self.n_outputs_ > 1)

    def _class_outputs(self, X: Any) -> Any:
        """The network's outputs, one for each class or label: -s and s for two classes."""
        found = self._outputs_of(X)
        if self.n_outputs_ > 1:
            return found
        with self._network.backend.activate():
            xp = array_namespace(found)
            return xp.concatenate([xp.negative(found), found], axis=1)

    def _encode_targets(
        self, y: HostArray, *, first: bool, same_classes: bool = False, classes: HostArray | None = None
    ) -> HostArray:
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multiclass-multioutput":
            raise ValueError(
                "y is expected to hold one label per sample, or 0 and 1 in each column, got several classes"
            )
        if first:
            self._learn_classes(y, kind, classes)
        if kind == "multilabel-indicator" or self._multilabel:
            if not (kind == "multilabel-indicator" and self._multilabel and y.shape[1] == self.n_outputs_):
                expected = "one label per sample"
                if self._multilabel:
                    expected = f"0 and 1 of shape (samples, {self.n_outputs_})"
                raise ValueError(f"y is expected to be {expected} as before, got {kind} of shape {y.shape}")
            return y
        index, found = places_of(y, self.classes_.tolist()), np.unique(y)
        if same_classes and not np.array_equal(found, self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {found}"
            )
        if index.min() < 0:
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {found}."
            )
        return index

    def _learn_classes(self, y: HostArray, kind: str, expected: HostArray | None) -> None:
        if kind == "multilabel-indicator":
            classes = np.arange(y.shape[1])
            if self.class_weight is not None:
                raise ValueError("class_weight is expected to be None if a sample has several labels")
            if expected is not None and len(expected) != len(classes):
                raise ValueError(
                    f"expected one column of y for each of {len(expected)} classes, got {len(classes)}"
                )
        else:
            classes = np.unique(y) if expected is None else expected
            if len(classes) < 2:
                raise ValueError(f"a classifier needs samples of 2 classes or more, got one class: {classes}")
        self.classes_ = classes
        labels = kind == "multilabel-indicator"
        outputs = len(classes) if labels or len(classes) > 2 else 1
        self._learn_outputs(outputs, loss_for("labels" if labels else "classes", outputs))

    def _class_factors(self, encoded: HostArray) -> HostArray | None:
        given, classes = self.class_weight, self.classes_.tolist()
        if given is None:
            return None
        if isinstance(given, Mapping):
            # scikit-learn's rule: 1.0 and 1 name one class, and a dict with all classes may name others too.
            known = {name: given[name] for name in classes if name in given}
            if len(known) not in (len(given), len(classes)):
                missing = [name for name in classes if name not in given]
                raise ValueError(f"The classes, {missing}, are not in class_weight")
            given = known
        return class_weights(encoded, len(classes), given, classes)


class MLPRegressor(RegressorMixin, BaseMLP):  # type: ignore[misc]
    """scikit-learn's `MLPRegressor`, trained by gpumlp: on an NVIDIA GPU, or on the CPU.

    The parameters are scikit-learn's, with the same defaults and meanings: see
    `sklearn.neural_network.MLPRegressor`. The same ``random_state`` gives the same initial weights and batches
    and, up to rounding, the same losses. Answers are float32 for float32 X, otherwise float64. X may be
    sparse.

    Not supported, and refused by `fit`: ``solver="lbfgs"`` with its ``max_fun``, ``momentum=1``, and with
    ``loss="poisson"`` a y below 0.

    Args:
        activation: also ``"leaky_relu"``, ``"elu"``, ``"gelu"``, ``"silu"`` and ``"softplus"``.
        device: ``"auto"`` (a usable GPU, otherwise the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: in which the network computes: ``"float32"``, or ``"float64"`` as in scikit-learn, which is slower.

    Attributes:
        coefs_, intercepts_: weights ``(in, out)`` and biases ``(out,)`` of each layer, NumPy arrays of `dtype`.
        loss_curve_: mean loss of each epoch, half the squared error or the Poisson deviance, penalty included;
            `loss_` is its last value, `best_loss_` its lowest.
        validation_scores_, validation_loss_curve_, best_validation_score_: R^2 and mean loss without penalty of
            each epoch on the validation samples; None without any.
        n_iter_, n_layers_, n_outputs_, out_activation_, t_, n_features_in_, feature_names_in_: as in scikit-learn.

    >>> import numpy as np
    >>> from gpumlp.sklearn import MLPRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> model = MLPRegressor(hidden_layer_sizes=20, batch_size=20, learning_rate_init=0.01, random_state=0)
    >>> model.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.98
    True
    """

    _numeric = True
    _metric = staticmethod(r2_score)

    def __init__(
        self,
        loss: str = "squared_error",
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
        device: str = "auto",
        dtype: Any = "float32",
    ) -> None:
        self.loss = loss
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
        self.device = device
        self.dtype = dtype

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train for one more epoch on X and y; arguments and errors as for `fit`."""
        return self._train((X, y, sample_weight), None, first=not hasattr(self, "coefs_"), incremental=True)

    def predict(self, X: Any) -> Any:
        """The value for each sample, ``(samples,)`` or ``(samples, outputs)``; on the GPU if X is."""
        found = self._outputs_of(X)
        with self._network.backend.activate():
            found = self._network.loss.predictions(found)
            return array_namespace(found).ravel(found) if self.n_outputs_ == 1 else found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2, the coefficient of determination; the mean over several outputs."""
        return self._score(X, y, sample_weight)

    def _encode_targets(
        self, y: HostArray, *, first: bool, same_classes: bool = False, classes: HostArray | None = None
    ) -> HostArray:
        encoded = y[:, None] if y.ndim == 1 else y
        loss, outputs = PoissonDeviance() if self.loss == "poisson" else loss_for("numbers", 1), encoded.shape[1]
        if first:
            self._learn_outputs(outputs, loss)
        elif outputs != self.n_outputs_:
            raise ValueError(f"y is expected to have {self.n_outputs_} outputs as before, got {outputs}")
        elif loss.name != self._loss:
            raise ValueError(f"expected the loss {self._loss} trained with so far, got {self.loss!r}")
        return encoded
