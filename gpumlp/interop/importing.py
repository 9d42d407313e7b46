"""Shared by imports from all libraries: `ImportedModelError`, and an MLP from arrays of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Backend, HostArray
from ..nn import MLP, Activation, Inputs

M = TypeVar("M", bound=MLP)


class ImportedModelError(ValueError):
    """A network of another library has no equivalent here; the message names the layer."""


def build(
    kind: type[M],
    weights: list[HostArray],
    biases: list[HostArray],
    activation: str | Activation | Sequence[str | Activation],
    device: str | Backend,
    dtype: npt.DTypeLike,
    loss: str,
    dropout: Sequence[float] = (),
    input_dropout: float = 0.0,
) -> M:
    """An MLP of the class `kind` with these weights ``(in, out)`` and biases ``(out,)``.

    Its samples are used as they are, whatever their dtype.

    Args:
        kind: the class.
        weights, biases: of each layer.
        activation, device, dtype, loss, input_dropout: as for `MLP`.
        dropout: of each hidden layer; none by default.

    Raises:
        ImportedModelError: a weight is not finite in this dtype.
    """
    sizes = [len(weights[0]), *(w.shape[1] for w in weights)]
    rates = dropout or 0.0
    model = kind(
        sizes, activation, device=device, dtype=dtype, loss=loss, dropout=rates, input_dropout=input_dropout
    )
    tensors: dict[str, HostArray] = {}
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        tensors |= {f"layers.{index}.weight": weight, f"layers.{index}.bias": bias}
    try:
        model.load_state_dict(tensors)
    except ValueError as error:
        raise ImportedModelError(str(error)) from error
    model.inputs = Inputs((len(weights[0]),), "any")  # values are used as they are
    return model


def two_outputs(weight: HostArray, bias: HostArray) -> tuple[HostArray, HostArray]:
    """One logistic output s as the two outputs 0 and s of a softmax."""
    return np.hstack([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
