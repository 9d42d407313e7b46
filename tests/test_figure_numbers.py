"""Figure by figure: its numbers are real and say what the figure claims."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Dataset,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    Normal,
    StepDecay,
    figures,
    fit,
)
from gpumlp.figures.backpropagation import three_clouds
from gpumlp.figures.initial import XOR
from tests.figures_helpers import numbers, result

pytest.importorskip("matplotlib")


def test_backpropagation_shows_the_norms_of_the_recursion_done_by_hand() -> None:
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


def test_activations_show_slopes_that_are_those_of_the_values() -> None:
    s, curves = numbers("activations")["s"], numbers("activations")["curves"]
    assert len(curves) == 4
    for curve in curves.values():
        slopes = (curve["value"][2:] - curve["value"][:-2]) / (s[2:] - s[:-2])
        smooth = np.abs(s[1:-1]) > 0.05  # away from the ReLUs' corner
        np.testing.assert_allclose(curve["derivative"][1:-1][smooth], slopes[smooth], atol=2e-4)
    assert curves["sigmoid"]["derivative"].max() == pytest.approx(0.25)


def test_gradients_vanish_explode_or_flow_as_the_figure_says() -> None:
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


def test_a_training_that_diverges_is_said_to() -> None:
    run = numbers("gradient_flow")["networks"]["relu"]["too large"]
    assert run["after"] is None
    assert "diverged" in run["diverged"]
    assert "training diverged" in " ".join(t.get_text() for t in result("gradient_flow").figure.axes[3].texts)


def test_the_accuracies_carry_the_marks_of_their_lines() -> None:
    axes = result("gradient_flow").figure.axes[4]
    runs = numbers("gradient_flow")["networks"]["tanh"]
    shown = {text.get_text() for text in axes.texts}
    marks = dict(zip(("suited", "too small", "too large"), "●■▲", strict=True))
    assert [line.get_marker() for line in axes.lines] == ["o", "s", "^"]
    assert shown == {f"{marks[name]} {100 * run['after']['accuracy']:.0f} %" for name, run in runs.items()}


def test_trajectories_end_near_the_minimum_and_the_stochastic_one_wanders_there() -> None:
    paths = numbers("trajectories")["paths"]
    ends = {name: path["heights"][-1] for name, path in paths.items()}
    assert max(ends[name] for name in ("batch gradient descent", "momentum", "Nesterov")) < 1e-4
    assert ends["Adam"] < 1e-2
    assert 1e-4 < np.mean(paths["stochastic"]["heights"][-20:]) < 0.5
    steps = np.arange(81)[:, None]
    by_hand = np.array([-1.8, 1.8]) * (1 - 0.1 * np.array([1.0, 4.0])) ** steps
    np.testing.assert_allclose(paths["batch gradient descent"]["positions"], by_hand, atol=1e-12)
    np.testing.assert_allclose(numbers("trajectories")["points"].mean(axis=0), 0, atol=1e-12)


def test_schedules_are_those_of_the_package() -> None:
    rates = numbers("schedules")["learning_rates"]
    rules = {
        "step": StepDecay(gamma=0.5, step_size=10),
        "exponential": ExponentialDecay(0.05),
        "1/t": InverseTimeDecay(0.05),
        "milestones": Milestones((20, 40), gamma=0.2),
    }
    assert {name: [rule(0.1, epoch) for epoch in range(60)] for name, rule in rules.items()} == rates


def test_xor_is_not_learned_from_tiny_weights_and_is_from_suited_ones() -> None:
    starts = numbers("initialization_scale")["starts"]
    tiny, suited = starts["normal, scale 0.01"], starts["Glorot"]
    assert tiny["losses"].shape == (5, 200)
    np.testing.assert_allclose(tiny["losses"][:, -1], math.log(2), atol=1e-3)
    assert (tiny["solved"], suited["solved"]) == (0, 5)
    np.testing.assert_allclose(suited["mean"], suited["losses"].mean(axis=0))
    assert suited["std"].max() > 0


def test_the_trainings_on_xor_are_those_of_the_trainer() -> None:
    starts = figures.initialization_scale(seed=3, seeds=1, epochs=40, scales=(1.0,)).numbers["starts"]
    model = MLP([2, 4, 2], "tanh", initializer=Normal(1.0), seed=3, device="cpu")
    history = fit(model, Dataset(*XOR, classes=2), optimizer=SGD(0.5), epochs=40, batch_size="full")
    np.testing.assert_allclose(starts["normal, scale 1"]["losses"][0], history["train_loss"], rtol=1e-5)


def test_initial_variances_are_the_theory_s_within_the_sampling_error() -> None:
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


def test_penalties_make_the_network_s_weights_and_its_gap_smaller() -> None:
    networks = numbers("regularization")["network"]
    for name in ("L2", "L1"):
        assert networks[name]["weight_norm"] < networks["none"]["weight_norm"]
        assert networks[name]["gap"] < networks["none"]["gap"]
    assert networks["L1"]["weights_near_zero"] > 5 * networks["L2"]["weights_near_zero"]


def test_first_layer_weights_are_the_drawn_ones_and_then_learned_ones() -> None:
    shown = numbers("first_layer_weights")
    drawn = MLP([64, 32, 10], seed=0, device="cpu").state_dict()["layers.0.weight"].T.reshape(32, 8, 8)
    assert all((image == drawn).all(axis=(1, 2)).any() for image in shown["untrained"])
    assert shown["trained"].shape == (16, 8, 8)
    assert abs(shown["smoothness_untrained"]) < 0.1
    assert shown["accuracy_trained"] > 0.85 > shown["accuracy_untrained"]


def test_the_sign_of_weights_can_be_seen_in_a_grey_print() -> None:
    (picture,) = result("first_layer_weights").figure.axes[0].images
    assert picture.norm.vmin == -picture.norm.vmax
    brightness = picture.cmap(np.linspace(0, 1, 50))[:, :3] @ (0.299, 0.587, 0.114)
    assert np.diff(brightness).min() > 0


def test_first_layer_weights_of_what_is_no_image_are_refused(blobs: Dataset) -> None:
    with pytest.raises(ValueError, match="expects images of height x width"):
        figures.first_layer_weights((blobs, blobs))


def test_each_learning_curve_is_what_it_is_called() -> None:
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


def test_gradient_descent_is_compared_from_one_start_over_the_samples_that_were_seen() -> None:
    runs = numbers("optimizer_noise")["runs"]
    assert [run["batch_size"] for run in runs.values()] == [500, 64, 1]
    assert [run["samples"][-1] for run in runs.values()] == [10 * 500, 3 * 500, 500]
    assert [run["steps"] for run in runs.values()] == [10, 3 * 8, 500]
    assert len({run["losses"][0] for run in runs.values()}) == 1
    for run in runs.values():
        assert min(np.diff(run["samples"])) > 0
        assert min(np.diff(run["seconds"])) > 0
        assert run["losses"][-1] < run["losses"][0]
