"""Regressions that a review found, each as what a user would see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, Callback, Dataset, EarlyStopping, Trainer, fit
from gpumlp.evaluate import main as evaluate
from gpumlp.train import main as train
from gpumlp.training.checkpoint import Checkpoint
from gpumlp.training.config import Config


def test_a_numpy_integer_holds_samples_out(blobs: Dataset) -> None:
    model = MLP([20, 8, 4], device="cpu")
    history = fit(model, blobs, epochs=1, validation=np.int64(50), batch_size=np.int64(32))
    assert history["validation_loss"][0] is not None


@pytest.mark.parametrize(
    "wrong",
    [{"validation": 0.1}, {"validation": True}, {"batch_size": True}, {"batch_size": 2.5}, {"epochs": 2.5}],
)
def test_a_count_that_is_no_whole_number_is_refused(blobs: Dataset, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected to be a whole number"):
        fit(MLP([20, 8, 4], device="cpu"), blobs, **wrong)


def test_a_callback_class_in_place_of_an_object_is_refused(blobs: Dataset) -> None:
    with pytest.raises(TypeError, match="a callback is expected"):
        fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=1, callbacks=[Callback])


def test_restoring_a_trainer_restores_its_network(blobs: Dataset) -> None:
    first = Trainer(MLP([20, 8, 4], device="cpu"), blobs)
    first.run(2)
    second = Trainer(MLP([20, 8, 4], seed=9, device="cpu"), blobs)
    Checkpoint.of(first, Config().resolved(len(blobs))).restore(second)
    np.testing.assert_array_equal(second.model.parameters.data, first.model.parameters.data)
    assert second.history is not first.history


def own_data(path: Path, seed: int) -> None:
    rng = np.random.default_rng(0)
    test = np.random.default_rng(seed)
    np.savez(
        path,
        x_train=rng.random((90, 5)),
        y_train=np.arange(90) % 3,
        x_test=test.random((9, 5)),
        y_test=np.arange(9) % 3,
    )


def test_a_run_is_evaluated_on_its_own_test_set_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_data(tmp_path / "own.npz", seed=1)
    monkeypatch.chdir(tmp_path)
    assert train(["--dataset", "own.npz", "--device", "cpu", "--epochs", "1", "--out", "run", "--quiet"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate(["../run"]) == 0
    own_data(tmp_path / "own.npz", seed=2)
    assert evaluate(["../run"]) == 2
    assert "the run was tested on other data" in capsys.readouterr().err


def test_a_quiet_run_can_be_resumed_quietly_and_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert train(["--dataset", "digits", "--device", "cpu", "--epochs", "1", "--out", out, "--quiet"]) == 0
    assert train(["--resume", out, "--epochs", "2", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert train(["--resume", out, "--epochs", "3"]) == 0
    assert "3/3" in capsys.readouterr().out


def test_an_interrupt_before_the_first_checkpoint_claims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpumlp.training.run.RunFolder._save_checkpoint", interrupt)
    out = tmp_path / "run"
    assert train(["--dataset", "digits", "--device", "cpu", "--epochs", "1", "--out", str(out)]) == 130
    assert capsys.readouterr().err == "gpumlp-train: interrupted\n"
    assert not out.exists()


@pytest.mark.parametrize("wrong", [5, None, "progress", Callback])
def test_callbacks_that_are_no_list_of_them_are_refused(blobs: Dataset, wrong: Any) -> None:
    with pytest.raises(
        TypeError, match="callbacks is expected to be a list of functions or Callback objects, got"
    ):
        fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=1, callbacks=wrong)


def test_a_single_callback_needs_no_list(blobs: Dataset) -> None:
    epochs: list[int] = []
    fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=2, callbacks=lambda trainer: epochs.append(trainer.epoch))
    assert epochs == [1, 2]
    stopping = EarlyStopping("train_loss", patience=1, min_delta=1e9)
    assert len(fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=5, callbacks=stopping)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_delta": "a"}, "min_delta is expected to be a number at least 0, got 'a'"),
        ({"min_delta": [1]}, r"min_delta is expected to be a number at least 0, got \[1\]"),
        ({"monitor": ["train_loss"]}, r"monitor is expected to be one of train_loss.*got \['train_loss'\]"),
    ],
)
def test_what_early_stopping_cannot_watch_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)
