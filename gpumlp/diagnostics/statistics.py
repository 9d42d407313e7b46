"""Statistics of each layer, measured after an epoch without a change to training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..backends import Accumulation, Array, Backend
from ..data.dataset import ArrayBatches
from ..nn.activations import Activation, ReLU, Sigmoid, Tanh
from ..nn.layers import Dense
from ..nn.metrics import new_scores
from ..nn.network import CHUNK, MLP, Workspace
from ..training.batches import WATCH_STREAM
from ..training.history import ClassCounts, LayerStatistics
from ..training.trainer import Callback, Trainer

# What is measured of each layer: squares of norms, counts, sums.
ROWS = ("gradient", "change", "weight", "dead", "saturated", "input", "mean", "square")
SATURATED = 0.99  # |a| of tanh, |2 a - 1| of sigmoid: the slope is then below 2 % of its largest
LEAST_ROWS, MOST_ROWS = 16, 128  # samples that the gradient is taken from
ROWS_SHARE = 100  # one of this many samples of an epoch: a hundredth of its work
WATCHED = 256  # samples: with fewer, healthy units are taken for dead ones
COUNTED = 10_000  # training samples whose predictions are counted, if there is no validation
# Measuring takes the time of 170 to 400 samples of a small network on a CPU. On a GPU it takes some 30 launches,
# which the host makes for each of many networks.
SAMPLES_BETWEEN, SAMPLES_BETWEEN_ON_GPU, MOST_EPOCHS_BETWEEN = 5000, 50_000, 5


class LayerWatch(Callback):
    """Measures the layers of a network after an epoch, without a change to the results of training.

    At the end it counts how often each class is predicted, for all validation samples or some training samples.

    The statistics are taken from some validation samples; without validation, from some training samples.

    Args:
        trainer: the one that calls it.
    """

    def __init__(self, trainer: Trainer) -> None:
        model, batches, validation = trainer.model, trainer.batches, trainer.validation_batches
        source = batches if validation is None else validation
        rng = np.random.default_rng([trainer.seed, WATCH_STREAM])
        with model.backend.activate():
            self._sample = Sample(model, source.draw(min(source.samples, WATCHED), rng))
            scratch = trainer.optimizer_state.scratch
            self.probe = Probe(model, self._sample.samples, batches.samples, scratch, trainer.trained)

    def on_measure(self, trainer: Trainer, before: Array) -> Array | None:
        if not is_due(trainer.epoch + 1, trainer.batches.samples, trainer.model.backend):
            return None
        self.probe.look(self._sample.forward(), before)
        return self.probe.values

    def on_measured(self, trainer: Trainer, values: list[float]) -> tuple[LayerStatistics, ...]:
        return self.probe.statistics(values)

    def on_train_end(self, trainer: Trainer) -> None:
        if not trainer.epoch or trainer.model.loss.task != "classes":
            return
        kind, batches = "validation", trainer.validation_batches
        if batches is None:
            rng = np.random.default_rng([trainer.seed, WATCH_STREAM])
            kind, rows = "training", np.sort(rng.permutation(trainer.batches.rows)[:COUNTED])
            batches = trainer.batches.select(rows, CHUNK)
        trainer.history.classes = count_classes(trainer.model, batches, kind)


class Sample:
    """Some samples, for a forward pass that is made for the statistics alone."""

    def __init__(self, model: MLP, batches: ArrayBatches) -> None:
        self.model, self.samples, self._batches = model, batches.samples, batches
        self._workspace = Workspace(model, batches.samples, pixels=batches.pixels)
        xp, shape = model.backend.xp, (batches.samples, model.sizes[-1])
        self._losses = xp.empty(batches.samples, dtype=model.dtype)
        self._scores = new_scores(xp, model.loss.task, *shape, model.dtype)

    @cached_property
    def _targets(self) -> Array:  # gathered with the samples, once
        workspace, batches = self._workspace, self._batches
        return batches.gather(batches.slices[0], workspace.staging, workspace.inputs)

    def forward(self) -> Workspace:
        """Activations, and the error term of the loss in the logits."""
        model, workspace, targets = self.model, self._workspace, self._targets
        model.forward_pass(workspace)
        model.backend.output_error(model.loss, workspace.logits, targets, self._losses, self._scores)
        return workspace


def count_classes(model: MLP, batches: ArrayBatches, kind: str) -> ClassCounts:
    """How often each class occurs and is predicted. Waits for the device.

    Args:
        model: a classifier.
        batches: on its device.
        kind: of these samples, ``"validation"`` or ``"training"``.
    """
    backend, workspace = model.backend, Workspace(model, batches.batch_size, pixels=batches.pixels)
    logits = backend.xp.empty((batches.samples, model.sizes[-1]), dtype=model.dtype)
    for batch in batches.slices:
        part = workspace.rows(batch.stop - batch.start)
        batches.gather(batch, part.staging, part.inputs)
        model.forward_pass(part)
        logits[batch] = part.logits
    # On the host, because CuPy compiles each reduction for seconds.
    true, predicted = backend.to_numpy(batches.targets), backend.to_numpy(logits).argmax(axis=1)
    classes = model.sizes[-1]
    counts = [np.bincount(values, minlength=classes) for values in (true, predicted, true[true == predicted])]
    samples, times, correct = (tuple(count.tolist()) for count in counts)
    names = range(classes) if model.class_names is None else model.class_names
    return ClassCounts(kind, samples, times, correct, tuple(map(str, names)))


class Probe:
    """Takes the statistics of a network's layers from a batch that was just evaluated.

    It works in arrays of its own and in the optimizer's scratch: weights, optimizer state, gradients and random
    streams keep every bit. Nothing waits for the device: the numbers stay on it until the caller reads `values`.

    Args:
        model: the network.
        samples: of the batch that `look` will see.
        epoch_samples: in an epoch; decides from how many samples the gradient is taken.
        scratch: shaped as the parameters, overwritten.
        trained: the network that the steps change, if not `model` itself.
    """

    def __init__(self, model: MLP, samples: int, epoch_samples: int, scratch: Array, trained: MLP) -> None:
        self.model, self._trained = model, trained.parameters
        self.samples = samples
        self.rows = min(samples, max(LEAST_ROWS, min(MOST_ROWS, epoch_samples // ROWS_SHARE)))
        parameters, xp = model.parameters, model.backend.xp
        self._workspace = Workspace(model, self.rows, pixels=False)
        self._weights = [view.reshape(-1) for view in trained.dense_weights(self._trained.data)]
        self._scratch = scratch
        self._inputs_known = False
        # In inference, dropout has the arrays of the layer below.
        self._caches = [
            cache
            for layer, cache in zip(model.layers, self._workspace.caches, strict=True)
            if isinstance(layer, Dense)
        ]
        self._deviations = [cache.delta.reshape(-1) for cache in self._caches[:-1]]
        self._targets = [Accumulation(view) for view in model.dense_weights(scratch)]
        self._flat_targets = [target.out.reshape(-1) for target in self._targets]
        # What the backward pass overwrites: of dense layers the gradients of the biases, of others all.
        others = len(self._targets) < sum(len(shape) > 1 for shape in parameters.shapes.values())
        self._overwritten = parameters.gradient[0 if others else parameters.weights.stop :]
        self._kept = xp.empty_like(self._overwritten)
        self.values: Array = xp.zeros((len(ROWS), len(model.dense_layers)), dtype="float64")
        self._rows = dict(zip(ROWS, self.values, strict=True))

    def look(self, seen: Workspace, before: Array) -> None:
        """Take the statistics.

        Args:
            seen: after a forward pass over the batch and its loss; read only.
            before: ``(size,)``, the parameters that the steps change at the start of the epoch.
        """
        model, backend, row = self.model, self.model.backend, self._rows
        xp = backend.xp
        own = self._workspace
        for cache, source in zip(own.caches[:-1], seen.caches[:-1], strict=True):
            xp.copyto(cache.output, source.output[: self.rows])
            if cache.saved is not None:
                xp.copyto(cache.saved, source.saved[: self.rows])
        for index, layer in enumerate(model.dense_layers[:-1]):
            outputs, free, rest = self._caches[index].output, self._caches[index].delta, self._deviations[index]
            mean = backend.totals(outputs)[0] / outputs.size
            row["mean"][index] = mean
            xp.subtract(outputs, mean.astype(outputs.dtype), out=free)  # until the backward pass
            row["square"][index] = xp.vdot(rest, rest)
            if isinstance(layer.activation, ReLU):
                largest = xp.max(seen.caches[model.layers.index(layer)].output, axis=0)
                row["dead"][index] = backend.totals(xp.less_equal(largest, 0))[0]
            elif can_saturate(layer.activation):
                xp.copyto(free, outputs)
                row["saturated"][index] = backend.totals(saturated_outputs(xp, layer.activation, free))[0]
        xp.copyto(own.inputs, seen.inputs[: self.rows])
        if not self._inputs_known:  # they are the same after every epoch
            row["input"][0] = xp.maximum(xp.max(own.inputs), xp.abs(xp.min(own.inputs)))
            self._inputs_known = True
        # The loss has left the error term of a mean over the whole batch.
        xp.multiply(seen.logits[: self.rows], self.samples / self.rows, out=own.logits)

        xp.copyto(self._kept, self._overwritten)
        model.backward_pass(own, self._targets)
        xp.copyto(self._overwritten, self._kept)
        for index, gradient in enumerate(self._flat_targets):
            row["gradient"][index] = xp.vdot(gradient, gradient)
        weights = self._trained.weights
        xp.subtract(self._trained.data[weights], before[weights], out=self._scratch[weights])
        for index, (change, weight) in enumerate(zip(self._flat_targets, self._weights, strict=True)):
            row["change"][index] = xp.vdot(change, change)
            row["weight"][index] = xp.vdot(weight, weight)

    def statistics(self, values: Sequence[float]) -> tuple[LayerStatistics, ...]:
        """The `values`, flattened and read by the host, as statistics of each layer."""
        layers = self.model.dense_layers
        found = dict(zip(ROWS, np.reshape(values, (len(ROWS), len(layers))).tolist(), strict=True))
        result = []
        for index, layer in enumerate(layers):
            of = {name: row[index] for name, row in found.items()}
            count = layer.out_features * self.rows
            last, saturates = index == len(layers) - 1, can_saturate(layer.activation)
            mean, deviation = (None, None) if last else _mean_and_deviation(of["mean"], of["square"] / count)
            result.append(
                LayerStatistics(
                    gradient_norm=_root(of["gradient"]),
                    update_ratio=_root(of["change"] / of["weight"] if of["weight"] else 0.0),
                    weight_norm=_root(of["weight"]),
                    dead=of["dead"] / layer.out_features if isinstance(layer.activation, ReLU) else None,
                    saturated=of["saturated"] / count if saturates else None,
                    samples=self.samples,
                    gradient_samples=self.rows,
                    largest_input=of["input"] if index == 0 and math.isfinite(of["input"]) else None,
                    mean=mean,
                    deviation=deviation,
                )
            )
        return tuple(result)


def is_due(epoch: int, epoch_samples: int, backend: Backend) -> bool:
    """Are the layers measured after this epoch, counted from 1?

    After the first one, and after every one unless epochs are short: then there are 5,000 samples between two
    measurements (50,000 on a GPU), but at most 5 epochs.
    """
    between = SAMPLES_BETWEEN_ON_GPU if backend.asynchronous else SAMPLES_BETWEEN
    every = min(math.ceil(between / epoch_samples), MOST_EPOCHS_BETWEEN)
    return epoch == 1 or epoch % every == 0


def _root(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None


def _mean_and_deviation(mean: float, variance: float) -> tuple[float | None, float | None]:
    return (mean, math.sqrt(variance)) if math.isfinite(mean) and math.isfinite(variance) else (None, None)


def can_saturate(activation: Activation) -> bool:
    """Does the activation have slopes near 0 on both sides?"""
    return isinstance(activation, (Tanh, Sigmoid))


def saturated_outputs(xp: Any, activation: Activation, outputs: Array) -> Array:
    """Mask of the outputs where the slope is below 2 % of its largest.

    Args:
        xp: the module of the array.
        activation: that can saturate.
        outputs: of any shape and floating dtype, overwritten.

    Returns:
        bool, of the same shape.
    """
    if isinstance(activation, Sigmoid):  # from (0, 1) to (-1, 1)
        xp.multiply(outputs, 2, out=outputs)
        xp.subtract(outputs, 1, out=outputs)
    xp.abs(outputs, out=outputs)
    return xp.greater(outputs, SATURATED)
