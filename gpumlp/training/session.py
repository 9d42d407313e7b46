"""A whole run, from a configuration to its metrics, and resuming one."""

from __future__ import annotations

import dataclasses
import math
import platform
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import gpumlp

from ..backends import (
    EXECUTIONS,
    Backend,
    DeviceError,
    ExecutionError,
    Request,
    choose_device,
    get_backend,
    require_gpus,
)
from ..data import DataError, Dataset, load_dataset, load_files
from ..data.stream import DeviceBatches, StreamedBatches
from ..files import resolved, user_path
from ..nn.metrics import METRIC_WORDS, METRICS, Evaluation
from ..nn.model_file import BEST, class_names
from ..nn.network import MLP
from ..nn.schedules import learning_rate_at
from ..words import as_product, counted, listed
from . import tensorboard
from .callbacks import EarlyStopping, TestCurve
from .checkpoint import Checkpoint, CheckpointError, execution_record
from .config import Config, ConfigError, as_paths, given, options_marked
from .divergence import DivergenceError, smaller_steps
from .group import ALONE, Group
from .history import MONITORS, Finding, History, monitor_words, starting_seconds, throughput
from .progress import Display, Progress, dropout_words, metric, number
from .run import TEST_CURVE, Run, RunFolder, open_run
from .trainer import Callback, Trainer, Training, drive


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder, its history, and its metrics (None when interrupted)."""

    folder: RunFolder
    history: History
    metrics: dict[str, Any] | None


class Shared:
    """What the runs of a process share: the data, once they are loaded, and a backend for each of its options.

    Args:
        data: training and test set of all runs; None: the first one loads them.

    Attributes:
        gpu: the number of the GPU that device cuda means.
        device_note: added to the line about the device, unless it is auto.
    """

    def __init__(self, data: tuple[Dataset, Dataset] | None = None) -> None:
        self.gpu, self.device_note = 0, ""
        self._data = data
        self._backends: dict[tuple[Any, ...], tuple[Backend, str]] = {}

    def backend(self, config: Config, execution: str) -> tuple[Backend, str]:
        """The backend of a run, and a line about its device."""
        options: dict[str, Any] = {
            "matmul_precision": config.matmul_precision,
            "execution": execution,
            "multiprocessors": config.multiprocessors,
        }
        key = (config.device, *options.values())
        if key not in self._backends:
            if config.device == "auto":
                backend, reason = choose_device(**options)
                reason = f"; {reason}"
            else:
                name = f"cuda:{self.gpu}" if config.device == "cuda" else config.device
                backend, reason = get_backend(name, **options), self.device_note
            self._backends[key] = backend, f"device: {backend.name} ({backend.device_name}){reason}"
        return self._backends[key]

    def data(
        self,
        config: Config,
        display: Display,
        run: Run | None = None,
        check: Callable[[Dataset], object] | None = None,
    ) -> tuple[Dataset, Dataset]:
        """Training and test set, those of a run if there is one; loaded once.

        `check` is called with a training set from files before the test set is compared with it.
        """
        if self._data is not None:
            return self._data
        with _warnings_shown(display):
            training, test, notice = _load(config, run, check)
            if notice is not None:
                display.say(notice)
        self._data = training, test
        return self._data


@contextmanager
def _warnings_shown(display: Display) -> Iterator[None]:
    """Show warnings for the user as lines, at the end of the block."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        display.say(f"warning: {warning.message}")


@dataclass
class PreparedRun:
    """A run that is ready to train, in its locked folder. It has to be trained, which releases the lock.

    Attributes:
        outcome: how it ended; None before, and after an error.
    """

    trainer: Trainer
    test: Dataset
    folder: RunFolder
    display: Progress
    outcome: Outcome | None = None

    def train(self) -> Outcome:
        """Train, test and save."""
        backend = self.trainer.model.backend
        with backend.activate():
            drive(self.steps(), backend)
        return given(self.outcome)

    def steps(self) -> Training:
        """Train, test and save, but leave the steps to the caller, as `Trainer.training` does."""
        with self.folder:
            self.outcome = yield from _run(self.trainer, self.test, self.folder, self.display)

    def abandon(self) -> None:
        """Give up the folder, in place of training."""
        self.folder.abandon()


