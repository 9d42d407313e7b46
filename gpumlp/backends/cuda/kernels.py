"""Compiles and launches the kernels of the operations; each source, a subject, is compiled when first used.

CuPy is passed as an argument and not imported, so that tests can run this code on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..base import Accumulation, Array, Copy, CudaActivation, Memory, stated
from ..distortion import Warp
from ..philox import DISTORTION, Draws, threshold
from .plan import LOSSES

NARROW = 16  # the most units of a layer that is computed by the kernels for narrow layers

_THREADS = 256
_MATRIX_BLOCK = (32, 8)  # columns, rows
_GATHER_BLOCK = (64, 4)
_ROW_THREADS = 128
_SUM_BLOCK = (32, 32)  # SUM_COLUMNS and SUM_ROWS of blocks.cuh
_NARROW_BLOCK = (32, 8)  # NARROW_ROWS of layers.cu
_SHARED_BYTES = 48 * 1024  # of shared memory for a block, which any GPU has
_MOST_BLOCKS = 65_535  # CUDA's limit in y; the kernels loop over larger arrays
_SUMMING_BLOCKS = 512  # that divide the rows of column sums; a few for each multiprocessor
_TOTAL_THREADS = 256  # TOTAL_THREADS of arrays.cu
_TOTAL_BLOCKS = 64  # that divide the elements of a total
_TOTAL_KINDS = {"f": 0, "d": 1, "?": 2}  # by dtype, numbered as in arrays.cu
_WORD = 4  # bytes that a thread copies
_COPYING_BLOCKS = 256  # that divide a copy
_ROWS_PER_BLOCK = 128  # fewer take longer to be added up than they save
_AT_ONCE = 4  # numbers that a thread reads or writes at once, and reads that it starts before it waits
_VECTOR_BYTES = 16  # the alignment that reading several numbers at once requires
_KERNEL = re.compile(r'^extern "C" __global__ .*?void (\w+)\(', re.MULTILINE)
_SGD_CODES = {"plain": 0, "momentum": 1, "nesterov": 2, "accumulated": 3}  # numbered as in optimizers.cu


class Device(Protocol):
    """The part of `CudaBackend` that `GraphRunner` and `PersistentRunner` use."""

    xp: Any

    def asarray(self, array: Any) -> Array: ...
    def kernels(self, dtype: Any) -> Kernels: ...
    def memory(self) -> Memory | None: ...
    def products(self) -> object | None: ...
    def capturing(self, capture: Any) -> AbstractContextManager[None]: ...


class GraphOffsets(NamedTuple):
    """Arrays on the device with the values that change between launches of a graph.

    Attributes:
        position: ``(3,)`` int64: the numbers of samples and of rows of `factors` to add to the captured ones, and
            the number of steps taken before.
        factors: ``(steps, count)``, the optimizer's `step_factors` for each step.
    """

    position: Array
    factors: Array


def kernel_source(*names: str, activation: CudaActivation | None = None) -> str:
    """The expressions of an activation, if there is one, ``blocks.cuh`` and the named sources, as one text."""
    defined = ""
    if activation is not None:
        defined = f"#define FORWARD {activation.forward}\n#define DERIVATIVE {activation.derivative}\n"
    parts = (files(__package__).joinpath(name) for name in ("blocks.cuh", *names))
    return defined + "\n".join(part.read_text(encoding="utf-8") for part in parts)


def real_name(dtype: np.dtype[Any]) -> str:
    """The CUDA type for float32 or float64."""
    return {"float32": "float", "float64": "double"}[dtype.name]


def cuda_activation(activation: Any) -> CudaActivation | None:
    """The CUDA expressions of an activation; None if it has none that apply."""
    found: CudaActivation | None = stated(activation, "cuda", "forward", "backward")
    applies = found is not None and found.derivative_from == activation.derivative_from
    return found if applies else None


def optimizer_kernel(optimizer: Any) -> str | None:
    """The name of the optimizer's kernel, ``"sgd"``, ``"adam"`` or ``"adamw"``; None if there is none."""
    name = stated(optimizer, "kernel", "update", "init", "active_buffers", "step_factors")
    return name if name in ("sgd", "adam", "adamw") else None


