"""The labels of a classifier: classes by number, or 0 and 1 in columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from ..backends import HostArray
from . import inputs


class Labels:
    """What an estimator learns of y, and how it reads it.

    One output with the logistic sigmoid for two classes, a softmax over as many outputs as classes for more, and a
    sigmoid for each column where y is a matrix of 0 and 1.
    """

    classes_: HostArray
    n_outputs_: int
    class_weight: Any
    _y_type: str

    @property
    def _multilabel(self) -> bool:
        return bool(self._y_type == "multilabel-indicator")

    def _note_classes(self, classes: HostArray, *, first: bool) -> None:
        """What `partial_fit` was told."""
        if first:
            self._expected_classes = classes
        elif not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
            )

    def _read_y(self, y: HostArray, *, first: bool, same: bool = False) -> HostArray:
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multiclass-multioutput":
            raise ValueError(
                "y is expected to be one label a sample, or 0 and 1 in each column, got several classes"
            )
        if first:
            self._learn_classes(y, kind)
        if kind == "multilabel-indicator" or self._multilabel:
            if not (kind == "multilabel-indicator" and self._multilabel and y.shape[1] == self.n_outputs_):
                raise ValueError(f"y is expected to be {self._y_words()} as before, got {kind} of shape {y.shape}")
            return y.astype(inputs.DTYPE)
        found = np.unique(y)
        if same and not np.array_equal(found, self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {found}"
            )
        if len(np.setdiff1d(found, self.classes_)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {found}."
            )
        index = np.searchsorted(self.classes_, y)
        return index.astype(np.int64) if self.n_outputs_ > 1 else index.astype(inputs.DTYPE)[:, None]

    def _learn_classes(self, y: HostArray, kind: str) -> None:
        expected = self.__dict__.get("_expected_classes")
        self._y_type = kind
        if kind == "multilabel-indicator":
            classes = np.arange(y.shape[1])
            if self.class_weight is not None:
                raise ValueError("class_weight is expected to be None where a sample has several labels")
            if expected is not None and len(expected) != len(classes):
                raise ValueError(
                    f"expected one column of y for each of {len(expected)} classes, got {len(classes)}"
                )
        else:
            classes = np.unique(y) if expected is None else expected
            if len(classes) < 2:
                raise ValueError(f"a classifier needs samples of 2 classes or more, got one class: {classes}")
        self.classes_ = classes
        labels = len(classes)
        softmaxed = kind != "multilabel-indicator" and labels > 2
        self.n_outputs_ = labels if softmaxed or kind == "multilabel-indicator" else 1
        self.out_activation_ = "softmax" if softmaxed else "logistic"
        self._loss = "softmax_cross_entropy" if softmaxed else "logistic_cross_entropy"

    def _y_words(self) -> str:
        return f"0 and 1 of shape (samples, {self.n_outputs_})" if self._multilabel else "one label a sample"

    def _class_factors(self, targets: HostArray) -> HostArray | None:
        if self.class_weight is None:
            return None
        numbers = targets if targets.ndim == 1 else targets[:, 0].astype(np.int64)
        factors: HostArray = compute_class_weight(
            self.class_weight, classes=self.classes_, y=self.classes_[numbers]
        )
        if not (np.isfinite(factors).all() and factors.min() >= 0 and factors[numbers].any()):
            raise ValueError(f"class_weight is expected to be numbers of 0 or more, not all 0, got {factors}")
        return factors

    def _stratify(self, targets: HostArray) -> HostArray | None:
        if self.n_outputs_ > 1 or self._multilabel:  # as in scikit-learn, so that the same samples are held out
            return None
        labels: HostArray = self.classes_[targets[:, 0].astype(np.int64)]
        return labels
