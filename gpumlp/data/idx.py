"""IDX, the file format of MNIST and its relatives: a big-endian header, then the values, gzipped or not.

Header: two zero bytes, a byte for the type, a byte for the number of dimensions, then each length as uint32.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ..words import counted
from .dataset import DataError
from .reading import MAX_DEFLATE_RATIO, read_values, require_file, require_memory

GZIP_MAGIC = b"\x1f\x8b"
_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_MAX_NDIM = 4
_ANY = range(1, _MAX_NDIM + 1)


def is_idx(path: Path) -> bool:
    """Whether a file that is not gzipped is IDX: by its whole magic number, and by a size that fits its header."""
    with path.open("rb") as file:
        header = file.read(4 + 4 * _MAX_NDIM)
        size = os.fstat(file.fileno()).st_size
    kind = _kind(header)
    if kind is None or len(header) < _header_size(kind[1]):
        return False
    return _size(*kind, header) == size


def has_idx_magic(start: bytes) -> bool:
    """Whether a file begins as an IDX file does, even if its size does not fit."""
    return _kind(start) is not None


def read_idx(
    path: str | os.PathLike[str], *, ndims: Sequence[int] = _ANY, content: str = "values", name: str | None = None
) -> npt.NDArray[Any]:
    """Read an IDX file, gzipped or not (its content decides, not its name).

    A header whose shape exceeds the file or the machine's memory is refused before memory is allocated, and the
    values are read directly into the result: peak memory is the array and about a megabyte.

    Args:
        path: of the file.
        ndims: the numbers of dimensions that are expected.
        content: what is expected, for messages, such as ``"images"``.
        name: used for the file in messages; the path by default.

    Returns:
        An array of 1 to 4 dimensions of uint8, int8, int16, int32, float32 or float64, in the machine's byte
        order; a length may be 0.

    Raises:
        DataError: the file cannot be read, or is not exactly such an IDX file.
    """
    path = Path(path)
    name = str(path) if name is None else name
    require_file(path, name, "an IDX file")
    dimensions = counted(ndims[0], "dimension") if len(ndims) == 1 else f"{min(ndims)} to {max(ndims)} dimensions"
    expected = f"{name}: expected IDX {content} of {dimensions}"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            zipped = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if not zipped:
                return _read(file, name, expected, ndims, size=size)
            unzipped_size = _gzip_trailer(file, name, size)
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                opened = cast(BinaryIO, stream)
                return _read(opened, name, expected, ndims, size=size, unzipped_size=unzipped_size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:  # before OSError, which BadGzipFile is
        raise DataError(
            f"{name}: expected a whole gzip file, found a damaged one ({error}); get the file again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{name}: expected a readable file, found {error.strerror or error}; check it and its permissions"
        ) from error


def read_idx_header(stream: BinaryIO, size: int, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, stored dtype, and the bytes before the first value, of an IDX file that is not gzipped.

    Args:
        stream: at the beginning.
        size: bytes that the stream holds.
        name: of the file, for messages.

    Raises:
        DataError: it is not IDX, or its size does not fit its header.
    """
    header, dtype, shape, total = _read_header(stream, name, f"{name}: expected IDX values", _ANY)
    if size != total:
        raise DataError(
            f"{_promise(name, total, shape, dtype)}, found {size:,}; the file is damaged, get it again"
        )
    return shape, dtype, len(header)


def _kind(header: bytes) -> tuple[np.dtype[Any], int] | None:
    """The dtype and the number of dimensions that a magic number states; None for any other four bytes."""
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] not in _DTYPES or header[3] not in _ANY:
        return None
    return _DTYPES[header[2]], header[3]


def _header_size(ndim: int) -> int:
    return 4 + 4 * ndim


def _shape(ndim: int, header: bytes) -> tuple[int, ...]:
    return struct.unpack_from(f">{ndim}I", header, 4)


def _size(dtype: np.dtype[Any], ndim: int, header: bytes) -> int:
    """Bytes of a file with this header."""
    return _header_size(ndim) + math.prod(_shape(ndim, header)) * dtype.itemsize


def _gzip_trailer(file: io.BufferedIOBase, name: str, size: int) -> int:
    """The unzipped size modulo 2**32, from the last four bytes; the file is rewound."""
    if size < 18:  # the shortest gzip file there is
        raise DataError(f"{name}: expected a whole gzip file, found {size} bytes of one; get the file again")
    file.seek(-4, os.SEEK_END)
    (unzipped_size,) = struct.unpack("<I", file.read(4))
    file.seek(0)
    return int(unzipped_size)


def _read(
    stream: BinaryIO,
    name: str,
    expected: str,
    ndims: Sequence[int],
    *,
    size: int,
    unzipped_size: int | None = None,
) -> npt.NDArray[Any]:
    """Read header and values; ``unzipped_size`` is that of the gzip trailer, None for a plain file."""
    header, dtype, shape, total = _read_header(stream, name, expected, ndims)
    promise = _promise(name, total, shape, dtype)
    if unzipped_size is None:
        if size != total:
            raise DataError(f"{promise}, found {size:,}; the file is damaged, get it again")
    elif total % 2**32 != unzipped_size or total > size * MAX_DEFLATE_RATIO:
        raise DataError(
            f"{promise}, found a gzip file of {size:,} bytes that ends with the size {unzipped_size:,}; "
            "the file is damaged or cut short, get it again"
        )
    require_memory(total, f"{name}:")
    array = read_values(stream, shape, dtype, promise, len(header))
    if dtype.isnative:
        return array
    swapped: npt.NDArray[Any] = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return swapped


def _read_header(
    stream: BinaryIO, name: str, expected: str, ndims: Sequence[int]
) -> tuple[bytes, np.dtype[Any], tuple[int, ...], int]:
    """The header, its dtype and shape, and the bytes of a whole file with it."""
    header = stream.read(4)
    dtype, ndim = _checked_kind(header, stream, expected, ndims)
    header += stream.read(4 * ndim)
    if len(header) < _header_size(ndim):
        raise DataError(
            f"{name}: expected an IDX header of {_header_size(ndim)} bytes, found {len(header)}; "
            "get the file again"
        )
    return header, dtype, _shape(ndim, header), _size(dtype, ndim, header)


def _promise(name: str, total: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """The beginning of a message about a file whose size is another one."""
    return f"{name}: expected {total:,} bytes from the header's shape {shape} of {dtype.newbyteorder('=')}"


def _checked_kind(
    header: bytes, stream: BinaryIO, expected: str, ndims: Sequence[int]
) -> tuple[np.dtype[Any], int]:
    """Dtype and number of dimensions; an error that says what the file is instead, if it is not as expected."""
    kind = _kind(header)
    if kind is not None:
        dtype, ndim = kind
        if ndim in ndims:
            return kind
        raise DataError(f"{expected}, found {dtype.name} of {counted(ndim, 'dimension')}; were two files swapped?")
    header += stream.read(12)
    if len(header) < 4:
        found = f"only {len(header)} bytes" if header else "an empty file"
        raise DataError(f"{expected}, found {found}; get the file again")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in header):
        raise DataError(
            f"{expected}, found text that begins with {header.decode('ascii')!r}, perhaps a web page "
            "or a Git LFS pointer saved in the file's place; download the file itself"
        )
    raise DataError(
        f"{expected}, found a file that begins with {header[:4].hex(' ')}; this is not an IDX file, which begins "
        "with 00 00, a type (08, 09, 0b to 0e) and the number of dimensions (01 to 04)"
    )
