"""Jobs in worker processes, with one BLAS thread each and shared, memory-mapped arrays."""

from __future__ import annotations

import mmap
import multiprocessing
import operator
import pickle
import re
import signal
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import threadpoolctl

POLL = 0.1  # seconds between checks for an interrupt, and between calls of `watch`
IDLE = 300  # seconds after which a worker process without a job ends
_ALIGNMENT = 64  # bytes; of arrays in a file
# What a worker process starts with. A job in it that runs jobs of its own runs them there, one after another.
_ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP", "BLIS", "VECLIB")}
_ENVIRONMENT["LOKY_MAX_CPU_COUNT"] = "1"

_pool: Any = None  # see `_worker_pool`


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    *,
    n_jobs: int | None = None,
    watch: Callable[[], object] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Call a function with each job, in worker processes, and yield the results as they come.

    Workers have one BLAS thread each. Arrays that `function` holds (give a ``functools.partial``) are written to a
    temporary file once, which the workers map into their memory, read only; so put there what jobs share.

    An interrupt is raised as KeyboardInterrupt in every job that runs, and no other job begins; what the
    interrupted ones return is yielded, and then KeyboardInterrupt is raised.

    Args:
        function: of a job. What it raises is yielded in place of a result.
        jobs: pickled by cloudpickle, so that functions of a notebook are no problem.
        n_jobs: the number of worker processes; None or -1 for as many as there are cores. With 1, or without
            joblib, or in a process of `multiprocessing`, jobs run in this process, one after another, with as many
            BLAS threads as it has.
        watch: called in this process several times a second while workers run, and after each job; if it raises
            KeyboardInterrupt, that is an interrupt.

    Yields:
        The index of a job and its result, or the Exception that it raised; a RuntimeError for those that were
        running when a worker process died.

    Raises:
        ValueError: `n_jobs` is neither None, -1 nor a number of 1 or more.
        KeyboardInterrupt: after an interrupt.
    """
    jobs = list(jobs)
    workers, watch = min(worker_count(n_jobs), len(jobs)), watch or (lambda: None)
    if workers <= 1:
        return _run_here(function, jobs, watch)
    return _run_in_workers(function, jobs, watch, workers)


def worker_count(n_jobs: int | None) -> int:
    """How many worker processes `run_jobs` may use; 1 without joblib, and in a process that is a worker itself."""
    try:
        number = -1 if n_jobs is None else operator.index(n_jobs)
    except TypeError:
        number = 0
    if number < 1 and number != -1:
        raise ValueError(f"n_jobs is expected to be a number of 1 or more, or None for all cores, got {n_jobs!r}")
    try:
        import joblib
    except ImportError:
        if number > 1:
            raise ValueError(
                f"n_jobs={number} needs joblib, which is not installed; install it with pip install joblib, or "
                "leave n_jobs out"
            ) from None
        return 1
    if multiprocessing.parent_process() is not None:  # it may not have any, or would wait for their end at its own
        return 1
    return number if number > 0 else int(joblib.cpu_count())


def _run_here(
    function: Callable[[Any], Any], jobs: Sequence[Any], watch: Callable[[], object]
) -> Iterator[tuple[int, Any]]:
    for index, job in enumerate(jobs):
        try:
            result = function(job)
        except Exception as error:
            result = error
        yield index, result
        watch()


def _run_in_workers(
    function: Callable[[Any], Any], jobs: Sequence[Any], watch: Callable[[], object], workers: int
) -> Iterator[tuple[int, Any]]:
    with tempfile.TemporaryDirectory(prefix="gpumlp-", ignore_cleanup_errors=True) as folder:
        shared, stop = Path(folder, "function"), Path(folder, "stop")
        write_shared(function, shared)
        waiting, running, interrupted = deque(enumerate(jobs)), dict[Future[Any], int](), False
        try:
            while running or (waiting and not interrupted):
                try:
                    # Few at a time: what is queued cannot be stopped. One more than there are workers, so that
                    # none of them waits.
                    while waiting and len(running) <= workers and not interrupted:
                        index, job = waiting[0]
                        with _interrupts_blocked():
                            running[_worker_pool(workers).submit(_call, shared, stop, job)] = index
                        waiting.popleft()
                    done = wait(running, POLL, FIRST_COMPLETED).done
                    if not interrupted:
                        watch()
                except KeyboardInterrupt:
                    if interrupted:  # a second one does not wait for the jobs
                        raise
                    interrupted = True
                    stop.touch()
                    continue
                except BrokenProcessPool:  # just now; there are new workers for the next try
                    continue
                for future in done:
                    try:
                        result = future.result()
                    except BrokenProcessPool as error:
                        result = _NotRun() if interrupted else _died(error)
                    except Exception as error:  # of pickling
                        result = error
                    index = running.pop(future)
                    if not isinstance(result, _NotRun):
                        yield index, result
        finally:
            if running:  # an error, or the caller wants no more
                stop.touch()
                _worker_pool(workers).shutdown(kill_workers=True)
    if interrupted:
        raise KeyboardInterrupt


def _worker_pool(count: int) -> Any:
    """The worker processes of the last call, if there are as many and they are still there; otherwise new ones."""
    # Not loky's `get_reusable_executor`, of which joblib expects to be the only user in a process.
    from joblib.externals.loky import ProcessPoolExecutor

    global _pool
    if _pool is None or _pool._max_workers != count or _pool._flags.broken or _pool._flags.shutdown:
        if _pool is not None:
            _pool.shutdown()
        _pool = ProcessPoolExecutor(count, timeout=IDLE, env=_ENVIRONMENT, initializer=_ignore_interrupts)
    return _pool


def _died(error: Exception) -> RuntimeError:
    """The result of a job after the end of a worker, which takes the others with it."""
    codes = re.search(r"\{.*?\}", str(error))  # of joblib's six lines
    end = f" (exit codes {codes[0]})" if codes else ""
    return RuntimeError(f"its worker process, or one beside it, died{end}, perhaps for lack of memory")


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Within the context, interrupts wait; processes that are started in it begin with interrupts blocked."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # joblib needs it; where it is started, it unblocks interrupts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _NotRun:
    """The result of a job that was interrupted before it began, or raised the interrupt."""


# -- In a worker process -----------------------------------------------------------------------------------


def _call(shared: Path, stop: Path, job: Any) -> Any:
    """Run a job; an Exception is a result like any other."""
    if stop.exists():
        return _NotRun()
    try:
        function = read_shared(shared)
        with threadpoolctl.threadpool_limits(1), _interrupted_by(stop):
            return function(job)
    except KeyboardInterrupt:
        return _NotRun()
    except Exception as error:
        return sendable(error)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal, but a worker without a job must not end by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _interrupted_by(stop: Path) -> Iterator[None]:
    """Within the context, KeyboardInterrupt is raised once: by a signal, or when the file `stop` appears."""
    seen = False

    def interrupt(*_: object) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise KeyboardInterrupt

    def look() -> None:
        while not ended.wait(POLL):
            if stop.exists():
                if hasattr(signal, "pthread_kill"):  # wakes the main thread, which handles signals, from a sleep
                    signal.pthread_kill(main, signal.SIGINT)
                else:
                    signal.raise_signal(signal.SIGINT)
                return

    ended, main = threading.Event(), threading.main_thread().ident or 0
    looking = threading.Thread(target=look, daemon=True)
    signal.signal(signal.SIGINT, interrupt)
    try:
        looking.start()
        yield
    finally:
        seen = True
        ended.set()
        looking.join()
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def sendable(error: Exception) -> Exception:
    """The error if it can be pickled, otherwise a RuntimeError with its text; the traceback is added as a note."""
    note = "".join(traceback.format_exception(error)).rstrip()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(f"In a worker process:\n{note}")
    return error


# -- What jobs share ---------------------------------------------------------------------------------------


def write_shared(value: Any, path: Path) -> None:
    """Write an object to a file that `read_shared` maps, with its contiguous arrays as they are in memory."""
    try:
        import cloudpickle
    except ImportError:  # part of joblib before 1.6
        from joblib.externals import cloudpickle

    buffers: list[pickle.PickleBuffer] = []
    try:
        pickled = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except (TypeError, pickle.PicklingError) as error:
        raise TypeError(
            f"worker processes need functions and objects that can be pickled, but {error}; leave it out, or work "
            "in this process with n_jobs=1"
        ) from error
    try:
        with open(path, "wb") as file:
            parts = []
            for buffer in buffers:
                with buffer.raw() as raw:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    parts.append((file.tell(), raw.nbytes))
                    file.write(raw)
            file.write(pickled)
        with open(path.with_suffix(".parts"), "wb") as file:
            pickle.dump((parts, len(pickled)), file)
    except OSError as error:
        error.filename = error.filename or str(path)  # which a full disk does not tell
        raise


@lru_cache(maxsize=1)
def read_shared(path: Path) -> Any:
    """What `write_shared` has written; its arrays are read only, and all processes share their memory."""
    parts, pickled = pickle.loads(path.with_suffix(".parts").read_bytes())
    with open(path, "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pickle.loads(view[len(view) - pickled :], buffers=[view[at : at + size] for at, size in parts])
