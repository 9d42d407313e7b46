"""The figures: their data and common properties."""

from __future__ import annotations

import itertools
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from gpumlp import (
    MLP,
    SGD,
    Cosine,
    DataError,
    Dataset,
    Distortion,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    Normal,
    OneCycle,
    StepDecay,
    Warmup,
    figures,
    fit,
    load_digits,
)
from gpumlp.figures.data import draw
from gpumlp.figures.gradients import backward_pass, three_clouds
from gpumlp.figures.style import in_house_style, json_values
from gpumlp.figures.weights import XOR
from gpumlp.records import save_result
from gpumlp.training.config import ConfigError
from tests.strict_device import StrictBackend

LABELS = load_digits()[1].labels
# Samples 5 and 9 are wrong with all three seeds, 2 with two, and 7 with one.
WRONG = [[(2, 1), (5, 1), (9, 2)], [(2, 1), (5, 3), (7, 0), (9, 2)], [(5, 3), (9, 2)]]
BASE = {"device": "cpu", "hardware": "a CPU", "seconds": [1.0], "test_samples": 10_000}
MEASURED: list[dict[str, Any]] = [
    {**BASE, "record": "simard2003", "published": 0.7, "wrong": [75], "curves": [[500, 75]]},
    {
        **BASE,
        "record": "simard2003",
        "published": 0.7,
        "hardware": "two",
        "wrong": [70, 60],
        "curves": [[300, 90, 70], [400, 80, 60]],
    },
    {**BASE, "record": "own", "wrong": [120], "curves": [[0]], "mistakes": [[(3, 1)] * 120]},
    {**BASE, "record": "meier2011", "wrong": [50]},
    {**BASE, "record": "digits", "test_samples": 360, "wrong": [3, 4, 2], "mistakes": WRONG}
    | {"curves": [[90, 3], [36, 4], [18, 2]]},
]

matplotlib_figure = pytest.importorskip("matplotlib.figure")

SMALL: dict[str, dict[str, Any]] = {
    "gradient_flow": {"samples": 600, "probe": 200, "units": 32, "epochs": 2, "large": 2.0},
    "initialization_scale": {"seeds": 5, "epochs": 200, "scales": (0.01, 1.0)},
    "regularization": {"samples": 400, "validation": 800, "epochs": 20},
    "optimizer_noise": {
        "samples": 500,
        "probe": 300,
        "batch_epochs": 10,
        "mini_batch_epochs": 3,
        "single_epochs": 1,
    },
}
FROM_RESULTS = {"records", "mistakes"}
FROM_DATA = {
    *("gradient_flow", "regularization", "first_layer_weights", "learning_curves", "optimizer_noise"),
    "distortion",
}


@pytest.fixture(scope="module", autouse=True)
def _results(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file of results for the figures that are drawn from one."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    for own in MEASURED:
        save_result(path, own)
    SMALL["records"], SMALL["mistakes"] = {"results": path}, {"results": path, "record": "digits"}


@cache
def result(name: str) -> figures.FigureResult:
    """Each figure once for all tests: small, and from the built-in digits."""
    data = {"data": load_digits()} if name in FROM_DATA else {}
    return figures.FIGURES[name](**data, **SMALL.get(name, {}))


def numbers(name: str) -> dict[str, Any]:
    return result(name).numbers


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_comes_with_its_numbers_title_and_caption(name: str) -> None:
    figure, values = result(name)
    assert isinstance(figure, matplotlib_figure.Figure)
    assert values["title"] in " ".join(figure.texts[0].get_text().split())
    assert values["caption"].endswith(".")
    json.dumps(json_values(values), allow_nan=False)


@pytest.mark.parametrize("name", sorted(FROM_DATA))
def test_a_figure_says_that_the_digits_replace_mnist(name: str) -> None:
    assert "the built-in digits (in place of MNIST)" in numbers(name)["title"]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_text_overlaps_or_crosses_the_edge(name: str) -> None:
    figure = result(name).figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches()
    around = figure.get_tightbbox(renderer)
    assert around.x0 >= 0
    assert around.y0 >= 0
    assert around.x1 <= width
    assert around.y1 <= height
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_visible()]
        boxes += [axes.get_legend().get_window_extent(renderer)] if axes.get_legend() else []
        for one, other in itertools.combinations(boxes, 2):
            assert not one.padded(-1).overlaps(other.padded(-1))


