"""The benchmarks run, record results and environment, and summarize them correctly."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import (
    common,
    compare,
    diagnostics,
    estimators,
    figures,
    many,
    markdown,
    memory,
    parallel,
    scaling,
    throughput,
)
from benchmarks.common import generate, samples_to_time, take_turns
from benchmarks.limits import flops_per_sample
from benchmarks.scaling import describe_fit, fit_power_law, fitting_memory
from benchmarks.throughput import copy_to, count_copies, crossover, crossovers, rate_with_copy
from gpumlp import MLP, Dataset, Trainer
from gpumlp.backends import Device, Execution, ExecutionError, Memory
from tests.strict_device import StrictBackend

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
Quick = tuple[dict[str, Any], str, Path]


def run_quick(name: str, folder: Path) -> Quick:
    """The report, the output and the folder of one quick run on the CPU."""
    module = importlib.import_module(f"benchmarks.{name}")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert module.main(["--quick", "--devices", "cpu", "--out", str(folder)]) == 0
    return json.loads((folder / f"{name}-cpu.json").read_text()), output.getvalue(), folder


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (throughput, {"networks": ("784-8-10",), "batch_sizes": (8192,), "generated": True}),
        (compare, {"batch_sizes": (32,)}),
        (many, {"networks": (3,)}),
        (estimators, {"seeds": 2}),
        (parallel, {"ranks": (1,)}),
        (scaling, {"depths": (1, 2)}),
        (scaling, {"quick": True}),
    ],
)
def test_a_part_of_the_results_does_not_replace_the_whole(
    module: ModuleType, part: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert common.output_folder(module.Options(**part)) == Path("runs/benchmark-trial")
    whole = module.Options()
    kept = {"devices": ("cpu",), "repeats": 9, "data_dir": "mnist"}
    whole = dataclasses.replace(whole, **{name: value for name, value in kept.items() if hasattr(whole, name)})
    assert common.output_folder(whole) == Path("benchmarks/results")
    assert common.output_folder(module.Options(**part, out="mine")) == Path("mine")
    assert Path("mine").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        common.output_folder(module.Options(out="file"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    return run_quick("throughput", tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    return run_quick("scaling", tmp_path_factory.mktemp("growth"))


# -- Throughput ------------------------------------------------------------------------------------------


def test_json_holds_every_repeat_and_their_summary(quick: Quick) -> None:
    report = quick[0]
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


def test_json_contains_the_environment(quick: Quick) -> None:
    report = quick[0]
    assert report["command"].startswith("python -m benchmarks.throughput --quick --devices cpu")
    assert report["commit"] == common.commit()
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"gpumlp", "numpy", "cupy"} <= set(report["versions"])
    assert [device["name"] for device in report["devices"]] == ["cpu"]
    assert report["hardware"]["processors_usable"] >= 1
    assert all(pool["threads"] >= 1 for pool in report["blas"])
    assert report["blas_kernel_choice"]["reason"]
    assert report["quick"] is True


def test_says_what_was_not_measured(quick: Quick) -> None:
    report, output, _ = quick
    notes = "\n".join(report["notes"])
    assert "Only the CPU was measured" in notes
    assert "Generated data" in notes
    assert all(note in output for note in report["notes"])
    assert report["copies"] == []
    for network in report["workload"]["networks"]:
        assert f"{network}: measured on one device; no crossover" in output


def test_without_matplotlib_only_the_figure_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = json.loads((RESULTS / "throughput-cpu.json").read_text())
    assert common.write(report, tmp_path / "throughput-cpu", figures.plot) == [tmp_path / "throughput-cpu.json"]
    assert 'pip install ".[benchmark]"' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["throughput-cpu.json"]


@pytest.mark.parametrize("benchmark", [throughput, scaling, compare, diagnostics, estimators, many])
def test_nothing_is_measured_with_a_clock_that_stands_still(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)
    assert benchmark.main([] if benchmark is diagnostics else ["--quick"]) == 2
    assert "expected a clock that advances" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_options_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--repeats", "2", "--batch-sizes", "0", "--networks", "784-x-10", "64-10", "784-128-10"]
    assert throughput.main([*wrong, "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "repeats: expected 5 or more" in message
    assert "batch_sizes: expected 1 or more, got 0" in message
    assert [line[-8:] for line in message.splitlines() if "networks:" in line] == ["784-x-10", "ot 64-10"]
    assert scaling.main(["--repeats", "1", "--batch-size", "0", "--depths", "0", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert all(f"{name}: expected" in message for name in ("repeats", "batch_size", "depths"))
    assert throughput.main(["--quick", "--devices", "tpu", "--out", str(tmp_path)]) == 2
    assert "devices: device is expected to be" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "option"), [(throughput, "batch_sizes"), (memory, "batch_size"), (scaling, "batch_size")]
)
def test_a_batch_larger_than_the_data_is_refused(
    tmp_path: Path, module: Any, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quick", f"--{option.replace('_', '-')}", "2049"]
    assert module.main([*words, *([] if module is memory else ["--out", str(tmp_path)])]) == 2
    message = f"{module.PROGRAM}: {option}: expected no more than the 2,048 samples, got 2,049\n"
    assert capsys.readouterr().err == message
    assert not list(tmp_path.iterdir())


def test_the_commit_is_marked_where_files_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(common, "__file__", str(tmp_path / "benchmarks" / "common.py"))
    assert common.commit() is None

    def git(*words: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *settings, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    assert common.commit() is None  # nothing is committed yet
    results = tmp_path / "benchmarks" / "results" / "compare-cpu.json"
    results.parent.mkdir(parents=True)
    for path in (tmp_path / "code", results):
        path.write_text("one")
    git("add", "code", str(results))
    git("commit", "-m", "one")
    results.write_text("what a benchmark writes is not a change of the code")
    assert common.commit() == git("rev-parse", "--short", "HEAD")
    (tmp_path / "code").write_text("two")
    assert common.commit() == git("rev-parse", "--short", "HEAD") + "+"


def test_a_repeat_is_bounded_by_its_operations_but_has_four_steps() -> None:
    small, large = (784, 128, 10), (784, 2048, 2048, 10)
    assert samples_to_time(small, 16, 60_000, 1e11) == 60_000
    timed = samples_to_time(large, 16, 60_000, 1e11)
    assert timed % 16 == 0
    assert 0.9e11 < timed * flops_per_sample(large) <= 1e11
    assert samples_to_time(large, 8192, 60_000, 1e11) == 4 * 8192
    assert samples_to_time(large, 8192, 20_000, 1e11) == 20_000


def test_a_gpu_has_two_epochs_of_warm_up(blobs: Dataset) -> None:
    on_a_gpu = Trainer(MLP([20, 8, 4], device=StrictBackend()), blobs, batch_size=100)
    on_the_cpu = Trainer(MLP([20, 8, 4], device="cpu"), blobs, batch_size=100)
    seconds = take_turns([on_a_gpu, on_the_cpu], 5, "repeats")
    assert (on_a_gpu.epoch, on_the_cpu.epoch) == (7, 6)
    assert seconds == [on_a_gpu.history["seconds"][2:], on_the_cpu.history["seconds"][1:]]


def test_another_execution_is_measured_where_it_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    class Persistent(StrictBackend):
        def execution(self, step: Any) -> Execution:
            if len(step.layers) > 2:
                raise ExecutionError("two hidden layers", "use another")
            return Execution("persistent", "as requested")

    monkeypatch.setattr(common, "take_turns", lambda trainers, *_: [[0.5] * 5 for _ in trainers])
    train, backends = (
        generate(64),
        [(StrictBackend(), None), (Persistent(), "persistent"), (StrictBackend(), "persistent")],
    )
    rows = throughput.measure(train, "784-4-10", backends[:2], [16, 32], 5)
    assert [(common.series(row), row["batch_size"]) for row in rows] == [
        ("strict", 16), ("strict", 32), ("strict, persistent", 16), ("strict, persistent", 32),
    ]  # fmt: skip
    for network, ways in (("784-4-4-10", backends[:2]), ("784-4-10", [backends[0], backends[2]])):
        assert [common.series(row) for row in throughput.measure(train, network, ways, [16], 5)] == ["strict"]
    words = crossovers(rows, "784-4-10", copied=False)["copy not counted"]
    assert words == [
        "strict is at least as fast as strict, persistent at every batch size measured; "
        "at 16 by 1.0x, at 32 by 1.0x"
    ]
    assert len(throughput.ways(["cpu"])) == 1  # a CPU has one


def test_a_crossover_is_of_the_batch_sizes_that_both_have() -> None:
    table = {"cuda:0": dict.fromkeys(SIZES, 1000.0), "cuda:0, persistent": {16: 5000.0, 64: 3000.0}}
    assert crossover(table) == [
        "cuda:0, persistent is faster than cuda:0 at every batch size measured; at 16 by 5.0x, at 64 by 3.0x"
    ]


def test_the_copy_to_a_device_is_timed_without_its_warm_up() -> None:
    backend, train = StrictBackend(), generate(50)
    copy = copy_to(backend, train, repeats=5)
    assert backend.ledger.host_writes == 6 * 2  # images and labels
    assert backend.ledger.waits == 6 * 2  # before and after
    assert (copy["device"], copy["bytes"]) == ("strict", 50 * (784 + 8))
    assert len(copy["seconds"]) == 5
    assert copy["min"] == min(copy["seconds"]) > 0


def test_the_copy_is_counted_where_there_is_one() -> None:
    assert rate_with_copy(1000, 2, samples=1000, epochs=1) == pytest.approx(1000 / 3)  # 1 s and 2 s
    assert rate_with_copy(1000, 2, samples=1000, epochs=20) == pytest.approx(20_000 / 22)
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


SIZES = (16, 64, 512, 8192)


def rates(*ratios: float) -> dict[str, dict[int, float]]:
    """A CPU of 1,000 samples/s, and a GPU that is faster by the ratios; the batch sizes out of order."""
    return {
        "cpu": dict.fromkeys(reversed(SIZES), 1000.0),
        "cuda:0": {size: 1000 * ratio for size, ratio in zip(SIZES, ratios, strict=True)},
    }


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((0.5, 1.5, 3, 12), "from batch 64 on, cuda:0 is faster than cpu; at 8,192 by 12.0x"),
        ((0.5, 0.9, 1, 12), "from batch 8,192 on, cuda:0 is faster than cpu; at 8,192 by 12.0x"),
        ((1.5, 0.9, 2, 3), "from batch 512 on (and at 16), cuda:0 is faster than cpu; at 8,192 by 3.0x"),
        ((2, 3, 4, 5), "cuda:0 is faster than cpu at every batch size measured; at 16 by 2.0x, at 8,192 by 5.0x"),
        (
            (0.5, 0.5, 0.25, 1),
            "cpu is at least as fast as cuda:0 at every batch size measured; at 16 by 2.0x, at 8,192 by 1.0x",
        ),
        ((0.5, 2, 2, 0.5), "cuda:0 is faster than cpu at batch 64 and 512 only, and not at 8,192"),
    ],
)
def test_the_crossover_in_words(ratios: tuple[float, ...], words: str) -> None:
    table = rates(*ratios)
    assert crossover(table) == [words]
    table["cuda:1"] = table["cpu"]
    assert crossover(table)[1].startswith("cpu is at least as fast as cuda:1")


# -- Growth ----------------------------------------------------------------------------------------------


def test_scaling_measures_hidden_size_depth_and_data_size(growth: Quick) -> None:
    report, output, _ = growth
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
        assert f"cpu: {one['words']}" in output


def test_a_part_of_an_epoch_is_scaled_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "FLOP_BUDGET", 0)  # four steps are the least
    monkeypatch.setattr(common, "take_turns", lambda trainers, *_: [[0.25] * 5 for _ in trainers])
    series = scaling.Series("hidden size", "", [scaling.Setting(16, (784, 16, 10), 1280)], whole_epochs=False)
    options = scaling.Options(batch_size=32)
    (one,) = scaling.measure(series, generate(1280), ["cpu"], options)
    (point,) = one["points"]
    assert (point["samples_timed"], point["steps_timed"], point["median"]) == (128, 4, 2.5)
    (one,) = scaling.measure(series._replace(whole_epochs=True), generate(1280), ["cpu"], options)
    assert (one["points"][0]["samples_timed"], one["points"][0]["median"]) == (1280, 0.25)


def test_data_that_does_not_fit_is_left_out_and_named() -> None:
    card = Device("cuda:0", "a card", Memory(free=5 * 10**9, total=8 * 10**9))
    cpu = Device("cpu", "a processor", None)
    assert fitting_memory([1, 10, 50], 60_000, 10**10, [cpu]) == ([1, 10, 50], None)
    assert fitting_memory([1, 10, 50], 60_000, None, [cpu]) == ([1, 10, 50], None)
    assert fitting_memory([1, 10, 50], 60_000, None, [cpu, card])[0] == [1, 10, 50]
    kept, note = fitting_memory([1, 10, 20, 50], 60_000, 10**9, [cpu])
    assert kept == [1, 10]
    assert note == (
        "Left out for lack of memory: 20, 50 times 60,000 samples (from 1.02 GB on, of 1.00 GB that are free)."
    )
    assert fitting_memory([40, 50], 60_000, None, [cpu, card])[0] == [40]  # a card holds them all at once


def test_a_power_law_is_found_exactly() -> None:
    fit = fit_power_law([64, 128, 256, 4096], [3 * x**1.5 for x in (64, 128, 256, 4096)])
    assert fit is not None
    assert (fit.exponent, fit.factor, fit.r_squared) == pytest.approx((1.5, 3, 1))
    assert (fit.first, fit.last, fit.points) == (64, 4096, 4)
    assert fit(100) == pytest.approx(3000)


def test_the_least_squares_line_by_hand() -> None:
    # logarithms to the base of 2: x 0, 1, 2 and y 0, 2, 1; slope 1/2, shift 1/2, r² 1/4, residuals 1/2, 1, 1/2
    fit = fit_power_law([1, 2, 4], [1, 4, 2], tolerance=10)
    assert fit is not None
    assert (fit.exponent, fit.factor, fit.r_squared) == pytest.approx((0.5, 2**0.5, 0.25))
    assert fit.largest_deviation == pytest.approx(1)  # twice the line's value


def test_a_fixed_cost_is_left_out_of_the_fit() -> None:
    sizes = [2**k for k in range(2, 13)]
    fit = fit_power_law(sizes, [100 + x for x in sizes])
    assert fit is not None
    assert fit.last == 4096
    assert 64 <= fit.first <= 512
    assert 0.8 < fit.exponent < 1
    assert fit.largest_deviation <= 0.1


def test_fits_in_words() -> None:
    fit = fit_power_law([64, 512, 4096], [0.1, 0.8, 6.4])
    assert describe_fit(fit, "hidden size") == (
        "an epoch's time grows as hidden size to the power 1.00 from 64 to 4,096 "
        "(3 points, r² 1.0000, at most 0 % off)"
    )
    none = fit_power_law([1, 2, 4, 8], [1, 5, 1, 5])
    assert none is not None
    assert (none.first, none.points) == (2, 3)
    assert describe_fit(none, "depth").endswith("no power law holds to 10 %")
    assert fit_power_law([1, 2], [1, 2]) is None
    assert describe_fit(None, "depth") == "too few points for an exponent of the depth"


# -- Memory and diagnostics ------------------------------------------------------------------------------


def test_memory_names_its_parts_and_the_peak() -> None:
    done = subprocess.run(  # one peak per process
        [sys.executable, "-m", "benchmarks.memory", "--quick", "--batch-size", "64", "--json"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    parts = json.loads(done.stdout)
    assert parts["data set"] == 2048 * (784 + 8)
    assert parts["parameters and optimizer"] == 4 * 4 * (101_632 + 128 + 64)  # padded to 64 elements
    assert parts["workspace"] == 64 * (784 * 4 + 784 + 2 * 128 * 4 + 10 * 4)
    assert parts["interpreter and libraries"] < parts["needed"] < parts["peak"] < 3 * parts["needed"]


def test_the_cost_of_the_diagnostics_is_measured_in_pairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnostics, "SHORT_EPOCHS", 3)
    words = ["--datasets", "digits", "--networks", "8", "8-4", "--seconds", "0.01", "--repeats", "5"]
    assert diagnostics.main(words) == 0
    results = json.loads(capsys.readouterr().out)["results"]
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
    assert diagnostics.main(["--datasets", "others"]) == diagnostics.main(["--networks", "128-"]) == 2


# -- Tables and figures ----------------------------------------------------------------------------------


def test_the_short_table_of_a_result(quick: Quick) -> None:
    report = quick[0]
    lines = list(markdown.throughput(report))
    assert lines[0] == "| batch | 784-128-10, cpu | 784-32-32-10, cpu |"
    assert all(f" {row['median']:,.0f} |" in "".join(lines) for row in report["results"])


def test_tables_of_comparisons() -> None:
    def row(peer: str, momentum: float, rate: float, ratio: float) -> dict[str, object]:
        return {
            "network": "784-10", "batch_size": 1024, "momentum": momentum, "peer": peer, "median": rate,
            "share_of_arithmetic": 0.25, "gpumlp_is": ratio,
        }  # fmt: skip

    results = [row("gpumlp", 0.0, 3000, 1), row("jax", 0.0, 2000, 1.5), row("gpumlp", 0.9, 2500, 1)]
    peers = {"gpumlp": "gpumlp", "jax": "JAX"}
    lines = list(markdown.comparison({"results": results, "peers": peers}))
    assert "| 1,024 | 3,000 / 2,500 | 25% / 25% | 1.50x / - |" in lines

    times = {"microseconds_per_step": 41.234, "floor_microseconds": 9.876}
    on_gpu = {"limits": {"flops": 1e12, "bytes": 1e11}, "peers": peers}
    lines = list(markdown.comparison({**on_gpu, "results": [{**results[0], **times}, *results[1:]]}))
    assert "| batch | gpumlp | JAX | floor |" in lines
    assert "| 1,024 | 41.2 / - | - / - | 9.88 / - |" in lines


def test_the_benchmarks_readme_shows_what_was_measured_on_a_gpu() -> None:
    report = json.loads((RESULTS / "compare-cuda-h100.json").read_text())
    readme = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert "\n".join(line for line in markdown.comparison(report) if line.startswith("|")) in readme


def test_results_of_every_benchmark_have_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    names = [path for path in sorted(RESULTS.glob("*.json")) if not path.name.startswith("diagnostics")]
    assert markdown.main([str(path) for path in names]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("<!-- ") == len(names) > 5
    assert not printed.err


def test_columns_are_aligned() -> None:
    lines = ["text", *markdown.table(["a", "long name"], [["123", "4"]])]
    assert list(markdown.aligned(lines)) == [
        "text",
        "| a   | long name |",
        "|-----|-----------|",
        "| 123 | 4         |",
    ]


def test_a_file_that_is_not_a_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"other": '{"benchmark": "tea"}', "unnamed": '{"results": []}', "list": "[1]"}.items():
        (tmp_path / name).write_text(text)
        assert markdown.main([str(tmp_path / name)]) == 1
    (tmp_path / "broken").write_text("{")
    assert markdown.main([str(tmp_path / "broken")]) == markdown.main([]) == markdown.main(["--figures", "x"]) == 2
    (tmp_path / "part").write_text('{"benchmark": "estimators"}')
    assert markdown.main([str(tmp_path / "part")]) == 2
    other, unnamed, a_list, broken, nothing, _, part = capsys.readouterr().err.splitlines()
    assert other.startswith(
        f"{tmp_path}/other: there is no table of tea, only of comparison of training throughput, "
    )
    assert "of results that do not name their benchmark" in unnamed
    assert "of results that do not name their benchmark" in a_list
    assert "broken is not a file of results: " in broken
    assert nothing.startswith("expected [--figure] and files of results")
    assert part == f"{tmp_path}/part is not a whole file of results: it has no 'date'"


@pytest.mark.parametrize("name", ["compare-cpu", "compare-cuda-h100", "throughput-cpu", "scaling-cpu"])
def test_a_figure_is_drawn_from_the_results(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    shutil.copy(RESULTS / f"{name}.json", tmp_path)
    assert markdown.main(["--figure", str(tmp_path / f"{name}.json")]) == 0
    drawn = {f"{name}.png"} | ({f"{name}-steps.png"} if name.startswith("compare") else set())
    assert {path.name for path in tmp_path.glob("*.png")} == drawn
    assert all((tmp_path / figure).read_bytes().startswith(b"\x89PNG") for figure in drawn)


def test_labels_of_lines_keep_their_distance_and_stay_below_the_title() -> None:
    assert figures.spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
    assert figures.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert figures.spread([0.2, 0.21, 0.26], 0.05) == pytest.approx([0.2233 - 0.05, 0.2233, 0.2733], abs=1e-4)
    assert figures.lowered([0.2, 0.9], 0.97) == [0.2, 0.9]
    assert figures.lowered([0.2, 1.0], 0.97) == pytest.approx([0.17, 0.97])
