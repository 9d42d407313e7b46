"""gpumlp beside other libraries, in one run on one machine: ``python -m benchmarks.compare``.

Every peer trains the same network on the same data with the same arithmetic: same dtype, batch size and
learning rate, plain SGD or SGD with momentum, a new random order every epoch, the short last batch included.
Each is written as its own users would write it at its best (``benchmarks/peers``), holds the data on its device
before any clock starts, and is left out with a reason where it is not available. Equivalent ways to run a peer
(threads, form of the optimizer) are tried first, and the fastest is taken; gpumlp is run as it is.

First the losses of all peers, from the same weights on the same batches, are compared with those of a textbook
network in float64: over 20 steps at the smallest batch size, step by step and as the epoch that is timed, and
over an epoch of two steps at the largest. A peer that disagrees is not timed. Then, setting by setting, the
peers take turns: a warm-up each, then the timed runs, one of each peer and again. The clock is read on an idle
device, before the shuffling and when the mean loss of the last epoch is on the host.

An epoch has the same samples for all peers of a setting: all of them where gpumlp trains on them in
``--seconds`` or less, otherwise fewer. That changes what an epoch costs once (shuffling, reading the loss) only
where a step is short, and a small part of the samples may stay in a cache. A run is as many whole epochs as a
peer trains in ``--seconds``, at least one; the JSON states both.

Writes ``compare-DEVICE.json``, and ``.png`` where matplotlib is installed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import threadpoolctl

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import Dataset, command
from gpumlp.backends import Device
from gpumlp.info import version
from gpumlp.training.config import ConfigError

from . import common, figures, markdown
from .agreement import EPOCHS, FEW_STEPS, SERIES, STEPS, TOLERANCES, Agreement, check_agreement
from .limits import CPU_ORDER, bytes_per_step, cpu_limits, flops_per_sample, gpu_limits
from .peers import NotMeantForError, Peer, Setting, first_line
from .peers.gpumlp import Gpumlp, GpumlpGraphs, GpumlpPersistent
from .peers.jax import JaxScan
from .peers.numpy import ScikitLearn, Textbook
from .peers.torch import TorchCompiled, TorchEager, TorchGraph
from .timing import Timing, measure, samples_of_epoch

PROGRAM = "compare"
ALL: tuple[type[Peer], ...] = (
    Gpumlp,  # the first: the others are compared with it
    TorchEager,
    TorchCompiled,
    TorchGraph,
    JaxScan,
    ScikitLearn,
    Textbook,
    GpumlpGraphs,
    GpumlpPersistent,
)
NAMES = tuple(peer.name for peer in ALL)
NETWORKS = ("784-128-10", "784-512-512-10", "784-2048-2048-10")
BATCH_SIZES = (16, 32, 64, 128, 256, 1024, 4096, 8192)
QUICK_BATCH_SIZES, QUICK_SECONDS, QUICK_ORDER = (32, 256), 0.01, 512
_LIBRARIES = ("torch", "jax", "jaxlib", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Options(common.DataOptions):
    """Compare gpumlp's training throughput with other libraries', on each device there is."""

    devices: tuple[str, ...] = ()
    """cpu, cuda, cuda:1, ...; all there are by default."""
    peers: tuple[str, ...] = ()
    """gpumlp, torch, torch-compiled, torch-graph, jax, scikit-learn, numpy, gpumlp-graphs, gpumlp-persistent; all
    by default."""
    networks: tuple[str, ...] = NETWORKS
    """Units of each layer, inputs first."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """Samples a step."""
    momenta: tuple[float, ...] = (0.0, 0.9)
    """Of SGD; 0 is plain SGD."""
    dtype: str = "float32"
    """float32 or float64."""
    repeats: int = common.LEAST_REPEATS
    """Timed runs of each peer in each setting, at least 5."""
    seconds: float = 0.3
    """About how long a timed run takes; an epoch at least."""
    samples: int | None = None
    """Samples of an epoch, the first of the data; as --seconds allows by default."""
    threads: int | None = None
    """CPU threads of every peer; by default each library's own choice, or what a trial finds best."""
    out: str = "benchmarks/results"
    """Folder for the results."""
    check: bool = False
    """Only check that the peers agree; measure nothing, write nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, report, and return the exit code: 1 if a peer disagrees, or if there was none to measure."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = command.parse(Options, PROGRAM, words)
        check(options)
        common.check_clock()
        devices = common.chosen_devices(options.devices)
        set_threads(options.threads)
        train, notice = common.load_data(options)
        networks = [tuple(common.layers(network)) for network in or_quick(options, "networks", NETWORKS[:1])]
        check_fits(options, networks, train)
        folder = Path() if options.check else common.output_folder(options)
        agreed, found = True, False
        for device in devices:
            measured = compare(options, device, networks, train)
            agreed = agreed and measured.all_agree
            if not (measured.agreement if options.check else measured.results):
                what = "checked" if options.check else "measured"
                print(f"{PROGRAM}: no peer could be {what} on {device.name}; nothing is written", file=sys.stderr)
                continue
            found = True
            if options.check:
                continue
            report = report_of(measured, options, device, words, train, [notice] if notice else [])
            markdown.show(report)
            for path in common.write(report, folder / f"{PROGRAM}-{device.name.replace(':', '')}", figures.plot):
                print(f"wrote {path}")
        return command.OK if agreed and found else command.FAILED

    return command.run(PROGRAM, work)


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
    least = {"repeats": common.LEAST_REPEATS, "samples": 2, "threads": 1}
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
    problems += common.too_large("batch_sizes", or_quick(options, "batch_sizes", QUICK_BATCH_SIZES), most)
    if options.samples and options.samples > len(train):
        problems.append(f"samples: there are {len(train):,}, got {options.samples:,}")
    if problems:
        raise ConfigError("\n".join(problems))


def or_quick(options: Options, name: str, quick: tuple) -> tuple:
    """An option's value; with --quick what `quick` says, unless the option was given."""
    value: tuple = getattr(options, name)
    return quick if options.quick and value == getattr(Options, name) else value


