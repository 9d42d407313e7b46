"""Several processes with a GPU each: the real mpiexec, with fakes of CuPy and NCCL in each process."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from gpumlp import Group
from tests import mpi_program
from tests.command_helpers import DIGITS, assert_same_run
from tests.mpi_helpers import finish, require_mpi, start
from tests.test_parallel_command import saved

pytestmark = require_mpi()
EVERY = pytest.mark.mpi
OPTIONS = (*DIGITS, "--device", "cuda", "--optimizer", "adam", "--dropout", 0.2, "--shards", 4, "--batch-size", 60)


def program(ranks: int, *words: object) -> tuple[int, str, str]:
    return finish(start(ranks, "tests.mpi_program", *words))


@pytest.mark.parametrize(
    ("ranks", "way"),
    [
        (2, "auto"),
        *(pytest.param(2, way, marks=EVERY) for way in list(mpi_program.WAYS)[1:]),
        *(pytest.param(ranks, way, marks=EVERY) for ranks in (3, 4) for way in mpi_program.WAYS),
    ],
)
def test_gpus_have_the_bits_of_one_process(ranks: int, way: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    assert program(ranks, "on_gpus", found, way) == (0, "", "")
    assert json.loads(found.read_text()) == mpi_program.on_gpus(Group())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "one_gpu",
            r'2 processes of this machine have networks on cuda:0; .* device=f"cuda:\{group.local_rank\}"',
        ),
        pytest.param(
            "differ_on_gpus",
            "the processes differ in execution: rank 0 has graphs, rank 1 has eager; start all",
            marks=EVERY,
        ),
    ],
)
def test_gpus_that_cannot_share_the_work_are_refused(what: str, message: str) -> None:
    code, out, err = program(2, what)
    assert (code != 0, out) == (True, "")
    assert re.search(f"GroupError: {message}", err)


@EVERY
def test_an_interrupt_does_not_wait_for_the_end_of_the_epoch(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = start(2, "tests.mpi_program", "interrupt_gpus", ready)
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process, 5)
    assert re.findall(r"interrupted: (True|False) after (\d+)", out) == [("True", "0")] * 2, err
    assert code == 0, err


def train(ranks: int, gpus: int, *words: object) -> tuple[int, str, str]:
    """`train` on a machine with so many GPUs; by several processes, as a group."""
    together = ("--parallel", "mpi") * (ranks > 1)
    return program(ranks, "train_on_gpus", gpus, *words, *together)


@EVERY
def test_the_run_is_that_of_one_process(tmp_path: Path) -> None:
    alone, folder = tmp_path / "alone", tmp_path / "run"
    assert train(1, 1, *OPTIONS, "--epochs", 3, "--out", alone)[0] == 0
    code, out, err = train(2, 2, *OPTIONS, "--epochs", 2, "--out", folder)
    assert (code, err) == (0, "")
    assert "device: cuda:0 (Host GPU)\n" in out
    assert "parallel: 2 processes with a GPU each share the 4 shards of each batch\n" in out
    assert "execution: graphs: up to 16 steps in one launch; not persistent: it computes a batch as a whole" in out
    config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
    assert (config["device"], config["shards"], metrics["processes"]) == ("cuda", 4, 2)
    assert train(1, 1, "--resume", folder, "--epochs", 3)[0] == 0
    assert_same_run(alone, folder)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (1, "2 processes on this machine need a GPU each, and they see 1; start at most 1 on it, let"),
        pytest.param(
            -2, 'GPUs of several processes need nccl4py; install it with pip install ".[nccl]"', marks=EVERY
        ),
    ],
)
def test_what_is_missing_is_said_once(gpus: int, message: str, tmp_path: Path) -> None:
    code, out, err = train(2, gpus, *OPTIONS, "--out", tmp_path / "run")
    assert (code, out, err.count("\n"), err.count(message)) == (2, "", 1, 1), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=EVERY)])
def test_streaming_to_gpus_in_shards_is_refused_in_one_line(ranks: int, tmp_path: Path) -> None:
    folder, words = tmp_path / "run", (*saved(tmp_path), "--stream", "--epochs", 1)
    message = "got 4 shards on cuda:0; choose the device cpu, or hold the samples in memory"
    code, _, err = train(ranks, ranks, *words, "--device", "auto", "--out", folder)
    assert (code, err.count("\n"), err.count(message)) == (2, 1, 1), err
    assert not folder.exists()
    assert train(ranks, ranks, *words, "--out", folder)[0] == 0
    code, _, err = train(ranks, ranks, "--resume", folder, "--epochs", 2, "--device", "cuda")
    assert (code, err.count("\n"), err.count(message)) == (2, 1, 1), err
    assert train(ranks, ranks, "--resume", folder, "--epochs", 2)[0] == 0


@EVERY
@pytest.mark.parametrize(
    ("gpus", "device"),
    [
        (2, r"cuda:0 \(Host GPU\)"),
        (1, r"cpu \(.*\); no usable GPU: 2 processes on this machine need a GPU each, and they see 1"),
        (-2, r"cpu \(.*\); no usable GPU: GPUs of several processes need nccl4py"),
    ],
)
def test_the_device_auto_takes_gpus_where_each_process_has_one(gpus: int, device: str, tmp_path: Path) -> None:
    code, out, err = train(2, gpus, *OPTIONS, "--device", "auto", "--epochs", 1, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert re.search(f"device: {device}\n", out), out


@EVERY
def test_a_run_that_diverges_on_gpus_is_explained_once(tmp_path: Path) -> None:
    options = (*OPTIONS, "--optimizer", "sgd", "--learning-rate", 1e30)
    code, _, err = train(2, 2, *options, "--epochs", 3, "--out", tmp_path / "run")
    assert (code, err.count("training diverged in epoch 1, at step 2")) == (1, 1), err
