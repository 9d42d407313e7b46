"""One training step: forward pass, loss, backward pass and update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from ..backends import DROPOUT, Accumulation, Array, Draws, StepRun, Totals
from ..data.blocks import part_of
from ..data.dataset import ArrayBatches
from ..nn.layers import Dense, Dropout
from ..nn.metrics import new_scores
from ..nn.network import MLP, Workspace, evaluation_totals
from ..nn.optimizers import Optimizer, OptimizerState, Penalty
from .group import ALONE, Group, on_host
from .shards import PairwiseSum


class _Step:
    """What the steps of a network on batches have in common.

    Args:
        model, batches: on the same device.
    """

    def __init__(self, model: MLP, batches: ArrayBatches) -> None:
        self.model, self.batches, self.loss = model, batches, model.loss
        xp = model.backend.xp
        self.losses: Array = xp.empty(batches.samples, dtype=model.dtype)
        self.scores: Array = new_scores(xp, model.loss.task, batches.samples, model.sizes[-1], model.dtype)

    layers = property(attrgetter("model.layers"))
    parameters = property(attrgetter("model.parameters.data"))
    gradient = property(attrgetter("model.parameters.gradient"))
    weights = property(attrgetter("model.parameters.weights"))
    images = property(attrgetter("batches.images"))
    order = property(attrgetter("batches.order"))
    numbers = property(attrgetter("batches.numbers"))
    targets = property(attrgetter("batches.targets"))
    slices = property(attrgetter("batches.slices"))
    batch_size = property(attrgetter("batches.batch_size"))


class TrainingStep(_Step):
    """Forward pass, loss, backward pass and update of one mini-batch, in preallocated arrays.

    No activation, gradient or parameter array is allocated, and nothing waits for the device. The step implements
    `gpumlp.backends.Step`, which ``Backend.run_steps`` runs.

    If the device and the optimizer support it, the weights' gradient is not stored: the matrix product adds it
    directly to the velocity or the weights (see `Accumulation`). If the batch is larger than
    ``Backend.rows_at_a_time``, it is processed in parts, and their gradients are summed. With more than one shard,
    a batch is cut into that many parts, whose gradients are summed pairwise in a fixed order.

    Args:
        model: trained in place.
        batches: on its device.
        optimizer, state, penalty: of the update.
        clip_norm: the largest norm of the gradient, see ``Backend.clip_gradient``; None for no limit.
        max_norm: the largest norm of the incoming weights of a hidden unit, see ``Backend.limit_norms``; None for
            no limit.
        average: ``(size,)``, the moving average of the parameters, overwritten by each step; None for none.
        decay: of the average, see ``Backend.average``.
        seed: of the random numbers of the layers.
        shards: parts of a batch, of which some of a smaller batch may be empty.
        group: the processes that share them evenly; each computes the gradients of consecutive shards.

    Attributes:
        workspace: for a batch, or for a part of it.
        multiply_adds: of one forward pass with a full workspace.
        losses: ``(samples,)``, the loss of each sample before its batch's update, in this epoch's order; with
            weights times its weight, which has a mean of 1 in each batch.
        scores: ``(samples, ...)``, in this epoch's order, see `gpumlp.nn.losses.Loss.output_error`.
        gradient_wanted: see `keep_gradient`.
        squares: ``(n,)`` float64, see `gpumlp.backends.Step`; None unless it is set.
    """

    def __init__(
        self,
        model: MLP,
        batches: ArrayBatches,
        optimizer: Optimizer,
        state: OptimizerState,
        penalty: Penalty,
        *,
        clip_norm: float | None = None,
        max_norm: float | None = None,
        average: Array | None = None,
        decay: float = 0.0,
        seed: int = 0,
        shards: int = 1,
        group: Group = ALONE,
    ) -> None:
        super().__init__(model, batches)
        self.optimizer = optimizer
        self.state = state
        self.penalty = penalty
        self.clip_norm, self.max_norm = clip_norm, max_norm
        self.average, self.decay = average, decay
        state.weights = model.parameters.weights
        known = all(type(layer) in (Dense, Dropout) for layer in model.layers)
        most = -(-batches.batch_size // shards)
        # A layer of the user's may need the whole batch.
        rows = min(most, (model.backend.rows_at_a_time if known else None) or most)
        self.multiply_adds = rows * sum(layer.weight.size for layer in model.dense_layers)
        self.workspace = Workspace(model, rows, pixels=batches.pixels, training=True)
        # Dense layers need no random numbers.
        self.draws = None if model.all_dense else Draws(seed, DROPOUT, 0, 0, 0)
        # All parts of a batch use the same weights, so these must not change before the last part.
        self._in_parts = rows < most
        self._may_accumulate = not self._in_parts and clip_norm is None and known and shards == 1
        self.gradient_wanted = False
        self.shards, self.group = shards, group
        if batches.warp is not None:
            parts = [part for batch in batches.slices for part in self._parts(batch)]
            batches.prepare_ahead(parts, self.workspace.inputs)
        self._kept: list[Array] = []  # sums of the gradients of shards, see `PairwiseSum`
        self.squares: Array | None = None
        weights = [layer.weight for layer in model.dense_layers[:-1]]
        self._hidden_weights = [(w, state.scratch[: w.size].reshape(w.shape)) for w in weights]
        # The rules that `_weight_gradients` applies to.
        self._accumulated: tuple[float, Optimizer, Penalty] | None = None
        self._weight_gradients: list[Accumulation] | None = None
        # The flat buffer that gradients are added to, and its views: a rate by step changes neither.
        self._viewed: Array | None = None
        self._views: list[Array] = []

    # -- The interface `gpumlp.backends.Step` --------------------------------------------------------------

    evaluates = None

    @property
    def same_rules(self) -> bool:
        """Whether all steps follow the same rules, by the built-in methods of network, layers and batches."""
        return (
            _has_methods_of(TrainingStep, self, "__call__", "_gradient")
            and _has_methods_of(MLP, self.model, "forward_pass", "backward_pass")
            and _has_methods_of(ArrayBatches, self.batches, "gather", "_gather")
        )

    sample_weights = property(attrgetter("batches.weights"))
    warp = property(attrgetter("batches.warp"))
    processes = property(attrgetter("group.size"))

    def arrays(self) -> list[Array]:
        """Every array that a step reads or writes."""
        found = [
            *(self.parameters, self.gradient, *self.state.buffers.values(), self.state.scratch, self.average),
            *(self.losses, self.scores, self.images, self.order, self.targets, self.sample_weights, self.squares),
            *(self.numbers, self.batches.epoch, *self.workspace.arrays()),
        ]
        return [array for array in found if array is not None]

    # -- The gradient as an array --------------------------------------------------------------------------

    def keep_gradient(self) -> None:
        """Store the whole gradient in ``model.parameters.gradient`` from the next step on."""
        self._may_accumulate = False
        self.gradient_wanted = True

    @contextmanager
    def gradient_kept(self) -> Iterator[None]:
        """Like `keep_gradient`, within the context only."""
        before = self._may_accumulate, self.gradient_wanted
        self.keep_gradient()
        try:
            yield
        finally:
            self._may_accumulate, self.gradient_wanted = before
            self._accumulated = self._weight_gradients = None

    # -- Shards --------------------------------------------------------------------------------------------

    def _own_shards(self) -> range:
        """Those that this process computes."""
        each = self.shards // self.group.size
        return range(self.group.rank * each, (self.group.rank + 1) * each)

    def _parts(self, batch: slice) -> list[slice]:
        """The rows of a batch that this process computes at a time, in order."""
        return [
            slice(start, min(start + self.workspace.batch_size, rows.stop))
            for rows in (part_of(batch, shard, self.shards) for shard in self._own_shards())
            for start in range(rows.start, rows.stop, self.workspace.batch_size)
        ]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A context in which this process computes all shards by itself, with the same results."""
        group, self.group = self.group, ALONE
        try:
            yield
        finally:
            self.group = group

    def in_any_process(self, flag: bool) -> bool:
        return self.group.any(flag)

    def clear_results(self) -> None:
        """Before an epoch of several processes: each writes the losses and scores of its own shards."""
        if self.group.size > 1:
            self.losses.fill(0)
            self.scores.fill(0)

    def merge_results(self) -> None:
        """After an epoch, complete `losses` and `scores` with those of the other processes."""
        if self.group.size > 1:
            on_host(self.model.backend, self.losses, self.group.merge)
            on_host(self.model.backend, self.scores, self.group.merge)

    # -- The step ------------------------------------------------------------------------------------------

    def __call__(self, batch: slice, learning_rate: float) -> None:
        """Train on a batch, one of `slices`, with `learning_rate`, a Python float."""
        backend, parameters = self.model.backend, self.model.parameters
        if batch.start == 0:
            self._accumulated = None  # arrays may have been replaced since the last epoch
        targets = self._accumulations(learning_rate) if self._may_accumulate else None
        captured = not isinstance(self.state.steps, int)  # a graph does not repeat what an epoch begins with
        if targets is not None and batch.start == 0 and not captured:
            for layer in self.model.dense_layers:
                layer.weight_gradient[...] = math.nan  # poison stale gradients
        if self.squares is not None:
            weights = parameters.weights
            backend.add_squares(parameters.data[weights], self.squares[:1], self.state.scratch[weights])
        if self.draws is not None:
            self.draws = self.draws._replace(step=self.state.steps)
        if self.shards > 1:
            self._gradient_in_shards(batch)
        elif self._in_parts and batch.stop - batch.start > self.workspace.batch_size:
            self._gradient_in_parts(batch, batch)
        else:
            self._gradient(batch, targets)
        scratch = self.state.scratch
        if self.clip_norm is not None:
            backend.clip_gradient(parameters.gradient, self.clip_norm, scratch)
        backend.update(
            self.optimizer,
            self.penalty,
            parameters.data,
            parameters.gradient,
            parameters.weights,
            self.state,
            learning_rate,
            targets is not None,
        )
        if self.max_norm is not None:
            for weight, free in self._hidden_weights:
                backend.limit_norms(weight, self.max_norm, free)
        if self.average is not None:
            backend.average(parameters.data, self.average, self.decay, scratch)

    def _accumulations(self, learning_rate: float) -> list[Accumulation] | None:
        """Where to add each layer's weight gradient; None if the optimizer needs it as an array."""
        known, optimizer, penalty = self._accumulated, self.optimizer, self.penalty
        if known is None or known[0] != learning_rate or known[1] is not optimizer or known[2] is not penalty:
            flat = None
            if self.model.backend.accumulates(optimizer, penalty):
                flat = optimizer.accumulation(self.parameters, self.state, penalty, learning_rate)
            if flat is not None and flat.out is not self._viewed:
                self._viewed, self._views = flat.out, self.model.dense_weights(flat.out)
            self._weight_gradients = flat and [Accumulation(view, flat.scale, flat.keep) for view in self._views]
            self._accumulated = learning_rate, optimizer, penalty
        return self._weight_gradients

    def _gradient(
        self,
        rows: slice,
        weight_gradients: Sequence[Accumulation] | None = None,
        share: float = 1.0,
        first: int = 0,
    ) -> None:
        """Compute the gradient of the mean loss over rows of the epoch's order, times `share`.

        `first` is the place of the first of them in its batch.
        """
        model, backend, workspace = self.model, self.model.backend, self.workspace.rows(rows.stop - rows.start)
        draws = self.draws if not first or self.draws is None else self.draws._replace(row=first)
        targets = self.batches.gather(rows, workspace.staging, workspace.inputs)
        model.forward_pass(workspace, draws)
        losses, scores = self.losses[rows], self.scores[rows]
        backend.output_error(self.loss, workspace.logits, targets, losses, scores)
        if self.batches.weights is not None:
            backend.weigh(workspace.logits, losses, self.batches.weights[rows])
        if share != 1:
            backend.xp.multiply(workspace.logits, share, out=workspace.logits)
        model.backward_pass(workspace, weight_gradients, draws)

    def _gradient_in_shards(self, batch: slice) -> None:
        """Compute the gradient of a batch as the sum over its shards."""
        xp, gradient, samples = self.model.backend.xp, self.gradient, batch.stop - batch.start
        sums, own = PairwiseSum(xp, self.shards), self._own_shards()
        for shard in own:
            rows = part_of(batch, shard, self.shards)
            count = rows.stop - rows.start
            if count > self.workspace.batch_size:
                self._gradient_in_parts(rows, batch)
            elif count:
                self._gradient(rows, share=count / samples, first=rows.start - batch.start)
            else:
                gradient.fill(0)
            start = sums.complete(gradient, shard, shard + 1)
            if shard < own[-1]:  # the next one overwrites the gradient
                depth = len(sums.pieces)
                if depth == len(self._kept):
                    self._kept.append(xp.empty_like(gradient))
                xp.copyto(self._kept[depth], gradient)
                sums.pieces.append((start, self._kept[depth]))
        self.group.sum([*sums.pieces, (start, gradient)], self.shards, gradient)

    def _gradient_in_parts(self, rows: slice, batch: slice) -> None:
        """Compute the gradient of rows of a batch that do not fit into the workspace, as the sum over parts."""
        xp, total, samples = self.model.backend.xp, self.state.scratch, batch.stop - batch.start
        total.fill(0)
        for start in range(rows.start, rows.stop, self.workspace.batch_size):
            part = slice(start, min(start + self.workspace.batch_size, rows.stop))
            self._gradient(part, share=(part.stop - part.start) / samples, first=start - batch.start)
            xp.add(total, self.gradient, out=total)
        xp.copyto(self.gradient, total)


