"""Random distortions of images: an affine map, and displacements that are noise smoothed by a Gaussian.

Every value that decides about a pixel is an integer, or a float32 number from operations of one rounding each, and
every sum of products is exact. So an image is the same on every device, whatever its library of matrix products
and however a batch is divided; only the sine and the cosine of a rotation may differ in their last bit.

P. Y. Simard, D. Steinkraus and J. C. Platt, "Best practices for convolutional neural networks applied to visual
document analysis", ICDAR 2003.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np

from .philox import DISTORTION, philox

WEIGHT_SUM = 4096  # of a Gaussian's weights, which are whole numbers
# What the smoothed noise is for noise of its mean, 127.5: 1/16 of the sum is left after the first of two sums.
MIDDLE = 255 * 8 * WEIGHT_SUM
STEPS = 256  # places between two pixels
CHUNK = 64  # images, whose arrays stay in the cache of a core


class Warp(NamedTuple):
    """How images of one shape are distorted.

    The random bits of an image are those of Philox with the key (seed, `DISTORTION`) and the counters (block,
    number of the image, epoch, 0), least significant word first. The eight halves of the words of block 1 are the
    numbers of the affine map; the bytes of blocks 2, 3, ... are the noise, that of the rows' displacements first.

    Attributes:
        seed: of the training run.
        shape: rows and columns of an image.
        rotation: the largest angle, in half turns.
        scaling: the largest relative change of height, and of width.
        shear: the largest shift of a row to the side, relative to its distance from the middle.
        translation: the largest shift in rows and in columns, in pixels.
        gain: what one unit of the smoothed noise displaces in rows and in columns, in 1/256 of a pixel; both are
            float32 numbers.
        noise: values in a row of the square of noise; 0 for none.
        weights: of the Gaussian by rows, ``(rows, noise)``, and by columns, ``(noise, columns)``, int32 on the
            device, with the sum `WEIGHT_SUM` for each pixel.
    """

    seed: int
    shape: tuple[int, int]
    rotation: float
    scaling: float
    shear: float
    translation: tuple[float, float]
    gain: tuple[float, float]
    noise: int
    weights: tuple[Any, Any]

    @property
    def blocks(self) -> int:
        """Of random bits for an image."""
        return 1 + -(-2 * self.noise**2 // 32)


def random_words(xp: Any, warp: Warp, numbers: Any, epoch: Any) -> Any:
    """The random bits of images, ``(n, 4 blocks)`` uint64, in array code.

    Args:
        xp: the array library.
        warp: how to distort.
        numbers: ``(n,)`` int64, of the images.
        epoch: ``(1,)`` uint64.
    """
    count, blocks = len(numbers), warp.blocks
    none = xp.zeros((count, blocks), dtype="uint64")
    counters = [
        xp.add(none, each).reshape(-1)
        for each in (xp.arange(1, blocks + 1, dtype="uint64"), numbers.astype("uint64")[:, None], epoch)
    ]
    words = philox(xp, (*counters, none.reshape(-1)), (warp.seed % 2**64, DISTORTION))
    return xp.stack(words, axis=1).reshape(count, 4 * blocks)


def affine(xp: Any, warp: Warp, words: Any) -> tuple[Any, Any]:
    """Where the affine map finds the pixels of images.

    Returns:
        ``(n, 2, rows)`` and ``(n, 2, columns)`` float32: the sum of the two numbers of a pixel is its place in the
        rows, or in the columns, of an image with a border of one pixel, in 1/256 of a pixel, plus 0.5 to round.
    """
    uniform = words[:, :4].copy().view("uint32") * 2.0**-31 - 1.0
    cosine, sine = (function(uniform[:, 0] * (math.pi * warp.rotation)) for function in (xp.cos, xp.sin))
    height, width = (uniform[:, k] * warp.scaling + 1.0 for k in (1, 2))
    shear = uniform[:, 3] * warp.shear
    # The inverse of: scale, then shear, then rotate.
    inverse = (
        (cosine / height, sine / height * -1.0),
        ((sine - shear * cosine) / width, (cosine + shear * sine) / width),
    )
    offsets = []
    for axis, size in enumerate(warp.shape):
        shift = uniform[:, 4 + axis] * warp.translation[axis] + (size - 1) / 2
        offsets.append(xp.arange(size, dtype="float64") - shift[:, None])
    rows = [
        factors[0][:, None] * STEPS * offsets[0] + (STEPS * ((size - 1) / 2 + 1) + 0.5)
        for factors, size in zip(inverse, warp.shape, strict=True)
    ]
    columns = [factors[1][:, None] * STEPS * offsets[1] for factors in inverse]
    return xp.stack(rows, axis=1).astype("float32"), xp.stack(columns, axis=1).astype("float32")


def places(xp: Any, warp: Warp, words: Any) -> Any:
    """Where the pixels of images come from, in array code.

    Returns:
        ``(n, 2, rows, columns)`` float32: places in the rows and in the columns of an image with a border of one
        pixel, in 1/256 of a pixel, plus 0.5 to round.
    """
    count, size = len(words), warp.noise
    noise = words[:, 4:].copy().view("uint8")[:, : 2 * size**2].reshape(count, 2, size, size).astype("float64")
    by_row, by_column = (weights.astype("float64") for weights in warp.weights)
    half = xp.rint(xp.matmul(by_row, noise) * 2.0**-8)  # 12 bits, so that the second sum has 24
    field = (xp.matmul(half, by_column) - MIDDLE).astype("float32")
    row, column = affine(xp, warp, words)
    each = [
        field[:, axis] * warp.gain[axis] + (row[:, axis, :, None] + column[:, axis, None, :]) for axis in range(2)
    ]
    return xp.stack(each, axis=1)


def distorted(xp: Any, images: Any, warp: Warp, words: Any) -> Any:
    """Distorted images, in array code.

    Args:
        xp: the array library.
        images: ``(n, rows, columns)``, uint8 or floating; beyond its border an image is 0.
        warp: how to distort.
        words: of `random_words`.

    Returns:
        New images of the same shape and dtype, each pixel interpolated from four.
    """
    count, rows, columns = images.shape
    exact, whole, fraction = places(xp, warp, words), [], []
    for axis, size in enumerate(warp.shape):
        place = xp.minimum(xp.maximum(exact[:, axis], 0.0), float(STEPS * (size + 1))).astype("int64")
        whole.append(xp.right_shift(place, 8))
        fraction.append(xp.bitwise_and(place, STEPS - 1))
    wide = columns + 3
    padded = xp.zeros((count, rows + 3, wide), dtype=images.dtype)
    padded[:, 1 : rows + 1, 1 : columns + 1] = images
    first = whole[0] * wide + whole[1] + xp.arange(count).reshape(count, 1, 1) * ((rows + 3) * wide)
    if images.dtype == np.uint8:
        corners = (xp.take(padded.reshape(-1), first + offset) for offset in (0, wide, 1, wide + 1))
        down, right = fraction
        upper_left, lower_left, upper_right, lower_right = (corner.astype("int64") for corner in corners)
        left = upper_left * (STEPS - down) + lower_left * down
        other = upper_right * (STEPS - down) + lower_right * down
        return xp.right_shift(left * (STEPS - right) + other * right + STEPS**2 // 2, 16).astype("uint8")
    return _between(xp, padded, first, fraction)


def _between(xp: Any, padded: Any, first: Any, fraction: Any) -> Any:
    """Floating values between four pixels: a fraction down and right of the first, in images with a border."""
    pixels, wide = padded.reshape(-1), padded.shape[2]
    down, right = (each.astype(padded.dtype) * (1 / STEPS) for each in fraction)
    upper, lower = xp.take(pixels, first), xp.take(pixels, first + wide)
    left = upper + (lower - upper) * down
    upper, lower = xp.take(pixels, first + 1), xp.take(pixels, first + wide + 1)
    return left + (upper + (lower - upper) * down - left) * right


class NumpyDistorter:
    """`distorted` for NumPy, with random bits, in a sixth of the time: in arrays that are kept.

    Args:
        warp: how to distort.
    """

    def __init__(self, warp: Warp) -> None:
        self.warp = warp
        (rows, columns), size = warp.shape, warp.noise
        by_row, by_column = warp.weights
        self._by_row, self._by_column = by_row.astype(np.float32), by_column.astype(np.float32)
        self._noise = np.empty((CHUNK, 2, size, size), np.float32)
        self._half = np.empty((CHUNK, 2, rows, size), np.float32)
        self._field, self._places = (np.empty((CHUNK, 2, rows, columns), np.float32) for _ in range(2))
        self._whole, self._fraction = (np.empty((CHUNK, 2, rows, columns), np.int32) for _ in range(2))
        self._first = np.empty((CHUNK, rows, columns), np.int64)
        self._words = np.empty((CHUNK, 4 * warp.blocks), np.uint64)
        # The pixels of an image with a border, and each with its right neighbour in the upper half of a word.
        self._padded = np.zeros((CHUNK, rows + 3, columns + 3), np.uint32)
        self._pairs = np.zeros(self._padded.size + 1, np.uint32)
        self._upper, self._lower = (np.empty((CHUNK, rows, columns), np.uint32) for _ in range(2))
        self._starts = np.arange(CHUNK).reshape(-1, 1, 1) * self._padded[0].size
        self._limits = np.array([STEPS * (size + 1) for size in warp.shape], np.float32).reshape(2, 1, 1)
        self._gains = np.array(warp.gain, np.float32).reshape(2, 1, 1)
        self._philox = np.random.Philox(key=np.array([warp.seed % 2**64, DISTORTION], np.uint64))
        self._state: Any = self._philox.state

    def __call__(self, images: Any, numbers: Any, epoch: int) -> Any:
        """Distorted images.

        Args:
            images: ``(n, rows, columns)``, uint8 or floating, up to `CHUNK` of them.
            numbers: ``(n,)`` int64, of the images.
            epoch: the number of the epoch.

        Returns:
            ``(n, rows, columns)``, uint32 with values of uint8, or of the images' dtype; overwritten by the next
            call.
        """
        count, warp = len(images), self.warp
        words = self._words[:count]
        self._draw(numbers, epoch, words)
        places = self._places[:count]
        row, column = affine(np, warp, words)
        np.add(row[..., None], column[:, :, None], out=places)
        if warp.noise:
            field = self._field[:count]
            self._smooth(words, field)
            np.add(places, field, out=places)
        np.maximum(places, 0, out=places)
        np.minimum(places, self._limits, out=places)
        whole, fraction, first = self._whole[:count], self._fraction[:count], self._first[:count]
        np.copyto(whole, places, casting="unsafe")
        np.bitwise_and(whole, STEPS - 1, out=fraction)
        np.right_shift(whole, 8, out=whole)
        wide = warp.shape[1] + 3
        np.multiply(whole[:, 0], wide, out=first)
        np.add(first, whole[:, 1], out=first)
        np.add(first, self._starts[:count], out=first)
        if images.dtype == np.uint8:
            return self._blend_pixels(images, first, fraction.view(np.uint32), wide)
        return self._blend_numbers(images, first, fraction, wide)

    def _draw(self, numbers: Any, epoch: int, words: Any) -> None:
        """The bits of `random_words`, by NumPy's Philox, whose counter is increased before it draws a block."""
        generator, state = self._philox, self._state
        counter = state["state"]["counter"]
        counter[:] = 0, 0, epoch, 0
        for row, number in enumerate(numbers.tolist()):
            counter[1] = number
            generator.state = state
            words[row] = generator.random_raw(words.shape[1])

    def _smooth(self, words: Any, field: Any) -> None:
        """Write the displacements by the noise into `field`."""
        count, size = len(words), self.warp.noise
        noise, half = self._noise[:count], self._half[:count]
        octets = words[:, 4:].view(np.uint8)[:, : 2 * size**2]
        np.copyto(noise, octets.reshape(count, 2, size, size))
        # Sums of integers below 2^24, so that they are exact. Products of single images are too small for NumPy's
        # BLAS to divide among threads, which would wait for those of a step.
        np.matmul(self._by_row, noise, out=half)
        np.multiply(half, 2.0**-8, out=half)
        np.rint(half, out=half)
        np.matmul(half, self._by_column, out=field)
        np.subtract(field, MIDDLE, out=field)
        np.multiply(field, self._gains, out=field)

    def _blend_pixels(self, images: Any, first: Any, fraction: Any, wide: int) -> Any:
        """Interpolate two neighbours in a row at once: their 16-bit sums are the halves of a word."""
        count, (rows, columns) = len(images), self.warp.shape
        padded = self._padded[:count]
        padded[:, 1 : rows + 1, 1 : columns + 1] = images
        flat = padded.reshape(-1)
        pairs = self._pairs[: flat.size]
        np.left_shift(flat[1:], 16, out=pairs[:-1])
        np.bitwise_or(pairs[:-1], flat[:-1], out=pairs[:-1])
        upper, lower = self._upper[:count], self._lower[:count]
        pairs.take(first, out=upper, mode="clip")  # which writes directly into `out`
        self._pairs[wide:].take(first, out=lower, mode="clip")
        np.subtract(lower, upper, out=lower)
        np.multiply(lower, fraction[:, 0], out=lower)
        np.left_shift(upper, 8, out=upper)
        np.add(upper, lower, out=upper)
        np.right_shift(upper, 16, out=lower)
        np.bitwise_and(upper, 2**16 - 1, out=upper)
        np.subtract(lower, upper, out=lower)
        np.multiply(lower, fraction[:, 1], out=lower)
        np.left_shift(upper, 8, out=upper)
        np.add(upper, lower, out=upper)
        np.add(upper, STEPS**2 // 2, out=upper)
        np.right_shift(upper, 16, out=upper)
        return upper

    def _blend_numbers(self, images: Any, first: Any, fraction: Any, wide: int) -> Any:
        count, (rows, columns) = len(images), self.warp.shape
        padded = np.zeros((count, rows + 3, wide), images.dtype)
        padded[:, 1 : rows + 1, 1 : columns + 1] = images
        return _between(np, padded, first, np.moveaxis(fraction, 1, 0))


class _Local(threading.local):
    """The distorter that a thread has used last."""

    distorter: NumpyDistorter | None = None


_LOCAL = _Local()


def numpy_distorter(warp: Warp) -> NumpyDistorter:
    """The `NumpyDistorter` of this thread; one for another `warp` replaces it."""
    if _LOCAL.distorter is None or _LOCAL.distorter.warp is not warp:
        _LOCAL.distorter = NumpyDistorter(warp)
    return _LOCAL.distorter
