"""MNIST: search, verification and messages; IDX files; downloads from mirrors."""

from __future__ import annotations

import dataclasses
import gzip
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpumlp.data import DataError, load_mnist, mnist
from gpumlp.data.mnist import DataNotAvailable, Mirrors, _RichBar, fetch, read_idx
from tests.data_helpers import (
    NAMES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Mirror,
    idx_bytes,
    mirror,
    serve_folder,
    sha256,
    small_mnist,
    write_files,
)

ARRAYS = small_mnist()
REAL_DATA_DIR = os.environ.get("GPUMLP_DATA_DIR")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An isolated environment: no data folder, an empty cache, no mirrors."""
    folder = tmp_path / "cache" / "mnist"
    monkeypatch.delenv("GPUMLP_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(mnist, "_cache_dir", lambda: folder)
    monkeypatch.setattr(mnist, "MIRRORS", ())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "data", ARRAYS)


@pytest.fixture
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use ARRAYS as the published MNIST."""
    files = [
        dataclasses.replace(
            file,
            zipped_sha256=sha256(gzip.compress(idx_bytes(ARRAYS[file.name]), mtime=0)),
            sha256=sha256(idx_bytes(ARRAYS[file.name])),
        )
        for file in mnist.FILES
    ]
    monkeypatch.setattr(mnist, "FILES", tuple(files))


def assert_loaded(train: object, test: object) -> None:
    for dataset, images, labels in ((train, TRAIN_IMAGES, TRAIN_LABELS), (test, TEST_IMAGES, TEST_LABELS)):
        np.testing.assert_array_equal(dataset.images, ARRAYS[images])
        np.testing.assert_array_equal(dataset.labels, ARRAYS[labels])
        assert dataset.images.dtype == np.uint8
        assert dataset.classes == 10


@pytest.mark.skipif(REAL_DATA_DIR is None, reason="GPUMLP_DATA_DIR is not set, so there is no MNIST to read")
def test_mnist_itself_is_recognised() -> None:
    train, test = load_mnist(REAL_DATA_DIR)
    assert repr(train) == "Dataset('mnist', 60,000 samples of 28 x 28 uint8, 10 classes)"
    assert repr(test) == "Dataset('mnist', 10,000 samples of 28 x 28 uint8, 10 classes)"
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.fingerprint() == "60000x28x28-uint8-60637407"


@pytest.mark.skipif(REAL_DATA_DIR is None, reason="GPUMLP_DATA_DIR is not set, so there is no MNIST to read")
def test_mnist_on_the_mirrors_is_the_mnist_on_disk() -> None:
    place = Path(REAL_DATA_DIR)
    place = place if (place / TRAIN_IMAGES).exists() else place / "mnist"
    if not (place / TRAIN_IMAGES).exists():
        pytest.skip("the files in GPUMLP_DATA_DIR are not gzipped")
    assert [sha256((place / file.name).read_bytes()) for file in mnist.FILES] == [
        file.zipped_sha256 for file in mnist.FILES
    ]


@pytest.mark.parametrize("sub", ["", "mnist"])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.removesuffix(".gz"),
        lambda name: name.replace("-idx", ".idx"),
        lambda name: name.removesuffix(".gz").replace("-idx", ".idx"),
    ],
    ids=["gz", "plain", "dotted gz", "dotted"],
)
def test_files_are_found_under_all_their_names(tmp_path: Path, sub: str, rename) -> None:
    write_files(tmp_path / "d" / sub, {rename(name): array for name, array in ARRAYS.items()})
    assert_loaded(*load_mnist(tmp_path / "d"))


def test_a_folder_with_the_name_of_a_file_is_passed_over(folder: Path) -> None:
    (folder / TRAIN_IMAGES).rename(folder / "train-images.idx3-ubyte.gz")
    (folder / TRAIN_IMAGES).mkdir()  # as some archives unpack
    assert_loaded(*load_mnist(folder))


@pytest.mark.usefixtures("_published")
def test_published_files_are_named_mnist(folder: Path) -> None:
    assert [data.name for data in load_mnist(folder)] == ["mnist", "mnist"]


