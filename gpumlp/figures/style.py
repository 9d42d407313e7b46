"""The house style of all figures: one sheet, one palette, one way to label. matplotlib is imported when drawing.

Colours are Okabe and Ito's, told apart also by colour-blind readers; lines that share a panel differ in dash or
marker as well. Sheets are 8 inches wide, so that on A4 paper the smallest text is still above 6 points.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

from ..extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, GREY = "#CC79A7", "#E69F00", "#56B4E9", "#666666"
SOLID, DASHED, DOTTED, DASH_DOT = "-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2))

WIDTH = 8.0  # inches
_TITLE_SIZE, _CAPTION_SIZE, _TEXT_SIZE = 12, 9, 9  # points
_CHARACTERS_PER_INCH = 13.6  # of the caption
_RULES: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure on every machine
    "font.size": _TEXT_SIZE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": _TEXT_SIZE,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.6,
    "savefig.dpi": 150,
    "svg.hashsalt": "gpumlp",  # the same numbers give the same file
}

P = ParamSpec("P")
R = TypeVar("R")


class FigureResult(NamedTuple):
    """A figure, and what it shows.

    Attributes:
        figure: a ``matplotlib.figure.Figure`` with a canvas of its own, no window and no pyplot state.
        numbers: what is drawn, as floats, strings, lists, dicts and NumPy arrays; ``title`` and ``caption`` are
            the figure's own.
    """

    figure: Figure
    numbers: dict[str, Any]


def in_house_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in the house style, whatever the user's settings are, and leave those as they were.

    The function then computes with one thread of the BLAS, and raises `MissingExtraError` where matplotlib is not
    installed.
    """

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        require("figures", "matplotlib", "report")
        import matplotlib

        # In networks as small as the figures' two threads wait for each other more than they compute: beside busy
        # programs, figures took up to five times as long with them. A GPU has nothing to do with this number.
        with matplotlib.rc_context(), threadpool_limits(1, user_api="blas"):
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RULES)
            return draw(*args, **kwargs)

    return styled


class Sheet:
    """Panels in rows and columns under a title and a caption, which get the height that they need.

    Args:
        title: in bold, above everything.
        caption: a sentence or two on what was computed.
        rows, columns: of panels.
        height: of all panels, in inches.
        options: for ``Figure.subplots``, as ``sharey=True`` or ``height_ratios=(2, 1)``.

    Attributes:
        figure: the figure.
        panels: its axes, row by row.
    """

    def __init__(
        self, title: str, caption: str, rows: int = 1, columns: int = 1, *, height: float = 3.4, **options: Any
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.title, self.caption = title, caption
        heading = textwrap.wrap(title, int(WIDTH * _CHARACTERS_PER_INCH * 0.72))
        lines = textwrap.wrap(caption, int(WIDTH * _CHARACTERS_PER_INCH))
        above = 0.16 + 0.21 * len(heading) + 0.165 * len(lines) + 0.06
        full = height + above
        self.figure = Figure(figsize=(WIDTH, full))
        FigureCanvasAgg(self.figure)
        self.figure.set_layout_engine("constrained", rect=(0.005, 0.005, 0.99, height / full - 0.005))
        left = 0.1 / WIDTH
        self.figure.text(
            left,
            1 - 0.1 / full,
            "\n".join(heading),
            fontsize=_TITLE_SIZE,
            weight="bold",
            va="top",
            linespacing=1.25,
        )
        self.figure.text(
            left,
            1 - (0.14 + 0.21 * len(heading)) / full,
            "\n".join(lines),
            fontsize=_CAPTION_SIZE,
            color="#333333",
            va="top",
            linespacing=1.3,
        )
        self.panels: list[Axes] = list(self.figure.subplots(rows, columns, squeeze=False, **options).flat)

    def result(self, numbers: dict[str, Any]) -> FigureResult:
        """The figure and its numbers, title and caption among them.

        The layout is computed here once and rounded: its solver is not the same to the last bit on every call, and
        a picture is to depend on its numbers only.
        """
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        for axes in self.figure.axes:
            left, bottom, width, height = (round(value, 4) for value in axes.get_position(original=True).bounds)
            axes.set_position((left, bottom, width, height))
        return FigureResult(self.figure, {"title": self.title, "caption": self.caption, **numbers})


def end_labels(axes: Axes, labels: Sequence[tuple[float, float, str, str]], *, gap: float = 0.06) -> None:
    """Write names beside the ends of lines, moved apart where they would overlap.

    Args:
        axes: with its limits and scales as they will stay.
        labels: ``(x, y, text, colour)`` of each line's end, in data coordinates.
        gap: least distance between two names, as a part of the axes' height.
    """
    axes.get_xlim(), axes.get_ylim()  # brings the limits up to date, which the transformation does not
    to_axes = axes.transData + axes.transAxes.inverted()
    spots = sorted(
        ((to_axes.transform((x, y)), text, colour) for x, y, text, colour in labels), key=lambda s: s[0][1]
    )
    heights = [float(min(max(spot[1], 0.0), 1.0)) for spot, _, _ in spots]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    excess = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for index in range(len(heights) - 1, -1, -1):
        ceiling = heights[index + 1] - gap if index + 1 < len(heights) else 1.0
        heights[index] = min(heights[index], ceiling) if excess else heights[index]
    for (spot, text, colour), height in zip(spots, heights, strict=True):
        axes.annotate(
            text,
            (float(spot[0]), height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            ha="left",
            color=colour,
            fontsize=8,
            annotation_clip=False,
        )


def plain_log_axis(axis: Axis) -> None:
    """Numbers such as 0.2, 0.5 and 1 on a logarithmic axis of a few decades at most."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def note(axes: Axes, text: str, *, x: float = 0.97, y: float = 0.95, colour: str = "#333333") -> None:
    """A short text inside a panel, at a place given as parts of its width and height."""
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        ha="right" if x > 0.5 else "left",
        va="top" if y > 0.5 else "bottom",
        fontsize=8,
        color=colour,
        linespacing=1.3,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )
