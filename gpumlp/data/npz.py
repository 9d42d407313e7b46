"""A data set of one's own, in the .npz layout that Keras uses."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .dataset import Dataset
from .errors import DataError

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_HOW_TO_MAKE = "make it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"


def load_npz(path: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    """Load a training and a test set from one .npz file.

    Args:
        path: of a file with the arrays ``x_train`` (n, ...), ``y_train`` (n,), ``x_test`` (m, ...) and
            ``y_test`` (m,), of the dtypes that `Dataset` takes. Labels of shape (n, 1), as in Keras's CIFAR,
            are flattened. Pickled objects are never loaded.

    Returns:
        Training and test set, named as the file, ``"cifar.npz"``; the classes are those of the training labels.

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
    train, test = _dataset(path, arrays, "train"), _dataset(path, arrays, "test")
    for what, expected, found in (
        ("sample shape", train.feature_shape, test.feature_shape),
        ("dtype", arrays["x_train"].dtype, arrays["x_test"].dtype),
    ):
        if expected != found:
            raise DataError(
                f"{path}: expected x_test of {what} {expected} as in x_train, found {found}; "
                "prepare both in the same way"
            )
    if test.classes > train.classes:
        raise DataError(
            f"{path}: expected y_test below {train.classes}, the number of classes in y_train, "
            f"found {test.classes - 1}; train on every class that is tested"
        )
    test.classes = train.classes  # also where the last classes happen to be missing from the test set
    return train, test


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: expected an .npz file, found {found}; check the path")
    try:
        # Opened here, so that it is closed also where NumPy gives up half-way.
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(
                    f"{path}: expected an .npz file, found one that is no zip archive or is cut short; "
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
    if not isinstance(array, np.ndarray):  # a member of the archive that is no .npy file
        raise DataError(f"{path}: expected {key} to be an array, found other bytes; {_HOW_TO_MAKE}")
    return array


def _dataset(path: Path, arrays: dict[str, npt.NDArray[Any]], part: str) -> Dataset:
    try:
        return Dataset(arrays[f"x_{part}"], arrays[f"y_{part}"], name=f"{path.stem}.npz")
    except DataError as error:
        raise DataError(f"{path}, x_{part} and y_{part}: {error}") from error
