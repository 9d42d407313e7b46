"""Steps by CUDA graphs end with the same bits as steps one by one, whatever changes between two launches."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, ExponentialDecay, LeakyReLU, Penalty, Trainer
from gpumlp.backends.cuda_graphs import LENGTHS, NotCapturableError
from gpumlp.training.callbacks import Callback
from tests.host_cuda import host_cuda_backend

OPTIMIZERS = [SGD(), SGD(momentum=0.9, nesterov=True), Adam(0.01)]


class Listener(Callback):
    """Somebody who listens, so that an epoch is run in many parts."""


def trainer_on(backend: object, data: Dataset, optimizer: object = None, **options: object) -> Trainer:
    model = MLP(
        [data.features, 16, 12, data.classes], activation=options.pop("activation", "relu"), device=backend
    )
    options = {"batch_size": 16, "schedule": ExponentialDecay(0.3), "penalty": Penalty(l2=1e-3)} | options
    return Trainer(model, data, optimizer=optimizer or Adam(0.01), **options)


def pair(data: Dataset, **options: object) -> tuple[Trainer, Trainer]:
    """Two trainers that differ in cuda_graphs alone."""
    return tuple(
        trainer_on(host_cuda_backend(cublaslt=True, cuda_graphs=choice), data, **options)
        for choice in ("auto", "off")
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


def plan(trainer: Trainer) -> object:
    return trainer.model.backend.graphs.plan(trainer._step)


def always_faster(backend: object) -> None:
    """Let graphs win the trial, for tests of what they compute."""
    backend.graphs.clock = iter(np.r_[np.arange(6) * 100.0, np.zeros(1000)]).__next__


def launches_of_an_epoch(trainer: Trainer, callbacks: list[object] = ()) -> list[str]:
    trainer.model.backend.xp.launches.clear()
    trainer.run(trainer.epoch + 1, callbacks)
    return list(trainer.model.backend.xp.launches)


@pytest.mark.parametrize("listeners", [[], [Listener()]], ids=["whole", "in parts"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("batch_size", [16, 75, 7])  # 18 and a short one, 4, 42 and a short one
def test_graph_and_eager_weights_are_the_same_bit_for_bit(
    blobs: Dataset, batch_size: int, optimizer: object, listeners: list[object]
) -> None:
    graph, eager = pair(blobs, optimizer=optimizer, batch_size=batch_size)
    for _ in range(4):
        for trainer in (graph, eager):
            trainer.run(trainer.epoch + 1, listeners)
        same_bits(graph, eager)
    assert plan(graph).state == "graph", plan(graph).reason
    assert "graph" in graph.model.backend.xp.launches
    assert "graph" not in eager.model.backend.xp.launches


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["relu", "tanh", LeakyReLU(0.2)])
def test_every_activation_and_dtype(blobs: Dataset, activation: object, dtype: str) -> None:
    trainers = []
    for choice in ("auto", "off"):
        backend = host_cuda_backend(cublaslt=True, cuda_graphs=choice)
        model = MLP([20, 16, 4], activation=activation, device=backend, dtype=dtype)
        trainers.append(Trainer(model, blobs, batch_size=16))
        trainers[-1].run(4)
    assert plan(trainers[0]).state == "graph", plan(trainers[0]).reason
    same_bits(*trainers)


def test_an_epoch_takes_two_launches_a_graph_and_the_short_batch_its_own(blobs: Dataset) -> None:
    trainer, _ = pair(blobs)
    trainer.run(2)
    launches = launches_of_an_epoch(trainer)
    graphs = [name for name in launches if name in ("graph", "set_position")]
    assert graphs == ["set_position", "graph"] * 3  # 18 full batches: 16 + 1 + 1
    assert launches.count("gather_pixels") == 1  # the 19th batch, of 12 samples


def test_the_trial_is_part_of_the_training(blobs: Dataset) -> None:
    """No step is lost or done twice by it, wherever it falls, and epochs before it count too."""
    graph, eager = pair(blobs, batch_size=64)
    for trainer in (graph, eager):
        trainer.run(1)
    assert plan(graph).state == "warm"
    for trainer in (graph, eager):
        trainer.run(2)
    assert plan(graph).state == "graph"
    same_bits(graph, eager)


def test_a_long_first_epoch_already_ends_with_graphs(blobs: Dataset) -> None:
    graph, eager = pair(
        blobs, batch_size=4
    )  # 75 batches: 16 one by one, 32 for the trial, 27 = 16 + 4 + 4 + 1 + 1 + 1
    launches = launches_of_an_epoch(graph)
    trial = 3  # repeats, of 16 steps
    assert launches.count("graph") == trial + 6
    assert launches.count("gather_pixels") == 16 + 16 + trial * 16
    eager.run(1)
    same_bits(graph, eager)


def test_an_array_that_was_exchanged_is_noticed(blobs: Dataset) -> None:
    graph, eager = pair(blobs)
    for trainer in (graph, eager):
        trainer.run(3)
        step, xp = trainer._step, trainer.model.backend.xp
        step.losses, step.correct = xp.zeros_like(step.losses), xp.zeros_like(step.correct)
        step.batches._order = step.batches._order.copy()
    assert "graph" not in launches_of_an_epoch(graph)
    eager.run(4)
    same_bits(graph, eager)
    for trainer in (graph, eager):
        trainer.run(6)
    assert "graph" in launches_of_an_epoch(graph)  # captured again
    eager.run(7)
    same_bits(graph, eager)


def test_a_rule_that_was_exchanged_is_noticed(blobs: Dataset) -> None:
    graph, eager = pair(blobs, activation="leaky_relu")
    for trainer in (graph, eager):
        trainer.run(3)
        trainer._step.penalty = Penalty(l1=0.01)
        trainer.run(4)
        trainer.model.activation.negative_slope = 0.3
        trainer.run(5)
    same_bits(graph, eager)


def test_weights_that_were_loaded_are_those_that_a_graph_goes_on_from(blobs: Dataset) -> None:
    graph, eager = pair(blobs)
    for trainer in (graph, eager):
        trainer.run(3)
        trainer.model.load_state_dict(MLP([20, 16, 12, 4], seed=8, device="cpu").state_dict())
        trainer.run(4)
    assert plan(graph).state == "graph"
    same_bits(graph, eager)


def refuse(trainer: Trainer) -> None:
    trainer.run(4)
    assert plan(trainer).state == "eager"
    assert "graph" not in launches_of_an_epoch(trainer)


def test_without_nvidias_bindings_steps_go_one_by_one(blobs: Dataset) -> None:
    trainer, eager = (trainer_on(host_cuda_backend(cuda_graphs=choice), blobs) for choice in ("auto", "off"))
    refuse(trainer)
    assert "cuBLAS" in plan(trainer).reason
    eager.run(5)
    same_bits(trainer, eager)


def test_graphs_that_are_not_faster_are_not_used(blobs: Dataset) -> None:
    trainer, eager = pair(blobs)
    trainer.model.backend.graphs.clock = lambda: 0.0
    refuse(trainer)
    assert plan(trainer).reason == "graphs are not faster here"
    eager.run(5)
    same_bits(trainer, eager)


def test_graphs_that_compute_something_else_are_not_used(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, eager = pair(blobs)
    kernels = trainer.model.backend.kernels(np.dtype(np.float32))
    right = type(kernels).set_position
    monkeypatch.setattr(type(kernels), "set_position", lambda self, place, *_: right(self, place, 0, 0))
    refuse(trainer)
    assert plan(trainer).reason == "the results differ"
    eager.run(5)
    same_bits(trainer, eager)


def test_a_launch_that_fails_in_the_trial_leaves_the_training_as_it_was(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, eager = pair(blobs)

    def fail(self: object) -> None:
        for _, run in self.nodes[: len(self.nodes) // 2]:
            run()
        raise RuntimeError("cudaErrorLaunchFailure")

    monkeypatch.setattr("tests.host_cuda.HostGraph.launch", fail)
    refuse(trainer)
    assert plan(trainer).reason == "RuntimeError: cudaErrorLaunchFailure"
    eager.run(5)
    same_bits(trainer, eager)


class Slower(SGD):
    """An optimizer of the user's own, which no kernel knows."""

    def update(
        self, xp: object, parameters: object, gradient: object, state: object, learning_rate: float
    ) -> None:
        super().update(xp, parameters, gradient, state, learning_rate / 2)


