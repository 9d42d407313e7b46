"""The CUDA kernels on the CPU: CuPy's `RawModule` with g++ instead of NVRTC.

Tests run the source of ``kernels.cu`` and ``persistent.cu`` with the code that launches them on a GPU. The fake is
stricter than a GPU, which does not check arguments: a scalar or an array of another type, an array that is not
contiguous, or a wrong number of arguments is an error.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.strict_device import StrictArray

HEADER = Path(__file__).with_name("host_cuda.h")
COMPILED = Path(tempfile.gettempdir()) / "gpumlp-host-kernels"
KERNEL = r'extern "C" __global__ (?:__launch_bounds__\([^)]*\) )?void (\w+)\(([^)]*)\)'
TYPES = {
    "int64": np.int64,
    "uint64": np.uint64,
    "int": np.int32,
    "unsigned": np.uint32,
    "bool": np.bool_,
    "unsigned char": np.uint8,
}
# what makes threads wait for each other, by itself or within a function of blocks.cuh
WAITING = re.compile(r"__syncthreads|__shfl|sum_column\(|sum_over_\w+\(|is_last_block\(")
UNASKED_SHARED_BYTES = 48 * 1024


class Parameter(NamedTuple):
    """A parameter of a kernel, as declared in the source."""

    name: str
    type: type[np.generic]
    pointer: bool


def signatures(source: str, defined: dict[str, str]) -> dict[str, list[Parameter]]:
    """The parameters of each kernel in the source."""
    real = {"float": np.float32, "double": np.float64}[defined["REAL"]]
    types = {**TYPES, "real": real, "value": np.uint8 if defined.get("PIXELS") == "1" else real}
    found = {}
    for name, words in re.findall(KERNEL, source):
        parameters = []
        for word in words.split(","):
            base, star, parameter = re.fullmatch(r"\s*(?:const )?([\w ]+?)(\*?)\s+(\w+)\s*", word).groups()
            parameters.append(Parameter(parameter, types[base], star == "*"))
        found[name] = parameters
    return found


def body_of(source: str, function: str) -> str:
    """The source of a function, from its parameters on."""
    return re.search(rf" {function}\([^;{{]*\{{.*?\n\}}", source, re.DOTALL)[0]


def compile_for_the_host(source: str, defined: dict[str, str]) -> ctypes.CDLL:
    """A library of the source, with ``run_KERNEL(grid, block, cooperative, shared_bytes, ...)`` per kernel."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: the CUDA kernels cannot be run on the processor")
    wrappers = []
    for name, words in re.findall(KERNEL, source):
        names = ", ".join(word.split()[-1] for word in words.split(","))
        barriers = "true" if WAITING.search(body_of(source, name)) else "false"
        wrappers.append(
            f'extern "C" void run_{name}(const unsigned* grid, const unsigned* block, bool cooperative, '
            f"unsigned shared, {words}) {{ host::launch(grid, block, {barriers}, cooperative, shared, "
            f"[=] {{ {name}({names}); }}); }}"
        )
    source = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = (\1*)host::shared_memory();", source)
    definitions = [f"#define {name} {value}" for name, value in defined.items()]
    text = "\n".join([f'#include "{HEADER}"', *definitions, source, *wrappers])
    key = hashlib.sha256((text + HEADER.read_text()).encode()).hexdigest()[:16]
    library = COMPILED / f"{key}.so"
    if not library.exists():
        COMPILED.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=COMPILED) as folder:
            (Path(folder) / "kernels.cpp").write_text(text)
            command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
            command += ["-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]  # it would prevent switching fibers
            subprocess.run([*command, "kernels.cpp", "-o", "out.so"], cwd=folder, check=True)
            (Path(folder) / "out.so").replace(library)
    return ctypes.CDLL(str(library))


class HostModule:
    """CuPy's `RawModule`, on the CPU."""

    def __init__(
        self, xp: Any, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool = False
    ) -> None:
        if enable_cooperative_groups:  # as in CuPy before 14.2, which added --device-c
            raise RuntimeError("Relocatable PTX code is requested, but cudadevrt is not found.")
        defined = dict(option.removeprefix("-D").split("=") for option in options)
        self.xp, self.code = xp, code
        self.signatures = signatures(code, defined)
        self.shared_object = compile_for_the_host(code, defined)

    def get_function(self, name: str) -> HostKernel:
        return HostKernel(self, name)


class HostKernel:
    """CuPy's `RawKernel`: called with a grid, a block and the arguments, for a launch that is not cooperative."""

    def __init__(self, module: HostModule, name: str) -> None:
        self.kernel = HostFunction(self, module, name)
        self.max_dynamic_shared_size_bytes = UNASKED_SHARED_BYTES

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], **keywords: Any
    ) -> None:
        self.kernel(grid, block, args, enable_cooperative_groups=False, **keywords)


class HostFunction:
    """CuPy's `Function`, the attribute ``kernel`` of a `RawKernel`: supports cooperative launches."""

    __slots__ = ("_function", "_module", "_name", "_owner", "_parameters", "_waits")

    def __init__(self, owner: HostKernel, module: HostModule, name: str) -> None:
        self._owner, self._module, self._name = owner, module, name
        self._parameters = module.signatures[name]
        self._waits = " wait(" in body_of(module.code, name)
        self._function = getattr(module.shared_object, f"run_{name}")
        self._function.restype = None

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared_mem: int = 0,
        stream: None = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        assert type(grid) is type(block) is tuple
        assert len(grid) <= 3
        assert np.prod(block) <= 1024
        assert max(grid[1:], default=1) <= 65535
        assert min((*grid, *block)) >= 1
        assert shared_mem <= self._owner.max_dynamic_shared_size_bytes
        assert enable_cooperative_groups or not self._waits, "blocks wait for others that need not be there"
        if enable_cooperative_groups:
            facts = self._module.xp.cuda.Device().attributes
            assert shared_mem <= facts["MaxSharedMemoryPerBlockOptin"]
            if np.prod(grid) > facts["MultiProcessorCount"]:
                raise ValueError(f"The specified grid size {grid} exceeds the limit")
        name, parameters = self._name, self._parameters
        assert len(args) == len(parameters), f"{name}: {len(args)} arguments for {parameters}"
        values = [self._convert(parameter, value) for parameter, value in zip(parameters, args, strict=True)]
        extents = [(ctypes.c_uint * 3)(*(*extent, 1, 1)[:3]) for extent in (grid, block)]
        self._module.shared_object.set_order(self._module.xp.thread_order)
        cooperative, shared = ctypes.c_bool(enable_cooperative_groups), ctypes.c_uint(shared_mem)
        self._module.xp.launched(name, lambda: self._function(*extents, cooperative, shared, *values))

    def _convert(self, parameter: Parameter, value: Any) -> Any:
        """Convert an argument for C; an error where a GPU would misread it silently."""
        where = f"{self._name}: {parameter.name}"
        if not parameter.pointer:
            assert type(value) is parameter.type, f"{where} is {parameter.type}, got {type(value)}"
            return np.ctypeslib.as_ctypes_type(parameter.type)(value)
        if isinstance(value, np.uint64):
            assert value == 0, f"{where}: an address as a number, other than null"
            return ctypes.c_void_p(None)
        assert isinstance(value, StrictArray), f"{where} is an array, got {type(value)}"
        data = value._data
        assert data.dtype == parameter.type, f"{where} holds {parameter.type}, got {data.dtype}"
        assert data.flags.c_contiguous, f"{where} has gaps"
        return ctypes.c_void_p(data.ctypes.data)
