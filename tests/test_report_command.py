"""`python -m gpumlp.report` and `train --report`: what they write, where, what they refuse, and how they end."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

import gpumlp
from gpumlp import Callback, Trainer
from gpumlp.training import EpochRecord
from gpumlp.training.config import Config
from tests.command_helpers import DIGITS, run
from tests.report_helpers import QUICK, digits_run, text_of, write

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the digits."""
    return digits_run(tmp_path_factory.mktemp("runs"))


def test_a_page_is_written_into_the_run_s_folder_and_named(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(digits) == 0
    path = digits / "report.html"
    size = path.stat().st_size
    assert capsys.readouterr().out == f"report on {digits}: {path} ({size / 1000:,.0f} kB)\n"
    assert size < 3_000_000
    page = path.read_text(encoding="utf-8")
    metrics = json.loads((digits / "metrics.json").read_text())
    text = text_of(page)
    assert f"Test accuracy {100 * metrics['test_accuracy']:.2f} %" in text
    assert f"gpumlp {gpumlp.__version__}, Python" in text
    assert Config.from_dict(json.loads((digits / "config.json").read_text())).optimizer == "sgd"
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", page)  # nothing is fetched


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("history.jsonl", '{"epoch": 1, "train_loss": "x"}\n', "line 1 is not that of an epoch"),
        ("metrics.json", '{"dataset": "digits", "test_acc', "Unterminated string"),
        ("metrics.json", '{"test_accuracy": "x"}', "test_accuracy is 'x', expected a number"),
        ("diverged.json", "[]", "expected a JSON object"),
        ("diverged.json", '{"name": 1}', "expected a name and a message"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_used(
    digits: Path, tmp_path: Path, file: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in digits.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_text(content)
    damage = f"{tmp_path / file} is damaged: {message}"
    assert run("history", tmp_path) == 2  # which knows nothing but these files
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert damage in err
    for name in ("report", "diagnose"):  # which have the checkpoint
        assert run(name, tmp_path) == 1
        out, err = capsys.readouterr()
        assert err.startswith(f"gpumlp-{name}: {damage}")
        assert len(err.splitlines()) == 1
        assert out
    text = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"A file of {tmp_path.name} cannot be read" in text
    assert "is not finished" not in text
    assert "Test accuracy" in text
    assert ("training diverged after 2 of 2 epochs" in text) == (file == "diverged.json")
    assert "epoch by epoch" in text


def test_train_writes_the_page_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *DIGITS, "--epochs", 1, "--out", tmp_path / "a", "--report") == 0
    path = tmp_path / "a" / "report.html"
    assert capsys.readouterr().out.endswith(f"report: {path}\n")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    for epochs, words in ((2, []), (3, ["--report"])):  # asked for once, or again
        assert run("train", "--resume", tmp_path / "a", "--epochs", epochs, *words) == 0
        assert f"Epochs {epochs}" in text_of(path.read_text(encoding="utf-8"))
    assert run("train", *QUICK, "--out", tmp_path / "b") == 0
    assert run("train", "--resume", tmp_path / "b", "--report") == 0
    assert (tmp_path / "b" / "report.html").exists()


def test_train_writes_the_page_of_a_training_that_diverges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*DIGITS, "--epochs", 2, "--activation", "leaky_relu", "--learning-rate", 1e8)
    assert run("train", *words, "--out", tmp_path / "a", "--report") == 1
    out, err = capsys.readouterr()
    path = tmp_path / "a" / "report.html"
    assert out.endswith(f"report: {path}\n")
    assert re.fullmatch(r"gpumlp-train: training diverged in epoch 1, .*\n", err)
    assert "training diverged after 0 of 2 epochs" in text_of(path.read_text(encoding="utf-8"))
    assert run("train", *words, "--out", tmp_path / "b") == 1  # it was not asked for
    assert not (tmp_path / "b" / "report.html").exists()


def test_train_writes_the_page_of_a_training_that_is_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = Trainer._train_epoch

    def interrupted(trainer: Trainer, listeners: list[Callback]) -> EpochRecord | None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(trainer, listeners)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    assert run("train", *QUICK, "--out", tmp_path / "a", "--report") == 130
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "interrupted; the run is saved after epoch 1 of 2" in err
    text = text_of((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert "is not finished : the network is that of its last checkpoint, after epoch 1 of 2" in text


def test_a_page_that_cannot_be_written_hides_no_divergence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpumlp.report.write_page", fails)
    words = (*QUICK, "--activation", "leaky_relu", "--learning-rate", 1e8, "--out", tmp_path / "a", "--report")
    assert run("train", *words) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("gpumlp-train: no report: ")
    assert first.endswith("No space left on device")
    assert second.startswith("gpumlp-train: training diverged in epoch 1")


@pytest.mark.parametrize("library", ["matplotlib", "PIL", "jinja2"])
def test_without_the_extra_there_is_one_error_before_any_work(
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    library: str,
) -> None:
    importlib.import_module("matplotlib")  # whole, before anything that it imports is missing
    monkeypatch.setitem(sys.modules, library, None)
    expected = f"reports need {library}, which is not installed; install it with pip install '.[report]'\n"
    assert run("train", *QUICK, "--out", tmp_path / "a", "--report") == 2
    assert capsys.readouterr() == ("", f"gpumlp-train: {expected}")
    assert not (tmp_path / "a").exists()
    assert write(digits, "--out", tmp_path / "page.html") == 2
    assert capsys.readouterr() == ("", f"gpumlp-report: {expected}")


def test_wrong_words_are_refused_in_one_line_each(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*words: object) -> str:
        assert write(*words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.removeprefix("gpumlp-report: ").rstrip("\n")

    assert complaint() == "expected the folder of at least one run, got none"
    assert complaint(tmp_path / "none") == f"there is no run {tmp_path / 'none'}: no such folder"
    assert complaint(tmp_path).startswith(f"there is no checkpoint {tmp_path}")
    assert complaint(digits, f"{digits}/") == f"{digits}: expected each run once, got it 2 times"
    assert complaint(digits, "--out", tmp_path) == f"out: expected the path of a file to write, got {tmp_path}"
    assert complaint(digits, "--device", "tpu").startswith("device is expected to be")
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_written_whole_or_not_at_all(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert write(digits, "--out", tmp_path / "file" / "page.html") == 2
    assert capsys.readouterr().err == f"gpumlp-report: out: there is no folder {tmp_path / 'file'}\n"

    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    page = tmp_path / "page.html"
    page.write_text("as it was")
    monkeypatch.setattr(os, "replace", fails)
    assert write(digits, "--out", page) == 1
    assert capsys.readouterr().err == f"gpumlp-report: {page}: No space left on device\n"
    assert page.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "page.html"]
