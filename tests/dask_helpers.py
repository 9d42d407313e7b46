"""A Dask cluster of real processes for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.command_helpers import ROOT


class DaskCluster:
    """A scheduler and workers, which write what they say into a folder.

    Attributes:
        address: of the scheduler.
        scheduler: its process.
        workers: a process each, which starts the worker itself as a child and restarts it if it dies.
    """

    def __init__(self, folder: Path, *, workers: int = 0, **environment: str | None) -> None:
        self._folder, self._processes = folder, list[subprocess.Popen[bytes]]()
        folder.mkdir(parents=True)
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file, **environment
        )
        wait_for(lambda: file.exists() and bool(file.read_text()))
        self.address: str = json.loads(file.read_text())["address"]
        self.workers = [self.worker() for _ in range(workers)]

    def worker(self, *words: object, threads: int = 1, **environment: str | None) -> subprocess.Popen[bytes]:
        """Start a worker."""
        return self._start("worker", self.address, "--nthreads", threads, *words, **environment)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self, kind: str, *words: object, **environment: str | None) -> subprocess.Popen[bytes]:
        number = len(self._processes)
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **environment}
        folder = self._folder / f"{number}-{kind}"
        folder.mkdir()
        words = (*words, "--no-dashboard", *(("--local-directory", folder) if kind == "worker" else ()))
        with open(self._folder / f"{number}-{kind}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", kind, *map(str, words)],
                env={name: value for name, value in settings.items() if value is not None},
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process


@contextmanager
def dask_cluster(folder: Path, *, workers: int = 0, **environment: str | None) -> Iterator[DaskCluster]:
    """A cluster that ends with the context."""
    cluster = DaskCluster(folder, workers=workers, **environment)
    try:
        yield cluster
    finally:
        cluster.close()


def child_of(process: subprocess.Popen[bytes]) -> int:
    """The number of the process in which a worker runs its tasks."""
    found: list[int] = []

    def look() -> bool:
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parent = file.read_text().rpartition(")")[2].split()[1]
                if parent == str(process.pid) and b"spawn_main" in (file.parent / "cmdline").read_bytes():
                    found.append(int(file.parent.name))
        return bool(found)

    wait_for(look)
    return found[0]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return as soon as the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
