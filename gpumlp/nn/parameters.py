"""All parameters of a network in one flat buffer, and all their gradients in another."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from ..backends import Array, Backend, HostArray, host_memory, to_host
from ..words import shown

T = TypeVar("T")

ALIGNMENT = 64  # elements: aligns every tensor for cache lines and for vector and matrix units


class Parameters:
    """Named tensors in one buffer: first all weights (matrices), then all biases (vectors).

    An optimizer step is one operation on one array, and a penalty applies to the slice `weights` without a mask.
    The padding between tensors stays 0.

    Args:
        shapes: the shape of each tensor by name, see `shapes_of`.
        backend: of the device.
        dtype: float32 or float64.

    Attributes:
        data: ``(size,)``, the parameters.
        gradient: ``(size,)``, dC/dtheta of the last backward pass; NaN where training does not store it (see
            ``Trainer.keep_gradients``).
        weights: the slice of both that contains the weights and no biases.
        shapes: the shape of each tensor by name: ``layers.0.weight``, ``layers.0.bias``, ...
        count: the number of parameters, without padding.

    Raises:
        MemoryError: there is not enough memory for them.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], backend: Backend, dtype: np.dtype[Any]) -> None:
        self.shapes = shapes
        self._offsets: dict[str, int] = {}
        end = weights_end = 0
        for name, shape in self.shapes.items():
            self._offsets[name] = end
            end += -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT
            if len(shape) > 1:
                weights_end = end
        self.weights = slice(0, weights_end)
        self.count = sum(math.prod(shape) for shape in self.shapes.values())
        # NumPy raises another error for the largest sizes, and the system may end the process for others.
        needed, most = 2 * end * dtype.itemsize, host_memory() if backend.name == "cpu" else sys.maxsize
        if needed > most:
            sizes = f"{needed / 2**30:,.1f} GiB; at most {most / 2**30:,.1f} GiB are possible here"
            raise MemoryError(f"{self.count:,} parameters and their gradients need {sizes}")
        self.data = backend.xp.zeros(end, dtype=dtype)
        self.gradient = backend.xp.zeros(end, dtype=dtype)

    def views(self, flat: Array) -> dict[str, Array]:
        """The tensors by name, as views of a flat buffer ``(size,)``."""
        views = {}
        for name, shape in self.shapes.items():
            offset = self._offsets[name]
            views[name] = flat[offset : offset + math.prod(shape)].reshape(shape)
        return views

    def to_host(self, flat: Array, backend: Backend) -> dict[str, HostArray]:
        """Copies of the tensors on the host, by name, from one transfer. Waits for the device."""
        return {name: view.copy() for name, view in self.views(backend.to_numpy(flat)).items()}

    def from_host(self, tensors: dict[str, HostArray], backend: Backend) -> Array:
        """A new flat buffer ``(size,)`` on the device with the values of these tensors.

        Raises:
            ValueError: tensors are missing, unknown, or of another shape; the message lists all of them.
            TypeError: something else than tensors by name is given.
        """
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors are expected by name, as state_dict() returns them, got {shown(tensors)}")
        tensors = {name: to_host(tensor) for name, tensor in tensors.items()}
        check_tensors(self.shapes, tensors)
        flat = np.zeros(self.data.shape, dtype=self.data.dtype)
        for name, view in self.views(flat).items():
            view[...] = tensors[name]
        return backend.asarray(flat)


def by_name(layers: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """What belongs to the parameters of each layer, by the names of the tensors: ``layers.0.weight``, ...

    Only layers with parameters are counted, so that dropout does not change a name.
    """
    counted = enumerate(each for each in layers if each)
    return {f"layers.{index}.{name}": value for index, each in counted for name, value in each.items()}


def shapes_of(layers: Iterable[Mapping[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's tensors by name, matrices first, from the shapes of each layer's parameters."""
    named = by_name(layers)
    return {name: named[name] for name in sorted(named, key=lambda name: len(named[name]) < 2)}


def check_tensors(shapes: dict[str, tuple[int, ...]], tensors: dict[str, HostArray]) -> None:
    """Check that there is a tensor of real numbers of each shape, and no other.

    Raises:
        ValueError: tensors are missing, unknown, or of another shape or dtype; the message lists all of them.
    """
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not part of this network" for name in tensors if name not in shapes]
    problems += [
        f"{name} is expected to have shape {shapes[name]}, got {tensor.shape}"
        for name, tensor in tensors.items()
        if name in shapes and tensor.shape != shapes[name]
    ]
    problems += [
        f"{name} is expected to hold real numbers, got dtype {tensor.dtype}; convert it with astype(float)"
        for name, tensor in tensors.items()
        if not np.can_cast(tensor.dtype, np.float64, "same_kind")
    ]
    if problems:
        raise ValueError("; ".join(problems))
