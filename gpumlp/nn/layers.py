"""The dense layer, the only kind of layer in a multilayer perceptron."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Accumulation, Array, Backend, check_dtype, get_backend
from .activations import Activation, get_activation
from .hyperparameters import whole
from .initializers import Initializer, draw_weights, get_initializer
from .parameters import Parameters


class Dense:
    """A fully connected layer: ``s = x W + b``, ``a = h(s)``.

    Args:
        in_features, out_features: the shape of W.
        activation: h, by name or as an `Activation`.
        initializer: of W, by name or as an object with a ``std`` method; b starts at 0.
        seed: of the initial weights: an int, or a generator to draw from.
        device: as for `MLP`.
        dtype: float32 or float64.
        storage: ``(weight, bias, weight_gradient, bias_gradient)``, arrays to use instead of allocating and
            initializing new ones.

    Attributes:
        weight, bias: W ``(in_features, out_features)`` and b ``(out_features,)``.
        weight_gradient, bias_gradient: dC/dW and dC/db of the last `backward`; for a network in training, see
            ``Trainer.keep_gradients``.

    Raises:
        ValueError: a size below 1, an unknown name, or another dtype.
        DeviceError: the device cannot be used.

    >>> layer = Dense(3, 2, "relu", device="cpu")
    >>> layer.forward(np.ones((4, 3), dtype=np.float32)).shape
    (4, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | Activation = "identity",
        *,
        initializer: str | Initializer = "auto",
        seed: int | np.random.Generator = 0,
        device: str | Backend = "cpu",
        dtype: npt.DTypeLike = "float32",
        storage: tuple[Array, Array, Array, Array] | None = None,
    ) -> None:
        self.in_features = whole("in_features", in_features, 1)
        self.out_features = whole("out_features", out_features, 1)
        self.activation = get_activation(activation)
        self.backend = get_backend(device)
        if storage is None:
            storage = self._draw(get_initializer(initializer, self.activation), seed, check_dtype(dtype))
        self.weight, self.bias, self.weight_gradient, self.bias_gradient = storage

    def forward(self, x: Array, s: Array | None = None, a: Array | None = None) -> Array:
        """Compute the output a of a batch. Does not wait for the device.

        Args:
            x: ``(batch, in_features)``, of the layer's dtype, on its device.
            s, a: ``(batch, out_features)``, both overwritten, `a` with the output; allocated by default.

        Returns:
            The output `a`.

        Raises:
            ValueError: `x` has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            hint = "; flatten the samples first" if x.ndim > 2 else ""
            raise ValueError(f"{self} expects x of shape (batch, {self.in_features}), got {x.shape}{hint}")
        with self.backend.activate():
            if s is None:
                s = self.backend.xp.empty((len(x), self.out_features), dtype=self.weight.dtype)
            if a is None:
                a = self.backend.xp.empty_like(s)
            self.backend.dense_forward(x, self.weight, self.bias, self.activation, s, a)
        return a

    def backward(
        self,
        x: Array,
        delta: Array,
        input_delta: Array | None = None,
        weight_gradient: Accumulation | None = None,
    ) -> None:
        """Compute the gradients ``dW = x^T delta`` and ``db = sum of delta over the batch``.

        With `input_delta`, also compute dC/dx, ``input_delta = delta W^T``. Does not wait for the device.

        Args:
            x: ``(batch, in_features)``, the input of the forward pass.
            delta: ``(batch, out_features)``, dC/ds of this layer.
            input_delta: ``(batch, in_features)``, overwritten.
            weight_gradient: where dW is added instead of overwriting the layer's `weight_gradient`.
        """
        target = weight_gradient or Accumulation(self.weight_gradient)
        self.backend.dense_backward(x, self.weight, delta, target, self.bias_gradient, input_delta)

    def _draw(
        self, initializer: Initializer, seed: int | np.random.Generator, dtype: np.dtype[Any]
    ) -> tuple[Array, Array, Array, Array]:
        rng = np.random.default_rng(seed)
        with self.backend.activate():
            weight = self.backend.asarray(
                draw_weights(initializer, self.in_features, self.out_features, rng), dtype=dtype
            )
            bias = self.backend.xp.zeros(self.out_features, dtype=dtype)
            return weight, bias, self.backend.xp.zeros_like(weight), self.backend.xp.zeros_like(bias)

    def __repr__(self) -> str:
        return f"Dense({self.in_features}, {self.out_features}, {self.activation.name!r})"


def stack(
    parameters: Parameters, layer_sizes: list[tuple[int, int]], activation: Activation, backend: Backend
) -> list[Dense]:
    """Create a network's layers as views of its flat buffers; the last layer has no activation."""
    views, gradients = parameters.views(parameters.data), parameters.views(parameters.gradient)
    layers = []
    for index, (in_features, out_features) in enumerate(layer_sizes):
        names = (f"layers.{index}.weight", f"layers.{index}.bias")
        (weight, bias), (weight_gradient, bias_gradient) = (
            [tensors[name] for name in names] for tensors in (views, gradients)
        )
        layers.append(
            Dense(
                in_features,
                out_features,
                activation if index < len(layer_sizes) - 1 else "identity",
                device=backend,
                storage=(weight, bias, weight_gradient, bias_gradient),
            )
        )
    return layers
