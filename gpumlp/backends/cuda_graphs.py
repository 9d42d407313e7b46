"""Many training steps in one launch, by CUDA graphs, used only where they are exact and faster.

Steps of equal batches are captured once, 16, 4 and 1 at a time, and launched again for every such part of every
epoch. A graph keeps addresses and scalars as they were, so what changes lies on the device: where in the epoch the
part begins, and the optimizer's factors (learning rate, Adam's corrections) of its steps. The short last batch,
and whatever else does not fit, goes step by step.

The first steps of a training are run one by one, which compiles and tries what they need. Then a few are run both
ways from the same state, by each graph that is to be used: only if every parameter, optimizer state, loss and hit
is the same, bit for bit, and graphs are faster, are they used from there on. Anything that goes wrong means step
by step, and is remembered.
Tested on a double of CuPy's streams; not yet measured on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from .cuda_kernels import Place
from .cuda_rules import step_factors
from .frozen import FrozenStep
from .rules import Array

if TYPE_CHECKING:
    from .cuda_operations import CudaOperations

LENGTHS = (16, 4, 1)  # steps in a graph; 16 of them take the GPU far longer than launching the next graph
CAPACITY = 256  # steps whose factors are on the device at a time: it works on them while the next are made ready
TRIAL = 2 * LENGTHS[0]  # steps at most that the trial is made of
_REPEATS = 3  # of each way in the trial; the fastest counts


class NotCapturableError(RuntimeError):
    """A step does something that a graph cannot repeat."""


@dataclass
class Capture:
    """A capture in progress: its operations read their place from here, and count the steps."""

    place: Place
    steps: int = 0

    def next_slot(self) -> int:
        self.steps += 1
        return self.steps - 1


@dataclass
class Plan:
    """The graphs of one `TrainingStep`.

    Attributes:
        state: ``"new"``, ``"warm"`` after a first run, then ``"graph"`` or ``"eager"``: for good, unless the trial
            had too few steps for the longest graph and more of them come.
        reason: why in words, once that is decided.
        key: of what was captured; graphs hold for nothing else.
        start: the sample with which the captured part begins.
        size: samples in a batch, by the first one seen.
        kept: the captured arrays, so that their addresses are given to no others.
    """

    state: str = "new"
    reason: str = ""
    key: tuple[Any, ...] = ()
    start: int = 0
    size: int = 0
    kept: list[Array] = field(default_factory=list)
    graphs: dict[int, Any] = field(default_factory=dict)
    place: Place | None = None
    tried: int = 0  # the longest graph that was tried


class GraphRunner:
    """Runs steps for a backend, by graphs or one by one.

    Args:
        backend: whose operations are captured.
        clock: seconds.
    """

    def __init__(self, backend: CudaOperations, clock: Callable[[], float] = time.perf_counter) -> None:
        self._backend = backend
        self._plans: WeakKeyDictionary[Any, Plan] = WeakKeyDictionary()
        self.clock = clock

    def plan(self, step: Any) -> Plan:
        """How the steps of this training are run."""
        return self._plans.setdefault(step, Plan())

    def describe(self, step: Any) -> str:
        """How the steps of this training are run, and why, in words."""
        plan = self.plan(step)
        if plan.state == "graph":
            return f"by CUDA graphs: {plan.reason}"
        return f"one by one: {plan.reason or 'too few to try a CUDA graph'}"

    def run(self, step: Any, batches: Iterable[slice]) -> None:
        """Run a step for each batch, in order."""
        batches = list(batches)
        if not batches or not hasattr(step, "frozen"):
            return _one_by_one(step, batches)
        plan, frozen = self.plan(step), step.frozen()
        if plan.state == "graph" and frozen.key() != plan.key:  # somebody has exchanged an array or a rule
            plan.state, plan.graphs = "warm", {}
            return _one_by_one(step, batches)
        if plan.state == "new":
            plan.state, plan.size = "warm", batches[0].stop - batches[0].start
            count = len(batches) if len(batches) <= TRIAL else LENGTHS[0]
            _one_by_one(step, batches[:count])
            return self.run(step, batches[count:])
        count = _equal_batches(batches[:TRIAL], plan.size)
        if plan.state == "warm" or plan.tried < LENGTHS[0] <= count:
            if count == 0:
                return _one_by_one(step, batches)
            self._try(plan, step, frozen, batches[:count])
            return self.run(step, batches[count:])
        if plan.state == "eager":
            return _one_by_one(step, batches)
        for first in range(0, len(batches), CAPACITY):
            part = batches[first : first + CAPACITY]
            count = _equal_batches(part, plan.size)
            if count > 0:
                self._launch(plan, step, part[:count])
            _one_by_one(step, part[count:])
        return None

    # -- Capture and launch ---------------------------------------------------------------------------

    def _capture(self, plan: Plan, step: Any, batches: Sequence[slice]) -> Any:
        """The steps as a graph; nothing is computed."""
        backend, xp, steps = self._backend, self._backend.xp, step.state.steps
        assert plan.place is not None
        capture = Capture(plan.place)
        stream = xp.cuda.Stream(non_blocking=True)
        with stream, xp.cuda.using_allocator(_refuse_allocation):
            stream.begin_capture()
            try:
                with backend.capturing(capture):
                    _one_by_one(step, batches)
            except BaseException:
                with suppress(Exception):  # it only says again that the capture failed
                    stream.end_capture()
                raise
            finally:
                step.state.steps = steps
            graph = stream.end_capture()
        if capture.steps != len(batches):
            raise NotCapturableError(f"expected {len(batches)} optimizer steps in a capture, got {capture.steps}")
        return graph

    def _launch(self, plan: Plan, step: Any, batches: Sequence[slice]) -> None:
        """Run equal batches, `CAPACITY` at most, by graphs."""
        backend, state, place = self._backend, step.state, plan.place
        assert place is not None
        kernels = backend.kernels(place.factors.dtype)
        assert kernels is not None
        factors = [
            step_factors(step.optimizer, state.steps + number, step.learning_rate)
            for number in range(1, len(batches) + 1)
        ]
        host = np.array(factors, dtype=place.factors.dtype)
        backend.xp.copyto(place.factors[: len(batches)], backend.asarray(host))
        done = 0
        while done < len(batches):
            length = next((length for length in plan.graphs if length <= len(batches) - done), 0)
            if length == 0:
                return _one_by_one(step, batches[done:])
            kernels.set_position(place, batches[done].start - plan.start, done)
            plan.graphs[length].launch()
            state.steps += length
            done += length
        return None

    # -- The trial ------------------------------------------------------------------------------------

    def _try(self, plan: Plan, step: Any, frozen: FrozenStep, batches: Sequence[slice]) -> None:
        """Run these equal batches one by one, and decide by what graphs make of the last of them."""
        plan.state, plan.graphs = "warm", {}  # until it is decided: an interrupt may come at any time
        length = min(len(batches), sum(LENGTHS))
        _one_by_one(step, batches[:-length])
        part = batches[-length:]
        results = [array[part[0].start : part[-1].stop] for array in frozen.results]
        frozen_part = frozen._replace(results=results)
        steps, start = step.state.steps, [array.copy() for array in frozen.memory]
        epoch = [array.copy() for array in frozen.results]

        def restore() -> None:
            step.state.steps = steps
            self._copy(start, frozen.memory)

        eager_seconds, eager = self._timed(frozen_part, restore, lambda: _one_by_one(step, part))
        try:
            self._prepare(plan, step, frozen, part)
            graph_seconds, graph = self._timed(frozen_part, restore, lambda: self._launch(plan, step, part))
        except Exception as error:  # CuPy's and CUDA's errors have many types; none may end a training
            plan.state, plan.reason = "eager", f"{type(error).__name__}: {error}"
        else:
            if not self._same([*eager, *graph]):
                plan.state, plan.reason = "eager", "the results differ"
            elif graph_seconds < eager_seconds:
                plan.state = "graph"
                plan.reason = f"{length} steps took {graph_seconds:.3g} s rather than {eager_seconds:.3g} s"
            else:
                plan.state, plan.reason = "eager", "graphs are not faster here"
        plan.tried = _split(length)[0]
        if plan.state == "eager":
            plan.graphs, plan.kept, plan.place = {}, [], None
        step.state.steps = steps + length
        self._copy(epoch, frozen.results)  # a graph that is wrong may have written anywhere
        self._copy(eager[0], [*frozen.memory, *results])

    def _prepare(self, plan: Plan, step: Any, frozen: FrozenStep, batches: Sequence[slice]) -> None:
        """Capture the graphs that these batches are run by: no other is used, as no other is tried."""
        xp, dtype = self._backend.xp, frozen.memory[0].dtype
        plan.place = Place(xp.zeros(2, dtype="int64"), xp.zeros((CAPACITY, 2), dtype=dtype))
        plan.start, plan.key, plan.kept = batches[0].start, frozen.key(), frozen.arrays()
        for length in _split(len(batches)):
            plan.graphs[length] = self._capture(plan, step, batches[:length])

    def _timed(
        self, frozen: FrozenStep, restore: Callable[[], None], run: Callable[[], None]
    ) -> tuple[float, list[list[Array]]]:
        """The shortest time, and what each repeat left behind."""
        seconds, results = [], []
        for _ in range(_REPEATS):
            restore()
            for array in frozen.results:
                array.fill(0)
            self._backend.synchronize()
            start = self.clock()
            run()
            self._backend.synchronize()
            seconds.append(self.clock() - start)
            results.append([array.copy() for array in (*frozen.memory, *frozen.results)])
        return min(seconds), results

    def _same(self, results: list[list[Array]]) -> bool:
        """Are these equal, bit for bit? NaN included, which equals nothing."""
        xp = self._backend.xp
        return all(
            not xp.max(xp.bitwise_xor(mine.view(np.uint8), other.view(np.uint8)))  # see `CudaOperations.total`
            for result in results[1:]
            for mine, other in zip(results[0], result, strict=True)
        )

    def _copy(self, sources: Sequence[Array], targets: Sequence[Array]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self._backend.xp.copyto(target, source)


def _one_by_one(step: Any, batches: Sequence[slice]) -> None:
    for batch in batches:
        step(batch)


def _equal_batches(batches: Sequence[slice], size: int) -> int:
    """How many batches from the first on follow each other and are of this size."""
    for count, batch in enumerate(batches):
        start = batches[0].start + count * size
        if (batch.start, batch.stop) != (start, start + size):
            return count
    return len(batches)


def _split(count: int) -> list[int]:
    """Which of the lengths so many steps are made of, the longest first."""
    result = []
    for length in LENGTHS:
        if count >= length:
            result.append(length)
            count %= length
    return result


def _refuse_allocation(size: int) -> Any:
    raise NotCapturableError(f"a step allocates {size:,} bytes, which its graph would go on using")
