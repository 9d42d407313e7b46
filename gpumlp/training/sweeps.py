"""A sweep: many networks, each in a run folder of its own, compared by a metric of their validation samples."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import io
import json
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from threadpoolctl import threadpool_limits

import gpumlp

from ..backends import Backend
from ..data import Dataset
from ..files import make_folder, new_folder_path, remove_leftovers, user_path, write_atomically
from ..nn.metrics import HIGHER_IS_BETTER, METRICS
from ..nn.model_file import CHECKPOINT
from ..words import listed
from .batches import trained_rows
from .checkpoint import CheckpointError
from .config import Config, ConfigError, given, options_marked
from .divergence import DivergenceError
from .history import Finding, monitor_words
from .history_file import read_object
from .jobs import run_jobs, worker_count
from .lock import LOCK, RunLock
from .many import run_together
from .progress import Progress, ProgressLine, metric
from .run import PRUNED, SWEEP, Run, is_run, new_folder, write_finding
from .search_space import Values, label, require_few, space, value_text, with_values
from .session import Outcome, PreparedRun, Shared, plain_names, prepare, resume_config
from .trainer import Trainer, Training

INTERRUPTED = "interrupted"
ENDED = ("finished", "diverged", "pruned")  # states of runs that are not trained again

# Options that a run of a sweep may have changed, beside those of a call.
_FREE = ("device", "data_dir", "execution", "multiprocessors", "diagnostics")
_LONGEST_NAME = 60  # characters of a run's folder, without the seed
_PATIENCE = 30.0  # seconds to wait for the worker processes of a sweep that was killed


class PlannedRun(NamedTuple):
    """A run of a sweep: the name of its folder, the number of its network among those of the sweep, its seed."""

    folder: str
    network: int
    seed: int


class SearchPlan(NamedTuple):
    """What a search is asked for.

    Attributes:
        space: the ranges of the options that vary, as `search_space.random` takes them.
        trials: number of networks.
        seed: of the sampler.
    """

    space: tuple[str, ...]
    trials: int
    seed: int


class Row(NamedTuple):
    """How a run has ended.

    Attributes:
        run: which one.
        state: finished, diverged, pruned (stopped by a search), failed, unfinished or not started.
        reason: why it diverged, failed or was pruned, or how far it is.
        metrics: what ``metrics.json`` holds; empty if it is not finished.
    """

    run: PlannedRun
    state: str
    reason: str
    metrics: Mapping[str, Any]


class Result(NamedTuple):
    """A network of a sweep over its seeds.

    Attributes:
        values: of the options that vary.
        rows: its runs.
        mean, deviation: of the sweep's metric over the finished runs; the standard deviation is that of a sample.
            None without finished runs, or with fewer than two.
        test_mean: of the same metric of the test set.
    """

    values: Values
    rows: tuple[Row, ...]
    mean: float | None
    deviation: float | None
    test_mean: float | None

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return sum(row.state == "finished" for row in self.rows)


@dataclass(frozen=True)
class Sweep:
    """The networks of a sweep and what they have in common; ``sweep.json`` holds it.

    Attributes:
        path: the folder.
        config: the options that do not vary.
        metric: loss, accuracy, ..., by whose value of the validation samples networks are ranked.
        networks: the values of each; of a search, those that it has proposed so far.
        runs: each network with each seed.
        logarithmic: the options with a logarithmic axis in a figure.
        data: fingerprints of training and test set.
        search: None for a sweep whose networks are known at its start.
    """

    path: Path
    config: Config
    metric: str
    networks: tuple[Values, ...]
    runs: tuple[PlannedRun, ...]
    logarithmic: tuple[str, ...]
    data: tuple[str, str]
    search: SearchPlan | None = None

    @classmethod
    def plan(
        cls,
        config: Config,
        networks: Sequence[Values],
        seeds: int,
        metric: str | None,
        data: tuple[Dataset, Dataset],
        logarithmic: Sequence[str] = (),
        search: SearchPlan | None = None,
    ) -> Sweep:
        """A new sweep. Its folder is ``config.out``, or ``runs/<time>-sweep``, which is made.

        Args:
            config: the options that do not vary. Its seed is the first one.
            networks: the values of each; of a search, some by which it is checked.
            seeds: how many each network is trained with.
            metric: see `Sweep`; None: the main one of the data.
            data: training and test set.
            logarithmic, search: see `Sweep`.

        Raises:
            PathError: `out` is the name of a file.
            ConfigError: naming everything that does not fit the data, or there is a sweep or a run in the folder.
            OSError: the folder cannot be made.
        """
        require_few(seeds * len(networks) if search is None else search.trials)
        training, test = data
        metric = metric or METRICS[training.task][0]
        problems = dict.fromkeys(metric_problems(metric, training, networks))
        for values in networks:
            try:
                resolved = with_values(config, values).resolved(len(training), training.task)
                resolved.planned_steps(len(training))
                if values is networks[0]:  # all hold out as many
                    trained_rows(training, given(resolved.validation), resolved.seed)
            except ValueError as error:
                problems |= dict.fromkeys(str(error).split("\n"))
        if problems:
            raise ConfigError("\n".join(problems))
        if search is None:
            runs = _runs(networks, range(config.seed, config.seed + seeds))
        else:
            networks = []
            runs = tuple(_run_of_search(index, search, config.seed) for index in range(search.trials))
        if config.out is None:
            path = new_folder(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-sweep")
        else:
            path = new_folder_path(config.out)
            if (path / SWEEP).exists():
                raise ConfigError(
                    f"out: {path} holds a sweep; go on with it (--resume {path}), or choose another folder"
                )
            if is_run(path):
                raise ConfigError(f"out: {path} holds a run; choose another folder")
            used = next((run.folder for run in runs if (path / run.folder).exists()), None)
            if used is not None:
                raise ConfigError(f"out: {path / used}, where a network would go, exists; choose another folder")
            make_folder(path)
        return cls(
            path,
            dataclasses.replace(config, **plain_names(config, training), out=None, quiet=False),
            metric,
            tuple(networks),
            runs if search is None else (),
            tuple(logarithmic),
            (training.fingerprint(), test.fingerprint()),
            search,
        )

    @classmethod
    def open(cls, path: str | Path) -> Sweep:
        """The sweep in a folder.

        Raises:
            CheckpointError: there is none, or its description is damaged.
        """
        file = user_path(path) / SWEEP
        facts = read_object(file)
        if facts is None:
            raise CheckpointError(f"there is no sweep in {file.parent}: it has no {SWEEP}")
        try:
            networks = tuple(
                {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
                for values in facts["networks"]
            )
            runs = tuple(
                PlannedRun(str(run["folder"]), int(run["network"]), int(run["seed"])) for run in facts["runs"]
            )
            config = Config.from_dict(facts["config"])
            for values in networks:
                with_values(config, values).check()
            if any(Path(run.folder).name != run.folder or not 0 <= run.network < len(networks) for run in runs):
                raise ValueError("the folder of a run, or the number of its network, is impossible")
            search = None
            if (plan := facts.get("search")) is not None:
                search = SearchPlan(tuple(plan["space"]), int(plan["trials"]), int(plan["seed"]))
                space(search.space)
            if facts["metric"] not in HIGHER_IS_BETTER or not (runs or search):
                raise ValueError("expected a metric and runs")
            data, axes = tuple(map(str, facts["data"])), tuple(map(str, facts["logarithmic"]))
            if len(data) != 2:
                raise ValueError("expected two fingerprints of data")
            return cls(file.parent, config, facts["metric"], networks, runs, axes, data, search)
        except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged: {' '.join(str(error).split())}") from error

    def save(self) -> None:
        """Write ``sweep.json``, whole or not at all."""
        facts = {
            "version": gpumlp.__version__,
            "metric": self.metric,
            "config": dataclasses.asdict(self.config),
            "logarithmic": self.logarithmic,
            "data": self.data,
            "networks": self.networks,
            "runs": [run._asdict() for run in self.runs],
            "search": None if self.search is None else self.search._asdict(),
        }
        remove_leftovers(self.path)
        write_atomically(self.path / SWEEP, (json.dumps(facts, indent=1) + "\n").encode())

    @property
    def monitor(self) -> str:
        """The name of the metric in ``metrics.json``."""
        return f"validation_{self.metric}"

    @property
    def options(self) -> list[str]:
        """The names of the options that vary."""
        return list(dict.fromkeys(name for values in self.networks for name in values))

    @property
    def planned(self) -> int:
        """Number of runs at the end."""
        return len(self.runs) if self.search is None else max(self.search.trials, len(self.runs))

    def only(self, run: PlannedRun) -> Sweep:
        """A sweep of one of the runs, which other processes are given to train."""
        return dataclasses.replace(self, networks=(self.networks[run.network],), runs=(run._replace(network=0),))

    def with_network(self, values: Values) -> Sweep:
        """The sweep with one more network, which a search has proposed."""
        if self.search is None:
            raise ValueError("expected a search, whose networks are not known at its start")
        run = _run_of_search(len(self.networks), self.search, self.config.seed)
        return dataclasses.replace(self, networks=(*self.networks, values), runs=(*self.runs, run))

    def with_seeds(self, seeds: int) -> Sweep:
        """The sweep with each network trained with another number of seeds; finished runs stay what they are."""
        require_few(seeds * len(self.networks))
        return dataclasses.replace(
            self, runs=_runs(self.networks, range(self.config.seed, self.config.seed + seeds))
        )

    def config_of(self, run: PlannedRun) -> Config:
        """The configuration with which `train` starts a run, or resumes it if its checkpoint is there.

        Raises:
            CheckpointError: the run is damaged.
        """
        folder = self.path / run.folder
        known = is_run(folder)
        if (folder / CHECKPOINT).exists():
            config = resume_config(str(folder))
            return dataclasses.replace(config, device=self.config.device, data_dir=self.config.data_dir)
        config = with_values(self.config, self.networks[run.network])
        return dataclasses.replace(config, seed=run.seed, out=str(folder), overwrite=known)

    def rows(self, failures: Mapping[str, str]) -> list[Row]:
        """How each run has ended, from its folder.

        Args:
            failures: why runs failed, by the names of their folders, which do not record that.
        """
        return [self.row(run, failures) for run in self.runs]

    def row(self, planned: PlannedRun, failures: Mapping[str, str]) -> Row:
        """How a run has ended; arguments as for `rows`."""
        run = Run(self.path / planned.folder, lenient=True)
        if run.finished and "test_loss" in (metrics := run.metrics or {}):  # otherwise the file is damaged
            with suppress(CheckpointError):  # otherwise it has to be trained again, or that says what is wrong
                data = run.header.dataset["train_fingerprint"], metrics.get("test_fingerprint", self.data[1])
                if data == self.data:
                    return Row(planned, "finished", "", metrics)
        if run.diverged is not None:
            return Row(planned, "diverged", " ".join(run.diverged.message.split()), {})
        if run.pruned is not None:
            return Row(planned, "pruned", " ".join(run.pruned.message.split()), {})
        if planned.folder in failures:
            return Row(planned, "failed", failures[planned.folder], {})
        if is_run(run.path):
            return Row(planned, "unfinished", f"{run.progress} epochs", {})
        return Row(planned, "not started", "", {})

    def ranking(self, rows: Sequence[Row]) -> list[Result]:
        """The networks, the best one first; those with a run that has no result come after all others."""
        own: list[list[Row]] = [[] for _ in self.networks]
        for row in rows:
            own[row.run.network].append(row)
        results = [self._result(values, each) for values, each in zip(self.networks, own, strict=True)]
        sign = -1 if HIGHER_IS_BETTER[self.metric] else 1

        def key(result: Result) -> tuple[bool, bool, float]:
            missing = result.mean is None
            return missing, result.finished < len(result.rows), sign * (result.mean or 0.0)

        return sorted(results, key=key)

    def _result(self, values: Values, rows: Sequence[Row]) -> Result:
        def of(name: str) -> list[float]:
            return [row.metrics[name] for row in rows if row.metrics.get(name) is not None]

        found, tests = of(self.monitor), of(f"test_{self.metric}")
        return Result(
            values,
            tuple(rows),
            statistics.fmean(found) if found else None,
            statistics.stdev(found) if len(found) > 1 else None,
            statistics.fmean(tests) if tests else None,
        )

    def as_csv(self, results: Sequence[Result]) -> str:
        """A line for each run under a header, in the order of the ranking."""
        columns = list(dict.fromkeys(name for result in results for row in result.rows for name in row.metrics))
        parts = [f"{part}_{name}" for part in ("validation", "test") for name in HIGHER_IS_BETTER]
        shown = [name for name in (*parts, "network_epoch", "epochs", "seconds") if name in columns]
        mean, deviation = f"mean_{self.monitor}", f"deviation_{self.monitor}"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["rank", mean, deviation, "run", *self.options, "seed", "state", *shown, "reason"])
        for rank, result in enumerate(results, 1):
            network = ["" if result.mean is None else rank, result.mean, result.deviation]
            values = [value_text(result.values[name]) for name in self.options]
            for row in result.rows:
                path, numbers = self.path / row.run.folder, [row.metrics.get(name) for name in shown]
                writer.writerow([*network, path, *values, row.run.seed, row.state, *numbers, row.reason])
        return text.getvalue()


def metric_problems(metric: str, data: Dataset, networks: Sequence[Values]) -> list[str]:
    """What is wrong with a metric for some data and networks; nothing if it exists and can rank them."""
    metrics = ("loss", *METRICS[data.task])
    if metric not in metrics:
        return [f"metric: expected one of {', '.join(metrics)} for {data.task}, got {metric}"]
    if metric == "loss" and len({values.get("label_smoothing") for values in networks}) > 1:
        return [
            f"metric: expected {' or '.join(metrics[1:])} where label_smoothing varies, got loss, which contains "
            "it: such losses cannot be compared"
        ]
    return []


def _runs(networks: Sequence[Values], seeds: Sequence[int]) -> tuple[PlannedRun, ...]:
    """Each network with each seed, in folders with names that say what is in them, if such names are possible."""
    names = [re.sub(r"[^\w.,=+-]", "_", label(values)) for values in networks]
    if len(set(map(str.lower, names))) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        digits = len(str(len(networks)))
        names = [f"network={number:0{digits}}" for number in range(1, len(networks) + 1)]
    return tuple(
        PlannedRun(f"{name},seed={seed}".removeprefix(","), network, seed)
        for network, name in enumerate(names)
        for seed in seeds
    )


def _run_of_search(network: int, search: SearchPlan, seed: int) -> PlannedRun:
    """The run of a network of a search, whose name does not say what is in it, since values can come twice."""
    return PlannedRun(f"network={network + 1:0{len(str(search.trials))}},seed={seed}", network, seed)


# -- Training them -------------------------------------------------------------------------------------------


class Search(Protocol):
    """What proposes networks: `search.OptunaSearch`."""

    sweep: Sweep  # with the networks so far

    def runs(self, missing: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
        """The missing runs, and then new ones, each proposed when it is asked for."""

    def ended(self, row: Row) -> None:
        """A run has ended."""


# What trains runs elsewhere: it yields the index of each that has ended, and the Exception that ended it, or None.
TrainElsewhere = Callable[[Iterator[Sweep], "SweepProgress"], Iterator[tuple[int, Exception | None]]]


class ClusterLostError(Exception):
    """The cluster that trains the runs of a sweep cannot be reached any more."""


class SweepOutcome(NamedTuple):
    """How a sweep ended.

    Attributes:
        sweep: with all networks of a search.
        rows: its runs.
        stopped: why it ended before its last run, `INTERRUPTED` or a sentence; None if it did not.
    """

    sweep: Sweep
    rows: list[Row]
    stopped: str | None


def train_all(
    sweep: Sweep,
    shared: Shared,
    progress: SweepProgress,
    n_jobs: int | None = None,
    *,
    search: Search | None = None,
    elsewhere: TrainElsewhere | None = None,
) -> SweepOutcome:
    """Train the runs of a sweep that have no result yet, several at once.

    On a CPU in worker processes with one BLAS thread each, on a GPU in this process.

    Args:
        sweep: saved in its folder, which the caller has locked.
        shared: gives the data and the device.
        progress: what is shown.
        n_jobs: the number of worker processes; None for one on each core.
        search: proposes networks; None if all are known.
        elsewhere: trains the runs, as `cluster.Cluster.run` does; None for this machine.

    Raises:
        ConfigError, DeviceError, CheckpointError: the device cannot be used, or data or runs are not those of the
            sweep.
    """
    data = shared.data(sweep.config, progress)
    require_data(sweep, *data)
    require_own_runs(sweep, data[0])
    on_gpu = False
    if elsewhere is None:
        backend, device = shared.backend(sweep.config, sweep.config.execution)
        progress.say(device)
        on_gpu = backend.name != "cpu"
        if not on_gpu:
            n_jobs = worker_count(n_jobs)
            progress.say(f"runs at once: {n_jobs}, with one BLAS thread each{_without_joblib(n_jobs)}")
    failures: dict[str, str] = {}
    ended = {row.run.folder: row for row in sweep.rows(failures) if row.state in ENDED}
    missing = [run for run in sweep.runs if run.folder not in ended]
    if on_gpu and search is None:
        missing.sort(key=lambda run: _shape(sweep, run))
    taken: list[PlannedRun] = []

    def now() -> Sweep:
        return sweep if search is None else search.sweep

    def jobs() -> Iterator[Sweep]:
        for run in missing if search is None else search.runs(missing):
            taken.append(run)
            yield now().only(run)

    stopped: str | None = None
    with progress.running(sweep, list(ended.values())), data[0].placed_once(), data[1].placed_once():
        try:
            if elsewhere is not None:
                ends = elsewhere(jobs(), progress)
            else:
                _wait_for_workers([sweep.path / run.folder for run in missing])
                if on_gpu:
                    ends = _train_together(shared, jobs())
                else:
                    train = functools.partial(_train_in_worker, data)
                    work = jobs() if search is not None else list(jobs())  # no more workers than runs
                    ends = run_jobs(train, work, n_jobs=n_jobs)
            for index, failure in ends:
                run = taken[index]
                if failure is not None:
                    failures[run.folder] = _reason(failure)
                row = now().row(run, failures)
                if search is not None:
                    search.ended(row)
                progress.ended(row)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
        except ClusterLostError as error:
            stopped = str(error)
    rows = [ended.get(run.folder) or now().row(run, failures) for run in now().runs]
    return SweepOutcome(now(), rows, stopped)


def require_data(sweep: Sweep, *data: Dataset) -> None:
    """Raise CheckpointError if a sweep was made with another training set or, if it is given too, test set."""
    for what, expected, each in zip(("training", "test"), sweep.data, data, strict=False):
        if each.fingerprint() != expected:
            raise CheckpointError(
                f"{sweep.path}: the sweep was made with other data: expected a {what} set {expected}, but "
                f"{each.name} has {each.fingerprint()}; use the data it was made with"
            )


def require_own_runs(sweep: Sweep, training: Dataset) -> None:
    """Raise ConfigError if a run in the folder of a sweep has other options than the sweep gives it."""
    free = {*options_marked("per_call"), *_FREE}
    for run in sweep.runs:
        path = sweep.path / run.folder
        if not is_run(path):
            continue
        had = Run(path, lenient=True).options
        config = with_values(sweep.config, sweep.networks[run.network])
        config = dataclasses.replace(config, seed=run.seed, shards=config.shards or 1)
        expected = json.loads(config.resolved(len(training), training.task).to_json())
        others = [name for name in expected if name not in free and had[name] != expected[name]]
        if others:
            raise ConfigError(
                f"{path} holds a run with other options ({listed(others)}); remove it to train it again, or "
                "choose another folder"
            )


def _without_joblib(workers: int) -> str:
    """The words that say how to train more runs at once, if only joblib is missing for that."""
    if workers == 1 and (os.cpu_count() or 1) > 1 and importlib.util.find_spec("joblib") is None:
        return '; more need joblib: pip install ".[sklearn]"'
    return ""


def _train_in_worker(data: tuple[Dataset, Dataset], sweep: Sweep) -> None:
    """Train a run with one BLAS thread, so that its bits do not depend on the number of worker processes.

    Args:
        data: training and test set.
        sweep: of that run only.
    """
    with threadpool_limits(1, user_api="blas"):
        train_run(sweep, Shared(data))


def train_run(sweep: Sweep, shared: Shared, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Train a run until it has finished, diverged or been pruned.

    Args:
        sweep: of that run only.
        shared: gives the data and the device.
        cancelled: called several times an epoch; True is an interrupt.

    Raises:
        KeyboardInterrupt: it was interrupted; it is saved.
        LockedError: another process is training it.
        ConfigError, DataError, DeviceError, CheckpointError, OSError: as for `prepare`.
    """
    watch = RunWatch(sweep, cancelled)
    with suppress(DivergenceError):
        outcome = prepare(sweep.config_of(sweep.runs[0]), shared, watch).train()
        if not watch.pruned:
            _require_end(outcome)


