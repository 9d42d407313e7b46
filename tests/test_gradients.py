"""Every gradient against central differences, (C(x + h) - C(x - h)) / 2h, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gpumlp import MLP, SGD, Dense, Penalty, SoftmaxCrossEntropy
from gpumlp.backends import reference_backend
from gpumlp.nn.activations import ACTIVATIONS
from gpumlp.nn.layers import Cache
from gpumlp.nn.network import Workspace

BATCH, CLASSES = 5, 3
HIDDEN = [name for name in ACTIVATIONS if name != "identity"]
SIZES = [[6, 3], [6, 5, 3], [6, 5, 4, 3], [6, 5, 4, 5, 3]]


def central_differences(cost: Callable[[], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """dC/dx, where `cost` reads `x`, whose elements are changed and restored one at a time."""
    slope = np.empty_like(x)
    for index in np.ndindex(x.shape):
        before = x[index]
        x[index] = before + step
        above = cost()
        x[index] = before - step
        slope[index] = (above - cost()) / (2 * step)
        x[index] = before
    return slope


def assert_same_gradient(found: np.ndarray, expected: np.ndarray) -> None:
    """The largest error relative to the largest element of the gradient is below 1e-6."""
    scale = np.abs(expected).max()
    assert scale > 1e-6, "the gradient is zero: nothing is tested"
    assert np.abs(found - expected).max() / scale < 1e-6


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """-mean_i log softmax(s_i)[y_i], by the formula."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch", [1, BATCH])
def test_dense(batch: int, activation: str) -> None:
    """``delta * h'`` is dC/ds, from which dC/dW, dC/db and dC/dx follow."""
    rng = np.random.default_rng(0)
    layer = Dense(4, 3, activation, dtype="float64", seed=1)
    layer.bias[:] = rng.normal(size=3)
    x, upper = rng.normal(size=(batch, 4)), rng.normal(size=(batch, 3))
    input_delta = np.full_like(x, np.nan)
    cache = layer.new_cache(lambda: np.full_like(upper, np.nan), Cache(x, None), training=True)
    layer.forward(x, cache)
    cache.delta[:] = upper
    layer.backward(x, cache, input_delta=input_delta)

    def cost() -> float:  # dC/da is `upper`
        return float((upper * layer(x)).sum())

    assert_same_gradient(layer.weight_gradient, central_differences(cost, layer.weight))
    assert_same_gradient(layer.bias_gradient, central_differences(cost, layer.bias))
    assert_same_gradient(input_delta, central_differences(cost, x))


@pytest.mark.parametrize("batch", [1, BATCH])
def test_softmax_cross_entropy(batch: int) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(batch, CLASSES)), rng.integers(0, CLASSES, batch)
    expected = central_differences(lambda: cross_entropy(logits, labels), logits)
    assert_same_gradient(SoftmaxCrossEntropy().gradient(logits, labels), expected)


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_softmax_cross_entropy_at_large_logits(offset: float, batch: int) -> None:
    """Steps of 1e-5 on a cost of order 1: the common part of the logits cancels."""
    rng = np.random.default_rng(0)
    logits, labels = offset + rng.normal(size=(batch, CLASSES)), rng.integers(0, CLASSES, batch)
    loss = SoftmaxCrossEntropy()
    expected = central_differences(lambda: loss(logits, labels), logits)
    # At 1e4 a logit is rounded to 2e-12, so the difference quotient is accurate to about 1e-7.
    assert np.abs(loss.gradient(logits, labels) - expected).max() < 1e-6


def test_softmax_cross_entropy_where_one_logit_wins_by_1e4() -> None:
    logits = np.array([[1e4, 0, 0], [0, 1e4, 0], [0, 0, -1e4]])
    gradient = SoftmaxCrossEntropy().gradient(logits, np.array([0, 0, 2])) * 3
    # softmax - onehot: certain and correct; certain and wrong; two equal wrong classes
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-1, 1, 0], [0.5, 0.5, -1]], rtol=0, atol=1e-15)


@pytest.mark.parametrize("penalty", [Penalty(l2=0.3), Penalty(l1=0.2), Penalty(l2=0.3, l1=0.2)], ids=str)
def test_penalty(penalty: Penalty) -> None:
    rng = np.random.default_rng(0)
    weights, gradient = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    total = gradient.copy()
    penalty.add_gradient(reference_backend(np), weights, total, np.empty_like(weights))
    assert_same_gradient(total - gradient, central_differences(lambda: penalty(weights), weights))


