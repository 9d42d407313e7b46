"""Export a saved network: ``python -m gpumlp.export RUN``, also installed as ``gpumlp-export``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .data import DataError
from .exporting import FORMATS, html_bytes
from .files import user_path, write_atomically
from .nn import MLP
from .nn.model_file import CHECKPOINT, find_model
from .training.config import ConfigError
from .training.run import network_note
from .training.session import load_run

PROGRAM = "gpumlp-export"


@dataclass(frozen=True)
class Options:
    """Write a saved network to a file that other programs can run."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a training run, or of model.save."""
    format: str = "onnx"
    """onnx, safetensors, npz, or html (a page to draw on)."""
    out: str | None = None
    """The file to write or replace, with the format as its suffix; by default network.onnx, ... in the folder."""
    data_dir: str | None = None
    """For html: folder with MNIST's four files, if not the one that the run used."""

    def check(self) -> None:
        """Raise ConfigError if the format is unknown."""
        if self.format not in FORMATS:
            raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, export, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        source, folder = find_model(options.run), user_path(options.run)
        folder = folder if folder.is_dir() else folder.parent
        out = folder / f"network.{options.format}" if options.out is None else user_path(options.out)
        endings = command.PAGES if options.format == "html" else (f".{options.format}",)
        command.check_output("out", out if options.out is None else options.out, [source], endings=endings)
        model, test = MLP.load(source, device="cpu"), None
        if options.format == "html" and source.name == CHECKPOINT:
            # Paper and ink are measured on the run's test set, as for the report, if the data is available.
            with suppress(DataError):
                _, _, test = load_run(str(source.parent), "cpu", options.data_dir)
        content = html_bytes(model, test) if options.format == "html" else FORMATS[options.format](model)
        write_atomically(out, content)
        note = network_note(options.run)
        print(f"{out}: {model}, {len(content):,} bytes{f'; {note}' if note else ''}")
        return command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
