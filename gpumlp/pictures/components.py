"""Connected components of a mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Component(NamedTuple):
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

    @property
    def length(self) -> int:
        return max(self.height, self.width)

    def on_edge(self, height: int, width: int) -> bool:
        """Whether it touches the edge of a picture of this size."""
        return self.top == 0 or self.left == 0 or self.bottom == height or self.right == width


def connected_components(mask: npt.NDArray[np.bool_]) -> tuple[list[Component], npt.NDArray[np.int64]]:
    """The connected parts of a mask, the largest first, and the number of each pixel's part (-1 for none).

    The runs of pixels in each row are the nodes of a graph, joined with the runs that they touch in the row above;
    a part is a connected component of the graph. Time and memory are linear in the number of pixels.

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
    labels = np.full((height, width), -1, dtype=np.int64)
    if not len(rows):
        return [], labels
    above = (rows - 1) * (width + 2)  # runs in order of row and column; a shared corner is enough to touch
    first = np.searchsorted(rows * (width + 2) + ends, above + starts, "left")
    touched = np.maximum(np.searchsorted(rows * (width + 2) + starts, above + ends, "right") - first, 0)
    run = np.repeat(np.arange(len(rows)), touched)
    other = np.arange(len(run)) + np.repeat(first - (touched.cumsum() - touched), touched)
    _, number = np.unique(_joined(len(rows), run, other), return_inverse=True)
    labels[mask] = np.repeat(number, ends - starts)
    area = np.bincount(number, ends - starts).astype(np.int64)
    box = [np.full(len(area), height + width), np.zeros(len(area), dtype=np.int64)]
    box += [array.copy() for array in box]
    for reduce, extreme, values in zip(
        (np.minimum, np.maximum, np.minimum, np.maximum), box, (rows, rows + 1, starts, ends), strict=True
    ):
        reduce.at(extreme, number, values)
    order = np.argsort(-area, kind="stable")
    values = np.stack([area, *box, np.arange(len(area))])[:, order]
    return [Component(*part) for part in values.T.tolist()], labels


def _joined(count: int, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The smallest node of each node's component, in a graph with edges from `one` to `other`."""
    root = np.arange(count)
    while len(one):
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        apart = low != high
        one, other = one[apart], other[apart]
        np.minimum.at(root, high[apart], low[apart])
        while not np.array_equal(root, further := root[root]):
            root = further
    return root
