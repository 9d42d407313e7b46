"""Shared fixtures: every backend by name, small data, PyTorch's modules, a terminal's width."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from gpumlp import Dataset, get_backend
from gpumlp.backends import Backend
from gpumlp.nn.registry import Registry
from tests import data_helpers
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite on all processors if pytest-xdist is installed; ``-n 0`` runs it in one process."""
    whole = config.args_source is config.ArgsSource.TESTPATHS
    free = config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None
    if whole and free and not config.option.usepdb and "PYTEST_XDIST_WORKER" not in os.environ:
        config.option.numprocesses, config.option.dist = os.cpu_count(), "loadfile"
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of each process, which would wait for each other


OPTIONAL = ("dask", "emulator", "large", "mpi", "nvcc")  # markers of tests that take minutes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that take minutes, unless ``-m`` names their marker."""
    names = {name for name in OPTIONAL if name not in config.option.markexpr}
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in names)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not any(item.get_closest_marker(name) for name in names)]


@pytest.fixture(
    params=["cpu", "strict", "host-cuda", "host-cublaslt", pytest.param("cuda", marks=pytest.mark.gpu)]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn; unavailable ones are skipped with the reason."""
    if request.param == "strict":
        return StrictBackend()
    if request.param == "host-cuda":
        return host_cuda_backend()
    if request.param == "host-cublaslt":
        return host_cuda_backend(cublaslt=True)
    if request.param == "cuda":
        return gpu_backend()
    return get_backend(request.param)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = [dict(registry) for registry in Registry.known]
    yield
    for registry, kinds in zip(Registry.known, before, strict=True):
        for name in registry.keys() - kinds.keys():
            del registry[name]


@pytest.fixture
def progress_of_short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report progress within epochs, however short they are."""
    monkeypatch.setattr("gpumlp.Trainer.progress_seconds", 0.0)


@pytest.fixture
def blobs() -> Dataset:
    return data_helpers.blobs()


@pytest.fixture
def nn() -> Any:
    """PyTorch's modules, whose initial weights are the same in each test."""
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[torch]"')
    torch.manual_seed(0)
    return torch.nn


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 columns for what commands print."""
    monkeypatch.setenv("COLUMNS", "100")
