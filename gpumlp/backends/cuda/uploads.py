"""Copies from the host to the device on a stream of their own, beside training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base import Array, HostArray


class StreamUploads:
    """Copies from pinned memory, which the device reads by itself; see `gpumlp.backends.Uploads`.

    The stream is non-blocking: a blocking one would wait for the default stream, on which steps run, and it for
    the copies. So events say what waits for what. The copies are complete when `copy` returns, so that what is
    launched afterwards needs no event, and no memory is freed, and used by others, while it is written or read.

    Args:
        xp: CuPy.
        index: of the device, which is active.
    """

    def __init__(self, xp: Any, index: int) -> None:
        cuda = xp.cuda
        self._cuda, self._index = cuda, index
        self._stream = cuda.Stream(non_blocking=True)
        self._given = cuda.Event(disable_timing=True)
        self._copied = cuda.Event(block=True, disable_timing=True)  # a thread that waits leaves its processor free

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> HostArray:
        kind, count = np.dtype(dtype), math.prod(shape)
        memory = self._cuda.alloc_pinned_memory(count * kind.itemsize)
        return np.frombuffer(memory, kind, count).reshape(shape)

    def mark(self) -> None:
        self._given.record()  # on the current stream

    def copy(self, pairs: Sequence[tuple[HostArray, Array]]) -> None:
        with self._cuda.Device(self._index):  # in a new thread, the first device is the current one
            self._stream.wait_event(self._given)
            for host, array in pairs:
                array.set(host, stream=self._stream)
            self._copied.record(self._stream)
            self._copied.synchronize()
