"""Searches by Optuna: the runs of `train`, proposed by the results, pruned, killed and resumed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason='Optuna is not installed: pip install ".[optuna]"')

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from gpumlp.backends.numpy import NumpyBackend
from gpumlp.extras import MissingExtraError
from gpumlp.training import search
from gpumlp.training.config import Config
from gpumlp.training.search import FIRST, LEAST, STUDY
from gpumlp.training.search_space import NOTES_RANGES, space
from gpumlp.training.sweeps import Sweep
from tests.command_helpers import (
    DIGITS,
    SAVE_EACH,
    assert_same_run,
    finish,
    history,
    kill_at,
    lines,
    run,
    spawn,
    wait_until,
)
from tests.test_sweep import FakeGPU, rows, same_sweep

SPACE = ("--random", "learning-rate=log:1e-5:1", "hidden=4:12", "activation=relu,tanh")
SEARCH = (*DIGITS, "--epochs", 6, *SPACE, "--search", "optuna", "--trials", 9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with one run at a time."""
    out = tmp_path_factory.mktemp("whole") / "s"
    assert run("sweep", *SEARCH, "--jobs", 1, "--quiet", "--out", out) == 0
    return out


def study(out: Path) -> Any:
    return optuna.load_study(study_name="sweep", storage=JournalStorage(JournalFileBackend(str(out / STUDY))))


def values(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "sweep.json").read_text())["networks"]


def test_each_trial_is_a_run_of_train_with_values_of_the_space(whole: Path, tmp_path: Path) -> None:
    trials, sweep = study(whole).trials, Sweep.open(whole)
    assert [trial.user_attrs["folder"] for trial in trials] == [run.folder for run in sweep.runs]
    for trial, network in zip(trials, sweep.networks, strict=True):
        assert 1e-5 <= network["learning_rate"] <= 1
        assert network["learning_rate"] == float(f"{trial.params['learning_rate']:.4g}")
        assert network["hidden"] == (trial.params["hidden"],)
        assert 4 <= network["hidden"][0] <= 12
        assert network["activation"] == trial.params["activation"]
    network, name = sweep.networks[0], sweep.runs[0].folder
    words = ("--learning-rate", network["learning_rate"], "--hidden", *network["hidden"])
    words = (*words, "--activation", network["activation"], "--epochs", 6, "--quiet", "--out", tmp_path / name)
    assert finish(spawn("train", *DIGITS, *words))[0] == 0
    assert_same_run(tmp_path / name, whole / name)


def test_runs_that_are_behind_are_stopped_and_are_rows_that_say_so(whole: Path, capsys) -> None:
    pruned = [row for row in rows(whole) if row["state"] == "pruned"]
    assert pruned
    for row in pruned:
        folder = Path(row["run"])
        epochs = history(folder)
        assert LEAST <= len(epochs) < 6
        best = max(epoch["validation_accuracy"] for epoch in epochs)
        assert row["reason"] == (
            f"stopped by the search after epoch {len(epochs)}: the best validation accuracy was "
            f"{100 * best:.2f} %, worse than the median of the finished ones then"
        )
        assert (row["rank"], row["mean_validation_accuracy"]) == ("", "")
        assert not (folder / "metrics.json").exists()
    assert not [row for row in rows(whole)[:1] if row["state"] == "pruned"], "it would be the best one"
    by_folder = {trial.user_attrs["folder"]: trial for trial in study(whole).trials}
    assert not [trial for trial in list(by_folder.values())[:FIRST] if trial.state.name == "PRUNED"]
    for row in rows(whole):
        trial = by_folder[Path(row["run"]).name]
        assert trial.state.name == {"finished": "COMPLETE", "pruned": "PRUNED"}[row["state"]]
        if row["state"] == "finished":
            assert trial.value == float(row["validation_accuracy"])
    assert run("sweep", "--resume", whole) == 0
    assert " 1 pruned" in capsys.readouterr().out


def test_a_pruned_run_can_be_trained_to_its_end(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "s")
    pruned = next(row["run"] for row in rows(whole) if row["state"] == "pruned")
    folder = tmp_path / "s" / Path(pruned).name
    assert run("train", "--resume", folder, "--quiet") == 0
    assert not (folder / "pruned.json").exists()
    assert run("sweep", "--resume", tmp_path / "s", "--quiet") == 0
    assert next(row["state"] for row in rows(tmp_path / "s") if row["run"] == str(folder)) == "finished"


