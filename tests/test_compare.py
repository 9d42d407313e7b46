"""The comparison checks the agreement of its peers before timing, and reports skipped ones with the reason."""

from __future__ import annotations

import contextlib
import io
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

from benchmarks import compare, limits, timing
from benchmarks.compare import ALL, Measured
from benchmarks.limits import bytes_per_step, flops_per_sample
from benchmarks.markdown import three_digits
from benchmarks.peers.numpy import Textbook
from gpumlp import Dataset
from tests.test_compare_peers import SETTING, NoOutputBias, start


@pytest.fixture(scope="module", autouse=True)
def without_rests() -> Iterator[None]:
    """No pause between timed runs; the number of threads is restored."""
    with pytest.MonkeyPatch.context() as patch, threadpoolctl.threadpool_limits():
        patch.setattr(timing, "REST", 0)
        patch.setenv("NPROC", "1")
        yield


def test_disagreement_ends_in_exit_code_1_and_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "ALL", (Textbook, NoOutputBias))
    words = ["--quick", "--devices", "cpu", "--batch-sizes", "16", "--momenta", "0", "--out", str(tmp_path)]
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
    assert "wrong in large batches DISAGREES: its losses over 2 steps, as an epoch" in printed
    assert "left out: wrong in large batches: disagrees in 784-128-10, momentum 0.9, batch 256" in printed
    assert "batch 64" not in printed


class Failing(Textbook):
    name = "failing"

    def epoch(self, part: int | None = None) -> float:
        raise RuntimeError("no such kernel\nwith a long story")


def test_failing_peer_does_not_stop_the_others(blobs: Dataset) -> None:
    failed, fine = timing.measure(SETTING, blobs, 48, [Failing, Textbook], repeats=5, seconds=0, threads=1)
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
    words = ["--quick", "--devices", "cpu", "--batch-sizes", "16", "--samples", "64", "--out", str(tmp_path)]
    assert compare.main(words) == 1
    printed = capsys.readouterr()
    assert "left out: failing: failed: RuntimeError: no such kernel" in printed.out
    assert printed.err == "compare: no peer could be measured on cpu; nothing is written\n"
    assert not list(tmp_path.iterdir())


# -- The command -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """The report, the output and the folder of one quick run with the installed peers that start quickly."""
    folder = tmp_path_factory.mktemp("results")
    peers = ("gpumlp", "torch-graph", "numpy")
    words = ("--quick", "--devices", "cpu", "--threads", "1", "--momenta", "0.9", "--peers", *peers)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert compare.main([*words, "--out", str(folder)]) == 0
    return json.loads((folder / "compare-cpu.json").read_text()), output.getvalue(), folder


def test_json_holds_every_run(quick: tuple[dict, str, Path]) -> None:
    report = quick[0]
    assert {"gpumlp", "numpy"} <= {row["peer"] for row in report["results"]}
    assert {(row["network"], row["momentum"]) for row in report["results"]} == {("784-128-10", 0.9)}
    for row in report["results"]:
        rates = row["samples_per_second"]
        assert len(rates) == report["method"]["repeats"] == 5
        assert (row["min"], row["median"], row["max"]) == (min(rates), sorted(rates)[2], max(rates))
        same = [other for other in report["results"] if other["batch_size"] == row["batch_size"]]
        assert len({other["samples"] for other in same}) == 1
        assert row["epochs_per_run"] >= 1
        assert row["gpumlp_is"] == pytest.approx(same[0]["median"] / row["median"])
        share = row["floor_microseconds"] / row["microseconds_per_step"]  # on a CPU there is one limit
        assert row["share_of_arithmetic"] == pytest.approx(share)
        assert 0 < row["share_of_arithmetic"] == row["median"] * 409_088 / report["limits"]["flops"]


def test_json_contains_the_environment(quick: tuple[dict, str, Path]) -> None:
    report = quick[0]
    assert report["command"].startswith("python -m benchmarks.compare --quick --devices cpu")
    assert {"gpumlp", "numpy", "torch", "jax", "scikit-learn"} <= set(report["versions"])
    assert report["threads"]["asked_for"] == 1
    assert report["limits"]["by"] in report["limits"]["each"]
    assert report["quick"] is True


