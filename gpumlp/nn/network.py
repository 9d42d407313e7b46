"""The multilayer perceptron: forward and backward pass, their workspace, prediction and evaluation."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt

from ..backends import (
    Accumulation,
    Array,
    Backend,
    DeviceError,
    Draws,
    HostArray,
    Totals,
    check_dtype,
    get_backend,
    to_host,
)
from ..words import shown
from .activations import Activation, Identity, get_activation
from .hyperparameters import number, whole
from .initializers import Initializer, get_initializer
from .layers import LAYERS, Cache, Dense, Dropout, Layer
from .losses import Loss, get_loss, loss_for
from .metrics import Evaluation, accuracy_of, evaluation, metric_totals, new_scores
from .parameters import Parameters, by_name, shapes_of
from .samples import Inputs, LabelledData, check_data, flat_samples, training_targets, with_targets

M = TypeVar("M", bound="MLP")

_PICKLED = ("sizes", "layers", "loss", "_default_loss", "dtype", "inputs", "class_names")
_OUTPUTS = {"classes": "classes", "labels": "labels", "numbers": "outputs"}

CHUNK = 1024  # samples per forward pass outside training; constant, so that results do not depend on the caller


class Workspace:
    """The arrays of a network for up to `batch_size` samples.

    The last layer has no activation, so its output and its error term share one array, `logits`.

    Args:
        model: the network.
        batch_size: number of samples.
        pixels: are the samples pixels, which are scaled as a batch is gathered?
        training: is it for training? In inference, dropout needs no arrays and does nothing.

    Attributes:
        inputs: ``(batch, in_features)``, a_0.
        staging: ``(batch, in_features)`` uint8, for pixels before they are scaled; None for other data.
        caches: the arrays of each layer, see `gpumlp.nn.layers.Cache`.
        sources: the input of each layer: `inputs`, and the output of every layer but the last.
    """

    def __init__(self, model: MLP, batch_size: int, *, pixels: bool, training: bool = False) -> None:
        xp, dtype = model.backend.xp, model.dtype
        self.batch_size = batch_size
        self.inputs: Array = xp.empty((batch_size, model.sizes[0]), dtype=dtype)
        self.staging: Array | None = xp.empty((batch_size, model.sizes[0]), dtype="uint8") if pixels else None
        self.caches: list[Cache] = []
        below = Cache(self.inputs, None)
        for layer in model.layers[:-1]:
            below = layer.new_cache(
                lambda dtype=dtype, layer=layer: xp.empty((batch_size, layer.out_features), dtype=dtype),
                below,
                training=training,
            )
            self.caches.append(below)
        self._logits: Array = xp.empty(batch_size * model.sizes[-1], dtype=dtype)
        self._logits_order = model.backend.logits_order
        self._add_logits(batch_size, model.sizes[-1])
        self._parts: dict[int, Workspace] = {}  # without self, to avoid a reference cycle

    @property
    def logits(self) -> Array:
        return self.caches[-1].output

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
            part.caches = [cache.rows(count) for cache in self.caches[:-1]]
            part._logits, part._logits_order, part._parts = self._logits, self._logits_order, {}
            part._add_logits(count, self.logits.shape[1])
            self._parts[count] = part
        return part

    def arrays(self) -> list[Array]:
        """Every array of the workspace, once."""
        layers = [array for cache in self.caches for array in (cache.output, cache.delta, cache.saved)]
        found = [array for array in (self.inputs, self.staging, *layers) if array is not None]
        return list({id(array): array for array in found}.values())

    def _add_logits(self, count: int, outputs: int) -> None:
        """The cache of the last layer: ``(count, outputs)``, contiguous in the backend's order."""
        part = self._logits[: count * outputs]
        columns = self._logits_order == "F"
        logits = part.reshape(outputs, count).T if columns else part.reshape(count, outputs)
        self.caches.append(Cache(logits, logits))
        self.sources = [self.inputs, *(cache.output for cache in self.caches[:-1])]


