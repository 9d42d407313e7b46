"""CUDA graphs: many training steps in one launch.

Steps of full batches are captured once, in graphs of 16, 4 and 1 steps, and launched for every such part of every
epoch. A graph contains kernels and array code, with fixed addresses and scalars, so values that change are
stored on the device: the position in the epoch, the optimizer's factors (learning rate, Adam's bias corrections)
and the number of steps taken. Temporary arrays of array code come from a memory pool of the graphs' own.

The first step is run without a graph, since compiling kernels and selecting the algorithms of matrix products is
not possible during a capture; so is a smaller last batch. A step that waits for the device, or that reads or
changes what a graph would not change, cannot be captured and is run without one; `GraphRunner.unsupported_reason`
says why.

Of several processes that take each step together, all launch the same graphs, or none does, since a graph waits
for those of the others. Their first step, without a graph, connects them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from ..base import Array, Step
from .kernels import Device, GraphOffsets

LENGTHS = (16, 4, 1)  # steps per graph; running 16 takes far longer than launching the next graph
CAPACITY = 256  # steps whose factors are copied to the device at a time


class NotCapturableError(RuntimeError):
    """A step performs an operation that a graph cannot repeat."""


def _refuse(*_: object) -> Any:
    raise NotCapturableError("it reads the number of steps, which would not change in a graph")


_ARITHMETIC = ["add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "and", "or", "xor"]
_COMPARISONS = ["bool", "eq", "ne", "lt", "le", "gt", "ge", "hash"]
_CONVERSIONS = ["int", "float", "index", "neg", "pos", "abs", "round", "trunc", "repr", "str", "format", "array"]


class CapturedStep:
    """The number of steps in a capture, where it is not known: only dropout can use it.

    Attributes:
        slot: of the step in its graph.
        offsets: those of the graph.
    """

    def __init__(self, slot: int, offsets: GraphOffsets) -> None:
        self.slot, self.offsets = slot, offsets


for _name in (*_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC), *_COMPARISONS, *_CONVERSIONS):
    setattr(CapturedStep, f"__{_name}__", _refuse)


@dataclass
class Capture:
    """A capture in progress.

    Attributes:
        offsets: for its operations.
        read, written: the arrays of the epoch, of which a step reads or writes the part of its batch.
        steps: the number of captured optimizer steps.
    """

    offsets: GraphOffsets
    read: Sequence[Array]
    written: Sequence[Array]
    steps: int = 0

    def next_slot(self) -> int:
        self.steps += 1
        return self.steps - 1

    def moves(self, array: Array) -> bool:
        """Whether this is a part of an array of the epoch, at another address in each launch."""
        return self.writes(array) or any(_contains(whole, array) for whole in self.read)

    def writes(self, array: Array) -> bool:
        """Whether this is a part of an array of the epoch that a step writes."""
        return any(_contains(whole, array) for whole in self.written)


@dataclass
class Captured:
    """The graphs of one `Step`.

    Attributes:
        key: the `StepKey` for which the graphs are valid.
        refusal: why the step could not be captured, or None.
        graphs: by number of steps, in descending order.
        offsets: from which the graphs read the values that change.
        pool: the memory of the temporary arrays in the graphs; nothing else is allocated from it.
    """

    key: StepKey
    refusal: str | None
    graphs: dict[int, Any]
    offsets: GraphOffsets
    pool: Any


class GraphRunner:
    """Runs the steps of a backend by CUDA graphs."""

    def __init__(self, backend: Device) -> None:
        self._backend = backend
        self._captured: WeakKeyDictionary[Step, Captured] = WeakKeyDictionary()
        self._changing: WeakSet[Step] = WeakSet()  # those whose rules change themselves in every step

    def unsupported_reason(self, step: Step) -> str | None:
        """Why graphs do not support this step; None if they do, as far as known before its capture."""
        if self._backend.products() is None:
            return 'CuPy\'s products cannot be captured; install nvmath-python (pip install ".[nvmath]")'
        found = self._captured.get(step)
        if step in self._changing:
            return "each step changes an attribute of a rule, which a graph would not repeat"
        if found is not None and found.refusal is not None and found.key == StepKey(step):
            return found.refusal
        if not step.same_rules:
            return "its rules change from batch to batch, or a method of it is overridden"
        return None

    def holds(self, step: Step, key: StepKey) -> bool:
        """Whether a step with this `StepKey` was captured, or could not be."""
        found = self._captured.get(step)
        return found is not None and found.key == key

    def forget(self, step: Step) -> None:
        """Capture a step anew."""
        self._captured.pop(step, None)

    def describe(self, step: Step) -> str:
        """Describe how a supported step is run."""
        return f"up to {LENGTHS[0]} steps in one launch"

    def run(self, step: Step, key: StepKey, batches: range, learning_rates: Sequence[float]) -> int:
        """Run batches of a supported step.

        Args:
            step: the step.
            key: its `StepKey`.
            batches, learning_rates: as for `Backend.run_steps`.

        Returns:
            The number of batches that were run: all, or those before a capture that failed.
        """
        done, changed = 0, False
        while done < len(batches) and step not in self._changing:
            found, full = self._captured.get(step), _full_batches(step, batches[done : done + CAPACITY])
            if found is not None and found.key != key:
                found = None
            if found is not None and found.refusal is not None:
                break
            if found is not None and full:
                self._launch(step, found, batches[done : done + full], learning_rates[done : done + full])
                done += full
                continue
            step(step.slices[batches[done]], learning_rates[done])
            done += 1
            if found is None and full:
                before, key = key, StepKey(step)
                if key == before:
                    self._captured[step] = self._prepare(step, key, learning_rates[done - 1])
                elif changed:  # twice: it is no array that the first step keeps
                    self._changing.add(step)
                changed = key != before
        return done

    def _prepare(self, step: Step, key: StepKey, learning_rate: float) -> Captured:
        """Capture a graph of each length up to the number of full batches; nothing is computed."""
        xp, dtype = self._backend.xp, step.parameters.dtype
        count = len(step.optimizer.step_factors(step.state.steps + 1, learning_rate))
        offsets = GraphOffsets(xp.empty(3, dtype="int64"), xp.zeros((CAPACITY, count), dtype=dtype))
        self._backend.kernels(dtype).set_position(offsets, 0, 0, 0)  # compiles what only a capture uses
        captured = Captured(key, None, {}, offsets, xp.cuda.MemoryPool())
        full = _full_batches(step, range(min(LENGTHS[0], len(step.slices))))
        stream = xp.cuda.Stream(non_blocking=True)  # one, since a pool reuses memory on the same stream only
        try:
            for length in LENGTHS:
                if length <= full:
                    captured.graphs[length] = self._capture(step, step.slices[:length], captured, stream)
        except Exception as error:  # of a rule of the user's, CuPy or CUDA; without a graph it may be none
            captured.refusal, captured.graphs = f"a step cannot be captured: {error}", {}
        if step.in_any_process(captured.refusal is not None) and captured.refusal is None:
            captured.refusal, captured.graphs = "a step cannot be captured in another process", {}
        return captured

    def _capture(self, step: Step, batches: Sequence[slice], captured: Captured, stream: Any) -> Any:
        backend, xp, steps, offsets = self._backend, self._backend.xp, step.state.steps, captured.offsets
        read = (step.order, step.numbers, step.targets, step.sample_weights)
        of_epoch = [array for array in read if array is not None]
        capture = Capture(offsets, of_epoch, (step.losses, step.scores))
        with stream, xp.cuda.using_allocator(captured.pool.malloc):
            # CuPy's default mode permits the pool to grow. CuPy refuses copies from and to the host.
            stream.begin_capture()
            try:
                with backend.capturing(capture):
                    for slot, batch in enumerate(batches):
                        step.state.steps = CapturedStep(slot, offsets)
                        step(batch, 0.0)  # the learning rate is read from the device
            except BaseException:
                with suppress(Exception):  # a consequence of the first error
                    stream.end_capture()
                raise
            finally:
                step.state.steps = steps
            return stream.end_capture()

    def _launch(self, step: Step, found: Captured, batches: range, learning_rates: Sequence[float]) -> None:
        """Run at most `CAPACITY` full batches."""
        backend, state, offsets = self._backend, step.state, found.offsets
        kernels = backend.kernels(offsets.factors.dtype)
        factors = step.optimizer.factors_of_steps(state.steps + 1, learning_rates)
        host = np.array(factors, dtype=offsets.factors.dtype)
        backend.xp.copyto(offsets.factors[: len(batches)], backend.asarray(host))
        done = 0
        while done < len(batches):
            length = next(length for length in found.graphs if length <= len(batches) - done)
            kernels.set_position(offsets, step.slices[batches[done]].start, done, state.steps)
            found.graphs[length].launch()
            state.steps += length
            done += length


class StepKey:
    """What a captured graph of a step and the choice of its execution depend on.

    Rules are compared by their class and attributes. Of these, numbers, strings and what containers hold are
    compared by value, all else by identity, such as arrays, whose values a graph reads; the references prevent the
    reuse of their addresses.
    """

    def __init__(self, step: Step) -> None:
        activations = [getattr(layer, "activation", None) for layer in step.layers]
        rules = [step.optimizer, step.penalty, step.loss, *step.layers, *activations]
        state = {name: value for name, value in vars(step.state).items() if name != "steps"}
        found: list[Any] = [step.batch_size, step.gradient_wanted, step.same_rules, step.shards, step.clip_norm]
        found += [step.max_norm, step.decay, step.warp, *([] if step.draws is None else step.draws[:2])]
        found += [*step.arrays(), *map(type, rules)]
        for attributes in (state, *(vars(rule) for rule in rules if hasattr(rule, "__dict__"))):
            _flatten(attributes.values(), found)
        self._found = found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StepKey) or len(self._found) != len(other._found):
            return False
        # The first comparison is all that most calls take.
        return all(map(operator.is_, self._found, other._found)) or all(
            one is two or (type(one) in _VALUES and type(one) is type(two) and one == two)
            for one, two in zip(self._found, other._found, strict=True)
        )


_VALUES = frozenset({int, float, str, bool})


@cache
def _is_container(kind: Any) -> bool:
    """Whether instances hold values, which some of them can change in place."""
    return issubclass(kind, (list, tuple, set, frozenset, dict))


def _flatten(values: Iterable[Any], found: list[Any]) -> None:
    """Append values to a list, and in place of containers what they hold."""
    for value in values:
        kind: Any = type(value)
        if not _is_container(kind):
            found.append(value)
            continue
        found += kind, len(value)
        if isinstance(value, dict):
            found += value
            value = value.values()
        _flatten(value, found)


def _full_batches(step: Step, batches: range) -> int:
    """The number of full batches among these: only the last one of an epoch may be smaller."""
    last = step.slices[batches[-1]]
    return len(batches) if last.stop - last.start == step.batch_size else len(batches) - 1


def _contains(whole: Array, part: Array) -> bool:
    """Whether an array begins in the memory of another one."""
    start = whole.data.ptr
    return bool(start <= part.data.ptr < start + whole.size * whole.dtype.itemsize)