def train(config: Config) -> Outcome:
    """Train as configured, or resume the run in ``config.resume``, and save it.

    Raises:
        ConfigError, DataError, DeviceError, CheckpointError, DivergenceError, MissingExtraError, OSError: with
            messages for the user.
    """
    return prepare(config, Shared(), Progress(quiet=config.quiet)).train()


def prepare_together(config: Config, group: Group) -> PreparedRun:
    """`prepare` in all processes of a group. The first one alone writes files, and has the metrics in the end.

    Raises:
        ConfigError, DataError, DeviceError, CheckpointError, MissingExtraError, OSError: with messages for the
            user.
        GroupError: there was an error in another process, or they differ in their data, versions or options.
    """
    shared, display = Shared(), Progress(quiet=config.quiet or group.rank > 0)
    if group.size > 1:
        config = _agreed(config, shared, display, group)
    return group.together(lambda: prepare(config, shared, display, group), PreparedRun.abandon)


def _agreed(config: Config, shared: Shared, display: Progress, group: Group) -> Config:
    """The configuration of a run by several processes, which all have the same one, and the same data.

    Raises:
        GroupError: they have not.
        ConfigError, DataError, DeviceError, CheckpointError, OSError: with messages for the user.
    """
    options = {
        f"option {name}": value
        for name, value in dataclasses.asdict(config).items()
        if name not in (*options_marked("per_call"), "data_dir") or name == "resume"
    }
    group.agree({"version": f"{gpumlp.__version__}, NumPy {np.__version__}", **options})
    config = dataclasses.replace(config, device=_shared_device(config.device, shared, group))

    def load() -> dict[str, str]:
        run = None if config.resume is None else open_run(config.resume)
        training, test = shared.data(config, display, run)
        return {"training data": training.fingerprint(), "test data": test.fingerprint()}

    group.together(lambda: {} if group.rank else load())  # one process downloads what is missing
    group.agree(group.together(load))
    return config


def _shared_device(device: str, shared: Shared, group: Group) -> str:
    """The device of a run by several processes: cuda, where each has a GPU of its own, for auto; otherwise cpu.

    Raises:
        ConfigError, DeviceError, GroupError: with messages for the user.
    """

    def check() -> None:
        if ":" in device and group.local_size > 1:
            raise ConfigError(
                f"device: expected cuda, by which each of the {group.local_size} processes of this machine has a "
                f"GPU of its own, got {device}"
            )
        require_gpus(group.local_size)

    shared.gpu = group.local_rank
    if device == "cpu":
        return device
    if device != "auto":
        group.together(check)
        return device
    cause = None
    try:
        check()
    except DeviceError as error:
        cause = error.cause
    if not group.any(cause is not None):
        return "cuda"
    shared.device_note = f"; no usable GPU: {cause or 'not in all processes'}"
    return "cpu"


def prepare(
    config: Config, shared: Shared, display: Progress, group: Group = ALONE, *, together: bool = False
) -> PreparedRun:
    """All of `train` before the first epoch. In a group, the first process alone makes or locks the folder.

    `together` says that the run is trained with others on one device, by `run_together`.

    Raises:
        ConfigError, DataError, DeviceError, CheckpointError, MissingExtraError, OSError: with messages for the
            user.
    """
    if config.log is not None:
        tensorboard.check_installed()
    if config.resume is not None:
        return _resumed(config, shared, display, group)
    backend, device = shared.backend(config, config.execution)
    display.say(device)
    training, test = shared.data(config, display)
    _check_test(config, test)
    config = dataclasses.replace(config, shards=config.shards or group.size)
    config = config.resolved(len(training), training.task)
    config = dataclasses.replace(config, **plain_names(config, training))
    model = MLP(
        [training.features, *config.hidden, training.outputs],
        config.activation,
        initializer=config.make_initializer(),
        seed=config.seed,
        device=backend,
        dtype=config.dtype,
        loss=config.make_loss(training.task, training.outputs),
        dropout=config.dropout,
        input_dropout=config.input_dropout,
    )
    trainer = _trainer(model, training, config, display, group)
    # An ExecutionError, if there is one, before the folder is made.
    _ = trainer.networks_at_once() if together else trainer.execution
    folder = RunFolder(Path(), config) if group.rank else RunFolder.create(config, training.name)
    folder.config = dataclasses.replace(config, overwrite=False, parallel=None, out=str(folder.path))
    return PreparedRun(trainer, test, folder, display)


