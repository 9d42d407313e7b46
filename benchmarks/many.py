"""Many networks at once: `gpumlp.fit_many`, gpumlp one by one, and JAX's `vmap`: ``python -m benchmarks.many``.

`fit_many` is timed twice: training alone, as the others do, and with a fifth as many samples evaluated after every
epoch and with the diagnostics, as a sweep or a search trains (``validated``).

K networks of one shape, each with its own initial weights, learning rate and batch order, train on the same data:
784-128-10 on MNIST (SGD with momentum 0.9, batch size 128) and 30-100-2 on generated numbers (Adam, batch size
200). How long does a step of all of them take, and how many networks does a device train in a second?

First the losses of three networks of each peer are compared with those of gpumlp in float64 on the CPU; a peer
that disagrees is not timed. Then, number by number, the peers take turns: a first epoch, whose time is stated
(worker processes start, kernels are compiled), a trial of equivalent ways, and the timed runs. A run is as many
whole epochs as a peer trains in ``--seconds``, at least one, with shuffling and every network's loss read on the
host; on a CPU it is one call of ``fit_many``. On a GPU the steps of an epoch are also timed by themselves, on an
order that is there: with many networks, drawing orders on the host may take longer than training.

Writes ``many-DEVICES.json`` with everything measured, and ``.png`` where matplotlib is installed.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import SGD, Adam, Dataset, command
from gpumlp.info import version
from gpumlp.training.config import ConfigError

from . import common, figures, markdown
from .agreement import TOLERANCES
from .peers import first_line
from .peers.many import JaxVmap, Networks, OneByOne, Workload, together
from .timing import MOST_EPOCHS, REST

PROGRAM = "many"
WORKLOADS = {
    "784-128-10": Workload((784, 128, 10), 128, SGD(common.LEARNING_RATE, momentum=0.9)),
    "30-100-2": Workload((30, 100, 2), 200, Adam()),
}
PEERS = ("gpumlp", "validated", "one-by-one", "jax")
NETWORKS = (1, 14, 64, 256)
EPOCHS = 20  # of a training run, of which a device does so many a second
CPU_SAMPLES, GENERATED_SAMPLES = 6_000, 10_000
CHECKED_NETWORKS, CHECKED_EPOCHS, CHECKED_STEPS = 3, 2, 10.5
QUICK_NETWORKS, QUICK_SAMPLES, QUICK_SECONDS = (1, 3), 640, 0.01


@dataclass(frozen=True)
class Options(common.DataOptions):
    """Time the training of many networks at once, beside one by one and JAX's vmap, on each device there is."""

    devices: tuple[str, ...] = ()
    """cpu, cuda, cuda:1, ...; all there are by default."""
    networks: tuple[int, ...] = NETWORKS
    """How many networks at once."""
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    """784-128-10, 30-100-2."""
    peers: tuple[str, ...] = PEERS
    """gpumlp, validated, one-by-one, jax."""
    samples: int | None = None
    """Samples of an epoch, the first of the data, at most all; by default all on a GPU, and 6,000 on a CPU."""
    multiprocessors: int | None = None
    """Of a GPU for each network of fit_many; by default as many as it needs, alone or among others."""
    repeats: int = common.LEAST_REPEATS
    """Timed runs of each peer, at least 5."""
    seconds: float = 0.3
    """About how long a timed run takes; an epoch at least."""
    out: str = "benchmarks/results"
    """Folder for the results."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code: 1 if a peer disagrees, or if there was none to measure."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = command.parse(Options, PROGRAM, words)
        check(options)
        common.check_clock()
        devices = common.chosen_devices(options.devices)
        data, notice = load_data(options)
        folder = common.output_folder(options)
        found = Found()
        for device in devices:
            for name in options.workloads:
                measure(options, name, data[name], device.name, found)
        if not found.results:
            print(f"{PROGRAM}: no peer could be measured; nothing is written", file=sys.stderr)
            return command.FAILED
        report = {
            "benchmark": "many networks",
            **common.circumstances(devices, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": [note for note in (notice, common.missing_gpu(devices)) if note],
            "workload": {
                "networks": {
                    name: {
                        "samples": len(data[name]),
                        "batch_size": WORKLOADS[name].batch_size,
                        "optimizer": repr(WORKLOADS[name].optimizer),
                        "data": common.DATA_NAMES.get(data[name].name, data[name].name),
                    }
                    for name in options.workloads
                },
                "epochs": EPOCHS,
                "activation": "relu",
                "dtype": "float32",
            },
            "method": {
                "unit": "samples/s of all networks together",
                "run": "whole epochs, each with shuffling and each network's mean loss read on the host; as many "
                "as a peer trains in about `seconds`, at least one",
                "repeats": options.repeats,
                "seconds": options.seconds,
                "interleaved": "the peers of a setting take turns",
                "first_seconds": "of the first epoch, in which worker processes start and kernels are compiled",
                "device_microseconds_per_step": "the steps of an epoch again, without drawing orders, on a GPU",
                "agreement": f"losses of {CHECKED_NETWORKS} networks after {CHECKED_EPOCHS} epochs of "
                f"{CHECKED_STEPS} steps, beside gpumlp's in float64 on the CPU",
            },
            "peers": {peer.name: peer.title for peer in (*together("cpu"), OneByOne, JaxVmap)},
            "left_out": found.left_out,
            "agreement": found.agreement,
            "results": found.results,
        }
        report["versions"].update({name: version(name) for name in ("jax", "jaxlib", "joblib")})
        markdown.show(report)
        stem = folder / "-".join([PROGRAM, *(device.name.replace(":", "") for device in devices)])
        for path in common.write(report, stem, figures.plot):
            print(f"wrote {path}")
        return command.OK if found.all_agree else command.FAILED

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = common.too_few_repeats(options.repeats) + common.too_small(options, ["networks"])
    for option, names in (("workloads", tuple(WORKLOADS)), ("peers", PEERS)):
        given = getattr(options, option)
        problems += [f"{option}: expected {', '.join(names)}, got {name!r}" for name in given if name not in names]
        problems += [] if given else [f"{option}: expected at least one, got none"]
    for option in ("samples", "multiprocessors"):
        value = getattr(options, option)
        if value is not None and value < 1:
            problems.append(f"{option}: expected 1 or more, got {value}")
    if not 0 < options.seconds <= 60:
        problems.append(f"seconds: expected more than 0 and at most 60, got {options.seconds}")
    if problems:
        raise ConfigError("\n".join(problems))


def load_data(options: Options) -> tuple[dict[str, Dataset], str | None]:
    """The samples of each workload, and what must be said about them."""
    import numpy as np

    images, notice = common.load_data(options)
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((GENERATED_SAMPLES, 30), dtype=np.float32)
    labels = (numbers @ rng.standard_normal(30) > 0).astype(np.int64)
    return {"784-128-10": images, "30-100-2": Dataset(numbers, labels, classes=2, name="generated")}, notice


# -- Measuring -----------------------------------------------------------------------------------------------


class Found:
    """What is known so far."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.agreement: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []
        self.all_agree = True

    def leave_out(self, peer: type[Networks], reason: str, where: str, *, failed: bool = False) -> None:
        """Note and print why a peer has no figures; one that `failed` though it is there counts as disagreeing."""
        self.left_out.append({"peer": peer.name, "reason": reason, "where": where})
        self.all_agree = self.all_agree and not failed
        print(f"left out: {peer.name}: {reason} ({where})")


