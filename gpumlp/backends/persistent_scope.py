"""Which trainings the persistent kernel runs, and the sizes that it is compiled for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .cuda_kernels import MOST_CLASSES
from .cuda_rules import IDENTITY, PENALTY, SGD, activation_code, full_name
from .whole import WholeStep

_LOSS = "gpumlp.nn.losses.SoftmaxCrossEntropy"
_ALIGNMENT = 16  # bytes in which rows are read
_PADDING = 5 * 31  # bytes, the most that aligning the arrays of a block can take


class UnsuitableError(RuntimeError):
    """The persistent kernel cannot run a training; says why."""


class FailedError(UnsuitableError):
    """It could have, but was not compiled or not launched, or found no memory."""


class Sizes(NamedTuple):
    """What the kernel is compiled for.

    Attributes:
        batch: samples of a full batch.
        units: hidden units of a block; the last block may have fewer.
        buffers: batches whose rows a block has room for; with 2, the next batch is read ahead.
        itemsize: bytes of a parameter.
        pixels: are the inputs uint8?
    """

    inputs: int
    hidden: int
    classes: int
    batch: int
    units: int
    buffers: int
    itemsize: int
    pixels: bool

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return math.ceil(self.hidden / self.units)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, as ``struct Block`` lays it out; the compiler checks that it is enough."""
        stride, rows = 16 * math.ceil(self.inputs / 16), 4 * math.ceil(self.batch / 4)
        state = self.units * (stride + self.classes + 1) + self.classes
        values = 2 * state + 2 * rows * self.units + self.batch * (self.classes | 1)
        row_bytes = stride * (1 if self.pixels else self.itemsize)
        return values * self.itemsize + self.buffers * rows * row_bytes + _PADDING

    def options(self, real: str, threads: int) -> tuple[str, ...]:
        """For the compiler."""
        values = {
            "REAL": real, "PIXELS": int(self.pixels), "INPUTS": self.inputs, "HIDDEN": self.hidden,
            "CLASSES": self.classes, "BATCH": self.batch, "UNITS": self.units, "BLOCKS": self.blocks,
            "BUFFERS": self.buffers, "THREADS": threads, "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip
        return tuple(f"-D{name}={value}" for name, value in values.items())


def why_not(whole: WholeStep, batches: Sequence[slice]) -> str | None:
    """What of a training the kernel does not know, in words; None if it knows it all."""
    layers = len(whole.activations)
    classes = whole.parameters[f"layers.{layers - 1}.bias"].size
    arrays = (whole.images, whole.order, whole.targets, *whole.parameters.values())
    known_types = whole.images.dtype in (np.uint8, whole.losses.dtype) and whole.targets.dtype == np.int64
    refusals = {
        f"it is for networks of one hidden layer, this one has {layers - 1}": layers != 2,
        "it knows no loss but softmax_cross_entropy": full_name(whole.loss) != _LOSS,
        f"it is for {MOST_CLASSES} classes at most, here are {classes}": classes > MOST_CLASSES,
        "it knows no optimizer but SGD": full_name(whole.optimizer) != SGD,
        "it does not know this penalty": full_name(whole.penalty) != PENALTY,
        "it does not know this activation": activation_code(whole.activations[0]) is None
        or activation_code(whole.activations[-1]) != IDENTITY,
        "the samples have weights": whole.weights is not None,
        "somebody looks at the gradients, which it never makes": whole.gradient_wanted,
        "the samples are neither pixels nor of the network's dtype": not known_types,
        "the arrays have gaps": not all(array.flags.c_contiguous for array in arrays),
        f"the samples do not begin at a multiple of {_ALIGNMENT} bytes": whole.images.data.ptr % _ALIGNMENT != 0,
        "the batches do not follow each other": not _in_order(batches, whole.batch_size),
    }
    return next((reason for reason, applies in refusals.items() if applies), None)


def _in_order(batches: Sequence[slice], size: int) -> bool:
    """Are there batches, each from where the one before ends, and all but perhaps the last of this size?"""
    return bool(batches) and list(batches) == _consecutive(batches[0].start, batches[-1].stop, size)


@lru_cache(maxsize=64)  # the same in every epoch, and a GPU would wait for them
def _consecutive(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
