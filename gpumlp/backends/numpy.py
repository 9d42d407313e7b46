"""The CPU, driven by NumPy."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import PIXEL_SCALE, Array, Backend, DeviceError, HostArray


class NumpyBackend(Backend):
    """The CPU. Arrays are `numpy.ndarray`, and every operation is done when it returns."""

    def __init__(self) -> None:
        self.name = "cpu"
        self.device_name = processor_name()
        self.xp = np

    def activate(self) -> AbstractContextManager[Any]:
        # Overflow and NaN are the trainer's to find and to explain, once, rather than a warning a step.
        return np.errstate(over="ignore", invalid="ignore", divide="ignore")

    def owns(self, array: object) -> bool:
        return isinstance(array, np.ndarray)

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        return np.ascontiguousarray(to_host(array), dtype=dtype)

    def to_numpy(self, array: Array) -> HostArray:
        return np.asarray(array)

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        # mode="clip" writes straight into `out`; the default mode builds the result elsewhere first.
        if staging is None:
            source.take(rows, axis=0, out=out, mode="clip")
        else:
            source.take(rows, axis=0, out=staging, mode="clip")
            np.multiply(staging, PIXEL_SCALE, out=out, dtype=out.dtype)


def is_device_array(array: object) -> bool:
    """Is this a CuPy array? Asked of its type's name, so that CuPy is never imported for it."""
    return type(array).__module__.partition(".")[0] == "cupy"


def to_host(array: Any) -> HostArray:
    """A NumPy array of anything array-like, device arrays included. Waits for the device."""
    if is_device_array(array):
        array = array.get()
    try:
        return np.asarray(array)
    except TypeError as error:
        raise DeviceError(
            f"an array of type {type(array).__name__} cannot be moved to the CPU ({error})",
            "convert it to a NumPy array first",
        ) from error


def processor_name() -> str:
    """The processor's model, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"
