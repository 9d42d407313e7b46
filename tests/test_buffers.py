"""Memory: the flat buffer of parameters, and the lifetime of workspaces."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, fit
from gpumlp.nn import Optimizer
from gpumlp.nn.network import Workspace


def offsets(model: MLP) -> dict[str, tuple[int, int]]:
    """Start and end of each tensor in the flat buffer, from the addresses."""
    flat = model.parameters.data
    start = flat.__array_interface__["data"][0]
    found = {}
    for index, layer in enumerate(model.layers):
        for name, view in (("weight", layer.weight), ("bias", layer.bias)):
            assert np.shares_memory(view, flat)
            first = (view.__array_interface__["data"][0] - start) // flat.itemsize
            found[f"layers.{index}.{name}"] = (first, first + view.size)
    return found


def test_weights_come_first_and_everything_starts_at_a_multiple_of_64() -> None:
    model = MLP([20, 7, 64, 4], device="cpu")
    # 140 -> 192, 448 = 7 * 64, 256 = 4 * 64 weights; 7 -> 64, 64, 4 -> 64 biases
    assert offsets(model) == {
        "layers.0.weight": (0, 140),
        "layers.1.weight": (192, 640),
        "layers.2.weight": (640, 896),
        "layers.0.bias": (896, 903),
        "layers.1.bias": (960, 1024),
        "layers.2.bias": (1024, 1028),
    }
    parameters = model.parameters
    assert parameters.weights == slice(0, 896)
    assert parameters.count == 140 + 448 + 256 + 7 + 64 + 4
    assert parameters.data.shape == parameters.gradient.shape == (1088,)
    assert all(np.shares_memory(layer.weight_gradient, parameters.gradient) for layer in model.layers)
    assert all(np.shares_memory(layer.bias_gradient, parameters.gradient) for layer in model.layers)


def test_a_workspace_is_freed_with_its_last_reference() -> None:
    """A reference cycle would keep the evaluation buffers of each epoch until garbage collection."""
    workspace = Workspace(MLP([20, 7, 4], device="cpu"), 32, pixels=True)
    assert workspace.rows(32) is workspace
    assert workspace.rows(5) is workspace.rows(5)
    gone = weakref.ref(workspace)
    gc.disable()
    try:
        del workspace
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9, nesterov=True), Adam()], ids=str)
def test_padding_is_0_and_stays_0(blobs: Dataset, optimizer: Optimizer) -> None:
    model = MLP([20, 7, 4], "tanh", device="cpu")
    fit(model, blobs, optimizer=optimizer, epochs=3, l1=1e-3, l2=1e-3)
    padding = np.ones(model.parameters.data.shape, dtype=bool)
    for first, end in offsets(model).values():
        padding[first:end] = False
    assert padding.sum() == model.parameters.data.size - model.parameters.count > 0
    assert not model.parameters.data[padding].any()
    assert not model.parameters.gradient[padding].any()
    assert model.parameters.data[~padding].all()
