"""Activations: h and h' against their formulas and against central differences."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpumlp import (
    ELU,
    GELU,
    Activation,
    CudaActivation,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from gpumlp.nn.activations import ACTIVATIONS, get_activation
from tests.host_kernels import compile_for_the_host


def logistic(s: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-s))


def gelu_slope(s: np.ndarray) -> np.ndarray:
    u, du = np.sqrt(2 / np.pi) * (s + 0.044715 * s**3), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * s**2)
    return (1 + np.tanh(u)) / 2 + s / np.cosh(u) ** 2 * du / 2


class Row(NamedTuple):
    """An activation with its h(s) and h'(s), the name and arguments of PyTorch's, and whether `out` may be `s`."""

    h: Activation
    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    torch: str
    options: dict[str, Any]
    in_place: bool = False


# For a new activation, add a row.
TABLE = [
    Row(Identity(), lambda s: s, np.ones_like, "Identity", {}, in_place=True),
    Row(ReLU(), lambda s: np.where(s > 0, s, 0), lambda s: np.where(s > 0, 1.0, 0), "ReLU", {}, in_place=True),
    *(
        Row(
            LeakyReLU(c),
            lambda s, c=c: np.where(s > 0, s, c * s),
            lambda s, c=c: np.where(s > 0, 1.0, c),
            *("LeakyReLU", {"negative_slope": c}),
        )
        for c in (0.01, 0.3)
    ),
    Row(Tanh(), lambda s: 1 - 2 / (np.exp(2 * s) + 1), lambda s: 1 / np.cosh(s) ** 2, "Tanh", {}, in_place=True),
    Row(Sigmoid(), logistic, lambda s: np.exp(-s) * logistic(s) ** 2, "Sigmoid", {}, in_place=True),
    Row(
        GELU(),
        lambda s: s * (1 + np.tanh(np.sqrt(2 / np.pi) * (s + 0.044715 * s**3))) / 2,
        *(gelu_slope, "GELU", {"approximate": "tanh"}),
    ),
    Row(SiLU(), lambda s: s * logistic(s), lambda s: logistic(s) * (1 + s * logistic(-s)), "SiLU", {}),
    *(
        Row(
            ELU(alpha),
            lambda s, alpha=alpha: np.where(s > 0, s, alpha * (np.exp(s) - 1)),
            lambda s, alpha=alpha: np.where(s > 0, 1, alpha * np.exp(s)),
            *("ELU", {"alpha": alpha}),
        )
        for alpha in (1.0, 0.3)
    ),
    Row(Softplus(), lambda s: np.log(1 + np.exp(s)), logistic, "Softplus", {"threshold": 100}),
]
EVERY = pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row.h))
S = np.array([[-6.0, -2.5, -0.7, -1e-3], [1e-3, 0.7, 2.5, 6.0]])


def saved_by(h: Activation, s: np.ndarray) -> np.ndarray:
    """What the derivative is computed from."""
    return s.copy() if h.derivative_from == "input" else h(s)


def test_the_table_has_every_activation() -> None:
    assert {type(row[0]) for row in TABLE} == set(ACTIVATIONS.values())


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value(row: Row, dtype: str) -> None:
    s = S.astype(dtype)
    before = s.copy()
    a = row.h(s)
    assert a.dtype == dtype
    assert a.shape == s.shape
    # An absolute tolerance, because of cancellation near 0.
    np.testing.assert_allclose(a, row.value(S), rtol=0, atol=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_array_equal(s, before)  # a call keeps its argument


@EVERY
def test_derivative_against_central_differences(row: Row) -> None:
    step = 1e-5
    np.testing.assert_allclose(
        row.h.derivative(S), (row.h(S + step) - row.h(S - step)) / (2 * step), rtol=1e-6, atol=1e-9
    )


@EVERY
def test_forward_writes_out(row: Row) -> None:
    out = np.full_like(S, np.nan)
    row.h.forward(np, S.copy(), out)
    np.testing.assert_array_equal(out, row.h(S))
    if row.h.derivative_from == "input":
        s = S.copy()
        row.h.forward(np, s, out)
        np.testing.assert_array_equal(s, S)  # kept for the backward pass
    if row.in_place:
        s = S.copy()
        row.h.forward(np, s, s)
        np.testing.assert_array_equal(s, row.h(S))


@EVERY
def test_backward_multiplies_delta_by_the_derivative(row: Row) -> None:
    upper = np.random.default_rng(0).normal(size=S.shape)
    delta = upper.copy()
    row.h.backward(np, saved_by(row.h, S), delta)
    np.testing.assert_allclose(delta, upper * row.slope(S), rtol=0, atol=1e-14)


WIDE = np.concatenate([np.linspace(-30, 30, 6001), np.logspace(-6, 4, 41), -np.logspace(-6, 4, 41)])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    tolerance = 1e-6 if found.dtype == np.float32 else 1e-14
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@EVERY
@DTYPES
def test_value_and_derivative_of_pytorch(row: Row, dtype: str) -> None:
    """PyTorch computes in float64, on the same numbers."""
    library = pytest.importorskip("torch", reason="PyTorch is not installed")
    s = library.tensor(WIDE.astype(dtype)).double().requires_grad_()
    a = getattr(library.nn, row.torch)(**row.options)(s)
    a.sum().backward()
    assert_close(row.h(WIDE.astype(dtype)), a.detach().numpy())
    assert_close(row.h.derivative(WIDE.astype(dtype)), s.grad.numpy())


@functools.cache
def compiled_expressions(real: str) -> ctypes.CDLL:
    """The kernels ``value_I`` and ``slope_I`` of each activation of the table."""
    source = "typedef REAL real;\ntypedef long long int64;\n"
    for name, variable, expression in (
        part
        for i, (h, *_) in enumerate(TABLE)
        for part in (
            (f"value_{i}", "s", h.cuda.forward),
            (f"slope_{i}", "s" if h.derivative_from == "input" else "a", h.cuda.derivative),
        )
    ):
        source += f"""
