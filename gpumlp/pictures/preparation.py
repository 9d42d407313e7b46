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

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data import DataError
from ..extras import require
from ..nn import Inputs
from .ink import Grey, find_ink

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 640  # pixels on the longer side: enough for a digit, and fast
_SIXTEEN_BITS = 65535.0
_FIELD, _BOX, _MIDDLE = 28, 20, 14
_DOTS, _BLOCK = 32, 4
_IMAGE_SHAPES = {"mnist": (28, 28), "digits": (8, 8)}
_TRAINED_ON = {"mnist": "mnist", "mnist-like": "mnist", "digits": "digits"}  # data sets with a preparation


def read_sample(
    path: Path, inputs: Inputs, preparation: str = "auto", name: str | None = None
) -> npt.NDArray[Any]:
    """Read a picture file as one sample of a network.

    Args:
        path: of the file.
        inputs: what the network was trained on.
        preparation: one of `CHOICES`, see `choose_preparation`.
        name: used for the file in messages; the path by default.

    Returns:
        An array of the shape of the network's samples, uint8 or float32.

    Raises:
        DataError: the file is not a readable picture, there is no digit in it, or the network does not take
            pictures.
        MissingExtraError: Pillow is not installed.
    """
    name = str(path) if name is None else name
    chosen = choose_preparation(inputs, preparation, name)
    picture = read_picture(path, name, colour=chosen == "resize" and inputs.shape[2:] == (3,))
    if chosen == "resize":
        return as_resized(picture, inputs.shape)
    try:
        return _PREPARATIONS[chosen](picture)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def choose_preparation(inputs: Inputs, preparation: str = "auto", name: str = "pictures") -> str:
    """The preparation that turns pictures into samples of a network.

    Args:
        inputs: what the network was trained on.
        preparation: ``"mnist"``, ``"digits"``, ``"resize"`` (to the network's size, without cropping or
            inverting), or ``"auto"``: the one that matches the training data.
        name: begins the message of an error.

    Returns:
        ``"mnist"``, ``"digits"`` or ``"resize"``.

    Raises:
        DataError: the network's samples are not images, are of another size, or have an unknown scale.
    """
    shape = " x ".join(map(str, inputs.shape))
    if preparation == "auto":
        preparation = _TRAINED_ON.get(inputs.data, "resize")
    if preparation == "resize":
        if len(inputs.shape) not in (2, 3) or inputs.shape[2:] not in ((), (1,), (3,)):
            raise DataError(
                f"{name}: expected samples of {shape} values in a .npy or .npz file, as the network was trained "
                "on; it does not take pictures"
            )
        if not inputs.pixels:
            raise DataError(
                f"{name}: the network was trained on images of {inputs.dtype} with a scale of their own; prepare "
                "pictures in the same way and give them as a .npy file"
            )
    elif inputs.shape not in (_IMAGE_SHAPES[preparation], (int(np.prod(_IMAGE_SHAPES[preparation])),)):
        raise DataError(f"{name}: the preparation {preparation} does not suit a network for samples of {shape}")
    return preparation


# -- From a file to grey levels ------------------------------------------------------------------------------


def read_picture(path: Path, name: str | None = None, *, colour: bool = False) -> npt.NDArray[np.float32]:
    """Read a picture in any format of Pillow's: grey or colour, palette, transparency, 16 bits, EXIF rotation.

    Transparent parts become white paper, or black if what is drawn on them is light.

    Args:
        path: of the file; its content determines the format, not its name.
        name: used for the file in messages; the path by default.
        colour: return red, green and blue in place of grey.

    Returns:
        ``(height, width)`` float32, or ``(height, width, 3)`` in colour: 0 is black, 1 is white; at most 640
        pixels on the longer side, larger pictures are averaged down.

    Raises:
        DataError: the file is missing, damaged, too large, or not a picture.
        MissingExtraError: Pillow is not installed.
    """
    require("pictures", "PIL", "images")
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = str(path) if name is None else name
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{name}: expected a picture, found {found}; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is not used ...
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # ... but not about size
            with Image.open(path) as picture:
                picture.draft(
                    None, (2 * LONGEST, 2 * LONGEST)
                )  # a large JPEG is decoded at a fraction of its size
                return _values(_shrunk(ImageOps.exif_transpose(picture)), colour)
    except UnidentifiedImageError:
        raise DataError(
            f"{name}: expected a PNG or JPEG picture, found a file that is not a picture; convert it"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: the picture is too large ({error}); make it smaller") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # Pillow's, for damaged files
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{name}: expected a readable picture, found a damaged one ({reason}); get it again"
        ) from error


def _shrunk(picture: Image.Image) -> Image.Image:
    """With one number or colour per pixel, and at most `LONGEST` pixels on the longer side."""
    from PIL import Image

    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = Image.fromarray(np.asarray(picture).astype(np.float32) / np.float32(_SIXTEEN_BITS))
    elif picture.mode != "F":
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    factor = LONGEST / max(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _values(picture: Image.Image, colour: bool) -> npt.NDArray[np.float32]:
    values: npt.NDArray[Any] = np.asarray(picture, dtype=np.float32)
    if values.ndim == 2:  # more than 8 bits
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        if values.max() > 1 or values.min() < 0:  # a file of floats with a scale of its own
            values = (values - values.min()) / (values.max() - values.min())
        return np.repeat(values[:, :, None], 3, axis=2) if colour else values
    values = values / np.float32(255)
    if values.shape[2] == 4:
        values = _on_paper(values[:, :, :3], values[:, :, 3:])
    return values if colour else _grey(values)


def _on_paper(colours: npt.NDArray[Any], opacity: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A partly transparent picture on white, or on black if the picture itself is light."""
    visible = float(opacity.sum())
    light = visible > 0 and float((_grey(colours) * opacity[:, :, 0]).sum()) / visible > 0.5
    paper = np.float32(0 if light and float(opacity.min()) < 0.5 else 1)
    on_paper: npt.NDArray[Any] = colours * opacity + paper * (1 - opacity)
    return on_paper


def _grey(colours: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Luma, ITU-R BT.601."""
    return colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


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
