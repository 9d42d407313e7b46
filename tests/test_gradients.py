"""Every gradient against central differences, (C(x + h) - C(x - h)) / 2h, in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    ELU,
    MLP,
    SGD,
    Dataset,
    Dense,
    Dropout,
    Layer,
    LogisticCrossEntropy,
    Loss,
    Penalty,
    SoftmaxCrossEntropy,
    Trainer,
    fit,
    register,
)
from gpumlp.backends import DROPOUT, Backend, Draws, reference_backend
from gpumlp.data.dataset import ArrayBatches
from gpumlp.nn.activations import ACTIVATIONS
from gpumlp.nn.layers import Cache
from gpumlp.nn.losses import LOSSES
from gpumlp.nn.network import Workspace
from gpumlp.training.step import TrainingStep

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


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense(name: str, batch: int) -> None:
    rng = np.random.default_rng(0)
    layer = Dense(4, 3, name, dtype="float64", seed=1)
    layer.bias[:] = rng.normal(size=3)
    x, upper = rng.normal(size=(batch, 4)), rng.normal(size=(batch, 3))
    cache = layer.new_cache(lambda: np.empty((batch, 3)), Cache(x, None), training=True)
    layer.forward(x, cache)
    cache.delta[...] = upper  # dC/da
    input_delta = np.full_like(x, np.nan)
    layer.backward(x, cache, input_delta=input_delta)

    def cost() -> float:
        return float((upper * layer(x)).sum())

    assert_same_gradient(layer.weight_gradient, central_differences(cost, layer.weight))
    assert_same_gradient(layer.bias_gradient, central_differences(cost, layer.bias))
    assert_same_gradient(input_delta, central_differences(cost, x))


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


def test_the_penalty_of_the_code_of_the_notes_is_that_of_l2_7_8e_7() -> None:
    """Their code divides 1e-4 by the number of samples of a batch, 128."""
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(128, 6)), rng.integers(0, 3, 128))
    models = [MLP([6, 3], device="cpu", dtype="float64") for _ in range(3)]
    for model, l2 in zip(models, (0.0, 7.8e-7), strict=False):
        fit(model, data, optimizer=SGD(1.0), batch_size=128, epochs=1, l2=l2)
    without, penalised, before = (model.state_dict()["layers.0.weight"] for model in models)
    np.testing.assert_allclose(without - penalised, 1e-4 / 128 * before, rtol=0.01)


def test_the_training_loss_is_without_the_penalty(backend: Backend, blobs: Dataset) -> None:
    """The first batch is one for all: the loss of the first weights."""
    losses = []
    for penalty in (Penalty(), Penalty(l2=1.0, l1=1.0)):
        model = MLP([20, 8, 4], device=backend)
        history = Trainer(model, blobs, optimizer=SGD(0.01), batch_size="full", penalty=penalty).run(2)
        losses.append(history["train_loss"])
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]  # of the weights that the penalty has changed


# -- Networks --------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
# The loss of each sample by the formula, of outputs s, targets y and label smoothing e; and some targets. For a
# new loss, add a row.
LOSSES_BY_FORMULA: dict[str, tuple[Callable[[np.ndarray, np.ndarray, float], np.ndarray], np.ndarray]] = {
    "softmax_cross_entropy": (
        lambda s, y, e: (
            -(
                ((1 - e) * np.eye(s.shape[1])[y] + e / s.shape[1])
                * np.log(np.exp(s) / np.exp(s).sum(axis=1)[:, None])
            ).sum(axis=1)
        ),
        RNG.integers(0, CLASSES, BATCH),
    ),
    "logistic_cross_entropy": (
        lambda s, y, e: (np.log(1 + np.exp(s)) - ((1 - e) * y + e / 2) * s).sum(axis=1),
        RNG.integers(0, 2, (BATCH, CLASSES)).astype(float),
    ),
    "squared_error": (
        lambda s, y, e: np.square(s - y).sum(axis=1) / 2,
        RNG.normal(0, 3, (BATCH, CLASSES)),
    ),
    "poisson_deviance": (
        lambda s, y, e: (np.exp(s) - y * s + y * np.log(y) - y).sum(axis=1),
        RNG.uniform(0.1, 9, (BATCH, CLASSES)),
    ),
}
WEIGHTS = np.array([0.5, 3.0, 0.0, 1.0, 0.25])
NO_PENALTY = Penalty()


@register
class Gate(Layer):
    """A layer of the user's, y = tanh(x A) * (1 + v), with a matrix and a vector."""

    name = "test_gate"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"matrix": (self.in_features, self.out_features), "scale": (self.out_features,)}

    def initial(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: rng.normal(0, 0.5, shape) for name, shape in self.shapes().items()}

    def new_cache(self, new: Callable[..., Any], below: Cache, *, training: bool) -> Cache:
        return Cache(new(), new(), new())

    def forward(self, x: Any, cache: Cache, draws: Any) -> None:
        xp = self.backend.xp
        xp.matmul(x, self.parameters["matrix"], out=cache.saved)
        xp.tanh(cache.saved, out=cache.saved)
        xp.multiply(cache.saved, self.parameters["scale"] + 1, out=cache.output)

    def backward(self, x: Any, cache: Cache, draws: Any, input_delta: Any) -> None:
        xp, delta, a = self.backend.xp, cache.delta, cache.saved
        self.backend.column_sums(delta * a, self.gradients["scale"])
        xp.multiply(delta, self.parameters["scale"] + 1, out=delta)
        xp.multiply(delta, 1 - a * a, out=delta)
        xp.matmul(x.T, delta, out=self.gradients["matrix"])
        if input_delta is not None:
            xp.matmul(delta, self.parameters["matrix"].T, out=input_delta)


