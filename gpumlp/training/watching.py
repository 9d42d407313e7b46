"""What the trainer does after an epoch: validate, and look at the layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backends import Array
from ..data.dataset import ArrayBatches
from ..diagnostics import LayerStatistics, Probe, Setting
from ..diagnostics.statistics import is_due, watched
from ..nn.network import MLP, Evaluation, Workspace, evaluate_batches, evaluation, loss_and_hits
from ..nn.optimizers import SGD, Optimizer, Penalty
from ..nn.schedules import Constant, Schedule
from .splitting import WATCH_STREAM


class Watcher:
    """Validates a network after an epoch and takes the statistics of its layers, in one pass.

    The statistics are taken from the first chunk of the validation samples, whose activations are there anyway;
    without any, from some training samples.

    Args:
        model: the network.
        batches: of the training.
        validation: batches, or None.
        scratch: the optimizer's, overwritten.
        seed: of the training samples that are looked at.
        diagnostics: whether to take the statistics.
    """

    def __init__(
        self,
        model: MLP,
        batches: ArrayBatches,
        validation: ArrayBatches | None,
        scratch: Array,
        seed: int,
        *,
        diagnostics: bool,
    ) -> None:
        self.model = model
        self.validation = validation
        self._epoch_samples = batches.samples
        self._probe: Probe | None = None
        self._drawn: ArrayBatches | None = None
        if not diagnostics:
            return
        if validation is None:
            rng = np.random.default_rng([seed, WATCH_STREAM])
            self._drawn = drawn = batches.draw(watched(batches.samples), rng)
            self._workspace = Workspace(model, drawn.samples, pixels=drawn.pixels)
            self._losses = model.backend.xp.empty(drawn.samples, dtype=model.dtype)
            self._correct = model.backend.xp.empty(drawn.samples, dtype=bool)
        self._probe = Probe(model, (validation or drawn).batch_size, batches.samples, scratch)

    def after_epoch(
        self, before: Array, epoch: int
    ) -> tuple[Evaluation | None, tuple[LayerStatistics, ...] | None]:
        """The validation, if there are samples for it, and the statistics, if asked for and due.

        Waits for the device once.

        Args:
            before: the parameters at the start of the epoch.
            epoch: that has ended, counted from 1.
        """
        model, probe = self.model, self._probe
        if probe is None or not is_due(epoch, self._epoch_samples):
            return None if self.validation is None else evaluate_batches(model, self.validation), None
        if self.validation is None:
            self._look_at_drawn(probe, before)
            return None, probe.statistics(model.backend.to_numpy(probe.values).ravel().tolist())
        sums = loss_and_hits(model, self.validation, lambda seen: probe.look(seen, before))
        numbers = model.backend.xp.concatenate([sums, probe.values.reshape(-1)])
        loss, hits, *values = model.backend.to_numpy(numbers).tolist()
        return evaluation(loss, hits, self.validation.samples), probe.statistics(values)

    def _look_at_drawn(self, probe: Probe, before: Array) -> None:
        model, backend, workspace, drawn = self.model, self.model.backend, self._workspace, self._drawn
        assert drawn is not None
        labels = drawn.gather(drawn.slices[0], workspace.staging, workspace.inputs)
        model.forward_pass(workspace)
        backend.output_error(model.loss, workspace.logits, labels, self._losses, self._correct)
        probe.look(workspace, before)


def setting_of(
    sizes: Sequence[int],
    activation: str,
    optimizer: Optimizer,
    schedule: Schedule,
    penalty: Penalty,
    label_entropy: float | None,
) -> Setting:
    """How a network is trained, for the advice of the findings."""
    return Setting(
        classes=sizes[-1],
        activation=activation,
        hidden=tuple(sizes[1:-1]),
        optimizer=type(optimizer).__name__,
        momentum=optimizer.momentum if isinstance(optimizer, SGD) else 0.0,
        l2=penalty.l2,
        l1=penalty.l1,
        constant_rate=isinstance(schedule, Constant),
        label_entropy=label_entropy,
    )
