"""MNIST: found on disk or downloaded, and verified by its published checksums.

Three parts, from the top down: the data set, its file format (IDX), and the download of one file.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import math
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ..files import PathError, user_path
from .dataset import DataError, Dataset

# pooch, requests and rich are imported where they are used: most runs find their data on disk.

_Bytes: TypeAlias = npt.NDArray[np.uint8]

ENVIRONMENT_VARIABLE = "GPUMLP_DATA_DIR"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 5.0  # seconds, per mirror
CLASSES = 10


class DataNotAvailable(DataError):
    """The data is neither on this machine nor available over the network.

    Unlike damaged or mismatched files this is not the user's mistake, so a caller may use other data instead.

    Attributes:
        reason: what was tried and how it failed, without the advice that ends the message.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason} {advice}".strip())
        self.reason = reason


@dataclass(frozen=True)
class PublishedFile:
    """One of MNIST's files, with the SHA-256 of the file as served and of its unzipped content."""

    name: str
    ndim: int
    zipped_sha256: str
    sha256: str

    def variants(self) -> tuple[str, ...]:
        """The names under which this file is commonly stored."""
        plain = self.name.removesuffix(".gz")
        dotted = plain.replace("-idx", ".idx")
        return self.name, plain, f"{dotted}.gz", dotted


