"""Pictures of digits: reading, and preparation as the images that a network was trained on."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed: pip install '.[images]'")

from PIL import Image

from gpumlp import MLP, SGD, DataError, Dataset, fit, load_digits, load_mnist
from gpumlp.pictures import NoDigitError, as_digits, as_mnist, as_resized, find_ink, read_picture
from gpumlp.pictures.ink import connected_components
from gpumlp.pictures.reading import LONGEST
from tests.photographs import as_file, photograph, ring

PHOTOGRAPHS = 200


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


def test_two_digits_are_refused() -> None:
    two = 1 - np.hstack([ring(), ring()])
    with pytest.raises(NoDigitError, match="expected one digit, found several marks; cut the picture into one"):
        as_mnist(two)


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
    prepared = as_mnist(read_picture(tmp_path / name)).astype(int)
    assert np.abs(prepared - as_mnist(1 - ring())).mean() < 4


def test_the_exif_rotation_is_undone(tmp_path: Path) -> None:
    page = np.full((100, 200), 255, dtype=np.uint8)
    page[10:30, 20:180] = 0  # a bar at the top
    exif = Image.Exif()
    for orientation, turns in ((1, 0), (3, 2), (6, 1), (8, 3)):
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(page, turns)).save(tmp_path / "bar.png", exif=exif)
        values = read_picture(tmp_path / "bar.png")
        assert values.shape == (100, 200)
        assert values[:40].mean() < values[60:].mean() == 1


def test_large_pictures_are_read_smaller(tmp_path: Path) -> None:
    large = Image.fromarray(np.rint(255 * (1 - ring())).astype(np.uint8)).resize((2400, 1800))
    for name in ("large.jpg", "large.png"):
        large.save(tmp_path / name)
        assert read_picture(tmp_path / name).shape == (LONGEST * 3 // 4, LONGEST)


def test_colours_can_be_kept(tmp_path: Path) -> None:
    red = np.zeros((20, 30, 3), dtype=np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "red.png", colour=True)[0, 0], [1, 0, 0])
    np.testing.assert_allclose(read_picture(tmp_path / "red.png"), 0.299)


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
        ("text.png", "text.png: expected a PNG or JPEG picture, found a file that is not a picture"),
        ("empty.png", "empty.png: expected a PNG or JPEG picture"),
        ("none.png", "none.png: expected a picture, found no such file"),
        (".", "expected a picture, found a folder"),
    ):
        with pytest.raises(DataError, match=message):
            read_picture(tmp_path / name)
    for limit in (25_000, 50_000):  # beyond twice the limit Pillow raises an error, beyond the limit it warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"whole.png: the picture is too large"):
            read_picture(tmp_path / "whole.png")


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


def test_a_mask_may_be_empty_or_full() -> None:
    assert connected_components(np.zeros((3, 4), dtype=bool))[0] == []
    assert [part.area for part in connected_components(np.ones((3, 4), dtype=bool))[0]] == [12]
