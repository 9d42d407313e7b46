"""Labels as class numbers 0, 1, 2, ...: the one encoder, for arrays, files and estimators; weights and a split."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backends import HostArray
from ..strict_json import is_text
from ..words import listed, shown

_MAX_CLASSES = 2**31  # class numbers must fit an int32 on every device


class DataError(ValueError):
    """A file, an array or a name is not usable as data; the message says which, why, and what to do."""


class Classes(NamedTuple):
    """Labels as class numbers.

    Attributes:
        numbers: ``(n,)`` int64, 0 <= number < classes.
        classes: how many there are.
        names: what the classes are called, by number; None where these are the numbers themselves.
    """

    numbers: npt.NDArray[np.int64]
    classes: int
    names: tuple[Any, ...] | None


def encode_labels(
    values: npt.NDArray[Any],
    what: str,
    classes: int | None = None,
    class_names: Iterable[Any] | None = None,
) -> Classes:
    """Number the classes of some labels.

    Args:
        values: ``(samples,)`` integers, bools or strings.
        what: begins each message, such as ``"own.npz: labels"``.
        classes: the number of classes; the labels are class numbers, of which some may be absent.
        class_names: what the classes are called, in the order of their numbers. Without `classes`, the labels are
            names among these. Without both, the classes are the distinct labels in sorted order.

    Raises:
        DataError: a label is not among the classes, or is probably a mistake.
    """
    names = None if class_names is None else checked_names(class_names, what)
    if classes is not None:
        count = _checked_count(classes, names, what)
        return Classes(_class_numbers(values, count, what), count, names)
    if names is not None:
        return Classes(_numbers_of(values, names, what), len(names), names)
    distinct, counts = np.unique(values, return_counts=True)
    if values.dtype.kind in "iu":
        _refuse_stray(distinct, counts, values, what)
        if int(distinct[0]) == 0 and int(distinct[-1]) == len(distinct) - 1:
            return Classes(values.astype(np.int64, copy=False), max(2, len(distinct)), None)
    numbers = np.searchsorted(distinct, values)
    return Classes(numbers.astype(np.int64, copy=False), len(distinct), _text(distinct.tolist(), what))


def checked_names(class_names: Iterable[Any], what: str) -> tuple[Any, ...]:
    """Names of classes or labels, different strings or integers."""
    if isinstance(class_names, str):
        raise DataError(f"{what}: class_names must be a list of names, got {class_names!r}")
    names = tuple(to_array(class_names, f"{what}: class_names").tolist())
    if not names or not all(isinstance(name, str | int) for name in names) or len(set(names)) < len(names):
        raise DataError(f"{what}: class_names must be different strings or integers, got {listed(names)}")
    return _text(names, what)


def _text(names: Iterable[Any], what: str) -> tuple[Any, ...]:
    """Names that a file can hold."""
    for name in names:
        if isinstance(name, str) and not is_text(name):
            raise DataError(f"{what} must be text, but {name!r} holds half of a surrogate pair; read it as UTF-8")
    return tuple(names)


def _checked_count(classes: int, names: tuple[Any, ...] | None, what: str) -> int:
    try:
        count = operator.index(classes)
    except TypeError:
        raise DataError(f"{what}: classes must be an integer, got {classes!r}; leave it out to count") from None
    if not 2 <= count <= _MAX_CLASSES:
        raise DataError(f"{what}: classes must be from 2 to {_MAX_CLASSES}, got {count}; leave it out to count")
    if names is not None and len(names) != count:
        raise DataError(f"{what}: class_names must be {count}, one for each class, got {len(names)}")
    return count


def _class_numbers(values: npt.NDArray[Any], count: int, what: str) -> npt.NDArray[np.int64]:
    if values.dtype.kind == "U":
        raise DataError(
            f"{what} must be class numbers from 0 to {count - 1}, got strings; give these numbers, or leave out "
            "classes"
        )
    for wrong in (int(values.min()), int(values.max())):
        if not 0 <= wrong < count:
            where = int((values == wrong).argmax())
            raise DataError(
                f"{what} must be classes from 0 to {count - 1}, but labels[{where}] is {wrong}; "
                "correct the labels, or the number of classes"
            )
    return values.astype(np.int64, copy=False)


def places_of(values: npt.NDArray[Any], names: Iterable[Any]) -> npt.NDArray[np.int64]:
    """The place of each label among the names, ``(n,)``; -1 for a label that is not among them."""
    places = {name: place for place, name in enumerate(names)}
    distinct, inverse = np.unique(values, return_inverse=True)
    return np.array([places.get(label, -1) for label in distinct.tolist()], dtype=np.int64)[inverse]


def _numbers_of(values: npt.NDArray[Any], names: tuple[Any, ...], what: str) -> npt.NDArray[np.int64]:
    numbers = places_of(values, names)
    if numbers.min() < 0:
        where = int(numbers.argmin())
        label, cure = values[where].item(), ""
        if not isinstance(label, str) and 0 <= label < len(names):
            cure = f", or add classes={len(names)} if these are class numbers"
        if str(label) in map(str, names):
            cure = ": the classes are numbers, not text" if isinstance(label, str) else ": the classes are text"
        raise DataError(
            f"{what} must be among the classes {listed(names)}, but labels[{where}] is {label}; "
            f"correct the labels{cure}"
        )
    return numbers


def _refuse_stray(
    distinct: npt.NDArray[Any], counts: npt.NDArray[np.int64], values: npt.NDArray[Any], what: str
) -> None:
    """Refuse the largest or smallest label if it occurs once and is far from all others, which do repeat.

    Far means further from its neighbour than these are spread, and than there are samples.
    """
    if len(distinct) < 3 or len(values) == len(distinct):
        return
    smallest, second, before, largest = (int(distinct[place]) for place in (0, 1, -2, -1))
    for place, label, gap, spread in (
        (-1, largest, largest - before, before - smallest),
        (0, smallest, second - smallest, largest - second),
    ):
        if counts[place] == 1 and gap > max(len(values), spread):
            where = int((values == label).argmax())
            raise DataError(
                f"{what} must be classes, but labels[{where}] is {label}, which occurs once and is far from all "
                "others; correct it (in Python, class_names= says that it is a class)"
            )


def to_array(values: Any, what: str) -> npt.NDArray[Any]:
    """Any array-like as a NumPy array."""
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise DataError(
            f"{what} must be there, but {values.mask.sum():,} are masked; fill them in or leave them out"
        )
    try:
        array = np.asarray(values)
        if array.dtype.kind == "U" and not hasattr(values, "__array__"):  # of a list NumPy makes text of all else
            given = np.asarray(values, dtype=object)
            texts = (isinstance(value, str) or np.asarray(value).dtype.kind == "U" for value in given.flat)
            return array if all(texts) else given
        return array
    except Exception as error:  # any array-like may raise anything in its __array__
        cure = "; give rows of equal shape" if isinstance(error, ValueError) else ""
        raise DataError(f"{what} cannot be read as one array ({error}){cure}") from error


def require_finite(values: Any, what: str, array: str) -> None:
    """Raise DataError if a value is NaN or infinite; it names the first place in what the user calls `array`."""
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if count:
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), values.shape))
        raise DataError(
            f"{what} must be finite, but {count:,} of {values.size:,} values are NaN or infinite, "
            f"the first at {array}{list(where)}; remove those samples or fill the values in"
        )


# -- What training makes of classes --------------------------------------------------------------------------


def class_weights(
    labels: HostArray, classes: int, weight: str | Mapping[Any, Any], class_names: Iterable[Any] | None = None
) -> npt.NDArray[np.float64]:
    """The weight of each class in the loss, ``(classes,)``.

    ``"balanced"`` is n / (k n_c) for the n_c of n samples in class c, as in scikit-learn, where k is the number of
    classes that occur; the weights of all samples then have a mean of 1. A class that does not occur has 1.

    Args:
        labels: ``(n,)`` class numbers.
        classes: the number of classes.
        weight: ``"balanced"``, or weights by class: by its name or, where names are words, its number too; a class
            that is left out has 1.
        class_names: what the classes are called, in the order of their numbers; None for 0, 1, 2, ...

    Raises:
        ValueError: a class is unknown or named twice, or a weight is negative or not finite, or all are 0 for
            these labels.
        TypeError: `weight` is something else.

    >>> class_weights(np.array([0, 0, 0, 1]), 2, "balanced").tolist()
    [0.6666666666666666, 2.0]
    >>> class_weights(np.array([0, 0, 0, 1]), 2, {"rare": 3}, ["often", "rare"]).tolist()
    [1.0, 3.0]
    """
    result = np.ones(classes)
    if isinstance(weight, str) and weight == "balanced":
        distinct, counts = np.unique(labels, return_counts=True)
        result[distinct] = len(labels) / (len(distinct) * counts)
        return result
    if not isinstance(weight, Mapping):
        raise TypeError(
            f"class_weight is expected to be 'balanced' or a dict of weights by class, got {shown(weight)}"
        )
    names = [str(name) for name in (range(classes) if class_names is None else class_names)]
    places = {name: number for number, name in enumerate(names)}
    if not any(name.lstrip("-").isdecimal() for name in names):
        places |= {str(number): number for number in range(classes)}
    named: dict[int, Any] = {}
    for name, value in weight.items():
        if str(name) not in places:
            raise ValueError(f"class_weight is expected to name classes among {listed(names)}, got {name!r}")
        place = places[str(name)]
        if place in named:
            raise ValueError(f"class_weight is expected to name a class once, got {named[place]!r} and {name!r}")
        named[place] = name
        if not (isinstance(value, Real) and 0 <= float(value) < math.inf):
            raise ValueError(
                f"class_weight is expected to be a finite number of 0 or more, got {shown(value)} for class {name}"
            )
        result[place] = value
    if not result[labels].any():
        raise ValueError(
            "class_weight is expected to be above 0 for a class that occurs, but is 0 for all of them; "
            "give larger weights"
        )
    return result


def stratified_split(labels: HostArray, held_out: int, rng: np.random.Generator) -> tuple[HostArray, HostArray]:
    """Rows to train on and rows to hold out, of which each class has its share by largest remainder.

    Of every class, at least one sample stays in training. Of equal remainders, the class with the lower number
    comes first.

    Args:
        labels: ``(n,)`` class numbers.
        held_out: how many rows to hold out.
        rng: draws them.

    Returns:
        Two sorted arrays of int64.

    Raises:
        ValueError: so many rows cannot be held out.
    """
    inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    most = len(labels) - len(counts)
    if not 0 <= held_out <= most:
        raise ValueError(
            f"validation is expected to be from 0 to {most:,} of the {len(labels):,} training samples, to leave "
            f"one of each of the {len(counts):,} classes, got {held_out:,}"
        )
    divisible = np.where(counts > 1, counts, 0)
    total = max(1, int(divisible.sum()))
    shares = held_out * divisible // total  # less than the count, since held_out is less than the total
    while (left := held_out - int(shares.sum())) > 0:
        remainders = np.where(shares < counts - 1, held_out * divisible - shares * total, -math.inf)
        for place in np.argsort(-remainders, kind="stable")[:left]:
            shares[place] += shares[place] < counts[place] - 1
    order = rng.permutation(len(labels))
    order = order[np.argsort(inverse[order], kind="stable")]  # class after class, each in random order
    drawn = inverse[order]
    rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[drawn]
    held = rank < shares[drawn]
    return np.sort(order[~held]), np.sort(order[held])
