"""Several fits at once on a GPU: their steps share launches, and scikit-learn's code stays as it is.

joblib hands the fits of a search to a parallel backend. `Together` runs each of them in a thread of its own, but
only one thread at a time: a fit runs until it has an epoch to train (`run`), then the next one until it has one,
and then a `Cohort` trains those of all. A fit, whether of an estimator, a pipeline or an ensemble, does not know
of the others, and no two of them use the device at the same time.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from joblib.parallel import ParallelBackendBase, SequentialBackend

from ..backends import Array, Backend, Request, get_backend
from ..training.many import Cohort
from ..training.trainer import Training, drive

MOST = 1 << 16  # fits that joblib hands over at a time

Result = TypeVar("Result")

_local = threading.local()  # in the thread of a fit: `fit`, the Fit


def run(backend: Backend, epoch: Generator[Request, Any, Result]) -> Result:
    """What a generator returns, which yields requests to a backend; in a fit of `Together`, beside other fits."""
    results: list[Result] = []

    def training() -> Training:
        results.append((yield from epoch))

    fit: Fit | None = getattr(_local, "fit", None)
    if fit is not None:
        fit.wait_for(backend, training())
    else:
        with backend.activate():
            drive(training(), backend)
    return results[0]


def backend_of(device: str | Backend) -> Backend:
    """As `get_backend`; in the fits of one `Together`, the same backend for the same device."""
    fit: Fit | None = getattr(_local, "fit", None)
    if fit is None or isinstance(device, Backend):
        return get_backend(device)
    if device not in fit.backends:
        fit.backends[device] = get_backend(device)
    return fit.backends[device]


class Fit:
    """A function in a thread of its own, which runs only within `advance`.

    Args:
        function: without arguments; it may call `run`.
        backends: by the name of a device, for `backend_of`.
        callback: called outside when the function has returned.

    Attributes:
        ended: whether the function has returned or raised.
        backend, training: what the function waits for, and on which device.
    """

    backend: Backend
    training: Training

    def __init__(
        self, function: Callable[[], Any], backends: dict[Any, Backend], callback: Callable[[Any], object] | None
    ) -> None:
        self.function, self.backends, self.callback, self.ended = function, backends, callback, False
        self._result: Any = None
        self._error: BaseException | None = None
        self._go: SimpleQueue[BaseException | None] = SimpleQueue()
        self._paused: SimpleQueue[None] = SimpleQueue()
        self._filters = warnings.filters
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True)

    def advance(self, error: BaseException | None = None) -> None:
        """Run the function until it waits for an epoch or ends.

        Args:
            error: raised where the function waits, if its epoch could not be trained.
        """
        if self._thread.ident is None:
            self._thread.start()
        # The warning filters belong to the process, and scikit-learn sets them around each fit.
        outside, warnings.filters = warnings.filters, self._filters
        try:
            self._go.put(error)
            self._paused.get()
        finally:
            self._filters, warnings.filters = warnings.filters, outside

    def close(self) -> None:
        """End the function where it waits, or, if `advance` was interrupted, where it will wait next."""
        while not self.ended:
            self.advance(GeneratorExit())
        self._thread.join()

    def outcome(self) -> Any:
        """What the function has returned. Raises what it has raised."""
        if self._error is not None:
            raise self._error
        return self._result

    # -- In the thread ------------------------------------------------------------------------------------

    def wait_for(self, backend: Backend, training: Training) -> None:
        """Return when the epoch has been trained."""
        self.backend, self.training = backend, training
        self._paused.put(None)
        self._wait()

    def _wait(self) -> None:
        error = self._go.get()
        if error is not None:
            raise error

    def _run(self) -> None:
        _local.fit = self
        try:
            self._wait()
            self._result = self.function()
        except BaseException as error:  # GeneratorExit, too
            self._error = error
        finally:
            self.ended = True
            del self.function
            self._paused.put(None)


class Together(ParallelBackendBase):  # type: ignore[misc]
    """A parallel backend of joblib for functions that fit gpumlp's estimators on a GPU.

    Everything runs in this process. As many fits are in progress as the GPU trains networks of their kind at once,
    at most ``n_jobs`` unless that is None or negative; one that ends leaves its place to the next.

    Args:
        backends: by the name of a device; estimators with that device use it.
    """

    supports_sharedmem = uses_threads = True
    supports_retrieve_callback = False
    default_n_jobs = -1

    def __init__(self, backends: dict[Any, Backend] | None = None) -> None:
        super().__init__(nesting_level=0)
        self._backends = {} if backends is None else backends
        self._waiting: deque[Fit] = deque()
        self._active: list[Fit] = []
        self._cohort = Cohort()
        self._most = MOST
        self._terminated = False

    # -- joblib's interface -------------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if self._terminated:
            return 1
        return MOST if n_jobs is None or n_jobs < 0 else n_jobs

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **options: Any) -> int:
        self.parallel, self._most = parallel, self.effective_n_jobs(n_jobs)
        return self._most

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> Fit:
        self._waiting.append(Fit(func, self._backends, callback))
        return self._waiting[-1]

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result(self, out: Fit, timeout: float | None = None) -> Any:
        while not out.ended:
            self._round()
        return out.outcome()

    def get_nested_backend(self) -> tuple[Any, None]:
        return SequentialBackend(nesting_level=1), None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self._waiting.clear()
        self._cohort = Cohort()
        while self._active:  # joblib calls this twice after an error: what a second interrupt left is closed then
            self._active[-1].close()
            self._active.pop()

    def terminate(self) -> None:
        """After the search, nothing else runs here, such as a refit."""
        self.abort_everything()
        self._terminated = True

    # -- One round ----------------------------------------------------------------------------------------

    def _round(self) -> None:
        """Begin fits while there is room, and train a part of an epoch of all; those whose epoch ends go on."""
        cohort = self._cohort
        while self._waiting and len(self._active) < self._most and cohort.has_room:
            fit = self._waiting.popleft()
            self._active.append(fit)
            if self._advance(fit):
                cohort.begin((fit, fit.backend, fit.training))
        cohort.train()
        cohort.read_totals()
        ended = [each for each in cohort.running if each.request is None]
        traces = [None if each.error is None else each.error.__traceback__ for each in ended]
        for each, trace in zip(ended, traces, strict=True):  # several may have the same error
            if not self._advance(each.key, each.error and each.error.with_traceback(trace)):
                cohort.running.remove(each)
            else:
                each.start(each.key.backend, each.key.training)

    def _advance(self, fit: Fit, error: Exception | None = None) -> bool:
        """Advance a fit; False if it has ended."""
        fit.advance(error)
        if fit.ended:
            self._active.remove(fit)
            fit.outcome()  # an error ends the search at once
            if fit.callback is not None:
                fit.callback(None)
        return not fit.ended


# -- Samples that fits share -------------------------------------------------------------------------------


class SharedSamples(np.ndarray):
    """Samples of which the fits of a search take the same rows: each part is copied once, and is read-only.

    A part lasts as long as a fit uses it.
    """

    def __getitem__(self, key: Any) -> Any:
        rows = key[0] if isinstance(key, tuple) and len(key) == 2 and key[1] is Ellipsis else key
        if not isinstance(rows, np.ndarray) or rows.ndim != 1:
            return super().__getitem__(key)
        parts = self.__dict__.setdefault("_parts", WeakValueDictionary())
        name = rows.dtype.str, rows.tobytes()
        part = parts.get(name)
        if part is None:
            part = parts[name] = super().__getitem__(key)
            part.flags.writeable = False
        return part

    def on(self, backend: Backend, dtype: Any) -> Array:
        """The samples on a device, copied once."""
        copies = self.__dict__.setdefault("_copies", {})
        if (backend, dtype) not in copies:
            with np.errstate(over="ignore"):  # inf, which is refused
                copies[backend, dtype] = backend.asarray(np.asarray(self, dtype=dtype))
        return copies[backend, dtype]
