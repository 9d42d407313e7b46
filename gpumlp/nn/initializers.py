"""Initial weights: normal, uniform or orthogonal, at a scale that keeps signals and gradients at one size.

Weights are drawn on the host in float64, so that a seed gives the same weights on every device. Biases are 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..words import shown
from .activations import Activation
from .hyperparameters import flag, number, set_number


class Initializer(Protocol):
    """An object that gives the standard deviation of a layer's initial weights."""

    def std(self, in_features: int, out_features: int) -> float:
        """Standard deviation of the weights of an ``(in_features, out_features)`` layer."""


@dataclass(frozen=True)
class Normal:
    """Var W = scale^2, regardless of the layer."""

    scale: float = 0.01

    def __post_init__(self) -> None:
        set_number(self, "scale", 0)

    def std(self, in_features: int, out_features: int) -> float:
        return self.scale


@dataclass(frozen=True)
class Glorot:
    """Var W = 2 / (in + out), for tanh and the sigmoid.

    Args:
        uniform: draw from ``-sqrt(6 / (in + out))`` to ``sqrt(6 / (in + out))`` instead of from a normal
            distribution; the variance is the same.

    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010.

    >>> round(Glorot().std(784, 128) ** 2, 8)
    0.00219298
    """

    uniform: bool = False

    def __post_init__(self) -> None:
        flag("uniform", self.uniform)

    def std(self, in_features: int, out_features: int) -> float:
        return math.sqrt(2 / (in_features + out_features))


@dataclass(frozen=True)
class He:
    """Var W = 2 / in, for the ReLUs and functions like them, which pass about half of the signal.

    Args:
        uniform: draw from ``-sqrt(6 / in)`` to ``sqrt(6 / in)`` instead of from a normal distribution; the
            variance is the same.

    K. He et al., "Delving deep into rectifiers", ICCV 2015.

    >>> round(He().std(784, 128) ** 2, 8)
    0.00255102
    """

    uniform: bool = False

    def __post_init__(self) -> None:
        flag("uniform", self.uniform)

    def std(self, in_features: int, out_features: int) -> float:
        return math.sqrt(2 / in_features)


@dataclass(frozen=True)
class Orthogonal:
    """Orthonormal columns, or rows if a layer has more outputs than inputs, times `gain`: W keeps lengths.

    Args:
        gain: the length of each column (or row). The name ``"orthogonal"`` takes 1 for tanh and the sigmoid,
            and sqrt(2) for the others, which pass about half of the signal.

    A. M. Saxe, J. L. McClelland and S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks", ICLR 2014. Drawn uniformly, as in F. Mezzadri, "How to generate random matrices from
    the classical compact groups", Notices of the AMS 54(5), 2007.

    >>> w = draw_weights(Orthogonal(), 5, 3, np.random.default_rng(0))
    >>> np.allclose(w.T @ w, np.eye(3))
    True
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        set_number(self, "gain", 0)

    def std(self, in_features: int, out_features: int) -> float:
        return self.gain / math.sqrt(max(in_features, out_features))


INITIALIZERS = ("auto", "he", "he_uniform", "glorot", "glorot_uniform", "orthogonal", "normal")


def get_initializer(initializer: str | Initializer, activation: Activation) -> Initializer:
    """Return the initializer with this name; an object with a `std` method is returned unchanged.

    Args:
        initializer: one of `INITIALIZERS`; ``"auto"`` selects by the activation.
        activation: of the hidden layers.

    Raises:
        ValueError: the name is unknown.
    """
    if callable(getattr(initializer, "std", None)) and not isinstance(initializer, type):
        return initializer  # type: ignore[return-value]
    name = activation.initializer if initializer == "auto" else initializer
    if name in ("he", "he_uniform"):
        return He(uniform=name == "he_uniform")
    if name in ("glorot", "glorot_uniform"):
        return Glorot(uniform=name == "glorot_uniform")
    if name == "orthogonal":
        return Orthogonal(math.sqrt(2) if activation.initializer == "he" else 1.0)
    if name == "normal":
        return Normal()
    raise ValueError(
        f"initializer is expected to be one of {', '.join(INITIALIZERS)}, or an object with a method "
        f"std(in_features, out_features), got {shown(initializer)}"
    )


def draw_weights(
    initializer: Initializer, in_features: int, out_features: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw initial weights ``(in_features, out_features)`` on the host, float64."""
    shape = (in_features, out_features)
    std = number(f"the standard deviation that {shown(initializer)} gives", initializer.std(*shape), 0)
    if isinstance(initializer, (Glorot, He)) and initializer.uniform:
        bound = math.sqrt(3) * std  # the variance of a uniform distribution on [-c, c] is c^2 / 3
        return rng.uniform(-bound, bound, shape)
    if isinstance(initializer, Orthogonal):
        q, r = np.linalg.qr(rng.normal(size=(max(shape), min(shape))))
        q *= initializer.gain * np.copysign(1.0, np.diag(r))  # without the signs the distribution is not uniform
        return q if in_features >= out_features else q.T
    return rng.normal(0.0, std, shape)
