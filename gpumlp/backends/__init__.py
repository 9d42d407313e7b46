"""Devices. No other package depends on the array library in use."""

from __future__ import annotations

from . import blas_kernel  # isort: skip  # before NumPy
import importlib.util
import sys
from typing import Any, NamedTuple

from .base import (
    PIXEL_SCALE,
    Accumulation,
    Array,
    Backend,
    Connection,
    Copies,
    Copy,
    CudaActivation,
    DeviceError,
    Execution,
    ExecutionError,
    HostArray,
    Memory,
    Request,
    Step,
    StepRun,
    Totals,
    Uploads,
    check_dtype,
    reference_backend,
    stated,
)
from .distortion import WEIGHT_SUM, Warp
from .numpy import NumpyBackend, host_memory, is_device_array, to_host
from .philox import DROPOUT, Draws

__all__ = [
    "DROPOUT",
    "EXECUTIONS",
    "MATMUL_PRECISIONS",
    "PIXEL_SCALE",
    "WEIGHT_SUM",
    "Accumulation",
    "Array",
    "Backend",
    "Connection",
    "Copies",
    "Copy",
    "CudaActivation",
    "Device",
    "DeviceError",
    "Draws",
    "Execution",
    "ExecutionError",
    "HostArray",
    "Memory",
    "Request",
    "Step",
    "StepRun",
    "Totals",
    "Uploads",
    "Warp",
    "array_namespace",
    "available_devices",
    "blas_kernel",
    "check_device_name",
    "check_dtype",
    "get_backend",
    "host_memory",
    "is_device_array",
    "reference_backend",
    "require_gpus",
    "stated",
    "to_host",
]

MATMUL_PRECISIONS = ("highest", "high")
EXECUTIONS = ("auto", "persistent", "graphs", "eager")
_FORM = "'auto', 'cpu', 'cuda' or 'cuda:N'"


class Device(NamedTuple):
    """A usable device: its name, the hardware, and its memory (None for the CPU)."""

    name: str
    description: str
    memory: Memory | None


def check_device_name(name: object) -> str:
    """Return the name if it has the form of a device's name; the device need not exist.

    Raises:
        ValueError: it does not have this form.
    """
    if isinstance(name, str):
        kind, colon, index = name.partition(":")
        if name in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and index.isdecimal()):
            return name
    raise ValueError(f"device is expected to be {_FORM}, got {name!r}")


def get_backend(
    device: str | Backend = "auto",
    *,
    matmul_precision: str = "highest",
    execution: str = "auto",
    multiprocessors: int | None = None,
) -> Backend:
    """Return the backend of a device.

    Args:
        device: ``"cpu"``; ``"cuda"`` (the first GPU), ``"cuda:1"``, ...; or ``"auto"``, a usable GPU, otherwise
            the CPU. A `Backend` is returned unchanged.
        matmul_precision: of float32 matrix products on a GPU, named as in PyTorch: ``"highest"`` is float32;
            ``"high"`` is TF32, faster, with 10 mantissa bits in the factors (in the execution ``"persistent"``
            15, two bfloat16 parts). No effect on the CPU.
        execution: how training steps are run on a GPU. ``"persistent"`` runs many steps of a small network, or of
            many such networks, in one kernel launch; ``"graphs"`` launches many steps as one CUDA graph;
            ``"eager"`` launches every operation. ``"auto"`` selects the first of these that supports the step,
            with graphs first for batches of more than 256 samples of a network that is trained alone. Results of
            ``"persistent"`` differ from the others' by rounding. No effect on the CPU.
        multiprocessors: how many of a GPU's a network gets in the execution ``"persistent"``; results with
            different numbers differ by rounding. None: a number that follows from the network's shape, smaller for
            some networks among others.

    Raises:
        ValueError: the name or an option is invalid.
        DeviceError: the device cannot be used; the message says why and what to do.

    >>> get_backend("cpu").name
    'cpu'
    """
    options: dict[str, Any] = {"matmul_precision": matmul_precision, "execution": execution}
    for (option, value), choices in zip(options.items(), (MATMUL_PRECISIONS, EXECUTIONS), strict=True):
        if value not in choices:
            raise ValueError(f"{option} is expected to be one of {', '.join(choices)}, got {value!r}")
    if multiprocessors is not None and (type(multiprocessors) is not int or multiprocessors < 1):
        raise ValueError(f"multiprocessors is expected to be a whole number of 1 or more, got {multiprocessors!r}")
    options["multiprocessors"] = multiprocessors
    if isinstance(device, Backend):
        return device
    name = check_device_name(device)
    if name == "cpu":
        return NumpyBackend()
    if name == "auto":
        return choose_device(**options)[0]
    index = int(name.partition(":")[2] or 0)
    backend: Backend = _cuda_module().CudaBackend(index, **options)
    return backend


def choose_device(**options: Any) -> tuple[Backend, str]:
    """Select the device for ``"auto"``: the backend, with the options of `get_backend`, and the reason."""
    try:
        backend: Backend = _cuda_module().CudaBackend(0, **options)
    except DeviceError as error:
        return NumpyBackend(), f"no usable GPU: {error.cause}"
    return backend, "a usable GPU was found"


def available_devices() -> list[Device]:
    """The usable devices, the CPU first."""
    devices = [Device("cpu", NumpyBackend().device_name, None)]
    try:
        module = _cuda_module()
        count = module.device_count()
    except DeviceError:
        return devices
    for index in range(count):
        try:
            backend = module.CudaBackend(index)
        except DeviceError:  # the other devices are still listed
            continue
        devices.append(Device(backend.name, backend.device_name, backend.memory()))
    return devices


def require_gpus(processes: int) -> None:
    """Check that this machine has a GPU for each of the processes on it, and that they can be connected.

    Raises:
        DeviceError: it has fewer, or CuPy or NCCL is missing.
    """
    _cuda_module().require_gpus(processes)


def array_namespace(array: Array) -> Any:
    """Return the array library of an array, such as ``numpy``.

    Raises:
        TypeError: the argument is not an array of a known library.
    """
    library = type(array).__module__.partition(".")[0]
    if library in ("numpy", "cupy"):
        return sys.modules[library]
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}; convert it with numpy.asarray")


def _cuda_module() -> Any:
    """Import the module of the CUDA backend; raise DeviceError with the cause if CuPy cannot be imported."""
    spec = importlib.util.find_spec("cupy")
    if spec is None or spec.origin is None:  # without an origin: a folder with that name
        raise DeviceError(
            "CuPy is not installed",
            'install it with pip install ".[cuda13]" (or ".[cuda12]" for a driver older than 580), or use '
            "the device cpu",
        )
    try:
        from .cuda import backend as module
    except Exception as error:  # a broken installation can raise anything
        raise DeviceError(
            f"CuPy is installed, but cannot be imported: {type(error).__name__}: {error}",
            'reinstall it with pip install ".[cuda13]" (or ".[cuda12]"), or use the device cpu',
        ) from error
    return module
