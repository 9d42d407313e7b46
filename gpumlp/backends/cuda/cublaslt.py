"""Matrix products by cuBLASLt, through NVIDIA's bindings, with bias and ReLU, or added to their output.

Used if ``nvmath-python`` is installed (the extra ``nvmath``); otherwise CuPy's products, by cuBLAS, are used. CUDA
graphs require it, since CuPy does not support the capture of its own products.

Layout: cuBLASLt computes ``D = op(A) op(B)`` on column-major matrices. A row-major matrix has the memory layout of
its transpose in column-major order, so ``C = X Y`` is computed as ``C^T = Y^T X^T``: A is Y, B is X, and the rows
of D are the columns of C. A factor is transposed only if its array is the transposed view of a row-major matrix.
The bias of cuBLASLt applies to the rows of D, which are the columns of C, the units of a layer.

The epilogues for bias and for bias with ReLU are used. Those for the backward pass are not: BGRADA is a kernel of
its own on the GPU, and DRELU needs a bit mask from RELU_AUX_BIAS, which is not offered for all shapes and may not
keep NaN. ``activation_backward`` in ``activation.cu`` computes both in one pass.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base import Array
from .graphs import NotCapturableError

WORKSPACE_BYTES = 32 * 2**20  # recommended by NVIDIA for Hopper, the largest of its recommendations
ALIGNMENT = 256  # bytes, the heuristics' default
_REAL_32, _REAL_64 = 0, 1  # cudaDataType_t


@dataclass
class Plan:
    """The description of a product of one shape. Integers are cuBLASLt's handles."""

    operation: int
    layouts: tuple[int, int, int]
    choice: Any  # the heuristic's result, whose first field is the algorithm
    bias_address: int = 0


