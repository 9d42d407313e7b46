"""What a report says: of one run and of several, finished, unfinished, diverged, and of any data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpumlp import command
from gpumlp.report import report_page
from gpumlp.report.measures import measure
from gpumlp.report.runs import read_runs
from gpumlp.training.config import Config
from gpumlp.training.session import load_run
from tests.command_helpers import DIGITS, run
from tests.data_helpers import small_mnist, write_files
from tests.report_helpers import QUICK, digits_run, table_data, text_of, write

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the digits."""
    return digits_run(tmp_path_factory.mktemp("runs"))


def test_a_page_s_command_line_trains_the_same_network(tmp_path: Path) -> None:
    words = (*QUICK, "--hidden", 9, 7, "--activation", "tanh", "--schedule", "milestones", "--milestones", 1, 2)
    assert run("train", *words, "--l2", 1e-4, "--nesterov", "--batch-size", "full", "--out", tmp_path / "a") == 0
    (first,) = read_runs([str(tmp_path / "a")], "cpu", None)
    arguments = first.command_line().split()[3:]
    assert run("train", *arguments, "--quiet", "--out", tmp_path / "b") == 0
    (second,) = read_runs([str(tmp_path / "b")], "cpu", None)
    assert first.settings() == second.settings()
    for name, tensor in first.model.state_dict().items():
        assert tensor.tobytes() == second.model.state_dict()[name].tobytes()


def test_no_hidden_layer_is_a_command_line_too(tmp_path: Path) -> None:
    assert run("train", *QUICK, "--hidden", "--out", tmp_path / "a") == 0
    (softmax_regression,) = read_runs([str(tmp_path / "a")], "cpu", None)
    words = softmax_regression.command_line().split()[3:]
    assert command.parse(Config, "train", words).hidden == ()
    assert "softmax regression" in text_of(report_page([str(tmp_path / "a")]))


def test_several_runs_show_what_differs_and_what_does_not(digits: Path, tmp_path: Path) -> None:
    npz = table_data(tmp_path / "table.npz", (5,), classes=12)
    other = ("--dataset", npz, "--device", "cpu", "--epochs", 2, "--quiet", "--validation", 0)
    assert run("train", *other, "--activation", "tanh", "--dtype", "float64", "--out", tmp_path / "<b>") == 0
    (tmp_path / "new").mkdir()
    assert write(digits, tmp_path / "<b>", "--out", tmp_path / "new" / "page.html") == 0
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    text = text_of(page)
    assert "<b></" not in page
    assert "&lt;b&gt;" in page
    different = text.partition("What differs")[2].partition("What is the same")[0]
    assert "activation relu tanh" in different
    assert "dtype float32 float64" in different
    assert "optimizer" not in different
    assert "Trained without validation samples: &lt;b&gt;" in text
    assert "no images of one channel" in text
    assert "12 classes" not in text  # few enough for a matrix