class RunWatch(Progress):
    """Shows nothing of a run, and interrupts it when it is cancelled or its search gives it up.

    Args:
        sweep: of that run only.
        cancelled: called several times an epoch.

    Attributes:
        pruned: why the search has given the run up, which its folder says at the end; None if it has not.
    """

    def __init__(self, sweep: Sweep, cancelled: Callable[[], bool] = lambda: False) -> None:
        super().__init__(quiet=True)
        self.pruned: str | None = None
        self._sweep, self._cancelled = sweep, cancelled
        self._report: Callable[[int, float], str | None] | None = None
        if sweep.search is not None:
            from .search import TrialReport

            self._report = TrialReport(sweep)

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if self._cancelled():
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer: Trainer) -> None:
        value = getattr(trainer.history.records[-1], self._sweep.monitor)
        if self._report is None or value is None:
            return
        reason = self._report(trainer.epoch, value)
        if reason is not None and trainer.epoch < trainer.epochs:
            self.pruned = reason
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer) -> None:  # after the folder has saved the last epoch
        if self.pruned is not None:
            write_finding(self._sweep.path / self._sweep.runs[0].folder / PRUNED, Finding("pruned", self.pruned))


def _train_together(shared: Shared, jobs: Iterator[Sweep]) -> Iterator[tuple[int, Exception | None]]:
    """Train runs in this process, as many at a time as fit on a GPU.

    Yields:
        The index of a run that has ended, and the Exception that ended it, or None.
    """
    failed: list[tuple[int, Exception]] = []

    def prepared() -> Iterator[tuple[int, Backend, Training]]:
        for index, sweep in enumerate(jobs):
            watch = RunWatch(sweep)
            try:
                run = prepare(sweep.config_of(sweep.runs[0]), shared, watch, together=True)
            except Exception as error:
                failed.append((index, error))
            else:  # the backend of a resumed run may be another one, which runs steps as before
                yield index, run.trainer.model.backend, _steps(run, watch)

    yield from run_together(prepared())
    yield from failed


