"""Samples in the formats of other libraries, read on demand: Arrow and Parquet tables, and Zarr arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import HostArray
from ..extras import require
from ..words import listed
from .labels import DataError
from .npz import damage_named
from .reading import file_state, require_unchanged

ARROW_MAGIC, PARQUET_MAGIC = b"ARROW1", b"PAR1"
TABLE_ENDINGS = (".arrow", ".feather", ".parquet")
_ZARR = ("zarr.json", ".zarray", ".zgroup")  # what describes an array or a group
_MAX_GROUP = 2**28  # bytes of samples in a row group or record batch, one of which is in memory


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return path.is_dir() and any((path / name).exists() for name in _ZARR)


def is_table(path: Path) -> bool:
    """Whether a file is an Arrow or Parquet table, by its name or its content."""
    if not path.is_file():  # a Zarr array
        return False
    with path.open("rb") as file:
        return file.read(6).startswith((ARROW_MAGIC, PARQUET_MAGIC))


class ZarrArray:
    """A Zarr array; see `TablePart` for the attributes.

    An array that is made anew while it is read is noticed, by the file that describes it, but not one whose values
    are changed in place.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        require("Zarr arrays", "zarr", "zarr")
        self.path = path
        self._file = next(path / name for name in _ZARR if (path / name).exists())
        self._state = file_state(os.stat(self._file))
        self._open()
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype = np.dtype(self._array.dtype)

    def _open(self) -> None:
        import zarr

        with damage_named(f"{self.path}: expected a Zarr array", "; get it again"):
            self._array: Any = zarr.open(self.path, mode="r")
            if not hasattr(self._array, "shape"):
                raise DataError(
                    f"{self.path}: expected a Zarr array, found a group; give the path of an array in it"
                )

    def read(self, first: int, out: HostArray) -> None:
        """Read consecutive rows, ``(n, features)``, from `first` on."""
        out[...] = self._rows(slice(first, first + len(out))).reshape(out.shape)

    def values(self) -> HostArray:
        """The whole array."""
        return self._rows(slice(None))

    def _rows(self, rows: slice) -> HostArray:
        with damage_named(f"{self.path}: expected a Zarr array", "; get it again"):
            try:
                return np.asarray(self._array[rows])
            finally:  # before an error of what was read
                require_unchanged(self._file, self._state)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_array"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class TablePart:
    """The feature columns of an Arrow or Parquet file; a row group, or record batch, is in memory at a time.

    The index of a data frame, which pandas stores as further columns, is not among the features.

    Args:
        path: of the file.
        label_column: the column that holds the targets; all others are features.

    Attributes:
        columns: the names of the feature columns.
        shape: ``(rows, features)``.
        dtype: uint8 if all features are, otherwise float32.
        buffered: bytes of the largest row group, of which one is in memory.

    Raises:
        DataError: the file is damaged, a feature is not numeric, or there is no such label column, or it holds
            neither numbers nor text.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path, label_column: str) -> None:
        require("Arrow and Parquet tables", "pyarrow", "arrow")
        self.path = path
        self._state = file_state(os.stat(path))
        with damage_named(f"{path}: expected an Arrow or Parquet file", "; get it again"):
            schema, self._lengths = self._facts()
            # What pandas stores of a frame's index is none of its columns.
            index = (schema.pandas_metadata or {}).get("index_columns", [])
            names = [field.name for field in schema if field.name not in index or field.name == label_column]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}: expected columns with different names, found {listed(twice)} twice")
            if label_column not in names:
                raise DataError(
                    f"{path}: expected a column {label_column} with the labels, found {listed(names)}; name it "
                    "with --label-column"
                )
            self.columns = tuple(name for name in names if name != label_column)
            kinds = {name: self._dtype_of(schema.field(name).type) for name in self.columns}
            self._check_labels(schema.field(label_column))
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
        self._reader: tuple[tuple[str, ...], Callable[[int], Any]] | None = None

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
    def _dtype_of(kind: Any) -> np.dtype[Any] | None:
        """NumPy's dtype of a column of numbers; None for others."""
        import pyarrow as pa

        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            return None
        dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return dtype

    def _check_labels(self, field: Any) -> None:
        """Raise DataError if the label column can hold other values than numbers and text."""
        import pyarrow as pa

        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        text = str(kind) in ("string", "large_string", "string_view")
        if not (text or pa.types.is_null(kind) or self._dtype_of(kind)):
            raise DataError(
                f"{self.path}: expected labels that are integers, bools, floats or text, found {kind} in "
                f"{field.name}; convert that column"
            )

    def _group(self, number: int, columns: tuple[str, ...]) -> Any:
        """Columns of a row group or record batch; the file stays open for the same columns of the next one."""
        try:
            if self._reader is None or self._reader[0] != columns:
                self._reader = columns, self._opened(columns)
            table = self._reader[1](number)
        finally:  # before an error of what was read
            require_unchanged(self.path, self._state)
        table.validate(full=True)  # places outside of a damaged file would end the process
        return table

    def _opened(self, columns: tuple[str, ...]) -> Callable[[int], Any]:
        import pyarrow as pa

        if self._parquet:
            import pyarrow.parquet as pq

            return partial(pq.ParquetFile(self.path).read_row_group, columns=list(columns))
        schema = self._facts()[0]
        wanted = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
        reader = pa.ipc.open_file(pa.OSFile(str(self.path)), options=wanted)
        return lambda number: pa.Table.from_batches([reader.get_batch(number)])

    def _values(self, column: Any, name: str) -> HostArray:
        if hasattr(column.type, "value_type"):  # of a dictionary, whose values may be missing, too
            column = column.cast(column.type.value_type)
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
        with damage_named(f"{self.path}: expected an Arrow or Parquet file", "; get it again"):
            while done < len(out):
                number = int(np.searchsorted(self._starts, first + done, "right")) - 1
                if self._cached is None or self._cached[0] != number:
                    self._cached = None
                    table = self._group(number, self.columns)
                    values = np.empty((self._lengths[number], len(self.columns)), self.dtype)
                    for place, column in enumerate(table.columns):  # in the order of the file, as the names are
                        values[:, place] = self._values(column, self.columns[place])
                    self._cached = number, values
                start = first + done - int(self._starts[number])
                part = self._cached[1][start : start + len(out) - done]
                out[done : done + len(part)] = part
                done += len(part)

    def labels(self) -> HostArray:
        """The label column."""
        with damage_named(f"{self.path}: expected an Arrow or Parquet file", "; get it again"):
            groups = [self._group(number, (self.label_column,)) for number in range(len(self._lengths))]
            parts = [self._values(group.columns[0], self.label_column) for group in groups]
        values = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return values.astype(str) if values.dtype == object else values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None, "_reader": None}
