"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from gpumlp import MLP, Dataset, TensorBoard, Trainer, fit
from gpumlp.diagnostics import LayerStatistics
from gpumlp.extras import MissingExtraError
from gpumlp.training import EpochRecord
from gpumlp.training.config import Config
from gpumlp.training.session import resume_config, train
from gpumlp.training.tensorboard import scalars
from tests.command_helpers import DIGITS, assert_same_run, finish, history, run, spawn
from tests.test_kill_and_resume import limit_files_to

pytest.importorskip("tensorboardX")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

SCALARS = {
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "training/learning_rate": "learning_rate",
    "training/samples_per_second": "samples_per_second",
}
HISTOGRAMS = {"weight/layers.0", "weight/layers.1", "bias/layers.0", "bias/layers.1"}


def read(folder: Path):
    """The events in all files of a folder, as TensorBoard reads them."""
    reader = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    reader.Reload()
    return reader


def start(out: Path, **options: object):
    fixed = {"dataset": "digits", "device": "cpu", "quiet": True, "hidden": (16,), "log": "tensorboard"}
    return train(Config(**{**fixed, "out": str(out), "epochs": 3, **options}))


def layer_tags(record: dict[str, object]) -> set[str]:
    """The tags of the statistics of layers, without counts."""
    return {
        f"{name}/layers.{index}"
        for index, layer in enumerate(record["layers"] or ())
        for name, value in layer.items()
        if isinstance(value, float)
    }


def assert_logged(folder: Path) -> None:
    """Assert that the log contains every epoch of the history once, in order, with its values."""
    reader, records = read(folder), history(folder)
    assert set(reader.Tags()["scalars"]) == set(SCALARS).union(*map(layer_tags, records))
    for tag, name in SCALARS.items():
        events = reader.Scalars(tag)
        assert [event.step for event in events] == [record["epoch"] for record in records]
        np.testing.assert_allclose(
            [event.value for event in events], [record[name] for record in records], rtol=1e-6
        )
    assert set(reader.Tags()["histograms"]) == HISTOGRAMS
    for tag in HISTOGRAMS:
        assert [event.step for event in reader.Histograms(tag)] == list(range(len(records) + 1))


def test_the_log_has_the_columns_of_the_history_and_the_weights(tmp_path: Path) -> None:
    start(tmp_path / "run")
    assert_logged(tmp_path / "run")


def test_a_histogram_is_that_of_the_weights(tmp_path: Path, blobs: Dataset) -> None:
    model = MLP([20, 12, 4], device="cpu")
    before = model.state_dict()["layers.0.weight"]
    fit(model, blobs, epochs=2, callbacks=[TensorBoard(tmp_path)])
    first, _, last = (event.histogram_value for event in read(tmp_path).Histograms("weight/layers.0"))
    for histogram, weight in ((first, before), (last, model.state_dict()["layers.0.weight"])):
        assert histogram.num == sum(histogram.bucket) == 240
        assert (histogram.min, histogram.max) == (weight.min(), weight.max())
        assert histogram.sum == pytest.approx(weight.astype(float).sum())
        inside = np.histogram(weight, bins=[-np.inf, *histogram.bucket_limit])[0]
        np.testing.assert_allclose(inside, histogram.bucket, atol=1)  # the largest is on the last limit


def test_without_validation_there_are_no_columns_of_it(tmp_path: Path) -> None:
    start(tmp_path / "run", validation=0)
    tags = {tag for tag in SCALARS if "validation" not in tag} | layer_tags(history(tmp_path / "run")[0])
    assert set(read(tmp_path / "run").Tags()["scalars"]) == tags


@pytest.mark.parametrize(
    ("targets", "metrics"),
    [([0.5, 1.5] * 10, {"r2", "mae"}), ([[0, 1], [1, 1]] * 10, {"accuracy", "label_accuracy"})],
)
def test_the_metrics_are_those_of_the_targets(tmp_path: Path, targets: object, metrics: set[str]) -> None:
    data = Dataset([[0.0], [1.0]] * 10, targets)
    fit(MLP([1, data.outputs], device="cpu"), data, validation=0.5, epochs=2, callbacks=TensorBoard(tmp_path))
    tags = {tag for tag in read(tmp_path).Tags()["scalars"] if tag.endswith(("/train", "/validation"))}
    assert tags == {f"{name}/{part}" for name in metrics | {"loss"} for part in ("train", "validation")}


