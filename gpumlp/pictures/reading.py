"""Picture files as arrays: the formats that are read, bounds on time and memory, colours and grey levels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data import DataError
from ..data.reading import require_file
from ..extras import require

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 640  # pixels on the longer side: enough for a digit, and fast

# The raster formats that Pillow decodes itself. Others would start a program, as PostScript starts Ghostscript.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "DIB", "JPEG2000", "PPM", "TGA", "PCX", "ICO"),
)
SUFFIXES = (  # of the files in a folder that are pictures
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".tif", ".tiff", ".gif", ".bmp", ".dib"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".ico", ".heic", ".heif"),
)
_NAMES = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP, JPEG 2000, PPM, TGA, PCX, ICO"
TAKEN = f"a picture ({_NAMES}) or a file of arrays (.npy, .npz, IDX)"

_MOST_PIXELS = 500_000_000  # of a JPEG, which is decoded at an eighth of its size; Pillow bounds the others
_MOST_BYTES = 512 << 20  # of a decoded picture
_MOST_SCANNED = 4_000_000_000  # pixels, all scans of a JPEG together: some seconds
_ROW = 16  # bytes in memory for each row, however short
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # a pixel in memory; 4 in other modes
_DIRECT = ("PNG", "JPEG", "BMP", "DIB", "PPM", "TGA", "GIF")  # decoded line by line, without a copy of the whole
_STRIP = 1 << 20  # pixels that are converted at once
_DEPTHS = (8, 10, 12, 14, 16)  # bits of a value of whole numbers that are stored in more than 8
_UPRIGHT: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {  # by the orientation in EXIF data
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.rot90(values, 2).swapaxes(0, 1),
    8: np.rot90,
}
_BEGINNINGS = (
    (b"%!PS", "PostScript, a program that draws; save it as PNG"),
    (b"\xc5\xd0\xd3\xc6", "PostScript, a program that draws; save it as PNG"),
    (b"%PDF", "a PDF document; save the page as PNG"),
    (b"<svg", "an SVG drawing; save it as PNG"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
)


def read_picture(path: Path, name: str | None = None) -> npt.NDArray[np.float32]:
    """Read a picture in one of `FORMATS`: grey or colour, palette, transparency, up to 32 bits, EXIF rotation.

    Transparent parts become white paper, or black if what is drawn on them is light. Values of more than 8 bits
    are scaled by the smallest depth (8, 10, 12, 14, 16 bits) that holds them all, others by their range.

    Args:
        path: of the file; its content determines the format, not its name.
        name: used for the file in messages; the path by default.

    Returns:
        ``(height, width, 3)`` float32: red, green and blue, from 0 to 1; at most 640 pixels on the longer side,
        larger pictures are averaged down.

    Raises:
        DataError: the file is missing, damaged, too large (some 500 megapixels of a JPEG, otherwise 179 megapixels
            or half a gigabyte in memory), a file of several pages or frames, or not a picture.
        MissingExtraError: Pillow is not installed.
    """
    require("pictures", "PIL", "images")
    from PIL import Image, UnidentifiedImageError

    name = str(path) if name is None else name
    require_file(path, name, "a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is not used, and sizes that are checked here
            with path.open("rb") as file, _open(file) as picture:
                if _is_one_of_several(picture):
                    raise DataError(
                        f"{name}: expected one picture, found several in a {picture.format} file; save each as one"
                    )
                size = picture.size
                picture.draft(None, (2 * LONGEST, 2 * LONGEST))  # a JPEG is decoded at a fraction of its size
                _check_size(picture, size, name)
                orientation = picture.getexif().get(0x0112)
                values = _values(_reduced(picture))
    except UnidentifiedImageError:
        raise DataError(f"{name}: expected {TAKEN}, found {_found(path)}") from None
    except (DataError, KeyboardInterrupt):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: the picture is too large ({error}); make it smaller") from None
    except MemoryError:
        raise DataError(f"{name}: the picture is too large for this machine's memory; make it smaller") from None
    except Exception as error:  # of a dozen types, struct.error and IndexError among them, for damaged files
        reason = str(getattr(error, "strerror", None) or error).partition("\n")[0][:200]
        raise DataError(
            f"{name}: expected a readable picture, found a damaged one ({reason}); get it again"
        ) from error
    return np.ascontiguousarray(_UPRIGHT.get(orientation or 1, np.asarray)(values))


def _open(file: Any) -> Image.Image:
    from PIL import Image, JpegImagePlugin

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors are printed, beside ours
    if file.read(3) == b"\xff\xd8\xff":
        file.seek(0)
        return JpegImagePlugin.JpegImageFile(file)  # not `Image.open`, which bounds the size before the reduction
    file.seek(0)
    Image.init()
    return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _is_one_of_several(picture: Image.Image) -> bool:
    """Whether a file has a second page or frame; a preview in a TIFF or in a phone's JPEG is none."""
    if picture.format != "TIFF":
        return picture.format != "MPO" and getattr(picture, "is_animated", False)
    try:
        picture.seek(1)
    except Exception:  # there is none, or it is damaged
        return False
    preview = bool(picture.getexif().get(0x00FE, 0) & 1)
    picture.seek(0)
    return not preview


