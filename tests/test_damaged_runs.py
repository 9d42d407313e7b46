"""Runs whose files are damaged, unreadable, links to elsewhere, or written by two processes at once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, Dataset, Trainer
from gpumlp.nn import model_file
from gpumlp.nn.model_file import ModelFileError
from gpumlp.training import history_file, lock
from gpumlp.training.config import Config, ConfigError
from gpumlp.training.history_file import CheckpointError
from gpumlp.training.lock import LockedError, RunLock
from gpumlp.training.run import RunFolder
from tests.command_helpers import DIGITS, finish, history, kill_at, run, spawn
from tests.file_helpers import Change, change_file, set_group, set_value

QUIET = (*DIGITS, "--quiet")
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with early stopping."""
    folder = tmp_path_factory.mktemp("runs")
    words = (*QUIET, "--epochs", 2, "--hidden", 8, "--early-stopping", 5)
    assert run("train", *words, "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((3, 64), np.float32))
    return Path(shutil.copytree(finished, tmp_path / "damaged"))


def line_of(folder: Path, **changes: object) -> str:
    return json.dumps({**history(folder)[0], **changes}) + "\n"


def refused(command: str, *words: object, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert run(command, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


# -- Damage ------------------------------------------------------------------------------------------------

CHECKPOINTS: dict[str, Change] = {
    "config is a list": set_group("config", "[]"),
    "history is a number": set_group("history", "1"),
    "random state is nested": set_group("random", DEEP),
    "model is nested": set_group("model", DEEP),
    "steps are infinite": set_group("optimizer", '{"steps": 1e999}'),
    "shape is infinite": set_group("model", '{"inputs": {"shape": [1e999]}}'),
    "NaN": set_value("model.layers.0.weight", np.nan),
    "a group of a later version": set_group("dropout", '{"counters": [1]}'),
    "a bias is missing": lambda tensors, metadata: tensors.pop("model.layers.1.bias"),
    "no damage that a checksum shows": lambda tensors, metadata: None,
}


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint_is_named_by_every_command(copy: Path, change: Change, capsys) -> None:
    file = copy / "checkpoint.safetensors"
    change_file(file, change)
    if change is CHECKPOINTS["no damage that a checksum shows"]:
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    before = contents(copy)
    for command, *words in (
        ("train", "--resume", copy, "--epochs", 3, "--quiet"),
        ("evaluate", copy),
        ("predict", copy, copy.parent / "x.npy"),
        ("export", copy),
        ("report", copy),
    ):
        assert str(file) in refused(command, *words, capsys=capsys)
    assert contents(copy) == before


def test_a_damaged_state_of_the_optimizer_leaves_the_network_usable(copy: Path, capsys) -> None:
    file = copy / "checkpoint.safetensors"
    change_file(file, lambda tensors, metadata: tensors.pop("optimizer.velocity.layers.1.bias"))
    message = refused("train", "--resume", copy, "--epochs", 3, "--quiet", capsys=capsys)
    assert f"{file} is damaged: the optimizer's velocity" in message
    assert run("evaluate", copy) == 0


def test_nan_in_the_weights_is_no_network_and_no_divergence(copy: Path, capsys) -> None:
    change_file(copy / "checkpoint.safetensors", set_value("model.layers.0.weight", np.nan))
    message = f"{copy / 'checkpoint.safetensors'} is damaged: model.layers.0.weight holds 1 values of 512"
    for command, *words in (
        ("evaluate", copy),
        ("diagnose", copy),
        ("export", copy),
        ("train", "--resume", copy, "--quiet"),
    ):
        assert message in refused(command, *words, capsys=capsys)
    assert not (copy / "diverged.json").exists()
    with pytest.raises(ModelFileError, match=r"model\.layers\.0\.weight holds 1 values of 512"):
        MLP.load(copy, device="cpu")


def test_a_network_with_nan_is_not_saved(tmp_path: Path) -> None:
    model = MLP([3, 2], device="cpu")
    model.parameters.data[0] = np.nan
    with pytest.raises(ModelFileError, match=r"cannot be saved: layers.0.weight holds 1 values of 6"):
        model.save(tmp_path / "model")


HISTORIES: dict[str, Callable[[Path], str]] = {
    "losses are texts": lambda run: line_of(run, train_loss=None, validation_loss="x"),
    "nested": lambda run: DEEP + "\n",
    "a huge number": lambda run: line_of(run, samples_per_second=77).replace(": 77", ": 1" + "0" * 400),
    "an infinite loss": lambda run: line_of(run, train_loss=77).replace(": 77", ": Infinity"),
    "half a surrogate": lambda run: line_of(run, **{"\ud800": 1}),
    "an epoch twice": lambda run: line_of(run) + line_of(run),
    "an epoch that is no number": lambda run: line_of(run, epoch="1"),
    "statistics are texts": lambda run: line_of(run, layers=[1, 2]),
}


@pytest.mark.parametrize("content", HISTORIES.values(), ids=HISTORIES)
def test_a_damaged_history_is_named(copy: Path, finished: Path, content, capsys) -> None:
    (copy / "history.jsonl").write_text(content(copy))
    file = str(copy / "history.jsonl")
    for command, *words in (("history", copy), ("train", "--resume", copy, "--quiet")):
        assert file in refused(command, *words, capsys=capsys)
    assert run("diagnose", copy) == 1
    captured = capsys.readouterr()
    assert (captured.out, file in captured.err, len(captured.err.splitlines())) == ("", True, 1)
    assert run("history", finished, copy) == 1
    captured = capsys.readouterr()
    assert file in captured.err
    assert str(finished) in captured.out
    assert run("evaluate", copy) == 0  # the network needs no history


def test_a_history_that_is_not_the_checkpoints_is_refused(copy: Path, capsys) -> None:
    file = copy / "history.jsonl"
    whole = file.read_text()
    for content in (whole.replace("0.", "1.", 1), whole[:-50], ""):
        file.write_text(content)
        assert f"{file} is damaged: it does not begin with" in refused(
            "train", "--resume", copy, "--quiet", capsys=capsys
        )
    file.unlink()
    assert f"{file}, which has the epochs" in refused("train", "--resume", copy, "--quiet", capsys=capsys)
    for name in ("config.json", "metrics.json"):
        (copy / name).unlink()
    assert f"{file} is missing" in refused("history", copy, capsys=capsys)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", DEEP),
        ("config.json", '{"epochs": 1' + "0" * 400 + "}"),
        ("config.json", '{"dataset": "\\ud800"}'),
        ("metrics.json", '{"a":' * 100_000),
        ("metrics.json", '{"test_accuracy": NaN}'),
        ("metrics.json", '{"test_accuracy": 17}'),
        ("metrics.json", '{"test_r2": 1.5}'),
        ("metrics.json", '{"test_mae": -1}'),
        ("metrics.json", '{"network_epoch": -1}'),
        ("diverged.json", b"\xff"),
    ],
)
def test_a_damaged_file_hides_no_other_run(copy: Path, finished: Path, name: str, change, capsys) -> None:
    (copy / name).write_bytes(change.encode() if isinstance(change, str) else change)
    assert str(copy / name) in refused("history", copy, capsys=capsys)
    assert run("history", finished, copy) == 1
    captured = capsys.readouterr()
    assert str(copy / name) in captured.err
    assert len(captured.err.splitlines()) == 1
    assert str(finished) in captured.out


def test_options_of_any_type_are_shown(copy: Path, finished: Path, capsys) -> None:
    config = json.loads((copy / "config.json").read_text())
    more = {"foo_loss": "x", "foo_accuracy": "y", "seconds_loss": [1], "other": {"a": None}}
    (copy / "config.json").write_text(json.dumps({**config, **more}))
    assert run("history", finished, copy) == 0
    assert "x" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "history.jsonl", "config.json", "metrics.json"])
