"""Devices: the only room that knows which array library is in use."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, NamedTuple

from .base import (
    EXECUTIONS,
    PIXEL_SCALE,
    Backend,
    DeviceError,
    Execution,
    ExecutionError,
    HostArray,
    Memory,
    check_dtype,
    reference_backend,
)
from .frozen import FrozenStep
from .numpy import NumpyBackend, is_device_array, to_host
from .rules import Array
from .whole import WholeStep

__all__ = [
    "CUDA_GRAPHS",
    "EXECUTIONS",
    "MATMUL_PRECISIONS",
    "PERSISTENT_KERNEL",
    "PIXEL_SCALE",
    "Array",
    "Backend",
    "Device",
    "DeviceError",
    "Execution",
    "ExecutionError",
    "FrozenStep",
    "HostArray",
    "Memory",
    "WholeStep",
    "array_namespace",
    "available_devices",
    "check_device_name",
    "check_dtype",
    "get_backend",
    "is_device_array",
    "reference_backend",
    "to_host",
]

MATMUL_PRECISIONS = ("highest", "high")
CUDA_GRAPHS = ("auto", "off")
PERSISTENT_KERNEL = ("off", "on")
_FORM = "'auto', 'cpu', 'cuda' or 'cuda:N'"


class Device(NamedTuple):
    """A device that can be used now. `memory` is None for the CPU."""

    name: str
    description: str
    memory: Memory | None


def check_device_name(name: object) -> str:
    """The name, if it has the form of a device's.

    Raises:
        ValueError: if it has not.
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
    cuda_graphs: str = "auto",
    persistent_kernel: str = "off",
    execution: str = "auto",
) -> Backend:
    """The backend of a device.

    Args:
        device: ``"cpu"``; ``"cuda"`` (the first GPU) or ``"cuda:1"`` and so on; ``"auto"``, a usable GPU
            and otherwise the CPU. A `Backend` is returned as it is.
        matmul_precision: of float32 matrix products on a GPU, in PyTorch's words: ``"highest"`` is float32;
            ``"high"`` is TF32, faster, with 10 bits of mantissa in the factors. No effect on the CPU.
        cuda_graphs: ``"auto"``: many training steps in one launch on a GPU, where the result is the same bit
            for bit and sooner there; ``"off"``: never. No effect on the CPU.
        persistent_kernel: ``"on"``: one launch for a whole epoch of a small network on a GPU, where the kernel
            knows the training; its results differ from those of ``"off"`` by rounding. Not yet measured on a GPU.
            No effect on the CPU.

        execution: ``"auto"``, ``"persistent"``, ``"graphs"`` or ``"eager"``. No effect on the CPU.

    Raises:
        ValueError: the name is none of these, or one of the options.
        DeviceError: the device cannot be used; the message says why and what mends it.

    >>> get_backend("cpu").name
    'cpu'
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"execution is expected to be one of {', '.join(EXECUTIONS)}, got {execution!r}")
    if execution in ("persistent", "eager"):
        cuda_graphs, persistent_kernel = "off", "on" if execution == "persistent" else "off"
    options = {
        "matmul_precision": matmul_precision,
        "cuda_graphs": cuda_graphs,
        "persistent_kernel": persistent_kernel,
    }
    allowed = (MATMUL_PRECISIONS, CUDA_GRAPHS, PERSISTENT_KERNEL)
    for option, choices in zip(options, allowed, strict=True):
        if options[option] not in choices:
            raise ValueError(f"{option} is expected to be one of {', '.join(choices)}, got {options[option]!r}")
    if isinstance(device, Backend):
        return device
    name = check_device_name(device)
    if name == "cpu":
        return NumpyBackend()
    if name == "auto":
        return choose_device(**options)[0]
    index = int(name.partition(":")[2] or 0)
    backend: Backend = _cupy_module().CupyBackend(index, **options)
    return backend


def choose_device(execution: str = "auto", **options: str) -> tuple[Backend, str]:
    """What ``"auto"`` means here: the backend, with the options of `get_backend`, and the reason in words."""
    if execution in ("persistent", "eager"):
        options |= {"cuda_graphs": "off", "persistent_kernel": "on" if execution == "persistent" else "off"}
    try:
        backend: Backend = _cupy_module().CupyBackend(0, **options)
    except DeviceError as error:
        return NumpyBackend(), f"no usable GPU: {error.cause}"
    return backend, "a usable GPU was found"


def available_devices() -> list[Device]:
    """The devices that can be used now, the CPU first."""
    devices = [Device("cpu", NumpyBackend().device_name, None)]
    try:
        module = _cupy_module()
        count = module.device_count()
    except DeviceError:
        return devices
    for index in range(count):
        try:
            backend = module.CupyBackend(index)
        except DeviceError:  # a card that is there but does not work hides neither the others nor the CPU
            continue
        devices.append(Device(backend.name, backend.device_name, backend.memory()))
    return devices


def array_namespace(array: Array) -> Any:
    """The library an array belongs to: an array says where it lives.

    Raises:
        TypeError: for what is no array of a known library.
    """
    library = type(array).__module__.partition(".")[0]
    if library in ("numpy", "cupy"):
        return sys.modules[library]
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}; convert it with numpy.asarray")


def _cupy_module() -> Any:
    """The CuPy backend's module; a DeviceError with the cause if it cannot be imported."""
    spec = importlib.util.find_spec("cupy")
    if spec is None or spec.origin is None:  # without an origin it is just some folder of that name
        raise DeviceError(
            "CuPy is not installed",
            "install it with pip install '.[cuda13]' (or '.[cuda12]' for a driver older than 580), or take "
            "the device cpu",
        )
    try:
        from . import cupy as module
    except Exception as error:  # a broken installation can raise anything
        raise DeviceError(
            f"CuPy is installed, but cannot be imported: {type(error).__name__}: {error}",
            "reinstall it with pip install '.[cuda13]' (or '.[cuda12]'), or take the device cpu",
        ) from error
    return module
