"""Runs of a sweep on the workers of a Dask cluster, on one machine or several, which share the sweep's folder.

A task is a run's folder. Workers read the data themselves, by path or name, so that only names pass the scheduler.
A task that is started again, because its worker died or was taken for dead, goes on with what the folder holds.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import threading
import time
import warnings
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

import gpumlp

from ..backends.blas_kernel import VARIABLE, running_kernel
from ..extras import require
from ..files import resolved, user_path
from ..words import counted
from .config import ConfigError
from .jobs import POLL, sendable
from .lock import LOCK, LockedError, RunLock
from .progress import Progress
from .run import SWEEP, is_run
from .session import Shared
from .sweeps import ENDED, ClusterLostError, Sweep, SweepProgress, require_data, train_run

CONNECT = 10.0  # seconds to wait for a scheduler, at the start and after a lost connection
DEATHS = 3  # of workers, after each of which their run is given to another one
_REFRESH = 1.0  # seconds between two looks at the list of workers
_PATIENCE = 15.0  # seconds to wait for runs that were interrupted to be saved


class WorkerFacts(NamedTuple):
    """What a worker is compared by.

    Attributes:
        versions: of gpumlp, NumPy and Python, by their names.
        kernel: of NumPy's BLAS; None if unknown.
    """

    versions: dict[str, str]
    kernel: str | None


class Unfit(NamedTuple):
    """The result of a task on a worker that cannot train the sweep."""

    worker: str
    reason: str


class Cluster:
    """The workers of a Dask scheduler.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.

    Raises:
        MissingExtraError: Dask is not installed.
        ConfigError: there is no scheduler at the address, or it cannot load gpumlp.
    """

    def __init__(self, address: str) -> None:
        require("sweeps over machines", "distributed", "dask")
        import distributed
        from distributed.comm import get_address_host_port

        for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what concerns the user is said in words
        self.address = address
        try:
            get_address_host_port(address)  # after an error in a client, Python's end would wait for 20 seconds
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions, which are compared here
                self._client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                "scheduler: expected the address of a Dask scheduler, such as tcp://host:8786, but none answers "
                f"at {address!r} ({_first_line(error)}); start one with: dask scheduler"
            ) from error
        try:
            self._client.run_on_scheduler(worker_facts)  # tasks pass through its Python
        except ImportError as error:
            self.close()
            raise ConfigError(
                f"scheduler: expected one that can load gpumlp {gpumlp.__version__}, but {address} cannot "
                f"({_first_line(error)}); start it in an environment like this one"
            ) from error

    def close(self) -> None:
        """Leave the cluster; tasks that run are interrupted."""
        with suppress(Exception):
            self._client.close(timeout=2)

    def run(self, jobs: Iterator[Sweep], progress: SweepProgress) -> Iterator[tuple[int, Exception | None]]:
        """Train runs, as many at a time as the workers have threads.

        An interrupt reaches the runs in progress, which are saved.

        Args:
            jobs: a sweep of one run for each; the next one is asked for when a worker is free.
            progress: is told how many runs are in progress, and about workers.

        Yields:
            The index of a run that has ended, and the Exception that ended it, or None.

        Raises:
            ConfigError: no worker can train the sweep.
            ClusterLostError: the scheduler cannot be reached any more.
        """
        yield from _Tasks(self._client, self.address, jobs, progress).results()


@dataclasses.dataclass
class _Task:
    """A run that is in progress or waits: its index, the sweep that has only it, and its worker."""

    index: int
    sweep: Sweep
    deaths: int = 0
    worker: str = ""


class _Tasks:
    """The tasks of one call of `Cluster.run`."""

    def __init__(self, client: Any, address: str, jobs: Iterator[Sweep], progress: SweepProgress) -> None:
        self._client, self._address, self._progress = client, address, progress
        self._jobs = enumerate(map(_with_full_paths, jobs))
        self._again: list[_Task] = []  # whose worker died
        self._running: dict[Any, _Task] = {}  # by their futures
        self._threads: dict[str, int] = {}  # of each worker that can be used
        self._unfit: dict[str, str] = {}  # why the others cannot
        self._event, self._looked = threading.Event(), -_REFRESH
        self._waits = self._exhausted = False

    def results(self) -> Iterator[tuple[int, Exception | None]]:
        """Run all tasks; see `Cluster.run`."""
        if (first := next(self._jobs, None)) is None:  # no worker is needed, or waited for
            return
        self._again.append(_Task(*first))
        try:
            while not self._exhausted or self._again or self._running:
                self._event.clear()
                self._look_at_workers()
                for task in [task for task in self._again if task.deaths > DEATHS]:
                    self._again.remove(task)
                    yield task.index, _died(task.deaths)
                self._submit()
                self._progress.now_running(len(self._running))
                self._event.wait(POLL)
                for future in [future for future in self._running if future.done()]:
                    task = self._running.pop(future)
                    ended, failure = self._ended(future, task)
                    self._progress.now_running(len(self._running))
                    if ended:
                        yield task.index, failure
        finally:
            self._cancel()
            self._progress.now_running(0)

    def _look_at_workers(self) -> None:
        """Check workers that are new, and take tasks back whose worker is gone.

        Raises:
            ConfigError: none of the workers can train the sweep.
        """
        if time.monotonic() - self._looked < _REFRESH:
            return
        present = self._ask(self._client.nthreads)
        if present is None:
            return
        self._looked = time.monotonic()
        self._threads = {worker: threads for worker, threads in self._threads.items() if worker in present}
        new = [worker for worker in present if worker not in (*self._threads, *self._unfit)]
        if new:
            facts = self._ask(self._client.run, worker_facts, workers=new, on_error="return") or {}
            for worker in facts:
                self._check(worker, present[worker], facts[worker])
            if self._threads.keys() & new:
                self._progress.say(
                    f"runs at once: {sum(self._threads.values()):,}, on {counted(len(self._threads), 'worker')} "
                    f"of {self._address}, with one BLAS thread each"
                )
        for future, task in list(self._running.items()):
            if not future.done() and task.worker not in present:
                del self._running[future]
                with suppress(Exception):
                    future.cancel()
                self._again.append(dataclasses.replace(task, deaths=task.deaths + 1))
        if not present and not self._waits:
            self._waits = True
            self._progress.say(f"waiting for workers; start some with: dask worker {self._address} --nthreads 1")
        if present and present.keys() <= self._unfit.keys():
            worker = next(iter(present))
            raise ConfigError(
                f"scheduler: none of the workers at {self._address} can train this sweep: {worker} "
                f"{self._unfit[worker]}"
            )

    def _submit(self) -> None:
        """Give tasks to the workers until each of their threads has one.

        Dask does not choose the worker: it would queue the task of one that died behind that of another one.
        """
        busy = Counter(task.worker for task in self._running.values())
        free = [worker for worker, threads in self._threads.items() for _ in range(threads - busy[worker])]
        for worker in free:
            if self._again:
                task = self._again.pop(0)
            elif (following := next(self._jobs, None)) is not None:
                task = _Task(*following)
            else:
                self._exhausted = True
                return
            task.worker = worker
            # A key of its own: a task that was cancelled and is still running must not be taken for this one.
            future = self._ask(self._client.submit, _train, task.sweep, workers=[worker], pure=False)
            if future is None:
                self._again.append(task)
                return
            self._running[future] = task
            future.add_done_callback(lambda _: self._event.set())

    def _ended(self, future: Any, task: _Task) -> tuple[bool, Exception | None]:
        """Has a run ended, and by which Exception? If not, it is to be trained again."""
        with suppress(OSError):  # so that NFS does not answer from what it knew before
            os.listdir(task.sweep.path / task.sweep.runs[0].folder)
        if task.sweep.row(task.sweep.runs[0], {}).state in ENDED:
            return True, None
        if future.status == "error":
            error = future.exception()
            return True, _died(DEATHS + 1) if type(error).__name__ == "KilledWorker" else error
        if future.status == "finished":
            result = self._ask(future.result, CONNECT)
            if isinstance(result, Exception):
                return True, result
            if isinstance(result, Unfit):
                self._refuse(result.worker, result.reason)
        self._again.append(task)  # on another worker, or for a scheduler that was restarted and knows no tasks
        return False, None

    def _ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of a call that needs the scheduler; None while the client connects again.

        Raises:
            ClusterLostError: the scheduler cannot be reached any more.
        """
        try:
            if self._client.status == "running":
                return function(*arguments, **options)
        except (Exception, CancelledError) as error:
            if self._client.status == "running" and isinstance(error, OSError | TimeoutError | CancelledError):
                return None  # of one worker, or it will be "connecting" soon
            if self._client.status != "connecting":
                raise self._lost() from error
        if self._client.status not in ("running", "connecting"):
            raise self._lost()
        return None

    def _lost(self) -> ClusterLostError:
        return ClusterLostError(f"the Dask scheduler at {self._address} cannot be reached any more")

    def _check(self, worker: str, threads: int, facts: Any) -> None:
        """Use a new worker, or say why not."""
        if isinstance(facts, OSError):  # it is gone again
            return
        if isinstance(facts, BaseException):
            self._refuse(worker, f"cannot load gpumlp {gpumlp.__version__} ({_first_line(facts)})")
            return
        here = worker_facts()
        differ = [name for name, version in here.versions.items() if facts.versions.get(name) != version]
        if differ:
            found = ", ".join(f"{name} {facts.versions.get(name)}" for name in differ)
            expected = ", ".join(f"{name} {here.versions[name]}" for name in differ)
            self._refuse(worker, f"has {found}, expected {expected}")
            return
        self._threads[worker] = threads
        if threads > 1:
            self._progress.say(
                f"{worker} has {threads} threads: its runs share a process and wait for each other; start several "
                "workers with --nthreads 1 in its place"
            )
        if None not in (facts.kernel, here.kernel) and facts.kernel != here.kernel:
            self._progress.say(
                f"{worker} uses the BLAS kernel {facts.kernel}, this machine {here.kernel}: results differ by "
                f"rounding; for the same ones start it with {VARIABLE}={here.kernel} in its environment"
            )

    def _refuse(self, worker: str, reason: str) -> None:
        self._threads.pop(worker, None)
        if worker not in self._unfit:
            self._unfit[worker] = reason
            self._progress.say(f"not used: {worker} {reason}")
            self._looked = -_REFRESH  # perhaps it was the last one

    def _cancel(self) -> None:
        """Interrupt what is running, and wait until it is saved."""
        if not self._running:
            return
        folders = [task.sweep.path / task.sweep.runs[0].folder for task in self._running.values()]
        with suppress(Exception):
            self._client.cancel(list(self._running))
        end = time.monotonic() + _PATIENCE
        while self._client.status == "running" and time.monotonic() < end and any(map(_is_locked, folders)):
            time.sleep(POLL)


