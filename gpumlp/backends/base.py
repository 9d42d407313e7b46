"""The interface of a device, and its reference implementation in array code.

`Backend` implements each training operation with functions that NumPy and CuPy share (``xp``). A device overrides
an operation only if measurements show a gain; tests compare each override with the reference, in values and
signature.

Shapes are ``(batch, features)`` for data and ``(in_features, out_features)`` for weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .distortion import Warp, distorted, random_words
from .philox import Draws, random_bits, threshold

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
        multiprocessors: of a GPU that a network has in the execution ``"persistent"``; None in all others.
    """

    name: str
    reason: str
    threads: int | None = None
    multiprocessors: int | None = None

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
    """What a backend uses of an activation; see ``gpumlp.nn.activations``."""

    derivative_from: ClassVar[str]

    def forward(self, xp: Any, s: Array, out: Array) -> None: ...
    def backward(self, xp: Any, saved: Array, delta: Array) -> None: ...


class LossRule(Protocol):
    """The method of a loss that a backend calls; see ``gpumlp.nn.losses``."""

    def output_error(self, backend: Any, outputs: Array, targets: Array, losses: Array, scores: Array) -> None: ...


class PenaltyRule(Protocol):
    """The method of a weight penalty that a backend calls; see ``gpumlp.nn.optimizers``."""

    def add_gradient(self, backend: Any, weights: Array, gradient: Array, scratch: Array) -> None: ...


class OptimizerRule(Protocol):
    """The methods of an optimizer that a backend calls; see ``gpumlp.nn.optimizers``."""

    def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]: ...

    def factors_of_steps(self, first: int, learning_rates: Sequence[float]) -> npt.ArrayLike: ...
    def update(self, xp: Any, parameters: Array, gradient: Array, state: Any, *factors: Any) -> None: ...
    def complete(
        self,
        backend: Any,
        penalty: Any,
        parameters: Array,
        gradient: Array,
        weights: slice,
        state: Any,
        *factors: Any,
    ) -> None: ...