def test_an_unreadable_file_is_not_a_missing_one(
    copy: Path, finished: Path, name: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, *more: int) -> bytes:
        if path == copy / name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *more)

    real = history_file.read_file
    monkeypatch.setattr(history_file, "read_file", read)
    monkeypatch.setattr(model_file, "read_file", read)
    command = "history" if name in ("config.json", "history.jsonl") else "evaluate"
    message = refused(command, copy, capsys=capsys)
    assert str(copy / name) in message
    assert message.endswith("cannot be read: Permission denied\n")
    if name != "checkpoint.safetensors":
        assert run("history", finished, copy) == 1
        assert str(finished) in capsys.readouterr().out


def test_a_folder_that_may_not_be_read_hides_no_other_run(
    copy: Path, finished: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if os.path.dirname(path) == str(copy):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    real = os.stat
    monkeypatch.setattr(os, "stat", stat)
    other = shutil.copytree(finished, copy.parent / "other")
    for words in ([copy, other], [copy.parent]):
        assert run("history", *words) == 1
        captured = capsys.readouterr()
        assert captured.err == f"gpumlp-history: {copy / 'config.json'}: Permission denied\n"
        assert str(other) in captured.out


def test_a_link_that_leads_to_itself_is_no_run(copy: Path, capsys) -> None:
    loop = copy.parent / "loop"
    loop.symlink_to("loop")
    assert run("history", copy.parent) == 0
    assert capsys.readouterr().err == ""
    for command, *words in (
        *((command, loop) for command in ("evaluate", "history", "diagnose", "report", "export")),
        ("evaluate", loop, copy),  # which are compared, and so followed, first
        ("predict", loop, copy.parent / "x.npy"),
        ("train", "--resume", loop),
    ):
        assert f"{loop}: no such folder" in refused(command, *words, capsys=capsys)
    for folder in (loop, loop / "below"):
        assert run("train", *DIGITS, "--out", folder) == 1
        assert f"gpumlp-train: {folder}: " in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are those of POSIX")
@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(copy: Path, name: str, capsys) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert f"{copy / name} cannot be read: expected a file" in refused("evaluate", copy, capsys=capsys)


# -- Links -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", [["--resume", "run", "--epochs", 9], ["--out", "run", "--overwrite"]])
def test_best_as_a_link_leads_no_write_and_no_deletion_out_of_the_run(
    copy: Path, finished: Path, words: list[object], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    other = Path(shutil.copytree(finished, "other"))
    copy.rename("run")
    shutil.rmtree("run/best")
    Path("run/best").symlink_to("../other")
    before = contents(Path("run")), contents(other)
    more = () if "--resume" in words else (*DIGITS, "--epochs", 1)
    assert "run/best is a symbolic link" in refused("train", *more, *words, "--quiet", capsys=capsys)
    assert (contents(Path("run")), contents(other)) == before


@pytest.mark.parametrize("patience", [0, 9])
def test_a_run_in_a_folder_named_best_stays_a_run_of_its_own(tmp_path: Path, patience: int, capsys) -> None:
    inner, outer = tmp_path / "run" / "best", tmp_path / "run"
    words = (*QUIET, "--hidden", 8, "--epochs", 1)
    assert run("train", *words, "--out", inner) == 0
    before = contents(inner)
    if patience:
        assert f"{inner} holds a run of its own" in refused(
            "train", *words, "--out", outer, "--early-stopping", patience, capsys=capsys
        )
        assert contents(outer) == {f"best/{name}": content for name, content in before.items()}
    for more in ((), ("--overwrite",)):
        assert run("train", *words, "--out", outer, *more) == 0
        assert contents(inner) == before
    assert run("evaluate", inner) == 0
    assert "best epoch" not in capsys.readouterr().out
    assert run("train", "--resume", inner, "--epochs", 2, "--quiet") == 0
    assert len(history(inner)) == 2


@pytest.mark.parametrize("name", ["history.jsonl", "diverged.json", "run.lock"])
def test_files_of_the_user_with_the_names_of_a_run_are_not_overwritten(tmp_path: Path, name: str, capsys) -> None:
    (tmp_path / name).write_text("precious")
    assert str(tmp_path) in refused("train", *QUIET, "--epochs", 1, "--out", tmp_path, capsys=capsys)
    assert contents(tmp_path) == {name: b"precious"}


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "history.jsonl", "config.json", "metrics.json"])
@pytest.mark.parametrize("again", ["resumed", "replaced"])
def test_a_file_that_is_a_link_is_replaced_by_a_file(copy: Path, name: str, again: str) -> None:
    elsewhere = copy.parent / "elsewhere"
    (copy / name).rename(elsewhere)
    (copy / name).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    words = ("--resume", copy) if again == "resumed" else (*DIGITS, "--hidden", 8, "--out", copy, "--overwrite")
    assert run("train", *words, "--epochs", 3, "--quiet") == 0
    assert elsewhere.read_bytes() == before
    assert not (copy / name).is_symlink()
    assert len(history(copy)) == 3


