"""Loss and accuracy of a network on labelled data."""

from __future__ import annotations

from collections.abc import Callable
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
    loss, hits = model.backend.to_numpy(loss_and_hits(model, batches)).tolist()
    return evaluation(loss, hits, batches.samples)


def evaluation(loss: float, hits: float, samples: int) -> Evaluation:
    """From the sums of the losses and of the correct answers."""
    return Evaluation(loss / samples, hits / samples, int(hits), samples)


def loss_and_hits(model: MLP, batches: Batches, look: Callable[[Workspace], None] | None = None) -> Array:
    """The sums of the losses and of the correct answers, ``(2,)`` float64, on the device. Waits for nothing.

    `look` is called with the workspace of the first batch, after its loss: the activations are in its outputs and
    the error term in its logits.
    """
    backend, xp = model.backend, model.backend.xp
    losses = xp.empty(batches.samples, dtype=model.dtype)
    correct = xp.empty(batches.samples, dtype=bool)
    workspace = Workspace(model, batches.batch_size, pixels=batches.pixels)
    for batch in batches.slices:
        part = workspace.rows(batch.stop - batch.start)
        labels = batches.gather(batch, part.staging, part.inputs)
        model.forward_pass(part)
        model.loss.output_error(backend, part.logits, labels, losses[batch], correct[batch])
        if look is not None and batch.start == 0:
            look(part)
    return xp.stack([backend.total(losses), backend.total(correct)])
