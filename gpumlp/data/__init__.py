"""Data sets: validated arrays, MNIST, the built-in digits, and .npz files."""

from __future__ import annotations

import os

from ..files import user_path
from .dataset import DataError, Dataset
from .digits import load_digits
from .mnist import ENVIRONMENT_VARIABLE, HOW_TO_GET, DataNotAvailable, load_mnist, mnist_folders
from .npz import load_npz

__all__ = ["DataError", "Dataset", "load_dataset", "load_digits", "load_mnist", "load_npz", "mnist_folders"]


def load_dataset(
    name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> tuple[Dataset, Dataset, str | None]:
    """Load a data set by name.

    Args:
        name: ``"mnist"``, ``"digits"``, a path that ends in ``.npz``, or ``"auto"``: MNIST, or the built-in
            digits where MNIST is not on this machine and cannot be downloaded.
        data_dir: folder that holds MNIST's files, see `load_mnist`; only for ``"auto"`` and ``"mnist"``.

    Returns:
        Training set, test set, and a notice of a few lines that the user must see, or None: that the digits
        were used in place of MNIST, or that the files are not MNIST's own.

    Raises:
        DataError: the name is unknown, or the data cannot be used. Damaged or missing files in a folder
            that the user named are an error also for ``"auto"``.
    """
    name = os.fspath(name)
    is_npz = name.lower().endswith(".npz")
    if name not in ("auto", "mnist", "digits") and not is_npz:
        raise DataError(f"unknown data set {name!r}; choose auto, mnist, digits or a path that ends in .npz")
    if name == "digits" or is_npz:
        if data_dir is not None:
            raise DataError(
                f"data_dir {os.fspath(data_dir)} does not apply to the data set {name}; "
                "leave it out, or choose mnist"
            )
        return *(load_npz(name) if is_npz else load_digits()), None
    try:
        train, test = load_mnist(data_dir)
    except DataNotAvailable as error:
        if name == "mnist":
            raise
        return *load_digits(), _fallback_notice(error)
    return train, test, _not_published_notice(data_dir) if train.name == "mnist-like" else None


def _fallback_notice(error: DataNotAvailable) -> str:
    return (
        f"{error.reason}\n"
        "The built-in digits (1,797 images of 8 x 8) are used instead: accuracies are not those of MNIST.\n"
        f"{HOW_TO_GET}\n"
        "With --dataset mnist, missing files are an error."
    )


def _not_published_notice(data_dir: str | os.PathLike[str] | None) -> str:
    # Only a folder that the user named can hold such files: those in the cache are checked one by one.
    folder = user_path(os.environ.get(ENVIRONMENT_VARIABLE, "") if data_dir is None else data_dir)
    return (
        f"The files in {folder} have MNIST's names and format, but are not MNIST's published files: "
        "another data set, a reduced copy, or damaged.\n"
        "Results are reported for 'mnist-like' and cannot be compared with those for MNIST."
    )
