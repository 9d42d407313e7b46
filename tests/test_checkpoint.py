"""Checkpoints contain the whole state of training, are written atomically, and are refused on a mismatch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gpumlp import MLP, Dataset, Trainer
from gpumlp.files import write_atomically
from gpumlp.training.checkpoint import Checkpoint, CheckpointError
from gpumlp.training.config import Config

OPTIMIZERS = [
    {"learning_rate": 0.1, "momentum": 0.9},
    {"learning_rate": 0.1, "momentum": 0.0},
    {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
    {"optimizer": "adam", "learning_rate": 0.01},
    {"learning_rate": 0.1, "momentum": 0.9, "schedule": "step", "step_size": 2, "l2": 1e-3},
]


def config(**options: object) -> Config:
    return Config(**{"hidden": (12,), "batch_size": 32, "validation": 50, "epochs": 6, **options}).resolved(300)


def make_trainer(data: Dataset, settings: Config, model: MLP | None = None) -> Trainer:
    model = model or MLP([20, *settings.hidden, 4], seed=settings.seed, device="cpu", dtype=settings.dtype)
    return Trainer(
        model,
        data,
        optimizer=settings.make_optimizer(),
        schedule=settings.make_schedule(),
        penalty=settings.make_penalty(),
        batch_size=32,
        validation=settings.validation,
        seed=settings.seed,
    )


def save(path: Path, data: Dataset, settings: Config | None = None, epochs: int = 2) -> Path:
    trainer = make_trainer(data, settings or config())
    trainer.run(epochs)
    Checkpoint.of(trainer, settings or config()).save(path)
    return path


def go_on(path: Path, data: Dataset) -> Trainer:
    checkpoint = Checkpoint.load(path)
    trainer = make_trainer(data, checkpoint.config, checkpoint.make_model("cpu"))
    checkpoint.restore(trainer)
    return trainer


def state(trainer: Trainer) -> dict[str, object]:
    clock = {"seconds", "samples_per_second"}
    return {
        "tensors": {name: t.tobytes() for name, t in Checkpoint.of(trainer, config()).tensors.items()},
        "steps": trainer.optimizer_state.steps,
        "random": trainer.random_state(),
        "history": [{k: v for k, v in vars(r).items() if k not in clock} for r in trainer.history],
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=["momentum", "plain", "nesterov", "adam", "schedule"])
def test_training_continues_exactly(tmp_path: Path, blobs: Dataset, options: dict, dtype: str) -> None:
    settings = config(dtype=dtype, **options)
    path = save(tmp_path / "checkpoint", blobs, settings)
    interrupted = go_on(path, blobs)
    interrupted.run(6)
    uninterrupted = make_trainer(blobs, settings)
    uninterrupted.run(6)
    assert state(interrupted) == state(uninterrupted)


def test_it_is_a_safetensors_file_with_named_tensors(tmp_path: Path, blobs: Dataset) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    names = {f"layers.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")}
    tensors = safetensors.numpy.load_file(path)
    assert set(tensors) == {f"{part}.{name}" for part in ("model", "optimizer.velocity") for name in names}
    assert tensors["model.layers.0.weight"].shape == (20, 12)
    assert tensors["model.layers.0.weight"].dtype == np.float32
    assert any(tensor.any() for name, tensor in tensors.items() if name.startswith("optimizer"))


def test_it_knows_its_configuration_and_history(tmp_path: Path, blobs: Dataset) -> None:
    checkpoint = Checkpoint.load(save(tmp_path / "checkpoint", blobs))
    assert checkpoint.config == config()
    assert checkpoint.history["epoch"] == [1, 2]
    assert checkpoint.steps == 2 * 8  # 250 samples in batches of 32
    assert checkpoint.dataset["name"] == "blobs"


# -- Mismatches are refused --------------------------------------------------------------------------------

Edit = Callable[[dict[str, np.ndarray], dict[str, str]], None]


def edit(path: Path, change: Edit) -> None:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    tensors = safetensors.numpy.load_file(path)
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata)


def change_state(**values: object) -> Edit:
    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        metadata["state"] = json.dumps(json.loads(metadata["state"]) | values)

    return change


def replace(name: str, tensor: np.ndarray) -> Edit:
    return lambda tensors, metadata: tensors.update({name: tensor})


WEIGHT = "model.layers.0.weight"
VELOCITY = "optimizer.velocity.layers.1.bias"
MISFITS = {
    "wrong shape": (
        replace(WEIGHT, np.zeros((12, 20), np.float32)),
        r"layers.0.weight.*\(20, 12\), got \(12, 20\)",
    ),
    "missing": (lambda tensors, metadata: tensors.pop(WEIGHT), "layers.0.weight is missing"),
    "unknown": (replace("model.layers.7.bias", np.zeros(3)), "layers.7.bias is not part of this network"),
    "optimizer shape": (
        replace(VELOCITY, np.zeros(5, np.float32)),
        r"velocity.*layers.1.bias.*\(4,\), got \(5,\)",
    ),
    "optimizer missing": (lambda tensors, metadata: tensors.pop(VELOCITY), "velocity.*layers.1.bias is missing"),
    "no format": (lambda tensors, metadata: metadata.clear(), "expected format gpumlp-checkpoint-1, got none"),
    "other format": (lambda tensors, metadata: metadata.update(format="pt"), "expected format.*got pt"),
    "no state": (lambda tensors, metadata: metadata.pop("state"), "damaged header.*state"),
    "no JSON": (lambda tensors, metadata: metadata.update(state="{"), "damaged header"),
    "config": (lambda tensors, metadata: metadata.update(config='{"epochs": 0}'), "damaged header.*epochs"),
    "sizes": (change_state(sizes=[20, 13, 4]), r"layers.0.weight.*\(20, 13\), got \(20, 12\)"),
    "no sizes": (change_state(sizes=[]), "weights do not fit"),
    "history": (change_state(history=[{"epoch": 1}]), "damaged header"),
    "random state": (change_state(random_state={"bit_generator": "MT19937"}), "random state"),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_a_mismatch_is_refused_by_name(tmp_path: Path, blobs: Dataset, change: Edit, message: str) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    edit(path, change)
    with pytest.raises(CheckpointError, match=message):
        go_on(path, blobs)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, blobs: Dataset, kept: int) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"checkpoint cannot be read as a safetensors file"):
        Checkpoint.load(path)


def test_other_bytes_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no safetensors file, but more than eight bytes")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.load(tmp_path / "text")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Checkpoint.load(tmp_path / "none")


def test_other_data_is_refused(tmp_path: Path, blobs: Dataset) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    labels = blobs.labels.copy()
    labels[0] = (labels[0] + 1) % 4
    with pytest.raises(CheckpointError, match=f"other data: expected {blobs.fingerprint()}, got 300x20-uint8"):
        go_on(path, Dataset(blobs.images, labels, classes=4))


# -- Written atomically ------------------------------------------------------------------------------------


def full_disk(*arguments: object) -> None:
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_previous_file(
    tmp_path: Path, blobs: Dataset, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    before = path.read_bytes()
    monkeypatch.setattr(os, broken, full_disk)
    with pytest.raises(OSError, match=r"No space left on device.*checkpoint"):
        save(path, blobs, dataclasses.replace(config(), seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_complete_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename, seen = tmp_path / "file", os.replace, []

    def watch(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), target.exists()))
        rename(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_atomically(path, b"content")
    assert seen == [(b"content", False)]
    assert path.read_bytes() == b"content"


def test_restoring_a_trainer_restores_its_network(blobs: Dataset) -> None:
    first = Trainer(MLP([20, 8, 4], device="cpu"), blobs)
    first.run(2)
    second = Trainer(MLP([20, 8, 4], seed=9, device="cpu"), blobs)
    Checkpoint.of(first, Config().resolved(len(blobs))).restore(second)
    np.testing.assert_array_equal(second.model.parameters.data, first.model.parameters.data)
    assert second.history is not first.history
