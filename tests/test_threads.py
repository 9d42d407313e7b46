"""The number of the BLAS's threads is chosen by speed, and only where it does not change a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import threadpoolctl

from gpumlp import MLP, SGD, Adam, Dataset, Trainer
from gpumlp.backends.numpy import WORK_FOR_ALL_THREADS, NumpyBackend
from gpumlp.backends.openblas import OpenBlas, numpy_openblas
from gpumlp.backends.threads import BLOCK, Pace

OPENBLAS = numpy_openblas()
needs_openblas = pytest.mark.skipif(OPENBLAS is None, reason="NumPy's BLAS is not the OpenBLAS of its wheel")


class Machine:
    """A clock, and steps that take as long as they are told to by the number of threads and the time."""

    multiply_adds, sizes, rows, dtype = 1, (), 1, np.dtype("float32")

    def __init__(self, seconds: Callable[[int, float], float]) -> None:
        self.seconds, self.now, self.count = seconds, 0.0, 0
        self.batches: list[slice] = []
        self.counts: list[int] = []

    def clock(self) -> float:
        return self.now

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        self.count = count
        yield

    def __call__(self, batch: slice) -> None:
        self.now += self.seconds(self.count, self.now) * (batch.stop - batch.start)
        self.batches.append(batch)
        self.counts.append(self.count)


BATCHES = [slice(start, start + 1) for start in range(5000)]


@pytest.mark.parametrize("most", [2, 3, 8, 12])
@pytest.mark.parametrize("start", [1, 2, 50])
@pytest.mark.parametrize("best", [1, 2, 8])
def test_the_quickest_number_of_threads_is_found(most: int, start: int, best: int) -> None:
    machine = Machine(lambda count, now: 1e-4 * (1 + abs(np.log2(count / min(best, most)))))
    pace = Pace(machine.threads, most, start, machine.clock)
    for first in range(0, len(BATCHES), 21):  # as the trainer hands them on
        pace.run(machine, BATCHES[first : first + 21])
    assert machine.batches == BATCHES  # each once, in order
    assert pace.count == min(best, most)
    assert machine.counts[-500:].count(pace.count) > 480
    assert max(machine.counts) <= most


def test_a_neighbour_that_makes_threads_wait_costs_little() -> None:
    def seconds(count: int, now: float) -> float:
        busy = 0.1 < now < 0.5
        return (2e-3 if busy else 1e-4) if count == 2 else 1.5e-4

    machine = Machine(seconds)
    pace = Pace(machine.threads, 2, 2, machine.clock)
    pace.run(machine, BATCHES + BATCHES)
    counts = np.array(machine.counts)
    assert pace.count == 2  # again, when the neighbour has gone
    slow = (machine.now - 1.5e-4 * (counts == 1).sum() - 1e-4 * (counts == 2).sum()) / 1.9e-3
    assert 0 < slow < 150  # steps that waited: a block, and a few of each trial


def test_where_all_are_equally_fast_trials_become_rare() -> None:
    machine = Machine(lambda count, now: 1e-4)
    Pace(machine.threads, 2, 1, machine.clock).run(machine, BATCHES)
    assert machine.counts[:BLOCK] == [1] * BLOCK
    assert 0 < machine.counts.count(2) < 30


def test_a_short_last_batch_is_not_taken_for_a_fast_one() -> None:
    machine = Machine(lambda count, now: 1e-4 * count)
    pace = Pace(machine.threads, 2, 1, machine.clock)
    for _ in range(100):
        pace.run(machine, [slice(0, 10)] * 8 + [slice(0, 1)])
    assert pace.count == 1
    assert machine.counts.count(2) < 30


def forced(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A fixed number of threads, whatever is asked for."""

    @contextmanager
    def threads(self: OpenBlas, _: int) -> Iterator[None]:
        self.controller.set_num_threads(count)
        yield

    monkeypatch.setattr(OpenBlas, "threads", threads)


