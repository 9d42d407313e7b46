"""Where a command may write a file: never over what it has read, nor over what a run needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..nn.model_file import MODEL
from .config import ConfigError
from .records import is_run
from .run import CHECKPOINT, CONFIG, DIVERGED, HISTORY, METRICS

RUN_FILES = (CONFIG, HISTORY, CHECKPOINT, METRICS, DIVERGED, MODEL)


def check_output(option: str, path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """To be called before any work.

    Args:
        option: that has the path, named in the message.
        path: of the file to write. One that is there is replaced.
        inputs: what the command reads; what is no file is passed over.

    Raises:
        ConfigError: nothing can or may be written there.
    """
    file = Path(path)
    if not str(path) or file.is_dir():
        raise ConfigError(f"{option}: expected the path of a file to write, got {str(path) or 'nothing'}")
    if not file.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {file.parent}")
    if file.exists() and not file.is_file():
        raise ConfigError(f"{option}: expected the path of a file to write, but {file} is a device or a pipe")
    if file.name in RUN_FILES and is_run(file.parent):
        raise ConfigError(f"{option}: {file} is a file of the run in {file.parent}; choose another name")
    for name in inputs:
        if file.exists() and os.path.isfile(name) and os.path.samefile(file, name):
            raise ConfigError(f"{option}: {file} is read by this command; choose another name")
