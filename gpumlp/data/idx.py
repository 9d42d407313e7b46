"""IDX files, the format of MNIST: a big-endian header, then the values, gzipped or not.

Header: two zero bytes, a byte for the dtype, a byte for the number of dimensions, then each length as uint32.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import DataError

_UINT8 = 0x08
_DTYPES = {_UINT8: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_CONTENT = {1: "labels", 3: "images"}

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_DEFLATE_RATIO = 1032  # deflate cannot do better: 258 bytes out of 2 bits
_CHUNK = 2**20


def read_idx(path: str | os.PathLike[str], *, ndim: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not (told by its content, not by its name).

    A header that promises more than the file can hold is refused before memory is taken, and the values
    are read straight into the result: peak memory is the array and about a megabyte.

    Args:
        path: of the file.
        ndim: expected number of dimensions: 1 for labels (magic 2049), 3 for images (magic 2051).

    Returns:
        A uint8 array of ``ndim`` dimensions; a length may be 0.

    Raises:
        DataError: the file cannot be read, or is not exactly such an IDX file.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; expected an IDX file, so check the path")
    if not path.is_file():
        raise DataError(f"{path}: expected an IDX file, found a folder; name the file inside it")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            zipped = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if not zipped:
                return _read(file, path, ndim, size=size)
            unzipped_size = _gzip_trailer(file, path, size)
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                return _read(stream, path, ndim, size=size, unzipped_size=unzipped_size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:  # before OSError, which BadGzipFile is
        raise DataError(
            f"{path}: expected a whole gzip file, found a damaged one ({error}); get the file again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: expected a readable file, found {error.strerror or error}; check it and its permissions"
        ) from error


def _gzip_trailer(file: io.BufferedIOBase, path: Path, size: int) -> int:
    """The unzipped size modulo 2**32, from the last four bytes; the file is rewound."""
    if size < 18:  # the shortest gzip file there is
        raise DataError(f"{path}: expected a whole gzip file, found {size} bytes of one; get the file again")
    file.seek(-4, os.SEEK_END)
    (unzipped_size,) = struct.unpack("<I", file.read(4))
    file.seek(0)
    return int(unzipped_size)


def _read(
    stream: io.BufferedIOBase, path: Path, ndim: int, *, size: int, unzipped_size: int | None = None
) -> npt.NDArray[np.uint8]:
    """Read header and values; ``unzipped_size`` is that of the gzip trailer, None for a plain file."""
    header_size = 4 + 4 * ndim
    header = stream.read(header_size)
    _check_magic(header, path, ndim)
    if len(header) < header_size:
        raise DataError(
            f"{path}: expected an IDX header of {header_size} bytes, found {len(header)}; get the file again"
        )
    shape = struct.unpack(f">{ndim}I", header[4:])
    total = header_size + math.prod(shape)
    promise = f"{path}: expected {total:,} bytes from the header's shape {shape}"
    if unzipped_size is None:
        if size != total:
            raise DataError(f"{promise}, found {size:,}; the file is damaged, get it again")
    elif total % 2**32 != unzipped_size or total > size * _MAX_DEFLATE_RATIO:
        raise DataError(
            f"{promise}, found a gzip file of {size:,} bytes that ends with the size {unzipped_size:,}; "
            "the file is damaged or cut short, get it again"
        )

    try:
        array = np.empty(shape, dtype=np.uint8)
    except (ValueError, MemoryError) as error:  # lengths whose product is 0 or huge
        raise DataError(f"{promise}, found that no array can have it ({error}); get the file again") from error
    values = array.reshape(-1).data
    read = 0
    # In pieces: gzip's readinto makes a second copy of what it is asked for.
    while read < len(values):
        count = stream.readinto(values[read : read + _CHUNK])
        if not count:
            raise DataError(f"{promise}, found {header_size + read:,}; the file is cut short, get it again")
        read += count
    # Reading past the end also makes gzip compare its own checksum.
    if stream.read(1):
        raise DataError(f"{promise}, found more; the file is damaged, get it again")
    return array


def _check_magic(header: bytes, path: Path, ndim: int) -> None:
    """Raise an error that says what the file is instead, unless ``header`` starts with the right magic."""
    expected = _UINT8 << 8 | ndim
    content = _CONTENT.get(ndim, "uint8")
    start = f"{path}: expected IDX {content} (magic {expected})"
    if not header:
        raise DataError(f"{start}, found an empty file; get the file again")
    if len(header) < 4:
        raise DataError(f"{start}, found only {len(header)} bytes; get the file again")
    magic = int.from_bytes(header[:4], "big")
    if magic == expected:
        return
    dtype, found_ndim = _DTYPES.get(magic >> 8), magic & 0xFF
    if dtype == "uint8" and found_ndim in _CONTENT:
        raise DataError(f"{start}, found {_CONTENT[found_ndim]} (magic {magic}); were two files swapped?")
    if dtype is not None:
        raise DataError(
            f"{start}, found IDX {dtype} of {found_ndim} dimensions (magic {magic}); "
            f"convert it to uint8 of {ndim} dimensions"
        )
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in header):
        raise DataError(
            f"{start}, found text that begins with {header.decode('ascii')!r}, perhaps a web page "
            "or a Git LFS pointer saved in the file's place; download the file itself"
        )
    raise DataError(f"{start}, found a file that begins with {header[:4].hex(' ')}; this is no IDX file")
