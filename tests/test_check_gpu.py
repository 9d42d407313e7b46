"""The GPU check says what is wrong, and what it has not checked; without a GPU it fails in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpumlp import DeviceError

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of what was not checked."""
    monkeypatch.setenv("CHECK_GPU_NOTES", str(tmp_path / "notes"))
    (tmp_path / "notes").touch()
    return tmp_path / "notes"


@pytest.fixture
def check(notes: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_gpu", SCRIPTS / "check_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def steps(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[..., None]:
    """Judge a training by the line on its steps."""

    def judge(way: str, line: str | None, with_nvmath: bool = True) -> None:
        monkeypatch.setattr(check, "installed", lambda module: with_nvmath)
        (tmp_path / "metrics.json").write_text(json.dumps({"steps": line, "samples_per_second": 1.0}))
        check.main(["steps", str(tmp_path), way])

    return judge


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("graphs", "by CUDA graphs: 16 steps took 0.001 s rather than 0.002 s"),
        ("eager", "one by one: cuda_graphs is off"),
        ("persistent", "by one persistent kernel: 4 units a block"),
    ],
)
def test_steps_as_they_should_have_been_run(
    way: str, line: str, steps: Callable[..., None], notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps(way, line)
    assert f"steps: {line}\n" in capsys.readouterr().out
    assert notes.read_text() == ""


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("graphs", "one by one: the results differ"),
        ("graphs", "one by one: CUDARuntimeError: cudaErrorStreamCaptureUnsupported"),
        ("graphs", "one by one: too few to try a CUDA graph"),
        ("graphs", None),
        ("eager", "by CUDA graphs: 16 steps took 0.001 s rather than 0.002 s"),
        ("persistent", "one by one: cuda_graphs is off; the persistent kernel failed: an error"),
    ],
)
def test_steps_run_in_another_way_fail(
    way: str, line: str | None, steps: Callable[..., None], notes: Path
) -> None:
    with pytest.raises(SystemExit, match=f"expected steps .*, got {line or 'no words'}"):
        steps(way, line)
    assert notes.read_text() == ""


def test_graphs_that_are_slower_are_not_checked(steps: Callable[..., None], notes: Path) -> None:
    steps("graphs", "one by one: graphs are not faster here")
    assert re.fullmatch(r"NOT CHECKED: CUDA graphs in .*: graphs are not faster here\n", notes.read_text())


def test_without_nvmath_there_are_no_graphs_but_none_may_be_wrong(steps: Callable[..., None]) -> None:
    steps("graphs", "one by one: NotImplementedError: calling cuBLAS API during stream capture", with_nvmath=False)
    with pytest.raises(SystemExit, match="the results differ"):
        steps("graphs", "one by one: the results differ", with_nvmath=False)


def test_weights_are_compared_bit_for_bit(check: ModuleType, tmp_path: Path) -> None:
    values = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32), "c": np.array([0, -0.0, 0], np.float32)}
    for folder, array in values.items():
        (tmp_path / folder).mkdir()
        save_file({"weight": array}, tmp_path / folder / "checkpoint.safetensors")
    check.main(["weights", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="differ in weight"):
        check.main(["weights", str(tmp_path / "a"), str(tmp_path / "c")])
    with pytest.raises(SystemExit, match=r"there is no .*d/checkpoint.safetensors: the training failed"):
        check.main(["weights", str(tmp_path / "a"), str(tmp_path / "d")])


def test_peers_that_were_left_out_are_not_checked(check: ModuleType, tmp_path: Path, notes: Path) -> None:
    left_out = [{"peer": "jax", "reason": "not installed"}, {"peer": "numpy", "reason": "on the CPU only"}]
    (tmp_path / "compare-cuda0.json").write_text(json.dumps({"left_out": left_out}))
    check.main(["peers", str(tmp_path)])
    assert notes.read_text() == "NOT CHECKED: jax beside gpumlp: not installed\n"


def test_without_nvmath_it_is_said_what_that_means(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, notes: Path
) -> None:
    monkeypatch.setattr(check, "installed", lambda module: module != "nvmath")
    check.main(["needs", "cpu"])
    assert notes.read_text().startswith("NOT CHECKED: cuBLASLt and CUDA graphs: nvmath-python is missing")


def test_a_device_that_cannot_be_used_is_named(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module() -> None:
        raise DeviceError("there is no NVIDIA driver", "install one")

    monkeypatch.setattr(check, "installed", lambda module: True)
    monkeypatch.setattr("gpumlp.backends._cuda_module", no_module)
    with pytest.raises(SystemExit, match="cuda cannot be used: there is no NVIDIA driver; install one"):
        check.main(["needs", "cuda"])


def test_the_time_limits_are_eight_minutes_together() -> None:
    limits = re.findall(r"^part (\d+) ", (SCRIPTS / "check_gpu.sh").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(limits) > 10
    assert sum(map(int, limits)) <= 8 * 60


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("timeout")), reason="it is Bash with coreutils")
def test_a_bare_machine_is_told_everything_that_is_missing_in_one_line(tmp_path: Path) -> None:
    programs = {"nvidia-smi": "echo a card", "python": f'exec "{sys.executable}" -I -S "$@"'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
    log = tmp_path / "log"
    with log.open("w") as output:
        done = subprocess.run(
            ["bash", SCRIPTS / "check_gpu.sh"], env=environment, stdout=output, stderr=output, timeout=60
        )
    text = log.read_text()
    assert done.returncode == 1
    assert text.startswith("\n== machine\na card\n")
    assert "\nmissing: cupy-cuda13x, numpy, pooch, " in text
    assert text.endswith("\nfailed: what the check needs\n")