def test_the_output_names_skipped_and_agreeing_peers(quick: tuple[dict, str, Path]) -> None:
    report, output, _ = quick
    reasons = {entry["peer"]: entry["reason"] for entry in report["left_out"]}
    assert reasons["torch-graph"].startswith("CUDA graphs need a GPU")
    assert reasons["jax"] == "not asked for with --peers"
    assert "left out: torch-graph: CUDA graphs need a GPU" in output
    assert "gpumlp agrees: its losses over 20 steps" in output
    assert all(entry["agrees"] for entry in report["agreement"])


def test_table_shows_the_time_of_a_step_and_its_lower_bound(quick: tuple[dict, str, Path]) -> None:
    report, output, _ = quick
    for row in report["results"]:
        times = {three_digits(row[name]) for name in ("microseconds_per_step", "floor_microseconds")}
        assert any(times <= set(line.split()) for line in output.splitlines())


def test_figure_is_written(quick: tuple[dict, str, Path]) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    assert (quick[2] / "compare-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_check_measures_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--check", "--quick", "--peers", "gpumlp", "numpy", "--out", str(tmp_path), "--devices", "cpu"]
    assert compare.main([*words, "--batch-sizes", "32", "--momenta", "0.9"]) == 0
    printed = capsys.readouterr().out
    assert "gpumlp agrees" in printed
    assert "samples/s" not in printed
    assert not list(tmp_path.iterdir())


def test_bad_options_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--repeats", "2", "--peers", "keras", "--networks", "784", "--momenta", "1", "--dtype", "float16"]
    assert compare.main(words) == 2
    message = capsys.readouterr().err
    for problem in (
        "repeats: expected 5 or more, got 2",
        "peers: expected gpumlp, torch,",
        "networks: expected units of each layer such as 784-128-10, got '784'",
        "momenta: expected 0 or more and below 1, got 1.0",
        "dtype: expected float32 or float64, got 'float16'",
    ):
        assert problem in message


def test_network_and_batch_that_the_data_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--quick", "--devices", "cpu", "--networks", "20-10", "--batch-sizes", "4096"]) == 2
    message = capsys.readouterr().err
    assert "784 inputs and 10 classes, got 20-10" in message
    assert "batch_sizes: expected no more than the 2,048 samples, got 4,096" in message


# -- What is timed ---------------------------------------------------------------------------------------


def test_run_keeps_the_short_last_batch() -> None:
    assert timing.whole_batches(1000, 256, 60_000) == 4 * 256 + 60_000 % 256
    assert timing.whole_batches(0, 8192, 60_000) == 8192 + 60_000 % 8192  # two steps at the least
    assert timing.whole_batches(0, 32, 60_000) == 64
    assert timing.whole_batches(1e9, 256, 60_000) == 60_000


