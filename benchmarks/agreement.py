"""Do all peers compute the same? Their losses over the first steps, from the same weights on the same batches.

Each step by itself, and all of them as an epoch by the code that is timed: a scan, graphs, many steps a launch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gpumlp import MLP, Dataset

from .peers import Peer, Samples, Setting
from .peers.textbook import Textbook

STEPS = 20  # the last is of half a batch, as epochs end with a short one
FEW_STEPS = 3  # likewise; for large batches, whose steps take long
# Of the mean loss of a step. Sums of float32 in another order come to some 1e-7, which 20 steps hardly let grow; a
# gradient that lacks its smallest part, the output's bias, is off by 3e-4 and more, one rounded to TF32 by 2e-5.
TOLERANCES = {"float32": 2e-5, "float64": 1e-9}
# Now and then the input of some unit lies so near to ReLU's kink that rounding takes it to the other side, and the
# losses part by 1e-3. That hits one series of batches, a mistake hits every one: so a peer gets some more.
SERIES = 3
GPU_EPOCHS = 3  # few batches: gpumlp gets ready in the first, tries CUDA graphs in the second, then runs by them


@dataclass(frozen=True)
class Agreement:
    """What one peer's losses were held against, and how they came out."""

    peer: str
    largest_difference: float  # relative, of any step or epoch
    tolerance: float
    losses: list[float]  # of each step
    epoch_losses: list[float]  # mean losses of epochs over the same batches
    series: int  # the first has number 1

    @property
    def agrees(self) -> bool:
        return self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.agrees else "DISAGREES"
        return (
            f"{self.peer} {verdict}: its losses over {len(self.losses)} steps, singly and as an epoch, differ by "
            f"{self.largest_difference:.1e} at most (allowed: {self.tolerance:.0e})"
        )


def initial_weights(setting: Setting) -> dict[str, np.ndarray]:
    """gpumlp's initial weights, which every peer starts from."""
    return MLP(setting.sizes, activation="relu", seed=0, device="cpu", dtype=setting.dtype).state_dict()


def check_agreement(
    peers: Iterable[type[Peer]],
    setting: Setting,
    train: Dataset,
    threads: int | None = None,
    steps: int = STEPS,
) -> list[Agreement | Exception]:
    """Train each peer for some steps in one order, and hold its losses against a textbook network in float64.

    Twice, from the same weights: step by step, and as an epoch is timed (on a GPU three of them).

    Returns:
        For each peer its agreement on the first series of batches on which it agrees, or else on the last; or the
        error that it ended in.
    """
    all_series = [_Series(setting, train, index, steps) for index in range(SERIES)]
    results: list[Agreement | Exception] = []
    for peer in peers:
        try:
            for series in all_series:
                result = series.check(peer, threads)
                if result.agrees:
                    break
        except Exception as error:  # a peer that cannot run must not take the others with it
            results.append(error)
        else:
            results.append(result)
    return results


class _Series:
    """Batches in a fixed order, and the losses that they are expected to have."""

    def __init__(self, setting: Setting, train: Dataset, index: int, steps: int) -> None:
        count = (steps - 1) * setting.batch_size + math.ceil(setting.batch_size / 2)
        rows = (np.arange(count) + index * count) % len(train)
        self.setting, self.index = setting, index
        self.images, self.labels = train.images.reshape(len(train), -1)[rows], train.labels[rows]
        self.weights = initial_weights(setting)
        self.epochs = 1 if setting.device == "cpu" else GPU_EPOCHS

    @cached_property
    def expected(self) -> np.ndarray:
        """The referee's losses: of each step, then the mean of each epoch."""
        setting = replace(self.setting, dtype="float64", device="cpu")
        samples = Samples(self.images, self.labels, "float64")
        referee = Textbook(setting, samples, self.weights)
        losses = referee.losses()
        shares = [rows.stop - rows.start for rows in samples.batches(setting.batch_size)]
        first = np.average(losses, weights=shares)
        return np.array([*losses, first, *(referee.unshuffled_epoch() for _ in range(1, self.epochs))])

    def check(self, peer: type[Peer], threads: int | None) -> Agreement:
        setting = self.setting
        samples = Samples(self.images, self.labels, setting.dtype)
        losses = peer(setting, samples, self.weights, threads).losses()
        whole = peer(setting, samples, self.weights, threads)
        epoch_losses = [whole.unshuffled_epoch() for _ in range(self.epochs)]
        found = np.array([*losses, *epoch_losses])
        difference = float(np.max(np.abs(found - self.expected) / self.expected))
        if not np.isfinite(difference):
            difference = float("inf")
        return Agreement(
            peer.name, difference, TOLERANCES[setting.dtype], losses, epoch_losses, series=self.index + 1
        )