def load_run(path: str, device: str | None = None, data_dir: str | None = None) -> tuple[Run, MLP, Dataset]:
    """A saved run, its network on a device of choice, and its test set; see `load_runs`."""
    (run,), (model,), test = load_runs([path], device, data_dir)
    return run, model, test


def load_runs(
    paths: Sequence[str], device: str | None = None, data_dir: str | None = None
) -> tuple[list[Run], list[MLP], Dataset]:
    """Saved runs, their networks on a device of choice, and the test set that they share.

    The network is that of the best epoch if the run keeps it (``run.network_epoch``), otherwise of the last one.

    Args:
        paths: the folders.
        device: that of each run's configuration if None.
        data_dir: folder with MNIST's files, if not that of the configuration.

    Raises:
        CheckpointError: there is no run, it is damaged, or it was made with other data, or with another test set
            than the first one.
        DeviceError, DataError: the device or the data is not available.
    """
    runs, models, loaded = [], [], {}
    for path in paths:
        run = open_run(path)
        config = dataclasses.replace(run.config, data_dir=data_dir or run.config.data_dir)
        models.append(run.checkpoint.result.make_model(device or config.device))
        task = run.checkpoint.dataset["task"]
        source = config.dataset, config.test, config.label_column, config.stream, config.data_dir, task
        if source not in loaded:  # runs on the same data share it
            loaded[source] = _load(config, run)
        training, test, _ = loaded[source]
        _check_data(run, training, test)
        first = next(iter(loaded.values()))[1]
        if test.fingerprint() != first.fingerprint():
            raise CheckpointError(
                f"{path}: expected a run with the test set of {paths[0]}, {first.fingerprint()}, got "
                f"{test.fingerprint()}; give runs on the same data"
            )
        runs.append(run)
    return runs, models, first


def load_training(run: Run, data_dir: str | None = None) -> Dataset:
    """The training set of a saved run, from the folder `data_dir` if not from that of its configuration.

    Raises:
        DataError: it is not available.
    """
    config = dataclasses.replace(run.config, data_dir=data_dir or run.config.data_dir)
    return _load(config, run)[0]


# -- Resuming ------------------------------------------------------------------------------------------------


def resume_config(path: str) -> Config:
    """The configuration with which the run in a folder is resumed.

    Raises:
        CheckpointError: there is no run in it, or its checkpoint is damaged.
        ConfigError: it is the best network that another run keeps.
    """
    return dataclasses.replace(_open_to_resume(path).config, resume=path, quiet=False, report=False)


def _open_to_resume(path: str) -> Run:
    run = open_run(path)
    if run.is_best:
        parent = run.path.parent if run.path.name else resolved(run.path).parent
        raise ConfigError(
            f"resume: {path} is the network that the run in {parent} keeps of its best epoch; resume that run: "
            f"--resume {parent}"
        )
    return run


def _resumed(config: Config, shared: Shared, display: Progress, group: Group) -> PreparedRun:
    path = given(config.resume)
    run = _open_to_resume(path)
    folder = RunFolder(run.path, run.config)
    if not group.rank:
        folder.locked()
    try:
        run = _open_to_resume(path)  # again: until now, another process may have trained it
        checkpoint = folder.resumed = run.checkpoint
        saved, config = run.config, _changed(run.config, config, checkpoint.epochs)
        training, test = shared.data(config, display, run)
        _check_data(run, training, test)
        _check_test(config, test)
        config.check_task(training.task)
        _check_span(config, saved, len(training))
        trainer = _trainer_as_before(config, checkpoint, training, shared, display, group)
        checkpoint.restore(trainer)
        report = config.report or saved.report
        folder.config = dataclasses.replace(config, resume=None, parallel=None, report=report)
        display.say(f"resuming {run.path} after epoch {trainer.epoch} of {config.epochs}")
        for line in _after_span(config, trainer):
            display.say(line)
        return PreparedRun(trainer, test, folder, display)
    except BaseException:
        folder.release()
        raise


