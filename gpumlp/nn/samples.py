"""What a network was trained on, and the one check of the samples and targets that it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..backends import Array, Backend, HostArray, to_host
from ..words import as_product, counted, listed, numeric_array, shown
from .losses import Loss, loss_for
from .metrics import Task
from .preprocessing import Preprocessing

_TOLERANCE = 1e-3  # of values from 0 to 1, for rounding and interpolation


@dataclass(frozen=True)
class Inputs:
    """Description of the samples that a network was trained on; whatever it is given later is checked against it.

    Attributes:
        shape: of one sample, such as ``(28, 28)``.
        dtype: of the given samples. ``"uint8"``: pixels, which are divided by 255; the network also takes other
            numbers from 0 to 1. ``"float32"`` and other floats: numbers with a scale of their own; the network
            refuses uint8, unless ``pixels=`` says what it is. ``"any"``: numbers that are used as they are,
            whatever their dtype, as other libraries do.
        data: the data set's name, such as ``"mnist"``.
        preprocessing: what images go through before the network sees them, in training and ever after; or None.

    Raises:
        ValueError: the dtype is none of these.
    """

    shape: tuple[int, ...]
    dtype: str
    data: str = ""
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "any") and not str(self.dtype).startswith("float"):
            raise ValueError(
                f"the dtype of inputs is expected to be 'uint8', 'float32', 'float64' or 'any', got {self.dtype!r}"
            )

    @property
    def pixels(self) -> bool:
        """Whether samples are uint8, which the network divides by 255."""
        return self.dtype == "uint8"


class Network(Protocol):
    """The part of `MLP` that the checks use."""

    sizes: list[int]
    dtype: np.dtype[Any]
    loss: Loss
    inputs: Inputs | None
    class_names: Sequence[Any] | None


class LabelledData(Protocol):
    """The part of ``gpumlp.Dataset`` that training and evaluation use."""

    images: Any
    task: Task
    targets: HostArray
    weights: HostArray | None
    classes: int
    class_names: tuple[Any, ...] | None
    numbered: bool

    @property
    def outputs(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def feature_shape(self) -> tuple[int, ...]: ...
    @property
    def limits(self) -> tuple[float, float] | None: ...
    @property
    def batches(self) -> Callable[..., Any]: ...


def flat_samples(model: Network, images: Any, backend: Backend, pixels: bool | None) -> tuple[Array, bool]:
    """The images as ``(samples, inputs)``, and whether their values are divided by 255.

    They stay where they are, unless they are preprocessed, which the host does. Only values on the host are
    checked; on a GPU that would wait for it.

    Raises:
        ValueError: the shape, dtype or scale does not match the network, or a value on the host is NaN, infinite,
            or too large for the network's dtype.
        TypeError: a data set is given.
    """
    if hasattr(images, "feature_shape"):
        raise TypeError(f"images are expected to be an array, got {images!r}; give dataset.images")
    if isinstance(images, np.ma.MaskedArray) and images.mask.any():
        raise ValueError(f"images hold {images.mask.sum():,} masked values; fill them in or leave them out")
    if not backend.owns(images):
        try:
            images = to_host(images)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"images cannot be read as one array ({error}); give rows of equal shape") from error
    elif model.inputs is not None and model.inputs.preprocessing is not None:
        images = backend.to_numpy(images)
    if images.dtype.kind not in "buif":
        raise ValueError(
            f"images are expected to be integers or real floats, got dtype {images.dtype}; {numeric_array(images)}"
        )
    if images.ndim < 2 or (images.size == model.sizes[0] != math.prod(images.shape[1:])):
        raise ValueError(
            f"images are expected to have shape (samples, ...), got {images.shape}; "
            + ("give one sample as images[None]" if model.sizes[0] > 1 else "give images.reshape(-1, 1)")
        )
    shape, rows = images.shape[1:], images.reshape(len(images), math.prod(images.shape[1:]))
    found: tuple[float, float] | None = None

    def limits() -> tuple[float, float] | None:
        nonlocal found
        if found is None and isinstance(rows, np.ndarray):
            found = (float(rows.min()), float(rows.max())) if rows.size else (0.0, 0.0)
        return found

    divided = check_samples(
        model, model.inputs, shape, images.dtype, limits, pixels, lambda: f"shape {images.shape}"
    )
    if images.dtype.kind == "f":
        _check_finite(rows, model, limits())
    if model.inputs is not None and model.inputs.preprocessing is not None:
        made = rows if divided else rows.astype(model.dtype, copy=False)
        rows = model.inputs.preprocessing(made.reshape(-1, *model.inputs.shape)).reshape(rows.shape)
    return rows, divided


def check_samples(
    model: Network,
    inputs: Inputs | None,
    shape: tuple[int, ...],
    dtype: Any,
    limits: Callable[[], tuple[float, float] | None],
    pixels: bool | None,
    what: Callable[[], str],
) -> bool:
    """Check samples against what a network was trained on; return whether their values are divided by 255.

    Args:
        model: the network.
        inputs: what it was trained on.
        shape: of one sample.
        dtype: of the samples.
        limits: returns the smallest and the largest value; None for values on a device.
        pixels: whether uint8 values are pixels; None: as `inputs` says, and for an untrained network, yes.
        what: names the samples, for messages.

    Raises:
        ValueError: shape, dtype or scale do not match.
        TypeError: `pixels` is something else.
    """
    if pixels is not None and not isinstance(pixels, bool | np.bool_):
        raise TypeError(f"pixels is expected to be True, False or None, got {pixels!r}")
    features = math.prod(shape)
    uint8 = bool(dtype == np.uint8)
    if features != model.sizes[0]:
        raise ValueError(f"{model} expects {model.sizes[0]} features a sample, got {features} ({what()})")
    if inputs is not None and not same_shape(shape, inputs.shape):
        raise ValueError(
            f"{model} was trained on samples of {as_product(inputs.shape)}, got {as_product(shape)} ({what()}); "
            "transpose or reshape them"
        )
    if uint8 and pixels is None and inputs is not None and inputs.dtype.startswith("float"):
        raise ValueError(
            f"{model} was trained on {inputs.dtype}, got uint8 ({what()}); convert the values as those of the "
            "training data were, or say what they are: pixels=True (--pixels true) divides them by 255, "
            "pixels=False (--pixels false) uses them as they are"
        )
    divided = uint8 and (pixels if pixels is not None else inputs is None or inputs.pixels)
    if inputs is not None and inputs.pixels and not divided:
        found = limits()  # without them, integers are taken to be pixels: hardly ever are all of them 0 and 1
        if found is None and np.dtype(dtype).kind in "iu":
            given = np.dtype(dtype).name
        elif found is not None and (found[0] < -_TOLERANCE or found[1] > 1 + _TOLERANCE):
            given = f"{np.dtype(dtype).name} from {found[0]:g} to {found[1]:g}"
        else:
            return divided
        cure = "divide the values by 255, or give uint8"
        if uint8:
            cure = "leave pixels out"
        elif found is not None and not 0 <= found[0] <= found[1] <= 255:
            cure = "scale the values to 0 to 1, as those are, or give uint8"
        raise ValueError(
            f"{model} was trained on uint8 pixels, which it divides by 255, got {given} ({what()}); {cure}"
        )
    return divided


def same_shape(given: tuple[int, ...], trained: tuple[int, ...]) -> bool:
    """Whether two shapes of one number of values are the same but for axes of length 1, or one of them is flat."""
    if given == trained:
        return True
    given, trained = (tuple(size for size in shape if size != 1) for shape in (given, trained))
    return given == trained or len(given) < 2 or len(trained) < 2


def _check_finite(rows: Array, model: Network, limits: tuple[float, float] | None) -> None:
    """Check that values between these limits, which are NaN if any value is, are finite in the network's dtype."""
    largest = float(np.finfo(model.dtype).max)
    if limits is None or (limits[0] >= -largest and limits[1] <= largest):
        return
    with np.errstate(invalid="ignore", over="ignore"):
        bad = ~(np.abs(rows.astype(np.float64)) <= largest)  # in float16 this limit is infinity
    sample = int(bad.any(axis=1).argmax())
    raise ValueError(
        f"images are expected to be finite in {model.dtype.name}, but {int(bad.sum()):,} of {rows.size:,} values "
        f"are NaN, infinite or too large, the first in sample {sample}; remove those samples or fill the values in"
    )


