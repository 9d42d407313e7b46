"""Files of pictures: every kind is read to the same values, and what is no picture is refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed: pip install '.[images]'")

from PIL import Image

from gpumlp import DataError
from gpumlp.data.photographs import LONGEST, read_photograph
from gpumlp.data.preparation import as_mnist
from tests.photographs import as_file, photograph, ring


def pictures() -> dict[str, Callable[[Path], None]]:
    """The same nought, written in as many ways as there are."""
    ink = ring()
    grey = np.rint(255 * (1 - ink)).astype(np.uint8)
    opaque, drawn = np.full(grey.shape, 255, np.uint8), np.rint(255 * ink).astype(np.uint8)
    zero = np.zeros_like(grey)
    turned = Image.fromarray(np.rot90(grey))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    palette = Image.fromarray(grey).convert("P")
    with_hole = Image.fromarray(grey).convert("1").convert("P")
    return {
        "grey.png": lambda path: Image.fromarray(grey).save(path),
        "grey.jpg": lambda path: Image.fromarray(grey).save(path, quality=90),
        "colour.png": lambda path: Image.fromarray(np.stack([grey, grey, opaque], axis=2)).save(path),
        "cmyk.jpg": lambda path: Image.fromarray(grey).convert("CMYK").save(path, quality=95),
        "palette.png": lambda path: palette.save(path),
        "transparent-palette.png": lambda path: with_hole.save(path, transparency=255),
        "bilevel.png": lambda path: Image.fromarray(grey).convert("1").save(path),
        "16-bit.png": lambda path: Image.fromarray(grey.astype(np.uint16) * 257).save(path),
        "float.tiff": lambda path: Image.fromarray(1 - ink).save(path),
        "32-bit.tiff": lambda path: Image.fromarray(grey.astype(np.int32) * 257).save(path),
        "alpha-dark.png": lambda path: Image.fromarray(np.stack([zero, zero, zero, drawn], axis=2)).save(path),
        "alpha-light.png": lambda path: Image.fromarray(np.stack([opaque] * 3 + [drawn], axis=2)).save(path),
        "grey-alpha.png": lambda path: Image.fromarray(np.stack([zero, drawn], axis=2), "LA").save(path),
        "opaque-alpha.png": lambda path: Image.fromarray(np.stack([drawn] * 3 + [opaque], axis=2)).save(path),
        "exif.jpg": lambda path: turned.save(path, quality=95, exif=exif),
        "webp.webp": lambda path: Image.fromarray(grey).save(path, quality=90),
    }


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("name", pictures())
def test_every_kind_of_picture_gives_the_same_digit(name: str, tmp_path: Path) -> None:
    pictures()[name](tmp_path / name)
    prepared = as_mnist(read_photograph(tmp_path / name)).astype(int)
    assert np.abs(prepared - as_mnist(1 - ring())).mean() < 4


def test_the_exif_rotation_is_undone(tmp_path: Path) -> None:
    page = np.full((100, 200), 255, dtype=np.uint8)
    page[10:30, 20:180] = 0  # a bar at the top
    exif = Image.Exif()
    for orientation, turns in ((1, 0), (3, 2), (6, 1), (8, 3)):
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(page, turns)).save(tmp_path / "bar.png", exif=exif)
        values = read_photograph(tmp_path / "bar.png")
        assert values.shape == (100, 200)
        assert values[:40].mean() < values[60:].mean() == 1


def test_large_pictures_are_read_smaller(tmp_path: Path) -> None:
    large = Image.fromarray(np.rint(255 * (1 - ring())).astype(np.uint8)).resize((2400, 1800))
    for name in ("large.jpg", "large.png"):
        large.save(tmp_path / name)
        assert read_photograph(tmp_path / name).shape == (LONGEST * 3 // 4, LONGEST)


def test_colours_can_be_kept(tmp_path: Path) -> None:
    red = np.zeros((20, 30, 3), dtype=np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    np.testing.assert_array_equal(read_photograph(tmp_path / "red.png", colour=True)[0, 0], [1, 0, 0])
    np.testing.assert_allclose(read_photograph(tmp_path / "red.png"), 0.299)


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = as_file(photograph(ring(28, 12, 8, (14, 14)), np.random.default_rng(0)), "PNG")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.jpg").write_bytes(as_file(np.asarray(Image.open(io.BytesIO(whole))))[:3000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "whole.png").write_bytes(whole)
    for name, message in (
        ("cut.png", "cut.png: expected a readable picture, found a damaged one"),
        ("cut.jpg", "cut.jpg: expected a readable picture, found a damaged one"),
        ("text.png", "text.png: expected a PNG or JPEG picture, found a file that is none"),
        ("empty.png", "empty.png: expected a PNG or JPEG picture"),
        ("none.png", "none.png: expected a picture, found no such file"),
        (".", "expected a picture, found a folder"),
    ):
        with pytest.raises(DataError, match=message):
            read_photograph(tmp_path / name)
    for limit in (50_000, 100_000):  # twice the limit is an error of Pillow's, the limit itself a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"whole.png: the picture is too large"):
            read_photograph(tmp_path / "whole.png")