class EvaluationStep(_Step):
    """The losses and scores of held-out samples; a `gpumlp.backends.Step` without an update.

    Args:
        model: the network.
        batches: on its device, in an order that does not change.
        evaluates: the step that trains the network.

    Attributes:
        losses: ``(samples,)``, without sample weights.
        scores: ``(samples, ...)``, see `gpumlp.nn.losses.Loss.output_error`.
    """

    optimizer: Any = None
    penalty: Any = None
    clip_norm: float | None = None
    max_norm: float | None = None
    squares: Array | None = None
    average, draws, warp, sample_weights = None, None, None, None
    gradient_wanted, decay, shards, processes, multiply_adds = False, 0.0, 1, 1, 0

    def __init__(self, model: MLP, batches: ArrayBatches, evaluates: TrainingStep) -> None:
        super().__init__(model, batches)
        self.evaluates, self.state = evaluates, SimpleNamespace(steps=0)

    @property
    def same_rules(self) -> bool:
        return _has_methods_of(MLP, self.model, "forward_pass") and _has_methods_of(
            ArrayBatches, self.batches, "gather", "_gather"
        )

    def arrays(self) -> list[Array]:
        return [self.parameters, self.losses, self.scores, self.images, self.order, self.targets]

    def in_any_process(self, flag: bool) -> bool:
        return flag

    @cached_property
    def _workspace(self) -> Workspace:  # a GPU may not need it
        return Workspace(self.model, self.batch_size, pixels=self.batches.pixels)

    def runs(self) -> Iterator[StepRun]:
        """Runs that evaluate all samples, each to be done before the next one is asked for."""
        for ready in self.batches.available(range(len(self.slices))):
            yield StepRun(self, ready, [0.0] * len(ready))

    def totals(self) -> Totals:
        """What is summed up for `gpumlp.nn.network.evaluation_of`, after these runs."""
        return evaluation_totals(self.model, self.batches, self.losses, self.scores)

    def __call__(self, batch: slice, learning_rate: float = 0.0) -> None:
        """Compute the losses and scores of a batch, one of `slices`."""
        part = self._workspace.rows(batch.stop - batch.start)
        targets = self.batches.gather(batch, part.staging, part.inputs)
        self.model.forward_pass(part)
        self.model.backend.output_error(self.loss, part.logits, targets, self.losses[batch], self.scores[batch])


def _has_methods_of(kind: type, instance: object, *methods: str) -> bool:
    """Whether these methods of an instance are those of the class, overridden neither by a subclass nor on it."""
    inherited = type(instance) is kind or all(
        getattr(type(instance), each) is getattr(kind, each) for each in methods
    )
    return inherited and vars(instance).keys().isdisjoint(methods)