def test_links_named_like_temporary_files_are_left_alone(copy: Path) -> None:
    precious = copy.parent / "precious.txt"
    precious.write_text("precious")
    for name in ("checkpoint.safetensors.tmp", ".gpumlp-0.tmp", "events.out.tfevents.0", "run.lock.tmp"):
        (copy / name).symlink_to(precious)
    assert run("train", "--resume", copy, "--epochs", 3, "--quiet") == 0
    assert precious.read_text() == "precious"


def test_a_lock_that_is_a_link_is_refused(copy: Path, capsys) -> None:
    precious = copy.parent / "precious.txt"
    precious.write_text("precious")
    (copy / "run.lock").symlink_to(precious)
    words = ("--resume", copy, "--epochs", 3, "--quiet")
    assert f"{copy / 'run.lock'} is not a lock of gpumlp: rename it" in refused("train", *words, capsys=capsys)
    assert precious.read_text() == "precious"
    if hasattr(os, "mkfifo"):
        (copy / "run.lock").unlink()
        os.mkfifo(copy / "run.lock")
        assert f"{copy / 'run.lock'} is not a lock of gpumlp" in refused("train", *words, capsys=capsys)


# -- Two processes -----------------------------------------------------------------------------------------

HOLD = "import sys; from pathlib import Path; from gpumlp.training.lock import RunLock; "
HOLD += "lock = RunLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"


