"""Figures of gradient descent: learning-rate schedules, optimizers on a known surface, and the batch size."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import Backend, HostArray
from ..data import Dataset
from ..nn import (
    MLP,
    SGD,
    Adam,
    Cosine,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    OneCycle,
    StepDecay,
    Warmup,
)
from ..nn.optimizers import Optimizer
from ..nn.schedules import Schedule
from ..training import Callback, Trainer
from .data import Data, draw, in_words, load
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
    decimal_log_axis,
    end_labels,
    in_house_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVATURE = np.array([1.0, 4.0])  # of the surface 0.5 x^2 + 2 y^2
_OPTIMIZER_LOOKS = (
    (BLUE, SOLID),
    (VERMILION, DOTTED),
    (GREEN, DASHED),
    (PURPLE, DASH_DOT),
    (ORANGE, (0, (3, 1, 1, 1, 1, 1))),
)
_PATH_LABELS = {
    "batch gradient descent": "batch, rate 0.1",
    "stochastic": "stochastic, rate 0.1",
    "momentum": "momentum 0.8, rate 0.1",
    "Nesterov": "Nesterov 0.8, rate 0.1",
    "Adam": "Adam, rate 0.1",
}
_BATCH_LOOKS = ((BLUE, SOLID, "o"), (VERMILION, DASHED, "s"), (GREEN, DOTTED, "^"))


@in_house_style
def schedules(*, learning_rate: float = 0.1, epochs: int = 60, steps: int = 1000) -> FigureResult:
    """The learning rate of each schedule, by epoch from the same initial value, and by step.

    Args:
        learning_rate: eta_0, the initial learning rate, and the highest of a warm-up and of a cycle.
        epochs: number of epochs.
        steps: number of steps of the schedules by step.

    Returns:
        The figure; ``epochs`` (counted from 0) and ``learning_rates`` by schedule, in the order of ``schedules``;
        ``steps`` (from 0), ``rates_by_step`` and ``schedules_by_step``.
    """
    every, third = max(1, epochs // 6), epochs // 3
    rules: dict[str, Schedule] = {
        "step": StepDecay(gamma=0.5, step_size=every),
        "exponential": ExponentialDecay(decay_rate=0.05),
        "1/t": InverseTimeDecay(decay_rate=0.05),
        "milestones": Milestones((third, 2 * epochs // 3), gamma=0.2),
    }
    labels = {
        "step": f"step: times 0.5 every {every} epochs",
        "exponential": "exponential: k = 0.05",
        "1/t": "1/t: k = 0.05",
        "milestones": f"milestones: times 0.2 after {third}, {2 * epochs // 3}",
    }
    looks = zip((BLUE, VERMILION, GREEN, PURPLE), (SOLID, DASHED, DOTTED, DASH_DOT), strict=True)
    rates = {name: [rule(learning_rate, epoch) for epoch in range(epochs)] for name, rule in rules.items()}
    sheet = Sheet(
        "Learning-rate schedules",
        f"The learning rate over {epochs} epochs, starting at {learning_rate:g}, as the package's schedules "
        "compute it; on the logarithmic axis, exponential decay is a straight line. Below, schedules that change "
        f"the rate with every step, over {steps:,} steps; any of them can follow a warm-up.",
        2,
        2,
        height=5.8,
    )
    plain, logarithmic, *by_step = sheet.panels
    logarithmic.set_yscale("log")
    for (name, values), (colour, line) in zip(rates.items(), looks, strict=True):
        shape = "steps-post" if name in ("step", "milestones") else "default"
        for axes in (plain, logarithmic):
            axes.plot(range(epochs), values, color=colour, linestyle=line, drawstyle=shape, label=labels[name])
    for axes in (plain, logarithmic):
        axes.set(xlabel="epoch t", xlim=(0, epochs - 1))
    plain.set(title="by epoch, linear axis", ylabel="learning rate", ylim=(0, 1.5 * learning_rate))
    logarithmic.set_title("by epoch, logarithmic axis")
    colours = {name: str(line.get_color()) for name, line in zip(rates, logarithmic.get_lines(), strict=True)}
    end_labels(logarithmic, [(epochs - 1, values[-1], name, colours[name]) for name, values in rates.items()])
    plain.legend(loc="upper right", handlelength=2.6, fontsize=7.5)
    stepwise: dict[str, Schedule] = {
        "warm-up": Warmup(steps // 10),
        "warm-up, then cosine": Warmup(steps // 10, then=Cosine(steps - steps // 10)),
        "cosine": Cosine(steps),
        "one-cycle": OneCycle(steps),
    }
    found = {name: [rule(learning_rate, step) for step in range(steps)] for name, rule in stepwise.items()}
    looks = zip((PURPLE, BLUE, GREEN, VERMILION), (DOTTED, SOLID, DASHED, DASH_DOT), strict=True)
    for (name, values), (colour, line) in zip(found.items(), looks, strict=True):
        for axes in by_step:
            axes.plot(range(steps), values, color=colour, linestyle=line, label=name)
    for axes, kind in zip(by_step, ("linear", "logarithmic"), strict=True):
        axes.set(xlabel="step t", xlim=(0, steps - 1), title=f"by step, {kind} axis")
    by_step[0].set(ylabel="learning rate", ylim=(0, 1.5 * learning_rate))
    by_step[0].legend(loc="upper right", handlelength=2.6, fontsize=7.5, ncols=2)
    by_step[1].set(yscale="log", ylim=(learning_rate * 1e-4, 1.5 * learning_rate))
    return sheet.result(
        {
            "epochs": list(range(epochs)),
            "learning_rates": rates,
            "schedules": {name: repr(rule) for name, rule in rules.items()},
            "steps": list(range(steps)),
            "rates_by_step": found,
            "schedules_by_step": {name: repr(rule) for name, rule in stepwise.items()},
        }
    )


# -- Optimizers ----------------------------------------------------------------------------------------------


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
    """Five optimizers of the package on f = 0.5 x^2 + 2 y^2.

    Up to a constant, f is the mean of equal surfaces centred at a number of points whose mean is the origin. The
    stochastic optimizer follows the gradient of the surface around one point at each step, the others that of f.

    Args:
        seed: of the points and their order.
        steps: of each optimizer.
        start: x and y.
        points: number of points.
        spread: standard deviation of the points in x and y.

    Returns:
        The figure; in ``paths``, by name, the ``optimizer``, its ``positions`` ``(steps + 1, 2)`` and the values
        of f there (``heights``); ``points`` ``(points, 2)``.
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
        f"{steps} steps from ({start[0]:g}, {start[1]:g}) with learning rate 0.1 and momentum 0.8. Up to a "
        f"constant, f is the mean of {points} equal surfaces centred at the grey points; each stochastic step "
        "follows the gradient of one of them, the other optimizers that of f.",
        2,
        3,
        height=5.3,
    )
    for axes, (name, path), (colour, _) in zip(sheet.panels, paths.items(), _OPTIMIZER_LOOKS, strict=False):
        _draw_path(axes, path["positions"], colour, centres if name == "stochastic" else None)
        axes.set(title=name, xlabel="x")
    for axes in sheet.panels[:4:3]:
        axes.set_ylabel("y")
    _draw_heights(sheet.panels[5], paths)
    return sheet.result({"paths": paths, "points": centres})


