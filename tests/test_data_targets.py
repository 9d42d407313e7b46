"""Targets: what a data set takes for classes, for labels and for numbers, what it refuses, and sample weights."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from gpumlp import DataError, Dataset, get_backend, load_npz
from gpumlp.data import load_dataset
from gpumlp.data.dataset import ArrayBatches
from tests.data_helpers import reorder
from tests.strict_device import StrictBackend

X = np.arange(8.0).reshape(4, 2)
BINARY = [[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]]
ONE_HOT = np.eye(4)[[0, 2, 1, 0]]
C, L, N = "classes", "labels", "numbers"


def column(values: Any, dtype: Any = None) -> np.ndarray:
    return np.array(values, dtype)[:, None]


def objects(values: Any) -> np.ndarray:
    return np.array(values, object)


# Targets, task= -> task and number of outputs, or the message of the error.
KINDS: dict[str, tuple[Any, str | None, str, int | None]] = {
    "integers": ([2, 0, 1, 2], None, C, 3),
    "bools": ([True, False, True, False], None, C, 2),
    "strings": ([*"abca"], None, C, 3),
    "integers in a column": (column([2, 0, 1, 2]), None, C, 3),
    "strings in a column": (column([*"abca"]), None, C, 3),
    "objects of one type": (objects([*"abca"]), None, C, 3),
    "strings of any length": (np.array([*"abca"], np.dtypes.StringDType()), None, C, 3),
    "floats": ([0.5, 1.5, 2.0, 3.0], None, N, 1),
    "floats in a column": (column([0.5, 1.5, 2.0, 3.0]), None, N, 1),
    "half precision": (np.array([0.5, 1.5, 2.0, 3.0], np.float16), None, N, 1),
    "objects that are floats": (objects([0.5, 1.5, 2.0, 3.0]), None, N, 1),
    "matrix of floats": (X + 0.5, None, N, 2),
    **{
        f"0 and 1 as {dtype}": (np.array(BINARY, dtype), None, L, 3)
        for dtype in ("bool", "uint8", "int64", "float32", "object")
    },
    "all 0": (np.zeros((4, 2), int), None, L, 2),
    "whole floats as classes": ([2.0, 0.0, 1.0, 2.0], C, C, 3),
    "whole floats in a column as classes": (column([2.0, 0.0, 1.0, 2.0]), C, C, 3),
    "one-hot as labels": (ONE_HOT, L, L, 4),
    "a column as labels": (column([0, 1, 1, 0]), L, L, 1),
    "integers as numbers": ([2, 0, 1, 2], N, N, 1),
    "bools as numbers": ([True, False, True, False], N, N, 1),
    "whole floats as numbers": ([2.0, 0.0, 1.0, 2.0], N, N, 1),
    "one-hot as numbers": (ONE_HOT, N, N, 4),
    "a matrix of integers as numbers": (X.astype(int), N, N, 2),
    # Errors
    "one-hot": (ONE_HOT, None, r"each row of \(4, 4\) has exactly one 1; give targets.argmax\(axis=1\) if", None),
    "one-hot bools": (ONE_HOT > 0, None, r"exactly one 1; give .*, task=.*--task labels", None),
    "a matrix of integers": (X.astype(int), None, "one column of classes, or 0 and 1 .* a matrix of shape", None),
    "a matrix of strings": ([[*"ab"]] * 4, None, r"a matrix of shape \(4, 2\) of dtype <U1; give one", None),
    "a matrix as classes": (BINARY, C, r"shape \(4,\) for classes, got \(4, 3\); if one-hot, use", None),
    "floats as classes": ([0, 0.5, 1, 1], C, r"whole numbers for classes, but targets\[1\] is 0.5; correct", None),
    "huge floats as classes": ([0, 1e30, 1, 1], C, r"whole numbers for classes, but targets\[1\] is 1e\+30", None),
    "a vector as labels": ([0, 1, 1, 0], L, r"\(4, columns\) for labels.* use targets.reshape\(-1, 1\)", None),
    "integers as labels": (X.astype(int), L, r"0 and 1 for labels, but targets\[1, 0\] is 2", None),
    "NaN as labels": ([[0, np.nan]] * 4, L, r"0 and 1 for labels, but targets\[0, 1\] is nan", None),
    "strings as labels": ([["1", "0"]] * 4, L, r"0 and 1 for labels, but targets\[0, 0\] is 1", None),
    "strings as numbers": (["1"] * 4, N, r"numbers, got strings such as 1; use targets.astype\(float\)", None),
    "NaN": ([0, 1, np.nan, np.nan], None, r"2 of 4 values are NaN or infinite, the first at targets\[2\]", None),
    "NaN in a matrix of 0 and 1": ([[0, 1], [1, np.nan]] * 2, None, r"the first at targets\[1, 1\]", None),
    "infinite": (column([0, 1, 2, np.inf]), None, r"the first at targets\[3, 0\]", None),
    "NaN as classes": ([0, 1, 1, np.nan], C, r"the first at targets\[3\]", None),
    "complex": ([1j, 0, 1, 2], None, "dtype complex128; give real and imaginary part as two columns", None),
    "bytes": ([b"a"] * 4, None, r"dtype \|S1; use targets.astype\(str\)", None),
    "missing": (objects([None, "a", "b", "a"]), None, "object; convert them, and leave out what is missing", None),
    "objects of several types": (objects([1, "a", 1, 1]), None, "floats for numbers, got dtype object", None),
    "dates": (np.zeros(4, "M8[s]"), None, r"got dtype datetime64\[s\]; convert them", None),
    "too few": ([0, 1, 0], None, "one for each of 4 images, got 3; pair them up", None),
    "three dimensions": (np.zeros((4, 2, 2)), None, r"\(4,\) or \(4, columns\), got \(4, 2, 2\); give one", None),
    "no column": (np.zeros((4, 0)), None, r"\(4,\) or \(4, columns\), got \(4, 0\)", None),
    "a number": (3, None, r"got \(\)", None),
    "another task": ([0, 1, 1, 0], "regression", "'classes', 'labels' or 'numbers', got 'regression'", None),
}


@pytest.mark.parametrize(("targets", "task", "expected", "outputs"), KINDS.values(), ids=KINDS.keys())
@pytest.mark.filterwarnings("error")
def test_targets_are_classes_labels_or_numbers_or_refused(
    targets: Any, task: str | None, expected: str, outputs: int | None
) -> None:
    if outputs is None:
        with pytest.raises(DataError, match=f"^mine: .*{expected}"):
            Dataset(X, targets, task=task, name="mine")
        return
    data = Dataset(X, targets, task=task)
    assert (data.task, data.outputs, data.targets.dtype) == (
        expected,
        outputs,
        {C: int, L: bool, N: float}[expected],
    )
    assert data.classes == (0 if expected == N else outputs)
    assert data.targets.shape == ((4,) if expected == C else (4, outputs))
    if expected != C:
        np.testing.assert_array_equal(data.targets, np.asarray(targets, float).reshape(4, outputs))
        with pytest.raises(AttributeError, match=f"{outputs} .* a sample.* has no class numbers; use its targets"):
            _ = data.labels


@pytest.mark.parametrize("targets", [[2.0, 0.0, 1.0, 2.0], [[2.0, 1.0]] * 4, column([0.0, 1.0, 0.0, 1.0])])
def test_whole_numbers_as_floats_are_a_regression_with_a_warning(targets: Any) -> None:
    with pytest.warns(
        UserWarning, match="mine: targets are whole numbers as floats.*integers for classes"
    ) as seen:
        assert Dataset(X, targets, name="mine").task == N
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (BINARY, {"class_names": [*"abc"]}, None),
        (BINARY, {"class_names": [*"ab"]}, "class_names must be 3, one for each column, got 2"),
        (BINARY, {"classes": 2}, "classes must be 3, one for each column, got 2"),
        (BINARY, {"class_names": [*"aab"]}, "class_names must be different strings or integers"),
        ([0.5] * 4, {"class_names": [*"ab"]}, "must be classes or labels where .* got numbers of dtype float64"),
        ([0, 1, 1, 0], {"task": N, "classes": 2}, "must be classes or labels where .* got numbers of dtype int64"),
    ],
)
def test_names_are_those_of_the_columns(targets: Any, options: dict[str, Any], message: str | None) -> None:
    with nullcontext() if message is None else pytest.raises(DataError, match=f"^mine: targets.*{message}"):
        assert Dataset(X, targets, name="mine", **options).class_names == tuple(options["class_names"])


@pytest.mark.parametrize(
    ("targets", "options", "text"),
    [
        (BINARY, {}, "3 labels a sample"),
        (column([0, 1, 1, 0]), {"task": L}, "1 label a sample"),
        (X + 0.5, {}, "2 numbers a sample"),
        ([0.5] * 4, {"weights": [1, 2, 0, 0]}, "1 number a sample, weights"),
    ],
)
def test_a_data_set_says_what_its_targets_are(targets: Any, options: dict[str, Any], text: str) -> None:
    assert repr(Dataset(X, targets, **options)) == f"Dataset('arrays', 4 samples of 2 float64, {text})"


def test_a_data_frame_and_its_columns_are_targets() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(
        {"a": [0.5, 1, 2, 3], "b": [1, 2, 3, 4], "c": [*"xyxy"], "d": [True, False, True, True]}
    )
    for targets, expected in (
        (frame["a"], (N, 1)),
        (frame[["a", "b"]], (N, 2)),
        (frame["b"], (C, 4)),
        (frame["b"].astype("Int64"), (C, 4)),
        (frame["a"].astype("Float64"), (N, 1)),
        (frame["c"], (C, 2)),
        (frame["c"].astype("category"), (C, 2)),
        (frame[["d"]], (C, 2)),
        (frame[["d", "d"]].astype("boolean"), (L, 2)),
    ):
        data = Dataset(X, targets)
        assert (data.task, data.outputs) == expected
    for missing in (frame["b"].astype("Int64"), frame["c"].astype(object)):
        missing = missing.copy()
        missing[2] = pandas.NA
        with pytest.raises(DataError, match=r"leave out what is missing|the first at targets\[2\]"):
            Dataset(X, missing)


def test_a_test_set_has_the_task_and_the_columns_of_the_training_set() -> None:
    for targets, part in (
        (BINARY, ONE_HOT[:, :3]),
        (X + 0.5, X.astype(int)),
        (X + 0.5, [[1.0, 0.0]] * 4),
        ([2, 0, 1, 2], [2.0, 0.0, 0.0, 0.0]),
    ):
        train = Dataset(X, targets, name="own")
        assert (train.part(X, part).task, train.part(X, part, [1, 2, 3, 4]).outputs) == (train.task, train.outputs)
    named = Dataset(X, BINARY, class_names=[*"abc"])
    assert named.part(X, BINARY).class_names == ("a", "b", "c")
    with pytest.raises(
        DataError, match=r"^own: targets must have 2 columns as in Dataset.*, got 1; give the same"
    ):
        Dataset(X, X + 0.5, name="own").part(X, [0.5] * 4)
    with pytest.raises(DataError, match="class_names must be 2"):
        named.part(X, np.array(BINARY)[:, :2])


# -- Sample weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2, 0, 0], None),
        (np.array([1, 2, 0, 0.5], np.float16), None),
        (objects([1.0, 2.0, 0.5, 1.0]), None),
        ([1, 2, 0], r"numbers of shape \(4,\), got shape \(3,\) of dtype int64; give one number for each"),
        (np.ones((4, 1)), r"got shape \(4, 1\)"),
        ([*"abcd"], "of dtype <U1"),
        ([1, -2, 0, 0], r"0 or more, but weights\[1\] is -2; correct it"),
        ([1, 2, np.nan, 0], r"finite, but 1 of 4 values are NaN or infinite, the first at weights\[2\]"),
        ([0, 0, 0, 0], "a value above 0, but all are zero; give larger ones, or leave them out"),
    ],
)
def test_weights_are_one_number_of_0_or_more_for_each_sample(weights: Any, message: str | None) -> None:
    with nullcontext() if message is None else pytest.raises(DataError, match=f"^mine: weights must .*{message}"):
        given = Dataset(X, [0, 1, 1, 0], weights=weights, name="mine").weights
        np.testing.assert_array_equal(given, np.asarray(weights, float))


def test_the_fingerprint_tells_tasks_and_weights_apart() -> None:
    made = [
        Dataset(X, [0, 1, 1, 0]),
        Dataset(X, [0, 1, 1, 0], weights=[1, 1, 1, 2]),
        Dataset(X, [0, 1, 1, 0], weights=[1, 1, 1, 1]),
        Dataset(X, [0, 1, 1, 0], task=N),
        Dataset(X, column([0, 1, 1, 0]), task=L),
        Dataset(X, BINARY),
        Dataset(X, BINARY, class_names=[*"abc"]),
        Dataset(X, np.array(BINARY)[:, ::-1]),
        Dataset(X, BINARY, task=N),
    ]
    assert len({data.fingerprint() for data in made}) == len(made)
    assert made[0].fingerprint() == "4x2-float64-cbde0c50"  # as before data sets had tasks


# -- Batches -----------------------------------------------------------------------------------------------------


def test_batches_hold_targets_of_the_dtype_of_the_network() -> None:
    backend = get_backend("cpu")
    for targets, dtype, expected in (
        (BINARY, "float32", np.float32),
        (X + 0.5, "float64", float),
        ([0, 1, 1, 0], "float32", int),
    ):
        batches = Dataset(X, targets).batches(3, backend, dtype)
        assert batches.targets.dtype == expected
        np.testing.assert_array_equal(batches.targets, targets)
        reorder(batches, np.array([3, 1, 0, 2]))
        np.testing.assert_array_equal(batches.targets, np.asarray(targets)[[3, 1, 0, 2]])


def test_spread_is_the_sum_of_squares_around_the_mean_of_each_output() -> None:
    backend, rows = StrictBackend(), np.array([0, 2, 3])
    numbers = 1e6 + np.random.default_rng(0).normal(size=(4, 2))
    expected = 3 * numbers[rows].astype(np.float32).astype(float).var(axis=0)
    batches = Dataset(X, numbers).batches(2, backend, "float32", rows, targets=numbers.astype(np.float32))
    with backend.ledger.counting() as ledger:
        np.testing.assert_allclose(batches.spread, expected, rtol=1e-12)
        np.testing.assert_allclose(
            batches.select(rows[:2], 2).spread, 2 * numbers[:3:2].astype(np.float32).astype(float).var(axis=0)
        )
    assert (ledger.waits, ledger.host_reads) == (0, 0)
    alone = ArrayBatches(batches.images, backend.asarray(numbers.astype(np.float32)), rows, 2, backend)
    np.testing.assert_allclose(alone.spread, expected, rtol=1e-12)
    assert Dataset(X, [0.1] * 4).batches(2, backend, "float64").spread == 0
    assert Dataset(X, [0, 1, 1, 0]).batches(2, backend, "float32").spread is None


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_weights_have_a_mean_of_1_in_each_batch_and_over_all(scale: float) -> None:
    weights = scale * np.array([1, 2, 3, 0])
    backend = StrictBackend()
    batches = Dataset(X, [0, 1, 1, 0], weights=weights).batches(2, backend, "float32", np.array([0, 1, 3]))
    assert batches.weights.dtype == np.float32
    np.testing.assert_allclose(backend.to_numpy(batches.weights), [2 / 3, 4 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(batches.sample_weights), [1, 2, 0], rtol=1e-6)
    given = Dataset(X, [0, 1, 1, 0]).batches(2, backend, "float32", weights=weights)
    np.testing.assert_allclose(backend.to_numpy(given.weights), [2 / 3, 4 / 3, 2, 0], rtol=1e-6)
    assert Dataset(X, [0, 1, 1, 0]).batches(2, backend, "float32").sample_weights is None


# -- Files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y_train", "y_test", "task", "expected"),
    [
        ([0.5, 1, 2, 3], [1.0, 2.0], None, "1 number a sample"),
        (np.full(4, 0.5), [0.5, 0.5], None, "1 number a sample"),
        (X + 0.5, X[:2], None, "2 numbers a sample"),
        (BINARY, np.eye(3)[:2], None, "3 labels a sample"),
        (ONE_HOT, ONE_HOT[:2], "labels", "4 labels a sample"),
        (column([0, 1, 1, 0]), column([0, 1]), None, "2 classes"),
        ([0, 1, 2, 3], [0, 1], "numbers", "1 number a sample"),
        ([0.0, 1.0, 2.0, 1.0], [0.0, 1.0], "classes", "3 classes"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_file_holds_any_kind_of_targets(
    tmp_path: Any, y_train: Any, y_test: Any, task: Any, expected: str
) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x_train=X, y_train=y_train, x_test=X[:2], y_test=y_test, w_train=[1, 2, 3, 4])
    for train, test in (load_npz(path, task=task), load_dataset(path, task=task)[:2]):
        assert repr(train) == f"Dataset('own.npz', 4 samples of 2 float64, {expected}, weights)"
        assert repr(test) == f"Dataset('own.npz', 2 samples of 2 float64, {expected})"


def test_the_labels_of_digits_are_classes() -> None:
    assert load_dataset("digits", task="classes")[0].task == C
    with pytest.raises(DataError, match="the task numbers does not apply to the data set digits"):
        load_dataset("digits", task="numbers")
