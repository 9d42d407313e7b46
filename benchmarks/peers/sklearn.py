"""scikit-learn's MLPClassifier: one ``partial_fit`` an epoch, which keeps the velocity from one to the next."""

from __future__ import annotations

import numpy as np

from .base import Peer, Samples, Setting, layers, missing
from .blas import BlasThreads


class ScikitLearn(Peer):
    name = "scikit-learn"
    title = "scikit-learn"

    @classmethod
    def why_not(cls, device: str, dtype: str) -> str | None:
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
        # A first call makes the network; then it gets everybody's initial weights, and a velocity of zero.
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
