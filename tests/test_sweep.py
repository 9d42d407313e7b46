"""Sweeps: each network is that of `train`, whatever stops the command; the ranking, its files and its messages."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gpumlp.backends import Execution
from gpumlp.backends.numpy import NumpyBackend
from gpumlp.extras import MissingExtraError
from gpumlp.training.config import Config
from gpumlp.training.history import Finding
from gpumlp.training.lock import RunLock
from gpumlp.training.run import Run
from gpumlp.training.sweeps import Sweep, SweepProgress
from tests.command_helpers import DIGITS, SAVE_EACH, assert_same_run, finish, lines, run, spawn, wait_until

GRID = ("--grid", "learning-rate=0.01,0.1", "hidden=4,6x5")
_400 = ",".join(map(str, range(1, 401)))
SMALL = (*DIGITS, "--epochs", 2, "--jobs", 1)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def same_sweep(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir() if path.is_dir())
    assert names == sorted(path.name for path in other.iterdir() if path.is_dir())
    for name in names:
        assert_same_run(one / name, other / name)


# -- What is trained ---------------------------------------------------------------------------------------


def test_every_network_and_seed_is_a_run_of_train(tmp_path: Path) -> None:
    options = ("--dropout", 0.2, "--optimizer", "adam", "--schedule", "cosine", "--validation", 0.2)
    assert run("sweep", *SMALL, *options, *GRID, "--seed", 3, "--seeds", 2, "--out", tmp_path / "s") == 0
    found = {path.name for path in (tmp_path / "s").iterdir() if path.is_dir()}
    expected = set()
    for rate, hidden, seed in ((r, h, s) for r in ("0.01", "0.1") for h in ("4", "6x5") for s in (3, 4)):
        name = f"learning_rate={rate},hidden={hidden},seed={seed}"
        expected.add(name)
        alone = ("--learning-rate", rate, "--hidden", *hidden.split("x"), "--seed", seed)
        with threadpool_limits(1):
            assert run("train", *SMALL[:-2], *options, *alone, "--quiet", "--out", tmp_path / name) == 0
        assert_same_run(tmp_path / name, tmp_path / "s" / name)
        own, of_train = (Config.from_dict(Run(parent / name).options) for parent in (tmp_path / "s", tmp_path))
        assert vars(own) == {**vars(of_train), "out": str(tmp_path / "s" / name), "quiet": False}
    assert found == expected


def test_worker_processes_train_the_same_networks(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    words = (*DIGITS, "--epochs", 2, *GRID, "--quiet", "--out")
    assert run("sweep", *words, tmp_path / "one", "--jobs", 1) == run("sweep", *words, tmp_path / "two") == 0
    same_sweep(tmp_path / "one", tmp_path / "two")


def test_worker_processes_follow_to_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("joblib")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert run("sweep", *SMALL[:-2], "--grid", "hidden=4,5", "--jobs", 2, "--quiet", "--out", "s") == 0
        assert len(list(Path("s").glob("*/metrics.json"))) == 2


def test_other_commands_read_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", *SMALL, "--grid", "hidden=4,5", "--quiet", "--out", tmp_path / "s") == 0
    assert capsys.readouterr() == ("", "")
    assert run("history", tmp_path / "s") == 0
    assert capsys.readouterr().out.count(f"{tmp_path / 's'}/hidden=") == 2
    assert run("evaluate", tmp_path / "s" / "hidden=4,seed=0") == 0
    assert run("evaluate", tmp_path / "s") == 2
    assert "s holds a sweep; name one of the runs in its folder\n" in capsys.readouterr().err


def test_long_names_of_folders_are_numbers(tmp_path: Path) -> None:
    words = ("learning-rate=log:1e-3:1", "momentum=0:0.9", "l2=log:1e-6:1e-3", "dropout=0:0.5")
    assert run("sweep", *SMALL, "--random", *words, "--trials", 10, "--quiet", "--out", tmp_path / "s") == 0
    folders = sorted(path.name for path in (tmp_path / "s").iterdir() if path.is_dir())
    assert folders == [f"network={number:02},seed=0" for number in range(1, 11)]


# -- The ranking -------------------------------------------------------------------------------------------


def test_networks_are_ranked_by_the_mean_of_their_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert run("sweep", *SMALL, *GRID, "--seeds", 3, "--out", out) == 0
    found = rows(out)
    assert len(found) == 12
    assert {row["state"] for row in found} == {"finished"}
    means = [float(row["mean_validation_accuracy"]) for row in found]
    assert means == sorted(means, reverse=True)
    assert [row["rank"] for row in found] == [str(rank) for rank in range(1, 5) for _ in range(3)]
    for first in range(0, 12, 3):
        own = found[first : first + 3]
        values = [metrics(Path(row["run"]))["validation_accuracy"] for row in own]
        assert [float(row["validation_accuracy"]) for row in own] == values
        assert float(own[0]["mean_validation_accuracy"]) == pytest.approx(statistics.fmean(values))
        assert float(own[0]["deviation_validation_accuracy"]) == pytest.approx(statistics.stdev(values))
        assert len({(row["learning_rate"], row["hidden"]) for row in own}) == 1
    said = capsys.readouterr().out
    best = Path(found[0]["run"]).name.rpartition(",seed=")[0]
    tests = [metrics(Path(row["run"]))["test_accuracy"] for row in found[:3]]
    assert f"best: {best}, test accuracy {100 * statistics.fmean(tests):.2f} % (mean of 3 seeds)\n" in said
    table = said[said.index("\n rank") + 1 : said.index("best: ")].splitlines()
    assert all(len(line) <= 80 and "…" not in line for line in table)
    assert table[2].split()[:3] == ["1", found[0]["learning_rate"], found[0]["hidden"]]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_saved_sweep_can_be_ranked_by_another_metric(metric: str, tmp_path: Path) -> None:
    assert run("sweep", *SMALL, *GRID, "--metric", metric, "--quiet", "--out", tmp_path / "s") == 0
    other = {"loss": "accuracy", "accuracy": "loss"}[metric]
    for name, words in ((metric, ()), (other, ("--metric", other))):
        assert run("sweep", "--resume", tmp_path / "s", "--quiet", *words) == 0
        means = [float(row[f"mean_validation_{name}"]) for row in rows(tmp_path / "s")]
        assert means == sorted(means, reverse=name == "accuracy")


def test_losses_with_different_smoothing_rank_no_saved_sweep(tmp_path: Path, capsys) -> None:
    words = (
        "--grid",
        "hidden=4",
        "--label-smoothing",
        0.1,
        "--metric",
        "loss",
        "--quiet",
        "--out",
        tmp_path / "one",
    )
    assert run("sweep", *SMALL, *words) == 0
    words = ("--grid", "hidden=4", "label-smoothing=0,0.1", "--quiet", "--out", tmp_path / "s")
    assert run("sweep", *SMALL, *words) == 0
    assert run("sweep", "--resume", tmp_path / "s", "--metric", "loss") == 2
    assert "metric: expected accuracy where label_smoothing varies" in capsys.readouterr().err


def test_a_network_that_diverges_is_a_row_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--initializer", "normal", "--grid", "initializer-scale=1e30,0.1", "--seeds", 2)
    assert run("sweep", *SMALL, *words, "--out", tmp_path / "s") == 0
    said = capsys.readouterr()
    assert [row["state"] for row in rows(tmp_path / "s")] == ["finished", "finished", "diverged", "diverged"]
    assert "training diverged in epoch 1" in rows(tmp_path / "s")[2]["reason"]
    assert rows(tmp_path / "s")[2]["rank"] == ""
    assert "  2 diverged \n" in said.out
    assert said.out.count("initializer_scale=1e+30,seed=0 diverged: training diverged in epoch 1") == 1
    folder = tmp_path / "s" / "initializer_scale=1e+30,seed=0"
    before = (folder / "diverged.json").stat().st_mtime_ns
    assert run("sweep", "--resume", tmp_path / "s", "--quiet") == 0
    assert (folder / "diverged.json").stat().st_mtime_ns == before, "it was trained again"


def test_without_any_result_there_is_no_figure_and_the_command_fails(tmp_path: Path, capsys) -> None:
    words = ("--initializer", "normal", "--grid", "initializer-scale=1e30")
    assert run("sweep", *SMALL, *words, "--quiet", "--out", tmp_path / "s") == 1
    out = tmp_path / "s" / "sweep.csv"
    assert capsys.readouterr() == ("", f"gpumlp-sweep: no run has a result; {out} says why\n")
    assert not list((tmp_path / "s").glob("*.png"))


def test_a_network_with_a_lost_seed_comes_after_the_whole_ones(tmp_path: Path) -> None:
    assert run("sweep", *SMALL, *GRID, "--seeds", 2, "--quiet", "--out", tmp_path / "s") == 0
    folder = Path(rows(tmp_path / "s")[0]["run"])
    finding = Finding("diverged", "training diverged")
    (folder / "metrics.json").unlink()
    (folder / "diverged.json").write_text(json.dumps(vars(finding)))
    assert run("sweep", "--resume", tmp_path / "s", "--quiet") == 0
    last = rows(tmp_path / "s")[-2:]
    assert [(row["state"], row["rank"]) for row in last] == [("diverged", "4"), ("finished", "4")]
    assert last[0]["run"] == str(folder)


def test_a_run_that_cannot_be_trained_is_a_row_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *SMALL, "--grid", "hidden=4,5", "--quiet", "--out", tmp_path / "s") == 0
    folder = tmp_path / "s" / "hidden=4,seed=0"
    (folder / "metrics.json").unlink()
    (folder / "checkpoint.safetensors").write_bytes(b"?")
    assert run("sweep", "--resume", tmp_path / "s", "--quiet", "--jobs", 1) == 1
    assert f"gpumlp-sweep: {folder} failed: {folder / 'checkpoint.safetensors'}" in capsys.readouterr().err
    assert [row["state"] for row in rows(tmp_path / "s")] == ["finished", "failed"]


def test_a_full_disk_is_a_reason_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.safetensors")

    monkeypatch.setattr("gpumlp.training.sweeps.prepare", full)
    assert run("sweep", *SMALL, "--grid", "hidden=4", "--quiet", "--jobs", 1, "--out", tmp_path / "s") == 1
    assert [row["reason"] for row in rows(tmp_path / "s")] == ["checkpoint.safetensors: No space left on device"]


# -- Validation --------------------------------------------------------------------------------------------


def test_networks_are_never_ranked_by_what_they_were_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *SMALL, *GRID, "--validation", 0, "--out", tmp_path / "s") == 2
    message = "gpumlp-sweep: validation: expected samples by which to rank the networks, got 0\n"
    assert capsys.readouterr().err == message
    rng = np.random.default_rng(0)
    for samples, targets, least in ((9, np.arange(9) % 2, 1), (15, rng.normal(size=15), 2)):
        x = rng.normal(size=(samples, 3))
        np.savez(tmp_path / "few.npz", x_train=x, y_train=targets, x_test=x, y_test=targets)
        assert run("sweep", "--dataset", tmp_path / "few.npz", *GRID, "--out", tmp_path / "s") == 2
        message = f"validation: expected {least} or more samples by which to rank the networks, got {least - 1} of"
        assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    words = ("--preset", "notes", "--grid", "optimizer=sgd,adam", "--out", tmp_path / "s")
    assert run("sweep", *SMALL, *words) == 0
    assert "some are held out\ndata: digits, 1,294 samples to train, 143 to validate and rank, 360 to test\n" in (
        capsys.readouterr().out
    )
    assert metrics(tmp_path / "s" / "optimizer=adam,seed=0")["validation_accuracy"] > 0


# -- What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "learning-rate=0.1,-1"], "learning_rate: expected a number above 0, got -1.0"),
        (["--grid", "hidden=3", "--random", "l2=0:1"], "random: expected without grid, got both"),
        (["--grid"], "grid: expected NAME=VALUE,VALUE, such as learning-rate=0.01,0.1, got none"),
        (["--random", "--trials", 3], "random: expected NAME=VALUE,VALUE"),
        (["--grid", "activation=relu,max"], "one for each hidden layer, got 'max'"),
        (["--grid", "hidden=64x,32"], "hidden: expected whole numbers of 1 or more, or none, got '64x'"),
        (["--trials", 3], "trials: expected only with random"),
        (["--random", "l2=0:1", "--trials", 0], "trials: expected a whole number of 1 or more, got 0"),
        (["--seeds", "x"], "seeds: expected a whole number of 1 or more, got 'x'"),
        (["--jobs", 0], "jobs: expected a whole number of 1 or more, got 0"),
        (["--metric", "f1"], "metric: expected one of loss, accuracy"),
        (["--metric", "r2", *GRID], "metric: expected one of loss, accuracy for classes, got r2"),
        (
            ["--metric", "loss", "--grid", "label-smoothing=0,0.1"],
            "metric: expected accuracy where label_smoothing",
        ),
        (
            ["--metric", "loss", "--random", "label-smoothing=0:0.5"],
            "metric: expected accuracy where label_smoothing",
        ),
        (
            ["--validation", 0.999, *GRID],
            "validation is expected to be from 0 to 1,427 of the 1,437 training samples",
        ),
        (["--report"], "report: not for a sweep; a report is about a few runs"),
        (["--overwrite"], "overwrite: not for a sweep; choose another folder"),
        (["--min-accuracy", 0.9], "min_accuracy: not for a sweep"),
        (["--parallel", "mpi"], "parallel: not for a sweep; each network has a process of its own"),
        (["--preset", "torch"], "preset: expected notes, got 'torch'"),
        (["--grid", "schedule=cosine", "warmup=0,1000000"], "warmup: expected fewer than the 82 steps"),
        (["--grid", "label-smoothing=2"], "label_smoothing: expected a number of at least 0 and below 1, got 2.0"),
        (["--validation", 1437], "validation is expected to leave some of the 1,437 training samples"),
        (["--device", "cuda:99"], "cuda"),
        (["--resume", "none"], "there is no sweep in none: it has no sweep.json"),
        (["--grid", f"hidden={_400}", f"batch-size={_400}"], "expected at most 100,000 runs, got 160,000; give"),
        ([*GRID, "--seeds", 30_000], "expected at most 100,000 runs, got 120,000"),
        (["--random", "l2=0:1", "--trials", 100_001], "expected at most 100,000 runs, got 100,001"),
    ],
)
def test_bad_input_is_refused_before_any_training(
    words: list, message: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("sweep", *DIGITS, "--epochs", 2, *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [GRID, ("--random", "l2=0:1", "--trials", 4)])
def test_too_many_runs_are_refused_before_the_networks_are_checked(
    words: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpumlp.training.search_space._check", lambda *_: pytest.fail("checked first"))
    assert run("sweep", *DIGITS, *words, "--seeds", 25_001) == 2
    assert (
        "expected at most 100,000 runs, got 100,004; give fewer values, seeds or trials" in capsys.readouterr().err
    )


def test_the_help_has_no_option_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "--help") == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"^\W? --([a-z-]+)", shown, re.MULTILINE))
    assert {"grid", "hidden", "shards"} <= options
    assert not options & {"report", "overwrite", "min-accuracy", "parallel"}


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    words = (*SMALL, "--grid", "hidden=4", "--quiet", "--out")
    assert run("sweep", *words, out) == 0
    assert run("sweep", *words, out) == 2
    assert f"out: {out} holds a sweep; go on with it (--resume {out})" in capsys.readouterr().err
    assert run("sweep", *words, out / "hidden=4,seed=0") == 2
    assert f"out: {out / 'hidden=4,seed=0'} holds a run" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run("sweep", *words, tmp_path / "file") == 2
    (tmp_path / "mine" / "hidden=4,seed=0").mkdir(parents=True)
    assert run("sweep", *words, tmp_path / "mine") == 2
    assert "where a network would go, exists" in capsys.readouterr().err


def test_two_commands_cannot_run_the_same_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    assert run("sweep", *SMALL, "--grid", "hidden=4", "--quiet", "--out", out) == 0
    lock = RunLock(out)
    assert run("sweep", "--resume", out) == 2
    assert f"{out}: another process ({os.getpid()} on " in (err := capsys.readouterr().err)
    assert "is running this sweep; wait until it ends" in err
    lock.release()
    assert run("sweep", "--resume", out, "--quiet") == 0
    assert not (out / "run.lock").exists()


def test_the_folder_of_a_sweep_is_not_that_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    assert run("sweep", *SMALL, "--grid", "hidden=4", "--quiet", "--out", out) == 0
    before = sorted(out.iterdir())
    for overwrite in ((), ("--overwrite",)):
        assert run("train", *DIGITS, "--epochs", 1, "--out", out, *overwrite) == 2
        assert f"out: {out} holds a sweep; choose another folder" in capsys.readouterr().err
    for name in ("sweep.csv", "sweep.json"):
        assert run("history", out, "--csv", out / name) == 2
        assert f"csv: {out / name} is a file of the sweep in {out}; choose another" in capsys.readouterr().err
    assert sorted(out.iterdir()) == before


def test_of_a_run_with_a_damaged_configuration_the_checkpoint_is_used(tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert run("sweep", *SMALL, "--grid", "hidden=4,5", "--quiet", "--out", out) == 0
    before = rows(out)
    for width in (4, 5):
        (out / f"hidden={width},seed=0" / "metrics.json").unlink()
    (config := out / "hidden=4,seed=0" / "config.json").write_text("")
    assert run("sweep", "--resume", out, "--jobs", 1, "--quiet") == 0
    assert [row["validation_loss"] for row in rows(out)] == [row["validation_loss"] for row in before]
    assert json.loads(config.read_text())["hidden"] == [4]


def test_a_sweep_without_standard_error_trains(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "gpumlp.sweep", *SMALL[:-2], *GRID, "--jobs", "2", "--out", str(tmp_path / "s")]
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&- >&-', "sh", *map(str, words)], timeout=120)
    assert done.returncode == 0
    assert {row["state"] for row in rows(tmp_path / "s")} == {"finished"}


def test_a_sweep_is_resumed_with_its_own_options_and_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    out = tmp_path / "s"
    words = ("--dataset", tmp_path / "own.npz", "--device", "cpu", "--epochs", 1, "--jobs", 1)
    assert run("sweep", *words, "--grid", "hidden=4", "--quiet", "--out", out) == 0
    for changed in (("--epochs", 3), ("--grid", "hidden=5"), ("--seeds", 2), ("--preset", "notes")):
        assert run("sweep", "--resume", out, *changed) == 2
        assert f"{changed[0][2:]}: a sweep is resumed with its own options" in capsys.readouterr().err
    np.savez(tmp_path / "own.npz", x_train=-x, y_train=y, x_test=x, y_test=y)
    assert run("sweep", "--resume", out) == 2
    assert f"{out}: the sweep was made with other data: expected a training set 60x3-" in capsys.readouterr().err
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=-x, y_test=y)
    assert run("sweep", "--resume", out) == 2
    assert f"{out}: the sweep was made with other data: expected a test set 60x3-" in capsys.readouterr().err
    np.savez(tmp_path / "own.npz", x_train=x, y_train=x, x_test=x, y_test=x)  # numbers, which have no accuracy
    assert run("sweep", "--resume", out) == 2
    assert f"{out}: the sweep was made with other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"networks": 3}', None],
    ids=["cut off", "empty", "other values", "a folder outside"],
)
def test_a_damaged_description_is_one_line(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert run("sweep", *SMALL, "--grid", "hidden=4", "--quiet", "--out", out) == 0
    if text is None:
        text = (out / "sweep.json").read_text().replace("hidden=4,seed=0", "../elsewhere")
    (out / "sweep.json").write_text(text)
    assert run("sweep", "--resume", out) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gpumlp-sweep: {out / 'sweep.json'} is damaged: ")
    assert err.count("\n") == 1


# -- Interrupts and kills ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "s"
    assert run("sweep", *LONG, "--quiet", "--out", out) == 0
    return out


LONG = (*DIGITS, "--epochs", 60, "--grid", "hidden=16,17", "--seeds", 2)
FIRST, SECOND = "hidden=16,seed=0", "hidden=16,seed=1"


def test_killed_at_any_moment_a_sweep_goes_on_with_what_is_missing(tmp_path: Path, whole: Path) -> None:
    pytest.importorskip("joblib")
    out = tmp_path / "s"
    process = spawn("sweep", *LONG, "--jobs", 2, "--out", out, env=SAVE_EACH)
    wait_until(lambda: lines(out / SECOND) >= 5, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
    assert not (out / "sweep.csv").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.json")}
    code, _, err = finish(spawn("sweep", "--resume", out, "--jobs", 2))
    assert (code, err) == (0, "")
    same_sweep(out, whole)
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items()), "it was trained again"
    assert [row["state"] for row in rows(out)] == ["finished"] * 4


@pytest.mark.parametrize(("jobs", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)])
def test_ctrl_c_and_sigterm_say_how_to_go_on(
    tmp_path: Path, whole: Path, jobs: int, number: signal.Signals
) -> None:
    pytest.importorskip("joblib")
    out = tmp_path / "a sweep"
    process = spawn("sweep", *LONG, "--jobs", jobs, "--out", out, env=SAVE_EACH, start_new_session=True)
    wait_until(lambda: lines(out / FIRST) >= 5, process)
    os.killpg(process.pid, number)  # as a terminal and batch systems do: to every process
    code, _, err = finish(process)
    assert code == 130
    ended = len(list(out.glob("*/metrics.json")))
    assert err == (
        f"gpumlp-sweep: interrupted; {ended} of 4 runs have ended, the others are saved up to their last epoch. "
        f"Go on with: python -m gpumlp.sweep --resume '{out}'\n"
    )
    assert {row["state"] for row in rows(out)} <= {"finished", "unfinished", "not started"}
    assert run("sweep", "--resume", out, "--quiet", "--jobs", 1) == 0
    same_sweep(out, whole)


def test_the_line_on_a_sweep_reads_each_result_once(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Metrics(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return self.pop(name)

    sweep, progress = Sweep.open(whole), SweepProgress()
    first, *others = (row._replace(metrics=Metrics(row.metrics)) for row in sweep.rows({}))
    with progress.running(sweep, [first]):
        for row in others:
            progress.ended(row)
    best = max(row.metrics[sweep.monitor] for row in sweep.rows({}))
    assert capsys.readouterr().out.endswith(f"4 of 4 runs, best validation accuracy {100 * best:.2f} %\n")


def test_a_run_that_was_killed_before_its_configuration_was_written_goes_on(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "sweep"
    shutil.copytree(whole, out)
    for name in ("config.json", "metrics.json"):
        (out / FIRST / name).unlink()
    assert run("sweep", "--resume", out, "--quiet", "--jobs", 1) == 0
    same_sweep(out, whole)


def test_a_finished_run_without_a_usable_network_is_trained_again_or_named(tmp_path: Path, capsys) -> None:
    words = (*DIGITS, "--jobs", 1, "--learning-rate", 1, "--epochs", 30, "--early-stopping", 1, "--quiet")
    whole, out = tmp_path / "whole", tmp_path / "s"
    assert run("sweep", *words, "--grid", "hidden=8,9", "--out", whole) == 0
    best, other = (Path(row["run"]).name for row in rows(whole))
    network, epochs, kept = "checkpoint.safetensors", "history.jsonl", "best/checkpoint.safetensors"
    for name in (network, epochs, kept):
        for keep in (0, 0.5, None):  # of the file
            shutil.copytree(whole, out)
            file = out / best / name
            content = file.read_bytes()
            file.unlink()
            if keep is not None:
                file.write_bytes(content[: int(keep * len(content))])
            again = (name, keep) == (network, None)
            assert run("history", out / best, out / other) == (not again)  # epochs are of use without a network
            assert (str(file) in capsys.readouterr().err) is not again
            assert run("sweep", "--resume", out, "--jobs", 1) == (not again)
            captured = capsys.readouterr()
            assert f"saved in: {out / (best if again else other)}\n" in captured.out
            assert (f"{out / best} failed: " in captured.err) is not again
            assert (str(file) in captured.err) is not again
            if again:
                same_sweep(out, whole)
            shutil.rmtree(out)


def test_the_best_network_is_saved_where_a_seed_is_finished(tmp_path: Path, capsys) -> None:
    out = tmp_path / "s"
    words = (*SMALL, "--grid", "hidden=4", "--seeds", 3, "--out", out)
    assert run("sweep", *words) == 0
    assert f"saved in: {out / 'hidden=4,seed=0'} and 2 more\n" in capsys.readouterr().out
    (out / "hidden=4,seed=0" / "checkpoint.safetensors").write_bytes(b"")
    assert run("sweep", "--resume", out, "--jobs", 1) == 1
    assert f"saved in: {out / 'hidden=4,seed=1'} and 1 more\n" in capsys.readouterr().out


def test_a_finished_run_on_other_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x, y, file, out = rng.normal(size=(60, 3)), np.arange(60) % 3, tmp_path / "own.npz", tmp_path / "s"
    words = ("--dataset", file, "--device", "cpu", "--epochs", 2, "--quiet")
    for part in ("x_train", "x_test"):
        own = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
        np.savez(file, **own)
        assert run("sweep", *words, "--jobs", 1, "--grid", "hidden=4,5", "--out", out) == 0
        np.savez(file, **{**own, part: -x})
        assert run("train", *words, "--hidden", 4, "--out", out / "hidden=4,seed=0", "--overwrite") == 0
        np.savez(file, **own)
        assert run("sweep", "--resume", out, "--quiet", "--jobs", 1) == 1
        assert f"{out / 'hidden=4,seed=0'} failed: " in (err := capsys.readouterr().err)
        assert "tested on other data" in err or "trained on own.npz" in err
        assert {row["run"]: row["state"] for row in rows(out)} == {
            str(out / "hidden=4,seed=0"): "failed",
            str(out / "hidden=5,seed=0"): "finished",
        }
        shutil.rmtree(out)


# -- On a GPU ------------------------------------------------------------------------------------------------


class FakeGPU(NumpyBackend):
    """A fake GPU with two ways of running steps."""

    together: ClassVar[list[tuple[str, int]]] = []  # the way of each launch, and its number of networks
    interrupted_at: ClassVar[int] = 30  # launches
    at_once: ClassVar[int] = 1  # networks
    asked: ClassVar[
        dict[int, str]
    ] = {}  # what was asked first of each step that trains, which compiles its kernel

    def __init__(self, way: str) -> None:
        super().__init__()
        self.name, self.way = "cuda:0", way

    def execution(self, step: Any) -> Execution:
        if step.evaluates is None:
            self.asked.setdefault(id(step.state), "execution")
        return Execution(self.way, "as tested")

    def networks_at_once(self, step: Any) -> int:
        self.asked.setdefault(id(step.state), "networks_at_once")
        return self.at_once

    def run_many(self, runs: Any) -> None:
        self.together.append((self.way, len(runs)))
        if len(self.together) == self.interrupted_at:
            raise KeyboardInterrupt
        super().run_many(runs)


def test_on_a_gpu_networks_are_trained_together_and_resumed_in_their_own_way(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = "persistent"

    def get_backend(device: str, *, execution: str, **_: object) -> NumpyBackend:
        return FakeGPU(default if execution == "auto" else execution)

    monkeypatch.setattr("gpumlp.training.session.get_backend", get_backend)
    monkeypatch.setattr(FakeGPU, "together", [])
    monkeypatch.setattr(FakeGPU, "asked", {})
    out = tmp_path / "s"
    words = (*LONG[:2], "--device", "cuda", *LONG[4:], "--quiet")
    assert run("sweep", *words, "--out", out) == 130
    assert {row["state"] for row in rows(out)} == {"unfinished", "not started"}
    assert FakeGPU.together == [("persistent", 1)] * 30
    assert set(FakeGPU.asked.values()) == {"networks_at_once"}
    monkeypatch.setattr(FakeGPU, "together", [])
    monkeypatch.setattr(FakeGPU, "interrupted_at", 0)
    monkeypatch.setattr(FakeGPU, "at_once", 3)
    default = "graphs"
    assert run("sweep", "--resume", out, "--quiet") == 0
    assert {ways for ways, _ in FakeGPU.together} == {"persistent", "graphs"}
    assert max(count for way, count in FakeGPU.together if way == "graphs") == 3
    same_sweep(out, whole)


# -- The figure --------------------------------------------------------------------------------------------


def test_the_figure_shows_every_network_over_every_option(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gpumlp.figures.sweep import sweep_results

    words = ("--grid", "learning-rate=1e-3,1e-2,1e-1", "hidden=4,5", "activation=relu,tanh", "--seeds", 2)
    assert run("sweep", *SMALL, *words, "--quiet", "--out", tmp_path / "s") == 0
    assert {"figure.png", "figure.svg", "figure.json", "sweep.csv"} <= set(os.listdir(tmp_path / "s"))
    sweep = Sweep.open(tmp_path / "s")
    results = sweep.ranking(sweep.rows({}))
    figure, numbers = sweep_results(sweep, results)
    assert numbers["means"] == [result.mean for result in results]
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["learning rate", "hidden", "activation"]
    assert [axes.get_xscale() for axes in panels] == ["log", "linear", "linear"]
    ticks = [[text.get_text() for text in axes.get_xticklabels()] for axes in panels]
    assert ticks == [["0.001", "0.01", "0.1"], ["4", "5"], ["relu", "tanh"]]
    for axes, name in zip(panels, sweep.options, strict=True):
        line = axes.containers[-1].lines[0]
        best: dict[Any, float] = {}
        for result in results:
            best.setdefault(result.values[name], result.mean)
        assert sorted(line.get_ydata()) == sorted(best.values())
        assert len(axes.containers[-1].lines[2][0].get_segments()) == len(best), "a bar for each"


def test_numbers_that_are_drawn_have_a_plain_axis_and_no_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gpumlp.figures.sweep import sweep_results

    words = ("--random", "learning-rate=log:0.02:0.08", "momentum=0:0.9", "--trials", 4)
    assert run("sweep", *SMALL, *words, "--quiet", "--out", tmp_path / "s") == 0
    sweep = Sweep.open(tmp_path / "s")
    figure, _ = sweep_results(sweep, sweep.ranking(sweep.rows({})))
    assert not any("line joins" in text.get_text() for text in figure.texts)
    rate, momentum = (axes for axes in figure.axes if axes.get_visible())
    assert [axes.get_xscale() for axes in (rate, momentum)] == ["log", "linear"]
    assert {"0.02", "0.05"} & {text.get_text() for text in rate.get_xticklabels()}
    assert len(rate.containers) == len(momentum.containers) == 1, "points only"


def test_without_matplotlib_there_is_a_ranking_and_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingExtraError("figures need matplotlib, which is not installed")

    monkeypatch.setattr("gpumlp.figures.style.require", missing)
    assert run("sweep", *SMALL, "--grid", "hidden=4,5", "--out", tmp_path / "s") == 0
    assert "\nno figure: figures need matplotlib, which is not installed\n" in capsys.readouterr().out
    assert len(rows(tmp_path / "s")) == 2
