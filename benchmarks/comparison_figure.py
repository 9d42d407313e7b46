"""A comparison as a figure: a panel for each network and momentum, samples per second over the batch size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart also by colour-blind readers; markers and lines differ as well.
STYLES = {
    "gpumlp": ("#0072B2", "o", "-"),
    "gpumlp-persistent": ("#56B4E9", "P", "-"),
    "torch": ("#D55E00", "s", "--"),
    "torch-compiled": ("#E69F00", "v", (0, (4, 1, 1, 1, 1, 1))),
    "torch-graph": ("#E69F00", "v", (0, (4, 1, 1, 1, 1, 1))),
    "jax": ("#009E73", "^", "-."),
    "scikit-learn": ("#CC79A7", "D", ":"),
    "numpy": ("#666666", "X", (0, (1, 1))),
}
_LABEL_GAP = 0.05  # least distance of two labels, in heights of a panel
_LABEL_TOP = 0.97  # height of the highest label: a long title above the panel reaches over them
_WIDTH, _HEIGHT, _LINE = 5.6, 3.7, 0.17  # inches: a panel, and a line of the caption


def plot(report: dict[str, Any], path: Path) -> None:
    """Write the figure as PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report["results"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    momenta = list(dict.fromkeys(row["momentum"] for row in rows))
    width = max(_WIDTH * len(networks), 8)
    lines = [line for sentence in _sentences(report) for line in textwrap.wrap(sentence, int(15.5 * width))]
    below = _LINE * (len(lines) + 2)
    height = _HEIGHT * len(momenta) + below + 0.5
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)
    panels = figure.subplots(max(len(momenta), 1), max(len(networks), 1), squeeze=False, sharex=True, sharey="col")
    for down, momentum in enumerate(momenta):
        for across, network in enumerate(networks):
            axes = panels[down][across]
            chosen = [row for row in rows if (row["network"], row["momentum"]) == (network, momentum)]
            _panel(axes, chosen, report)
            axes.set_title(f"{network}, {_training(momentum)}", loc="left", fontsize=11, weight="bold")
            if across == 0:
                axes.set_ylabel("training throughput (samples/s)")
            if down == len(momenta) - 1:
                axes.set_xlabel("batch size (samples a step)")
    figure.subplots_adjust(
        left=0.85 / width,
        right=1 - 1.5 / width,
        top=1 - 0.4 / height,
        bottom=(below + 0.45) / height,
        wspace=2.0 / (_WIDTH - 2.0),
        hspace=0.6 / (_HEIGHT - 0.6),
    )
    for across in range(len(networks)):  # after the last change of a limit, which moves the labels
        for down in range(len(momenta)):
            _labels(panels[down][across], report["peers"])
    figure.text(
        0.1 / width, 0.1 / height, "\n".join(lines), fontsize=8, color="#333333", va="bottom", linespacing=1.3
    )
    figure.savefig(path)


def _panel(axes: Any, rows: Sequence[dict[str, Any]], report: dict[str, Any]) -> None:
    """Lines of the medians with bands from least to most, and the machine's limits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for peer in dict.fromkeys(row["peer"] for row in rows):
        mine = [row for row in rows if row["peer"] == peer]
        sizes = [row["batch_size"] for row in mine]
        colour, marker, line = STYLES[peer]
        least, most = ([row[name] for row in mine] for name in ("min", "max"))
        axes.fill_between(sizes, least, most, color=colour, alpha=0.2, linewidth=0)
        front = 4 if peer == "gpumlp" else 3
        axes.plot(
            sizes,
            [row["median"] for row in mine],
            linestyle=line,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=2.2 if peer == "gpumlp" else 1.4,
            zorder=front,
            gid=peer,
        )
    batches = sorted({row["batch_size"] for row in rows})
    for name, rates in _limits(rows, batches, report["limits"]).items():
        axes.plot(batches, rates, color="black", linewidth=0.9, linestyle=(0, (6, 3)), zorder=2, gid=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8, labelbottom=True)
    axes.tick_params(axis="y", labelsize=9)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: short(rate)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _limits(
    rows: Sequence[dict[str, Any]], batches: Sequence[int], limits: dict[str, Any]
) -> dict[str, list[float]]:
    """Samples a second that the machine's arithmetic, and its memory if that was measured, allow."""
    by_batch = {row["batch_size"]: row for row in rows}
    result = {"limit: arithmetic": [limits["flops"] / by_batch[size]["flops_per_sample"] for size in batches]}
    if "bytes" in limits:
        result["limit: memory"] = [
            limits["bytes"] / by_batch[size]["bytes_per_step"] * size for size in batches
        ]  # of full batches
    return result


def _labels(axes: Any, titles: dict[str, str]) -> None:
    """Each line's name at its right end, moved apart where they would overlap."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    ends = []
    for line in axes.get_lines():
        x, y = line.get_xdata()[-1], line.get_ydata()[-1]
        ends.append(((math.log(y) - low) / (high - low), x, line))
    ends.sort(key=lambda end: end[0])
    heights = lowered(spread([height for height, _, _ in ends], _LABEL_GAP), _LABEL_TOP)
    right = max((x for _, x, _ in ends), default=1)
    place = axes.get_yaxis_transform()  # x in widths of the panel, y in data
    for height, (_, _, line) in zip(heights, ends, strict=True):
        name = line.get_gid()
        y = math.exp(low + height * (high - low))
        axes.annotate(
            titles.get(name, name),
            xy=(right, line.get_ydata()[-1]),
            xytext=(1.06, y),
            textcoords=place,
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
    """Rising heights moved apart, as little as may be, until neighbours keep the gap."""
    groups: list[tuple[float, int]] = []  # mean height, how many labels
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            (upper, n), (lower, m) = groups.pop(), groups.pop()
            groups.append(((upper * n + lower * m) / (n + m), n + m))
    return [_bottom(group, gap) + index * gap for group in groups for index in range(group[1])]


def lowered(heights: Sequence[float], top: float) -> list[float]:
    """Rising heights moved down together, as little as may be, until none is above the top."""
    excess = max([0.0, *(height - top for height in heights[-1:])])
    return [height - excess for height in heights]


def _bottom(group: tuple[float, int], gap: float) -> float:
    return group[0] - gap * (group[1] - 1) / 2


def _top(group: tuple[float, int], gap: float) -> float:
    return group[0] + gap * (group[1] - 1) / 2


def short(rate: float) -> str:
    """200, 5 k, 1 M."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if rate >= unit:
            return f"{rate / unit:.4g}{name}"
    return f"{rate:.4g}"


def _training(momentum: float) -> str:
    return f"SGD with momentum {momentum:g}" if momentum else "plain SGD"


def _sentences(report: dict[str, Any]) -> list[str]:
    """What the figures were measured with."""
    device, work, limits = report["devices"][0], report["workload"], report["limits"]
    first = f"Line: median of {report['method']['repeats']} runs; band: least to most; all axes logarithmic."
    if "bytes" in limits:
        first += " Limits: a large product and a large copy, over the counts of benchmarks/counts.py."
    else:
        first += f" Limit: a large product ({limits['by']}, {1e-9 * limits['flops']:,.0f} GFLOP/s)."
    sentences = [
        *report["notes"],
        f"{first} ReLU, {work['dtype']}, shuffled {work['data']}, the peers of a setting taking turns.",
        f"{device['name']}: {device['description']}; {report['hardware']['processors_usable']} processors usable; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
        + f"; measured {report['date'][:10]}",
    ]
    if report["quick"]:
        sentences.insert(0, "A quick trial of the comparison: not figures to quote.")
    return sentences
