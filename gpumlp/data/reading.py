"""What all readers of data files check: that there is a file, and that its arrays fit in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..backends import host_memory
from .dataset import DataError

MAX_DEFLATE_RATIO = 1032  # the maximum of deflate: 258 bytes from 2 bits
_CHUNK = 2**20


def require_file(path: Path, name: str, expected: str) -> None:
    """Raise DataError if there is no file at a path; `expected` says what it should be, ``"a picture"``."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else "no such file"
        raise DataError(f"{name}: expected {expected}, found {found}; check the path")


def file_state(found: os.stat_result) -> tuple[int, int]:
    """Bytes of a file, and when it was written."""
    return found.st_size, found.st_mtime_ns


def changed(path: Path, state: tuple[int, int], found: os.stat_result) -> DataError:
    """The error for a file that is not in the `file_state` that it was in at the start."""
    return DataError(
        f"{path}: expected {state[0]:,} bytes as at the start, found {found.st_size:,}, written since; the file "
        "was changed while it was read: put it back, and resume"
    )


def require_unchanged(path: Path, state: tuple[int, int], file: int | None = None) -> None:
    """Raise DataError if a file is not in the `file_state` that it was in at the start.

    Args:
        path: of the file.
        state: that it was in.
        file: its descriptor if it is open.
    """
    found = os.stat(path if file is None else file)
    if file_state(found) != state:
        raise changed(path, state, found)


def require_memory(size: int, what: str) -> None:
    """Raise DataError if `size` bytes are more than this machine, or this container, has as memory."""
    memory = host_memory()
    if size > memory:
        raise DataError(
            f"{what} expected to fit in memory, found {size:,} bytes for the {memory:,} of this machine; "
            "the file is damaged, or give fewer samples"
        )


def read_values(
    stream: BinaryIO, shape: tuple[int, ...], dtype: npt.DTypeLike, promise: str, start: int
) -> npt.NDArray[Any]:
    """Read an array that ends where the stream ends.

    The values are read directly into the result: peak memory is the array and about a megabyte.

    Args:
        stream: positioned at the first value.
        shape: of the array.
        dtype: of the values in the stream.
        promise: begins the message of an error: what the file says it holds.
        start: number of bytes before the first value.

    Raises:
        DataError: no array can have that shape, or the stream ends early or goes on.
    """
    try:
        array = np.empty(shape, dtype=dtype)
    except ValueError as error:  # lengths whose product is 0
        raise DataError(f"{promise}, but no array can have that shape ({error}); get the file again") from error
    except MemoryError as error:
        raise DataError(f"{promise}, which do not fit in memory; give fewer samples") from error
    values = array.reshape(-1).view(np.uint8).data
    read = 0
    # In pieces: readinto of gzip and zipfile makes a second copy of what it is asked for.
    while read < len(values):
        count = stream.readinto(values[read : read + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise DataError(f"{promise}, found {start + read:,}; the file is cut short, get it again")
        read += count
    # Reading past the end also makes gzip and zipfile compare their checksums.
    if stream.read(1):
        raise DataError(f"{promise}, found more; the file is damaged, get it again")
    return array