def _changed(saved: Config, config: Config, epochs: int) -> Config:
    """The configuration with which a saved run goes on after so many epochs.

    Raises:
        ConfigError: it changes what cannot be changed.
    """
    names = [field.name for field in dataclasses.fields(Config)]
    allowed = options_marked("on_resume")
    refused = [name for name in names if getattr(config, name) != getattr(saved, name) and name not in allowed]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: a run is resumed with its own configuration; only "
            f"{', '.join(name for name in allowed if name != 'resume')} can be changed"
        )
    if given(config.epochs) < epochs:
        raise ConfigError(f"epochs: the run has {epochs} already, got {config.epochs}")
    if config.execution != "persistent":  # perhaps no longer
        if config.multiprocessors != saved.multiprocessors:
            raise ConfigError(
                f"multiprocessors: expected only with execution persistent, got execution {config.execution}"
            )
        config = dataclasses.replace(config, multiprocessors=None)
    if not config.early_stopping:  # perhaps no longer
        if config.monitor != saved.monitor:
            raise ConfigError("monitor: expected only with early_stopping, got early_stopping 0")
        config = dataclasses.replace(config, monitor=Config.monitor)
    return config


def _check_span(config: Config, saved: Config, training_samples: int) -> None:
    """Refuse to end a run within the schedule that spans its steps, if that was not planned before.

    Raises:
        ConfigError: there are fewer epochs than planned.
    """
    if config.schedule_steps is None or given(config.epochs) >= given(saved.epochs):
        return
    span = config.warmup + config.schedule_steps
    if config.planned_steps(training_samples) < span:
        epochs = math.ceil(span * given(config.epochs) / config.planned_steps(training_samples))
        raise ConfigError(
            f"epochs: expected {epochs:,} or more, over which the learning rate falls with schedule "
            f"{config.schedule}, got {config.epochs:,}"
        )


def _after_span(config: Config, trainer: Trainer) -> list[str]:
    """A line if the run is planned to go on after the end of the schedule that spans its steps."""
    if config.schedule_steps is None:
        return []
    span, steps = config.warmup + config.schedule_steps, len(trainer.batches.slices)
    if given(config.epochs) * steps <= span:
        return []
    rate = learning_rate_at(trainer.schedule, trainer.optimizer.learning_rate, given(config.epochs) - 1, span)
    still = "the weights as they are" if config.ema is None else "only the average of the weights changes"
    return [
        f"schedule {config.schedule} ends after step {span:,}, in epoch {math.ceil(span / steps):,}: from then on "
        f"the learning rate stays at its last value, {rate:.4g}{f', and {still}' * (rate == 0)}"
    ]


