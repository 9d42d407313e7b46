"""The order of an epoch by blocks: the same for samples in memory and for samples that are read from a disk."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..backends import HostArray
from .labels import DataError

_LEAST_WINDOWS, _LEAST_SAMPLES = 4, 4096  # to check
_TOLERATED = 0.1  # of the total variation between the class frequencies of windows and of all samples


@dataclass(frozen=True)
class Blocks:
    """An order of samples that needs a part of them in memory at a time.

    In each epoch, the blocks of consecutive samples are put in random order; `window` blocks are in memory at a
    time, and the samples of a window are put in random order. A file whose samples are not sorted is shuffled as
    well as by a full shuffle; of a sorted one, the number of blocks in a window decides.

    Args:
        rows: consecutive samples in a block.
        window: blocks that are in memory at a time.

    Raises:
        DataError: a value is not a whole number of 1 or more.
    """

    rows: int = 1024
    window: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"Blocks: {name} must be a whole number of 1 or more, got {value!r}; correct it")

    @property
    def samples(self) -> int:
        """Samples in a window; the last window of an epoch may have fewer."""
        return self.rows * self.window


class BlockOrder:
    """The order of one epoch.

    Args:
        rows: ``(samples,)``, the rows to order; blocks are cut from these.
        blocks: their size, and how many there are in a window.
        rng: two draws are taken from it; windows have generators of their own, so that each can be computed alone.
    """

    def __init__(self, rows: HostArray, blocks: Blocks, rng: np.random.Generator) -> None:
        self._rows, self._blocks = rows, blocks
        self._order = rng.permutation(-(-len(rows) // blocks.rows))
        self._key = int(rng.integers(2**63))

    def __len__(self) -> int:
        """The number of windows."""
        return -(-len(self._order) // self._blocks.window)

    def window(self, index: int) -> tuple[HostArray, HostArray]:
        """The rows of a window as they are read, ``(n,)``, and the order of these, ``(n,)`` places."""
        size, window = self._blocks.rows, self._blocks.window
        numbers = np.sort(self._order[index * window : (index + 1) * window])  # a disk likes one direction
        rows = np.concatenate([self._rows[number * size : (number + 1) * size] for number in numbers])
        return rows, np.random.default_rng([self._key, index]).permutation(len(rows))

    def rows(self) -> HostArray:
        """The whole order, ``(samples,)`` rows."""
        windows = map(self.window, range(len(self)))
        return np.concatenate([rows[places] for rows, places in windows])


def sorted_note(labels: HostArray, rows: HostArray, blocks: Blocks) -> str | None:
    """A sentence if windows of samples have other class frequencies than all; None if the order shuffles well.

    Args:
        labels: ``(n,)`` class numbers.
        rows: ``(samples,)``, which of them are trained on.
        blocks: of the order.
    """
    if len(rows) <= blocks.samples or blocks.rows == 1:  # a full shuffle
        return None
    order = BlockOrder(rows, blocks, np.random.default_rng(0))
    counts = _counts(labels, (rows[start : start + 2**20] for start in range(0, len(rows), 2**20)))
    frequencies = counts / len(rows)
    windows = min(max(_LEAST_WINDOWS, -(-_LEAST_SAMPLES // blocks.samples)), len(rows) // blocks.samples)
    found = [_counts(labels, [order.window(index)[0]], len(counts)) for index in range(windows)]
    distance = np.mean([np.abs(each / each.sum() - frequencies).sum() / 2 for each in found])
    chance = sum(_deviation(blocks.samples, share) for share in frequencies.tolist()) / 2  # in random order
    if distance - chance <= _TOLERATED:
        return None
    return (
        f"the samples seem to be sorted by class: the class frequencies of a window of {blocks.samples:,} samples "
        f"({blocks.window:,} x {blocks.rows:,}) differ from those of all by {distance:.0%}, by chance they would "
        f"by {chance:.0%}, and training suffers; shuffle them once: python -m gpumlp.shuffle IMAGES LABELS OUT"
    )


def _deviation(samples: int, share: float) -> float:
    """The mean absolute deviation of a frequency from the `share` of a class, by de Moivre's formula."""
    if not 0 < share < 1:
        return 0.0
    above = math.floor(samples * share) + 1
    ways = math.lgamma(samples + 1) - math.lgamma(above + 1) - math.lgamma(samples - above + 1)
    others = (samples - above + 1) * math.log1p(-share)
    return 2 * above * math.exp(ways + above * math.log(share) + others) / samples


def _counts(labels: HostArray, parts: Iterable[HostArray], least: int = 0) -> HostArray:
    """How often each class number occurs in some rows."""
    total = np.zeros(max(least, int(labels.max()) + 1), np.int64)
    for rows in parts:
        total += np.bincount(labels[rows], minlength=len(total))
    return total
