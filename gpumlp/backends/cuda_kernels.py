"""The kernels of ``kernels.cu``: how they are compiled, and how each is launched.

Nothing here imports CuPy: the library is given, so that tests run these very calls on the processor.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from .rules import Array

MOST_CLASSES = 64  # up to which a thread may take a whole row of logits

_THREADS = 256
_MATRIX_BLOCK = (32, 8)  # columns, rows
_ROW_THREADS = 64
_SUM_BLOCK = (32, 32)
_MOST_BLOCKS = 65_535  # in y, and enough in x: a kernel's loops do the rest


class Place(NamedTuple):
    """Where a captured call finds what changes from one launch of its graph to the next.

    Attributes:
        position: ``(2,)`` int64 on the device: samples and steps to go on from.
        factors: ``(steps, 2)``, an optimizer's factors of each step.
    """

    position: Array
    factors: Array


def kernel_source(*names: str) -> str:
    """The text of ``rules.cuh`` and of the sources that build on it, ``kernels.cu`` if none are named."""
    parts = ("rules.cuh", *(names or ("kernels.cu",)))
    return "\n".join(files(__package__).joinpath(part).read_text(encoding="utf-8") for part in parts)


def real_name(dtype: np.dtype[Any]) -> str:
    """What CUDA calls float32 and float64."""
    return {"float32": "float", "float64": "double"}[dtype.name]


class Kernels:
    """The kernels for one dtype.

    Every scalar is given as the NumPy type that its parameter has: a kernel's arguments are raw bytes, and
    nothing would convert them. The caller answers for shapes, dtypes and contiguity.

    Args:
        cupy: the library, or a double of it.
        dtype: float32 or float64, of all arrays but labels, rows and pixels.
    """

    def __init__(self, cupy: Any, dtype: np.dtype[Any]) -> None:
        module = cupy.RawModule(code=kernel_source(), options=(f"-DREAL={real_name(dtype)}",))
        self._real = dtype.type
        self._null = np.uint64(0)
        self._gather_pixels = module.get_function("gather_pixels")
        self._gather_rows = module.get_function("gather_rows")
        self._bias_activation = module.get_function("bias_activation")
        self._activation_backward = module.get_function("activation_backward")
        self._column_sums = module.get_function("column_sums")
        self._softmax_cross_entropy = module.get_function("softmax_cross_entropy")
        self._sgd_step = module.get_function("sgd_step")
        self._adam_step = module.get_function("adam_step")
        self._set_position = module.get_function("set_position")

    def gather(self, source: Array, rows: Array, scale: float | None, place: Place | None, out: Array) -> None:
        """``out = source[rows] * scale`` for pixels, ``source[rows]`` where `scale` is None."""
        batch, features = out.shape
        sizes = (np.int64(batch), np.int64(features))
        grid = _matrix_grid(batch, features)
        if scale is None:
            self._gather_rows(grid, _MATRIX_BLOCK, (source, rows, *sizes, self._position(place), out))
        else:
            arguments = (source, rows, *sizes, self._real(scale), self._position(place), out)
            self._gather_pixels(grid, _MATRIX_BLOCK, arguments)

    def bias_activation(self, s: Array, bias: Array, code: int, slope: float) -> None:
        """``s = h(s + bias)`` in place."""
        batch, units = s.shape
        arguments = (s, bias, np.int64(batch), np.int64(units), np.int32(code), self._real(slope))
        self._bias_activation(_matrix_grid(batch, units), _MATRIX_BLOCK, arguments)

    def activation_backward(self, delta: Array, a: Array, code: int, slope: float) -> None:
        """``delta = delta * h'`` in place, with h' from the output `a`, which is kept."""
        arguments = (delta, a, np.int64(delta.size), np.int32(code), self._real(slope))
        self._activation_backward(_grid(delta.size), (_THREADS,), arguments)

    def column_sums(self, values: Array, sums: Array) -> None:
        """``sums = values.sum(axis=0)``."""
        rows, columns = values.shape
        grid = (-(-columns // _SUM_BLOCK[0]),)
        self._column_sums(grid, _SUM_BLOCK, (values, np.int64(rows), np.int64(columns), sums))

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, place: Place | None, losses: Array, correct: Array
    ) -> None:
        """See `Backend.softmax_cross_entropy`; for up to `MOST_CLASSES` classes."""
        batch, classes = logits.shape
        sizes = (np.int64(batch), np.int64(classes))
        arguments = (logits, labels, *sizes, self._position(place), losses, correct)
        self._softmax_cross_entropy(_grid(batch, _ROW_THREADS), (_ROW_THREADS,), arguments)

    def sgd_step(
        self,
        parameters: Array,
        gradient: Array,
        velocity: Array | None,
        weights: slice,
        penalties: tuple[float, float],
        rule: int,
        momentum: float,
        factors: tuple[float, float],
        slot: int,
        place: Place | None,
    ) -> None:
        """Penalty and SGD step in one pass, with `step_factors`; a captured step reads them at `slot` instead."""
        real = self._real
        arguments = (
            parameters,
            gradient,
            self._null if velocity is None else velocity,
            *self._extent(parameters, weights),
            real(penalties[0]),
            real(penalties[1]),
            np.int32(rule),
            real(momentum),
            real(factors[0]),
            *self._factors(slot, place),
        )
        self._sgd_step(_grid(parameters.size), (_THREADS,), arguments)

    def adam_step(
        self,
        parameters: Array,
        gradient: Array,
        mean: Array,
        mean_square: Array,
        weights: slice,
        penalties: tuple[float, float],
        betas: tuple[float, float],
        factors: tuple[float, float],
        slot: int,
        place: Place | None,
    ) -> None:
        """Penalty and Adam step in one pass, with `step_factors`; a captured step reads them at `slot` instead."""
        real = self._real
        arguments = (
            parameters,
            gradient,
            mean,
            mean_square,
            *self._extent(parameters, weights),
            real(penalties[0]),
            real(penalties[1]),
            real(betas[0]),
            real(1 - betas[0]),
            real(betas[1]),
            real(1 - betas[1]),
            real(factors[0]),
            real(factors[1]),
            *self._factors(slot, place),
        )
        self._adam_step(_grid(parameters.size), (_THREADS,), arguments)

    def set_position(self, place: Place, samples: int, steps: int) -> None:
        """Where the next launch of a graph goes on from."""
        self._set_position((1,), (1,), (place.position, np.int64(samples), np.int64(steps)))

    def _position(self, place: Place | None) -> Any:
        return self._null if place is None else place.position

    def _factors(self, slot: int, place: Place | None) -> tuple[Any, Any, Any]:
        if place is None:
            return self._null, np.int64(0), self._null
        return place.factors, np.int64(slot), place.position

    @staticmethod
    def _extent(parameters: Array, weights: slice) -> tuple[np.int64, np.int64, np.int64]:
        start, stop, _ = weights.indices(parameters.size)
        return np.int64(parameters.size), np.int64(start), np.int64(stop)


def _grid(size: int, threads: int = _THREADS) -> tuple[int]:
    return (max(1, min(-(-size // threads), _MOST_BLOCKS)),)


def _matrix_grid(rows: int, columns: int) -> tuple[int, int]:
    across, down = _MATRIX_BLOCK
    return max(1, min(-(-columns // across), _MOST_BLOCKS)), max(1, min(-(-rows // down), _MOST_BLOCKS))
