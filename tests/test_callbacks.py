"""Early stopping and best checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gpumlp import MLP, SGD, BestCheckpoint, Dataset, EarlyStopping, Trainer, fit
from gpumlp.backends import Backend
from gpumlp.training import EpochRecord, History
from gpumlp.training.history import BestSoFar, best_epoch


def history_of(*losses: float | None) -> History:
    """A history with these validation losses; each accuracy is 1 minus the loss."""
    return History(
        [
            EpochRecord(epoch, 1.0, 0.5, loss, None if loss is None else 1 - loss, 0.1, 1.0, 1.0)
            for epoch, loss in enumerate(losses, 1)
        ]
    )


def noisy(seed: int = 0) -> Dataset:
    """Random labels, so that the validation loss soon increases."""
    rng = np.random.default_rng(seed)
    return Dataset(rng.normal(size=(300, 20)).astype(np.float32), rng.integers(0, 4, 300), classes=4)


def weights(model: MLP) -> bytes:
    return b"".join(tensor.tobytes() for tensor in model.state_dict().values())


def train_noisy(
    *callbacks: object, epochs: int = 30, device: str | Backend = "cpu", **options
) -> tuple[MLP, History]:
    model = MLP([20, 32, 4], device=device)
    options = {"optimizer": SGD(0.3), "batch_size": 32, "validation": 60} | options
    return model, fit(model, noisy(), epochs=epochs, callbacks=callbacks, **options)


# -- Which epoch is the best -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "min_delta", "expected"),
    [
        ((0.5, 0.4, 0.3), 0.0, (3, 0.3, 0)),
        ((0.5, 0.3, 0.3, 0.4), 0.0, (2, 0.3, 2)),  # equal is not better
        ((0.5, 0.45, 0.41, 0.38), 0.1, (4, 0.38, 0)),  # small steps add up
        ((0.5, 0.45, 0.41), 0.1, (1, 0.5, 2)),
        ((None, 0.4, 0.6), 0.0, (2, 0.4, 1)),
    ],
)
def test_the_best_epoch(losses: tuple, min_delta: float, expected: tuple) -> None:
    for monitor in "validation_loss", "validation_accuracy":
        history = history_of(*losses)
        best = best_epoch(history[monitor], monitor, min_delta)
        assert best is not None
        assert best[::2] == expected[::2]
        if not min_delta:
            assert history.best(monitor) == best
    assert best_epoch(losses, "validation_loss", min_delta) == pytest.approx(expected)


def test_the_best_epoch_of_another_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"monitor is expected to be one of train_loss, .*, got 'seconds'"):
        history_of(0.5).best("seconds")


def test_no_epoch_is_no_best_epoch() -> None:
    assert history_of().best("validation_loss") is None
    assert history_of(None, None).best("validation_loss") is None


def test_the_best_epoch_of_a_growing_history_looks_at_each_epoch_once() -> None:
    looked: list[int] = []

    class Watched(list):
        def __getitem__(self, index):
            found = super().__getitem__(index)
            looked.extend(record.epoch for record in found)
            return found

    losses = [float(x) for x in np.random.default_rng(0).random(50)]
    history, so_far = History(), BestSoFar("validation_loss")
    history.records = Watched()
    for epoch, record in enumerate(history_of(*losses).records, 1):
        history.append(record)
        assert so_far.add_new(history) == history_of(*losses[:epoch]).best("validation_loss")
    assert looked == list(range(1, 51))


# -- Early stopping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [1, 4])
def test_it_stops_after_patience_epochs_without_a_better_one(patience: int) -> None:
    _, whole = train_noisy()
    stopping = EarlyStopping(patience=patience)
    _, history = train_noisy(stopping)
    losses = history["validation_loss"]
    assert losses == whole["validation_loss"][: len(losses)]
    assert len(history) < len(whole)
    assert stopping.stopped_epoch == len(history) == stopping.best_epoch + patience
    assert losses[stopping.best_epoch - 1] == min(losses)
    for end in range(1, len(history)):  # not earlier
        best = History(history.records[:end]).best("validation_loss")
        assert best is not None
        assert best.since < patience


def test_it_does_not_stop_while_the_loss_improves(blobs: Dataset) -> None:
    stopping = EarlyStopping("train_loss", patience=2)
    history = fit(MLP([20, 12, 4], device="cpu"), blobs, epochs=5, callbacks=[stopping])
    assert len(history) == stopping.best_epoch == 5
    assert stopping.stopped_epoch is None


def test_the_network_is_that_of_the_best_epoch_or_of_the_last(backend: Backend) -> None:
    stopping = EarlyStopping(patience=3)
    restored, history = train_noisy(stopping, device=backend)
    best = stopping.best_epoch
    assert best is not None
    assert weights(restored) == weights(train_noisy(epochs=best, device=backend)[0])
    left, _ = train_noisy(EarlyStopping(patience=3, restore_best=False), device=backend)
    assert weights(left) == weights(train_noisy(epochs=len(history), device=backend)[0])
    assert weights(left) != weights(restored)


def test_the_best_is_restored_also_when_epochs_run_out_or_the_user_interrupts() -> None:
    def interrupt(trainer: Trainer) -> None:
        if trainer.epoch == 15:
            raise KeyboardInterrupt

    for options in ({"epochs": 15}, {"epochs": 30, "more": [interrupt]}):
        stopping = EarlyStopping(patience=29)
        model, history = train_noisy(stopping, *options.pop("more", []), **options)
        assert len(history) == 15
        assert stopping.best_epoch < 15
        assert weights(model) == weights(train_noisy(epochs=stopping.best_epoch)[0])


def test_one_object_serves_several_networks() -> None:
    stopping = EarlyStopping(patience=2)
    first, history = train_noisy(stopping)
    again, repeated = train_noisy(stopping)
    assert history["validation_loss"] == repeated["validation_loss"]
    assert weights(first) == weights(again)


def test_training_that_was_stopped_does_not_continue_by_an_epoch() -> None:
    model = MLP([20, 32, 4], device="cpu")
    trainer = Trainer(model, noisy(), optimizer=SGD(0.3), batch_size=32, validation=60)
    trainer.run(30, [EarlyStopping(patience=2, restore_best=False)])
    epochs, before = trainer.epoch, weights(model)
    trainer.run(30, [EarlyStopping(patience=2, restore_best=False)])
    assert (trainer.epoch, weights(model)) == (epochs, before)
    with pytest.warns(RuntimeWarning, match=f"best epoch, {epochs - 2}, was before training was resumed"):
        trainer.run(30, [EarlyStopping(patience=2)])
    assert weights(model) == before


# -- The best network as a file ----------------------------------------------------------------------------


def test_the_file_holds_the_best_network(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "best.safetensors"
    stopping = EarlyStopping(patience=4)
    model, _ = train_noisy(BestCheckpoint(path), stopping)
    loaded = MLP.load(path, device="cpu")
    assert weights(loaded) == weights(model)
    with safetensors.safe_open(path, framework="numpy") as file:
        selection = json.loads(file.metadata()["selection"])
    assert (selection["epoch"], selection["monitor"]) == (stopping.best_epoch, "validation_loss")


def test_the_file_is_written_only_for_a_better_network(tmp_path: Path) -> None:
    path, epochs = tmp_path / "best.safetensors", []

    def look(trainer: Trainer) -> None:
        with safetensors.safe_open(path, framework="numpy") as file:
            epochs.append(json.loads(file.metadata()["selection"])["epoch"])

    _, history = train_noisy(BestCheckpoint(path, "validation_accuracy"), look, epochs=12)
    accuracies = history["validation_accuracy"]
    assert epochs == [1 + accuracies.index(max(accuracies[: end + 1])) for end in range(12)]
    assert len(set(epochs)) < 12


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path is expected to be that of a file, but .* is a folder"):
        train_noisy(BestCheckpoint(tmp_path))


def test_the_checkpoint_of_a_run_is_not_replaced(tmp_path: Path) -> None:
    train_noisy(BestCheckpoint(tmp_path / "checkpoint.safetensors"), epochs=2)
    train_noisy(BestCheckpoint(tmp_path / "checkpoint.safetensors"), epochs=2)  # its own
    (tmp_path / "checkpoint.safetensors").write_bytes(b"kept")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"safetensors is a file of the run in .*; choose another"):
        train_noisy(BestCheckpoint(tmp_path / "checkpoint.safetensors"))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == b"kept"


# -- What they refuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping("valid_loss"), "monitor is expected to be one of train_loss, .*'valid_loss'"),
        (lambda: BestCheckpoint("best", "accuracy"), "monitor is expected to be one of"),
        (lambda: EarlyStopping(patience=0), "patience is expected"),
        (lambda: EarlyStopping(patience=2.5), "patience is expected"),
        (lambda: EarlyStopping(min_delta=-0.1), "min_delta is expected"),
    ],
)
def test_wrong_values_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [EarlyStopping, lambda **options: BestCheckpoint("never", **options)])
def test_monitoring_needs_validation_samples(kind, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "but there are no validation samples; give some.*or watch train_accuracy"
    model = MLP([20, 32, 4], device="cpu")
    before = weights(model)
    with pytest.raises(ValueError, match=expected):
        fit(model, noisy(), callbacks=[kind(monitor="validation_accuracy")])
    with pytest.raises(ValueError, match="targets are classes; watch one of train_loss, train_accuracy"):
        fit(model, noisy(), callbacks=[kind(monitor="train_r2")])
    assert weights(model) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_delta": "a"}, "min_delta is expected to be a number of 0 or more, got 'a'"),
        ({"min_delta": [1]}, r"min_delta is expected to be a number of 0 or more, got \[1\]"),
        ({"monitor": ["train_loss"]}, r"monitor is expected to be one of train_loss.*got \['train_loss'\]"),
    ],
)
def test_what_early_stopping_cannot_watch_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)
