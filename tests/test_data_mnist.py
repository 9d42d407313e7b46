"""load_mnist: found where it should be, proved to be MNIST, explained when not."""

from __future__ import annotations

import dataclasses
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from gpumlp.data import DataError, load_mnist, mnist
from gpumlp.data.errors import DataNotAvailable
from tests.data_helpers import (
    NAMES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    idx_bytes,
    serve_folder,
    sha256,
    small_mnist,
    write_files,
)

ARRAYS = small_mnist()
REAL_DATA_DIR = os.environ.get("GPUMLP_DATA_DIR")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the machine's own: no data folder, an empty cache, no mirrors."""
    folder = tmp_path / "cache"
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
    """Let ARRAYS be what was published as MNIST."""
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
def test_what_is_not_on_disk_is_downloaded_into_the_cache_once(
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


def test_download_false_asks_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_folder(folder) as server:
        monkeypatch.setattr(mnist, "MIRRORS", (server.address,))
        with pytest.raises(DataNotAvailable, match="downloading is switched off"):
            load_mnist(download=False)
    assert server.requests == []


def test_the_error_says_where_was_looked_and_how_to_get_mnist(
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
