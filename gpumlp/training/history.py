"""What happened in each epoch: the records, the best epoch, and what the diagnostics say of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..nn.layers import Dropout
from ..nn.metrics import HIGHER_IS_BETTER, METRIC_WORDS, Task
from ..nn.optimizers import SGD, Optimizer, Penalty
from ..nn.schedules import Constant, Schedule
from ..words import shown

if TYPE_CHECKING:
    from ..nn.network import MLP

# The columns of a history that tell how good a network is, and whether more is better.
MONITORS = {f"{part}_{name}": more for part in ("train", "validation") for name, more in HIGHER_IS_BETTER.items()}


def checked_monitor(monitor: object) -> str:
    """The name of a column that can be watched. Raises ValueError if it is something else."""
    if not isinstance(monitor, str) or monitor not in MONITORS:
        raise ValueError(f"monitor is expected to be one of {', '.join(MONITORS)}, got {monitor!r}")
    return monitor


def monitor_words(monitor: str) -> str:
    """What one of `MONITORS` is called.

    >>> monitor_words("train_mae")
    'training mean absolute error'
    """
    part, _, name = monitor.partition("_")
    return f"{'training' if part == 'train' else part} {METRIC_WORDS[name]}"


@dataclass(frozen=True)
class LayerStatistics:
    """One layer after one epoch; a part of a line of ``history.jsonl``.

    Norms are Euclidean and of the weights only, without the biases. Numbers that are too large for the network's
    dtype are None.

    Attributes:
        gradient_norm: of the gradient of the mean loss, without the weight penalty, over `gradient_samples`.
        update_ratio: how far the epoch has moved the weights: the norm of their change over their norm at its end.
            With a moving average of the parameters, it and `weight_norm` are about the weights that the steps
            change, all else about the average.
        weight_norm: at the epoch's end.
        dead: the share of ReLU units whose output is 0 for all `samples`; None for layers of other activations.
        saturated: the share of outputs of tanh or sigmoid where the slope is below 2 % of its largest, over
            `gradient_samples`; None for layers of other activations.
        samples: number of samples of the forward pass: some of the validation samples, or else of the training
            samples.
        gradient_samples: number of them that the gradient is taken from.
        largest_input: of the network, in absolute value, over `gradient_samples`, in the first layer; None in the
            others, and in runs of earlier versions.
        mean, deviation: of a hidden layer's outputs, over units and `gradient_samples`; None for the output layer,
            and in runs of earlier versions.
    """

    gradient_norm: float | None
    update_ratio: float | None
    weight_norm: float | None
    dead: float | None
    saturated: float | None
    samples: int
    gradient_samples: int
    largest_input: float | None = None
    mean: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: a line of ``history.jsonl``.

    Losses are means without the weight penalty, with sample weights weighted means over all samples; for the
    other metrics see `gpumlp.nn.metrics.Evaluation`. Those that do not exist for the targets are None and,
    except the accuracy, not in the file. The training ones are taken over the epoch's batches, each before its own
    update; the validation ones after the epoch, and None without validation samples. `learning_rate` is that of
    the epoch's last step. `layers` is None where the diagnostics are off, and after some of the epochs that are
    short (`gpumlp.diagnostics.is_due`).
    """

    epoch: int  # counted from 1
    train_loss: float
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float  # of training: neither validation nor saving is included
    samples_per_second: float
    layers: tuple[LayerStatistics, ...] | None = None
    train_label_accuracy: float | None = None
    train_r2: float | None = None
    train_mae: float | None = None
    validation_label_accuracy: float | None = None
    validation_r2: float | None = None
    validation_mae: float | None = None

    @property
    def task(self) -> Task:
        """What the targets are, as its metrics tell."""
        if self.train_r2 is not None:
            return "numbers"
        return "classes" if self.train_label_accuracy is None else "labels"

    def to_json(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        others = [
            name for name in values if name.endswith(("label_accuracy", "r2", "mae")) and values[name] is None
        ]
        values = {name: value for name, value in values.items() if name not in others}
        if self.layers is not None:
            values["layers"] = [vars(layer) for layer in self.layers]
        return json.dumps(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EpochRecord:
        """Raises TypeError if the names are not the fields'."""
        layers = values.get("layers")
        if layers is not None:
            values = {**values, "layers": tuple(LayerStatistics(**layer) for layer in layers)}
        return cls(**values)


class Best(NamedTuple):
    """The best epoch, counted from 1, its value, and the number of epochs since."""

    epoch: int
    value: float
    since: int


class BestSoFar:
    """The best epoch of a column that grows; adding an epoch takes constant time.

    Args:
        monitor: the name of the column: a loss is best where it is lowest, an accuracy where it is highest.
        min_delta: a value is a new best one only if it is better by more than this.

    Attributes:
        epochs: number of values that were added.
    """

    def __init__(self, monitor: str = "validation_loss", min_delta: float = 0.0) -> None:
        self.monitor, self.min_delta = monitor, min_delta
        self.epochs = 0
        self._sign = -1.0 if MONITORS[monitor] else 1.0
        self._best: tuple[int, float] | None = None

    def add(self, value: float | None) -> None:
        """Add the value of the next epoch; None and values that are not finite are ignored."""
        self.epochs += 1
        if value is None or not math.isfinite(value):
            return
        if self._best is None or self._sign * value < self._sign * self._best[1] - self.min_delta:
            self._best = self.epochs, value

    def add_new(self, history: History) -> Best | None:
        """Add the epochs of a history that were not added before; returns `best`."""
        for record in history.records[self.epochs :]:
            self.add(getattr(record, self.monitor))
        return self.best

    @property
    def best(self) -> Best | None:
        """The best epoch; None without an epoch or without values."""
        return None if self._best is None else Best(*self._best, self.epochs - self._best[0])


def best_epoch(
    values: Sequence[float | None], monitor: str = "validation_loss", min_delta: float = 0.0
) -> Best | None:
    """The best epoch of a column, a value for each epoch; see `BestSoFar`.

    >>> best_epoch([0.5, 0.3, 0.4], "train_loss")
    Best(epoch=2, value=0.3, since=1)
    """
    so_far = BestSoFar(monitor, min_delta)
    for value in values:
        so_far.add(value)
    return so_far.best


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs and is predicted in some samples, after training.

    Attributes:
        kind: of the samples, ``"validation"`` or ``"training"``.
        samples: number of samples of each class.
        predicted: number of samples for which each class is predicted.
        correct: number of samples of each class for which it is predicted.
        names: of the classes.
    """

    kind: str
    samples: tuple[int, ...]
    predicted: tuple[int, ...]
    correct: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training run.

    Attributes:
        name: of the problem, such as ``"dead units"``.
        message: a whole sentence: the evidence in figures, the likely cause, and what to try.
        layer: the layer it is in, counted from 1 (the first hidden layer), the lowest if it is in several; None
            if it is about the whole network.
    """

    name: str
    message: str
    layer: int | None = None


@dataclass(frozen=True)
class Setting:
    """How a network is trained, as far as the advice of a `Finding` depends on it.

    Attributes:
        classes: of the data. 0 where there are none; then only units are judged, because the size of a loss or a
            gradient means nothing.
        activation: the name of that of the hidden layers; of several, their names with commas.
        hidden: units of each hidden layer.
        optimizer: ``"SGD"``, ``"Adam"``, ...
        momentum: of SGD; 0 without it.
        l2, l1: the weight penalty.
        constant_rate: does the learning rate stay the same?
        label_entropy: of the training labels, weighted as they are, in nats; None if unknown.
        label_smoothing: of the loss.
        class_weight: do classes have weights?
        dropout: the largest rate; 0 without it.
        augment: are training images distorted?
        ema: of the moving average of the parameters, which is the network; 0 without it.
        steps: of an epoch; 0 if unknown.
        early_stopping: is training stopped early, and the network of the best epoch kept?
    """

    classes: int
    activation: str = "relu"
    hidden: tuple[int, ...] = ()
    optimizer: str = "SGD"
    momentum: float = 0.0
    l2: float = 0.0
    l1: float = 0.0
    constant_rate: bool = True
    label_entropy: float | None = None
    label_smoothing: float = 0.0
    class_weight: bool = False
    dropout: float = 0.0
    augment: bool = False
    ema: float = 0.0
    steps: int = 0
    early_stopping: bool = False

    @classmethod
    def of(
        cls,
        model: MLP,
        optimizer: Optimizer,
        schedule: Schedule,
        penalty: Penalty,
        label_entropy: float | None,
        **others: Any,
    ) -> Setting:
        """From the objects that a network is trained with, and the values of other attributes."""
        return cls(
            classes=model.sizes[-1] if model.loss.task == "classes" else 0,
            activation=model.activation_names,
            hidden=tuple(model.sizes[1:-1]),
            optimizer=type(optimizer).__name__,
            momentum=optimizer.momentum if isinstance(optimizer, SGD) else 0.0,
            l2=penalty.l2,
            l1=penalty.l1,
            constant_rate=isinstance(schedule, Constant),
            label_entropy=label_entropy,
            label_smoothing=getattr(model.loss, "label_smoothing", 0.0),
            dropout=max((layer.rate for layer in model.layers if isinstance(layer, Dropout)), default=0.0),
            **others,
        )

    @property
    def harder(self) -> bool:
        """Is the loss in training higher than in use, and noisier: with dropout, or on distorted images?"""
        return self.augment or self.dropout > 0

    @property
    def ignorance(self) -> float:
        """The loss of taking all classes for equally likely, in nats."""
        return math.log(self.classes)

    @property
    def guessing(self) -> float:
        """The loss of a guess that knows how frequent each class is, in nats; `ignorance` if that is unknown.

        With label smoothing it is at least this, since entropy is concave.
        """
        eps = self.label_smoothing
        return (1 - eps) * (self.label_entropy or self.ignorance) + eps * self.ignorance

    @property
    def floor(self) -> float:
        """The lowest loss possible, in nats: with label smoothing, the entropy of the targets."""
        each = self.label_smoothing / self.classes
        right = 1 - self.label_smoothing + each
        return -right * math.log(right) - (self.classes - 1) * each * math.log(each) if each else 0.0

    def above_floor(self, loss: float) -> float:
        """A loss as a part of that of guessing, where `floor` is 0."""
        return (loss - self.floor) / (self.guessing - self.floor)


class History:
    """The records of a training run, one per epoch.

    Attributes:
        records: the `EpochRecord`, in order.
        interrupted: was training stopped by the keyboard?
        setting: how the network was trained, for the findings; None if unknown.
        classes: how often each class is predicted after training; None before, and without diagnostics.

    >>> history = History()
    >>> history.append(EpochRecord(1, 0.5, 0.8, 0.4, 0.9, 0.1, 2.0, 500.0))
    >>> history["validation_accuracy"], history.seconds
    ([0.9], 2.0)
    """

    def __init__(self, records: list[EpochRecord] | None = None) -> None:
        self.records = list(records or [])
        self.interrupted = False
        self.setting: Setting | None = None
        self.classes: ClassCounts | None = None

    def append(self, record: EpochRecord) -> None:
        self.records.append(record)

    def __getitem__(self, name: str) -> list[Any]:
        """A column: the values of one field of `EpochRecord`, by epoch."""
        columns = [field.name for field in fields(EpochRecord)]
        if name not in columns:
            raise KeyError(f"a column is expected to be one of {', '.join(columns)}, got {shown(name)}")
        return [getattr(record, name) for record in self.records]

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def best(self, monitor: str = "validation_loss") -> Best | None:
        """The best epoch by one of the columns in `MONITORS`, see `best_epoch`.

        Raises:
            ValueError: there is no such column.
        """
        return best_epoch(self[checked_monitor(monitor)], monitor)

    def findings(self) -> list[Finding]:
        """What is wrong with training, each with evidence and advice; an empty list if nothing is.

        Raises:
            ValueError: the history is not that of a `Trainer` or of `fit`.
        """
        from ..diagnostics import find  # imports this module

        return find(self.records, self._known_setting(), self.classes)

    def trend(self) -> str | None:
        """converging, overfitting, underfitting, unstable or diverging; None after fewer than two epochs.

        Only for classes; None for labels and numbers.

        Raises:
            ValueError: the history is not that of a `Trainer` or of `fit`.
        """
        from ..diagnostics import trend  # imports this module

        return trend(self.records, self._known_setting())

    def keeps_best(self) -> None:
        """Say that the network of the lowest validation loss is kept: findings are about it, not the last."""
        if self.setting is not None:
            self.setting = replace(self.setting, early_stopping=True)

    def _known_setting(self) -> Setting:
        if self.setting is None:
            raise ValueError("findings and trend need the history of a Trainer or of fit; this one has no setting")
        return self.setting

    @property
    def seconds(self) -> float:
        """Seconds of training in all."""
        return sum(record.seconds for record in self.records)

    @property
    def samples_per_second(self) -> float:
        """Mean throughput over all epochs."""
        return throughput(self.records)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from ..notebook import history_html

        return history_html(self)

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epochs)"
        last = self.records[-1]
        validation = "" if last.validation_loss is None else f", validation_loss={last.validation_loss:.4f}"
        epochs = f"{len(self):,} epoch{'s' if len(self) > 1 else ''}"
        return f"History({epochs}, train_loss={last.train_loss:.4f}{validation})"


def per_second(count: float, seconds: float) -> float:
    """A rate; 0, for an unknown one, where the clock has not advanced."""
    return count / seconds if seconds > 0 else 0.0


def throughput(records: Sequence[EpochRecord]) -> float:
    """Mean samples per second of some epochs; 0 for none."""
    seconds = sum(record.seconds for record in records)
    return per_second(sum(record.samples_per_second * record.seconds for record in records), seconds)


def starting_seconds(records: Sequence[EpochRecord]) -> float | None:
    """Seconds that the first of some epochs took longer than it takes at the others' mean throughput.

    On a GPU that is mostly the compilation of kernels. None with fewer than two epochs.
    """
    if len(records) < 2:
        return None
    first, rate = records[0], throughput(records[1:])
    return max(0.0, first.seconds - first.samples_per_second * first.seconds / rate) if rate else 0.0
