"""One training step: the place where the equations meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..backends import Array, FrozenStep, WholeStep
from ..data.dataset import ArrayBatches
from ..nn.network import MLP
from ..nn.optimizers import Accumulation, Optimizer, OptimizerState
from ..nn.penalties import Penalty
from ..nn.workspace import Workspace


class TrainingStep:
    """Forward, loss, backward and update of one mini-batch, in arrays that were made once.

    No activation, gradient or parameter array is allocated, and nothing waits for the device: the loss and the
    hit or miss of every sample are written where the epoch's sums are taken from.

    Where the device and the optimizer allow it, the weights' gradient never exists as an array: the product that
    makes it adds it where the optimizer wants it (see `Accumulation`). Where the device asks for it, a large batch
    goes through the network in parts, whose gradients are added up.

    Attributes:
        workspace: of a batch, or of a part of it.
        multiply_adds: of one pass through the layers, for a full workspace: the size of the work.
        sizes: of the layers, inputs first.
        rows: of a full workspace.
        dtype: of the layers.
        losses: ``(samples,)``, the loss of each sample, times its weight where there are weights, in this epoch's
            order, before its batch's update.
        correct: ``(samples,)`` bool, whether it was classified correctly.
    """

    def __init__(
        self, model: MLP, batches: ArrayBatches, optimizer: Optimizer, state: OptimizerState, penalty: Penalty
    ) -> None:
        self.model = model
        self.batches = batches
        self.optimizer = optimizer
        self.state = state
        self.penalty = penalty
        rows = min(batches.batch_size, model.backend.rows_at_a_time or batches.batch_size)
        self.sizes, self.rows, self.dtype = model.sizes, rows, model.dtype
        self.multiply_adds = rows * sum(layer.weight.size for layer in model.layers)
        self.workspace = Workspace(model, rows, pixels=batches.pixels)
        xp = model.backend.xp
        self.losses: Array = xp.empty(batches.samples, dtype=model.dtype)
        self.correct: Array = xp.empty(batches.samples, dtype=bool)
        # The parts of a batch all need the same weights, so nothing may be added to those before the last of them.
        self._may_accumulate = model.backend.accumulates_products and rows == batches.batch_size
        self._gradient_wanted = False
        self.learning_rate = optimizer.learning_rate

    @property
    def learning_rate(self) -> float:
        """Of the next steps, a Python float."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = value
        self._accumulation: Accumulation | None = None
        self._weight_targets: list[Array] = []
        if self._may_accumulate:
            parameters = self.model.parameters
            self._accumulation = self.optimizer.accumulation(parameters.data, self.state, self.penalty, value)
            if self._accumulation is not None:
                self._weight_targets = parameters.weight_views(self._accumulation.target)
                for gradient in parameters.weight_views(parameters.gradient):
                    gradient[...] = math.nan  # nobody shall take an old one for a gradient

    def keep_gradient(self) -> None:
        """From now on leave the whole gradient in ``model.parameters.gradient``, for those who look at it."""
        self._may_accumulate = False
        self._gradient_wanted = True
        self.learning_rate = self._learning_rate

    @contextmanager
    def gradient_kept(self) -> Iterator[None]:
        """Within the context, as `keep_gradient`; after it as before."""
        before = self._may_accumulate, self._gradient_wanted
        self.keep_gradient()
        try:
            yield
        finally:
            self._may_accumulate, self._gradient_wanted = before
            self.learning_rate = self._learning_rate

    def frozen(self) -> FrozenStep:
        """What a captured graph of this step holds on to."""
        model, workspace = self.model, self.workspace
        staging = [] if workspace.staging is None else [workspace.staging]
        layers = [
            array
            for layer in model.layers
            for array in (layer.weight, layer.bias, layer.weight_gradient, layer.bias_gradient)
        ]
        return FrozenStep(
            memory=[model.parameters.data, *self.state.buffers.values()],
            results=[self.losses, self.correct],
            others=[
                model.parameters.gradient,
                self.state.scratch,
                workspace.inputs,
                *staging,
                *workspace.deltas,
                *workspace.outputs,
                *layers,
                *self.batches.arrays(),
            ],
            rules=(
                *(self.optimizer, self.penalty, repr(model.loss)),
                *(repr(layer.activation) for layer in model.layers),
            ),
        )

    def whole(self) -> WholeStep:
        """What this step is made of, for a backend that computes it in a way of its own."""
        model, parameters = self.model, self.model.parameters
        images, order, targets, *_ = self.batches.arrays()
        return WholeStep(
            parameters=parameters.views(parameters.data),
            gradient=parameters.views(parameters.gradient),
            buffers={name: parameters.views(buffer) for name, buffer in self.state.buffers.items()},
            images=images,
            order=order,
            targets=targets,
            weights=self.batches.weights,
            losses=self.losses,
            correct=self.correct,
            activations=[layer.activation for layer in model.layers],
            loss=model.loss,
            optimizer=self.optimizer,
            penalty=self.penalty,
            batch_size=self.batches.batch_size,
            gradient_wanted=self._gradient_wanted,
        )

    def __call__(self, batch: slice) -> None:
        backend, parameters = self.model.backend, self.model.parameters
        if batch.stop - batch.start > self.workspace.batch_size:
            self._gradient_in_parts(batch)
        elif self._accumulation is None:
            self._gradient(batch)
        else:
            self._gradient(batch, self._weight_targets, self._accumulation.scale, self._accumulation.keep)
        backend.update(
            self.optimizer,
            self.penalty,
            parameters.data,
            parameters.gradient,
            parameters.weights,
            self.state,
            self._learning_rate,
            self._accumulation is not None,
        )

    def _gradient(
        self,
        rows: slice,
        weight_targets: Sequence[Array] = (),
        scale: float = 1.0,
        keep: float = 0.0,
        share: float = 1.0,
    ) -> None:
        """The gradient of the mean loss of some rows of the epoch's order, times `share`."""
        model, backend, workspace = self.model, self.model.backend, self.workspace.rows(rows.stop - rows.start)
        targets = self.batches.gather(rows, workspace.staging, workspace.inputs)
        model.forward_pass(workspace)
        losses, correct = self.losses[rows], self.correct[rows]
        model.loss.output_error(backend, workspace.logits, targets, losses, correct)
        if self.batches.weights is not None:
            backend.weigh(workspace.logits, losses, self.batches.weights[rows])
        if share != 1:
            backend.xp.multiply(workspace.logits, share, out=workspace.logits)
        model.backward_pass(workspace, weight_targets, scale, keep)

    def _gradient_in_parts(self, batch: slice) -> None:
        """The gradient of a batch that is larger than the workspace: the sum over its parts."""
        xp, parameters, samples = self.model.backend.xp, self.model.parameters, batch.stop - batch.start
        weights = parameters.weight_views(parameters.gradient)
        biases = parameters.gradient[parameters.weights.stop :]  # overwritten by each part
        bias_sums = self.state.scratch[parameters.weights.stop :]
        bias_sums.fill(0)
        for start in range(batch.start, batch.stop, self.workspace.batch_size):
            part = slice(start, min(start + self.workspace.batch_size, batch.stop))
            keep = 0.0 if start == batch.start else 1.0
            self._gradient(part, weights, keep=keep, share=(part.stop - part.start) / samples)
            xp.add(bias_sums, biases, out=bias_sums)
        xp.copyto(biases, bias_sums)
