"""``mpiexec -n N python -m gpumlp.train --parallel mpi``: the files of a run, resuming it, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from gpumlp import load_digits
from gpumlp.training.config import ConfigError
from gpumlp.training.lock import RunLock
from tests.command_helpers import DIGITS, assert_same_run, lines, run, wait_until
from tests.mpi_helpers import finish, require_mpi, start

pytestmark = require_mpi()
EVERY = pytest.mark.mpi
OPTIONS = (*DIGITS, "--optimizer", "adam", "--dropout", 0.2, "--shards", 4, "--batch-size", 30)


def train(ranks: int, *words: object) -> tuple[int, str, str]:
    return finish(start(ranks, "gpumlp.train", "--parallel", "mpi", *words))


def wait_for_lock(folder: Path) -> None:
    """mpiexec does not wait for process 0."""
    end = time.monotonic() + 10
    while (folder / "run.lock").exists() and time.monotonic() < end:
        try:
            RunLock(folder).release()
        except ConfigError:
            time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run("train", *OPTIONS, "--epochs", 4, "--early-stopping", 3, "--quiet", "--out", folder) == 0
    return folder


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=EVERY)])
def test_the_run_is_that_of_one_process(ranks: int, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, err = train(ranks, *OPTIONS, "--epochs", 4, "--early-stopping", 3, "--report", "--out", folder)
    assert (code, err) == (0, "")
    assert out.count("\n    4/4  ") == 1  # one process shows the epochs
    assert f"parallel: {ranks} processes share the 4 shards of each batch\n" in out
    assert_same_run(alone, folder)
    metrics, expected = (json.loads((each / "metrics.json").read_text()) for each in (folder, alone))
    assert (metrics["test_loss"], metrics["findings"]) == (expected["test_loss"], expected["findings"])
    assert (metrics["processes"], expected["processes"]) == (ranks, 1)
    assert (folder / "report.html").exists()
    assert json.loads((folder / "config.json").read_text())["parallel"] is None


@EVERY
def test_a_run_is_resumed_by_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = (*OPTIONS, "--early-stopping", 3, "--out", folder, "--epochs")
    assert train(2, *options, 1)[0] == 0
    assert run("train", "--resume", folder, "--epochs", 2) == 0
    assert train(4, "--resume", folder, "--epochs", 4)[0] == 0
    assert_same_run(alone, folder)
    code, _, err = train(3, "--resume", folder, "--epochs", 5)
    assert (code, err.count("\n")) == (2, 1)
    assert "shards is expected to be a multiple of the 3 processes" in err


def saved(folder: Path) -> tuple[object, ...]:
    """Options for samples in files, in windows that do not divide them."""
    paths = []
    for part, data in zip(("--dataset", "--test"), load_digits(), strict=True):
        paths.append(part)
        for name, values in (("images", data.images), ("labels", data.targets)):
            paths.append(str(folder / f"{part.strip('-')}-{name}.npy"))
            np.save(paths[-1], values)
    return (*paths, "--device", "cpu", "--shards", 4, "--batch-size", 30, "--block", 13, "--window", 9)


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=EVERY)])
def test_processes_stream_what_one_process_has_in_memory(optimizer: str, tmp_path: Path) -> None:
    words = (*saved(tmp_path), "--optimizer", optimizer, "--validation", 0.1, "--class-weight", "balanced")
    memory, files = tmp_path / "memory", tmp_path / "files"
    code, out, err = train(2, *words, "--stream", "--epochs", 2, "--out", files)
    assert (code, err) == (0, "")
    assert "of each process are at most two windows of 2 blocks of 13 samples for each of 2 shards" in out
    assert run("train", "--resume", files, "--epochs", 3, "--quiet") == 0
    assert train(4, "--resume", files, "--epochs", 4)[0] == 0
    assert run("train", *words, "--order", "blocks", "--epochs", 4, "--quiet", "--out", memory) == 0
    assert_same_run(memory, files)
    metrics, expected = (json.loads((each / "metrics.json").read_text()) for each in (files, memory))
    assert metrics["test_loss"] == expected["test_loss"]


def test_the_disk_of_one_process_fails(tmp_path: Path) -> None:
    folder, words = tmp_path / "run", (*saved(tmp_path), "--stream", "--epochs", 3)
    began = time.monotonic()
    code, _, err = finish(
        start(2, "tests.mpi_program", "train", "disk", "--parallel", "mpi", *words, "--out", folder)
    )
    assert time.monotonic() - began < 10
    assert (code, lines(folder)) == (2, 1)
    line, _, _ = err.partition("\n")  # what follows is of MPI_Abort
    assert re.fullmatch(r"rank 1: .*images\.npy: expected a readable file, found Input/output error; .*", line)
    wait_for_lock(folder)
    assert run("train", "--resume", folder, "--quiet") == 0
    assert run("train", *words, "--quiet", "--out", tmp_path / "whole") == 0
    assert_same_run(tmp_path / "whole", folder)


@EVERY
def test_the_shards_are_those_of_the_first_start(tmp_path: Path) -> None:
    assert train(2, *DIGITS, "--epochs", 1, "--out", tmp_path / "run")[0] == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["shards"] == 2
    assert run("train", "--resume", tmp_path / "run", "--epochs", 2) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["shards"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--shards", 3),
            "shards is expected to be a multiple of the 2 processes, which share them evenly, got 3",
        ),
        (
            ("--device", "cuda:1"),
            "device: expected cuda, by which each of the 2 processes of this machine has a GPU of its own, got",
        ),
        pytest.param(("--hidden", 0), "hidden: expected whole numbers of 1 or more, or none, got 0", marks=EVERY),
        pytest.param(("--data-dir", "missing", "--dataset", "mnist"), "missing", marks=EVERY),
    ],
)
def test_what_all_processes_refuse_is_said_once(words: tuple[object, ...], message: str, tmp_path: Path) -> None:
    code, _out, err = train(2, "--device", "cpu", "--dataset", "digits", *words, "--out", tmp_path / "run")
    assert (code, err.count(message), err.count("gpumlp-train: ")) == (2, 1, 1)
    assert not (tmp_path / "run").exists()


def test_mpiexec_without_the_option_is_refused(tmp_path: Path) -> None:
    code, out, err = finish(start(2, "gpumlp.train", *DIGITS, "--out", tmp_path / "run"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "parallel: mpiexec has started 2 processes, each of which would train a network of its own" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("--dataset", "digits", "--seed", 1), "the processes differ in option seed: rank 0 has 0, rank 1 has 1"),
        (
            ("--dataset", "other.npz"),
            "the processes differ in option dataset: rank 0 has digits, rank 1 has other",
        ),
        (("--dataset", "digits", "--hidden", 0), "rank 1: hidden: expected whole numbers of 1 or more"),
    ],
)
def test_processes_that_differ_are_refused_before_the_start(
    other: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    same = ("gpumlp.train", "--parallel", "mpi", "--device", "cpu", "--out", tmp_path / "run")
    code, _out, err = finish(start(1, *same, "--dataset", "digits", ":", *same, *other))
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_other_data_under_the_same_name_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        arrays = {"x": rng.random((100, 5)), "y": rng.integers(0, 2, 100)}
        arrays = {f"{key}_{part}": each for part in ("train", "test") for key, each in arrays.items()}
        np.savez(tmp_path / name / "data.npz", **arrays)
    script = "import os, sys; os.chdir(sys.argv.pop(1)); import gpumlp.train as t; sys.exit(t.main())"
    program = tmp_path / "elsewhere.py"
    program.write_text(script)
    words = ("--parallel", "mpi", "--device", "cpu", "--dataset", "data.npz", "--out", tmp_path / "run")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
    process = start(
        1, "elsewhere", tmp_path / "one", *words, ":", "elsewhere", tmp_path / "other", *words, env=environment
    )
    code, _out, err = finish(process)
    assert (code, err.count("\n")) == (2, 1)
    assert "the processes differ in training data: rank 0 has 100x5-float64-" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=EVERY) for n in range(1, 5))])
def test_an_interrupted_run_is_resumed(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(2, "gpumlp.train", "--parallel", "mpi", *OPTIONS, "--epochs", 100_000, "--out", folder)
    wait_until(lambda: lines(folder) > 0, process)
    time.sleep(0.06 * number)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, err = finish(process, 10)
    assert time.monotonic() - began < 5
    epochs = lines(folder)
    assert (code, err.count("\n")) == (130, 1), err
    assert f"gpumlp-train: interrupted; the run is saved after epoch {epochs} of" in err
    if number == 0:
        assert run("train", "--resume", folder, "--epochs", epochs + 1, "--quiet") == 0
        assert run("train", *OPTIONS, "--epochs", epochs + 1, "--quiet", "--out", tmp_path / "whole") == 0
        assert_same_run(tmp_path / "whole", folder)


@EVERY
@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
def test_an_interrupt_while_it_starts_ends_it(delay: float, tmp_path: Path) -> None:
    process = start(
        2, "gpumlp.train", "--parallel", "mpi", *OPTIONS, "--epochs", 100_000, "--out", tmp_path / "run"
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    code, _, _ = finish(process, 5)
    assert code != 0


@pytest.mark.parametrize("how", [pytest.param("memory", marks=EVERY), pytest.param("bug", marks=EVERY), "kill"])
def test_a_run_whose_process_fails_ends_and_is_resumed(how: str, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (*OPTIONS, "--parallel", "mpi", "--epochs", 4, "--early-stopping", 3, "--out", folder)
    began = time.monotonic()
    code, _out, err = finish(start(2, "tests.mpi_program", "train", how, *words))
    assert time.monotonic() - began < 10
    assert (code, lines(folder)) == (9 if how == "kill" else 1, 1)
    message = {"memory": "rank 1: not enough memory: too little of it", "bug": "rank 1: ArithmeticError: a bug"}
    assert message.get(how, "") in err
    wait_for_lock(folder)
    assert run("train", "--resume", folder, "--quiet") == 0
    assert_same_run(alone, folder)


def test_a_run_that_diverges_is_explained_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, _, err = train(2, *DIGITS, "--learning-rate", 1e30, "--epochs", 3, "--out", folder)
    assert (code, err.count("training diverged in epoch 1, at step 2")) == (1, 1), err
    assert err.count("\n") == 1
    assert (folder / "diverged.json").exists()
