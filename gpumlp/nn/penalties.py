"""Weight penalties: R(W) added to the loss to keep the weights small. Biases are never penalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..backends import Array, array_namespace
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

    def add_gradient(self, xp: Any, weights: Array, gradient: Array, scratch: Array) -> None:
        """``gradient += l2 W + l1 sign(W)`` in place; `scratch`, of the same shape, is overwritten."""
        if self.l2:
            xp.multiply(weights, self.l2, out=scratch)
            xp.add(gradient, scratch, out=gradient)
        if self.l1:
            xp.sign(weights, out=scratch)
            xp.multiply(scratch, self.l1, out=scratch)
            xp.add(gradient, scratch, out=gradient)
