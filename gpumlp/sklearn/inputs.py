"""The inputs of an estimator: samples, targets and weights from NumPy, SciPy, data frames or CuPy; parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.validation import validate_data

from ..backends import Array, Backend, HostArray, check_device_name, check_dtype, is_device_array, to_host
from ..data.labels import to_array
from ..data.targets import check_weights
from ..nn.activations import ACTIVATIONS as KINDS
from ..nn.hyperparameters import flag, number, whole

ACTIVATIONS = {{"sigmoid": "logistic"}.get(name, name): name for name in KINDS}  # scikit-learn's name: gpumlp's
MAX_FUN = 15_000  # scikit-learn's default


def on_device(array: Any, backend: Backend) -> bool:
    """Whether this is an array on the backend's GPU."""
    return backend.owns(array) and not isinstance(array, np.ndarray)


def to_cpu(array: Any, backend: Backend) -> Any:
    """A device array as a NumPy array; anything else unchanged."""
    if on_device(array, backend):
        return backend.to_numpy(array)
    return to_host(array) if is_device_array(array) else array


def read_samples(estimator: Any, X: Any, backend: Backend, *, reset: bool) -> Array:
    """X as ``(samples, features)`` of the estimator's dtype, on the device if it is there already, or on the host.

    A sparse X becomes a CSR matrix or array of SciPy. On the CPU, a memory map of numbers keeps its dtype and
    is not copied: its rows are converted as they are used.

    Args:
        estimator: its ``n_features_in_`` and ``feature_names_in_`` are set if `reset`, and otherwise compared.
        X: array-like, a data frame, a sparse matrix or array of SciPy, or a device array.
        backend: of the estimator's device.
        reset: whether this is the first fit.

    Raises:
        ValueError: X does not hold finite numbers, or has a different number of features.
    """
    dtype = check_dtype(estimator.dtype)
    if isinstance(X, np.memmap) and X.dtype.kind in "buif" and backend.name == "cpu":
        mapped: HostArray = validate_data(estimator, X, dtype=None, reset=reset)
        _require_range(mapped, dtype)
        return mapped
    if not on_device(X, backend):
        with np.errstate(over="ignore", invalid="ignore"):  # values too large for float32 become inf: refused
            return validate_data(
                estimator,
                _as_array(to_cpu(X, backend), "X"),
                accept_sparse="csr",
                dtype=dtype,
                order="C",
                reset=reset,
            )
    name = type(estimator).__name__
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"Expected 2D array of shape (samples, features), at least 1 each, got {X.shape}: {name} takes rows "
            "of features"
        )
    if X.dtype.kind not in "fiub":
        raise ValueError(f"X is expected to hold real numbers, got dtype {X.dtype}")
    with backend.activate():
        X = backend.asarray(X, dtype=dtype)
        if not backend.all_finite(X):
            raise ValueError(f"Input X contains NaN or infinity, or a value too large for {dtype!r}")
    if reset:
        estimator.n_features_in_ = X.shape[1]
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif estimator.n_features_in_ != X.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} features, but {name} is expecting {estimator.n_features_in_} features as input"
        )
    return X


def is_converted_by_rows(X: Any, dtype: np.dtype[Any]) -> bool:
    """Whether the rows of samples from `read_samples` are converted as they are used: sparse ones, memory maps."""
    return issparse(X) or (isinstance(X, np.ndarray) and not (X.dtype == dtype and X.flags.c_contiguous))


