"""The CPU, driven by NumPy."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from .base import PIXEL_SCALE, Backend, DeviceError, Execution, HostArray
from .openblas import numpy_openblas
from .rules import Array, OptimizerRule, PenaltyRule, StepRule
from .threads import Pace, counts_up_to

# A second thread costs the transfer of the parameters between the cores' caches. Measured on two cores: one thread
# is faster for 784-128-10 up to batch 32 (3 million multiply-adds a pass), two are from batch 64 on.
# Where a few steps tell, that is only the number to begin with (see `threads`).
MULTIPLY_ADDS_PER_THREAD = 5_000_000
WORK_FOR_ALL_THREADS = 200_000_000  # multiply-adds: no thread too many for that, and long steps cannot try much
ROWS_AT_A_TIME = 1024  # of a batch: more leave the cache between operations, 7 to 10 % slower from 4,096 on
ROWS_TO_CONVERT = 256  # at a time, so that they are still in the cache when they are scaled
STEPS_BETWEEN_FLUSHES = 128  # of vanishing numbers; 0.9^128 is 1e-6, so that none gets through the margin of 1e8


class NumpyBackend(Backend):
    """The CPU. Arrays are `numpy.ndarray`, and every operation is done when it returns."""

    logits_order = "F"

    def __init__(self) -> None:
        self.name = "cpu"
        self.device_name = processor_name()
        self.xp = np
        self._openblas = numpy_openblas()
        self.accumulates_products = self._openblas is not None
        self._paces: WeakKeyDictionary[StepRule, Pace] = WeakKeyDictionary()
        self.rows_at_a_time = ROWS_AT_A_TIME if self.accumulates_products else None

    def activate(self) -> AbstractContextManager[Any]:
        # Overflow and NaN are the trainer's to find and to explain, once, rather than a warning a step.
        return np.errstate(over="ignore", invalid="ignore", divide="ignore")

    def _threads_for(self, multiply_adds: int) -> AbstractContextManager[None]:
        """As many threads as the work is worth, for matrix products within the context."""
        if self._openblas is None:
            return nullcontext()
        return self._openblas.threads(1 + multiply_adds // MULTIPLY_ADDS_PER_THREAD)

    def owns(self, array: object) -> bool:
        return isinstance(array, np.ndarray)

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        return np.ascontiguousarray(to_host(array), dtype=dtype)

    def to_numpy(self, array: Array) -> HostArray:
        return np.asarray(array)

    def run_steps(self, step: StepRule, batches: Sequence[slice]) -> None:
        if self._any_threads_will_do(step, batches):
            assert self._openblas is not None
            if step not in self._paces:
                start = 1 + step.multiply_adds // MULTIPLY_ADDS_PER_THREAD
                self._paces[step] = Pace(self._openblas.threads, self._most_threads(), start)
            self._paces[step].run(step, batches)
            return
        with self._threads_for(step.multiply_adds):
            super().run_steps(step, batches)

    def execution(self, step: StepRule) -> Execution:
        threads = min(self._most_threads(), 1 + step.multiply_adds // MULTIPLY_ADDS_PER_THREAD)
        return Execution("eager", f"one by one, with {threads} BLAS thread{'s' * (threads > 1)}", threads)

    def _most_threads(self) -> int:
        return 1 if self._openblas is None else int(self._openblas.controller.get_num_threads())

    def _any_threads_will_do(self, step: StepRule, batches: Sequence[slice]) -> bool:
        """Are there several threads, and are a step's results the same bits with any number of them?"""
        most = self._most_threads()
        if most == 1 or not step.sizes or step.multiply_adds > WORK_FOR_ALL_THREADS:
            return False
        # The last batch may be a smaller one; one that goes in parts has a last part as well.
        rows = {size for batch in batches[:: max(1, len(batches) - 1)] for size in _parts(batch, step.rows)}
        last = len(step.sizes) - 2
        return all(
            self._same_bits(step.dtype, size, *layer, self.logits_order if index == last else "C", most)
            for index, layer in enumerate(zip(step.sizes, step.sizes[1:], strict=False))
            for size in rows
        )

    @lru_cache(maxsize=64)  # noqa: B019 (a backend lives as long as its process)
    def _same_bits(
        self, dtype: np.dtype[Any], rows: int, inputs: int, units: int, order: Literal["C", "F"], most: int
    ) -> bool:
        """Are a layer's products the same bits with any number of threads? Tried on random numbers."""
        assert self._openblas is not None
        rng = np.random.default_rng(0)
        x, weight, delta = (
            rng.random(shape, dtype=dtype) - 0.5  # with all the digits of the dtype, or sums would be exact
            for shape in ((rows, inputs), (inputs, units), (rows, units))
        )
        delta = np.asarray(delta, order=order)
        results = []
        for count in counts_up_to(most):
            s, below, sums = np.empty_like(delta), np.empty_like(x), np.empty(units, dtype)
            gradient, weights = np.empty_like(weight), weight.copy()
            with self._openblas.threads(count):
                self.product(x, weight, s)
                np.matmul(delta, weight.T, out=below)
                self.accumulate_product(x, delta, gradient)
                self.accumulate_product(x, delta, weights, -0.1, 0.9)
                self.column_sums(delta, sums)
            results.append([array.tobytes() for array in (s, below, gradient, weights, sums)])
        return all(result == results[0] for result in results)

    def product(self, x: Array, weight: Array, out: Array) -> None:
        # In parts it takes longer (benchmarks/README.md says how much), so not where that is for nothing.
        openblas = self._openblas
        if openblas is None or not openblas.parts_keep_bits or not openblas.product(x, weight, out):
            super().product(x, weight, out)

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        # mode="clip" writes straight into `out`; the default mode builds the result elsewhere first.
        if staging is None:
            source.take(rows, axis=0, out=out, mode="clip")
            return
        source.take(rows, axis=0, out=staging, mode="clip")
        for start in range(0, len(rows), ROWS_TO_CONVERT):
            # Converting and scaling in one call goes through a buffer of NumPy's, and is slower.
            part = out[start : start + ROWS_TO_CONVERT]
            np.copyto(part, staging[start : start + ROWS_TO_CONVERT])
            np.multiply(part, PIXEL_SCALE, out=part)

    def accumulate_product(
        self, x: Array, delta: Array, out: Array, scale: float = 1.0, keep: float = 0.0
    ) -> None:
        if (scale == 1 and keep == 0) or self._openblas is None:
            super().accumulate_product(x, delta, out, scale, keep)
        else:
            self._openblas.accumulate_product(x, delta, out, scale, keep)

    def add_scaled(self, x: Array, scale: float, out: Array, scratch: Array) -> None:
        if self._openblas is None:
            super().add_scaled(x, scale, out, scratch)
        else:
            self._openblas.add_scaled(x, scale, out)

    def column_sums(self, delta: Array, out: Array) -> None:
        np.matmul(_ones(len(delta), delta.dtype), delta, out=out)  # faster than a reduction down the columns

    def softmax_cross_entropy(self, logits: Array, labels: Array, losses: Array, correct: Array) -> None:
        if not logits.flags.f_contiguous:
            super().softmax_cross_entropy(logits, labels, losses, correct)
            return
        # Class after class in memory, so that maximum and sum run along contiguous samples. The same formulas
        # otherwise, with one division a sample in place of one a logit.
        batch = len(labels)
        by_class = logits.T
        flat = by_class.reshape(-1)
        label_entries = labels * batch + _arange(batch)
        np.equal(by_class.argmax(axis=0), labels, out=correct)
        row = np.maximum.reduce(by_class, axis=0)
        np.subtract(by_class, row, out=by_class)
        label_logits = flat[label_entries]
        np.exp(by_class, out=by_class)
        np.add.reduce(by_class, axis=0, out=row)
        np.log(row, out=losses)
        np.subtract(losses, label_logits, out=losses)
        np.divide(1 / batch, row, out=row)
        np.multiply(by_class, row, out=by_class)
        flat[label_entries] -= 1 / batch

    def update(
        self,
        optimizer: OptimizerRule,
        penalty: PenaltyRule,
        parameters: Array,
        gradient: Array,
        weights: slice,
        state: Any,
        learning_rate: float,
        accumulated: bool = False,
    ) -> None:
        super().update(optimizer, penalty, parameters, gradient, weights, state, learning_rate, accumulated)
        if state.steps and state.steps % STEPS_BETWEEN_FLUSHES == 0:
            for buffer in state.buffers.values():
                flush_vanishing(buffer, state.scratch)


