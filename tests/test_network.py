"""The network: inputs, predictions, evaluation and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, Committee, Dataset, fit, softmax
from gpumlp.nn.network import CHUNK

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
X = IMAGES.reshape(20, 784) / 255


@pytest.fixture
def model() -> MLP:
    return with_biases(MLP([784, 16, 12, 10], seed=1, device="cpu"))


def with_biases(model: MLP) -> MLP:
    rng = np.random.default_rng(4)
    for layer in model.dense_layers:
        layer.bias[:] = rng.normal(size=layer.out_features)
    return model


def by_formula(model: MLP, x: np.ndarray) -> np.ndarray:
    """s_L of a ReLU network in float64, by the equations."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in model.state_dict().items()}
    last = len(model.sizes) - 2
    for index in range(last + 1):
        x = x @ tensors[f"layers.{index}.weight"] + tensors[f"layers.{index}.bias"]
        x = x if index == last else np.maximum(x, 0)
    return x


# -- Names and numbers -------------------------------------------------------------------------------------


def test_repr_shows_the_number_of_parameters() -> None:
    # 784 * 128 + 128 + 128 * 10 + 10 = 101,770
    assert repr(MLP([784, 128, 10], "tanh", device="cpu")) == (
        "MLP([784, 128, 10], activation='tanh', device='cpu', dtype='float32')  # 101,770 parameters"
    )
    assert str(MLP([784, 10], device="cpu")) == "MLP([784, 10])"


@pytest.mark.parametrize(
    "sizes", [[], [784], [784, 0], [0, 10], [784, 0, 10], [-1, 10], [2.5, 1], [True, 2], "ab"]
)
def test_invalid_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="sizes are expected to be the number of inputs"):
        MLP(sizes, device="cpu")


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of classes \(2 or more\), such as .*, got \[784, 1\]"):
        MLP([784, 1], loss="softmax_cross_entropy", device="cpu")


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_other_precisions_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"float32 or float64, got {dtype}"):
        MLP([4, 2], dtype=dtype, device="cpu")


# -- Use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[784, 10], [784, 16, 10], [784, 16, 12, 10]], ids=str)
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float64", 1e-13)])
def test_logits_are_those_of_the_equations(sizes: list[int], dtype: str, error: float) -> None:
    model = with_biases(MLP(sizes, dtype=dtype, device="cpu"))
    logits = model.logits(IMAGES)
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, by_formula(model, X), rtol=0, atol=error)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES.reshape(20, 784),
        IMAGES[::2].repeat(2, axis=0)[::-1][::-1],
        X,
        X.astype(np.float32),
        X.reshape(20, 1, 28, 28),
        X.tolist(),
        np.asfortranarray(X),
    ],
    ids=["(n, 28, 28)", "(n, 784)", "strided", "float64", "float32", "(n, 1, 28, 28)", "list", "Fortran order"],
)
def test_pixels_and_their_fractions_in_any_shape(model: MLP, images: np.ndarray) -> None:
    x = np.asarray(images)
    before = x.copy()
    x = x.reshape(20, 784) / (255 if x.dtype == np.uint8 else 1)
    expected = by_formula(model, x)
    np.testing.assert_allclose(model.logits(images), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(images), softmax(expected), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.predict(images), expected.argmax(axis=1))
    assert model.predict(images).dtype == np.int64
    np.testing.assert_array_equal(np.asarray(images), before)


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool"])
def test_only_uint8_is_divided_by_255(model: MLP, dtype: str) -> None:
    x = (IMAGES % 3).astype(dtype)
    np.testing.assert_allclose(model.logits(x), by_formula(model, x.reshape(20, 784)), rtol=1e-4, atol=1e-4)


def test_probabilities_sum_to_one(model: MLP) -> None:
    np.testing.assert_allclose(model.predict_proba(IMAGES).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 783), (5, 28, 27), (5, 28)])
def test_another_number_of_features_is_refused(model: MLP, shape: tuple[int, ...]) -> None:
    for call in (model.logits, model.predict, model.predict_proba):
        with pytest.raises(ValueError, match="expects 784 features a sample, got "):
            call(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"expects 784 features a sample, got .*\(Dataset"):
        model.evaluate(Dataset(np.zeros(shape, np.uint8), np.zeros(5, int)))