def _trainer_as_before(
    config: Config, checkpoint: Checkpoint, training: Dataset, shared: Shared, display: Progress, group: Group
) -> Trainer:
    """A trainer that runs its steps as the run did before, if it can; where it cannot, a line says so.

    A way that is asked for by name now must be possible. The one that the run took before is only preferred: where
    it is not possible (other libraries, an old run whose options allowed a fallback), the next one is taken. On
    another kind of device, that device's own rule decides.

    Raises:
        ExecutionError: the way that is asked for is not possible.
    """
    before, saved = checkpoint.execution, checkpoint.config.execution
    asked, was = config.execution != saved, before.get("name", saved)
    if config.multiprocessors == checkpoint.config.multiprocessors:
        config = dataclasses.replace(config, multiprocessors=before.get("multiprocessors"))
    rest = checkpoint, training, shared, display, group
    trainer, device = _trainer_for(config, config.execution if asked else "auto", *rest)
    name = trainer.model.backend.name
    device_before = str(before.get("device", name))
    moved = device_before.partition(":")[0] != name.partition(":")[0]
    reasons: list[str] = []
    if not (asked or moved or name == "cpu" or trainer.execution.name == was):
        for way in _from(was):
            try:
                trainer, device = _trainer_for(config, way, *rest)
                break
            except ExecutionError as error:
                reasons.append(error.cause)
    now = trainer.execution.name
    display.say(device)
    if moved:
        display.say(f"execution: {now} on {name} instead of {was} on {device_before}: results differ by rounding")
    elif name != "cpu" and now != was and was != "auto":
        bits = "the results are the same" if {now, was} == {"graphs", "eager"} else "results differ by rounding"
        why = f" ({'; '.join(reasons)})" if reasons else ""
        display.say(f"execution: {now} instead of {was}{why}: {bits}")
    elif now == was == "persistent" and before.get("multiprocessors") is None:  # by version 0.2 or 0.1
        display.say("execution: persistent, by a newer kernel than before: results differ by rounding from now on")
    threads, had = trainer.execution.threads, before.get("threads")
    if None not in (threads, had) and threads != had:
        display.say(f"BLAS threads: {threads} instead of {had}: results may differ by rounding")
    count, had = trainer.execution.multiprocessors, before.get("multiprocessors")
    if None not in (count, had) and count != had:
        display.say(f"multiprocessors: {count} instead of {had}: results differ by rounding")
    return trainer


def _from(way: str) -> tuple[str, ...]:
    """A way of running steps, and those to try after it; none for ``"auto"``."""
    ways = EXECUTIONS[1:]
    return ways[ways.index(way) :] if way in ways else ()


def _trainer_for(
    config: Config,
    way: str,
    checkpoint: Checkpoint,
    training: Dataset,
    shared: Shared,
    display: Progress,
    group: Group,
) -> tuple[Trainer, str]:
    """A trainer with the saved network whose steps run in one way, and a line about its device.

    Raises:
        ExecutionError: the way is not possible.
    """
    backend, device = shared.backend(config, way)
    trainer = _trainer(checkpoint.make_model(backend), training, config, display, group)
    _ = trainer.execution  # raises the error
    return trainer, device


# -- One run -------------------------------------------------------------------------------------------------


def _run(
    trainer: Trainer, test: Dataset, folder: RunFolder, display: Progress
) -> Generator[Request, Any, Outcome]:
    if trainer.group.rank:  # the first process has the files, the display and the test
        yield from trainer.training(given(folder.config.epochs))
        return Outcome(folder, trainer.history, None)
    for line in _about(trainer, test):
        display.say(line)
    history, first = trainer.history, trainer.epoch
    if folder.config.early_stopping and folder.config.monitor == "validation_loss":
        history.keeps_best()
    try:
        try:
            # The folder first: what it saves at once is shown afterwards. All else is shown, and saved soon.
            yield from trainer.training(
                given(folder.config.epochs), [folder, *run_callbacks(folder, test), display]
            )
            if history.interrupted and not folder.saved:  # so early that there is nothing to resume
                raise KeyboardInterrupt
        except BaseException:
            if not folder.saved:
                folder.abandon()
            raise
        if history.interrupted:
            return Outcome(folder, history, None)
        try:
            network = folder.result()
            result = _test(trainer, network, test)
        except KeyboardInterrupt:
            return Outcome(folder, history, None)
    except DivergenceError as error:
        folder.write_divergence(error.finding)
        error.folder = folder.path
        raise
    metrics = _metrics(trainer, network.epochs, test, result, folder.config, first)
    folder.write_metrics(metrics)
    for line in _results(trainer, network.epochs, test, result, folder, first):
        display.say(line)
    return Outcome(folder, history, metrics)


