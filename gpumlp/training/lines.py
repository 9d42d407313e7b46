"""An epoch in a line, or in the cells of a table."""

from __future__ import annotations

from .history import EpochRecord

# Name and width of each column; together they fit into 80 characters.
COLUMNS = (
    ("epoch", 7),
    ("train loss", 10),
    ("accuracy", 8),
    ("valid. loss", 11),
    ("accuracy", 8),
    ("learning rate", 13),
    ("samples/s", 9),
)


def header_line() -> str:
    """The names of the columns of `epoch_line`."""
    return "  ".join(f"{name:>{width}}" for name, width in COLUMNS)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """An epoch in a line, under `header_line`."""
    cells = (f"{record.epoch}/{epochs}", *epoch_cells(record)[1:])
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def epoch_cells(record: EpochRecord) -> list[str]:
    """The values of an epoch in words, one for each of `COLUMNS`."""
    return [
        str(record.epoch),
        number(record.train_loss),
        percent(record.train_accuracy),
        number(record.validation_loss),
        percent(record.validation_accuracy),
        f"{record.learning_rate:.4g}",
        f"{record.samples_per_second:,.0f}",
    ]


def percent(fraction: float | None, digits: int = 2, missing: str = "-") -> str:
    """A fraction as a percentage: 0.1671 as "16.71 %".

    Args:
        fraction: None where there is none.
        digits: decimals.
        missing: what stands for None.
    """
    return missing if fraction is None else f"{100 * fraction:.{digits}f} %"


def number(value: float | None) -> str:
    """A loss, with four decimals where it is not huge."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1000 else f"{value:.3g}"
