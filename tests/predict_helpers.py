"""What the tests of gpumlp.predict share: saved networks that were never trained, and what was printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP
from gpumlp.nn.model_file import Inputs

Captured = pytest.CaptureFixture[str]


def network(folder: Path, shape: tuple[int, ...], dtype: str, data: str, classes: int = 10) -> MLP:
    """An untrained network that takes such samples, saved."""
    model = MLP([int(np.prod(shape)), 8, classes], device="cpu")
    model.inputs = Inputs(shape, dtype, data)
    model.save(folder)
    return model


def output(capsys: Captured) -> Any:
    return json.loads(capsys.readouterr().out)
