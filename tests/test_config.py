"""The configuration: ranges, defaults, JSON, and the notes' preset."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from gpumlp import SGD, Adam, ExponentialDecay, InverseTimeDecay, Milestones, Normal, Penalty, StepDecay
from gpumlp.training.config import PRESETS, Config, ConfigError

MNIST = 60_000

WRONG = [
    ("device", "gpu", "auto, cpu, cuda or cuda:N"),
    ("dataset", "cifar", "auto, mnist, digits, qmnist, "),
    ("data_dir", "", "a folder"),
    ("hidden", (0,), "whole numbers of 1 or more"),
    ("hidden", (12.5,), "whole numbers of 1 or more"),
    ("hidden", 128, "whole numbers of 1 or more"),
    ("activation", "identity", "one of relu"),
    ("initializer", "zero", "one of auto"),
    ("optimizer", "rmsprop", "one of sgd, adam"),
    ("learning_rate", 0, "a number above 0"),
    ("learning_rate", math.nan, "a number above 0"),
    ("learning_rate", math.inf, "a number above 0"),
    ("learning_rate", True, "a number above 0"),
    ("momentum", 1.0, "at least 0 and below 1"),
    ("momentum", -0.1, "at least 0 and below 1"),
    ("nesterov", "yes", "true or false"),
    ("l2", -1e-9, "0 or more"),
    ("l1", math.inf, "0 or more"),
    ("schedule", "cosine", "one of constant, step"),
    ("batch_size", 0, "1 or more, or full"),
    ("batch_size", "half", "1 or more, or full"),
    ("epochs", 0, "1 or more"),
    ("epochs", 1.5, "1 or more"),
    ("validation", -1, "0 or more"),
    ("seed", -1, "0 or more"),
    ("dtype", "float16", "one of float32, float64"),
    ("out", "", "a folder"),
    ("min_accuracy", 97.5, "a fraction from 0 to 1"),
    ("preset", "torch", "notes"),
]
# An option with a valid value, the choice it belongs to, and invalid values.
DEPENDENT = [
    ({"initializer_scale": 0.1}, {"initializer": "normal"}, [0, -1, math.nan]),
    ({"gamma": 0.1}, {"schedule": "step"}, [0, 1.01]),
    ({"step_size": 3}, {"schedule": "step"}, [0, 2.5]),
    ({"decay_rate": 0.1}, {"schedule": "exponential"}, [-0.1]),
    ({"milestones": (3, 5)}, {"schedule": "milestones"}, [(0,), (1.5,)]),
    ({"momentum": 0.5}, {"optimizer": "sgd"}, [1]),
]
NOT_THEIRS = [
    ({"initializer_scale": 0.1}, {"initializer": "he"}),
    ({"gamma": 0.5}, {"schedule": "exponential"}),
    ({"step_size": 10}, {"schedule": "milestones", "milestones": (2,)}),
    ({"decay_rate": 0.05}, {"schedule": "step"}),
    ({"decay_rate": 0.0}, {"schedule": "constant"}),
    ({"milestones": (3,)}, {"schedule": "constant"}),
    ({"momentum": 0.9}, {"optimizer": "adam"}),
    ({"momentum": 0.0}, {"optimizer": "adam"}),
    ({"nesterov": True}, {"optimizer": "adam"}),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_value_is_refused_with_the_allowed_range(name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**{name: value}).check()
    assert str(error.value).startswith(f"{name}: expected ")
    assert expected in str(error.value)
    assert repr(value) in str(error.value)


def test_all_wrong_values_are_named_at_once() -> None:
    wrong = {name: value for name, value, _ in WRONG}
    with pytest.raises(ConfigError) as error:
        Config(**wrong).check()
    assert {line.partition(":")[0] for line in str(error.value).splitlines()} == set(wrong)


@pytest.mark.parametrize(("option", "choice", "wrong"), DEPENDENT)
def test_an_option_of_a_choice_has_a_range(option: dict, choice: dict, wrong: list) -> None:
    Config(**option, **choice).check()
    for value in wrong:
        with pytest.raises(ConfigError, match=f"^{next(iter(option))}: expected"):
            Config(**{next(iter(option)): value}, **choice).check()


@pytest.mark.parametrize(("option", "choice"), NOT_THEIRS)
def test_an_option_of_another_choice_is_refused(option: dict, choice: dict) -> None:
    Config(**choice).check()
    field = next(iter(choice))
    with pytest.raises(ConfigError, match=f"^{next(iter(option))}: expected only with {field} .*got {field}"):
        Config(**option, **choice).check()


def test_combinations_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"nesterov.*momentum above 0"):
        Config(nesterov=True, momentum=0.0).check()
    with pytest.raises(ConfigError, match="milestones: expected at least one"):
        Config(schedule="milestones").check()


def test_the_limits_of_the_ranges_are_allowed() -> None:
    Config(momentum=0.0, l1=0, l2=0.0, validation=0, seed=0, epochs=1, batch_size=1, min_accuracy=1.0).check()
    Config(hidden=(), batch_size="full", min_accuracy=0, schedule="step", gamma=1.0).check()


def test_values_that_depend_on_the_data_are_filled_in() -> None:
    small, large = Config().resolved(1437), Config().resolved(MNIST)
    assert (small.batch_size, small.epochs, small.validation) == (32, 50, 143)
    assert (large.batch_size, large.epochs, large.validation) == (128, 20, 5000)
    assert (large.learning_rate, large.momentum) == (0.1, 0.9)
    adam = Config(optimizer="adam").resolved(MNIST)
    assert (adam.learning_rate, adam.momentum) == (0.001, None)


def test_given_values_are_kept() -> None:
    given = {"batch_size": "full", "epochs": 3, "validation": 0, "learning_rate": 0.5, "momentum": 0.0}
    resolved = Config(**given).resolved(MNIST)
    assert {name: getattr(resolved, name) for name in given} == given


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"schedule": "step"}, StepDecay(0.5, 10)),
        ({"schedule": "step", "gamma": 0.1, "step_size": 3}, StepDecay(0.1, 3)),
        ({"schedule": "exponential", "decay_rate": 0.2}, ExponentialDecay(0.2)),
        ({"schedule": "inverse_time"}, InverseTimeDecay(0.05)),
        ({"schedule": "milestones", "milestones": (2, 4)}, Milestones((2, 4), 0.5)),
    ],
)
def test_schedules_are_made_as_configured(options: dict, schedule: object) -> None:
    assert Config(**options).resolved(MNIST).make_schedule() == schedule


def test_optimizer_penalty_and_initializer_are_made_as_configured() -> None:
    assert Config(momentum=0.5, nesterov=True).resolved(MNIST).make_optimizer() == SGD(0.1, 0.5, nesterov=True)
    assert Config(optimizer="adam", learning_rate=0.01).resolved(MNIST).make_optimizer() == Adam(0.01)
    assert Config(l1=0.1, l2=0.2).make_penalty() == Penalty(l2=0.2, l1=0.1)
    assert Config(initializer="normal").resolved(MNIST).make_initializer() == Normal(0.01)


@pytest.mark.parametrize("config", [Config(), PRESETS["notes"], Config(hidden=(), batch_size="full", seed=2**70)])
def test_a_configuration_goes_through_json_unchanged(config: Config) -> None:
    assert Config.from_dict(json.loads(config.to_json())) == config
    resolved = config.resolved(MNIST)
    assert Config.from_dict(json.loads(resolved.to_json())) == resolved
    assert set(json.loads(config.to_json())) == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("values", [{"lerning_rate": 0.1}, {"epochs": 0}, {"hidden": 5}])
def test_json_with_unknown_or_wrong_values_is_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Config.from_dict(values)


def test_the_notes_preset_is_the_notes_recipe() -> None:
    notes = PRESETS["notes"].resolved(MNIST)
    assert (notes.hidden, notes.activation, notes.initializer) == ((128,), "relu", "he")
    assert notes.make_optimizer() == SGD(0.1)
    assert (notes.epochs, notes.batch_size, notes.validation) == (50, 128, 0)
    rates = [notes.make_schedule()(0.1, epoch) for epoch in range(50)]
    assert rates == [0.1] * 20 + [0.05] * 20 + [0.025] * 10
    assert notes.make_penalty() == Penalty(l2=1e-4)


def test_overriding_a_choice_of_a_preset_also_resets_its_options() -> None:
    changed = dataclasses.replace(PRESETS["notes"], schedule="constant", optimizer="adam").without_leftovers()
    changed.check()
    assert (changed.gamma, changed.milestones, changed.momentum) == (None, (), None)
    asked_for = dataclasses.replace(PRESETS["notes"], schedule="constant", gamma=0.3).without_leftovers()
    with pytest.raises(ConfigError, match=r"^gamma: expected only with"):
        asked_for.check()
    with pytest.raises(ConfigError, match=r"^momentum: expected only with"):
        Config(optimizer="adam", momentum=0.5).without_leftovers().check()
