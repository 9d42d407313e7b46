"""NVIDIA GPUs, by CuPy. This is the only module that imports it, and it is imported only if a GPU is requested.

A step of a network with L layers, of which the last has up to 16 units, takes 5 L - 1 launches including matrix
products, 9 for 784-128-10 (tests count them): one to gather and scale the batch, or to distort it; per hidden
layer two forward (product, bias with activation) and two or three backward (activation with the bias gradient,
weight gradient; above the first layer also the error term below); one forward and one backward for the last layer,
whose products are too small for cuBLAS; one for the loss with its gradient; and one for penalty and optimizer.
With cuBLASLt (``cublaslt.py``) bias and ReLU are part of the forward product: 4 L launches with the ReLU, 8 for
784-128-10. With momentum, its products add the weight gradients to the velocity. A last layer with more than 16
units takes two or three launches more. An override calls the reference for arguments that its kernel does not
support: custom rules, or arrays that are not contiguous.

`CudaBackend.execution` selects how steps are run: by the persistent kernel (``persistent.py``) if it supports the
step, otherwise by CUDA graphs (``graphs.py``) if the step can be captured, otherwise step by step. For large
batches of a network that is trained alone, graphs come first. A graph contains array code as well as kernels;
parts of arrays at another address in each launch are copied for it.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import cupy
import numpy as np
import numpy.typing as npt

from ..base import (
    PIXEL_SCALE,
    Accumulation,
    ActivationRule,
    Array,
    Backend,
    Connection,
    Copy,
    DeviceError,
    Execution,
    ExecutionError,
    HostArray,
    LossRule,
    Memory,
    OptimizerRule,
    PenaltyRule,
    Step,
    StepRun,
)
from ..distortion import Warp
from ..philox import Draws
from .cublaslt import Products
from .graphs import LENGTHS, Capture, CapturedStep, GraphRunner, NotCapturableError, StepKey
from .kernels import (
    GraphOffsets,
    Kernels,
    accumulates_in_velocity,
    cuda_activation,
    has_copy_kernel,
    has_penalty_kernel,
    has_total_kernel,
    is_c_contiguous,
    is_narrow,
    is_small,
    loss_kernel,
    optimizer_kernel,
)
from .persistent import PersistentRunner
from .uploads import StreamUploads

_TF32_SINCE = 80  # compute capability 8.0
# Samples of a batch up to which `auto` prefers the persistent kernel. Measured on an H200: for larger batches
# graphs are as fast or faster.
PERSISTENT_BATCH = 256
_GET_NCCL = 'pip install ".[nccl]" "nccl4py[cu13]" (or "nccl4py[cu12]"), or use the device cpu'
_DRIVERS = {"cupy", "cupy_backends", "nvmath", "nccl"}  # packages whose exceptions mean that the device failed


def device_count() -> int:
    """The number of GPUs that the driver shows.

    Raises:
        DeviceError: there is no usable driver, or no GPU.
    """
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:  # the type depends on CuPy's version and on the cause
        try:
            driver = int(cupy.cuda.runtime.driverGetVersion())
        except Exception:
            driver = 0
        if driver == 0:
            raise DeviceError(
                f"CuPy {cupy.__version__} is installed, but there is no NVIDIA driver",
                "install one (nvidia-smi shows whether it works), or use the device cpu",
            ) from error
        raise DeviceError(
            f"CuPy {cupy.__version__} cannot use the NVIDIA driver, which supports CUDA "
            f"{driver // 1000}.{driver % 1000 // 10}: {error}",
            'update the driver, or install the extra for its CUDA version (pip install ".[cuda12]" or '
            '".[cuda13]"), or use the device cpu',
        ) from error
    if count == 0:
        raise DeviceError(
            "the NVIDIA driver works, but shows no GPU",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the device cpu",
        )
    return count


def require_gpus(processes: int) -> None:
    """Check that this machine has a GPU for each of the processes on it, and that they can be connected.

    Raises:
        DeviceError: it has fewer, or NCCL is missing.
    """
    count = device_count()
    if count < processes:
        raise DeviceError(
            f"{processes} processes on this machine need a GPU each, and they see {count}",
            f"start at most {count} on it, let each see all GPUs (CUDA_VISIBLE_DEVICES), or use the device cpu",
        )
    _nccl()


class CudaBackend(Backend):
    """One NVIDIA GPU. Arrays are `cupy.ndarray` on that device, and operations are asynchronous.

    Args:
        index: of the GPU.
        matmul_precision: of float32 matrix products: ``"highest"`` is float32, regardless of CUPY_TF32;
            ``"high"`` is TF32, on GPUs with compute capability 8.0 or higher.
        execution: ``"auto"``, ``"persistent"``, ``"graphs"`` or ``"eager"``; see `get_backend`.
        multiprocessors: of a network in the execution ``"persistent"``, at most; None: by its plan. A multiple of
            what it gets alone divides the samples of each batch among replicas of the network.

    Raises:
        DeviceError: the GPU does not exist, or a first computation on it fails.
    """

    asynchronous = True
    stores_masks = False
    steps_at_a_time = 2 * LENGTHS[0]

    def __init__(
        self,
        index: int,
        *,
        matmul_precision: str = "highest",
        execution: str = "auto",
        multiprocessors: int | None = None,
    ) -> None:
        count = device_count()
        if index >= count:
            present = ", ".join(f"cuda:{i} ({_name(i)})" for i in range(count))
            raise DeviceError(f"there is no device cuda:{index}", f"the available devices are {present}, cpu")
        self.index = index
        self.name = f"cuda:{index}"
        self.device_name = _name(index)
        self.xp = cupy
        self.tf32 = False
        self.wanted_execution = execution
        self.options = matmul_precision, execution, multiprocessors
        parts = 2 if matmul_precision == "high" else 3
        self.persistent, self.graphs = PersistentRunner(self, parts, multiprocessors), GraphRunner(self)
        self._runners: dict[str, PersistentRunner | GraphRunner] = {
            "persistent": self.persistent,
            "graphs": self.graphs,
        }
        # By key; of a step that evaluates a network, that is what was chosen for the one that trains it.
        self._chosen: WeakKeyDictionary[Step, tuple[Any, Execution]] = WeakKeyDictionary()
        self._kernels: dict[Any, Kernels] = {}
        self._capture: Capture | None = None
        self._given: Any = None  # see `_keep_pace`
        self._products: list[Products | None] = []  # created on the first product
        try:
            capability = int(cupy.cuda.Device(index).compute_capability)
            self.tf32 = matmul_precision == "high" and capability >= _TF32_SINCE
            with self.activate():
                ones = cupy.ones((2, 2), dtype=cupy.float32)
                self.totals(ones @ ones).item()  # tests cuBLAS, the compiler and a launch
        except Exception as failure:
            error = failure.__cause__ if isinstance(failure, DeviceError) else failure
            raise DeviceError(
                f"{self.name} ({self.device_name}) is there, but a first computation on it failed: "
                f"{type(error).__name__}: {error}",
                'reinstall CuPy with NVIDIA\'s libraries (pip install ".[cuda13]" or ".[cuda12]"), or use the '
                "device cpu",
            ) from failure

    @contextmanager
    def activate(self) -> Iterator[None]:
        # CuPy has one setting for its products of float32 matrices, without a public interface.
        linalg = cupy._core._routines_linalg
        wanted = linalg.COMPUTE_TYPE_TF32 if self.tf32 else linalg.COMPUTE_TYPE_DEFAULT
        try:
            with cupy.cuda.Device(self.index):
                before = linalg.get_compute_type("float32")
                if before == wanted:
                    yield
                    return
                linalg.set_compute_type("float32", wanted)
                try:
                    yield
                finally:
                    linalg.set_compute_type("float32", before)
        except Exception as error:
            explained = self.explained(error)
            if explained is error:
                raise
            raise explained from error

    def explained(self, error: Exception) -> Exception:
        if type(error).__module__.partition(".")[0] not in _DRIVERS or isinstance(error, MemoryError):
            return error  # not caused by the device; CuPy's out-of-memory error is a MemoryError
        failure = DeviceError(
            f"{self.name} ({self.device_name}) failed: {type(error).__name__}: {error}",
            "check it with nvidia-smi and start again (resume a run with --resume), or use the device cpu",
        )
        failure.__cause__ = error
        return failure

    def products(self) -> Products | None:
        """Products by cuBLASLt; None if it is not installed."""
        if not self._products:
            self._products.append(_find_products(self.tf32))
        return self._products[0]

    def owns(self, array: object) -> bool:
        return isinstance(array, cupy.ndarray)

    def asarray(self, array: Any, dtype: npt.DTypeLike | None = None) -> Array:
        with self.activate():
            if isinstance(array, cupy.ndarray) and array.device.id != self.index:
                array = array.copy()  # to the active device
            return cupy.asarray(array, dtype=dtype, order="C")

    def to_numpy(self, array: Array) -> HostArray:
        with self.activate():
            host: HostArray = cupy.asnumpy(array)
        return host

    def begin_reading(self, array: Array) -> Callable[[], HostArray]:
        with self.activate():
            memory = cupy.cuda.alloc_pinned_memory(array.nbytes)
            host: HostArray = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
            cupy.asnumpy(array, out=host, blocking=False)
            read = cupy.cuda.Event(disable_timing=True)
            read.record()

        def wait() -> HostArray:
            with self.activate():
                read.synchronize()
            return host

        return wait

    def synchronize(self) -> None:
        with self.activate():
            cupy.cuda.Device(self.index).synchronize()

    def connect(self, rank: int, size: int, broadcast: Callable[[bytes], bytes]) -> Connection:
        with self.activate():
            connection: Connection = _nccl().Connection(cupy, rank, size, broadcast)
        return connection

    def memory(self) -> Memory:
        free, total = cupy.cuda.Device(self.index).mem_info
        return Memory(int(free), int(total))

    def uploads(self) -> StreamUploads:
        with self.activate():
            return StreamUploads(cupy, self.index)

    # -- Steps --------------------------------------------------------------------------------------

    def execution(self, step: Step) -> Execution:
        return self._choose(step, StepKey(step) if step.evaluates is None else self._chosen.get(step.evaluates))

    def _choose(self, step: Step, key: Any) -> Execution:
        """The execution of a step; selected again if its arrays or rules have changed."""
        found = self._chosen.get(step)
        if found is None or found[0] != key:
            execution = self._first_supported(step) if step.evaluates is None else self._as_trained(step, key)
            found = self._chosen[step] = key, execution
        return found[1]

    def _as_trained(self, step: Step, trained: tuple[Any, Execution] | None) -> Execution:
        """The execution of a step that evaluates a network."""
        reason: str | None = "as it is trained"
        if trained is not None and trained[1].name == "persistent":
            reason = self.persistent.unsupported_reason(step)
        return Execution("eager", reason) if reason else Execution("persistent", self.persistent.describe(step))

    def _first_supported(self, step: Step) -> Execution:
        """The first execution that supports the step, or the requested one."""
        wanted = self.wanted_execution
        reasons: list[str] = []
        names = [name for name in self._runners if wanted in ("auto", name)]
        graphs_first = (
            wanted == "auto" and step.batch_size > PERSISTENT_BATCH and not self.persistent.together.get(step)
        )
        if graphs_first:
            names.reverse()
        for name in names:
            runner = self._runners[name]
            reason = runner.unsupported_reason(step)
            if reason is None:
                if graphs_first and name == "graphs":
                    reasons.append(f"not persistent: graphs are as fast for batches above {PERSISTENT_BATCH}")
                count = self.persistent.multiprocessors(step) if name == "persistent" else None
                return Execution(name, "; ".join([runner.describe(step), *reasons]), multiprocessors=count)
            if wanted == name:
                raise ExecutionError(f"execution {name} is not possible: {reason}", "use execution auto instead")
            reasons.append(f"not {name}: {reason}")
        return Execution("eager", "; ".join(reasons) or "as requested")

    def copied_bytes(self, step: Step) -> int:
        return self.persistent.copied_bytes(step) if self.execution(step).name == "persistent" else 0

    def samples_changed(self, samples: Array, rows: slice) -> None:
        self.persistent.samples_changed(samples, rows)

    def networks_at_once(self, step: Step) -> int:
        if self.wanted_execution not in ("auto", "persistent"):
            return 1
        if step not in self.persistent.together:
            self.persistent.together[step] = True
            self._chosen.pop(step, None)
            if self.execution(step).name == "persistent" and self.persistent.networks_at_once(step) == 1:
                self.persistent.together[step] = False  # one after another, as each would be alone
                self._chosen.pop(step, None)
        return self.persistent.networks_at_once(step) if self.execution(step).name == "persistent" else 1

    def run_many(self, runs: Sequence[StepRun]) -> None:
        together: list[StepRun] = []
        others: list[StepRun] = []
        for run in runs:
            if len(runs) > 1 and run.step.evaluates is None and run.step not in self.persistent.together:
                self.networks_at_once(run.step)
            (together if self.execution(run.step).name == "persistent" else others).append(run)
        self.persistent.run_many(together)
        for run in others:
            self.run_steps(*run)

    def run_steps(self, step: Step, batches: range, learning_rates: Sequence[float]) -> None:
        if step.evaluates is not None:
            super().run_steps(step, batches, learning_rates)
            return
        key, done = StepKey(step), 0
        if step.processes > 1:
            self._keep_pace()
        if step.in_any_process(not self.graphs.holds(step, key)):  # all processes capture it, or none
            self.graphs.forget(step)
        while done < len(batches):
            runner = self._runners.get(self._choose(step, key).name)
            rest, rates = batches[done:], learning_rates[done:]
            if runner is None:
                super().run_steps(step, rest, rates)
                return
            done += runner.run(step, key, rest, rates)
            if done < len(batches):  # a capture failed
                del self._chosen[step]

    def _keep_pace(self) -> None:
        """Wait for what the device was given before the last call, so that an interrupt is soon noticed."""
        given = cupy.cuda.Event(disable_timing=True)
        given.record()
        if self._given is not None:
            self._given.synchronize()
        self._given = given

    @contextmanager
    def capturing(self, capture: Capture) -> Iterator[None]:
        """A context in which operations are captured."""
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

    # -- The training operations --------------------------------------------------------------------

    def kernels(self, dtype: npt.DTypeLike) -> Kernels:
        """The kernels for float32 or float64."""
        found = self._kernels.get(dtype)
        if found is None:
            found = self._kernels[dtype] = Kernels(self.xp, np.dtype(dtype))
        return found

    def matmul(self, x: Array, y: Array, out: Array) -> None:
        """``out = x y``."""
        products = self.products()
        if products is None or not products.matmul(x, y, out):
            self.xp.matmul(x, y, out=out)

    def gather(self, source: Array, rows: Array, staging: Array | None, out: Array) -> None:
        expected = out.dtype if staging is None else np.uint8
        if source.dtype != expected or rows.dtype != np.int64 or not is_c_contiguous(source, rows, out):
            with self._at_fixed_addresses(rows) as (rows,):
                return super().gather(source, rows, staging, out)
        scale = None if staging is None else PIXEL_SCALE
        return self.kernels(out.dtype).gather(source, rows, scale, self._offsets(rows), out)

    def distort(self, source: Array, rows: Array, numbers: Array, epoch: Array, warp: Warp, out: Array) -> None:
        pixels = source.dtype == np.uint8
        whole = rows.dtype == numbers.dtype == np.int64 and is_c_contiguous(source, rows, numbers, out)
        if not whole or not is_small(warp) or not (pixels or source.dtype == out.dtype):
            with self._at_fixed_addresses(rows, numbers) as (rows, numbers):
                return super().distort(source, rows, numbers, epoch, warp, out)
        scale, offsets = PIXEL_SCALE if pixels else 1.0, self._offsets(rows, numbers)
        return self.kernels(out.dtype).distort(source, rows, numbers, epoch, warp, scale, offsets, out)

    def dense_forward(
        self, x: Array, weight: Array, bias: Array, activation: ActivationRule, s: Array, a: Array
    ) -> None:
        cuda = cuda_activation(activation)
        if cuda is None or bias.dtype != a.dtype or not is_c_contiguous(s, a, bias):
            self.matmul(x, weight, s)
            self.xp.add(s, bias, out=s)
            return activation.forward(self.xp, s, a)
        alike = x.dtype == weight.dtype == a.dtype and is_c_contiguous(x, weight)
        if cuda.epilogue == "BIAS" and alike and is_narrow(weight):
            return self.kernels(a.dtype).narrow_forward(x, weight, bias, a)
        if cuda.derivative_from == "input":
            self.matmul(x, weight, s)
            return self.kernels(a.dtype).bias_activation(s, bias, cuda, a)
        products = self.products()
        if products is not None and cuda.epilogue and products.dense(cuda.epilogue, x, weight, bias, a):
            return None
        self.matmul(x, weight, a)
        return self.kernels(a.dtype).bias_activation(a, bias, cuda)

    def activation_backward(
        self, activation: ActivationRule, saved: Array, delta: Array, bias_gradient: Array | None = None
    ) -> None:
        cuda = cuda_activation(activation)
        if cuda is None or saved.dtype != delta.dtype or not is_c_contiguous(saved, delta):
            super().activation_backward(activation, saved, delta, bias_gradient)
        elif cuda.derivative != "1":
            self.kernels(delta.dtype).activation_backward(delta, saved, cuda, bias_gradient)
        elif bias_gradient is not None:
            self._bias_gradient(delta, bias_gradient)

    def dense_backward(
        self,
        x: Array,
        weight: Array,
        delta: Array,
        weight_gradient: Accumulation,
        bias_gradient: Array | None,
        input_delta: Array | None,
    ) -> None:
        gradient, scale, keep = weight_gradient
        arrays = [x, weight, delta, gradient, bias_gradient, input_delta]
        given = [array for array in arrays if array is not None]
        alike = all(array.dtype == delta.dtype for array in given) and is_c_contiguous(*given)
        if scale == 1 and alike and is_narrow(weight):
            kernels = self.kernels(delta.dtype)
            return kernels.narrow_backward(x, weight, delta, weight_gradient, bias_gradient, input_delta)
        if input_delta is not None:
            self.matmul(delta, weight.T, input_delta)  # first, since dW may be added to the weights
        if bias_gradient is not None:
            self._bias_gradient(delta, bias_gradient)
        products = self.products()
        if scale == 1 and products is not None and products.matmul(x.T, delta, gradient, keep):
            return None
        return self.accumulate_product(x, delta, weight_gradient)

    def _bias_gradient(self, delta: Array, out: Array) -> None:
        if out.dtype == delta.dtype and is_c_contiguous(delta, out):
            self.kernels(delta.dtype).column_sums(delta, out)
        else:
            self.column_sums(delta, out)

    def accumulates(self, optimizer: OptimizerRule, penalty: PenaltyRule) -> bool:
        # A graph does not change the factors of its products, so the learning rate cannot be one.
        return self.products() is not None and accumulates_in_velocity(optimizer, penalty)

    def dropout(self, x: Array, rate: float, draws: Draws, kept: Array | None, out: Array) -> None:
        step, slot, offsets = draws.step, 0, None
        if isinstance(step, CapturedStep):
            slot, offsets = step.slot, step.offsets
        if kept is None and x.dtype == out.dtype and is_c_contiguous(x, out):
            self.kernels(out.dtype).dropout(x, rate, draws, slot, offsets, out)
        else:
            super().dropout(x, rate, draws, kept, out)

    def output_error(self, loss: LossRule, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        name, real = loss_kernel(loss), outputs.dtype
        classes = name == "softmax_cross_entropy"
        expected = (
            np.int64 if classes else real,
            real,
            np.bool_ if classes or name == "logistic_cross_entropy" else real,
        )
        same = (targets.dtype, losses.dtype, scores.dtype) == expected
        if name is None or not same or not is_c_contiguous(outputs, targets, losses, scores):
            with self._at_fixed_addresses(targets, losses, scores) as arrays:
                return super().output_error(loss, outputs, *arrays)
        offsets = self._offsets(targets, losses, scores)
        return self.kernels(real).output_error(loss, outputs, targets, offsets, losses, scores)

    def weigh(self, delta: Array, losses: Array, weights: Array) -> None:
        if not delta.dtype == losses.dtype == weights.dtype or not is_c_contiguous(delta, losses, weights):
            with self._at_fixed_addresses(losses, weights) as arrays:
                return super().weigh(delta, *arrays)
        return self.kernels(delta.dtype).weigh(delta, losses, weights, self._offsets(losses, weights))

    def copy(self, copies: Sequence[Copy]) -> None:
        together: list[Copy] = []
        others: list[Copy] = []
        for each in copies:
            (together if has_copy_kernel(each) else others).append(each)
        if together:
            self.kernels(np.dtype("float32")).copy(together)
        super().copy(others)

    # CuPy contains compiled reductions for sums in an array's own dtype, minimum and maximum (`cub.pyx`). It
    # compiles any other reduction on first use, which takes seconds.

    def totals(self, *arrays: Array) -> Array:
        if arrays and all(map(has_total_kernel, arrays)):
            return self.kernels(np.dtype("float32")).totals(arrays)
        return self.xp.stack([self.xp.sum(values.astype("float64")) for values in arrays])

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
        known = optimizer_kernel(optimizer) is not None and has_penalty_kernel(penalty)
        known = known and (not accumulated or accumulates_in_velocity(optimizer, penalty))
        if not known or not is_c_contiguous(parameters, gradient, *state.buffers.values()):
            return super().update(
                optimizer, penalty, parameters, gradient, weights, state, learning_rate, accumulated
            )
        capture, factors, slot, offsets = self._capture, (), 0, None
        if capture is None:
            factors = self._next_factors(optimizer, state, learning_rate)
        else:
            slot, offsets = capture.next_slot(), capture.offsets
        return self.kernels(parameters.dtype).update(
            optimizer, penalty, parameters, gradient, weights, state, factors, slot, offsets, accumulated
        )

    def _next_factors(self, optimizer: OptimizerRule, state: Any, learning_rate: float) -> tuple[Any, ...]:
        if self._capture is None:
            return super()._next_factors(optimizer, state, learning_rate)
        offsets = self._capture.offsets
        return tuple(self.kernels(offsets.factors.dtype).load_factors(offsets, self._capture.next_slot()))

    # -- The position in the epoch, which changes between launches of a graph -------------------------

    def _offsets(self, *arrays: Array) -> GraphOffsets | None:
        """The offsets for a captured kernel that is given parts of the epoch's arrays; otherwise None."""
        capture = self._capture
        moving = set() if capture is None else {capture.moves(array) for array in arrays}
        if moving == {True, False}:
            raise NotCapturableError("an operation is given arrays of its own together with arrays of the epoch")
        return capture.offsets if capture is not None and True in moving else None

    @contextmanager
    def _at_fixed_addresses(self, *arrays: Array) -> Iterator[tuple[Array, ...]]:
        """The arrays; in a capture, copies of those that are parts of the epoch's, written back at the end."""
        capture = self._capture
        if capture is None or not any(capture.moves(array) for array in arrays):
            yield arrays
            return
        kernels, offsets = self.kernels(capture.offsets.factors.dtype), capture.offsets
        moving = [capture.moves(array) for array in arrays]
        if not is_c_contiguous(*arrays):
            raise NotCapturableError("an array of the epoch is not C-contiguous")
        copies = [
            kernels.load(array, offsets) if moves else array for array, moves in zip(arrays, moving, strict=True)
        ]
        yield tuple(copies)
        for copy, array, moves in zip(copies, arrays, moving, strict=True):
            if moves and capture.writes(array):
                kernels.store(copy, offsets, array)


