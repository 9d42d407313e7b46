"""What the images of a network go through before it sees them, in training and in use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backends import Array, HostArray, to_host
from .hyperparameters import flag, whole

INK = 0.02  # a pixel above this share of the brightest one is ink
STEEPEST = 1.0  # columns per row, 45 degrees: what is flatter is no slanted digit
HALF = 0.5 + 1e-6  # up from a half, also where programs differ in the last bits: uint8 is the same in all of them
_CHUNK = 64  # images at a time, which fit into a cache


@dataclass(frozen=True)
class Preprocessing:
    """Normalization of images of digits, light on a background of 0, by rows: every row is shifted and scaled.

    It is part of `Inputs`: a network that was trained with it applies it to all images that it is given.

    The pixel in column j and row y of the new image is taken from column ``c + s (j - c0) + m (y - y0)`` of the
    same row. To deskew, ``m = sum p (x - x0) (y - y0) / sum p (y - y0)^2``, at most 1 in size, with the values p
    of the pixels in columns x and rows y and their centre of mass (x0, y0); otherwise m is 0. With a width, c is
    the middle and ``s width`` the width of the ink, once deskewed, and c0 the middle of the image, less half a
    pixel where the new ink would begin within one; without a width, s is 1 and c is c0. Values are interpolated
    linearly; where an image becomes narrower, with a filter as wide as a new pixel.

    U. Meier, D. C. Ciresan, L. M. Gambardella and J. Schmidhuber, "Better digit recognition with a committee of
    simple neural nets", ICDAR 2011; D. Ciresan, U. Meier and J. Schmidhuber, "Multi-column deep neural networks
    for image classification", CVPR 2012.

    Args:
        deskew: whether slanted digits are made upright.
        width: of every digit, in pixels, 1 or more; at most the width of the images. None leaves it.

    Raises:
        ValueError: a value is not as stated, or there is nothing to do.

    >>> images = np.zeros((1, 8, 8), np.uint8)
    >>> images[0, [1, 2, 3, 4], [4, 3, 2, 1]] = 255
    >>> Preprocessing(deskew=True)(images)[0, 1:5, 1:5]
    array([[  0, 128, 128,   0],
           [  0, 128, 128,   0],
           [  0, 128, 128,   0],
           [  0, 128, 128,   0]], dtype=uint8)
    """

    deskew: bool = False
    width: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "deskew", flag("deskew", self.deskew))
        if self.width is not None:
            object.__setattr__(self, "width", whole("width", self.width, 1))
        if not self.deskew and self.width is None:
            raise ValueError("Preprocessing is expected with deskew=True, a width, or both, got neither")

    def check(self, shape: tuple[int, ...], what: object) -> None:
        """Check the shape of an image.

        Raises:
            ValueError: it is not ``(rows, columns)``, or narrower than the width; the message names `what`.
        """
        if len(shape) != 2:
            raise ValueError(
                f"{self} is expected with images of shape (n, rows, columns), got {what}; reshape them, as in "
                "samples.reshape(-1, 28, 28)"
            )
        if self.width is not None and self.width > shape[1]:
            raise ValueError(f"width is expected to be at most the {shape[1]} columns of {what}, got {self.width}")

    def check_lowest(self, value: float) -> None:
        """Raise ValueError if the lowest value of images is below 0, the background."""
        if value < 0:
            raise ValueError(
                f"{self} is expected with images on a background of 0, got values from {value:g}; add what is "
                "missing, or leave it out"
            )

    def __call__(self, images: Array) -> HostArray:
        """New images.

        Args:
            images: ``(n, rows, columns)``; those on a GPU are read from it, so that the results are the same.

        Returns:
            The same shape, on the host; uint8 for uint8, otherwise float32 or float64.

        Raises:
            ValueError: a value is below 0, the background.
        """
        images = to_host(images)
        if images.size:
            self.check_lowest(float(images.min()))
        out = images if images.dtype.kind == "f" or images.dtype == np.uint8 else images.astype("float32")
        result: HostArray = np.empty_like(out)
        for start in range(0, len(out), _CHUNK):
            part = slice(start, start + _CHUNK)
            values = self._resampled(out[part].astype("float64"))
            result[part] = np.floor(values + HALF) if out.dtype == np.uint8 else values
        return result

    def _resampled(self, images: HostArray) -> HostArray:
        """Images in float64."""
        rows, columns = images.shape[1:]
        y, x = np.arange(rows, dtype="float64")[:, None], np.arange(columns, dtype="float64")

        def mean(values: HostArray) -> HostArray:
            """Of values at the pixels, ``(n, 1, 1)``; 0 for an empty image."""
            total = np.sum(images, axis=(1, 2), keepdims=True)
            sums: HostArray = np.sum(images * values, axis=(1, 2), keepdims=True)
            return sums / np.where(total > 0, total, 1)

        y0, slope, scale, middle, centre = mean(y), np.zeros(1), np.ones(1), np.zeros(1), 0.0
        if self.deskew:
            spread = mean((y - y0) ** 2)
            slope = mean((x - mean(x)) * (y - y0)) / np.where(spread > 0, spread, 1)
            slope = np.clip(slope, -STEEPEST, STEEPEST)
        shift = slope * (y - y0)
        if self.width is not None:
            ink = images > INK * np.max(images, axis=(1, 2), keepdims=True)
            upright, centre = x - shift, middle_of(self.width, columns)
            left = np.min(np.where(ink, upright, columns), axis=(1, 2), keepdims=True)
            right = np.max(np.where(ink, upright, -1), axis=(1, 2), keepdims=True)
            found = right >= left  # is there any ink?
            scale = np.where(found, (right - left + 1) / self.width, 1.0)
            middle = np.where(found, (left + right) / 2, centre)
        source = middle + scale * (x - centre) + shift + np.zeros_like(images)
        reach = np.maximum(scale, 1.0)
        first, taps = np.floor(source), int(np.ceil(np.max(reach))) if len(images) else 1
        total, weights = np.zeros_like(images), np.zeros_like(images)
        for tap in range(1 - taps, taps + 1):
            place = first + tap
            weight = np.maximum(0, 1 - np.abs(source - place) / reach)
            weights += weight
            inside = (place >= 0) & (place < columns)
            taken = np.take_along_axis(images, np.clip(place, 0, columns - 1).astype("int64"), axis=2)
            total += np.where(inside, weight, 0) * taken
        return total / weights


def middle_of(width: int, columns: int) -> float:
    """Where the middle of a digit of a width is put, in columns: its ink begins with a whole pixel."""
    return (columns - width) // 2 + (width - 1) / 2
