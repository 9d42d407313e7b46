"""Every way of running steps does what the network's methods and rules say, whoever overrides or replaces them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, Penalty, SoftmaxCrossEntropy, Trainer
from gpumlp.backends import Backend
from gpumlp.backends.numpy import NumpyBackend
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend


def persistent() -> Backend:
    """The persistent kernel for what it supports, and otherwise what ``auto`` takes."""
    backend = host_cuda_backend()
    backend.xp.attributes["CooperativeLaunch"] = 1
    return backend


WAYS: dict[str, Callable[[], Backend]] = {
    "cpu": NumpyBackend,
    "eager": host_cuda_backend,
    "graphs": lambda: host_cuda_backend(cublaslt=True),
    "persistent": persistent,
}


@dataclass(frozen=True)
class Slower(SGD):
    """A tenth of the learning rate, with the kernel of SGD."""

    kernel = "sgd"

    def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]:
        return (learning_rate / 10 / steps,)


class HalfLoss(SoftmaxCrossEntropy):
    """Half of the error term; its class could have any name."""

    def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, correct: Any) -> None:
        super().output_error(backend, outputs, targets, losses, correct)
        backend.xp.multiply(outputs, 0.5, out=outputs)


HalfLoss.__name__ = "SoftmaxCrossEntropy"


class NoPenalty(Penalty):
    """Equal to its parent, and does nothing."""

    def add_gradient(self, backend: Any, weights: Any, gradient: Any, scratch: Any) -> None:
        pass


def half_backward(trainer: Trainer) -> None:
    model, whole = trainer.model, trainer.model.backward_pass

    def backward_pass(workspace: Any, *rest: Any) -> None:
        model.backend.xp.multiply(workspace.logits, 0.5, out=workspace.logits)
        whole(workspace, *rest)

    model.backward_pass = backward_pass


def half_inputs(trainer: Trainer) -> None:
    batches, whole = trainer.batches, trainer.batches.gather

    def gather(batch: slice, staging: Any, out: Any) -> Any:
        targets = whole(batch, staging, out)
        trainer.model.backend.xp.multiply(out, 0.5, out=out)
        return targets

    batches.gather = gather


def other_loss(trainer: Trainer) -> None:
    trainer._step.loss = HalfLoss()


def other_penalty(trainer: Trainer) -> None:
    trainer._step.penalty = NoPenalty(trainer._step.penalty.l2)


def other_optimizer(trainer: Trainer) -> None:
    trainer._step.optimizer = Slower(0.1, momentum=0.9)


def fresh_velocity(trainer: Trainer) -> None:
    buffers, xp = trainer.optimizer_state.buffers, trainer.model.backend.xp
    buffers["velocity"] = xp.zeros_like(buffers["velocity"])


CHANGES = [half_backward, half_inputs, other_loss, other_penalty, other_optimizer, fresh_velocity]


def trainer_on(backend: Backend, data: Dataset, optimizer: Any, dtype: str = "float64") -> Trainer:
    model = MLP([data.features, 20, data.classes], seed=1, device=backend, dtype=dtype)
    return Trainer(model, data, optimizer=optimizer, penalty=Penalty(l2=0.01), batch_size=16, diagnostics=False)


def trainers_of(way: str, data: Dataset, optimizer: Any) -> tuple[Trainer, Trainer]:
    """A trainer whose steps run in a way, in the precision that it supports, and the reference."""
    trainer = trainer_on(WAYS[way](), data, optimizer, "float32" if way == "persistent" else "float64")
    assert trainer.execution.name == ("eager" if way == "cpu" else way)
    return trainer, trainer_on(StrictBackend(), data, optimizer)


def ends_as_the_reference(trainer: Trainer, reference: Trainer) -> None:
    got, want = (t.model.backend.to_numpy(t.model.parameters.data) for t in (trainer, reference))
    relative, absolute = (1e-4, 1e-5) if got.dtype == np.float32 else (1e-9, 1e-11)
    np.testing.assert_allclose(got, want, rtol=relative, atol=absolute)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS)
def test_a_change_between_epochs_takes_effect(way: str, change: Callable[[Trainer], None], blobs: Dataset) -> None:
    trainers = trainers_of(way, blobs, SGD(0.1, momentum=0.9))
    for trainer in trainers:
        trainer.run(2)
        change(trainer)
        trainer.run(4)
    ends_as_the_reference(*trainers)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("way", WAYS)
def test_step_factors_of_a_subclass_take_effect(way: str, momentum: float, blobs: Dataset) -> None:
    trainers = trainers_of(way, blobs, Slower(0.5, momentum=momentum))
    for trainer in trainers:
        trainer.run(2)
    ends_as_the_reference(*trainers)


def test_a_gradient_that_another_optimizer_left_is_not_taken_for_that_of_the_last_step(blobs: Dataset) -> None:
    model = MLP([blobs.features, 8, blobs.classes], device="cpu")
    trainer = Trainer(model, blobs, batch_size=32)
    trainer.run(1)
    Trainer(model, blobs, optimizer=Adam(), batch_size=32).run(1)
    trainer.run(2)
    for layer in model.layers:
        assert np.isnan(layer.weight_gradient).all() or not model.backend.accumulates(SGD(), Penalty())


def test_a_method_that_a_class_gets_later_takes_effect(blobs: Dataset) -> None:
    class Mine(SGD):
        pass

    trainer_on(NumpyBackend(), blobs, Mine(0.1)).run(1)
    Mine.update = lambda self, xp, parameters, gradient, state, learning_rate: None
    trainer = trainer_on(NumpyBackend(), blobs, Mine(0.1))
    before = trainer.model.parameters.data.copy()
    trainer.run(1)
    np.testing.assert_array_equal(trainer.model.parameters.data, before)
