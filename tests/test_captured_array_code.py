"""Graphs capture array code beside kernels: a step of every operation gives the same bits as eager execution."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Activation,
    AdamW,
    Dataset,
    Dense,
    Dropout,
    LogisticCrossEntropy,
    OneCycle,
    Penalty,
    ReLU,
    RMSprop,
    SoftmaxCrossEntropy,
    SquaredError,
    Trainer,
    Warmup,
)
from gpumlp.backends import DROPOUT, Accumulation, Backend, CudaActivation, Draws
from gpumlp.backends.cuda.graphs import CapturedStep, NotCapturableError
from gpumlp.nn.metrics import new_scores
from gpumlp.nn.optimizers import Optimizer, OptimizerState
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend
from tests.own_rules import Scaled

FEATURES, HIDDEN, OUTPUTS, SAMPLES = 20, 24, 4, 150
SHAPES = [(FEATURES, HIDDEN), (HIDDEN, OUTPUTS), (HIDDEN,), (OUTPUTS,)]  # weights, then biases
PARTS = np.cumsum([0, *(64 * -(-int(np.prod(shape)) // 64) for shape in SHAPES)]).tolist()


class Whole:
    """A step with two layers that consists of all operations of a backend; it implements `Step`.

    Args:
        backend: the device.
        batch_size: samples of a step.
        options: other rules than the default ones, by attribute; ``rate`` is that of dropout.
    """

    same_rules, gradient_wanted, warp, evaluates = True, False, None, None
    shards = processes = 1
    clip_norm, max_norm, rate, seed = 0.5, 1.5, 0.25, 3
    optimizer: Any = SGD(momentum=0.9)
    penalty: Any = Penalty(l2=1e-3)
    loss: Any = SoftmaxCrossEntropy()
    activation: Any = ReLU()
    weighted, order_type = True, "int64"

    def __init__(self, backend: Backend, batch_size: int = 7, dtype: str = "float32", **options: Any) -> None:
        self.__dict__.update(options)
        self.backend, self.batch_size = backend, batch_size
        rng, put = np.random.default_rng(0), backend.asarray
        self.parameters = put(rng.normal(0, 0.3, PARTS[-1]).astype(dtype))
        self.gradient = put(np.zeros(PARTS[-1], dtype))
        self.average, self.decay = put(np.zeros(PARTS[-1], dtype)), 0.9
        self.squares = put(np.zeros(1))
        self.weights = slice(0, PARTS[2])
        self.state = self.optimizer.init(self.parameters)
        self.state.weights = self.weights
        tensors = [
            [
                flat[start : start + int(np.prod(shape))].reshape(shape)
                for start, shape in zip(PARTS, SHAPES, strict=False)
            ]
            for flat in (self.parameters, self.gradient, self.state.scratch)
        ]
        (w1, w2, b1, b2), (gw1, gw2, gb1, gb2), self.scratch = tensors
        self.layers = [
            SimpleNamespace(
                weight=w1, bias=b1, weight_gradient=gw1, bias_gradient=gb1, activation=self.activation
            ),
            SimpleNamespace(weight=w2, bias=b2, weight_gradient=gw2, bias_gradient=gb2, activation=None),
        ]
        self.images = put(rng.integers(0, 255, (SAMPLES, FEATURES), dtype=np.uint8))
        self.order = self.numbers = put(rng.permutation(SAMPLES).astype(self.order_type))
        floats = self.loss.task != "classes"
        targets = rng.random(size=(SAMPLES, OUTPUTS)).astype(dtype)
        self.targets = put(targets if floats else rng.integers(0, OUTPUTS, SAMPLES))
        self.sample_weights = put(rng.random(SAMPLES).astype(dtype)) if self.weighted else None
        self.losses = put(np.zeros(SAMPLES, dtype))
        self.scores = put(new_scores(np, self.loss.task, SAMPLES, OUTPUTS, dtype))
        self.slices = [slice(i, min(i + batch_size, SAMPLES)) for i in range(0, SAMPLES, batch_size)]
        widths = [FEATURES, HIDDEN, HIDDEN, HIDDEN, OUTPUTS]
        self.work = [put(np.zeros((batch_size, width), dtype)) for width in widths]
        self.staging = put(np.zeros((batch_size, FEATURES), np.uint8))
        self.kept = put(np.zeros((batch_size, HIDDEN), bool)) if backend.stores_masks else None

    def in_any_process(self, flag: bool) -> bool:
        return flag

    def arrays(self) -> list[Any]:
        return [
            *(
                self.parameters,
                self.gradient,
                self.average,
                self.squares,
                *self.state.buffers.values(),
                self.losses,
                self.scores,
            ),
            *(
                self.images,
                self.order,
                self.targets,
                *self.work,
                *([self.sample_weights] if self.weighted else []),
            ),
        ]

    @property
    def draws(self) -> Draws:
        return Draws(self.seed, DROPOUT, self.state.steps, 1, 0)

    def __call__(self, batch: slice, learning_rate: float) -> None:
        backend, (hidden, output) = self.backend, self.layers
        count = batch.stop - batch.start
        x, s, a, delta, logits = (array[:count] for array in self.work)
        losses, scores = self.losses[batch], self.scores[batch]
        kept = None if self.kept is None else self.kept[:count]
        draws = self.draws
        backend.add_squares(self.parameters, self.squares, self.state.scratch)
        backend.gather(self.images, self.order[batch], self.staging[:count], x)
        backend.dense_forward(x, hidden.weight, hidden.bias, hidden.activation, s, a)
        saved = s if hidden.activation.derivative_from == "input" else a.copy()
        backend.dropout(a, self.rate, draws, kept, a)
        backend.matmul(a, output.weight, logits)
        backend.xp.add(logits, output.bias, out=logits)
        backend.output_error(self.loss, logits, self.targets[batch], losses, scores)
        if self.sample_weights is not None:
            backend.weigh(logits, losses, self.sample_weights[batch])
        gradients = Accumulation(output.weight_gradient), output.bias_gradient
        backend.dense_backward(a, output.weight, logits, *gradients, delta)
        backend.dropout_backward(delta, self.rate, draws, kept)
        backend.activation_backward(hidden.activation, saved, delta)
        gradients = Accumulation(hidden.weight_gradient), hidden.bias_gradient
        backend.dense_backward(x, hidden.weight, delta, *gradients, None)
        backend.clip_gradient(self.gradient, self.clip_norm, self.state.scratch)
        backend.update(
            *(
                self.optimizer,
                self.penalty,
                self.parameters,
                self.gradient,
                self.weights,
                self.state,
                learning_rate,
            )
        )
        backend.limit_norms(hidden.weight, self.max_norm, self.scratch[0])
        backend.average(self.parameters, self.average, self.decay, self.state.scratch)


# -- Rules of a user's, in array code ---------------------------------------------------------------------


class ArrayLoss(SoftmaxCrossEntropy):
    """Half of the cross-entropy, without a kernel; allocates arrays."""

    scale = 0.5

    def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, scores: Any) -> None:
        super().output_error(backend, outputs, targets, losses, scores)
        outputs[...] = outputs * self.scale
        losses[...] = losses * self.scale


class Softsign(Activation):
    """h(s) = s / (1 + |s|), without CUDA expressions."""

    name = "softsign"

    def forward(self, xp: Any, s: Any, out: Any) -> None:
        out[...] = s / (xp.abs(s) + 1)

    def backward(self, xp: Any, saved: Any, delta: Any) -> None:
        slope = 1 - xp.abs(saved)
        delta[...] = delta * slope * slope


class Cubic(Activation):
    """h(s) = s^3, whose derivative needs s, without CUDA expressions."""

    name, derivative_from = "cubic", "input"

    def forward(self, xp: Any, s: Any, out: Any) -> None:
        out[...] = s * s * s

    def backward(self, xp: Any, saved: Any, delta: Any) -> None:
        delta[...] = delta * (saved * saved) * 3


class FastCubic(Cubic):
    """The same with CUDA expressions."""

    cuda = CudaActivation("s * s * s", "s * s * 3", derivative_from="input")


@dataclass(frozen=True)
class Signs(Optimizer):
    """theta <- theta - eta sign(m) - eta' g with a mean m and two factors."""

    learning_rate: float = 0.01
    buffer_names = ("mean",)

    def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]:
        return learning_rate / steps, learning_rate * 0.9**steps

    def update(self, xp: Any, parameters: Any, gradient: Any, state: OptimizerState, *factors: Any) -> None:
        mean = state.buffers["mean"]
        mean[...] = mean * 0.9 + gradient
        parameters[...] = parameters - xp.sign(mean) * factors[0] - gradient * factors[1]


