"""A comparison as tables on standard output."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table


def print_tables(report: dict[str, Any], console: Console | None = None) -> None:
    """A table for each network and momentum, on standard output."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = 130
    limits = report["limits"]
    sentences = [*report["notes"], f"{report['devices'][0]['name']}: {report['devices'][0]['description']}"]
    sentences.append(f"limit: {1e-9 * limits['flops']:,.0f} GFLOP/s ({limits['by']}, {limits['product']})")
    if "bytes" in limits:
        sentences.append(f"limit: {1e-9 * limits['bytes']:,.0f} GB/s (copy of {limits['copy']})")
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=True)
    for network, momentum in dict.fromkeys((row["network"], row["momentum"]) for row in report["results"]):
        rows = [r for r in report["results"] if (r["network"], r["momentum"]) == (network, momentum)]
        caption = (
            f"Median, least and most of {report['method']['repeats']} runs; ratios are of medians; floor: "
            "microseconds of a step at the machine's limit."
        )
        table = Table(title=f"{network}, momentum {momentum:g}, {report['workload']['dtype']}", caption=caption)
        table.add_column("batch", justify="right")
        table.add_column("peer")
        shares = ["arithmetic", "bandwidth"] if "bytes" in limits else ["of limit"]
        for name in ("samples/s", "min", "max", "us/step", "floor", "gpumlp is", "goal", *shares):
            table.add_column(name, justify="right")
        for index, row in enumerate(rows):
            last = index + 1 == len(rows) or rows[index + 1]["batch_size"] != row["batch_size"]
            table.add_row(*_cells(row, report["peers"], with_bandwidth="bytes" in limits), end_section=last)
        console.print(table)


def _cells(row: dict[str, Any], titles: dict[str, str], *, with_bandwidth: bool) -> list[str]:
    ratio, aim = row["gpumlp_is"], row["goal"]
    verdict = "" if aim is None or ratio is None else f"{aim:g}x {'met' if ratio >= aim else 'missed'}"
    shares = [row["share_of_arithmetic"], *([row["share_of_bandwidth"]] if with_bandwidth else [])]
    return [
        f"{row['batch_size']:,}",
        titles[row["peer"]] + (f" ({row['variant']})" if row["variant"] else ""),
        *(f"{row[name]:,.0f}" for name in ("median", "min", "max")),
        *(three_digits(row[name]) for name in ("microseconds_per_step", "floor_microseconds")),
        "" if ratio is None or row["peer"] == "gpumlp" else f"{ratio:.2f}x",
        verdict,
        *(f"{100 * share:.1f} %" for share in shares),
    ]


def three_digits(value: float) -> str:
    """A number above 0 with three significant digits: 0.0123, 4.56, 78.9, 12,300."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"
