"""Figure of optimizers on a quadratic surface that can be seen as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import HostArray
from ..nn import SGD, Adam
from ..nn.optimizers import Optimizer
from .style import (
    BLACK,
    BLUE,
    DASH_DOT,
    DASHED,
    DOTTED,
    GREEN,
    ORANGE,
    PURPLE,
    SOLID,
    VERMILION,
    FigureResult,
    Sheet,
    in_house_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVATURE = np.array([1.0, 4.0])  # of the surface 0.5 x^2 + 2 y^2
_LOOKS = (
    (BLUE, SOLID),
    (VERMILION, DOTTED),
    (GREEN, DASHED),
    (PURPLE, DASH_DOT),
    (ORANGE, (0, (3, 1, 1, 1, 1, 1))),
)


def surface(x: HostArray, y: HostArray) -> HostArray:
    """f(x, y) = 0.5 x^2 + 2 y^2."""
    height: HostArray = 0.5 * CURVATURE[0] * x**2 + 0.5 * CURVATURE[1] * y**2
    return height


@in_house_style
def trajectories(
    *,
    seed: int = 0,
    steps: int = 80,
    start: tuple[float, float] = (-1.8, 1.8),
    points: int = 50,
    spread: float = 0.35,
) -> FigureResult:
    """Five optimizers on 0.5 x^2 + 2 y^2, by the package's own rules.

    The surface is the mean of as many like it, each around a point of its own; the points' mean is the origin. All
    optimizers follow its gradient, but the stochastic one that of one point at each step: nothing is added to it.

    Args:
        seed: of the points and of their order.
        steps: of each optimizer.
        start: x and y.
        points: how many.
        spread: their standard deviation in x and y.

    Returns:
        The figure; in ``paths``, by name, the ``optimizer``, its ``positions`` ``(steps + 1, 2)`` and the
        ``heights`` f there; ``points`` ``(points, 2)``.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(0.0, spread, (points, 2))
    centres -= centres.mean(axis=0)
    rules: dict[str, Optimizer] = {
        "batch gradient descent": SGD(0.1),
        "stochastic": SGD(0.1),
        "momentum": SGD(0.1, momentum=0.8),
        "Nesterov": SGD(0.1, momentum=0.8, nesterov=True),
        "Adam": Adam(0.1),
    }
    paths: dict[str, dict[str, Any]] = {}
    for name, rule in rules.items():
        order = np.concatenate([rng.permutation(points) for _ in range(-(-steps // points))])
        positions = _descend(rule, start, steps, centres[order] if name == "stochastic" else np.zeros((steps, 2)))
        heights = surface(positions[:, 0], positions[:, 1])
        paths[name] = {"optimizer": repr(rule), "positions": positions, "heights": heights}
    sheet = Sheet(
        "Optimizers on f = 0.5 x² + 2 y²",
        f"{steps} steps from ({start[0]:g}, {start[1]:g}) with learning rate 0.1, momentum 0.8. f is, but for a "
        f"constant, the mean of {points} such surfaces around points of their own (grey); the stochastic steps "
        "follow the gradient of one of them at a time, all others that of f.",
        2,
        3,
        height=5.3,
    )
    for axes, (name, path), (colour, _) in zip(sheet.panels, paths.items(), _LOOKS, strict=False):
        _draw_path(axes, path["positions"], colour, centres if name == "stochastic" else None)
        axes.set(title=name, xlabel="x")
    for axes in sheet.panels[:4:3]:
        axes.set_ylabel("y")
    _draw_heights(sheet.panels[5], paths)
    return sheet.result({"paths": paths, "points": centres})


def _descend(rule: Optimizer, start: tuple[float, float], steps: int, centres: HostArray) -> HostArray:
    """Where an optimizer goes, ``(steps + 1, 2)``; each step's surface is around a row of `centres`."""
    theta = np.array(start, dtype=np.float64)
    state, positions = rule.init(theta), [theta.copy()]
    for centre in centres[:steps]:
        rule.update(np, theta, CURVATURE * (theta - centre), state, rule.learning_rate)
        positions.append(theta.copy())
    return np.array(positions)


def _draw_path(axes: Axes, positions: HostArray, colour: str, centres: HostArray | None) -> None:
    grid = np.linspace(-2.2, 2.2, 120)
    heights = surface(grid[None, :], grid[:, None])
    axes.contour(grid, grid, heights, levels=[0.1, 0.5, 1.5, 3, 5, 8], colors="#c4c4c4", linewidths=0.8)
    if centres is not None:
        axes.plot(*centres.T, ".", color="#777777", markersize=3)
    axes.plot(*positions.T, color=colour, linewidth=1.1, marker="o", markersize=2.6)
    axes.plot(*positions[0], marker="s", color=BLACK, markersize=5)
    axes.plot(0, 0, marker="x", color=BLACK, markersize=7, markeredgewidth=1.6)
    axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal", yticks=range(-2, 3))
    axes.grid(visible=False)


def _draw_heights(axes: Axes, paths: dict[str, dict[str, Any]]) -> None:
    for (name, path), (colour, line) in zip(paths.items(), _LOOKS, strict=True):
        axes.plot(path["heights"], color=colour, linestyle=line, linewidth=1.4, label=name.split(" ")[0])
    axes.set_yscale("log")
    axes.set(title="height over steps", xlabel="step", ylabel="f (above its minimum)", ylim=(1e-14, 30))
    axes.legend(loc="lower left", handlelength=2.6, fontsize=7.5)
