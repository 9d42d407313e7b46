"""read_idx: whole files are read, anything else is explained."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpumlp.data import DataError
from gpumlp.data.idx import read_idx
from tests.data_helpers import idx_bytes

IMAGES = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
PLAIN = idx_bytes(IMAGES)
ZIPPED = gzip.compress(PLAIN, mtime=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.idx"


@pytest.mark.parametrize("content", [PLAIN, ZIPPED], ids=["plain", "gzipped"])
def test_content_decides_about_gzip_and_the_name_does_not(path: Path, content: bytes) -> None:
    for name in ("images", "images.gz"):
        file = path.with_name(name)
        file.write_bytes(content)
        found = read_idx(file, ndim=3)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IMAGES)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 2, 3)])
def test_the_number_of_dimensions_is_given(path: Path, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.uint8)
    path.write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path, ndim=len(shape)), array)


def test_files_larger_than_one_chunk_are_read_whole(path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 1000, 999), dtype=np.uint8)
    path.write_bytes(gzip.compress(idx_bytes(array), compresslevel=1))
    np.testing.assert_array_equal(read_idx(path, ndim=3), array)


@pytest.mark.parametrize("zipped", [False, True])
def test_peak_memory_is_the_array_and_a_small_buffer(path: Path, zipped: bool) -> None:
    array = np.zeros((20, 1000, 1000), np.uint8)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if zipped else content)
    del content
    tracemalloc.start()
    try:
        read_idx(path, ndim=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert array.nbytes <= peak < array.nbytes + 4e6


def header(*lengths: int, magic: int = 2051) -> bytes:
    return struct.pack(f">{1 + len(lengths)}I", magic, *lengths)


WRONG = {
    "empty": (b"", "found an empty file"),
    "three bytes": (b"\0\0\x08", "found only 3 bytes"),
    "header cut": (PLAIN[:9], "header of 16 bytes, found 9"),
    "values cut": (PLAIN[:-1], r"expected 76 bytes from the header's shape \(5, 4, 3\), found 75"),
    "trailing byte": (PLAIN + b"x", "expected 76 bytes .* found 77"),
    "empty promise": (header(60_000, 2**31, 28) + b"x", "found 17"),
    "empty but too large": (header(0, 2**32 - 1, 2**32 - 1), "no array can have it"),
    "swapped": (header(5, magic=2049) + b"12345", r"found labels \(magic 2049\); were two files swapped"),
    "float32": (header(1, 1, 1, magic=0x0D03), r"IDX float32 of 3 dimensions .* convert it to uint8"),
    "int32 labels": (header(1, magic=0x0C01), "IDX int32 of 1 dimensions"),
    "four dimensions": (header(1, 1, 1, 1, magic=0x0804), "IDX uint8 of 4 dimensions"),
    "web page": (
        b"<!DOCTYPE html><html>",
        "found text that begins with '<!DOCTYPE html><', perhaps a web page",
    ),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "perhaps a web page or a Git LFS pointer"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47; this is no IDX file"),
    "gzip of nothing": (gzip.compress(b""), "found an empty file"),
    "gzip magic only": (b"\x1f\x8b", "expected a whole gzip file, found 2 bytes"),
    "gzip cut": (ZIPPED[:-10], "damaged"),
    "gzip without values": (gzip.compress(PLAIN[:-1]), "expected 76 bytes .* ends with the size 75"),
    "gzip with more": (gzip.compress(PLAIN + b"x"), "ends with the size 77"),
    "gzip bomb": (
        gzip.compress(header(2**8, 2**12, 2**12))[:-4] + struct.pack("<I", 16),
        "expected 4,294,967,312",
    ),
    "gzip checksum": (ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "damaged one .*CRC"),
    "gzip of a web page": (gzip.compress(b"<html></html>"), "found text"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_anything_but_a_whole_idx_file_is_refused_and_explained_before_memory_is_taken(
    path: Path, content: bytes, message: str
) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            read_idx(path, ndim=3)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: expected")


def test_images_in_place_of_labels_are_recognised(path: Path) -> None:
    path.write_bytes(PLAIN)
    with pytest.raises(DataError, match=r"expected IDX labels \(magic 2049\), found images \(magic 2051\)"):
        read_idx(path, ndim=1)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a folder"):
        read_idx(tmp_path, ndim=3)
    with pytest.raises(DataError, match="no such file"):
        read_idx(tmp_path / "none", ndim=3)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file, plain or gzipped, with bytes changed, cut off, or put in."""
    content = bytearray(draw(st.sampled_from([PLAIN, ZIPPED])))
    for position, value in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)):
        content[position % len(content)] = value
    cut = draw(st.integers(0, len(content)))
    kept = bytes(content[: cut if draw(st.booleans()) else len(content)])
    return kept + draw(st.binary(max_size=8))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=damaged(), ndim=st.sampled_from([1, 3]))
def test_damaged_files_give_an_array_or_a_data_error_and_never_take_much_memory(
    path: Path, content: bytes, ndim: int
) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        found = read_idx(path, ndim=ndim)
    except DataError:
        pass  # any other exception fails this test
    else:
        assert found.dtype == np.uint8
        assert found.ndim == ndim
        assert found.size <= 300 * 1032
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**21
