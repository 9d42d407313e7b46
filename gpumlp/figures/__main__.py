"""Draw figures: ``python -m gpumlp.figures [NAME ...] --out DIR``, also installed as ``gpumlp-figures``."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .. import command
from ..backends import get_backend
from ..data import load_dataset
from ..extras import require
from ..files import PathError, make_folder, new_folder_path, user_path
from ..training.config import ConfigError
from . import FIGURES
from .style import save

PROGRAM = "gpumlp-figures"
_ARGUMENTS = {"data_dir": "data", "results": "results", "record": "record"}  # of figures, by the option for it


@dataclass(frozen=True)
class Options:
    """Draw figures of how networks learn, and of the results of records."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of figures; all of them by default."""
    out: str = "figures"
    """Folder for NAME.png, NAME.svg and NAME.json (the numbers); existing files are replaced."""
    seed: int = 0
    """Seed of all random numbers."""
    device: str = "cpu"
    """auto, cpu, cuda, cuda:1, ...; for networks this small, the CPU is usually faster."""
    data_dir: str | None = None
    """Folder with the four MNIST files; otherwise $GPUMLP_DATA_DIR, the cache, a download, or the small digits."""
    results: str | None = None
    """For records and mistakes: FILE.json of gpumlp-reproduce --save; by default the results of the package."""
    record: str | None = None
    """For mistakes: the record, or FILE.toml with one; by default that of the lowest test error on the data."""

    def check(self) -> None:
        """Raise ConfigError, with all mistakes at once."""
        problems = []
        unknown = [name for name in self.names if name not in FIGURES]
        if unknown:
            problems.append(f"there is no figure {', '.join(unknown)}; there are: {', '.join(FIGURES)}")
        if self.seed < 0:
            problems.append(f"seed: expected a whole number of 0 or more, got {self.seed}")
        problems += command.device_problems(self.device)
        names = [name for name in self.names if name in FIGURES] or list(FIGURES)
        for option, argument in _ARGUMENTS.items():
            fitting = [name for name in FIGURES if argument in _arguments(name)]
            if getattr(self, option) is not None and not {*fitting} & {*names}:
                problems.append(f"{option}: expected only with {', '.join(fitting)}, got {', '.join(names)}")
        try:
            new_folder_path(self.out)
        except PathError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, draw, write, and return the exit code."""

    def work() -> int:
        description = f"Draw figures of how networks learn, and of the results of records: {', '.join(FIGURES)}."
        options = command.parse(Options, PROGRAM, arguments, description=description, lenient=True)
        options.check()
        require("figures", "matplotlib", "report")
        names = list(dict.fromkeys(options.names or FIGURES))
        folder = user_path(options.out)
        make_folder(folder)
        given: dict[str, Any] = {"seed": options.seed, "device": get_backend(options.device)}
        given |= {"results": options.results, "record": options.record}
        if any("data" in _arguments(name) for name in names):
            train, test, notice = load_dataset("auto", options.data_dir)
            given["data"] = train, test
            if notice is not None:
                print(notice, file=sys.stderr)
        width = max(map(len, names))
        for name in names:
            start = time.perf_counter()
            result = FIGURES[name](**{key: value for key, value in given.items() if key in _arguments(name)})
            save(folder, name, result)
            seconds = time.perf_counter() - start
            print(f"{name:<{width}}  {seconds:5.1f} s  {folder / name}.png, .svg, .json", flush=True)
        return command.OK

    return command.run(PROGRAM, work)


def _arguments(name: str) -> set[str]:
    return set(inspect.signature(FIGURES[name]).parameters)


if __name__ == "__main__":
    sys.exit(main())
