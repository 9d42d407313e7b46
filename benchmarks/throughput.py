"""How fast is training? Samples per second over batch sizes, on each device: ``python -m benchmarks.throughput``.

The benchmark is a shortened training: the same `Trainer` that ``gpumlp.train`` uses, with the shuffling of each
epoch and without validation. A repeat is one epoch, timed by the trainer itself from the start of the epoch to the
moment its loss has arrived on the host, which waits for the device. One epoch of each setting is a warm-up and not
counted. The repeats are interleaved: every setting once, then every setting again, so that a disturbance of the
machine falls on all of them.

Writes ``throughput-DEVICES.json`` with everything measured, and ``.png`` where matplotlib is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.progress import Progress

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
import gpumlp
from gpumlp import MLP, SGD, Dataset, Trainer, command, load_dataset
from gpumlp.backends import check_device_name, choose_device
from gpumlp.training.config import ConfigError

from . import reporting
from .counts import flops_per_sample

PROGRAM = "throughput"
BATCH_SIZES = tuple(2**k for k in range(4, 14))
LEAST_REPEATS = 5
LEARNING_RATE = 0.01  # low, so that no batch size diverges; speed does not depend on it
DATA_NAMES = {"mnist": "MNIST", "generated": "generated data"}
QUICK_SAMPLES, QUICK_BATCH_SIZES = 2048, (32, 256)


@dataclass(frozen=True)
class Options:
    """Measure training throughput over batch sizes, on each device there is."""

    devices: tuple[str, ...] = ()
    """cpu, cuda, cuda:1, ...; all there are by default."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Samples a step."""
    hidden: tuple[int, ...] = (128,)
    """Units of each hidden layer."""
    repeats: int = LEAST_REPEATS
    """Timed epochs of each setting, at least 5."""
    data_dir: str | None = None
    """Folder with MNIST's four files; otherwise $GPUMLP_DATA_DIR, the cache, a download."""
    generated: bool = False
    """Random data of MNIST's shape in place of MNIST; also taken where MNIST is not to be had."""
    out: str = "benchmarks/results"
    """Folder for the results."""
    quick: bool = False
    """Only show that it works: 2,048 generated samples, batch sizes 32 and 256. No figures to quote."""


@dataclass(frozen=True)
class Result:
    """One setting: the samples per second of each repeat, in order."""

    device: str
    batch_size: int
    steps: int  # in an epoch
    samples_per_second: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, prog=PROGRAM, args=words, config=(tyro.conf.FlagCreatePairsOff,))

    def work() -> int:
        check(options)
        devices = chosen_devices(options.devices)
        train, notice = load_data(options)
        batch_sizes = options.batch_sizes
        if options.quick and batch_sizes == BATCH_SIZES:
            batch_sizes = QUICK_BATCH_SIZES
        sizes = (train.features, *options.hidden, train.classes)

        results = measure(train, sizes, [device.name for device in devices], batch_sizes, options.repeats)
        report = {
            "benchmark": "training throughput",
            **reporting.circumstances(devices, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": [note for note in (notice, missing_gpu(devices)) if note],
            "workload": {
                "network": "-".join(map(str, sizes)),
                "activation": "relu",
                "optimizer": repr(SGD(LEARNING_RATE)),
                "dtype": "float32",
                "data": DATA_NAMES.get(train.name, train.name),
                "samples": len(train),
                "flops_per_sample": flops_per_sample(sizes),
            },
            "method": {
                "unit": "samples/s",
                "repeat": "one epoch, shuffling included, read back at its end",
                "repeats": options.repeats,
                "warm_up_epochs": 1,
                "interleaved": True,
            },
            "results": [{**asdict(result), **reporting.summary(result.samples_per_second)} for result in results],
        }
        reporting.print_table(report)
        names = "-".join(device.name.replace(":", "") for device in devices)
        default = Options.out
        out = "runs/benchmark-trial" if options.quick and options.out == default else options.out
        for path in reporting.write(report, Path(out) / f"throughput-{names}"):
            print(f"wrote {path}")
        return command.OK

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = []
    if options.repeats < LEAST_REPEATS:
        problems.append(
            f"repeats: expected {LEAST_REPEATS} or more, for a median and a spread, got {options.repeats}"
        )
    for name in ("batch_sizes", "hidden"):
        for value in getattr(options, name):
            if value < 1:
                problems.append(f"{name}: expected 1 or more, got {value}")
    if not options.batch_sizes:
        problems.append("batch_sizes: expected at least one, got none")
    if problems:
        raise ConfigError("\n".join(problems))


def chosen_devices(names: Sequence[str]) -> list[gpumlp.backends.Device]:
    """The devices to measure: those named, in that order, or all that can be used."""
    available = {device.name: device for device in gpumlp.available_devices()}
    if not names:
        return list(available.values())
    try:
        wanted = [gpumlp.get_backend(check_device_name(name)).name for name in names]
    except ValueError as error:
        raise ConfigError(f"devices: {error}") from error
    return [available[name] for name in dict.fromkeys(wanted)]


def missing_gpu(devices: Sequence[gpumlp.backends.Device]) -> str | None:
    """What must stand beside figures that are the CPU's alone."""
    if any(device.name != "cpu" for device in devices):
        return None
    backend, reason = choose_device()
    return f"Only the CPU was measured ({reason if backend.name == 'cpu' else 'as chosen with --devices'})."


def load_data(options: Options) -> tuple[Dataset, str | None]:
    """Training samples of MNIST's shape, and what must be said about them."""
    if not (options.generated or options.quick):
        train, _, notice = load_dataset("auto", options.data_dir)
        if train.name != "digits":  # 64 features would be another network
            return train, notice
    samples = QUICK_SAMPLES if options.quick else 60_000
    why = "as asked for" if options.generated or options.quick else "MNIST is not to be had here"
    return generate(samples), f"Generated data of MNIST's shape, {samples:,} samples ({why})."


def generate(samples: int) -> Dataset:
    """Random pixels and labels: as much work as MNIST, and nothing to learn."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
    return Dataset(images, rng.integers(0, 10, samples), classes=10, name="generated")


def measure(
    train: Dataset, sizes: Sequence[int], devices: Sequence[str], batch_sizes: Sequence[int], repeats: int
) -> list[Result]:
    """Train each setting for `repeats` epochs after one that is not counted, the settings taking turns."""
    settings = [(device, batch_size) for device in devices for batch_size in batch_sizes]
    trainers = [
        Trainer(
            MLP(list(sizes), activation="relu", seed=0, device=device),
            train,
            optimizer=SGD(LEARNING_RATE),
            batch_size=batch_size,
        )
        for device, batch_size in settings
    ]
    with Progress(transient=True) as progress:
        for epochs in progress.track(range(1, repeats + 2), description="warm-up, then repeats"):
            for trainer in trainers:
                trainer.model.backend.synchronize()  # nothing of the setting before may run into this one
                trainer.run(epochs)
    return [
        Result(device, batch_size, len(trainer.batches.slices), trainer.history["samples_per_second"][1:])
        for (device, batch_size), trainer in zip(settings, trainers, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
