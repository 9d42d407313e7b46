"""The CUDA kernels on the CPU: CuPy's `RawModule` with g++ instead of NVRTC.

Tests run the sources of the kernels with the code that launches them on a GPU. The fake is stricter than a GPU,
which does not check arguments: a scalar or an array of another type, an array that is not contiguous, a wrong
number of arguments, or an address of memory that has been freed is an error.

A source that calls functions of ``cuda_emulator.h`` is run by the emulator, the others by ``host_cuda.h``.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.emulator import COMPILED, EmulatedModule, EmulationError
from tests.strict_device import StrictArray

HEADER = Path(__file__).with_name("host_cuda.h")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE")
# without the last one, the C library would prevent switching fibers
KERNEL = (
    r'extern "C" __global__ (?:__launch_bounds__\([^)]*\) )?void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)'
)
TYPES = {
    "int64": np.int64,
    "uint64": np.uint64,
    "int": np.int32,
    "unsigned": np.uint32,
    "bool": np.bool_,
    "unsigned char": np.uint8,
    "float": np.float32,
    "double": np.float64,
    "u8": np.uint8,
}
# what makes threads wait for each other, by itself or within a function of blocks.cuh
WAITING = re.compile(r"__syncthreads|__shfl|sum_column\(|sum_over_\w+\(|is_last_block\(|distort\(")
UNASKED_SHARED_BYTES = 48 * 1024


class Parameter(NamedTuple):
    """A parameter of a kernel, as declared in the source."""

    name: str
    type: type[np.generic]
    pointer: bool


def signatures(source: str, defined: dict[str, str]) -> dict[str, list[Parameter]]:
    """The parameters of each kernel in the source."""
    real = {"float": np.float32, "double": np.float64}[defined.get("REAL", "float")]
    types = {**TYPES, "real": real}
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


def hashed(text: str) -> str:
    return hashlib.sha256("\0".join((text, *FLAGS)).encode()).hexdigest()[:16]


@functools.cache
def precompiled_header(compiler: str) -> Path:
    """A copy of ``host_cuda.h``; g++ reads its precompiled form instead, ``.gch`` beside it, if there is one."""
    header = COMPILED / f"{hashed(HEADER.read_text())}.h"
    precompiled = header.with_suffix(".h.gch")
    if not precompiled.exists():
        COMPILED.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=COMPILED) as folder:
            copy, out = Path(folder) / "copy.h", Path(folder) / "out.gch"
            copy.write_text(HEADER.read_text())
            subprocess.run([compiler, *FLAGS, "-x", "c++-header", str(copy), "-o", str(out)], check=False)
            copy.replace(header)
            if out.exists():
                out.replace(precompiled)
    return header


def compile_for_the_host(source: str, defined: dict[str, str]) -> ctypes.CDLL:
    """A library of the source, with ``run_KERNEL(grid, block, shared_bytes, ...)`` per kernel."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: the CUDA kernels cannot be run on the processor")
    wrappers = []
    for name, words in re.findall(KERNEL, source):
        names = ", ".join(word.split()[-1] for word in words.split(","))
        barriers = "true" if WAITING.search(body_of(source, name)) else "false"
        wrappers.append(
            f'extern "C" void run_{name}(const unsigned* grid, const unsigned* block, unsigned shared, {words}) '
            f"{{ host::launch(grid, block, {barriers}, shared, [=] {{ {name}({names}); }}); }}"
        )
    source = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = (\1*)host::shared_memory();", source)
    definitions = [f"#define {name} {value}" for name, value in defined.items()]
    text = "\n".join([f'#include "{precompiled_header(compiler)}"', *definitions, source, *wrappers])
    library = COMPILED / f"{hashed(text)}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=COMPILED) as folder:
            (Path(folder) / "kernels.cpp").write_text(text)
            command = [compiler, *FLAGS, "-shared", "kernels.cpp", "-o", "out.so"]
            subprocess.run(command, cwd=folder, check=True)
            (Path(folder) / "out.so").replace(library)
    return ctypes.CDLL(str(library))


class HostModule:
    """CuPy's `RawModule`, on the CPU."""

    def __init__(
        self, xp: Any, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool = False
    ) -> None:
        if enable_cooperative_groups:  # as in CuPy before 14.2, which added --device-c
            raise RuntimeError("Relocatable PTX code is requested, but cudadevrt is not found.")
        self.defined = dict(option[2:].split("=", 1) for option in options if option.startswith("-D"))
        self.xp, self.code = xp, code
        self.signatures = signatures(code, self.defined)
        self.function: type[HostFunction]
        if "cuda_host::" in code:
            self.networks = network_fields(code)
            size = f"static_assert(sizeof(Network) == {network_dtype(self.networks).itemsize});"
            self.emulated = EmulatedModule(f"{code}\n{size}", self.defined)
            self.function = EmulatedFunction
        else:
            self.shared_object = compile_for_the_host(code, self.defined)
            self.function = HostFunction

    def get_function(self, name: str) -> HostKernel:
        return HostKernel(self, name)


