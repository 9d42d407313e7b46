"""What a comparison has found: gathered, judged against the goals, and written down."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import threadpoolctl

from gpumlp import Dataset
from gpumlp.backends import Device
from gpumlp.info import version

from . import reporting
from .agreement import FEW_STEPS, GPU_EPOCHS, SERIES, STEPS, TOLERANCES, Agreement
from .peers import ALL, Peer, Setting
from .throughput import DATA_NAMES
from .timing import Run, Timing

# How many times as fast as a peer gpumlp means to be on a CPU: network, batch sizes, peer: ratio.
GOALS: tuple[tuple[str, tuple[int, ...], dict[str, float]], ...] = (
    ("784-128-10", (32,), {"torch": 2.6, "jax": 1.0, "scikit-learn": 3.0}),
    ("784-128-10", (64, 128, 256), {"torch": 2.3, "jax": 1.0, "scikit-learn": 2.5}),
    ("784-128-10", (1024, 4096), {"torch": 2.0, "jax": 1.1, "scikit-learn": 2.5}),
    ("784-512-512-10", (32,), {"torch": 1.5, "jax": 1.0}),
    ("784-512-512-10", (128, 1024), {"torch": 2.0, "jax": 1.1}),
)
_LIBRARIES = ("torch", "jax", "jaxlib", "scikit-learn", "scipy")


def goal(network: str, batch_size: int, peer: str, device: str = "cpu") -> float | None:
    """The ratio aimed at, or None where there is no aim."""
    if device != "cpu":
        return None
    found = (ratios.get(peer) for name, sizes, ratios in GOALS if name == network and batch_size in sizes)
    return next(found, None)


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
        run: Run,
        timings: Sequence[Timing],
        flops: int,
        step_bytes: Callable[[float], float],
    ) -> None:
        """Note the figures of one setting: rates, steps, ratios, goals and shares of the limits.

        Args:
            setting, run, timings: what was measured.
            flops: of a sample.
            step_bytes: of a step of so many samples.
        """
        trained = run.samples * run.epochs
        steps = math.ceil(run.samples / setting.batch_size)
        medians = {}
        for timing in timings:
            if timing.error is not None:
                where = f"{setting.network}, momentum {setting.momentum:g}, batch {setting.batch_size}"
                self.leave_out(timing.peer, f"{timing.error} (in {where})", failed=timing.meant)
                continue
            rates = [trained / seconds for seconds in timing.seconds]
            figures = reporting.summary(rates)
            medians[timing.peer.name] = median = figures["median"]
            bandwidth = self.limits.get("bytes")
            rows = run.samples / steps  # of the mean step: the last may be short
            floors = [flops * rows / self.limits["flops"]]
            floors += [step_bytes(rows) / bandwidth] if bandwidth else []
            ours = medians.get("gpumlp")  # the first to be measured
            self.results.append(
                {
                    **_named(setting),
                    "peer": timing.peer.name,
                    "variant": timing.variant,
                    "samples": run.samples,
                    "epochs_per_run": run.epochs,
                    "steps_per_epoch": steps,
                    "samples_per_second": rates,
                    **figures,
                    "microseconds_per_step": 1e6 * rows / median,
                    "floor_microseconds": 1e6 * max(floors),
                    "gpumlp_is": None if ours is None else ours / median,
                    "goal": goal(setting.network, setting.batch_size, timing.peer.name, setting.device),
                    "flops_per_sample": flops,
                    "bytes_per_step": step_bytes(setting.batch_size),
                    "share_of_arithmetic": flops * median / self.limits["flops"],
                    "share_of_bandwidth": bandwidth and step_bytes(rows) / rows * median / bandwidth,
                    "first_epoch_loss": _finite(timing.first_loss),
                }
            )


def report(
    measured: Measured, options: Any, device: Device, words: Sequence[str], train: Dataset, notes: Sequence[str]
) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    facts = reporting.circumstances([device], words, "python -m benchmarks.compare")
    facts["versions"].update({name: version(name) for name in _LIBRARIES})
    return {
        "benchmark": "comparison of training throughput",
        **facts,
        "threads": _threads(options.threads),
        "quick": options.quick,
        "notes": [*notes, *_oddities(measured)],
        "workload": {
            "data": DATA_NAMES.get(train.name, train.name),
            "samples_in_all": len(train),
            "activation": "relu",
            "dtype": options.dtype,
            "optimizer": "SGD, learning rate 0.01",
        },
        "method": {
            "unit": "samples/s",
            "run": "whole epochs, each with shuffling, the short last batch and its mean loss read on the host; "
            "on the first samples of the data, as many as gpumlp trains on in about `seconds`, at most all",
            "seconds": options.seconds,
            "repeats": options.repeats,
            "warm_up": "an epoch of each peer, a short trial of its variants, and on a GPU one more epoch",
            "scikit_learn": "a partial_fit is an epoch; with its checks and one-hot labels, some 2 % of it",
            "interleaved": "the peers of a setting take turns",
            "agreement": f"mean loss of each of {STEPS} steps, the last of half a batch, and of an epoch of these "
            f"steps by the code that is timed, unshuffled (on a GPU of {GPU_EPOCHS} epochs), against a textbook "
            f"network in float64, within {TOLERANCES[options.dtype]:.0e}, on one of {SERIES} series of batches; "
            f"at the smallest batch size, and likewise with {FEW_STEPS} steps at the largest",
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


def write(report: dict[str, Any], stem: Path) -> list[Path]:
    """Write ``stem.json`` and ``stem.png``; without matplotlib only the first, and say so."""
    from .comparison_figure import plot

    return reporting.write(report, stem, plot)


def set_threads(count: int | None) -> None:
    """Hold every BLAS, and XLA where it is not loaded yet, to so many threads; PyTorch is told by its peers."""
    if count is not None:
        os.environ["NPROC"] = str(count)  # XLA makes its threads by it
        threadpoolctl.threadpool_limits(count, user_api="blas")


def _oddities(measured: Measured) -> list[str]:
    """Peers whose first epoch ended in a loss that is not the others': the sign of another training."""
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
    """Threads asked for, and those that the libraries loaded by now have at hand."""
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
