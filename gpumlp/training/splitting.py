"""Which samples are trained on, validated on and looked at; none of them is copied."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..backends import HostArray
from ..data import Dataset
from ..data.dataset import ArrayBatches
from ..nn.hyperparameters import whole
from ..nn.network import CHUNK, MLP

# Independent random streams of one seed; the network's own initial weights use the seed as it is.
ORDER_STREAM, SPLIT_STREAM, WATCH_STREAM = 1, 2, 3


def make_batches(
    model: MLP,
    train: Dataset,
    validation: Dataset | int | None,
    batch_size: int | Literal["full"],
    seed: int,
) -> tuple[ArrayBatches, ArrayBatches | None]:
    """The batches to train on and those to validate on, on the model's device.

    Arguments are those of `Trainer`.

    Raises:
        ValueError: the data does not fit the network, or a value is out of range.
    """
    for dataset in (train, validation):
        if isinstance(dataset, Dataset):
            model.check_fits(dataset)
    held_out = 0
    if validation is not None and not isinstance(validation, Dataset):
        held_out = whole("validation", validation, 0)
    train_rows, validation_rows = _split(len(train), held_out, seed)
    full = isinstance(batch_size, str) and batch_size == "full"
    size = len(train_rows) if full else whole("batch_size (if not 'full')", batch_size, 1)
    with model.backend.activate():
        batches = train.batches(size, model.backend, model.dtype, train_rows)
        if isinstance(validation, Dataset):
            return batches, validation.batches(CHUNK, model.backend, model.dtype)
        return batches, batches.select(validation_rows, CHUNK) if held_out else None


def _split(samples: int, held_out: int, seed: int) -> tuple[HostArray, HostArray]:
    """Rows to train on and rows to validate on."""
    if not 0 <= held_out < samples:
        raise ValueError(
            f"validation is expected to be from 0 to {samples - 1:,} of the {samples:,} training samples, got "
            f"{held_out:,}"
        )
    order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(samples)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
