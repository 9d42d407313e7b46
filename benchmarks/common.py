"""What the benchmarks share: devices, data, timed training, the circumstances of a measurement, and its files."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import threadpoolctl
from rich.progress import Progress

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
import gpumlp
from gpumlp import MLP, SGD, Dataset, Trainer, load_dataset
from gpumlp.backends import Backend, Device, blas_kernel, check_device_name, choose_device
from gpumlp.extras import MissingExtraError, require
from gpumlp.files import user_path
from gpumlp.info import usable_processors, version
from gpumlp.terminal import console
from gpumlp.training.config import ConfigError

from .limits import flops_per_sample

LEAST_REPEATS = 5
LEARNING_RATE = 0.01  # low, so that no batch size diverges; speed does not depend on it
MNIST_SAMPLES, FEATURES, CLASSES = 60_000, 784, 10
QUICK_SAMPLES = 2048
LEAST_STEPS = 4  # of a timed repeat
FIT_TOLERANCE = 0.1  # a power law holds where no point is further from it than this part of its value
DATA_NAMES = {"mnist": "MNIST", "generated": "generated data"}
TRIAL_FOLDER = "runs/benchmark-trial"
# Environment variables that change speed; recorded where they are set.
_SPEED_VARIABLES = (
    "GPUMLP_BLAS_KERNEL",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUPY_TF32",
    "CUPY_ACCELERATORS",
    "CUDA_VISIBLE_DEVICES",
)


# -- Options, devices and data -----------------------------------------------------------------------------


@dataclass(frozen=True)
class DataOptions:
    """Which data to take."""

    data_dir: str | None = None
    """Folder with MNIST's four files; otherwise $GPUMLP_DATA_DIR, the cache, a download."""
    generated: bool = False
    """Random data of MNIST's shape in place of MNIST; also taken where MNIST is not available."""
    quick: bool = False
    """Only show that it works: generated samples, few small settings. No figures to quote."""


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


def layers(network: str) -> list[int]:
    """Units of each layer of a network's name, ``"784-128-10"``; 0 for a part that is not a number."""
    return [int(part) if part.isdecimal() else 0 for part in network.split("-")]


def wrong_networks(networks: Sequence[str]) -> list[str]:
    """The problems of networks that do not fit MNIST's shape."""
    problems = [] if networks else ["networks: expected at least one, got none"]
    for network in networks:
        sizes = layers(network)
        if len(sizes) < 2 or min(sizes) < 1 or (sizes[0], sizes[-1]) != (FEATURES, CLASSES):
            problems.append(
                f"networks: expected units of each layer from {FEATURES} to {CLASSES}, such as 784-128-10, "
                f"got {network}"
            )
    return problems


def load_data(options: DataOptions) -> tuple[Dataset, str | None]:
    """Training samples of MNIST's shape, and what must be said about them."""
    if not (options.generated or options.quick):
        train, _, notice = load_dataset("auto", options.data_dir)
        if train.name != "digits":  # 64 features would be another network
            return train, notice
    samples = QUICK_SAMPLES if options.quick else MNIST_SAMPLES
    why = "as asked for" if options.generated or options.quick else "MNIST is not available"
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


def trainer(sizes: Sequence[int], train: Dataset, device: str | Backend, batch_size: int) -> Trainer:
    """The training run that every benchmark times: ReLU, plain SGD, float32."""
    model = MLP(list(sizes), activation="relu", seed=0, device=device)
    return Trainer(model, train, optimizer=SGD(LEARNING_RATE), batch_size=batch_size, diagnostics=False)


def check_clock() -> None:
    """Raise ConfigError where time does not pass, as in a process whose clock is faked."""
    start = time.perf_counter()
    time.sleep(0.001)
    if time.perf_counter() <= start:
        raise ConfigError("expected a clock that advances, to measure with, got one that stands still")


def progress_bar() -> Progress:
    """A bar that disappears at the end."""
    return Progress(console=console(), transient=True)


