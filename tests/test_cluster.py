"""Sweeps over the workers of Dask: the runs of `train`, whatever dies, what is refused, and scikit-learn there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason='Dask is not installed: pip install ".[dask]"')

from gpumlp.extras import MissingExtraError
from gpumlp.training import cluster as cluster_module
from gpumlp.training.cluster import Cluster, WorkerFacts, worker_facts
from gpumlp.training.config import ConfigError
from gpumlp.training.lock import RunLock
from gpumlp.training.sweeps import SearchPlan, Sweep, SweepProgress
from tests.command_helpers import DIGITS, ROOT, SAVE_EACH, assert_same_run, finish, lines, run, spawn, wait_until
from tests.dask_helpers import DaskCluster, child_of, dask_cluster, wait_for
from tests.test_sweep import rows, same_sweep

SMALL = (*DIGITS, "--epochs", 3, "--grid", "hidden=4,5", "--seeds", 2)
LONG = (*DIGITS, "--epochs", 150, "--grid", "hidden=16,17", "--seeds", 2)
FIRST, SECOND = "hidden=16,seed=0", "hidden=16,seed=1"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster with two workers, which tests leave as they found it."""
    with dask_cluster(tmp_path_factory.mktemp("dask") / "two", workers=2, **SAVE_EACH) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "s"
    assert run("sweep", *LONG, "--quiet", "--out", out) == 0
    return out


# -- A sample that the usual run of the tests has ------------------------------------------------------------


def test_runs_on_workers_are_those_of_train(two: DaskCluster, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)  # where the workers are not
    assert run("sweep", *SMALL, "--scheduler", two.address, "--out", "s") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"runs at once: 1, on 1 worker of {two.address}, with one BLAS thread each\n" in said.out or (
        f"runs at once: 2, on 2 workers of {two.address}, with one BLAS thread each\n" in said.out
    )
    assert "4 of 4 runs, best validation accuracy" in said.out
    assert {row["state"] for row in rows(Path("s"))} == {"finished"}
    for hidden, seed in ((4, 0), (5, 1)):
        alone = tmp_path / f"hidden={hidden},seed={seed}"
        words = ("--epochs", 3, "--hidden", hidden, "--seed", seed, "--quiet", "--out", alone)
        assert finish(spawn("train", *DIGITS, *words))[0] == 0
        assert_same_run(alone, tmp_path / "s" / alone.name)
    assert run("sweep", *SMALL, "--jobs", 1, "--quiet", "--out", "here") == 0
    same_sweep(tmp_path / "s", tmp_path / "here")


def test_the_line_of_progress_has_the_runs_in_progress(tmp_path: Path, capsys) -> None:
    assert run("sweep", *SMALL, "--jobs", 1, "--quiet", "--out", tmp_path / "s") == 0
    sweep, progress = Sweep.open(tmp_path / "s"), SweepProgress()
    (tmp_path / "s" / "hidden=4,seed=0" / "metrics.json").unlink()
    with progress.running(sweep, [sweep.row(run, {}) for run in sweep.runs[1:]]):
        progress.now_running(3)
        progress.ended(sweep.row(sweep.runs[0], {"hidden=4,seed=0": "x"}))
    assert capsys.readouterr().out.startswith("4 of 4 runs, 3 running, 1 failed, best validation accuracy ")


