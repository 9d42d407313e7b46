"""What the benchmarks share: devices, data, the work in a sample, and timed trainings that take turns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.progress import Progress

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
import gpumlp
from gpumlp import MLP, SGD, Dataset, Trainer, load_dataset
from gpumlp.backends import Device, check_device_name, choose_device
from gpumlp.training.config import ConfigError

from .counts import flops_per_sample

LEAST_REPEATS = 5
LEARNING_RATE = 0.01  # low, so that no batch size diverges; speed does not depend on it
MNIST_SAMPLES, FEATURES, CLASSES = 60_000, 784, 10
QUICK_SAMPLES = 2048
LEAST_STEPS = 4  # of a timed repeat
BYTES_PER_SAMPLE = FEATURES + 64  # pixels; label, order, ordered labels, loss and their temporary copies
MEMORY_PART = 0.7  # of what is free


class DataOptions(Protocol):
    """The options that say which data to take."""

    @property
    def data_dir(self) -> str | None: ...
    @property
    def generated(self) -> bool: ...
    @property
    def quick(self) -> bool: ...


def chosen_devices(names: Sequence[str]) -> list[Device]:
    """The devices to measure: those named, in that order, or all that can be used."""
    available = {device.name: device for device in gpumlp.available_devices()}
    if not names:
        return list(available.values())
    try:
        wanted = [gpumlp.get_backend(check_device_name(name)).name for name in names]
    except ValueError as error:
        raise ConfigError(f"devices: {error}") from error
    return [available[name] for name in dict.fromkeys(wanted)]


def missing_gpu(devices: Sequence[Device]) -> str | None:
    """What must stand beside figures that are the CPU's alone."""
    if any(device.name != "cpu" for device in devices):
        return None
    backend, reason = choose_device()
    why = reason if backend.name == "cpu" else "as chosen with --devices"
    return f"Only the CPU was measured ({why}); nothing here is a GPU's figure."


def too_few_repeats(repeats: int) -> list[str]:
    """The problem with a number of repeats, if there is one."""
    if repeats >= LEAST_REPEATS:
        return []
    return [f"repeats: expected {LEAST_REPEATS} or more, for a median and a spread, got {repeats}"]


def too_small(options: object, names: Sequence[str]) -> list[str]:
    """The problems of options that hold whole numbers, at least one of them and each 1 or more."""
    problems = []
    for name in names:
        values = getattr(options, name)
        if not values:
            problems.append(f"{name}: expected at least one, got none")
        problems.extend(f"{name}: expected 1 or more, got {value}" for value in values if value < 1)
    return problems


def too_large(name: str, sizes: Sequence[int], samples: int) -> list[str]:
    """The problems of batch sizes, the values of an option, for which the data has too few samples."""
    return [f"{name}: expected no more than the {samples:,} samples, got {n:,}" for n in sizes if n > samples]


def load_data(options: DataOptions) -> tuple[Dataset, str | None]:
    """Training samples of MNIST's shape, and what must be said about them."""
    if not (options.generated or options.quick):
        train, _, notice = load_dataset("auto", options.data_dir)
        if train.name != "digits":  # 64 features would be another network
            return train, notice
    samples = QUICK_SAMPLES if options.quick else MNIST_SAMPLES
    why = "as asked for" if options.generated or options.quick else "MNIST is not to be had here"
    return generate(samples), f"Generated data of MNIST's shape, {samples:,} samples ({why})."


def generate(samples: int) -> Dataset:
    """Random pixels and labels: as much work as MNIST, and nothing to learn."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
    return Dataset(images, rng.integers(0, CLASSES, samples), classes=CLASSES, name="generated")


def first(train: Dataset, samples: int) -> Dataset:
    """The first samples of a data set, without a copy of them."""
    if samples >= len(train):
        return train
    return Dataset(train.images[:samples], train.labels[:samples], classes=train.classes, name=train.name)


def samples_to_time(sizes: Sequence[int], batch_size: int, available: int, flop_budget: float) -> int:
    """How many samples a timed repeat trains on: whole batches within the budget, or all there are.

    The same for every device, and on every machine.

    Args:
        sizes: of the network.
        batch_size: samples a step.
        available: samples in the data set.
        flop_budget: floating-point operations of the matrix products in a repeat; four steps may exceed it.
    """
    affordable = int(flop_budget / flops_per_sample(sizes)) // batch_size
    return min(available, max(affordable, LEAST_STEPS) * batch_size)


def trainer(sizes: Sequence[int], train: Dataset, device: str, batch_size: int) -> Trainer:
    """The training that every benchmark times: ReLU, plain SGD, float32."""
    model = MLP(list(sizes), activation="relu", seed=0, device=device)
    return Trainer(model, train, optimizer=SGD(LEARNING_RATE), batch_size=batch_size, diagnostics=False)


def take_turns(trainers: Sequence[Trainer], repeats: int, label: str) -> list[list[float]]:
    """Seconds of each of `repeats` epochs after those that are not counted, the trainings taking turns.

    One is not counted, and where a device finds out how it runs the steps best (CUDA graphs or not) a second one:
    of few batches it takes the first epoch to get ready and the second to try.
    """
    with Progress(transient=True) as progress:
        for _ in progress.track(range(repeats + 1), description=label):
            for each in trainers:
                if each.epoch == 0 and each.how_steps_ran is not None:
                    each.run(1)
                each.model.backend.synchronize()  # nothing of the setting before may run into this one
                each.run(each.epoch + 1)
    return [each.history["seconds"][-repeats:] for each in trainers]


def fitting_memory(
    multiples: Sequence[int], unit: int, free: int | None, devices: Sequence[Device]
) -> tuple[list[int], str | None]:
    """The data sizes for which there is memory, and what must be said of the others.

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
        f"Left out for want of memory: {', '.join(f'{m:,}' for m in left_out)} times {unit:,} samples (from "
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
