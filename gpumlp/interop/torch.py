"""The network of a PyTorch ``Sequential`` or of its state dict, read without importing PyTorch.

A layer without an equivalent here is refused, and the message names it.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Backend, HostArray
from ..nn import (
    ELU,
    GELU,
    MLP,
    Activation,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from .importing import ImportedModelError, build, two_outputs

M = TypeVar("M", bound=MLP)

_ACTIVATIONS: dict[str, type[Activation]] = {
    kind.__name__: kind for kind in (ReLU, LeakyReLU, Tanh, Sigmoid, GELU, SiLU, ELU, Softplus)
}
_WRAPPERS = {  # the module inside, which computes the same
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",  # of torch.compile
}
_KNOWN = {
    *("Sequential", "Linear", "Flatten", "Dropout", "Softmax", "LogSoftmax", "Identity"),
    *_ACTIVATIONS,
    *_WRAPPERS,
}
_AFTER_DROPOUT = ("Linear", "Flatten", "ReLU", "LeakyReLU")  # the ReLUs pass on a factor of 0 or more
_QUANTIZED = "is quantized; give the network as it was before quantization"
_NO_WEIGHTS = "has no weights yet; call the network with a batch of samples first"


def from_torch(
    kind: type[M],
    network: Any,
    activation: str | Activation | Sequence[str | Activation] | None,
    device: str | Backend,
    dtype: npt.DTypeLike | None,
) -> M:
    """``MLP.from_torch``: the network of a ``torch.nn.Sequential``, or of its ``state_dict()``.

    A Sequential consists of Linear layers, each except the last followed by ReLU, LeakyReLU, Tanh, Sigmoid,
    GELU(approximate="tanh"), SiLU, ELU, Softplus, or nothing. Dropout before a Linear layer becomes the network's.
    It may also begin with Flatten, contain Identity, and end with Softmax or LogSoftmax over the classes, or with
    Sigmoid for the labels of several outputs; after a single output, it becomes a softmax over two classes. Nested
    Sequentials are unpacked, and so are DataParallel, DistributedDataParallel, AveragedModel and the result of
    ``torch.compile``.

    The network uses all values as they are, whatever their dtype, as PyTorch does. Without an activation of the
    outputs, its loss is ``"auto"``: the first data that it sees decides.

    Args:
        kind: the class of the result.
        network: the Sequential; or a state dict, a mapping of names to tensors, with weights
            ``(out_features, in_features)`` as in PyTorch; or a dict that contains one of them, such as a
            checkpoint. If the names of the layers in a state dict differ only in numbers, the layers
            are ordered by these numbers. Otherwise the order of the mapping is used, provided that it comes from
            ``state_dict()`` or that the layers' widths allow no other order: a file may have sorted the names.
        activation: of the hidden layers, or a list with that of each; only for a state dict, which does not
            contain it.
        device: as for `MLP`.
        dtype: that of the first weight by default (float32 for half precision).

    Raises:
        ImportedModelError: a layer has no equivalent here, has hooks, does not fit the layer before it, or has
            values that are not finite; the order of a mapping's layers cannot be determined; the object is none of
            the above, or contains several networks.
    """
    network = _network_in(network)
    if isinstance(network, Mapping):
        network = _State(network)
        weights, biases = _from_state(network)
        if activation is None and len(weights) > 1:
            raise ImportedModelError(
                "a state dict does not contain the activation of the hidden layers; give activation="
            )
        found = _Network(weights, biases, "identity" if activation is None else activation, [0.0])
        first = next(tensor for name, tensor in network.items() if name.endswith("weight"))
    else:
        if activation is not None:
            raise ImportedModelError("activation= is only for a state dict; a Sequential has its own")
        layers = list(_flat(network))
        found = _from_layers(layers)
        first = next(layer for _, layer in layers if _name(layer) == "Linear").weight
    given = str(first.dtype).rpartition(".")[2]
    return build(
        kind,
        *found[:3],
        device,
        dtype or ("float64" if given == "float64" else "float32"),
        found.loss,
        dropout=found.rates[1:],
        input_dropout=found.rates[0],
    )


class _Network(NamedTuple):
    """What a network consists of.

    Attributes:
        weights, biases: ``(in, out)`` and ``(out,)`` of each layer.
        activation: of the hidden layers, or a list with that of each.
        rates: of dropout, of the inputs and of each hidden layer.
        loss: as for `MLP`.
    """

    weights: list[HostArray]
    biases: list[HostArray]
    activation: str | Activation | Sequence[str | Activation]
    rates: list[float]
    loss: str = "auto"


# -- The network in what was given -------------------------------------------------------------------------------


def _network_in(given: Any) -> Any:
    """The Sequential or the state dict that was given, or is wrapped or contained in what was given."""
    network, where = _unwrapped(given), ""
    if isinstance(network, Mapping):
        found = dict(_contained("given", network))
        if len(found) > 1:
            raise ImportedModelError(f"expected one network, got a dict with several; give {' or '.join(found)}")
        if found:
            where, network = next(iter(found.items()))
            network = _unwrapped(network)
    kind = "None" if network is None else _name(network)
    if isinstance(network, Mapping) or (kind == "Sequential" and hasattr(network, "named_children")):
        return network
    cure = "; give model.state_dict()"
    if isinstance(network, (str, os.PathLike)):
        path = os.fspath(network)
        kind = f"the path {path!r}"
        load = "safetensors.numpy.load_file({!r})" if path.endswith(".safetensors") else "torch.load({!r})"
        cure = f"; give what {load.format(path)} returns"
    elif isinstance(network, type):
        kind = f"the class {network.__name__}"
    elif hasattr(network, "named_children"):
        cure = f"; give {where + '.' if where else 'its '}state_dict()"
    raise ImportedModelError(f"expected a Sequential or a state dict, got {kind}{cure}")


def _unwrapped(network: Any) -> Any:
    """The module inside of those of `_WRAPPERS`."""
    while (inside := _WRAPPERS.get(_name(network))) and hasattr(network, "_modules"):
        _refuse_hooks(_name(network), network)
        network = network._modules[inside]
    return network


def _contained(path: str, content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The state dicts and modules inside a dict, by the expression that gives them."""
    for key, value in content.items():
        name = f"{path}[{key!r}]"
        if hasattr(value, "named_children") or (isinstance(value, Mapping) and _is_state(value)):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _contained(name, value)