def has_penalty_kernel(penalty: Any) -> bool:
    """Whether the optimizers' kernels support this penalty."""
    return bool(stated(penalty, "kernel", "add_gradient") == "l2_l1")


def loss_kernel(loss: Any) -> str | None:
    """The name of a loss in `LOSSES`, with or without label smoothing; None if it is computed by array code."""
    name = stated(loss, "kernel", "output_error")
    return name if name in LOSSES else None


def accumulates_in_velocity(optimizer: Any, penalty: Any) -> bool:
    """Whether the optimizer's step can begin with products that add the weights' gradient to the velocity."""
    known = stated(optimizer, "kernel", "update", "accumulation", "complete") == "sgd"
    return bool(known and has_penalty_kernel(penalty) and optimizer.momentum and not optimizer.nesterov)


def sgd_rule(optimizer: Any) -> str:
    """The name of SGD's variant."""
    return "nesterov" if optimizer.nesterov else "momentum" if optimizer.momentum else "plain"


def sgd_code(optimizer: Any, accumulated: bool) -> np.int32:
    """The number of SGD's variant, as in optimizers.cu."""
    code: np.int32 = np.int32(_SGD_CODES["accumulated" if accumulated else sgd_rule(optimizer)])
    return code


def is_dense(layer: Any) -> bool:
    """Whether this is a dense layer that is computed as such."""
    return bool(stated(layer, "kernel", "forward", "backward") == "dense")


def is_c_contiguous(*arrays: Array) -> bool:
    """Whether all arrays are C-contiguous, as the kernels require."""
    return all(array.flags.c_contiguous for array in arrays)


def has_total_kernel(array: Array) -> bool:
    """Whether `Kernels.totals` supports this array."""
    return bool(array.size and array.dtype.char in _TOTAL_KINDS and array.flags.c_contiguous)


def has_copy_kernel(copy: Copy) -> bool:
    """Whether `Kernels.copy` supports this copy."""
    source, out, rows = copy
    alike = source.dtype == out.dtype and (source.shape == out.shape if rows is None else rows.dtype == np.int64)
    whole = source.flags.c_contiguous and out.flags.c_contiguous
    return bool(alike and whole and out.ndim and out.size and out.dtype.itemsize % _WORD == 0)


