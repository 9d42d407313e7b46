"""Samples that stay in their files: rows of .npy and IDX files, or of folders of them, read on demand."""

from __future__ import annotations

import errno
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backends import HostArray
from ..files import user_path
from ..words import listed
from .idx import GZIP_MAGIC, has_idx_magic, read_idx, read_idx_header
from .labels import DataError
from .mnist import is_transposed
from .npz import NPY_MAGIC, damage_named, read_npy, read_npy_header
from .reading import changed, file_state, require_file, require_unchanged
from .tables import TablePart, ZarrArray, is_table, is_zarr

_PIECE = 2**22  # bytes of samples that are read at a time
_FILES = "a .npy or IDX file that is not compressed, a table or Zarr array, or a folder of numbered ones"


class _Part(NamedTuple):
    """A file of samples: ``shape`` of the whole array, ``start`` of the first value in bytes, `file_state`."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    state: tuple[int, int]
    columns: tuple[str, ...] = ()


class FileRows:
    """The rows of an array in one file or several, read when they are asked for.

    Nothing but the rows that are asked for is in memory. Reading is safe in several threads.

    Args:
        path: of a .npy file or an IDX file with uint8 or float32 values of 2 dimensions or more, of a Zarr array
            of such values, or of a folder of such files, whose names hold consecutive numbers.
        label_column: with it, the path is that of an Arrow or Parquet file, or of a folder of them, whose other
            columns are the samples.

    Attributes:
        shape: of the whole array.
        columns: their names in a table; otherwise none.
        dtype: of the values, in the machine's byte order.
        files: the paths.

    Raises:
        DataError: there is no such file, it is damaged, or it holds other values.
    """

    def __init__(self, path: str | os.PathLike[str], label_column: str | None = None) -> None:
        path = user_path(path)
        parts = [_opened(file, label_column) for file in numbered_files(path)]
        first = parts[0]
        for part in parts[1:]:
            if part.columns != first.columns:
                raise DataError(
                    f"{part.path}: expected the columns {listed(first.columns)} as in the first part, found "
                    f"{listed(part.columns)}; write all parts with the same columns in the same order"
                )
            if (part.shape[1:], part.dtype) != (first.shape[1:], first.dtype):
                raise DataError(
                    f"{part.path}: expected samples of {first.shape[1:]} of {first.dtype} as in the first part, "
                    f"found {part.shape[1:]} of {part.dtype}; prepare all parts in the same way"
                )
        self.files = [part.path for part in parts]
        self._parts, self._stored, self.columns = parts, first.dtype, first.columns
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self._starts[-1]), *first.shape[1:])
        if not len(self):
            raise DataError(f"{path}: expected at least one row, found none; check how it was made")
        self.dtype: np.dtype[Any] = first.dtype.newbyteorder("=")
        self.features = int(np.prod(self.shape[1:]))
        self._selected: HostArray | None = None
        self._preprocessing: Callable[[Any], Any] | None = None
        self._file: tuple[_Part, BinaryIO] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all rows, if they were in memory."""
        return len(self) * self.features * self.dtype.itemsize

    @property
    def buffered(self) -> int:
        """Bytes of a table's rows that stay in memory after they are read: those of its largest row group."""
        return max(part.buffered for part in self._parts if isinstance(part, TablePart)) if self.columns else 0

    def select(self, rows: HostArray) -> FileRows:
        """These rows of the same files."""
        other = self._copy()
        other._selected = compact(rows if self._selected is None else self._selected[rows])
        other.shape = (len(rows), *self.shape[1:])
        return other

    def preprocessed(self, preprocessing: Callable[[Any], Any]) -> FileRows:
        """The same rows, preprocessed each time they are read."""
        other = self._copy()
        other._preprocessing = preprocessing
        return other

    def _copy(self) -> FileRows:
        other = type(self).__new__(type(self))
        other.__setstate__(self.__getstate__())
        other._lock = self._lock  # the tables are shared
        return other

    def __getitem__(self, key: Any) -> HostArray:
        """One row, or a slice of rows, read into memory."""
        rows = np.arange(len(self))[key]
        found = np.empty((rows.size, self.features), self.dtype)
        self.read(np.atleast_1d(rows), found)
        shaped: HostArray = found.reshape(*rows.shape, *self.shape[1:])
        return shaped

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> HostArray:
        """All rows, read into memory."""
        return np.asarray(self[:], dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=None, _lock=threading.Lock())

    def read(self, rows: HostArray, out: HostArray) -> None:
        """Read rows into `out`, converted to its dtype.

        Args:
            rows: ``(n,)``, their numbers. Rows that follow each other are read together.
            out: ``(n, features)``, overwritten.

        Raises:
            DataError: a file cannot be read or was written to, or a value is NaN or infinite, or a value that
                the preprocessing refuses.
        """
        size = max(1, _PIECE // (self.features * self._stored.itemsize))
        for start in range(0, len(rows), size):
            self._read_piece(rows[start : start + size], out[start : start + size])

    def _read_piece(self, rows: HostArray, out: HostArray) -> None:
        places = (rows if self._selected is None else self._selected[rows]).astype(np.int64)
        values = out if out.dtype == self._stored else np.empty(out.shape, self._stored)
        first = int(places.min())
        span = int(places.max()) - first + 1
        with self._lock:
            if len(rows) < span <= 2 * len(rows):  # one read of all is faster than many of a few
                whole = np.empty((span, self.features), self._stored)
                self._read_span(first, whole)
                np.take(whole, places - first, axis=0, out=values)
            else:
                cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
                for start, stop in pairwise(cuts):
                    self._read_span(int(places[start]), values[start:stop])
            self._require_unchanged()
        if self._stored.kind == "f":
            self._require_finite(values, places)
        if values is not out:
            out[...] = values
        if self._preprocessing is not None:
            images = out.reshape(-1, *self.shape[1:])
            out[...] = self._preprocessed(self._preprocessing, images, places).reshape(out.shape)

    def _preprocessed(self, make: Callable[[Any], Any], values: HostArray, places: HostArray) -> HostArray:
        try:
            made: HostArray = make(values)
            return made
        except ValueError:
            for row, value in zip(places.tolist(), values, strict=True):
                try:
                    make(value[None])
                except ValueError as error:
                    path, row = self._place_of(row)
                    raise DataError(f"{path}: sample {row:,}: {error}") from error
            raise

    def _part_of(self, row: int) -> int:
        """The number of the file that holds a row."""
        return int(np.searchsorted(self._starts, row, "right")) - 1

    def _place_of(self, row: int) -> tuple[Path, int]:
        """The file that holds a row, and its number there."""
        part = self._part_of(row)
        return self._parts[part].path, row - int(self._starts[part])

    def _require_finite(self, values: HostArray, places: HostArray) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            path, row = self._place_of(int(places[np.flatnonzero(~finite.all(axis=1))[0]]))
            raise DataError(
                f"{path}: images must be finite, but sample {row:,} holds NaN, infinity or a value too large for "
                f"{self._stored.name}; remove it or fill the values in"
            )

    def _read_span(self, first: int, out: HostArray) -> None:
        """Read consecutive rows of the files, from `first` on, into `out` of the stored dtype."""
        done = 0
        while done < len(out):
            number = self._part_of(first + done)
            stop = min(len(out), int(self._starts[number + 1]) - first)
            self._read_part(number, first + done - int(self._starts[number]), out[done:stop])
            done = stop

    def _read_part(self, number: int, first: int, out: HostArray) -> None:
        part, row = self._parts[number], self.features * self._stored.itemsize
        if not isinstance(part, _Part):
            part.read(first, out)
            return
        view = memoryview(out.data).cast("B") if out.size else memoryview(b"")
        with _named(part.path):
            file = self._opened(part)
            file.seek(part.start + first * row)
            while len(view):
                count = file.readinto(view)  # type: ignore[attr-defined]
                if not count:
                    raise changed(part.path, part.state, os.fstat(file.fileno()))
                view = view[count:]

    def _require_unchanged(self) -> None:
        """Raise DataError if the open file was written to, so that what was read of it may be wrong."""
        if self._file is not None:
            part, file = self._file
            with _named(part.path):
                require_unchanged(part.path, part.state, file.fileno())

    def _opened(self, part: _Part) -> BinaryIO:
        """The file of a part; only the last one that was used stays open."""
        if self._file is None or self._file[0] is not part:
            if self._file is not None:
                self._require_unchanged()
                self._file[1].close()
                self._file = None
            file: Any = open(part.path, "rb", buffering=0)  # noqa: SIM115  # closed with the object
            weakref.finalize(self, file.close)
            self._file = part, file
        return self._file[1]


def compact(values: HostArray) -> HostArray:
    """Numbers of 0 or more, such as rows or classes, in the smallest unsigned dtype."""
    return values.astype(np.min_scalar_type(int(values.max())), copy=False)


def numbered_files(path: Path) -> list[Path]:
    """The file at a path; or those in a folder, in the order of the numbers in their names.

    Raises:
        DataError: there is no file, a name has no number, or a number is missing or there twice.
    """
    if not path.is_dir() or is_zarr(path):
        if not path.is_dir():
            require_file(path, str(path), _FILES)
        return [path]
    files = [file for file in path.iterdir() if not file.name.startswith(".")]
    # The ending of a name holds no number of a part: .npy, or the idx3-ubyte of MNIST's files.
    names = {file: re.sub(r"\.npy$|idx\d-ubyte$", "", file.name) for file in files}
    numbers = {file: re.findall(r"\d+", name if len(files) > 1 else file.name) for file, name in names.items()}
    without = sorted(file.name for file, found in numbers.items() if not found)
    if not files or without:
        found = f"{listed(without)} without a number" if files else "an empty folder"
        raise DataError(f"{path}: expected {_FILES}, found {found}; leave only the parts there")
    ordered = sorted(files, key=lambda file: int(numbers[file][-1]))
    counted = [int(numbers[file][-1]) for file in ordered]
    if counted != list(range(counted[0], counted[0] + len(counted))):
        raise DataError(
            f"{path}: expected files with the numbers {counted[0]} to {counted[0] + len(counted) - 1}, found "
            f"{listed(counted)}; is a part missing, or there twice?"
        )
    return ordered


def read_targets(path: str | os.PathLike[str], label_column: str | None = None) -> HostArray:
    """Labels or other targets from a .npy or IDX file, a Zarr array, or a column of a table, as one array.

    Also from a folder of numbered ones.

    Raises:
        DataError: there is no such file, it is damaged, or the parts hold values of different kinds.
    """
    arrays: list[HostArray] = []
    for file in numbered_files(user_path(path)):
        if label_column is not None:
            arrays.append(TablePart(file, label_column).labels())
        elif is_zarr(file):
            arrays.append(ZarrArray(file).values())
        elif _start(file) == NPY_MAGIC:
            arrays.append(read_npy(file, str(file)))
        else:
            arrays.append(read_idx(file, ndims=(1, 2), content="labels"))
    try:
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected labels of one shape in all parts, found others ({error})") from error
    kinds = {array.dtype.kind.replace("u", "i") for array in (whole, *arrays)}
    if len(kinds) > 1:
        found = sorted({"text" if array.dtype.kind == "U" else array.dtype.name for array in arrays})
        raise DataError(f"{path}: expected labels of one kind in all parts, found {listed(found)}; convert them")
    return whole


def _start(path: Path) -> bytes:
    with _named(path), path.open("rb") as file:
        return file.read(6)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        reason = "the disk failed" if error.errno == errno.EIO else "check it and its permissions"
        raise DataError(f"{path}: expected a readable file, found {error.strerror or error}; {reason}") from error


def _opened(path: Path, label_column: str | None) -> _Part | TablePart | ZarrArray:
    """A part of the samples, of any format."""
    if label_column is not None:
        if not is_table(path):
            raise DataError(f"{path}: expected an Arrow or Parquet file with a label column, found another file")
        return TablePart(path, label_column)
    if is_table(path):
        raise DataError(f"{path}: expected the name of the column with the labels; give --label-column NAME")
    part = ZarrArray(path) if is_zarr(path) else _read_header(path)
    advice = None
    if len(part.shape) < 2:
        advice = "give samples first and labels second; save samples of one value as array.reshape(-1, 1)"
    elif 0 in part.shape:
        advice = "check how the array was made"
    elif part.dtype.newbyteorder("=") not in (np.uint8, np.float32):
        advice = "convert it once"
    if advice is not None:
        raise DataError(
            f"{path}: expected uint8 or float32 of shape (samples, ...), at least 1 each, found {part.dtype.name} "
            f"of shape {part.shape}; {advice}"
        )
    return part


def _read_header(path: Path) -> _Part:
    start, name = _start(path), str(path)
    if start[:2] == GZIP_MAGIC or start[:2] == b"PK":
        raise DataError(
            f"{path}: expected {_FILES}, found a compressed one; unpack it first, or leave --stream out"
        )
    if start != NPY_MAGIC and not has_idx_magic(start):
        found = f"one that begins with {start.hex(' ')}" if start else "an empty file"
        if start and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
            found = f"text that begins with {start.decode('ascii')!r}; save numbers in text, such as CSV, as .npy"
        raise DataError(f"{path}: expected {_FILES}, found {found}")
    with damage_named(f"{path}: expected a readable file", "; get it again"), path.open("rb") as file:
        state = file_state(os.fstat(file.fileno()))
        size = state[0]
        if start == NPY_MAGIC:
            shape, by_columns, dtype, offset = read_npy_header(file, size, name)
        else:
            by_columns = False
            shape, dtype, offset = read_idx_header(file, size, name)
    if by_columns and len(shape) > 1:
        raise DataError(
            f"{path}: expected an array that is stored row by row, found one by columns; save "
            "numpy.ascontiguousarray(array)"
        )
    if is_transposed(path) and len(shape) > 2:
        raise DataError(f"{path}: images of EMNIST are stored transposed; save them upright as .npy")
    return _Part(path, shape, dtype, offset, state)
