"""A network as a file: one in safetensors' format (no pickle), written whole or not at all.

``model.save(DIR)`` writes ``DIR/model.safetensors``: the tensors ``layers.0.weight`` of shape
``(in_features, out_features)``, ``layers.0.bias`` ``(out_features,)``, and so on, and in the header's metadata
``format`` and ``model``, a description in JSON. A training run's ``checkpoint.safetensors`` has the same
description and the same tensors under the prefix ``model.``, beside all that the training needs to go on; so both
are loaded alike.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..backends import Backend, HostArray, get_backend
from ..files import write_atomically
from .activations import ACTIVATIONS
from .initializers import Glorot, He, Initializer, Normal
from .network import MLP, Inputs, M

FORMAT = "gpumlp-model-1"
CLASSIFICATION = "softmax_cross_entropy"
MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
_PREFIXES = {FORMAT: "", "gpumlp-checkpoint-1": "model."}  # of the network's tensors, by format
_INITIALIZERS: dict[str, type[Initializer]] = {"he": He, "glorot": Glorot, "normal": Normal}


class ModelFileError(ValueError):
    """A network cannot be saved, or a file is none; the message says which, why, and what to do."""


def describe(model: MLP) -> dict[str, Any]:
    """All of a network but its weights, as JSON can hold it.

    Raises:
        ModelFileError: the activation has the name of another, or the class names are unfit.
    """
    activation = model.activation
    if ACTIVATIONS.get(activation.name, type(activation)) is not type(activation):
        raise ModelFileError(
            f"the activation {activation!r} cannot be saved: {activation.name!r} is the name of gpumlp's own; "
            "give the class another"
        )
    known: dict[Any, str] = {kind: name for name, kind in _INITIALIZERS.items()}
    initializer = known.get(type(model.initializer))
    return {
        "sizes": model.sizes,
        "activation": activation.name,
        "activation_options": vars(activation),
        "loss": loss_name(model),
        "dtype": model.dtype.name,
        "initializer": initializer,
        "initializer_options": {} if initializer is None else vars(model.initializer),
        "inputs": None if model.inputs is None else dataclasses.asdict(model.inputs),
        "class_names": None if model.class_names is None else _plain_names(model),
    }


def plain_inputs(model: MLP) -> Inputs:
    """``model.inputs``; for a network that was not trained here, as many values of its dtype as it takes."""
    return model.inputs or Inputs((model.sizes[0],), model.dtype.name, "")


def loss_name(model: MLP) -> str:
    """What the network was made to learn: ``"softmax_cross_entropy"`` for one class of several."""
    return model.loss.name


def save_model(model: MLP, folder: str | os.PathLike[str]) -> Path:
    """Write ``model.safetensors`` into a folder, which is made; see ``MLP.save``."""
    folder = Path(folder).expanduser()
    content = model_bytes(model)
    if (folder / CHECKPOINT).exists():
        raise ModelFileError(
            f"{folder} is the folder of a training run, which has its network already; choose another"
        )
    if folder.exists() and not folder.is_dir():
        raise ModelFileError(f"{folder} is a file; give the name of a folder, which will hold {MODEL}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MODEL, content)
    return folder / MODEL


def model_bytes(model: MLP, facts: Mapping[str, str] | None = None) -> bytes:
    """The content of ``model.safetensors``, with more facts in its metadata."""
    try:
        description = json.dumps(describe(model))
    except TypeError as error:
        raise ModelFileError(f"the activation {model.activation!r} cannot be saved: {error}") from error
    return safetensors.numpy.save(model.state_dict(), {"format": FORMAT, "model": description, **(facts or {})})


def load_model(kind: type[M], path: str | os.PathLike[str], device: str | Backend) -> M:
    """The network in a folder or file; see ``MLP.load``."""
    backend = get_backend(device)
    file = find_model(path)
    description, tensors = _read(file)
    if description.get("activation", "relu") not in ACTIVATIONS:
        raise ModelFileError(
            f"{file} holds a network with the activation {description['activation']!r}, which is not known "
            "here; add its class to gpumlp.nn.activations.ACTIVATIONS before"
        )
    try:
        name, options = description["initializer"], description["initializer_options"]
        loss, dtype = description["loss"], np.dtype(description["dtype"])
        model = kind(
            description["sizes"],
            ACTIVATIONS[description["activation"]](**description["activation_options"]),
            initializer="auto" if name is None else _INITIALIZERS[name](**options),
            device=backend,
            dtype=dtype,
            loss=loss,
        )
        wrong = [key for key, tensor in tensors.items() if tensor.dtype != dtype]
        if wrong:
            raise ValueError(f"{wrong[0]} is expected to be {dtype}, got {tensors[wrong[0]].dtype}")
        model.load_state_dict(tensors)
        set_facts(model, description)
    except KeyError as error:
        raise ModelFileError(
            f"{file} describes a network that this version of gpumlp does not know: {error}"
        ) from error
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{file} does not hold the network that it describes: {error}") from error
    return model


def set_facts(model: MLP, description: Mapping[str, Any]) -> None:
    """Give a network the `inputs` and `class_names` of its description.

    Raises:
        KeyError, TypeError, ValueError: they are missing, or do not suit the network.
    """
    inputs, names = description["inputs"], description["class_names"]
    if inputs is not None:
        model.inputs = Inputs(tuple(map(int, inputs["shape"])), str(inputs["dtype"]), str(inputs["data"]))
        if math.prod(model.inputs.shape) != model.sizes[0]:
            raise ValueError(f"a sample of shape {model.inputs.shape} has not the {model.sizes[0]} features")
    if names is not None:
        model.class_names = tuple(names)
        _plain_names(model)


def find_model(path: str | os.PathLike[str]) -> Path:
    """The file that holds the network.

    Args:
        path: a file, or a folder that ``save`` or a training wrote.

    Raises:
        ModelFileError: there is none, or there are two.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelFileError(f"there is no run or saved network {path}: no such folder")
    found = [path / name for name in (CHECKPOINT, MODEL) if (path / name).is_file()]
    if not found:
        raise ModelFileError(
            f"there is no network in {path}: expected {CHECKPOINT}, of a training, or {MODEL}, of model.save"
        )
    if len(found) > 1:
        raise ModelFileError(f"{path} holds both {CHECKPOINT} and {MODEL}; name the file that is meant")
    return found[0]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, HostArray]]:
    """Description and tensors of a file, the optimizer's left out."""
    try:
        with safetensors.safe_open(file, framework="numpy") as content:
            metadata = content.metadata() or {}
            found = metadata.get("format", "none")
            prefix = _PREFIXES.get(found, "")
            names = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            tensors = {name.removeprefix(prefix): content.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"{file} cannot be read as a safetensors file, it may be cut short: {error}"
        ) from error
    if found not in _PREFIXES:
        raise ModelFileError(
            f"{file} is no network of this version of gpumlp: expected format {' or '.join(_PREFIXES)}, "
            f"got {found}"
        )
    if "model" not in metadata:
        raise ModelFileError(
            f"{file} was written by an older gpumlp and does not describe its network; "
            f"python -m gpumlp.train --resume {file.parent} writes it anew"
        )
    try:
        description = json.loads(metadata["model"])
    except ValueError as error:
        raise ModelFileError(f"{file} has a damaged header: {error}") from error
    if not isinstance(description, dict):
        raise ModelFileError(f"{file} has a damaged header: expected a JSON object, got {description!r}")
    return description, tensors


def _plain_names(model: MLP) -> list[str | int | float]:
    """The class names, as JSON can hold them, checked."""
    given = () if model.class_names is None else model.class_names
    names = [name.item() if isinstance(name, np.generic) else name for name in given]
    if len(names) != model.sizes[-1] or not all(isinstance(name, str | int | float) for name in names):
        raise ModelFileError(
            f"class_names are expected to be {model.sizes[-1]} texts or numbers, one for each class, got {names}"
        )
    return names
