"""Runs with early stopping: output, files, errors, and resuming."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import safetensors
import safetensors.numpy

from gpumlp.training.checkpoint import Checkpoint
from gpumlp.training.config import Config
from gpumlp.training.session import resume_config, train
from tests.command_helpers import DIGITS, assert_same_run, finish, history, lines, run, spawn, wait_until

STOPPED = (*DIGITS, "--hidden", 16, "--learning-rate", 0.2, "--early-stopping", 4)


def assert_same_best(first: Path, second: Path) -> None:
    one, other = (Checkpoint.load(folder / "best" / "checkpoint.safetensors") for folder in (first, second))
    assert len(one.history) == len(other.history)
    assert one.steps == other.steps
    for name, tensor in one.tensors.items():
        assert tensor.tobytes() == other.tensors[name].tobytes()


def start(out: Path, **options: object):
    fixed = {"dataset": "digits", "device": "cpu", "quiet": True, "hidden": (16,), "learning_rate": 0.2}
    return train(Config(**{**fixed, "out": str(out), **options}))


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


def test_a_stopped_run_stays_stopped_and_resumes_with_more_patience(tmp_path: Path) -> None:
    epochs = len(start(tmp_path / "a", early_stopping=2).history)
    again = train(resume_config(str(tmp_path / "a")))
    assert len(again.history) == epochs
    more = train(Config(**{**vars(resume_config(str(tmp_path / "a"))), "early_stopping": 6}))
    assert len(more.history) > epochs
    start(tmp_path / "b", early_stopping=6)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert_same_best(tmp_path / "a", tmp_path / "b")


def test_a_best_network_that_was_not_saved_is_saved_when_the_run_is_resumed(tmp_path: Path) -> None:
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
