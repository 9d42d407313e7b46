"""The optimized operations of the CPU agree with the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import threadpoolctl

from gpumlp import MLP, SGD, Adam, Dataset, Penalty, SoftmaxCrossEntropy, Trainer
from gpumlp.backends import Accumulation, reference_backend
from gpumlp.backends.numpy import MULTIPLY_ADDS_PER_THREAD, NumpyBackend, flush_vanishing
from gpumlp.backends.openblas import numpy_openblas

RNG = np.random.default_rng(2)
OPENBLAS = numpy_openblas()
needs_openblas = pytest.mark.skipif(OPENBLAS is None, reason="NumPy's BLAS is not the OpenBLAS of its wheel")


class PlainBackend(NumpyBackend):
    """NumPy without OpenBLAS."""

    def __init__(self) -> None:
        super().__init__()
        self._openblas, self.rows_at_a_time = None, None


class AccumulatingBackend(PlainBackend):
    """NumPy without OpenBLAS, accumulating gradients by the reference."""

    def accumulates(self, optimizer: Any, penalty: Any) -> bool:
        return True


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("scale", "keep"), [(1.0, 0.0), (-0.1, 1.0), (1.0, 0.9), (2.0, 0.0)])
def test_accumulate_product(dtype: str, order: str, scale: float, keep: float) -> None:
    x = RNG.normal(size=(7, 5)).astype(dtype)
    delta = np.array(RNG.normal(size=(7, 3)), dtype=dtype, order=order)
    before = RNG.normal(size=(5, 3)).astype(dtype)
    for backend in (NumpyBackend(), reference_backend(np)):
        out = before.copy()
        backend.accumulate_product(x, delta, Accumulation(out, scale, keep))
        np.testing.assert_allclose(out, keep * before + scale * x.T @ delta, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", [NumpyBackend(), reference_backend(np)])
def test_add_scaled(backend: NumpyBackend) -> None:
    x, out = RNG.normal(size=20), RNG.normal(size=20)
    expected = out - 0.3 * x
    backend.add_scaled(x, -0.3, out, np.empty(20))
    np.testing.assert_allclose(out, expected)


@needs_openblas
def test_unsupported_arguments_are_refused() -> None:
    x, delta, out = np.ones((4, 3)), np.ones((4, 2)), np.ones((3, 2))
    target, gaps = Accumulation(out, 1.0, 1.0), np.ones((3, 4))[:, ::2]
    whole = [array.astype(int) for array in (x, delta, out)]
    refused: list[tuple[type[Exception], Callable[[], None]]] = [
        (ValueError, lambda: OPENBLAS.accumulate_product(x, delta[:3], target)),
        (ValueError, lambda: OPENBLAS.accumulate_product(x, delta.astype("f4"), target)),
        (ValueError, lambda: OPENBLAS.accumulate_product(whole[0], whole[1], Accumulation(whole[2], 1.0, 1.0))),
        (TypeError, lambda: OPENBLAS.accumulate_product(x, delta, Accumulation(gaps, 1.0, 1.0))),
        (TypeError, lambda: OPENBLAS.accumulate_product(np.ones((4, 6))[:, ::2], delta, target)),
        (ValueError, lambda: OPENBLAS.add_scaled(x[0], 1.0, out[0])),
        (TypeError, lambda: OPENBLAS.add_scaled(x[:3, 0], 1.0, out[:, 0])),
    ]
    for error, call in refused:
        with pytest.raises(error):
            call()
    np.testing.assert_array_equal(out, 1)


@pytest.mark.parametrize("batch", [1, 33])
def test_softmax_cross_entropy_in_column_order(batch: int) -> None:
    logits = RNG.normal(size=(batch, 10)).astype(np.float32)
    logits[0] = 3.0  # all equal: the first is predicted
    labels = RNG.integers(0, 10, batch)
    results = []
    for backend, order in ((NumpyBackend(), "F"), (reference_backend(np), "C")):
        delta, losses = np.array(logits, order=order), np.empty(batch, np.float32)
        correct = np.empty(batch, bool)
        backend.output_error(SoftmaxCrossEntropy(), delta, labels, losses, correct)
        results.append((delta, losses, correct))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-7)


@dataclass(frozen=True)
class Pull(Penalty):
    """A penalty without L1 and L2 that says which kernel computes it, as the built-in ones do."""

    kernel = "pull"

    def add_gradient(self, backend: Any, weights: Any, gradient: Any, scratch: Any) -> None:
        backend.add_scaled(weights, 0.1, gradient, scratch)


@pytest.mark.parametrize("penalty", [Penalty(), Penalty(l2=0.01), Penalty(l2=0.01, l1=0.001), Pull()])
@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, momentum=0.9), SGD(0.1, 0.9, nesterov=True), Adam()])
def test_accumulated_gradients_give_the_same_training(
    optimizer: SGD | Adam, penalty: Penalty, blobs: Dataset
) -> None:
    trained = []
    for backend in (PlainBackend(), AccumulatingBackend(), NumpyBackend()):
        model = MLP([blobs.features, 16, 8, blobs.classes], seed=3, device=backend, dtype="float64")
        trainer = Trainer(model, blobs, optimizer=optimizer, penalty=penalty, batch_size=32, seed=1)
        trainer.run(3)
        trained.append(model.parameters.data)
    np.testing.assert_allclose(trained[1], trained[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(trained[2], trained[0], rtol=1e-9, atol=1e-12)


class Step:
    """A step with this number of multiply-adds that records the number of threads."""

    slices, evaluates = (slice(0, 1),), None

    def __init__(self, multiply_adds: int, weights: int = 1, warp: object = None) -> None:
        self.multiply_adds, self.weights, self.warp, self.seen = multiply_adds, slice(0, weights), warp, 0

    def __call__(self, batch: slice, learning_rate: float) -> None:
        self.seen = OPENBLAS.controller.get_num_threads()


@needs_openblas
def test_the_number_of_threads_depends_on_the_work_and_is_restored() -> None:
    backend = NumpyBackend()
    steps = [Step(work) for work in (1, MULTIPLY_ADDS_PER_THREAD - 1, MULTIPLY_ADDS_PER_THREAD, 10**12)]
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        for step in steps:
            backend.run_steps(step, range(1), [0.1])
        assert [step.seen for step in steps] == [1, 1, 2, 2]  # at most the user's number
        assert [backend.execution(step).threads for step in steps] == [1, 1, 2, 2]
        assert OPENBLAS.controller.get_num_threads() == 2


@needs_openblas
@pytest.mark.parametrize(
    ("cores", "weights", "threads"),
    [(1, 1, 1), (2, 635_200, 1), (2, 999_999, 1), (2, 1_000_000, 2), (4, 2_000_000, 3), (4, 6_000_000, 4)],
)
def test_a_core_is_left_to_the_thread_that_distorts_images(cores: int, weights: int, threads: int) -> None:
    with threadpoolctl.threadpool_limits(cores, user_api="blas"):
        assert NumpyBackend().execution(Step(10**12, weights, "a warp")).threads == threads
        assert NumpyBackend().execution(Step(10**12, weights)).threads == cores


@needs_openblas
def test_overlapping_runs_restore_the_original_number_of_threads() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        first, second = OPENBLAS.threads(1), OPENBLAS.threads(4)
        first.__enter__()
        second.__enter__()
        assert OPENBLAS.controller.get_num_threads() == 2  # the previous number, not the requested one
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert OPENBLAS.controller.get_num_threads() == 2


@needs_openblas
def test_an_interrupt_while_threads_are_set_restores_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, interrupts = OPENBLAS.controller, [KeyboardInterrupt]
    really_set = controller.set_num_threads

    def set_and_be_interrupted(count: int) -> None:
        really_set(count)
        if interrupts:
            raise interrupts.pop()

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        monkeypatch.setattr(controller, "set_num_threads", set_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt), OPENBLAS.threads(1):
            pass
        assert controller.get_num_threads() == 2
        with OPENBLAS.threads(1):
            assert controller.get_num_threads() == 1
        assert controller.get_num_threads() == 2
        monkeypatch.undo()


@needs_openblas
def test_a_failing_step_restores_the_number_of_threads() -> None:
    class Failing(Step):
        def __call__(self, batch: slice, learning_rate: float) -> None:
            raise KeyboardInterrupt

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with pytest.raises(KeyboardInterrupt):
            NumpyBackend().run_steps(Failing(1), range(1), [0.1])
        assert OPENBLAS.controller.get_num_threads() == 2


def test_flush_vanishing_keeps_every_number_that_matters() -> None:
    array = np.array([1.0, -2e-30, 1e-31, -1e-45, 0.0, np.inf], dtype=np.float32)
    flush_vanishing(array, np.empty_like(array))
    np.testing.assert_array_equal(array, np.array([1, -2e-30, 0, 0, 0, np.inf], np.float32))


def test_a_custom_rule_is_always_applied(blobs: Dataset) -> None:
    class Still(SGD):
        def update(self, xp: Any, parameters: Any, gradient: Any, state: Any, learning_rate: float) -> None:
            pass

    model = MLP([blobs.features, 8, blobs.classes], device="cpu")
    before = model.parameters.data.copy()
    Trainer(model, blobs, optimizer=Still(0.1), batch_size=32).run(1)
    np.testing.assert_array_equal(model.parameters.data, before)


def test_weight_gradients_are_stored_on_request_and_otherwise_nan(blobs: Dataset) -> None:
    model = MLP([blobs.features, 8, blobs.classes], device="cpu")
    trainer = Trainer(model, blobs, batch_size=32)
    trainer.run(1)
    for layer in model.layers:
        assert np.isnan(layer.weight_gradient).all() or OPENBLAS is None
    trainer.keep_gradients()
    trainer.run(2)
    for layer in model.layers:
        assert np.abs(layer.weight_gradient).max() > 0
    assert np.isfinite(model.parameters.gradient).all()  # including the padding


def test_a_custom_penalty_gets_the_gradient(blobs: Dataset) -> None:
    class Clip(Penalty):
        def add_gradient(self, backend: Any, weights: Any, gradient: Any, scratch: Any) -> None:
            np.clip(gradient, -0.01, 0.01, out=gradient)

    trained = []
    for backend in (PlainBackend(), NumpyBackend()):
        model = MLP([blobs.features, 8, blobs.classes], device=backend, dtype="float64")
        Trainer(model, blobs, optimizer=SGD(0.1, momentum=0.9), penalty=Clip(), batch_size=32).run(2)
        trained.append(model.parameters.data)
    np.testing.assert_allclose(trained[1], trained[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", [SGD(0.5), SGD(0.5, momentum=0.9), Adam(0.01)], ids=repr)
@pytest.mark.parametrize("batch_size", [100, 64, "full"])
def test_a_batch_in_parts_gives_the_same_result(blobs: Dataset, optimizer: Any, batch_size: Any) -> None:
    """300 samples, in parts of 32 and a smaller one, in full and smaller batches, and in one part."""

    class InParts(NumpyBackend):
        def __init__(self) -> None:
            super().__init__()
            self.rows_at_a_time = 32

    trained, gradients, histories = [], [], []
    for backend in (NumpyBackend(), InParts()):
        model = MLP([blobs.features, 8, blobs.classes], device=backend, dtype="float64")
        trainer = Trainer(model, blobs, optimizer=optimizer, penalty=Penalty(l2=0.01), batch_size=batch_size)
        trainer.keep_gradients()
        histories.append(trainer.run(3)["train_loss"])
        trained.append(model.parameters.data)
        gradients.append(model.parameters.gradient)
        assert trainer.workspace.batch_size == (32 if isinstance(backend, InParts) else trainer.batches.batch_size)
    np.testing.assert_allclose(trained[1], trained[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-9)