def test_a_search_runs_on_workers_and_prunes_there(two: DaskCluster, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    words = ("--random", "learning-rate=log:1e-5:1", "--search", "optuna", "--trials", 12, "--quiet")
    out = tmp_path / "s"
    assert run("sweep", *DIGITS, "--epochs", 6, *words, "--scheduler", two.address, "--out", out) == 0
    states = [row["state"] for row in rows(out)]
    assert len(states) == 12
    assert set(states) == {"finished", "pruned"}


def test_a_sweep_that_is_finished_waits_for_no_workers(tmp_path: Path) -> None:
    assert run("sweep", *SMALL, "--jobs", 1, "--quiet", "--out", tmp_path / "s") == 0
    with dask_cluster(tmp_path / "dask") as cluster:
        words = ("--resume", tmp_path / "s", "--scheduler", cluster.address, "--metric", "loss")
        code, said, err = finish(spawn("sweep", *words))
    assert (code, err) == (0, "")
    assert "rank" in said


def test_a_wrong_address_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT", 0.5)
    for address in ("tcp://127.0.0.1:1", "somewhere", "nosuch://host:1"):
        assert run("sweep", *SMALL, "--scheduler", address, "--out", tmp_path / "s") == 2
        err = capsys.readouterr().err
        assert err.startswith("gpumlp-sweep: scheduler: expected the address of a Dask scheduler, such as tcp://")
        assert f"none answers at {address!r}" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_without_dask_the_extra_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    def missing(*words: str) -> None:
        raise MissingExtraError(" ".join(words))

    monkeypatch.setattr("gpumlp.training.cluster.require", missing)
    assert run("sweep", *SMALL, "--scheduler", "tcp://127.0.0.1:1", "--out", tmp_path / "s") == 2
    assert "sweeps over machines distributed dask" in capsys.readouterr().err


def test_without_the_options_neither_dask_nor_optuna_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from gpumlp.sweep import main\n"
        f"assert main({[str(word) for word in (*SMALL, '--jobs', 1, '--quiet', '--out', tmp_path / 's')]}) == 0\n"
        "assert not {'dask', 'distributed', 'optuna'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (ModuleNotFoundError("No module named 'gpumlp'"), "not used: W cannot load gpumlp "),
        (WorkerFacts({**worker_facts().versions, "gpumlp": "0.0"}, None), "not used: W has gpumlp 0.0, expected "),
        (WorkerFacts({**worker_facts().versions, "NumPy": "1.0"}, None), "not used: W has NumPy 1.0, expected "),
        (worker_facts()._replace(kernel="Prescott"), "W uses the BLAS kernel Prescott, this machine "),
    ],
)
def test_workers_that_differ_are_named(facts: Any, line: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cluster_module, "worker_facts", lambda: worker_facts()._replace(kernel="Haswell"))
    tasks = cluster_module._Tasks(None, "tcp://host:1", iter(()), SweepProgress())
    tasks._check("W", 1, facts)
    assert line in capsys.readouterr().out
    assert ("W" in tasks._unfit) == line.startswith("not used")


# -- What dies, and goes on (-m dask) ------------------------------------------------------------------------