class Kernels:
    """The kernels for one dtype.

    Every scalar is passed as a NumPy scalar of its parameter's type, since arguments are not converted. The caller
    is responsible for shapes, dtypes and contiguity.

    Args:
        cupy: the library, or a fake of it.
        dtype: float32 or float64, of all arrays except labels, rows and pixels.
    """

    def __init__(self, cupy: Any, dtype: np.dtype[Any]) -> None:
        self._cupy, self._options = cupy, (f"-DREAL={real_name(dtype)}",)
        # What blocks tell each other; kernels run one after the other, so that all can use the same.
        self._partials = cupy.empty(_SUMMING_BLOCKS * NARROW * _NARROW_BLOCK[0], dtype=dtype)
        self._arrived = cupy.zeros(_SUMMING_BLOCKS, dtype="uint32")
        self._total_partials = cupy.empty(_SUMMING_BLOCKS * _TOTAL_BLOCKS, dtype="float64")
        self._real = dtype.type
        self._null = np.uint64(0)
        self._compiled: dict[tuple[str, CudaActivation | None], dict[str, Any]] = {}

    def _kernel(self, source: str, name: str, activation: CudaActivation | None = None) -> Any:
        """A kernel of a source, which is compiled when first used."""
        key = source, activation
        if key not in self._compiled:
            code = kernel_source(source, activation=activation)
            module = self._cupy.RawModule(code=code, options=self._options)
            self._compiled[key] = {each: module.get_function(each) for each in _KERNEL.findall(code)}
        return self._compiled[key][name]

    def gather(
        self, source: Array, rows: Array, scale: float | None, offsets: GraphOffsets | None, out: Array
    ) -> None:
        """``out = source[rows] * scale`` for pixels, ``out = source[rows]`` if `scale` is None."""
        batch, features = out.shape
        width = _vector_width(features, source, out)
        sizes, vector = (np.int64(batch), np.int64(features)), np.int32(width)
        grid = _matrix_grid(batch, -(-features // (width * _AT_ONCE)), _GATHER_BLOCK)
        factor = () if scale is None else (self._real(scale),)
        arguments = (source, rows, *sizes, *factor, vector, self._position(offsets), out)
        kernel = self._kernel("samples.cu", "gather_rows" if scale is None else "gather_pixels")
        kernel(grid, _GATHER_BLOCK, arguments)

    def distort(
        self,
        source: Array,
        rows: Array,
        numbers: Array,
        epoch: Array,
        warp: Warp,
        scale: float,
        offsets: GraphOffsets | None,
        out: Array,
    ) -> None:
        """See `Backend.distort`, for a warp that `is_small`."""
        batch = len(rows)
        by_row, by_column = warp.weights
        sizes = (np.int64(batch), *(np.int32(size) for size in (*warp.shape, warp.noise)))
        numbers_of_map = (warp.rotation, warp.scaling, warp.shear, *warp.translation)
        arguments = (
            *(source, rows, numbers, *sizes, by_row, by_column),
            *(*(np.float32(gain) for gain in warp.gain), *(np.float64(number) for number in numbers_of_map)),
            *(np.uint64(warp.seed % 2**64), np.uint64(DISTORTION), epoch),
            *(self._real(scale), self._position(offsets), out),
        )
        kernel = self._kernel("distortion.cu", "distort_pixels" if source.dtype == np.uint8 else "distort_rows")
        kernel((min(batch, _MOST_BLOCKS),), (_THREADS,), arguments, shared_mem=_warp_bytes(warp))

    def bias_activation(self, s: Array, bias: Array, activation: CudaActivation, a: Array | None = None) -> None:
        """``s = h(s + bias)`` in place; with `a`, ``s = s + bias`` and ``a = h(s)``."""
        batch, units = s.shape
        width = _vector_width(units, s, bias, *([] if a is None else [a]))
        arguments = (s, bias, np.int64(batch), np.int64(units), np.int32(width), *([] if a is None else [a]))
        name = "bias_activation" if a is None else "bias_activation_apart"
        kernel = self._kernel("activation.cu", name, activation)
        kernel(_matrix_grid(batch, units // width), _MATRIX_BLOCK, arguments)

    def activation_backward(
        self, delta: Array, saved: Array, activation: CudaActivation, sums: Array | None = None
    ) -> None:
        """``delta = delta * h'`` in place, with h' computed from the output or the pre-activation.

        With `sums`, also ``sums = delta.sum(axis=0)``.
        """
        kernel = self._kernel("activation.cu", "activation_backward", activation)
        grid, sizes, shared = self._summing(delta)
        kernel(grid, _SUM_BLOCK, (delta, saved, *sizes, *shared, self._null if sums is None else sums))

    def narrow_forward(self, x: Array, weight: Array, bias: Array, out: Array) -> None:
        """``out = x W + b`` for a layer that `is_narrow`."""
        batch, (units, outputs) = len(x), weight.shape
        grid = (1, min(-(-batch // _NARROW_BLOCK[1]), _SUMMING_BLOCKS))
        arguments = (x, weight, bias, np.int64(batch), np.int32(units), np.int32(outputs), out)
        kernel = self._kernel("layers.cu", "narrow_forward")
        kernel(grid, _NARROW_BLOCK, arguments, shared_mem=_narrow_bytes(weight))

    def narrow_backward(
        self,
        x: Array,
        weight: Array,
        delta: Array,
        weight_gradient: Accumulation,
        bias_gradient: Array | None,
        input_delta: Array | None,
    ) -> None:
        """`Backend.dense_backward` for a layer that `is_narrow`, with a scale of 1."""
        batch, (units, outputs) = len(x), weight.shape
        across = -(-(units + 1) // _NARROW_BLOCK[0])
        arguments = (
            *(x, weight, delta, np.int64(batch), np.int32(units), np.int32(outputs)),
            *(self._real(weight_gradient.keep), self._partials, self._arrived),
            *(weight_gradient.out, self._null if bias_gradient is None else bias_gradient),
            self._null if input_delta is None else input_delta,
        )
        grid = (across, _blocks_down(batch, across))
        self._kernel("layers.cu", "narrow_backward")(grid, _NARROW_BLOCK, arguments)

    def dropout(
        self, x: Array, rate: float, draws: Draws, slot: int, offsets: GraphOffsets | None, out: Array
    ) -> None:
        """See `Backend.dropout`. A captured step has the number `slot` plus that of the launch."""
        batch, units = x.shape
        first, step = draws.first_block(units), draws.step if offsets is None else slot
        numbers = [np.uint64(word % 2**64) for word in (draws.seed, draws.purpose, step, draws.layer, first)]
        arguments = (
            *(x, np.int64(batch), np.int64(units), np.uint32(threshold(rate)), self._real(1 / (1 - rate))),
            *(*numbers, self._position(offsets), out),
        )
        self._kernel("layers.cu", "dropout")(_grid(batch * -(-units // 8)), (_THREADS,), arguments)

    def weigh(self, delta: Array, losses: Array, weights: Array, offsets: GraphOffsets | None) -> None:
        """See `Backend.weigh`."""
        batch, outputs = delta.shape
        sizes = (np.int64(batch), np.int64(outputs))
        arguments = (delta, *sizes, self._position(offsets), losses, weights)
        self._kernel("losses.cu", "weigh")(_matrix_grid(batch, outputs), _MATRIX_BLOCK, arguments)

    def load(self, rows: Array, offsets: GraphOffsets) -> Array:
        """A copy of rows of an epoch, at the position of the launch."""
        out = self._cupy.empty(rows.shape, dtype=rows.dtype)
        self._move(self._kernel("graphs.cu", "load_rows"), rows, offsets, out)
        return out

    def store(self, rows: Array, offsets: GraphOffsets, out: Array) -> None:
        """Copy into rows of an epoch, at the position of the launch."""
        self._move(self._kernel("graphs.cu", "store_rows"), rows, offsets, out)

    def _move(self, kernel: Any, source: Array, offsets: GraphOffsets, out: Array) -> None:
        size = source.size * source.dtype.itemsize
        sizes = (np.int64(size), np.int64(size // len(source)))
        source, out = (array.reshape(-1).view("uint8") for array in (source, out))
        kernel(_grid(size), (_THREADS,), (source, *sizes, offsets.position, out))

    def load_factors(self, offsets: GraphOffsets, slot: int) -> list[Array]:
        """The factors of a captured step, as arrays ``()``."""
        count = offsets.factors.shape[1]
        out = self._cupy.empty(count, dtype=offsets.factors.dtype)
        arguments = (offsets.factors, np.int32(count), np.int64(slot), offsets.position, out)
        self._kernel("graphs.cu", "load_factors")((1,), (_ROW_THREADS,), arguments)
        return [out[index : index + 1].reshape(()) for index in range(count)]

    def column_sums(self, values: Array, sums: Array) -> None:
        """``sums = values.sum(axis=0)``."""
        grid, sizes, shared = self._summing(values)
        self._kernel("layers.cu", "column_sums")(grid, _SUM_BLOCK, (values, *sizes, *shared, sums))

    def totals(self, arrays: Sequence[Array]) -> Array:
        """See `Backend.totals`, for arrays with `has_total_kernel`, of any dtype."""
        sums, largest = self._cupy.empty(len(arrays), dtype="float64"), max(array.size for array in arrays)
        blocks = min(-(-largest // (_AT_ONCE * _TOTAL_THREADS)), _TOTAL_BLOCKS)
        for first in range(0, len(arrays), _SUMMING_BLOCKS):
            some = arrays[first : first + _SUMMING_BLOCKS]
            rows = [(array.data.ptr, array.size, _TOTAL_KINDS[array.dtype.char]) for array in some]
            out = sums[first : first + len(some)]
            arguments = (self._table(rows), self._total_partials, self._arrived, out)
            self._kernel("arrays.cu", "totals")((len(some), blocks), (_TOTAL_THREADS,), arguments)
        return sums

    def copy(self, copies: Sequence[Copy]) -> None:
        """See `Backend.copy`, for those with `has_copy_kernel`."""
        # All arrays of the host go to the device at once, those of int64 first, which rows have to be.
        host = {id(array): array for each in copies for array in each if isinstance(array, np.ndarray)}
        arrays = sorted(host.values(), key=lambda array: -array.dtype.itemsize)
        addresses, address = {id(None): 0}, 0
        if arrays:
            parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
            size = sum(array.nbytes for array in arrays)
            pinned = np.frombuffer(self._cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
            # CuPy copies pinned memory without a copy of its own, and keeps it until the device has it.
            uploaded = self._cupy.asarray(np.concatenate(parts, out=pinned))
            address = uploaded.data.ptr
        for array in arrays:
            addresses[id(array)] = address
            address += array.nbytes
        for first in range(0, len(copies), _MOST_BLOCKS):
            rows = []
            for source, out, taken in copies[first : first + _MOST_BLOCKS]:
                start = addresses[id(source)] if id(source) in host else source.data.ptr
                words = out.size * out.dtype.itemsize // _WORD
                rows.append((start, addresses[id(taken)], out.data.ptr, words, words // len(out)))
            blocks = min(-(-max(row[3] for row in rows) // (_AT_ONCE * _THREADS)), _COPYING_BLOCKS)
            self._kernel("arrays.cu", "copy_words")((blocks, len(rows)), (_THREADS,), (self._table(rows),))

    def _table(self, rows: Sequence[tuple[int, ...]]) -> Array:
        """Structures of the CUDA source, whose members are addresses and int64, on the device."""
        return self._cupy.asarray(np.array(rows, dtype=np.int64).view(np.uint8))

    def _summing(self, values: Array) -> tuple[Any, ...]:
        """The grid of a kernel that sums columns, the sizes of the matrix, and memory for the blocks' sums."""
        rows, columns = values.shape
        across = -(-columns // _SUM_BLOCK[0])
        sizes = (np.int64(rows), np.int64(columns))
        return (across, _blocks_down(rows, across)), sizes, (self._partials, self._arrived)

    def output_error(
        self,
        loss: Any,
        outputs: Array,
        targets: Array,
        offsets: GraphOffsets | None,
        losses: Array,
        scores: Array,
    ) -> None:
        """See `Backend.output_error`, for a loss with a `loss_kernel`."""
        (batch, count), name = outputs.shape, loss_kernel(loss)
        lanes = min(32, 1 << (count - 1).bit_length())
        smoothing, position = self._real(getattr(loss, "label_smoothing", 0)), self._position(offsets)
        common = (outputs, targets, np.int64(batch), np.int64(count))
        arguments: tuple[Any, ...]
        if name == "softmax_cross_entropy":
            kernel = self._kernel("losses.cu", "softmax_cross_entropy")
            arguments = (*common, smoothing, np.int32(lanes), position, losses, scores)
        else:
            kernel, code = self._kernel("losses.cu", "independent_outputs"), np.int32(LOSSES.index(str(name)))
            places = (scores, self._null) if scores.dtype == np.bool_ else (self._null, scores)
            arguments = (*common, code, smoothing, np.int32(lanes), position, losses, *places)
        kernel(_grid(batch * lanes, _ROW_THREADS), (_ROW_THREADS,), arguments)

    def update(
        self,
        optimizer: Any,
        penalty: Any,
        parameters: Array,
        gradient: Array,
        weights: slice,
        state: Any,
        step_factors: Sequence[float],
        slot: int,
        offsets: GraphOffsets | None,
        accumulated: bool = False,
    ) -> None:
        """Penalty and optimizer step in one pass; see `Backend.update`.

        A captured step reads its factors from the device, at index `slot` plus the position of the launch.
        """
        real, name = self._real, optimizer_kernel(optimizer)
        step_size, epsilon, decay = (real(factor) for factor in (*step_factors, 0.0, 0.0, 0.0)[:3])
        start, stop, _ = weights.indices(parameters.size)
        penalties = (real(penalty.l2), real(penalty.l1))
        common = (np.int64(parameters.size), np.int64(start), np.int64(stop), *penalties)
        factors = (self._null, np.int32(0), np.int64(0), self._null)
        if offsets is not None:
            factors = (offsets.factors, np.int32(offsets.factors.shape[1]), np.int64(slot), offsets.position)
        if name == "sgd":
            buffers = [state.buffers["velocity"] if optimizer.momentum else self._null]
            rule = (sgd_code(optimizer, accumulated), real(optimizer.momentum), step_size)
        else:
            buffers = [state.buffers["mean"], state.buffers["mean_square"]]
            betas = [real(beta) for b in (optimizer.beta1, optimizer.beta2) for beta in (b, 1 - b)]
            rule = (*betas, step_size, epsilon, decay)
        kernel = self._kernel("optimizers.cu", "sgd_step" if name == "sgd" else "adam_step")
        arguments = (parameters, gradient, *buffers, *common, *rule, *factors)
        kernel(_grid(parameters.size), (_THREADS,), arguments)

    def set_position(self, offsets: GraphOffsets, samples: int, slots: int, steps: int) -> None:
        """Set the position of the next launch of a graph."""
        numbers = (np.int64(samples), np.int64(slots), np.int64(steps))
        self._kernel("graphs.cu", "set_position")((1,), (1,), (offsets.position, *numbers))

    def _position(self, offsets: GraphOffsets | None) -> Any:
        return self._null if offsets is None else offsets.position


def _grid(size: int, threads: int = _THREADS) -> tuple[int]:
    return (max(1, min(-(-size // threads), _MOST_BLOCKS)),)


def _matrix_grid(rows: int, columns: int, block: tuple[int, int] = _MATRIX_BLOCK) -> tuple[int, int]:
    across, down = block
    return max(1, min(-(-columns // across), _MOST_BLOCKS)), max(1, min(-(-rows // down), _MOST_BLOCKS))


def _blocks_down(rows: int, across: int) -> int:
    """How many blocks divide the rows of column sums, if `across` blocks divide the columns."""
    return max(1, min(-(-rows // _ROWS_PER_BLOCK), _SUMMING_BLOCKS // across))


def _vector_width(columns: int, *arrays: Array) -> int:
    """How many neighbouring numbers of each row can be read at once from all arrays: 4 or 1."""
    aligned = all(array.data.ptr % _VECTOR_BYTES == 0 for array in arrays)
    return _AT_ONCE if aligned and columns % _AT_ONCE == 0 else 1


def _narrow_bytes(weight: Array) -> int:
    """The shared memory of `Kernels.narrow_forward`, which has columns of weights in groups of four."""
    units, outputs = weight.shape
    return int(units * -(-outputs // 4) * 4 * weight.dtype.itemsize)


def is_narrow(weight: Array) -> bool:
    """Whether the kernels for narrow layers compute a layer with these weights."""
    return weight.shape[1] <= NARROW and _narrow_bytes(weight) <= _SHARED_BYTES


def _warp_bytes(warp: Warp) -> int:
    """The shared memory of `Kernels.distort`: places by the affine map, sums of noise along columns, and noise."""
    (rows, columns), noise = warp.shape, warp.noise
    return 8 * (rows + columns) + 4 * rows * noise + 2 * noise**2


def is_small(warp: Warp) -> bool:
    """Whether images and noise are small enough for the kernel."""
    return _warp_bytes(warp) <= _SHARED_BYTES
