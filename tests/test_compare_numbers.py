"""What a comparison counts and computes: operations, bytes, limits, ratios, and the order of its runs."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import comparing, limits, timing
from benchmarks.comparison_figure import lowered, spread
from benchmarks.comparison_table import three_digits
from benchmarks.counts import bytes_per_step, flops_per_sample
from benchmarks.peers import ALL
from benchmarks.peers.textbook import Textbook
from gpumlp import Dataset
from tests.test_compare_peers import SETTING, start

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
    durations = iter([3.0, 2.0, 3.1, 1.9, 1.0])
    monkeypatch.setattr(timing, "timed", lambda *_, **__: (next(durations), 0.0))
    assert timing.fastest_variant(peer, 300) == "2 BLAS threads" == chosen[-1]
    assert chosen[:-1] == [*peer.variants, *peer.variants[:2]]  # in turns; the third is hopeless


# -- Counts and goals ------------------------------------------------------------------------------------


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


def test_goals() -> None:
    assert comparing.goal("784-128-10", 128, "torch") == 2.3
    assert comparing.goal("784-512-512-10", 1024, "jax") == 1.1
    assert comparing.goal("784-512-512-10", 1024, "scikit-learn") is None
    assert comparing.goal("784-128-10", 512, "torch") is None
    assert comparing.goal("784-128-10", 128, "torch", "cuda:0") is None


def test_ratio_goal_and_shares_of_the_limits() -> None:
    def step_bytes(rows: float) -> float:
        return 100 + 12 * rows

    measured = comparing.Measured(limits={"flops": 1e6, "bytes": 1e5})
    timings = [
        timing.Timing(peer, seconds=[s] * 5, first_loss=1.0) for peer, s in zip(ALL[:2], (0.5, 1), strict=True)
    ]
    setting = replace(SETTING, sizes=(784, 128, 10), batch_size=32)
    measured.add(setting, timing.Run(80, 2), timings, flops=1000, step_bytes=step_bytes)
    ours, theirs = measured.results
    assert (ours["median"], theirs["median"]) == (320, 160)
    assert (theirs["gpumlp_is"], theirs["goal"]) == (2, 2.6)
    assert ours["share_of_arithmetic"] == 0.32
    mean = 100 + 12 * 80 / 3
    assert ours["bytes_per_step"] == 100 + 12 * 32
    assert theirs["share_of_bandwidth"] == pytest.approx(6 * mean / 1e5)  # 2 epochs of 3 steps in a second
    assert theirs["microseconds_per_step"] == pytest.approx(1e6 / 6)
    floors = {"arithmetic": 1e6 * 1000 * (80 / 3) / 1e6, "memory": 1e6 * mean / 1e5}
    assert ours["floor_microseconds"] == pytest.approx(max(floors.values())) == pytest.approx(floors["arithmetic"])
    measured.limits = {"flops": 1e6, "bytes": 1e3}
    measured.add(setting, timing.Run(80, 2), timings, flops=1000, step_bytes=step_bytes)
    assert measured.results[-1]["floor_microseconds"] == pytest.approx(1e6 * mean / 1e3)
    measured.limits = {"flops": 1e6}  # a CPU
    measured.add(setting, timing.Run(80, 2), timings, flops=1000, step_bytes=step_bytes)
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


# -- The figure, and the order of the runs ----------------------------------------------------------------


def test_labels_of_lines_keep_their_distance() -> None:
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.2, 0.21, 0.26], 0.05) == pytest.approx([0.2233 - 0.05, 0.2233, 0.2733], abs=1e-4)


def test_labels_of_lines_stay_below_the_title() -> None:
    assert lowered([0.2, 0.9], 0.97) == [0.2, 0.9]
    assert lowered([0.2, 1.0], 0.97) == pytest.approx([0.17, 0.97])
    assert lowered([], 0.97) == []


@pytest.mark.parametrize(("device", "not_counted"), [("cpu", "ABC"), ("cuda:0", "AABBCC")])
def test_each_round_begins_with_another_peer(
    monkeypatch: pytest.MonkeyPatch, device: str, not_counted: str
) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "REST", 0)
    monkeypatch.setattr(timing, "make", lambda peer, *_: peer())
    monkeypatch.setattr(timing, "first", lambda *_: None)

    class Named:
        variants = ()

        def epoch(self, part: int | None = None) -> float:
            order.append(type(self).__name__)
            return 0.0

        def synchronize(self) -> None: ...

    peers = [type(name, (Named,), {}) for name in "ABC"]
    setting = type("Setting", (), {"dtype": "float32", "device": device})()
    measured = timing.measure(setting, None, timing.Run(samples=1, epochs=1), peers, repeats=4)
    assert "".join(order) == not_counted + "ABC" + "BCA" + "CAB" + "ABC"
    assert [len(one.seconds) for one in measured] == [4, 4, 4]
