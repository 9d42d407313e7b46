"""The orders of the epochs are the same, drawn ahead or not."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import MLP, Dataset, Trainer
from gpumlp.training.orders import EpochOrders


def orders(seed: int = 3) -> EpochOrders:
    return EpochOrders(np.arange(10, 30), np.random.default_rng(seed))


def test_an_order_is_a_permutation_of_the_rows_and_another_one_each_time() -> None:
    drawn = orders()
    first, second = drawn.draw(), drawn.draw()
    assert sorted(first) == sorted(second) == list(range(10, 30))
    assert first.tolist() != second.tolist()


def test_drawing_ahead_changes_no_order_and_no_state() -> None:
    ahead, plain = orders(), orders()
    for _ in range(3):
        ahead.draw_ahead()
        ahead.draw_ahead()  # once is enough
        assert ahead.state == plain.state
        assert ahead.draw().tolist() == plain.draw().tolist()
    assert ahead.state == plain.state


@pytest.mark.parametrize("ahead", [False, True])
def test_a_state_is_gone_on_from(ahead: bool) -> None:
    first = orders()
    first.draw()
    if ahead:
        first.draw_ahead()
    second = orders(seed=4)
    second.draw_ahead()
    second.state = first.state
    assert second.draw().tolist() == first.draw().tolist()


def test_an_epoch_ends_with_the_next_order_at_hand(blobs: Dataset) -> None:
    """And a trainer that goes on from the state of then takes the same one."""
    trainer, other = (Trainer(MLP([20, 4], device="cpu"), blobs, batch_size=32) for _ in range(2))
    trainer.run(1)
    assert trainer._orders._ahead is not None
    other.restore({}, trainer.optimizer_state.steps, trainer.random_state(), trainer.history)
    np.testing.assert_array_equal(other._orders.draw(), trainer._orders.draw())
