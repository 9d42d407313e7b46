"""What the operations of a `Backend` need of the rules that they are given.

The rules themselves are written elsewhere (``gpumlp.nn``, ``gpumlp.training``), which this room knows nothing of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any  # an array of the backend's own library: numpy.ndarray, cupy.ndarray, ...


class ActivationRule(Protocol):
    """What `dense_forward` and `dense_backward` need of an activation (see ``gpumlp.nn.activations``)."""

    def forward(self, xp: Any, s: Array, out: Array) -> None: ...
    def backward(self, xp: Any, a: Array, delta: Array) -> None: ...


class PenaltyRule(Protocol):
    """What `update` needs of a weight penalty (see ``gpumlp.nn.penalties``)."""

    def add_gradient(self, backend: Any, weights: Array, gradient: Array, scratch: Array) -> None: ...


class OptimizerRule(Protocol):
    """What `update` needs of an optimizer (see ``gpumlp.nn.optimizers``)."""

    def update(self, xp: Any, parameters: Array, gradient: Array, state: Any, learning_rate: float) -> None: ...
    def complete(
        self,
        backend: Any,
        penalty: Any,
        parameters: Array,
        gradient: Array,
        weights: slice,
        state: Any,
        learning_rate: float,
    ) -> None: ...


class StepRule(Protocol):
    """What `run_steps` needs of a training step (see ``gpumlp.training.step``)."""

    @property
    def multiply_adds(self) -> int: ...  # of one pass through the layers, for a full batch
    @property
    def sizes(
        self,
    ) -> Sequence[int]: ...  # of the layers, inputs first; empty if it does more with the BLAS than them
    @property
    def rows(self) -> int: ...  # that go through the layers at a time
    @property
    def dtype(self) -> np.dtype[Any]: ...  # of the layers

    def __call__(self, batch: slice) -> None: ...
