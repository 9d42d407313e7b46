"""A fake device on the CPU with the restrictions of CuPy.

Its arrays refuse implicit conversion to NumPy and operations with NumPy arrays, its functions accept only the
arguments of CuPy's, and a ledger counts transfers to the host, waits and allocations. It detects code that would
fail or be slow on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpumlp.backends import Backend

# Keyword arguments of CuPy's functions; NumPy has more (mode, where, order, ...).
ALLOWED_KEYWORDS = {"axis", "out", "dtype", "keepdims"}


@dataclass
class Ledger:
    """Counts of transfers, waits and allocations."""

    host_reads: int = 0
    host_writes: int = 0
    waits: int = 0
    allocations: list[int] = field(default_factory=list)  # elements of each new array
    functions: set[str] = field(default_factory=set)

    @contextmanager
    def counting(self) -> Iterator[Ledger]:
        """Start from zero."""
        self.host_reads = self.host_writes = self.waits = 0
        self.allocations.clear()
        yield self


class StrictArray:
    """An array in the memory of the fake."""

    __array_ufunc__ = None  # numpy.add(StrictArray, ...) is a TypeError

    def __init__(self, data: np.ndarray, xp: StrictNamespace) -> None:
        self._data, self._xp = data, xp

    def __array_namespace__(self) -> StrictNamespace:
        return self._xp

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    # -- Without the device -------------------------------------------------------------------
    shape = property(lambda self: self._data.shape)
    ndim = property(lambda self: self._data.ndim)
    dtype = property(lambda self: self._data.dtype)
    size = property(lambda self: self._data.size)
    nbytes = property(lambda self: self._data.nbytes)
    T = property(lambda self: StrictArray(self._data.T, self._xp))
    flags = property(lambda self: self._data.flags)
    data = property(lambda self: SimpleNamespace(ptr=self._xp.address(self._data)))
    device = property(lambda self: SimpleNamespace(id=self._xp.device_id))

    def __len__(self) -> int:
        return len(self._data)

    def reshape(self, *shape: Any) -> StrictArray:
        return self._xp.compute("reshape", lambda: self._data.reshape(*shape), self)

    def sum(self) -> StrictArray:
        return self._xp.sum(self)

    def view(self, dtype: Any) -> StrictArray:
        return self._xp.compute("view", lambda: self._data.view(dtype), self)

    def astype(self, dtype: Any) -> StrictArray:
        return self._xp.compute("astype", lambda: self._data.astype(dtype), self)

    def fill(self, value: float) -> None:
        self._xp.change("fill", lambda: self._data.fill(value))

    def set(self, source: np.ndarray, stream: Any) -> None:
        self._xp.upload(source, self._data, stream)

    def copy(self) -> StrictArray:
        return self._xp.compute("copy", self._data.copy, self)

    def __getitem__(self, key: Any) -> StrictArray:
        keys = self._xp.unwrap(key if isinstance(key, tuple) else (key,))
        if not any(part is Ellipsis for part in keys):
            keys = (*keys, ...)  # a single element is a view, too
        return self._xp.compute("getitem", lambda: self._data[keys], self)

    def __setitem__(self, key: Any, value: Any) -> None:
        place, values = self._xp.unwrap(key), self._xp.unwrap(value)
        self._xp.change("setitem", lambda: self._data.__setitem__(place, values))

    # -- Operations that wait -------------------------------------------------------------------
    def _read(self) -> Any:
        return self._xp.read(self)

    def item(self) -> Any:
        return self._read()

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __bool__(self) -> bool:
        return bool(self._read())


def _operator(name: str, function: str, reverse: bool = False) -> Any:
    def method(self: StrictArray, other: Any) -> StrictArray:
        arguments = (other, self) if reverse else (self, other)
        return getattr(self._xp, function)(*arguments)

    method.__name__ = name
    return method


for _name, _function in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "matmul": "matmul",
}.items():  # fmt: skip
    setattr(StrictArray, f"__{_name}__", _operator(_name, _function))
    setattr(StrictArray, f"__r{_name}__", _operator(_name, _function, reverse=True))


class StrictNamespace:
    """NumPy's functions for `StrictArray`, as strict as CuPy's."""

    device_id = 0  # of all its arrays

    def __init__(self) -> None:
        self.ledger = Ledger()

    def wrap(self, result: Any) -> Any:
        """Convert a NumPy result to an array of the fake; reductions give 0-d arrays, as in CuPy."""
        if isinstance(result, (np.ndarray, np.generic)):
            data = np.asarray(result)
            if data.base is None:
                self.ledger.allocations.append(data.size)
            return StrictArray(data, self)
        return result

    def compute(self, name: str, function: Any, *sources: StrictArray) -> StrictArray:
        """The result of an array's method; a view of one of the sources shares its memory."""
        return self.wrap(function())

    def change(self, name: str, function: Any) -> None:
        """Change an array by one of its methods."""
        function()

    def read(self, array: StrictArray) -> Any:
        """The single element of an array, on the host. Waits."""
        self.ledger.waits += 1
        self.ledger.host_reads += 1
        return array._data.item()

    def address(self, data: np.ndarray) -> int:
        """The address of an array's first element."""
        return int(data.ctypes.data)

    def unwrap(self, value: Any) -> Any:
        if isinstance(value, StrictArray):
            return value._data
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}: a NumPy array among device arrays")
        if isinstance(value, (list, tuple)):
            return type(value)(self.unwrap(item) for item in value)
        return value

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.ledger.functions.add(name)
            unknown = set(keywords) - ALLOWED_KEYWORDS
            if unknown:
                raise TypeError(f"{name}() got an unexpected keyword argument {unknown.pop()!r}")
            out = keywords.get("out")
            if name == "matmul" and out is not None and not out._data.flags.c_contiguous:
                raise AssertionError("matmul into an array that is not C-contiguous goes through a copy")
            if name == "take" and out is not None:
                keywords["mode"] = "raise"
            host = {key: self.unwrap(value) for key, value in keywords.items()}
            result = function(*self.unwrap(arguments), **host)
            return out if out is not None else self.wrap(result)

        return call if callable(function) and not isinstance(function, type) else function


class StrictBackend(Backend):
    """The reference operations of `Backend`, on the fake device."""

    def __init__(self) -> None:
        self.name, self.device_name = "strict", "a strict fake device"
        self.xp = StrictNamespace()
        self.ledger = self.xp.ledger

    def activate(self) -> Any:
        return np.errstate(over="ignore", invalid="ignore", divide="ignore")

    def owns(self, array: object) -> bool:
        return isinstance(array, StrictArray)

    def asarray(self, array: Any, dtype: Any = None) -> StrictArray:
        if isinstance(array, StrictArray):
            data = np.ascontiguousarray(array._data, dtype=dtype)
            return array if data is array._data else StrictArray(data, self.xp)
        self.ledger.host_writes += 1
        return StrictArray(np.array(array, dtype=dtype, order="C"), self.xp)

    def to_numpy(self, array: StrictArray) -> np.ndarray:
        self.ledger.host_reads += 1
        self.ledger.waits += 1
        return array._data.copy()

    def synchronize(self) -> None:
        self.ledger.waits += 1
