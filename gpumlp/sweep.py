"""Train and compare many networks: ``python -m gpumlp.sweep``, also installed as ``gpumlp-sweep``."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from . import command
from .data import Dataset
from .extras import MissingExtraError, require
from .files import utf8, write_atomically
from .nn.hyperparameters import Range, whole_numbers
from .nn.metrics import HIGHER_IS_BETTER, METRIC_WORDS, METRICS
from .terminal import cell, console
from .training import tensorboard
from .training.batches import held_out_samples
from .training.config import PRESETS, Config, ConfigError, given, option
from .training.history import monitor_words
from .training.lock import RunLock
from .training.progress import metric
from .training.run import TABLE
from .training.search_space import (
    NOTES,
    NOTES_RANGES,
    grid,
    label,
    logarithmic,
    random,
    require_few,
    sample,
    space,
    value_text,
    with_values,
)
from .training.session import Shared
from .training.sweeps import (
    ENDED,
    INTERRUPTED,
    Result,
    Search,
    SearchPlan,
    Sweep,
    SweepProgress,
    TrainElsewhere,
    metric_problems,
    require_data,
    train_all,
)
from .words import counted

PROGRAM = "gpumlp-sweep"
FIGURE = "figure"
_SHOWN = 20  # networks of the table that is printed
_REASONS = 5  # runs without a result that are explained
_MOST_COLUMNS = 5  # for options, in 80 characters; more share a column
_TRIALS = 20
_WORDS = Range(lambda value: isinstance(value, tuple) and all(isinstance(word, str) for word in value), "words")
_ON_RESUME = ("device", "data_dir", "quiet", "jobs", "scheduler", "metric")
_REFUSED = {
    "report": "a report is about a few runs: python -m gpumlp.report RUN RUN",
    "min_accuracy": "it is about one network",
    "overwrite": "choose another folder",
    "parallel": "each network has a process of its own; see --jobs",
}


def _option_of_train(name: str) -> Any:
    (field,) = (field for field in dataclasses.fields(Config) if field.name == name)
    return option(field.default, field.metadata["allowed"], per_call=True)


@dataclass(frozen=True)
class Options(Config):
    """Train many networks, a run folder each, and rank them by their validation samples.

    Without --grid, --random and --search: the ends of the ranges that the course notes suggest for MNIST."""

    grid: tuple[str, ...] = option((), _WORDS, per_call=True)
    """NAME=VALUE,VALUE ...: train every combination of these values of options, as in learning-rate=0.01,0.1
    hidden=64,128x64 (x joins the layers of a network, + words, as in augment=none,rotation=5+elastic=34,4; none is
    no value)."""
    random: tuple[str, ...] = option((), _WORDS, per_call=True)
    """NAME=LOW:HIGH ...: draw the values, as in momentum=0:0.99, or with a uniform logarithm, as in
    learning-rate=log:1e-3:1, or from a list, as in --grid."""
    search: str | None = option(None, Range(lambda value: value == "optuna", "optuna"), per_call=True)
    """optuna: draw the values of --random by the results of the runs before, and stop runs that are behind the
    others; without --random, from the ranges of the course notes (needs pip install ".[optuna]")."""
    trials: int | None = option(None, whole_numbers(1), per_call=True)
    """Networks that --random or --search draws (20)."""
    search_seed: int | None = option(None, whole_numbers(0), per_call=True)
    """Seed of what --random or --search draws (0)."""
    seeds: int = option(1, whole_numbers(1), per_call=True)
    """Number of seeds that each network is trained with: --seed and the numbers after it."""
    metric: str | None = option(
        None,
        Range(lambda value: value in HIGHER_IS_BETTER, f"one of {', '.join(HIGHER_IS_BETTER)}"),
        per_call=True,
    )
    """What ranks the networks, measured with the validation samples: accuracy (of labels, every label right),
    label_accuracy, r2, mae or loss; by default the first that exists for the data."""
    jobs: int | None = option(None, whole_numbers(1), per_call=True)
    """Runs that a CPU trains at once, with one BLAS thread each; by default as many as it has cores."""
    scheduler: str | None = option(None, Range(lambda value: isinstance(value, str), "an address"), per_call=True)
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers train the runs; all machines need the
    folder of the sweep (needs pip install ".[dask]")."""
    out: str | None = _option_of_train("out")
    """Folder for the sweep (runs/TIME-sweep)."""
    resume: str | None = _option_of_train("resume")
    """Go on with the sweep in this folder: train what is missing; a run that was interrupted is resumed."""
    report: Annotated[bool, tyro.conf.Suppress] = _option_of_train("report")
    overwrite: Annotated[bool, tyro.conf.Suppress] = _option_of_train("overwrite")
    min_accuracy: Annotated[float | None, tyro.conf.Suppress] = _option_of_train("min_accuracy")
    parallel: Annotated[str | None, tyro.conf.Suppress] = _option_of_train("parallel")

    @property
    def config(self) -> Config:
        """The options of `train` among them."""
        return Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})

    def check(self) -> None:
        """Raise ConfigError, with all mistakes at once."""
        problems = []
        if self.grid and self.random:
            problems.append("random: expected without grid, got both")
        if self.search and self.grid:
            problems.append("search: expected without grid, got both; --random gives the ranges of a search")
        if self.search and self.seeds != 1:
            problems.append(
                f"seeds: expected 1 with search, which proposes and stops single runs, got {self.seeds}; train "
                "the best networks again with --grid and --seeds"
            )
        if self.scheduler and self.jobs is not None:
            problems.append("jobs: expected without scheduler, whose workers are as many as were started")
        if not (self.random or self.search or self.resume):
            problems += [
                f"{name}: expected only with random or search"
                for name in ("trials", "search_seed")
                if getattr(self, name) is not None
            ]
        if self.validation == 0 and self.preset is None:
            problems.append("validation: expected samples by which to rank the networks, got 0")
        if problems:
            raise ConfigError("\n".join(problems))
        super().check()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, and return the exit code.

    0, 1 (a run failed, or none has a result), 2 (bad input) or 130 (interrupted).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        _refuse_options(words)
        start = _starting_point(words)
        options = command.parse(Options, PROGRAM, words, default=start, lenient=True)
        options.check()
        if options.log is not None:
            tensorboard.check_installed()
        workers = command.workers(options.jobs)
        progress, shared = SweepProgress(quiet=options.quiet), Shared()
        with ExitStack() as stack:
            elsewhere: TrainElsewhere | None = None
            if options.scheduler is not None:
                from .training.cluster import Cluster

                cluster = stack.enter_context(closing(Cluster(options.scheduler)))
                elsewhere = cluster.run
            if options.resume is None:
                sweep = _new(options, shared, progress)
            else:
                sweep = _resumed(options, start, shared, progress)
            stack.enter_context(RunLock(sweep.path, "running this sweep"))
            if options.resume is None:
                sweep.save()
            search: Search | None = None
            if sweep.search is not None and _is_missing(sweep):
                from .training.search import OptunaSearch

                search = OptunaSearch(sweep)
                if options.trials is not None:
                    sweep.save()
            for line in _about(sweep, *shared.data(sweep.config, progress)):
                progress.say(line)
            sweep, rows, stopped = train_all(sweep, shared, progress, workers, search=search, elsewhere=elsewhere)
            results = sweep.ranking(rows)
            write_atomically(sweep.path / TABLE, utf8(sweep.as_csv(results)))
            if stopped is not None:
                done = sum(row.state in ENDED for row in rows)
                # A search depends on how many runs are trained at once.
                jobs = f" --jobs {options.jobs}" if sweep.search is not None and options.jobs is not None else ""
                print(
                    f"{PROGRAM}: {stopped}; {done:,} of {sweep.planned:,} runs have ended, the others are saved "
                    "up to their last epoch. Go on with: "
                    f"python -m gpumlp.sweep --resume {shlex.quote(str(sweep.path))}{jobs}",
                    file=sys.stderr,
                )
                return command.INTERRUPTED if stopped == INTERRUPTED else command.FAILED
            _show(sweep, results, progress)
        failed = [row for row in rows if row.state == "failed"]
        for row in failed[:_REASONS]:
            print(f"{PROGRAM}: {sweep.path / row.run.folder} failed: {row.reason}", file=sys.stderr)
        if len(failed) > _REASONS:
            print(f"{PROGRAM}: {len(failed):,} runs failed; {sweep.path / TABLE} says why", file=sys.stderr)
        if results[0].mean is None and not failed:
            print(f"{PROGRAM}: no run has a result; {sweep.path / TABLE} says why", file=sys.stderr)
        return command.FAILED if failed or results[0].mean is None else command.OK

    return command.run(PROGRAM, work)


