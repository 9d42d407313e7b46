"""Pictures of digits as files: PNG, JPEG and whatever else Pillow reads, as one array of grey levels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..extras import require
from .errors import DataError

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 640  # pixels on the longer side: plenty for a digit, and quick
_SIXTEEN_BITS = 65535.0


def read_photograph(path: Path, name: str | None = None, *, colour: bool = False) -> npt.NDArray[np.float32]:
    """Read a picture of any size, grey or in colour, with a palette, transparency, 16 bits or a rotation in its
    EXIF.

    Where it is transparent, there is white paper, or black if what is drawn on it is light.

    Args:
        path: of the file; what is in it tells the format, not its name.
        name: what messages call it.
        colour: give red, green and blue in place of their grey.

    Returns:
        ``(height, width)`` float32, or ``(height, width, 3)`` in colour: 0 is black, 1 is white; at most 640
        pixels on the longer side, averaged where there were more.

    Raises:
        DataError: the file is missing, damaged, too large, or no picture.
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
            warnings.simplefilter("ignore")  # about metadata that nobody needs ...
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # ... but not about size
            with Image.open(path) as picture:
                picture.draft(None, (2 * LONGEST, 2 * LONGEST))  # a JPEG can be read at half size at once
                return _values(_shrunk(ImageOps.exif_transpose(picture)), colour)
    except UnidentifiedImageError:
        raise DataError(f"{name}: expected a PNG or JPEG picture, found a file that is none; convert it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: the picture is too large ({error}); make it smaller") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        MemoryError,
    ) as error:  # what Pillow raises for damaged files
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{name}: expected a readable picture, found a damaged one ({reason}); get it again"
        ) from error


def _shrunk(picture: Image.Image) -> Image.Image:
    """With one number or colour a pixel, and at most `LONGEST` pixels on the longer side."""
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
            raise ValueError("it holds values that are no numbers")
        if values.max() > 1 or values.min() < 0:  # a file of floats in a scale of its own
            values = (values - values.min()) / (values.max() - values.min())
        return np.repeat(values[:, :, None], 3, axis=2) if colour else values
    values = values / np.float32(255)
    if values.shape[2] == 4:
        values = _on_paper(values[:, :, :3], values[:, :, 3:])
    return values if colour else _grey(values)


def _on_paper(colours: npt.NDArray[Any], opacity: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A partly transparent picture on white, or on black if it is light itself."""
    visible = float(opacity.sum())
    light = visible > 0 and float((_grey(colours) * opacity[:, :, 0]).sum()) / visible > 0.5
    paper = np.float32(0 if light and float(opacity.min()) < 0.5 else 1)
    on_paper: npt.NDArray[Any] = colours * opacity + paper * (1 - opacity)
    return on_paper


def _grey(colours: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Luma, ITU-R BT.601."""
    return colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
