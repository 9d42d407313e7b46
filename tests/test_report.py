"""Reports: measures, images and charts; the page; the command; and the page to draw on."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import gpumlp
from gpumlp import (
    MLP,
    Dataset,
    Dense,
    Distortion,
    Inputs,
    Layer,
    Normal,
    Trainer,
    command,
    fit,
    load_digits,
)
from gpumlp.report import drawing_page, page, report_page
from gpumlp.report.charts import Line, chart
from gpumlp.report.embedding import Field, mosaic
from gpumlp.report.page import render_report
from gpumlp.report.runs import measure, read_runs
from gpumlp.training.callbacks import read_curve
from gpumlp.training.config import Config
from gpumlp.training.session import load_run
from tests.command_helpers import DIGITS, interrupt_after, run
from tests.data_helpers import small_mnist, write_files
from tests.file_helpers import set_history
from tests.report_helpers import trained

pytest.importorskip("jinja2")

QUICK = (*DIGITS, "--epochs", 2, "--quiet")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the digits."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert run("train", *QUICK, "--out", path) == 0
    return path


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    """An unfinished copy of that run: configuration, history and checkpoint."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "checkpoint.safetensors", "history.jsonl"):
        (folder / name).write_bytes((digits / name).read_bytes())
    return folder


def table_data(path: Path, shape: tuple[int, ...], classes: int = 3, samples: int = 60) -> Path:
    """A data file with samples of a shape."""
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % classes
    x = rng.normal(labels.reshape(-1, *[1] * len(shape)), 1, (samples, *shape)).astype(np.float32)
    np.savez(path, x_train=x, y_train=labels, x_test=x[:40], y_test=labels[:40])
    return path


