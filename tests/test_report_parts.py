"""What a report is made of: measures, pictures, charts, and the pad to draw on."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest

from gpumlp import MLP, Dataset, Normal, fit, load_digits
from gpumlp.report import drawing_page
from gpumlp.report.charts import Line, chart
from gpumlp.report.embedding import Field
from gpumlp.report.images import mosaic
from gpumlp.report.measures import measure

pytest.importorskip("jinja2")


def test_confusions_and_mistakes_are_those_of_the_predictions() -> None:
    _, test = load_digits()
    model = MLP([64, 12, 10], seed=0, device="cpu")
    found = measure(model, test, mistakes=7)
    probabilities = model.predict_proba(test.images)
    predictions = probabilities.argmax(axis=1)
    assert found.samples == len(test)
    assert found.wrong == int((predictions != test.labels).sum())
    assert found.confusion[3, 5] == int(((test.labels == 3) & (predictions == 5)).sum())
    assert found.recall()[4] == pytest.approx((predictions[test.labels == 4] == 4).mean())
    wrong = np.flatnonzero(predictions != test.labels)
    surest = wrong[np.argsort(-probabilities.max(axis=1)[wrong])][:7]
    assert [mistake.probability for mistake in found.mistakes] == pytest.approx(probabilities.max(axis=1)[surest])
    assert all(predictions[m.sample] == m.prediction != test.labels[m.sample] for m in found.mistakes)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_saturated_output_is_the_same_as_in_the_diagnostics(activation: str) -> None:
    train, test = load_digits()
    # The report looks at the first thousand test samples, the diagnostics at a batch of those they validate with.
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


def test_the_sign_of_weights_can_be_seen_in_a_grey_print() -> None:
    Image = pytest.importorskip("PIL.Image")
    ramp = np.linspace(-1, 1, 30)
    uri, _, limit = mosaic(ramp[:, None], (1, 30), 1)
    (grey,) = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"), dtype=int)
    assert limit == pytest.approx(1)
    assert np.diff(grey).min() > 0


def test_two_layers_of_512_leave_room_for_a_report_below_3_mb() -> None:
    page = drawing_page(MLP([784, 512, 512, 10], device="cpu"), (28, 28))
    assert len(page.encode()) < 2_750_000  # and a report on such a run, its network aside, takes 0.15 MB


def test_the_drawing_page_refuses_what_does_not_fit() -> None:
    model = MLP([64, 8, 10], device="cpu")
    with pytest.raises(ValueError, match=r"expects images of 64 values, got 7 x 9 = 63"):
        drawing_page(model, (7, 9))
    with pytest.raises(ValueError, match=r"a page draws the probabilities of classes, got .* squared_error"):
        drawing_page(MLP([64, 8, 2], loss="squared_error", device="cpu"), (8, 8))
    flat = Dataset(np.zeros((4, 64)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"expected data of images of 8 x 8"):
        drawing_page(model, (8, 8), data=flat)


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


def test_charts_place_values_within_their_panel() -> None:
    nan = float("nan")
    drawn = chart("Loss", [Line("a", [1.0, nan, 0.5, None, 0.25], 0), Line("b", [None] * 5, 1)])
    assert drawn is not None
    assert [line.label for line in drawn.lines] == ["a"]
    assert drawn.paths[0].count("M") == 2  # the line is broken at a NaN, and goes on over what was not looked at
    assert drawn.paths[0].count("L") == 1
    assert drawn.data()["lines"] == [{"label": "a", "values": [1.0, None, 0.5, 0.5, 0.25]}]
    assert drawn.summary == "Loss over 5 epochs: a from 1 to 0.25."
    heights = [y for y, _ in drawn.y_ticks]
    assert heights == sorted(heights, reverse=True)
    assert chart("Loss", [Line("a", [None, nan], 0)]) is None
    logarithmic = chart("Norm", [Line("a", [0.0, 1e-3, 10.0], 0)], log=True)
    assert logarithmic is not None
    assert [text for _, text in logarithmic.y_ticks] == ["0.001", "0.01", "0.1", "1", "10", "0"]
    heights = {text: y for y, text in logarithmic.y_ticks}
    assert logarithmic.paths[0].startswith(f"M{logarithmic.first_x:g} {heights['0']:g}L")  # 0 is below all others
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
