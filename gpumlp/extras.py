"""Parts of gpumlp that need more than it installs by default: `pip install '.[report]'`, and so on."""

from __future__ import annotations

import importlib


class MissingExtraError(RuntimeError):
    """A library that this part of gpumlp needs cannot be imported; the message says how to install it."""


def require(part: str, library: str, extra: str) -> None:
    """Refuse, in one line, where a library of an extra is not there.

    Args:
        part: what needs it, as the message calls it: "figures".
        library: the module to import.
        extra: the extra of ``pyproject.toml`` that brings it.

    Raises:
        MissingExtraError: the library cannot be imported.
    """
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        raise MissingExtraError(
            f"{part} need {library}, which is not installed; install it with pip install '.[{extra}]'"
        ) from error
    except ImportError as error:  # a broken installation
        raise MissingExtraError(
            f"{part} need {library}, which cannot be imported ({error}); reinstall it with "
            f"pip install --force-reinstall '.[{extra}]'"
        ) from error
