"""Where does a GPU pay? Training throughput over batch sizes: ``python -m benchmarks.throughput``.

For each network, samples per second over batch sizes on every device, and from which batch size on a GPU is
faster than the CPU, with the copy of the data set to the GPU counted and not counted.

The benchmark is a shortened training: the same `Trainer` that ``gpumlp.train`` uses, with the shuffling of each
epoch and without validation. A repeat is one epoch, timed by the trainer itself from the start of the epoch to the
moment its loss has arrived on the host, which waits for the device. One epoch of each setting is a warm-up and not
counted, two on a GPU, where CUDA graphs may be tried in the second. The repeats are interleaved: every setting of
a network once, then every setting again, so that a disturbance of the machine falls on all of them.

Where an epoch of a large network would take too long, it is one of the data set's first samples only: as many as
cost `FLOP_BUDGET` operations, at least four batches, the same on all devices. The report states how many.

Writes ``throughput-DEVICES.json`` with everything measured, and ``.png`` where matplotlib is installed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from gpumlp import SGD, Dataset, command, get_backend
from gpumlp.backends import Backend
from gpumlp.training.config import ConfigError

from . import analysis, figures, reporting
from .counts import flops_per_sample
from .measuring import (
    CLASSES,
    FEATURES,
    LEARNING_RATE,
    LEAST_REPEATS,
    chosen_devices,
    first,
    load_data,
    missing_gpu,
    samples_to_time,
    take_turns,
    too_few_repeats,
    too_large,
    too_small,
    trainer,
)

PROGRAM = "throughput"
NETWORKS = ("784-128-10", "784-512-512-10", "784-2048-2048-10")
BATCH_SIZES = tuple(2**k for k in range(4, 14))
EPOCHS_WITH_COPY = (1, 20)  # trainings over which the copy to the device is spread
FLOP_BUDGET = 1e11  # of a timed repeat: about a second of two cores
DATA_NAMES = {"mnist": "MNIST", "generated": "generated data"}
QUICK_NETWORKS, QUICK_BATCH_SIZES = ("784-128-10", "784-32-32-10"), (32, 256)


@dataclass(frozen=True)
class Options:
    """Measure training throughput over batch sizes, for several networks, on each device there is."""

    devices: tuple[str, ...] = ()
    """cpu, cuda, cuda:1, ...; all there are by default."""
    networks: tuple[str, ...] = NETWORKS
    """Units of each layer, from 784 to 10."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Samples a step."""
    repeats: int = LEAST_REPEATS
    """Timed epochs of each setting, at least 5."""
    data_dir: str | None = None
    """Folder with MNIST's four files; otherwise $GPUMLP_DATA_DIR, the cache, a download."""
    generated: bool = False
    """Random data of MNIST's shape in place of MNIST; also taken where MNIST is not to be had."""
    out: str = "benchmarks/results"
    """Folder for the results."""
    quick: bool = False
    """Only show that it works: 2,048 generated samples, small networks, batch sizes 32 and 256. No figures to
    quote."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, prog=PROGRAM, args=words, config=(tyro.conf.FlagCreatePairsOff,))

    def work() -> int:
        check(options)
        folder = reporting.output_folder(options.out, trial=options.quick and options.out == Options.out)
        networks, batch_sizes = options.networks, options.batch_sizes
        if options.quick:
            networks = QUICK_NETWORKS if networks == NETWORKS else networks
            batch_sizes = QUICK_BATCH_SIZES if batch_sizes == BATCH_SIZES else batch_sizes
        devices = chosen_devices(options.devices)
        names = [device.name for device in devices]
        train, notice = load_data(options)
        if problems := too_large("batch_sizes", batch_sizes, len(train)):
            raise ConfigError("\n".join(problems))

        copies = [copy_to(get_backend(name), train, options.repeats) for name in names if name != "cpu"]
        results = [
            result
            for network in networks
            for result in measure(train, network, names, batch_sizes, options.repeats)
        ]
        count_copies(results, copies, len(train))
        report = {
            "benchmark": "training throughput",
            **reporting.circumstances(devices, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": [note for note in (notice, missing_gpu(devices)) if note],
            "workload": {
                "networks": {
                    network: {"flops_per_sample": flops_per_sample(layers(network))} for network in networks
                },
                "activation": "relu",
                "optimizer": repr(SGD(LEARNING_RATE)),
                "dtype": "float32",
                "data": DATA_NAMES.get(train.name, train.name),
                "samples": len(train),
            },
            "method": {
                "unit": "samples/s",
                "repeat": "one epoch, shuffling included, read back at its end; of the first samples only where "
                "`samples` of a result is less than the workload's",
                "flop_budget_of_a_repeat": FLOP_BUDGET,
                "repeats": options.repeats,
                "warm_up_epochs": {name: 1 if name == "cpu" else 2 for name in names},
                "interleaved": "the devices and batch sizes of a network take turns",
                "with_copy": "computed: a training on all samples at the median, plus the median copy, once",
            },
            "copies": copies,
            "results": results,
            "crossover": {network: crossovers(results, network, bool(copies)) for network in networks},
        }
        reporting.print_throughput(report)
        stem = folder / "-".join([PROGRAM, *(name.replace(":", "") for name in names)])
        for path in reporting.write(report, stem, figures.plot_throughput):
            print(f"wrote {path}")
        return command.OK

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = too_few_repeats(options.repeats) + too_small(options, ["batch_sizes"])
    if not options.networks:
        problems.append("networks: expected at least one, got none")
    for network in options.networks:
        sizes = layers(network)
        if len(sizes) < 2 or min(sizes) < 1 or (sizes[0], sizes[-1]) != (FEATURES, CLASSES):
            problems.append(
                f"networks: expected units of each layer from {FEATURES} to {CLASSES}, such as {NETWORKS[0]}, "
                f"got {network}"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def layers(network: str) -> list[int]:
    """Units of each layer of a network's name, ``"784-128-10"``; a part that is no number is 0."""
    return [int(part) if part.isdecimal() else 0 for part in network.split("-")]