FILES = (
    PublishedFile(
        "train-images-idx3-ubyte.gz",
        3,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    PublishedFile(
        "train-labels-idx1-ubyte.gz",
        1,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    PublishedFile(
        "t10k-images-idx3-ubyte.gz",
        3,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    PublishedFile(
        "t10k-labels-idx1-ubyte.gz",
        1,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

_FILE_NAMES = ", ".join(file.name for file in FILES)

HOW_TO_GET = (
    f"To use MNIST, put {_FILE_NAMES} into a folder and name it "
    f"with --data-dir DIR (in Python: data_dir) or the environment variable {ENVIRONMENT_VARIABLE}."
)


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None, *, download: bool = True
) -> tuple[Dataset, Dataset]:
    """Load MNIST: 60,000 training and 10,000 test images, 28 x 28 uint8, 10 classes.

    With ``data_dir``, only that folder is searched. Without it, the order is ``$GPUMLP_DATA_DIR``, the user's
    cache folder, and a download into the cache. ``data_dir`` and ``$GPUMLP_DATA_DIR`` may hold the four files
    themselves or in a subfolder ``mnist``, each gzipped or not; the cache holds them as downloaded.

    Every file is compared with the published checksums. Files with the same format and names that are
    not MNIST's own (Fashion-MNIST, a reduced copy) are loaded, but named ``"mnist-like"``.

    Args:
        data_dir: folder that must hold the files.
        download: whether the network may be used.

    Returns:
        Training and test set: images ``(n, height, width)`` uint8, named ``"mnist"`` or ``"mnist-like"``.

    Raises:
        DataNotAvailable: MNIST is not on this machine and cannot be downloaded.
        DataError: ``data_dir`` lacks the files, or the files are incomplete, damaged or do not match.
        PathError: a folder is given as that of a user who does not exist.
    """
    if data_dir is not None:
        folder = user_path(data_dir)
        paths = _find_in(folder)
        if paths is None:
            state = "none of them" if folder.is_dir() else "no such folder"
            raise DataError(f"{folder}: expected MNIST's files {_FILE_NAMES}, found {state}; check data_dir")
        return _load(paths)
    remark = ""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        paths = _find_in(user_path(named))
        if paths is not None:
            return _load(paths)
        remark = f"; {ENVIRONMENT_VARIABLE} is set to {named}, which does not hold MNIST's files"
    try:
        return _load(_fetch_all(download))
    except DataNotAvailable as error:
        network = "" if download else ", and downloading is switched off"
        raise DataNotAvailable(f"MNIST is not available: {error}{network}{remark}.", HOW_TO_GET) from error


def mnist_folders() -> list[tuple[str, str]]:
    """The folders that `load_mnist` searches: pairs of a name and a description, for ``gpumlp.info``."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    result = []
    for name, place in ((ENVIRONMENT_VARIABLE, named), ("data cache", _cache_dir())):
        text = "not set"
        if place:
            try:
                folder = user_path(place)
                text = f"{folder} ({'holds MNIST' if _find_in(folder) else 'without MNIST'})"
            except (DataError, PathError) as error:
                text = str(error)
            except OSError as error:
                text = f"{folder} ({error.strerror})"
        result.append((name, text))
    return result


def _find_in(folder: Path) -> list[Path] | None:
    """Paths of the four files, in the order of FILES; None if ``folder`` holds none of them.

    Raises:
        DataError: ``folder`` holds some of the files only.
    """
    for place in folder, folder / "mnist":
        paths = [_variant_in(place, file) for file in FILES]
        missing = [file.name for file, path in zip(FILES, paths, strict=True) if path is None]
        if not missing:
            return [path for path in paths if path is not None]
        if len(missing) < len(FILES):
            raise DataError(
                f"{place}: expected all four files of MNIST, found {len(FILES) - len(missing)}; "
                f"add {', '.join(missing)}, gzipped or not"
            )
    return None


def _variant_in(folder: Path, file: PublishedFile) -> Path | None:
    return next((folder / name for name in file.variants() if (folder / name).is_file()), None)


def _cache_dir() -> Path:
    import pooch

    return Path(pooch.os_cache("gpumlp")) / "mnist"


def _fetch_all(download: bool) -> list[Path]:
    mirrors = Mirrors(list(MIRRORS) if download else [], timeout=TIMEOUT)
    cache = _cache_dir()
    return [fetch(file.name, file.zipped_sha256, mirrors, cache) for file in FILES]


def _load(paths: list[Path]) -> tuple[Dataset, Dataset]:
    """Read the four files, given in the order of FILES."""
    arrays = [read_idx(path, ndim=file.ndim) for path, file in zip(paths, FILES, strict=True)]
    published = all(_sha256(array) == file.sha256 for array, file in zip(arrays, FILES, strict=True))
    name = "mnist" if published else "mnist-like"
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{paths[2]}: expected images of shape {arrays[0].shape[1:]} as in {paths[0]}, "
            f"found {arrays[2].shape[1:]}; use training and test files of one data set"
        )
    train = _pair(arrays[0], arrays[1], paths[0], paths[1], name)
    return train, _pair(arrays[2], arrays[3], paths[2], paths[3], name)


def _pair(images: _Bytes, labels: _Bytes, images_path: Path, labels_path: Path, name: str) -> Dataset:
    """Make a Dataset, with errors that name the file at fault."""
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images):,} labels, one for each image in {images_path}, "
            f"found {len(labels):,}; use files of one data set"
        )
    if labels.size and labels.max() >= CLASSES:
        where = int((labels >= CLASSES).argmax())
        raise DataError(
            f"{labels_path}: expected labels from 0 to {CLASSES - 1}, found {labels[where]} at position "
            f"{where:,}; the file is damaged or of another data set"
        )
    try:
        return Dataset(images, labels, classes=CLASSES, name=name)
    except DataError as error:
        raise DataError(f"{images_path}: {error}") from error


def _sha256(array: _Bytes) -> str:
    """Checksum of the unzipped IDX file that ``array`` was read from (its header follows from its shape)."""
    digest = hashlib.sha256(struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape))
    digest.update(array.data)
    return digest.hexdigest()


# -- IDX, MNIST's file format: a big-endian header, then the values, gzipped or not -------------------------------
#
# Header: two zero bytes, a byte for the dtype, a byte for the number of dimensions, then each length as uint32.

_UINT8 = 0x08
_DTYPES = {_UINT8: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_CONTENT = {1: "labels", 3: "images"}

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_DEFLATE_RATIO = 1032  # the maximum of deflate: 258 bytes from 2 bits
_CHUNK = 2**20


def read_idx(path: str | os.PathLike[str], *, ndim: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not (its content decides, not its name).

    A header whose shape exceeds the file is refused before memory is allocated, and the values are read directly
    into the result: peak memory is the array and about a megabyte.

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
        raise DataError(f"{promise}, but no array can have that shape ({error}); get the file again") from error
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
    raise DataError(f"{start}, found a file that begins with {header[:4].hex(' ')}; this is not an IDX file")


# -- Download of one file from the first mirror that has it, verified by its SHA-256 ------------------------------


@dataclass
class Mirrors:
    """Addresses that serve the same files, tried in order; one that fails once is not tried again.

    Attributes:
        addresses: folders such as ``"https://example.org/mnist/"``; the mirrors that have not failed.
        timeout: seconds to wait for a connection or for the next bytes.
        failures: ``"host: reason"`` for each mirror that was dropped.
    """

    addresses: list[str]
    timeout: float = 5.0
    failures: list[str] = field(default_factory=list)
    _answered: set[str] = field(default_factory=set, repr=False)

    def drop(self, address: str, reason: str) -> None:
        """Remove ``address`` from the list and record the reason."""
        self.addresses.remove(address)
        self.failures.append(f"{urlsplit(address).netloc}: {reason}")

    def probe(self, address: str, url: str) -> str | None:
        """Why ``address`` does not answer a request for the headers of ``url``; None if it does or did before.

        The lookup of the host's name precedes the timeout of ``requests`` and alone may hang for half a minute,
        so the request runs in a thread that can be abandoned.
        """
        if address in self._answered:
            return None
        import requests

        reasons = [f"no answer within {self.timeout:g} s"]

        def ask() -> None:
            try:
                requests.head(url, timeout=self.timeout).close()
                reasons.clear()
            except Exception as error:  # an exception in a thread would be lost
                reasons.append(_describe(error, self.timeout))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(self.timeout)
        if reasons:
            return reasons[-1]
        self._answered.add(address)
        return None


def fetch(filename: str, sha256: str, mirrors: Mirrors, cache_dir: Path) -> Path:
    """Return the path of ``filename`` in ``cache_dir``; download it unless it is there and intact.

    The file is created atomically, even if several processes fetch it at once.

    Args:
        filename: on the mirrors and in the cache.
        sha256: checksum of the file, in hexadecimal.
        mirrors: where to look; changed in place, so that later calls skip the mirrors that failed.
        cache_dir: created if missing.

    Raises:
        DataNotAvailable: no mirror delivers the file; the message gives the reason for each mirror.
    """
    import pooch

    target = cache_dir / filename
    damaged = target.exists()
    try:
        if damaged and pooch.file_hash(str(target)) == sha256:
            return target
    except OSError as error:
        raise DataNotAvailable(f"{target} cannot be read ({error.strerror})") from error
    while mirrors.addresses:
        address = mirrors.addresses[0]
        url = f"{address.rstrip('/')}/{filename}"
        reason = mirrors.probe(address, url) or _download(url, sha256, target, mirrors.timeout)
        if reason is None:
            return target
        mirrors.drop(address, reason)
    message = f"{target} is damaged (wrong SHA-256)" if damaged else f"{filename} is not in {cache_dir}"
    if mirrors.failures:
        message += f", and no mirror delivered it ({'; '.join(mirrors.failures)})"
    raise DataNotAvailable(message)


def _download(url: str, sha256: str, target: Path, timeout: float) -> str | None:
    """Download ``url`` to ``target``; return the reason if the mirror failed, or None."""
    import pooch
    import requests

    try:
        with _progress_bar(target.name) as bar, _quiet(pooch.get_logger()):
            downloader = pooch.HTTPDownloader(
                progressbar=bar,
                chunk_size=2**16,
                timeout=timeout,
                headers={"Accept-Encoding": "identity"},  # the .gz itself, not unpacked in transit
            )
            pooch.retrieve(url, known_hash=sha256, fname=target.name, path=target.parent, downloader=downloader)
    except requests.RequestException as error:  # before OSError and ValueError, which some of these are
        return f"{_describe(error, timeout)} for {target.name}"
    except ValueError:
        return f"wrong SHA-256 for {target.name}, so this is not the published file"
    except OSError as error:
        raise DataNotAvailable(f"{target.parent} cannot be written to ({error.strerror or error})") from error
    return None


def _describe(error: Exception, timeout: float) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return f"no answer within {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "no trusted TLS certificate"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refused the connection"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    for sign, words in {
        "NameResolution": "host name not found",
        "getaddrinfo": "host name not found",
        "refused": "connection refused",
        "unreachable": "network unreachable",
        "Connection aborted": "connection closed by the server",
    }.items():
        if sign in text:
            return words
    return f"no connection ({type(error).__name__})"


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silence ``logger``, which other packages use too, within the block."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _RichBar:
    """A progress bar on standard error with the attributes that pooch uses."""

    def __init__(self, filename: str, console: Any) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task(filename, total=None)

    @property
    def total(self) -> float | None:
        return self._progress.tasks[0].total

    @total.setter
    def total(self, size: float) -> None:
        self._progress.update(self._task, total=size)

    def update(self, size: float) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop()

    def __enter__(self) -> _RichBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _progress_bar(filename: str) -> contextlib.AbstractContextManager[_RichBar | None]:
    """A bar if standard error is a terminal; otherwise None, for which pooch shows none."""
    from ..terminal import console as make_console

    console = make_console(stderr=True)
    return _RichBar(filename, console) if console.is_terminal else contextlib.nullcontext()
