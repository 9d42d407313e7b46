"""load_npz: files in Keras's layout are loaded, all others refused with a reason."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpumlp.data import DataError, load_npz

ARRAYS = {
    "x_train": np.arange(72, dtype=np.uint8).reshape(6, 3, 4),
    "y_train": np.array([0, 1, 2, 0, 1, 2], np.uint8),
    "x_test": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "y_test": np.array([1, 0]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own.data.npz"


def save(path: Path, **changes: np.ndarray) -> None:
    np.savez(path, **(ARRAYS | changes))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_keras_layout_is_loaded_and_named_as_the_file(path: Path, write) -> None:
    write(path, **ARRAYS, extra=np.zeros(3))
    train, test = load_npz(str(path))
    for data, part in ((train, "train"), (test, "test")):
        np.testing.assert_array_equal(data.images, ARRAYS[f"x_{part}"])
        np.testing.assert_array_equal(data.labels, ARRAYS[f"y_{part}"])
        assert data.images.dtype == np.uint8
        assert data.name == "own.data.npz"


def test_both_parts_have_the_classes_of_the_training_labels(path: Path) -> None:
    save(path)  # the test labels lack class 2
    assert [data.classes for data in load_npz(path)] == [3, 3]


def test_labels_in_a_column_are_flattened(path: Path) -> None:
    save(path, y_train=ARRAYS["y_train"][:, None], y_test=ARRAYS["y_test"][:, None])
    assert [data.labels.tolist() for data in load_npz(path)] == [[0, 1, 2, 0, 1, 2], [1, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": ARRAYS["x_test"][:, :2]}, r"sample shape \(3, 4\) as in x_train, found \(2, 4\)"),
        ({"x_test": ARRAYS["x_test"] / 255}, "dtype uint8 as in x_train, found float64"),
        ({"y_test": np.array([1, 3])}, r"y_test: .* from 0 to 2 with classes = 3, but labels\[1\] is 3"),
        ({"y_train": np.full(6, 7)}, "x_train and y_train: all labels are 7; expected two classes or more"),
        ({"y_train": np.eye(6)}, r"x_train and y_train: .* use labels.argmax\(axis=1\)"),
        ({"y_test": ARRAYS["y_test"].astype(float)}, r"x_test and y_test: .* use labels.astype\(int\)"),
        ({"y_train": ARRAYS["y_train"][:5]}, "one for each of 6 images, got 5"),
        ({"x_train": np.array([[{}]] * 6)}, "x_train to be a numeric array, found pickled objects"),
    ],
)
def test_arrays_that_do_not_fit_are_named(path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    save(path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path)
    assert str(caught.value).startswith(str(path))


def test_missing_arrays_are_named_with_those_found(path: Path) -> None:
    np.savez(path, x_train=ARRAYS["x_train"], labels=ARRAYS["y_train"])
    with pytest.raises(DataError, match="found x_train, labels; add y_train, x_test, y_test"):
        load_npz(path)


def test_a_member_that_is_not_an_array_is_named(path: Path) -> None:
    save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name == "x_test.npy":
                archive.writestr("x_test", "some text")
            else:
                archive.writestr(name, content)
    with pytest.raises(DataError, match="expected x_test to be an array, found other bytes"):
        load_npz(path)


def whole_file() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **ARRAYS)
    return buffer.getvalue()


WHOLE = whole_file()


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", WHOLE[: len(WHOLE) // 2], WHOLE[:-1]], ids=["empty", "text", "half", "cut"]
)
def test_an_incomplete_zip_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"own.data.npz: expected .*get it again, or make it with numpy.savez"):
        load_npz(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no such file"):
        load_npz(tmp_path / "none.npz")
    with pytest.raises(DataError, match="found a folder"):
        load_npz(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files_give_arrays_or_a_data_error(path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for position, value in changes:
        content[position] = value
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            train, test = load_npz(path)
        except DataError:
            return  # any other exception fails this test
    assert (len(train), len(test)) == (6, 2)
