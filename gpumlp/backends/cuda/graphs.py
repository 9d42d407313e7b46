"""CUDA graphs: many training steps in one launch.

Steps of full batches are captured once, in graphs of 16, 4 and 1 steps, and launched for every such part of every
epoch. A graph contains fixed addresses and scalars, so values that change are stored on the device: the position
in the epoch, and the optimizer's factors (learning rate, Adam's bias corrections).

The first step is run without a graph, since compiling kernels and selecting the algorithms of matrix products is
not possible during a capture; so is a smaller last batch. `GraphRunner.unsupported_reason` tells why a step cannot
be captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from ..base import Array, Step
from .kernels import (
    Device,
    GraphOffsets,
    cuda_activation,
    has_loss_kernel,
    has_penalty_kernel,
    optimizer_kernel,
    unsupported_reason,
)

LENGTHS = (16, 4, 1)  # steps per graph; running 16 takes far longer than launching the next graph
CAPACITY = 256  # steps whose factors are copied to the device at a time

StepKey: TypeAlias = tuple[Any, ...]


class NotCapturableError(RuntimeError):
    """A step performs an operation that a graph cannot repeat."""


@dataclass
class Capture:
    """A capture in progress: the offsets for its operations, and the number of captured steps."""

    offsets: GraphOffsets
    steps: int = 0

    def next_slot(self) -> int:
        self.steps += 1
        return self.steps - 1


@dataclass
class Captured:
    """The graphs of one `Step`.

    Attributes:
        key: the `step_key` for which the graphs are valid.
        refusal: why the step could not be captured, or None.
        graphs: by number of steps, in descending order.
        offsets: from which the graphs read the values that change.
        arrays: the captured arrays; the references prevent the reuse of their addresses.
    """

    key: StepKey
    refusal: str | None
    graphs: dict[int, Any]
    offsets: GraphOffsets
    arrays: list[Array]


class GraphRunner:
    """Runs the steps of a backend by CUDA graphs."""

    def __init__(self, backend: Device) -> None:
        self._backend = backend
        self._captured: WeakKeyDictionary[Step, Captured] = WeakKeyDictionary()

    def unsupported_reason(self, step: Step) -> str | None:
        """Why graphs do not support this step; None if they do, as far as known before its capture."""
        if self._backend.products() is None:
            return "CuPy's products cannot be captured; install nvmath-python (pip install '.[nvmath]')"
        found = self._captured.get(step)
        if found is not None and found.refusal is not None and found.key == step_key(step):
            return found.refusal
        return unsupported_reason(step)

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
        done = 0
        while done < len(batches):
            batch = step.slices[batches[done]]
            found = self._captured.get(step)
            known = found is not None and found.key == key
            if known and found is not None and found.refusal is not None:
                break
            if found is None or not known or batch.stop - batch.start < step.batch_size:
                step(batch, learning_rates[done])
                done += 1
                if not known and batch.stop - batch.start == step.batch_size:
                    self._captured[step] = self._prepare(step, key)
                continue
            full = _full_batches(step, batches[done : done + CAPACITY])
            self._launch(step, found, batches[done : done + full], learning_rates[done : done + full])
            done += full
        return done

    def _prepare(self, step: Step, key: StepKey) -> Captured:
        """Capture a graph of each length up to the number of full batches; nothing is computed."""
        xp, dtype = self._backend.xp, step.parameters.dtype
        offsets = GraphOffsets(xp.zeros(2, dtype="int64"), xp.zeros((CAPACITY, 2), dtype=dtype))
        captured = Captured(key, None, {}, offsets, step.arrays())
        full = _full_batches(step, range(min(LENGTHS[0], len(step.slices))))
        try:
            for length in LENGTHS:
                if length <= full:
                    captured.graphs[length] = self._capture(step, step.slices[:length], offsets)
        except RuntimeError as error:  # NotCapturableError, or an error of CuPy or CUDA
            captured.refusal, captured.graphs = f"a step cannot be captured: {error}", {}
        return captured

    def _capture(self, step: Step, batches: Sequence[slice], offsets: GraphOffsets) -> Any:
        backend, xp, steps = self._backend, self._backend.xp, step.state.steps
        capture = Capture(offsets)
        stream = xp.cuda.Stream(non_blocking=True)
        with stream, xp.cuda.using_allocator(_refuse_allocation):
            stream.begin_capture()
            try:
                with backend.capturing(capture):
                    for batch in batches:
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
        factors = [
            step.optimizer.step_factors(state.steps + number, rate)
            for number, rate in enumerate(learning_rates, 1)
        ]
        host = np.array(factors, dtype=offsets.factors.dtype)
        backend.xp.copyto(offsets.factors[: len(batches)], backend.asarray(host))
        done = 0
        while done < len(batches):
            length = next(length for length in found.graphs if length <= len(batches) - done)
            kernels.set_position(offsets, step.slices[batches[done]].start, done)
            found.graphs[length].launch()
            state.steps += length
            done += length


def step_key(step: Step) -> StepKey:
    """Addresses, shapes and rules of a step: a captured graph is valid while they are unchanged."""
    activations = [(repr(layer.activation), cuda_activation(layer.activation)) for layer in step.layers]
    return (
        *((array.data.ptr, array.shape, array.dtype.char) for array in step.arrays()),
        *(step.optimizer, step.penalty, type(step.loss), repr(step.loss), *activations),
        *(optimizer_kernel(step.optimizer), has_penalty_kernel(step.penalty), has_loss_kernel(step.loss)),
        *(step.batch_size, step.gradient_wanted, step.same_rules),
    )


def _full_batches(step: Step, batches: range) -> int:
    """The number of full batches among these: only the last one of an epoch may be smaller."""
    last = step.slices[batches[-1]]
    return len(batches) if last.stop - last.start == step.batch_size else len(batches) - 1


def _refuse_allocation(size: int) -> Any:
    raise NotCapturableError(f"it allocates {size:,} bytes, which its graph would continue to use")
