"""Optimizers against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpumlp import SGD, Adam
from gpumlp.nn import Optimizer

GRADIENTS = [0.5, -0.2, 1.0]

# theta after each step, from theta = 1 with these gradients and eta = 0.1
SGD_TABLE = [
    # 1 - 0.05;  0.95 + 0.02;  0.97 - 0.1
    (SGD(0.1), [0.95, 0.97, 0.87]),
    # v = 0.5, 0.9 * 0.5 - 0.2 = 0.25, 0.9 * 0.25 + 1 = 1.225
    # 1 - 0.05;  0.95 - 0.025;  0.925 - 0.1225
    (SGD(0.1, momentum=0.9), [0.95, 0.925, 0.8025]),
    # the same v; g + 0.9 v = 0.5 + 0.45 = 0.95, -0.2 + 0.225 = 0.025, 1 + 1.1025 = 2.1025
    # 1 - 0.095;  0.905 - 0.0025;  0.9025 - 0.21025
    (SGD(0.1, momentum=0.9, nesterov=True), [0.905, 0.9025, 0.69225]),
]
EVERY = pytest.mark.parametrize("optimizer", [row[0] for row in SGD_TABLE] + [Adam(0.1)], ids=str)


def run(optimizer: Optimizer, gradients: list[float], learning_rate: float) -> list[float]:
    theta = np.array([1.0])
    state = optimizer.init(theta)
    thetas = []
    for gradient in gradients:
        optimizer.update(np, theta, np.array([gradient]), state, learning_rate)
        thetas.append(float(theta[0]))
    assert state.steps == len(gradients)
    return thetas


@pytest.mark.parametrize(("optimizer", "expected"), SGD_TABLE, ids=str)
def test_sgd(optimizer: SGD, expected: list[float]) -> None:
    np.testing.assert_allclose(run(optimizer, GRADIENTS, 0.1), expected, rtol=1e-14)


def test_adam() -> None:
    """beta1 = 1/2, beta2 = 3/4 and epsilon = 1/2 give short numbers in which every term is visible.

    g =  0.5:  m = 0.25    v = 0.0625     m^ = 0.25 / 0.5 = 0.5         v^ = 0.0625 / 0.25 = 0.25
    g = -0.5:  m = -0.125  v = 0.109375   m^ = -0.125 / 0.75 = -1/6     v^ = 0.109375 / 0.4375 = 0.25
    g =  0:    m = -0.0625 v = 0.08203125 m^ = -0.0625 / 0.875 = -1/14  v^ = 0.08203125 / 0.578125 = 21/148
    """
    expected = [
        0.95,  # 1 - 0.1 * 0.5 / (0.5 + 0.5)
        0.966666666666667,  # 0.95 + 0.1 / 6 / (0.5 + 0.5)
        0.974814238336727,  # 0.96666667 + 0.1 / 14 / (sqrt(21 / 148) + 0.5), the root being 0.37668540
    ]
    found = run(Adam(0.1, beta1=0.5, beta2=0.75, epsilon=0.5), [0.5, -0.5, 0.0], 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_adam_remembers_the_means_of_g_and_of_its_square() -> None:
    theta, adam = np.array([1.0]), Adam(beta1=0.5, beta2=0.75)
    state = adam.init(theta)
    for gradient in (0.5, -0.5):
        adam.update(np, theta, np.array([gradient]), state, 0.1)
    assert state.buffers["mean"].tolist() == [-0.125]
    assert state.buffers["mean_square"].tolist() == [0.109375]


@pytest.mark.parametrize("gradient", [1e-3, -1e3])
def test_adam_first_step_has_the_size_of_the_learning_rate(gradient: float) -> None:
    # m^ = g and v^ = g^2, so the step is eta g / (|g| + 1e-8)
    (theta,) = run(Adam(), [gradient], 0.001)
    assert 1 - theta == pytest.approx(0.001 * gradient / (abs(gradient) + 1e-8), rel=1e-12)


@EVERY
def test_the_learning_rate_of_the_step_is_used_instead_of_the_initial_one(optimizer: Optimizer) -> None:
    whole, half = run(optimizer, [0.5], 0.1), run(optimizer, [0.5], 0.05)
    assert 1 - half[0] == pytest.approx((1 - whole[0]) / 2, rel=1e-12)


@EVERY
def test_the_gradient_is_kept(optimizer: Optimizer) -> None:
    theta, gradient = np.array([1.0, -2.0]), np.array([0.5, 0.25])
    state = optimizer.init(theta)
    for _ in range(2):
        optimizer.update(np, theta, gradient, state, 0.1)
        assert gradient.tolist() == [0.5, 0.25]


@EVERY
def test_the_state_does_not_share_memory_with_the_gradient(optimizer: Optimizer) -> None:
    theta, gradient = np.array([1.0]), np.empty(1)
    state = optimizer.init(theta)
    for value, expected in zip(GRADIENTS, run(optimizer, GRADIENTS, 0.1), strict=True):
        gradient[:] = value
        optimizer.update(np, theta, gradient, state, 0.1)
        assert theta[0] == expected
        gradient[:] = np.nan


@EVERY
def test_one_optimizer_can_train_two_networks(optimizer: Optimizer) -> None:
    thetas = [np.array([1.0]), np.array([1.0])]
    states = [optimizer.init(theta) for theta in thetas]
    for gradient in GRADIENTS:
        optimizer.update(np, thetas[0], np.array([gradient]), states[0], 0.1)
    optimizer.update(np, thetas[1], np.array([GRADIENTS[0]]), states[1], 0.1)
    assert thetas[0][0] == run(optimizer, GRADIENTS, 0.1)[-1]
    assert thetas[1][0] == run(optimizer, GRADIENTS[:1], 0.1)[-1]


@EVERY
def test_float32_stays_float32(optimizer: Optimizer) -> None:
    theta = np.ones(3, dtype=np.float32)
    state = optimizer.init(theta)
    for gradient in GRADIENTS:
        optimizer.update(np, theta, np.full(3, gradient, dtype=np.float32), state, 0.1)
    assert {array.dtype.name for array in (theta, state.scratch, *state.buffers.values())} == {"float32"}
    np.testing.assert_allclose(theta, run(optimizer, GRADIENTS, 0.1)[-1], rtol=1e-6)


@EVERY
def test_a_parameter_without_a_gradient_does_not_change(optimizer: Optimizer) -> None:
    """So the padding of the parameters stays 0: 0 / (0 + epsilon) = 0."""
    assert run(optimizer, [0.0, 0.0], 0.1) == [1, 1]


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [(SGD(0.1), []), (SGD(0.1, momentum=0.9), ["velocity"]), (Adam(), ["mean", "mean_square"])],
    ids=str,
)
def test_the_state_starts_at_zero_and_has_only_the_needed_buffers(optimizer: Optimizer, names: list[str]) -> None:
    state = optimizer.init(np.ones(3))
    assert list(state.buffers) == names
    assert all(buffer.tolist() == [0, 0, 0] for buffer in state.buffers.values())
    assert state.steps == 0


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, "learning_rate", value) for kind in (SGD, Adam) for value in (0, -0.1, math.nan)]
    + [(SGD, "momentum", value) for value in (1, -0.1, math.nan)]
    + [(Adam, name, value) for name in ("beta1", "beta2") for value in (1, -0.1, math.nan)]
    + [(Adam, "epsilon", value) for value in (0, -1e-8)],
)
def test_a_value_out_of_range_is_named(kind: type[Optimizer], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is expected to be .*, got {value}"):
        kind(**{name: value})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov is expected to be False if momentum is 0"):
        SGD(0.1, nesterov=True)
