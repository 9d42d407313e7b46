"""The throughput benchmark runs, and says what it measured and with what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def run_benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.throughput", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one quick run on the CPU."""
    folder = tmp_path_factory.mktemp("results")
    done = run_benchmark("--quick", "--devices", "cpu", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_json_holds_every_repeat_and_their_summary(quick: tuple[Path, str]) -> None:
    report = json.loads((quick[0] / "throughput-cpu.json").read_text())
    assert report["workload"]["network"] == "784-128-10"
    # forward and weight gradient of both layers, delta of the second: 2 (2 (784 128 + 128 10) + 128 10)
    assert report["workload"]["flops_per_sample"] == 409_088
    assert [(row["device"], row["batch_size"], row["steps"]) for row in report["results"]] == [
        ("cpu", 32, 64),
        ("cpu", 256, 8),
    ]
    for row in report["results"]:
        rates = row["samples_per_second"]
        assert len(rates) == report["method"]["repeats"] == 5
        assert (row["min"], row["median"], row["max"]) == (min(rates), sorted(rates)[2], max(rates))
        assert row["min"] > 0


def test_json_holds_the_circumstances(quick: tuple[Path, str]) -> None:
    report = json.loads((quick[0] / "throughput-cpu.json").read_text())
    assert report["command"].startswith("python -m benchmarks.throughput --quick --devices cpu")
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"gpumlp", "numpy", "cupy"} <= set(report["versions"])
    assert [device["name"] for device in report["devices"]] == ["cpu"]
    assert report["hardware"]["processors_usable"] >= 1
    assert all(pool["threads"] >= 1 for pool in report["blas"])
    assert report["quick"] is True


def test_says_what_was_not_measured(quick: tuple[Path, str]) -> None:
    report = json.loads((quick[0] / "throughput-cpu.json").read_text())
    notes = "\n".join(report["notes"])
    assert "Only the CPU was measured" in notes
    assert "Generated data" in notes
    assert all(note in quick[1] for note in report["notes"])


def test_figure_is_written(quick: tuple[Path, str]) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    assert (quick[0] / "throughput-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_only_the_figure_is_missing(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from benchmarks.throughput import main\n"
        f"sys.exit(main(['--quick', '--devices', 'cpu', '--batch-sizes', '256', '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "pip install '.[benchmark]'" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["throughput-cpu.json"]


def test_bad_options_are_all_named(tmp_path: Path) -> None:
    done = run_benchmark("--repeats", "2", "--batch-sizes", "0", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "repeats: expected 5 or more" in done.stderr
    assert "batch_sizes: expected 1 or more, got 0" in done.stderr
    assert not list(tmp_path.iterdir())


def test_unknown_device(tmp_path: Path) -> None:
    done = run_benchmark("--quick", "--devices", "tpu", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "devices: device is expected to be" in done.stderr