@pytest.mark.usefixtures("_published")
@pytest.mark.parametrize("name", NAMES)
def test_one_changed_value_in_one_file_makes_it_mnist_like(tmp_path: Path, name: str) -> None:
    changed = dict(ARRAYS)
    changed[name] = changed[name].copy()
    changed[name].flat[0] ^= 1
    train, test = load_mnist(write_files(tmp_path / "changed", changed))
    assert train.name == test.name == "mnist-like"


def test_data_dir_comes_before_the_environment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUMLP_DATA_DIR", str(write_files(tmp_path / "other", small_mnist(seed=1))))
    assert_loaded(*load_mnist(folder))


@pytest.mark.usefixtures("_published")
def test_the_environment_comes_before_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(cache, ARRAYS)
    assert load_mnist()[0].name == "mnist"
    monkeypatch.setenv("GPUMLP_DATA_DIR", str(write_files(tmp_path / "other", small_mnist(seed=1))))
    assert load_mnist()[0].name == "mnist-like"


@pytest.mark.usefixtures("_published")
def test_missing_files_are_downloaded_into_the_cache_once(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_folder(folder) as server:
        monkeypatch.setattr(mnist, "MIRRORS", (server.address,))
        assert_loaded(*load_mnist())
        assert_loaded(*load_mnist())
    assert server.downloads() == list(NAMES)
    assert sorted(file.name for file in cache.iterdir()) == sorted(NAMES)
    assert load_mnist(download=False)[0].name == "mnist"


@pytest.mark.usefixtures("_published")
def test_only_the_damaged_file_in_the_cache_is_downloaded_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(cache, ARRAYS)
    (cache / TEST_LABELS).write_bytes(b"damaged")
    with pytest.raises(DataNotAvailable, match=f"{TEST_LABELS} is damaged"):
        load_mnist()
    with serve_folder(folder) as server:
        monkeypatch.setattr(mnist, "MIRRORS", (server.address,))
        assert_loaded(*load_mnist())
    assert server.downloads() == [TEST_LABELS]


def test_download_false_uses_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_folder(folder) as server:
        monkeypatch.setattr(mnist, "MIRRORS", (server.address,))
        with pytest.raises(DataNotAvailable, match="downloading is switched off"):
            load_mnist(download=False)
    assert server.requests == []


def test_the_error_names_the_places_searched_and_how_to_get_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUMLP_DATA_DIR", str(tmp_path / "nothing here"))
    with serve_folder(tmp_path) as server:
        monkeypatch.setattr(mnist, "MIRRORS", (server.address,))
        with pytest.raises(DataNotAvailable) as caught:
            load_mnist()
    message = str(caught.value)
    assert f"{server.host}: HTTP 404 for {TRAIN_IMAGES}" in message
    assert f"GPUMLP_DATA_DIR is set to {tmp_path / 'nothing here'}" in message
    assert all(name in message for name in (*NAMES, "--data-dir"))


@pytest.mark.parametrize("exists", [True, False])
def test_a_data_dir_without_the_files_is_an_error_and_no_reason_to_look_elsewhere(
    tmp_path: Path, cache: Path, exists: bool
) -> None:
    write_files(cache, ARRAYS)
    given = tmp_path / "given"
    if exists:
        given.mkdir()
    with pytest.raises(DataError, match="none of them" if exists else "no such folder") as caught:
        load_mnist(given)
    assert not isinstance(caught.value, DataNotAvailable)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_folder_with_some_of_the_files_is_an_error_that_names_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    (folder / TRAIN_LABELS).unlink()
    (folder / TEST_IMAGES).unlink()
    monkeypatch.setenv("GPUMLP_DATA_DIR", str(folder))
    with pytest.raises(DataError, match=f"found 2; add {TRAIN_LABELS}, {TEST_IMAGES}") as caught:
        load_mnist(None if by_environment else folder)
    assert not isinstance(caught.value, DataNotAvailable)


def broken(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return ARRAYS | {globals()[name.upper()]: array for name, array in changes.items()}


@pytest.mark.parametrize(
    ("arrays", "message", "culprits"),
    [
        (broken(train_labels=ARRAYS[TRAIN_LABELS][:-1]), "expected 30 labels", [TRAIN_LABELS, TRAIN_IMAGES]),
        (broken(test_labels=ARRAYS[TEST_LABELS][:7]), "found 7", [TEST_LABELS, TEST_IMAGES]),
        (broken(test_images=ARRAYS[TEST_IMAGES][:, :3]), "found (3, 4)", [TEST_IMAGES, TRAIN_IMAGES]),
        (broken(train_labels=ARRAYS[TRAIN_LABELS] + 1), "found 10 at position 9", [TRAIN_LABELS]),
        (
            broken(train_images=ARRAYS[TRAIN_IMAGES][:0], train_labels=ARRAYS[TRAIN_LABELS][:0]),
            "at least one sample",
            [TRAIN_IMAGES],
        ),
        (broken(train_images=ARRAYS[TRAIN_LABELS]), "were two files swapped", [TRAIN_IMAGES]),
    ],
)
def test_files_that_do_not_belong_together_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str, culprits: list[str]
) -> None:
    place = write_files(tmp_path / "broken", arrays)
    with pytest.raises(DataError) as caught:
        load_mnist(place)
    assert message in str(caught.value)
    assert all(str(place / name) in str(caught.value) for name in culprits)


# -- IDX, the file format --------------------------------------------------------------------------------------


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
    "empty but too large": (header(0, 2**32 - 1, 2**32 - 1), "no array can have that shape"),
    "swapped": (header(5, magic=2049) + b"12345", r"found labels \(magic 2049\); were two files swapped"),
    "float32": (header(1, 1, 1, magic=0x0D03), r"IDX float32 of 3 dimensions .* convert it to uint8"),
    "int32 labels": (header(1, magic=0x0C01), "IDX int32 of 1 dimensions"),
    "four dimensions": (header(1, 1, 1, 1, magic=0x0804), "IDX uint8 of 4 dimensions"),
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
def test_damaged_files_give_an_array_or_a_data_error_and_need_little_memory(
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


# -- Downloads -------------------------------------------------------------------------------------------------


NAME = "values.gz"
CONTENT = bytes(range(256)) * 1000
SHA256 = sha256(CONTENT)
TIMEOUT = 20.0  # not reached
SHORT = 0.5  # the wait for a silent server


@pytest.fixture
def good() -> Iterator[Mirror]:
    with mirror(lambda _: (200, CONTENT)) as server:
        yield server


@pytest.fixture
def refusing() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return f"http://127.0.0.1:{unused.getsockname()[1]}/"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def test_a_file_is_downloaded_once(good: Mirror, cache: Path) -> None:
    mirrors = Mirrors([good.address], TIMEOUT)
    first, second = (fetch(NAME, SHA256, mirrors, cache) for _ in range(2))
    assert first == second == cache / NAME
    assert first.read_bytes() == CONTENT
    assert good.downloads() == [NAME]
    assert files_in(cache) == [NAME]


def test_an_intact_file_needs_no_network(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT)
    assert fetch(NAME, SHA256, Mirrors([]), cache).read_bytes() == CONTENT


def test_a_damaged_file_is_downloaded_again(good: Mirror, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT[:-1])
    assert fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), cache).read_bytes() == CONTENT


