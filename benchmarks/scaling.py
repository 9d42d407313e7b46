"""How does the cost of an epoch grow? With hidden size, depth and data size: ``python -m benchmarks.scaling``.

Seconds per epoch on every device, and the exponents of the power laws fitted to them (see `fit_power_law`). The
data is generated, pixels of MNIST's shape; its content does not matter for the cost. A repeat is timed as in
`throughput`: an epoch, shuffling included, until its loss has arrived on the host, after one epoch of warm-up
(two on a GPU), and the settings of a series take turns.

Where an epoch over hidden size or depth costs more than `FLOP_BUDGET` operations, only a part of its steps is
timed and their time is scaled to the epoch; the report states how many. Epochs over data size are timed whole:
there the data, which outgrows the caches, is the point. Sizes that do not fit into memory are left out, and named.

Writes ``scaling-DEVICES.json`` with everything measured, and ``.png`` where matplotlib is installed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import SGD, Dataset, command
from gpumlp.backends import Device
from gpumlp.training.config import ConfigError

from . import common, figures, markdown
from .common import CLASSES, FEATURES, FIT_TOLERANCE, MNIST_SAMPLES, QUICK_SAMPLES

PROGRAM = "scaling"
FLOP_BUDGET = 3e11  # of a timed repeat: two or three seconds of two cores
BYTES_PER_SAMPLE = FEATURES + 64  # pixels; label, order, ordered labels, loss and their temporary copies
MEMORY_PART = 0.7  # of what is free
LEAST_POINTS = 3  # of a fit: through two points there is always a line


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
    repeats: int = common.LEAST_REPEATS
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

    def work() -> int:
        options = command.parse(Options, PROGRAM, words)
        check(options)
        common.check_clock()
        folder = common.output_folder(options)
        devices = common.chosen_devices(options.devices)
        unit = QUICK_SAMPLES if options.quick else MNIST_SAMPLES
        if problems := common.too_large("batch_size", [options.batch_size], unit):
            raise ConfigError("\n".join(problems))
        wanted = (1, 2, 4) if options.quick and options.multiples == Options.multiples else options.multiples
        multiples, left_out = fitting_memory(sorted(set(wanted)), unit, free_memory(), devices)
        data = common.generate(unit * max([1, *multiples]))
        growth = [
            one
            for series in all_series(options, unit, multiples)
            for one in measure(series, data, [device.name for device in devices], options)
        ]
        report = {
            "benchmark": "growth of the cost of an epoch",
            **common.circumstances(devices, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": [note for note in (common.missing_gpu(devices), left_out) if note],
            "workload": {
                "batch_size": options.batch_size,
                "activation": "relu",
                "optimizer": repr(SGD(common.LEARNING_RATE)),
                "dtype": "float32",
                "data": "generated data",
                "samples": unit,
            },
            "method": {
                "unit": "seconds per epoch",
                "repeat": "one epoch, shuffling included, read back at its end; where `samples_timed` of a point "
                "is less than its `samples`, an epoch of that many, scaled up",
                "flop_budget_of_a_repeat": FLOP_BUDGET,
                "repeats": options.repeats,
                "warm_up_epochs": {device.name: 1 if device.name == "cpu" else 2 for device in devices},
                "interleaved": "the devices and settings of a series take turns",
                "fit": "least squares in logarithms, over the longest run of points up to the largest setting in "
                f"which none lies further than {FIT_TOLERANCE:.0%} from the line",
            },
            "growth": growth,
        }
        markdown.show(report)
        stem = folder / "-".join([PROGRAM, *(device.name.replace(":", "") for device in devices)])
        for path in common.write(report, stem, figures.plot):
            print(f"wrote {path}")
        return command.OK

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = common.too_few_repeats(options.repeats)
    problems += common.too_small(options, ["hidden_sizes", "depths", "multiples"])
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
            timed = common.samples_to_time(setting.sizes, options.batch_size, setting.samples, FLOP_BUDGET)
        trainers.append(common.trainer(setting.sizes, common.first(data, timed), device, options.batch_size))
    growth = {
        device: {"device": device, "by": series.by, "fixed": series.fixed, "points": []} for device in devices
    }
    seconds = common.take_turns(trainers, options.repeats, f"{series.by}: warm-up, then repeats")
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
                **common.summary(epochs),
            }
        )
    for each in growth.values():
        points = each["points"]
        fit = fit_power_law([p["x"] for p in points], [p["median"] for p in points])
        each["fit"] = None if fit is None else fit._asdict()
        each["words"] = describe_fit(fit, series.by)
    return list(growth.values())


# -- Power laws ----------------------------------------------------------------------------------------


class PowerLaw(NamedTuple):
    """``y = factor x^exponent``, fitted in logarithms, and where it holds."""

    exponent: float
    factor: float
    first: float  # the smallest and the largest x fitted
    last: float
    points: int
    r_squared: float
    largest_deviation: float  # of a point from the line, as a part of the line's value

    def __call__(self, x: float) -> float:
        """The line's value."""
        return float(self.factor * x**self.exponent)


