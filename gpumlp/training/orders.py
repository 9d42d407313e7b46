"""In which order an epoch takes the samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import HostArray


class EpochOrders:
    """Random orders, one an epoch, drawn on the host, so that they are the same for every device.

    While the host draws an order, a GPU would do nothing; so the next one can be drawn while it trains.

    Args:
        rows: ``(samples,)``, what is put in order.
        rng: used for nothing else.
    """

    def __init__(self, rows: HostArray, rng: np.random.Generator) -> None:
        self._rows, self._rng = rows, rng
        self._ahead: HostArray | None = None
        self._state_before: dict[str, Any] = {}

    def draw(self) -> HostArray:
        """The order of the next epoch, ``(samples,)``."""
        order, self._ahead = self._ahead, None
        return self._rng.permutation(self._rows) if order is None else order

    def draw_ahead(self) -> None:
        """Have the next order ready; it is the same, and so is `state`."""
        if self._ahead is None:
            self._state_before = self.state
            self._ahead = self._rng.permutation(self._rows)

    @property
    def state(self) -> dict[str, Any]:
        """Of the generator before the next `draw`, as JSON can hold it; set it to go on from there."""
        return self._state_before if self._ahead is not None else dict(self._rng.bit_generator.state)

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self._rng.bit_generator.state = value
        self._ahead = None