def _is_missing(sweep: Sweep) -> bool:
    """Are there runs to train, or networks to propose?"""
    return len(sweep.runs) < sweep.planned or any(row.state not in ENDED for row in sweep.rows({}))


def _refuse_options(words: Sequence[str]) -> None:
    """Raise ConfigError, with the reason, for an option that a sweep does not have, or one without values."""
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in _REFUSED:
            raise ConfigError(f"{name}: not for a sweep; {_REFUSED[name]}")
        if word in ("--grid", "--random") and after.startswith("--"):
            raise ConfigError(f"{name}: expected NAME=VALUE,VALUE, such as learning-rate=0.01,0.1, got none")


def _starting_point(words: Sequence[str]) -> Options:
    """The options that the others change: the defaults, a preset's, or those of a sweep."""
    preset, folder = command.value_of("--preset", words), command.value_of("--resume", words)
    if folder is not None:
        sweep = Sweep.open(folder)
        return Options(**{**vars(sweep.config), "preset": None, "resume": folder, "metric": sweep.metric})
    return Options(**vars(PRESETS.get(str(preset), Config())))


def _new(options: Options, shared: Shared, progress: SweepProgress) -> Sweep:
    """A new sweep, with every mistake in its options refused before its folder is made."""
    config = options.config
    if options.validation == 0:
        config = dataclasses.replace(config, validation=None)
        progress.say(f"validation: the preset {options.preset} has no samples by which to rank; some are held out")
    trials, seed, search = options.trials or _TRIALS, options.search_seed or 0, None
    if options.search is not None:
        require("searches", "optuna", "optuna")
        search = SearchPlan(options.random or NOTES_RANGES, trials, seed)
        ranges = space(search.space)
        networks, axes = sample(config, ranges), logarithmic(ranges)
    elif options.random:
        networks, axes = random(config, options.random, trials, seed, options.seeds)
    else:
        networks, axes = grid(config, options.grid or NOTES, options.seeds)
    if options.scheduler is None:  # otherwise the workers have the device
        shared.backend(config, config.execution)
    data = shared.data(config, progress)
    _require_samples(config, options.metric, data[0])
    return Sweep.plan(config, networks, options.seeds, options.metric, data, axes, search)


