"""The rules that judge the learning curves, each with its evidence and its advice."""

from __future__ import annotations

from collections.abc import Sequence

from . import causes, curves
from .findings import Finding, Record, Setting
from .statistics import MOST_EPOCHS_BETWEEN

EPOCHS_TO_FIT = 5  # before that, a high loss means nothing
# Parts of the loss of guessing: what is no fit; what is none where its cause is known; what is hardly better. In
# between, a loss that stays where it is may be all that the data allows for.
HIGH, HIGH_WITH_A_CAUSE, NO_BETTER = 0.5, 0.2, 0.85
STANDING_STILL, RESTLESS = 0.01, 0.3  # the part of their norm that an epoch moves the weights
STILL_FALLING = 0.02  # an epoch, as a part of the loss
FEW_UNITS = 16  # however many classes there are


def trend(records: Sequence[Record], setting: Setting) -> str | None:
    """converging, overfitting, underfitting, unstable or diverging; None after one epoch or without classes."""
    if len(records) < 2 or setting.classes < 2:
        return None
    if curves.exploded(records, setting):
        return "diverging"
    if len(curves.rises(records, setting)) >= curves.RISES:
        return "unstable"
    if curves.overfits(records, setting):
        return "overfitting"
    return "converging" if why_underfitting(records, setting) is None else "underfitting"


def exploding_loss(records: Sequence[Record], setting: Setting) -> Finding:
    loss, ignorance = records[-1].train_loss, setting.ignorance
    return Finding(
        "exploding loss",
        f"the training loss is {loss:.3g}, {loss / ignorance:.3g} times log(classes) ({ignorance:.2f}): "
        f"{causes.too_large(records, setting)}",
    )


def unstable(records: Sequence[Record], setting: Setting) -> Finding:
    rises = curves.rises(records, setting)
    worst = max(rises, key=lambda epoch: records[epoch].train_loss - records[epoch - 1].train_loss)
    before, after = records[worst - 1].train_loss, records[worst].train_loss
    schedule = ", or let it fall (schedule step)" if setting.constant_rate else ""
    steps = f"the steps are too large, lower {causes.rate(records)}{causes.momentum(setting)}{schedule}"
    return Finding(
        "unstable",
        f"the training loss rose by 5 % or more in {len(rises)} of the last "
        f"{causes.epochs(min(curves.RECENT, len(records) - 1))} (from {before:.3g} to {after:.3g} in epoch "
        f"{worst + 1}): {causes.large_inputs(records) or steps}",
    )


def why_underfitting(records: Sequence[Record], setting: Setting) -> str | None:
    """Why a network does not fit its own training samples, and what to try; None where it does.

    A loss that neither falls nor is as bad as guessing is left in peace unless its cause shows: noise in the
    labels looks the same.
    """
    part = records[-1].train_loss / setting.guessing
    if len(records) < EPOCHS_TO_FIT or part <= HIGH_WITH_A_CAUSE:
        return None
    rate, inputs = causes.rate(records), causes.large_inputs(records)
    # A rate that falls is meant to end with small steps.
    moved = causes.largest_move(records[-MOST_EPOCHS_BETWEEN:] if setting.constant_rate else records)
    if causes.strong_penalty(setting):
        name, value = ("l2", setting.l2) if setting.l2 >= causes.STRONG_L2 else ("l1", setting.l1)
        return f": the penalty keeps the weights too small, lower {name} (now {value:g})"
    if part > HIGH and inputs is not None:
        return f": {inputs}"
    if part > NO_BETTER and causes.moved_far(records):
        return (
            f": an epoch moved the weights by more than half of their norm to no avail, lower {rate}; or the "
            "inputs do not tell the classes"
        )
    if part > HIGH and moved is not None and moved < STANDING_STILL:
        return (
            f", and one epoch moves the weights of no layer by more than {100 * moved:.2g} % of their norm: "
            f"raise {rate}"
        )
    if _narrow(setting) and curves.falling(records) <= STILL_FALLING:
        return f": use {_more_units(setting)}"
    return _why_high(records, setting) if part > HIGH else None


def _why_high(records: Sequence[Record], setting: Setting) -> str | None:
    """The same where the loss is above half of that of guessing, and nothing in the setting explains it."""
    rate, falling, layers = causes.rate(records), curves.falling(records), len(setting.hidden)
    units, moved = _more_units(setting), causes.largest_move(records[-MOST_EPOCHS_BETWEEN:]) or 0.0
    if moved > RESTLESS:
        return f": one epoch moves the weights by {100 * moved:.2g} % of their norm, lower {rate}, or use {units}"
    if falling > STILL_FALLING:
        more = f", or use {units}" if _narrow(setting) else ""
        faster = f", or raise {rate}" if curves.falls_steadily(records) else ""
        return f", still falling by {100 * falling:.2g} % an epoch: train for more epochs{more}{faster}"
    if layers > 1 and setting.activation in ("tanh", "sigmoid"):
        return (
            f", and hardly falls in {layers} hidden layers of {setting.activation}: use relu or fewer layers, "
            f"train for more epochs, or raise {rate}"
        )
    if records[-1].train_loss > NO_BETTER * setting.guessing:
        return f" and does not get better: use {units}, or another {rate}; or the inputs do not tell the classes"
    return None


def _narrow(setting: Setting) -> bool:
    """Has a layer too few units to take for granted that the classes can be told apart behind it?"""
    return bool(setting.hidden) and min(setting.hidden) < min(setting.classes - 1, FEW_UNITS)


def _more_units(setting: Setting) -> str:
    return f"more hidden units (now {' '.join(map(str, setting.hidden)) or 'none'})"


def underfitting(records: Sequence[Record], setting: Setting) -> Finding:
    last = records[-1]
    return Finding(
        "underfitting",
        f"after {causes.epochs(len(records))} the training loss is {last.train_loss:.3g} (guessing has "
        f"{setting.guessing:.3g}) and the accuracy {causes.percent(last.train_accuracy)}"
        f"{why_underfitting(records, setting)}",
    )


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
