"""The samples that a network is asked about, as rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..backends import Array, HostArray

if TYPE_CHECKING:
    from .network import MLP


def flat_samples(model: MLP, images: Array) -> Array:
    """The images as ``(samples, inputs)``, where they are.

    Values are checked on the host only: looking at those on a device would wait for it.

    Raises:
        ValueError: the shape or dtype does not suit the network, or a value on the host is NaN, infinite, or too
            large for the network's dtype.
    """
    if images.dtype.kind not in "buif":
        raise ValueError(
            f"images are expected to be integers or real floats, got dtype {images.dtype}; "
            "give one dense numeric array, such as uint8 or float32"
        )
    if images.ndim < 2:
        raise ValueError(f"images are expected to have shape (samples, ...), got {images.shape}")
    rows = images.reshape(len(images), math.prod(images.shape[1:]))
    if rows.shape[1] != model.sizes[0]:
        raise ValueError(
            f"{model} expects {model.sizes[0]} features a sample, got {rows.shape[1]} (shape {images.shape})"
        )
    if isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and rows.size:
        _check_range(rows, model)
    return rows


def _check_range(rows: HostArray, model: MLP) -> None:
    """By the largest and the smallest value, which are NaN if any is: nothing of the samples' size is made."""
    limit = float(np.finfo(model.dtype).max)
    with np.errstate(invalid="ignore"):
        if float(rows.max()) <= limit and float(rows.min()) >= -limit:
            return
        bad = ~(np.abs(rows) <= limit)
    sample = int(bad.any(axis=1).argmax())
    raise ValueError(
        f"images are expected to be finite in {model.dtype.name}, but {int(bad.sum()):,} of {rows.size:,} values "
        f"are NaN, infinite or too large, the first in sample {sample}; remove those samples or fill the values in"
    )