def _require_samples(config: Config, metric: str | None, training: Dataset) -> None:
    """Raise ConfigError if there are too few samples by which to rank the networks."""
    try:
        validation = given(config.resolved(len(training), training.task).validation)
        found = held_out_samples(validation, len(training))
    except ValueError:  # `Sweep.plan` names all that is wrong
        return
    least = 2 if (metric or METRICS[training.task][0]) == "r2" else 1  # of one number R^2 is not defined
    if found < least:
        raise ConfigError(
            f"validation: expected {least} or more samples by which to rank the networks, got {found} of "
            f"{len(training):,}; give their number, or more data"
        )


def _resumed(options: Options, start: Options, shared: Shared, progress: SweepProgress) -> Sweep:
    """A saved sweep, with the options that may be changed."""
    names = [field.name for field in dataclasses.fields(Options)]
    sweep = Sweep.open(given(options.resume))
    allowed = _ON_RESUME if sweep.search is None else (*_ON_RESUME, "trials")
    refused = [n for n in names if getattr(options, n) != getattr(start, n) and n not in allowed]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: a sweep is resumed with its own options; only {', '.join(allowed)} can be "
            "changed"
        )
    if sweep.search is not None and options.trials is not None:
        if options.trials < len(sweep.runs):
            raise ConfigError(f"trials: the sweep has {len(sweep.runs):,} already, got {options.trials:,}")
        require_few(options.trials)
        sweep = dataclasses.replace(sweep, search=sweep.search._replace(trials=options.trials))
    changed = dataclasses.replace(sweep.config, device=options.device, data_dir=options.data_dir)
    check = partial(require_data, sweep)
    training, test = shared.data(changed, progress, check=check)
    check(training, test)
    if problems := metric_problems(given(options.metric), training, sweep.networks):
        raise ConfigError("\n".join(problems))
    return dataclasses.replace(sweep, config=changed, metric=given(options.metric))


