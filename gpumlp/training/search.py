"""The search of a sweep: Optuna proposes networks by the results so far, and stops runs that are behind."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require
from ..files import resolved
from ..nn.metrics import HIGHER_IS_BETTER
from .checkpoint import CheckpointError
from .config import ConfigError, given
from .history import monitor_words
from .progress import metric
from .search_space import Choice, Interval, space, value_text
from .sweeps import ENDED, PlannedRun, Row, Sweep

STUDY = "study.log"  # Optuna's journal: several processes and machines append to it, each under a lock
FIRST = 5  # runs that finish before any is pruned
LEAST = 3  # epochs that a run has before it is pruned
GRACE = 10  # seconds after which the journal's lock is taken from a process that was killed while it had it

_LINKS = os.name != "nt"  # which need a privilege on Windows
_NAME = "sweep"
_FOLDER = "folder"  # user attribute of a trial: the folder of its run


def _optuna() -> Any:
    require("searches", "optuna", "optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _storage(path: Path) -> Any:
    """The journal of a sweep.

    Raises:
        CheckpointError: it is damaged.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock

    kind = JournalFileSymlinkLock if _LINKS else JournalFileOpenLock
    file = str(resolved(path / STUDY))  # the lock may be a link to it, which has to lead there from its folder
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # Optuna leaves closing its file to the collector
            return JournalStorage(JournalFileBackend(file, kind(file, GRACE)))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STUDY} is damaged: {' '.join(str(error).split())}") from error


def _cut_torn_line(file: Path) -> None:
    """Remove the last line of a journal if a power failure has cut it off: Optuna refuses it with such a line."""
    with suppress(FileNotFoundError):
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)


def _remove_dangling_lock(lock: Path) -> None:
    """Remove a journal's lock, a link to it, that a killed process has left and whose folder was moved.

    Optuna waits for such a lock forever. One that leads to the journal may be held; it is taken after `GRACE`.
    """
    if lock.is_symlink() and not lock.exists():
        lock.unlink()


def _pruner() -> Any:
    return _optuna().pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=LEAST)


