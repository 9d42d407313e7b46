"""The allowed values of each option: one table, which checks and writes the error messages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backends import EXECUTIONS, MATMUL_PRECISIONS, check_device_name
from ..nn.activations import ACTIVATIONS, Identity
from ..nn.initializers import INITIALIZERS

Check = Callable[[Any], bool]


def _number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    def valid(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return (low < value if open_low else low <= value) and (value < high if open_high else value <= high)

    return valid


def _whole(low: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _sequence(check: Check) -> Check:
    return lambda value: isinstance(value, tuple) and all(map(check, value))


def _choice(*choices: str) -> tuple[Check, str]:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def _choice_or_none(*choices: str) -> tuple[Check, str]:
    return lambda value: value is None or value in choices, f"one of {', '.join(choices)}"


def _device(value: Any) -> bool:
    try:
        check_device_name(value)
    except ValueError:
        return False
    return True


def _dataset(value: Any) -> bool:
    return isinstance(value, str) and (value in ("auto", "mnist", "digits") or value.lower().endswith(".npz"))


_is_text: Check = lambda value: isinstance(value, str) and value != ""  # noqa: E731
_is_flag: Check = lambda value: isinstance(value, bool)  # noqa: E731

# One table: what is allowed, and the words of the error message.
RANGES: dict[str, tuple[Check, str]] = {
    "device": (_device, "auto, cpu, cuda or cuda:N"),
    "dataset": (_dataset, "auto, mnist, digits, or a path that ends in .npz"),
    "data_dir": (_optional(_is_text), "a folder"),
    "hidden": (_sequence(_whole(1)), "whole numbers of 1 or more, or none"),
    "activation": _choice(*(name for name in ACTIVATIONS if name != Identity.name)),
    "initializer": _choice(*INITIALIZERS),
    "initializer_scale": (_optional(_number(0, open_low=True)), "a number above 0"),
    "optimizer": _choice("sgd", "adam"),
    "learning_rate": (_optional(_number(0, open_low=True)), "a number above 0"),
    "momentum": (_optional(_number(0, 1, open_high=True)), "a number of at least 0 and below 1"),
    "nesterov": (_is_flag, "true or false"),
    "l2": (_number(0), "a number of 0 or more"),
    "l1": (_number(0), "a number of 0 or more"),
    "schedule": _choice("constant", "step", "exponential", "inverse_time", "milestones"),
    "gamma": (_optional(_number(0, 1, open_low=True)), "a number above 0 and up to 1"),
    "step_size": (_optional(_whole(1)), "a whole number of 1 or more"),
    "decay_rate": (_optional(_number(0)), "a number of 0 or more"),
    "milestones": (_sequence(_whole(1)), "whole numbers of 1 or more"),
    "batch_size": (
        _optional(lambda value: value == "full" or _whole(1)(value)),
        "a whole number of 1 or more, or full",
    ),
    "epochs": (_optional(_whole(1)), "a whole number of 1 or more"),
    "validation": (_optional(_whole(0)), "a whole number of 0 or more"),
    "early_stopping": (_whole(0), "a whole number of 0 or more"),
    "seed": (_whole(0), "a whole number of 0 or more"),
    "dtype": _choice("float32", "float64"),
    "matmul_precision": _choice(*MATMUL_PRECISIONS),
    "execution": _choice(*EXECUTIONS),
    "diagnostics": _choice("on", "off"),
    "out": (_optional(_is_text), "a folder"),
    "overwrite": (_is_flag, "true or false"),
    "resume": (_optional(_is_text), "the folder of a run"),
    "min_accuracy": (_optional(_number(0, 1)), "a fraction from 0 to 1, such as 0.975"),
    "quiet": (_is_flag, "true or false"),
    "log": _choice_or_none("tensorboard"),
    "preset": _choice_or_none("notes"),
}

# Options that mean something only with certain values of another: given otherwise, they are a mistake.
BELONGS_TO: dict[str, tuple[str, tuple[str, ...]]] = {
    "initializer_scale": ("initializer", ("normal",)),
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
    "gamma": ("schedule", ("step", "milestones")),
    "step_size": ("schedule", ("step",)),
    "decay_rate": ("schedule", ("exponential", "inverse_time")),
    "milestones": ("schedule", ("milestones",)),
}
