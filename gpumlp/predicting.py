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
from .files import PathError, user_path
from .nn import MLP, Inputs
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
    model: MLP, files: Sequence[str], preparation: str = "auto", array: str | None = None
) -> list[Prediction]:
    """Predict pictures, all in one batch, and files of arrays; one result per file, in their order.

    Args:
        model: on any device.
        files: paths; ``-`` is standard input.
        preparation: of pictures: ``"mnist"``, ``"digits"``, ``"resize"`` (to the network's size, without cropping
            or inverting), or ``"auto"``: the one that matches the training data.
        array: which array of .npz files; needed if a file has several.

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
                    _check_samples(samples, inputs, model, name)
                    results[index] = Prediction(file, _probabilities(model, samples, f"{name}: "), batch=True)
                else:
                    pictures[index] = read_sample(path, inputs, preparation, name)
        except (DataError, PathError) as error:
            results[index] = Prediction(file, error=str(error))
        except OSError as error:
            results[index] = Prediction(file, error=f"{file}: {error.strerror or error}")
    if pictures:
        rows = _probabilities(model, np.stack(list(pictures.values())))
        for index, row in zip(pictures, rows, strict=True):
            results[index] = Prediction(files[index], row[np.newaxis])
    return [results[index] for index in range(len(files))]


def _probabilities(model: MLP, samples: npt.NDArray[Any], prefix: str = "") -> npt.NDArray[Any]:
    try:
        probabilities: npt.NDArray[Any] = np.asarray(model.predict_proba(samples))
    except ValueError as error:  # such as a value too large for the network's dtype
        raise DataError(f"{prefix}{error}") from error
    if not np.isfinite(probabilities).all():
        raise DataError(
            f"{prefix}the network's outputs are not finite: its training diverged, or the values are too large"
        )
    return probabilities


def _check_samples(samples: npt.NDArray[Any], inputs: Inputs, model: MLP, name: str) -> None:
    """Refuse samples of another size than the network's, or with a scale that cannot be that of its training."""
    features = int(np.prod(samples.shape[1:]))
    if features != model.sizes[0]:
        raise DataError(
            f"{name}: expected {model.sizes[0]} values per sample ({' x '.join(map(str, inputs.shape))}), "
            f"got {features} (shape {samples.shape})"
        )
    if model.inputs is None:
        return
    if samples.dtype == np.uint8 and not inputs.pixels:
        raise DataError(
            f"{name}: expected values as the network was trained on, {inputs.dtype}, got uint8, which is divided "
            "by 255; convert them to float32 with the scale of the training data"
        )
    if samples.dtype != np.uint8 and (inputs.pixels or inputs.data == "digits") and float(samples.max()) > 1:
        raise DataError(
            f"{name}: expected {'uint8, or ' if inputs.pixels else ''}values from 0 to 1, as the network was "
            f"trained on, got {samples.dtype} up to {float(samples.max()):g}; "
            f"divide them by {255 if inputs.pixels else 16}"
        )


@contextmanager
def _opened(file: str) -> Iterator[tuple[Path, str]]:
    """A file's path and its name in messages; standard input is copied into a temporary file."""
    if file != STANDARD_INPUT:
        yield user_path(file), file
        return
    if sys.stdin is None or sys.stdin.closed:
        raise DataError("standard input: expected a picture or an array, but it is closed")
    content = sys.stdin.buffer.read()
    if not content:
        raise DataError("standard input: expected a picture or an array, found nothing")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input"
        path.write_bytes(content)
        yield path, "standard input"