def take_turns(trainers: Sequence[Trainer], repeats: int, label: str) -> list[list[float]]:
    """Seconds of each of `repeats` epochs after the warm-up, the trainers taking turns.

    The warm-up is one epoch on the CPU and two on a GPU, where kernels are compiled and CUDA graphs captured.
    """
    with progress_bar() as progress:
        for _ in progress.track(range(repeats + 1), description=label):
            for each in trainers:
                if each.epoch == 0 and each.model.backend.name != "cpu":
                    each.run(1)
                each.model.backend.synchronize()  # nothing of the previous trainer may run into this one
                each.run(each.epoch + 1)
    return [each.history["seconds"][-repeats:] for each in trainers]


# -- Circumstances and files --------------------------------------------------------------------------------


def circumstances(devices: Sequence[Device], arguments: Sequence[str], program: str) -> dict[str, Any]:
    """Date, command line, commit, hardware, versions and BLAS, as JSON can hold them."""
    gpus = any(device.name != "cpu" for device in devices)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"{program} {shlex.join(arguments)}".strip(),
        "commit": commit(),
        "hardware": {
            "system": platform.platform(),
            "processors_usable": usable_processors(),
            "load_average_at_end": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
            "nvidia_smi": _nvidia_smi() if gpus else None,
        },
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "memory_bytes": None if device.memory is None else device.memory.total,
            }
            for device in devices
        ],
        "versions": {
            "python": platform.python_version(),
            "gpumlp": gpumlp.__version__,
            "numpy": version("numpy"),
            "cupy": version("cupy"),
        },
        "blas": [
            {
                "library": pool["internal_api"],
                "version": pool["version"],
                "kernel": pool.get("architecture"),
                "threads": pool["num_threads"],
            }
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "blas_kernel_choice": blas_kernel.CHOICE._asdict(),
        "environment": {name: os.environ[name] for name in _SPEED_VARIABLES if name in os.environ},
    }


def commit() -> str | None:
    """The short hash of the checkout that this runs from, with a + if its files have changed; None outside of one.

    Results do not count as changes: a run on several devices has written some before it comes to its end.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # or a repository that gpumlp was unpacked into would answer
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def output_folder(options: Any) -> Path:
    """The folder for the results, made before anything is measured; a part of them must not replace the whole."""
    names = ("data_dir", "devices", "seconds", "repeats")
    kept = {name: getattr(options, name) for name in names if hasattr(options, name)}
    trial = options.out == type(options).out and options != type(options)(**kept)
    folder = user_path(TRIAL_FOLDER if trial else options.out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(report: dict[str, Any], stem: Path, plot: Callable[[dict[str, Any], Path], list[Path]]) -> list[Path]:
    """Write ``stem.json`` and its figures; without matplotlib only the first, and say so.

    Args:
        report: what was measured.
        stem: path of the files without the ending.
        plot: draws the report into ``stem.png`` and files beside it, and returns their paths.
    """
    written = [write_json(report, stem)]
    try:
        require("figures", "matplotlib", "benchmark")
    except MissingExtraError as error:
        print(f"no figure: {error}")
    else:
        written += plot(report, Path(f"{stem}.png"))
    return written


def write_json(report: dict[str, Any], stem: Path) -> Path:
    """Write ``stem.json``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = Path(f"{stem}.json")
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def series(row: dict[str, Any]) -> str:
    """The device of a result, and the execution where that is not the default: ``"cuda:0, persistent"``."""
    return ", ".join(filter(None, (row["device"], row.get("execution"))))


def facts(report: dict[str, Any]) -> list[str]:
    """What the figures were measured with, in sentences."""
    blas = "; ".join(
        f"{pool['library']} {pool['version']}, kernel {pool['kernel']}, {pool['threads']} threads"
        for pool in report["blas"]
    )
    return [
        *(f"{device['name']}: {device['description']}" for device in report["devices"]),
        ", ".join(f"{name} {version or 'not installed'}" for name, version in report["versions"].items()),
        f"BLAS: {blas or 'none that threadpoolctl knows'}",
        f"{report['hardware']['processors_usable']} processors usable; measured {report['date'][:10]}",
    ]


def _nvidia_smi() -> list[str] | None:
    """Name, driver, highest clock and power limit of each GPU, as the driver tells them."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=index,name,driver_version,clocks.max.sm,power.limit"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()
