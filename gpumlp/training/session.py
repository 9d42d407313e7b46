"""A whole run, from a configuration to its metrics; and a look back at one."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..backends import Backend, choose_device, get_backend
from ..data import Dataset, load_dataset
from ..nn.network import MLP
from . import tensorboard
from .additions import ADDITIONS, additions, where_the_best_is
from .checkpoint import Checkpoint, CheckpointError
from .config import Config, ConfigError, given
from .divergence import DivergenceError
from .history import History
from .progress import ProgressDisplay
from .results import in_words, metrics_of, take_test
from .run import RunFolder, open_run
from .trainer import Trainer

# What may differ from the saved configuration when a run is resumed.
RESUME_OPTIONS = (
    "resume",
    "device",
    "execution",
    "data_dir",
    "diagnostics",
    "epochs",
    "min_accuracy",
    "quiet",
    "report",
    *ADDITIONS,
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder, its history, and its metrics (None when interrupted)."""

    folder: RunFolder
    history: History
    metrics: dict[str, Any] | None


def train(config: Config) -> Outcome:
    """Train as configured, or go on with the run in ``config.resume``, and save it.

    Raises:
        ConfigError, DataError, DeviceError, CheckpointError, DivergenceError, MissingExtraError, OSError: in words
            for the user.
    """
    if config.log is not None:
        tensorboard.check_installed()
    display = ProgressDisplay(quiet=config.quiet)
    if config.resume is not None:
        return _resume(config, display)
    backend = _backend(config, display)
    training, test = _data(config, display)
    config = dataclasses.replace(config.resolved(len(training)), dataset=_plain_name(config, training))
    model = MLP(
        [training.features, *config.hidden, training.classes],
        config.activation,
        initializer=config.make_initializer(),
        seed=config.seed,
        device=backend,
        dtype=config.dtype,
    )
    trainer = _trainer(model, training, config)
    folder = RunFolder.create(config, training.name)
    folder.config = dataclasses.replace(config, overwrite=False, out=str(folder.path))
    return _run(trainer, test, folder, display)


def load_run(path: str, device: str | None = None, data_dir: str | None = None) -> tuple[RunFolder, MLP, Dataset]:
    """A saved run, its network on a device of choice, and its test set.

    Args:
        path: the folder.
        device: that of the run's configuration if None; where that is not to be had, a DeviceError.
        data_dir: folder with MNIST's files, if not that of the configuration.
    """
    folder = open_run(path)
    checkpoint = folder.load()
    config = dataclasses.replace(checkpoint.config, data_dir=data_dir or checkpoint.config.data_dir)
    model = checkpoint.make_model(device or config.device)
    training, test, _ = load_dataset(config.dataset, config.data_dir)
    _check_data(checkpoint, training)
    metrics = None
    with suppress(CheckpointError):  # damaged: the checkpoint is as good as it was
        metrics = folder.read_metrics()
    expected = (metrics or {}).get("test_fingerprint")
    if expected not in (None, test.fingerprint()):
        raise CheckpointError(
            f"the run was tested on other data: expected a test set {expected}, but {test.name} has "
            f"{test.fingerprint()}; evaluate it on the data it was made with"
        )
    return folder, model, test


def _resume(config: Config, display: ProgressDisplay) -> Outcome:
    assert config.resume is not None
    folder = _open_to_go_on(config.resume)
    checkpoint = folder.load()
    saved = checkpoint.config
    names = [field.name for field in dataclasses.fields(Config)]
    changed = [name for name in names if getattr(config, name) != getattr(saved, name)]
    refused = [name for name in changed if name not in RESUME_OPTIONS]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: a run is resumed with its own configuration; only "
            f"{', '.join(RESUME_OPTIONS[1:])} can be changed"
        )
    if given(config.epochs) < len(checkpoint.history):
        raise ConfigError(f"epochs: the run has {len(checkpoint.history)} already, got {config.epochs}")
    backend = _backend(config, display)
    training, test = _data(config, display)
    _check_data(checkpoint, training)
    trainer = _trainer(checkpoint.make_model(backend), training, config)
    checkpoint.restore(trainer)
    folder.config = dataclasses.replace(config, resume=None, report=config.report or saved.report)
    display.say(f"going on with {folder.path} after epoch {trainer.epoch} of {config.epochs}")
    return _run(trainer, test, folder, display)


