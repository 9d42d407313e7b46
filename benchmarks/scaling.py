"""How does the cost of an epoch grow? With hidden size, depth and data size: ``python -m benchmarks.scaling``.

Seconds per epoch on every device, and the exponents of the power laws fitted to them (see `analysis`). The data is
generated, pixels of MNIST's shape; its content has no part in the cost. A repeat is timed as in `throughput`: an
epoch, shuffling included, until its loss has arrived on the host, after one epoch that is not counted (two on a
GPU), and the settings of a series take turns.

Where an epoch over hidden size or depth costs more than `FLOP_BUDGET` operations, only so many of its steps are
timed and their time is scaled to the epoch; the report states how many. Epochs over data size are timed whole:
there the data, which outgrows the caches, is the point. Sizes that do not fit into memory are left out, and named.

Writes ``scaling-DEVICES.json`` with everything measured, and ``.png`` where matplotlib is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tyro

from gpumlp import SGD, Dataset, command
from gpumlp.training.config import ConfigError

from . import analysis, figures, reporting
from .measuring import (
    CLASSES,
    FEATURES,
    LEARNING_RATE,
    LEAST_REPEATS,
    MNIST_SAMPLES,
    QUICK_SAMPLES,
    chosen_devices,
    first,
    fitting_memory,
    free_memory,
    generate,
    missing_gpu,
    samples_to_time,
    take_turns,
    too_few_repeats,
    too_large,
    too_small,
    trainer,
)

PROGRAM = "scaling"
FLOP_BUDGET = 3e11  # of a timed repeat: two or three seconds of two cores


@dataclass(frozen=True)
class Options:
    """Measure how the time of an epoch grows with hidden size, depth and data size, on each device there is."""

    devices: tuple[str, ...] = ()
    """cpu, cuda, cuda:1, ...; all there are by default."""
    hidden_sizes: tuple[int, ...] = tuple(2**k for k in range(6, 13))
    """Units of one hidden layer."""
    depths: tuple[int, ...] = tuple(range(1, 9))
    """Numbers of hidden layers of 256 units."""
    multiples: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """Data sizes in multiples of MNIST's 60,000 samples, for 784-128-10."""
    batch_size: int = 128
    """Samples a step."""
    repeats: int = LEAST_REPEATS
    """Timed repeats of each setting, at least 5."""
    out: str = "benchmarks/results"
    """Folder for the results."""
    quick: bool = False
    """Only show that it works: 2,048 samples in place of 60,000, and few small settings. No figures to quote."""


class Setting(NamedTuple):
    """A point of a series: where it lies on the axis, the network, and the samples of an epoch."""

    x: int
    sizes: tuple[int, ...]
    samples: int