def _shape(sweep: Sweep, run: PlannedRun) -> str:
    """Equal for runs whose networks and batches have the same shape, which a GPU trains best together."""
    config = with_values(sweep.config, sweep.networks[run.network])
    return repr((config.hidden, config.batch_size, config.activation, config.optimizer))


def _steps(run: PreparedRun, watch: RunWatch) -> Training:
    """The steps of a run until it has finished, diverged or been pruned."""
    with suppress(DivergenceError):
        yield from run.steps()
        if not watch.pruned:
            _require_end(run.outcome)


def _require_end(outcome: Outcome | None) -> None:
    """Raise KeyboardInterrupt if a run was interrupted before its last epoch; it is saved."""
    if outcome is None or outcome.metrics is None:
        raise KeyboardInterrupt


def _reason(failure: Exception) -> str:
    """An error in one line, with its type unless users can cause it."""
    text = " ".join(str(failure).split())
    if isinstance(failure, OSError) and failure.filename and failure.strerror:
        return f"{failure.filename}: {failure.strerror}"
    if isinstance(failure, ValueError | OSError | RuntimeError | MemoryError) and text:
        return text
    return f"{type(failure).__name__}: {text}"


def _wait_for_workers(folders: Sequence[Path]) -> None:
    """Wait until nobody trains runs; worker processes end soon after a sweep that is killed."""
    end = time.monotonic() + _PATIENCE
    for folder in folders:
        if (folder / LOCK).exists():
            with suppress(ConfigError):
                RunLock(folder, patience=end - time.monotonic()).release()


