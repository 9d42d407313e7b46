"""Synthetic photographs: a digit on noisy paper in uneven light; a plain ring; the content of picture files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

SIZE = (210, 280)  # pixels, height and width


def pillow() -> Any:
    """``PIL.Image``; tests that need it skip where Pillow is not installed."""
    return pytest.importorskip("PIL.Image", reason='Pillow is not installed: pip install ".[images]"')


def photograph(
    ink: np.ndarray, rng: np.random.Generator, noise: float = 0.06, dark_ink: bool = True, largest: float = 0.9
) -> np.ndarray:
    """A picture ``(210, 280)`` uint8 of a digit ``(h, h)``, 0 paper and 1 ink, of 45 to 90 % of its height."""
    image = pillow()
    height, width = SIZE
    side = int(rng.uniform(0.45, largest) * height)
    enlarged = image.fromarray(np.rint(255 * ink).astype(np.uint8)).resize((side, side), image.Resampling.BICUBIC)
    page = np.zeros(SIZE)
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    page[top : top + side, left : left + side] = np.asarray(enlarged) / 255
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.8 + 0.25 * (x * np.cos(angle) + y * np.sin(angle))
    brightness = light * (1 - rng.uniform(0.5, 0.85) * page) if dark_ink else 0.2 * light + 0.6 * page
    return np.rint(255 * np.clip(brightness + rng.normal(0, noise, SIZE), 0, 1)).astype(np.uint8)


def ring(side: int = 120, outer: float = 40, inner: float = 28, middle: tuple[int, int] = (50, 64)) -> np.ndarray:
    """A ring, 1 on 0, like a handwritten zero."""
    y, x = np.indices((side, side))
    distance = np.hypot(y - middle[0], 1.5 * (x - middle[1]))
    return ((distance < outer) & (distance > inner)).astype(np.float32)


def as_file(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """The content of a picture file."""
    buffer = io.BytesIO()
    pillow().fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