class MLP:
    """A multilayer perceptron: dense layers with an activation between them, and a loss that fits the targets.

    Args:
        sizes: units of each layer, inputs first and outputs last: ``[784, 128, 10]``; ``[784, 10]`` is softmax
            regression. Or the layers themselves, the last a `Dense` without activation: then these say what
            `activation`, `initializer`, `dropout` and `input_dropout` say otherwise. A `Dense` with a seed of its
            own keeps its weights.
        activation: of the hidden layers: ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"gelu"``, ``"silu"``,
            ``"softplus"``, ``"tanh"``, ``"sigmoid"``, or an `Activation`; or a list of these, one for each hidden
            layer.
        initializer: of the weights: ``"auto"`` (Glorot for tanh and the sigmoid, He for the others; of the output
            layer, that of the last hidden one), ``"he"``, ``"he_uniform"``, ``"glorot"``, ``"glorot_uniform"``,
            ``"orthogonal"``, ``"normal"`` (standard deviation 0.01), or an object with a ``std`` method.
        seed: of the initial weights, which are the same on every device.
        device: ``"auto"`` (a usable GPU, otherwise the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: float32 or float64.
        loss: ``"softmax_cross_entropy"`` (one class of several), ``"logistic_cross_entropy"`` (independent labels,
            or two classes with one output), ``"squared_error"``, ``"poisson_deviance"`` (predictions are
            exponentials of the outputs), or a `Loss`. ``"auto"`` chooses among the first three by the first data
            that the network sees; until then it is the first (with one output, the third).
        dropout: the probability of dropping a hidden unit in training, see `Dropout`; or a list, one for each
            hidden layer.
        input_dropout: that of dropping an input.

    Attributes:
        layers: all layers in order, see `gpumlp.nn.layers`.
        dense_layers: the `Dense` layers among them; `all_dense` says whether there are no others.
        activation: as given, an `Activation` or a list; `activations` is always a list, one for each hidden layer.
        parameters: all weights, biases and gradients, in flat buffers.
        loss: the `Loss`.
        backend: the `Backend` of the device.
        inputs: shape, dtype, name and preprocessing of the training samples, against which all other samples are
            checked; None for an untrained network.
        class_names: a string or number for each class, from the training set; None for 0, 1, 2, ...

    Raises:
        ValueError: sizes that are not two or more whole numbers of 1 or more, layers that do not fit together, a
            list of another length, a rate out of range, or an unknown name.
        TypeError: an activation, loss, layer or initializer of the user's is incomplete.
        DeviceError: the device cannot be used.
        MemoryError: there is not enough memory for the parameters; the message says how much they need.

    >>> MLP([784, 128, 10], activation="relu", seed=0, device="cpu")
    MLP([784, 128, 10], activation='relu', device='cpu', dtype='float32')  # 101,770 parameters
    >>> MLP([784, 512, 512, 10], "gelu", dropout=0.5, input_dropout=0.2, device="cpu").layers[:2]
    [Dropout(784, 0.2), Dense(784, 512, 'gelu')]
    """

    inputs: Inputs | None = None
    class_names: Sequence[Any] | None = None

    def __init__(
        self,
        sizes: Sequence[int] | Sequence[Layer],
        activation: str | Activation | Sequence[str | Activation] = "relu",
        *,
        initializer: str | Initializer = "auto",
        seed: int = 0,
        device: str | Backend = "auto",
        dtype: npt.DTypeLike = "float32",
        loss: str | Loss = "auto",
        dropout: float | Sequence[float] = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        rng = np.random.default_rng(whole("seed", seed, 0))
        given: Loss | None = None if isinstance(loss, str) and loss == "auto" else get_loss(loss)
        if _are_layers(sizes):
            if (dropout, input_dropout) != (0, 0):
                raise ValueError(
                    "dropout is expected among the layers, as Dropout(features, rate), if these are given"
                )
            if (activation, initializer) != ("relu", "auto"):
                raise ValueError(
                    'activation and initializer are expected in the layers, as Dense(784, 128, "tanh"), if these '
                    "are given"
                )
            self.sizes = _sizes_of(sizes)
            layers, drawn = [layer.without_arrays() for layer in sizes], list(sizes)
        else:
            self.sizes = _checked_sizes(sizes, given)
            layers = _layers(self.sizes, activation, initializer, dropout, input_dropout)
            drawn = [layer.without_arrays() for layer in layers]
        self.loss = given or loss_for("classes" if self.sizes[-1] > 1 else "numbers", self.sizes[-1])
        self._default_loss = None if given else self.loss  # as long as it is the loss, data may choose another
        self.backend = get_backend(device)
        self.dtype = check_dtype(dtype)
        self._allocate(layers)  # first, for its error if there is no memory
        self.load_state_dict(by_name(_parameters_of(layer, rng) for layer in drawn))

    def _allocate(self, layers: Sequence[Layer]) -> None:
        """Allocate the parameters, all 0, and bind the layers to them."""
        with self.backend.activate():
            self.parameters = Parameters(shapes_of(layer.shapes() for layer in layers), self.backend, self.dtype)
        self.layers = list(layers)
        buffers = self.parameters.data, self.parameters.gradient
        data, gradients = (self.parameters.views(flat) for flat in buffers)
        self._dense_weights: list[str] = []
        number = 0
        for layer in layers:
            names = {name: f"layers.{number}.{name}" for name in layer.shapes()}
            views = ({name: tensors[full] for name, full in names.items()} for tensors in (data, gradients))
            layer.bind(self.backend, *views)
            number += bool(names)
            if isinstance(layer, Dense):
                self._dense_weights.append(names["weight"])
        self.dense_layers = [layer for layer in layers if isinstance(layer, Dense)]
        # Below the first layer with parameters, no derivative is needed.
        self._first = next(index for index, layer in enumerate(layers) if layer.shapes())
        self.all_dense = all(type(layer) is Dense for layer in layers)

    def dense_weights(self, flat: Array) -> list[Array]:
        """The weights of each `Dense` layer, as views of a flat buffer ``(size,)``."""
        views = self.parameters.views(flat)
        return [views[name] for name in self._dense_weights]

    @property
    def activations(self) -> list[Activation]:
        return [layer.activation for layer in self.dense_layers[:-1]]

    @property
    def activation(self) -> Activation | list[Activation]:
        found = self.activations or [Identity()]
        return found[0] if all(alike(each, found[0]) for each in found) else found

    @property
    def activation_names(self) -> str:
        """The names of the activations of the hidden layers, for people, such as "relu" or "relu, tanh"."""
        return ", ".join(dict.fromkeys(each.name for each in self.activations or [Identity()]))

    @property
    def initializer(self) -> Initializer:
        """That of the first dense layer."""
        return self.dense_layers[0].initializer

    # -- Forward and backward pass, in place ----------------------------------------------------------

    def forward_pass(self, workspace: Workspace, draws: Draws | None = None) -> None:
        """Compute the workspace's outputs from its inputs: ``a_l = h_l(a_{l-1} W_l + b_l)``.

        Args:
            workspace: its caches are overwritten.
            draws: numbers the random numbers of a training step, for a workspace for training; None in inference.
        """
        for index, layer in enumerate(self.layers):
            own = draws if draws is None else draws._replace(layer=index)
            layer.forward(workspace.sources[index], workspace.caches[index], own)

    def backward_pass(
        self,
        workspace: Workspace,
        weight_gradients: Sequence[Accumulation] | None = None,
        draws: Draws | None = None,
    ) -> None:
        """Compute the gradients from the error term of the last layer, ``workspace.logits``.

        ``delta_l = (delta_{l+1} W_{l+1}^T) * h_l'(s_l)``, ``dW_l = a_{l-1}^T delta_l``, ``db_l = sum delta_l``.

        Args:
            workspace: after a forward pass and the loss; overwritten.
            weight_gradients: for each dense layer, where dW_l is added instead of overwriting its
                `weight_gradient`.
            draws: as in the forward pass.
        """
        targets = list(weight_gradients or [])
        for index in range(len(self.layers) - 1, self._first - 1, -1):
            layer, x, cache = self.layers[index], workspace.sources[index], workspace.caches[index]
            below = workspace.caches[index - 1].delta if index > self._first else None
            own = draws if draws is None else draws._replace(layer=index)
            if targets and isinstance(layer, Dense):
                layer.backward(x, cache, own, below, targets.pop())
            else:
                layer.backward(x, cache, own, below)

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
            A CuPy array of the network's dtype if `images` is one and the network is on a GPU (without waiting,
            unless the images are preprocessed), otherwise a NumPy array (waits for the device).

        Raises:
            ValueError: the number of features is not the network's, shape or scale are not those that it was
                trained on, the dtype is not a real one, or a value in host memory is NaN, infinite, or too large
                for the network's dtype, or so large that the outputs are.
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
            if on_device and not isinstance(result, np.ndarray):  # a look at its values would wait for the device
                return result
            return finite_outputs(self, backend.to_numpy(result))

    def predict_proba(self, images: Array, *, pixels: bool | None = None) -> Array:
        """The probability of each class, ``(samples, classes)``; arguments as for `logits`.

        With ``"logistic_cross_entropy"`` that of a 1 in each output, ``(samples, outputs)``: of two classes with
        one output only that of the second.

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
            with ``"squared_error"`` the outputs, with ``"poisson_deviance"`` their exponentials.
        """
        with self.backend.activate():
            return self.loss.predictions(self.logits(images, pixels=pixels))

    def batches(self, dataset: LabelledData, batch_size: int = CHUNK, *, pixels: bool | None = None) -> Batches:
        """A data set as batches on the network's device, with targets as its loss expects them, for `evaluate`.

        Raises:
            ValueError: the samples do not have the shape or scale that the network was trained on, the data has
                classes that the network lacks, or other targets than those of the network's loss.
            TypeError: something else than a `Dataset` is given.
        """
        divided = check_data(self, self.inputs, dataset, pixels)
        preprocessing = None if self.inputs is None else self.inputs.preprocessing
        if preprocessing is not None:
            preprocessing.check(dataset.feature_shape, dataset)
        with self.loss_chosen(dataset):
            targets = training_targets(self, dataset, self.class_names)
        with self.backend.activate():
            batches: Batches = dataset.batches(
                batch_size,
                self.backend,
                self.dtype,
                targets=targets,
                weights=dataset.weights,
                pixels=divided,
                preprocessing=preprocessing,
            )
            return batches

    @contextmanager
    def loss_chosen(self, dataset: LabelledData) -> Iterator[None]:
        """With ``loss="auto"``, choose the loss by the first data, unless the block raises an error."""
        before = self.loss
        if before is self._default_loss:
            self.loss = loss_for(dataset.task, self.sizes[-1])
        try:
            yield
        except BaseException:
            self.loss = before
            raise

    def evaluate(self, dataset: Any, targets: Any = None, *, pixels: bool | None = None) -> Evaluation:
        """Loss and metrics on a data set, reproducible bit for bit on one machine. Waits for the device once.

        Args:
            dataset: of the shape, scale and classes that the network was trained on; or an array of samples, with
                their `targets`, as for `fit`.
            targets: of an array of samples.
            pixels: what uint8 values are, see `logits`.

        Raises:
            ValueError, TypeError: as for `batches`.
        """
        task = None if self.loss is self._default_loss else self.loss.task
        batches = self.batches(with_targets(dataset, targets, task), pixels=pixels)
        with self.backend.activate():
            return evaluate_batches(self, batches)

    def accuracy(self, dataset: Any, targets: Any = None, *, pixels: bool | None = None) -> float:
        """The fraction of samples whose class, or all of whose labels, are predicted correctly; see `evaluate`.

        Raises:
            ValueError: the targets are numbers, or the loss is not finite; also as for `batches`.
        """
        return accuracy_of(self, self.evaluate(dataset, targets, pixels=pixels))

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

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the network atomically to one safetensors file, for `load` on any device.

        The file contains sizes, activation, loss, dtype, initializer, `inputs`, `class_names` and the weights.
        Activations and losses of your own are saved by their name and attributes, if they are registered: see
        `gpumlp.register`. Waits for the device.

        Args:
            path: of a folder, for ``model.safetensors``; or of the file, if it ends in ``.safetensors``. Missing
                folders are made.

        Returns:
            The path of the file.

        Raises:
            PathError: the name is that of another kind of file, such as ``net.npz``.
            ModelFileError: the folder or the file is that of a training run, an activation, a layer or the loss is
                not registered, a weight is NaN or infinite, or there is not one class name for each class.
            OSError: the disk is full, the folder is read-only, ...; a previous file is unchanged.
        """
        from .model_file import save_model

        return save_model(self, path)

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
        activation: str | Activation | Sequence[str | Activation] | None = None,
        device: str | Backend = "auto",
        dtype: npt.DTypeLike | None = None,
    ) -> M:
        """The network of a PyTorch ``Sequential`` or its state dict; see `gpumlp.interop.torch.from_torch`."""
        from ..interop.torch import from_torch

        return from_torch(cls, network, activation, device, dtype)

    def __str__(self) -> str:
        return f"MLP({self.sizes})"

    def __repr__(self) -> str:
        what = f"{self.sizes}, activation={_names(self.activation)!r}"
        if not self.all_dense:
            what = f"{self.layers}"
        loss = "" if self.loss.task == "classes" else f", loss={self.loss.name!r}"
        return (
            f"MLP({what}, device={self.backend.name!r}, dtype={self.dtype.name!r}{loss})  "
            f"# {self.parameters.count:,} parameters"
        )

    def _repr_html_(self) -> str:
        from ..html import layer_table

        return layer_table(self)

    # -- Copies and pickles: the layers are views of one buffer and are created again --------------------

    def __getstate__(self) -> dict[str, Any]:
        """The state, with all arrays on the host: a network on a GPU can be unpickled on any machine."""
        attributes = {name: getattr(self, name) for name in _PICKLED}
        attributes["layers"] = [layer.without_arrays() for layer in self.layers]
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
        self._allocate(self.layers)
        with self.backend.activate():  # not load_state_dict, which refuses the weights of a run that diverged
            flat = self.parameters.from_host(state["tensors"], self.backend)
            self.backend.xp.copyto(self.parameters.data, flat)

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        """Copy the network on its device; the copy's gradients are 0."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)  # shares the backend and the loss, which are stateless
        other.sizes = [*self.sizes]
        other._allocate([layer.without_arrays() for layer in self.layers])
        with self.backend.activate():
            self.backend.xp.copyto(other.parameters.data, self.parameters.data)
        return other

    def __copy__(self: M) -> M:
        return self.__deepcopy__({})  # a shallow copy would share its parameters


