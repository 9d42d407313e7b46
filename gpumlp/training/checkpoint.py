"""Checkpoints: everything that training needs to continue, in one safetensors file and the history beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..backends import Array, Backend, HostArray
from ..nn.hyperparameters import numbers
from ..nn.metrics import METRICS
from ..nn.model_file import (
    CHECKPOINT_FORMAT,
    Content,
    ModelFileError,
    best_file,
    build_model,
    describe,
    file_bytes,
    read_content,
    sizes_of,
)
from ..nn.network import MLP
from .config import Config, ConfigError
from .history import History
from .history_file import CheckpointError, HistoryPart, history_path, read_history
from .trainer import Trainer

__all__ = ["Checkpoint", "CheckpointError", "execution_record"]


@dataclass(frozen=True)
class State:
    """What each epoch changes of a trainer, beside its history.

    Attributes:
        parameters: of the network, ``(size,)``, on the device.
        buffers: ``trainer.state_buffers``.
        steps: optimizer steps taken.
        random_state: of the generator of the batch order.
    """

    parameters: Array
    buffers: dict[str, Array]
    steps: int
    random_state: dict[str, Any]

    @classmethod
    def of(cls, trainer: Trainer) -> State:
        """The present one; the next epoch overwrites its arrays."""
        return cls(
            trainer.model.parameters.data,
            trainer.state_buffers,
            trainer.optimizer_state.steps,
            trainer.random_state(),
        )

    def copy(self) -> State:
        """With arrays of its own on the device, which is not waited for."""
        buffers = {name: buffer.copy() for name, buffer in self.buffers.items()}
        return dataclasses.replace(self, parameters=self.parameters.copy(), buffers=buffers)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. Each attribute but the last two is a group of the file, see `gpumlp.nn.model_file`.

    Attributes:
        model: the network's description, with which ``MLP.load`` needs nothing else of a checkpoint.
        steps: optimizer steps taken.
        config: of the run, resolved.
        dataset: name, task, fingerprint and other facts of the data set.
        random_state: of the generator of the batch order.
        part: the part of the run's history file that belongs to the checkpoint.
        execution: how the steps were run: ``device``, ``name``, ``reason`` and ``threads`` (see
            `gpumlp.backends.Execution`); empty in runs of earlier versions.
        best: with early stopping: the part of the history up to the best epoch, whose network the run keeps.
        tensors: ``model.layers.0.weight``, ..., ``optimizer.velocity.layers.0.weight``, ..., on the host. With an
            average of the parameters, it is the model, and ``optimizer.trained`` is what the steps change.
        path: that of the file.
    """

    model: dict[str, Any]
    steps: int
    config: Config
    dataset: dict[str, Any]
    random_state: dict[str, Any]
    part: HistoryPart
    execution: dict[str, Any]
    best: HistoryPart | None
    tensors: dict[str, HostArray]
    path: Path = field(default=Path("checkpoint"))

    @classmethod
    def of(
        cls,
        trainer: Trainer,
        config: Config,
        part: HistoryPart,
        best: HistoryPart | None = None,
        state: State | None = None,
    ) -> Checkpoint:
        """A state of a trainer, the present one if None, whose history is in the given part of a file.

        Waits for the device.
        """
        model, train, setting = trainer.model, trainer.train_set, trainer.history.setting
        state = State.of(trainer) if state is None else state
        groups = {"model": state.parameters}
        groups |= {f"optimizer.{name}": buffer for name, buffer in state.buffers.items()}
        tensors = {
            f"{group}.{name}": tensor
            for group, flat in groups.items()
            for name, tensor in model.parameters.to_host(flat, model.backend).items()
        }
        return cls(
            model=describe(model),
            steps=state.steps,
            config=config,
            dataset={
                "name": train.name,
                "task": train.task,
                "classes": train.classes,
                "train_fingerprint": train.fingerprint(),
                "label_entropy": None if setting is None else setting.label_entropy,
            },
            random_state=state.random_state,
            part=part,
            execution=execution_record(trainer),
            best=best,
            tensors=tensors,
        )

    @property
    def sizes(self) -> list[int]:
        """Of the network's layers."""
        return sizes_of(self.model)

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return self.part.epochs

    @cached_property
    def history(self) -> History:
        """The finished epochs, from the run's history file.

        Raises:
            CheckpointError: they are not there, or damaged.
        """
        return read_history(history_path(self.path.parent), self.part, len(self.sizes) - 1)

    @cached_property
    def result(self) -> Checkpoint:
        """That of the run's resulting network: of the best epoch if the run keeps it, otherwise this one.

        Raises:
            CheckpointError: the network of the best epoch is missing, damaged, or not that of this run.
        """
        return self if self.best in (None, self.part) else Checkpoint.load(self.result_path)

    @property
    def result_path(self) -> Path:
        """The file of `result`, of which only the header is read. Raises CheckpointError as `result` does."""
        if self.best in (None, self.part):
            return self.path
        try:
            return best_file(self.path, Content(CHECKPOINT_FORMAT, self._groups(), {}))
        except ModelFileError as error:
            raise CheckpointError(str(error)) from error

    def make_model(self, device: str | Backend) -> MLP:
        """The network as it was saved, on any device.

        Raises:
            CheckpointError: the tensors are not those of the network that the header describes.
        """
        try:
            return build_model(MLP, self._content(), self.path, device)
        except ModelFileError as error:
            raise CheckpointError(str(error)) from error

    def restore(self, trainer: Trainer) -> None:
        """Put a new trainer of the same configuration, including its network, into the saved state.

        Raises:
            CheckpointError: the data set, the optimizer's state or the history is different.
        """
        content, history = self._content(), self.history
        parameters, backend = trainer.model.parameters, trainer.model.backend
        try:
            trainer.model.load_state_dict(content.tensors_of("model"))
            buffers = {}
            for name in trainer.state_buffers:
                tensors = content.tensors_of(f"optimizer.{name}")
                try:
                    flat = parameters.from_host(tensors, backend)
                except ValueError as error:
                    raise ValueError(f"the optimizer's {name} does not fit the network: {error}") from error
                wrong = [key for key, tensor in tensors.items() if tensor.dtype != trainer.model.dtype]
                if wrong:
                    raise ValueError(f"the optimizer's {name}: {wrong[0]} is expected to be {trainer.model.dtype}")
                buffers[name] = backend.to_numpy(flat)
            used = {f"optimizer.{name}.{tensor}" for name in buffers for tensor in parameters.shapes}
            foreign = [name for name in self.tensors if name.startswith("optimizer.") and name not in used]
            if foreign:
                raise ValueError(f"{foreign[0]} is not part of the optimizer's state")
        except ValueError as error:
            raise CheckpointError(f"{self.path} is damaged: {error}") from error
        try:
            trainer.restore(buffers, self.steps, self.random_state, History(history.records))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: the random state cannot be restored: {error}") from error

    def to_bytes(self) -> bytes:
        """The content of a file."""
        return file_bytes(CHECKPOINT_FORMAT, self._groups(), self.tensors)

    @classmethod
    def load(cls, path: Path, *, header_only: bool = False) -> Checkpoint:
        """Read a file with what `to_bytes` gave, or one of gpumlp 0.1 or 0.2; `header_only`: without its tensors.

        Raises:
            CheckpointError: it is missing, damaged, or not a checkpoint of gpumlp.
        """
        try:
            content = read_content(path, header_only=header_only)
        except ModelFileError as error:
            if not path.exists():
                raise CheckpointError(f"there is no checkpoint {path}; give the folder of a run") from None
            raise CheckpointError(str(error)) from error
        if content.format != CHECKPOINT_FORMAT:
            raise CheckpointError(f"{path} is no checkpoint of a training run, but a network that was saved")
        groups = content.groups
        try:
            best = groups.get("best")
            sizes_of(groups["model"])
            return cls(
                model=groups["model"],
                steps=_steps(groups["optimizer"]),
                config=Config.from_dict(groups["config"]),
                dataset=_data(groups["data"]),
                random_state=groups["random"],
                part=HistoryPart.from_dict(groups["history"]),
                execution=groups["execution"],
                best=None if best is None else HistoryPart.from_dict(best),
                tensors=content.tensors,
                path=path,
            )
        except (ConfigError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} has a damaged header: {reason}") from error

    def _groups(self) -> dict[str, dict[str, Any]]:
        return {
            "model": self.model,
            "optimizer": {"steps": self.steps},
            "config": dataclasses.asdict(self.config),
            "data": self.dataset,
            "random": self.random_state,
            "history": vars(self.part),
            "execution": self.execution,
            **({} if self.best is None else {"best": vars(self.best)}),
        }

    def _content(self) -> Content:
        return Content(CHECKPOINT_FORMAT, {"model": self.model}, self.tensors)


def execution_record(trainer: Trainer) -> dict[str, Any]:
    """How a trainer's steps are run, for the files of a run."""
    return {"device": trainer.model.backend.name, **trainer.execution._asdict()}


def _steps(optimizer: Mapping[str, Any]) -> int:
    steps = optimizer.get("steps")
    if set(optimizer) != {"steps"} or type(steps) is not int or steps < 0:
        raise ValueError(f"optimizer: expected the number of steps, got {str(dict(optimizer))[:100]}")
    return steps


def _data(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a data set, checked. Runs of earlier versions have classes, perhaps of an unknown entropy."""
    facts = {"task": "classes", **facts}
    entropy = facts.get("label_entropy")
    texts = all(isinstance(facts.get(name), str) for name in ("name", "train_fingerprint", "task"))
    if not texts or facts["task"] not in METRICS or not (entropy is None or numbers(0).accepts(entropy)):
        raise ValueError(f"data: expected name, train_fingerprint, task and label_entropy, got {str(facts)[:100]}")
    return facts
