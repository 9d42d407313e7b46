"""Networks as safetensors files (no pickle), written atomically.

``model.save(DIR)`` writes ``DIR/model.safetensors``: the tensors ``layers.0.weight`` of shape
``(in_features, out_features)``, ``layers.0.bias`` ``(out_features,)``, and so on, and in the header's metadata
``format`` and ``model``, a description in JSON. A training run's ``checkpoint.safetensors`` has the same
description and the same tensors with the prefix ``model.``, and the state of the training run; both kinds of file
can be loaded.
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
from ..words import listed
from .activations import ACTIVATIONS
from .initializers import Glorot, He, Initializer, Normal
from .losses import LOSSES
from .network import MLP, M
from .samples import Inputs

FORMAT = "gpumlp-model-1"
CLASSIFICATION = "softmax_cross_entropy"
MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
_PREFIXES = {FORMAT: "", "gpumlp-checkpoint-1": "model."}  # of the network's tensors, by format
_INITIALIZERS: dict[str, type[Initializer]] = {"he": He, "glorot": Glorot, "normal": Normal}


class ModelFileError(ValueError):
    """A network cannot be saved or loaded; the message says which, why, and what to do."""


def describe(model: MLP) -> dict[str, Any]:
    """Describe a network, without its weights, as values that JSON can represent.

    Raises:
        ModelFileError: the activation or the loss is not registered (see `gpumlp.register`), `inputs` does not fit
            the network, or the class names cannot be saved.
    """
    try:
        activation, activation_options = ACTIVATIONS.describe(model.activation)
        loss, loss_options = LOSSES.describe(model.loss)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    _check_shape(model)
    known: dict[Any, str] = {kind: name for name, kind in _INITIALIZERS.items()}
    initializer = known.get(type(model.initializer))
    return {
        "sizes": model.sizes,
        "activation": activation,
        "activation_options": activation_options,
        "loss": loss,
        "loss_options": loss_options,
        "dtype": model.dtype.name,
        "initializer": initializer,
        "initializer_options": {} if initializer is None else vars(model.initializer),
        "inputs": None if model.inputs is None else dataclasses.asdict(model.inputs),
        "class_names": None if model.class_names is None else class_names(model),
    }


def plain_inputs(model: MLP) -> Inputs:
    """``model.inputs``; for a network without it, a flat sample of the network's dtype."""
    return model.inputs or Inputs((model.sizes[0],), model.dtype.name, "")


def loss_name(model: MLP) -> str:
    """The name of the network's loss, such as ``"softmax_cross_entropy"``."""
    return model.loss.name


def save_model(model: MLP, folder: str | os.PathLike[str]) -> Path:
    """Write ``model.safetensors`` into a folder, which is created if missing; see ``MLP.save``."""
    folder = Path(folder).expanduser()
    content = model_bytes(model)
    if (folder / CHECKPOINT).exists():
        raise ModelFileError(
            f"{folder} is the folder of a training run, which already contains its network; choose another"
        )
    if folder.exists() and not folder.is_dir():
        raise ModelFileError(f"{folder} is a file; give the name of a folder, in which {MODEL} is created")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MODEL, content)
    return folder / MODEL


