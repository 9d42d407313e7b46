"""The rules that judge the learning curves, each with its evidence and its advice."""

from __future__ import annotations

import math
from collections.abc import Sequence

from . import causes, curves
from .findings import Finding, Record, Setting

STANDING_STILL = 0.01  # the part of their norm that an epoch moves the weights


def exploding_loss(records: Sequence[Record], setting: Setting) -> Finding:
    loss, guess = records[-1].train_loss, math.log(setting.classes)
    return Finding(
        "exploding loss",
        f"the training loss is {loss:.3g}, {loss / guess:.3g} times that of guessing ({guess:.2f}): "
        f"{causes.too_large(records, setting)}",
    )


def unstable(records: Sequence[Record], setting: Setting) -> Finding:
    rises = curves.rises(records, setting.classes)
    worst = max(rises, key=lambda epoch: records[epoch].train_loss - records[epoch - 1].train_loss)
    before, after = records[worst - 1].train_loss, records[worst].train_loss
    schedule = ", or let it fall (schedule step)" if setting.constant_rate else ""
    steps = f"the steps are too large, lower {causes.rate(records)}{causes.momentum(setting)}{schedule}"
    return Finding(
        "unstable",
        f"the training loss rose by more than a tenth in {len(rises)} of the last "
        f"{causes.epochs(min(curves.RECENT, len(records) - 1))} (from {before:.3g} to {after:.3g} in epoch "
        f"{worst + 1}): {causes.large_inputs(records) or steps}",
    )


def underfitting(records: Sequence[Record], setting: Setting) -> Finding:
    last, guess = records[-1], math.log(setting.classes)
    moved = [layer.update_ratio for _, layer in causes.last_look(records) if layer.update_ratio is not None]
    falling = curves.falling(records)
    rate = causes.rate(records)
    evidence = (
        f"after {causes.epochs(len(records))} the training loss is {last.train_loss:.3g} (guessing has "
        f"{guess:.2f}) and the accuracy {causes.percent(last.train_accuracy)}"
    )
    units = f"more hidden units (now {' '.join(map(str, setting.hidden)) or 'none'})"
    inputs = causes.large_inputs(records)
    if causes.strong_penalty(setting):
        name, value = ("l2", setting.l2) if setting.l2 >= causes.STRONG_L2 else ("l1", setting.l1)
        advice = f": the penalty keeps the weights too small, lower {name} (now {value:g})"
    elif inputs is not None:
        advice = f": {inputs}"
    elif setting.hidden and min(setting.hidden) < setting.classes:
        advice = f": use {units}"
    elif causes.moved_far(records):
        advice = f": an epoch moved the weights by more than half of their norm, lower {rate}, or use {units}"
    elif moved and max(moved) < STANDING_STILL:
        advice = (
            f", and one epoch moves the weights of no layer by more than {100 * max(moved):.2g} % of their "
            f"norm: raise {rate}"
        )
    elif falling > curves.STILL_FALLING:
        advice = f", still falling by {100 * falling:.2g} % an epoch: train for more epochs, or raise {rate}"
    else:
        advice = f" and no longer gets better: use {units}, or another {rate}"
    return Finding("underfitting", evidence + advice)


def overfitting(records: Sequence[Record], setting: Setting) -> Finding:
    last, best = records[-1], curves.best_epoch(records)
    assert best is not None
    lowest = records[best - 1].validation_loss
    stop = f", or stop after about {causes.epochs(best)}" if best < len(records) else ""
    return Finding(
        "overfitting",
        f"the validation loss is {last.validation_loss:.3g} ({lowest:.3g} in epoch {best}) and the accuracy "
        f"{causes.percent(last.validation_accuracy)} in validation against {causes.percent(last.train_accuracy)} "
        f"in training: train on more data, raise l2 (now {setting.l2:g}), use fewer hidden units{stop}",
    )
