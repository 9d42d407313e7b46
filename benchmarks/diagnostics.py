"""What do the diagnostics cost? ``python -m benchmarks.diagnostics``.

The same network is trained with diagnostics and without, in turns, epoch by epoch, so that whatever else the
machine does slows both; short epochs, not all of which are measured, take turns 60 by 60. The time of an epoch
is all of it: steps, validation and statistics. On a shared machine single epochs differ by much more than the
diagnostics cost; so what follows the steps of an epoch, validation and statistics, is also taken by itself, and
the difference in that, as a part of the epoch, is what the statistics take.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
import gpumlp
from gpumlp import MLP, SGD, Dataset, Trainer, command, load_dataset, terminal
from gpumlp.diagnostics.statistics import SAMPLES_BETWEEN
from gpumlp.training.config import Config, ConfigError

from . import common

PROGRAM = "diagnostics"
SHORT_EPOCHS = 60  # in a turn: epochs are measured as often as in a long run, every second to fifth


@dataclass(frozen=True)
class Options:
    """Measure what the diagnostics add to an epoch, with the defaults of gpumlp-train."""

    datasets: tuple[str, ...] = ("mnist", "digits")
    """Data sets: mnist, digits."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    networks: tuple[str, ...] = ("128", "512-512")
    """Units of the hidden layers, joined by dashes."""
    seconds: float = 20.0
    """For each measurement."""
    repeats: int = 20
    """Pairs of turns, at least."""
    data_dir: str | None = None
    """Folder with MNIST's four files; otherwise $GPUMLP_DATA_DIR, the cache, a download."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print JSON, and return the exit code."""

    def work() -> int:
        options = command.parse(Options, PROGRAM, arguments)
        problems = common.too_few_repeats(options.repeats)
        if not options.datasets or not set(options.datasets) <= {"mnist", "digits"}:
            problems.append(f"datasets: expected mnist or digits, got {' '.join(options.datasets) or 'none'}")
        bad = [name for name in options.networks if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", name)]
        if bad or not options.networks:
            problems.append(
                f"networks: expected hidden units such as 128 or 512-512, got {' '.join(bad) or 'none'}"
            )
        if not 0 < options.seconds < float("inf"):
            problems.append(f"seconds: expected a number above 0, got {options.seconds:g}")
        if problems:
            raise ConfigError("\n".join(problems))
        common.check_clock()
        backend = gpumlp.get_backend(options.device)
        found = [
            {"validation": held_out, **measure(options, train, hidden, held_out)}
            for train in [load_dataset(name, options.data_dir)[0] for name in options.datasets]
            for hidden in [tuple(map(int, network.split("-"))) for network in options.networks]
            for held_out in (True, False)
        ]
        machine = {
            "device": backend.name,
            "device_name": backend.device_name,
            "python": platform.python_version(),
            "gpumlp": gpumlp.__version__,
        }
        terminal.write_data(json.dumps({**machine, "results": found}, indent=2) + "\n")
        return command.OK

    return command.run(PROGRAM, work)


def measure(options: Options, train: Dataset, hidden: tuple[int, ...], held_out: bool) -> dict[str, object]:
    """Milliseconds of an epoch with diagnostics and without, and what they add in percent: medians of the pairs.

    Undisturbed is the time that one turn in ten stays below, with and without. `statistics_percent` is the
    difference in the time after the steps.
    """
    config = Config(hidden=hidden).resolved(len(train))
    with_them, without = (
        Trainer(
            MLP([train.features, *hidden, train.classes], device=options.device),
            train,
            optimizer=SGD(0.01, momentum=0.9),
            batch_size=config.batch_size,  # type: ignore[arg-type]  # a number: the default
            validation=config.validation if held_out else None,
            diagnostics=diagnostics,
        )
        for diagnostics in (True, False)
    )
    epochs = 1 if with_them.batches.samples >= SAMPLES_BETWEEN else SHORT_EPOCHS
    seconds: dict[bool, list[float]] = {True: [], False: []}  # of an epoch, in each turn
    after: dict[bool, list[float]] = {True: [], False: []}  # of it, after the steps
    end = time.perf_counter() + options.seconds
    pair = 0
    while pair <= options.repeats or time.perf_counter() < end:
        turns = [(with_them, True), (without, False)]
        for trainer, on in turns if pair % 2 else turns[::-1]:
            trainer.model.backend.synchronize()
            start = time.perf_counter()
            history = trainer.run(trainer.epoch + epochs)
            trainer.model.backend.synchronize()
            duration = time.perf_counter() - start
            seconds[on].append(duration / epochs)
            after[on].append((duration - sum(history["seconds"][-epochs:])) / epochs)  # those of the steps
        pair += 1
    added = sorted(on / off - 1 for on, off in list(zip(seconds[True], seconds[False], strict=True))[1:])
    taken = sorted(
        (on - off) / epoch
        for on, off, epoch in list(zip(after[True], after[False], seconds[False], strict=True))[1:]
    )
    return {
        "dataset": train.name,
        "network": "-".join(map(str, with_them.model.sizes)),
        "batch_size": config.batch_size,
        "pairs": len(added),
        "epochs_in_a_turn": epochs,
        "milliseconds_with": 1e3 * statistics.median(seconds[True][1:]),
        "milliseconds_without": 1e3 * statistics.median(seconds[False][1:]),
        "milliseconds_undisturbed": [1e3 * sorted(seconds[on][1:])[pair // 10] for on in (True, False)],
        "added_percent": 100 * statistics.median(added),
        "added_percent_quartiles": [100 * part for part in statistics.quantiles(added, n=4)[::2]],
        "statistics_percent": 100 * statistics.median(taken),
        "statistics_percent_quartiles": [100 * part for part in statistics.quantiles(taken, n=4)[::2]],
    }


if __name__ == "__main__":
    sys.exit(main())
