"""Predict with a saved network: ``python -m gpumlp.predict RUN FILE...``, also installed as ``gpumlp-predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from . import command
from .backends import check_device_name
from .files import user_path, utf8, write_atomically
from .nn import MLP
from .nn.model_file import CLASSIFICATION, class_names
from .pictures import CHOICES, DONE
from .predicting import STANDARD_INPUT, Prediction, expand, predict_files, short_names
from .terminal import cell, console, silent_libraries, write_data
from .training.config import ConfigError
from .training.progress import percent
from .training.run import network_note

PROGRAM = "gpumlp-predict"
_SHOWN = 20  # samples of a file of arrays that the table shows
_NAME = 40  # characters of a file's name that the table shows
_RUNNERS_UP = 2  # classes the table shows beside the most probable one


@dataclass(frozen=True)
class Options:
    """Predict pictures (PNG, JPEG, ...), prepared like the training images, and arrays (.npy, .npz, IDX)."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a training run, or of model.save."""
    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Pictures, folders of pictures, patterns such as 'scans/*.png', and files of arrays; - is standard input."""
    json: bool = False
    """Print JSON, with the probability of every class, instead of a table."""
    out: str | None = None
    """Write the predictions to FILE.csv, or only the probabilities, an array (samples, classes), to FILE.npy.
    A file that cannot be predicted has no row there; a message names it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    preparation: str = "auto"
    """Of pictures: mnist, digits, resize (without cropping or inverting), or auto, to match the training data;
    where those are no digits, a picture of their size is used as it is."""
    array: str | None = None
    """Name of the array to use from an .npz file with several."""
    pixels: Literal["true", "false"] | None = None
    """What uint8 values in arrays are: pixels, divided by 255 (true), or numbers, used as they are (false); as in
    training by default. Needed for a network trained on floats."""

    def check(self) -> None:
        """Raise ConfigError with all mistakes at once."""
        problems = []
        if not self.files:
            problems.append("expected one file or more to predict; - is standard input")
        if self.files.count(STANDARD_INPUT) > 1:
            problems.append("- can be given only once: standard input is read to its end")
        try:
            check_device_name(self.device)
        except ValueError as error:
            problems.append(str(error))
        if self.preparation not in CHOICES:
            problems.append(f"preparation: expected one of {', '.join(CHOICES)}, got {self.preparation!r}")
        if self.out is not None and Path(self.out).suffix not in (".csv", ".npy"):
            problems.append(f"out: expected FILE.csv or FILE.npy, got {self.out!r}")
        if problems:
            raise ConfigError("\n".join(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, predict, and return the exit code: 1 if a file could not be predicted, even if others were."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        files = expand(options.files)
        if options.out is not None:
            command.check_output("out", options.out, [options.run, *files])
        model = MLP.load(options.run, device=options.device)
        if model.loss.name != CLASSIFICATION:
            raise ConfigError(
                f"{options.run}: the network has the loss {model.loss.name}, so it gives no class probabilities; "
                "use MLP.load(...).predict(...) in Python"
            )
        pixels = None if options.pixels is None else options.pixels == "true"
        with silent_libraries():
            results = predict_files(model, files, options.preparation, options.array, pixels)
        names = class_names(model)
        predicted = [result for result in results if result.probabilities is not None]
        if options.out is not None and predicted:
            write_atomically(user_path(options.out), _content(options.out, predicted, names))
        if options.json:
            write_data(json.dumps(list(_records(results, names)), indent=1, ensure_ascii=False) + "\n")
        elif predicted:
            console(highlight=False).print(_table(predicted, names))
            for done, count in Counter(result.preparation for result in predicted if result.preparation).items():
                print(f"{count:,} picture{'s' if count > 1 else ''}: {DONE[done]}")
            if options.out is not None:
                print(f"written: {user_path(options.out)}")
        if predicted and (note := network_note(options.run)):
            print(note, file=sys.stderr if options.json else sys.stdout)
        for result in results:
            if result.error is not None:
                print(f"{PROGRAM}: {cell(result.error)}", file=sys.stderr)
        if options.out is not None and Path(options.out).suffix == ".npy" and 0 < len(predicted) < len(results):
            print(f"{PROGRAM}: {_without_rows(options.out, results)}", file=sys.stderr)
        return command.OK if len(predicted) == len(results) else command.FAILED

    return command.run(PROGRAM, work)


def _samples(result: Prediction) -> Iterator[tuple[int | None, Any]]:
    """Index (None for a picture) and probabilities of each sample of a file."""
    rows = () if result.probabilities is None else result.probabilities
    for index, row in enumerate(rows):
        yield index if result.batch else None, row


def _records(results: Sequence[Prediction], names: list[Any]) -> Iterator[dict[str, Any]]:
    """A JSON object for each sample, and for each file with an error."""
    for result in results:
        if result.error is not None:
            yield {"file": result.file, "error": result.error}
        for index, row in _samples(result):
            best = int(row.argmax())
            yield {
                "file": result.file,
                **({} if result.preparation is None else {"preparation": result.preparation}),
                **({} if index is None else {"index": index}),
                "class": names[best],
                "probability": float(row[best]),
                "probabilities": {str(name): float(p) for name, p in zip(names, row, strict=True)},
            }


def _table(results: Sequence[Prediction], names: list[Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("class", justify="right")
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("then")
    for result, name in zip(results, map(_shortened, short_names([one.file for one in results])), strict=True):
        samples = list(_samples(result))
        for index, row in samples[:_SHOWN]:
            order = np.argsort(-row, kind="stable")
            then = ", ".join(f"{names[i]} ({percent(row[i])})" for i in order[1 : 1 + _RUNNERS_UP])
            file = name if index is None else f"{name}[{index}]"
            best = int(order[0])
            table.add_row(*(Text(cell(text)) for text in (file, str(names[best]), percent(row[best]), then)))
        if len(samples) > _SHOWN:
            more = f"{len(samples) - _SHOWN:,} more; --out FILE.csv writes all"
            table.add_row(Text(cell(name)), "...", "", more)
    return table


def _shortened(name: str) -> str:
    """A name without its middle if it is too long for a table."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 3]}...{name[-_NAME // 2 :]}"


def _without_rows(out: str, results: Sequence[Prediction]) -> str:
    """Which inputs have no row in an array."""
    rows = sum(len(result.probabilities) for result in results if result.probabilities is not None)
    missing = [result.file for result in results if result.probabilities is None]
    return (
        f"{out}: has {rows:,} row{'' if rows == 1 else 's'}, none for {', '.join(missing)}; --out FILE.csv names "
        "the file of each row"
    )


def _content(out: str, results: Sequence[Prediction], names: list[Any]) -> bytes:
    """The content of the file with all predictions."""
    if Path(out).suffix == ".npy":
        buffer = io.BytesIO()
        rows = [result.probabilities for result in results if result.probabilities is not None]
        np.save(buffer, np.concatenate(rows))
        return buffer.getvalue()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "index", "class", *(f"p({name})" for name in names)])
    for result in results:
        for index, row in _samples(result):
            writer.writerow([result.file, "" if index is None else index, names[int(row.argmax())], *row.tolist()])
    return utf8(text.getvalue())


if __name__ == "__main__":
    sys.exit(main())
