"""The data that figures are drawn from: MNIST, or the built-in digits where MNIST cannot be had."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ..backends import to_host
from ..data import Dataset, load_dataset

Data: TypeAlias = tuple[Dataset, Dataset]  # training and test set


def load(data: Data | None) -> Data:
    """The data set as it was given; otherwise MNIST or, where that cannot be had, the built-in digits."""
    if data is not None:
        return data
    train, test, _ = load_dataset("auto")
    return train, test


def in_words(dataset: Dataset) -> str:
    """What titles call a data set; the digits are never taken for MNIST."""
    if dataset.name == "mnist":
        return "MNIST"
    if dataset.name == "digits":
        return "the built-in digits (in place of MNIST)"
    return dataset.name


def draw(dataset: Dataset, counts: tuple[int, ...], seed: int) -> list[Dataset]:
    """Random parts of a data set that do not overlap.

    Args:
        dataset: to draw from.
        counts: samples in each part; all in the same proportion fewer where there are not enough.
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
