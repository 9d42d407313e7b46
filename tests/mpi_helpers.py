"""Helpers for tests that start the real mpiexec."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_helpers import ROOT

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def require_mpi() -> pytest.MarkDecorator:
    """A mark for a module; skips it where mpi4py or mpiexec is missing."""
    pytest.importorskip("mpi4py", reason='mpi4py is not installed: pip install ".[mpi]"')
    return pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec: pip install mpich")


def start(ranks: int, *words: object, **options: Any) -> subprocess.Popen[str]:
    """A module of Python in so many processes, in a session of its own, as from a terminal.

    ``:`` among the words begins another command line, for one process more.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **options.pop("env", {})}
    arguments = [str(MPIEXEC), "-n", str(ranks), sys.executable, "-m"]
    for word in map(str, words):
        arguments += [":", "-n", "1", sys.executable, "-m"] if word == ":" else [word]
    return subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, without mpiexec's own lines; it must not hang."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    return process.returncode, *(
        "".join(line for line in text.splitlines(True) if not line.startswith("[mpiexec@")) for text in (out, err)
    )
