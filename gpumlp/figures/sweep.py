"""The figure of a sweep: its metric over each option that varies."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..nn.metrics import HIGHER_IS_BETTER
from ..training.config import ConfigError, given
from ..training.history import monitor_words
from ..training.search_space import as_number, value_text
from ..training.sweeps import Result, Sweep
from .style import BLUE, GREY, VERMILION, FigureResult, Sheet, in_house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS = 12
_MOST_TICKS = 8  # values of an option that each have a name at the axis
_LEAST_GAP = 0.05  # between two values with names, of the width of all panels
_RING = 0.06  # room for the ring beyond the best network, of the height of a panel
_SHORT_AXIS = 30  # ratio of the ends of a logarithmic axis that has too few powers of ten
_WORST = 4  # a network this many times as far from the best one as the median is drawn at the edge


@in_house_style
def sweep_results(sweep: Sweep, results: Sequence[Result]) -> FigureResult:
    """The metric of every network over each option that varies, with the deviation over its seeds as a bar.

    Args:
        sweep: which options vary, and the metric.
        results: the networks, the best one first.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: no run is finished.
    """
    options = sweep.options[:_MOST_PANELS]
    finished = [result for result in results if result.mean is not None]
    if not finished:
        raise ConfigError(f"{sweep.path}: there is nothing to draw, because no run is finished")
    words, means = monitor_words(sweep.monitor), [given(result.mean) for result in finished]
    median = statistics.median(means)
    limit = means[-1] if median == means[0] else means[0] + _WORST * (median - means[0])
    columns = len(options) if len(options) < 4 else 2 if len(options) == 4 else 3
    rows = math.ceil(len(options) / columns)
    caption = _caption(sweep, results, any(_is_worse(sweep, mean, limit) for mean in means))
    sheet = Sheet(f"{words.capitalize()} over each option", caption, rows, columns, height=2.6 * rows, sharey=True)
    for axes in sheet.panels[len(options) :]:
        axes.set_visible(False)
    for index, (axes, name) in enumerate(zip(sheet.panels, options, strict=False)):
        _panel(axes, sweep, finished, name, limit)
        axes.set_xlabel(name.replace("_", " "))
        if index % columns == 0:
            axes.set_ylabel(words)
    numbers: dict[str, Any] = {
        "metric": sweep.monitor,
        "networks": [{name: value_text(value) for name, value in result.values.items()} for result in finished],
        "means": means,
        "deviations": [result.deviation for result in finished],
    }
    return sheet.result(numbers)


def _caption(sweep: Sweep, results: Sequence[Result], triangles: bool) -> str:
    seeds = len(sweep.runs) // len(sweep.networks)
    text = "A point is a network"
    if seeds > 1:
        text += f", its mean over {seeds:,} seeds, and a bar the standard deviation"
    text += f"; the best of {len(results):,} is ringed."
    if any(_is_joined(sweep, name) for name in sweep.options[:_MOST_PANELS]):
        text += " A line joins the best ones at each value."
    missing = sum(result.mean is None for result in results)
    if missing:
        text += f" {missing:,} networks have no result."
    return text + " Triangles are networks beyond the edge." * triangles


def _is_worse(sweep: Sweep, mean: float, limit: float) -> bool:
    return mean < limit if HIGHER_IS_BETTER[sweep.metric] else mean > limit


def _is_joined(sweep: Sweep, name: str) -> bool:
    """Whether a line joins the best network at each value of an option.

    There are few, which several networks have, or nothing else varies. Numbers that are drawn are not joined.
    """
    counts = {option: len({net[option] for net in sweep.networks}) for option in sweep.options}
    alone = all(count == 1 for option, count in counts.items() if option != name)
    return counts[name] <= _MOST_TICKS and (alone or counts[name] < len(sweep.networks))


def _is_crowded(axes: Axes, values: Sequence[float]) -> bool:
    """Whether the names of some values would overlap on a logarithmic axis."""
    gaps = [math.log(high / low) for low, high in itertools.pairwise(values)]
    columns = axes.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    return bool(gaps) and min(gaps) < _LEAST_GAP * columns * sum(gaps)


def _panel(axes: Axes, sweep: Sweep, results: Sequence[Result], name: str, limit: float) -> None:
    """Every network at its value of an option, and a line through the best one at each of a few values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    found = [result.values[name] for result in results]
    values = list(dict.fromkeys(net[name] for net in sweep.networks if net[name] in found))
    numeric = all(as_number(value) is not None for value in values)
    if numeric:
        values.sort()
    log, few = name in sweep.logarithmic, _is_joined(sweep, name)
    scaled = log or (numeric and not few)
    places = {value: float(as_number(value) or 0) if scaled else place for place, value in enumerate(values)}
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if max(places.values()) < _SHORT_AXIS * min(places.values()):
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if (few or not scaled) and not (log and _is_crowded(axes, sorted(places.values()))):
        axes.set_xticks([places[value] for value in values], list(map(value_text, values)))
        axes.minorticks_off()
    if not scaled:
        axes.set_xlim(-0.5, len(values) - 0.5)

    def draw(shown: Sequence[Result], bars: bool, **style: Any) -> None:
        x, y = [places[result.values[name]] for result in shown], [given(result.mean) for result in shown]
        deviations = [result.deviation or 0.0 for result in shown] if bars else None
        axes.errorbar(x, y, deviations, capsize=2, marker="o", markersize=4, **style)

    seeds = len(sweep.runs) > len(sweep.networks)
    shown = [result for result in results if not _is_worse(sweep, given(result.mean), limit)]
    draw(shown, seeds and not few, color=GREY, alpha=0.5, linestyle="none", elinewidth=0.8)
    if few:
        best = {value: next(result for result in results if result.values[name] == value) for value in values}
        draw([best[value] for value in values], seeds, color=BLUE)
    place, mean = places[results[0].values[name]], given(results[0].mean)
    axes.plot([place], [mean], marker="o", markersize=10, markerfacecolor="none", color=VERMILION)
    beyond = [places[result.values[name]] for result in results if result not in shown]
    if beyond:
        higher = HIGHER_IS_BETTER[sweep.metric]
        end, room = axes.get_ylim()[higher], mean + _RING * (mean - limit)
        axes.set_ylim(limit if higher else min(end, room), max(end, room) if higher else limit)
        style: dict[str, Any] = {
            "marker": "v" if higher else "^",
            "color": GREY,
            "linestyle": "none",
            "alpha": 0.5,
        }
        axes.plot(beyond, [limit] * len(beyond), clip_on=False, **style)
    if sweep.metric.endswith("accuracy"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