def text_of(page: str) -> str:
    """The text of a page."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


# -- Parts -----------------------------------------------------------------------------------------------------


def test_confusions_and_mistakes_are_those_of_the_predictions() -> None:
    _, test = load_digits()
    model = MLP([64, 12, 10], seed=0, device="cpu")
    found = measure(model, test, mistakes=7)
    probabilities = model.predict_proba(test.images)
    predictions = probabilities.argmax(axis=1)
    assert found.samples == len(test)
    assert found.wrong == int((predictions != test.labels).sum())
    assert found.confusion[3, 5] == int(((test.labels == 3) & (predictions == 5)).sum())
    assert found.counts()[4].recall == pytest.approx((predictions[test.labels == 4] == 4).mean())
    wrong = np.flatnonzero(predictions != test.labels)
    surest = wrong[np.argsort(-probabilities.max(axis=1)[wrong])][:7]
    assert [mistake.probability for mistake in found.mistakes] == pytest.approx(probabilities.max(axis=1)[surest])
    assert all(predictions[m.sample] == m.prediction != test.labels[m.sample] for m in found.mistakes)


def test_the_counts_of_labels_and_the_samples_with_most_wrong_ones() -> None:
    run_of_labels = trained("labels")
    model, test = run_of_labels.model, run_of_labels.test
    found, predictions = measure(model, test, mistakes=5), model.predict(test.images).astype(bool)
    for label, counts in enumerate(found.counts()):
        has, says = test.targets[:, label], predictions[:, label]
        assert counts == (has.sum(), says.sum(), (has & says).sum())
        assert (counts.recall, counts.precision) == (says[has].mean(), has[says].mean())
    assert found.wrong == (predictions != test.targets).any(axis=1).sum()
    worst = (predictions != test.targets).sum(axis=1)
    assert [len(mistake.missed) + len(mistake.wrong) for mistake in found.mistakes] == sorted(worst)[:-6:-1]
    for mistake in found.mistakes:
        assert test.targets[mistake.sample, mistake.missed].all()
        assert not test.targets[mistake.sample, mistake.wrong].any()


def test_the_largest_errors_are_those_of_the_predictions() -> None:
    run_of_numbers = trained("numbers")
    model, test = run_of_numbers.model, run_of_numbers.test
    found = measure(model, test, mistakes=5)
    errors = np.abs(model.predict(test.images) - test.targets) / test.targets.std(axis=0)
    assert [errors[error.sample, error.output] for error in found.mistakes] == pytest.approx(
        sorted(errors.ravel())[:-6:-1], rel=1e-5
    )
    assert [error.truth for error in found.mistakes] == pytest.approx(
        [test.targets[error.sample, error.output] for error in found.mistakes]
    )


def test_two_classes_with_one_output_are_classes() -> None:
    run_of_two = trained("classes", outputs=1)
    found = measure(run_of_two.model, run_of_two.test)
    predictions = run_of_two.model.predict(run_of_two.test.images)[:, 0]
    assert (found.task, found.confusion.shape) == ("classes", (2, 2))
    assert found.confusion[1, 0] == ((run_of_two.test.labels == 1) & (predictions == 0)).sum()
    assert "Confusion matrix" in text_of(render_report([run_of_two]))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_saturated_outputs_are_those_of_the_diagnostics(activation: str) -> None:
    train, test = load_digits()
    # The report uses the first thousand test samples, the diagnostics a batch of the validation samples.
    model = MLP([64, 30, 10], activation, initializer=Normal(1.5), seed=1, device="cpu")
    seen = Dataset(test.images[:100], test.labels[:100], classes=10)
    history = fit(model, train, epochs=1, batch_size=100, validation=seen)
    rows = history.records[-1].layers[0].gradient_samples
    found = measure(model, Dataset(seen.images[:rows], seen.labels[:rows], classes=10), 1).activity[0].saturated
    assert 0.05 < found < 0.95
    assert found == history.records[-1].layers[0].saturated
    hidden = model.layers[0]
    sums = seen.images[:rows].reshape(rows, -1) @ model.state_dict()["layers.0.weight"] + hidden.bias
    slope = 1 / np.cosh(sums / 2 if activation == "sigmoid" else sums) ** 2  # over the largest
    assert found == pytest.approx((slope < 0.0199).mean(), abs=0.005)  # 1 - 0.99^2


def test_the_sign_of_weights_is_visible_in_grey() -> None:
    Image = pytest.importorskip("PIL.Image")
    ramp = np.linspace(-1, 1, 30)
    uri, _, limit = mosaic(ramp[:, None], (1, 30), 1)
    (grey,) = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"), dtype=int)
    assert limit == pytest.approx(1)
    assert np.diff(grey).min() > 0


def test_two_layers_of_512_leave_room_for_a_report_below_3_mb() -> None:
    page = drawing_page(MLP([784, 512, 512, 10], device="cpu"), (28, 28))
    assert len(page.encode()) < 2_750_000  # and a report on such a run, its network aside, takes 0.15 MB


def test_the_drawing_page_refuses_what_does_not_match() -> None:
    model = MLP([64, 8, 10], device="cpu")
    with pytest.raises(ValueError, match=r"expects images of 64 values, got 7 x 9 = 63"):
        drawing_page(model, (7, 9))
    with pytest.raises(ValueError, match=r"a page shows the probabilities of classes, got .* squared_error"):
        drawing_page(MLP([64, 8, 2], loss="squared_error", device="cpu"), (8, 8))
    flat = Dataset(np.zeros((4, 64)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"expected data with images of 8 x 8"):
        drawing_page(model, (8, 8), data=flat)


def test_a_drawing_has_the_scale_that_the_network_was_trained_on() -> None:
    levels = np.zeros((4, 8, 8), np.uint8)
    levels[:, 2:6, 2:6] = 200
    data, model = Dataset(levels, [0, 1, 0, 1]), MLP([64, 8, 2], device="cpu")
    for dtype, ink in (("uint8", 200 / 255), ("any", 200.0)):
        model.inputs = Inputs((8, 8), dtype)
        assert f'"ink": {ink}' in drawing_page(model, (8, 8), data=data)
    model.inputs = Inputs((8, 8), "float32")
    with pytest.raises(ValueError, match="trained on float32, got uint8"):
        drawing_page(model, (8, 8), data=data)


def test_fields_are_measured() -> None:
    field = Field.of(load_digits()[0])
    assert field == Field(8, 8, 0.0, 1.0, 8, 7, 4.0, 4.0)
    ink = np.full((5, 12, 12), 250, dtype=np.uint8)
    ink[:, 3:9, 4:8] = 10  # dark on bright
    found = Field.of(Dataset(ink, [0, 1, 0, 1, 0]))
    assert found == Field(12, 12, 250 / 255, 10 / 255, 6, 4, 6.0, 6.0)
    assert Field.of(Dataset(np.zeros((4, 6)), [0, 1, 0, 1])) is None


@pytest.mark.parametrize(
    ("epochs", "ticks"),
    [
        (1, [1]),
        (2, [1, 2]),
        (9, list(range(1, 10))),
        (20, [1, 5, 10, 15, 20]),
        (31, [1, 5, 10, 15, 20, 25, 31]),
        (50, [1, 10, 20, 30, 40, 50]),
    ],
)
def test_the_last_epoch_has_a_tick(epochs: int, ticks: list[int]) -> None:
    drawn = chart("Loss", [Line("a", [1.0] * epochs, 0)])
    assert drawn is not None
    assert [text for _, text in drawn.x_ticks] == [str(tick) for tick in ticks]


def test_a_chart_of_many_epochs_holds_a_part_of_them_with_the_extremes_gaps_and_the_last() -> None:
    values: list[float | None] = [1.0 + epoch % 2 for epoch in range(100_003)]
    values[70_000], values[80_000], values[-1] = 9.0, float("nan"), 5.0
    drawn = chart("Loss", [Line("a", values, 0)])
    assert drawn is not None
    assert len(drawn.paths[0]) < 50_000
    assert drawn.paths[0].count("M") == 2
    heights = [float(point.partition(" ")[2]) for point in re.split("[ML]", drawn.paths[0])[1:]]
    assert min(heights) < drawn.ends[0][1] < max(heights)  # 9, 5 and 1
    data = drawn.data()
    (line,) = data["lines"]
    assert len(line["values"]) <= 1000
    assert line["values"][-1] == 5
    assert data["first"] + data["step"] * (len(line["values"]) - 1) == len(values)


def test_charts_place_values_within_their_panel() -> None:
    nan = float("nan")
    drawn = chart("Loss", [Line("a", [1.0, nan, 0.5, None, 0.25], 0), Line("b", [None] * 5, 1)])
    assert drawn is not None
    assert [line.label for line in drawn.lines] == ["a"]
    assert drawn.paths[0].count("M") == 2  # the line is broken at a NaN, and continues over None
    assert drawn.paths[0].count("L") == 1
    assert drawn.data()["lines"] == [{"label": "a", "values": [1.0, None, 0.5, 0.5, 0.25]}]
    assert drawn.summary == "Loss over 5 epochs: a from 1 to 0.25."
    heights = [y for y, _ in drawn.y_ticks]
    assert heights == sorted(heights, reverse=True)
    assert chart("Loss", [Line("a", [None, nan], 0)]) is None
    logarithmic = chart("Norm, on a logarithmic scale", [Line("a", [0.0, 1e-3, 10.0], 0)], log=True)
    assert logarithmic is not None
    assert logarithmic.data()["title"] == "Norm"  # beside the values of an epoch
    assert [text for _, text in logarithmic.y_ticks] == ["0.001", "0.01", "0.1", "1", "10", "0"]
    heights = {text: y for y, text in logarithmic.y_ticks}
    assert logarithmic.paths[0].startswith(
        f"M{logarithmic.first_x:g} {heights['0']:g}L"
    )  # 0 lies below all others
    assert heights["0"] > heights["0.001"] > heights["10"]
    fainter = chart("Norm", [Line("a", [1e-30, 1e-3, 10.0], 0)], log=True)
    assert fainter is not None
    assert [text for _, text in fainter.y_ticks] == ["0.001", "0.01", "0.1", "1", "10", "< 0.001"]
    nothing = chart("Norm", [Line("a", [0.0, 0.0], 0)], log=True)
    assert nothing is not None
    assert nothing.summary == "Norm over 2 epochs: a from 0 to 0."
    short = chart("Norm", [Line("a", [0.13, 0.4], 0)], log=True)
    assert short is not None
    assert [text for _, text in short.y_ticks] == ["0.1", "0.2", "0.5"]
    accuracy = chart("Accuracy", [Line("a", [0.913, 0.998], 0)], unit="%")
    assert accuracy is not None
    assert [text for _, text in accuracy.y_ticks][-1] == "100 %"
    for each in (drawn, logarithmic, short, accuracy):
        points = [tuple(map(float, pair.split())) for path in each.paths for pair in re.split("[ML]", path)[1:]]
        assert all(62 <= x <= 546 and 12 <= y <= 260 for x, y in points)


# -- Contents --------------------------------------------------------------------------------------------------


def test_the_command_line_of_a_page_reproduces_the_network(tmp_path: Path) -> None:
    words = (*QUICK, "--hidden", 9, 7, "--activation", "tanh", "--schedule", "milestones", "--milestones", 1, 2)
    assert run("train", *words, "--l2", 1e-4, "--nesterov", "--batch-size", "full", "--out", tmp_path / "a") == 0
    (first,) = read_runs([str(tmp_path / "a")], "cpu", None)
    arguments = first.command_line().split()[3:]
    assert run("train", *arguments, "--quiet", "--out", tmp_path / "b") == 0
    (second,) = read_runs([str(tmp_path / "b")], "cpu", None)
    assert first.settings() == second.settings()
    for name, tensor in first.model.state_dict().items():
        assert tensor.tobytes() == second.model.state_dict()[name].tobytes()


def test_a_network_without_hidden_layers_has_a_command_line(tmp_path: Path) -> None:
    assert run("train", *QUICK, "--hidden", "--out", tmp_path / "a") == 0
    (softmax_regression,) = read_runs([str(tmp_path / "a")], "cpu", None)
    words = softmax_regression.command_line().split()[3:]
    assert command.parse(Config, "train", words).hidden == ()
    assert "softmax regression" in text_of(report_page([str(tmp_path / "a")]))


def test_several_runs_show_what_differs_and_what_does_not(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz = table_data(tmp_path / "table.npz", (5,), classes=12)
    other = ("--dataset", npz, "--device", "cpu", "--epochs", 2, "--quiet", "--validation", 0)
    assert run("train", *other, "--activation", "tanh", "--dtype", "float64", "--out", tmp_path / "<b>") == 0
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert run("report", digits, tmp_path / "<b>") == 0
    page = Path("report.html").read_text(encoding="utf-8")
    text = text_of(page)
    assert "<b></" not in page
    assert "&lt;b&gt;" in page
    different = text.partition("Settings that differ")[2].partition("Draw for the network")[0]
    assert "activation relu tanh" in different
    assert "dtype float32 float64" in different
    assert "optimizer" not in different
    assert "Trained without validation samples: &lt;b&gt;" in text
    assert "not single-channel images" in text
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
        f"a {names[mistake.truth]} predicted as {names[mistake.prediction]}".replace("<", "&lt;").replace(
            ">", "&gt;"
        )
        in page
    )


@pytest.mark.parametrize(
    ("task", "there", "not_there"),
    [
        ("numbers", ["Test R²", "Largest errors", "Residuals, output 1", "validation R²"], ["accuracy"]),
        ("labels", ["Test label accuracy", "&lt;cat&gt;", "Predicted wrongly", "Missed"], ["Confusion", "R²"]),
        ("classes", ["Test accuracy", "Confusion matrix"], ["R²", "label accuracy"]),
    ],
)
def test_a_page_fits_the_targets(task: str, there: list[str], not_there: list[str]) -> None:
    text = text_of(render_report([trained(task)]))
    assert [words for words in there if words not in text] == []
    assert [words for words in not_there if words in text] == []
    assert "gelu, tanh, dropout 0.2, float32" in text
    several = text_of(render_report([trained(name, name=name) for name in ("numbers", "labels", "classes")]))
    assert [words for words in there if words not in several] == []


def test_a_network_without_classes_or_with_other_layers_is_not_in_the_page(digits: Path) -> None:
    class Half(Layer):
        name = "half"

        def forward(self, x, cache, draws):
            cache.output[...] = x / 2

        def backward(self, x, cache, draws, input_delta):
            input_delta[...] = cache.delta / 2

    layers = [Dense(64, 8, "relu"), Half(8, 8), Dense(8, 10)]
    with pytest.raises(ValueError, match="has no equivalent outside gpumlp"):
        drawing_page(MLP(layers, device="cpu"), (8, 8))
    (found,) = read_runs([str(digits)], "cpu", None)
    other = dataclasses.replace(found, model=MLP([64, 10], loss="logistic_cross_entropy", device="cpu"))
    networks, left_out = page._networks([other], 10**6)
    assert networks == []
    assert left_out == [
        "digits is not included: a page shows the probabilities of classes, got a network with the loss "
        "logistic_cross_entropy; train with softmax_cross_entropy."
    ]


def test_samples_that_are_not_images_get_tables_and_no_pad(tmp_path: Path) -> None:
    npz = table_data(tmp_path / "table.npz", (5,), classes=25, samples=100)
    words = ("--dataset", npz, "--device", "cpu", "--epochs", 1, "--quiet", "--batch-size", 50)
    assert run("train", *words, "--out", tmp_path / "a") == 0
    page = report_page([str(tmp_path / "a")])
    assert "<img" not in page
    assert "<canvas" not in page
    text = text_of(page)
    assert "25 classes are too many for a matrix" in text
    assert "Sample True class Prediction Its probability" in text


def test_an_unfinished_run_is_reported_as_unfinished(copy: Path) -> None:
    lines = (copy / "history.jsonl").read_text()
    (copy / "history.jsonl").write_text(lines + lines.splitlines()[-1].replace('"epoch": 2', '"epoch": 3') + "\n{")
    text = text_of(report_page([str(copy)]))
    assert "is not finished : this is the network of its last checkpoint, after epoch 2 of 2" in text


def test_the_page_shows_how_the_network_saw_its_training_images(digits: Path, tmp_path: Path) -> None:
    path, words = tmp_path / "distorted", ["--augment", "rotation=7.5", "elastic=34,4", "--seed", 3]
    assert run("train", *QUICK, *words, "--out", path) == 0
    (read,) = read_runs([str(path)], "cpu", None)
    training, _ = load_digits()
    network = Trainer(MLP([64, 10]), training, validation=143, seed=3)  # what is held out is not shown
    rows = network.batches.rows[:3]
    of = Distortion(rotation=7.5, elastic=(34, 4))
    assert read.seen.shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(read.seen[:, 0], training.images[rows])
    for epoch in range(2):
        np.testing.assert_array_equal(
            read.seen[:, 1 + epoch], of.apply(training.images[rows], seed=3, epoch=epoch, rows=rows)
        )
    text = text_of(report_page([str(path)]))
    assert "how the network saw them in its first 2 epochs: rotation=7.5, elastic=34,4." in text
    assert "Distorted training images" not in text_of(report_page([str(digits)]))


def test_the_test_curve_is_drawn_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert run("train", *QUICK, "--test-curve", "--out", tmp_path / "r") == 0
    curve = [f"{100 * row['test_accuracy']:.4g} %" for row in read_curve(tmp_path / "r" / "test_curve.csv")]
    charts = re.findall(r'aria-label="Accuracy over [^"]*"', report_page([str(tmp_path / "r")]))
    assert [chart.partition("; test ")[2] for chart in charts] == [f'from {curve[0]} to {curve[-1]}."']
    (tmp_path / "r" / "test_curve.csv").write_text("epoch\n1,2,3\n")
    page = report_page([str(tmp_path / "r")])
    assert "test_curve.csv is damaged: expected a table of epochs" in text_of(page)
    assert 'aria-label="Accuracy over' in page


def test_statistics_of_layers_and_the_reason_of_a_divergence_are_shown(copy: Path) -> None:
    finding = {"name": "dead_units", "layer": 1, "message": "layer 1: 61 % of units are <dead>"}
    (copy / "diverged.json").write_text(json.dumps(finding))
    layer = {"gradient_norm": 0.5, "update_ratio": 1e-3, "weight_norm": 3, "dead": 0.61, "saturated": None}
    layer |= {"samples": 143, "gradient_samples": 128}
    records = [json.loads(line) for line in (copy / "history.jsonl").read_text().splitlines()]
    layers = [layer, {**layer, "dead": None}]
    set_history(copy, [{**record, "layers": layers} for record in records])
    page = report_page([str(copy)])
    assert "61 % of units are &lt;dead&gt;" in page
    assert "Learning curves: diverged" in text_of(page)
    assert "Dead units over 2 epochs: layer 1 from 61 % to 61 %" in page
    assert "Saturated units over" not in page


def test_the_page_shows_the_findings_of_the_diagnose_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*DIGITS, "--quiet", "--epochs", 2, "--learning-rate", 1, "--hidden", 64, 64, "--early-stopping", 9)
    assert run("train", *words, "--out", tmp_path / "a") == 0
    (tmp_path / "a" / "metrics.json").unlink()  # as in an unfinished run
    for folder in (tmp_path / "a", tmp_path / "a" / "best"):
        assert run("diagnose", folder) == 0
        said = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
        text = text_of(report_page([str(folder)]))
        assert said
        assert all(": " in line for line in said)
        for line in said:
            assert line.partition(": ")[2].split(";")[0][:60] in text
    assert run("train", *QUICK, "--diagnostics", "off", "--out", tmp_path / "b") == 0
    assert "Only the learning curves were examined" in text_of(report_page([str(tmp_path / "b")]))


def test_early_stopping_marks_the_best_network_and_shows_its_results(tmp_path: Path) -> None:
    words = (
        *DIGITS,
        "--quiet",
        "--epochs",
        60,
        "--learning-rate",
        0.3,
        "--early-stopping",
        3,
        "--out",
        tmp_path / "a",
    )
    assert run("train", *words) == 0
    (read,) = read_runs([str(tmp_path / "a")], "cpu", None)
    best = min(read.epochs, key=lambda epoch: epoch["validation_loss"])
    assert (read.network_epoch, len(read.epochs)) == (best["epoch"], best["epoch"] + 3)
    page = report_page([str(tmp_path / "a")])
    text = text_of(page)
    assert f"Epochs {len(read.epochs)} network of epoch {best['epoch']}" in text
    assert (
        f"The ring marks the best network, which early stopping keeps and this page shows: epoch {best['epoch']}."
        in text
    )
    assert f"Validation loss {best['validation_loss']:.4f}" in text
    assert page.count('r="7"') == 2  # on the curves of the validation loss and accuracy


def test_the_line_of_a_network_may_have_a_mark() -> None:
    drawn = chart("Loss", [Line("a", [1.0, 0.5, 0.75], 0, mark=2), Line("b", [1.0, None], 1, mark=2)])
    assert drawn is not None
    assert drawn.marks == [((62 + 546) / 2, drawn.y_ticks[0][0]), None]


def test_the_results_of_one_run_are_shown_once_and_the_pad_comes_next(digits: Path) -> None:
    page = report_page([str(digits)])
    top, _, rest = page.partition("<section")
    assert rest.startswith(' id="draw"')
    shown = text_of(top.partition("<nav")[0])
    for label in ("Test accuracy", "Mistakes", "Test loss", "Epochs", "Parameters"):
        assert shown.count(label) == 1
        assert label not in text_of(rest).partition("How to reproduce")[2]


def test_the_top_of_a_page_names_the_problems_found(digits: Path, tmp_path: Path) -> None:
    words = (*DIGITS, "--quiet", "--epochs", 2, "--learning-rate", 1, "--hidden", 64, 64, "--out", tmp_path / "a")
    assert run("train", *words) == 0
    assert "Problems found: none." in text_of(report_page([str(digits)]))
    assert "Problems found: dead units , classes not predicted ." in text_of(report_page([str(tmp_path / "a")]))
    text = text_of(report_page([str(digits), str(tmp_path / "a")]))
    assert "Problems found none dead units , classes not predicted" in text


def test_the_network_of_the_best_epoch_can_be_reported_with_its_run(tmp_path: Path) -> None:
    words = (*DIGITS, "--quiet", "--epochs", 6, "--early-stopping", 6, "--out", tmp_path / "a")
    assert run("train", *words) == 0
    page = report_page([str(tmp_path / "a"), str(tmp_path / "a" / "best")])
    text = text_of(page)
    assert "a/best" in text
    assert "network of the best epoch, " in text
    assert "is not finished" not in text
    assert "Gradient norm over" in page.partition("Layers of a/best")[2]  # from the checkpoint's own history


def test_a_diverged_run_is_reported_as_diverged(copy: Path) -> None:
    found = {"name": "diverging", "layer": None, "message": "training diverged in epoch 3"}
    (copy / "diverged.json").write_text(json.dumps(found))
    text = text_of(report_page([str(copy)]))
    assert "training diverged after 2 of 2 epochs" in text
    assert "training diverged in epoch 3" in text


def test_huge_losses_are_short_numbers(tmp_path: Path) -> None:
    words = (*DIGITS, "--quiet", "--epochs", 2, "--activation", "tanh", "--learning-rate", 1e6)
    assert run("train", *words, "--out", tmp_path / "a") == 0
    text = text_of(report_page([str(tmp_path / "a")]))
    assert re.search(r"Test loss \d(\.\d+)?e\+0\d Epochs", text)
    assert not re.search(r"\d{9}\.", text)


def test_a_run_that_diverges_in_its_first_epoch_can_be_reported(tmp_path: Path) -> None:
    words = (*QUICK, "--activation", "leaky_relu", "--learning-rate", 1e8, "--out", tmp_path / "a")
    assert run("train", *words) == 1
    text = text_of(report_page([str(tmp_path / "a")]))
    assert "training diverged after 0 of 2 epochs" in text
    assert "No epoch is finished" in text


def test_the_folder_of_the_mnist_files_applies_to_the_runs_on_mnist(digits: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mnist", small_mnist(40, 20, side=6))
    options = ("--dataset", "mnist", "--data-dir", folder, "--device", "cpu", "--epochs", 1, "--quiet")
    assert run("train", *options, "--batch-size", 10, "--out", tmp_path / "a") == 0
    (tmp_path / "elsewhere").mkdir()
    for file in folder.iterdir():
        file.rename(tmp_path / "elsewhere" / file.name)
    page = report_page([str(digits), str(tmp_path / "a")], data_dir=str(tmp_path / "elsewhere"))
    assert "40x6x6-uint8" in text_of(page)


def test_a_network_too_large_for_the_page_is_left_out_with_a_notice(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = len(report_page([str(digits)]).encode())
    monkeypatch.setattr("gpumlp.report.page.LIMIT", whole - 10_000)
    page = report_page([str(digits)])
    assert len(page.encode()) < whole
    assert "is not included: its" in page
    assert "<canvas" not in page


# -- The command -----------------------------------------------------------------------------------------------


def test_the_page_is_written_into_the_folder_of_the_run(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", digits) == 0
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
def test_a_damaged_file_is_reported_and_the_others_are_used(
    digits: Path, tmp_path: Path, file: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in digits.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_text(content)
    damage = f"{tmp_path / file} is damaged: {message}"
    assert run("history", tmp_path) == 2  # reads only these files
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert damage in err
    for name in ("report", "diagnose"):  # read the checkpoint, too
        assert run(name, tmp_path) == 1
        out, err = capsys.readouterr()
        assert err.startswith(f"gpumlp-{name}: {damage}")
        assert len(err.splitlines()) == 1
        assert out or (name, file) == ("diagnose", "history.jsonl")
    text = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"A file of {tmp_path.name} cannot be read" in text
    assert "is not finished" not in text
    assert "Test accuracy" in text
    assert ("training diverged after 2 of 2 epochs" in text) == (file == "diverged.json")
    assert ("by epoch" in text) == (file != "history.jsonl")


def test_train_writes_the_page_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *DIGITS, "--epochs", 1, "--out", tmp_path / "a", "--report") == 0
    path = tmp_path / "a" / "report.html"
    assert capsys.readouterr().out.endswith(f"report: {path}\n")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    for epochs, words in ((2, []), (3, ["--report"])):  # requested before, or again
        assert run("train", "--resume", tmp_path / "a", "--epochs", epochs, *words) == 0
        assert f"Epochs {epochs}" in text_of(path.read_text(encoding="utf-8"))
    assert run("train", *QUICK, "--out", tmp_path / "b") == 0
    assert run("train", "--resume", tmp_path / "b", "--report") == 0
    assert (tmp_path / "b" / "report.html").exists()


def test_train_writes_the_page_of_a_run_that_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*DIGITS, "--epochs", 2, "--activation", "leaky_relu", "--learning-rate", 1e8)
    assert run("train", *words, "--out", tmp_path / "a", "--report") == 1
    out, err = capsys.readouterr()
    path = tmp_path / "a" / "report.html"
    assert out.endswith(f"report: {path}\n")
    assert re.fullmatch(r"gpumlp-train: training diverged in epoch 1, .*\n", err)
    assert "training diverged after 0 of 2 epochs" in text_of(path.read_text(encoding="utf-8"))
    assert run("train", *words, "--out", tmp_path / "b") == 1  # not requested
    assert not (tmp_path / "b" / "report.html").exists()


def test_train_writes_the_page_of_an_interrupted_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(1, monkeypatch)
    assert run("train", *QUICK, "--out", tmp_path / "a", "--report") == 130
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "interrupted; the run is saved after epoch 1 of 2" in err
    text = text_of((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert "is not finished : this is the network of its last checkpoint, after epoch 1 of 2" in text


def test_a_page_that_cannot_be_written_does_not_hide_divergence(
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
    importlib.import_module("matplotlib")  # complete, before anything it imports is missing
    monkeypatch.setitem(sys.modules, library, None)
    expected = f'reports need {library}, which is not installed; install it with pip install ".[report]"\n'
    assert run("train", *QUICK, "--out", tmp_path / "a", "--report") == 2
    assert capsys.readouterr() == ("", f"gpumlp-train: {expected}")
    assert not (tmp_path / "a").exists()
    assert run("report", digits, "--out", tmp_path / "page.html") == 2
    assert capsys.readouterr() == ("", f"gpumlp-report: {expected}")


def test_wrong_arguments_are_refused_in_one_line_each(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*words: object) -> str:
        assert run("report", *words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.removeprefix("gpumlp-report: ").rstrip("\n")

    assert complaint() == "expected the folder of at least one run, got none"
    assert complaint(tmp_path / "none") == f"there is no run {tmp_path / 'none'}: no such folder"
    assert complaint(digits, f"{digits}/") == f"{digits}: expected each run once, got it 2 times"
    assert complaint(digits, "--out", tmp_path) == f"out: expected the path of a file to write, got {tmp_path}"
    assert complaint(digits, "--device", "tpu").startswith("device is expected to be")
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_written_atomically(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert run("report", digits, "--out", tmp_path / "file" / "page.html") == 2
    assert capsys.readouterr().err == f"gpumlp-report: out: there is no folder {tmp_path / 'file'}\n"

    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    page = tmp_path / "page.html"
    page.write_text("as it was")
    monkeypatch.setattr(os, "replace", fails)
    assert run("report", digits, "--out", page) == 1
    assert capsys.readouterr().err == f"gpumlp-report: {page}: No space left on device\n"
    assert page.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "page.html"]
