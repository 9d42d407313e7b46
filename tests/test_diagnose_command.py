"""Findings of the commands train and diagnose."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.command_helpers import DIGITS, assert_same_run, finish, history, interrupt_after, run, spawn, tensors

HEALTHY = (*DIGITS, "--epochs", 3)
DEAD = (*DIGITS, "--epochs", 2, "--learning-rate", 1, "--hidden", 64, 64)


def metrics(folder: Path) -> dict[str, object]:
    return json.loads((folder / "metrics.json").read_text())


def test_a_healthy_run_has_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *HEALTHY, "--out", tmp_path / "run") == 0
    assert "finding" not in capsys.readouterr().out
    assert (metrics(tmp_path / "run")["findings"], metrics(tmp_path / "run")["trend"]) == ([], "converging")
    assert run("diagnose", tmp_path / "run") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: 3 epochs, converging\n  nothing wrong was found\n"


def test_findings_are_printed_saved_and_reproduced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *DEAD, "--out", tmp_path / "run") == 0
    printed = re.findall(r"finding: (.*)\n", capsys.readouterr().out)
    saved = metrics(tmp_path / "run")["findings"]
    assert [finding["message"] for finding in saved] == printed
    assert [(finding["name"], finding["layer"]) for finding in saved] == [
        ("dead units", 1),
        ("classes not predicted", None),
    ]
    assert run("diagnose", tmp_path / "run") == 0
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[1:]] == [
        f"{finding['name']}: {finding['message']}" for finding in saved
    ]


def test_a_class_that_is_never_predicted_is_reported_by_train_and_diagnose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.05).astype(int)
    x = rng.normal(size=(2000, 4)).astype(np.float32) + 0.2 * y[:, None].astype(np.float32)
    np.savez(tmp_path / "rare.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ["--dataset", tmp_path / "rare.npz", "--epochs", 3, "--hidden"]
    assert run("train", *words, "--out", tmp_path / "run") == 0
    message = "class 1 is never predicted, although 9 of the 200 validation samples are of it; the accuracy of"
    assert f"finding: {message}" in capsys.readouterr().out
    assert run("diagnose", tmp_path / "run") == 0
    assert f"  classes not predicted: {message}" in capsys.readouterr().out


def test_a_run_that_keeps_its_best_network_does_not_overfit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, trend in ([], "overfitting"), (["--early-stopping", 20], "converging"):
        assert run("train", *DIGITS, *words, "--quiet", "--out", tmp_path / trend) == 0
        assert metrics(tmp_path / trend)["trend"] == trend
        assert run("diagnose", tmp_path / trend) == 0
        assert f" epochs, {trend}\n" in capsys.readouterr().out


def test_a_damaged_list_of_findings_is_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *HEALTHY, "--quiet", "--out", tmp_path / "run") == 0
    for damaged in (None, 7, "none", [None, 7, {}, {"name": "classes not predicted", "message": 7}, {"name": []}]):
        (tmp_path / "run" / "metrics.json").write_text(json.dumps({"findings": damaged}))
        assert run("diagnose", tmp_path / "run") == 0
        assert capsys.readouterr().out.endswith("nothing wrong was found\n")


def test_the_lines_of_the_history_hold_the_statistics(tmp_path: Path) -> None:
    assert run("train", *HEALTHY, "--quiet", "--out", tmp_path / "run") == 0
    for line in history(tmp_path / "run"):
        assert list(line)[-1] == "layers"
        if line["epoch"] > 1:  # the epochs of the digits are short
            assert line["layers"] is None
            continue
        assert [list(layer) for layer in line["layers"]] == 2 * [
            [
                *("gradient_norm", "update_ratio", "weight_norm", "dead", "saturated"),
                *("samples", "gradient_samples", "largest_input", "mean", "deviation"),
            ]
        ]
        assert [layer["dead"] is None for layer in line["layers"]] == [False, True]


def test_the_weights_are_the_same_without_diagnostics_and_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *HEALTHY, "--quiet", "--out", tmp_path / "on") == 0
    assert run("train", *HEALTHY, "--quiet", "--diagnostics", "off", "--out", tmp_path / "off") == 0
    assert run("train", *DIGITS, "--epochs", 1, "--quiet", "--out", tmp_path / "part") == 0
    assert run("train", "--resume", tmp_path / "part", "--epochs", 3, "--quiet") == 0
    assert_same_run(tmp_path / "on", tmp_path / "part")  # the statistics too
    on, off = tensors(tmp_path / "on"), tensors(tmp_path / "off")
    assert all(on[name].tobytes() == off[name].tobytes() for name in on)
    assert [line["layers"] for line in history(tmp_path / "off")] == [None] * 3
    assert run("diagnose", tmp_path / "off", tmp_path / "on") == 0
    out = capsys.readouterr().out
    assert "only the curves were judged: the run was made without diagnostics" in out
    assert out.count("nothing wrong was found") == 2


def test_the_reason_of_a_divergence_is_kept_until_the_run_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("train", *DIGITS, "--quiet", "--learning-rate", 1e30, "--out", folder) == 1
    error = capsys.readouterr().err
    finding = json.loads((folder / "diverged.json").read_text())
    assert set(finding) == {"name", "layer", "message"}
    assert finding["name"] == "diverged"
    assert error == f"gpumlp-train: {finding['message']}\n"
    assert run("diagnose", folder) == 0
    assert capsys.readouterr().out == f"{folder}: 0 of 50 epochs, diverged\n  diverged: {finding['message']}\n"
    assert run("train", *HEALTHY, "--quiet", "--overwrite", "--out", folder) == 0
    assert not (folder / "diverged.json").exists()


def test_an_exploding_loss_that_diverges_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--activation", "leaky_relu", "--hidden", 64, "--learning-rate", 3]
    folder = tmp_path / "run"
    assert run("train", *DIGITS, *words, "--quiet", "--diagnostics", "off", "--out", folder) == 1
    (message,) = re.findall("gpumlp-train: (.*)\n", capsys.readouterr().err)
    epochs = len(history(folder))
    assert epochs > 0
    assert run("diagnose", folder) == 0
    assert capsys.readouterr().out == (
        f"{folder}: {epochs} of 50 epochs, diverged\n  diverged: {message}\n"
        "  only the curves were judged: the run was made without diagnostics\n"
    )


def test_an_interrupted_run_is_diagnosed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(2, monkeypatch)
    assert run("train", *DIGITS, "--quiet", "--out", tmp_path / "run") == 130
    capsys.readouterr()
    assert run("diagnose", tmp_path / "run") == 0
    assert (
        capsys.readouterr().out == f"{tmp_path / 'run'}: 2 of 50 epochs, converging\n  nothing wrong was found\n"
    )


def test_a_divergence_on_the_test_set_is_recorded(tmp_path: Path) -> None:
    words = ["--epochs", 1, "--batch-size", "full", "--validation", 0, "--learning-rate", 1e30]
    assert run("train", *DIGITS, "--quiet", *words, "--diagnostics", "off", "--out", tmp_path / "run") == 1
    message = json.loads((tmp_path / "run" / "diverged.json").read_text())["message"]
    assert "the test loss" in message
    assert message.endswith("Try a learning_rate of 0.1 or less, or another initializer")


def test_invalid_input_prints_one_line_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *HEALTHY, "--quiet", "--out", tmp_path / "good") == 0
    for words, message in (
        ([], "runs: expected the folder of at least one run, got none"),
        ([tmp_path / "good", tmp_path / "none"], f"there is no run {tmp_path / 'none'}: no such folder"),
    ):
        assert run("diagnose", *words) == 2
        assert capsys.readouterr() == ("", f"gpumlp-diagnose: {message}\n")
    assert run("train", *HEALTHY, "--diagnostics", "maybe") == 2
    assert "diagnostics: expected one of on, off, got 'maybe'" in capsys.readouterr().err


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    assert run("train", *HEALTHY, "--quiet", "--out", tmp_path / "run") == 0
    code, out, err = finish(spawn("diagnose", tmp_path / "run"))
    assert (code, err) == (0, "")
    assert out.endswith("nothing wrong was found\n")
