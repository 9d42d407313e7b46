"""The losses, from a network's outputs s: what training makes small, and what the outputs mean."""

from __future__ import annotations

from typing import ClassVar

from ..backends import Array, Backend, array_namespace, reference_backend


class Loss:
    """A loss. To add one, subclass and write `output_error`, `check` and `predictions`.

    Attributes:
        name: as in ``MLP(..., loss=name)``.
        output: the function that turns outputs into answers: ``"softmax"``, ``"sigmoid"`` or ``"identity"``.
        least_outputs: how many outputs a network needs for it.
        of_classes: are the targets class numbers ``(batch,)``? Otherwise they are ``(batch, outputs)`` floats.
    """

    name: ClassVar[str]
    output: ClassVar[str] = "identity"
    least_outputs: ClassVar[int] = 1
    of_classes: ClassVar[bool] = False

    def output_error(
        self, backend: Backend, outputs: Array, targets: Array, losses: Array, correct: Array
    ) -> None:
        """The loss of each sample into `losses`, hit or miss into `correct`; `outputs` become dC/ds."""
        raise NotImplementedError

    def check(self, outputs: Array, targets: Array) -> None:
        """Refuse arrays that do not fit together.

        Raises:
            ValueError: what was expected, and what came.
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
        """What the network answers, from its outputs, as a new array."""
        raise NotImplementedError

    def probabilities(self, outputs: Array) -> Array:
        """The probability of each answer, ``(batch, outputs)``, as a new array.

        Raises:
            ValueError: the outputs are not about answers.
        """
        raise ValueError(f"the outputs of a network with the loss {self.name} are no probabilities")

    def __call__(self, outputs: Array, targets: Array) -> float:
        """The mean loss C as a Python float. Waits for the device.

        Args:
            outputs: ``(batch, outputs)``, float.
            targets: what the loss compares them with.

        Raises:
            ValueError: the arrays do not fit together, or a target is out of range.
        """
        return float(self._evaluate(outputs, targets)[0].mean())

    def gradient(self, outputs: Array, targets: Array) -> Array:
        """dC/ds as a new ``(batch, outputs)`` array; the arguments are those of a call."""
        return self._evaluate(outputs, targets)[1]

    def _evaluate(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        xp = array_namespace(outputs)
        self.check(outputs, targets)
        delta = xp.array(outputs, order="C")
        losses = xp.empty(len(targets), dtype=outputs.dtype)
        self.output_error(reference_backend(xp), delta, targets, losses, xp.empty(len(targets), dtype=bool))
        return losses, delta

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SoftmaxCrossEntropy(Loss):
    """C = -mean_i log softmax(s_i)[y_i], computed as mean_i (logsumexp(s_i) - s_i[y_i]): one class of several.

    From the logits rather than from probabilities, so that nothing has to be clipped: it is right for
    logits of any size. Its gradient with respect to the logits is ``(softmax(s) - onehot(y)) / batch``.
    The targets are class numbers, ``(batch,)``.

    >>> import numpy as np
    >>> logits, labels = np.array([[0.0, 0.0], [1e4, 0.0]]), np.array([0, 1])
    >>> SoftmaxCrossEntropy()(logits, labels)  # doctest: +ELLIPSIS
    5000.34657...
    >>> SoftmaxCrossEntropy().gradient(logits, labels)
    array([[-0.25,  0.25],
           [ 0.5 , -0.5 ]])
    """

    name = "softmax_cross_entropy"
    output = "softmax"
    least_outputs = 2
    of_classes = True

    def output_error(
        self, backend: Backend, outputs: Array, targets: Array, losses: Array, correct: Array
    ) -> None:
        backend.softmax_cross_entropy(outputs, targets, losses, correct)

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
    """C = mean_i sum_j (log(1 + e^s_ij) - y_ij s_ij): each output a yes-or-no question of its own.

    One output is the binary case, several are labels of which any number may hold. The gradient is
    ``(sigmoid(s) - y) / batch``; the targets are 0 or 1, ``(batch, outputs)``.

    >>> import numpy as np
    >>> LogisticCrossEntropy()(np.array([[0.0], [1e4]]), np.array([[1.0], [0.0]]))  # doctest: +ELLIPSIS
    5000.34657...
    """

    name = "logistic_cross_entropy"
    output = "sigmoid"

    def output_error(
        self, backend: Backend, outputs: Array, targets: Array, losses: Array, correct: Array
    ) -> None:
        backend.logistic_cross_entropy(outputs, targets, losses, correct)

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


class SquaredError(Loss):
    """C = mean_i 1/2 sum_j (s_ij - y_ij)^2, the loss of regression, with the gradient ``(s - y) / batch``.

    >>> import numpy as np
    >>> SquaredError()(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]]))
    2.5
    """

    name = "squared_error"

    def output_error(
        self, backend: Backend, outputs: Array, targets: Array, losses: Array, correct: Array
    ) -> None:
        backend.squared_error(outputs, targets, losses, correct)

    def predictions(self, outputs: Array) -> Array:
        return outputs.copy()


LOSSES: dict[str, type[Loss]] = {
    rule.name: rule for rule in (SoftmaxCrossEntropy, LogisticCrossEntropy, SquaredError)
}


def get_loss(loss: str | Loss) -> Loss:
    """A loss by its name; a `Loss` is returned as it is.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss is expected to be one of {', '.join(LOSSES)}, got {loss!r}")
    return LOSSES[loss]()


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
    """sigmoid(s) = 1 / (1 + e^-s), as a new array; precise also where it is close to 0.

    >>> import numpy as np
    >>> sigmoid(np.array([0.0, -1000.0]))
    array([0.5, 0. ])
    """
    xp = array_namespace(logits)
    small = xp.exp(xp.negative(xp.abs(logits)))
    return xp.where(xp.greater(logits, 0), 1, small) / (small + 1)
