"""Jobs in worker processes, with one BLAS thread each and shared, memory-mapped arrays."""

from __future__ import annotations

import mmap
import multiprocessing
import operator
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

POLL = 0.1  # seconds between checks for an interrupt, and between calls of `watch`
IDLE = 300  # seconds after which a worker process without a job ends
_ALIGNMENT = 64  # bytes; of arrays in a file
# What a worker process starts with. A job in it that runs jobs of its own runs them there, one after another.
_ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP", "BLIS")}
_ENVIRONMENT |= {"VECLIB_MAXIMUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"}  # the first of Apple's Accelerate

# Workers keep the file of their last call open, and Windows removes no open file.
_KEEP = os.name != "nt"
# Workers that wait for the next call, by the process that they belong to: a child by fork cannot use them.
_idle: dict[int, Any] = {}


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    *,
    n_jobs: int | None = None,
    watch: Callable[[], object] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Call a function with each job, in worker processes, and yield the results as they come.

    Workers have one BLAS thread each. Arrays that `function` holds (give a ``functools.partial``) are written to a
    temporary file once, which the workers map into their memory, read only; so put there what jobs share. Workers
    stay for the next call, and end soon after this process, however that ends. Jobs run in its current folder. On
    Windows, workers end with the call; if this process is killed, with the job that they do.

    An interrupt is raised as KeyboardInterrupt in every job that runs, and no other job begins; what the
    interrupted ones return is yielded, and then KeyboardInterrupt is raised. A job that raises it interrupts all.

    Args:
        function: of a job. What it raises is yielded in place of a result.
        jobs: pickled by cloudpickle, so that functions of a notebook are no problem. An iterator is asked for the
            next job when a worker is about to be free, after the results so far were yielded.
        n_jobs: the number of worker processes; None or -1 for as many as there are cores. With 1, without joblib,
            or in a process that is a worker itself, jobs run in this process, one after another, with as many BLAS
            threads as it has.
        watch: called in this process several times a second while workers run, and after each job; if it raises
            KeyboardInterrupt, that is an interrupt.

    Yields:
        The index of a job and its result, or the Exception that it raised; a RuntimeError for one whose worker
        process died. That takes the other workers with it: all jobs in progress are run again, one at a time.

    Raises:
        ValueError: `n_jobs` is neither None, -1 nor a number of 1 or more.
        TypeError: `function` cannot be pickled.
        OSError: there is no place for the temporary file.
        KeyboardInterrupt: after an interrupt.
    """
    workers, watch = worker_count(n_jobs), watch or (lambda: None)
    if not isinstance(jobs, Iterator):
        jobs = list(jobs)
        workers = min(workers, len(jobs))
    if workers <= 1:
        return _run_here(function, jobs, watch)
    return _run_in_workers(function, jobs, watch, workers)


def worker_count(n_jobs: int | None) -> int:
    """How many worker processes `run_jobs` may use; 1 without joblib, and in a process that is a worker itself.

    None is also 1 in a thread of joblib, beside which there are others.
    """
    try:
        number = -1 if n_jobs is None else 0 if isinstance(n_jobs, bool) else operator.index(n_jobs)
    except TypeError:
        number = 0
    if number < 1 and number != -1:
        raise ValueError(f"n_jobs is expected to be a number of 1 or more, or -1 for all cores, got {n_jobs!r}")
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
    if number > 0:
        return number
    return 1 if joblib.parallel.get_active_backend()[0].nesting_level else int(joblib.cpu_count())


def _run_here(
    function: Callable[[Any], Any], jobs: Iterable[Any], watch: Callable[[], object]
) -> Iterator[tuple[int, Any]]:
    for index, job in enumerate(jobs):
        try:
            result = function(job)
        except Exception as error:
            result = error
        yield index, result
        watch()


def _run_in_workers(
    function: Callable[[Any], Any], jobs: Iterable[Any], watch: Callable[[], object], workers: int
) -> Iterator[tuple[int, Any]]:
    with temporary_folder() as folder:
        shared, stop = Path(folder, "function"), Path(folder, "stop")
        _share(function, shared)
        call = partial(_call, shared, stop, os.getcwd())
        pool = _take_workers(workers, Path(folder))
        # Jobs with their indices: those that wait; and those in progress when a worker died, each of which is run
        # again, alone, to see if it was it.
        waiting, suspects = deque[tuple[int, Any]](), deque[tuple[int, Any]]()
        running = dict[Future[Any], tuple[int, Any]]()
        source, exhausted, interrupted = enumerate(jobs), False, False
        try:
            while running or ((waiting or suspects or not exhausted) and not interrupted):
                try:
                    while len(waiting) + len(running) <= workers and not (suspects or exhausted or interrupted):
                        following = next(source, None)
                        if following is None:
                            exhausted = True
                        else:
                            waiting.append(following)
                    # Few at a time: what is queued cannot be stopped. One more than there are workers, so that
                    # none of them waits.
                    queue, most = (suspects, 0) if suspects else (waiting, workers)
                    with _interrupts_held():
                        while queue and len(running) <= most and not interrupted:
                            running[_submit(pool, call, queue[0][1])] = queue[0]
                            if queue is waiting:
                                queue.popleft()
                        done = wait(running, POLL, FIRST_COMPLETED).done
                    if not interrupted:
                        watch()
                except KeyboardInterrupt:
                    if interrupted:  # a second one does not wait for the jobs
                        raise
                    interrupted = True
                    stop.touch()
                    continue
                except BrokenProcessPool:
                    pool.shutdown(kill_workers=True)  # waits until they hold no locks or files
                    pool = _take_workers(workers, Path(folder))
                    continue
                for future in done:
                    each = running.pop(future)
                    alone = any(each is suspect for suspect in suspects)
                    try:
                        result = pickle.loads(future.result())
                    except BrokenProcessPool as error:
                        if not (alone or interrupted):
                            suspects.append(each)
                            continue
                        result = _NotRun() if interrupted else _died(error)
                    except Exception as error:  # of pickling
                        result = error
                    if alone:
                        suspects.popleft()
                    if not isinstance(result, _NotRun):
                        yield each[0], result
                    elif not interrupted:  # the job has raised it
                        interrupted = True
                        stop.touch()
        finally:
            if running:  # an error, or the caller wants no more
                stop.touch()
                pool.shutdown(kill_workers=True)
            elif _KEEP:
                _keep_workers(pool)
            else:
                pool.shutdown()
    if interrupted:
        raise KeyboardInterrupt


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for files of this process. On Linux, those of processes that were killed are removed first."""
    kind = "gpumlp-"
    with suppress(OSError):  # not on Linux, or another process removes the same one
        kind += f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}-"  # of processes seen from here
        for left in Path(tempfile.gettempdir()).glob(f"{kind}*"):
            process = left.name.removeprefix(kind).partition("-")[0]
            if left.stat().st_uid == os.getuid() and not Path("/proc", process).exists():
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{kind}{os.getpid()}-", ignore_cleanup_errors=True)


