"""Helpers for tests of runs and commands: small training runs, in this process or in a separate one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from gpumlp import Trainer, diagnose, evaluate, export, info, predict, reproduce, shuffle, sweep, train
from gpumlp import history as history_command
from gpumlp.figures import __main__ as figures
from gpumlp.report import __main__ as report

ROOT = Path(__file__).parents[1]
DIGITS = ("--dataset", "digits", "--device", "cpu")
MAINS = {
    "train": train.main,
    "sweep": sweep.main,
    "reproduce": reproduce.main,
    "shuffle": shuffle.main,
    "diagnose": diagnose.main,
    "evaluate": evaluate.main,
    "history": history_command.main,
    "info": info.main,
    "predict": predict.main,
    "report": report.main,
    "export": export.main,
    "figures": figures.main,
}
# Environment of processes that save runs after every epoch, as do their children.
SAVE_EACH = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests" / "saving", ROOT))), "SAVE_EVERY": "0"}
CLOCK = ("seconds", "samples_per_second")  # fields that may differ between equal runs


def run(command: str, *words: object) -> int:
    """Run a command in this process and return its exit code."""
    return MAINS[command]([str(word) for word in words])


def spawn(command: str, *words: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a separate process with one thread, so that tests can run in parallel.

    ``line="... {} ..."`` is a line of sh, with the command in place of the braces.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **options.pop("env", {})}
    environment.pop("PYTHONUNBUFFERED", None)  # it would hide the final flush of a buffer
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    arguments = [sys.executable, "-m", f"gpumlp.{command}", *map(str, words)]
    if line := settings.pop("line", None):
        arguments = ["sh", "-c", line.replace("{}", shlex.join(arguments))]
    return subprocess.Popen(arguments, env=environment, **settings)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return as soon as the condition holds; fail if the process ends before."""
    end = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def kill_at(process: subprocess.Popen[str], condition: Callable[[], bool], delay: float = 0) -> None:
    """Kill a process a delay in seconds after the condition holds, which is before it has ended."""
    wait_until(condition, process)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"


def interrupt_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt training, as Ctrl+C does, in the epoch after this one."""
    train_epoch = Trainer._train_epoch

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.epoch == epoch:
            raise KeyboardInterrupt
        return train_epoch(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)


def lines(folder: Path) -> int:
    """The number of epochs in the history file."""
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
    """Weights and optimizer state are equal bit for bit, and the histories except for times."""
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), f"{name} differs"
    assert without_clock(history(first)) == without_clock(history(second))
