"""From files to predictions: pictures prepared as the training images were, arrays checked against them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .data import DataError
from .data.npz import is_array_file, read_samples
from .nn import MLP
from .nn.model_file import plain_inputs
from .pictures import read_sample

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Prediction:
    """The result for one file.

    Attributes:
        file: its name, as given.
        probabilities: ``(samples, classes)``; None if there is an error.
        batch: whether the file holds an array of samples, not one picture.
        error: what is wrong with the file, or None.
    """

    file: str
    probabilities: npt.NDArray[Any] | None = None
    batch: bool = False
    error: str | None = None


def predict_files(
    model: MLP,
    files: Sequence[str],
    preparation: str = "auto",
    array: str | None = None,
    pixels: bool | None = None,
) -> list[Prediction]:
    """Predict pictures, all in one batch, and files of arrays; one result per file, in their order.

    Args:
        model: on any device.
        files: paths; ``-`` is standard input.
        preparation: of pictures: ``"mnist"``, ``"digits"``, ``"resize"`` (to the network's size, without cropping
            or inverting), or ``"auto"``: the one that matches the training data.
        array: which array of .npz files; needed if a file has several.
        pixels: what uint8 values in arrays are, see ``MLP.logits``.

    Raises:
        MissingExtraError: a file is a picture, and Pillow is not installed.
    """
    inputs = plain_inputs(model)
    results: dict[int, Prediction] = {}
    pictures: dict[int, npt.NDArray[Any]] = {}
    for index, file in enumerate(files):
        try:
            with _opened(file) as (path, name):
                if is_array_file(path):
                    samples = read_samples(path, name, inputs.shape, array)
                    _check_digits(samples, model, name)
                    probabilities = _probabilities(model, samples, f"{name}: ", pixels)
                    results[index] = Prediction(file, probabilities, batch=True)
                else:
                    pictures[index] = read_sample(path, inputs, preparation, name)
        except DataError as error:
            results[index] = Prediction(file, error=str(error))
        except OSError as error:
            results[index] = Prediction(file, error=f"{file}: {error.strerror or error}")
    if pictures:
        rows = _probabilities(model, np.stack(list(pictures.values())))
        for index, row in zip(pictures, rows, strict=True):
            results[index] = Prediction(files[index], row[np.newaxis])
    return [results[index] for index in range(len(files))]


def _probabilities(
    model: MLP, samples: npt.NDArray[Any], prefix: str = "", pixels: bool | None = None
) -> npt.NDArray[Any]:
    try:
        probabilities: npt.NDArray[Any] = np.asarray(model.predict_proba(samples, pixels=pixels))
    except ValueError as error:  # such as samples of another shape or scale than in training
        raise DataError(f"{prefix}{error}") from error
    if not np.isfinite(probabilities).all():
        raise DataError(
            f"{prefix}the network's outputs are not finite: its training diverged, or the values are too large"
        )
    return probabilities


def _check_digits(samples: npt.NDArray[Any], model: MLP, name: str) -> None:
    """Refuse the levels of the built-in digits, 0 to 16, which are divided by 16 in training."""
    digits = model.inputs is not None and model.inputs.data == "digits"
    if digits and samples.dtype != np.uint8 and float(samples.max()) > 1:
        raise DataError(
            f"{name}: expected values from 0 to 1, as the network was trained on, got {samples.dtype} up to "
            f"{float(samples.max()):g}; divide them by 16"
        )


@contextmanager
def _opened(file: str) -> Iterator[tuple[Path, str]]:
    """A file's path and its name in messages; standard input is copied into a temporary file."""
    if file != STANDARD_INPUT:
        yield Path(file).expanduser(), file
        return
    content = sys.stdin.buffer.read()
    if not content:
        raise DataError("standard input: expected a picture or an array, found nothing")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input"
        path.write_bytes(content)
        yield path, "standard input"