@pytest.mark.parametrize("name", ["backpropagation", "trajectories", "initial_weights", "first_layer_weights"])
def test_a_seed_gives_the_same_numbers_and_another_seed_others(name: str) -> None:
    data = {"data": load_digits()} if name in FROM_DATA else {}
    again, other = (figures.FIGURES[name](**data, seed=seed).numbers for seed in (0, 1))
    assert json.dumps(json_values(again)) == json.dumps(json_values(numbers(name)))
    assert json.dumps(json_values(other)) != json.dumps(json_values(numbers(name)))


# -- Data of a figure ---------------------------------------------------------------------------------------


def test_backpropagation_shows_the_norms_of_the_recursion() -> None:
    data, model = three_clouds(60, 4, 0), MLP([4, 5, 4, 3], "tanh", seed=0, device="cpu", dtype="float64")
    state = model.state_dict()
    outputs = [np.asarray(data.images)]
    for layer in range(3):
        s = outputs[-1] @ state[f"layers.{layer}.weight"] + state[f"layers.{layer}.bias"]
        outputs.append(np.tanh(s) if layer < 2 else s)
    probabilities = np.exp(outputs[-1]) / np.exp(outputs[-1]).sum(axis=1, keepdims=True)
    deltas = [(probabilities - np.eye(3)[data.labels]) / 60]
    for layer in (2, 1):
        deltas.insert(0, deltas[0] @ state[f"layers.{layer}.weight"].T * (1 - outputs[layer] ** 2))
    shown = numbers("backpropagation")
    for layer, delta in enumerate(deltas):
        assert shown["delta_norms"][layer] == pytest.approx(np.linalg.norm(delta))
        np.testing.assert_allclose(shown["unit_delta_norms"][layer], np.linalg.norm(delta, axis=0))
        assert shown["gradient_norms"][layer] == pytest.approx(np.linalg.norm(outputs[layer].T @ delta))


def test_derivatives_of_activations_are_the_slopes_of_their_values() -> None:
    s, curves = numbers("activations")["s"], numbers("activations")["curves"]
    for curve in curves.values():
        slopes = (curve["value"][2:] - curve["value"][:-2]) / (s[2:] - s[:-2])
        smooth = np.abs(s[1:-1]) > 0.05  # away from the ReLUs' corner
        np.testing.assert_allclose(curve["derivative"][1:-1][smooth], slopes[smooth], atol=2e-4)
    assert curves["sigmoid"]["derivative"].max() == pytest.approx(0.25)


def test_gradients_vanish_explode_or_flow() -> None:
    networks = numbers("gradient_flow")["networks"]
    assert set(networks) == {"relu", "tanh", "sigmoid"}
    first_over_last = {
        (activation, start): run["before"]["gradient_norms"][0] / run["before"]["gradient_norms"][-1]
        for activation, runs in networks.items()
        for start, run in runs.items()
    }
    assert all(len(run["before"]["delta_norms"]) == 10 for runs in networks.values() for run in runs.values())
    assert 0.1 < first_over_last["relu", "suited"] < 10
    assert 0.1 < first_over_last["tanh", "suited"] < 10
    assert first_over_last["sigmoid", "suited"] < 1e-3
    assert first_over_last["sigmoid", "too small"] < 1e-9
    assert math.isfinite(networks["sigmoid"]["too large"]["after"]["loss"])
    assert max(networks["relu"]["too small"]["before"]["gradient_norms"]) < 1e-6
    assert max(networks["relu"]["too large"]["before"]["gradient_norms"]) > 1e3
    assert networks["tanh"]["suited"]["after"]["loss"] < networks["tanh"]["suited"]["before"]["loss"]


