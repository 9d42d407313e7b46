"""Checkpoints: everything that training needs to continue, in one safetensors file (no pickle)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from ..backends import Backend, HostArray
from ..files import write_atomically
from ..nn.model_file import describe, set_facts
from ..nn.network import MLP
from .config import Config, ConfigError
from .history import EpochRecord, History
from .trainer import Trainer

FORMAT = "gpumlp-checkpoint-1"


class CheckpointError(ValueError):
    """A file is not a checkpoint, or not one of this network; the message names the difference."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        config: of the run, resolved.
        sizes: of the network's layers.
        dataset: name, fingerprint and other facts of the data set.
        tensors: ``model.layers.0.weight``, ..., ``optimizer.velocity.layers.0.weight``, ..., on the host.
        steps: optimizer steps taken.
        random_state: of the generator of the batch order.
        history: of the finished epochs.
        model: the network's description, with which ``MLP.load`` needs nothing else of a checkpoint.
        execution: how the steps were run: ``device``, ``name``, ``reason`` and ``threads`` (see
            `gpumlp.backends.Execution`); empty in runs of earlier versions.
    """

    config: Config
    sizes: list[int]
    dataset: dict[str, Any]
    tensors: dict[str, HostArray]
    steps: int
    random_state: dict[str, Any]
    history: History
    model: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trainer: Trainer, config: Config) -> Checkpoint:
        """The present state of a trainer. Waits for the device."""
        model, train = trainer.model, trainer.train_set
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for buffer, flat in trainer.optimizer_state.buffers.items():
            named = model.parameters.to_host(flat, model.backend)
            tensors |= {f"optimizer.{buffer}.{name}": tensor for name, tensor in named.items()}
        return cls(
            config=config,
            sizes=model.sizes,
            dataset={
                "name": train.name,
                "classes": train.classes,
                "train_fingerprint": train.fingerprint(),
                "label_entropy": train.label_entropy,
            },
            tensors=tensors,
            steps=trainer.optimizer_state.steps,
            random_state=trainer.random_state(),
            history=trainer.history,
            model=describe(model),
            execution=execution_record(trainer),
        )

    def make_model(self, device: str | Backend) -> MLP:
        """The network as it was saved, on any device.

        Raises:
            CheckpointError: the tensors are not those of the network that the header describes.
        """
        try:
            model = MLP(
                self.sizes,
                self.config.activation,
                initializer=self.config.make_initializer(),
                seed=self.config.seed,
                device=device,
                dtype=self.config.dtype,
            )
            model.load_state_dict(self._group("model."))
            if self.model:
                set_facts(model, self.model)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the weights do not fit MLP({self.sizes}): {error}") from error
        return model

    def restore(self, trainer: Trainer) -> None:
        """Put a new trainer of the same configuration, including its network, into the saved state.

        Raises:
            CheckpointError: the data set or the optimizer's state is different.
        """
        found, expected = trainer.train_set.fingerprint(), self.dataset["train_fingerprint"]
        if found != expected:
            raise CheckpointError(f"the run was trained on other data: expected {expected}, got {found}")
        parameters, backend = trainer.model.parameters, trainer.model.backend
        try:
            trainer.model.load_state_dict(self._group("model."))
        except ValueError as error:
            raise CheckpointError(f"the weights do not fit {trainer.model}: {error}") from error
        buffers = {}
        for name in trainer.optimizer_state.buffers:
            try:
                flat = parameters.from_host(self._group(f"optimizer.{name}."), backend)
            except ValueError as error:
                raise CheckpointError(f"the optimizer's {name} does not fit the network: {error}") from error
            buffers[name] = backend.to_numpy(flat)
        try:
            trainer.restore(buffers, self.steps, self.random_state, History(self.history.records))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the random state cannot be restored: {error}") from error

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            OSError: the disk is full, the folder is read-only, ...; the previous file is as it was.
        """
        state = {
            "sizes": self.sizes,
            "dataset": self.dataset,
            "steps": self.steps,
            "random_state": self.random_state,
            "execution": self.execution,
        }
        lines = ", ".join(record.to_json() for record in self.history)
        metadata = {
            "format": FORMAT,
            "config": json.dumps(dataclasses.asdict(self.config)),
            "state": f'{json.dumps(state)[:-1]}, "history": [{lines}]}}',
            "model": json.dumps(self.model),
        }
        write_atomically(path, safetensors.numpy.save(self.tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file that `save` wrote.

        Raises:
            CheckpointError: it is missing, damaged, or not a checkpoint of gpumlp.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            raise CheckpointError(f"there is no checkpoint {path}; give the folder of a run") from None
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read as a safetensors file: {error}") from error
        found = metadata.get("format", "none")
        if found != FORMAT:
            raise CheckpointError(
                f"{path} is no checkpoint of this version of gpumlp: expected format {FORMAT}, got {found}"
            )
        try:
            state = json.loads(metadata["state"])
            return cls(
                config=Config.from_dict(json.loads(metadata["config"])),
                sizes=[int(size) for size in state["sizes"]],
                dataset=dict(state["dataset"]),
                tensors=tensors,
                steps=int(state["steps"]),
                random_state=state["random_state"],
                history=History([EpochRecord.from_dict(record) for record in state["history"]]),
                model=json.loads(metadata.get("model", "{}")),
                execution=dict(state.get("execution", {})),
            )
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has a damaged header: {type(error).__name__}: {error}") from error

    def _group(self, prefix: str) -> dict[str, HostArray]:
        return {
            name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)
        }


def execution_record(trainer: Trainer) -> dict[str, Any]:
    """How a trainer's steps are run, for the files of a run."""
    return {"device": trainer.model.backend.name, **trainer.execution._asdict()}