extern "C" __global__ void {name}(const real* from, real* to, int64 count)
{{
    for (int64 i = 0; i < count; i++) {{
        real {variable} = from[i];
        (void){variable};
        to[i] = (real)({expression});
    }}
}}
"""
    return compile_for_the_host(source, {"REAL": real})


@EVERY
@DTYPES
def test_cuda_expressions(row: Row, dtype: str) -> None:
    """Compiled for the processor, they compute what the array code does."""
    assert row.h.cuda is not None
    assert row.h.cuda.derivative_from == row.h.derivative_from
    library, i = compiled_expressions({"float32": "float", "float64": "double"}[dtype]), TABLE.index(row)
    s, one = np.concatenate([WIDE, EXTREME]).astype(dtype), (ctypes.c_uint * 3)(1, 1, 1)
    for function, x, expected in (
        (library[f"run_value_{i}"], s, row.h(s)),
        (library[f"run_slope_{i}"], saved_by(row.h, s), row.h.derivative(s)),
    ):
        found = np.full_like(x, np.nan)
        function(one, one, 0, x.ctypes, found.ctypes, ctypes.c_longlong(len(x)))
        assert_close(found, expected)


EXTREME = np.array([-1e30, -1e4, -1000, -100, 0, 100, 1000, 1e4, 1e30])


@EVERY
@DTYPES
def test_nothing_overflows(row: Row, dtype: str) -> None:
    s = EXTREME.astype(dtype)
    with np.errstate(all="raise"):
        a, slopes = row.h(s), row.h.derivative(s)
    assert (np.abs(a) <= np.abs(s) + 1).all()  # and not NaN
    limits = row.h.derivative(np.array([-1e35, 1e35], dtype))
    np.testing.assert_allclose(slopes[[0, -1]], limits, atol=1e-6)
    assert (np.abs(slopes) < 1.2).all()  # the largest h' of all, that of GELU, is 1.13


def test_relu_at_zero_takes_the_derivative_0() -> None:
    assert ReLU().derivative(np.array([0.0, -0.0])).tolist() == [0, 0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_by_name(name: str) -> None:
    assert type(get_activation(name)) is ACTIVATIONS[name]
    assert get_activation(name).name == name


def test_an_activation_object_is_returned_unchanged() -> None:
    h = LeakyReLU(0.3)
    assert get_activation(h) is h
    assert repr(h) == "LeakyReLU(negative_slope=0.3)"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"one of relu, leaky_relu, tanh, .*, identity, or an Activation, got 'swish'",
    ):
        get_activation("swish")


@pytest.mark.parametrize("slope", [0, 1, -0.1, float("nan")])
def test_leaky_relu_refuses_slopes_outside_0_to_1(slope: float) -> None:
    with pytest.raises(ValueError, match="negative_slope is expected to be a number above 0 and below 1"):
        LeakyReLU(slope)


@pytest.mark.parametrize("alpha", [0, -1, float("inf")])
def test_elu_refuses_an_alpha_that_is_not_above_0(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is expected to be a number above 0"):
        ELU(alpha)


class Mish(Activation):
    """A user's: h(s) = s tanh(softplus(s)), whose derivative is computed from s."""

    name = "mish"
    derivative_from = "input"

    def forward(self, xp: Any, s: Any, out: Any) -> None:
        xp.multiply(s, xp.tanh(xp.logaddexp(s, 0)), out=out)

    def backward(self, xp: Any, s: Any, delta: Any) -> None:
        t = xp.tanh(xp.logaddexp(s, 0))
        xp.multiply(delta, t + s * (1 - t * t) / (1 + xp.exp(-s)), out=delta)


def test_an_activation_of_the_users_whose_derivative_is_from_the_input() -> None:
    h, step = Mish(), 1e-5
    assert get_activation(h) is h
    np.testing.assert_allclose(h.derivative(S), (h(S + step) - h(S - step)) / (2 * step), rtol=1e-8)


class Overwrites(Mish):
    def forward(self, xp: Any, s: Any, out: Any) -> None:
        super().forward(xp, s, out)
        xp.multiply(s, 2, out=s)


class FromElsewhere(Mish):
    derivative_from = "s"


class OtherExpression(Mish):
    cuda = CudaActivation("s", "a")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Overwrites, "Overwrites.forward is expected to keep s, from which backward computes the derivative"),
        (FromElsewhere, "FromElsewhere.derivative_from is expected to be 'output' or 'input', got 's'"),
        (
            OtherExpression,
            "OtherExpression.cuda is expected to compute the derivative from the input, as backward",
        ),
    ],
)
def test_a_wrong_derivative_from_is_named(kind: type[Activation], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        get_activation(kind())


@pytest.mark.parametrize("h", [row.h for row in TABLE], ids=repr)
def test_integers_are_taken_as_floats(h: Activation) -> None:
    integers = np.array([[-1, 0, 2]])
    for function in h, h.derivative:
        np.testing.assert_array_equal(function(integers), function(integers.astype(np.float64)))
        assert function(integers).dtype == np.float64
        assert function(integers + 1j).dtype == np.complex128 or isinstance(h, ReLU | LeakyReLU)