# -- Measuring -----------------------------------------------------------------------------------------------


def compare(options: Options, device: Device, networks: Sequence[tuple[int, ...]], train: Dataset) -> Measured:
    """Check the agreement on one device, then time setting by setting."""
    measured = Measured()
    peers = able_peers(options, device.name, measured)
    if not peers:
        return measured
    sizes_of_batches = or_quick(options, "batch_sizes", QUICK_BATCH_SIZES)
    agreeing = {(sizes, momentum): peers for sizes in networks for momentum in options.momenta}
    checks = {max(sizes_of_batches): FEW_STEPS, min(sizes_of_batches): STEPS}  # the latter where both are one
    for sizes in networks:
        for batch, steps in sorted(checks.items()):
            for momentum in options.momenta:
                setting = Setting(sizes, batch, momentum, common.LEARNING_RATE, options.dtype, device.name)
                agreeing[sizes, momentum] = agreeing_peers(
                    agreeing[sizes, momentum], setting, train, options.threads, measured, steps
                )
    if options.check or not any(agreeing.values()):
        return measured

    if device.name == "cpu":
        measured.limits = cpu_limits(options.dtype, QUICK_ORDER if options.quick else CPU_ORDER)
    else:
        measured.limits = gpu_limits(device.name, options.dtype)
    # Momentum comes last, so that torch.compile is asked once for both.
    settings = [
        Setting(sizes, batch, momentum, common.LEARNING_RATE, options.dtype, device.name)
        for sizes in networks
        for batch in sizes_of_batches
        for momentum in options.momenta
    ]
    seconds = QUICK_SECONDS if options.quick and options.seconds == Options.seconds else options.seconds
    ticks = sum(len(agreeing[setting.sizes, setting.momentum]) for setting in settings) * (options.repeats + 1)
    with common.progress_bar() as progress:
        task = progress.add_task("measuring", total=ticks)
        for setting in settings:
            progress.update(task, description=f"{setting.network}, batch {setting.batch_size:,}")
            takers = agreeing[setting.sizes, setting.momentum]
            if not takers:
                continue
            samples = options.samples
            if samples is None:  # gpumlp comes first, unless it was left out
                samples = samples_of_epoch(setting, train, takers[0], seconds, options.threads)
            timings = measure(
                setting,
                train,
                samples,
                takers,
                options.repeats,
                seconds,
                options.threads,
                lambda: progress.advance(task),
            )
            measured.add(setting, samples, timings, flops_per_sample(setting.sizes), _bytes_of(setting))
    return measured


