"""A fake of ``nvmath.bindings``: cuBLASLt's column-major matrices, transpositions and epilogues.

It follows cuBLASLt's documentation: D = alpha op(A) op(B) + beta C, then the epilogue. Values are read from the
given addresses, and contradictory descriptions are errors, as in cuBLASLt.
"""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace
from typing import Any

import numpy as np

REALS = {0: np.float32, 1: np.float64}  # cudaDataType_t


class ComputeType(enum.IntEnum):
    COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70


class Operation(enum.IntEnum):
    N, T = 0, 1


class MatmulDescAttribute(enum.IntEnum):
    TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8


class MatmulPreferenceAttribute(enum.IntEnum):
    MAX_WORKSPACE_BYTES = 1


class Epilogue(enum.IntEnum):
    DEFAULT, RELU_BIAS, BIAS = 1, 6, 4


ATTRIBUTE_TYPES = {
    MatmulDescAttribute.TRANSA: ctypes.c_int32,
    MatmulDescAttribute.TRANSB: ctypes.c_int32,
    MatmulDescAttribute.EPILOGUE: ctypes.c_uint32,
    MatmulDescAttribute.BIAS_POINTER: ctypes.c_int64,
}


class cuBLASLtError(Exception):
    pass


class HeuristicResult:
    def __init__(self, size: int) -> None:
        self.memory = (ctypes.c_uint64 * 12 * size)()
        self.ptr = ctypes.addressof(self.memory)


def column_major(address: int, real: type, rows: int, columns: int, leading: int) -> np.ndarray:
    """The matrix at an address, as a view."""
    assert leading >= rows
    size = leading * (columns - 1) + rows
    memory = (ctypes.c_byte * (size * np.dtype(real).itemsize)).from_address(address)
    item = np.dtype(real).itemsize
    return np.ndarray((rows, columns), real, buffer=memory, strides=(item, leading * item))


class HostLt:
    """The functions of ``nvmath.bindings.cublasLt`` that gpumlp uses.

    Args:
        launched: called with a name and a function for each launch.
        unknown: names of epilogues for which no algorithm is found.
    """

    MatmulDescAttribute, MatmulPreferenceAttribute = MatmulDescAttribute, MatmulPreferenceAttribute
    Epilogue, MatmulHeuristicResult, cuBLASLtError = Epilogue, HeuristicResult, cuBLASLtError

    def __init__(self, launched: Any, unknown: tuple[str, ...] = ()) -> None:
        self.launched, self.unknown = launched, unknown
        self.things: list[Any] = [None]
        self.wrong: set[str] = set()  # epilogues with wrong results
        self.refused: set[str] = set()  # epilogues whose launch fails, and "beta" for any other than 0
        self.nan_to_zero = False  # a ReLU by the hardware's maximum: max(NaN, 0) is 0
        self.compute_types: list[int] = []

    def _keep(self, thing: Any) -> int:
        self.things.append(thing)
        return len(self.things) - 1

    def create(self) -> int:
        return self._keep("handle")

    def matmul_desc_create(self, compute_type: int, scale_type: int) -> int:
        assert (compute_type == ComputeType.COMPUTE_64F) == (REALS[scale_type] is np.float64)
        self.compute_types.append(compute_type)
        default = {MatmulDescAttribute.TRANSA: 0, MatmulDescAttribute.TRANSB: 0, MatmulDescAttribute.EPILOGUE: 1}
        return self._keep({"real": REALS[scale_type], **default})

    def matmul_desc_set_attribute(self, operation: int, name: int, address: int, size: int) -> None:
        kind = ATTRIBUTE_TYPES[MatmulDescAttribute(name)]
        assert size == ctypes.sizeof(kind)
        self.things[operation][name] = kind.from_address(address).value

    def matrix_layout_create(self, real: int, rows: int, columns: int, leading: int) -> int:
        return self._keep((REALS[real], rows, columns, leading))

    def matmul_preference_create(self) -> int:
        return self._keep("preference")

    def matmul_preference_set_attribute(self, preference: int, name: int, address: int, size: int) -> None:
        assert self.things[preference] == "preference"
        assert (name, size) == (MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES, 8)

    def matmul_preference_destroy(self, preference: int) -> None:
        self.things[preference] = None

    def matmul_algo_get_heuristic(self, handle: int, operation: int, *rest: int) -> None:
        *_, preference, requested, result, count = rest
        assert (self.things[handle], self.things[preference], requested) == ("handle", "preference", 1)
        epilogue = Epilogue(self.things[operation][MatmulDescAttribute.EPILOGUE])
        if epilogue.name in self.unknown:
            raise cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        ctypes.c_uint64.from_address(result).value = 7  # the algorithm
        ctypes.c_int32.from_address(count).value = 1

    def matmul(self, handle: int, operation: int, alpha: int, a: int, a_layout: int, b: int, b_layout: int,
               beta: int, c: int, c_layout: int, d: int, d_layout: int, algorithm: int, workspace: int,
               workspace_bytes: int, stream: int) -> None:  # fmt: skip
        wanted = dict(self.things[operation])  # a copy: a launch does not refer to the description
        real, epilogue = wanted["real"], Epilogue(wanted[MatmulDescAttribute.EPILOGUE])
        scalar = {np.float32: ctypes.c_float, np.float64: ctypes.c_double}[real]
        assert scalar.from_address(alpha).value == 1
        keep = real(scalar.from_address(beta).value)  # read at the launch: a graph repeats the value
        if epilogue.name in self.refused or (keep and "beta" in self.refused):
            raise cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        assert self.things[handle] == "handle"
        assert ctypes.c_uint64.from_address(algorithm).value == 7
        assert workspace
        assert workspace_bytes >= 2**22
        matrices = {}
        for name, address, layout in (
            ("a", a, a_layout),
            ("b", b, b_layout),
            ("c", c, c_layout),
            ("d", d, d_layout),
        ):
            assert self.things[layout][0] is real
            matrices[name] = column_major(address, *self.things[layout])

        def run() -> None:
            left = matrices["a"].T if wanted[MatmulDescAttribute.TRANSA] else matrices["a"]
            right = matrices["b"].T if wanted[MatmulDescAttribute.TRANSB] else matrices["b"]
            out = matrices["d"]
            assert (left.shape[0], right.shape[1]) == out.shape, "the layouts contradict each other"
            result = left @ right
            if keep:  # with a beta of 0, cuBLASLt does not read C
                result = result + keep * matrices["c"]
            if epilogue is not Epilogue.DEFAULT:
                assert real is np.float32
                vector = column_major(wanted[MatmulDescAttribute.BIAS_POINTER], real, len(out), 1, len(out))
                result = result + vector
                if epilogue is Epilogue.RELU_BIAS:
                    result = np.fmax(result, 0) if self.nan_to_zero else np.maximum(result, 0)
            out[...] = result + (1 if epilogue.name in self.wrong else 0)

        self.launched(f"lt-{epilogue.name}", run)


def host_bindings(launched: Any, unknown: tuple[str, ...] = ()) -> SimpleNamespace:
    """A fake of ``nvmath.bindings``."""
    lt = HostLt(launched, unknown)
    return SimpleNamespace(cublasLt=lt, cublas=SimpleNamespace(ComputeType=ComputeType, Operation=Operation))
