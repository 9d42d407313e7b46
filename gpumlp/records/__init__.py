"""Records of the literature: a file for each says how to train it, what was published, and what differs."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import operator
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ..data import DATA_SETS
from ..files import read_file, user_path, write_atomically
from ..strict_json import parse_object
from ..training.config import PRESETS, Config, ConfigError, options_marked
from ..training.lock import RunLock
from ..training.search_space import OPTIONS, Values, with_values
from ..training.sweeps import duration
from ..words import counted, in_line, listed, shown

# What was measured with the records, as `save_result` writes it.
RESULTS = Path(__file__).with_name("results.json")
COLUMNS = ("record", "paper", "hidden layers", "published", "ours", "time")
NONE, NOT_RUN = "-", "not run"

_TEXTS = ("paper", "source", "deviations")
_PATIENCE = 30.0  # seconds to wait for other commands that save a result
_PERCENTAGES = ("published", "gate")
_REFUSED = {"device", "data_dir", "seed", *options_marked("per_call")} - {"preset"}  # options of the command
# Options in which members may differ: a result has one number of epochs.
_VARIED = set(OPTIONS) - {"epochs", "early_stopping"}
_MEMBERS = 'expected a list of what differs, such as [{}, {preprocess = ["deskew"]}]'


@dataclass(frozen=True)
class Record:
    """A published result, and how it is reproduced.

    Attributes:
        name: of its file, without the ending.
        paper: authors and year.
        source: where the figure was published, or why there is none.
        deviations: what differs from the paper; empty if nothing does.
        config: how a network is trained.
        published: test error in percent; None if the record has only its gate.
        gate: the largest mean test error, in percent, that counts as reached; None if that is not to be worse than
            the published error.
        members: the kinds of networks of a committee, by the options in which each differs from `config`.
        each: number of networks of a kind, which differ by their seeds.
    """

    name: str
    paper: str
    source: str
    deviations: str
    config: Config
    published: float | None
    gate: float | None
    members: tuple[Values, ...] = ({},)
    each: int = 1

    @property
    def networks(self) -> int:
        """Number of networks of a committee; 1 without one."""
        return len(self.members) * self.each

    @property
    def settings(self) -> dict[str, Any]:
        """What is trained: the options that are not the default, and those of a committee."""
        default = vars(Config())
        options = {name: value for name, value in vars(self.config).items() if value != default[name]}
        committee = {"members": self.members, "each": self.each} if self.networks > 1 else {}
        settings: dict[str, Any] = json.loads(json.dumps(options | committee))
        return settings


class Comparison(NamedTuple):
    """Results beside the published figure; all numbers are in percent.

    Attributes:
        mean, deviation: of the test error over the seeds, or committees; the standard deviation is that of a
            sample, and None with one.
        tolerance: the largest difference from the published error that counts as equal; None without one.
        verdict: better, equal or worse; None without a published error.
        reached: is the gate reached?
    """

    mean: float
    deviation: float | None
    tolerance: float | None
    verdict: str | None
    reached: bool


def record_names() -> list[str]:
    """The names of all records."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def load_record(name: str) -> Record:
    """A record by its name, or from a file whose name ends in ``.toml``.

    Raises:
        ConfigError: there is none, its file cannot be read, or has a mistake; each line of the message names one.
    """
    if name.endswith(".toml"):
        record, own = _read(user_path(name)), Path(__file__).with_name(Path(name).name)
        if own.exists() and _read(own) != record:
            raise ConfigError(f"{name}: expected another name than that of a record of gpumlp, {record.name}")
        return record
    if name not in record_names():
        near = difflib.get_close_matches(name, record_names(), 3) or record_names()
        raise ConfigError(f"expected the name of a record, such as {listed(near)}, got {in_line(name)}")
    return _read(Path(__file__).with_name(f"{name}.toml"))


