"""Export saved networks: ``python -m gpumlp.export RUN...``, also installed as ``gpumlp-export``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .data import DataError
from .exporting import FORMATS, html_bytes
from .files import user_path, write_atomically
from .nn.model_file import CHECKPOINT, find_model
from .training.config import ConfigError
from .training.run import network_note
from .training.session import load_run

PROGRAM = "gpumlp-export"


@dataclass(frozen=True)
class Options:
    """Write a saved network, or a committee of several, to a file that other programs can run."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folder of a training run, or of model.save; several are a committee, whose members are all in the file."""
    format: str = "onnx"
    """onnx, safetensors, npz, or html (a page to draw on)."""
    out: str | None = None
    """The file to write or replace, with the format as its suffix; by default network.onnx, ... in the folder of
    the run. Needed for several runs."""
    data_dir: str | None = None
    """For html: folder with MNIST's four files, if not the one that the run used."""

    def check(self) -> None:
        """Raise ConfigError with all mistakes at once."""
        problems = []
        if not self.runs:
            problems.append("expected the folder of a run, or several, got none")
        if self.format not in FORMATS:
            problems.append(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")
        if len(self.runs) > 1 and self.out is None:
            problems.append("out: expected the file to write for a committee of several runs, got none")
        if self.data_dir is not None and self.format in FORMATS and self.format != "html":
            problems.append(f"data_dir: expected only with format html, got {self.format}")
        if problems:
            raise ConfigError("\n".join(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, export, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        sources, folder = [find_model(run) for run in options.runs], user_path(options.runs[0])
        folder = folder if folder.is_dir() else folder.parent
        out = folder / f"network.{options.format}" if options.out is None else user_path(options.out)
        endings = command.PAGES if options.format == "html" else (f".{options.format}",)
        command.check_output("out", out if options.out is None else options.out, sources, endings=endings)
        if options.data_dir is not None and sources[0].name != CHECKPOINT:
            raise ConfigError(f"data_dir: expected only with a training run, got {sources[0]}")
        model, test = command.load_committee(options.runs), None
        if options.format == "html" and sources[0].name == CHECKPOINT:
            # Paper and ink are measured on the run's test set, as for the report, if the data is available.
            with suppress(DataError) if options.data_dir is None else nullcontext():
                _, _, test = load_run(str(sources[0].parent), "cpu", options.data_dir)
        content = html_bytes(model, test) if options.format == "html" else FORMATS[options.format](model)
        write_atomically(out, content)
        notes = [f"; {note}" for run in options.runs if (note := network_note(run))]
        print(f"{out}: {model}, {len(content):,} bytes{''.join(notes)}")
        return command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
