"""Which of the marks in a picture are the digit: what surely is not is left out, the rest must fit together.

Lengths are relative to the digit's, the longer side of its box. The thresholds are set so that the digits of MNIST
that consist of several parts stay whole, at any size, and that two digits do not pass for one.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..data import DataError
from .components import Component, connected_components

_CONSIDERED = 40  # marks, the largest ones; a page with more of them holds no single digit
_SPECK = 0.04  # of the largest mark's area: smaller ones are specks, unless they are long
_SMALLEST = 0.03  # of the picture's longer side: smaller marks are not a digit
_DOT = 0.25  # of the digit: marks up to this length are dots, such as a decimal point
_LIGHT = 0.1  # of the digit's area: larger dots count as such only at a distance
_CLOSE = 0.1  # of the digit: what is closer may belong to it
_APART = 0.18  # of the digit: what is further away does not belong to it, ...
_BAR = 0.3  # ... except for the bar of a 5
_THIN = 0.1  # width by length of a line
_FLAT = 0.36  # slope of a line that counts as horizontal, 20 degrees
_SOLID = 0.68  # of its box: how much of it a blot or a punched hole fills at least
_STROKES = 1.6  # widths of a stroke: how far apart the parts of a digit are at most
_PILED = 1.6  # height by width from which two parts must be closer than this share of the height
_PILED_GAP = 0.12
_STROKE = 1.4  # times width by length: the area of a digit that is a plain stroke, at most
_HOLE = 0.02  # of the digit's box: smaller holes do not count, and a digit has two at most
_ENCLOSED = 0.72  # of the box: holes that fill more are those of a frame, not of a digit
_STRAIGHT = 0.3  # width by length of such a stroke
_LONG = 1.5  # a line at the top or bottom of a mark is this many times as long as the rest
_SHEET = 0.6  # of its box: how much of it a sheet of paper fills at least
_INNER = 0.2  # of a ring: smaller marks inside are dots
_HALF = 0.5  # of all directions, from which on a mark goes half around another
_AROUND = 0.85  # of all directions in which a ring or a frame is met from inside
_WIDEST, _TALLEST = 1.9, 2.0  # width by height, and height by width of a digit that is not a plain stroke
_DIRECTIONS = 72
_AT_EDGE = (
    "expected one digit, found a mark at the edge of the picture that comes close to it, perhaps a line or a "
    "shadow; cut the picture to the digit, with a margin"
)
_TOUCHES = "expected one digit, found a line or a frame that touches it; cut the picture to the digit"
_SEVERAL = "expected one digit, found several marks; cut the picture into one per digit"


class NoDigitError(DataError):
    """There is no digit in a picture, or it is not sure what belongs to it; the message says which."""


class UnsureError(NoDigitError):
    """What is at the edge of the picture, perhaps a shadow, comes close to the digit."""


class SheetError(UnsureError):
    """The largest mark is a sheet of paper, or covers most of the picture."""


class Mark:
    """A connected component with its shape."""

    def __init__(self, part: Component, labels: npt.NDArray[np.int64]) -> None:
        self.part = part
        self.pixels = labels[part.top : part.bottom, part.left : part.right] == part.number

    @cached_property
    def outline(self) -> npt.NDArray[np.float64]:
        """Coordinates ``(n, 2)`` of its outermost pixels, a sample of 1000 at most."""
        padded = np.pad(self.pixels, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        points = np.argwhere(self.pixels & ~inner) + np.array([self.part.top, self.part.left])
        if len(points) > 1000:  # at random: a fixed step may skip one side of a mark
            points = points[np.random.default_rng(0).choice(len(points), 1000, replace=False)]
        return np.asarray(points, dtype=np.float64)

    @cached_property
    def axis(self) -> tuple[float, float, float]:
        return _axis(np.argwhere(self.pixels))

    @property
    def stroke(self) -> float:
        """The mean width of its strokes."""
        padded = np.pad(self.pixels, 1)
        rim = sum(int((padded & ~np.roll(padded, shift, axis)).sum()) for shift in (-1, 1) for axis in (0, 1))
        return 2.4 * self.part.area / rim  # the rim counts a slanting edge 1.2 times on average

    @property
    def is_stroke(self) -> bool:
        """Whether it is one stroke, more or less straight."""
        return _is_stroke([self])

    @property
    def is_flat_stroke(self) -> bool:
        """Whether it is one stroke that is wider than high, such as the bar of a 5."""
        return self.is_stroke and self.part.width > self.part.height

    @property
    def is_line(self) -> bool:
        return self.axis[0] < _THIN

    @property
    def is_flat_line(self) -> bool:
        """Whether it is a straight line, nearly horizontal."""
        thin, y, x = self.axis
        return thin < _THIN and abs(y) < _FLAT * abs(x)

    @property
    def is_solid(self) -> bool:
        """Whether it is a compact spot, such as a punched hole or a blot."""
        part = self.part
        return part.area > _SOLID * part.height * part.width and 0.7 < part.height / part.width < 1.4

    def distance(self, other: Mark) -> float:
        """The smallest distance in pixels between two marks' outlines."""
        away = self.outline[:, None] - other.outline
        return float(np.sqrt((away * away).sum(axis=2).min()))

    def surrounds(self, other: Mark) -> float:
        """The share of directions in which it is met from the middle of another mark within its box."""
        box, part = self.part, other.part
        middle = (part.top + part.bottom) / 2, (part.left + part.right) / 2
        if not (box.top < middle[0] < box.bottom and box.left < middle[1] < box.right):
            return 0.0
        y, x = (self.outline - middle).T
        bins = np.floor(np.arctan2(y, x) / (2 * np.pi) * _DIRECTIONS).astype(int)
        return len(np.unique(bins)) / _DIRECTIONS


