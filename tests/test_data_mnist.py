"""MNIST and its relatives: search, recognition and messages."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from gpumlp.data import DATA_SETS, DataError, load_dataset, load_mnist, mnist, mnist_folders
from gpumlp.data.download import DataNotAvailable
from tests.command_helpers import run
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
            size=len(gzip.compress(idx_bytes(ARRAYS[file.name]), mtime=0)),
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
    contents = [(place / file.name).read_bytes() for file in mnist.FILES]
    assert [(len(content), sha256(content)) for content in contents] == [
        (file.size, file.zipped_sha256) for file in mnist.FILES
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
    assert f"{server.host}: HTTP 404 ({TRAIN_IMAGES})" in message
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
        (broken(test_labels=ARRAYS[TEST_LABELS] + 1), "10", [TEST_LABELS]),
        (broken(train_labels=ARRAYS[TRAIN_LABELS] * 0 + 7), "two classes or more, found only 7", [TRAIN_LABELS]),
        (broken(test_images=ARRAYS[TEST_IMAGES].astype("f4")), "found float32", [TEST_IMAGES, TRAIN_IMAGES]),
        (broken(train_labels=np.eye(10, dtype=np.uint8).repeat(3, 0)), "found (30, 10)", [TRAIN_LABELS]),
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


# -- MNIST's relatives


LETTERS = small_mnist(train=78, test=52)
LETTERS[TRAIN_LABELS] = (np.arange(78) % 26 + 1).astype(np.uint8)
LETTERS[TEST_LABELS] = (np.arange(52) % 26 + 1).astype(np.uint8)
EMNIST = [name for name in DATA_SETS if name.startswith("emnist-")]


def named(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under the file names of a relative, in place of MNIST's."""
    return {mnist.FILE_NAMES[name][NAMES.index(file)]: array for file, array in arrays.items()}


def qmnist() -> dict[str, np.ndarray]:
    fields = {name: np.full((len(ARRAYS[name]), 8), 77, np.int32) for name in (TRAIN_LABELS, TEST_LABELS)}
    for name, values in fields.items():
        values[:, 0] = ARRAYS[name]
    return named("qmnist", ARRAYS | fields)


def test_the_first_field_of_qmnist_is_the_label(tmp_path: Path) -> None:
    train, test = load_mnist(write_files(tmp_path, qmnist()))
    assert_loaded(train, test)
    assert train.name == test.name == "qmnist"


@pytest.mark.parametrize("kind", ["i2", "i4", "f4"])
def test_labels_are_classes_of_any_type(tmp_path: Path, kind: str) -> None:
    wide = {name: ARRAYS[name].astype(kind) for name in (TRAIN_LABELS, TEST_LABELS)}
    assert_loaded(*load_mnist(write_files(tmp_path, ARRAYS | wide)))


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(16,), (4, 4), (2, 4, 2)], ids=str)
def test_floats_of_any_shape_are_used_as_they_are(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    images = {name: (ARRAYS[name] / 255).astype(kind).reshape(-1, *shape) for name in (TRAIN_IMAGES, TEST_IMAGES)}
    for data, name in zip(load_mnist(write_files(tmp_path, ARRAYS | images)), images, strict=True):
        np.testing.assert_array_equal(data.images, images[name])
        assert data.images.dtype == kind
        assert data.name == "mnist-like"


@pytest.mark.parametrize("name", EMNIST)
def test_emnist_is_found_by_its_file_names_and_turned_upright(tmp_path: Path, name: str) -> None:
    folder = write_files(tmp_path, named(name, LETTERS))
    for data, part in zip(load_mnist(folder), (TRAIN_IMAGES, TEST_IMAGES), strict=True):
        assert data.name == name
        np.testing.assert_array_equal(data.images, LETTERS[part].transpose(0, 2, 1))


def test_the_classes_of_a_relative_are_those_of_its_training_labels(tmp_path: Path) -> None:
    arrays = dict(LETTERS)
    arrays[TEST_IMAGES], arrays[TEST_LABELS] = arrays[TEST_IMAGES][:3], arrays[TEST_LABELS][:3]
    train, test = load_mnist(write_files(tmp_path, arrays))
    assert train.classes == test.classes >= 26


@pytest.mark.parametrize("ask", ["auto", "mnist", "emnist-letters"])
def test_the_user_is_told_that_images_were_turned_upright(tmp_path: Path, ask: str) -> None:
    folder = write_files(tmp_path, named("emnist-letters", LETTERS))
    notice = load_dataset(ask, folder)[2]
    assert notice is not None
    assert "they were turned upright" in notice
    assert ("are emnist-letters: " in notice) == (ask != "emnist-letters")


@pytest.mark.parametrize("side", [4, 28])
def test_files_of_emnist_under_other_names_are_noticed_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.setattr(mnist, "_EMNIST_IMAGES", (50,))
    notice = load_dataset("mnist", write_files(tmp_path, small_mnist(30, 20, side)))[2]
    assert ("stored transposed" in notice) == (side == 28)


def test_several_data_sets_in_a_folder_are_told_apart_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, named("emnist-letters", LETTERS))
    write_files(tmp_path, qmnist())
    with pytest.raises(DataError, match=r"found those of qmnist, emnist-letters; choose one with --dataset NAME"):
        load_mnist(tmp_path)
    assert load_dataset("emnist-letters", tmp_path)[0].name == "emnist-letters"
    train, test, notice = load_dataset("qmnist", tmp_path)
    assert_loaded(train, test)
    assert notice is None
    monkeypatch.setenv("GPUMLP_DATA_DIR", str(tmp_path))
    assert load_dataset("qmnist")[0].name == "qmnist"


