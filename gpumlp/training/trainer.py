"""The training loop: `Trainer`, `fit`, and the callbacks they call."""

from __future__ import annotations

import copy
import inspect
import math
import time
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, Literal, TypeAlias

import numpy as np

from ..backends import Array, Backend, Copies, Copy, Execution, HostArray, Request, StepRun, Totals
from ..data import Dataset, Distortion
from ..data.blocks import Blocks, sorted_note
from ..data.dataset import as_dataset
from ..nn.hyperparameters import (
    flag,
    instance,
    number,
    require_arguments,
    whole,
)
from ..nn.metrics import HIGHER_IS_BETTER, Evaluation, metric_totals
from ..nn.network import MLP, Workspace, evaluation_of
from ..nn.optimizers import SGD, Optimizer, Penalty, checked_optimizer
from ..nn.preprocessing import Preprocessing
from ..nn.samples import learned_names
from ..nn.schedules import Constant, Schedule, changes_by_step, checked_schedule, learning_rate_at
from ..words import shown
from .batches import (
    ORDER_STREAM,
    BlockOrders,
    ClassWeight,
    EpochOrders,
    Order,
    Validation,
    as_validation,
    checked_order,
    make_batches,
)
from .divergence import DivergenceError, explain_divergence
from .group import ALONE, Group, on_host
from .history import EpochRecord, History, LayerStatistics, Setting, per_second
from .step import EvaluationStep, TrainingStep

_PROGRESS_PARTS = 20  # reports of progress in an epoch, at most, if there are callbacks


class Callback:
    """What else happens while a network trains: the trainer calls these methods; override what is needed.

    A callback may read the trainer and ask it to `stop`.

    >>> from gpumlp import MLP, SGD, Callback, fit, load_digits
    >>> class StopAt(Callback):
    ...     def __init__(self, accuracy):
    ...         self.accuracy = accuracy
    ...     def on_epoch_end(self, trainer):
    ...         if trainer.history.records[-1].train_accuracy > self.accuracy:
    ...             trainer.stop()
    >>> train, test = load_digits()
    >>> model = MLP([64, 32, 10], device="cpu")
    >>> history = fit(model, train, optimizer=SGD(0.5), epochs=100, batch_size=32, callbacks=[StopAt(0.95)])
    >>> len(history) < 100
    True
    """

    def on_train_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        """So many samples of the epoch are given to the device. See ``Trainer.progress_seconds``."""

    def on_measure(self, trainer: Trainer, before: Array) -> Array | None:
        """After an epoch's steps, before its record is made: measure something on the device.

        Args:
            trainer: the epoch that has ended is ``trainer.epoch + 1``.
            before: ``(size,)``, ``trainer.trained``'s parameters at the start of the epoch; read only.

        Returns:
            float64 values on the device, of any shape, or None. They are read together with the validation loss,
            so that the trainer does not wait once more, and given to `on_measured`.
        """
        return None

    def on_measured(self, trainer: Trainer, values: list[float]) -> tuple[LayerStatistics, ...] | None:
        """The values of `on_measure`, flat; returns what the epoch's record keeps as ``layers``, if anything."""
        return None

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After an epoch; ``trainer.history.records[-1]`` is its record."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last epoch, also when interrupted or diverged."""


CallbackLike: TypeAlias = Callback | Callable[["Trainer"], object]
# Yields what the backend has to do, and is sent its results, see `Backend.perform`.
Training: TypeAlias = Generator[Request, Any, None]


class _EpochFunction(Callback):
    def __init__(self, function: Callable[[Trainer], object]) -> None:
        self.function = function

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.function(trainer)


def as_callbacks(callbacks: CallbackLike | Iterable[CallbackLike]) -> list[Callback]:
    """Each as a `Callback`; a single one needs no list. A plain function is called after every epoch.

    Raises:
        TypeError: something else is given.
    """
    if isinstance(callbacks, Callback) or (callable(callbacks) and not isinstance(callbacks, type)):
        callbacks = [callbacks]
    if isinstance(callbacks, (type, str)) or not isinstance(callbacks, Iterable):
        raise TypeError(
            f"callbacks is expected to be a list of functions or Callback objects, got {shown(callbacks)}"
        )
    result: list[Callback] = []
    for callback in callbacks:
        if isinstance(callback, Callback):
            _check_hooks(callback)
            result.append(callback)
        elif callable(callback) and not isinstance(callback, type):
            require_arguments("a callback", callback, "the trainer")
            result.append(_EpochFunction(callback))
        else:
            raise TypeError(f"a callback is expected to be a function or a Callback, got {shown(callback)}")
    return result


