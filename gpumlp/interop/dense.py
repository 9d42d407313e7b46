"""Shared by exports: the layers of a network that other programs can compute."""

from __future__ import annotations

from ..nn import MLP, ModelFileError
from ..nn.layers import Dense, Dropout


def dense_layers(model: MLP) -> list[Dense]:
    """The dense layers of a network that has no others, except dropout, which does nothing in predictions.

    Raises:
        ModelFileError: it has a layer of the user's.
    """
    for layer in model.layers:
        if type(layer) not in (Dense, Dropout):
            raise ModelFileError(f"the layer {layer!r} has no equivalent outside gpumlp")
    return model.dense_layers
