"""Several fits at once on a GPU: their steps share launches, and scikit-learn's code stays as it is.

joblib hands the fits of a search to a parallel backend. `Together` runs each of them in a thread of its own, but
only one thread at a time: a fit runs until it has steps to train (`run_steps`), then the next one until it has
some, and then one ``Backend.run_many`` runs the steps of all. A fit, whether an estimator's, a pipeline's or an
ensemble's, does not know of the others, and no two of them use the device at the same time.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from joblib.parallel import ParallelBackendBase, SequentialBackend

from ..backends import Array, Backend, Step, StepRun, get_backend

MOST = 1 << 16  # fits that joblib hands over at a time

_local = threading.local()  # in the thread of a fit: `fit`, the Fit


def run_steps(backend: Backend, run: StepRun) -> None:
    """As `Backend.run_steps`; in a fit of `Together`, with the steps of other fits."""
    fit: Fit | None = getattr(_local, "fit", None)
    if fit is None:
        backend.run_steps(*run)
    else:
        fit.wait_for(backend, run)


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
        function: without arguments; it may call `run_steps`.
        backends: by the name of a device, for `backend_of`.
        callback: called outside when the function has returned.

    Attributes:
        ended: whether the function has returned or raised.
        backend, run: the steps that the function waits for.
        at_once: how many networks like this one the backend trains at once.
    """

    backend: Backend
    run: StepRun
    at_once: int

    def __init__(
        self, function: Callable[[], Any], backends: dict[Any, Backend], callback: Callable[[Any], object] | None
    ) -> None:
        self.function, self.backends, self.callback, self.ended = function, backends, callback, False
        self._step: Step | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._go: SimpleQueue[BaseException | None] = SimpleQueue()
        self._paused: SimpleQueue[None] = SimpleQueue()
        self._filters = warnings.filters
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True)

    def advance(self, error: BaseException | None = None) -> None:
        """Run the function until it waits for steps or ends.

        Args:
            error: raised where the function waits, if its steps could not be run.
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

    def wait_for(self, backend: Backend, run: StepRun) -> None:
        """Return when the steps have been run."""
        if run.step is not self._step:
            self.at_once, self._step = backend.networks_at_once(run.step), run.step
        self.backend, self.run = backend, run
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
        while self._active:  # joblib calls this twice after an error: what a second interrupt left is closed then
            self._active[-1].close()
            self._active.pop()

    def terminate(self) -> None:
        """After the search, nothing else runs here, such as a refit."""
        self.abort_everything()
        self._terminated = True

    # -- One round ----------------------------------------------------------------------------------------

    def _round(self) -> None:
        """Begin fits while there is room, run the steps of all that are active, and let them go on."""
        while self._waiting and len(self._active) < self._room():
            self._active.append(self._waiting.popleft())
            self._advance(self._active[-1:])
        for backend in {id(fit.backend): fit.backend for fit in self._active}.values():
            fits = [fit for fit in self._active if fit.backend is backend]
            failure = None
            try:
                with backend.activate():
                    backend.run_many([fit.run for fit in fits])
            except Exception as error:  # each of them fails, as it would alone
                failure = error
            self._advance(fits, failure)

    def _room(self) -> int:
        """How many fits may be active."""
        return min([self._most, *(fit.at_once for fit in self._active)]) if self._active else 1

    def _advance(self, fits: list[Fit], error: Exception | None = None) -> None:
        trace = None if error is None else error.__traceback__
        for fit in fits:
            fit.advance(error and error.with_traceback(trace))  # to which each fit adds its own frames
            if fit.ended:
                self._active.remove(fit)
                fit.outcome()  # an error ends the search at once
                if fit.callback is not None:
                    fit.callback(None)


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