class Trainer:
    """A network, its data and everything that training remembers between epochs.

    `fit` is the short way; a trainer can also be saved, restored and run for more epochs.

    Args:
        model: trained in place.
        train: the training samples.
        optimizer: with the initial learning rate.
        schedule: of the learning rate, see `gpumlp.nn.schedules`; None keeps it constant.
        penalty: on the weights.
        batch_size: samples per step, or ``"full"``; more than there are means all of them.
        validation, class_weight, clip_norm, max_norm, ema: see `fit`.
        rows: which of the training samples to use, an array of row numbers, without a copy of the samples; None
            for all.
        augment, preprocess, order, seed, shards, group: see `fit`.
        diagnostics: measure each layer after every epoch, and count the predictions of each class at the end,
            for ``history.findings()``; where an epoch has fewer than 5,000 samples (on a GPU 50,000), layers are
            measured after the first and then every second to fifth. The results are the same.
        pixels: whether uint8 images are pixels, divided by 255, or numbers, used as they are; None: as
            ``model.inputs`` says, and for an untrained network, pixels.

    Attributes:
        history: a record for each finished epoch.
        blocks: of the order; None for a full shuffle.
        shards: parts that a batch is cut into.
        group: the processes that train the network.
        trained: the network that the steps change: `model` itself, or, with `ema`, another one, of whose
            parameters `model` has the moving average.
        progress_seconds: between two reports of progress to callbacks, by the time of the epoch before; there are
            20 in an epoch at most. With 0, there are 20 however short it is.

    Raises:
        ValueError: the data does not fit the network (see `fit`), or a value is out of range.
        TypeError: an argument is not an object of its class.
    """

    progress_seconds = 0.01

    def __init__(
        self,
        model: MLP,
        train: Dataset,
        *,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        penalty: Penalty | None = None,
        batch_size: int | Literal["full"] = 128,
        validation: Validation = None,
        class_weight: ClassWeight = None,
        clip_norm: float | None = None,
        max_norm: float | None = None,
        ema: float | None = None,
        augment: Distortion | None = None,
        preprocess: Preprocessing | None = None,
        order: Order = None,
        seed: int = 0,
        diagnostics: bool = True,
        pixels: bool | None = None,
        rows: HostArray | None = None,
        shards: int | None = None,
        group: Group = ALONE,
    ) -> None:
        self.model = instance("model", model, MLP, "MLP([784, 128, 10])")
        self.train_set = _checked_data("train", train)
        self.optimizer = SGD() if optimizer is None else checked_optimizer(optimizer)
        self.schedule: Schedule = Constant() if schedule is None else checked_schedule("schedule", schedule)
        self.seed = whole("seed", seed, 0)
        diagnostics = flag("diagnostics", diagnostics)
        self.blocks = blocks = checked_order(order, streamed=self.train_set.streamed)
        penalty = Penalty() if penalty is None else instance("penalty", penalty, Penalty, "Penalty(l2=1e-4)")
        self.augment = _checked_augment(augment, self.train_set)
        _check_preprocess(preprocess, model)
        self.history = History()
        self.epochs = 0
        self._stop = self._in_epoch = False
        limits = {"clip_norm": clip_norm, "max_norm": max_norm}
        limits = {name: _at_most(name, limit, model.dtype) for name, limit in limits.items()}
        decay = None if ema is None else number("ema", ema, 0, 1, open_high=True)
        validation = as_validation(train, validation)
        self._validation_set = validation if isinstance(validation, Dataset) else None

        self.group = instance("group", group, Group, "MPIGroup()")
        shards = group.size if shards is None else whole("shards", shards, 1)

        with model.loss_chosen(train):
            inputs, self.batches, self.validation_batches = make_batches(
                *(model, train, validation, batch_size, self.seed, pixels, class_weight),
                *(rows, blocks, shards, self.augment, preprocess),
            )
            self.shards = _checked_shards(shards, self.batches.batch_size, group)
        model.class_names, model.inputs = learned_names(model, train), inputs
        self._setting = Setting.of(
            model,
            self.optimizer,
            self.schedule,
            penalty,
            self.batches.label_entropy if model.loss.task == "classes" else None,
            class_weight=class_weight is not None,
            augment=self.augment is not None,
            ema=decay or 0.0,
            steps=len(self.batches.slices),
        )
        self.history.setting = self._setting
        rng = np.random.default_rng([self.seed, ORDER_STREAM])
        if blocks is None:
            self._orders = EpochOrders(self.batches.rows, rng)
        else:
            self._orders = BlockOrders(
                self.batches.rows,
                rng,
                blocks,
                batch_size=self.batches.batch_size,
                shards=self.shards,
                streamed=train.streamed,
            )
            self._warn_if_sorted(blocks)
        with model.backend.activate():
            self.trained = model if decay is None else copy.deepcopy(model)
            self.optimizer_state = self.optimizer.init(self.trained.parameters.data)
            self._step = TrainingStep(
                self.trained,
                self.batches,
                self.optimizer,
                self.optimizer_state,
                penalty,
                **limits,
                average=None if decay is None else model.parameters.data,
                decay=decay or 0.0,
                seed=self.seed,
                shards=self.shards,
                group=self.group,
            )
            held_out = self.validation_batches
            self._evaluation = None if held_out is None else EvaluationStep(model, held_out.staged(), self._step)
            self._snapshot = [buffer.copy() for buffer in self._buffers()]
        self._diagnostics: list[Callback] = []
        if diagnostics and not self.group.rank:
            from ..diagnostics import LayerWatch  # a callback like any other: this module does not need it

            self._diagnostics = [LayerWatch(self)]

    def _warn_if_sorted(self, blocks: Blocks) -> None:
        train, window = self.train_set, self.shards * blocks.of_shard(self.shards).window
        if train.task != "classes" or self.group.rank:
            return
        note = sorted_note(train.targets, self.batches.rows, Blocks(blocks.rows, window))
        if note is not None:
            warnings.warn(f"{train.name}: {note}; {train.if_sorted}", UserWarning, stacklevel=3)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def workspace(self) -> Workspace:
        """The arrays that a step computes in."""
        return self._step.workspace

    @property
    def execution(self) -> Execution:
        """How the device runs the steps, and why.

        Raises:
            ExecutionError: the backend was made for a way that is not possible for this network.
        """
        with self.model.backend.activate():
            return self.model.backend.execution(self._step)

    def networks_at_once(self) -> int:
        """How many networks like this one the device trains at a time, see `Backend.networks_at_once`."""
        with self.model.backend.activate():
            return self.model.backend.networks_at_once(self._step)

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copy of the samples on the device that its way of running steps needs."""
        with self.model.backend.activate():
            return self.model.backend.copied_bytes(self._step)

    def keep_gradients(self) -> None:
        """From the next step on, leave all gradients in ``trained.parameters.gradient``, for callbacks to read.

        By default the CPU adds the gradient of the weights straight to the parameters or the velocity, which is
        faster, so that it never exists as an array; nor does any gradient with a GPU's persistent kernel. The
        results differ by rounding only.
        """
        self._step.keep_gradient()

    def stop(self) -> None:
        """Stop after the current epoch; for callbacks."""
        self._stop = True

    def run(self, epochs: int, callbacks: CallbackLike | Iterable[CallbackLike] = ()) -> History:
        """Train until `epochs` epochs are finished in total, or until interrupted (Ctrl-C) or stopped.

        An interrupt leaves the state after the last finished epoch, and is noted in the history. Waits for the
        device at most twice an epoch, and twice at the end with diagnostics.

        Raises:
            DivergenceError: the loss became NaN or infinite; the state is that of the last good epoch.
        """
        with self.model.backend.activate():
            drive(self.training(epochs, callbacks), self.model.backend)
        return self.history

    def training(self, epochs: int, callbacks: CallbackLike | Iterable[CallbackLike] = ()) -> Training:
        """Train as `run` does, but leave the work to the caller, who can do that of several networks at once.

        The caller activates the backend, lets it `Backend.perform` what the generator yields, and sends the
        generator the result. An exception of the work is thrown into the generator, which returns after an
        interrupt and raises any other again; closing it undoes the epoch, too.

        Raises:
            DivergenceError: as for `run`, by the generator.
            RuntimeError: by the generator, if another one is within an epoch.
        """
        called = [] if self.group.rank else as_callbacks(callbacks)
        return self._training(whole("epochs", epochs, 0), called)

    def _training(self, epochs: int, callbacks: list[Callback]) -> Training:
        self.epochs, self._stop, self.history.interrupted, self.history.classes = epochs, False, False, None
        group = self.group
        try:
            with group.interruptible():
                if group.size > 1:
                    group.agree({**self._facts(), "epochs": epochs})
                    group.connect(self.model.backend)
                for callback in callbacks:
                    callback.on_train_begin(self)
                while self.epoch < epochs and not group.broadcast(self._stop):
                    yield from self._run_epoch(callbacks)
                    for callback in callbacks:
                        callback.on_epoch_end(self)
        except KeyboardInterrupt:
            self.history.interrupted = True
        finally:
            for callback in callbacks:
                callback.on_train_end(self)
        if group.size > 1:  # a callback may have put back the best one
            on_host(self.model.backend, self.model.parameters.data, group.broadcast_array)
        try:
            self.count_predictions()
        except KeyboardInterrupt:
            self.history.interrupted = True

    def count_predictions(self) -> None:
        """Count how often the present network predicts each class, for ``history.findings()``.

        `run` does this at its end, if the diagnostics are on.
        """
        with self.model.backend.activate():
            for callback in self._diagnostics:
                callback.on_train_end(self)

    def _run_epoch(self, callbacks: list[Callback]) -> Training:
        if self._in_epoch:
            raise RuntimeError("an epoch of this trainer is in progress: finish or close its generator")
        start_epoch, order_state, steps = self.epoch, self._orders.state, self.optimizer_state.steps
        begun = False
        try:
            self._in_epoch = True
            rates, start = self._learning_rates(), time.perf_counter()
            self.batches.begin(self.epoch)
            order = self._orders.draw()
            if self.model.backend.asynchronous:
                self._orders.draw_ahead()
            kept = map(Copy, self._buffers(), self._snapshot)
            yield Copies(self._step, [*kept, *self.batches.reordering(order)])
            begun = True
            record = yield from self._train_epoch(rates, start, callbacks)
            if isinstance(record, EpochRecord):
                self.history.append(record)
                return
            self._undo(steps)
            with self._step.alone():
                finding = explain_divergence(self._step, start_epoch + 1, self._learning_rates(), record)
            raise DivergenceError(finding, self.history)
        except BaseException:
            if self.epoch == start_epoch:
                self._orders.state = order_state
                if begun:
                    self._undo(steps)
            raise
        finally:
            self._in_epoch = False

    def _undo(self, steps: int) -> None:
        """Put back what an epoch has changed; `steps` is the number of steps before it."""
        self.model.backend.copy(list(map(Copy, self._snapshot, self._buffers())))
        self.trained.parameters.gradient.fill(0)  # NaN in its padding would stay, and spoil its norm
        self.optimizer_state.steps = steps

    def _train_epoch(
        self, rates: list[float], start: float, callbacks: list[Callback]
    ) -> Generator[Request, Any, EpochRecord | Evaluation | None]:
        """The steps of an epoch that began at `start`.

        Returns:
            Its record; None if the loss or a parameter is no longer finite; the results on the validation samples
            if only their loss is not.
        """
        backend, step, batches = self.model.backend, self._step, self.batches
        step.clear_results()
        numbers = range(len(batches.slices))
        size = len(numbers)
        if callbacks:
            parts: float = _PROGRESS_PARTS
            if self.epoch and self.progress_seconds:
                parts = min(parts, max(1, self.history.records[-1].seconds / self.progress_seconds))
            size = max(math.ceil(size / parts), backend.steps_at_a_time)
        few = size
        if self.group.size > 1 and backend.steps_at_a_time > 1:  # the same parts in all processes, see `Step`
            few = backend.steps_at_a_time
            size = math.ceil(size / few) * few
        for first in numbers[::size]:
            part = numbers[first : first + size]
            for ready in batches.available(part):
                for begin in ready[::few]:
                    run = ready[begin - ready.start :][:few]
                    yield StepRun(step, run, rates[run.start : run.stop])
            for callback in callbacks:
                callback.on_progress(self, batches.slices[part[-1]].stop)
        step.merge_results()
        losses = batches.weighted_over_all(step.losses)
        totals = metric_totals(backend, self.model.loss.task, losses, step.scores)
        parameter_sum, *found = yield totals._replace(arrays=[self.trained.parameters.data, *totals.arrays])
        seconds = time.perf_counter() - start
        if self.group.size > 1:
            self._require_same_parameters(parameter_sum)

        if not (math.isfinite(found[0]) and math.isfinite(parameter_sum)):
            return None
        validation, layers = yield from self._measure([*self._diagnostics, *callbacks])
        if validation is not None and not math.isfinite(validation.loss):
            return validation
        results = {"train": evaluation_of(self.model, batches, found), "validation": validation}
        columns: dict[str, Any] = {
            f"{part}_{name}": getattr(result, name, None)
            for part, result in results.items()
            for name in HIGHER_IS_BETTER
        }
        return EpochRecord(
            epoch=self.epoch + 1,
            **columns,
            learning_rate=rates[-1],
            seconds=seconds,
            samples_per_second=per_second(batches.samples, seconds),
            layers=layers,
        )

    def _facts(self) -> dict[str, Any]:
        """What all processes of a group must have alike, by name."""
        from .. import __version__  # imports this module

        batches, validation, device = self.batches, self.validation_batches, self.model.backend.name
        held_out = [] if validation is None else [validation.rows, validation.targets]
        validation_set = self._validation_set
        return {
            "version": f"{__version__}, NumPy {np.__version__}",
            "training data": self.train_set.fingerprint(),
            "training samples": self._checksum(batches.rows, batches.targets, batches.weights),
            "validation data": None if validation_set is None else validation_set.fingerprint(),
            "validation samples": self._checksum(*held_out),
            "network": repr(self.model).replace(device, device.partition(":")[0]),
            "execution": self.execution.name,
            "parameters": self._checksum(self.model.parameters.data, *self.state_buffers.values()),
            "batch_size, shards, seed": (batches.batch_size, self.shards, self.seed, self.random_state()),
            "optimizer": f"{self.optimizer!r}, {self._step.penalty!r}, step {self.optimizer_state.steps}",
            "learning rates": self._checksum(np.array(self._learning_rates())),
            "clip_norm, max_norm, ema": (self._step.clip_norm, self._step.max_norm, self._step.decay),
            "augment": repr(self.augment),
            "inputs": repr(self.model.inputs),
        }

    def _require_same_parameters(self, parameter_sum: float) -> None:
        """Raise GroupError if the steps of the processes no longer have the same results."""
        finite = math.isfinite(parameter_sum)  # the bits of NaN may differ
        parameters = self._checksum(self.trained.parameters.data) if finite else None
        self.group.agree({f"the parameters after epoch {self.epoch + 1}": parameters})

    def _checksum(self, *arrays: Array | None) -> str:
        """Of arrays on the host or the device."""
        backend, crc = self.model.backend, 0
        for array in arrays:
            if array is not None:
                host = backend.to_numpy(array) if backend.owns(array) else array
                crc = zlib.crc32(np.ascontiguousarray(host).data, crc)
        return f"{crc:08x}"

    def _learning_rates(self) -> list[float]:
        """Of each step of the next epoch."""
        initial, steps = self.optimizer.learning_rate, len(self.batches.slices)
        taken = self.optimizer_state.steps
        by_step = changes_by_step(self.schedule)
        numbers = range(taken, taken + steps) if by_step else [taken]
        rates = [learning_rate_at(self.schedule, initial, self.epoch, step) for step in numbers]
        if not all(type(rate) is float and 0 <= rate < math.inf for rate in rates):
            what = f"the learning rate that the schedule gives for epoch {self.epoch}"
            rates = [number(what, rate, 0) for rate in rates]
        return rates if by_step else rates * steps

    def _measure(
        self, callbacks: list[Callback]
    ) -> Generator[Request, Any, tuple[Evaluation | None, tuple[LayerStatistics, ...] | None]]:
        """Validation, and what callbacks measure: the device is waited for once, or not at all."""
        backend, step = self.model.backend, self._evaluation
        totals, validation, layers = Totals([]), None, None
        if step is not None:
            yield from step.runs()
            totals = step.totals()
        before = self._snapshot[0 if self.trained is self.model else -1]  # that of `trained`, see `_buffers`
        measured = [(each, values) for each in callbacks if (values := each.on_measure(self, before)) is not None]
        measured = [(each, _checked_values(values, each, backend).reshape(-1)) for each, values in measured]
        if step is None and not measured:
            return None, None
        if measured:
            more = [values for values in (totals.more, *(values for _, values in measured)) if values is not None]
            totals = totals._replace(more=backend.xp.concatenate(more))
        found = yield totals
        start = len(found) - sum(len(values) for _, values in measured)
        if step is not None:
            validation = evaluation_of(self.model, step.batches, found[:start])
        for callback, values in measured:
            layers = _checked_layers(callback.on_measured(self, found[start:][: len(values)]), callback) or layers
            start += len(values)
        return validation, layers

    # -- State ------------------------------------------------------------------------------------------

    @property
    def state_buffers(self) -> dict[str, Array]:
        """The flat buffers beside the network's parameters that training needs to continue, by name.

        Those of the optimizer; with `ema` also ``trained``, the parameters that the steps change.
        """
        trained = {} if self.trained is self.model else {"trained": self.trained.parameters.data}
        return {**self.optimizer_state.buffers, **trained}

    def random_state(self) -> dict[str, Any]:
        """The state of the generator that draws the batch order, as JSON can hold it."""
        return self._orders.state

    def restore(
        self, buffers: dict[str, HostArray], steps: int, random_state: dict[str, Any], history: History
    ) -> None:
        """Continue from a saved state.

        Args:
            buffers: as `state_buffers` names them, on the host.
            steps: optimizer steps taken.
            random_state: as `random_state` gave it.
            history: of the epochs before.
        """
        backend = self.model.backend
        with backend.activate():
            backend.copy([Copy(buffers[name], buffer) for name, buffer in self.state_buffers.items()])
        self.optimizer_state.steps = steps
        self._orders.state = random_state
        self.history = history
        self.history.setting = self._setting

    def _buffers(self) -> list[Any]:
        return [self.model.parameters.data, *self.state_buffers.values()]


def fit(
    model: MLP,
    train: Any,
    targets: Any = None,
    *,
    sample_weight: Any = None,
    class_weight: ClassWeight = None,
    optimizer: Optimizer | None = None,
    epochs: int = 10,
    batch_size: int | Literal["full"] = 128,
    validation: Validation = None,
    schedule: Schedule | None = None,
    l2: float = 0.0,
    l1: float = 0.0,
    clip_norm: float | None = None,
    max_norm: float | None = None,
    ema: float | None = None,
    augment: Distortion | None = None,
    preprocess: Preprocessing | None = None,
    order: Order = None,
    seed: int = 0,
    callbacks: CallbackLike | Iterable[CallbackLike] = (),
    diagnostics: bool = True,
    pixels: bool | None = None,
    shards: int | None = None,
    group: Group = ALONE,
) -> History:
    """Train a network in place.

    An untrained network takes its `inputs` and, with as many outputs as there are classes, its `class_names` from
    the training samples. A trained one can be trained further on samples of the same shape, scale and classes; to
    train it on others, set ``model.inputs = model.class_names = None`` first.

    Args:
        model: the network.
        train: the training samples: a `Dataset`; or arrays of samples, with `targets`.
        targets: of an array of samples, as for `Dataset`.
        sample_weight: ``(n,)``, of an array of samples; a `Dataset` has its own.
        class_weight: a weight for each class, by its name or number, or ``"balanced"`` for weights inversely
            proportional to the numbers of training samples. It multiplies the sample weights in training;
            validation and metrics do not use it. In each batch weights are scaled to a mean of 1.
        optimizer: ``SGD(learning_rate=0.1)`` by default. Its state starts at zero with every call.
        epochs: passes over the training samples.
        batch_size: samples per step, or ``"full"``.
        validation: a `Dataset`, or arrays ``(samples, targets)``; or the number of training samples to hold out,
            drawn by the seed; or their fraction, such as 0.1, with the same shares of the classes as in training;
            or the row numbers of those to hold out, in an array, a list or a range; None for no validation.
        schedule: of the learning rate, such as ``StepDecay(gamma=0.5, step_size=20)`` or
            ``Warmup(100, then=Cosine(2000))``.
        l2, l1: weight penalty, see `Penalty`.
        clip_norm: the gradient is scaled down to this norm where it is larger: g <- g min(1, c / (|g| + 1e-6)),
            over all weights and biases, without the penalty. R. Pascanu, T. Mikolov and Y. Bengio, "On the
            difficulty of training recurrent neural networks", ICML 2013; the form is PyTorch's.
        max_norm: after each step, the incoming weights of every hidden unit are scaled down to this norm where it
            is larger: w <- w min(1, c / |w|). N. Srivastava et al., "Dropout", JMLR 15, 2014.
        ema: d, from 0 to below 1: keep the moving average m <- d m + (1 - d) theta of the parameters, over the
            steps and from the initial ones on. The network has these parameters, also while it is validated.
            B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
        augment: a `Distortion` of the training images, each anew in every epoch; the samples have the shape
            ``(n, rows, columns)``. Validation samples are never distorted. None for none.
        preprocess: a `Preprocessing` of all images of shape ``(n, rows, columns)``, before they are distorted: the
            network keeps it as ``inputs.preprocessing`` and applies it to whatever images it is given. None: as a
            trained network has it.
        order: of the samples in an epoch: ``"shuffle"``, all in random order, the default in memory; ``"blocks"``,
            the default and only choice for a `StreamedDataset`, or `Blocks` of other sizes: blocks of 1,024
            consecutive samples in random order, and the samples of 64 blocks at a time in random order; with
            several shards, see `Blocks`.
        seed: of the held-out samples, of the batch order, of dropout and of distortions: same seed, same run, bit
            for bit, on one machine and device.
        callbacks: functions called with the trainer after every epoch, or `Callback` objects, such as
            `Progress`, `EarlyStopping`, `BestCheckpoint` and `TensorBoard`; a list of them, or a single one.
        diagnostics: measure each layer after every epoch (after some of short ones), and count the
            predictions of each class at the end, for ``history.findings()``; the results are the same.
        pixels: whether uint8 images are pixels, divided by 255, or numbers, used as they are; None: as
            ``model.inputs`` says, and for an untrained network, pixels.
        shards: cut each batch into this many parts of consecutive samples, and sum their gradients pairwise in a
            fixed order. The gradient is that of the whole batch, except for rounding. On a GPU, the execution
            ``"persistent"`` supports only one. None: the number of processes.
        group: the processes that train the network together, such as ``MPIGroup()``, each of which calls `fit`
            with the same arguments; by default this one alone. They share the shards evenly. With as many shards,
            and BLAS threads in each process, the results are the same bit for bit for any number of processes. A
            callback is called in process 0 only, which tells the others when to stop; a statistic of layers is
            only in its history.

    Returns:
        The history, one record per epoch, with `findings` and `trend`. After Ctrl-C it is that of the finished
        epochs, with ``history.interrupted`` set and the network as it was after the last of them.

    Raises:
        ValueError: the data does not fit the network, or a value is out of range.
        TypeError: an argument is not an object of its class.
        DivergenceError: the loss became NaN or infinite; the network is that of the last good epoch.
        GroupError: the processes differ in their data, versions or arguments; all of them raise it.

    Warns:
        UserWarning: with an order by blocks, the samples seem to be sorted by class.

    >>> from gpumlp import MLP, SGD, fit, load_digits
    >>> train, test = load_digits()
    >>> model = MLP([64, 32, 10], device="cpu")
    >>> history = fit(model, train, optimizer=SGD(0.1, momentum=0.9), epochs=5, batch_size=32)
    >>> len(history), model.accuracy(test) > 0.9
    (5, True)
    >>> history.findings(), history.trend()
    ([], 'converging')
    """
    epochs = whole("epochs", epochs, 1)
    trainer = Trainer(
        instance("model", model, MLP, "MLP([784, 128, 10])"),
        as_dataset(train, targets, sample_weight),
        optimizer=optimizer,
        schedule=schedule,
        penalty=Penalty(l2=l2, l1=l1),
        batch_size=batch_size,
        validation=validation,
        class_weight=class_weight,
        clip_norm=clip_norm,
        max_norm=max_norm,
        ema=ema,
        augment=augment,
        preprocess=preprocess,
        order=order,
        seed=seed,
        diagnostics=diagnostics,
        pixels=pixels,
        shards=shards,
        group=group,
    )
    return trainer.run(epochs, callbacks)


def drive(training: Training, backend: Backend) -> None:
    """Do what the training of a network asks for; an exception of that is the generator's to handle."""
    result = None
    try:
        while True:
            (result,) = backend.perform([training.send(result)])()
    except StopIteration:
        pass
    except BaseException as error:  # if the generator raised it, it has ended, and only raises it again
        with suppress(StopIteration):
            training.throw(error)
    finally:
        training.close()  # after a second interrupt


