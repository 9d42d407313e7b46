"""The benchmark of many networks: its peers train the same networks, and its report holds every run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common, many, markdown
from benchmarks.peers import many as peers
from benchmarks.peers.many import (
    Networks,
    OneByOne,
    TogetherOnCpu,
    TogetherOnGpu,
    ValidatedOnCpu,
    ValidatedOnGpu,
    Workload,
)
from gpumlp import SGD, Adam, Dataset
from gpumlp.backends import Backend, get_backend
from tests.host_cuda import host_cuda_backend

REPOSITORY = Path(__file__).parent.parent
WORK = Workload((20, 8, 4), 32, SGD(0.05, momentum=0.9))


@pytest.fixture(scope="module", autouse=True)
def without_rests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "REST", 0)
        yield


@pytest.fixture
def host_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake GPU backends, with kernels on the CPU; the persistent one by the emulator."""

    def backend(device: str, **options: object) -> Backend:
        if device == "cpu":
            return get_backend("cpu")
        made: Backend = host_cuda_backend(cublaslt=True, **options)
        made.xp.attributes["CooperativeLaunch"] = 1
        return made

    monkeypatch.setattr(peers, "get_backend", backend)


@pytest.mark.parametrize("work", [WORK, replace(WORK, optimizer=Adam(0.01))])
def test_every_network_is_another_and_all_peers_train_the_same(work: Workload, blobs: Dataset) -> None:
    expected = OneByOne(work, blobs, 3, "cpu", dtype="float64").train(2)
    assert len(set(expected)) == 3
    for peer in (OneByOne, TogetherOnCpu, ValidatedOnCpu):
        assert peer(work, blobs, 3, "cpu").train(2) == pytest.approx(expected, rel=1e-5)
    trainer = OneByOne(work, blobs, 3, "cpu")
    trainer.train(1)
    trainer.train(1)
    assert trainer.losses() == pytest.approx(expected, rel=1e-5)


def test_a_gpu_trains_them_in_one_launch_and_repeats_their_steps(blobs: Dataset, host_cuda: None) -> None:
    data = common.first(blobs, 80)  # a short last batch
    expected = OneByOne(WORK, data, 2, "cpu", dtype="float64").train(2)
    work = replace(WORK, multiprocessors=1)
    together, one_by_one = (peer(work, data, 2, "cuda:0") for peer in (TogetherOnGpu, OneByOne))
    assert together.train(2) == pytest.approx(expected, rel=1e-5)
    assert one_by_one.train(2) == pytest.approx(expected, rel=1e-5)
    validated = ValidatedOnGpu(work, data, 2, "cuda:0")
    assert validated.train(2) == together.losses()
    assert len(validated.trainers[1].history["validation_loss"]) == 2
    assert len({id(trainer.validation_batches.images) for trainer in validated.trainers}) == 1
    validated.backend.xp.launches.clear()
    assert validated.repeat_steps()
    assert validated.backend.xp.launches.count("train_networks") == 2  # training, and evaluation
    assert {together.way, one_by_one.way} == {"persistent on 1 multiprocessor"}
    for networks, launches in ((together, 1), (one_by_one, 2)):
        before = networks.backend.to_numpy(networks.trainers[1].model.parameters.data)
        networks.backend.xp.launches.clear()
        assert networks.repeat_steps()
        kernels = [name for name in networks.backend.xp.launches if name.startswith("train_")]
        assert len(kernels) == launches
        assert not np.array_equal(before, networks.backend.to_numpy(networks.trainers[1].model.parameters.data))


def test_on_a_cpu_there_is_no_device_to_time_apart(blobs: Dataset) -> None:
    networks = OneByOne(WORK, blobs, 1, "cpu")
    networks.train(1)
    assert not networks.repeat_steps()
    assert networks.way is None


# -- The command -----------------------------------------------------------------------------------------


