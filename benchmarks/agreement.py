"""Do all peers compute the same? Their losses over the first steps, from the same weights on the same batches.

At the smallest batch size each step by itself, and all of them as an epoch by the code that is timed (a scan,
graphs, many steps in one launch). At the largest, where a step of the float64 reference takes long, only as an
epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gpumlp import MLP, Dataset

from .peers import Peer, Samples, Setting
from .peers.numpy import Textbook

STEPS = 20  # at the smallest batch size; the last is of half a batch, as epochs end with a short one
FEW_STEPS = 2  # in an epoch at the largest batch size, the last likewise
EPOCHS = 2  # over the same batches: with what the first has compiled or captured the second runs as it is timed
# Of the mean loss of a step. Sums of float32 in another order come to some 1e-7, which 20 steps hardly let grow; a
# gradient that lacks its smallest part, the output's bias, is off by 3e-4 and more, one rounded to TF32 by 2e-5.
TOLERANCES = {"float32": 2e-5, "float64": 1e-9}
# Rarely the input of a unit lies so near to ReLU's kink that rounding takes it to the other side, and the
# losses differ by 1e-3. That happens on one series of batches, an error happens on every one: so a peer is
# given some more.
SERIES = 3


@dataclass(frozen=True)
class Agreement:
    """What one peer's losses were held against, and how they came out."""

    peer: str
    largest_difference: float  # relative, of any step or epoch
    tolerance: float
    steps: int
    losses: list[float]  # of each step; none at the largest batch size
    epoch_losses: list[float]  # mean losses of epochs over the same batches
    series: int  # the first has number 1

    @property
    def agrees(self) -> bool:
        return self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.agrees else "DISAGREES"
        how = "singly and as an epoch" if self.losses else "as an epoch"
        return (
            f"{self.peer} {verdict}: its losses over {self.steps} steps, {how}, differ by "
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
    """Train each peer for some steps in one order, and compare its losses with a textbook network's in float64.

    With `STEPS` steps twice, from the same weights: step by step, and as epochs; with fewer only as epochs.

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
        except Exception as error:  # one peer that cannot run must not stop the others
            results.append(error)
        else:
            results.append(result)
    return results


class _Series:
    """Batches in a fixed order, and the losses that they are expected to have."""

    def __init__(self, setting: Setting, train: Dataset, index: int, steps: int) -> None:
        count = (steps - 1) * setting.batch_size + math.ceil(setting.batch_size / 2)
        rows = (np.arange(count) + index * count) % len(train)
        self.setting, self.index, self.steps = setting, index, steps
        self.images, self.labels = train.images.reshape(len(train), -1)[rows], train.labels[rows]
        self.weights = initial_weights(setting)

    @cached_property
    def expected(self) -> np.ndarray:
        """The reference's losses: of each step where these are checked, then the mean of each epoch."""
        setting = replace(self.setting, dtype="float64", device="cpu")
        samples = Samples(self.images, self.labels, "float64")
        reference = Textbook(setting, samples, self.weights)
        if self.steps < STEPS:
            return np.array([reference.unshuffled_epoch() for _ in range(EPOCHS)])
        losses = reference.losses()
        shares = [rows.stop - rows.start for rows in samples.batches(setting.batch_size)]
        first = np.average(losses, weights=shares)
        return np.array([*losses, first, *(reference.unshuffled_epoch() for _ in range(1, EPOCHS))])

    def check(self, peer: type[Peer], threads: int | None) -> Agreement:
        setting = self.setting
        samples = Samples(self.images, self.labels, setting.dtype)
        losses = [] if self.steps < STEPS else peer(setting, samples, self.weights, threads).losses()
        whole = peer(setting, samples, self.weights, threads)
        epoch_losses = [whole.unshuffled_epoch() for _ in range(EPOCHS)]
        found = np.array([*losses, *epoch_losses])
        difference = float(np.max(np.abs(found - self.expected) / self.expected))
        return Agreement(
            peer.name,
            difference if np.isfinite(difference) else float("inf"),
            TOLERANCES[setting.dtype],
            self.steps,
            losses,
            epoch_losses,
            series=self.index + 1,
        )
