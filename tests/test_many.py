"""Many networks at once: jobs in worker processes, and `fit_many`."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from gpumlp import MLP, SGD, Callback, Dataset, Trainer, fit
from gpumlp.backends import StepRun
from gpumlp.training.many import run_jobs, worker_count


def model(seed: int = 0, sizes: tuple[int, ...] = (20, 12, 4)) -> MLP:
    return MLP(list(sizes), seed=seed, device="cpu")


def weights(network: MLP) -> bytes:
    return b"".join(tensor.tobytes() for tensor in network.state_dict().values())


# -- Jobs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_every_job_gives_its_result_or_its_exception(n_jobs: int) -> None:
    def half(number: int) -> float:  # a function in a function: plain pickle refuses it
        if number == 3:
            raise ZeroDivisionError("three")
        return number / 2

    results = dict(run_jobs(half, range(6), n_jobs=n_jobs))
    error = results.pop(3)
    assert results == {0: 0, 1: 0.5, 2: 1, 4: 2, 5: 2.5}
    assert isinstance(error, ZeroDivisionError)
    assert str(error) == "three"


def test_workers_share_read_only_arrays_and_have_one_thread() -> None:
    def seen(data: np.ndarray, job: int) -> tuple[float, bool, int, set[int]]:
        threads = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        return float(data[job]), data.flags.writeable, os.getpid(), threads

    data = np.arange(1000.0)
    for index, (value, writeable, process, threads) in run_jobs(partial(seen, data), range(4), n_jobs=2):
        assert (value, writeable, threads) == (index, False, {1})
        assert process != os.getpid()


def test_an_exception_that_cannot_be_pickled_is_told_in_words() -> None:
    class Odd(Exception):
        def __init__(self, one: int, other: int) -> None:
            super().__init__(f"{one} and {other}")

    def fail(job: int) -> None:
        raise Odd(job, 2)

    (_, error), _ = run_jobs(fail, range(2), n_jobs=2)
    assert type(error) is RuntimeError
    assert str(error) in ("Odd: 0 and 2", "Odd: 1 and 2")


def test_a_worker_that_dies_is_an_error_and_the_next_jobs_run() -> None:
    with pytest.raises(RuntimeError, match="worker process died"):
        list(run_jobs(lambda job: os._exit(1), range(2), n_jobs=2))
    assert dict(run_jobs(abs, [-1, -2], n_jobs=2)) == {0: 1, 1: 2}


def test_an_interrupt_reaches_jobs_that_run_and_no_other_begins(tmp_path: Path) -> None:
    def sleep(job: int) -> str:
        (tmp_path / str(job)).touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            return "stopped"
        return "slept"

    def interrupt_when_two_run() -> None:
        if len(list(tmp_path.iterdir())) == 2 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    interrupted: list[bool] = []
    results = []
    start = time.monotonic()
    jobs = run_jobs(sleep, range(9), n_jobs=2, watch=interrupt_when_two_run)
    with pytest.raises(KeyboardInterrupt):
        results.extend(jobs)
    assert time.monotonic() - start < 30
    assert sorted(results) == [(0, "stopped"), (1, "stopped")]
    assert len(list(tmp_path.iterdir())) == 2


def test_jobs_that_nobody_wants_any_more_are_ended() -> None:
    jobs = run_jobs(time.sleep, [0, 60, 60], n_jobs=2)
    assert next(jobs) == (0, None)
    start = time.monotonic()
    jobs.close()
    assert time.monotonic() - start < 30


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(3) == 3
    assert worker_count(None) == worker_count(-1) >= 1
    for wrong in (0, -2, 1.5, "2"):
        with pytest.raises(ValueError, match="n_jobs is expected to be a number of 1 or more"):
            worker_count(wrong)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert worker_count(None) == 1
    with pytest.raises(ValueError, match="needs joblib"):
        worker_count(2)


# -- A training run as a generator -------------------------------------------------------------------------


def test_the_caller_of_a_training_run_runs_its_steps(blobs: Dataset) -> None:
    networks = model(), model()
    fit(networks[0], blobs, epochs=3, batch_size=32, validation=50)
    trainer = Trainer(networks[1], blobs, batch_size=32, validation=50)
    for run in trainer.training(3):
        assert isinstance(run, StepRun)
        trainer.model.backend.run_steps(*run)
    assert weights(networks[0]) == weights(networks[1])
    assert len(trainer.history) == 3


@pytest.mark.parametrize("way", ["interrupt", "error", "close"])
def test_what_stops_the_steps_undoes_the_epoch_and_ends_the_training(blobs: Dataset, way: str) -> None:
    ended = []

    class End(Callback):
        def on_train_end(self, trainer: Trainer) -> None:
            ended.append(trainer.epoch)

    trainer = Trainer(model(), blobs, optimizer=SGD(0.1), batch_size=32)
    training = trainer.training(9, End())
    for run in training:
        if trainer.epoch == 1 and run.batches.start > 0:
            break
        trainer.model.backend.run_steps(*run)
    if way == "interrupt":
        with pytest.raises(StopIteration):
            training.throw(KeyboardInterrupt())
    elif way == "error":
        with pytest.raises(ZeroDivisionError):
            training.throw(ZeroDivisionError())
    else:
        training.close()
    expected = model()
    fit(expected, blobs, optimizer=SGD(0.1), epochs=1, batch_size=32)
    assert weights(trainer.model) == weights(expected)
    assert (trainer.history.interrupted, ended) == (way == "interrupt", [1])