def test_a_damaged_file_is_reported_where_it_cannot_be_downloaded(cache: Path, refusing: str) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(b"damaged")
    with pytest.raises(DataNotAvailable, match=rf"{NAME} is damaged .* connection refused"):
        fetch(NAME, SHA256, Mirrors([refusing], TIMEOUT), cache)


def test_the_second_mirror_is_taken_where_the_first_has_no_such_file(
    good: Mirror, cache: Path, tmp_path: Path
) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([empty.address, good.address], TIMEOUT)
        assert fetch(NAME, SHA256, mirrors, cache).read_bytes() == CONTENT
    assert mirrors.failures == [f"{empty.host}: HTTP 404 for {NAME}"]


def test_a_mirror_that_failed_is_not_asked_for_later_files(good: Mirror, cache: Path, tmp_path: Path) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([empty.address, good.address], TIMEOUT)
        for name in ("one", "two", "three"):
            fetch(name, SHA256, mirrors, cache)
        assert empty.downloads() == ["one"]
    assert good.downloads() == ["one", "two", "three"]
    assert good.requests.count("HEAD one") == 1
    assert not any(line.startswith("HEAD t") for line in good.requests)  # asked once whether it is there


def test_a_file_with_a_wrong_checksum_is_not_kept(cache: Path) -> None:
    with (
        mirror(lambda _: (200, b"another file")) as wrong,
        pytest.raises(DataNotAvailable, match=rf"{wrong.host}: wrong SHA-256 for {NAME}"),
    ):
        fetch(NAME, SHA256, Mirrors([wrong.address], TIMEOUT), cache)
    assert files_in(cache) == []


