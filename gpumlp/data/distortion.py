"""Random distortions of training images, each image anew in every epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import WEIGHT_SUM, Backend, HostArray, Warp, get_backend, to_host
from .labels import DataError

SIZE = 28  # rows and columns of the images in whose pixels distances are given
_LEAST_SIGMA, _LARGEST_SIGMA = 0.5, 14.0
_LARGEST = {"rotation": 180.0, "scaling": 0.99, "shear": 1.0, "translation": float(SIZE)}
_LARGEST_ALPHA = 10_000.0


@dataclass(frozen=True)
class Distortion:
    """Random changes of an image, drawn anew for each image and epoch.

    A pixel is taken from the place that the inverse of an affine map gives, plus a displacement, and interpolated
    from the four pixels around it. Beyond its border an image is 0. All numbers are drawn from uniform
    distributions and depend on the seed, the epoch and the number of the image in the data, and on nothing else.

    The displacements of rows and of columns are noise from -1 to 1, one value for each pixel of an image of 28 x
    28 and of its surroundings, smoothed by a Gaussian whose weights have the sum 1, and multiplied by alpha. At
    the edges of an image as in the middle, their standard deviation is about ``0.163 alpha / sigma`` pixels.
    Distances are in pixels of an image of 28 x 28; in larger images they grow with the image.

    P. Y. Simard, D. Steinkraus and J. C. Platt, "Best practices for convolutional neural networks applied to
    visual document analysis", ICDAR 2003.

    Args:
        rotation: the largest angle, in degrees, in both directions, from 0 to 180.
        scaling: height and width are each multiplied by a factor from ``1 - scaling`` to ``1 + scaling``; at most
            0.99.
        shear: the largest shift of a row to the side, relative to its distance from the middle; at most 1.
        translation: the largest shift, in rows and in columns, from 0 to 28 pixels.
        elastic: alpha, from 0 to 10,000 pixels, and sigma of the Gaussian, from 0.5 to 14 pixels; None for no
            displacements.

    Raises:
        DataError: a value is not as stated.

    >>> images = np.zeros((5, 28, 28), np.uint8)
    >>> images[:, 10:18, 10:18] = 255
    >>> changed = Distortion(rotation=7.5, scaling=0.12, elastic=(34, 4)).apply(images, seed=0)
    >>> changed.shape, changed.dtype, len(np.unique(changed, axis=0))
    ((5, 28, 28), dtype('uint8'), 5)
    """

    rotation: float = 0.0
    scaling: float = 0.0
    shear: float = 0.0
    translation: float = 0.0
    elastic: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), 0, largest))
        if self.elastic is None:
            return
        if not isinstance(self.elastic, tuple | list) or len(self.elastic) != 2:
            raise DataError(f"Distortion: elastic must be two numbers, (alpha, sigma), got {self.elastic!r}")
        alpha = _checked("alpha of elastic", self.elastic[0], 0, _LARGEST_ALPHA)
        sigma = _checked("sigma of elastic", self.elastic[1], _LEAST_SIGMA, _LARGEST_SIGMA)
        object.__setattr__(self, "elastic", (alpha, sigma))

    @property
    def changes(self) -> bool:
        """Whether images can differ from what they were."""
        alpha = self.elastic[0] if self.elastic else 0
        return any((self.rotation, self.scaling, self.shear, self.translation, alpha))

    def warp(self, shape: tuple[int, ...], seed: int, backend: Backend) -> Warp:
        """How a device distorts images.

        Args:
            shape: of an image, ``(rows, columns)``.
            seed: of the random numbers.
            backend: of the device.
        """
        rows, columns = shape
        alpha, sigma = self.elastic or (0.0, 0.0)
        beyond = math.ceil(3 * sigma)
        noise = 0 if self.elastic is None else SIZE + 2 * beyond
        by_row, by_column = (_weights(size, noise, beyond, sigma) for size in shape)
        # Noise is from -128 to 128, and weights of the sum 1 from 0 to 4096 twice, of which 8 bits are left out.
        unit = 256 / (128 * WEIGHT_SUM**2 / 256)
        gain = tuple(float(np.float32(alpha * size / SIZE * unit)) for size in shape)
        return Warp(
            seed=seed,
            shape=(rows, columns),
            rotation=self.rotation / 180,
            scaling=self.scaling,
            shear=self.shear,
            translation=(self.translation * rows / SIZE, self.translation * columns / SIZE),
            gain=(gain[0], gain[1]),
            noise=noise,
            weights=(backend.asarray(by_row), backend.asarray(np.ascontiguousarray(by_column.T))),
        )

    def apply(self, images: Any, *, seed: int = 0, epoch: int = 0, rows: HostArray | None = None) -> HostArray:
        """The images as a network sees them in an epoch of `fit` with this seed.

        Args:
            images: ``(n, rows, columns)``, uint8, float32 or float64.
            seed: as for `fit`.
            epoch: counted from 0.
            rows: ``(n,)`` whole numbers, which rows of the training samples these are; by default 0, 1, 2, ...

        Returns:
            New images of the same shape and dtype, on the host.

        Raises:
            DataError: `images` are not as stated.
        """
        images = to_host(images)
        if images.ndim != 3 or not images.size or images.dtype not in (np.uint8, np.float32, np.float64):
            raise DataError(
                "images must have the shape (n, rows, columns), with pixels, and the dtype uint8, float32 or "
                f"float64, got {images.shape} of {images.dtype}"
            )
        backend, count = get_backend("cpu"), len(images)
        pixels = images.dtype == np.uint8
        out: HostArray = np.empty((count, images[0].size), np.float32 if pixels else images.dtype)
        numbers = np.arange(count) if rows is None else np.asarray(rows)
        if numbers.shape != (count,) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
            raise DataError(f"rows must be {count:,} whole numbers of 0 or more, one for each image, got {rows!r}")
        for name, value in (("seed", seed), ("epoch", epoch)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
                raise DataError(f"{name} must be a whole number of 0 or more, got {value!r}")
        warp, of_epoch = self.warp(images.shape[1:], seed, backend), np.array([epoch], np.uint64)
        numbers = numbers.astype(np.int64)
        backend.distort(images.reshape(count, -1), np.arange(count), numbers, of_epoch, warp, out)
        values = np.rint(out * 255).astype(np.uint8) if pixels else out
        result: HostArray = values.reshape(images.shape)
        return result


def _checked(name: str, value: Any, low: float, high: float) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise DataError(f"Distortion: {name} must be a number from {low:g} to {high:g}, got {value!r}; correct it")
    return float(value)


def _weights(size: int, noise: int, beyond: int, sigma: float) -> HostArray:
    """The weights of a Gaussian around each pixel, ``(size, noise)`` int32 with the sum `WEIGHT_SUM`.

    Args:
        size: pixels in a row or in a column of an image.
        noise: values, one for each pixel of a row of 28, and `beyond` more on each side.
        sigma: of the Gaussian.
    """
    if not noise:
        return np.zeros((size, 0), np.int32)
    centres = (np.arange(size) + 0.5) * (SIZE / size) - 0.5
    exponents = -0.5 * ((centres[:, None] - (np.arange(noise) - beyond)) / sigma) ** 2
    exact = np.exp(exponents)
    exact *= WEIGHT_SUM / exact.sum(axis=1, keepdims=True)
    weights = np.floor(exact)
    missing = WEIGHT_SUM - weights.sum(axis=1, keepdims=True)
    places = np.argsort(np.argsort(weights - exact, axis=1, kind="stable"), axis=1, kind="stable")
    result: HostArray = (weights + (places < missing)).astype(np.int32)  # the largest remainders are rounded up
    return result
