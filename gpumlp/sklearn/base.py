"""What both estimators share: how `fit` and `partial_fit` train."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from ..backends import Array, Backend
from ..nn.network import MLP
from .callbacks import CallbackSupportMixin, EpochTasks, with_callbacks
from .fitted import Fitted
from .inputs import check_pair, read_samples, read_targets, read_weights
from .parameters import ACTIVATIONS, check_parameters, hidden_sizes
from .preparing import Preparing, warn_user
from .solver import Epochs, Solver, draw_network, make_optimizer
from .stopping import Progress
from .validation import Validation

_NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
    "preprocessed: scale the features (sklearn.preprocessing.StandardScaler), or lower learning_rate_init."
)

_OF_A_NETWORK = ("coefs_", "intercepts_", "_network", "_on", "_shown", "_solver")
_OF_A_TRAINING = (
    *("n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "_no_improvement_count"),
    *("validation_scores_", "validation_loss_curve_", "best_validation_score_"),
)


class BaseMLP(Preparing, Fitted, CallbackSupportMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator with scikit-learn's parameters and attributes, and a gpumlp network inside."""

    @with_callbacks  # type: ignore[untyped-decorator,unused-ignore]
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Any:
        """Train on X and y.

        Args:
            X: ``(samples, features)``: array-like, a frame, or a CuPy array, which stays on the GPU. Converted to
                float32. Sparse matrices are refused.
            y: ``(samples,)``, or ``(samples, outputs)``.
            sample_weight: ``(samples,)``, 0 or more: how much each sample counts within its batch.
            X_val, y_val, sample_weight_val: samples to validate on after each epoch, which fill
                ``validation_loss_curve_`` and ``validation_scores_``. With ``early_stopping=True`` they decide
                when to stop, in place of a part of X.

        Returns:
            The estimator.

        Raises:
            ValueError: a parameter or an array is not as expected, or the training diverged.
            DeviceError: the device cannot be used.
        """
        validation = (X_val, y_val, sample_weight_val) if check_pair(X_val, y_val, sample_weight_val) else None
        first = not (self.warm_start and hasattr(self, "coefs_"))
        return self._train(X, y, sample_weight, validation, first=first, incremental=False)

    def _train(
        self, X: Any, y: Any, sample_weight: Any, validation: Any, *, first: bool, incremental: bool
    ) -> Any:
        check_parameters(type(self).__name__, self.get_params(deep=False))
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        backend, given = self._backend(), (X, y, sample_weight)
        if first:  # what fails from here on leaves an estimator that is not fitted, rather than half of two
            for name in _OF_A_NETWORK:
                self.__dict__.pop(name, None)
        X = read_samples(self, X, backend, reset=first)
        y = read_targets(y, len(X), backend, numeric=self._numeric)
        targets = self._read_y(y, first=first, same=bool(self.warm_start))
        factors = self._class_factors(targets)
        weights = self._weights(read_weights(sample_weight, len(X), backend), targets, factors)
        random = check_random_state(self.random_state)
        network = self._begin(X.shape[1], backend, random) if first else self._going_on()
        solver = self._solver_of(network, incremental=incremental)
        with backend.activate():
            images = backend.asarray(X, dtype=network.dtype)
            rows, watch = self._validation(images, targets, weights, validation, factors, random, backend)
            batch_size = self._batch_size(len(rows))
            epochs = Epochs(solver, images, backend.asarray(targets), rows, batch_size, weights, float(self.alpha))
            before = network.parameters.data.copy()
            record = {name: copy.copy(self.__dict__.get(name)) for name in _OF_A_TRAINING}
            try:
                best = self._run(epochs, solver, watch, random, given, incremental=incremental)
                if best is not None:
                    backend.xp.copyto(network.parameters.data, best)
                if not backend.all_finite(network.parameters.data):
                    raise ValueError(_NOT_FINITE)
            except BaseException:
                backend.xp.copyto(network.parameters.data, before)
                self.__dict__.pop("_solver", None)  # what it remembers belongs to what was undone
                self.__dict__.update(record)
                raise
        self._solver = solver
        self._expose(network)
        return self

    def _run(
        self,
        epochs: Epochs,
        solver: Solver,
        watch: Validation | None,
        random: Any,
        given: Any,
        *,
        incremental: bool,
    ) -> Array | None:
        """The epochs of one call; the parameters to keep in place of the last, if early stopping chose some."""
        network, best = solver.network, None
        by_score = bool(self.early_stopping and watch is not None)
        if by_score and self.best_validation_score_ is not None:  # of the fit before, which left the best weights
            best = network.parameters.data.copy()
        progress = Progress(self, by_score=by_score)
        tasks = None if incremental else EpochTasks(self, given, self.max_iter)
        ended = incremental
        self.n_iter_ = 0
        try:
            while self.n_iter_ < (1 if incremental else self.max_iter):
                if tasks is not None:
                    tasks.begin_epoch()
                data_loss, penalty = epochs.run(random if self.shuffle else None)
                diverged = not np.isfinite(data_loss)
                if diverged and best is None:
                    raise ValueError(_NOT_FINITE)
                self.n_iter_ += 1
                self.t_ += epochs.batches.samples
                progress.note_loss(data_loss / self._loss_terms() + penalty)
                if watch is not None and progress.note_validation(*watch(network)) and by_score:
                    best = network.parameters.data.copy()
                if self.solver == "sgd" and self.learning_rate == "invscaling":
                    rate = float(self.learning_rate_init) / (self.t_ + 1) ** float(self.power_t)
                    solver.change_learning_rate(rate)
                ended = progress.is_over(solver) or ended
                if tasks is not None and tasks.end_epoch(lambda: self._attributes(network)):
                    ended = True
                if diverged:
                    warn_user(
                        f"Training diverged in epoch {self.n_iter_}; the weights are those with the best "
                        "validation score. Scale the features, or lower learning_rate_init.",
                        ConvergenceWarning,
                    )
                    ended = True
                if ended:
                    break
        except KeyboardInterrupt:
            if self.n_iter_ == 0:
                raise
            warn_user("Training interrupted by user.")
            ended = True
        if not ended:
            warn_user(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                "converged yet.",
                ConvergenceWarning,
            )
        if tasks is not None:
            tasks.end(lambda: self._attributes(network))
        return best

    # -- The parts of it ----------------------------------------------------------------------------------

    def _begin(self, features: int, backend: Backend, random: Any) -> MLP:
        """A new network, and an empty record of its training."""
        sizes = [features, *hidden_sizes(self.hidden_layer_sizes), self.n_outputs_]
        self.n_layers_, self.n_iter_, self.t_ = len(sizes), 0, 0
        self._activation = ACTIVATIONS[self.activation]
        Progress.start(self)
        return draw_network(sizes, self._activation, self._loss, backend, random)

    def _going_on(self) -> MLP:
        """The network that there is.

        Raises:
            ValueError: the parameters describe another.
        """
        network = self._current()
        hidden = hidden_sizes(self.hidden_layer_sizes)
        if hidden != network.sizes[1:-1] or ACTIVATIONS[self.activation] != self._activation:
            raise ValueError(
                f"expected the hidden layers that were trained so far ({network.sizes[1:-1]}, {self._activation}) "
                f"to go on with, got {hidden}, {self.activation}; fit with warm_start=False to begin anew"
            )
        return network

    def _solver_of(self, network: MLP, *, incremental: bool) -> Solver:
        """`partial_fit` goes on with the optimizer's state; `fit` begins with a fresh one."""
        saved = self.__dict__.get("_solver")
        if not incremental or saved is None:
            return Solver(network, make_optimizer(self))
        return Solver.from_host(network, saved) if isinstance(saved, dict) else saved
