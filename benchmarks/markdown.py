"""The benchmarks' tables in Markdown: ``python -m benchmarks.markdown FILE.json ...``.

A benchmark prints its tables in full when it has measured (`show`); the command prints the short ones of the
README from the files of results, and with ``--figure`` it also draws the figure beside each file.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from gpumlp import command
from gpumlp.files import user_path

from . import common, figures

Report = dict[str, Any]
Lines = Iterator[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of each file, and return the exit code: 1 if one has no table, 2 if it is damaged."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    paths = [word for word in words if not word.startswith("-")]
    if {"-h", "--help"} & {*words}:
        print(__doc__)
        return 0
    if not paths or set(words) - {*paths, "--figure"}:
        wanted = "[--figure] and files of results, such as benchmarks/results/compare-cpu.json"
        print(f"expected {wanted}, got {' '.join(words) or 'nothing'}", file=sys.stderr)
        return 2

    def work() -> int:
        code = command.OK
        for path in paths:
            try:
                report = json.loads(user_path(path).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                print(f"{path} is not a file of results: {error}", file=sys.stderr)
                return 2
            kind = report.get("benchmark") if isinstance(report, dict) else None
            if kind not in _SHORT:
                what = f"of {kind}" if kind else "of results that do not name their benchmark"
                print(f"{path}: there is no table {what}, only of {', '.join(_SHORT)}", file=sys.stderr)
                code = command.FAILED
                continue
            try:
                lines = [f"\n<!-- {path}, {report['date'][:10]}: {report['command']} -->\n", *_SHORT[kind](report)]
            except KeyError as error:
                print(f"{path} is not a whole file of results: it has no {error}", file=sys.stderr)
                return 2
            print("\n".join(lines))
            if "--figure" in words and kind not in ("estimators", "several processes"):
                figures.plot(report, user_path(path).with_suffix(".png"))
        return code

    return command.run("markdown", work)


def show(report: Report) -> None:
    """Print a report in full: circumstances, every setting with median, minimum and maximum, conclusions."""
    work = report.get("workload")
    if work is not None and "data" in work:
        samples = work.get("samples", work.get("samples_in_all"))
        print(f"{work['activation']}, {work['dtype']}, {samples:,} samples of {work['data']}")
    print("\n".join([*common.facts(report), *report["notes"]]))
    print("\n".join(aligned(_FULL[report["benchmark"]](report))))


# -- Comparison with other libraries ---------------------------------------------------------------------


def comparison(report: Report) -> Lines:
    """A table for each network, without and with momentum in one cell.

    On a CPU gpumlp's rate, and how many times another's it is. On a GPU each peer's microseconds of a step, and
    their floor: what a step's operations and bytes take at the rates that the device reaches.
    """
    rows = {(r["network"], r["batch_size"], r["momentum"], r["peer"]): r for r in report["results"]}
    networks, sizes, momenta, peers = (_distinct(key[index] for key in rows) for index in range(4))
    on_gpu = "bytes" in report.get("limits", {})
    for index, network in enumerate(networks):

        def cell(size: int, peer: str, text: Callable[[Report], str], network: str = network) -> str:
            found = [rows.get((network, size, momentum, peer)) for momentum in momenta]
            return " / ".join("-" if row is None else text(row) for row in found)

        def times(size: int, cell: Callable[..., str] = cell) -> Lines:
            yield from (cell(size, peer, lambda row: _time(row.get("microseconds_per_step"))) for peer in peers)
            yield cell(size, peers[0], lambda row: _time(row.get("floor_microseconds")))

        def ratios(size: int, cell: Callable[..., str] = cell) -> Lines:
            yield cell(size, "gpumlp", lambda row: f"{row['median']:,.0f}")
            yield cell(size, "gpumlp", lambda row: f"{row['share_of_arithmetic']:.0%}")
            yield from (cell(size, peer, lambda row: f"{row['gpumlp_is']:.2f}x") for peer in peers[1:])

        title = f"{network}, momentum {' / '.join(f'{momentum:g}' for momentum in momenta)}"
        title += ", microseconds a step" if on_gpu else ""
        yield f"**{title}**\n" if index == 0 else f"<details><summary>{title}</summary>\n"
        titles = [report["peers"][peer] for peer in peers]
        columns = [*titles, "floor"] if on_gpu else ["gpumlp, samples/s", "of the limit", *titles[1:]]
        measured = [size for size in sizes if any(key[:2] == (network, size) for key in rows)]
        cells = ([f"{size:,}", *(times(size) if on_gpu else ratios(size))] for size in measured)
        yield from table(["batch", *columns], cells)
        yield "" if index == 0 else "\n</details>\n"


def _comparison_in_full(report: Report) -> Lines:
    limits, results = report["limits"], report["results"]
    yield f"limit: {1e-9 * limits['flops']:,.0f} GFLOP/s ({limits['by']}, {limits['product']})"
    if "bytes" in limits:
        yield f"limit: {1e-9 * limits['bytes']:,.0f} GB/s (copy of {limits['copy']})"
    shares = {"arithmetic": "share_of_arithmetic"}
    if "bytes" in limits:
        shares["bandwidth"] = "share_of_bandwidth"
    for network, momentum in _distinct((row["network"], row["momentum"]) for row in results):
        yield f"\n**{network}, momentum {momentum:g}, {report['workload']['dtype']}**\n"
        yield from table(
            ["batch", "peer", "samples/s", "min", "max", "us/step", "floor", "gpumlp is", *shares],
            (
                [
                    f"{row['batch_size']:,}",
                    report["peers"][row["peer"]] + (f" ({row['variant']})" if row["variant"] else ""),
                    *(f"{row[name]:,.0f}" for name in ("median", "min", "max")),
                    *(three_digits(row[name]) for name in ("microseconds_per_step", "floor_microseconds")),
                    "" if row["gpumlp_is"] is None or row["peer"] == "gpumlp" else f"{row['gpumlp_is']:.2f}x",
                    *(f"{100 * row[share]:.1f} %" for share in shares.values()),
                ]
                for row in results
                if (row["network"], row["momentum"]) == (network, momentum)
            ),
        )
    runs = f"Median, minimum and maximum of {report['method']['repeats']} runs; ratios are of medians"
    yield f"\n{runs}; floor: microseconds of a step at the machine's limit."


# -- Throughput ------------------------------------------------------------------------------------------


def throughput(report: Report) -> Lines:
    """A row for each batch size: samples per second of each network on each device."""
    rates = {(r["network"], common.series(r), r["batch_size"]): f"{r['median']:,.0f}" for r in report["results"]}
    columns = _distinct(key[:2] for key in rates)
    yield from table(
        ["batch", *(f"{network}, {device}" for network, device in columns)],
        (
            [f"{size:,}", *(rates.get((network, device, size), "-") for network, device in columns)]
            for size in _distinct(key[2] for key in rates)
        ),
    )


def _throughput_in_full(report: Report) -> Lines:
    copied = list(next((row["with_copy"] for row in report["results"] if "with_copy" in row), {}))
    counted = [f"with copy, {epochs} epoch{'s' if epochs != '1' else ''}" for epochs in copied]
    for network, work in report["workload"]["networks"].items():
        yield f"\n**{network}**\n"
        yield from table(
            ["device", "batch", "timed", "samples/s", "min", "max", "us/step", "GFLOP/s", *counted],
            (
                [
                    common.series(row),
                    *(f"{row[name]:,}" for name in ("batch_size", "samples")),
                    *(f"{row[name]:,.0f}" for name in ("median", "min", "max")),
                    three_digits(1e6 * row["samples"] / row["median"] / row["steps"]),
                    f"{1e-9 * work['flops_per_sample'] * row['median']:,.1f}",
                    *(
                        f"{row['with_copy'][epochs]:,.0f}" if "with_copy" in row else "no copy"
                        for epochs in copied
                    ),
                ]
                for row in report["results"]
                if row["network"] == network
            ),
        )
    yield f"\nMedian, minimum and maximum of {report['method']['repeats']} epochs after the warm-up.\n"
    for copy in report["copies"]:
        yield (
            f"Data set to {copy['device']}: {copy['bytes'] / 1e6:,.0f} MB in {1e3 * copy['median']:,.1f} ms "
            f"({1e3 * copy['min']:,.1f} to {1e3 * copy['max']:,.1f})"
        )
    for network, ways in report["crossover"].items():
        for way, sentences in ways.items():
            name = f"{network} ({way})" if len(ways) > 1 else network
            yield from (f"{name}: {sentence}" for sentence in sentences)


# -- Many networks ---------------------------------------------------------------------------------------


def many(report: Report) -> Lines:
    """A row for each number of networks on each device: microseconds of a step of all, and samples per second."""
    rows = {(r["network"], r["device"], r["networks"], r["peer"]): r for r in report["results"]}
    peers = _distinct(key[3] for key in rows)
    titles = [report["peers"][peer] for peer in peers]
    names = [*(f"µs a step: {title}" for title in titles), *(f"samples/s: {title}" for title in titles)]
    cells = []
    for key in _distinct(key[:3] for key in rows):
        found = [rows.get((*key, peer)) for peer in peers]
        network, device, count = key
        times = (_time(row and row["microseconds_per_step"]) for row in found)
        rates = ("-" if row is None else f"{row['median']:,.0f}" for row in found)
        cells.append([network, device, f"{count:,}", *times, *rates])
    yield from table(["network", "device", "networks", *names], cells)


def _many_in_full(report: Report) -> Lines:
    work = report["workload"]
    for name, one in work["networks"].items():
        yield (
            f"{name}: {work['activation']}, {work['dtype']}, {one['optimizer']}, batch size {one['batch_size']}, "
            f"{one['samples']:,} samples of {one['data']}"
        )
    yield ""
    yield from table(
        ["network", "device", "networks", "peer", "samples/s", "min", "max", "us/step of all", "on the device",
         "runs/s", "first epoch, s", "gpumlp is"],
        (
            [
                row["network"],
                row["device"],
                f"{row['networks']:,}",
                report["peers"][row["peer"]] + (f" ({row['way']})" if row["way"] else ""),
                *(f"{row[name]:,.0f}" for name in ("median", "min", "max")),
                three_digits(row["microseconds_per_step"]),
                _time(row.get("device_microseconds_per_step")),
                three_digits(row["median"] / work["epochs"] / work["networks"][row["network"]]["samples"]),
                f"{row['first_seconds']:.2f}",
                "" if "gpumlp_is" not in row or row["peer"] == "gpumlp" else f"{row['gpumlp_is']:.2f}x",
            ]
            for row in report["results"]
        ),
    )  # fmt: skip
    yield (
        f"\nMedian, minimum and maximum of {report['method']['repeats']} runs, all networks together; runs/s: how "
        f"many networks are trained for {work['epochs']} epochs of all samples in a second, computed."
    )


# -- Several processes -----------------------------------------------------------------------------------


def parallel(report: Report) -> Lines:
    """A row for each timed setting."""
    yield from table(
        ["network", "scaling", "processes", "batch", "BLAS threads", "ms a step", "min", "max", "exchange, ms",
         "speed-up"],
        (
            [
                row["network"],
                row["scaling"],
                *(f"{row[name]:,}" for name in ("processes", "batch_size")),
                str(row["threads"] or "-"),
                *(three_digits(row[name]) for name in ("median", "min", "max")),
                three_digits(row["exchange"]) if row["exchange"] else "-",
                f"{row['speed_up']:.2f}x",
            ]
            for row in report["results"]
        ),
    )  # fmt: skip
    yield f"\nMedian, minimum and maximum of {report['method']['repeats']} epochs."


# -- Growth and estimators -------------------------------------------------------------------------------


def growth(report: Report) -> Lines:
    """A row for each point of each series: seconds of an epoch; then the exponents in words."""
    yield from table(
        ["device", "network", "samples", "timed", "s/epoch", "min", "max"],
        (
            [
                series["device"],
                point["network"],
                *(f"{point[name]:,}" for name in ("samples", "samples_timed")),
                *(f"{point[name]:,.3f}" for name in ("median", "min", "max")),
            ]
            for series in report["growth"]
            for point in series["points"]
        ),
    )
    epochs = f"Median, minimum and maximum of {report['method']['repeats']} epochs after the warm-up"
    yield f"\n{epochs}, scaled up where fewer samples were timed than an epoch has.\n"
    yield from (f"{series['device']}: {series['words']}" for series in report["growth"])


def estimators(report: Report) -> Lines:
    """A row for each data set and dtype: accuracies, seconds to fit, and how many times as fast gpumlp is."""
    rows = {(r["data"], r["dtype"], r["library"]): r for r in report["results"]}
    others = [library for library in _distinct(key[2] for key in rows) if library != "gpumlp"]
    names = ["accuracy, %: gpumlp", "scikit-learn", "s to fit: gpumlp", "scikit-learn"]
    cells = []
    for data, dtype in _distinct(key[:2] for key in rows):
        ours, theirs = (rows[data, dtype, library] for library in ("gpumlp", "scikit-learn"))
        cells.append(
            [
                f"{data}, {ours['samples']:,}",
                dtype,
                *(_spread([100 * value for value in row["accuracy"]], ".2f") for row in (ours, theirs)),
                *(_spread(row["seconds"], ".2f" if row["median"] >= 1 else ".3f") for row in (ours, theirs)),
                *(f"{rows[data, dtype, library]['gpumlp_is']['median']:.2f}x" for library in others),
            ]
        )
    yield from table(["data", "X", *names, *(f"times as fast as {library}" for library in others)], cells)


def _estimators_in_full(report: Report) -> Lines:
    yield f"{report['parameters']}; {report['method']}\n"
    yield from table(
        ["data", "X", "library", "accuracy, %", "epochs", "s to fit", "times as fast is gpumlp"],
        (
            [
                f"{row['data']}, {row['samples']:,}",
                row["dtype"],
                row["library"],
                _spread([100 * value for value in row["accuracy"]], ".2f"),
                f"{statistics.median(row['epochs']):g}",
                _spread(row["seconds"], ".3f"),
                "" if row["library"] == "gpumlp" else f"{row['gpumlp_is']['median']:.2f}",
            ]
            for row in report["results"]
        ),
    )
    yield f"\nMedian (minimum-maximum) of {report['seeds']} seeds."


# -- Cells -----------------------------------------------------------------------------------------------


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """A table in Markdown."""
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def aligned(lines: Iterable[str]) -> Lines:
    """The lines, with the columns of each table padded to one width."""
    for is_table, group in groupby(lines, key=lambda line: line.startswith("|")):
        if not is_table:
            yield from group
            continue
        cells = [line.strip("|").split("|") for line in group]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            fill = "-" if set("".join(row)) == {"-"} else " "
            yield f"|{'|'.join(cell.ljust(width, fill) for cell, width in zip(row, widths, strict=True))}|"


def three_digits(value: float) -> str:
    """A number above 0 with three significant digits: 0.0123, 4.56, 78.9, 12,300."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


def _time(microseconds: float | None) -> str:
    """Older results have no times of a step."""
    return "-" if microseconds is None else three_digits(microseconds)


def _spread(values: Sequence[float], form: str) -> str:
    """The median of some runs, with the minimum and the maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


_SHORT: dict[str, Callable[[Report], Lines]] = {
    "comparison of training throughput": comparison,
    "training throughput": throughput,
    "many networks": many,
    "several processes": parallel,
    "growth of the cost of an epoch": growth,
    "estimators": estimators,
}
_FULL = {
    "comparison of training throughput": _comparison_in_full,
    "training throughput": _throughput_in_full,
    "many networks": _many_in_full,
    "several processes": parallel,
    "growth of the cost of an epoch": growth,
    "estimators": _estimators_in_full,
}

if __name__ == "__main__":
    sys.exit(main())
