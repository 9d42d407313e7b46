"""Reproduce results of the literature: ``python -m gpumlp.reproduce``, also installed as ``gpumlp-reproduce``."""

from __future__ import annotations

import dataclasses
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from rich import box
from rich.table import Table
from rich.text import Text

import gpumlp

from . import command
from .backends import Backend
from .data import Dataset
from .extras import MissingExtraError
from .files import new_folder_path, user_path
from .nn import Committee
from .records import (
    COLUMNS,
    Comparison,
    Record,
    compare,
    differences,
    error_words,
    load_record,
    read_results,
    save_result,
    table,
    time_words,
    unit,
)
from .terminal import cell, console
from .training.batches import held_out_samples
from .training.callbacks import read_curve
from .training.config import Config, ConfigError, given, options_marked
from .training.history_file import HISTORY
from .training.lock import RunLock
from .training.run import SWEEP, TEST_CURVE, Run
from .training.session import Shared, plain_names
from .training.sweeps import ENDED, INTERRUPTED, Row, Sweep, SweepProgress, duration, train_all
from .words import counted, listed

PROGRAM = "gpumlp-reproduce"
_WRAPPED = ("hidden layers", "ours")  # columns of the table whose cells may take several lines
_INTERVAL = 1.0  # seconds between two looks at the epochs


@dataclass(frozen=True)
class Options:
    """Train a record of the literature with several seeds, and compare the test error with the published one.

    Some records are committees of networks, whose probabilities are averaged. Without NAME, list the records. The
    exit code is 0 if the gate is reached, 1 if it is not or a run failed, and 2 for a mistake."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """The record, or the path of a file with one, FILE.toml."""
    seeds: int = 3
    """Number of seeds, 0 and the numbers after it; of a record that is a committee, number of committees."""
    device: str = Config.device
    """auto (a usable GPU, otherwise the CPU), cpu, cuda, cuda:1, ..."""
    out: str | None = None
    """Folder for the runs (runs/NAME-record, for a trial runs/NAME-EPOCHS-epochs). Runs that it holds already are
    not trained again, and one that was interrupted is resumed."""
    data_dir: str | None = None
    """Folder with the four files of MNIST; otherwise $GPUMLP_DATA_DIR, the cache, a download."""
    epochs: int | None = None
    """Another number of epochs than the record's, for a trial."""
    jobs: int | None = None
    """Runs that a CPU trains at once, with one BLAS thread each; by default as many as it has cores."""
    save: str | None = None
    """FILE.json to which the result is added, with hardware, versions, seeds and times."""
    quiet: bool = False
    """Print nothing but errors."""

    def check(self) -> None:
        """Raise ConfigError, with all mistakes at once."""
        problems = []
        if self.seeds < 1:
            problems.append(f"seeds: expected a whole number of 1 or more, got {self.seeds}")
        if self.save is not None and self.epochs is not None:
            problems.append("save: expected with the record's own epochs, got epochs too")
        if problems:
            raise ConfigError("\n".join(problems))
        if self.save is not None:
            command.check_output("save", self.save, endings=(".json",))
            read_results(user_path(self.save))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, compare, and return the exit code.

    0 (the gate is reached), 1 (it is not, or a run failed), 2 (bad input) or 130 (interrupted).
    """

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        options.check()
        if options.name is None:
            _list()
            return command.OK
        return _reproduce(load_record(options.name), options, command.workers(options.jobs))

    return command.run(PROGRAM, work)


def _list() -> None:
    """Print the table of the records, and what differs from the papers."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    record, paper, *others = COLUMNS
    for name in (f"{record}, {paper}", *others):
        header = name if name in _WRAPPED else name.replace(" ", "\n")
        shown.add_column(header, vertical="top", no_wrap=name not in _WRAPPED)
    for name, of, *rest in table(read_results()):
        shown.add_row(*(Text("\n".join(map(cell, text.split("\n")))) for text in (f"{name}\n{of}", *rest)))
    console(highlight=False).print(shown)
    print("what differs from the paper:", *differences(), sep="\n- ")


