"""Layers: what a network computes between its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..backends import (
    DROPOUT,
    Accumulation,
    Array,
    Backend,
    Draws,
    HostArray,
    check_dtype,
    get_backend,
    reference_backend,
)
from ..words import with_options
from .activations import Activation, get_activation
from .hyperparameters import number, require_arguments, require_in_place, whole
from .initializers import Initializer, draw_weights, get_initializer
from .registry import Registry


@dataclass
class Cache:
    """The arrays of a layer for one batch, which `Layer.new_cache` creates.

    Attributes:
        output: ``(batch, out_features)``, the layer's output.
        delta: of the same shape, dC/d(output) in the backward pass; free to use in the forward pass. None for the
            inputs of a network, whose derivative is not computed.
        saved: what the layer keeps from its forward to its backward pass, ``(batch, ...)``, or None.
    """

    output: Array
    delta: Array  # None for the inputs
    saved: Array = None

    def rows(self, count: int) -> Cache:
        """The first `count` rows of the same arrays."""
        arrays = (self.output, self.delta, self.saved)
        return Cache(*(None if array is None else array[:count] for array in arrays))


class Layer:
    """Base class of layers. To add one, subclass, and implement `forward` and `backward`; see docs/extend.md.

    A layer computes in arrays that it is given. A network binds it to its own parameters, so one object belongs
    to one network. To save networks with it, set `name` and `register` it.

    Args:
        in_features, out_features: values of a sample before and after the layer.

    Attributes:
        backend: the `Backend` of the network's device, with the array library ``backend.xp``.
        parameters, gradients: arrays by name, as `shapes` names them: views of the network's flat buffers. The
            penalty and weight decay apply to matrices, not to vectors.
    """

    name: ClassVar[str]
    backend: Backend
    parameters: dict[str, Array]
    gradients: dict[str, Array]

    _arrays: ClassVar[tuple[str, ...]] = ("backend", "parameters", "gradients")  # what `bind` sets

    def __init__(self, in_features: int, out_features: int) -> None:
        self.in_features = whole("in_features", in_features, 1)
        self.out_features = whole("out_features", out_features, 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters by name; none by default."""
        return {}

    def initial(self, rng: np.random.Generator) -> dict[str, HostArray]:
        """Initial parameters, on the host, by name; 0 by default."""
        return {name: np.zeros(shape) for name, shape in self.shapes().items()}

    def new_cache(self, new: Callable[..., Array], below: Cache, *, training: bool) -> Cache:
        """The arrays for a batch.

        Args:
            new: ``new(dtype=...)`` returns an array ``(batch, out_features)``, of the network's dtype by default.
            below: that of the layer below, or the network's inputs.
            training: whether there are `draws`; without them a backward pass may follow too, for statistics.
        """
        return Cache(new(), new())

    def forward(self, x: Array, cache: Cache, draws: Draws | None) -> None:
        """Write the output for a batch into ``cache.output``. Does not wait for the device.

        Args:
            x: ``(batch, in_features)``; kept, unless it is ``cache.output`` itself.
            cache: of this batch.
            draws: numbers the random numbers of this training step; None in inference.
        """
        raise NotImplementedError

    def backward(self, x: Array, cache: Cache, draws: Draws | None, input_delta: Array | None) -> None:
        """Write the gradients, and the derivative of the loss with respect to `x`.

        Args:
            x: as in the forward pass.
            cache: of this batch, with ``cache.delta`` = dC/d(output); its arrays may be overwritten.
            draws: as in the forward pass.
            input_delta: ``(batch, in_features)``, overwritten with dC/dx; None if it is not needed.
        """
        raise NotImplementedError

    def bind(self, backend: Backend, parameters: dict[str, Array], gradients: dict[str, Array]) -> None:
        """Use these arrays from now on."""
        self.backend, self.parameters, self.gradients = backend, parameters, gradients

    def options(self) -> dict[str, Any]:
        """The arguments that make this layer again, numbers and strings: by default, its attributes."""
        return {name: value for name, value in vars(self).items() if name not in self._arrays}

    def without_arrays(self) -> Layer:
        """A copy that is not bound to any arrays."""
        other = object.__new__(type(self))
        vars(other).update((name, value) for name, value in vars(self).items() if name not in self._arrays)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """The state, with the parameters on the host."""
        state = vars(self.without_arrays())
        if "parameters" in vars(self):
            tensors = {name: self.backend.to_numpy(array) for name, array in self.parameters.items()}
            state["bound"] = self.backend.name, tensors
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, tensors = state.pop("bound", (None, {}))
        vars(self).update(state)
        if device is not None:
            self._bind_copies(get_backend(device), tensors)

    def _bind_copies(self, backend: Backend, tensors: dict[str, HostArray]) -> None:
        """Bind arrays of the layer's own."""
        with backend.activate():
            parameters = {name: backend.xp.array(array) for name, array in tensors.items()}
            gradients = {name: backend.xp.zeros_like(array) for name, array in parameters.items()}
        self.bind(backend, parameters, gradients)

    def __repr__(self) -> str:
        return with_options(self, self.options())


