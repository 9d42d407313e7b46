"""Dataset: what enters is checked once, and stays as it is."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import numpy as np
import pytest

from gpumlp.data import DataError, Dataset

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


def test_lists_are_taken() -> None:
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
        (np.eye(4), r"got \(4, 4\); if one-hot, use labels.argmax\(axis=1\)"),
        ([[0], [1], [0], [1]], r"got \(4, 1\); use labels.ravel\(\)"),
        ([0.0, 1.0, 0.0, 1.0], r"got dtype float64; use labels.astype\(int\)"),
        ([True, False, True, False], r"got dtype bool; use labels.astype\(int\)"),
        ([0, 1, 0], "one for each of 4 images, got 3"),
        ([0, -1, 1, -2], r"labels\[3\] is -2"),
        (np.array([0, 2**64 - 1, 0, 1], np.uint64), rf"labels\[1\] is {2**64 - 1}"),
    ],
)
def test_labels_that_are_not_class_numbers_are_refused_with_the_cure(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(IMAGES, labels, name="mine")


@pytest.mark.parametrize(
    ("classes", "message"),
    [(2, r"below classes = 2, but labels\[0\] is 2"), (1, "from 2 to"), (2.5, "must be an integer, got 2.5")],
)
def test_classes_must_cover_the_labels(classes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(IMAGES, LABELS, classes=classes)


def test_messages_begin_with_the_name() -> None:
    with pytest.raises(DataError, match=r"^mine: labels must"):
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
    """Stands in for cupy.ndarray: told by its module, copied to the host by get()."""

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
    assert data.fingerprint() == Dataset(IMAGES, LABELS).fingerprint()


def test_cupy_integers_are_converted_on_the_device() -> None:
    stored = Dataset(IMAGES.astype(np.int32).view(DeviceArray), LABELS).images
    assert type(stored) is DeviceArray
    assert stored.dtype == np.float32


@pytest.mark.parametrize("module", ["dataset", "digits"])
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"gpumlp.data.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_importing_the_data_room_loads_neither_cupy_nor_the_network() -> None:
    code = (
        "import sys, gpumlp.data; gpumlp.data.load_digits();"
        "print([m for m in ('cupy', 'pooch', 'requests', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_entropy_of_labels_is_the_least_loss_of_a_guess() -> None:
    labels = [0, 0, 0, 2]
    entropy = Dataset(np.zeros((4, 2), np.float32), labels, classes=3).label_entropy
    assert entropy == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert Dataset(np.zeros((4, 2), np.float32), [0, 1, 2, 3]).label_entropy == pytest.approx(np.log(4))
    assert Dataset(np.zeros((4, 2), np.float32), [1] * 4).label_entropy == 0
