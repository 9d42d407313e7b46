"""Networks and checkpoints as safetensors files (no pickle): the one reader and the one writer of them.

The header's metadata hold ``format``, a ``checksum`` of all the rest (SHA-256), and named groups of state, each a
JSON object. A group may have tensors, whose names begin with its own. ``model.save(DIR)`` writes
``DIR/model.safetensors``, and ``model.save(NAME.safetensors)`` that file, with the group ``model``, a description
of the network, and its tensors, without the prefix: ``layers.0.weight`` of shape ``(in_features, out_features)``,
``layers.0.bias`` ``(out_features,)``, and so on. A training run's ``checkpoint.safetensors`` has the same group,
its tensors as ``model.layers.0.weight``, and the groups of the training run (`gpumlp.training.checkpoint`); both
kinds of file can be loaded.

What is new is a new group: a version that does not know it refuses the file by the group's name.

A committee has a format of its own, with the group ``committee``, whose ``members`` are the descriptions of the
networks, and tensors such as ``committee.0.layers.0.weight``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..backends import Backend, HostArray, get_backend
from ..files import make_folder, new_folder_path, read_file, user_path, write_atomically
from ..strict_json import is_text, parse_object
from ..words import as_product, listed, shown
from .activations import ACTIVATIONS, Activation
from .initializers import Glorot, He, Initializer, Normal, Orthogonal
from .layers import LAYERS, Dense, Layer
from .losses import LOSSES
from .network import MLP, M
from .parameters import check_tensors, shapes_of
from .preprocessing import Preprocessing
from .samples import Inputs, is_binary

FORMAT, CHECKPOINT_FORMAT = "gpumlp-model-2", "gpumlp-checkpoint-2"
COMMITTEE_FORMAT = "gpumlp-committee-1"
MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
BEST = "best"  # the folder within a run's for the network of the best epoch

# The groups of each format, and those among them that a file may lack.
_GROUPS = {
    FORMAT: ("model", "selection"),
    CHECKPOINT_FORMAT: ("model", "optimizer", "config", "data", "random", "history", "execution", "best"),
    COMMITTEE_FORMAT: ("committee",),
}
_TENSORS = {FORMAT: ("layers",), CHECKPOINT_FORMAT: ("model", "optimizer"), COMMITTEE_FORMAT: ("committee",)}
_OPTIONAL = ("selection", "best")
_OLD = {"gpumlp-model-1": FORMAT, "gpumlp-checkpoint-1": CHECKPOINT_FORMAT}  # of 0.1 and 0.2, without checksum
_DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
_INITIALIZERS: dict[str, type[Initializer]] = {
    "he": He,
    "glorot": Glorot,
    "normal": Normal,
    "orthogonal": Orthogonal,
}


class ModelFileError(ValueError):
    """A network cannot be saved or loaded; the message says which, why, and what to do."""


def describe(model: MLP) -> dict[str, Any]:
    """Describe a network, without its weights, as values that JSON can represent.

    Raises:
        ModelFileError: the activation or the loss is not registered (see `gpumlp.register`), `inputs` does not fit
            the network, or the class names cannot be saved.
    """
    try:
        activation: str | None = None
        activation_options: dict[str, Any] = {}
        layers = None
        if isinstance(model.activation, Activation) and model.all_dense:
            activation, activation_options = ACTIVATIONS.describe(model.activation)
        else:
            layers = [_describe_layer(layer) for layer in model.layers]
        loss, loss_options = LOSSES.describe(model.loss)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    _check_shape(model)
    inputs = None if model.inputs is None else dataclasses.asdict(model.inputs)
    # Of its own, and only where there is one: a version that does not know it refuses the file.
    preprocessing = None if inputs is None else inputs.pop("preprocessing")
    known: dict[Any, str] = {kind: name for name, kind in _INITIALIZERS.items()}
    initializer = known.get(type(model.initializer))
    return {
        "sizes": model.sizes,
        "activation": activation,
        "activation_options": activation_options,
        "layers": layers,
        "loss": loss,
        "loss_options": loss_options,
        "dtype": model.dtype.name,
        "initializer": initializer,
        "initializer_options": {} if initializer is None else vars(model.initializer),
        "inputs": inputs,
        "class_names": None if model.class_names is None else class_names(model),
        **({} if preprocessing is None else {"preprocessing": preprocessing}),
    }


def _describe_layer(layer: Layer) -> dict[str, Any]:
    if type(layer) is Dense:
        activation, options = ACTIVATIONS.describe(layer.activation)
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
        return {"layer": Dense.name, **sizes, "activation": activation, "activation_options": options}
    name, options = LAYERS.describe(layer)
    return {"layer": name, **options}


def _make_layer(description: Mapping[str, Any], rule: Initializer) -> Layer:
    """The layer that `_describe_layer` described, without arrays.

    Raises:
        KeyError, TypeError, ValueError: it is not such a description.
    """
    options = dict(description)
    name = options.pop("layer")
    if name != Dense.name:
        return LAYERS.make(name, options)
    activation = ACTIVATIONS.make(options.pop("activation"), options.pop("activation_options"))
    return Dense.unbound(**options, activation=activation, initializer=rule)


def plain_inputs(model: MLP) -> Inputs:
    """``model.inputs``; for a network without it, a flat sample of the network's dtype."""
    return model.inputs or Inputs((model.sizes[0],), model.dtype.name, "")


