"""What the tests of runs and commands share: small training runs, in this process or in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from gpumlp import diagnose, evaluate, export, info, predict, train
from gpumlp import history as history_command
from gpumlp.report import __main__ as report

ROOT = Path(__file__).parents[1]
DIGITS = ("--dataset", "digits", "--device", "cpu")
MAINS = {
    "train": train.main,
    "diagnose": diagnose.main,
    "evaluate": evaluate.main,
    "history": history_command.main,
    "info": info.main,
    "predict": predict.main,
    "report": report.main,
    "export": export.main,
}
CLOCK = ("seconds", "samples_per_second")  # what two equal runs may differ in


def run(command: str, *words: object) -> int:
    """Run a command in this process; its exit code."""
    return MAINS[command]([str(word) for word in words])


def spawn(command: str, *words: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own, on one thread, so that several tests can run at once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)  # it hides what happens to a buffer at the end
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    arguments = [sys.executable, "-m", f"gpumlp.{command}", *map(str, words)]
    return subprocess.Popen(arguments, env=environment, **settings)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return as soon as the condition holds; fail where the process ends before."""
    end = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def lines(folder: Path) -> int:
    """How many epochs are in the history file."""
    file = folder / "history.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def history(folder: Path) -> list[dict[str, Any]]:
    """The lines of the history file."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "checkpoint.safetensors")


def without_clock(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records]


def assert_same_run(first: Path, second: Path) -> None:
    """Weights and optimizer state bit for bit, and the history but for the clock."""
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), f"{name} differs"
    assert without_clock(history(first)) == without_clock(history(second))
