"""The CPU, driven by NumPy."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import (
    PIXEL_SCALE,
    Accumulation,
    Array,
    Backend,
    DeviceError,
    Execution,
    HostArray,
    LossRule,
    OptimizerRule,
    PenaltyRule,
    Step,
    stated,
)
from .distortion import CHUNK, Warp, numpy_distorter
from .openblas import numpy_openblas
from .philox import Draws, threshold

# A second thread costs transfers between the cores' caches. Measured on two cores of a Zen 3, it saves less than
# 15 % below 784-128-10 at batch 128 (13 million multiply-adds per forward pass), 20 to 25 % there, and 40 % at
# batch 1,024. If other programs compete for the cores, threads wait for each other.
MULTIPLY_ADDS_PER_THREAD = 12_000_000
# The weights of a network whose step takes as long for a sample, on one core, as distorting an image in a thread:
# 24 us. All BLAS threads wait for one that shares its core with that thread, which thus gets a core of its own,
# unless a step without that core takes longer than a slowed one: for n cores, w / (n - 1) against 24 us + w / n.
WEIGHTS_PER_DISTORTION = 500_000
ROWS_AT_A_TIME = 1024  # larger parts do not stay in the cache between operations: 7 to 10 % slower from 4,096 on
ROWS_TO_CONVERT = 256  # rows per conversion, which are still in the cache when they are scaled
# of a container
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
STEPS_BETWEEN_FLUSHES = 128  # see `flush_vanishing`: 0.9^128 = 1e-6, well within its margin of 1e8


class NumpyBackend(Backend):
    """The CPU. Arrays are `numpy.ndarray`, and operations are synchronous."""

    logits_order = "F"

    def __init__(self) -> None:
        self.name = "cpu"
        self.device_name = processor_name()
        self.xp = np
        self._openblas = numpy_openblas()
        self.rows_at_a_time = None if self._openblas is None else ROWS_AT_A_TIME

    def activate(self) -> AbstractContextManager[Any]:
        # The trainer detects and reports overflow and NaN once, instead of a warning in each step.
        return np.errstate(over="ignore", invalid="ignore", divide="ignore")

    def owns(self, array: object) -> bool:
        return isinstance(array, np.ndarray)

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        return np.ascontiguousarray(to_host(array), dtype=dtype)

    def to_numpy(self, array: Array) -> HostArray:
        return np.asarray(array)

    def execution(self, step: Step) -> Execution:
        if self._openblas is None:
            return Execution("eager", "NumPy, whose BLAS chooses its number of threads")
        allowed = int(self._openblas.controller.get_num_threads())
        weights = step.weights.stop - step.weights.start
        if step.warp is not None and allowed > 1 and weights < allowed * (allowed - 1) * WEIGHTS_PER_DISTORTION:
            allowed -= 1
        threads = min(allowed, 1 + step.multiply_adds // MULTIPLY_ADDS_PER_THREAD)
        count = f"{threads} BLAS thread{'s' if threads > 1 else ''}"
        return Execution("eager", f"NumPy, {count} for {step.multiply_adds / 1e6:.3g} M multiply-adds", threads)

    def run_steps(self, step: Step, batches: range, learning_rates: Sequence[float]) -> None:
        threads = None if step.evaluates is not None else self.execution(step).threads  # as `MLP.evaluate`
        with nullcontext() if threads is None or self._openblas is None else self._openblas.threads(threads):
            super().run_steps(step, batches, learning_rates)

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        # mode="clip" writes directly into `out`; the default mode uses a temporary array.
        if staging is None:
            source.take(rows, axis=0, out=out, mode="clip")
            return
        source.take(rows, axis=0, out=staging, mode="clip")
        for start in range(0, len(rows), ROWS_TO_CONVERT):
            # Converting and scaling in one call uses a buffer in NumPy and is slower.
            part = out[start : start + ROWS_TO_CONVERT]
            np.copyto(part, staging[start : start + ROWS_TO_CONVERT])
            np.multiply(part, PIXEL_SCALE, out=part)

    def distort(self, source: Array, rows: Array, numbers: Array, epoch: Array, warp: Warp, out: Array) -> None:
        # 19 microseconds for an image of 28 x 28; array code takes 117.
        distorter, of_epoch = numpy_distorter(warp), int(epoch[0])
        scale = PIXEL_SCALE if source.dtype == np.uint8 else 1.0
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            images = source.take(rows[part], axis=0).reshape(-1, *warp.shape)
            images = distorter(images, numbers[part], of_epoch).reshape(len(images), -1)
            np.copyto(out[part], images, casting="unsafe")
            np.multiply(out[part], scale, out=out[part])

    def accumulates(self, optimizer: OptimizerRule, penalty: PenaltyRule) -> bool:
        return self._openblas is not None

    def accumulate_product(self, x: Array, delta: Array, target: Accumulation) -> None:
        if (target.scale == 1 and target.keep == 0) or self._openblas is None:
            super().accumulate_product(x, delta, target)
        else:
            self._openblas.accumulate_product(x, delta, target)

    def add_scaled(self, x: Array, scale: float, out: Array, scratch: Array) -> None:
        if self._openblas is None:
            super().add_scaled(x, scale, out, scratch)
        else:
            self._openblas.add_scaled(x, scale, out)

    def column_sums(self, delta: Array, out: Array) -> None:
        np.matmul(_ones(len(delta), delta.dtype), delta, out=out)  # faster than a sum over axis 0

    def dropout(self, x: Array, rate: float, draws: Draws, kept: Array | None, out: Array) -> None:
        if kept is None:
            super().dropout(x, rate, draws, kept, out)
            return
        # By NumPy's Philox 131,072 units take 0.3 ms, of which a new generator is 0.008; array code takes 2.3.
        np.greater_equal(_random_bits(draws, *x.shape), np.uint32(threshold(rate)), out=kept)
        np.multiply(x, kept, out=out)
        np.multiply(out, 1 / (1 - rate), out=out)

    def output_error(self, loss: LossRule, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        softmax = stated(loss, "kernel", "output_error") == "softmax_cross_entropy"
        if softmax and outputs.flags.f_contiguous and not getattr(loss, "label_smoothing", 0):
            self._softmax_cross_entropy(outputs, targets, losses, scores)
        else:
            super().output_error(loss, outputs, targets, losses, scores)

    def _softmax_cross_entropy(self, logits: Array, labels: Array, losses: Array, scores: Array) -> None:
        # In column-major order, maximum and sum over the classes run along contiguous samples. The formulas are
        # those of the reference, except for one division per sample instead of one per logit.
        batch = len(labels)
        by_class = logits.T
        flat = by_class.reshape(-1)
        label_entries = labels * batch + _arange(batch)
        np.equal(by_class.argmax(axis=0), labels, out=scores)
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

    def add_squares(self, values: Array, out: Array, scratch: Array) -> None:
        np.add(out, np.dot(values, values), out=out)

    def clip_gradient(self, gradient: Array, limit: float, scratch: Array) -> None:
        factor = limit / (math.sqrt(np.dot(gradient, gradient)) + 1e-6)  # a sixth of the time of the reference
        if not factor >= 1:  # also NaN
            np.multiply(gradient, factor, out=gradient)

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


def _random_bits(draws: Draws, rows: int, units: int) -> HostArray:
    """The same bits as those of `philox.random_bits`, ``(rows, units)`` uint32."""
    blocks = -(-units // 8)
    words = draws.first_block(units), draws.layer, draws.step
    # NumPy increments the counter before it draws a block.
    before = (sum(word % 2**64 << 64 * place for place, word in enumerate(words)) - 1) % 2**256
    key = np.array([draws.seed % 2**64, draws.purpose], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=before).random_raw(4 * rows * blocks)
    return raw.astype("<u8", copy=False).view("<u4").reshape(rows, 8 * blocks)[:, :units]


@lru_cache(maxsize=16)  # for the batch sizes of training and evaluation
def _ones(count: int, dtype: np.dtype[Any]) -> HostArray:
    ones = np.ones(count, dtype=dtype)
    ones.flags.writeable = False
    return ones


@lru_cache(maxsize=16)
def _arange(count: int) -> HostArray:
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


def is_device_array(array: object) -> bool:
    """Whether this is a CuPy array, by the name of its type, without importing CuPy."""
    return type(array).__module__.partition(".")[0] == "cupy"


def flush_vanishing(array: HostArray, scratch: HostArray) -> None:
    """Set elements below 1e8 times the smallest normal number (1e-30 in float32) to 0, in place.

    Where a gradient has become 0, momentum decays until it is subnormal and then remains so, since 0.9 times the
    smallest subnormal number rounds to itself. Arithmetic with subnormal numbers is up to a hundred times slower
    on processors, but not on GPUs. A change of 1e-30 does not affect the sum with a parameter, nor Adam's
    quotient, whose denominator contains epsilon.

    Args:
        array: overwritten.
        scratch: of the same shape and dtype, overwritten.
    """
    np.abs(array, out=scratch)
    np.greater_equal(scratch, 1e8 * float(np.finfo(array.dtype).tiny), out=scratch)
    np.multiply(array, scratch, out=array)


def to_host(array: Any) -> HostArray:
    """Convert an array-like object or a CuPy array to a NumPy array. Waits for the device.

    Raises:
        DeviceError: the array cannot be converted.
    """
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
    """The name of the processor, as reported by the system."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def host_memory() -> int:
    """Bytes of memory of this machine, or of this container if that has less; ``sys.maxsize`` if unknown."""
    limits = [sys.maxsize]
    with suppress(AttributeError, OSError, ValueError):  # Windows
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            limits.append(int(file.read_text()))
    return min(limits)