def test_a_run_is_written_by_one_process_and_read_by_all(copy: Path, capsys) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(copy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    before = contents(copy)
    message = f"{copy}: another process ({holder.pid} on "
    for words in (["--resume", copy], [*DIGITS, "--out", copy, "--overwrite"]):
        assert message in refused("train", *words, "--quiet", capsys=capsys)
    assert contents(copy) == before
    for command in ("evaluate", "history", "diagnose"):
        assert run(command, copy) == 0
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (copy / "run.lock").exists()
    assert run("train", "--resume", copy, "--epochs", 3, "--quiet") == 0
    assert not (copy / "run.lock").exists()


def test_two_processes_that_resume_one_run_at_once_leave_one_history(copy: Path) -> None:
    words = ("--resume", copy, "--epochs", 60, "--early-stopping", 0, "--quiet")
    ends = [finish(process) for process in [spawn("train", *words) for _ in range(2)]]
    assert sorted(code for code, _, _ in ends) in ([0, 2], [0, 0])  # the second may begin after the first
    for code, _, err in ends:
        assert err == "" or (code == 2 and "another process" in err)
    assert [record["epoch"] for record in history(copy)] == list(range(1, 61))


@pytest.mark.skipif(os.name == "nt", reason="no limit for the size of files")
def test_a_full_disk_is_named_with_the_file_and_leaves_no_folder(tmp_path: Path) -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    code += "from gpumlp.train import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, *map(str, (*QUIET, "--out", tmp_path / "run"))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        f"gpumlp-train: {tmp_path / 'run' / 'checkpoint.safetensors'}: File too large\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_released_however_training_ends(tmp_path: Path) -> None:
    assert run("train", *QUIET, "--learning-rate", 1e30, "--out", tmp_path / "run") == 1
    assert run("train", *QUIET, "--epochs", 1, "--out", tmp_path / "run") == 2  # there is a run
    assert not (tmp_path / "run" / "run.lock").exists()
    first = RunLock(tmp_path)
    with pytest.raises(ConfigError, match="another process"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()
    assert not (tmp_path / "run.lock").exists()


def test_without_locks_a_changed_history_stops_the_run(
    tmp_path: Path, blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="a POSIX lock")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    first, second = RunLock(tmp_path), RunLock(tmp_path)  # the file system has none
    config = Config(hidden=(5,), out=str(tmp_path)).resolved(300)
    folder = RunFolder(tmp_path, config)

    def interfere(trainer: Trainer) -> None:
        if trainer.epoch == 2:
            with open(tmp_path / "history.jsonl", "a") as file:
                file.write(json.dumps({"epoch": 3}) + "\n")

    with pytest.raises(CheckpointError, match=r"history.jsonl was changed by another program"):
        Trainer(MLP([20, 5, 4], device="cpu"), blobs).run(4, [folder, interfere])
    second.release()
    first.release()
    assert lock.LOCK not in {path.name for path in tmp_path.iterdir()}


class Msvcrt:
    """Locks of Windows on a byte of a file, which can be read only through the descriptor that has locked it."""

    LK_UNLCK, LK_NBLCK = 0, 2

    def __init__(self) -> None:
        self.locked: dict[int, tuple[int, int]] = {}  # descriptor and byte, by file
        self._read = os.read

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert count == 1
        file, wanted = os.fstat(descriptor).st_ino, (descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))
        if self.locked.get(file) != (wanted if mode == self.LK_UNLCK else None):
            raise PermissionError(errno.EACCES, "Permission denied")
        self.locked = {file: wanted} if mode == self.LK_NBLCK else {}  # only one file is locked

    def read(self, descriptor: int, size: int) -> bytes:
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        owner, byte = self.locked.get(os.fstat(descriptor).st_ino, (descriptor, 0))
        if owner != descriptor and place <= byte < place + size:
            raise PermissionError(errno.EACCES, "Permission denied")
        return self._read(descriptor, size)


def test_on_windows_a_lock_is_released_before_its_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", system := Msvcrt(), raising=False)
    monkeypatch.setattr(os, "read", system.read)
    for _ in range(2):  # the second time, a file that a killed process has left is there
        with RunLock(tmp_path):
            assert len(system.locked) == 1
            with pytest.raises(LockedError, match=rf"process \({os.getpid()} on .*\) is training this run"):
                RunLock(tmp_path)
        assert not system.locked
        assert not list(tmp_path.iterdir())
        (tmp_path / lock.LOCK).write_bytes(b"12 on there\r\n")


def test_a_killed_run_can_be_resumed_at_once(tmp_path: Path) -> None:
    process = spawn("train", *QUIET, "--epochs", 2000, "--hidden", 8, "--out", tmp_path / "run")
    kill_at(process, (tmp_path / "run" / "history.jsonl").exists)
    saved = max(1, len(history(tmp_path / "run")))
    assert run("train", "--resume", tmp_path / "run", "--epochs", saved + 1, "--quiet") == 0
