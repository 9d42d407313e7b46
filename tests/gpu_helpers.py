"""A GPU for tests marked gpu: without one they are skipped with the reason, or fail if one is required."""

from __future__ import annotations

import importlib
import os
import warnings
from contextlib import suppress
from typing import NoReturn

import pytest

from gpumlp import DeviceError, get_backend
from gpumlp.backends import Backend

REQUIRED = "GPUMLP_REQUIRE_GPU"  # scripts/on_gpu.sh sets it to 1, so that no test is skipped unnoticed


def gpu_backend(**options: str) -> Backend:
    """The first GPU, with the options of `get_backend`; without a GPU, see `without_gpu`."""
    for library in ("cupy", "nvmath.bindings"):
        import_showing_warnings(library)
    try:
        return get_backend("cuda", **options)
    except DeviceError as error:
        cause = error.cause
    return without_gpu(f"cuda: {cause}")  # outside the handler, to show one error instead of three


def without_gpu(reason: str) -> NoReturn:
    """Skip with this reason, or fail if the environment requires a GPU."""
    if os.environ.get(REQUIRED, "0") not in ("", "0"):
        pytest.fail(f"{REQUIRED} is set, but {reason}", pytrace=False)
    pytest.skip(reason)


def import_showing_warnings(library: str) -> None:
    """Import a library without turning its warnings into errors; the backend reports a failed import."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("default")
        importlib.import_module(library)
