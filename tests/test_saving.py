"""Runs are saved about once a second and at their end, and can be resumed exactly whatever comes in between."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpumlp import MLP, Dataset, files
from gpumlp.files import write_atomically
from gpumlp.nn.model_file import CHECKPOINT
from gpumlp.training.callbacks import TestCurve, read_curve
from gpumlp.training.checkpoint import Checkpoint, CheckpointError
from gpumlp.training.config import Config
from gpumlp.training.divergence import DivergenceError
from gpumlp.training.history import EpochRecord
from gpumlp.training.history_file import HistoryFile
from gpumlp.training.run import Run, RunFolder
from gpumlp.training.session import resume_config, train
from gpumlp.training.trainer import Callback, Trainer

from .command_helpers import DIGITS, SAVE_EACH, assert_same_run, finish, history, kill_at, lines, run, spawn


class Clock:
    """Replaces the clock by which runs are saved; an epoch takes `step` seconds."""

    def __init__(self, step: float) -> None:
        self.step, self.now = step, 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(0.4)
    note = RunFolder._note

    def tick(self: RunFolder, trainer: Trainer) -> None:
        if trainer.epoch > self._history.part.epochs:
            found.now += found.step
        note(self, trainer)

    monkeypatch.setattr("gpumlp.training.run.time", found)
    monkeypatch.setattr(RunFolder, "_note", tick)
    return found


def saved(folder: Path) -> int:
    """The epochs in a checkpoint, whose history is there."""
    return len(Checkpoint.load(folder / "checkpoint.safetensors").history)


class Look(Callback):
    """Notes after each epoch what is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, list[int]()

    def on_epoch_end(self, trainer: Trainer) -> None:
        assert lines(self.folder) == saved(self.folder)
        self.seen.append(saved(self.folder))


def trainer_and_folder(path: Path, data: Dataset, **options: Any) -> tuple[Trainer, RunFolder]:
    config = Config(hidden=(5,), batch_size=32, out=str(path)).resolved(300)
    return Trainer(MLP([20, 5, 4], device="cpu"), data, **options), RunFolder(path, config)


# -- When ----------------------------------------------------------------------------------------------------


def test_the_epochs_of_a_second_are_saved_together_and_those_after_them_at_the_end(
    tmp_path: Path, blobs: Dataset, clock: Clock
) -> None:
    trainer, folder = trainer_and_folder(tmp_path, blobs)
    look = Look(tmp_path)
    trainer.run(7, [folder, look])
    assert look.seen == [0, 0, 3, 3, 3, 6, 6]
    assert lines(tmp_path) == saved(tmp_path) == 7


def test_an_epoch_of_a_second_is_saved_at_once(tmp_path: Path, blobs: Dataset, clock: Clock) -> None:
    clock.step = 1.0
    trainer, folder = trainer_and_folder(tmp_path, blobs)
    look = Look(tmp_path)
    trainer.run(3, [folder, look])
    assert look.seen == [1, 2, 3]


@pytest.mark.parametrize(("runs", "steps"), [(1, 2), (3, 3 * 5), (20, 60)])
def test_saving_many_runs_takes_a_twentieth_of_the_time(
    tmp_path: Path, blobs: Dataset, clock: Clock, monkeypatch: pytest.MonkeyPatch, runs: int, steps: int
) -> None:
    def slowly(path: Path, content: bytes) -> None:
        clock.now += 0.125 * (path.name == CHECKPOINT)
        write_atomically(path, content)

    monkeypatch.setattr("gpumlp.training.run.write_atomically", slowly)
    for name in ("run", *map(str, range(runs - 1))):
        (tmp_path / name).mkdir()
    others = [trainer_and_folder(tmp_path / str(n), blobs) for n in range(runs - 1)]
    for trainer, folder in others:
        folder.on_train_begin(trainer)
    trainer, folder = trainer_and_folder(tmp_path / "run", blobs)
    clock.step, look = 0.5, Look(tmp_path / "run")
    trainer.run(130, [folder, look])
    # 2.5 s for each run, and 30 s at most, between two saves of this one; the first takes place after a second.
    between = [after - before for before, after in pairwise(sorted(set(look.seen)))]
    assert between[0] == 2
    assert set(between[1:]) == {steps}
    for each in [folder, *(folder for _, folder in others)]:
        each.on_train_end(trainer)
    assert not RunFolder._trained


