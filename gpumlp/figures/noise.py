"""Figure of the batch size: what a step costs, and how much it is worth."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..backends import Backend
from ..data import Dataset
from ..nn import MLP, SGD
from ..training import Callback, Trainer
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
    in_house_style,
    plain_log_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = ((BLUE, SOLID, "o"), (VERMILION, DASHED, "s"), (GREEN, DOTTED, "^"))


class _Probe(Callback):
    """Takes the loss on the same samples now and then in an epoch, and keeps the time that this takes apart.

    Attributes:
        samples, seconds, losses: by look: samples seen in training, seconds of training, mean loss in nats.
    """

    def __init__(self, model: MLP, probe: Dataset) -> None:
        self._model, self._probe = model, probe
        self._apart = self._begin = 0.0
        self.samples: list[int] = [0]
        self.seconds: list[float] = [0.0]
        self.losses: list[float] = [model.evaluate(probe).loss]

    def on_train_begin(self, trainer: Trainer) -> None:
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
    """Batch, mini-batch and single-sample gradient descent on one network: loss over samples and over seconds.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of samples, initial weights and batch order.
        samples: to train on.
        probe: samples, not trained on, that the loss is taken on, at most 20 times an epoch.
        hidden: units of the one hidden layer.
        batch_epochs, mini_batch_epochs, single_epochs: how long each trains.
        device: as for `MLP`.

    Returns:
        The figure; in ``runs``, by name (batch, mini-batch, single sample): ``batch_size``, ``learning_rate``,
        ``steps``, and by look ``samples`` seen, ``seconds`` of training (validation apart) and ``losses``;
        ``device``, what the seconds were measured on.
    """
    train, _ = load(data)
    parts = draw(train, (samples, probe), seed)
    count = len(parts[0])
    plans = {
        "batch": (count, 0.5, batch_epochs),
        "mini-batch": (min(64, count), 0.1, mini_batch_epochs),
        "single sample": (1, 0.01, single_epochs),
    }
    runs: dict[str, dict[str, Any]] = {}
    for name, (size, rate, epochs) in plans.items():
        model = MLP([train.features, hidden, train.classes], seed=seed, device=device)
        looks = _Probe(model, parts[1])
        trainer = Trainer(model, parts[0], optimizer=SGD(rate), batch_size=size, seed=seed)
        trainer.run(epochs, [looks])
        runs[name] = {
            "batch_size": size,
            "learning_rate": rate,
            "steps": epochs * len(trainer.batches.slices),
            "samples": looks.samples,
            "seconds": looks.seconds,
            "losses": looks.losses,
        }
    place = model.backend.device_name
    sheet = Sheet(
        f"Batch, mini-batch and single-sample gradient descent on {in_words(train)}",
        f"One {'-'.join(map(str, model.sizes))} ReLU network from the same weights, {count:,} training "
        f"samples; loss on {len(parts[1]):,} others. Each with a learning rate that suits it: "
        + ", ".join(f"{name} {run['learning_rate']:g} ({run['steps']:,} steps)" for name, run in runs.items())
        + f". Seconds of training alone, on {place}.",
        1,
        2,
        height=3.7,
        sharey=True,
    )
    _draw(sheet.panels[0], runs, "samples", "samples seen")
    _draw(sheet.panels[1], runs, "seconds", "seconds of training")
    sheet.panels[0].set_ylabel("loss on samples not trained on (nats)")
    sheet.panels[0].legend(loc="lower left", handlelength=3)
    return sheet.result({"data": in_words(train), "device": place, "runs": runs})


def _draw(axes: Axes, runs: dict[str, dict[str, Any]], over: str, label: str) -> None:
    for (name, run), (colour, line, marker) in zip(runs.items(), _LOOKS, strict=True):
        text = f"{name} ({run['batch_size']:,})" if run["batch_size"] > 1 else name
        axes.plot(
            run[over][1:],  # both axes are logarithmic: the start has no place on them
            run["losses"][1:],
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=3,
            markevery=0.08,
            linewidth=1.3,
            label=text,
        )
    axes.set(xscale="log", yscale="log", xlabel=label, title=f"over {label}", ylim=(0.14, None))
    plain_log_axis(axes.yaxis)
