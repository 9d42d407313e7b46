"""Shuffle files of samples once: ``python -m gpumlp.shuffle IMAGES LABELS OUT``, also ``gpumlp-shuffle``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from . import command
from .data.shuffling import shuffle_files
from .training.config import ConfigError

PROGRAM = "gpumlp-shuffle"


@dataclass(frozen=True)
class Options:
    """Write samples and their labels in random order, in bounded memory, for train --stream."""

    images: Annotated[str, tyro.conf.Positional]
    """Samples: a .npy or IDX file, a Zarr array, with --label-column a table; or a folder of numbered ones."""
    labels: Annotated[str, tyro.conf.Positional]
    """Their labels, or other targets; the same file again with --label-column."""
    out: Annotated[str, tyro.conf.Positional]
    """New folder, for images.npy and labels.npy."""
    label_column: str | None = None
    """Column of the targets in an Arrow or Parquet file."""
    seed: int = 0
    """Seed of the order."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, shuffle, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        if options.seed < 0:
            raise ConfigError(f"seed: expected a whole number of 0 or more, got {options.seed}")
        say = (lambda line: None) if options.quiet else print
        images, labels = shuffle_files(
            options.images,
            options.labels,
            options.out,
            label_column=options.label_column,
            seed=options.seed,
            progress=say,
        )
        say(f"shuffled: --dataset {images} {labels}")
        return command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
