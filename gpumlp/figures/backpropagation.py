"""Figure of the delta method: a small network with the error terms of a real backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..backends import Backend, HostArray
from ..data import Dataset
from ..nn import MLP
from .backward import BackwardPass, backward_pass
from .style import BLACK, GREY, VERMILION, FigureResult, Sheet, in_house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RADIUS, _APART = 0.34, 3.4  # of a unit, and of the layers; units are 1 apart


def three_clouds(samples: int, features: int, seed: int) -> Dataset:
    """Samples of three classes, normal around a centre of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    centres = rng.normal(0.0, 1.5, (3, features))
    return Dataset(centres[labels] + rng.normal(0.0, 0.7, (samples, features)), labels, classes=3, name="clouds")


@in_house_style
def backpropagation(
    *,
    seed: int = 0,
    hidden: Sequence[int] = (5, 4),
    features: int = 4,
    samples: int = 60,
    device: str | Backend = "cpu",
) -> FigureResult:
    """A small network's error terms flowing backwards, with the norms of one real backward pass.

    Args:
        seed: of the samples (three normal clouds) and the initial weights.
        hidden: units of the hidden layers.
        features: of a sample.
        samples: in the batch.
        device: as for `MLP`.

    Returns:
        The figure; ``delta_norms`` (of each layer from the first hidden one), ``unit_delta_norms`` (the norm over
        the batch for each unit of each layer), ``gradient_norms`` (of each weight's gradient), ``flows`` (for each
        layer but the first, ``(units below, units)``: the norm of what each unit hands down to each unit below it,
        |W_ij| times its own norm, before the factor h'), and ``loss``.
    """
    data = three_clouds(samples, features, seed)
    model = MLP([features, *hidden, 3], activation="tanh", seed=seed, device=device, dtype="float64")
    result = backward_pass(model, data)
    units = [np.linalg.norm(delta, axis=0) for delta in result.deltas]
    weights = [model.state_dict()[f"layers.{index}.weight"] for index in range(len(model.layers))]
    flows = [np.abs(weight) * norms for weight, norms in zip(weights[1:], units[1:], strict=True)]
    sheet = Sheet(
        "Error terms flowing backwards",
        f"One backward pass of an untrained {'-'.join(map(str, model.sizes))} tanh network over {samples} samples "
        f"of three classes (loss {result.loss:.2f} nats). In each unit stands the norm of its error term over the "
        "batch; an arrow is as thick as what it carries down, |W| times that norm. What arrives at a unit may "
        "cancel out, and is then multiplied by h'.",
        height=4.1,
    )
    _draw_network(sheet.panels[0], model.sizes, units, flows, result)
    return sheet.result(
        {
            "loss": result.loss,
            "delta_norms": result.delta_norms,
            "unit_delta_norms": units,
            "gradient_norms": result.gradient_norms,
            "flows": flows,
        }
    )


def _draw_network(
    axes: Axes, sizes: list[int], units: list[HostArray], flows: list[HostArray], result: BackwardPass
) -> None:
    tallest = max(sizes)
    axes.set_axis_off()
    right = _APART * (len(sizes) - 1)
    axes.set(xlim=(-1.1, right + 1.1), ylim=(-tallest / 2 - 1.25, tallest / 2 + 0.05), aspect="equal")
    places = [
        [(_APART * layer, (size - 1) / 2 - unit) for unit in range(size)] for layer, size in enumerate(sizes)
    ]
    for start in places[0]:  # no error term is taken for the inputs: thin lines only
        for end in places[1]:
            axes.plot(*zip(start, end, strict=True), color="#cccccc", linewidth=0.6, zorder=1)
    widest = max(float(flow.max()) for flow in flows)
    for layer, flow in enumerate(flows, start=1):
        for below, above in np.ndindex(*flow.shape):
            _arrow(axes, places[layer + 1][above], places[layer][below], float(flow[below, above]) / widest)
    strongest = max(float(norms.max()) for norms in units)
    _draw_units(axes, places[0], None, strongest)
    for layer, norms in enumerate(units, start=1):
        _draw_units(axes, places[layer], norms, strongest)
    foot = -tallest / 2 - 0.1
    names = ["inputs", *(f"hidden layer {layer}" for layer in range(1, len(sizes) - 1)), "outputs (logits)"]
    for layer, name in enumerate(names):
        text = name
        if layer:
            text += f"\n‖δ{_subscript(layer)}‖ = {result.delta_norms[layer - 1]:.3f}"
            text += f"\n‖dW{_subscript(layer)}‖ = {result.gradient_norms[layer - 1]:.3f}"
        axes.text(_APART * layer, foot, text, ha="center", va="top", fontsize=9, linespacing=1.4)


def _draw_units(axes: Axes, places: list[tuple[float, float]], norms: HostArray | None, strongest: float) -> None:
    from matplotlib.patches import Circle

    for index, place in enumerate(places):
        strength = 0.0 if norms is None else float(norms[index]) / strongest
        face = tuple(1 - strength * (1 - channel) for channel in (0.835, 0.369, 0.0))  # white to vermilion
        axes.add_patch(Circle(place, _RADIUS, facecolor=face, edgecolor=GREY, linewidth=0.8, zorder=3))
        if norms is not None:
            text = f"{norms[index]:.3f}".removeprefix("0")
            axes.text(*place, text, ha="center", va="center", fontsize=8, color=BLACK, zorder=4)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], strength: float) -> None:
    """From one unit's rim to another's, 0.3 to 4 points thick."""
    from matplotlib.patches import FancyArrowPatch

    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=5 + 5 * strength,
        shrinkA=16,
        shrinkB=16,
        linewidth=0.3 + 3.7 * strength,
        color=VERMILION,
        alpha=0.25 + 0.6 * strength,
        zorder=2,
    )
    axes.add_patch(patch)


def _subscript(number: int) -> str:
    return "".join(chr(ord("₀") + int(digit)) for digit in str(number))
