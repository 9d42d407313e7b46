"""Checkpoints contain the whole state of training, are written atomically, and are refused on a mismatch."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from gpumlp import MLP, Dataset, Trainer
from gpumlp.files import write_atomically
from gpumlp.training.checkpoint import Checkpoint, CheckpointError
from gpumlp.training.config import Config
from gpumlp.training.history_file import HistoryFile, HistoryPart
from tests.file_helpers import Change, change_file, change_group, change_header, set_group, set_tensor, set_value

SETTINGS = {
    "momentum": {"learning_rate": 0.1, "momentum": 0.9},
    "plain": {"learning_rate": 0.1, "momentum": 0.0},
    "nesterov": {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "schedule": {"learning_rate": 0.1, "momentum": 0.9, "schedule": "step", "step_size": 2, "l2": 1e-3},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.5, "max_norm": 2.0},
    "rmsprop": {"optimizer": "rmsprop", "momentum": 0.5, "activation": "gelu", "label_smoothing": 0.1},
    "dropout": {"dropout": 0.5, "input_dropout": 0.2, "class_weight": "balanced"},
    "average": {"ema": 0.9, "dropout": 0.1, "optimizer": "adam"},
    "by step": {"schedule": "one_cycle", "warmup": 11, "validation": 0.2},
}


def config(**options: object) -> Config:
    return Config(**{"hidden": (12,), "batch_size": 32, "validation": 50, "epochs": 6, **options}).resolved(300)


def make_trainer(data: Dataset, settings: Config, model: MLP | None = None) -> Trainer:
    model = model or MLP(
        [20, *settings.hidden, data.outputs],
        settings.activation,
        seed=settings.seed,
        device="cpu",
        dtype=settings.dtype,
        loss=settings.make_loss(data.task, data.outputs),
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
    )
    return Trainer(
        model,
        data,
        optimizer=settings.make_optimizer(),
        schedule=settings.make_schedule(),
        penalty=settings.make_penalty(),
        batch_size=32,
        validation=settings.validation,
        class_weight=settings.class_weight,
        clip_norm=settings.clip_norm,
        max_norm=settings.max_norm,
        ema=settings.ema,
        seed=settings.seed,
    )


def save(path: Path, data: Dataset, settings: Config | None = None, epochs: int = 2) -> Path:
    trainer = make_trainer(data, settings or config())
    trainer.run(epochs)
    history = HistoryFile(path.with_name("history.jsonl"), lines(trainer), trainer.epoch)
    history.write()
    path.write_bytes(Checkpoint.of(trainer, settings or config(), history.part).to_bytes())
    return path


def lines(trainer: Trainer) -> bytes:
    return "".join(record.to_json() + "\n" for record in trainer.history).encode()


def go_on(path: Path, data: Dataset) -> Trainer:
    checkpoint = Checkpoint.load(path)
    trainer = make_trainer(data, checkpoint.config, checkpoint.make_model("cpu"))
    checkpoint.restore(trainer)
    return trainer


def state(trainer: Trainer) -> dict[str, object]:
    clock = {"seconds", "samples_per_second"}
    return {
        "tensors": {
            name: t.tobytes() for name, t in Checkpoint.of(trainer, config(), HistoryPart()).tensors.items()
        },
        "steps": trainer.optimizer_state.steps,
        "random": trainer.random_state(),
        "history": [{k: v for k, v in vars(r).items() if k not in clock} for r in trainer.history],
    }


def continues_exactly(path: Path, data: Dataset, settings: Config) -> None:
    save(path, data, settings)
    interrupted = go_on(path, data)
    interrupted.run(6)
    uninterrupted = make_trainer(data, settings)
    uninterrupted.run(6)
    assert state(interrupted) == state(uninterrupted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_training_continues_exactly(tmp_path: Path, blobs: Dataset, options: dict, dtype: str) -> None:
    continues_exactly(tmp_path / "checkpoint", blobs, config(dtype=dtype, **options))


@pytest.mark.parametrize("task", ["labels", "numbers"])
def test_training_on_labels_and_numbers_continues_exactly(tmp_path: Path, blobs: Dataset, task: str) -> None:
    values = np.random.default_rng(0).normal(size=(300, 3))
    data = Dataset(blobs.images, values if task == "numbers" else values > 0, weights=np.abs(values[:, 0]))
    assert data.task == task
    continues_exactly(tmp_path / "checkpoint", data, config(dropout=0.2, learning_rate=0.01))
    assert Checkpoint.load(tmp_path / "checkpoint").dataset["task"] == task


def test_of_an_average_and_what_it_is_taken_over_both_are_kept(tmp_path: Path, blobs: Dataset) -> None:
    path = save(tmp_path / "checkpoint.safetensors", blobs, config(ema=0.9))
    trainer, network = go_on(path, blobs), MLP.load(path, device="cpu")
    tensors = Checkpoint.load(path).tensors
    for kept, parameters in (("model", trainer.model), ("optimizer.trained", trainer.trained)):
        for name, tensor in parameters.state_dict().items():
            np.testing.assert_array_equal(tensors[f"{kept}.{name}"], tensor)
    assert (tensors["model.layers.0.weight"] != tensors["optimizer.trained.layers.0.weight"]).any()
    assert network.evaluate(blobs) == trainer.model.evaluate(blobs)


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

WEIGHT = "model.layers.0.weight"
VELOCITY = "optimizer.velocity.layers.1.bias"
BIAS = "model.layers.1.bias"
RANDOM = {"bit_generator": "PCG64", "state": {"state": -1, "inc": 1.5}, "has_uint32": 0, "uinteger": 0}
NESTED = "[" * 100_000
MISFITS = {
    "wrong shape": (
        set_tensor(WEIGHT, np.zeros((12, 20), np.float32)),
        r"layers.0.weight.*\(20, 12\), got \(12, 20\)",
    ),
    "missing": (lambda tensors, metadata: tensors.pop(WEIGHT), "layers.0.weight is missing"),
    "unknown": (
        set_tensor("model.layers.7.bias", np.zeros(3, np.float32)),
        "layers.7.bias is not part of this network",
    ),
    "NaN": (set_value(BIAS, np.nan), "model.layers.1.bias holds 1 values of 4 that are NaN or infinite"),
    "infinity": (set_value(WEIGHT, -np.inf), "model.layers.0.weight holds 1 values of 240"),
    "NaN in the optimizer": (set_value(VELOCITY, np.nan), "optimizer.velocity.layers.1.bias holds 1 values"),
    "other dtype": (set_tensor(BIAS, np.zeros(4)), "layers.1.bias is expected to be float32, got float64"),
    "optimizer dtype": (set_tensor(VELOCITY, np.zeros(4)), "velocity: layers.1.bias is expected to be float32"),
    "optimizer shape": (
        set_tensor(VELOCITY, np.zeros(5, np.float32)),
        r"velocity.*layers.1.bias.*\(4,\), got \(5,\)",
    ),
    "optimizer missing": (lambda tensors, metadata: tensors.pop(VELOCITY), "velocity.*layers.1.bias is missing"),
    "optimizer unknown": (
        set_tensor("optimizer.second.layers.1.bias", np.zeros(4, np.float32)),
        "optimizer.second.layers.1.bias is not part of the optimizer's state",
    ),
    "no format": (
        lambda tensors, metadata: metadata.clear(),
        "expected format gpumlp-model-2 or gpumlp-checkpoint-2 or gpumlp-committee-1, got none",
    ),
    "other format": (lambda tensors, metadata: metadata.update(format="pt"), "expected format.*got pt"),
    "unknown group": (set_group("dropout", "{}"), "holds 'dropout', which this version of gpumlp does not know"),
    "tensors of an unknown group": (
        set_tensor("dropout.counter", np.zeros(1, np.int64)),
        "tensor dropout.counter belongs to no group that this version of gpumlp knows",
    ),
    "no group": (lambda tensors, metadata: metadata.pop("random"), "it lacks 'random'"),
    "no JSON": (set_group("optimizer", "{"), "optimizer: Expecting property name"),
    "nested": (set_group("random", NESTED), "random: it is nested too deeply"),
    "nested objects": (set_group("model", '{"a":' * 900 + "1" + "}" * 900), "model: it is nested too deeply"),
    "no object": (set_group("config", "[]"), "config: expected a JSON object"),
    "infinite": (set_group("optimizer", '{"steps": 1e999}'), "optimizer: expected finite numbers, got 1e999"),
    "huge": (set_group("optimizer", '{"steps": 1' + "0" * 400 + "}"), "up to 40 digits, got one of 401"),
    "half a surrogate": (change_group("data", name="\ud800"), "data: it holds half of a surrogate pair"),
    "steps": (change_group("optimizer", steps="7"), "optimizer: expected the number of steps"),
    "config": (change_group("config", epochs=0), "damaged header.*epochs"),
    "config of texts": (change_group("config", hidden="wide", seed=[]), "damaged header: hidden: .*seed: "),
    "unknown option": (change_group("config", magic=1), "unknown option: magic"),
    "data": (change_group("data", train_fingerprint=7), "data: expected name, train_fingerprint"),
    "task": (change_group("data", task="ranks"), "data: expected name, train_fingerprint, task"),
    "entropy": (change_group("data", label_entropy="low"), "data: expected name, train_fingerprint"),
    "sizes": (change_group("model", sizes=[20, 13, 4]), r"layers.0.weight.*\(20, 13\), got \(20, 12\)"),
    "huge sizes": (change_group("model", sizes=[20, 10**12, 4]), r"layers.0.weight.*\(20, 1000000000000\)"),
    "no sizes": (change_group("model", sizes=[]), "layers.0.weight is not part of this network"),
    "sizes of texts": (change_group("model", sizes=["20", 4]), "sizes are expected to be whole numbers"),
    "description": (change_group("model", activation=["relu"]), "does not contain the network"),
    "unknown description": (change_group("model", dropout=0.5), "does not support: 'dropout'"),
    "history": (change_group("history", epochs=-1), "damaged header: expected epochs, length and checksum"),
    "fewer epochs": (change_group("history", epochs=1), "history.jsonl is damaged: expected 1 epochs, got 2"),
    "other history": (change_group("history", length=10), "history.jsonl is damaged: it does not begin with"),
    "history of impossible length": (
        change_group("history", length=10**30),
        "history.jsonl is damaged: it does not begin",
    ),
    "random state": (set_group("random", '{"bit_generator": "MT19937"}'), "random state cannot be restored"),
    "random numbers": (set_group("random", json.dumps(RANDOM)), "random state cannot be restored"),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_a_mismatch_is_refused_by_name(tmp_path: Path, blobs: Dataset, change: Change, message: str) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    change_file(path, change)
    with pytest.raises(CheckpointError, match=message) as error:
        go_on(path, blobs)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_type_that_numpy_lacks_is_refused_by_name(tmp_path: Path, blobs: Dataset) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    change_header(path, lambda header: header[BIAS].update(dtype="BF16", shape=[8]))
    with pytest.raises(CheckpointError, match=r"checkpoint is damaged: .*got BF16 in model.layers.1.bias"):
        Checkpoint.load(path)


def test_each_flipped_bit_is_noticed(tmp_path: Path, blobs: Dataset) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 200):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            Checkpoint.load(path)


def test_an_infinite_square_of_adam_is_no_damage(tmp_path: Path, blobs: Dataset) -> None:
    path = save(tmp_path / "checkpoint", blobs, config(optimizer="adam", learning_rate=0.01))
    names = [name for name in Checkpoint.load(path).tensors if name.startswith("optimizer.")]
    change_file(path, set_value(names[-1], np.inf))
    assert np.isinf(Checkpoint.load(path).tensors[names[-1]]).any()


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
        write_atomically(path, Checkpoint.of(make_trainer(blobs, config()), config(), HistoryPart()).to_bytes())
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "history.jsonl"}


def test_a_file_is_complete_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename, seen = tmp_path / "file", os.replace, []

    def watch(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), target.exists()))
        rename(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_atomically(path, b"content")
    assert seen == [(b"content", False)]
    assert path.read_bytes() == b"content"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o664, 0o664), (0o444, 0o644), (None, 0o640)])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, before: int | None, after: int) -> None:
    path, umask = tmp_path / "file", os.umask(0o027)
    try:
        if before is not None:
            path.touch()
            path.chmod(before)
        write_atomically(path, b"content")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o7777 == after
    assert path.read_bytes() == b"content"


def test_restoring_a_trainer_restores_its_network(tmp_path: Path, blobs: Dataset) -> None:
    path = save(tmp_path / "checkpoint", blobs)
    second = make_trainer(blobs, config(seed=9))
    checkpoint = Checkpoint.load(path)
    checkpoint.restore(second)
    np.testing.assert_array_equal(
        second.model.state_dict()["layers.0.weight"], checkpoint.tensors["model.layers.0.weight"]
    )
    assert second.history is not checkpoint.history
    assert len(second.history) == checkpoint.epochs == 2


# -- What does not grow with the epochs ----------------------------------------------------------------------


def test_a_checkpoint_does_not_grow_with_the_epochs(tmp_path: Path, blobs: Dataset) -> None:
    trainer = make_trainer(blobs, config())
    trainer.run(1)
    record, sizes = trainer.history.records[0], []
    for epochs in (1, 2_000):
        trainer.history.records = [dataclasses.replace(record, epoch=epoch + 1) for epoch in range(epochs)]
        history = HistoryFile(tmp_path / "history.jsonl", lines(trainer), epochs)
        content = Checkpoint.of(trainer, config(), history.part).to_bytes()
        sizes.append(len(content))
    assert sizes[1] <= sizes[0] + 32
    history.write()
    (tmp_path / "checkpoint").write_bytes(content)
    assert len(Checkpoint.load(tmp_path / "checkpoint").history) == 2_000
