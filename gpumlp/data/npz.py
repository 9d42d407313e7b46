"""Arrays in files: a data set in one .npz file, as for Keras; samples to predict in .npy, .npz or IDX files."""

from __future__ import annotations

import errno
import io
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ..files import user_path
from ..words import listed
from .dataset import DataError, Dataset, checked_images, require_alike, training_set
from .idx import GZIP_MAGIC, has_idx_magic, is_idx
from .mnist import read_images
from .reading import MAX_DEFLATE_RATIO, read_values, require_file, require_memory

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_WEIGHTS = ("w_train", "w_test")
_HOW_TO_MAKE = "make it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
NPY_MAGIC, _ZIP = b"\x93NUMPY", b"PK\x03\x04"  # how each format begins
_MAX_DIRECTORY = 2**22  # bytes of an archive's list of members: some 40,000 arrays


def load_npz(path: str | os.PathLike[str], *, task: str | None = None) -> tuple[Dataset, Dataset]:
    """Load a training and a test set from one .npz file.

    Args:
        path: of a file with the arrays ``x_train`` ``(n, ...)``, ``y_train`` ``(n,)`` or ``(n, columns)``,
            ``x_test`` ``(m, ...)`` and ``y_test``, as `Dataset` takes samples and targets; and, optionally, the
            sample weights ``w_train`` ``(n,)`` and ``w_test`` ``(m,)``. Pickled objects are never loaded.
        task: what the targets are, ``"classes"``, ``"labels"`` or ``"numbers"``; see `Dataset`. The test set has
            the task of the training set.

    Returns:
        Training and test set, named after the file, ``"cifar.npz"``; the classes are the distinct training labels.

    Raises:
        DataError: the file is not such an archive, an array is missing or unusable, or training and test
            set do not match in shape, dtype, classes or number of targets.
    """
    path = user_path(path)
    arrays = _read_arrays(path)
    make = partial(training_set, name=f"{path.stem}.npz", task=task)
    train = _dataset(path, arrays, "train", make)
    test = _dataset(path, arrays, "test", train.part)
    require_alike(arrays["x_train"], arrays["x_test"], f"{path}, x_test", "x_train")
    return train, test


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    require_file(path, str(path), "an .npz file")
    with _opened_npz(path, str(path), f"; get it again, or {_HOW_TO_MAKE}") as archive:
        names = _array_names(archive)
        missing = [key for key in _KEYS if key not in names]
        if missing:
            raise DataError(
                f"{path}: expected arrays {', '.join(_KEYS)}, found {listed(names) or 'none'}; "
                f"add {', '.join(missing)}"
            )
        return _read_members(archive, str(path), [*_KEYS, *(key for key in _WEIGHTS if key in names)])


def _dataset(path: Path, arrays: dict[str, npt.NDArray[Any]], part: str, make: Callable[..., Dataset]) -> Dataset:
    """The training or test set, made from samples, targets and weights."""
    try:
        return make(*(arrays.get(f"{array}_{part}") for array in "xyw"))
    except DataError as error:
        reason = str(error).removeprefix(f"{path.stem}.npz: ")
        raise DataError(f"{path}, x_{part} and y_{part}: {reason}") from error


def is_array_file(path: Path) -> bool:
    """Whether a file holds arrays: by content, or by name if it is empty, missing, or IDX of a wrong size."""
    start = _start(path) if path.is_file() else b""
    if not start:
        return path.suffix in (".npy", ".npz")
    if start == NPY_MAGIC or start[:4] == _ZIP or start[:2] == GZIP_MAGIC or is_idx(path):
        return True
    return has_idx_magic(start) and "idx" in path.name


def read_samples(path: Path, name: str, shape: tuple[int, ...], array: str | None = None) -> npt.NDArray[Any]:
    """Read samples without labels from a .npy, .npz or IDX file; its content decides, not its name.

    Images of EMNIST, known by the file's name, are turned upright, as in training.

    Args:
        path: of the file.
        name: used for it in messages.
        shape: of one sample, as in training; a single sample becomes a batch of one.
        array: which array of an .npz file; may be None if there is only one.

    Returns:
        ``(n, ...)``, uint8 or floating.

    Raises:
        DataError: the file is missing, damaged or in another format; the array is not named, or cannot be samples.
    """
    require_file(path, name, "a file of samples")
    start = _start(path)
    if start[:2] == GZIP_MAGIC or has_idx_magic(start):
        values: Any = read_images(path, name)
    elif start == NPY_MAGIC:
        values = read_npy(path, name)
    else:
        with _opened_npz(path, name, "") as archive:
            values = _read_one(archive, name, array)
    if values.shape == shape and values.ndim != 1:
        values = values[np.newaxis]
    return np.asarray(checked_images(values, name))


