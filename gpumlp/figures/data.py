"""The data that figures are computed from: MNIST, or the built-in digits if MNIST is not available."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ..backends import to_host
from ..data import Dataset, load_dataset

Data: TypeAlias = tuple[Dataset, Dataset]  # training and test set


def load(data: Data | None) -> Data:
    """The given data set; by default MNIST or, if that is not available, the built-in digits."""
    if data is not None:
        return data
    train, test, _ = load_dataset("auto")
    return train, test


def in_words(dataset: Dataset) -> str:
    """The name of a data set in titles, which never passes the digits off as MNIST."""
    if dataset.name == "mnist":
        return "MNIST"
    if dataset.name == "digits":
        return "the built-in digits (in place of MNIST)"
    return dataset.name


def draw(dataset: Dataset, counts: tuple[int, ...], seed: int) -> list[Dataset]:
    """Random parts of a data set that do not overlap.

    Args:
        dataset: to draw from.
        counts: samples in each part; reduced in proportion if the data set has fewer.
        seed: of the draw.
    """
    scale = min(1.0, len(dataset) / sum(counts))
    order = np.random.default_rng(seed).permutation(len(dataset))
    images, parts, start = to_host(dataset.images), [], 0
    for count in counts:
        rows = np.sort(order[start : start + max(1, int(count * scale))])
        parts.append(Dataset(images[rows], dataset.labels[rows], classes=dataset.classes, name=dataset.name))
        start += len(rows)
    return parts
