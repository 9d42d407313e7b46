"""When an estimator's training ends: scikit-learn's rules, count by count."""

from __future__ import annotations

import math
from typing import Any

LEAST_LEARNING_RATE = 1e-6  # of learning_rate="adaptive"


class Progress:
    """What counts as progress, in the estimator's own attributes, so that `partial_fit` and `warm_start` go on."""

    def __init__(self, estimator: Any, *, by_score: bool) -> None:
        self._estimator, self._by_score = estimator, by_score

    @staticmethod
    def start(estimator: Any) -> None:
        """Begin with nothing."""
        estimator.loss_curve_ = []
        estimator._no_improvement_count = 0
        estimator.validation_scores_ = estimator.best_validation_score_ = estimator.validation_loss_curve_ = None
        estimator.best_loss_ = None if estimator.early_stopping else math.inf

    def note_validation(self, loss: float, score: float) -> bool:
        """Keep them; True if the score is the best so far."""
        estimator = self._estimator
        if estimator.validation_scores_ is None:
            estimator.validation_scores_, estimator.validation_loss_curve_ = [], []
        if estimator.best_validation_score_ is None:
            estimator.best_validation_score_ = -math.inf
        estimator.validation_scores_.append(score)
        estimator.validation_loss_curve_.append(loss)
        self._say(f"Validation score: {score:f}")
        best = estimator.best_validation_score_
        if self._by_score:
            stuck = score < best + estimator.tol
            estimator._no_improvement_count = estimator._no_improvement_count + 1 if stuck else 0
        if score > best:
            estimator.best_validation_score_ = score
        return bool(score > best)

    def note_loss(self, loss: float) -> None:
        """Keep the loss of an epoch."""
        estimator = self._estimator
        estimator.loss_ = loss
        estimator.loss_curve_.append(loss)
        self._say(f"Iteration {estimator.n_iter_}, loss = {loss:.8f}")
        if self._by_score:
            return
        best = math.inf if estimator.best_loss_ is None else estimator.best_loss_
        stuck = loss > best - estimator.tol
        estimator._no_improvement_count = estimator._no_improvement_count + 1 if stuck else 0
        estimator.best_loss_ = min(loss, best)

    def is_over(self, solver: Any) -> bool:
        """Has it stopped to improve? An adaptive learning rate is divided by 5 first, as often as it may."""
        estimator = self._estimator
        if not estimator._no_improvement_count > estimator.n_iter_no_change:
            return False
        what = "Validation score" if self._by_score else "Training loss"
        message = (
            f"{what} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} "
            "consecutive epochs."
        )
        if estimator.solver != "sgd" or estimator.learning_rate != "adaptive":
            return self._say(f"{message} Stopping.")
        if solver.learning_rate <= LEAST_LEARNING_RATE:
            return self._say(f"{message} Learning rate too small. Stopping.")
        solver.change_learning_rate(solver.learning_rate / 5)
        estimator._no_improvement_count = 0
        self._say(f"{message} Setting learning rate to {solver.learning_rate:f}")
        return False

    def _say(self, message: str) -> bool:
        if self._estimator.verbose:
            print(message)
        return True
