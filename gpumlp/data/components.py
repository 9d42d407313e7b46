"""Connected parts of a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Component:
    """Pixels that hang together by sides or corners.

    Attributes:
        area: how many.
        top, bottom, left, right: its box; bottom and right are one past the last pixel.
        number: of its pixels in the array of labels.
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

    Runs of each row are joined with those they touch in the row above, by union and find.

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
