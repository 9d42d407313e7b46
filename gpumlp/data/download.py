"""Get one file from the first mirror that has it, into a cache folder, and prove it by its SHA-256."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from .errors import DataNotAvailable

# pooch, requests and rich are imported where they are used: most runs find their data on disk.


@dataclass
class Mirrors:
    """Addresses that hold the same files, tried in order; one that fails once is not tried again.

    Attributes:
        addresses: folders such as ``"https://example.org/mnist/"``; the mirrors that have not failed.
        timeout: seconds to wait for a connection or for the next bytes.
        failures: ``"host: reason"`` for each mirror that was dropped.
    """

    addresses: list[str]
    timeout: float = 5.0
    failures: list[str] = field(default_factory=list)
    _answered: set[str] = field(default_factory=set, repr=False)

    def drop(self, address: str, reason: str) -> None:
        """Take ``address`` off the list, and remember why."""
        self.addresses.remove(address)
        self.failures.append(f"{urlsplit(address).netloc}: {reason}")

    def probe(self, address: str, url: str) -> str | None:
        """Why ``address`` does not answer, asked with ``url``; None if it does, or did before.

        The host's name is looked up before the timeout of ``requests`` begins, and that alone may hang
        for half a minute: so this asks in a thread that can be left behind.
        """
        if address in self._answered:
            return None
        import requests

        reasons = [f"no answer within {self.timeout:g} s"]

        def ask() -> None:
            try:
                requests.head(url, timeout=self.timeout).close()
                reasons.clear()
            except Exception as error:  # nothing may escape from a thread unseen
                reasons.append(_in_plain_words(error, self.timeout))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(self.timeout)
        if reasons:
            return reasons[-1]
        self._answered.add(address)
        return None


def fetch(filename: str, sha256: str, mirrors: Mirrors, cache_dir: Path) -> Path:
    """Return the path of ``filename`` in ``cache_dir``, downloading it unless it is there and intact.

    The file appears whole or not at all, also where several processes fetch it at once.

    Args:
        filename: on the mirrors and in the cache.
        sha256: checksum of the file, in hexadecimal.
        mirrors: where to look; changed in place, so that later calls leave out what failed.
        cache_dir: made if missing.

    Raises:
        DataNotAvailable: no mirror delivers the file; the message lists every mirror with its reason.
    """
    import pooch

    target = cache_dir / filename
    damaged = target.exists()
    try:
        if damaged and pooch.file_hash(str(target)) == sha256:
            return target
    except OSError as error:
        raise DataNotAvailable(f"{target} cannot be read ({error.strerror})") from error
    while mirrors.addresses:
        address = mirrors.addresses[0]
        url = f"{address.rstrip('/')}/{filename}"
        reason = mirrors.probe(address, url) or _download(url, sha256, target, mirrors.timeout)
        if reason is None:
            return target
        mirrors.drop(address, reason)
    message = f"{target} is damaged (wrong SHA-256)" if damaged else f"{filename} is not in {cache_dir}"
    if mirrors.failures:
        message += f", and no mirror delivered it ({'; '.join(mirrors.failures)})"
    raise DataNotAvailable(message)


def _download(url: str, sha256: str, target: Path, timeout: float) -> str | None:
    """Download ``url`` to ``target``; return why that failed, or None."""
    import pooch
    import requests

    try:
        with _progress_bar(target.name) as bar, _quiet(pooch.get_logger()):
            downloader = pooch.HTTPDownloader(
                progressbar=bar,
                chunk_size=2**16,
                timeout=timeout,
                headers={"Accept-Encoding": "identity"},  # the .gz itself, not what a server unpacks on the way
            )
            pooch.retrieve(url, known_hash=sha256, fname=target.name, path=target.parent, downloader=downloader)
    except requests.RequestException as error:  # before OSError and ValueError, which some of these are
        return f"{_in_plain_words(error, timeout)} for {target.name}"
    except ValueError:
        return f"wrong SHA-256 for {target.name}, so this is not the published file"
    except OSError as error:
        raise DataNotAvailable(f"{target.parent} cannot be written to ({error.strerror or error})") from error
    return None


def _in_plain_words(error: Exception, timeout: float) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return f"no answer within {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "no trusted TLS certificate"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy gave no connection"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    for sign, words in {
        "NameResolution": "host name not found",
        "getaddrinfo": "host name not found",
        "refused": "connection refused",
        "unreachable": "network unreachable",
        "Connection aborted": "connection closed by the server",
    }.items():
        if sign in text:
            return words
    return f"no connection ({type(error).__name__})"


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silence ``logger``, which other packages use too, for a while."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _RichBar:
    """A progress bar on standard error with the methods that pooch calls."""

    def __init__(self, filename: str, console: Any) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task(filename, total=None)
        self._progress.start()

    @property
    def total(self) -> float | None:
        return self._progress.tasks[0].total

    @total.setter
    def total(self, size: float) -> None:
        self._progress.update(self._task, total=size)

    def update(self, size: float) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop()

    def __enter__(self) -> _RichBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _progress_bar(filename: str) -> contextlib.AbstractContextManager[_RichBar | None]:
    """A bar where a person can watch it; otherwise None, which pooch takes for none."""
    from rich.console import Console

    console = Console(stderr=True)
    return _RichBar(filename, console) if console.is_terminal else contextlib.nullcontext()
