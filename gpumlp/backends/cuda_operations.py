"""The training operations in few launches: what `CupyBackend` does otherwise than the reference.

A step of a network of L layers is 6 L + 1 launches, 13 for 784-128-10, matrix products included (a test counts
them): one to gather and scale the batch, two a layer forward (product; bias with activation), one for the loss
with its gradient, two or four a layer backward (both gradients; above the first layer also the error term below
and its activation), and one for the penalty with the optimizer. With cuBLASLt (``cublaslt.py``) bias and ReLU
belong to the forward product, and both gradients are one call: 4 L + 1 with the ReLU, 9 for 784-128-10.

Each override leaves to the reference what its kernel does not know: rules of the user's own, more than 64 classes,
arrays that are not contiguous. Held against the reference without a GPU; not yet measured on one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .base import PIXEL_SCALE, Backend, Execution
from .cublaslt import Products
from .cuda_graphs import TRIAL, Capture, GraphRunner, NotCapturableError
from .cuda_kernels import MOST_CLASSES, Kernels, Place
from .cuda_rules import (
    ADAM,
    IDENTITY,
    PENALTY,
    RELU,
    SGD,
    activation_code,
    full_name,
    sgd_code,
    slope_of,
    step_factors,
)
from .persistent import Note, PersistentRunner
from .rules import ActivationRule, Array, OptimizerRule, PenaltyRule, StepRule


class CudaOperations(Backend):
    """The overrides, for any array library with CuPy's `RawModule`: CuPy itself, or a test's double of it."""

    steps_at_a_time = TRIAL  # as many as graphs are tried with; most of them in one launch then
    graphs: GraphRunner | None = None  # None: every step by itself
    persistent: PersistentRunner | None = None  # None: not asked for
    _kernels: dict[np.dtype[Any], Kernels]
    _capture: Capture | None = None

    def run_steps(self, step: StepRule, batches: Sequence[slice]) -> None:
        done = 0 if self.persistent is None else self.persistent.run(step, batches)
        if self.graphs is None:
            return super().run_steps(step, batches[done:])
        return self.graphs.run(step, batches[done:])

    def how_steps_ran(self, step: StepRule) -> str | None:
        note = Note(False, "") if self.persistent is None else self.persistent.describe(step)
        if note.ran:
            return f"by one persistent kernel: {note.words}"
        otherwise = "one by one: cuda_graphs is off" if self.graphs is None else self.graphs.describe(step)
        if note.failed:
            return f"{otherwise}; the persistent kernel failed: {note.words}"
        return f"{otherwise}; not by the persistent kernel: {note.words}" if note.words else otherwise

    def execution(self, step: StepRule) -> Execution:
        name = "eager" if self.graphs is None else "graphs"
        return Execution("persistent" if self.persistent else name, self.how_steps_ran(step) or "")

    @contextmanager
    def capturing(self, capture: Capture) -> Iterator[None]:
        """Operations are part of a capture, which none may evade, for as long as the context lasts."""
        products = self.products()
        self._capture = capture
        if products is not None:
            products.capturing = True
        try:
            yield
        finally:
            self._capture = None
            if products is not None:
                products.capturing = False

    def products(self) -> Products | None:
        """Matrix products by cuBLASLt, or None where only CuPy's are to be had."""
        return None

    def matmul(self, x: Array, y: Array, out: Array) -> None:
        """``out = x y``."""
        products = self.products()
        if products is None or not products.matmul(x, y, out):
            self.xp.matmul(x, y, out=out)

    def kernels(self, dtype: Any) -> Kernels | None:
        """The kernels for a dtype, compiled when first asked for; None for a dtype that they don't know."""
        if not hasattr(self, "_kernels"):
            self._kernels = {}
        found = self._kernels.get(dtype)
        if found is None and dtype in (np.float32, np.float64):
            found = self._kernels[dtype] = Kernels(self.xp, np.dtype(dtype))
        return found

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        kernels = self.kernels(out.dtype)
        expected = out.dtype if staging is None else np.uint8
        if kernels is None or source.dtype != expected or rows.dtype != np.int64 or not plain(source, rows, out):
            self._leave("gather")
            return super().gather(source, rows, staging, out)
        scale = None if staging is None else PIXEL_SCALE
        return kernels.gather(source, rows, scale, self._place(), out)

    def dense_forward(
        self, x: Array, weight: Array, bias: Array, activation: ActivationRule, s: Array, a: Array
    ) -> None:
        kernels, code = self.kernels(a.dtype), activation_code(activation)
        if kernels is None or code is None or bias.dtype != a.dtype or not plain(a, bias):
            self._leave("dense_forward")
            return super().dense_forward(x, weight, bias, activation, s, a)
        products = self.products()
        if products is not None and code in (IDENTITY, RELU) and products.dense(x, weight, bias, code == RELU, a):
            return None
        self.matmul(x, weight, a)
        return kernels.bias_activation(a, bias, code, slope_of(activation))

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
        if scale != 1 or keep != 0:
            self._leave("dense_backward")
            return super().dense_backward(
                x, weight, delta, weight_gradient, bias_gradient, input_activation, input_delta, scale, keep
            )
        xp, kernels, products = self.xp, self.kernels(delta.dtype), self.products()
        if products is None or not products.gradients(x, delta, weight_gradient, bias_gradient):
            self.matmul(x.T, delta, weight_gradient)
            if kernels is not None and bias_gradient.dtype == delta.dtype and plain(delta, bias_gradient):
                kernels.column_sums(delta, bias_gradient)
            else:
                self._leave("dense_backward")
                xp.sum(delta, axis=0, out=bias_gradient)
        if input_delta is None:
            return None
        self.matmul(delta, weight.T, input_delta)
        if input_activation is None:
            return None
        code = activation_code(input_activation)
        same = x.dtype == input_delta.dtype == delta.dtype
        if kernels is not None and code is not None and same and plain(x, input_delta):
            kernels.activation_backward(input_delta, x, code, slope_of(input_activation))
        else:
            self._leave("dense_backward")
            input_activation.backward(xp, x, input_delta)
        return None

    def softmax_cross_entropy(self, logits: Array, labels: Array, losses: Array, correct: Array) -> None:
        kernels = self.kernels(logits.dtype)
        known = losses.dtype == logits.dtype and labels.dtype == np.int64 and correct.dtype == np.bool_
        few = logits.shape[1] <= MOST_CLASSES
        if kernels is None or not known or not few or not plain(logits, labels, losses, correct):
            self._leave("softmax_cross_entropy")
            return super().softmax_cross_entropy(logits, labels, losses, correct)
        return kernels.softmax_cross_entropy(logits, labels, self._place(), losses, correct)

    def logistic_cross_entropy(self, logits: Array, targets: Array, losses: Array, correct: Array) -> None:
        self._leave("logistic_cross_entropy")  # a few launches more; a graph could not repeat them further on
        super().logistic_cross_entropy(logits, targets, losses, correct)

    def squared_error(self, outputs: Array, targets: Array, losses: Array, correct: Array) -> None:
        self._leave("squared_error")
        super().squared_error(outputs, targets, losses, correct)

    def weigh(self, delta: Array, losses: Array, weights: Array) -> None:
        self._leave("weigh")
        super().weigh(delta, losses, weights)

    # Of reductions CuPy brings some compiled: sums in an array's own dtype, the least and the largest number. Any
    # other it compiles with CUB where it is first met, which takes seconds each: CuPy's `cub.pyx`.

    def total(self, values: Array) -> Array:
        return self.xp.sum(values.astype("float64"))

    def all_finite(self, values: Array) -> bool:
        return bool(self.xp.min(self.xp.isfinite(values).view("uint8")))

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
        name, kernels = full_name(optimizer), self.kernels(parameters.dtype)
        buffers = [] if name not in (SGD, ADAM) else [*state.buffers.values()]
        known = name in (SGD, ADAM) and full_name(penalty) == PENALTY and not accumulated
        same = all(array.dtype == parameters.dtype for array in (gradient, *buffers))
        if kernels is None or not known or not same or not plain(parameters, gradient, *buffers):
            self._leave("update")
            return super().update(
                optimizer, penalty, parameters, gradient, weights, state, learning_rate, accumulated
            )
        rule: Any = optimizer
        state.steps += 1
        penalties = (penalty.l2, penalty.l1)  # type: ignore[attr-defined]
        factors = step_factors(rule, state.steps, learning_rate)
        place, slot = self._place(), 0 if self._capture is None else self._capture.next_slot()
        if name == SGD:
            kind = sgd_code(rule)
            velocity = state.buffers["velocity"] if rule.momentum else None
            return kernels.sgd_step(
                parameters, gradient, velocity, weights, penalties, kind, rule.momentum, factors, slot, place
            )
        mean, mean_square, betas = state.buffers["mean"], state.buffers["mean_square"], (rule.beta1, rule.beta2)
        return kernels.adam_step(
            parameters, gradient, mean, mean_square, weights, penalties, betas, factors, slot, place
        )

    def _place(self) -> Place | None:
        """Where a captured operation finds what changes; None outside a capture."""
        return None if self._capture is None else self._capture.place

    def _leave(self, operation: str) -> None:
        """Before an operation is left to the reference, whose calls a graph cannot repeat further on."""
        if self._capture is not None:
            raise NotCapturableError(f"no kernel knows this {operation}")


def plain(*arrays: Array) -> bool:
    """Are these C-contiguous, as the kernels take them to be?"""
    return all(array.flags.c_contiguous for array in arrays)
