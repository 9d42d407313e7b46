"""NVIDIA GPUs, driven by CuPy: the only module that imports it.

Importing this module imports CuPy, so only `get_backend` and `available_devices` do, and only when a GPU
is asked for.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import cupy
import numpy.typing as npt

from .base import DeviceError, HostArray, Memory
from .cublaslt import Products
from .cuda_graphs import GraphRunner
from .cuda_operations import CudaOperations
from .persistent import PersistentRunner
from .rules import Array

_TF32_SINCE = 80  # compute capability 8.0
_DRIVERS = {"cupy", "cupy_backends", "nvmath"}  # packages whose own exceptions tell of a device that failed


def device_count() -> int:
    """How many GPUs the driver shows.

    Raises:
        DeviceError: no usable driver, or no GPU.
    """
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:  # CuPy raises several types here, by version and by cause
        try:
            driver = int(cupy.cuda.runtime.driverGetVersion())
        except Exception:
            driver = 0
        if driver == 0:
            raise DeviceError(
                f"CuPy {cupy.__version__} is installed, but there is no NVIDIA driver",
                "install one (nvidia-smi shows whether it works), or take the device cpu",
            ) from error
        raise DeviceError(
            f"CuPy {cupy.__version__} cannot use the NVIDIA driver, which supports CUDA "
            f"{driver // 1000}.{driver % 1000 // 10}: {error}",
            "update the driver, or install the extra for its CUDA version (pip install '.[cuda12]' or "
            "'.[cuda13]'), or take the device cpu",
        ) from error
    if count == 0:
        raise DeviceError(
            "the NVIDIA driver works, but shows no GPU",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or take the device cpu",
        )
    return count


class CupyBackend(CudaOperations):
    """One NVIDIA GPU. Arrays are `cupy.ndarray` on that device, and operations are asynchronous.

    Args:
        index: which GPU.
        matmul_precision: of float32 matrix products: ``"highest"`` is float32, whatever CUPY_TF32 says;
            ``"high"`` is TF32, on cards that have it (compute capability 8.0 and above).
        cuda_graphs: ``"auto"`` or ``"off"``, see `GraphRunner`.
        persistent_kernel: ``"on"`` or ``"off"``, see `PersistentRunner`.
    """

    def __init__(
        self,
        index: int,
        *,
        matmul_precision: str = "highest",
        cuda_graphs: str = "auto",
        persistent_kernel: str = "off",
    ) -> None:
        count = device_count()
        if index >= count:
            present = ", ".join(f"cuda:{i} ({_name(i)})" for i in range(count))
            raise DeviceError(f"there is no device cuda:{index}", f"choose one of those there are: {present}, cpu")
        self.index = index
        self.name = f"cuda:{index}"
        self.device_name = _name(index)
        self.xp = cupy
        self.tf32 = False
        self.graphs = GraphRunner(self) if cuda_graphs == "auto" else None
        self.persistent = PersistentRunner(self) if persistent_kernel == "on" else None
        self._products: list[Products | None] = []  # looked for when a product is first asked for
        try:
            capability = int(cupy.cuda.Device(index).compute_capability)
            self.tf32 = matmul_precision == "high" and capability >= _TF32_SINCE
            with self.activate():
                ones = cupy.ones((2, 2), dtype=cupy.float32)
                (ones @ ones).sum().item()  # needs cuBLAS, compiles a kernel and launches it
                self.kernels(ones.dtype)
        except Exception as failure:
            error = failure.__cause__ if isinstance(failure, DeviceError) else failure
            raise DeviceError(
                f"{self.name} ({self.device_name}) is there, but a first computation on it failed: "
                f"{type(error).__name__}: {error}",
                "reinstall CuPy with NVIDIA's libraries (pip install '.[cuda13]' or '.[cuda12]'), or take the "
                "device cpu",
            ) from failure

    def activate(self) -> AbstractContextManager[Any]:
        return self._active()

    @contextmanager
    def _active(self) -> Iterator[None]:
        try:
            with cupy.cuda.Device(self.index), _float32_products(self.tf32):
                yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _DRIVERS or isinstance(error, MemoryError):
                raise  # not the device's; CuPy's own lack of memory is a MemoryError already
            raise DeviceError(
                f"{self.name} ({self.device_name}) failed: {type(error).__name__}: {error}",
                "check it with nvidia-smi and start again (trainings go on with --resume), or take the device cpu",
            ) from error

    def products(self) -> Products | None:
        if not self._products:
            self._products.append(_find_products(self.tf32))
        return self._products[0]

    def owns(self, array: object) -> bool:
        return isinstance(array, cupy.ndarray)

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        with self.activate():
            if isinstance(array, cupy.ndarray) and array.device.id != self.index:
                array = array.copy()  # onto the active device
            return cupy.asarray(array, dtype=dtype, order="C")

    def to_numpy(self, array: Array) -> HostArray:
        with self.activate():
            host: HostArray = cupy.asnumpy(array)
        return host

    def synchronize(self) -> None:
        with self.activate():
            cupy.cuda.Device(self.index).synchronize()

    def memory(self) -> Memory:
        free, total = cupy.cuda.Device(self.index).mem_info
        return Memory(int(free), int(total))


def _find_products(tf32: bool) -> Products | None:
    """cuBLASLt by NVIDIA's bindings, where they are installed."""
    if importlib.util.find_spec("nvmath") is None:
        return None
    try:
        from nvmath import bindings

        return Products(cupy, tf32, bindings)
    except Exception as error:  # a broken installation can raise anything; CuPy's products are as good
        warnings.warn(f"nvmath-python is installed, but cannot be used: {error}", RuntimeWarning, stacklevel=2)
        return None


@contextmanager
def _float32_products(tf32: bool) -> Iterator[None]:
    """TF32 or float32 in CuPy's own products of float32 matrices, for as long as the context lasts.

    CuPy has one such setting for the whole process and no public way to it.
    """
    linalg = cupy._core._routines_linalg
    wanted = linalg.COMPUTE_TYPE_TF32 if tf32 else linalg.COMPUTE_TYPE_DEFAULT
    before = linalg.get_compute_type("float32")
    if before == wanted:
        yield
        return
    linalg.set_compute_type("float32", wanted)
    try:
        yield
    finally:
        linalg.set_compute_type("float32", before)


def _name(index: int) -> str:
    name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)
