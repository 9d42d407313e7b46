"""Jobs in worker processes: results, exceptions, interrupts, and what becomes of the processes."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

from gpumlp.training import jobs, many
from gpumlp.training.jobs import run_jobs, temporary_folder, worker_count


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_every_job_gives_its_result_or_its_exception(n_jobs: int) -> None:
    def half(number: int) -> float:  # a function in a function: plain pickle refuses it
        if number == 3:
            raise ZeroDivisionError("three")
        return number / 2

    results = dict(run_jobs(half, range(6), n_jobs=n_jobs))
    error = results.pop(3)
    assert results == {0: 0, 1: 0.5, 2: 1, 4: 2, 5: 2.5}
    assert isinstance(error, ZeroDivisionError)
    assert str(error) == "three"


def test_workers_share_read_only_arrays_and_have_one_thread() -> None:
    def seen(data: np.ndarray, job: int) -> tuple[float, bool, int, set[int]]:
        threads = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        threads.add(int(os.environ["VECLIB_MAXIMUM_THREADS"]))  # Apple's, which threadpoolctl does not know
        return float(data[job]), data.flags.writeable, os.getpid(), threads

    data = np.arange(1000.0)
    for index, (value, writeable, process, threads) in run_jobs(partial(seen, data), range(4), n_jobs=2):
        assert (value, writeable, threads) == (index, False, {1})
        assert process != os.getpid()


def test_an_exception_that_cannot_be_pickled_is_told_in_words() -> None:
    class Odd(Exception):
        def __init__(self, one: int, other: int) -> None:
            super().__init__(f"{one} and {other}")

    def fail(job: int) -> None:
        raise Odd(job, 2)

    (_, error), _ = run_jobs(fail, range(2), n_jobs=2)
    assert type(error) is RuntimeError
    assert str(error) in ("Odd: 0 and 2", "Odd: 1 and 2")


def test_a_function_that_cannot_be_pickled_is_refused_with_a_way_out() -> None:
    lock = threading.Lock()
    message = "need functions and objects that can be pickled, but cannot pickle .*lock.*n_jobs=1"
    with pytest.raises(TypeError, match=message):
        list(run_jobs(lambda job: lock.locked(), range(2), n_jobs=2))


def test_a_job_with_which_its_worker_dies_fails_alone(tmp_path: Path) -> None:
    def square(job: int) -> int:
        if job == 2:
            os._exit(1)
        if job == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if job == 6:  # dies once, as if there had been too little memory for two
            try:
                (tmp_path / "died").mkdir()
            except FileExistsError:
                return job**2
            os._exit(1)
        time.sleep(0.1)
        return job**2

    results = dict(run_jobs(square, range(9), n_jobs=2))
    error = results.pop(2)
    assert isinstance(error, RuntimeError)
    assert str(error) == "its worker process died (EXIT(1))"
    assert str(results.pop(3)) == "its worker process died (SIGKILL(-9)), perhaps for lack of memory"
    assert results == {job: job**2 for job in (0, 1, 4, 5, 6, 7, 8)}


def test_an_interrupt_reaches_jobs_that_run_and_no_other_begins(tmp_path: Path) -> None:
    def sleep(job: int) -> str:
        (tmp_path / str(job)).touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            return "stopped"
        return "slept"

    def interrupt_when_two_run() -> None:
        if len(list(tmp_path.iterdir())) == 2 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    interrupted: list[bool] = []
    results = []
    start = time.monotonic()
    jobs = run_jobs(sleep, range(9), n_jobs=2, watch=interrupt_when_two_run)
    with pytest.raises(KeyboardInterrupt):
        results.extend(jobs)
    assert time.monotonic() - start < 30
    assert sorted(results) == [(0, "stopped"), (1, "stopped")]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupt_that_python_ignores_is_raised_again(tmp_path: Path) -> None:
    class Nap:
        def __init__(self, job: int) -> None:
            (tmp_path / str(job)).touch()

        def __call__(self, *_: object) -> None:
            time.sleep(60)

    class Destructor(Nap):
        __del__ = Nap.__call__

    def sleep(job: int) -> str:
        nap = (Nap, Nap, Destructor)[job](job)
        try:
            if job == 0:
                ctypes.CFUNCTYPE(None)(nap)()  # such as threadpoolctl's, for each library that is loaded
            reference = weakref.ref(nap, Nap(job))
            del nap
            time.sleep(60)
        except KeyboardInterrupt:
            return "stopped"
        return f"slept {reference}"

    def interrupt_when_three_run() -> None:
        if len(list(tmp_path.iterdir())) == 3 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    interrupted: list[bool] = []
    results = []
    with pytest.raises(KeyboardInterrupt):
        results.extend(run_jobs(sleep, range(3), n_jobs=3, watch=interrupt_when_three_run))
    assert sorted(results) == [(0, "stopped"), (1, "stopped"), (2, "stopped")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_no_lock_is_locked(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if another thread, such as one of the BLAS, receives the signal."""

    def interrupted(*arguments: Any) -> Any:
        if not returned:
            thread.submit(signal.raise_signal, number).result()
            returned.append(True)
        return wait(*arguments)

    returned: list[bool] = []
    wait = jobs.wait
    monkeypatch.setattr(jobs, "wait", interrupted)
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(number, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(abs, 1).result()
            with pytest.raises(KeyboardInterrupt):
                list(run_jobs(time.sleep, [60, 60], n_jobs=2))
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert returned


def test_jobs_that_nobody_wants_any_more_are_ended() -> None:
    jobs = run_jobs(time.sleep, [0, 60, 60], n_jobs=2)
    assert next(jobs) == (0, None)
    start = time.monotonic()
    jobs.close()
    assert time.monotonic() - start < 30


def test_a_process_that_is_a_worker_itself_has_no_workers(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "from gpumlp.training.jobs import run_jobs\n"
        "def work(job):\n"
        "    return dict(sorted(run_jobs(abs, [-1, -job], n_jobs=2)))\n"
        "if __name__ == '__main__':\n"
        "    methods = multiprocessing.get_all_start_methods()\n"  # on Python 3.14, later with joblib's own
        "    print(work(2))\n"
        "    for method in methods:\n"
        "        with multiprocessing.get_context(method).Pool(1) as pool:\n"
        "            print(pool.map(work, [3]))\n"
        "        process = multiprocessing.get_context(method).Process(target=work, args=(4,))\n"
        "        process.start()\n"
        "        process.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        env=os.environ | {"PYTHONPATH": str(Path(many.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.splitlines()[:2] == ["{0: 1, 1: 2}", "[{0: 1, 1: 3}]"], done.stderr


def test_memory_that_arrays_have_in_common_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    data = np.arange(1000.0)
    jobs.write_shared([data, data.reshape(10, 100), data[:0], "x"], path)
    assert path.stat().st_size < 1.5 * data.nbytes
    flat, square, empty, text = jobs.read_shared(path)
    assert (flat == data).all()
    assert (square == data.reshape(10, 100)).all()
    assert (empty.shape, text) == ((0,), "x")


def test_every_call_has_workers_of_its_own() -> None:
    """Calls in several threads, or within one another, do not end each other's workers."""

    def call(number: int) -> list[tuple[int, int]]:
        return sorted(run_jobs(abs, range(-number, 0), n_jobs=2 + number % 2))

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(call, range(4, 12)))
    assert found == [[(index, number - index) for index in range(number)] for number in range(4, 12)]
    outer = run_jobs(abs, range(-9, 0), n_jobs=2)
    assert [next(outer) and call(3) for _ in range(2)] == [[(0, 3), (1, 2), (2, 1)]] * 2
    assert len(list(outer)) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_by_fork_has_workers_of_its_own() -> None:
    program = (
        "import os, signal\n"
        "from gpumlp.training.jobs import run_jobs\n"
        "expected = [(0, 1), (1, 2)]\n"
        "assert sorted(run_jobs(abs, [-1, -2], n_jobs=2)) == expected\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(60)\n"
        "    os._exit(sorted(run_jobs(abs, [-1, -2], n_jobs=2)) != expected)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert sorted(run_jobs(abs, [-1, -2], n_jobs=2)) == expected\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_jobs_run_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(job: int) -> str:
        return os.getcwd()

    for path in (tmp_path, tmp_path.parent):  # workers stay where they were
        monkeypatch.chdir(path)
        assert dict(run_jobs(folder, range(2), n_jobs=2)) == {0: str(path), 1: str(path)}


def test_what_cannot_be_pickled_fails_alone(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return os.path.getsize, (str(tmp_path / "nothing"),)

    def result(job: Any) -> Any:
        return {"lock": threading.Lock(), "bad": Bad()}.get(job, job)

    results = dict(run_jobs(result, ["lock", "bad", threading.Lock(), Bad(), "good", "other"], n_jobs=2))
    assert [type(results[index]) for index in range(4)] == [TypeError, FileNotFoundError] * 2
    assert (results[4], results[5]) == ("good", "other")


def test_a_job_that_interrupts_itself_interrupts_all() -> None:
    def interrupt(job: int) -> int:
        if job == 1:
            raise KeyboardInterrupt
        return job

    results = []
    with pytest.raises(KeyboardInterrupt):
        results.extend(run_jobs(interrupt, range(100), n_jobs=2))
    assert len(results) < 10


def test_without_place_for_the_file_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(jobs, "write_shared", full)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        list(run_jobs(abs, range(2), n_jobs=2))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell who is an orphan")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_workers_end_with_a_parent_that_is_killed(name: str, tmp_path: Path) -> None:
    program = (
        "import os, pathlib, time\n"
        "from gpumlp.training.jobs import run_jobs\n"
        "def work(job):\n"
        "    pathlib.Path('begun', str(os.getpid())).touch()\n"
        "    while True: pathlib.Path('alive').touch(); time.sleep(0.05)\n"
        "list(run_jobs(work, range(3), n_jobs=2))\n"
    )
    (tmp_path / "begun").mkdir()
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONPATH": str(Path(many.__file__).parents[2]),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(list((tmp_path / "begun").iterdir())) == 2)
    process.send_signal(getattr(signal, name))
    process.wait()
    wait_for(lambda: not list((tmp_path / "temporary").glob("gpumlp-*")))
    wait_for(lambda: time.time() - (tmp_path / "alive").stat().st_mtime > 1)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="only Linux tells who is alive")
def test_files_of_killed_processes_are_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os, signal; from gpumlp.training.jobs import temporary_folder\n"
        "folder = temporary_folder(); open(f'{folder.name}/function', 'w').close()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(many.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    for name in ("gpumlp-runs", "gpumlp-1-x", left.name.replace("-", "-another-", 1)):  # not of this machine's
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as first, temporary_folder():
        assert Path(first).exists()
        assert len(list(tmp_path.iterdir())) == 5
        assert not left.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_only_the_parent_is_asked_about_an_interrupt() -> None:
    """Where it ignores Ctrl-C, as in the background of a shell, its workers do, too."""

    def work(job: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return job

    assert dict(run_jobs(work, range(4), n_jobs=2)) == {0: 0, 1: 1, 2: 2, 3: 3}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(3) == 3
    assert worker_count(None) == worker_count(-1) >= 1
    for wrong in (0, -2, 1.5, "2", True):
        with pytest.raises(ValueError, match="n_jobs is expected to be a number of 1 or more, or -1"):
            worker_count(wrong)  # type: ignore[arg-type]
    joblib = pytest.importorskip("joblib")
    for backend, expected in (("loky", [1, 1, 1]), ("threading", [1, 1, 2])):  # each core has a worker already
        parallel = joblib.Parallel(n_jobs=2, backend=backend)
        assert parallel(joblib.delayed(worker_count)(number) for number in (None, -1, 2)) == expected
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert worker_count(None) == 1
    with pytest.raises(ValueError, match="needs joblib"):
        worker_count(2)


def test_joblib_has_workers_of_its_own() -> None:
    """loky's reusable executor is one for a process, and joblib expects to be its only user."""
    import joblib

    assert sorted(run_jobs(abs, [-1, -2], n_jobs=2)) == [(0, 1), (1, 2)]
    assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(number) for number in (-3, -4)) == [3, 4]
    assert sorted(run_jobs(abs, [-5, -6], n_jobs=2)) == [(0, 5), (1, 6)]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux tells who is alive")
def test_workers_without_a_job_stay_for_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.IDLE == 300
    monkeypatch.setattr(jobs, "IDLE", 0.5)
    # Three new ones: other tests have left two.
    workers = {process for _, process in run_jobs(lambda _: os.getpid(), range(6), n_jobs=3)}
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in workers))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux tells who is alive")
def test_on_windows_workers_end_before_the_file_that_they_have_open_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, left = set[int](), list[int]()

    @contextmanager
    def folder() -> Iterator[str]:
        yield str(tmp_path)
        left.extend(process for process in workers if Path(f"/proc/{process}").exists())

    monkeypatch.setattr(jobs, "temporary_folder", folder)
    for keep in (True, False):
        monkeypatch.setattr(jobs, "_KEEP", keep)
        workers.clear()
        workers.update(process for _, process in run_jobs(lambda _: os.getpid(), range(6), n_jobs=2))
        assert (set(left) == workers) == keep
        left.clear()
