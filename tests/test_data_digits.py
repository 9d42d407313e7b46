"""The built-in digits: the same everywhere, and made as DIGITS.md says."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from gpumlp.data import load_digits

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_digits.py"
PACKAGED = resources.files("gpumlp.data").joinpath("digits.npz")


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
        assert (np.diff(data.labels) == 0).mean() < 0.2  # 0.1 by chance, nearly 1 if sorted


def test_the_content_does_not_change_between_versions() -> None:
    assert [data.fingerprint() for data in load_digits()] == [
        "1437x8x8-float32-96cea809",
        "360x8x8-float32-35887e68",
    ]


def test_every_load_gives_arrays_of_its_own() -> None:
    load_digits()[0].images[:] = 0
    assert load_digits()[0].images.any()


def test_the_file_is_made_by_the_script_byte_for_byte(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, the source of the digits, is not installed")
    made = tmp_path / "digits.npz"
    subprocess.run([sys.executable, str(SCRIPT), str(made)], check=True)
    assert made.read_bytes() == PACKAGED.read_bytes()


def test_nothing_of_the_original_is_lost_or_changed() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    original = datasets.load_digits()

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(map(tuple, np.column_stack([images.reshape(len(images), -1), labels]).tolist()))

    train, test = load_digits()
    ours = np.concatenate([train.images, test.images]) * 16, np.concatenate([train.labels, test.labels])
    assert rows(*ours) == rows(original.images, original.target)
