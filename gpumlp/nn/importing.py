"""What networks from other libraries share: `ImportedModelError`, and the making of an MLP from their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Backend, HostArray
from .activations import Activation
from .network import Inputs

if TYPE_CHECKING:
    from .network import MLP

M = TypeVar("M", bound="MLP")


class ImportedModelError(ValueError):
    """A network of another library has no equal here; the message names the layer."""


def build(
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


def two_outputs(weight: HostArray, bias: HostArray) -> tuple[HostArray, HostArray]:
    """One logistic output s as two of a softmax, 0 and s."""
    return np.hstack([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])


def append_layer(label: str, weight: Any, bias: Any, weights: list[HostArray], biases: list[HostArray]) -> None:
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
