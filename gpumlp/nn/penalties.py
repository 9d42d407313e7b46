"""Weight penalties: R(W) added to the loss to keep the weights small. Biases are never penalised."""

from __future__ import annotations

from dataclasses import dataclass

from ..backends import Array, Backend, array_namespace
from .hyperparameters import set_number


@dataclass(frozen=True)
class Penalty:
    """R(W) = (l2 / 2) sum W^2 + l1 sum |W|, with the gradient l2 W + l1 sign(W).

    The sums run over all weights of the network, not divided by the number of samples, so that a value
    means the same for every data set and batch size.
    """

    l2: float = 0.0
    l1: float = 0.0

    def __post_init__(self) -> None:
        set_number(self, "l2", 0)
        set_number(self, "l1", 0)

    def __call__(self, weights: Array) -> float:
        """R(W) of any array of weights, as a Python float. Waits for the device.

        >>> import numpy as np
        >>> Penalty(l2=0.5, l1=1.0)(np.array([[1.0, -2.0]]))
        4.25
        """
        xp = array_namespace(weights)
        return float(self.l2 / 2 * xp.sum(xp.square(weights)) + self.l1 * xp.sum(xp.abs(weights)))

    def add_gradient(self, backend: Backend, weights: Array, gradient: Array, scratch: Array) -> None:
        """``gradient += l2 W + l1 sign(W)`` in place, for vectors; `scratch`, shaped alike, is overwritten."""
        if self.l2:
            backend.add_scaled(weights, self.l2, gradient, scratch)
        if self.l1:
            backend.xp.sign(weights, out=scratch)
            backend.xp.multiply(scratch, self.l1, out=scratch)
            backend.xp.add(gradient, scratch, out=gradient)
