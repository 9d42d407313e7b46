"""A real forward and backward pass, with everything that it computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..backends import HostArray
from ..data import Dataset
from ..nn import MLP
from ..nn.network import Workspace


class BackwardPass(NamedTuple):
    """What a backward pass over all samples of a data set left, on the host, by layer from the first.

    Attributes:
        loss: mean cross-entropy, in nats.
        deltas: the error terms delta_l = dC/ds_l, ``(samples, units)``.
        gradients: dC/dW_l, ``(in_features, out_features)``.
    """

    loss: float
    deltas: list[HostArray]
    gradients: list[HostArray]

    @property
    def delta_norms(self) -> list[float]:
        """The Frobenius norm of each delta_l."""
        return [float(np.linalg.norm(delta)) for delta in self.deltas]

    @property
    def gradient_norms(self) -> list[float]:
        """The Frobenius norm of each dC/dW_l."""
        return [float(np.linalg.norm(gradient)) for gradient in self.gradients]


def backward_pass(model: MLP, dataset: Dataset) -> BackwardPass:
    """One forward and one backward pass over all samples as one batch; the parameters stay as they are."""
    backend = model.backend
    with backend.activate():
        batches = dataset.batches(len(dataset), backend, model.dtype)
        workspace = Workspace(model, len(dataset), pixels=batches.pixels)
        losses = backend.xp.empty(len(dataset), dtype=model.dtype)
        correct = backend.xp.empty(len(dataset), dtype=bool)
        labels = batches.gather(batches.slices[0], workspace.staging, workspace.inputs)
        model.forward_pass(workspace)
        backend.output_error(model.loss, workspace.logits, labels, losses, correct)
        model.backward_pass(workspace)
        deltas = [np.array(backend.to_numpy(delta), dtype=np.float64) for delta in workspace.deltas]
        gradients = [np.array(backend.to_numpy(layer.weight_gradient), dtype=np.float64) for layer in model.layers]
        return BackwardPass(float(backend.to_numpy(losses).mean()), deltas, gradients)
