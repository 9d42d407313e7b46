"""The arrays that a forward and a backward pass work in, made once for a batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..backends import Array

if TYPE_CHECKING:
    from .network import MLP


class Workspace:
    """Activations and error terms of a network for up to `batch_size` samples.

    A forward pass leaves the pre-activations in `deltas`; the loss and the backward pass then turn them
    into error terms. The last layer has no activation, so its output shares its delta's array: that of
    the logits.

    Attributes:
        inputs: ``(batch, in_features)``, a_0.
        staging: ``(batch, in_features)`` uint8 for pixels on their way in, or None where the data has none.
        outputs: a_l of each layer, ``(batch, out_features)``.
        deltas: s_l and then delta_l of each layer, shaped alike.
    """

    def __init__(self, model: MLP, batch_size: int, *, pixels: bool) -> None:
        xp, dtype = model.backend.xp, model.dtype
        self.batch_size = batch_size
        self.inputs: Array = xp.empty((batch_size, model.sizes[0]), dtype=dtype)
        self.staging: Array | None = xp.empty((batch_size, model.sizes[0]), dtype="uint8") if pixels else None
        self.deltas: list[Array] = [xp.empty((batch_size, size), dtype=dtype) for size in model.sizes[1:-1]]
        self._logits: Array = xp.empty(batch_size * model.sizes[-1], dtype=dtype)
        self._logits_order = model.backend.logits_order
        self.deltas.append(self._logits_of(batch_size, model.sizes[-1]))
        self.outputs: list[Array] = [xp.empty_like(delta) for delta in self.deltas[:-1]] + self.deltas[-1:]
        self._parts: dict[int, Workspace] = {}  # never self: a cycle would outlive its use by many epochs

    @property
    def logits(self) -> Array:
        return self.deltas[-1]

    def rows(self, count: int) -> Workspace:
        """The first `count` rows of the same arrays, for the last, smaller batch."""
        if count == self.batch_size:
            return self
        part = self._parts.get(count)
        if part is None:
            part = object.__new__(Workspace)
            part.batch_size = count
            part.inputs = self.inputs[:count]
            part.staging = None if self.staging is None else self.staging[:count]
            part.deltas = [delta[:count] for delta in self.deltas[:-1]]
            part.deltas.append(self._logits_of(count, self.logits.shape[1]))
            part.outputs = [output[:count] for output in self.outputs[:-1]] + part.deltas[-1:]
            part._parts = {}
            self._parts[count] = part
        return part

    def _logits_of(self, count: int, classes: int) -> Array:
        """``(count, classes)``, contiguous in the backend's order, in the memory of the logits."""
        part = self._logits[: count * classes]
        if self._logits_order == "C":
            return part.reshape(count, classes)
        return part.reshape(classes, count).T
