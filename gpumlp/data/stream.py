"""Data larger than memory: samples that are read from files, a window at a time, while a network is trained."""

from __future__ import annotations

import copy
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Array, Backend, HostArray
from ..files import user_path
from .blocks import BlockOrder, Blocks
from .dataset import ArrayBatches, DataError, Dataset, relative_weights
from .labels import stratified_split
from .reading import require_memory
from .rows import FileRows, compact, read_targets
from .targets import check_weights, encode_targets

_MAX_HELD_OUT = 10_000  # samples of a test set that is taken from the training samples
_FINGERPRINT_PLACES, _FINGERPRINT_BYTES = 64, 2**16


class StreamedDataset(Dataset):
    """Samples that are read from files while they are used; only labels are in memory.

    Training takes an order by `Blocks`: a thread reads the next window while the network is trained on the one
    before it. The results are those of a `Dataset` with the same samples and the same order, bit for bit. For the
    CPU only.

    Args:
        images: path of a .npy file or of an IDX file, not compressed, with ``(n, ...)`` uint8 or float32, or of a
            folder of such files, whose names hold consecutive numbers. Also a Zarr array of such values.
        targets: path of the targets in the same formats, ``(n,)`` or ``(n, columns)``; or an array; none with
            `label_column`.
        label_column: the column of the targets, where `images` is an Arrow or Parquet file or a folder of them,
            whose other columns are the samples.
        task, classes, class_names, weights: see `Dataset`.
        name: used in messages and results; by default that of the file.

    Attributes:
        images: a `gpumlp.data.rows.FileRows`, which reads rows on demand.
        targets: as those of `Dataset`, but class numbers have the smallest unsigned dtype.

    Raises:
        DataError: a file cannot be used, or as for `Dataset`. Values are checked when they are read: training and
            evaluation raise it, too.
    """

    streamed = True
    images: FileRows

    def __init__(
        self,
        images: str | os.PathLike[str],
        targets: Any = None,
        *,
        label_column: str | None = None,
        task: str | None = None,
        classes: int | None = None,
        class_names: Iterable[Any] | None = None,
        weights: Any = None,
        name: str | None = None,
    ) -> None:
        if (targets is None) != (label_column is not None):
            raise DataError(
                f"{os.fspath(images)}: expected targets, or the label_column of a table; give one of them"
            )
        self.images = FileRows(images, label_column)
        self.label_column = label_column
        self.name = user_path(images).name if name is None else name
        where = self.name
        if label_column is not None:
            targets = read_targets(images, label_column)
        elif isinstance(targets, str | os.PathLike):
            where, targets = os.fspath(targets), read_targets(targets)
        samples = len(self.images)
        self.task, values, self.classes, self.class_names = encode_targets(
            targets, samples, where, task, classes, class_names
        )
        self.targets = _compact(values)
        self.numbered = self.task == "classes" and classes is not None
        self.weights = check_weights(weights, samples, where)
        self._fingerprint = None

    @property
    def limits(self) -> None:
        """None: not all values are read."""
        return

    def part(self, images: Any, targets: Any = None, weights: Any = None) -> Dataset:
        """Other samples of the same data, of files if `images` is a path; see `Dataset.part`."""
        if not isinstance(images, str | os.PathLike):
            return self._part(Dataset, images, targets, weights)
        kind: Any = (
            StreamedDataset if targets is not None else partial(StreamedDataset, label_column=self.label_column)
        )
        return self._part(kind, images, targets, weights)

    def in_memory(self) -> Dataset:
        """The same samples in memory.

        Raises:
            DataError: they do not fit, or a value is NaN or infinite.
        """
        require_memory(self.images.nbytes, f"{self.name}:")
        other = Dataset.__new__(Dataset)
        other.__dict__.update(self.__dict__)
        other.images, other.targets, other._fingerprint = np.asarray(self.images), _wide(self.targets), None
        return other

    def subset(self, rows: HostArray) -> StreamedDataset:
        """Some of the samples, ``(n,)`` rows in increasing order, read from the same files."""
        other = copy.copy(self)
        other.images, other.targets = self.images.select(rows), self.targets[rows]
        other.weights = None if self.weights is None else self.weights[rows]
        other._fingerprint = None
        other.__dict__.pop("label_entropy", None)
        return other

    def held_out(self) -> tuple[StreamedDataset, StreamedDataset]:
        """Training and test set: a tenth of the samples, at most 10,000, is the test set, the same for any seed.

        Raises:
            DataError: there are too few samples.
        """
        samples = len(self)
        count, rng = min(_MAX_HELD_OUT, samples // 10), np.random.default_rng(0)
        if not count:
            raise DataError(f"{self.name}: expected 10 samples or more to hold out a test set, found {samples}")
        if self.task == "classes":
            with suppress(ValueError):  # of a class there is one sample
                train, test = stratified_split(self.targets, count, rng)
                return self.subset(train), self.subset(test)
        order = rng.permutation(samples)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

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
    ) -> StreamedBatches:
        """Cut the samples into batches, which are read when they are asked for; see `Dataset.batches`.

        Raises:
            DataError: the device is not the CPU, or the samples need a preprocessing.
        """
        if preprocessing is not None:
            raise DataError(
                f"{self.name}: samples that are streamed are not preprocessed, got {preprocessing}; load them "
                "into memory"
            )
        if backend.name != "cpu":
            raise DataError(
                f"{self.name}: samples are streamed on the CPU only, got the device {backend.name}; choose "
                "the device cpu, or load the samples into memory"
            )
        rows = np.arange(len(self)) if rows is None else rows
        if targets is None:
            targets = self.targets if self.task == "classes" else self.targets.astype(dtype)
        weights = self.weights if weights is None else weights
        if weights is not None:
            weights = relative_weights(weights, dtype)
        kept = self.images.dtype if pixels and self.images.dtype == np.uint8 else np.dtype(dtype)
        return StreamedBatches(self.images, _compact(targets), rows, batch_size, backend, weights, dtype=kept)

    def _images_crc(self) -> int:
        """Of the first, the last and some 60 other places of the samples, and of the number of bytes."""
        crc = zlib.crc32(f"{self.images.nbytes} bytes, sampled".encode())
        size = max(1, _FINGERPRINT_BYTES // max(1, self.images.nbytes // len(self)))
        starts = np.linspace(0, max(0, len(self) - size), min(_FINGERPRINT_PLACES, -(-len(self) // size)))
        for start in np.unique(starts.astype(np.int64)).tolist():
            crc = zlib.crc32(self.images[start : start + size].tobytes(), crc)
        return crc


class StreamedBatches(ArrayBatches):
    """Mini-batches of samples in files.

    After `reorder`, `gather` takes the batches of an epoch one after another, from two windows in memory, of which
    a thread fills one while the other is trained on. Without an order, `gather` reads the samples themselves.

    Args:
        images: the samples.
        targets: ``(n,)`` class numbers or ``(n, outputs)``, on the host.
        rows, batch_size, backend, weights: as for `ArrayBatches`; the backend is the CPU's.
        dtype: uint8 for pixels, or the network's.
    """

    images: Any

    def __init__(
        self,
        images: FileRows,
        targets: HostArray,
        rows: HostArray,
        batch_size: int,
        backend: Backend,
        weights: HostArray | None = None,
        *,
        dtype: npt.DTypeLike,
    ) -> None:
        self.samples, self.rows = len(rows), compact(rows)
        self.batch_size = min(batch_size, self.samples)
        self.slices = [
            slice(start, min(start + self.batch_size, self.samples))
            for start in range(0, self.samples, self.batch_size)
        ]
        self.images, self._targets, self._host_targets, self._backend = images, targets, targets, backend
        self._dtype = np.dtype(dtype)
        self.pixels = self._dtype == np.uint8
        self._order: BlockOrder | None = None
        self._buffers: list[HostArray] = []
        self._reader: ThreadPoolExecutor | None = None
        self._following: Future[tuple[HostArray, HostArray]] | None = None
        self.use_weights(weights)

    @property
    def order(self) -> HostArray:
        """The rows: the order of an epoch is never in memory as a whole."""
        return self.rows

    @property
    def targets(self) -> HostArray:
        """``(samples, ...)``, in the order of the rows."""
        return _wide(self._targets[self.rows])

    def memory(self, blocks: Blocks) -> tuple[int, int]:
        """Bytes in use while it is trained on: of samples in windows; of targets, rows, losses and hits of all."""
        window = min(blocks.samples, self.samples) + self.batch_size
        each = self._targets.nbytes // len(self._targets) + 2 * self.rows.itemsize
        outputs = 1 if self._targets.ndim == 1 else self._targets.shape[1]
        each += 4 + (1 if self._targets.ndim == 1 else outputs * 4) + (0 if self._weights is None else 16)
        windows = 2 * window * self.images.features * self._dtype.itemsize
        return windows + self.images.buffered, each * self.samples

    def select(self, rows: HostArray, batch_size: int) -> StreamedBatches:
        return type(self)(
            self.images, self._targets, rows, batch_size, self._backend, self._weights, dtype=self._dtype
        )

    def reorder(self, order: BlockOrder) -> None:  # type: ignore[override]
        """Begin an epoch."""
        self._order = order
        if self.weights is not None:
            self._backend.xp.copyto(self.weights, self._weights_of(order.rows()))
        self._rows, self._places = np.empty(0, np.int64), np.empty(0, np.int64)
        self._begin = self._end = self._number = 0
        if self._reader is None:
            # One thread, so what it still reads of an epoch that was broken off comes before this one's windows.
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="gpumlp-reader")
        self._read_ahead()

    def _gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        if self._order is None:
            rows = self.rows[batch]
            values = np.empty((len(rows), self.images.features), self._dtype)
            self.images.read(rows, values)
            self._backend.gather(values, np.arange(len(rows)), staging, out)
            return _wide(self._targets[rows])
        if batch.start < self._begin:  # the epoch is repeated
            self.reorder(self._order)
        while batch.stop > self._end:
            self._advance(batch.start)
        part = slice(batch.start - self._begin, batch.stop - self._begin)
        places, rows = self._places[part], self._rows[part]
        self._fill(self._buffers[(self._number - 1) % 2], places, rows, staging, out)
        return _wide(self._targets[rows])

    def _read_ahead(self) -> None:
        """Begin to read the next window of the epoch, if there is one, into the buffer that is not in use."""
        assert self._order is not None
        assert self._reader is not None
        self._following = None
        if self._number < len(self._order):
            self._following = self._reader.submit(self._read, self._order, self._number)

    def _read(self, order: BlockOrder, number: int) -> tuple[HostArray, HostArray]:
        rows, places = order.window(number)
        room, need = self.batch_size, self.batch_size + len(rows)
        while len(self._buffers) < 2:
            self._buffers.append(np.empty((0, self.images.features), self._dtype))
        if len(self._buffers[number % 2]) < need:
            self._buffers[number % 2] = np.empty((need, self.images.features), self._dtype)
        self.images.read(rows, self._buffers[number % 2][room:need])
        return rows, places

    def _advance(self, position: int) -> None:
        """Go on to the next window, before which the rest of the present one from a position on is put."""
        assert self._following is not None
        rows, places = self._following.result()
        room, rest = self.batch_size, slice(position - self._begin, None)
        left = self._places[rest]
        if len(left):
            now = self._buffers[(self._number - 1) % 2]
            np.take(now, left, axis=0, out=self._buffers[self._number % 2][room - len(left) : room])
        self._rows = np.concatenate([self._rows[rest], rows[places]])
        self._places = np.concatenate([np.arange(room - len(left), room), places + room])
        self._begin, self._end = position, position + len(self._rows)
        self._number += 1
        self._read_ahead()


def _compact(targets: HostArray) -> HostArray:
    """Class numbers in the smallest unsigned dtype; other targets as they are."""
    return compact(targets) if targets.ndim == 1 and targets.dtype.kind in "iu" else targets


def _wide(targets: HostArray) -> HostArray:
    return targets.astype(np.int64) if targets.ndim == 1 else targets


# -- For the commands -----------------------------------------------------------------------------------------


def load_files(
    paths: Sequence[str],
    test: Sequence[str] | None = None,
    *,
    label_column: str | None = None,
    task: str | None = None,
    stream: bool = True,
) -> tuple[Dataset, Dataset, str | None]:
    """Training and test set from files of samples and of targets.

    Args:
        paths: of the training samples and their targets, or of a table, see `StreamedDataset`.
        test: those of the test samples; None: some of the training samples are held out.
        task: what the targets are, see `Dataset`.
        stream: whether samples are read while they are used, or now, into memory.

    Returns:
        Training set, test set, and a notice that the user must see, or None.

    Raises:
        DataError: a file cannot be used, or the two sets do not match.
    """
    whole = StreamedDataset(*paths, label_column=label_column, task=task)
    if whole.task == "classes" and not (whole.targets != whole.targets[0]).any():
        raise DataError(f"{paths[-1]}: labels must be of two classes or more, found only one")
    notice, train = None, whole
    if test is None:
        train, tested = whole.held_out()
        notice = f"no --test: {len(tested):,} of the {len(whole):,} samples are held out as the test set"
    else:
        found = whole.part(*test)
        assert isinstance(found, StreamedDataset)
        tested = found
        if (tested.images.columns, tested.feature_shape, tested.images.dtype) != (
            train.images.columns,
            train.feature_shape,
            train.images.dtype,
        ):
            raise DataError(
                f"{test[0]}: expected samples of {train.feature_shape} of {train.images.dtype} as in {paths[0]}, "
                f"found {tested.feature_shape} of {tested.images.dtype}; prepare both in the same way"
            )
    if stream:
        return train, tested, notice
    return train.in_memory(), tested.in_memory(), notice
