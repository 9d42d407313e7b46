"""Samples with their targets: validated once when they enter, and cut into mini-batches for the training loop."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Array, Backend, Copy, HostArray, Warp, is_device_array, to_host
from ..words import as_product, counted, numeric_array, shown
from .ahead import Ahead
from .labels import DataError, require_finite, to_array
from .targets import check_weights, encode_targets

__all__ = ["ArrayBatches", "DataError", "Dataset", "checked_images", "training_set"]

_FINGERPRINT_BLOCK = 2**22  # bytes copied to the host at a time


class Dataset:
    """Samples with their targets: classes, several labels a sample, or numbers.

    One rule holds for every data set: *uint8 is pixels, divided by 255 when a batch is gathered;
    everything else is used as given*. So bool and every integer dtype but uint8 become float32 here.

    Another rule tells what the targets are, where `task` does not:

    - integers, bools and strings, ``(n,)`` or ``(n, 1)``, are **classes**: the distinct values in sorted order,
      whatever these are, numbered 0, 1, 2, ...; the network that is trained on them gets their names. For a test
      set, give the names or the number of the classes of the training set: it may lack some of them;
    - a matrix of two or more columns that holds only 0 and 1, of any dtype, is **labels**: of the labels that its
      columns stand for, a sample has those with a 1. A 1 in every row and no other is refused: it may be one-hot;
    - floats, ``(n,)`` or ``(n, outputs)``, are **numbers**, for a regression.

    All values are checked here and not later, since on a GPU an invalid label would wrap silently.
    The arrays are shared with the caller where no conversion is needed, and must not be modified.

    Args:
        images: ``(n, ...)`` with at least 2 dimensions: uint8, float, bool or another integer dtype, finite;
            array-like, or a CuPy array, which stays on its device. A network may not notice that samples are
            changed in place once it is trained on them or validated by them.
        targets: see above; numbers are finite.
        task: ``"classes"`` (whole floats too), ``"labels"`` (one column too) or ``"numbers"`` (integers and bools
            too) settles what the targets are.
        classes: the number of classes, at least 2. With it, targets are class numbers, 0 <= target < classes, of
            which some may be absent.
        class_names: what the classes are called, in the order of their numbers: strings or integers. Without
            `classes`, targets are members of it; with `classes`, they are class numbers. For labels, one name for
            each column.
        weights: ``(n,)`` numbers of 0 or more, not all 0: how much each sample counts in the loss.
        name: used in messages and results.

    Attributes:
        images: ``(n, ...)``, uint8 or floating, a NumPy or CuPy array.
        task: ``"classes"``, ``"labels"`` or ``"numbers"``.
        targets: on the host: ``(n,)`` int64 class numbers, ``(n, columns)`` bool labels, or ``(n, columns)``
            float64 numbers.
        classes: the number of classes, or of labels; 0 for numbers.
        class_names: what these are called; None for 0, 1, 2, ... and for numbers.
        numbered: whether targets were given as class numbers, with `classes`.
        weights: ``(n,)`` float64 on the host, or None.

    Raises:
        DataError: a shape, a dtype or a value is not as stated, or it is unclear what the targets are.

    Warns:
        UserWarning: floats are numbers though all are whole.

    >>> import numpy as np
    >>> data = Dataset(np.zeros((4, 28, 28), np.uint8), [3, 1, 4, 1], classes=10, name="four")
    >>> data
    Dataset('four', 4 samples of 28 x 28 uint8, 10 classes)
    >>> data.features, data.feature_shape
    (784, (28, 28))
    >>> data = Dataset(np.zeros((3, 2)), ["yes", "no", "yes"])
    >>> data.labels, data.class_names
    (array([1, 0, 1]), ('no', 'yes'))
    >>> Dataset(np.zeros((3, 2)), [0.5, 1.5, 2.0])
    Dataset('arrays', 3 samples of 2 float64, 1 number a sample)
    >>> Dataset(np.zeros((3, 2)), [[1, 0], [1, 1], [0, 0]], class_names=["beach", "sunset"])
    Dataset('arrays', 3 samples of 2 float64, 2 labels a sample)
    """

    streamed = False  # whether samples are read from files while they are used
    if_sorted = "choose the order shuffle"  # what to do where an order by blocks does not shuffle well
    # Images by device, dtype and preprocessing, see `placed_once`.
    _placed: dict[tuple[str, str, Callable[[Array], Array] | None], Array] | None = None

    def __init__(
        self,
        images: Any,
        targets: Any,
        *,
        task: str | None = None,
        classes: int | None = None,
        class_names: Iterable[Any] | None = None,
        weights: Any = None,
        name: str = "arrays",
    ) -> None:
        self.name = name
        self.images = checked_images(images, name)
        samples = len(self.images)
        self.task, self.targets, self.classes, self.class_names = encode_targets(
            targets, samples, name, task, classes, class_names
        )
        self.numbered = self.task == "classes" and classes is not None
        self.weights = check_weights(weights, samples, name)
        self._fingerprint: str | None = None

    def part(self, images: Any, targets: Any, weights: Any = None) -> Dataset:
        """Other samples of the same data, such as its test set: the same name, task and classes.

        Raises:
            DataError: as for `Dataset`; also a target that is not among the classes, or another number of columns.
        """
        return self._part(Dataset, images, targets, weights)

    def _part(self, kind: type[Dataset], images: Any, targets: Any, weights: Any) -> Dataset:
        classes = self.classes if self.numbered or (self.task == "classes" and self.class_names is None) else None
        part = kind(
            images,
            targets,
            task=self.task,
            classes=classes,
            class_names=self.class_names,
            weights=weights,
            name=self.name,
        )
        if part.outputs != self.outputs:
            raise DataError(
                f"{self.name}: targets must have {self.outputs} columns as in {self}, got {part.outputs}; "
                "give the same columns"
            )
        return part

    @property
    def labels(self) -> HostArray:
        """The class numbers, ``(n,)`` int64.

        Raises:
            AttributeError: the targets are labels or numbers.
        """
        if self.task != "classes":
            raise AttributeError(f"{self!r} has no class numbers; use its targets")
        return self.targets

    @property
    def outputs(self) -> int:
        """The number of outputs of a network for these targets: of classes, or of columns."""
        return self.classes if self.task == "classes" else int(self.targets.shape[1])

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
    def label_entropy(self) -> float | None:
        """Entropy of the weighted class frequencies, in nats: the lowest loss possible without looking at samples.

        None for labels and numbers.
        """
        return _entropy(self.targets, self.weights) if self.task == "classes" else None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = as_product(self.feature_shape)
        samples = counted(len(self), "sample")
        targets = counted(self.outputs, "class")
        if self.task != "classes":
            targets = f"{counted(self.outputs, self.task[:-1])} a sample"
        weights = "" if self.weights is None else ", weights"
        return f"Dataset({self.name!r}, {samples} of {shape} {self.images.dtype}, {targets}{weights})"

    def batches(
        self,
        batch_size: int,
        backend: Backend,
        dtype: npt.DTypeLike,
        rows: HostArray | None = None,
        *,
        targets: HostArray | None = None,
        weights: HostArray | None = None,
        pixels: bool = True,
        preprocessing: Callable[[Array], Array] | None = None,
    ) -> ArrayBatches:
        """Move the data to a device, unless it is there already, and cut it into batches.

        Args:
            batch_size: samples in a batch.
            backend: of the device.
            dtype: of the network, float32 or float64; pixels stay uint8.
            rows: ``(samples,)`` int64, which samples to use; all by default.
            targets: ``(n,)`` int64 class numbers of a network that numbers the classes differently, or
                ``(n, outputs)`` of `dtype`; those of the data set by default.
            weights: ``(n,)``, how much each sample counts in the loss; those of the data set by default.
            pixels: whether uint8 values are pixels, divided by 255; otherwise they are numbers, used as they are.
            preprocessing: makes new images ``(n, ...)`` of all those of the data set, in `dtype` or as pixels,
                before they are moved.

        Raises:
            DataError: the preprocessing refuses a value.
        """
        kept, rows, targets, weights = self._for_batches(dtype, rows, targets, weights, pixels)
        placed = {} if self._placed is None else self._placed
        key = backend.name, kept.name, preprocessing
        images = placed.get(key)
        if images is None:
            made = self.images if preprocessing is None else self._preprocessed(preprocessing, kept)
            images = placed[key] = backend.asarray(made.reshape(len(self), -1), dtype=kept)
        return ArrayBatches(
            images, backend.asarray(targets), rows, batch_size, backend, weights, host_targets=targets
        )

    def _for_batches(
        self,
        dtype: npt.DTypeLike,
        rows: HostArray | None,
        targets: HostArray | None,
        weights: HostArray | None,
        pixels: bool,
    ) -> tuple[np.dtype[Any], HostArray, HostArray, HostArray | None]:
        """What `batches` takes: the dtype of the images, rows, targets, and weights."""
        kept = self.images.dtype if pixels and self.images.dtype == np.uint8 else np.dtype(dtype)
        rows = np.arange(len(self)) if rows is None else rows
        if targets is None:
            targets = self.targets if self.task == "classes" else self.targets.astype(dtype)
        weights = self.weights if weights is None else weights
        return kept, rows, targets, None if weights is None else relative_weights(weights, dtype)

    def _preprocessed(self, preprocessing: Callable[[Array], Array], dtype: npt.DTypeLike) -> Array:
        try:
            return preprocessing(to_host(self.images).astype(dtype, copy=False))
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from error

    @contextmanager
    def placed_once(self) -> Iterator[None]:
        """Within the context, all `batches` on a device share the samples there, converted once for each dtype.

        Contexts may overlap in several threads; the end of the first one ends the sharing.
        """
        first = self._placed is None
        if first:
            self._placed = {}
        try:
            yield
        finally:
            if first:
                self._placed = None

    def __getstate__(self) -> dict[str, Any]:
        """The state, without copies of the samples on a device."""
        placed = self._placed
        if placed is not None:
            placed = {key: own for key, own in placed.copy().items() if not is_device_array(own)}
        return {**self.__dict__, "_placed": placed}

    def fingerprint(self) -> str:
        """Identify the content, regardless of name and device, as in ``"60000x28x28-uint8-1a2b3c4d"``.

        Consists of shape, dtype and a CRC-32 over images, targets, class names and weights, so it detects
        accidental differences, not deliberate ones. Computed at the first call (waits for the device), then
        cached.
        """
        if self._fingerprint is None:
            crc = zlib.crc32(self.targets.tobytes(), self._images_crc())
            if self.class_names is not None:
                crc = zlib.crc32(repr(self.class_names).encode("utf-8", "surrogatepass"), crc)
            if self.task != "classes":
                crc = zlib.crc32(f"{self.outputs} {self.task}".encode(), crc)
            if self.weights is not None:
                crc = zlib.crc32(self.weights.tobytes(), zlib.crc32(b"weights", crc))
            self._fingerprint = f"{'x'.join(map(str, self.images.shape))}-{self.images.dtype}-{crc:08x}"
        return self._fingerprint

    def _images_crc(self) -> int:
        crc = 0
        rows = max(1, _FINGERPRINT_BLOCK // (self.features * self.images.dtype.itemsize))
        for start in range(0, len(self), rows):
            crc = zlib.crc32(to_host(self.images[start : start + rows]).tobytes(), crc)
        return crc


def _entropy(labels: HostArray, weights: HostArray | None) -> float:
    """Entropy of the frequencies of labels, in nats."""
    if int(labels.max()) > len(labels):
        labels = np.unique(labels, return_inverse=True)[1]
    frequencies = np.bincount(labels, weights)
    frequencies = frequencies[frequencies > 0] / frequencies.sum()
    return float(-np.sum(frequencies * np.log(frequencies)))


def training_set(images: Any, targets: Any, weights: Any = None, *, name: str, task: str | None = None) -> Dataset:
    """The training set in a file; arguments as for `Dataset`.

    Raises:
        DataError: as for `Dataset`; also all samples are of one class.
    """
    train = Dataset(images, targets, task=task, weights=weights, name=name)
    if train.task == "classes" and (train.labels == train.labels[0]).all():
        only = train.labels[0] if train.class_names is None else train.class_names[0]
        raise DataError(f"{name}: labels must be of two classes or more, found only {only}")
    return train


def as_dataset(samples: Any, targets: Any, weights: Any = None, *, task: str | None = None) -> Dataset:
    """A data set as it is; samples with their targets as one, of a task if it is known.

    Raises:
        TypeError: samples without targets, or a `Dataset` with some.
        DataError: as for `Dataset`.
    """
    if isinstance(samples, Dataset):
        if targets is not None or weights is not None:
            raise TypeError(
                "targets and sample_weight are expected with an array of samples; a Dataset has its own"
            )
        return samples
    if targets is None:
        raise TypeError(
            f"a Dataset is expected, or an array with its targets, as in fit(model, X, y); got {shown(samples)} "
            "alone"
        )
    return Dataset(samples, targets, weights=weights, task=task)


def require_alike(train: Any, test: Any, where: str, like: str) -> None:
    """Raise DataError, which names a file, if the samples of a test set have another shape or dtype.

    Args:
        train, test: ``(n, ...)``, arrays or `FileRows`, with the dtype of the file.
        where, like: what the message calls them.
    """
    for what, expected, found in (
        ("shape", train.shape[1:], test.shape[1:]),
        ("dtype", train.dtype, test.dtype),
    ):
        if expected != found:
            raise DataError(
                f"{where}: expected samples of {what} {expected} as in {like}, found {found}; prepare both in the "
                "same way"
            )


def relative_weights(weights: HostArray, dtype: npt.DTypeLike) -> HostArray:
    """Sample weights for `ArrayBatches`. Only their ratios count; the largest is 1, in any dtype."""
    result: HostArray = (weights / weights.max()).astype(dtype)
    return result


class ArrayBatches:
    """Mini-batches of arrays that are stored on the device; ``Dataset.batches`` creates them.

    uint8 images stay uint8 there, a quarter of the memory and of the traffic, and are scaled as a batch is
    gathered. Loops use only `slices`, `reordering` and `gather`, so batches may come from another source.

    Args:
        images: ``(n, features)`` on the device, uint8 or the network's dtype.
        targets: ``(n,)`` int64 class numbers, or ``(n, outputs)`` of the network's dtype, on the device.
        rows: ``(samples,)`` int64, which of the n samples to use.
        batch_size: samples in a batch; the last batch may be smaller.
        backend: of the device.
        weights: ``(n,)`` on the host, of the network's dtype, 0 or more: the weight of each of the n samples;
            None for equal weights.
        host_targets: the targets on the host, if they are there too: `spread` then needs no copy.

    Attributes:
        rows: ``(samples,)`` int64, on the host, as given.
        images: ``(n, features)``, as given.
        order: ``(samples,)`` int64 on the device, this epoch's order of the rows.
        numbers: ``(samples,)`` int64 on the device, the rows of the data in this epoch's order: `order`, unless
            samples are moved while they are streamed.
        targets: ``(samples, ...)`` on the device, in this epoch's order.
        samples: number of samples in an epoch.
        slices: the batches, as slices of an epoch's order.
        pixels: whether the images are uint8.
        weights: ``(samples,)`` on the device, in this epoch's order, scaled to a mean of 1 in each batch (all 0
            in a batch without weight), so that the mean loss is the weighted mean; None without weights.
        batch_weights: the sum of the given weights in each batch; without weights, its number of samples.
        warp: how images are distorted as a batch is gathered, see `distort`; None if they are not.
        epoch: ``(1,)`` uint64 on the device, the number of the epoch, for distortions.
    """

    warp: Warp | None = None
    epoch: Array = None
    _ahead: Ahead | None = None

    def __init__(
        self,
        images: Array,
        targets: Array,
        rows: HostArray,
        batch_size: int,
        backend: Backend,
        weights: HostArray | None = None,
        *,
        host_targets: HostArray | None = None,
    ) -> None:
        self._cut(len(rows), batch_size)
        self.pixels = bool(images.dtype == np.uint8)
        self.images, self._targets, self._backend = images, targets, backend
        self.rows = rows
        # Overwritten with each epoch's order, not replaced: a captured graph refers to their addresses.
        self.order: Array = backend.asarray(rows.copy())
        self.targets: Array = backend.xp.take(targets, self.order, axis=0)
        self._host_targets = host_targets
        self.use_weights(weights)

    def _cut(self, samples: int, batch_size: int) -> None:
        self.samples, self.batch_size = samples, min(batch_size, samples)
        starts = range(0, samples, self.batch_size)
        self.slices = [slice(start, min(start + self.batch_size, samples)) for start in starts]

    @property
    def numbers(self) -> Array:
        return self.order

    @property
    def label_entropy(self) -> float:
        """As that of `Dataset`, for class numbers and the weights of the batches."""
        targets = self._backend.to_numpy(self._targets) if self._host_targets is None else self._host_targets
        return _entropy(targets[self.rows], None if self._weights is None else self._weights[self.rows])

    def use_weights(self, weights: HostArray | None) -> None:
        """Use other weights ``(n,)`` of the samples, before the first epoch."""
        self._weights = weights
        self.batch_weights = [float(batch.stop - batch.start) for batch in self.slices]
        self.weights: Array | None = None
        if weights is not None:
            self.weights = self._backend.asarray(self._weights_of(self.rows))

    def select(self, rows: HostArray, batch_size: int) -> ArrayBatches:
        """Batches of other rows of the same arrays, which are shared."""
        return type(self)(
            self.images,
            self._targets,
            rows,
            batch_size,
            self._backend,
            self._weights,
            host_targets=self._host_targets,
        )

    def distort(self, warp: Warp) -> None:
        """Distort the images of each batch from now on, but not in the batches that `select` makes of these."""
        self.warp = warp
        self.epoch = self._backend.asarray(np.zeros(1, np.uint64))

    def prepare_ahead(self, parts: Sequence[slice], inputs: Array) -> None:
        """Let a thread prepare batches before they are asked for, where the device gains by it.

        Args:
            parts: the rows that `gather` is called with in an epoch, in order.
            inputs: ``(samples, features)``, an array like that into which it writes.
        """
        if not self._backend.asynchronous:
            buffer = self._backend.xp.empty_like(inputs)
            self._ahead = Ahead(lambda rows, out: self._gather(rows, None, out), parts, buffer)

    def begin(self, epoch: int) -> None:
        """Begin an epoch with a number; distortions depend on it. `reordering` follows."""
        if self._ahead is not None:
            self._ahead.wait()
        if self.warp is not None:
            self._backend.xp.copyto(self.epoch, self._backend.asarray(np.array([epoch], np.uint64)))

    def draw(self, samples: int, rng: np.random.Generator) -> ArrayBatches:
        """One batch of `samples` random rows of these, in their order, on the same arrays."""
        return self.select(self.rows[np.sort(rng.permutation(len(self.rows))[:samples])], samples)

    @cached_property
    def spread(self) -> HostArray | None:
        """sum_i (y_ij - mean_j)^2 over the samples, for each output: ``(outputs,)`` float64; None for classes.

        Computed on the host at the first use, which waits for the device where the targets are only there.
        """
        if self._targets.ndim != 2:
            return None
        targets = self._backend.to_numpy(self._targets) if self._host_targets is None else self._host_targets
        numbers = targets[self.rows].astype(np.float64)
        numbers -= numbers[0]  # exactly 0 if all are the same
        result: HostArray = np.square(numbers - numbers.mean(axis=0)).sum(axis=0)
        return result

    @cached_property
    def sample_weights(self) -> Array | None:
        """The weights of the rows, ``(samples,)`` on the device, scaled to a mean of 1 over all of them.

        For the mean loss over all rows, whatever the batches are. None without weights.
        """
        if self._weights is None:
            return None
        weights = self._weights[self.rows].astype(np.float64)
        weights *= len(weights) / weights.sum()
        return self._backend.asarray(weights.astype(self._weights.dtype))

    def weighted_over_all(self, losses: Array) -> Array:
        """The losses of an epoch, ``(samples,)`` in its order, weighted over all samples instead of in each batch.

        Args:
            losses: of each sample, times its weight of `weights`.
        """
        if self.weights is None:
            return losses
        factors = np.empty(self.samples)
        for batch, weight in zip(self.slices, self.batch_weights, strict=True):
            factors[batch] = weight / (batch.stop - batch.start)
        factors *= self.samples / sum(self.batch_weights)
        return self._backend.xp.multiply(losses, self._backend.asarray(factors.astype(losses.dtype)))

    def reordering(self, rows: HostArray) -> list[Copy]:
        """Begin an epoch in this order, a permutation of the rows; returns the copies that are left to do."""
        copies = [Copy(rows, self.order), Copy(self._targets, self.targets, rows)]
        return copies if self.weights is None else [*copies, Copy(self._weights_of(rows), self.weights)]

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

    def staged(self) -> ArrayBatches:
        """The same batches, whose samples `available` copies to the device where they are not there."""
        return self

    def available(self, batches: range) -> Iterator[range]:
        """Cut consecutive batches of `slices` into parts whose samples are on the device.

        Each part has to be given to the device before the next one is asked for.
        """
        yield batches

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        """Write the samples of a batch into ``out``.

        Args:
            batch: one of `slices`.
            staging: ``(batch, features)`` uint8, overwritten; None where the images are not pixels.
            out: ``(batch, features)``, overwritten.

        Returns:
            The targets of the batch.
        """
        if self._ahead is not None:
            return self._ahead.take(batch, out)
        return self._gather(batch, staging, out)

    def _gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        self._fill(self.images, self.order[batch], self.numbers[batch], staging, out)
        return self.targets[batch]

    def _fill(self, source: Array, rows: Array, numbers: Array, staging: Array | None, out: Array) -> None:
        """Write rows of `source` into `out`; `numbers` are those of the samples in the data."""
        if self.warp is None:
            self._backend.gather(source, rows, staging, out)
        else:
            self._backend.distort(source, rows, numbers, self.epoch, self.warp, out)


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
        require_finite(images, what, "images")
    elif images.dtype != np.uint8:
        images = images.astype(np.float32)
    return images