# -- Data sets ----------------------------------------------------------------------------------------------------


def learned_names(model: Network, dataset: LabelledData) -> Sequence[Any] | None:
    """What the classes or labels of a network are called once it is trained on a data set.

    An untrained network with as many outputs as there are classes or labels (or one for two classes) takes their
    names.
    """
    fits = dataset.outputs == model.sizes[-1] or (dataset.outputs == 2 and is_binary(model))
    new = model.inputs is None and model.class_names is None and fits
    return dataset.class_names if new else model.class_names


def with_targets(dataset: Any, targets: Any, task: str | None) -> Any:
    """A data set as it is; an array of samples with its targets as a `Dataset`, for a network of this task."""
    if targets is None:
        return dataset
    from ..data.dataset import as_dataset  # imports this folder

    # Numbers may be whole; other targets say themselves what they are.
    return as_dataset(dataset, targets, task="numbers" if task == "numbers" else None)


def check_data(model: Network, inputs: Inputs | None, dataset: LabelledData, pixels: bool | None) -> bool:
    """Check a data set against what a network was trained on; return whether its values are divided by 255.

    Raises:
        ValueError: as for `check_samples`.
        TypeError: something else than a data set is given.
    """
    if not hasattr(dataset, "feature_shape"):
        raise TypeError(f"a Dataset is expected, or an array with its targets, got {shown(dataset)}")
    dtype, limits = dataset.images.dtype, lambda: dataset.limits
    divided = check_samples(model, inputs, dataset.feature_shape, dtype, limits, pixels, lambda: repr(dataset))
    largest = float(np.finfo(model.dtype).max)
    if dtype.kind == "f" and dtype.itemsize > model.dtype.itemsize:
        low, high = dataset.limits or (0, 0)
        if low < -largest or high > largest:
            raise ValueError(
                f"{model} computes in {model.dtype.name}, but the values of {dataset} are from {low:g} to "
                f"{high:g}; scale them to about 1"
            )
    return divided


