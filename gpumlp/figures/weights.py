"""Figures of weights: the scale of initial weights, their distribution, and what the first layer learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import Backend, HostArray
from ..data import Dataset
from ..nn import MLP, SGD, Glorot, He, Normal, Penalty
from ..nn.initializers import Initializer
from ..training import fit
from ..training.step import TrainingStep
from .data import Data, in_words, load
from .style import BLACK, BLUE, DASHED, DOTTED, GREEN, SOLID, VERMILION, FigureResult, Sheet, in_house_style, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

XOR = ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0])
_SOLVED = 0.1  # nats; with one point undecided, the loss is at least 0.35


@in_house_style
def initialization_scale(
    *,
    seed: int = 0,
    seeds: int = 20,
    epochs: int = 500,
    scales: Sequence[float] = (0.01, 0.1, 1.0, 3.0),
    device: str | Backend = "cpu",
) -> FigureResult:
    """A 2-4-2 tanh network trained on XOR from initial weights of several scales.

    Args:
        seed: the first seed.
        seeds: training runs from each scale.
        epochs: of each run: steps of gradient descent on all four points, learning rate 0.5.
        scales: standard deviations of normal initial weights; Glorot and He are added.
        device: as for `MLP`.

    Returns:
        The figure; in ``starts``, by name: ``losses`` ``(seeds, epochs)``, each before its step, their ``mean``
        and ``std`` over the seeds by epoch, and ``solved``, the number of runs that ended below 0.1 nats.
    """
    rules: dict[str, Initializer] = {f"normal, scale {scale:g}": Normal(scale) for scale in scales}
    rules |= {"Glorot": Glorot(), "He": He()}
    data = Dataset(*XOR, classes=2, name="xor")
    starts: dict[str, dict[str, Any]] = {}
    for name, rule in rules.items():
        losses = np.array([_train_on_xor(data, rule, seed + index, epochs, device) for index in range(seeds)])
        starts[name] = {
            "losses": losses,
            "mean": losses.mean(axis=0),
            "std": losses.std(axis=0),
            "solved": int((losses[:, -1] < _SOLVED).sum()),
        }
    sheet = Sheet(
        "XOR from initial weights of several scales",
        f"A 2-4-2 tanh network, {epochs} steps of gradient descent (learning rate 0.5) on all four points, from "
        f"{seeds} seeds. Thin lines: single runs; thick: their mean; shaded: mean ± one standard deviation. "
        f"Solved: a final loss below {_SOLVED:g} nats.",
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


def _train_on_xor(data: Dataset, rule: Initializer, seed: int, steps: int, device: str | Backend) -> HostArray:
    """The losses before each step. Without a `Trainer`, whose work per epoch takes longer than these steps."""
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
    """The initial weights of a network by layer, and their variances compared with theory.

    Args:
        seed: of the weights.
        sizes: of the network.
        scale: standard deviation of the normal initializer.
        device: as for `MLP`.

    Returns:
        The figure; in ``variances``, by initializer (normal, Glorot, He), a row for each layer: ``shape``,
        ``theoretical`` and ``measured`` variance, and ``sampling_error``, the standard error of the measured one.
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
        "Distribution of the weights of each layer: drawn (lines) and theoretical (shaded). Below: their "
        "variances, in theory 2 / (in + out) for Glorot and 2 / in for He. The smaller the layer, the larger the "
        "sampling error.",
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


@in_house_style
def first_layer_weights(
    data: Data | None = None,
    *,
    seed: int = 0,
    units: int = 32,
    shown: int = 16,
    epochs: int = 5,
    l2: float = 1e-3,
    device: str | Backend = "cpu",
) -> FigureResult:
    """The weights of the first layer as images, before and after training.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of the initial weights and the batch order.
        units: of the one hidden layer.
        shown: number of units to show: those whose weights changed most.
        epochs: of training with SGD 0.1, momentum 0.9, batches of 128.
        l2: penalty; without it, weights of unused pixels would remain random.
        device: as for `MLP`.

    Returns:
        The figure; ``untrained`` and ``trained`` ``(shown, height, width)``; ``smoothness_untrained`` and
        ``smoothness_trained``: the correlation of neighbouring weights, about 0 for noise and 1 for a smooth
        image; ``accuracy_untrained`` and ``accuracy_trained`` on the test set.

    Raises:
        ValueError: the samples are not images.
    """
    train, test = load(data)
    if len(train.feature_shape) != 2:
        raise ValueError(f"first_layer_weights expects images of height x width, got {train}")
    model = MLP([train.features, units, train.classes], seed=seed, device=device)
    start, first = model.state_dict()["layers.0.weight"], model.accuracy(test)
    optimizer = SGD(0.1, momentum=0.9)
    fit(model, train, optimizer=optimizer, epochs=epochs, batch_size=128, l2=l2, seed=seed)
    end, last = model.state_dict()["layers.0.weight"], model.accuracy(test)
    chosen = np.argsort(np.linalg.norm(end - start, axis=0))[::-1][:shown]
    images = [weight[:, chosen].T.reshape(-1, *train.feature_shape) for weight in (start, end)]
    sheet = Sheet(
        f"First-layer weights, untrained and trained, {in_words(train)}",
        f"The weights of {len(chosen)} of the {units} hidden units of a {'-'.join(map(str, model.sizes))} ReLU "
        f"network, those that changed most, before and after {epochs} epochs (L2 {l2:g}; test accuracy "
        f"{100 * first:.1f} % and {100 * last:.1f} %). Each image is one unit, at the same place in both panels; "
        f"correlation of neighbouring weights: {smoothness(images[0]):.2f} and {smoothness(images[1]):.2f}.",
        1,
        2,
        height=3.95,
    )
    limit = float(np.quantile(np.abs(np.concatenate(images)), 0.998))
    for axes, weights, title in zip(sheet.panels, images, ("untrained", "trained"), strict=True):
        # Brightness increases with the value: the sign is visible without colours.
        drawn = axes.imshow(_mosaic(weights), cmap="cividis", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    sheet.figure.colorbar(drawn, ax=sheet.panels, shrink=0.8, label="weight", pad=0.01, extend="both")
    return sheet.result(
        {
            "data": in_words(train),
            "untrained": images[0],
            "trained": images[1],
            "smoothness_untrained": smoothness(images[0]),
            "smoothness_trained": smoothness(images[1]),
            "accuracy_untrained": first,
            "accuracy_trained": last,
        }
    )


def smoothness(images: HostArray) -> float:
    """The correlation, from -1 to 1, of neighbouring values of images ``(n, height, width)``."""
    across = np.stack([images[:, :, :-1].ravel(), images[:, :, 1:].ravel()])
    down = np.stack([images[:, :-1].ravel(), images[:, 1:].ravel()])
    return float(np.corrcoef(np.concatenate([across, down], axis=1))[0, 1])


def _mosaic(images: HostArray) -> HostArray:
    """Images in about as many rows as columns, separated by NaN, which is drawn white."""
    count, height, width = images.shape
    columns = -(-count // max(1, int(count**0.5)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet
