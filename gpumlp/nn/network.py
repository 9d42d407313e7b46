"""The multilayer perceptron: forward and backward pass, their workspace, prediction and evaluation."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import Accumulation, Array, Backend, DeviceError, HostArray, check_dtype, get_backend, to_host
from ..words import shown
from .activations import Activation, get_activation
from .hyperparameters import whole
from .initializers import Initializer, draw_weights, get_initializer
from .layers import stack
from .losses import Loss, get_loss
from .parameters import Parameters
from .samples import Inputs, LabelledData, check_data, class_numbers, flat_samples

M = TypeVar("M", bound="MLP")

_PICKLED = ("sizes", "activation", "loss", "dtype", "initializer", "inputs", "class_names")

CHUNK = 1024  # samples per forward pass outside training; constant, so that results do not depend on the caller


class Workspace:
    """Activations and error terms of a network for up to `batch_size` samples.

    A forward pass writes the pre-activations into `deltas`; the loss and the backward pass overwrite them with the
    error terms. The last layer has no activation, so its output and its error term share one array, `logits`.

    Attributes:
        inputs: ``(batch, in_features)``, a_0.
        staging: ``(batch, in_features)`` uint8, for pixels before they are scaled; None for other data.
        outputs: a_l of each layer, ``(batch, out_features)``.
        deltas: s_l, then delta_l, of each layer, ``(batch, out_features)``.
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
        kept = [layer.activation.derivative_from == "input" for layer in model.layers]
        self.saved: list[Array | None] = [
            xp.empty_like(delta) if keep else None for keep, delta in zip(kept, self.deltas, strict=True)
        ]
        self._parts: dict[int, Workspace] = {}  # without self, to avoid a reference cycle

    @property
    def logits(self) -> Array:
        return self.deltas[-1]

    def rows(self, count: int) -> Workspace:
        """The first `count` rows of the same arrays, for a smaller batch."""
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
            part.saved = [None if saved is None else saved[:count] for saved in self.saved]
            part._parts = {}
            self._parts[count] = part
        return part

    def _logits_of(self, count: int, classes: int) -> Array:
        """A view ``(count, classes)`` of the logits' memory, contiguous in the backend's order."""
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
            ``"he_uniform"``, ``"glorot"``, ``"glorot_uniform"``, ``"orthogonal"``, ``"normal"`` (standard
            deviation 0.01), or an object with a ``std`` method.
        seed: of the initial weights, which are the same on every device.
        device: ``"auto"`` (a usable GPU, otherwise the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: float32 or float64.
        loss: ``"softmax_cross_entropy"`` (one class of several, required by `fit` and `Trainer`),
            ``"logistic_cross_entropy"`` (independent binary outputs), ``"squared_error"``,
            ``"poisson_deviance"`` (predictions are exponentials of the outputs), or a `Loss`.

    Attributes:
        layers: the `Dense` layers.
        parameters: their weights, biases and gradients, in flat buffers.
        backend: the `Backend` of the device.
        inputs: shape, dtype and name of the training samples, against which all other samples are checked; None
            for an untrained network.
        class_names: a string or number for each class, from the training set; None for 0, 1, 2, ...

    Raises:
        ValueError: sizes that are not two or more whole numbers of 1 or more, or an unknown name.
        TypeError: an activation, loss or initializer of the user's is incomplete.
        DeviceError: the device cannot be used.
        MemoryError: there is not enough memory for the parameters; the message says how much they need.

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
        self.loss = get_loss(loss)
        self.sizes = _checked_sizes(sizes, self.loss)
        self.activation = get_activation(activation)
        self.backend = get_backend(device)
        self.dtype = check_dtype(dtype)
        layer_sizes = self._allocate()
        rule, rng = get_initializer(initializer, self.activation), np.random.default_rng(whole("seed", seed, 0))
        self.initializer = rule
        start: dict[str, HostArray] = {}
        for index, (in_features, out_features) in enumerate(layer_sizes):
            start[f"layers.{index}.weight"] = draw_weights(rule, in_features, out_features, rng)
            start[f"layers.{index}.bias"] = np.zeros(out_features)
        self.load_state_dict(start)

    def _allocate(self) -> list[tuple[int, int]]:
        """Allocate the parameters, all 0, and the layers as views of them."""
        layer_sizes = list(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        with self.backend.activate():
            self.parameters = Parameters(layer_sizes, self.backend, self.dtype)
        self.layers = stack(self.parameters, layer_sizes, self.activation, self.backend)
        return layer_sizes

    # -- Forward and backward pass, in place ----------------------------------------------------------

    def forward_pass(self, workspace: Workspace) -> None:
        """Compute the workspace's outputs from its inputs: ``a_l = h_l(a_{l-1} W_l + b_l)``."""
        x = workspace.inputs
        arrays = zip(self.layers, workspace.deltas, workspace.saved, workspace.outputs, strict=True)
        for layer, delta, saved, a in arrays:
            s = delta if saved is None else saved
            self.backend.dense_forward(x, layer.weight, layer.bias, layer.activation, s, a)
            x = a

    def backward_pass(
        self, workspace: Workspace, weight_gradients: Sequence[Accumulation | None] | None = None
    ) -> None:
        """Compute the gradients from the error term of the last layer, ``workspace.logits``.

        ``delta_l = (delta_{l+1} W_{l+1}^T) * h_l'(s_l)``, ``dW_l = a_{l-1}^T delta_l``, ``db_l = sum delta_l``.

        Args:
            workspace: after a forward pass and the loss; overwritten.
            weight_gradients: for each layer, where dW_l is added instead of overwriting its `weight_gradient`.
        """
        targets = weight_gradients or [None] * len(self.layers)
        for index in range(len(self.layers) - 1, 0, -1):
            below, x = self.layers[index - 1], workspace.outputs[index - 1]
            deltas = workspace.deltas
            self.layers[index].backward(x, deltas[index], deltas[index - 1], targets[index])
            saved = x if workspace.saved[index - 1] is None else workspace.saved[index - 1]
            self.backend.activation_backward(below.activation, saved, deltas[index - 1])
        self.layers[0].backward(workspace.inputs, workspace.deltas[0], weight_gradient=targets[0])

    # -- Prediction and evaluation ----------------------------------------------------------------------

    def logits(self, images: Array, *, pixels: bool | None = None) -> Array:
        """The network's outputs before the softmax, ``(samples, classes)``.

        Args:
            images: ``(samples, ...)``, with as many values per sample as the network has inputs, of the shape and
                scale that `inputs` describes. Values on a GPU are not checked, since that would wait for it; NaN
                there gives NaN.
            pixels: whether uint8 values are pixels, which are divided by 255, or numbers, which are used as they
                are. By default `inputs` decides: pixels for a network trained on uint8 or not trained at all,
                numbers for an imported network, an error for a network trained on floats. Other dtypes are always
                used as they are.

        Returns:
            A CuPy array of the network's dtype if `images` is one and the network is on a GPU (without waiting),
            otherwise a NumPy array (waits for the device).

        Raises:
            ValueError: the number of features is not the network's, shape or scale are not those that it was
                trained on, the dtype is not a real one, or a value in host memory is NaN, infinite, or too large
                for the network's dtype.
            TypeError: a `Dataset` is given in place of its images.
        """
        backend = self.backend
        on_device = backend.owns(images)
        source, divided = flat_samples(self, images, backend, pixels)
        with backend.activate():
            source = backend.asarray(source, dtype=None if divided else self.dtype)
            order = backend.xp.arange(len(source))
            result = backend.xp.empty((len(source), self.sizes[-1]), dtype=self.dtype)
            workspace = Workspace(self, min(CHUNK, len(source)), pixels=divided)
            for start in range(0, len(source), CHUNK):
                chunk = slice(start, min(start + CHUNK, len(source)))
                part = workspace.rows(chunk.stop - start)
                backend.gather(source, order[chunk], part.staging, part.inputs)
                self.forward_pass(part)
                result[chunk] = part.logits
            return result if on_device else backend.to_numpy(result)

    def predict_proba(self, images: Array, *, pixels: bool | None = None) -> Array:
        """The probability of each class, ``(samples, classes)``; arguments as for `logits`.

        Raises:
            ValueError: the network's loss does not define probabilities; also as for `logits`.
        """
        with self.backend.activate():
            return self.loss.probabilities(self.logits(images, pixels=pixels))

    def predict(self, images: Array, *, pixels: bool | None = None) -> Array:
        """The predictions; arguments and errors as for `logits`.

        Returns:
            The number of the most probable class of each sample, ``(samples,)`` int64 (`class_names` says what it
            is called); with ``"logistic_cross_entropy"`` 0 or 1 for each output, ``(samples, outputs)`` int64;
            with ``"squared_error"`` the outputs.
        """
        with self.backend.activate():
            return self.loss.predictions(self.logits(images, pixels=pixels))

    def batches(self, dataset: LabelledData, batch_size: int = CHUNK, *, pixels: bool | None = None) -> Batches:
        """A data set as batches on the network's device, with the network's class numbers, for `evaluate`.

        Raises:
            ValueError: the samples do not have the shape or scale that the network was trained on, the data has
                classes that the network lacks, or the targets of the network's loss are not class numbers.
            TypeError: something else than a `Dataset` is given.
        """
        divided = check_data(self, self.inputs, dataset, pixels)
        labels = self.class_numbers(dataset)
        with self.backend.activate():
            batches: Batches = dataset.batches(batch_size, self.backend, self.dtype, labels=labels, pixels=divided)
            return batches

    def class_numbers(self, dataset: LabelledData) -> HostArray:
        """The labels of a data set as this network numbers its classes, ``(n,)`` int64.

        Where the data set has `class_names`, these decide; a network without any has the names 0, 1, 2, ...

        Raises:
            ValueError: the data has classes that the network lacks, or the targets of the network's loss are not
                class numbers.
        """
        return class_numbers(self, dataset, self.class_names)

    def evaluate(self, dataset: LabelledData, *, pixels: bool | None = None) -> Evaluation:
        """Loss and accuracy on a data set, reproducible bit for bit on one machine. Waits for the device once.

        Args:
            dataset: of the shape, scale and classes that the network was trained on.
            pixels: what uint8 values are, see `logits`.

        Raises:
            ValueError, TypeError: as for `batches`.
        """
        batches = self.batches(dataset, pixels=pixels)
        with self.backend.activate():
            return evaluate_batches(self, batches)

    def accuracy(self, dataset: LabelledData, *, pixels: bool | None = None) -> float:
        """The fraction of correctly classified samples; see `evaluate`."""
        return self.evaluate(dataset, pixels=pixels).accuracy

    # -- State ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, HostArray]:
        """Copies of all weights and biases on the host, by name: ``layers.0.weight``, ... Waits for the device."""
        return self.parameters.to_host(self.parameters.data, self.backend)

    def load_state_dict(self, tensors: dict[str, HostArray]) -> None:
        """Copy weights and biases into the network, as named in `state_dict`.

        Raises:
            ValueError: a tensor is missing, unknown, of another shape, or holds values that are NaN, infinite or
                too large for the network's dtype; the network is unchanged.
            TypeError: something else than tensors by name is given.
        """
        with self.backend.activate(), np.errstate(over="ignore"):
            flat = self.parameters.from_host(tensors, self.backend)
        limit = np.finfo(self.dtype).max
        for name, tensor in tensors.items():
            wrong = ~(np.abs(to_host(tensor)) <= limit)
            if wrong.any():
                raise ValueError(
                    f"{name} is expected to be finite in {self.dtype.name}, but {int(wrong.sum()):,} of "
                    f"{wrong.size:,} values are not"
                )
        with self.backend.activate():
            self.backend.xp.copyto(self.parameters.data, flat)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the network atomically to ``folder/model.safetensors``, for `load` on any device.

        The file contains sizes, activation, loss, dtype, initializer, `inputs`, `class_names` and the weights.
        Activations and losses of your own are saved by their name and attributes, if they are registered: see
        `gpumlp.register`. Waits for the device.

        Returns:
            The path of the file.

        Raises:
            ModelFileError: the folder is that of a training run, the activation or the loss is not registered, or
                the number of class names is not that of the classes.
            OSError: the disk is full, the folder is read-only, ...; a previous file is unchanged.
        """
        from .model_file import save_model

        return save_model(self, folder)

    @classmethod
    def load(cls: type[M], path: str | os.PathLike[str], *, device: str | Backend = "auto") -> M:
        """Load a network that was written by `save` or by a training run.

        The network of a run with early stopping is that of its best epoch; ``checkpoint.safetensors`` in its
        folder is that of the last one.

        Args:
            path: the folder given to `save`, the folder of a training run, or a ``.safetensors`` file from either.
            device: as for `MLP`; it may differ from the device of the training run.

        Raises:
            ModelFileError: the file is missing, damaged, of another format or version, or holds NaN; or the
                network of a run's best epoch is missing.
            DeviceError: the device cannot be used.
        """
        from .model_file import load_model

        return load_model(cls, path, device)

    @classmethod
    def from_sklearn(
        cls: type[M], estimator: Any, *, device: str | Backend = "auto", dtype: npt.DTypeLike | None = None
    ) -> M:
        """The network of a fitted MLPClassifier or MLPRegressor; see `gpumlp.interop.sklearn.from_sklearn`."""
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

    # -- Copies and pickles: the layers are views of one buffer and are created again --------------------

    def __getstate__(self) -> dict[str, Any]:
        """The state, with all arrays on the host: a network on a GPU can be unpickled on any machine."""
        attributes = {name: getattr(self, name) for name in _PICKLED}
        return {**attributes, "device": self.backend.name, "tensors": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the network on its device, or on the CPU, with a warning, if the device cannot be used."""
        self.__dict__.update({name: state[name] for name in _PICKLED})
        device = state["device"]
        try:
            self.backend = get_backend(device)
        except DeviceError as error:
            message = f"a network from {device} is loaded onto the CPU: {error.cause}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.backend = get_backend("cpu")
        self._allocate()
        with self.backend.activate():  # not load_state_dict, which refuses the weights of a run that diverged
            flat = self.parameters.from_host(state["tensors"], self.backend)
            self.backend.xp.copyto(self.parameters.data, flat)

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        """Copy the network on its device; the copy's gradients are 0."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)  # shares the backend, activation and loss, which are stateless
        copy.sizes = [*self.sizes]
        copy._allocate()
        with self.backend.activate():
            self.backend.xp.copyto(copy.parameters.data, self.parameters.data)
        return copy

    def __copy__(self: M) -> M:
        return self.__deepcopy__({})  # a shallow copy would share its parameters


def _checked_sizes(sizes: Any, loss: Loss) -> list[int]:
    try:
        result = [] if isinstance(sizes, str | bytes) else [operator.index(size) for size in sizes]
    except TypeError:
        result = []
    if len(result) < 2 or min(result) < 1 or result[-1] < loss.least_outputs:
        raise ValueError(
            "sizes are expected to be the number of inputs, of units in each hidden layer (1 or more) and "
            f"of {'classes' if loss.of_classes else 'outputs'} ({loss.least_outputs} or more), such as "
            f"[784, 128, 10], got {shown(sizes)}"
        )
    return result


class Batches(Protocol):
    """Labelled batches to evaluate on."""

    samples: int
    batch_size: int
    slices: list[slice]
    pixels: bool

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array: ...


class Evaluation(NamedTuple):
    """Results on a data set: mean loss, fraction and number of correct predictions, number of samples."""

    loss: float
    accuracy: float
    correct: int
    samples: int


def evaluate_batches(model: MLP, batches: Batches) -> Evaluation:
    """Loss and accuracy on batches that are already on the model's device. Waits for the device once."""
    loss, hits = model.backend.to_numpy(loss_and_hits(model, batches)).tolist()
    return evaluation(loss, hits, batches.samples)


def evaluation(loss: float, hits: float, samples: int) -> Evaluation:
    """Convert the sums of the losses and of the correct predictions."""
    return Evaluation(loss / samples, hits / samples, int(hits), samples)


def loss_and_hits(model: MLP, batches: Batches, inspect: Callable[[Workspace], None] | None = None) -> Array:
    """The sums of the losses and of the correct predictions, ``(2,)`` float64, on the device. Does not wait.

    `inspect` is called with the workspace of the first batch after its loss is computed: its outputs are the
    activations, its logits the error term.
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
        if inspect is not None and batch.start == 0:
            inspect(part)
    return xp.stack([backend.total(losses), backend.total(correct)])
