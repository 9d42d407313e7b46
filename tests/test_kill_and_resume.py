"""Processes that are killed, interrupted or run out of disk space can be resumed bit for bit."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import numpy as np
import pytest

from gpumlp.training.checkpoint import Checkpoint
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
    tensors,
    wait_until,
)

resource = pytest.importorskip("resource", reason="signals and limits are those of POSIX")

EPOCHS = 90
RUNS = {
    "momentum": ("--momentum", 0.9, "--schedule", "step", "--step-size", 7, "--gamma", 0.9),
    "all at once": (
        *("--optimizer", "rmsprop", "--momentum", 0.5, "--schedule", "cosine", "--warmup", 50, "--clip-norm", 1),
        *("--dropout", 0.1, "--input-dropout", 0.1, "--max-norm", 3, "--ema", 0.99, "--label-smoothing", 0.1),
        *("--class-weight", "balanced", "--validation", 0.1, "--activation", "gelu"),
    ),
}


def checkpoint(run: Path) -> Path:
    return run / "checkpoint.safetensors"


def start(out: Path, *words: object, **options: object):
    words = (*DIGITS, "--epochs", EPOCHS, "--hidden", 16, "--out", out, *words)
    return spawn("train", *words, env=SAVE_EACH, **options)


@pytest.mark.parametrize(("name", "kills"), [("momentum", 5), ("all at once", 2)])
def test_killed_at_any_moment_a_run_resumes_exactly(tmp_path: Path, name: str, kills: int) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    uninterrupted = start(whole, *RUNS[name])
    moments = random.Random(0)
    process = start(run, *RUNS[name])
    for kill in range(kills):
        target = lines(run) + moments.randrange(1, 12)
        kill_at(process, lambda at_least=target: lines(run) >= at_least, moments.uniform(0, 0.01))
        saved = Checkpoint.load(checkpoint(run))
        epochs = [record["epoch"] for record in history(run)]
        assert epochs == list(range(1, len(epochs) + 1))
        assert len(saved.history) in (len(epochs), len(epochs) - 1)
        assert 0 < len(saved.history) < EPOCHS, kill
        assert all(np.isfinite(tensor).all() for tensor in saved.tensors.values())
        process = spawn("train", "--resume", run, env=SAVE_EACH)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "resuming" in out
    assert finish(uninterrupted)[0] == 0
    assert_same_run(run, whole)
    one, other = Checkpoint.load(checkpoint(run)), Checkpoint.load(checkpoint(whole))
    assert (one.steps, one.random_state) == (other.steps, other.random_state)
    assert {file.name for file in run.iterdir()} == {file.name for file in whole.iterdir()}


def test_killed_while_it_starts_there_is_a_run_or_none(tmp_path: Path) -> None:
    moments = random.Random(1)
    for attempt in range(6):
        run = tmp_path / str(attempt)
        process = start(run)
        kill_at(process, run.exists, moments.uniform(0, 0.004))
        if checkpoint(run).exists():
            assert Checkpoint.load(checkpoint(run)).config.epochs == EPOCHS
        else:  # then the same command starts again
            assert not (run / "config.json").exists()


def in_the_background():
    """What a script does with "&"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("number", "begin"), [(signal.SIGINT, None), (signal.SIGTERM, None), (signal.SIGTERM, in_the_background)]
)
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(number: signal.Signals, begin, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    uninterrupted = start(whole)
    process = start(run, preexec_fn=begin)
    wait_until(lambda: lines(run) >= 5, process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 130
    epochs = len(Checkpoint.load(checkpoint(run)).history)
    assert 5 <= epochs < EPOCHS
    assert len(history(run)) == epochs
    assert err == (
        f"gpumlp-train: interrupted; the run is saved after epoch {epochs} of {EPOCHS}. "
        f"Resume it with: python -m gpumlp.train --resume {run}\n"
    )
    assert not (run / "metrics.json").exists()
    code, _, err = finish(spawn("train", "--resume", run))
    assert (code, err) == (0, "")
    assert finish(uninterrupted)[0] == 0
    assert_same_run(run, whole)


def limit_files_to(size: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    # The history grows until it is larger than a limit above the checkpoint's size.
    folder = tmp_path / "run"
    code, _, _ = finish(start(folder, "--epochs", 2))
    assert code == 0
    limit = checkpoint(folder).stat().st_size + 1000
    words, options = ("--resume", folder, "--epochs", 100), {"preexec_fn": limit_files_to(limit), "env": SAVE_EACH}
    code, _, err = finish(spawn("train", *words, **options))
    assert code == 1
    assert err == f"gpumlp-train: {folder / 'history.jsonl'}: No space left on device\n"
    saved = Checkpoint.load(checkpoint(folder))
    assert len(history(folder)) == len(saved.history)
    assert 2 < len(saved.history) < 100
    assert not list(folder.glob("*.tmp"))
    # With room again it goes on, exactly.
    assert run("train", "--resume", folder, "--quiet") == 0
    whole = tmp_path / "whole"
    words = (*DIGITS, "--epochs", 100, "--hidden", 16, "--out", whole, "--quiet")
    assert run("train", *words) == 0
    assert_same_run(folder, whole)


def test_a_disk_that_is_full_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert finish(start(run, "--epochs", 2))[0] == 0
    before = checkpoint(run).read_bytes()
    code, _, err = finish(spawn("train", "--resume", run, "--epochs", 4, preexec_fn=limit_files_to(1000)))
    assert (code, err) == (1, f"gpumlp-train: {checkpoint(run)}: File too large\n")
    assert checkpoint(run).read_bytes() == before
    assert (run / "metrics.json").exists()
    assert len(tensors(run)) == 8


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = finish(start(tmp_path / "file" / "run"))
    assert code == 2
    assert err == f"gpumlp-train: out: expected a folder, got the file {tmp_path / 'file'}; choose another name\n"
