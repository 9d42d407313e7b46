"""load_dataset: the name decides, and nothing is replaced without saying so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpumlp.data import DataError, load_dataset, mnist
from gpumlp.data.errors import DataNotAvailable
from tests.data_helpers import NAMES, TRAIN_IMAGES, serve_folder, small_mnist, write_files


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
    monkeypatch.setattr("gpumlp.data.sources.load_mnist", lambda data_dir: real)
    assert load_dataset(name, folder) == (*real, None)


@pytest.mark.parametrize("name", ["auto", "mnist"])
@pytest.mark.parametrize("by_environment", [True, False])
def test_files_that_are_not_mnists_own_are_said_not_to_be(
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
    assert f"{server.host}: HTTP 404 for {TRAIN_IMAGES}" in notice
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
    with pytest.raises(DataError, match="expected MNIST's files"):
        load_dataset("auto", tmp_path)


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(DataError, match="'cifar'; choose auto, mnist, digits or a path that ends in"):
        load_dataset("cifar")


@pytest.mark.parametrize("name", ["digits", "own.npz"])
def test_data_dir_is_refused_where_it_has_no_meaning(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"no meaning for the data set {name}"):
        load_dataset(name, tmp_path)