# -- Checks of arguments ---------------------------------------------------------------------------------


def _check_hooks(callback: Callback) -> None:
    """Check the arguments of a callback's methods before the first epoch."""
    for name, method in vars(Callback).items():
        if name.startswith("on_"):
            arguments = list(inspect.signature(method).parameters)[1:]
            require_arguments(f"{type(callback).__name__}.{name}", getattr(callback, name), *arguments)


def _checked_data(name: str, value: object) -> Dataset:
    if not isinstance(value, Dataset):
        raise TypeError(f"{name} is expected to be a Dataset, got {shown(value)}; give Dataset(samples, targets)")
    return value


def _checked_augment(augment: Any, train: Dataset) -> Distortion | None:
    """None for one that changes nothing.

    Raises TypeError if it is something else, and ValueError if the samples are no images.
    """
    if augment is None:
        return None
    checked = instance("augment", augment, Distortion, "Distortion(rotation=7.5, elastic=(34, 4))")
    if len(train.feature_shape) != 2:
        raise ValueError(
            f"augment is expected with images of shape (n, rows, columns), got {train!r}; reshape them, as in "
            "samples.reshape(-1, 28, 28)"
        )
    return checked if checked.changes else None


def _check_preprocess(preprocess: Any, model: MLP) -> None:
    """Raises TypeError if it is something else, and ValueError if the network was trained with another one."""
    if preprocess is None:
        return
    instance("preprocess", preprocess, Preprocessing, "Preprocessing(deskew=True, width=12)")
    before = model.inputs
    if before is not None and before.preprocessing != preprocess:
        raise ValueError(
            f"{model} was trained with the preprocessing {before.preprocessing}, got {preprocess}; leave it out, "
            "or train a new network"
        )