def _check_size(picture: Image.Image, size: tuple[int, int], name: str) -> None:
    """Refuse a picture that takes too long or too much memory; `size` is that before a reduced decoding."""
    memory = picture.height * (picture.width * _BYTES.get(picture.mode, 4) + _ROW)
    memory *= 1 if picture.format in _DIRECT else 3
    width, height = size
    layers = getattr(picture, "layer", ())  # of a JPEG: a number and the sampling, horizontal and vertical
    if layers and _has_scans(picture):  # all coefficients are held in memory, two bytes each
        finest = max(layer[1] for layer in layers) * max(layer[2] for layer in layers)
        memory += 2 * width * height * sum(layer[1] * layer[2] for layer in layers) // finest
        if width * height * (scans := _scans(picture)) > _MOST_SCANNED:
            raise DataError(
                f"{name}: expected at most {_MOST_SCANNED:,} pixels in all scans of a JPEG, found {scans:,} scans "
                f"of {width:,} x {height:,} pixels; save it again, or as PNG"
            )
    if memory > _MOST_BYTES or width * height > _MOST_PIXELS:
        raise DataError(
            f"{name}: expected a picture of at most {_MOST_PIXELS:,} pixels and {_MOST_BYTES >> 20} MB in memory, "
            f"found one of {width:,} x {height:,} pixels and {memory >> 20:,} MB; make it smaller"
        )


def _has_scans(picture: Any) -> bool:
    """Whether a JPEG, of which the beginning is read, comes in several scans of the whole picture."""
    start = picture.fp.read(3)  # of the first scan: two bytes for a length, one for the number of its layers
    return "progressive" in picture.info or start[2:] != bytes([len(picture.layer)])


def _scans(picture: Any) -> int:
    """Number of scans in a JPEG file, with those of small pictures that are embedded."""
    picture.fp.seek(0)
    return sum(part.count(b"\xff\xda") for part in iter(lambda: picture.fp.read(_STRIP), b""))


def _reduced(picture: Image.Image) -> Image.Image:
    """With one number or colour per pixel, and at most `LONGEST` pixels on the longer side."""
    from PIL import Image

    width, height = picture.size
    factor = max(1, max(width, height) // LONGEST)
    if factor > 1:  # strip by strip, so that no second copy of the whole is made
        rows = factor * max(1, _STRIP // (width * factor))
        strips = [
            np.asarray(_plain(picture.crop((0, top, width, min(height, top + rows)))).reduce(factor))
            for top in range(0, height, rows)
        ]
        picture = Image.fromarray(np.concatenate(strips))
    else:
        picture = _plain(picture)
    scale = LONGEST / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _plain(picture: Image.Image) -> Image.Image:
    """In colour, with opacity if some of it is transparent; grey levels of more than 8 bits as floats."""
    from PIL import Image

    if picture.mode.startswith("I"):
        return Image.fromarray(np.asarray(picture).astype(np.float32))
    if picture.mode == "F":
        return picture
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _values(picture: Image.Image) -> npt.NDArray[np.float32]:
    values: npt.NDArray[Any] = np.asarray(picture, dtype=np.float32)
    if values.ndim == 2:  # more than 8 bits
        return np.repeat(_scaled(values)[:, :, None], 3, axis=2)
    values = values / np.float32(255)
    if values.shape[2] == 4:
        values = _on_paper(values[:, :, :3], values[:, :, 3:])
    return values


def _scaled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values of more than 8 bits as shares of their range."""
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    least, most = float(values.min()), float(values.max())
    if least >= 0 and most <= 1:
        return values
    if least >= 0 and most < 2 ** _DEPTHS[-1]:
        least, most = 0, next(2**depth - 1 for depth in _DEPTHS if most < 2**depth)
    scaled: npt.NDArray[Any] = (values - np.float32(least)) / np.float32(max(most - least, 1e-30))
    return scaled


def _on_paper(colours: npt.NDArray[Any], opacity: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A partly transparent picture on white, or on black if the picture itself is light."""
    visible = float(opacity.sum())
    light = visible > 0 and float((grey_levels(colours) * opacity[:, :, 0]).sum()) / visible > 0.5
    paper = np.float32(0 if light and float(opacity.min()) < 0.5 else 1)
    on_paper: npt.NDArray[Any] = colours * opacity + paper * (1 - opacity)
    return on_paper


def grey_levels(colours: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Luma, ITU-R BT.601."""
    return colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def contrasting_grey(colours: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Grey levels in which ink differs from the paper, even if only its colour does.

    Where the brightness shows less than a third of the difference between the colours, the difference itself is
    returned, along the direction in which it is largest.

    Args:
        colours: ``(height, width, 3)``, 0 to 1.

    >>> picture = np.full((20, 20, 3), [0.16, 0.59, 0.16], np.float32)
    >>> picture[5:15, 8:12] = [1, 0.24, 0.16]
    >>> [round(float(np.ptp(grey)), 1) for grey in (grey_levels(picture), contrasting_grey(picture))]
    [0.0, 0.9]
    """
    grey = grey_levels(colours)
    away = colours - np.median(colours, axis=(0, 1))
    largest = np.abs(away).max(axis=2)
    most = float(np.percentile(largest, 99.5))
    if most < 0.1 or float(np.percentile(np.abs(grey - np.median(grey)), 99.5)) > most / 3:
        return grey
    ink = away[largest > most / 2]
    direction = np.linalg.eigh(ink.T @ ink)[1][:, -1]
    difference = away @ (direction * np.sign((ink @ direction).sum()))
    return np.asarray(np.clip(1 - difference, 0, 1), dtype=np.float32)


def _found(path: Path) -> str:
    """What a file is that is no picture."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file; get it again"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return "a HEIC picture, which Pillow does not read; save it as JPEG"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"):
        return (
            "an AVIF picture, which this version of Pillow does not read; pip install -U pillow, or save it as PNG"
        )
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return what
    if all(byte in b"\t\n\r" or byte >= 32 for byte in start):
        return f"a file that is not a picture, with text that begins with {start[:24].decode(errors='replace')!r}"
    return "a file that is not a picture, or damaged"
