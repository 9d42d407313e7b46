"""What happened in each epoch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: a line of ``history.jsonl``.

    Losses are mean cross-entropies without the weight penalty and accuracies are fractions. The training
    ones are running means over the epoch's batches, each before its own update; the validation ones are
    taken after the epoch, and None without validation samples.
    """

    epoch: int  # counted from 1
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float  # of training: neither validation nor saving is in it
    samples_per_second: float

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EpochRecord:
        """Raises TypeError if the names are not the fields'."""
        return cls(**values)


class History:
    """The records of a training, one per epoch.

    Attributes:
        records: the `EpochRecord`, in order.
        interrupted: was the training stopped by the keyboard?

    >>> history = History()
    >>> history.append(EpochRecord(1, 0.5, 0.8, 0.4, 0.9, 0.1, 2.0, 500.0))
    >>> history["validation_accuracy"], history.seconds
    ([0.9], 2.0)
    """

    def __init__(self, records: list[EpochRecord] | None = None) -> None:
        self.records = list(records or [])
        self.interrupted = False

    def append(self, record: EpochRecord) -> None:
        self.records.append(record)

    def __getitem__(self, name: str) -> list[Any]:
        """A column: the values of one field of `EpochRecord`, by epoch."""
        return [getattr(record, name) for record in self.records]

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

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
