"""The download of one file from the first mirror that has it: limited in size and time, checked by SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..files import make_folder, write_atomically
from ..terminal import console
from .dataset import DataError

# requests and rich are imported where they are used: most runs find their data on disk.

_SLOWEST = 32_000  # bytes per second, on average over a file
_CHUNK = 2**14
_POLL = 0.05  # seconds between two updates of the bar


class DataNotAvailable(DataError):
    """The data is neither on this machine nor available over the network.

    Unlike damaged or mismatched files this is not the user's mistake, so a caller may use other data instead.

    Attributes:
        reason: what was tried and how it failed, without the advice that ends the message.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason} {advice}".strip())
        self.reason = reason


@dataclass
class Mirrors:
    """Addresses that serve the same files, tried in order; one that fails once is not tried again.

    Attributes:
        addresses: folders such as ``"https://example.org/mnist/"``; the mirrors that have not failed.
        timeout: seconds until a mirror must have begun to send a file.
        slowest: bytes per second; a file of ``size`` bytes must be complete after ``timeout + size / slowest``.
        failures: ``"host: reason"`` for each mirror that was dropped.
    """

    addresses: list[str]
    timeout: float = 5.0
    slowest: float = _SLOWEST
    failures: list[str] = field(default_factory=list)

    def drop(self, address: str, reason: str) -> None:
        """Remove ``address`` from the list and record the reason."""
        self.addresses.remove(address)
        self.failures.append(f"{urlsplit(address).netloc}: {reason}")


def fetch(filename: str, size: int, sha256: str, mirrors: Mirrors, cache_dir: Path) -> Path:
    """Return the path of ``filename`` in ``cache_dir``; download it unless it is there and intact.

    The file is created atomically, even if several processes fetch it at once.

    Args:
        filename: on the mirrors and in the cache.
        size: of the file, in bytes; a mirror that sends more or fewer is dropped.
        sha256: checksum of the file, in hexadecimal.
        mirrors: where to look; changed in place, so that later calls skip the mirrors that failed.
        cache_dir: created if missing.

    Raises:
        DataNotAvailable: no mirror delivers the file; the message gives the reason for each mirror.
    """
    target = cache_dir / filename
    try:
        damaged = target.exists()
        if damaged and target.stat().st_size == size and _sha256(target.read_bytes()) == sha256:
            return target
    except OSError as error:
        raise DataNotAvailable(f"{target} cannot be read ({error.strerror})") from error
    while mirrors.addresses:
        address = mirrors.addresses[0]
        try:
            content = _download(f"{address.rstrip('/')}/{filename}", size, mirrors.timeout, mirrors.slowest)
            if _sha256(content) != sha256:
                raise _Refused("wrong SHA-256, so this is not the published file")
        except _Refused as reason:
            mirrors.drop(address, f"{reason} ({filename})")
            continue
        try:
            make_folder(cache_dir)
            write_atomically(target, content)
        except OSError as error:
            raise DataNotAvailable(f"{cache_dir} cannot be written to ({error.strerror or error})") from error
        return target
    message = f"{target} is damaged (wrong SHA-256)" if damaged else f"{filename} is not in {cache_dir}"
    if mirrors.failures:
        message += f", and no mirror delivered it ({'; '.join(mirrors.failures)})"
    raise DataNotAvailable(message)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Refused(Exception):
    """Why a mirror is dropped."""


class _Transfer(threading.Thread):
    """Receives one file, in a thread that can be abandoned.

    The timeouts of ``requests`` are for single operations. The lookup of a host's name precedes them and may hang
    for half a minute, and a server that sends a byte a second never exceeds them.
    """

    def __init__(self, url: str, size: int, timeout: float) -> None:
        super().__init__(daemon=True)
        self._url, self._size, self._timeout = url, size, timeout
        self.content = bytearray()
        self.begun = threading.Event()  # the server has answered, or the transfer has failed
        self.abandoned = False
        self.failure: str | None = None

    def run(self) -> None:
        try:
            self._receive()
        except _Refused as reason:
            self.failure = str(reason)
        except Exception as error:  # an exception in a thread would be lost
            self.failure = _describe(error, self._timeout)
        finally:
            self.begun.set()

    def _receive(self) -> None:
        import requests

        # The .gz itself, not unpacked in transit
        headers = {"Accept-Encoding": "identity"}
        session = requests.Session()
        # No redirect is followed: requests would read all that comes with it into memory, of any length.
        session.get_redirect_target = lambda _: None  # type: ignore[method-assign, assignment]
        with session.get(self._url, stream=True, timeout=self._timeout, headers=headers) as response:
            response.raise_for_status()
            if response.status_code != 200:
                raise _Refused(f"HTTP {response.status_code}")
            announced = response.headers.get("Content-Length", str(self._size))
            if announced != str(self._size):
                raise _Refused(f"announced {announced[:20]!r} bytes instead of {self._size:,}")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise _Refused("compressed the file in transit")  # of any size when unpacked
            self.begun.set()
            for chunk in response.iter_content(_CHUNK):
                self.content += chunk
                if self.abandoned:
                    return
                if len(self.content) > self._size:
                    raise _Refused(f"sent more than the {self._size:,} bytes of the file")
        if len(self.content) < self._size:
            raise _Refused("the transfer broke off")


def _download(url: str, size: int, timeout: float, slowest: float) -> bytes:
    """The content of ``url``, of exactly ``size`` bytes.

    Raises:
        _Refused: the mirror does not deliver it in time, or delivers something else.
    """
    limit = timeout + size / slowest
    end = time.monotonic() + limit
    transfer = _Transfer(url, size, timeout)
    transfer.start()
    try:
        if not transfer.begun.wait(timeout):
            raise _Refused(f"no answer within {timeout:g} s")
        with _progress_bar(url.rpartition("/")[2], size) as show:
            while transfer.is_alive():
                transfer.join(_POLL)
                show(len(transfer.content))
                if transfer.is_alive() and time.monotonic() > end:
                    raise _Refused(f"not complete after {limit:.3g} s")
            show(len(transfer.content))
    finally:
        transfer.abandoned = True
    if transfer.failure is not None:
        raise _Refused(transfer.failure)
    return bytes(transfer.content)


def _describe(error: Exception, timeout: float) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return f"no answer within {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "no trusted TLS certificate"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refused the connection"
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
def _progress_bar(filename: str, size: int) -> Iterator[Callable[[int], None]]:
    """A function that shows the number of bytes received, where standard error is a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    output = console(stderr=True)
    if not output.is_terminal:  # where a disabled bar of rich before 14.3 prints an empty line
        yield lambda received: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=output) as progress:
        task = progress.add_task(filename, total=size)
        yield lambda received: progress.update(task, completed=received)
