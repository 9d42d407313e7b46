"""A fake of CuPy on the CPU: the strict device with kernels, streams and captures, for `CudaBackend`."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import gpumlp.backends
from gpumlp.backends.cuda.cublaslt import Products
from tests.host_cublaslt import host_bindings
from tests.host_kernels import HostFunction, HostModule, Pointer
from tests.strict_device import ALLOWED_KEYWORDS, StrictArray, StrictNamespace

NO_LAUNCH = {"empty", "empty_like", "dtype"}  # CuPy functions without a launch
REDUCTIONS = {"sum", "mean", "max", "min", "all", "any", "argmax", "argmin", "count_nonzero"}
COMPILED = {np.dtype(name) for name in ("float32", "float64", "int64", "uint8")}  # sums of uint8 are not used


class HostCupy(StrictNamespace):
    """NumPy's functions and `RawModule` under CuPy's rules, with a list of all launches."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = 1
        self.launches: list[str] = []
        self.capture: list[tuple[str, Any]] | None = None  # of a stream that is capturing
        self.allocator: Any = None
        self.products: list[int] = []  # the compute type of each matrix product
        self.compiled_reductions: list[str] = []  # reductions that CuPy would compile, which takes seconds each
        self.thread_order = 0  # of the threads of a kernel: 0, or a seed for a random order
        self.pointers: dict[tuple[int, np.dtype], Pointer] = {}  # that the program has asked for
        self.functions: dict[int, HostFunction] = {}  # by their address
        self.pinned: list[np.ndarray] = []
        self.reads: list[tuple[np.ndarray, np.ndarray]] = []  # copies to the host that no event has recorded
        self.busy = threading.RLock()  # one launch or copy at a time
        self.order: list[Any] = []  # of events, uploads, and what a test adds
        self.attributes = {
            "CooperativeLaunch": 0,  # 1 enables the persistent and the persistent kernel
            "ComputeCapabilityMajor": 9,
            "ComputeCapabilityMinor": 0,
            "MultiProcessorCount": 6,
            "MaxSharedMemoryPerBlockOptin": 227 * 1024,
            "MaxSharedMemoryPerMultiprocessor": 228 * 1024,
            "ReservedSharedMemoryPerBlock": 1024,
            "MaxThreadsPerMultiProcessor": 2048,
            "MaxRegistersPerMultiprocessor": 65536,
            "MaxBlocksPerMultiprocessor": 32,
        }
        self.ndarray, self.__version__ = StrictArray, "14 (a fake)"
        self._core = SimpleNamespace(_routines_linalg=ComputeTypes())
        self.cuda = SimpleNamespace(
            Device=lambda index=0: HostDevice(index, self),
            get_current_stream=lambda: SimpleNamespace(ptr=0 if self.capture is None else 1),
            Stream=lambda non_blocking: HostStream(self, non_blocking),
            Event=lambda **options: HostEvent(self, **options),
            alloc_pinned_memory=self.alloc_pinned_memory,
            using_allocator=lambda allocator: HostAllocator(self, allocator),
            MemoryPool=HostPool,
            driver=SimpleNamespace(occupancyMaxActiveBlocksPerMultiprocessor=self.occupancy),
            runtime=SimpleNamespace(
                getDeviceCount=lambda: self.devices, getDeviceProperties=lambda index: {"name": b"Host GPU"}
            ),
        )

    def RawModule(self, **arguments: Any) -> HostModule:
        if self.capture is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return HostModule(self, **arguments)

    def occupancy(self, function: int, block_size: int, shared_bytes: int) -> int:
        """Blocks of a function that are resident on a multiprocessor."""
        assert all(type(argument) is int for argument in (function, block_size, shared_bytes))
        facts = self.attributes
        shared = shared_bytes + facts["ReservedSharedMemoryPerBlock"]
        limits = [
            facts["MaxThreadsPerMultiProcessor"] // block_size,
            facts["MaxSharedMemoryPerMultiprocessor"] // shared,
        ]
        if function in self.functions:  # otherwise its registers are unknown
            limits.append(self.functions[function].resident)
        return min(limits)

    def address(self, data: np.ndarray) -> int:
        pointer = Pointer.to(data)
        self.pointers[pointer.start, data.dtype] = pointer
        return pointer.start

    def wrap(self, result: Any) -> Any:
        if self.allocator is not None and isinstance(result, np.ndarray) and result.base is None:
            self.allocator(result.nbytes)
        return super().wrap(result)

    def asarray(self, array: Any, dtype: Any = None, order: str = "C") -> StrictArray:
        if isinstance(array, StrictArray):
            data = np.asarray(array._data, dtype=dtype, order=order)
            return array if data is array._data else StrictArray(data, self)
        if self.capture is not None:
            raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
        self.ledger.host_writes += 1
        return StrictArray(np.array(array, dtype=dtype, order=order), self)

    def read(self, array: StrictArray) -> Any:
        if self.capture is not None:
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        return super().read(array)

    def asnumpy(self, array: StrictArray, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        if self.capture is not None:
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        self.ledger.host_reads += 1
        if blocking:
            self.ledger.waits += 1
            return array._data.copy()
        assert any(np.may_share_memory(out, memory) for memory in self.pinned), "CuPy would wait"
        self.reads.append((out, array._data.copy()))
        return out

    def matmul(self, a: StrictArray, b: StrictArray, out: StrictArray | None = None) -> StrictArray:
        if self.capture is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        self.products.append(self._core._routines_linalg.get_compute_type("float32"))
        return self.__getattr__("matmul")(a, b) if out is None else self.__getattr__("matmul")(a, b, out=out)

    def alloc_pinned_memory(self, size: int) -> Any:
        self.pinned.append(np.full(-(-size // 512) * 512, 255, np.uint8))
        return memoryview(self.pinned[-1])

    def upload(self, source: np.ndarray, target: np.ndarray, stream: HostStream) -> None:
        """Copy from the host on a stream: as late as possible, when somebody waits for it."""
        assert (source.dtype, source.shape) == (target.dtype, target.shape)
        assert target.flags.c_contiguous
        assert any(np.may_share_memory(source, memory) for memory in self.pinned), "CuPy would copy it at once"
        self.order.append(Upload(target, stream.after))
        stream.work.append(lambda: np.copyto(target, source))

    def launched(self, name: str, run: Any) -> Any:
        """Run a launch; during a capture, record it with its addresses and scalars."""
        if self.capture is not None:
            self.capture.append((name, run))
            return None
        self.launches.append(name)
        with self.busy:
            return run()

    def __getattr__(self, name: str) -> Any:
        function = super().__getattr__(name)
        if self.capture is not None and name in ("empty", "empty_like"):
            return super().__getattr__(name.replace("empty", "zeros"))  # values that are in range as indices, too
        if not callable(function) or isinstance(function, type) or name in NO_LAUNCH:
            return function
        if self.capture is not None:
            return lambda *arguments, **keywords: self._captured(name, arguments, keywords)
        if name in REDUCTIONS:
            return lambda *arguments, **keywords: self._reduced(name, function, arguments, keywords)
        return lambda *arguments, **keywords: self.launched(name, lambda: function(*arguments, **keywords))

    def _captured(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """A function in a capture: recorded with its arrays; at once only for the shape of a new result."""
        function = getattr(np, name)
        host, options = self.unwrap(arguments), {key: self.unwrap(value) for key, value in keywords.items()}
        super().__getattr__(name)  # checked as outside a capture
        unknown = set(keywords) - ALLOWED_KEYWORDS
        if unknown:
            raise TypeError(f"{name}() got an unexpected keyword argument {unknown.pop()!r}")
        if "out" in keywords or name == "copyto":
            self.change(name, lambda: function(*host, **options))
            return keywords.get("out")
        return self.compute(
            name, lambda: function(*host, **options), *(a for a in arguments if isinstance(a, StrictArray))
        )

    def compute(self, name: str, function: Any, *sources: StrictArray) -> StrictArray:
        if self.capture is None:
            return super().compute(name, function, *sources)
        result = np.asarray(function())
        if any(np.may_share_memory(result, source._data) for source in sources):
            return StrictArray(result, self)
        self.capture.append((name, lambda: np.copyto(result, function())))
        return self.wrap(result)

    def change(self, name: str, function: Any) -> None:
        if self.capture is None:
            super().change(name, function)
        else:
            self.capture.append((name, function))

    def _reduced(self, name: str, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """A reduction. Along the last axes CuPy uses CUB, precompiled (``cub.pyx``) or compiled on first use."""
        array, dtype = arguments[0], keywords.get("dtype")
        along_rows = keywords.get("axis") in (None, -1, array.ndim - 1)
        known = name in ("sum", "max", "min") and array.dtype in COMPILED and dtype in (None, array.dtype)
        if along_rows and array.flags.c_contiguous and not known:
            self.compiled_reductions.append(f"{name} of {array.dtype}")
        return self.launched(name, lambda: function(*arguments, **keywords))


class HostGraph:
    """The launches that a stream has captured."""

    def __init__(self, cupy: HostCupy, nodes: list[tuple[str, Any]]) -> None:
        self.cupy, self.nodes = cupy, nodes

    def launch(self) -> None:
        self.cupy.launches.append("graph")
        for _, run in self.nodes:
            run()


class HostStream:
    """CuPy's `Stream`; during a capture, launches are recorded instead of run."""

    def __init__(self, cupy: HostCupy, non_blocking: bool) -> None:
        assert non_blocking, "capturing on a blocking stream upsets the legacy default stream"
        self.cupy, self.current = cupy, False
        self.work: list[Any] = []  # not done yet
        self.after = 0  # what comes before this place of the order is complete before the work to come

    def __enter__(self) -> HostStream:
        self.current = True
        return self

    def __exit__(self, *error: object) -> None:
        assert self.cupy.capture is None, "a capture was begun and not ended"
        self.current = False

    def wait_event(self, event: HostEvent) -> None:
        assert event.stream is None, "only waiting for the default stream is modelled"
        self.after = max(self.after, event.place)

    def begin_capture(self) -> None:
        assert self.current
        self.cupy.capture = []

    def end_capture(self) -> HostGraph:
        nodes, self.cupy.capture = self.cupy.capture, None
        return HostGraph(self.cupy, nodes)


class Upload(NamedTuple):
    """A copy to the device, and the place in the order of what it waits for."""

    target: np.ndarray
    after: int


class HostEvent:
    """CuPy's `Event`. The default stream, None, is always done; others do their work when they are waited for."""

    def __init__(self, cupy: HostCupy, block: bool = False, disable_timing: bool = False) -> None:
        assert disable_timing, "events with times are slower"
        self.cupy, self.stream, self.place = cupy, None, None

    def record(self, stream: HostStream | None = None) -> None:
        assert self.cupy.capture is None or stream is not None
        self.stream = stream
        self.place = len(self.cupy.order) if stream is None else len(stream.work)
        self.reads, self.cupy.reads = self.cupy.reads, []

    def synchronize(self) -> None:
        assert self.place is not None, "not recorded"
        if self.reads:
            self.cupy.ledger.waits += 1
            for out, values in self.reads:
                out[...] = values
            return
        self.cupy.launches.append("wait")  # for what was launched before it was recorded
        if self.stream is not None:
            done, self.stream.work = self.stream.work[: self.place], self.stream.work[self.place :]
            with self.cupy.busy:
                for run in done:
                    run()


class HostAllocator:
    """CuPy's `using_allocator`."""

    def __init__(self, cupy: HostCupy, allocator: Any) -> None:
        self.cupy, self.allocator = cupy, allocator

    def __enter__(self) -> None:
        self.cupy.allocator = self.allocator

    def __exit__(self, *error: object) -> None:
        self.cupy.allocator = None


class HostPool:
    """CuPy's memory pools: counts the bytes that are allocated."""

    def __init__(self) -> None:
        self.bytes = 0

    def malloc(self, size: int) -> None:
        self.bytes += size


class HostDevice:
    """CuPy's `Device`: a context manager with attributes."""

    compute_capability = property(
        lambda self: "{ComputeCapabilityMajor}{ComputeCapabilityMinor}".format(**self.attributes)
    )
    mem_info = (2**30, 2**31)

    def __init__(self, index: int, cupy: HostCupy) -> None:
        self.id, self.cupy, self.attributes = index, cupy, cupy.attributes

    def __enter__(self) -> HostDevice:
        self.cupy.device_id = self.id
        self.errors = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        self.errors.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.errors.__exit__(*error)

    def synchronize(self) -> None:
        self.cupy.ledger.waits += 1


class ComputeTypes:
    """The setting of `cupy._core._routines_linalg`, with its numbers."""

    COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 = 1, 7

    def __init__(self) -> None:
        self.types = {"float32": self.COMPUTE_TYPE_DEFAULT}

    def get_compute_type(self, dtype: str) -> int:
        return self.types[dtype]

    def set_compute_type(self, dtype: str, compute_type: int) -> None:
        self.types[dtype] = compute_type


def host_products(cupy: HostCupy, tf32: bool = False, unknown: tuple[str, ...] = ()) -> Products:
    """Matrix products by the fake of cuBLASLt, which does not support some epilogues."""
    found = Products(cupy, tf32, host_bindings(cupy.launched, unknown))
    found.alignment = 4  # the alignment of NumPy's arrays
    return found


def load_cupy_backend(cupy: HostCupy) -> Any:
    """Import ``gpumlp.backends.cuda.backend`` with a fake of CuPy, and restore ``sys.modules``."""
    path = Path(gpumlp.backends.__file__).parent / "cuda" / "backend.py"
    specification = importlib.util.spec_from_file_location("gpumlp.backends.cuda.backend_on_the_host", path)
    module = importlib.util.module_from_spec(specification)
    before = sys.modules.get("cupy")
    sys.modules["cupy"] = cupy
    try:
        specification.loader.exec_module(module)
    finally:
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before
    return module


def host_cuda_backend(
    *,
    cublaslt: bool = False,
    unknown: tuple[str, ...] = (),
    cupy: HostCupy | None = None,
    index: int = 0,
    **options: Any,
) -> Any:
    """A `CudaBackend` on the CPU, including the kernels.

    Args:
        cublaslt: use the fake of cuBLASLt for matrix products.
        unknown: names of epilogues that it does not support.
        cupy: the fake of CuPy; None for a new one.
        index: of the GPU.
        options: of `CudaBackend`.
    """
    cupy = cupy or HostCupy()
    backend = load_cupy_backend(cupy).CudaBackend(index, **options)
    backend._products = [None]
    if cublaslt:
        backend._products = [host_products(cupy, backend.tf32, unknown)]
    backend.ledger, backend.device_name = cupy.ledger, "the CUDA kernels, compiled for the processor"
    cupy.launches.clear()
    return backend