def test_the_log_does_not_change_the_training(tmp_path: Path) -> None:
    start(tmp_path / "one")
    start(tmp_path / "other", log=None)
    assert_same_run(tmp_path / "one", tmp_path / "other")
    assert not list((tmp_path / "other").glob("events*"))


def test_each_epoch_is_on_the_disk_when_it_ends(tmp_path: Path, blobs: Dataset) -> None:
    seen = []

    def look(trainer: Trainer) -> None:
        seen.append([event.step for event in read(tmp_path).Scalars("loss/train")])

    fit(MLP([20, 12, 4], device="cpu"), blobs, epochs=3, callbacks=[TensorBoard(tmp_path), look])
    assert seen == [[1], [1, 2], [1, 2, 3]]


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    start(tmp_path / "run", epochs=2)
    config = resume_config(str(tmp_path / "run"))
    assert config.log == "tensorboard"
    train(dataclasses.replace(config, epochs=5))
    assert_logged(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("events*"))) == 2


def test_events_after_the_checkpoint_are_not_logged_twice(tmp_path: Path) -> None:
    start(tmp_path / "run", epochs=2)
    checkpoint = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    train(dataclasses.replace(resume_config(str(tmp_path / "run")), epochs=5))
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(checkpoint)  # as if killed
    train(dataclasses.replace(resume_config(str(tmp_path / "run")), epochs=4))
    assert_logged(tmp_path / "run")
    assert len(history(tmp_path / "run")) == 4


def test_a_log_can_begin_with_a_resumed_run(tmp_path: Path) -> None:
    start(tmp_path / "run", epochs=2, log=None)
    train(dataclasses.replace(resume_config(str(tmp_path / "run")), epochs=4, log="tensorboard"))
    assert [event.step for event in read(tmp_path / "run").Scalars("loss/train")] == [1, 2, 3, 4]
    assert [event.step for event in read(tmp_path / "run").Histograms("weight/layers.0")] == [2, 3, 4]


@pytest.mark.parametrize("log", ["tensorboard", None])
def test_a_replaced_run_leaves_no_log_behind(tmp_path: Path, log: str | None) -> None:
    start(tmp_path / "run", epochs=5)
    start(tmp_path / "run", epochs=2, overwrite=True, log=log)
    if log is None:
        assert not list((tmp_path / "run").glob("events*"))
    else:
        assert_logged(tmp_path / "run")


def test_a_missing_library_is_reported_before_training(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert run("train", *DIGITS, "--log", "tensorboard", "--out", tmp_path / "run") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "gpumlp-train: TensorBoard's event files need tensorboardX, which is not installed; install it with "
        'pip install ".[tensorboard]"\n'
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingExtraError, match="tensorboardX"):
        TensorBoard(tmp_path)


def test_another_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *DIGITS, "--log", "wandb", "--out", tmp_path / "run") == 2
    assert "log: expected tensorboard, got 'wandb'" in capsys.readouterr().err


def test_a_full_disk_ends_training_with_one_line(tmp_path: Path) -> None:
    # Only the log exceeds the limit, since it is appended to; the checkpoint is small.
    run_folder = tmp_path / "run"
    words = (*DIGITS, "--hidden", 1, "--epochs", 200, "--log", "tensorboard", "--out", run_folder)
    code, _, err = finish(spawn("train", *words, preexec_fn=limit_files_to(40_000)))
    assert (code, err) == (1, f"gpumlp-train: {run_folder / 'events.out.tfevents.*'}: File too large\n")
    saved = len(history(run_folder))
    assert 0 < saved < 200
    assert run("train", "--resume", run_folder, "--epochs", saved + 2, "--quiet") == 0
    assert_logged(run_folder)


def test_statistics_of_layers_become_scalars_where_records_have_them() -> None:
    layers = (
        LayerStatistics(None, None, 1.5, None, None, 100, 16),
        LayerStatistics(None, None, 2.5, 0.25, None, 100, 16),
    )
    values = dict(scalars(EpochRecord(1, 0.5, 0.8, None, None, 0.1, 2.0, 500.0, layers)))
    assert {tag: value for tag, value in values.items() if "layers" in tag} == {
        "weight_norm/layers.0": 1.5,
        "weight_norm/layers.1": 2.5,
        "dead/layers.1": 0.25,
    }
    assert values["loss/train"] == 0.5
