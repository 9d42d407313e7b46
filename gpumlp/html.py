"""HTML for notebooks: tables, curves and a progress bar, escaped, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .nn import MLP
from .nn.layers import Dense, Dropout, Layer

BLUE, ORANGE = "#1f77b4", "#ff7f0e"  # both stand out on white and on black
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 170, 52, 10, 10, 34
_MOST_POINTS = 400  # of a curve: there are no more pixels


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1, foot: Sequence[str] = ()
) -> str:
    """A table of texts, with the first columns aligned to the left and the others, numbers, to the right.

    Args:
        header: of the columns.
        rows: each with a cell per column.
        words: number of columns aligned to the left.
        foot: a last row, set apart.

    >>> table(["name", "n"], [["a < b", "1"]]).count("a &lt; b")
    1
    """

    def line(cells: Sequence[str], tag: str) -> str:
        content = "".join(
            f'<{tag} style="text-align: {"left" if index < words else "right"}">{escape(cell)}</{tag}>'
            for index, cell in enumerate(cells)
        )
        return f"<tr>{content}</tr>"

    body = "".join(line(row, "td") for row in rows)
    end = f"<tfoot>{line(foot, 'th')}</tfoot>" if foot else ""
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody>{end}</table>"


def layer_table(model: MLP) -> str:
    """A network's layers as a table, with their numbers of parameters."""
    rows: list[list[str]] = []
    for layer in model.layers:
        numbered = sum(bool(row[0]) for row in rows)  # as the tensors are named
        count = sum(array.size for array in layer.parameters.values())
        rows.append(
            [
                f"layers.{numbered}" if layer.shapes() else "",
                model.loss.output if layer is model.layers[-1] else _what(layer),
                f"{layer.in_features:,}",
                f"{layer.out_features:,}",
                f"{count:,}",
            ]
        )
    about = f"MLP {'-'.join(map(str, model.sizes))}, {model.dtype.name}, on {model.backend.name}"
    header, total = ("layer", "activation", "inputs", "outputs", "parameters"), f"{model.parameters.count:,}"
    return f"<div><p>{escape(about)}</p>{table(header, rows, words=2, foot=['total', '', '', '', total])}</div>"


def _what(layer: Layer) -> str:
    """What a layer computes, in a word or two."""
    if isinstance(layer, Dense):
        return layer.activation.name
    if isinstance(layer, Dropout):
        return f"dropout {layer.rate:g}"
    name: str = getattr(layer, "name", type(layer).__name__)
    return name


def curves(series: dict[str, list[float]], x_name: str) -> str:
    """Curves over 1, 2, 3, ... as an inline SVG; values that are not finite are gaps.

    The vertical axis contains 0.

    Args:
        series: values by name, at most two, of equal length.
        x_name: label of the horizontal axis.
    """
    count = max(map(len, series.values()), default=0)
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    if not finite:
        return ""
    bottom = min(0.0, *finite)
    top = max(0.0, *finite) or (0.0 if bottom else 1.0)

    def x(index: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - bottom) / (top - bottom))

    parts = [
        _line(_LEFT, _TOP, _LEFT, y(bottom)),
        _line(_LEFT, y(0), _WIDTH - _RIGHT, y(0)),
        _text(_LEFT - 6, y(0) + 4, "0", "end"),
        _text(x(0), y(bottom) + 14, "1", "middle"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_name, "middle"),
    ]
    if count > 1:
        parts.append(_text(x(count - 1), y(bottom) + 14, f"{count:,}", "end"))
    for end, below in ((top, 8), (bottom, 4)):
        if abs(y(end) - y(0)) > 12:  # otherwise on the text of the 0
            parts.append(_text(_LEFT - 6, y(end) + below, f"{end:.3g}", "end"))
    rising = y(finite[-1]) < (y(top) + y(bottom)) / 2
    step = max(1, math.ceil(count / _MOST_POINTS))
    for number, ((name, values), colour, dashes) in enumerate(
        zip(series.items(), (BLUE, ORANGE), ("none", "5 3"), strict=False)
    ):
        shown = sorted({*range(0, len(values), step), len(values) - 1})
        gaps = [index for index in shown if not math.isfinite(values[index])]
        for run in _split_at(shown, gaps):
            points = " ".join(f"{x(index):.1f},{y(values[index]):.1f}" for index in run)
            if len(run) == 1:
                first = run[0]
                parts.append(f'<circle cx="{x(first):.1f}" cy="{y(values[first]):.1f}" r="3" fill="{colour}"/>')
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
                f'stroke-dasharray="{dashes}"/>'
            )
        height = (y(bottom) - 30 if rising else _TOP + 6) + 16 * number
        parts.append(_line(_WIDTH - 152, height, _WIDTH - 126, height, colour, dashes))
        parts.append(_text(_WIDTH - 120, height + 4, name, "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" style="max-width: 100%" role="img" '
        f'aria-label="{escape(", ".join(series))}">{"".join(parts)}</svg>'
    )


def progress_bar(done: float) -> str:
    """A bar, filled to a fraction from 0 to 1."""
    return f'<progress value="{done:.4f}" max="1" style="width: 16em; vertical-align: middle"></progress>'


def _split_at(indices: list[int], gaps: list[int]) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for index in indices:
        if index in gaps:
            runs.append([])
        else:
            runs[-1].append(index)
    return [run for run in runs if run]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "currentColor", dashes: str = "none") -> str:
    width = 1 if colour == "currentColor" else 2
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}" stroke-dasharray="{dashes}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="currentColor" font-family="sans-serif" font-size="12" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
