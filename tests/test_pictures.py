"""Pictures of digits: reading, and preparation as the images that a network was trained on."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason='Pillow is not installed: pip install ".[images]"')

from PIL import Image

from gpumlp import MLP, SGD, DataError, Dataset, fit, load_digits, load_mnist
from gpumlp.nn import Inputs
from gpumlp.pictures import (
    NoDigitError,
    as_digits,
    as_mnist,
    as_resized,
    find_ink,
    read_picture,
    read_sample,
    reading,
)
from gpumlp.pictures.components import connected_components
from gpumlp.pictures.reading import LONGEST, grey_levels
from tests.photographs import as_file, photograph, ring

PHOTOGRAPHS = 200


def grey(path: Path) -> np.ndarray:
    """A picture as ``(height, width)`` grey levels."""
    return grey_levels(read_picture(path))


def accuracies(
    model: MLP, test: Dataset, prepare: Callable[[np.ndarray], np.ndarray], picture: Callable[..., np.ndarray]
) -> tuple[float, float]:
    """Accuracies on 200 test images and on photographs of them."""
    rng = np.random.default_rng(0)
    images, labels = test.images[:PHOTOGRAPHS], test.labels[:PHOTOGRAPHS]
    scale = 255 if images.dtype == np.uint8 else 1
    prepared = np.stack([prepare(picture(image / scale, rng) / np.float32(255)) for image in images])
    return float((model.predict(images) == labels).mean()), float((model.predict(prepared) == labels).mean())


def jpeg(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(as_file(photograph(ink, rng, noise=0.08), quality=40))))


def light_on_dark(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return photograph(ink, rng, dark_ink=False)


# -- Accuracy ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist() -> tuple[MLP, Dataset]:
    if not os.environ.get("GPUMLP_DATA_DIR"):
        pytest.skip("GPUMLP_DATA_DIR is not set, so there is no MNIST to train on")
    train, test = load_mnist(download=False)
    model = MLP([784, 128, 10], device="cpu")
    fit(model, train, optimizer=SGD(0.1, momentum=0.9), epochs=4)
    return model, test


@pytest.mark.parametrize("picture", [photograph, jpeg, light_on_dark])
def test_photographs_are_recognised_as_well_as_mnist_itself(
    mnist: tuple[MLP, Dataset], picture: Callable[..., np.ndarray]
) -> None:
    clean, photographed = accuracies(*mnist, as_mnist, picture)
    assert clean > 0.95
    assert photographed > clean - 0.03


def test_mnists_own_images_come_out_nearly_as_they_are(mnist: tuple[MLP, Dataset]) -> None:
    images = mnist[1].images[:300]
    prepared = np.stack([as_mnist(image / np.float32(255)) for image in images])
    differences = np.abs(prepared.astype(float) - images).mean() / images.mean()
    assert differences < 0.25
    assert 0.9 < prepared.mean() / images.mean() < 1.15


def test_photographs_of_the_built_in_digits_are_recognised() -> None:
    train, test = load_digits()
    model = MLP([64, 64, 10], device="cpu")
    fit(model, train, optimizer=SGD(0.1, momentum=0.9), epochs=30, batch_size=32)
    clean, photographed = accuracies(model, test, as_digits, lambda ink, rng: photograph(np.pad(ink, 2), rng))
    assert clean > 0.94
    assert photographed > clean - 0.12  # the blurred 8 x 8 images differ from handwriting


# -- The geometry of MNIST ---------------------------------------------------------------------------------


def test_a_digit_fills_20_pixels_and_its_mass_is_centred() -> None:
    image = as_mnist(1 - ring())
    assert (image.shape, image.dtype) == ((28, 28), np.uint8)
    rows, columns = np.nonzero(image)
    assert np.ptp(rows) + 1 == 20
    assert abs(np.ptp(columns) + 1 - 20 / 1.5) <= 1  # the aspect ratio is kept
    mass = image / image.sum()
    assert abs(mass.sum(axis=1) @ np.arange(28) - 14) < 0.51
    assert abs(mass.sum(axis=0) @ np.arange(28) - 14) < 0.51
    assert image[14, 14] == 0  # the ring is open
    assert image.max() == 255


def test_the_centre_of_mass_counts_and_not_the_box() -> None:
    page = np.zeros((200, 200), dtype=np.float32)
    page[40:160, 90:100] = 1  # a pole ...
    page[40:60, 100:150] = 1  # ... with a flag at the top
    rows, columns = np.nonzero(as_mnist(page))
    assert rows.min() > 4  # lower than the middle of the box would put it
    assert columns.min() > 9  # and further to the right


@pytest.mark.parametrize("size", [(28, 28), (31, 57), (300, 400), (1200, 900)])
def test_size_polarity_and_contrast_make_no_difference(size: tuple[int, int]) -> None:
    expected = as_mnist(ring()).astype(int)
    side = min(size)
    enlarged = Image.fromarray(ring()).resize((side, side), Image.Resampling.BILINEAR)
    page = np.zeros(size, dtype=np.float32)
    page[:side, size[1] - side :] = np.asarray(enlarged)
    for picture in (page, 1 - page, 0.9 - 0.3 * page, 0.2 + 0.5 * page):
        assert np.abs(as_mnist(picture).astype(int) - expected).mean() < (10 if side > 100 else 20)


def test_specks_and_dust_are_not_part_of_the_digit() -> None:
    page = 1 - ring()
    expected = as_mnist(page)
    page[110:113, 5:8] = 0.1
    page[8:10, 100:103] = 0
    np.testing.assert_array_equal(as_mnist(page), expected)


def test_a_dark_corner_is_not_part_of_the_digit() -> None:
    page = 1 - ring()
    page[:9, :30] = 0.1
    assert np.abs(as_mnist(page).astype(int) - as_mnist(1 - ring())).mean() < 8


def test_a_digit_in_two_parts_stays_whole() -> None:
    page = np.ones((100, 100), dtype=np.float32)
    page[20:30, 30:70] = 0
    page[40:80, 40:50] = 0
    assert find_ink(page).shape == (60, 40)


@pytest.mark.parametrize("angle", [0, 8, -12])
def test_the_digit_is_searched_for_on_a_sheet_on_a_table(angle: float) -> None:
    page = Image.fromarray(np.pad(1 - ring(), 30, constant_values=1)).resize((360, 360))
    photo = np.asarray(page.rotate(angle, expand=True, fillcolor=-1))
    photo = np.pad(np.where(photo < 0, 0.15, photo), 40, constant_values=0.15)
    photo = photo + np.random.default_rng(0).normal(0, 0.03, photo.shape)
    upright = Image.fromarray(ring()).rotate(angle)
    assert (
        np.abs(as_mnist(photo).astype(int) - as_mnist(np.asarray(upright))).mean() < 30
    )  # at most one row or column off


# -- A digit among other marks -------------------------------------------------------------------------------

ROWS, COLUMNS = np.indices((300, 300))


def seven(height: int = 120, top: int = 90, left: int = 110) -> np.ndarray:
    """A seven, 1 on 0, on a page of 300 x 300."""
    thick, width = height // 8, 2 * height // 3
    stem = np.abs(COLUMNS - left - width + 0.6 * (ROWS - top) + thick / 2) < 0.55 * thick
    bar = (top + thick > ROWS) & (left <= COLUMNS) & (left + width > COLUMNS)
    return ((top <= ROWS) & (top + height > ROWS) & (stem | bar)).astype(np.float32)


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    return (top <= ROWS) & (bottom > ROWS) & (left <= COLUMNS) & (right > COLUMNS)


def disc(row: int, column: int, radius: int) -> np.ndarray:
    return np.hypot(ROWS - row, COLUMNS - column) < radius


def grid(spacing: int, *, thick: int = 2, columns: bool = False) -> np.ndarray:
    return (ROWS % spacing < thick) | (columns & (COLUMNS % spacing < thick))


LEFT_OUT = {
    "a line below": box(250, 256, 60, 240),
    "a short line below": box(250, 256, 130, 200),
    "two lines below": box(240, 245, 60, 240) | box(255, 260, 60, 240),
    "a line above": box(60, 65, 70, 230),
    "a ring": disc(150, 150, 115) & ~disc(150, 150, 108),
    "a ring that is not quite closed": disc(150, 150, 115) & ~disc(150, 150, 108) & ~box(30, 60, 150, 180),
    "a frame": box(50, 250, 60, 240) & ~box(55, 245, 65, 235),
    "a frame at the picture's edge": ~box(8, 292, 8, 292),
    "punched holes": disc(80, 30, 12) | disc(220, 30, 12),
    "a blot": disc(260, 260, 30),
    "a decimal point": disc(205, 200, 6),
    "specks": disc(40, 50, 3) | disc(70, 250, 4) | disc(280, 120, 2) | disc(150, 60, 3),
    "rules beside it": box(60, 63, 0, 300) | box(240, 243, 0, 300),
    "a thumb": disc(300, 270, 60),
}
REFUSED = {
    "one below": seven(100, 190, 110),
    "one above": seven(50, 5, 110),
    "one of half the size below": seven(60, 230, 120),
    "one of half the size beside": seven(60, 120, 215),
    "one of a third of the size": seven(40, 80, 220),
    "one aslant": seven(90, 205, 205),
    "a one beside it": box(90, 210, 230, 240),
    "half a ring": disc(150, 150, 115) & ~disc(150, 150, 108) & (COLUMNS < 170),
    "a line that touches it": box(165, 172, 40, 260),
    "a shadow of a pole": np.abs(COLUMNS - 150 + 0.3 * (ROWS - 150)) < 25,
}


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("mark", LEFT_OUT)
def test_marks_that_are_surely_no_digit_are_left_out(mark: str, light: bool) -> None:
    page = 0.8 * np.maximum(seven(), LEFT_OUT[mark])
    expected = as_mnist(1 - 0.8 * seven()).astype(int)
    assert np.abs(as_mnist(0.05 + page if light else 0.9 - page).astype(int) - expected).mean() < 4


@pytest.mark.parametrize("mark", REFUSED)
def test_several_digits_and_what_may_belong_to_one_are_refused(mark: str) -> None:
    page = 0.9 - 0.8 * np.maximum(seven(100, 70), REFUSED[mark])
    with pytest.raises(NoDigitError, match="expected one digit, found"):
        as_mnist(page)


@pytest.mark.parametrize("shadow", [COLUMNS > 150, ROWS > 140, ROWS + COLUMNS > 300, COLUMNS < 60, COLUMNS > 0])
@pytest.mark.parametrize("light", [0.45, 0.7, 0.9])
def test_a_shadow_is_taken_away(shadow: np.ndarray, light: float) -> None:
    page = np.where(shadow, light, 1) * (0.9 - 0.8 * seven())
    assert np.abs(as_mnist(page).astype(int) - as_mnist(0.9 - 0.8 * seven())).mean() < 6


@pytest.mark.parametrize("gap", [2, 8, 14])
def test_a_digit_in_two_parts_is_one_digit(gap: int) -> None:
    whole = seven()
    for cut in (box(150, 150 + gap, 0, 300), box(104, 104 + gap, 0, 300)):
        assert find_ink(1 - whole * ~cut).shape == find_ink(1 - whole).shape


def test_two_digits_side_by_side_are_refused() -> None:
    two = 1 - np.hstack([ring(), ring()])
    with pytest.raises(NoDigitError, match="expected one digit, found several marks; cut the picture into one"):
        as_mnist(two)


def test_an_image_like_mnists_stays_as_it_is() -> None:
    image = as_mnist(1 - seven())
    np.testing.assert_array_equal(as_mnist(image / np.float32(255)), image)


def test_a_thin_pen_is_full_ink() -> None:
    page = np.ones((300, 300), dtype=np.float32)
    page[40:260, 150:152] = 0.4
    assert as_mnist(page).max() == 255
    cross = np.ones((640, 640), dtype=np.float32)
    cross[100:540, 320] = cross[320, 100:540] = 0
    assert as_mnist(cross).max() == 255


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((50, 40)), "the picture is black all over"),
        (np.ones((50, 40)), "the picture is white all over"),
        (np.full((50, 40), 0.5), "the picture is the same grey all over"),
        (np.clip(np.random.default_rng(0).normal(0.8, 0.06, (300, 400)), 0, 1), "no digit found"),
        (np.add.outer(np.linspace(0.3, 0.9, 300), np.zeros(400)), "the page is empty"),
        (np.pad(np.zeros((2, 2)), 100, constant_values=1), "only specks on the page"),
    ],
)
@pytest.mark.parametrize("prepare", [as_mnist, as_digits])
def test_a_page_without_a_digit_is_refused(picture: np.ndarray, message: str, prepare: Callable) -> None:
    with pytest.raises(NoDigitError, match=message):
        prepare(picture)


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_is_not_a_digit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    light = np.add.outer(np.linspace(-0.1, 0.1, 300), np.linspace(0.6, 0.8, 400))
    with pytest.raises(NoDigitError):
        find_ink(np.clip(light + rng.normal(0, rng.uniform(0.01, 0.12), light.shape), 0, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 640), (640, 1), (2, 3), (10, 640), (8, 8), (13, 5), (97, 111)])
def test_a_picture_of_any_size_gives_a_digit_or_a_reason(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for picture in (rng.random(size), (rng.random(size) < 0.2).astype(float), np.eye(*size)):
        try:
            prepared = as_mnist(picture)
        except NoDigitError:
            continue
        assert prepared.shape == (28, 28)
        assert prepared.max() > 200


def test_the_built_in_digits_way_fills_8_rows_with_shares_of_ink() -> None:
    image = as_digits(1 - ring())
    assert (image.shape, image.dtype) == ((8, 8), np.float32)
    assert image.min() == 0
    assert 0.9 < image.max() <= 1
    assert image[0].max() > 0.2
    assert image[7].max() > 0.2
    np.testing.assert_allclose(image, image[:, ::-1], atol=0.3)  # centred, to within a dot


def test_resizing_does_nothing_else() -> None:
    picture = np.random.default_rng(0).random((40, 60)).astype(np.float32)
    resized = as_resized(picture, (10, 15))
    assert (resized.shape, resized.dtype) == ((10, 15), np.uint8)
    assert abs(resized.mean() / 255 - picture.mean()) < 0.01
    colours = np.zeros((8, 8, 3), dtype=np.float32)
    colours[:, :, 2] = 1
    np.testing.assert_array_equal(as_resized(colours, (2, 2, 3)), np.broadcast_to([0, 0, 255], (2, 2, 3)))


# -- Picture files ---------------------------------------------------------------------------------------------


def pictures() -> dict[str, Callable[[Path], None]]:
    """The same ring, in every kind of picture file."""
    ink = ring()
    grey = np.rint(255 * (1 - ink)).astype(np.uint8)
    opaque, drawn = np.full(grey.shape, 255, np.uint8), np.rint(255 * ink).astype(np.uint8)
    zero = np.zeros_like(grey)
    turned = Image.fromarray(np.rot90(grey))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise
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
    prepared = as_mnist(grey(tmp_path / name)).astype(int)
    assert np.abs(prepared - as_mnist(1 - ring())).mean() < 4


def test_the_exif_rotation_is_undone(tmp_path: Path) -> None:
    page = np.full((100, 200), 255, dtype=np.uint8)
    page[10:30, 20:180] = 0  # a bar at the top
    exif = Image.Exif()
    for orientation, turns in ((1, 0), (3, 2), (6, 1), (8, 3)):
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(page, turns)).save(tmp_path / "bar.png", exif=exif)
        values = grey(tmp_path / "bar.png")
        assert values.shape == (100, 200)
        assert values[:40].mean() < values[60:].mean() == pytest.approx(1)


def test_large_pictures_are_read_smaller(tmp_path: Path) -> None:
    large = Image.fromarray(np.rint(255 * (1 - ring())).astype(np.uint8)).resize((2400, 1800))
    for name in ("large.jpg", "large.png"):
        large.save(tmp_path / name)
        assert read_picture(tmp_path / name).shape == (LONGEST * 3 // 4, LONGEST, 3)


def test_colours_are_kept(tmp_path: Path) -> None:
    red = np.zeros((20, 30, 3), dtype=np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "red.png")[0, 0], [1, 0, 0])
    np.testing.assert_allclose(grey(tmp_path / "red.png"), 0.299)


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
        ("text.png", r"text.png: expected a picture \(PNG, .* or a file of arrays .*, found a file that is not a"),
        ("empty.png", "empty.png: expected a picture .*, found an empty file"),
        ("none.png", "none.png: expected a picture, found no such file"),
        (".", "expected a picture, found a folder"),
    ):
        with pytest.raises(DataError, match=message):
            read_picture(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25_000)
    with pytest.raises(DataError, match=r"whole.png: the picture is too large"):
        read_picture(tmp_path / "whole.png")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript, a program that draws; save it as PNG"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC picture, which Pillow does not read; save it"),
        (b"label,pixel0\n1,0\n", "a file that is not a picture, with text that begins with 'label,pixel0"),
        (bytes(range(1, 256)), "a file that is not a picture, or damaged"),
    ],
)
def test_other_formats_are_refused_by_name(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"page.png: expected a picture \(PNG, .*, found {re.escape(found)}"):
        read_picture(tmp_path / "page.png")


def test_no_picture_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a program is started")

    for name in ("run", "Popen", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr(os, "system", started)
    for name in ("page.eps", "page.png", "page.jpg"):
        (tmp_path / name).write_bytes(as_file(np.full((30, 30), 200, np.uint8), "EPS"))
        with pytest.raises(DataError, match="found PostScript"):
            read_picture(tmp_path / name)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_damaged_picture_is_an_error_of_one_kind_whatever_pillow_raises(tmp_path: Path) -> None:
    whole = as_file(photograph(ring(28, 12, 8, (14, 14)), np.random.default_rng(0)), "PNG")
    end = chunk(b"IEND", b"")
    (tmp_path / "page.png").write_bytes(whole.removesuffix(end) + chunk(b"iCCP", b"") + end)
    with pytest.raises(DataError, match=r"page.png: expected a readable picture, found a damaged one"):
        read_picture(tmp_path / "page.png")
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "PCX"):
        whole = as_file(
            np.asarray(Image.open(io.BytesIO(whole if kind == "PNG" else as_file(np.eye(40) > 0)))), kind
        )
        for _ in range(20):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[rng.integers(0, len(damaged), 5)] = rng.integers(0, 256, 5)
            (tmp_path / "page.png").write_bytes(damaged[: rng.integers(1, len(damaged) + 1)].tobytes())
            with contextlib.suppress(DataError):
                assert read_picture(tmp_path / "page.png").max() <= 1


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_values_of_any_depth_are_scaled_by_it(depth: int, tmp_path: Path) -> None:
    levels = np.rint((2**depth - 1) * np.linspace(0, 1, 64)).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "page.png")
    np.testing.assert_allclose(grey(tmp_path / "page.png").ravel(), np.linspace(0, 1, 64), atol=0.003)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Image.fromarray(np.rint(255 * (1 - ring())).astype(np.uint8)).resize((4000, 4000))
    large.save(tmp_path / "page.jpg", **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # more than twice as many are an error in Pillow
    assert read_picture(tmp_path / "page.jpg").shape == (LONGEST, LONGEST, 3)
    large.save(tmp_path / "page.png")
    with pytest.raises(DataError, match="too large"):
        read_picture(tmp_path / "page.png")


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("I;16", "PNG"), ("L", "JPEG")])
def test_the_memory_of_a_picture_is_bounded(
    mode: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new(mode, (3000, 2000)).save(tmp_path / "page", kind)
    assert read_picture(tmp_path / "page").max() == 0
    monkeypatch.setattr(reading, "_MOST_BYTES", 1 << 20)
    with pytest.raises(
        DataError, match=r"expected a picture of at most .* 1 MB in memory, found one of 3,000 x 2,000"
    ):
        read_picture(tmp_path / "page")


def test_a_row_costs_memory_however_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1, 100_000)).save(tmp_path / "page.png")
    assert read_picture(tmp_path / "page.png").shape == (LONGEST, 1, 3)
    monkeypatch.setattr(reading, "_MOST_BYTES", 1 << 20)
    with pytest.raises(DataError, match="found one of 1 x 100,000 pixels and 1 MB"):
        read_picture(tmp_path / "page.png")


def test_the_scans_of_a_jpeg_are_bounded(tmp_path: Path) -> None:
    Image.new("L", (4096, 4096), 128).save(tmp_path / "page.jpg", progressive=True)
    assert read_picture(tmp_path / "page.jpg").shape == (LONGEST, LONGEST, 3)
    content = (tmp_path / "page.jpg").read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "page.jpg").write_bytes(content[:-2] + 1000 * last)
    with pytest.raises(DataError, match=r"page.jpg: expected at most .* in all scans of a JPEG, found 1,0"):
        read_picture(tmp_path / "page.jpg")


def test_ink_that_differs_from_the_paper_in_colour_only_is_ink(tmp_path: Path) -> None:
    ink = ring()[..., None]
    colours = np.array([40, 150, 40]) * (1 - ink) + np.array([255, 60, 40]) * ink
    Image.fromarray(np.rint(colours).astype(np.uint8)).save(tmp_path / "page.png")
    prepared, done = read_sample(tmp_path / "page.png", Inputs((28, 28), "uint8", "mnist"))
    assert done == "mnist"
    assert np.abs(prepared.astype(int) - as_mnist(1 - ring())).mean() < 2


# -- Connected parts of a mask ---------------------------------------------------------------------------------


def test_connected_parts_agree_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")
    rng = np.random.default_rng(0)
    for density in (0.05, 0.3, 0.45, 0.6, 0.95):
        mask = rng.random((40, 57)) < density
        parts, labels = connected_components(mask)
        expected, count = ndimage.label(mask, structure=np.ones((3, 3)))
        assert len(parts) == count
        for part in parts:
            inside = labels == part.number
            assert inside.sum() == part.area
            assert len(set(expected[inside])) == 1
            rows, columns = np.nonzero(inside)
            assert (part.top, part.bottom) == (rows.min(), rows.max() + 1)
            assert (part.left, part.right) == (columns.min(), columns.max() + 1)
    assert [part.area for part in parts] == sorted((part.area for part in parts), reverse=True)


def test_parts_are_found_in_linear_time() -> None:
    dots = np.zeros((640, 640), dtype=bool)
    dots[::2, ::2] = True
    comb = np.zeros((640, 640), dtype=bool)
    comb[:, ::2] = comb[-1] = True
    start = time.process_time()
    assert len(connected_components(dots)[0]) == 320 * 320
    assert len(connected_components(comb)[0]) == 1
    assert time.process_time() - start < 3


def test_a_mask_may_be_empty_or_full() -> None:
    assert connected_components(np.zeros((3, 4), dtype=bool))[0] == []
    assert [part.area for part in connected_components(np.ones((3, 4), dtype=bool))[0]] == [12]


@pytest.mark.parametrize("kind", [None, "tiff_lzw"])
def test_a_tiff_of_several_pages_is_refused_and_a_preview_is_no_page(tmp_path: Path, kind: str | None) -> None:
    levels = np.tile(np.arange(0, 200, 4, dtype=np.uint8), (50, 1))
    page, preview, path = Image.fromarray(levels), Image.fromarray(levels[::5, ::5]), tmp_path / "scan.tif"
    preview.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
    for more in ([], [preview]):
        page.save(path, save_all=True, append_images=more, compression=kind)
        np.testing.assert_allclose(grey(path), levels / np.float32(255), atol=1e-6)
    page.save(path, save_all=True, append_images=[page], compression=kind)
    with pytest.raises(DataError, match="expected one picture, found several in a TIFF file; save each"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_refused(tmp_path: Path, kind: str) -> None:
    levels = np.tile(np.arange(0, 200, 4, dtype=np.uint8), (50, 1))
    first, path = Image.fromarray(levels), tmp_path / "film"
    first.save(path, kind)
    assert read_picture(path).shape == (50, 50, 3)
    first.save(
        path, kind, save_all=True, append_images=[Image.fromarray(levels[::-1, ::-1].copy())], lossless=True
    )
    with pytest.raises(DataError, match=f"expected one picture, found several in a {kind} file; save each"):
        read_picture(path)
