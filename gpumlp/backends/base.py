"""The interface of a device, and its reference implementation in array code.

`Backend` implements each training operation with functions that NumPy and CuPy share (``xp``). A device overrides
an operation only if measurements show a gain; tests compare each override with the reference, in values and
signature.

Shapes are ``(batch, features)`` for data and ``(in_features, out_features)`` for weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any  # an array of the backend's own library: numpy.ndarray, cupy.ndarray, ...
HostArray: TypeAlias = npt.NDArray[Any]

PIXEL_SCALE = 1 / 255  # uint8 values are pixels: 0 is background, 255 is full ink


class DeviceError(RuntimeError):
    """The requested device cannot be used; the message says why and what to do.

    Attributes:
        cause: why it cannot be used.
        cure: what to do about it.
    """

    def __init__(self, cause: str, cure: str = "use the device cpu instead") -> None:
        super().__init__(f"{cause}; {cure}")
        self.cause = cause
        self.cure = cure


class ExecutionError(DeviceError):
    """The requested execution does not support a step; the message says why."""


class Memory(NamedTuple):
    """Device memory in bytes."""

    free: int
    total: int


class Execution(NamedTuple):
    """How a device runs the steps of a training run.

    Attributes:
        name: ``"persistent"``, ``"graphs"`` or ``"eager"``.
        reason: details, or why this execution was selected.
        threads: BLAS threads of a step on the CPU; None on a GPU, or if NumPy's BLAS chooses the number.
    """

    name: str
    reason: str
    threads: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Accumulation(NamedTuple):
    """Where a matrix product adds its result: ``out <- keep out + scale product``.

    A product that adds to its output costs no more than one that overwrites it. Adding a weight gradient directly
    to the velocity or the parameters saves a pass over all weights.
    """

    out: Array
    scale: float = 1.0
    keep: float = 0.0


class CudaActivation(NamedTuple):
    """An activation as CUDA expressions.

    Attributes:
        forward: h(s), an expression of ``s``. The type of numbers is ``real``: write ``(real)0.5``.
        derivative: h'(s), an expression of ``a = h(s)``, or of ``s`` if `derivative_from` is ``"input"``.
        epilogue: cuBLASLt's name for a bias followed by this activation, or None.
        derivative_from: ``"output"`` or ``"input"``, as the activation's.
    """

    forward: str
    derivative: str
    epilogue: str | None = None
    derivative_from: str = "output"


def stated(rule: Any, attribute: str, *methods: str) -> Any:
    """Return an attribute that declares how a rule's methods are computed; None if it no longer applies.

    A device selects its implementation of a rule (an activation, a loss, ...) by such an attribute, for example
    ``kernel = "sgd"``. A subclass that overrides one of the methods may compute something else, so the inherited
    attribute does not apply to it unless the subclass defines it again.

    Args:
        rule: the object.
        attribute: the name of the attribute.
        methods: the names of the methods that it describes.
    """
    names = getattr(rule, "__dict__", {})
    if attribute in names:
        return names[attribute]
    if names and not names.keys().isdisjoint(methods):
        return None
    for kind in type(rule).__mro__:  # whichever comes first, the attribute or a method
        if attribute in kind.__dict__:
            return getattr(rule, attribute)
        if not kind.__dict__.keys().isdisjoint(methods):
            return None
    return None


class ActivationRule(Protocol):
    """The methods of an activation that a backend calls; see ``gpumlp.nn.activations``."""

    def forward(self, xp: Any, s: Array, out: Array) -> None: ...
    def backward(self, xp: Any, a: Array, delta: Array) -> None: ...


class LossRule(Protocol):
    """The method of a loss that a backend calls; see ``gpumlp.nn.losses``."""

    def output_error(
        self, backend: Any, outputs: Array, targets: Array, losses: Array, correct: Array
    ) -> None: ...


class PenaltyRule(Protocol):
    """The method of a weight penalty that a backend calls; see ``gpumlp.nn.optimizers``."""

    def add_gradient(self, backend: Any, weights: Array, gradient: Array, scratch: Array) -> None: ...


class OptimizerRule(Protocol):
    """The methods of an optimizer that a backend calls; see ``gpumlp.nn.optimizers``."""

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
    """The arrays and the activation of a dense layer."""

    weight: Array
    bias: Array
    weight_gradient: Array
    bias_gradient: Array
    activation: Any


class Step(Protocol):
    """The description of a training step, from which every execution runs it.

    Calling it trains on a batch by the training operations of `Backend`. A captured graph or a persistent kernel
    instead reads its attributes. `gpumlp.training.step.TrainingStep` implements it.

    Attributes:
        layers: first to last.
        parameters, gradient: ``(size,)``, the flat buffers whose views are the layers' arrays.
        weights: the slice of both that contains the weights and no biases.
        state: of the optimizer: ``buffers``, flat arrays by name, ``scratch``, and ``steps``, the number taken.
        images: ``(n, features)``, uint8 pixels or the network's dtype.
        order: ``(samples,)`` int64, the rows of an epoch.
        targets: ``(samples, ...)``, in the epoch's order.
        sample_weights: ``(samples,)`` in the epoch's order, or None.
        losses, correct: ``(samples,)``; a step writes the part of its batch.
        slices: the consecutive batches of an epoch, of `batch_size` samples; the last may be smaller.
        gradient_wanted: whether the whole gradient is read after a step.
        same_rules: whether all steps of an epoch follow the same rules, by the built-in methods of network, layers
            and batches; only then can a device run them in another way.
        multiply_adds: of one forward pass, a measure of the work of a step.
    """

    losses: Array
    correct: Array
    state: Any
    loss: Any
    optimizer: Any
    penalty: Any
    gradient_wanted: bool

    @property
    def same_rules(self) -> bool: ...
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
        device_name: the name of the hardware.
        xp: the array library, with NumPy's functions.
        logits_order: preferred memory order of ``(batch, classes)`` arrays, ``"C"`` or ``"F"``.
        accumulates_products: whether `dense_backward` with an `Accumulation` costs no more than without.
        steps_at_a_time: preferred number of steps per call of `run_steps`.
        rows_at_a_time: preferred maximum number of samples per forward pass; None for no maximum.

    There is no global current backend: it is passed as an argument. On a GPU, operations are asynchronous; only
    `to_numpy`, `all_finite` and `synchronize` wait for it.
    """

    name: str
    device_name: str
    xp: Any
    logits_order: Literal["C", "F"] = "C"
    accumulates_products: bool = False
    rows_at_a_time: int | None = None
    steps_at_a_time: int = 1

    # -- Transfers between host and device ----------------------------------------------------------

    def activate(self) -> AbstractContextManager[Any]:
        """A context in which new arrays are created on this device; required for all operations."""
        return nullcontext()

    def owns(self, array: object) -> bool:
        """Whether the argument is an array of the backend's library."""
        raise NotImplementedError

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        """Return the array on this device, C-contiguous; copied only if necessary."""
        raise NotImplementedError

    def to_numpy(self, array: Array) -> HostArray:
        """Return the values on the host. Waits for the device."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all operations on the device have finished."""

    def memory(self) -> Memory | None:
        """Free and total device memory in bytes; None for the CPU."""
        return None

    # -- Steps --------------------------------------------------------------------------------------

    def execution(self, step: Step) -> Execution:
        """How `run_steps` runs this step.

        Raises:
            ExecutionError: the requested execution does not support this step.
        """
        return Execution("eager", "the only way on this device")

    def run_steps(self, step: Step, batches: range, learning_rates: Sequence[float]) -> None:
        """Train on consecutive batches of an epoch, in order. Does not wait for the device.

        Args:
            step: the step.
            batches: indices into ``step.slices``, with increment 1.
            learning_rates: a Python float for each batch.

        Raises:
            ExecutionError: as for `execution`.
        """
        for number, learning_rate in zip(batches, learning_rates, strict=True):
            step(step.slices[number], learning_rate)

    # -- The training operations --------------------------------------------------------------------

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        """Write ``source[rows]`` into `out`; pixels are scaled to [0, 1].

        Args:
            source: ``(samples, features)``, uint8 pixels or the dtype of `out`.
            rows: ``(batch,)`` int64 in ``[0, samples)``, which is not checked.
            staging: ``(batch, features)`` uint8, overwritten; None if `source` is not uint8.
            out: ``(batch, features)``, overwritten.
        """
        xp = self.xp
        if staging is None:
            xp.take(source, rows, axis=0, out=out)
        else:
            xp.take(source, rows, axis=0, out=staging)
            xp.multiply(staging, PIXEL_SCALE, out=out, dtype=out.dtype)

    def dense_forward(
        self, x: Array, weight: Array, bias: Array, activation: ActivationRule, s: Array, a: Array
    ) -> None:
        """A dense layer: ``s = x W + b`` and ``a = h(s)``.

        Args:
            x: ``(batch, in_features)``.
            weight: ``(in_features, out_features)``.
            bias: ``(out_features,)``.
            activation: h.
            s: ``(batch, out_features)``, overwritten with unspecified values.
            a: ``(batch, out_features)``, overwritten with the output. May be `s` if the activation supports it.
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
            x: ``(batch, in_features)``, the layer's input. Overwritten if `input_activation` is given.
            weight: ``(in_features, out_features)``.
            delta: ``(batch, out_features)``, the error term dC/ds of this layer.
            weight_gradient: where dW is added; may be `weight` itself, which is read first.
            bias_gradient: ``(out_features,)``, overwritten.
            input_activation: the activation whose output is `x`, or None if `x` is data.
            input_delta: ``(batch, in_features)``, overwritten; None if it is not needed.
        """
        xp = self.xp
        if input_delta is not None:
            xp.matmul(delta, weight.T, out=input_delta)
        self.accumulate_product(x, delta, weight_gradient)
        self.column_sums(delta, bias_gradient)
        if input_delta is not None and input_activation is not None:
            input_activation.backward(xp, x, input_delta)

    def accumulate_product(self, x: Array, delta: Array, target: Accumulation) -> None:
        """``out <- keep out + scale x^T delta``; `out` may be uninitialized if keep is 0 and scale is 1."""
        xp, (out, scale, keep) = self.xp, target
        if scale == 1 and keep == 0:
            xp.matmul(x.T, delta, out=out)
        else:
            xp.multiply(out, keep, out=out)
            xp.add(out, xp.multiply(xp.matmul(x.T, delta), scale), out=out)

    def add_scaled(self, x: Array, scale: float, out: Array, scratch: Array) -> None:
        """``out <- out + scale x``, for vectors of one shape; overwrites `scratch`."""
        self.xp.multiply(x, scale, out=scratch)
        self.xp.add(out, scratch, out=out)

    def column_sums(self, delta: Array, out: Array) -> None:
        """``out_j <- sum_i delta_ij``."""
        self.xp.sum(delta, axis=0, out=out)

    def output_error(self, loss: LossRule, outputs: Array, targets: Array, losses: Array, correct: Array) -> None:
        """Compute the loss of each sample of a batch and the error term of the last layer.

        Args:
            loss: the loss.
            outputs: ``(batch, outputs)``; overwritten with delta = dC/ds of the batch's mean loss C.
            targets: ``(batch,)`` int64 class numbers or ``(batch, outputs)`` floats, as the loss expects.
            losses: ``(batch,)``, overwritten.
            correct: ``(batch,)`` bool, overwritten: whether the prediction is correct.
        """
        loss.output_error(self, outputs, targets, losses, correct)

    def total(self, values: Array) -> Array:
        """The sum of all elements, in float64, as an array ``()`` on the device."""
        return self.xp.sum(values, dtype="float64")

    def all_finite(self, values: Array) -> bool:
        """Whether all values are finite. Waits for the device."""
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
        """Add the penalty's gradient to the weights' gradient and take one optimizer step.

        Args:
            optimizer: the optimizer.
            penalty: the weight penalty.
            parameters, gradient: ``(size,)``, both overwritten.
            weights: the slice of both that contains the weights; the biases, which are not penalised, follow.
            state: of the optimizer, overwritten.
            learning_rate: a Python float: a NumPy float64 would promote float32 arrays to float64.
            accumulated: whether the weights' gradient was added as the optimizer's `accumulation` specifies.
        """
        if accumulated:
            optimizer.complete(self, penalty, parameters, gradient, weights, state, learning_rate)
        else:
            penalty.add_gradient(self, parameters[weights], gradient[weights], state.scratch[weights])
            optimizer.update(self.xp, parameters, gradient, state, learning_rate)


def reference_backend(xp: Any) -> Backend:
    """The reference implementation, for arrays of a library with NumPy's functions."""
    backend = Backend()
    backend.xp = xp
    return backend


def check_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return float32 or float64 as a NumPy dtype.

    Raises:
        ValueError: for any other dtype.
    """
    try:
        result = None if dtype is None else np.dtype(dtype)
    except TypeError:  # no dtype of NumPy's
        result = None
    if result is None or result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype is expected to be float32 or float64, got {result or repr(dtype)}")
    return result