class Noisy(Penalty):
    """A penalty of a user's."""

    def add_gradient(self, backend: Any, weights: Any, gradient: Any, scratch: Any) -> None:
        gradient[...] = gradient + backend.xp.tanh(weights) * self.l2


def steps_on(*ways: str, **options: Any) -> list[Whole]:
    return [Whole(host_cuda_backend(cublaslt=True, execution=way), **options) for way in ways]


def train(step: Whole, epochs: int = 3, rate: float = 0.1) -> None:
    """Epochs in two parts, with another learning rate in each step."""
    count = len(step.slices)
    with step.backend.activate():
        for epoch in range(epochs):
            rates = [rate / (1 + epoch + number) for number in range(count)]
            for part in (range(count // 3), range(count // 3, count)):
                step.backend.run_steps(step, part, rates[part.start : part.stop])


def bits(step: Whole) -> list[bytes]:
    arrays = [step.parameters, step.average, *step.state.buffers.values(), step.losses, step.scores]
    return [step.backend.to_numpy(array).tobytes() for array in arrays]


RULES = {
    "kernels": {},
    "without weights": {"weighted": False},
    "array loss": {"loss": ArrayLoss()},
    "numbers": {"loss": SquaredError()},
    "labels": {"loss": LogisticCrossEntropy(0.1)},
    "label smoothing": {"loss": SoftmaxCrossEntropy(0.1)},
    "array activation": {"activation": Softsign()},
    "array activation, from the input": {"activation": Cubic()},
    "activation from the input": {"activation": FastCubic()},
    "array optimizer": {"optimizer": Signs()},
    "optimizer with decay": {"optimizer": AdamW(weight_decay=0.3)},
    "array penalty": {"penalty": Noisy(0.01)},
    "rows of another dtype": {"order_type": "int32"},
    "all in array code": {
        "loss": ArrayLoss(),
        "activation": Cubic(),
        "optimizer": Signs(),
        "penalty": Noisy(0.01),
    },
}


@pytest.mark.parametrize("batch_size", [7, 40, 150])  # graphs of 16, 4 and 1 steps; of 1; an epoch of one step
@pytest.mark.parametrize("rules", RULES)
def test_graph_and_eager_bits_are_the_same(rules: str, batch_size: int) -> None:
    graph, eager = steps_on("graphs", "eager", batch_size=batch_size, **RULES[rules])
    for step in (graph, eager):
        train(step)
    assert graph.backend.execution(graph).name == "graphs"
    assert graph.backend.xp.launches.count("graph") >= 2
    assert bits(graph) == bits(eager)
    assert graph.state.steps == eager.state.steps == 3 * len(graph.slices)


def test_each_value_that_changes_between_launches_has_an_effect() -> None:
    """Without it, the test above would prove nothing."""
    results = []
    for rate, seed in ((0.1, 3), (0.2, 3), (0.1, 4)):
        (step,) = steps_on("graphs", seed=seed, **RULES["all in array code"])
        train(step, rate=rate)
        results.append(bits(step))
    assert len({tuple(result) for result in results}) == 3


def test_dropout_draws_other_bits_in_each_captured_step() -> None:
    (step,) = steps_on("graphs", optimizer=SGD())
    masks = []
    dropout = step.backend.dropout

    def watch(x: Any, rate: float, draws: Draws, kept: Any, out: Any) -> None:
        dropout(x, rate, draws, kept, out)
        if step.backend.xp.capture is not None:
            ones = step.backend.xp.ones_like(out)
            dropout(ones, rate, draws, kept, ones)
            masks.append(ones)
            step.backend.xp.change("watch", lambda: seen.append(ones._data.tobytes()))

    seen: list[bytes] = []
    step.backend.dropout = watch
    train(step, 2)
    assert len(set(seen)) == len(seen) / 2 > 30  # the forward and the backward pass draw the same


def test_temporary_arrays_are_in_the_memory_of_the_graphs() -> None:
    (step,) = steps_on("graphs", **RULES["all in array code"])
    train(step)
    assert step.backend.graphs._captured[step].pool.bytes > 0


OPTIONS = {
    "everything": {
        "optimizer": AdamW(0.01), "schedule": OneCycle(60), "clip_norm": 0.1, "max_norm": 1.0, "ema": 0.9,
        "class_weight": "balanced", "activation": ["gelu", "relu"],
        "loss": SoftmaxCrossEntropy(label_smoothing=0.1),
    },
    "little": {"optimizer": RMSprop(0.01), "activation": "softplus", "ema": 0.99},
    "array code": {"optimizer": RMSprop(0.01, momentum=0.5), "activation": Cubic(), "schedule": Warmup(10)},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_whole_runs_have_the_same_bits(options: str, blobs: Dataset) -> None:
    trainers = []
    for way in ("graphs", "eager"):
        chosen = dict(OPTIONS[options])
        model = MLP(
            [20, 16, 12, 4], chosen.pop("activation"), loss=chosen.pop("loss", "auto"),
            dropout=0.3, input_dropout=0.1, device=host_cuda_backend(cublaslt=True, execution=way),
        )  # fmt: skip
        trainers.append(Trainer(model, blobs, batch_size=16, validation=50, **chosen))
        trainers[-1].run(4)
        assert trainers[-1].execution.name == way
    states = [trainer.model.state_dict() | trainer.trained.state_dict() for trainer in trainers]
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes(), name
    assert trainers[0].history["train_loss"] == trainers[1].history["train_loss"]


def test_a_layer_of_the_users_is_captured(blobs: Dataset) -> None:
    weights = []
    for way in ("graphs", "eager"):
        layers = [Dense(20, 16, "relu"), Scaled(16, 0.1), Dropout(16, 0.2), Dense(16, 4)]
        model = MLP(layers, device=host_cuda_backend(cublaslt=True, execution=way))
        trainer = Trainer(model, blobs, batch_size=16)
        trainer.run(3)
        assert trainer.execution.name == way
        weights.append(model.state_dict())
    for name, array in weights[0].items():
        assert array.tobytes() == weights[1][name].tobytes(), name


# -- What changes between epochs ----------------------------------------------------------------------------


def scale(step: Whole) -> None:
    step.loss.scale = 0.1


def attribute(step: Whole) -> None:
    step.clip_norm = 0.01


def weights(step: Whole) -> None:
    step.sample_weights = step.backend.asarray(np.linspace(0, 1, SAMPLES, dtype="float32"))


def decay(step: Whole) -> None:
    step.decay = 0.5


def seed(step: Whole) -> None:
    step.seed = 5


@pytest.mark.parametrize("change", [scale, attribute, weights, decay, seed])
def test_a_change_of_a_rule_takes_effect(change: Any) -> None:
    results = []
    for way in ("graphs", "eager"):
        (step,) = steps_on(way, loss=ArrayLoss())
        train(step)
        before = bits(step)
        change(step)
        train(step, 2)
        assert step.backend.execution(step).name == way
        results.append((before, bits(step)))
    assert results[0] == results[1]


# -- What cannot be captured --------------------------------------------------------------------------------


def counts(step: Whole) -> None:
    step.state.steps += 1


def compares(step: Whole) -> None:
    assert step.state.steps != 10_000


def waits(step: Whole) -> None:
    float(step.parameters.sum())


def copies(step: Whole) -> None:
    step.backend.xp.asarray(np.ones(3))


class Reads(ArrayLoss):
    """Does something with its step that a graph cannot repeat."""

    def __init__(self, what: Any, step: Whole) -> None:
        self.what, self.step = what, step

    def output_error(self, backend: Any, *arrays: Any) -> None:
        super().output_error(backend, *arrays)
        before = self.step.state.steps
        self.what(self.step)
        self.step.state.steps = before


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (counts, "it reads the number of steps"),
        (compares, "it reads the number of steps"),
        (waits, "the current stream is capturing, so D2H transfers are disallowed"),
        (copies, "the current stream is capturing, so H2D transfers are disallowed"),
    ],
)
def test_a_step_that_a_graph_cannot_repeat_is_run_without_one(what: Any, reason: str) -> None:
    steps = steps_on("auto", "eager")
    for step in steps:
        step.loss = Reads(what, step)
        train(step)
    execution = steps[0].backend.execution(steps[0])
    assert execution.name == "eager"
    assert f"not graphs: a step cannot be captured: {reason}" in execution.reason, execution.reason
    assert bits(steps[0]) == bits(steps[1])
    assert type(steps[0].state.steps) is int


class Counting(ArrayLoss):
    """A rule that changes itself: its `calls` would be those of the capture in every launch."""

    calls = 0

    def output_error(self, backend: Any, outputs: Any, *arrays: Any) -> None:
        super().output_error(backend, outputs, *arrays)
        self.calls += 1
        outputs[...] = outputs * (1 / self.calls)


@dataclass(frozen=True)
class CountingOptimizer(Signs):
    """The same in the optimizer's state."""

    def update(self, xp: Any, parameters: Any, gradient: Any, state: OptimizerState, *factors: Any) -> None:
        state.calls = getattr(state, "calls", 0) + 1
        super().update(xp, parameters, gradient, state, factors[0], factors[1] * (1 / state.calls))


class Flag(ArrayLoss):
    """Every other step is another one."""

    odd = False

    def output_error(self, backend: Any, outputs: Any, *arrays: Any) -> None:
        super().output_error(backend, outputs, *arrays)
        self.odd = not self.odd
        if self.odd:
            outputs[...] = outputs * 0.5


@pytest.mark.parametrize("options", [{"loss": Counting}, {"optimizer": CountingOptimizer}, {"loss": Flag}])
def test_a_step_that_changes_its_rules_is_run_without_a_graph(options: dict[str, Any]) -> None:
    steps = [
        Whole(host_cuda_backend(cublaslt=True, execution=way), **{name: kind() for name, kind in options.items()})
        for way in ("auto", "eager")
    ]
    for step in steps:
        train(step)
    execution = steps[0].backend.execution(steps[0])
    assert execution.name == "eager"
    assert "not graphs: each step changes an attribute of a rule" in execution.reason
    assert "graph" not in steps[0].backend.xp.launches
    assert bits(steps[0]) == bits(steps[1])


def test_a_rule_may_keep_an_array_from_its_first_step() -> None:
    class Keeping(ArrayLoss):
        half = None

        def output_error(self, backend: Any, outputs: Any, *arrays: Any) -> None:
            super().output_error(backend, outputs, *arrays)
            if self.half is None:
                self.half = backend.asarray(np.array([0.5], dtype="float32"))
            outputs[...] = outputs * self.half

    steps = [Whole(host_cuda_backend(cublaslt=True, execution=way), loss=Keeping()) for way in ("auto", "eager")]
    for step in steps:
        train(step)
    assert steps[0].backend.execution(steps[0]).name == "graphs"
    assert "graph" in steps[0].backend.xp.launches
    assert bits(steps[0]) == bits(steps[1])


def test_every_use_of_the_number_of_steps_is_refused() -> None:
    steps: Any = CapturedStep(0, None)
    uses = [
        *(bool, int, float, str, repr, hash, abs, round, range, format, np.asarray),
        *(lambda n: n + 1, lambda n: 1 - n, lambda n: n * 2.0, lambda n: 2**n, lambda n: n % 2, lambda n: n // 2),
        *(
            lambda n: n == 3,
            lambda n: n > 3,
            lambda n: {n},
            lambda n: [0][n],
            lambda n: f"{n}",
            lambda n: np.ones(2) * n,
        ),
    ]
    for use in uses:
        with pytest.raises(NotCapturableError, match="the number of steps"):
            use(steps)


def test_arrays_of_the_epoch_and_others_are_not_mixed() -> None:
    """A loss with a kernel that is given other arrays than the epoch's."""

    class Inner(SoftmaxCrossEntropy):
        def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, scores: Any) -> None:
            backend.output_error(SoftmaxCrossEntropy(), outputs, targets, losses, scores)

    graph, eager = steps_on("graphs", "eager", loss=Inner())
    for step in (graph, eager):
        train(step)
    assert bits(graph) == bits(eager)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [7, 150])
@pytest.mark.parametrize("rules", RULES)
def test_on_a_gpu_graph_and_eager_bits_are_the_same(rules: str, batch_size: int) -> None:
    steps = []
    for way in ("graphs", "eager"):
        backend = gpu_backend(execution=way)
        pytest.importorskip("nvmath", reason="nvmath-python is not installed")
        with backend.activate():
            steps.append(Whole(backend, batch_size, **RULES[rules]))
        train(steps[-1])
        assert backend.execution(steps[-1]).name == way
    assert bits(steps[0]) == bits(steps[1])


@pytest.mark.gpu
@pytest.mark.parametrize("what", [counts, compares, waits, copies])
def test_on_a_gpu_a_step_that_a_graph_cannot_repeat_is_run_without_one(what: Any) -> None:
    backend = gpu_backend()
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    with backend.activate():
        step = Whole(backend)
        step.loss = Reads(what, step)
    train(step)
    assert "not graphs: a step cannot be captured: " in backend.execution(step).reason
    assert step.state.steps == 3 * len(step.slices)
