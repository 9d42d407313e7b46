"""The threads of NumPy's BLAS, for the peers that leave their matrix products to it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from threadpoolctl import ThreadpoolController


def thread_counts(asked: int | None, most: int) -> tuple[int, ...]:
    """The numbers of threads worth a trial: the number asked for, or one and as many as the library would take."""
    return (asked,) if asked else tuple(dict.fromkeys((1, most)))


class BlasThreads:
    """A number of BLAS threads, chosen by trial, that holds only while its peer runs."""

    def __init__(self, asked: int | None) -> None:
        self._controller: Any = ThreadpoolController()
        pools = [pool["num_threads"] for pool in self._controller.info() if pool["user_api"] == "blas"]
        counts = thread_counts(asked, max(pools, default=1))
        self.variants = tuple(f"{n} BLAS thread{'s' * (n > 1)}" for n in counts) if len(counts) > 1 else ()
        self._threads: int | None = asked

    def choose(self, variant: str) -> None:
        self._threads = int(variant.partition(" ")[0])

    def limit(self) -> AbstractContextManager[Any]:
        if self._threads is None:
            return nullcontext()
        context: AbstractContextManager[Any] = self._controller.limit(limits=self._threads, user_api="blas")
        return context
