"""The network of a PyTorch ``Sequential`` or of its state dict, read without importing PyTorch.

What gpumlp has no equal for is refused, with the layer named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy.typing as npt

from ..backends import Backend, HostArray
from .activations import Activation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh, get_activation
from .importing import ImportedModelError, append_layer, build, two_outputs
from .torch_state import from_state

if TYPE_CHECKING:
    from .network import MLP

M = TypeVar("M", bound="MLP")

_TORCH_ACTIVATIONS: dict[str, type[Activation]] = {"ReLU": ReLU, "Tanh": Tanh, "Sigmoid": Sigmoid}


def from_torch(
    kind: type[M],
    network: Any,
    activation: str | Activation | None,
    device: str | Backend,
    dtype: npt.DTypeLike | None,
) -> M:
    """``MLP.from_torch``: the network of a ``torch.nn.Sequential``, or of its ``state_dict()``.

    A Sequential is Linear layers with one kind of ReLU, LeakyReLU, Tanh or Sigmoid between them (or nothing at all
    between any of them). Besides, it may begin with Flatten, contain Identity and, in eval mode, Dropout, and end
    with Softmax or LogSoftmax over the classes; a Sigmoid behind one last output becomes a softmax over two.
    Sequentials in it are unpacked.

    PyTorch uses all values as they are, gpumlp divides uint8 by 255: give float arrays to both.

    Args:
        kind: the class to make.
        network: the Sequential, or a mapping of names to tensors, weights ``(out_features, in_features)`` as
            PyTorch has them. Where the names of layers differ in numbers alone, the numbers are the order of the
            layers. Otherwise the mapping's is, if it comes from ``state_dict()`` or the layers' widths allow no
            other: a file may have sorted the names.
        activation: of the hidden layers, for a state dict only, which does not say.
        device: as of `MLP`.
        dtype: that of the first weight by default (float32 for half precision).

    Raises:
        ImportedModelError: a layer has no equal here, has hooks, does not fit the one before, or has values that
            are not finite; or the order of a mapping's layers is not known.
    """
    if isinstance(network, Mapping):
        weights, biases = from_state(network)
        if activation is None and len(weights) > 1:
            raise ImportedModelError(
                "a state dict does not tell the activation of its hidden layers; give activation="
            )
        used, first = get_activation(activation or "identity"), next(iter(network.values()))
    else:
        if activation is not None:
            raise ImportedModelError("activation= is for a state dict; a Sequential has its own")
        layers = list(_flat(network))
        weights, biases, used = _from_layers(layers)
        first = next(layer for _, layer in layers if type(layer).__name__ == "Linear").weight
    if weights[-1].shape[1] < 2:
        raise ImportedModelError(
            "the last layer has one output; expected two or more classes, or a Sigmoid behind it in the Sequential"
        )
    given = str(first.dtype).rpartition(".")[2]
    return build(kind, weights, biases, used, device, dtype or ("float64" if given == "float64" else "float32"))


def _flat(network: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The layers of a Sequential by name, those of Sequentials in it too."""
    if type(network).__name__ != "Sequential" or not hasattr(network, "named_children"):
        raise ImportedModelError(
            f"expected a torch.nn.Sequential or its state dict, got {type(network).__name__}, whose order of "
            "layers is not known; put its layers into a Sequential"
        )
    _refuse_hooks(f"Sequential {prefix}".strip(), network)
    for name, layer in network._modules.items():  # named_children() leaves out a module that comes again
        _refuse_hooks(f"layer {prefix}{name}, {layer}", layer)
        if type(layer).__name__ == "Sequential":
            yield from _flat(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _refuse_hooks(label: str, layer: Any) -> None:
    """Where PyTorch computes something else than the layer's weights say: weight_norm and the like."""
    if any(getattr(layer, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks", "parametrizations")):
        raise ImportedModelError(
            f"{label}: has hooks or parametrizations, which change what its weights say; remove them first"
        )


def _from_layers(layers: list[tuple[str, Any]]) -> tuple[list[HostArray], list[HostArray], Activation]:
    weights: list[HostArray] = []
    biases: list[HostArray] = []
    between: list[Activation | None] = []  # behind each Linear
    used: Activation | None = None
    closed = False  # by a softmax or the like: nothing may follow
    last = max((i for i, (_, layer) in enumerate(layers) if type(layer).__name__ == "Linear"), default=-1)
    if last < 0:
        raise ImportedModelError("expected at least one Linear layer in the Sequential, got none")
    for index, (name, layer) in enumerate(layers):
        what, label = type(layer).__name__, f"layer {name}, {layer}"
        if closed and what != "Identity":
            raise ImportedModelError(f"{label}: nothing can follow the output's activation")
        if what == "Linear":
            append_layer(label, layer.weight, layer.bias, weights, biases)
            between.append(None)
        elif what == "Flatten":
            if weights or (layer.start_dim, layer.end_dim) != (1, -1):
                raise ImportedModelError(f"{label}: expected only before all else, from dimension 1 to -1")
        elif what == "Dropout":
            if layer.training and layer.p > 0:
                raise ImportedModelError(
                    f"{label}: is in training mode, in which outputs are random; call .eval()"
                )
        elif what in ("Softmax", "LogSoftmax"):
            if index < last or layer.dim not in (1, -1) or between[-1] is not None:
                raise ImportedModelError(f"{label}: expected only at the end, with dim=1")
            closed = True
        elif what == "Sigmoid" and index > last and between[-1] is None and weights[-1].shape[1] == 1:
            weights[-1], biases[-1] = two_outputs(weights[-1], biases[-1])
            closed = True
        elif what in _TORCH_ACTIVATIONS or what == "LeakyReLU":
            rule = _torch_activation(label, layer)
            if index > last or not weights or between[-1] is not None:
                raise ImportedModelError(
                    f"{label}: expected one activation between two Linear layers, and no other"
                )
            if used is not None and repr(rule) != repr(used):
                raise ImportedModelError(
                    f"{label}: expected {used} as in the layers before; gpumlp has one for all"
                )
            between[-1] = used = rule
        elif what != "Identity":
            raise ImportedModelError(
                f"{label}: there is no equal of it; known are Linear, ReLU, LeakyReLU, Tanh, Sigmoid, Flatten, "
                "Dropout, Identity, Softmax and LogSoftmax"
            )
    if used is not None and None in between[:-1]:
        index = between.index(None)
        raise ImportedModelError(f"Linear layer {index}: no activation follows it, as {used} does the others")
    return weights, biases, used or Identity()


def _torch_activation(label: str, layer: Any) -> Activation:
    if type(layer).__name__ != "LeakyReLU":
        return _TORCH_ACTIVATIONS[type(layer).__name__]()
    try:
        return LeakyReLU(layer.negative_slope)
    except ValueError as error:
        raise ImportedModelError(f"{label}: {error}") from error
