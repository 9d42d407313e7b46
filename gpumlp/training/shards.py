"""The order in which the gradients of the shards of a batch are summed.

It depends on the number of shards alone, so that the bits of a sum do not depend on how many processes have
computed its terms.
"""

from __future__ import annotations

from typing import Any

from ..backends import Array


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