def _about(trainer: Trainer, test: Dataset) -> list[str]:
    """The lines at the start of a run: data, processes, memory, network and targets."""
    shape = as_product(test.feature_shape)
    if len(test.feature_shape) == 1:
        shape += " feature" if test.features == 1 else " features"
    held_out = 0 if trainer.validation_batches is None else trainer.validation_batches.samples
    trained, tested = (" weighted" * (data.weights is not None) for data in (trainer.batches, test))
    lines = [
        f"data: {trainer.train_set.name}, {shape}, {trainer.batches.samples:,}{trained} samples to train, "
        f"{held_out:,} to validate, {len(test):,}{tested} to test"
    ]
    if trainer.group.size > 1:
        each = " with a GPU each" * (trainer.model.backend.name != "cpu")
        lines.append(
            f"parallel: {trainer.group.size} processes{each} share the {trainer.shards} shards of each batch"
        )
    elif trainer.group is not ALONE:
        lines.append("parallel: one process; mpiexec -n N starts more")
    if trainer.train_set.streamed:
        lines.append(_memory_line(trainer))
    model = trainer.model
    lines.append(
        f"network: {'-'.join(map(str, model.sizes))}, {model.activation_names}, {dropout_words(model)}"
        f"{model.dtype.name}, {model.parameters.count:,} parameters"
    )
    if model.loss.task == "numbers":
        lines.append(f"targets: {counted(model.sizes[-1], 'number')} a sample")
    elif model.class_names is not None or model.loss.task == "labels":
        lines.append(f"{model.loss.task}: {listed(class_names(model))}")
    return lines


def _memory_line(trainer: Trainer) -> str:
    """How much memory the data take at most while they are streamed."""
    batches, processes = trainer.batches, trainer.group.size
    assert trainer.blocks is not None
    blocks = trainer.blocks.of_shard(trainer.shards)
    held = f"{min(blocks.window, -(-batches.samples // blocks.rows)):,} blocks of {blocks.rows:,} samples"
    if isinstance(batches, DeviceBatches):
        (window, labels), (windows, others) = batches.memory(), batches.device_memory()
        words = (
            f"in memory is at most one window of {held}, {_megabytes(window)}, and {_megabytes(labels)} of "
            f"labels; on {trainer.model.backend.name} are two, {_megabytes(windows + trainer.copied_bytes)}, and "
            f"{_megabytes(others)} of labels and results"
        )
    else:
        assert isinstance(batches, StreamedBatches)
        windows, others = batches.memory(trainer.blocks, trainer.shards, processes)
        where, own = " of each process" * (processes > 1), trainer.shards // processes
        each = f" for each of {own:,} shards" * (own > 1)
        words = (
            f"in memory{where} are at most two windows of {held}{each}, {_megabytes(windows)}, and "
            f"{_megabytes(others)} of labels and results"
        )
    return f"streaming: {words}; the samples have {_megabytes(trainer.train_set.images.nbytes)}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def run_callbacks(folder: RunFolder, test: Dataset) -> list[Callback]:
    """The callbacks that the configuration asks for. They depend on the history, so that a run resumes exactly."""
    callbacks: list[Callback] = []
    patience = folder.config.early_stopping
    if patience:  # the run is resumed from its last epoch, and its folder keeps the best network beside it
        callbacks.append(EarlyStopping(folder.config.monitor, patience=patience, restore_best=False))
    if folder.config.log == "tensorboard":
        callbacks.append(tensorboard.TensorBoard(folder.path))
    if folder.config.test_curve:
        curve = TestCurve(folder.path / TEST_CURVE, test)
        folder.before_saving.append(curve.write)
        callbacks.append(curve)
    return callbacks


def _test(trainer: Trainer, network: Checkpoint, test: Dataset) -> Evaluation:
    """Loss and metrics of the resulting network on the test set; the trainer's network becomes it.

    Waits for the device.

    Raises:
        DivergenceError: the loss is not finite, although every training loss was.
    """
    if network.epochs != trainer.epoch:
        trainer.model.load_state_dict(network.make_model("cpu").state_dict())
        trainer.count_predictions()
    result = trainer.model.evaluate(test)
    if not math.isfinite(result.loss):
        advice = smaller_steps(trainer.optimizer, trainer.optimizer.learning_rate)
        message = (
            f"training diverged: the test loss after epoch {network.epochs} is {result.loss}. "
            f"Check that the test samples are scaled as the training samples are. {advice}"
        )
        raise DivergenceError(Finding("diverged", message), trainer.history)
    return result


