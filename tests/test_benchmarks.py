"""The benchmarks of throughput and memory run, and say what they measured and with what."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import markdown, reporting
from benchmarks.measuring import fitting_memory, flops_per_sample, generate, samples_to_time, take_turns
from benchmarks.throughput import copy_to, count_copies, crossovers
from gpumlp import MLP, Dataset, Trainer
from gpumlp.backends import Device, Memory
from tests.benchmark_helpers import REPOSITORY, run_benchmark
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one quick run on the CPU."""
    folder = tmp_path_factory.mktemp("results")
    done = run_benchmark("--quick", "--devices", "cpu", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_json_holds_every_repeat_and_their_summary(quick: tuple[Path, str]) -> None:
    report = json.loads((quick[0] / "throughput-cpu.json").read_text())
    networks = report["workload"]["networks"]
    # forward and weight gradient of both layers, delta of the second: 2 (2 (784 128 + 128 10) + 128 10)
    assert networks["784-128-10"] == {"flops_per_sample": 409_088}
    assert [(row["network"], row["batch_size"], row["samples"], row["steps"]) for row in report["results"]] == [
        (network, batch_size, 2048, steps) for network in networks for batch_size, steps in ((32, 64), (256, 8))
    ]
    for row in report["results"]:
        rates = row["samples_per_second"]
        assert len(rates) == report["method"]["repeats"] == 5
        assert (row["min"], row["median"], row["max"]) == (min(rates), sorted(rates)[2], max(rates))
        assert row["min"] > 0


def test_json_holds_the_circumstances(quick: tuple[Path, str]) -> None:
    report = json.loads((quick[0] / "throughput-cpu.json").read_text())
    assert report["command"].startswith("python -m benchmarks.throughput --quick --devices cpu")
    assert report["commit"] == reporting.commit()
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"gpumlp", "numpy", "cupy"} <= set(report["versions"])
    assert [device["name"] for device in report["devices"]] == ["cpu"]
    assert report["hardware"]["processors_usable"] >= 1
    assert all(pool["threads"] >= 1 for pool in report["blas"])
    assert report["blas_kernel_choice"]["reason"]
    assert report["quick"] is True


def test_says_what_was_not_measured(quick: tuple[Path, str]) -> None:
    report = json.loads((quick[0] / "throughput-cpu.json").read_text())
    notes = "\n".join(report["notes"])
    assert "Only the CPU was measured" in notes
    assert "Generated data" in notes
    assert all(note in quick[1] for note in report["notes"])
    assert report["copies"] == []
    for network in report["workload"]["networks"]:
        assert f"{network}: measured on one device; no crossover" in quick[1]


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
    wrong = ("--repeats", "2", "--batch-sizes", "0", "--networks", "784-x-10", "64-10", "784-128-10")
    done = run_benchmark(*wrong, "--out", str(tmp_path))
    assert done.returncode == 2
    assert "repeats: expected 5 or more" in done.stderr
    assert "batch_sizes: expected 1 or more, got 0" in done.stderr
    assert [line[-8:] for line in done.stderr.splitlines() if "networks:" in line] == ["784-x-10", "ot 64-10"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("benchmark", "option"), [("throughput", "batch_sizes"), ("memory", "batch_size"), ("scaling", "batch_size")]
)
def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path, benchmark: str, option: str) -> None:
    words = ["--quick", f"--{option.replace('_', '-')}", "2049"]
    where = [] if benchmark == "memory" else ["--out", str(tmp_path)]
    done = run_benchmark(*words, *where, benchmark=benchmark)
    assert done.returncode == 2
    assert done.stderr == f"{benchmark}: {option}: expected no more than the 2,048 samples, got 2,049\n"
    assert not list(tmp_path.iterdir())


