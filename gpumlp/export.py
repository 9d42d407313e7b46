"""A saved network for other programs: ``python -m gpumlp.export RUN``, also installed as ``gpumlp-export``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import command
from .exporting import FORMATS
from .files import write_atomically
from .nn.model_file import find_model
from .nn.network import MLP
from .training.config import ConfigError
from .training.output import check_output

PROGRAM = "gpumlp-export"


@dataclass(frozen=True)
class Options:
    """Write a saved network as a file that other programs run."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run, or of model.save."""
    format: str = "onnx"
    """onnx, safetensors, npz, or html, a page to draw on."""
    out: str | None = None
    """The file (network.onnx, ... in the folder); one that is there is replaced."""

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
        check_output("out", out if options.out is None else options.out, [source])
        model = MLP.load(source, device="cpu")
        content = FORMATS[options.format](model)
        write_atomically(out, content)
        print(f"{out}: {model}, {len(content):,} bytes")
        return command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
