"""What the benchmarks share: the circumstances of a measurement, and its table, JSON file and figure."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import textwrap
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import threadpoolctl
from rich.console import Console
from rich.table import Table

import gpumlp
from gpumlp import blas_kernel
from gpumlp.backends import Device
from gpumlp.info import usable_processors, version

# Environment variables that change speed; recorded where they are set.
_SPEED_VARIABLES = (
    "GPUMLP_BLAS_KERNEL",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUPY_TF32",
    "CUPY_ACCELERATORS",
    "CUDA_VISIBLE_DEVICES",
)
# Okabe and Ito's colours, told apart also by colour-blind readers; markers and lines differ as well.
_STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


def circumstances(devices: Sequence[Device], arguments: Sequence[str], program: str) -> dict[str, Any]:
    """Date, command line, hardware, versions and BLAS, as JSON can hold them."""
    gpus = any(device.name != "cpu" for device in devices)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"{program} {shlex.join(arguments)}".strip(),
        "hardware": {
            "system": platform.platform(),
            "processors_usable": usable_processors(),
            "load_average_at_end": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
            "nvidia_smi": _nvidia_smi() if gpus else None,
        },
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "memory_bytes": None if device.memory is None else device.memory.total,
            }
            for device in devices
        ],
        "versions": {
            "python": platform.python_version(),
            "gpumlp": gpumlp.__version__,
            "numpy": version("numpy"),
            "cupy": version("cupy"),
        },
        "blas": [
            {
                "library": pool["internal_api"],
                "version": pool["version"],
                "kernel": pool.get("architecture"),
                "threads": pool["num_threads"],
            }
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "blas_kernel_choice": blas_kernel.CHOICE._asdict(),
        "environment": {name: os.environ[name] for name in _SPEED_VARIABLES if name in os.environ},
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def print_table(report: dict[str, Any], console: Console | None = None) -> None:
    """Circumstances and results, on standard output."""
    console = console or Console(highlight=False)
    for line in [*_facts(report), *report["notes"]]:
        console.print(line, markup=False, soft_wrap=True)
    repeats = report["method"]["repeats"]
    table = Table(caption=f"Median, least and most of {repeats} epochs after one that is not counted.")
    table.add_column("device")
    for name in ("batch", "samples/s", "min", "max", "us/step", "GFLOP/s"):
        table.add_column(name, justify="right")
    before = None
    for result in report["results"]:
        if before not in (None, result["device"]):
            table.add_section()
        before, median = result["device"], result["median"]
        table.add_row(
            result["device"],
            f"{result['batch_size']:,}",
            *(f"{result[name]:,.0f}" for name in ("median", "min", "max")),
            f"{1e6 * report['workload']['samples'] / median / result['steps']:,.0f}",
            f"{1e-9 * report['workload']['flops_per_sample'] * median:,.1f}",
        )
    console.print(table)


def write(report: dict[str, Any], stem: Path) -> list[Path]:
    """Write ``stem.json`` and ``stem.png``; without matplotlib only the first, and say so."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [Path(f"{stem}.json")]
    written[0].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    try:
        plot(report, Path(f"{stem}.png"))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("no figure: matplotlib is not installed; install it with pip install '.[benchmark]'")
    else:
        written.append(Path(f"{stem}.png"))
    return written


def plot(report: dict[str, Any], path: Path) -> None:
    """Samples per second over the batch size, a line for each device.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8, 5.6), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, device in enumerate(report["devices"]):
        rows = [row for row in report["results"] if row["device"] == device["name"]]
        sizes = [row["batch_size"] for row in rows]
        colour, marker, line = _STYLES[index % len(_STYLES)]
        label = f"{device['name']}: {device['description']}"
        axes.fill_between(
            sizes, [r["min"] for r in rows], [r["max"] for r in rows], color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(sizes, [r["median"] for r in rows], line, color=colour, marker=marker, markersize=6, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({row["batch_size"] for row in report["results"]}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    least, most = (pick(row[name] for row in report["results"]) for pick, name in ((min, "min"), (max, "max")))
    axes.set_ylim(least / 2, most * 2)
    axes.set_xlabel("batch size (samples a step)")
    axes.set_ylabel("training throughput (samples/s)")
    work = report["workload"]
    axes.set_title(f"Training throughput of {work['network']} on {work['data']}", loc="left", weight="bold")
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)

    caption = f"Line: median of {report['method']['repeats']} epochs; band: least to most; both axes logarithmic."
    sentences = [*report["notes"], caption, *_facts(report)[1:]]
    if report["quick"]:
        sentences.insert(0, "A quick trial of the benchmark: not figures to quote.")
    lines = [line for sentence in sentences for line in textwrap.wrap(sentence, 110)]
    bottom = 0.13 + 0.026 * len(lines)  # a line of the caption and the axis with its label, of the height
    figure.subplots_adjust(left=0.16, right=0.97, top=0.93, bottom=bottom)
    figure.text(0.02, 0.015, "\n".join(lines), fontsize=8, color="#333333", va="bottom", linespacing=1.3)
    figure.savefig(path)


def _facts(report: dict[str, Any]) -> list[str]:
    """What the figures were measured with, in sentences."""
    work, versions = report["workload"], report["versions"]
    blas = "; ".join(
        f"{pool['library']} {pool['version']}, kernel {pool['kernel']}, {pool['threads']} threads"
        for pool in report["blas"]
    )
    return [
        f"{work['network']}, {work['activation']}, {work['dtype']}, {work['samples']:,} samples of {work['data']}",
        *(f"{device['name']}: {device['description']}" for device in report["devices"]),
        ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items()),
        f"BLAS: {blas or 'none that threadpoolctl knows'}",
        f"{report['hardware']['processors_usable']} processors usable; measured {report['date'][:10]}",
    ]


def _nvidia_smi() -> list[str] | None:
    """Name, driver, highest clock and power limit of each GPU, as the driver tells them."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=index,name,driver_version,clocks.max.sm,power.limit"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()
