"""Tests marked gpu skip where there is no GPU, and fail where there has to be one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import pytest

from gpumlp import DeviceError
from tests.gpu_helpers import REQUIRED, gpu_backend, import_showing_warnings
from tests.host_cuda import HostCupy, load_cupy_backend

Skipped, Failed = pytest.skip.Exception, pytest.fail.Exception


@pytest.fixture(params=["not installed", "warns when it is imported"])
def cause(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why there is no GPU."""

    def no_module() -> NoReturn:
        raise DeviceError(f"CuPy {request.param}", "install it")

    monkeypatch.setattr("gpumlp.backends._cuda_module", no_module)
    return f"CuPy {request.param}"


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_a_gpu_a_test_skips_with_the_cause(
    cause: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REQUIRED, raising=False)
    if value is not None:
        monkeypatch.setenv(REQUIRED, value)
    with pytest.raises((Skipped, Failed)) as caught:
        gpu_backend()
    assert caught.type is Skipped
    assert str(caught.value) == f"cuda: {cause}"


def test_where_a_gpu_is_required_it_fails_instead(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises((Skipped, Failed)) as caught:
        gpu_backend()
    assert caught.type is Failed
    assert str(caught.value) == f"GPUMLP_REQUIRE_GPU is set, but cuda: {cause}"


def test_with_a_gpu_the_options_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_cupy_backend(HostCupy())
    monkeypatch.setattr("gpumlp.backends._cuda_module", lambda: module)
    assert gpu_backend().graphs is not None
    assert gpu_backend(cuda_graphs="off").graphs is None


def test_a_library_that_warns_is_imported_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "warns_when_imported.py").write_text("import warnings\nwarnings.warn('old', DeprecationWarning)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(DeprecationWarning, match="old"):
        import_showing_warnings("warns_when_imported")
    assert sys.modules.pop("warns_when_imported")
    import_showing_warnings("not_there_at_all")
