"""Where the lines and ticks of a chart lie; ``chart.html.j2`` writes them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 560, 300  # of the SVG's own coordinates
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 40  # of the panel
COLOURS = 6  # in page.css, as --line-0 ...
LOG_RANGE = 1e-8  # of the largest value: what is below it is drawn as 0 ...
EDGE = 18  # ... so far below the logarithmic axis
DASHES = ("none", "7 4", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Line:
    """Values by epoch, the first of epoch 1.

    None where none was taken: the line goes on to the next one. NaN and infinities are gaps.
    """

    label: str
    values: Sequence[float | None]
    colour: int
    dash: int = 0

    @property
    def stroke(self) -> str:
        return DASHES[self.dash % len(DASHES)]


@dataclass(frozen=True)
class Chart:
    """A panel of lines over epochs.

    Attributes:
        title: of the panel.
        unit: ``""`` or ``"%"``, for which values are fractions.
        lines: those that have a value.
        summary: what a reader who does not see it needs to know, in a sentence.
    """

    title: str
    unit: str
    lines: list[Line]
    epochs: int
    paths: list[str] = field(default_factory=list)
    ends: list[tuple[float, float]] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    summary: str = ""

    @property
    def first_x(self) -> float:
        return _x(1, self.epochs)

    @property
    def last_x(self) -> float:
        return _x(self.epochs, self.epochs)

    def data(self) -> dict[str, Any]:
        """For the readout of ``charts.js``: where no value was taken, the one before."""
        lines = []
        for line in self.lines:
            values = list(line.values)
            for index in range(1, len(values)):
                if values[index] is None:
                    values[index] = values[index - 1]
            lines.append({"label": line.label, "values": [_short(value) for value in values]})
        return {"title": self.title, "unit": self.unit, "lines": lines}


def chart(
    title: str, lines: Sequence[Line], *, unit: str = "", log: bool = False, from_zero: bool = False
) -> Chart | None:
    """Lay out a chart; None where no line has a value.

    Args:
        title: names the values.
        lines: what to draw; those without any finite value are left out.
        unit: ``"%"`` for fractions.
        log: a logarithmic axis, for values of 0 and above; 0, and what is below 1e-8 of the largest value, lies at
            its lower edge.
        from_zero: an axis that begins at 0.
    """

    def usable(value: float | None) -> bool:
        return value is not None and math.isfinite(value)

    drawn = [line for line in lines if any(map(usable, line.values))]
    if not drawn:
        return None
    epochs = max(len(line.values) for line in drawn)
    values = [float(value) for line in drawn for value in line.values if value is not None and usable(value)]
    log = log and max(values) > 0
    least = max(values) * LOG_RANGE
    tiny = [value for value in values if value < least] if log else []
    low, high, ticks = _scale(
        min(value for value in values if value >= least or not log), max(values), unit, log, from_zero
    )
    place: Callable[[float], float] = math.log10 if log else float
    edge = HEIGHT - BOTTOM
    bottom = edge - (EDGE if tiny else 0)

    def y(value: float) -> float:
        if log and value < least:
            return edge
        share = (place(value) - place(low)) / (place(high) - place(low))
        return round(bottom - share * (bottom - TOP), 1)

    result = Chart(title, unit, drawn, epochs)
    for line in drawn:
        path, pen_down, end = "", False, (0.0, 0.0)
        for epoch, value in enumerate(line.values, 1):
            if value is None:
                continue
            if not usable(value):
                pen_down = False
                continue
            end = (_x(epoch, epochs), y(value))
            path += f"{'L' if pen_down else 'M'}{end[0]:g} {end[1]:g}"
            pen_down = True
        result.paths.append(path)
        result.ends.append(end)
    result.x_ticks.extend((_x(epoch, epochs), f"{epoch:,}") for epoch in _epoch_ticks(epochs))
    result.y_ticks.extend((y(tick), _tick(tick, unit)) for tick in ticks)
    if tiny:
        result.y_ticks.append((edge, f"< {_tick(low, unit)}" if any(tiny) else "0"))
    parts = []
    for line in drawn:
        known = [float(value) for value in line.values if value is not None and usable(value)]
        parts.append(f"{line.label} from {_tick(known[0], unit, 4)} to {_tick(known[-1], unit, 4)}")
    return Chart(**{**result.__dict__, "summary": f"{title} over {epochs} epochs: {'; '.join(parts)}."})


def _x(epoch: int, epochs: int) -> float:
    share = (epoch - 1) / (epochs - 1) if epochs > 1 else 0.5
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _epoch_ticks(epochs: int) -> list[int]:
    from matplotlib.ticker import MaxNLocator

    located = MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]).tick_values(1, epochs)
    ticks = [int(tick) for tick in located if 1 < tick < epochs]
    if ticks and epochs - ticks[-1] < (located[1] - located[0]) / 2:
        ticks.pop()  # no room for it beside the last epoch
    return sorted({1, *ticks, epochs})


def _scale(low: float, high: float, unit: str, log: bool, from_zero: bool) -> tuple[float, float, list[float]]:
    """The ends of an axis and its ticks, for values from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    if log:
        return _log_scale(low, high)
    factor = 100.0 if unit == "%" else 1.0  # round percentages, not round fractions
    low, high = 0.0 if from_zero else low * factor, high * factor
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    ticks = [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    if unit == "%":  # no axis beyond what a share can be
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


def _tick(value: float, unit: str, digits: int = 3) -> str:
    if unit == "%":
        return f"{round(100 * value, 2):g} %"
    return f"{round(value, 12):.{digits}g}"


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
