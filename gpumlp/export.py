"""A saved network for other programs: ``python -m gpumlp.export RUN``, also installed as ``gpumlp-export``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import command
from .data import DataError
from .exporting import FORMATS, html_bytes
from .files import write_atomically
from .nn.model_file import CHECKPOINT, find_model
from .nn.network import MLP
from .training.config import ConfigError
from .training.session import load_run

PROGRAM = "gpumlp-export"


@dataclass(frozen=True)
class Options:
    """Write a saved network as a file that other programs run."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run, or of model.save."""
    format: str = "onnx"
    """onnx, safetensors, npz, or html, a page to draw on."""
    out: str | None = None
    """The file, whose name ends as the format is called (network.onnx, ... in the folder); one that is there is
    replaced."""
    data_dir: str | None = None
    """For html: folder with MNIST's four files, if not that of the run."""

    def check(self) -> None:
        """Raises ConfigError."""
        if self.format not in FORMATS:
            raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, export, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        source = find_model(options.run)
        out = source.parent / f"network.{options.format}" if options.out is None else Path(options.out)
        endings = command.PAGES if options.format == "html" else (f".{options.format}",)
        command.check_output("out", out if options.out is None else options.out, [source], endings=endings)
        model, test = MLP.load(source, device="cpu"), None
        if options.format == "html" and source.name == CHECKPOINT:
            # Paper and ink are measured on the run's test set, as the report does, where that is to be had.
            with suppress(DataError):
                _, model, test = load_run(str(source.parent), "cpu", options.data_dir)
        content = html_bytes(model, test) if options.format == "html" else FORMATS[options.format](model)
        write_atomically(out, content)
        print(f"{out}: {model}, {len(content):,} bytes")
        return command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