def test_all_peers_are_checked_timed_and_reported(tmp_path: Path) -> None:
    words = ["--quick", "--devices", "cpu", "--workloads", "30-100-2", "--networks", "2"]
    done = subprocess.run(  # JAX warns of every fork after it is loaded, and other tests fork
        [sys.executable, "-m", "benchmarks.many", *words, "--out", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    report = json.loads((tmp_path / "many-cpu.json").read_text())
    wanted = {"gpumlp", "validated", "one-by-one"} | ({"jax"} if importlib.util.find_spec("jax") else set())
    assert {row["peer"] for row in report["agreement"] if row["agrees"]} == wanted
    assert {(row["peer"], row["networks"]) for row in report["results"]} == {(peer, 2) for peer in wanted}
    for row in report["results"]:
        rates = row["samples_per_second"]
        assert len(rates) == report["method"]["repeats"] == 5
        assert (row["min"], row["median"], row["max"]) == (min(rates), sorted(rates)[2], max(rates))
        assert (row["samples"], row["steps_per_epoch"]) == (640, 4)
        assert row["microseconds_per_step"] == pytest.approx(1e6 * row["networks"] * 640 / 4 / row["median"])
        ours = next(other for other in report["results"] if other["peer"] == "gpumlp")
        assert row["gpumlp_is"] == pytest.approx(ours["median"] / row["median"])
    assert "gpumlp, fit_many (2 processes)" in done.stdout
    assert "30-100-2: relu, float32, Adam(" in done.stdout
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "many-cpu.png").read_bytes().startswith(b"\x89PNG")
    (line,) = [line for line in markdown.many(report) if line.startswith("| 30-100-2 | cpu | 2 |")]
    assert f"{ours['median']:,.0f}" in line


class Wrong(OneByOne):
    """Its networks take another learning rate."""

    name = "gpumlp"

    def __init__(self, work: Workload, *rest: object, **options: object) -> None:
        super().__init__(replace(work, optimizer=Adam(0.1)), *rest, **options)  # type: ignore[arg-type]


class Diverging(OneByOne):
    """Its losses are no numbers."""

    name = "gpumlp"

    def losses(self) -> list[float]:
        return [*super().losses()[:-1], float("nan")]


class Failing(OneByOne):
    """It has no memory for more than the networks of the check."""

    name = "gpumlp"

    def train(self, epochs: int) -> list[float]:
        if self.count > many.CHECKED_NETWORKS:
            raise MemoryError("out of memory\nin detail")
        return super().train(epochs)


@pytest.mark.parametrize(
    ("peer", "reason"),
    [(Wrong, "disagrees"), (Diverging, "disagrees"), (Failing, "failed: MemoryError: out of memory")],
)
def test_a_peer_that_is_wrong_or_fails_has_no_figures(
    peer: type[Networks], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "together", lambda device: (peer, ValidatedOnCpu))
    words = ["--quick", "--devices", "cpu", "--workloads", "30-100-2", "--networks", "4", "--out", str(tmp_path)]
    assert many.main([*words, "--peers", "gpumlp", "one-by-one"]) == 1
    report = json.loads((tmp_path / "many-cpu.json").read_text())
    assert {row["peer"] for row in report["results"]} == {"one-by-one"}
    left_out = {entry["peer"]: entry["reason"] for entry in report["left_out"]}
    assert left_out == {"gpumlp": reason, **dict.fromkeys(("validated", "jax"), "not asked for with --peers")}


def test_nothing_is_written_where_no_peer_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(many, "together", lambda device: (Wrong, ValidatedOnCpu))
    words = ["--quick", "--devices", "cpu", "--workloads", "30-100-2", "--peers", "gpumlp", "--out", str(tmp_path)]
    assert many.main(words) == 1
    assert capsys.readouterr().err == "many: no peer could be measured; nothing is written\n"
    assert not list(tmp_path.iterdir())


def test_bad_options_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--repeats", "1", "--networks", "0", "--workloads", "784-10", "--peers", "torch", "--samples", "0"]
    words += ["--multiprocessors", "0"]
    assert many.main([*words, "--seconds", "0", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    for problem in (
        "repeats: expected 5 or more, for a median and a spread, got 1",
        "networks: expected 1 or more, got 0",
        "workloads: expected 784-128-10, 30-100-2, got '784-10'",
        "peers: expected gpumlp, validated, one-by-one, jax, got 'torch'",
        "samples: expected 1 or more, got 0",
        "multiprocessors: expected 1 or more, got 0",
        "seconds: expected more than 0 and at most 60, got 0.0",
    ):
        assert problem in message
    assert not list(tmp_path.iterdir())
