"""What a training step tells a backend that computes it as a whole rather than by the training operations."""

from __future__ import annotations

from typing import Any, NamedTuple

from .rules import Array


class WholeStep(NamedTuple):
    """All that a training step reads, writes and obeys, the learning rate excepted.

    Attributes:
        parameters, gradient: by name, ``layers.0.weight`` and so on.
        buffers: the optimizer's, each by the names of the parameters.
        images: ``(n, features)``, uint8 or the network's dtype.
        order: ``(samples,)`` int64, the rows of an epoch.
        targets: ``(samples, ...)``, in the order of the epoch.
        weights: ``(samples,)`` likewise, or None.
        losses, correct: ``(samples,)``, of which a step writes its batch's part.
        activations: of each layer, the last included.
        batch_size: samples of a full batch.
        gradient_wanted: does somebody look at `gradient` after a step?
    """

    parameters: dict[str, Array]
    gradient: dict[str, Array]
    buffers: dict[str, dict[str, Array]]
    images: Array
    order: Array
    targets: Array
    weights: Array | None
    losses: Array
    correct: Array
    activations: list[Any]
    loss: Any
    optimizer: Any
    penalty: Any
    batch_size: int
    gradient_wanted: bool
