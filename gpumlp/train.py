"""Train a multilayer perceptron: ``python -m gpumlp.train``, also installed as ``gpumlp-train``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import command, interrupts
from .training.config import PRESETS, Config, ConfigError
from .training.divergence import DivergenceError
from .training.group import ALONE, Group, GroupError, MPIGroup, launcher
from .training.run import REPORT, Run, open_run
from .training.session import Outcome, prepare_together, resume_config

PROGRAM = "gpumlp-train"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, and return the exit code: 0, 1 (failed), 2 (bad input) or 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        group = _group(words)
        if group.size == 1:
            return _work(words, group)
        interrupts.started()
        with group.interruptible():
            return _work(words, group)

    return command.run(PROGRAM, work)


def _group(words: Sequence[str]) -> Group:
    """The processes that train one network: this one, or with --parallel all those of mpiexec. Process 0 prints.

    Raises:
        ConfigError: mpiexec has started several, and the option is not there.
        GroupError, MissingExtraError: they cannot communicate.
    """
    rank, size = launcher()
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end
    if command.value_of("--parallel", words) == "mpi":
        return MPIGroup()
    if size > 1:
        raise ConfigError(
            f"parallel: mpiexec has started {size} processes, each of which would train a network of its own; "
            "add --parallel mpi"
        )
    return ALONE


def _work(words: Sequence[str], group: Group) -> int:
    """The command in one of the processes."""
    config = group.together(lambda: _configuration(words))
    run = prepare_together(config, group)
    try:
        outcome = run.train()
    except DivergenceError as error:
        if error.folder is not None:
            _report_unfinished(open_run(error.folder))
        raise
    except (*command.USER_ERRORS, OSError, MemoryError) as error:
        if isinstance(group, MPIGroup) and not isinstance(error, GroupError):
            _abort(group, error)
        raise
    if group.rank:
        return command.INTERRUPTED if outcome.history.interrupted else command.OK
    return _finish(outcome, config)


def _configuration(words: Sequence[str]) -> Config:
    config = command.parse(Config, PROGRAM, words, default=_starting_point(words), lenient=True)
    if config.resume is None:
        config = config.without_leftovers()
    config.check()
    if config.report or (config.resume is not None and open_run(config.resume).config.report):
        from . import report  # loads much that training does not need

        report.require_libraries()  # before training, not after it
    return config


def _finish(outcome: Outcome, config: Config) -> int:
    """Write the report, say how the run ended, and return the exit code."""
    if outcome.metrics is None:
        print(
            f"{PROGRAM}: interrupted; the run is saved after epoch {len(outcome.history)} of "
            f"{outcome.folder.config.epochs}. "
            f"Resume it with: python -m gpumlp.train --resume {shlex.quote(str(outcome.folder.path))}",
            file=sys.stderr,
        )
        _report_unfinished(open_run(outcome.folder.path))
        return command.INTERRUPTED
    if outcome.folder.config.report:
        _write_report(open_run(outcome.folder.path))
    metrics, least = outcome.metrics, config.min_accuracy
    if least is not None and metrics["test_accuracy"] < least:
        print(
            f"{PROGRAM}: {metrics['dataset']} test accuracy {metrics['test_accuracy']:.4f} is below "
            f"min_accuracy {least:g}",
            file=sys.stderr,
        )
        return command.FAILED
    return command.OK


def _abort(group: MPIGroup, error: Exception) -> NoReturn:
    """End all processes with the message and the exit code of an error in this one."""

    def again() -> int:
        raise error

    code, message = command.outcome(again)
    group.abort(message, code)


def _report_unfinished(run: Run) -> None:
    """Write the report if it is asked for; an error is printed, and does not hide how training ended."""
    if not run.config.report:
        return
    try:
        _write_report(run)
    except (*command.USER_ERRORS, OSError) as error:
        print(f"{PROGRAM}: no report: {' '.join(str(error).split())}", file=sys.stderr)


def _write_report(run: Run) -> None:
    path = run.path / REPORT
    from . import report

    report.write_page(path, report.report_page([run.name], data_dir=run.config.data_dir))
    if not run.config.quiet:
        print(f"report: {path}")


def _starting_point(words: Sequence[str]) -> Config:
    """The configuration that the other options change: the defaults, a preset's, or that of a run."""
    preset, run = command.value_of("--preset", words), command.value_of("--resume", words)
    if preset is not None and run is not None:
        raise ConfigError("preset: a run is resumed with its own configuration; leave --preset out")
    if run is not None:
        return resume_config(run)
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset: expected {' or '.join(PRESETS)}, got {preset!r}")
    return Config() if preset is None else PRESETS[preset]


if __name__ == "__main__":
    sys.exit(main())
