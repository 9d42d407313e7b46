"""Write a report on runs: ``python -m gpumlp.report RUN [RUN ...]``, also installed as ``gpumlp-report``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import command
from ..files import user_path
from ..training.config import ConfigError
from .page import FILE, render_report, require_libraries, write_page
from .runs import read_runs

PROGRAM = "gpumlp-report"


@dataclass(frozen=True)
class Options:
    """Write a report on one run, or on several side by side, as one self-contained HTML page."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of the runs."""
    out: str | None = None
    """File to write, FILE.html; by default RUN/report.html for one run, report.html for several."""
    data_dir: str | None = None
    """Folder with the four MNIST files, if not the folder that the runs used."""
    device: str = "cpu"
    """Device that tests the networks: auto, cpu, cuda, cuda:1, ..."""

    def check(self) -> None:
        """Raise ConfigError, with all mistakes at once."""
        problems = []
        if not self.runs:
            problems.append("expected the folder of at least one run, got none")
        problems += command.device_problems(self.device)
        if problems:
            raise ConfigError("\n".join(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, read, test, write, and return the exit code: 1 if a file other than a checkpoint is damaged."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        require_libraries()
        default = user_path(options.runs[0]) / FILE if len(options.runs) == 1 else Path(FILE)
        path = default if options.out is None else user_path(options.out)
        runs = read_runs(options.runs, options.device, options.data_dir)
        datasets = [path for run in runs for path in run.config.data_files]
        command.check_output("out", path if options.out is None else options.out, datasets, endings=command.PAGES)
        size = write_page(path, render_report(runs))
        print(f"report on {', '.join(options.runs)}: {path} ({size / 1000:,.0f} kB)")
        damaged = [problem for run in runs for problem in run.damaged]
        for problem in damaged:
            print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return command.FAILED if damaged else command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
