"""The network of a PyTorch ``Sequential`` or of its state dict, read without importing PyTorch.

A layer without an equivalent here is refused, and the message names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Backend, HostArray
from ..nn import MLP, Activation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from ..nn.activations import get_activation
from .importing import ImportedModelError, build, two_outputs

M = TypeVar("M", bound=MLP)

_ACTIVATIONS: dict[str, type[Activation]] = {"ReLU": ReLU, "Tanh": Tanh, "Sigmoid": Sigmoid}


def from_torch(
    kind: type[M],
    network: Any,
    activation: str | Activation | None,
    device: str | Backend,
    dtype: npt.DTypeLike | None,
) -> M:
    """``MLP.from_torch``: the network of a ``torch.nn.Sequential``, or of its ``state_dict()``.

    A Sequential consists of Linear layers with one kind of ReLU, LeakyReLU, Tanh or Sigmoid between them, or with
    no activation at all. It may also begin with Flatten, contain Identity and, in eval mode, Dropout, and end with
    Softmax or LogSoftmax over the classes; a Sigmoid after a single output becomes a softmax over two. Nested
    Sequentials are unpacked.

    The network uses all values as they are, whatever their dtype, as PyTorch does.

    Args:
        kind: the class of the result.
        network: the Sequential, or a mapping of names to tensors, with weights ``(out_features, in_features)`` as
            in PyTorch. If the names of the layers differ only in numbers, the layers are ordered by these numbers.
            Otherwise the order of the mapping is used, provided that it comes from ``state_dict()`` or that the
            layers' widths allow no other order: a file may have sorted the names.
        activation: of the hidden layers; only for a state dict, which does not contain it.
        device: as for `MLP`.
        dtype: that of the first weight by default (float32 for half precision).

    Raises:
        ImportedModelError: a layer has no equivalent here, has hooks, does not fit the layer before it, or has
            values that are not finite; or the order of a mapping's layers cannot be determined.
    """
    if isinstance(network, Mapping):
        weights, biases = _from_state(network)
        if activation is None and len(weights) > 1:
            raise ImportedModelError(
                "a state dict does not contain the activation of the hidden layers; give activation="
            )
        used, first = get_activation(activation or "identity"), next(iter(network.values()))
    else:
        if activation is not None:
            raise ImportedModelError("activation= is only for a state dict; a Sequential has its own")
        layers = list(_flat(network))
        weights, biases, used = _from_layers(layers)
        first = next(layer for _, layer in layers if type(layer).__name__ == "Linear").weight
    if weights[-1].shape[1] < 2:
        raise ImportedModelError(
            "the last layer has one output; expected two or more classes, or a Sigmoid after it in the Sequential"
        )
    given = str(first.dtype).rpartition(".")[2]
    return build(kind, weights, biases, used, device, dtype or ("float64" if given == "float64" else "float32"))


# -- Sequential ------------------------------------------------------------------------------------------------


def _flat(network: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and layers of a Sequential, including those of nested Sequentials."""
    if type(network).__name__ != "Sequential" or not hasattr(network, "named_children"):
        raise ImportedModelError(
            f"expected a torch.nn.Sequential or its state dict, got {type(network).__name__}, whose order of "
            "layers is not known; put its layers into a Sequential"
        )
    _refuse_hooks(f"Sequential {prefix}".strip(), network)
    for name, layer in network._modules.items():  # named_children() omits a module's second occurrence
        _refuse_hooks(f"layer {prefix}{name}, {layer}", layer)
        if type(layer).__name__ == "Sequential":
            yield from _flat(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _refuse_hooks(label: str, layer: Any) -> None:
    """Hooks, weight_norm and the like change what PyTorch computes from the layer's weights."""
    if any(getattr(layer, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks", "parametrizations")):
        raise ImportedModelError(
            f"{label}: has hooks or parametrizations, which change what its weights compute; remove them first"
        )


def _from_layers(layers: list[tuple[str, Any]]) -> tuple[list[HostArray], list[HostArray], Activation]:
    """Weights, biases and the activation of the hidden layers."""
    weights: list[HostArray] = []
    biases: list[HostArray] = []
    after: list[Activation | None] = []  # the activation after each Linear layer
    used: Activation | None = None
    closed = False  # by a softmax or a sigmoid on the outputs
    last = max((i for i, (_, layer) in enumerate(layers) if type(layer).__name__ == "Linear"), default=-1)
    if last < 0:
        raise ImportedModelError("expected at least one Linear layer in the Sequential, got none")
    for index, (name, layer) in enumerate(layers):
        what, label = type(layer).__name__, f"layer {name}, {layer}"
        if closed and what != "Identity":
            raise ImportedModelError(f"{label}: no layer may follow the activation of the outputs")
        if what == "Linear":
            _append_layer(label, layer.weight, layer.bias, weights, biases)
            after.append(None)
        elif what == "Flatten":
            if weights or (layer.start_dim, layer.end_dim) != (1, -1):
                raise ImportedModelError(f"{label}: expected only as the first layer, from dimension 1 to -1")
        elif what == "Dropout":
            if layer.training and layer.p > 0:
                raise ImportedModelError(
                    f"{label}: is in training mode, where its outputs are random; call .eval()"
                )
        elif what in ("Softmax", "LogSoftmax"):
            if index < last or layer.dim not in (1, -1) or after[-1] is not None:
                raise ImportedModelError(f"{label}: expected only at the end, with dim=1")
            closed = True
        elif what == "Sigmoid" and index > last and after[-1] is None and weights[-1].shape[1] == 1:
            weights[-1], biases[-1] = two_outputs(weights[-1], biases[-1])
            closed = True
        elif what in _ACTIVATIONS or what == "LeakyReLU":
            rule = _activation(label, layer)
            if index > last or not weights or after[-1] is not None:
                raise ImportedModelError(f"{label}: expected a single activation between two Linear layers only")
            if used is not None and repr(rule) != repr(used):
                raise ImportedModelError(
                    f"{label}: expected {used} as in the layers before; gpumlp has one activation for all layers"
                )
            after[-1] = used = rule
        elif what != "Identity":
            raise ImportedModelError(
                f"{label}: has no equivalent here; supported are Linear, ReLU, LeakyReLU, Tanh, Sigmoid, Flatten, "
                "Dropout, Identity, Softmax and LogSoftmax"
            )
    if used is not None and None in after[:-1]:
        index = after.index(None)
        raise ImportedModelError(f"Linear layer {index}: no activation follows it, but {used} follows others")
    return weights, biases, used or Identity()


def _activation(label: str, layer: Any) -> Activation:
    if type(layer).__name__ != "LeakyReLU":
        return _ACTIVATIONS[type(layer).__name__]()
    try:
        return LeakyReLU(layer.negative_slope)
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
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        tensor = tensor.numpy() if tensor.is_complex() else tensor.double().numpy()
    if np.iscomplexobj(tensor):
        raise ImportedModelError(f"{label}: expected real weights, got {np.asarray(tensor).dtype}")
    values: HostArray = np.asarray(tensor, dtype="float64")
    if not np.isfinite(values).all():
        raise ImportedModelError(f"{label}: expected finite weights, got NaN or infinity")
    return values


# -- State dict ------------------------------------------------------------------------------------------------


def _from_state(state: Mapping[str, Any]) -> tuple[list[HostArray], list[HostArray]]:
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


def _in_order(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The tensors in the order of their layers' numbers: a file may list 0, 10, 2 for 0, 2, 10."""
    named: list[tuple[str, Any]] = [(str(name), tensor) for name, tensor in state.items()]
    for name, tensor in named:
        if not hasattr(tensor, "ndim") or not hasattr(tensor, "shape"):
            raise ImportedModelError(f"{name}: expected a tensor or an array, got {type(tensor).__name__}")
    parts = [re.split(r"(\d+)", name.rpartition(".")[0]) for name, _ in named]
    if len({tuple(part[::2]) for part in parts}) == 1:
        order = sorted(range(len(named)), key=lambda i: [int(digits) for digits in parts[i][1::2]])
        return [named[i] for i in order]
    weights = [tensor for name, tensor in named if name.endswith("weight") and tensor.ndim == 2]
    widths = [weight.shape[1] for weight in weights[:1]] + [weight.shape[0] for weight in weights]
    # The network's own state_dict(), which has _metadata, is in order; a file may have sorted the names.
    if not hasattr(state, "_metadata") and not _one_order(widths):
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
