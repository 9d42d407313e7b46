"""gpumlp, through its public `Trainer`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gpumlp import MLP, SGD, Dataset, DeviceError, Trainer, get_backend

from .base import NotMeantForError, Peer, Samples, Setting


class Gpumlp(Peer):
    name = "gpumlp"
    title = "gpumlp"
    persistent_kernel: ClassVar[str] = "off"

    @classmethod
    def why_not(cls, device: str, dtype: str) -> str | None:
        try:
            get_backend(device)
        except DeviceError as error:
            return str(error)
        return None

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        self.setting, self.samples = setting, samples
        backend = get_backend(setting.device, persistent_kernel=self.persistent_kernel)
        self.model = MLP(setting.sizes, activation="relu", device=backend, dtype=setting.dtype)
        self.model.load_state_dict(weights)
        self.optimizer = SGD(setting.learning_rate, momentum=setting.momentum)
        self.trainer = self._trainer(slice(0, len(samples)))

    def losses(self) -> list[float]:
        # A trainer of its own for each batch, which it cannot but take in order, goes on from the one before.
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
        reorder = batches.reorder
        # A trainer always shuffles: the order that it has drawn is put back as it was, on its way to the batches.
        batches.reorder = lambda rows: reorder(np.sort(rows))  # type: ignore[method-assign]
        try:
            return self.epoch()
        finally:
            del batches.reorder  # the class's own comes to light again

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
            diagnostics=False,  # nobody else in the comparison has any
        )


class GpumlpPersistent(Gpumlp):
    """The same with the persistent kernel, in the settings that it runs. Not yet measured on a GPU."""

    name = "gpumlp-persistent"
    title = "gpumlp, persistent kernel"
    persistent_kernel = "on"

    @classmethod
    def why_not(cls, device: str, dtype: str) -> str | None:
        if device == "cpu":
            return "the persistent kernel needs a GPU"
        return super().why_not(device, dtype)

    def _run(self, trainer: Trainer) -> float:
        loss = super()._run(trainer)
        ran = trainer.how_steps_ran or ""
        _, failed, words = ran.partition("; the persistent kernel failed: ")
        if failed:
            raise RuntimeError(f"the persistent kernel failed: {words}")
        if not ran.startswith("by one persistent kernel"):
            raise NotMeantForError(ran)
        return loss
