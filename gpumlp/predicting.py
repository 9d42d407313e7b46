"""From files to predictions: pictures prepared as the training's samples were, arrays checked against them."""

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
from .data.photographs import read_photograph
from .data.preparation import PREPARATIONS, as_resized
from .data.samples import is_array_file, read_samples
from .nn.model_file import plain_inputs
from .nn.network import MLP, Inputs

STANDARD_INPUT = "-"
CHOICES = ("auto", *PREPARATIONS, "resize")
_IMAGE_SHAPES = {"mnist": (28, 28), "digits": (8, 8)}


@dataclass(frozen=True)
class Prediction:
    """What came of one file.

    Attributes:
        file: its name, as given.
        probabilities: ``(samples, classes)``; None where there is an error.
        batch: does it hold an array of samples, and not one picture?
        error: what is wrong with it, or None.
    """

    file: str
    probabilities: npt.NDArray[Any] | None = None
    batch: bool = False
    error: str | None = None


def predict_files(
    model: MLP, files: Sequence[str], preparation: str = "auto", array: str | None = None
) -> list[Prediction]:
    """Predict pictures, all of them in one batch, and files of arrays; one result for each file, in their order.

    Args:
        model: on any device.
        files: paths; ``-`` is the standard input.
        preparation: of pictures: ``"mnist"``, ``"digits"``, ``"resize"`` (to the size, and nothing else), or
            ``"auto"``, what the network was trained on.
        array: which array of .npz files.
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
                    pictures[index] = _picture(path, name, inputs, preparation)
        except DataError as error:
            results[index] = Prediction(file, error=str(error))
        except OSError as error:
            results[index] = Prediction(file, error=f"{file}: {error.strerror or error}")
    if pictures:
        rows = _probabilities(model, np.stack(list(pictures.values())))
        results |= {
            index: Prediction(files[index], row[np.newaxis]) for index, row in zip(pictures, rows, strict=True)
        }
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


def _picture(path: Path, name: str, inputs: Inputs, preparation: str) -> npt.NDArray[Any]:
    """A picture as one sample."""
    chosen = choose_preparation(inputs, preparation, name)
    picture = read_photograph(path, name, colour=chosen == "resize" and inputs.shape[2:] == (3,))
    if chosen == "resize":
        return as_resized(picture, inputs.shape)
    try:
        return PREPARATIONS[chosen](picture)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def choose_preparation(inputs: Inputs, preparation: str = "auto", name: str = "pictures") -> str:
    """How pictures become samples of a network.

    Raises:
        DataError: samples are no images, or of a scale that nobody knows.
    """
    shape = " x ".join(map(str, inputs.shape))
    if preparation == "auto":
        preparation = {"mnist": "mnist", "mnist-like": "mnist", "digits": "digits"}.get(inputs.data, "resize")
    if preparation == "resize":
        if len(inputs.shape) not in (2, 3) or inputs.shape[2:] not in ((), (1,), (3,)):
            raise DataError(
                f"{name}: expected samples of {shape} values in a .npy or .npz file, as the network was trained "
                "on; it does not take pictures"
            )
        if not inputs.pixels:
            raise DataError(
                f"{name}: the network was trained on images of {inputs.dtype} in a scale of their own; prepare "
                "pictures as those were, and give them as a .npy file"
            )
    elif inputs.shape not in (_IMAGE_SHAPES[preparation], (int(np.prod(_IMAGE_SHAPES[preparation])),)):
        raise DataError(f"{name}: the preparation {preparation} does not suit a network for samples of {shape}")
    return preparation


def _check_samples(samples: npt.NDArray[Any], inputs: Inputs, model: MLP, name: str) -> None:
    """Refuse samples that are not of the network's size, or evidently not in the scale of its training."""
    features = int(np.prod(samples.shape[1:]))
    if features != model.sizes[0]:
        raise DataError(
            f"{name}: expected {model.sizes[0]} values a sample ({' x '.join(map(str, inputs.shape))}), "
            f"got {features} (shape {samples.shape})"
        )
    if model.inputs is None:
        return
    if samples.dtype == np.uint8 and not inputs.pixels:
        raise DataError(
            f"{name}: expected values as the network was trained on, {inputs.dtype}, got uint8, which is divided "
            "by 255; convert them to float32 in the scale of the training"
        )
    if samples.dtype != np.uint8 and (inputs.pixels or inputs.data == "digits") and float(samples.max()) > 1:
        raise DataError(
            f"{name}: expected {'uint8, or ' if inputs.pixels else ''}values from 0 to 1, as the network was "
            f"trained on, got {samples.dtype} up to {float(samples.max()):g}; "
            f"divide them by {255 if inputs.pixels else 16}"
        )


@contextmanager
def _opened(file: str) -> Iterator[tuple[Path, str]]:
    """A file's path and what messages call it; the standard input is copied into a file."""
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
