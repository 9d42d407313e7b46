"""Accuracies stated in the README. The tests on MNIST need GPUMLP_DATA_DIR."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from gpumlp import Dataset, load_mnist
from gpumlp.training.config import PRESETS, Config
from gpumlp.training.session import train


@pytest.fixture(scope="module")
def mnist() -> tuple[Dataset, Dataset]:
    if not os.environ.get("GPUMLP_DATA_DIR"):
        pytest.skip("GPUMLP_DATA_DIR is not set, so there is no MNIST to train on")
    return load_mnist(download=False)


def accuracy(out: Path, config: Config, **changes: object) -> float:
    changes |= {"device": "cpu", "out": str(out), "quiet": True}
    metrics = train(Config(**{**vars(config), **changes})).metrics
    assert metrics is not None
    return float(metrics["test_accuracy"])


def test_the_default_run_reaches_97_5_percent(mnist: object, tmp_path: Path) -> None:
    assert accuracy(tmp_path / "run", Config(dataset="mnist")) >= 0.975


def test_tanh_with_glorot_reaches_97_percent(mnist: object, tmp_path: Path) -> None:
    config = Config(dataset="mnist", activation="tanh", initializer="glorot")
    assert accuracy(tmp_path / "run", config) >= 0.97


@pytest.mark.slow
def test_the_notes_preset_reaches_97_8_percent_on_average(mnist: object, tmp_path: Path) -> None:
    notes = PRESETS["notes"]
    results = [accuracy(tmp_path / str(seed), notes, dataset="mnist", seed=seed) for seed in range(2)]
    assert statistics.mean(results) >= 0.978


def test_a_new_user_gets_96_percent_on_the_digits(tmp_path: Path) -> None:
    words = ["--dataset", "digits", "--device", "cpu", "--min-accuracy", "0.96", "--out", "run", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-m", "gpumlp.train", *words], cwd=tmp_path, env=environment, check=True)
