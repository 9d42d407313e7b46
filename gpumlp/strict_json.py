"""JSON from files that may be damaged or come from elsewhere: what this project never writes is an error."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_DEEPEST = 16  # nested lists and objects
_DIGITS = 40  # of a whole number: the state of a random generator has 39

# Halves of surrogate pairs, which no encoding can write, except those that stand for the bytes of file names.
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def is_text(text: str) -> bool:
    """Whether `parse_object` reads this text again: it holds no half of a surrogate pair."""
    return not _HALF.search(text)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The value of a JSON text that is an object.

    Raises:
        ValueError: it is something else, or it holds what Python's parser accepts but nothing can use: NaN,
            infinite numbers, whole numbers of more than 40 digits, nesting of more than 16 levels, or half a
            surrogate pair.

    >>> parse_object('{"epoch": 1}')
    {'epoch': 1}
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(value, _DEEPEST)
    if "\\ud" in text.lower() and not is_text(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half of a surrogate pair")
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {text[:_DIGITS]}")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"expected numbers of up to {_DIGITS} digits, got one of {len(text):,}")
    return int(text)


def _check_depth(value: Any, levels: int) -> None:
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError("it is nested too deeply")
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, levels - 1)