def test_unknown_device(tmp_path: Path) -> None:
    done = run_benchmark("--quick", "--devices", "tpu", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "devices: device is expected to be" in done.stderr


def test_the_commit_is_told_from_a_changed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(reporting, "__file__", str(tmp_path / "benchmarks" / "reporting.py"))
    assert reporting.commit() is None

    def git(*words: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *settings, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    assert reporting.commit() is None  # nothing is committed yet
    results = tmp_path / "benchmarks" / "results" / "compare-cpu.json"
    results.parent.mkdir(parents=True)
    for path in (tmp_path / "code", results):
        path.write_text("one")
    git("add", "code", str(results))
    git("commit", "-m", "one")
    results.write_text("what a benchmark writes is no change of the code")
    assert reporting.commit() == git("rev-parse", "--short", "HEAD")
    (tmp_path / "code").write_text("two")
    assert reporting.commit() == git("rev-parse", "--short", "HEAD") + "+"


# -- The parts of a measurement ----------------------------------------------------------------------------


def test_a_repeat_is_bounded_by_its_operations_but_has_four_steps() -> None:
    small, large = (784, 128, 10), (784, 2048, 2048, 10)
    assert samples_to_time(small, 16, 60_000, 1e11) == 60_000
    timed = samples_to_time(large, 16, 60_000, 1e11)
    assert timed % 16 == 0
    assert 0.9e11 < timed * flops_per_sample(large) <= 1e11
    assert samples_to_time(large, 8192, 60_000, 1e11) == 4 * 8192
    assert samples_to_time(large, 8192, 20_000, 1e11) == 20_000


def test_graphs_are_tried_before_an_epoch_counts(monkeypatch: pytest.MonkeyPatch, blobs: Dataset) -> None:
    backend, states, run = host_cuda_backend(cublaslt=True), [], Trainer.run
    few_batches = Trainer(MLP([20, 8, 4], device=backend), blobs, batch_size=100)
    on_the_cpu = Trainer(MLP([20, 8, 4], device="cpu"), blobs, batch_size=100)

    def watched(self: Trainer, epochs: int) -> object:
        if self is few_batches:
            states.append(backend.graphs.plan(self._step).state)
        return run(self, epochs)

    monkeypatch.setattr(Trainer, "run", watched)
    seconds = take_turns([few_batches, on_the_cpu], 5, "repeats")
    assert states[:2] == ["new", "warm"]
    assert set(states[2:]) == {"graph"}
    assert seconds == [few_batches.history["seconds"][2:], on_the_cpu.history["seconds"][1:]]
    assert [len(each) for each in seconds] == [5, 5]


def test_the_copy_to_a_device_is_timed_without_its_warm_up() -> None:
    backend, train = StrictBackend(), generate(50)
    copy = copy_to(backend, train, repeats=5)
    assert backend.ledger.host_writes == 6 * 2  # images and labels
    assert backend.ledger.waits == 6 * 2  # before and after
    assert (copy["device"], copy["bytes"]) == ("strict", 50 * (784 + 8))
    assert len(copy["seconds"]) == 5
    assert copy["min"] == min(copy["seconds"]) > 0


def test_the_copy_is_counted_where_there_is_one() -> None:
    results = [
        {"network": "n", "device": device, "batch_size": 32, "median": rate}
        for device, rate in (("cpu", 100.0), ("cuda:0", 150.0))
    ]
    count_copies(results, [{"device": "cuda:0", "median": 10.0}], samples=1000)
    assert "with_copy" not in results[0]
    assert results[1]["with_copy"] == pytest.approx({"1": 60, "20": 150 * 20_000 / 21_500})
    words = crossovers(results, "n", copied=True)
    assert list(words) == ["copy not counted", "copy counted, 1 epoch", "copy counted, 20 epochs"]
    assert [sentence.split()[0] for (sentence,) in words.values()] == ["cuda:0", "cpu", "cuda:0"]


def test_data_that_does_not_fit_is_left_out_and_named() -> None:
    card = Device("cuda:0", "a card", Memory(free=5 * 10**9, total=8 * 10**9))
    cpu = Device("cpu", "a processor", None)
    assert fitting_memory([1, 10, 50], 60_000, 10**10, [cpu]) == ([1, 10, 50], None)
    assert fitting_memory([1, 10, 50], 60_000, None, [cpu]) == ([1, 10, 50], None)
    assert fitting_memory([1, 10, 50], 60_000, None, [cpu, card])[0] == [1, 10, 50]
    kept, note = fitting_memory([1, 10, 20, 50], 60_000, 10**9, [cpu])
    assert kept == [1, 10]
    assert note == (
        "Left out for want of memory: 20, 50 times 60,000 samples (from 1.02 GB on, of 1.00 GB that are free)."
    )
    assert fitting_memory([40, 50], 60_000, None, [cpu, card])[0] == [40]  # a card holds them all at once


def test_memory_names_its_parts_and_the_peak() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--quick", "--batch-size", "64", "--json"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    parts = json.loads(done.stdout)
    assert parts["data set"] == 2048 * (784 + 8)
    assert parts["parameters and optimizer"] == 4 * 4 * (101_632 + 128 + 64)  # padded to 64 elements
    assert parts["workspace"] == 64 * (784 * 4 + 784 + 2 * 128 * 4 + 10 * 4)
    assert parts["interpreter and libraries"] < parts["needed"] < parts["peak"] < 3 * parts["needed"]


def test_markdown_prints_the_table_of_a_result(
    quick: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = quick[0] / "throughput-cpu.json"
    assert markdown.main([str(path)]) == 0
    table = capsys.readouterr().out
    for row in json.loads(path.read_text())["results"]:
        assert f"| {row['median']:,.0f} " in table
    assert "| batch | 784-128-10, cpu |" in table


def test_the_cost_of_the_diagnostics_is_measured_in_pairs() -> None:
    words = ("--datasets", "digits", "--networks", "8", "8-4", "--seconds", "0.01", "--repeats", "5")
    done = run_benchmark(*words, benchmark="diagnostics")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(row["dataset"], row["validation"], row["network"]) for row in results] == [
        ("digits", True, "64-8-10"),
        ("digits", False, "64-8-10"),
        ("digits", True, "64-8-4-10"),
        ("digits", False, "64-8-4-10"),
    ]
    for row in results:
        assert row["pairs"] >= 5
        assert min(row["milliseconds_with"], row["milliseconds_without"], *row["milliseconds_undisturbed"]) > 0
        for name in ("added_percent", "statistics_percent"):
            low, high = row[f"{name}_quartiles"]
            assert low <= row[name] <= high
    assert run_benchmark("--datasets", "others", benchmark="diagnostics").returncode == 2
    assert run_benchmark("--networks", "128-", benchmark="diagnostics").returncode == 2
