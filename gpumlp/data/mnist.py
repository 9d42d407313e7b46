"""MNIST and its relatives: found on disk as IDX files, MNIST also downloaded, and recognised by checksums."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..files import PathError, user_path
from .dataset import DataError, Dataset, require_alike, training_set
from .download import DataNotAvailable, Mirrors, fetch
from .idx import read_idx

# platformdirs is imported where it is used: most runs find their data on disk.

_Array: TypeAlias = npt.NDArray[Any]

ENVIRONMENT_VARIABLE = "GPUMLP_DATA_DIR"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 5.0  # seconds until a mirror must answer


@dataclass(frozen=True)
class PublishedFile:
    """One of MNIST's files, with its size and SHA-256 as served, and the SHA-256 of its unzipped content."""

    name: str
    size: int
    zipped_sha256: str
    sha256: str


FILES = (
    PublishedFile(
        "train-images-idx3-ubyte.gz",
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    PublishedFile(
        "train-labels-idx1-ubyte.gz",
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    PublishedFile(
        "t10k-images-idx3-ubyte.gz",
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    PublishedFile(
        "t10k-labels-idx1-ubyte.gz",
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

# Fashion-MNIST and KMNIST have MNIST's file names. In the order of FILES: SHA-256 of the unzipped content, and MD5
# of the files as served, as torchvision lists them.
_FASHION_SHA256 = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
_KMNIST_MD5 = (
    "bdb82020997e1d708af4cf47b453dcf7",
    "e144d726b3acfaa3e44228e80efcd344",
    "5c965bf0a639b31b8f53240b1b52f4d7",
    "7320c461ea6c1c855c0b718fb2a4b134",
)


def _names(train: str, test: str, labels: str = "labels-idx1-ubyte") -> tuple[str, ...]:
    return tuple(f"{part}-{kind}.gz" for part in (train, test) for kind in ("images-idx3-ubyte", labels))


# The names of the files of each data set: images and labels for training, then those for testing.
FILE_NAMES = {
    "mnist": _names("train", "t10k"),
    "qmnist": _names("qmnist-train", "qmnist-test", labels="labels-idx2-int"),
    **{
        f"emnist-{part}": _names(f"emnist-{part}-train", f"emnist-{part}-test")
        for part in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
    },
}
_QMNIST_FIELDS = 8  # of a label: the class, then where the digit comes from
# Images for training and testing, https://www.nist.gov/itl/products-and-services/emnist-dataset; none for the part
# emnist-mnist, which has as many as MNIST.
_EMNIST_IMAGES = (814_255, 131_600, 145_600, 280_000)

HOW_TO_GET = (
    f"To use MNIST, put {', '.join(FILE_NAMES['mnist'])} into a folder and name it "
    f"with --data-dir DIR (in Python: data_dir) or the environment variable {ENVIRONMENT_VARIABLE}."
)
_OTHER_FORMATS = (
    "save data in other formats as FILE.npz, with x_train, y_train, x_test and y_test, for --dataset FILE.npz"
)


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None, *, download: bool = True
) -> tuple[Dataset, Dataset]:
    """Load MNIST: 60,000 training and 10,000 test images, 28 x 28 uint8, 10 classes.

    With ``data_dir``, only that folder is searched. Without it, the order is ``$GPUMLP_DATA_DIR``, the user's
    cache folder, and a download into the cache. ``data_dir`` and ``$GPUMLP_DATA_DIR`` may hold the four files
    themselves or in a subfolder ``mnist``, each gzipped or not; the cache holds them as downloaded.

    Every file is compared with the published checksums. ``data_dir`` may also hold one of MNIST's relatives, which
    is then loaded and named as what it is:

    - ``"fashion-mnist"`` and ``"kmnist"``, which have MNIST's file names, by their checksums; any other data under
      these names (a reduced copy, a data set of one's own) is ``"mnist-like"``.
    - ``"qmnist"`` and ``"emnist-letters"``, ``-digits``, ``-mnist``, ``-balanced``, ``-byclass`` or ``-bymerge``,
      by their file names. QMNIST's label is the first of its eight fields. EMNIST's images are stored transposed;
      they are turned upright.

    Values may be of any IDX type. uint8 is pixels, other values are used as they are, see `Dataset`. The classes
    are the distinct training labels.

    Args:
        data_dir: folder that must hold the files.
        download: whether the network may be used.

    Returns:
        Training and test set: images ``(n, height, width)``, named as above.

    Raises:
        DataNotAvailable: MNIST is not on this machine and cannot be downloaded.
        DataError: ``data_dir`` lacks the files or holds several data sets, or the files are incomplete, damaged or
            do not match.
        PathError: ``data_dir`` begins with ``~`` and a user who does not exist.
    """
    if data_dir is not None:
        return _load_from(user_path(data_dir), FILE_NAMES)
    remark = ""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        found = _find(user_path(named), ["mnist"])
        if found is not None:
            return _load(*found)
        remark = f"; {ENVIRONMENT_VARIABLE} is set to {named}, which does not hold MNIST's files"
    try:
        return _load("mnist", _fetch_all(download))
    except DataNotAvailable as error:
        network = "" if download else ", and downloading is switched off"
        raise DataNotAvailable(f"MNIST is not available: {error}{network}{remark}.", HOW_TO_GET) from error


def load_relative(name: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """Load one of MNIST's relatives by the names of its files, as in `load_mnist`.

    Args:
        name: a key of ``FILE_NAMES``.
        data_dir: folder that holds its files, themselves or in a subfolder of that name; ``$GPUMLP_DATA_DIR`` by
            default.

    Raises:
        DataError: the folder lacks the files, or they are incomplete, damaged or do not match.
    """
    folder = os.environ.get(ENVIRONMENT_VARIABLE) if data_dir is None else data_dir
    if not folder:
        raise DataError(
            f"{name} is not downloaded: put {', '.join(FILE_NAMES[name])} into a folder and name it with "
            f"--data-dir DIR (in Python: data_dir) or the environment variable {ENVIRONMENT_VARIABLE}"
        )
    return _load_from(user_path(folder), [name])


def mnist_folders() -> list[tuple[str, str]]:
    """The folders that `load_mnist` searches: pairs of a name and a description, for ``gpumlp.info``."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return [
        (ENVIRONMENT_VARIABLE, _described(lambda: user_path(named)) if named else "not set"),
        ("data cache", _described(_cache_dir)),
    ]


def _described(folder: Callable[[], Path]) -> str:
    try:
        return f"{folder()} ({'holds MNIST' if _find(folder(), ['mnist']) else 'without MNIST'})"
    except (DataError, PathError) as error:
        return str(error)


def _load_from(folder: Path, names: Iterable[str]) -> tuple[Dataset, Dataset]:
    """Load the data set among `names` that is in a folder."""
    found = _find(folder, names)
    if found is None:
        state = "none of them" if folder.is_dir() else "no such folder"
        first, *others = names
        relatives = f" (or those of {', '.join(others)})" if others else ""
        raise DataError(
            f"{folder}: expected the files {', '.join(FILE_NAMES[first])}{relatives}, each gzipped or not, found "
            f"{state}; check data_dir, or {_OTHER_FORMATS}"
        )
    return _load(*found)


def _find(folder: Path, names: Iterable[str]) -> tuple[str, list[Path]] | None:
    """The data set among `names` whose four files are in ``folder``, with their paths; None if there is no file.

    Raises:
        DataError: ``folder`` holds some of the files only, or those of several data sets and not MNIST's, or it
            cannot be read.
    """
    names = list(names)
    for place in folder, folder / names[0]:
        found, incomplete = {}, ""
        for name in names:
            try:
                paths = {file: _variant_in(place, file) for file in FILE_NAMES[name]}
            except OSError as error:
                raise DataError(f"{place}: expected a readable folder, found {error.strerror or error}") from error
            missing = [file for file, path in paths.items() if path is None]
            if not missing:
                found[name] = [path for path in paths.values() if path is not None]
            elif len(missing) < len(paths):
                incomplete = incomplete or (
                    f"{place}: expected all four files of {name.upper()}, found {len(paths) - len(missing)}; "
                    f"add {', '.join(missing)}, gzipped or not"
                )
        if "mnist" not in found and len(found) > 1:
            raise DataError(
                f"{place}: expected the files of one data set, found those of {', '.join(found)}; choose one with "
                "--dataset NAME (in Python: load_dataset(NAME, data_dir))"
            )
        if found:
            return next(iter(found.items()))
        if incomplete:
            raise DataError(incomplete)
    return None


def _variant_in(folder: Path, file: str) -> Path | None:
    """Where a file is stored under one of its usual names."""
    plain = file.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    return next(
        (folder / name for name in (file, plain, f"{dotted}.gz", dotted) if (folder / name).is_file()), None
    )


def _cache_dir() -> Path:
    import platformdirs

    try:
        return user_path(platformdirs.user_cache_dir("gpumlp")) / "mnist"
    except (PathError, RuntimeError):  # in containers, users may lack HOME and an entry among the system's users
        raise DataNotAvailable("there is no home folder for a cache; set HOME or XDG_CACHE_HOME") from None


def _fetch_all(download: bool) -> list[Path]:
    mirrors = Mirrors(list(MIRRORS) if download else [], timeout=TIMEOUT)
    cache = _cache_dir()
    return [fetch(file.name, file.size, file.zipped_sha256, mirrors, cache) for file in FILES]


def _load(name: str, paths: list[Path]) -> tuple[Dataset, Dataset]:
    """Read the four files of the data set that has such file names."""
    images = [read_images(path) for path in paths[::2]]
    labels = [read_idx(path, ndims=(1, 2), content="labels") for path in paths[1::2]]
    if name == "mnist":
        name = _recognised(paths, [images[0], labels[0], images[1], labels[1]])
    require_alike(images[0], images[1], str(paths[2]), str(paths[0]))
    train = _pair(images[0], labels[0], paths[:2], name)
    return train, _pair(images[1], labels[1], paths[2:], name, train)


def _pair(images: _Array, labels: _Array, paths: list[Path], name: str, train: Dataset | None = None) -> Dataset:
    """The training set, or, with `train`, the test set of its classes; errors name the file at fault."""
    images_path, labels_path = paths
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images):,} labels, one for each image in {images_path}, "
            f"found {len(labels):,}; use files of one data set"
        )
    if labels.ndim == 2:
        if labels.shape[1] != (_QMNIST_FIELDS if name == "qmnist" else 1):
            raise DataError(
                f"{labels_path}: expected labels of shape ({len(labels)},), found {labels.shape}; keep the file "
                f"names of QMNIST, such as {FILE_NAMES['qmnist'][1]}, for its labels of {_QMNIST_FIELDS} fields"
            )
        labels = labels[:, 0]
    try:
        if train is None:
            return training_set(images, labels, name=name, task="classes")
        return train.part(images, labels)
    except DataError as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise DataError(f"{images_path} with {labels_path}: {reason}") from error


def read_images(path: Path, name: str | None = None) -> _Array:
    """Read the images of an IDX file, see `read_idx`; those of EMNIST, known by its name, are turned upright.

    Args:
        path: of the file.
        name: used for the file in messages; the path by default.
    """
    images = read_idx(path, ndims=(2, 3, 4), content="images", name=name)
    if is_transposed(path) and images.ndim > 2:
        images = np.ascontiguousarray(images.swapaxes(1, 2))
    return images


def is_transposed(path: Path) -> bool:
    """Whether a file has the name of a file of EMNIST, which stores its images column by column."""
    return path.name.startswith("emnist-")


def may_be_emnist(train: Dataset, test: Dataset) -> bool:
    """Whether data under other names than EMNIST's have the size of one of its parts, so may be transposed."""
    return len(train) + len(test) in _EMNIST_IMAGES and train.feature_shape == (28, 28)


def _recognised(paths: list[Path], arrays: list[_Array]) -> str:
    """Which data set files with MNIST's names hold, by published checksums."""
    content = tuple(_content_sha256(array) for array in arrays)
    for name, published in ("mnist", tuple(file.sha256 for file in FILES)), ("fashion-mnist", _FASHION_SHA256):
        if content == published:
            return name
    return "kmnist" if tuple(_md5(path) for path in paths) == _KMNIST_MD5 else "mnist-like"


def _content_sha256(array: _Array) -> str | None:
    """Checksum of the unzipped IDX file of uint8 that holds an array; its header follows from the shape."""
    if array.dtype != np.uint8:
        return None
    digest = hashlib.sha256(struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape))
    digest.update(array.data)
    return digest.hexdigest()


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
