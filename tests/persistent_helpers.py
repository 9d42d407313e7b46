"""What the tests of the persistent kernel share: a training on any device, and the kernel with another line."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import MLP, Dataset, Trainer
from gpumlp.backends import Backend, persistent
from gpumlp.backends.cuda_kernels import kernel_source
from tests.host_cuda import host_cuda_backend

THREADS = 64  # of a block; fewer than on a GPU, because they take turns here


def host_backend(order: int = 0, choice: str = "on", **attributes: int) -> Backend:
    """The persistent kernel on the processor.

    Args:
        order: in which the threads of all blocks take turns, see ``HostCupy.thread_order``.
        choice: of the persistent kernel.
        attributes: of the device, where they differ from the double's.
    """
    backend = host_cuda_backend(persistent_kernel=choice, cuda_graphs="off")
    if backend.persistent is not None:
        backend.persistent.threads = THREADS
    backend.xp.thread_order = order
    backend.xp.attributes |= attributes
    return backend


def trainer_on(
    backend: Backend,
    data: Dataset,
    hidden: tuple[int, ...] = (18,),
    activation: str = "relu",
    dtype: str = "float32",
    loss: str = "softmax_cross_entropy",
    **options: object,
) -> Trainer:
    sizes = [data.features, *hidden, data.classes]
    model = MLP(sizes, activation=activation, seed=1, device=backend, dtype=dtype, loss=loss)
    return Trainer(model, data, **{"batch_size": 16, "diagnostics": False} | options)


def ran(trainer: Trainer) -> bool:
    """Was it by the kernel?"""
    return trainer.how_steps_ran.startswith("by one persistent kernel")


def arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    """All that a training leaves behind."""
    to_numpy, step = trainer.model.backend.to_numpy, trainer._step
    buffers = {name: to_numpy(buffer) for name, buffer in trainer.optimizer_state.buffers.items()}
    results = {"losses": to_numpy(step.losses), "correct": to_numpy(step.correct)}
    return {"parameters": to_numpy(trainer.model.parameters.data)} | buffers | results


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays(trainer).items()}


def close(got: Trainer, want: Trainer, tolerance: float) -> None:
    """Have both trainings come to the same, up to rounding?"""
    for name, array in arrays(want).items():
        np.testing.assert_allclose(arrays(got)[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
    for name in ("train_loss", "train_accuracy"):
        np.testing.assert_allclose(got.history[name], want.history[name], rtol=tolerance, atol=tolerance)
    assert got.optimizer_state.steps == want.optimizer_state.steps


def change_kernel(monkeypatch: pytest.MonkeyPatch, before: str, after: str, occurrence: int = 0) -> None:
    """Run another kernel: one whose text differs there."""
    source = kernel_source(*persistent.SOURCES)
    parts = source.split(before)
    assert len(parts) > occurrence + 1, f"{before} is not in the kernel so often"
    changed = before.join(parts[: occurrence + 1]) + after + before.join(parts[occurrence + 1 :])
    monkeypatch.setattr(persistent, "kernel_source", lambda *names: changed)
