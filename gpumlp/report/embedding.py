"""What a page embeds: images as small PNG files, and networks as packed weights."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import HostArray, to_host
from ..data import Dataset
from ..interop.dense import dense_layers
from ..nn.activations import ACTIVATIONS, ELU, Activation, LeakyReLU
from ..nn.committee import Committee, members_of
from ..nn.losses import output_function
from ..nn.model_file import class_names
from ..nn.network import MLP
from ..nn.preprocessing import HALF, INK, STEEPEST, middle_of
from ..words import as_product

_INK = 0.02  # a pixel this fraction of the way from background to ink is part of the drawing
_EXTENT = 0.95  # the quantile of the extents of drawings that is the size of their box
_LEVELS = 32  # of grey or colour: more take bytes without a visible difference
_WEIGHTS, _BETWEEN = "cividis", (255, 255, 255)  # brightness increases with the value, as in the figures


@dataclass(frozen=True)
class Field:
    """How a drawing is placed in an image for the network.

    Attributes:
        height, width: of an image.
        background, ink: the network's inputs for blank paper and full ink.
        box_height, box_width: the size that a drawing is scaled to fit; 20 x 20 of 28 x 28 for MNIST.
        centre_y, centre_x: the position of its centre of mass, from the upper left corner; in MNIST inside the
            pixel below and to the right of the middle, on average half a pixel away from it.
    """

    height: int
    width: int
    background: float
    ink: float
    box_height: int
    box_width: int
    centre_y: float
    centre_x: float

    @classmethod
    def like_mnist(cls, height: int, width: int) -> Field:
        """White ink on black, in a box of 20/28 of the image."""
        box = (max(1, round(height * 20 / 28)), max(1, round(width * 20 / 28)))
        return cls(height, width, 0.0, 1.0, *box, height / 2 + 0.5, width / 2 + 0.5)

    @classmethod
    def of(cls, data: Dataset, *, pixels: bool = True) -> Field | None:
        """Measured from a data set; None if its samples are not single-channel images.

        Args:
            data: the images.
            pixels: whether uint8 values are divided by 255, as in the network.
        """
        shape = image_size(data.feature_shape)
        if shape is None:
            return None
        images = to_host(data.images[:2000]).reshape(-1, *shape).astype(np.float64)
        if pixels and data.images.dtype == np.uint8:
            images /= 255
        low, high = float(images.min()), float(images.max())
        if low == high:
            return cls.like_mnist(*shape)
        border = np.concatenate([images[:, [0, -1], :].ravel(), images[:, :, [0, -1]].ravel()])
        background = low if np.median(border) <= (low + high) / 2 else high
        ink = high if background == low else low
        strength = np.asarray(np.abs(images - background))
        inked: HostArray = np.asarray(strength > _INK * (high - low))
        extents, centres = [], []
        for axis in (2, 1):
            used: HostArray = np.any(inked, axis=axis)
            used = used[used.any(axis=1)]
            size = used.shape[1]
            extents.append(size - used.argmax(axis=1) - used[:, ::-1].argmax(axis=1))
            profile = strength.sum(axis=axis)
            profile = profile[profile.any(axis=1)]
            centres.append(float(np.median(profile @ (np.arange(size) + 0.5) / profile.sum(axis=1))))
        height, width = (max(1, int(np.quantile(extent, _EXTENT))) for extent in extents)
        # Rounded to a tenth: MNIST's measured 14.49 stands for 14.5.
        return cls(*shape, background, ink, height, width, round(centres[0], 1), round(centres[1], 1))


def image_size(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of samples of a shape; None unless they are single-channel images of at least 4 x 4."""
    if len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    return (shape[0], shape[1]) if len(shape) == 2 and min(shape) >= 4 else None


def embed(model: MLP | Committee, field: Field, name: str) -> dict[str, Any]:
    """A network for ``network.js``: weights as integers of 3 bytes, times a scale for each unit.

    With 3 bytes, probabilities on MNIST differ from the network's by up to 2e-6; with 2 bytes, by up to 2e-4.

    Args:
        model: with gpumlp's own activations and layers; or a committee of such networks.
        field: of its images.
        name: shown on the page.

    Raises:
        ValueError: the number of pixels is not that of the network's inputs, its outputs are not classes, the page
            does not support an activation or a layer, or the images are not those that it preprocesses.
    """
    first, *others = members_of(model)
    if field.height * field.width != first.sizes[0]:
        raise ValueError(
            f"{first} expects images of {first.sizes[0]} values, got {field.height} x {field.width} = "
            f"{field.height * field.width}; give the image_shape that it was trained on"
        )
    if output_function(first.loss) != "softmax":
        raise ValueError(
            f"a page shows the probabilities of classes, got a network with the loss {first.loss.name}; "
            "train with softmax_cross_entropy"
        )
    sizes = "-".join(map(str, first.sizes))
    preprocessing: list[dict[str, Any] | None] = []
    members = []
    for member in (first, *others):
        own = _preprocessing(member, field)
        if own not in preprocessing:
            preprocessing.append(own)
        members.append({**_member(member), "preprocessing": preprocessing.index(own)})
    return {
        "name": name,
        "about": f"committee of {1 + len(others)} networks" if others else sizes,
        "classes": [str(name) for name in class_names(first)],
        "height": field.height,
        "width": field.width,
        "background": field.background,
        "ink": field.ink,
        "box": [field.box_height, field.box_width],
        "centre": [field.centre_y, field.centre_x],
        "preprocessing": preprocessing,
        "members": members,
    }