def test_one_sample_without_its_axis_is_refused(model: MLP) -> None:
    with pytest.raises(ValueError, match=r"shape \(samples, ...\), got \(784,\)"):
        model.logits(X[0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite_in_the_networks_dtype_are_refused(model: MLP, wrong: float) -> None:
    x = X.copy()
    x[3, 5] = wrong
    for call in (model.logits, model.predict, model.predict_proba):
        with pytest.raises(ValueError, match=r"1 of 15,680 values are NaN, .*the first in sample 3;"):
            call(x)
    double = MLP([784, 10], device="cpu", dtype="float64")
    assert np.isfinite(double.logits(np.nan_to_num(x, nan=1e39, posinf=1e39, neginf=-1e39))).all()


@pytest.mark.parametrize("method", ["logits", "predict", "predict_proba"])
@pytest.mark.parametrize("make", [lambda member: member, lambda member: Committee([member, member])])
def test_outputs_that_overflow_are_no_prediction(make: Callable[[MLP], Any], method: str) -> None:
    asked = make(MLP([2, 8, 2], seed=0, device="cpu"))
    images = np.array([[1.0, 2.0], [3e38, 3e38], [2.0, 1.0]])
    predict = getattr(asked, method, None) or asked.vote
    with pytest.raises(ValueError, match=r"not finite in float32 for 1 of 3 samples, first for sample 1"):
        predict(images)
    predict(images[:1])
    assert asked.accuracy(images[:1], [0]) in (0, 1)
    with pytest.raises(ValueError, match="is nan for these samples: the values are too large"):
        asked.accuracy(images, [0, 1, 0])


@pytest.mark.parametrize("dtype", ["complex64", "object", "U3"])
def test_values_of_another_kind_are_refused(model: MLP, dtype: str) -> None:
    with pytest.raises(ValueError, match="integers or real floats, got dtype"):
        model.predict(X.astype(dtype))


def test_no_samples_have_no_predictions(model: MLP) -> None:
    assert model.predict(X[:0]).shape == (0,)


def test_more_classes_than_outputs_are_refused(model: MLP) -> None:
    with pytest.raises(ValueError, match=r"has 10 classes, but Dataset.*has 11"):
        model.evaluate(Dataset(IMAGES, np.arange(20) % 11))


def test_predictions_do_not_depend_on_the_other_rows(model: MLP) -> None:
    together = model.logits(IMAGES)
    one_by_one = np.concatenate([model.logits(IMAGES[row : row + 1]) for row in range(20)])
    np.testing.assert_allclose(one_by_one, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("pixels", [True, False])
def test_results_do_not_depend_on_chunks(samples: int, pixels: bool) -> None:
    model = with_biases(MLP([9, 8, 5], device="cpu"))
    images = np.random.default_rng(2).integers(0, 256, (samples, 3, 3), dtype=np.uint8)
    x = images.reshape(samples, 9) / 255
    expected = by_formula(model, x)
    given = images if pixels else x
    np.testing.assert_allclose(model.logits(given), expected, rtol=0, atol=1e-5)
    labels = np.arange(samples) % 5
    result = model.evaluate(Dataset(given, labels, classes=5))
    losses = np.log(np.exp(expected).sum(axis=1)) - expected[np.arange(samples), labels]
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert result.correct == (model.predict(given) == labels).sum()
    assert result.samples == samples


# -- Evaluation ------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_predictions(blobs: Dataset) -> None:
    small = MLP([20, 8, 4], device="cpu")
    fit(small, blobs, epochs=1)
    hits = sum(int(a) == int(b) for a, b in zip(small.predict(blobs.images), blobs.labels, strict=True))
    assert 0 < hits < 300
    result = small.evaluate(blobs)
    assert (result.accuracy, result.correct, result.samples) == (hits / 300, hits, 300)
    assert small.accuracy(blobs) == hits / 300


def test_evaluation_is_the_same_to_the_last_bit_and_changes_nothing(model: MLP) -> None:
    images = np.random.default_rng(2).integers(0, 256, (CHUNK + 77, 784), dtype=np.uint8)
    data = Dataset(images, np.arange(CHUNK + 77) % 10)
    before = model.parameters.data.copy()
    first = model.evaluate(data)
    model.predict(IMAGES)
    assert all(model.evaluate(data) == first for _ in range(3))
    np.testing.assert_array_equal(model.parameters.data, before)


# -- State ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_state_dict_round_trip(dtype: str) -> None:
    model = with_biases(MLP([5, 4, 3], seed=1, dtype=dtype, device="cpu"))
    other = MLP([5, 4, 3], seed=2, dtype=dtype, device="cpu")
    state = model.state_dict()
    assert {name: (tensor.shape, tensor.dtype.name) for name, tensor in state.items()} == {
        "layers.0.weight": ((5, 4), dtype),
        "layers.1.weight": ((4, 3), dtype),
        "layers.0.bias": ((4,), dtype),
        "layers.1.bias": ((3,), dtype),
    }
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.parameters.data, model.parameters.data)
    np.testing.assert_array_equal(other.layers[1].bias, model.layers[1].bias)  # the layers' views have moved along


def test_state_dict_is_a_copy_both_ways() -> None:
    model = MLP([5, 4, 3], device="cpu")
    before = model.parameters.data.copy()
    state = model.state_dict()
    for tensor in state.values():
        tensor[...] = 9
    np.testing.assert_array_equal(model.parameters.data, before)
    model.load_state_dict(state)
    model.layers[0].weight[...] = 7
    assert (state["layers.0.weight"] == 9).all()


def test_load_state_dict_names_everything_that_is_wrong_and_changes_nothing() -> None:
    model = MLP([5, 4, 3], device="cpu")
    before = model.parameters.data.copy()
    state = model.state_dict()
    del state["layers.0.bias"]
    state["layers.2.weight"] = np.zeros((3, 3))
    state["layers.1.weight"] = np.zeros((3, 4))
    with pytest.raises(ValueError, match="layers") as error:
        model.load_state_dict(state)
    assert str(error.value).split("; ") == [
        "layers.0.bias is missing",
        "layers.2.weight is not part of this network",
        "layers.1.weight is expected to have shape (4, 3), got (3, 4)",
    ]
    np.testing.assert_array_equal(model.parameters.data, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = MLP([3, 2], device="cpu")
    before = model.state_dict()
    changed = {name: tensor.astype(np.float64) for name, tensor in before.items()}
    changed["layers.0.bias"][1] = value
    with pytest.raises(ValueError, match=r"layers.0.bias is expected to be finite in float32, but 1 of 2 values"):
        model.load_state_dict(changed)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name])
