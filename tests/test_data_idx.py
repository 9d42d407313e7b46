"""read_idx: every type and number of dimensions; damaged files are refused before memory is taken."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpumlp.data import DataError
from gpumlp.data.idx import is_idx, read_idx
from tests.data_helpers import IDX_TYPES, idx_bytes

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
        found = read_idx(file)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IMAGES)


@pytest.mark.parametrize("kind", IDX_TYPES)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 2, 3), (2, 3, 2, 1)], ids=str)
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_every_type_and_number_of_dimensions_is_read_in_the_byte_order_of_the_machine(
    path: Path, kind: str, shape: tuple[int, ...], compress
) -> None:
    array = np.random.default_rng(0).normal(scale=50, size=shape).astype("i1").astype(kind)
    path.write_bytes(compress(idx_bytes(array)))
    found = read_idx(path)
    assert found.dtype == np.dtype(kind)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)
    assert is_idx(path) == (compress is bytes)


def test_files_larger_than_one_chunk_are_read_whole(path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 1000, 999), dtype=np.uint8)
    path.write_bytes(gzip.compress(idx_bytes(array), compresslevel=1))
    np.testing.assert_array_equal(read_idx(path, ndims=[3], content="images"), array)


@pytest.mark.parametrize("zipped", [False, True])
def test_peak_memory_is_the_array_and_a_small_buffer(path: Path, zipped: bool) -> None:
    array = np.zeros((20, 1000, 1000), np.uint8)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if zipped else content)
    del content
    tracemalloc.start()
    try:
        read_idx(path, ndims=[3], content="images")
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
    "values cut": (PLAIN[:-1], r"expected 76 bytes from the header's shape \(5, 4, 3\) of uint8, found 75"),
    "trailing byte": (PLAIN + b"x", "expected 76 bytes .* found 77"),
    "empty promise": (header(60_000, 2**31, 28) + b"x", "found 17"),
    "empty but too large": (header(0, 2**32 - 1, 2**32 - 1), "no array can have that shape"),
    "swapped": (header(5, magic=2049) + b"12345", "found uint8 of 1 dimension; were two files swapped"),
    "float32 cut": (
        header(1, 1, 1, magic=0x0D03) + b"xyz",
        r"expected 20 bytes .* \(1, 1, 1\) of float32, found 19",
    ),
    "four dimensions": (header(1, 1, 1, 1, magic=0x0804), "found uint8 of 4 dimensions"),
    "no such type": (header(1, 1, 1, magic=0x0A03), "begins with 00 00 0a 03; this is not an IDX file"),
    "web page": (
        b"<!DOCTYPE html><html>",
        "found text that begins with '<!DOCTYPE html><', perhaps a web page",
    ),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "perhaps a web page or a Git LFS pointer"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47; this is not an IDX file"),
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
def test_an_invalid_idx_file_is_refused_with_the_reason_before_memory_is_allocated(
    path: Path, content: bytes, message: str
) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            read_idx(path, ndims=[3], content="images")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: expected")


@pytest.mark.parametrize(
    ("content", "ndims", "expected"),
    [
        (
            "labels",
            [1, 2],
            "expected IDX labels of 1 to 2 dimensions, found uint8 of 3 dimensions; were two files",
        ),
        ("images", [2], "expected IDX images of 2 dimensions, found uint8 of 3 dimensions"),
    ],
)
def test_images_in_place_of_labels_are_recognised(
    path: Path, content: str, ndims: list[int], expected: str
) -> None:
    path.write_bytes(PLAIN)
    with pytest.raises(DataError, match=expected):
        read_idx(path, ndims=ndims, content=content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        b"\0\0\x01\0" + bytes(60),  # an icon
        b"\0\0\x0a\x03" + bytes(12),  # no such type
        b"\0\0\x08\0" + bytes(60),
        b"\0\0\x08\x05" + bytes(60),
        PLAIN[:-1],
        PLAIN + b"x",
        PLAIN[:6],
        b"\x01" + PLAIN[1:],
    ],
)
def test_a_file_is_idx_only_by_a_whole_magic_number_and_a_size_that_fits(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert not is_idx(path)


def test_arrays_larger_than_the_memory_of_the_machine_are_refused_by_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpumlp.data.reading.host_memory", lambda: 50)
    for content in PLAIN, ZIPPED:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"images.idx: expected to fit in memory, found 76 bytes for the 50"):
            read_idx(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path, found in (
        (tmp_path, "a folder"),
        (tmp_path / "none", "no such file"),
        (os.devnull, "a pipe or a device"),
    ):
        with pytest.raises(DataError, match=f"expected an IDX file, found {found}; check the path"):
            read_idx(path)


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
@given(content=damaged(), ndims=st.sampled_from([[1], [3], [1, 2, 3, 4]]))
def test_damaged_files_give_an_array_or_a_data_error_and_need_little_memory(
    path: Path, content: bytes, ndims: list[int]
) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        found = read_idx(path, ndims=ndims)
    except DataError:
        pass  # any other exception fails this test
    else:
        assert found.ndim in ndims
        assert found.nbytes <= 300 * 1032
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**21
