"""The benchmarks' figures. matplotlib is imported only where one is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .analysis import TOLERANCE
from .reporting import crossover_lines, facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart also by colour-blind readers; markers and lines differ as well.
STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))
PANEL_WIDTH, PANEL_HEIGHT, LINE_HEIGHT = 4.6, 3.9, 0.147  # inches


def plot_throughput(report: dict[str, Any], path: Path) -> None:
    """Samples per second over the batch size: a panel for each network, a line for each device.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    networks = list(report["workload"]["networks"])
    copied = bool(report["copies"])
    caption = (
        f"Line: median of {report['method']['repeats']} epochs; band: least to most. All axes are logarithmic."
    )
    if copied:
        caption += " Thin line: a training of one epoch, the copy of the data set to the device counted."
    sentences = [*report["notes"], caption, *crossover_lines(report), *facts(report)]
    title = f"Training throughput on {report['workload']['data']}"
    canvas = _Canvas(len(networks), title, [*_trial(report), *sentences])
    for axes, network in zip(canvas.panels, networks, strict=True):
        for device, (colour, marker, line) in zip(report["devices"], STYLES, strict=False):
            rows = [r for r in report["results"] if (r["network"], r["device"]) == (network, device["name"])]
            sizes = [row["batch_size"] for row in rows]
            low, middle, high = ([row[name] for row in rows] for name in ("min", "median", "max"))
            axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(sizes, middle, line, color=colour, marker=marker, markersize=5, label=device["name"])
            if rows and "with_copy" in rows[0]:
                counted = [row["with_copy"]["1"] for row in rows]
                axes.plot(
                    sizes, counted, line, color=colour, linewidth=0.8, label=f"{device['name']}, copy counted"
                )
        _logarithmic(axes, sorted({row["batch_size"] for row in report["results"]}))
        axes.set_title(network, loc="left", fontsize=10)
        axes.set_xlabel("batch size (samples a step)")
        values = [row[name] for row in report["results"] if row["network"] == network for name in ("min", "max")]
        axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    canvas.panels[0].set_ylabel("training throughput (samples/s)")
    canvas.save(path)


def plot_growth(report: dict[str, Any], path: Path) -> None:
    """Seconds per epoch over hidden size, depth and data size, with the fitted lines where they hold.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    caption = (
        f"Points: median of {report['method']['repeats']} repeats; bars: least to most; line: power law, drawn "
        "where it holds. All axes are logarithmic."
    )
    title = f"How the cost of an epoch grows, batch size {report['workload']['batch_size']:,}"
    kinds = list(dict.fromkeys(growth["by"] for growth in report["growth"]))
    canvas = _Canvas(len(kinds), title, [*_trial(report), *report["notes"], caption, *facts(report)])
    names = [device["name"] for device in report["devices"]]
    for axes, kind in zip(canvas.panels, kinds, strict=True):
        panel = [growth for growth in report["growth"] if growth["by"] == kind]
        for growth in panel:
            colour, marker, line = STYLES[names.index(growth["device"]) % len(STYLES)]
            points, fit = growth["points"], growth["fit"]
            xs, middle = [p["x"] for p in points], [p["median"] for p in points]
            bars = [[p["median"] - p["min"] for p in points], [p["max"] - p["median"] for p in points]]
            holds = fit is not None and fit["largest_deviation"] <= TOLERANCE
            label = growth["device"] + (f", exponent {fit['exponent']:.2f}" if holds else ", no power law")
            axes.errorbar(xs, middle, bars, fmt=marker, color=colour, markersize=5, capsize=2, label=label)
            if holds:
                ends = [fit["first"], fit["last"]]
                axes.plot(ends, [fit["factor"] * x ** fit["exponent"] for x in ends], line, color=colour)
        _logarithmic(axes, sorted({point["x"] for growth in panel for point in growth["points"]}))
        axes.set_title(panel[0]["fixed"], loc="left", fontsize=10)
        axes.set_xlabel(kind)
        axes.legend(loc="upper left", frameon=False, fontsize=8)
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.2, high * 1.6)  # room for the legend
    canvas.panels[0].set_ylabel("seconds per epoch")
    canvas.save(path)


class _Canvas:
    """Panels side by side, a title above and lines of text below, which get the height that they need."""

    def __init__(self, panels: int, title: str, sentences: Sequence[str]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        width = PANEL_WIDTH * panels + 0.6
        lines = [line for sentence in sentences for line in textwrap.wrap(sentence, int(width * 15))]
        text = LINE_HEIGHT * len(lines) + 0.15
        height = PANEL_HEIGHT + 0.4 + text
        self.figure = Figure(figsize=(width, height), dpi=130)
        FigureCanvasAgg(self.figure)
        self.panels: list[Axes] = list(self.figure.subplots(1, panels, squeeze=False)[0])
        self.figure.subplots_adjust(
            left=0.95 / width,
            right=1 - 0.15 / width,
            top=1 - 0.75 / height,
            bottom=(text + 0.55) / height,
            wspace=0.24,
        )
        self.figure.text(0.15 / width, 1 - 0.3 / height, title, fontsize=12, weight="bold")
        self.figure.text(
            0.15 / width, 0.1 / height, "\n".join(lines), fontsize=8, color="#333333", va="bottom", linespacing=1.3
        )

    def save(self, path: Path) -> None:
        self.figure.savefig(path)


def _logarithmic(axes: Axes, ticks: Sequence[float]) -> None:
    """Both axes logarithmic, with plain numbers; a mark at every setting, labels as far as there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks)
    shown = set(ticks if len(ticks) <= 8 else ticks[::-2])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _number(x) if x in shown else ""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _number(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _trial(report: dict[str, Any]) -> list[str]:
    return ["A quick trial of the benchmark: not figures to quote."] if report["quick"] else []
