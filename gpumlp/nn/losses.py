"""Losses as functions of a network's outputs s, and the predictions that belong to each."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ..backends import Array, Backend, array_namespace, reference_backend
from ..words import shown, with_options
from .hyperparameters import number, require_in_place
from .metrics import METRICS, Task, new_scores
from .registry import Registry


class Loss:
    """Base class of losses. To add one, subclass and implement `output_error` and `predictions`; for classes, or
    where not every target is allowed, `check` too.

    A subclass that overrides `output_error` does not inherit `kernel`. To save networks with it, `register` it.

    Attributes:
        name: as in ``MLP(..., loss=name)``.
        kernel: the name by which a device recognizes the loss, with its `label_smoothing` if it has one, and
            selects its own implementation; None for array code.
        output: the function that maps outputs to predictions: ``"softmax"``, ``"sigmoid"``, ``"identity"`` or
            ``"exp"``.
        least_outputs: the minimum number of outputs of a network.
        task: what the targets are: ``"classes"``, class numbers ``(batch,)``; ``"labels"``, 0 or 1 for each
            output; or ``"numbers"``. The last two are floats ``(batch, outputs)``.
    """

    name: ClassVar[str]
    kernel: ClassVar[str | None] = None
    output: ClassVar[str] = "identity"
    least_outputs: ClassVar[int] = 1
    task: ClassVar[Task] = "numbers"

    def output_error(self, backend: Backend, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        """Compute the loss of each sample of a batch and the error term of the last layer.

        Args:
            backend: the device; ``backend.xp`` is its array library.
            outputs: ``(batch, outputs)`` s; overwritten with delta = dC/ds of the batch's mean loss C.
            targets: ``(batch,)`` int64 class numbers, or ``(batch, outputs)`` floats, as `task` says.
            losses: ``(batch,)``, overwritten with the loss of each sample.
            scores: overwritten with what the metrics of the task are computed from (`gpumlp.nn.metrics`): of
                classes ``(batch,)`` bool, whether the prediction is correct; of labels ``(batch, outputs)`` bool;
                of numbers ``(batch, outputs)``, the prediction minus the target.
        """
        raise NotImplementedError

    def check(self, outputs: Array, targets: Array) -> None:
        """Check that outputs and targets match.

        Raises:
            ValueError: a shape, a dtype or a target is not as expected.
        """
        if outputs.ndim != 2 or targets.shape != outputs.shape or len(targets) == 0:
            raise ValueError(
                "expected outputs and targets of one shape (batch, outputs), of at least one sample, got "
                f"{outputs.shape} and {targets.shape}"
            )
        if outputs.dtype.kind != "f" or targets.dtype != outputs.dtype:
            raise ValueError(
                f"expected float outputs and targets of one dtype, got {outputs.dtype} and {targets.dtype}"
            )

    def predictions(self, outputs: Array) -> Array:
        """The predictions for outputs ``(batch, outputs)``, as a new array."""
        raise NotImplementedError

    def probabilities(self, outputs: Array) -> Array:
        """The probability of each class or label, ``(batch, outputs)``, as a new array.

        Raises:
            ValueError: the loss does not define probabilities.
        """
        raise ValueError(f"the outputs of a network with the loss {self.name} are not probabilities")

    def __call__(self, outputs: Array, targets: Array) -> float:
        """The mean loss C as a Python float. Waits for the device.

        Args:
            outputs: ``(batch, outputs)``, float.
            targets: as for `output_error`.

        Raises:
            ValueError: shapes or dtypes do not match, or a target is out of range.
        """
        return float(self._evaluate(outputs, targets)[0].mean())

    def gradient(self, outputs: Array, targets: Array) -> Array:
        """dC/ds as a new ``(batch, outputs)`` array; arguments and errors as for `__call__`."""
        return self._evaluate(outputs, targets)[1]

    def _evaluate(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        xp = array_namespace(outputs)
        self.check(outputs, targets)
        delta = xp.array(outputs, order="C")
        losses = xp.empty(len(targets), dtype=outputs.dtype)
        scores = new_scores(xp, self.task, len(outputs), outputs.shape[1], outputs.dtype)
        self.output_error(reference_backend(xp), delta, targets, losses, scores)
        return losses, delta

    def __repr__(self) -> str:
        return with_options(self, {name: value for name, value in vars(self).items() if value})


class SoftmaxCrossEntropy(Loss):
    """C = -mean_i log softmax(s_i)[y_i], for one class of several; targets are class numbers ``(batch,)``.

    Computed from the logits as mean_i (logsumexp(s_i) - s_i[y_i]), which is exact for logits of any size. The
    gradient with respect to the logits is ``(softmax(s) - onehot(y)) / batch``.

    >>> import numpy as np
    >>> logits, labels = np.array([[0.0, 0.0], [1e4, 0.0]]), np.array([0, 1])
    >>> SoftmaxCrossEntropy()(logits, labels)  # doctest: +ELLIPSIS
    5000.34657...
    >>> SoftmaxCrossEntropy().gradient(logits, labels)
    array([[-0.25,  0.25],
           [ 0.5 , -0.5 ]])

    Args:
        label_smoothing: eps, from 0 to below 1: the targets are (1 - eps) onehot(y) + eps / classes in place of
            onehot(y). C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.
    """

    name = kernel = "softmax_cross_entropy"
    output = "softmax"
    least_outputs = 2
    task = "classes"
    label_smoothing = 0.0  # for subclasses with arguments of their own

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1, open_high=True)

    def output_error(self, backend: Backend, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        # argmax: of several equal logits, the first is the prediction.
        xp, logits, (batch, classes), eps = backend.xp, outputs, outputs.shape, self.label_smoothing
        rows = xp.arange(batch)
        xp.equal(xp.argmax(logits, axis=1), targets, out=scores)
        # A shift changes neither the loss nor the softmax; with a maximum of 0, exp cannot overflow.
        xp.subtract(logits, xp.max(logits, axis=1, keepdims=True), out=logits)
        expected = logits[rows, targets]  # sum_k q_ik s_ik, with the target distribution q
        if eps:
            expected = expected * (1 - eps) + xp.sum(logits, axis=1) * (eps / classes)
        xp.exp(logits, out=logits)
        total = xp.sum(logits, axis=1, keepdims=True)
        xp.subtract(xp.log(total[:, 0]), expected, out=losses)
        xp.divide(logits, total * batch, out=logits)
        logits[rows, targets] -= (1 - eps) / batch
        if eps:
            xp.subtract(logits, eps / (classes * batch), out=logits)

    def check(self, outputs: Array, targets: Array) -> None:
        if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or len(targets) == 0:
            raise ValueError(
                "expected logits (batch, classes) and labels (batch,) of at least one sample, got "
                f"{outputs.shape} and {targets.shape}"
            )
        if targets.dtype.kind not in "iu" or outputs.dtype.kind != "f":
            raise ValueError(f"expected float logits and integer labels, got {outputs.dtype} and {targets.dtype}")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= outputs.shape[1]:
            raise ValueError(f"expected labels from 0 to {outputs.shape[1] - 1}, got {low} to {high}")

    def predictions(self, outputs: Array) -> Array:
        return array_namespace(outputs).argmax(outputs, axis=1)

    def probabilities(self, outputs: Array) -> Array:
        return softmax(outputs)


class LogisticCrossEntropy(Loss):
    """C = mean_i sum_j (log(1 + e^s_ij) - y_ij s_ij), for independent binary outputs.

    One output is binary classification, several are multilabel classification. The gradient is
    ``(sigmoid(s) - y) / batch``; the targets are from 0 to 1, ``(batch, outputs)``.

    Args:
        label_smoothing: eps, from 0 to below 1: the targets are (1 - eps) y + eps / 2 in place of y.

    >>> import numpy as np
    >>> LogisticCrossEntropy()(np.array([[0.0], [1e4]]), np.array([[1.0], [0.0]]))  # doctest: +ELLIPSIS
    5000.34657...
    """

    name = kernel = "logistic_cross_entropy"
    output = "sigmoid"
    task = "labels"
    label_smoothing = 0.0

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1, open_high=True)

    def output_error(self, backend: Backend, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        xp, logits = backend.xp, outputs
        xp.equal(xp.greater(logits, 0), xp.greater(targets, 0.5), out=scores)
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        # From e = exp(-|s|), which cannot overflow: log(1 + exp(s)) = max(s, 0) + log(1 + e), and
        # sigmoid(s) = 1 / (1 + e) for s > 0, else e / (1 + e).
        small = xp.abs(logits)
        xp.negative(small, out=small)
        xp.exp(small, out=small)
        each = xp.log1p(small)
        xp.add(each, xp.maximum(logits, 0), out=each)
        xp.subtract(each, targets * logits, out=each)
        xp.sum(each, axis=1, out=losses)
        xp.divide(xp.where(xp.greater(logits, 0), 1, small), small + 1, out=logits)
        xp.subtract(logits, targets, out=logits)
        xp.multiply(logits, 1 / len(targets), out=logits)

    def check(self, outputs: Array, targets: Array) -> None:
        super().check(outputs, targets)
        low, high = float(targets.min()), float(targets.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"expected targets from 0 to 1, got {low:g} to {high:g}")

    def predictions(self, outputs: Array) -> Array:
        """1 where the logit is above 0, else 0, ``(batch, outputs)`` int64."""
        return array_namespace(outputs).greater(outputs, 0).astype("int64")

    def probabilities(self, outputs: Array) -> Array:
        return sigmoid(outputs)


class PoissonDeviance(Loss):
    """C = mean_i sum_j (e^s_ij - y_ij s_ij + y_ij log y_ij - y_ij), half the deviance of Poisson regression.

    The targets are counts, or other numbers of 0 or more, ``(batch, outputs)``; the predictions are e^s, and the
    gradient is ``(exp(s) - y) / batch``.

    >>> import numpy as np
    >>> PoissonDeviance()(np.array([[0.0], [0.0]]), np.array([[1.0], [0.0]]))
    0.5
    """

    name = kernel = "poisson_deviance"
    output = "exp"

    def output_error(self, backend: Backend, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        xp = backend.xp
        means = xp.exp(outputs)
        xp.subtract(means, targets, out=scores)
        each = xp.log(xp.where(xp.greater(targets, 0), targets, 1))  # y log y is 0 for y = 0
        xp.subtract(each, outputs, out=each)
        xp.subtract(each, 1, out=each)
        xp.multiply(each, targets, out=each)
        xp.add(each, means, out=each)
        xp.sum(each, axis=1, out=losses)
        xp.subtract(means, targets, out=outputs)
        xp.multiply(outputs, 1 / len(targets), out=outputs)

    def check(self, outputs: Array, targets: Array) -> None:
        super().check(outputs, targets)
        low, high = float(targets.min()), float(targets.max())
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"expected targets of 0 or more, got {low:g} to {high:g}")

    def predictions(self, outputs: Array) -> Array:
        return array_namespace(outputs).exp(outputs)


class SquaredError(Loss):
    """C = mean_i 1/2 sum_j (s_ij - y_ij)^2, the loss of regression, with the gradient ``(s - y) / batch``.

    >>> import numpy as np
    >>> SquaredError()(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]]))
    2.5
    """

    name = kernel = "squared_error"

    def output_error(self, backend: Backend, outputs: Array, targets: Array, losses: Array, scores: Array) -> None:
        xp = backend.xp
        xp.subtract(outputs, targets, out=outputs)
        scores[...] = outputs
        xp.sum(xp.square(outputs), axis=1, out=losses)
        xp.multiply(losses, 0.5, out=losses)
        xp.multiply(outputs, 1 / len(targets), out=outputs)

    def predictions(self, outputs: Array) -> Array:
        return outputs.copy()


def _check(rule: Loss) -> None:
    kind, shape = type(rule).__name__, (2, max(2, rule.least_outputs))
    if rule.task not in METRICS:
        raise TypeError(f"{kind}.task is expected to be one of {', '.join(METRICS)}, got {shown(rule.task)}")
    targets = np.array([0, 1]) if rule.task == "classes" else np.zeros(shape)
    losses, scores = np.full(2, np.nan), new_scores(np, rule.task, *shape, np.float64)

    def call() -> Any:
        return rule.output_error(reference_backend(np), np.zeros(shape), targets, losses, scores)

    found = []
    for value in (0, 1):
        scores.fill(value)
        if not require_in_place(f"{kind}.output_error", call, losses):
            return
        found.append(scores.copy())
    if (found[0] != found[1]).all():
        raise TypeError(f"{kind}.output_error is expected to write scores too, what metrics are computed from")


LOSSES = Registry(
    "loss",
    Loss,
    ("output_error", "predictions"),
    (SoftmaxCrossEntropy, LogisticCrossEntropy, SquaredError, PoissonDeviance),
    _check,
)


def output_function(loss: Loss) -> str:
    """The loss's `output`, for programs that compute predictions without the loss.

    Raises:
        ValueError: the loss has predictions or probabilities of its own.
    """
    standard = next((kind() for kind in LOSSES.built_in if kind.output == loss.output), None)
    if standard is None or (type(loss) not in LOSSES.built_in and not _agree(loss, standard)):
        raise ValueError(
            f"the loss {loss!r} has the output {loss.output!r}, but predictions or probabilities of its own"
        )
    return loss.output


def _agree(loss: Loss, standard: Loss) -> bool:
    """Whether two losses make the same of some outputs."""
    outputs = np.random.default_rng(0).normal(0, 3, (20, max(3, loss.least_outputs)))
    functions = ["predictions", *(["probabilities"] if standard.output in ("softmax", "sigmoid") else [])]
    for name in functions:
        try:
            found = np.asarray(getattr(loss, name)(outputs.copy()))
        except ValueError:  # it has none
            return False
        expected = getattr(standard, name)(outputs)
        if found.shape != expected.shape or not np.allclose(found, expected):
            return False
    return True


def loss_for(task: Task, outputs: int) -> Loss:
    """The loss that ``loss="auto"`` selects for targets of a kind and a number of outputs."""
    if task == "classes":
        return SoftmaxCrossEntropy() if outputs > 1 else LogisticCrossEntropy()
    return LogisticCrossEntropy() if task == "labels" else SquaredError()


def get_loss(loss: str | Loss) -> Loss:
    """Return the loss with this name; a `Loss` is returned unchanged.

    Raises:
        ValueError: the name is unknown.
        TypeError: a class of the user's is incomplete.
    """
    return LOSSES.find(loss)


def softmax(logits: Array) -> Array:
    """softmax(s)_ij = exp(s_ij) / sum_k exp(s_ik), as a new ``(batch, classes)`` array.

    >>> import numpy as np
    >>> softmax(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """
    xp = array_namespace(logits)
    result = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    result /= xp.sum(result, axis=1, keepdims=True)
    return result


def sigmoid(logits: Array) -> Array:
    """sigmoid(s) = 1 / (1 + e^-s), as a new array; accurate also for values close to 0.

    >>> import numpy as np
    >>> sigmoid(np.array([0.0, -1000.0]))
    array([0.5, 0. ])
    """
    xp = array_namespace(logits)
    small = xp.exp(xp.negative(xp.abs(logits)))
    return xp.where(xp.greater(logits, 0), 1, small) / (small + 1)
