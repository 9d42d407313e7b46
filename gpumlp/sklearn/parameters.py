"""What each parameter of the estimators may be: one table, which checks and writes the error messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from ..backends import Backend, check_device_name
from ..nn.hyperparameters import whole

Check = Callable[[Any], bool]

ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}  # theirs: ours
MAX_FUN = 15_000  # scikit-learn's default


def hidden_sizes(value: Any) -> list[int]:
    """Units of each hidden layer.

    Raises:
        ValueError: it is neither a whole number of 1 or more nor a sequence of them.
    """
    sizes = [*value] if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]
    return [whole("a size in hidden_layer_sizes", size, 1) for size in sizes]


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _at_least(low: float) -> Check:
    return lambda value: _is_number(value) and value >= low


def _above(low: float) -> Check:
    return lambda value: _is_number(value) and value > low


def _fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _count(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def _flag(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's and NumPy's


def _choice(*choices: str) -> tuple[Check, str]:
    return lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"


def _device(value: Any) -> bool:
    if isinstance(value, Backend):
        return True
    try:
        check_device_name(value)
    except ValueError:
        return False
    return True


def _sizes(value: Any) -> bool:
    try:
        hidden_sizes(value)
    except ValueError:
        return False
    return True


_FRACTION = (_fraction, "a number of at least 0 and below 1")
_FLAG = (_flag, "True or False")
RANGES: dict[str, tuple[Check, str]] = {
    "hidden_layer_sizes": (_sizes, "a whole number of 1 or more, or a sequence of them"),
    "activation": _choice(*ACTIVATIONS),
    "solver": _choice("sgd", "adam"),
    "alpha": (_at_least(0), "a number of 0 or more"),
    "batch_size": (lambda value: value == "auto" if isinstance(value, str) else _count(value), "auto, 1 or more"),
    "learning_rate": _choice("constant", "invscaling", "adaptive"),
    "learning_rate_init": (_above(0), "a number above 0"),
    "power_t": (_at_least(0), "a number of 0 or more"),
    "max_iter": (_count, "a whole number of 1 or more"),
    "shuffle": _FLAG,
    "tol": (_at_least(0), "a number of 0 or more"),
    "verbose": (lambda value: _flag(value) or isinstance(value, Integral), "True, False or a whole number"),
    "warm_start": _FLAG,
    "momentum": _FRACTION,
    "nesterovs_momentum": _FLAG,
    "early_stopping": _FLAG,
    "validation_fraction": _FRACTION,
    "beta_1": _FRACTION,
    "beta_2": _FRACTION,
    "epsilon": (_above(0), "a number above 0"),
    "n_iter_no_change": (lambda value: value == math.inf or _count(value), "a whole number of 1 or more, or inf"),
    "class_weight": (
        lambda value: (
            value is None or isinstance(value, Mapping) or (isinstance(value, str) and value == "balanced")
        ),
        "None, balanced, or a dict of weights by class",
    ),
    "device": (_device, "auto, cpu, cuda or cuda:N"),
}


def check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that are wrong, all at once, and those of scikit-learn's that are not offered.

    Args:
        name: of the estimator.
        parameters: as ``get_params`` gives them.

    Raises:
        ValueError: naming each parameter, what was expected and what came.
    """
    problems = []
    for parameter, value in parameters.items():
        refusal = _not_offered(parameter, value)
        if refusal is not None:
            problems.append(refusal)
        elif parameter in RANGES and not RANGES[parameter][0](value):
            problems.append(f"{parameter}: expected {RANGES[parameter][1]}, got {value!r}")
    if problems:
        raise ValueError(f"{name}: " + "; ".join(problems))


def _not_offered(parameter: str, value: Any) -> str | None:
    """What to say to a choice that scikit-learn has and gpumlp has not."""
    instead = "use sklearn.neural_network for it"
    if parameter == "solver" and isinstance(value, str) and value == "lbfgs":
        return f"solver='lbfgs' is not offered by gpumlp: expected sgd or adam; {instead}"
    if parameter == "max_fun" and not (_is_number(value) and value == MAX_FUN):
        return (
            f"max_fun belongs to solver='lbfgs', which gpumlp does not offer: expected {MAX_FUN} (the default), "
            f"got {value!r}; {instead}"
        )
    if parameter == "loss" and not (isinstance(value, str) and value == "squared_error"):
        return f"loss={value!r} is not offered by gpumlp: expected squared_error; {instead}"
    return None
