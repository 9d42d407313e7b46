"""MNIST: found on disk or downloaded, and proved to be MNIST."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .dataset import Dataset
from .download import Mirrors, fetch
from .errors import DataError, DataNotAvailable
from .idx import read_idx

_Bytes: TypeAlias = npt.NDArray[np.uint8]

ENVIRONMENT_VARIABLE = "GPUMLP_DATA_DIR"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 5.0  # seconds, per mirror
CLASSES = 10


@dataclass(frozen=True)
class PublishedFile:
    """One of MNIST's files; the checksums are SHA-256, of the file as it is served and unzipped."""

    name: str
    ndim: int
    zipped_sha256: str
    sha256: str

    def variants(self) -> tuple[str, ...]:
        """The names under which this file is found on disks."""
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

    Looked for in ``data_dir``; without it, in ``$GPUMLP_DATA_DIR``, then in the user's cache folder, and
    at last downloaded into that. ``data_dir`` and ``$GPUMLP_DATA_DIR`` may hold the four files themselves
    or in a folder ``mnist``, each gzipped or not; the cache holds them as downloaded.

    Every file is compared with the published checksums. Files of the same format and names that are
    not MNIST's own (Fashion-MNIST, a reduced copy) are loaded, but named ``"mnist-like"``.

    Args:
        data_dir: folder that must hold the files; nothing else is tried.
        download: may the network be used?

    Returns:
        Training and test set: images ``(n, height, width)`` uint8, named ``"mnist"`` or ``"mnist-like"``.

    Raises:
        DataNotAvailable: MNIST is nowhere on this machine and cannot be downloaded.
        DataError: ``data_dir`` lacks the files, or what was found is incomplete, damaged or does not match.
    """
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        paths = _find_in(folder)
        if paths is None:
            state = "none of them" if folder.is_dir() else "no such folder"
            raise DataError(f"{folder}: expected MNIST's files {_FILE_NAMES}, found {state}; check data_dir")
        return _load(paths)
    remark = ""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        paths = _find_in(Path(named).expanduser())
        if paths is not None:
            return _load(paths)
        remark = f"; {ENVIRONMENT_VARIABLE} is set to {named}, which does not hold MNIST's files"
    try:
        return _load(_fetch_all(download))
    except DataNotAvailable as error:
        network = "" if download else ", and downloading is switched off"
        raise DataNotAvailable(f"MNIST is not available: {error}{network}{remark}.", HOW_TO_GET) from error


def mnist_folders() -> list[tuple[str, str]]:
    """Where `load_mnist` looks, as pairs of a name and what is found there; for ``gpumlp.info``."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    places = [(ENVIRONMENT_VARIABLE, Path(named).expanduser() if named else None), ("data cache", _cache_dir())]
    result = []
    for name, folder in places:
        text = "not set"
        if folder is not None:
            try:
                text = f"{folder} ({'holds MNIST' if _find_in(folder) else 'without MNIST'})"
            except DataError as error:
                text = str(error)
        result.append((name, text))
    return result


def _find_in(folder: Path) -> list[Path] | None:
    """Paths of the four files, in the order of FILES; None if ``folder`` holds none of them."""
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
    """Read four files in the order of FILES."""
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
