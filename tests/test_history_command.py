"""`python -m gpumlp.history`: runs by epoch, several runs, and CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

import gpumlp
from gpumlp.training.run import Run
from tests.command_helpers import DIGITS, finish, history, run, spawn

COLUMNS = [
    *("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("learning_rate", "seconds", "samples_per_second"),
]


def line(epoch: int, loss: float, validation: float | None = None, **more: object) -> str:
    """An epoch in the history file."""
    values = (epoch, loss, 0.9, validation, None if validation is None else 1 - validation, 0.1, 0.5, 1000.0)
    return json.dumps({**dict(zip(COLUMNS, values, strict=True)), **more}) + "\n"


def make_run(folder: Path, *lines: str, accuracy: float | None = None, **config: object) -> Path:
    """A run's folder with this history, finished if there is a test accuracy."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"epochs": 3, "hidden": [128], **config}))
    (folder / "history.jsonl").write_text("".join(lines))
    if accuracy is not None:
        (folder / "metrics.json").write_text(json.dumps({"test_accuracy": accuracy, "test_loss": 1 - accuracy}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "a", line(1, 0.5, 0.3), line(2, 0.4, 0.1), line(3, 0.2, 0.2), accuracy=0.9, seed=1)
    make_run(tmp_path / "b", line(1, 0.6), line(2, 0.5), line(3, 0.1), accuracy=0.95, seed=0, hidden=[8, 4])
    make_run(tmp_path / "c", line(1, 0.3, 0.4), learning_rate=0.5)
    make_run(tmp_path / "d", learning_rate=1e30)
    return tmp_path


def test_a_run_is_shown_epoch_by_epoch_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *DIGITS, "--hidden", 8, "--epochs", 3, "--out", tmp_path / "run") == 0
    shown = [text for text in capsys.readouterr().out.splitlines() if text.startswith("  epoch") or "/3 " in text]
    assert run("history", tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    lowest = min(record["validation_loss"] for record in history(tmp_path / "run"))
    assert lines[4].startswith(f"lowest validation loss: {lowest:.4f}, after epoch ")
    assert lines[5:] == [
        f"test accuracy: {100 * metrics['test_accuracy']:.2f} %, loss {metrics['test_loss']:.4f}",
    ]


@pytest.mark.parametrize("command", ["history", "diagnose"])
def test_a_run_that_is_named_twice_is_shown_once(
    runs: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        shutil.rmtree(runs / name)
        assert run("train", *DIGITS, "--epochs", 1, "--quiet", "--out", runs / name) == 0
    (runs / "link").symlink_to("a")
    monkeypatch.chdir(runs)
    assert run(command, "a", "b") == 0
    expected = capsys.readouterr()
    assert run(command, "a", "./a/", "b", runs / "a", "link", "b") == 0
    assert capsys.readouterr() == expected


def test_runs_side_by_side_with_final_and_best_values(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("history", *(runs / name for name in "abcd")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in lines[-4:]] == ["3", "3", "1/3", "0/3"]
    summary = Run(str(runs / "a")).summary()
    assert summary == {
        "run": str(runs / "a"),
        "epochs": 3,
        "train_loss": 0.2,
        "train_accuracy": 0.9,
        "validation_loss": 0.2,
        "validation_accuracy": 0.8,
        "best_validation_loss": 0.1,
        "best_validation_accuracy": 0.9,
        "best_epoch": 2,
        "test_loss": pytest.approx(0.1),
        "test_accuracy": 0.9,
        "seconds": 1.5,
        "samples_per_second": 1000.0,
    }


def test_runs_on_numbers_have_their_own_metrics(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"train_accuracy": None, "train_r2": 0.5, "train_mae": 0.1, "validation_mae": 0.3}
    epochs = (line(n, 0.5, 0.2, **values, validation_r2=r2) for n, r2 in ((1, 0.75), (2, 0.25)))
    folder = make_run(runs / "numbers", *epochs, epochs=2, monitor="validation_r2", early_stopping=5)
    (folder / "metrics.json").write_text(json.dumps({"test_loss": 0.2, "test_r2": 0.7, "test_mae": 0.3}))
    assert run("history", folder) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split().count("MAE") == 2
    assert shown[3:] == [
        "highest validation R²: 0.7500, after epoch 1",
        "test R²: 0.7000, mean absolute error: 0.3000, loss 0.2000",
    ]
    assert run("history", runs, "--sort", "test-r2") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-5].startswith(str(folder))
    assert "0.7000" in shown[-5]
    assert "90.00 %" in shown[-4]


def test_only_options_that_differ_are_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("history", runs / "a", runs / "b") == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(words for words in lines if words.startswith("run "))
    assert header.split()[-2:] == ["hidden", "seed"]
    assert lines[-2].split()[-2:] == ["128", "1"]
    assert lines[-1].split()[-3:] == ["8", "4", "0"]


@pytest.mark.parametrize(
    ("words", "order"),
    [
        ([], "abcd"),
        (["--sort", "train_loss"], "bacd"),
        (["--sort", "test-accuracy", "--reverse"], "bacd"),
        (["--sort", "best_validation_loss"], "acbd"),
        (["--sort", "best_validation_accuracy", "--reverse"], "acbd"),
        (["--sort", "epochs"], "dcab"),
        (["--sort", "learning_rate"], "cdab"),
        (["--sort", "hidden"], "bacd"),
        (["--sort", "seed", "--reverse"], "abcd"),
        (["--sort", "run", "--reverse"], "dcba"),
    ],
)
def test_rows_are_sorted_by_a_column_and_missing_values_come_last(
    runs: Path, words: list[str], order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("history", runs, *words) == 0  # a folder of runs
    lines = capsys.readouterr().out.splitlines()
    assert "".join(row.split()[0][-1] for row in lines[-4:]) == order
    if words:
        stacked = " ".join(lines[:-4]).split()
        assert set(words[1].replace("-", "_").split("_")) <= set(stacked)


def test_the_csv_has_every_epoch_of_every_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("history", runs, "--csv", "-") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["run", *COLUMNS]
    assert [Path(row["run"]).name + row["epoch"] for row in rows] == ["a1", "a2", "a3", "b1", "b2", "b3", "c1"]
    assert [row["validation_loss"] for row in rows] == ["0.3", "0.1", "0.2", "", "", "", "0.4"]


def test_the_csv_as_a_file_and_with_no_epoch_at_all(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "new.csv"
    assert run("history", runs / "d", "--csv", file) == 0
    assert capsys.readouterr().out.endswith(f"unfinished: 0 of 3 epochs, and no test\nwritten: {file}\n")
    assert file.read_text() == ",".join(["run", *COLUMNS]) + "\n"


def test_what_other_versions_wrote_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [{"weight_norm": 1.0}, {"weight_norm": 2.0}]
    make_run(tmp_path / "new", line(1, 0.5, layers=layers, gradient_norm=3.5), line(2, 0.4), option=7, accuracy=1)
    old = make_run(tmp_path / "old", line(1, 0.6))
    (old / "config.json").write_text('{"epochs": 1}')
    assert run("history", tmp_path / "new") == 0
    assert "lowest validation" not in capsys.readouterr().out
    assert run("history", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == "7"
    assert run("history", tmp_path, "--csv", "-") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["run", *COLUMNS, "gradient_norm"]
    assert [row["gradient_norm"] for row in rows] == ["3.5", "", ""]


def test_a_truncated_line_is_not_an_epoch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", line(1, 0.5), line(2, 0.4)[:30])
    assert [epoch["epoch"] for epoch in Run(str(folder)).epochs] == [1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("history.jsonl", "x\n", "line 1 is not that of an epoch"),
        ("history.jsonl", "[1]\n", "line 1 is not that of an epoch"),
        ("history.jsonl", line(1, 0.5) + line(2, 0.5, train_loss="low"), "line 2 is not that of an epoch"),
        ("config.json", "[]", "expected a JSON object"),
        ("history.jsonl", line(1, 0.5, layers=5), "line 1 is not that of an epoch: layers is 5"),
        ("metrics.json", "{", "metrics.json is damaged"),
        (
            "metrics.json",
            '{"test_accuracy": "x"}',
            "metrics.json is damaged: test_accuracy is 'x', expected a number",
        ),
        ("diverged.json", "[]", "diverged.json is damaged: expected a JSON object"),
        ("diverged.json", '{"name": 1}', "diverged.json is damaged: expected a name and a message"),
    ],
)
def test_a_damaged_run_is_named_and_hides_no_other(
    runs: Path, file: str, content: str, message: str, capsys
) -> None:
    (runs / "b" / file).write_text(content)
    assert run("history", runs / "b") == 2
    alone = capsys.readouterr()
    assert (alone.out, len(alone.err.splitlines())) == ("", 1)
    assert str(runs / "b" / file) in alone.err
    assert message in alone.err
    assert run("history", runs / "a", runs / "b") == 1
    captured = capsys.readouterr()
    assert captured.err == alone.err
    assert [row.split()[0] for row in captured.out.splitlines()][-1] == str(runs / "a")


def test_a_diverged_run_is_shown_with_the_reason(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "c" / "diverged.json").write_text(
        '{"name": "diverged", "layer": null, "message": "the loss was lost"}'
    )
    assert run("history", runs / "c") == 0
    out = capsys.readouterr().out
    assert out.endswith("\ndiverged: the loss was lost\n")
    assert "unfinished" not in out
    assert run("history", runs) == 0
    assert capsys.readouterr().out.endswith(f"\n{runs / 'c'} diverged: the loss was lost\n")


def test_the_best_network_of_a_run_is_not_unfinished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*DIGITS, "--hidden", 8, "--quiet", "--early-stopping", 9, "--epochs", 2)
    assert run("train", *words, "--out", tmp_path / "run") == 0
    best = tmp_path / "run" / "best"
    kept = len(Run(str(best)).epochs)
    (best / "metrics.json").write_text(
        '{"test_accuracy": 0.1, "test_loss": 9}'
    )  # left there by an earlier version
    (best / "history.jsonl").write_text(line(1, 0.5) * 7)
    assert run("history", best) == 0
    assert capsys.readouterr().out.endswith(f"kept after the best epoch, {kept}, of 2\n")
    assert Run(str(best)).progress == str(kept)


def test_the_report_option_is_not_a_difference_between_runs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs / "e", line(1, 0.3), report=True, preset="notes")
    make_run(runs / "f", line(1, 0.3), seed=7)
    assert run("history", runs / "e", runs / "f") == 0
    assert capsys.readouterr().out.splitlines()[-3].split()[-1] == "seed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected the folder of a run"),
        (["none", "nor this"], "there is no run none: no such folder\ngpumlp-history: there is no run nor this"),
        (["empty"], "there is no run in empty"),
        (["a", "b", "--sort", "size"], "sort: expected one of run, epochs, train_loss"),
        (["a", "--reverse"], "reverse: expected only with --sort"),
    ],
)
def test_bad_input_is_refused_in_words(runs: Path, words: list[str], message: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir()
    assert run("history", *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_a_csv_that_cannot_be_written_is_one_line(runs: Path) -> None:
    code, _, err = finish(spawn("history", runs / "a", "--csv", runs / "none" / "file.csv"))
    assert (code, err) == (2, f"gpumlp-history: csv: there is no folder {runs / 'none'}\n")


def test_an_interrupted_run_has_no_test(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "a", runs / "e")
    (runs / "e" / "metrics.json").unlink()
    (runs / "e" / "config.json").write_text('{"epochs": 20}')
    assert run("history", runs / "e") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "lowest validation loss: 0.1000, after epoch 2",
        "unfinished: 3 of 20 epochs, and no test",
    ]


def test_the_module_and_the_class_of_this_name_live_side_by_side() -> None:
    assert gpumlp.history.main is not None
    assert gpumlp.History().records == []
