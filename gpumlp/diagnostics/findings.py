"""What is wrong with a saved run, from its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..training.history import Finding, Setting
from ..training.run import Run
from .rules import CLASS_FINDINGS, find, trend


@dataclass(frozen=True)
class Diagnosis:
    """What the diagnostics say of a run.

    Attributes:
        epochs: number of epochs they are based on.
        trend: of the curves, ``"diverged"`` if training diverged; None if there are too few epochs to tell.
        findings: the divergence first; empty if nothing is wrong.
        curves_only: was the run made without diagnostics, so that nothing is known of its layers?
    """

    epochs: int
    trend: str | None
    findings: list[Finding]
    curves_only: bool


def diagnose(run: Run) -> Diagnosis:
    """Diagnose a run, finished or not.

    Raises:
        CheckpointError: its checkpoint is damaged.
    """
    checkpoint, config, records = run.checkpoint, run.config, run.history.records
    setting = Setting.of(
        checkpoint.make_model("cpu"),
        config.make_optimizer(),
        config.make_schedule(),
        config.make_penalty(),
        checkpoint.dataset.get("label_entropy"),
        class_weight=config.class_weight is not None,
        augment=bool(config.augment),
        ema=config.ema or 0.0,
        steps=checkpoint.steps // max(1, checkpoint.epochs),
        early_stopping=config.early_stopping > 0 and config.monitor == "validation_loss",
    )
    findings = [*find(records, setting), *_of_classes(run.metrics)]
    if run.diverged is not None:  # an exploding loss ends so
        findings = [run.diverged, *(finding for finding in findings if finding.name != "exploding loss")]
    return Diagnosis(
        epochs=len(records),
        trend="diverged" if run.diverged is not None else trend(records, setting),
        findings=findings,
        curves_only=len(records) > 0 and all(record.layers is None for record in records),
    )


def _of_classes(metrics: dict[str, Any] | None) -> list[Finding]:
    """What was found of the predictions of each class when training ended: a checkpoint does not hold them."""
    saved = (metrics or {}).get("findings")
    rows = [row for row in saved if isinstance(row, dict)] if isinstance(saved, list) else []
    found = [(row.get("name"), row.get("message")) for row in rows]
    return [
        Finding(name, message) for name, message in found if name in CLASS_FINDINGS and isinstance(message, str)
    ]
