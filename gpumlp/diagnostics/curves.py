"""How the losses and accuracies go over the epochs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .findings import Record, Setting

EXPLODED = 3.0  # times the loss of ignorance
RISE = 1.05  # from one epoch to the next
RISE_LEAST = 0.04  # and at least so much of the loss of ignorance: less is noise
RISES, RECENT = 2, 10  # so many in the last epochs; what was long before is over
OVERFIT_RISE = 1.15  # the validation loss over its lowest, and by more than noise
LASTING = 3  # epochs for which the validation must have been so bad
OVERFIT_GAP = 0.1  # between the accuracies


def exploded(records: Sequence[Record], setting: Setting) -> bool:
    """Is the loss at the end far worse than ignorance, and not on a steady way back from a bad start?"""
    first, last = records[0].train_loss, records[-1].train_loss
    returning = last < first and not rises(records, setting)
    return last > EXPLODED * setting.ignorance and not returning


def rises(records: Sequence[Record], setting: Setting) -> list[int]:
    """Those of the recent epochs, counted from 1, after which the training loss rose by more than noise."""
    least = RISE_LEAST * setting.ignorance
    first = max(0, len(records) - RECENT - 1)
    losses = [record.train_loss for record in records[first:]]
    return [
        epoch
        for epoch, (before, after) in enumerate(itertools.pairwise(losses), first + 1)
        if after > RISE * before and after - before > least
    ]


def falls_steadily(records: Sequence[Record]) -> bool:
    """Did the training loss fall in each of the recent epochs?"""
    losses = [record.train_loss for record in records[-RECENT - 1 :]]
    return all(after < before for before, after in itertools.pairwise(losses))


def best_epoch(records: Sequence[Record]) -> int | None:
    """The epoch of the lowest validation loss, counted from 1; None without validation."""
    losses = [record.validation_loss for record in records]
    known = [(loss, epoch) for epoch, loss in enumerate(losses, 1) if loss is not None]
    return min(known)[1] if known else None


def overfits(records: Sequence[Record], setting: Setting) -> bool:
    """Does the network do much worse on the validation samples than on its own, or than it did?"""
    last, best = records[-1], best_epoch(records)
    if best is None:
        return False
    lowest, recent = (
        min((record.validation_loss for record in part if record.validation_loss is not None), default=0.0)
        for part in ([records[best - 1]], records[-LASTING:])
    )
    rose = recent > OVERFIT_RISE * lowest and recent - lowest > RISE_LEAST * setting.ignorance
    falls = last.train_loss < records[best - 1].train_loss
    accuracy = max(record.validation_accuracy or 0.0 for record in records[-LASTING:])
    return (rose and falls) or last.train_accuracy - accuracy > OVERFIT_GAP


def falling(records: Sequence[Record]) -> float:
    """By which part of itself the training loss fell in an epoch, on average over the last quarter of them."""
    span = max(1, len(records) // 4)
    before, after = records[-1 - span].train_loss, records[-1].train_loss
    return (before - after) / span / before if before else 0.0
