"""A lock on a run's folder, so that one process at a time writes into it."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .config import ConfigError

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = "run.lock"
_PAUSE = 0.02  # seconds between attempts
_LOCKED = 1000  # on Windows, the byte that is locked: others cannot read it, but the note before it
_OURS = re.compile(rb"(\d+ on [^\n]*\n)?\0*")  # zeros: after a power failure
_HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system


class LockedError(ConfigError):
    """Another process holds the lock."""


class RunLock:
    """Keeps other processes from writing into a run's folder until it is released; reading needs no lock.

    The operating system locks the open file ``run.lock``, so that the lock ends with the process, however that
    ends; a file that is left behind locks nothing. On Linux it holds for all machines that share the folder by
    NFS 4, by NFS 3 with its lock service, by SMB, or by Lustre mounted with ``-o flock``.

    What it cannot do: some file systems have no locks, and some lock only against processes of the same machine
    (NFS on macOS, NFS mounted with ``local_lock``, Lustre with ``-o localflock``). There, a second process is not
    refused at its start, but a process that finds the history changed stops. If a machine fails, the server of
    a shared file system may keep its lock for a minute or two. A child made by ``os.fork`` shares the lock.

    Args:
        folder: that of the run.
        work: what another process is told that this one does.
        name: of the file.
        patience: seconds to wait for another process.

    Raises:
        LockedError: another process holds the lock.
        ConfigError: the file is not a lock.
        OSError: the file cannot be made.
    """

    def __init__(
        self, folder: Path, work: str = "training this run", *, name: str = LOCK, patience: float = 0.0
    ) -> None:
        self._path, end = folder / name, time.monotonic() + patience
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        foreign = ConfigError(f"{self._path} is not a lock of gpumlp: rename it, or choose another folder")
        while True:
            if self._path.is_symlink() or self._path.is_fifo():  # which would lead elsewhere, or be waited for
                raise foreign
            self._file = os.open(self._path, flags, 0o666)
            try:
                while not _try_to_lock(self._file):
                    if time.monotonic() > end:
                        raise LockedError(
                            f"{folder}: another process{self._holder()} is {work}; wait until it ends, or "
                            "choose another folder"
                        )
                    time.sleep(_PAUSE)
                with suppress(FileNotFoundError):  # another process has released and removed it in between
                    if os.path.samestat(os.fstat(self._file), os.stat(self._path, follow_symlinks=False)):
                        break
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)
        if not _OURS.fullmatch(os.read(self._file, _LOCKED)):
            os.close(self._file)
            raise foreign
        with suppress(OSError):  # the disk is full, and whoever is refused is not told by whom
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock and remove its file."""
        if fcntl is None:  # Windows removes no open file, and may keep the lock of a closed one for a while
            with suppress(OSError):  # the file system has no locks
                _lock_byte(self._file, msvcrt.LK_UNLCK)
            os.close(self._file)
        with suppress(OSError):
            self._path.unlink()
        if fcntl is not None:
            os.close(self._file)

    def _holder(self) -> str:
        """Number and machine of the process that holds the lock, as it wrote them."""
        with suppress(OSError, ValueError):
            text = os.read(self._file, 100).decode().strip()
            return f" ({text})" if text.isprintable() and text else ""
        return ""


def _try_to_lock(file: int) -> bool:
    """Lock an open file; True also on a file system without locks, False if another process has locked it."""
    try:
        if fcntl is None:
            _lock_byte(file, msvcrt.LK_NBLCK)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _lock_byte(file: int, mode: int) -> None:
    os.lseek(file, _LOCKED, os.SEEK_SET)
    try:
        msvcrt.locking(file, mode, 1)
    finally:
        os.lseek(file, 0, os.SEEK_SET)
