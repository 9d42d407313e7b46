"""The networks of a sweep: values of options in a grid, or drawn at random."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from ..nn.hyperparameters import Range
from .config import PRESETS, Config, ConfigError, options_marked, wrong_value

# The ends of the ranges that the course notes suggest for MNIST in section 1.8.3, each with each.
NOTES = ("learning-rate=0.01,0.1", "hidden=64,512", "batch-size=50,1000", "activation=relu,tanh", "l2=1e-4,1e-2")

# The same as ranges, for a search.
NOTES_RANGES = (
    *("learning-rate=log:0.01:0.1", "hidden=log:64:512", "batch-size=log:50:1000", "activation=relu,tanh"),
    "l2=log:1e-4:1e-2",
)

Values = dict[str, Any]  # of options, by their names in `Config`

# What joins the words of an option for one network. x joins the values of layers.
_OF_WORDS = {
    "augment": r"\+(?=[A-Za-z])",  # but not in rotation=1e+1
    "preprocess": r"\+(?=[A-Za-z])",
    "class_weight": r"\+",
}

MOST_RUNS = 100_000  # of a sweep, a folder each; more are a typing error
_DIGITS = 4  # significant digits of a number that is drawn, so that names of folders say exactly what it is
_TRIES = 100  # draws for each network that is wanted, before too few different ones are there
_SAMPLE = 100  # networks of a search that are checked before it begins
# Options that change how networks are ranked, or that do not change a network.
_NOT_VARIED = {
    *("device", "dataset", "label_column", "test", "stream", "task", "data_dir", "validation", "monitor", "seed"),
    *("diagnostics", "execution", "multiprocessors"),
}
OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.name not in (*_NOT_VARIED, *options_marked("per_call"))
)


class Choice(NamedTuple):
    """Some values of an option."""

    name: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The extreme values: if they are allowed, every value that may be drawn is."""
        return self.values

    @property
    def spans_decades(self) -> bool:
        numbers = [as_number(value) for value in self.values]
        known = [number for number in numbers if number is not None and number > 0]
        return len(known) == len(numbers) and max(known) >= 10 * min(known)

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]


