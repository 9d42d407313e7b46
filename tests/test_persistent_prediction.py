"""The formula for the persistent kernel's steps reproduces what its prototypes took; the docs show its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import predict
from benchmarks.predict import Prices, Time, Work, fit, goals, parts, planned, prototypes, work

DOCS = Path(__file__).parent.parent / "docs" / "performance.md"


@pytest.fixture(scope="module")
def times() -> list[Time]:
    return prototypes()


@pytest.fixture(scope="module")
def prices(times: list[Time]) -> Prices:
    return fit(times)


def test_the_formula_reproduces_every_time_of_the_prototypes(times: list[Time], prices: Prices) -> None:
    assert len(times) == 25
    for time in times:
        assert prices.microseconds(time.plan) == pytest.approx(time.measured, rel=0.085), time
    assert min(prices) > 0


def test_a_time_that_the_formula_was_not_fitted_to_is_predicted(times: list[Time]) -> None:
    for index, time in enumerate(times):
        others = fit(times[:index] + times[index + 1 :])
        assert others.microseconds(time.plan) == pytest.approx(time.measured, rel=0.11), time


def test_work_by_hand(times: list[Time]) -> None:
    plans = {(time.kernel, time.plan.shape.batch, time.plan.shape.parts): time.plan for time in times}
    # 784-128-10 at batch 128 on 16 multiprocessors: 8 units each, 49 tiles of 16 inputs, 7 of them for a warp.
    plan = plans["wide.cu, H100", 128, 3]
    forward, gradient = (
        7 * 2 * 3,
        7 * 4 * 2,
    )  # two tiles of samples, three parts; four quarters of a tile, two pairs
    assert work(plan) == Work(
        exchanges=2,
        passes=2 * 4,
        products=4 * (forward + gradient) * 2,  # four chunks, two warps a tensor core
        instructions=4 * (8 * 50 + 8 * 12 * 10) + 6 * 7 * 128 * 8 / 32,
        bytes=4 * 32 * 1568 + 3 * 8 * 128 * 12,
        copies=4 * 32 * 1568 / 512,
    )
    assert work(plans["wide.cu, bulk copies, H200", 128, 3]) == work(plan)._replace(copies=0)
    # At 256 three chunks of eight stay in shared memory, and the other five are read again.
    assert work(plans["wide.cu, H100", 256, 3]).bytes == 13 * 32 * 1568 + 3 * 8 * 256 * 12


def test_hidden_layers_above_the_first_cost_waits_and_numbers_sent() -> None:
    one, two, three = (work(planned((784, *[128] * count, 10), 32, multiprocessors=16)) for count in (1, 2, 3))
    assert (one.exchanges, two.exchanges, three.exchanges) == (2, 6, 10)
    assert three.bytes - two.bytes == two.bytes - one.bytes > 0
    alone = work(planned((30, 100, 2), 200, pixels=False, optimizer="adam"))
    assert alone.exchanges == 0


def test_the_docs_show_what_the_command_prints(prices: Prices, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([]) == 0
    printed = capsys.readouterr().out
    documented = DOCS.read_text(encoding="utf-8")
    for lines in (goals(prices), parts(prices)):
        text = "\n".join(lines)
        assert text in printed
        assert text in documented, "python -m benchmarks.predict prints the tables for docs/performance.md"
