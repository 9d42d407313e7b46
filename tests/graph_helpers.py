"""What the tests of CUDA graphs share: two trainings that differ in them alone."""

from __future__ import annotations

import numpy as np

from gpumlp import MLP, Adam, Dataset, ExponentialDecay, Penalty, Trainer
from tests.host_cuda import host_cuda_backend


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
