"""Losses with float targets, sample weights, and networks with such a loss."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    Dataset,
    LogisticCrossEntropy,
    Loss,
    Penalty,
    PoissonDeviance,
    SoftmaxCrossEntropy,
    SquaredError,
    Trainer,
    fit,
)
from gpumlp.backends import Backend, DeviceError
from gpumlp.data.dataset import ArrayBatches
from gpumlp.nn.losses import sigmoid
from gpumlp.training.step import TrainingStep
from tests.data_helpers import reorder
from tests.strict_device import StrictBackend

RNG = np.random.default_rng(0)
OUTPUTS, LABELS = RNG.normal(0, 3, (7, 3)), RNG.integers(0, 2, (7, 3)).astype(float)
VALUES = RNG.normal(0, 3, (7, 3))


def test_logistic_loss_is_minus_the_log_of_the_probability_of_each_answer() -> None:
    p = 1 / (1 + np.exp(-OUTPUTS))
    expected = -(LABELS * np.log(p) + (1 - LABELS) * np.log(1 - p)).sum(axis=1).mean()
    assert LogisticCrossEntropy()(OUTPUTS, LABELS) == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(LogisticCrossEntropy().gradient(OUTPUTS, LABELS), (p - LABELS) / 7, atol=1e-16)


def test_one_logistic_output_is_a_softmax_of_two() -> None:
    s, y = OUTPUTS[:, :1], LABELS[:, :1]
    two = np.concatenate([np.zeros_like(s), s], axis=1)
    assert LogisticCrossEntropy()(s, y) == pytest.approx(
        SoftmaxCrossEntropy()(two, y[:, 0].astype(int)), rel=1e-13
    )


def test_squared_error_by_hand() -> None:
    outputs, targets = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [3.0, 6.0]])
    assert SquaredError()(outputs, targets) == (0.5 * (1 + 4) + 0.5 * 4) / 2
    np.testing.assert_array_equal(SquaredError().gradient(outputs, targets), [[0.5, 1], [0, -1]])


def test_poisson_deviance_by_hand() -> None:
    outputs, targets = np.array([[0.0, np.log(2)], [1.0, -1000]]), np.array([[3.0, 2.0], [0.0, 0.0]])
    assert PoissonDeviance()(outputs, targets) == pytest.approx((3 * np.log(3) - 3 + 1 + 0 + np.e + 0) / 2)
    np.testing.assert_allclose(PoissonDeviance().gradient(outputs, targets), [[-1, 0], [np.e / 2, 0]], atol=1e-15)
    np.testing.assert_allclose(PoissonDeviance().predictions(outputs), [[1, 2], [np.e, 0]])
    with pytest.raises(ValueError, match="expected targets of 0 or more, got -1 to 2"):
        PoissonDeviance()(np.zeros((2, 1)), np.array([[-1.0], [2.0]]))


@pytest.mark.parametrize(
    ("loss", "targets"),
    [(LogisticCrossEntropy(), LABELS), (SquaredError(), VALUES), (PoissonDeviance(), np.abs(VALUES))],
)
def test_gradients_are_the_slopes_of_the_loss(loss: Loss, targets: np.ndarray) -> None:
    gradient, step = loss.gradient(OUTPUTS, targets), 1e-6
    for i, j in np.ndindex(*OUTPUTS.shape):
        up, down = OUTPUTS.copy(), OUTPUTS.copy()
        up[i, j] += step
        down[i, j] -= step
        assert gradient[i, j] == pytest.approx((loss(up, targets) - loss(down, targets)) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_logits_of_any_size(size: float, dtype: str) -> None:
    logits, big = np.array([[size], [size], [-size], [-size]], dtype), float(np.array(size, dtype))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for row, (label, expected) in enumerate([(1, 0), (0, big), (0, 0), (1, big)]):
            found = LogisticCrossEntropy()(logits[row : row + 1], np.array([[label]], dtype))
            assert found == pytest.approx(expected, rel=1e-6)
        np.testing.assert_array_equal(sigmoid(logits), [[1], [1], [0], [0]])


def test_a_probability_close_to_0_is_precise() -> None:
    assert sigmoid(np.array([-30.0], np.float32))[0] == pytest.approx(math.exp(-30), rel=1e-5)


@pytest.mark.parametrize("loss", [LogisticCrossEntropy(), SquaredError(), PoissonDeviance()])
@pytest.mark.parametrize(
    ("outputs", "targets", "words"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), "of one shape"),
        (np.zeros((3, 2)), np.zeros(3), "of one shape"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "at least one sample"),
        (np.zeros((3, 2)), np.zeros((3, 2), int), "of one dtype, got float64 and int64"),
    ],
)
def test_mismatched_arrays_are_refused(loss: Loss, outputs: np.ndarray, targets: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loss(outputs, targets)


def test_targets_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="expected targets from 0 to 1, got 0 to 2"):
        LogisticCrossEntropy()(np.zeros((2, 1)), np.array([[0.0], [2.0]]))


# -- Networks with them --------------------------------------------------------------------------------------


def test_predictions_and_probabilities_depend_on_the_loss() -> None:
    x = RNG.normal(size=(5, 3)).astype(np.float32)
    logistic = MLP([3, 4, 2], loss="logistic_cross_entropy", device="cpu")
    np.testing.assert_allclose(logistic.predict_proba(x), 1 / (1 + np.exp(-logistic.logits(x))), rtol=1e-6)
    np.testing.assert_array_equal(logistic.predict(x), logistic.logits(x) > 0)
    regression = MLP([3, 4, 1], loss=SquaredError(), device="cpu")
    np.testing.assert_array_equal(regression.predict(x), regression.logits(x))
    assert "loss='squared_error'" in repr(regression)
    for model, output in ((logistic, "sigmoid"), (regression, "identity"), (MLP([3, 2]), "softmax")):
        assert f">{output}<" in model._repr_html_()
    with pytest.raises(ValueError, match="loss squared_error are not probabilities"):
        regression.predict_proba(x)


def test_invalid_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of classes \(2 or more\), .* got \[3, 1\]"):
        MLP([3, 1], loss="softmax_cross_entropy")
    with pytest.raises(ValueError, match="loss is expected to be one of softmax_cross_entropy, logistic"):
        MLP([3, 1], loss="hinge")


def test_class_numbers_are_refused_as_targets_of_such_a_network(blobs: Dataset) -> None:
    model = MLP([20, 4], loss="squared_error", device="cpu")
    for use in (lambda: fit(model, blobs), lambda: model.evaluate(blobs)):
        with pytest.raises(ValueError, match=r"squared_error, whose targets are numbers, but .* one class of"):
            use()


# -- Sample weights ------------------------------------------------------------------------------------------


def one_step(
    backend: Backend, loss: str, rows: list[int], weights: list[float] | None
) -> tuple[np.ndarray, float]:
    """The gradient of one batch, and its mean loss."""
    rng = np.random.default_rng(5)
    images, numbers = rng.normal(size=(6, 4)).astype(np.float32), rng.integers(0, 3, 6)
    targets = numbers if loss == "softmax_cross_entropy" else np.eye(3, dtype=np.float32)[numbers]
    model = MLP([4, 5, 3], "tanh", loss=loss, device=backend)
    counted = None if weights is None else np.array(weights, np.float32)
    device = [backend.asarray(array) for array in (images, targets)]
    batches = ArrayBatches(*device, np.array(rows), len(rows), backend, counted)
    step = TrainingStep(model, batches, SGD(0.1), SGD(0.1).init(model.parameters.data), Penalty())
    step.keep_gradient()
    with backend.activate():
        step(slice(0, len(rows)), 0.1)
    return backend.to_numpy(model.parameters.gradient), float(backend.to_numpy(step.losses).mean())


@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", "logistic_cross_entropy", "squared_error", "poisson_deviance"]
)
def test_a_weight_of_n_equals_n_copies_of_the_sample(backend: Backend, loss: str) -> None:
    weighted = one_step(backend, loss, [0, 1, 2, 3, 4, 5], [2.0, 0.0, 1.0, 3.0, 0.0, 1.0])
    repeated = one_step(backend, loss, [0, 0, 2, 3, 3, 3, 5], None)
    np.testing.assert_allclose(weighted[0], repeated[0], rtol=1e-4, atol=1e-6)
    assert weighted[1] == pytest.approx(repeated[1], rel=1e-5)


def test_weights_follow_the_order_of_the_samples() -> None:
    backend = StrictBackend()
    arrays = backend.asarray(np.zeros((5, 1), np.float32)), backend.asarray(np.arange(5))
    batches = ArrayBatches(*arrays, np.arange(5), 2, backend, np.array([1, 2, 3, 0, 0], np.float32))
    np.testing.assert_allclose(backend.to_numpy(batches.weights), [2 / 3, 4 / 3, 2, 0, 0])
    assert batches.batch_weights == [3, 3, 0]
    reorder(batches, np.array([4, 2, 0, 1, 3]))
    np.testing.assert_allclose(backend.to_numpy(batches.weights), [0, 2, 2 / 3, 4 / 3, 0])
    assert batches.batch_weights == [3, 3, 0]


def test_without_weights_no_weights_are_applied(blobs: Dataset) -> None:
    backend = StrictBackend()
    trainer = Trainer(MLP([20, 4], device=backend), blobs, batch_size=32)
    backend.weigh = None  # not called
    trainer.run(1)
    assert trainer.batches.weights is None


# -- Adam's epsilon ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "expected"), [(True, 0.5 / (0.5 + 0.1)), (False, 0.5 / (0.5 + 0.1 / 0.1**0.5))]
)
def test_adams_epsilon_in_the_first_step(correct: bool, expected: float) -> None:
    # First step, g = 0.5, beta2 = 0.9: v^ = g^2, so theta moves by g / (g + epsilon), or epsilon / sqrt(1 - beta2)
    theta, adam = np.array([0.0]), Adam(1.0, beta2=0.9, epsilon=0.1, correct_epsilon=correct)
    adam.update(np, theta, np.array([0.5]), adam.init(theta), *adam.step_factors(1, 1.0))
    assert -theta[0] == pytest.approx(expected, rel=1e-12)


# -- Copies and pickles ----------------------------------------------------------------------------------------


every_copy = pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)


@every_copy
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "squared_error"])
def test_a_copy_is_independent(copied: object, loss: str, blobs: Dataset) -> None:
    model = MLP([20, 6, 4], "tanh", seed=4, device="cpu", dtype="float64", loss=loss)
    before = model.state_dict()
    other = copied(model)
    assert repr(other) == repr(model)
    np.testing.assert_array_equal(other.parameters.data, model.parameters.data)
    for layer in other.dense_layers:
        assert np.shares_memory(layer.weight, other.parameters.data)
        assert np.shares_memory(layer.weight_gradient, other.parameters.gradient)
    other.layers[0].weight[...] += 1
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name])
    if loss == "softmax_cross_entropy":
        fit(other, blobs, epochs=1)
        assert model.predict(blobs.images[:3]).shape == (3,)


@every_copy
def test_a_network_that_diverged_can_be_copied(copied: object) -> None:
    model = MLP([3, 2], device="cpu")
    model.parameters.data[0] = np.nan
    np.testing.assert_array_equal(copied(model).parameters.data, model.parameters.data)


def test_a_copy_stays_on_its_device(blobs: Dataset) -> None:
    model = MLP([20, 4], device=StrictBackend())
    fit(model, blobs, epochs=1)
    other = copy.deepcopy(model)
    assert other.backend is model.backend
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], tensor)


def test_a_network_from_a_gpu_is_read_onto_the_cpu_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = MLP([3, 2], device="cpu")
    model.backend.name = "cuda:7"
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(model))

    def no_gpu() -> None:
        raise DeviceError("there is no GPU")

    monkeypatch.setattr("gpumlp.backends._cuda_module", no_gpu)
    with pytest.warns(RuntimeWarning, match="a network from cuda:7 is loaded onto the CPU: there is no GPU"):
        read = pickle.loads(file.read_bytes())
    assert read.backend.name == "cpu"
    np.testing.assert_array_equal(read.parameters.data, model.parameters.data)
