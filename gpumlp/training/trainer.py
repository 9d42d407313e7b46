"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from ..backends import Execution, HostArray
from ..data import Dataset
from ..nn.network import MLP, Evaluation, Inputs, Workspace, evaluate_batches
from ..nn.optimizers import SGD, Optimizer, Penalty
from ..nn.schedules import Constant, Schedule
from .callbacks import Callback, CallbackLike, as_callbacks
from .divergence import DivergenceError, diagnose
from .history import EpochRecord, History
from .orders import EpochOrders
from .splitting import ORDER_STREAM, make_batches
from .step import TrainingStep
from .watching import Watcher, setting_of

_PROGRESS_PARTS = 20  # how often an epoch reports, if anybody listens


class Trainer:
    """A network, its data and everything a training remembers between epochs.

    `fit` is the short way; a trainer adds saving, loading and going on.

    Args:
        model: trained in place.
        train: the training samples.
        optimizer: with the initial learning rate.
        schedule: of the learning rate, by epoch; None keeps it constant.
        penalty: on the weights.
        batch_size: samples a step, or ``"full"``; more than there are means all of them.
        validation: a `Dataset`, or how many training samples are held out (drawn by the seed), or None.
        seed: of the held-out samples and of the batch order.
        diagnostics: take statistics of each layer after every epoch, without a change to the results; where an
            epoch has fewer than 3,000 samples, after the first and then every second to fifth.

    Attributes:
        history: a record for each finished epoch.

    Raises:
        ValueError: the data does not fit the network, or a value is out of range.
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
    ) -> None:
        self.model = model
        self.train_set = train
        self.optimizer = SGD() if optimizer is None else optimizer
        self.schedule: Schedule = Constant() if schedule is None else schedule
        self.seed = seed
        self._setting = setting_of(
            model.sizes,
            model.activation.name,
            self.optimizer,
            self.schedule,
            penalty or Penalty(),
            train.label_entropy,
        )
        self.history = History()
        self.history.setting = self._setting
        self.epochs = 0
        self._stop = False

        self.batches, self.validation_batches = make_batches(model, train, validation, batch_size, seed)
        model.inputs = Inputs(train.feature_shape, train.images.dtype.name, train.name)
        self._orders = EpochOrders(self.batches.rows, np.random.default_rng([seed, ORDER_STREAM]))
        with model.backend.activate():
            self.optimizer_state = self.optimizer.init(model.parameters.data)
            self._step = TrainingStep(
                model, self.batches, self.optimizer, self.optimizer_state, penalty or Penalty()
            )
            self._snapshot = [buffer.copy() for buffer in self._buffers()]
            self._watcher = Watcher(
                model,
                self.batches,
                self.validation_batches,
                self.optimizer_state.scratch,
                seed,
                diagnostics=diagnostics,
            )

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    @property
    def workspace(self) -> Workspace:
        """The arrays that a step works in."""
        return self._step.workspace

    @property
    def execution(self) -> Execution:
        """How the device runs the steps, and why.

        Raises:
            ExecutionError: the way that was asked for is not possible.
        """
        with self.model.backend.activate():
            return self.model.backend.execution(self._step)

    def keep_gradients(self) -> None:
        """From the next step on leave all gradients in ``model.parameters.gradient``, for callbacks to look at.

        Otherwise the CPU adds the weights' gradient straight into the parameters or the velocity, which is faster,
        and it never exists as an array; nor does any gradient with a GPU's persistent kernel. The results differ
        in rounding only.
        """
        self._step.keep_gradient()

    def stop(self) -> None:
        """Ask for an end after the current epoch; for callbacks."""
        self._stop = True

    def run(self, epochs: int, callbacks: CallbackLike | Iterable[CallbackLike] = ()) -> History:
        """Train until `epochs` epochs are finished in all, or until interrupted (Ctrl-C) or stopped.

        An interrupt ends the training as it was after the last finished epoch, and is noted in the
        history. Waits for the device twice an epoch at most.

        Raises:
            DivergenceError: the loss became NaN or infinite; the state is that of the last good epoch.
        """
        listeners = as_callbacks(callbacks)
        self.epochs, self._stop, self.history.interrupted = epochs, False, False
        with self.model.backend.activate():
            try:
                for listener in listeners:
                    listener.on_train_begin(self)
                while self.epoch < epochs and not self._stop:
                    self._run_epoch(listeners)
                    for listener in listeners:
                        listener.on_epoch_end(self)
            except KeyboardInterrupt:
                self.history.interrupted = True
            finally:
                for listener in listeners:
                    listener.on_train_end(self)
        return self.history

    def _run_epoch(self, listeners: list[Callback]) -> None:
        start_epoch, order_state, steps = (
            self.epoch,
            self._orders.state,
            self.optimizer_state.steps,
        )
        self._copy(self._buffers(), self._snapshot)
        try:
            record = self._train_epoch(listeners)
            if record is not None:
                self.history.append(record)
                return
            self._copy(self._snapshot, self._buffers())
            rate = float(self.schedule(self.optimizer.learning_rate, start_epoch))
            raise DivergenceError(diagnose(self._step, start_epoch + 1, rate), self.history)
        except BaseException:
            if self.epoch == start_epoch:
                self._copy(self._snapshot, self._buffers())
                self._orders.state = order_state
                self.optimizer_state.steps = steps
            raise

    def _train_epoch(self, listeners: list[Callback]) -> EpochRecord | None:
        """One epoch; None if the loss or a parameter is no longer finite."""
        backend, step, batches = self.model.backend, self._step, self.batches
        learning_rate = float(self.schedule(self.optimizer.learning_rate, self.epoch))

        start = time.perf_counter()
        batches.reorder(self._orders.draw())
        numbers = range(len(batches.slices))
        part = len(numbers)
        if listeners:
            part = max(math.ceil(part / _PROGRESS_PARTS), backend.steps_at_a_time)
        for first in numbers[::part]:
            some = numbers[first : first + part]
            backend.run_steps(step, some, [learning_rate] * len(some))
            for listener in listeners:
                listener.on_progress(self, batches.slices[some[-1]].stop)
        self._orders.draw_ahead()  # while the device is at work
        sums = backend.xp.stack(
            [backend.total(x) for x in (step.losses, step.correct, self.model.parameters.data)]
        )
        loss, correct, parameter_sum = backend.to_numpy(sums).tolist()
        seconds = time.perf_counter() - start

        if not (math.isfinite(loss) and math.isfinite(parameter_sum)):
            return None
        validation, layers = self._watcher.after_epoch(self._snapshot[0], self.epoch + 1)
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
            samples_per_second=batches.samples / seconds,
            layers=layers,
        )

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
        """Go on from a saved state.

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
