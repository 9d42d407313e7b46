"""CUDA kernels on the CPU with their synchronization, by the emulator ``cuda_emulator.h``.

A seed fixes in which order threads run and when asynchronous operations take effect, so that a missing barrier or
wait gives wrong numbers, or a deadlock, with some seeds. The header says what is found and what is not.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HEADER = Path(__file__).with_name("cuda_emulator.h")
COMPILED = Path(tempfile.gettempdir()) / "gpumlp-host-kernels"
KERNEL = r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\('
FLAGS = (
    *("-std=c++20", "-O2", "-g1", "-fPIC", "-w", "-fno-strict-aliasing", "-fno-optimize-sibling-calls"),
    *("-DGPUMLP_HOST", f"-I{HEADER.parent}", "-include", str(HEADER)),
)
SCHEDULES = 12  # seeds 0 .. 11: every order of threads with every time of asynchronous effects
MOST_DECISIONS = 10**9
MESSAGE_BYTES = 20_000


class EmulationError(Exception):
    """A kernel broke a rule of the device, or its threads wait for each other for ever; the message says where."""


class Launch(ctypes.Structure):
    """``struct Launch`` of the header."""

    _fields_ = (
        *(("grid", ctypes.c_uint32 * 2), ("threads", ctypes.c_uint32), ("shared_bytes", ctypes.c_uint32)),
        *(("sum_bits", ctypes.c_int32), ("seed", ctypes.c_uint64), ("limit", ctypes.c_uint64)),
    )


class EmulatedModule:
    """The kernels of a CUDA source, compiled for the emulator.

    Args:
        source: the kernels are its ``extern "C" __global__`` functions.
        defined: values of macros.
    """

    def __init__(self, source: str, defined: Mapping[str, object] | None = None) -> None:
        self.source = source
        kernels = "\n".join(f"CUDA_HOST_KERNEL({name})" for name in re.findall(KERNEL, source))
        definitions = (f"-D{name}={value}" for name, value in (defined or {}).items())
        self.path = compiled(f"{source}\n{kernels}\n", (*definitions, str(emulator())), "so")
        self.library = ctypes.CDLL(str(self.path))

    def launch(
        self,
        kernel: str,
        arguments: Sequence[Any],
        *,
        threads: int,
        grid: tuple[int, int] = (1, 1),
        shared_bytes: int = 0,
        seed: int = 0,
        sum_bits: int = 1,
        names: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Run one launch with all of its blocks resident.

        Args:
            kernel: its name.
            arguments: arrays, passed as pointers, and scalars of NumPy.
            threads: of a block.
            grid: blocks in x and in y.
            shared_bytes: dynamic shared memory of a block.
            seed: of the schedule.
            sum_bits: bits that tensor cores keep below a float's last bit; negative for exact sums.
            names: arrays by the names that messages call them.

        Raises:
            EmulationError: with what was found.
        """
        values = [
            ctypes.c_void_p(value.ctypes.data)
            if isinstance(value, np.ndarray)
            else np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
            for value in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        launch = Launch(grid, threads, shared_bytes, sum_bits, seed, MOST_DECISIONS)
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        run = getattr(self.library, f"launch_{kernel}")
        if run(pointers, ctypes.byref(launch), message, MESSAGE_BYTES):
            raise EmulationError(f"seed {seed}: {self._explain(message.value.decode(), names or {})}")

    def _explain(self, message: str, names: Mapping[str, np.ndarray]) -> str:
        """Replace code addresses in a message by source lines, and data addresses by elements of arrays."""

        def element(match: re.Match[str]) -> str:
            for name, array in names.items():
                offset = int(match[1], 16) - array.ctypes.data
                if 0 <= offset < array.nbytes:
                    return f"{name}[{offset // array.itemsize}]"
            return match[0]

        message = re.sub(r"\+(0x[0-9a-f]+)", lambda match: self._line(match[1]), message)
        return re.sub(r"global (0x[0-9a-f]+)", element, message)

    def _line(self, address: str) -> str:
        """The line of the source at an address: the outermost function that it was inlined into."""
        if shutil.which("addr2line") is None:
            return address
        command = ["addr2line", "-i", "-e", str(self.path), address]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        numbers = re.findall(r"source\.cpp:(\d+)", found)
        if not numbers:
            return address
        return f"line {numbers[-1]}: {self.source.splitlines()[int(numbers[-1]) - 1].strip()}"


@functools.cache
def emulator() -> Path:
    """The emulator itself, compiled."""
    return compiled("", ("-c", "-DCUDA_HOST_IMPLEMENTATION"), "o")


def compiled(text: str, options: Sequence[str], kind: str) -> Path:
    """An object file ("o") or a library ("so") of a C++ text with the emulator's header, cached on disk."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: the emulator of a GPU cannot be compiled")
    key = hashlib.sha256("\0".join((text, *options, *FLAGS, HEADER.read_text())).encode()).hexdigest()[:16]
    path = COMPILED / f"{key}.{kind}"
    if not path.exists():
        COMPILED.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=COMPILED) as folder:
            source, out = Path(folder) / "source.cpp", Path(folder) / "out"
            source.write_text(text)
            shared = ["-shared"] if kind == "so" else []
            command = [compiler, *FLAGS, *shared, str(source), *options, "-o", str(out), "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            errors = [line for line in done.stderr.splitlines() if " error: " in line]
            assert done.returncode == 0, "; ".join(errors) or done.stderr
            out.replace(path)
    return path
