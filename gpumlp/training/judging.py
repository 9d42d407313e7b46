"""What is wrong with a saved run, judged from its checkpoint: for the report and the command that diagnoses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..diagnostics import Finding
from .checkpoint import Checkpoint, CheckpointError
from .records import read_epochs
from .run import DIVERGED, HISTORY, METRICS, RunFolder
from .watching import setting_of

T = TypeVar("T")


@dataclass(frozen=True)
class Beside:
    """What a run's folder holds beside the checkpoint, as far as it can be read.

    Attributes:
        epochs: the lines of the history file; none if it is damaged.
        metrics: the results; None if there are none, or none that can be read.
        diverged: why the loss was lost, if it was; if that cannot be read, that it was.
        finished: has the training come to its end?
        damaged: a sentence for each file that cannot be read.
    """

    epochs: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    diverged: Finding | None
    finished: bool
    damaged: list[str]


def read_beside(folder: RunFolder) -> Beside:
    """Read what a run has left beside its checkpoint; of the network of the best epoch, nothing is asked."""
    if folder.is_best:
        return Beside([], None, None, False, [])
    damaged: list[str] = []

    def read(reader: Callable[[], T]) -> T | None:
        try:
            return reader()
        except CheckpointError as error:
            damaged.append(" ".join(str(error).split()))
            return None

    metrics, diverged = read(folder.read_metrics), read(folder.read_divergence)
    if diverged is None and (folder.path / DIVERGED).exists():
        diverged = Finding("diverged", f"training diverged; {damaged[-1]}")
    return Beside(
        read(lambda: read_epochs(folder.path / HISTORY)) or [],
        metrics,
        diverged,
        (folder.path / METRICS).exists(),  # it is written at the end
        damaged,
    )


@dataclass(frozen=True)
class Judgement:
    """What the diagnostics say of a run.

    Attributes:
        epochs: that were judged.
        trend: of the curves, ``"diverged"`` where the loss was lost; None if there are too few epochs to tell.
        findings: that it diverged first; empty if nothing is wrong.
        curves_only: was the run made without diagnostics, so that nothing is known of its layers?
    """

    epochs: int
    trend: str | None
    findings: list[Finding]
    curves_only: bool


def judge(checkpoint: Checkpoint, diverged: Finding | None) -> Judgement:
    """Judge a run, finished or not.

    Args:
        checkpoint: of the run.
        diverged: why it ended without results, if it did.
    """
    config, history = checkpoint.config, checkpoint.history
    history.setting = setting_of(
        checkpoint.sizes,
        config.activation,
        config.make_optimizer(),
        config.make_schedule(),
        config.make_penalty(),
        checkpoint.dataset.get("label_entropy"),
    )
    findings = history.findings()
    if diverged is not None:  # where a loss that explodes ends
        findings = [diverged, *(finding for finding in findings if finding.name != "exploding loss")]
    return Judgement(
        epochs=len(history),
        trend="diverged" if diverged is not None else history.trend(),
        findings=findings,
        curves_only=len(history) > 0 and all(record.layers is None for record in history),
    )
