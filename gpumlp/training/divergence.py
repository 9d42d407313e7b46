"""Why training diverged: where the loss became NaN or infinite, the likely cause, and what to try."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ..nn.activations import Identity
from ..nn.metrics import Evaluation
from ..nn.optimizers import SGD, Optimizer
from .history import Finding, History
from .step import TrainingStep

LARGE_VALUE = 20.0  # inputs, and targets that are numbers, are meant to be about 1
LARGE_FIRST_LOSS = 10.0  # times that of guessing, before the first update


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite. The network is as it was after the last good epoch.

    Attributes:
        finding: the evidence, the likely cause and what to try; its message is that of the error.
        history: of the epochs before.
        folder: that of the run, once the reason is saved in it; None without a run.
    """

    def __init__(self, finding: Finding, history: History) -> None:
        super().__init__(finding.message)
        self.finding = finding
        self.history = history
        self.folder: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.finding, self.history), self.__dict__


def explain_divergence(
    step: TrainingStep, epoch: int, learning_rates: Sequence[float], validation: Evaluation | None = None
) -> Finding:
    """Run the epoch again from its start, step by step, until the loss is no longer finite.

    Args:
        step: with parameters and optimizer state as they were before the epoch; both are overwritten.
        epoch: its number, counted from 1.
        learning_rates: of the epoch's steps.
        validation: the results on the validation samples, if their loss alone is not finite.

    Returns:
        A finding with the step, the learning rate, the largest gradient, and what to try.
    """
    model, xp = step.model, step.model.backend.xp
    largest, largest_name, where, first_loss = 0.0, "", f"in epoch {epoch}", math.nan
    learning_rate = learning_rates[0]
    batches = step.batches
    with step.gradient_kept():
        for index in chain.from_iterable(batches.available(range(len(batches.slices)))):
            batch = batches.slices[index]
            step(batch, learning_rates[index])
            loss = float(model.backend.to_numpy(step.losses[batch]).mean())
            if index == 0:
                first_loss = loss
            if not math.isfinite(loss):
                where += f", at step {index + 1} of {len(step.batches.slices)}, where the loss became {loss}"
                break
            learning_rate = learning_rates[index]  # of the last step before
            for name, gradient in model.parameters.views(model.parameters.gradient).items():
                value = float(xp.max(xp.abs(gradient)))
                if math.isfinite(value) and value > largest:
                    largest, largest_name = value, name
    inputs = 1.0 if step.batches.pixels else float(xp.max(xp.abs(step.workspace.inputs)))
    gradient_note = f", largest gradient {largest:.3g} (of {largest_name})" if largest_name else ""
    targets = float(xp.max(xp.abs(step.targets))) if model.loss.task == "numbers" else 1.0
    ranges = [] if step.batches.pixels else [f"inputs up to {inputs:.3g}"]
    ranges += [f"targets up to {targets:.3g}"] * (model.loss.task == "numbers")
    range_note = f", {' and '.join(ranges)} in absolute value" if ranges else ""
    advice = _advice(step, epoch, learning_rate, inputs, targets, first_loss)
    if validation is not None:
        where += f", where the loss of the validation samples became {validation.loss}"
        advice = f"Check that the validation samples are scaled as the training samples are. {advice}"
    return Finding(
        "diverged",
        f"training diverged {where}: learning_rate {learning_rate:g}{gradient_note}{range_note}. "
        f"The parameters are those after epoch {epoch - 1}. {advice}",
    )


def _advice(step: TrainingStep, epoch: int, rate: float, inputs: float, targets: float, first_loss: float) -> str:
    """The likeliest cause, from the most telling evidence to the least, and what to try."""
    model = step.model
    for what, largest in (("Inputs", inputs), ("Targets", targets)):
        if largest > LARGE_VALUE:
            return f"{what} so large make every step too large: scale them to about 1"
    if isinstance(step.optimizer, SGD):
        # W <- (1 - rate l2) W: with momentum mu, |W| grows where rate l2 > 2 (1 + mu).
        limit = 2 * (1 + step.optimizer.momentum)
        if rate * step.penalty.l2 > limit:
            return (
                f"The penalty alone makes the weights grow where learning_rate times l2, here "
                f"{rate * step.penalty.l2:.3g}, is above {limit:.3g}: try an l2 of {0.01 / rate:.2g} or less"
            )
    guess = math.log(model.sizes[-1]) if model.loss.task == "classes" else math.inf
    if epoch == 1 and not first_loss <= LARGE_FIRST_LOSS * guess:
        return (
            f"The loss was {first_loss:.3g} before the first update, where guessing has {guess:.2f}: the initial "
            f"weights are too large; try initializer {(model.activations or [Identity()])[0].initializer}"
        )
    return smaller_steps(step.optimizer, rate)


def smaller_steps(optimizer: Optimizer, learning_rate: float) -> str:
    """Advice for a divergence without another cause: a tenth of the rate, or the usual one if that is smaller."""
    (usual,) = (field.default for field in dataclasses.fields(optimizer) if field.name == "learning_rate")
    rate = min(learning_rate / 10, usual if isinstance(usual, float) else math.inf)
    return f"Try a learning_rate of {rate:g} or less, or another initializer"
