"""The configuration of a run: one dataclass for Python, the command line, ``config.json`` and checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..nn.initializers import Initializer, Normal
from ..nn.optimizers import SGD, Adam, Optimizer, Penalty
from ..nn.schedules import Constant, ExponentialDecay, InverseTimeDecay, Milestones, Schedule, StepDecay
from .ranges import BELONGS_TO, RANGES

T = TypeVar("T")

SMALL_SET = 10_000  # training samples; fewer need smaller batches and more epochs for as many steps


# Settings of a call and not of what is computed: they need not be repeated to get the same network.
OF_THE_CALL = ("log", "out", "overwrite", "resume", "min_accuracy", "quiet", "report", "preset")


class ConfigError(ValueError):
    """One or more values are wrong; each line of the message names one and its allowed range."""


def given(value: T | None) -> T:
    """A value that `resolved` has filled in."""
    if value is None:
        raise ConfigError("the configuration has to be resolved first: call Config.resolved()")
    return value


@dataclass(frozen=True)
class Config:
    """Train a multilayer perceptron."""

    device: str = "auto"
    """auto (a usable GPU, otherwise the CPU), cpu, cuda, cuda:1, ..."""
    dataset: str = "auto"
    """auto (MNIST where it can be had, otherwise the built-in digits), mnist, digits, or FILE.npz with x_train,
    y_train, x_test, y_test."""
    data_dir: str | None = None
    """Folder with MNIST's four files; otherwise $GPUMLP_DATA_DIR, the cache, a download."""
    hidden: tuple[int, ...] = (128,)
    """Units of each hidden layer; none at all is softmax regression."""
    activation: str = "relu"
    """Of the hidden layers: relu, leaky_relu, tanh or sigmoid."""
    initializer: str = "auto"
    """Of the weights: auto (He for the ReLUs, Glorot otherwise), he, glorot or normal."""
    initializer_scale: float | None = None
    """Standard deviation of the normal initializer (0.01)."""
    optimizer: str = "sgd"
    """sgd or adam."""
    learning_rate: float | None = None
    """Initial learning rate (sgd 0.1, adam 0.001)."""
    momentum: float | None = None
    """Momentum of sgd (0.9)."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    l2: float = 0.0
    """L2 penalty: l2 / 2 times the sum of the squared weights."""
    l1: float = 0.0
    """L1 penalty: l1 times the sum of the absolute weights."""
    schedule: str = "constant"
    """Learning rate by epoch: constant, step, exponential, inverse_time or milestones."""
    gamma: float | None = None
    """Factor of the step and milestones schedules (0.5)."""
    step_size: int | None = None
    """Epochs between two steps of the step schedule (10)."""
    decay_rate: float | None = None
    """k of the exponential and inverse_time schedules, per epoch (0.05)."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the milestones schedule multiplies the learning rate by gamma."""
    batch_size: int | str | None = None
    """Samples a step, or full (128, or 32 with fewer than 10,000 training samples)."""
    epochs: int | None = None
    """Passes over the training samples (20, or 50 with fewer than 10,000 of them)."""
    validation: int | None = None
    """Training samples held out for validation (5,000, or a tenth of a smaller set); 0 for none."""
    early_stopping: int = 0
    """Stop when the validation loss has not fallen for so many epochs, and keep the best network; 0: never."""
    seed: int = 0
    """Of the initial weights, the held-out samples and the batch order."""
    dtype: str = "float32"
    """float32 or float64."""
    matmul_precision: str = "highest"
    """Of float32 matrix products on a GPU: highest (float32) or high (TF32); no effect on the CPU."""
    execution: str = "auto"
    """How steps run on a GPU: persistent (one launch for many steps of a small network), graphs (CUDA graphs),
    eager (each operation by itself) or auto (the first of these that is possible); no effect on the CPU."""
    diagnostics: str = "on"
    """Look at each layer after epochs (of very short ones, some), for the findings: on or off; same results."""
    out: str | None = None
    """Folder for the run (runs/TIME-DATASET)."""
    overwrite: bool = False
    """Replace a run that is in the folder."""
    resume: str | None = None
    """Go on with the run in this folder, with its own configuration."""
    min_accuracy: float | None = None
    """Exit with code 1 if the test accuracy, as a fraction, is below this."""
    log: str | None = None
    """tensorboard: write what TensorBoard shows, too, into the folder of the run (extra: .[tensorboard])."""
    quiet: bool = False
    """Print nothing but errors."""
    report: bool = False
    """Write report.html, a page on the run, into its folder at the end, also where it diverges or is interrupted;
    needs pip install '.[report]'."""
    preset: str | None = None
    """notes: the course notes' recipe, 784-128-10 with SGD 0.1 halved after epochs 20 and 40 of 50."""

    def resolved(self, training_samples: int) -> Config:
        """The same with every "it depends" filled in.

        Args:
            training_samples: how many there are, validation samples included.

        Raises:
            ConfigError: naming everything that is wrong.
        """
        self.check()
        small = training_samples < SMALL_SET
        defaults: dict[str, Any] = {
            "batch_size": 32 if small else 128,
            "epochs": 50 if small else 20,
            "validation": min(5000, training_samples // 10),
        }
        if self.optimizer == "sgd":
            defaults |= {"learning_rate": 0.1, "momentum": 0.9}
        else:
            defaults |= {"learning_rate": 0.001}
        if self.initializer == "normal":
            defaults |= {"initializer_scale": Normal.scale}
        if self.schedule in ("step", "milestones"):
            defaults |= {"gamma": 0.5}
        if self.schedule == "step":
            defaults |= {"step_size": 10}
        if self.schedule in ("exponential", "inverse_time"):
            defaults |= {"decay_rate": 0.05}
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        config = dataclasses.replace(self, **missing)
        if config.early_stopping and not config.validation:
            raise ConfigError("early_stopping: expected only with validation samples, got validation 0")
        return config

    def check(self) -> None:
        """Raise a ConfigError that names every wrong value and its range; return if there is none."""
        problems = []
        for name, (valid, expected) in RANGES.items():
            value = getattr(self, name)
            if not valid(value):
                problems.append(f"{name}: expected {expected}, got {value!r}")
        for name in self._out_of_place():
            field, choices = BELONGS_TO[name]
            problems.append(
                f"{name}: expected only with {field} {' or '.join(choices)}, got {field} {getattr(self, field)}"
            )
        if self.nesterov and self.momentum == 0:
            problems.append("nesterov: expected only with a momentum above 0, got momentum 0")
        if self.schedule == "milestones" and not self.milestones:
            problems.append("milestones: expected at least one epoch with schedule milestones, got none")
        if problems:
            raise ConfigError("\n".join(problems))

    def without_leftovers(self) -> Config:
        """The same without what a preset set for a choice that another option has changed since."""
        preset = PRESETS.get(str(self.preset), Config())
        leftovers = [name for name in self._out_of_place() if getattr(self, name) == getattr(preset, name)]
        if self.optimizer != preset.optimizer and self.learning_rate == preset.learning_rate:
            leftovers.append("learning_rate")
        defaults = Config()
        return dataclasses.replace(self, **{name: getattr(defaults, name) for name in leftovers})

    def _out_of_place(self) -> list[str]:
        """Options that are set, but belong to another choice than the one made."""
        defaults = Config()
        return [
            name
            for name, (field, choices) in BELONGS_TO.items()
            if getattr(self, name) != getattr(defaults, name) and getattr(self, field) not in choices
        ]

    # -- The objects it describes -------------------------------------------------------------------------

    def make_initializer(self) -> str | Initializer:
        return Normal(given(self.initializer_scale)) if self.initializer == "normal" else self.initializer

    def make_optimizer(self) -> Optimizer:
        if self.optimizer == "adam":
            return Adam(given(self.learning_rate))
        return SGD(given(self.learning_rate), momentum=given(self.momentum), nesterov=self.nesterov)

    def make_penalty(self) -> Penalty:
        return Penalty(l2=self.l2, l1=self.l1)

    def make_schedule(self) -> Schedule:
        if self.schedule == "step":
            return StepDecay(given(self.gamma), given(self.step_size))
        if self.schedule == "exponential":
            return ExponentialDecay(given(self.decay_rate))
        if self.schedule == "inverse_time":
            return InverseTimeDecay(given(self.decay_rate))
        if self.schedule == "milestones":
            return Milestones(self.milestones, given(self.gamma))
        return Constant()

    # -- Files --------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From what `to_json` wrote.

        Raises:
            ConfigError: unknown names, or wrong values.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ConfigError(f"unknown option: {', '.join(unknown)}")
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        config = cls(**{**values, **lists})
        config.check()
        return config


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