def test_a_rule_that_no_kernel_knows_is_never_captured(blobs: Dataset) -> None:
    trainer, eager = pair(blobs, optimizer=Slower())
    refuse(trainer)
    assert plan(trainer).reason == f"{NotCapturableError.__name__}: no kernel knows this update"
    eager.run(5)
    same_bits(trainer, eager)


def test_an_allocation_in_a_capture_is_an_error(blobs: Dataset) -> None:
    trainer, _ = pair(blobs)
    step, runner = trainer._step, trainer.model.backend.graphs
    trainer.run(2)

    class Allocating:
        state, optimizer = step.state, step.optimizer

        def __call__(self, batch: slice) -> None:
            step(batch)
            trainer.model.backend.xp.zeros(3)

    with pytest.raises(NotCapturableError, match="allocates 24 bytes"):
        runner._capture(plan(trainer), Allocating(), trainer.batches.slices[:1])
    assert step.state.steps == trainer.epoch * len(trainer.batches.slices)


def test_a_full_batch_is_a_graph_of_one_step(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size="full")
    for trainer in (graph, eager):
        trainer.run(5)
    assert list(plan(graph).graphs) == [LENGTHS[-1]] == [1]
    same_bits(graph, eager)


def test_more_steps_than_their_factors_have_room(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpumlp.backends.cuda_graphs.CAPACITY", 17)
    graph, eager = pair(blobs, batch_size=7)  # 42 full batches
    always_faster(graph.model.backend)
    for trainer in (graph, eager):
        trainer.run(4)
    assert plan(graph).state == "graph"
    same_bits(graph, eager)


def test_a_plan_goes_with_its_trainer(blobs: Dataset) -> None:
    backend = host_cuda_backend(cublaslt=True)
    trainer = trainer_on(backend, blobs)
    trainer.run(3)
    assert len(backend.graphs._plans) == 1
    del trainer
    assert len(backend.graphs._plans) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("batch_size", [16, 75])
def test_on_a_gpu_graph_and_eager_weights_are_the_same(blobs: Dataset, batch_size: int, optimizer: object) -> None:
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    from gpumlp import DeviceError, get_backend

    trainers = []
    for choice in ("auto", "off"):
        try:
            backend = get_backend("cuda", cuda_graphs=choice)
        except DeviceError as error:
            pytest.skip(f"cuda: {error.cause}")
        if backend.graphs is not None:
            always_faster(backend)
        trainers.append(trainer_on(backend, blobs, optimizer=optimizer, batch_size=batch_size))
        trainers[-1].run(5)
    assert plan(trainers[0]).state == "graph", plan(trainers[0]).reason
    weights = [trainer.model.state_dict() for trainer in trainers]
    for name, array in weights[0].items():
        assert array.tobytes() == weights[1][name].tobytes(), name