# What each kind of targets is called in messages.
_KINDS = {"classes": "one class of several a sample", "labels": "several labels a sample", "numbers": "numbers"}


def training_targets(model: Network, dataset: LabelledData, class_names: Sequence[Any] | None) -> HostArray:
    """The targets of a data set as a network with `class_names` takes them.

    Class numbers are used as they are: those of a data set that was made with ``classes=``, or, if the network has
    words as names, of one without names. Otherwise the names decide; where there are none, these are 0, 1, 2, ...
    Labels are brought into the order of the network's names, where both have names.

    Returns:
        ``(n,)`` int64 class numbers, if the task of the network's loss is classes; otherwise ``(n, outputs)`` of
        the network's dtype. Two classes and one output with the logistic loss: ``(n, 1)``, 0 and 1.

    Raises:
        ValueError: the task of the network's loss is another one, the network lacks a class or has another number
            of outputs, or a target is not as its loss or its dtype needs it.
    """
    # Samples for a trained network may all be of one class.
    fits = dataset.outputs == 2 or (dataset.outputs == 1 and model.inputs is not None)
    if dataset.task == "classes" and fits and is_binary(model):
        return _class_numbers(model, dataset, class_names, 2).astype(model.dtype)[:, None]
    outputs, task = model.sizes[-1], model.loss.task
    if dataset.task != task:
        cure = f"choose loss={loss_for(dataset.task, outputs).name!r}"
        if dataset.task == "classes" and outputs == 1 and dataset.classes != 2:
            cure = f"make a network with {max(2, dataset.classes)} outputs"
        elif task == "labels" and dataset.task == "classes":
            cure += ", or one output for two classes"
        if "numbers" in (task, dataset.task):
            cure += f", or give Dataset(..., task={task!r}) if these are {task}"
        raise ValueError(
            f"{model} has the loss {model.loss.name}, whose targets are {_KINDS[task]}, but {dataset} has "
            f"{_KINDS[dataset.task]}; {cure}"
        )
    if task == "classes":
        return _class_numbers(model, dataset, class_names, outputs)
    targets = dataset.targets
    if targets.shape[1] != outputs:
        raise ValueError(
            f"{model} has {counted(outputs, 'output')}, but {dataset} has {counted(targets.shape[1], task[:-1])} "
            f"a sample; make a network with {targets.shape[1]}"
        )
    if task == "labels" and class_names is not None and dataset.class_names is not None:
        places = {_key(name): place for place, name in enumerate(dataset.class_names)}
        order = [places.get(_key(name), -1) for name in class_names]
        if min(order) < 0:
            raise ValueError(
                f"{model} has the labels {listed(class_names)}, but {dataset} has others: "
                f"{listed(dataset.class_names)}; give those columns"
            )
        targets = targets[:, order]
    return float_targets(model, targets, f"the targets of {dataset}")