def _descend(rule: Optimizer, start: tuple[float, float], steps: int, centres: HostArray) -> HostArray:
    """The positions of an optimizer, ``(steps + 1, 2)``; each step uses a surface around a row of `centres`."""
    theta = np.array(start, dtype=np.float64)
    state, positions = rule.init(theta), [theta.copy()]
    for number, centre in enumerate(centres[:steps], 1):
        factors = rule.step_factors(number, rule.learning_rate)
        rule.update(np, theta, CURVATURE * (theta - centre), state, *factors)
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
    for (name, path), (colour, line) in zip(paths.items(), _OPTIMIZER_LOOKS, strict=True):
        axes.plot(path["heights"], color=colour, linestyle=line, linewidth=1.4, label=_PATH_LABELS[name])
    axes.set_yscale("log")
    axes.set(title="f over steps", xlabel="step", ylabel="f", ylim=(1e-21, 30))
    axes.legend(loc="lower left", handlelength=2.6, fontsize=7.5)


# -- Batch sizes ---------------------------------------------------------------------------------------------


class _Probe(Callback):
    """Evaluates the loss on fixed samples several times per epoch; its own time does not count.

    Attributes:
        samples, seconds, losses: of each evaluation: samples trained on, seconds of training, mean loss in nats.
    """

    def __init__(self, model: MLP, probe: Dataset) -> None:
        self._model, self._probe = model, probe
        self._apart = self._begin = 0.0
        self.samples: list[int] = [0]
        self.seconds: list[float] = [0.0]
        self.losses: list[float] = [model.evaluate(probe).loss]

    def on_train_begin(self, trainer: Trainer) -> None:
        trainer.progress_seconds = 0.0  # the same points on every machine
        self._begin = time.perf_counter()

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        self._model.backend.synchronize()
        now = time.perf_counter()
        self.samples.append(trainer.epoch * trainer.batches.samples + samples)
        self.seconds.append(now - self._begin - self._apart)
        self.losses.append(self._model.evaluate(self._probe).loss)
        self._apart += time.perf_counter() - now