def _metrics(
    trainer: Trainer, epoch: int, test: Dataset, result: Evaluation, config: Config, first: int
) -> dict[str, Any]:
    """What ``metrics.json`` holds.

    Args:
        trainer: at the end of training.
        epoch: the one whose network was tested.
        test: the test set.
        result: on the test set.
        config: of the run.
        first: number of epochs that were finished when training began.
    """
    history, backend, execution = trainer.history, trainer.model.backend, execution_record(trainer)
    task = trainer.model.loss.task
    names, record = (*METRICS[task], "loss"), history.records[epoch - 1]
    return {
        "dataset": test.name,
        "task": task,
        "test_fingerprint": test.fingerprint(),
        **{f"test_{name}": getattr(result, name) for name in names},
        **{f"validation_{name}": getattr(record, f"validation_{name}") for name in names},
        "network_epoch": epoch,
        "epochs": len(history),
        "seconds": history.seconds,
        "samples_per_second": history.samples_per_second,
        "starting_seconds": starting_seconds(history.records[first:]),
        "device": backend.name,
        "device_name": backend.device_name,
        "execution": execution["name"],
        "execution_reason": execution["reason"],
        "threads": execution["threads"],
        "multiprocessors": execution["multiprocessors"],
        "processes": trainer.group.size,
        "dtype": config.dtype,
        "seed": config.seed,
        "version": gpumlp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "trend": history.trend(),
        "findings": [vars(finding) for finding in history.findings()],
    }


def _results(
    trainer: Trainer, epoch: int, test: Dataset, result: Evaluation, folder: RunFolder, first: int
) -> list[str]:
    """The lines at the end of a run: results, throughput, what was found to be wrong, and where everything is."""
    history, backend = trainer.history, trainer.model.backend
    return [
        *_best_network(history, epoch, folder),
        f"execution: {trainer.execution}",
        describe_test(test, result),
        f"throughput: {throughput_line(history, first)} on {backend.name} ({backend.device_name})",
        *(f"finding: {finding.message}" for finding in history.findings()),
        f"run saved in {folder.path}",
    ]


def throughput_line(history: History, first: int) -> str:
    """Samples per second without the start, which the first epoch holds (compilation, on a GPU)."""
    records = history.records[first:]
    starting = starting_seconds(records)
    if starting is None:
        return f"{throughput(records or history.records):,.0f} samples/s{', starting included' * bool(records)}"
    words = f", after {starting:.2g} s of starting" if starting >= 0.1 else ""
    return f"{throughput(records[1:]):,.0f} samples/s{words}"


def describe_test(test: Dataset, result: Evaluation) -> str:
    """A test result in a line."""
    main, *others = (name for name in result.metrics() if name != "loss")
    text = f"{test.name} test {METRIC_WORDS[main]}: {metric(main, getattr(result, main))}"
    if result.correct is not None:
        whole = " with every label correct" if others else ""
        text += f" ({result.correct:,} of {result.samples:,}{whole})"
    return ", ".join(
        [
            text,
            *(f"{METRIC_WORDS[name]} {metric(name, getattr(result, name))}" for name in others),
            f"loss {number(result.loss)}",
        ]
    )


def _best_network(history: History, epoch: int, folder: RunFolder) -> list[str]:
    """A line on the best epoch and on the epoch whose network was tested; none without early stopping."""
    patience, monitor = folder.config.early_stopping, folder.config.monitor
    best = history.best(monitor) if patience else None
    if best is None:
        return []
    order = "highest" if MONITORS[monitor] else "lowest"
    text = f"the {monitor_words(monitor)} was {order} after epoch {best.epoch} ({metric(monitor, best.value)})"
    if best.since >= patience:
        text = "stopped early: " + text
    if epoch != best.epoch:  # early stopping began after it
        return [f"{text}; its network was not kept, and the results are those of the last one"]
    return [f"{text}; the network of that epoch is in {folder.path / BEST}, and the results are its own"]


