"""What this machine offers to gpumlp: ``python -m gpumlp.info``, also installed as ``gpumlp-info``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import threadpoolctl

import gpumlp

from . import command
from .backends import Backend, available_devices, blas_kernel, choose_device
from .backends.openblas import numpy_openblas
from .data import mnist_folders
from .extras import EXTRAS

PROGRAM = "gpumlp-info"
_LIBRARIES = ("cupy", "nvmath-python", "safetensors", "tyro", "rich", "requests", "threadpoolctl")


@dataclass(frozen=True)
class Options:
    """Show versions, devices, ways of running steps, BLAS, threads, folders and optional parts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the facts, and return the exit code."""

    def work() -> int:
        command.parse(Options, PROGRAM, arguments)
        rows = list(facts())
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            print(f"{name:<{width}}  {text}")
        return command.OK

    return command.run(PROGRAM, work)


def facts() -> Iterator[tuple[str, str]]:
    """Pairs of a name and a text."""
    yield "gpumlp", gpumlp.__version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "numpy", np.__version__
    for library in _LIBRARIES:
        yield library, version(library) or "not installed"
    for device in available_devices():
        memory = ""
        if device.memory is not None:
            memory = f", {device.memory.free / 2**30:.1f} of {device.memory.total / 2**30:.1f} GiB free"
        yield f"device {device.name}", device.description + memory
    backend, reason = choose_device()
    yield "device auto", f"{backend.name}; {reason}"
    yield from executions(backend, reason)
    yield "processors", f"{usable_processors()} usable"
    yield from _blas()
    yield from mnist_folders()
    for name, extra in EXTRAS.items():
        missing = extra.missing
        state = f'pip install ".[{name}]" ({", ".join(missing)} missing)' if missing else "installed"
        yield f"extra {name}", f"{state}: {extra.purpose}"


def executions(backend: Backend, reason: str) -> Iterator[tuple[str, str]]:
    """The ways of running steps that ``--execution`` can name, and what is missing for them.

    Args:
        backend: of the device that ``auto`` chooses.
        reason: why it was chosen.
    """
    on_gpu = backend.name != "cpu"
    graphs = "available" if version("nvmath-python") else 'needs nvmath-python: pip install ".[nvmath]"'
    yield "execution persistent", "available for small networks" if on_gpu else f"not available: {reason}"
    yield "execution graphs", graphs if on_gpu else f"not available: {reason}"
    yield "execution eager", "available"


def version(library: str) -> str | None:
    """The installed version of a library, also under the names of CuPy's wheels; None without it."""
    for package in (library, f"{library}-cuda13x", f"{library}-cuda12x"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def usable_processors() -> int:
    """Number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _blas() -> Iterator[tuple[str, str]]:
    """The BLAS libraries in this process; NumPy's is the one that training uses."""
    libraries = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    for pool in libraries:
        yield (
            "blas",
            f"{pool['internal_api']} {pool['version']}, kernel {pool.get('architecture', 'unknown')}",
        )
        yield "blas threads", str(pool["num_threads"])
    if libraries:
        own = next((pool for pool in libraries if "numpy" in pool["filepath"]), libraries[0])
        in_effect = own.get("architecture")
        if numpy_openblas() is not None:
            yield "cpu training", "adds gradients in place and chooses threads by the size of a step"
        else:
            yield "cpu training", "uses NumPy alone: adding gradients in place needs the OpenBLAS of NumPy's wheel"
        yield "blas kernel", blas_kernel.describe(blas_kernel.CHOICE, in_effect, blas_kernel.read_processor())
    else:
        yield (
            "blas",
            "none that threadpoolctl knows; NumPy's build says: "
            + str(
                np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {}).get("name", "unknown")
            ),
        )


if __name__ == "__main__":
    sys.exit(main())