class Step(Protocol):
    """The description of a training step, from which every execution runs it.

    Calling it trains on a batch by the training operations of `Backend`. A captured graph or a persistent kernel
    instead reads its attributes. `gpumlp.training.step.TrainingStep` implements it.

    Attributes:
        layers: first to last: dense layers, with ``weight``, ``bias``, their gradients and an ``activation``, and
            others.
        parameters, gradient: ``(size,)``, the flat buffers whose views are the layers' arrays.
        weights: the slice of both that contains the weights and no biases.
        state: of the optimizer: ``buffers``, flat arrays by name, ``scratch``, and ``steps``, the number taken.
        images: ``(n, features)``, uint8 pixels or the network's dtype.
        order: ``(samples,)`` int64, the rows of an epoch.
        numbers: ``(samples,)`` int64, the rows of the data, by which images are distorted; usually `order`.
        targets: ``(samples, ...)``, in the epoch's order.
        sample_weights: ``(samples,)`` in the epoch's order, or None.
        losses: ``(samples,)``; a step writes the part of its batch.
        scores: ``(samples, ...)``, what metrics are computed from; a step writes the part of its batch.
        slices: the consecutive batches of an epoch, of `batch_size` samples; the last may be smaller.
        gradient_wanted: whether the whole gradient is read after a step.
        clip_norm: the limit of `Backend.clip_gradient`, or None.
        max_norm: the limit of `Backend.limit_norms`, or None.
        average, decay: ``(size,)``, the average of the parameters, or None; see `Backend.average`.
        squares: ``(n,)`` float64, or None. Each step adds the squares of all weights before its update to one or
            more elements; only the sum of all elements is defined.
        draws: the random bits of the layers, with the seed of all steps; None without any.
        warp: how images are distorted as a batch is gathered, see `Backend.distort`; None if they are not.
        same_rules: whether all steps of a call of `Backend.run_steps` follow the same rules, by the built-in
            methods of network, layers and batches; only then can a device run them in another way.
        shards: parts of a batch whose gradients are computed one after another, by this or other processes.
        processes: that take each step together; they call `Backend.run_steps` with the same arguments.
        evaluates: None; of a step that only computes losses and scores, the step that trains the network. It has
            neither optimizer nor penalty, and takes the execution of the other where the device can.
        multiply_adds: of one forward pass, a measure of the work of a step.
    """

    losses: Array
    scores: Array
    state: Any
    loss: Any
    optimizer: Any
    penalty: Any
    gradient_wanted: bool
    clip_norm: float | None
    max_norm: float | None
    squares: Array | None

    @property
    def evaluates(self) -> Step | None: ...
    @property
    def average(self) -> Array | None: ...
    @property
    def decay(self) -> float: ...
    @property
    def draws(self) -> Draws | None: ...
    @property
    def warp(self) -> Warp | None: ...
    @property
    def same_rules(self) -> bool: ...
    @property
    def shards(self) -> int: ...
    @property
    def processes(self) -> int: ...
    @property
    def layers(self) -> Sequence[Any]: ...
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
    def numbers(self) -> Array: ...
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

    def arrays(self) -> list[Array]:
        """Every array that a step reads or writes."""
        ...

    def in_any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes, which all call it; it waits for them."""
        ...

    def __call__(self, batch: slice, learning_rate: float) -> None: ...


class Connection(Protocol):
    """The devices of several processes; see ``gpumlp.backends.cuda.nccl``."""

    def exchange(self, sent: Iterable[tuple[int, Array]], received: Iterable[tuple[int, Array]]) -> None: ...


class StepRun(NamedTuple):
    """Consecutive batches of a step to train on: the arguments of `Backend.run_steps`."""

    step: Step
    batches: range
    learning_rates: Sequence[float]


class Copy(NamedTuple):
    """``out <- source``, or, with rows, ``out <- source[rows]``.

    Attributes:
        source: on the device, or on the host, of the dtype of `out`.
        out: on the device, overwritten.
        rows: ``(len(out),)`` int64, on the host; not checked.
    """

    source: Array
    out: Array
    rows: HostArray | None = None


class Copies(NamedTuple):
    """Copies, of which none writes what another one reads, for the next steps of a network."""

    step: Step
    copies: Sequence[Copy]


class Totals(NamedTuple):
    """The sums of all elements of arrays, in float64.

    Attributes:
        arrays: of any shapes and dtypes.
        more: ``(n,)`` float64, appended to the sums; None for nothing.
    """

    arrays: Sequence[Array]
    more: Array | None = None


Request: TypeAlias = StepRun | Copies | Totals


class Uploads(Protocol):
    """Copies from the host to a device that do not wait for what it computes, nor it for them."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> HostArray:
        """An array on the host, with any values, from which copies are fast."""
        ...

    def mark(self) -> None:
        """Let later copies begin after all that the device has been given until now."""
        ...

    def copy(self, pairs: Sequence[tuple[HostArray, Array]]) -> None:
        """Copy arrays of `empty`, or parts of them, to contiguous arrays on the device; for any one thread.

        Waits until the copies are complete.
        """
        ...


