"""The options of the comparison, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpumlp import Dataset
from gpumlp.training.config import ConfigError

from .agreement import TOLERANCES
from .measuring import too_large
from .peers import ALL

NETWORKS = ("784-128-10", "784-512-512-10", "784-2048-2048-10")
BATCH_SIZES = (16, 32, 64, 128, 256, 1024, 4096, 8192)
LEAST_REPEATS = 5
NAMES = tuple(peer.name for peer in ALL)
QUICK_BATCH_SIZES = (32, 256)


@dataclass(frozen=True)
class Options:
    """Compare gpumlp's training throughput with other libraries', on each device there is."""

    devices: tuple[str, ...] = ()
    """cpu, cuda, cuda:1, ...; all there are by default."""
    peers: tuple[str, ...] = ()
    """gpumlp, torch, torch-compiled, torch-graph, jax, scikit-learn, numpy, gpumlp-persistent; all by default."""
    networks: tuple[str, ...] = NETWORKS
    """Units of each layer, inputs first."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Samples a step."""
    momenta: tuple[float, ...] = (0.0, 0.9)
    """Of SGD; 0 is plain SGD."""
    dtype: str = "float32"
    """float32 or float64."""
    repeats: int = LEAST_REPEATS
    """Timed runs of each peer in each setting, at least 5."""
    seconds: float = 0.3
    """About how long a timed run of gpumlp takes; a slower peer's takes longer."""
    samples: int | None = None
    """Samples of an epoch, the first of the data; as --seconds allows by default."""
    threads: int | None = None
    """Of the CPU, for every peer; each library's own choice by default, or what a trial finds best."""
    data_dir: str | None = None
    """Folder with MNIST's four files; otherwise $GPUMLP_DATA_DIR, the cache, a download."""
    generated: bool = False
    """Random data of MNIST's shape in place of MNIST; also taken where MNIST is not to be had."""
    out: str = "benchmarks/results"
    """Folder for the results."""
    check: bool = False
    """Only check that the peers agree; measure nothing, write nothing."""
    quick: bool = False
    """Only show that it works: generated samples, 784-128-10, batch sizes 32 and 256. No figures to quote."""


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = []
    for name in options.peers:
        if name not in NAMES:
            problems.append(f"peers: expected {', '.join(NAMES)}, got {name!r}")
    for network in options.networks:
        parts = network.split("-")
        if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            problems.append(f"networks: expected units of each layer such as 784-128-10, got {network!r}")
    problems += [f"batch_sizes: expected 1 or more, got {size}" for size in options.batch_sizes if size < 1]
    problems += [f"momenta: expected 0 or more and below 1, got {m}" for m in options.momenta if not 0 <= m < 1]
    for name in ("networks", "batch_sizes", "momenta"):
        if not getattr(options, name):
            problems.append(f"{name}: expected at least one, got none")
    if options.dtype not in TOLERANCES:
        problems.append(f"dtype: expected {' or '.join(TOLERANCES)}, got {options.dtype!r}")
    least = {"repeats": LEAST_REPEATS, "samples": 2, "threads": 1}
    for name, limit in least.items():
        value = getattr(options, name)
        if value is not None and value < limit:
            problems.append(f"{name}: expected {limit} or more, got {value}")
    if not 0 < options.seconds <= 60:
        problems.append(f"seconds: expected more than 0 and at most 60, got {options.seconds}")
    if problems:
        raise ConfigError("\n".join(problems))


def check_fits(options: Options, networks: Sequence[tuple[int, ...]], train: Dataset) -> None:
    """Raise a ConfigError for a network or a batch size that the data is not made for."""
    problems = []
    for sizes in networks:
        if (sizes[0], sizes[-1]) != (train.features, train.classes):
            fit = f"{train.features} inputs and {train.classes} classes"
            problems.append(f"networks: {train} needs {fit}, got {'-'.join(map(str, sizes))}")
    most = min(len(train), options.samples or len(train))
    problems += too_large("batch_sizes", or_quick(options, "batch_sizes", QUICK_BATCH_SIZES), most)
    if options.samples and options.samples > len(train):
        problems.append(f"samples: there are {len(train):,}, got {options.samples:,}")
    if problems:
        raise ConfigError("\n".join(problems))


def layer_sizes(network: str) -> tuple[int, ...]:
    """(784, 128, 10) of 784-128-10."""
    return tuple(map(int, network.split("-")))


def or_quick(options: Options, name: str, quick: tuple) -> tuple:
    """An option's value; with --quick what `quick` says, unless the option was given."""
    value: tuple = getattr(options, name)
    return quick if options.quick and value == getattr(Options, name) else value