@dataclass
class Timing:
    """One peer with one number of networks."""

    networks: Networks
    first: float  # seconds of the first epoch
    epochs: int  # of a run
    runs: list[float] = field(default_factory=list)  # seconds
    device_epochs: list[float] = field(default_factory=list)  # seconds of an epoch's steps by themselves


def measure(options: Options, name: str, data: Dataset, device: str, found: Found) -> None:
    """Check and time every peer with each number of networks of a workload on a device."""
    work = replace(WORKLOADS[name], multiprocessors=options.multiprocessors)
    where = f"{name} on {device}"
    samples = options.samples or (CPU_SAMPLES if device == "cpu" else len(data))
    counts, seconds = options.networks, options.seconds
    if options.quick:
        counts = QUICK_NETWORKS if counts == NETWORKS else counts
        samples, seconds = options.samples or QUICK_SAMPLES, QUICK_SECONDS
    data = common.first(data, samples)
    able = []
    for peer in (*together(device), OneByOne, JaxVmap):
        reason = (
            "not asked for with --peers" if peer.name not in options.peers else peer.unsupported_reason(device)
        )
        if reason is None:
            able.append(peer)
        else:
            found.leave_out(peer, reason, where)
    peers = list(agreeing(able, work, name, data, device, found))
    with common.progress_bar() as progress:
        task = progress.add_task(where, total=len(counts) * len(peers) * (options.repeats + 1))
        for count in counts:
            progress.update(task, description=f"{count:,} networks {where}")
            started: list[Timing] = []
            for peer in peers:
                try:
                    started.append(start(peer(work, data, count, device), seconds))
                except Exception as error:  # one peer that has no memory for so many must not stop the others
                    found.leave_out(peer, failure(error), f"{count:,} networks {where}", failed=True)
                progress.advance(task)
            take_turns(started, options.repeats, lambda: progress.advance(task))
            found.results += results(started, name)


