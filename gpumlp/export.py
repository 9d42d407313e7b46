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
        """Raises ConfigError, with all mistakes at once."""
        problems = []
        if self.format not in FORMATS:
            problems.append(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.out is not None and (Path(self.out).is_dir() or not Path(self.out).parent.is_dir()):
            problems.append(f"out: expected the path of a file in a folder that is there, got {self.out!r}")
        if problems:
            raise ConfigError("\n".join(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, export, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        source = find_model(options.run)
        model = MLP.load(source, device="cpu")
        out = source.parent / f"network.{options.format}" if options.out is None else Path(options.out)
        content = FORMATS[options.format](model)
        write_atomically(out, content)
        print(f"{out}: {model}, {len(content):,} bytes")
        return command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
