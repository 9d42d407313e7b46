"""Figures of the backward pass: activations with their derivatives, error terms, gradients in deep networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backends import Backend, HostArray
from ..data import Dataset
from ..nn import (
    ELU,
    GELU,
    MLP,
    SGD,
    Activation,
    Glorot,
    He,
    LeakyReLU,
    Normal,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from ..nn.initializers import Initializer
from ..nn.network import Workspace
from ..training import DivergenceError, fit
from .data import Data, draw, in_words, load
from .style import (
    BLACK,
    BLUE,
    DASHED,
    DOTTED,
    GREEN,
    GREY,
    SOLID,
    VERMILION,
    FigureResult,
    Sheet,
    end_labels,
    in_house_style,
    note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REACH = 4.0  # of the pre-activation s, to both sides
_RADIUS, _APART = 0.34, 3.4  # of a unit, and between layers; units are 1 apart
DEPTH = 10  # layers with weights
_SUITED: dict[str, Initializer] = {"relu": He(), "tanh": Glorot(), "sigmoid": Glorot()}
_TITLES = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
_FLOW_LOOKS = {
    "suited": (BLUE, "o", SOLID),
    "too small": (VERMILION, "s", DASHED),
    "too large": (GREEN, "^", DOTTED),
}
_MARKS = {"o": "●", "s": "■", "^": "▲"}  # in texts, to identify lines without colours


@in_house_style
def activations(*, negative_slope: float = 0.1, points: int = 401) -> FigureResult:
    """Each activation h(s) with its derivative h'(s).

    Args:
        negative_slope: of the leaky ReLU; larger than the usual 0.01, to be visible.
        points: number of values of s.

    Returns:
        The figure; ``numbers["s"]`` and, in ``numbers["curves"]``, ``value`` and ``derivative`` by activation.
    """
    s = np.linspace(-_REACH, _REACH, points)
    rules: dict[str, Activation] = {
        "ReLU": ReLU(),
        f"leaky ReLU, slope {negative_slope:g}": LeakyReLU(negative_slope),
        "ELU": ELU(),
        "softplus": Softplus(),
        "GELU": GELU(),
        "SiLU": SiLU(),
        "tanh": Tanh(),
        "sigmoid": Sigmoid(),
    }
    curves = {name: {"value": rule(s), "derivative": rule.derivative(s)} for name, rule in rules.items()}
    sheet = Sheet(
        "Activation functions and their derivatives",
        "h(s) and h'(s) as the package computes them, the latter from s for GELU and SiLU and from h(s) "
        "otherwise. Backpropagation multiplies the error terms of each hidden layer by h'(s), at most about 1 for "
        "all but the sigmoid, whose largest is 1/4.",
        2,
        4,
        height=4.9,
        sharex=True,
        sharey=True,
    )
    for axes, (name, curve) in zip(sheet.panels, curves.items(), strict=True):
        slope = curve["derivative"].copy()
        slope[np.flatnonzero(np.abs(np.diff(slope)) > 0.5)] = np.nan  # do not draw a jump
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.plot(s, curve["value"], color=BLUE, linestyle=SOLID, label="h(s)")
        axes.plot(s, slope, color=VERMILION, linestyle=DASHED, label="h'(s)")
        axes.set(title=name, ylim=(-1.15, 2.15), xlim=(-_REACH, _REACH))
        note(axes, f"largest h' = {curve['derivative'].max():.2g}", x=0.97, y=0.05)
    for axes in sheet.panels[::4]:
        axes.set_ylabel("h(s) and h'(s)")
    for axes in sheet.panels[4:]:
        axes.set_xlabel("pre-activation s")
    sheet.panels[0].legend(loc="upper left", handlelength=2.4)
    return sheet.result({"s": s, "curves": curves})


# -- A backward pass -----------------------------------------------------------------------------------------


class BackwardPass(NamedTuple):
    """Results of a backward pass over all samples of a data set, on the host, by layer from the first.

    Attributes:
        loss: mean cross-entropy, in nats.
        deltas: the error terms delta_l = dC/ds_l, ``(samples, units)``.
        gradients: dC/dW_l, ``(in_features, out_features)``.
    """

    loss: float
    deltas: list[HostArray]
    gradients: list[HostArray]

    @property
    def delta_norms(self) -> list[float]:
        """The Frobenius norm of each delta_l."""
        return [float(np.linalg.norm(delta)) for delta in self.deltas]

    @property
    def gradient_norms(self) -> list[float]:
        """The Frobenius norm of each dC/dW_l."""
        return [float(np.linalg.norm(gradient)) for gradient in self.gradients]


def backward_pass(model: MLP, dataset: Dataset) -> BackwardPass:
    """One forward and one backward pass over all samples as one batch; the parameters do not change."""
    backend = model.backend
    with backend.activate():
        batches = dataset.batches(len(dataset), backend, model.dtype)
        workspace = Workspace(model, len(dataset), pixels=batches.pixels)
        losses = backend.xp.empty(len(dataset), dtype=model.dtype)
        scores = backend.xp.empty(len(dataset), dtype=bool)
        labels = batches.gather(batches.slices[0], workspace.staging, workspace.inputs)
        model.forward_pass(workspace)
        backend.output_error(model.loss, workspace.logits, labels, losses, scores)
        model.backward_pass(workspace)
        deltas = [backend.to_numpy(cache.delta).astype(np.float64) for cache in workspace.caches]
        gradients = [backend.to_numpy(layer.weight_gradient).astype(np.float64) for layer in model.dense_layers]
        return BackwardPass(float(backend.to_numpy(losses).mean()), deltas, gradients)


# -- Its error terms -----------------------------------------------------------------------------------------


def three_clouds(samples: int, features: int, seed: int) -> Dataset:
    """Samples of three classes, each normally distributed around its own centre."""
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
    """The error terms of a small network in one backward pass.

    Args:
        seed: of the samples (three normal clouds) and the initial weights.
        hidden: units of each hidden layer.
        features: of each sample.
        samples: in the batch.
        device: as for `MLP`.

    Returns:
        The figure; ``delta_norms`` (of each layer from the first hidden one), ``unit_delta_norms`` (over the
        batch, for each unit of each layer), ``gradient_norms`` (of each layer's weights), ``flows`` (for each
        layer but the first, ``(units below, units)``: the norm of what each unit passes to each unit below, |W_ij|
        times its own norm, before the factor h'), and ``loss``.
    """
    data = three_clouds(samples, features, seed)
    model = MLP([features, *hidden, 3], activation="tanh", seed=seed, device=device, dtype="float64")
    result = backward_pass(model, data)
    units = [np.linalg.norm(delta, axis=0) for delta in result.deltas]
    weights = [model.state_dict()[f"layers.{index}.weight"] for index in range(len(model.layers))]
    flows = [np.abs(weight) * norms for weight, norms in zip(weights[1:], units[1:], strict=True)]
    sheet = Sheet(
        "Error terms in one backward pass",
        f"An untrained {'-'.join(map(str, model.sizes))} tanh network and {samples} samples of three classes "
        f"(loss {result.loss:.2f} nats). Each unit shows the norm of its error term over the batch. The width of "
        "an arrow is proportional to what it passes to the layer below, |W| times that norm. A unit sums what it "
        "receives, with signs, and multiplies the sum by h'.",
        height=4.1,
    )
    _draw_diagram(sheet.panels[0], model.sizes, units, flows, result)
    return sheet.result(
        {
            "loss": result.loss,
            "delta_norms": result.delta_norms,
            "unit_delta_norms": units,
            "gradient_norms": result.gradient_norms,
            "flows": flows,
        }
    )


def _draw_diagram(
    axes: Axes, sizes: list[int], units: list[HostArray], flows: list[HostArray], result: BackwardPass
) -> None:
    tallest = max(sizes)
    axes.set_axis_off()
    right = _APART * (len(sizes) - 1)
    axes.set(xlim=(-1.1, right + 1.1), ylim=(-tallest / 2 - 1.25, tallest / 2 + 0.05), aspect="equal")
    places = [
        [(_APART * layer, (size - 1) / 2 - unit) for unit in range(size)] for layer, size in enumerate(sizes)
    ]
    for start in places[0]:  # the inputs have no error terms: thin lines only
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
    """From the rim of one unit to another, 0.3 to 4 points wide."""
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


# -- Gradients by layer --------------------------------------------------------------------------------------


@in_house_style
def gradient_flow(
    data: Data | None = None,
    *,
    seed: int = 0,
    samples: int = 10_000,
    probe: int = 1_000,
    units: int = 64,
    epochs: int = 3,
    small: float = 0.01,
    large: float = 0.5,
    device: str | Backend = "cpu",
) -> FigureResult:
    """The gradient norm of each layer in networks of ten layers, before and after training.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of samples, initial weights and batch order.
        samples: to train on.
        probe: samples for the gradient, not used for training.
        units: of each of the nine hidden layers.
        epochs: of training with SGD 0.05 and batches of 64.
        small, large: standard deviations of the unsuitable initial weights.
        device: as for `MLP`.

    Returns:
        The figure; in ``networks``, by activation (relu, tanh, sigmoid) and initial weights (suited, too small,
        too large): ``before`` and ``after`` training the norms of dC/dW_l (``gradient_norms``) and of delta_l
        (``delta_norms``) from the first layer, ``loss`` and ``accuracy`` on the probe samples. If training
        diverged, ``diverged`` is the message and ``after`` is None.
    """
    train, _ = load(data)
    parts = draw(train, (samples, probe), seed)
    networks: dict[str, dict[str, Any]] = {}
    for activation, suited in _SUITED.items():
        rules = {"suited": suited, "too small": Normal(small), "too large": Normal(large)}
        networks[activation] = {
            name: _gradients_around_training(parts[0], parts[1], activation, rule, units, epochs, seed, device)
            for name, rule in rules.items()
        }
    sheet = Sheet(
        f"Gradient norm by layer in networks of {DEPTH} layers, {in_words(train)}",
        f"Norm of dC/dW over {len(parts[1]):,} samples that are not used for training, with nine hidden layers of "
        f"{units} units: untrained (above) and after {epochs} epochs of SGD 0.05 on {len(parts[0]):,} other "
        "samples (below). Initial weights: He for ReLU and Glorot otherwise (suited), or normal with standard "
        f"deviation {small:g} (too small) or {large:g} (too large). Percentages: accuracy after training, with "
        "the marker of the line.",
        2,
        3,
        height=5.4,
        sharex=True,
        sharey=True,
    )
    for column, (activation, runs) in enumerate(networks.items()):
        _draw_norms(sheet.panels[column], runs, "before", f"{_TITLES[activation]}, before training")
        _draw_norms(sheet.panels[column + 3], runs, "after", f"{_TITLES[activation]}, after training")
        _name_divergence(sheet.panels[column + 3], runs)
        sheet.panels[column + 3].set_xlabel("layer (1: next to the inputs)")
    for axes, runs in zip(sheet.panels[3:], networks.values(), strict=True):  # all have the same limits now
        _label_accuracies(axes, runs)
    for axes in sheet.panels[::3]:
        axes.set_ylabel("‖dC/dW‖ of the layer")
    lines, names = sheet.panels[0].get_legend_handles_labels()
    scales = {
        "suited": "suited: He or Glorot",
        "too small": f"too small: {small:g}",
        "too large": f"too large: {large:g}",
    }
    sheet.panels[0].legend(
        lines,
        [scales[name] for name in names],
        loc=(0.12, 0.33),
        handlelength=2.6,
        fontsize=7.5,
        title="initial weights",
        title_fontsize=8,
    )
    return sheet.result({"data": in_words(train), "networks": networks})


def _gradients_around_training(
    train: Dataset,
    probe: Dataset,
    activation: str,
    rule: Initializer,
    units: int,
    epochs: int,
    seed: int,
    device: str | Backend,
) -> dict[str, Any]:
    sizes = [train.features, *[units] * (DEPTH - 1), train.classes]
    model = MLP(sizes, activation, initializer=rule, seed=seed, device=device)
    before = _facts(model, backward_pass(model, probe), probe)
    try:
        fit(model, train, optimizer=SGD(0.05), epochs=epochs, batch_size=64, seed=seed)
    except DivergenceError as error:
        return {"initializer": repr(rule), "before": before, "after": None, "diverged": str(error)}
    after = _facts(model, backward_pass(model, probe), probe)
    return {"initializer": repr(rule), "before": before, "after": after, "diverged": None}


def _facts(model: MLP, result: BackwardPass, probe: Dataset) -> dict[str, Any]:
    return {
        "gradient_norms": result.gradient_norms,
        "delta_norms": result.delta_norms,
        "loss": result.loss,
        "accuracy": model.accuracy(probe),
    }


def _draw_norms(axes: Axes, runs: dict[str, Any], when: str, title: str) -> None:
    layers = np.arange(1, DEPTH + 1)
    for name, run in runs.items():
        colour, marker, line = _FLOW_LOOKS[name]
        if run[when] is not None:
            norms = np.maximum(run[when]["gradient_norms"], np.finfo(np.float32).tiny)
            axes.plot(layers, norms, color=colour, marker=marker, markersize=4, linestyle=line, label=name)
    axes.set_yscale("log")
    axes.set(title=title, xticks=range(1, DEPTH + 1))


def _name_divergence(axes: Axes, runs: dict[str, Any]) -> None:
    text = "\n".join(f"{name}: training diverged" for name, run in runs.items() if run["after"] is None)
    if text:
        note(axes, text, x=0.97, y=0.97)


def _label_accuracies(axes: Axes, runs: dict[str, Any]) -> None:
    end_labels(
        axes,
        [
            (
                *(DEPTH, run["after"]["gradient_norms"][-1]),
                *(f"{_MARKS[_FLOW_LOOKS[name][1]]} {100 * run['after']['accuracy']:.0f} %", _FLOW_LOOKS[name][0]),
            )
            for name, run in runs.items()
            if run["after"] is not None
        ],
    )
