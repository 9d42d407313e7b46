"""What the rules read and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .statistics import LayerStatistics


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training.

    Attributes:
        name: which of the known illnesses, such as ``"dead units"``.
        message: a whole sentence: the evidence in figures, the likely cause, and what to try.
        layer: which layer it is in, counted from 1 (the first hidden layer), the lowest if it is in several; None
            if it is the whole network.
    """

    name: str
    message: str
    layer: int | None = None


@dataclass(frozen=True)
class Setting:
    """How a network is trained, as far as advice depends on it.

    Attributes:
        classes: of the data. Below 2 where there are none, and then only units are judged: the size of a loss or
            a gradient means nothing there.
        activation: the name of that of the hidden layers.
        hidden: units of each hidden layer.
        optimizer: ``"SGD"``, ``"Adam"``, ...
        momentum: of SGD; 0 without it.
        l2, l1: the weight penalty.
        constant_rate: does the learning rate stay as it is?
        label_entropy: of the training labels, in nats; None where it is not known.
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

    @property
    def ignorance(self) -> float:
        """The loss of taking all classes for equally likely, in nats."""
        return math.log(self.classes)

    @property
    def guessing(self) -> float:
        """The loss of a guess that knows how frequent each class is, in nats; `ignorance` if nobody does."""
        return self.label_entropy or self.ignorance


class Record(Protocol):
    """What the rules need of an epoch; ``EpochRecord`` has it."""

    @property
    def train_loss(self) -> float: ...
    @property
    def train_accuracy(self) -> float: ...
    @property
    def validation_loss(self) -> float | None: ...
    @property
    def validation_accuracy(self) -> float | None: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def layers(self) -> Sequence[LayerStatistics] | None: ...