def save_model(model: MLP, path: str | os.PathLike[str]) -> Path:
    """Write a network to a file, or to ``model.safetensors`` in a folder; see ``MLP.save``."""
    return _save(model_bytes(model), path)


def save_committee(members: Sequence[MLP], path: str | os.PathLike[str]) -> Path:
    """Write several networks as one file; see ``Committee.save``."""
    return _save(committee_bytes(members), path)


def _save(content: bytes, path: str | os.PathLike[str]) -> Path:
    file, ending = user_path(path), Path(MODEL).suffix
    if file.suffix.lower() != ending or file.is_dir():
        file /= MODEL
    new_folder_path(file.parent, f"expected a folder, for {file.name}, or the name of a {ending} file")
    if file.name == CHECKPOINT:
        raise ModelFileError(f"{file}: {CHECKPOINT} is the file of a training run; choose another name")
    if file.name == MODEL and (file.parent / CHECKPOINT).exists():
        raise ModelFileError(
            f"{file.parent} is the folder of a training run, which already contains its network; choose another"
        )
    make_folder(file.parent)
    write_atomically(file, content)
    return file


def model_bytes(model: MLP, selection: Mapping[str, Any] | None = None) -> bytes:
    """The content of ``model.safetensors``.

    Args:
        model: the network.
        selection: why this network was chosen among others; saved as a group of its own.

    Raises:
        ModelFileError: as for `describe`, or a weight is NaN or infinite.
    """
    groups = {"model": describe(model), **({} if selection is None else {"selection": selection})}
    try:
        return file_bytes(FORMAT, groups, model.state_dict())
    except ValueError as error:
        raise ModelFileError(f"{model} cannot be saved: {error}") from error


def committee_bytes(members: Sequence[MLP]) -> bytes:
    """Several networks as the content of one ``model.safetensors``.

    Raises:
        ModelFileError: as for `model_bytes`.
    """
    tensors = {
        f"committee.{number}.{name}": tensor
        for number, member in enumerate(members)
        for name, tensor in member.state_dict().items()
    }
    try:
        return file_bytes(COMMITTEE_FORMAT, {"committee": {"members": list(map(describe, members))}}, tensors)
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(f"the committee cannot be saved: {error}") from error


def load_model(kind: type[M], path: str | os.PathLike[str], device: str | Backend) -> M:
    """Load a network from a folder or file; see ``MLP.load``."""
    members = load_members(kind, path, device)
    if len(members) > 1:
        raise ModelFileError(f"{path} holds a committee of {len(members)} networks; load it with Committee.load")
    return members[0]


def load_members(kind: type[M], path: str | os.PathLike[str], device: str | Backend) -> list[M]:
    """The network in a folder or file, or all of a committee."""
    backend = get_backend(device)
    file = find_model(path)
    content = read_content(file)
    if content.format != COMMITTEE_FORMAT:
        return [build_model(kind, content, file, backend)]
    members = content.groups["committee"].get("members")
    if not isinstance(members, list) or not members or not all(isinstance(member, dict) for member in members):
        raise ModelFileError(f"{file} does not contain the networks that it describes: got {shown(members)}")
    return [
        _build(kind, member, content.tensors_of(f"committee.{number}"), file, backend)
        for number, member in enumerate(members)
    ]


