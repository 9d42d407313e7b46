"""Runs with early stopping: output, files, errors, and resuming."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gpumlp import MLP, EarlyStopping, ModelFileError, fit, load_digits
from gpumlp.training.checkpoint import Checkpoint
from gpumlp.training.config import Config, ConfigError
from gpumlp.training.history_file import HistoryPart
from gpumlp.training.run import open_run
from gpumlp.training.session import load_run, resume_config, train
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
)

STOPPED = (*DIGITS, "--hidden", 16, "--learning-rate", 0.2, "--early-stopping", 4)


def assert_same_best(first: Path, second: Path) -> None:
    one, other = (Checkpoint.load(folder / "best" / "checkpoint.safetensors") for folder in (first, second))
    assert len(one.history) == len(other.history)
    assert one.steps == other.steps
    for name, tensor in one.tensors.items():
        assert tensor.tobytes() == other.tensors[name].tobytes()


def start(out: Path, **options: object):
    fixed = {"dataset": "digits", "device": "cpu", "quiet": True, "hidden": (16,), "learning_rate": 0.2}
    return train(Config(**{**fixed, "out": str(out), **options}))


def test_the_command_stops_and_keeps_the_best_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *STOPPED, "--out", tmp_path / "run") == 0
    losses = [record["validation_loss"] for record in history(tmp_path / "run")]
    best = 1 + losses.index(min(losses))
    assert len(losses) == best + 4 < 50
    said = (
        f"stopped early: the validation loss was lowest after epoch {best} ({min(losses):.4f}); the network of "
        f"that epoch is in {tmp_path / 'run' / 'best'}, and the results are its own\n"
    )
    assert said in capsys.readouterr().out
    assert (
        run("train", *DIGITS, "--hidden", 16, "--learning-rate", 0.2, "--epochs", best, "--out", tmp_path / "b")
        == 0
    )
    same = tmp_path / "b" / "checkpoint.safetensors"
    kept = tmp_path / "run" / "best" / "checkpoint.safetensors"
    for name, tensor in safetensors.numpy.load_file(same).items():
        assert safetensors.numpy.load_file(kept)[name].tobytes() == tensor.tobytes()
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    capsys.readouterr()
    assert run("evaluate", tmp_path / "run" / "best") == 0
    out = capsys.readouterr().out
    assert f"digits test accuracy: {100 * metrics['test_accuracy']:.2f} %" in out
    assert out.endswith(f"this is the network after the best epoch of the run in {tmp_path / 'run'}\n")
    assert run("history", tmp_path / "run" / "best") == 0
    assert f"lowest validation loss: {min(losses):.4f}, after epoch {best}\n" in capsys.readouterr().out


def test_killed_and_resumed_it_stops_at_the_same_epoch_with_the_same_weights(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = (*STOPPED, "--early-stopping", 25, "--epochs", 400)
    process = spawn("train", *options, "--out", cut, env=SAVE_EACH)
    moments = random.Random(3)
    for _ in range(3):
        target = lines(cut) + moments.randrange(1, 8)
        kill_at(process, lambda at_least=target: lines(cut) >= at_least, moments.uniform(0, 0.01))
        process = spawn("train", "--resume", cut, env=SAVE_EACH)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "stopped early" in out
    assert finish(spawn("train", *options, "--out", whole))[0] == 0
    assert_same_run(cut, whole)
    assert_same_best(cut, whole)


def test_a_stopped_run_stays_stopped_and_resumes_with_more_patience(tmp_path: Path) -> None:
    epochs = len(start(tmp_path / "a", early_stopping=2).history)
    again = train(resume_config(str(tmp_path / "a")))
    assert len(again.history) == epochs
    more = train(Config(**{**vars(resume_config(str(tmp_path / "a"))), "early_stopping": 6}))
    assert len(more.history) > epochs
    start(tmp_path / "b", early_stopping=6)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert_same_best(tmp_path / "a", tmp_path / "b")


def test_the_watched_metric_decides_when_to_stop_and_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("train", *STOPPED, "--monitor", "validation_accuracy", "--out", folder) == 0
    accuracies = [record["validation_accuracy"] for record in history(folder)]
    best = 1 + accuracies.index(max(accuracies))
    assert len(accuracies) == best + 4
    assert open_run(folder).network_epoch == best
    percent = f"{100 * max(accuracies):.2f} %"
    assert (
        f"stopped early: the validation accuracy was highest after epoch {best} ({percent}); the network of that "
        f"epoch is in {folder / 'best'}"
    ) in capsys.readouterr().out


def test_when_another_metric_is_watched_only_the_network_of_its_best_epoch_counts(tmp_path: Path) -> None:
    folder, constant = tmp_path / "run", {"momentum": 0.0, "early_stopping": 1}
    epochs = len(start(folder, monitor="validation_accuracy", **constant).history)
    assert open_run(folder).network_epoch == epochs - 1
    changes = {"monitor": "train_loss", "epochs": epochs + 1, "early_stopping": 9}
    watched = train(Config(**{**vars(resume_config(str(folder))), **changes})).history
    assert watched.best("train_loss").epoch == open_run(folder).network_epoch == epochs + 1
    off = {"early_stopping": 0, "epochs": epochs + 2}
    train(Config(**{**vars(resume_config(str(folder))), **off}))
    assert open_run(folder).config.monitor == "validation_loss"
    with pytest.raises(ConfigError, match="monitor: expected only with early_stopping"):
        train(Config(**{**vars(resume_config(str(folder))), "monitor": "train_loss"}))


def test_a_best_network_that_was_not_saved_is_saved_when_the_run_is_resumed(tmp_path: Path) -> None:
    start(tmp_path / "run", early_stopping=9, epochs=1)
    kept = tmp_path / "run" / "best" / "checkpoint.safetensors"
    os.remove(kept)
    train(resume_config(str(tmp_path / "run")))
    assert len(Checkpoint.load(kept).history) == 1


def test_a_replaced_run_leaves_no_best_network_behind(tmp_path: Path) -> None:
    start(tmp_path / "run", early_stopping=2)
    start(tmp_path / "run", overwrite=True, epochs=1)
    assert not (tmp_path / "run" / "best" / "checkpoint.safetensors").exists()


def test_the_command_refuses_early_stopping_without_validation(tmp_path: Path, capsys) -> None:
    assert run("train", *STOPPED, "--validation", 0, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err.endswith(
        "early_stopping: expected only with validation samples, got validation 0\n"
    )
    assert not (tmp_path / "run").exists()


# -- The best network is the run's result --------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped four epochs after its best one, and the same run up to that epoch beside it."""
    folder = tmp_path_factory.mktemp("stopped")
    epochs = len(start(folder / "run", early_stopping=4).history)
    start(folder / "whole", epochs=epochs - 4)
    return folder / "run"


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def weights(path: Path) -> bytes:
    return MLP.load(path, device="cpu").parameters.data.tobytes()