def read_npy(path: Path, name: str) -> npt.NDArray[Any]:
    """Read a .npy file; errors begin with `name`.

    Raises:
        DataError: it cannot be read, is damaged, or does not hold an array of numbers or text.
    """
    with damage_named(f"{name}: expected a readable .npy file", ""), path.open("rb") as file:
        return _read_npy(file, os.fstat(file.fileno()).st_size, name)


def _read_one(archive: zipfile.ZipFile, name: str, array: str | None) -> npt.NDArray[Any]:
    names = _array_names(archive)
    if not names:
        raise DataError(f"{name}: expected an .npz file with an array, found a zip archive without arrays")
    if array is None and len(names) > 1:
        raise DataError(f"{name}: holds {listed(names)}; name the one to predict with --array NAME")
    if array is not None and array not in names:
        raise DataError(f"{name}: expected an array {array}, found {listed(names)}")
    (chosen,) = (array,) if array is not None else names
    return _read_members(archive, name, [chosen])[chosen]


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


# -- .npy and .npz: what they declare is checked before memory is taken ----------------------------------------


class _BoundedFile(io.FileIO):
    """A file whose reads are limited: zipfile reads the list of members, of any length, at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise ValueError(f"its list of members has {size:,} bytes")
        return super().read(-1 if size is None else size)


@contextmanager
def damage_named(expected: str, cure: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into a DataError."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{expected}, found one that does not fit in memory; give fewer samples") from error
    except Exception as error:  # zipfile, zlib, tokenize and NumPy raise a dozen types for damaged files
        # A negative offset raises EINVAL, and Arrow errors without a number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise DataError(f"{expected}, found {error.strerror or error}; check its permissions") from error
        reason = str(error).partition("\n")[0][:200]  # zipfile's hold a part of the file
        raise DataError(f"{expected}, found a damaged one ({reason}){cure}") from error


@contextmanager
def _opened_npz(path: Path, name: str, cure: str) -> Iterator[zipfile.ZipFile]:
    """Open an .npz file; errors in the block name it."""
    with damage_named(f"{name}: expected a readable .npz file", cure), _BoundedFile(path) as file:
        if not zipfile.is_zipfile(file):
            raise DataError(
                f"{name}: expected an .npz file, found one that is not a zip archive or is cut short{cure}"
            )
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            yield archive


def _array_names(archive: zipfile.ZipFile) -> list[str]:
    return [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]


def _read_members(archive: zipfile.ZipFile, name: str, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of an .npz file, if all of them fit in memory."""
    members = {}
    for key in keys:
        what = f"{name}, {key}:"
        members[key] = member = archive.getinfo(f"{key}.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{what} expected an array as numpy.savez stores it, found another compression")
        size = os.stat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
        if not member.file_size <= MAX_DEFLATE_RATIO * member.compress_size <= MAX_DEFLATE_RATIO * size:
            raise DataError(
                f"{what} expected at most {MAX_DEFLATE_RATIO} times the {min(size, member.compress_size):,} bytes "
                f"that hold it, found {member.file_size:,} declared; the file is damaged"
            )
    require_memory(sum(member.file_size for member in members.values()), f"{name}: {listed(keys)}")
    arrays = {}
    for key, member in members.items():
        with archive.open(member) as stream:
            arrays[key] = _read_npy(cast(BinaryIO, stream), member.file_size, f"{name}, {key}")
    return arrays


def _read_npy(stream: BinaryIO, size: int, name: str) -> npt.NDArray[Any]:
    """Read an array in NumPy's format.

    Args:
        stream: at the beginning.
        size: bytes that the stream holds.
        name: of the file and the array, for messages.
    """
    shape, by_columns, dtype, start = read_npy_header(stream, size, name)
    promise = f"{name}: expected {size:,} bytes from the header's shape {shape} of {dtype}"
    require_memory(size, f"{name}:")
    array = read_values(stream, shape[::-1] if by_columns else shape, dtype, promise, start)
    if dtype.kind == "U" and array.size:
        codes = array.reshape(-1).view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if codes.max() > sys.maxunicode:  # which no function of NumPy expects
            raise DataError(f"{name}: expected text, found numbers that are no characters; the file is damaged")
    return array.transpose() if by_columns else array


def read_npy_header(stream: BinaryIO, size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether the values are stored column by column, dtype, and the bytes before the first value.

    Arguments are those of `_read_npy`.
    """
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(stream)
    if dtype.hasobject:
        raise DataError(
            f"{name}: expected a numeric array, found pickled objects, which are not loaded as they may run code; "
            "save one array of numbers, or of text with array.astype(str)"
        )
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0:
        raise DataError(
            f"{name}: expected a numeric array, found values of dtype {dtype}; save one array of numbers"
        )
    start = stream.tell()
    total = start + math.prod(shape) * dtype.itemsize
    promise = f"{name}: expected {total:,} bytes from the header's shape {shape} of {dtype}"
    if total != size or min(shape, default=0) < 0:
        raise DataError(f"{promise}, found {size:,}; the file is damaged")
    return shape, by_columns, dtype, start
