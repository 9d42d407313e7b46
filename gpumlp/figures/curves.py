"""Figure of four learning curves that one should recognise, each from a training that does what its name says."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backends import Backend
from ..data import Dataset
from ..nn import MLP, SGD, Adam
from ..nn.optimizers import Optimizer
from ..training import Trainer, fit
from .samples import Data, draw, in_words, load
from .style import BLUE, DASHED, GREY, SOLID, VERMILION, FigureResult, Sheet, in_house_style, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Run(NamedTuple):
    """How to train one of the four: `share` is the part of the samples, `units` those of the hidden layer."""

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
    """A converging, an overfitting, an underfitting and an unstable training.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of samples, initial weights and batch order.
        samples: to train on; the overfitting run gets 1/20 of them, the unstable one half.
        validation: samples to validate with.
        epochs: of each training.
        device: as for `MLP`.

    Returns:
        The figure; in ``runs``, by name: ``train_loss`` and ``validation_loss`` after each epoch and the final
        accuracies, and what makes it that run: ``best_epoch`` (of the lowest validation loss, from 1), ``rise``
        (the final validation loss over the lowest, less 1), ``gap`` (final validation less training loss),
        ``ups`` (in how many epochs the training loss rose by more than a tenth), and what the diagnostics call it,
        ``trend``.
    """
    train, _ = load(data)
    whole, held_out = draw(train, (samples, validation), seed)
    runs = {name: _train(run, whole, held_out, epochs, seed, device) for name, run in _RUNS.items()}
    sheet = Sheet(
        f"Four learning curves on {in_words(train)}",
        f"Each a training of its own over {epochs} epochs with batches of 64; losses are taken after each epoch "
        f"on all training samples and on {len(held_out):,} others. Correct: in training and in validation. "
        "Each panel has its own axis.",
        2,
        2,
        height=5.9,
    )
    for axes, (name, run) in zip(sheet.panels, runs.items(), strict=True):
        _draw(axes, name, run)
    for axes in sheet.panels[2:]:
        axes.set_xlabel("epoch")
    for axes in sheet.panels[::2]:
        axes.set_ylabel("cross-entropy (nats)")
    sheet.panels[0].legend(loc="center right", handlelength=2.8)
    return sheet.result({"data": in_words(train), "runs": runs})


def _train(
    run: _Run, whole: Dataset, validation: Dataset, epochs: int, seed: int, device: str | Backend
) -> dict[str, Any]:
    train = whole if run.share == 1 else draw(whole, (max(1, int(run.share * len(whole))),), seed)[0]
    model = MLP([train.features, run.units, train.classes], run.activation, seed=seed, device=device)
    losses: list[float] = []

    def look(trainer: Trainer) -> None:
        losses.append(trainer.model.evaluate(train).loss)

    history = fit(
        model,
        train,
        optimizer=run.optimizer,
        epochs=epochs,
        batch_size=64,
        validation=validation,
        seed=seed,
        callbacks=[look],
    )
    validated = history["validation_loss"]
    return {
        "network": f"{'-'.join(map(str, model.sizes))} {model.activation.name}",
        "optimizer": _in_words(run.optimizer),
        "samples": len(train),
        "train_loss": losses,
        "validation_loss": validated,
        "train_accuracy": model.accuracy(train),
        "validation_accuracy": history["validation_accuracy"][-1],
        "best_epoch": 1 + int(np.argmin(validated)),
        "rise": validated[-1] / min(validated) - 1,
        "gap": validated[-1] - losses[-1],
        "ups": sum(after > 1.1 * before for before, after in itertools.pairwise(losses)),
        "trend": history.trend(),
    }


def _draw(axes: Axes, name: str, run: dict[str, Any]) -> None:
    epochs = range(1, len(run["train_loss"]) + 1)
    axes.plot(epochs, run["train_loss"], color=BLUE, linestyle=SOLID, label="training")
    axes.plot(epochs, run["validation_loss"], color=VERMILION, linestyle=DASHED, label="validation")
    axes.set(title=name, ylim=(0, 1.4 * max(*run["train_loss"], *run["validation_loss"])), xlim=(1, len(epochs)))
    said = {
        "converging": f"both losses fall; gap {run['gap']:.2f}",
        "overfitting": f"validation loss {100 * run['rise']:+.0f} % since epoch {run['best_epoch']}",
        "underfitting": f"both losses stay high; gap {run['gap']:.2f}",
        "unstable": f"training loss up by a tenth or more in {run['ups']} epochs",
    }[name]
    correct = f"{100 * run['train_accuracy']:.0f} % and {100 * run['validation_accuracy']:.0f} % correct"
    text = f"{run['network']}, {run['samples']:,} samples\n{run['optimizer']}\n{said}\n{correct}"
    note(axes, text, x=0.97, y=0.97)
    if name == "overfitting":
        axes.axvline(run["best_epoch"], color=GREY, linewidth=0.8)


def _in_words(optimizer: Optimizer) -> str:
    momentum = f", momentum {optimizer.momentum:g}" if isinstance(optimizer, SGD) and optimizer.momentum else ""
    return f"{type(optimizer).__name__} {optimizer.learning_rate:g}{momentum}"
