r"""Activation functions h, applied to the pre-activation s of a layer: a = h(s).

Each is a class with two in-place operations, which training uses; an instance can also be called. The derivative
is always computed from the output a, so pre-activations are not stored.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..backends import Array, CudaActivation, array_namespace
from .hyperparameters import number, require_in_place
from .registry import Registry


class Activation:
    """Base class of activation functions.

    To add one, subclass, set `name` and `initializer`, and implement `forward` and `backward`. It then works on
    every device; with CUDA expressions in `cuda` it is as fast on a GPU as the built-in ones. A subclass that
    overrides `forward` or `backward` does not inherit `cuda`. To save networks with it, `register` it.

    Attributes:
        name: as in ``MLP(..., activation=name)``.
        initializer: the initial weights that ``initializer="auto"`` selects, ``"he"`` or ``"glorot"``.
        cuda: h and h' as CUDA expressions, or None.
    """

    name: ClassVar[str]
    derivative_from: ClassVar[str] = "output"
    initializer: ClassVar[str] = "glorot"
    cuda: CudaActivation | None = None

    def forward(self, xp: Any, s: Array, out: Array) -> None:
        """Write h(s) into `out`.

        Args:
            xp: the array library, ``numpy`` or ``cupy``.
            s: the pre-activation, usually ``(batch, units)``; may be overwritten.
            out: of the same shape and dtype, overwritten. May be `s` itself where the class says so.
        """
        raise NotImplementedError

    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        """``delta <- delta * h'(s)`` in place.

        Args:
            xp: the array library, ``numpy`` or ``cupy``.
            a: the output ``h(s)``, usually ``(batch, units)``; may be overwritten.
            delta: of the same shape and dtype, overwritten.
        """
        raise NotImplementedError

    def __call__(self, s: Array) -> Array:
        """h(s) as a new array of the library, shape and dtype of `s`, which is kept.

        >>> import numpy as np
        >>> ReLU()(np.array([-1.0, 0.0, 2.0]))
        array([0., 0., 2.])
        """
        xp = array_namespace(s)
        out = xp.empty_like(s)
        self.forward(xp, s.copy(), out)
        return out

    def derivative(self, s: Array) -> Array:
        """h'(s) as a new array of the library, shape and dtype of `s`, which is kept.

        >>> import numpy as np
        >>> Tanh().derivative(np.array([0.0]))
        array([1.])
        """
        slope = array_namespace(s).ones_like(s)
        self.backward(array_namespace(s), s.copy() if self.derivative_from == "input" else self(s), slope)
        return slope

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Identity(Activation):
    """h(s) = s, h'(s) = 1: the output layer, since the softmax is part of the loss. `out` may be `s`."""

    name = "identity"
    cuda = CudaActivation("s", "1", epilogue="BIAS")

    def forward(self, xp: Any, s: Array, out: Array) -> None:
        if out is not s:
            xp.copyto(out, s)

    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        pass


class ReLU(Activation):
    """h(s) = max(0, s); h'(s) = 1 for s > 0, else 0 (a subgradient at s = 0). `out` may be `s`.

    V. Nair and G. E. Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.
    """

    name = "relu"
    initializer = "he"
    cuda = CudaActivation("s <= 0 ? 0 : s", "a > 0 ? 1 : 0", epilogue="RELU_BIAS")  # keeps NaN

    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.maximum(s, 0, out=out)

    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        xp.greater(a, 0, out=a)
        xp.multiply(delta, a, out=delta)


class LeakyReLU(Activation):
    """h(s) = max(s, c s); h'(s) = 1 for s > 0, else c, with the negative slope c in (0, 1).

    A. L. Maas, A. Y. Hannun and A. Y. Ng, "Rectifier nonlinearities improve neural network acoustic
    models", ICML 2013.
    """

    name = "leaky_relu"
    initializer = "he"

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = number("negative_slope", negative_slope, 0, 1, open_low=True, open_high=True)

    @property
    def cuda(self) -> CudaActivation:  # type: ignore[override]
        slope = f"(real){self.negative_slope!r}"
        return CudaActivation(f"s > 0 ? s : {slope} * s", f"a > 0 ? 1 : {slope}")

    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.multiply(s, self.negative_slope, out=out)
        xp.maximum(s, out, out=out)

    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        xp.greater(a, 0, out=a)
        xp.maximum(a, self.negative_slope, out=a)  # h': 1 or c
        xp.multiply(delta, a, out=delta)

    def __repr__(self) -> str:
        return f"LeakyReLU(negative_slope={self.negative_slope})"


class Tanh(Activation):
    """h(s) = tanh(s) = (e^s - e^-s) / (e^s + e^-s); h'(s) = 1 - a^2. `out` may be `s`."""

    name = "tanh"
    cuda = CudaActivation("tanh(s)", "1 - a * a")

    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.tanh(s, out=out)

    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        xp.multiply(a, a, out=a)
        xp.subtract(1, a, out=a)
        xp.multiply(delta, a, out=delta)


class Sigmoid(Activation):
    """h(s) = 1 / (1 + e^-s); h'(s) = a (1 - a). `out` may be `s`.

    Computed as (1 + tanh(s / 2)) / 2, which cannot overflow.
    """

    name = "sigmoid"
    cuda = CudaActivation("(tanh(s * (real)0.5) + 1) * (real)0.5", "a * (1 - a)")

    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.multiply(s, 0.5, out=out)
        xp.tanh(out, out=out)
        xp.add(out, 1, out=out)
        xp.multiply(out, 0.5, out=out)

    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        xp.multiply(delta, a, out=delta)
        xp.subtract(1, a, out=a)
        xp.multiply(delta, a, out=delta)


def _check(rule: Activation) -> None:
    s, out, delta = np.array([[-1.0, 0.5]]), np.full((1, 2), np.nan), np.ones((1, 2))
    kind = type(rule).__name__
    require_in_place(f"{kind}.forward", lambda: rule.forward(np, s, out), out)
    require_in_place(f"{kind}.backward", lambda: rule.backward(np, out, delta), delta)


ACTIVATIONS = Registry(
    "activation", Activation, ("forward", "backward"), (ReLU, LeakyReLU, Tanh, Sigmoid, Identity), _check
)


def get_activation(activation: str | Activation) -> Activation:
    """Return the activation with this name; an `Activation` is returned unchanged.

    Raises:
        ValueError: the name is unknown.
        TypeError: a class of the user's is incomplete.
    """
    return ACTIVATIONS.find(activation)
