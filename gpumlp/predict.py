"""Predict with a saved network: ``python -m gpumlp.predict RUN FILE...``, also installed as ``gpumlp-predict``."""

from __future__ import annotations

import csv
import io
import itertools
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
from .files import user_path, utf8, write_atomically
from .nn import MLP, Committee
from .nn.metrics import Task
from .nn.model_file import class_names, is_network
from .nn.samples import is_binary
from .pictures import CHOICES, DONE, SUFFIXES
from .predicting import STANDARD_INPUT, Prediction, expand, predict_files, short_names
from .terminal import cell, console, silent_libraries, write_data
from .training.config import ConfigError
from .training.progress import percent
from .training.run import network_note
from .words import counted

PROGRAM = "gpumlp-predict"
_SHOWN = 20  # samples of a file of arrays that the table shows
_NAME = 40  # characters of a file's name that the table shows
_RUNNERS_UP = 2  # classes the table shows beside the most probable one
_NUMBERS = 6  # of a sample that the table shows


@dataclass(frozen=True)
class Options:
    """Predict pictures (PNG, JPEG, ...), prepared like the training images, and arrays (.npy, .npz, IDX), with a
    network or with a committee of several, which averages their probabilities or numbers."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a training run, or of model.save. More of them may follow, before the files: a committee."""
    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Pictures, folders of pictures, patterns such as 'scans/*.png', and files of arrays; - is standard input."""
    json: bool = False
    """Print JSON, with the probability of every class or label, instead of a table."""
    out: str | None = None
    """Write the predictions to FILE.csv, or only the probabilities or numbers, an array (samples, outputs), to
    FILE.npy. A file that cannot be predicted has no row there; a message names it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    preparation: str = "auto"
    """Of pictures: mnist, digits, resize (without cropping or inverting), or auto, to match the training data;
    where those are no digits, a picture of their size is used as it is."""
    array: str | None = None
    """Name of the array to use from an .npz file with several."""
    pixels: Literal["true", "false"] | None = None
    """What uint8 values of arrays and pictures are: pixels, divided by 255 (true), or numbers, used as they are
    (false); as in training by default. Needed for a network trained on floats."""

    @property
    def runs(self) -> list[str]:
        """The networks: those among the files that come first, too."""
        return [self.run, *itertools.takewhile(is_network, self.files)]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is predicted."""
        return self.files[len(self.runs) - 1 :]

    def check(self) -> None:
        """Raise ConfigError with all mistakes at once."""
        problems = []
        if late := [file for file in self.inputs if is_network(file)]:
            problems.append(f"{late[0]} is a network; give all networks before the first file, {self.inputs[0]}")
        if not self.inputs:
            problems.append("expected one file or more to predict; - is standard input")
        if self.files.count(STANDARD_INPUT) > 1:
            problems.append("- can be given only once: standard input is read to its end")
        problems += command.device_problems(self.device)
        if self.preparation not in CHOICES:
            problems.append(f"preparation: expected one of {', '.join(CHOICES)}, got {self.preparation!r}")
        if problems:
            raise ConfigError("\n".join(problems))


class Numbers:
    """What the outputs of a network say of a sample: numbers.

    Args:
        names: of the outputs.

    Attributes:
        header: the columns of a .csv file after those of the sample.
        columns: those of the table.
    """

    def __init__(self, names: list[Any]) -> None:
        self.names = names
        self.header = ["value"] if len(names) == 1 else [f"value {name}" for name in names]
        self.columns = [*self.header[:_NUMBERS], *["..."] * (len(names) > _NUMBERS)]

    def record(self, row: Any) -> dict[str, Any]:
        """A sample for JSON."""
        return {"values": row.tolist()}

    def csv_row(self, row: Any) -> list[Any]:
        """A sample under `header`."""
        return list(row.tolist())

    def cells(self, row: Any) -> list[str]:
        """A sample under `columns`."""
        return [*(f"{value:.6g}" for value in row[:_NUMBERS]), *["..."] * (len(row) > _NUMBERS)]


class Labels(Numbers):
    """Probabilities of labels, of which those above 1/2 apply."""

    def __init__(self, names: list[Any]) -> None:
        self.names = names
        self.header = ["labels", *(f"p({name})" for name in names)]
        self.columns = ["labels", "then"]

    def record(self, row: Any) -> dict[str, Any]:
        return {"labels": self._found(row), "probabilities": self._probabilities(row)}

    def csv_row(self, row: Any) -> list[Any]:
        return ["; ".join(map(str, self._found(row))), *row.tolist()]

    def cells(self, row: Any) -> list[str]:
        ranked, count = self._ranked(row), len(self._found(row))
        return [", ".join(ranked[:count]) or "none", ", ".join(ranked[count : count + _RUNNERS_UP])]

    def _found(self, row: Any) -> list[Any]:
        return [name for name, p in zip(self.names, row, strict=True) if p > 0.5]

    def _probabilities(self, row: Any) -> dict[str, float]:
        return {str(name): float(p) for name, p in zip(self.names, row, strict=True)}

    def _ranked(self, row: Any) -> list[str]:
        """Names and probabilities, the most probable first."""
        return [f"{self.names[i]} ({percent(row[i])})" for i in np.argsort(-row, kind="stable")]


class Classes(Labels):
    """Probabilities of classes, of which the most probable one is predicted."""

    def __init__(self, names: list[Any]) -> None:
        super().__init__(names)
        self.header[0] = "class"
        self.columns = ["class", "probability", "then"]

    def record(self, row: Any) -> dict[str, Any]:
        best = int(row.argmax())
        probabilities = self._probabilities(row)
        return {"class": self.names[best], "probability": float(row[best]), "probabilities": probabilities}

    def csv_row(self, row: Any) -> list[Any]:
        return [self.names[int(row.argmax())], *row.tolist()]

    def cells(self, row: Any) -> list[str]:
        best, then = int(row.argmax()), self._ranked(row)[1 : 1 + _RUNNERS_UP]
        return [str(self.names[best]), percent(row[best]), ", ".join(then)]


FORMS: dict[Task, type[Numbers]] = {"classes": Classes, "labels": Labels, "numbers": Numbers}


def _form(model: MLP) -> Numbers:
    """The form of a network's outputs."""
    return FORMS["classes" if is_binary(model) else model.loss.task](class_names(model))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, predict, and return the exit code: 1 if a file could not be predicted, even if others were."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        files = expand(options.inputs)
        if options.array is not None and all(Path(file).suffix.lower() in (".npy", *SUFFIXES) for file in files):
            raise ConfigError(f"array: expected only with an .npz file, got {', '.join(short_names(files))}")
        if options.out is not None:
            command.check_output("out", options.out, [*options.runs, *files], endings=(".csv", ".npy"))
        committee = command.load_committee(options.runs, options.device)
        pixels = None if options.pixels is None else options.pixels == "true"
        with silent_libraries():
            results = predict_files(committee, files, options.preparation, options.array, pixels)
        outputs = _form(committee.members[0])
        predicted = [result for result in results if result.values is not None]
        if options.out is not None and predicted:
            write_atomically(user_path(options.out), _content(options.out, predicted, outputs))
        if options.json:
            write_data(json.dumps(list(_records(results, outputs)), indent=1, ensure_ascii=False) + "\n")
        elif predicted:
            console(highlight=False).print(_table(predicted, outputs))
            for result in predicted:
                if (left := len(list(_samples(result))) - _SHOWN) > 0:
                    where = "--out FILE.csv writes all" if options.out is None else f"all are in {options.out}"
                    print(f"{cell(result.file)}: {left:,} more; {where}")
            for done, count in Counter(result.preparation for result in predicted if result.preparation).items():
                print(f"{counted(count, 'picture')}: {DONE[done]}")
            if options.out is not None:
                print(f"written: {user_path(options.out)}")
        for note in _notes(options.runs, committee, predicted) if predicted else ():
            print(note, file=sys.stderr if options.json else sys.stdout)
        for result in results:
            if result.error is not None:
                print(f"{PROGRAM}: {cell(result.error)}", file=sys.stderr)
        if options.out is not None and options.out.lower().endswith(".npy") and 0 < len(predicted) < len(results):
            print(f"{PROGRAM}: {_without_rows(options.out, results)}", file=sys.stderr)
        return command.OK if len(predicted) == len(results) else command.FAILED

    return command.run(PROGRAM, work)