def able_peers(options: Options, device: str, measured: Measured) -> list[type[Peer]]:
    """The peers asked for that can run on this device; the others are noted with their reason."""
    able = []
    for peer in ALL:
        reason = None
        if options.peers and peer.name not in options.peers:
            reason = "not asked for with --peers"
        elif options.quick and not options.peers and peer.name == "torch-compiled":
            reason = "compiling takes long for a quick trial; --peers torch-compiled asks for it"
        reason = reason or peer.unsupported_reason(device, options.dtype)
        if reason is None:
            able.append(peer)
        else:
            measured.leave_out(peer, reason)
    return able


def agreeing_peers(
    peers: Sequence[type[Peer]],
    setting: Setting,
    train: Dataset,
    threads: int | None,
    measured: Measured,
    steps: int = STEPS,
) -> list[type[Peer]]:
    """Those whose losses agree; each verdict is printed."""
    agreeing = []
    where = f"{setting.network}, momentum {setting.momentum:g}, batch {setting.batch_size}"
    print(f"agreement in {where}, on {setting.device}")
    for peer, result in zip(peers, check_agreement(peers, setting, train, threads, steps), strict=True):
        if isinstance(result, Agreement):
            print(f"  {result}")
            measured.agree(setting, result)
            if result.agrees:
                agreeing.append(peer)
            else:
                measured.leave_out(peer, f"disagrees in {where}")
        elif isinstance(result, NotMeantForError):
            measured.leave_out(peer, f"{result} (in {where})")
            if steps < STEPS:  # it may be meant for the smaller batch sizes, where it is checked too
                agreeing.append(peer)
        else:
            measured.leave_out(
                peer, f"failed: {type(result).__name__}: {first_line(result)} (in {where})", failed=True
            )
    return agreeing


def _bytes_of(setting: Setting) -> Callable[[float], float]:
    itemsize = 4 if setting.dtype == "float32" else 8
    return partial(bytes_per_step, setting.sizes, momentum=setting.momentum > 0, itemsize=itemsize)


def set_threads(count: int | None) -> None:
    """Limit the threads of every BLAS, and of XLA where it is not loaded yet; PyTorch's peers set their own."""
    if count is not None:
        os.environ["NPROC"] = str(count)  # XLA makes its threads by it
        threadpoolctl.threadpool_limits(count, user_api="blas")


# -- What was found ------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What is known of one device so far."""

    limits: dict[str, Any] = field(default_factory=dict)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    all_agree: bool = True

    def leave_out(self, peer: type[Peer], reason: str, *, failed: bool = False) -> None:
        """Note and print why a peer has no figures; one that `failed` though it is there counts as disagreeing."""
        entry = {"peer": peer.name, "reason": reason}
        if entry not in self.left_out:
            self.left_out.append(entry)
            print(f"left out: {peer.name}: {reason}")
        self.all_agree = self.all_agree and not failed

    def agree(self, setting: Setting, result: Agreement) -> None:
        """Note a peer's agreement or disagreement."""
        self.all_agree = self.all_agree and result.agrees
        record = asdict(result)
        for name in ("losses", "epoch_losses"):
            record[name] = [_finite(loss) for loss in record[name]]
        record["largest_difference"] = _finite(result.largest_difference)
        self.agreement.append({**_named(setting), **record, "agrees": result.agrees})

    def add(
        self,
        setting: Setting,
        samples: int,
        timings: Sequence[Timing],
        flops: int,
        step_bytes: Callable[[float], float],
    ) -> None:
        """Note the figures of one setting: rates, steps, ratios and shares of the limits.

        Args:
            setting, samples, timings: what was measured, the samples those of an epoch.
            flops: of a sample.
            step_bytes: of a step, by its number of samples.
        """
        steps = math.ceil(samples / setting.batch_size)
        medians = {}
        for timing in timings:
            if timing.error is not None:
                where = f"{setting.network}, momentum {setting.momentum:g}, batch {setting.batch_size}"
                self.leave_out(timing.peer, f"{timing.error} (in {where})", failed=timing.meant)
                continue
            rates = [timing.epochs * samples / seconds for seconds in timing.seconds]
            figures = common.summary(rates)
            medians[timing.peer.name] = median = figures["median"]
            bandwidth = self.limits.get("bytes")
            rows = samples / steps  # of the mean step: the last may be short
            floors = [flops * rows / self.limits["flops"]]
            floors += [step_bytes(rows) / bandwidth] if bandwidth else []
            ours = medians.get("gpumlp")  # the first to be measured
            self.results.append(
                {
                    **_named(setting),
                    "peer": timing.peer.name,
                    "variant": timing.variant,
                    "samples": samples,
                    "epochs_per_run": timing.epochs,
                    "steps_per_epoch": steps,
                    "samples_per_second": rates,
                    **figures,
                    "microseconds_per_step": 1e6 * rows / median,
                    "floor_microseconds": 1e6 * max(floors),
                    "gpumlp_is": None if ours is None else ours / median,
                    "flops_per_sample": flops,
                    "bytes_per_step": step_bytes(setting.batch_size),
                    "share_of_arithmetic": flops * median / self.limits["flops"],
                    "share_of_bandwidth": bandwidth and step_bytes(rows) / rows * median / bandwidth,
                    "first_epoch_loss": _finite(timing.first_loss),
                }
            )