@pytest.mark.dask
@pytest.mark.parametrize("whole_worker", [False, True], ids=["restarted", "gone"])
def test_a_worker_that_is_killed_costs_nothing_but_an_epoch(
    whole_worker: bool, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "s"
    with dask_cluster(tmp_path / "dask", workers=2, **SAVE_EACH) as cluster:
        process = spawn("sweep", *LONG, "--scheduler", cluster.address, "--out", out)
        wait_until(lambda: min(lines(out / FIRST), lines(out / SECOND)) >= 5, process)
        worker = cluster.workers[0]
        if whole_worker:
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            os.kill(child_of(worker), signal.SIGKILL)
        code, said, err = finish(process)
    assert (code, err) == (0, "")
    assert "4 of 4 runs, best" in said
    same_sweep(out, whole)


@pytest.mark.dask
def test_after_the_scheduler_is_killed_a_sweep_goes_on(two: DaskCluster, tmp_path: Path, whole: Path) -> None:
    """With another scheduler, and on this machine."""
    out = tmp_path / "s"
    with dask_cluster(tmp_path / "dask", workers=2, **SAVE_EACH) as cluster:
        process = spawn("sweep", *LONG, "--scheduler", cluster.address, "--out", out)
        wait_until(lambda: lines(out / SECOND) >= 5, process)
        cluster.scheduler.kill()
        code, _, err = finish(process)
        ended = len(list(out.glob("*/metrics.json")))
        assert code == 1
        assert err == (
            f"gpumlp-sweep: the Dask scheduler at {cluster.address} cannot be reached any more; {ended} of 4 runs "
            "have ended, the others are saved up to their last epoch. Go on with: "
            f"python -m gpumlp.sweep --resume {out}\n"
        )
    for folder, words in ((tmp_path / "again", ("--scheduler", two.address)), (tmp_path / "here", ())):
        shutil.copytree(out, folder)
        times = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
        assert run("sweep", "--resume", folder, *words, "--quiet") == 0
        same_sweep(folder, whole)
        assert all(path.stat().st_mtime_ns == then for path, then in times.items()), "it was trained again"


@pytest.mark.dask
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_ends_and_its_runs_stop(
    number: signal.Signals, two: DaskCluster, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "s"
    process = spawn("sweep", *LONG, "--scheduler", two.address, "--out", out)
    wait_until(lambda: lines(out / FIRST) >= 5, process)
    process.send_signal(number)
    start = time.monotonic()
    code, _, err = finish(process)
    if number == signal.SIGINT:
        assert code == 130
        assert "gpumlp-sweep: interrupted; " in err
        assert f"Go on with: python -m gpumlp.sweep --resume {out}\n" in err
        assert not list(out.glob("*/run.lock")), "a run is still in progress"
    else:
        wait_for(lambda: not list(out.glob("*/run.lock")), 5)
    assert time.monotonic() - start < 5
    assert len(list(out.glob("*/metrics.json"))) < 4
    assert run("sweep", "--resume", out, "--scheduler", two.address, "--quiet") == 0
    same_sweep(out, whole)


@pytest.mark.dask
def test_a_run_with_which_workers_die_fails_alone(tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os\n"
        "from gpumlp.training import cluster\n"
        "train = getattr(cluster, 'whole_train_run', cluster.train_run)\n"  # Dask may load this twice
        "cluster.whole_train_run = train\n"
        "def train_run(sweep, *others):\n"
        "    if sweep.networks[0]['hidden'] == (5,):\n"
        "        os._exit(1)\n"
        "    return train(sweep, *others)\n"
        "cluster.train_run = train_run\n"
    )
    out = tmp_path / "s"
    with dask_cluster(tmp_path / "dask") as cluster:
        cluster.worker("--preload", deadly)
        assert run("sweep", *SMALL[:-2], "--scheduler", cluster.address, "--quiet", "--out", out) == 1
    assert [row["state"] for row in rows(out)] == ["finished", "failed"]
    assert rows(out)[1]["reason"] == "its worker died 4 times, perhaps for lack of memory"


@pytest.mark.dask
def test_a_run_that_another_process_trains_is_waited_for(two: DaskCluster, tmp_path: Path) -> None:
    out = tmp_path / "s"
    (out / "hidden=4,seed=0").mkdir(parents=True)
    words = (*SMALL[:-2], "--scheduler", two.address, "--out", out)
    assert run("sweep", *words[:4], *words[4:]) == 2  # the folder of a network is there already
    (out / "hidden=4,seed=0").rmdir()
    assert run("sweep", *words, "--quiet") == 0
    (out / "hidden=4,seed=0" / "metrics.json").unlink()
    lock = RunLock(out / "hidden=4,seed=0")
    timer = threading.Timer(3, lock.release)
    timer.start()
    start = time.monotonic()
    assert run("sweep", "--resume", out, "--scheduler", two.address, "--quiet") == 0
    assert time.monotonic() - start > 2
    assert [row["state"] for row in rows(out)] == ["finished"] * 2


# -- Workers (-m dask) ---------------------------------------------------------------------------------------


@pytest.mark.dask
def test_a_worker_with_several_threads_is_named_and_trains_the_same(tmp_path: Path, capsys) -> None:
    with dask_cluster(tmp_path / "dask") as cluster:
        cluster.worker(threads=2, OPENBLAS_NUM_THREADS="2")
        assert run("sweep", *SMALL, "--scheduler", cluster.address, "--out", tmp_path / "s") == 0
    assert " has 2 threads: its runs share a process and wait for each other" in capsys.readouterr().out
    assert run("sweep", *SMALL, "--jobs", 1, "--quiet", "--out", tmp_path / "here") == 0
    same_sweep(tmp_path / "s", tmp_path / "here")


@pytest.mark.dask
def test_the_command_waits_for_workers(tmp_path: Path) -> None:
    with dask_cluster(tmp_path / "dask") as cluster:
        process = spawn("sweep", *SMALL, "--scheduler", cluster.address, "--out", tmp_path / "s")
        wait_until((tmp_path / "s" / "sweep.json").exists, process)
        time.sleep(2)
        cluster.worker()
        code, said, err = finish(process)
    assert (code, err) == (0, "")
    assert f"waiting for workers; start some with: dask worker {cluster.address} --nthreads 1\n" in said


@pytest.mark.dask
def test_workers_without_gpumlp_or_the_device_are_refused(tmp_path: Path, capsys) -> None:
    pytest.importorskip("distributed")
    if subprocess.run([sys.executable, "-c", "import gpumlp"], cwd=tmp_path, env=_without_path()).returncode == 0:
        pytest.skip("gpumlp is installed for all processes")
    with dask_cluster(tmp_path / "dask") as cluster:
        cluster.worker(PYTHONPATH=None)
        assert run("sweep", *SMALL, "--scheduler", cluster.address, "--out", tmp_path / "s") == 2
        err = capsys.readouterr().err
        assert f"scheduler: none of the workers at {cluster.address} can train this sweep: tcp://" in err
        assert "cannot load gpumlp" in err
        cluster.worker()
        time.sleep(3)
        assert run("sweep", "--resume", tmp_path / "s", "--scheduler", cluster.address) == 0
        assert "not used: tcp://" in capsys.readouterr().out
    with dask_cluster(tmp_path / "other", PYTHONPATH=None) as cluster:
        assert run("sweep", *SMALL, "--scheduler", cluster.address, "--out", tmp_path / "t") == 2
    assert "expected one that can load gpumlp" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.dask
def test_a_device_that_no_worker_has_is_one_line(two: DaskCluster, tmp_path: Path, capsys) -> None:
    words = ("--dataset", "digits", "--device", "cuda:77", *SMALL[4:], "--scheduler", two.address)
    assert run("sweep", *words, "--out", tmp_path / "s") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gpumlp-sweep: scheduler: none of the workers at {two.address} can train this sweep: ")
    assert err.count("\n") == 1


def _without_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_worker_needs_the_folder_of_a_sweep_and_optuna_for_a_search(tmp_path: Path, monkeypatch) -> None:
    assert run("sweep", *SMALL, "--jobs", 1, "--quiet", "--out", tmp_path / "s") == 0
    sweep = Sweep.open(tmp_path / "s")

    def missing(*words: str) -> None:
        raise MissingExtraError(" ".join(words))

    monkeypatch.setattr(cluster_module, "require", missing)
    cluster_module._shared(sweep)
    with pytest.raises(MissingExtraError, match="searches optuna optuna"):
        cluster_module._shared(dataclasses.replace(sweep, search=SearchPlan(("l2=0:1",), 1, 0)))
    (tmp_path / "s" / "sweep.json").unlink()
    with pytest.raises(
        ConfigError, match=r"does not see .*: choose --out on a file system that all machines share"
    ):
        cluster_module._shared(sweep)


# -- scikit-learn's searches ---------------------------------------------------------------------------------


@pytest.mark.dask
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_searches_of_scikit_learn_run_under_joblibs_dask_backend(two: DaskCluster) -> None:
    pytest.importorskip("sklearn")
    import joblib
    import numpy as np
    import sklearn.model_selection as theirs
    from distributed import Client
    from sklearn.datasets import load_digits
    from threadpoolctl import threadpool_limits

    import gpumlp.sklearn as ours

    X, y = (array[:300] for array in load_digits(return_X_y=True))
    model = ours.MLPClassifier((8,), max_iter=5, random_state=0, device="cpu")
    grid = {"alpha": [1e-4, 1.0], "solver": ["adam", "sgd"]}

    def searches() -> list[Any]:
        return [
            theirs.GridSearchCV(model, grid, cv=2),
            theirs.RandomizedSearchCV(model, grid, n_iter=3, cv=2, random_state=0),
            ours.GridSearchCV(model, grid, cv=2),
        ]

    with threadpool_limits(1):
        expected = [search.fit(X, y) for search in searches()]
    with Client(two.address), joblib.parallel_config(backend="dask"):
        found = [search.fit(X, y) for search in searches()]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"])
        assert one.best_params_ == other.best_params_


def test_the_client_is_closed_after_an_error(two: DaskCluster) -> None:
    cluster = Cluster(two.address)
    cluster.close()
    assert cluster._client.status == "closed"


@pytest.mark.dask
@pytest.mark.parametrize("killed", ["worker", "command"])
def test_a_search_goes_on_when_something_dies(killed: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from tests.test_optuna_search import study

    out = tmp_path / "s"
    words = ("--random", "learning-rate=log:1e-5:1", "--search", "optuna", "--trials", 10)
    with dask_cluster(tmp_path / "dask", workers=2, **SAVE_EACH) as cluster:
        process = spawn(
            "sweep", *DIGITS, "--epochs", 30, *words, "--scheduler", cluster.address, "--quiet", "--out", out
        )
        wait_until(lambda: lines(out / "network=03,seed=0") >= 5, process)
        if killed == "worker":
            os.kill(child_of(cluster.workers[0]), signal.SIGKILL)
            code, _, err = finish(process)
            assert (code, err) == (0, "")
        else:
            process.kill()
            finish(process)
            assert run("sweep", "--resume", out, "--scheduler", cluster.address, "--quiet") == 0
    assert len(rows(out)) == 10
    assert {row["state"] for row in rows(out)} <= {"finished", "pruned"}
    assert all(trial.state.is_finished() for trial in study(out).trials)
    for row in rows(out):  # each is that of `train`, up to where it was pruned
        if row["state"] == "finished":
            break
    alone = tmp_path / Path(row["run"]).name
    words = ("--learning-rate", row["learning_rate"], "--epochs", 30, "--quiet", "--out", alone)
    assert finish(spawn("train", *DIGITS, *words))[0] == 0
    assert_same_run(alone, Path(row["run"]))
