"""Range checks of hyperparameters, for the classes of `gpumlp.nn` and for the options of a run."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

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
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        result = math.nan
    if not allowed.accepts(result):
        shown = repr(value) if isinstance(value, str) else value
        raise ValueError(f"{name} is expected to be {allowed.words}, got {shown}")
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
        raise ValueError(f"{name} is expected to be {allowed.words}, got {value!r}")
    return int(result)  # type: ignore[arg-type]


def set_number(
    rule: object, name: str, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Check a field of a frozen dataclass and convert it to a Python float; called in ``__post_init__``."""
    value = number(name, getattr(rule, name), low, high, open_low=open_low, open_high=open_high)
    object.__setattr__(rule, name, value)
