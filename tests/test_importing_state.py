"""State dicts of PyTorch: the order of their layers is found, and what is no such network is refused by name."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP
from gpumlp.nn.importing import ImportedModelError
from gpumlp.nn.torch_state import _one_order

# -- Names and weights -------------------------------------------------------------------------------------


def test_a_state_dict_is_checked_name_by_name() -> None:
    weight, bias = np.zeros((4, 3)), np.zeros(4)
    layers = OrderedDict({"0.weight": weight, "0.bias": bias, "2.weight": np.zeros((2, 4)), "2.bias": np.zeros(2)})
    assert MLP.from_torch(layers, activation="tanh", device="cpu").sizes == [3, 4, 2]
    for state, message in (
        (layers, "does not tell the activation of its hidden layers; give activation="),
        ({}, "the state dict is empty"),
        ({**layers, "1.weight": bias, "1.running_mean": bias}, r"1.weight of shape \(4,\): expected only weights"),
        ({"0.weight": np.zeros((4, 3, 5, 5))}, r"0.weight of shape \(4, 3, 5, 5\): expected only"),
        ({"0.weight": weight, "2.weight": np.zeros((2, 5))}, "2.weight: expected 4 inputs"),
        ({"0.weight": np.zeros((1, 3))}, "the last layer has one output"),
    ):
        with pytest.raises(ImportedModelError, match=message):
            MLP.from_torch(state, device="cpu", activation=None if state is layers else "relu")


def test_a_single_linear_layer_needs_no_activation() -> None:
    weight = np.arange(6.0).reshape(2, 3)
    model = MLP.from_torch({"weight": weight, "bias": np.array([1.0, 2.0])}, device="cpu")
    np.testing.assert_array_equal(model.logits(np.eye(3)), weight.T + np.array([1, 2]))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": [[1.0, 2.0]]}, "0.weight: expected a tensor or an array, got list"),
        ({"0.weight": np.full((3, 2), np.nan)}, "0.weight: expected finite weights"),
        ({"0.weight": np.ones((3, 2), dtype=complex)}, "0.weight: expected real weights"),
        ({"0.weight": np.ones((3, 2)), "0.bias": np.ones(2)}, "0.weight: expected a bias of 3 values"),
        ({"0.weight": np.ones((3, 2)), "1.weight": np.ones((3, 4))}, "1.weight: expected 3 inputs"),
    ],
)
def test_weights_that_are_none_are_named(state: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportedModelError, match=message):
        MLP.from_torch(state, activation="relu", device="cpu")


# -- The order of the layers -------------------------------------------------------------------------------


def test_the_numbers_of_layers_are_their_order_whatever_the_files() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    parts = [part for _ in range(12) for part in (torch.nn.Linear(6, 6), torch.nn.Tanh())]
    network = torch.nn.Sequential(*parts, torch.nn.Linear(6, 3))
    x = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(x)), 1).numpy()
    shuffled = dict(sorted(network.state_dict().items()))  # "0", "10", "12", "2", ...: as safetensors has them
    for prefix in ("", "model.net."):
        state = {prefix + name: tensor for name, tensor in shuffled.items()}
        found = MLP.from_torch(state, activation="tanh", device="cpu").predict_proba(x)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_numbers_within_names_are_the_order_too() -> None:
    rng = np.random.default_rng(0)
    layers = {f"fc{number}.weight": rng.normal(size=(4, 4)) for number in range(1, 13)}
    model = MLP.from_torch(dict(sorted(layers.items())), activation="tanh", device="cpu", dtype="float64")
    for index, weight in enumerate(layers.values()):
        np.testing.assert_array_equal(model.state_dict()[f"layers.{index}.weight"], weight.T)


def test_an_order_that_neither_names_nor_widths_tell_is_refused() -> None:
    square, names = np.ones((4, 4)), ("first", "second", "last")
    with pytest.raises(ImportedModelError, match="the order of the layers is not known from the names first"):
        MLP.from_torch({f"{name}.weight": square for name in names}, activation="relu", device="cpu")
    shapes = [(5, 3), (5, 5), (2, 5)]
    state = {f"{name}.weight": np.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    assert MLP.from_torch(state, activation="relu", device="cpu").sizes == [3, 5, 5, 2]


def test_pytorchs_own_state_dict_is_in_the_order_of_the_network(nn: Any) -> None:
    layers = OrderedDict((name, nn.Linear(4, 4)) for name in ("first", "second", "last"))
    state = nn.Sequential(layers).state_dict()
    model = MLP.from_torch(state, activation="relu", device="cpu")
    for index, name in enumerate(layers):
        np.testing.assert_array_equal(model.state_dict()[f"layers.{index}.weight"], state[f"{name}.weight"].T)
    with pytest.raises(ImportedModelError, match="the order of the layers is not known"):
        MLP.from_torch(dict(state), activation="relu", device="cpu")


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_widths_tell_the_order_exactly_where_no_other_fits(layers: int) -> None:
    for widths in itertools.product(range(3), repeat=layers + 1):
        steps = list(itertools.pairwise(widths))
        fitting = [
            order
            for order in itertools.permutations(range(layers))
            if all(steps[a][1] == steps[b][0] for a, b in itertools.pairwise(order))
        ]
        assert _one_order(list(widths)) == (len(fitting) == 1), widths