def agreeing(
    peers: Sequence[type[Networks]], work: Workload, name: str, data: Dataset, device: str, found: Found
) -> Iterator[type[Networks]]:
    """The peers whose networks have the losses of gpumlp's in float64."""
    where = f"{name} on {device}"
    few = common.first(data, int(CHECKED_STEPS * work.batch_size))
    expected = OneByOne(work, few, CHECKED_NETWORKS, "cpu", dtype="float64").train(CHECKED_EPOCHS)
    for peer in peers:
        try:
            losses = peer(work, few, CHECKED_NETWORKS, device).train(CHECKED_EPOCHS)
        except Exception as error:  # one peer that cannot run must not stop the others
            found.leave_out(peer, failure(error), where, failed=True)
            continue
        differences = [abs(loss - right) / right for loss, right in zip(losses, expected, strict=True)]
        difference = max(differences) if all(map(math.isfinite, differences)) else math.inf
        agrees = difference <= TOLERANCES["float32"]
        entry = {"network": name, "device": device, "peer": peer.name, "agrees": agrees}
        found.agreement.append({**entry, "difference": difference if difference < math.inf else None})
        print(f"{peer.name} {'agrees' if agrees else 'DISAGREES'}: losses differ by {difference:.1e} ({where})")
        if agrees:
            yield peer
        else:
            found.leave_out(peer, "disagrees", where, failed=True)


def start(networks: Networks, seconds: float) -> Timing:
    """A first epoch, a trial of the variants, and how many epochs make a run."""
    first, times = timed(networks), {}
    for variant in networks.variants:
        networks.choose(variant)
        networks.train(1)
        times[variant] = timed(networks)
    if times:
        networks.choose(min(times, key=times.__getitem__))
        networks.train(1)
    return Timing(networks, first, min(max(1, int(seconds / timed(networks))), MOST_EPOCHS))


def take_turns(timings: Sequence[Timing], repeats: int, tick: Callable[[], None]) -> None:
    """The timed runs, each round beginning with another peer."""
    gc.collect()
    for repeat in range(repeats):
        ahead = repeat % max(len(timings), 1)
        for timing in [*timings[ahead:], *timings[:ahead]]:
            timing.runs.append(timed(timing.networks, timing.epochs))
            if timing.networks.device != "cpu":
                timing.device_epochs.append(seconds_of(timing.networks, timing.networks.repeat_steps))
            tick()


def timed(networks: Networks, epochs: int = 1) -> float:
    """Seconds of some epochs of all networks."""
    if networks.device == "cpu":
        time.sleep(REST)  # the threads of the previous library go on spinning
    return seconds_of(networks, lambda: networks.train(epochs))


def seconds_of(networks: Networks, work: Callable[[], object]) -> float:
    """From an idle device to an idle device."""
    networks.synchronize()
    start = time.perf_counter()
    work()
    networks.synchronize()
    return time.perf_counter() - start


def results(timings: Sequence[Timing], name: str) -> Iterator[dict[str, Any]]:
    """The figures of one number of networks."""
    medians: dict[str, float] = {}
    for timing in timings:
        networks = timing.networks
        samples, steps = len(networks.data), math.ceil(len(networks.data) / networks.work.batch_size)
        rates = [networks.count * samples * timing.epochs / seconds for seconds in timing.runs]
        medians[networks.name] = statistics.median(rates)
        row = {
            "network": name,
            "device": networks.device,
            "networks": networks.count,
            "peer": networks.name,
            "way": networks.way,
            "samples": samples,
            "steps_per_epoch": steps,
            "epochs_per_run": timing.epochs,
            "first_seconds": timing.first,
            "samples_per_second": rates,
            **common.summary(rates),
            "microseconds_per_step": 1e6 * networks.count * samples / steps / medians[networks.name],
        }
        if timing.device_epochs:
            row["device_microseconds_per_step"] = 1e6 * statistics.median(timing.device_epochs) / steps
        ours = together(networks.device)[0].name
        if ours in medians:  # the first to be measured
            row["gpumlp_is"] = medians[ours] / medians[networks.name]
        yield row


def failure(error: Exception) -> str:
    """In one line."""
    return f"failed: {type(error).__name__}: {first_line(error)}"


if __name__ == "__main__":
    sys.exit(main())