class Problem:
    """A network in float64 with nonzero biases and one batch, whose random numbers are those of step 7."""

    def __init__(self, sizes: Any, weights: np.ndarray | None = None, **options: Any) -> None:
        rng = np.random.default_rng(len(sizes))
        self.model = MLP(sizes, dtype="float64", device="cpu", seed=3, **options)
        for layer in self.model.dense_layers:
            layer.bias[:] = rng.normal(size=layer.out_features)
        self.images, self.weights = rng.normal(size=(BATCH, self.model.sizes[0])), weights
        self.formula, self.targets = LOSSES_BY_FORMULA[self.model.loss.name]
        self.smoothing = getattr(self.model.loss, "label_smoothing", 0.0)
        self.draws = Draws(11, DROPOUT, 7, 0, 0)

    def cost(self) -> float:
        """Of a forward pass with these random numbers, by the formula of the loss."""
        workspace = Workspace(self.model, BATCH, pixels=False, training=True)
        workspace.inputs[:] = self.images
        self.model.forward_pass(workspace, self.draws)
        losses = self.formula(workspace.logits, self.targets, self.smoothing)
        return float(np.average(losses, weights=self.weights))

    def step(self, rows_at_a_time: int | None = None, penalty: Penalty = NO_PENALTY, rate: float = 0.0) -> None:
        """The training step, by default without a change of the parameters."""
        model = self.model
        model.backend = copy(model.backend)
        model.backend.rows_at_a_time = rows_at_a_time
        batches = ArrayBatches(self.images, self.targets, np.arange(BATCH), BATCH, model.backend, self.weights)
        state = SGD(1.0).init(model.parameters.data)
        state.steps = 7
        step = TrainingStep(model, batches, SGD(1.0), state, penalty, seed=11)
        step.keep_gradient()
        step(slice(0, BATCH), rate)
        assert step.losses.mean() == pytest.approx(self.cost(), rel=1e-12) or rate

    def check(self, **options: Any) -> None:
        """Every element of the gradient of the step against central differences of the cost."""
        model = self.model
        self.step(**options)
        gradients = model.parameters.views(model.parameters.gradient.copy())
        for name, tensor in model.parameters.views(model.parameters.data).items():
            assert_same_gradient(gradients[name], central_differences(self.cost, tensor))


@pytest.mark.parametrize("activation", HIDDEN)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_network(sizes: list[int], activation: str) -> None:
    Problem(sizes, activation=activation).check()


SMOOTHED = [SoftmaxCrossEntropy(label_smoothing=0.2), LogisticCrossEntropy(label_smoothing=0.2)]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal weights", "weights"])
@pytest.mark.parametrize("loss", [*LOSSES, *SMOOTHED], ids=str)
def test_losses(loss: str | Loss, weights: np.ndarray | None) -> None:
    Problem([6, 5, 3], activation="tanh", loss=loss, weights=weights).check()