def _read(path: Path) -> Record:
    try:
        values = tomllib.loads(read_file(path).decode("utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:  # TOML or UTF-8; no file
        raise ConfigError(f"{path.name}: {getattr(error, 'strerror', None) or in_line(error)}") from error
    problems = [
        f"{name}: unknown" for name in values if name not in (*_TEXTS, *_PERCENTAGES, "train", "committee")
    ]
    for name in _TEXTS:
        if not isinstance(values.get(name, "" if name == "deviations" else None), str):
            got = repr(values[name]) if name in values else "nothing"
            problems.append(f"{name}: expected a text, got {got}")
    for name in _PERCENTAGES:
        number = values.get(name, 1)
        if type(number) not in (int, float) or not 0 < number < 100:
            problems.append(f"{name}: expected a test error in percent, above 0 and below 100, got {number!r}")
    if not any(name in values for name in _PERCENTAGES):
        problems.append("gate: expected where there is no published error, got nothing")
    config, members, each = Config(), [Values()], 1
    try:
        config = _config(values.get("train"))
    except ConfigError as error:
        problems += [f"train: {line}" for line in str(error).split("\n")]
    else:
        try:
            if "committee" in values:
                members, each = _committee(values["committee"], config)
        except ConfigError as error:
            problems += [f"committee: {line}" for line in str(error).split("\n")]
    if problems:
        raise ConfigError("\n".join(f"{path.name}: {problem}" for problem in problems))
    paper, source, deviations = (" ".join(values.get(name, "").split()) for name in _TEXTS)
    published, gate = map(values.get, _PERCENTAGES)
    return Record(path.stem, paper, source, deviations, config, published, gate, tuple(members), each)


def _config(options: Any) -> Config:
    """The options of `train`, on top of those of a preset if there is one.

    Raises:
        ConfigError: with all mistakes.
    """
    if not isinstance(options, dict):
        raise ConfigError("expected a table with the options of gpumlp-train")
    refused = sorted(_REFUSED & options.keys())
    if refused:
        raise ConfigError(f"{', '.join(refused)}: not in a record; give it to the command")
    dataset = options.get("dataset")
    if dataset == "auto" or dataset not in DATA_SETS:
        raise ConfigError(f"dataset: expected {', '.join(DATA_SETS[1:])}, got {dataset!r}")
    config = Config.from_dict({**vars(PRESETS.get(str(options.get("preset")), Config())), **options})
    if config.early_stopping:
        raise ConfigError("early_stopping: not in a record, whose result is that of its last epoch")
    return config


def _committee(table: Any, config: Config) -> tuple[list[Values], int]:
    """What differs between the members of a committee, and how many there are of each kind.

    Args:
        table: of the file.
        config: what they have in common.

    Raises:
        ConfigError: with all mistakes.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"expected a table with members and each, got {shown(table)}")
    problems = [f"{name}: unknown" for name in table if name not in ("members", "each")]
    members, each = table.get("members"), table.get("each", 1)
    if type(each) is not int or each < 1:
        problems.append(f"each: expected a whole number of 1 or more, got {each!r}")
    if not isinstance(members, list) or not all(isinstance(values, dict) for values in members):
        got = shown(members) if "members" in table else "nothing"
        raise ConfigError("\n".join([*problems, f"members: {_MEMBERS}, got {got}"]))
    found, configs = [], list[Config]()
    for number, values in enumerate(members, 1):
        found.append({name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
        try:
            configs.append(_in_order(_member(found[-1], config)))
            if configs[-1] in configs[:-1]:
                same = configs.index(configs[-1]) + 1
                raise ConfigError(f"expected another network than number {same}; for more of a kind, set each")
        except ConfigError as error:
            problems += [f"members: number {number}: {line}" for line in str(error).split("\n")]
    if not problems and len(members) * each < 2:
        problems.append(f"expected two networks or more, got {len(members) * each}; add members, or set each")
    if problems:
        raise ConfigError("\n".join(problems))
    return found, each


def _member(values: Values, config: Config) -> Config:
    """The options of a member.

    Raises:
        ConfigError: with all mistakes.
    """
    fixed = [name for name in values if name not in _VARIED]
    if fixed:
        raise ConfigError(f"{listed(fixed)}: not an option in which members can differ")
    found = with_values(config, values)
    found.check()
    return found


def _in_order(config: Config) -> Config:
    """The same, with the words of an option in an order that does not matter."""
    augment, preprocess = sorted(config.augment), sorted(config.preprocess)
    return dataclasses.replace(config, augment=tuple(augment), preprocess=tuple(preprocess))


def compare(record: Record, errors: Sequence[float], samples: int) -> Comparison:
    """Compare results with a record.

    The tolerance is two standard errors: 2 sqrt(s^2 / n + p (1 - p) / N), with the deviation s of n seeds, the
    published error p, and N test samples. The second term is the error of the test set itself, and stands alone
    with one seed.

    Args:
        record: the record.
        errors: test error of each seed, or committee, in percent; at least one.
        samples: number of test samples.
    """
    mean = statistics.fmean(errors)
    deviation = statistics.stdev(errors) if len(errors) > 1 else None
    published = record.published
    tolerance = verdict = None
    if published is not None:
        tolerance = 2 * math.sqrt((deviation or 0) ** 2 / len(errors) + published * (100 - published) / samples)
        verdict = "equal" if abs(mean - published) <= tolerance else "better" if mean < published else "worse"
    reached = verdict != "worse" if record.gate is None else mean <= record.gate
    return Comparison(mean, deviation, tolerance, verdict, reached)


# -- Results that were measured, and the table ---------------------------------------------------------------


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The results in a file, oldest first; none without the file.

    Raises:
        ConfigError: the file is damaged.
        OSError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        results = parse_object(read_file(path))["results"]
        for result in results:
            _check_result(result)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected a file of results, as --save writes it, got another or a damaged one"
        ) from error
    return list(results)


def _check_result(result: Mapping[str, Any]) -> None:
    """Raise TypeError, ValueError, ... if a result is not what `save_result` writes."""
    _cells(result)
    result["record"].encode()
    curves = result.get("curves", ())
    for curve in curves:
        max(map(operator.index, curve))
    if len(set(map(len, curves))) > 1:
        raise ValueError("curves of different numbers of epochs")
    mistakes = result.get("mistakes", ())
    for sample, predicted in (pair for pairs in mistakes for pair in pairs):
        operator.index(sample), operator.index(predicted)
    if "mistakes" in result and list(map(len, mistakes)) != result["wrong"]:
        raise ValueError("other numbers of mistakes than of wrong samples")


def save_result(path: Path, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Add a result to a file. It takes the place of that of the same record on the same hardware.

    Args:
        path: of the file, which is made if it is missing.
        result: ``record``, ``device``, ``hardware``, ``seeds``, ``wrong`` (test samples that each seed gets
            wrong), ``test_samples``, ``seconds`` (of each seed), of a CPU ``runs_at_once``, and more:
            ``published``, ``settings`` (of the record, as `Record.settings`), ``curves`` (for each seed, the
            number of wrong test samples after every epoch) and ``mistakes`` (for each seed, pairs of the number of
            a wrong test sample, from 0, and the class that is predicted). Of committees, ``wrong``, ``seconds``
            (of all its networks) and ``mistakes`` are those of each committee, and ``seeds`` those of each
            network, one committee after the other; ``members`` holds, for each committee, how many test samples
            each of its networks gets wrong, and ``disputed`` on how many they disagree.

    Returns:
        The result whose place it takes; None if there was none.

    Raises:
        ConfigError, OSError: the file is damaged, or cannot be read or written.
    """
    same = ("record", "device", "hardware")
    with RunLock(path.parent, "saving a result there", name=f"{path.name}.lock", patience=_PATIENCE):
        before = read_results(path)
        others = [each for each in before if any(each.get(name) != result[name] for name in same)]
        results = sorted([*others, dict(result)], key=lambda each: [str(each.get(name)) for name in same])
        lines = ",\n".join(map(json.dumps, results))  # a line each
        write_atomically(path, f'{{"results": [\n{lines}\n]}}\n'.encode())
    return next((each for each in before if each not in others), None)


def error_words(wrong: Sequence[int], samples: int) -> str:
    """Test errors as text: their mean, and the deviation of several.

    >>> error_words([80, 84], 10_000), error_words([84], 10_000)
    ('0.82 ± 0.03 %', '0.84 %')
    """
    errors = [100 * each / samples for each in wrong]
    deviation = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{statistics.fmean(errors):.2f}{deviation} %"


def unit(result: Mapping[str, Any]) -> str:
    """What a result counts: seeds or committees."""
    return "committee" if "members" in result else "seed"


def table(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each record, with the columns `COLUMNS`; results on several devices stand one below the other."""
    rows: list[tuple[str, ...]] = []
    for record in map(load_record, record_names()):
        own = [_cells(result) for result in results if result["record"] == record.name]
        ours, times = zip(*own, strict=True) if own else ((NOT_RUN,), (NONE,))
        published = NONE if record.published is None else f"{record.published:.2f} %"
        rows.append((record.name, record.paper, _networks(record), published, "\n".join(ours), "\n".join(times)))
    return rows


def differences() -> list[str]:
    """What differs from the papers: a line for each text, with the records that have it."""
    names: dict[str, list[str]] = {}
    for record in map(load_record, record_names()):
        if record.deviations:
            names.setdefault(record.deviations, []).append(record.name)
    return [f"{', '.join(own)}: {text}" for text, own in names.items()]


def _networks(record: Record) -> str:
    """The hidden layers of a record's network, or of the networks of its committee."""
    kinds = Counter(_layers(with_values(record.config, values).hidden) for values in record.members)
    if record.networks == 1:
        return next(iter(kinds))
    return "; ".join(f"{kinds[layers] * record.each} networks of {layers}" for layers in kinds)


def _layers(hidden: Sequence[int]) -> str:
    """The units of hidden layers.

    >>> _layers((1024, 1024)), _layers((1000, 500))
    ('2 x 1024', '1000, 500')
    """
    groups = [(units, len(list(equal))) for units, equal in itertools.groupby(hidden)]
    return ", ".join(str(units) if count == 1 else f"{count} x {units}" for units, count in groups)


def time_words(seconds: float) -> str:
    """How long a run was trained.

    >>> time_words(0.3), time_words(463)
    ('< 1 s', '8 min')
    """
    return "< 1 s" if seconds < 1 else duration(seconds)


def _cells(result: Mapping[str, Any]) -> tuple[str, str]:
    """Errors with seeds or committees and hardware, and the time of one."""
    words = error_words(result["wrong"], result["test_samples"])
    number = counted(len(result["wrong"]), unit(result))
    together = f", {result['runs_at_once']} at once" if "runs_at_once" in result else ""
    return f"{words}, {number}, {result['hardware']}{together}", time_words(statistics.fmean(result["seconds"]))
