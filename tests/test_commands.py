"""The commands: output, errors and exit codes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import gpumlp
from gpumlp import MLP, SGD, Dataset, fit
from gpumlp.backends import EXECUTIONS
from gpumlp.command import FAILED, outcome
from gpumlp.extras import EXTRAS
from gpumlp.nn.activations import ACTIVATIONS as KINDS
from gpumlp.training.config import PRESETS, Config
from tests.command_helpers import DIGITS, ROOT, assert_same_run, finish, history, run, spawn

ACTIVATIONS = [name for name in KINDS if name != "identity"]
FINGERPRINT = "test_fingerprint"
SMALL = (*DIGITS, "--hidden", 16, "--epochs", 2)


@pytest.fixture(autouse=True)
def _no_colours_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", *SMALL, "--quiet", "--out", folder) == 0
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A finished run, which a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def config(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


# -- train -------------------------------------------------------------------------------------------------


def test_training_prints_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--out", tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    epochs = [line for line in out.splitlines() if re.match(r" *\d/2 ", line)]
    assert len(epochs) == 2
    assert all(line.count("%") == 2 for line in epochs)
    assert f"run saved in {tmp_path / 'run'}" in out
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["test_accuracy"]
    assert f"digits test accuracy: {100 * accuracy:.2f} %" in out


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--quiet", "--out", tmp_path / "run") == 0
    assert capsys.readouterr() == ("", "")


def test_every_wrong_value_is_named_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--hidden",
        0,
        "--learning-rate",
        -1,
        "--momentum",
        2,
        "--seed",
        "x",
        "--epochs",
        1.5,
        "--activation",
        "f",
    ]
    assert run("train", *words, "--out", tmp_path / "run") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "gpumlp-train: hidden: expected whole numbers of 1 or more, or none, got 0",
        f"gpumlp-train: activation: expected one of {', '.join(ACTIVATIONS)}, or several of them, one for each "
        "hidden layer, got 'f'",
        "gpumlp-train: learning_rate: expected a number above 0, got -1.0",
        "gpumlp-train: momentum: expected a number of at least 0 and below 1, got 2.0",
        "gpumlp-train: epochs: expected a whole number of 1 or more, got '1.5'",
        "gpumlp-train: seed: expected a whole number of 0 or more, got 'x'",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "half"], "batch_size: expected a whole number of 1 or more, or full"),
        (["--schedule", "milestones", "--milestones", 5, "b"], "milestones: expected whole numbers"),
        (["--schedule", "constant", "--milestones", 5], "milestones: expected only with schedule milestones"),
        (["--optimizer", "adam", "--momentum", 0.5], "momentum: expected only with optimizer sgd"),
        (["--preset", "torch"], "preset: expected notes, got 'torch'"),
        (["--preset", "notes", "--resume", "run"], "leave --preset out"),
        (["--resume", "none"], "there is no run none"),
        (["--validation", 1437, *DIGITS], "validation is expected to leave some of the 1,437 training samples"),
        (["--optimizer", "adamw", "--momentum", 0.5], "momentum: expected only with optimizer sgd or rmsprop"),
        (["--dropout", 0.5, 0.2, *DIGITS], "dropout: expected one value, or one for each of 1 hidden layers"),
        (["--early-stopping", 3, "--monitor", "validation_r2", *DIGITS], "validation_accuracy for classes, got"),
        (["--schedule", "one-cycle", "--warmup", 10**6, *DIGITS], "warmup: expected fewer than the 2,050 steps"),
        (["--task", "numbers", *DIGITS], "the task numbers does not apply to the data set digits"),
        (["--dataset", "none.npz"], "none.npz"),
        (["--data-dir", "none", *DIGITS], "data_dir none does not apply"),
        (["--device", "cuda:99", "--dataset", "digits"], "cuda"),
    ],
)
def test_bad_input_is_refused_in_words(words: list, message: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "evaluate", "info"])
def test_unknown_options_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, *(["run"] if command == "evaluate" else []), "--lerning-rate", 0.1) == 2
    assert "--lerning-rate" in capsys.readouterr().err


def test_help_lists_every_field_and_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--help") == 0
    text = capsys.readouterr().out
    listed = set(re.findall(r"^[│| ]*(?:-h, )?--([a-z][a-z0-9-]*)", text, re.MULTILINE))
    assert listed == {"help"} | {field.name.replace("_", "-") for field in dataclasses.fields(Config)}
    ranges = (field.metadata["allowed"].words for field in dataclasses.fields(Config) if field.name != "monitor")
    choices = {name for words in ranges if words.startswith("one of ") for name in re.findall(r"\w+", words)}
    assert choices <= set(re.findall(r"\w+", text))


def test_every_type_of_option_is_parsed(tmp_path: Path) -> None:
    words = "--hidden 8 4 --activation tanh --nesterov --l2 1e-4 --batch-size full --validation 0 --quiet"
    assert run("train", *DIGITS, *words.split(), "--epochs=1", "--seed=3", "--out", tmp_path / "run") == 0
    expected = {"hidden": [8, 4], "activation": "tanh", "nesterov": True, "l2": 1e-4, "batch_size": "full"}
    assert (expected | {"validation": 0, "epochs": 1, "seed": 3}).items() <= config(tmp_path / "run").items()
    words = "--hidden 8 4 --activation gelu tanh --dropout 0.5 0.2 --input-dropout 0.1 --validation 0.25 --quiet"
    assert (
        run("train", *DIGITS, *words.split(), "--epochs=1", "--schedule=one-cycle", "--out", tmp_path / "b") == 0
    )
    expected = {"activation": ["gelu", "tanh"], "dropout": [0.5, 0.2], "input_dropout": 0.1, "validation": 0.25}
    assert (expected | {"schedule": "one_cycle", "schedule_steps": 34}).items() <= config(tmp_path / "b").items()


def test_no_hidden_layer_is_softmax_regression(tmp_path: Path) -> None:
    assert run("train", *DIGITS, "--hidden", "--epochs", 1, "--quiet", "--out", tmp_path / "run") == 0
    assert config(tmp_path / "run")["hidden"] == []


def test_a_data_file_of_the_user_is_named_in_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)), np.arange(50) % 3
    np.savez(tmp_path / "flowers.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ["--dataset", tmp_path / "flowers.npz", "--device", "cpu", "--epochs", 1]
    assert run("train", *words, "--out", tmp_path / "run") == 0
    assert "flowers.npz test accuracy: " in capsys.readouterr().out
    assert run("evaluate", tmp_path / "run") == 0
    assert "flowers.npz test accuracy: " in capsys.readouterr().out


TASKS = {
    "numbers": (("r2", "mae"), r"own.npz test R²: 0\.\d{4}, mean absolute error 0\.\d{4}, loss 0\.\d{4}\n"),
    "labels": (
        ("accuracy", "label_accuracy"),
        r"own.npz test accuracy: \d+.\d\d % \(\d+ of 100 with every label correct\), label accuracy \d+.\d\d %, ",
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_labels_and_numbers_go_through_all_commands(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6))
    y = x @ rng.normal(size=(6, 2)) / 3
    y = y if task == "numbers" else (y > 0).astype(int)
    np.savez(tmp_path / "own.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])
    np.save(tmp_path / "x.npy", x[400:403])
    metrics, line = TASKS[task]
    folder = tmp_path / "run"
    options = ("--optimizer", "adam", "--learning-rate", 0.01, "--epochs", 9, "--early-stopping", 5)
    watched = ("--monitor", f"validation_{metrics[-1]}")
    words = ("--dataset", tmp_path / "own.npz", "--device", "cpu", *options, *watched)
    assert run("train", *words, "--out", folder) == 0
    said = capsys.readouterr().out
    assert re.search(line, said)
    assert {"numbers": "targets: 2 numbers a sample\n", "labels": "labels: 0, 1\n"}[task] in said
    found = json.loads((folder / "metrics.json").read_text())
    names = (*metrics, "loss")
    assert all(isinstance(found[f"{part}_{name}"], float) for part in ("test", "validation") for name in names)
    assert {name for name in found if name.startswith("test_")} == {
        *(f"test_{name}" for name in names),
        FINGERPRINT,
    }
    assert found["test_loss"] < 0.7
    assert run("train", "--resume", folder, "--epochs", 11) == 0
    for command, *more in (["evaluate"], ["diagnose"], ["history"], ["export"], ["predict", tmp_path / "x.npy"]):
        assert run(command, folder, *more) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert err == ""
    assert " epochs, of which only the units are judged, as there are no classes\n" in out
    again = tmp_path / "again"
    assert run("train", *words, "--task", task, "--epochs", 11, "--quiet", "--out", again) == 0
    assert_same_run(folder, again)


@pytest.mark.parametrize(
    ("weights", "options", "said"),
    [
        ({}, [], "54 samples to train, 6 to validate, 60 to test"),
        ({"w_train": np.ones(60)}, [], "54 weighted samples to train, 6 to validate, 60 to test"),
        ({"w_test": np.ones(60)}, [], "54 samples to train, 6 to validate, 60 weighted to test"),
        ({}, ["--class-weight", "balanced"], "54 weighted samples to train, 6 to validate, 60 to test"),
        ({}, ["--class-weight", "0=0.5", "2=5"], "54 weighted samples to train, 6 to validate, 60 to test"),
    ],
)
def test_it_is_said_which_samples_are_weighted(
    weights: dict, options: list, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y, **weights)
    words = ("--dataset", tmp_path / "own.npz", "--device", "cpu", "--epochs", 1)
    assert run("train", *words, *options, "--out", tmp_path / "run") == 0
    assert f"data: own.npz, 3 features, {said}\n" in capsys.readouterr().out


def test_weights_of_classes_are_those_of_a_dict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = np.array(["no", "yes", "a=b"])[np.arange(60) % 3]
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ("--dataset", tmp_path / "own.npz", "--device", "cpu", "--epochs", 3, "--validation", 0, "--out")
    assert run("train", *words, tmp_path / "run", "--class-weight", "yes=5", "a=b=0.5") == 0
    model = MLP([3, 128, 3], device="cpu")
    data = Dataset(x.astype("float32"), y)
    weights = {"yes": 5, "a=b": 0.5}
    fit(model, data, optimizer=SGD(0.1, momentum=0.9), epochs=3, batch_size=32, class_weight=weights)
    found = MLP.load(tmp_path / "run", device="cpu").state_dict()
    assert all(np.array_equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert run("train", "--resume", tmp_path / "run", "--epochs", 4) == 0
    capsys.readouterr()
    assert run("train", *words, tmp_path / "other", "--class-weight", "maybe=5") == 2
    assert "class_weight is expected to name classes among a=b, no, yes, got 'maybe'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_regression_trains_with_the_defaults(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (1000, 2))
    y = np.sin(x[:, :1]) * x[:, 1:]
    np.savez(tmp_path / "own.npz", x_train=x[:800], y_train=y[:800], x_test=x[800:], y_test=y[800:])
    words = ("--dataset", tmp_path / "own.npz", "--device", "cpu", "--quiet")
    assert run("train", *words, "--out", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_r2"] > 0.9


def test_whole_floats_are_numbers_with_a_line_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3 + 0.0
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ("--dataset", tmp_path / "own.npz", "--device", "cpu", "--epochs", 1, "--hidden", 4)
    assert run("train", *words, "--out", tmp_path / "a") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\nwarning: own.npz: targets are whole numbers as floats, so a regression; " in captured.out
    for task, metric in (("numbers", "test_r2"), ("classes", "test_accuracy")):
        assert run("train", *words, "--task", task, "--out", tmp_path / task) == 0
        assert "whole numbers" not in capsys.readouterr().out
        assert metric in json.loads((tmp_path / task / "metrics.json").read_text())
        assert run("evaluate", tmp_path / task) == run("train", "--resume", tmp_path / task, "--epochs", 2) == 0


def test_min_accuracy_is_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--quiet", "--min-accuracy", 1, "--out", tmp_path / "low") == 1
    assert re.fullmatch(
        r"gpumlp-train: digits test accuracy 0\.\d{4} is below min_accuracy 1\n", capsys.readouterr().err
    )
    accuracy = json.loads((tmp_path / "low" / "metrics.json").read_text())["test_accuracy"]
    assert run("train", *SMALL, "--quiet", "--min-accuracy", accuracy, "--out", tmp_path / "equal") == 0


def test_a_divergence_prints_one_line_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--learning-rate", 1e30, "--out", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"gpumlp-train: training diverged in epoch 1, .*1e\+30, largest gradient .*\n", err)


def test_the_notes_preset_and_what_overrides_it(tmp_path: Path) -> None:
    words = [*DIGITS, "--quiet", "--preset", "notes", "--epochs", 1]
    assert run("train", *words, "--out", tmp_path / "notes") == 0
    expected = json.loads(PRESETS["notes"].to_json())
    expected |= {"epochs": 1, "quiet": True, "device": "cpu", "dataset": "digits", "shards": 1, "order": "shuffle"}
    expected["out"] = str(tmp_path / "notes")
    assert config(tmp_path / "notes") == expected
    changes = ["--schedule", "exponential", "--learning-rate", 0.2, "--hidden", 8, "--out", tmp_path / "other"]
    assert run("train", *words, *changes) == 0
    changed = {"schedule": "exponential", "learning_rate": 0.2, "hidden": [8], "gamma": None, "milestones": []}
    assert (changed | {"decay_rate": 0.05, "l2": 1e-4}).items() <= config(tmp_path / "other").items()


def test_resume_needs_no_other_option(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--resume", finished, "--epochs", 4) == 0
    assert f"resuming {finished} after epoch 2 of 4" in capsys.readouterr().out
    assert len(history(finished)) == 4
    assert run("train", f"--resume={finished}") == 0
    assert run("train", "--resume", finished, "--learning-rate", 0.5, "--seed", 1) == 2
    assert "learning_rate, seed: a run is resumed with its own configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"), [(["--schedule", "constant"], "schedule"), (["--hidden", 8, 8], "hidden")]
)
def test_an_option_that_does_not_fit_those_of_a_resumed_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list, named: str
) -> None:
    """Not the options of the run that it does not fit."""
    options = ("--hidden", 8, 8, 8, "--dropout", 0.1, 0, 0.1, "--schedule", "cosine", "--epochs", 1, "--quiet")
    assert run("train", *DIGITS, *options, "--out", tmp_path / "run") == 0
    assert run("train", "--resume", tmp_path / "run", *words) == 2
    assert f" {named}: a run is resumed with its own configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("average", "still"),
    [((), "the weights as they are"), (("--ema", 0.9), "only the average of the weights changes")],
)
def test_a_schedule_over_all_steps_ends_where_it_was_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], average: tuple, still: str
) -> None:
    words = (*DIGITS, *average, "--hidden", 8, "--schedule", "cosine", "--warmup", 10, "--quiet", "--epochs", 3)
    assert run("train", *words, "--out", tmp_path / "run") == 0
    assert config(tmp_path / "run")["schedule_steps"] == 3 * 41 - 10
    assert run("train", "--resume", tmp_path / "run", "--epochs", 5) == 0
    assert (
        "\nschedule cosine ends after step 123, in epoch 3: from then on the learning rate stays at its last "
        f"value, 0, and {still}\n"
    ) in capsys.readouterr().out
    rates = [record["learning_rate"] for record in history(tmp_path / "run")]
    assert rates[0] > rates[1] > rates[2] > 0
    assert rates[3:] == [0, 0]


def test_a_run_does_not_end_within_the_schedule_over_all_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    stop = (*DIGITS, "--hidden", 8, "--schedule", "one_cycle", "--epochs", 40, "--early-stopping", 1, "--quiet")
    assert run("train", *stop, "--monitor", "train_accuracy", "--out", folder) == 0
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert len(history(folder)) < 39
    assert run("train", "--resume", folder, "--epochs", 39) == 2
    assert capsys.readouterr().err == (
        "gpumlp-train: epochs: expected 40 or more, over which the learning rate falls with schedule one_cycle, "
        "got 39\n"
    )
    assert before == {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_out_with_a_run_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--out", finished) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert run("train", *SMALL, "--out", finished, "--overwrite", "--quiet") == 0


# -- evaluate ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder that a process is in")
def test_a_current_folder_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    for words in (("train", *SMALL, "--out", "run"), ("evaluate", "run")):
        assert run(*words) == 1
        assert capsys.readouterr().err.endswith(
            ": the current folder does not exist any more; change to another one\n"
        )


def test_a_file_that_a_library_misses_is_not_taken_for_the_current_folder() -> None:
    def main() -> int:
        raise FileNotFoundError("no group found in store 'samples.zarr'")

    assert outcome(main) == (FAILED, "no group found in store 'samples.zarr'")


def test_evaluate_reproduces_the_test_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--out", tmp_path / "run") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "test accuracy" in line]
    assert run("evaluate", tmp_path / "run") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "test accuracy" in line] == said
    assert len(said) == 1


def test_evaluate_reports_that_a_run_is_unfinished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "metrics.json").unlink()
    assert run("evaluate", finished) == 0
    assert "is not finished" in capsys.readouterr().out


def test_commands_say_that_a_run_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--learning-rate", 1e30, "--out", tmp_path / "run") == 1
    for command in ("evaluate", "export"):
        capsys.readouterr()
        assert run(command, tmp_path / "run") == 0
        said = capsys.readouterr().out
        assert said.endswith("network of a run that diverged, after epoch 0\n")
        assert "not finished" not in said


def test_a_file_of_data_that_has_changed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).random((40, 3), np.float32)
    arrays = {"x_train": values, "y_train": np.arange(40) % 2, "x_test": values, "y_test": np.arange(40) % 2}
    np.savez(tmp_path / "own.npz", **arrays)
    words = ("--dataset", tmp_path / "own.npz", "--epochs", 1, "--quiet", "--device", "cpu")
    assert run("train", *words, "--out", tmp_path / "run") == 0
    np.savez(tmp_path / "own.npz", **{**arrays, "x_train": values + 1})
    capsys.readouterr()
    for words in (("evaluate", tmp_path / "run"), ("train", "--resume", tmp_path / "run", "--epochs", 2)):
        assert run(*words) == 2
        assert capsys.readouterr().err.endswith(f"; put back what {tmp_path / 'own.npz'} was then\n")


def test_evaluate_refuses_a_damaged_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = finished / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    for command, *words in (("evaluate", finished), ("train", "--resume", finished)):
        assert run(command, *words) == 2
        assert "cannot be read as a safetensors file" in capsys.readouterr().err


# -- All commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["evaluate {}", "history {}", "diagnose {}", "report {}", "train --resume {}"])
def test_every_command_says_in_the_same_words_that_there_is_no_run(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacks = f"in {tmp_path}: it has neither config.json, history.jsonl nor checkpoint.safetensors"
    for path, message in ((tmp_path / "none", f"{tmp_path / 'none'}: no such folder"), (tmp_path, lacks)):
        assert run(*words.format(path).split()) == 2
        out, err = capsys.readouterr()
        assert (out, err.partition(": ")[2]) == ("", f"there is no run {message}\n")


def test_a_clock_that_stands_still_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for clock in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(time, clock, itertools.repeat(getattr(time, clock)()).__next__)
    folder = tmp_path / "run"
    assert run("train", *DIGITS, "--hidden", 4, "--epochs", 3, "--report", "--out", folder) == 0
    assert run("train", "--resume", folder, "--epochs", 4) == 0
    for command in ("evaluate", "history", "diagnose", "report", "export"):
        assert run(command, folder) == 0
    assert [record["samples_per_second"] for record in history(folder)] == [0] * 4
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hidden", [(99_999_999_999, 99_999_999_999), (10**30,), (10**7, 10**7)])
def test_a_network_that_no_memory_holds_is_one_line_with_its_size(
    hidden: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = r"need \S+ GiB; at most \S+ GiB are possible here"
    with pytest.raises(MemoryError, match=size):
        gpumlp.MLP([64, *hidden, 10], device="cpu")
    assert run("train", *DIGITS, "--quiet", "--hidden", *hidden, "--out", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(rf"gpumlp-train: not enough memory: .*{size}.*; use fewer hidden units .*\n", err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["figures", "report {}", "train --resume {} --report"])
def test_settings_that_matplotlib_refuses_are_one_line(words: str, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    process = spawn(*words.format(trained).split(), cwd=tmp_path, env={"MPLBACKEND": "nonsense"})
    code, out, err = finish(process)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "need matplotlib" in err
    assert "correct or remove the environment variable MPLBACKEND=nonsense" in err


# -- info, and pipes ---------------------------------------------------------------------------------------


def test_info_shows_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["gpumlp"] == gpumlp.__version__
    assert facts["python"].startswith(platform.python_version())
    assert facts["numpy"] == np.__version__
    assert {"cupy", "safetensors", "device cpu", "device auto", "processors", "blas"} <= set(facts)
    assert {"GPUMLP_DATA_DIR", "data cache"} <= set(facts)
    assert "blas threads" in facts or facts["blas"].startswith("none")
    assert {f"execution {name}" for name in EXECUTIONS[1:]} <= set(facts)
    assert facts["execution eager"] == "available"
    assert {f"extra {name}" for name in EXTRAS} <= set(facts)


def test_info_says_which_folder_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("GPUMLP_DATA_DIR", str(tmp_path / "locked"))
    monkeypatch.setattr(Path, "is_file", refuse)
    assert run("info") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "locked" in line)
    assert "Permission denied" in line


def test_info_shows_missing_parts_and_how_to_install_them(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(EXTRAS, "onnx", EXTRAS["onnx"]._replace(modules=("onnx_of_tomorrow",)))
    assert run("info") == 0
    assert 'pip install ".[onnx]" (onnx_of_tomorrow missing): export to ONNX' in capsys.readouterr().out


def test_the_optional_parts_are_extras_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("command", "words"), [("info", []), ("train", ["--help"]), ("evaluate", ["--help"]), ("train", [*SMALL])]
)
def test_a_closed_pipe_gives_no_traceback(command: str, words: list, tmp_path: Path) -> None:
    process = spawn(command, *words, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()  # as by head
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        code, _, err = finish(spawn("info", stdout=full))
    assert (code, err) == (1, "gpumlp-info: standard output: No space left on device\n")