class Series(NamedTuple):
    """Settings that differ in one thing."""

    by: str
    fixed: str
    settings: list[Setting]
    whole_epochs: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, prog=PROGRAM, args=words, config=(tyro.conf.FlagCreatePairsOff,))

    def work() -> int:
        check(options)
        folder = reporting.output_folder(options.out, trial=options.quick and options.out == Options.out)
        devices = chosen_devices(options.devices)
        unit = QUICK_SAMPLES if options.quick else MNIST_SAMPLES
        if problems := too_large("batch_size", [options.batch_size], unit):
            raise ConfigError("\n".join(problems))
        wanted = (1, 2, 4) if options.quick and options.multiples == Options.multiples else options.multiples
        multiples, left_out = fitting_memory(sorted(set(wanted)), unit, free_memory(), devices)
        data = generate(unit * max([1, *multiples]))
        growth = [
            one
            for series in all_series(options, unit, multiples)
            for one in measure(series, data, [device.name for device in devices], options)
        ]
        report = {
            "benchmark": "growth of the cost of an epoch",
            **reporting.circumstances(devices, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": [note for note in (missing_gpu(devices), left_out) if note],
            "workload": {
                "batch_size": options.batch_size,
                "activation": "relu",
                "optimizer": repr(SGD(LEARNING_RATE)),
                "dtype": "float32",
                "data": "generated data",
                "samples": unit,
            },
            "method": {
                "unit": "seconds per epoch",
                "repeat": "one epoch, shuffling included, read back at its end; where `samples_timed` of a point "
                "is less than its `samples`, an epoch of so many, scaled up",
                "flop_budget_of_a_repeat": FLOP_BUDGET,
                "repeats": options.repeats,
                "warm_up_epochs": {device.name: 1 if device.name == "cpu" else 2 for device in devices},
                "interleaved": "the devices and settings of a series take turns",
                "fit": "least squares in logarithms, over the longest run of points up to the largest setting in "
                f"which none lies further than {analysis.TOLERANCE:.0%} from the line",
            },
            "growth": growth,
        }
        reporting.print_growth(report)
        stem = folder / "-".join([PROGRAM, *(device.name.replace(":", "") for device in devices)])
        for path in reporting.write(report, stem, figures.plot_growth):
            print(f"wrote {path}")
        return command.OK

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = too_few_repeats(options.repeats)
    problems += too_small(options, ["hidden_sizes", "depths", "multiples"])
    if options.batch_size < 1:
        problems.append(f"batch_size: expected 1 or more, got {options.batch_size}")
    if problems:
        raise ConfigError("\n".join(problems))


def all_series(options: Options, unit: int, multiples: Sequence[int]) -> list[Series]:
    """The three series, each with its settings in rising order."""
    hidden, depths = sorted(set(options.hidden_sizes)), sorted(set(options.depths))
    if options.quick:
        hidden = [16, 64, 256] if options.hidden_sizes == Options.hidden_sizes else hidden
        depths = depths[:3] if options.depths == Options.depths else depths
    width = 32 if options.quick else 256

    def sizes(*layers: int) -> tuple[int, ...]:
        return (FEATURES, *layers, CLASSES)

    series = [
        Series("hidden size", f"784-h-10, {unit:,} samples", [Setting(h, sizes(h), unit) for h in hidden], False),
        Series(
            "hidden layers",
            f"{width} units each, {unit:,} samples",
            [Setting(d, sizes(*[width] * d), unit) for d in depths],
            False,
        ),
    ]
    if multiples:
        settings = [Setting(unit * m, sizes(128), unit * m) for m in multiples]
        series.append(Series("samples", "784-128-10", settings, True))
    return series


def measure(series: Series, data: Dataset, devices: Sequence[str], options: Options) -> list[dict[str, Any]]:
    """Time a series on each device, and fit its exponent.

    Args:
        series: the settings.
        data: at least as many samples as the largest setting has; smaller ones are parts of it.
        devices: by name.
        options: batch size and repeats.
    """
    pairs = [(device, setting) for device in devices for setting in series.settings]
    trainers = []
    for device, setting in pairs:
        timed = setting.samples
        if not series.whole_epochs:
            timed = samples_to_time(setting.sizes, options.batch_size, setting.samples, FLOP_BUDGET)
        trainers.append(trainer(setting.sizes, first(data, timed), device, options.batch_size))
    growth = {
        device: {"device": device, "by": series.by, "fixed": series.fixed, "points": []} for device in devices
    }
    seconds = take_turns(trainers, options.repeats, f"{series.by}: warm-up, then repeats")
    for (device, setting), each, times in zip(pairs, trainers, seconds, strict=True):
        scale = setting.samples / each.batches.samples
        epochs = [scale * time for time in times]
        growth[device]["points"].append(
            {
                "x": setting.x,
                "network": "-".join(map(str, setting.sizes)),
                "samples": setting.samples,
                "samples_timed": each.batches.samples,
                "steps_timed": len(each.batches.slices),
                "seconds_per_epoch": epochs,
                **reporting.summary(epochs),
            }
        )
    for each in growth.values():
        points = each["points"]
        fit = analysis.fit_power_law([p["x"] for p in points], [p["median"] for p in points])
        each["fit"] = None if fit is None else fit._asdict()
        each["words"] = analysis.describe_fit(fit, series.by)
    return list(growth.values())


if __name__ == "__main__":
    sys.exit(main())