def _is_locked(folder: Any) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        RunLock(folder).release()
    except (ConfigError, OSError):
        return True
    return False


def _died(times: int) -> RuntimeError:
    return RuntimeError(f"its worker died {times} times, perhaps for lack of memory")


def _with_full_paths(sweep: Sweep) -> Sweep:
    """The sweep with paths that do not depend on the folder that a process is in."""
    data_dir = sweep.config.data_dir
    config = dataclasses.replace(
        sweep.config, data_dir=None if data_dir is None else str(resolved(user_path(data_dir)))
    )
    return dataclasses.replace(sweep, path=resolved(sweep.path), config=config)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- On a worker -------------------------------------------------------------------------------------------


def worker_facts() -> WorkerFacts:
    """Of this process."""
    python = platform.python_version().rpartition(".")[0]
    versions = {"gpumlp": gpumlp.__version__, "NumPy": np.__version__, "Python": python}
    return WorkerFacts(versions, running_kernel())


def _train(sweep: Sweep) -> Exception | Unfit | None:
    """Train a run until it has ended, from where the task before this one has stopped.

    Args:
        sweep: of that run only.

    Returns:
        None if it has ended, or the task was cancelled; the Exception that ended it; or why it cannot be trained
        on this worker.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def cancelled() -> bool:
        """Does nobody want the result any more, or is this worker about to end?"""
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status.name not in ("running", "paused")

    try:
        shared = _shared(sweep)
    except Exception as error:
        return Unfit(worker.address, _first_line(sendable(error)))
    try:
        with _one_blas_thread(), suppress(KeyboardInterrupt):
            _train_when_free(sweep, shared, cancelled)
    except Exception as error:
        return sendable(error)
    return None


_lock = threading.Lock()  # of the threads of a worker
_read: dict[tuple[Any, ...], Shared] = {}  # the data of the last sweep


def _shared(sweep: Sweep) -> Shared:
    """The data of a sweep, read once in a process.

    Raises:
        ConfigError: the folder of the sweep is not there.
        MissingExtraError: it is a search, and Optuna is not installed.
        CheckpointError, DataError, DeviceError: the data are missing or others, or the device is.
    """
    if not (sweep.path / SWEEP).is_file():
        raise ConfigError(f"does not see {sweep.path}: choose --out on a file system that all machines share")
    if sweep.search is not None:
        require("searches", "optuna", "optuna")
    config = sweep.config
    key = (config.dataset, config.data_dir, config.task, config.device, config.execution, *sweep.data)
    with _lock:
        if key not in _read:
            shared = Shared()
            check = partial(require_data, sweep)
            check(*shared.data(config, Progress(quiet=True), check=check))
            shared.backend(config, config.execution)
            _read.clear()
            _read[key] = shared
        return _read[key]


def _train_when_free(sweep: Sweep, shared: Shared, cancelled: Callable[[], bool]) -> None:
    """Train a run unless it has ended, and wait while another process trains it: a worker that Dask has lost."""
    folder = sweep.path / sweep.runs[0].folder
    while sweep.row(sweep.runs[0], {}).state not in ENDED:
        known = is_run(folder)
        try:
            train_run(sweep, shared, cancelled)
            return
        except LockedError:
            if cancelled():
                raise KeyboardInterrupt from None
            time.sleep(POLL)
        except ConfigError:
            if known or not is_run(folder):  # otherwise the other process has begun in between
                raise


_limits: list[Any] = []  # one while there are runs in this process
_users = 0


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Within the context, and until the last thread of this process has left it, BLAS has one thread."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _limits.append(threadpoolctl.threadpool_limits(1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _limits.pop().restore_original_limits()
