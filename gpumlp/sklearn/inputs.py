"""What comes into an estimator: samples, targets and weights, checked once; NumPy's, a frame's or CuPy's."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.validation import validate_data

from ..backends import Array, Backend, HostArray, is_device_array, to_host

DTYPE = np.float32


def on_device(array: Any, backend: Backend) -> bool:
    """Is this an array of the GPU's that the backend drives?"""
    return backend.owns(array) and not isinstance(array, np.ndarray)


def to_cpu(array: Any, backend: Backend) -> Any:
    """A device array as a NumPy array; anything else as it is."""
    if on_device(array, backend):
        return backend.to_numpy(array)
    return to_host(array) if is_device_array(array) else array


def read_samples(estimator: Any, X: Any, backend: Backend, *, reset: bool) -> Array:
    """X as ``(samples, features)`` float32, on the device if it came from there, otherwise on the host.

    Args:
        estimator: its ``n_features_in_`` and ``feature_names_in_`` are set with `reset`, else compared with.
        X: array-like, a frame, or a device array.
        backend: of the estimator's device.
        reset: is this the first time?

    Raises:
        ValueError: it is no dense array of finite numbers, or has another number of features.
    """
    if not on_device(X, backend):
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what float32 cannot hold becomes infinite, then refused
            return validate_data(estimator, to_cpu(X, backend), dtype=DTYPE, order="C", reset=reset)
    name = type(estimator).__name__
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"Expected 2D array of shape (samples, features), at least 1 each, got {X.shape}: {name} takes rows "
            "of features"
        )
    if X.dtype.kind not in "fiub":
        raise ValueError(f"X is expected to hold real numbers, got dtype {X.dtype}")
    with backend.activate():
        X = backend.asarray(X, dtype=DTYPE)
        if not backend.all_finite(X):
            raise ValueError("Input X contains NaN or infinity, or a value too large for dtype('float32')")
    if reset:
        estimator.n_features_in_ = X.shape[1]
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif estimator.n_features_in_ != X.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} features, but {name} is expecting {estimator.n_features_in_} features as input"
        )
    return X


def read_targets(y: Any, samples: int, backend: Backend, *, numeric: bool) -> HostArray:
    """y on the host as ``(samples,)`` or ``(samples, outputs)``.

    Raises:
        ValueError: it is missing, not one for each sample, not finite, or not numeric where it has to be.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    y = check_array(
        to_cpu(y, backend),
        accept_sparse="csr",
        ensure_2d=False,
        dtype=np.float64 if numeric else None,
        input_name="y",
    )
    if hasattr(y, "toarray"):  # a sparse indicator matrix
        y = y.toarray()
    if y.ndim > 2:
        raise ValueError(f"y is expected to have shape (samples,) or (samples, outputs), got {y.shape}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    if len(y) != samples:
        raise ValueError(
            f"X and y are expected to have one number of samples, got inconsistent numbers: {samples} and {len(y)}"
        )
    result: HostArray = np.asarray(y)
    return result


def read_weights(
    weights: Any, samples: int, backend: Backend, name: str = "sample_weight"
) -> npt.NDArray[np.float64] | None:
    """Sample weights on the host as ``(samples,)`` float64; None if there are none.

    Raises:
        ValueError: they are not one number of 0 or more for each sample, or all 0.
    """
    if weights is None:
        return None
    weights = to_cpu(weights, backend)
    if isinstance(weights, Real):
        weights = np.full(samples, weights, dtype=np.float64)
    weights = check_array(weights, ensure_2d=False, dtype=np.float64, input_name=name)
    if weights.ndim != 1:
        raise ValueError(f"{name} is expected to be 1D, got an array of shape {weights.shape}")
    if len(weights) != samples:
        raise ValueError(f"{name} is expected to be one for each of {samples} samples, got {len(weights)}")
    if weights.min() < 0:
        raise ValueError(f"{name} is expected to be 0 or more, got {weights.min():g}")
    if not weights.any():
        raise ValueError(f"{name} is expected to have a weight above 0, but all weights are zero")
    result: npt.NDArray[np.float64] = weights
    return result


def check_pair(X_val: Any, y_val: Any, sample_weight_val: Any) -> bool:
    """Is there a validation set?

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