def _checked_shards(shards: int, batch_size: int, group: Group) -> int:
    """Raises ValueError if they are more than the samples of a batch, or the processes cannot share them."""
    if shards > batch_size:
        raise ValueError(f"shards is expected to be at most the {batch_size:,} samples of a batch, got {shards:,}")
    if shards % group.size:
        raise ValueError(
            f"shards is expected to be a multiple of the {group.size:,} processes, which share them evenly, got "
            f"{shards:,}"
        )
    return shards


def _at_most(name: str, limit: float | None, dtype: np.dtype[Any]) -> float | None:
    """A limit of a norm: a number above 0, as near as the dtype allows."""
    if limit is None:
        return None
    info = np.finfo(dtype)
    return min(max(number(name, limit, 0, open_low=True), float(info.tiny)), float(info.max))


def _checked_values(values: Any, callback: Callback, backend: Backend) -> Array:
    """What `Callback.on_measure` returns. A NumPy scalar is a 0-d array on the CPU."""
    if isinstance(values, np.generic) and backend.owns(values.reshape(-1)):
        values = values.reshape(-1)
    if not backend.owns(values) or values.dtype.kind not in "buif":
        raise TypeError(
            f"{type(callback).__name__}.on_measure is expected to return a float64 array of the device or None, "
            f"got {shown(values)}"
        )
    return values


def _checked_layers(found: Any, callback: Callback) -> tuple[LayerStatistics, ...] | None:
    """What `Callback.on_measured` returns."""
    if found is not None and not (
        isinstance(found, tuple) and all(isinstance(each, LayerStatistics) for each in found)
    ):
        raise TypeError(
            f"{type(callback).__name__}.on_measured is expected to return a tuple of LayerStatistics or None, got "
            f"{shown(found)}"
        )
    return found
