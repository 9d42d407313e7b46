"""Many training steps in one launch, by CUDA graphs.

Steps of full batches are captured once, 16, 4 and 1 at a time, from the beginning of an epoch, and launched again
for every such part of every epoch. A graph keeps addresses and scalars as they were, so what changes lies on the
device: where in the epoch the part begins, and the optimizer's factors (learning rate, Adam's corrections).

The first step runs by itself: it compiles kernels and chooses the algorithms of the matrix products, which a
capture cannot do. The short last batch runs by itself too. A step that cannot be captured is not run by graphs:
`GraphRunner.unsupported_reason` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from ..base import Array, Step
from .kernels import Device, Place, cuda_activation, unsupported_reason

LENGTHS = (16, 4, 1)  # steps in a graph; 16 of them take the GPU far longer than launching the next graph
CAPACITY = 256  # steps whose factors are on the device at a time: it works on them while the next are made ready


StepKey: TypeAlias = tuple[Any, ...]


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
class Captured:
    """The graphs of one `Step`.

    Attributes:
        key: of what was captured; the graphs hold for nothing else.
        refusal: why it could not be captured, or None.
        graphs: by the number of their steps, the longest first.
        place: where they read what changes.
        arrays: the captured ones, kept so that their addresses are given to no others.
    """

    key: StepKey
    refusal: str | None
    graphs: dict[int, Any]
    place: Place
    arrays: list[Array]


class GraphRunner:
    """Runs steps for a backend by graphs."""

    def __init__(self, backend: Device) -> None:
        self._backend = backend
        self._captured: WeakKeyDictionary[Step, Captured] = WeakKeyDictionary()

    def unsupported_reason(self, step: Step) -> str | None:
        """Why graphs cannot run this step, as a sentence; None if they can, as known before a capture."""
        if self._backend.products() is None:
            return "CuPy's products cannot be captured; install nvmath-python (pip install '.[nvmath]')"
        found = self._captured.get(step)
        if found is not None and found.refusal is not None and found.key == step_key(step):
            return found.refusal
        return unsupported_reason(step)

    def describe(self, step: Step) -> str:
        """How the steps are run, in words."""
        return f"up to {LENGTHS[0]} steps in one launch"

    def run(self, step: Step, key: StepKey, batches: range, learning_rates: Sequence[float]) -> int:
        """Run steps that `unsupported_reason` has nothing against.

        Args:
            step: whose `batches` to run.
            key: its `step_key`.
            batches, learning_rates: as for `Backend.run_steps`.

        Returns:
            How many were run: all, or those before a capture that was refused.
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
        """Capture a graph of each length that an epoch has full batches for; nothing is computed."""
        xp, dtype = self._backend.xp, step.parameters.dtype
        place = Place(xp.zeros(2, dtype="int64"), xp.zeros((CAPACITY, 2), dtype=dtype))
        captured = Captured(key, None, {}, place, step.arrays())
        full = _full_batches(step, range(min(LENGTHS[0], len(step.slices))))
        try:
            for length in LENGTHS:
                if length <= full:
                    captured.graphs[length] = self._capture(step, step.slices[:length], place)
        except RuntimeError as error:  # NotCapturableError, or what CuPy and CUDA refuse within a capture
            captured.refusal, captured.graphs = f"a step cannot be captured: {error}", {}
        return captured

    def _capture(self, step: Step, batches: Sequence[slice], place: Place) -> Any:
        backend, xp, steps = self._backend, self._backend.xp, step.state.steps
        capture = Capture(place)
        stream = xp.cuda.Stream(non_blocking=True)
        with stream, xp.cuda.using_allocator(_refuse_allocation):
            stream.begin_capture()
            try:
                with backend.capturing(capture):
                    for batch in batches:
                        step(batch, 0.0)  # the learning rate is read from the device
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

    def _launch(self, step: Step, found: Captured, batches: range, learning_rates: Sequence[float]) -> None:
        """Run full batches, `CAPACITY` at most."""
        backend, state, place = self._backend, step.state, found.place
        kernels = backend.kernels(place.factors.dtype)
        factors = [
            step.optimizer.step_factors(state.steps + number, rate)
            for number, rate in enumerate(learning_rates, 1)
        ]
        host = np.array(factors, dtype=place.factors.dtype)
        backend.xp.copyto(place.factors[: len(batches)], backend.asarray(host))
        done = 0
        while done < len(batches):
            length = next(length for length in found.graphs if length <= len(batches) - done)
            kernels.set_position(place, step.slices[batches[done]].start, done)
            found.graphs[length].launch()
            state.steps += length
            done += length


def step_key(step: Step) -> StepKey:
    """Addresses, shapes and rules of a step: equal as long as what was prepared for it holds."""
    activations = [(repr(layer.activation), cuda_activation(layer.activation)) for layer in step.layers]
    return (
        *((array.data.ptr, array.shape, array.dtype.char) for array in step.arrays()),
        *(step.optimizer, step.penalty, repr(step.loss), *activations),
        *(step.batch_size, step.gradient_wanted, step.same_rules),
    )


def _full_batches(step: Step, batches: range) -> int:
    """How many of these batches, from the first one on, are full: all but perhaps the last of an epoch."""
    last = step.slices[batches[-1]]
    return len(batches) if last.stop - last.start == step.batch_size else len(batches) - 1


def _refuse_allocation(size: int) -> Any:
    raise NotCapturableError(f"it allocates {size:,} bytes, which its graph would go on using")