def test_every_command_takes_the_best_network_and_says_so(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, last = metrics(stopped)["network_epoch"], metrics(stopped)["epochs"]
    assert last == best + 4
    whole = metrics(stopped.parent / "whole")
    for name in ("test_accuracy", "test_loss", "validation_accuracy"):
        assert metrics(stopped)[name] == whole[name]
    note = f"network of the best epoch, {best} of {last}, in {stopped / 'best'}"

    capsys.readouterr()
    assert run("evaluate", stopped) == 0
    out = capsys.readouterr().out
    assert f"digits test accuracy: {100 * whole['test_accuracy']:.2f} %" in out
    assert out.endswith(f"this is the {note}\n")

    assert run("history", stopped) == 0
    assert capsys.readouterr().out.endswith(f" (network of the best epoch, {best})\n")

    np.save(tmp_path / "x.npy", load_digits()[1].images[:5])
    probabilities = []
    for folder in (stopped, stopped.parent / "whole"):
        assert run("predict", folder, tmp_path / "x.npy", "--json") == 0
        captured = capsys.readouterr()
        assert (note in captured.err) == (folder == stopped)
        probabilities.append([row["probabilities"] for row in json.loads(captured.out)])
        assert run("export", folder, "--format", "npz", "--out", tmp_path / f"{folder.name}.npz") == 0
        assert (note in capsys.readouterr().out) == (folder == stopped)
    assert probabilities[0] == probabilities[1]
    with np.load(tmp_path / "run.npz") as one, np.load(tmp_path / "whole.npz") as other:
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_an_export_of_the_best_network_is_in_the_folder_of_the_run(stopped: Path) -> None:
    assert run("export", stopped, "--format", "npz") == 0
    (stopped / "network.npz").unlink()


def test_in_python_the_run_is_its_best_network_and_its_checkpoint_the_last(stopped: Path) -> None:
    assert weights(stopped) == weights(stopped / "best") == weights(stopped.parent / "whole")
    assert weights(stopped / "checkpoint.safetensors") != weights(stopped)
    opened = open_run(stopped)
    assert opened.network_epoch == metrics(stopped)["network_epoch"] == opened.checkpoint.epochs - 4
    assert load_run(str(stopped))[1].parameters.data.tobytes() == weights(stopped)


def test_early_stopping_in_python_leaves_the_network_of_the_command(stopped: Path) -> None:
    config, (training, _) = open_run(stopped).config, load_digits()
    model = MLP([64, 16, 10], seed=config.seed, device="cpu")
    records = fit(
        model,
        training,
        optimizer=config.make_optimizer(),
        epochs=config.epochs,
        batch_size=config.batch_size,
        validation=config.validation,
        seed=config.seed,
        callbacks=[EarlyStopping(patience=4)],
    )
    assert len(records) == metrics(stopped)["epochs"]
    assert model.parameters.data.tobytes() == weights(stopped)


def test_the_least_accuracy_is_asked_of_the_best_network(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(stopped, tmp_path / "run"))
    accuracy = metrics(copy)["test_accuracy"]
    assert run("train", "--resume", copy, "--min-accuracy", accuracy, "--quiet") == 0
    assert run("train", "--resume", copy, "--min-accuracy", accuracy + 1e-3, "--quiet") == 1
    assert f"test accuracy {accuracy:.4f} is below" in capsys.readouterr().err


def test_a_run_goes_on_from_its_last_epoch(stopped: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stopped, tmp_path / "run"))
    last = metrics(copy)["epochs"]
    assert run("train", "--resume", copy, "--early-stopping", 0, "--epochs", last + 2, "--quiet") == 0
    start(tmp_path / "whole", epochs=last + 2)
    assert_same_run(copy, tmp_path / "whole")
    assert metrics(copy)["network_epoch"] == last + 2  # without early stopping, the last network is the result
    assert weights(copy) == weights(tmp_path / "whole")
    assert run("train", "--resume", copy, "--early-stopping", 4, "--quiet") == 0  # the best one is still there
    assert metrics(copy)["network_epoch"] == metrics(stopped)["network_epoch"]
    assert weights(copy) == weights(stopped)


