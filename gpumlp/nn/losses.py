"""The loss of a classifier, from its logits."""

from __future__ import annotations

from ..backends import Array, array_namespace, reference_backend


class SoftmaxCrossEntropy:
    """C = -mean_i log softmax(s_i)[y_i], computed as mean_i (logsumexp(s_i) - s_i[y_i]).

    From the logits rather than from probabilities, so that nothing has to be clipped: it is right for
    logits of any size. Its gradient with respect to the logits is ``(softmax(s) - onehot(y)) / batch``.

    >>> import numpy as np
    >>> logits, labels = np.array([[0.0, 0.0], [1e4, 0.0]]), np.array([0, 1])
    >>> SoftmaxCrossEntropy()(logits, labels)  # doctest: +ELLIPSIS
    5000.34657...
    >>> SoftmaxCrossEntropy().gradient(logits, labels)
    array([[-0.25,  0.25],
           [ 0.5 , -0.5 ]])
    """

    def __call__(self, logits: Array, labels: Array) -> float:
        """The mean loss as a Python float. Waits for the device.

        Args:
            logits: ``(batch, classes)``, float.
            labels: ``(batch,)``, integers in ``[0, classes)``.

        Raises:
            ValueError: the shapes do not fit, or a label is out of range.
        """
        losses, _ = self._evaluate(logits, labels)
        return float(losses.mean())

    def gradient(self, logits: Array, labels: Array) -> Array:
        """dC/ds as a new ``(batch, classes)`` array; the arguments are those of a call."""
        return self._evaluate(logits, labels)[1]

    @staticmethod
    def _evaluate(logits: Array, labels: Array) -> tuple[Array, Array]:
        xp = array_namespace(logits)
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
            raise ValueError(
                "expected logits (batch, classes) and labels (batch,) of at least one sample, got "
                f"{logits.shape} and {labels.shape}"
            )
        if labels.dtype.kind not in "iu" or logits.dtype.kind != "f":
            raise ValueError(f"expected float logits and integer labels, got {logits.dtype} and {labels.dtype}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"expected labels from 0 to {logits.shape[1] - 1}, got {low} to {high}")
        delta = xp.array(logits, order="C")
        losses = xp.empty(len(labels), dtype=logits.dtype)
        reference_backend(xp).softmax_cross_entropy(delta, labels, losses, xp.empty(len(labels), dtype=bool))
        return losses, delta


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
