"""Paths as users write them, and files that are whole whenever the program dies."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

_TEMPORARY = ".gpumlp-"  # how the names of temporary files begin
_PATIENCE = 5.0 if os.name == "nt" else 0.0  # seconds; Windows replaces no file that another program has open
_PAUSE = 0.02  # seconds between attempts
_FILES = (  # endings of the names of files, not of folders such as run-0.1
    *(".ckpt", ".csv", ".h5", ".hdf5", ".htm", ".html", ".joblib", ".json", ".jsonl", ".keras", ".npy", ".npz"),
    *(".onnx", ".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".svg", ".toml", ".txt", ".zip"),
)


class PathError(ValueError):
    """A path cannot be used; the message names it."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, with ``~`` and ``~user`` replaced by the home folder.

    Every path that a command or a public function takes comes through here.

    Raises:
        PathError: the path is empty or holds a null character, or the user does not exist.

    >>> user_path("runs/1").as_posix()
    'runs/1'
    """
    if not os.fspath(path):
        raise PathError("expected a path, got an empty one")
    if "\0" in os.fspath(path):
        raise PathError(f"{os.fspath(path)!r}: expected a path without null characters")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = Path(path).parts[0]
        raise PathError(f"{os.fspath(path)}: {name} has no home folder; write the path out, or ./{name}") from None


def new_folder_path(path: str | os.PathLike[str], expected: str = "out: expected a folder") -> Path:
    """As `user_path`, for a folder that is there or is to be made.

    Args:
        path: that of the folder.
        expected: begins the message of an error.

    Raises:
        PathError: there is a file in its place, or a folder that is to be made has a name like that of a file.
    """
    if not os.fspath(path):
        raise PathError(f"{expected}, got ''")
    folder = user_path(path)
    file = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        raise PathError(f"{expected}, got the file {file}; choose another name")
    if folder.suffix.lower() in _FILES and not folder.exists():
        raise PathError(f"{expected}, got {path}, the name of a file; leave out {folder.suffix}")
    return folder


def resolved(path: Path) -> Path:
    """As `Path.resolve`; a symbolic link that leads to itself stays, instead of an error before Python 3.13."""
    return Path(os.path.realpath(path))


def distinct(runs: Iterable[str]) -> list[str]:
    """The folders of runs, each once, by the first of its names."""
    found: dict[Path, str] = {}
    for run in runs:
        found.setdefault(resolved(user_path(run)), run)
    return list(found.values())


def require_distinct(runs: Sequence[str | os.PathLike[str]]) -> None:
    """Raise PathError if the folder of a run is given twice: it would count twice."""
    folders = [resolved(user_path(run)) for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise PathError(f"{run}: expected each run once, got it {folders.count(folder)} times")


def utf8(text: str) -> bytes:
    r"""Text as UTF-8; half surrogates, which stand for bytes of file names that are not UTF-8, as escapes.

    >>> utf8("run \udcff")
    b'run \\udcff'
    """
    return text.encode("utf-8", "backslashreplace")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it exists.

    Raises:
        OSError: it cannot be made. Of a symbolic link whose target is missing, as where scratch space was cleared,
            the system says only that it exists.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        for link in (path, *path.parents):
            if link.is_symlink() and not link.exists():
                reason = f"expected a folder, found a link to {os.readlink(link)}, which does not exist"
                raise FileNotFoundError(errno.ENOENT, reason, str(link)) from None
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that, whenever the program dies, it is either the old one or the new one.

    The new content is written beside it first, under a random name that no other file has, and then renamed. A
    symbolic link is replaced, not followed. A file that was private, or open to a group, stays so.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; the previous file is as it was.
    """
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with suppress(OSError):  # there is no old one, or the file system has no permissions
                old = os.lstat(path).st_mode
                if stat.S_ISREG(old):
                    os.chmod(temporary, old & 0o777 | stat.S_IWUSR)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a failed write does not say of which file, others of the temporary one
        raise


def replace(source: Path, target: Path) -> None:
    """As `os.replace`; on Windows, waits for programs that read the target or look for viruses."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(_PAUSE)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of programs that died while they wrote into a folder."""
    for path in folder.glob(f"{_TEMPORARY}*.tmp"):
        with suppress(OSError):
            path.unlink()


def read_file(path: Path, size: int = -1) -> bytes:
    """The content of a file, or its first bytes.

    Raises:
        OSError: there is no such file, it may not be read, or it is a folder, a pipe or a device, from which a
            program could wait for ever.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "expected a file, got a folder, a pipe or a device", str(path))
    with open(path, "rb") as file:
        return file.read(min(size, found.st_size))  # which takes as much memory
