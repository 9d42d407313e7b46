"""Find the ink in a picture of a digit, for any paper and light."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .components import Component, connected_components
from .marks import Mark, NoDigitError, SheetError, UnsureError, choose_digit

Grey: TypeAlias = npt.NDArray[Any]  # (height, width), floating, 0..1

_COARSE = 48  # blocks on the longer side, for measuring the paper's brightness
_FAINTEST = 0.08  # of the range from black to white: fainter marks count as dirt
_NOISE = 5.0  # standard deviations of the paper's noise that a mark must exceed
_MOST_NOISE = 0.3  # of the range: larger estimates are the ink itself, in a picture full of it
_FAINT = 0.38  # of the ink's strength: marks from here on may be ink in a shadow
_FAINT_PART = 0.05  # of the digit's area: fewer faint pixels, without those at the rims, are dirt
_STROKE = 0.3  # of the picture's longer side: wider than any pen's stroke


def find_ink(grey: Grey) -> Grey:
    """The amount of ink in each pixel of the box around the digit.

    1. The paper's brightness is a quadratic surface, fitted to the blocks that do not stand out, beginning with
       the picture's rim. This removes uneven light.
    2. The ink is whichever there is more of, marks darker or lighter than the paper. Dark marks are measured
       relative to the paper's brightness, since light falls on both.
    3. Marks fainter than the paper's noise are left out, and so is what is surely not part of the digit, see
       `choose_digit`. The rest is the digit, in any number of parts.
    4. 15 % of the ink's strength and less becomes 0, 85 % and more becomes 1.

    Where the digit cannot be told from what is at the picture's edge, such as a shadow or the table around a sheet
    of paper, the paper's brightness is measured anew: in each pixel, it is that of the brightest square around it
    that is wider than a pen's stroke (a morphological closing; the darkest square, an opening, for light ink).

    Args:
        grey: ``(height, width)``, 0 black, 1 white.

    Returns:
        ``(rows, columns)`` float32 of the smallest box that holds the digit: 0 is paper, 1 is ink.

    Raises:
        NoDigitError: the picture is of one colour, empty, or full of ink, or holds several marks.
    """
    height, width = grey.shape
    if float(np.ptp(grey)) < _FAINTEST:
        raise NoDigitError(f"no digit found: the picture is {_shade(float(grey.mean()))} all over")
    smooth = _smoothed(np.asarray(grey, dtype=np.float64), max(height, width) // 160)
    paper = _paper(smooth)
    marks = smooth - paper
    least = _least(marks)
    dark, light = np.maximum(-marks - least, 0), np.maximum(marks - least, 0)
    try:
        strength = -marks / np.maximum(paper, 0.2) if dark.sum() >= light.sum() else marks
        return _Marks(strength, least).ink(use_edge=False)
    except UnsureError:
        reach = round(_STROKE * max(height, width) / 2)
        closed = _extreme(_extreme(smooth, reach, np.maximum), reach, np.minimum)
        opened = _extreme(_extreme(smooth, reach, np.minimum), reach, np.maximum)
        ways = [(closed - smooth) / np.maximum(closed, 0.2), smooth - opened]
        found = [_Marks(way - np.median(way), _least(way - np.median(way))) for way in ways]
        if any(marks.cross() for marks in found):
            raise
        # What lies between strokes of ink is shorter than the ink itself; a sheet of paper on a table is not.
        one, other = sorted(found, key=_Marks.longest)
        try:
            return other.ink()
        except SheetError:
            return one.ink()


class _Marks:
    """What differs from the paper.

    Args:
        strength: how much each pixel differs.
        least: strength that a mark must exceed.
    """

    def __init__(self, strength: Grey, least: float) -> None:
        beyond = strength[strength > least]
        self.strength, self.least = strength, least
        self.level = float(np.percentile(beyond, 90)) if beyond.size else 1.0
        self.parts, self.labels = connected_components(strength > max(least, 0.5 * self.level))

    def longest(self) -> int:
        """Length of the longest mark."""
        return max((part.length for part in self.parts), default=0)

    def cross(self) -> bool:
        """Whether the largest mark runs from one edge of the picture to the opposite one, touching no other."""
        height, width = self.strength.shape
        part = self.parts[0] if self.parts else Component(0, 0, 0, 0, 0, -1)
        ends = [(part.top == 0, part.bottom == height), (part.left == 0, part.right == width)]
        return any(all(pair) for pair in ends) and not all(any(pair) for pair in ends)

    def ink(self, *, use_edge: bool = True) -> Grey:
        """The digit's ink, within its box."""
        if not self.parts:
            raise NoDigitError("no digit found: the page is empty, or the digit is too faint for its noise")
        kept = choose_digit(self.parts, self.labels, use_edge=use_edge)
        chosen = np.isin(self.labels, [part.number for part in kept])
        if self._fades(kept, chosen):
            kind = NoDigitError if use_edge else UnsureError
            raise kind(
                "expected one digit, found fainter marks beside it, perhaps in a shadow; "
                "take the picture in even light"
            )
        top, bottom = min(part.top for part in kept), max(part.bottom for part in kept)
        left, right = min(part.left for part in kept), max(part.right for part in kept)
        near = _grown(chosen, 1 + max(chosen.shape) // 160)  # the soft edges belong to the ink
        ink = np.where(near, np.clip((self.strength / self.level - 0.15) / 0.7, 0, 1), 0)
        return np.asarray(ink[top:bottom, left:right], dtype=np.float32)

    def _fades(self, kept: list[Component], chosen: npt.NDArray[np.bool_]) -> bool:
        """Whether a digit goes on in fainter strokes, as light ink in a shadow does."""
        box = slice(*_around(kept, 0)), slice(*_around(kept, 1))
        stroke = max(Mark(part, self.labels).stroke for part in kept[:3])
        faint = self.strength[box] > max(self.least, _FAINT * self.level)
        faint &= ~_grown(self.labels[box] >= 0, 1 + round(stroke / 2))
        reach = max(1, round(stroke / 4))
        thick = _extreme(faint.astype(np.float64), reach, np.minimum)
        return float(thick.sum()) > _FAINT_PART * float(chosen.sum())


def _around(parts: list[Component], axis: int) -> tuple[int, int]:
    """The span of parts along an axis, with their length on each side."""
    start = min(part.left if axis else part.top for part in parts)
    stop = max(part.right if axis else part.bottom for part in parts)
    length = max(part.length for part in parts)
    return max(0, start - length), stop + length


def _least(marks: Grey) -> float:
    """The strength that a mark must exceed."""
    return max(_FAINTEST, min(_NOISE * _spread(marks), _MOST_NOISE))


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


def _extreme(values: Grey, reach: int, extreme: np.ufunc) -> Grey:
    """The maximum or minimum over squares with sides of 2 reach + 1 pixels, smaller at the rim."""
    for axis in (0, 1):
        size = values.shape[axis]
        margin = [(reach, reach) if axis == other else (0, 0) for other in (0, 1)]
        values = np.pad(values, margin, mode="edge")
        span = 1
        while span < 2 * reach + 1:  # a window of twice the length is two windows, one shifted
            shift = min(span, 2 * reach + 1 - span)
            count = values.shape[axis] - shift
            values = extreme(values.take(range(count), axis), values.take(range(shift, count + shift), axis))
            span += shift
        assert values.shape[axis] == size
    return values


def _grown(mask: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.bool_]:
    """A mask extended by `reach` pixels on all sides."""
    return _smoothed(mask.astype(np.float64), reach) > 1e-9


def _shade(brightness: float) -> str:
    return "black" if brightness < 0.1 else "white" if brightness > 0.9 else "the same grey"