class Products:
    """Matrix products on the device that is active on creation.

    Args:
        cupy: the library, or a fake of it.
        tf32: TF32 rather than float32 in products of float32 matrices.
        bindings: ``nvmath.bindings``, or a fake of it.
    """

    def __init__(self, cupy: Any, tf32: bool, bindings: Any) -> None:
        self._cupy, self._tf32 = cupy, tf32
        self._lt, self._cublas = bindings.cublasLt, bindings.cublas
        self._handle = self._lt.create()
        self._workspace = cupy.empty(WORKSPACE_BYTES, dtype="uint8")
        reals: dict[int, Any] = {_REAL_32: np.float32, _REAL_64: np.float64}
        self._ones = {real: np.ones(1, dtype) for real, dtype in reals.items()}
        self._keeps: dict[tuple[int, float], Any] = {}  # beta in the memory of the host, where cuBLASLt reads it
        self._plans: dict[tuple[Any, ...], Plan | None] = {}
        self.alignment = ALIGNMENT
        self.capturing = False

    def matmul(self, x: Array, y: Array, out: Array, keep: float = 0.0) -> bool:
        """``out = keep out + x y``; returns False if unsupported. Then `out` is unspecified if `keep` is 0.

        `x` and `y` are row-major or transposed views of row-major matrices, `out` is row-major. A graph captures
        the value of `keep`.
        """
        return self._run("DEFAULT", x, y, out, None, keep)

    def dense(self, epilogue: str, x: Array, weight: Array, bias: Array, out: Array) -> bool:
        """``out = x W + b`` (BIAS) or ``max(0, x W + b)`` (RELU_BIAS) in one launch; False if unsupported."""
        return self._run(epilogue, x, weight, out, bias)

    def _run(self, epilogue: str, x: Array, y: Array, out: Array, bias: Array | None, keep: float = 0.0) -> bool:
        arrays = (x, y, out) if bias is None else (x, y, out, bias)
        if any(array.dtype != out.dtype or array.data.ptr % self.alignment for array in arrays):
            return False
        transposed = (not x.flags.c_contiguous, not y.flags.c_contiguous)
        if not all(a.T.flags.c_contiguous for a, t in zip((x, y), transposed, strict=True) if t):
            return False
        if not out.flags.c_contiguous or (bias is not None and out.dtype != np.float32):
            return False
        key = (epilogue, out.dtype.char, x.shape, y.shape, transposed, keep != 0)
        if key not in self._plans:
            if self.capturing:
                raise NotCapturableError(f"no algorithm was selected for the product {key} before the capture")
            plan = self._plan(epilogue, x, y, out, transposed, bias)
            trial = self._cupy.zeros_like(out) if keep else out  # which overwrites it
            self._plans[key] = self._checked(key, plan, x, y, trial, bias, keep)
        plan = self._plans[key]
        if plan is None:
            return False
        self._launch(plan, x, y, out, bias, keep)
        return True

    def _checked(
        self,
        key: tuple[Any, ...],
        plan: Plan | None,
        x: Array,
        y: Array,
        out: Array,
        bias: Array | None,
        keep: float,
    ) -> Plan | None:
        """The plan; None if its launch fails or its ReLU does not propagate NaN, by GPU and shape."""
        if plan is None:
            return None
        try:
            self._launch(plan, x, y, out, bias, keep)
        except self._lt.cuBLASLtError as error:  # despite the heuristic
            warnings.warn(f"cuBLASLt failed for {key}, CuPy's product is used: {error}", stacklevel=5)
            return None
        if key[0] == "RELU_BIAS" and bias is not None and not self._keeps_nan(plan, x, y, out, bias):
            return None  # no warning: the only effect is one more launch
        return plan

    def _plan(
        self, epilogue: str, x: Array, y: Array, out: Array, transposed: tuple[bool, bool], bias: Array | None
    ) -> Plan | None:
        """Describe a product and select an algorithm; None if there is none."""
        lt, compute = self._lt, self._cublas.ComputeType
        real = _REAL_32 if out.dtype == np.float32 else _REAL_64
        if real == _REAL_64:
            precision = compute.COMPUTE_64F
        else:
            precision = compute.COMPUTE_32F_FAST_TF32 if self._tf32 else compute.COMPUTE_32F
        operation = lt.matmul_desc_create(int(precision), real)
        attribute, turn = lt.MatmulDescAttribute, self._cublas.Operation
        for name, is_transposed in ((attribute.TRANSA, transposed[1]), (attribute.TRANSB, transposed[0])):
            self._set(operation, name, np.array([turn.T if is_transposed else turn.N], dtype=np.int32))
        self._set(operation, attribute.EPILOGUE, np.array([lt.Epilogue[epilogue]], dtype=np.uint32))
        plan = Plan(operation, self._layouts(real, x, y, out, transposed), lt.MatmulHeuristicResult(1))
        if bias is not None:
            self._set_bias(plan, bias)

        preference = lt.matmul_preference_create()
        limit = np.array([WORKSPACE_BYTES], dtype=np.uint64)
        wanted = lt.MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES
        lt.matmul_preference_set_attribute(preference, int(wanted), limit.ctypes.data, limit.nbytes)
        a, b, d = plan.layouts
        found = np.zeros(1, dtype=np.int32)
        try:
            lt.matmul_algo_get_heuristic(
                self._handle, operation, a, b, d, d, preference, 1, plan.choice.ptr, found.ctypes.data
            )
        except lt.cuBLASLtError:  # the epilogue does not support this shape or dtype
            return None
        finally:
            lt.matmul_preference_destroy(preference)
        return plan if found[0] else None

    def _layouts(
        self, real: int, x: Array, y: Array, out: Array, transposed: tuple[bool, bool]
    ) -> tuple[int, int, int]:
        """The layouts of A, B and D: the memory of each matrix in column-major order."""

        def layout(array: Array, is_transposed: bool) -> int:
            rows, columns = array.shape[::-1] if is_transposed else array.shape
            handle: int = self._lt.matrix_layout_create(real, columns, rows, columns)
            return handle

        return layout(y, transposed[1]), layout(x, transposed[0]), layout(out, False)

    def _set(self, operation: int, name: int, value: np.ndarray[Any, Any]) -> None:
        self._lt.matmul_desc_set_attribute(operation, int(name), value.ctypes.data, value.nbytes)

    def _set_bias(self, plan: Plan, bias: Array) -> None:
        """Set the address of the bias, or of its gradient."""
        if plan.bias_address != bias.data.ptr:
            address = np.array([bias.data.ptr], dtype=np.int64)
            self._set(plan.operation, self._lt.MatmulDescAttribute.BIAS_POINTER, address)
            plan.bias_address = bias.data.ptr

    def _launch(self, plan: Plan, x: Array, y: Array, out: Array, bias: Array | None, keep: float = 0.0) -> None:
        if bias is not None:
            self._set_bias(plan, bias)
        real = _REAL_32 if out.dtype == np.float32 else _REAL_64
        if (real, keep) not in self._keeps:
            self._keeps[real, keep] = np.array([keep], dtype=out.dtype)
        a, b, d = plan.layouts
        self._lt.matmul(
            self._handle,
            plan.operation,
            self._ones[real].ctypes.data,
            y.data.ptr,
            a,
            x.data.ptr,
            b,
            self._keeps[real, keep].ctypes.data,
            out.data.ptr,
            d,
            out.data.ptr,
            d,
            plan.choice.ptr,
            self._workspace.data.ptr,
            WORKSPACE_BYTES,
            self._cupy.cuda.get_current_stream().ptr,
        )

    def _keeps_nan(self, plan: Plan, x: Array, y: Array, out: Array, bias: Array) -> bool:
        """Whether the ReLU propagates NaN, as the kernels do; some return 0. Overwrites `out`. Waits."""
        xp = self._cupy
        self._launch(plan, x, y, out, xp.full(bias.shape, np.nan, dtype=bias.dtype))
        return bool(xp.min(xp.isnan(out).view("uint8")))
