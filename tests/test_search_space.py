"""The networks of a sweep, from the words of its command."""

from __future__ import annotations

import math

import pytest

from gpumlp.training.config import PRESETS, Config, ConfigError
from gpumlp.training.search_space import NOTES, grid, label, random, value_text, with_values


def test_a_grid_is_every_combination() -> None:
    found, logarithmic = grid(Config(), ["learning-rate=0.01,0.1", "hidden=64,128x64,none"])
    assert found == [
        {"learning_rate": rate, "hidden": hidden} for rate in (0.01, 0.1) for hidden in ((64,), (128, 64), ())
    ]
    assert logarithmic == ["learning_rate"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("batch-size=32,full", [32, "full"]),
        ("activation=relu,reluxtanh", ["relu", ("relu", "tanh")]),
        ("dropout=0,0.5x0.2", [0.0, (0.5, 0.2)]),
        ("nesterov=true,False", [True, False]),
        ("clip-norm=none,1", [None, 1.0]),
        ("class-weight=none,balanced,six=2", [None, "balanced", "six=2"]),
        ("epochs=5,10,5", [5, 10]),
        (
            "augment=none,elastic=34,4,rotation=7.5+elastic=34,.5",
            [(), ("elastic=34,4",), ("rotation=7.5", "elastic=34,.5")],
        ),
        (
            "augment=none, rotation=1e+1+shear=+.1,elastic=34, 4",
            [(), ("rotation=1e+1", "shear=+.1"), ("elastic=34, 4",)],
        ),
        ("activation=relu, tanh", ["relu", "tanh"]),
        ("preprocess=none,deskew,deskew+width=12", [(), ("deskew",), ("deskew", "width=12")]),
        ("preprocess=width=+12", [("width=+12",)]),
        ("class-weight=six=2+seven=3,a+b=2,c++=2,d=1e+3", [("six=2", "seven=3"), "a+b=2", "c++=2", "d=1e+3"]),
    ],
)
def test_values_are_those_that_train_takes(word: str, values: list) -> None:
    found, _ = grid(Config(hidden=(8, 8), momentum=0.5), [word])
    assert [next(iter(each.values())) for each in found] == values
    option = word.partition("=")[0]
    again = [f"{option}={value_text(each[option.replace('-', '_')])}" for each in found]
    assert [grid(Config(hidden=(8, 8), momentum=0.5), [each])[0][0] for each in again] == found


def test_one_value_for_each_layer_needs_as_many_layers() -> None:
    with pytest.raises(ConfigError, match=r"one for each of 1 hidden layers, got 2: \('relu', 'tanh'\)"):
        grid(Config(), ["activation=reluxtanh"])