def _require_range(X: HostArray, dtype: npt.DTypeLike) -> None:
    """Raise ValueError if a value is too large for the dtype; a part of X is in memory at a time."""
    if X.dtype.kind != "f" or X.dtype.itemsize <= np.dtype(dtype).itemsize:
        return
    limit, step = np.finfo(dtype).max, max(1, 2**20 // X.shape[1])
    for start in range(0, len(X), step):
        if not np.abs(X[start : start + step]).max() <= limit:
            raise ValueError(f"Input X contains infinity or a value too large for {np.dtype(dtype)!r}.")


def answer_dtype(X: Any) -> np.dtype[Any]:
    """The dtype of answers for X, as in scikit-learn: float32 for float32, otherwise float64."""
    dtypes = [X.dtype] if hasattr(X, "dtype") else list(getattr(X, "dtypes", ()))  # a data frame has several
    names = {str(getattr(dtype, "name", dtype)).lower() for dtype in dtypes}
    return np.dtype(np.float32 if names == {"float32"} else np.float64)


def read_targets(y: Any, samples: int, backend: Backend, *, numeric: bool) -> HostArray:
    """y on the host as ``(samples,)`` or ``(samples, outputs)``.

    Raises:
        ValueError: y is missing, has another number of samples, is not finite, or not numeric if `numeric`.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    y = check_array(
        _as_array(to_cpu(y, backend), "y"),
        accept_sparse="csr",
        ensure_2d=False,
        dtype=np.float64 if numeric else None,
        input_name="y",
    )
    if hasattr(y, "toarray"):  # a sparse indicator matrix
        y = y.toarray()
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    if len(y) != samples:
        raise ValueError(
            "X and y are expected to have the same number of samples, got inconsistent numbers: "
            f"{samples} and {len(y)}"
        )
    result: HostArray = np.asarray(y)
    return result


def _as_array(values: Any, name: str) -> Any:
    """Lists and masked arrays as arrays; scikit-learn makes text of NaN in a list of words, and ignores masks."""
    return to_array(values, name) if isinstance(values, list | tuple | np.ma.MaskedArray) else values


def read_weights(
    weights: Any, samples: int, backend: Backend, name: str = "sample_weight"
) -> npt.NDArray[np.float64] | None:
    """Sample weights on the host as ``(samples,)`` float64; None without weights. One number is that of all.

    Raises:
        ValueError: they are not one number of 0 or more per sample, or all 0.
    """
    weights = to_cpu(weights, backend)
    return check_weights(np.full(samples, weights) if isinstance(weights, Real) else weights, samples, name)


def has_validation_set(X_val: Any, y_val: Any, sample_weight_val: Any) -> bool:
    """Whether a validation set was given.

    Raises:
        ValueError: only a part of it was given.
    """
    if X_val is None and y_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val is provided, but X_val and y_val were not provided.")
        return False
    if y_val is None:
        raise ValueError("X_val is provided, but y_val was not provided.")
    if X_val is None:
        raise ValueError("y_val is provided, but X_val was not provided.")
    return True


# -- Parameters ------------------------------------------------------------------------------------------

Check = Callable[[str, Any], object]  # raises ValueError for a value that is not allowed


def hidden_sizes(value: Any) -> list[int]:
    """Units of each hidden layer.

    Raises:
        ValueError: the value is neither a whole number of 1 or more nor a sequence of such numbers.
    """
    sizes = [*value] if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]
    return [whole("a size in hidden_layer_sizes", size, 1) for size in sizes]


def _real(low: float, high: float = math.inf, **ends: bool) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name} is expected to be a number, got {value!r}")
        number(name, value, low, high, **ends)

    return check


def _choice(*choices: str, unsupported: str | None = None) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            instead = f"; gpumlp does not support {name}={value!r}, {_INSTEAD}" if value == unsupported else ""
            raise ValueError(f"{name} is expected to be {' or '.join(map(repr, choices))}, got {value!r}{instead}")

    return check


def _count(other: str | float | None = None) -> Check:
    """A whole number of 1 or more, or `other`."""

    def check(name: str, value: Any) -> None:
        if not (isinstance(value, (str, Real)) and value == other):
            whole(name if other is None else f"{name}, if not {other!r},", value, 1)

    return check


def _verbose(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_, Integral)):
        raise ValueError(f"{name} is expected to be True, False or a whole number, got {value!r}")


def _max_fun(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or value != MAX_FUN:
        raise ValueError(
            f"max_fun is expected to be {MAX_FUN} (the default), got {value!r}; it belongs to solver='lbfgs', "
            f"which gpumlp does not support, {_INSTEAD}"
        )


def _class_weight(name: str, value: Any) -> None:
    if not (value is None or isinstance(value, Mapping) or (isinstance(value, str) and value == "balanced")):
        raise ValueError(f"{name} is expected to be None, 'balanced' or a dict of weights by class, got {value!r}")


_INSTEAD = "use sklearn.neural_network instead"
_FRACTION = _real(0, 1, open_high=True)
RANGES: dict[str, Check] = {
    "loss": _choice("squared_error", "poisson"),
    "hidden_layer_sizes": lambda name, value: hidden_sizes(value),
    "activation": _choice(*ACTIVATIONS),
    "solver": _choice("sgd", "adam", unsupported="lbfgs"),
    "alpha": _real(0),
    "batch_size": _count("auto"),
    "learning_rate": _choice("constant", "invscaling", "adaptive"),
    "learning_rate_init": _real(0, open_low=True),
    "power_t": _real(0),
    "max_iter": _count(),
    "shuffle": flag,
    "tol": _real(0),
    "verbose": _verbose,
    "warm_start": flag,
    "momentum": _FRACTION,
    "nesterovs_momentum": flag,
    "early_stopping": flag,
    "validation_fraction": _FRACTION,
    "beta_1": _FRACTION,
    "beta_2": _FRACTION,
    "epsilon": _real(0, open_low=True),
    "n_iter_no_change": _count(math.inf),
    "max_fun": _max_fun,
    "class_weight": _class_weight,
    "device": lambda name, value: isinstance(value, Backend) or check_device_name(value),
    "dtype": lambda name, value: check_dtype(value),
}


def check_parameters(estimator: Any) -> None:
    """Check all parameters, including for values of scikit-learn that gpumlp does not support.

    Raises:
        ValueError: with the expected and the given value of each invalid parameter.
    """
    problems = []
    for name, value in estimator.get_params(deep=False).items():
        try:
            if name in RANGES:
                RANGES[name](name, value)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{type(estimator).__name__}: {'; '.join(problems)}")
