"""Rules of the user's that several tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpumlp import Cache, Layer
from gpumlp.backends import Draws


class Scaled(Layer):
    """A complete layer of the user's, y = x * exp(v), in operations that every device has."""

    name = "test_scaled"

    def __init__(self, features: int, start: float = 0.0) -> None:
        super().__init__(features, features)
        self.start = start

    def options(self) -> dict[str, Any]:
        return {"features": self.in_features, "start": self.start}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"log_scale": (self.out_features,)}

    def initial(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"log_scale": np.full(self.out_features, self.start)}

    def forward(self, x: Any, cache: Cache, draws: Draws | None) -> None:
        xp = self.backend.xp
        xp.multiply(x, xp.exp(self.parameters["log_scale"]), out=cache.output)

    def backward(self, x: Any, cache: Cache, draws: Draws | None, input_delta: Any) -> None:
        xp = self.backend.xp
        if input_delta is not None:
            xp.multiply(cache.delta, xp.exp(self.parameters["log_scale"]), out=input_delta)
        xp.multiply(cache.delta, cache.output, out=cache.delta)
        self.backend.column_sums(cache.delta, self.gradients["log_scale"])