@in_house_style
def optimizer_noise(
    data: Data | None = None,
    *,
    seed: int = 0,
    samples: int = 10_000,
    probe: int = 1_000,
    hidden: int = 32,
    batch_epochs: int = 40,
    mini_batch_epochs: int = 8,
    single_epochs: int = 3,
    device: str | Backend = "cpu",
) -> FigureResult:
    """Batch, mini-batch and single-sample gradient descent: loss over samples and over seconds.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of samples, initial weights and batch order.
        samples: to train on; reduced to a multiple of the mini-batch, whose last one would be short and noisy.
        probe: samples for the loss, not used for training; evaluated up to 20 times per epoch.
        hidden: units of the one hidden layer.
        batch_epochs, mini_batch_epochs, single_epochs: epochs of each run.
        device: as for `MLP`.

    Returns:
        The figure; in ``runs``, by name (batch, mini-batch, single sample): ``batch_size``, ``learning_rate``,
        ``steps``, and for each evaluation ``samples`` trained on, ``seconds`` of training (without evaluations)
        and ``losses``; ``device``: where the seconds were measured.
    """
    train, _ = load(data)
    parts = draw(train, (samples, probe), seed)
    mini = min(64, len(parts[0]))
    count = len(parts[0]) // mini * mini
    parts[0] = draw(parts[0], (count,), seed)[0]
    plans = {
        "batch": (count, 0.5, batch_epochs),
        "mini-batch": (mini, 0.1, mini_batch_epochs),
        "single sample": (1, 0.01, single_epochs),
    }
    runs: dict[str, dict[str, Any]] = {}
    for name, (size, rate, epochs) in plans.items():
        model = MLP([train.features, hidden, train.classes], seed=seed, device=device)
        probed = _Probe(model, parts[1])
        trainer = Trainer(model, parts[0], optimizer=SGD(rate), batch_size=size, seed=seed)
        trainer.run(epochs, [probed])
        runs[name] = {
            "batch_size": size,
            "learning_rate": rate,
            "steps": epochs * len(trainer.batches.slices),
            "samples": probed.samples,
            "seconds": probed.seconds,
            "losses": probed.losses,
        }
    place = model.backend.device_name
    sheet = Sheet(
        f"Batch, mini-batch and single-sample gradient descent on {in_words(train)}",
        f"A {'-'.join(map(str, model.sizes))} ReLU network from the same initial weights, {count:,} training "
        f"samples, loss on {len(parts[1]):,} others. Steps: "
        + ", ".join(f"{name} {run['steps']:,}" for name, run in runs.items())
        + f". Seconds of training, without evaluations, on {place}.",
        1,
        2,
        height=3.7,
        sharey=True,
    )
    _draw_losses(sheet.panels[0], runs, "samples", "samples trained on")
    _draw_losses(sheet.panels[1], runs, "seconds", "seconds of training")
    sheet.panels[0].set_ylabel("loss on other samples (nats)")
    sheet.panels[0].legend(loc="lower left", handlelength=2.6, fontsize=7.5)
    return sheet.result({"data": in_words(train), "device": place, "runs": runs})


def _draw_losses(axes: Axes, runs: dict[str, dict[str, Any]], over: str, label: str) -> None:
    for (name, run), (colour, line, marker) in zip(runs.items(), _BATCH_LOOKS, strict=True):
        size = f" of {run['batch_size']:,}" if run["batch_size"] > 1 else ""
        text = f"{name}{size}, learning rate {run['learning_rate']:g}"
        axes.plot(
            run[over][1:],  # on a logarithmic axis there is no 0
            run["losses"][1:],
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=3,
            markevery=0.08,
            linewidth=1.3,
            label=text,
        )
    axes.set(xscale="log", yscale="log", xlabel=label, title=f"over {label}", ylim=(0.1, None))
    decimal_log_axis(axes.yaxis)
