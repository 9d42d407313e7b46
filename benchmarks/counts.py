"""What a training step costs: additions and multiplications, and bytes of memory traffic.

Both are counts of what the mathematics asks for, not of what a library does: dividing a measured rate by the
machine's limit over such a count says how much of the machine is put to use.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_PIXEL_BYTES, _LABEL_BYTES = 1, 8  # uint8 and int64, as the data lies on the device


def flops_per_sample(sizes: Sequence[int]) -> int:
    """Additions and multiplications of the matrix products of one training step, per sample.

    Three products a layer (forward, weight gradient, delta), of 2 in out each; the first layer has no delta.
    Activations, loss and update are left out: less than 2 % of it for these networks from batch 128 on.
    """
    products = [n_in * n_out for n_in, n_out in pairwise(sizes)]
    return 6 * sum(products) - 2 * products[0]


def bytes_per_step(sizes: Sequence[int], batch_size: float, *, momentum: bool, itemsize: int = 4) -> float:
    """Bytes read and written by one training step, if every operation read its inputs and wrote its outputs once.

    The operations are those of a step in which everything elementwise is fused with what comes before it. Nothing
    is supposed to stay in a cache from one operation to the next; where it does (a small network in a GPU's L2),
    a step can be faster than this count over the memory's bandwidth.

    Counted, for layers of ``n_in`` inputs and ``n_out`` units and B samples:

    - data: B pixels a feature read, B labels read;
    - inputs: written as floats, read by the first product, read by its weight gradient;
    - weights: read forward; read backward, but for the first layer, which has no delta;
    - a hidden layer's output: written, read by the next layer's product, by its weight gradient and by h';
      its delta: written, read by the weight gradient and, but for the first layer, by the delta below;
    - the logits: written, read by the loss; their delta likewise as a hidden layer's;
    - gradient: written once for each parameter;
    - update: gradient and parameter read, parameter written; with momentum, velocity read and written.
    """
    layers = list(pairwise(sizes))
    weights = [n_in * n_out for n_in, n_out in layers]
    parameters = sum(weights) + sum(sizes[1:])
    values = 3 * batch_size * sizes[0]
    values += sum(weights) + sum(weights[1:])
    for index, (_, n_out) in enumerate(layers):
        output = 2 if index == len(layers) - 1 else 4
        delta = 2 if index == 0 else 3
        values += (output + delta) * batch_size * n_out
    values += parameters + (5 if momentum else 3) * parameters
    return itemsize * values + batch_size * (sizes[0] * _PIXEL_BYTES + _LABEL_BYTES)