def test_divergence_is_shown() -> None:
    run = numbers("gradient_flow")["networks"]["relu"]["too large"]
    assert run["after"] is None
    assert "diverged" in run["diverged"]
    assert "training diverged" in " ".join(t.get_text() for t in result("gradient_flow").figure.axes[3].texts)


def test_the_accuracies_carry_the_markers_of_their_lines() -> None:
    axes = result("gradient_flow").figure.axes[4]
    runs = numbers("gradient_flow")["networks"]["tanh"]
    shown = {text.get_text() for text in axes.texts}
    marks = dict(zip(("suited", "too small", "too large"), "●■▲", strict=True))
    assert [line.get_marker() for line in axes.lines] == ["o", "s", "^"]
    assert shown == {f"{marks[name]} {100 * run['after']['accuracy']:.0f} %" for name, run in runs.items()}


def test_trajectories_end_near_the_minimum_and_the_stochastic_one_moves_around_it() -> None:
    paths = numbers("trajectories")["paths"]
    ends = {name: path["heights"][-1] for name, path in paths.items()}
    assert max(ends[name] for name in ("batch gradient descent", "momentum", "Nesterov")) < 1e-4
    assert ends["Adam"] < 1e-2
    assert 1e-4 < np.mean(paths["stochastic"]["heights"][-20:]) < 0.5
    steps = np.arange(81)[:, None]
    by_hand = np.array([-1.8, 1.8]) * (1 - 0.1 * np.array([1.0, 4.0])) ** steps
    np.testing.assert_allclose(paths["batch gradient descent"]["positions"], by_hand, atol=1e-12)
    np.testing.assert_allclose(numbers("trajectories")["points"].mean(axis=0), 0, atol=1e-12)


def test_schedules_are_computed_by_the_package() -> None:
    rates = numbers("schedules")["learning_rates"]
    rules = {
        "step": StepDecay(gamma=0.5, step_size=10),
        "exponential": ExponentialDecay(0.05),
        "1/t": InverseTimeDecay(0.05),
        "milestones": Milestones((20, 40), gamma=0.2),
    }
    assert {name: [rule(0.1, epoch) for epoch in range(60)] for name, rule in rules.items()} == rates
    by_step = {
        "warm-up": Warmup(100),
        "warm-up, then cosine": Warmup(100, then=Cosine(900)),
        "cosine": Cosine(1000),
        "one-cycle": OneCycle(1000),
    }
    found = numbers("schedules")["rates_by_step"]
    assert {name: [rule(0.1, step) for step in range(1000)] for name, rule in by_step.items()} == found
    assert {name: max(rates) for name, rates in found.items()} == pytest.approx(dict.fromkeys(by_step, 0.1))


def test_xor_is_learned_from_suited_weights_and_not_from_tiny_ones() -> None:
    starts = numbers("initialization_scale")["starts"]
    tiny, suited = starts["normal, scale 0.01"], starts["Glorot"]
    assert tiny["losses"].shape == (5, 200)
    np.testing.assert_allclose(tiny["losses"][:, -1], math.log(2), atol=1e-3)
    assert (tiny["solved"], suited["solved"]) == (0, 5)
    np.testing.assert_allclose(suited["mean"], suited["losses"].mean(axis=0))
    assert suited["std"].max() > 0


def test_training_on_xor_is_the_same_as_with_the_trainer() -> None:
    starts = figures.initialization_scale(seed=3, seeds=1, epochs=40, scales=(1.0,)).numbers["starts"]
    model = MLP([2, 4, 2], "tanh", initializer=Normal(1.0), seed=3, device="cpu")
    history = fit(model, Dataset(*XOR, classes=2), optimizer=SGD(0.5), epochs=40, batch_size="full")
    np.testing.assert_allclose(starts["normal, scale 1"]["losses"][0], history["train_loss"], rtol=1e-5)


