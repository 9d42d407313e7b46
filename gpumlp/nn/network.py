"""The multilayer perceptron: its passes, the arrays that they work in, its evaluation and its use."""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Accumulation, Array, Backend, DeviceError, HostArray, check_dtype, get_backend, to_host
from .activations import Activation, get_activation
from .initializers import Initializer, draw_weights, get_initializer
from .layers import stack
from .losses import Loss, get_loss
from .parameters import Parameters

M = TypeVar("M", bound="MLP")

_KEPT = ("sizes", "activation", "loss", "dtype", "initializer", "inputs", "class_names")  # by a pickle

CHUNK = 1024  # samples per forward pass outside training; fixed, so that results do not depend on the caller


@dataclass(frozen=True)
class Inputs:
    """What a network was trained on, so that those who use it can prepare the same.

    Attributes:
        shape: of one sample: ``(28, 28)``.
        dtype: of the samples as they were given: ``"uint8"`` is pixels, divided by 255; others are used as given.
        data: the data set's name: ``"mnist"``.
    """

    shape: tuple[int, ...]
    dtype: str
    data: str

    @property
    def pixels(self) -> bool:
        """Are samples uint8, and divided by 255 as they enter the network?"""
        return self.dtype == "uint8"


class Workspace:
    """Activations and error terms of a network for up to `batch_size` samples.

    A forward pass leaves the pre-activations in `deltas`; the loss and the backward pass then turn them
    into error terms. The last layer has no activation, so its output shares its delta's array: that of
    the logits.

    Attributes:
        inputs: ``(batch, in_features)``, a_0.
        staging: ``(batch, in_features)`` uint8 for pixels on their way in, or None where the data has none.
        outputs: a_l of each layer, ``(batch, out_features)``.
        deltas: s_l and then delta_l of each layer, shaped alike.
    """

    def __init__(self, model: MLP, batch_size: int, *, pixels: bool) -> None:
        xp, dtype = model.backend.xp, model.dtype
        self.batch_size = batch_size
        self.inputs: Array = xp.empty((batch_size, model.sizes[0]), dtype=dtype)
        self.staging: Array | None = xp.empty((batch_size, model.sizes[0]), dtype="uint8") if pixels else None
        self.deltas: list[Array] = [xp.empty((batch_size, size), dtype=dtype) for size in model.sizes[1:-1]]
        self._logits: Array = xp.empty(batch_size * model.sizes[-1], dtype=dtype)
        self._logits_order = model.backend.logits_order
        self.deltas.append(self._logits_of(batch_size, model.sizes[-1]))
        self.outputs: list[Array] = [xp.empty_like(delta) for delta in self.deltas[:-1]] + self.deltas[-1:]
        self._parts: dict[int, Workspace] = {}  # never self: a cycle would outlive its use by many epochs

    @property
    def logits(self) -> Array:
        return self.deltas[-1]

    def rows(self, count: int) -> Workspace:
        """The first `count` rows of the same arrays, for the last, smaller batch."""
        if count == self.batch_size:
            return self
        part = self._parts.get(count)
        if part is None:
            part = object.__new__(Workspace)
            part.batch_size = count
            part.inputs = self.inputs[:count]
            part.staging = None if self.staging is None else self.staging[:count]
            part.deltas = [delta[:count] for delta in self.deltas[:-1]]
            part.deltas.append(self._logits_of(count, self.logits.shape[1]))
            part.outputs = [output[:count] for output in self.outputs[:-1]] + part.deltas[-1:]
            part._parts = {}
            self._parts[count] = part
        return part

    def _logits_of(self, count: int, classes: int) -> Array:
        """``(count, classes)``, contiguous in the backend's order, in the memory of the logits."""
        part = self._logits[: count * classes]
        if self._logits_order == "C":
            return part.reshape(count, classes)
        return part.reshape(classes, count).T