@needs_openblas
@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, momentum=0.9), Adam()])
@pytest.mark.parametrize(
    ("sizes", "batch_size", "dtype"),
    [
        ([784, 128, 10], 32, "float32"),
        ([784, 128, 10], 100, "float64"),
        ([784, 10], 256, "float32"),
        ([784, 300, 100, 10], 64, "float32"),
        ([784, 300, 100, 10], 64, "float64"),
        ([1000, 65, 10], 1500, "float32"),
    ],
)
def test_one_thread_and_two_end_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], batch_size: int, dtype: str, optimizer: object
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1700, sizes[0]), dtype=np.uint8)
    data = Dataset(images, rng.integers(0, 10, 1700), classes=10)

    def train() -> bytes:
        model = MLP(sizes, device=NumpyBackend(), dtype=dtype)
        trainer = Trainer(model, data, optimizer=optimizer, batch_size=batch_size, diagnostics=False)
        trainer.run(2)
        return model.parameters.data.tobytes()

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        model = MLP(sizes, device=NumpyBackend(), dtype=dtype)
        trainer = Trainer(model, data, optimizer=optimizer, batch_size=batch_size)
        may = model.backend._any_threads_will_do(trainer._step, trainer.batches.slices)
        chosen, ends = train(), []
        for count in (1, 2):
            forced(monkeypatch, count)
            ends.append(train())
    if may:  # it depends on the processor
        assert ends[0] == ends[1] == chosen
    else:
        assert chosen in ends


@needs_openblas
def test_nothing_is_chosen_where_there_is_no_choice() -> None:
    backend = NumpyBackend()
    step = Machine(lambda count, now: 0.0)
    step.sizes, step.rows = (64, 16, 10), 32
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert not backend._any_threads_will_do(step, [slice(0, 32)])
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        step.multiply_adds = WORK_FOR_ALL_THREADS + 1
        assert not backend._any_threads_will_do(step, [slice(0, 32)])
        step.multiply_adds, step.sizes = 1, ()  # a step that does more with the BLAS than its layers
        assert not backend._any_threads_will_do(step, [slice(0, 32)])


@needs_openblas
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-12)])
@pytest.mark.parametrize("features", [200, 401, 784, 1001, 1600])
def test_a_product_in_parts_is_the_product(features: int, dtype: str, tolerance: float, order: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((33, features)).astype(dtype), rng.standard_normal((features, 7)).astype(dtype)
    out = np.full((33, 7), np.nan, dtype, order=order)
    NumpyBackend().product(x, weight, out)
    np.testing.assert_allclose(out, x.astype(float) @ weight.astype(float), atol=tolerance)
    parts = np.full_like(out, np.nan)
    assert OPENBLAS.product(x, weight, parts) == (features % 32 != 0 and features * out.itemsize > 1600)
    strided = np.asfortranarray(x)
    NumpyBackend().product(strided, weight, out)  # a layout that is left to NumPy
    np.testing.assert_allclose(out, x.astype(float) @ weight.astype(float), atol=tolerance)


@needs_openblas
@pytest.mark.parametrize("parts_keep_bits", [True, False])
def test_a_product_goes_in_parts_only_where_that_keeps_its_bits(
    monkeypatch: pytest.MonkeyPatch, parts_keep_bits: bool
) -> None:
    asked = []
    monkeypatch.setattr(OPENBLAS, "parts_keep_bits", parts_keep_bits)
    monkeypatch.setattr(OPENBLAS, "product", lambda *arrays: asked.append(1))
    x, weight, out = np.ones((33, 784), np.float32), np.ones((784, 7), np.float32), np.zeros((33, 7), np.float32)
    NumpyBackend().product(x, weight, out)
    np.testing.assert_array_equal(out, 784)
    assert len(asked) == parts_keep_bits


@needs_openblas
def test_a_product_in_parts_is_left_to_numpy_where_the_arrays_do_not_fit() -> None:
    x, weight = np.ones((33, 784), np.float32), np.ones((784, 7), np.float32)
    for wrong in (np.zeros((2, 7), np.float32), np.zeros((33, 6), np.float32)):
        with pytest.raises(ValueError, match="mismatch"):
            NumpyBackend().product(x, weight, wrong)
        assert not wrong.any()
    with pytest.raises(ValueError, match="mismatch"):
        NumpyBackend().product(x, weight[:-1].copy(), np.zeros((33, 7), np.float32))
    NumpyBackend().product(x[:0], weight, np.zeros((0, 7), np.float32))
    x.flags.writeable = weight.flags.writeable = False
    out = np.zeros((33, 7), np.float32)
    NumpyBackend().product(x, weight, out)
    np.testing.assert_array_equal(out, 784)
