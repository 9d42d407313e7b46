"""Every peer of the comparison agrees with a textbook network, and a wrong one is detected."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.agreement import EPOCHS, FEW_STEPS, STEPS, Agreement, check_agreement, initial_weights
from benchmarks.compare import ALL
from benchmarks.peers import NotMeantForError, Peer, Samples, Setting
from benchmarks.peers.gpumlp import Gpumlp, GpumlpGraphs, GpumlpPersistent
from benchmarks.peers.numpy import Textbook
from benchmarks.peers.torch import TorchCompiled, TorchEager, TorchGraph, own_threads
from gpumlp import Dataset
from gpumlp.backends import Backend
from tests.host_cuda import host_cuda_backend

REPOSITORY = Path(__file__).parent.parent
SETTING = Setting((20, 16, 8, 4), 16, 0.9, 0.05, "float32", "cpu")
# JAX warns of every fork after it is loaded, and other tests fork: so it runs in a separate process.
JAX_ALONE = "GPUMLP_TEST_JAX" in os.environ
# torch-compiled takes seconds to compile; the others need a GPU and have separate tests below.
NOT_HERE = {"torch-compiled", "torch-graph", "gpumlp-graphs", "gpumlp-persistent"}
PEERS = [peer for peer in ALL if peer.name not in NOT_HERE and (peer.name == "jax") == JAX_ALONE]


@pytest.fixture(params=PEERS, ids=lambda peer: peer.name)
def peer(request: pytest.FixtureRequest) -> type[Peer]:
    """Each peer that runs on the CPU; unavailable ones are skipped with the reason."""
    reason = request.param.unsupported_reason("cpu", "float32")
    if reason is not None:
        pytest.skip(reason)
    return request.param


def start(peer: type[Peer], setting: Setting, blobs: Dataset, threads: int | None = 1) -> Peer:
    samples = Samples(blobs.images, blobs.labels, setting.dtype)
    return peer(setting, samples, initial_weights(setting), threads)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_peer_agrees_with_the_textbook(peer: type[Peer], momentum: float, dtype: str, blobs: Dataset) -> None:
    setting = replace(SETTING, momentum=momentum, dtype=dtype)
    (result,) = check_agreement([peer], setting, blobs, threads=1)
    assert isinstance(result, Agreement), result
    assert result.agrees, result
    assert len(result.losses) == STEPS == 20


def test_epoch_takes_every_sample_once(peer: type[Peer], blobs: Dataset) -> None:
    # Without learning, an epoch's mean loss is that of the data set, whatever the order; 300 is 9 x 32 + 12.
    setting = replace(SETTING, batch_size=32, learning_rate=1e-12)
    whole = start(Textbook, replace(setting, batch_size=300, dtype="float64"), blobs)
    assert start(peer, setting, blobs).epoch() == pytest.approx(whole.losses()[0], rel=1e-6)


def test_epoch_is_shuffled(peer: type[Peer], blobs: Dataset) -> None:
    in_order = start(peer, SETTING, blobs).losses()
    shares = [rows.stop - rows.start for rows in Samples(blobs.images, blobs.labels, "float32").batches(16)]
    assert start(peer, SETTING, blobs).epoch() != pytest.approx(np.average(in_order, weights=shares), rel=1e-6)


def test_epochs_go_on_learning(peer: type[Peer], blobs: Dataset) -> None:
    one = start(peer, SETTING, blobs)
    for variant in one.variants:
        one.choose(variant)
        losses = [one.epoch() for _ in range(3)]
        one.synchronize()
        assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_replayed_steps_agree_with_the_textbook(
    momentum: float, blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code around PyTorch's CUDA graph: static rows, the sum of losses, and the reset after the warm-up."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    (result,) = check_agreement([GraphOnCpu], replace(SETTING, momentum=momentum), blobs, threads=1)
    assert isinstance(result, Agreement), result
    assert result.agrees, result


class GraphOnCpu(TorchGraph):
    """Replays by computing again, and warms up without a stream."""

    name = "graph on the CPU"

    def _warm_up(self, sizes: list[int]) -> None:
        for size in sizes:
            self.total.add_(self._step(self.y.new_tensor(range(size))), alpha=size)

    def _capture(self, size: int):  # type: ignore[no-untyped-def]
        rows = self.y.new_tensor(range(size))
        return SimpleNamespace(replay=lambda: self.total.add_(self._step(rows), alpha=size)), rows


@pytest.fixture
def host_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake GPU backends for the peers of gpumlp, with kernels and cuBLASLt on the CPU."""

    def backend(device: str, *, execution: str = "auto") -> Backend:
        made: Backend = host_cuda_backend(cublaslt=True, execution=execution)
        made.xp.attributes["CooperativeLaunch"] = 1  # for the persistent kernel
        return made

    monkeypatch.setattr("benchmarks.peers.gpumlp.get_backend", backend)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("peer", "batch_size", "way"),
    [
        (Gpumlp, 16, "persistent on 1 multiprocessor"),
        (Gpumlp, 257, "graphs"),
        (GpumlpGraphs, 16, "graphs"),
        (GpumlpPersistent, 257, "persistent on 1 multiprocessor"),
    ],
)
def test_gpumlp_agrees_on_a_gpu_in_the_way_that_it_runs(
    peer: type[Peer], batch_size: int, way: str, momentum: float, blobs: Dataset, host_cuda: None
) -> None:
    setting = replace(SETTING, sizes=(20, 8, 4), batch_size=batch_size, momentum=momentum, device="cuda")
    (result,) = check_agreement([peer], setting, blobs, threads=1)
    assert isinstance(result, Agreement), result
    assert result.agrees, result
    assert start(peer, setting, blobs).variants == (way,)


