"""Learning-rate schedules against numbers worked by hand; epochs and steps are counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from gpumlp import (
    Constant,
    Cosine,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    OneCycle,
    StepDecay,
    Warmup,
)
from gpumlp.nn.schedules import Schedule, changes_by_step, learning_rate_at

BY_EPOCH = [
    (Constant(), {0: 0.1, 1: 0.1, 1000: 0.1}),
    # 0.1 * 0.5^floor(t / 10)
    (StepDecay(gamma=0.5, step_size=10), {0: 0.1, 9: 0.1, 10: 0.05, 19: 0.05, 20: 0.025, 35: 0.0125}),
    (StepDecay(gamma=0.1, step_size=1), {0: 0.1, 1: 0.01, 3: 0.0001}),
    # 0.1 * e^(-0.05 t): e^-0.05 = 0.951229424500714, e^-1 = 0.367879441171442
    (ExponentialDecay(0.05), {0: 0.1, 1: 0.0951229424500714, 20: 0.0367879441171442}),
    # 0.1 / (1 + 0.05 t): 1.05, 2 and 3.5
    (InverseTimeDecay(0.05), {0: 0.1, 1: 0.0952380952380952, 20: 0.05, 50: 0.0285714285714286}),
    # The notes: divided by 2 after epochs 20 and 40, that is from the 21st and the 41st, t = 20 and 40
    (Milestones((20, 40)), {0: 0.1, 19: 0.1, 20: 0.05, 39: 0.05, 40: 0.025, 59: 0.025}),
    (Milestones((2,), gamma=0.1), {1: 0.1, 2: 0.01, 100: 0.01}),
    (Milestones(()), {0: 0.1, 50: 0.1}),
]
HALF_ROOT = math.sqrt(0.5)  # cos(pi / 4)
BY_STEP = [
    # 0.05 (1 + cos(pi t / 4))
    (Cosine(4), {0: 0.1, 1: 0.05 * (1 + HALF_ROOT), 2: 0.05, 3: 0.05 * (1 - HALF_ROOT), 4: 0, 1000: 0}),
    # 0.01 + 0.045 (1 + cos(pi t / 4))
    (Cosine(4, final=0.1), {0: 0.1, 1: 0.01 + 0.045 * (1 + HALF_ROOT), 2: 0.055, 4: 0.01, 1000: 0.01}),
    (Cosine(1), {0: 0.1, 1: 0}),
    # 0.1 (t + 1) / 4
    (Warmup(4), {0: 0.025, 1: 0.05, 3: 0.1, 4: 0.1, 1000: 0.1}),
    (Warmup(1), {0: 0.1, 1: 0.1}),
    (Warmup(4, then=Cosine(4)), {0: 0.025, 3: 0.1, 4: 0.1, 6: 0.05, 8: 0, 9: 0}),
    (Warmup(2, then=Warmup(4)), {0: 0.05, 1: 0.1, 2: 0.025, 3: 0.05, 5: 0.1, 6: 0.1}),
    # From 0.1 / 25 up to step 0.5 * 10 - 1 = 4, down to 0.1 / 25 / 10,000 until step 9
    (OneCycle(10, 0.5), {0: 0.004, 1: 0.052 - 0.048 * HALF_ROOT, 2: 0.052, 4: 0.1, 9: 4e-7, 1000: 4e-7}),
    (OneCycle(9, 5 / 9, start_divisor=2, final_divisor=4), {0: 0.05, 2: 0.075, 4: 0.1, 6: 0.05625, 8: 0.0125}),
    (OneCycle(10, 0.1), {0: 0.1, 9: 4e-7}),
    (OneCycle(10, 0), {9: 4e-7}),
    (OneCycle(10, 1), {0: 0.004, 9: 0.1, 1000: 0.1}),
    (OneCycle(1), {0: 4e-7, 1: 4e-7}),
    (OneCycle(1, 1), {0: 0.1, 1: 0.1}),
]
TABLE = BY_EPOCH + BY_STEP


@pytest.mark.parametrize(
    ("schedule", "epoch", "expected"),
    [(schedule, epoch, value) for schedule, values in TABLE for epoch, value in values.items()],
    ids=str,
)
def test_schedule(schedule: Schedule, epoch: int, expected: float) -> None:
    assert schedule(0.1, epoch) == pytest.approx(expected, rel=1e-13)
    assert schedule(0.2, epoch) == pytest.approx(2 * expected, rel=1e-13)  # in proportion to eta_0


@pytest.mark.parametrize("schedule", [row[0] for row in TABLE], ids=str)
def test_a_learning_rate_is_a_python_float(schedule: Schedule) -> None:
    """A NumPy float64 would promote float32 arrays to float64."""
    assert {type(schedule(0.1, epoch)) for epoch in (0, 1, 41)} == {float}


@pytest.mark.parametrize("schedule", [row[0] for row in BY_EPOCH] + [Cosine(40), Cosine(40, 0.1)], ids=str)
def test_it_never_rises(schedule: Schedule) -> None:
    rates = [schedule(0.1, epoch) for epoch in range(60)]
    assert rates == sorted(rates, reverse=True)


def test_milestones_may_come_in_any_order() -> None:
    forward, backward = Milestones((20, 40)), Milestones((40, 20))
    assert [forward(0.1, t) for t in range(60)] == [backward(0.1, t) for t in range(60)]


@pytest.mark.parametrize(
    ("schedule", "epoch", "expected"),
    [(schedule, epoch, value) for schedule, values in BY_EPOCH for epoch, value in values.items()],
    ids=str,
)
def test_a_schedule_by_epoch_stays_so_after_a_warmup(schedule: Schedule, epoch: int, expected: float) -> None:
    assert not changes_by_step(schedule)
    for rule in (schedule, Warmup(100, then=schedule), Warmup(50, then=Warmup(50, then=schedule))):
        for step in (100, 7000):
            assert learning_rate_at(rule, 0.1, epoch, step) == pytest.approx(expected, rel=1e-13)
    assert learning_rate_at(Warmup(100, then=schedule), 0.1, epoch, 24) == pytest.approx(0.025, rel=1e-13)


@pytest.mark.parametrize("schedule", [row[0] for row in BY_STEP], ids=str)
def test_a_schedule_by_step_does_not_depend_on_the_epoch(schedule: Schedule) -> None:
    assert changes_by_step(schedule)
    for step in (0, 1, 5, 41):
        rates = {learning_rate_at(schedule, 0.1, epoch, step) for epoch in (0, 3)}
        assert rates == {schedule(0.1, step)}


def test_after_a_warmup_a_schedule_by_epoch_needs_the_epoch() -> None:
    warmup = Warmup(4, then=StepDecay(gamma=0.5, step_size=2))
    assert warmup(0.1, 3) == 0.1
    assert warmup(0.1, 4, epoch=2) == 0.05
    with pytest.raises(TypeError, match=r"needs the epoch of step 4: .* by epoch"):
        warmup(0.1, 4)


def test_functions_of_the_users() -> None:
    class ByStep:
        by_step = True

        def __call__(self, learning_rate: float, step: int) -> float:
            return learning_rate / (1 + step)

    assert learning_rate_at(lambda learning_rate, epoch: learning_rate / (1 + epoch), 1.0, 1, 9) == 0.5
    assert learning_rate_at(ByStep(), 1.0, 1, 9) == 0.1
    assert learning_rate_at(Warmup(6, then=ByStep()), 1.0, 1, 9) == 0.25


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Warmup(0), ValueError, "steps is expected to be a whole number of 1 or more, got 0"),
        (lambda: Cosine(2.5), ValueError, "steps is expected to be a whole number of 1 or more, got 2.5"),
        (lambda: OneCycle(0), ValueError, "steps is expected to be a whole number of 1 or more, got 0"),
        (lambda: Cosine(4, final=1.5), ValueError, "final is expected to be .*, got 1.5"),
        (lambda: OneCycle(4, warmup_share=-0.1), ValueError, "warmup_share is expected to be .*, got -0.1"),
        (lambda: OneCycle(4, start_divisor=0.5), ValueError, "start_divisor is expected to be .*, got 0.5"),
        (lambda: OneCycle(4, final_divisor=0), ValueError, "final_divisor is expected to be .*, got 0"),
        (lambda: Warmup(4, then="cosine"), TypeError, r"then .* such as StepDecay\(\), got 'cosine'"),
        (lambda: Warmup(4, then=Cosine), TypeError, "then .* got the class Cosine"),
        (lambda: Warmup(4, then=lambda rate: rate), TypeError, "then is expected to be a function of the initial"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
