"""What every device can do, in plain array code.

`Backend` is the reference: each training operation is written here once with the functions that
NumPy and CuPy share (``xp``). A device overrides one only where a measurement says that it pays, and
the parity tests hold the override against the code below, in values and in signature.

Shapes are ``(batch, features)`` for data and ``(in_features, out_features)`` for weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any  # an array of the backend's own library: numpy.ndarray, cupy.ndarray, ...
HostArray: TypeAlias = npt.NDArray[Any]

PIXEL_SCALE = 1 / 255  # uint8 means pixels, everywhere: 0 is background, 255 is full ink


class DeviceError(RuntimeError):
    """A device that was asked for cannot be used; the message says why and what to do.

    Attributes:
        cause: what is missing, in words.
        cure: what to do about it.
    """

    def __init__(self, cause: str, cure: str = "use the device cpu instead") -> None:
        super().__init__(f"{cause}; {cure}")
        self.cause = cause
        self.cure = cure


class ExecutionError(DeviceError):
    """A way of running steps that was asked for by name is not possible; the message says why."""


class Memory(NamedTuple):
    """Device memory in bytes."""

    free: int
    total: int


class Execution(NamedTuple):
    """How a device runs the steps of a training run.

    Attributes:
        name: ``"persistent"``, ``"graphs"`` or ``"eager"``.
        reason: details of this way, or why it is this one.
        threads: BLAS threads of a step on the CPU; None on a GPU, or where NumPy's BLAS decides.
    """

    name: str
    reason: str
    threads: int | None = None

    def __str__(self) -> str:
        return f"{_EXECUTION_NAMES[self.name]}: {self.reason}"


_EXECUTION_NAMES = {"persistent": "persistent kernel", "graphs": "CUDA graphs", "eager": "step by step"}


class Accumulation(NamedTuple):
    """Where a product adds its result: ``out <- keep out + scale product``.

    A matrix product that adds to what is there costs no more than one that overwrites. So a weight gradient can go
    straight into the velocity or the parameters, which saves a pass over all weights.
    """

    out: Array
    scale: float = 1.0
    keep: float = 0.0


class CudaActivation(NamedTuple):
    """What the CUDA kernels need to know about an activation.

    Attributes:
        forward: h(s), an expression of ``s``. Numbers are of the type ``real``: write ``(real)0.5``.
        derivative: h'(s), an expression of ``a = h(s)``.
        epilogue: cuBLASLt's name for a bias followed by this activation, or None.
    """

    forward: str
    derivative: str
    epilogue: str | None = None


def stated(rule: Any, attribute: str, *methods: str) -> Any:
    """What a rule states about its methods, or None where that may no longer hold.

    A device knows a rule (an activation, a loss, ...) by what its class states, such as
    ``kernel = "sgd"``. A subclass that overrides one of the methods, without a statement of its own, may compute
    anything; so the inherited statement does not count for it.

    Args:
        rule: the object.
        attribute: the statement's name.
        methods: which methods it describes.
    """
    own = getattr(rule, "__dict__", {})
    if attribute not in own and any(method in own for method in methods):
        return None
    kind: Any = type(rule)  # a type checker does not take it for hashable
    return getattr(rule, attribute, None) if _holds(kind, attribute, methods) else None


@lru_cache(maxsize=256)
def _holds(kind: Any, attribute: str, methods: tuple[str, ...]) -> bool:
    """Is the attribute defined by the same class as each of the methods, or by one derived from it?"""

    def place(name: str) -> int:
        return next((index for index, base in enumerate(kind.__mro__) if name in vars(base)), len(kind.__mro__))

    return all(place(attribute) <= place(method) for method in methods)


class ActivationRule(Protocol):
    """What `dense_forward` and `dense_backward` need of an activation (see ``gpumlp.nn.activations``)."""

    def forward(self, xp: Any, s: Array, out: Array) -> None: ...
    def backward(self, xp: Any, a: Array, delta: Array) -> None: ...


class LossRule(Protocol):
    """What `output_error` needs of a loss (see ``gpumlp.nn.losses``)."""

    def output_error(
        self, backend: Any, outputs: Array, targets: Array, losses: Array, correct: Array
    ) -> None: ...


class PenaltyRule(Protocol):
    """What `update` needs of a weight penalty (see ``gpumlp.nn.optimizers``)."""

    def add_gradient(self, backend: Any, weights: Array, gradient: Array, scratch: Array) -> None: ...


class OptimizerRule(Protocol):
    """What `update` needs of an optimizer (see ``gpumlp.nn.optimizers``)."""

    def update(self, xp: Any, parameters: Array, gradient: Array, state: Any, learning_rate: float) -> None: ...
    def complete(
        self,
        backend: Any,
        penalty: Any,
        parameters: Array,
        gradient: Array,
        weights: slice,
        state: Any,
        learning_rate: float,
    ) -> None: ...


class LayerArrays(Protocol):
    """A dense layer as a device sees it: its arrays and its activation."""

    weight: Array
    bias: Array
    weight_gradient: Array
    bias_gradient: Array
    activation: Any


class Step(Protocol):
    """One training step: the description that every way of running steps works from.

    Calling it runs a batch by the training operations. A device that knows a faster way (a captured graph, a
    persistent kernel) reads what the step consists of instead. `gpumlp.training.step.TrainingStep` is one.

    Attributes:
        layers: first to last.
        parameters, gradient: ``(size,)``, the flat buffers that the layers' arrays are views of.
        weights: the slice of both that holds weights and no biases.
        state: the optimizer's: ``buffers``, flat arrays by name, ``scratch``, and ``steps``, the number taken.
        images: ``(n, features)``, uint8 pixels or the network's dtype.
        order: ``(samples,)`` int64, the rows of an epoch.
        targets: ``(samples, ...)``, in the epoch's order.
        sample_weights: ``(samples,)`` in the epoch's order, or None.
        losses, correct: ``(samples,)``, of which a step writes its batch's part.
        slices: the batches of an epoch, consecutive; all have `batch_size` samples, but the last may have fewer.
        gradient_wanted: does anybody read the whole gradient after a step?
        same_rules: do all steps of an epoch obey the same rules? Only then can a device repeat a captured one.
        multiply_adds: of one pass through the layers: the size of the work.
    """

    losses: Array
    correct: Array
    state: Any
    loss: Any
    optimizer: Any
    penalty: Any
    gradient_wanted: bool
    same_rules: bool

    @property
    def layers(self) -> Sequence[LayerArrays]: ...
    @property
    def parameters(self) -> Array: ...
    @property
    def gradient(self) -> Array: ...
    @property
    def weights(self) -> slice: ...
    @property
    def images(self) -> Array: ...
    @property
    def order(self) -> Array: ...
    @property
    def targets(self) -> Array: ...
    @property
    def sample_weights(self) -> Array | None: ...
    @property
    def slices(self) -> Sequence[slice]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def multiply_adds(self) -> int: ...

    def buffer_views(self, name: str) -> Sequence[tuple[Array, Array]]:
        """The parts of an optimizer's buffer that belong to the weight and the bias of each layer."""
        ...

    def arrays(self) -> list[Array]:
        """Every array that a step reads or writes."""
        ...

    def __call__(self, batch: slice, learning_rate: float) -> None: ...


