"""The configuration: ranges, defaults, JSON, and the notes' preset."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from gpumlp import (
    SGD,
    Adam,
    AdamW,
    Cosine,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    Normal,
    OneCycle,
    Penalty,
    RMSprop,
    StepDecay,
    Warmup,
)
from gpumlp.nn.losses import LogisticCrossEntropy, SoftmaxCrossEntropy
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
    ("activation", ("relu", "identity"), "or several of them, one for each hidden layer"),
    ("dropout", 1, "at least 0 and below 1, or several, one for each hidden layer"),
    ("dropout", (0.5, -0.1), "at least 0 and below 1"),
    ("input_dropout", 1.0, "at least 0 and below 1"),
    ("task", "ranks", "one of classes, labels, numbers"),
    ("optimizer", "nadam", "one of sgd, adam, adamw, rmsprop"),
    ("learning_rate", 0, "a number above 0"),
    ("learning_rate", math.nan, "a number above 0"),
    ("learning_rate", math.inf, "a number above 0"),
    ("learning_rate", True, "a number above 0"),
    ("momentum", 1.0, "at least 0 and below 1"),
    ("momentum", -0.1, "at least 0 and below 1"),
    ("nesterov", "yes", "true or false"),
    ("l2", -1e-9, "0 or more"),
    ("l1", math.inf, "0 or more"),
    ("clip_norm", 0, "a number above 0"),
    ("max_norm", -3, "a number above 0"),
    ("label_smoothing", 1, "at least 0 and below 1"),
    ("class_weight", "equal", "expected balanced, or CLASS=WEIGHT with a weight of 0 or more"),
    ("class_weight", ("1=2", "3=-1"), "expected balanced, or CLASS=WEIGHT"),
    ("class_weight", "1=nan", "expected balanced, or CLASS=WEIGHT"),
    ("schedule", "linear", "one of constant, step"),
    ("warmup", 0.5, "a whole number of 0 or more"),
    ("batch_size", 0, "1 or more, or full"),
    ("batch_size", "half", "1 or more, or full"),
    ("epochs", 0, "1 or more"),
    ("epochs", 1.5, "1 or more"),
    ("validation", -1, "0 or more"),
    ("validation", 1.0, "a whole number of 0 or more, or a fraction such as 0.1"),
    ("monitor", "loss", "one of train_loss, train_accuracy"),
    ("ema", 1, "at least 0 and below 1"),
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
    ({"momentum": 0.5}, {"optimizer": "rmsprop"}, [-1]),
    ({"weight_decay": 0.0}, {"optimizer": "adamw"}, [-0.1, math.inf]),
    ({"schedule_steps": 9}, {"schedule": "cosine"}, [0, 1.5]),
    ({"schedule_steps": 9}, {"schedule": "one_cycle"}, [0]),
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
    ({"nesterov": True}, {"optimizer": "rmsprop"}),
    ({"momentum": 0.5}, {"optimizer": "adamw"}),
    ({"weight_decay": 0.01}, {"optimizer": "adam"}),
    ({"schedule_steps": 9}, {"schedule": "step"}),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_value_is_refused_with_the_allowed_range(name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**{name: value}).check()
    assert str(error.value).startswith(f"{name}: expected ")
    assert expected in str(error.value)
    assert str(error.value).endswith(repr(value[-1] if isinstance(value, tuple) and value else value))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "augment",
            ("rotation=5", "elastic=34,0"),
            "augment: expected elastic=ALPHA,SIGMA (to 10000 and from 0.5 to 14), got 'elastic=34,0'",
        ),
        ("augment", ("rotation",), "rotation=DEGREES (to 180), got 'rotation'"),
        ("augment", ("shear=0.1", "twist=1"), "such as rotation=7.5 elastic=34,4, got 'twist=1'"),
        ("augment", ("shear=0.1", "shear=0.2"), "elastic=34,4, got 'shear=0.1', 'shear=0.2'"),
        ("preprocess", ("deskew", "width=0"), "deskew, width=PIXELS (1 or more), or both, got 'width=0'"),
        ("class_weight", ("six=20", "seven"), "another weight than 1, got 'seven'"),
        ("class_weight", (), "another weight than 1, got ()"),
        ("class_weight", ("0=2", "1=3", "0=3"), "another weight than 1, got '0=2', '1=3', '0=3'"),
        ("augment", "rotation=5", "expected a list of words, such as [\"rotation=5\"], got 'rotation=5'"),
        (
            "augment",
            "shear=0.1 elastic=34,4",
            'a list of words, such as ["shear=0.1", "elastic=34,4"], got \'shear=0.1 elastic=34,4\'',
        ),
        ("preprocess", "deskew", "expected a list of words, such as [\"deskew\"], got 'deskew'"),
        (
            "preprocess",
            ("deskew+width=6",),
            "expected separate words, as in deskew width=6, got 'deskew+width=6'",
        ),
        (
            "augment",
            ("rotation=1e+1+shear=.1", "scaling=0.1"),
            "expected separate words, as in rotation=1e+1 shear=.1, got 'rotation=1e+1+shear=.1'",
        ),
        ("hidden", (64, 0, 8), "whole numbers of 1 or more, or none, got 0"),
        ("activation", ("relu", "cube"), "one for each hidden layer, got 'cube'"),
        ("dropout", (0.1, 1.0), "one for each hidden layer, got 1.0"),
        ("dataset", ("a.npy", "b.npy", "c.npy"), "one of their targets, got 'a.npy', 'b.npy', 'c.npy'"),
    ],
)
def test_of_several_words_the_wrong_one_is_named(name: str, value: tuple, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**{name: value}).check()
    assert str(error.value).startswith(f"{name}: expected ")
    assert str(error.value).endswith(message)


def test_all_wrong_values_are_named_at_once() -> None:
    wrong = {name: value for name, value, _ in WRONG}
    with pytest.raises(ConfigError) as error:
        Config(**{"early_stopping": 1, **wrong}).check()
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True, "momentum": 0.0}, r"nesterov.*momentum above 0"),
        ({"schedule": "milestones"}, "milestones: expected at least one"),
        ({"activation": ("relu", "tanh")}, "activation: expected one value, or one for each of 1 hidden layers"),
        ({"hidden": (5, 5, 5), "dropout": (0.1, 0.2)}, r"dropout: .*each of 3 hidden layers, got 2: \(0.1, 0.2\)"),
        ({"hidden": (), "dropout": 0.5}, "dropout: expected only with hidden layers"),
        ({"hidden": (), "max_norm": 3}, "max_norm: expected only with hidden layers"),
        ({"monitor": "train_loss"}, "monitor: expected only with early_stopping"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**options).check()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("numbers", {"label_smoothing": 0.1}, "label_smoothing: expected only with classes or labels, .* numbers"),
        ("numbers", {"min_accuracy": 0.9}, "min_accuracy: expected only with classes or labels, .* numbers"),
        ("numbers", {"class_weight": "balanced"}, "class_weight: expected only with classes, .* numbers"),
        ("labels", {"class_weight": "balanced"}, "class_weight: expected only with classes, .* labels"),
        ("classes", {"monitor": "validation_r2"}, "one of validation_loss, validation_accuracy for classes"),
        ("labels", {"monitor": "train_mae"}, "one of train_loss, train_accuracy, train_label_accuracy for labels"),
        ("numbers", {"monitor": "train_accuracy"}, "one of train_loss, train_r2, train_mae for numbers"),
        ("classes", {"validation": 0}, "early_stopping: expected only with validation samples"),
        ("classes", {"schedule": "cosine", "warmup": 410, "epochs": 10}, "fewer than the 410 steps of the run"),
        ("classes", {"schedule": "cosine", "validation": 1437}, "validation is expected to leave some"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(task: str, options: dict, message: str) -> None:
    config = Config(**{"early_stopping": 3, **options})
    config.check()
    with pytest.raises(ConfigError, match=message):
        config.resolved(1437, task)


def test_a_watched_column_of_the_training_samples_needs_no_validation() -> None:
    Config(early_stopping=3, monitor="train_loss", validation=0).resolved(300)


def test_the_limits_of_the_ranges_are_allowed() -> None:
    Config(momentum=0.0, l1=0, l2=0.0, validation=0, seed=0, epochs=1, batch_size=1, min_accuracy=1.0).check()
    Config(hidden=(), batch_size="full", min_accuracy=0, schedule="step", gamma=1.0).check()


def test_values_that_depend_on_the_data_are_filled_in() -> None:
    small, large = Config().resolved(1437), Config().resolved(MNIST)
    assert (small.batch_size, small.epochs, small.validation) == (32, 50, 143)
    assert (large.batch_size, large.epochs, large.validation) == (128, 20, 5000)
    assert (large.learning_rate, large.momentum) == (0.1, 0.9)
    by_optimizer = {name: Config(optimizer=name).resolved(MNIST) for name in ("adam", "adamw", "rmsprop")}
    found = {name: (c.learning_rate, c.momentum, c.weight_decay) for name, c in by_optimizer.items()}
    assert found == {"adam": (0.001, None, None), "adamw": (0.001, None, 0.01), "rmsprop": (0.001, 0.0, None)}
    numbers = [Config(optimizer=name).resolved(MNIST, "numbers").learning_rate for name in ("sgd", "adam")]
    assert numbers == [0.01, 0.001]


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
        ({"warmup": 7}, Warmup(7)),
        ({"warmup": 7, "schedule": "step"}, Warmup(7, then=StepDecay(0.5, 10))),
        # 55,000 samples in batches of 128 are 430 steps an epoch.
        ({"schedule": "cosine"}, Cosine(20 * 430)),
        ({"schedule": "one-cycle", "epochs": 3, "validation": 0.5}, OneCycle(3 * 235)),
        ({"schedule": "cosine", "warmup": 60, "batch_size": "full", "epochs": 90}, Warmup(60, then=Cosine(30))),
        ({"schedule": "cosine", "schedule_steps": 11, "warmup": 10**9}, Warmup(10**9, then=Cosine(11))),
    ],
)
def test_schedules_are_made_as_configured(options: dict, schedule: object) -> None:
    assert Config(**options).resolved(MNIST).make_schedule() == schedule


def test_optimizer_penalty_and_initializer_are_made_as_configured() -> None:
    assert Config(momentum=0.5, nesterov=True).resolved(MNIST).make_optimizer() == SGD(0.1, 0.5, nesterov=True)
    assert Config(optimizer="adam", learning_rate=0.01).resolved(MNIST).make_optimizer() == Adam(0.01)
    assert Config(optimizer="adamw", weight_decay=0.2).resolved(MNIST).make_optimizer() == AdamW(weight_decay=0.2)
    assert Config(optimizer="rmsprop", momentum=0.5).resolved(MNIST).make_optimizer() == RMSprop(momentum=0.5)
    assert Config(l1=0.1, l2=0.2).make_penalty() == Penalty(l2=0.2, l1=0.1)
    assert Config(initializer="normal").resolved(MNIST).make_initializer() == Normal(0.01)


def test_the_loss_follows_the_task_also_with_label_smoothing() -> None:
    assert Config().make_loss("numbers", 3) == "auto"
    losses = [Config(label_smoothing=0.1).make_loss(task, 3) for task in ("classes", "labels")]
    assert [type(loss) for loss in losses] == [SoftmaxCrossEntropy, LogisticCrossEntropy]
    assert [loss.label_smoothing for loss in losses] == [0.1, 0.1]


SEVERAL = Config(hidden=(5, 6), activation=("gelu", "tanh"), dropout=(0.1, 0.2), validation=0.1)


@pytest.mark.parametrize(
    "config", [Config(), PRESETS["notes"], Config(hidden=(), batch_size="full", seed=2**70), SEVERAL]
)
def test_a_configuration_goes_through_json_unchanged(config: Config) -> None:
    assert Config.from_dict(json.loads(config.to_json())) == config
    resolved = config.resolved(MNIST)
    assert Config.from_dict(json.loads(resolved.to_json())) == resolved
    assert set(json.loads(config.to_json())) == {field.name for field in dataclasses.fields(Config)}


def test_one_value_for_all_layers_is_the_same_as_a_list_of_one() -> None:
    assert Config(activation=("tanh",), dropout=(0.5,)) == Config(activation="tanh", dropout=0.5)
    assert Config(hidden=[8], activation=["tanh"], preprocess=["deskew"]) == Config(
        hidden=(8,), activation="tanh", preprocess=("deskew",)
    )


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
    rmsprop = dataclasses.replace(PRESETS["notes"], optimizer="rmsprop").without_leftovers().resolved(MNIST)
    assert rmsprop.make_optimizer() == RMSprop()
    asked_for = dataclasses.replace(PRESETS["notes"], schedule="constant", gamma=0.3).without_leftovers()
    with pytest.raises(ConfigError, match=r"^gamma: expected only with"):
        asked_for.check()
    with pytest.raises(ConfigError, match=r"^momentum: expected only with"):
        Config(optimizer="adam", momentum=0.5).without_leftovers().check()