def float_targets(model: Network, targets: HostArray, what: str) -> HostArray:
    """Labels or numbers ``(n, outputs)`` in the network's dtype.

    Args:
        model: the network.
        targets: as many columns as it has outputs.
        what: what messages call them, such as "the targets of ...".

    Raises:
        ValueError: a target is not as the network's loss or its dtype needs it.
    """
    with np.errstate(over="ignore"):
        result = targets.astype(model.dtype)
    if not np.isfinite(result).all():
        raise ValueError(
            f"{model} computes in {model.dtype.name}, but {what} are up to {np.abs(targets).max():g}; scale them "
            "to about 1"
        )
    try:
        model.loss.check(result, result)
    except ValueError as error:
        raise ValueError(
            f"{what} are not those of the loss {model.loss.name}: {error}; correct them, or choose another loss"
        ) from error
    return result


def is_binary(model: Network) -> bool:
    """Whether a network's one output stands for the second of two classes."""
    names = model.class_names
    return (model.loss.task, model.sizes[-1]) == ("labels", 1) and (names is None or len(names) == 2)


def _class_numbers(
    model: Network, dataset: LabelledData, class_names: Sequence[Any] | None, classes: int
) -> HostArray:
    """The targets of a data set as a network of so many classes numbers them, ``(n,)`` int64."""
    own = range(classes) if class_names is None else np.asarray(class_names, dtype=object).tolist()
    words = any(isinstance(name, str) and not name.lstrip("-").isdecimal() for name in own)
    if dataset.class_names is None and (dataset.numbered or class_names is None or words):
        if dataset.classes > classes:
            raise ValueError(f"{model} has {classes} classes, but {dataset} has {dataset.classes}")
        return dataset.targets
    names = range(dataset.classes) if dataset.class_names is None else dataset.class_names
    places = {_key(name): place for place, name in enumerate(own)}
    numbers = np.array([places.get(_key(name), -1) for name in names], dtype=np.int64)
    missing = [names[label] for label in np.unique(dataset.targets) if numbers[label] < 0]
    if missing:
        raise ValueError(
            f"{model} has the classes {listed(own)}, but {dataset} has others: {listed(missing)}; make a network "
            f"for them, or give Dataset(..., classes={classes}) if the labels are class numbers"
        )
    return numbers[dataset.targets]


def _key(name: Any) -> Any:
    """A number and its digits name the same class: files have the one, tables the other."""
    return name if isinstance(name, str) or name != name // 1 else str(int(name))
