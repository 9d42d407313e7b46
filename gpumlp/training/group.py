"""The processes that train one network together: this one alone, or those of an MPI program.

The training loop does not know which it has. Every process has all the data, or reads what it needs of them, draws
the same batches, and computes the gradients of its shards of each. `Group.sum` adds them in an order that depends
on the number of shards alone. All processes then take the same step, with the bits of one process with as many
shards.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np
import threadpoolctl

from ..backends import Array, Backend, Connection, HostArray, array_namespace
from ..extras import MissingExtraError, require
from .shards import PairwiseSum

T = TypeVar("T")

# Rank and number of processes, as mpiexec of MPICH and its relatives, Open MPI and MVAPICH2 tells each of them.
_LAUNCHERS = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
GET_MPI = "pip install mpich, or a package of the system such as Debian's mpich, or a cluster's own module"


class GroupError(RuntimeError):
    """Processes cannot train together; the message says which one is the reason. All processes raise it."""


class Group:
    """The processes that train one network: this one alone.

    Attributes:
        rank: the number of this process; process 0 shows progress, calls callbacks and writes files.
        size: number of processes.
        local_rank, local_size: the same among the processes of this machine.
    """

    rank = local_rank = 0
    size = local_size = 1

    def sum(self, pieces: Sequence[tuple[int, Array]], terms: int, out: Array) -> None:
        """Write the sum of the terms of all processes into `out`, on all of them.

        GPUs do so on the current stream, also in a capture, and do not wait.

        Args:
            pieces: those of a `PairwiseSum` of this process's share of the terms; the last one may be `out`.
            terms: number of terms; each process has as many, in the order of the ranks.
            out: ``(size,)``, overwritten.

        Raises:
            KeyboardInterrupt: there was an interrupt in any of the processes; see `interruptible`. Not on GPUs,
                where only `any` raises it.
        """

    def connect(self, backend: Backend) -> None:
        """Prepare `sum` for arrays of a device; all processes call it, and wait for each other.

        Raises:
            GroupError: two processes have the same GPU.
            DeviceError: the GPUs cannot be connected.
        """

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes, which all call it.

        Raises:
            KeyboardInterrupt: there was an interrupt in any of the processes; see `interruptible`.
        """
        return flag

    def merge(self, array: HostArray) -> None:
        """Put together, in place, an array of which each process has written a part, and zeros everywhere else."""

    def broadcast(self, value: T) -> T:
        """The value that process 0 has."""
        return value

    def broadcast_array(self, array: HostArray) -> None:
        """Overwrite an array with that of process 0."""

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check that all processes have the same facts, by name.

        Raises:
            GroupError: they have not; the message names the first one that differs. All processes raise it.
        """

    def together(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """What `work` returns, which is called in every process, once it has succeeded in all of them.

        If it fails in others, `undo` is called with its result.

        Raises:
            GroupError: it has failed in others. A process in which it fails raises its own error.
            KeyboardInterrupt: there was an interrupt in any of the processes; see `interruptible`.
        """
        return work()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A context in which an interrupt in any process is a `KeyboardInterrupt` in all, at the same place."""
        yield


ALONE = Group()


