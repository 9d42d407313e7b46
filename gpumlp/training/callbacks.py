"""Callbacks: what else happens while a network trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Called by the trainer, which it may read and may ask to `stop`. Override what is wanted.

    >>> from gpumlp import MLP, SGD, Callback, fit, load_digits
    >>> class StopAt(Callback):
    ...     def __init__(self, accuracy):
    ...         self.accuracy = accuracy
    ...     def on_epoch_end(self, trainer):
    ...         if trainer.history.records[-1].train_accuracy > self.accuracy:
    ...             trainer.stop()
    >>> train, test = load_digits()
    >>> model = MLP([64, 32, 10], device="cpu")
    >>> history = fit(model, train, optimizer=SGD(0.5), epochs=100, batch_size=32, callbacks=[StopAt(0.95)])
    >>> len(history) < 100
    True
    """

    def on_train_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        """Now and then within an epoch: so many samples of it have been handed to the device."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After an epoch; ``trainer.history.records[-1]`` is its record."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last epoch, also when interrupted or diverged."""


CallbackLike: TypeAlias = Callback | Callable[["Trainer"], object]


class _EpochFunction(Callback):
    def __init__(self, function: Callable[[Trainer], object]) -> None:
        self.function = function

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.function(trainer)


def as_callbacks(callbacks: CallbackLike | Iterable[CallbackLike]) -> list[Callback]:
    """Each as a `Callback`, also a single one; a plain function is called with the trainer after every epoch.

    Raises:
        TypeError: something else is given.
    """
    if isinstance(callbacks, Callback) or (callable(callbacks) and not isinstance(callbacks, type)):
        callbacks = [callbacks]
    if isinstance(callbacks, (type, str)) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks is expected to be a list of functions or Callback objects, got {callbacks!r}")
    result: list[Callback] = []
    for callback in callbacks:
        if isinstance(callback, Callback):
            result.append(callback)
        elif callable(callback) and not isinstance(callback, type):
            result.append(_EpochFunction(callback))
        else:
            raise TypeError(f"a callback is expected to be a function or a Callback, got {callback!r}")
    return result
