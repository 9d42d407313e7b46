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


def refuse_preprocessing(model: MLP) -> None:
    """Raise ModelFileError if the network's images are preprocessed, for formats without an equivalent."""
    if model.inputs is not None and model.inputs.preprocessing is not None:
        raise ModelFileError(
            f"the network's images go through {model.inputs.preprocessing}, which has no equivalent in this "
            "format; export it as onnx or safetensors"
        )
