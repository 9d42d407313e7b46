"""What happened in each epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from ..diagnostics import Finding, LayerStatistics, Setting, find, trend


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: a line of ``history.jsonl``.

    Losses are mean cross-entropies without the weight penalty and accuracies are fractions. The training
    ones are running means over the epoch's batches, each before its own update; the validation ones are
    taken after the epoch, and None without validation samples. `layers` is None where the diagnostics were off,
    and after some of the epochs that are short (`gpumlp.diagnostics.statistics.is_due`).
    """

    epoch: int  # counted from 1
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float  # of training: neither validation nor saving is in it
    samples_per_second: float
    layers: tuple[LayerStatistics, ...] | None = None

    def to_json(self) -> str:
        return self._json

    @cached_property
    def _json(self) -> str:  # kept, because every checkpoint holds the lines of all epochs before
        values = {field.name: getattr(self, field.name) for field in fields(self)}
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


class History:
    """The records of a training, one per epoch.

    Attributes:
        records: the `EpochRecord`, in order.
        interrupted: was the training stopped by the keyboard?
        setting: how the network was trained, for the findings; None where nobody has said.

    >>> history = History()
    >>> history.append(EpochRecord(1, 0.5, 0.8, 0.4, 0.9, 0.1, 2.0, 500.0))
    >>> history["validation_accuracy"], history.seconds
    ([0.9], 2.0)
    """

    def __init__(self, records: list[EpochRecord] | None = None) -> None:
        self.records = list(records or [])
        self.interrupted = False
        self.setting: Setting | None = None

    def append(self, record: EpochRecord) -> None:
        self.records.append(record)

    def __getitem__(self, name: str) -> list[Any]:
        """A column: the values of one field of `EpochRecord`, by epoch."""
        return [getattr(record, name) for record in self.records]

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def findings(self) -> list[Finding]:
        """What is wrong with the training, each with evidence and advice; nothing is an empty list.

        Raises:
            ValueError: the history is not that of a `Trainer` or of `fit`.
        """
        if self.setting is None:
            raise ValueError(
                "findings are expected to be asked of the history of a training; this one has no setting"
            )
        return find(self.records, self.setting)

    def trend(self) -> str | None:
        """converging, overfitting, underfitting, unstable or diverging; None after fewer than two epochs."""
        if self.setting is None:
            raise ValueError(
                "a trend is expected to be asked of the history of a training; this one has no setting"
            )
        return trend(self.records, self.setting)

    @property
    def seconds(self) -> float:
        """Seconds of training in all."""
        return sum(record.seconds for record in self.records)

    @property
    def samples_per_second(self) -> float:
        """Mean throughput over all epochs."""
        samples = sum(record.samples_per_second * record.seconds for record in self.records)
        return samples / self.seconds if self.seconds else 0.0

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from .notebook import history_html

        return history_html(self)

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epochs)"
        last = self.records[-1]
        validation = "" if last.validation_loss is None else f", validation_loss={last.validation_loss:.4f}"
        return f"History({len(self)} epochs, train_loss={last.train_loss:.4f}{validation})"
