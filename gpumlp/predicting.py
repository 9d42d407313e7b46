"""From files to predictions: pictures prepared as the training images were, arrays checked against them."""

from __future__ import annotations

import glob
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .data import DataError
from .data.npz import is_array_file, read_samples
from .files import PathError, user_path
from .nn import MLP, Committee
from .nn.committee import Vote, members_of
from .nn.model_file import plain_inputs
from .nn.samples import is_binary
from .pictures import SUFFIXES, read_sample

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Prediction:
    """The result for one file.

    Attributes:
        file: its name, as given.
        values: ``(samples, outputs)``, the probability of each class or label, or the predicted numbers; None if
            there is an error. Of one output for two classes, both probabilities.
        batch: whether the file holds an array of samples, not one picture.
        error: what is wrong with the file, or None.
        preparation: of a picture: ``"mnist"``, ``"digits"``, ``"resize"``, or ``"none"`` if it was used as it is.
        disputed: ``(samples,)`` bool, whether the members of a committee disagree; None for numbers.
    """

    file: str
    values: npt.NDArray[Any] | None = None
    batch: bool = False
    error: str | None = None
    preparation: str | None = None
    disputed: npt.NDArray[np.bool_] | None = None


def predict_files(
    model: MLP | Committee,
    files: Sequence[str],
    preparation: str = "auto",
    array: str | None = None,
    pixels: bool | None = None,
) -> list[Prediction]:
    """Predict pictures, all in one batch, and files of arrays; one result per file, in their order.

    Args:
        model: a network on any device, or a committee.
        files: paths; a folder is the pictures in it, a pattern (``"scans/*.png"``) the files that match it, and
            ``-`` standard input.
        preparation: of pictures: ``"mnist"``, ``"digits"``, ``"resize"`` (to the network's size, without cropping
            or inverting), or ``"auto"``: the one that matches the training data.
        array: which array of .npz files; needed if a file has several.
        pixels: what uint8 values in arrays and pictures are, see ``MLP.logits``.

    Raises:
        MissingExtraError: a file is a picture, and Pillow is not installed.
    """
    committee = Committee(members_of(model))
    inputs = plain_inputs(committee.members[0])
    files = expand(files)
    names = short_names(files)
    results: dict[int, Prediction] = {}
    pictures: dict[int, tuple[npt.NDArray[Any], str]] = {}
    for index, file in enumerate(files):
        try:
            with _opened(file, names[index]) as (path, name):
                if is_array_file(path):
                    samples = read_samples(path, name, inputs.shape, array)
                    _check_digits(samples, committee.members[0], name)
                    vote = _vote(committee, samples, f"{name}: ", pixels)
                    results[index] = Prediction(file, vote.values, batch=True, disputed=vote.disputed)
                else:
                    pictures[index] = read_sample(path, inputs, preparation, name, pixels)
        except (DataError, PathError) as error:
            results[index] = Prediction(file, error=str(error))
        except OSError as error:
            results[index] = Prediction(file, error=f"{names[index]}: {error.strerror or error}")
    if pictures:
        vote = _vote(committee, np.stack([sample for sample, _ in pictures.values()]), pixels=pixels)
        for row, (index, (_, done)) in enumerate(pictures.items()):
            own = slice(row, row + 1)
            disputed = None if vote.disputed is None else vote.disputed[own]
            results[index] = Prediction(files[index], vote.values[own], preparation=done, disputed=disputed)
    return [results[index] for index in range(len(files))]


def expand(files: Sequence[str]) -> list[str]:
    """Files, with folders replaced by the pictures in them and patterns by the files that match, in order.

    What does not exist, and a folder without pictures, stays as it is.
    """
    result: list[str] = []
    for file in files:
        found = []
        if file != STANDARD_INPUT:
            with suppress(ValueError, OSError):  # which reading the file reports
                path = user_path(file)
                literal = path.exists() or not glob.has_magic(file)
                places = [path] if literal else sorted(map(Path, glob.glob(str(path), recursive=True)))
                found = [str(picture) for place in places for picture in _pictures_in(place) if picture != path]
        result += found or [file]
    return result


def _pictures_in(place: Path) -> list[Path]:
    """The pictures in a folder; a file itself."""
    if not place.is_dir():
        return [place]
    names = (path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in names if path.is_file())


def short_names(files: Sequence[str]) -> list[str]:
    """The names of files, with as many of their folders as tell them apart.

    >>> short_names(["a/b/1.png", "a/c/1.png", "a/c/2.png", "-"])
    ['b/1.png', 'c/1.png', '2.png', '-']
    """
    parts = [Path(file).parts or (file,) for file in files]
    shown = [1] * len(files)
    while True:
        names = [str(Path(*part[-count:])) for part, count in zip(parts, shown, strict=True)]
        same = Counter(names)
        longer = [index for index, name in enumerate(names) if same[name] > 1 and shown[index] < len(parts[index])]
        if not longer:
            return names
        for index in longer:
            shown[index] += 1


def _vote(committee: Committee, samples: npt.NDArray[Any], prefix: str = "", pixels: bool | None = None) -> Vote:
    try:
        vote = committee.vote(samples, pixels=pixels)
    except ValueError as error:  # such as samples of another shape or scale than in training
        raise DataError(f"{prefix}{error}") from error
    if not np.isfinite(vote.values).all():
        raise DataError(
            f"{prefix}the network's outputs are not finite: its training diverged, or the values are too large"
        )
    if is_binary(committee.members[0]):
        return vote._replace(values=np.hstack([1 - vote.values, vote.values]))
    return vote


def _check_digits(samples: npt.NDArray[Any], model: MLP, name: str) -> None:
    """Refuse the levels of the built-in digits, 0 to 16, which are divided by 16 in training."""
    digits = model.inputs is not None and model.inputs.data == "digits"
    fits = samples.size == len(samples) * model.sizes[0]
    if digits and fits and samples.dtype != np.uint8 and float(samples.max()) > 1:
        raise DataError(
            f"{name}: expected values from 0 to 1, as the network was trained on, got {samples.dtype} up to "
            f"{float(samples.max()):g}; divide them by 16"
        )


@contextmanager
def _opened(file: str, name: str) -> Iterator[tuple[Path, str]]:
    """A file's path and its name in messages; standard input is copied into a temporary file."""
    if file != STANDARD_INPUT:
        path = user_path(file)
        if path.is_dir():
            raise DataError(f"{file}: expected a folder with pictures, found none in it")
        if not path.exists() and glob.has_magic(file):
            raise DataError(f"{file}: expected a pattern that files match, found none; check the path")
        yield path, name if path.exists() else file
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