@pytest.mark.parametrize("state", ["pruned", "finished"])
def test_a_run_whose_trial_has_ended_is_trained_to_its_end(state: str, whole: Path, tmp_path: Path) -> None:
    """Its folder was removed, or it was stopped, begun again by `train` and interrupted."""
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    name = next(Path(row["run"]).name for row in rows(whole) if row["state"] == state)
    if state == "pruned":
        (out / name / "pruned.json").unlink()
    else:
        shutil.rmtree(out / name)
    assert run("sweep", "--resume", out, "--quiet") == 0
    assert next(row["state"] for row in rows(out) if Path(row["run"]).name == name) == "finished"
    assert len(history(out / name)) == 6
    assert values(out) == values(whole)
    assert [trial.state for trial in study(out).trials] == [trial.state for trial in study(whole).trials]


def test_the_search_seed_decides_what_is_drawn(whole: Path, tmp_path: Path) -> None:
    words = ("--search-seed", 1, "--trials", 1, "--quiet", "--out", tmp_path / "other")
    assert run("sweep", *SEARCH[:-2], "--jobs", 1, *words) == 0
    assert values(tmp_path / "other")[0] != values(whole)[0]


def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    process = spawn("sweep", *SEARCH, "--jobs", 1, "--out", out, env=SAVE_EACH)
    kill_at(process, lambda: lines(out / "network=6,seed=0") >= 2)
    assert run("sweep", "--resume", out, "--jobs", 1, "--quiet") == 0
    assert values(out) == values(whole)
    same_sweep(out, whole)
    assert not [trial for trial in study(out).trials if not trial.state.is_finished()]


def test_a_run_that_is_resumed_is_judged_by_the_epochs_up_to_the_present_one(whole: Path, tmp_path: Path) -> None:
    """A run that is killed has reported epochs that were not saved, and are trained again."""
    sweep = Sweep.open(Path(shutil.copytree(whole, tmp_path / "s")))
    sweep = dataclasses.replace(sweep, search=sweep.search._replace(trials=10))
    proposed = search.OptunaSearch(sweep)
    planned = next(proposed.runs([]))
    report = search.TrialReport(proposed.sweep.only(planned))
    assert report(5, 1.0) is None
    reason = search.TrialReport(proposed.sweep.only(planned))(LEAST, 0.0)
    assert reason.startswith(f"stopped by the search after epoch {LEAST}: the best validation accuracy was 0.00 %")
    assert {trial.number: trial.intermediate_values for trial in study(sweep.path).trials}[9] == {LEAST: 0, 5: 1}


