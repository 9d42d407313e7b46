"""Data larger than memory: samples that are read from files, a window at a time, while a network is trained."""

from __future__ import annotations

import copy
import math
import os
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Array, Backend, Copy, HostArray, Uploads, Warp
from ..files import user_path
from .blocks import BlockOrder, Blocks, ShardedOrder
from .dataset import ArrayBatches, DataError, Dataset, require_alike
from .labels import stratified_split
from .mnist import FILE_NAMES
from .reading import require_memory
from .rows import FileRows, compact, read_targets
from .targets import check_weights, encode_targets

_MAX_HELD_OUT = 10_000  # samples of a test set that is taken from the training samples
_FINGERPRINT_PLACES, _FINGERPRINT_BYTES = 64, 2**16


class StreamedDataset(Dataset):
    """Samples that are read from files while they are used; only labels are in memory.

    Training takes an order by `Blocks`: a thread reads the next window while the network is trained on the one
    before it. The results are those of a `Dataset` with the same samples and the same order, bit for bit. On a GPU
    two windows are in its memory.

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
        self.name = _name_of(images) if name is None else name
        where, words = self.name, [os.fspath(images), "LABELS", "OUT"]
        if label_column is not None:
            words[1:] = [words[0], "OUT", "--label-column", label_column]
            targets = read_targets(images, label_column)
        elif isinstance(targets, str | os.PathLike):
            where = words[1] = os.fspath(targets)
            targets = read_targets(targets)
        self.if_sorted = f"shuffle them once: python -m gpumlp.shuffle {shlex.join(words)}"
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

        Samples are preprocessed each time they are read, on the host.
        """
        kept, rows, targets, weights = self._for_batches(dtype, rows, targets, weights, pixels)
        images = self.images if preprocessing is None else self.images.preprocessed(preprocessing)
        return StreamedBatches(images, _compact(targets), rows, batch_size, backend, weights, dtype=kept)

    def _images_crc(self) -> int:
        """Of the first, the last and some 60 other places of the samples, and of the number of bytes."""
        crc = zlib.crc32(f"{self.images.nbytes} bytes, sampled".encode())
        size = max(1, _FINGERPRINT_BYTES // max(1, self.images.nbytes // len(self)))
        starts = np.linspace(0, max(0, len(self) - size), min(_FINGERPRINT_PLACES, -(-len(self) // size)))
        for start in np.unique(starts.astype(np.int64)).tolist():
            crc = zlib.crc32(self.images[start : start + size].tobytes(), crc)
        return crc


def _name_of(path: str | os.PathLike[str]) -> str:
    """The name of a data set in files: never that of a known one, such as the built-in digits."""
    name = user_path(path).name
    return f"./{name}" if name in ("digits", "fashion-mnist", "kmnist", *FILE_NAMES) else name


class _Windows:
    """The samples of an epoch, two windows of which are in memory: a thread reads one while the other is used.

    In front of each window there is room for the samples of a batch that begins in the window before it.
    """

    def __init__(self, images: FileRows, dtype: Any, room: int, reader: Executor, order: BlockOrder) -> None:
        self._images, self._room, self._reader = images, room, reader
        self._buffers = [np.empty((0, images.features), dtype)] * 2
        self.begin(order)

    def begin(self, order: BlockOrder) -> None:
        """Begin an epoch: read its first window."""
        self._order, self._number, self._start = order, 0, 0
        self._rows = self._places = np.empty(0, np.int64)
        self._read_ahead()

    def take(self, batch: slice) -> tuple[HostArray, HostArray, HostArray]:
        """The next batch of the epoch, or the first again: an array, its places there, and its rows."""
        if batch.start < self._start:  # the epoch is repeated
            self.begin(self._order)
        while batch.stop > self._start + len(self._rows):
            self._advance(batch.start)
        part = slice(batch.start - self._start, batch.stop - self._start)
        return self._buffers[(self._number - 1) % 2], self._places[part], self._rows[part]

    def _read_ahead(self) -> None:
        """Begin to read the next window of the epoch, if there is one, into the buffer that is not in use."""
        more = self._number < len(self._order)
        self._following = self._reader.submit(self._read, self._order, self._number) if more else None

    def _read(self, order: BlockOrder, number: int) -> tuple[HostArray, HostArray]:
        rows, places = order.window(number)
        buffer, need = self._buffers[number % 2], self._room + len(rows)
        if len(buffer) < need:
            buffer = self._buffers[number % 2] = np.empty((need, self._images.features), buffer.dtype)
        self._images.read(rows, buffer[self._room : need])
        return rows, places

    def _advance(self, position: int) -> None:
        """Go on to the next window, before which the rest of the present one from a position on is put."""
        assert self._following is not None
        rows, places = self._following.result()
        room, rest = self._room, slice(position - self._start, None)
        left = self._places[rest]
        now, following = self._buffers[(self._number - 1) % 2], self._buffers[self._number % 2]
        np.take(now, left, axis=0, out=following[room - len(left) : room])
        self._rows = np.concatenate([self._rows[rest], rows[places]])
        self._places = np.concatenate([np.arange(room - len(left), room), places + room])
        self._start, self._number = position, self._number + 1
        self._read_ahead()


class StreamedBatches(ArrayBatches):
    """Mini-batches of samples in files.

    After `reordering`, `gather` takes the batches of an epoch one after another; with several shards, parts of
    them, and each shard that is asked for has windows of its own. Without an order, it reads from the files.

    Args:
        images: the samples.
        targets: ``(n,)`` class numbers or ``(n, outputs)``, on the host.
        rows, batch_size, backend, weights: as for `ArrayBatches`; only the backend of the CPU takes an order.
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
        self.rows = compact(rows)
        self._cut(len(rows), batch_size)
        self.images, self._targets, self._host_targets, self._backend = images, targets, targets, backend
        self._dtype = np.dtype(dtype)
        self.pixels = self._dtype == np.uint8
        self._order: BlockOrder | ShardedOrder | None = None
        self._windows: dict[int, _Windows] = {}  # of the shards that this process computes
        # One thread, so what it still reads of an epoch that was broken off comes before the next one's windows.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="gpumlp-reader")
        self.use_weights(weights)

    @property
    def order(self) -> HostArray:
        """The rows: the order of an epoch is never in memory as a whole."""
        return self.rows

    @property
    def targets(self) -> Array:
        """``(samples, ...)``, in the order of the rows."""
        return self._backend.asarray(_wide(self._targets[self.rows]))

    def memory(self, blocks: Blocks, shards: int = 1, processes: int = 1) -> tuple[int, int]:
        """Bytes in use while it is trained on: of samples in windows; of targets, rows, losses and hits of all.

        Each of some processes computes as many of the shards of a batch.
        """
        part = -(-self.batch_size // shards)
        window = min(blocks.of_shard(shards).samples, part * len(self.slices), self.samples) + part
        each = self._targets.nbytes // len(self._targets) + 2 * self.rows.itemsize
        outputs = 1 if self._targets.ndim == 1 else self._targets.shape[1]
        each += 4 + (1 if self._targets.ndim == 1 else outputs * 4) + (0 if self._weights is None else 16)
        windows = shards // processes * 2 * window * self.images.features * self._dtype.itemsize
        return windows + self.images.buffered, each * self.samples

    def in_windows(self, blocks: Blocks, shards: int = 1) -> StreamedBatches | DeviceBatches:
        """The same batches, for training in an order by these blocks.

        Args:
            blocks: of the order.
            shards: of a batch.

        Raises:
            DataError: the device is a GPU, and there are several shards, or no room for two windows.
        """
        uploads = self._backend.uploads()
        if uploads is None:
            return self
        if shards > 1:
            raise DataError(
                "samples that are streamed to a GPU are expected in batches of one shard, on one process, got "
                f"{shards:,} shards on {self._backend.name}; choose the device cpu, or hold the samples in memory "
                "(without --stream, or with in_memory())"
            )
        return DeviceBatches(self, blocks, uploads)

    def select(self, rows: HostArray, batch_size: int) -> StreamedBatches:
        return type(self)(
            self.images, self._targets, rows, batch_size, self._backend, self._weights, dtype=self._dtype
        )

    def staged(self) -> ArrayBatches:
        return StagedBatches(self) if self._backend.asynchronous else self

    def reordering(self, order: BlockOrder | ShardedOrder) -> list[Copy]:  # type: ignore[override]
        """Begin an epoch; nothing is left to do."""
        self._order = order
        if self.weights is not None:
            self._backend.xp.copyto(self.weights, self._weights_of(order.rows()))
        for shard, windows in self._windows.items():
            windows.begin(_streams(order)[shard])
        return []

    def _gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        if self._order is None:
            return self._read(self.rows[batch], staging, out)
        shard, part = self._order.place(batch) if isinstance(self._order, ShardedOrder) else (0, batch)
        if shard not in self._windows:
            streams = _streams(self._order)
            room = -(-self.batch_size // len(streams))
            self._windows[shard] = _Windows(self.images, self._dtype, room, self._reader, streams[shard])
        samples, places, rows = self._windows[shard].take(part)
        self._fill(samples, places, rows, staging, out)
        return _wide(self._targets[rows])

    def _read(self, rows: HostArray, staging: Array | None, out: Array) -> Array:
        values, backend = np.empty((len(rows), self.images.features), self._dtype), self._backend
        self.images.read(rows, values)
        backend.gather(backend.asarray(values), backend.asarray(np.arange(len(rows))), staging, out)
        return backend.asarray(_wide(self._targets[rows]))


def _streams(order: BlockOrder | ShardedOrder) -> list[BlockOrder]:
    return order.streams if isinstance(order, ShardedOrder) else [order]


class StagedBatches(ArrayBatches):
    """Mini-batches of samples in files, in an order that does not change, one at a time in a device's memory.

    Args:
        source: the batches, without an order.
    """

    def __init__(self, source: StreamedBatches) -> None:
        self.__dict__.update(source.__dict__)
        self._samples, backend = source.images, self._backend
        self.order: Array = backend.asarray(np.arange(self.samples) % self.batch_size)
        self.targets: Array = backend.asarray(_wide(self._targets[self.rows]))
        self.images: Array = backend.xp.zeros((self.batch_size, self._samples.features), dtype=source._dtype)

    def available(self, batches: range) -> Iterator[range]:
        for number in batches:
            rows = self.rows[self.slices[number]]
            values = np.empty((len(rows), self._samples.features), self.images.dtype)
            self._samples.read(rows, values)
            self.images[: len(rows)] = self._backend.asarray(values)
            self._backend.samples_changed(self.images, slice(0, len(rows)))
            yield range(number, number + 1)


class DeviceBatches(ArrayBatches):
    """Mini-batches of samples in files, for training on a device that has two windows of them in its memory.

    Samples are in a ring of rows, where each window follows the one before it, and `order` has their rows there.
    So a step finds them as samples in memory, at addresses that stay. A thread reads the next window and copies
    it to the device while the present one is trained on.

    The next window is read as soon as the device has been given all batches that begin before the last window, and
    copied after these (`Uploads.mark`): it overwrites windows before the last one. A batch that is larger than a
    window needs several at a time, so there is room for two windows and a batch.

    Args:
        source: the batches, without an order.
        blocks: of the order.
        uploads: of the device.

    Raises:
        DataError: the device has no room for them.
    """

    def __init__(self, source: StreamedBatches, blocks: Blocks, uploads: Uploads) -> None:
        self.__dict__.update(source.__dict__)
        self._source, self._blocks, self._uploads = source, blocks, uploads
        xp, dtype, window = self._backend.xp, source._dtype, min(blocks.samples, self.samples)
        self._room = min(2 * window + self.batch_size, self.samples)
        shape, features = self._targets.shape[1:], source.images.features
        kind = self._targets.dtype if shape else np.dtype(np.int64)
        self._row_bytes = features * dtype.itemsize
        outputs = 4 * shape[0] if shape else 1
        weight = 0 if self._weights is None else self._weights.itemsize
        self._sample_bytes = 8 + math.prod(shape) * kind.itemsize + 4 + outputs + weight
        memory = self._backend.memory()
        self._free = 0 if memory is None else memory.free  # before there are arrays
        with self._room_required():
            self.order: Array = xp.zeros(self.samples, dtype="int64")
            self.targets: Array = xp.zeros((self.samples, *shape), dtype=kind)
            self.images: Array = xp.empty((self._room, features), dtype=dtype)
        self._numbers: Array = None
        self._window = [
            uploads.empty((window, features), dtype),
            uploads.empty((window,), np.int64),
            uploads.empty((window, *shape), kind),
        ]
        self._reader = source._reader

    def memory(self) -> tuple[int, int]:
        """Bytes on the host: of samples in a window; of targets and rows of all."""
        each = self._targets.nbytes // len(self._targets) + 2 * self.rows.itemsize
        each += 0 if self._weights is None else 16
        return sum(part.nbytes for part in self._window) + self._source.images.buffered, each * self.samples

    def device_memory(self) -> tuple[int, int]:
        """Bytes on the device: of samples in windows; of targets, order, losses and hits of all."""
        return self._room * self._row_bytes, self._sample_bytes * self.samples

    def select(self, rows: HostArray, batch_size: int) -> StreamedBatches:
        return self._source.select(rows, batch_size)

    @property
    def numbers(self) -> Array:
        return self.order if self._numbers is None else self._numbers

    def distort(self, warp: Warp) -> None:
        super().distort(warp)
        self._sample_bytes += 8
        with self._room_required():
            self._numbers = self._backend.xp.zeros(self.samples, dtype="int64")
        self._window.append(self._uploads.empty(self._window[1].shape, np.int64))

    def reordering(self, order: BlockOrder) -> list[Copy]:  # type: ignore[override]
        """Begin an epoch; nothing is left to do."""
        self._order = order
        if self.weights is not None:
            self._backend.xp.copyto(self.weights, self._backend.asarray(self._weights_of(order.rows())))
        self._number = self._start = self._end = self._position = 0
        self._read_ahead()
        return []

    def available(self, batches: range) -> Iterator[range]:
        """See `ArrayBatches.available`. Waits for windows, but not for the device."""
        while batches:
            first = self.slices[batches[0]]
            if first.start < self._position:  # the epoch is repeated
                self.reordering(self._order)
            while self._end < first.stop:
                if self._following is None:
                    self._read_ahead()
                self._arrive()
            last = len(self.slices) if self._end == self.samples else self._end // self.batch_size
            if self._following is None:
                border = -(-self._start // self.batch_size)  # the first batch that begins in the last window
                if batches.start < border:
                    last = border
                else:
                    self._read_ahead()
            part, batches = batches[: last - batches.start], batches[last - batches.start :]
            self._position = self.slices[part[-1]].stop
            yield part

    def _read_ahead(self) -> None:
        """Begin to read the next window of the epoch, if there is one."""
        self._following = None
        self._uploads.mark()
        if self._number < len(self._order):
            self._following = self._reader.submit(self._read, self._order, self._number, self._end)

    def _read(self, order: BlockOrder, number: int, start: int) -> int:
        """Read a window whose first place in the epoch is `start`, and copy it to the device; returns its end."""
        rows, places = order.window(number)
        stop = start + len(rows)
        images, ring_rows, targets, *numbers = (part[: len(rows)] for part in self._window)
        self._source.images.read(rows, images)
        np.remainder(places + start, self._room, out=ring_rows)
        targets[...] = self._targets[rows[places]]
        samples = [
            (images[first - start : last - start], self.images[first % self._room :][: last - first])
            for first, last in self._pieces(start, stop)
        ]
        of_epoch = [(ring_rows, self.order), (targets, self.targets)]
        if numbers:
            numbers[0][...] = rows[places]
            of_epoch.append((numbers[0], self._numbers))
        self._uploads.copy([*samples, *((host, array[start:stop]) for host, array in of_epoch)])
        return stop

    def _arrive(self) -> None:
        """Wait for the window that is being read."""
        assert self._following is not None
        self._start, self._end = self._end, self._following.result()
        self._number, self._following = self._number + 1, None
        for first, last in self._pieces(self._start, self._end):
            self._backend.samples_changed(self.images, slice(first % self._room, (last - 1) % self._room + 1))

    @contextmanager
    def _room_required(self) -> Iterator[None]:
        """A context in which arrays are made; raises DataError if the device has no room for them."""
        try:
            yield
        except MemoryError as error:
            raise self._too_large() from error

    def _too_large(self) -> DataError:
        blocks, free = self._blocks, self._free
        # A quarter is left for the network.
        rows = ((free * 3 // 4 - self.samples * self._sample_bytes) // self._row_bytes - self.batch_size) // 2
        cure = "choose the device cpu"
        if rows >= blocks.rows:
            cure = f"give a window of {rows // blocks.rows:,} blocks or fewer (--window {rows // blocks.rows})"
        elif rows > 0:
            cure = f"give a window of one block of {rows:,} samples or fewer (--window 1 --block {rows})"
        return DataError(
            f"two windows of {blocks.window:,} blocks of {blocks.rows:,} samples take "
            f"{sum(self.device_memory()) / 1e6:,.0f} MB on {self._backend.name}, which has {free / 1e6:,.0f} MB "
            f"free; {cure}"
        )

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut places of the epoch where the ring begins anew."""
        cuts = range(start + self._room - start % self._room, stop, self._room)
        return list(pairwise([start, *cuts, stop]))


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
    check: Callable[[Dataset], object] = lambda training: None,
) -> tuple[Dataset, Dataset, str | None]:
    """Training and test set from files of samples and of targets.

    Args:
        paths: of the training samples and their targets, or of a table, see `StreamedDataset`.
        test: those of the test samples; None: some of the training samples are held out.
        task: what the targets are, see `Dataset`.
        stream: whether samples are read while they are used, or now, into memory.
        check: called with the training set, before the test set is compared with it.

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
    training = train if stream else train.in_memory()
    check(training)
    if test is not None:
        found = whole.part(*test)
        assert isinstance(found, StreamedDataset)
        tested = found
        tested.name = _name_of(test[0])
        require_alike(train.images, tested.images, test[0], paths[0])
        if tested.images.columns != train.images.columns:
            raise DataError(
                f"{test[0]}: expected the columns of {paths[0]}, found others; prepare both in the same way"
            )
    return training, tested if stream else tested.in_memory(), notice