def model_bytes(model: MLP, metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of ``model.safetensors``; `metadata` is added to the file's own."""
    description = json.dumps(describe(model))
    return safetensors.numpy.save(model.state_dict(), {"format": FORMAT, "model": description, **(metadata or {})})


def load_model(kind: type[M], path: str | os.PathLike[str], device: str | Backend) -> M:
    """Load a network from a folder or file; see ``MLP.load``."""
    backend = get_backend(device)
    file = find_model(path)
    description, tensors = _read(file)
    for registry in (ACTIVATIONS, LOSSES):
        name = description.get(registry.what)
        if isinstance(name, str) and name not in registry:
            raise ModelFileError(
                f"{file} contains a network with the unknown {registry.what} {name!r}; register its class first: "
                "gpumlp.register(...)"
            )
    try:
        name, options = description["initializer"], description["initializer_options"]
        dtype = np.dtype(description["dtype"])
        model = kind(
            description["sizes"],
            ACTIVATIONS.make(description["activation"], description["activation_options"]),
            initializer="auto" if name is None else _INITIALIZERS[name](**options),
            device=backend,
            dtype=dtype,
            loss=LOSSES.make(description["loss"], description.get("loss_options", {})),
        )
        wrong = [key for key, tensor in tensors.items() if tensor.dtype != dtype]
        if wrong:
            raise ValueError(f"{wrong[0]} is expected to be {dtype}, got {tensors[wrong[0]].dtype}")
        model.load_state_dict(tensors)
        set_facts(model, description)
    except KeyError as error:
        raise ModelFileError(
            f"{file} describes a network that this version of gpumlp does not support: {error}"
        ) from error
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{file} does not contain the network that it describes: {error}") from error
    return model


def set_facts(model: MLP, description: Mapping[str, Any]) -> None:
    """Set a network's `inputs` and `class_names` from its description.

    Raises:
        KeyError, TypeError, ValueError: they are missing, or do not match the network.
    """
    inputs, names = description["inputs"], description["class_names"]
    if inputs is not None:
        model.inputs = Inputs(tuple(map(int, inputs["shape"])), str(inputs["dtype"]), str(inputs["data"]))
        _check_shape(model)
    if names is not None:
        model.class_names = tuple(names)
        class_names(model)


def _check_shape(model: MLP) -> None:
    if model.inputs is not None and math.prod(model.inputs.shape) != model.sizes[0]:
        raise ModelFileError(f"a sample of shape {model.inputs.shape} does not have {model.sizes[0]} features")


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the path of the file that contains the network.

    Args:
        path: a file, or a folder written by ``save`` or by a training run.

    Raises:
        ModelFileError: the folder contains no such file, or two.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelFileError(f"there is no run or saved network {path}: no such folder")
    found = [path / name for name in (CHECKPOINT, MODEL) if (path / name).is_file()]
    if not found:
        raise ModelFileError(
            f"there is no network in {path}: expected {CHECKPOINT} from a training run or {MODEL} from model.save"
        )
    if len(found) > 1:
        raise ModelFileError(f"{path} contains both {CHECKPOINT} and {MODEL}; give the path of one of them")
    return found[0]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, HostArray]]:
    """Description and tensors of the network in a file, without the optimizer's state."""
    try:
        with safetensors.safe_open(file, framework="numpy") as content:
            metadata = content.metadata() or {}
            found = metadata.get("format", "none")
            prefix = _PREFIXES.get(found, "")
            names = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            tensors = {name.removeprefix(prefix): content.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"{file} cannot be read as a safetensors file, it may be truncated: {error}"
        ) from error
    if found not in _PREFIXES:
        raise ModelFileError(
            f"{file} is not a network of this version of gpumlp: expected format {' or '.join(_PREFIXES)}, "
            f"got {found}"
        )
    if "model" not in metadata:
        raise ModelFileError(
            f"{file} was written by an older gpumlp and does not describe its network; "
            f"python -m gpumlp.train --resume {file.parent} rewrites it"
        )
    try:
        description = json.loads(metadata["model"])
    except ValueError as error:
        raise ModelFileError(f"{file} has a damaged header: {error}") from error
    if not isinstance(description, dict):
        raise ModelFileError(f"{file} has a damaged header: expected a JSON object, got {description!r}")
    return description, tensors


def class_names(model: MLP) -> list[str | int | float]:
    """What the classes are called, as values that JSON can represent; 0, 1, 2, ... by default.

    Raises:
        ModelFileError: there is not one string or number for each class.
    """
    given = range(model.sizes[-1]) if model.class_names is None else model.class_names
    names = [name.item() if isinstance(name, np.generic) else name for name in given]
    if len(names) != model.sizes[-1] or not all(isinstance(name, str | int | float) for name in names):
        raise ModelFileError(
            f"class_names are expected to be {model.sizes[-1]} strings or numbers, one for each class, got "
            f"{listed(names)}"
        )
    return names