def report_of(
    measured: Measured, options: Any, device: Device, words: Sequence[str], train: Dataset, notes: Sequence[str]
) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    facts = common.circumstances([device], words, "python -m benchmarks.compare")
    facts["versions"].update({name: version(name) for name in _LIBRARIES})
    return {
        "benchmark": "comparison of training throughput",
        **facts,
        "threads": _threads(options.threads),
        "quick": options.quick,
        "notes": [*notes, *_oddities(measured)],
        "workload": {
            "data": common.DATA_NAMES.get(train.name, train.name),
            "samples_in_all": len(train),
            "activation": "relu",
            "dtype": options.dtype,
            "optimizer": "SGD, learning rate 0.01",
        },
        "method": {
            "unit": "samples/s",
            "run": "whole epochs, each with shuffling, the short last batch and its mean loss read on the host; "
            "on the first samples of the data, as many as gpumlp trains on in about `seconds`, at most all; as "
            "many epochs as a peer trains in about `seconds`, at least one",
            "seconds": options.seconds,
            "repeats": options.repeats,
            "warm_up": "an epoch of each peer, a short trial of its variants, and one more epoch",
            "scikit_learn": "a partial_fit is an epoch; with its checks and one-hot labels, some 2 % of it",
            "interleaved": "the peers of a setting take turns",
            "agreement": f"at the smallest batch size the mean loss of each of {STEPS} steps, the last of half a "
            f"batch, and of {EPOCHS} epochs of these steps by the code that is timed, unshuffled, and at the "
            f"largest of {EPOCHS} epochs of {FEW_STEPS} steps, against a textbook network in float64, within "
            f"{TOLERANCES[options.dtype]:.0e}, on one of {SERIES} series of batches",
            "microseconds_per_step": "of the median run, shuffling and reading the loss included; the mean of an "
            "epoch's steps, of which the last may be short",
            "floor_microseconds": "the larger of the mean step's flops over limits.flops and, on a GPU, its bytes "
            "over limits.bytes; what stays in a cache between operations can be faster than the latter",
            "bytes_per_step": "of a full batch",
            "share_of_arithmetic": "flops_per_sample x samples/s / limits.flops",
            "share_of_bandwidth": "bytes of the mean step x steps/s / limits.bytes, on a GPU",
        },
        "peers": {peer.name: peer.title for peer in ALL},
        "limits": measured.limits,
        "left_out": measured.left_out,
        "agreement": measured.agreement,
        "results": measured.results,
    }


def _oddities(measured: Measured) -> list[str]:
    """Peers whose first epoch has another mean loss than the others': a sign that they trained something else."""
    notes = []
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in measured.results:
        settings.setdefault((row["network"], row["momentum"], row["batch_size"]), []).append(row)
    for (network, momentum, batch_size), rows in settings.items():
        losses = sorted(row["first_epoch_loss"] or math.inf for row in rows)
        usual = losses[len(losses) // 2]
        for row in rows:
            loss = row["first_epoch_loss"] or math.inf
            if not abs(loss - usual) <= 0.1 * usual:
                notes.append(
                    f"Odd: {network}, momentum {momentum:g}, batch {batch_size}: {row['peer']}'s first epoch has "
                    f"the mean loss {loss:.3f}, the others' is about {usual:.3f}."
                )
    return notes


def _threads(asked: int | None) -> dict[str, Any]:
    """Threads asked for, and those of the libraries that are loaded."""
    pools = threadpoolctl.threadpool_info()
    return {
        "asked_for": asked,
        "pools": [{"library": p["filepath"].rpartition("/")[2], "threads": p["num_threads"]} for p in pools],
    }


def _named(setting: Setting) -> dict[str, Any]:
    return {"network": setting.network, "momentum": setting.momentum, "batch_size": setting.batch_size}


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