class Interval(NamedTuple):
    """The numbers between two limits, whole ones if both limits are."""

    name: str
    low: float
    high: float
    log: bool

    @property
    def ends(self) -> tuple[Any, ...]:
        return self._value(self.low), self._value(self.high)

    def draw(self, rng: np.random.Generator) -> Any:
        """A number, uniform or with a uniform logarithm."""
        whole = isinstance(self.low, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        found = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else rng.uniform(low, high)
        return self.rounded(found)

    def rounded(self, number: float) -> Any:
        """The value next to a number that is in the interval, whole or with few digits."""
        number = min(max(number, self.low), self.high)
        return self._value(round(number) if isinstance(self.low, int) else float(f"{number:.{_DIGITS}g}"))

    def _value(self, number: float) -> Any:
        return _of_config(self.name, (number,) if _kinds(self.name)[1] else number)


def grid(base: Config, words: Sequence[str], seeds: int = 1) -> tuple[list[Values], list[str]]:
    """Every combination of the values of some options.

    Args:
        base: the options that do not vary.
        words: ``"learning-rate=0.1,0.01"``, ``"hidden=64,128x64"``, ``"augment=none,rotation=5+elastic=34,4"``,
            ... The layers of a network are joined by x, its words by +, and ``none`` is no value.
        seeds: how many each network is trained with.

    Returns:
        the values of each network, the last option varying fastest, and the names of the options whose values are
        numbers above 0 that span a factor of 10 or more.

    Raises:
        ConfigError: naming everything that is wrong, of the words and of the networks.
    """
    choices = [Choice(name, _values(name, text)) for name, text in _named("grid", words)]
    require_few(seeds * math.prod(len(choice.values) for choice in choices))
    found = [
        dict(zip([choice.name for choice in choices], values, strict=True))
        for values in itertools.product(*(choice.values for choice in choices))
    ]
    _check(base, found)
    return found, [choice.name for choice in choices if choice.spans_decades]


def random(
    base: Config, words: Sequence[str], trials: int, seed: int, seeds: int = 1
) -> tuple[list[Values], list[str]]:
    """Different networks with options that are drawn at random.

    Args:
        base: the options that do not vary.
        words: ``"momentum=0:0.99"``, uniform between two limits; ``"learning-rate=log:1e-3:1"``, whose logarithm
            is uniform; ``"hidden=64,128x64"``, one of some values, as in `grid`.
        trials: how many networks.
        seed: of the random numbers.
        seeds: how many each network is trained with.

    Returns:
        the values of each network, and the names of the options with a logarithmic range.

    Raises:
        ConfigError: naming everything that is wrong, of the words and of the networks.
    """
    ranges = space(words)
    require_few(seeds * trials)
    rng = np.random.default_rng(seed)
    found: dict[str, Values] = {}
    for _ in range(_TRIES * trials):
        values = {each.name: each.draw(rng) for each in ranges}
        found.setdefault(label(values), values)
        if len(found) == trials:
            break
    else:
        raise ConfigError(f"trials: expected at most {len(found)}, as many networks as were found, got {trials}")
    _check(base, found.values())
    return list(found.values()), logarithmic(ranges)


def require_few(runs: int) -> None:
    """Raise ConfigError if these are too many for a sweep."""
    if runs > MOST_RUNS:
        raise ConfigError(f"expected at most {MOST_RUNS:,} runs, got {runs:,}; give fewer values, seeds or trials")


def space(words: Sequence[str]) -> list[Choice | Interval]:
    """The ranges of options that vary, written as for `random`.

    Raises:
        ConfigError: naming everything that is wrong.
    """
    ranges = [_range(name, text) for name, text in _named("random", words)]
    _check_ends(ranges)
    return ranges


def sample(base: Config, ranges: Sequence[Choice | Interval]) -> list[Values]:
    """Networks of a space, some of them equal, by which a search can be checked before it begins.

    Raises:
        ConfigError: naming everything that is wrong with them.
    """
    rng = np.random.default_rng(0)
    networks = [{each.name: each.draw(rng) for each in ranges} for _ in range(_SAMPLE)]
    _check(base, networks)
    return networks


def logarithmic(ranges: Iterable[Choice | Interval]) -> list[str]:
    """The names of the options with a logarithmic range."""
    return [each.name for each in ranges if isinstance(each, Interval) and each.log]


def with_values(base: Config, values: Values) -> Config:
    """The configuration of a network, without what a preset set for a choice that it does not make."""
    return dataclasses.replace(dataclasses.replace(base, **values).without_leftovers(), **values)


def label(values: Values) -> str:
    """The values of a network in a line.

    >>> label({"learning_rate": 0.1, "hidden": (128, 64)})
    'learning_rate=0.1,hidden=128x64'
    """
    return ",".join(f"{name}={value_text(value)}" for name, value in values.items())


def value_text(value: Any) -> str:
    """A value as `grid` takes it.

    >>> value_text((128, 64)), value_text(("rotation=5", "elastic=34,4")), value_text(()), value_text(1.0)
    ('128x64', 'rotation=5+elastic=34,4', 'none', '1')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value in (None, ()):
        return "none"
    parts = [str(part).removesuffix(".0") for part in (value if isinstance(value, tuple) else (value,))]
    return ("+" if any("=" in part for part in parts) else "x").join(parts)


def as_number(value: Any) -> float | None:
    """A value that is a number, or the units of a single hidden layer; None for any other.

    >>> as_number((64,)), as_number("relu")
    (64, None)
    """
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _named(option: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The name of each option, and the text of its values.

    Raises:
        ConfigError: a word has no name or no values, or its name is unknown or was there before.
    """
    seen: list[str] = []
    before = ""
    for word in words:
        name, _, text = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        near = difflib.get_close_matches(name, OPTIONS, 1)
        last, joined = seen[-1] if seen else "", f"{before.rstrip('+')}+{word}"
        before = word
        # A class may have any name, but the name of an option, or almost one, is taken for that.
        is_option = name in Config.__dataclass_fields__ or (near and last == "class_weight")
        values = _values(last, joined.partition("=")[2]) if last in _OF_WORDS and not is_option else ()
        if values and all(map(_allowed(last).accepts, values)):
            raise ConfigError(
                f"{option}: expected + between the words of one network, got a space; write {joined}"
            )
        if not name or not text:
            raise ConfigError(f"{option}: expected NAME=VALUE,VALUE, such as learning-rate=0.01,0.1, got {word!r}")
        if name == "seed":
            raise ConfigError(
                f"{option}: expected no seed; --seeds is how many seeds each network is trained with"
            )
        if name not in OPTIONS:
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise ConfigError(
                f"{option}: expected an option of gpumlp-train about the network or its training, "
                f"got {name.replace('_', '-')}{hint}"
            )
        if name in seen:
            raise ConfigError(f"{option}: expected each option once, got {name.replace('_', '-')} twice")
        seen.append(name)
        yield name, text


def _range(name: str, text: str) -> Choice | Interval:
    if ":" not in text or name in _OF_WORDS:
        return Choice(name, _values(name, text))
    log, rest = text.startswith("log:"), text.removeprefix("log:")
    limits = [_number(name, part) for part in rest.split(":")]
    if len(limits) == 2:
        low, high = limits
        if low is not None and high is not None and low < high and (low > 0 or not log):
            return Interval(name, low, high, log)
    raise ConfigError(
        f"random: expected {name.replace('_', '-')}=LOW:HIGH or log:LOW:HIGH, with numbers that the option takes, "
        f"LOW below HIGH{', and LOW above 0' * log}, got {text!r}"
    )


def _number(name: str, text: str) -> float | None:
    """A finite number of the kind that an option takes; None if the text is none, or it takes no numbers."""
    for kind in (int, float):
        if kind in _kinds(name)[0]:
            with suppress(ValueError):
                number: float = kind(text)
                return number if math.isfinite(number) else None
    return None


def _values(name: str, text: str) -> tuple[Any, ...]:
    # In elastic=34,4 a number follows the comma.
    parts = re.split(r",(?!\s*[-+.\d])" if name == "augment" else ",", text)
    return tuple(dict.fromkeys(_value(name, part.strip()) for part in parts))


def _value(name: str, text: str) -> Any:
    """A value as the command line of `train` reads it. Other text than a number is left to `Config.check`."""
    kinds, several = _kinds(name)
    empty = isinstance(getattr(Config, name), tuple)
    if text == "none" and (type(None) in kinds or empty):
        return () if empty else None
    parts = re.split(_OF_WORDS.get(name, "x"), text) if several else [text]
    # An empty part is a wrong value, and a class may have any name, also one with +.
    if "" in parts or (name == "class_weight" and not all(map(_allowed(name).accepts, parts))):
        parts = [text]
    values = tuple(_part(kinds, part) for part in parts)
    return _of_config(name, values if several else values[0])


def _of_config(name: str, value: Any) -> Any:
    """A value as `Config` keeps it: without the tuple around a single one, and with one spelling of a name."""
    return getattr(Config(**{name: value}), name)


def _part(kinds: set[type], text: str) -> Any:
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text) if bool in kinds else text


