"""The comparison checks that its peers agree before it times them, and says what it left out and why."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare, timing
from benchmarks.comparison_table import three_digits
from benchmarks.peers.textbook import Textbook
from gpumlp import Dataset
from tests.benchmark_helpers import run_benchmark
from tests.test_compare_peers import SETTING, NoOutputBias


def test_disagreement_ends_in_exit_code_1_and_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "ALL", (Textbook, NoOutputBias))
    words = ["--quick", "--devices", "cpu", "--batch-sizes", "256", "--momenta", "0", "--out", str(tmp_path)]
    assert compare.main(words) == 1
    assert "left out: no output bias: disagrees in 784-128-10, momentum 0" in capsys.readouterr().out
    report = json.loads((tmp_path / "compare-cpu.json").read_text())
    assert {row["peer"] for row in report["results"]} == {"numpy"}
    assert [entry["agrees"] for entry in report["agreement"]] == [True, False]


class WrongInLargeBatches(Textbook):
    name = "wrong in large batches"

    def _step(self, rows: np.ndarray) -> np.floating:
        return super()._step(rows if len(rows) < 100 else rows[::2])


def test_agreement_is_checked_at_the_largest_batch_size_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "ALL", (Textbook, WrongInLargeBatches))
    words = ["--quick", "--check", "--devices", "cpu", "--batch-sizes", "16", "64", "256", "--momenta", "0.9"]
    assert compare.main([*words, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "wrong in large batches agrees: its losses over 20 steps" in printed
    assert "wrong in large batches DISAGREES: its losses over 3 steps" in printed
    assert "left out: wrong in large batches: disagrees in 784-128-10, momentum 0.9, batch 256" in printed
    assert "batch 64" not in printed


class Failing(Textbook):
    name = "failing"

    def epoch(self, part: int | None = None) -> float:
        raise RuntimeError("no such kernel\nwith a long story")


def test_failing_peer_does_not_take_the_others_with_it(blobs: Dataset) -> None:
    run = timing.Run(48, 1)
    failed, fine = timing.measure(SETTING, blobs, run, [Failing, Textbook], repeats=5, threads=1)
    assert failed.error == "failed: RuntimeError: no such kernel"
    assert failed.seconds == []
    assert fine.error is None
    assert len(fine.seconds) == 5


@pytest.mark.parametrize("words", [(), ("--check",)])
def test_without_a_peer_that_can_run_there_is_one_line_and_no_file(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--quick", "--devices", "cpu", "--peers", "torch-graph", "--out", str(tmp_path)]
    assert compare.main([*start, *words]) == 1
    what = "checked" if words else "measured"
    assert capsys.readouterr().err == f"compare: no peer could be {what} on cpu; nothing is written\n"
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_all_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "ALL", (Failing,))
    words = ["--quick", "--devices", "cpu", "--batch-sizes", "256", "--samples", "512", "--out", str(tmp_path)]
    assert compare.main(words) == 1
    printed = capsys.readouterr()
    assert "left out: failing: failed: RuntimeError: no such kernel" in printed.out
    assert printed.err == "compare: no peer could be measured on cpu; nothing is written\n"
    assert not list(tmp_path.iterdir())


# -- The command -----------------------------------------------------------------------------------------


def run_compare(*words: str) -> subprocess.CompletedProcess[str]:
    return run_benchmark(*words, benchmark="compare")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """The report, the output and the folder of one quick run with what is installed and starts quickly."""
    folder = tmp_path_factory.mktemp("results")
    peers = ("gpumlp", "torch", "torch-graph", "scikit-learn", "numpy")
    words = ("--quick", "--devices", "cpu", "--threads", "1", "--momenta", "0.9", "--peers", *peers)
    done = run_compare(*words, "--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "compare-cpu.json").read_text()), done.stdout, folder


def test_json_holds_every_run(quick: tuple[dict, str, Path]) -> None:
    report = quick[0]
    assert {"gpumlp", "numpy"} <= {row["peer"] for row in report["results"]}
    assert {(row["network"], row["momentum"]) for row in report["results"]} == {("784-128-10", 0.9)}
    for row in report["results"]:
        rates = row["samples_per_second"]
        assert len(rates) == report["method"]["repeats"] == 5
        assert (row["min"], row["median"], row["max"]) == (min(rates), sorted(rates)[2], max(rates))
        same = [other for other in report["results"] if other["batch_size"] == row["batch_size"]]
        assert len({(other["samples"], other["epochs_per_run"]) for other in same}) == 1
        assert row["gpumlp_is"] == pytest.approx(same[0]["median"] / row["median"])
        share = row["floor_microseconds"] / row["microseconds_per_step"]  # on a CPU there is one limit
        assert row["share_of_arithmetic"] == pytest.approx(share)
        assert 0 < row["share_of_arithmetic"] == row["median"] * 409_088 / report["limits"]["flops"]


def test_json_holds_the_circumstances(quick: tuple[dict, str, Path]) -> None:
    report = quick[0]
    assert report["command"].startswith("python -m benchmarks.compare --quick --devices cpu")
    assert {"gpumlp", "numpy", "torch", "jax", "scikit-learn"} <= set(report["versions"])
    assert report["threads"]["asked_for"] == 1
    assert report["limits"]["by"] in report["limits"]["each"]
    assert report["quick"] is True


def test_says_who_was_left_out_and_who_agrees(quick: tuple[dict, str, Path]) -> None:
    report, output, _ = quick
    reasons = {entry["peer"]: entry["reason"] for entry in report["left_out"]}
    assert reasons["torch-graph"].startswith("CUDA graphs need a GPU")
    assert reasons["jax"] == "not asked for with --peers"
    assert "left out: torch-graph: CUDA graphs need a GPU" in output
    assert "gpumlp agrees: its losses over 20 steps" in output
    assert all(entry["agrees"] for entry in report["agreement"])


def test_table_shows_the_time_of_a_step_beside_its_floor(quick: tuple[dict, str, Path]) -> None:
    report, output, _ = quick
    for row in report["results"]:
        times = {three_digits(row[name]) for name in ("microseconds_per_step", "floor_microseconds")}
        assert any(times <= set(line.split()) for line in output.splitlines())


def test_figure_is_written(quick: tuple[dict, str, Path]) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    assert (quick[2] / "compare-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_check_measures_and_writes_nothing(tmp_path: Path) -> None:
    done = run_compare(
        "--check", "--quick", "--peers", "gpumlp", "numpy", "--out", str(tmp_path), "--devices", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert "gpumlp agrees" in done.stdout
    assert "samples/s" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_bad_options_are_all_named(tmp_path: Path) -> None:
    done = run_compare(
        "--repeats", "2", "--peers", "keras", "--networks", "784", "--momenta", "1", "--dtype", "float16"
    )
    assert done.returncode == 2
    for message in (
        "repeats: expected 5 or more, got 2",
        "peers: expected gpumlp, torch,",
        "networks: expected units of each layer such as 784-128-10, got '784'",
        "momenta: expected 0 or more and below 1, got 1.0",
        "dtype: expected float32 or float64, got 'float16'",
    ):
        assert message in done.stderr


def test_network_and_batch_that_the_data_is_not_made_for() -> None:
    done = run_compare("--quick", "--devices", "cpu", "--networks", "20-10", "--batch-sizes", "4096")
    assert done.returncode == 2
    assert "784 inputs and 10 classes, got 20-10" in done.stderr
    assert "batch_sizes: expected no more than the 2,048 samples, got 4,096" in done.stderr


def test_a_part_of_the_comparison_does_not_replace_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.output_folder(compare.Options()) == Path("benchmarks/results")
    assert compare.output_folder(compare.Options(batch_sizes=(32,))) == Path("runs/benchmark-trial")
    assert compare.output_folder(compare.Options(batch_sizes=(32,), out="mine")) == Path("mine")
    assert Path("mine").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        compare.output_folder(compare.Options(out="file"))
