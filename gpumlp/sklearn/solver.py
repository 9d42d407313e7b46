"""The solvers of the estimators: scikit-learn's stochastic algorithms, run as gpumlp's training steps.

They differ from `gpumlp.Trainer` so that one ``random_state`` reproduces scikit-learn's run: initial weights and
batch orders are drawn as scikit-learn draws them; the penalty of a batch is ``alpha / 2 sum W^2`` divided by the
sum of its sample weights (without weights, by the number of its samples) and is part of the reported loss; Adam's
epsilon is not bias-corrected; and the velocity of SGD, which in scikit-learn contains the learning rate, is
rescaled when the learning rate changes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from ..backends import Array, Backend, Copies, Copy, HostArray, Request, StepRun, Totals
from ..data.dataset import ArrayBatches
from ..nn.metrics import METRICS, Evaluation
from ..nn.network import MLP, Workspace, evaluation_of
from ..nn.optimizers import SGD, Adam, Optimizer, OptimizerState, Penalty
from ..training.step import EvaluationStep, TrainingStep
from .together import run

ROWS = 256  # samples of a forward pass outside training
PARTS = 256  # of the sum of squares; the persistent kernel does not support a network on more multiprocessors


def draw_tensors(sizes: list[int], activation: str, random: np.random.RandomState) -> dict[str, HostArray]:
    """Initial weights and biases as scikit-learn draws them, from the same random numbers.

    Uniform between -b and b with b^2 = 6 / (in + out), or 2 / (in + out) for the logistic sigmoid.
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010.
    """
    factor = 2.0 if activation == "sigmoid" else 6.0
    tensors: dict[str, HostArray] = {}
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = math.sqrt(factor / (fan_in + fan_out))
        tensors[f"layers.{index}.weight"] = random.uniform(-bound, bound, (fan_in, fan_out))
        tensors[f"layers.{index}.bias"] = random.uniform(-bound, bound, fan_out)
    return tensors


def write_rows(source: Array, rows: slice | HostArray, out: Array, backend: Backend) -> None:
    """Write ``source[rows]`` into `out`, on the device; a sparse source is on the host, and becomes dense here."""
    if not issparse(source):
        out[...] = source[rows]
    elif isinstance(out, np.ndarray):
        source[rows].toarray(out=out)
    else:
        backend.xp.copyto(out, backend.asarray(source[rows].toarray()))


def outputs(network: MLP, source: Array, dtype: Any = None) -> Array:
    """The network's outputs ``(samples, outputs)`` before softmax or sigmoid, on its device.

    A sample's outputs do not depend on the samples that come with it, because all passes have the same shape.
    They are bit-identical if the BLAS computes a row in the same way at every place of a matrix, and equal to
    rounding otherwise (the AVX2 kernels of OpenBLAS).

    Args:
        network: on the device of `source`.
        source: ``(samples, features)`` of the network's dtype; or sparse, of that dtype, on the host.
        dtype: of the result; the network's by default.
    """
    backend = network.backend
    xp, samples = backend.xp, source.shape[0]
    with backend.activate():
        result = xp.empty((samples, network.sizes[-1]), dtype=dtype or network.dtype)
        workspace = Workspace(network, ROWS, pixels=False)
        workspace.inputs[...] = 0
        for start in range(0, samples, ROWS):
            stop = min(start + ROWS, samples)
            write_rows(source, slice(start, stop), workspace.inputs[: stop - start], backend)
            network.forward_pass(workspace)
            result[start:stop] = workspace.logits[: stop - start]
    return result


class Solver:
    """A network with an optimizer and its state, which last from one call of `partial_fit` to the next.

    Attributes:
        network: trained in place.
        learning_rate: of the next epoch.
    """

    def __init__(self, network: MLP, optimizer: Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        with network.backend.activate():
            self.state: OptimizerState = optimizer.init(network.parameters.data)
        self.learning_rate = optimizer.learning_rate

    def change_learning_rate(self, value: float) -> None:
        """Set the learning rate of the next epochs."""
        velocity = self.state.buffers.get("velocity")
        if velocity is not None and value != self.learning_rate:
            # scikit-learn's velocity is -eta v and does not change, so v is rescaled.
            with self.network.backend.activate():
                self.network.backend.xp.multiply(velocity, self.learning_rate / value, out=velocity)
        self.learning_rate = value

    def to_host(self) -> dict[str, Any]:
        """Optimizer and state on the host, without the network."""
        backend = self.network.backend
        buffers = {name: backend.to_numpy(buffer).copy() for name, buffer in self.state.buffers.items()}
        return {
            "optimizer": self.optimizer,
            "buffers": buffers,
            "steps": self.state.steps,
            "learning_rate": self.learning_rate,
        }

    @classmethod
    def from_host(cls, network: MLP, saved: dict[str, Any]) -> Solver:
        """Continue from what `to_host` returned."""
        solver = cls(network, saved["optimizer"])
        backend = network.backend
        with backend.activate():
            for name, buffer in solver.state.buffers.items():
                backend.xp.copyto(buffer, backend.asarray(saved["buffers"][name]))
        solver.state.steps, solver.learning_rate = saved["steps"], saved["learning_rate"]
        return solver


class EpochResult(NamedTuple):
    """What an epoch has given.

    Attributes:
        loss, penalty: means over the samples, each taken before the step of its batch.
        validation: of the validation set, or None.
    """

    loss: float
    penalty: float
    validation: Evaluation | None


class Epochs:
    """The epochs of one call of `fit` or `partial_fit`.

    Args:
        solver: network and optimizer.
        batches: on the network's device.
        alpha: L2 penalty.
    """

    def __init__(self, solver: Solver, batches: ArrayBatches, alpha: float) -> None:
        self.solver, self.batches, self._alpha = solver, batches, alpha
        self._order = np.arange(batches.samples)
        backend, count, size = solver.network.backend, len(batches.slices), batches.batch_size
        arguments = solver.network, batches, solver.optimizer, solver.state, Penalty()
        weights, samples = batches.weights, batches.samples
        with backend.activate():
            # Sample weights change the penalty from batch to batch, and a batch without weight is skipped.
            varies = weights is not None and (alpha > 0 or not backend.to_numpy(weights).all())
            # One sum for each batch; or parts of one sum, since each block of a kernel adds to a part of its own.
            self._squares = backend.xp.zeros(count if varies else PARTS, dtype="float64") if alpha > 0 else None
            if varies:
                self._step: TrainingStep = PenalisedStep(*arguments, self._penalties(), self._squares)
            else:
                self._step = TrainingStep(*arguments)
                self._step.squares = self._squares
        # Batches with the same penalty: only that of a smaller last batch differs.
        full = samples // size if alpha > 0 and not varies else count
        self._parts = [(self._step, range(full))] if full else []
        self._step.penalty = Penalty(l2=alpha / size)
        if full < count:
            last = copy.copy(self._step)  # another step, since a device prepares each for its rules
            last.penalty = Penalty(l2=alpha / (samples % size))
            self._parts.append((last, range(full, count)))

    def _penalties(self) -> list[Penalty | None]:
        """The penalty of each batch; None for a batch whose samples all have weight 0."""
        made: dict[float, Penalty | None] = {0.0: None}
        for total in self.batches.batch_weights:
            if total not in made:
                made[total] = Penalty(l2=self._alpha / total)
        return [made[total] for total in self.batches.batch_weights]

    def run(self, random: np.random.RandomState | None, watch: Validation | None) -> EpochResult:
        """Train for one epoch, and evaluate a validation set, if there is one; waits for the device.

        Args:
            random: draws the order of the samples; None keeps the current order.
            watch: the validation set.
        """

        def epoch() -> Generator[Request, Any, EpochResult]:
            trained = yield from self._train(random)
            return EpochResult(*trained, None if watch is None else (yield from watch.evaluate(self._step)))

        return run(self.solver.network.backend, epoch())

    def _train(self, random: np.random.RandomState | None) -> Generator[Request, Any, tuple[float, float]]:
        """The requests of an epoch; returns mean loss and mean penalty."""
        solver, batches, step = self.solver, self.batches, self._step
        if random is not None:
            drawn = np.arange(len(self._order))
            random.shuffle(drawn)
            self._order = self._order[drawn]
            yield Copies(step, batches.reordering(batches.rows[self._order]))
            if isinstance(step, PenalisedStep):
                step.penalties = self._penalties()
        if self._squares is not None:
            self._squares.fill(0)
        for one, part in self._parts:
            yield StepRun(one, part, [solver.learning_rate] * len(part))
        total, *squares = yield Totals([step.losses], self._squares)
        # A batch has alpha / 2 |W|^2, divided by the sum of its weights and, in this mean, times its samples.
        value = sum(squares)
        if isinstance(step, PenalisedStep) and squares:
            value = sum(
                square * (batch.stop - batch.start) / weight
                for square, batch, weight in zip(squares, batches.slices, batches.batch_weights, strict=True)
                if weight > 0
            )
        return total / batches.samples, self._alpha / 2 * value / batches.samples


class ConvertedBatches(ArrayBatches):
    """Mini-batches whose rows are converted as a batch is gathered.

    Of a CSR matrix on the host, whose rows become dense; or, on the CPU, of a memory map of another dtype than the
    network's.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._order, self.pixels = self.rows, False

    def reordering(self, rows: HostArray) -> list[Copy]:
        self._order = rows
        return super().reordering(rows)

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        write_rows(self.images, self._order[batch], out, self._backend)
        return self.targets[batch]