def measure(
    train: Dataset, network: str, devices: Sequence[str], batch_sizes: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Train each setting of a network for `repeats` epochs after those of the warm-up, in turns."""
    sizes = layers(network)
    settings = [(device, batch_size) for device in devices for batch_size in batch_sizes]
    trainers = [
        trainer(sizes, first(train, samples_to_time(sizes, size, len(train), FLOP_BUDGET)), device, size)
        for device, size in settings
    ]
    results = []
    seconds = take_turns(trainers, repeats, f"{network}: warm-up, then repeats")
    for (device, batch_size), each, times in zip(settings, trainers, seconds, strict=True):
        rates = [each.batches.samples / time for time in times]
        results.append(
            {
                "network": network,
                "device": device,
                "batch_size": batch_size,
                "samples": each.batches.samples,
                "steps": len(each.batches.slices),
                "samples_per_second": rates,
                **reporting.summary(rates),
            }
        )
    return results


def copy_to(backend: Backend, train: Dataset, repeats: int) -> dict[str, Any]:
    """How long the data set takes from the host to a device, as at the start of a training."""
    images, seconds = train.images.reshape(len(train), -1), []
    with backend.activate():
        for _ in range(repeats + 1):
            backend.synchronize()
            start = time.perf_counter()
            arrays = [backend.asarray(images), backend.asarray(train.labels)]
            backend.synchronize()
            seconds.append(time.perf_counter() - start)
            del arrays
    seconds = seconds[1:]  # the first allocates the device's memory, and is the warm-up
    size = images.nbytes + train.labels.nbytes
    return {"device": backend.name, "bytes": size, "seconds": seconds, **reporting.summary(seconds)}


def count_copies(results: Sequence[dict[str, Any]], copies: Sequence[dict[str, Any]], samples: int) -> None:
    """Add to each result of a device that needs a copy the throughput with the copy counted, by epochs."""
    medians = {copy["device"]: copy["median"] for copy in copies}
    for result in results:
        if result["device"] in medians:
            result["with_copy"] = {
                str(epochs): analysis.rate_with_copy(result["median"], medians[result["device"]], samples, epochs)
                for epochs in EPOCHS_WITH_COPY
            }


def crossovers(results: Sequence[dict[str, Any]], network: str, copied: bool) -> dict[str, list[str]]:
    """From which batch size on each device is faster than the first, in words, without and with the copy."""
    rows = [result for result in results if result["network"] == network]

    def words(epochs: int | None) -> list[str]:
        rates: dict[str, dict[int, float]] = {}
        for row in rows:
            rate = row["median"] if epochs is None else row.get("with_copy", {}).get(str(epochs), row["median"])
            rates.setdefault(row["device"], {})[row["batch_size"]] = rate
        return analysis.crossover(rates)

    counted = {f"copy counted, {n} epoch{'s' if n > 1 else ''}": words(n) for n in EPOCHS_WITH_COPY if copied}
    return {"copy not counted": words(None), **counted}


if __name__ == "__main__":
    sys.exit(main())