class Dense(Layer):
    """A fully connected layer: ``s = x W + b``, ``a = h(s)``.

    Args:
        in_features, out_features: the shape of W.
        activation: h, by name or as an `Activation`.
        initializer: of W, by name or as an object with a ``std`` method; b starts at 0.
        seed: of the initial weights: an int, or a generator to draw from. Without it they are drawn when they are
            first used: by a network of this layer from its own seed, otherwise with the seed 0.
        device: as for `MLP`.
        dtype: float32 or float64.

    Attributes:
        weight, bias: W ``(in_features, out_features)`` and b ``(out_features,)``.
        weight_gradient, bias_gradient: dC/dW and dC/db of the last `backward`; for a network in training, see
            ``Trainer.keep_gradients``.

    Raises:
        ValueError: a size below 1, an unknown name, or another dtype.
        DeviceError: the device cannot be used.

    >>> layer = Dense(3, 2, "relu", device="cpu")
    >>> layer(np.ones((4, 3), dtype=np.float32)).shape
    (4, 2)
    """

    name = "dense"
    kernel = "dense"  # see `gpumlp.backends.stated`
    weight: Array
    bias: Array
    weight_gradient: Array
    bias_gradient: Array

    _arrays = (*Layer._arrays, "weight", "bias", "weight_gradient", "bias_gradient")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | Activation = "identity",
        *,
        initializer: str | Initializer = "auto",
        seed: int | np.random.Generator | None = None,
        device: str | Backend = "cpu",
        dtype: npt.DTypeLike = "float32",
    ) -> None:
        super().__init__(in_features, out_features)
        self.activation = get_activation(activation)
        self.initializer = get_initializer(initializer, self.activation)
        get_backend(device)  # for its error
        self._home = device, check_dtype(dtype)
        if seed is not None:
            self._draw(seed)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_home" in state:
            device, dtype = state["_home"]
            state["_home"] = getattr(device, "name", device), dtype  # a `Backend` cannot be pickled
        return state

    def _draw(self, seed: int | np.random.Generator) -> None:
        device, dtype = self._home
        start = self.initial(np.random.default_rng(seed))
        self._bind_copies(get_backend(device), {name: array.astype(dtype) for name, array in start.items()})

    def __getattr__(self, name: str) -> Any:
        """The arrays of a layer without a seed, at their first use."""
        if name not in self._arrays or "_home" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._draw(0)
        return getattr(self, name)

    @classmethod
    def unbound(
        cls, in_features: int, out_features: int, activation: Activation, initializer: Initializer
    ) -> Dense:
        """A layer without arrays, for a network that binds it."""
        layer = object.__new__(cls)
        Layer.__init__(layer, in_features, out_features)
        layer.activation, layer.initializer = activation, initializer
        return layer

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.in_features, self.out_features), "bias": (self.out_features,)}

    def initial(self, rng: np.random.Generator) -> dict[str, HostArray]:
        weight = draw_weights(self.initializer, self.in_features, self.out_features, rng)
        return {"weight": weight, "bias": np.zeros(self.out_features)}

    def bind(self, backend: Backend, parameters: dict[str, Array], gradients: dict[str, Array]) -> None:
        super().bind(backend, parameters, gradients)
        self.weight, self.bias = parameters["weight"], parameters["bias"]
        self.weight_gradient, self.bias_gradient = gradients["weight"], gradients["bias"]

    def new_cache(self, new: Callable[..., Array], below: Cache, *, training: bool) -> Cache:
        return Cache(new(), new(), new() if self.activation.derivative_from == "input" else None)

    def forward(self, x: Array, cache: Cache, draws: Draws | None = None) -> None:
        # Where h' comes from the output, the pre-activation is not kept: it is computed where delta will be.
        s = cache.delta if cache.saved is None else cache.saved
        self.backend.dense_forward(x, self.weight, self.bias, self.activation, s, cache.output)

    def backward(
        self,
        x: Array,
        cache: Cache,
        draws: Draws | None = None,
        input_delta: Array | None = None,
        weight_gradient: Accumulation | None = None,
    ) -> None:
        """``delta <- delta * h'``, ``dW = x^T delta``, ``db = sum of delta over the batch``, ``dx = delta W^T``.

        Arguments as for `Layer.backward`, and `weight_gradient`: where dW is added instead of overwriting the
        layer's `weight_gradient`.
        """
        saved = cache.output if cache.saved is None else cache.saved
        backend, bias_gradient = self.backend, self.bias_gradient
        if cache.output is not cache.delta:  # the outputs of a network have no activation
            backend.activation_backward(self.activation, saved, cache.delta, bias_gradient)
            bias_gradient = None
        target = weight_gradient or Accumulation(self.weight_gradient)
        backend.dense_backward(x, self.weight, cache.delta, target, bias_gradient, input_delta)

    def __call__(self, x: Array) -> Array:
        """The output for ``x`` of shape ``(batch, in_features)``, as a new array. Does not wait for the device.

        Raises:
            ValueError: `x` has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            hint = "; flatten the samples first" if x.ndim > 2 else ""
            raise ValueError(f"{self} expects x of shape (batch, {self.in_features}), got {x.shape}{hint}")
        with self.backend.activate():
            s = self.backend.xp.empty((len(x), self.out_features), dtype=self.weight.dtype)
            cache = Cache(self.backend.xp.empty_like(s), s, s)
            self.forward(x, cache)
        return cache.output

    def __repr__(self) -> str:
        return f"Dense({self.in_features}, {self.out_features}, {self.activation.name!r})"


class Dropout(Layer):
    """In training, each value is dropped (set to 0) with probability `rate`, and otherwise divided by 1 - rate.

    In inference it does nothing. The masks depend on the seed, the number of the step, the layer, the row in the
    batch and the unit, and on nothing else: they are the same on every device and after a resume.

    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014. There
    the weights are multiplied by 1 - rate in inference, which gives the same expected values.

    Args:
        features: values of a sample.
        rate: the probability of dropping a value, from 0 to below 1.
    """

    name = kernel = "dropout"

    def __init__(self, features: int, rate: float = 0.5) -> None:
        super().__init__(features, features)
        self.rate = number("the rate of dropout", rate, 0, 1, open_high=True)

    def options(self) -> dict[str, Any]:
        return {"features": self.in_features, "rate": self.rate}

    def new_cache(self, new: Callable[..., Array], below: Cache, *, training: bool) -> Cache:
        if not training:
            return below
        # The layer below still needs its output, for h'; the network's inputs are not needed again.
        output = below.output if below.delta is None else new()
        return Cache(output, below.delta, new(dtype=bool) if self.backend.stores_masks else None)

    def forward(self, x: Array, cache: Cache, draws: Draws | None) -> None:
        if draws is not None:
            self.backend.dropout(x, self.rate, draws, cache.saved, cache.output)

    def backward(self, x: Array, cache: Cache, draws: Draws | None, input_delta: Array | None) -> None:
        if draws is not None and input_delta is not None:  # which is cache.delta, see `new_cache`
            self.backend.dropout_backward(input_delta, self.rate, draws, cache.saved)

    def __repr__(self) -> str:
        return f"Dropout({self.in_features}, {self.rate:g})"


def _check(rule: Layer) -> None:
    if isinstance(rule, Dense):  # the diagnostics want its gradient elsewhere
        arguments = ("x", "cache", "draws", "input_delta", "weight_gradient")
        require_arguments(f"{type(rule).__name__}.backward", rule.backward, *arguments)
    kind, rows, layer = type(rule).__name__, 2, rule.without_arrays()
    sizes, start = (rows, layer.out_features), layer.initial(np.random.default_rng(0))
    wrong = {
        name: shape for name, shape in layer.shapes().items() if np.shape(start.get(name, ())) != tuple(shape)
    }
    if wrong or len(start) != len(layer.shapes()):
        raise TypeError(
            f"{kind}.initial is expected to return an array for each of {layer.shapes()}, as shapes() does, got "
            f"{ {name: np.shape(array) for name, array in start.items()} }"
        )
    parameters = {name: np.array(array, dtype=np.float64) for name, array in start.items()}
    layer.bind(
        reference_backend(np), parameters, {name: np.full_like(a, np.nan) for name, a in parameters.items()}
    )
    below = Cache(*(np.full((rows, layer.in_features), value) for value in (0.5, np.nan)))
    cache = layer.new_cache(lambda dtype=np.float64: np.full(sizes, np.nan).astype(dtype), below, training=True)
    draws = Draws(0, DROPOUT, 0, 0, 0)
    require_in_place(f"{kind}.forward", lambda: layer.forward(below.output, cache, draws), cache.output)
    cache.delta[...] = 1
    require_in_place(
        f"{kind}.backward", lambda: layer.backward(below.output, cache, draws, below.delta), below.delta
    )


LAYERS = Registry("layer", Layer, ("forward", "backward"), (Dense, Dropout), _check)
