"""The rules: which numbers are an illness, what it comes from, and what helps.

They follow the tables of symptoms that courses give. The limits are set so that trainings which do well, of every
activation and optimizer, are left in peace. A fault within a layer explains a bad curve, so a curve is a finding
of its own only where no layer has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from . import curves
from .findings import Finding, Record, Setting
from .statistics import LayerStatistics

DEAD = 0.4  # of a layer's ReLU units
SATURATED = 0.8  # of a layer's outputs
LEAST_UNITS = 8  # of a layer that can be called saturated: a single unit often is, and learns
FAINT_RATIO = 1e-3  # the first layer's gradient over the largest ...
FAINT, NO_BETTER = 0.01, 0.9  # ... or its norm, where the loss is still that part of the loss of guessing
EXPLODING = 20.0  # norm of a gradient; error terms are differences of probabilities, so healthy ones are about 1
MOVED = 0.5  # of their norm: an epoch that moves the weights so far has made them what they are
STANDING_STILL = 0.01  # the part of their norm that an epoch moves the weights
STRONG_L2, STRONG_L1 = 0.03, 0.003


def find(records: Sequence[Record], setting: Setting) -> list[Finding]:
    """What is wrong with a training, in words; an empty list if nothing is.

    Args:
        records: of its epochs, in order; those without ``layers`` tell only about the curves.
        setting: how it is trained.
    """
    if not records:
        return []
    if setting.classes < 2:
        return [*_dead(records, setting), *_saturated(records, setting)]
    exploded = curves.exploded(records, setting.classes)
    if exploded and _moved_far(records):
        return [_exploding_loss(records, setting)]
    kind = curves.trend(records, setting.classes)
    if kind == "underfitting" and _strong_penalty(setting):
        return [_underfitting(records, setting)]
    found = ([] if exploded else _vanishing(records, setting)) or [
        *_exploding_gradients(records, setting),
        *_dead(records, setting),
        *_saturated(records, setting),
    ]
    if found:
        return found
    if exploded:
        return [_exploding_loss(records, setting)]
    rules = {"unstable": _unstable, "underfitting": _underfitting, "overfitting": _overfitting}
    rule = rules.get(kind or "")
    return [] if rule is None else [rule(records, setting)]


# -- Within a layer -----------------------------------------------------------------------------------------


def _dead(records: Sequence[Record], setting: Setting) -> list[Finding]:
    kind = "training" if records[-1].validation_loss is None else "validation"
    return [
        Finding(
            "dead units",
            f"layer {number}: {_percent(layer.dead)} of units are dead (output 0 for all {layer.samples:,} {kind} "
            f"images): lower learning_rate (now {_rate(setting)}) or use leaky_relu",
            number,
        )
        for number, layer in _numbered(records[-1])
        if layer.dead is not None and layer.dead >= DEAD
    ]


def _saturated(records: Sequence[Record], setting: Setting) -> list[Finding]:
    return [
        Finding(
            "saturated units",
            f"layer {number}: {_percent(layer.saturated)} of the outputs are saturated ({setting.activation} has "
            f"there less than 2 % of its slope; {layer.gradient_samples:,} images), and hardly any gradient gets "
            f"through: {_too_large(records, setting)}",
            number,
        )
        for number, layer in _numbered(records[-1])
        if layer.saturated is not None
        and layer.saturated >= SATURATED
        and setting.hidden[number - 1] >= LEAST_UNITS
    ]


def _exploding_gradients(records: Sequence[Record], setting: Setting) -> list[Finding]:
    norms = [(layer.gradient_norm, number) for number, layer in _numbered(records[-1]) if layer.gradient_norm]
    norm, number = max(norms, default=(0.0, 0))
    if norm <= EXPLODING:
        return []
    return [
        Finding(
            "exploding gradients",
            f"layer {number}: the norm of the gradient is {norm:,.3g}, where about 1 is usual: "
            f"{_too_large(records, setting)}",
            number,
        )
    ]


def _vanishing(records: Sequence[Record], setting: Setting) -> list[Finding]:
    """The gradient gets lost on its way down, from the start: not because units died or large steps spoiled it."""
    guess, loss = math.log(setting.classes), records[-1].train_loss
    measured = [[layer.gradient_norm or 0.0 for layer in record.layers] for record in records if record.layers]
    if not measured or len(measured[0]) < 2 or not measured[0][0] or loss <= curves.HIGH * guess:
        return []
    if _moved_far(records, first_layer_only=True):
        return []
    if any((layer.dead or 0) >= DEAD for record in records if record.layers for layer in record.layers[:1]):
        return []
    middle = len(measured) // 2
    norm = sorted(norms[0] for norms in measured)[middle]
    ratio = sorted(norms[0] / max(norms) if max(norms) else 0.0 for norms in measured)[middle]
    if not (ratio < FAINT_RATIO or (norm < FAINT and loss > NO_BETTER * guess)):
        return []
    layers = len(setting.hidden)
    advice = {
        "sigmoid": ", whose slope is at most 1/4, use relu with initializer he",
        "tanh": " use initializer glorot, or relu with initializer he",
    }.get(setting.activation, " use initializer he") + (", or fewer layers" if layers > 1 else "")
    return [
        Finding(
            "vanishing gradients",
            f"layer 1: the norm of its gradient is {norm:.2g}, {ratio:.2g} times the largest layer's (medians of "
            f"{_epochs(len(measured))}), while the training loss is still {loss:.3g}: in {layers} hidden "
            f"layer{'s' if layers > 1 else ''} of {setting.activation}{advice}",
            1,
        )
    ]


# -- Of the curves ------------------------------------------------------------------------------------------


def _exploding_loss(records: Sequence[Record], setting: Setting) -> Finding:
    loss, guess = records[-1].train_loss, math.log(setting.classes)
    return Finding(
        "exploding loss",
        f"the training loss is {loss:.3g}, {loss / guess:.3g} times that of guessing ({guess:.2f}): "
        f"{_too_large(records, setting)}",
    )


def _unstable(records: Sequence[Record], setting: Setting) -> Finding:
    rises = curves.rises(records, setting.classes)
    worst = max(rises, key=lambda epoch: records[epoch].train_loss - records[epoch - 1].train_loss)
    before, after = records[worst - 1].train_loss, records[worst].train_loss
    schedule = ", or let it fall (schedule step)" if setting.constant_rate else ""
    return Finding(
        "unstable",
        f"the training loss rose by more than a tenth after {len(rises)} of {_epochs(len(records) - 1)} (from "
        f"{before:.3g} to {after:.3g} after epoch {worst}): the steps are too large, lower learning_rate (now "
        f"{_rate(setting)}){_momentum(setting)}{schedule}",
    )


def _underfitting(records: Sequence[Record], setting: Setting) -> Finding:
    last, guess = records[-1], math.log(setting.classes)
    moved = [layer.update_ratio for _, layer in _numbered(last) if layer.update_ratio is not None]
    falling = curves.falling(records)
    rate = f"learning_rate (now {_rate(setting)})"
    evidence = (
        f"after {_epochs(len(records))} the training loss is {last.train_loss:.3g} (guessing has {guess:.2f}) and "
        f"the accuracy {_percent(last.train_accuracy)}"
    )
    units = f"more hidden units (now {' '.join(map(str, setting.hidden)) or 'none'})"
    if _strong_penalty(setting):
        name, value = ("l2", setting.l2) if setting.l2 >= STRONG_L2 else ("l1", setting.l1)
        advice = f": the penalty keeps the weights too small, lower {name} (now {value:g})"
    elif setting.hidden and min(setting.hidden) < setting.classes:
        advice = f": use {units}"
    elif _moved_far(records):
        advice = (
            f": the first epoch moved the weights by more than half of their norm, lower {rate}, or use {units}"
        )
    elif moved and max(moved) < STANDING_STILL:
        advice = (
            f", and the last epoch moved the weights of no layer by more than {100 * max(moved):.2g} % of their "
            f"norm: raise {rate}"
        )
    elif falling > curves.STILL_FALLING:
        advice = f", still falling by {100 * falling:.2g} % an epoch: train for more epochs, or raise {rate}"
    else:
        advice = f" and no longer gets better: use {units}, or another {rate}"
    return Finding("underfitting", evidence + advice)


def _overfitting(records: Sequence[Record], setting: Setting) -> Finding:
    last, best = records[-1], curves.best_epoch(records)
    assert best is not None
    lowest = records[best - 1].validation_loss
    stop = f", or stop after about {_epochs(best)}" if best < len(records) else ""
    return Finding(
        "overfitting",
        f"the validation loss is {last.validation_loss:.3g} ({lowest:.3g} in epoch {best}) and the accuracy "
        f"{_percent(last.validation_accuracy)} in validation against {_percent(last.train_accuracy)} in "
        f"training: train on more data, raise l2 (now {setting.l2:g}), use fewer hidden units{stop}",
    )


# -- Causes and words ---------------------------------------------------------------------------------------


def _moved_far(records: Sequence[Record], *, first_layer_only: bool = False) -> bool:
    """Are the weights what the first epoch has made of them, rather than what they were drawn as?"""
    layers = _numbered(records[0])[: 1 if first_layer_only else None]
    return any(layer.update_ratio is None or layer.update_ratio > MOVED for _, layer in layers)


def _strong_penalty(setting: Setting) -> bool:
    return setting.l2 >= STRONG_L2 or setting.l1 >= STRONG_L1


def _too_large(records: Sequence[Record], setting: Setting) -> str:
    """What to do where weights are too large: it depends on who made them so."""
    rate = f"learning_rate (now {_rate(setting)})"
    if _moved_far(records):
        return f"the steps are too large, lower {rate}{_momentum(setting)}"
    suited = "he" if setting.activation in ("relu", "leaky_relu") else "glorot"
    return f"start from smaller weights (initializer {suited}), scale the inputs to about 1, or lower {rate}"


def _numbered(record: Record) -> list[tuple[int, LayerStatistics]]:
    return list(enumerate(record.layers or (), 1))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _epochs(count: int) -> str:
    return f"{count:,} epoch{'' if count == 1 else 's'}"


def _rate(setting: Setting) -> str:
    rate = setting.learning_rate
    return f"{rate:.1f}" if rate == round(rate, 1) and rate < 1000 else f"{rate:g}"


def _momentum(setting: Setting) -> str:
    return f" or momentum (now {setting.momentum:g})" if setting.momentum else ""