def alike(first: Activation, second: Activation) -> bool:
    """Are two activations the same function?"""
    return type(first) is type(second) and vars(first) == vars(second)


def _names(activation: Activation | list[Activation]) -> str | list[str]:
    return [each.name for each in activation] if isinstance(activation, list) else activation.name


def _are_layers(sizes: Any) -> TypeGuard[Sequence[Layer]]:
    return isinstance(sizes, Sequence) and any(isinstance(each, Layer) for each in sizes)


def _parameters_of(layer: Layer, rng: np.random.Generator) -> Mapping[str, Any]:
    """The parameters that a layer has, or its initial ones."""
    return layer.parameters if "parameters" in vars(layer) else layer.initial(rng)


def _sizes_of(layers: Sequence[Any]) -> list[int]:
    """The sizes of a network of these layers. Raises ValueError if they do not fit together."""
    for layer in layers:
        if not isinstance(layer, Layer):
            raise ValueError(f"sizes are expected to be all numbers or all layers, got {shown(layer)} among them")
        LAYERS.find(layer)
    for below, above in pairwise(layers):
        if below.out_features != above.in_features:
            raise ValueError(
                f"layers are expected to fit together, but {below!r} has {below.out_features} outputs and "
                f"{above!r} {above.in_features} inputs"
            )
    last = layers[-1]
    if type(last) is not Dense or not isinstance(last.activation, Identity):
        raise ValueError(
            "the last layer is expected to be a Dense without activation, since the loss has its own, got "
            f"{last!r}"
        )
    return [layers[0].in_features, *(layer.out_features for layer in layers if isinstance(layer, Dense))]


