"""Test and measure gpumlp on an NVIDIA card, and write one folder of results; `on_gpu.sh` starts it.

Each part runs in a process of its own with a time limit. After every part the folder is written again, so that an
interrupted run leaves what it has: `summary.md` to read, `results.json` with the machine and the outcome of each
part, a JSON file for each part that measures, and `log.txt` with what the parts printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

REPOSITORY = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 570  # no part starts or runs after this
TIMED_SAMPLES = 16_384  # of an epoch, for the times of the persistent kernel
TIMED_BATCHES = (16, 32, 64, 128, 256)
MANY = (1, 4, 14, 60, 100)  # networks at once
# Their sizes, batch size and multiprocessors of each (None: as many as it gets among others).
OF_MANY = (
    ((784, 128, 10), 128, None),
    ((784, 128, 10), 128, 16),
    ((64, 64, 10), 32, None),
    ((30, 100, 2), 200, None),
)
# One network on more multiprocessors than it needs: replicas divide its batches.
OF_ONE = (
    *(((784, 128, 10), batch, count) for batch, count in ((64, 32), (128, 32), (128, 64), (256, 64), (256, 128))),
    *(((784, 128, 10), batch, 128) for batch in (1024, 8192)),
    ((784, 512, 512, 10), 128, 128),
    ((30, 100, 2), 200, 14),
)
LOG_BYTES = 300_000  # of each part, its end
WAYS = ("persistent", "graphs", "eager")
EXPECTED_PEERS = ("torch-graph", "jax")  # other libraries that can train on a GPU, each in its fastest way
QUICK_RUN = ("--epochs", "12", "--schedule", "one_cycle", "--learning-rate", "0.3")  # to 98 % on MNIST
INSTALL = 'pip install ".[cuda13,nvmath,test]"'
NOT_POSSIBLE = "not possible"


class NotPossibleError(Exception):
    """A part needs something that this machine does not have; the message says what."""


class Job:
    """What a part is given: the device, a scratch folder, and a place for its result."""

    def __init__(self, device: str, work: Path, file: Path) -> None:
        self.device, self.work, self.file = device, work, file
        self.result: dict[str, Any] = {}
        self.note = ""

    def save(self, status: str = "failed", reason: str = "ended before it was finished") -> None:
        """Write the result so far; a part that is killed leaves the last one saved."""
        record = {"status": status, "reason": reason, "note": self.note, "result": self.result}
        self.file.write_text(json.dumps(record), encoding="utf-8")

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments in the checkout; its error output is both logged and returned."""
        print(f"$ python {' '.join(words)}", flush=True)
        done = subprocess.run(
            [sys.executable, *words],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        print(done.stderr, end="", file=sys.stderr)
        return done


# -- The parts -------------------------------------------------------------------------------------------


def machine(job: Job) -> None:
    """Hardware, versions and commit; not possible without a usable GPU."""
    try:
        from benchmarks import common
        from gpumlp import DeviceError, available_devices, get_backend, info
    except ModuleNotFoundError as error:
        raise NotPossibleError(f"{error.name} is not installed; {INSTALL} brings it") from error
    try:
        name = get_backend(job.device).name
    except (DeviceError, ValueError) as error:
        raise NotPossibleError(str(error)) from error
    (device,) = (device for device in available_devices() if device.name == name)
    job.result = common.circumstances([device], [], "scripts/on_gpu.sh")
    for library in ("nvmath-python", "torch", "jax", "pytest"):
        job.result["versions"][library] = info.version(library)
    shown = subprocess.run([sys.executable, "-m", "gpumlp.info"], cwd=REPOSITORY, capture_output=True, text=True)
    job.result["info"] = [line for line in shown.stdout.splitlines() if "data" not in line.lower()]
    job.note = device.description


def times(job: Job) -> None:
    """Microseconds of a step: the persistent kernel beside graphs, and many networks at once."""
    from benchmarks import common
    from gpumlp import DeviceError, available_devices, get_backend

    devices = [device for device in available_devices() if device.name == get_backend(job.device).name]
    job.result = {**common.circumstances(devices, [], "scripts/on_gpu.sh"), "steps": [], "many": []}
    data = common.generate(TIMED_SAMPLES)
    for sizes, batch_size in [*(((784, 128, 10), batch) for batch in TIMED_BATCHES), ((784, 512, 512, 10), 128)]:
        for way in WAYS[:2]:
            row = {"network": "-".join(map(str, sizes)), "batch_size": batch_size, "execution": way}
            job.result["steps"].append(row)
            try:
                one = common.trainer(sizes, data, get_backend(job.device, execution=way), batch_size)
                row.update(_epoch_times(one))
            except DeviceError as error:
                row["error"] = str(error)
            job.save()
    settings = [*((*each, 1) for each in OF_ONE), *((*each, count) for each in OF_MANY for count in MANY)]
    for sizes, batch_size, multiprocessors, networks in settings:
        row = {"network": "-".join(map(str, sizes)), "batch_size": batch_size, "networks": networks}
        job.result["many"].append(row)
        try:
            row.update(_many(job.device, sizes, batch_size, multiprocessors, networks))
        except DeviceError as error:
            row["error"] = str(error)
        job.save()
    timed = [row for row in job.result["many"] if "error" not in row and row["network"] == "784-128-10"]
    if not timed:
        raise RuntimeError("no setting could be timed")
    most = max(timed, key=lambda row: row["samples_per_second"])
    job.note = f"{most['networks']} networks: {most['samples_per_second']:,.0f} samples/s together"


def _epoch_times(trainer: Any) -> dict[str, Any]:
    """Microseconds of a step in the fastest of some epochs, and how the steps were run."""
    trainer.run(5)
    steps = len(trainer.batches.slices)
    return {
        "microseconds_per_step": 1e6 * min(trainer.history["seconds"][2:]) / steps,
        "ran": str(trainer.execution),
    }


def _many(
    device: str, sizes: tuple[int, ...], batch_size: int, multiprocessors: int | None, networks: int
) -> dict[str, Any]:
    """The same for one step of each of some networks, which share the samples."""
    import numpy as np

    from benchmarks.many import seconds_of
    from benchmarks.peers.many import TogetherOnGpu, Workload
    from gpumlp import SGD, Adam, Dataset

    rng, pixels, samples = np.random.default_rng(0), sizes[0] == 784, max(TIMED_SAMPLES, 32 * batch_size)
    images = rng.integers(0, 256, (samples, sizes[0]), dtype=np.uint8)
    data = Dataset(
        images if pixels else (images / 255).astype(np.float32),
        rng.integers(0, sizes[-1], samples),
        classes=sizes[-1],
    )
    work = Workload(sizes, batch_size, SGD(0.01, momentum=0.9) if pixels else Adam(), multiprocessors)
    together = TogetherOnGpu(work, data, networks, device)
    together.train(1)
    best, first = min(seconds_of(together, together.repeat_steps) for _ in range(3)), together.trainers[0]
    return {
        "networks_at_once": together.backend.networks_at_once(first._step),
        "microseconds_per_step": 1e6 * best / len(first.batches.slices),
        "samples_per_second": networks * samples / best,
        "multiprocessors": first.execution.multiprocessors,
        "ran": str(first.execution),
    }


def gpu_tests(job: Job, path: str = "tests") -> None:
    """All tests marked gpu; a test that would skip without a GPU fails."""
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing:
        raise NotPossibleError(f"{' and '.join(missing)} not installed; {INSTALL} brings it")
    file = job.work / "tests.xml"
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    # Each test is named when it starts: the last one, if the kernel hangs and the part is ended at its limit.
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:benchmark", f"--junitxml={file}", *workers]
    done = job.run("-m", "pytest", *options, path, GPUMLP_REQUIRE_GPU="1")
    if not file.exists():
        raise RuntimeError(f"pytest ended with exit code {done.returncode} and without a report")
    suite = next(ElementTree.parse(file).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wrong = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    job.result = {**counts, "seconds": float(suite.get("time", 0)), "failed": wrong}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    job.note = f"{passed} of {counts['tests']} passed, {counts['skipped']} skipped"
    if wrong or done.returncode:
        raise RuntimeError(f"{len(wrong)} of {counts['tests']} failed (pytest's exit code: {done.returncode})")


def training(job: Job) -> None:
    """`python -m gpumlp.train` from beginning to end, with each way of running its steps."""
    runs = {"auto, nothing compiled before": ("auto",), "auto": ("auto",), **{way: (way,) for way in WAYS}}
    runs[" ".join(QUICK_RUN)] = ("auto", *QUICK_RUN)
    rows = job.result["runs"] = []
    cache = str(job.work / "cupy")  # empty at first
    for index, (name, (way, *options)) in enumerate(runs.items()):
        folder = job.work / f"run{index}"
        words = ["--device", job.device, "--execution", way, "--out", str(folder), "--quiet", *options]
        start = time.perf_counter()
        done = job.run("-m", "gpumlp.train", *words, CUPY_CACHE_DIR=cache)
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {"name": name, "execution": way, "wall_seconds": seconds}
        rows.append(row)
        if done.returncode:
            row["error"] = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
            row["possible"] = done.returncode != 2  # 2: the device or this network does not allow it
        else:
            row.update(_figures_of_run(folder))
        job.save()
    trained = [row for row in rows if "error" not in row]
    if len(trained) >= 2 and trained[:2] == rows[:2]:
        job.result["two_runs_have_the_same_bits"] = _same_bits(job.work / "run0", job.work / "run1")
    if wrong := [f"{row['name']}: {row['error']}" for row in rows if row.get("possible")]:
        raise RuntimeError("; ".join(wrong))
    if not trained:
        raise RuntimeError(rows[0]["error"])
    best = max(trained, key=lambda row: row["samples_per_second"])
    job.note = f"{100 * trained[0]['test_accuracy']:.2f} % on {trained[0]['dataset']}; {best['name']}: "
    job.note += f"{best['samples_per_second']:,.0f} samples/s"
    if not job.result.get("two_runs_have_the_same_bits", True):
        raise RuntimeError("two runs with the same seed came to different weights")


def _figures_of_run(folder: Path) -> dict[str, Any]:
    """Accuracy, the first epoch's seconds and the throughput after it, from a run folder."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    return {
        "dataset": metrics["dataset"],
        "ran": metrics.get("execution"),
        "reason": metrics.get("execution_reason"),
        "epochs": len(epochs),
        "first_epoch_seconds": epochs[0]["seconds"],
        "training_seconds": sum(epoch["seconds"] for epoch in epochs),
        "samples_per_second": statistics.median(epoch["samples_per_second"] for epoch in epochs[1:] or epochs),
        "test_accuracy": metrics["test_accuracy"],
        "test_loss": metrics["test_loss"],
    }


def _same_bits(first: Path, second: Path) -> bool:
    from safetensors.numpy import load_file

    one, other = (load_file(folder / "checkpoint.safetensors") for folder in (first, second))
    return {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()
    }


def differences(job: Job) -> None:
    """How far devices differ after 1, 100 and 1,000 steps with the same seed, from the CPU in float64."""
    from gpumlp import DeviceError, get_backend, load_dataset

    train, test, notice = load_dataset("auto")
    rows = job.result["rows"] = []
    job.result.update(
        network="one hidden layer of 128, learning rate 0.01, momentum 0.9", data=train.name, notice=notice
    )
    on_device = [(job.device, way, "float32") for way in WAYS] if job.device != "cpu" else []
    reference: dict[int, Any] = {}
    impossible = []
    for device, way, dtype in [("cpu", "auto", "float64"), ("cpu", "auto", "float32"), *on_device]:
        try:
            states = _states(train, test, get_backend(device, execution=way), dtype)
            for steps, state in states:
                expected = reference.setdefault(steps, state)
                name = f"{device}, {dtype}" if device == "cpu" else f"{device}, {way}"
                rows.append({"name": name, "steps": steps, **_difference(state, expected)})
                job.save()
        except DeviceError as error:  # not possible in this way
            impossible.append(f"{way}: {error}")
    job.result["not_possible"] = impossible
    last = [row for row in rows if row["steps"] == 1000 and not row["name"].startswith("cpu")]
    if last:
        worst = max(last, key=lambda row: row["loss_difference"])
        job.note = f"loss after 1,000 steps within {worst['loss_difference']:.1e} of the CPU's in float64"
        job.note += f"; not possible: {'; '.join(impossible)}" if impossible else ""


def _states(train: Any, test: Any, backend: Any, dtype: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Loss, parameters and probabilities after 1, 100 and 1,000 steps."""
    from gpumlp import MLP, SGD, Dataset, Trainer

    batch = max(1, min(128, len(train) // 1000))  # one pass: no sample twice, which would make networks part
    weights = MLP([train.features, 128, train.classes], seed=0, device="cpu").state_dict()
    images = test.images[:10_000]
    some = Dataset(images, test.labels[:10_000], classes=test.classes, name=test.name)
    for steps in (1, 100, 1000):
        rows = slice(0, steps * batch)
        part = Dataset(train.images[rows], train.labels[rows], classes=train.classes, name=train.name)
        model = MLP([train.features, 128, train.classes], device=backend, dtype=dtype)
        model.load_state_dict({name: array.astype(dtype) for name, array in weights.items()})
        optimizer = SGD(0.01, momentum=0.9)  # at 0.1 one ReLU near 0 can send two float32 runs apart
        Trainer(model, part, optimizer=optimizer, batch_size=batch, seed=0, diagnostics=False).run(1)
        yield (
            steps,
            {
                "loss": float(model.evaluate(some).loss),
                "parameters": model.state_dict(),
                "probabilities": backend.to_numpy(model.predict_proba(images)),
            },
        )


def _difference(state: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    found, wanted = (
        np.concatenate([s["parameters"][name].ravel().astype(np.float64) for name in expected["parameters"]])
        for s in (state, expected)
    )
    p, q = state["probabilities"].astype(np.float64), expected["probabilities"]
    return {
        "loss": state["loss"],
        "loss_difference": abs(state["loss"] - expected["loss"]) / expected["loss"],
        "parameters_difference": float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
        "largest_parameter_difference": float(np.abs(found - wanted).max()),
        "largest_probability_difference": float(np.abs(p - q).max()),
        "predictions": len(p),
        "predictions_that_differ": int((p.argmax(axis=1) != q.argmax(axis=1)).sum()),
    }


def compare(job: Job) -> None:
    """`python -m benchmarks.compare`: microseconds a step beside other libraries."""
    words = ["--networks", "784-128-10", "--momenta", "0.9", "--seconds", "0.1"]
    words += ["--batch-sizes", "16", "32", "64", "128", "256", "1024", "8192"]
    words += ["--peers", "gpumlp", "gpumlp-graphs", *EXPECTED_PEERS]
    _benchmark(job, "compare", "--devices", job.device, *words)
    left_out = {entry["peer"]: entry["reason"] for entry in job.result["left_out"]}
    missing = [f"{name} ({left_out[name]})" for name in EXPECTED_PEERS if name in left_out]
    job.note = f"not measured: {'; '.join(missing)}" if missing else "all libraries measured"


def many(job: Job) -> None:
    """`python -m benchmarks.many`: many networks at once, beside one by one and JAX's vmap."""
    _benchmark(job, "many", "--devices", job.device, "--networks", "14", "64", "--seconds", "0.1")
    left_out = [f"{entry['peer']}: {entry['reason']}" for entry in job.result["left_out"]]
    job.note = f"not measured: {'; '.join(left_out)}" if left_out else "all peers measured"


def throughput(job: Job) -> None:
    """`python -m benchmarks.throughput`: where the GPU is faster than this machine's CPU."""
    devices = list(dict.fromkeys(["cpu", job.device]))
    _benchmark(job, "throughput", "--devices", *devices, "--batch-sizes", "32", "128", "1024", "8192")
    job.note = "; ".join(
        sentence for ways in job.result["crossover"].values() for sentence in ways["copy not counted"]
    )


def _benchmark(job: Job, name: str, *words: str) -> None:
    """Run one of the benchmarks, and take its report as the result."""
    folder = job.work / name
    done = job.run("-m", f"benchmarks.{name}", *words, "--out", str(folder))
    found = list(folder.glob("*.json"))
    if found:
        job.result = json.loads(found[0].read_text(encoding="utf-8"))
    if done.returncode or not found:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"exit code {done.returncode}{': ' * bool(last)}{last}")


def profile(job: Job) -> None:
    """Microseconds of a step with each way of running it, and of each kernel where PyTorch is there to ask."""
    from benchmarks.common import generate, trainer
    from gpumlp import DeviceError, get_backend

    job.result["rows"] = rows = []
    by_kernel = find_spec("torch") is not None and job.device != "cpu"
    data = generate(5 * 8192)
    settings = [
        *(((784, 128, 10), batch_size) for batch_size in (16, 128, 1024, 8192)),
        *(((784, 512, 512, 10), batch_size) for batch_size in (128, 1024, 8192)),
    ]
    for sizes, batch_size in settings:
        for way in WAYS[:2] if job.device != "cpu" else ("eager",):
            row: dict[str, Any] = {
                "network": "-".join(map(str, sizes)),
                "batch_size": batch_size,
                "execution": way,
            }
            rows.append(row)
            try:
                one = trainer(sizes, data, get_backend(job.device, execution=way), batch_size)
                row.update(_epoch_times(one))
            except DeviceError as error:
                row["error"] = str(error)
                continue
            if by_kernel:
                row["kernels"] = _kernels(one, len(one.batches.slices))
            job.save()
    job.note = "" if by_kernel else "by kernel: not possible without PyTorch for CUDA"


def _kernels(trainer: Any, steps: int) -> list[dict[str, Any]]:
    """One epoch under PyTorch's profiler, which sees every kernel of the process, in graphs too."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        trainer.run(trainer.epoch + 1)
        trainer.model.backend.synchronize()
    kernels = []
    for event in profiler.key_averages():
        microseconds = getattr(event, "self_device_time_total", None) or getattr(event, "self_cuda_time_total", 0)
        if microseconds and event.device_type == DeviceType.CUDA:
            kernels.append(
                {
                    "name": event.key[:200],
                    "per_step": event.count / steps,
                    "microseconds_per_step": microseconds / steps,
                }
            )
    return sorted(kernels, key=lambda kernel: -kernel["microseconds_per_step"])


def sanitizer(job: Job) -> None:
    """Tools of `compute-sanitizer` on an epoch of a small training run, by each way of running its steps."""
    wanted = [*(("memcheck", way) for way in WAYS), ("racecheck", "persistent")]
    tool = shutil.which(
        "compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    )
    if tool is None:
        raise NotPossibleError("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
    processes = []
    for check, way in wanted:
        words = ["--dataset", "digits", "--epochs", "1", "--batch-size", "64", "--quiet", "--execution", way]
        words += ["--multiprocessors", "6"] if way == "persistent" else []  # two replicas
        command = [tool, "--tool", check, sys.executable, "-m", "gpumlp.train", "--device", job.device, *words]
        command += ["--out", str(job.work / f"{check}-{way}")]
        with (job.work / f"{check}-{way}.log").open("w", encoding="utf-8") as log:
            processes.append(subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log))
    rows = job.result["rows"] = []
    for (check, way), process in zip(wanted, processes, strict=True):
        code = process.wait()
        text = (job.work / f"{check}-{way}.log").read_text(encoding="utf-8", errors="replace")
        print(f"\n-- {check}, {way}\n{text}")
        summary = re.search(r"(ERROR|RACECHECK) SUMMARY: (\d+) .*", text)
        row = {"tool": check, "execution": way, "exit_code": code, "summary": summary and summary[0]}
        row["clean"] = summary is not None and summary[2] == "0" and code in (0, 2)
        rows.append(row)
        job.save()
    possible = [row for row in rows if row["exit_code"] != 2]
    job.note = f"{sum(row['clean'] for row in possible)} of {len(possible)} checks are clean"
    if dirty := [f"{row['tool']} of {row['execution']}: {row['summary']}" for row in rows if not row["clean"]]:
        raise RuntimeError("; ".join(dirty))


class Part(NamedTuple):
    """A part: its function, its time limit, and the file that its result goes to (or results.json)."""

    work: Callable[[Job], None]
    seconds: float
    file: str | None = None


# In this order, the most important first. The limits are below ten minutes together.
PARTS = {
    "machine": Part(machine, 15),
    "tests": Part(gpu_tests, 90),
    "sanitizer": Part(sanitizer, 25),
    "times": Part(times, 90, "times.json"),
    "training": Part(training, 45, "training.json"),
    "compare": Part(compare, 115, "compare.json"),
    "differences": Part(differences, 15),
    "many": Part(many, 90, "many.json"),
    "profile": Part(profile, 40),
    "throughput": Part(throughput, 45, "throughput.json"),
}


# -- Running them ----------------------------------------------------------------------------------------


def user_path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 0, 1 where a part failed, 2 where there is no usable GPU."""
    parser = argparse.ArgumentParser(prog="on_gpu.sh", description=__doc__)
    sys.path.insert(0, str(REPOSITORY))
    parser.add_argument("out", nargs="?", type=user_path, help="folder for the results, new or empty")
    parser.add_argument("--parts", default=os.environ.get("PARTS", ""), help=f"some of: {' '.join(PARTS)}")
    parser.add_argument(
        "--device", default=os.environ.get("DEVICE", "cuda"), help="cuda, cuda:1, ...; cpu: a trial"
    )
    parser.add_argument("--child", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return child(options.child[0], options.device, Path(options.child[1]))
    names = options.parts.replace(",", " ").split() or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"parts: expected some of {' '.join(PARTS)}, got {' '.join(unknown)}")
    if options.out is not None and options.out.exists() and any(options.out.iterdir()):
        parser.error(f"the folder is expected to be empty, but {options.out} is not")
    with tempfile.TemporaryDirectory() as scratch:
        return run_parts(
            ["machine", *(name for name in PARTS if name in names and name != "machine")], options, Path(scratch)
        )


def run_parts(names: Sequence[str], options: argparse.Namespace, work: Path) -> int:
    """Run the parts one after the other, and write the folder after each."""
    start = time.monotonic()
    folder: Path | None = options.out
    outcomes: dict[str, dict[str, Any]] = {}
    for name in names:
        left = TOTAL_SECONDS - (time.monotonic() - start)
        print(f"{name} ...", end=" ", flush=True)
        outcomes[name] = outcome = run_part(name, options.device, work, min(PARTS[name].seconds, left))
        print(
            f"{outcome['status']} in {outcome['seconds']:.0f} s {outcome['reason'] or outcome['note']}", flush=True
        )
        if name == "machine":
            if outcome["status"] != "passed":
                print(f"on_gpu: {options.device} cannot be used: {outcome['reason']}", file=sys.stderr)
                return 2
            folder = folder or default_folder(outcome["note"])
        assert folder is not None
        write(folder, outcomes)
    print(f"wrote {folder}; please read {folder}/summary.md")
    return 1 if any(outcome["status"] == "failed" for outcome in outcomes.values()) else 0


def run_part(name: str, device: str, work: Path, seconds: float) -> dict[str, Any]:
    """Run one part in a process of its own, and end it and what it has started at its time limit."""
    if seconds <= 5:
        return {
            "status": NOT_POSSIBLE,
            "reason": "no time left",
            "note": "",
            "seconds": 0.0,
            "log": "",
            "result": {},
        }
    log, start = work / f"{name}.log", time.monotonic()
    command = [sys.executable, __file__, "--device", device, "--child", name, str(work)]
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    late = False
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"},
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what a part has left running
            process.wait()
    try:
        outcome: dict[str, Any] = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        outcome = {
            "status": "failed",
            "reason": f"ended with exit code {process.returncode}",
            "note": "",
            "result": {},
        }
    if late:
        outcome.update(status="failed", reason=f"not finished after {seconds:.0f} s")
    text = log.read_text(encoding="utf-8", errors="replace").replace(str(Path.home()), "~")
    return {**outcome, "seconds": time.monotonic() - start, "log": text[-LOG_BYTES:]}


def child(name: str, device: str, work: Path) -> int:
    """The process of a part."""
    scratch = work / name
    scratch.mkdir()
    job = Job(device, scratch, work / f"{name}.json")
    job.save()
    try:
        PARTS[name].work(job)
    except NotPossibleError as error:
        job.save(NOT_POSSIBLE, str(error))
    except Exception as error:
        traceback.print_exc()
        job.save("failed", f"{type(error).__name__}: {error}" if type(error) is not RuntimeError else str(error))
    else:
        job.save("passed", "")
    return 0


# -- What they found -------------------------------------------------------------------------------------


def default_folder(card: str) -> Path:
    """gpu-results/nvidia-h100-80gb-hbm3-2026-11-26-1015."""
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return Path("gpu-results", f"{name}-{datetime.now():%Y-%m-%d-%H%M}")


def write(folder: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    """Write all files of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, outcome in outcomes.items():
        file = PARTS[name].file
        parts[name] = {key: outcome[key] for key in ("status", "reason", "note", "seconds")}
        if file is None:
            parts[name]["result"] = outcome["result"]
        elif outcome["result"]:
            parts[name]["file"] = file
            (folder / file).write_text(json.dumps(outcome["result"], indent=1) + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps({"parts": parts}, indent=1) + "\n", encoding="utf-8")
    logs = "".join(f"=== {name}\n{outcome['log']}\n" for name, outcome in outcomes.items())
    (folder / "log.txt").write_text(logs, encoding="utf-8")
    (folder / "summary.md").write_text("\n".join(summary(outcomes)) + "\n", encoding="utf-8")


def summary(outcomes: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The folder in Markdown, what matters most first."""
    facts = outcomes["machine"]["result"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    failed = [name for name, outcome in outcomes.items() if outcome["status"] == "failed"]
    yield f"# gpumlp on {outcomes['machine']['note']}\n"
    yield f"{facts['date'][:10]}, commit {facts['commit'] or 'unknown'}. "
    yield f"**{'Failed: ' + ', '.join(failed) if failed else 'Nothing failed.'}**\n"
    yield from table(
        ["part", "result", "seconds", ""],
        (
            [name, outcome["status"], f"{outcome['seconds']:.0f}", outcome["reason"] or outcome["note"]]
            for name, outcome in outcomes.items()
        ),
    )
    for name in failed:
        if lines := outcomes[name]["log"].splitlines()[-20:]:
            yield from [f"## The end of what {name} printed\n\n```", *lines, "```\n"]
    for name, section in _SECTIONS.items():
        if outcomes.get(name, {}).get("result"):
            try:
                yield from section(outcomes[name]["result"])
            except (KeyError, IndexError, TypeError) as error:  # a part that ended early
                yield f"({name}: incomplete, {type(error).__name__}: {error})\n"
    smi = facts["hardware"]["nvidia_smi"] or ["no nvidia-smi"]
    yield f"## Machine\n\n{versions}\n\n{'; '.join(smi)}\n\n```"
    yield from facts["info"]
    yield "```"


def _training(result: dict[str, Any]) -> Iterator[str]:
    yield "## `python -m gpumlp.train`, from beginning to end\n"
    names = ["--execution", "wall, s", "first epoch, s", "all epochs, s", "samples/s after the first"]
    names += ["test accuracy", "ran as"]
    yield from table(
        names,
        (
            [row["name"], f"{row['wall_seconds']:.1f}", "-", "-", "-", "-", row["error"]]
            if "error" in row
            else [
                row["name"],
                f"{row['wall_seconds']:.1f}",
                f"{row['first_epoch_seconds']:.2f}",
                f"{row['training_seconds']:.3f}",
                f"{row['samples_per_second']:,.0f}",
                f"{100 * row['test_accuracy']:.2f} % ({row['dataset']})",
                f"{row['ran']}: {row['reason']}",
            ]
            for row in result["runs"]
        ),
    )
    if "two_runs_have_the_same_bits" in result:
        bits = "the same" if result["two_runs_have_the_same_bits"] else "OTHER"
        yield f"Two runs with the same seed: {bits} bits.\n"


def _compare(result: dict[str, Any]) -> Iterator[str]:
    from benchmarks.markdown import comparison

    yield "## Other libraries\n"
    yield from comparison(result)
    yield "The floor is what arithmetic or memory traffic takes at this card's measured rates.\n"
    yield from (f"- left out: {entry['peer']}: {entry['reason']}" for entry in result["left_out"])
    yield ""


def _differences(result: dict[str, Any]) -> Iterator[str]:
    yield f"## How far devices differ from the CPU in float64 ({result['network']}, {result['data']})\n"
    names = [
        "device",
        "steps",
        "loss, relative",
        "parameters, relative norm",
        "largest probability",
        "predictions",
    ]
    yield from table(
        names,
        (
            [
                row["name"],
                f"{row['steps']:,}",
                *(
                    f"{row[key]:.1e}"
                    for key in ("loss_difference", "parameters_difference", "largest_probability_difference")
                ),
                f"{row['predictions_that_differ']} of {row['predictions']:,}",
            ]
            for row in result["rows"]
            if row["name"] != "cpu, float64"
        ),
    )


def _profile(result: dict[str, Any]) -> Iterator[str]:
    yield "## Where a step spends its time\n"
    for row in result["rows"]:
        setting = f"**{row['network']}, batch {row['batch_size']:,}, {row['execution']}**"
        if "error" in row:
            yield f"{setting}: {row['error']}\n"
            continue
        kernels = row.get("kernels", [])
        total = sum(kernel["microseconds_per_step"] for kernel in kernels)
        in_kernels = f", {total:.1f} us of it in kernels" if kernels else ""
        yield f"{setting}: {row['microseconds_per_step']:.1f} us a step{in_kernels}\n"
        for kernel in kernels[:8]:
            time_and_count = f"{kernel['microseconds_per_step']:.2f} us ({kernel['per_step']:.2g} a step)"
            yield f"- {time_and_count} `{kernel['name'][:100]}`"
        yield ""


def _throughput(result: dict[str, Any]) -> Iterator[str]:
    from benchmarks.markdown import throughput

    yield "## Where the GPU pays, samples/s\n"
    yield from throughput(result)
    yield ""
    for network, ways in result["crossover"].items():
        yield from (f"- {network}, {way}: {words}" for way, sentences in ways.items() for words in sentences)
    yield ""


def _tests(result: dict[str, Any]) -> Iterator[str]:
    yield "## Tests\n"
    counts = ", ".join(f"{result[name]} {name}" for name in ("tests", "failures", "errors", "skipped"))
    yield f"{counts}; {result['seconds']:.0f} s\n"
    yield from (f"- {name}" for name in result["failed"][:30])
    yield ""


def _sanitizer(result: dict[str, Any]) -> Iterator[str]:
    yield "## compute-sanitizer\n"
    yield from (f"- {row['tool']}, {row['execution']}: {row['summary'] or 'no summary'}" for row in result["rows"])
    yield ""


def _times(result: dict[str, Any]) -> Iterator[str]:
    yield "## The persistent kernel, microseconds a step\n"
    by_setting: dict[tuple[str, int], dict[str, str]] = {}
    for row in result["steps"]:
        time = f"{row['microseconds_per_step']:.2f}" if "error" not in row else "-"
        by_setting.setdefault((row["network"], row["batch_size"]), {})[row["execution"]] = time
    ways = WAYS[:2]
    rows = (
        [network, str(batch), *(times.get(way, "-") for way in ways)]
        for (network, batch), times in by_setting.items()
    )
    yield from table(["network", "batch", *ways], rows)
    yield "On more multiprocessors, and many networks at once: a step of all of them.\n"
    yield from table(
        ["network", "batch", "networks", "in a launch", "multiprocessors", "us a step", "samples/s together"],
        (
            [row["network"], str(row["batch_size"]), str(row["networks"]), "-", "-", "-", row["error"]]
            if "error" in row
            else [
                row["network"],
                str(row["batch_size"]),
                str(row["networks"]),
                str(row["networks_at_once"]),
                str(row["multiprocessors"] or "-"),
                f"{row['microseconds_per_step']:.2f}",
                f"{row['samples_per_second']:,.0f}",
            ]
            for row in result["many"]
        ),
    )
    yield from (
        f"- {row['network']}, batch {row['batch_size']}, {row['execution']}: {row['error']}"
        for row in result["steps"]
        if "error" in row
    )
    yield ""


_SECTIONS = {
    "times": _times,
    "training": _training,
    "compare": _compare,
    "differences": _differences,
    "profile": _profile,
    "throughput": _throughput,
    "tests": _tests,
    "sanitizer": _sanitizer,
}


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    yield ""


if __name__ == "__main__":
    sys.exit(main())
