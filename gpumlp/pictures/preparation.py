"""Picture files as samples of a network: read as grey levels, and prepared as the training images were.

**MNIST** (`as_mnist`), after Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to
document recognition", Proceedings of the IEEE 86(11), 1998, and http://yann.lecun.com/exdb/mnist/: a black and
white digit is scaled to fit a box of 20 x 20 pixels with its aspect ratio kept, where antialiasing gives grey
levels; then the box is placed in a field of 28 x 28 so that the centre of mass of its pixels is in the middle. In
MNIST's own images that middle is the pixel (14, 14), counted from 0, to within half a pixel, so here, too, the box
moves by whole pixels.

**The built-in digits** (`as_digits`), after E. Alpaydin and C. Kaynak, "Cascading classifiers", Kybernetika 34
(1998): the digit is scaled to fill 32 x 32 dots, black or white, and a value is the share of inked dots in a block
of 4 x 4.

Both begin with `find_ink`, which finds the digit and removes paper and light.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data import DataError
from ..extras import require
from ..nn import Inputs
from ..words import as_product
from .ink import Grey, find_ink
from .reading import contrasting_grey, grey_levels, read_picture

if TYPE_CHECKING:
    from PIL import Image

_FIELD, _BOX, _MIDDLE = 28, 20, 14
_DOTS, _BLOCK = 32, 4
_IMAGE_SHAPES = {"mnist": (28, 28), "digits": (8, 8)}
_DIGITS = {  # data sets of digits, and the preparation of their images
    **dict.fromkeys(("mnist", "qmnist", "emnist-digits", "emnist-mnist"), "mnist"),
    "digits": "digits",
}
DONE = {  # what a preparation does, for the output
    "mnist": "the digit is cropped, scaled and centred as in MNIST",
    "digits": "the digit is cropped and scaled as in the built-in digits",
    "resize": "resized to the network's size, neither cropped nor inverted",
    "none": "used as is",
}


def read_sample(
    path: Path, inputs: Inputs, preparation: str = "auto", name: str | None = None, pixels: bool | None = None
) -> tuple[npt.NDArray[Any], str]:
    """Read a picture file as one sample of a network.

    Args:
        path: of the file.
        inputs: what the network was trained on.
        preparation: one of `CHOICES`, see `choose_preparation`.
        name: used for the file in messages; the path by default.
        pixels: see `choose_preparation`.

    Returns:
        An array of the shape of the network's samples, uint8 or float32, and the preparation: ``"mnist"``,
        ``"digits"``, ``"resize"``, or ``"none"`` for a picture that is used as it is.

    Raises:
        DataError: the file is not a readable picture, there is no digit in it, it is of another size than the grey
            images of a network that is not for digits, or the network does not take pictures.
        MissingExtraError: Pillow is not installed.
    """
    name = str(path) if name is None else name
    chosen = choose_preparation(inputs, preparation, name, pixels)
    colours = read_picture(path, name)
    if chosen in _PREPARATIONS:
        try:
            return _PREPARATIONS[chosen](contrasting_grey(colours)), chosen
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    is_grey = not np.ptp(colours, axis=2).any()
    in_colour = inputs.shape[2:] == (3,)
    sample = as_resized(colours if in_colour else grey_levels(colours), inputs.shape)
    if colours.shape[:2] == inputs.shape[:2] and (is_grey or in_colour):
        return sample, "none"
    if preparation == "auto" and not in_colour:
        size = f"{inputs.shape[0]} x {inputs.shape[1]}"
        digit = " or mnist (a digit, cropped)" if inputs.shape[:2] == _IMAGE_SHAPES["mnist"] else ""
        raise DataError(
            f"{name}: expected a grey picture of {size} pixels, as the network was trained on, found one of "
            f"another size or in colour; choose --preparation resize (neither cropped nor inverted){digit}"
        )
    return sample, "resize"


def choose_preparation(
    inputs: Inputs, preparation: str = "auto", name: str = "pictures", pixels: bool | None = None
) -> str:
    """The preparation that turns pictures into samples of a network.

    Digits are cropped and centred only if the network was trained on data that are known to be digits. A picture
    for another network is used as it is if it has the size of the training images. Otherwise it is resized for a
    network of colour images; for grey images the preparation must be named, since those of most data sets are
    cropped and light on dark, and a picture that is only resized would be misread in silence.

    Args:
        inputs: what the network was trained on.
        preparation: ``"mnist"``, ``"digits"``, ``"resize"`` (to the network's size, without cropping or
            inverting), or ``"auto"``: the one that matches the training data.
        name: begins the message of an error.
        pixels: see ``MLP.logits``; needed for pictures if the network was not trained on uint8 pixels.

    Returns:
        ``"mnist"``, ``"digits"`` or ``"resize"``.

    Raises:
        DataError: the network's samples are not images, are of another size, or have an unknown scale.
    """
    shape = as_product(inputs.shape)
    if preparation == "auto":
        preparation = _DIGITS.get(inputs.data, "resize")
    if preparation != "resize":
        if inputs.shape not in (_IMAGE_SHAPES[preparation], (int(np.prod(_IMAGE_SHAPES[preparation])),)):
            raise DataError(
                f"{name}: the preparation {preparation} does not suit a network for samples of {shape}"
            )
    elif len(inputs.shape) not in (2, 3) or inputs.shape[2:] not in ((), (1,), (3,)):
        raise DataError(
            f"{name}: expected samples of {shape} values in a .npy or .npz file, as the network was trained "
            "on; it does not take pictures"
        )
    if preparation != "digits" and not inputs.pixels and pixels is None:
        trained = "numbers" if inputs.dtype == "any" else f"images of {inputs.dtype} with a scale of their own"
        raise DataError(
            f"{name}: the network was trained on {trained}; prepare pictures in the same way and give them as a "
            ".npy file, or say with --pixels true or false whether their values, 0 to 255, are divided by 255"
        )
    return preparation


# -- From grey levels to a sample ----------------------------------------------------------------------------


def as_mnist(grey: Grey) -> npt.NDArray[np.uint8]:
    """Convert a picture of a digit to an image like those of MNIST; one that is like them already stays as it is.

    Args:
        grey: ``(height, width)``, 0 black, 1 white, of any size, dark on light or light on dark.

    Returns:
        ``(28, 28)`` uint8, 0 paper, 255 ink.

    Raises:
        NoDigitError: there is no digit in it.
    """
    if _is_mnist(grey):
        return np.asarray(np.rint(255 * grey), dtype=np.uint8)
    box = _fitted(find_ink(grey), _BOX)
    strongest = np.percentile(box[box > 0.2 * box.max()], 90)
    box = np.clip(box / strongest, 0, 1)  # a line thinner than a pixel is full ink, too
    return centred(np.rint(255 * box).astype(np.uint8))


def _is_mnist(grey: Grey) -> bool:
    """Whether a picture is light on black, of MNIST's size, and has its centre of mass in the middle."""
    if grey.shape != (_FIELD, _FIELD) or (grey == 0).mean() < 0.5 or grey.max() < 0.5:
        return False
    middle = (float(grey.sum(axis=1 - axis) @ np.arange(_FIELD) / grey.sum()) for axis in (0, 1))
    return all(abs(place - _MIDDLE) < 1 for place in middle)