def resume_config(path: str) -> Config:
    """The configuration with which the run in a folder goes on."""
    return dataclasses.replace(_open_to_go_on(path).config, resume=path, quiet=False, report=False)


def _open_to_go_on(path: str) -> RunFolder:
    folder = open_run(path)
    if folder.is_best:
        run = folder.path.parent if folder.path.name else folder.path.resolve().parent
        raise ConfigError(
            f"resume: {path} is the network that the run in {run} keeps of its best epoch; go on with the run: "
            f"--resume {run}"
        )
    return folder


def _run(trainer: Trainer, test: Dataset, folder: RunFolder, display: ProgressDisplay) -> Outcome:
    held_out = 0 if trainer.validation_batches is None else trainer.validation_batches.samples
    display.say(
        f"data: {test.name}, {' x '.join(map(str, test.feature_shape))}, "
        f"{trainer.batches.samples:,} samples to train, {held_out:,} to validate, {len(test):,} to test"
    )
    model = trainer.model
    display.say(
        f"network: {'-'.join(map(str, model.sizes))}, {model.activation.name}, {model.dtype.name}, "
        f"{model.parameters.count:,} parameters"
    )
    try:
        # The folder first: what is shown is saved.
        history = trainer.run(given(folder.config.epochs), [folder, *additions(folder), display])
        if history.interrupted:
            if not folder.saved:  # so early that there is nothing to go on from
                with suppress(OSError):
                    folder.path.rmdir()
                raise KeyboardInterrupt
            return Outcome(folder, history, None)
        try:
            result = take_test(trainer, test)
        except KeyboardInterrupt:
            return Outcome(folder, history, None)
    except DivergenceError as error:
        folder.write_divergence(error.finding)
        error.folder = folder
        raise
    metrics = metrics_of(trainer, test, result, folder.config)
    folder.write_metrics(metrics)
    best = where_the_best_is(history, folder)
    if best is not None:
        display.say(best)
    for line in in_words(trainer, test, result):
        display.say(line)
    display.say(f"run saved in {folder.path}")
    return Outcome(folder, history, metrics)


def _backend(config: Config, display: ProgressDisplay) -> Backend:
    options = {
        "matmul_precision": config.matmul_precision,
        "execution": config.execution,
    }
    if config.device == "auto":
        backend, reason = choose_device(**options)
        display.say(f"device: {backend.name} ({backend.device_name}); {reason}")
    else:
        backend = get_backend(config.device, **options)
        display.say(f"device: {backend.name} ({backend.device_name})")
    return backend


def _data(config: Config, display: ProgressDisplay) -> tuple[Dataset, Dataset]:
    training, test, notice = load_dataset(config.dataset, config.data_dir)
    if notice:
        display.say(notice)
    return training, test


def _trainer(model: MLP, training: Dataset, config: Config) -> Trainer:
    try:
        return Trainer(
            model,
            training,
            optimizer=config.make_optimizer(),
            schedule=config.make_schedule(),
            penalty=config.make_penalty(),
            batch_size=_batch_size(config),
            validation=config.validation,
            seed=config.seed,
            diagnostics=config.diagnostics == "on",
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _batch_size(config: Config) -> int | Literal["full"]:
    size = given(config.batch_size)
    return size if isinstance(size, int) else "full"


def _plain_name(config: Config, training: Dataset) -> str:
    """What "auto" turned out to be, so that a resumed or evaluated run cannot get other data."""
    if config.dataset == "auto":
        return "digits" if training.name == "digits" else "mnist"
    if config.dataset.lower().endswith(".npz"):
        return str(Path(config.dataset).expanduser().resolve())  # so that the run can be used from any folder
    return config.dataset


def _check_data(checkpoint: Checkpoint, training: Dataset) -> None:
    found, expected = training.fingerprint(), checkpoint.dataset.get("train_fingerprint")
    if found != expected:
        raise CheckpointError(
            f"the run was trained on {checkpoint.dataset.get('name')} ({expected}), but the data found is "
            f"{training.name} ({found}); give the folder of its data with --data-dir"
        )
