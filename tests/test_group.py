"""Training by several processes, which the real mpiexec starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import threadpoolctl

from gpumlp import MLP, Dataset, Group, MPIGroup, Trainer
from gpumlp.extras import MissingExtraError
from gpumlp.training.group import GroupError, launcher
from tests import mpi_program
from tests.command_helpers import ROOT
from tests.mpi_helpers import finish, require_mpi, start

pytestmark = require_mpi()


def program(ranks: int, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``tests.mpi_program``, which must not hang."""
    return finish(start(ranks, "tests.mpi_program", *words))


@pytest.mark.parametrize(
    "ranks", [2, pytest.param(3, marks=pytest.mark.mpi), pytest.param(4, marks=pytest.mark.mpi)]
)
@pytest.mark.parametrize("what", ["settings", "streams", pytest.param("sums", marks=pytest.mark.mpi)])
def test_any_number_of_processes_has_the_same_bits(what: str, ranks: int, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    assert program(ranks, what, found) == (0, "", "")
    results = json.loads(found.read_text())
    assert results
    assert results.items() <= getattr(mpi_program, what)(Group()).items()


@pytest.mark.parametrize("what", [pytest.param("raise", marks=pytest.mark.mpi), "callback", "part"])
def test_an_error_in_one_process_ends_all_and_says_which(what: str) -> None:
    began = time.monotonic()
    code, out, err = program(2, what)
    assert (code != 0, out) == (True, "")
    assert time.monotonic() - began < 10  # 5 after the error
    message = {
        "raise": "rank 1: ValueError: rank 1 cannot go on",
        "callback": "rank 0: ArithmeticError: the second epoch is not to my liking",
        "part": "the processes differ in the parameters after epoch 2: rank 0 has",
    }[what]
    assert message in err


@pytest.mark.mpi
def test_a_process_that_is_killed_ends_all() -> None:
    code, out, _ = program(2, "kill")
    assert code != 0
    assert "BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES" in out  # of mpiexec


@pytest.mark.parametrize(
    "what",
    [
        "data",
        *(pytest.param(name, marks=pytest.mark.mpi) for name in ("network", "parameters", "optimizer", "epochs")),
    ],
)
def test_processes_that_differ_are_refused_before_the_start(what: str) -> None:
    code, _, err = program(2, "differ", what)
    words = {"data": "training data", "network": "network", "parameters": "parameters"}.get(what, what)
    assert code != 0
    assert re.search(rf"GroupError: the processes differ in {words}: rank 0 has .*, rank 1 has ", err)


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.mpi) for n in range(1, 5))])
@pytest.mark.parametrize("to", ["mpiexec", "rank 1"])
def test_an_interrupt_ends_the_epoch_in_all_processes(number: int, to: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = start(2, "tests.mpi_program", "interrupt", ready)
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.06 * number)
    target = process.pid
    if to == "rank 1":
        target = next(
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if str(ready) in _read(path.with_name("cmdline")) and "PMI_RANK=1\0" in _read(path)
        )
    os.kill(target, signal.SIGINT)
    code, out, err = finish(process, 5)
    assert re.findall(r"interrupted: (True|False)", out) == ["True", "True"], err
    assert code == 0, err


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_every_process_must_be_able_to_share_the_work(blobs: Dataset) -> None:
    class Three(Group):
        size = 3

    model = MLP([20, 8, 4], device="cpu")
    with pytest.raises(ValueError, match="shards is expected to be a multiple of the 3 processes"):
        Trainer(model, blobs, shards=4, group=Three())
    assert Trainer(model, blobs, group=Three()).shards == 3
    with pytest.raises(TypeError, match=r"group is expected to be a Group, such as MPIGroup\(\), got"):
        Trainer(model, blobs, group=2)  # type: ignore[arg-type]


def test_the_mpiexec_of_another_mpi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert launcher() == (1, 2)
    with pytest.raises(GroupError, match="mpiexec has started 2 processes, but each is alone for the MPI library"):
        MPIGroup()


def test_without_an_mpi_library_the_error_says_how_to_get_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import gpumlp; gpumlp.MPIGroup()"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPI4PY_LIBMPI": "/missing/libmpi.so"},
        capture_output=True,
        text=True,
    )
    assert (
        "MissingExtraError: mpi4py finds no MPI library (cannot load MPI library /missing/libmpi.so" in done.stderr
    )
    assert "install one: pip install mpich" in done.stderr


def test_without_mpi4py_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[mpi\]"'):
        MPIGroup()


def test_one_process_is_a_group_of_mpi_too(blobs: Dataset) -> None:
    group = MPIGroup()
    assert (group.rank, group.size) == (0, 1)
    Trainer(MLP([20, 8, 4], device="cpu"), blobs, group=group, shards=2).run(1)


def test_mpi_and_nccl_are_loaded_only_for_a_group() -> None:
    code = "import sys, gpumlp.train; sys.exit(bool({'mpi4py', 'nccl'} & sys.modules.keys()))"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
    )


def test_each_process_has_as_many_blas_threads_as_there_are_cores_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes on one machine share its 8 cores, while mpiexec gave a fourth one others."""
    group, cores = MPIGroup(), [*range(8)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*cores}, raising=False)
    monkeypatch.setattr(group, "_machine", SimpleNamespace(allgather=lambda own: [own, cores, cores, [8, 9]]))
    for threads, expected in ((8, 8 // 3), (1, 1)):
        with threadpoolctl.threadpool_limits(threads, "blas"):
            group._limit_threads()
            blas = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
            assert {library["num_threads"] for library in blas} == {expected}