class OptunaSearch:
    """The study of a sweep, kept by the process that runs it.

    With one run at a time, what is proposed depends on the seed and the results alone, also after an interrupt:
    each network is drawn with a seed of its own.

    Args:
        sweep: saved in its folder, which the caller has locked. The study is made there if there is none.

    Attributes:
        sweep: with the networks so far.

    Raises:
        MissingExtraError: Optuna is not installed.
        CheckpointError: the study is damaged, or is not there although there are runs.
        ConfigError: the study was made for another metric.
    """

    def __init__(self, sweep: Sweep) -> None:
        optuna = _optuna()
        _cut_torn_line(sweep.path / STUDY)
        _remove_dangling_lock(sweep.path / f"{STUDY}.lock")
        self.sweep = sweep
        self._ranges = space(given(sweep.search).space)
        self._distributions = {each.name: _distribution(optuna, each) for each in self._ranges}
        direction = "maximize" if HIGHER_IS_BETTER[sweep.metric] else "minimize"
        self._study = optuna.create_study(
            study_name=_NAME, storage=_storage(sweep.path), direction=direction, load_if_exists=True
        )
        if not self._study.get_trials(deepcopy=False):
            if sweep.runs:
                raise CheckpointError(
                    f"{sweep.path / STUDY} is missing or empty, but the sweep has runs: put it back"
                )
            self._study.set_user_attr("metric", sweep.metric)
        wanted = self._study.user_attrs.get("metric")
        if wanted != sweep.metric:
            raise ConfigError(
                f"metric: the search goes by {wanted}, got {sweep.metric}; after the last run another one ranks "
                "them"
            )
        self._numbers: dict[str, int] = {}  # of trials, by the folders of their runs
        self._find_trials()

    def runs(self, missing: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
        """The missing runs, then as many new ones as planned, each proposed when it is asked for."""
        self._find_trials()  # what worker processes of a killed sweep have ended in the meantime
        yield from missing
        while len(self.sweep.runs) < self.sweep.planned:
            yield self._propose()

    def ended(self, row: Row) -> None:
        """Tell the study how a run has ended; one that failed stays open, to be tried again."""
        if row.state not in ENDED:
            return
        optuna, number = _optuna(), self._numbers[row.run.folder]
        if row.state == "finished":
            self._study.tell(number, row.metrics[self.sweep.monitor], skip_if_finished=True)
        else:  # a run that diverged is as bad as one that was stopped
            self._study.tell(number, state=optuna.trial.TrialState.PRUNED, skip_if_finished=True)

    def _find_trials(self) -> None:
        """Tell the study what it has missed when the sweep was killed."""
        optuna, folders = _optuna(), {run.folder: run for run in self.sweep.runs}
        for trial in self._study.get_trials(deepcopy=False):
            folder = trial.user_attrs.get(_FOLDER)
            if folder in folders:
                self._numbers[folder] = trial.number
            if trial.state == optuna.trial.TrialState.RUNNING:
                if folder in folders:
                    self.ended(self.sweep.row(folders[folder], {}))
                else:  # its network did not come into the sweep
                    self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if lost := sorted(set(folders) - set(self._numbers)):
            raise CheckpointError(f"{self.sweep.path / STUDY} is damaged: it has no trial of {lost[0]}")

    def _propose(self) -> PlannedRun:
        """A new network, saved in the study and the sweep."""
        seed = np.random.SeedSequence([given(self.sweep.search).seed, len(self.sweep.runs)])
        self._study.sampler = _optuna().samplers.TPESampler(seed=int(seed.generate_state(1)[0]))
        trial = self._study.ask(self._distributions)
        values = {each.name: _value(each, trial.params[each.name]) for each in self._ranges}
        sweep = self.sweep.with_network(values)
        run = sweep.runs[-1]
        trial.set_user_attr(_FOLDER, run.folder)
        sweep.save()
        self.sweep, self._numbers[run.folder] = sweep, trial.number
        return run


def _distribution(optuna: Any, each: Choice | Interval) -> Any:
    if isinstance(each, Choice):
        return optuna.distributions.CategoricalDistribution([value_text(value) for value in each.values])
    kinds = optuna.distributions
    kind = kinds.IntDistribution if isinstance(each.low, int) else kinds.FloatDistribution
    return kind(each.low, each.high, log=each.log)


def _value(each: Choice | Interval, found: Any) -> Any:
    """The value of an option for what a trial has."""
    if isinstance(each, Interval):
        return each.rounded(found)
    return next(value for value in each.values if value_text(value) == found)


class TrialReport:
    """Tells the study about a run, from whatever process trains it.

    If the run's trial has ended, because it was finished or stopped before, the run is trained to its end.

    Args:
        sweep: of that run only.

    Raises:
        MissingExtraError: Optuna is not installed there.
        CheckpointError: the study is damaged, or has no trial of the run.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, optuna = sweep, _optuna()
        self._storage = _storage(sweep.path)
        self._study = optuna.load_study(study_name=_NAME, storage=self._storage, pruner=_pruner())
        folder = sweep.runs[0].folder
        trials = [
            trial for trial in self._study.get_trials(deepcopy=False) if trial.user_attrs.get(_FOLDER) == folder
        ]
        if not trials:
            raise CheckpointError(f"{sweep.path / STUDY} has no trial of {folder}")
        self._trial, self._open = trials[0]._trial_id, not trials[0].state.is_finished()

    def __call__(self, epoch: int, value: float) -> str | None:
        """Report the metric of an epoch; returns why the run is to be stopped, or None.

        What it has reported of later epochs, before it was killed and resumed, is not considered.
        """
        if not self._open or not math.isfinite(value):
            return None
        self._storage.set_trial_intermediate_value(self._trial, epoch, value)
        trial = copy.copy(self._storage.get_trial(self._trial))
        trial.intermediate_values = {step: x for step, x in trial.intermediate_values.items() if step <= epoch}
        if not self._study.pruner.prune(self._study, trial):
            return None
        known = trial.intermediate_values.values()
        best = max(known) if HIGHER_IS_BETTER[self._sweep.metric] else min(known)
        name = self._sweep.monitor
        return (
            f"stopped by the search after epoch {epoch}: the best {monitor_words(name)} was {metric(name, best)}, "
            "worse than the median of the finished ones then"
        )
