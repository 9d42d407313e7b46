"""Samples that are not trained on: their loss and score after each epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import Array, HostArray, reference_backend
from ..nn.network import MLP
from .solver import outputs


class Validation:
    """A validation set.

    Args:
        images: ``(samples, features)`` of the network's dtype, on its device.
        targets: as the network's loss wants them, on the host.
        weights: ``(samples,)``, or None.
        estimator: its ``_score_outputs`` says how good outputs are.
    """

    def __init__(self, images: Array, targets: HostArray, weights: HostArray | None, estimator: Any) -> None:
        self._images, self._targets, self._weights, self._estimator = images, targets, weights, estimator

    def __call__(self, network: MLP) -> tuple[float, float]:
        """Mean loss, without the penalty, and score; NaN both where the outputs are not finite."""
        found = network.backend.to_numpy(outputs(network, self._images))
        if not np.isfinite(found).all():
            return float("nan"), float("nan")
        samples = len(found)
        losses, correct = np.empty(samples, found.dtype), np.empty(samples, dtype=bool)
        network.loss.output_error(reference_backend(np), found.copy(), self._targets, losses, correct)
        loss = float(np.average(losses, weights=self._weights)) / self._estimator._loss_terms()
        return loss, float(self._estimator._score_outputs(found, self._targets, correct, self._weights))
