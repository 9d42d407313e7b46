"""The base class of both estimators: training, early stopping, callbacks, and the fitted network."""

from __future__ import annotations

import copy
import math
import operator
import sys
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..backends import Array, Backend, HostArray, check_dtype, is_device_array
from ..data.dataset import ArrayBatches
from ..nn.losses import Loss
from ..nn.network import MLP, finite_outputs
from ..nn.samples import Inputs, float_targets
from .inputs import (
    ACTIVATIONS,
    answer_dtype,
    check_parameters,
    has_validation_set,
    hidden_sizes,
    is_converted_by_rows,
    on_device,
    read_samples,
    read_targets,
    read_weights,
    to_cpu,
)
from .solver import ROWS, ConvertedBatches, Epochs, Solver, Validation, draw_tensors, make_optimizer, outputs
from .together import SharedSamples, backend_of

try:  # experimental in scikit-learn 1.9
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """An empty class, for versions of scikit-learn without callbacks."""

    def with_callbacks(method: Any) -> Any:
        """Return the method unchanged."""
        return method


MIN_LEARNING_RATE = 1e-6  # learning_rate="adaptive" stops here

_NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
    "preprocessed: scale the features (sklearn.preprocessing.StandardScaler), or lower learning_rate_init."
)
_NETWORK_ATTRIBUTES = ("coefs_", "intercepts_", "_network", "_network_device", "_exposed", "_solver")
_TRAINING_ATTRIBUTES = (
    *("n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "_no_improvement_count"),
    *("validation_scores_", "validation_loss_curve_", "best_validation_score_"),
)


class BaseMLP(CallbackSupportMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator with scikit-learn's parameters and attributes that trains a gpumlp network.

    ``coefs_`` and ``intercepts_`` define the network. On the CPU they are views of its buffer: writing into them
    changes the network. On a GPU they are read-only copies. A replaced array takes effect at the next use.
    """

    coefs_: list[HostArray]
    intercepts_: list[HostArray]
    t_: int
    best_loss_: float | None
    validation_scores_: list[float] | None
    validation_loss_curve_: list[float] | None
    best_validation_score_: float | None
    _solver: Solver | dict[str, Any]
    _numeric: ClassVar[bool]  # whether targets are numbers, not labels
    _metric: ClassVar[Callable[..., float]]  # scikit-learn's, of `score`

    # -- Defined by subclasses ----------------------------------------------------------------------------

    def _encode_targets(
        self, y: HostArray, *, first: bool, same_classes: bool = False, classes: HostArray | None = None
    ) -> HostArray:
        """Class numbers ``(samples,)``, or labels or numbers ``(samples, outputs)``.

        Args:
            y: as `read_targets` returns it.
            first: learn from y the number of outputs, the loss (see `_learn_outputs`) and the classes.
            same_classes: refuse a y in which a class is missing.
            classes: of which y has some, the first time; those of y by default.
        """
        raise NotImplementedError

    def _class_factors(self, encoded: HostArray) -> HostArray | None:
        """``class_weight`` by class number, computed from the training targets; None without class weights."""
        return None

    def _weighted_score(self, encoded: HostArray, predictions: HostArray, weights: HostArray) -> float:
        """scikit-learn's weighted metric, of the network's predictions; here, only losses have weights."""
        return float(type(self)._metric(encoded, predictions, sample_weight=weights))

    # -- Training -----------------------------------------------------------------------------------------

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
            X: ``(samples, features)``: array-like, a data frame, a sparse matrix or array of SciPy, whose rows
                become dense batch by batch, a memory map, of which on the CPU only batches are copied, or a CuPy
                array, which stays on the GPU. Converted to the parameter `dtype`, and otherwise used as it is:
                uint8 values are numbers, not pixels.
            y: ``(samples,)``, or ``(samples, outputs)``.
            sample_weight: ``(samples,)``, 0 or more: the weight of each sample within its batch.
            X_val, y_val, sample_weight_val: validation samples, evaluated after each epoch into
                ``validation_loss_curve_`` and ``validation_scores_``. With ``early_stopping=True`` they decide
                when to stop, in place of a part of X.

        Returns:
            The estimator.

        Raises:
            ValueError: a parameter or an array is invalid, or training diverged.
            DeviceError: the device cannot be used.
        """
        validation = (X_val, y_val, sample_weight_val)
        return self._train(
            (X, y, sample_weight),
            validation if has_validation_set(*validation) else None,
            first=not (self.warm_start and hasattr(self, "coefs_")),
            incremental=False,
        )

    def _train(
        self,
        samples: Any,
        validation: Any,
        *,
        first: bool,
        incremental: bool,
        classes: HostArray | None = None,
    ) -> Any:
        """`fit`, or `partial_fit` if incremental. On failure the previous state, or no fitted state, remains."""
        check_parameters(self)
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        backend = self._backend()
        if first:
            for name in _NETWORK_ATTRIBUTES:
                self.__dict__.pop(name, None)
        X, y, weights = self._read(samples, backend, reset=first)
        encoded = self._encode_targets(y, first=first, same_classes=bool(self.warm_start), classes=classes)
        factors = self._class_factors(encoded)
        weights = _combine(weights, factors, encoded)
        random = check_random_state(self.random_state)
        network = self._new_network(X.shape[1], backend, random) if first else self._network_to_continue()
        solver = self._solver_for(network, incremental=incremental)
        with backend.activate():
            rows, watch, held_out = np.arange(len(y)), None, None
            if validation is not None:
                watch = self._given_validation(network, validation, factors)
            elif self.early_stopping:
                rows, held_out = self._hold_out(y, weights, random)
            batches = self._batches(network, X, encoded, weights, rows, self._batch_size(len(rows)))
            if held_out is not None:
                watch = Validation(batches.select(held_out, ROWS), encoded, weights, self)
            epochs = Epochs(solver, batches, float(self.alpha))
            before = network.parameters.data.copy()
            record = {name: copy.copy(self.__dict__.get(name)) for name in _TRAINING_ATTRIBUTES}
            tasks = None if incremental else EpochTasks(self, *samples)
            try:
                best = self._run_epochs(epochs, watch, random, tasks)
                if best is not None:
                    backend.xp.copyto(network.parameters.data, best)
                if not backend.all_finite(network.parameters.data):
                    raise ValueError(_NOT_FINITE)
            except BaseException:
                backend.xp.copyto(network.parameters.data, before)
                self.__dict__.pop("_solver", None)  # its state belongs to the undone steps
                self.__dict__.update(record)
                raise
        self._solver = solver
        self._expose(network)
        return self

    def _run_epochs(
        self, epochs: Epochs, watch: Validation | None, random: Any, tasks: EpochTasks | None
    ) -> Array | None:
        """The epochs of one `fit`, or, without `tasks`, the one of `partial_fit`.

        Returns:
            The parameters to keep in place of the last ones, where early stopping chose some.
        """
        network, best = epochs.solver.network, None
        if self.early_stopping and self.best_validation_score_ is not None:  # of a previous fit, of these weights
            best = network.parameters.data.copy()
        self.n_iter_ = 0
        try:
            for _ in range(1 if tasks is None else self.max_iter):
                if tasks is not None:
                    tasks.begin_epoch()
                data_loss, penalty, found = epochs.run(random if self.shuffle else None, watch)
                diverged = not math.isfinite(data_loss)
                if diverged and best is None:
                    raise ValueError(_NOT_FINITE)
                self.n_iter_ += 1
                self.t_ += epochs.batches.samples
                self._record_loss(data_loss / self._loss_terms + penalty)
                if watch is not None and found is not None:
                    improved = self._record_validation(*watch.scores(network, found))
                    if improved and self.early_stopping:
                        best = network.parameters.data.copy()
                if self.solver == "sgd" and self.learning_rate == "invscaling":
                    rate = float(self.learning_rate_init) / (self.t_ + 1) ** float(self.power_t)
                    epochs.solver.change_learning_rate(rate)
                ends = self._stops_improving(epochs.solver)
                if tasks is not None and tasks.end_epoch(network):
                    ends = True
                if diverged:
                    warn_user(
                        f"Training diverged in epoch {self.n_iter_}; the weights are those with the best "
                        "validation score. Scale the features, or lower learning_rate_init.",
                        ConvergenceWarning,
                    )
                if ends or diverged:
                    break
            else:
                if tasks is not None:
                    warn_user(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                        "hasn't converged yet.",
                        ConvergenceWarning,
                    )
        except KeyboardInterrupt:
            if self.n_iter_ == 0:
                raise
            warn_user("Training interrupted by user.")
        if tasks is not None:
            tasks.end(network)
        return best

    def _new_network(self, features: int, backend: Backend, random: Any) -> MLP:
        """A network with initial weights, and an empty record of its training."""
        sizes = [features, *hidden_sizes(self.hidden_layer_sizes), self.n_outputs_]
        self.n_layers_, self.n_iter_, self.t_ = len(sizes), 0, 0
        self.loss_curve_: list[float] = []
        self.best_loss_ = None if self.early_stopping else math.inf
        self.validation_scores_ = self.best_validation_score_ = self.validation_loss_curve_ = None
        self._no_improvement_count = 0
        self._activation = ACTIVATIONS[self.activation]
        network = self._make_network(sizes, backend)
        network.load_state_dict(draw_tensors(sizes, self._activation, random))
        return network

    def _make_network(self, sizes: list[int], backend: Backend) -> MLP:
        network = MLP(sizes, self._activation, device=backend, dtype=self.dtype, loss=self._loss)
        network.inputs = Inputs((sizes[0],), "any")
        return network

    def _network_to_continue(self) -> MLP:
        """The current network. Raises ValueError if the parameters describe a different one."""
        network = self._current()
        hidden = hidden_sizes(self.hidden_layer_sizes)
        if hidden != network.sizes[1:-1] or ACTIVATIONS[self.activation] != self._activation:
            raise ValueError(
                f"expected the hidden layers trained so far ({network.sizes[1:-1]}, {self._activation}), got "
                f"{hidden}, {self.activation}; fit with warm_start=False to start again"
            )
        return network

    def _solver_for(self, network: MLP, *, incremental: bool) -> Solver:
        """`partial_fit` continues with the state of the optimizer; `fit` starts with a new one."""
        saved = self.__dict__.get("_solver")
        if not incremental or saved is None:
            return Solver(network, make_optimizer(self))
        return Solver.from_host(network, saved) if isinstance(saved, dict) else saved

    def _learn_outputs(self, outputs: int, loss: Loss) -> None:
        """Set the number of outputs and the loss of the network."""
        self.n_outputs_, self._loss = outputs, loss.name
        self.out_activation_ = "logistic" if loss.output == "sigmoid" else loss.output

    @property
    def _loss_terms(self) -> int:
        """The number of terms of a sample's loss over which scikit-learn reports the mean."""
        return int(self.n_outputs_) if self.out_activation_ == "identity" else 1

    def _read(
        self, given: tuple[Any, Any, Any], backend: Backend, *, reset: bool = False, weights: str = "sample_weight"
    ) -> tuple[Array, HostArray, HostArray | None]:
        """Samples, targets and sample weights, of which `weights` is the name."""
        X = given[0].on(backend, check_dtype(self.dtype)) if isinstance(given[0], SharedSamples) else given[0]
        X = read_samples(self, X, backend, reset=reset)
        y = read_targets(given[1], X.shape[0], backend, numeric=self._numeric)
        return X, y, read_weights(given[2], len(y), backend, weights)

    def _batches(
        self,
        network: MLP,
        X: Array,
        encoded: HostArray,
        weights: HostArray | None,
        rows: HostArray,
        batch_size: int,
    ) -> ArrayBatches:
        """Batches of these rows on the network's device."""
        backend = network.backend
        by_rows = is_converted_by_rows(X, network.dtype)
        targets = encoded
        if network.loss.task != "classes":
            targets = float_targets(network, encoded.reshape(len(encoded), -1), "the values of y")
        if weights is not None:  # not scaled as by Dataset.batches: scikit-learn divides the penalty by their sum
            weights = weights.astype(network.dtype)
        kind, images = (ConvertedBatches, X) if by_rows else (ArrayBatches, backend.asarray(X))
        return kind(images, backend.asarray(targets), rows, batch_size, backend, weights, host_targets=targets)

    def _given_validation(
        self, network: MLP, given: tuple[Any, Any, Any], factors: HostArray | None
    ) -> Validation:
        """The user's own validation samples."""
        X, y, weights = self._read(given, network.backend, weights="sample_weight_val")
        encoded = self._encode_targets(y, first=False)
        weights = _combine(weights, factors, encoded)
        batches = self._batches(network, X, encoded, weights, np.arange(len(y)), ROWS)
        return Validation(batches, encoded, weights, self)

    def _hold_out(self, y: HostArray, weights: HostArray | None, random: Any) -> tuple[HostArray, HostArray]:
        """The rows to train on, and the others to validate on."""
        # As in scikit-learn, only two classes are stratified, so that the same samples are held out.
        binary = (self.out_activation_, self.n_outputs_) == ("logistic", 1)
        rows, held_out = train_test_split(
            np.arange(len(y)),
            random_state=random,
            test_size=self.validation_fraction,
            stratify=y if binary else None,
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        for part, name in ((rows, "training"), (held_out, "validation")):
            if weights is not None and not weights[part].any():
                raise ValueError(f"all samples of the {name} part have weight 0; give X_val and y_val yourself")
        return rows, held_out

    def _batch_size(self, samples: int) -> int:
        if isinstance(self.batch_size, str):
            return min(200, samples)
        if self.batch_size > samples:
            warn_user(f"Got `batch_size` {self.batch_size} larger than sample size {samples}. It is clipped.")
        return min(int(self.batch_size), samples)

    # -- Progress: scikit-learn's rules, count by count, in attributes, so that later calls continue them --

    def _record_loss(self, loss: float) -> None:
        self.loss_ = loss
        self.loss_curve_.append(loss)
        self._say(f"Iteration {self.n_iter_}, loss = {loss:.8f}")
        if not self.early_stopping:
            best = math.inf if self.best_loss_ is None else self.best_loss_
            self._count_improvement(not loss > best - self.tol)
            self.best_loss_ = min(loss, best)

    def _record_validation(self, loss: float, score: float) -> bool:
        """Keep loss and score of the validation samples; True if the score is the best so far."""
        if self.validation_scores_ is None or self.validation_loss_curve_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
        self.validation_scores_.append(score)
        self.validation_loss_curve_.append(loss)
        self._say(f"Validation score: {score:f}")
        best = -math.inf if self.best_validation_score_ is None else self.best_validation_score_
        if self.early_stopping:
            self._count_improvement(not score < best + self.tol)
        self.best_validation_score_ = score if score > best else best
        return bool(score > best)

    def _count_improvement(self, improved: bool) -> None:
        self._no_improvement_count = 0 if improved else self._no_improvement_count + 1

    def _stops_improving(self, solver: Solver) -> bool:
        """Whether to stop. An adaptive learning rate is first divided by 5, down to `MIN_LEARNING_RATE`."""
        if not self._no_improvement_count > self.n_iter_no_change:
            return False
        message = (
            f"{'Validation score' if self.early_stopping else 'Training loss'} did not improve more than "
            f"tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        )
        if self.solver != "sgd" or self.learning_rate != "adaptive":
            self._say(f"{message} Stopping.")
            return True
        if solver.learning_rate <= MIN_LEARNING_RATE:
            self._say(f"{message} Learning rate too small. Stopping.")
            return True
        solver.change_learning_rate(solver.learning_rate / 5)
        self._no_improvement_count = 0
        self._say(f"{message} Setting learning rate to {solver.learning_rate:f}")
        return False

    def _say(self, message: str) -> None:
        if self.verbose:
            print(message)

    # -- The fitted network -------------------------------------------------------------------------------

    def _backend(self) -> Backend:
        """The backend of the parameter `device`. Raises DeviceError if the device cannot be used."""
        network = self.__dict__.get("_network")
        if network is not None and self._network_device == self.device:
            backend: Backend = network.backend
            return backend
        return backend_of(self.device)

    def _expose(self, network: MLP) -> None:
        """Set the estimator's network and its weight attributes."""
        self._network, self._network_device = network, self.device
        if isinstance(network.parameters.data, np.ndarray):
            self.coefs_ = [layer.weight for layer in network.dense_layers]
            self.intercepts_ = [layer.bias for layer in network.dense_layers]
        else:
            self.coefs_, self.intercepts_ = weight_attributes(network).values()
            for array in (*self.coefs_, *self.intercepts_):
                array.flags.writeable = False  # a write would not reach the device
        self._exposed = [*self.coefs_, *self.intercepts_]

    def _current(self) -> MLP:
        """The network with the weights of the attributes, for the parameters `device` and `dtype`.

        Raises:
            NotFittedError: there is none.
            ValueError: a replaced array has a different shape.
        """
        check_is_fitted(self)
        network: MLP | None = self.__dict__.get("_network")
        dtype = check_dtype(self.dtype)
        if network is None or (self._network_device, network.dtype) != (self.device, dtype):
            # unpickled, or a parameter was changed
            sizes = [len(self.coefs_[0]), *(np.shape(weight)[1] for weight in self.coefs_)]
            network = self._make_network(sizes, self._backend())
            solver = self.__dict__.get("_solver")
            if isinstance(solver, Solver):
                self._solver = solver.to_host()
        else:
            arrays = [*self.coefs_, *self.intercepts_]
            if len(arrays) == len(self._exposed) and all(map(operator.is_, arrays, self._exposed)):
                return network
        tensors = {f"layers.{index}.weight": np.asarray(array) for index, array in enumerate(self.coefs_)}
        tensors |= {f"layers.{index}.bias": np.asarray(array) for index, array in enumerate(self.intercepts_)}
        network.load_state_dict(tensors)
        self._expose(network)
        return network

    def _outputs_of(self, X: Any) -> Array:
        """The network's outputs, of the dtype of answers: on the device if X is there, otherwise on the host.

        Raises:
            ValueError: as for `read_samples`, or outputs on the host are not finite.
        """
        network = self._current()
        backend = network.backend
        samples = read_samples(self, X, backend, reset=False)
        with backend.activate():
            source = samples if is_converted_by_rows(samples, network.dtype) else backend.asarray(samples)
            found = outputs(network, source, answer_dtype(X))
        return found if on_device(samples, backend) else finite_outputs(network, backend.to_numpy(found))

    def _score(self, X: Any, y: Any, sample_weight: Any) -> float:
        found = self.predict(X)
        arrays = [to_cpu(array, self._network.backend) for array in (y, found, sample_weight)]
        return float(type(self)._metric(*arrays[:2], sample_weight=arrays[2]))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coefs_")

    def __getstate__(self) -> dict[str, Any]:
        """The state, with all arrays on the host: an estimator fitted on a GPU can be unpickled without one."""
        state = dict(super().__getstate__())
        for name in ("_network", "_network_device", "_exposed"):
            state.pop(name, None)
        solver = state.get("_solver")
        if isinstance(solver, Solver):
            state["_solver"] = solver.to_host()
        return state

    def __sklearn_array_api_convert__(self, converter: Any) -> Any:
        """A copy on the device to which `converter` moves arrays, for scikit-learn's ``move_estimator_to``."""
        probe = converter(np.zeros(1, dtype=np.float32))
        moved = copy.copy(self)
        if isinstance(probe, np.ndarray):
            moved.device = "cpu"
        elif is_device_array(probe):
            moved.device = f"cuda:{probe.device.id}"
        else:
            raise ValueError(f"expected arrays of NumPy or CuPy, got {type(probe).__module__}")
        return moved


class EpochTasks:
    """Calls the scikit-learn callbacks of an estimator for each epoch; no cost without callbacks."""

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        self._estimator = estimator
        self._fit: Any = None
        self._epoch: Any = None
        self._data = {"X": X, "y": y}
        if sample_weight is not None:
            self._data["metadata"] = {"sample_weight": sample_weight}
        if hasattr(estimator, "_init_callback_context"):
            self._fit = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self._fit.call_on_fit_task_begin(estimator=estimator, **self._data)
        self._active = bool(getattr(estimator, "_skl_callbacks", None))

    def begin_epoch(self) -> None:
        if self._fit is not None and self._active:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def end_epoch(self, network: MLP) -> bool:
        """True if a callback asks to stop."""
        return self._epoch is not None and bool(self._end(self._epoch, network))

    def end(self, network: MLP) -> None:
        if self._fit is not None:
            self._end(self._fit, network)

    def _end(self, context: Any, network: MLP) -> Any:
        return context.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=lambda: weight_attributes(network), **self._data
        )


def weight_attributes(network: MLP) -> dict[str, list[HostArray]]:
    """``coefs_`` and ``intercepts_``: copies of the current weights on the host."""
    tensors, layers = network.state_dict(), range(len(network.dense_layers))
    return {
        "coefs_": [tensors[f"layers.{index}.weight"] for index in layers],
        "intercepts_": [tensors[f"layers.{index}.bias"] for index in layers],
    }


def warn_user(message: str, kind: type[Warning] = UserWarning) -> None:
    """Issue a warning that refers to the first frame outside of gpumlp and scikit-learn."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("gpumlp.", "sklearn.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, kind, stacklevel=level)


def _combine(weights: HostArray | None, factors: HostArray | None, encoded: HostArray) -> HostArray | None:
    """Sample weights times class weights; None if all samples weigh the same."""
    if factors is None:
        return weights
    by_sample: HostArray = factors[encoded]
    return by_sample if weights is None else weights * by_sample
