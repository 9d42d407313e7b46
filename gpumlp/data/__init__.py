"""Data sets: validated arrays, MNIST and its relatives, the built-in digits, and .npz files."""

from __future__ import annotations

import os

from ..files import user_path
from .blocks import Blocks
from .dataset import DataError, Dataset
from .digits import load_digits
from .distortion import Distortion
from .download import DataNotAvailable
from .mnist import (
    ENVIRONMENT_VARIABLE,
    FILE_NAMES,
    HOW_TO_GET,
    load_mnist,
    load_relative,
    may_be_emnist,
    mnist_folders,
)
from .npz import load_npz
from .stream import StreamedDataset, load_files

__all__ = [
    "DATA_SETS",
    "Blocks",
    "DataError",
    "Dataset",
    "Distortion",
    "StreamedDataset",
    "load_dataset",
    "load_digits",
    "load_files",
    "load_mnist",
    "load_npz",
    "mnist_folders",
    "uses_data_dir",
]

DATA_SETS = ("auto", "mnist", "digits", *(name for name in FILE_NAMES if name != "mnist"))


def load_dataset(
    name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None, *, task: str | None = None
) -> tuple[Dataset, Dataset, str | None]:
    """Load a data set by name.

    Args:
        name: one of ``DATA_SETS``, or a path that ends in ``.npz``. ``"auto"`` is MNIST, or the built-in digits
            where MNIST is not on this machine and cannot be downloaded. ``"auto"`` and ``"mnist"`` are also the
            one relative of MNIST that ``data_dir`` holds, see `load_mnist`; ``"qmnist"``, ``"emnist-letters"`` and
            so on choose among several.
        data_dir: folder that holds the files; not for ``"digits"`` and ``.npz`` files.
        task: what the targets in a ``.npz`` file are, see `load_npz`; the labels of all others are classes.

    Returns:
        Training set, test set, and a notice of a few lines that the user must see, or None: that other data
        were used in place of MNIST, or that images were turned upright.

    Raises:
        DataError: the name is unknown, or the data cannot be used. Damaged or missing files in a folder
            that the user named are an error also for ``"auto"``.
    """
    name = os.fspath(name)
    is_npz = name.lower().endswith(".npz")
    if name not in DATA_SETS and not is_npz:
        raise DataError(
            f"unknown data set {name!r}; choose {', '.join(DATA_SETS)} or a path that ends in .npz (Fashion-MNIST "
            "and KMNIST have MNIST's file names: choose mnist, and name their folder as data_dir)"
        )
    if task not in (None, "classes") and not is_npz:
        raise DataError(
            f"the task {task} does not apply to the data set {name}, whose labels are classes; leave it out, or "
            "choose a path that ends in .npz"
        )
    if not uses_data_dir(name):
        if data_dir is not None:
            raise DataError(
                f"data_dir {os.fspath(data_dir)} does not apply to the data set {name}; "
                "leave it out, or choose mnist"
            )
        return *(load_npz(name, task=task) if is_npz else load_digits()), None
    try:
        train, test = load_mnist(data_dir) if name in ("auto", "mnist") else load_relative(name, data_dir)
    except DataNotAvailable as error:
        if name == "mnist":
            raise
        return *load_digits(), _fallback_notice(error)
    return train, test, _notice(name, train, test, data_dir)


def uses_data_dir(name: str) -> bool:
    """Whether a data set is read from a folder of IDX files."""
    return name == "auto" or name in FILE_NAMES


def _fallback_notice(error: DataNotAvailable) -> str:
    return (
        f"{error.reason}\n"
        "The built-in digits (1,797 images of 8 x 8) are used instead: accuracies are not those of MNIST.\n"
        f"{HOW_TO_GET}\n"
        "With --dataset mnist, missing files are an error."
    )


def _notice(asked: str, train: Dataset, test: Dataset, data_dir: str | os.PathLike[str] | None) -> str | None:
    """What the user must see of data that are not MNIST's."""
    found = train.name
    # Only a folder that the user named can hold such files: those in the cache are checked one by one.
    folder = os.environ.get(ENVIRONMENT_VARIABLE) if data_dir is None else user_path(data_dir)
    lines = []
    if found == "mnist-like":
        lines.append(
            f"The files in {folder} have MNIST's names and format, but are not MNIST's published files: "
            "another data set, a reduced copy, or damaged. "
            "Results are reported for 'mnist-like' and cannot be compared with those for MNIST."
        )
    elif found not in ("mnist", asked):
        lines.append(f"The files in {folder} are {found}: results cannot be compared with those for MNIST.")
    if found.startswith("emnist-"):
        lines.append("The images of EMNIST are stored transposed; they were turned upright.")
    elif may_be_emnist(train, test):
        lines.append(
            "A part of EMNIST has as many images, which are stored transposed. If these are they, give the files "
            "their names in EMNIST, such as emnist-letters-train-images-idx3-ubyte, to have them turned upright."
        )
    return "\n".join(lines) or None
