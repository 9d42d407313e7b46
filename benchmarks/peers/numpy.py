"""NumPy as a course writes it, and scikit-learn: the peers whose matrix products are those of NumPy's BLAS."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from . import Peer, Samples, Setting, layers, missing


def thread_counts(asked: int | None, most: int) -> tuple[int, ...]:
    """The numbers of threads to try: the number asked for, or one and as many as the library takes by itself."""
    return (asked,) if asked else tuple(dict.fromkeys((1, most)))


class BlasThreads:
    """A number of BLAS threads, chosen by trial, that holds only while its peer runs."""

    def __init__(self, asked: int | None) -> None:
        self._controller: Any = ThreadpoolController()
        pools = [pool["num_threads"] for pool in self._controller.info() if pool["user_api"] == "blas"]
        counts = thread_counts(asked, max(pools, default=1))
        self.variants = tuple(f"{n} BLAS thread{'s' * (n > 1)}" for n in counts) if len(counts) > 1 else ()
        self._threads: int | None = asked

    def choose(self, variant: str) -> None:
        self._threads = int(variant.partition(" ")[0])

    def limit(self) -> AbstractContextManager[Any]:
        if self._threads is None:
            return nullcontext()
        context: AbstractContextManager[Any] = self._controller.limit(limits=self._threads, user_api="blas")
        return context


class Textbook(Peer):
    """Rows are samples, and every step makes new arrays; in float64 also the reference of the agreement check."""

    name = "numpy"
    title = "textbook NumPy"

    @classmethod
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
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


class ScikitLearn(Peer):
    """`MLPClassifier`: one ``partial_fit`` an epoch, which keeps the velocity from one to the next."""

    name = "scikit-learn"
    title = "scikit-learn"

    @classmethod
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
        if device != "cpu":
            return "scikit-learn computes on the CPU only"
        return missing("sklearn")

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        from sklearn.neural_network import MLPClassifier

        self.setting, self.samples = setting, samples
        self.blas = BlasThreads(threads)
        self.variants = self.blas.variants
        classes = setting.sizes[-1]
        self.model = MLPClassifier(
            hidden_layer_sizes=setting.sizes[1:-1],
            activation="relu",
            solver="sgd",
            alpha=0.0,
            batch_size=min(setting.batch_size, classes),
            learning_rate_init=setting.learning_rate,
            momentum=setting.momentum,
            nesterovs_momentum=False,
            random_state=np.random.RandomState(0),  # an integer would give every epoch the same order
        )
        # A first call makes the network; then it gets the common initial weights, and a velocity of zero.
        first = samples.inputs[:classes]
        self.model.partial_fit(first, np.arange(len(first)), classes=np.arange(classes))
        for index, (weight, bias) in enumerate(layers(setting, weights)):
            self.model.coefs_[index][...] = weight
            self.model.intercepts_[index][...] = bias
        del self.model._optimizer  # partial_fit makes one where there is none
        self.model.set_params(batch_size=setting.batch_size)

    def choose(self, variant: str) -> None:
        self.blas.choose(variant)

    def losses(self) -> list[float]:
        result = []
        for rows in self.samples.batches(self.setting.batch_size):
            self.model.set_params(batch_size=rows.stop - rows.start)
            self.model.partial_fit(self.samples.inputs[rows], self.samples.labels[rows])
            result.append(float(self.model.loss_))
        return result

    def epoch(self, part: int | None = None) -> float:
        from sklearn import config_context

        with self.blas.limit(), config_context(assume_finite=True):
            self.model.partial_fit(self.samples.inputs[:part], self.samples.labels[:part])
        return float(self.model.loss_)

    def unshuffled_epoch(self) -> float:
        self.model.set_params(shuffle=False)
        try:
            return self.epoch()
        finally:
            self.model.set_params(shuffle=True)
