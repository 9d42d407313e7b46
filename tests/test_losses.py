"""Softmax and cross-entropy against the formula, and for logits for which it overflows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpumlp import MLP, Dataset, SoftmaxCrossEntropy, get_backend, softmax

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(0, 3, (7, 4)), RNG.integers(0, 4, 7)
loss = SoftmaxCrossEntropy()


def test_loss_is_the_mean_of_minus_log_softmax() -> None:
    probabilities = [np.exp(s) / np.exp(s).sum() for s in LOGITS]
    expected = -sum(math.log(p[y]) for p, y in zip(probabilities, LABELS, strict=True)) / 7
    assert loss(LOGITS, LABELS) == pytest.approx(expected, rel=1e-13)


def test_loss_by_hand() -> None:
    # two classes: log(1 + e^-(s_y - s_other));  log(1 + e^0) = 0.693147...;  log(1 + e^2) = 2.126928...
    logits, labels = np.array([[1.0, 1.0], [2.0, 0.0]]), np.array([0, 1])
    assert loss(logits, labels) == pytest.approx((0.6931471805599453 + 2.1269280110429727) / 2, rel=1e-14)
    # k equal logits: log k
    assert loss(np.zeros((3, 10)), np.array([0, 5, 9])) == pytest.approx(2.302585092994046, rel=1e-14)


def test_gradient_is_softmax_minus_onehot_over_the_batch() -> None:
    expected = (softmax(LOGITS) - np.eye(4)[LABELS]) / 7
    np.testing.assert_allclose(loss.gradient(LOGITS, LABELS), expected, rtol=0, atol=1e-16)


def test_gradient_sums_to_zero_over_the_classes() -> None:
    np.testing.assert_allclose(loss.gradient(LOGITS, LABELS).sum(axis=1), 0, atol=1e-16)


def test_softmax() -> None:
    np.testing.assert_allclose(softmax(LOGITS), [np.exp(s) / np.exp(s).sum() for s in LOGITS], rtol=1e-14)
    np.testing.assert_allclose(softmax(LOGITS).sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize("shift", [-1000.0, -1.5, 1000.0])
def test_a_shift_of_all_logits_of_a_sample_changes_nothing(shift: float) -> None:
    shifted = LOGITS + shift * np.arange(7)[:, None]
    assert loss(shifted, LABELS) == pytest.approx(loss(LOGITS, LABELS), rel=1e-10)
    np.testing.assert_allclose(softmax(shifted), softmax(LOGITS), rtol=1e-10)
    np.testing.assert_allclose(loss.gradient(shifted, LABELS), loss.gradient(LOGITS, LABELS), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_logits_of_any_size(size: float, dtype: str) -> None:
    """The loss is 0 if certain and correct, the distance if certain and wrong, log 2 for equal logits."""
    big = float(np.array(size, dtype))
    logits = np.array([[size, 0], [size, 0], [size, size], [-size, -size]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for row, label, expected in [(0, 0, 0), (1, 1, big), (2, 0, math.log(2)), (3, 1, math.log(2))]:
            assert loss(logits[row : row + 1], np.array([label])) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(softmax(logits), [[1, 0], [1, 0], [0.5, 0.5], [0.5, 0.5]])


def test_arguments_are_kept_and_precision_stays() -> None:
    logits = LOGITS.astype(np.float32)
    before = logits.copy()
    assert softmax(logits).dtype == loss.gradient(logits, LABELS).dtype == np.float32
    assert isinstance(loss(logits, LABELS), float)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_does_not_matter(order: str) -> None:
    logits = np.array(LOGITS, order=order)
    assert loss(logits, LABELS) == loss(LOGITS, LABELS)
    np.testing.assert_array_equal(loss.gradient(logits, LABELS), loss.gradient(LOGITS, LABELS))


@pytest.mark.parametrize(
    ("labels", "found"), [([0, 4], "got 0 to 4"), ([-1, 0], "got -1 to 0"), ([10**9, 0], "to 1000000000")]
)
def test_labels_out_of_range_are_refused(labels: list[int], found: str) -> None:
    for call in (loss, loss.gradient):
        with pytest.raises(ValueError, match=f"expected labels from 0 to 3, {found}|{found}"):
            call(LOGITS[:2], np.array(labels))


@pytest.mark.parametrize(
    ("logits_shape", "labels_shape"),
    [((4,), (4,)), ((2, 4), (3,)), ((2, 4), (2, 1)), ((2, 4), ()), ((0, 4), (0,))],
)
def test_shapes_that_do_not_fit_are_refused(logits_shape: tuple[int, ...], labels_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected logits \(batch, classes\) and labels \(batch,\)"):
        loss(np.zeros(logits_shape), np.zeros(labels_shape, dtype=np.int64))


def test_of_equal_logits_the_first_is_predicted() -> None:
    logits = np.array([[1.0, 1, 0], [1, 1, 0], [0, 2, 2], [0, 2, 2], [5, 5, 5]])
    labels = np.array([0, 1, 1, 2, 2])
    correct = np.empty(5, dtype=bool)
    get_backend("cpu").output_error(SoftmaxCrossEntropy(), logits, labels, np.empty(5), correct)
    assert correct.tolist() == [True, False, True, False, False]


def test_equal_logits_do_not_count_as_all_correct() -> None:
    model = MLP([3, 10], initializer="normal", device="cpu")
    model.parameters.data[:] = 0
    data = Dataset(np.ones((50, 3), np.float32), np.arange(50) % 10)
    assert not model.predict(data.images).any()
    assert model.evaluate(data)[:4] == pytest.approx((math.log(10), 0.1, 5, 50))
