"""The style of all figures: sheet, palette, labels, files. matplotlib is imported when a figure is drawn.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish; lines in one panel also differ in
dash or marker. Sheets are 8 inches wide, so that on A4 paper the smallest text is larger than 6 points.
"""

from __future__ import annotations

import functools
import io
import json
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

import gpumlp

from ..extras import require
from ..files import utf8, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, GREY = "#CC79A7", "#E69F00", "#666666"
SOLID, DASHED, DOTTED, DASH_DOT = "-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2))

WIDTH = 8.0  # inches
_TITLE_SIZE, _CAPTION_SIZE, _TEXT_SIZE = 12, 9, 9  # points
_CHARACTERS_PER_INCH = 13.6  # of the caption
_GAP = 0.06  # between the names of two lines, at least, of the axes' height
_DIGITS = 7  # significant digits of the numbers in files, as many as float32 has
_RULES: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # part of matplotlib: the same figure on every machine
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
    """A figure and its numbers.

    Attributes:
        figure: a ``matplotlib.figure.Figure`` with its own canvas, without a window or pyplot state.
        numbers: the plotted values as floats, strings, lists, dicts and NumPy arrays, with the figure's ``title``
            and ``caption``.
    """

    figure: Figure
    numbers: dict[str, Any]

    def __repr__(self) -> str:
        return f"<figure {self.numbers['title']!r}; its numbers: {', '.join(self.numbers)}>"

    def _repr_png_(self) -> bytes:
        """The picture, which a notebook shows."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def in_house_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws: it uses this module's style, and leaves the user's settings unchanged.

    The function computes with one BLAS thread, and raises `MissingExtraError` if matplotlib is not installed.
    """

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        require("figures", "matplotlib", "report")
        import matplotlib

        # In networks this small, two threads mostly wait for each other: with other programs running, figures took
        # up to five times as long.
        with matplotlib.rc_context(), threadpool_limits(1, user_api="blas"):
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RULES)
            return draw(*args, **kwargs)

    return styled


class Sheet:
    """Panels in rows and columns below a title and a caption.

    Args:
        title: of the figure, in bold.
        caption: a sentence or two on what was computed.
        rows, columns: of panels.
        height: of all panels together, in inches; title and caption are added.
        options: for ``Figure.subplots``, such as ``sharey=True`` or ``height_ratios=(2, 1)``.

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
        """The figure with its numbers, title and caption.

        The layout is computed once here and rounded, because its solver does not return the same bits on every
        call, and equal numbers must give equal pictures.
        """
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        for axes in self.figure.axes:
            left, bottom, width, height = (round(value, 4) for value in axes.get_position(original=True).bounds)
            axes.set_position((left, bottom, width, height))
        return FigureResult(self.figure, {"title": self.title, "caption": self.caption, **numbers})


def end_labels(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names at the ends of lines, moved apart where they would overlap.

    Args:
        axes: with its final limits and scales.
        labels: ``(x, y, text, colour)`` of the end of each line, in data coordinates.
    """
    axes.get_xlim(), axes.get_ylim()  # updates the limits, which the transformation does not
    to_axes = axes.transData + axes.transAxes.inverted()
    spots = sorted(
        ((to_axes.transform((x, y)), text, colour) for x, y, text, colour in labels), key=lambda s: s[0][1]
    )
    heights = [float(min(max(spot[1], 0.0), 1.0)) for spot, _, _ in spots]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + _GAP)
    ceiling = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - _GAP
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


def decimal_log_axis(axis: Axis) -> None:
    """Label a logarithmic axis of a few decades with numbers such as 0.2, 0.5 and 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def note(axes: Axes, text: str, *, x: float = 0.97, y: float = 0.95, colour: str = "#333333") -> None:
    """A short text inside a panel; x and y are fractions of its width and height."""
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


@in_house_style
def save(folder: Path, name: str, result: FigureResult) -> list[Path]:
    """Write ``NAME.png``, ``NAME.svg`` and ``NAME.json`` (the numbers), each whole or not at all.

    Existing files are replaced. The same figure gives the same files. Floats in the JSON file have 7 significant
    digits; null stands for NaN and infinities.

    Raises:
        OSError: a file cannot be written.
    """
    contents = {}
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        result.figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
        contents[kind] = _opaque(buffer) if kind == "png" else buffer.getvalue()
    report = {"figure": name, "gpumlp": gpumlp.__version__, **json_values(result.numbers)}
    contents["json"] = utf8(json.dumps(report, allow_nan=False, ensure_ascii=False) + "\n")
    paths = [folder / f"{name}.{kind}" for kind in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomically(path, content)
    return paths


def _opaque(png: io.BytesIO) -> bytes:
    """A PNG without its transparency, and without colours if it has none: half of the bytes."""
    from PIL import Image

    picture, buffer = Image.open(png).convert("RGB"), io.BytesIO()
    grey = picture.convert("L")
    if picture == grey.convert("RGB"):
        picture = grey
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def json_values(value: Any) -> Any:
    """Values for JSON: arrays as lists, floats with 7 significant digits, None for NaN and infinities.

    >>> json_values({"a": np.array([1 / 3, np.nan]), "n": np.int64(2)})
    {'a': [0.3333333, None], 'n': 2}
    """
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return json_values(value.tolist())
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
