"""Learning-rate schedules against numbers worked by hand; epochs are counted from 0."""

from __future__ import annotations

import pytest

from gpumlp import Constant, ExponentialDecay, InverseTimeDecay, Milestones, StepDecay
from gpumlp.nn.schedules import Schedule

TABLE = [
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


@pytest.mark.parametrize("schedule", [row[0] for row in TABLE], ids=str)
def test_it_never_rises(schedule: Schedule) -> None:
    rates = [schedule(0.1, epoch) for epoch in range(60)]
    assert rates == sorted(rates, reverse=True)


def test_milestones_may_come_in_any_order() -> None:
    forward, backward = Milestones((20, 40)), Milestones((40, 20))
    assert [forward(0.1, t) for t in range(60)] == [backward(0.1, t) for t in range(60)]
