"""The benchmarks' figures: `plot` draws any report. matplotlib is imported only where one is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import FIT_TOLERANCE, facts, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Limits = dict[str, Callable[[dict[str, Any]], float]]  # by the name of its line, of a result

# Okabe and Ito's colours, told apart also by colour-blind readers; markers and lines differ as well.
DEVICE_STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))
_DOT_DOT = (0, (4, 1, 1, 1, 1, 1))
PEER_STYLES: dict[str, tuple[str, str, Any]] = {
    "gpumlp": ("#0072B2", "o", "-"),
    "gpumlp-graphs": ("#56B4E9", "P", "-"),
    "gpumlp-persistent": ("#000000", "*", "-"),
    "torch": ("#D55E00", "s", "--"),
    "torch-compiled": ("#E69F00", "v", _DOT_DOT),
    "torch-graph": ("#E69F00", "v", _DOT_DOT),
    "jax": ("#009E73", "^", "-."),
    "scikit-learn": ("#CC79A7", "D", ":"),
    "numpy": ("#666666", "X", (0, (1, 1))),
}
_MANY_STYLES: dict[str, tuple[str, str, Any]] = {
    "gpumlp": PEER_STYLES["gpumlp"],
    "one-by-one": ("#56B4E9", "P", "--"),
    "validated": ("#CC79A7", "v", ":"),
    "jax": PEER_STYLES["jax"],
}
_INVERSE = (("median", "median"), ("min", "max"), ("max", "min"))  # the least time is that of the highest rate
_LINE_HEIGHT = 0.16  # inches, of the text below
_LABEL_GAP = 0.05  # least distance of two labels, in heights of a panel
_LABEL_TOP = 0.97  # height of the highest label: a long title above the panel reaches over them


def plot(report: dict[str, Any], path: Path) -> list[Path]:
    """Write the figures of a report as PNG: the first as `path`, others beside it; returns their paths.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: there is no figure of this benchmark.
    """
    figures = _FIGURES.get(report["benchmark"])
    if figures is None:
        raise ValueError(f"there is no figure of {report['benchmark']}, only of {', '.join(_FIGURES)}")
    paths = [path.with_name(f"{path.stem}{suffix}{path.suffix}") for suffix in figures]
    for each, draw in zip(paths, figures.values(), strict=True):
        draw(report).save(each)
    return paths


class _Canvas:
    """A grid of panels, a title above, and lines of text below, which get the height that they need."""

    def __init__(
        self,
        columns: int,
        rows: int,
        sentences: Sequence[str],
        *,
        title: str = "",
        margin: float = 0.0,
        **shared: Any,
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        left, gap, panel, top = 0.9, 0.75 + margin, 3.6, 0.75 if title else 0.4
        width = left + columns * panel + (columns - 1) * gap + 0.2 + margin
        width = max(width, 8.0)
        lines = [line for sentence in sentences for line in textwrap.wrap(sentence, int(width * 15))]
        below = _LINE_HEIGHT * len(lines) + 0.75
        height = top + rows * 3.0 + (rows - 1) * 0.75 + below
        self.figure = Figure(figsize=(width, height), dpi=130)
        FigureCanvasAgg(self.figure)
        self.panels: list[list[Axes]] = self.figure.subplots(rows, columns, squeeze=False, **shared).tolist()
        inner = (width - left - 0.2 - margin - (columns - 1) * gap) / columns
        self.figure.subplots_adjust(
            left=left / width,
            right=1 - (0.2 + margin) / width,
            top=1 - top / height,
            bottom=below / height,
            wspace=gap / inner,
            hspace=0.75 / 3.0,
        )
        self.figure.text(0.15 / width, 1 - 0.3 / height, title, fontsize=12, weight="bold")
        text = "\n".join(lines)
        self.figure.text(
            0.15 / width, 0.12 / height, text, fontsize=8, color="#333333", va="bottom", linespacing=1.3
        )

    def save(self, path: Path) -> None:
        self.figure.savefig(path)


# -- Throughput and growth -------------------------------------------------------------------------------


def _throughput(report: dict[str, Any]) -> _Canvas:
    """Samples per second over the batch size: a panel for each network, a line for each device."""
    networks = list(report["workload"]["networks"])
    caption = f"Line: median of {report['method']['repeats']} epochs; band: minimum to maximum. "
    caption += "Both axes are logarithmic."
    if report["copies"]:
        caption += " Thin line: training for one epoch, the copy of the data set to the device included."
    sentences = [*_trial(report), *report["notes"], caption, *_crossovers(report), *facts(report)]
    canvas = _Canvas(len(networks), 1, sentences, title=f"Training throughput on {report['workload']['data']}")
    for axes, network in zip(canvas.panels[0], networks, strict=True):
        names = dict.fromkeys(series(row) for row in report["results"])
        for name, (colour, marker, line) in zip(names, cycle(DEVICE_STYLES), strict=False):
            rows = [row for row in report["results"] if (row["network"], series(row)) == (network, name)]
            sizes = [row["batch_size"] for row in rows]
            if rows:
                _median_and_band(axes, rows, color=colour, marker=marker, linestyle=line, label=name)
            if rows and "with_copy" in rows[0]:
                with_copy = [row["with_copy"]["1"] for row in rows]
                axes.plot(
                    sizes, with_copy, linestyle=line, color=colour, linewidth=0.8, label=f"{name}, with copy"
                )
        _logarithmic(axes, sorted({row["batch_size"] for row in report["results"]}))
        axes.set_title(network, loc="left", fontsize=10)
        axes.set_xlabel("batch size (samples a step)")
        rates = [row[name] for row in report["results"] if row["network"] == network for name in ("min", "max")]
        axes.set_ylim(min(rates) / 1.6, max(rates) * 1.6)
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    canvas.panels[0][0].set_ylabel("training throughput (samples/s)")
    return canvas


def _growth(report: dict[str, Any]) -> _Canvas:
    """Seconds per epoch over hidden size, depth and data size, with the fitted lines where they hold."""
    caption = (
        f"Points: median of {report['method']['repeats']} repeats; bars: minimum to maximum; line: power law, "
        "drawn where it holds. Both axes are logarithmic."
    )
    title = f"How the cost of an epoch grows, batch size {report['workload']['batch_size']:,}"
    kinds = list(dict.fromkeys(growth["by"] for growth in report["growth"]))
    canvas = _Canvas(len(kinds), 1, [*_trial(report), *report["notes"], caption, *facts(report)], title=title)
    names = [device["name"] for device in report["devices"]]
    for axes, kind in zip(canvas.panels[0], kinds, strict=True):
        panel = [growth for growth in report["growth"] if growth["by"] == kind]
        for growth in panel:
            colour, marker, line = DEVICE_STYLES[names.index(growth["device"]) % len(DEVICE_STYLES)]
            points, fit = growth["points"], growth["fit"]
            xs, middle = [p["x"] for p in points], [p["median"] for p in points]
            bars = [[p["median"] - p["min"] for p in points], [p["max"] - p["median"] for p in points]]
            holds = fit is not None and fit["largest_deviation"] <= FIT_TOLERANCE
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
    canvas.panels[0][0].set_ylabel("seconds per epoch")
    return canvas


# -- The comparison --------------------------------------------------------------------------------------


def _comparison(report: dict[str, Any]) -> _Canvas:
    """A panel for each network and momentum: samples per second over the batch size, a line for each peer."""
    return _panels(report, report["results"], _limits(report), "training throughput (samples/s)")


def _step_times(report: dict[str, Any]) -> _Canvas:
    """The same with the time of a step: that of the mean step, as the last of an epoch may be short."""
    rows = [
        {**row, **{name: 1e6 * row["samples"] / row["steps_per_epoch"] / row[rate] for name, rate in _INVERSE}}
        for row in report["results"]
    ]
    times: Limits = {
        name: lambda row, rate=rate: 1e6 * row["batch_size"] / rate(row)  # type: ignore[misc]
        for name, rate in _limits(report).items()
    }
    return _panels(report, rows, times, "time of a step (µs)")


def _limits(report: dict[str, Any]) -> Limits:
    """Samples per second of full batches at the limits of the device."""
    limits = report["limits"]
    rates: Limits = {"limit: arithmetic": lambda row: limits["flops"] / row["flops_per_sample"]}
    if "bytes" in limits:
        rates["limit: memory"] = lambda row: limits["bytes"] / row["bytes_per_step"] * row["batch_size"]
    return rates


def _panels(report: dict[str, Any], rows: Sequence[dict[str, Any]], limits: Limits, quantity: str) -> _Canvas:
    networks, momenta = (list(dict.fromkeys(row[key] for row in rows)) for key in ("network", "momentum"))
    sentences = [*_trial(report), *report["notes"], _caption(report), *_device_and_versions(report)]
    canvas = _Canvas(len(networks), len(momenta), sentences, margin=1.7, sharex=True, sharey="col")
    for down, momentum in enumerate(momenta):
        for across, network in enumerate(networks):
            axes = canvas.panels[down][across]
            chosen = [row for row in rows if (row["network"], row["momentum"]) == (network, momentum)]
            _peers_and_limits(axes, chosen, limits)
            training = f"SGD with momentum {momentum:g}" if momentum else "plain SGD"
            axes.set_title(f"{network}, {training}", loc="left", fontsize=10, weight="bold")
            if across == 0:
                axes.set_ylabel(quantity)
            if down == len(momenta) - 1:
                axes.set_xlabel("batch size (samples a step)")
    for panels in canvas.panels:  # after the last change of a limit, which moves the labels
        for axes in panels:
            _labels(axes, report["peers"])
    return canvas


def _peers_and_limits(axes: Axes, rows: Sequence[dict[str, Any]], limits: Limits) -> None:
    for peer in dict.fromkeys(row["peer"] for row in rows):
        colour, marker, line = PEER_STYLES[peer]
        width, front = (2.2, 4) if peer == "gpumlp" else (1.4, 3)
        mine = [row for row in rows if row["peer"] == peer]
        _median_and_band(
            axes, mine, color=colour, marker=marker, linestyle=line, linewidth=width, zorder=front, gid=peer
        )
    by_size = {row["batch_size"]: row for row in sorted(rows, key=lambda row: row["batch_size"])}
    for name, limit in limits.items():
        line = {"color": "black", "linewidth": 0.9, "linestyle": (0, (6, 3)), "zorder": 2, "gid": name}
        axes.plot(list(by_size), [limit(row) for row in by_size.values()], **line)
    _logarithmic(axes, list(by_size), base=2)
    axes.tick_params(axis="x", labelbottom=True)


def _labels(axes: Axes, titles: dict[str, str]) -> None:
    """The name of each line beside the panel, moved apart where names would overlap."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    last = max(float(line.get_xdata()[-1]) for line in axes.get_lines())  # type: ignore[index, arg-type]
    ends = []
    for line in axes.get_lines():
        x, y = float(line.get_xdata()[-1]), float(line.get_ydata()[-1])  # type: ignore[index, arg-type]
        if x < last:  # a peer that is not meant for larger batches
            place = {"xy": (x, y), "xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
            axes.annotate(titles[str(line.get_gid())], **place, fontsize=8.5, color=line.get_color())
            continue
        ends.append(((math.log(y) - low) / (high - low), x, y, line))
    ends.sort(key=lambda end: end[0])
    heights = lowered(spread([end[0] for end in ends], _LABEL_GAP), _LABEL_TOP)
    for height, (_, x, y, line) in zip(heights, ends, strict=True):
        name = str(line.get_gid())
        axes.annotate(
            titles.get(name, name),
            xy=(x, y),
            xytext=(1.05, height),
            textcoords="axes fraction",
            fontsize=8.5,
            color=line.get_color(),
            weight="bold" if name == "gpumlp" else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": line.get_color(),
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved apart, as little as possible, until neighbours keep the gap."""
    groups: list[tuple[float, int]] = []  # mean height, how many labels
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1 and _end(groups[-2], gap, 1) + gap > _end(groups[-1], gap, -1):
            (upper, n), (lower, m) = groups.pop(), groups.pop()
            groups.append(((upper * n + lower * m) / (n + m), n + m))
    return [_end(group, gap, -1) + index * gap for group in groups for index in range(group[1])]


def lowered(heights: Sequence[float], top: float) -> list[float]:
    """Rising heights moved down together, as little as possible, until none is above the top."""
    excess = max([0.0, *(height - top for height in heights[-1:])])
    return [height - excess for height in heights]


def _end(group: tuple[float, int], gap: float, side: int) -> float:
    """Height of the first (-1) or last (1) label of a group."""
    return group[0] + side * gap * (group[1] - 1) / 2


def _caption(report: dict[str, Any]) -> str:
    limits = report["limits"]
    text = (
        f"Line: median of {report['method']['repeats']} runs; band: minimum to maximum; both axes are logarithmic."
    )
    if "bytes" in limits:
        text += " Limits: a large matrix product and a large copy, over the counts of benchmarks/limits.py."
    else:
        text += f" Limit: a large matrix product ({limits['by']}, {1e-9 * limits['flops']:,.0f} GFLOP/s)."
    work = report["workload"]
    return f"{text} ReLU, {work['dtype']}, shuffled {work['data']}, the peers of a setting taking turns."


def _device_and_versions(report: dict[str, Any]) -> Iterator[str]:
    (device,) = report["devices"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    processors = f"{report['hardware']['processors_usable']} processors usable"
    yield f"{device['name']}: {device['description']}; {processors}; {versions}; measured {report['date'][:10]}"


# -- Many networks ---------------------------------------------------------------------------------------


def _many(report: dict[str, Any]) -> _Canvas:
    """A panel for each network and device: networks trained per second over their number, a line for each peer."""
    rows = report["results"]
    panels = list(dict.fromkeys((row["network"], row["device"]) for row in rows))
    work = report["workload"]
    caption = (
        f"Line: median of {report['method']['repeats']} runs; band: minimum to maximum; axes are logarithmic. A "
        f"training run is {work['epochs']} epochs of all samples, computed from the samples per second."
    )
    sentences = [*_trial(report), *report["notes"], caption, *facts(report)]
    canvas = _Canvas(len(panels), 1, sentences, title="Many networks at once")
    for axes, (network, device) in zip(canvas.panels[0], panels, strict=True):
        here = [row for row in rows if (row["network"], row["device"]) == (network, device)]
        for peer in dict.fromkeys(row["peer"] for row in here):
            colour, marker, line = _MANY_STYLES[peer]
            mine = [row for row in here if row["peer"] == peer]
            per_run = work["epochs"] * work["networks"][network]["samples"]
            low, middle, high = ([row[name] / per_run for row in mine] for name in ("min", "median", "max"))
            counts = [row["networks"] for row in mine]
            axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(counts, middle, marker, linestyle=line, color=colour, label=report["peers"][peer])
        _logarithmic(axes, sorted({row["networks"] for row in here}), base=2)
        axes.set_title(f"{network}, {device}", loc="left", fontsize=10)
        axes.set_xlabel("networks at once")
        axes.legend(frameon=False, fontsize=8)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom / 1.3, top * 2)  # room for the legend
    canvas.panels[0][0].set_ylabel("training runs per second")
    return canvas


# -- What they share -------------------------------------------------------------------------------------


def _median_and_band(axes: Axes, rows: Sequence[dict[str, Any]], **style: Any) -> None:
    sizes = [row["batch_size"] for row in rows]
    low, middle, high = ([row[name] for row in rows] for name in ("min", "median", "max"))
    axes.fill_between(sizes, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(sizes, middle, markersize=5, **style)


def _logarithmic(axes: Axes, ticks: Sequence[float], base: int = 10) -> None:
    """Both axes logarithmic, with plain numbers; a mark at every setting, labels as far as there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=base)
    axes.set_yscale("log")
    axes.set_xticks(ticks)
    shown = set(ticks if len(ticks) <= 8 else ticks[::-2])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x in shown else ""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _short(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _short(value: float) -> str:
    """0.2, 200, 5 k, 1 M."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _crossovers(report: dict[str, Any]) -> Iterator[str]:
    for network, ways in report["crossover"].items():
        yield from (f"{network} ({way}): {sentence}" for way, sentences in ways.items() for sentence in sentences)


def _trial(report: dict[str, Any]) -> list[str]:
    return ["A quick trial of the benchmark: not figures to quote."] if report["quick"] else []


# By benchmark, and by what is added to the name of the file.
_FIGURES: dict[str, dict[str, Callable[[dict[str, Any]], _Canvas]]] = {
    "comparison of training throughput": {"": _comparison, "-steps": _step_times},
    "training throughput": {"": _throughput},
    "growth of the cost of an epoch": {"": _growth},
    "many networks": {"": _many},
}
