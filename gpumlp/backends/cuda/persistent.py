"""The persistent kernel, ``persistent.cu``: many steps of one or of several small networks in one launch.

Without the backward pass it evaluates them: the losses and scores of held-out samples.

A network has a few multiprocessors to itself, as many as ``plan.py`` says, and stays in their registers and shared
memory for all steps; its blocks exchange activations and errors through global memory. With more multiprocessors,
several such replicas of it divide the samples of a batch and exchange gradients. The other multiprocessors
train other networks in the same launch. On as many multiprocessors a network has the same bits alone and among
others; they differ from those of other executions, which add in another order.

The kernel reads samples in bfloat16: pixels, which are exact in it, or three parts of each float32 number, which
are exact together. All networks that use an array of samples share this copy. It takes twice the memory of pixels
and 1.5 times that of float32 numbers, with columns padded to a multiple of 16. It is made anew when a network is
about to be trained, or evaluated by samples of another array, for the first time; of samples that are changed in
place from then on, only those are read again that `PersistentRunner.samples_changed` is told of.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from ..base import PIXEL_SCALE, Array, CudaActivation, Step, StepRun, stated
from ..philox import threshold
from .graphs import StepKey
from .kernels import (
    Device,
    cuda_activation,
    has_penalty_kernel,
    is_c_contiguous,
    is_dense,
    loss_kernel,
    optimizer_kernel,
    sgd_rule,
)
from .plan import NETWORK, DeviceProperties, Plan, Shape, make_plan

# Quotients and roots to two units in the last place: exact ones would be half of an update by Adam.
COMPILER = "--std=c++17", "--prec-div=false", "--prec-sqrt=false"
MOST_STEPS = 65_536  # per launch, which cannot be interrupted
LEAST_CAPABILITY = 80  # 8.0: products of bfloat16 numbers, and asynchronous copies
BULK_COPIES_SINCE = 90
_ROWS = 8192  # samples that are converted at a time
_EVALUATED = 128, 32  # samples that are evaluated at a time; 32 if 128 do not fit

SampleKey: TypeAlias = tuple[int, tuple[int, ...], str]


@dataclass(eq=False)
class Rows:
    """Samples as the kernel reads them.

    Attributes:
        samples: ``(rows, inputs)``, from which they were made; the reference prevents the reuse of their address.
        values: ``(rows, planes, inputs16)`` uint16, the bits of bfloat16 numbers.
    """

    samples: Array
    values: Array


@dataclass(eq=False)
class Compiled:
    """The kernel for the networks of one plan.

    Attributes:
        plan: of a network.
        kernel: CuPy's `RawKernel`.
        at_once: networks for which there is room at the same time.
        seconds: that it took to compile or to load.
    """

    plan: Plan
    kernel: Any
    at_once: int
    seconds: float


class PersistentRunner:
    """Runs the steps of a backend by the persistent kernel.

    Args:
        backend: the backend.
        parts: bfloat16 numbers whose sum a float32 factor of a product is: 3, exact, or 2, faster.
        multiprocessors: of a network; None: by its plan.

    Attributes:
        together: whether a step's network is trained with others. Then it may get fewer multiprocessors, and
            other executions are tried after this one for any batch size.
        replicas: of a network; None: by its plan, see `make_plan`.
    """

    def __init__(self, backend: Device, parts: int = 3, multiprocessors: int | None = None) -> None:
        self._backend, self._parts, self._multiprocessors = backend, parts, multiprocessors
        self.together: WeakKeyDictionary[Step, bool] = WeakKeyDictionary()
        self.replicas: int | None = None
        self._compiled: dict[Plan, Compiled | str] = {}  # or why there is none
        self._networks: WeakKeyDictionary[Step, Compiled] = WeakKeyDictionary()
        self._structures: WeakKeyDictionary[Step, bytes] = WeakKeyDictionary()
        self._rows: WeakValueDictionary[SampleKey, Rows] = WeakValueDictionary()
        self._held: WeakKeyDictionary[Step, Rows] = WeakKeyDictionary()  # as long as a step uses them

    def unsupported_reason(self, step: Step) -> str | None:
        """Why the kernel does not support this step on this device; None if it does. Compiles it.

        It must be called again when the `StepKey` has changed; until then, the step's rules are not read again.
        """
        self._structures.pop(step, None)
        reason = _unsupported_rule(step) or self._unsupported_device(step)
        if reason is not None:
            return reason
        plan = self._plan(step)
        if isinstance(plan, str):
            return plan
        if step.squares is not None and step.squares.size < plan.blocks:
            return f"it sums squares of weights in {plan.blocks} parts, and the step has {step.squares.size}"
        compiled = self._compile(plan)
        if isinstance(compiled, str):
            return compiled
        self._networks[step] = compiled
        return None

    def describe(self, step: Step) -> str:
        """Describe how the kernel runs a supported step."""
        compiled = self._networks[step]
        plan, at_once = compiled.plan, compiled.at_once
        parts = [
            f"{plan.multiprocessors} block{'s' * (plan.multiprocessors > 1)} of {plan.threads} threads and "
            f"{plan.shared_bytes / 1024:.0f} KiB of shared memory",
            f"{at_once} network{'s' * (at_once > 1)} at once",
            f"float32 as {self._parts} bfloat16 parts",
            f"compiled in {compiled.seconds:.1f} s",
        ]
        if plan.replicas > 1:
            parts.insert(1, f"{plan.replicas} replicas (not yet measured on a GPU)")
        return ", ".join(parts)

    def multiprocessors(self, step: Step) -> int:
        """How many multiprocessors the network of a supported step has."""
        return self._networks[step].plan.multiprocessors

    def networks_at_once(self, step: Step) -> int:
        """How many networks like that of a supported step are trained in one launch."""
        return self._networks[step].at_once

    def copied_bytes(self, step: Step) -> int:
        """Bytes of the copy of a step's samples."""
        return 2 * math.prod(_row_shape(step.images))

    def samples_changed(self, samples: Array, rows: slice) -> None:
        """Read rows of samples again, if there is a copy of these samples."""
        found = self._rows.get(_sample_key(samples))
        if found is not None:
            bfloat16_rows(self._backend.xp, samples[rows], found.values[rows])

    def run(self, step: Step, key: StepKey, batches: range, learning_rates: Sequence[float]) -> int:
        """Run the batches of a supported step; arguments as for `GraphRunner.run`. Returns their number."""
        self.run_many([StepRun(step, batches, learning_rates)])
        return len(batches)

    def run_many(self, runs: Sequence[StepRun]) -> None:
        """Run the batches of supported steps, those of one plan together, as many as there is room for."""
        groups: dict[Compiled, list[StepRun]] = {}
        for run in runs:
            groups.setdefault(self._networks[run.step], []).append(run)
        for compiled, group in groups.items():
            for first in range(0, len(group), compiled.at_once):
                self._run_together(compiled, group[first : first + compiled.at_once])

    def _run_together(self, compiled: Compiled, runs: Sequence[StepRun]) -> None:
        longest = max(len(run.batches) for run in runs)
        for first in range(0, longest, MOST_STEPS):
            part = slice(first, first + MOST_STEPS)
            self._launch(
                compiled,
                [
                    StepRun(run.step, run.batches[part], run.learning_rates[part])
                    for run in runs
                    if len(run.batches) > first
                ],
            )

    # -- What fits --------------------------------------------------------------------------------------------

    def _unsupported_device(self, step: Step) -> str | None:
        capability = self._capability()
        if capability < LEAST_CAPABILITY:
            return f"it needs compute capability 8.0, the device has {capability // 10}.{capability % 10}"
        if not self._attribute("CooperativeLaunch"):
            return "the device does not support cooperative launches"
        size, memory = self.copied_bytes(step), self._backend.memory()
        if memory is not None and _sample_key(step.images) not in self._rows and size > memory.free:
            return (
                f"its copy of the samples takes {size / 2**30:.1f} GiB, and {memory.free / 2**30:.1f} GiB are free"
            )
        return None

    def _plan(self, step: Step) -> Plan | str:
        """The plan for the network of a step; or why there is none."""
        sizes = (step.batch_size,) if step.evaluates is None else _EVALUATED
        plans = [self._plan_of(step, batch) for batch in sizes]
        return next((plan for plan in plans if isinstance(plan, Plan)), plans[0])

    def _plan_of(self, step: Step, batch: int) -> Plan | str:
        """The plan with batches of this size."""
        dense = _dense_layers(step)
        shape = Shape(
            inputs=dense[0].weight.shape[0],
            hidden=tuple(layer.bias.size for layer in dense[:-1]),
            outputs=dense[-1].bias.size,
            activations=tuple(found for layer in dense[:-1] if (found := cuda_activation(layer.activation))),
            batch=batch,
            pixels=bool(step.images.dtype == np.uint8),
            loss=str(loss_kernel(step.loss)),
            optimizer="none" if step.evaluates is not None else str(_optimizer_rule(step.optimizer)),
            weighted=step.sample_weights is not None,
            squares=step.squares is not None,
            dropout=() if step.evaluates is not None else tuple(_dropout_layers(step)),
            parts=self._parts,
        )
        device = DeviceProperties(
            multiprocessors=self._attribute("MultiProcessorCount"),
            shared_per_block=self._attribute("MaxSharedMemoryPerBlockOptin"),
            shared_per_multiprocessor=self._attribute("MaxSharedMemoryPerMultiprocessor"),
            registers=self._attribute("MaxRegistersPerMultiprocessor"),
            bulk_copies=self._capability() >= BULK_COPIES_SINCE,
        )
        if step.evaluates is None:
            together = self.together.get(step, False)
            return make_plan(
                shape, device, together=together, multiprocessors=self._multiprocessors, replicas=self.replicas
            )
        trained = self._networks[step.evaluates].plan  # so that a resumed run is evaluated as before
        replicas = self.replicas or (1 if trained.replicas == 1 else None)
        return make_plan(shape, device, multiprocessors=trained.multiprocessors, replicas=replicas)

    def _capability(self) -> int:
        """The compute capability, 80 for 8.0."""
        return int(self._backend.xp.cuda.Device().compute_capability)

    def _attribute(self, name: str) -> int:
        return int(self._backend.xp.cuda.Device().attributes.get(name, 0))

    def _compile(self, plan: Plan) -> Compiled | str:
        """The kernel of a plan, or why there is none."""
        if plan not in self._compiled:
            self._compiled[plan] = self._compile_now(plan)
        return self._compiled[plan]

    def _compile_now(self, plan: Plan) -> Compiled | str:
        cuda, start = self._backend.xp.cuda, time.perf_counter()
        code = persistent_source(plan)
        try:
            # CuPy's `enable_cooperative_groups` is not needed, since only the launch is cooperative; before CuPy
            # 14.2 it links with a library that the wheels lack.
            options = (*COMPILER, *plan.options())
            kernel = self._backend.xp.RawModule(code=code, options=options).get_function("train_networks")
            kernel.max_dynamic_shared_size_bytes = plan.shared_bytes  # required above 48 KiB
            resident = cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
                kernel.kernel.ptr, plan.threads, plan.shared_bytes
            )
        except Exception as error:  # of the compiler or the driver; the type depends on CuPy's version
            first_line = (str(error).splitlines() or [""])[0]
            return f"its kernel cannot be compiled: {type(error).__name__}: {first_line}"
        blocks = resident * self._attribute("MultiProcessorCount")
        needed = plan.multiprocessors
        if blocks < needed:
            return f"its blocks ({needed}) have to be resident at once, and the device has room for {blocks}"
        return Compiled(plan, kernel, blocks // needed, time.perf_counter() - start)

    # -- The launch -------------------------------------------------------------------------------------------

    def _launch(self, compiled: Compiled, runs: Sequence[StepRun]) -> None:
        backend, plan = self._backend, compiled.plan
        # Zero, so that no number seems to belong to a step of this launch.
        exchange = backend.xp.zeros((len(runs), max(1, plan.exchange_pairs)), dtype="uint64")
        networks = np.frombuffer(bytearray().join(self._structure(run.step) for run in runs), dtype=NETWORK)
        networks["start"] = [run.step.slices[run.batches[0]].start for run in runs]
        networks["stop"] = [run.step.slices[run.batches[-1]].stop for run in runs]
        networks["steps_taken"] = [run.step.state.steps for run in runs]
        if plan.shape.optimizer != "none":  # not in evaluation
            factors = [_step_factors(run) for run in runs]
            all_factors = backend.asarray(np.concatenate(factors))
            networks["factors"] = all_factors.data.ptr + np.cumsum([0, *(own.nbytes for own in factors[:-1])])
        networks["exchange"] = exchange.data.ptr + np.arange(len(runs)) * (exchange.nbytes // len(runs))
        function = compiled.kernel.kernel  # supports cooperative launches
        # A two-dimensional grid: CuPy silently limits a one-dimensional one to the blocks that are resident at
        # once.
        function(
            (1, plan.multiprocessors * len(runs)),
            (plan.threads,),
            (backend.asarray(networks.view(np.uint8)),),
            shared_mem=plan.shared_bytes,
            enable_cooperative_groups=True,
        )
        for run in runs:
            run.step.state.steps += len(run.batches)

    def _structure(self, step: Step) -> bytes:
        """The network's ``struct Network``, see persistent.cu, without what changes from launch to launch."""
        found = self._structures.get(step)
        if found is not None:
            return found
        network = np.zeros(1, dtype=NETWORK)[0]
        arrays = {
            "images": self._rows_of(step).values,
            "order": step.order,
            "targets": step.targets,
            "sample_weights": step.sample_weights,
            "parameters": step.parameters,
            "losses": step.losses,
            "scores": step.scores,
            "squares": step.squares,
        }
        for name, array in arrays.items():
            network[name] = 0 if array is None else array.data.ptr
        for number, layer in enumerate(_dense_layers(step)):
            network["weight_offset"][number] = _offset(step, layer.weight)
            network["bias_offset"][number] = _offset(step, layer.bias)
        network["scale"] = PIXEL_SCALE if step.images.dtype == np.uint8 else 1.0
        network["label_smoothing"] = getattr(step.loss, "label_smoothing", 0.0)
        if step.evaluates is None:
            _describe_update(step, network)
        result: bytes = network.tobytes()
        self._structures[step] = result
        return result

    def _rows_of(self, step: Step) -> Rows:
        key = _sample_key(step.images)
        rows = self._rows.get(key)
        held = [self._held.get(each) for each in (step, step.evaluates) if each is not None]
        if rows is None or all(rows is not each for each in held):
            if rows is None:
                empty = self._backend.xp.zeros(_row_shape(step.images), dtype="uint16")
                rows = self._rows[key] = Rows(step.images, empty)
            bfloat16_rows(self._backend.xp, step.images, rows.values)
        self._held[step] = rows
        return rows


def persistent_source(plan: Plan) -> str:
    """``persistent.cu`` with the expressions of a plan's activations."""
    return plan.definitions() + files(__package__).joinpath("persistent.cu").read_text(encoding="utf-8")


def bfloat16_rows(xp: Any, samples: Array, out: Array) -> None:
    """Samples as the kernel reads them.

    Args:
        xp: the array library.
        samples: ``(rows, inputs)``, uint8 pixels or float32.
        out: ``(rows, planes, inputs16)`` uint16, the bits of bfloat16 numbers: one plane of pixels, or three
            planes whose sum is the float32 number. Each part is the upper half of what the parts before it have
            left, cut off. The columns beyond `inputs` are not written.
    """
    rows, planes, _ = _row_shape(samples)
    inputs = samples.shape[1]
    for first in range(0, rows, _ROWS):
        chunk = slice(first, min(first + _ROWS, rows))
        rest = samples[chunk].astype("float32")
        for plane in range(planes):
            bits = xp.bitwise_and(rest.view("uint32"), np.uint32(0xFFFF0000))
            out[chunk, plane, :inputs] = xp.right_shift(bits, np.uint32(16)).astype("uint16")
            if plane + 1 < planes:
                rest = xp.subtract(rest, bits.view("float32"))  # exact


def _row_shape(samples: Array) -> tuple[int, int, int]:
    rows, inputs = samples.shape
    return rows, 1 if samples.dtype == np.uint8 else 3, 16 * math.ceil(inputs / 16)


def _sample_key(samples: Array) -> SampleKey:
    return samples.data.ptr, samples.shape, samples.dtype.char


def _describe_update(step: Step, network: np.void) -> None:
    """Enter into a ``struct Network`` what only training needs."""
    optimizer, penalty = step.optimizer, step.penalty
    for layer in _dense_layers(step):
        layer.weight_gradient.fill(math.nan)  # poison stale gradients
        layer.bias_gradient.fill(math.nan)
    for number, name in enumerate(optimizer.active_buffers()):
        network["buffers"][number] = step.state.buffers[name].data.ptr
    if optimizer_kernel(optimizer) == "sgd":
        network["momentum"] = optimizer.momentum
    else:
        network["beta1"], network["one_minus_beta1"] = optimizer.beta1, 1 - optimizer.beta1
        network["beta2"], network["one_minus_beta2"] = optimizer.beta2, 1 - optimizer.beta2
    network["l2"], network["l1"] = penalty.l2, penalty.l1
    if step.draws is not None:
        network["seed"] = step.draws.seed % 2**64
    for position, number in _dropout_layers(step).items():
        rate = step.layers[number].rate
        network["dropout_threshold"][position] = threshold(rate)
        network["dropout_scale"][position] = 1 / (1 - rate)
        network["dropout_layer"][position] = number


def _step_factors(run: StepRun) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What `Optimizer.step_factors` gives for each step, ``(steps, factors)``."""
    factors = run.step.optimizer.factors_of_steps(run.step.state.steps + 1, run.learning_rates)
    return np.array(factors, dtype=np.float32)


def _dense_layers(step: Step) -> list[Any]:
    return [layer for layer in step.layers if is_dense(layer)]


def _is_dropout(layer: Any) -> bool:
    return bool(stated(layer, "kernel", "forward", "backward") == "dropout")


def _dropout_layers(step: Step) -> dict[int, int]:
    """The number of the dropout layer after each position: 0, the inputs, or l, the hidden layer l."""
    position, found = 0, {}
    for number, layer in enumerate(step.layers):
        if is_dense(layer):
            position += 1
        else:
            found[position] = number
    return found


def _optimizer_rule(optimizer: Any) -> str | None:
    """The name of an optimizer in `OPTIMIZERS`; None if the kernel does not compute it."""
    name = optimizer_kernel(optimizer)
    return sgd_rule(optimizer) if name == "sgd" else name


def _offset(step: Step, array: Array) -> int:
    """Where a tensor is in the flat buffer of the parameters, in elements."""
    distance = int(array.data.ptr - step.parameters.data.ptr)
    return distance // int(step.parameters.dtype.itemsize)


def _unsupported_rule(step: Step) -> str | None:
    """Which part of a step the kernel does not compute; None if it computes all of it."""
    dtype, loss, optimizer, trains = step.losses.dtype, step.loss, step.optimizer, step.evaluates is None
    if step.shards > 1:
        return "it computes a batch as a whole, not in shards, as several processes do"
    if not step.same_rules:
        return "its rules change from batch to batch, or a method of it is overridden"
    others = [repr(layer) for layer in step.layers if not (is_dense(layer) or _is_dropout(layer))]
    if others:
        return f"it does not support the layer {', '.join(others)}"
    dense = _dense_layers(step)
    unknown = [repr(layer.activation) for layer in dense if cuda_activation(layer.activation) is None]
    if unknown:
        return f"the activation {', '.join(unknown)} has no CUDA expression"
    numbers = [number for number, layer in enumerate(step.layers) if not is_dense(layer)]
    twice = len(_dropout_layers(step)) < len(numbers) or not is_dense(step.layers[-1])
    targets = np.int64 if loss.task == "classes" else dtype
    scores = dtype if loss.task == "numbers" else np.bool_
    weights = step.losses if step.sample_weights is None else step.sample_weights
    arrays = [step.images, step.order, step.targets, step.losses, step.scores, step.parameters, weights]
    dtypes = [step.targets.dtype, step.scores.dtype, weights.dtype]
    reasons = {
        f"it computes in float32 only, not in {dtype}": dtype != np.float32,
        f"it supports one to three hidden layers, this network has {len(dense) - 1}": not 2 <= len(dense) <= 4,
        "it supports one dropout after the inputs and each hidden layer only": twice,
        "it does not support an activation of the outputs": cuda_activation(dense[-1].activation)
        != CudaActivation("s", "1", "BIAS"),
        f"it does not support the loss {loss!r}": loss_kernel(loss) is None,
        f"it does not support the optimizer {optimizer!r}": trains and _optimizer_rule(optimizer) is None,
        f"it does not support the penalty {step.penalty!r}": trains and not has_penalty_kernel(step.penalty),
        "it does not distort images": step.warp is not None,
        "it does not clip gradients": step.clip_norm is not None,
        "it does not limit the norms of weights": step.max_norm is not None,
        "it does not average the parameters": step.average is not None,
        "it does not store the gradients that a callback reads": step.gradient_wanted,
        "an array has another dtype or layout than the kernel reads": dtypes != [targets, scores, dtype]
        or step.images.dtype not in (np.uint8, dtype)
        or not is_c_contiguous(*arrays),
        "a layer's parameters are not in the network's buffer": not all(
            0 <= _offset(step, array) <= step.parameters.size - array.size and array.flags.c_contiguous
            for layer in dense
            for array in (layer.weight, layer.bias)
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
