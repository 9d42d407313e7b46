"""Where the ink is in a picture of a digit, on whatever paper and in whatever light."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .components import Component, connected_components
from .errors import DataError

Grey: TypeAlias = npt.NDArray[Any]  # (height, width), floating, 0..1

_COARSE = 48  # blocks on the longer side, in which the paper's brightness is looked for
_FAINTEST = 0.08  # of the range from black to white: fainter marks are taken for dirt
_NOISE = 5.0  # standard deviations of the paper's noise that a mark must exceed
_MOST_NOISE = 0.3  # of the range: what looks like more is the ink itself, in a picture that is full of it
_SHEET, _RIM = (
    0.6,
    0.01,
)  # of its box: how much a sheet fills; of its longer side: what is left out, as it is blurred
_SPECK = 0.04  # of the largest mark's area: smaller ones are specks
_SMALLEST = 0.03  # of the picture's longer side: smaller marks are no digit


class NoDigitError(DataError):
    """Nothing in a picture looks like a digit; the message says what there is."""


def find_ink(grey: Grey, *, on_sheet: bool = False) -> Grey:
    """How much ink there is in each pixel of the box around the digit.

    1. The paper's brightness is a surface of second degree, fitted to what is left when all that stands out is set
       aside, beginning with the picture's rim. So uneven light does no harm.
    2. Whichever is more, darker or lighter marks, is the ink, so either polarity will do. Dark marks are measured
       relative to the paper's brightness, as light falls on both.
    3. Marks fainter than the paper's noise, specks, and what hangs on the picture's edge while there is something
       that does not, are left out. The rest is the digit, however many parts it has.
    4. 15 % of the ink's strength and less becomes 0, 85 % and more 1.

    A sheet of paper on a table stands out as a mark itself; the digit is looked for on it.

    Args:
        grey: ``(height, width)``, 0 black, 1 white.
        on_sheet: is this a sheet in a picture already? Then there is none on it.

    Returns:
        ``(rows, columns)`` float32 of the smallest box that holds the digit: 0 is paper, 1 is ink.

    Raises:
        NoDigitError: the picture is of one colour, empty, or full of ink.
    """
    height, width = grey.shape
    if float(np.ptp(grey)) < _FAINTEST:
        raise NoDigitError(f"no digit found: the picture is {_shade(float(grey.mean()))} all over")
    smooth = _smoothed(np.asarray(grey, dtype=np.float64), max(height, width) // 160)
    paper = _paper(smooth)
    marks = smooth - paper
    least = max(_FAINTEST, min(_NOISE * _spread(marks), _MOST_NOISE))
    dark, light = np.maximum(-marks - least, 0), np.maximum(marks - least, 0)
    strength = -marks / np.maximum(paper, 0.2) if dark.sum() >= light.sum() else marks
    beyond = strength[strength > least]
    if beyond.size == 0:
        raise NoDigitError("no digit found: the page is empty, or the digit is too faint for its noise")
    level = float(np.percentile(beyond, 90))
    mask = strength > max(least, 0.5 * level)
    parts, labels = connected_components(mask)
    if not on_sheet and _is_sheet(parts[0], height, width):
        with suppress(NoDigitError):
            return find_ink(_sheet_only(grey, labels == parts[0].number, parts[0]), on_sheet=True)
    kept = _digit(parts, height, width)
    chosen = np.isin(labels, [part.number for part in kept])
    top, bottom = min(part.top for part in kept), max(part.bottom for part in kept)
    left, right = min(part.left for part in kept), max(part.right for part in kept)
    near = _grown(chosen, 1 + max(height, width) // 160)  # the soft edges belong to it
    ink = np.where(near, np.clip((strength / level - 0.15) / 0.7, 0, 1), 0)
    return np.asarray(ink[top:bottom, left:right], dtype=np.float32)


def _digit(parts: list[Component], height: int, width: int) -> list[Component]:
    """The parts that are the digit, the largest first."""
    inside = [part for part in parts if not _on_edge(part, height, width)]
    longest = max(height, width)
    if (
        inside
        and inside[0].area >= 0.1 * parts[0].area
        and max(inside[0].height, inside[0].width) > 0.15 * longest
    ):
        parts = inside
    kept = [part for part in parts if part.area >= _SPECK * parts[0].area] if parts else []
    if not kept or max(kept[0].height, kept[0].width) < max(3.0, _SMALLEST * longest):
        raise NoDigitError("no digit found: there is nothing on the page but specks")
    tallest = max(part.height for part in kept)
    large = sorted(
        (part for part in kept if part.height > 0.6 * tallest and part.area > 0.35 * kept[0].area),
        key=lambda part: part.left,
    )
    if any(left.right < right.left for left, right in pairwise(large)):
        raise NoDigitError(f"expected one digit, found {len(large)} marks side by side; cut the picture up")
    share = kept[0].area / (height * width)
    if share > 0.6:
        raise NoDigitError(f"no digit found: a single mark covers {100 * share:.0f} % of the picture")
    return kept


def _is_sheet(part: Component, height: int, width: int) -> bool:
    """Is it large, and more or less a rectangle?"""
    large = part.height > max(20, 0.4 * height) and part.width > max(20, 0.4 * width)
    return large and part.area > _SHEET * part.height * part.width


def _sheet_only(grey: Grey, sheet: npt.NDArray[np.bool_], part: Component) -> Grey:
    """The box of a sheet; where it is askew, what is beside it becomes paper."""
    rim = max(2, round(_RIM * max(part.height, part.width)))
    spans = []
    for axis in (
        0,
        1,
    ):  # between the sheet's pixels in the same row and in the same column: what is drawn on it too
        after = np.maximum.accumulate(sheet, axis)
        spans.append(after & np.flip(np.maximum.accumulate(np.flip(sheet, axis), axis), axis))
    within = ~_grown(~(spans[0] & spans[1]), rim)
    only = np.where(within, grey, np.median(grey[within & sheet]) if (within & sheet).any() else 0)
    box: Grey = only[part.top + rim : part.bottom - rim, part.left + rim : part.right - rim]
    return box


def _on_edge(part: Component, height: int, width: int) -> bool:
    return part.top == 0 or part.left == 0 or part.bottom == height or part.right == width


def _paper(grey: Grey) -> Grey:
    """The brightness of the paper everywhere, as a surface of second degree."""
    height, width = grey.shape
    block = max(1, min(max(height, width) // _COARSE, height, width))
    rows, columns = height // block, width // block
    means = grey[: rows * block, : columns * block].reshape(rows, block, columns, block).mean(axis=(1, 3)).ravel()
    # Block (i, j) is centred on pixel (i + 1/2) block - 1/2.
    y, x = np.divmod(np.arange(rows * columns), columns)
    basis = _basis((y + 0.5) * block - 0.5, (x + 0.5) * block - 0.5, height, width)
    rim = (y == 0) | (x == 0) | (y == rows - 1) | (x == columns - 1)
    start = float(np.median(means[rim]))
    near = np.abs(means - start) <= max(0.05, 3 * 1.4826 * float(np.median(np.abs(means[rim] - start))))
    surface = np.zeros(6)
    surface[0] = start
    for terms in (3, 3, 6, 6, 6, 6):
        if near.sum() < 4 * terms:
            break
        surface = np.zeros(6)
        surface[:terms] = np.linalg.lstsq(basis[near, :terms], means[near], rcond=None)[0]
        away = np.abs(means - basis @ surface)
        near = away <= max(0.02, 3 * 1.4826 * float(np.median(away[near])))
    y_all, x_all = np.indices(grey.shape)
    values = _basis(y_all.ravel(), x_all.ravel(), height, width) @ surface
    return np.clip(values.reshape(grey.shape), 0, 1)


def _basis(y: npt.NDArray[Any], x: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    y, x = 2 * y / max(1, height - 1) - 1, 2 * x / max(1, width - 1) - 1
    return np.stack([np.ones_like(y), y, x, y * y, x * y, x * x], axis=1)


def _spread(marks: Grey) -> float:
    """Standard deviation of the paper's noise, from the middle of the distribution, which the ink does not
    reach."""
    away = np.abs(marks).ravel()
    spread = 1.4826 * float(np.median(away))
    for _ in range(3):
        near = away[away <= 3 * spread]
        if near.size:
            spread = 1.4826 * float(np.median(near))
    return spread


def _smoothed(grey: Grey, reach: int) -> Grey:
    """The mean over squares of 2 reach + 1 pixels, smaller at the rim."""
    if reach < 1:
        return grey
    for axis in (0, 1):
        size = grey.shape[axis]
        sums = np.concatenate([np.zeros_like(grey.take([0], axis)), grey.cumsum(axis)], axis)
        start, stop = np.maximum(np.arange(size) - reach, 0), np.minimum(np.arange(size) + reach + 1, size)
        count = (stop - start).reshape((-1, 1) if axis == 0 else (1, -1))
        grey = (sums.take(stop, axis) - sums.take(start, axis)) / count
    return grey


def _grown(mask: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.bool_]:
    """A mask and all pixels within a square of it."""
    return _smoothed(mask.astype(np.float64), reach) > 1e-9


def _shade(brightness: float) -> str:
    return "black" if brightness < 0.1 else "white" if brightness > 0.9 else "the same grey"
