"""What is wrong with a saved run, judged from its checkpoint: for the report and the command that diagnoses."""

from __future__ import annotations

from dataclasses import dataclass

from ..diagnostics import Finding
from .checkpoint import Checkpoint
from .watching import setting_of


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
