"""Targets of a data set: classes, several labels a sample, or numbers; the one rule that tells them apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backends import is_device_array, to_host
from ..words import listed, numeric_array
from .labels import DataError, checked_names, encode_labels, require_finite, to_array

TASKS = ("classes", "labels", "numbers")


class Targets(NamedTuple):
    """What the network is to give for each sample.

    Attributes:
        task: ``"classes"``, ``"labels"`` or ``"numbers"``.
        values: classes ``(n,)`` int64; labels ``(n, columns)`` bool; numbers ``(n, columns)`` float64.
        classes: how many classes there are, or labels; 0 for numbers.
        names: what these are called; None for 0, 1, 2, ... and for numbers.
    """

    task: str
    values: npt.NDArray[Any]
    classes: int
    names: tuple[Any, ...] | None


def encode_targets(
    targets: Any,
    samples: int,
    name: str,
    task: str | None = None,
    classes: int | None = None,
    class_names: Iterable[Any] | None = None,
) -> Targets:
    """Tell what some targets are, and check and convert them; arguments as for `Dataset`.

    Args:
        targets: array-like, or a device array.
        samples: how many there have to be.
        name: begins each message.

    Raises:
        DataError: the targets are none of the three, or do not have the values of their kind.

    Warns:
        UserWarning: numbers by their dtype that are all whole.
    """
    if task not in (None, *TASKS):
        raise DataError(f"{name}: task must be 'classes', 'labels' or 'numbers', got {task!r}")
    what = f"{name}: targets"
    values = _checked_array(targets, samples, what)
    settled = task or _task_of(values, what)
    if settled == "classes":
        return Targets(settled, *encode_labels(_one_column(values, what), f"{name}: labels", classes, class_names))
    if settled == "labels":
        return Targets(settled, *_as_labels(values, what, classes, class_names))
    if classes is not None or class_names is not None:
        raise DataError(
            f"{what} must be classes or labels where classes or class_names are given, got numbers of dtype "
            f'{values.dtype}; leave these out, or add task="classes" if the targets are classes'
        )
    numbers = _as_numbers(values, what)
    if task is None and ((numbers == np.rint(numbers)) & (np.abs(numbers) < 2.0**53)).all():
        warnings.warn(
            f"{what} are whole numbers as floats, so a regression; give integers for classes, or "
            'Dataset(..., task="numbers") (--task numbers) to settle it',
            UserWarning,
            stacklevel=3,
        )
    return Targets(settled, numbers, 0, None)


def check_weights(weights: Any, samples: int, name: str) -> npt.NDArray[np.float64] | None:
    """Sample weights on the host, ``(samples,)`` float64; None without any.

    Raises:
        DataError: they are not one finite number of 0 or more for each sample, or all are 0.
    """
    if weights is None:
        return None
    what = f"{name}: weights"
    values = _without_objects(to_array(to_host(weights) if is_device_array(weights) else weights, what))
    if values.shape != (samples,) or values.dtype.kind not in "biuf":
        raise DataError(
            f"{what} must be numbers of shape ({samples},), got shape {values.shape} of dtype {values.dtype}; "
            "give one number for each sample"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float64, copy=False)
    require_finite(values, what, "weights")
    if values.min() < 0:
        where = int(values.argmin())
        raise DataError(f"{what} must be 0 or more, but weights[{where}] is {values[where]:g}; correct it")
    if not values.any():
        raise DataError(f"{what} must have a value above 0, but all are zero; give larger ones, or leave them out")
    return values


def _checked_array(targets: Any, samples: int, what: str) -> npt.NDArray[Any]:
    values = to_array(to_host(targets) if is_device_array(targets) else targets, what)
    if values.ndim not in (1, 2) or 0 in values.shape[1:]:
        cure = numeric_array(values) if values.shape == () else "give one value or one row for each sample"
        raise DataError(
            f"{what} must be of shape ({samples},) or ({samples}, columns), got {values.shape}; {cure}"
        )
    if len(values) != samples:
        raise DataError(f"{what} must be one for each of {samples:,} images, got {len(values):,}; pair them up")
    values = _without_objects(values)
    if values.dtype.kind not in "biuUf":
        cures = {"S": "use targets.astype(str)", "c": "give real and imaginary part as two columns"}
        raise DataError(
            f"{what} must be integers, bools or strings for classes, or floats for numbers, got dtype "
            f"{values.dtype}; {cures.get(values.dtype.kind, 'convert them, and leave out what is missing')}"
        )
    return values


def _without_objects(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of objects of one type, as data frames have them, as an array of that type; others unchanged."""
    if values.dtype.kind == "T":  # strings of any length
        values = values.astype(object)
    if values.dtype == object:
        given = [value.item() if isinstance(value, np.generic) else value for value in values.ravel().tolist()]
        kinds = {type(value) for value in given}
        if len(kinds) == 1 and kinds <= {str, int, bool, float}:
            return np.array(given).reshape(values.shape)
    return values


