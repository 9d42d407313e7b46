"""Datasets: checks, conversions, the built-in digits, and data sets by name."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from gpumlp.data import DataError, Dataset, load_dataset, load_digits, mnist
from gpumlp.data.mnist import DataNotAvailable
from tests.data_helpers import NAMES, TRAIN_IMAGES, serve_folder, small_mnist, write_files

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_digits.py"
IMAGES = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
LABELS = [2, 0, 1, 2]


def test_a_dataset_says_what_it_holds() -> None:
    data = Dataset(IMAGES, LABELS, name="mine")
    assert (len(data), data.features, data.feature_shape, data.classes) == (4, 6, (2, 3), 3)
    assert repr(data) == "Dataset('mine', 4 samples of 2 x 3 uint8, 3 classes)"
    big = Dataset(np.zeros((60_000, 1), np.float32), np.zeros(60_000, int), classes=10)
    assert repr(big) == "Dataset('arrays', 60,000 samples of 1 float32, 10 classes)"


def test_uint8_images_are_kept_without_a_copy() -> None:
    assert Dataset(IMAGES, LABELS).images is IMAGES


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_used_as_given(dtype: str) -> None:
    images = np.full((2, 3), -0.5, dtype)
    assert Dataset(images, [0, 1]).images is images


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64"])
def test_other_integers_become_float32_with_the_same_values(dtype: str) -> None:
    images = np.array([[0, 1], [1, 0]], dtype)
    stored = Dataset(images, [0, 1]).images
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, images)


def test_foreign_byte_order_becomes_native_with_the_same_values() -> None:
    stored = Dataset(np.array([[1.5, -2.0]], ">f4"), [0]).images
    assert stored.dtype == np.float32
    assert stored.dtype.isnative
    assert stored.tolist() == [[1.5, -2.0]]


def test_lists_are_accepted() -> None:
    data = Dataset([[0.0, 1.0], [2.0, 3.0]], [0, 1])
    assert data.images.shape == (2, 2)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "uint64"])
def test_labels_of_any_integer_dtype_become_int64(dtype: str) -> None:
    labels = Dataset(IMAGES, np.array(LABELS, dtype)).labels
    assert labels.dtype == np.int64
    assert labels.tolist() == LABELS


def test_there_are_at_least_two_classes() -> None:
    assert Dataset(IMAGES, [0, 0, 0, 0]).classes == 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros(4), r"at least 2 dimensions, got \(4,\); use images.reshape"),
        (np.zeros((0, 3)), r"at least one sample of at least one value, got shape \(0, 3\)"),
        (np.zeros((4, 0)), r"at least one value, got shape \(4, 0\)"),
        (np.zeros((4, 2), complex), "got dtype complex128"),
        (np.array([["a"]] * 4), "got dtype <U1"),
        (np.array([[None]] * 4), "got dtype object"),
        ([[1, 2], [3]], "cannot be read as one array"),
    ],
)
def test_images_that_are_not_rows_of_real_numbers_are_refused(images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(images, [0, 1, 0, 1], name="mine")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_located(value: float) -> None:
    images = np.zeros((4, 2, 3))
    images[1, 0, 2] = images[3, 1, 1] = value
    with pytest.raises(DataError, match=r"2 of 24 values are NaN or infinite, the first at images\[1, 0, 2\]"):
        Dataset(images, LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0], "one for each of 4 images, got 3"),
        (np.array([0, 2**64 - 1, 0, 1], np.uint64), rf"labels\[1\] is {2**64 - 1}"),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_the_cure(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(IMAGES, labels, name="mine")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (2, r"classes from 0 to 1, but labels\[0\] is 2"),
        (1, "from 2 to"),
        (2.5, "must be an integer, got 2.5"),
    ],
)
def test_classes_must_cover_the_labels(classes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(IMAGES, LABELS, classes=classes)


def test_messages_begin_with_the_name() -> None:
    with pytest.raises(DataError, match=r"^mine: targets must"):
        Dataset(IMAGES, [0], name="mine")


def test_the_fingerprint_depends_on_the_content_only() -> None:
    data = Dataset(IMAGES, LABELS, name="a")
    same = Dataset(np.asfortranarray(IMAGES.copy()), np.array(LABELS, np.uint8), name="b", classes=10)
    assert data.fingerprint() == same.fingerprint()
    assert data.fingerprint().startswith("4x2x3-uint8-")
    assert len(data.fingerprint()) == len("4x2x3-uint8-1a2b3c4d")


def test_the_fingerprint_tells_images_labels_and_dtypes_apart() -> None:
    changed = IMAGES.copy()
    changed[3, 1, 2] += 1
    others = [
        Dataset(changed, LABELS),
        Dataset(IMAGES, [2, 0, 1, 1]),
        Dataset(IMAGES.reshape(4, 6), LABELS),
        Dataset(IMAGES.astype(np.float32), LABELS),
    ]
    prints = {data.fingerprint() for data in [Dataset(IMAGES, LABELS), *others]}
    assert len(prints) == 5


def test_the_fingerprint_does_not_depend_on_the_size_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset(IMAGES, LABELS).fingerprint()
    monkeypatch.setattr("gpumlp.data.dataset._FINGERPRINT_BLOCK", 13)
    assert Dataset(IMAGES, LABELS).fingerprint() == whole


class DeviceArray(np.ndarray):
    """A fake of cupy.ndarray: recognized by its module, copied to the host by get()."""

    __module__ = "cupy"
    copies = 0

    def get(self) -> np.ndarray:
        DeviceArray.copies += 1
        return self.view(np.ndarray)


def test_cupy_arrays_stay_on_the_device() -> None:
    images, labels = IMAGES.view(DeviceArray), np.array(LABELS).view(DeviceArray)
    DeviceArray.copies = 0
    data = Dataset(images, labels)
    assert data.images is images
    assert DeviceArray.copies == 1  # the labels
    assert type(data.labels) is np.ndarray
    numbers = Dataset(images, (IMAGES[:, 0] / 7).view(DeviceArray), weights=np.ones(4).view(DeviceArray))
    assert DeviceArray.copies == 3
    assert (type(numbers.targets), type(numbers.weights)) == (np.ndarray, np.ndarray)
    DeviceArray.copies = 1
    assert data.fingerprint() == Dataset(IMAGES, LABELS).fingerprint()


def test_cupy_integers_are_converted_on_the_device() -> None:
    stored = Dataset(IMAGES.astype(np.int32).view(DeviceArray), LABELS).images
    assert type(stored) is DeviceArray
    assert stored.dtype == np.float32


@pytest.mark.parametrize("module", ["dataset", "digits", "labels"])
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"gpumlp.data.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_optional_libraries_are_imported_only_where_they_are_used() -> None:
    code = (
        "import sys, gpumlp; gpumlp.load_digits()\n"
        "print({'cupy', 'platformdirs', 'requests', 'rich'} & set(sys.modules))\n"
        "import gpumlp.interop, gpumlp.pictures, gpumlp.predict, gpumlp.export\n"
        "print({'cupy', 'torch', 'sklearn', 'PIL', 'onnx'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset()\n"


def test_the_entropy_of_labels_is_the_least_loss_of_a_guess() -> None:
    labels = [0, 0, 0, 2]
    entropy = Dataset(np.zeros((4, 2), np.float32), labels, classes=3).label_entropy
    assert entropy == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert Dataset(np.zeros((4, 2), np.float32), [0, 1, 2, 3]).label_entropy == pytest.approx(np.log(4))
    assert Dataset(np.zeros((4, 2), np.float32), [1] * 4).label_entropy == 0
    weighted = Dataset(np.zeros((4, 2), np.float32), [0, 0, 0, 2], classes=3, weights=[0, 0.5, 0.5, 1])
    assert weighted.label_entropy == pytest.approx(np.log(2))
    assert Dataset(np.zeros((4, 2), np.float32), [0.5] * 4).label_entropy is None


# -- The built-in digits ---------------------------------------------------------------------------------------


def test_the_split_is_1437_and_360_images_of_8_x_8() -> None:
    train, test = load_digits()
    assert repr(train) == "Dataset('digits', 1,437 samples of 8 x 8 float32, 10 classes)"
    assert repr(test) == "Dataset('digits', 360 samples of 8 x 8 float32, 10 classes)"


def test_values_are_sixteenths_from_0_to_1() -> None:
    for data in load_digits():
        assert data.images.dtype == np.float32
        assert (data.images.min(), data.images.max()) == (0.0, 1.0)
        levels = data.images * 16
        np.testing.assert_array_equal(levels, levels.round())


def test_both_parts_have_their_share_of_every_class() -> None:
    train, test = (np.bincount(data.labels, minlength=10) for data in load_digits())
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.005)


def test_the_order_is_shuffled() -> None:
    for data in load_digits():
        assert (np.diff(data.labels) == 0).mean() < 0.2  # 0.1 if random, nearly 1 if sorted


def test_the_content_does_not_change_between_versions() -> None:
    assert [data.fingerprint() for data in load_digits()] == [
        "1437x8x8-float32-96cea809",
        "360x8x8-float32-35887e68",
    ]


def test_every_load_gives_arrays_of_its_own() -> None:
    load_digits()[0].images[:] = 0
    assert load_digits()[0].images.any()


def test_the_script_reproduces_the_file_byte_for_byte(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, the source of the digits, is not installed")
    spec = importlib.util.spec_from_file_location("make_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = tmp_path / "digits.npz"
    script.main(made)
    assert made.read_bytes() == resources.files("gpumlp.data").joinpath("digits.npz").read_bytes()


def test_nothing_of_the_original_is_lost_or_changed() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    original = datasets.load_digits()

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(map(tuple, np.column_stack([images.reshape(len(images), -1), labels]).tolist()))

    train, test = load_digits()
    ours = np.concatenate([train.images, test.images]) * 16, np.concatenate([train.labels, test.labels])
    assert rows(*ours) == rows(original.images, original.target)


# -- Data sets by name -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUMLP_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(mnist, "_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(mnist, "MIRRORS", ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "data", small_mnist())


def test_digits_come_without_notice() -> None:
    train, test, notice = load_dataset("digits")
    assert (train.name, test.name, notice) == ("digits", "digits", None)


def test_a_path_that_ends_in_npz_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "Own.NPZ"
    with path.open("wb") as file:
        np.savez(file, x_train=np.eye(2), y_train=[0, 1], x_test=np.eye(2), y_test=[1, 0])
    train, _, notice = load_dataset(path)
    assert (train.name, notice) == ("Own.npz", None)


@pytest.mark.parametrize("name", ["auto", "mnist"])
def test_published_mnist_comes_without_notice(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mnist.load_mnist(folder)
    for data in real:
        data.name = "mnist"
    monkeypatch.setattr("gpumlp.data.load_mnist", lambda data_dir: real)
    assert load_dataset(name, folder) == (*real, None)


@pytest.mark.parametrize("name", ["auto", "mnist"])
@pytest.mark.parametrize("by_environment", [True, False])
def test_files_that_are_not_mnists_own_come_with_a_notice(
    folder: Path, name: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_environment:
        monkeypatch.setenv("GPUMLP_DATA_DIR", str(folder))
    train, test, notice = load_dataset(name, None if by_environment else folder)
    assert train.name == test.name == "mnist-like"
    assert notice is not None
    assert str(folder) in notice
    assert "not MNIST's published files" in notice


def test_auto_falls_back_to_the_digits_and_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_folder(tmp_path) as server:
        monkeypatch.setattr(mnist, "MIRRORS", (server.address,))
        train, test, notice = load_dataset("auto")
    assert train.name == test.name == "digits"
    assert notice is not None
    assert f"{server.host}: HTTP 404 ({TRAIN_IMAGES})" in notice
    assert "digits (1,797 images of 8 x 8) are used instead" in notice
    assert all(word in notice for word in (*NAMES, "--data-dir", "GPUMLP_DATA_DIR", "--dataset mnist"))
    assert len(notice.splitlines()) == 4


def test_mnist_never_falls_back() -> None:
    with pytest.raises(DataNotAvailable, match="MNIST is not available"):
        load_dataset("mnist")


@pytest.mark.parametrize("by_environment", [True, False])
def test_damaged_files_in_a_named_folder_are_an_error_also_for_auto(
    folder: Path, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / TRAIN_IMAGES).write_bytes((folder / TRAIN_IMAGES).read_bytes()[:-20])
    monkeypatch.setenv("GPUMLP_DATA_DIR", str(folder))
    with pytest.raises(DataError, match=f"{TRAIN_IMAGES}: expected"):
        load_dataset("auto", None if by_environment else folder)


def test_a_data_dir_without_mnist_is_an_error_also_for_auto(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the files train-images"):
        load_dataset("auto", tmp_path)


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(DataError, match=r"'cifar'; choose auto, mnist, digits, .* or a path that ends in"):
        load_dataset("cifar")


@pytest.mark.parametrize("name", ["digits", "own.npz"])
def test_data_dir_is_refused_where_it_does_not_apply(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"does not apply to the data set {name}"):
        load_dataset(name, tmp_path)
