"""Loss and accuracy of a network on labelled data."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy.typing as npt

from ..backends import Array, Backend
from .workspace import Workspace

if TYPE_CHECKING:
    from .network import MLP

CHUNK = 1024  # samples per forward pass outside training; fixed, so that results do not depend on the caller


class Batches(Protocol):
    """Labelled batches to evaluate on."""

    samples: int
    batch_size: int
    slices: list[slice]
    pixels: bool

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array: ...


class LabelledData(Protocol):
    """What evaluation needs of a data set: ``gpumlp.Dataset`` has it."""

    classes: int

    @property
    def features(self) -> int: ...
    def batches(self, batch_size: int, backend: Backend, dtype: npt.DTypeLike) -> Batches: ...


class Evaluation(NamedTuple):
    """How a network does on a data set: mean cross-entropy, fraction and number of correct answers."""

    loss: float
    accuracy: float
    correct: int
    samples: int


def evaluate_batches(model: MLP, batches: Batches) -> Evaluation:
    """Loss and accuracy on batches that are on the model's device already. Waits for the device once."""
    backend, xp = model.backend, model.backend.xp
    losses = xp.empty(batches.samples, dtype=model.dtype)
    correct = xp.empty(batches.samples, dtype=bool)
    workspace = Workspace(model, batches.batch_size, pixels=batches.pixels)
    for batch in batches.slices:
        part = workspace.rows(batch.stop - batch.start)
        labels = batches.gather(batch, part.staging, part.inputs)
        model.forward_pass(part)
        backend.softmax_cross_entropy(part.logits, labels, losses[batch], correct[batch])
    totals = xp.stack([xp.sum(losses, dtype="float64"), xp.sum(correct, dtype="float64")])
    loss, hits = backend.to_numpy(totals).tolist()
    samples = batches.samples
    return Evaluation(loss / samples, hits / samples, int(hits), samples)
