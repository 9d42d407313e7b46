"""Figures of what a network learns, every one drawn from computations of the package's own.

Each is a function that computes, draws and returns a `FigureResult`: the matplotlib figure and the numbers
behind it. ``python -m gpumlp.figures`` writes them into files. Needs matplotlib: ``pip install '.[report]'``.

>>> from gpumlp.figures import FIGURES
>>> list(FIGURES)[:2]
['backpropagation', 'activations']
"""

from __future__ import annotations

from collections.abc import Callable

from .backpropagation import backpropagation
from .curves import learning_curves
from .descent import trajectories
from .features import first_layer_weights
from .flow import gradient_flow
from .initial import initial_weights, initialization_scale
from .noise import optimizer_noise
from .penalised import regularization
from .rules import activations, schedules
from .style import FigureResult

FIGURES: dict[str, Callable[..., FigureResult]] = {
    figure.__name__: figure
    for figure in (
        backpropagation,
        activations,
        gradient_flow,
        trajectories,
        schedules,
        initialization_scale,
        initial_weights,
        regularization,
        first_layer_weights,
        learning_curves,
        optimizer_noise,
    )
}

__all__ = [
    "FIGURES",
    "FigureResult",
    "activations",
    "backpropagation",
    "first_layer_weights",
    "gradient_flow",
    "initial_weights",
    "initialization_scale",
    "learning_curves",
    "optimizer_noise",
    "regularization",
    "schedules",
    "trajectories",
]