def fit_power_law(xs: Sequence[float], ys: Sequence[float], tolerance: float = FIT_TOLERANCE) -> PowerLaw | None:
    """The power law at the large end, over as many points as it describes.

    Small settings are ruled by fixed costs, so a line through all points would describe none. Points are
    left out from the small end until every one left lies within `tolerance` of the line through them.

    Args:
        xs: sizes, in rising order.
        ys: costs, all above 0.
        tolerance: the largest deviation, as a part of the line's value.

    Returns:
        The longest such fit of at least three points; where no such is within the tolerance, that of the last
        three, whose `largest_deviation` says so; None where there are fewer than three points.
    """
    fit = None
    for start in range(len(xs) - LEAST_POINTS + 1):
        fit = _line(xs[start:], ys[start:])
        if fit.largest_deviation <= tolerance:
            return fit
    return fit


def _line(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """Least squares in logarithms."""
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    u_mean, v_mean = math.fsum(u) / len(u), math.fsum(v) / len(v)
    slope = math.fsum((a - u_mean) * (b - v_mean) for a, b in zip(u, v, strict=True)) / math.fsum(
        (a - u_mean) ** 2 for a in u
    )
    shift = v_mean - slope * u_mean
    residuals = [b - (shift + slope * a) for a, b in zip(u, v, strict=True)]
    spread = math.fsum((b - v_mean) ** 2 for b in v)
    unexplained = math.fsum(r * r for r in residuals)
    return PowerLaw(
        exponent=slope,
        factor=math.exp(shift),
        first=xs[0],
        last=xs[-1],
        points=len(xs),
        r_squared=1 - unexplained / spread if spread else 1.0,
        largest_deviation=max(abs(math.expm1(r)) for r in residuals),
    )


def describe_fit(fit: PowerLaw | None, what: str) -> str:
    """The fit in words.

    Args:
        fit: of seconds over a size.
        what: the size, as in "hidden size".
    """
    if fit is None:
        return f"too few points for an exponent of the {what}"
    text = (
        f"an epoch's time grows as {what} to the power {fit.exponent:.2f} from {fit.first:,.0f} "
        f"to {fit.last:,.0f} ({fit.points} points, r² {fit.r_squared:.4f}, "
        f"at most {100 * fit.largest_deviation:.0f} % off)"
    )
    return (
        text
        if fit.largest_deviation <= FIT_TOLERANCE
        else f"{text}: no power law holds to {100 * FIT_TOLERANCE:.0f} %"
    )


# -- Memory --------------------------------------------------------------------------------------------


def fitting_memory(
    multiples: Sequence[int], unit: int, free: int | None, devices: Sequence[Device]
) -> tuple[list[int], str | None]:
    """The data sizes for which there is memory, and a note on the others.

    Args:
        multiples: of `unit` samples, in rising order.
        unit: samples.
        free: bytes on the host; None if unknown, and then nothing is left out for it.
        devices: with their memory; a device holds all sizes at once, the host only the largest.
    """
    kept = list(multiples)
    while kept:
        host, device = (unit * BYTES_PER_SAMPLE * n for n in (kept[-1], sum(kept)))
        tight = [d.memory.free for d in devices if d.memory is not None and device > MEMORY_PART * d.memory.free]
        if not tight and (free is None or host <= MEMORY_PART * free):
            break
        kept.pop()
    left_out = multiples[len(kept) :]
    if not left_out:
        return kept, None
    limits = [free, *(d.memory.free for d in devices if d.memory is not None)]
    least = min(limit for limit in limits if limit is not None)
    return kept, (
        f"Left out for lack of memory: {', '.join(f'{m:,}' for m in left_out)} times {unit:,} samples (from "
        f"{unit * BYTES_PER_SAMPLE * left_out[0] / 1e9:,.2f} GB on, of {least / 1e9:,.2f} GB that are free)."
    )


def free_memory() -> int | None:
    """Bytes that this process may still take, from the system and from its container; None if unknown."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    except OSError:
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        folder = Path("/sys/fs/cgroup")
        limits.append(int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return min(limits, default=None)


if __name__ == "__main__":
    sys.exit(main())
