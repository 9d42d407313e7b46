"""Learning-rate schedules: the learning rate eta_t of epoch or step t = 0, 1, 2, ..., from the initial eta_0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..words import shown
from .hyperparameters import require_arguments, set_number, whole


class Schedule(Protocol):
    """A function of the initial learning rate and the epoch, or the step if it has ``by_step = True``."""

    def __call__(self, learning_rate: float, epoch: int, /) -> float:
        """eta_t for epoch or step t (counted from 0), where `learning_rate` is eta_0."""


def changes_by_step(schedule: Schedule) -> bool:
    """Whether a schedule is a function of the step instead of the epoch."""
    return bool(getattr(schedule, "by_step", False))


def learning_rate_at(schedule: Schedule, learning_rate: float, epoch: int, step: int) -> float:
    """eta of a step, for schedules by epoch and by step.

    Args:
        schedule: the schedule.
        learning_rate: eta_0.
        epoch: the epoch of the step, counted from 0.
        step: the number of steps taken before, in all epochs.

    >>> learning_rate_at(Warmup(4, then=StepDecay(gamma=0.5, step_size=2)), 0.1, epoch=3, step=30)
    0.05
    """
    if isinstance(schedule, Warmup):
        return schedule(learning_rate, step, epoch)
    return schedule(learning_rate, step if changes_by_step(schedule) else epoch)


def checked_schedule(name: str, value: Any) -> Schedule:
    """Return an argument that is a schedule.

    Raises:
        TypeError: it is something else.
    """
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"{name} is expected to be a function of the initial learning rate and the epoch, such as "
            f"StepDecay(), got {shown(value)}"
        )
    require_arguments(
        name, value, "the initial learning rate", f"the {'step' if changes_by_step(value) else 'epoch'}"
    )
    schedule: Schedule = value
    return schedule


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


@dataclass(frozen=True)
class Warmup:
    """eta_t = eta_0 (t + 1) / s for step t < s, then another schedule.

    P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017.

    Args:
        steps: s, the number of steps in which the learning rate rises to eta_0.
        then: the schedule that follows; None keeps eta_0. If it is by step, its steps are counted from the end of
            the warm-up; if it is by epoch, its epochs are those of the training run.

    >>> warmup = Warmup(4, then=Cosine(4))
    >>> [round(warmup(0.1, t), 4) for t in range(9)]
    [0.025, 0.05, 0.075, 0.1, 0.1, 0.0854, 0.05, 0.0146, 0.0]
    """

    steps: int
    then: Schedule | None = None

    by_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("steps", self.steps, 1))
        if self.then is not None:
            checked_schedule("then", self.then)

    def __call__(self, learning_rate: float, step: int, epoch: int | None = None) -> float:
        """eta_t for step t; after the warm-up, a schedule by epoch needs the epoch too."""
        if step < self.steps:
            return learning_rate * (step + 1) / self.steps
        if self.then is None:
            return learning_rate
        if epoch is None:
            if not changes_by_step(self.then):
                raise TypeError(
                    f"{self} needs the epoch of step {step}: its schedule after the warm-up is by epoch"
                )
            return self.then(learning_rate, step - self.steps)
        return learning_rate_at(self.then, learning_rate, epoch, step - self.steps)


@dataclass(frozen=True)
class Cosine:
    """eta_t = eta_0 (f + (1 - f) (1 + cos(pi t / s)) / 2) for step t < s, then f eta_0.

    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017; without
    restarts.

    Args:
        steps: s, the number of steps in which the learning rate falls.
        final: f, the last learning rate as a share of eta_0.

    >>> [round(Cosine(4, final=0.1)(0.1, t), 4) for t in (0, 1, 2, 3, 4, 5)]
    [0.1, 0.0868, 0.055, 0.0232, 0.01, 0.01]
    """

    steps: int
    final: float = 0.0

    by_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("steps", self.steps, 1))
        set_number(self, "final", 0, 1)

    def __call__(self, learning_rate: float, step: int) -> float:
        return _cosine(learning_rate, self.final * learning_rate, min(step / self.steps, 1.0))


@dataclass(frozen=True)
class OneCycle:
    """eta_t rises to eta_0 and falls far below its start, along half a cosine each; eta_0 is the largest rate.

    From eta_0 / d at step 0 to eta_0 at step p s - 1, then to eta_0 / (d D) at step s - 1, where it stays::

        eta_t = b + (a - b) (1 + cos(pi x)) / 2    from a to b, where x is the share of the way done

    L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2018, in the form and with the default values of PyTorch's ``OneCycleLR``. Momentum does not change.

    Args:
        steps: s, the number of steps of the whole cycle.
        warmup_share: p, the share of the steps in which the learning rate rises.
        start_divisor: d.
        final_divisor: D.

    >>> [round(OneCycle(10)(0.1, t), 6) for t in (0, 1, 2, 5, 9, 10)]
    [0.004, 0.052, 0.1, 0.061126, 0.0, 0.0]
    """

    steps: int
    warmup_share: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 1e4

    by_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("steps", self.steps, 1))
        set_number(self, "warmup_share", 0, 1)
        set_number(self, "start_divisor", 1)
        set_number(self, "final_divisor", 1)

    def __call__(self, learning_rate: float, step: int) -> float:
        last, peak = self.steps - 1, self.warmup_share * self.steps - 1
        start, step = learning_rate / self.start_divisor, min(step, last)
        if step < peak:
            return _cosine(start, learning_rate, step / peak)
        if step == peak:
            return learning_rate
        return _cosine(learning_rate, start / self.final_divisor, (step - peak) / (last - peak))


def _cosine(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine, of which a share is done."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


# By their names in the options of a run; Warmup precedes any of them.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": Constant,
    "step": StepDecay,
    "exponential": ExponentialDecay,
    "inverse_time": InverseTimeDecay,
    "milestones": Milestones,
    "cosine": Cosine,
    "one_cycle": OneCycle,
}
