"""What `check_gpu.sh` cannot ask in Bash; each question is a command, and an answer that is wrong ends it with 1.

    needs DEVICE            which modules are missing, and whether the device can be used
    steps FOLDER WAY        how the steps of a training were run, where they were to be run in this WAY
    weights FOLDER FOLDER   whether two trainings came to the same weights, bit for bit
    peers FOLDER            which libraries the comparison there could have measured, and did not

What could not be checked, though nothing is wrong, is printed as NOT CHECKED, and added to the file that
CHECK_GPU_NOTES names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Without any of these, files with tests marked gpu cannot be collected: modules, and how pip calls them.
NEEDED = {
    "cupy": "cupy-cuda13x",
    "numpy": "numpy",
    "pooch": "pooch",
    "rich": "rich",
    "safetensors": "safetensors",
    "threadpoolctl": "threadpoolctl",
    "tyro": "tyro",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
}
WAYS = {"graphs": "by CUDA graphs: ", "eager": "one by one: ", "persistent": "by one persistent kernel: "}
FOR_CPUS = {"scikit-learn", "numpy", "torch-compiled"}  # peers that no GPU is to be measured with


def main(words: Sequence[str]) -> None:
    """Answer the question."""
    questions: dict[str, Callable[..., None]] = {
        "needs": needs,
        "steps": steps,
        "weights": weights,
        "peers": peers,
    }
    questions[words[0]](*words[1:])


def needs(device: str) -> None:
    missing = [package for module, package in NEEDED.items() if not installed(module)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; pip install '.[cuda13,test]' brings them")
    if not installed("nvmath"):
        not_checked(
            "cuBLASLt and CUDA graphs: nvmath-python is missing (pip install '.[nvmath]'), so that products are "
            "CuPy's, which no graph can capture, and steps go one by one"
        )
    from gpumlp import DeviceError, get_backend

    try:
        backend = get_backend(device)
    except (DeviceError, ValueError) as error:
        sys.exit(f"{device} cannot be used: {error}")
    print(f"{backend.name}: {backend.device_name}")


def steps(folder: str, way: str) -> None:
    metrics = json.loads(file(folder, "metrics.json").read_text(encoding="utf-8"))
    how = metrics["steps"] or "no words on them, as on a CPU"
    print(f"samples per second: {metrics['samples_per_second']:,.0f}\nsteps: {how}")
    if how.startswith(WAYS[way]):
        return
    if way == "graphs" and how.startswith(WAYS["eager"]):
        reason = how.removeprefix(WAYS["eager"])
        if "not faster" in reason:
            not_checked(f"CUDA graphs in {Path(folder).name}: {reason}")
            return
        if not installed("nvmath") and "differ" not in reason:
            return  # said by `needs` already
    sys.exit(f"expected steps {WAYS[way]}..., got {how}")


def weights(first: str, second: str) -> None:
    from safetensors.numpy import load_file

    one, other = (load_file(file(folder, "checkpoint.safetensors")) for folder in (first, second))
    if one.keys() != other.keys():
        sys.exit(f"{first} has {', '.join(one)}, and {second} {', '.join(other)}")
    different = [name for name, array in one.items() if array.tobytes() != other[name].tobytes()]
    if different:
        sys.exit(f"{first} and {second} differ in {', '.join(different)}")
    print(f"the same: {', '.join(one)}")


def peers(folder: str) -> None:
    for path in sorted(Path(folder).glob("compare-*.json")):
        for entry in json.loads(path.read_text(encoding="utf-8"))["left_out"]:
            if entry["peer"] not in FOR_CPUS:
                not_checked(f"{entry['peer']} beside gpumlp: {entry['reason']}")


def installed(module: str) -> bool:
    """Is it there? Without an origin it is just some folder of that name."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def file(folder: str, name: str) -> Path:
    path = Path(folder, name)
    if not path.is_file():
        sys.exit(f"there is no {path}: the training failed")
    return path


def not_checked(what: str) -> None:
    line = f"NOT CHECKED: {what}"
    print(line)
    if "CHECK_GPU_NOTES" in os.environ:
        with open(os.environ["CHECK_GPU_NOTES"], "a", encoding="utf-8") as notes:
            print(line, file=notes)


if __name__ == "__main__":
    main(sys.argv[1:])
