"""How cost grows: ``benchmarks.scaling``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.measuring import generate
from tests.benchmark_helpers import run_benchmark


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one quick run on the CPU."""
    folder = tmp_path_factory.mktemp("growth")
    done = run_benchmark("--quick", "--devices", "cpu", "--out", str(folder), benchmark="scaling")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_scaling_measures_hidden_size_depth_and_data_size(growth: tuple[Path, str]) -> None:
    report = json.loads((growth[0] / "scaling-cpu.json").read_text())
    assert [(one["by"], [point["x"] for point in one["points"]]) for one in report["growth"]] == [
        ("hidden size", [16, 64, 256]),
        ("hidden layers", [1, 2, 3]),
        ("samples", [2048, 4096, 8192]),
    ]
    for one in report["growth"]:
        for point in one["points"]:
            seconds = point["seconds_per_epoch"]
            assert len(seconds) == report["method"]["repeats"] == 5
            assert (point["min"], point["median"], point["max"]) == (
                min(seconds),
                sorted(seconds)[2],
                max(seconds),
            )
            assert point["samples_timed"] == point["samples"]
        assert one["fit"]["points"] == 3
        assert f"cpu: {one['words']}" in growth[1]
    assert any("Only the CPU was measured" in note for note in report["notes"])


def test_scaling_draws_a_figure(growth: tuple[Path, str]) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    assert (growth[0] / "scaling-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_of_an_epoch_is_scaled_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "FLOP_BUDGET", 0)  # four steps are the least
    monkeypatch.setattr(scaling, "take_turns", lambda trainers, *_: [[0.25] * 5 for _ in trainers])
    series = scaling.Series("hidden size", "", [scaling.Setting(16, (784, 16, 10), 1280)], whole_epochs=False)
    options = scaling.Options(batch_size=32)
    (one,) = scaling.measure(series, generate(1280), ["cpu"], options)
    (point,) = one["points"]
    assert (point["samples_timed"], point["steps_timed"], point["median"]) == (128, 4, 2.5)
    (one,) = scaling.measure(series._replace(whole_epochs=True), generate(1280), ["cpu"], options)
    assert (one["points"][0]["samples_timed"], one["points"][0]["median"]) == (1280, 0.25)


def test_bad_options_of_scaling_are_all_named(tmp_path: Path) -> None:
    wrong = ("--repeats", "1", "--batch-size", "0", "--depths", "0", "--out", str(tmp_path))
    done = run_benchmark(*wrong, benchmark="scaling")
    assert done.returncode == 2
    for name in ("repeats", "batch_size", "depths"):
        assert f"{name}: expected" in done.stderr
    assert not list(tmp_path.iterdir())