def _about(sweep: Sweep, training: Dataset, test: Dataset) -> list[str]:
    """Lines on a sweep before it begins."""
    config = with_values(sweep.config, sweep.networks[0] if sweep.networks else {})
    config = config.resolved(len(training), training.task)
    held_out = held_out_samples(given(config.validation), len(training))
    seeds, networks = (
        (sweep.planned // len(sweep.networks), len(sweep.networks)) if sweep.search is None else (1, sweep.planned)
    )
    return [
        f"data: {training.name}, {len(training) - held_out:,} samples to train, {held_out:,} to validate and "
        f"rank, {len(test):,} to test",
        f"sweep: {counted(networks, 'network')}, each with {counted(seeds, 'seed')}, in {sweep.path}",
    ]


# -- What is shown at the end --------------------------------------------------------------------------------


def _show(sweep: Sweep, results: Sequence[Result], progress: SweepProgress) -> None:
    """The table, the best network, why runs diverged, and what is written; draws the figure."""
    best, written, missing = results[0], [str(sweep.path / TABLE)], ""
    if best.mean is not None:
        try:
            from .figures.style import save
            from .figures.sweep import sweep_results

            save(sweep.path, FIGURE, sweep_results(sweep, results))
            written.append(str(sweep.path / f"{FIGURE}.png"))
        except MissingExtraError as error:
            missing = str(error)
    if progress.quiet:
        return
    console(highlight=False).print(_table(sweep, results[:_SHOWN]))
    if len(results) > _SHOWN:
        print(f"{len(results) - _SHOWN:,} more networks are in {sweep.path / TABLE}")
    if best.mean is not None:
        count = f" (mean of {best.finished:,} seeds)" if best.finished > 1 else ""
        test = metric(sweep.metric, best.test_mean)
        print(f"best: {cell(label(best.values))}, test {METRIC_WORDS[sweep.metric]} {test}{count}")
        folders, others = [row.run.folder for row in best.rows if row.state == "finished"], best.finished - 1
        print(f"saved in: {sweep.path / folders[0]}{f' and {others:,} more' * (others > 0)}")
    diverged = [row for result in results for row in result.rows if row.state == "diverged"]
    for row in list({row.run.network: row for row in reversed(diverged)}.values())[::-1][:_REASONS]:
        print(f"{row.run.folder} diverged: {row.reason}")
    for line in _executions(results):
        print(line)
    print(f"written: {', '.join(written)}")
    if missing:
        print(f"no figure: {missing}")


def _executions(results: Sequence[Result]) -> list[str]:
    """How a GPU ran the steps, a line for each way, with the reason of its first run."""
    done = [row.metrics for result in results for row in result.rows if row.state == "finished"]
    ways = Counter(metrics["execution"] for metrics in done if str(metrics.get("device")).startswith("cuda"))
    reasons = {metrics["execution"]: metrics["execution_reason"] for metrics in reversed(done)}
    return [f"execution of {count:,} runs: {way}: {reasons[way]}" for way, count in ways.items()]


def _table(sweep: Sweep, results: Sequence[Result]) -> Table:
    """The best networks, a row each."""
    options = sweep.options if len(sweep.options) <= _MOST_COLUMNS else []
    rows = []
    for rank, result in enumerate(results, 1):
        mean, deviation = metric(sweep.metric, result.mean), metric(sweep.metric, result.deviation)
        if result.deviation is not None:
            mean = f"{mean.removesuffix(' %')} ± {deviation}"
        values = [value_text(result.values[name]) for name in options]
        rows.append(["-" if result.mean is None else str(rank), *values, mean, _states(result)])
    names = ["rank", *options, monitor_words(sweep.monitor), "runs"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:  # a word a line, so that a column is no wider than it must be
        header = name.replace("_", " ").replace(" ", "\n")
        table.add_column(header, justify="left" if name == "runs" else "right", vertical="bottom")
    if not options:
        table.add_column("network")
    for row, result in zip(rows, results, strict=True):
        network = [] if options else [label(result.values).replace(",", ", ")]
        table.add_row(*(Text(cell(text)) for text in (*row, *network)))
    return table


def _states(result: Result) -> str:
    """How the runs of a network ended: "5" where all of 5 are finished, "4, 1 diverged"."""
    states = Counter(row.state for row in result.rows)
    others = [f"{count} {state}" for state, count in states.items() if state != "finished"]
    return ", ".join([str(result.finished)] * (result.finished > 0 or not others) + others)


if __name__ == "__main__":
    sys.exit(main())
