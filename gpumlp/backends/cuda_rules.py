"""Which rules the kernels know, and what of them a kernel is told.

A rule is known by the full name of its own class: a subclass may compute anything, so no kernel stands for it.
"""

from __future__ import annotations

import math
from typing import Any

from .rules import ActivationRule, OptimizerRule

PENALTY = "gpumlp.nn.penalties.Penalty"
SGD, ADAM = "gpumlp.nn.optimizers.SGD", "gpumlp.nn.optimizers.Adam"

# Numbered as in rules.cuh.
IDENTITY, RELU, LEAKY_RELU, TANH, SIGMOID = range(5)
ACTIVATION_CODES = {
    "gpumlp.nn.activations.Identity": IDENTITY,
    "gpumlp.nn.activations.ReLU": RELU,
    "gpumlp.nn.activations.LeakyReLU": LEAKY_RELU,
    "gpumlp.nn.activations.Tanh": TANH,
    "gpumlp.nn.activations.Sigmoid": SIGMOID,
}
PLAIN, MOMENTUM, NESTEROV = range(3)


def full_name(rule: object) -> str:
    """The name under which a rule's own class was defined."""
    return f"{type(rule).__module__}.{type(rule).__qualname__}"


def activation_code(activation: ActivationRule) -> int | None:
    """An activation's number, or None if no kernel knows it."""
    return ACTIVATION_CODES.get(full_name(activation))


def slope_of(activation: ActivationRule) -> float:
    """The negative slope of a leaky ReLU; of no meaning otherwise."""
    return float(getattr(activation, "negative_slope", 0.0))


def sgd_code(optimizer: Any) -> int:
    """The number of SGD's rule."""
    return NESTEROV if optimizer.nesterov else MOMENTUM if optimizer.momentum else PLAIN


def step_factors(optimizer: OptimizerRule, steps: int, learning_rate: float) -> tuple[float, float]:
    """What of an optimizer's formula changes from step to step: step size and epsilon.

    Args:
        optimizer: SGD, whose step size is the learning rate, or Adam, whose bias corrections of both means are
            scalars and so go into step size and epsilon, as in ``nn/optimizers.py``.
        steps: the step's number, counted from 1.
        learning_rate: of this step.
    """
    if full_name(optimizer) == SGD:
        return learning_rate, 0.0
    adam: Any = optimizer
    root_correction = math.sqrt(1 - adam.beta2**steps)
    mean_correction = 1 - adam.beta1**steps
    epsilon = adam.epsilon * root_correction if adam.correct_epsilon else adam.epsilon
    return learning_rate * root_correction / mean_correction, epsilon
