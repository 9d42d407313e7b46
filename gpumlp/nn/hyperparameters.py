"""Checks that the rules share."""

from __future__ import annotations

import math
import operator


def number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """A hyperparameter as a Python float: a NumPy float64 would turn float32 arithmetic into float64.

    Raises:
        ValueError: it is no number, not finite, or outside of the range.
    """
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        result = math.nan
    above = low < result if open_low else low <= result
    below = result < high if open_high else result <= high
    if not (math.isfinite(result) and above and below):
        limits = f"{'above' if open_low else 'at least'} {low:g}"
        if high < math.inf:
            limits += f" and {'below' if open_high else 'at most'} {high:g}"
        shown = repr(value) if isinstance(value, str) else value
        raise ValueError(f"{name} is expected to be a number {limits}, got {shown}")
    return result


def whole(name: str, value: object, low: int) -> int:
    """A count as a Python int.

    Raises:
        ValueError: it is not a whole number, or below `low`.
    """
    try:
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        result = low - 1
    if result < low or isinstance(value, bool):
        raise ValueError(f"{name} is expected to be a whole number, {low} or more, got {value!r}")
    return result


def set_number(
    rule: object, name: str, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Check a field of a frozen dataclass, in its ``__post_init__``, and make it a Python float."""
    value = number(name, getattr(rule, name), low, high, open_low=open_low, open_high=open_high)
    object.__setattr__(rule, name, value)