def _layers(
    sizes: list[int],
    activation: str | Activation | Sequence[str | Activation],
    initializer: str | Initializer,
    dropout: float | Sequence[float],
    input_dropout: float,
) -> list[Layer]:
    """The layers of an `MLP` with these arguments, without arrays."""
    hidden = len(sizes) - 2
    activations = _each("activation", activation, hidden, get_activation)
    rates = _each("dropout", dropout, hidden, lambda rate: number("dropout", rate, 0, 1, open_high=True))
    layers: list[Layer] = []
    if number("input_dropout", input_dropout, 0, 1, open_high=True):
        layers.append(Dropout(sizes[0], input_dropout))
    for index, size in enumerate(pairwise(sizes)):
        h = activations[index] if index < hidden else Identity()
        # The weights of the outputs are drawn as those of the layer below.
        rule = get_initializer(initializer, h if index < hidden else activations[-1] if activations else h)
        layers.append(Dense.unbound(*size, h, rule))
        if index < hidden and rates[index]:
            layers.append(Dropout(size[1], rates[index]))
    return layers


def _each(name: str, values: Any, count: int, check: Callable[[Any], Any]) -> list[Any]:
    """One checked value for each hidden layer; without hidden layers, a single value is checked and returned."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        if len(values) != count:
            raise ValueError(
                f"{name} is expected to have one value for each of {count} hidden layers, got {shown(values)}"
            )
        return [check(value) for value in values]
    return [check(values)] * max(1, count)


def _checked_sizes(sizes: Any, loss: Loss | None) -> list[int]:
    least, outputs = (1, "outputs") if loss is None else (loss.least_outputs, _OUTPUTS[loss.task])
    try:
        result = [] if isinstance(sizes, str | bytes) else [operator.index(size) for size in sizes]
    except TypeError:
        result = []
    if len(result) < 2 or min(result) < 1 or result[-1] < least or any(isinstance(size, bool) for size in sizes):
        raise ValueError(
            "sizes are expected to be the number of inputs, of units in each hidden layer (1 or more) and "
            f"of {outputs} ({least} or more), such as "
            f"[784, 128, 10], got {shown(sizes)}"
        )
    return result


class Batches(Protocol):
    """Labelled batches to evaluate on."""

    samples: int
    batch_size: int
    slices: list[slice]
    pixels: bool

    @property
    def sample_weights(self) -> Array | None: ...
    @property
    def spread(self) -> HostArray | None: ...
    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array: ...


def finite_outputs(model: MLP, outputs: HostArray) -> HostArray:
    """The outputs of a network for some samples, ``(samples, outputs)``; raise ValueError if they overflowed."""
    bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the outputs are not finite in {model.dtype.name} for {bad.size:,} of {len(outputs):,} samples, "
            f"first for sample {bad[0]}: the values are too large, or the training of {model} diverged"
        )
    return outputs


def forward_batches(model: MLP, batches: Batches) -> Iterator[tuple[slice, Workspace, Array]]:
    """Each batch, the workspace after its forward pass, and its targets."""
    workspace = Workspace(model, batches.batch_size, pixels=batches.pixels)
    for batch in batches.slices:
        part = workspace.rows(batch.stop - batch.start)
        targets = batches.gather(batch, part.staging, part.inputs)
        model.forward_pass(part)
        yield batch, part, targets


def evaluate_batches(model: MLP, batches: Batches) -> Evaluation:
    """Loss and metrics on batches that are already on the model's device. Waits for the device once."""
    backend, xp, samples = model.backend, model.backend.xp, batches.samples
    losses = xp.empty(samples, dtype=model.dtype)
    scores = new_scores(xp, model.loss.task, samples, model.sizes[-1], model.dtype)
    for batch, part, targets in forward_batches(model, batches):
        backend.output_error(model.loss, part.logits, targets, losses[batch], scores[batch])
    sums = backend.sums([evaluation_totals(model, batches, losses, scores)])
    return evaluation_of(model, batches, backend.to_numpy(sums).tolist())


def evaluation_of(model: MLP, batches: Batches, sums: Sequence[float]) -> Evaluation:
    """The metrics on these batches from the sums of `evaluation_totals` on the host."""
    return evaluation(model.loss.task, sums, batches.samples, model.sizes[-1], batches.spread)


def evaluation_totals(model: MLP, batches: Batches, losses: Array, scores: Array) -> Totals:
    """What is summed up for `evaluation_of`, from the losses and scores of all samples of the batches."""
    if batches.sample_weights is not None:
        losses = model.backend.xp.multiply(losses, batches.sample_weights)
    return metric_totals(model.backend, model.loss.task, losses, scores)