def build_model(kind: type[M], content: Content, file: Path, device: str | Backend) -> M:
    """The network in the content of a file, whose name is for messages.

    Raises:
        ModelFileError: the content is not that of a network of this version.
    """
    return _build(kind, content.groups["model"], content.tensors_of("model"), file, device)


def _build(
    kind: type[M],
    description: Mapping[str, Any],
    tensors: dict[str, HostArray],
    file: Path,
    device: str | Backend,
) -> M:
    """The network that a description and its tensors are of."""
    layers = description.get("layers")
    if not isinstance(layers, list | None):
        raise ModelFileError(
            f"{file} does not contain the network that it describes: layers are expected to be a list, got "
            f"{shown(layers)}"
        )
    described = [description, *(layers or [])]
    for registry in (ACTIVATIONS, LOSSES, LAYERS):
        names = (each.get(registry.what) for each in described if isinstance(each, dict))
        for name in (name for name in names if isinstance(name, str) and name not in registry):
            raise ModelFileError(
                f"{file} contains a network with the unknown {registry.what} {name!r}; register its class "
                "first: gpumlp.register(...)"
            )
    try:
        sizes, dtype = sizes_of(description), np.dtype(description["dtype"])
        wrong = [key for key, tensor in tensors.items() if tensor.dtype != dtype]
        if wrong:
            raise ValueError(f"{wrong[0]} is expected to be {dtype}, got {tensors[wrong[0]].dtype}")
        name, options = description["initializer"], description["initializer_options"]
        rule = None if name is None else _INITIALIZERS[name](**options)
        common = {
            "device": device,
            "dtype": dtype,
            "loss": LOSSES.make(description["loss"], description.get("loss_options", {})),
        }
        if layers is None:
            activation = ACTIVATIONS.make(description["activation"], description["activation_options"])
            dense = ({"weight": size, "bias": size[1:]} for size in pairwise(sizes))
            check_tensors(shapes_of(dense), tensors)  # before memory is taken
            model = kind(sizes, activation, initializer=rule or "auto", **common)
        else:
            made = [_make_layer(each, rule or Normal()) for each in layers]
            check_tensors(shapes_of(layer.shapes() for layer in made), tensors)
            model = kind(made, **common)
            if model.sizes != sizes:
                raise ValueError(f"the sizes of its layers are {model.sizes}, but {sizes} are given")
        model.load_state_dict(tensors)
        set_facts(model, description)
        unknown = sorted(set(description) - set(describe(model)))
        if unknown:
            raise KeyError(unknown[0])
    except KeyError as error:
        raise ModelFileError(
            f"{file} describes a network that this version of gpumlp does not support: {error}"
        ) from error
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ModelFileError(f"{file} does not contain the network that it describes: {error}") from error
    return model


def sizes_of(description: Mapping[str, Any]) -> list[int]:
    """The sizes of a network's layers. Raises ValueError if they are none, or missing."""
    sizes = description.get("sizes")
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"sizes are expected to be whole numbers of 1 or more, got {str(sizes)[:100]}")
    return sizes


def set_facts(model: MLP, description: Mapping[str, Any]) -> None:
    """Set a network's `inputs` and `class_names` from its description.

    Raises:
        KeyError, TypeError, ValueError: they are missing, or do not match the network.
    """
    inputs, names = description["inputs"], description["class_names"]
    if inputs is not None:
        found = description.get("preprocessing")
        preprocessing = None if found is None else Preprocessing(**found)
        shape = tuple(map(int, inputs["shape"]))
        model.inputs = Inputs(shape, str(inputs["dtype"]), str(inputs["data"]), preprocessing)
        _check_shape(model)
        if preprocessing is not None:
            preprocessing.check(shape, f"samples of {as_product(shape)}")
    if names is not None:
        model.class_names = tuple(names)
        class_names(model)


def _check_shape(model: MLP) -> None:
    if model.inputs is not None and math.prod(model.inputs.shape) != model.sizes[0]:
        raise ModelFileError(f"a sample of shape {model.inputs.shape} does not have {model.sizes[0]} features")


