"""What the figures say: crossover batch sizes, copies counted in, and fitted exponents. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

TOLERANCE = 0.1  # a power law holds where no point is further from it than this part of its value
LEAST_POINTS = 3  # through two points there is always a line


class PowerLaw(NamedTuple):
    """``y = factor x^exponent``, fitted in logarithms, and where it holds."""

    exponent: float
    factor: float
    first: float  # the smallest and the largest x fitted
    last: float
    points: int
    r_squared: float
    largest_deviation: float  # of a point from the line, as a part of the line's value

    def __call__(self, x: float) -> float:
        """The line's value."""
        return float(self.factor * x**self.exponent)


def rate_with_copy(rate: float, copy_seconds: float, samples: int, epochs: int) -> float:
    """Samples per second of a whole training, with the copy of the data set to the device at its start.

    Args:
        rate: samples per second of the training alone.
        copy_seconds: what the copy takes, once.
        samples: in an epoch.
        epochs: of the training.
    """
    total = samples * epochs
    return total / (copy_seconds + total / rate)


def crossover(rates: Mapping[str, Mapping[int, float]]) -> list[str]:
    """From which batch size on each device is faster than the first, in words.

    Args:
        rates: samples per second, by device and batch size; the same batch sizes for every device.

    Returns:
        A sentence for each device but the first, or one that there is nothing to compare.
    """
    base, *others = rates
    if not others:
        return ["measured on one device; no crossover"]
    return [_compare(base, rates[base], other, rates[other]) for other in others]


def _compare(base: str, base_rates: Mapping[int, float], other: str, other_rates: Mapping[int, float]) -> str:
    ratios = {size: other_rates[size] / base_rates[size] for size in sorted(base_rates)}
    sizes, largest = list(ratios), max(ratios)
    faster = [size for size in sizes if ratios[size] > 1]
    if not faster:
        ahead = _times({size: 1 / ratio for size, ratio in ratios.items()})
        return f"{base} is at least as fast as {other} at every batch size measured; {ahead}"
    if len(faster) == len(sizes):
        return f"{other} is faster than {base} at every batch size measured; {_times(ratios)}"
    # from here to the end it is always faster; the sizes before that are told apart
    start = len(sizes)
    while ratios[sizes[start - 1]] > 1:
        start -= 1
    if start == len(sizes):
        return f"{other} is faster than {base} at batch {_list(faster)} only, and not at {largest:,}"
    before = [size for size in faster if size < sizes[start]]
    also = f" (and at {_list(before)})" if before else ""
    ahead = f"at {largest:,} by {ratios[largest]:.1f}x"
    return f"from batch {sizes[start]:,} on{also}, {other} is faster than {base}; {ahead}"


def _times(ratios: Mapping[int, float]) -> str:
    """How far ahead at the smallest and at the largest size."""
    return ", ".join(f"at {size:,} by {ratios[size]:.1f}x" for size in sorted({min(ratios), max(ratios)}))


def _list(sizes: Sequence[int]) -> str:
    *head, last = [f"{size:,}" for size in sizes]
    return f"{', '.join(head)} and {last}" if head else last


def fit_power_law(xs: Sequence[float], ys: Sequence[float], tolerance: float = TOLERANCE) -> PowerLaw | None:
    """The power law at the large end, over as many points as it describes.

    Small settings are ruled by fixed costs, so a line through all points would describe none. Points are
    left out from the small end until every one left lies within `tolerance` of the line through them.

    Args:
        xs: sizes, in rising order.
        ys: costs, all above 0.
        tolerance: the largest deviation, as a part of the line's value.

    Returns:
        The longest such fit of at least three points; where no such is within the tolerance, that of the last
        three, whose `largest_deviation` says so; None where there are fewer than three points.
    """
    fit = None
    for start in range(len(xs) - LEAST_POINTS + 1):
        fit = _line(xs[start:], ys[start:])
        if fit.largest_deviation <= tolerance:
            return fit
    return fit


def _line(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """Least squares in logarithms."""
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    u_mean, v_mean = math.fsum(u) / len(u), math.fsum(v) / len(v)
    slope = math.fsum((a - u_mean) * (b - v_mean) for a, b in zip(u, v, strict=True)) / math.fsum(
        (a - u_mean) ** 2 for a in u
    )
    shift = v_mean - slope * u_mean
    residuals = [b - (shift + slope * a) for a, b in zip(u, v, strict=True)]
    spread = math.fsum((b - v_mean) ** 2 for b in v)
    unexplained = math.fsum(r * r for r in residuals)
    return PowerLaw(
        exponent=slope,
        factor=math.exp(shift),
        first=xs[0],
        last=xs[-1],
        points=len(xs),
        r_squared=1 - unexplained / spread if spread else 1.0,
        largest_deviation=max(abs(math.expm1(r)) for r in residuals),
    )


def describe_fit(fit: PowerLaw | None, what: str) -> str:
    """The fit in words.

    Args:
        fit: of seconds over a size.
        what: the size, as in "hidden size".
    """
    if fit is None:
        return f"too few points for an exponent of the {what}"
    text = (
        f"an epoch's time grows as {what} to the power {fit.exponent:.2f} from {fit.first:,.0f} "
        f"to {fit.last:,.0f} ({fit.points} points, r² {fit.r_squared:.4f}, "
        f"at most {100 * fit.largest_deviation:.0f} % off)"
    )
    return text if fit.largest_deviation <= TOLERANCE else f"{text}: no power law holds to {100 * TOLERANCE:.0f} %"
