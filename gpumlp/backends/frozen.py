"""What a training step tells a backend that wants to repeat it without asking again."""

from __future__ import annotations

from typing import Any, NamedTuple

from .rules import Array


class FrozenStep(NamedTuple):
    """What a captured training step holds on to, so that it can be told when a capture no longer holds.

    Attributes:
        memory: the arrays from which the next step goes on: parameters and optimizer state.
        results: ``(samples,)`` each, of which a step writes its batch's part.
        others: every other array that a step reads or writes.
        rules: what else decides what a step computes, the learning rate excepted.
    """

    memory: list[Array]
    results: list[Array]
    others: list[Array]
    rules: tuple[Any, ...]

    def arrays(self) -> list[Array]:
        """All of the arrays."""
        return [*self.memory, *self.results, *self.others]

    def key(self) -> tuple[Any, ...]:
        """Addresses, shapes and rules: equal as long as a capture holds."""
        return (*((array.data.ptr, array.shape, array.dtype.char) for array in self.arrays()), *self.rules)