# -- Parts of it ---------------------------------------------------------------------------------------------


def _trainer(model: MLP, training: Dataset, config: Config, display: Progress, group: Group) -> Trainer:
    batch_size = given(config.batch_size)
    full: Literal["full"] = "full"
    try:
        with _warnings_shown(display):
            return Trainer(
                model,
                training,
                optimizer=config.make_optimizer(),
                schedule=config.make_schedule(),
                penalty=config.make_penalty(),
                batch_size=batch_size if isinstance(batch_size, int) else full,
                validation=config.validation,
                class_weight=config.make_class_weight(),
                clip_norm=config.clip_norm,
                max_norm=config.max_norm,
                ema=config.ema,
                augment=config.make_augment(),
                preprocess=config.make_preprocessing(),
                order=config.make_order(),
                seed=config.seed,
                diagnostics=config.diagnostics == "on",
                shards=config.shards or 1,  # runs of earlier versions have none
                group=group,
            )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _load(
    config: Config, run: Run | None, check: Callable[[Dataset], object] | None = None
) -> tuple[Dataset, Dataset, str | None]:
    """Training set, test set and a notice, see `load_dataset` and `load_files`; those of a run if there is one."""
    dataset, task = config.dataset, config.task if run is None else run.checkpoint.dataset["task"]
    if isinstance(dataset, str) and config.label_column is None:
        return load_dataset(dataset, config.data_dir, task=task)
    if config.data_dir is not None:
        raise ConfigError("data_dir: expected only with data sets that have a name, got --dataset IMAGES LABELS")
    options: dict[str, Any] = {"label_column": config.label_column, "task": task, "stream": config.stream}
    if run is not None:
        check = partial(_check_training_set, run)
    if check is not None:  # before the test set, which is described by the training set
        options["check"] = check
    return load_files(as_paths(dataset), as_paths(config.test) or None, **options)


def plain_names(config: Config, training: Dataset) -> dict[str, Any]:
    """What "auto" turned out to be, so that a resumed or evaluated run cannot get other data; whole paths.

    The result holds `dataset`, and `test` of a data set of two files.
    """
    if config.dataset == "auto":
        return {"dataset": "digits" if training.name == "digits" else "mnist"}
    if not config.data_files:
        return {}
    paths = tuple(str(resolved(user_path(path))) for path in config.data_files)  # the same in any folder
    if isinstance(config.dataset, str):
        return {"dataset": paths[0], "test": paths[1] if config.test else None}
    return {"dataset": paths[:2], "test": paths[2:] or None}


def _check_test(config: Config, test: Dataset) -> None:
    """Raise DataError if the test samples in memory cannot be preprocessed: before training, not after it."""
    preprocessing = config.make_preprocessing()
    if preprocessing is not None and test.limits is not None:
        try:
            preprocessing.check_lowest(test.limits[0])
        except ValueError as error:
            raise DataError(f"{test.name}: test samples: {error}") from error


def _check_training_set(run: Run, training: Dataset) -> None:
    """Raise CheckpointError if a run was trained on other data."""
    checkpoint = run.checkpoint
    found, expected = training.fingerprint(), checkpoint.dataset.get("train_fingerprint")
    if found != expected:
        cure = "give the folder of its data with --data-dir"
        if checkpoint.config.data_files:
            cure = f"put back what {listed(as_paths(checkpoint.config.dataset))} was then"
        raise CheckpointError(
            f"{checkpoint.path.parent}: the run was trained on {checkpoint.dataset['name']} ({expected}), but the "
            f"data found is {training.name} ({found}); {cure}"
        )


def _check_data(run: Run, training: Dataset, test: Dataset) -> None:
    """Raise CheckpointError if a run was trained or tested on other data."""
    _check_training_set(run, training)
    expected = (Run(str(run.path), lenient=True).metrics or {}).get("test_fingerprint")
    if expected not in (None, test.fingerprint()):
        raise CheckpointError(
            f"{run.path}: the run was tested on other data: expected a test set {expected}, but {test.name} has "
            f"{test.fingerprint()}; use the data it was made with"
        )