def test_a_transfer_that_breaks_off_leaves_no_file(cache: Path) -> None:
    with (
        mirror(lambda _: (200, CONTENT), cut_to=100_000) as broken,
        pytest.raises(DataNotAvailable, match=rf"{broken.host}: the transfer broke off for {NAME}"),
    ):
        fetch(NAME, SHA256, Mirrors([broken.address], TIMEOUT), cache)
    assert files_in(cache) == []


def test_every_mirror_is_listed_with_its_reason(cache: Path, refusing: str, silent: str, tmp_path: Path) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([refusing, silent, empty.address], SHORT)
        with pytest.raises(DataNotAvailable) as caught:
            fetch(NAME, SHA256, mirrors, cache)
    message = str(caught.value)
    assert f"{NAME} is not in {cache}" in message
    for address, reason in (
        (refusing, "connection refused"),
        (silent, f"no answer within {SHORT} s"),
        (empty.address, f"HTTP 404 for {NAME}"),
    ):
        assert f"{address.removeprefix('http://').rstrip('/')}: {reason}" in message
    assert mirrors.addresses == []


def test_a_silent_server_takes_no_longer_than_the_timeout(cache: Path, silent: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer within"):
        fetch(NAME, SHA256, Mirrors([silent], SHORT), cache)
    assert time.monotonic() - start < SHORT + 1.5


def test_a_hanging_name_lookup_takes_no_longer_than_the_timeout(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(20)
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    mirrors = Mirrors(["http://one.invalid/", "http://two.invalid/"], SHORT)
    try:
        with pytest.raises(DataError, match=r"one\.invalid: no answer .*two\.invalid: no answer"):
            fetch(NAME, SHA256, mirrors, cache)
        assert time.monotonic() - start < 2 * SHORT + 1.5
    finally:
        released.set()


def test_an_unknown_host_is_reported_as_such(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DataError, match=r"one\.invalid: host name not found"):
        fetch(NAME, SHA256, Mirrors(["http://one.invalid/"], TIMEOUT), cache)


def test_a_cache_folder_that_cannot_be_made_is_named(good: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataNotAvailable, match="file/cache cannot be written to"):
        fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), tmp_path / "file" / "cache")


def test_two_processes_can_fetch_into_one_cache_at_once(cache: Path) -> None:
    both_asked = threading.Barrier(2, timeout=20)
    gets = []

    def answer(name: str) -> tuple[int, bytes]:
        if len(gets) < 4:  # a HEAD and a GET of each: held until both processes are there
            gets.append(name)
            both_asked.wait()
        return 200, CONTENT

    code = (
        "import sys; from pathlib import Path; from gpumlp.data.mnist import Mirrors, fetch;"
        "print(fetch(*sys.argv[1:3], Mirrors([sys.argv[3]], 20), Path(sys.argv[4])).stat().st_size)"
    )
    with mirror(answer) as server:
        command = [sys.executable, "-c", code, NAME, SHA256, server.address, str(cache)]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
    assert outputs == [(f"{len(CONTENT)}\n", "")] * 2
    assert server.downloads() == [NAME, NAME]
    assert files_in(cache) == [NAME]
    assert (cache / NAME).read_bytes() == CONTENT


def test_pooch_is_silent_and_keeps_its_log_level(
    good: Mirror, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = pooch.get_logger()
    level = logger.level
    fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), cache)
    assert capfd.readouterr() == ("", "")
    assert logger.level == level != logging.CRITICAL


def test_the_bar_of_a_terminal_counts_to_the_end(
    good: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bars = []
    build = _RichBar.__init__
    monkeypatch.setattr(_RichBar, "__init__", lambda bar, *args: (bars.append(bar), build(bar, *args))[1])
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat any output as a terminal
    fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), cache)
    (bar,) = bars
    assert bar.total == len(CONTENT)
    assert bar._progress.tasks[0].completed == len(CONTENT)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert NAME in captured.err