def test_fastest_variant_is_taken(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = start(Textbook, SETTING, blobs)
    peer.variants = ("1 BLAS thread", "2 BLAS threads", "9 BLAS threads")
    chosen: list[str] = []
    monkeypatch.setattr(peer, "choose", chosen.append)
    durations = iter([3.0, 2.0, 6.1, 1.9, 2.0, 2.5, 2.0, 3.0, 1.0, 3.0, 3.0])
    monkeypatch.setattr(timing, "timed", lambda *_, **__: (next(durations), 0.0))
    assert timing.fastest_variant(peer, 300) == "2 BLAS threads" == chosen[-1]
    assert chosen[:-1] == [*peer.variants, *4 * peer.variants[:2]]  # alternately; the third is dropped


# -- Counts and ratios ------------------------------------------------------------------------------------


def test_flops_by_hand() -> None:
    # forward and weight gradient of both layers, delta of the second: 2 (2 (4 3 + 3 2) + 3 2)
    assert flops_per_sample((4, 3, 2)) == 84


def test_bytes_by_hand() -> None:
    # 4-3-2 and 5 samples: 18 weights and 5 biases are 23 parameters.
    data = 5 * 4 + 5 * 8  # pixels and labels
    inputs = 3 * 5 * 4  # written as floats, read for s and for dW
    weights = 18 + 6  # forward all, backward but the first
    hidden = (4 + 2) * 5 * 3  # output: written, read for s, dW, h'; delta: written, read for dW
    logits = (2 + 3) * 5 * 2  # written, read by the loss; delta: written, read for dW and for the delta below
    gradient = 23
    update = 3 * 23  # gradient and parameter read, parameter written
    floats = inputs + weights + hidden + logits + gradient + update
    assert bytes_per_step((4, 3, 2), 5, momentum=False) == data + 4 * floats == 1324
    velocity = 2 * 23  # read and written
    assert bytes_per_step((4, 3, 2), 5, momentum=True, itemsize=8) == data + 8 * (floats + velocity) == 2956


def test_ratio_and_shares_of_the_limits() -> None:
    def step_bytes(rows: float) -> float:
        return 100 + 12 * rows

    measured = Measured(limits={"flops": 1e6, "bytes": 1e5})
    timings = [
        timing.Timing(peer, seconds=[s] * 5, epochs=epochs, first_loss=1.0)
        for peer, s, epochs in zip(ALL[:2], (0.5, 0.5), (2, 1), strict=True)
    ]
    setting = replace(SETTING, sizes=(784, 128, 10), batch_size=32)
    measured.add(setting, 80, timings, flops=1000, step_bytes=step_bytes)
    ours, theirs = measured.results
    assert (ours["median"], theirs["median"]) == (320, 160)
    assert theirs["gpumlp_is"] == 2
    assert ours["share_of_arithmetic"] == 0.32
    mean = 100 + 12 * 80 / 3
    assert ours["bytes_per_step"] == 100 + 12 * 32
    assert theirs["share_of_bandwidth"] == pytest.approx(6 * mean / 1e5)  # 2 epochs of 3 steps in a second
    assert theirs["microseconds_per_step"] == pytest.approx(1e6 / 6)
    floors = {"arithmetic": 1e6 * 1000 * (80 / 3) / 1e6, "memory": 1e6 * mean / 1e5}
    assert ours["floor_microseconds"] == pytest.approx(max(floors.values())) == pytest.approx(floors["arithmetic"])
    measured.limits = {"flops": 1e6, "bytes": 1e3}
    measured.add(setting, 80, timings, flops=1000, step_bytes=step_bytes)
    assert measured.results[-1]["floor_microseconds"] == pytest.approx(1e6 * mean / 1e3)
    measured.limits = {"flops": 1e6}  # a CPU
    measured.add(setting, 80, timings, flops=1000, step_bytes=step_bytes)
    assert measured.results[-1]["floor_microseconds"] == pytest.approx(floors["arithmetic"])


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.01234, "0.0123"), (4.561, "4.56"), (9.996, "10.0"), (78.94, "78.9"), (999.6, "1,000"), (12345, "12,300")],
)
def test_times_are_shown_with_three_digits(value: float, words: str) -> None:
    assert three_digits(value) == words


def test_memory_of_a_gpus_limits_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def made(array: np.ndarray) -> np.ndarray:
        arrays.append(weakref.ref(array))
        return array

    pool = SimpleNamespace(free_all_blocks=lambda: alive.append(sum(array() is not None for array in arrays)))
    cupy = SimpleNamespace(
        uint8=np.uint8, matmul=np.matmul, copyto=np.copyto,
        zeros=lambda *shape, dtype: made(np.zeros(*shape, dtype)),
        empty_like=lambda array: made(np.empty_like(array)),
        random=SimpleNamespace(random=lambda shape, dtype: made(np.ones(shape, dtype))),
        cuda=SimpleNamespace(get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None)),
        get_default_memory_pool=lambda: pool,
    )  # fmt: skip
    backend = SimpleNamespace(xp=cupy, activate=contextlib.nullcontext)
    monkeypatch.setattr(limits, "get_backend", lambda *_, **__: backend)
    monkeypatch.setattr(limits, "GPU_ORDER", 8)
    monkeypatch.setattr(limits, "COPY_BYTES", 64)
    found = limits.gpu_limits("cuda:0", "float32")
    assert min(found["flops"], found["bytes"]) > 0
    assert (len(arrays), alive) == (5, [0])


def test_each_round_begins_with_another_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "make", lambda peer, *_: peer())
    monkeypatch.setattr(timing, "first", lambda *_: None)

    class Named:
        variants = ()
        setting = replace(SETTING, device="cuda:0")

        def epoch(self, part: int | None = None) -> float:
            order.append(type(self).__name__)
            return 0.0

        def synchronize(self) -> None: ...

    peers = [type(name, (Named,), {}) for name in "ABC"]
    measured = timing.measure(SETTING, None, 1, peers, repeats=4, seconds=0)
    assert "".join(order) == "AABBCC" + "ABC" + "BCA" + "CAB" + "ABC"
    assert [len(one.seconds) for one in measured] == [4, 4, 4]
