"""The commands with ``--device cuda`` on the CPU: kernels compiled for it, fakes of CuPy and cuBLASLt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import Dataset
from gpumlp.backends import StepRun
from gpumlp.backends.cuda.persistent import PersistentRunner
from gpumlp.data.rows import FileRows
from tests.command_helpers import assert_same_run, run
from tests.host_cuda import HostCupy, host_products, load_cupy_backend
from tests.test_stream import samples, saved, table


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> HostCupy:
    """Simulate a machine with one GPU."""
    fake = HostCupy()
    module = load_cupy_backend(fake)

    monkeypatch.setattr(module, "_find_products", lambda tf32: host_products(fake, tf32))
    monkeypatch.setattr("gpumlp.backends._cuda_module", lambda: module)
    return fake


@pytest.fixture
def words(blobs: Dataset, tmp_path: Path) -> tuple[str, ...]:
    """The options of a small run."""
    images, labels = np.asarray(blobs.images), np.asarray(blobs.labels)
    path = tmp_path / "blobs.npz"
    np.savez(path, x_train=images[:250], y_train=labels[:250], x_test=images[250:], y_test=labels[250:])
    return ("--device", "cuda", "--dataset", str(path), "--batch-size", "8", "--optimizer", "adam")


def test_graphs_and_eager_execution_give_the_same_run(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for way, shown in (("graphs", "execution: graphs: "), ("eager", "execution: eager: ")):
        cupy.launches.clear()
        assert run("train", *words, "--epochs", 4, "--execution", way, "--out", tmp_path / way) == 0
        assert ("graph" in cupy.launches) == (way == "graphs")
        assert shown in capsys.readouterr().out
    assert_same_run(tmp_path / "graphs", tmp_path / "eager")


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_run_compiles_no_reductions(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, activation: str
) -> None:
    """CuPy takes seconds to compile each reduction."""
    options = ("--activation", activation, "--validation", 50, "--l1", 1e-5)
    assert run("train", *words, *options, "--epochs", 3, "--out", tmp_path / "run") == 0
    assert cupy.compiled_reductions == []


def test_a_run_can_be_resumed_with_or_without_graphs(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", *words, "--epochs", 6, "--out", whole) == 0
    assert run("train", *words, "--epochs", 3, "--out", parts) == 0
    assert run("train", "--resume", parts, "--epochs", 6, "--execution", "eager") == 0
    assert "graph" in cupy.launches
    assert_same_run(whole, parts)


@pytest.mark.parametrize("options", [(), ("--execution", "persistent", "--multiprocessors", 2)])
def test_a_run_by_the_persistent_kernel_is_resumed_by_it_on_as_many_multiprocessors(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, options: tuple[object, ...], capsys
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cupy.attributes["CooperativeLaunch"] = 1
    words = (*words, "--hidden", "32", "--dropout", "0.2", "--batch-size", "50")
    assert run("train", *words, *options, "--epochs", 4, "--out", whole) == 0
    assert f"execution: persistent: {2 if options else 1} block" in capsys.readouterr().out
    assert run("train", *words, *options, "--epochs", 2, "--out", parts) == 0
    assert run("train", "--resume", parts, "--epochs", 4) == 0
    assert_same_run(whole, parts)
    assert cupy.compiled_reductions == []


@pytest.fixture
def streamed(tmp_path: Path) -> tuple[object, ...]:
    """The options of a small run on files."""
    images, labels = samples()
    files = saved(tmp_path, images[:303], labels[:303])
    return (
        "--dataset",
        *files,
        "--device",
        "cuda",
        "--hidden",
        16,
        "--batch-size",
        8,
        "--block",
        13,
        "--window",
        3,
    )


@pytest.mark.parametrize("persistent", [False, True])
def test_a_streamed_run_is_that_of_samples_in_memory(
    cupy: HostCupy,
    streamed: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    persistent: bool,
) -> None:
    cupy.attributes["CooperativeLaunch"] = int(persistent)
    whole, parts, memory = tmp_path / "whole", tmp_path / "parts", tmp_path / "memory"
    assert run("train", *streamed, "--stream", "--epochs", 3, "--out", whole) == 0
    shown = capsys.readouterr().out
    assert f"execution: {'persistent' if persistent else 'graphs'}: " in shown
    assert (
        "streaming: in memory is at most one window of 3 blocks of 13 samples, 0 MB, and 0 MB of labels" in shown
    )
    assert "; on cuda:0 are two, 0 MB, and 0 MB of labels and results; the samples have 0 MB" in shown
    assert run("train", *streamed, "--stream", "--epochs", 2, "--out", parts, "--quiet") == 0
    assert run("train", "--resume", parts, "--epochs", 3, "--quiet") == 0
    assert run("train", *streamed, "--order", "blocks", "--epochs", 3, "--out", memory, "--quiet") == 0
    for other in (parts, memory):
        assert_same_run(whole, other)
    tested = shown[shown.index("test accuracy") :].splitlines()[0]
    capsys.readouterr()
    assert run("evaluate", whole) == 0
    assert tested in capsys.readouterr().out


def test_files_that_shrink_while_they_are_streamed_are_one_line(
    cupy: HostCupy, streamed: tuple[object, ...], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, calls = Path(str(streamed[1])), FileRows.read, []
    content = path.read_bytes()

    def shrinking(self: FileRows, rows: Any, out: Any) -> None:
        calls.append(1)
        if len(calls) == 20:
            path.write_bytes(content[:2_000])
        read(self, rows, out)

    with monkeypatch.context() as patch:
        patch.setattr(FileRows, "read", shrinking)
        out = ("--epochs", 4, "--quiet", "--out", tmp_path / "run")
        assert run("train", *streamed, "--stream", *out) == 2
    error = capsys.readouterr().err
    assert "images.npy: expected 3,764 bytes as at the start, found 2,000" in error
    assert error.count("\n") == 1
    path.write_bytes(content)
    assert run("train", "--resume", tmp_path / "run", "--quiet") == 0
    assert run("train", *streamed, "--stream", "--epochs", 4, "--quiet", "--out", tmp_path / "whole") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_tables_and_zarr_arrays_are_streamed(
    cupy: HostCupy, streamed: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr")
    images, labels = (values[:303] for values in samples())
    for name, values in (("x.zarr", images), ("y.zarr", labels)):
        chunks = (100, *values.shape[1:])
        zarr.create_array(tmp_path / name, shape=values.shape, dtype=values.dtype, chunks=chunks)[...] = values
    sources: dict[str, tuple[object, ...]] = {
        "zarr": (tmp_path / "x.zarr", tmp_path / "y.zarr"),
        "parquet": (table(tmp_path / "data.parquet", images, labels), "--label-column", "label"),
    }
    for name, source in sources.items():
        for way in ("--stream", "--order=blocks"):
            words = ("--dataset", *source, way, *streamed[3:], "--epochs", 2, "--quiet")
            assert run("train", *words, "--out", tmp_path / f"{name}{way}") == 0
        assert_same_run(tmp_path / f"{name}--stream", tmp_path / f"{name}--order=blocks")


def test_the_execution_that_auto_takes_is_shown_with_the_reason(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cupy.attributes["CooperativeLaunch"] = 1
    for number, (options, why) in enumerate(
        (
            (("--optimizer", "rmsprop"), "it does not support the optimizer RMSprop("),
            (("--dtype", "float64"), "it computes in float32 only, not in float64"),
        )
    ):
        assert run("train", *words, *options, "--epochs", 3, "--out", tmp_path / str(number)) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("execution: "))
        assert line.startswith(f"execution: graphs: up to 16 steps in one launch; not persistent: {why}")


def test_a_sweep_trains_networks_in_one_launch_and_resumes_them_so(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    cupy.attributes |= {"CooperativeLaunch": 1, "MultiProcessorCount": 4}
    words = (*words, "--batch-size", "50", "--epochs", 4, "--quiet")
    grid, out = ("--grid", "hidden=8", "learning-rate=0.01,0.03"), tmp_path / "sweep"
    run_many = PersistentRunner.run_many
    launches: list[int] = []

    def counting(self: PersistentRunner, runs: Sequence[StepRun]) -> None:
        launches.append(len(runs))
        if len(launches) == 3:
            raise KeyboardInterrupt
        run_many(self, runs)

    monkeypatch.setattr(PersistentRunner, "run_many", counting)
    assert run("sweep", *words, *grid, "--out", out) == 130
    assert run("sweep", "--resume", out) == 0
    assert set(launches) == {2}
    assert capsys.readouterr().out.count("\nexecution of 2 runs: persistent: ") == 1
    for rate in ("0.01", "0.03"):
        alone = (
            *words,
            "--hidden",
            8,
            "--learning-rate",
            rate,
            "--execution",
            "persistent",
            "--out",
            tmp_path / rate,
        )
        assert run("train", *alone) == 0
        assert_same_run(out / f"hidden=8,learning_rate={rate},seed=0", tmp_path / rate)


def test_a_run_on_a_gpu_is_evaluated_on_the_cpu(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("train", *words, "--epochs", 3, "--matmul-precision", "high", "--out", out) == 0
    trained = capsys.readouterr().out
    assert run("evaluate", out, "--device", "cpu") == 0
    accuracy = capsys.readouterr().out.splitlines()[-1].partition("accuracy: ")[2].partition(",")[0]
    assert accuracy
    assert accuracy in trained


def test_options_for_a_gpu_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--matmul-precision", "medium", "--execution", "fast") == 2
    message = capsys.readouterr().err
    assert "matmul_precision: expected one of highest, high, got 'medium'" in message
    assert "execution: expected one of auto, persistent, graphs, eager, got 'fast'" in message


def test_an_unsupported_execution_is_an_error(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*words, "--optimizer", "rmsprop", "--execution", "persistent")
    assert run("train", *words, "--epochs", 2, "--out", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert "execution persistent is not possible: it does not support the optimizer RMSprop(" in message
    assert "Traceback" not in message


class CUDARuntimeError(RuntimeError):
    """The error of CuPy for any call on a device that has failed."""


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


def test_a_device_failure_is_one_line_and_the_run_resumes_from_its_last_epoch(
    cupy: HostCupy,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", *words, "--epochs", 4, "--out", whole) == 0
    assert run("train", *words, "--epochs", 2, "--out", parts) == 0

    def fail(array: object) -> None:
        raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    with monkeypatch.context() as failing:
        failing.setattr(cupy, "asnumpy", fail)
        capsys.readouterr()
        assert run("train", "--resume", parts, "--epochs", 4) == 2
    message = capsys.readouterr().err
    assert "cuda:0 (Host GPU) failed: CUDARuntimeError: cudaErrorIllegalAddress" in message
    assert "Traceback" not in message
    assert run("train", "--resume", parts, "--epochs", 4) == 0
    assert_same_run(whole, parts)
