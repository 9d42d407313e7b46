"""Figures of initial weights: what their scale does to a training, and what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import Backend, HostArray
from ..data import Dataset
from ..nn import MLP, SGD, Glorot, He, Normal, Penalty
from ..nn.initializers import Initializer
from ..training.step import TrainingStep
from .style import BLACK, BLUE, DASHED, DOTTED, GREEN, SOLID, VERMILION, FigureResult, Sheet, in_house_style, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

XOR = ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0])
_SOLVED = 0.1  # nats; a network that leaves a point undecided ends at 0.35 or above


@in_house_style
def initialization_scale(
    *,
    seed: int = 0,
    seeds: int = 20,
    epochs: int = 500,
    scales: Sequence[float] = (0.01, 0.1, 1.0, 3.0),
    device: str | Backend = "cpu",
) -> FigureResult:
    """XOR, learned by a 2-4-2 tanh network from initial weights of several scales.

    Args:
        seed: the first of the seeds.
        seeds: trainings from each scale.
        epochs: of each training: steps of gradient descent on all four points, learning rate 0.5.
        scales: standard deviations of normal initial weights; Glorot's and He's are added.
        device: as for `MLP`.

    Returns:
        The figure; in ``starts``, by name: ``losses`` ``(seeds, epochs)``, each before its step, their ``mean``
        and ``std`` over the seeds by epoch, and ``solved``, how many of the trainings ended below 0.1 nats.
    """
    rules: dict[str, Initializer] = {f"normal, scale {scale:g}": Normal(scale) for scale in scales}
    rules |= {"Glorot": Glorot(), "He": He()}
    data = Dataset(*XOR, classes=2, name="xor")
    starts: dict[str, dict[str, Any]] = {}
    for name, rule in rules.items():
        losses = np.array([_learn(data, rule, seed + index, epochs, device) for index in range(seeds)])
        starts[name] = {
            "losses": losses,
            "mean": losses.mean(axis=0),
            "std": losses.std(axis=0),
            "solved": int((losses[:, -1] < _SOLVED).sum()),
        }
    sheet = Sheet(
        "XOR from initial weights of several scales",
        f"A 2-4-2 tanh network, {epochs} steps of gradient descent (learning rate 0.5) on all four points, from "
        f"{seeds} seeds. Thin: each training; thick: their mean; shaded: one standard deviation to both sides. "
        f"Solved: below {_SOLVED:g} nats at the end.",
        -(-len(rules) // 3),
        3,
        height=2.35 * -(-len(rules) // 3),
        sharex=True,
        sharey=True,
    )
    for axes, (name, start) in zip(sheet.panels, starts.items(), strict=False):
        _draw_losses(axes, start)
        axes.set_title(name)
        note(axes, f"solved: {start['solved']} of {seeds}", x=0.97, y=0.95)
    for axes in sheet.panels[len(starts) :]:
        axes.set_visible(False)
    for axes in sheet.panels[-3:]:
        axes.set_xlabel("step")
    for axes in sheet.panels[::3]:
        axes.set_ylabel("loss (nats)")
    return sheet.result({"starts": starts})


def _learn(data: Dataset, rule: Initializer, seed: int, steps: int, device: str | Backend) -> HostArray:
    """The losses before each step. The steps alone: a trainer's care about epochs takes longer than these do."""
    model = MLP([2, 4, 2], "tanh", initializer=rule, seed=seed, device=device)
    backend, optimizer = model.backend, SGD(0.5)
    with backend.activate():
        batches = data.batches(len(data), backend, model.dtype)
        step = TrainingStep(model, batches, optimizer, optimizer.init(model.parameters.data), Penalty())
        losses = backend.xp.empty((steps, len(data)), dtype=model.dtype)
        for row in losses:
            step(batches.slices[0], optimizer.learning_rate)
            row[...] = step.losses
        means: HostArray = backend.to_numpy(losses).mean(axis=1, dtype="float64")
    return means


