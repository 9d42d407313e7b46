"""What a network was trained on is checked in every way in: shape, scale and classes of what it is given later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, Dataset, Inputs, fit, get_backend
from gpumlp.backends import Backend
from gpumlp.nn.samples import learned_names, training_targets
from tests.strict_device import StrictBackend

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 4, 3)).astype(np.uint8)
PIXELS[0, 0, :2] = 0, 255
SHARES = (PIXELS / 255).astype(np.float32)
FLOATS = PIXELS.astype(np.float32)
LABELS = np.arange(24) % 3

USES: dict[str, Callable[..., Any]] = {
    "logits": lambda model, images, **options: model.logits(images, **options),
    "predict": lambda model, images, **options: model.predict(images, **options),
    "predict_proba": lambda model, images, **options: model.predict_proba(images, **options),
    "evaluate": lambda model, images, **options: model.evaluate(Dataset(images, LABELS), **options).loss,
    "accuracy": lambda model, images, **options: model.accuracy(Dataset(images, LABELS), **options),
    "fit": lambda model, images, **options: fit(model, Dataset(images, LABELS), epochs=1, **options)["train_loss"],
}
every_way_in = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


def class_numbers(model: MLP, data: Dataset) -> np.ndarray:
    return training_targets(model, data, model.class_names)


def trained(dtype: str | None, shape: tuple[int, ...] = (4, 3), device: str | Backend = "cpu") -> MLP:
    model = MLP([12, 5, 3], seed=1, device=device)
    model.inputs = None if dtype is None else Inputs(shape, dtype, "mine")
    return model


# -- Scale -------------------------------------------------------------------------------------------------------


@every_way_in
@pytest.mark.parametrize(
    ("dtype", "given", "same_as"),
    [
        (None, PIXELS, SHARES),
        (None, FLOATS, FLOATS),
        ("uint8", PIXELS, SHARES),
        ("uint8", SHARES, SHARES),
        ("uint8", SHARES.astype(np.float64), SHARES),
        ("uint8", PIXELS > 99, (PIXELS > 99).astype(np.float32)),
        ("float32", FLOATS, FLOATS),
        ("float64", FLOATS - 100, FLOATS - 100),
        ("float32", PIXELS.astype(np.int64), FLOATS),
        ("any", PIXELS, FLOATS),
        ("any", FLOATS, FLOATS),
    ],
)
def test_values_have_the_scale_of_training(use: Any, dtype: str | None, given: Any, same_as: np.ndarray) -> None:
    reference = trained("any")
    np.testing.assert_allclose(use(trained(dtype), given), use(reference, same_as), rtol=1e-5, atol=1e-6)


@every_way_in
@pytest.mark.parametrize("dtype", [None, "float32", "any"])
@pytest.mark.parametrize(("pixels", "same_as"), [(True, SHARES), (False, FLOATS)])
def test_pixels_says_what_uint8_is(use: Any, dtype: str | None, pixels: bool, same_as: np.ndarray) -> None:
    expected = use(trained("any"), same_as)
    np.testing.assert_allclose(use(trained(dtype), PIXELS, pixels=pixels), expected, rtol=1e-5, atol=1e-6)


@every_way_in
@pytest.mark.parametrize(
    ("dtype", "given", "options", "message"),
    [
        (
            "uint8",
            FLOATS,
            {},
            "trained on uint8 pixels.* got float32 from 0 to 255 .*divide the values by 255, or give",
        ),
        ("uint8", FLOATS.astype(int), {}, r"got (int64|float32) from 0 to 255"),
        (
            "uint8",
            2 * SHARES - 1,
            {},
            "got float32 from -1 to 1 .*scale the values to 0 to 1, as those are, or give uint8",
        ),
        ("uint8", PIXELS, {"pixels": False}, "got uint8 from 0 to 255 .*; leave pixels out"),
        ("float32", PIXELS, {}, "trained on float32, got uint8 .*pixels=True .*divides them by 255, pixels=False"),
    ],
)
def test_another_scale_is_refused_with_the_ways_out(
    use: Any, dtype: str, given: np.ndarray, options: dict[str, Any], message: str
) -> None:
    model = trained(dtype)
    before = model.parameters.data.copy(), model.inputs
    with pytest.raises(ValueError, match=message):
        use(model, given, **options)
    np.testing.assert_array_equal(model.parameters.data, before[0])
    assert model.inputs == before[1]


@pytest.mark.parametrize("pixels", ["uint8", 1, np.array([True, False])])
def test_pixels_is_a_truth_value(pixels: Any) -> None:
    with pytest.raises(TypeError, match=r"pixels is expected to be True, False or None, got"):
        trained(None).predict(PIXELS, pixels=pixels)


@every_way_in
def test_values_beyond_the_dtype_of_the_network_are_refused(use: Any) -> None:
    with pytest.raises(ValueError, match=r"finite in float32|computes in float32, but the values .*; scale them"):
        use(trained(None), FLOATS.astype(np.float64) * 1e300)
    wide = MLP([12, 5, 3], device="cpu", dtype="float64")
    use(wide, FLOATS)


@pytest.mark.parametrize("dtype", ["int8", "U8", ""])
def test_inputs_describe_a_dtype_that_there_is(dtype: str) -> None:
    with pytest.raises(
        ValueError, match="dtype of inputs is expected to be 'uint8', 'float32', 'float64' or 'any'"
    ):
        Inputs((3,), dtype)


@pytest.mark.parametrize(("dtype", "message"), [("uint8", ""), ("float32", "trained on float32, got uint8")])
def test_values_on_a_device_are_not_read_but_their_dtype_and_shape_are_checked(dtype: str, message: str) -> None:
    backend = StrictBackend()
    model, floats, pixels = trained(dtype, device=backend), backend.asarray(FLOATS), backend.asarray(PIXELS)
    with backend.ledger.counting() as ledger:
        model.logits(floats)  # of a wrong scale for pixels, which only their values show
        for wrong in (floats.reshape(24, 3, 4), floats.reshape(18, 16)):
            with pytest.raises(ValueError, match=r"trained on samples of 4 x 3, got 3 x 4|expects 12 features"):
                model.logits(wrong)
        if message:
            with pytest.raises(ValueError, match=message):
                model.logits(pixels)
            model.logits(pixels, pixels=True)
        else:
            model.logits(pixels)
            for given, options in ((backend.asarray(PIXELS.astype(int)), {}), (pixels, {"pixels": False})):
                with pytest.raises(ValueError, match=r"trained on uint8 pixels, .* got u?int(64|8) \(shape"):
                    model.logits(given, **options)
    assert (ledger.waits, ledger.host_reads) == (0, 0)


# -- Shape -------------------------------------------------------------------------------------------------------


@every_way_in
@pytest.mark.parametrize("shape", [(24, 12), (24, 4, 3, 1), (24, 1, 4, 3)])
def test_a_flat_sample_and_axes_of_length_1_are_the_same_shape(use: Any, shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(use(trained("uint8"), PIXELS.reshape(shape)), use(trained("uint8"), PIXELS))


@every_way_in
def test_a_network_trained_on_flat_samples_takes_any_shape(use: Any) -> None:
    use(trained("uint8", (12,)), PIXELS)


@every_way_in
@pytest.mark.parametrize("shape", [(24, 3, 4), (24, 2, 6), (24, 2, 2, 3)])
def test_another_shape_with_as_many_values_is_refused(use: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"trained on samples of 4 x 3, got .*; transpose or reshape them"):
        use(trained("uint8"), PIXELS.reshape(shape))


# -- What training learns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "images", "pixels", "after"),
    [
        (None, PIXELS, None, "uint8"),
        (None, PIXELS, False, "any"),
        (None, FLOATS, None, "float32"),
        (None, FLOATS.astype(np.float64), None, "float64"),
        ("uint8", SHARES, None, "uint8"),
        ("float32", PIXELS, True, "uint8"),
        ("float32", PIXELS, False, "any"),
        ("any", FLOATS, None, "any"),
        ("any", PIXELS, None, "any"),
    ],
)
def test_training_records_the_scale(
    before: str | None, images: np.ndarray, pixels: bool | None, after: str
) -> None:
    model = trained(before)
    fit(model, Dataset(images, LABELS, name="new"), epochs=1, pixels=pixels)
    assert model.inputs == Inputs((4, 3), after, "new")


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (Dataset(FLOATS, LABELS), "trained on uint8 pixels.* got float32 from 0 to 255"),
        (Dataset(PIXELS.reshape(24, 3, 4), LABELS), "trained on samples of 4 x 3, got 3 x 4"),
        (Dataset(PIXELS, LABELS + 5), "has the classes 0, 1, 2, but .* has others: 5, 6, 7"),
    ],
)
def test_validation_samples_are_those_of_the_training_set(validation: Dataset, message: str) -> None:
    model = trained(None)
    with pytest.raises(ValueError, match=message):
        fit(model, Dataset(PIXELS, LABELS), validation=validation)
    assert (model.inputs, model.class_names) == (None, None)


# -- Classes -----------------------------------------------------------------------------------------------------

NAMES: dict[str, Any] = {
    "sparse": [10, 20, 30],
    "ids": [0, 10**9, 2 * 10**9],
    "negative": [-1, 0, 1],
    "from 1": [1, 2, 3],
    "strings": ["ant", "bee", "cat"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_the_names_of_the_classes_go_from_the_data_to_the_network_and_its_file(names: Any, tmp_path: Path) -> None:
    train = Dataset(PIXELS, np.array(names)[LABELS])
    model = MLP([12, 5, train.classes], device="cpu")
    fit(model, train, epochs=1)
    assert model.class_names == tuple(names)
    model.save(tmp_path)
    again = MLP.load(tmp_path, device="cpu")
    assert again.class_names == tuple(names)
    assert list(map(type, again.class_names)) == list(map(type, names))
    some = Dataset(PIXELS[1::3], np.array(names)[LABELS[1::3]])  # of one class only, which it numbers 0
    assert class_numbers(again, some).tolist() == [1] * 8
    assert again.accuracy(some) == (again.predict(PIXELS[1::3]) == 1).mean()
    fit(again, some, epochs=1)
    assert again.class_names == tuple(names)


def test_two_classes_may_be_truth_values(tmp_path: Path) -> None:
    model = MLP([12, 2], device="cpu")
    fit(model, Dataset(PIXELS, LABELS > 0), epochs=1)
    model.save(tmp_path)
    assert MLP.load(tmp_path, device="cpu").class_names == (False, True)


def test_classes_that_a_data_set_lacks_keep_their_numbers() -> None:
    model = MLP([12, 10], device="cpu")
    part = Dataset(PIXELS, np.array([2, 5, 9])[LABELS])
    fit(model, part, epochs=1, validation=Dataset(PIXELS[:2], [9, 2]))
    assert model.class_names is None
    assert class_numbers(model, part).tolist() == np.array([2, 5, 9])[LABELS].tolist()


@pytest.mark.parametrize(
    ("names", "labels", "options", "message"),
    [
        (
            (10, 20, 30),
            [10, 40],
            {},
            "has the classes 10, 20, 30, but Dataset.* has others: 40; make a network for",
        ),
        ((10, 20, 30), [0, 1], {}, r"has others: 0, 1; .*classes=3\) if the labels are class numbers"),
        (("a", "b", "c"), ["a", "d"], {}, "has others: d"),
        (None, [5, 7], {}, "has the classes 0, 1, 2, but Dataset.* has others: 5, 7"),
        (None, ["0", "01"], {}, "has others: 01"),
        (None, [0, 3], {"classes": 4}, r"MLP\(\[12, 5, 3\]\) has 3 classes, but Dataset.* has 4"),
    ],
)
def test_classes_that_the_network_lacks_are_named(names: Any, labels: Any, options: Any, message: str) -> None:
    model = trained("uint8")
    model.class_names = names
    data = Dataset(PIXELS[:2], labels, **options)
    for use in (model.evaluate, model.accuracy, lambda data: fit(model, data)):
        with pytest.raises(ValueError, match=message):
            use(data)


def test_only_the_classes_that_occur_have_to_be_known() -> None:
    model = trained("uint8")
    model.class_names = (0, 10, 20)
    assert class_numbers(model, Dataset(PIXELS[:2], [0, 0])).tolist() == [0, 0]
    assert class_numbers(model, Dataset(PIXELS[:2], [20, 0], class_names=[0, 20, 99])).tolist() == [2, 0]


@pytest.mark.parametrize(("names", "options"), [(("a", "b", "c"), {}), ((10, 20, 30), {"classes": 3})])
def test_class_numbers_without_names_are_taken_as_such(names: Any, options: Any) -> None:
    model = trained("uint8")
    model.class_names = names
    assert class_numbers(model, Dataset(PIXELS[:3], [2, 0, 1], **options)).tolist() == [2, 0, 1]


@pytest.mark.parametrize("names", [(2, 10, 0), ("0", "10", "2"), (2.0, 10.0, 0.0)])
@pytest.mark.parametrize("kind", [int, str])
def test_a_number_and_its_digits_name_the_same_class(names: Any, kind: type) -> None:
    model, given = trained("uint8"), [0, 2, 10, 2] + 20 * [10]
    model.class_names = names
    numbers = class_numbers(model, Dataset(PIXELS, [kind(label) for label in given]))
    assert [int(names[number]) for number in numbers] == given


def test_a_network_with_too_many_outputs_for_the_names_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"MLP\(\[12, 5\]\) has the classes 0, 1, 2, 3, 4, but .* others: 10, 20, 30"
    ):
        fit(MLP([12, 5], device="cpu"), Dataset(PIXELS, (LABELS + 1) * 10))


def test_scale_and_names_are_the_same_on_every_backend(backend: Backend) -> None:
    train = Dataset(PIXELS, np.array(["x", "y", "z"])[LABELS])
    results = []
    for device in (get_backend("cpu"), backend):
        model = trained(None, device=device)
        fit(model, train, epochs=2, batch_size=8, pixels=False)
        results.append((model.inputs, model.class_names, model.accuracy(train), model.evaluate(train).loss))
    assert results[0][:3] == results[1][:3]
    assert results[0][3] == pytest.approx(results[1][3], rel=1e-4)


def test_a_sparse_matrix_is_named_as_such() -> None:
    sparse = pytest.importorskip("scipy.sparse").csr_matrix(np.eye(3))
    for use in (lambda: MLP([3, 4, 2], device="cpu").predict(sparse), lambda: Dataset(sparse, [0, 1, 0])):
        with pytest.raises(ValueError, match=r"it is sparse, give its toarray\(\)$"):
            use()


def test_samples_of_one_value_in_a_row() -> None:
    with pytest.raises(ValueError, match=r"got \(3,\); give images.reshape\(-1, 1\)$"):
        MLP([1, 4, 2], device="cpu").predict(np.zeros(3))


def test_infinity_in_float16_is_counted() -> None:
    with pytest.raises(ValueError, match="2 of 6 values are NaN, infinite or too large, the first in sample 1"):
        MLP([3, 4, 2], device="cpu").predict(np.array([[0, 1, 2], [np.inf, 0, np.nan]], np.float16))


def test_masked_values_are_refused() -> None:
    with pytest.raises(ValueError, match="images hold 2 masked values; fill them in"):
        MLP([3, 4, 2], device="cpu").predict(np.ma.masked_array(np.zeros((2, 3)), [[0, 1, 0], [0, 1, 0]]))


# -- Targets of other kinds --------------------------------------------------------------------------------------

SOFTMAX, LOGISTIC, SQUARED = "softmax_cross_entropy", "logistic_cross_entropy", "squared_error"
BINARY = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]] * 8)
VALUES = RNG.normal(size=(24, 3))
TWO = (LABELS > 0).astype(int)

# Outputs and loss of a network, its names; targets, options of the data set -> targets, or the error's message.
FITS: dict[str, tuple[int, str, Any, Any, dict[str, Any], Any]] = {
    "classes": (3, SOFTMAX, None, LABELS, {}, LABELS),
    "labels": (3, LOGISTIC, None, BINARY, {}, BINARY),
    "names in another order": (3, LOGISTIC, [*"cab"], BINARY, {"class_names": [*"abc"]}, BINARY[:, [2, 0, 1]]),
    "labels without names": (3, LOGISTIC, [*"cab"], BINARY, {}, BINARY),
    "labels for a network without names": (3, LOGISTIC, None, BINARY, {"class_names": [*"abc"]}, BINARY),
    "numbers": (3, SQUARED, None, VALUES, {}, VALUES),
    "a vector of numbers": (1, SQUARED, None, VALUES[:, 0], {}, VALUES[:, :1]),
    "counts": (1, "poisson_deviance", None, LABELS, {"task": "numbers"}, LABELS[:, None]),
    "two classes, one output": (1, LOGISTIC, None, TWO, {}, TWO[:, None]),
    "two names, one output": (1, LOGISTIC, [*"ba"], np.array([*"ab"])[TWO], {}, 1 - TWO[:, None]),
    "one label": (1, LOGISTIC, None, TWO[:, None], {"task": "labels"}, TWO[:, None]),
    # Errors
    "numbers for softmax": (3, SOFTMAX, None, VALUES, {}, "one class of several .* has numbers; choose loss='sq"),
    "labels for softmax": (3, SOFTMAX, None, BINARY, {}, "has several labels a sample; choose loss='logistic"),
    "classes for labels": (3, LOGISTIC, None, LABELS, {}, "softmax_cross_entropy', or one output for two classes"),
    "three classes, one output": (1, LOGISTIC, None, LABELS, {}, "has one class of several .*with 3 outputs$"),
    "one class, one output, untrained": (1, LOGISTIC, None, 1 + 0 * TWO, {}, "1 class.* with 2 outputs$"),
    "three classes for one number": (1, SQUARED, None, LABELS, {}, r"with 3 outputs, or give .*task='numbers'\)"),
    "classes for numbers": (
        3,
        SQUARED,
        None,
        LABELS,
        {},
        r"has one class .*task='numbers'\) if these are numbers",
    ),
    "labels for numbers": (3, SQUARED, None, BINARY, {}, r"has several .*task='numbers'\) if these are numbers"),
    "fewer labels": (3, LOGISTIC, None, BINARY[:, :2], {}, "3 outputs, but .* 2 labels a sample; make a network"),
    "more numbers": (1, SQUARED, None, VALUES, {}, "has 1 output, but .* 3 numbers a sample"),
    "other labels": (
        3,
        LOGISTIC,
        [*"abc"],
        BINARY,
        {"class_names": [*"abd"]},
        "labels a, b, c, .* others: a, b, d",
    ),
    "too large": (3, SQUARED, None, 1e300 * VALUES, {}, r"float32, but the targets of .* up to .*e\+300; scale"),
    "negative counts": (
        3,
        "poisson_deviance",
        None,
        VALUES,
        {},
        "the loss poisson_deviance: .* of 0 or more, got",
    ),
    "another class, one output": (1, LOGISTIC, [*"ab"], np.array([*"ac"])[TWO], {}, "others: c; make .*classes=2"),
}


@pytest.mark.parametrize(
    ("outputs", "loss", "names", "targets", "options", "expected"), FITS.values(), ids=FITS.keys()
)
def test_targets_are_those_of_the_loss_and_the_outputs(
    outputs: int, loss: str, names: Any, targets: Any, options: dict[str, Any], expected: Any
) -> None:
    model, data = MLP([12, outputs], loss=loss, device="cpu"), Dataset(PIXELS, targets, **options)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            training_targets(model, data, names)
        return
    found = training_targets(model, data, names)
    assert found.dtype == (np.int64 if loss == SOFTMAX else np.float32)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))


@pytest.mark.parametrize("names", [(0, 1), (False, True), ("no", "yes")], ids=str)
@pytest.mark.parametrize("outputs", [1, 2])
def test_samples_for_a_trained_network_may_all_be_of_one_class(outputs: int, names: tuple[Any, Any]) -> None:
    model = MLP([12, outputs], seed=0, device="cpu")
    fit(model, PIXELS, np.array(names)[TWO], epochs=1)
    accuracies = [model.accuracy(Dataset(PIXELS, np.array([name] * len(PIXELS)))) for name in names]
    predicted = model.predict(PIXELS).ravel()
    assert accuracies == pytest.approx([(predicted == place).mean() for place in (0, 1)])


@pytest.mark.parametrize(
    ("outputs", "loss", "targets", "names", "learned"),
    [
        (3, LOGISTIC, BINARY, [*"abc"], ("a", "b", "c")),
        (1, LOGISTIC, np.array([*"ab"])[TWO], None, ("a", "b")),
        (3, SQUARED, VALUES, None, None),
    ],
)
def test_a_network_learns_the_names_of_classes_and_labels(
    outputs: int, loss: str, targets: Any, names: Any, learned: Any
) -> None:
    model = MLP([12, outputs], loss=loss, device="cpu")
    assert learned_names(model, Dataset(PIXELS, targets, class_names=names)) == learned
