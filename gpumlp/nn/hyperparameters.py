"""Checks of arguments: ranges of hyperparameters, also for the options of a run, and kinds of objects."""

from __future__ import annotations

import inspect
import math
import operator
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..words import shown, with_article

T = TypeVar("T")

_LARGEST = sys.float_info.max


class Range(NamedTuple):
    """The allowed values of a hyperparameter, as a predicate and in words, such as "a number above 0"."""

    accepts: Callable[[Any], bool]
    words: str


def numbers(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Range:
    """The range of finite int or float values between two limits; bool is excluded.

    >>> numbers(0, 1, open_high=True).words
    'a number of at least 0 and below 1'
    """

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not -_LARGEST <= value <= _LARGEST:  # infinite, NaN, or a whole number that no float can hold
            return False
        return (low < value if open_low else low <= value) and (value < high if open_high else value <= high)

    if high == math.inf:
        return Range(accepts, f"a number above {low:g}" if open_low else f"a number of {low:g} or more")
    above = f"above {low:g}" if open_low else f"of at least {low:g}"
    return Range(accepts, f"a number {above} and {'below' if open_high else 'up to'} {high:g}")


def whole_numbers(low: int) -> Range:
    """The range of integers of `low` or more; bool is excluded."""

    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return Range(accepts, f"a whole number of {low} or more")


def number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return a hyperparameter as a Python float: a NumPy float64 would promote float32 arrays to float64.

    Raises:
        ValueError: the value is not a number, not finite, or out of range.
    """
    allowed = numbers(low, high, open_low=open_low, open_high=open_high)
    result = math.nan
    if not isinstance(value, bool | np.bool_ | str | bytes):
        with suppress(TypeError, ValueError):
            result = float(value)  # type: ignore[arg-type]
    if not allowed.accepts(result):
        raise ValueError(f"{name} is expected to be {allowed.words}, got {shown(value)}")
    return result


def whole(name: str, value: object, low: int) -> int:
    """Return a count as a Python int.

    Raises:
        ValueError: the value is not an integer, or below `low`.
    """
    allowed = whole_numbers(low)
    try:
        result = value if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        result = None
    if not allowed.accepts(result):
        raise ValueError(f"{name} is expected to be {allowed.words}, got {shown(value)}")
    return int(result)  # type: ignore[arg-type]


def flag(name: str, value: object) -> bool:
    """Return a truth value as a Python bool.

    Raises:
        ValueError: it is something else, such as ``"no"``, which Python takes for true.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is expected to be True or False, got {shown(value)}")
    return bool(value)


def set_number(
    rule: object, name: str, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Check a field of a frozen dataclass and convert it to a Python float; called in ``__post_init__``."""
    value = number(name, getattr(rule, name), low, high, open_low=open_low, open_high=open_high)
    object.__setattr__(rule, name, value)


def instance(name: str, value: object, kind: type[T], example: str) -> T:
    """Return an argument that is an object of a class.

    Args:
        name: of the argument.
        value: what was given.
        kind: the class.
        example: what to give, such as ``"SGD(0.1)"``.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, kind):
        return value
    raise TypeError(f"{name} is expected to be {with_article(kind)}, such as {example}, got {shown(value)}")


def require_methods(rule: object, base: type, *methods: str) -> None:
    """Check that a class of the user's implements methods of its base class, with the same arguments.

    Raises:
        TypeError: one is missing, or takes other arguments.
    """
    kind = type(rule).__name__
    missing = [name for name in methods if getattr(type(rule), name, None) is getattr(base, name, None)]
    if missing:
        raise TypeError(f"{kind} is expected to define {' and '.join(missing)}, see {base.__name__}")
    for name in methods:
        arguments = list(inspect.signature(getattr(base, name)).parameters)[1:]
        require_arguments(f"{kind}.{name}", getattr(rule, name), *arguments)


def require_in_place(name: str, call: Callable[[], Any], written: Any) -> bool:
    """Call a method of the user's on a small example, and check that it writes its result into its arguments.

    Args:
        name: of the method.
        call: calls it. What it raises is left to its first use.
        written: an array of NaN that the method overwrites.

    Returns:
        Whether it raised nothing.

    Raises:
        TypeError: it returns a result instead.
    """
    try:
        with np.errstate(all="ignore"):
            result = call()
    except Exception:
        return False
    if result is not None or np.isnan(written).all():
        raise TypeError(
            f"{name} is expected to write its result into the arrays that it is given and to return None; it "
            f"{'leaves them as they are' if result is None else f'returns {shown(result)}'}"
        )
    return True


def require_arguments(name: str, function: Callable[..., Any], *arguments: str) -> None:
    """Check that a function of the user's can be called with this number of arguments.

    Args:
        name: of the argument that it was given as.
        function: the function.
        arguments: what it is called with, in words.

    Raises:
        TypeError: it cannot.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{name} is expected to be a function of {', '.join(arguments)}: {error}") from error