def test_initial_variances_agree_with_theory_within_the_sampling_error() -> None:
    variances = numbers("initial_weights")["variances"]
    assert round(variances["Glorot"][0]["theoretical"], 8) == 0.00219298
    assert round(variances["He"][0]["theoretical"], 8) == 0.00255102
    for rows in variances.values():
        assert [row["shape"] for row in rows] == [[784, 128], [128, 64], [64, 10]]
        for row in rows:
            assert abs(row["measured"] - row["theoretical"]) < 4 * row["sampling_error"]


def test_penalties_make_the_polynomial_smaller_and_better() -> None:
    fits = numbers("regularization")["polynomial"]
    for penalised in (fits["L2"], fits["L1"]):
        assert penalised["norms"][-1] < fits["none"]["norms"][-1]
        assert penalised["test_mse"][-1] < 0.5 * fits["none"]["test_mse"][-1]
        assert penalised["train_mse"][-1] > fits["none"]["train_mse"][-1]
    assert len(fits["L1"]["weights"]) == 15
    assert (np.abs(fits["L1"]["weights"]) < 1e-3).sum() >= 5
    assert (np.abs(fits["L2"]["weights"]) < 1e-3).sum() == 0


def test_penalties_make_the_weights_of_the_network_and_its_gap_smaller() -> None:
    networks = numbers("regularization")["network"]
    for name in ("L2", "L1"):
        assert networks[name]["weight_norm"] < networks["none"]["weight_norm"]
        assert networks[name]["gap"] < networks["none"]["gap"]
    assert networks["L1"]["weights_near_zero"] > 5 * networks["L2"]["weights_near_zero"]


def test_first_layer_weights_are_the_initial_and_the_learned_ones() -> None:
    shown = numbers("first_layer_weights")
    drawn = MLP([64, 32, 10], seed=0, device="cpu").state_dict()["layers.0.weight"].T.reshape(32, 8, 8)
    assert all((image == drawn).all(axis=(1, 2)).any() for image in shown["untrained"])
    assert shown["trained"].shape == (16, 8, 8)
    assert abs(shown["smoothness_untrained"]) < 0.1
    assert shown["accuracy_trained"] > 0.85 > shown["accuracy_untrained"]


def test_the_sign_of_weights_is_visible_in_grey() -> None:
    (picture,) = result("first_layer_weights").figure.axes[0].images
    assert picture.norm.vmin == -picture.norm.vmax
    brightness = picture.cmap(np.linspace(0, 1, 50))[:, :3] @ (0.299, 0.587, 0.114)
    assert np.diff(brightness).min() > 0


def test_first_layer_weights_refuses_samples_that_are_not_images(blobs: Dataset) -> None:
    with pytest.raises(ValueError, match="expects images of height x width"):
        figures.first_layer_weights((blobs, blobs))


def test_distorted_images_are_those_of_training() -> None:
    values, (train, _) = numbers("distortion"), load_digits()
    of = Distortion(rotation=7.5, scaling=0.12, shear=0.12, elastic=(34, 4))
    assert values["forms"].shape == (30, 8, 8)
    np.testing.assert_array_equal(values["forms"][7], of.apply(train.images[:1], seed=0, epoch=7)[0])
    np.testing.assert_array_equal(values["image"], train.images[0])
    down, right = values["moves"].astype(float)
    rows, columns = np.indices((8, 8))
    # The interpolation at the place that a pixel comes from, by the definition; in the middle, inside the image.
    padded = np.pad(train.images[0].astype(float), 8)
    at_row, at_column = rows + down + 8, columns + right + 8
    expected = np.zeros((8, 8))
    for r, c in itertools.product((0, 1), (0, 1)):
        row, column = np.floor(at_row).astype(int) + r, np.floor(at_column).astype(int) + c
        expected += padded[row, column] * (1 - abs(at_row - row)) * (1 - abs(at_column - column))
    assert np.abs(expected - values["forms"][0]).max() <= 255 / 128 + 0.5


