"""Steps by CUDA graphs end with the same bits as steps one by one, whatever changes between two launches."""

from __future__ import annotations

import pytest

from gpumlp import MLP, SGD, Adam, Dataset, LeakyReLU, Penalty, Trainer
from gpumlp.backends.cuda_graphs import LENGTHS
from gpumlp.training.callbacks import Callback
from tests.gpu_helpers import gpu_backend
from tests.graph_helpers import always_faster, launches_of_an_epoch, pair, plan, same_bits, trainer_on
from tests.host_cuda import host_cuda_backend

OPTIMIZERS = [SGD(), SGD(momentum=0.9, nesterov=True), Adam(0.01)]


class Listener(Callback):
    """Somebody who listens, so that an epoch is run in many parts."""


@pytest.mark.parametrize("listeners", [[], [Listener()]], ids=["whole", "in parts"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("batch_size", [16, 75, 7])  # 18 and a short one, 4, 42 and a short one
def test_graph_and_eager_weights_are_the_same_bit_for_bit(
    blobs: Dataset, batch_size: int, optimizer: object, listeners: list[object]
) -> None:
    graph, eager = pair(blobs, optimizer=optimizer, batch_size=batch_size)
    graph.model.backend.steps_at_a_time = eager.model.backend.steps_at_a_time = 2
    for _ in range(4):
        for trainer in (graph, eager):
            trainer.run(trainer.epoch + 1, listeners)
        same_bits(graph, eager)
    assert plan(graph).state == "graph", plan(graph).reason
    assert "graph" in graph.model.backend.xp.launches
    assert "graph" not in eager.model.backend.xp.launches


def test_listeners_leave_the_graphs_as_many_steps_as_they_take_at_once(blobs: Dataset) -> None:
    trainer, _ = pair(blobs, batch_size=4)  # 75 batches
    trainer.run(3, [Listener()])
    assert plan(trainer).tried == LENGTHS[0]


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
    trainer, _ = pair(blobs, diagnostics=False)
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
    # 75 batches: 16 one by one, 32 for the trial, 27 = 16 + 4 + 4 + 1 + 1 + 1
    graph, eager = pair(blobs, batch_size=4, diagnostics=False)
    launches = launches_of_an_epoch(graph)
    repeats, steps = 3, 16 + 4 + 1
    assert launches.count("graph") == repeats * 3 + 6
    assert launches.count("gather_pixels") == 16 + (32 - steps) + repeats * steps
    eager.run(1)
    same_bits(graph, eager)


def test_an_array_that_was_exchanged_is_noticed(blobs: Dataset) -> None:
    graph, eager = pair(blobs)
    for trainer in (graph, eager):
        trainer.run(3)
        step, xp = trainer._step, trainer.model.backend.xp
        step.losses, step.correct = xp.zeros_like(step.losses), xp.zeros_like(step.correct)
        step.batches._order = step.batches._order.copy()
        step.model.layers[1].bias_gradient = xp.zeros_like(step.model.layers[1].bias_gradient)
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


def test_more_steps_at_a_time_than_were_tried_are_tried_again(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size=16)
    batches = graph.batches.slices
    for trainer in (graph, eager):
        step, run_steps = trainer._step, trainer.model.backend.run_steps
        for part in (batches[:2], batches[2:7]):
            run_steps(step, part)
    assert list(plan(graph).graphs) == [4, 1]
    for trainer in (graph, eager):
        trainer.run(2)
    assert list(plan(graph).graphs) == [16, 1]  # 18 steps
    assert plan(graph).state == "graph"
    same_bits(graph, eager)


def test_an_interrupt_in_a_second_trial_leaves_a_training_that_goes_on(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size=16)
    batches, runner = graph.batches.slices, graph.model.backend.graphs
    for trainer in (graph, eager):
        for part in (batches[:2], batches[2:7]):
            trainer.model.backend.run_steps(trainer._step, part)
    assert plan(graph).state == "graph"
    capture, runner._capture = runner._capture, interrupted
    assert graph.run(2).interrupted
    assert graph.epoch == 0
    runner._capture = capture
    for trainer in (graph, eager):
        trainer.run(2)
    assert plan(graph).state == "graph"
    same_bits(graph, eager)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_graph_of_each_length_is_held_against_single_steps(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size=8)  # 37 full batches
    runner, lengths = graph.model.backend.graphs, []
    capture = runner._capture

    def wrong(plan: object, step: object, batches: list[slice]) -> object:
        lengths.append(len(batches))
        if len(batches) == 1:  # the next sample's place: a mistake that no graph of 4 or 16 steps makes
            batches = [slice(batches[0].start + 1, batches[0].stop + 1)]
        return capture(plan, step, batches)

    runner._capture = wrong
    for trainer in (graph, eager):
        trainer.run(3)
    assert lengths == list(LENGTHS)
    assert (plan(graph).state, plan(graph).reason) == ("eager", "the results differ")
    same_bits(graph, eager)


def test_a_full_batch_is_a_graph_of_one_step(blobs: Dataset) -> None:
    graph, eager = pair(blobs, batch_size="full")
    for trainer in (graph, eager):
        trainer.run(5)
    assert list(plan(graph).graphs) == [LENGTHS[-1]] == [1]
    same_bits(graph, eager)


def test_more_steps_than_their_factors_have_room(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpumlp.backends.cuda_graphs.CAPACITY", 23)
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
    trainers = []
    for choice in ("auto", "off"):
        backend = gpu_backend(cuda_graphs=choice)
        pytest.importorskip("nvmath", reason="nvmath-python is not installed")
        if backend.graphs is not None:
            always_faster(backend)
        trainers.append(trainer_on(backend, blobs, optimizer=optimizer, batch_size=batch_size))
        trainers[-1].run(5)
    assert plan(trainers[0]).state == "graph", plan(trainers[0]).reason
    weights = [trainer.model.state_dict() for trainer in trainers]
    for name, array in weights[0].items():
        assert array.tobytes() == weights[1][name].tobytes(), name
