"""What the tests of figures share: each figure once, small, and from the built-in digits."""

from __future__ import annotations

from functools import cache
from typing import Any

from gpumlp import figures, load_digits

SMALL: dict[str, dict[str, Any]] = {
    "gradient_flow": {"samples": 600, "probe": 200, "units": 32, "epochs": 2, "large": 2.0},
    "initialization_scale": {"seeds": 5, "epochs": 200, "scales": (0.01, 1.0)},
    "regularization": {"samples": 400, "validation": 800, "epochs": 20},
    "optimizer_noise": {
        "samples": 500,
        "probe": 300,
        "batch_epochs": 10,
        "mini_batch_epochs": 3,
        "single_epochs": 1,
    },
}
FROM_DATA = {"gradient_flow", "regularization", "first_layer_weights", "learning_curves", "optimizer_noise"}


@cache
def result(name: str) -> figures.FigureResult:
    """Each figure once for all tests, small, and from the built-in digits."""
    data = {"data": load_digits()} if name in FROM_DATA else {}
    return figures.FIGURES[name](**data, **SMALL.get(name, {}))


def numbers(name: str) -> dict[str, Any]:
    return result(name).numbers
