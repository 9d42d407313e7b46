"""Where an illness comes from and what helps, in the words of the messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .findings import Record, Setting
from .statistics import LayerStatistics

MOVED = 0.5  # of their norm: an epoch that moves the weights so far has made them what they are
LARGE_INPUT = 20.0  # inputs are meant to be about 1
GROWN = 10.0  # times the lowest loss before: nobody drew weights that do so
SMALL_SCALE = 0.3  # of a layer's signal; Glorot's and He's weights keep it, times 1 to 1.4
STRONG_L2, STRONG_L1 = 0.03, 0.003


def moved_far(records: Sequence[Record], *, first_layer_only: bool = False) -> bool:
    """Are the weights what an epoch's steps have made of them, rather than what they were drawn as?"""
    return any(
        layer.update_ratio is None or layer.update_ratio > MOVED
        for record in records
        for _, layer in numbered(record)[: 1 if first_layer_only else None]
    )


def strong_penalty(setting: Setting) -> bool:
    return setting.l2 >= STRONG_L2 or setting.l1 >= STRONG_L1


def scale(record: Record, setting: Setting) -> float | None:
    """By how much the hidden layers scale a signal, the layer that does so most; None if it is not known.

    Weights of variance v turn n inputs of mean square 1 into sums of mean square n v, and their norm is the root
    of n v times the units.
    """
    layers = list(zip(record.layers or (), setting.hidden, strict=False))
    scales = [layer.weight_norm / math.sqrt(units) for layer, units in layers if layer.weight_norm is not None]
    return max(scales) if scales and len(scales) == len(layers) else None


def large_inputs(records: Sequence[Record]) -> str | None:
    """What to do about inputs far above 1; None where they are not."""
    largest = next((layer.largest_input for _, layer in last_look(records)), None)
    if largest is None or largest <= LARGE_INPUT:
        return None
    rounded = float(f"{largest:.3g}")
    return f"the inputs are up to {rounded:,.9g} in absolute value, scale them to about 1"


def too_large(records: Sequence[Record], setting: Setting) -> str:
    """What to do where weights or steps are too large: it depends on who made them so."""
    inputs = large_inputs(records)
    if inputs is not None:
        return inputs
    grown = records[-1].train_loss > GROWN * min(record.train_loss for record in records)
    if grown or moved_far(records):
        return f"the steps are too large, lower {rate(records)}{momentum(setting)}"
    return f"start from smaller weights (initializer {suited(setting)}), or lower {rate(records)}"


def suited(setting: Setting) -> str:
    """The initializer that suits the activation."""
    return "he" if setting.activation in ("relu", "leaky_relu") else "glorot"


def rate(records: Sequence[Record]) -> str:
    """The learning rate as it is now, and as it was if that differs."""
    now, first = (_number(record.learning_rate) for record in (records[-1], records[0]))
    return f"learning_rate (now {now})" if now == first else f"learning_rate (now {now}, {first} at first)"


def momentum(setting: Setting) -> str:
    return f" or momentum (now {setting.momentum:g})" if setting.momentum else ""


def numbered(record: Record) -> list[tuple[int, LayerStatistics]]:
    return list(enumerate(record.layers or (), 1))


def last_look(records: Sequence[Record]) -> list[tuple[int, LayerStatistics]]:
    """The layers, numbered, after the last epoch that was looked at; empty where none was."""
    return next((numbered(record) for record in reversed(records) if record.layers), [])


def largest_move(records: Sequence[Record]) -> float | None:
    """The largest part of its norm by which one of the epochs has moved a layer's weights; None without a look."""
    moves = [layer.update_ratio or 0.0 for record in records for _, layer in numbered(record)]
    return max(moves, default=None)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def epochs(count: int) -> str:
    return f"{count:,} epoch{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number(value: float) -> str:
    return f"{value:.1f}" if value == round(value, 1) and value < 1000 else f"{value:g}"