def test_the_curves_of_records_are_those_of_the_results_in_percent() -> None:
    shown = numbers("records")["records"]
    assert list(shown) == ["own", "digits", "simard2003"], "from the largest error to the smallest, with curves"
    np.testing.assert_allclose(shown["simard2003"]["curves"], [[3, 0.9, 0.7], [4, 0.8, 0.6]])
    np.testing.assert_allclose(shown["digits"]["curves"], [[25, 3 / 3.6], [10, 4 / 3.6], [5, 2 / 3.6]])
    assert [shown[name]["published"] for name in shown] == [None, None, 0.7]
    assert shown["simard2003"]["hardware"] == "two", "that of the most seeds"
    panel = result("records").figure.axes[2]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [3.5, 0.85, 0.65])
    edges = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((0.6, 4))
    assert set(panel.lines[1].get_ydata()) == {0.7}
    assert {text.get_text() for text in panel.texts} == {"published 0.70 %", "0.65 ± 0.07 %", "2 seeds"}


def test_mistakes_are_sorted_by_how_many_seeds_make_them() -> None:
    figure, shown = result("mistakes")
    order = [*sorted((5, 9), key=lambda sample: LABELS[sample]), 2, 7]
    assert shown["samples"] == order
    assert list(shown["labels"]) == [LABELS[sample] for sample in order]
    found = dict(zip(shown["samples"], shown["predictions"], strict=True))
    assert found == {5: {1: 1, 3: 2}, 9: {2: 3}, 2: {1: 2}, 7: {0: 1}}
    assert shown["title"] == "digits gets 4 of 360 test samples wrong, 2 with every seed"
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["wrong with every seed: 2", "wrong with 2 of 3 seeds: 1", "wrong with 1 of 3 seeds: 1"]
    captions = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert captions == [f"{LABELS[sample]}→{ {5: '3,1', 9: '2', 2: '1', 7: '0'}[sample] }" for sample in order]
    images = load_digits()[1].images
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array()[:8, 9:17], images[order[1]])
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array()[:8, :8], images[2])


def test_mistakes_without_a_name_are_those_of_the_best_record_of_the_data() -> None:
    shown = figures.mistakes(data=load_digits(), results=SMALL["mistakes"]["results"]).numbers
    assert json_values(shown) == json_values(numbers("mistakes"))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"record": "simard2003"}, "expected one with saved mistakes, own, digits, got simard2003"),
        (
            {"record": "digits", "results": "none.json"},
            "expected results with mistakes, got none; python -m gpumlp",
        ),
    ],
)
def test_a_record_without_mistakes_is_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        figures.mistakes(**{**SMALL["mistakes"], **own})


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        (
            {"test_samples": 361},
            DataError,
            "expected the 361 test samples of the results of digits, got 360 others",
        ),
        ({"wrong": [1], "mistakes": [[(360, 1)]]}, DataError, "got 360 others"),
        ({"wrong": [1], "mistakes": [[(5, 10)]]}, DataError, "got 360 others"),
        ({"wrong": [1], "mistakes": [[(5, int(LABELS[5]))]]}, DataError, "got 360 others"),
        (
            {"wrong": [0], "mistakes": [[]]},
            ConfigError,
            "expected one with mistakes, got digits, which makes none",
        ),
    ],
)
def test_mistakes_of_other_data_are_refused(
    tmp_path: Path, own: dict[str, Any], error: type[Exception], message: str
) -> None:
    save_result(tmp_path / "results.json", {**MEASURED[-1], **own})
    with pytest.raises(error, match=message):
        figures.mistakes(record="digits", results=tmp_path / "results.json")


