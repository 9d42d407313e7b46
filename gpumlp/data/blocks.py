"""The order of an epoch by blocks: the same for samples in memory and for samples that are read from a disk."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
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

    With batches in several shards, the blocks of an epoch are dealt out to as many streams, and each shard of a
    batch has the next samples of its own stream. The streams share the window evenly.

    Args:
        rows: consecutive samples in a block.
        window: blocks that are in memory at a time; of more shards than that, one for each.

    Raises:
        DataError: a value is not a whole number of 1 or more.
    """

    rows: int = 1024
    window: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise DataError(f"Blocks: {name} must be a whole number of 1 or more, got {value!r}; correct it")
            object.__setattr__(self, name, int(value))  # NumPy's may overflow

    @property
    def samples(self) -> int:
        """Samples in a window; the last window of an epoch may have fewer."""
        return self.rows * self.window

    def of_shard(self, shards: int) -> Blocks:
        """The blocks of one of several streams, which share a window."""
        return Blocks(self.rows, max(1, self.window // shards))


class BlockOrder:
    """The order of one epoch.

    Args:
        rows: ``(samples,)``, the rows to order; blocks are cut from these.
        blocks: their size, and how many there are in a window.
        rng: two draws are taken from it; windows have generators of their own, so that each can be computed alone.
    """

    def __init__(self, rows: HostArray, blocks: Blocks, rng: np.random.Generator) -> None:
        self._rows, self._blocks = rows, Blocks(min(blocks.rows, len(rows)), blocks.window)
        self._order = rng.permutation(-(-len(rows) // blocks.rows))
        self._key = [int(rng.integers(2**63))]
        self._before = self._behind = 0  # rows of the first and the last block that are not its own

    def __len__(self) -> int:
        """The number of windows."""
        return -(-len(self._order) // self._blocks.window)

    def window(self, index: int) -> tuple[HostArray, HostArray]:
        """The rows of a window as they are read, ``(n,)``, and the order of these, ``(n,)`` places."""
        size, places = self._blocks.rows, slice(index * self._blocks.window, (index + 1) * self._blocks.window)
        starts = self._order[places] * size
        stops = np.minimum(starts + size, len(self._rows))
        if index == 0:
            starts[0] += self._before
        if index == len(self) - 1:
            stops[-1] -= self._behind
        parts = sorted(zip(starts.tolist(), stops.tolist(), strict=True))  # a disk likes one direction
        rows = np.concatenate([self._rows[start:stop] for start, stop in parts])
        return rows, np.random.default_rng([*self._key, index]).permutation(len(rows))

    def rows(self) -> HostArray:
        """The whole order, ``(samples,)`` rows."""
        windows = map(self.window, range(len(self)))
        return np.concatenate([rows[places] for rows, places in windows])

    def split(self, sizes: Sequence[int]) -> list[BlockOrder]:
        """Deal out the blocks, in their order, to streams of so many rows; one at a border has a part in each.

        Args:
            sizes: their sum is the number of rows.
        """
        counts = np.minimum(self._blocks.rows, len(self._rows) - self._order * self._blocks.rows)
        ends, streams, start = np.cumsum(counts), [], 0
        for number, size in enumerate(sizes):
            first, last = np.searchsorted(ends, [start, start + size - 1], "right").tolist()
            stream = copy.copy(self)
            stream._blocks, stream._order = self._blocks.of_shard(len(sizes)), self._order[first : last + 1]
            stream._key = [*self._key, number]
            stream._before = start - int(ends[first] - counts[first])
            start += size
            stream._behind = int(ends[last]) - start
            streams.append(stream)
        return streams


class ShardedOrder:
    """The order of one epoch of batches in shards: shard v of each batch has the next rows of stream v.

    So a process that computes some of the shards reads the rows of their streams alone.

    Args:
        rows, blocks, rng: as for `BlockOrder`.
        batch_size: rows in a batch; the last batch may be smaller.
        shards: from 1 to `batch_size`.

    Attributes:
        streams: the order of each shard's rows.
    """

    def __init__(
        self, rows: HostArray, blocks: Blocks, rng: np.random.Generator, batch_size: int, shards: int
    ) -> None:
        self._rows, self._batch_size = rows, batch_size
        self._full = len(rows) // batch_size * batch_size  # rows of batches of that size
        sizes = [
            (first.stop - first.start) * (self._full // batch_size) + last.stop - last.start
            for first, last in (self._parts(shard, shards) for shard in range(shards))
        ]
        self.streams = BlockOrder(rows, blocks, rng).split(sizes)

    def rows(self) -> HostArray:
        """The whole order, ``(samples,)`` rows."""
        result = np.empty_like(self._rows)
        batches = result[: self._full].reshape(-1, self._batch_size)
        for shard, stream in enumerate(self.streams):
            first, last = self._parts(shard, len(self.streams))
            found = stream.rows()
            count = batches[:, first].size
            batches[:, first], result[last] = found[:count].reshape(len(batches), -1), found[count:]
        return result

    def place(self, rows: slice) -> tuple[int, slice]:
        """The number of the stream that has some rows of the order, all of one shard, and their places in it."""
        shards = len(self.streams)
        start = rows.start - rows.start % self._batch_size
        batch = slice(start, min(start + self._batch_size, len(self._rows)))
        shard = ((rows.start - start + 1) * shards - 1) // (batch.stop - start)
        first, _ = self._parts(shard, shards)
        before = start // self._batch_size * (first.stop - first.start) - part_of(batch, shard, shards).start
        return shard, slice(rows.start + before, rows.stop + before)

    def _parts(self, shard: int, shards: int) -> tuple[slice, slice]:
        """The rows of a shard in the first batch, and in a last one that is smaller."""
        last = slice(self._full, len(self._rows))
        return part_of(slice(0, self._batch_size), shard, shards), part_of(last, shard, shards)


def part_of(batch: slice, shard: int, shards: int) -> slice:
    """The rows of a shard: consecutive ones, as many as in any other shard, or one more or less.

    >>> [part_of(slice(10, 20), shard, 4) for shard in range(4)]
    [slice(10, 12, None), slice(12, 15, None), slice(15, 17, None), slice(17, 20, None)]
    """
    count = batch.stop - batch.start
    return slice(batch.start + count * shard // shards, batch.start + count * (shard + 1) // shards)


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
    # In random order, in windows of these sizes: one may have the short last block.
    shares = frequencies.tolist()
    chance = np.mean([sum(_deviation(int(each.sum()), share) for share in shares) / 2 for each in found])
    if distance - chance <= _TOLERATED:
        return None
    return (
        f"the samples seem to be sorted by class: the class frequencies of a window of {blocks.samples:,} samples "
        f"({blocks.window:,} x {blocks.rows:,}) differ from those of all by {distance:.0%}, by chance they would "
        f"by {chance:.0%}, and training suffers"
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
