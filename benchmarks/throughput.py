"""Where does a GPU pay? Training throughput over batch sizes: ``python -m benchmarks.throughput``.

For each network, samples per second over batch sizes on every device, and from which batch size on a GPU is
faster than the CPU, with the copy of the data set to the GPU counted and not counted. A GPU is measured as gpumlp
uses it, and also by the persistent kernel where that is possible and not the default.

The benchmark is a shortened training run: the same `Trainer` that ``gpumlp.train`` uses, with the shuffling of
each epoch and without validation. A repeat is one epoch, timed by the trainer itself from the start of the
epoch to the moment its loss has arrived on the host, which waits for the device. The first epoch of each
setting is a warm-up, on a GPU the first two. The repeats are interleaved: every setting of a network once, then
every setting again, so that a disturbance of the machine falls on all of them.

Where an epoch of a large network would take too long, it is one of the data set's first samples only: as many as
cost `FLOP_BUDGET` operations, at least four batches, the same on all devices. The report states how many.

Writes ``throughput-DEVICES.json`` with everything measured, and ``.png`` where matplotlib is installed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import SGD, Dataset, Trainer, command, get_backend
from gpumlp.backends import Backend, ExecutionError
from gpumlp.training.config import ConfigError

from . import common, figures, markdown
from .limits import flops_per_sample

PROGRAM = "throughput"
NETWORKS = ("784-128-10", "784-512-512-10", "784-2048-2048-10")
BATCH_SIZES = tuple(2**k for k in range(4, 14))
EPOCHS_WITH_COPY = (1, 20)  # numbers of epochs over which the copy to the device is spread
FLOP_BUDGET = 1e11  # of a timed repeat: about a second of two cores
QUICK_NETWORKS, QUICK_BATCH_SIZES = ("784-128-10", "784-32-32-10"), (32, 256)


@dataclass(frozen=True)
class Options(common.DataOptions):
    """Measure training throughput over batch sizes, for several networks, on each device there is."""

    devices: tuple[str, ...] = ()
    """cpu, cuda, cuda:1, ...; all there are by default."""
    networks: tuple[str, ...] = NETWORKS
    """Units of each layer, from 784 to 10."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Samples a step."""
    repeats: int = common.LEAST_REPEATS
    """Timed epochs of each setting, at least 5."""
    out: str = "benchmarks/results"
    """Folder for the results."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = command.parse(Options, PROGRAM, words)
        check(options)
        common.check_clock()
        folder = common.output_folder(options)
        networks, batch_sizes = options.networks, options.batch_sizes
        if options.quick:
            networks = QUICK_NETWORKS if networks == NETWORKS else networks
            batch_sizes = QUICK_BATCH_SIZES if batch_sizes == BATCH_SIZES else batch_sizes
        devices = common.chosen_devices(options.devices)
        names = [device.name for device in devices]
        train, notice = common.load_data(options)
        if problems := common.too_large("batch_sizes", batch_sizes, len(train)):
            raise ConfigError("\n".join(problems))

        copies = [copy_to(get_backend(name), train, options.repeats) for name in names if name != "cpu"]
        results = [
            result
            for network in networks
            for result in measure(train, network, ways(names), batch_sizes, options.repeats)
        ]
        count_copies(results, copies, len(train))
        report = {
            "benchmark": "training throughput",
            **common.circumstances(devices, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": [note for note in (notice, common.missing_gpu(devices)) if note],
            "workload": {
                "networks": {
                    network: {"flops_per_sample": flops_per_sample(common.layers(network))} for network in networks
                },
                "activation": "relu",
                "optimizer": repr(SGD(common.LEARNING_RATE)),
                "dtype": "float32",
                "data": common.DATA_NAMES.get(train.name, train.name),
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
                "with_copy": "computed: training on all samples at the median, plus the median copy, once",
            },
            "copies": copies,
            "results": results,
            "crossover": {network: crossovers(results, network, bool(copies)) for network in networks},
        }
        markdown.show(report)
        stem = folder / "-".join([PROGRAM, *(name.replace(":", "") for name in names)])
        for path in common.write(report, stem, figures.plot):
            print(f"wrote {path}")
        return command.OK

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = common.too_few_repeats(options.repeats) + common.too_small(options, ["batch_sizes"])
    problems += common.wrong_networks(options.networks)
    if problems:
        raise ConfigError("\n".join(problems))


def ways(devices: Sequence[str]) -> list[tuple[Backend, str | None]]:
    """Each device by its default execution, which has no name here, and a GPU by the persistent kernel too."""
    pairs = [(device, execution) for device in devices for execution in (None, "persistent")]
    return [
        (get_backend(device, execution=execution or "auto"), execution)
        for device, execution in pairs
        if execution is None or device != "cpu"
    ]


def measure(
    train: Dataset,
    network: str,
    backends: Sequence[tuple[Backend, str | None]],
    batch_sizes: Sequence[int],
    repeats: int,
) -> list[dict[str, Any]]:
    """Train each setting of a network for `repeats` epochs after those of the warm-up, in turns.

    An execution with a name is left out where it does not support the network, or is the default.
    """
    sizes = common.layers(network)
    trainers: dict[tuple[str, str | None, int], Trainer] = {}
    for backend, execution in backends:
        for size in batch_sizes:
            samples = common.samples_to_time(sizes, size, len(train), FLOP_BUDGET)
            each = common.trainer(sizes, common.first(train, samples), backend, size)
            default = trainers.get((backend.name, None, size))
            if execution is None or (default is not None and _differs(each, default)):
                trainers[backend.name, execution, size] = each
    results = []
    seconds = common.take_turns(list(trainers.values()), repeats, f"{network}: warm-up, then repeats")
    for ((device, execution, batch_size), each), times in zip(trainers.items(), seconds, strict=True):
        rates = [each.batches.samples / time for time in times]
        results.append(
            {
                "network": network,
                "device": device,
                **({} if execution is None else {"execution": execution}),
                "batch_size": batch_size,
                "samples": each.batches.samples,
                "steps": len(each.batches.slices),
                "samples_per_second": rates,
                **common.summary(rates),
            }
        )
    return results


def _differs(trainer: Trainer, default: Trainer) -> bool:
    """Whether a trainer's execution supports its network, and is not the default one."""
    try:
        return trainer.execution.name != default.execution.name
    except ExecutionError:
        return False


