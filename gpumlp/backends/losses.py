"""The losses among the training operations, each with its error term, in plain array code."""

from __future__ import annotations

from typing import Any

from .rules import Array


class LossOperations:
    """What turns a network's outputs into the loss of each sample and the error term of the last layer.

    Each takes the outputs s and overwrites them with delta = dC/ds of the mean loss C of the batch.
    """

    xp: Any

    def softmax_cross_entropy(self, logits: Array, labels: Array, losses: Array, correct: Array) -> None:
        """Loss and output error of a batch, from its logits.

        ``losses[i] = log(sum_j exp(s_ij)) - s_i[y_i]`` and ``delta = (softmax(s) - onehot(y)) / batch``.

        Args:
            logits: ``(batch, classes)``; overwritten with delta.
            labels: ``(batch,)`` int64 in ``[0, classes)``.
            losses: ``(batch,)``, overwritten with the loss of each sample.
            correct: ``(batch,)`` bool, overwritten: is the largest logit (the first, if several are
                equal) the label's?
        """
        xp = self.xp
        rows = xp.arange(len(labels))
        xp.equal(xp.argmax(logits, axis=1), labels, out=correct)
        # A shift changes neither the loss nor the softmax, and with the maximum at 0 exp cannot overflow.
        xp.subtract(logits, xp.max(logits, axis=1, keepdims=True), out=logits)
        label_logits = logits[rows, labels]
        xp.exp(logits, out=logits)
        total = xp.sum(logits, axis=1, keepdims=True)
        xp.subtract(xp.log(total[:, 0]), label_logits, out=losses)
        xp.divide(logits, total * len(labels), out=logits)
        logits[rows, labels] -= 1 / len(labels)

    def logistic_cross_entropy(self, logits: Array, targets: Array, losses: Array, correct: Array) -> None:
        """Loss and output error of a batch whose outputs are yes-or-no questions of their own, from its logits.

        ``losses[i] = sum_j (log(1 + exp(s_ij)) - y_ij s_ij)`` and ``delta = (sigmoid(s) - y) / batch``.

        Args:
            logits: ``(batch, outputs)``; overwritten with delta.
            targets: ``(batch, outputs)`` of the same dtype, 0 or 1.
            losses: ``(batch,)``, overwritten with the loss of each sample.
            correct: ``(batch,)`` bool, overwritten: is every answer right? Yes is a logit above 0.
        """
        xp = self.xp
        xp.all(xp.equal(xp.greater(logits, 0), xp.greater(targets, 0.5)), axis=1, out=correct)
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

    def squared_error(self, outputs: Array, targets: Array, losses: Array, correct: Array) -> None:
        """Loss and output error of a batch of real-valued outputs.

        ``losses[i] = 1/2 sum_j (s_ij - y_ij)^2`` and ``delta = (s - y) / batch``.

        Args:
            outputs: ``(batch, outputs)``; overwritten with delta.
            targets: ``(batch, outputs)`` of the same dtype.
            losses: ``(batch,)``, overwritten with the loss of each sample.
            correct: ``(batch,)`` bool, overwritten with False: a number is near or far, not right or wrong.
        """
        xp = self.xp
        correct[...] = False
        xp.subtract(outputs, targets, out=outputs)
        xp.sum(xp.square(outputs), axis=1, out=losses)
        xp.multiply(losses, 0.5, out=losses)
        xp.multiply(outputs, 1 / len(targets), out=outputs)

    def weigh(self, delta: Array, losses: Array, weights: Array) -> None:
        """Count each sample so many times: ``delta_i <- w_i delta_i`` and ``losses_i <- w_i losses_i``.

        Args:
            delta: ``(batch, outputs)``, the error term of the last layer, overwritten.
            losses: ``(batch,)``, overwritten.
            weights: ``(batch,)``, of the same dtype; with a mean of 1, the mean loss is the weighted mean.
        """
        xp = self.xp
        xp.multiply(delta, weights[:, None], out=delta)
        xp.multiply(losses, weights, out=losses)
