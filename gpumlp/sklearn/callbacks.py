"""scikit-learn's own callbacks (`sklearn.callback`, experimental in 1.9), where the installed one has them."""

from __future__ import annotations

from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before 1.9, or another shape of an experimental module

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """A scikit-learn without callbacks: nothing to support."""

    def with_callbacks(method: Any) -> Any:
        """The method as it is."""
        return method


__all__ = ["CallbackSupportMixin", "EpochTasks", "with_callbacks"]


class EpochTasks:
    """Tells an estimator's callbacks of each epoch; costs nothing where there are none.

    Args:
        estimator: the one that is being fitted.
        given: X, y and sample_weight, as the user gave them.
        epochs: how many there will be at most.
    """

    def __init__(self, estimator: Any, given: tuple[Any, Any, Any], epochs: int) -> None:
        X, y, sample_weight = given
        self._estimator = estimator
        self._root: Any = None  # contexts of scikit-learn's
        self._epoch: Any = None
        self._data = {"X": X, "y": y}
        if sample_weight is not None:
            self._data["metadata"] = {"sample_weight": sample_weight}
        if hasattr(estimator, "_init_callback_context"):
            self._root = estimator._init_callback_context(max_subtasks=epochs)
            self._root.call_on_fit_task_begin(estimator=estimator, **self._data)
        self._active = bool(getattr(estimator, "_skl_callbacks", None))

    def begin_epoch(self) -> None:
        if self._root is not None and self._active:
            self._epoch = self._root.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def end_epoch(self, fitted: Any) -> bool:
        """After an epoch; True if a callback asks to stop.

        Args:
            fitted: a function that gives the attributes of the estimator as it would be if training ended here.
        """
        if self._epoch is None:
            return False
        stop = self._epoch.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=fitted, **self._data
        )
        return bool(stop)

    def end(self, fitted: Any) -> None:
        if self._root is not None:
            self._root.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes=fitted, **self._data
            )