def test_the_grid_without_words_spans_the_ranges_of_the_notes() -> None:
    found, _ = grid(Config(), NOTES)
    assert len(found) == 32
    assert {each["learning_rate"] for each in found} == {0.01, 0.1}
    assert {each["l2"] for each in found} == {1e-4, 1e-2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hidden"], "grid: expected NAME=VALUE,VALUE, such as learning-rate=0.01,0.1, got 'hidden'"),
        (["lerning-rate=1"], "got lerning-rate; did you mean learning-rate?"),
        (["seed=1,2"], "grid: expected no seed; --seeds is how many"),
        (
            ["validation=0.1,0.2"],
            "grid: expected an option of gpumlp-train about the network or its training, got",
        ),
        (["l2=1", "l2=2"], "grid: expected each option once, got l2 twice"),
        (["test=a,b"], "grid: expected an option of gpumlp-train about the network or its training, got test"),
        (
            ["augment=shear=0.1+elastic=34,0"],
            "augment: expected elastic=ALPHA,SIGMA (to 10000 and from 0.5 to 14), got",
        ),
        (["augment=shear=0.1+"], "augment: expected shear=PART (to 1), got 'shear=0.1+'"),
        (["augment=none,Rotation=5"], "such as rotation=7.5 elastic=34,4, got 'Rotation=5'"),
        (["class-weight=0=2+0=3"], "another weight than 1, got '0=2', '0=3'"),
        *(
            ([first, second], f"grid: expected {message}")
            for message, first, second in (
                (
                    "+ between the words of one network, got a space; write augment=rotation=5+shear=0.1",
                    "augment=rotation=5+",
                    "shear=0.1",
                ),
                (
                    "an option of gpumlp-train about the network or its training, got lerning-rate; did you mean",
                    "class-weight=0=2",
                    "lerning-rate=0.1",
                ),
                (
                    "an option of gpumlp-train about the network or its training, got epoch; did you mean epochs?",
                    "class-weight=0=2",
                    "epoch=3",
                ),
                (
                    "an option of gpumlp-train about the network or its training, got six",
                    "class-weight=balanced",
                    "six=3",
                ),
                (
                    "an option of gpumlp-train about the network or its training, got test",
                    "class-weight=0=2",
                    "test=3",
                ),
                ("no seed; --seeds is how many", "class-weight=balanced", "seed=1"),
                ("NAME=VALUE,VALUE, such as learning-rate=0.01,0.1, got 'none'", "augment=rotation=5", "none"),
            )
        ),
        *(
            (
                [first, second, "l2=0"],
                f"grid: expected + between the words of one network, got a space; write {first}+{second}",
            )
            for first, second in (
                ("augment=none,rotation=5", "elastic=34,4,shear=0.1"),
                ("preprocess=width=12", "deskew"),
                ("class-weight=six=2", "seven=3"),
            )
        ),
        (["augment=rotation=5", "lerning-rate=1"], "got lerning-rate; did you mean learning-rate?"),
        (
            ["learning-rate=-1,0.1,x", "hidden=0"],
            "hidden: expected whole numbers of 1 or more, or none, got 0\n"
            "learning_rate: expected a number above 0, got -1.0\n"
            "learning_rate: expected a number above 0, got 'x'",
        ),
        (["optimizer=sgd,adam", "momentum=0.5"], "momentum: expected only with optimizer sgd or rmsprop, got"),
        (["batch-size=7"], "batch_size: expected as an option or among the values that vary, got both"),
    ],
)
def test_every_mistake_in_a_grid_is_named_once(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid(Config(batch_size=5), words)
    assert message in str(error.value)


WORDS = ["learning-rate=log:1e-3:1", "momentum=0.1:0.9", "hidden=log:8:256", "activation=relu,tanh"]


def test_what_is_drawn_lies_in_its_range_and_is_the_same_for_the_same_seed() -> None:
    found, logarithmic = random(Config(), WORDS, 200, 0)
    assert found == random(Config(), WORDS, 200, 0)[0] != random(Config(), WORDS, 200, 1)[0]
    assert logarithmic == ["learning_rate", "hidden"]
    assert len({label(each) for each in found}) == 200
    rates = [each["learning_rate"] for each in found]
    assert 1e-3 <= min(rates) < 2e-3 < 0.5 < max(rates) <= 1
    assert sorted(rates)[100] == pytest.approx(math.sqrt(1e-3), rel=0.8)  # uniform logarithms have this median
    momenta = [each["momentum"] for each in found]
    assert 0.1 <= min(momenta) < max(momenta) <= 0.9
    assert sum(momenta) / 200 == pytest.approx(0.5, abs=0.05)
    assert all(len(each["hidden"]) == 1 and 8 <= each["hidden"][0] <= 256 for each in found)
    assert {each["activation"] for each in found} == {"relu", "tanh"}


def test_words_are_drawn_from_a_list_also_with_a_colon() -> None:
    found, _ = random(Config(), ["augment=elastic=34,4,none", "class-weight=a:b=2,six=1"], 4, 0)
    assert {(each["augment"], each["class_weight"]) for each in found} == {
        (augment, weight) for augment in (("elastic=34,4",), ()) for weight in ("a:b=2", "six=1")
    }


def test_whole_numbers_are_drawn_with_both_ends() -> None:
    found, _ = random(Config(), ["batch-size=1:3"], 3, 0)
    assert sorted(each["batch_size"] for each in found) == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning-rate=log:0:1"], "random: expected learning-rate=LOW:HIGH or log:LOW:HIGH, with numbers that"),
        (["learning-rate=1:0.1"], "LOW below HIGH, got '1:0.1'"),
        (["optimizer=adam:sgd"], "with numbers that the option takes"),
        (["batch-size=0.5:3"], "with numbers that the option takes"),
        (["momentum=0:inf"], "with numbers that the option takes"),
        (["momentum=0:1"], "momentum: expected a number of at least 0 and below 1, got 1.0"),
        (["hidden=8,16"], "trials: expected at most 2, as many networks as were found, got 5"),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        random(Config(), words, 5, 0)
    assert message in str(error.value)


def test_a_preset_gives_way_to_the_values_that_vary() -> None:
    notes = PRESETS["notes"]
    adam = with_values(notes, {"optimizer": "adam"})
    assert (adam.learning_rate, adam.momentum, adam.l2) == (None, None, 1e-4)
    assert with_values(notes, {"optimizer": "adam", "learning_rate": 0.1}).learning_rate == 0.1