def test_each_learning_curve_is_what_its_name_says() -> None:
    runs = numbers("learning_curves")["runs"]
    assert {name: run["trend"] for name, run in runs.items()} == {name: name for name in runs}
    converging, overfitting, underfitting, unstable = runs.values()
    assert list(runs) == ["converging", "overfitting", "underfitting", "unstable"]
    for losses in (converging["train_loss"], converging["validation_loss"]):
        assert losses[-1] < 0.5 * losses[0]
    assert (converging["ups"], converging["best_epoch"]) == (0, 30)
    assert overfitting["train_loss"][-1] < 0.05
    assert overfitting["rise"] > 0.1
    assert overfitting["train_accuracy"] == 1
    assert underfitting["train_loss"][-1] > 1
    assert underfitting["gap"] < 0.2
    assert unstable["ups"] >= 4


def test_batch_sizes_are_compared_from_the_same_start() -> None:
    runs = numbers("optimizer_noise")["runs"]
    assert [run["batch_size"] for run in runs.values()] == [448, 64, 1]  # of 500: no batch is short
    assert [run["samples"][-1] for run in runs.values()] == [10 * 448, 3 * 448, 448]
    assert [run["steps"] for run in runs.values()] == [10, 3 * 7, 448]
    assert [len(run["samples"]) for run in runs.values()] == [1 + 10, 1 + 3 * 7, 1 + 20]  # whatever the clock says
    assert len({run["losses"][0] for run in runs.values()}) == 1
    for run in runs.values():
        assert min(np.diff(run["samples"])) > 0
        assert min(np.diff(run["seconds"])) > 0
        assert run["losses"][-1] < run["losses"][0]


# -- Common properties -------------------------------------------------------------------------------------


def test_a_backward_pass_is_the_same_on_every_device(backend: Any, blobs: Dataset) -> None:
    expected = backward_pass(MLP([20, 6, 5, 4], seed=2, device="cpu"), blobs)
    found = backward_pass(MLP([20, 6, 5, 4], seed=2, device=backend), blobs)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for one, other in zip([*expected.deltas, *expected.gradients], [*found.deltas, *found.gradients], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)


def test_the_figures_train_on_any_device() -> None:
    backend = StrictBackend()
    shown = figures.first_layer_weights(load_digits(), epochs=1, device=backend).numbers
    assert shown["trained"].shape == (16, 8, 8)
    assert len(figures.backpropagation(device=backend).numbers["delta_norms"]) == 3


@pytest.mark.parametrize(
    ("name", "panel", "labels"),
    [
        ("schedules", 0, ["times 0.5 every 10 epochs", "k = 0.05", "k = 0.05", "times 0.2 after 20, 40"]),
        ("trajectories", 5, ["rate 0.1", "rate 0.1", "m 0.8, rate 0.1", "v 0.8, rate 0.1", "rate 0.1"]),
        ("gradient_flow", 0, ["He or Glorot", "0.01", "2"]),
        ("regularization", 2, ["none", "L2 0.05", "L1 0.03"]),
        ("regularization", 4, ["none", "L2 0.003", "L1 0.0003"]),
        ("optimizer_noise", 0, ["of 448, learning rate 0.5", "of 64, learning rate 0.1", "learning rate 0.01"]),
    ],
)
def test_legends_name_the_parameters(name: str, panel: int, labels: list[str]) -> None:
    shown = [text.get_text() for text in result(name).figure.axes[panel].get_legend().get_texts()]
    assert [label in text for label, text in zip(labels, shown[-len(labels) :], strict=True)] == [True] * len(
        labels
    )


def test_figures_compute_with_one_thread_and_leave_the_number_as_it_was() -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert in_house_style(threads)() == {1}
        assert threads() == before


def test_parts_of_a_data_set_do_not_overlap_and_shrink_together(blobs: Dataset) -> None:
    first, second = draw(blobs, (400, 200), seed=1)
    assert (len(first), len(second)) == (200, 100)
    rows = {row.tobytes() for row in np.asarray(first.images)} | {
        row.tobytes() for row in np.asarray(second.images)
    }
    assert len(rows) == len({row.tobytes() for row in np.asarray(blobs.images)})


def test_a_notebook_shows_a_figure_as_a_picture() -> None:
    shown = result("schedules")
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert repr(shown).startswith("<figure 'Learning-rate schedules'; its numbers: title, caption, epochs")
