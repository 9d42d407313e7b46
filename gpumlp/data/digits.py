"""The digits that come with the package: small, and available without a network."""

from __future__ import annotations

from importlib import resources

import numpy as np

from .dataset import Dataset

_LEVELS = 16  # a value is the number of inked dots, 0 to 16, in a block of 4 x 4


def load_digits() -> tuple[Dataset, Dataset]:
    """Load the built-in handwritten digits: 1,437 training and 360 test images, 10 classes.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    1998, https://doi.org/10.24432/C50P49, CC BY 4.0; see DIGITS.md next to this file. The split is fixed.

    Returns:
        Training and test set: images ``(n, 8, 8)`` float32 in [0, 1], named ``"digits"``.

    >>> train, test = load_digits()
    >>> train
    Dataset('digits', 1,437 samples of 8 x 8 float32, 10 classes)
    """
    with (
        resources.files(__package__).joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        train, test = (
            Dataset(
                arrays[f"x_{part}"].astype(np.float32) / np.float32(_LEVELS),
                arrays[f"y_{part}"],
                classes=10,
                name="digits",
            )
            for part in ("train", "test")
        )
    return train, test