def is_network(path: str) -> bool:
    """Is there a network in this folder, or is this a ``.safetensors`` file?"""
    try:
        place = user_path(path)
        return place.suffix.lower() == Path(MODEL).suffix or any(
            (place / name).is_file() for name in (CHECKPOINT, MODEL)
        )
    except (OSError, ValueError):  # no name of a file
        return False


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the path of the file that contains the network.

    Args:
        path: a file, or a folder written by ``save`` or by a training run.

    Raises:
        ModelFileError: the folder contains no such file, or two; or the run keeps the network of its best epoch,
            and that is missing or another.
    """
    path = user_path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        kind = "file" if path.suffix.lower() == Path(MODEL).suffix else "folder"
        raise ModelFileError(f"there is no run or saved network {path}: no such {kind}")
    found = [path / name for name in (CHECKPOINT, MODEL) if (path / name).exists()]
    if not found:
        raise ModelFileError(
            f"there is no network in {path}: expected {CHECKPOINT} from a training run or {MODEL} from model.save"
        )
    if len(found) > 1:
        raise ModelFileError(f"{path} contains both {CHECKPOINT} and {MODEL}; give the path of one of them")
    return best_file(found[0], read_content(found[0])) if found[0].name == CHECKPOINT else found[0]


def best_file(file: Path, content: Content) -> Path:
    """The file of a run's resulting network: that of the best epoch if the run keeps it, otherwise `file` itself.

    Args:
        file: the run's checkpoint.
        content: that of `file`, when it was read.

    Raises:
        ModelFileError: the network of the best epoch is missing, damaged, or not that of this run.
    """
    best = content.groups.get("best")
    if best is None or best == content.groups["history"]:  # the last epoch is the best one
        return file
    kept = file.parent / BEST / CHECKPOINT
    if kept.exists() and read_content(kept, header_only=True).groups.get("history") == best:
        return kept
    now = read_content(file, header_only=True)
    if now.groups.get("best") != best:  # the run is being trained, and has a better network by now
        return best_file(file, now)
    state = "is not of this run" if kept.exists() else "is missing"
    raise ModelFileError(
        f"{kept}, the network of the best epoch, {best.get('epochs')}, {state}; {file} has that of the last epoch"
    )


# -- Files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        format: `FORMAT`, `CHECKPOINT_FORMAT` or `COMMITTEE_FORMAT`, also where the file has an older one.
        groups: JSON objects, by name.
        tensors: on the host, by name; none if only the header was read.
    """

    format: str
    groups: dict[str, dict[str, Any]]
    tensors: dict[str, HostArray]

    def tensors_of(self, group: str) -> dict[str, HostArray]:
        """The tensors of a group, or of a part such as ``"optimizer.velocity"``, by the rest of their names."""
        prefix = "" if self.format == FORMAT else f"{group}."
        return {
            name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)
        }


def file_bytes(form: str, groups: Mapping[str, Mapping[str, Any]], tensors: dict[str, HostArray]) -> bytes:
    """The content of a file.

    Args:
        form: `FORMAT`, `CHECKPOINT_FORMAT` or `COMMITTEE_FORMAT`.
        groups: values that JSON can represent, by name.
        tensors: on the host.

    Raises:
        TypeError: JSON cannot represent a value.
        ValueError: a value or a tensor holds NaN or infinity; the message names the tensor.
    """
    _check_finite(tensors)
    metadata = {"format": form, **{name: json.dumps(group, allow_nan=False) for name, group in groups.items()}}
    metadata["checksum"] = checksum(metadata, tensors)
    return safetensors.numpy.save(tensors, metadata)