class Backend:
    """One device and the array library that drives it.

    Attributes:
        name: ``"cpu"``, ``"cuda:0"``, ...: what `get_backend` takes.
        device_name: the name of the hardware.
        xp: the array library, with NumPy's functions.
        logits_order: preferred memory order of ``(batch, classes)`` arrays, ``"C"`` or ``"F"``.
        asynchronous: whether operations return before the device has finished them.
        stores_masks: whether `dropout` stores which units are kept; otherwise `dropout_backward` draws them again.
        steps_at_a_time: preferred number of steps per call of `run_steps`.
        rows_at_a_time: preferred maximum number of samples per forward pass; None for no maximum.
        options: with which it was made. A backend can run the steps of another one with the same device and
            options.

    There is no global current backend: it is passed as an argument. On a GPU, operations are asynchronous; only
    `to_numpy`, `all_finite` and `synchronize` wait for it.
    """

    name: str
    device_name: str
    xp: Any
    logits_order: Literal["C", "F"] = "C"
    asynchronous: bool = False
    stores_masks: bool = True
    rows_at_a_time: int | None = None
    steps_at_a_time: int = 1
    options: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: object) -> Backend:
        """The backend itself: a copy of a model or of an estimator is on the same device."""
        return self

    # -- Transfers between host and device ----------------------------------------------------------

    def activate(self) -> AbstractContextManager[Any]:
        """A context in which new arrays are created on this device; required for all operations."""
        return nullcontext()

    def explained(self, error: Exception) -> Exception:
        """What `activate` raises in place of an error: a DeviceError if the device caused it."""
        return error

    def owns(self, array: object) -> bool:
        """Whether the argument is an array of the backend's library."""
        raise NotImplementedError

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        """Return the array on this device, C-contiguous; copied only if necessary."""
        raise NotImplementedError

    def to_numpy(self, array: Array) -> HostArray:
        """Return the values on the host. Waits for the device."""
        raise NotImplementedError

    def begin_reading(self, array: Array) -> Callable[[], HostArray]:
        """A function that waits for the values that an array has now, and returns them on the host."""
        values = self.to_numpy(array)
        return lambda: values

    def synchronize(self) -> None:
        """Wait until all operations on the device have finished."""

    def connect(self, rank: int, size: int, broadcast: Callable[[bytes], bytes]) -> Connection:
        """Connect the devices of several processes, which all call it and wait for each other; not the CPU.

        Args:
            rank, size: the number of this process, and how many there are.
            broadcast: returns what it is given in process 0.

        Raises:
            DeviceError: they cannot be connected.
        """
        raise NotImplementedError

    def memory(self) -> Memory | None:
        """Free and total device memory in bytes; None for the CPU."""
        return None

    def uploads(self) -> Uploads | None:
        """Copies to the device beside its other work; None for the CPU, which needs none."""
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

    def copied_bytes(self, step: Step) -> int:
        """Bytes of the copy of a step's samples that the device needs to run it; 0 without one."""
        return 0

    def samples_changed(self, samples: Array, rows: slice) -> None:
        """Copy rows of samples again where the device has a copy: they have changed since the last step."""

    def networks_at_once(self, step: Step) -> int:
        """How many networks like this one `run_many` trains at the same time; 1 if one after another.

        If it is more than 1, the backend notes that the step is trained together with others: from then on it
        runs the step in the way that serves several at once, even when no other network is left, so that results
        do not depend on the others.

        Raises:
            ExecutionError: as for `execution`.
        """
        return 1

    def run_many(self, runs: Sequence[StepRun]) -> None:
        """Train several networks, each as `run_steps` does. Does not wait for the device.

        Args:
            runs: of different steps, which share nothing that a step writes; their lengths, rules and data may
                differ. How many run at the same time is said by `networks_at_once`.

        Raises:
            ExecutionError: as for `execution`.
        """
        for run in runs:
            self.run_steps(*run)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy arrays, none of which is written by another of the copies. Does not wait for the device."""
        given = {id(array): array for each in copies for array in (each.source, each.rows) if array is not None}
        here = {key: self.asarray(array) for key, array in given.items()}
        for source, out, rows in copies:
            if rows is None:
                self.xp.copyto(out, here[id(source)])
            else:
                self.xp.take(here[id(source)], here[id(rows)], axis=0, out=out)

    def perform(self, requests: Sequence[Request]) -> Callable[[], list[Any]]:
        """Do what the trainings of different networks ask for, requests of one kind. Does not wait for the device.

        Returns:
            A function that waits for what each training is sent: the list of floats of a `Totals`, and None for
            others.
        """
        given: Sequence[Any] = requests
        if isinstance(given[0], StepRun):
            self.run_many(given)
        elif isinstance(given[0], Copies):
            self.copy([copy for request in given for copy in request.copies])
        else:
            read = self.begin_reading(self.sums(given))

            def results() -> list[list[float]]:
                numbers = iter(read().tolist())
                sums = [list(islice(numbers, len(each.arrays))) for each in given]
                more = (0 if each.more is None else len(each.more) for each in given)
                return [own + list(islice(numbers, count)) for own, count in zip(sums, more, strict=True)]

            return results
        return lambda: [None] * len(given)

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

    def distort(self, source: Array, rows: Array, numbers: Array, epoch: Array, warp: Warp, out: Array) -> None:
        """Write ``source[rows]`` into `out` as `gather` does, each image distorted at random.

        Args:
            source: ``(samples, features)``, images row by row, uint8 pixels or the dtype of `out`.
            rows: ``(batch,)`` int64 in ``[0, samples)``, which is not checked.
            numbers: ``(batch,)`` int64, the numbers of the images in the data, which decide about random bits.
            epoch: ``(1,)`` uint64, which decides about them, too.
            warp: how to distort.
            out: ``(batch, features)``, overwritten.
        """
        xp = self.xp
        images = xp.take(source, rows, axis=0).reshape(-1, *warp.shape)
        images = distorted(xp, images, warp, random_words(xp, warp, numbers, epoch)).reshape(out.shape)
        xp.multiply(images, PIXEL_SCALE if source.dtype == np.uint8 else 1.0, out=out, dtype=out.dtype)

    def dense_forward(
        self, x: Array, weight: Array, bias: Array, activation: ActivationRule, s: Array, a: Array
    ) -> None:
        """A dense layer: ``s = x W + b`` and ``a = h(s)``.

        Args:
            x: ``(batch, in_features)``.
            weight: ``(in_features, out_features)``.
            bias: ``(out_features,)``.
            activation: h.
            s: ``(batch, out_features)``, overwritten: with the pre-activation, if the activation's derivative is
                from its input, otherwise with unspecified values.
            a: ``(batch, out_features)``, overwritten with the output. May be `s` if the activation supports it.
        """
        xp = self.xp
        xp.matmul(x, weight, out=s)
        xp.add(s, bias, out=s)
        activation.forward(xp, s, a)

    def activation_backward(
        self, activation: ActivationRule, saved: Array, delta: Array, bias_gradient: Array | None = None
    ) -> None:
        """``delta <- delta * h'`` in place, from the derivative by a layer's output to that by its pre-activation.

        Args:
            activation: h.
            saved: ``(batch, units)``, the output or the pre-activation, as ``activation.derivative_from`` says;
                may be overwritten.
            delta: ``(batch, units)``, overwritten.
            bias_gradient: ``(units,)``, overwritten with the sum of the new delta over the batch; None if it is
                not needed.
        """
        activation.backward(self.xp, saved, delta)
        if bias_gradient is not None:
            self.column_sums(delta, bias_gradient)

    def dense_backward(
        self,
        x: Array,
        weight: Array,
        delta: Array,
        weight_gradient: Accumulation,
        bias_gradient: Array | None,
        input_delta: Array | None,
    ) -> None:
        """The gradients of a dense layer and the derivative of the loss by its input.

        ``dW = x^T delta``, ``db = sum of delta over the batch`` and ``input_delta = delta W^T``.

        Args:
            x: ``(batch, in_features)``, the layer's input.
            weight: ``(in_features, out_features)``.
            delta: ``(batch, out_features)``, the error term dC/ds of this layer.
            weight_gradient: where dW is added; may be `weight` itself, which is read first.
            bias_gradient: ``(out_features,)``, overwritten; None if `activation_backward` has computed it.
            input_delta: ``(batch, in_features)``, overwritten; None if it is not needed.
        """
        if input_delta is not None:
            self.xp.matmul(delta, weight.T, out=input_delta)
        self.accumulate_product(x, delta, weight_gradient)
        if bias_gradient is not None:
            self.column_sums(delta, bias_gradient)

    def dropout(self, x: Array, rate: float, draws: Draws, kept: Array | None, out: Array) -> None:
        """``out = x * keep / (1 - rate)``, where each unit of each sample is kept with probability 1 - rate.

        A unit is kept if its 32 random bits are at least ``rate 2^32``, rounded.

        Args:
            x: ``(batch, units)``.
            rate: the probability of dropping a unit, at least 0 and below 1.
            draws: which random bits.
            kept: ``(batch, units)`` bool, overwritten with keep; None if ``stores_masks`` is False.
            out: ``(batch, units)``, overwritten; may be `x`.
        """
        xp = self.xp
        keep = xp.greater_equal(random_bits(xp, draws, *x.shape), np.uint32(threshold(rate)))
        if kept is not None:
            xp.copyto(kept, keep)
        xp.multiply(x, keep, out=out)
        xp.multiply(out, 1 / (1 - rate), out=out)

    def dropout_backward(self, delta: Array, rate: float, draws: Draws, kept: Array | None) -> None:
        """``delta <- delta * keep / (1 - rate)`` in place; arguments as for `dropout`, which wrote `kept`."""
        if kept is None:
            self.dropout(delta, rate, draws, None, delta)
        else:
            self.xp.multiply(delta, kept, out=delta)
            self.xp.multiply(delta, 1 / (1 - rate), out=delta)

    def accumulates(self, optimizer: OptimizerRule, penalty: PenaltyRule) -> bool:
        """Whether `dense_backward` adds weight gradients where the optimizer's `accumulation` says at no cost."""
        return False

    def accumulate_product(self, x: Array, delta: Array, target: Accumulation) -> None:
        """``out <- keep out + scale x^T delta``; `out` may be uninitialized if keep is 0 and scale is 1."""
        xp, (out, scale, keep) = self.xp, target
        if scale == 1 and keep == 0:
            xp.matmul(x.T, delta, out=out)
        else:
            xp.multiply(out, keep, out=out)
            xp.add(out, xp.multiply(xp.matmul(x.T, delta), scale), out=out)

    def add_scaled(self, x: Array, scale: float, out: Array, scratch: Array) -> None:
        """``out <- out + scale x``, for vectors of one shape; overwrites `scratch`, which may be `x`."""
        self.xp.multiply(x, scale, out=scratch)
        self.xp.add(out, scratch, out=out)

    def column_sums(self, delta: Array, out: Array) -> None:
        """``out_j <- sum_i delta_ij``."""
        self.xp.sum(delta, axis=0, out=out)

    def output_error(self, loss: LossRule, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        """Compute the loss of each sample of a batch and the error term of the last layer.

        Args:
            loss: the loss.
            outputs: ``(batch, outputs)``; overwritten with delta = dC/ds of the batch's mean loss C.
            targets: ``(batch,)`` int64 class numbers or ``(batch, outputs)`` floats, as the loss expects.
            losses: ``(batch,)``, overwritten.
            scores: overwritten with what metrics are computed from: for classes ``(batch,)`` bool, whether the
                prediction is correct; for labels ``(batch, outputs)`` bool, the same for each label; for numbers
                ``(batch, outputs)``, the prediction minus the target.
        """
        loss.output_error(self, outputs, targets, losses, scores)

    def weigh(self, delta: Array, losses: Array, weights: Array) -> None:
        """Apply sample weights in place: ``delta_i <- w_i delta_i`` and ``losses_i <- w_i losses_i``.

        Args:
            delta: ``(batch, outputs)``, the error term of the last layer.
            losses: ``(batch,)``.
            weights: ``(batch,)``, of the same dtype; with a mean of 1, the mean loss is the weighted mean.
        """
        self.xp.multiply(delta, weights[:, None], out=delta)
        self.xp.multiply(losses, weights, out=losses)

    def totals(self, *arrays: Array) -> Array:
        """The sum of all elements of each array, ``(arrays,)`` float64 on the device. Does not wait for it."""
        return self.xp.stack([self.xp.sum(values, dtype="float64") for values in arrays])

    def sums(self, requests: Sequence[Totals]) -> Array:
        """The sums of all requests, then what is appended to them, float64 on the device. Does not wait for it."""
        arrays = [array for request in requests for array in request.arrays]
        parts = [request.more for request in requests if request.more is not None]
        if arrays:
            parts.insert(0, self.totals(*arrays))
        return parts[0] if len(parts) == 1 else self.xp.concatenate(parts)

    def add_squares(self, values: Array, out: Array, scratch: Array) -> None:
        """``out <- out + sum_i v_i^2``.

        Args:
            values: v ``(size,)``.
            out: ``(1,)`` float64, overwritten.
            scratch: of v's shape and dtype, overwritten.
        """
        self.xp.multiply(values, values, out=scratch)
        self.xp.add(out, self.xp.sum(scratch), out=out)

    def all_finite(self, values: Array) -> bool:
        """Whether all values are finite. Waits for the device."""
        return bool(self.xp.all(self.xp.isfinite(values)))

    def clip_gradient(self, gradient: Array, limit: float, scratch: Array) -> None:
        """``g <- g min(1, limit / (|g| + 1e-6))`` in place, with the norm of all its elements, as in PyTorch.

        R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.

        Args:
            gradient: ``(size,)``, overwritten.
            limit: of the norm, above 0.
            scratch: of the same shape and dtype, overwritten.
        """
        xp = self.xp
        xp.multiply(gradient, gradient, out=scratch)
        norm = xp.sqrt(xp.sum(scratch))
        xp.multiply(gradient, xp.minimum(limit / (norm + 1e-6), 1), out=gradient)

    def limit_norms(self, weight: Array, limit: float, scratch: Array) -> None:
        """Scale each column of W, the incoming weights of a unit, whose norm is above the limit down to it.

        N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.

        Args:
            weight: W ``(in_features, out_features)``, overwritten.
            limit: of the norms, above 0.
            scratch: of the same shape and dtype, overwritten.
        """
        xp = self.xp
        xp.multiply(weight, weight, out=scratch)
        norms = xp.sqrt(xp.sum(scratch, axis=0))
        xp.multiply(weight, limit / xp.maximum(norms, limit), out=weight)

    def average(self, parameters: Array, average: Array, decay: float, scratch: Array) -> None:
        """``average <- average + (1 - decay) (parameters - average)``, all ``(size,)``; overwrites `scratch`."""
        self.xp.subtract(parameters, average, out=scratch)
        self.add_scaled(scratch, 1 - decay, average, scratch)

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
        """Add the penalty's gradient to the weights' gradient, take one optimizer step and count it.

        Args:
            optimizer: the optimizer.
            penalty: the weight penalty.
            parameters, gradient: ``(size,)``, both overwritten.
            weights: the slice of both that contains the weights; the biases, which are not penalised, follow.
            state: of the optimizer, overwritten.
            learning_rate: a Python float: a NumPy float64 would promote float32 arrays to float64.
            accumulated: whether the weights' gradient was added as the optimizer's `accumulation` specifies.
        """
        factors = self._next_factors(optimizer, state, learning_rate)
        if accumulated:
            optimizer.complete(self, penalty, parameters, gradient, weights, state, *factors)
        else:
            penalty.add_gradient(self, parameters[weights], gradient[weights], state.scratch[weights])
            optimizer.update(self.xp, parameters, gradient, state, *factors)

    def _next_factors(self, optimizer: OptimizerRule, state: Any, learning_rate: float) -> tuple[Any, ...]:
        """Count a step; the numbers that change from step to step."""
        state.steps += 1
        return optimizer.step_factors(state.steps, learning_rate)


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
