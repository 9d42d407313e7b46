"""Make gpumlp/data/digits.npz from scikit-learn's copy of the UCI digits; the same bytes on every run.

python scripts/make_digits.py [FILE]
"""

from __future__ import annotations

import io
import random
import sys
import zipfile
from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parents[1] / "gpumlp" / "data" / "digits.npz"
SEED = 1998
TEST_EVERY = 5


def main(target: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = digits.images.astype(np.uint8)
    if not np.array_equal(levels, digits.images):
        raise ValueError("expected the digits of scikit-learn to be whole numbers; this copy has other values")
    labels = digits.target.astype(np.uint8)

    # random.random() gives the same numbers in every version of Python; NumPy does not guarantee this.
    source = random.Random(SEED)
    keys = np.array([source.random() for _ in labels])
    # Every fifth sample in order of class, so that all classes are equally represented in the test set.
    by_class = np.lexsort((keys, labels))
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::TEST_EVERY]] = True

    shuffled = np.argsort(keys, kind="stable")
    arrays = {}
    for part, chosen in (("train", ~is_test), ("test", is_test)):
        order = shuffled[chosen[shuffled]]
        arrays[f"x_{part}"] = levels[order]
        arrays[f"y_{part}"] = labels[order]
    write_npz(target, arrays)


def write_npz(target: Path, arrays: dict[str, np.ndarray]) -> None:
    """Like numpy.savez, but independent of the machine: no date, operating system or zlib version."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980-01-01
            entry.create_system = 3
            archive.writestr(entry, content.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]).expanduser() if len(sys.argv) > 1 else TARGET)
