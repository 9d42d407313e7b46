"""What several tests of reports share: runs to report on, and the words of a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.command_helpers import DIGITS, run

QUICK = (*DIGITS, "--epochs", 2, "--quiet")


def write(*words: object) -> int:
    """Run the command that writes a report; its exit code."""
    return run("report", *words)


def digits_run(folder: Path) -> Path:
    """A finished run on the digits, in a folder of this one."""
    path = folder / "digits"
    assert run("train", *QUICK, "--out", path) == 0
    return path


def table_data(path: Path, shape: tuple[int, ...], classes: int = 3, samples: int = 60) -> Path:
    """A data set of one's own, of samples of a shape."""
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % classes
    x = rng.normal(labels.reshape(-1, *[1] * len(shape)), 1, (samples, *shape)).astype(np.float32)
    np.savez(path, x_train=x, y_train=labels, x_test=x[:40], y_test=labels[:40])
    return path


def text_of(page: str) -> str:
    """The words of a page."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))
