"""Samples in the formats of other libraries, read on demand: Arrow and Parquet tables, and Zarr arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import HostArray
from ..extras import require
from ..words import listed
from .labels import DataError

ARROW_MAGIC, PARQUET_MAGIC = b"ARROW1", b"PAR1"
TABLE_ENDINGS = (".arrow", ".feather", ".parquet")
_MAX_GROUP = 2**28  # bytes of samples in a row group or record batch, one of which is in memory


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def is_table(path: Path) -> bool:
    """Whether a file is an Arrow or Parquet table, by its name or its content."""
    if not path.is_file():
        return path.suffix in TABLE_ENDINGS
    with path.open("rb") as file:
        return file.read(6).startswith((ARROW_MAGIC, PARQUET_MAGIC))


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each library has a dozen types
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"{path}: expected {what}, found a damaged one ({reason}); get it again") from error


class ZarrArray:
    """A Zarr array; see `TablePart` for the attributes."""

    columns: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        require("Zarr arrays", "zarr", "zarr")
        self.path = path
        self._open()
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype = np.dtype(self._array.dtype)

    def _open(self) -> None:
        import zarr

        with _named(self.path, "a Zarr array"):
            self._array: Any = zarr.open(self.path, mode="r")
            if not hasattr(self._array, "shape"):
                raise DataError(
                    f"{self.path}: expected a Zarr array, found a group; give the path of an array in it"
                )

    def read(self, first: int, out: HostArray) -> None:
        """Read consecutive rows, ``(n, features)``, from `first` on."""
        with _named(self.path, "a Zarr array"):
            out[...] = np.asarray(self._array[first : first + len(out)]).reshape(out.shape)

    def values(self) -> HostArray:
        """The whole array."""
        with _named(self.path, "a Zarr array"):
            return np.asarray(self._array[...])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_array"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class TablePart:
    """The feature columns of an Arrow or Parquet file; a row group, or record batch, is in memory at a time.

    Args:
        path: of the file.
        label_column: the column that holds the targets; all others are features.

    Attributes:
        columns: the names of the feature columns.
        shape: ``(rows, features)``.
        dtype: uint8 if all features are, otherwise float32.
        buffered: bytes of the largest row group, of which one is in memory.

    Raises:
        DataError: the file is damaged, a column is not numeric, or there is no such label column.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path, label_column: str) -> None:
        require("Arrow and Parquet tables", "pyarrow", "arrow")
        self.path = path
        with _named(path, "an Arrow or Parquet file"):
            schema, self._lengths = self._facts()
            names = [field.name for field in schema]
            if label_column not in names or names.count(label_column) > 1:
                raise DataError(
                    f"{path}: expected one column {label_column} with the labels, found {listed(names)}; name it "
                    "with --label-column"
                )
            self.columns = tuple(name for name in names if name != label_column)
            kinds = {name: self._dtype_of(schema.field(name)) for name in self.columns}
        wrong = [name for name, kind in kinds.items() if kind is None]
        if wrong or not kinds:
            found = f"other values in {listed(wrong)}" if wrong else "none"
            raise DataError(f"{path}: expected feature columns with numbers, found {found}; leave those out")
        self.label_column = label_column
        self.dtype = np.dtype(np.uint8 if set(kinds.values()) == {np.dtype(np.uint8)} else np.float32)
        self.shape = (sum(self._lengths), len(self.columns))
        self._starts = np.cumsum([0, *self._lengths])
        self.buffered = max(self._lengths, default=0) * len(self.columns) * self.dtype.itemsize
        if self.buffered > _MAX_GROUP:
            raise DataError(
                f"{path}: expected row groups of at most {_MAX_GROUP / 1e6:,.0f} MB, of which one is in memory, "
                f"found one of {self.buffered / 1e6:,.0f} MB; write it with smaller ones (row_group_size=65536)"
            )
        self._cached: tuple[int, HostArray] | None = None

    @property
    def _parquet(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(4) == PARQUET_MAGIC

    def _facts(self) -> tuple[Any, list[int]]:
        """The schema, and the numbers of rows in each group."""
        import pyarrow as pa

        if self._parquet:
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.path) as file:
                return file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        with pa.memory_map(str(self.path)) as source:
            reader = pa.ipc.open_file(source)
            return reader.schema, [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]

    @staticmethod
    def _dtype_of(field: Any) -> np.dtype[Any] | None:
        """NumPy's dtype of a column of numbers; None for others."""
        import pyarrow as pa

        kind = field.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            return None
        dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return dtype

    def _group(self, number: int, columns: tuple[str, ...]) -> Any:
        import pyarrow as pa

        if self._parquet:
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.path) as file:
                return file.read_row_group(number, columns=list(columns))
        with pa.OSFile(str(self.path)) as source:
            schema = pa.ipc.open_file(source).schema
            wanted = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
            return pa.Table.from_batches([pa.ipc.open_file(source, options=wanted).get_batch(number)])

    def _column(self, table: Any, name: str) -> HostArray:
        column = table.column(name)
        if column.null_count:
            raise DataError(
                f"{self.path}: expected a value in every row, found {column.null_count:,} missing ones in {name}; "
                "fill them in or leave those rows out"
            )
        result: HostArray = column.to_numpy()
        return result

    def read(self, first: int, out: HostArray) -> None:
        """Read consecutive rows, ``(n, features)``, from `first` on."""
        done = 0
        with _named(self.path, "an Arrow or Parquet file"):
            while done < len(out):
                number = int(np.searchsorted(self._starts, first + done, "right")) - 1
                if self._cached is None or self._cached[0] != number:
                    self._cached = None
                    table = self._group(number, self.columns)
                    values = np.empty((self._lengths[number], len(self.columns)), self.dtype)
                    for place, name in enumerate(self.columns):
                        values[:, place] = self._column(table, name)
                    self._cached = number, values
                start = first + done - int(self._starts[number])
                part = self._cached[1][start : start + len(out) - done]
                out[done : done + len(part)] = part
                done += len(part)

    def labels(self) -> HostArray:
        """The label column."""
        with _named(self.path, "an Arrow or Parquet file"):
            parts = [
                self._column(self._group(i, (self.label_column,)), self.label_column)
                for i in range(len(self._lengths))
            ]
        values = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return values.astype(str) if values.dtype == object else values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}
