"""NCCL, by nccl4py: what the GPUs of several processes send each other.

It is imported only where several processes train on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import nccl.core as nccl

from ..base import Array


class Connection:
    """The GPUs of several processes, one each.

    All processes make it at the same time; it waits for them. It is never closed, which would wait until no graph
    uses it.

    Args:
        cupy: the library, or a fake of it; its current device is that of this process.
        rank, size: the number of this process, and how many there are.
        broadcast: returns what it is given in process 0.
    """

    def __init__(self, cupy: Any, rank: int, size: int, broadcast: Callable[[bytes], bytes]) -> None:
        self._cupy = cupy
        identity = broadcast(bytes(nccl.get_unique_id()) if rank == 0 else b"")
        self._communicator = nccl.Communicator.init(size, rank, nccl.UniqueId.from_bytes(identity))

    def exchange(self, sent: Iterable[tuple[int, Array]], received: Iterable[tuple[int, Array]]) -> None:
        """Send arrays to processes, and overwrite others with what processes send, on the current stream.

        The first exchange between two processes connects them, which a capture must not do. Does not wait.

        Args:
            sent: each with the rank of the process that gets it; this one may be among them.
            received: each with the rank of the process that sends as many elements.
        """
        stream = int(self._cupy.cuda.get_current_stream().ptr)
        with nccl.group():
            for rank, array in sent:
                self._communicator.send(array, rank, stream=stream)
            for rank, array in received:
                self._communicator.recv(array, rank, stream=stream)


def library_missing() -> bool:
    """Whether nccl4py does not find NCCL's library."""
    return nccl.get_version().libnccl is None
