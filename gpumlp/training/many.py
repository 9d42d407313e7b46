"""Many networks at once: in worker processes on the CPU, by steps of several networks in one launch on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import numpy as np

from ..backends import Backend, Copies, HostArray, Request, Step, StepRun, Totals
from ..backends.numpy import NumpyBackend
from ..data import Dataset, Distortion
from ..data.dataset import as_dataset
from ..nn.hyperparameters import flag, instance, require_arguments, whole
from ..nn.metrics import METRICS
from ..nn.network import MLP
from ..nn.optimizers import Optimizer, Penalty
from ..nn.preprocessing import Preprocessing
from ..nn.schedules import Schedule
from ..words import shown
from .batches import ClassWeight, Order, Validation, as_validation
from .history import MONITORS, BestSoFar, History, monitor_words, per_second
from .jobs import run_jobs, sendable, temporary_folder, worker_count
from .progress import ProgressLine, metric
from .trainer import Callback, CallbackLike, Trainer, Training, as_callbacks

__all__ = ["Cohort", "FitManyError", "Running", "fit_many", "run_together"]

_SHOWN_ERRORS = 3  # in a message
_ROUNDED = 1e-6  # of a sum of shares


class FitManyError(RuntimeError):
    """Some of the networks of `fit_many` failed; all others are trained.

    Attributes:
        errors: what happened, by the number of the network, counted from 0: a `DivergenceError`, or what a
            callback raised.
        histories: of all networks; those that failed have the epochs before.
    """

    def __init__(self, errors: dict[int, Exception], histories: list[History]) -> None:
        first = [f"network {index}: {type(each).__name__}: {each}" for index, each in sorted(errors.items())]
        more = f"; and {len(first) - _SHOWN_ERRORS} more" if len(first) > _SHOWN_ERRORS else ""
        others = ", the others are trained" if len(errors) < len(histories) else ""
        super().__init__(
            f"{len(errors)} of {len(histories)} networks failed{others} (histories are in this error's "
            f"histories): {'; '.join(first[:_SHOWN_ERRORS])}{more}"
        )
        self.errors, self.histories = errors, histories

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors, self.histories)


# -- Several networks in lockstep --------------------------------------------------------------------------


class Running:
    """A network that is trained with others; `request` is None once it has ended.

    `share` is that of the device: one network's of those like it that the device trains at once.
    """

    def __init__(self, key: Any) -> None:
        self.key = key
        self.request: Request | None = None
        self.share = 1.0
        self.error: Exception | None = None
        self._steps: WeakSet[Step] = WeakSet()  # that the backend knows to be trained with others

    def start(self, backend: Backend, training: Training) -> None:
        """Begin a training; a new one after the last one has ended."""
        self.backend, self.training, self.error = backend, training, None
        self.go_on()

    def go_on(self, error: BaseException | None = None) -> None:
        """Go on to the first request, or throw what the last one raised into the training."""
        try:
            with self.backend.activate():
                self.advance(error=error)
        except Exception as raised:  # the device cannot be activated
            self.request, self.error = None, raised

    def advance(self, result: Any = None, error: BaseException | None = None) -> None:
        """Like `go_on`, with the backend activated by the caller, who can do that once for many networks."""
        trace = None if error is None else error.__traceback__
        try:
            self.request = self.training.send(result) if error is None else self.training.throw(error)
        except StopIteration:
            self.request = None
        except Exception as raised:
            if raised is not error:  # otherwise it may be that of other networks, too
                trace = raised.__traceback__
            self.request, self.error = None, self.backend.explained(raised).with_traceback(trace)
        except KeyboardInterrupt:
            if error is None:
                raise
            self.request = None
        step = getattr(self.request, "step", None)
        if step is not None and step.evaluates is None and step not in self._steps:
            try:
                self.share = 1 / self.backend.networks_at_once(step)
                self._steps.add(step)
            except Exception as raised:
                self.advance(error=raised)


class Cohort:
    """Networks whose steps are run together."""

    def __init__(self) -> None:
        self.running: list[Running] = []
        self._begun: list[Iterator[None]] = []  # totals that the device computes

    @property
    def share(self) -> float:
        """Of the device."""
        return sum(each.share for each in self.running if each.request is not None)

    @property
    def has_room(self) -> bool:
        """For another network."""
        return self.share < 1 - _ROUNDED

    def begin(self, following: tuple[Any, Backend, Training]) -> None:
        """Begin another network."""
        key, backend, training = following
        each = Running(key)
        self.running.append(each)
        each.start(backend, training)

    def read_totals(self) -> None:
        """Wait for what `train` began, and go on with it."""
        begun, self._begun = self._begun, []
        for work in begun:
            next(work, None)

    def train(self) -> None:
        """Let the device copy, train on the steps of an epoch or a part of it, and begin to compute totals."""
        for kind in (Copies, StepRun):
            for work in self._start_work(kind):
                next(work, None)
        self._begun = self._start_work(Totals)

    def _start_work(self, kind: type) -> list[Iterator[None]]:
        """Start what networks ask for, those of one backend together; `next` of each finishes it."""
        groups: dict[Backend, list[Running]] = {}
        for each in self.running:
            if isinstance(each.request, kind):
                groups.setdefault(each.backend, []).append(each)
        begun = [_work(backend, networks) for backend, networks in groups.items()]
        for work in begun:
            next(work, None)
        return begun


def _work(backend: Backend, networks: list[Running]) -> Iterator[None]:
    """Start what networks with the same backend ask for; then wait for the results, and go on with them."""
    try:
        with backend.activate():
            wait = backend.perform([each.request for each in networks if each.request is not None])
        yield
        with backend.activate():
            for each, result in zip(networks, wait(), strict=True):
                if each.request is not None:  # an interrupt may have ended it
                    each.advance(result)
    except Exception as error:  # whose request it was is unknown
        for each in networks:
            if each.request is not None:
                each.go_on(error=error)


def run_together(
    trainings: Iterable[tuple[Any, Backend, Training]], *, watch: Callable[[], object] | None = None
) -> Iterator[tuple[Any, Exception | None]]:
    """Train networks in lockstep, as many at a time as `Backend.networks_at_once` says.

    If it is more than one, and there are more networks, as many others take turns with them: the host works for
    the ones while the device trains the others. A network that ends leaves its place to the next. An interrupt is
    thrown into all that are running; those that it ends are yielded, no other begins, and then KeyboardInterrupt
    is raised.

    Args:
        trainings: for each network a key of the caller's choice, its backend, and a generator of its work, such
            as `Trainer.training`. Networks with the same backend and shape should be neighbours. The next one is
            asked for when there is room for it.
        watch: called between steps; if it raises KeyboardInterrupt, that is an interrupt.

    Yields:
        The key of each network that has ended, and the Exception that ended it, or None.

    Raises:
        KeyboardInterrupt: after an interrupt.
    """
    waiting, more, interrupted = iter(trainings), True, False
    cohort, other = Cohort(), Cohort()
    try:
        while cohort.running or other.running or (more and not interrupted):
            try:
                if not interrupted:
                    if watch is not None:
                        watch()
                    cohort.read_totals()  # while the device trains the other one
                    if all(each.share < 1 for each in other.running):  # none needs the whole device
                        more = _fill(cohort, waiting)
                    if other.running and cohort.share + other.share <= 1 + _ROUNDED:
                        other.running, cohort.running = [*other.running, *cohort.running], []
                    cohort.train()
            except KeyboardInterrupt as interrupt:
                if interrupted:
                    raise
                interrupted = True
                for each in [*cohort.running, *other.running]:
                    each.go_on(error=interrupt)
            ended = [each for each in cohort.running if each.request is None]
            cohort.running = [each for each in cohort.running if each.request is not None]
            yield from ((each.key, each.error) for each in ended)
            cohort, other = other, cohort
    finally:
        for each in [*cohort.running, *other.running]:
            with each.backend.activate():
                each.training.close()
    if interrupted:
        raise KeyboardInterrupt


def _fill(cohort: Cohort, waiting: Iterator[tuple[Any, Backend, Training]]) -> bool:
    """Begin networks until the device is full; False if none is left."""
    while cohort.has_room:
        following = next(waiting, None)
        if following is None:
            return False
        cohort.begin(following)
    return True


# -- fit_many ----------------------------------------------------------------------------------------------


def fit_many(
    models: Sequence[MLP],
    data: Any,
    targets: Any = None,
    *,
    rows: Sequence[HostArray | None] | HostArray | None = None,
    n_jobs: int | None = None,
    sample_weight: Any = None,
    class_weight: ClassWeight | Sequence[ClassWeight] = None,
    optimizer: Optimizer | Sequence[Optimizer | None] | None = None,
    epochs: int | Sequence[int] = 10,
    batch_size: int | Literal["full"] | Sequence[int | Literal["full"]] = 128,
    validation: Validation | list[Validation] = None,
    schedule: Schedule | Sequence[Schedule | None] | None = None,
    l2: float | Sequence[float] = 0.0,
    l1: float | Sequence[float] = 0.0,
    clip_norm: float | Sequence[float | None] | None = None,
    max_norm: float | Sequence[float | None] | None = None,
    ema: float | Sequence[float | None] | None = None,
    augment: Distortion | Sequence[Distortion | None] | None = None,
    preprocess: Preprocessing | Sequence[Preprocessing | None] | None = None,
    order: Order | Sequence[Order] = None,
    seed: int | Sequence[int] = 0,
    callbacks: Callable[[int], CallbackLike | Iterable[CallbackLike]] | None = None,
    diagnostics: bool | Sequence[bool] = True,
    pixels: bool | Sequence[bool | None] | None = None,
    progress: bool = False,
) -> list[History]:
    """Train many networks in place on shared data, at the same time.

    Each is trained as `fit` alone would train it, with the same results: on the CPU bit for bit at one BLAS
    thread, which each worker process has; on a GPU bit for bit as in the same way of running alone, on as many
    multiprocessors.

    Arguments are those of `fit`, except `shards` and `group`, each one value for all networks, or a list, a tuple,
    a range or a one-dimensional array with one for each. Only the following differ.

    Args:
        models: the networks, of any shapes and devices. Those on a GPU are trained in this process, as many at a
            time as fit on it, those on the CPU in worker processes.
        data: the training samples, as `fit` takes them, which all networks share: they are not copied for each.
        targets, sample_weight: of an array of samples, for all networks.
        rows: which samples a network is trained on: a list with an array of row numbers, or None for all samples,
            for each; or one array for all networks. A row may occur several times.
        n_jobs: the number of worker processes for networks on the CPU; None or -1 for as many as there are cores.
            With 1, for a single network, without joblib (part of scikit-learn's installation), or in a process
            that is itself a worker, they are trained in this process, one after another, with its BLAS threads.
        validation: as for `fit`; for each network, a list. An array or a range holds row numbers of `data`, which
            are not trained on: the folds of a cross-validation are ``validation=[fold, ...]``.
        callbacks: a function that is given the number of a network, counted from 0, and returns its callbacks, new
            ones for each network. It is called where the network is trained, so what callbacks keep for
            themselves in a worker process is lost, while files that they write and what they change in the history
            and the network remain.
        progress: print one line for all: epochs and networks, networks per second, and the best metric so far.

    Returns:
        The histories of the networks. After Ctrl-C, those of networks that were not finished have ``interrupted``
        set, and each network is as it was after the last of its epochs.

    Raises:
        ValueError, TypeError: as for `fit`, before any network is trained; also a list of another length, or a
            network that is in `models` twice.
        FitManyError: some networks failed, such as by divergence. All others are trained first.
        OSError: there is no place for the temporary file that worker processes read.

    >>> from gpumlp import MLP, SGD, fit_many, load_digits
    >>> train, test = load_digits()
    >>> models = [MLP([64, width, 10], device="cpu") for width in (16, 32)]
    >>> histories = fit_many(models, train, optimizer=[SGD(0.1), SGD(0.3)], epochs=3, batch_size=32, n_jobs=1)
    >>> [len(history) for history in histories], min(model.accuracy(test) for model in models) > 0.8
    ([3, 3], True)
    """
    networks = _checked_models(models)
    shared = as_dataset(data, targets, sample_weight)
    workers = worker_count(n_jobs)
    if callbacks is not None:
        if not callable(callbacks) or isinstance(callbacks, type):
            raise TypeError(
                "callbacks is expected to be a function that returns the callbacks of a network, such as "
                f"lambda index: [EarlyStopping()], got {shown(callbacks)}"
            )
        require_arguments("callbacks", callbacks, "the number of the network")
    given = {
        "epochs": epochs,
        "class_weight": class_weight,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "schedule": schedule,
        "l2": l2,
        "l1": l1,
        "clip_norm": clip_norm,
        "max_norm": max_norm,
        "ema": ema,
        "augment": augment,
        "preprocess": preprocess,
        "order": order,
        "seed": seed,
        "diagnostics": diagnostics,
        "pixels": pixels,
    }
    count = len(networks)
    lists: Any = list | tuple | range | np.ndarray
    columns = {name: _for_each(name, value, count, lists) for name, value in given.items()}
    if isinstance(rows, np.ndarray) and rows.ndim == 2:
        rows = list(rows)
    columns["rows"] = _for_each("rows", rows, count, list | tuple)
    columns["validation"] = _validation_sets(shared, _for_each("validation", validation, count, list))
    options = [{name: values[index] for name, values in columns.items()} for index in range(count)]
    plan = _Plan(shared, options, callbacks)
    with ExitStack() as stack:
        sets = {id(each): each for each in [shared, *columns["validation"]] if isinstance(each, Dataset)}
        for each in sets.values():
            stack.enter_context(each.placed_once())
        _check(plan, networks)
        line = None
        if flag("progress", progress):
            folder = stack.enter_context(temporary_folder())
            line = _Line(folder, [plan.epochs(index) for index in range(count)])
            stack.enter_context(line.in_place())
        return _Fits(plan, networks, line).run(workers)


def _checked_models(models: Any) -> list[MLP]:
    if isinstance(models, MLP) or not isinstance(models, Iterable):
        raise TypeError(f"models is expected to be a list of networks, got {shown(models)}")
    networks = [instance("a model", model, MLP, "MLP([784, 128, 10])") for model in models]
    seen: dict[int, int] = {}
    for index, model in enumerate(networks):
        first = seen.setdefault(id(model), index)
        if first != index:
            raise ValueError(
                f"models is expected to hold different networks, but {first} and {index} are the same object; "
                "copy.deepcopy makes another"
            )
    if not networks:
        raise ValueError("models is expected to hold at least one network, got none")
    return networks


def _for_each(name: str, value: Any, count: int, kinds: Any) -> list[Any]:
    """One value for each network: those in a list (whose possible types are `kinds`), or one for all."""
    if not isinstance(value, kinds) or (isinstance(value, np.ndarray) and not value.ndim):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} is expected to be one value, or a list with one for each of the {count:,} networks, got a "
            f"list of {len(value):,}"
        )
    return list(value)


def _validation_sets(data: Dataset, given: list[Any]) -> list[Any]:
    """Pairs of samples and targets as data sets, the same one for each network that has the same pair."""
    made: dict[int, Dataset] = {}
    for pair in given:
        if isinstance(pair, tuple) and id(pair) not in made:
            made[id(pair)] = as_validation(data, pair)
    return [made.get(id(each), each) for each in given]


class _Plan(NamedTuple):
    """How each network is trained."""

    data: Dataset
    options: list[dict[str, Any]]  # arguments of `fit` by name
    callbacks: Callable[[int], Any] | None
    report: Callable[[int], Callback] | None = None  # makes the callback of a network that reports progress

    def trainer(self, index: int, model: MLP) -> Trainer:
        options = dict(self.options[index])
        whole("epochs", options.pop("epochs"), 1)
        penalty = Penalty(l2=options.pop("l2"), l1=options.pop("l1"))
        return Trainer(model, self.data, penalty=penalty, **options)

    def epochs(self, index: int) -> int:
        return int(self.options[index]["epochs"])

    def callbacks_of(self, index: int) -> list[Callback]:
        made = [] if self.callbacks is None else as_callbacks(self.callbacks(index))
        return made if self.report is None else [*made, self.report(index)]


class _Outcome(NamedTuple):
    """How the training of a network ended."""

    history: History
    error: Exception | None = None
    state: dict[str, Any] | None = None  # of a network in a worker process


def _check(plan: _Plan, models: Sequence[MLP]) -> None:
    """Raise what `fit` would raise before it trains; the networks stay as they are."""
    for index, model in enumerate(models):
        before = {name: getattr(model, name) for name in ("loss", "inputs", "class_names")}
        try:
            plan.trainer(index, model)
        except (ValueError, TypeError) as error:
            if type(error) not in (ValueError, TypeError) or len(models) == 1:
                raise
            raise type(error)(f"network {index}: {error}") from error
        finally:
            vars(model).update(before)


def _fit_here(plan: _Plan, job: tuple[int, MLP]) -> _Outcome:
    """Train a network; an Exception of training is part of the outcome."""
    index, model = job
    trainer = plan.trainer(index, model)
    error = None
    try:
        trainer.run(plan.epochs(index), plan.callbacks_of(index))
    except Exception as raised:
        error = raised
    return _Outcome(trainer.history, error)


def _fit_copy(plan: _Plan, job: tuple[int, MLP]) -> _Outcome:
    """Train a network in a worker process: the outcome has its state, and can be pickled."""
    history, error, _ = _fit_here(plan, job)
    model = job[1]
    state = {
        "parameters": model.parameters.data,
        "loss": model.loss,
        "inputs": model.inputs,
        "class_names": model.class_names,
    }
    return _Outcome(history, None if error is None else sendable(error), state)


class _Fits:
    """The networks of one call of `fit_many`, and how far they are.

    Args:
        plan: how each is trained.
        models: the networks.
        line: that shows the progress, or None.
    """

    def __init__(self, plan: _Plan, models: list[MLP], line: _Line | None) -> None:
        self.plan, self.models, self.line = plan, models, line
        if line is not None:
            self.plan = plan._replace(report=partial(_Report, line.path))
        self.histories = [History() for _ in models]
        self.errors: dict[int, Exception] = {}
        self.missing = set(range(len(models)))
        self._interrupted = self._told = False

    def run(self, workers: int) -> list[History]:
        groups: dict[Any, list[int]] = {}
        for index, model in enumerate(self.models):
            backend = model.backend
            groups.setdefault((type(backend), backend.name, backend.options), []).append(index)
        ways = [
            self._on_cpu(indices, workers) if kind is NumpyBackend else self._together(indices)
            for (kind, *_), indices in groups.items()
        ]
        try:
            for index, outcome in chain.from_iterable(ways):
                self._end(index, outcome)
        except KeyboardInterrupt:
            for index in self.missing:
                self.histories[index].interrupted = True
        if self.line is not None:
            self.line.update(self.missing, last=True)
        if self.errors:
            raise FitManyError(self.errors, self.histories) from next(iter(self.errors.values()))
        return self.histories

    def _end(self, index: int, outcome: Any) -> None:
        """Take over what came of a network."""
        if isinstance(outcome, Exception):
            outcome = _Outcome(self.histories[index], outcome)
        model, (history, error, state) = self.models[index], outcome
        if state is not None:
            np.copyto(model.parameters.data, state.pop("parameters"))
            vars(model).update(state)
        self.histories[index] = history
        if error is not None:
            self.errors[index] = error
        if history.interrupted:
            self._interrupted = True
        else:
            self.missing.discard(index)

    def _watch(self) -> None:
        """Show the progress; raise KeyboardInterrupt, once, after one network was interrupted: it is for all."""
        if self.line is not None:
            self.line.update(self.missing)
        if self._interrupted and not self._told:
            self._told = True
            raise KeyboardInterrupt

    def _on_cpu(self, indices: list[int], workers: int) -> Iterator[tuple[int, Any]]:
        jobs = [(index, self.models[index]) for index in indices]
        function = partial(_fit_copy, self.plan)
        if min(workers, len(jobs)) == 1:
            plan = self.plan
            if self.line is not None:
                plan = plan._replace(report=partial(_Report, self.line.path, then=self._watch))
            function = partial(_fit_here, plan)
        for place, outcome in run_jobs(function, jobs, n_jobs=workers, watch=self._watch):
            yield indices[place], outcome

    def _together(self, indices: list[int]) -> Iterator[tuple[int, _Outcome]]:
        trainers: dict[int, Trainer] = {}

        def training(index: int) -> Training:  # the trainer is made when there is place for it
            trainer = trainers[index] = self.plan.trainer(index, self.models[index])
            yield from trainer.training(self.plan.epochs(index), self.plan.callbacks_of(index))

        # Those that may share a launch are neighbours.
        order = sorted(indices, key=lambda index: (self.models[index].sizes, repr(self.models[index].layers)))
        with _one_backend([self.models[index] for index in indices]) as backend:
            trainings = ((index, backend, training(index)) for index in order)
            for index, error in run_together(trainings, watch=self._watch):
                trainer = trainers.pop(index, None)
                yield index, _Outcome(History() if trainer is None else trainer.history, error)


@contextmanager
def _one_backend(models: list[MLP]) -> Iterator[Backend]:
    """Within the context, networks on one device have the same backend, which can run the steps of all."""
    backends = [model.backend for model in models]

    def use(chosen: Sequence[Backend]) -> None:
        for model, backend in zip(models, chosen, strict=True):
            model.backend = backend
            for layer in model.layers:
                layer.backend = backend

    try:
        use(backends[:1] * len(models))
        yield backends[0]
    finally:
        use(backends)


# -- The line of progress ----------------------------------------------------------------------------------


class _Report(Callback):
    """Writes the epochs of a network and its best metric into its row of the file that the line of progress reads.

    Args:
        path: of the file.
        index: of the network.
        then: called after each epoch.
    """

    def __init__(self, path: Path, index: int, then: Callable[[], object] | None = None) -> None:
        self.path, self.index, self.then = path, index, then

    def on_train_begin(self, trainer: Trainer) -> None:
        part = "train" if trainer.validation_batches is None else "validation"
        self.so_far = BestSoFar(f"{part}_{METRICS[trainer.model.loss.task][0]}")

    def on_epoch_end(self, trainer: Trainer) -> None:
        best = self.so_far.add_new(trainer.history)
        board = np.load(self.path, mmap_mode="r+")
        if best is not None:
            board[self.index, 1:] = best.value, list(MONITORS).index(self.so_far.monitor)
        board[self.index, 0] = trainer.epoch
        if self.then is not None:
            self.then()


class _Line(ProgressLine):
    """The progress of all networks.

    Args:
        folder: for the file that workers write into.
        epochs: of each network.
    """

    def __init__(self, folder: str, epochs: list[int]) -> None:
        super().__init__()
        self.path = Path(folder, "progress.npy")
        np.save(self.path, np.zeros((len(epochs), 3)))  # epochs, best value, place of its column in MONITORS
        self._epochs, self._start = np.array(epochs), time.monotonic()

    def update(self, missing: set[int], *, last: bool = False) -> None:
        """Show how far all are, as the last line at the end."""
        board = np.load(self.path)
        finished = [index not in missing for index in range(len(board))]
        done, total = int(np.where(finished, self._epochs, board[:, 0]).sum()), int(self._epochs.sum())
        rate = per_second(done / total * len(board), time.monotonic() - self._start)
        text = (
            f"epochs {int(board[:, 0].sum()):,}/{total:,}, networks {sum(finished):,}/{len(board):,}, "
            f"{rate:.3g}/s{_best(board)}"
        )
        if last:
            self.end(text)
        elif done < total:
            self.show(text, done, total)


def _best(board: HostArray) -> str:
    """The best metric so far, and whose it is."""
    begun = board[:, 0] > 0
    if not begun.any():
        return ""
    column = int(board[begun, 2].max())  # of validation, if there is any
    monitor, higher = list(MONITORS.items())[column]
    values = np.where(begun & (board[:, 2] == column), board[:, 1], -np.inf if higher else np.inf)
    index = int(values.argmax() if higher else values.argmin())
    return f", best {monitor_words(monitor)} {metric(monitor, float(values[index]))} (network {index})"