def test_short_epochs_do_not_wait_for_the_disk(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.step, waits, wait = 0.0, [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: waits.append(file) or wait(file))
    counts = []
    for epochs in (2, 12):
        start(tmp_path / str(epochs), epochs=epochs, early_stopping=0)
        counts.append(len(waits))
        waits.clear()
    assert counts[0] == counts[1]


def test_an_interrupt_saves_the_last_epoch(tmp_path: Path, blobs: Dataset) -> None:
    trainer, folder = trainer_and_folder(tmp_path, blobs)

    class Interrupt(Callback):
        def on_progress(self, trainer: Trainer, samples: int) -> None:
            if trainer.epoch == 4 and samples > 100:
                raise KeyboardInterrupt

    assert trainer.run(9, [folder, Interrupt()]).interrupted
    assert lines(tmp_path) == saved(tmp_path) == 4


def test_a_second_interrupt_while_the_run_is_saved_loses_nothing(
    tmp_path: Path, blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, folder = trainer_and_folder(tmp_path, blobs)
    write, failed = folder._write_checkpoint, []

    def interrupted(*arguments: Any) -> None:
        if trainer.history.interrupted and not failed:
            failed.append(trainer.epoch)
            raise KeyboardInterrupt
        write(*arguments)

    def interrupt(trainer: Trainer) -> None:
        if trainer.epoch == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_write_checkpoint", interrupted)
    assert trainer.run(9, [interrupt, folder]).interrupted
    assert lines(tmp_path) == saved(tmp_path) == 4
    assert failed == [4]


def test_an_error_saves_the_last_epoch(tmp_path: Path, blobs: Dataset) -> None:
    trainer, folder = trainer_and_folder(tmp_path, blobs)

    def fail(trainer: Trainer) -> None:
        if trainer.epoch == 3:
            raise ArithmeticError("a bug")

    with pytest.raises(ArithmeticError):
        trainer.run(9, [folder, fail])
    assert lines(tmp_path) == saved(tmp_path) == 3


def test_divergence_saves_the_last_good_epoch(tmp_path: Path, blobs: Dataset) -> None:
    trainer, folder = trainer_and_folder(tmp_path, blobs, schedule=lambda rate, epoch: (rate, 1e30)[epoch == 3])
    with pytest.raises(DivergenceError):
        trainer.run(9, [folder])
    assert lines(tmp_path) == saved(tmp_path) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_state_of_no_epoch_is_not_saved(
    tmp_path: Path, blobs: Dataset, clock: Clock, error: type[BaseException]
) -> None:
    """After a second interrupt, or an error of the device, while an epoch is undone."""
    trainer, folder = trainer_and_folder(tmp_path, blobs)

    def undo(steps: int) -> None:
        raise error

    class Fail(Callback):
        def on_progress(self, trainer: Trainer, samples: int) -> None:
            if trainer.epoch == 5 and samples > 100:
                raise error

    trainer._undo = undo  # type: ignore[method-assign]
    with pytest.raises(error):
        trainer.run(9, [folder, Fail()])
    assert saved(tmp_path) == 3


# -- What a process leaves that dies between two writes, or within one ---------------------------------------

# Stops after epoch 10, and is saved after epochs 3, 6 and 9: the best one, 4, is between two of them,
# and epoch 2 is the best of the first three.
OPTIONS = {"learning_rate": 0.4, "early_stopping": 6, "test_curve": True, "epochs": 40, "diagnostics": "off"}
BEST, LAST = 4, 10
SAVED = {0, 2, 3, BEST, 6, 9, LAST}


def start(out: Path, **options: Any) -> None:
    fixed = {"dataset": "digits", "device": "cpu", "quiet": True, "hidden": (16,), "out": str(out)}
    train(Config(**{**fixed, **OPTIONS, **options}))


def at_every_write(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    """Call a function before each wait for the disk, and before each new file takes the place of an old one."""

    def watched(operation: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            before()
            operation(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", watched(os.fsync))
    monkeypatch.setattr(os, "replace", watched(os.replace))


def assert_goes_on(folder: Path, whole: Path) -> None:
    """The run in a folder can be read, and resumed to what the undisturbed one came to."""
    run = Run(folder)
    run.check()
    assert run.checkpoint.result.epochs == (0 if run.checkpoint.best is None else run.checkpoint.best.epochs)
    train(dataclasses.replace(resume_config(str(folder)), quiet=True))
    assert_same_run(folder, whole)
    best = [Checkpoint.load(each / "checkpoint.safetensors").result for each in (folder, whole)]
    assert best[0].epochs == best[1].epochs == BEST
    assert all(tensor.tobytes() == best[1].tensors[name].tobytes() for name, tensor in best[0].tensors.items())
    assert read_curve(folder / "test_curve.csv") == read_curve(whole / "test_curve.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    start(folder)
    assert (saved(folder), Run(folder).network_epoch) == (LAST, BEST)
    return folder


def test_killed_between_two_operations_a_run_goes_on_exactly(
    tmp_path: Path, whole: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = {}

    def copy() -> None:
        if (run / "checkpoint.safetensors").exists():
            files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.suffix != ".tmp"]
            content = tuple((str(path), path.read_bytes()) for path in files)
            if content not in copies:
                copies[content] = Path(shutil.copytree(run, tmp_path / str(len(copies))))
                (copies[content] / "run.lock").unlink()

    run = tmp_path / "run"
    with monkeypatch.context() as patches:
        at_every_write(patches, copy)
        start(run)
    parts = [(lines(each), Run(each).checkpoint) for each in copies.values()]
    assert {checkpoint.epochs for _, checkpoint in parts} == SAVED
    assert any(checkpoint.best and checkpoint.best.epochs < checkpoint.epochs for _, checkpoint in parts)
    assert any(count == checkpoint.epochs + 3 for count, checkpoint in parts), "lines come before the checkpoint"
    for folder in copies.values():
        assert_goes_on(folder, whole)


def test_a_disk_that_fills_up_at_any_write_is_one_error_and_loses_no_saved_epoch(
    tmp_path: Path, whole: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = calls = 0

    def full() -> None:
        nonlocal calls
        calls += 1
        if calls > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def error_of(run: Path) -> OSError | None:
        try:
            start(run)
        except OSError as error:
            return error
        return None

    epochs = []
    for room in range(6, 60):  # the first files of a run are written by then
        run, calls = tmp_path / str(room), 0
        with monkeypatch.context() as patches:
            at_every_write(patches, full)
            error = error_of(run)
        if error is None:
            break
        assert (error.errno, str(error.filename).startswith(str(run))) == (errno.ENOSPC, True)
        epochs.append(saved(run))
        assert not list(run.rglob("*.tmp"))
        assert_goes_on(run, whole)
    else:
        pytest.fail("the run has not ended")
    assert epochs == sorted(epochs)
    assert set(epochs) == SAVED


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_process_that_is_killed_between_two_writes_is_resumed_exactly(tmp_path: Path) -> None:
    words = (*DIGITS, "--hidden", 8, "--epochs", 300, "--early-stopping", 300, "--learning-rate", 0.2, "--quiet")
    environment, moments = {**SAVE_EACH, "SAVE_EVERY": "0.05"}, random.Random(2)
    folder, other = tmp_path / "run", tmp_path / "whole"
    process = spawn("train", *words, "--out", folder, env=environment)
    for _ in range(2):
        before = lines(folder)
        kill_at(process, lambda before=before: lines(folder) > before, moments.uniform(0.02, 0.1))
        assert 1 < saved(folder) < 300
        process = spawn("train", "--resume", folder, env=environment)
    assert finish(process)[0] == run("train", *words, "--out", other) == 0
    assert_same_run(folder, other)
    best, expected = (Checkpoint.load(each / "checkpoint.safetensors").result for each in (folder, other))
    assert best.part.epochs == expected.part.epochs
    assert all(tensor.tobytes() == expected.tensors[name].tobytes() for name, tensor in best.tensors.items())


# -- The parts -----------------------------------------------------------------------------------------------


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 0.5, 0.8, None, None, 0.1, 2.0, 500.0)


@pytest.mark.parametrize("kept", [0, 10, None])
def test_lines_that_were_written_before_an_interrupt_are_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int | None
) -> None:
    file, expected = HistoryFile(tmp_path / "history.jsonl"), b""
    file.write()
    for epoch in (1, 2):
        file.add(record(epoch))
        file.add(record(epoch))
        expected += record(epoch).to_json().encode() + b"\n"

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            file.append()
    with open(file.path, "r+b") as opened:
        opened.truncate(len(expected) if kept is None else kept)
    file.append()
    file.append()
    assert file.path.read_bytes() == file.part.read(file.path) == expected
    file.add(record(3))
    file.path.write_bytes(expected + b"another")
    with pytest.raises(CheckpointError, match="changed by another program"):
        file.append()


def test_the_lines_of_a_diverged_run_with_a_curve_are_all_there(tmp_path: Path, blobs: Dataset) -> None:
    trainer, folder = trainer_and_folder(tmp_path, blobs, schedule=lambda rate, epoch: (rate, 1e30)[epoch == 3])
    curve = TestCurve(tmp_path / "test_curve.csv", blobs)
    folder.before_saving.append(curve.write)
    with pytest.raises(DivergenceError):
        trainer.run(9, [folder, curve])
    assert [row["epoch"] for row in read_curve(curve.path)] == [1, 2, 3]
    assert [row["epoch"] for row in history(tmp_path)] == [1, 2, 3]


def test_a_state_that_is_kept_does_not_change_with_the_network(tmp_path: Path, clock: Clock) -> None:
    """The best epoch of a run without an average, and with one."""
    for options in ({}, {"ema": 0.9, "optimizer": "adam", "learning_rate": 0.05}):
        config = {**OPTIONS, **options, "epochs": 9, "early_stopping": 9}
        late, early = tmp_path / f"late{len(options)}", tmp_path / f"early{len(options)}"
        start(late, **config)
        best = Run(late).checkpoint.result
        assert best.epochs % 3 or not options
        start(early, **{**config, "epochs": best.epochs, "early_stopping": 0})
        expected = Run(early).checkpoint
        assert (best.steps, best.random_state) == (expected.steps, expected.random_state)
        assert all(best.tensors[name].tobytes() == each.tobytes() for name, each in expected.tensors.items())
        assert dataclasses.replace(best.config, epochs=0, early_stopping=0, out=None) == dataclasses.replace(
            expected.config, epochs=0, out=None
        )


def test_a_file_that_another_program_has_open_on_windows_is_replaced_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        if next(attempts) < 3:
            raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", refuse)
    for patience, content in ((files._PATIENCE, b"old"), (5.0, b"new")):
        attempts = iter(range(100))
        monkeypatch.setattr(files, "_PATIENCE", patience)
        (tmp_path / "file").write_bytes(b"old")
        with nullcontext() if patience else pytest.raises(PermissionError, match=r"Access is denied: '.*file'"):
            write_atomically(tmp_path / "file", b"new")
        assert next(attempts) == (4 if patience else 1)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]
