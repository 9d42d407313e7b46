"""Networks from other libraries: a fitted MLPClassifier of scikit-learn, a PyTorch ``Sequential`` or its state
dict.

Neither library is imported here: their objects are read by the attributes that they document. What gpumlp has no
equal for is refused, with the layer named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Backend, HostArray
from .activations import Activation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh, get_activation
from .model_file import Inputs

if TYPE_CHECKING:
    from .network import MLP

M = TypeVar("M", bound="MLP")

_SKLEARN_ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid", "identity": "identity"}
_TORCH_ACTIVATIONS: dict[str, type[Activation]] = {"ReLU": ReLU, "Tanh": Tanh, "Sigmoid": Sigmoid}


class ImportedModelError(ValueError):
    """A network of another library has no equal here; the message names the layer."""


def from_sklearn(kind: type[M], estimator: Any, device: str | Backend, dtype: npt.DTypeLike | None) -> M:
    """``MLP.from_sklearn``: the network of a fitted ``sklearn.neural_network.MLPClassifier``.

    For two classes scikit-learn has one output s and the probability 1 / (1 + e^-s); the softmax of the two
    outputs 0 and s is the same. The classifier's ``classes_`` become ``class_names``.

    scikit-learn uses all values as they are, gpumlp divides uint8 by 255: give float arrays to both.

    Args:
        kind: the class to make.
        estimator: fitted, and no pipeline around it.
        device: as of `MLP`.
        dtype: that of the estimator's coefficients by default.

    Raises:
        ImportedModelError: it is no such classifier, not fitted, or one for several labels a sample.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "hidden_layer_sizes"):
        cure = "; give its last step, and prepare the features as its other steps do" if name == "Pipeline" else ""
        raise ImportedModelError(f"expected a fitted MLPClassifier of scikit-learn, got {name}{cure}")
    if not hasattr(estimator, "coefs_"):
        raise ImportedModelError(f"expected a fitted MLPClassifier, got one without coefs_; call {name}.fit first")
    if not hasattr(estimator, "classes_"):
        raise ImportedModelError(f"expected an MLPClassifier, got {name}, which has no classes_")
    if estimator.activation not in _SKLEARN_ACTIVATIONS:
        raise ImportedModelError(f"{name}: there is no equal of the activation {estimator.activation!r}")
    weights = [np.asarray(weight) for weight in estimator.coefs_]
    biases = [np.asarray(bias) for bias in estimator.intercepts_]
    output = estimator.out_activation_
    if output == "logistic" and weights[-1].shape[1] == 1:
        weights[-1], biases[-1] = _two_outputs(weights[-1], biases[-1])
    elif output != "softmax":
        raise ImportedModelError(
            f"{name}: the output layer has {weights[-1].shape[1]} outputs and the activation {output!r}, as for "
            "several labels a sample; expected one label a sample"
        )
    activation = get_activation(_SKLEARN_ACTIVATIONS[estimator.activation])
    model = _build(kind, weights, biases, activation, device, dtype or weights[0].dtype)
    model.class_names = tuple(estimator.classes_.tolist())
    return model


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
        weights, biases = _from_state(network)
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
    return _build(kind, weights, biases, used, device, dtype or ("float64" if given == "float64" else "float32"))


def _build(
    kind: type[M],
    weights: list[HostArray],
    biases: list[HostArray],
    activation: Activation,
    device: str | Backend,
    dtype: npt.DTypeLike,
) -> M:
    model = kind([len(weights[0]), *(w.shape[1] for w in weights)], activation, device=device, dtype=dtype)
    tensors: dict[str, HostArray] = {}
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        tensors |= {f"layers.{index}.weight": weight, f"layers.{index}.bias": bias}
    model.load_state_dict(tensors)
    model.inputs = Inputs((len(weights[0]),), model.dtype.name, "")
    return model


def _two_outputs(weight: HostArray, bias: HostArray) -> tuple[HostArray, HostArray]:
    """One logistic output s as two of a softmax, 0 and s."""
    return np.hstack([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])


# -- PyTorch ------------------------------------------------------------------------------------------------


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
            _append(label, layer.weight, layer.bias, weights, biases)
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
            weights[-1], biases[-1] = _two_outputs(weights[-1], biases[-1])
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


def _from_state(state: Mapping[str, Any]) -> tuple[list[HostArray], list[HostArray]]:
    """Weights and biases of a state dict, in the order of its layers."""
    if not state:
        raise ImportedModelError("the state dict is empty")
    weights: list[HostArray] = []
    biases: list[HostArray] = []
    for name, tensor in _in_order(state):
        layer, _, part = name.rpartition(".")
        if part == "weight" and tensor.ndim == 2:
            _append(name, tensor, state.get(f"{layer}.bias" if layer else "bias"), weights, biases)
        elif part != "bias" or getattr(state.get(f"{layer}.weight" if layer else "weight"), "ndim", 0) != 2:
            raise ImportedModelError(
                f"{name} of shape {tuple(tensor.shape)}: expected only weights (out, in) and biases (out,) of "
                f"Linear layers"
            )
    return weights, biases


def _in_order(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The tensors in the order of their layers' numbers: a file may give 0, 10, 2 for 0, 2, 10."""
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
    # The network's own state_dict(), which has _metadata, is in its order; a file may be in the alphabet's.
    if not hasattr(state, "_metadata") and not _one_order(widths):
        raise ImportedModelError(
            f"the order of the layers is not known from the names {', '.join(name for name, _ in named)}; give "
            "names that differ in numbers alone, such as 0.weight and 1.weight, or the network's own state_dict()"
        )
    return named


def _one_order(widths: list[int]) -> bool:
    """Can layers that lead from each of these widths to the next be put in this order only?

    In another order, they would be a walk by the same steps. There is one if the walk ends where it began, comes
    to a place three times, or to two places in turn: a, b, a, b.
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


def _append(label: str, weight: Any, bias: Any, weights: list[HostArray], biases: list[HostArray]) -> None:
    """Take over a layer, with `weight` ``(out, in)`` and `bias` ``(out,)`` or None, behind those there are."""
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
    """A tensor's values, on any device and of any floating dtype, or a NumPy array's, as float64."""
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
