"""The shards of a batch, and the order in which their gradients are summed.

The order depends on the number of shards alone, so that the bits of a sum do not depend on how many processes have
computed its terms.
"""

from __future__ import annotations

from typing import Any

from ..backends import Array


def part_of(batch: slice, shard: int, shards: int) -> slice:
    """The rows of a shard: consecutive ones, as many as in any other shard, or one more or less.

    >>> [part_of(slice(10, 20), shard, 4) for shard in range(4)]
    [slice(10, 12, None), slice(12, 15, None), slice(15, 17, None), slice(17, 20, None)]
    """
    count = batch.stop - batch.start
    return slice(batch.start + count * shard // shards, batch.start + count * (shard + 1) // shards)


class PairwiseSum:
    """Adds up terms 0, 1, ..., ``count - 1`` in a fixed order: ``((0 + 1) + (2 + 3)) + ...``.

    The terms come one after another, in order; the first may be a later one than 0. A piece is the sum of
    consecutive terms that are a whole subtree of this order.

    Args:
        xp: the array library.
        count: number of all terms.

    Attributes:
        pieces: the first term and the sum of each piece that is not complete, in order.

    >>> import numpy as np
    >>> sums = PairwiseSum(np, 3)
    >>> for number, term in enumerate(np.array([[1.0], [2.0], [4.0]])):
    ...     sums.add(term, number, number + 1)
    >>> sums.pieces
    [(0, array([7.]))]
    """

    def __init__(self, xp: Any, count: int) -> None:
        self.xp, self.count = xp, count
        self.pieces: list[tuple[int, Array]] = []

    def add(self, term: Array, start: int, stop: int) -> None:
        """Add the sum of the terms from `start` to before `stop`, a piece, which is kept and overwritten."""
        self.pieces.append((self.complete(term, start, stop), term))

    def complete(self, term: Array, start: int, stop: int) -> int:
        """Add to a piece, in place, the pieces before it with which it is a larger one; returns its first term."""
        size = 1
        while size < self.count:
            first = start - start % (2 * size)  # of the subtree of up to twice this size
            if stop < min(first + 2 * size, self.count):
                break
            if first < start:
                if not self.pieces or self.pieces[-1][0] != first:  # it begins before the first term that came
                    break
                self.xp.add(self.pieces.pop()[1], term, out=term)
                start = first
            size *= 2
        return start