class SweepProgress(ProgressLine):
    """A line on a sweep: runs that have ended, those that workers of a cluster train, the best, the time left."""

    _running = 0  # runs on a cluster
    _best: float | None = None

    @contextmanager
    def running(self, sweep: Sweep, ended: list[Row]) -> Iterator[None]:
        """While the runs of a sweep that have not ended are trained, and those that its search is to propose."""
        self._sweep, self._before, self._start = sweep, len(ended), time.monotonic()
        self._states, self._best = Counter[str](), None
        for row in ended:
            self._count(row)
        with self.in_place():
            self._show()
            yield

    def now_running(self, runs: int) -> None:
        """How many runs the workers of a cluster train at the moment."""
        self._running = runs
        self._show()

    def ended(self, row: Row) -> None:
        """A run has ended."""
        self._count(row)
        self._show()

    def _count(self, row: Row) -> None:
        self._states[row.state] += 1
        if row.state == "finished":
            value = row.metrics[self._sweep.monitor]
            better = max if HIGHER_IS_BETTER[self._sweep.metric] else min
            self._best = value if self._best is None else better(self._best, value)

    def _show(self) -> None:
        ended, planned = self._states.total(), self._sweep.planned
        done, total = ended - self._before, planned - self._before
        parts = [f"{ended:,} of {planned:,} runs"]
        parts += [f"{self._running:,} running"] * (self._running > 0)
        parts += [f"{self._states[state]:,} {state}" for state in (*ENDED[1:], "failed") if self._states[state]]
        if self._best is not None:
            name = self._sweep.monitor
            parts.append(f"best {monitor_words(name)} {metric(name, self._best)}")
        if 0 < done < total:
            parts.append(f"{duration((time.monotonic() - self._start) / done * (total - done))} left")
        self.show(", ".join(parts), done, total)


def duration(seconds: float) -> str:
    """A time in one unit.

    >>> duration(8.2), duration(200), duration(10_000)
    ('8 s', '3 min', '2.8 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
