"""The commands with ``--device cuda``, on the processor: kernels compiled for it, CuPy and cuBLASLt as doubles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpumlp import Dataset
from gpumlp.backends.cublaslt import Products
from tests.command_helpers import assert_same_run, run
from tests.host_cublaslt import host_bindings
from tests.host_cuda import HostCupy, load_cupy_backend


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> HostCupy:
    """A machine with one GPU, for whoever asks for a backend."""
    double = HostCupy()
    module = load_cupy_backend(double)

    def products(tf32: bool) -> Products:
        found = Products(double, tf32, host_bindings(double.launched))
        found.alignment = 4
        return found

    monkeypatch.setattr(module, "_find_products", products)
    monkeypatch.setattr("gpumlp.backends._cupy_module", lambda: module)
    # Time is what launching takes, so that graphs win.
    monkeypatch.setattr(module.GraphRunner.__init__, "__defaults__", (lambda: len(double.launches),))
    return double


@pytest.fixture
def words(blobs: Dataset, tmp_path: Path) -> tuple[str, ...]:
    """The options of a small training."""
    images, labels = np.asarray(blobs.images), np.asarray(blobs.labels)
    path = tmp_path / "blobs.npz"
    np.savez(path, x_train=images[:250], y_train=labels[:250], x_test=images[250:], y_test=labels[250:])
    return ("--device", "cuda", "--dataset", str(path), "--batch-size", "8", "--optimizer", "adam")


def test_the_same_run_by_graphs_and_step_by_step(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, choice in (("graphs", "auto"), ("steps", "off")):
        cupy.launches.clear()
        assert run("train", *words, "--epochs", 4, "--cuda-graphs", choice, "--out", tmp_path / name) == 0
        assert ("graph" in cupy.launches) == (choice == "auto")
        words_for_it = {"auto": "steps: by CUDA graphs: ", "off": "steps: one by one: cuda_graphs is off"}
        assert words_for_it[choice] in capsys.readouterr().out
    assert_same_run(tmp_path / "graphs", tmp_path / "steps")


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_run_compiles_no_reductions(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, activation: str
) -> None:
    """CuPy takes seconds for each of those, silently."""
    options = ("--activation", activation, "--validation", 50, "--l1", 1e-5)
    assert run("train", *words, *options, "--epochs", 3, "--out", tmp_path / "run") == 0
    assert cupy.compiled_reductions == []


def test_a_run_goes_on_with_graphs_or_without(cupy: HostCupy, words: tuple[str, ...], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", *words, "--epochs", 6, "--out", whole) == 0
    assert run("train", *words, "--epochs", 3, "--out", parts) == 0
    assert run("train", "--resume", parts, "--epochs", 6, "--cuda-graphs", "off") == 0
    assert "graph" in cupy.launches
    assert_same_run(whole, parts)


def test_a_run_by_the_persistent_kernel_goes_on_by_it(
    cupy: HostCupy, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = (*words, "--optimizer", "sgd", "--hidden", "16", "--persistent-kernel", "on")
    assert run("train", *words, "--epochs", 4, "--out", whole) == 0
    assert "steps: by one persistent kernel: 4 blocks of 256 threads, 4 hidden units" in capsys.readouterr().out
    assert run("train", *words, "--epochs", 2, "--out", parts) == 0
    assert run("train", "--resume", parts, "--epochs", 4) == 0
    assert_same_run(whole, parts)
    with_adam = (*words, "--optimizer", "adam", "--epochs", 3, "--out", tmp_path / "adam")
    capsys.readouterr()
    assert run("train", *with_adam) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("steps: "))
    assert line.startswith("steps: by CUDA graphs: ")
    assert line.endswith("; not by the persistent kernel: it knows no optimizer but SGD")


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
    assert run("train", "--matmul-precision", "medium", "--cuda-graphs", "on", "--persistent-kernel", "auto") == 2
    message = capsys.readouterr().err
    assert "matmul_precision: expected one of highest, high, got 'medium'" in message
    assert "cuda_graphs: expected one of auto, off, got 'on'" in message
    assert "persistent_kernel: expected one of off, on, got 'auto'" in message


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it, from whatever is asked of a device that has failed."""


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


def test_a_device_that_fails_is_one_line_and_the_run_goes_on_from_its_last_epoch(
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
