"""The regressor."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from ..backends import HostArray, array_namespace
from . import inputs
from .base import BaseMLP
from .inputs import to_cpu
from .parameters import MAX_FUN


class MLPRegressor(RegressorMixin, BaseMLP):  # type: ignore[misc]
    """scikit-learn's `MLPRegressor`, trained by gpumlp: on an NVIDIA GPU, or faster on the CPU.

    The parameters are scikit-learn's, with its defaults and meanings: see `sklearn.neural_network.MLPRegressor`.
    One ``random_state`` gives the same initial weights, batches and, up to the rounding of float32, losses.

    Not offered, and refused by `fit`: ``loss="poisson"``, ``solver="lbfgs"`` and with it ``max_fun``,
    ``momentum=1``, sparse X.

    Args:
        device: ``"auto"`` (a usable GPU, otherwise the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...

    Attributes:
        coefs_, intercepts_: weights and biases of each layer, NumPy arrays of float32.
        loss_curve_: half the mean squared error of each epoch, with the penalty; also `loss_` and `best_loss_`.
        validation_scores_, validation_loss_curve_, best_validation_score_: R^2 and half the mean squared error of
            each epoch on the validation samples, if there are any; otherwise None.
        n_iter_, n_layers_, n_outputs_, out_activation_, t_, n_features_in_, feature_names_in_: as in scikit-learn.

    >>> import numpy as np
    >>> from gpumlp.sklearn import MLPRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> model = MLPRegressor(hidden_layer_sizes=20, batch_size=20, learning_rate_init=0.01, random_state=0)
    >>> model.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.98
    True
    """

    _numeric = True

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

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train for one epoch on X and y, going on from where the last call ended; arguments as for `fit`.

        Raises:
            ValueError: as `fit`.
        """
        return self._train(X, y, sample_weight, None, first=not hasattr(self, "coefs_"), incremental=True)

    def predict(self, X: Any) -> Any:
        """The value for each sample, ``(samples,)`` or ``(samples, outputs)`` float32; on the GPU if X is."""
        found = self._outputs_of(X)
        with self._network.backend.activate():
            return array_namespace(found).ravel(found) if self.n_outputs_ == 1 else found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2, the coefficient of determination, a Python float; with several outputs their mean."""
        found = self.predict(X)
        backend = self._network.backend
        found, y, sample_weight = (to_cpu(array, backend) for array in (found, y, sample_weight))
        return float(r2_score(y, found, sample_weight=sample_weight))

    # -- Inside -----------------------------------------------------------------------------------------

    def _read_y(self, y: HostArray, *, first: bool, same: bool = False) -> HostArray:
        targets = y[:, None] if y.ndim == 1 else y
        if first:
            self.n_outputs_ = targets.shape[1]
            self.out_activation_, self._loss = "identity", "squared_error"
        elif targets.shape[1] != self.n_outputs_:
            raise ValueError(f"y is expected to have {self.n_outputs_} outputs as before, got {targets.shape[1]}")
        with np.errstate(over="ignore"):
            result: HostArray = targets.astype(inputs.DTYPE)
        if not np.isfinite(result).all():
            raise ValueError(
                f"y is expected to fit into float32, got values up to {np.abs(targets).max():g}; scale it"
            )
        return result

    def _loss_terms(self) -> int:
        return int(self.n_outputs_)

    def _score_outputs(self, found: HostArray, targets: HostArray, correct: HostArray, weights: Any) -> float:
        return float(r2_score(targets, found, sample_weight=weights))