def test_graphs_are_measured_only_in_addition_to_the_persistent_kernel(blobs: Dataset, host_cuda: None) -> None:
    setting = replace(SETTING, device="cuda", dtype="float64")
    (result,) = check_agreement([GpumlpGraphs], setting, blobs, threads=1)
    assert isinstance(result, NotMeantForError)
    assert str(result) == "gpumlp runs by CUDA graphs here"
    assert GpumlpGraphs.unsupported_reason("cpu", "float32") == "CUDA graphs need a GPU"


def test_the_persistent_kernel_is_measured_only_where_it_supports_the_network(
    blobs: Dataset, host_cuda: None
) -> None:
    setting = replace(SETTING, device="cuda", dtype="float64")
    (result,) = check_agreement([GpumlpPersistent], setting, blobs, threads=1)
    assert isinstance(result, NotMeantForError)
    assert "execution persistent is not possible" in str(result)
    assert GpumlpPersistent.unsupported_reason("cpu", "float32") == "the persistent kernel needs a GPU"


def test_unshuffled_epoch_leaves_the_next_one_shuffled(peer: type[Peer], blobs: Dataset) -> None:
    one, other = (start(peer, SETTING, blobs) for _ in range(2))
    assert one.unshuffled_epoch() == other.unshuffled_epoch()
    assert one.epoch() != pytest.approx(other.unshuffled_epoch(), rel=1e-6)


def test_jax_in_a_separate_process() -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "test_peer_agrees or test_epoch or test_unshuffled",
        __file__,
    ]
    environment = {**os.environ, "GPUMLP_TEST_JAX": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^8 passed", done.stdout, re.MULTILINE), done.stdout


def test_every_setting_is_offered_the_same_threads(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "compile", lambda loss, **_: loss)
    monkeypatch.setattr(TorchCompiled, "_last", None)
    monkeypatch.setattr(timing, "REST", 0)
    monkeypatch.setattr(timing, "timed", lambda peer, *_, **__: (peer.epoch() * peer.threads, 0.0))  # 1 wins
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    own_threads.cache_clear()
    try:
        for batch_size in (16, 32):
            setting = replace(SETTING, batch_size=batch_size)
            eager, compiled = timing.measure(setting, blobs, 48, [TorchEager, TorchCompiled], repeats=5, seconds=0)
            assert eager.variant is not None
            assert eager.variant.endswith(", 1 thread")
            assert [one.rpartition(", ")[2] for one in start(TorchEager, setting, blobs, None).variants] == [
                "1 thread",
                "2 threads",
            ] * 2
            assert compiled.variant == "2 threads"
    finally:
        own_threads.cache_clear()
        torch.set_num_threads(before)


class NoOutputBias(Textbook):
    """The gradient's smallest part is missing."""

    name = "no output bias"

    def _update(self, parameters, velocities, index, gradient) -> None:  # type: ignore[no-untyped-def]
        lost = parameters is self.biases and index == len(self.weights) - 1
        super()._update(parameters, velocities, index, gradient * (not lost))


class SumOfLosses(Textbook):
    """The gradient of the sum over the batch instead of the mean."""

    name = "sum"

    def _update(self, parameters, velocities, index, gradient) -> None:  # type: ignore[no-untyped-def]
        super()._update(parameters, velocities, index, gradient * self.setting.batch_size)


class Diverging(Textbook):
    name = "diverging"

    def losses(self) -> list[float]:
        return [*super().losses()[:-1], float("nan")]


class WrongEpoch(Textbook):
    """Correct single steps, but a timed epoch omits the last sample."""

    name = "wrong epoch"

    def _train(self, order: np.ndarray) -> float:
        return super()._train(order[:-1])


@pytest.mark.parametrize("broken", [NoOutputBias, SumOfLosses, Diverging, WrongEpoch])
def test_only_the_wrong_peer_is_detected(broken: type[Peer], blobs: Dataset) -> None:
    first, second, third = check_agreement([Textbook, broken, Textbook], SETTING, blobs, threads=1)
    assert isinstance(second, Agreement)
    assert not second.agrees
    assert "DISAGREES" in str(second)
    assert first.agrees
    assert third.agrees


@pytest.mark.parametrize("broken", [NoOutputBias, WrongEpoch])
def test_a_wrong_peer_is_detected_in_few_steps(broken: type[Peer], blobs: Dataset) -> None:
    right, wrong = check_agreement([Textbook, broken], replace(SETTING, batch_size=200), blobs, 1, FEW_STEPS)
    assert isinstance(right, Agreement)
    assert isinstance(wrong, Agreement)
    assert right.agrees
    assert not wrong.agrees
    assert (wrong.losses, len(wrong.epoch_losses)) == ([], EPOCHS)


@pytest.mark.parametrize("peer", [peer for peer in ALL if peer.name != "jax"], ids=lambda peer: peer.name)
def test_peer_says_why_it_cannot_run_without_a_gpu(peer: type[Peer]) -> None:
    reason = peer.unsupported_reason("cuda:77", "float32")
    assert reason is not None
    assert "\n" not in reason


@pytest.mark.parametrize(("name", "module"), [("torch", "torch"), ("jax", "jax"), ("scikit-learn", "sklearn")])
def test_missing_library_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (peer,) = (peer for peer in ALL if peer.name == name)
    assert peer.unsupported_reason("cpu", "float32") == 'not installed; pip install ".[compare]" brings it'
