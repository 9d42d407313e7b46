"""Where graphs cannot be had, are wrong or do not win, steps go one by one, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import SGD, Dataset, Trainer
from gpumlp.backends.cuda_graphs import Capture, NotCapturableError
from gpumlp.backends.cuda_kernels import Place
from tests.graph_helpers import launches_of_an_epoch, pair, plan, same_bits, trainer_on
from tests.host_cuda import host_cuda_backend


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


@pytest.mark.parametrize("operation", ["logistic_cross_entropy", "squared_error", "weigh"])
def test_an_operation_that_a_graph_could_not_repeat_is_no_part_of_one(operation: str) -> None:
    backend = host_cuda_backend(cublaslt=True)
    ones = [backend.asarray(np.ones((4, 2), np.float32)), backend.asarray(np.ones((4, 2), np.float32))]
    rest = [backend.asarray(np.ones(4, np.float32)), backend.asarray(np.ones(4, bool))]
    arguments = [ones[0], *rest[:1], rest[0]] if operation == "weigh" else [*ones, *rest]
    getattr(backend, operation)(*arguments)
    place = Place(backend.asarray(np.zeros(2, np.int64)), backend.asarray(np.zeros((1, 2), np.float32)))
    refusal = pytest.raises(NotCapturableError, match=f"no kernel knows this {operation}")
    with backend.capturing(Capture(place)), refusal:
        getattr(backend, operation)(*arguments)
