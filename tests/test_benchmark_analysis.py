"""What the benchmarks conclude from invented figures."""

from __future__ import annotations

import pytest

from benchmarks.analysis import crossover, describe_fit, fit_power_law, rate_with_copy

SIZES = (16, 64, 512, 8192)


def rates(*ratios: float) -> dict[str, dict[int, float]]:
    """A CPU of 1,000 samples/s and a GPU so many times as fast."""
    return {
        "cpu": dict.fromkeys(SIZES, 1000.0),
        "cuda:0": {size: 1000 * ratio for size, ratio in zip(SIZES, ratios, strict=True)},
    }


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((0.5, 1.5, 3, 12), "from batch 64 on, cuda:0 is faster than cpu; at 8,192 by 12.0x"),
        ((0.5, 0.9, 1, 12), "from batch 8,192 on, cuda:0 is faster than cpu; at 8,192 by 12.0x"),
        ((1.5, 0.9, 2, 3), "from batch 512 on (and at 16), cuda:0 is faster than cpu; at 8,192 by 3.0x"),
        ((2, 3, 4, 5), "cuda:0 is faster than cpu at every batch size measured; at 16 by 2.0x, at 8,192 by 5.0x"),
        (
            (0.5, 0.5, 0.25, 1),
            "cpu is at least as fast as cuda:0 at every batch size measured; at 16 by 2.0x, at 8,192 by 1.0x",
        ),
        ((0.5, 2, 2, 0.5), "cuda:0 is faster than cpu at batch 64 and 512 only, and not at 8,192"),
    ],
)
def test_the_crossover_in_words(ratios: tuple[float, ...], words: str) -> None:
    assert crossover(rates(*ratios)) == [words]


def test_without_a_second_device_there_is_no_crossover() -> None:
    assert crossover({"cpu": {16: 1.0}}) == ["measured on one device; no crossover"]


def test_every_further_device_is_compared_with_the_first() -> None:
    table = rates(0.5, 2, 2, 2)
    table["cuda:1"] = table["cpu"]
    first, second = crossover(table)
    assert first.startswith("from batch 64 on, cuda:0")
    assert second.startswith("cpu is at least as fast as cuda:1")


def test_batch_sizes_may_come_in_any_order() -> None:
    table = {device: dict(reversed(row.items())) for device, row in rates(0.5, 1.5, 3, 12).items()}
    assert crossover(table) == crossover(rates(0.5, 1.5, 3, 12))


def test_the_copy_is_spread_over_the_epochs() -> None:
    assert rate_with_copy(1000, 2, samples=1000, epochs=1) == pytest.approx(1000 / 3)  # 1 s and 2 s
    assert rate_with_copy(1000, 2, samples=1000, epochs=20) == pytest.approx(20_000 / 22)
    assert rate_with_copy(1000, 0, samples=1000, epochs=1) == 1000


def test_a_power_law_is_found_exactly() -> None:
    fit = fit_power_law([64, 128, 256, 4096], [3 * x**1.5 for x in (64, 128, 256, 4096)])
    assert fit is not None
    assert (fit.exponent, fit.factor, fit.r_squared) == pytest.approx((1.5, 3, 1))
    assert (fit.first, fit.last, fit.points) == (64, 4096, 4)
    assert fit(100) == pytest.approx(3000)


def test_the_least_squares_line_by_hand() -> None:
    # logarithms to the base of 2: x 0, 1, 2 and y 0, 2, 1; slope 1/2, shift 1/2, r² 1/4, residuals 1/2, 1, 1/2
    fit = fit_power_law([1, 2, 4], [1, 4, 2], tolerance=10)
    assert fit is not None
    assert (fit.exponent, fit.factor, fit.r_squared) == pytest.approx((0.5, 2**0.5, 0.25))
    assert fit.largest_deviation == pytest.approx(1)  # twice the line's value


def test_a_fixed_cost_is_left_out_of_the_fit() -> None:
    sizes = [2**k for k in range(2, 13)]
    fit = fit_power_law(sizes, [100 + x for x in sizes])
    assert fit is not None
    assert fit.last == 4096
    assert 64 <= fit.first <= 512
    assert 0.8 < fit.exponent < 1
    assert fit.largest_deviation <= 0.1
    whole = fit_power_law(sizes, [100 + x for x in sizes], tolerance=10)
    assert whole is not None
    assert whole.exponent < fit.exponent


def test_what_is_no_power_law_is_said_to_be_none() -> None:
    fit = fit_power_law([1, 2, 4, 8], [1, 5, 1, 5])
    assert fit is not None
    assert (fit.first, fit.points) == (2, 3)
    assert describe_fit(fit, "depth").endswith("no power law holds to 10 %")


def test_two_points_are_no_fit() -> None:
    assert fit_power_law([1, 2], [1, 2]) is None
    assert describe_fit(None, "depth") == "too few points for an exponent of the depth"


def test_the_fit_in_words() -> None:
    fit = fit_power_law([64, 512, 4096], [0.1, 0.8, 6.4])
    assert describe_fit(fit, "hidden size") == (
        "an epoch's time grows as hidden size to the power 1.00 from 64 to 4,096 "
        "(3 points, r² 1.0000, at most 0 % off)"
    )
