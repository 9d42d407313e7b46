"""Pictures for a page: small PNG files as data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from ..backends import HostArray

_LEVELS = 32  # grey or colour levels: more would cost bytes that nobody sees
# As the figures': ever brighter from below 0 to above it, for the colour-blind and for a grey print.
_WEIGHTS, _BETWEEN = "cividis", (255, 255, 255)


def grey(image: HostArray, background: float, ink: float) -> str:
    """A sample as a data URI: ``(height, width)``, black ground and white ink."""
    span = ink - background or 1.0
    shares = np.clip((image.astype(np.float64) - background) / span, 0, 1)
    levels = np.rint(shares * (_LEVELS - 1)) * (255 / (_LEVELS - 1))
    return _png(levels.astype(np.uint8), None)


def mosaic(weight: HostArray, shape: tuple[int, int], units: int) -> tuple[str, list[int], float]:
    """The weights of the units whose weights are largest, side by side in one picture.

    Args:
        weight: ``(inputs, units)``.
        shape: of an image, height and width.
        units: how many to show at most.

    Returns:
        A data URI, the units in the picture's order, and the weight of full colour.
    """
    from matplotlib import colormaps

    weight = weight.astype(np.float64)
    chosen = np.argsort(-np.linalg.norm(weight, axis=0), kind="stable")[:units]
    images = weight[:, chosen].T.reshape(-1, *shape)
    limit = float(np.quantile(np.abs(images), 0.998)) or 1.0
    columns = min(len(images), 8)
    rows = -(-len(images) // columns)
    height, width = shape
    middle = _LEVELS // 2
    levels = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), _LEVELS, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        steps = np.rint(np.clip(image / limit, -1, 1) * (middle - 1)) + middle
        levels[top : top + height, left : left + width] = steps
    shares = (np.arange(_LEVELS) - middle) / (middle - 1)  # of the limit; the first is not used
    palette = colormaps[_WEIGHTS]((shares + 1) / 2, bytes=True)[:, :3]
    colours = [*palette.ravel().tolist(), *_BETWEEN]  # the last: lines between the units
    return _png(levels, colours), [int(unit) for unit in chosen], limit


def _png(levels: HostArray, palette: list[int] | None) -> str:
    from PIL import Image

    picture: Any = Image.fromarray(levels)
    if palette is not None:
        picture.putpalette(palette)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