def _reproduce(record: Record, options: Options, workers: int) -> int:
    """Train what is missing of a record, compare, write the report, and return the exit code."""
    config = dataclasses.replace(record.config, device=options.device, data_dir=options.data_dir, test_curve=True)
    if options.epochs is not None:
        config = dataclasses.replace(config, epochs=options.epochs)
    config.check()
    shared, progress = Shared(), EpochProgress(quiet=options.quiet)
    backend, _ = shared.backend(config, config.execution)
    training, test = shared.data(config, progress)
    if training.name != config.dataset:
        raise ConfigError(f"the record {record.name} is of {config.dataset}, but the data are {training.name}")
    resolved = config.resolved(len(training), training.task)
    sweep = _sweep(record, config, options, (training, test))
    with RunLock(sweep.path, "reproducing this record"):
        sweep.save()
        progress.say(f"record: {record.name}, {record.paper}")
        if record.deviations:
            progress.say(f"what differs from the paper: {record.deviations}")
        held_out = held_out_samples(given(resolved.validation), len(training))
        progress.say(
            f"data: {training.name}, {len(training) - held_out:,} samples to train, {held_out:,} to validate, "
            f"{len(test):,} to test"
        )
        networks = f" of {record.networks} networks, each" if record.networks > 1 else ""
        progress.say(f"runs: {_counted(record, options)}{networks} of {resolved.epochs:,} epochs, in {sweep.path}")
        progress.epochs, progress.samples = given(resolved.epochs), len(test)
        sweep, rows, stopped = train_all(sweep, shared, progress, workers)
    if stopped is not None:
        done = sum(row.state in ENDED for row in rows)
        print(
            f"{PROGRAM}: {stopped}; {done:,} of {len(rows):,} runs have ended, the others are saved up to their "
            "last epoch; the same command goes on",
            file=sys.stderr,
        )
        return command.INTERRUPTED if stopped == INTERRUPTED else command.FAILED
    missing = [row for row in rows if row.state != "finished"]
    for row in missing:
        print(f"{PROGRAM}: {sweep.path / row.run.folder} {row.state}: {row.reason}", file=sys.stderr)
    if missing:
        return command.FAILED
    results = [
        _tested(sweep, [row for row in rows if row.run.seed // record.each == number], test, backend)
        for number in range(options.seeds)
    ]
    comparison = compare(record, [100 * len(result.mistakes) / len(test) for result in results], len(test))
    _show(record, results, len(test), comparison, options, progress)
    _report(sweep, rows, options, progress)
    if options.save is not None:
        result = _saved(record, sweep, results, len(test))
        if backend.name == "cpu":
            result["runs_at_once"] = min(workers, len(rows))
        if record.networks == 1 and "curves" not in result:
            progress.say(f"no curves: a {TEST_CURVE} in {sweep.path} does not have all epochs")
        before = save_result(user_path(options.save), result)
        place = "" if before is None else f", in place of one of {counted(len(before['wrong']), unit(before))}"
        progress.say(f"result added to {options.save}{place}")
    return command.OK if comparison.reached else command.FAILED


def _sweep(record: Record, config: Config, options: Options, data: tuple[Dataset, Dataset]) -> Sweep:
    """The runs of a record: new ones, or those that the folder holds.

    Raises:
        ConfigError: the folder holds something else.
        CheckpointError: it is damaged.
        OSError: it cannot be made.
    """
    kind = "record" if options.epochs is None else f"{options.epochs}-epochs"
    path = Path("runs", f"{record.name}-{kind}") if options.out is None else new_folder_path(options.out)
    seeds = options.seeds * record.each
    if not (path / SWEEP).exists():
        return Sweep.plan(dataclasses.replace(config, out=str(path)), record.members, seeds, None, data)
    sweep = Sweep.open(path)
    wanted = dataclasses.replace(config, **plain_names(config, data[0]), out=None, quiet=False)
    had = vars(sweep.config) | {"device": wanted.device, "data_dir": wanted.data_dir}
    others = [
        name
        for name, value in vars(wanted).items()
        if had[name] != value and name not in options_marked("per_call")
    ]
    if sweep.networks != record.members:
        others += dict.fromkeys(name for values in (*sweep.networks, *record.members) for name in values)
    if others:
        raise ConfigError(f"out: {path} holds runs with other options ({listed(others)}); choose another folder")
    return dataclasses.replace(sweep, config=wanted).with_seeds(seeds)


class Tested(NamedTuple):
    """A committee, or a network alone, on the test set.

    Attributes:
        rows: the runs of its networks.
        mistakes: the samples that it gets wrong: the number of each, from 0, and the class that it predicts.
        disputed: number of samples for which not all of its networks predict the same class.
    """

    rows: list[Row]
    mistakes: list[tuple[int, int]]
    disputed: int


def _tested(sweep: Sweep, rows: list[Row], test: Dataset, backend: Backend) -> Tested:
    """Test the networks of some runs together."""
    checkpoints = (Run(sweep.path / row.run.folder).checkpoint for row in rows)
    found = Committee([each.result.make_model(backend) for each in checkpoints]).compare(test)
    wrong = np.flatnonzero(found.predictions != test.labels)
    mistakes = [(int(index), int(found.predictions[index])) for index in wrong]
    return Tested(rows, mistakes, round((found.disagreement or 0) * len(test)))


def _wrong(row: Row, samples: int) -> int:
    """How many test samples a finished run gets wrong."""
    return round(samples * (1 - float(row.metrics["test_accuracy"])))


def _counted(record: Record, options: Options) -> str:
    """The number of seeds or committees in words."""
    return counted(options.seeds, "committee" if record.networks > 1 else "seed")


def _show(
    record: Record,
    results: Sequence[Tested],
    samples: int,
    result: Comparison,
    options: Options,
    progress: SweepProgress,
) -> None:
    """Say what was reached."""
    wrong, number = [len(each.mistakes) for each in results], _counted(record, options)
    if record.networks > 1:
        for index, each in enumerate(results):
            of_members = error_words([_wrong(row, samples) for row in each.rows], samples)
            progress.say(
                f"committee {index}: test error {error_words([wrong[index]], samples)} ({wrong[index]:,} of "
                f"{samples:,}), of its members {of_members}; {command.disagreement_line(each.disputed, samples)}"
            )
    of = f"mean and deviation of {number}" if len(results) > 1 else number
    progress.say(f"test error: {error_words(wrong, samples)} ({of})")
    if options.epochs is not None and options.epochs != record.config.epochs:
        progress.say(f"this is a trial: the record has {record.config.epochs or 'other'} epochs")
    if result.verdict is not None:
        progress.say(
            f"published: {record.published:.2f} %, so the result is {result.verdict} "
            f"(equal is within {result.tolerance:.2f} points)"
        )
    gate = "not to be worse than the published error" if record.gate is None else f"{record.gate:.2f} % or less"
    progress.say(f"gate: {gate}: {'reached' if result.reached else 'not reached'}")


def _report(sweep: Sweep, rows: Sequence[Row], options: Options, progress: SweepProgress) -> None:
    """Write the report on all runs; if it cannot be, a line says why."""
    from . import report  # loads much that training does not need

    path, runs = sweep.path / report.FILE, [str(sweep.path / row.run.folder) for row in rows]
    try:
        report.write_page(path, report.report_page(runs, data_dir=options.data_dir))
    except (MissingExtraError, ConfigError) as error:  # not installed, or too many runs for one page
        progress.say(f"no report: {error}")
    else:
        progress.say(f"report: {path}")


def _saved(record: Record, sweep: Sweep, results: Sequence[Tested], samples: int) -> dict[str, Any]:
    """A result as a file of results holds it.

    Raises:
        ConfigError: the runs were trained on several devices.
        CheckpointError: a curve is damaged.
    """
    rows = [row for each in results for row in each.rows]
    metrics = rows[0].metrics
    devices = dict.fromkeys(f"{row.metrics['device']} ({row.metrics['device_name']})" for row in rows)
    if len(devices) > 1:
        raise ConfigError(f"save: expected runs of one device, got {listed(devices)}")
    saved = {
        "record": record.name,
        "device": metrics["device"],
        "hardware": metrics["device_name"],
        "seeds": [row.run.seed for row in rows],
        "wrong": [len(each.mistakes) for each in results],
        "test_samples": samples,
        "published": record.published,
        "epochs": metrics["epochs"],
        "seconds": [round(sum(row.metrics["seconds"] for row in each.rows), 1) for each in results],
        "date": time.strftime("%Y-%m-%d"),
        "gpumlp": gpumlp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "settings": record.settings,
        "mistakes": [each.mistakes for each in results],
    }
    if record.networks > 1:
        saved["members"] = [[_wrong(row, samples) for row in each.rows] for each in results]
        saved["disputed"] = [each.disputed for each in results]
        return saved
    curves = [_curve(sweep.path / row.run.folder, samples) for row in rows]
    if all(len(curve) == metrics["epochs"] for curve in curves):
        saved["curves"] = curves
    return saved


def _curve(folder: Path, samples: int) -> list[int]:
    """How many test samples a run gets wrong after each epoch; none unless all epochs are known."""
    rows = read_curve(folder / TEST_CURVE) if (folder / TEST_CURVE).exists() else []
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        return []
    return [round(samples * (1 - row["test_accuracy"])) for row in rows]


class EpochProgress(SweepProgress):
    """Progress of a few long runs: a line with their epochs and the time left, and one for each that has ended.

    Attributes:
        epochs: of each run.
        samples: of the test set.
    """

    epochs, samples = 1, 1

    @contextmanager
    def running(self, sweep: Sweep, ended: list[Row]) -> Iterator[None]:
        self._folders = [sweep.path / run.folder for run in sweep.runs]
        self._first = self._trained()
        self._said = self._first * self._LINES // (self.epochs * len(self._folders))
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        with super().running(sweep, ended):
            for row in ended:
                self._say_result(row)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()

    def ended(self, row: Row) -> None:
        self._say_result(row)

    def _say_result(self, row: Row) -> None:
        if row.state == "finished":
            wrong = _wrong(row, self.samples)
            self.say(
                f"{row.run.folder}: test error {error_words([wrong], self.samples)} ({wrong:,} of "
                f"{self.samples:,}), trained in {time_words(row.metrics['seconds'])}"
            )

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(_INTERVAL):
            self._show()

    def _trained(self) -> int:
        """Number of epochs that all runs have finished, from the lines of their histories."""
        files = [folder / HISTORY for folder in self._folders]
        return sum(file.read_bytes().count(b"\n") for file in files if file.exists())

    def _show(self) -> None:
        done, total = self._trained(), self.epochs * len(self._folders)
        text = f"epoch {done:,} of {total:,} of all runs"
        if self._first < done < total:
            left = (time.monotonic() - self._start) / (done - self._first) * (total - done)
            text += f", {duration(left)} left"
        if done < total:
            self.show(text, done, total)


if __name__ == "__main__":
    sys.exit(main())