class MPIGroup(Group):
    """The processes that mpiexec has started, which train one network together, on CPUs or with a GPU each.

    >>> from gpumlp import MLP, MPIGroup, fit, load_digits  # doctest: +SKIP
    >>> group = MPIGroup()  # doctest: +SKIP
    >>> fit(MLP([64, 32, 10], device=f"cuda:{group.local_rank}"), load_digits()[0], group=group)  # doctest: +SKIP

    GPUs exchange gradients by NCCL (nccl4py); everything else is exchanged by MPI.

    An exception that a process does not handle is printed with its rank and ends all of them: the others would
    wait for it forever. The number of BLAS threads of each process is limited to the number of cores, divided by
    the number of processes that share them.

    Args:
        comm: a communicator of mpi4py; None for all processes. A copy of it is used.

    Attributes:
        seconds: spent in `sum` on CPUs, waiting for others included.

    Raises:
        MissingExtraError: mpi4py or MPI cannot be loaded.
        GroupError: mpiexec is that of another MPI than the one that mpi4py has loaded.
    """

    def __init__(self, comm: Any = None) -> None:
        self._mpi: Any = _load_mpi()
        self._comm: Any = (self._mpi.COMM_WORLD if comm is None else comm).Dup()
        self.rank, self.size = int(self._comm.rank), int(self._comm.size)
        self._machine: Any = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = int(self._machine.rank), int(self._machine.size)
        self.seconds = 0.0
        self._plans: dict[tuple[int, int, str], _HostPlan] = {}
        self._gpu: tuple[str, DeviceSum] | None = None
        self._interrupted = self._guarded = False
        if self.size > 1:
            self._limit_threads()
            sys.excepthook = self._end

    def sum(self, pieces: Sequence[tuple[int, Array]], terms: int, out: Array) -> None:
        if self._gpu is not None and not isinstance(out, np.ndarray):
            self._gpu[1](pieces, terms, out)
            return
        if self.size == 1:
            return
        began = time.perf_counter()
        key = terms, len(out), out.dtype.str
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _HostPlan(self.size, terms, out)
        for index, (_, piece) in enumerate(pieces):
            plan.fill(index, piece)
        plan.sent[:, 0, -1] = self._interrupted
        self._comm.Alltoall(plan.sent, plan.received)
        total = plan.total()
        if total[-1]:  # the same number in all processes
            self._interrupted = False
            raise KeyboardInterrupt
        self._comm.Allgather(total, plan.gathered)
        plan.copy_to(out)
        self.seconds += time.perf_counter() - began

    def connect(self, backend: Backend) -> None:
        if backend.name == "cpu" or (self._gpu is not None and self._gpu[0] == backend.name):
            return
        names = self._machine.allgather(backend.name)
        self.together(lambda: self._require_own_gpu(backend.name, names))
        connection = backend.connect(self.rank, self.size, self.broadcast)
        self._gpu = backend.name, DeviceSum(connection, self.rank, self.size)

    def _require_own_gpu(self, name: str, names: Sequence[str]) -> None:
        """Raise GroupError if this process has another GPU, or shares it; `names` are those of its machine."""
        if self._gpu is not None:
            raise GroupError(f"this process trains on {self._gpu[0]} already, and it can have one GPU, got {name}")
        if names.count(name) > 1:
            raise GroupError(
                f"{names.count(name)} processes of this machine have networks on {name}; give each a GPU of its "
                'own: device=f"cuda:{group.local_rank}"'
            )

    def any(self, flag: bool) -> bool:
        flags = np.array([flag, self._interrupted])
        self._comm.Allreduce(self._mpi.IN_PLACE, flags, op=self._mpi.LOR)
        if flags[1]:
            self._interrupted = False
            raise KeyboardInterrupt
        return bool(flags[0])

    def merge(self, array: HostArray) -> None:
        if self.size > 1:
            self._comm.Allreduce(self._mpi.IN_PLACE, array.reshape(-1).view(np.uint8), op=self._mpi.BOR)

    def broadcast(self, value: T) -> T:
        result: T = self._comm.bcast(value)
        return result

    def broadcast_array(self, array: HostArray) -> None:
        self._comm.Bcast(array)

    def agree(self, facts: Mapping[str, Any]) -> None:
        first, *others = self._comm.allgather(dict(facts))
        for rank, other in enumerate(others, 1):
            for name in first:
                if other[name] != first[name]:
                    raise GroupError(
                        f"the processes differ in {name}: rank 0 has {first[name]}, rank {rank} has "
                        f"{other[name]}; start all of them with the same program, versions, options and data"
                    )

    def together(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        results: list[T] = []
        error: BaseException | None = None
        try:
            results.append(work())
        except (Exception, SystemExit) as caught:
            error = caught
        text = None if error is None else str(error) or type(error).__name__
        found = self._comm.allgather((text, self._interrupted))
        failed = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(found) if text is not None]
        interrupted = any(flag for _, flag in found)
        if undo is not None and results and (failed or interrupted):
            undo(*results)
        if interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        if error is not None:
            raise error
        if failed:
            raise GroupError("\n".join(failed))
        return results[0]

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        main = threading.current_thread() is threading.main_thread()
        if self.size == 1 or self._guarded or not main:
            yield
            return

        def note(*_: object) -> None:
            self._interrupted = True

        self._interrupted, self._guarded = False, True
        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self._guarded = False

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print a message with the rank of this process, and end all processes."""
        lines = "".join(f"rank {self.rank}: {line}\n" for line in message.rstrip().split("\n"))
        if sys.__stderr__ is not None:
            sys.__stderr__.write(lines)
            sys.__stderr__.flush()
            time.sleep(0.2)  # MPICH's mpiexec may lose what it has not passed on when the processes end
        self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)  # some libraries return before they end the process

    def _end(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """What Python calls for an exception that nobody handles."""
        self.abort("".join(traceback.format_exception(kind, error, trace)))

    def _limit_threads(self) -> None:
        usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
        cores = sorted(usable(0))
        sharing = self._machine.allgather(cores).count(cores)  # mpiexec may give each process cores of its own
        threads = max(1, len(cores) // sharing)
        for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
            if library.num_threads > threads:
                library.set_num_threads(threads)


def on_host(backend: Backend, array: Array, change: Callable[[HostArray], None]) -> None:
    """Change an array of a device in place by a function of an array on the host."""
    host = backend.to_numpy(array)
    change(host)
    if host is not array:
        backend.xp.copyto(array, backend.asarray(host))


class _Plan:
    """Who adds up what in `MPIGroup.sum` for one length: a part of the sum for each process.

    Args:
        size: number of processes.
        terms: of the sum.
        length: of each term.
    """

    def __init__(self, size: int, terms: int, length: int) -> None:
        each = terms // size
        self._terms = terms
        self.pieces: list[tuple[int, int, int, int]] = []  # rank, index, first term and the one after the last
        for rank in range(size):
            sums = PairwiseSum(np, terms)
            for term in range(rank * each, (rank + 1) * each):
                sums.add(np.empty(0), term, term + 1)
            starts = [start for start, _ in sums.pieces]
            ends = [*starts[1:], (rank + 1) * each]
            self.pieces += [(rank, i, *span) for i, span in enumerate(zip(starts, ends, strict=True))]
        self.longest = -(-length // size)
        ends = [min(rank * self.longest, length) for rank in range(size + 1)]
        self.parts = [slice(*span) for span in pairwise(ends)]

    def add(self, xp: Any, received: Iterable[Array]) -> Array:
        """The sum of what was received, an array for each piece, in order; all are overwritten."""
        sums = PairwiseSum(xp, self._terms)
        for (_, _, start, stop), piece in zip(self.pieces, received, strict=True):
            sums.add(piece, start, stop)
        return sums.pieces[0][1]


class DeviceSum:
    """`Group.sum` on the GPUs of several processes: each adds up one part, as on CPUs.

    Args:
        connection: of the GPUs.
        rank, size: the number of this process, and how many there are.
    """

    def __init__(self, connection: Connection, rank: int, size: int) -> None:
        self._connection, self._rank, self._size = connection, rank, size
        # Plans and the arrays that they receive, which stay: graphs use them.
        self._plans: dict[tuple[int, int, str], tuple[_Plan, list[Array]]] = {}

    def __call__(self, pieces: Sequence[tuple[int, Array]], terms: int, out: Array) -> None:
        key, xp = (terms, len(out), out.dtype.str), array_namespace(out)
        if key not in self._plans:
            plan = _Plan(self._size, terms, len(out))
            own = out[plan.parts[self._rank]]
            self._plans[key] = plan, [xp.empty_like(own) for _ in plan.pieces]
        plan, received = self._plans[key]
        parts = list(enumerate(plan.parts))
        sent = [(rank, piece[part]) for rank, part in parts for _, piece in pieces]
        senders = [rank for rank, *_ in plan.pieces]
        self._connection.exchange(sent, zip(senders, received, strict=True))
        total = plan.add(xp, received)
        self._connection.exchange(
            [(rank, total) for rank, _ in parts], [(rank, out[part]) for rank, part in parts]
        )


class _HostPlan(_Plan):
    """The arrays of `MPIGroup.sum` on the CPU: a flag stands at the end of each part.

    Args:
        size, terms: see `_Plan`.
        out: an array of its length and dtype.
    """

    def __init__(self, size: int, terms: int, out: HostArray) -> None:
        super().__init__(size, terms, len(out))
        most, part = 1 + max(index for _, index, _, _ in self.pieces), self.longest
        self.sent, self.received = (np.zeros((size, most, part + 1), out.dtype) for _ in range(2))
        self.gathered = np.zeros((size, part + 1), out.dtype)

    def fill(self, index: int, piece: HostArray) -> None:
        for to, part in zip(self.sent, self.parts, strict=True):
            values = piece[part]
            to[index, : len(values)] = values

    def total(self) -> HostArray:
        """The sum of what was received, and the sum of the flags in its last element."""
        total: HostArray = self.add(np, (self.received[rank, index] for rank, index, _, _ in self.pieces))
        return total

    def copy_to(self, out: HostArray) -> None:
        for values, part in zip(self.gathered, self.parts, strict=True):
            out[part] = values[: part.stop - part.start]


def launcher() -> tuple[int, int]:
    """Rank of this process and number of processes, as mpiexec says in the environment; 0 and 1 without it."""
    for rank, size in _LAUNCHERS:
        if os.environ.get(rank, "").isdigit() and os.environ.get(size, "").isdigit():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def _load_mpi() -> Any:
    """mpi4py's MPI, initialized, whose library is that of mpiexec."""
    require("groups of MPI", "mpi4py", "mpi")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "suspicious MPI")  # of another mpiexec, which is refused here
        try:
            if "mpi4py.MPI" not in sys.modules:
                import mpi4py

                mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
            from mpi4py import MPI
        except (RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise MissingExtraError(f"mpi4py finds no MPI library ({reason}); install one: {GET_MPI}") from error
        if not MPI.Is_initialized():
            library, by_open_mpi = MPI.Get_library_version(), "OMPI_COMM_WORLD_SIZE" in os.environ
            if by_open_mpi and any(name in library for name in ("MPICH", "MVAPICH", "Intel")):
                raise _other_mpiexec(MPI)  # some of these would abort the process
            MPI.Init_thread()
    if launcher()[1] > 1 and MPI.COMM_WORLD.size == 1:
        raise _other_mpiexec(MPI)
    return MPI


def _other_mpiexec(mpi: Any) -> GroupError:
    library = " ".join(mpi.Get_library_version().strip("\0").split("\n")[0].split(",")[0].split())
    return GroupError(
        f"mpiexec has started {launcher()[1]} processes, but each is alone for the MPI library that mpi4py has "
        f"loaded ({library}): this mpiexec is that of another MPI; use the one of that library"
    )