def _preprocessing(model: MLP, field: Field) -> dict[str, Any] | None:
    """What ``network.js`` does with an image before the network sees it."""
    if model.inputs is None or model.inputs.preprocessing is None:
        return None
    found, shape = model.inputs.preprocessing, (field.height, field.width)
    if shape != model.inputs.shape:
        raise ValueError(
            f"{model} preprocesses images of {as_product(model.inputs.shape)}, got {as_product(shape)}; give the "
            "image_shape that it was trained on"
        )
    if min(field.background, field.ink) < 0:
        raise ValueError(
            f"{found} is expected with images on a background of 0, got data with values from "
            f"{min(field.background, field.ink):g}; give data as it was trained on"
        )
    return {
        "deskew": found.deskew,
        "width": found.width,
        "centre": 0.0 if found.width is None else middle_of(found.width, field.width),
        "white": 255 if model.inputs.pixels else None,
        "ink": INK,
        "steepest": STEEPEST,
        "half": HALF,
    }


def _member(model: MLP) -> dict[str, Any]:
    """What a page computes of a network."""
    hidden = [layer.activation for layer in dense_layers(model)[:-1]]
    for h in hidden:
        if type(h) not in ACTIVATIONS.built_in:
            names = ", ".join(name for name, kind in ACTIVATIONS.items() if kind in ACTIVATIONS.built_in)
            raise ValueError(f"a page supports the activations {names}, got {h!r}; train with one of them")
    tensors = model.state_dict()
    return {
        "sizes": model.sizes,
        "activations": [{"name": h.name, "factor": _factor(h)} for h in hidden],
        "layers": [
            _packed(tensors[f"layers.{index}.weight"], tensors[f"layers.{index}.bias"])
            for index in range(len(model.dense_layers))
        ],
    }


def _factor(h: Activation) -> float:
    """The parameter of a leaky ReLU or an ELU; 0 for others."""
    return h.negative_slope if isinstance(h, LeakyReLU) else h.alpha if isinstance(h, ELU) else 0


def embedded_size(model: MLP | Committee) -> int:
    """The size in bytes of what `embed` returns on a page, within a few hundred."""
    return sum(member.parameters.count for member in members_of(model)) * 4  # 3 bytes in base64


def _packed(weight: HostArray, bias: HostArray) -> dict[str, str]:
    """A layer with ``weight = scales * whole`` up to rounding, and one scale per unit."""
    limit = 2**23 - 1
    scales = (np.abs(weight).max(axis=0) / limit).astype(np.float32).astype(np.float64)
    scales = np.maximum(scales, np.finfo(np.float32).tiny)  # all weights of a unit may be 0
    whole = np.clip(np.rint(weight / scales), -limit, limit).astype("<i4")
    return {
        "weights": _text(whole.reshape(-1, 1).view(np.uint8)[:, :3]),
        "scales": _text(scales.astype("<f4")),
        "biases": _text(bias.astype("<f4")),
    }


def _text(array: HostArray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


# -- Images ----------------------------------------------------------------------------------------------------


def grey(image: HostArray, background: float, ink: float) -> str:
    """An image ``(height, width)`` as a data URI: white ink on black."""
    span = ink - background or 1.0
    fractions = np.clip((image.astype(np.float64) - background) / span, 0, 1)
    levels = np.rint(fractions * (_LEVELS - 1)) * (255 / (_LEVELS - 1))
    return _png(levels.astype(np.uint8), None)


def mosaic(weight: HostArray, shape: tuple[int, int], units: int) -> tuple[str, list[int], float]:
    """The weights of the units with the largest weights, as images side by side.

    Args:
        weight: ``(inputs, units)``.
        shape: height and width of an image.
        units: maximum number of units.

    Returns:
        A data URI, the units in their order, and the weight that has full colour.
    """
    from matplotlib import colormaps

    weight = weight.astype(np.float64)
    chosen = np.argsort(-np.linalg.norm(weight, axis=0), kind="stable")[:units]
    images = weight[:, chosen].T.reshape(-1, *shape)
    limit = float(np.quantile(np.abs(images), 0.998)) or 1.0
    columns = min(len(images), 8)
    rows = -(-len(images) // columns)
    height, width = shape
    middle = _LEVELS // 2
    levels = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), _LEVELS, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        steps = np.rint(np.clip(image / limit, -1, 1) * (middle - 1)) + middle
        levels[top : top + height, left : left + width] = steps
    fractions = (np.arange(_LEVELS) - middle) / (middle - 1)  # of the limit; the first is not used
    palette = colormaps[_WEIGHTS]((fractions + 1) / 2, bytes=True)[:, :3]
    colours = [*palette.ravel().tolist(), *_BETWEEN]  # the last one: lines between the units
    return _png(levels, colours), [int(unit) for unit in chosen], limit


def _png(levels: HostArray, palette: list[int] | None) -> str:
    from PIL import Image

    picture: Any = Image.fromarray(levels)
    if palette is not None:
        picture.putpalette(palette)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
