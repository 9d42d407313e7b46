"""A network as a page can hold it: few bytes, and yet its answers to 1e-4."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import HostArray, to_host
from ..data import Dataset
from ..nn.activations import ACTIVATIONS, LeakyReLU
from ..nn.model_file import describe
from ..nn.network import MLP

_INK = 0.02  # a pixel that is this much of the way from background to ink is part of the drawing
_FILLED = 0.95  # the quantile of the drawings' extents that is taken for their box


@dataclass(frozen=True)
class Field:
    """How drawings lie in the images that a network knows.

    Attributes:
        height, width: of an image.
        background, ink: the network's inputs for blank paper and for full ink.
        box_height, box_width: what a drawing is scaled to fit into; MNIST's 20 x 20 of 28 x 28.
        centre_y, centre_x: where its centre of mass comes to lie, from the upper left corner; MNIST's digits have
            it inside the pixel below and right of the middle, so on average half a pixel from that.
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
    def of(cls, data: Dataset) -> Field | None:
        """As the images of a data set are, measured; None where the samples are no images of one channel."""
        shape = image_shape(data)
        if shape is None:
            return None
        images = to_host(data.images[:2000]).reshape(-1, *shape).astype(np.float64)
        if data.images.dtype == np.uint8:
            images /= 255
        low, high = float(images.min()), float(images.max())
        if low == high:
            return cls.like_mnist(*shape)
        border = np.concatenate([images[:, [0, -1], :].ravel(), images[:, :, [0, -1]].ravel()])
        background = low if np.median(border) <= (low + high) / 2 else high
        ink = high if background == low else low
        ink_there = np.asarray(np.abs(images - background))
        inked: HostArray = np.asarray(ink_there > _INK * (high - low))
        extents, centres = [], []
        for axis in (2, 1):
            used: HostArray = np.any(inked, axis=axis)
            used = used[used.any(axis=1)]
            size = used.shape[1]
            extents.append(size - used.argmax(axis=1) - used[:, ::-1].argmax(axis=1))
            profile = ink_there.sum(axis=axis)
            profile = profile[profile.any(axis=1)]
            centres.append(float(np.median(profile @ (np.arange(size) + 0.5) / profile.sum(axis=1))))
        height, width = (max(1, int(np.quantile(extent, _FILLED))) for extent in extents)
        # To a tenth, and MNIST's 14.49 is the 14.5 that it stands for.
        return cls(*shape, background, ink, height, width, round(centres[0], 1), round(centres[1], 1))


def image_shape(data: Dataset) -> tuple[int, int] | None:
    """Height and width of the samples, or None where they are no images of one channel, of at least 4 x 4."""
    return plain_shape(data.feature_shape)


def plain_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """`image_shape`, from the shape of a sample."""
    if len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    if len(shape) != 2 or min(shape) < 4:
        return None
    return shape[0], shape[1]


def embed(model: MLP, field: Field, name: str) -> dict[str, Any]:
    """A network for ``network.js``: weights as whole numbers of 3 bytes, times a scale for each unit.

    In 2 bytes, probabilities differ by up to 2e-4 on MNIST; in 3 bytes, by 2e-6.

    Args:
        model: with one of gpumlp's own activations.
        field: how its images look.
        name: shown on the page.

    Raises:
        ValueError: the images have not as many values as the network has inputs, its outputs are no classes, or
            its activation is one that the page does not know.
    """
    if field.height * field.width != model.sizes[0]:
        raise ValueError(
            f"{model} expects images of {model.sizes[0]} values, got {field.height} x {field.width} = "
            f"{field.height * field.width}; give the image_shape that it was trained on"
        )
    if model.loss.output != "softmax":
        raise ValueError(
            f"a page draws the probabilities of classes, got a network with the loss {model.loss.name}; "
            "train with softmax_cross_entropy"
        )
    activation = model.activation
    if type(activation) is not ACTIVATIONS.get(activation.name):
        raise ValueError(
            f"a page knows the activations {', '.join(ACTIVATIONS)}, got {activation!r}; train with one of them"
        )
    tensors = model.state_dict()
    return {
        "name": name,
        "sizes": model.sizes,
        "classes": [str(name) for name in describe(model)["class_names"] or range(model.sizes[-1])],
        "activation": activation.name,
        "slope": activation.negative_slope if isinstance(activation, LeakyReLU) else 0,
        "height": field.height,
        "width": field.width,
        "background": field.background,
        "ink": field.ink,
        "box": [field.box_height, field.box_width],
        "centre": [field.centre_y, field.centre_x],
        "layers": [
            _packed(tensors[f"layers.{index}.weight"], tensors[f"layers.{index}.bias"])
            for index in range(len(model.layers))
        ],
    }


def embedded_size(model: MLP) -> int:
    """Bytes that `embed` takes on a page, within a few hundred."""
    return model.parameters.count * 4  # 3 bytes in base64


def _packed(weight: HostArray, bias: HostArray) -> dict[str, str]:
    """A layer, with ``weight = scales * whole`` but for rounding; a scale for each unit."""
    limit = 2**23 - 1
    scales = (np.abs(weight).max(axis=0) / limit).astype(np.float32).astype(np.float64)
    scales = np.maximum(scales, np.finfo(np.float32).tiny)  # a unit may have no weight but 0
    whole = np.clip(np.rint(weight / scales), -limit, limit).astype("<i4")
    return {
        "weights": _text(whole.reshape(-1, 1).view(np.uint8)[:, :3]),
        "scales": _text(scales.astype("<f4")),
        "biases": _text(bias.astype("<f4")),
    }


def _text(array: HostArray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