def test_classes_are_called_by_their_names(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("nought", "one", "two", "<three>", "four", "five", "six", "seven", "eight", "nine")
    loaded = load_run(str(digits))

    def named(*_: object) -> object:
        loaded[1].class_names = names
        return loaded

    monkeypatch.setattr("gpumlp.report.runs.load_run", named)
    page = report_page([str(digits)])
    assert "<three>" not in page
    assert "&lt;three&gt;" in page
    for section in ("confusion", "classes"):
        assert "seven" in text_of(page.partition(f'<section id="{section}"')[2].partition("</section>")[0])
    (mistake, *_) = measure(loaded[1], loaded[2]).mistakes
    assert (
        f"a {names[mistake.truth]} taken for {names[mistake.prediction]}".replace("<", "&lt;").replace(">", "&gt;")
        in page
    )


def test_samples_that_are_no_images_get_tables_and_no_pad(tmp_path: Path) -> None:
    npz = table_data(tmp_path / "table.npz", (5,), classes=25, samples=100)
    words = ("--dataset", npz, "--device", "cpu", "--epochs", 1, "--quiet", "--batch-size", 50)
    assert run("train", *words, "--out", tmp_path / "a") == 0
    page = report_page([str(tmp_path / "a")])
    assert "<img" not in page
    assert "<canvas" not in page
    text = text_of(page)
    assert "25 classes are too many for a matrix" in text
    assert "Probability" not in text or "its probability" in text
    assert "Sample Truth Prediction" in text


def test_an_unfinished_run_is_reported_as_it_is(digits: Path, tmp_path: Path) -> None:
    for name in ("config.json", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((digits / name).read_bytes())
    lines = (digits / "history.jsonl").read_text()
    (tmp_path / "history.jsonl").write_text(
        lines + lines.splitlines()[-1].replace('"epoch": 2', '"epoch": 3') + "\n{"
    )
    text = text_of(report_page([str(tmp_path)]))
    assert "is not finished : the network is that of its last checkpoint, after epoch 2 of 2" in text


def test_what_the_history_holds_of_the_layers_and_why_a_run_diverged_is_shown(
    digits: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    told.mkdir()
    for name in ("config.json", "checkpoint.safetensors"):
        (told / name).write_bytes((digits / name).read_bytes())
    finding = {"name": "dead_units", "layer": 1, "message": "layer 1: 61 % of units are <dead>"}
    (told / "diverged.json").write_text(json.dumps(finding))
    layer = {"gradient_norm": 0.5, "update_ratio": 1e-3, "weight_norm": 3, "dead": 0.61, "saturated": None}
    records = [json.loads(line) for line in (digits / "history.jsonl").read_text().splitlines()]
    layers = [{**layer, "dead": None}, layer]
    (told / "history.jsonl").write_text("".join(json.dumps({**r, "layers": layers}) + "\n" for r in records))
    page = report_page([str(told)])
    assert "61 % of units are &lt;dead&gt;" in page
    assert "The curves say: diverged" in text_of(page)
    assert "Dead units over 2 epochs: layer 2 from 61 % to 61 %" in page
    assert "Saturated units over" not in page


def test_the_page_says_of_every_run_what_the_command_that_diagnoses_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*DIGITS, "--quiet", "--epochs", 2, "--learning-rate", 1, "--hidden", 64, 64, "--early-stopping", 9)
    assert run("train", *words, "--out", tmp_path / "a") == 0
    (tmp_path / "a" / "metrics.json").unlink()  # as of a run that is not finished
    (tmp_path / "a" / "history.jsonl").write_text("")  # the checkpoint's records stand in
    for folder in (tmp_path / "a", tmp_path / "a" / "best"):
        assert run("diagnose", folder) == 0
        said = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
        text = text_of(report_page([str(folder)]))
        assert said
        assert all(": " in line for line in said)
        for line in said:
            assert line.partition(": ")[2].split(";")[0][:60] in text
    assert run("train", *QUICK, "--diagnostics", "off", "--out", tmp_path / "b") == 0
    assert "Only the curves were judged" in text_of(report_page([str(tmp_path / "b")]))


def test_the_network_of_the_best_epoch_can_be_reported_beside_its_run(tmp_path: Path) -> None:
    words = (*DIGITS, "--quiet", "--epochs", 6, "--early-stopping", 6, "--out", tmp_path / "a")
    assert run("train", *words) == 0
    page = report_page([str(tmp_path / "a"), str(tmp_path / "a" / "best")])
    text = text_of(page)
    assert "a/best" in text
    assert "kept after the best epoch, " in text
    assert "is not finished" not in text
    assert "Gradient norm over" in page.partition("Layers of a/best")[2]  # from the checkpoint's own history


def test_a_diverged_run_says_so(digits: Path, tmp_path: Path) -> None:
    for name in ("config.json", "checkpoint.safetensors", "history.jsonl"):
        (tmp_path / name).write_bytes((digits / name).read_bytes())
    found = {"name": "diverging", "layer": None, "message": "training diverged in epoch 3"}
    (tmp_path / "diverged.json").write_text(json.dumps(found))
    text = text_of(report_page([str(tmp_path)]))
    assert "training diverged after 2 of 2 epochs" in text
    assert "training diverged in epoch 3" in text


def test_a_training_that_diverges_at_once_can_be_reported(tmp_path: Path) -> None:
    words = (*QUICK, "--activation", "leaky_relu", "--learning-rate", 1e8, "--out", tmp_path / "a")
    assert run("train", *words) == 1
    text = text_of(report_page([str(tmp_path / "a")]))
    assert "training diverged after 0 of 2 epochs" in text
    assert "No epoch is finished" in text


def test_the_folder_of_mnist_s_files_is_for_the_runs_on_mnist(digits: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mnist", small_mnist(40, 20, side=6))
    options = ("--dataset", "mnist", "--data-dir", folder, "--device", "cpu", "--epochs", 1, "--quiet")
    assert run("train", *options, "--batch-size", 10, "--out", tmp_path / "a") == 0
    (tmp_path / "elsewhere").mkdir()
    for file in folder.iterdir():
        file.rename(tmp_path / "elsewhere" / file.name)
    page = report_page([str(digits), str(tmp_path / "a")], data_dir=str(tmp_path / "elsewhere"))
    assert "40x6x6-uint8" in text_of(page)


def test_a_network_too_large_for_the_page_is_left_out_and_named(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = len(report_page([str(digits)]).encode())
    monkeypatch.setattr("gpumlp.report.page.LIMIT", whole - 10_000)
    page = report_page([str(digits)])
    assert len(page.encode()) < whole
    assert "is not here to draw for" in page
    assert "<canvas" not in page
