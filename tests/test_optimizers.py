"""Optimizers against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from gpumlp import SGD, Adam, AdamW, Optimizer, OptimizerState, Penalty, RMSprop
from gpumlp.backends import reference_backend
from gpumlp.nn.optimizers import checked_optimizer

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
WITHOUT_DECAY = [*(row[0] for row in SGD_TABLE), Adam(0.1), RMSprop(0.1), RMSprop(0.1, momentum=0.9)]
EVERY = pytest.mark.parametrize("optimizer", [*WITHOUT_DECAY, AdamW(0.1)], ids=str)


def step(
    optimizer: Optimizer,
    theta: np.ndarray,
    gradient: np.ndarray,
    state: OptimizerState,
    learning_rate: float = 0.1,
) -> None:
    reference_backend(np).update(optimizer, Penalty(), theta, gradient, slice(None), state, learning_rate)


def run(optimizer: Optimizer, gradients: list[float], learning_rate: float, start: float = 1.0) -> list[float]:
    theta = np.array([start])
    state = optimizer.init(theta)
    thetas = []
    for gradient in gradients:
        step(optimizer, theta, np.array([gradient]), state, learning_rate)
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


def test_adamw() -> None:
    """The steps of `test_adam`, each after theta has lost 0.1 * 0.5 of itself."""
    expected = [
        0.9,  # 0.95 * 1 - 0.05
        0.871666666666667,  # 0.95 * 0.9 + 0.1 / 6
        0.836230905003394,  # 0.95 * 0.87166667 + 0.00814757
    ]
    found = run(AdamW(0.1, beta1=0.5, beta2=0.75, epsilon=0.5, weight_decay=0.5), [0.5, -0.5, 0.0], 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_adamw_decays_the_weights_only() -> None:
    theta, adamw = np.array([1.0, -2.0, 3.0]), AdamW(weight_decay=0.5)
    state = adamw.init(theta)
    state.weights = slice(0, 2)
    step(adamw, theta, np.zeros(3), state)
    np.testing.assert_allclose(theta, [0.95, -1.9, 3], rtol=1e-15)


@pytest.mark.parametrize(
    ("momentum", "expected"),
    [
        (0.0, [0.9, 0.95, 0.9]),
        (0.25, [0.9, 0.925, 0.88125]),  # u = 1, 0.25 - 0.5 = -0.25, -0.0625 + 0.5 = 0.4375
    ],
)
def test_rmsprop(momentum: float, expected: list[float]) -> None:
    """decay = 3/4 and epsilon = 1/2: v = 0.25 in every step, so g / (sqrt(v) + 1/2) = g."""
    found = run(RMSprop(0.1, decay=0.75, epsilon=0.5, momentum=momentum), [1.0, -0.5, 0.5], 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_adam_remembers_the_means_of_g_and_of_its_square() -> None:
    theta, adam = np.array([1.0]), Adam(beta1=0.5, beta2=0.75)
    state = adam.init(theta)
    for gradient in (0.5, -0.5):
        step(adam, theta, np.array([gradient]), state)
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
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_may_be_arrays_without_dimensions(optimizer: Optimizer, dtype: str) -> None:
    """As in a captured graph, which reads them from the device."""
    thetas, gradient = np.full((2, 3), [1.0, -2.0, 0.0], dtype), np.array([0.3, -0.1, 0.2], dtype)
    states = [optimizer.init(theta) for theta in thetas]
    for steps in (1, 2, 3):
        factors = optimizer.step_factors(steps, 0.1)
        assert {type(factor) for factor in factors} == {float}
        optimizer.update(np, thetas[0], gradient, states[0], *factors)
        optimizer.update(np, thetas[1], gradient, states[1], *(np.array(factor, dtype) for factor in factors))
    assert thetas[0].tobytes() == thetas[1].tobytes()


@EVERY
def test_the_gradient_is_kept(optimizer: Optimizer) -> None:
    theta, gradient = np.array([1.0, -2.0]), np.array([0.5, 0.25])
    state = optimizer.init(theta)
    for _ in range(2):
        step(optimizer, theta, gradient, state)
        assert gradient.tolist() == [0.5, 0.25]


@EVERY
def test_the_state_does_not_share_memory_with_the_gradient(optimizer: Optimizer) -> None:
    theta, gradient = np.array([1.0]), np.empty(1)
    state = optimizer.init(theta)
    for value, expected in zip(GRADIENTS, run(optimizer, GRADIENTS, 0.1), strict=True):
        gradient[:] = value
        step(optimizer, theta, gradient, state)
        assert theta[0] == expected
        gradient[:] = np.nan


@EVERY
def test_one_optimizer_can_train_two_networks(optimizer: Optimizer) -> None:
    thetas = [np.array([1.0]), np.array([1.0])]
    states = [optimizer.init(theta) for theta in thetas]
    for gradient in GRADIENTS:
        step(optimizer, thetas[0], np.array([gradient]), states[0])
    step(optimizer, thetas[1], np.array([GRADIENTS[0]]), states[1])
    assert thetas[0][0] == run(optimizer, GRADIENTS, 0.1)[-1]
    assert thetas[1][0] == run(optimizer, GRADIENTS[:1], 0.1)[-1]


@EVERY
def test_float32_stays_float32(optimizer: Optimizer) -> None:
    theta = np.ones(3, dtype=np.float32)
    state = optimizer.init(theta)
    for gradient in GRADIENTS:
        step(optimizer, theta, np.full(3, gradient, dtype=np.float32), state)
    assert {array.dtype.name for array in (theta, state.scratch, *state.buffers.values())} == {"float32"}
    np.testing.assert_allclose(theta, run(optimizer, GRADIENTS, 0.1)[-1], rtol=1e-6)


@pytest.mark.parametrize("optimizer", WITHOUT_DECAY, ids=str)
def test_a_parameter_without_a_gradient_does_not_change(optimizer: Optimizer) -> None:
    assert run(optimizer, [0.0, 0.0], 0.1) == [1, 1]


@EVERY
def test_the_padding_of_the_parameters_stays_0(optimizer: Optimizer) -> None:
    assert run(optimizer, [0.0, 0.0], 0.1, start=0.0) == [0, 0]  # 0 / (0 + epsilon) = 0


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        *[(SGD(0.1), []), (SGD(0.1, momentum=0.9), ["velocity"])],
        *[(Adam(), ["mean", "mean_square"]), (AdamW(), ["mean", "mean_square"])],
        *[(RMSprop(), ["mean_square"]), (RMSprop(momentum=0.9), ["mean_square", "velocity"])],
    ],
    ids=str,
)
def test_the_state_starts_at_zero_and_has_only_the_needed_buffers(optimizer: Optimizer, names: list[str]) -> None:
    state = optimizer.init(np.ones(3))
    assert list(state.buffers) == names
    assert all(buffer.tolist() == [0, 0, 0] for buffer in state.buffers.values())
    assert state.steps == 0


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, "learning_rate", value) for kind in (SGD, Adam, AdamW, RMSprop) for value in (0, -0.1, math.nan)]
    + [(kind, "momentum", value) for kind in (SGD, RMSprop) for value in (1, -0.1, math.nan)]
    + [(Adam, name, value) for name in ("beta1", "beta2") for value in (1, -0.1, math.nan)]
    + [(kind, "epsilon", value) for kind in (Adam, AdamW, RMSprop) for value in (0, -1e-8)]
    + [(AdamW, "weight_decay", value) for value in (-0.1, math.inf, math.nan)]
    + [(RMSprop, "decay", value) for value in (1, -0.1, math.nan)],
)
def test_a_value_out_of_range_is_named(kind: type[Optimizer], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is expected to be .*, got {value}"):
        kind(**{name: value})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov is expected to be False if momentum is 0"):
        SGD(0.1, nesterov=True)


# -- Optimizers of the user's ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sign(Optimizer):
    """The simplest: only the learning rate changes from step to step."""

    def update(self, xp: Any, parameters: Any, gradient: Any, state: OptimizerState, learning_rate: Any) -> None:
        xp.sign(gradient, out=state.scratch)
        xp.multiply(state.scratch, learning_rate, out=state.scratch)
        xp.subtract(parameters, state.scratch, out=parameters)


@dataclass(frozen=True)
class Averaged(Optimizer):
    """theta <- theta - eta m, with m the mean of all gradients so far: its weights change from step to step."""

    buffer_names: ClassVar[tuple[str, ...]] = ("mean",)

    def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]:
        return learning_rate, 1 / steps

    def update(self, xp: Any, parameters: Any, gradient: Any, state: Any, learning_rate: Any, share: Any) -> None:
        mean, change = state.buffers["mean"], state.scratch
        xp.subtract(gradient, mean, out=change)
        xp.multiply(change, share, out=change)
        xp.add(mean, change, out=mean)
        xp.multiply(mean, learning_rate, out=change)
        xp.subtract(parameters, change, out=parameters)


def test_an_optimizer_of_the_users() -> None:
    assert run(checked_optimizer(Sign(0.1)), GRADIENTS, 0.5) == [0.5, 1.0, 0.5]
    # means of the gradients: 0.5, 0.15, 1.3 / 3
    found = run(checked_optimizer(Averaged(0.1)), GRADIENTS, 0.1)
    np.testing.assert_allclose(found, [0.95, 0.935, 0.935 - 0.13 / 3], rtol=1e-14)


class CountsSteps(Sign):
    def update(self, xp: Any, parameters: Any, gradient: Any, state: Any, learning_rate: Any) -> None:
        state.steps += 1
        super().update(xp, parameters, gradient, state, learning_rate)


class ReadsSteps(Sign):
    def update(self, xp: Any, parameters: Any, gradient: Any, state: Any, learning_rate: Any) -> None:
        super().update(xp, parameters, gradient, state, learning_rate / math.sqrt(state.steps))


class OneNumber(Sign):
    def step_factors(self, steps: int, learning_rate: float) -> Any:
        return learning_rate / steps


class NumpyNumbers(Sign):
    def step_factors(self, steps: int, learning_rate: float) -> Any:
        return (np.sqrt(learning_rate),)


class OneTooMany(Sign):
    def step_factors(self, steps: int, learning_rate: float) -> Any:
        return learning_rate, 1.0


class OneTooFew(Averaged):
    step_factors = Optimizer.step_factors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (CountsSteps, "CountsSteps.update .* leave state.steps alone: steps are counted by the training loop"),
        (ReadsSteps, "ReadsSteps.update .* leave state.steps alone: .* comes from step_factors"),
        (OneNumber, r"OneNumber.step_factors .* a tuple of Python floats, got 0\.1"),
        (NumpyNumbers, "NumpyNumbers.step_factors .* a tuple of Python floats, got "),
        (OneTooMany, "OneTooMany.update .* function of xp, parameters, gradient, state, factor 1, factor 2: "),
        (OneTooFew, "OneTooFew.update .* function of xp, parameters, gradient, state, learning_rate: missing"),
    ],
)
def test_an_optimizer_that_breaks_the_rules_is_refused(kind: type[Optimizer], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        checked_optimizer(kind(0.1))


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, RMSprop])
def test_the_factors_of_many_steps_are_those_of_each(kind: type[Optimizer]) -> None:
    class Own(kind):  # type: ignore[misc, valid-type]
        def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]:
            return super().step_factors(steps, learning_rate / steps)

    rates = [0.1, 0.05, 0.2]
    settings = [{}, {"correct_epsilon": False}] if issubclass(kind, Adam) else [{}]
    for optimizer in (kind(**setting) for kind in (kind, Own) for setting in settings):
        for first in (1, 8, 70_000):
            each = [optimizer.step_factors(number, rate) for number, rate in enumerate(rates, first)]
            assert np.array_equal(optimizer.factors_of_steps(first, rates), each)