def _allowed(name: str) -> Range:
    allowed: Range = Config.__dataclass_fields__[name].metadata["allowed"]
    return allowed


@functools.cache
def _kinds(name: str) -> tuple[set[type], bool]:
    """The types that an option takes, and whether it takes several values, one for each layer or the like."""
    kinds: set[type] = set()
    several = False
    pending = [typing.get_type_hints(Config)[name]]
    while pending:
        kind = pending.pop()
        if typing.get_origin(kind) is tuple:
            several = True
            pending.append(typing.get_args(kind)[0])
        elif typing.get_origin(kind) in (typing.Union, types.UnionType):
            pending += typing.get_args(kind)
        else:
            kinds.add(kind)
    return kinds, several


def _check_ends(ranges: Iterable[Choice | Interval]) -> None:
    """Check what may be drawn. Raises ConfigError with a line for each value that is not allowed."""
    problems = [
        wrong_value(each.name, _allowed(each.name), end)
        for each in ranges
        for end in each.ends
        if not _allowed(each.name).accepts(end)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _check(base: Config, networks: Iterable[Values]) -> None:
    """Check every network as `train` would.

    Raises:
        ConfigError: each line names a wrong value, once.
    """
    problems: dict[str, None] = {}
    start = PRESETS.get(str(base.preset), Config())
    for values in networks:
        for name in values:
            if getattr(base, name) != getattr(start, name):
                problems[f"{name}: expected as an option or among the values that vary, got both"] = None
        try:
            with_values(base, values).check()
        except ConfigError as error:
            problems |= dict.fromkeys(str(error).split("\n"))
    if problems:
        raise ConfigError("\n".join(problems))
