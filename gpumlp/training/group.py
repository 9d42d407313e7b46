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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np
import threadpoolctl

from ..backends import Array, HostArray
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
    """

    rank = 0
    size = 1

    def sum(self, pieces: Sequence[tuple[int, Array]], terms: int, out: Array) -> None:
        """Write the sum of the terms of all processes into `out`, on all of them.

        Args:
            pieces: those of a `PairwiseSum` of this process's share of the terms; the last one may be `out`.
            terms: number of terms; each process has as many, in the order of the ranks.
            out: ``(size,)``, overwritten.

        Raises:
            KeyboardInterrupt: there was an interrupt in any of the processes; see `interruptible`.
        """

    def merge(self, array: Array) -> None:
        """Put together, in place, an array of which each process has written a part, and zeros everywhere else."""

    def broadcast(self, value: T) -> T:
        """The value that process 0 has."""
        return value

    def broadcast_array(self, array: Array) -> None:
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
    """The processes that mpiexec has started, which train one network together on CPUs.

    >>> from gpumlp import MLP, MPIGroup, fit, load_digits  # doctest: +SKIP
    >>> fit(MLP([64, 32, 10], device="cpu"), load_digits()[0], group=MPIGroup())  # doctest: +SKIP

    An exception that a process does not handle is printed with its rank and ends all of them: the others would
    wait for it forever. The number of BLAS threads of each process is limited to the number of cores, divided by
    the number of processes that share them.

    Args:
        comm: a communicator of mpi4py; None for all processes. A copy of it is used.

    Attributes:
        seconds: spent in `sum`, waiting for others included.

    Raises:
        MissingExtraError: mpi4py or MPI cannot be loaded.
        GroupError: mpiexec is that of another MPI than the one that mpi4py has loaded.
    """

    def __init__(self, comm: Any = None) -> None:
        self._mpi: Any = _load_mpi()
        self._comm: Any = (self._mpi.COMM_WORLD if comm is None else comm).Dup()
        self.rank, self.size = int(self._comm.rank), int(self._comm.size)
        self.seconds = 0.0
        self._plans: dict[tuple[int, int, str], _Plan] = {}
        self._interrupted = self._guarded = False
        if self.size > 1:
            self._limit_threads()
            sys.excepthook = self._end

    def sum(self, pieces: Sequence[tuple[int, Array]], terms: int, out: Array) -> None:
        if self.size == 1:
            return
        began = time.perf_counter()
        key = terms, len(out), out.dtype.str
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(self.size, terms, out)
        # Each process adds up one part of the array. That is the traffic of a ring, in an order of our own.
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

    def merge(self, array: Array) -> None:
        if self.size > 1:
            self._comm.Allreduce(self._mpi.IN_PLACE, array.reshape(-1).view(np.uint8), op=self._mpi.BOR)

    def broadcast(self, value: T) -> T:
        result: T = self._comm.bcast(value)
        return result

    def broadcast_array(self, array: Array) -> None:
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
        machine = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        sharing = machine.allgather(cores).count(cores)  # mpiexec may give each process cores of its own
        machine.Free()
        threads = max(1, len(cores) // sharing)
        for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
            if library.num_threads > threads:
                library.set_num_threads(threads)


class _Plan:
    """The arrays of `MPIGroup.sum` for one length: a part of the sum for each process, with a flag at its end.

    Args:
        size: number of processes.
        terms: of the sum.
        out: an array of its length and dtype.
    """

    def __init__(self, size: int, terms: int, out: HostArray) -> None:
        each = terms // size
        self._terms = terms
        self._pieces: list[tuple[int, int, int, int]] = []  # rank, index, first term and the one after the last
        for rank in range(size):
            sums = PairwiseSum(np, terms)
            for term in range(rank * each, (rank + 1) * each):
                sums.add(np.empty(0), term, term + 1)
            starts = [start for start, _ in sums.pieces]
            ends = [*starts[1:], (rank + 1) * each]
            self._pieces += [(rank, i, *span) for i, span in enumerate(zip(starts, ends, strict=True))]
        part = -(-len(out) // size)
        most = 1 + max(index for _, index, _, _ in self._pieces)
        self.sent, self.received = (np.zeros((size, most, part + 1), out.dtype) for _ in range(2))
        self.gathered = np.zeros((size, part + 1), out.dtype)
        ends = [min(rank * part, len(out)) for rank in range(size + 1)]
        self._parts = [slice(*span) for span in pairwise(ends)]

    def fill(self, index: int, piece: HostArray) -> None:
        for to, part in zip(self.sent, self._parts, strict=True):
            values = piece[part]
            to[index, : len(values)] = values

    def total(self) -> HostArray:
        """The sum of what was received, and the sum of the flags in its last element."""
        sums = PairwiseSum(np, self._terms)
        for rank, index, start, stop in self._pieces:
            sums.add(self.received[rank, index], start, stop)
        total: HostArray = sums.pieces[0][1]
        return total

    def copy_to(self, out: HostArray) -> None:
        for values, part in zip(self.gathered, self._parts, strict=True):
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
