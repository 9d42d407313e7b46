"""gpumlp, through its public `Trainer`."""

from __future__ import annotations

import numpy as np

from gpumlp import MLP, SGD, Dataset, DeviceError, Trainer, get_backend

from .base import Peer, Samples, Setting


class Gpumlp(Peer):
    name = "gpumlp"
    title = "gpumlp"

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
        self.model = MLP(setting.sizes, activation="relu", device=setting.device, dtype=setting.dtype)
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
            result.append(trainer.run(trainer.epoch + 1)["train_loss"][-1])
            before = trainer
        return result

    def epoch(self, part: int | None = None) -> float:
        loss: float = self.trainer.run(self.trainer.epoch + 1)["train_loss"][-1]
        return loss

    def synchronize(self) -> None:
        self.model.backend.synchronize()

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
