"""Activations: h and h' against their formulas and against central differences."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import Activation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from gpumlp.nn.activations import ACTIVATIONS, get_activation

# For a new activation, add a row: the object, h(s), h'(s), its default initializer, and whether `out` may be `s`.
TABLE = [
    (Identity(), lambda s: s, lambda s: np.ones_like(s), "glorot", True),
    (ReLU(), lambda s: np.where(s > 0, s, 0), lambda s: np.where(s > 0, 1.0, 0), "he", True),
    (LeakyReLU(), lambda s: np.where(s > 0, s, s / 100), lambda s: np.where(s > 0, 1.0, 0.01), "he", False),
    (LeakyReLU(0.3), lambda s: np.where(s > 0, s, 0.3 * s), lambda s: np.where(s > 0, 1.0, 0.3), "he", False),
    (Tanh(), lambda s: 1 - 2 / (np.exp(2 * s) + 1), lambda s: 1 / np.cosh(s) ** 2, "glorot", True),
    (
        Sigmoid(),
        lambda s: 1 / (1 + np.exp(-s)),
        lambda s: np.exp(-s) / (1 + np.exp(-s)) ** 2,
        "glorot",
        True,
    ),
]
EVERY = pytest.mark.parametrize(
    ("h", "value", "slope", "initializer", "in_place"), TABLE, ids=lambda x: str(x)[:12]
)
S = np.array([[-6.0, -2.5, -0.7, -1e-3], [1e-3, 0.7, 2.5, 6.0]])


def test_the_table_has_every_activation() -> None:
    assert {type(row[0]) for row in TABLE} == set(ACTIVATIONS.values())


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value(h: Activation, value, slope, initializer, in_place, dtype: str) -> None:
    s = S.astype(dtype)
    before = s.copy()
    a = h(s)
    assert a.dtype == dtype
    assert a.shape == s.shape
    # An absolute tolerance, because of cancellation near 0.
    np.testing.assert_allclose(a, value(S), rtol=0, atol=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_array_equal(s, before)  # a call keeps its argument


@EVERY
def test_derivative_against_the_formula(h: Activation, value, slope, initializer, in_place) -> None:
    np.testing.assert_allclose(h.derivative(S), slope(S), rtol=0, atol=1e-14)


@EVERY
def test_derivative_against_central_differences(h: Activation, value, slope, initializer, in_place) -> None:
    step = 1e-5
    np.testing.assert_allclose(h.derivative(S), (h(S + step) - h(S - step)) / (2 * step), rtol=1e-6, atol=1e-9)


@EVERY
def test_forward_writes_out(h: Activation, value, slope, initializer, in_place) -> None:
    out = np.full_like(S, np.nan)
    h.forward(np, S.copy(), out)
    np.testing.assert_array_equal(out, h(S))
    if in_place:
        s = S.copy()
        h.forward(np, s, s)
        np.testing.assert_array_equal(s, h(S))


@EVERY
def test_backward_multiplies_delta_by_the_derivative(h: Activation, value, slope, initializer, in_place) -> None:
    upper = np.random.default_rng(0).normal(size=S.shape)
    delta = upper.copy()
    h.backward(np, h(S), delta)
    np.testing.assert_allclose(delta, upper * slope(S), rtol=0, atol=1e-14)


@EVERY
def test_default_initializer_of_each_activation(h: Activation, value, slope, initializer, in_place) -> None:
    assert h.initializer == initializer


def test_relu_at_zero_takes_the_derivative_0() -> None:
    assert ReLU().derivative(np.array([0.0, -0.0])).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("h", "low"), [(Sigmoid(), 0), (Tanh(), -1)])
def test_saturated_units_do_not_overflow(h: Activation, low: int, dtype: str) -> None:
    s = np.array([-1e30, -1e4, 1e4, 1e30], dtype=dtype)
    with np.errstate(all="raise"):
        assert h(s).tolist() == [low, low, 1, 1]
        assert h.derivative(s).tolist() == [0, 0, 0, 0]


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
        ValueError, match="one of relu, leaky_relu, tanh, sigmoid, identity, or an Activation, got 'swish'"
    ):
        get_activation("swish")


@pytest.mark.parametrize("slope", [0, 1, -0.1, float("nan")])
def test_leaky_relu_refuses_slopes_outside_0_to_1(slope: float) -> None:
    with pytest.raises(ValueError, match="negative_slope is expected to be a number above 0 and below 1"):
        LeakyReLU(slope)
