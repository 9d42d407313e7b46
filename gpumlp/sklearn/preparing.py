"""From what came in to what is trained on: weights, the part to validate on, the batch size."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from ..backends import Array, Backend, HostArray
from .inputs import read_samples, read_targets, read_weights
from .validation import Validation


class Preparing:
    """The part of an estimator that prepares a training, and what the two kinds of estimator say to it."""

    batch_size: Any
    early_stopping: Any
    validation_fraction: Any

    _numeric = False  # is y numbers, or labels?

    # -- What the two kinds of estimator say --------------------------------------------------------------

    def _read_y(self, y: HostArray, *, first: bool, same: bool = False) -> HostArray:
        """The targets as the network's loss wants them.

        Args:
            y: as `read_targets` gives it.
            first: set what is learnt of y: ``n_outputs_``, ``out_activation_``, the network's loss, classes.
            same: refuse a y in which not every class occurs.
        """
        raise NotImplementedError

    def _loss_terms(self) -> int:
        """Over how many terms of a sample's loss scikit-learn reports the mean."""
        return 1

    def _score_outputs(self, found: HostArray, targets: HostArray, correct: HostArray, weights: Any) -> float:
        """How good outputs are: accuracy or R^2."""
        raise NotImplementedError

    def _class_factors(self, targets: HostArray) -> HostArray | None:
        """``class_weight`` by class number, from the targets to train on; None where there is none."""
        return None

    def _stratify(self, targets: HostArray) -> HostArray | None:
        """By what the part that is held out is chosen evenly; None for by chance."""
        return None

    # -- What is the same for both ------------------------------------------------------------------------

    @staticmethod
    def _weights(weights: HostArray | None, targets: HostArray, factors: HostArray | None) -> HostArray | None:
        """Sample weights times class weights; None where all samples count alike."""
        if factors is None:
            return weights
        numbers = targets if targets.ndim == 1 else targets[:, 0].astype(np.int64)
        by_sample: HostArray = factors[numbers]
        return by_sample if weights is None else weights * by_sample

    def _validation(
        self,
        images: Array,
        targets: HostArray,
        weights: HostArray | None,
        given: Any,
        factors: HostArray | None,
        random: Any,
        backend: Backend,
    ) -> tuple[HostArray, Validation | None]:
        """Rows to train on, and what to validate on."""
        if given is not None:
            X, y, sample_weight = given
            X = read_samples(self, X, backend, reset=False)
            y = self._read_y(read_targets(y, len(X), backend, numeric=self._numeric), first=False)
            sample_weight = read_weights(sample_weight, len(X), backend, "sample_weight_val")
            sample_weight = self._weights(sample_weight, y, factors)
            images_val = backend.asarray(X, dtype=images.dtype)
            return np.arange(len(targets)), Validation(images_val, y, sample_weight, self)
        if not self.early_stopping:
            return np.arange(len(targets)), None
        rows, held_out = train_test_split(
            np.arange(len(targets)),
            random_state=random,
            test_size=self.validation_fraction,
            stratify=self._stratify(targets),
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        for part, name in ((rows, "training"), (held_out, "validation")):
            if weights is not None and not weights[part].any():
                raise ValueError(f"the {name} part of the samples has no weight; give X_val and y_val yourself")
        images_val = backend.xp.take(images, backend.asarray(held_out), axis=0)
        weights_val = None if weights is None else weights[held_out]
        return rows, Validation(images_val, targets[held_out], weights_val, self)

    def _batch_size(self, samples: int) -> int:
        if isinstance(self.batch_size, str):
            return min(200, samples)
        if self.batch_size > samples:
            warn_user(f"Got `batch_size` {self.batch_size} larger than sample size {samples}. It is clipped.")
        return min(int(self.batch_size), samples)


def warn_user(message: str, kind: type[Warning] = UserWarning) -> None:
    """Warn about the user's line, behind the frames of both libraries."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("gpumlp.", "sklearn.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, kind, stacklevel=level)
