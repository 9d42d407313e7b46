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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from ..base import Array, Step
from .kernels import (
    Device,
    GraphOffsets,
    cuda_activation,
    has_penalty_kernel,
    loss_kernel,
    optimizer_kernel,
)

LENGTHS = (16, 4, 1)  # steps per graph; running 16 takes far longer than launching the next graph
CAPACITY = 256  # steps whose factors are copied to the device at a time

StepKey: TypeAlias = tuple[Any, ...]


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
        key: the `step_key` for which the graphs are valid.
        refusal: why the step could not be captured, or None.
        graphs: by number of steps, in descending order.
        offsets: from which the graphs read the values that change.
        arrays: the captured arrays; the references prevent the reuse of their addresses.
        pool: the memory of the temporary arrays in the graphs; nothing else is allocated from it.
    """

    key: StepKey
    refusal: str | None
    graphs: dict[int, Any]
    offsets: GraphOffsets
    arrays: list[Array]
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
            return "CuPy's products cannot be captured; install nvmath-python (pip install '.[nvmath]')"
        found = self._captured.get(step)
        if step in self._changing:
            return "each step changes an attribute of a rule, which a graph would not repeat"
        if found is not None and found.refusal is not None and found.key == step_key(step):
            return found.refusal
        if not step.same_rules:
            return "its rules change from batch to batch, or a method of it is overridden"
        return None

    def holds(self, step: Step, key: StepKey) -> bool:
        """Whether a step with this `step_key` was captured, or could not be."""
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
            key: its `step_key`.
            batches, learning_rates: as for `Backend.run_steps`.

        Returns:
            The number of batches that were run: all, or those before a capture that failed.
        """
        done, changed = 0, False
        while done < len(batches) and step not in self._changing:
            batch = step.slices[batches[done]]
            found = self._captured.get(step)
            known = found is not None and found.key == key
            if known and found is not None and found.refusal is not None:
                break
            if found is None or not known or batch.stop - batch.start < step.batch_size:
                step(batch, learning_rates[done])
                done += 1
                if not known and batch.stop - batch.start == step.batch_size:
                    before, key = key, step_key(step)
                    if key == before:
                        self._captured[step] = self._prepare(step, key, learning_rates[done - 1])
                    elif changed:  # twice: it is no array that the first step keeps
                        self._changing.add(step)
                    changed = key != before
                continue
            full = _full_batches(step, batches[done : done + CAPACITY])
            self._launch(step, found, batches[done : done + full], learning_rates[done : done + full])
            done += full
        return done

    def _prepare(self, step: Step, key: StepKey, learning_rate: float) -> Captured:
        """Capture a graph of each length up to the number of full batches; nothing is computed."""
        xp, dtype = self._backend.xp, step.parameters.dtype
        count = len(step.optimizer.step_factors(step.state.steps + 1, learning_rate))
        offsets = GraphOffsets(xp.empty(3, dtype="int64"), xp.zeros((CAPACITY, count), dtype=dtype))
        self._backend.kernels(dtype).set_position(offsets, 0, 0, 0)  # compiles what only a capture uses
        captured = Captured(key, None, {}, offsets, step.arrays(), xp.cuda.MemoryPool())
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
            graph = stream.end_capture()
        if capture.steps != len(batches):
            raise NotCapturableError(f"expected {len(batches)} optimizer steps in a capture, got {capture.steps}")
        return graph

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


class StepKeys:
    """The keys of steps, see `step_key`, computed again where something that they depend on is another object."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Step, tuple[list[Any], StepKey]] = WeakKeyDictionary()

    def of(self, step: Step) -> StepKey:
        """The key of a step."""
        objects = _objects(step)
        found = self._found.get(step)
        if found is not None and len(found[0]) == len(objects) and all(map(operator.is_, found[0], objects)):
            return found[1]
        key = step_key(step)
        if not any(isinstance(each, (list, dict, set)) for each in objects):  # which can change in place
            self._found[step] = objects, key
        return key


def _objects(step: Step) -> list[Any]:
    """Everything that the key of a step depends on."""
    activations = [getattr(layer, "activation", None) for layer in step.layers]
    rules = [step.optimizer, step.penalty, step.loss, *step.layers, *activations]
    state = {name: value for name, value in vars(step.state).items() if name != "steps"}
    objects: list[Any] = [step.batch_size, step.gradient_wanted, step.same_rules, step.shards]
    objects += [step.clip_norm, step.max_norm, step.decay, step.warp]
    objects += [*rules, *step.arrays(), *([] if step.draws is None else step.draws[:2])]
    for attributes in (state, *(vars(rule) for rule in rules if hasattr(rule, "__dict__"))):
        for value in attributes.values():
            objects += value.values() if type(value) is dict else [value]
    return objects


def step_key(step: Step) -> StepKey:
    """Addresses, shapes and rules of a step: a captured graph is valid while they are unchanged."""
    rules = (step.optimizer, step.penalty, step.loss, *step.layers)
    state = {name: value for name, value in vars(step.state).items() if name != "steps"}
    activations = [getattr(layer, "activation", None) for layer in step.layers]
    return (
        *((array.data.ptr, array.shape, array.dtype.char) for array in step.arrays()),
        *(_description(rule) for rule in (*rules, *activations)),
        _comparable(state),
        *(cuda_activation(activation) for activation in activations),
        *(optimizer_kernel(step.optimizer), has_penalty_kernel(step.penalty), loss_kernel(step.loss)),
        *(step.batch_size, step.gradient_wanted, step.same_rules, step.shards, step.clip_norm, step.max_norm),
        *(None if step.average is None else step.decay, None if step.draws is None else step.draws[:2]),
        _Same(step.warp),
    )


class _Same:
    """Something that is compared by identity, such as an array, whose values a graph reads."""

    __slots__ = ("thing",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing


def _description(rule: Any) -> Any:
    """The class and attributes of a rule, to be compared. Computed before each part of an epoch."""
    return type(rule), *((name, _comparable(value)) for name, value in getattr(rule, "__dict__", {}).items())


def _comparable(value: Any) -> Any:
    kind = type(value)
    if kind in (int, float, str, bool, type(None)):
        return kind, value
    if isinstance(value, (list, tuple, set, frozenset)):
        return kind, *map(_comparable, value)
    if isinstance(value, dict):
        return tuple((key, _comparable(item)) for key, item in value.items())
    return _Same(value)


def _full_batches(step: Step, batches: range) -> int:
    """The number of full batches among these: only the last one of an epoch may be smaller."""
    last = step.slices[batches[-1]]
    return len(batches) if last.stop - last.start == step.batch_size else len(batches) - 1


def _contains(whole: Array, part: Array) -> bool:
    """Whether an array begins in the memory of another one."""
    start = whole.data.ptr
    return bool(start <= part.data.ptr < start + whole.size * whole.dtype.itemsize)
