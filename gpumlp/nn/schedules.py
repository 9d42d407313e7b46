"""Learning-rate schedules: the learning rate eta_t of epoch t = 0, 1, 2, ..., from the initial eta_0."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ..words import shown
from .hyperparameters import set_number, whole


class Schedule(Protocol):
    """A function of the initial learning rate and the epoch."""

    def __call__(self, learning_rate: float, epoch: int) -> float:
        """eta_t for epoch t (counted from 0), where `learning_rate` is eta_0."""


@dataclass(frozen=True)
class Constant:
    """eta_t = eta_0."""

    def __call__(self, learning_rate: float, epoch: int) -> float:
        return learning_rate


@dataclass(frozen=True)
class StepDecay:
    """eta_t = eta_0 gamma^floor(t / s): multiplied by gamma every s epochs.

    >>> [StepDecay(gamma=0.5, step_size=2)(0.8, t) for t in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """

    gamma: float = 0.5
    step_size: int = 10

    def __post_init__(self) -> None:
        set_number(self, "gamma", 0, 1, open_low=True)
        object.__setattr__(self, "step_size", whole("step_size", self.step_size, 1))

    def __call__(self, learning_rate: float, epoch: int) -> float:
        return learning_rate * self.gamma ** (epoch // self.step_size)


@dataclass(frozen=True)
class ExponentialDecay:
    """eta_t = eta_0 e^(-k t), with the decay rate k per epoch."""

    decay_rate: float = 0.05

    def __post_init__(self) -> None:
        set_number(self, "decay_rate", 0)

    def __call__(self, learning_rate: float, epoch: int) -> float:
        return learning_rate * math.exp(-self.decay_rate * epoch)


@dataclass(frozen=True)
class InverseTimeDecay:
    """eta_t = eta_0 / (1 + k t), with the decay rate k per epoch."""

    decay_rate: float = 0.05

    def __post_init__(self) -> None:
        set_number(self, "decay_rate", 0)

    def __call__(self, learning_rate: float, epoch: int) -> float:
        return learning_rate / (1 + self.decay_rate * epoch)


@dataclass(frozen=True)
class Milestones:
    """eta_t = eta_0 gamma^(number of milestones <= t): multiplied by gamma after each milestone.

    Milestones are numbers of finished epochs: ``Milestones((20, 40))`` changes the learning rate from the 21st and
    from the 41st epoch on.
    """

    milestones: tuple[int, ...]
    gamma: float = 0.5

    def __post_init__(self) -> None:
        epochs: object = self.milestones
        if not isinstance(epochs, Iterable):
            raise ValueError(f"milestones are expected to be several epochs, got {shown(epochs)}")
        object.__setattr__(self, "milestones", tuple(whole("a milestone", epoch, 0) for epoch in epochs))
        set_number(self, "gamma", 0, 1, open_low=True)

    def __call__(self, learning_rate: float, epoch: int) -> float:
        return learning_rate * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
