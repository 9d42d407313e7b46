"""The machine's own limits, measured: a large matrix product, and on a GPU a large copy.

Not yet measured on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gpumlp import get_backend

from .peers.base import missing

CPU_ORDER, GPU_ORDER = 3072, 8192  # rows and columns of the square factors
COPY_BYTES = 2**30
REPEATS = 5


def cpu_limits(dtype: str, order: int = CPU_ORDER) -> dict[str, Any]:
    """The best rate of a product of two large square matrices, with NumPy's BLAS and with PyTorch's.

    Returns:
        ``flops`` a second, ``by`` whom, and what each reached.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.random((order, order)).astype(dtype) for _ in range(2))
    out = np.empty_like(a)
    seconds = {"NumPy": _best(lambda: np.matmul(a, b, out=out))}
    if missing("torch") is None:
        import torch

        factors = [torch.from_numpy(array) for array in (a, b, out)]
        seconds["PyTorch"] = _best(lambda: torch.mm(factors[0], factors[1], out=factors[2]))
    rates = {name: 2 * order**3 / duration for name, duration in seconds.items()}
    by = max(rates, key=rates.__getitem__)
    return {"flops": rates[by], "by": by, "product": f"{order} x {order}, {dtype}", "each": rates}


def gpu_limits(device: str, dtype: str) -> dict[str, Any]:
    """The best rate of a large matrix product with CuPy (TF32 off), and of a large copy within the device.

    Returns:
        ``flops`` and ``bytes`` a second, the bytes both read and written.
    """
    backend = get_backend(device, matmul_precision="highest")
    cupy = backend.xp
    with backend.activate():  # TF32 is off there, whatever CUPY_TF32 says
        product, copy = _product_seconds(cupy, dtype), _copy_seconds(cupy)
        cupy.get_default_memory_pool().free_all_blocks()  # the other libraries have pools of their own
    return {
        "flops": 2 * GPU_ORDER**3 / product,
        "by": "CuPy",
        "product": f"{GPU_ORDER} x {GPU_ORDER}, {dtype}, TF32 off",
        "bytes": 2 * COPY_BYTES / copy,
        "copy": f"{COPY_BYTES:,} bytes, read and written",
    }


def _product_seconds(cupy: Any, dtype: str) -> float:
    """Seconds of a large product; its arrays are gone afterwards."""
    a, b = (cupy.random.random((GPU_ORDER, GPU_ORDER), dtype=dtype) for _ in range(2))
    out = cupy.empty_like(a)
    return _best(lambda: cupy.matmul(a, b, out=out), cupy.cuda.get_current_stream().synchronize, calls=10)


def _copy_seconds(cupy: Any) -> float:
    """Seconds of a large copy; its arrays are gone afterwards."""
    source = cupy.zeros(COPY_BYTES, dtype=cupy.uint8)
    target = cupy.empty_like(source)
    return _best(lambda: cupy.copyto(target, source), cupy.cuda.get_current_stream().synchronize, calls=20)


def _best(work: Callable[[], Any], wait: Callable[[], Any] = lambda: None, calls: int = 1) -> float:
    """Seconds of one call: the least of some repeats after one that is not counted."""
    seconds = []
    for _ in range(REPEATS + 1):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds[1:])