def _notes(runs: Sequence[str], committee: Committee, predicted: Sequence[Prediction]) -> Iterator[str]:
    """What is to be said of the networks."""
    for run in runs:
        note = network_note(run)
        if note is not None:
            yield note
    if len(committee) > 1:
        yield str(committee)
        disputed = [result.disputed for result in predicted if result.disputed is not None]
        if disputed:
            found = np.concatenate(disputed)
            yield command.disagreement_line(int(found.sum()), len(found))


def _samples(result: Prediction) -> Iterator[tuple[int | None, Any]]:
    """Index (None for a picture) and values of each sample of a file."""
    rows = () if result.values is None else result.values
    for index, row in enumerate(rows):
        yield index if result.batch else None, row


def _records(results: Sequence[Prediction], outputs: Numbers) -> Iterator[dict[str, Any]]:
    """A JSON object for each sample, and for each file with an error."""
    for result in results:
        if result.error is not None:
            yield {"file": result.file, "error": result.error}
        for index, row in _samples(result):
            yield {
                "file": result.file,
                **({} if result.preparation is None else {"preparation": result.preparation}),
                **({} if index is None else {"index": index}),
                **outputs.record(row),
            }


def _table(results: Sequence[Prediction], outputs: Numbers) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", no_wrap=True)
    for name in outputs.columns:
        table.add_column(
            name, justify="left" if name in ("labels", "then") else "right", no_wrap=name == "probability"
        )
    for result, name in zip(results, map(_shortened, short_names([one.file for one in results])), strict=True):
        samples = list(_samples(result))
        for index, row in samples[:_SHOWN]:
            file = name if index is None else f"{name}[{index}]"
            table.add_row(*(Text(cell(text)) for text in (file, *outputs.cells(row))))
    return table


def _shortened(name: str) -> str:
    """A name without its middle if it is too long for a table."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 3]}...{name[-_NAME // 2 :]}"


def _without_rows(out: str, results: Sequence[Prediction]) -> str:
    """Which inputs have no row in an array."""
    rows = sum(len(result.values) for result in results if result.values is not None)
    missing = [result.file for result in results if result.values is None]
    return (
        f"{out}: has {counted(rows, 'row')}, none for {', '.join(missing)}; --out FILE.csv names "
        "the file of each row"
    )


def _content(out: str, results: Sequence[Prediction], outputs: Numbers) -> bytes:
    """The content of the file with all predictions."""
    if out.lower().endswith(".npy"):
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate([result.values for result in results if result.values is not None]))
        return buffer.getvalue()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "index", *outputs.header])
    for result in results:
        for index, row in _samples(result):
            writer.writerow([result.file, "" if index is None else index, *outputs.csv_row(row)])
    return utf8(text.getvalue())


if __name__ == "__main__":
    sys.exit(main())