class HostKernel:
    """CuPy's `RawKernel`: called with a grid, a block and the arguments, for a launch that is not cooperative."""

    def __init__(self, module: HostModule, name: str) -> None:
        self.kernel = module.function(self, module, name)
        self.max_dynamic_shared_size_bytes = UNASKED_SHARED_BYTES

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], **keywords: Any
    ) -> None:
        self.kernel(grid, block, args, enable_cooperative_groups=False, **keywords)


class HostFunction:
    """CuPy's `Function`, the attribute ``kernel`` of a `RawKernel`: supports cooperative launches."""

    __slots__ = ("_module", "_name", "_owner", "_parameters", "ptr", "resident")

    def __init__(self, owner: HostKernel, module: HostModule, name: str) -> None:
        self._owner, self._module, self._name = owner, module, name
        self._parameters = module.signatures[name]
        self.ptr = 1 + len(module.xp.functions)
        self.resident = int(module.defined.get("RESIDENT", 1))  # blocks for which there are registers
        module.xp.functions[self.ptr] = self

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared_mem: int = 0,
        stream: None = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        xp = self._module.xp
        assert type(grid) is type(block) is tuple
        assert len(grid) <= 3
        assert np.prod(block) <= 1024
        assert max(grid[1:], default=1) <= 65535
        assert min((*grid, *block)) >= 1
        assert shared_mem <= self._owner.max_dynamic_shared_size_bytes
        if enable_cooperative_groups:
            facts = xp.cuda.Device().attributes
            assert shared_mem <= facts["MaxSharedMemoryPerBlockOptin"]
            most = xp.occupancy(self.ptr, int(np.prod(block)), shared_mem) * facts["MultiProcessorCount"]
            if np.prod(grid) > most:
                raise ValueError(f"The specified grid size {grid} exceeds the limit ({most})")
        name, parameters = self._name, self._parameters
        assert len(args) == len(parameters), f"{name}: {len(args)} arguments for {parameters}"
        xp.launched(name, self._prepare(grid, block, args, shared_mem, enable_cooperative_groups))

    def _prepare(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared: int, cooperative: bool
    ) -> Callable[[], None]:
        """The launch, as a function."""
        assert not cooperative, "no block waits for another"
        pairs = zip(self._parameters, args, strict=True)
        values = [self._convert(parameter, value) for parameter, value in pairs]
        extents = [(ctypes.c_uint * 3)(*(*extent, 1, 1)[:3]) for extent in (grid, block)]
        library = self._module.shared_object
        library.set_order(self._module.xp.thread_order)
        function = getattr(library, f"run_{self._name}")
        function.restype = None
        return lambda: function(*extents, ctypes.c_uint(shared), *values)

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


# -- The persistent kernel, whose argument is an array of `struct Network` ---------------------------------------


class Pointer(NamedTuple):
    """An address that the program has asked for: of an array, which is part of the memory of another."""

    start: int
    stop: int
    contiguous: bool
    memory: weakref.ref[np.ndarray]

    @classmethod
    def to(cls, data: np.ndarray) -> Pointer:
        memory = data
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        start = int(data.ctypes.data)
        return cls(start, start + data.nbytes, data.flags.c_contiguous, weakref.ref(memory))


class Field(NamedTuple):
    """A member of ``struct Network``, or the elements of one that is an array."""

    name: str
    type: str
    pointer: bool
    constant: bool  # what it points to
    shape: tuple[int, ...]


C_TYPES = {"u16": "u2", "u32": "u4", "u64": "u8", "i64": "i8", "int": "i4", "float": "f4"}
# The types of the arrays that a field may point to; a pair of floats is one uint64.
POINTED = {"u16": ("u2",), "i64": ("i8",), "float": ("f4",), "float2": ("u8",), "double": ("f8",)}
ANY_TARGETS_OR_SCORES = {"targets": ("i8", "f4"), "scores": ("?", "f4")}
MARGIN = 512  # bytes before and after the copy of an array; a multiple of the alignment of CuPy's allocations


