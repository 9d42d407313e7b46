"""Figures of generalisation: four typical learning curves, and weight penalties on a polynomial and a network."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backends import Backend, HostArray, get_backend
from ..data import Dataset
from ..nn import MLP, SGD, Adam, ExponentialDecay, Penalty
from ..nn.optimizers import Optimizer
from ..training import History, fit
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
    in_house_style,
    note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PENALTY_LOOKS = {"none": (VERMILION, SOLID, "o"), "L2": (BLUE, DASHED, "s"), "L1": (GREEN, DOTTED, "^")}
_NEAR_ZERO = 1e-3
REACH = 3.0  # of x, to both sides


# -- Learning curves -----------------------------------------------------------------------------------------


class _Run(NamedTuple):
    """One of the four runs: `share` of the samples, `units` of the hidden layer."""

    share: float
    units: int
    optimizer: Optimizer
    activation: str = "relu"


_RUNS = {
    "converging": _Run(1.0, 32, SGD(0.03)),
    "overfitting": _Run(0.05, 256, Adam(0.01)),
    "underfitting": _Run(1.0, 1, SGD(0.03, momentum=0.9), "tanh"),
    "unstable": _Run(0.5, 64, Adam(0.5), "tanh"),
}


@in_house_style
def learning_curves(
    data: Data | None = None,
    *,
    seed: int = 0,
    samples: int = 20_000,
    validation: int = 5_000,
    epochs: int = 30,
    device: str | Backend = "cpu",
) -> FigureResult:
    """A converging, an overfitting, an underfitting and an unstable training run.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of samples, initial weights and batch order.
        samples: to train on; the overfitting run uses 1/20 of them, the unstable one half.
        validation: samples to validate on.
        epochs: of each run.
        device: as for `MLP`.

    Returns:
        The figure; in ``runs``, by name: ``train_loss`` and ``validation_loss`` after each epoch, the final
        accuracies, ``best_epoch`` (of the lowest validation loss, from 1), ``rise`` (final validation loss /
        lowest - 1), ``gap`` (final validation loss - training loss), ``ups`` (the number of epochs in which the
        training loss rose by more than a tenth), and ``trend``, the result of the diagnostics.
    """
    train, _ = load(data)
    whole, held_out = draw(train, (samples, validation), seed)
    runs = {name: _train_run(run, whole, held_out, epochs, seed, device) for name, run in _RUNS.items()}
    sheet = Sheet(
        f"Four learning curves on {in_words(train)}",
        f"Four training runs of {epochs} epochs with batches of 64; losses after each epoch on all training "
        f"samples and on {len(held_out):,} validation samples. Percentages: accuracy in training and in "
        "validation. Each panel has its own axis.",
        2,
        2,
        height=5.9,
    )
    for axes, (name, run) in zip(sheet.panels, runs.items(), strict=True):
        _draw_curves(axes, name, run)
    for axes in sheet.panels[2:]:
        axes.set_xlabel("epoch")
    for axes in sheet.panels[::2]:
        axes.set_ylabel("cross-entropy (nats)")
    sheet.panels[0].legend(loc="center right", handlelength=2.8)
    return sheet.result({"data": in_words(train), "runs": runs})


def _train_run(
    run: _Run, whole: Dataset, validation: Dataset, epochs: int, seed: int, device: str | Backend
) -> dict[str, Any]:
    train = whole if run.share == 1 else draw(whole, (max(1, int(run.share * len(whole))),), seed)[0]
    model = MLP([train.features, run.units, train.classes], run.activation, seed=seed, device=device)
    history, curves = _train(
        model, train, validation, optimizer=run.optimizer, epochs=epochs, batch_size=64, seed=seed
    )
    losses, validated = curves["train_loss"], curves["validation_loss"]
    return {
        "network": f"{'-'.join(map(str, model.sizes))} {model.activation_names}",
        "optimizer": _describe(run.optimizer),
        "samples": len(train),
        **curves,
        "best_epoch": 1 + int(np.argmin(validated)),
        "rise": validated[-1] / min(validated) - 1,
        "ups": sum(after > 1.1 * before for before, after in itertools.pairwise(losses)),
        "trend": history.trend(),
    }


def _train(model: MLP, train: Dataset, validation: Dataset, **options: Any) -> tuple[History, dict[str, Any]]:
    """Train with the options of `fit`, and record losses after each epoch and final accuracies."""
    losses: list[float] = []
    history = fit(
        model,
        train,
        validation=validation,
        callbacks=[lambda trainer: losses.append(trainer.model.evaluate(train).loss)],
        **options,
    )
    return history, {
        "train_loss": losses,
        "validation_loss": history["validation_loss"],
        "gap": history["validation_loss"][-1] - losses[-1],
        "train_accuracy": model.accuracy(train),
        "validation_accuracy": history["validation_accuracy"][-1],
    }


def _draw_curves(axes: Axes, name: str, run: dict[str, Any]) -> None:
    epochs = range(1, len(run["train_loss"]) + 1)
    axes.plot(epochs, run["train_loss"], color=BLUE, linestyle=SOLID, label="training")
    axes.plot(epochs, run["validation_loss"], color=VERMILION, linestyle=DASHED, label="validation")
    axes.set(title=name, ylim=(0, 1.4 * max(*run["train_loss"], *run["validation_loss"])), xlim=(1, len(epochs)))
    summary = {
        "converging": f"both losses fall; gap {run['gap']:.2f}",
        "overfitting": f"validation loss {100 * run['rise']:+.0f} % since epoch {run['best_epoch']}",
        "underfitting": f"both losses stay high; gap {run['gap']:.2f}",
        "unstable": f"training loss up by a tenth or more in {run['ups']} epochs",
    }[name]
    correct = f"accuracy {100 * run['train_accuracy']:.0f} % and {100 * run['validation_accuracy']:.0f} %"
    text = f"{run['network']}, {run['samples']:,} samples\n{run['optimizer']}\n{summary}\n{correct}"
    note(axes, text, x=0.97, y=0.97)
    if name == "overfitting":
        axes.axvline(run["best_epoch"], color=GREY, linewidth=0.8)


def _describe(optimizer: Optimizer) -> str:
    momentum = f", momentum {optimizer.momentum:g}" if isinstance(optimizer, SGD) and optimizer.momentum else ""
    return f"{type(optimizer).__name__} {optimizer.learning_rate:g}{momentum}"


# -- Weight penalties ----------------------------------------------------------------------------------------


def true_function(x: HostArray) -> HostArray:
    """sin x + 0.3 x."""
    y: HostArray = np.sin(x) + 0.3 * x
    return y


class Polynomial:
    """A polynomial to be fitted by gradient descent to noisy points.

    In powers of x gradient descent would diverge: on [-3, 3] the 15th power reaches 14 million, and no learning
    rate suits both ends of that range. So x is scaled to [-1, 1], powers are replaced by Legendre polynomials,
    which are nearly uncorrelated there, and each is standardised over the training points. The same polynomials
    can be fitted.

    Attributes:
        x, y: training points, `x` drawn uniformly from [-3, 3].
        x_test, y_test: 200 evenly spaced test points with independent noise.
    """

    def __init__(self, degree: int, points: int, noise: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.degree = degree
        self.x = np.sort(rng.uniform(-REACH, REACH, points))
        self.y = true_function(self.x) + rng.normal(0.0, noise, points)
        self.x_test = np.linspace(-REACH, REACH, 200)
        self.y_test = true_function(self.x_test) + rng.normal(0.0, noise, 200)
        raw = self._legendre(self.x)
        self._mean, self._std = raw.mean(axis=0), raw.std(axis=0)

    def _legendre(self, x: HostArray) -> HostArray:
        return np.polynomial.legendre.legvander(x / REACH, self.degree)[:, 1:]

    def features(self, x: HostArray) -> HostArray:
        """``(points, degree + 1)``: standardised Legendre polynomials from degree 1, and a 1 for the bias."""
        return np.column_stack([(self._legendre(x) - self._mean) / self._std, np.ones(len(x))])

    def fit(self, penalty: Penalty, steps: int) -> dict[str, Any]:
        """Gradient descent with momentum on half the mean squared error plus the penalty of the weights.

        The learning rate decays exponentially: with a constant one, weights that an L1 penalty drives to 0 would
        oscillate around it.

        Returns:
            ``weights`` (from degree 1), the ``curve`` on ``x_test``, and for about 100 of the steps (``steps``)
            the mean squared errors ``train_mse`` and ``test_mse`` and the ``norms`` of the weights.
        """
        x, x_test = self.features(self.x), self.features(self.x_test)
        backend, optimizer, schedule = get_backend("cpu"), SGD(0.05, momentum=0.9), ExponentialDecay(4.0 / steps)
        theta, weights = np.zeros(self.degree + 1), slice(0, self.degree)
        state = optimizer.init(theta)
        recorded = sorted({0, *np.geomspace(1, steps, 100).astype(int).tolist()})
        train_mse, test_mse, norms = [], [], []
        for step in range(steps + 1):
            residual = x @ theta - self.y
            if step in recorded:
                train_mse.append(float(np.mean(residual**2)))
                test_mse.append(float(np.mean((x_test @ theta - self.y_test) ** 2)))
                norms.append(float(np.linalg.norm(theta[weights])))
            gradient = x.T @ residual / len(x)
            penalty.add_gradient(backend, theta[weights], gradient[weights], state.scratch[weights])
            if step < steps:
                rate = schedule(optimizer.learning_rate, step)
                optimizer.update(np, theta, gradient, state, rate)
        return {
            "penalty": repr(penalty),
            "weights": theta[weights].copy(),
            "curve": x_test @ theta,
            "steps": recorded,
            "train_mse": train_mse,
            "test_mse": test_mse,
            "norms": norms,
        }


@in_house_style
def regularization(
    data: Data | None = None,
    *,
    seed: int = 0,
    degree: int = 15,
    points: int = 20,
    noise: float = 0.25,
    steps: int = 20_000,
    l2: float = 0.05,
    l1: float = 0.03,
    samples: int = 2_000,
    validation: int = 5_000,
    hidden: int = 128,
    epochs: int = 30,
    network_l2: float = 3e-3,
    network_l1: float = 3e-4,
    device: str | Backend = "cpu",
) -> FigureResult:
    """The effect of no penalty, L2 and L1 on a polynomial fit and on a network trained on few samples.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of points, samples, initial weights and batch order.
        degree: of the polynomial.
        points: that it is fitted to, on sin x + 0.3 x.
        noise: standard deviation of their noise.
        steps: of gradient descent.
        l2, l1: penalties of the polynomial's weights, see `Penalty`.
        samples, validation: numbers of samples to train and to validate the network on.
        hidden: units of the network.
        epochs: of its training.
        network_l2, network_l1: penalties of its weights.
        device: of the network, as for `MLP`.

    Returns:
        The figure; in ``polynomial``, by penalty (none, L2, L1): the final ``weights``, the ``curve``, and
        ``steps`` with ``train_mse``, ``test_mse`` and ``norms`` at them; in ``network``, by penalty:
        ``train_loss`` and ``validation_loss`` after each epoch, the final ``gap`` between them, the accuracies,
        the ``weight_norm`` and the fraction of the weights below 0.001 (``weights_near_zero``).
    """
    polynomial = Polynomial(degree, points, noise, seed)
    fits = {
        name: polynomial.fit(penalty, steps)
        for name, penalty in {"none": Penalty(), "L2": Penalty(l2=l2), "L1": Penalty(l1=l1)}.items()
    }
    train, _ = load(data)
    parts = draw(train, (samples, validation), seed)
    penalties = {"none": Penalty(), "L2": Penalty(l2=network_l2), "L1": Penalty(l1=network_l1)}
    networks = {
        name: _train_penalised(parts[0], parts[1], penalty, hidden, epochs, seed, device)
        for name, penalty in penalties.items()
    }
    errors = ", ".join(f"{name} {fitted['test_mse'][-1]:.2f}" for name, fitted in fits.items())
    sheet = Sheet(
        f"Weight penalties: a polynomial of degree {degree}, and a network on {in_words(train)}",
        f"Polynomial: {points} points of sin x + 0.3 x with noise {noise:g}, {steps:,} steps of gradient descent "
        f"on standardised Legendre polynomials (powers of x would diverge), L2 {l2:g} or L1 {l1:g}; mean squared "
        f"test error: {errors}. Network: {train.features}-{hidden}-{train.classes} ReLU, {len(parts[0]):,} "
        f"samples, {epochs} epochs of SGD 0.1, L2 {network_l2:g} or L1 {network_l1:g}.",
        3,
        2,
        height=8.0,
    )
    _draw_polynomial(sheet.panels, polynomial, fits, {"none": "none", "L2": f"L2 {l2:g}", "L1": f"L1 {l1:g}"})
    network_labels = {"none": "none", "L2": f"L2 {network_l2:g}", "L1": f"L1 {network_l1:g}"}
    _draw_network(sheet.panels[4], networks, network_labels)
    _draw_gaps(sheet.panels[5], networks)
    facts = {"x": polynomial.x, "y": polynomial.y, "x_test": polynomial.x_test, "y_test": polynomial.y_test}
    return sheet.result({"data": in_words(train), "points": facts, "polynomial": fits, "network": networks})


def _train_penalised(
    train: Dataset,
    validation: Dataset,
    penalty: Penalty,
    hidden: int,
    epochs: int,
    seed: int,
    device: str | Backend,
) -> dict[str, Any]:
    model = MLP([train.features, hidden, train.classes], seed=seed, device=device)
    penalties = {"l2": penalty.l2, "l1": penalty.l1}
    _, curves = _train(
        model, train, validation, optimizer=SGD(0.1), epochs=epochs, batch_size=32, seed=seed, **penalties
    )
    weights = [tensor for name, tensor in model.state_dict().items() if name.endswith("weight")]
    flat = np.concatenate([tensor.ravel() for tensor in weights])
    return {
        "penalty": repr(penalty),
        **curves,
        "weight_norm": float(np.linalg.norm(flat)),
        "weights_near_zero": float(np.mean(np.abs(flat) < _NEAR_ZERO)),
    }


def _draw_polynomial(
    panels: list[Axes], polynomial: Polynomial, fits: dict[str, dict[str, Any]], labels: dict[str, str]
) -> None:
    fitted, errors, weights, norms = panels[:4]
    fitted.plot(
        polynomial.x_test, true_function(polynomial.x_test), color=GREY, linewidth=1, label="sin x + 0.3 x"
    )
    fitted.plot(polynomial.x, polynomial.y, "o", color=BLACK, markersize=4, label="training points")
    for index, (name, values) in enumerate(fits.items()):
        colour, line, marker = _PENALTY_LOOKS[name]
        fitted.plot(polynomial.x_test, values["curve"], color=colour, linestyle=line, label=labels[name])
        errors.plot(
            values["steps"], values["test_mse"], color=colour, linestyle=line, label=f"{labels[name]}, test"
        )
        errors.plot(values["steps"], values["train_mse"], color=colour, linestyle=line, linewidth=0.8, alpha=0.75)
        zeros = int((np.abs(values["weights"]) < _NEAR_ZERO).sum())
        places = np.arange(1, polynomial.degree + 1) + 0.24 * (index - 1)
        weights.vlines(places, 0, values["weights"], color=colour, linewidth=1.2)
        weights.plot(
            places,
            values["weights"],
            marker,
            color=colour,
            markersize=4,
            label=f"{labels[name]}: {zeros} of {polynomial.degree} at 0",
        )
        norms.plot(values["steps"], values["norms"], color=colour, linestyle=line, label=labels[name])
    fitted.set(title="fits", xlabel="x", ylabel="y", ylim=(-4.6, 2.8))
    errors.set(
        title="errors (thin: training)", xlabel="step", ylabel="mean squared error", xscale="symlog", yscale="log"
    )
    weights.set(title="final weights", xlabel="degree of the Legendre polynomial", ylabel="weight")
    weights.set_xticks(range(1, polynomial.degree + 1, 2))
    weights.axhline(0, color=BLACK, linewidth=0.6)
    norms.set(title="norm of the weights", xlabel="step", ylabel="‖w‖", xscale="symlog", ylim=(0, None))
    fitted.legend(loc="lower center", ncols=2, handlelength=2.6, fontsize=7.5)
    errors.legend(loc="lower left", handlelength=2.6, fontsize=7.5)
    weights.legend(loc="upper right", fontsize=7.5)
    norms.legend(loc="upper left", handlelength=2.6, fontsize=7.5)


def _draw_network(axes: Axes, networks: dict[str, dict[str, Any]], labels: dict[str, str]) -> None:
    for name, values in networks.items():
        colour, line, _ = _PENALTY_LOOKS[name]
        epochs = range(1, len(values["train_loss"]) + 1)
        axes.plot(
            epochs, values["validation_loss"], color=colour, linestyle=line, label=f"{labels[name]}, validation"
        )
        axes.plot(epochs, values["train_loss"], color=colour, linestyle=line, linewidth=0.8, alpha=0.75)
    axes.set(
        title="network: losses (thin: training)", xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None)
    )
    axes.legend(loc="upper right", handlelength=2.6, fontsize=7.5)


def _draw_gaps(axes: Axes, networks: dict[str, dict[str, Any]]) -> None:
    """For each penalty a bar from the training to the validation loss: its length is the gap."""
    for row, (name, values) in enumerate(networks.items()):
        colour, _, marker = _PENALTY_LOOKS[name]
        ends = (values["train_loss"][-1], values["validation_loss"][-1])
        axes.plot(ends, (row, row), color=colour, linewidth=3, alpha=0.5)
        axes.plot(ends[0], row, marker, color="white", markeredgecolor=colour, markersize=7, markeredgewidth=1.6)
        axes.plot(ends[1], row, marker, color=colour, markersize=7)
        text = f"gap {values['gap']:.2f}; accuracy {100 * values['train_accuracy']:.1f} % in training, "
        text += f"{100 * values['validation_accuracy']:.1f} % in validation"
        axes.text(0.004, row - 0.2, text, fontsize=7.5, va="bottom", ha="left")
    axes.set(title="network: the final gap", xlabel="loss (nats): training (open), validation (filled)")
    axes.set_yticks(range(len(networks)), list(networks))
    axes.set(ylim=(len(networks) - 0.5, -0.75), xlim=(0, None))
