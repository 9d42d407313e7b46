"""A multilayer perceptron in NumPy as a course writes it: rows are samples, every step makes fresh arrays."""

from __future__ import annotations

import numpy as np

from .base import Peer, Samples, Setting, layers
from .blas import BlasThreads


class Textbook(Peer):
    """Also the referee of the agreement check, in float64."""

    name = "numpy"
    title = "textbook NumPy"

    @classmethod
    def why_not(cls, device: str, dtype: str) -> str | None:
        return None if device == "cpu" else "NumPy computes on the CPU only"

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        self.setting, self.samples = setting, samples
        self.blas = BlasThreads(threads)
        self.variants = self.blas.variants
        self.rng = np.random.default_rng(0)
        self.weights = [weight for weight, _ in layers(setting, weights)]
        self.biases = [bias for _, bias in layers(setting, weights)]
        self.weight_velocities = [np.zeros_like(weight) for weight in self.weights]
        self.bias_velocities = [np.zeros_like(bias) for bias in self.biases]

    def choose(self, variant: str) -> None:
        self.blas.choose(variant)

    def losses(self) -> list[float]:
        return [
            float(self._step(np.arange(b.start, b.stop))) for b in self.samples.batches(self.setting.batch_size)
        ]

    def epoch(self, part: int | None = None) -> float:
        with self.blas.limit():
            return self._train(self.rng.permutation(len(self.samples))[:part])

    def unshuffled_epoch(self) -> float:
        with self.blas.limit():
            return self._train(np.arange(len(self.samples)))

    def _train(self, order: np.ndarray) -> float:
        size, total = self.setting.batch_size, 0.0
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            total += float(self._step(rows)) * len(rows)
        return total / len(order)

    def _step(self, rows: np.ndarray) -> np.floating:
        x, y = self.samples.inputs[rows], self.samples.labels[rows]

        outputs = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            outputs.append(np.maximum(outputs[-1] @ weight + bias, 0))
        logits = outputs[-1] @ self.weights[-1] + self.biases[-1]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        loss = -np.log(probabilities[np.arange(len(y)), y]).mean()

        targets = np.zeros_like(probabilities)
        targets[np.arange(len(y)), y] = 1
        delta = (probabilities - targets) / len(y)
        for index in reversed(range(len(self.weights))):
            weight_gradient = outputs[index].T @ delta
            bias_gradient = delta.sum(axis=0)
            if index > 0:
                delta = (delta @ self.weights[index].T) * (outputs[index] > 0)
            self._update(self.weights, self.weight_velocities, index, weight_gradient)
            self._update(self.biases, self.bias_velocities, index, bias_gradient)
        return loss

    def _update(
        self, parameters: list[np.ndarray], velocities: list[np.ndarray], index: int, gradient: np.ndarray
    ) -> None:
        if self.setting.momentum:
            velocities[index] = gradient = self.setting.momentum * velocities[index] + gradient
        parameters[index] = parameters[index] - self.setting.learning_rate * gradient
