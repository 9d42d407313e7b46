"""Samples without labels, as files to predict: arrays as .npy, .npz and IDX, told by their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .dataset import checked_images
from .errors import DataError
from .idx import read_idx

_NPY, _ZIP, _GZIP, _IDX = b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b", b"\x00\x00"


def is_array_file(path: Path) -> bool:
    """Is it a file of arrays, going by how it begins (an empty or missing one: by its name)?"""
    start = _start(path) if path.is_file() else b""
    if not start:
        return path.suffix in (".npy", ".npz")
    return start == _NPY or start[:4] == _ZIP or start[:2] in (_GZIP, _IDX)


def read_samples(path: Path, name: str, shape: tuple[int, ...], array: str | None = None) -> npt.NDArray[Any]:
    """The samples in a file.

    Args:
        path: of the file.
        name: what messages call it.
        shape: of one sample, as the network was trained; a single one is taken for a batch of one.
        array: which of an .npz file's arrays; may be None where there is only one.

    Returns:
        ``(n, ...)``, uint8 or floating.

    Raises:
        DataError: the file is missing, damaged or none of these; the array is not named, or cannot be samples.
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
    # Opened here, so that it is closed also where NumPy gives up half-way.
    with path.open("rb") as file:
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
