"""A fake of nccl4py on the CPU, for processes of mpiexec with `HostCupy`: what GPUs exchange goes through MPI."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.host_cuda import HostCupy
from tests.strict_device import StrictArray


class HostNccl(ModuleType):
    """The part of ``nccl.core`` that gpumlp uses, with a list of all calls."""

    def __init__(self, cupy: HostCupy, comm: Any) -> None:
        super().__init__("nccl.core")
        self.cupy, self.comm = cupy, comm
        self.calls: list[str] = []
        self.connected: set[int] = set()  # ranks with which there was an exchange outside a capture
        self.operations: list[tuple[str, StrictArray, int]] | None = None  # of the group that has begun
        self.UniqueId, self.Communicator = UniqueId, SimpleNamespace(init=self.init)

    def get_version(self) -> SimpleNamespace:
        return SimpleNamespace(libnccl="2.99")

    def get_unique_id(self) -> UniqueId:
        assert self.comm.rank == 0, "one process makes the identity"
        return UniqueId(b"of process 0")

    def init(self, nranks: int, rank: int, unique_id: UniqueId) -> HostCommunicator:
        assert unique_id.value == b"of process 0"
        assert (nranks, self.cupy.device_id) == (self.comm.size, rank)
        assert (nranks, rank) == (self.comm.size, self.comm.rank)
        self.calls.append("init")
        return HostCommunicator(self)

    @contextmanager
    def group(self) -> Iterator[None]:
        assert self.operations is None
        self.operations = []
        yield
        operations, self.operations = self.operations, None
        captured, ranks = self.cupy.capture is not None, {rank for *_, rank in operations}
        if captured:
            assert ranks <= self.connected, "processes are connected within a capture"
        else:
            self.connected |= ranks
        self.calls.append("captured exchange" if captured else "exchange")
        # What one process does in a graph, all do in the graph of the same capture.
        tag = len(self.calls) if captured else 0
        self.cupy.launched("nccl", lambda: self.run(operations, tag))

    def run(self, operations: list[tuple[str, StrictArray, int]], tag: int) -> None:
        requests = [self.comm.Irecv(array._data, rank, tag) for name, array, rank in operations if name == "recv"]
        requests += [self.comm.Isend(array._data, rank, tag) for name, array, rank in operations if name == "send"]
        for request in requests:
            request.Wait()


class UniqueId:
    """NCCL's identity of a communicator."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __bytes__(self) -> bytes:
        return self.value

    from_bytes = classmethod(lambda cls, value: cls(value))


class HostCommunicator:
    """NCCL's communicator: the stream must be the current one, and the arrays contiguous."""

    def __init__(self, nccl: HostNccl) -> None:
        self.nccl = nccl

    def send(self, sendbuf: StrictArray, peer: int, *, stream: int) -> None:
        self._add("send", sendbuf, peer, stream)

    def recv(self, recvbuf: StrictArray, peer: int, *, stream: int) -> None:
        self._add("recv", recvbuf, peer, stream)

    def _add(self, name: str, array: StrictArray, peer: int, stream: int) -> None:
        cupy, operations = self.nccl.cupy, self.nccl.operations
        assert type(stream) is int
        assert stream == cupy.cuda.get_current_stream().ptr
        assert isinstance(array, StrictArray)
        assert array.flags.c_contiguous
        assert array.device.id == cupy.device_id
        assert operations is not None, "outside a group, a process would wait for another one that waits for it"
        operations.append((name, array, peer))


def use_host_nccl(cupy: HostCupy, comm: Any) -> HostNccl:
    """Put the fake in place of nccl4py for the rest of the process."""
    fake = HostNccl(cupy, comm)
    package = ModuleType("nccl")
    package.core = fake
    sys.modules.update({"nccl": package, "nccl.core": fake})
    return fake
