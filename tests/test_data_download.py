"""Downloads from mirrors: verified, limited in size and time, and atomic."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpumlp.data import DataError
from gpumlp.data.download import DataNotAvailable, Mirrors, fetch
from tests.data_helpers import Mirror, mirror, serve_folder, sha256

NAME = "values.gz"
CONTENT = bytes(range(256)) * 1000
SIZE, SHA256 = len(CONTENT), sha256(CONTENT)
TIMEOUT = 20.0  # not reached
SHORT = 0.5  # the wait for a silent server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "mnist"


@pytest.fixture
def good() -> Iterator[Mirror]:
    with mirror(lambda _: (200, CONTENT)) as server:
        yield server


@pytest.fixture
def refusing() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return f"http://127.0.0.1:{unused.getsockname()[1]}/"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def test_a_file_is_downloaded_once(good: Mirror, cache: Path) -> None:
    mirrors = Mirrors([good.address], TIMEOUT)
    first, second = (fetch(NAME, SIZE, SHA256, mirrors, cache) for _ in range(2))
    assert first == second == cache / NAME
    assert first.read_bytes() == CONTENT
    assert good.downloads() == [NAME]
    assert files_in(cache) == [NAME]


def test_an_intact_file_needs_no_network(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT)
    assert fetch(NAME, SIZE, SHA256, Mirrors([]), cache).read_bytes() == CONTENT


def test_a_damaged_file_is_downloaded_again(good: Mirror, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT[:-1])
    assert fetch(NAME, SIZE, SHA256, Mirrors([good.address], TIMEOUT), cache).read_bytes() == CONTENT


def test_a_damaged_file_is_reported_where_it_cannot_be_downloaded(cache: Path, refusing: str) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(b"damaged")
    with pytest.raises(DataNotAvailable, match=rf"{NAME} is damaged .* connection refused"):
        fetch(NAME, SIZE, SHA256, Mirrors([refusing], TIMEOUT), cache)


def test_the_second_mirror_is_taken_where_the_first_has_no_such_file(
    good: Mirror, cache: Path, tmp_path: Path
) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([empty.address, good.address], TIMEOUT)
        assert fetch(NAME, SIZE, SHA256, mirrors, cache).read_bytes() == CONTENT
    assert mirrors.failures == [f"{empty.host}: HTTP 404 ({NAME})"]


def test_a_mirror_that_failed_is_not_asked_for_later_files(good: Mirror, cache: Path, tmp_path: Path) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([empty.address, good.address], TIMEOUT)
        for name in ("one", "two", "three"):
            fetch(name, SIZE, SHA256, mirrors, cache)
        assert empty.downloads() == ["one"]
    assert good.downloads() == ["one", "two", "three"]


def test_a_file_with_a_wrong_checksum_is_not_kept(cache: Path) -> None:
    with (
        mirror(lambda _: (200, CONTENT[::-1])) as wrong,
        pytest.raises(DataNotAvailable, match=f"{wrong.host}: wrong SHA-256"),
    ):
        fetch(NAME, SIZE, SHA256, Mirrors([wrong.address], TIMEOUT), cache)
    assert files_in(cache) == []


def test_a_transfer_that_breaks_off_leaves_no_file(cache: Path) -> None:
    with (
        mirror(lambda _: (200, CONTENT), cut_to=100_000) as broken,
        pytest.raises(DataNotAvailable, match=f"{broken.host}: the transfer broke off"),
    ):
        fetch(NAME, SIZE, SHA256, Mirrors([broken.address], TIMEOUT), cache)
    assert files_in(cache) == []


def test_every_mirror_is_listed_with_its_reason(cache: Path, refusing: str, silent: str, tmp_path: Path) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([refusing, silent, empty.address], SHORT)
        with pytest.raises(DataNotAvailable) as caught:
            fetch(NAME, SIZE, SHA256, mirrors, cache)
    message = str(caught.value)
    assert f"{NAME} is not in {cache}" in message
    for address, reason in (
        (refusing, "connection refused"),
        (silent, f"no answer within {SHORT} s"),
        (empty.address, f"HTTP 404 ({NAME})"),
    ):
        assert f"{address.removeprefix('http://').rstrip('/')}: {reason}" in message
    assert mirrors.addresses == []


def test_a_silent_server_takes_no_longer_than_the_timeout(cache: Path, silent: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer within"):
        fetch(NAME, SIZE, SHA256, Mirrors([silent], SHORT), cache)
    assert time.monotonic() - start < SHORT + 1.5


def test_a_hanging_name_lookup_takes_no_longer_than_the_timeout(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(20)
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    mirrors = Mirrors(["http://one.invalid/", "http://two.invalid/"], SHORT)
    try:
        with pytest.raises(DataError, match=r"one\.invalid: no answer .*two\.invalid: no answer"):
            fetch(NAME, SIZE, SHA256, mirrors, cache)
        assert time.monotonic() - start < 2 * SHORT + 1.5
    finally:
        released.set()


def test_an_unknown_host_is_reported_as_such(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DataError, match=r"one\.invalid: host name not found"):
        fetch(NAME, SIZE, SHA256, Mirrors(["http://one.invalid/"], TIMEOUT), cache)


def test_a_cache_folder_that_cannot_be_made_is_named(good: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataNotAvailable, match="file/cache cannot be written to"):
        fetch(NAME, SIZE, SHA256, Mirrors([good.address], TIMEOUT), tmp_path / "file" / "cache")


def test_two_processes_can_fetch_into_one_cache_at_once(cache: Path) -> None:
    both_asked = threading.Barrier(2, timeout=20)
    gets = []

    def answer(name: str) -> tuple[int, bytes]:
        if len(gets) < 2:  # held until both processes are there
            gets.append(name)
            both_asked.wait()
        return 200, CONTENT

    code = (
        "import sys; from pathlib import Path; from gpumlp.data.download import Mirrors, fetch;"
        "name, size, sha256, address, folder = sys.argv[1:];"
        "print(fetch(name, int(size), sha256, Mirrors([address], 20), Path(folder)).stat().st_size)"
    )
    with mirror(answer) as server:
        command = [sys.executable, "-c", code, NAME, str(SIZE), SHA256, server.address, str(cache)]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
    assert outputs == [(f"{len(CONTENT)}\n", "")] * 2
    assert server.downloads() == [NAME, NAME]
    assert files_in(cache) == [NAME]
    assert (cache / NAME).read_bytes() == CONTENT


# -- Servers that do not end, or lie


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@contextlib.contextmanager
def raw_server(piece: bytes, *, first: bytes, pause: float = 0.0) -> Iterator[str]:
    """The address of a server that sends `first` and then `piece` again and again, until the client is gone."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(first)
            while not ended.wait(pause):
                connection.sendall(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


UNENDING = {
    "drips": (b"x", HEAD + f"Content-Length: {SIZE}\r\n\r\n".encode(), 0.05, "not complete after 0.7"),
    "drips its header": (b"X: y\r\n", HEAD, 0.05, "no answer within 0.5 s"),
    "sends without end": (bytes(2**16), HEAD + b"\r\n", 0.0, "sent more than the 256,000 bytes of the file"),
    "sends chunks without end": (
        b"8000\r\n" + bytes(2**15) + b"\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        0.0,
        "sent more than the 256,000 bytes",
    ),
    "compresses in transit": (
        b"x",
        HEAD + b"Content-Encoding: gzip\r\n\r\n",
        0.05,
        "compressed the file in transit",
    ),
    "announces more": (
        b"x",
        HEAD + b"Content-Length: 10000000000000\r\n\r\n",
        0.05,
        "announced '10000000000000' bytes",
    ),
    "announces less": (b"x", HEAD + b"Content-Length: 5\r\n\r\n", 0.05, "announced '5' bytes instead of 256,000"),
    "redirects without end": (
        bytes(2**16),
        f"HTTP/1.1 302 Found\r\nLocation: /{NAME}\r\n\r\n".encode(),
        0.0,
        "HTTP 302",
    ),
    "announces nonsense": (b"x", HEAD + b"Content-Length: -1\r\n\r\n", 0.05, "announced '-1' bytes"),
}


@pytest.mark.parametrize(("piece", "first", "pause", "reason"), UNENDING.values(), ids=UNENDING.keys())
def test_a_server_without_end_is_dropped_for_the_next_in_bounded_time_and_memory(
    good: Mirror, cache: Path, piece: bytes, first: bytes, pause: float, reason: str
) -> None:
    with raw_server(piece, first=first, pause=pause) as address:
        start = time.monotonic()
        mirrors = Mirrors([address, good.address], timeout=SHORT, slowest=SIZE / 0.25)
        assert fetch(NAME, SIZE, SHA256, mirrors, cache).read_bytes() == CONTENT
        assert time.monotonic() - start < 3
    assert len(mirrors.failures) == 1
    assert reason in mirrors.failures[0]
    assert files_in(cache) == [NAME]


def test_a_server_without_end_is_a_normal_failure(cache: Path) -> None:
    with (
        raw_server(bytes(2**16), first=HEAD + b"\r\n") as address,
        pytest.raises(DataNotAvailable, match=r"no mirror delivered it .*sent more than"),
    ):
        fetch(NAME, SIZE, SHA256, Mirrors([address], TIMEOUT), cache)
    assert files_in(cache) == []


def test_a_download_without_a_terminal_is_silent(
    good: Mirror, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(NAME, SIZE, SHA256, Mirrors([good.address], TIMEOUT), cache)
    assert capfd.readouterr() == ("", "")


def test_the_bar_of_a_terminal_counts_to_the_end(
    good: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat any output as a terminal
    monkeypatch.setenv("COLUMNS", "120")
    fetch(NAME, SIZE, SHA256, Mirrors([good.address], TIMEOUT), cache)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert NAME in captured.err
    assert "256.0/256.0 kB" in captured.err
