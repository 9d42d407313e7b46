"""Where a command may write a file: never over what it has read nor what a run needs, and under a fitting name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..nn.model_file import MODEL
from .config import ConfigError
from .records import is_run
from .run import CHECKPOINT, CONFIG, DIVERGED, HISTORY, METRICS

PAGES = (".html", ".htm")  # how the names of pages end
RUN_FILES = (CONFIG, HISTORY, CHECKPOINT, METRICS, DIVERGED, MODEL)


def check_output(
    option: str, path: str | Path, inputs: Iterable[str | Path] = (), *, endings: Sequence[str] = ()
) -> None:
    """To be called before any work.

    Args:
        option: that has the path, named in the message.
        path: of the file to write. One that is there is replaced.
        inputs: what the command reads; what is no file is passed over.
        endings: of names that fit what is written, as ".html", in lower case; without any, all do. A file of
            another kind is the user's, and nothing that a slip of the keyboard should replace.

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
    if endings and file.suffix.lower() not in endings:
        raise ConfigError(
            f"{option}: expected a name that ends in {' or '.join(endings)}, got {file.name}; choose such a name"
        )
