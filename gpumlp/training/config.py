"""The configuration of a run: one dataclass for Python, the command line, ``config.json`` and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ..backends import EXECUTIONS, MATMUL_PRECISIONS, check_device_name
from ..data import DATA_SETS, Blocks, Distortion
from ..data.tables import TABLE_ENDINGS
from ..nn.activations import ACTIVATIONS, Identity
from ..nn.hyperparameters import Range, numbers, whole_numbers
from ..nn.initializers import INITIALIZERS, Initializer, Normal
from ..nn.losses import Loss, loss_for
from ..nn.metrics import METRICS, Task
from ..nn.optimizers import OPTIMIZERS, AdamW, Optimizer, Penalty, RMSprop
from ..nn.preprocessing import Preprocessing
from ..nn.schedules import SCHEDULES, Constant, Schedule, Warmup
from ..words import listed
from .batches import ClassWeight, held_out_samples
from .history import MONITORS

T = TypeVar("T")

SMALL_SET = 10_000  # training samples; smaller sets need smaller batches and more epochs for as many steps
SGD_RATE_OF_NUMBERS = 0.01  # errors of numbers have no limit as those of probabilities: at 0.1, training diverges


class ConfigError(ValueError):
    """One or more values are wrong; each line of the message names one and its allowed range."""


def given(value: T | None) -> T:
    """A value that `resolved` has filled in."""
    if value is None:
        raise ConfigError("the configuration has to be resolved first: call Config.resolved()")
    return value


# -- Options: a default, the allowed values, and what else is known of a field ---------------------------


def option(
    default: Any,
    allowed: Range,
    *,
    only_with: str | None = None,
    usual: Any = None,
    on_resume: bool = False,
    per_call: bool = False,
) -> Any:
    """A field of `Config`.

    Args:
        default: its value if none is given; None also where it depends on the data or on another option.
        allowed: the values; None is always allowed where it is the default.
        only_with: the choice that it belongs to, as in "schedule step or milestones"; with another choice it is an
            error.
        usual: what `Config.resolved` fills in where the choice is made and no value is given; or a dictionary of
            that for each choice.
        on_resume: may it be changed when a run is resumed?
        per_call: is it about a call of the command, and not about what is computed?
    """
    if default is None:
        accepts = allowed.accepts
        allowed = allowed._replace(accepts=lambda value: value is None or accepts(value))
    facts = {"allowed": allowed, "only_with": only_with, "usual": usual}
    return dataclasses.field(default=default, metadata={**facts, "on_resume": on_resume, "per_call": per_call})


def _one_of(*names: str) -> Range:
    return Range(lambda value: value in names, f"{'one of ' * (len(names) > 1)}{', '.join(names)}")


def _each(allowed: Range, words: str) -> Range:
    return Range(lambda value: isinstance(value, tuple) and all(map(allowed.accepts, value)), words)


def _one_or_each(allowed: Range, words: str) -> Range:
    """One value, or several, one for each hidden layer."""
    several = _each(allowed, words)
    return Range(lambda value: allowed.accepts(value) or (several.accepts(value) and len(value) > 0), words)


def _text(words: str) -> Range:
    return Range(lambda value: isinstance(value, str) and value != "", words)


def _is_device(value: Any) -> bool:
    try:
        check_device_name(value)
    except ValueError:
        return False
    return True


def _is_pair(value: Any) -> bool:
    """Whether this is NAME=NUMBER."""
    name, _, weight = value.rpartition("=") if isinstance(value, str) else ("", "", "")
    with suppress(ValueError):
        return bool(name) and numbers(0).accepts(float(weight))
    return False


def _by_name(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """NAME and =TEXT of words NAME or NAME=TEXT; raises ValueError if a name is given twice."""
    pairs = [(name, equals + text) for name, equals, text in (word.partition("=") for word in words)]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is given twice")
    return pairs


def _distortion(words: tuple[str, ...]) -> Distortion:
    """What NAME=NUMBER and elastic=ALPHA,SIGMA describe.

    Raises:
        ValueError, TypeError: a name, a number or a range is wrong.
    """
    values: dict[str, Any] = {
        name: tuple(map(float, text[1:].split(","))) if name == "elastic" else float(text[1:])
        for name, text in _by_name(words)
    }
    return Distortion(**values)


def _preprocessing(words: tuple[str, ...]) -> Preprocessing:
    """What deskew and width=PIXELS describe.

    Raises:
        ValueError, TypeError: a word is wrong.
    """
    values: dict[str, Any] = {
        name: True if (name, text) == ("deskew", "") else int(text[1:]) for name, text in _by_name(words)
    }
    return Preprocessing(**values)


def _describes(make: Callable[[tuple[str, ...]], object], value: Any) -> bool:
    """Whether these are words of which `make` makes something, or none."""
    if not isinstance(value, tuple) or not all(isinstance(word, str) for word in value):
        return False
    with suppress(ValueError, TypeError):
        return not value or make(value) is not None
    return False


def wrong_value(name: str, allowed: Range, value: Any) -> str:
    """A line on a value of an option that is not allowed; of several words it names those that are wrong alone."""
    parts = list(value) if isinstance(value, tuple) and value else [value]
    wrong = [part for part in parts if len(parts) > 1 and not allowed.accepts((part,))] or parts
    expected = allowed.words
    if name in ("augment", "preprocess") and len(wrong) == 1:
        text, alone = str(wrong[0]), isinstance(value, str)
        words = re.split(rf"[+{' ' * alone}]+(?=[A-Za-z])", text)
        if allowed.accepts(tuple(words)):
            expected = f"a list of words, such as {json.dumps(words)}"
            if not alone:
                expected = f"separate words, as in {' '.join(words)}"
        else:
            form = text.partition("=")[0] + "="
            expected = next((each for each in _DISTORTIONS if each.startswith(form)), expected)
    return f"{name}: expected {expected}, got {', '.join(map(repr, wrong))}"


def _is_table(value: Any) -> bool:
    """Whether this is the path of an Arrow or Parquet file, or of a folder of them."""
    return isinstance(value, str) and value.lower().rstrip("/").endswith(TABLE_ENDINGS)


_FLAG = Range(lambda value: isinstance(value, bool), "true or false")
_DATASET = Range(
    lambda value: isinstance(value, str) and (value in DATA_SETS or value.lower().endswith(".npz")),
    f"{', '.join(DATA_SETS)}, or a path that ends in .npz",
)
_FILES = _each(_text("a path"), "a file of samples and one of their targets")
_PAIR_OF_FILES = Range(lambda value: _FILES.accepts(value) and len(value) == 2, _FILES.words)
_DATA = Range(
    lambda value: _DATASET.accepts(value) or _is_table(value) or _PAIR_OF_FILES.accepts(value),
    f"{_DATASET.words} or, with label_column, in {' or '.join(TABLE_ENDINGS)}, or {_FILES.words}",
)
_TEST = Range(
    lambda value: _is_table(value) or _PAIR_OF_FILES.accepts(value),
    f"{_FILES.words}, or with label_column a table",
)
_RATE = numbers(0, 1, open_high=True)
_ACTIVATION = _one_of(*(name for name in ACTIVATIONS if name != Identity.name))
_HELD_OUT = Range(
    lambda value: (
        whole_numbers(0).accepts(value)
        or (isinstance(value, float) and numbers(0, 1, open_low=True, open_high=True).accepts(value))
    ),
    "a whole number of 0 or more, or a fraction such as 0.1",
)
_PAIR = Range(_is_pair, "CLASS=WEIGHT with a weight of 0 or more")
_PAIRS = _each(_PAIR, _PAIR.words)
_CLASS_WEIGHT = Range(
    lambda value: (
        value == "balanced"
        or _PAIR.accepts(value)
        or (_PAIRS.accepts(value) and 0 < len(value) == len({pair.rpartition("=")[0] for pair in value}))
    ),
    f"balanced, or {_PAIR.words}, once for each class that has another weight than 1",
)
_DISTORTIONS = (
    *("rotation=DEGREES (to 180)", "scaling=PART (to 0.99)", "shear=PART (to 1)", "translation=PIXELS (to 28)"),
    "elastic=ALPHA,SIGMA (to 10000 and from 0.5 to 14)",
)
_AUGMENT = Range(
    partial(_describes, _distortion),
    f"{', '.join(_DISTORTIONS)}, each at most once, such as rotation=7.5 elastic=34,4",
)
_PREPROCESS = Range(partial(_describes, _preprocessing), "deskew, width=PIXELS (1 or more), or both")
_BATCH_SIZE = Range(
    lambda value: value == "full" or whole_numbers(1).accepts(value), "a whole number of 1 or more, or full"
)


@dataclass(frozen=True)
class Config:
    """Train a multilayer perceptron."""

    device: str = option("auto", Range(_is_device, "auto, cpu, cuda or cuda:N"), on_resume=True)
    """auto (a usable GPU, otherwise the CPU), cpu, cuda, cuda:1, ..."""
    dataset: str | tuple[str, ...] = option("auto", _DATA)
    """auto (MNIST where it is available, otherwise the built-in digits), mnist, digits, FILE.npz with x_train,
    y_train, x_test, y_test (and w_train, w_test for sample weights), or qmnist, emnist-letters and so on, where
    --data-dir holds several of them; or two files, IMAGES LABELS (.npy, IDX or Zarr), or folders of numbered
    ones; or, with --label-column, FILE.arrow, FILE.feather or FILE.parquet, or such a folder."""
    label_column: str | None = option(None, _text("the name of a column"))
    """The column of an Arrow or Parquet file that holds the targets; all others are features."""
    test: str | tuple[str, ...] | None = option(None, _TEST)
    """With files as --dataset, those of the test set; without, a tenth of the samples, at most 10,000, is held
    out."""
    stream: bool = option(False, _FLAG)
    """With files as --dataset, read the samples while they are used, in an order by blocks: for data larger than
    memory."""
    task: str | None = option(None, _one_of(*METRICS))
    """What the targets of FILE.npz or LABELS are: classes, labels (several of them a sample) or numbers
    (regression); otherwise integers and text are classes, a matrix of 0 and 1 labels, and floats numbers."""
    data_dir: str | None = option(None, _text("a folder"), on_resume=True)
    """Folder with the four files of MNIST or a relative; without it, $GPUMLP_DATA_DIR, the cache or a download."""
    hidden: tuple[int, ...] = option((128,), _each(whole_numbers(1), "whole numbers of 1 or more, or none"))
    """Units of each hidden layer; none at all is softmax, logistic or linear regression."""
    activation: str | tuple[str, ...] = option(
        "relu", _one_or_each(_ACTIVATION, f"{_ACTIVATION.words}, or several of them, one for each hidden layer")
    )
    """Activation of the hidden layers, or of each of them: relu, leaky_relu, elu, gelu, silu, softplus, tanh or
    sigmoid."""
    dropout: float | tuple[float, ...] = option(
        0.0, _one_or_each(_RATE, f"{_RATE.words}, or several, one for each hidden layer")
    )
    """Probability of dropping a unit of a hidden layer in training, or that of each hidden layer."""
    input_dropout: float = option(0.0, _RATE)
    """Probability of dropping an input in training."""
    initializer: str = option("auto", _one_of(*INITIALIZERS))
    """Initial weights: auto (Glorot for tanh and sigmoid, He for the others), he, he_uniform, glorot,
    glorot_uniform, orthogonal or normal."""
    initializer_scale: float | None = option(
        None, numbers(0, open_low=True), only_with="initializer normal", usual=Normal.scale
    )
    """Standard deviation of the normal initializer (0.01)."""
    optimizer: str = option("sgd", _one_of(*OPTIMIZERS))
    """sgd, adam, adamw or rmsprop."""
    learning_rate: float | None = option(None, numbers(0, open_low=True))
    """Initial learning rate (sgd 0.1, for numbers 0.01; the others 0.001)."""
    momentum: float | None = option(
        None, _RATE, only_with="optimizer sgd or rmsprop", usual={"sgd": 0.9, "rmsprop": RMSprop.momentum}
    )
    """Momentum (sgd 0.9, rmsprop 0)."""
    nesterov: bool = option(False, _FLAG, only_with="optimizer sgd")
    """Use Nesterov momentum."""
    weight_decay: float | None = option(None, numbers(0), only_with="optimizer adamw", usual=AdamW.weight_decay)
    """Decoupled decay of the weights with adamw (0.01)."""
    l2: float = option(0.0, numbers(0))
    """L2 penalty: l2 / 2 times the sum of the squared weights."""
    l1: float = option(0.0, numbers(0))
    """L1 penalty: l1 times the sum of the absolute weights."""
    clip_norm: float | None = option(None, numbers(0, open_low=True))
    """Scale the gradient down to this norm where it is larger."""
    max_norm: float | None = option(None, numbers(0, open_low=True))
    """Scale the incoming weights of a hidden unit down to this norm where theirs is larger, after each step."""
    label_smoothing: float = option(0.0, _RATE)
    """Share of a target that is spread over all classes, or over both values of a label."""
    class_weight: str | tuple[str, ...] | None = option(None, _CLASS_WEIGHT)
    """balanced: weights inversely proportional to the number of training samples of each class; or CLASS=WEIGHT
    for each class whose weight is not 1, such as yes=20."""
    schedule: str = option("constant", _one_of(*SCHEDULES))
    """Learning rate by epoch: constant, step, exponential, inverse_time or milestones; or by step, over the whole
    run: cosine or one_cycle, whose largest rate is the learning rate."""
    schedule_steps: int | None = option(None, whole_numbers(1), only_with="schedule cosine or one_cycle")
    """Steps that the cosine and one_cycle schedules take (those of all epochs but the warm-up, as planned when the
    run is started); later ones have the last learning rate."""
    warmup: int = option(0, whole_numbers(0))
    """Steps in which the learning rate rises to its initial value, before the schedule."""
    gamma: float | None = option(
        None, numbers(0, 1, open_low=True), only_with="schedule step or milestones", usual=0.5
    )
    """Factor of the step and milestones schedules (0.5)."""
    step_size: int | None = option(None, whole_numbers(1), only_with="schedule step", usual=10)
    """Epochs between two steps of the step schedule (10)."""
    decay_rate: float | None = option(
        None, numbers(0), only_with="schedule exponential or inverse_time", usual=0.05
    )
    """k of the exponential and inverse_time schedules, per epoch (0.05)."""
    milestones: tuple[int, ...] = option(
        (), _each(whole_numbers(1), "whole numbers of 1 or more"), only_with="schedule milestones"
    )
    """Epochs after which the milestones schedule multiplies the learning rate by gamma."""
    batch_size: int | str | None = option(None, _BATCH_SIZE)
    """Samples a step, or full (128, or 32 with fewer than 10,000 training samples)."""
    epochs: int | None = option(None, whole_numbers(1), on_resume=True)
    """Passes over the training samples (20, or 50 with fewer than 10,000 of them)."""
    validation: int | float | None = option(None, _HELD_OUT)
    """Training samples held out for validation (a tenth of them, at most 5,000), or their fraction, such as
    0.1, with the same shares of the classes as in training; 0 for none."""
    early_stopping: int = option(0, whole_numbers(0), on_resume=True)
    """Stop when --monitor has not improved for this many epochs, and keep the best network; 0: never."""
    monitor: str = option("validation_loss", _one_of(*MONITORS), on_resume=True)
    """What early stopping watches: validation_loss, validation_accuracy, validation_label_accuracy of labels,
    validation_r2 and validation_mae of numbers, or the same of the training samples, such as train_loss."""
    ema: float | None = option(None, _RATE)
    """Decay of a moving average of the parameters, over the steps, such as 0.999: the average is the network that
    is validated, tested and saved."""
    augment: tuple[str, ...] = option((), _AUGMENT)
    """Distort the training images, each anew in every epoch: rotation=DEGREES, scaling=PART, shear=PART,
    translation=PIXELS (all up to that, in both directions) and elastic=ALPHA,SIGMA (displacements by smoothed
    noise), such as rotation=7.5 scaling=0.12 elastic=34,4; in pixels of an image of 28 x 28."""
    preprocess: tuple[str, ...] = option((), _PREPROCESS)
    """What all images of digits go through, in training and later: deskew (slanted digits are made upright),
    width=PIXELS (all digits get this width), or both; light digits on a background of 0."""
    order: str | None = option(None, _one_of("shuffle", "blocks"))
    """Of the samples in an epoch: shuffle, or blocks of consecutive samples in random order, a window of which is
    shuffled at a time (the default with --stream)."""
    block: int | None = option(None, whole_numbers(1))
    """Samples in a block (1024)."""
    window: int | None = option(None, whole_numbers(1))
    """Blocks that are in memory at a time (64), shared by the shards of a batch; with --stream, another window is
    read meanwhile."""
    seed: int = option(0, whole_numbers(0))
    """Seed of the initial weights, the held-out samples, the batch order, dropout and distortions."""
    shards: int | None = option(None, whole_numbers(1))
    """Parts that a batch is cut into, whose gradients are summed in a fixed order (with --parallel, the number of
    processes that start the run; otherwise 1)."""
    dtype: str = option("float32", _one_of("float32", "float64"))
    """Precision of the network: float32 or float64."""
    matmul_precision: str = option("highest", _one_of(*MATMUL_PRECISIONS))
    """Precision of float32 matrix products on a GPU: highest (float32) or high (TF32); no effect on the CPU."""
    execution: str = option("auto", _one_of(*EXECUTIONS), on_resume=True)
    """How a GPU runs the steps: auto (the first of these that is possible; graphs first for batches of more than
    256 of a network that is trained alone), persistent (many steps of small networks in one launch), graphs (many
    steps in one launch) or eager (one by one); no effect on the CPU."""
    multiprocessors: int | None = option(None, whole_numbers(1), only_with="execution persistent", on_resume=True)
    """With --execution persistent, the most multiprocessors of a GPU that the network gets (by default as its
    shape needs, fewer in a sweep); at a multiple of that, copies of the network share each batch. Results with
    another number differ by rounding."""
    diagnostics: str = option("on", _one_of("on", "off"), on_resume=True)
    """Measure each layer after every epoch (after some of short ones), to find what is wrong with training:
    on or off; the results are the same."""
    out: str | None = option(None, _text("a folder"), per_call=True)
    """Folder for the run (runs/TIME-DATASET)."""
    overwrite: bool = option(False, _FLAG, per_call=True)
    """Replace a run that is in the folder."""
    parallel: str | None = option(None, _one_of("mpi"), on_resume=True, per_call=True)
    """mpi: the processes that mpiexec has started train one network together, on CPUs (needs pip install ".[mpi]"
    and MPI) or, with device cuda, on a GPU each (needs ".[nccl]")."""
    resume: str | None = option(None, _text("the folder of a run"), on_resume=True, per_call=True)
    """Resume the run in this folder, with its own configuration."""
    min_accuracy: float | None = option(
        None, Range(numbers(0, 1).accepts, "a fraction from 0 to 1, such as 0.975"), on_resume=True, per_call=True
    )
    """Exit with code 1 if the test accuracy, as a fraction, is below this; not for numbers."""
    log: str | None = option(None, _one_of("tensorboard"), on_resume=True, per_call=True)
    """tensorboard: also write event files for TensorBoard into the run's folder (needs pip install
    ".[tensorboard]")."""
    test_curve: bool = option(False, _FLAG, on_resume=True, per_call=True)
    """Measure the test set after every epoch, too, and write the results into test_curve.csv; training does not
    depend on them."""
    quiet: bool = option(False, _FLAG, on_resume=True, per_call=True)
    """Print nothing but errors."""
    report: bool = option(False, _FLAG, on_resume=True, per_call=True)
    """Write report.html, a page about the run, into its folder at the end, also if it diverges or is interrupted
    (needs pip install ".[report]")."""
    preset: str | None = option(None, _one_of("notes"), per_call=True)
    """notes: the course notes' recipe, 784-128-10 with SGD 0.1 halved after epochs 20 and 40 of 50, and an l2 of
    1e-4 (the notes' code divides the penalty by the number of samples; here it is not divided)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, list) and "tuple" in str(field.type):
                object.__setattr__(self, name, value := tuple(value))
            alone = name in ("activation", "dropout", "class_weight", "dataset", "test")
            if alone and isinstance(value, tuple) and len(value) == 1:
                object.__setattr__(self, name, value[0])
        if isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", self.schedule.replace("-", "_"))

    def resolved(self, training_samples: int, task: Task = "classes") -> Config:
        """A copy with every default filled in that depends on the data or on another option.

        Args:
            training_samples: number of training samples, validation samples included.
            task: what the targets are.

        Raises:
            ConfigError: naming everything that is wrong.
        """
        self.check()
        small, optimizer = training_samples < SMALL_SET, OPTIMIZERS[self.optimizer]
        defaults: dict[str, Any] = {
            "batch_size": 32 if small else 128,
            "epochs": 50 if small else 20,
            "validation": min(5000, training_samples // 10),
            "learning_rate": optimizer.learning_rate,
            "shards": 1,
        }
        defaults["order"] = "blocks" if self.stream else "shuffle"
        if (self.order or defaults["order"]) == "blocks":
            defaults |= {"block": Blocks.rows, "window": Blocks.window}
        if task == "numbers" and self.optimizer == "sgd":
            defaults["learning_rate"] = SGD_RATE_OF_NUMBERS
        for field in dataclasses.fields(self):
            usual, only_with = field.metadata["usual"], field.metadata["only_with"]
            if usual is not None and self._is_chosen(only_with):
                choice = getattr(self, only_with.partition(" ")[0])
                defaults[field.name] = usual[choice] if isinstance(usual, dict) else usual
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        config = dataclasses.replace(self, **missing)
        config.check_task(task)
        by_step = getattr(SCHEDULES[config.schedule], "by_step", False)
        if not by_step or config.schedule_steps is not None:
            return config
        planned = config.planned_steps(training_samples)
        if planned <= config.warmup:
            raise ConfigError(
                f"warmup: expected fewer than the {planned:,} steps of the run with schedule {config.schedule}, "
                f"got {config.warmup:,}"
            )
        return dataclasses.replace(config, schedule_steps=planned - config.warmup)

    def planned_steps(self, training_samples: int) -> int:
        """Steps of all epochs; of a resolved configuration, with the number of training samples as for `resolved`.

        Raises:
            ConfigError: too many are held out for validation.
        """
        try:
            samples = training_samples - held_out_samples(given(self.validation), training_samples)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        size = given(self.batch_size)
        return given(self.epochs) * (math.ceil(samples / size) if isinstance(size, int) else 1)

    def check_task(self, task: Task) -> None:
        """Check a resolved configuration against what the targets are.

        Raises:
            ConfigError: naming everything that does not fit.
        """
        part, _, metric = self.monitor.partition("_")
        problems = []
        if self.early_stopping and part == "validation" and not self.validation:
            problems.append("early_stopping: expected only with validation samples, got validation 0")
        metrics = ("loss", *METRICS[task])
        if metric not in metrics:
            names = listed(f"{part}_{name}" for name in metrics)
            problems.append(f"monitor: expected one of {names} for {task}, got {self.monitor}")
        for name, tasks in (
            ("class_weight", ("classes",)),
            ("label_smoothing", ("classes", "labels")),
            ("min_accuracy", ("classes", "labels")),
        ):
            if getattr(self, name) and task not in tasks:
                problems.append(f"{name}: expected only with {' or '.join(tasks)}, but the targets are {task}")
        if problems:
            raise ConfigError("\n".join(problems))

    def check(self) -> None:
        """Raise a ConfigError that names every wrong value and its range; return if there is none."""
        problems = []
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), field.metadata["allowed"]
            if not allowed.accepts(value):
                problems.append(wrong_value(field.name, allowed, value))
        if self.resume is None:  # a run is resumed with its own options, which fit together
            named = {problem.partition(":")[0] for problem in problems}
            problems += [
                problem
                for problem in self._combination_problems()
                if problem.partition(":")[0] not in named and not ("dataset" in named and "dataset" in problem)
            ]
            problems = problems or self._layer_problems()
        if problems:
            raise ConfigError("\n".join(problems))

    def _combination_problems(self) -> list[str]:
        """What does not fit another option."""
        problems = []
        for name, only_with in self._out_of_place().items():
            choice = only_with.partition(" ")[0]
            problems.append(f"{name}: expected only with {only_with}, got {choice} {getattr(self, choice)}")
        for name in ("test", "stream"):
            if getattr(self, name) and isinstance(self.dataset, str) and self.label_column is None:
                problems.append(f"{name}: expected only with dataset IMAGES LABELS, got dataset {self.dataset}")
        table = _is_table(self.dataset)
        if table != (self.label_column is not None):
            problems.append(
                f"label_column: expected with an Arrow or Parquet file as dataset, got {self.label_column} with "
                f"{self.dataset}"
            )
        if self.test is not None and isinstance(self.test, str) != table:
            problems.append(f"test: expected files as for dataset, got {listed(as_paths(self.test))}")
        if self.stream and self.order == "shuffle":
            problems.append("order: expected blocks with stream, got shuffle")
        for name in ("block", "window"):
            if getattr(self, name) is not None and not (self.stream or self.order == "blocks"):
                problems.append(f"{name}: expected only with order blocks, got order {self.order or 'shuffle'}")
        if self.nesterov and self.momentum == 0:
            problems.append("nesterov: expected only with a momentum above 0, got momentum 0")
        if self.schedule == "milestones" and not self.milestones:
            problems.append("milestones: expected at least one epoch with schedule milestones, got none")
        if not self.early_stopping and self.monitor != Config.monitor:
            problems.append("monitor: expected only with early_stopping, got early_stopping 0")
        return problems

    def _layer_problems(self) -> list[str]:
        """What does not fit the hidden layers."""
        layers = len(self.hidden)
        problems = [
            f"{name}: expected one value, or one for each of {layers} hidden layers, got {len(value)}: {value}"
            for name in ("activation", "dropout")
            if isinstance(value := getattr(self, name), tuple) and len(value) != layers
        ]
        if not layers:
            problems += [
                f"{name}: expected only with hidden layers, got none"
                for name in ("dropout", "max_norm")
                if getattr(self, name)
            ]
        return problems

    def without_leftovers(self) -> Config:
        """A copy without what a preset set for a choice that another option has changed."""
        preset = PRESETS.get(str(self.preset), Config())
        leftovers = [name for name in self._out_of_place() if getattr(self, name) == getattr(preset, name)]
        if self.optimizer != preset.optimizer:
            by_optimizer = ("learning_rate", "momentum")
            leftovers += [name for name in by_optimizer if getattr(self, name) == getattr(preset, name)]
        defaults = Config()
        return dataclasses.replace(self, **{name: getattr(defaults, name) for name in leftovers})

    def _out_of_place(self) -> dict[str, str]:
        """The options that are set but belong to another choice than the one made, and the choices they need."""
        return {
            field.name: only_with
            for field in dataclasses.fields(self)
            if (only_with := field.metadata["only_with"]) is not None
            and getattr(self, field.name) != field.default
            and not self._is_chosen(only_with)
        }

    def _is_chosen(self, choices: str) -> bool:
        """Is one of these made, as in "schedule step or milestones"?"""
        name, *values = choices.replace(" or ", " ").split()
        return getattr(self, name) in values

    # -- The objects it describes -------------------------------------------------------------------------

    def make_initializer(self) -> str | Initializer:
        return Normal(given(self.initializer_scale)) if self.initializer == "normal" else self.initializer

    def make_loss(self, task: Task, outputs: int) -> str | Loss:
        """The loss for targets of a kind and a number of outputs."""
        if not self.label_smoothing:
            return "auto"
        kind: Any = type(loss_for(task, outputs))
        smoothed: Loss = kind(label_smoothing=self.label_smoothing)
        return smoothed

    def make_optimizer(self) -> Optimizer:
        return OPTIMIZERS[self.optimizer](given(self.learning_rate), **self._options_of("optimizer"))

    def make_class_weight(self) -> ClassWeight:
        if self.class_weight is None or self.class_weight == "balanced":
            return None if self.class_weight is None else "balanced"
        pairs = (self.class_weight,) if isinstance(self.class_weight, str) else self.class_weight
        return {name: float(weight) for name, _, weight in (pair.rpartition("=") for pair in pairs)}

    def make_augment(self) -> Distortion | None:
        """The distortion of training images; None for none."""
        return _distortion(self.augment) if self.augment else None

    def make_preprocessing(self) -> Preprocessing | None:
        """What all images go through; None for nothing."""
        return _preprocessing(self.preprocess) if self.preprocess else None

    def make_order(self) -> Blocks | None:
        """The order of the samples; None for a full shuffle."""
        if self.order != "blocks":
            return None
        return Blocks(given(self.block), given(self.window))

    def make_penalty(self) -> Penalty:
        return Penalty(l2=self.l2, l1=self.l1)

    def make_schedule(self) -> Schedule:
        schedule = SCHEDULES[self.schedule](**self._options_of("schedule"))
        if not self.warmup:
            return schedule
        return Warmup(self.warmup, then=None if isinstance(schedule, Constant) else schedule)

    def _options_of(self, choice: str) -> dict[str, Any]:
        """The options that belong to a choice, as arguments of its class: `schedule_steps` is ``steps``."""
        return {
            field.name.removeprefix(f"{choice}_"): given(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if str(field.metadata["only_with"]).startswith(f"{choice} ")
            and self._is_chosen(field.metadata["only_with"])
        }

    @property
    def data_files(self) -> tuple[str, ...]:
        """The paths of the data set, of an .npz file or of single files; none for a data set with a name."""
        if isinstance(self.dataset, str) and self.label_column is None:
            return (self.dataset,) if self.dataset.lower().endswith(".npz") else ()
        return as_paths(self.dataset) + as_paths(self.test)

    # -- Files --------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From what `to_json` wrote, in this version or an earlier one.

        Raises:
            ConfigError: unknown names, or wrong values.
        """
        values = with_present_names(values)
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ConfigError(f"unknown option: {', '.join(unknown)}")
        config = cls(**values)
        config.check()
        return config


def as_paths(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """One path, several or none."""
    return (value,) if isinstance(value, str) else value or ()


def with_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options with today's names: `execution` in place of ``cuda_graphs`` and ``persistent_kernel``."""
    result = dict(values)
    old = {name: result.pop(name) for name in ("cuda_graphs", "persistent_kernel") if name in result}
    if old and "execution" not in result:
        graphs = "eager" if old.get("cuda_graphs") == "off" else "graphs"
        result["execution"] = "persistent" if old.get("persistent_kernel") == "on" else graphs
    return result


def options_marked(mark: str) -> tuple[str, ...]:
    """The names of the options with a mark: ``"on_resume"`` or ``"per_call"``, see `option`."""
    return tuple(field.name for field in dataclasses.fields(Config) if field.metadata[mark])


PRESETS: dict[str, Config] = {
    "notes": Config(
        preset="notes",
        hidden=(128,),
        activation="relu",
        initializer="he",
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.0,
        l2=1e-4,
        schedule="milestones",
        milestones=(20, 40),
        gamma=0.5,
        batch_size=128,
        epochs=50,
        validation=0,  # the notes train on all 60,000 images
    ),
}