class Backend:
    """One device and the array library that drives it.

    Attributes:
        name: ``"cpu"``, ``"cuda:0"``, ...: what `get_backend` takes.
        device_name: the hardware in words.
        xp: the array library, with NumPy's names.
        logits_order: memory order of ``(batch, classes)`` arrays, ``"C"`` or ``"F"``, whichever suits the device.
        accumulates_products: does `dense_backward` with an `Accumulation` cost no more than without?
        steps_at_a_time: preferred number of steps per call of `run_steps`.
        rows_at_a_time: the largest part of a batch to pass through the layers at once; None for any.

    A backend is passed to whatever needs it; none is ever "current". Operations are asynchronous
    where the device is; only `to_numpy`, `all_finite` and `synchronize` wait for it.
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
        """A context within which new arrays are made on this device; everything that computes enters it."""
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
        """Free and total device memory; None for the CPU."""
        return None

    # -- Steps --------------------------------------------------------------------------------------

    def execution(self, step: Step) -> Execution:
        """How `run_steps` runs this step.

        Raises:
            ExecutionError: the way that was asked for is not possible for this step.
        """
        return Execution("eager", "the only way on this device")

    def run_steps(self, step: Step, batches: range, learning_rates: Sequence[float]) -> None:
        """Run consecutive batches of an epoch, in order.

        Args:
            step: what to run.
            batches: numbers of the batches, as in ``step.slices``, in steps of 1.
            learning_rates: one for each batch, Python floats.

        Raises:
            ExecutionError: as in `execution`.
        """
        for number, learning_rate in zip(batches, learning_rates, strict=True):
            step(step.slices[number], learning_rate)

    # -- The training operations --------------------------------------------------------------------

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        """Write ``source[rows]`` into `out` as the network's input.

        Args:
            source: ``(samples, features)``, uint8 pixels or the dtype of `out`.
            rows: ``(batch,)`` int64, each in ``[0, samples)``: checked on the host when the order was
                drawn, because a GPU would wrap a bad index silently.
            staging: ``(batch, features)`` uint8, overwritten; None where `source` is not uint8.
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
            s: ``(batch, out_features)``, overwritten; its content afterwards depends on the device.
            a: ``(batch, out_features)``, overwritten with the output. May be `s` if the activation allows it.
        """
        xp = self.xp
        xp.matmul(x, weight, out=s)
        xp.add(s, bias, out=s)
        activation.forward(xp, s, a)

    def dense_backward(
        self,
        x: Array,
        weight: Array,
        delta: Array,
        weight_gradient: Accumulation,
        bias_gradient: Array,
        input_activation: ActivationRule | None,
        input_delta: Array | None,
    ) -> None:
        """The gradients of a dense layer and the error term of the layer below it.

        ``dW = x^T delta``, ``db = sum of delta over the batch`` and
        ``input_delta = (delta W^T) * h'``, with h' of the layer below taken from its output `x`.

        Args:
            x: ``(batch, in_features)``, the layer's input. Overwritten if there is an `input_activation`.
            weight: ``(in_features, out_features)``.
            delta: ``(batch, out_features)``, the error term dC/ds of this layer.
            weight_gradient: where dW is added; may be `weight` itself, which is read before.
            bias_gradient: ``(out_features,)``, overwritten.
            input_activation: the rule that made `x`, or None if `x` is data.
            input_delta: ``(batch, in_features)``, overwritten; None where nobody needs it.
        """
        xp = self.xp
        if input_delta is not None:
            xp.matmul(delta, weight.T, out=input_delta)
        self.accumulate_product(x, delta, weight_gradient)
        self.column_sums(delta, bias_gradient)
        if input_delta is not None and input_activation is not None:
            input_activation.backward(xp, x, input_delta)

    def accumulate_product(self, x: Array, delta: Array, target: Accumulation) -> None:
        """``out <- keep out + scale x^T delta``; with keep 0, what `out` held does not matter."""
        xp, (out, scale, keep) = self.xp, target
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

    def output_error(self, loss: LossRule, outputs: Array, targets: Array, losses: Array, correct: Array) -> None:
        """The loss of each sample of a batch, and the error term of the last layer.

        Args:
            loss: the rule.
            outputs: ``(batch, outputs)``; overwritten with delta = dC/ds of the batch's mean loss C.
            targets: ``(batch,)`` class numbers or ``(batch, outputs)`` numbers, as the loss expects them.
            losses: ``(batch,)``, overwritten.
            correct: ``(batch,)`` bool, overwritten: is the answer right?
        """
        loss.output_error(self, outputs, targets, losses, correct)

    def total(self, values: Array) -> Array:
        """The sum of all elements of any dtype, in float64: ``()``, on the device."""
        return self.xp.sum(values, dtype="float64")

    def all_finite(self, values: Array) -> bool:
        """Are all values finite? Waits for the device."""
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
            weights: the slice of both that holds weights; the rest is biases, which no penalty touches.
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
