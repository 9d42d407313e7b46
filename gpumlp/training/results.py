"""The results of a finished run, as numbers and in words."""

from __future__ import annotations

import math
import platform
from typing import Any

import numpy as np

import gpumlp

from ..data import Dataset
from ..diagnostics import Finding
from ..nn.network import Evaluation
from .config import Config
from .divergence import DivergenceError, smaller_steps
from .progress import percent
from .trainer import Trainer


def take_test(trainer: Trainer, test: Dataset) -> Evaluation:
    """Loss and accuracy on the test set. Waits for the device.

    Raises:
        DivergenceError: the loss is not finite, which no loss of the training has shown.
    """
    result = trainer.model.evaluate(test)
    if not math.isfinite(result.loss):
        advice = smaller_steps(trainer.optimizer, trainer.optimizer.learning_rate)
        message = f"training diverged: the test loss after epoch {trainer.epoch} is {result.loss}. {advice}"
        raise DivergenceError(Finding("diverged", message), trainer.history)
    return result


def metrics_of(trainer: Trainer, test: Dataset, result: Evaluation, config: Config) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    history, backend = trainer.history, trainer.model.backend
    return {
        "dataset": test.name,
        "test_fingerprint": test.fingerprint(),
        "test_accuracy": result.accuracy,
        "test_loss": result.loss,
        "validation_accuracy": history.records[-1].validation_accuracy,
        "epochs": len(history),
        "seconds": history.seconds,
        "samples_per_second": history.samples_per_second,
        "device": backend.name,
        "device_name": backend.device_name,
        "execution": trainer.execution.name,
        "execution_reason": trainer.execution.reason,
        "threads": trainer.execution.threads,
        "dtype": config.dtype,
        "seed": config.seed,
        "version": gpumlp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "trend": history.trend(),
        "findings": [vars(finding) for finding in history.findings()],
    }


def in_words(trainer: Trainer, test: Dataset, result: Evaluation) -> list[str]:
    """The lines that end a training: results, throughput, and what was found to be wrong, if anything was."""
    history, backend = trainer.history, trainer.model.backend
    return [
        f"execution: {trainer.execution}",
        describe(test, result),
        f"throughput: {history.samples_per_second:,.0f} samples/s on {backend.name} ({backend.device_name})",
        *(f"finding: {finding.message}" for finding in history.findings()),
    ]


def describe(test: Dataset, result: Evaluation) -> str:
    """A test result in a line."""
    return (
        f"{test.name} test accuracy: {percent(result.accuracy)} "
        f"({result.correct:,} of {result.samples:,}), loss {result.loss:.4f}"
    )