def _share(function: Callable[[Any], Any], path: Path) -> None:
    """Write the function for the workers, or say what is wrong."""
    try:
        write_shared(function, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        raise TypeError(
            f"worker processes need functions and objects that can be pickled, but {error}; leave it out, or work "
            "in this process with n_jobs=1"
        ) from error


def _take_workers(count: int, folder: Path) -> Any:
    """Worker processes for one call alone: those of an earlier one, if there are as many, otherwise new ones.

    Args:
        count: of processes.
        folder: of the call's files.
    """
    # Not loky's `get_reusable_executor`, of which joblib expects to be the only user in a process.
    from joblib.externals.loky import ProcessPoolExecutor

    pool = _idle.pop(os.getpid(), None)
    if pool is not None:
        if pool._max_workers == count and not pool._flags.broken:
            return pool
        pool.shutdown()
    start = partial(_start_worker, os.getpid(), folder)
    return ProcessPoolExecutor(count, timeout=IDLE, env=_ENVIRONMENT, initializer=start)


def _keep_workers(pool: Any) -> None:
    """Keep worker processes for the next call, in place of others."""
    other = _idle.pop(os.getpid(), None)
    if other is not None:
        other.shutdown()
    _idle[os.getpid()] = pool


def _submit(pool: Any, call: Callable[[bytes], bytes], job: Any) -> Future[bytes]:
    """Give a job to the workers. It is pickled here, since an error in the pool itself would end all workers."""
    try:
        pickled = _cloudpickle().dumps(job)
    except Exception as error:
        failed = Future[bytes]()
        failed.set_exception(error)
        return failed
    return pool.submit(call, pickled)  # type: ignore[no-any-return]


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError:  # part of joblib before 1.6
        from joblib.externals import cloudpickle
    return cloudpickle


def _died(error: Exception) -> RuntimeError:
    """The result of a job with which a worker has died twice, the second time alone."""
    found = re.search(r"\{(.*?)\}", str(error))  # of joblib's six lines, such as SIGKILL(-9) or EXIT(1)
    code = found[1] if found else "exit code unknown"
    guess = ", perhaps for lack of memory" if "KILL" in code else ""
    return RuntimeError(f"its worker process died ({code}){guess}")


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Interrupts take effect after the context; processes that are started in it begin with interrupts blocked.

    A KeyboardInterrupt within `concurrent.futures` may leave a lock locked, for which all threads then wait
    forever. Blocking the signal does not prevent it, since a thread of the BLAS may receive it instead.
    """
    held, mask, handlers = list[tuple[Any, ...]](), None, dict[int, Any]()
    if threading.current_thread() is threading.main_thread():  # no interrupt is raised in another one
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda *arguments: held.append(arguments))
    try:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()  # joblib needs it; where it is started, it unblocks interrupts
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            handlers[held[0][0]](*held[0])


class _NotRun:
    """The result of a job that was interrupted before it began, or raised the interrupt."""


# -- In a worker process -----------------------------------------------------------------------------------


_folder: Path  # of the files of the last call


def _call(shared: Path, stop: Path, current: str, job: bytes) -> bytes:
    """Run a pickled job in a current folder, and pickle its result; an Exception is a result like any other."""
    global _folder
    _folder = shared.parent
    result = _NotRun() if stop.exists() else _result(shared, stop, current, job)
    try:
        return bytes(_cloudpickle().dumps(result))
    except Exception as error:
        return pickle.dumps(sendable(error))


def _result(shared: Path, stop: Path, current: str, job: bytes) -> Any:
    try:
        os.chdir(current)
        function = read_shared(shared)
        with threadpoolctl.threadpool_limits(1), _interrupted_by(stop):
            return function(pickle.loads(job))
    except KeyboardInterrupt:
        return _NotRun()
    except Exception as error:
        return sendable(error)


def _start_worker(parent: int, folder: Path) -> None:
    """Ctrl-C reaches every process of a terminal, and SIGTERM of a batch job; the parent decides what ends."""
    global _folder
    _folder = folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended; that has removed the files, unless it was killed."""
    while os.getppid() == parent:
        time.sleep(POLL)
    shutil.rmtree(_folder, ignore_errors=True)
    os._exit(1)


@contextmanager
def _interrupted_by(stop: Path) -> Iterator[None]:
    """Within the context, KeyboardInterrupt is raised once, when the file `stop` appears.

    It is raised again if Python ignores it, as in a destructor, and in a callback from C or of a weak reference.
    """
    seen = False

    def interrupt(*_: object) -> None:
        nonlocal seen
        if not seen and stop.exists():
            seen = True
            raise KeyboardInterrupt

    def ignored(error: Any) -> None:
        nonlocal seen
        if issubclass(error.exc_type, KeyboardInterrupt):
            seen = False
        else:
            hook(error)

    def look() -> None:
        while not ended.wait(POLL):
            if not seen and stop.exists():
                if hasattr(signal, "pthread_kill"):  # wakes the main thread, which handles signals, from a sleep
                    signal.pthread_kill(main, signal.SIGINT)
                else:
                    signal.raise_signal(signal.SIGINT)

    ended, main, hook = threading.Event(), threading.main_thread().ident or 0, sys.unraisablehook
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        sys.unraisablehook = ignored
        signal.signal(signal.SIGINT, interrupt)
        yield
    finally:
        seen = True
        ended.set()
        looking.join()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.unraisablehook = hook


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
    buffers: list[pickle.PickleBuffer] = []
    pickled = _cloudpickle().dumps(value, protocol=5, buffer_callback=buffers.append)
    with open(path, "wb") as file:
        parts, written = [], dict[tuple[int, int], int]()  # the same memory, seen by several arrays, once
        for buffer in buffers:
            with buffer.raw() as raw:
                memory = np.frombuffer(raw, np.uint8).ctypes.data, raw.nbytes
                if memory not in written:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    written[memory] = file.tell()
                    file.write(raw)
                parts.append((written[memory], raw.nbytes))
        file.write(pickled)
    with open(path.with_suffix(".parts"), "wb") as file:
        pickle.dump((parts, len(pickled)), file)


@lru_cache(maxsize=1)
def read_shared(path: Path) -> Any:
    """What `write_shared` has written; its arrays are read only, and all processes share their memory."""
    parts, pickled = pickle.loads(path.with_suffix(".parts").read_bytes())
    with open(path, "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pickle.loads(view[len(view) - pickled :], buffers=[view[at : at + size] for at, size in parts])
