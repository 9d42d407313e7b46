"""fetch: the file comes whole and proved, or every mirror is listed with its reason."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pooch
import pytest

from gpumlp.data import DataError
from gpumlp.data.download import Mirrors, _RichBar, fetch
from gpumlp.data.errors import DataNotAvailable
from tests.data_helpers import Mirror, mirror, serve_folder, sha256

NAME = "values.gz"
CONTENT = bytes(range(256)) * 1000
SHA256 = sha256(CONTENT)
TIMEOUT = 20.0  # never waited for
SHORT = 0.5  # waited for, where a server is silent


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "made on the way"


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
    first, second = (fetch(NAME, SHA256, mirrors, cache) for _ in range(2))
    assert first == second == cache / NAME
    assert first.read_bytes() == CONTENT
    assert good.downloads() == [NAME]
    assert files_in(cache) == [NAME]


def test_an_intact_file_needs_no_network(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT)
    assert fetch(NAME, SHA256, Mirrors([]), cache).read_bytes() == CONTENT


def test_a_damaged_file_is_downloaded_again(good: Mirror, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT[:-1])
    assert fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), cache).read_bytes() == CONTENT


def test_a_damaged_file_is_reported_where_it_cannot_be_downloaded(cache: Path, refusing: str) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(b"damaged")
    with pytest.raises(DataNotAvailable, match=rf"{NAME} is damaged .* connection refused"):
        fetch(NAME, SHA256, Mirrors([refusing], TIMEOUT), cache)


def test_the_second_mirror_is_taken_where_the_first_has_no_such_file(
    good: Mirror, cache: Path, tmp_path: Path
) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([empty.address, good.address], TIMEOUT)
        assert fetch(NAME, SHA256, mirrors, cache).read_bytes() == CONTENT
    assert mirrors.failures == [f"{empty.host}: HTTP 404 for {NAME}"]


def test_a_mirror_that_failed_is_not_asked_for_later_files(good: Mirror, cache: Path, tmp_path: Path) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([empty.address, good.address], TIMEOUT)
        for name in ("one", "two", "three"):
            fetch(name, SHA256, mirrors, cache)
        assert empty.downloads() == ["one"]
    assert good.downloads() == ["one", "two", "three"]
    assert good.requests.count("HEAD one") == 1
    assert not any(line.startswith("HEAD t") for line in good.requests)  # asked once whether it is there


def test_a_file_with_a_wrong_checksum_is_not_kept(cache: Path) -> None:
    with (
        mirror(lambda _: (200, b"another file")) as wrong,
        pytest.raises(DataNotAvailable, match=rf"{wrong.host}: wrong SHA-256 for {NAME}"),
    ):
        fetch(NAME, SHA256, Mirrors([wrong.address], TIMEOUT), cache)
    assert files_in(cache) == []


def test_a_transfer_that_breaks_off_leaves_no_file(cache: Path) -> None:
    with (
        mirror(lambda _: (200, CONTENT), cut_to=100_000) as broken,
        pytest.raises(DataNotAvailable, match=rf"{broken.host}: the transfer broke off for {NAME}"),
    ):
        fetch(NAME, SHA256, Mirrors([broken.address], TIMEOUT), cache)
    assert files_in(cache) == []


def test_every_mirror_is_listed_with_its_reason(cache: Path, refusing: str, silent: str, tmp_path: Path) -> None:
    with serve_folder(tmp_path / "empty") as empty:
        mirrors = Mirrors([refusing, silent, empty.address], SHORT)
        with pytest.raises(DataNotAvailable) as caught:
            fetch(NAME, SHA256, mirrors, cache)
    message = str(caught.value)
    assert f"{NAME} is not in {cache}" in message
    for address, reason in (
        (refusing, "connection refused"),
        (silent, f"no answer within {SHORT} s"),
        (empty.address, f"HTTP 404 for {NAME}"),
    ):
        assert f"{address.removeprefix('http://').rstrip('/')}: {reason}" in message
    assert mirrors.addresses == []


def test_a_silent_server_costs_no_more_than_the_timeout(cache: Path, silent: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer within"):
        fetch(NAME, SHA256, Mirrors([silent], SHORT), cache)
    assert time.monotonic() - start < SHORT + 1.5


def test_a_name_lookup_that_hangs_costs_no_more_than_the_timeout(
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
            fetch(NAME, SHA256, mirrors, cache)
        assert time.monotonic() - start < 2 * SHORT + 1.5
    finally:
        released.set()


def test_an_unknown_host_is_said_to_be_unknown(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DataError, match=r"one\.invalid: host name not found"):
        fetch(NAME, SHA256, Mirrors(["http://one.invalid/"], TIMEOUT), cache)


def test_a_cache_folder_that_cannot_be_made_is_named(good: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataNotAvailable, match="file/cache cannot be written to"):
        fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), tmp_path / "file" / "cache")


def test_two_processes_can_fetch_into_one_cache_at_once(cache: Path) -> None:
    both_asked = threading.Barrier(2, timeout=20)
    gets = []

    def answer(name: str) -> tuple[int, bytes]:
        if len(gets) < 4:  # a HEAD and a GET of each: held until both processes are there
            gets.append(name)
            both_asked.wait()
        return 200, CONTENT

    code = (
        "import sys; from pathlib import Path; from gpumlp.data.download import Mirrors, fetch;"
        "print(fetch(*sys.argv[1:3], Mirrors([sys.argv[3]], 20), Path(sys.argv[4])).stat().st_size)"
    )
    with mirror(answer) as server:
        command = [sys.executable, "-c", code, NAME, SHA256, server.address, str(cache)]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
    assert outputs == [(f"{len(CONTENT)}\n", "")] * 2
    assert server.downloads() == [NAME, NAME]
    assert files_in(cache) == [NAME]
    assert (cache / NAME).read_bytes() == CONTENT


def test_pooch_says_nothing_and_keeps_its_log_level(
    good: Mirror, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = pooch.get_logger()
    level = logger.level
    fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), cache)
    assert capfd.readouterr() == ("", "")
    assert logger.level == level != logging.CRITICAL


def test_the_bar_of_a_terminal_counts_to_the_end(
    good: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bars = []
    build = _RichBar.__init__
    monkeypatch.setattr(_RichBar, "__init__", lambda bar, *args: (bars.append(bar), build(bar, *args))[1])
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take any output for a terminal
    fetch(NAME, SHA256, Mirrors([good.address], TIMEOUT), cache)
    (bar,) = bars
    assert bar.total == len(CONTENT)
    assert bar._progress.tasks[0].completed == len(CONTENT)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert NAME in captured.err
