"""What to say when the loss is no longer a number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .history import History

if TYPE_CHECKING:
    from .step import TrainingStep


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite. The network is as it was after the last good epoch.

    Attributes:
        history: of the epochs before.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


def diagnose(step: TrainingStep, epoch: int) -> str:
    """Run the epoch again from its start, looking at every step, until the loss is lost.

    Args:
        step: with parameters and optimizer state as they were before the epoch; both are overwritten.
        epoch: its number, counted from 1.

    Returns:
        Where it happened, the learning rate, the largest gradient, and what to try.
    """
    model, xp = step.model, step.model.backend.xp
    largest, largest_name, where = 0.0, "", f"in epoch {epoch}"
    step.keep_gradient()
    for index, batch in enumerate(step.batches.slices):
        step(batch)
        loss = float(model.backend.to_numpy(step.losses[batch]).mean())
        if not math.isfinite(loss):
            where += f", at step {index + 1} of {len(step.batches.slices)}, where the loss became {loss}"
            break
        for name, gradient in model.parameters.views(model.parameters.gradient).items():
            value = float(xp.max(xp.abs(gradient)))
            if math.isfinite(value) and value > largest:
                largest, largest_name = value, name
    gradient_note = f", largest gradient {largest:.3g} (of {largest_name})" if largest_name else ""
    range_note = ""
    if not step.batches.pixels:
        inputs = float(xp.max(xp.abs(step.workspace.inputs)))
        range_note = f", inputs up to {inputs:.3g} in absolute value"
        if inputs > 20:
            range_note += " (scale them to about 1)"
    return (
        f"training diverged {where}: learning_rate {step.learning_rate:g}{gradient_note}{range_note}. "
        f"The parameters are those after epoch {epoch - 1}. "
        f"Try a learning_rate of {step.learning_rate / 10:g} or less, or another initializer"
    )