def network_fields(source: str) -> list[Field]:
    """The members of ``struct Network``."""
    text = re.search(r"struct Network \{(.*?)\n\};", source, re.DOTALL)[1]
    fields = []
    for declaration in re.sub(r"//.*", "", text).split(";"):
        if match := re.fullmatch(r"\s*(const )?(\w+)(\*?)\s+(.*?)\s*", declaration, re.DOTALL):
            constant, kind, star, names = match.groups()
            for name, count in re.findall(r"(\w+)(?:\[(\d+)\])?", names):
                fields.append(Field(name, kind, star == "*", constant is not None, (int(count),) if count else ()))
    return fields


def network_dtype(fields: list[Field]) -> np.dtype:
    """The type of the elements in NumPy, with the layout of C."""
    types = [(field.name, "u8" if field.pointer else C_TYPES[field.type], field.shape) for field in fields]
    return np.dtype(types, align=True)


class EmulatedFunction(HostFunction):
    """A kernel that trains networks, run by the emulator: ``thread_order`` is the seed."""

    __slots__ = ()

    def _prepare(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared: int, cooperative: bool
    ) -> Callable[[], None]:
        assert cooperative, "blocks wait for others that need not be there"
        xp, module, fields = self._module.xp, self._module, self._module.networks
        address = self._convert(self._parameters[0], args[0]).value
        per_network = int(module.defined.get("REPLICAS", 1)) * int(module.defined["BLOCKS"])
        assert grid[0] == 1
        assert len(grid) == 2
        assert grid[1] % per_network == 0, f"{grid[1]} blocks for networks of {per_network}"
        records = np.empty(grid[1] // per_network, network_dtype(fields))
        assert args[0]._data.nbytes == records.nbytes, f"{args[0]._data.nbytes} bytes, expected {records.nbytes}"

        def run() -> None:
            ctypes.memmove(records.ctypes.data, address, records.nbytes)
            copies = GuardedCopies(xp)
            for number, record in enumerate(records):
                for field in (field for field in fields if field.pointer):
                    addresses = np.atleast_1d(record[field.name])
                    for index, one in enumerate(addresses):
                        where = f"networks[{number}].{field.name}{f'[{index}]' if field.shape else ''}"
                        addresses[index] = copies.address(field, int(one), where)
                    record[field.name] = addresses.reshape(field.shape)
            options = {"grid": grid, "threads": block[0], "shared_bytes": shared, "seed": xp.thread_order}
            module.emulated.launch(self._name, [records], **options, names=copies.names)
            copies.write_back()

        return run


class GuardedCopies:
    """Copies of the arrays that a launch may use, aligned as on a GPU; a write outside of them is an error."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._copies: dict[int, tuple[np.ndarray, np.ndarray, set[str]]] = {}  # by address
        self.names: dict[str, np.ndarray] = {}

    def address(self, field: Field, address: int, where: str) -> int:
        """The address in the copy for an address in a device array; 0 stays 0."""
        if address == 0:
            return 0
        types = [np.dtype(kind) for kind in ANY_TARGETS_OR_SCORES.get(field.name) or POINTED[field.type]]
        for (_, dtype), pointer in self._xp.pointers.items():
            memory = pointer.memory()
            if memory is not None and dtype in types and pointer.start <= address < pointer.stop:
                assert pointer.contiguous, f"{where} has gaps"
                break
        else:
            raise AssertionError(f"{where} is not the address of an array of {types} that is still there")
        start = memory.ctypes.data
        if start not in self._copies:
            original = np.frombuffer((ctypes.c_char * memory.nbytes).from_address(start), np.uint8)
            buffer = np.full(memory.nbytes + 3 * MARGIN, 0xFF, np.uint8)  # NaN
            buffer = buffer[-buffer.ctypes.data % MARGIN :][: memory.nbytes + 2 * MARGIN]
            buffer[MARGIN:-MARGIN] = original
            self._copies[start] = original, buffer, set()
        original, buffer, writers = self._copies[start]
        if not field.constant:
            writers.add(where)
        copied = buffer[MARGIN + address - start : -MARGIN]
        self.names.setdefault(where, copied[: len(copied) // dtype.itemsize * dtype.itemsize].view(dtype))
        return int(copied.ctypes.data)

    def write_back(self) -> None:
        """Copy the results to the arrays."""
        for original, buffer, writers in self._copies.values():
            names = [name for name, array in self.names.items() if np.shares_memory(array, buffer)]
            margins = np.r_[buffer[:MARGIN], buffer[-MARGIN:]]
            if (margins != 0xFF).any():
                raise EmulationError(f"the kernel wrote outside of {' or '.join(names)}")
            if not writers and not np.array_equal(buffer[MARGIN:-MARGIN], original):
                raise EmulationError(f"the kernel wrote to {' or '.join(names)}, which it may only read")
            original[:] = buffer[MARGIN:-MARGIN]
