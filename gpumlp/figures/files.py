"""Figures as files: a picture for the screen, one for print, and the numbers."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import gpumlp

from ..files import write_atomically
from .style import FigureResult, in_house_style

_DIGITS = 7  # significant ones in the file of the numbers, as many as float32 has


@in_house_style
def save(folder: Path, name: str, result: FigureResult) -> list[Path]:
    """Write ``NAME.png``, ``NAME.svg`` and ``NAME.json``, each whole or not at all; old ones are replaced.

    The same figure gives the same files. Floats in the last one have 7 digits, and null stands for what is no
    finite number.

    Raises:
        OSError: a file cannot be written.
    """
    contents = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        result.figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
        contents[kind] = buffer.getvalue()
    report = {"figure": name, "gpumlp": gpumlp.__version__, **plain(result.numbers)}
    contents["json"] = (json.dumps(report, allow_nan=False, ensure_ascii=False) + "\n").encode()
    paths = [folder / f"{name}.{kind}" for kind in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomically(path, content)
    return paths


def plain(value: Any) -> Any:
    """Numbers as JSON can hold them: arrays as lists, floats with 7 significant digits, None for NaN and infinity.

    >>> plain({"a": np.array([1 / 3, np.nan]), "n": np.int64(2)})
    {'a': [0.3333333, None], 'n': 2}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