def centred(box: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A digit of at most 28 x 28 pixels in a field of 28 x 28, its centre of mass in the pixel (14, 14).

    >>> int(centred(np.full((20, 4), 255, np.uint8))[5:25, 13:17].min())
    255
    """
    place = []
    for axis, size in enumerate(box.shape):
        mass = box.sum(axis=1 - axis, dtype=np.float64)
        corner = int(np.floor(_MIDDLE - mass @ np.arange(size) / mass.sum() + 0.5))
        place.append(min(max(corner, 0), _FIELD - size))
    field = np.zeros((_FIELD, _FIELD), dtype=np.uint8)
    field[place[0] : place[0] + box.shape[0], place[1] : place[1] + box.shape[1]] = box
    return field


def as_digits(grey: Grey) -> npt.NDArray[np.float32]:
    """Convert a picture of a digit to an image like the built-in digits.

    Args:
        grey: ``(height, width)``, 0 black, 1 white, of any size, dark on light or light on dark.

    Returns:
        ``(8, 8)`` float32, 0 paper, 1 ink.

    Raises:
        NoDigitError: there is no digit in it.
    """
    box = _fitted(find_ink(grey), _DOTS)
    field = np.zeros((_DOTS, _DOTS), dtype=np.float32)
    top, left = (_DOTS - box.shape[0]) // 2, (_DOTS - box.shape[1]) // 2
    field[top : top + box.shape[0], left : left + box.shape[1]] = box
    side = _DOTS // _BLOCK
    blocks: npt.NDArray[np.float32] = field.reshape(side, _BLOCK, side, _BLOCK).mean(axis=(1, 3))
    return blocks


def as_resized(picture: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Resize a picture, without cropping or inverting; the aspect ratio is not kept.

    Args:
        picture: ``(height, width)`` or ``(height, width, 3)``, 0 to 1.
        shape: the result's: ``(height, width)``, ``(height, width, 1)`` or ``(height, width, 3)``.

    Returns:
        uint8 of that shape, 0 black, 255 white.
    """
    channels = [picture] if picture.ndim == 2 else [picture[:, :, index] for index in range(picture.shape[2])]
    resized = np.stack([_resized(channel, (shape[0], shape[1])) for channel in channels], axis=2)
    return np.rint(255 * np.clip(resized, 0, 1)).astype(np.uint8).reshape(shape)


_PREPARATIONS: dict[str, Callable[[Grey], npt.NDArray[Any]]] = {"mnist": as_mnist, "digits": as_digits}
CHOICES = ("auto", *_PREPARATIONS, "resize")


def _fitted(ink: Grey, box: int) -> Grey:
    """The ink scaled so that its longer side is `box`, antialiased."""
    scale = box / max(ink.shape)
    return _resized(ink, (max(1, round(ink.shape[0] * scale)), max(1, round(ink.shape[1] * scale))))


def _resized(values: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """At another size, antialiased: where there are fewer pixels, the filter is as wide as the new ones."""
    require("pictures", "PIL", "images")
    from PIL import Image

    picture: Image.Image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float32)
