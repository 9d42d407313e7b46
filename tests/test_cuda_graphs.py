"""CUDA graphs give the same bits as eager execution, also if values change between launches."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, ExponentialDecay, LeakyReLU, Penalty, SoftmaxCrossEntropy, Trainer
from gpumlp.backends import ExecutionError
from gpumlp.backends.cuda.graphs import LENGTHS, StepKey
from gpumlp.training.callbacks import Callback
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend

OPTIMIZERS = [SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Adam(0.01)]


class Listener(Callback):
    """A callback for progress, so that an epoch is run in many parts."""


def trainer_on(backend: object, data: Dataset, optimizer: object = None, **options: object) -> Trainer:
    model = MLP(
        [data.features, 32, 20, data.classes], activation=options.pop("activation", "relu"), device=backend
    )
    options = {"batch_size": 16, "schedule": ExponentialDecay(0.3), "penalty": Penalty(l2=1e-3)} | options
    return Trainer(model, data, optimizer=optimizer or Adam(0.01), **options)


def pair(data: Dataset, **options: object) -> tuple[Trainer, Trainer]:
    """Two trainers that differ only in the execution of steps."""
    return tuple(
        trainer_on(host_cuda_backend(cublaslt=True, execution=way), data, **options) for way in ("graphs", "eager")
    )


def state(trainer: Trainer) -> dict[str, np.ndarray]:
    buffers = trainer.optimizer_state.buffers
    return trainer.model.state_dict() | {name: array._data.copy() for name, array in buffers.items()}


def same_bits(first: Trainer, second: Trainer) -> None:
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name
    assert first.history["train_loss"] == second.history["train_loss"]
    assert first.history["train_accuracy"] == second.history["train_accuracy"]
    assert first.optimizer_state.steps == second.optimizer_state.steps


def lengths(trainer: Trainer) -> list[int]:
    """The lengths of the captured graphs."""
    return list(trainer.model.backend.graphs._captured[trainer._step].graphs)


def launches_of_an_epoch(trainer: Trainer, callbacks: list[object] = ()) -> list[str]:
    trainer.model.backend.xp.launches.clear()
    trainer.run(trainer.epoch + 1, callbacks)
    return list(trainer.model.backend.xp.launches)


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "listeners"),
    [
        *((Adam(0.01), size, each) for size in (16, 75, 7) for each in ([], [Listener()])),
        *((optimizer, 16, [Listener()]) for optimizer in OPTIMIZERS[:-1]),
    ],
)
def test_graph_and_eager_weights_are_the_same_bit_for_bit(
    blobs: Dataset, optimizer: object, batch_size: int, listeners: list[object]
) -> None:
    """In 18 batches and a smaller one, 4 batches, 42 batches and a smaller one; whole epochs, and in parts."""
    graph, eager = pair(blobs, optimizer=optimizer, batch_size=batch_size)
    graph.model.backend.steps_at_a_time = eager.model.backend.steps_at_a_time = 2
    for _ in range(4):
        for trainer in (graph, eager):
            trainer.run(trainer.epoch + 1, listeners)
        same_bits(graph, eager)
    assert graph.execution.name == "graphs"
    assert eager.execution.name == "eager"
    assert "graph" in graph.model.backend.xp.launches
    assert "graph" not in eager.model.backend.xp.launches


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["relu", "tanh", LeakyReLU(0.2)])
def test_every_activation_and_dtype(blobs: Dataset, activation: object, dtype: str) -> None:
    trainers = []
    for way in ("graphs", "eager"):
        backend = host_cuda_backend(cublaslt=True, execution=way)
        model = MLP([20, 16, 4], activation=activation, device=backend, dtype=dtype)
        trainers.append(Trainer(model, blobs, batch_size=16))
        trainers[-1].run(4)
    assert "graph" in launches_of_an_epoch(trainers[0])
    trainers[1].run(5)
    same_bits(*trainers)


def test_an_epoch_takes_two_launches_per_graph_and_those_of_the_last_batch(blobs: Dataset) -> None:
    trainer, _ = pair(blobs, diagnostics=False)
    trainer.run(2)
    launches = launches_of_an_epoch(trainer)
    graphs = [name for name in launches if name in ("graph", "set_position")]
    assert graphs == ["set_position", "graph"] * 3  # 18 full batches: 16 + 1 + 1
    assert launches.count("gather_pixels") == 1  # the 19th batch, of 12 samples


def test_only_the_first_step_and_the_last_batch_are_run_without_a_graph(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size=7, diagnostics=False)  # 42 full batches and a smaller one
    launches = launches_of_an_epoch(graph)
    assert launches.count("gather_pixels") == 2
    assert launches.count("graph") == 2 + 2 + 1  # 41 = 16 + 16 + 4 + 4 + 1
    eager.run(1)
    same_bits(graph, eager)


def test_a_learning_rate_for_every_step(blobs: Dataset) -> None:
    graph, eager = pair(blobs)
    rates = np.linspace(0.001, 0.1, len(graph.batches.slices)).tolist()
    for trainer in (graph, eager):
        trainer.model.backend.run_steps(trainer._step, range(len(rates)), rates)
    same_bits(graph, eager)


def test_a_replaced_array_is_detected(blobs: Dataset) -> None:
    graph, eager = pair(blobs)
    for trainer in (graph, eager):
        trainer.run(3)
        step, xp = trainer._step, trainer.model.backend.xp
        step.losses, step.scores = xp.zeros_like(step.losses), xp.zeros_like(step.scores)
        step.batches.order = step.batches.order.copy()
        step.model.layers[1].bias_gradient = xp.zeros_like(step.model.layers[1].bias_gradient)
        trainer.run(5)
    same_bits(graph, eager)


def test_a_replaced_rule_is_detected(blobs: Dataset) -> None:
    graph, eager = pair(blobs, activation="leaky_relu")
    for trainer in (graph, eager):
        trainer.run(3)
        trainer._step.penalty = Penalty(l1=0.01)
        trainer.run(4)
        trainer.model.activation.negative_slope = 0.3
        trainer.run(5)
    same_bits(graph, eager)


class Listing(LeakyReLU):
    """An activation with an attribute that can change in place."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = [1.0]
        self.lists, self.names, self.none, self.one = [[1], []], defaultdict(int, a=1), {}, 1

    def rename(self) -> None:
        self.names["b"] = self.names.pop("a")

    def swap(self) -> None:
        self.names, self.none = self.none, self.names


