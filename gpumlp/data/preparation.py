"""Pictures of digits made into what a network was trained on.

**As MNIST was** (`as_mnist`), after Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning
applied to document recognition", Proceedings of the IEEE 86(11), 1998, and http://yann.lecun.com/exdb/mnist/: a
black and white digit is size-normalised to fit a box of 20 x 20 pixels, its aspect ratio kept; grey levels come
from the antialiasing of that; and the image is centred in a field of 28 x 28 by putting the centre of mass of its
pixels in the middle. In MNIST's own images that middle is the pixel (14, 14), counted from 0, to within half a
pixel: so the box moves by whole pixels here too.

**As the built-in digits were** (`as_digits`), after E. Alpaydin and C. Kaynak, "Cascading classifiers",
Kybernetika 34 (1998): the digit is normalised to fill 32 x 32 dots, black or white, and a value is the share of
inked dots in a block of 4 x 4.

Before either, `find_ink` finds the digit and takes paper and light away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..extras import require
from .ink import Grey, find_ink

if TYPE_CHECKING:
    from PIL import Image

_FIELD, _BOX, _MIDDLE = 28, 20, 14
_DOTS, _BLOCK = 32, 4


def as_mnist(grey: Grey) -> npt.NDArray[np.uint8]:
    """A picture of a digit as one of MNIST's images.

    Args:
        grey: ``(height, width)``, 0 black, 1 white, of any size and polarity.

    Returns:
        ``(28, 28)`` uint8, 0 paper, 255 ink.

    Raises:
        NoDigitError: there is no digit in it.
    """
    box = _fitted(find_ink(grey), _BOX)
    strongest = np.percentile(box[box > 0.2 * box.max()], 90)
    box = np.clip(box / strongest, 0, 1)  # a thin pen is ink all the same
    return centred(np.rint(255 * box).astype(np.uint8))


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
    """A picture of a digit as one of the built-in digits.

    Args:
        grey: ``(height, width)``, 0 black, 1 white, of any size and polarity.

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
    """A picture brought to a size, and nothing else: no cropping, no inverting, aspect ratio not kept.

    Args:
        picture: ``(height, width)`` or ``(height, width, 3)``, 0 to 1.
        shape: the result's: ``(height, width)``, ``(height, width, 1)`` or ``(height, width, 3)``.

    Returns:
        uint8 of that shape, 0 black, 255 white.
    """
    channels = [picture] if picture.ndim == 2 else [picture[:, :, index] for index in range(picture.shape[2])]
    resized = np.stack([_resized(channel, (shape[0], shape[1])) for channel in channels], axis=2)
    return np.rint(255 * np.clip(resized, 0, 1)).astype(np.uint8).reshape(shape)


PREPARATIONS: dict[str, Callable[[Grey], npt.NDArray[Any]]] = {"mnist": as_mnist, "digits": as_digits}


def _fitted(ink: Grey, box: int) -> Grey:
    """The ink at a size of which the longer side is `box`, antialiased."""
    scale = box / max(ink.shape)
    return _resized(ink, (max(1, round(ink.shape[0] * scale)), max(1, round(ink.shape[1] * scale))))


def _resized(values: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """At another size, antialiased: a filter as wide as the new pixels where there are fewer of them."""
    require("pictures", "PIL", "images")
    from PIL import Image

    picture: Image.Image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float32)