def choose_digit(
    parts: list[Component], labels: npt.NDArray[np.int64], *, use_edge: bool = True
) -> list[Component]:
    """The components that make up the digit, the largest first.

    Marks at the picture's edge, rings and frames around the digit, lines above and below it, punched holes, blots
    and dots beside it are left out.

    Args:
        parts: all components, the largest first.
        labels: the number of each pixel's component.
        use_edge: whether a digit may touch the picture's edge where nothing else is found.

    Raises:
        UnsureError: a mark at the edge comes close to the digit.
        NoDigitError: there is no digit, or there are marks that may be part of it or another digit.
    """
    height, width = labels.shape
    least = max(3.0, _SMALLEST * max(height, width))
    sized = [part for part in parts[:1000] if part.area >= _SPECK * parts[0].area or part.length >= 2 * least]
    marks = [Mark(part, labels) for part in sorted(sized, key=lambda part: -part.length)[:_CONSIDERED]]
    if parts and _is_sheet(parts[0], height, width):
        share = 100 * parts[0].area / (height * width)
        raise SheetError(f"no digit found: a single mark covers {share:.0f} % of the picture")
    inside = [mark for mark in marks if not mark.part.on_edge(height, width)]
    edge = [mark for mark in marks if mark.part.on_edge(height, width)]
    if not inside or inside[0].part.length <= 0.15 * max(height, width):
        if edge and not use_edge:
            raise UnsureError(_AT_EDGE)
        inside, edge = marks, []
    inside = _without_rings(inside)
    if not inside or inside[0].part.length < least:
        raise NoDigitError("no digit found: there are only specks on the page")
    kept = _with_parts(*_main(inside))
    size = _length(kept)
    if any(not mark.is_line and min(map(mark.distance, kept)) < _CLOSE * size for mark in edge) or any(
        min(map(mark.distance, kept)) < 3 for mark in edge
    ):
        raise UnsureError(_AT_EDGE)
    box = _box(kept)
    touched = (box.top == 0, box.bottom == height, box.left == 0, box.right == width)
    if sum(touched) == 2 and (all(touched[:2]) or all(touched[2:])):
        raise UnsureError(_AT_EDGE)
    _check_shape(kept)
    return sorted((mark.part for mark in kept), key=lambda part: -part.area)


def _without_rings(marks: list[Mark]) -> list[Mark]:
    """Without rings and frames around another mark."""
    rings = []
    for ring in marks:
        for inner in marks:
            if not _INNER < inner.part.length / ring.part.length < 1:
                continue
            around = ring.surrounds(inner)
            if around >= _AROUND:
                rings.append(ring)
                break
            if around > _HALF and ring.distance(inner) > 0.08 * ring.part.length:
                raise NoDigitError(
                    "expected one digit, found a mark that goes half around another; cut the picture to the digit"
                )
    return [mark for mark in marks if mark not in rings]


def _main(marks: list[Mark]) -> tuple[Mark, list[Mark]]:
    """The longest mark that is neither a spot nor a horizontal line, and the others."""
    longest = next((mark for mark in marks if not mark.is_solid and not mark.is_flat_line), marks[0])
    return longest, [mark for mark in marks if mark is not longest]


def _with_parts(main: Mark, others: list[Mark]) -> list[Mark]:
    """The digit: its main mark and the marks that belong to it, or to what belongs to it.

    Raises:
        NoDigitError: a mark may belong to it or not.
    """
    digit = [main]
    while True:
        verdicts = {mark: _belongs(mark, digit) for mark in others if mark not in digit}
        found = [mark for mark, verdict in verdicts.items() if verdict]
        if not found:
            break
        digit.append(min(found, key=lambda mark: min(map(mark.distance, digit))))
    if None in verdicts.values():
        raise NoDigitError(_SEVERAL)
    return digit


