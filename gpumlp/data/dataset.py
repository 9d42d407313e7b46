"""Labelled samples: validated once when they enter, and cut into mini-batches for the training loop."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Array, Backend, HostArray, is_device_array, to_host
from ..words import as_product, numeric_array
from .labels import DataError, encode_labels, to_array

__all__ = ["ArrayBatches", "DataError", "Dataset", "checked_images", "training_set"]

_FINGERPRINT_BLOCK = 2**22  # bytes copied to the host at a time


class Dataset:
    """Samples with their class numbers.

    One rule holds for every data set: *uint8 is pixels, divided by 255 when a batch is gathered;
    everything else is used as given*. So bool and every integer dtype but uint8 become float32 here.

    The classes are the distinct labels in sorted order, whatever these are, and are numbered 0, 1, 2, ...; the
    network that is trained on them gets their names. For a test set, give the names or the number of the classes
    of the training set: it may lack some of them.

    All values are checked here and not later, since on a GPU an invalid label would wrap silently.
    The arrays are shared with the caller where no conversion is needed, and must not be modified.

    Args:
        images: ``(n, ...)`` with at least 2 dimensions: uint8, float, bool or another integer dtype, finite;
            array-like, or a CuPy array, which stays on its device.
        labels: ``(n,)`` integers, bools or strings.
        classes: the number of classes, at least 2. With it, labels are class numbers, 0 <= label < classes, of
            which some may be absent.
        class_names: what the classes are called, in the order of their numbers: strings or integers. Without
            `classes`, labels are members of it; with `classes`, they are class numbers.
        name: used in messages and results.

    Attributes:
        images: ``(n, ...)``, uint8 or floating, a NumPy or CuPy array.
        labels: ``(n,)`` int64 class numbers, on the host.
        classes: the number of classes.
        class_names: what the classes are called; None for 0, 1, 2, ...
        numbered: whether labels were given as class numbers, with `classes`.

    Raises:
        DataError: a shape, a dtype or a value is not as stated.

    >>> import numpy as np
    >>> data = Dataset(np.zeros((4, 28, 28), np.uint8), [3, 1, 4, 1], classes=10, name="four")
    >>> data
    Dataset('four', 4 samples of 28 x 28 uint8, 10 classes)
    >>> data.features, data.feature_shape
    (784, (28, 28))
    >>> data = Dataset(np.zeros((3, 2)), ["yes", "no", "yes"])
    >>> data.labels, data.class_names
    (array([1, 0, 1]), ('no', 'yes'))
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        *,
        classes: int | None = None,
        class_names: Iterable[Any] | None = None,
        name: str = "arrays",
    ) -> None:
        self.name = name
        self.images = checked_images(images, name)
        self.labels, self.classes, self.class_names = encode_labels(
            labels, len(self.images), f"{name}: labels", classes, class_names
        )
        self.numbered = classes is not None
        self._fingerprint: str | None = None

    def part(self, images: Any, labels: Any) -> Dataset:
        """Other samples of the same data, such as its test set: the same name and classes, labels as given here.

        Raises:
            DataError: as for `Dataset`; also a label that is not among the classes.
        """
        classes = self.classes if self.numbered or self.class_names is None else None
        return Dataset(images, labels, classes=classes, class_names=self.class_names, name=self.name)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.images.shape[1:])

    @property
    def features(self) -> int:
        """Number of values in one sample."""
        return math.prod(self.feature_shape)

    @cached_property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and the largest value of the images; None where they are on a device."""
        if is_device_array(self.images):
            return None
        return float(self.images.min()), float(self.images.max())

    @cached_property
    def label_entropy(self) -> float:
        """Entropy of the label frequencies, in nats: the lowest loss possible without looking at the samples."""
        frequencies = np.unique(self.labels, return_counts=True)[1] / len(self)
        return float(-np.sum(frequencies * np.log(frequencies)))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = as_product(self.feature_shape)
        samples = f"{len(self):,} sample{'s' if len(self) > 1 else ''}"
        classes = f"{self.classes:,} class{'es' if self.classes > 1 else ''}"
        return f"Dataset({self.name!r}, {samples} of {shape} {self.images.dtype}, {classes})"

    def batches(
        self,
        batch_size: int,
        backend: Backend,
        dtype: npt.DTypeLike,
        rows: HostArray | None = None,
        *,
        labels: HostArray | None = None,
        pixels: bool = True,
    ) -> ArrayBatches:
        """Move the data to a device, unless it is there already, and cut it into batches.

        Args:
            batch_size: samples in a batch.
            backend: of the device.
            dtype: of the network, float32 or float64; pixels stay uint8.
            rows: ``(samples,)`` int64, which samples to use; all by default.
            labels: ``(n,)`` int64, the class numbers of a network that numbers the classes differently.
            pixels: whether uint8 values are pixels, divided by 255; otherwise they are numbers, used as they are.
        """
        images = backend.asarray(
            self.images.reshape(len(self), -1), dtype=None if pixels and self.images.dtype == np.uint8 else dtype
        )
        rows = np.arange(len(self)) if rows is None else rows
        labels = self.labels if labels is None else labels
        return ArrayBatches(images, backend.asarray(labels), rows, batch_size, backend)

    def fingerprint(self) -> str:
        """Identify the content, regardless of name and device, as in ``"60000x28x28-uint8-1a2b3c4d"``.

        Consists of shape, dtype and a CRC-32 over images, labels and class names, so it detects accidental
        differences, not deliberate ones. Computed at the first call (waits for the device), then cached.
        """
        if self._fingerprint is None:
            crc = 0
            rows = max(1, _FINGERPRINT_BLOCK // (self.features * self.images.dtype.itemsize))
            for start in range(0, len(self), rows):
                crc = zlib.crc32(to_host(self.images[start : start + rows]).tobytes(), crc)
            crc = zlib.crc32(self.labels.tobytes(), crc)
            if self.class_names is not None:
                crc = zlib.crc32(repr(self.class_names).encode("utf-8", "surrogatepass"), crc)
            self._fingerprint = f"{'x'.join(map(str, self.images.shape))}-{self.images.dtype}-{crc:08x}"
        return self._fingerprint


def training_set(images: Any, labels: Any, name: str) -> Dataset:
    """The training set in a file; arguments as for `Dataset`.

    Raises:
        DataError: as for `Dataset`; also all labels are the same.
    """
    train = Dataset(images, labels, name=name)
    if (train.labels == train.labels[0]).all():
        only = train.labels[0] if train.class_names is None else train.class_names[0]
        raise DataError(f"{name}: labels must be of two classes or more, found only {only}")
    return train


class ArrayBatches:
    """Mini-batches of arrays that are stored on the device; ``Dataset.batches`` creates them.

    uint8 images stay uint8 there, a quarter of the memory and of the traffic, and are scaled as a batch is
    gathered. Loops use only `slices`, `reorder` and `gather`, so batches may come from another source.

    Args:
        images: ``(n, features)`` on the device, uint8 or the network's dtype.
        labels: ``(n,)`` int64 class numbers, or other targets ``(n, outputs)``, on the device.
        rows: ``(samples,)`` int64, which of the n samples to use.
        batch_size: samples in a batch; the last batch may be smaller.
        backend: of the device.
        weights: ``(n,)`` on the host, of the network's dtype, 0 or more: the weight of each of the n samples;
            None for equal weights.

    Attributes:
        rows: ``(samples,)`` int64, on the host, as given.
        images: ``(n, features)``, as given.
        order: ``(samples,)`` int64 on the device, this epoch's order of the rows.
        targets: ``(samples, ...)`` on the device, the labels or other targets in this epoch's order.
        samples: number of samples in an epoch.
        slices: the batches, as slices of an epoch's order.
        pixels: whether the images are uint8.
        weights: ``(samples,)`` on the device, in this epoch's order, scaled to a mean of 1 in each batch (all 0
            in a batch without weight), so that the mean loss is the weighted mean; None without weights.
        batch_weights: the sum of the given weights in each batch; without weights, its number of samples.
    """

    def __init__(
        self,
        images: Array,
        labels: Array,
        rows: HostArray,
        batch_size: int,
        backend: Backend,
        weights: HostArray | None = None,
    ) -> None:
        self.samples = len(rows)
        self.batch_size = min(batch_size, self.samples)
        self.slices = [
            slice(start, min(start + self.batch_size, self.samples))
            for start in range(0, self.samples, self.batch_size)
        ]
        self.pixels = bool(images.dtype == np.uint8)
        self.images, self._labels, self._backend = images, labels, backend
        self.rows = rows
        # Overwritten with each epoch's order, not replaced: a captured graph refers to their addresses.
        self.order: Array = backend.asarray(rows.copy())
        self.targets: Array = backend.xp.take(labels, self.order, axis=0)
        self.weights: Array | None = None
        self.batch_weights = [float(batch.stop - batch.start) for batch in self.slices]
        self._weights = weights
        if weights is not None:
            self.weights = backend.asarray(self._weights_of(rows))

    def select(self, rows: HostArray, batch_size: int) -> ArrayBatches:
        """Batches of other rows of the same arrays, which are shared."""
        return ArrayBatches(self.images, self._labels, rows, batch_size, self._backend, self._weights)

    def draw(self, samples: int, rng: np.random.Generator) -> ArrayBatches:
        """One batch of `samples` random rows of these, on the same arrays."""
        return self.select(np.sort(rng.permutation(self.rows)[:samples]), samples)

    def reorder(self, rows: HostArray) -> None:
        """Set the order of the samples: ``(samples,)`` int64, a permutation of `rows`."""
        xp, backend = self._backend.xp, self._backend
        xp.copyto(self.order, backend.asarray(rows))
        xp.take(self._labels, self.order, axis=0, out=self.targets)
        if self.weights is not None:
            xp.copyto(self.weights, backend.asarray(self._weights_of(rows)))

    def _weights_of(self, rows: HostArray) -> HostArray:
        """The weights in an order, scaled in each batch; updates `batch_weights`."""
        assert self._weights is not None
        ordered = self._weights[rows].astype(np.float64)
        for index, batch in enumerate(self.slices):
            total = float(ordered[batch].sum())
            self.batch_weights[index] = total
            if total > 0:
                ordered[batch] *= (batch.stop - batch.start) / total
        return ordered.astype(self._weights.dtype)

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        """Write the samples of a batch into ``out``.

        Args:
            batch: one of `slices`.
            staging: ``(batch, features)`` uint8, overwritten; None where the images are not pixels.
            out: ``(batch, features)``, overwritten.

        Returns:
            The labels or other targets of the batch.
        """
        self._backend.gather(self.images, self.order[batch], staging, out)
        return self.targets[batch]


def checked_images(images: Any, name: str) -> Any:
    """Samples ``(n, ...)`` as `Dataset` stores them, uint8 or floating; errors begin with `name`."""
    what = f"{name}: images"
    # A CuPy array supports the operators and NumPy functions used below, and so stays on its device.
    if not is_device_array(images):
        images = to_array(images, what)
    if images.dtype.kind not in "buif":
        raise DataError(
            f"{what} must be integers or real floats, got dtype {images.dtype}; {numeric_array(images)}"
        )
    if images.ndim < 2:
        raise DataError(
            f"{what} must have shape (samples, ...) with at least 2 dimensions, got {images.shape}; "
            "use images.reshape(1, -1) for one sample, images.reshape(-1, 1) for samples of one value"
        )
    if images.size == 0:
        raise DataError(
            f"{what} must hold at least one sample of at least one value, got shape {images.shape}; "
            "check how the array was sliced"
        )
    if not images.dtype.isnative:
        images = images.astype(images.dtype.newbyteorder("="))
    if images.dtype.kind == "f":
        _check_finite(images, what)
    elif images.dtype != np.uint8:
        images = images.astype(np.float32)
    return images


def _check_finite(images: Any, what: str) -> None:
    bad = ~np.isfinite(images)
    count = int(bad.sum())
    if count:
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), images.shape))
        raise DataError(
            f"{what} must be finite, but {count:,} of {images.size:,} values are NaN or infinite, "
            f"the first at images{list(where)}; remove those samples or fill the values in"
        )
