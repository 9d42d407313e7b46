"""gpumlp, through its public `Trainer`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gpumlp import MLP, SGD, Dataset, DeviceError, Trainer, get_backend
from gpumlp.backends import Execution, ExecutionError

from . import NotMeantForError, Peer, Samples, Setting


class Gpumlp(Peer):
    name = "gpumlp"
    title = "gpumlp"
    execution: ClassVar[str] = "auto"

    @classmethod
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
        try:
            get_backend(device)
        except DeviceError as error:
            return str(error)
        return None

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        self.setting, self.samples = setting, samples
        backend = get_backend(setting.device, execution=self.execution)
        self.model = MLP(setting.sizes, activation="relu", device=backend, dtype=setting.dtype)
        self.model.load_state_dict(weights)
        self.optimizer = SGD(setting.learning_rate, momentum=setting.momentum)
        self.trainer = self._trainer(slice(0, len(samples)))
        self.variants = () if setting.device == "cpu" else (way_of(self.trainer.execution),)

    def losses(self) -> list[float]:
        # Each batch has a trainer of its own, which continues from the one before: so they come in order.
        result: list[float] = []
        before: Trainer | None = None
        for rows in self.samples.batches(self.setting.batch_size):
            trainer = self._trainer(rows)
            if before is not None:
                state = before.optimizer_state
                to_numpy = self.model.backend.to_numpy
                buffers = {name: to_numpy(buffer) for name, buffer in state.buffers.items()}
                trainer.restore(buffers, state.steps, before.random_state(), before.history)
            result.append(self._run(trainer))
            before = trainer
        return result

    def epoch(self, part: int | None = None) -> float:
        return self._run(self.trainer)

    def unshuffled_epoch(self) -> float:
        batches = self.trainer.batches
        reordering = batches.reordering
        # A trainer always shuffles: its order is sorted again on its way to the batches.
        batches.reordering = lambda rows: reordering(np.sort(rows))  # type: ignore[method-assign]
        try:
            return self.epoch()
        finally:
            del batches.reordering

    def synchronize(self) -> None:
        self.model.backend.synchronize()

    def _run(self, trainer: Trainer) -> float:
        """One more epoch; its mean loss."""
        loss: float = trainer.run(trainer.epoch + 1)["train_loss"][-1]
        return loss

    def _trainer(self, rows: slice) -> Trainer:
        data = Dataset(
            self.samples.images[rows], self.samples.labels[rows], classes=self.setting.sizes[-1], name="samples"
        )
        return Trainer(
            self.model,
            data,
            optimizer=self.optimizer,
            batch_size=self.setting.batch_size,
            diagnostics=False,  # no other peer has any
        )


def way_of(execution: Execution) -> str:
    """How gpumlp runs on a GPU: ``"graphs"``, or ``"persistent on 16 multiprocessors"``."""
    count = execution.multiprocessors
    return f"{execution.name} on {count} multiprocessor{'s' * (count > 1)}" if count else execution.name


class GpumlpGraphs(Gpumlp):
    """The same by CUDA graphs, in the settings that gpumlp runs in another way."""

    name = "gpumlp-graphs"
    title = "gpumlp, CUDA graphs"
    execution = "graphs"
    needs = "CUDA graphs need a GPU"
    already = "gpumlp runs by CUDA graphs here"

    @classmethod
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
        return cls.needs if device == "cpu" else super().unsupported_reason(device, dtype)

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        try:
            super().__init__(setting, samples, weights, threads)
        except ExecutionError as error:
            raise NotMeantForError(str(error)) from error
        batch = Samples(samples.images[: setting.batch_size], samples.labels[: setting.batch_size], setting.dtype)
        if Gpumlp(setting, batch, weights).trainer.execution.name == self.execution:
            raise NotMeantForError(self.already)


class GpumlpPersistent(GpumlpGraphs):
    """The same by the persistent kernel, in the settings that it supports and gpumlp runs in another way."""

    name = "gpumlp-persistent"
    title = "gpumlp, persistent kernel"
    execution = "persistent"
    needs = "the persistent kernel needs a GPU"
    already = "gpumlp runs by the persistent kernel here"
