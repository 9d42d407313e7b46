"""What to say when the loss is no longer a number."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from ..diagnostics import Finding
from ..diagnostics.causes import LARGE_INPUT
from ..nn.optimizers import SGD, Optimizer
from .history import History

if TYPE_CHECKING:
    from .run import RunFolder
    from .step import TrainingStep

LARGE_FIRST_LOSS = 10.0  # times that of guessing, before the first update


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite. The network is as it was after the last good epoch.

    Attributes:
        finding: the evidence, the likely cause and what to try; its message is that of the error.
        history: of the epochs before.
        folder: that of the run, where there is one and it has been told why it ended.
    """

    def __init__(self, finding: Finding, history: History) -> None:
        super().__init__(finding.message)
        self.finding = finding
        self.history = history
        self.folder: RunFolder | None = None


def diagnose(step: TrainingStep, epoch: int, learning_rate: float) -> Finding:
    """Run the epoch again from its start, looking at every step, until the loss is lost.

    Args:
        step: with parameters and optimizer state as they were before the epoch; both are overwritten.
        epoch: its number, counted from 1.
        learning_rate: of the epoch.

    Returns:
        Where it happened, the learning rate, the largest gradient, and what to try.
    """
    model, xp = step.model, step.model.backend.xp
    largest, largest_name, where, first_loss = 0.0, "", f"in epoch {epoch}", math.nan
    with step.gradient_kept():
        for index, batch in enumerate(step.batches.slices):
            step(batch, learning_rate)
            loss = float(model.backend.to_numpy(step.losses[batch]).mean())
            if index == 0:
                first_loss = loss
            if not math.isfinite(loss):
                where += f", at step {index + 1} of {len(step.batches.slices)}, where the loss became {loss}"
                break
            for name, gradient in model.parameters.views(model.parameters.gradient).items():
                value = float(xp.max(xp.abs(gradient)))
                if math.isfinite(value) and value > largest:
                    largest, largest_name = value, name
    inputs = 1.0 if step.batches.pixels else float(xp.max(xp.abs(step.workspace.inputs)))
    gradient_note = f", largest gradient {largest:.3g} (of {largest_name})" if largest_name else ""
    range_note = "" if step.batches.pixels else f", inputs up to {inputs:.3g} in absolute value"
    advice = _advice(step, epoch, learning_rate, inputs, first_loss)
    return Finding(
        "diverged",
        f"training diverged {where}: learning_rate {learning_rate:g}{gradient_note}{range_note}. "
        f"The parameters are those after epoch {epoch - 1}. {advice}",
    )


def _advice(step: TrainingStep, epoch: int, rate: float, inputs: float, first_loss: float) -> str:
    """The likeliest cause, from the most telling evidence to the least, and what to try."""
    model = step.model
    if inputs > LARGE_INPUT:
        return "Inputs so large make every step too large: scale them to about 1"
    if isinstance(step.optimizer, SGD):
        # W <- (1 - rate l2) W: with momentum mu, |W| grows where rate l2 > 2 (1 + mu).
        limit = 2 * (1 + step.optimizer.momentum)
        if rate * step.penalty.l2 > limit:
            return (
                f"The penalty alone makes the weights grow where learning_rate times l2, here "
                f"{rate * step.penalty.l2:.3g}, is above {limit:.3g}: try an l2 of {0.01 / rate:.2g} or less"
            )
    guess = math.log(model.sizes[-1])
    if epoch == 1 and not first_loss <= LARGE_FIRST_LOSS * guess:
        return (
            f"The loss was {first_loss:.3g} before the first update, where guessing has {guess:.2f}: the initial "
            f"weights are too large; try initializer {model.activation.initializer}"
        )
    return smaller_steps(step.optimizer, rate)


def smaller_steps(optimizer: Optimizer, learning_rate: float) -> str:
    """What to try after a divergence with no other cause: a tenth, or what is usual where that is still less."""
    (usual,) = (field.default for field in dataclasses.fields(optimizer) if field.name == "learning_rate")
    rate = min(learning_rate / 10, usual if isinstance(usual, float) else math.inf)
    return f"Try a learning_rate of {rate:g} or less, or another initializer"