def _is_state(content: Mapping[Any, Any]) -> bool:
    return any(str(key).rpartition(".")[2] in ("weight", "_packed_params") for key in content)


def _name(module: Any) -> str:
    """The name of a module's class, with its package if it only has the name of one of PyTorch's."""
    kind = type(module)
    like = kind.__name__ in _KNOWN and hasattr(module, "named_children")
    foreign = like and kind.__module__.partition(".")[0] != "torch"
    return f"{kind.__module__}.{kind.__name__}" if foreign else kind.__name__


# -- Sequential ------------------------------------------------------------------------------------------------


def _flat(network: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and layers of a Sequential, including those of nested Sequentials."""
    _refuse_hooks(f"Sequential {prefix}".strip(), network)
    for name, module in network._modules.items():  # named_children() omits a module's second occurrence
        layer = _unwrapped(module)
        if type(layer).__name__.startswith("Lazy"):
            raise ImportedModelError(f"{_label(prefix + name, layer)}: {_NO_WEIGHTS}")
        _refuse_hooks(_label(prefix + name, layer), layer)
        if _name(layer) == "Sequential":
            yield from _flat(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _label(name: str, layer: Any) -> str:
    """A layer in an error, on one line."""
    return f"layer {name}, {' '.join(str(layer).split())}"


def _refuse_hooks(label: str, layer: Any) -> None:
    """Hooks, weight_norm and the like change what PyTorch computes from the layer's weights."""
    if any(getattr(layer, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks", "parametrizations")):
        raise ImportedModelError(
            f"{label}: has hooks or parametrizations, which change what its weights compute; remove them first"
        )
    if "forward" in vars(layer) and _name(layer) not in _WRAPPERS:
        raise ImportedModelError(f"{label}: has a forward() of its own, not that of its class; remove it first")


def _from_layers(named: list[tuple[str, Any]]) -> _Network:
    layers = [(_name(layer), _label(name, layer), layer) for name, layer in named if _name(layer) != "Identity"]
    kinds = [kind for kind, *_ in layers]
    if "Linear" not in kinds:
        raise ImportedModelError("expected at least one Linear layer in the Sequential, got none")
    weights: list[HostArray] = []
    biases: list[HostArray] = []
    activations: list[Activation] = []  # after each Linear layer
    rates = [0.0]  # of dropout, before the first Linear layer and after each
    loss = "auto"  # another with a softmax or a sigmoid on the outputs
    for index, (kind, label, layer) in enumerate(layers, 1):
        later = kinds[index:]
        at_end = "Linear" not in later
        if loss != "auto":
            raise ImportedModelError(f"{label}: no layer may follow the activation of the outputs")
        if "quantized" in type(layer).__module__.split("."):
            raise ImportedModelError(f"{label}: {_QUANTIZED}")
        if kind == "Linear":
            _append_layer(label, layer.weight, layer.bias, weights, biases)
            activations.append(Identity())
            rates.append(0.0)
        elif kind == "Flatten":
            if weights or (layer.start_dim, layer.end_dim) != (1, -1):
                raise ImportedModelError(f"{label}: expected only as the first layer, from dimension 1 to -1")
        elif kind == "Dropout":
            following = next((each for each in later if each != "Dropout"), "")
            if following in _AFTER_DROPOUT and layer.p < 1:
                rates[-1] = layer.p + rates[-1] * (1 - layer.p)  # of two in a row
            elif layer.training and layer.p > 0:
                raise ImportedModelError(
                    f"{label}: expected only before a Linear layer, with p below 1; call .eval() to leave it out"
                )
        elif kind in ("Softmax", "LogSoftmax"):
            if not at_end or layer.dim not in (1, -1):
                raise ImportedModelError(f"{label}: expected only at the end, with dim=1")
            if weights[-1].shape[1] == 1:
                raise ImportedModelError(f"{label}: expected 2 outputs or more, got one; a Sigmoid is for one")
            loss = "softmax_cross_entropy"
        elif kind == "Sigmoid" and at_end:
            loss = "logistic_cross_entropy"
        elif kind in _ACTIVATIONS:
            rule = _activation(label, layer)
            if at_end or not weights or not isinstance(activations[-1], Identity):
                raise ImportedModelError(f"{label}: expected a single activation between two Linear layers only")
            activations[-1] = rule
        else:
            raise ImportedModelError(
                f"{label}: has no equivalent here; supported are Linear, {', '.join(_ACTIVATIONS)}, Flatten, "
                "Dropout, Identity, Softmax and LogSoftmax"
            )
    if loss == "logistic_cross_entropy" and weights[-1].shape[1] == 1:
        weights[-1], biases[-1] = two_outputs(weights[-1], biases[-1])
        loss = "softmax_cross_entropy"
    return _Network(weights, biases, activations[:-1], rates[:-1], loss)


def _activation(label: str, layer: Any) -> Activation:
    kind = _ACTIVATIONS[type(layer).__name__]
    if kind is GELU and layer.approximate != "tanh":
        raise ImportedModelError(
            f"{label}: expected GELU(approximate='tanh'), the only form here; it differs by less than 5e-4: to "
            "accept that, set the layer's approximate = 'tanh'"
        )
    if kind is Softplus and (layer.beta != 1 or layer.threshold < 20):
        raise ImportedModelError(f"{label}: expected Softplus with beta=1 and a threshold of 20 or more")
    try:
        return kind(*(getattr(layer, name) for name in inspect.signature(kind).parameters))
    except ValueError as error:
        raise ImportedModelError(f"{label}: {error}") from error


def _append_layer(label: str, weight: Any, bias: Any, weights: list[HostArray], biases: list[HostArray]) -> None:
    """Append a layer with `weight` ``(out, in)`` and `bias` ``(out,)`` or None to the layers so far."""
    values = _host(label, weight).T
    if values.ndim != 2:
        raise ImportedModelError(f"{label}: expected a weight of shape (out, in), got {values.T.shape}")
    if weights and weights[-1].shape[1] != len(values):
        raise ImportedModelError(
            f"{label}: expected {weights[-1].shape[1]} inputs, the outputs of the layer before, got {len(values)}"
        )
    shift = np.zeros(values.shape[1]) if bias is None else _host(label, bias)
    if shift.shape != values.shape[1:]:
        raise ImportedModelError(f"{label}: expected a bias of {values.shape[1]} values, got shape {shift.shape}")
    weights.append(values)
    biases.append(shift)


def _host(label: str, tensor: Any) -> HostArray:
    """The values of a tensor on any device and of any floating dtype, or of a NumPy array, as float64."""
    if getattr(tensor, "is_meta", False):
        raise ImportedModelError(f"{label}: is on PyTorch's meta device, without values")
    if getattr(tensor, "is_quantized", False):
        raise ImportedModelError(f"{label}: {_QUANTIZED}")
    given = str(tensor.dtype).rpartition(".")[2]
    if given.startswith(("complex", "int", "uint", "bool")):  # integers: of a quantized layer, without its scale
        raise ImportedModelError(f"{label}: expected real floating-point weights, got {given}")
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu().double().numpy()
        values: HostArray = np.asarray(tensor, dtype="float64")
    except (TypeError, ValueError, RuntimeError) as error:  # such as sparse tensors
        raise ImportedModelError(
            f"{label}: cannot be read as an array: {str(error).partition(chr(10))[0]}"
        ) from error
    if not np.isfinite(values).all():
        raise ImportedModelError(f"{label}: expected finite weights, got NaN or infinity")
    return values


# -- State dict ------------------------------------------------------------------------------------------------


class _State(dict[str, Any]):
    """The tensors of a state dict, without what wrappers add to their names.

    Attributes:
        ordered: whether this is the order of the network's own ``state_dict()``, which a file may have changed.
    """

    def __init__(self, given: Mapping[Any, Any]) -> None:
        self.ordered = hasattr(given, "_metadata")
        tensors = {str(name): tensor for name, tensor in given.items() if name != "n_averaged"}  # AveragedModel's
        names = [[part for part in name.split(".") if part != "_orig_mod"] for name in tensors]
        while names and all(name[0] == "module" and len(name) > 1 for name in names):
            names = [name[1:] for name in names]
        super().__init__(zip(map(".".join, names), tensors.values(), strict=True))


def _from_state(state: _State) -> tuple[list[HostArray], list[HostArray]]:
    """Weights and biases, in the order of the layers."""
    if not state:
        raise ImportedModelError("the state dict is empty")
    weights: list[HostArray] = []
    biases: list[HostArray] = []
    for name, tensor in _in_order(state):
        layer, _, part = name.rpartition(".")
        if part == "weight" and tensor.ndim == 2:
            _append_layer(name, tensor, state.get(f"{layer}.bias" if layer else "bias"), weights, biases)
        elif part != "bias" or getattr(state.get(f"{layer}.weight" if layer else "weight"), "ndim", 0) != 2:
            raise ImportedModelError(
                f"{name} of shape {tuple(tensor.shape)}: expected only weights (out, in) and biases (out,) of "
                "Linear layers"
            )
    return weights, biases


def _in_order(state: _State) -> list[tuple[str, Any]]:
    """The tensors in the order of their layers' numbers: a file may list 0, 10, 2 for 0, 2, 10."""
    named = list(state.items())
    for name, tensor in named:
        if "_packed_params" in name.split("."):
            raise ImportedModelError(f"{name}: the layer {_QUANTIZED}")
        if type(tensor).__name__.startswith("Uninitialized"):
            raise ImportedModelError(f"{name}: the layer {_NO_WEIGHTS}")
        if not hasattr(tensor, "ndim") or not hasattr(tensor, "shape"):
            raise ImportedModelError(f"{name}: expected a tensor or an array, got {type(tensor).__name__}")
    parts = [re.split(r"(\d+)", name.rpartition(".")[0]) for name, _ in named]
    if len({tuple(part[::2]) for part in parts}) == 1:
        order = sorted(range(len(named)), key=lambda i: [int(digits) for digits in parts[i][1::2]])
        return [named[i] for i in order]
    weights = [tensor for name, tensor in named if name.endswith("weight") and tensor.ndim == 2]
    widths = [weight.shape[1] for weight in weights[:1]] + [weight.shape[0] for weight in weights]
    if not state.ordered and not _one_order(widths):
        raise ImportedModelError(
            f"the order of the layers is not known from the names {', '.join(name for name, _ in named)}; give "
            "names that differ only in numbers, such as 0.weight and 1.weight, or the network's own state_dict()"
        )
    return named


def _one_order(widths: list[int]) -> bool:
    """Whether layers that lead from each of these widths to the next fit together in this order only.

    The layers are the edges of a walk over widths, and every other order is another walk over the same edges.
    There is one if the walk ends where it began, visits a width three times, or visits two widths alternately:
    a, b, a, b.
    """
    places: dict[int, list[int]] = {}
    for place, width in enumerate(widths):
        places.setdefault(width, []).append(place)
    again = [found for found in places.values() if len(found) > 1]
    if len(widths) < 3:
        return True
    if widths[0] == widths[-1] or any(len(found) > 2 for found in again):
        return False
    return not any(a < c < b < d for a, b in again for c, d in again)
