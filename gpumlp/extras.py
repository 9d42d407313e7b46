"""Optional parts of gpumlp, and the libraries they need: ``pip install ".[report]"``, and so on."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import NamedTuple


class Extra(NamedTuple):
    """An extra of ``pyproject.toml``: what it is for, and the modules that it installs."""

    purpose: str
    modules: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


EXTRAS = {
    "cuda13": Extra("NVIDIA GPUs; cuda12 for a driver older than 580", ("cupy",)),
    "nvmath": Extra("CUDA graphs and fused matrix products on a GPU", ("nvmath",)),
    "report": Extra("figures and reports", ("matplotlib", "jinja2", "PIL")),
    "sklearn": Extra("scikit-learn estimators", ("sklearn",)),
    "tensorboard": Extra("logs for TensorBoard", ("tensorboardX", "tensorboard")),
    "mpi": Extra("one training run on several processes", ("mpi4py",)),
    "nccl": Extra("one training run on several GPUs", ("mpi4py", "nccl")),
    "images": Extra("predictions of pictures", ("PIL",)),
    "dask": Extra("sweeps over machines", ("distributed",)),
    "optuna": Extra("searches by Optuna", ("optuna",)),
    "onnx": Extra("export to ONNX", ("onnx",)),
    "arrow": Extra("Arrow and Parquet tables as data", ("pyarrow",)),
    "zarr": Extra("Zarr arrays as data", ("zarr",)),
}


class MissingExtraError(RuntimeError):
    """A library that this part of gpumlp needs cannot be imported; the message says how to install it."""


def require(part: str, library: str, extra: str) -> None:
    """Raise an error of one line if a library of an extra is missing.

    Args:
        part: what needs it, as the message calls it: "figures".
        library: the module to import.
        extra: the extra of ``pyproject.toml`` that installs it.

    Raises:
        MissingExtraError: the library cannot be imported.
    """
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        raise MissingExtraError(
            f'{part} need {library}, which is not installed; install it with pip install ".[{extra}]"'
        ) from error
    except ImportError as error:  # a broken installation
        raise MissingExtraError(
            f"{part} need {library}, which cannot be imported ({error}); reinstall it with "
            f'pip install --force-reinstall ".[{extra}]"'
        ) from error
    except ValueError as error:  # how matplotlib refuses the settings that it reads
        backend = os.environ.get("MPLBACKEND")
        settings = "its settings" if backend is None else f"the environment variable MPLBACKEND={backend}"
        raise MissingExtraError(
            f"{part} need {library}, which cannot be imported; correct or remove {settings}: {error}"
        ) from error
