"""Initial weights: variances by the formulas, and reproducibility by seed."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gpumlp import MLP, Dense, Glorot, He, LeakyReLU, Normal, Orthogonal
from gpumlp.nn import ReLU
from gpumlp.nn.activations import ACTIVATIONS
from gpumlp.nn.initializers import INITIALIZERS, Initializer, draw_weights, get_initializer

SIZES = [784, 128, 64, 10]  # the network of the notes
# 2 / (in + out): 2/912, 2/192, 2/74;  2 / in: 2/784, 2/128, 2/64;  0.01^2
VARIANCES = {
    "glorot": [0.00219298, 0.01041667, 0.02702703],
    "he": [0.00255102, 0.015625, 0.03125],
    "normal": [0.0001, 0.0001, 0.0001],
}


@pytest.mark.parametrize(("rule", "name"), [(Glorot(), "glorot"), (He(), "he"), (Normal(), "normal")])
def test_variance_in_theory(rule: Initializer, name: str) -> None:
    found = [rule.std(*layer) ** 2 for layer in pairwise(SIZES)]
    np.testing.assert_allclose(found, VARIANCES[name], rtol=0, atol=5e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", VARIANCES)
def test_weights_are_normal_with_that_variance(name: str, seed: int) -> None:
    """Mean, variance and the fraction within one sigma are within 4 standard errors of a normal sample."""
    model = MLP(SIZES, initializer=name, seed=seed, device="cpu")
    for layer, variance in zip(model.layers, VARIANCES[name], strict=True):
        w = layer.weight.astype(np.float64)
        assert abs(w.mean()) < 4 * math.sqrt(variance / w.size)
        assert abs(w.var() - variance) < 4 * math.sqrt(2 * variance**2 / w.size)
        share = np.mean(np.abs(w) < math.sqrt(variance))
        assert abs(share - 0.6827) < 4 * math.sqrt(0.6827 * 0.3173 / w.size)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("rule", "name"), [(Glorot(uniform=True), "glorot"), (He(uniform=True), "he")])
def test_uniform_weights_fill_their_range_with_the_same_variance(rule: Initializer, name: str, seed: int) -> None:
    model = MLP(SIZES, initializer=rule, seed=seed, device="cpu", dtype="float64")
    same = MLP(SIZES, initializer=f"{name}_uniform", seed=seed, device="cpu", dtype="float64")
    np.testing.assert_array_equal(model.parameters.data, same.parameters.data)
    for layer, variance in zip(model.layers, VARIANCES[name], strict=True):
        w, bound = layer.weight, math.sqrt(3 * variance)
        assert np.abs(w).max() < bound * (1 + 1e-6)  # the table's variances are rounded
        assert np.abs(w).max() > bound * (1 - 20 / w.size)
        assert abs(w.mean()) < 4 * math.sqrt(variance / w.size)
        assert abs(w.var() - variance) < 4 * math.sqrt(0.8 * variance**2 / w.size)  # the kurtosis is 9 / 5
        assert abs(np.mean(np.abs(w) < bound / 2) - 0.5) < 4 * math.sqrt(0.25 / w.size)


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2**0.5), ("leaky_relu", 2**0.5), ("tanh", 1)])
def test_orthogonal_weights_keep_lengths_up_to_the_gain(activation: str, gain: float) -> None:
    sizes = [20, 30, 30, 5]
    model = MLP(sizes, activation, initializer="orthogonal", seed=1, device="cpu", dtype="float64")
    assert model.initializer == Orthogonal(gain)
    for layer, (inputs, outputs) in zip(model.layers, pairwise(sizes), strict=True):
        w = layer.weight / gain
        product = w.T @ w if inputs >= outputs else w @ w.T
        np.testing.assert_allclose(product, np.eye(min(inputs, outputs)), atol=1e-12)
        assert math.isclose((w * w).mean(), (Orthogonal().std(inputs, outputs)) ** 2)


def test_orthogonal_weights_are_drawn_uniformly() -> None:
    """The first element of a 2 x 2 rotation or reflection is a cosine of a uniform angle: mean 0, variance 1/2."""
    rng = np.random.default_rng(0)
    first = np.array([draw_weights(Orthogonal(), 2, 2, rng)[0, 0] for _ in range(4000)])
    assert abs(first.mean()) < 4 * math.sqrt(0.5 / 4000)
    assert abs(np.mean(np.abs(first) < math.sqrt(0.5)) - 0.5) < 4 * math.sqrt(0.25 / 4000)


@pytest.mark.parametrize("rule", [He(uniform=True), Orthogonal(0.5)])
def test_a_saved_network_keeps_its_initializer(tmp_path: Path, rule: Initializer) -> None:
    model = MLP([4, 3, 2], initializer=rule, device="cpu")
    model.save(tmp_path / "model")
    assert MLP.load(tmp_path / "model", device="cpu").initializer == rule


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_biases_start_at_zero(initializer: str) -> None:
    model = MLP(SIZES, initializer=initializer, device="cpu")
    assert not any(layer.bias.any() for layer in model.layers)
    assert not Dense(5, 4, initializer=initializer).bias.any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_auto_takes_he_for_the_relus_and_their_kin_and_glorot_otherwise(activation: str) -> None:
    suits = "glorot" if activation in ("tanh", "sigmoid", "identity") else "he"
    auto = MLP(SIZES, activation, initializer="auto", seed=3, device="cpu")
    named = MLP(SIZES, activation, initializer=suits, seed=3, device="cpu")
    np.testing.assert_array_equal(auto.parameters.data, named.parameters.data)
    assert isinstance(get_initializer("auto", ACTIVATIONS[activation]()), He if suits == "he" else Glorot)


def test_an_object_with_a_std_is_an_initializer() -> None:
    class Fixed:
        def std(self, in_features: int, out_features: int) -> float:
            return 0.0 if in_features == 784 else 1.0

    first, second, _ = MLP(SIZES, initializer=Fixed(), device="cpu").layers
    assert not first.weight.any()
    assert second.weight.std() == pytest.approx(1, abs=4 / math.sqrt(2 * second.weight.size))
    assert Dense(784, 9, initializer=Normal(0.0)).weight.any() == np.False_


def test_a_seed_gives_the_same_weights_in_both_precisions() -> None:
    single, double = (MLP(SIZES, seed=7, dtype=dtype, device="cpu") for dtype in ("float32", "float64"))
    for a, b in zip(single.layers, double.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight.astype(np.float32))
    np.testing.assert_array_equal(
        Dense(9, 4, seed=7).weight, Dense(9, 4, seed=7, dtype="float64").weight.astype("f")
    )


def test_seeds_and_layers_differ() -> None:
    one, same, other = (MLP([8, 8, 8, 8], seed=seed, device="cpu") for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.parameters.data, same.parameters.data)
    weights = [layer.weight for layer in (*one.layers, *other.layers)]
    assert len({w.tobytes() for w in weights}) == 6


@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.3)])
def test_an_unknown_name_is_refused_with_the_known_ones(activation: ReLU) -> None:
    with pytest.raises(ValueError, match=r"one of auto, he, he_uniform, glorot, .*orthogonal, normal, or"):
        get_initializer("xavier", activation)
