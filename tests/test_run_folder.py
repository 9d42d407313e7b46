"""A run's folder: its files, their content, and overwriting."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import gpumlp
from gpumlp.training.checkpoint import Checkpoint, CheckpointError
from gpumlp.training.config import Config, ConfigError
from gpumlp.training.divergence import DivergenceError
from gpumlp.training.history import EpochRecord
from gpumlp.training.run import Run, RunFolder, open_run
from gpumlp.training.session import Outcome, load_run, resume_config, train
from gpumlp.training.trainer import Trainer
from tests.command_helpers import DIGITS, assert_same_run, history, run, tensors
from tests.file_helpers import as_version_0_2

FILES = {"config.json", "history.jsonl", "checkpoint.safetensors", "metrics.json"}


def start(out: Path, **options: object) -> Outcome:
    fixed = {"dataset": "digits", "device": "cpu", "quiet": True, "hidden": (16,), "out": str(out)}
    return train(Config(**{**fixed, "epochs": 3, **options}))


def go_on(run: Path, **options: object) -> Outcome:
    return train(Config(**{**vars(resume_config(str(run))), **options}))


def test_it_holds_four_files(tmp_path: Path) -> None:
    start(tmp_path / "a" / "run")
    assert {file.name for file in (tmp_path / "a" / "run").iterdir()} == FILES


def test_the_configuration_is_complete(tmp_path: Path) -> None:
    start(tmp_path / "run", seed=7)
    config = Config.from_dict(json.loads((tmp_path / "run" / "config.json").read_text()))
    assert (config.seed, config.epochs, config.batch_size, config.validation) == (7, 3, 32, 143)
    assert (config.learning_rate, config.momentum, config.out) == (0.1, 0.9, str(tmp_path / "run"))
    assert config == open_run(str(tmp_path / "run")).config


def test_the_history_has_a_line_an_epoch(tmp_path: Path) -> None:
    outcome = start(tmp_path / "run")
    records = history(tmp_path / "run")
    assert [EpochRecord.from_dict(record) for record in records] == outcome.history.records
    assert set(records[0]) == {
        *("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
        *("learning_rate", "seconds", "samples_per_second", "layers"),
    }


def test_the_history_and_checkpoint_are_written_as_epochs_end(
    tmp_path: Path, blobs: gpumlp.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpumlp.training.run.INTERVAL", 0)
    config = Config(hidden=(5,), batch_size=32, out=str(tmp_path)).resolved(300)
    trainer = Trainer(gpumlp.MLP([20, 5, 4], device="cpu"), blobs)
    seen = []

    def look(trainer: Trainer) -> None:
        saved = Checkpoint.load(tmp_path / "checkpoint.safetensors")
        seen.append((trainer.epoch, len(history(tmp_path)), len(saved.history), saved.steps))

    trainer.run(3, [RunFolder(tmp_path, config), look])
    assert seen == [(1, 1, 1, 3), (2, 2, 2, 6), (3, 3, 3, 9)]


@pytest.mark.parametrize("before_the_line", [True, False])
def test_an_interrupt_between_an_epoch_and_its_saving_loses_nothing(
    tmp_path: Path, blobs: gpumlp.Dataset, monkeypatch: pytest.MonkeyPatch, before_the_line: bool
) -> None:
    folder = RunFolder(tmp_path, Config(hidden=(5,), out=str(tmp_path)).resolved(300))
    save = folder._write_checkpoint
    monkeypatch.setattr("gpumlp.training.run.INTERVAL", 0)

    def interrupt(trainer: Trainer) -> None:
        if trainer.epoch == 2:
            monkeypatch.setattr(folder, "_write_checkpoint", save)
            raise KeyboardInterrupt
        if not before_the_line:
            save(trainer)

    if not before_the_line:
        monkeypatch.setattr(folder, "_write_checkpoint", interrupt)
    trainer = Trainer(gpumlp.MLP([20, 5, 4], device="cpu"), blobs)
    assert trainer.run(3, [interrupt, folder] if before_the_line else [folder]).interrupted
    assert len(history(tmp_path)) == len(Checkpoint.load(tmp_path / "checkpoint.safetensors").history) == 2


def test_the_metrics(tmp_path: Path) -> None:
    outcome = start(tmp_path / "run", seed=3)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics == outcome.metrics
    folder, model, test = load_run(str(tmp_path / "run"))
    result = model.evaluate(test)
    assert (metrics["test_accuracy"], metrics["test_loss"]) == (result.accuracy, result.loss)
    assert metrics["validation_accuracy"] == history(tmp_path / "run")[-1]["validation_accuracy"]
    assert 0 < metrics["test_accuracy"] <= 1
    expected = {"epochs": 3, "device": "cpu", "dataset": "digits", "seed": 3, "version": gpumlp.__version__}
    assert expected.items() <= metrics.items()
    assert metrics["device_name"]
    assert metrics["seconds"] == pytest.approx(sum(record["seconds"] for record in history(folder.path)))
    assert metrics["samples_per_second"] == pytest.approx(3 * 1294 / metrics["seconds"])


def test_same_seed_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        start(tmp_path / name, seed=seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    one, other = tensors(tmp_path / "a"), tensors(tmp_path / "c")
    assert all(not np.array_equal(one[name], other[name]) for name in one)


# -- Overwriting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "state"),
    [(FILES, "a finished"), (FILES - {"metrics.json"}, "an unfinished"), ({"config.json"}, "an unfinished")],
)
def test_a_folder_with_a_run_is_refused(tmp_path: Path, left: set[str], state: str) -> None:
    start(tmp_path / "run")
    for name in FILES - left:
        (tmp_path / "run" / name).unlink()
    before = {name: (tmp_path / "run" / name).read_bytes() for name in left}
    with pytest.raises(ConfigError, match=f"^out: .*holds {state} run.*--resume.*--overwrite"):
        start(tmp_path / "run", seed=1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    start(tmp_path / "run", epochs=5)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    start(tmp_path / "run", seed=1, overwrite=True)
    start(tmp_path / "other", seed=1)
    assert_same_run(tmp_path / "run", tmp_path / "other")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_the_results_of_a_run_that_is_replaced_never_stand_beside_the_new_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "run")
    there, write = [], RunFolder._write_checkpoint

    def look_and_write(folder: RunFolder, trainer: Trainer) -> None:
        there.append((tmp_path / "run" / "metrics.json").exists())
        write(folder, trainer)

    monkeypatch.setattr(RunFolder, "_write_checkpoint", look_and_write)
    start(tmp_path / "run", overwrite=True)
    assert there
    assert not any(there)


def test_runs_without_a_name_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(dataset="digits", device="cpu", quiet=True, epochs=1, hidden=())
    folders = {train(config).folder.path for _ in range(3)}
    assert {folder.parent for folder in folders} == {Path("runs")}
    assert len(folders) == 3
    assert all(folder.name.partition("-digits")[1] for folder in folders)


# -- Resuming ----------------------------------------------------------------------------------------------


def test_added_epochs_give_the_same_result_as_one_run(tmp_path: Path) -> None:
    start(tmp_path / "run", epochs=2)
    (tmp_path / "run").rename(tmp_path / "moved")
    outcome = go_on(tmp_path / "moved", epochs=5)
    assert outcome.metrics is not None
    assert outcome.metrics["epochs"] == 5
    start(tmp_path / "other", epochs=5)
    assert_same_run(tmp_path / "moved", tmp_path / "other")
    assert json.loads((tmp_path / "moved" / "config.json").read_text())["epochs"] == 5


def test_a_history_longer_than_its_checkpoint_is_truncated(tmp_path: Path) -> None:
    start(tmp_path / "run", epochs=2)
    with open(tmp_path / "run" / "history.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_loss"')
    go_on(tmp_path / "run", epochs=4)
    start(tmp_path / "other", epochs=4)
    assert_same_run(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.2}, {"hidden": (8,)}, {"out": "elsewhere"}])
def test_other_changes_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    start(tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=f"^{next(iter(change))}: .*own configuration.*epochs"):
        go_on(tmp_path / "run", **change)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_fewer_epochs_than_there_are_are_refused(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(ConfigError, match="epochs: the run has 3 already, got 2"):
        go_on(tmp_path / "run", epochs=2)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none", "no such folder"), (tmp_path, "there is no run in")):
        with pytest.raises(CheckpointError, match=message):
            open_run(str(path))


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    def make(seed: int) -> None:
        x, y = np.random.default_rng(seed).normal(size=(50, 6)), np.arange(50) % 3
        np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)

    make(seed=0)
    start(tmp_path / "run", dataset=str(tmp_path / "mine.npz"))
    make(seed=1)
    for again in (lambda: go_on(tmp_path / "run"), lambda: load_run(str(tmp_path / "run"))):
        with pytest.raises(CheckpointError, match=r"the run was trained on mine.npz \(50x6-float64-"):
            again()


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    start(tmp_path / "run")
    for content in ("{", "[]"):
        (tmp_path / "run" / "metrics.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"metrics\.json is damaged"):
            _ = open_run(str(tmp_path / "run")).metrics


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    start(tmp_path / "good", epochs=2, learning_rate=0.1)
    with pytest.raises(DivergenceError, match=r"epoch 1.*learning_rate 1e\+30, largest gradient"):
        start(tmp_path / "bad", learning_rate=1e30)
    saved = Checkpoint.load(tmp_path / "bad" / "checkpoint.safetensors")
    assert len(saved.history) == len(history(tmp_path / "bad")) == 0
    assert all(np.isfinite(tensor).all() for tensor in saved.tensors.values())
    assert not (tmp_path / "bad" / "metrics.json").exists()


def test_a_last_epoch_that_only_the_test_set_sees_diverge_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(
        DivergenceError, match=r"test loss after epoch 1 is .* Check that the test samples are scaled"
    ):
        start(tmp_path / "run", epochs=1, batch_size="full", validation=0, learning_rate=1e30)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert math.isfinite(history(tmp_path / "run")[0]["train_loss"])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_about_a_network_are_removed_with_it(tmp_path: Path) -> None:
    words = (*DIGITS, "--hidden", 8, "--quiet", "--out", tmp_path / "run")
    assert run("train", *words, "--epochs", 2, "--early-stopping", 5) == 0
    fresh = names(tmp_path / "run")
    assert "best/checkpoint.safetensors" in fresh
    exported = ("network.npz", "network.onnx", "network.html", "network.safetensors")
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        for name in ("report.html", *exported):
            (folder / name).write_text("of the first network")
    (tmp_path / "run" / "notes.txt").write_text("my own")
    assert run("train", "--resume", tmp_path / "run", "--epochs", 2) == 0  # nothing is trained
    assert "network.npz" in names(tmp_path / "run")
    assert run("train", *words, "--epochs", 1, "--overwrite") == 0
    left = [name for name in fresh if not name.startswith("best/")]
    assert names(tmp_path / "run") == sorted([*left, "notes.txt"])
    assert not (tmp_path / "run" / "best").exists()


def test_a_resumed_run_keeps_no_report_of_its_earlier_state(tmp_path: Path) -> None:
    assert run("train", *DIGITS, "--hidden", 8, "--quiet", "--epochs", 1, "--out", tmp_path) == 0
    (tmp_path / "report.html").write_text("after 1 epoch")
    assert run("train", "--resume", tmp_path, "--epochs", 2, "--quiet") == 0
    assert not (tmp_path / "report.html").exists()


def test_a_new_run_keeps_other_files_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    own = [tmp_path / "report.html", tmp_path / "network.npz", tmp_path / "best" / "checkpoint.safetensors"]
    for path in own:
        path.write_text("my own")
    assert run("train", *DIGITS, "--hidden", 8, "--quiet", "--epochs", 1, "--out", tmp_path) == 0
    assert [path.read_text() for path in own] == ["my own"] * 3


def test_data_beside_a_run_is_not_removed_with_it(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((60, 4)), np.arange(60) % 3
    np.savez(tmp_path / "network.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ("--dataset", tmp_path / "network.npz", "--device", "cpu", "--quiet", "--epochs", 1, "--out", tmp_path)
    assert run("train", *words) == 0
    assert run("train", *words, "--overwrite") == 0
    assert (tmp_path / "network.npz").exists()


def test_the_best_network_of_a_run_cannot_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*DIGITS, "--hidden", 8, "--quiet", "--early-stopping", 9)
    assert run("train", *words, "--epochs", 3, "--out", tmp_path / "run") == 0
    best = tmp_path / "run" / "best"
    assert run("train", "--resume", best, "--epochs", 9) == 2
    assert capsys.readouterr().err.endswith(f"resume that run: --resume {tmp_path / 'run'}\n")
    assert run("train", *words, "--out", best, "--overwrite") == 2
    assert "keeps its best network; choose another folder" in capsys.readouterr().err
    monkeypatch.chdir(best)
    assert run("train", "--resume", ".") == 2
    assert f"--resume {tmp_path / 'run'}\n" in capsys.readouterr().err
    assert names(best) == ["checkpoint.safetensors"]
    for name in ("metrics.json", "history.jsonl", "config.json"):  # as left by versions that resumed it
        (best / name).write_bytes((tmp_path / "run" / name).read_bytes())
    assert run("train", "--resume", tmp_path / "run", "--epochs", 5, "--quiet") == 0
    assert names(best) == ["checkpoint.safetensors"]
    epochs = len(Checkpoint.load(best / "checkpoint.safetensors").history)
    capsys.readouterr()
    assert run("history", best) == 0
    assert len(capsys.readouterr().out.splitlines()) >= epochs + 1


def own_data(path: Path, seed: int) -> None:
    rng = np.random.default_rng(0)
    test = np.random.default_rng(seed)
    np.savez(
        path,
        x_train=rng.random((90, 5)),
        y_train=np.arange(90) % 3,
        x_test=test.random((9, 5)),
        y_test=np.arange(9) % 3,
    )


def test_a_run_is_evaluated_on_its_own_test_set_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_data(tmp_path / "own.npz", seed=1)
    monkeypatch.chdir(tmp_path)
    assert run("train", "--dataset", "own.npz", "--device", "cpu", "--epochs", "1", "--out", "run", "--quiet") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("evaluate", "../run") == 0
    own_data(tmp_path / "own.npz", seed=2)
    for words in (("evaluate", "../run"), ("train", "--resume", "../run", "--epochs", "2")):
        assert run(*words) == 2
        assert "the run was tested on other data" in capsys.readouterr().err


def test_a_quiet_run_can_be_resumed_quietly_and_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert run("train", "--dataset", "digits", "--device", "cpu", "--epochs", "1", "--out", out, "--quiet") == 0
    assert run("train", "--resume", out, "--epochs", "2", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert run("train", "--resume", out, "--epochs", "3") == 0
    assert "3/3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
    ids=["interrupt", "full disk"],
)
def test_a_run_that_ends_before_its_first_checkpoint_leaves_nothing_behind(
    error: BaseException,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("gpumlp.training.run.RunFolder._write_checkpoint", fail)
    out = tmp_path / "run"
    assert run("train", "--dataset", "digits", "--device", "cpu", "--epochs", "1", "--out", str(out)) == code
    assert capsys.readouterr().err == f"gpumlp-train: {message}\n"
    assert not out.exists()


# -- Runs of earlier versions ------------------------------------------------------------------------------


def test_a_run_of_version_0_2_is_used_and_resumed_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path / "whole", epochs=5, early_stopping=4)
    start(tmp_path / "old", epochs=3, early_stopping=4)
    as_version_0_2(tmp_path / "old")
    saved = Checkpoint.load(tmp_path / "old" / "checkpoint.safetensors")
    assert (saved.epochs, len(saved.history), saved.best) == (3, 3, None)
    for command in ("evaluate", "history", "diagnose", "export", "report"):
        assert run(command, tmp_path / "old") == 0, capsys.readouterr().err
    go_on(tmp_path / "old", epochs=5)
    assert_same_run(tmp_path / "old", tmp_path / "whole")
    one, other = (Checkpoint.load(tmp_path / name / "checkpoint.safetensors").result for name in ("old", "whole"))
    assert one.epochs == other.epochs
    assert one.tensors["model.layers.0.weight"].tobytes() == other.tensors["model.layers.0.weight"].tobytes()


def test_the_best_network_that_version_0_2_kept_is_taken_over(tmp_path: Path) -> None:
    epochs = len(start(tmp_path / "old", epochs=50, learning_rate=0.2, early_stopping=3).history)
    best = Run(tmp_path / "old").network_epoch
    assert best == epochs - 3
    as_version_0_2(tmp_path / "old")
    assert Run(tmp_path / "old").network_epoch == epochs
    go_on(tmp_path / "old", early_stopping=4)
    assert (
        Run(tmp_path / "old").network_epoch
        == Checkpoint.load(tmp_path / "old" / "best" / "checkpoint.safetensors").epochs
    )
