"""The training loop: `Trainer`, `fit`, the callbacks they call, and the order in which an epoch takes samples."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import numpy as np

from ..backends import Array, Backend, Execution, HostArray
from ..data import Dataset
from ..data.dataset import ArrayBatches
from ..nn.hyperparameters import (
    flag,
    instance,
    number,
    require_arguments,
    require_in_place,
    whole,
)
from ..nn.network import CHUNK, MLP, Evaluation, Workspace, evaluate_batches, evaluation, loss_and_hits
from ..nn.optimizers import SGD, Adam, Optimizer, Penalty
from ..nn.samples import Inputs, check_data, class_numbers, learned_names
from ..nn.schedules import Constant, Schedule
from ..words import shown
from .divergence import DivergenceError, explain_divergence
from .history import EpochRecord, History, LayerStatistics, Setting, per_second
from .step import TrainingStep

_PROGRESS_PARTS = 20  # reports of progress in an epoch, if there are callbacks

# Independent random streams of one seed; the network's own initial weights use the seed as it is.
ORDER_STREAM, SPLIT_STREAM, WATCH_STREAM = 1, 2, 3


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
        """About 20 times an epoch: that many samples of it have been given to the device so far."""

    def on_measure(self, trainer: Trainer, seen: Workspace | None, before: Array) -> Array | None:
        """After an epoch's steps, before its record is made: measure something on the device.

        Args:
            trainer: the epoch that has ended is ``trainer.epoch + 1``.
            seen: that of the first chunk of the validation samples, after its loss: activations in ``outputs``,
                the error term in ``logits``; read only. None without validation samples.
            before: ``(size,)``, the parameters at the start of the epoch; read only.

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
        schedule: of the learning rate, by epoch; None keeps it constant.
        penalty: on the weights.
        batch_size: samples per step, or ``"full"``; more than there are means all of them.
        validation: a `Dataset`, or the number of training samples to hold out (drawn by the seed), or None.
        seed: of the held-out samples and of the batch order.
        diagnostics: measure each layer after every epoch, and count the predictions of each class at the end,
            for ``history.findings()``; where an epoch has fewer than 3,000 samples, layers are measured after the
            first and then every second to fifth. The results are the same.
        pixels: whether uint8 images are pixels, divided by 255, or numbers, used as they are; None: as
            ``model.inputs`` says, and for an untrained network, pixels.

    Attributes:
        history: a record for each finished epoch.

    Raises:
        ValueError: the data does not fit the network (see `fit`), or a value is out of range.
        TypeError: an argument is not an object of its class.
    """

    def __init__(
        self,
        model: MLP,
        train: Dataset,
        *,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        penalty: Penalty | None = None,
        batch_size: int | Literal["full"] = 128,
        validation: Dataset | int | None = None,
        seed: int = 0,
        diagnostics: bool = True,
        pixels: bool | None = None,
    ) -> None:
        self.model = instance("model", model, MLP, "MLP([784, 128, 10])")
        self.train_set = _checked_data("train", train)
        self.optimizer = SGD() if optimizer is None else _checked_optimizer(optimizer)
        self.schedule: Schedule = Constant() if schedule is None else _checked_schedule(schedule)
        self.seed = whole("seed", seed, 0)
        penalty = Penalty() if penalty is None else instance("penalty", penalty, Penalty, "Penalty(l2=1e-4)")
        self._setting = Setting.of(
            model.sizes, model.activation.name, self.optimizer, self.schedule, penalty, train.label_entropy
        )
        self.history = History()
        self.history.setting = self._setting
        self.epochs = 0
        self._stop = False

        inputs, self.batches, self.validation_batches = _make_batches(
            model, train, validation, batch_size, self.seed, pixels
        )
        model.class_names, model.inputs = learned_names(model, train), inputs
        self._orders = EpochOrders(self.batches.rows, np.random.default_rng([seed, ORDER_STREAM]))
        with model.backend.activate():
            self.optimizer_state = self.optimizer.init(model.parameters.data)
            self._step = TrainingStep(model, self.batches, self.optimizer, self.optimizer_state, penalty)
            self._snapshot = [buffer.copy() for buffer in self._buffers()]
        self._diagnostics: list[Callback] = []
        if flag("diagnostics", diagnostics):
            from ..diagnostics import LayerWatch  # a callback like any other: this module does not need it

            self._diagnostics = [LayerWatch(self)]

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

    def keep_gradients(self) -> None:
        """From the next step on, leave all gradients in ``model.parameters.gradient``, for callbacks to read.

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
        called = as_callbacks(callbacks)
        epochs = whole("epochs", epochs, 0)
        self.epochs, self._stop, self.history.interrupted, self.history.classes = epochs, False, False, None
        with self.model.backend.activate():
            try:
                for callback in called:
                    callback.on_train_begin(self)
                while self.epoch < epochs and not self._stop:
                    self._run_epoch(called)
                    for callback in called:
                        callback.on_epoch_end(self)
            except KeyboardInterrupt:
                self.history.interrupted = True
            finally:
                for callback in called:
                    callback.on_train_end(self)
        try:
            self.count_predictions()
        except KeyboardInterrupt:
            self.history.interrupted = True
        return self.history

    def count_predictions(self) -> None:
        """Count how often the present network predicts each class, for ``history.findings()``.

        `run` does this at its end, if the diagnostics are on.
        """
        with self.model.backend.activate():
            for callback in self._diagnostics:
                callback.on_train_end(self)

    def _run_epoch(self, callbacks: list[Callback]) -> None:
        start_epoch, order_state, steps = self.epoch, self._orders.state, self.optimizer_state.steps
        self._copy(self._buffers(), self._snapshot)
        try:
            record = self._train_epoch(callbacks)
            if record is not None:
                self.history.append(record)
                return
            self._copy(self._snapshot, self._buffers())
            finding = explain_divergence(self._step, start_epoch + 1, self._learning_rate())
            raise DivergenceError(finding, self.history)
        except BaseException:
            if self.epoch == start_epoch:
                self._copy(self._snapshot, self._buffers())
                self._orders.state = order_state
                self.optimizer_state.steps = steps
            raise

    def _train_epoch(self, callbacks: list[Callback]) -> EpochRecord | None:
        """One epoch; None if the loss or a parameter is no longer finite."""
        backend, step, batches = self.model.backend, self._step, self.batches
        learning_rate = self._learning_rate()

        start = time.perf_counter()
        batches.reorder(self._orders.draw())
        numbers = range(len(batches.slices))
        size = len(numbers)
        if callbacks:
            size = max(math.ceil(size / _PROGRESS_PARTS), backend.steps_at_a_time)
        for first in numbers[::size]:
            part = numbers[first : first + size]
            backend.run_steps(step, part, [learning_rate] * len(part))
            for callback in callbacks:
                callback.on_progress(self, batches.slices[part[-1]].stop)
        self._orders.draw_ahead()  # while the device computes
        sums = backend.xp.stack([backend.total(x) for x in (step.losses, step.scores, self.model.parameters.data)])
        loss, correct, parameter_sum = backend.to_numpy(sums).tolist()
        seconds = time.perf_counter() - start

        if not (math.isfinite(loss) and math.isfinite(parameter_sum)):
            return None
        validation, layers = self._measure([*self._diagnostics, *callbacks])
        if validation is not None and not math.isfinite(validation.loss):
            return None
        return EpochRecord(
            epoch=self.epoch + 1,
            train_loss=loss / batches.samples,
            train_accuracy=correct / batches.samples,
            validation_loss=None if validation is None else validation.loss,
            validation_accuracy=None if validation is None else validation.accuracy,
            learning_rate=learning_rate,
            seconds=seconds,
            samples_per_second=per_second(batches.samples, seconds),
            layers=layers,
        )

    def _learning_rate(self) -> float:
        """Of the next epoch."""
        value = self.schedule(self.optimizer.learning_rate, self.epoch)
        return number(f"the learning rate that the schedule gives for epoch {self.epoch}", value, 0)

    def _measure(self, callbacks: list[Callback]) -> tuple[Evaluation | None, tuple[LayerStatistics, ...] | None]:
        """Validation, and what callbacks measure: the device is waited for once, or not at all."""
        backend, batches, before = self.model.backend, self.validation_batches, self._snapshot[0]
        measured: list[tuple[Callback, Array]] = []

        def measure(seen: Workspace | None) -> None:
            for callback in callbacks:
                values = callback.on_measure(self, seen, before)
                if values is not None:
                    measured.append((callback, _checked_values(values, callback, backend).reshape(-1)))

        sums = []
        if batches is None:
            measure(None)
        else:
            sums = [loss_and_hits(self.model, batches, measure)]
        arrays = [*sums, *(values for _, values in measured)]
        if not arrays:
            return None, None
        numbers = backend.to_numpy(arrays[0] if len(arrays) == 1 else backend.xp.concatenate(arrays)).tolist()
        start, layers = 2 * len(sums), None
        for callback, values in measured:
            found = callback.on_measured(self, numbers[start : start + len(values)])
            layers = _checked_layers(found, callback) or layers
            start += len(values)
        if batches is None:
            return None, layers
        return evaluation(numbers[0], numbers[1], batches.samples), layers

    def validate(self) -> Evaluation | None:
        """Loss and accuracy on the validation samples, if there are any."""
        if self.validation_batches is None:
            return None
        with self.model.backend.activate():
            return evaluate_batches(self.model, self.validation_batches)

    # -- State ------------------------------------------------------------------------------------------

    def random_state(self) -> dict[str, Any]:
        """The state of the generator that draws the batch order, as JSON can hold it."""
        return self._orders.state

    def restore(
        self, buffers: dict[str, HostArray], steps: int, random_state: dict[str, Any], history: History
    ) -> None:
        """Continue from a saved state.

        Args:
            buffers: the optimizer's flat buffers, by name.
            steps: optimizer steps taken.
            random_state: as `random_state` gave it.
            history: of the epochs before.
        """
        backend = self.model.backend
        with backend.activate():
            for name, buffer in self.optimizer_state.buffers.items():
                backend.xp.copyto(buffer, backend.asarray(buffers[name]))
        self.optimizer_state.steps = steps
        self._orders.state = random_state
        self.history = history
        self.history.setting = self._setting

    def _buffers(self) -> list[Any]:
        return [self.model.parameters.data, *self.optimizer_state.buffers.values()]

    def _copy(self, sources: list[Any], targets: list[Any]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.model.backend.xp.copyto(target, source)


def fit(
    model: MLP,
    train: Dataset,
    *,
    optimizer: Optimizer | None = None,
    epochs: int = 10,
    batch_size: int | Literal["full"] = 128,
    validation: Dataset | int | None = None,
    schedule: Schedule | None = None,
    l2: float = 0.0,
    l1: float = 0.0,
    seed: int = 0,
    callbacks: CallbackLike | Iterable[CallbackLike] = (),
    diagnostics: bool = True,
    pixels: bool | None = None,
) -> History:
    """Train a network in place.

    An untrained network takes its `inputs` and, with as many outputs as there are classes, its `class_names` from
    the training samples. A trained one can be trained further on samples of the same shape, scale and classes; to
    train it on others, set ``model.inputs = model.class_names = None`` first.

    Args:
        model: the network.
        train: the training samples.
        optimizer: ``SGD(learning_rate=0.1)`` by default. Its state starts at zero with every call.
        epochs: passes over the training samples.
        batch_size: samples per step, or ``"full"``.
        validation: a `Dataset`, or the number of training samples to hold out; None for no validation.
        schedule: of the learning rate, such as ``StepDecay(gamma=0.5, step_size=20)``.
        l2, l1: weight penalty, see `Penalty`.
        seed: of the held-out samples and of the batch order: same seed, same run, bit for bit, on one
            machine and device.
        callbacks: functions called with the trainer after every epoch, or `Callback` objects, such as
            `Progress`, `EarlyStopping`, `BestCheckpoint` and `TensorBoard`; a list of them, or a single one.
        diagnostics: measure each layer after every epoch (after some of very short ones), and count the
            predictions of each class at the end, for ``history.findings()``; the results are the same.
        pixels: whether uint8 images are pixels, divided by 255, or numbers, used as they are; None: as
            ``model.inputs`` says, and for an untrained network, pixels.

    Returns:
        The history, one record per epoch, with `findings` and `trend`. After Ctrl-C it is that of the finished
        epochs, with ``history.interrupted`` set and the network as it was after the last of them.

    Raises:
        ValueError: the data does not fit the network, or a value is out of range.
        TypeError: an argument is not an object of its class.
        DivergenceError: the loss became NaN or infinite; the network is that of the last good epoch.

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
        model,
        train,
        optimizer=optimizer,
        schedule=schedule,
        penalty=Penalty(l2=l2, l1=l1),
        batch_size=batch_size,
        validation=validation,
        seed=seed,
        diagnostics=diagnostics,
        pixels=pixels,
    )
    return trainer.run(epochs, callbacks)


# -- Samples and their order -----------------------------------------------------------------------------


class EpochOrders:
    """Random orders of the samples, one an epoch, drawn on the host, so that they are the same on every device.

    The next one can be drawn while a GPU trains, which would otherwise wait for it.

    Args:
        rows: ``(samples,)``, the rows to order.
        rng: used for nothing else.
    """

    def __init__(self, rows: HostArray, rng: np.random.Generator) -> None:
        self._rows, self._rng = rows, rng
        self._ahead: HostArray | None = None
        self._state_before: dict[str, Any] = {}

    def draw(self) -> HostArray:
        """The order of the next epoch, ``(samples,)``."""
        order, self._ahead = self._ahead, None
        return self._rng.permutation(self._rows) if order is None else order

    def draw_ahead(self) -> None:
        """Draw the next order now; it is the same one, and `state` stays the same."""
        if self._ahead is None:
            self._state_before = self.state
            self._ahead = self._rng.permutation(self._rows)

    @property
    def state(self) -> dict[str, Any]:
        """State of the generator before the next `draw`, as JSON can hold it; set it to continue from there."""
        return self._state_before if self._ahead is not None else dict(self._rng.bit_generator.state)

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self._rng.bit_generator.state = value
        self._ahead = None


def _make_batches(
    model: MLP,
    train: Dataset,
    validation: Dataset | int | None,
    batch_size: int | Literal["full"],
    seed: int,
    pixels: bool | None,
) -> tuple[Inputs, ArrayBatches, ArrayBatches | None]:
    """The network's new `inputs`, and the batches to train on and those to validate on, on its device.

    Arguments are those of `Trainer`.

    Raises:
        ValueError: the data does not fit the network, or a value is out of range.
        TypeError: `validation` is something else.
    """
    held_out = 0
    if validation is not None and not isinstance(validation, Dataset):
        if not isinstance(validation, int | float | np.number):
            raise TypeError(
                "validation is expected to be a Dataset or the number of training samples to hold out, got "
                f"{shown(validation)}; give Dataset(images, labels)"
            )
        held_out = whole("validation", validation, 0)
    train_rows, validation_rows = _split(len(train), held_out, seed)
    full = isinstance(batch_size, str) and batch_size == "full"
    size = len(train_rows) if full else whole("batch_size (if not 'full')", batch_size, 1)
    names, backend = learned_names(model, train), model.backend

    def on_device(data: Dataset, inputs: Inputs | None, size: int, rows: HostArray | None = None) -> ArrayBatches:
        divided, labels = check_data(model, inputs, data, pixels), class_numbers(model, data, names)
        return data.batches(size, backend, model.dtype, rows, labels=labels, pixels=divided)

    with backend.activate():
        batches = on_device(train, model.inputs, size, train_rows)
        inputs = _inputs_after(model, train, divided=batches.pixels)
        if isinstance(validation, Dataset):
            return inputs, batches, on_device(validation, inputs, CHUNK)
        return inputs, batches, batches.select(validation_rows, CHUNK) if held_out else None


def _split(samples: int, held_out: int, seed: int) -> tuple[HostArray, HostArray]:
    """Rows to train on and rows to validate on."""
    if not 0 <= held_out < samples:
        raise ValueError(
            f"validation is expected to be from 0 to {samples - 1:,} of the {samples:,} training samples, got "
            f"{held_out:,}"
        )
    order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(samples)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


# -- Checks of arguments ---------------------------------------------------------------------------------


def _check_hooks(callback: Callback) -> None:
    """Check the arguments of a callback's methods before the first epoch."""
    for name, method in vars(Callback).items():
        if name.startswith("on_"):
            arguments = list(inspect.signature(method).parameters)[1:]
            require_arguments(f"{type(callback).__name__}.{name}", getattr(callback, name), *arguments)


def _checked_data(name: str, value: object) -> Dataset:
    if not isinstance(value, Dataset):
        raise TypeError(f"{name} is expected to be a Dataset, got {shown(value)}; give Dataset(images, labels)")
    return value


def _checked_optimizer(value: object) -> Optimizer:
    optimizer = instance("optimizer", value, Optimizer, "SGD(0.1) or Adam()")
    rate = getattr(optimizer, "learning_rate", None)
    kind, rate = type(optimizer).__name__, number("the optimizer's learning_rate", rate, 0, open_low=True)
    if type(optimizer) not in (SGD, Adam):
        example, gradient = np.ones(4), np.ones(4)
        require_in_place(
            f"{kind}.update",
            lambda: optimizer.update(
                np, example, gradient, optimizer.init(example), *optimizer.step_factors(1, rate)
            ),
            example,
        )
    return optimizer


def _checked_schedule(value: Any) -> Schedule:
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            "schedule is expected to be a function of the initial learning rate and the epoch, such as "
            f"StepDecay(), got {shown(value)}"
        )
    require_arguments("schedule", value, "the initial learning rate", "the epoch")
    schedule: Schedule = value
    return schedule


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


def _inputs_after(model: MLP, train: Dataset, *, divided: bool) -> Inputs:
    """The description of what a network is trained on."""
    before, dtype = model.inputs, train.images.dtype.name
    if divided or (before is not None and before.pixels):
        dtype = "uint8"  # other numbers from 0 to 1 have the same scale
    elif dtype == "uint8" or (before is not None and before.dtype == "any"):
        dtype = "any"  # uint8 that is used as it is
    return Inputs(train.feature_shape, dtype, train.name)