def test_worker_processes_prune_too_and_a_search_can_be_extended(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    out = tmp_path / "s"
    assert run("sweep", *SEARCH, "--jobs", 2, "--quiet", "--out", out) == 0
    assert {row["state"] for row in rows(out)} == {"finished", "pruned"}
    assert run("sweep", "--resume", out, "--trials", 10, "--quiet") == 0
    assert len(rows(out)) == len(study(out).trials) == 10
    assert Sweep.open(out).planned == 10


def test_a_proposal_that_was_cut_off_is_given_up(tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert run("sweep", *SEARCH[:-1], 2, "--jobs", 1, "--quiet", "--out", out) == 0
    study(out).ask()  # as when a sweep is killed before it has saved the network
    with open(out / STUDY, "a") as file:
        file.write('{"op_code":')  # and the power fails while the journal is written
    assert run("sweep", "--resume", out, "--trials", 3, "--jobs", 1, "--quiet") == 0
    assert [trial.state.name for trial in study(out).trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert len(rows(out)) == 3


@pytest.mark.parametrize("links", [True, False])
def test_a_lock_that_a_killed_process_has_left_is_taken(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the sweep was started with a relative path, and where links are not allowed, as on Windows."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "A required privilege is not held by the client")

    if not links:
        monkeypatch.setattr(search, "_LINKS", False)
        monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "GRACE", 3)
    words = ("--jobs", 1, "--quiet")
    assert run("sweep", *SEARCH[:-1], 1, *words, "--out", "s") == 0
    search._storage(Path("s"))._backend._lock.acquire()
    assert run("sweep", "--resume", "s", "--trials", 2, *words) == 0
    assert len(rows(Path("s"))) == 2
    search._storage(Path("s"))._backend._lock.acquire()
    shutil.move("s", "moved")
    assert run("sweep", "--resume", "moved", "--trials", 3, *words) == 0
    assert len(rows(Path("moved"))) == 3


def test_a_run_that_diverges_counts_as_bad_and_one_that_fails_is_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = ("--initializer", "normal", "--random", "initializer-scale=1e30,1e31", "--search", "optuna")
    assert run("sweep", *DIGITS, "--epochs", 1, *words, "--trials", 2, "--quiet", "--jobs", 1, "--out", out) == 1
    assert [trial.state.name for trial in study(out).trials] == ["PRUNED", "PRUNED"]
    assert {row["state"] for row in rows(out)} == {"diverged"}
    out = tmp_path / "t"
    assert run("sweep", *SEARCH[:-1], 1, "--jobs", 1, "--quiet", "--out", out) == 0
    (out / "network=1,seed=0" / "metrics.json").unlink()
    (out / "network=1,seed=0" / "checkpoint.safetensors").write_bytes(b"?")
    assert run("sweep", "--resume", out, "--trials", 2, "--jobs", 1, "--quiet") == 1
    assert sorted(row["state"] for row in rows(out)) == ["failed", "finished"]


def test_without_a_space_the_ranges_of_the_notes_are_searched(tmp_path: Path) -> None:
    words = (*DIGITS, "--epochs", 1, "--search", "optuna", "--trials", 1, "--quiet", "--out", tmp_path / "s")
    assert run("sweep", *words) == 0
    assert set(values(tmp_path / "s")[0]) == {each.name for each in space(NOTES_RANGES)}
    Config(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in values(tmp_path / "s")[0].items()}
    ).check()


def test_an_interrupted_search_says_how_the_same_search_goes_on(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "s"
    process = spawn("sweep", *SEARCH, "--jobs", 1, "--out", out)
    wait_until(lambda: (out / "sweep.json").exists() and len(values(out)) >= 2, process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err.endswith(f"Go on with: python -m gpumlp.sweep --resume {out} --jobs 1\n")
    assert run("sweep", "--resume", out, "--jobs", 1, "--quiet") == 0
    assert values(out) == values(whole)


def test_on_a_gpu_networks_are_proposed_and_pruned_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_backend(device: str, *, execution: str, **_: object) -> NumpyBackend:
        return FakeGPU("persistent")

    monkeypatch.setattr("gpumlp.training.session.get_backend", get_backend)
    monkeypatch.setattr(FakeGPU, "together", [])
    monkeypatch.setattr(FakeGPU, "interrupted_at", 0)
    monkeypatch.setattr(FakeGPU, "at_once", 3)
    words = [word if word != "cpu" else "cuda" for word in SEARCH]
    assert run("sweep", *words, "--quiet", "--out", tmp_path / "s") == 0
    assert {row["state"] for row in rows(tmp_path / "s")} == {"finished", "pruned"}
    assert max(count for _, count in FakeGPU.together) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search", "grid"], "search: expected optuna, got 'grid'"),
        (["--search", "optuna", "--grid", "hidden=3"], "search: expected without grid, got both"),
        (
            ["--search", "optuna", "--seeds", 2],
            "seeds: expected 1 with search, which proposes",
        ),
        (["--search", "optuna", "--random", "l2=1:0"], "random: expected l2=LOW:HIGH"),
        (["--search", "optuna", "--random", "learning-rate=-1:1"], "learning_rate: expected a number above 0"),
        (["--search", "optuna", "--random", "optimizer=sgd,adam", "nesterov=true,false"], "nesterov: expected"),
        (["--search", "optuna", "--trials", 0], "trials: expected a whole number of 1 or more, got 0"),
        (["--search-seed", 3], "search_seed: expected only with random or search"),
    ],
)
def test_bad_input_is_refused_before_any_training(
    words: list, message: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("sweep", *DIGITS, "--epochs", 2, *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_search_goes_on_with_its_own_metric_and_study(whole: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "s"
    assert run("sweep", *SEARCH[:-1], 2, "--jobs", 1, "--quiet", "--out", out) == 0
    assert run("sweep", "--resume", out, "--metric", "loss", "--quiet") == 0, "all runs are there to be ranked"
    assert run("sweep", "--resume", out, "--metric", "loss", "--trials", 3) == 2
    assert "metric: the search goes by accuracy, got loss" in capsys.readouterr().err
    assert run("sweep", "--resume", out, "--trials", 100_001) == 2
    assert "expected at most 100,000 runs, got 100,001" in capsys.readouterr().err
    assert run("sweep", "--resume", out, "--trials", 1) == 2
    assert "trials: the sweep has 2 already, got 1" in capsys.readouterr().err
    (out / STUDY).rename(out / "elsewhere")
    assert run("sweep", "--resume", out, "--trials", 3) == 2
    assert f"{out / STUDY} is missing or empty, but the sweep has runs" in capsys.readouterr().err
    (out / STUDY).write_text("?\n?\n")
    assert run("sweep", "--resume", out, "--trials", 3) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gpumlp-sweep: {out / STUDY} is damaged: ")
    assert err.count("\n") == 1


def test_without_optuna_the_extra_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    def missing(*words: str) -> None:
        raise MissingExtraError(" ".join(words))

    monkeypatch.setattr("gpumlp.sweep.require", missing)
    assert run("sweep", *SEARCH, "--out", tmp_path / "s") == 2
    assert capsys.readouterr().err == "gpumlp-sweep: searches optuna optuna\n"
    assert not os.listdir(tmp_path)
