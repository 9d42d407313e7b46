"""Find the ink in a picture of a digit, for any paper and light."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data import DataError

Grey: TypeAlias = npt.NDArray[Any]  # (height, width), floating, 0..1

_COARSE = 48  # blocks on the longer side, for measuring the paper's brightness
_FAINTEST = 0.08  # of the range from black to white: fainter marks count as dirt
_NOISE = 5.0  # standard deviations of the paper's noise that a mark must exceed
_MOST_NOISE = 0.3  # of the range: larger estimates are the ink itself, in a picture full of it
_SHEET = 0.6  # of its box: how much of it a sheet fills at least
_RIM = 0.01  # of a sheet's longer side: its blurred edge, which is left out
_SPECK = 0.04  # of the largest mark's area: smaller ones are specks
_SMALLEST = 0.03  # of the picture's longer side: smaller marks are not a digit


class NoDigitError(DataError):
    """Nothing in a picture looks like a digit; the message says what was found."""


def find_ink(grey: Grey, *, on_sheet: bool = False) -> Grey:
    """The amount of ink in each pixel of the box around the digit.

    1. The paper's brightness is a quadratic surface, fitted to the blocks that do not stand out, beginning with
       the picture's rim. This removes uneven light.
    2. The ink is whichever there is more of, marks darker or lighter than the paper. Dark marks are measured
       relative to the paper's brightness, since light falls on both.
    3. Marks fainter than the paper's noise and specks are left out, and so are marks that touch the picture's
       edge if others do not. The rest is the digit, in any number of parts.
    4. 15 % of the ink's strength and less becomes 0, 85 % and more becomes 1.

    A sheet of paper on a table stands out as a mark itself; then the digit is searched for on the sheet.

    Args:
        grey: ``(height, width)``, 0 black, 1 white.
        on_sheet: the picture is a sheet cut out of another one, so no sheet is searched for on it.

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
    near = _grown(chosen, 1 + max(height, width) // 160)  # the soft edges belong to the ink
    ink = np.where(near, np.clip((strength / level - 0.15) / 0.7, 0, 1), 0)
    return np.asarray(ink[top:bottom, left:right], dtype=np.float32)


def _digit(parts: list[Component], height: int, width: int) -> list[Component]:
    """The parts that make up the digit, the largest first."""
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
        raise NoDigitError("no digit found: there are only specks on the page")
    tallest = max(part.height for part in kept)
    large = sorted(
        (part for part in kept if part.height > 0.6 * tallest and part.area > 0.35 * kept[0].area),
        key=lambda part: part.left,
    )
    if any(left.right < right.left for left, right in pairwise(large)):
        raise NoDigitError(
            f"expected one digit, found {len(large)} marks side by side; cut the picture into one per digit"
        )
    share = kept[0].area / (height * width)
    if share > 0.6:
        raise NoDigitError(f"no digit found: a single mark covers {100 * share:.0f} % of the picture")
    return kept


def _is_sheet(part: Component, height: int, width: int) -> bool:
    """Whether a part is large and roughly a rectangle."""
    large = part.height > max(20, 0.4 * height) and part.width > max(20, 0.4 * width)
    return large and part.area > _SHEET * part.height * part.width


def _sheet_only(grey: Grey, sheet: npt.NDArray[np.bool_], part: Component) -> Grey:
    """The box of a sheet; what the box holds beside a tilted sheet becomes paper."""
    rim = max(2, round(_RIM * max(part.height, part.width)))
    spans = []
    for axis in (
        0,
        1,
    ):  # between the sheet's pixels in a row and in a column, so that it includes what is drawn on it
        after = np.maximum.accumulate(sheet, axis)
        spans.append(after & np.flip(np.maximum.accumulate(np.flip(sheet, axis), axis), axis))
    within = ~_grown(~(spans[0] & spans[1]), rim)
    only = np.where(within, grey, np.median(grey[within & sheet]) if (within & sheet).any() else 0)
    box: Grey = only[part.top + rim : part.bottom - rim, part.left + rim : part.right - rim]
    return box


def _on_edge(part: Component, height: int, width: int) -> bool:
    return part.top == 0 or part.left == 0 or part.bottom == height or part.right == width


def _paper(grey: Grey) -> Grey:
    """The brightness of the paper in each pixel, as a quadratic surface."""
    height, width = grey.shape
    block = max(1, min(max(height, width) // _COARSE, height, width))
    rows, columns = height // block, width // block
    means = grey[: rows * block, : columns * block].reshape(rows, block, columns, block).mean(axis=(1, 3)).ravel()
    # Block (i, j) is centred on pixel (i + 1/2) block - 1/2.
    y, x = np.divmod(np.arange(rows * columns), columns)
    basis = np.stack(_quadratic((y + 0.5) * block - 0.5, (x + 0.5) * block - 0.5, height, width), axis=1)
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
    values = np.zeros(grey.shape)
    for factor, term in zip(
        surface, _quadratic(np.arange(height)[:, None], np.arange(width), height, width), strict=True
    ):
        values += factor * term
    return np.clip(values, 0, 1)


def _quadratic(y: npt.NDArray[Any], x: npt.NDArray[Any], height: int, width: int) -> list[npt.NDArray[Any]]:
    """The terms of a quadratic polynomial in the coordinates of pixels, scaled to -1 to 1."""
    y, x = 2 * y / max(1, height - 1) - 1, 2 * x / max(1, width - 1) - 1
    return [np.ones_like(y), y, x, y * y, x * y, x * x]


def _spread(marks: Grey) -> float:
    """Standard deviation of the paper's noise, from the middle of the distribution, without the ink."""
    away = np.sort(np.abs(marks), axis=None)
    count = len(away)
    for _ in range(4):
        spread = 1.4826 * float(away[(count - 1) // 2] + away[count // 2]) / 2  # the median of the first `count`
        count = int(np.searchsorted(away, 3 * spread, side="right")) or count
    return spread


def _smoothed(grey: Grey, reach: int) -> Grey:
    """The mean over squares with sides of 2 reach + 1 pixels, smaller at the rim."""
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
    """A mask extended by `reach` pixels on all sides."""
    return _smoothed(mask.astype(np.float64), reach) > 1e-9


def _shade(brightness: float) -> str:
    return "black" if brightness < 0.1 else "white" if brightness > 0.9 else "the same grey"


@dataclass(frozen=True)
class Component:
    """Pixels that touch by sides or corners.

    Attributes:
        area: number of pixels.
        top, bottom, left, right: its box; bottom and right are one past the last pixel.
        number: the value of its pixels in the array of labels.
    """

    area: int
    top: int
    bottom: int
    left: int
    right: int
    number: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def connected_components(mask: npt.NDArray[np.bool_]) -> tuple[list[Component], npt.NDArray[np.int64]]:
    """The connected parts of a mask, the largest first, and the number of each pixel's part (-1 for none).

    Runs of pixels in each row are joined with the runs they touch in the row above, by union-find.

    >>> parts, labels = connected_components(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=bool))
    >>> [(part.area, part.height, part.width) for part in parts]
    [(2, 2, 2), (1, 1, 1)]
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    first = np.searchsorted(rows, np.arange(height + 1))  # the first run of each row
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    start, end, border = starts.tolist(), ends.tolist(), first.tolist()
    for row in range(1, height):
        above, here = border[row - 1], border[row]
        stop_above, stop = here, border[row + 1]
        while above < stop_above and here < stop:
            if start[above] <= end[here] and start[here] <= end[above]:  # a shared corner is enough
                parent[root(here)] = root(above)
            if end[above] < end[here]:
                above += 1
            else:
                here += 1
    roots = np.array([root(run) for run in range(len(rows))], dtype=np.int64)
    labels = np.full((height, width), -1, dtype=np.int64)
    labels[mask] = np.repeat(roots, ends - starts)
    parts = []
    for number in np.unique(roots).tolist():
        runs = roots == number
        parts.append(
            Component(
                int((ends[runs] - starts[runs]).sum()),
                int(rows[runs].min()),
                int(rows[runs].max()) + 1,
                int(starts[runs].min()),
                int(ends[runs].max()),
                number,
            )
        )
    return sorted(parts, key=lambda part: -part.area), labels