def test_a_best_network_that_is_missing_or_of_another_run_is_not_replaced_by_the_last(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(stopped, tmp_path / "run"))
    kept = copy / "best" / "checkpoint.safetensors"
    shutil.copy(copy / "checkpoint.safetensors", kept)
    for state in ("is not of this run", "is missing"):
        message = f"{kept}, the network of the best epoch, {metrics(copy)['network_epoch']}, {state}"
        for command in ("evaluate", "export"):
            assert run(command, copy) == 2
            assert message in capsys.readouterr().err
        with pytest.raises(ModelFileError, match=state):
            MLP.load(copy, device="cpu")
        kept.unlink(missing_ok=True)
    assert weights(copy / "checkpoint.safetensors") == weights(stopped / "checkpoint.safetensors")


def test_a_run_that_has_a_better_network_by_now_is_read_again(stopped: Path) -> None:
    checkpoint = Checkpoint.load(stopped / "checkpoint.safetensors")
    before = dataclasses.replace(checkpoint, best=HistoryPart(1, 100, "another"))
    assert before.result.epochs == checkpoint.result.epochs < checkpoint.epochs


def test_early_stopping_that_begins_after_the_best_epoch_says_that_its_network_was_not_kept(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = metrics(stopped)["epochs"]
    start(tmp_path / "run", epochs=epochs)
    capsys.readouterr()
    assert run("train", "--resume", tmp_path / "run", "--early-stopping", 4) == 0
    assert "its network was not kept, and the results are those of the last one" in capsys.readouterr().out
    assert metrics(tmp_path / "run")["network_epoch"] == epochs
    assert run("evaluate", tmp_path / "run") == 0


def test_the_network_is_named_only_where_it_has_predicted(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.png").touch()
    capsys.readouterr()
    assert run("predict", stopped, tmp_path / "empty.png") == 1
    assert capsys.readouterr().out == ""
