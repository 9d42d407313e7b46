"""What the benchmarks share: the circumstances of a measurement, and its tables and JSON file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import threadpoolctl
from rich import box
from rich.console import Console
from rich.table import Table

import gpumlp
from gpumlp.backends import Device, blas_kernel
from gpumlp.info import usable_processors, version

TRIAL_FOLDER = "runs/benchmark-trial"
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


def circumstances(devices: Sequence[Device], arguments: Sequence[str], program: str) -> dict[str, Any]:
    """Date, command line, commit, hardware, versions and BLAS, as JSON can hold them."""
    gpus = any(device.name != "cpu" for device in devices)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"{program} {shlex.join(arguments)}".strip(),
        "commit": commit(),
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


def commit() -> str | None:
    """The short hash of the checkout that this runs from, with a + if its files have changed; None outside of one.

    Results do not count as changes: a run on several devices has written some before it comes to its end.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # or a repository that gpumlp was unpacked into would answer
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def print_throughput(report: dict[str, Any], console: Console | None = None) -> None:
    """Circumstances, samples per second and crossovers, on standard output."""
    console = console or Console(highlight=False)
    _print_lines(report, console)
    copied = list(next((row["with_copy"] for row in report["results"] if "with_copy" in row), {}))
    counted = [f"copy, {epochs} epoch{'s' if epochs != '1' else ''}" for epochs in copied]
    console.width = max(console.width, 110 if copied else 80)  # figures must not be cut off
    for network, work in report["workload"]["networks"].items():
        table = Table(title=f"\n{network}", title_justify="left", title_style="bold", box=box.SIMPLE)
        table.add_column("device")
        for name in ("batch", "timed", "samples/s", "min", "max", "us/step", "GFLOP/s", *counted):
            table.add_column(name, justify="right")
        before = None
        for row in (row for row in report["results"] if row["network"] == network):
            if before not in (None, row["device"]):
                table.add_section()
            before, median = row["device"], row["median"]
            table.add_row(
                row["device"],
                *(f"{row[name]:,}" for name in ("batch_size", "samples")),
                *(f"{row[name]:,.0f}" for name in ("median", "min", "max")),
                f"{1e6 * row['samples'] / median / row['steps']:,.0f}",
                f"{1e-9 * work['flops_per_sample'] * median:,.1f}",
                *(f"{row['with_copy'][epochs]:,.0f}" if "with_copy" in row else "no copy" for epochs in copied),
            )
        console.print(table)
    console.print(f"Median, least and most of {report['method']['repeats']} epochs after those of the warm-up.")
    for line in crossover_lines(report):
        console.print(line, markup=False, soft_wrap=True)


def crossover_lines(report: dict[str, Any]) -> list[str]:
    """Where a GPU pays, a line for each network and way to count the copy."""
    lines = [
        f"Data set to {copy['device']}: {copy['bytes'] / 1e6:,.0f} MB in {1e3 * copy['median']:,.1f} ms "
        f"({1e3 * copy['min']:,.1f} to {1e3 * copy['max']:,.1f})"
        for copy in report["copies"]
    ]
    for network, ways in report["crossover"].items():
        for way, sentences in ways.items():
            name = f"{network} ({way})" if len(ways) > 1 else network
            lines.extend(f"{name}: {sentence}" for sentence in sentences)
    return lines


def print_growth(report: dict[str, Any], console: Console | None = None) -> None:
    """Circumstances, seconds per epoch and exponents, on standard output."""
    console = console or Console(highlight=False)
    _print_lines(report, console)
    table = Table(
        box=box.SIMPLE,
        caption=f"Median, least and most of {report['method']['repeats']} epochs after those of the warm-up; "
        "scaled up where fewer samples were timed than an epoch has.",
    )
    for name in ("device", "network"):
        table.add_column(name)
    for name in ("samples", "timed", "s/epoch", "min", "max"):
        table.add_column(name, justify="right")
    for growth in report["growth"]:
        for point in growth["points"]:
            table.add_row(
                growth["device"],
                point["network"],
                *(f"{point[name]:,}" for name in ("samples", "samples_timed")),
                *(f"{point[name]:,.3f}" for name in ("median", "min", "max")),
            )
        table.add_section()
    console.print(table)
    for growth in report["growth"]:
        console.print(f"{growth['device']}: {growth['words']}", markup=False, soft_wrap=True)


def output_folder(out: str, *, trial: bool) -> Path:
    """The folder for the results, made before anything is measured; a trial's is another."""
    folder = Path(TRIAL_FOLDER if trial else out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(report: dict[str, Any], stem: Path, plot: Callable[[dict[str, Any], Path], None]) -> list[Path]:
    """Write ``stem.json`` and ``stem.png``; without matplotlib only the first, and say so.

    Args:
        report: what was measured.
        stem: path of both files without the ending.
        plot: draws the report into a file; raises ModuleNotFoundError without matplotlib.
    """
    written = [write_json(report, stem)]
    try:
        plot(report, Path(f"{stem}.png"))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("no figure: matplotlib is not installed; install it with pip install '.[benchmark]'")
    else:
        written.append(Path(f"{stem}.png"))
    return written


def write_json(report: dict[str, Any], stem: Path) -> Path:
    """Write ``stem.json``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = Path(f"{stem}.json")
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def facts(report: dict[str, Any]) -> list[str]:
    """What the figures were measured with, in sentences."""
    blas = "; ".join(
        f"{pool['library']} {pool['version']}, kernel {pool['kernel']}, {pool['threads']} threads"
        for pool in report["blas"]
    )
    return [
        *(f"{device['name']}: {device['description']}" for device in report["devices"]),
        ", ".join(f"{name} {version or 'not installed'}" for name, version in report["versions"].items()),
        f"BLAS: {blas or 'none that threadpoolctl knows'}",
        f"{report['hardware']['processors_usable']} processors usable; measured {report['date'][:10]}",
    ]


def _print_lines(report: dict[str, Any], console: Console) -> None:
    work = report["workload"]
    lines = [f"{work['activation']}, {work['dtype']}, {work['samples']:,} samples of {work['data']}"]
    for line in [*lines, *facts(report), *report["notes"]]:
        console.print(line, markup=False, soft_wrap=True)


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
