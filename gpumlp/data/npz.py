"""Arrays in files: a data set in one .npz file, as for Keras; samples to predict in .npy, .npz or IDX files."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..words import listed
from .dataset import DataError, Dataset, checked_images
from .mnist import read_idx

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_HOW_TO_MAKE = "make it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
_NPY, _ZIP, _GZIP, _IDX = b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b", b"\x00\x00"  # how each format begins


def load_npz(path: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    """Load a training and a test set from one .npz file.

    Args:
        path: of a file with the arrays ``x_train`` ``(n, ...)``, ``y_train`` ``(n,)``, ``x_test`` ``(m, ...)``
            and ``y_test`` ``(m,)``, of the dtypes that `Dataset` accepts. Labels of shape ``(n, 1)``, as in
            Keras's CIFAR, are flattened. Pickled objects are never loaded.

    Returns:
        Training and test set, named after the file, ``"cifar.npz"``; the classes are the distinct training labels.

    Raises:
        DataError: the file is not such an archive, an array is missing or unusable, or training and test
            set do not match in shape, dtype or classes.
    """
    path = Path(path).expanduser()
    arrays = _read_arrays(path)
    for part in ("train", "test"):
        labels = arrays[f"y_{part}"]
        if labels.ndim == 2 and labels.shape[1] == 1:
            arrays[f"y_{part}"] = labels.ravel()
    train = _dataset(path, arrays, "train")
    test = _dataset(path, arrays, "test", train)
    for what, expected, found in (
        ("sample shape", train.feature_shape, test.feature_shape),
        ("dtype", arrays["x_train"].dtype, arrays["x_test"].dtype),
    ):
        if expected != found:
            raise DataError(
                f"{path}: expected x_test of {what} {expected} as in x_train, found {found}; "
                "prepare both in the same way"
            )
    return train, test


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: expected an .npz file, found {found}; check the path")
    try:
        with path.open("rb") as file:  # opened here, so that it is closed even if NumPy fails half-way
            if not zipfile.is_zipfile(file):
                raise DataError(
                    f"{path}: expected an .npz file, found one that is not a zip archive or is cut short; "
                    f"get it again, or {_HOW_TO_MAKE}"
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                missing = [key for key in _KEYS if key not in archive.files]
                if missing:
                    found = ", ".join(archive.files) or "none"
                    raise DataError(
                        f"{path}: expected arrays {', '.join(_KEYS)}, found {found}; add {', '.join(missing)}"
                    )
                return {key: _read_array(path, archive, key) for key in _KEYS}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, tokenize and NumPy raise a dozen types for damaged files
        raise DataError(
            f"{path}: expected a readable .npz file, found a damaged one ({error}); "
            f"get it again, or {_HOW_TO_MAKE}"
        ) from error


def _read_array(path: Path, archive: Any, key: str) -> npt.NDArray[Any]:
    try:
        array = archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{path}: expected {key} to be a numeric array, found pickled objects, which are not loaded as "
            "they may run code; save it as one numeric array"
        ) from error
    if not isinstance(array, np.ndarray):  # a member of the archive that is not a .npy file
        raise DataError(f"{path}: expected {key} to be an array, found other bytes; {_HOW_TO_MAKE}")
    return array


def _dataset(path: Path, arrays: dict[str, npt.NDArray[Any]], part: str, train: Dataset | None = None) -> Dataset:
    """The training set, or, with `train`, the test set of its classes."""
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    try:
        if train is not None:
            return train.part(images, labels)
        train = Dataset(images, labels, name=f"{path.stem}.npz")
        if train.classes < 2:
            raise DataError(f"all labels are {listed(train.class_names or ())}; expected two classes or more")
        return train
    except DataError as error:
        raise DataError(f"{path}, x_{part} and y_{part}: {error}") from error


def is_array_file(path: Path) -> bool:
    """Whether a file holds arrays, by its first bytes (by its name if it is empty or missing)."""
    start = _start(path) if path.is_file() else b""
    if not start:
        return path.suffix in (".npy", ".npz")
    return start == _NPY or start[:4] == _ZIP or start[:2] in (_GZIP, _IDX)


def read_samples(path: Path, name: str, shape: tuple[int, ...], array: str | None = None) -> npt.NDArray[Any]:
    """Read samples without labels from a .npy, .npz or IDX file; its content decides, not its name.

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
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{name}: expected a file of samples, found {found}; check the path")
    if _start(path)[:2] in (_GZIP, _IDX):
        values: Any = read_idx(path, ndim=3)
    else:
        try:
            values = _load(path, name, array)
        except DataError:
            raise
        except Exception as error:  # zipfile, zlib, tokenize and NumPy raise a dozen types for damaged files
            raise DataError(
                f"{name}: expected a readable file of arrays, found a damaged one ({error})"
            ) from error
    if values.shape == shape and values.ndim != 1:
        values = values[np.newaxis]
    return np.asarray(checked_images(values, name))


def _load(path: Path, name: str, array: str | None) -> npt.NDArray[Any]:
    with path.open("rb") as file:  # opened here, so that it is closed even if NumPy fails half-way
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        archive = loaded
        names = archive.files
        if array is None and len(names) != 1:
            raise DataError(
                f"{name}: holds {', '.join(names) or 'no array'}; name the one to predict with --array NAME"
            )
        if array is not None and array not in names:
            raise DataError(f"{name}: expected an array {array}, found {', '.join(names) or 'none'}")
        values: npt.NDArray[Any] = np.asarray(archive[array or names[0]])
        return values


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)
