"""The layers of a PyTorch state dict, in their order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..backends import HostArray
from .importing import ImportedModelError, append_layer


def from_state(state: Mapping[str, Any]) -> tuple[list[HostArray], list[HostArray]]:
    """Weights and biases of a state dict, in the order of its layers."""
    if not state:
        raise ImportedModelError("the state dict is empty")
    weights: list[HostArray] = []
    biases: list[HostArray] = []
    for name, tensor in _in_order(state):
        layer, _, part = name.rpartition(".")
        if part == "weight" and tensor.ndim == 2:
            append_layer(name, tensor, state.get(f"{layer}.bias" if layer else "bias"), weights, biases)
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