class OwnLoss(SoftmaxCrossEntropy):
    """Another class with the same attributes."""


def assign(name: str, value: object) -> Callable[[Trainer], None]:
    """A change that assigns a value to an attribute of a trainer, such as ``_step.loss``."""

    def change(trainer: Trainer) -> None:
        *path, last = name.split(".")
        object.__setattr__(reduce(getattr, path, trainer), last, value)

    return change


CHANGES = {
    "an optimizer": assign("_step.optimizer", Adam(0.02)),
    "an attribute of the optimizer": assign("_step.optimizer.beta1", 0.8),
    "a penalty": assign("_step.penalty", Penalty(l1=0.1)),
    "an attribute of an activation": assign("model.activation.negative_slope", 0.3),
    "in place": lambda trainer: trainer.model.activation.factors.append(2.0),
    "a length in place": lambda trainer: trainer.model.activation.lists.reverse(),
    "a key in place": lambda trainer: trainer.model.activation.rename(),
    "values moved": lambda trainer: trainer.model.activation.swap(),
    "a tuple in place of a list": assign("model.activation.factors", (1.0,)),
    "a class": assign("_step.loss", OwnLoss()),
    "a type": assign("model.activation.one", 1.0),
    "a new attribute": assign("model.activation.other", 1.0),
    "a loss": assign("_step.loss", SoftmaxCrossEntropy(label_smoothing=0.1)),
    "an array of the step": lambda trainer: setattr(trainer._step, "losses", trainer._step.losses.copy()),
    "a buffer": lambda trainer: trainer.optimizer_state.buffers.update(
        mean=trainer.optimizer_state.buffers["mean"].copy()
    ),
    "a flag": lambda trainer: trainer.keep_gradients(),
    "shards": assign("_step.shards", 2),
    "a limit": assign("_step.clip_norm", 1.0),
    "a method": assign("model.forward_pass", lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_step_changes_its_key(blobs: Dataset, change: Callable[[Trainer], None]) -> None:
    trainer = trainer_on(host_cuda_backend(), blobs, activation=Listing())
    before = StepKey(trainer._step)
    assert StepKey(trainer._step) == before
    change(trainer)
    assert StepKey(trainer._step) != before


def test_equal_rules_have_the_same_key(blobs: Dataset) -> None:
    trainer = trainer_on(host_cuda_backend(), blobs)
    key = StepKey(trainer._step)
    trainer._step.optimizer, trainer._step.penalty = map(copy.copy, (trainer.optimizer, trainer._step.penalty))
    assert StepKey(trainer._step) == key


def test_training_does_not_change_a_key(blobs: Dataset) -> None:
    trainer = trainer_on(host_cuda_backend(), blobs)
    key = StepKey(trainer._step)
    trainer.run(2)
    assert StepKey(trainer._step) == key


def test_a_graph_continues_from_loaded_weights(blobs: Dataset) -> None:
    graph, eager = pair(blobs)
    for trainer in (graph, eager):
        trainer.run(3)
        trainer.model.load_state_dict(MLP([20, 32, 20, 4], seed=8, device="cpu").state_dict())
        trainer.run(4)
    same_bits(graph, eager)


def test_training_continues_after_an_interrupt_within_a_capture(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size=16)
    runner = graph.model.backend.graphs
    capture, runner._capture = runner._capture, interrupted
    assert graph.run(2).interrupted
    assert graph.epoch == 0
    runner._capture = capture
    for trainer in (graph, eager):
        trainer.run(2)
    same_bits(graph, eager)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_batch_is_a_graph_of_one_step(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size="full")
    for trainer in (graph, eager):
        trainer.run(5)
    assert lengths(graph) == [LENGTHS[-1]] == [1]
    same_bits(graph, eager)


def test_more_steps_than_the_buffer_of_factors_holds(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpumlp.backends.cuda.graphs.CAPACITY", 23)
    graph, eager = pair(blobs, batch_size=7)  # 42 full batches
    for trainer in (graph, eager):
        trainer.run(3)
    same_bits(graph, eager)


def test_a_graph_has_the_launches_of_its_steps_only(blobs: Dataset) -> None:
    trainer = trainer_on(host_cuda_backend(cublaslt=True), blobs, SGD(momentum=0.9))
    trainer.run(1)
    names = [name for name, _ in trainer.model.backend.graphs._captured[trainer._step].graphs[1].nodes]
    assert names == [
        *("gather_pixels", "lt-RELU_BIAS", "lt-RELU_BIAS", "narrow_forward", "softmax_cross_entropy"),
        *("narrow_backward", "activation_backward", "lt-DEFAULT", "lt-DEFAULT", "activation_backward"),
        *("lt-DEFAULT", "sgd_step"),
    ]


def test_graphs_are_freed_with_their_trainer(blobs: Dataset) -> None:
    backend = host_cuda_backend(cublaslt=True)
    trainer = trainer_on(backend, blobs)
    trainer.run(2)
    assert len(backend.graphs._captured) == 1
    del trainer
    assert len(backend.graphs._captured) == 0


# -- Steps that cannot be captured --------------------------------------------------------------------


class Waiting(SGD):
    """A custom optimizer that reads a value of the device."""

    def update(self, xp: object, parameters: object, gradient: object, state: object, step_size: object) -> None:
        if float(xp.max(gradient)) < 100:
            super().update(xp, parameters, gradient, state, step_size)


@pytest.mark.parametrize(
    ("reason", "cublaslt", "options"),
    [
        ("CuPy's products cannot be captured; install nvmath-python", False, {}),
        ("a step cannot be captured: the current stream is capturing, so D2H", True, {"optimizer": Waiting()}),
    ],
)
def test_an_unsupported_step_runs_step_by_step_or_is_an_error(
    blobs: Dataset, reason: str, cublaslt: bool, options: dict[str, object]
) -> None:
    auto, eager, graphs = (
        trainer_on(host_cuda_backend(cublaslt=cublaslt, execution=way), blobs, **options)
        for way in ("auto", "eager", "graphs")
    )
    for trainer in (auto, eager):
        trainer.run(3)
    assert "graph" not in auto.model.backend.xp.launches
    assert auto.execution.name == "eager"
    assert f"not graphs: {reason}" in auto.execution.reason
    same_bits(auto, eager)
    with pytest.raises(ExecutionError, match=f"execution graphs is not possible: {reason}"):
        graphs.run(1)


def test_a_failed_capture_loses_no_step(blobs: Dataset) -> None:
    # Without cuBLASLt's products CuPy's are needed, which is detected in the capture.
    auto, eager, graphs = (
        trainer_on(host_cuda_backend(cublaslt=True, unknown=("DEFAULT",), execution=way), blobs)
        for way in ("auto", "eager", "graphs")
    )
    for trainer in (auto, eager):
        trainer.run(2)
    assert auto.execution.name == "eager"
    assert "not graphs: a step cannot be captured: calling cuBLAS API" in auto.execution.reason
    same_bits(auto, eager)
    with pytest.raises(ExecutionError, match="a step cannot be captured"):
        graphs.run(1)
    assert graphs.epoch == 0


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("batch_size", [16, 75])
def test_on_a_gpu_graph_and_eager_weights_are_the_same(blobs: Dataset, batch_size: int, optimizer: object) -> None:
    trainers = []
    for way in ("graphs", "eager"):
        backend = gpu_backend(execution=way)
        pytest.importorskip("nvmath", reason="nvmath-python is not installed")
        trainers.append(trainer_on(backend, blobs, optimizer=optimizer, batch_size=batch_size))
        trainers[-1].run(5)
        assert trainers[-1].execution.name == way
    weights = [trainer.model.state_dict() for trainer in trainers]
    for name, array in weights[0].items():
        assert array.tobytes() == weights[1][name].tobytes(), name
    assert trainers[0].history["train_loss"] == trainers[1].history["train_loss"]
