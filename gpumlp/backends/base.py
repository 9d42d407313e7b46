"""What every device can do, in plain array code.

`Backend` is the reference: each training operation is written here once with the functions that
NumPy and CuPy share (``xp``). A device overrides one only where a measurement says that it pays, and
the parity tests hold the override against the code below, in values and in signature. The losses among
them stand in ``losses.py``.

Shapes are ``(batch, features)`` for data and ``(in_features, out_features)`` for weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .losses import LossOperations
from .rules import ActivationRule, Array, OptimizerRule, PenaltyRule, StepRule

HostArray: TypeAlias = npt.NDArray[Any]

PIXEL_SCALE = 1 / 255  # uint8 means pixels, everywhere: 0 is background, 255 is full ink


class DeviceError(RuntimeError):
    """A device that was asked for cannot be used; says why and what mends it.

    Attributes:
        cause: what is missing, in words.
        cure: what to do about it.
    """

    def __init__(self, cause: str, cure: str = "take the device cpu instead") -> None:
        super().__init__(f"{cause}; {cure}")
        self.cause = cause
        self.cure = cure


EXECUTIONS = ("auto", "persistent", "graphs", "eager")


class ExecutionError(DeviceError):
    """The way of running steps that was asked for by name is not possible here."""


class Execution(NamedTuple):
    """How the steps of a network run: the way taken, why, and the number of BLAS threads on a CPU."""

    name: str
    reason: str
    threads: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Memory(NamedTuple):
    """Device memory in bytes."""

    free: int
    total: int


class Backend(LossOperations):
    """One device and the array library that drives it.

    Attributes:
        name: ``"cpu"``, ``"cuda:0"``, ...: what `get_backend` takes.
        device_name: the hardware in words.
        xp: the array library, with NumPy's names.
        logits_order: memory order of ``(batch, classes)`` arrays, ``"C"`` or ``"F"``, whichever suits the device.
        accumulates_products: does `dense_backward` with `scale` and `keep` cost no more than without?
        steps_at_a_time: how many `run_steps` had better get, where there are as many.
        rows_at_a_time: of a batch, where a larger one is better taken in parts; None where it never is.

    A backend is passed to whatever needs it; none is ever "current". Operations are asynchronous
    where the device is; only `to_numpy` and `synchronize` wait for it.
    """

    name: str
    device_name: str
    xp: Any
    logits_order: Literal["C", "F"] = "C"
    accumulates_products: bool = False
    rows_at_a_time: int | None = None
    steps_at_a_time: int = 1

    # -- The edges: how arrays come and go ----------------------------------------------------------

    def activate(self) -> AbstractContextManager[Any]:
        """A context within which new arrays land on this device; what uses a network or a trainer enters it."""
        return nullcontext()

    def owns(self, array: object) -> bool:
        """Is this an array of the backend's library?"""
        raise NotImplementedError

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        """The array on this device, C-contiguous; copied only where it has to be."""
        raise NotImplementedError

    def to_numpy(self, array: Array) -> HostArray:
        """The values on the host. Waits for the device."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""

    def memory(self) -> Memory | None:
        """Free and total device memory, or None where that is not the device's to say."""
        return None

    # -- The training operations --------------------------------------------------------------------

    def run_steps(self, step: StepRule, batches: Sequence[slice]) -> None:
        """Run a training step for each batch, in order.

        A device that can do better than one Python call a step (a captured graph, a persistent
        kernel) overrides this. Of a step with the methods ``frozen`` or ``whole``, see `FrozenStep` and
        `WholeStep`, it may also count on ``learning_rate``, ``optimizer`` and ``state``.
        """
        for batch in batches:
            step(batch)

    def how_steps_ran(self, step: StepRule) -> str | None:
        """How `run_steps` has run this step, and why, in words; None where there is only one way."""
        return None

    def execution(self, step: StepRule) -> Execution:
        """How `run_steps` runs this step."""
        return Execution("eager", "one by one")

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        """Write ``source[rows]`` into `out` as the network's input.

        Args:
            source: ``(samples, features)``, uint8 pixels or the dtype of `out`.
            rows: ``(batch,)`` int64, each in ``[0, samples)``: checked on the host when the order was
                drawn, because a GPU would wrap a bad index silently.
            staging: ``(batch, features)`` uint8, room to work in; None where `source` is not uint8.
            out: ``(batch, features)``, overwritten. Pixels come out in [0, 1].
        """
        xp = self.xp
        if staging is None:
            xp.take(source, rows, axis=0, out=out)
        else:
            xp.take(source, rows, axis=0, out=staging)  # a quarter of the bytes of float32
            xp.multiply(staging, PIXEL_SCALE, out=out, dtype=out.dtype)

    def dense_forward(
        self, x: Array, weight: Array, bias: Array, activation: ActivationRule, s: Array, a: Array
    ) -> None:
        """A dense layer: ``s = x W + b`` and ``a = h(s)``.

        Args:
            x: ``(batch, in_features)``.
            weight: ``(in_features, out_features)``.
            bias: ``(out_features,)``.
            activation: the rule h.
            s: ``(batch, out_features)``, overwritten; what it holds afterwards is the backend's affair.
            a: ``(batch, out_features)``, overwritten with the output. May be `s` if the activation allows it.
        """
        xp = self.xp
        self.product(x, weight, s)
        xp.add(s, bias, out=s)
        activation.forward(xp, s, a)

    def product(self, x: Array, weight: Array, out: Array) -> None:
        """``out <- x W``.

        Args:
            x: ``(batch, in_features)``.
            weight: ``(in_features, out_features)``.
            out: ``(batch, out_features)``, overwritten.
        """
        self.xp.matmul(x, weight, out=out)

    def dense_backward(
        self,
        x: Array,
        weight: Array,
        delta: Array,
        weight_gradient: Array,
        bias_gradient: Array,
        input_activation: ActivationRule | None,
        input_delta: Array | None,
        scale: float = 1.0,
        keep: float = 0.0,
    ) -> None:
        """The gradients of a dense layer and the error term of the layer below it.

        ``dW = x^T delta``, ``db = sum of delta over the batch`` and
        ``input_delta = (delta W^T) * h'``, with h' of the layer below taken from its output `x`.

        With `scale` and `keep` the weight gradient is added where it is wanted, ``target <- keep target +
        scale dW``: a plain SGD step is ``W <- W - eta dW``.

        Args:
            x: ``(batch, in_features)``, the layer's input. Overwritten if there is an `input_activation`.
            weight: ``(in_features, out_features)``.
            delta: ``(batch, out_features)``, the error term dC/ds of this layer.
            weight_gradient, bias_gradient: overwritten, shaped as weight and bias. The first may be `weight`
                itself, which is read before.
            input_activation: the rule that made `x`, or None if `x` is data.
            input_delta: ``(batch, in_features)``, overwritten; None where nobody needs it.
            scale, keep: Python floats.
        """
        xp = self.xp
        if input_delta is not None:
            xp.matmul(delta, weight.T, out=input_delta)
        self.accumulate_product(x, delta, weight_gradient, scale, keep)
        self.column_sums(delta, bias_gradient)
        if input_delta is not None and input_activation is not None:
            input_activation.backward(xp, x, input_delta)

    def accumulate_product(
        self, x: Array, delta: Array, out: Array, scale: float = 1.0, keep: float = 0.0
    ) -> None:
        """``out <- keep out + scale x^T delta``; by default ``out <- x^T delta``, whatever `out` held."""
        xp = self.xp
        if scale == 1 and keep == 0:
            xp.matmul(x.T, delta, out=out)
        else:
            xp.multiply(out, keep, out=out)
            xp.add(out, xp.multiply(xp.matmul(x.T, delta), scale), out=out)

    def add_scaled(self, x: Array, scale: float, out: Array, scratch: Array) -> None:
        """``out <- out + scale x``, for vectors; `scratch`, of the same shape, is overwritten."""
        self.xp.multiply(x, scale, out=scratch)
        self.xp.add(out, scratch, out=out)

    def column_sums(self, delta: Array, out: Array) -> None:
        """``out_j <- sum_i delta_ij``."""
        self.xp.sum(delta, axis=0, out=out)

    def total(self, values: Array) -> Array:
        """The sum of all elements of any dtype, in float64: ``()``, on the device."""
        return self.xp.sum(values, dtype="float64")

    def all_finite(self, values: Array) -> bool:
        """Is there neither NaN nor infinity among them? Waits for the device."""
        return bool(self.xp.all(self.xp.isfinite(values)))

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
        """Add the penalty's gradient and take one optimizer step, each on the whole flat buffer.

        Args:
            optimizer, penalty: the rules.
            parameters, gradient: ``(size,)``, both overwritten.
            weights: which part of them is weights; the rest is biases, which no penalty touches.
            state: the optimizer's own buffers, overwritten.
            learning_rate: a Python float: a NumPy float64 would turn float32 arithmetic into float64.
            accumulated: the weights' gradient is where the optimizer's `accumulation` wanted it.
        """
        if accumulated:
            optimizer.complete(self, penalty, parameters, gradient, weights, state, learning_rate)
        else:
            penalty.add_gradient(self, parameters[weights], gradient[weights], state.scratch[weights])
            optimizer.update(self.xp, parameters, gradient, state, learning_rate)


def reference_backend(xp: Any) -> Backend:
    """The operations as written above, for arrays of any library with NumPy's names."""
    backend = Backend()
    backend.xp = xp
    return backend


def check_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """float32 or float64 as a NumPy dtype.

    Raises:
        ValueError: for any other.
    """
    result = np.dtype(dtype)
    if result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype is expected to be float32 or float64, got {result}")
    return result