def _find_products(tf32: bool) -> Products | None:
    """Products by cuBLASLt; None if NVIDIA's bindings are not installed or fail."""
    if importlib.util.find_spec("nvmath") is None:
        return None
    try:
        from nvmath import bindings

        return Products(cupy, tf32, bindings)
    except Exception as error:  # a broken installation can raise anything
        warnings.warn(f"nvmath-python is installed, but cannot be used: {error}", RuntimeWarning, stacklevel=2)
        return None


def _nccl() -> Any:
    """The module that connects GPUs.

    Raises:
        DeviceError: nccl4py or NCCL is missing.
    """
    try:
        from . import nccl as module

        missing = module.library_missing()
    except Exception as error:  # a broken installation can raise anything
        if not isinstance(error, ModuleNotFoundError) or error.name not in ("nccl", "nccl.core"):
            cause = f"nccl4py is installed, but cannot be used: {type(error).__name__}: {error}"
            raise DeviceError(cause, f"reinstall it with {_GET_NCCL}") from error
        raise DeviceError("GPUs of several processes need nccl4py", f"install it with {_GET_NCCL}") from error
    if missing:
        raise DeviceError("nccl4py finds no NCCL library", f"install it with {_GET_NCCL}")
    return module


def _name(index: int) -> str:
    name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)
