"""Figure of gradients in deep networks: which initial weights let them through which activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import Backend
from ..data import Dataset
from ..nn import MLP, SGD, Glorot, He, Normal
from ..nn.initializers import Initializer
from ..training import DivergenceError, fit
from .backward import BackwardPass, backward_pass
from .samples import Data, draw, in_words, load
from .style import (
    BLUE,
    DASHED,
    DOTTED,
    GREEN,
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

DEPTH = 10  # layers with weights
_SUITED: dict[str, Initializer] = {"relu": He(), "tanh": Glorot(), "sigmoid": Glorot()}
_TITLES = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
_LOOKS = {"suited": (BLUE, "o", SOLID), "too small": (VERMILION, "s", DASHED), "too large": (GREEN, "^", DOTTED)}
_MARKS = {"o": "●", "s": "■", "^": "▲"}  # in texts: which line is meant can be seen without colours, too


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
    """The gradient's norm by layer in networks of ten layers, before and after training.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of samples, initial weights and batch order.
        samples: to train on.
        probe: samples, not trained on, whose gradient is taken.
        units: of each of the nine hidden layers.
        epochs: of training, with SGD 0.05 and batches of 64.
        small, large: standard deviations of the unsuitable initial weights.
        device: as for `MLP`.

    Returns:
        The figure; in ``networks``, by activation (relu, tanh, sigmoid) and initial weights (suited, too small,
        too large): ``before`` and ``after`` training the norms of dC/dW_l (``gradient_norms``) and of delta_l
        (``delta_norms``) from the first layer, the ``loss`` and the ``accuracy`` on the probe; ``diverged`` is the
        message where training ended in NaN, and ``after`` is then None.
    """
    train, _ = load(data)
    parts = draw(train, (samples, probe), seed)
    networks: dict[str, dict[str, Any]] = {}
    for activation, suited in _SUITED.items():
        rules = {"suited": suited, "too small": Normal(small), "too large": Normal(large)}
        networks[activation] = {
            name: _train(parts[0], parts[1], activation, rule, units, epochs, seed, device)
            for name, rule in rules.items()
        }
    sheet = Sheet(
        f"Gradient norm by layer in networks of {DEPTH} layers, {in_words(train)}",
        f"Norm of dC/dW over {len(parts[1]):,} samples that are not trained on, for nine hidden layers of {units} "
        f"units: with untrained weights (above) and after {epochs} epochs of SGD 0.05 on {len(parts[0]):,} others "
        f"(below). Initial weights: He for ReLU and Glorot otherwise (suited), or normal with standard deviation "
        f"{small:g} (too small) or {large:g} (too large). Percentages, with "
        "their lines' marks: correct answers after training.",
        2,
        3,
        height=5.4,
        sharex=True,
        sharey=True,
    )
    for column, (activation, runs) in enumerate(networks.items()):
        _draw(sheet.panels[column], runs, "before", f"{_TITLES[activation]}, before training")
        _draw(sheet.panels[column + 3], runs, "after", f"{_TITLES[activation]}, after training")
        _name_divergence(sheet.panels[column + 3], runs)
        sheet.panels[column + 3].set_xlabel("layer (1: next to the inputs)")
    for axes, runs in zip(sheet.panels[3:], networks.values(), strict=True):  # now that all have the same limits
        _label_accuracies(axes, runs)
    for axes in sheet.panels[::3]:
        axes.set_ylabel("‖dC/dW‖ of the layer")
    sheet.panels[0].legend(loc=(0.3, 0.33), handlelength=2.8, title="initial weights", title_fontsize=8)
    return sheet.result({"data": in_words(train), "networks": networks})


def _train(
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


def _draw(axes: Axes, runs: dict[str, Any], when: str, title: str) -> None:
    layers = np.arange(1, DEPTH + 1)
    for name, run in runs.items():
        colour, marker, line = _LOOKS[name]
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
                *(f"{_MARKS[_LOOKS[name][1]]} {100 * run['after']['accuracy']:.0f} %", _LOOKS[name][0]),
            )
            for name, run in runs.items()
            if run["after"] is not None
        ],
    )
