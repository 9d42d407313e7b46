"""Batches that a thread prepares while the one before is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from ..backends import Array


class Ahead:
    """Prepares the samples that are asked for next while those of now are used.

    Args:
        prepare: ``prepare(rows, out)`` writes the samples of some rows of an epoch into `out`, and returns their
            targets. It is never called by two threads at once.
        parts: the rows that are asked for in an epoch, in order. Others are prepared when they are asked for.
        buffer: ``(samples, features)``, room for the samples of a part.
    """

    def __init__(self, prepare: Callable[[slice, Array], Array], parts: Sequence[slice], buffer: Array) -> None:
        self._prepare, self._buffer = prepare, buffer
        self._following = {part.start: following for part, following in pairwise(parts)}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpumlp-ahead")
        self._pending: tuple[slice, Future[Any]] | None = None

    def take(self, rows: slice, out: Array) -> Array:
        """Write the samples of some rows into `out`, and begin with those after them; returns the targets."""
        part, result = self._pending or (None, None)
        if part == rows and result is not None:
            targets = result.result()
            out[...] = self._buffer[: len(out)]
        else:
            self.wait()
            targets = self._prepare(rows, out)
        following = self._following.get(rows.start)
        self._pending = None
        if following is not None:
            room = self._buffer[: following.stop - following.start]
            self._pending = following, self._thread.submit(self._prepare, following, room)
        return targets

    def wait(self) -> None:
        """Wait until nothing is prepared any more, and forget what is ready."""
        self._thread.submit(int).result()  # there is one thread
        self._pending = None
