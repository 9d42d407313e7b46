"""Philox 4x64-10, a counter-based generator: random bits are a function of a key and a counter, without a state.

The bits of a training step are therefore the same on every device, after a resume, and however a batch is divided.

J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

DROPOUT, DISTORTION = 1, 2  # purposes of random bits

_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10


class Draws(NamedTuple):
    """Which random bits an operation draws for the rows of a batch.

    They are those of Philox with the key (seed, purpose) and the counters (block, layer, step, 0), least
    significant word first. Row `i` of a layer with `units` units has the ``ceil(units / 8)`` blocks from ``(row +
    i) ceil(units / 8)`` on. A block is four uint64, each the bits of two units, its low half those of the first.

    Attributes:
        seed: of the training run, modulo 2^64.
        purpose: such as `DROPOUT`.
        step: the number of steps taken before.
        layer: the number of the layer.
        row: the number of the first row in its batch, which may be processed in parts.
    """

    seed: int
    purpose: int
    step: int
    layer: int
    row: int

    def first_block(self, units: int) -> int:
        """The number of the first block."""
        return self.row * -(-units // 8)


def philox(xp: Any, counters: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Four random words for each counter of four words; all are uint64 ``(count,)`` of the library `xp`."""
    for number in range(_ROUNDS):
        x0, x1, x2, x3 = counters
        (high0, low0), (high1, low1) = (_product(xp, x, m) for x, m in zip((x0, x2), _MULTIPLIERS, strict=True))
        key0, key1 = (
            np.uint64((word + number * step) % 2**64) for word, step in zip(key, _KEY_STEPS, strict=True)
        )
        x0 = xp.bitwise_xor(xp.bitwise_xor(high1, x1), key0)
        x2 = xp.bitwise_xor(xp.bitwise_xor(high0, x3), key1)
        counters = x0, low1, x2, low0
    return counters


def random_bits(xp: Any, draws: Draws, rows: int, units: int) -> Any:
    """The random bits of a batch, ``(rows, units)`` uint32, in array code."""
    first, blocks = draws.first_block(units), rows * -(-units // 8)
    counters = (
        xp.add(xp.arange(blocks, dtype="uint64"), np.uint64(first)),
        *(xp.full(blocks, np.uint64(word % 2**64), dtype="uint64") for word in (draws.layer, draws.step, 0)),
    )
    words = philox(xp, counters, (draws.seed % 2**64, draws.purpose))
    return xp.stack(words, axis=1).view("uint32").reshape(rows, -1)[:, :units]


def threshold(rate: float) -> int:
    """What the random bits of a kept unit reach at least: `rate` as a fraction of 2^32."""
    return min(round(rate * 2**32), 2**32 - 1)


def _product(xp: Any, x: Any, factor: int) -> tuple[Any, Any]:
    """The high and the low word of the 128 bits of ``x * factor``, from the products of halves."""
    half, shift = np.uint64(2**32 - 1), np.uint64(32)
    low, high = np.uint64(factor % 2**32), np.uint64(factor >> 32)
    x_low, x_high = xp.bitwise_and(x, half), xp.right_shift(x, shift)
    # Neither sum can overflow: (2^32 - 1)^2 + 2 (2^32 - 1) = 2^64 - 1.
    middle = xp.add(xp.multiply(x_high, low), xp.right_shift(xp.multiply(x_low, low), shift))
    other = xp.add(xp.multiply(x_low, high), xp.bitwise_and(middle, half))
    top = xp.add(xp.multiply(x_high, high), xp.add(xp.right_shift(middle, shift), xp.right_shift(other, shift)))
    return top, xp.multiply(x, np.uint64(factor))