class PenalisedStep(TrainingStep):
    """A training step with a separate penalty for each batch.

    Args:
        penalties: of each batch; None skips the batch.
        sums: ``(batches,)`` float64, where each step adds the sum of the squared weights before it, or None.
    """

    def __init__(
        self,
        network: MLP,
        batches: ArrayBatches,
        optimizer: Optimizer,
        state: OptimizerState,
        penalty: Penalty,
        penalties: list[Penalty | None],
        sums: Array | None,
    ) -> None:
        super().__init__(network, batches, optimizer, state, penalty)
        self.penalties, self._sums = penalties, sums

    def __call__(self, batch: slice, learning_rate: float) -> None:
        index = batch.start // self.batch_size
        penalty = self.penalties[index]
        if penalty is None:  # all weights in this batch are 0
            self.losses[batch] = 0
            return
        if self._sums is not None:
            self.squares = self._sums[index : index + 1]
        self.penalty = penalty
        super().__call__(batch, learning_rate)


class Validation:
    """A validation set.

    Args:
        batches: of its samples; their order never changes.
        encoded: class numbers ``(n,)``, or labels or numbers ``(n, outputs)``, on the host.
        weights: ``(n,)`` on the host, or None.
        estimator: computes scores with weights, and has the number of terms of a loss.
    """

    def __init__(
        self, batches: ArrayBatches, encoded: HostArray, weights: HostArray | None, estimator: Any
    ) -> None:
        self._batches, self._weights, self._estimator = batches, weights, estimator
        self._step: EvaluationStep | None = None
        if weights is not None:
            images, rows = batches.images, batches.rows
            self._images = images[rows if issparse(images) else batches.order]
            self._encoded, self._weights = encoded[rows], weights[rows]

    def evaluate(self, trained: TrainingStep) -> Generator[Request, Any, Evaluation]:
        """The requests by which the network of a step is evaluated."""
        if self._step is None:
            self._step = EvaluationStep(trained.model, self._batches, trained)
        yield from self._step.runs()
        return evaluation_of(trained.model, self._batches, (yield self._step.totals()))

    def scores(self, network: MLP, found: Evaluation) -> tuple[float, float]:
        """Mean loss without the penalty, and score; both NaN if the loss is not finite."""
        if not math.isfinite(found.loss):
            return math.nan, math.nan
        score = found.metrics()[METRICS[network.loss.task][0]]
        if self._weights is not None:
            predictions = network.backend.to_numpy(network.loss.predictions(outputs(network, self._images)))
            predictions = predictions.reshape(self._encoded.shape)
            score = self._estimator._weighted_score(self._encoded, predictions, self._weights)
        return found.loss / self._estimator._loss_terms, score


def make_optimizer(estimator: Any) -> Optimizer:
    """The optimizer that an estimator's parameters describe."""
    if estimator.solver == "adam":
        return Adam(
            estimator.learning_rate_init,
            beta1=estimator.beta_1,
            beta2=estimator.beta_2,
            epsilon=estimator.epsilon,
            correct_epsilon=False,
        )
    nesterov = bool(estimator.nesterovs_momentum and estimator.momentum > 0)
    return SGD(estimator.learning_rate_init, momentum=estimator.momentum, nesterov=nesterov)
