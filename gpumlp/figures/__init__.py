"""Figures of how networks learn, each computed with the package itself, and of what was measured with the records.

Each is a function that computes, draws and returns a `FigureResult`: the matplotlib figure and its numbers.
``python -m gpumlp.figures`` writes them to files. Needs matplotlib: ``pip install ".[report]"``.

>>> from gpumlp.figures import FIGURES
>>> list(FIGURES)[:2]
['backpropagation', 'activations']
"""

from __future__ import annotations

from collections.abc import Callable

from .descent import optimizer_noise, schedules, trajectories
from .distortions import distortion
from .fitting import learning_curves, regularization
from .gradients import activations, backpropagation, gradient_flow
from .results import mistakes, records
from .style import FigureResult
from .weights import first_layer_weights, initial_weights, initialization_scale

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
        distortion,
        records,
        mistakes,
    )
}

__all__ = [
    "FIGURES",
    "FigureResult",
    "activations",
    "backpropagation",
    "distortion",
    "first_layer_weights",
    "gradient_flow",
    "initial_weights",
    "initialization_scale",
    "learning_curves",
    "mistakes",
    "optimizer_noise",
    "records",
    "regularization",
    "schedules",
    "trajectories",
]
