"""What a training step costs, and what this machine can do: operations, bytes, and the rates of both.

The costs are counts of what the mathematics asks for, not of what a library does. A measured rate over the
machine's limit for such a count says how much of the machine is used. The limits are measured: a large matrix
product, and on a GPU a large copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gpumlp import get_backend

from .peers import missing

CPU_ORDER, GPU_ORDER = 3072, 8192  # rows and columns of the square factors
COPY_BYTES = 2**30
REPEATS = 5
_PIXEL_BYTES, _LABEL_BYTES = 1, 8  # uint8 and int64, as the data lies on the device


def flops_per_sample(sizes: Sequence[int]) -> int:
    """Additions and multiplications of the matrix products of one training step, per sample.

    Three products a layer (forward, weight gradient, delta), of 2 in out each; the first layer has no delta.
    Activations, loss and update are left out: less than 2 % of it for these networks from batch 128 on.
    """
    products = [n_in * n_out for n_in, n_out in pairwise(sizes)]
    return 6 * sum(products) - 2 * products[0]


def bytes_per_step(sizes: Sequence[int], batch_size: float, *, momentum: bool, itemsize: int = 4) -> float:
    """Bytes read and written by one training step, if every operation read its inputs and wrote its outputs once.

    The operations are those of a step in which everything elementwise is fused with what comes before it. The
    count assumes that nothing stays in a cache between operations; where something does (a small network in a
    GPU's L2), a step can be faster than this count over the memory's bandwidth.

    Counted, for layers of ``n_in`` inputs and ``n_out`` units and B samples:

    - data: B pixels a feature read, B labels read;
    - inputs: written as floats, read by the first product, read by its weight gradient;
    - weights: read forward; read backward, but for the first layer, which has no delta;
    - a hidden layer's output: written, read by the next layer's product, by its weight gradient and by h';
      its delta: written, read by the weight gradient and, but for the first layer, by the delta below;
    - the logits: written, read by the loss; their delta likewise as a hidden layer's;
    - gradient: written once for each parameter;
    - update: gradient and parameter read, parameter written; with momentum, velocity read and written.
    """
    layers = list(pairwise(sizes))
    weights = [n_in * n_out for n_in, n_out in layers]
    parameters = sum(weights) + sum(sizes[1:])
    values = 3 * batch_size * sizes[0]
    values += sum(weights) + sum(weights[1:])
    for index, (_, n_out) in enumerate(layers):
        output = 2 if index == len(layers) - 1 else 4
        delta = 2 if index == 0 else 3
        values += (output + delta) * batch_size * n_out
    values += parameters + (5 if momentum else 3) * parameters
    return itemsize * values + batch_size * (sizes[0] * _PIXEL_BYTES + _LABEL_BYTES)


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
