"""What the learning curves say: how the losses go over the epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from .findings import Record

# A loss is measured against that of guessing, log(classes).
EXPLODED = 3.0  # so many times it is worse than any ignorance
HIGH = 0.5  # half of it is not a fit
EPOCHS_TO_FIT = 5  # before that, a high loss means nothing
RISE = 1.1  # from one epoch to the next: a tenth more
RISE_LEAST = 0.04  # and at least so much of the loss of guessing
RISES, RECENT = 2, 10  # so many in the last epochs; what was long before is over
OVERFIT_RISE, OVERFIT_LEAST = 1.5, 0.15  # the validation loss over its lowest; nats
LASTING = 3  # epochs for which the validation must have been so bad
OVERFIT_GAP = 0.1  # between the accuracies
STILL_FALLING = 0.02  # an epoch, as a part of the loss


def trend(records: Sequence[Record], classes: int) -> str | None:
    """converging, overfitting, underfitting, unstable or diverging; None after one epoch or without classes."""
    if len(records) < 2 or classes < 2:
        return None
    if exploded(records, classes):
        return "diverging"
    if len(rises(records, classes)) >= RISES:
        return "unstable"
    if len(records) >= EPOCHS_TO_FIT and records[-1].train_loss > HIGH * math.log(classes):
        return "underfitting"
    return "overfitting" if overfits(records) else "converging"


def exploded(records: Sequence[Record], classes: int) -> bool:
    """Is the loss at the end far above that of guessing, and not on a steady way back from a bad start?"""
    first, last = records[0].train_loss, records[-1].train_loss
    returning = last < first and not rises(records, classes)
    return last > EXPLODED * math.log(classes) and not returning


def rises(records: Sequence[Record], classes: int) -> list[int]:
    """Those of the recent epochs, counted from 1, after which the training loss rose by more than noise."""
    least = RISE_LEAST * math.log(classes)
    first = max(0, len(records) - RECENT - 1)
    losses = [record.train_loss for record in records[first:]]
    return [
        epoch
        for epoch, (before, after) in enumerate(itertools.pairwise(losses), first + 1)
        if after > RISE * before and after - before > least
    ]


def best_epoch(records: Sequence[Record]) -> int | None:
    """The epoch of the lowest validation loss, counted from 1; None without validation."""
    losses = [record.validation_loss for record in records]
    known = [(loss, epoch) for epoch, loss in enumerate(losses, 1) if loss is not None]
    return min(known)[1] if known else None


def overfits(records: Sequence[Record]) -> bool:
    """Does the network do much worse on the validation samples than on its own, or than it did?"""
    last, best = records[-1], best_epoch(records)
    if best is None:
        return False
    lowest, recent = (
        min(record.validation_loss for record in part if record.validation_loss is not None)
        for part in ([records[best - 1]], records[-LASTING:])
    )
    rose = recent > OVERFIT_RISE * lowest and recent - lowest > OVERFIT_LEAST
    falls = last.train_loss < records[best - 1].train_loss
    accuracy = max(record.validation_accuracy or 0.0 for record in records[-LASTING:])
    return (rose and falls) or last.train_accuracy - accuracy > OVERFIT_GAP


def falling(records: Sequence[Record]) -> float:
    """By which part of itself the training loss fell in an epoch, on average over the last quarter of them."""
    span = max(1, len(records) // 4)
    before, after = records[-1 - span].train_loss, records[-1].train_loss
    return (before - after) / span / before if before else 0.0