def _parts(batch: slice, rows: int) -> set[int]:
    """How many rows go through the layers at a time, of a batch."""
    count = batch.stop - batch.start
    return {min(count, rows), count % rows or rows} if count > rows else {count}


@lru_cache(maxsize=16)  # batch sizes: a full one, a short last one, and those of evaluation
def _ones(count: int, dtype: np.dtype[Any]) -> HostArray:
    ones = np.ones(count, dtype=dtype)
    ones.flags.writeable = False  # it is shared
    return ones


@lru_cache(maxsize=16)
def _arange(count: int) -> HostArray:
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


def is_device_array(array: object) -> bool:
    """Is this a CuPy array? Asked of its type's name, so that CuPy is never imported for it."""
    return type(array).__module__.partition(".")[0] == "cupy"


def flush_vanishing(array: HostArray, scratch: HostArray) -> None:
    """Set numbers below 1e8 times the smallest normal one (1e-30 in float32) to 0, in place.

    `scratch`, of the same shape and dtype, is overwritten.

    Momentum leaves such numbers where a gradient has become 0. Multiplied by 0.9 again and again, they become
    subnormal, with which processors compute up to a hundred times slower, and stay so: 0.9 times the smallest
    rounds to itself. No sum with a parameter notices a change of 1e-30, nor does Adam's division by the root of a
    mean square, to which epsilon is added. Graphics processors need none of this.
    """
    np.abs(array, out=scratch)
    np.greater_equal(scratch, 1e8 * float(np.finfo(array.dtype).tiny), out=scratch)
    np.multiply(array, scratch, out=array)


def to_host(array: Any) -> HostArray:
    """A NumPy array of anything array-like, device arrays included. Waits for the device."""
    if is_device_array(array):
        array = array.get()
    try:
        return np.asarray(array)
    except TypeError as error:
        raise DeviceError(
            f"an array of type {type(array).__name__} cannot be moved to the CPU ({error})",
            "convert it to a NumPy array first",
        ) from error


def processor_name() -> str:
    """The processor's model, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"