def _task_of(values: npt.NDArray[Any], what: str) -> str:
    """What targets are by their dtype, shape and values."""
    kind = values.dtype.kind
    if values.ndim == 1 or values.shape[1] == 1:
        return "numbers" if kind == "f" else "classes"
    if _first_not_binary(values) is None:
        if (values.sum(axis=1) == 1).all():
            raise DataError(
                f"{what} must be of one kind, but each row of {values.shape} has exactly one 1; give "
                'targets.argmax(axis=1) if they are one-hot classes, or Dataset(..., task="labels") '
                "(--task labels) if a sample can have several labels"
            )
        return "labels"
    if kind == "f":
        return "numbers"
    raise DataError(
        f"{what} must be one column of classes, or 0 and 1 for several labels a sample, got a matrix of shape "
        f"{values.shape} of dtype {values.dtype}; give one column, or targets.astype(float) or "
        'Dataset(..., task="numbers") (--task numbers) for numbers'
    )


def _first_not_binary(values: npt.NDArray[Any]) -> tuple[int, ...] | None:
    """The place of the first value that is neither 0 nor 1."""
    if values.dtype.kind == "b":
        return None
    bad = np.ones(values.shape, bool) if values.dtype.kind == "U" else (values != 0) & (values != 1)
    return tuple(map(int, np.unravel_index(bad.argmax(), bad.shape))) if bad.any() else None


def _one_column(values: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """Classes as ``(n,)`` integers, bools or strings."""
    if values.ndim == 2:
        if values.shape[1] != 1:
            raise DataError(
                f"{what} must be of shape ({len(values)},) for classes, got {values.shape}; if one-hot, use "
                "targets.argmax(axis=1)"
            )
        values = values.ravel()
    if values.dtype.kind == "f":
        require_finite(values, what, "targets")
        bad = (values != np.rint(values)) | (np.abs(values) >= 2.0**63)
        if bad.any():
            where = int(bad.argmax())
            raise DataError(
                f"{what} must be whole numbers for classes, but targets[{where}] is {values[where]}; correct it, "
                'or give task="numbers" (--task numbers) for a regression'
            )
        values = values.astype(np.int64)
    return values


def _as_labels(
    values: npt.NDArray[Any], what: str, classes: int | None, class_names: Iterable[Any] | None
) -> tuple[npt.NDArray[np.bool_], int, tuple[Any, ...] | None]:
    if values.ndim == 1:
        raise DataError(
            f"{what} must be of shape ({len(values)}, columns) for labels, one column for each, got "
            f"{values.shape}; use targets.reshape(-1, 1) for one label"
        )
    where = _first_not_binary(values)
    if where is not None:
        raise DataError(
            f"{what} must be 0 and 1 for labels, but targets{list(where)} is {values[where]}; correct it, or give "
            'another task: "classes" or "numbers"'
        )
    columns = values.shape[1]
    names = None if class_names is None else checked_names(class_names, what)
    for given, found in (("classes", classes), ("class_names", None if names is None else len(names))):
        if found not in (None, columns):
            raise DataError(f"{what}: {given} must be {columns}, one for each column, got {found}; correct it")
    return values.astype(bool, copy=False), columns, names


def _as_numbers(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.float64]:
    if values.dtype.kind == "U":
        raise DataError(
            f"{what} must be numbers, got strings such as {listed(values.flat[:1])}; use targets.astype(float), "
            "or leave out the task for classes"
        )
    with np.errstate(over="ignore"):  # a long double that is too large becomes inf: refused
        numbers = values.astype(np.float64, copy=False)
    require_finite(numbers, what, "targets")
    return numbers.reshape(len(numbers), -1)