def _belongs(mark: Mark, digit: list[Mark]) -> bool | None:
    """Whether a mark is part of the digit as found so far; False if it surely is not, None if that is not sure."""
    gap = min(map(mark.distance, digit)) - 1
    size = _length(digit)
    part, box = mark.part, _box(digit)
    light = part.area < _LIGHT * sum(other.part.area for other in digit)
    if part.length < _DOT * size and gap > (0.5 * _CLOSE if light else _APART) * size:
        return False
    beside = part.left >= box.right or part.right <= box.left
    if mark.is_solid and gap > 0.03 * size and part.length > 0.12 * size:
        return False if gap > _CLOSE * size else None
    union = _box([*digit, mark])
    below = part.top > box.bottom and not digit[0].is_flat_stroke
    reach = (_CLOSE if beside or below else _BAR) * union.length
    margin = 0.05 * size
    wide = part.left < box.left - margin and part.right > box.right + margin
    if mark.is_flat_line and not beside and (gap > reach or (wide and gap > 0.5 * margin)):
        return False
    limit = min(_APART * union.length, _STROKES * max(mark.stroke, *(other.stroke for other in digit)) + 2)
    if mark.is_flat_stroke or (len(digit) == 1 and digit[0].is_flat_stroke and part.top > box.top):
        limit = reach
    elif beside and part.length > _DOT * size:
        limit = 0
    elif union.height > _PILED * union.width and not mark.is_stroke:
        limit = min(limit, _PILED_GAP * union.height)
    return True if gap <= limit else None


def _check_shape(digit: list[Mark]) -> None:
    """Raise `NoDigitError` if the parts together do not have the proportions of one digit."""
    box = _box(digit)
    tall = [
        mark.part
        for mark in digit
        if mark.part.height > 0.6 * box.height and mark.part.area > 0.35 * digit[0].part.area
    ]
    side_by_side = any(one.right <= other.left for one in tall for other in tall)
    piled = len(digit) > 1 and box.height > _TALLEST * box.width
    if side_by_side or ((piled or box.width > _WIDEST * box.height) and not _is_stroke(digit)):
        raise NoDigitError(_SEVERAL)
    ink = np.concatenate([mark.outline for mark in digit])
    strip = 0.15 * box.height
    for end in (ink[:, 0] < box.top + strip, ink[:, 0] >= box.bottom - strip):
        line, rest = (float(np.ptp(ink[where, 1])) if where.any() else 0.0 for where in (end, ~end))
        if line > max(_LONG * rest, 1.2 * box.height):
            raise NoDigitError(_TOUCHES)
    holes = [area / (box.height * box.width) for area in _holes(digit)]
    if sum(holes) > _ENCLOSED or sum(hole > _HOLE for hole in holes) > 2:
        raise NoDigitError(_TOUCHES)


def _holes(digit: list[Mark]) -> list[int]:
    """The areas of what the digit's largest mark encloses."""
    parts, _ = connected_components(~np.pad(digit[0].pixels, 1))
    return [part.area for part in parts if part.top > 0]


def _is_stroke(digit: list[Mark]) -> bool:
    """Whether the parts together are one stroke, more or less straight, such as a 1."""
    box = _box(digit)
    if box.area > _STROKE * float(np.hypot(box.height, box.width)) * max(mark.stroke for mark in digit):
        return False
    points = [np.argwhere(mark.pixels) + np.array([mark.part.top, mark.part.left]) for mark in digit]
    return _axis(np.concatenate(points))[0] < _STRAIGHT


def _is_sheet(part: Component, height: int, width: int) -> bool:
    """Whether a part is large and roughly a rectangle, such as a sheet of paper on a table."""
    large = part.height > max(20, 0.4 * height) and part.width > max(20, 0.4 * width)
    solid = part.area > _SHEET * part.height * part.width
    return large and solid and 0.4 < part.height / part.width < 2.5


def _axis(points: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """Width by length of the ellipse with the same moments as pixels ``(n, 2)``, and its direction (y, x)."""
    away = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(away.T @ away / len(points) + np.eye(2) / 12)
    return float(np.sqrt(values[0] / values[1])), float(vectors[0, 1]), float(vectors[1, 1])


def _box(marks: list[Mark]) -> Component:
    parts = [mark.part for mark in marks]
    return Component(
        sum(part.area for part in parts),
        min(part.top for part in parts),
        max(part.bottom for part in parts),
        min(part.left for part in parts),
        max(part.right for part in parts),
        -1,
    )


def _length(marks: list[Mark]) -> int:
    return _box(marks).length
