r"""Activation functions h, applied to the pre-activation s of a layer: a = h(s).

Each is a class with two in-place operations, which training uses; an instance can also be called. Where the
derivative can be computed from the output a, it is, so that pre-activations are not stored.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ..backends import Array, CudaActivation, array_namespace, stated
from ..words import shown, with_options
from .hyperparameters import number, require_in_place
from .registry import Registry

_exponentials = np.errstate(over="ignore", under="ignore")  # e^s may become infinite or 0


class Activation:
    """Base class of activation functions.

    To add one, subclass, set `name` and `initializer`, and implement `forward` and `backward`. It then works on
    every device; with CUDA expressions in `cuda` it is as fast on a GPU as the built-in ones. A subclass that
    overrides `forward` or `backward` does not inherit `cuda`. To save networks with it, `register` it.

    Attributes:
        name: as in ``MLP(..., activation=name)``.
        derivative_from: what `backward` computes h' from: ``"output"``, a, or ``"input"``, s, which training then
            keeps in an array of its own.
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
            s: the pre-activation, usually ``(batch, units)``; may be overwritten, unless `derivative_from` is
                ``"input"``.
            out: of the same shape and dtype, overwritten. May be `s` itself where the class says so.
        """
        raise NotImplementedError

    def backward(self, xp: Any, saved: Array, delta: Array) -> None:
        """``delta <- delta * h'(s)`` in place.

        Args:
            xp: the array library, ``numpy`` or ``cupy``.
            saved: what `derivative_from` says, the output ``h(s)`` or the input s, usually ``(batch, units)``; may
                be overwritten.
            delta: of the same shape and dtype, overwritten.
        """
        raise NotImplementedError

    def __call__(self, s: Array) -> Array:
        """h(s) as a new array of the library, shape and dtype of `s`, which is kept; float64 for integers.

        >>> import numpy as np
        >>> ReLU()(np.array([-1.0, 0.0, 2.0]))
        array([0., 0., 2.])
        """
        xp, s = array_namespace(s), _new_floats(s)
        out = xp.empty_like(s)
        self.forward(xp, s, out)
        return out

    def derivative(self, s: Array) -> Array:
        """h'(s) as a new array of the library, shape and dtype of `s`, which is kept; float64 for integers.

        >>> import numpy as np
        >>> Tanh().derivative(np.array([0.0]))
        array([1.])
        """
        xp = array_namespace(s)
        saved = _new_floats(s) if self.derivative_from == "input" else self(s)
        slope = xp.ones_like(saved)
        self.backward(xp, saved, slope)
        return slope

    def __repr__(self) -> str:
        return with_options(self, vars(self))


def _new_floats(s: Array) -> Array:
    return s.astype("float64" if s.dtype.kind in "biu" else s.dtype)


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


class ELU(Activation):
    """h(s) = s for s > 0, else alpha (e^s - 1), with alpha > 0; h'(s) = 1 for s > 0, else a + alpha.

    The sum a + alpha is accurate to the rounding of alpha.

    D.-A. Clevert, T. Unterthiner and S. Hochreiter, "Fast and accurate deep network learning by exponential linear
    units (ELUs)", ICLR 2016.
    """

    name = "elu"
    initializer = "he"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = number("alpha", alpha, 0, open_low=True)

    @property
    def cuda(self) -> CudaActivation:  # type: ignore[override]
        alpha = f"(real){self.alpha!r}"
        return CudaActivation(f"s > 0 ? s : {alpha} * expm1(s)", f"a > 0 ? 1 : a + {alpha}")

    @_exponentials
    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.minimum(s, 0, out=out)
        xp.expm1(out, out=out)
        xp.multiply(out, self.alpha, out=out)
        xp.maximum(s, 0, out=s)
        xp.add(out, s, out=out)

    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        slope = xp.empty_like(a)
        xp.greater(a, 0, out=slope)
        xp.multiply(slope, 1 - self.alpha, out=slope)
        xp.minimum(a, 0, out=a)
        xp.add(slope, a, out=slope)
        xp.add(slope, self.alpha, out=slope)
        xp.multiply(delta, slope, out=delta)


class Softplus(Activation):
    """h(s) = log(1 + e^s); h'(s) = 1 / (1 + e^-s) = 1 - e^-a.

    Computed as max(0, s) + log(1 + e^-|s|), which cannot overflow. The derivative from a has full relative
    accuracy.

    C. Dugas, Y. Bengio, F. Belisle, C. Nadeau and R. Garcia, "Incorporating second-order functional knowledge for
    better option pricing", NIPS 2000.
    """

    name = "softplus"
    initializer = "he"
    cuda = CudaActivation("fmax(s, (real)0) + log1p(exp(-fabs(s)))", "-expm1(-a)")

    @_exponentials
    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.abs(s, out=out)
        xp.negative(out, out=out)
        xp.exp(out, out=out)
        xp.log1p(out, out=out)
        xp.maximum(s, 0, out=s)
        xp.add(out, s, out=out)

    @_exponentials
    def backward(self, xp: Any, a: Array, delta: Array) -> None:
        xp.negative(a, out=a)
        xp.expm1(a, out=a)
        xp.negative(a, out=a)
        xp.multiply(delta, a, out=delta)


class SiLU(Activation):
    """h(s) = s g with g = 1 / (1 + e^-s), also called swish; h'(s) = g (1 + s (1 - g)), computed from s.

    S. Elfwing, E. Uchibe and K. Doya, "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning", Neural Networks 107, 2018.
    """

    name = "silu"
    derivative_from = "input"
    initializer = "he"
    # 1 - g = 1 / (1 + e^s)
    cuda = CudaActivation("s / (1 + exp(-s))", "(1 + s / (1 + exp(s))) / (1 + exp(-s))", derivative_from="input")

    @_exponentials
    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.negative(s, out=out)
        _gate(xp, s, out)

    def backward(self, xp: Any, s: Array, delta: Array) -> None:
        xp.clip(s, -60, 60, out=s)  # beyond, h' is 0 and 1 to 1e-23, and e^-s could overflow
        _gate_backward(xp, xp.negative(s), s, delta)


class GELU(Activation):
    """h(s) = s g with g = (1 + tanh(z / 2)) / 2 = 1 / (1 + e^-z), z = sqrt(8 / pi) (s + 0.044715 s^3); h'(s) is
    g (1 + s z' (1 - g)), computed from s.

    An approximation, with an error below 5e-4, of s times the probability that a standard normal variable is below
    s; the one that PyTorch calls ``approximate="tanh"``.

    D. Hendrycks and K. Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415, 2016.
    """

    name = "gelu"
    derivative_from = "input"
    initializer = "he"
    linear, cubic = math.sqrt(8 / math.pi), 0.044715 * math.sqrt(8 / math.pi)  # z = linear s + cubic s^3
    _z = f"s * ((real){linear!r} + (real){cubic!r} * s * s)"
    _sz = f"s * ((real){linear!r} + (real){3 * cubic!r} * s * s)"  # s z'
    cuda = CudaActivation(
        f"s / (1 + exp(-({_z})))",
        f"s > 9 ? 1 : s < -9 ? 0 : (1 + {_sz} / (1 + exp({_z}))) / (1 + exp(-({_z})))",
        derivative_from="input",
    )

    @_exponentials
    def forward(self, xp: Any, s: Array, out: Array) -> None:
        xp.multiply(s, s, out=out)
        xp.multiply(out, -self.cubic, out=out)
        xp.subtract(out, self.linear, out=out)
        xp.multiply(out, s, out=out)  # -z
        _gate(xp, s, out)

    def backward(self, xp: Any, s: Array, delta: Array) -> None:
        xp.clip(s, -9, 9, out=s)  # beyond, h' is 0 and 1 to 1e-25, and e^-z could overflow
        z = xp.multiply(s, s)
        xp.multiply(z, 3 * self.cubic, out=z)
        xp.add(z, 3 * self.linear, out=z)
        xp.multiply(z, s, out=z)  # 3 z
        xp.multiply(s, 2 * self.linear, out=s)
        xp.subtract(z, s, out=s)  # s z' = 3 z - 2 linear s
        xp.multiply(z, -1 / 3, out=z)
        _gate_backward(xp, z, s, delta)


def _gate(xp: Any, s: Array, out: Array) -> None:
    """``out <- s g`` with g = 1 / (1 + e^-z), where `out` contains -z."""
    xp.exp(out, out=out)
    xp.add(out, 1, out=out)
    xp.divide(s, out, out=out)


def _gate_backward(xp: Any, minus_z: Array, sz: Array, delta: Array) -> None:
    """``delta <- delta g (1 + s z' (1 - g))`` with g = 1 / (1 + e^-z); overwrites -z and s z'.

    With e = e^-z this is (1 + e (1 + s z')) / (1 + e)^2: 1 - g would lose digits.
    """
    xp.exp(minus_z, out=minus_z)
    xp.add(sz, 1, out=sz)
    xp.multiply(sz, minus_z, out=sz)
    xp.add(sz, 1, out=sz)
    xp.add(minus_z, 1, out=minus_z)
    xp.divide(sz, minus_z, out=sz)
    xp.divide(delta, minus_z, out=delta)
    xp.multiply(delta, sz, out=delta)


def _check(rule: Activation) -> None:
    kind, kept = type(rule).__name__, rule.derivative_from == "input"
    if rule.derivative_from not in ("output", "input"):
        raise TypeError(
            f"{kind}.derivative_from is expected to be 'output' or 'input', got {shown(rule.derivative_from)}"
        )
    cuda = stated(rule, "cuda", "forward", "backward")
    if cuda is not None and cuda.derivative_from != rule.derivative_from:
        raise TypeError(
            f"{kind}.cuda is expected to compute the derivative from the {rule.derivative_from}, as backward "
            f"does: CudaActivation(..., derivative_from={rule.derivative_from!r})"
        )
    example = np.array([[-1.0, 0.5]])
    s, out, delta = example.copy(), np.full((1, 2), np.nan), np.ones((1, 2))
    require_in_place(f"{kind}.forward", lambda: rule.forward(np, s, out), out)
    if kept and (s != example).any():
        raise TypeError(f"{kind}.forward is expected to keep s, from which backward computes the derivative")
    require_in_place(f"{kind}.backward", lambda: rule.backward(np, s if kept else out, delta), delta)


ACTIVATIONS = Registry(
    "activation",
    Activation,
    ("forward", "backward"),
    (ReLU, LeakyReLU, Tanh, Sigmoid, GELU, SiLU, ELU, Softplus, Identity),
    _check,
)


def get_activation(activation: str | Activation) -> Activation:
    """Return the activation with this name; an `Activation` is returned unchanged.

    Raises:
        ValueError: the name is unknown.
        TypeError: a class of the user's is incomplete.
    """
    return ACTIVATIONS.find(activation)
