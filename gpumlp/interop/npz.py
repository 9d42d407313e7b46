"""A network as an .npz file, for programs with nothing but NumPy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from ..nn import MLP, Committee
from ..nn.activations import ACTIVATIONS
from ..nn.committee import members_of
from ..nn.model_file import class_names, describe, plain_inputs
from .dense import dense_layers


def npz_bytes(model: MLP | Committee) -> bytes:
    """The network, or a committee, as the content of an .npz file, without pickle.

    The arrays: ``weight_0`` ``(in_features, out_features)``, ``bias_0`` ``(out_features,)``, ``weight_1``, ...;
    ``divisor``, what the samples are divided by: 255 if the network was trained on uint8, otherwise 1;
    ``activation``, its name; ``negative_slope`` of leaky_relu and ``alpha`` of elu, otherwise 0; ``loss``, its
    name; ``shape`` of a sample; ``class_names``, 0, 1, 2, ... by default. If the hidden layers have different
    activations, ``activation``, ``negative_slope`` and ``alpha`` have an element for each.

    If the images are preprocessed before they are divided, there are ``deskew``, True or False, and ``width``, 0
    for none; `Preprocessing` has the equations.

    Of a committee, ``members`` is their number, and each has all these arrays, with names that begin with
    ``member_0_``, ``member_1_``, ...

    Raises:
        ModelFileError: an activation has the name of a built-in one, the class names cannot be saved, or a
            layer is one of the user's.
    """
    members = members_of(model)
    if len(members) == 1:
        arrays = _arrays(members[0])
    else:
        arrays = {"members": np.array(len(members))}
        for number, member in enumerate(members):
            arrays |= {f"member_{number}_{name}": array for name, array in _arrays(member).items()}
    buffer = io.BytesIO()
    savez: Any = np.savez  # its type forbids arbitrary names, since one of them is an option
    savez(buffer, **arrays)
    return buffer.getvalue()


def _arrays(model: MLP) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a network, by name."""
    dense_layers(model)
    description, inputs = describe(model), plain_inputs(model)
    rules = model.activation if isinstance(model.activation, list) else [model.activation]
    options = [ACTIVATIONS.describe(rule)[1] for rule in rules]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in model.state_dict().items():
        _, index, part = name.split(".")
        arrays[f"{part}_{index}"] = tensor
    arrays |= {
        "divisor": np.array(255 if inputs.pixels else 1, dtype=model.dtype),
        "activation": np.squeeze([rule.name for rule in rules]),
        **{
            name: np.squeeze(np.array([given.get(name, 0) for given in options], dtype=model.dtype))
            for name in ("negative_slope", "alpha")
        },
        "loss": np.array(description["loss"]),
        "shape": np.array(inputs.shape, dtype=np.int64),
        "class_names": np.array(class_names(model)),
    }
    if inputs.preprocessing is not None:
        width = inputs.preprocessing.width or 0
        arrays |= {"deskew": np.array(inputs.preprocessing.deskew), "width": np.array(width)}
    return arrays