def copy_to(backend: Backend, train: Dataset, repeats: int) -> dict[str, Any]:
    """How long the data set takes from the host to a device, as at the start of training."""
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
    return {"device": backend.name, "bytes": size, "seconds": seconds, **common.summary(seconds)}


def count_copies(results: Sequence[dict[str, Any]], copies: Sequence[dict[str, Any]], samples: int) -> None:
    """Add to each result of a device that needs a copy the throughput with the copy counted, by epochs."""
    medians = {copy["device"]: copy["median"] for copy in copies}
    for result in results:
        if result["device"] in medians:
            result["with_copy"] = {
                str(epochs): rate_with_copy(result["median"], medians[result["device"]], samples, epochs)
                for epochs in EPOCHS_WITH_COPY
            }


def crossovers(results: Sequence[dict[str, Any]], network: str, copied: bool) -> dict[str, list[str]]:
    """From which batch size on each device is faster than the first, in words, without and with the copy."""
    rows = [result for result in results if result["network"] == network]

    def words(epochs: int | None) -> list[str]:
        rates: dict[str, dict[int, float]] = {}
        for row in rows:
            rate = row["median"] if epochs is None else row.get("with_copy", {}).get(str(epochs), row["median"])
            rates.setdefault(common.series(row), {})[row["batch_size"]] = rate
        return crossover(rates)

    counted = {f"copy counted, {n} epoch{'s' if n > 1 else ''}": words(n) for n in EPOCHS_WITH_COPY if copied}
    return {"copy not counted": words(None), **counted}


def rate_with_copy(rate: float, copy_seconds: float, samples: int, epochs: int) -> float:
    """Samples per second of a whole training run, with the copy of the data set to the device at its start.

    Args:
        rate: samples per second without the copy.
        copy_seconds: what the copy takes, once.
        samples: in an epoch.
        epochs: of the run.
    """
    total = samples * epochs
    return total / (copy_seconds + total / rate)


def crossover(rates: Mapping[str, Mapping[int, float]]) -> list[str]:
    """From which batch size on each device is faster than the first, in words.

    Args:
        rates: samples per second, by device and batch size; those batch sizes count that the first has, too.

    Returns:
        A sentence for each device but the first, or one that there is nothing to compare.
    """
    base, *others = rates
    if not others:
        return ["measured on one device; no crossover"]
    return [_compare(base, rates[base], other, rates[other]) for other in others]


def _compare(base: str, base_rates: Mapping[int, float], other: str, other_rates: Mapping[int, float]) -> str:
    ratios = {size: other_rates[size] / base_rates[size] for size in sorted(base_rates.keys() & other_rates)}
    sizes, largest = list(ratios), max(ratios)
    faster = [size for size in sizes if ratios[size] > 1]
    if not faster:
        ahead = _times({size: 1 / ratio for size, ratio in ratios.items()})
        return f"{base} is at least as fast as {other} at every batch size measured; {ahead}"
    if len(faster) == len(sizes):
        return f"{other} is faster than {base} at every batch size measured; {_times(ratios)}"
    # from here to the end it is always faster; the sizes before that are told apart
    start = len(sizes)
    while ratios[sizes[start - 1]] > 1:
        start -= 1
    if start == len(sizes):
        return f"{other} is faster than {base} at batch {_list(faster)} only, and not at {largest:,}"
    before = [size for size in faster if size < sizes[start]]
    also = f" (and at {_list(before)})" if before else ""
    ahead = f"at {largest:,} by {ratios[largest]:.1f}x"
    return f"from batch {sizes[start]:,} on{also}, {other} is faster than {base}; {ahead}"


def _times(ratios: Mapping[int, float]) -> str:
    """How far ahead at the smallest and at the largest size."""
    return ", ".join(f"at {size:,} by {ratios[size]:.1f}x" for size in sorted({min(ratios), max(ratios)}))


def _list(sizes: Sequence[int]) -> str:
    *head, last = [f"{size:,}" for size in sizes]
    return f"{', '.join(head)} and {last}" if head else last


if __name__ == "__main__":
    sys.exit(main())
