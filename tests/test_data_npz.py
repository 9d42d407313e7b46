"""load_npz and read_samples: files in Keras's layout or with samples are loaded, others refused with a reason."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpumlp.data import DataError, load_npz, npz
from gpumlp.data.npz import is_array_file, read_samples
from tests.data_helpers import idx_bytes

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


@pytest.mark.parametrize("order", ["<", ">"])
def test_damaged_text_is_refused(path: Path, order: str) -> None:
    text = np.array(["a", "b", "c", "a", "b", "c"], f"{order}U2")
    save(path, y_train=text, y_test=text[:2])
    assert load_npz(path)[0].class_names == ("a", "b", "c")
    text.view(f"{order}u4")[3] = 0x110000
    save(path, y_train=text, y_test=text[:2])
    with pytest.raises(DataError, match="y_train: expected text, found numbers that are no characters"):
        load_npz(path)


def test_labels_in_a_column_are_flattened(path: Path) -> None:
    save(path, y_train=ARRAYS["y_train"][:, None], y_test=ARRAYS["y_test"][:, None])
    assert [data.labels.tolist() for data in load_npz(path)] == [[0, 1, 2, 0, 1, 2], [1, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_test": ARRAYS["x_test"][:, :2]},
            r"x_test: .* of shape \(3, 4\) as in x_train, found \(2, 4\)",
        ),
        ({"x_test": ARRAYS["x_test"] / 255}, "samples of dtype uint8 as in x_train, found float64"),
        (
            {"x_train": ARRAYS["x_train"].astype(np.int64), "x_test": ARRAYS["x_test"].astype(np.float32) / 255},
            "samples of dtype int64 as in x_train, found float32",
        ),
        (
            {"y_test": np.array([1, 3])},
            r"x_test and y_test: labels must be classes from 0 to 2, but labels\[1\] is 3",
        ),
        ({"y_train": np.full(6, 7)}, "x_train and y_train: .*labels must be of two classes or more, found only 7"),
        ({"y_train": np.full(6, 0)}, "found only 0"),
        ({"y_train": np.eye(6)}, r"x_train and y_train: targets must .* give targets.argmax\(axis=1\)"),
        ({"y_test": ARRAYS["y_test"] + 0.5}, r"x_test and y_test: .* whole numbers for classes, .*\[0\] is 1.5"),
        ({"w_test": np.array([1.0, -1.0])}, r"x_test and y_test: weights must be 0 or more"),
        ({"y_train": ARRAYS["y_train"][:5]}, "one for each of 6 images, got 5"),
        (
            {"x_train": np.array([[{}]] * 6)},
            "npz, x_train: expected a numeric array, found pickled objects, which are not loaded",
        ),
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


def test_a_member_that_is_not_an_array_is_missing(path: Path) -> None:
    save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name == "x_test.npy":
                archive.writestr("x_test", "some text")
            else:
                archive.writestr(name, content)
    with pytest.raises(DataError, match=r"found x_train, y_train, y_test; add x_test"):
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


# -- What a file declares is checked before memory is taken


def npy(array: np.ndarray, **changes: object) -> bytes:
    """An .npy file; `changes` are made to its header."""
    buffer = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def of_zeros(count: int, megabytes: int) -> bytes:
    return zipped({f"{name}.npy": npy(np.zeros(megabytes * 2**20, np.uint8)) for name in list(ARRAYS)[:count]})


def with_declared_size(size: int) -> bytes:
    """An archive whose only member declares another size than it has, where it and its directory say so."""
    values = npy(np.zeros(100, np.uint8))
    return zipped({"x.npy": values}, zipfile.ZIP_STORED).replace(
        struct.pack("<II", len(values), len(values)), struct.pack("<II", len(values), size)
    )


ONES = np.ones((3, 4))
LIES = {
    "a trillion values": (zipped({"x.npy": npy(ONES, shape=(10**12,))}), "expected 8,000,000,000,128 bytes"),
    "a trillion values, .npy": (npy(ONES, shape=(10**12,)), "expected 8,000,000,000,128 bytes .* found 224"),
    "more than 64 bits": (npy(ONES, shape=(2**62, 2**62)), "the file is damaged"),
    "one value too few": (npy(ONES, shape=(3, 3)), "expected 200 bytes .* found 224"),
    "lengths whose product is 0": (npy(ONES[:0], shape=(0, 2**62, 2**62)), "no array can have that shape"),
    "a negative length": (npy(ONES, shape=(-3, -4)), "the file is damaged"),
    "values of no size": (npy(ONES[:0], shape=(10**12,), descr="<U0"), "found values of dtype <U0"),
    "fields": (npy(ONES[:0], descr=[("a", "<f8")]), "found values of dtype "),
    "objects": (
        zipped({"x.npy": npy(ONES, descr="|O")}),
        "x.npz, x: expected a numeric array, found pickled objects",
    ),
    "objects, .npy": (npy(ONES, descr="|O"), "expected a numeric array, found pickled objects"),
    "a header of nested lists": (b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"[" * 9000, "a damaged one"),
    "a declared size beyond deflate": (with_declared_size(2**31), "at most 1032 times the 228 bytes"),
    "a declared size beyond the values": (with_declared_size(2**17), "expected 228 bytes .* found 131,072"),
    "another compression": (zipped({"x.npy": npy(ONES)}, zipfile.ZIP_LZMA), "found another compression"),
    "a bomb": (of_zeros(1, 50), "expected to fit in memory, found 52,428,928 bytes for the 20,000,000"),
    "no array": (zipped({"a.png": b"", "b.png": b""}), "found a zip archive without arrays"),
    "many arrays": (
        zipped({f"{i}.npy": b"" for i in range(500)}),
        "holds 0, 1, .* 9, ... \\(500 in all\\); name the one",
    ),
    "too many members": (
        zipped({f"{i:0100}": b"" for i in range(40_000)}),
        "its list of members has 5,840,000 bytes",
    ),
    "a zip cut short": (of_zeros(1, 1)[:-1], "is not a zip archive or is cut short"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES.keys())
def test_files_that_declare_too_much_are_refused_with_the_reason_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr("gpumlp.data.reading.host_memory", lambda: 20_000_000)
    path = tmp_path / ("x.npz" if content[:2] == b"PK" else "x.npy")
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            read_samples(path, path.name, (4,))
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(path.name)
    assert "\n" not in str(caught.value)


def test_the_arrays_of_a_data_set_have_to_fit_in_memory_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpumlp.data.reading.host_memory", lambda: 20_000_000)
    path.write_bytes(of_zeros(4, 6))
    with pytest.raises(
        DataError, match=r"x_train, y_train, x_test, y_test expected to fit in memory, found 25,16"
    ):
        load_npz(path)


@pytest.mark.parametrize("array", [ONES, np.asfortranarray(ONES * [1, 2, 3, 4]), ONES.astype(">f4"), ONES > 0])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", x=array)
    for file in tmp_path.iterdir():
        np.testing.assert_array_equal(read_samples(file, file.name, (4,)), array)


def test_an_archive_that_may_not_be_read_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(npz._BoundedFile, "__init__", refuse)
    with pytest.raises(DataError, match=r"own.data.npz: expected a readable .npz file, found Permission denied"):
        load_npz(path)


# -- Which files hold arrays


FTYP = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(80)
IDX = idx_bytes(np.zeros((2, 3, 4), np.float32))


@pytest.mark.parametrize(
    ("name", "content", "holds_arrays"),
    [
        ("x.avif", FTYP, False),
        ("x.idx3-ubyte", FTYP, False),
        ("x.ico", b"\0\0\x01\0" + bytes(60), False),
        ("x.tga", b"\0\0\x0a\0" + bytes(60), False),
        ("x", IDX, True),
        ("x.png", IDX, True),
        ("x", IDX[:-1], False),
        ("train-images-idx3-ubyte", IDX[:-1], True),  # damaged, and to be called so
        ("x", gzip.compress(IDX, mtime=0), True),
        ("x", npy(ONES), True),
        ("x", WHOLE, True),
        ("x.npy", b"", True),
        ("x.png", b"", False),
    ],
)
def test_files_of_arrays_are_told_from_pictures_by_their_content(
    tmp_path: Path, name: str, content: bytes, holds_arrays: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    assert is_array_file(tmp_path / name) == holds_arrays


def test_images_of_emnist_are_turned_upright_for_a_prediction_too(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in "emnist-letters-test-images-idx3-ubyte", "t10k-images-idx3-ubyte":
        (tmp_path / name).write_bytes(idx_bytes(images))
    found = [read_samples(file, file.name, (4, 3)) for file in sorted(tmp_path.iterdir())]
    np.testing.assert_array_equal(found[0], images.transpose(0, 2, 1))
    np.testing.assert_array_equal(found[1], images)