class MLP:
    """A multilayer perceptron: dense layers with one activation between them, and a softmax on top.

    Args:
        sizes: units of each layer, inputs first and classes last: ``[784, 128, 10]``; ``[784, 10]`` is
            softmax regression.
        activation: of the hidden layers: ``"relu"``, ``"leaky_relu"``, ``"tanh"``, ``"sigmoid"``, or an
            `Activation`.
        initializer: of the weights: ``"auto"`` (He for the ReLUs, Glorot otherwise), ``"he"``,
            ``"he_uniform"``, ``"glorot"``, ``"glorot_uniform"``, ``"normal"`` (standard deviation 0.01), or an
            object with a ``std`` method.
        seed: of the initial weights, which are the same on every device.
        device: ``"auto"`` (a usable GPU, otherwise the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: float32 or float64.
        loss: ``"softmax_cross_entropy"``, one class of several, as `fit` and `Trainer` train it;
            ``"logistic_cross_entropy"`` (yes or no for each output), ``"squared_error"``, or a `Loss`.

    Attributes:
        layers: the `Dense` layers.
        parameters: their weights, biases and gradients, in flat buffers.
        backend: the device's.
        inputs: shape and dtype of the samples it was trained on; None before a training.
        class_names: texts or numbers, what each class is called; None for 0, 1, 2, ...

    Raises:
        ValueError: a size below 1, fewer than two sizes, or an unknown name.
        DeviceError: the device cannot be used.

    >>> MLP([784, 128, 10], activation="relu", seed=0, device="cpu")
    MLP([784, 128, 10], activation='relu', device='cpu', dtype='float32')  # 101,770 parameters
    """

    initializer: Initializer | None = None
    inputs: Inputs | None = None
    class_names: Sequence[Any] | None = None

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Activation = "relu",
        *,
        initializer: str | Initializer = "auto",
        seed: int = 0,
        device: str | Backend = "auto",
        dtype: npt.DTypeLike = "float32",
        loss: str | Loss = "softmax_cross_entropy",
    ) -> None:
        self.sizes, self.loss = [operator.index(size) for size in sizes], get_loss(loss)
        if len(self.sizes) < 2 or min(self.sizes) < 1 or self.sizes[-1] < self.loss.least_outputs:
            last = "classes" if self.loss.of_classes else "outputs"
            raise ValueError(
                "sizes are expected to be the number of inputs, of units in each hidden layer (1 or more) and "
                f"of {last} ({self.loss.least_outputs} or more), got {list(sizes)}"
            )
        self.activation = get_activation(activation)
        self.backend = get_backend(device)
        self.dtype = check_dtype(dtype)
        layer_sizes = self._allocate()
        rule, rng = get_initializer(initializer, self.activation), np.random.default_rng(seed)
        self.initializer = rule
        start: dict[str, HostArray] = {}
        for index, (in_features, out_features) in enumerate(layer_sizes):
            start[f"layers.{index}.weight"] = draw_weights(rule, in_features, out_features, rng)
            start[f"layers.{index}.bias"] = np.zeros(out_features)
        self.load_state_dict(start)

    def _allocate(self) -> list[tuple[int, int]]:
        """Make the parameters, all 0, and the layers that live in them."""
        layer_sizes = list(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        with self.backend.activate():
            self.parameters = Parameters(layer_sizes, self.backend, self.dtype)
        self.layers = stack(self.parameters, layer_sizes, self.activation, self.backend)
        return layer_sizes

    # -- The passes of training, in place -------------------------------------------------------------

    def forward_pass(self, workspace: Workspace) -> None:
        """Fill the workspace's outputs from its inputs: ``a_l = h_l(a_{l-1} W_l + b_l)``."""
        x = workspace.inputs
        for layer, s, a in zip(self.layers, workspace.deltas, workspace.outputs, strict=True):
            self.backend.dense_forward(x, layer.weight, layer.bias, layer.activation, s, a)
            x = a

    def backward_pass(
        self, workspace: Workspace, weight_gradients: Sequence[Accumulation | None] | None = None
    ) -> None:
        """Fill the gradients from the error term of the logits, the last of the workspace's deltas.

        ``delta_l = (delta_{l+1} W_{l+1}^T) * h_l'(s_l)``, ``dW_l = a_{l-1}^T delta_l``, ``db_l = sum delta_l``.

        Args:
            workspace: of a forward pass.
            weight_gradients: where each dW_l is added, in place of overwriting the layer's `weight_gradient`.
        """
        targets = weight_gradients or [None] * len(self.layers)
        for index in range(len(self.layers) - 1, 0, -1):
            below, x = self.layers[index - 1], workspace.outputs[index - 1]
            deltas = workspace.deltas
            self.layers[index].backward(x, deltas[index], below.activation, deltas[index - 1], targets[index])
        self.layers[0].backward(workspace.inputs, workspace.deltas[0], weight_gradient=targets[0])

    # -- Use --------------------------------------------------------------------------------------------

    def logits(self, images: Array) -> Array:
        """The network's outputs before the softmax, ``(samples, classes)``.

        Args:
            images: ``(samples, ...)``, of any feature shape that has the network's number of inputs.
                uint8 means pixels, divided by 255; anything else is used as it is. Values in host memory are
                checked, those on a GPU are not: that would wait for it, and NaN there gives NaN.

        Returns:
            A CuPy array of the network's dtype if `images` is one and the network is on a GPU, otherwise a
            NumPy array.

        Raises:
            ValueError: the number of features is not the network's, the dtype is not a real number's, or a value
                in host memory is NaN, infinite, or too large for the network's dtype.
        """
        backend = self.backend
        on_device = backend.owns(images)
        source = flat_samples(self, images if on_device else to_host(images))
        with backend.activate():
            source = backend.asarray(source, dtype=None if source.dtype == np.uint8 else self.dtype)
            order = backend.xp.arange(len(source))
            result = backend.xp.empty((len(source), self.sizes[-1]), dtype=self.dtype)
            workspace = Workspace(self, min(CHUNK, len(source)), pixels=source.dtype == np.uint8)
            for start in range(0, len(source), CHUNK):
                chunk = slice(start, min(start + CHUNK, len(source)))
                part = workspace.rows(chunk.stop - start)
                backend.gather(source, order[chunk], part.staging, part.inputs)
                self.forward_pass(part)
                result[chunk] = part.logits
            return result if on_device else backend.to_numpy(result)

    def predict_proba(self, images: Array) -> Array:
        """The probability of each class, ``(samples, classes)``; arguments as for `logits`.

        Raises:
            ValueError: the network's loss is that of a regression.
        """
        with self.backend.activate():
            return self.loss.probabilities(self.logits(images))

    def predict(self, images: Array) -> Array:
        """What the loss takes for the answer; arguments as for `logits`.

        Returns:
            The most probable class of each sample, ``(samples,)`` int64; yes or no for each output with
            ``"logistic_cross_entropy"``, and the outputs themselves with ``"squared_error"``.
        """
        with self.backend.activate():
            return self.loss.predictions(self.logits(images))

    def check_fits(self, dataset: LabelledData) -> None:
        """Refuse data that this network cannot take.

        Raises:
            ValueError: the number of features is not the network's, there are more classes, or the network's loss
                is not one of class numbers.
        """
        if not self.loss.of_classes:
            raise ValueError(
                f"{self} has the loss {self.loss.name}, whose targets are not the class numbers of {dataset}; "
                "gpumlp.sklearn trains such networks"
            )
        if dataset.features != self.sizes[0]:
            raise ValueError(
                f"{self} expects {self.sizes[0]} features a sample, but {dataset} has {dataset.features}"
            )
        if dataset.classes > self.sizes[-1]:
            raise ValueError(f"{self} has {self.sizes[-1]} classes, but {dataset} has {dataset.classes}")

    def evaluate(self, dataset: LabelledData) -> Evaluation:
        """Loss and accuracy on a data set. Waits for the device once.

        The same on every call, to the last bit, on one machine and device.

        Raises:
            ValueError: the number of features is not the network's, or there are more classes.
        """
        self.check_fits(dataset)
        with self.backend.activate():
            return evaluate_batches(self, dataset.batches(CHUNK, self.backend, self.dtype))

    def accuracy(self, dataset: LabelledData) -> float:
        """The fraction of a data set that the network classifies correctly."""
        return self.evaluate(dataset).accuracy

    # -- State ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, HostArray]:
        """Copies of all weights and biases on the host, by name: ``layers.0.weight``, ..."""
        return self.parameters.to_host(self.parameters.data, self.backend)

    def load_state_dict(self, tensors: dict[str, HostArray]) -> None:
        """Take over weights and biases.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape.
        """
        with self.backend.activate():
            self.backend.xp.copyto(self.parameters.data, self.parameters.from_host(tensors, self.backend))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the network to ``folder/model.safetensors``, whole or not at all, for `load` on any device.

        Kept are sizes, activation, dtype, initializer, `inputs`, `class_names` and the weights. An activation of
        your own is kept by its name: for `load`, add the class to ``gpumlp.nn.activations.ACTIVATIONS``. Waits for
        the device.

        Returns:
            The path of the file.

        Raises:
            ModelFileError: the folder is that of a training run, or the class names are not one for each class.
            OSError: the disk is full, the folder is read-only, ...; a previous file is as it was.
        """
        from .model_file import save_model

        return save_model(self, folder)

    @classmethod
    def load(cls: type[M], path: str | os.PathLike[str], *, device: str | Backend = "auto") -> M:
        """The network that `save` or a training has saved, on any device.

        Args:
            path: the folder given to `save`, that of a training run, or a ``.safetensors`` file from either.
            device: as of `MLP`; not necessarily that of the training.

        Raises:
            ModelFileError: the file is missing, damaged, or of another format or version.
        """
        from .model_file import load_model

        return load_model(cls, path, device)

    @classmethod
    def from_sklearn(
        cls: type[M], estimator: Any, *, device: str | Backend = "auto", dtype: npt.DTypeLike | None = None
    ) -> M:
        """The network of a fitted MLPClassifier of scikit-learn; see `gpumlp.interop.sklearn.from_sklearn`."""
        from ..interop.sklearn import from_sklearn

        return from_sklearn(cls, estimator, device, dtype)

    @classmethod
    def from_torch(
        cls: type[M],
        network: Any,
        *,
        activation: str | Activation | None = None,
        device: str | Backend = "auto",
        dtype: npt.DTypeLike | None = None,
    ) -> M:
        """The network of a PyTorch ``Sequential`` or its state dict; see `gpumlp.interop.torch.from_torch`."""
        from ..interop.torch import from_torch

        return from_torch(cls, network, activation, device, dtype)

    def __str__(self) -> str:
        return f"MLP({self.sizes})"

    def __repr__(self) -> str:
        loss = "" if self.loss.of_classes else f", loss={self.loss.name!r}"
        return (
            f"MLP({self.sizes}, activation={self.activation.name!r}, device={self.backend.name!r}, "
            f"dtype={self.dtype.name!r}{loss})  # {self.parameters.count:,} parameters"
        )

    def _repr_html_(self) -> str:
        from ..html import layer_table

        return layer_table(self)

    # -- Copies and pickles: the layers are views of one buffer and must be rebuilt ----------------------

    def __getstate__(self) -> dict[str, Any]:
        """All arrays on the host, so that a network from a GPU can be unpickled anywhere."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return {**kept, "device": self.backend.name, "tensors": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """On the network's device; on the CPU, with a warning, if that device cannot be used."""
        self.__dict__.update({name: state[name] for name in _KEPT})
        device = state["device"]
        try:
            self.backend = get_backend(device)
        except DeviceError as error:
            message = f"a network from {device} is loaded onto the CPU: {error.cause}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.backend = get_backend("cpu")
        self._allocate()
        self.load_state_dict(state["tensors"])

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        """On the same device, with its own parameters and with gradients of 0."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)  # shares the backend and the rules, which hold no state of a network
        copy.sizes = [*self.sizes]
        copy._allocate()
        with self.backend.activate():
            self.backend.xp.copyto(copy.parameters.data, self.parameters.data)
        return copy

    def __copy__(self: M) -> M:
        return self.__deepcopy__({})  # a second network on the same buffer would be trained along with the first


class Batches(Protocol):
    """Labelled batches to evaluate on."""

    samples: int
    batch_size: int
    slices: list[slice]
    pixels: bool

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array: ...


class LabelledData(Protocol):
    """What evaluation needs of a data set: ``gpumlp.Dataset`` has it."""

    classes: int

    @property
    def features(self) -> int: ...
    def batches(self, batch_size: int, backend: Backend, dtype: npt.DTypeLike) -> Batches: ...


class Evaluation(NamedTuple):
    """How a network does on a data set: mean cross-entropy, fraction and number of correct answers."""

    loss: float
    accuracy: float
    correct: int
    samples: int


def evaluate_batches(model: MLP, batches: Batches) -> Evaluation:
    """Loss and accuracy on batches that are on the model's device already. Waits for the device once."""
    loss, hits = model.backend.to_numpy(loss_and_hits(model, batches)).tolist()
    return evaluation(loss, hits, batches.samples)


def evaluation(loss: float, hits: float, samples: int) -> Evaluation:
    """From the sums of the losses and of the correct answers."""
    return Evaluation(loss / samples, hits / samples, int(hits), samples)


def loss_and_hits(model: MLP, batches: Batches, look: Callable[[Workspace], None] | None = None) -> Array:
    """The sums of the losses and of the correct answers, ``(2,)`` float64, on the device. Waits for nothing.

    `look` is called with the workspace of the first batch, after its loss: the activations are in its outputs and
    the error term in its logits.
    """
    backend, xp = model.backend, model.backend.xp
    losses = xp.empty(batches.samples, dtype=model.dtype)
    correct = xp.empty(batches.samples, dtype=bool)
    workspace = Workspace(model, batches.batch_size, pixels=batches.pixels)
    for batch in batches.slices:
        part = workspace.rows(batch.stop - batch.start)
        labels = batches.gather(batch, part.staging, part.inputs)
        model.forward_pass(part)
        backend.output_error(model.loss, part.logits, labels, losses[batch], correct[batch])
        if look is not None and batch.start == 0:
            look(part)
    return xp.stack([backend.total(losses), backend.total(correct)])


def flat_samples(model: MLP, images: Array) -> Array:
    """The images as ``(samples, inputs)``, where they are.

    Values are checked on the host only: looking at those on a device would wait for it.

    Raises:
        ValueError: the shape or dtype does not suit the network, or a value on the host is NaN, infinite, or too
            large for the network's dtype.
    """
    if images.dtype.kind not in "buif":
        raise ValueError(
            f"images are expected to be integers or real floats, got dtype {images.dtype}; "
            "give one dense numeric array, such as uint8 or float32"
        )
    if images.ndim < 2:
        raise ValueError(f"images are expected to have shape (samples, ...), got {images.shape}")
    rows = images.reshape(len(images), math.prod(images.shape[1:]))
    if rows.shape[1] != model.sizes[0]:
        raise ValueError(
            f"{model} expects {model.sizes[0]} features a sample, got {rows.shape[1]} (shape {images.shape})"
        )
    if isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and rows.size:
        _check_range(rows, model)
    return rows


def _check_range(rows: HostArray, model: MLP) -> None:
    """By the largest and the smallest value, which are NaN if any is: nothing of the samples' size is made."""
    limit = float(np.finfo(model.dtype).max)
    with np.errstate(invalid="ignore"):
        if float(rows.max()) <= limit and float(rows.min()) >= -limit:
            return
        bad = ~(np.abs(rows) <= limit)
    sample = int(bad.any(axis=1).argmax())
    raise ValueError(
        f"images are expected to be finite in {model.dtype.name}, but {int(bad.sum()):,} of {rows.size:,} values "
        f"are NaN, infinite or too large, the first in sample {sample}; remove those samples or fill the values in"
    )
