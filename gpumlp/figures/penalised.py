"""Figure of weight penalties: on a polynomial, which can be seen, and on a network for MNIST."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import Backend
from ..data import Dataset
from ..nn import MLP, SGD, Penalty
from ..training import Trainer, fit
from .polynomial import Problem, true_function
from .samples import Data, draw, in_words, load
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
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = {"none": (VERMILION, SOLID, "o"), "L2": (BLUE, DASHED, "s"), "L1": (GREEN, DOTTED, "^")}
_NEAR_ZERO = 1e-3


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
    """What no penalty, L2 and L1 make of a polynomial fit, and of a network trained on few samples.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of points, samples, initial weights and batch order.
        degree: of the polynomial.
        points: that it is fitted to, on sin x + 0.3 x.
        noise: standard deviation of the noise on them.
        steps: of gradient descent.
        l2, l1: penalties of the polynomial's weights, see `Penalty`.
        samples, validation: to train the network on and to validate it with.
        hidden: units of the network.
        epochs: of its training.
        network_l2, network_l1: penalties of its weights.
        device: of the network, as for `MLP`.

    Returns:
        The figure; in ``polynomial``, by penalty (none, L2, L1): the final ``weights``, the ``curve``, and
        ``steps`` with ``train_mse``, ``test_mse`` and ``norms`` at them; in ``network``, by penalty:
        ``train_loss`` and ``validation_loss`` after each epoch, the final ``gap`` between them, the accuracies,
        the ``weight_norm`` and the part of the weights that are below 0.001 (``weights_near_zero``).
    """
    problem = Problem(degree, points, noise, seed)
    fits = {
        name: problem.fit(penalty, steps)
        for name, penalty in {"none": Penalty(), "L2": Penalty(l2=l2), "L1": Penalty(l1=l1)}.items()
    }
    train, _ = load(data)
    parts = draw(train, (samples, validation), seed)
    penalties = {"none": Penalty(), "L2": Penalty(l2=network_l2), "L1": Penalty(l1=network_l1)}
    networks = {
        name: _train(parts[0], parts[1], penalty, hidden, epochs, seed, device)
        for name, penalty in penalties.items()
    }
    errors = ", ".join(f"{name} {fitted['test_mse'][-1]:.2f}" for name, fitted in fits.items())
    sheet = Sheet(
        f"Weight penalties: a polynomial of degree {degree}, and a network on {in_words(train)}",
        f"Polynomial: {points} points of sin x + 0.3 x with noise {noise:g}, {steps:,} steps of gradient descent "
        f"on standardised Legendre polynomials (powers of x explode), L2 {l2:g} or L1 {l1:g}; mean squared test "
        f"error: {errors}. Network: {train.features}-{hidden}-{train.classes} ReLU, {len(parts[0]):,} samples, "
        f"{epochs} epochs of SGD 0.1, L2 {network_l2:g} or L1 {network_l1:g}.",
        3,
        2,
        height=8.0,
    )
    _draw_polynomial(sheet.panels, problem, fits)
    _draw_network(sheet.panels[4], networks)
    _draw_gaps(sheet.panels[5], networks)
    facts = {"x": problem.x, "y": problem.y, "x_test": problem.x_test, "y_test": problem.y_test}
    return sheet.result({"data": in_words(train), "points": facts, "polynomial": fits, "network": networks})


def _train(
    train: Dataset,
    validation: Dataset,
    penalty: Penalty,
    hidden: int,
    epochs: int,
    seed: int,
    device: str | Backend,
) -> dict[str, Any]:
    model = MLP([train.features, hidden, train.classes], seed=seed, device=device)
    train_loss: list[float] = []

    def look(trainer: Trainer) -> None:
        train_loss.append(trainer.model.evaluate(train).loss)

    history = fit(
        model,
        train,
        optimizer=SGD(0.1),
        epochs=epochs,
        batch_size=32,
        validation=validation,
        l2=penalty.l2,
        l1=penalty.l1,
        seed=seed,
        callbacks=[look],
    )
    weights = [tensor for name, tensor in model.state_dict().items() if name.endswith("weight")]
    flat = np.concatenate([tensor.ravel() for tensor in weights])
    return {
        "penalty": repr(penalty),
        "train_loss": train_loss,
        "validation_loss": history["validation_loss"],
        "gap": history["validation_loss"][-1] - train_loss[-1],
        "train_accuracy": model.accuracy(train),
        "validation_accuracy": history["validation_accuracy"][-1],
        "weight_norm": float(np.linalg.norm(flat)),
        "weights_near_zero": float(np.mean(np.abs(flat) < _NEAR_ZERO)),
    }


def _draw_polynomial(panels: list[Axes], problem: Problem, fits: dict[str, dict[str, Any]]) -> None:
    fitted, errors, weights, norms = panels[:4]
    fitted.plot(problem.x_test, true_function(problem.x_test), color=GREY, linewidth=1, label="sin x + 0.3 x")
    fitted.plot(problem.x, problem.y, "o", color=BLACK, markersize=4, label="training points")
    for index, (name, values) in enumerate(fits.items()):
        colour, line, marker = _LOOKS[name]
        fitted.plot(problem.x_test, values["curve"], color=colour, linestyle=line, label=name)
        errors.plot(values["steps"], values["test_mse"], color=colour, linestyle=line, label=f"{name}, test")
        errors.plot(values["steps"], values["train_mse"], color=colour, linestyle=line, linewidth=0.8, alpha=0.75)
        zeros = int((np.abs(values["weights"]) < _NEAR_ZERO).sum())
        places = np.arange(1, problem.degree + 1) + 0.24 * (index - 1)
        weights.vlines(places, 0, values["weights"], color=colour, linewidth=1.2)
        weights.plot(
            places,
            values["weights"],
            marker,
            color=colour,
            markersize=4,
            label=f"{name}: {zeros} of {problem.degree} at 0",
        )
        norms.plot(values["steps"], values["norms"], color=colour, linestyle=line, label=name)
    fitted.set(title="fits", xlabel="x", ylabel="y", ylim=(-4.6, 2.8))
    errors.set(
        title="errors (thin: training)", xlabel="step", ylabel="mean squared error", xscale="symlog", yscale="log"
    )
    weights.set(title="final weights", xlabel="degree of the Legendre polynomial", ylabel="weight")
    weights.set_xticks(range(1, problem.degree + 1, 2))
    weights.axhline(0, color=BLACK, linewidth=0.6)
    norms.set(title="norm of the weights", xlabel="step", ylabel="‖w‖", xscale="symlog", ylim=(0, None))
    fitted.legend(loc="lower center", ncols=2, handlelength=2.6, fontsize=7.5)
    errors.legend(loc="lower left", handlelength=2.6, fontsize=7.5)
    weights.legend(loc="upper right", fontsize=7.5)
    norms.legend(loc="upper left", handlelength=2.6, fontsize=7.5)


def _draw_network(axes: Axes, networks: dict[str, dict[str, Any]]) -> None:
    for name, values in networks.items():
        colour, line, _ = _LOOKS[name]
        epochs = range(1, len(values["train_loss"]) + 1)
        axes.plot(epochs, values["validation_loss"], color=colour, linestyle=line, label=f"{name}, validation")
        axes.plot(epochs, values["train_loss"], color=colour, linestyle=line, linewidth=0.8, alpha=0.75)
    axes.set(
        title="network: losses (thin: training)", xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None)
    )
    axes.legend(loc="upper right", handlelength=2.6, fontsize=7.5)


def _draw_gaps(axes: Axes, networks: dict[str, dict[str, Any]]) -> None:
    """A bar from the training loss to the validation loss for each penalty: its length is the gap."""
    for row, (name, values) in enumerate(networks.items()):
        colour, _, marker = _LOOKS[name]
        ends = (values["train_loss"][-1], values["validation_loss"][-1])
        axes.plot(ends, (row, row), color=colour, linewidth=3, alpha=0.5)
        axes.plot(ends[0], row, marker, color="white", markeredgecolor=colour, markersize=7, markeredgewidth=1.6)
        axes.plot(ends[1], row, marker, color=colour, markersize=7)
        text = f"gap {values['gap']:.2f}; correct {100 * values['train_accuracy']:.1f} % in training, "
        text += f"{100 * values['validation_accuracy']:.1f} % in validation"
        axes.text(0.004, row - 0.2, text, fontsize=7.5, va="bottom", ha="left")
    axes.set(
        title="network: the gap in the end", xlabel="cross-entropy (nats): training (open), validation (full)"
    )
    axes.set_yticks(range(len(networks)), list(networks))
    axes.set(ylim=(len(networks) - 0.5, -0.75), xlim=(0, None))
