"""Functions of NumPy's own OpenBLAS that NumPy does not expose.

`numpy.matmul` computes ``out = a b``; OpenBLAS computes ``out = keep out + scale a b`` at the same cost, which
saves training a pass over all weights. The number of threads is selected by the size of the work. The library is
the one that NumPy has loaded: with a second one, two thread pools would wait for each other (measured: 80 times
slower).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from .base import Accumulation, Array

_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112  # enumerators of cblas.h
_SCALAR = {np.dtype(np.float32): ("s", ctypes.c_float), np.dtype(np.float64): ("d", ctypes.c_double)}


class OpenBlas:
    """The OpenBLAS that is part of NumPy's wheel.

    Attributes:
        controller: threadpoolctl's controller of the library.
    """

    def __init__(self, controller: Any) -> None:
        self.controller = controller
        self._lock, self._original = threading.Lock(), 1
        self._users: set[object] = set()
        library = ctypes.CDLL(controller.filepath)  # already loaded by NumPy
        self._gemm, self._axpy = {}, {}
        flag, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
        for dtype, (letter, scalar) in _SCALAR.items():
            gemm = getattr(library, f"scipy_cblas_{letter}gemm64_")
            axpy = getattr(library, f"scipy_cblas_{letter}axpy64_")
            matrix = (pointer, size)
            gemm.argtypes = [flag, flag, flag, size, size, size, scalar, *matrix, *matrix, scalar, *matrix]
            axpy.argtypes = [size, scalar, *matrix, *matrix]
            gemm.restype = axpy.restype = None
            self._gemm[dtype], self._axpy[dtype] = gemm, axpy

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Use at most `count` threads within the context; afterwards restore the previous number.

        The number applies to the whole process. If contexts overlap in several Python threads, the last one
        entered determines it, and the last one left restores the original number.
        """
        user = object()
        try:  # entered before any change, since an interrupt may occur between any two lines
            with self._lock:
                if not self._users:
                    self._original = self.controller.get_num_threads()
                self._users.add(user)
                self.controller.set_num_threads(min(count, self._original))
            yield
        finally:
            with self._lock:
                if self._users == {user}:
                    self.controller.set_num_threads(self._original)
                self._users.discard(user)

    def accumulate_product(self, x: Array, delta: Array, target: Accumulation) -> None:
        """``out <- keep out + scale x^T delta``.

        Args:
            x: ``(batch, in_features)``, C-contiguous.
            delta: ``(batch, out_features)``, C- or Fortran-contiguous.
            target: its `out` is ``(in_features, out_features)``, C-contiguous, overwritten. All arrays have the
                same dtype, float32 or float64.

        Raises:
            ValueError: shapes or dtypes are not as stated.
            TypeError: an array is not contiguous.
        """
        out, scale, keep = target
        (batch, m), n = x.shape, delta.shape[1]
        gemm, fits = self._gemm.get(x.dtype), len(delta) == batch and out.shape == (m, n)
        if gemm is None or not fits or not x.dtype == delta.dtype == out.dtype:
            raise ValueError(
                "expected x (batch, m), delta (batch, n) and out (m, n) of one dtype, float32 or float64, got "
                f"{x.shape}, {delta.shape} and {out.shape} of {x.dtype}, {delta.dtype} and {out.dtype}"
            )
        if delta.flags.c_contiguous:
            transpose, rows, step = _NO_TRANSPOSE, delta, n
        else:
            transpose, rows, step = _TRANSPOSE, delta.T, batch
        gemm(
            *(_ROW_MAJOR, _TRANSPOSE, transpose, m, n, batch),
            *(scale, _address(x), m, _address(rows), step, keep, _address(out), n),
        )

    def add_scaled(self, x: Array, scale: float, out: Array) -> None:
        """``out <- out + scale x``, for contiguous vectors of one length and dtype, float32 or float64.

        Raises:
            ValueError: lengths or dtypes are not as stated.
            TypeError: an array is not contiguous.
        """
        axpy = self._axpy.get(x.dtype)
        if axpy is None or x.dtype != out.dtype or x.shape != out.shape:
            raise ValueError(
                "expected vectors of one length and dtype, float32 or float64, got "
                f"{x.shape} of {x.dtype} and {out.shape} of {out.dtype}"
            )
        axpy(x.size, scale, _address(x), 1, _address(out), 1)


def _address(array: Array) -> Any:
    """The address of an array for ctypes; TypeError if it is not C-contiguous and writable."""
    return ctypes.byref(_buffer(array))


def _buffer(array: Array) -> Any:
    return ctypes.c_char.from_buffer(array)


@lru_cache(maxsize=1)
def numpy_openblas() -> OpenBlas | None:
    """The OpenBLAS in NumPy's wheel; None if NumPy was built with another BLAS."""
    package = Path(np.__file__).resolve().parent
    homes = (package, package.with_name("numpy.libs"))
    for controller in threadpoolctl.ThreadpoolController().lib_controllers:
        path = Path(controller.filepath).resolve()
        if controller.internal_api == "openblas" and any(home in path.parents for home in homes):
            try:
                return OpenBlas(controller)
            except (OSError, AttributeError):  # other symbol names: NumPy is used instead, slower
                return None
    return None
