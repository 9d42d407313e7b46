"""Connected parts of a mask: those that SciPy finds, the largest first."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp.data.components import connected_components


def test_connected_parts_agree_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")
    rng = np.random.default_rng(0)
    for density in (0.05, 0.3, 0.45, 0.6, 0.95):
        mask = rng.random((40, 57)) < density
        parts, labels = connected_components(mask)
        expected, count = ndimage.label(mask, structure=np.ones((3, 3)))
        assert len(parts) == count
        for part in parts:
            inside = labels == part.number
            assert inside.sum() == part.area
            assert len(set(expected[inside])) == 1
            rows, columns = np.nonzero(inside)
            assert (part.top, part.bottom) == (rows.min(), rows.max() + 1)
            assert (part.left, part.right) == (columns.min(), columns.max() + 1)
    assert [part.area for part in parts] == sorted((part.area for part in parts), reverse=True)


def test_a_mask_may_be_empty_or_full() -> None:
    assert connected_components(np.zeros((3, 4), dtype=bool))[0] == []
    assert [part.area for part in connected_components(np.ones((3, 4), dtype=bool))[0]] == [12]