def test_penalty_by_hand() -> None:
    weights = np.array([1.0, -2.0, 0.0])
    assert Penalty(l2=0.5)(weights) == 1.25  # 0.25 (1 + 4)
    assert Penalty(l1=0.5)(weights) == 1.5  # 0.5 (1 + 2)
    gradient = np.zeros(3)
    Penalty(l2=0.5, l1=0.25).add_gradient(reference_backend(np), weights, gradient, np.empty(3))
    assert gradient.tolist() == [0.75, -1.25, 0]  # 0.5 W + 0.25 sign W, and sign 0 = 0


class Problem:
    """A deep network with nonzero biases, and one batch."""

    def __init__(self, sizes: list[int], activation: str) -> None:
        rng = np.random.default_rng(len(sizes))
        self.model = MLP(sizes, activation, dtype="float64", device="cpu", seed=3)
        for layer in self.model.layers:
            layer.bias[:] = rng.normal(size=layer.out_features)
        self.images, self.labels = rng.normal(size=(BATCH, sizes[0])), rng.integers(0, CLASSES, BATCH)
        self.workspace = Workspace(self.model, BATCH, pixels=False)

    def cost(self) -> float:
        self.workspace.inputs[:] = self.images
        self.model.forward_pass(self.workspace)
        return cross_entropy(self.workspace.logits, self.labels)

    def backward(self) -> None:
        self.cost()
        logits, losses = self.workspace.logits, np.empty(BATCH)
        self.model.backend.output_error(self.model.loss, logits, self.labels, losses, np.empty(BATCH, dtype=bool))
        self.model.backward_pass(self.workspace)


@pytest.mark.parametrize("activation", HIDDEN)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_network(sizes: list[int], activation: str) -> None:
    problem = Problem(sizes, activation)
    problem.backward()
    for layer in problem.model.layers:
        assert_same_gradient(layer.weight_gradient, central_differences(problem.cost, layer.weight))
        assert_same_gradient(layer.bias_gradient, central_differences(problem.cost, layer.bias))


def test_a_smaller_batch_in_the_same_arrays_has_the_same_gradient() -> None:
    """The mean is over the used rows only."""
    whole, part = Problem([6, 5, 4, 3], "tanh"), Problem([6, 5, 4, 3], "tanh")
    whole.backward()  # fills all rows
    part.images, part.labels = part.images[:2], part.labels[:2]
    part.workspace = whole.workspace.rows(2)
    part.model = whole.model
    logits, losses = part.workspace.logits, np.empty(2)
    part.cost()
    part.model.backend.output_error(part.model.loss, logits, part.labels, losses, np.empty(2, dtype=bool))
    part.model.backward_pass(part.workspace)
    for layer in part.model.layers:
        assert_same_gradient(layer.weight_gradient, central_differences(part.cost, layer.weight))
        assert_same_gradient(layer.bias_gradient, central_differences(part.cost, layer.bias))


@pytest.mark.parametrize("penalty", [Penalty(l2=0.3), Penalty(l1=0.2), Penalty(l2=0.3, l1=0.2)], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_network_with_a_penalty_on_weights_and_not_on_biases(sizes: list[int], penalty: Penalty) -> None:
    problem = Problem(sizes, "tanh")
    model, sgd = problem.model, SGD(learning_rate=1.0)

    def cost() -> float:
        return problem.cost() + sum(penalty(layer.weight) for layer in model.layers)

    expected = {}
    for index, layer in enumerate(model.layers):
        expected[f"layers.{index}.weight"] = central_differences(cost, layer.weight)
        expected[f"layers.{index}.bias"] = central_differences(cost, layer.bias)
    before = model.state_dict()
    problem.backward()
    parameters = model.parameters
    state = sgd.init(parameters.data)
    model.backend.update(sgd, penalty, parameters.data, parameters.gradient, parameters.weights, state, 1.0)
    for name, tensor in model.state_dict().items():  # with eta = 1 the step is the gradient
        assert_same_gradient(before[name] - tensor, expected[name])
