"""Timing one setting: how many samples an epoch has, which variant each peer runs as, and the runs in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from gpumlp import Dataset

from .agreement import initial_weights
from .peers import NotMeantForError, Peer, Samples, Setting, first_line

# Seconds before a run on a CPU: the threads of the previous library go on spinning for 80 ms (OpenBLAS's;
# measured), and would take a core from the next.
REST = 0.15
TRIALS = 2  # of each length of a run
VARIANT_TRIALS = 5  # of each variant: fewer, when a machine is slow for a moment, can take a slower one
HOPELESS = 3.0  # times as slow as the fastest variant until then: no further trial
MOST_EPOCHS = 50  # in a run
_TRIAL_SECONDS = 0.05


@dataclass
class Timing:
    """One peer in one setting."""

    peer: type[Peer]
    variant: str | None = None
    epochs: int = 1  # of a run
    seconds: list[float] = field(default_factory=list)  # of each run
    first_loss: float = float("nan")  # mean of the first epoch, which is not counted
    error: str | None = None  # why there are no figures
    meant: bool = True  # for this setting


def whole_batches(wanted: float, batch_size: int, all_samples: int) -> int:
    """About the samples wanted, with a short last batch as the whole data set has it, and at least two steps."""
    short = all_samples % batch_size
    steps = max(round((wanted - short) / batch_size), 1 if short else 2)
    return min(steps * batch_size + short, all_samples)


def samples_of_epoch(
    setting: Setting, train: Dataset, peer: type[Peer], seconds: float, threads: int | None
) -> int:
    """As many samples as `peer` trains on in about `seconds`, at most all; measured."""
    count = whole_batches(0, setting.batch_size, len(train))
    while True:
        trial = make(peer, setting, first(train, count, setting.dtype), threads)
        trial.epoch()
        duration = min(timed(trial)[0] for _ in range(TRIALS))  # threads that wake up late spoil a short one
        if duration > _TRIAL_SECONDS or count == len(train):
            return whole_batches(seconds / duration * count, setting.batch_size, len(train))
        count = whole_batches(1.5 * _TRIAL_SECONDS / duration * count, setting.batch_size, len(train))


def measure(
    setting: Setting,
    train: Dataset,
    samples: int,
    peers: Iterable[type[Peer]],
    repeats: int,
    seconds: float,
    threads: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time each peer for `repeats` runs, after epochs that are not counted.

    A run is as many whole epochs of the same samples as a peer trains in about `seconds`, at least one. The
    peers take turns, and each round begins with another of them, so that none always follows the same one.
    """
    data = first(train, samples, setting.dtype)
    timings = [Timing(peer) for peer in peers]
    running: list[tuple[Timing, Peer]] = []
    for timing in timings:
        try:
            peer = make(timing.peer, setting, data, threads)
            timing.first_loss = peer.epoch()
            timing.variant = fastest_variant(peer, samples)
            duration, _ = timed(peer)  # the second epoch: what the first has compiled and captured is there
            timing.epochs = min(max(1, int(seconds / duration)), MOST_EPOCHS)
        except NotMeantForError as error:
            timing.error, timing.meant = str(error), False
        except Exception as error:  # one peer that cannot run must not stop the others
            timing.error = f"failed: {type(error).__name__}: {first_line(error)}"
        else:
            running.append((timing, peer))
        tick()
    gc.collect()
    gc.freeze()  # or Python looks through everything that the libraries have loaded while one of them is timed
    try:
        for repeat in range(repeats):
            ahead = repeat % max(len(running), 1)
            for timing, peer in running[ahead:] + running[:ahead]:
                timing.seconds.append(timed(peer, timing.epochs)[0])
                tick()
    finally:
        gc.unfreeze()
    return timings


def make(peer: type[Peer], setting: Setting, samples: Samples, threads: int | None) -> Peer:
    """A peer with the common initial weights."""
    return peer(setting, samples, initial_weights(setting), threads)


def timed(peer: Peer, epochs: int = 1, part: int | None = None) -> tuple[float, float]:
    """Seconds of some epochs and the mean loss of the last, from an idle device to an idle device.

    Shuffling is inside, and so is the arrival of each epoch's mean loss on the host.
    """
    if peer.setting.device == "cpu":
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
    for _ in range(VARIANT_TRIALS):
        limit = HOPELESS * min(best.values())
        for variant in [variant for variant in peer.variants if best[variant] <= limit]:
            peer.choose(variant)
            best[variant] = min(best[variant], timed(peer, part=part)[0])
    fastest = min(best, key=best.__getitem__)
    peer.choose(fastest)
    return fastest


@lru_cache(maxsize=2)
def first(train: Dataset, count: int, dtype: str) -> Samples:
    """The first samples; kept, because the peers and the momenta of a setting share them."""
    return Samples(train.images.reshape(len(train), -1)[:count], train.labels[:count], dtype)