def test_mnist_comes_before_its_relatives_in_one_folder(folder: Path) -> None:
    write_files(folder, qmnist())
    assert load_mnist(folder)[0].name == "mnist-like"


def test_a_relative_in_the_environment_is_never_taken_for_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUMLP_DATA_DIR", str(write_files(tmp_path, qmnist())))
    with pytest.raises(DataNotAvailable, match="does not hold MNIST's files"):
        load_mnist()


def test_a_relative_that_is_not_on_this_machine_is_an_error_that_names_its_files() -> None:
    with pytest.raises(DataError, match=r"put qmnist-train-images-idx3-ubyte.gz, .* with --data-dir DIR"):
        load_dataset("qmnist")


def test_an_unknown_name_is_answered_with_those_known_and_the_way_to_fashion_mnist() -> None:
    with pytest.raises(
        DataError, match=r"choose auto, mnist, .*qmnist, .*Fashion-MNIST .* choose mnist, and name"
    ):
        load_dataset("fashion-mnist")


def test_a_folder_with_data_in_another_format_is_answered_with_the_way_to_npz(tmp_path: Path) -> None:
    (tmp_path / "emnist-letters.mat").write_bytes(b"MATLAB")
    with pytest.raises(DataError, match=r"none of them.* FILE.npz, with x_train, y_train, x_test and y_test"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("how", ["content", "files"])
def test_fashion_mnist_and_kmnist_are_recognised_by_their_checksums(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "content":
        name, sums = "fashion-mnist", tuple(sha256(idx_bytes(ARRAYS[file])) for file in NAMES)
        monkeypatch.setattr(mnist, "_FASHION_SHA256", sums)
    else:
        name, sums = "kmnist", tuple(hashlib.md5((folder / file).read_bytes()).hexdigest() for file in NAMES)
        monkeypatch.setattr(mnist, "_KMNIST_MD5", sums)
    train, _, notice = load_dataset("mnist", folder)
    assert train.name == name
    assert notice == (f"The files in {folder} are {name}: results cannot be compared with those for MNIST.")


@pytest.mark.parametrize("name", ["~nosuchuser/data", "not a folder"])
def test_a_folder_of_the_environment_that_cannot_be_used_does_not_stop_info(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GPUMLP_DATA_DIR", name)
    assert name.split("/")[0] in dict(mnist_folders())["GPUMLP_DATA_DIR"]


def test_a_folder_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match="expected a readable folder, found Permission denied"):
        load_mnist(folder)
    assert "Permission denied" in dict(mnist_folders())["data cache"]


def test_a_relative_is_trained_evaluated_and_predicted_from_a_folder_of_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, net = tmp_path / "data", tmp_path / "net"
    write_files(folder, named("emnist-letters", LETTERS))
    write_files(folder, qmnist())
    words = ("--device", "cpu", "--epochs", 1, "--batch-size", 8, "--out", net)
    assert run("train", "--data-dir", folder, *words) == 2
    assert run("train", "--data-dir", folder, "--dataset", "emnist-letters", *words) == 0
    assert "they were turned upright" in capsys.readouterr().out
    assert run("evaluate", net) == 0
    assert "emnist-letters test accuracy" in capsys.readouterr().out
    assert run("predict", net, folder / "emnist-letters-test-images-idx3-ubyte.gz") == 0
