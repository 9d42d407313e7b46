"""NCCL on a GPU, which sends to itself; tests/test_gpu_group.py has several processes, with fakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, Group, Trainer
from gpumlp.backends import Backend
from gpumlp.training.group import DeviceSum
from tests.gpu_helpers import gpu_backend, import_showing_warnings


class ToItself(Group):
    """One process, whose GPU sends all that it adds up to itself, by NCCL."""

    def connect(self, backend: Backend) -> None:
        self.device_sum = DeviceSum(backend.connect(0, 1, lambda value: value), 0, 1)

    def sum(self, pieces: Sequence[tuple[int, Any]], terms: int, out: Any) -> None:
        self.device_sum(pieces, terms, out)


@pytest.mark.gpu
@pytest.mark.parametrize("execution", ["graphs", "eager"])
@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam(0.01)], ids=repr)
@pytest.mark.parametrize("shards", [2, 3])
def test_on_a_gpu_nccl_leaves_the_bits_of_one_process(
    blobs: Dataset, shards: int, optimizer: Any, execution: str
) -> None:
    backend, group = gpu_backend(execution=execution), ToItself()
    import_showing_warnings("nccl.core")
    for library in ("nccl.core", "nvmath"):
        pytest.importorskip(library, reason=f'{library} is not installed: pip install ".[nccl,nvmath]"')
    group.connect(backend)
    weights, losses = [], []
    for each in (Group(), group):
        model = MLP([20, 16, 4], seed=7, device=backend)
        trainer = Trainer(model, blobs, optimizer=optimizer, batch_size=12, seed=7, shards=shards, group=each)
        losses.append(trainer.run(4)["train_loss"])
        assert trainer.execution.name == execution
        weights.append(np.concatenate([tensor.ravel() for tensor in model.state_dict().values()]))
    assert weights[0].tobytes() == weights[1].tobytes()
    assert losses[0] == losses[1]