NETWORKS: dict[str, Callable[[], Problem]] = {
    "plain": lambda: Problem([6, 5, 4, 3], activation="gelu"),
    "activations": lambda: Problem([6, 5, 4, 3], activation=["silu", "tanh"]),
    "other activations": lambda: Problem([6, 5, 4, 5, 3], activation=["relu", ELU(0.5), "softplus"]),
    "dropout": lambda: Problem([6, 9, 8, 3], activation="tanh", dropout=0.5),
    "dropout above h' from the input": lambda: Problem([6, 9, 8, 3], activation="silu", dropout=[0.5, 0.25]),
    "dropout of one layer": lambda: Problem([6, 9, 8, 3], activation=["elu", "gelu"], dropout=[0.0, 0.4]),
    "input dropout": lambda: Problem([6, 9, 3], activation="sigmoid", input_dropout=0.3),
    "dropout everywhere": lambda: Problem([6, 9, 3], activation="gelu", dropout=0.5, input_dropout=0.2),
    "input dropout alone": lambda: Problem([6, 3], input_dropout=0.2),
    "dropout, weights": lambda: Problem([6, 9, 3], WEIGHTS, dropout=0.4, input_dropout=0.2),
    "labels, dropout": lambda: Problem([6, 9, 3], loss="logistic_cross_entropy", dropout=0.4),
}
OWN: dict[str, Callable[[], Problem]] = {
    "own, first": lambda: Problem([Gate(6, 4), Dense(4, 3)]),
    "own, between": lambda: Problem([Dense(6, 5, "gelu"), Gate(5, 4), Dense(4, 3)]),
    "own, dropout around it": lambda: Problem(
        [Dropout(6, 0.2), Dense(6, 9, "tanh"), Dropout(9, 0.5), Gate(9, 8), Dropout(8, 0.4), Dense(8, 3)]
    ),
    "own, two": lambda: Problem([Gate(6, 7), Gate(7, 4), Dense(4, 3)], WEIGHTS, loss="squared_error"),
    "dropout twice": lambda: Problem(
        [Dropout(6, 0.2), Dropout(6, 0.3), Dense(6, 9, "silu"), Dropout(9, 0.2), Dropout(9, 0.3), Dense(9, 3)]
    ),
}


@pytest.mark.parametrize("make", [*NETWORKS.values(), *OWN.values()], ids=[*NETWORKS, *OWN])
def test_layers(make: Callable[[], Problem]) -> None:
    make().check()


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 4])
@pytest.mark.parametrize("make", [*NETWORKS.values(), *OWN.values()], ids=[*NETWORKS, *OWN])
def test_a_batch_in_parts_has_the_same_gradient(make: Callable[[], Problem], rows_at_a_time: int) -> None:
    gradients = []
    for rows in (rows_at_a_time, None):
        problem = make()
        problem.step(rows)
        gradients.append(problem.model.parameters.gradient)
    scale = np.abs(gradients[1]).max()
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-14 * scale)


def test_a_smaller_batch_in_the_same_arrays_has_the_same_gradient() -> None:
    """The mean is over the used rows only."""
    problem = Problem([6, 5, 4, 3], activation="tanh")
    model, workspace = problem.model, Workspace(problem.model, BATCH, pixels=False)
    for rows in (BATCH, 2):  # the first fills all rows
        part, losses, scores = workspace.rows(rows), np.empty(rows), np.empty(rows, dtype=bool)
        part.inputs[:] = problem.images[:rows]
        model.forward_pass(part)
        model.backend.output_error(model.loss, part.logits, problem.targets[:rows], losses, scores)
        model.backward_pass(part)
    problem.weights = np.array([1.0, 1.0, 0, 0, 0])
    for layer in model.dense_layers:
        assert_same_gradient(layer.weight_gradient, central_differences(problem.cost, layer.weight))
        assert_same_gradient(layer.bias_gradient, central_differences(problem.cost, layer.bias))


@pytest.mark.parametrize("penalty", [Penalty(l2=0.3), Penalty(l1=0.2), Penalty(l2=0.3, l1=0.2)], ids=str)
@pytest.mark.parametrize(
    "make", [lambda sizes=sizes: Problem(sizes, activation="tanh") for sizes in SIZES] + [OWN["own, between"]]
)
def test_a_penalty_is_on_matrices_and_not_on_vectors(make: Callable[[], Problem], penalty: Penalty) -> None:
    problem = make()
    parameters, before = problem.model.parameters, problem.model.state_dict()
    tensors = parameters.views(parameters.data)

    def cost() -> float:
        return problem.cost() + sum(penalty(tensor) for tensor in tensors.values() if tensor.ndim == 2)

    expected = {name: central_differences(cost, tensor) for name, tensor in tensors.items()}
    problem.step(penalty=penalty, rate=1.0)
    for name, tensor in tensors.items():  # with eta = 1 the step is the gradient
        assert_same_gradient(before[name] - tensor, expected[name])
