"""Runs for the tests of reports, with each kind of targets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from gpumlp import MLP, Dataset, fit
from gpumlp.diagnostics import Diagnosis
from gpumlp.report.runs import Run
from gpumlp.training.config import Config


def data(task: str, samples: int = 300) -> tuple[Dataset, Dataset]:
    """Samples of six features, with two numbers, three labels or two classes each."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 6)).astype(np.float32)
    noise = rng.normal(size=(samples, 3)) * 0.3
    sums = np.stack([np.sin(x[:, 0]) + x[:, 1], x[:, 2] * x[:, 3], x[:, 4]], axis=1) + noise
    targets = {"numbers": sums[:, :2], "labels": (sums > 0).astype(int), "classes": (sums[:, 0] > 0).astype(int)}
    names = ["<cat>", "dog", "cow"] if task == "labels" else None
    options = {"class_names": names, "name": task}
    train, test = (Dataset(x[rows], targets[task][rows], **options) for rows in (slice(200), slice(200, None)))
    return train, test


def trained(task: str, *, name: str | None = None, outputs: int | None = None, **options: object) -> Run:
    """A finished run, as its folder would be read, without the folder."""
    train, test = data(task)
    model = MLP([6, 16, 12, outputs or train.outputs], ["gelu", "tanh"], dropout=[0.2, 0], device="cpu", **options)
    history = fit(model, train, epochs=12, batch_size=20, validation=40)
    return Run(
        name=name or task,
        path=Path(task),
        config=Config(hidden=(16, 12), epochs=12, validation=40),
        model=model,
        network_epoch=9,
        test=test,
        data={"train_fingerprint": train.fingerprint()},
        epochs=[dataclasses.asdict(record) for record in history],
        metrics=None,
        diverged=None,
        diagnosis=Diagnosis(12, history.trend(), history.findings(), False),
        is_best=False,
        finished=True,
        monitor="validation_r2" if task == "numbers" else "validation_loss",
        damaged=[],
    )
