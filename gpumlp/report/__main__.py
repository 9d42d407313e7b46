"""Write a page on runs: ``python -m gpumlp.report RUN [RUN ...]``, also installed as ``gpumlp-report``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import command
from ..backends import check_device_name
from ..training.config import ConfigError
from ..training.run import open_run
from .page import FILE, report_page, require_libraries, write_page

PROGRAM = "gpumlp-report"


@dataclass(frozen=True)
class Options:
    """Write one self-contained page on one run, or on several side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of the runs."""
    out: str | None = None
    """File to write, FILE.html; RUN/report.html for one run and report.html for several by default."""
    data_dir: str | None = None
    """Folder with MNIST's four files, if not that of the runs."""
    device: str = "cpu"
    """On which the networks are tested: auto, cpu, cuda, cuda:1, ..."""

    def check(self) -> None:
        """Raises ConfigError, with all mistakes at once."""
        problems = []
        if not self.runs:
            problems.append("expected the folder of at least one run, got none")
        try:
            check_device_name(self.device)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, read, test, write, and return the exit code: 1 where a file beside a checkpoint is damaged."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        require_libraries()
        default = Path(options.runs[0]) / FILE if len(options.runs) == 1 else Path(FILE)
        path = default if options.out is None else Path(options.out)
        folders = [open_run(run, lenient=True) for run in options.runs]
        data = [folder.config.dataset for folder in folders]
        command.check_output("out", path if options.out is None else options.out, data, endings=command.PAGES)
        damaged = [problem for folder in folders for problem in folder.damaged]
        page = report_page(options.runs, device=options.device, data_dir=options.data_dir)
        size = write_page(path, page)
        print(f"report on {' and '.join(options.runs)}: {path} ({size / 1000:,.0f} kB)")
        for problem in damaged:
            print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return command.FAILED if damaged else command.OK

    return command.run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
