"""`--test-curve` writes what the test set says after every epoch."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gpumlp.training.callbacks import read_curve
from gpumlp.training.checkpoint import CheckpointError
from gpumlp.training.config import Config
from gpumlp.training.run import Run
from gpumlp.training.session import resume_config, train

from .command_helpers import assert_same_run


def start(out: Path, **options: object) -> Path:
    fixed = {"dataset": "digits", "device": "cpu", "quiet": True, "hidden": (16,), "test_curve": True}
    train(Config(**{**fixed, "out": str(out), "epochs": 4, **options}))
    return out


def test_the_curve_ends_with_the_result_and_does_not_change_the_training(tmp_path: Path) -> None:
    one, other = start(tmp_path / "one"), start(tmp_path / "other", test_curve=False)
    assert_same_run(one, other)
    curve, metrics = read_curve(one / "test_curve.csv"), Run(one).metrics
    assert metrics is not None
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4]
    assert {name: metrics[name] for name in ("test_loss", "test_accuracy")} == {
        name: curve[-1][name] for name in ("test_loss", "test_accuracy")
    }
    assert len({row["test_loss"] for row in curve}) == 4
    assert not (other / "test_curve.csv").exists()


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_a_resumed_run_has_the_curve_of_one_that_was_not_interrupted(tmp_path: Path, kept: int) -> None:
    """Also if the process died before the line of the last epoch was written, or wrote lines of later epochs."""
    whole, resumed = start(tmp_path / "whole"), start(tmp_path / "resumed", epochs=2)
    lines = (whole / "test_curve.csv").read_text().splitlines(keepends=True)
    if kept:
        (resumed / "test_curve.csv").write_text("".join(lines[: 1 + kept]))
    else:
        (resumed / "test_curve.csv").unlink()
    train(dataclasses.replace(resume_config(str(resumed)), epochs=4))
    with (resumed / "test_curve.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == (["2", "3", "4"] if kept == 0 else list("1234"))
    assert read_curve(resumed / "test_curve.csv")[-3:] == read_curve(whole / "test_curve.csv")[-3:]


def test_a_replaced_run_leaves_no_curve_behind(tmp_path: Path) -> None:
    start(tmp_path / "run")
    start(tmp_path / "run", overwrite=True, test_curve=False)
    assert not (tmp_path / "run" / "test_curve.csv").exists()


def test_numbers_have_their_own_metrics(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 60, dtype=np.float32)[:, None]
    path = tmp_path / "data.npz"
    np.savez(path, x_train=x, y_train=x[:, 0] ** 2, x_test=x[::3], y_test=x[::3, 0] ** 2)
    start(tmp_path / "run", dataset=str(path))
    assert read_curve(tmp_path / "run" / "test_curve.csv")[0].keys() == {
        "epoch",
        "test_loss",
        "test_r2",
        "test_mae",
    }


@pytest.mark.parametrize(
    "content",
    ["", "epoch\n1,2,3\n", "epoch,test_loss\n1\n", "epoch,test_loss\nx,1\n", "epoch,loss\n1,2\n", "\xff"],
)
def test_a_damaged_curve_is_refused_by_name(tmp_path: Path, content: str) -> None:
    run = start(tmp_path / "run")
    (run / "test_curve.csv").write_bytes(content.encode("latin-1"))
    config = dataclasses.replace(resume_config(str(run)), epochs=5)
    if content == "":
        train(config)  # no lines
    else:
        with pytest.raises(CheckpointError, match=r"test_curve\.csv is damaged: expected a table of epochs"):
            train(config)
