"""The README's tables from the results: ``python -m benchmarks.markdown benchmarks/results/*.json``."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .comparison_table import three_digits

Report = dict[str, Any]

_UNFOLDED = "\n</details>\n"


def main(files: Sequence[str] | None = None) -> int:
    """Print the tables of each file, and return the exit code."""
    paths = sys.argv[1:] if files is None else files
    if not paths:
        print("expected files of results, such as benchmarks/results/compare-cpu.json", file=sys.stderr)
        return 2
    for path in paths:
        try:
            report = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"{path} is no file of results: {error}", file=sys.stderr)
            return 2
        kind = report.get("benchmark") if isinstance(report, dict) else None
        tables = next((make for name, make in _TABLES.items() if name in str(kind)), None)
        if tables is None:
            what = f"of {kind}" if kind else "of results that do not name their benchmark"
            print(f"{path}: there is no table {what}, only of {', '.join(_TABLES)}", file=sys.stderr)
        else:
            print(f"\n<!-- {path}, {report['date'][:10]}: {report['command']} -->\n")
            print("\n".join(tables(report)))
    return 0


def comparison(report: Report) -> Iterator[str]:
    """A table for each network: gpumlp's rate, and how many times another's it is, without / with momentum.

    On a GPU also the time of gpumlp's step, beside the floor that its bytes and operations set.
    """
    on_gpu = "bytes" in report.get("limits", {})
    times = {"us/step": "microseconds_per_step", "floor, us": "floor_microseconds"} if on_gpu else {}
    rows = {(r["network"], r["batch_size"], r["momentum"], r["peer"]): r for r in report["results"]}
    momenta = _distinct(r["momentum"] for r in report["results"])
    peers = [peer for peer in _distinct(r["peer"] for r in report["results"]) if peer != "gpumlp"]
    for index, network in enumerate(_distinct(r["network"] for r in report["results"])):
        sizes = _distinct(r["batch_size"] for r in report["results"] if r["network"] == network)

        def over_momenta(size: int, peer: str, text: Callable[[Report], str], network: str = network) -> str:
            found = [rows.get((network, size, momentum, peer)) for momentum in momenta]
            return " / ".join("-" if row is None else text(row) for row in found)

        title = f"{network}, momentum {' / '.join(f'{momentum:g}' for momentum in momenta)}"
        yield from [f"**{title}**\n"] if index == 0 else _folded(title)
        names = ["batch", "gpumlp, samples/s", "of the limit", *times, *(report["peers"][peer] for peer in peers)]
        yield from _head(names)
        for size in sizes:
            yield _line(
                f"{size:,}",
                over_momenta(size, "gpumlp", lambda row: f"{row['median']:,.0f}"),
                over_momenta(size, "gpumlp", lambda row: f"{row['share_of_arithmetic']:.0%}"),
                *(
                    over_momenta(size, "gpumlp", lambda row, key=key: _time(row.get(key)))
                    for key in times.values()
                ),
                *(over_momenta(size, peer, lambda row: f"{row['gpumlp_is']:.2f}x") for peer in peers),
            )
        yield "" if index == 0 else _UNFOLDED
    yield from _goals(report, momenta)


def _goals(report: Report, momenta: Sequence[float]) -> Iterator[str]:
    """What was aimed at and what was reached, for each pair of a setting and a peer that has a goal."""
    rows = [row for row in report["results"] if row.get("goal")]
    if not rows:
        return
    yield from _folded("Goals: at least so many times the other's samples per second, and what was reached")
    yield from _head(["network", "batch", "beside", "goal", f"reached, momentum {' / '.join(map(str, momenta))}"])
    for key in _distinct((r["network"], r["batch_size"], r["peer"]) for r in rows):
        found = [row for row in rows if (row["network"], row["batch_size"], row["peer"]) == key]
        reached = " / ".join(f"{row['gpumlp_is']:.2f}x" for row in sorted(found, key=lambda row: row["momentum"]))
        yield _line(key[0], f"{key[1]:,}", report["peers"][key[2]], f"{found[0]['goal']:g}x", reached)
    yield _UNFOLDED


def throughput(report: Report) -> Iterator[str]:
    """A row for each batch size: samples per second of each network on each device."""
    networks = list(report["workload"]["networks"])
    devices = [device["name"] for device in report["devices"]]
    columns = [(network, device) for network in networks for device in devices]
    rows = {(r["network"], r["device"], r["batch_size"]): r for r in report["results"]}
    yield from _head(["batch", *(f"{network}, {device}" for network, device in columns)])
    for size in _distinct(r["batch_size"] for r in report["results"]):
        found = [rows.get((*column, size)) for column in columns]
        yield _line(f"{size:,}", *("-" if row is None else f"{row['median']:,.0f}" for row in found))


def estimators(report: Report) -> Iterator[str]:
    """A row for each data set and dtype: accuracies, seconds to fit, and how many times as fast gpumlp is."""
    rows = {(r["data"], r["dtype"], r["library"]): r for r in report["results"]}
    others = [library for library in _distinct(r["library"] for r in report["results"]) if library != "gpumlp"]
    names = ["accuracy, %: gpumlp", "scikit-learn", "s to fit: gpumlp", "scikit-learn"]
    yield from _head(["data", "X", *names, *(f"times as fast as {library}" for library in others)])
    for data, dtype in _distinct((r["data"], r["dtype"]) for r in report["results"]):
        ours, theirs = (rows[data, dtype, library] for library in ("gpumlp", "scikit-learn"))
        yield _line(
            f"{data}, {ours['samples']:,}",
            dtype,
            *(_spread([100 * value for value in row["accuracy"]], ".2f") for row in (ours, theirs)),
            *(_spread(row["seconds"], ".2f" if row["median"] >= 1 else ".3f") for row in (ours, theirs)),
            *(f"{rows[data, dtype, library]['gpumlp_is']['median']:.2f}x" for library in others),
        )


def _time(microseconds: float | None) -> str:
    """Older results have no times of a step."""
    return "-" if microseconds is None else three_digits(microseconds)


def _folded(title: str) -> Iterator[str]:
    """The beginning of a part that opens at a click."""
    yield f"<details><summary>{title}</summary>\n"


def _spread(values: Sequence[float], form: str) -> str:
    """The median of some runs, with the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _line(*names)
    yield "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


_TABLES = {"comparison": comparison, "training throughput": throughput, "estimators": estimators}

if __name__ == "__main__":
    sys.exit(main())
