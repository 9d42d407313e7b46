"""gpumlp's MLPClassifier beside scikit-learn's on the CPU: ``python -m benchmarks.estimators``.

Both with scikit-learn's default parameters, on the same part of each data set and with the same
``random_state``, which gives both the same initial weights and batches. What is timed is `fit`, from arrays as
scikit-learn's users have them: float64, and float32 as well. Each library has a process of its own, and they
take turns, fit by fit, while the others wait. scikit-learn's process does not import gpumlp; where gpumlp
chooses another kernel of NumPy's BLAS than scikit-learn gets by itself (on some AMD processors with AVX-512),
there is one more process, with scikit-learn on gpumlp's kernel.

Writes ``estimators-cpu.json`` with every single fit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpumlp import DataError, available_devices, command, load_mnist
from gpumlp.backends import blas_kernel
from gpumlp.extras import require
from gpumlp.info import version
from gpumlp.training.config import ConfigError

from . import common, markdown
from .timing import REST

PROGRAM = "estimators"
DATASETS = ("digits", "breast cancer", "wine", "mnist")
DTYPES = ("float64", "float32")
MNIST_SAMPLES = 10_000
TEST_PART = 0.25
EACH = ("seconds", "predict_seconds", "accuracy", "epochs", "loss")  # of every fit
OURS, THEIRS, SAME_KERNEL = "gpumlp", "scikit-learn", "scikit-learn, same kernel"
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """Time fit of gpumlp's and scikit-learn's MLPClassifier on the CPU, in turns."""

    datasets: tuple[str, ...] = DATASETS
    """digits, "breast cancer", wine, mnist (10,000 of its training samples; the test set of 10,000)."""
    dtypes: tuple[str, ...] = DTYPES
    """Of the features: float64, float32."""
    seeds: int = 5
    """Fits of each, each with another random_state and another part held out as test set."""
    max_iter: int = 200
    """Epochs at most; fewer where the loss improves no more (scikit-learn's default)."""
    data_dir: str | None = None
    """Folder with MNIST's four files; otherwise $GPUMLP_DATA_DIR, the cache, a download."""
    out: str = "benchmarks/results"
    """Folder for the results."""
    quick: bool = False
    """Only show that it works: wine, 2 seeds, 3 epochs. No figures to quote."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = command.parse(Options, PROGRAM, words)
        check(options)
        common.check_clock()
        require("benchmarks of estimators", "sklearn", "sklearn")
        folder = common.output_folder(options)
        datasets, seeds, max_iter = options.datasets, options.seeds, options.max_iter
        if options.quick:
            datasets, seeds, max_iter = ("wine",), 2, 3
        notes: list[str] = []
        results = []
        with ExitStack() as stack, common.progress_bar() as progress:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            workers = start(stack)
            for name in datasets:
                for dtype in options.dtypes:
                    parts = split(name, seeds, scratch, options.data_dir, notes)
                    tracked = progress.track(parts, total=seeds, description=f"{name}, {dtype}")
                    results.extend(measure(name, dtype, tracked, workers, max_iter))
        cpu = [device for device in available_devices() if device.name == "cpu"]
        report = {
            "benchmark": "estimators",
            **common.circumstances(cpu, words, f"python -m benchmarks.{PROGRAM}"),
            "quick": options.quick,
            "notes": list(dict.fromkeys(notes)),
            "parameters": f"scikit-learn's defaults (one hidden layer of 100, adam), max_iter={max_iter}",
            "method": "fit, in turns, each library in a process of its own",
            "seeds": seeds,
            "results": results,
        }
        report["versions"]["scikit-learn"] = version("scikit-learn")
        markdown.show(report)
        path = common.write_json(report, folder / f"{PROGRAM}-cpu")
        print(f"wrote {path}")
        return command.OK

    return command.run(PROGRAM, work)


def check(options: Options) -> None:
    """Raise a ConfigError that names every wrong value."""
    problems = []
    for name, allowed in (("datasets", DATASETS), ("dtypes", DTYPES)):
        wrong = [value for value in getattr(options, name) if value not in allowed]
        problems.extend(f"{name}: expected some of {', '.join(allowed)}, got {value!r}" for value in wrong)
    for name in ("seeds", "max_iter"):
        if getattr(options, name) < 1:
            problems.append(f"{name}: expected 1 or more, got {getattr(options, name)}")
    if problems:
        raise ConfigError("\n".join(problems))


def start(stack: ExitStack) -> dict[str, Worker]:
    """The processes; scikit-learn has a second one where gpumlp has another kernel of the BLAS."""
    workers = {name: stack.enter_context(Worker(name)) for name in (OURS, THEIRS)}
    mine, theirs = (worker.ask({})["blas"] for worker in workers.values())
    if mine != theirs:
        workers[SAME_KERNEL] = stack.enter_context(Worker(SAME_KERNEL))
    return workers


class Worker:
    """A process with one library."""

    def __init__(self, name: str) -> None:
        self.name = name
        environment = dict(os.environ)
        chosen = blas_kernel.CHOICE.kernel
        if name == THEIRS and chosen is not None:
            del environment[blas_kernel.VARIABLE]  # set by this process's gpumlp, not by the user
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
        library = OURS if name == OURS else THEIRS
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.estimator_worker", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and wait for the answer.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} has ended; its message stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def split(
    name: str, seeds: int, scratch: Path, data_dir: str | None, notes: list[str]
) -> Iterator[tuple[int, Path, int]]:
    """For each seed a file with samples to train and to test on, and how many there are to train on."""
    import numpy as np

    if name == "mnist":
        try:
            train, test = load_mnist(data_dir)
        except DataError as error:
            notes.append(f"MNIST was left out: {error}")
            return
        file = scratch / "mnist.npz"
        if not file.exists():
            flat = [part.images.reshape(len(part), -1) / 255 for part in (train, test)]
            rows = np.random.default_rng(0).permutation(len(train))[:MNIST_SAMPLES]
            np.savez(file, X=flat[0][rows], y=train.labels[rows], X_test=flat[1], y_test=test.labels)
        yield from ((seed, file, MNIST_SAMPLES) for seed in range(seeds))
        return
    from sklearn.datasets import load_breast_cancer, load_digits, load_wine
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    load = {"digits": load_digits, "breast cancer": load_breast_cancer, "wine": load_wine}[name]
    X, y = load(return_X_y=True)
    for seed in range(seeds):
        file = scratch / f"{name}-{seed}.npz"
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=TEST_PART, stratify=y, random_state=seed
        )
        scaler = StandardScaler().fit(X_train)
        np.savez(file, X=scaler.transform(X_train), y=y_train, X_test=scaler.transform(X_test), y_test=y_test)
        yield seed, file, len(X_train)


def measure(
    name: str, dtype: str, parts: Iterable[tuple[int, Path, int]], workers: dict[str, Worker], max_iter: int
) -> list[dict[str, Any]]:
    """A row for each library; each fits once before its first fit counts, and another begins each round."""
    found: dict[str, list[dict[str, Any]]] = {library: [] for library in workers}
    sizes, names = [], list(workers)
    for seed, file, size in parts:
        request = {"file": str(file), "dtype": dtype, "seed": seed, "rest": REST}
        if not sizes:
            for library in names:
                workers[library].ask({**request, "parameters": {"max_iter": min(3, max_iter)}})
        sizes.append(size)
        first = seed % len(names)
        for library in names[first:] + names[:first]:
            found[library].append(workers[library].ask({**request, "parameters": {"max_iter": max_iter}}))
    if not sizes:
        return []
    ours = [fit["seconds"] for fit in found[OURS]]
    rows = []
    for library, fits in found.items():
        every = {key: [fit[key] for fit in fits] for key in EACH}
        ratios = [theirs / mine for theirs, mine in zip(every["seconds"], ours, strict=True)]
        rows.append(
            {
                "data": name,
                "samples": sizes[0],
                "dtype": dtype,
                "library": library,
                **every,
                **common.summary(every["seconds"]),
                "gpumlp_is": common.summary(ratios),
                "blas": fits[0]["blas"],
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