def read_content(file: Path, *, header_only: bool = False) -> Content:
    """Read a file that `file_bytes` made, or one of gpumlp 0.1 or 0.2.

    A header alone shows whether the file is cut off, but not whether its tensors are damaged.

    Raises:
        ModelFileError: there is no such file, it cannot be read, it is damaged, or it is none of these; the
            message names it.
    """
    try:
        metadata, tensors = _read_safetensors(file, header_only)
        found = metadata.get("format", "none")
        if found not in (*_GROUPS, *_OLD):
            raise ModelFileError(
                f"{file} is not a network of this version of gpumlp: expected format {' or '.join(_GROUPS)}, "
                f"got {found[:100]}"
            )
        if not header_only and found in _GROUPS and metadata.get("checksum") != checksum(metadata, tensors):
            raise ValueError("its checksum is not that of its content")
        form = _OLD.get(found, found)
        groups = _old_groups(file, found, metadata) if found in _OLD else _groups(found, metadata)
        known = _TENSORS[form]
        foreign = [name for name in tensors if name.partition(".")[0] not in known]
        if foreign:
            raise ValueError(f"its tensor {foreign[0]} belongs to no group that this version of gpumlp knows")
        wrong = [name for name, group in groups.items() if not isinstance(group, dict)]
        if wrong:
            raise ValueError(f"{wrong[0]}: expected a JSON object")
        _check_finite(tensors)
    except ModelFileError:
        raise
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {file}") from None
    except safetensors.SafetensorError as error:
        raise ModelFileError(
            f"{file} cannot be read as a safetensors file, it may be truncated: {error}"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelFileError(f"{file} is damaged: {error}") from error
    return Content(form, groups, tensors)


def _read_safetensors(file: Path, header_only: bool) -> tuple[dict[str, str], dict[str, HostArray]]:
    """Metadata and, unless only the header is read, tensors of any safetensors file."""
    tensors = {}
    read_file(file, 0)  # for its error: safe_open names no other cause than a missing file
    with safetensors.safe_open(file, framework="numpy") as content:
        for name in () if header_only else content.keys():
            kind = content.get_slice(name).get_dtype()
            if kind not in _DTYPES:
                raise ValueError(f"expected numbers as NumPy has them, got {kind} in {name}")
            tensors[name] = content.get_tensor(name)
        return content.metadata() or {}, tensors


def _groups(form: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The groups in the metadata of a file. Raises ValueError if one is missing, unknown, or no JSON object."""
    names = [name for name in metadata if name not in ("format", "checksum")]
    unknown = [name for name in names if name not in _GROUPS[form]]
    missing = [name for name in _GROUPS[form] if name not in (*names, *_OPTIONAL)]
    if unknown:
        raise ValueError(f"it holds {unknown[0]!r}, which this version of gpumlp does not know; use a newer one")
    if missing:
        raise ValueError(f"it lacks {missing[0]!r}")
    groups = {}
    for name in names:
        try:
            groups[name] = parse_object(metadata[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return groups


def _old_groups(file: Path, form: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The groups of a file of gpumlp 0.1 or 0.2, whose checkpoints hold the lines of the history too."""
    if "model" not in metadata:
        raise ModelFileError(f"{file} was written by a gpumlp before 0.1 and does not describe its network")
    model = parse_object(metadata["model"])
    if _OLD[form] == FORMAT:
        return {"model": model}
    try:
        state, config = parse_object(metadata["state"]), parse_object(metadata["config"])
        lines = "".join(json.dumps(record) + "\n" for record in state["history"]).encode()
        return {
            "model": model,
            "optimizer": {"steps": state["steps"]},
            "config": config,
            "data": state["dataset"],
            "random": state["random_state"],
            "history": {
                "epochs": len(state["history"]),
                "length": len(lines),
                "checksum": hashlib.sha256(lines).hexdigest(),
            },
            "execution": state.get("execution", {}),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header lacks {error}") from error


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, HostArray]) -> str:
    """SHA-256 of everything in a file but the checksum itself."""
    digest = hashlib.sha256()
    for name in sorted(metadata.keys() - {"checksum"}):
        digest.update(json.dumps([name, metadata[name]]).encode())
    for name in sorted(tensors):
        digest.update(json.dumps([name, tensors[name].dtype.str, tensors[name].shape]).encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _check_finite(tensors: Mapping[str, HostArray]) -> None:
    """Refuse NaN; infinity too, except in the optimizer's state, where a square may be too large for the dtype."""
    for name, tensor in tensors.items():
        bad = np.isnan(tensor) if name.startswith("optimizer.") else ~np.isfinite(tensor)
        if bad.any():
            raise ValueError(f"{name} holds {int(bad.sum()):,} values of {tensor.size:,} that are NaN or infinite")


def class_names(model: MLP) -> list[str | int | float]:
    """What the classes, labels or outputs are called, as values that JSON can represent; 0, 1, 2, ... by default.

    Raises:
        ModelFileError: there is not one string or number for each class.
    """
    count = 2 if is_binary(model) else model.sizes[-1]
    given = range(count) if model.class_names is None else model.class_names
    names = [name.item() if isinstance(name, np.generic) else name for name in given]
    valid = all(is_text(name) if isinstance(name, str) else isinstance(name, int | float) for name in names)
    if len(names) != count or not valid:
        raise ModelFileError(
            f"class_names are expected to be {count} strings or numbers, one for each class, got {listed(names)}"
        )
    return names
