"""Charts of values by epoch and scatter plots: coordinates and ticks, which ``chart.html.j2`` writes as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

WIDTH, HEIGHT = 560, 300  # of the SVG's coordinates
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 40  # margins of the panel
LOG_RANGE = 1e-8  # of the largest value: smaller values are drawn as 0 ...
EDGE = 18  # ... this far below the logarithmic axis
MOST = 1000  # values of a line that a page holds; of more epochs, a part of them
DASHES = ("none", "7 4", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Line:
    """Values by epoch, starting with epoch 1.

    None: not measured; the line continues to the next value. NaN and infinities leave a gap. `mark` is an epoch.
    """

    label: str
    values: Sequence[float | None]
    colour: int
    dash: int = 0
    mark: int | None = None

    @property
    def stroke(self) -> str:
        return DASHES[self.dash % len(DASHES)]

    def finite(self) -> list[float]:
        return [float(value) for value in self.values if _finite(value)]


@dataclass(frozen=True)
class Chart:
    """A panel of lines over epochs, laid out.

    Attributes:
        title: of the panel.
        unit: ``""``, or ``"%"`` for fractions shown as percentages.
        lines: the lines that have a value.
        epochs: the length of the longest line.
        paths, ends, marks: of each line, its SVG path, last point and marked point (None without one).
        x_ticks, y_ticks: ``(position, label)``.
        summary: a sentence for readers who do not see the chart.
    """

    title: str
    unit: str
    lines: list[Line]
    epochs: int
    paths: list[str]
    ends: list[tuple[float, float]]
    marks: list[tuple[float, float] | None]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str

    @property
    def first_x(self) -> float:
        return _x(1, self.epochs)

    @property
    def last_x(self) -> float:
        return _x(self.epochs, self.epochs)

    @property
    def step(self) -> int:
        """Between the epochs with a readout, the last one among them."""
        return -(-self.epochs // MOST)

    @property
    def first(self) -> int:
        """The first epoch with a readout."""
        return 1 + (self.epochs - 1) % self.step

    def data(self) -> dict[str, Any]:
        """For the readout of ``charts.js``: a value that was not measured is that of the epoch before."""
        lines = []
        for line in self.lines:
            values = list(line.values)
            for index in range(1, len(values)):
                if values[index] is None:
                    values[index] = values[index - 1]
            read = values[self.first - 1 :: self.step]
            shown = [float(f"{value:.5g}") if _finite(value) else None for value in read]
            lines.append({"label": line.label, "values": shown})
        name = self.title.partition(", ")[0]  # without a remark on the axis
        return {"title": name, "unit": self.unit, "first": self.first, "step": self.step, "lines": lines}


def chart(
    title: str, lines: Sequence[Line], *, unit: str = "", log: bool = False, from_zero: bool = False
) -> Chart | None:
    """Lay out a chart; None if no line has a finite value.

    Args:
        title: names the values.
        lines: to draw; lines without a finite value are left out.
        unit: ``"%"`` for fractions.
        log: a logarithmic axis, for values of 0 or more; 0 and values below 1e-8 of the largest are drawn at its
            lower edge.
        from_zero: an axis that begins at 0.
    """
    drawn = [line for line in lines if line.finite()]
    if not drawn:
        return None
    epochs = max(len(line.values) for line in drawn)
    values = [value for line in drawn for value in line.finite()]
    log = log and max(values) > 0
    smallest = max(values) * LOG_RANGE
    tiny = [value for value in values if value < smallest] if log else []
    lowest = min(value for value in values if value >= smallest or not log)
    low, high, ticks = _log_scale(lowest, max(values)) if log else _scale(lowest, max(values), unit, from_zero)
    edge = HEIGHT - BOTTOM
    bottom = edge - (EDGE if tiny else 0)

    def y(value: float) -> float:
        if log and value < smallest:
            return edge
        fraction = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return round(bottom - fraction * (bottom - TOP), 1)

    points = [
        [
            (_x(epoch, epochs), y(value) if _finite(value) else None)
            for epoch, value in enumerate(line.values, 1)
            if value is not None
        ]
        for line in drawn
    ]
    y_ticks = [(y(tick), _label(tick, unit)) for tick in ticks]
    if tiny:
        y_ticks.append((edge, f"< {_label(low, unit)}" if any(tiny) else "0"))
    parts = []
    for line in drawn:
        first, last = line.finite()[0], line.finite()[-1]
        parts.append(f"{line.label} from {_label(first, unit, 4)} to {_label(last, unit, 4)}")
    return Chart(
        title,
        unit,
        drawn,
        epochs,
        paths=[_path(_thinned(line)) for line in points],
        ends=[[(x, height) for x, height in line if height is not None][-1] for line in points],
        marks=[_marked(line, epochs, y) for line in drawn],
        x_ticks=[(_x(epoch, epochs), f"{epoch:,}") for epoch in _epoch_ticks(epochs)],
        y_ticks=y_ticks,
        summary=f"{title} over {epochs} epochs: {'; '.join(parts)}.",
    )


@dataclass(frozen=True)
class Scatter:
    """A panel of points, laid out.

    Attributes:
        title: of the panel.
        names: of the two axes.
        path: an SVG path of lines without length, which round ends make dots.
        line: the SVG path of the perfect predictions.
        x_ticks, y_ticks: ``(position, label)``.
        summary: a sentence for readers who do not see the points.
    """

    title: str
    names: tuple[str, str]
    path: str
    line: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str


def scatter(
    title: str, names: tuple[str, str], points: Sequence[tuple[float, float]], *, diagonal: bool, summary: str
) -> Scatter:
    """Lay out finite points.

    Args:
        title: of the panel.
        names: of the axes.
        points: at least one.
        diagonal: have equal axes and a line where both values are equal; otherwise a line at 0.
        summary: see `Scatter`.
    """
    across, up = ([point[axis] for point in points] for axis in (0, 1))
    if diagonal:
        across = up = across + up
    else:
        up = [*up, 0.0]
    left, right, x_values = _scale(min(across), max(across), "", False)
    low, high, y_values = _scale(min(up), max(up), "", False)

    def x(value: float) -> float:
        return round(LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    ends = (low, high) if diagonal else (0.0, 0.0)
    return Scatter(
        title,
        names,
        path="".join(f"M{x(first):g} {y(second):g}h0" for first, second in points),
        line=f"M{x(left):g} {y(ends[0]):g}L{x(right):g} {y(ends[1]):g}",
        x_ticks=[(x(tick), _label(tick, "")) for tick in x_values if left <= tick <= right],
        y_ticks=[(y(tick), _label(tick, "")) for tick in y_values if low <= tick <= high],
        summary=summary,
    )


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _marked(line: Line, epochs: int, y: Callable[[float], float]) -> tuple[float, float] | None:
    if line.mark is None:
        return None
    value = line.values[line.mark - 1]
    return (_x(line.mark, epochs), y(value)) if _finite(value) else None


def _x(epoch: int, epochs: int) -> float:
    fraction = (epoch - 1) / (epochs - 1) if epochs > 1 else 0.5
    return round(LEFT + fraction * (WIDTH - LEFT - RIGHT), 1)


def _thinned(points: Sequence[tuple[float, float | None]]) -> Sequence[tuple[float, float | None]]:
    """Of many points, the extremes, gaps and the last one, of so many pieces that no difference is seen."""
    size = -(-len(points) // MOST)
    if size < 2:
        return points
    kept = {len(points) - 1}
    for start in range(0, len(points), size):
        piece = range(start, min(start + size, len(points)))
        heights = {index: height for index in piece if (height := points[index][1]) is not None}
        kept |= set([index for index in piece if index not in heights][:1])
        if heights:
            kept |= {extreme(heights, key=heights.__getitem__) for extreme in (min, max)}
    return [points[index] for index in sorted(kept)]


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    path, pen_down = "", False
    for x, y in points:
        if y is not None:
            path += f"{'L' if pen_down else 'M'}{x:g} {y:g}"
        pen_down = y is not None
    return path


def _epoch_ticks(epochs: int) -> list[int]:
    from matplotlib.ticker import MaxNLocator

    located = MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]).tick_values(1, epochs)
    ticks = [int(tick) for tick in located if 1 < tick < epochs]
    if ticks and epochs - ticks[-1] < (located[1] - located[0]) / 2:
        ticks.pop()  # too close to the last epoch
    return sorted({1, *ticks, epochs})


def _scale(low: float, high: float, unit: str, from_zero: bool) -> tuple[float, float, list[float]]:
    """The ends of a linear axis and its ticks, for values from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    factor = 100.0 if unit == "%" else 1.0  # round percentages, not round fractions
    low, high = 0.0 if from_zero else low * factor, high * factor
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    ticks = [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    if unit == "%":
        ticks = [tick for tick in ticks if 0 <= tick <= 100]
    ends = min(ticks[0], max(low, 0) if unit == "%" else low), max(ticks[-1], high)
    return ends[0] / factor, ends[1] / factor, [tick / factor for tick in ticks]


def _log_scale(low: float, high: float) -> tuple[float, float, list[float]]:
    from matplotlib.ticker import LogLocator

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 3:
        ticks = [float(tick) for tick in LogLocator(numticks=7).tick_values(10.0**first, 10.0**last)]
        return 10.0**first, 10.0**last, [t for t in ticks if 10.0**first * 0.99 <= t <= 10.0**last * 1.01]
    ticks = [part * 10.0**power for power in range(first, last + 1) for part in (1, 2, 5)]
    below = max(tick for tick in ticks if tick <= low * (1 + 1e-9))
    above = min(tick for tick in [*ticks, 10.0 ** (last + 1)] if tick >= high * (1 - 1e-9) and tick > below)
    return below, above, [tick for tick in ticks if below <= tick <= above]


def _label(value: float, unit: str, digits: int = 3) -> str:
    if unit == "%":
        return f"{round(100 * value, 2):g} %"
    return f"{round(value, 12):.{digits}g}"
