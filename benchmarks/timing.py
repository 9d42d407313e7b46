"""Timing one setting: how long a run is, which variant each peer runs as, and the runs in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from gpumlp import Dataset

from .agreement import initial_weights
from .peers import Peer, Samples, Setting
from .peers.base import NotMeantForError, first_line

# Seconds before a run: the threads of the library before go on spinning for 80 ms (OpenBLAS's; measured), and
# would take a core from the next.
REST = 0.15
TRIALS = 2  # of each variant, and of each length
HOPELESS = 1.5  # times as slow as the fastest variant in its first trial: no second one
MOST_EPOCHS = 50  # in a run
_TRIAL_SECONDS = 0.05


@dataclass
class Timing:
    """One peer in one setting."""

    peer: type[Peer]
    variant: str | None = None
    seconds: list[float] = field(default_factory=list)
    first_loss: float = float("nan")  # mean of the epoch that is not counted
    error: str | None = None  # why there are no figures
    meant: bool = True  # for this setting


def whole_batches(wanted: float, batch_size: int, all_samples: int) -> int:
    """About so many samples, with a short last batch as the whole data set has it, and at least two steps."""
    short = all_samples % batch_size
    steps = max(round((wanted - short) / batch_size), 1 if short else 2)
    return min(steps * batch_size + short, all_samples)


@dataclass(frozen=True)
class Run:
    """What is timed at once, the same for all peers of a setting."""

    samples: int  # in an epoch
    epochs: int


def plan(setting: Setting, train: Dataset, peer: type[Peer], seconds: float, threads: int | None) -> Run:
    """As many samples, or whole epochs, as `peer` trains on in about so many seconds; measured."""
    count = whole_batches(0, setting.batch_size, len(train))
    while True:
        trial = make(peer, setting, first(train, count, setting.dtype), threads)
        trial.epoch()
        duration = min(timed(trial)[0] for _ in range(TRIALS))  # threads that wake up late spoil a short one
        if duration > _TRIAL_SECONDS or count == len(train):
            break
        count = whole_batches(1.5 * _TRIAL_SECONDS / duration * count, setting.batch_size, len(train))
    wanted = seconds / duration * count
    samples = whole_batches(wanted, setting.batch_size, len(train))
    return Run(samples, min(max(1, int(wanted / samples)), MOST_EPOCHS))


def measure(
    setting: Setting,
    train: Dataset,
    run: Run,
    peers: Iterable[type[Peer]],
    repeats: int,
    threads: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time each peer for `repeats` runs, after an epoch that is not counted.

    The peers take turns, and each round begins with another of them, so that none is always behind the same one.
    """
    samples = first(train, run.samples, setting.dtype)
    timings = [Timing(peer) for peer in peers]
    running: list[tuple[Timing, Peer]] = []
    for timing in timings:
        try:
            peer = make(timing.peer, setting, samples, threads)
            timing.first_loss = peer.epoch()
            timing.variant = fastest_variant(peer, run.samples)
            if setting.device != "cpu":
                peer.epoch()  # of few batches: gpumlp tries CUDA graphs in its second epoch
        except NotMeantForError as error:
            timing.error, timing.meant = str(error), False
        except Exception as error:  # a peer that cannot run must not take the others with it
            timing.error = f"failed: {type(error).__name__}: {first_line(error)}"
        else:
            running.append((timing, peer))
        tick()
    gc.collect()
    gc.freeze()  # or Python looks through everything that the libraries loaded while one of them is being timed
    try:
        for repeat in range(repeats):
            ahead = repeat % max(len(running), 1)
            for timing, peer in running[ahead:] + running[:ahead]:
                timing.seconds.append(timed(peer, run.epochs)[0])
                tick()
    finally:
        gc.unfreeze()
    return timings


def make(peer: type[Peer], setting: Setting, samples: Samples, threads: int | None) -> Peer:
    """A peer with everybody's initial weights."""
    return peer(setting, samples, initial_weights(setting), threads)


def timed(peer: Peer, epochs: int = 1, part: int | None = None) -> tuple[float, float]:
    """Seconds of some epochs and the mean loss of the last, from an idle device to an idle device.

    Shuffling is inside, and so is the arrival of each epoch's mean loss on the host.
    """
    time.sleep(REST)
    peer.synchronize()
    start = time.perf_counter()
    for _ in range(epochs):
        loss = peer.epoch(part)
    peer.synchronize()
    return time.perf_counter() - start, loss


def fastest_variant(peer: Peer, samples: int) -> str | None:
    """Set the variant that was fastest in short trials, in turns; a single one needs no trial."""
    if len(peer.variants) < 2:
        return next(iter(peer.variants), None)
    part = max(peer.setting.batch_size, samples // 4)
    best = dict.fromkeys(peer.variants, float("inf"))
    for _ in range(TRIALS):
        limit = HOPELESS * min(best.values())
        for variant in [variant for variant in peer.variants if best[variant] <= limit]:
            peer.choose(variant)
            best[variant] = min(best[variant], timed(peer, part=part)[0])
    fastest = min(best, key=best.__getitem__)
    peer.choose(fastest)
    return fastest


@lru_cache(maxsize=2)
def first(train: Dataset, count: int, dtype: str) -> Samples:
    """The first so many samples; kept, because the peers and the momenta of a setting share them."""
    return Samples(train.images.reshape(len(train), -1)[:count], train.labels[:count], dtype)