def _draw_losses(axes: Axes, start: dict[str, Any]) -> None:
    mean, std = start["mean"], start["std"]
    steps = np.arange(len(mean))
    axes.plot(steps, start["losses"].T, color=BLUE, linewidth=0.5, alpha=0.45)
    axes.fill_between(steps, np.maximum(mean - std, 0), mean + std, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(steps, mean, color=VERMILION, linewidth=2.2)
    axes.set(xlim=(0, len(mean) - 1), ylim=(0, 1.5))


@in_house_style
def initial_weights(
    *, seed: int = 0, sizes: Sequence[int] = (784, 128, 64, 10), scale: float = 0.01, device: str | Backend = "cpu"
) -> FigureResult:
    """The initial weights of a network by layer, and their variances against the theory.

    Args:
        seed: of the weights.
        sizes: of the network.
        scale: standard deviation of the normal ones.
        device: as for `MLP`.

    Returns:
        The figure; in ``variances``, by initializer (normal, Glorot, He), a row for each layer: its ``shape``, the
        ``theoretical`` and ``measured`` variance, and the ``sampling_error``, the standard deviation that the
        measured one has by chance.
    """
    rules: dict[str, Initializer] = {f"normal, scale {scale:g}": Normal(scale), "Glorot": Glorot(), "He": He()}
    drawn = {name: _weights(sizes, rule, seed, device) for name, rule in rules.items()}
    variances: dict[str, list[dict[str, Any]]] = {}
    for name, weights in drawn.items():
        theory = [rules[name].std(*weight.shape) ** 2 for weight in weights]
        variances[name] = [
            {
                "shape": list(weight.shape),
                "theoretical": value,
                "measured": float(weight.var()),
                "sampling_error": value * (2 / weight.size) ** 0.5,
            }
            for weight, value in zip(weights, theory, strict=True)
        ]
    sheet = Sheet(
        f"Initial weights of a {'-'.join(map(str, sizes))} network",
        "Distribution of the weights of each layer, as drawn (lines) and by the theory (shaded), and their "
        "variances below: Glorot's is 2 / (in + out), He's 2 / in. The smaller the layer, the further "
        "chance takes it from the theory.",
        2,
        3,
        height=4.9,
        height_ratios=(2.3, 1.25),
    )
    for axes, (name, weights) in zip(sheet.panels, drawn.items(), strict=False):
        _draw_distributions(axes, weights, rules[name])
        axes.set(title=name, xlabel="weight")
    sheet.panels[0].set_ylabel("density (per unit of weight)")
    sheet.panels[0].legend(loc="upper left", handlelength=2.2, fontsize=7.5)
    for axes, (name, rows) in zip(sheet.panels[3:], variances.items(), strict=True):
        _draw_table(axes, f"variance, {name}", rows)
    return sheet.result({"sizes": list(sizes), "variances": variances})


def _weights(sizes: Sequence[int], rule: Initializer, seed: int, device: str | Backend) -> list[Any]:
    model = MLP(sizes, initializer=rule, seed=seed, device=device, dtype="float64")
    state = model.state_dict()
    return [state[f"layers.{index}.weight"] for index in range(len(model.layers))]


def _draw_distributions(axes: Axes, weights: list[Any], rule: Initializer) -> None:
    reach = 3.3 * max(rule.std(*weight.shape) for weight in weights)
    grid = np.linspace(-reach, reach, 300)
    looks = ((BLUE, SOLID), (VERMILION, DASHED), (GREEN, DOTTED))
    for index, weight in enumerate(weights):
        colour, line = looks[index % len(looks)]
        std = rule.std(*weight.shape)
        density = np.exp(-0.5 * (grid / std) ** 2) / (std * np.sqrt(2 * np.pi))
        axes.fill_between(grid, density, color=colour, alpha=0.15, linewidth=0)
        counts, edges = np.histogram(
            weight, bins=np.linspace(-3.3 * std, 3.3 * std, 2 + int(min(2 * weight.size ** (1 / 3), 60)))
        )
        heights = counts / (weight.size * np.diff(edges))
        label = f"{weight.shape[0]} × {weight.shape[1]}"
        axes.stairs(heights, edges, color=colour, linestyle=line, linewidth=1.2, label=label)
    axes.axvline(0, color=BLACK, linewidth=0.6)
    axes.set(xlim=(-reach, reach), ylim=(0, 1.3 * axes.get_ylim()[1]))


def _draw_table(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    places = (0.0, 0.66, 1.0)
    lines = [("layer", "theory", "measured")]
    lines += [(" × ".join(map(str, r["shape"])), f"{r['theoretical']:.8f}", f"{r['measured']:.8f}") for r in rows]
    for index, line in enumerate(lines):
        height = 0.95 - 0.24 * index
        for place, text in zip(places, line, strict=True):
            axes.text(
                place,
                height,
                text,
                transform=axes.transAxes,
                ha="left" if place == 0 else "right",
                va="top",
                fontsize=8,
                weight="bold" if index == 0 else "normal",
            )
    axes.plot([0, 1], [0.8, 0.8], transform=axes.transAxes, color=BLACK, linewidth=0.6)
