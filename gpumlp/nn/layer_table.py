"""How a network looks in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ..html import table

if TYPE_CHECKING:
    from .network import MLP

_HEADER = ("layer", "activation", "inputs", "outputs", "parameters")


def layer_table(model: MLP) -> str:
    """A network's layers as an HTML table, with the number of their parameters."""
    last = len(model.layers) - 1
    rows = [
        [
            f"layers.{index}",
            model.loss.output if index == last else layer.activation.name,
            f"{layer.in_features:,}",
            f"{layer.out_features:,}",
            f"{layer.weight.size + layer.bias.size:,}",
        ]
        for index, layer in enumerate(model.layers)
    ]
    about = f"MLP {'-'.join(map(str, model.sizes))}, {model.dtype.name}, on {model.backend.name}"
    total = ["in all", "", "", "", f"{model.parameters.count:,}"]
    return f"<div><p>{escape(about)}</p>{table(_HEADER, rows, words=2, foot=total)}</div>"
