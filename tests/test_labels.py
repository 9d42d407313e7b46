"""Labels of any kind become classes with names, from the data to the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, DataError, Dataset, load_npz
from gpumlp.data.labels import class_weights, stratified_split, to_array
from gpumlp.data.targets import encode_targets
from tests.command_helpers import run

NUMBERS = np.random.default_rng(0).integers(0, 3, 60)


def encoded(labels: Any, **options: Any) -> tuple[list[int], int, Any]:
    _, numbers, classes, names = encode_targets(labels, len(labels), "own", **options)
    return numbers.tolist(), classes, names


# -- In Python ---------------------------------------------------------------------------------------------


def test_names_of_several_lines_are_shown_in_one() -> None:
    with pytest.raises(DataError, match=r"among the classes a\\nb, c\\td, but labels\[0\] is e"):
        encoded(["e"], class_names=["a\nb", "c\td"])


@pytest.mark.parametrize("part", ["images", "targets"])
def test_masked_values_are_refused(part: str) -> None:
    values: dict[str, Any] = {"images": np.zeros((4, 2)), "targets": np.arange(4)}
    masked = np.ma.masked_array(values[part], values[part] == values[part].flat[0])
    values[part] = np.ma.masked_array(masked.data, False)
    assert len(Dataset(**values)) == 4
    values[part] = masked
    with pytest.raises(
        DataError, match=rf"{part} must be there, but {masked.mask.sum()} are masked; fill them in"
    ):
        Dataset(**values)


def test_an_array_that_cannot_be_read_is_refused_with_its_reason_alone() -> None:
    class Unreadable:
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise TypeError("use my other method")

    with pytest.raises(DataError, match=r"images cannot be read as one array \(use my other method\)$"):
        Dataset(Unreadable(), [0, 1])


def test_one_is_not_called_several() -> None:
    assert repr(Dataset(np.zeros((1, 2), np.uint8), [7])) == "Dataset('arrays', 1 sample of 2 uint8, 1 class)"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([30, 10, 20, 10], (10, 20, 30)),
        ([2, 0, 1, 0], None),
        ([3, 1, 2, 1], (1, 2, 3)),
        ([10**9 * k for k in (2, 0, 1, 0)], (0, 10**9, 2 * 10**9)),
        ([1, -1, 0, -1], (-1, 0, 1)),
        (["c", "a", "b", "a"], ("a", "b", "c")),
        (np.array(["c", "a", "b", "a"], object), ("a", "b", "c")),
        ([np.array("c"), np.str_("a"), "b", np.array("a")], ("a", "b", "c")),  # Zarr gives words as such arrays
        (np.array([30, 10, 20, 10], object), (10, 20, 30)),
        (np.array([np.int64(30), 10, np.int8(20), np.int64(10)], object), (10, 20, 30)),
        (np.array([9, 5, 7, 5], np.uint8), (5, 7, 9)),
        (np.array([2**64 - 1, 0, 2**63, 0], np.uint64), (0, 2**63, 2**64 - 1)),
    ],
)
def test_the_classes_are_the_distinct_labels_in_sorted_order(labels: Any, names: Any) -> None:
    assert encoded(labels) == ([2, 0, 1, 0], 3, names)


def test_words_of_an_array_like() -> None:
    class Words:
        def __array__(self) -> Any:
            return np.array(["b", "a"])

    assert to_array(Words(), "labels").tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("labels", "names"), [([True, False, True], (False, True)), ([1, -1, 1], (-1, 1)), ([255, 0, 255], (0, 255))]
)
def test_two_classes(labels: list[Any], names: tuple[Any, ...]) -> None:
    assert encoded(labels) == ([1, 0, 1], 2, names)


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ([0, 2], {"classes": 4}, ([0, 2], 4, None)),
        ([True, False], {"classes": 2}, ([1, 0], 2, None)),
        ([30, 10], {"class_names": [10, 20, 30]}, ([2, 0], 3, (10, 20, 30))),
        (["b"], {"class_names": np.array(["b", "a"])}, ([0], 2, ("b", "a"))),
        ([1, 0], {"classes": 2, "class_names": ["no", "yes"]}, ([1, 0], 2, ("no", "yes"))),
        ([7, 7], {"class_names": [7, 5_000_000]}, ([0, 0], 2, (7, 5_000_000))),
    ],
)
def test_classes_and_names_may_be_given(labels: Any, options: dict[str, Any], expected: Any) -> None:
    assert encoded(labels, **options) == expected


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0.5, 1.5], {"classes": 2}, r"must be classes or labels where .* numbers of dtype float64; .* task="),
        (["\ud800", "a"], {}, "must be text, but .* holds half of a surrogate pair"),
        ([0, 1], {"class_names": ["\ud800", "a"]}, "must be text, but .* holds half of a surrogate pair"),
        (
            [0, 4],
            {"classes": 3},
            r"classes from 0 to 2, but labels\[1\] is 4; correct the labels, or the number of classes",
        ),
        ([0, -1], {"classes": 3}, r"labels\[1\] is -1"),
        (["a"], {"classes": 3}, "class numbers from 0 to 2, got strings; give these numbers, or leave"),
        ([10, 15], {"class_names": [10, 20]}, r"among the classes 10, 20, but labels\[1\] is 15; correct the lab"),
        ([0, 1], {"class_names": ["a", "b"]}, r"labels\[0\] is 0; .*or add classes=2 if these are class numbers"),
        ([1], {"class_names": ["0", "1"]}, r"the classes 0, 1, but labels\[0\] is 1; .*: the classes are text$"),
        (["1"], {"class_names": [0, 1]}, r"labels\[0\] is 1; .*: the classes are numbers, not text$"),
        (["cat", float("nan"), "dog"], {}, "got dtype object; convert them, and leave out what is missing"),
        (["cat", 1], {}, "got dtype object"),
        ([0, 1], {"class_names": ["cat", float("nan")]}, "different strings or integers, got cat, nan"),
        ([0, 1], {"class_names": "ab"}, "class_names must be a list of names, got 'ab'"),
        ([0, 1], {"class_names": [1, 1]}, "class_names must be different strings or integers, got 1, 1"),
        ([0, 1], {"class_names": [0.5, 1]}, "class_names must be different strings or integers"),
        ([0, 1], {"class_names": []}, "class_names must be different strings or integers"),
        ([0, 1], {"classes": 3, "class_names": ["a", "b"]}, "class_names must be 3, one for each class, got 2"),
    ],
)
def test_labels_that_are_not_among_the_classes_are_located(labels: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^own: (labels|targets).*{message}"):
        encoded(labels, **options)


@pytest.mark.parametrize("stray", [5_000_000, -5_000_000, 255])
def test_a_lone_label_far_from_all_others_is_refused(stray: int) -> None:
    labels = NUMBERS.copy()
    labels[7] = stray
    with pytest.raises(DataError, match=rf"labels\[7\] is {stray}, which occurs once and is far from all others"):
        encoded(labels)
    assert encoded(labels, class_names=[0, 1, 2, stray])[1] == 4


@pytest.mark.parametrize("labels", [[10, 20, 30, 40], [0, 1000], [1, 2, 2, 4], [*NUMBERS.tolist(), 40]])
def test_few_samples_of_a_class_are_no_mistake(labels: list[int]) -> None:
    assert encoded(labels)[1] == len(set(labels))


def test_a_part_of_a_data_set_has_its_classes_and_its_name() -> None:
    x = np.eye(3)
    numbered: dict[str, Any] = {"classes": 3, "class_names": ["a", "b", "c"]}
    for labels, options in (([10, 20, 30], {}), ([0, 1, 2], {}), ([0, 1, 2], numbered)):
        train = Dataset(x, labels, name="own", **options)
        part = train.part(x[2:], labels[2:])
        assert (part.labels.tolist(), part.classes, part.class_names) == ([2], 3, train.class_names)
        assert part.name == "own"
        with pytest.raises(DataError, match=r"labels\[0\] is 5"):
            train.part(x[:1], [5])


def test_the_fingerprint_tells_names_apart_and_keeps_that_of_plain_class_numbers() -> None:
    x, labels = np.eye(3, dtype=np.float32), [2, 0, 1]
    named = [Dataset(x, np.array(names)[labels]).fingerprint() for names in ([1, 2, 3], [10, 20, 30], [*"abc"])]
    plain = Dataset(x, labels).fingerprint()
    assert len({plain, *named}) == 4
    assert Dataset(x, labels, classes=5).fingerprint() == plain


def test_a_test_set_has_the_classes_of_the_training_set(tmp_path: Path) -> None:
    x = np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=[30, 10, 20, 10], x_test=x[:2], y_test=[30, 20])
    train, test = load_npz(tmp_path / "own.npz")
    assert (test.labels.tolist(), test.classes, test.class_names) == ([2, 1], 3, train.class_names)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=[30, 10, 20, 10], x_test=x[:2], y_test=[30, 40])
    with pytest.raises(
        DataError, match=r"own.npz, x_test and y_test: .*classes 10, 20, 30, but labels\[1\] is 40"
    ):
        load_npz(tmp_path / "own.npz")


# -- Commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [[10, 20, 30], [0, 10**9, 2 * 10**9], [-1, 0, 1], ["ant", "bée", "c"], [False, True]],
    ids=["tens", "ids", "negative", "strings", "bools"],
)
def test_a_run_calls_the_classes_by_their_labels(
    names: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, numbers = np.random.default_rng(0), NUMBERS % len(names)
    x = rng.integers(0, 256, (60, 3, 3)).astype(np.uint8)
    y = np.array(names)[numbers]
    np.savez("own.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    np.save("x.npy", x[:5])
    options = ["--dataset", "own.npz", "--hidden", 4, "--device", "cpu", "--out", "own"]
    assert run("train", *options, "--epochs", 2) == 0
    out = capsys.readouterr().out
    assert f"network: 9-4-{len(names)}, " in out
    assert f"classes: {', '.join(map(str, names))}\n" in out
    assert run("train", "--resume", "own", "--epochs", 3, "--quiet") == 0
    assert run("evaluate", "own", "--device", "cpu") == 0
    assert "own.npz test accuracy" in capsys.readouterr().out
    assert run("predict", "own", "x.npy", "--json", "--device", "cpu") == 0
    records = json.loads(capsys.readouterr().out)
    model = MLP.load("own", device="cpu")
    assert model.class_names == tuple(names)
    assert [record["class"] for record in records] == [names[number] for number in model.predict(x[:5])]
    assert list(records[0]["probabilities"]) == list(map(str, names))


def test_a_stray_label_in_a_file_is_named_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = NUMBERS.copy()
    labels[7] = 5_000_000
    x, path = np.zeros((60, 8, 8), np.uint8), tmp_path / "labels.npz"
    np.savez(path, x_train=x, y_train=labels, x_test=x, y_test=NUMBERS)
    assert run("train", "--dataset", path, "--device", "cpu", "--out", tmp_path / "never") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "labels.npz" in line
    assert "labels[7] is 5000000" in line


# -- What training makes of classes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "names", "expected"),
    [
        ("balanced", None, [7 / 3 / 4, 7 / 3, 1, 7 / 3 / 2]),
        ({}, None, [1, 1, 1, 1]),
        ({0: 2, "3": 0.5}, None, [2, 1, 1, 0.5]),
        ({"a": 2, 3: 0}, [*"abcd"], [2, 1, 1, 0]),
        ({np.int64(30): 2, "10": 3}, [30, 20, 10, 0], [2, 1, 3, 1]),
    ],
)
def test_class_weights(weight: Any, names: Any, expected: list[float]) -> None:
    found = class_weights(np.array([0, 3, 0, 0, 1, 3, 0]), 4, weight, names)
    np.testing.assert_allclose(found, expected)


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    utils = pytest.importorskip("sklearn.utils", reason="scikit-learn is not installed")
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=NUMBERS)
    np.testing.assert_allclose(class_weights(NUMBERS, 3, "balanced"), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("weight", "names", "message"),
    [
        ({4: 1}, None, "name classes among 0, 1, 2, 3, got 4"),
        ({0: 1, "0": 2}, None, "name a class once, got 0 and '0'"),
        ({"b": 1, 1: 2}, [*"abcd"], "name a class once, got 'b' and 1"),
        ({"e": 1}, [*"abcd"], "name classes among a, b, c, d, got 'e'"),
        ({0: 1}, [30, 20, 10, 5], "name classes among 30, 20, 10, 5, got 0"),
        ({0: -1}, None, "finite number of 0 or more, got -1 for class 0"),
        ({0: np.nan}, None, "finite number of 0 or more, got nan for class 0"),
        ({0: "2"}, None, "finite number of 0 or more, got '2' for class 0"),
        ({0: [1, 2]}, None, r"finite number of 0 or more, got \[1, 2\] for class 0"),
        ({0: 0, 3: 0}, None, "above 0 for a class that occurs"),
        ("equal", None, "'balanced' or a dict of weights by class, got 'equal'"),
        ([1, 2, 3, 4], None, "'balanced' or a dict"),
    ],
)
def test_class_weights_that_do_not_fit_are_refused(weight: Any, names: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^class_weight is expected to .*{message}"):
        class_weights(np.array([0, 3, 0]), 4, weight, names)


@pytest.mark.parametrize(
    ("counts", "held_out", "expected"),
    [
        ([50, 30, 20], 10, [5, 3, 2]),
        ([50, 30, 20], 0, [0, 0, 0]),
        ([5, 5, 5], 4, [2, 1, 1]),  # equal remainders: the lower numbers first
        ([6, 5, 4], 4, [2, 1, 1]),  # quotas 1.6, 1.33, 1.07
        ([1, 0, 9], 8, [0, 0, 8]),
        ([1, 4, 5], 3, [0, 1, 2]),
        ([2, 2, 2, 100], 102, [1, 1, 1, 99]),
    ],
)
def test_a_stratified_split_has_its_share_of_each_class(
    counts: list[int], held_out: int, expected: list[int]
) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    train, held = stratified_split(labels, held_out, np.random.default_rng(7))
    assert np.bincount(labels[held], minlength=len(counts)).tolist() == expected
    np.testing.assert_array_equal(np.sort(np.r_[train, held]), np.arange(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    again = stratified_split(labels, held_out, np.random.default_rng(7))
    np.testing.assert_array_equal(again[1], held)


@pytest.mark.parametrize("held_out", [-1, 8, 10])
def test_a_split_leaves_a_sample_of_each_class_for_training(held_out: int) -> None:
    with pytest.raises(
        ValueError, match=f"from 0 to 7 of the 10 training samples, .* of the 3 cl.*, got {held_out}"
    ):
        stratified_split(np.array([0, 1, 1, 1, 2, 2, 2, 2, 2, 2]), held_out, np.random.default_rng(0))


def test_every_sample_of_a_class_can_be_held_out() -> None:
    labels, rng = np.array([0] * 5 + [1] * 5), np.random.default_rng(0)
    drawn = np.sum([np.bincount(stratified_split(labels, 2, rng)[1], minlength=10) for _ in range(500)], axis=0)
    assert (np.abs(drawn - 100) < 40).all()
