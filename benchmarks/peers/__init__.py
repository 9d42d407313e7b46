"""The libraries that are compared, written as their own users would write them at their best.

A peer is one library that trains one network on data that it holds on its device. A library is imported only when
one of its peers is made, so that any of them may be missing.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Setting:
    """What is trained: the same for all peers."""

    sizes: tuple[int, ...]
    batch_size: int
    momentum: float  # 0: plain SGD
    learning_rate: float
    dtype: str  # float32 or float64
    device: str  # cpu, cuda:0, ...

    @property
    def network(self) -> str:
        return "-".join(map(str, self.sizes))


class Samples:
    """Pixels and labels on the host; the peers share them and write into none of them.

    Args:
        images: ``(samples, features)`` uint8.
        labels: ``(samples,)`` int64.
        dtype: of the network.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, dtype: npt.DTypeLike) -> None:
        self.images, self.labels, self.dtype = images, labels, np.dtype(dtype)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def inputs(self) -> np.ndarray:
        """The pixels in [0, 1], ``(samples, features)`` of the network's dtype."""
        return np.multiply(self.images, 1 / 255, dtype=self.dtype)

    def batches(self, size: int) -> list[slice]:
        """The rows of each batch, in order; the last holds what is left."""
        return [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]


class NotMeantForError(Exception):
    """A working peer is not meant for a setting; the message says why."""


class Peer(ABC):
    """One library at work on one setting.

    Args:
        setting: what is trained.
        samples: on what; moved to the device here, outside of every measurement.
        weights: the initial state by gpumlp's names, ``layers.0.weight`` of ``(in, out)``, ``layers.0.bias``, ...
        threads: of the CPU, where the number was asked for; None leaves it to the library.

    Attributes:
        name: as ``--peers`` takes it.
        title: in tables and figures.
        setting: what is trained.
        variants: equivalent ways to run it; a short trial finds the fastest, and `choose` sets it. A single one is
            how the peer runs from the start.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    setting: Setting
    variants: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
        """Why this peer cannot be measured on a device, in one line, or None if it can."""

    @abstractmethod
    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None: ...

    @abstractmethod
    def losses(self) -> list[float]:
        """Train once over the batches in the order of the samples; the mean loss of each, before its update."""

    @abstractmethod
    def epoch(self, part: int | None = None) -> float:
        """Train for one epoch in a new random order; its mean loss, on the host.

        Args:
            part: how many samples of the order to use, for a trial; peers without variants use all.
        """

    @abstractmethod
    def unshuffled_epoch(self) -> float:
        """Train for one epoch by the code of `epoch`, in the order of the samples; its mean loss, on the host."""

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for on most CPUs
        """Wait until the device has finished its work."""

    def choose(self, variant: str) -> None:
        """Run as this one of `variants` from now on."""
        raise ValueError(f"{self.name} has no variants, got {variant!r}")


def missing(module: str) -> str | None:
    """Why a library cannot be imported, or None if it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == module:
            return 'not installed; pip install ".[compare]" brings it'
        return f"cannot be imported: {error}"
    except Exception as error:  # a broken installation raises what it likes
        return f"cannot be imported: {type(error).__name__}: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def layers(setting: Setting, weights: dict[str, np.ndarray]) -> list[tuple[Any, Any]]:
    """Copies of the initial weight and bias of each layer, ``(in, out)`` and ``(out,)``."""
    return [
        tuple(weights[f"layers.{index}.{name}"].astype(setting.dtype) for name in ("weight", "bias"))
        for index in range(len(setting.sizes) - 1)
    ]
