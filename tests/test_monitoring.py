"""Early stopping and keeping the best network: what they decide, keep, refuse, and how a run resumes with them."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gpumlp import MLP, SGD, BestCheckpoint, Dataset, EarlyStopping, Trainer, fit
from gpumlp.backends import Backend
from gpumlp.training import EpochRecord, History
from gpumlp.training.checkpoint import Checkpoint
from gpumlp.training.config import Config
from gpumlp.training.monitoring import best_epoch
from gpumlp.training.session import resume_config, train
from tests.command_helpers import DIGITS, assert_same_run, finish, history, lines, run, spawn, wait_until


def history_of(*losses: float | None) -> History:
    """A history with these validation losses; accuracies are what is missing to 1."""
    return History(
        [
            EpochRecord(epoch, 1.0, 0.5, loss, None if loss is None else 1 - loss, 0.1, 1.0, 1.0)
            for epoch, loss in enumerate(losses, 1)
        ]
    )


def noisy(seed: int = 0) -> Dataset:
    """Labels that cannot be learned, so that the validation loss soon rises."""
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
        ((0.5, 0.3, 0.3, 0.4), 0.0, (2, 0.3, 2)),  # as good is not better
        ((0.5, 0.45, 0.41, 0.38), 0.1, (4, 0.38, 0)),  # small steps add up
        ((0.5, 0.45, 0.41), 0.1, (1, 0.5, 2)),
        ((None, 0.4, 0.6), 0.0, (2, 0.4, 1)),
    ],
)
def test_the_best_epoch(losses: tuple, min_delta: float, expected: tuple) -> None:
    assert best_epoch(history_of(*losses), "validation_loss", min_delta) == pytest.approx(expected)
    assert best_epoch(history_of(*losses), "validation_accuracy", min_delta)[::2] == expected[::2]


def test_no_epoch_is_no_best_epoch() -> None:
    assert best_epoch(history_of(), "validation_loss") is None
    assert best_epoch(history_of(None, None), "validation_loss") is None


# -- Early stopping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [1, 4])
def test_it_stops_after_so_many_epochs_without_a_better_one(patience: int) -> None:
    _, whole = train_noisy()
    stopping = EarlyStopping(patience=patience)
    _, history = train_noisy(stopping)
    losses = history["validation_loss"]
    assert losses == whole["validation_loss"][: len(losses)]
    assert len(history) < len(whole)
    assert stopping.stopped_epoch == len(history) == stopping.best_epoch + patience
    assert losses[stopping.best_epoch - 1] == min(losses)
    for end in range(1, len(history)):  # and no sooner
        best = best_epoch(History(history.records[:end]), "validation_loss")
        assert best is not None
        assert best.since < patience


def test_it_does_not_stop_what_gets_better(blobs: Dataset) -> None:
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


def test_one_object_serves_several_trainings() -> None:
    stopping = EarlyStopping(patience=2)
    first, history = train_noisy(stopping)
    again, repeated = train_noisy(stopping)
    assert history["validation_loss"] == repeated["validation_loss"]
    assert weights(first) == weights(again)


def test_a_training_that_is_over_does_not_go_on_by_an_epoch() -> None:
    model = MLP([20, 32, 4], device="cpu")
    trainer = Trainer(model, noisy(), optimizer=SGD(0.3), batch_size=32, validation=60)
    trainer.run(30, [EarlyStopping(patience=2, restore_best=False)])
    epochs, before = trainer.epoch, weights(model)
    trainer.run(30, [EarlyStopping(patience=2, restore_best=False)])
    assert (trainer.epoch, weights(model)) == (epochs, before)
    with pytest.warns(RuntimeWarning, match=f"best epoch, {epochs - 2}, was before this training went on"):
        trainer.run(30, [EarlyStopping(patience=2)])
    assert weights(model) == before


# -- The best network as a file ----------------------------------------------------------------------------


def test_the_file_holds_the_best_network(tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.safetensors"
    stopping = EarlyStopping(patience=4)
    model, _ = train_noisy(BestCheckpoint(path), stopping)
    loaded = MLP.load(path, device="cpu")
    assert weights(loaded) == weights(model)
    with safetensors.safe_open(path, framework="numpy") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items() if name != "format"}
    assert about["model"]["sizes"] == [20, 32, 4]
    assert about["epoch"] == stopping.best_epoch


def test_the_file_is_written_only_when_there_is_a_better_network(tmp_path: Path) -> None:
    path, epochs = tmp_path / "best.safetensors", []

    def look(trainer: Trainer) -> None:
        with safetensors.safe_open(path, framework="numpy") as file:
            epochs.append(int(file.metadata()["epoch"]))

    _, history = train_noisy(BestCheckpoint(path, "validation_accuracy"), look, epochs=12)
    accuracies = history["validation_accuracy"]
    assert epochs == [1 + accuracies.index(max(accuracies[: end + 1])) for end in range(12)]
    assert len(set(epochs)) < 12


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path is expected to be that of a file, but .* is a folder"):
        train_noisy(BestCheckpoint(tmp_path))


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
def test_without_validation_samples_there_is_nothing_to_watch(kind, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "but there are no validation samples; give some.*or watch train_accuracy"
    model = MLP([20, 32, 4], device="cpu")
    before = weights(model)
    with pytest.raises(ValueError, match=expected):
        fit(model, noisy(), callbacks=[kind(monitor="validation_accuracy")])
    assert weights(model) == before
    assert not list(tmp_path.iterdir())


# -- The command -------------------------------------------------------------------------------------------

STOPPED = (*DIGITS, "--hidden", 16, "--learning-rate", 0.2, "--early-stopping", 4)


def test_the_command_stops_and_keeps_the_best_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *STOPPED, "--out", tmp_path / "run") == 0
    losses = [record["validation_loss"] for record in history(tmp_path / "run")]
    best = 1 + losses.index(min(losses))
    assert len(losses) == best + 4 < 50
    said = f"stopped early: the validation loss was lowest after epoch {best} ({min(losses):.4f})"
    assert said in capsys.readouterr().out
    assert (
        run("train", *DIGITS, "--hidden", 16, "--learning-rate", 0.2, "--epochs", best, "--out", tmp_path / "b")
        == 0
    )
    same = tmp_path / "b" / "checkpoint.safetensors"
    kept = tmp_path / "run" / "best" / "checkpoint.safetensors"
    for name, tensor in safetensors.numpy.load_file(same).items():
        assert safetensors.numpy.load_file(kept)[name].tobytes() == tensor.tobytes()
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    capsys.readouterr()
    assert run("evaluate", tmp_path / "run" / "best") == 0
    out = capsys.readouterr().out
    assert f"digits test accuracy: {100 * metrics['test_accuracy']:.2f} %" in out
    assert out.endswith(f"this is the network after the best epoch of the run in {tmp_path / 'run'}\n")
    assert run("history", tmp_path / "run" / "best") == 0
    assert f"lowest validation loss: {min(losses):.4f}, after epoch {best}\n" in capsys.readouterr().out


def test_killed_and_resumed_it_stops_at_the_same_epoch_with_the_same_weights(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = (*STOPPED, "--early-stopping", 25, "--epochs", 400)
    process = spawn("train", *options, "--out", cut)
    moments = random.Random(3)
    for _ in range(3):
        target = lines(cut) + moments.randrange(1, 8)
        wait_until(lambda at_least=target: lines(cut) >= at_least, process)
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
        process = spawn("train", "--resume", cut)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "stopped early" in out
    assert finish(spawn("train", *options, "--out", whole))[0] == 0
    assert_same_run(cut, whole)
    assert_same_best(cut, whole)


def assert_same_best(first: Path, second: Path) -> None:
    one, other = (Checkpoint.load(folder / "best" / "checkpoint.safetensors") for folder in (first, second))
    assert len(one.history) == len(other.history)
    assert one.steps == other.steps
    for name, tensor in one.tensors.items():
        assert tensor.tobytes() == other.tensors[name].tobytes()


def start(out: Path, **options: object):
    fixed = {"dataset": "digits", "device": "cpu", "quiet": True, "hidden": (16,), "learning_rate": 0.2}
    return train(Config(**{**fixed, "out": str(out), **options}))


def test_a_stopped_run_stays_stopped_and_goes_on_with_more_patience(tmp_path: Path) -> None:
    epochs = len(start(tmp_path / "a", early_stopping=2).history)
    again = train(resume_config(str(tmp_path / "a")))
    assert len(again.history) == epochs
    more = train(Config(**{**vars(resume_config(str(tmp_path / "a"))), "early_stopping": 6}))
    assert len(more.history) > epochs
    start(tmp_path / "b", early_stopping=6)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert_same_best(tmp_path / "a", tmp_path / "b")


def test_a_best_network_that_was_not_saved_is_saved_when_the_run_goes_on(tmp_path: Path) -> None:
    start(tmp_path / "run", early_stopping=9, epochs=1)
    kept = tmp_path / "run" / "best" / "checkpoint.safetensors"
    os.remove(kept)
    train(resume_config(str(tmp_path / "run")))
    assert len(Checkpoint.load(kept).history) == 1


def test_a_replaced_run_leaves_no_best_network_behind(tmp_path: Path) -> None:
    start(tmp_path / "run", early_stopping=2)
    start(tmp_path / "run", overwrite=True, epochs=1)
    assert not (tmp_path / "run" / "best" / "checkpoint.safetensors").exists()


def test_the_command_refuses_early_stopping_without_validation(tmp_path: Path, capsys) -> None:
    assert run("train", *STOPPED, "--validation", 0, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err.endswith(
        "early_stopping: expected only with validation samples, got validation 0\n"
    )
    assert not (tmp_path / "run").exists()
