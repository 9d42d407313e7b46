"""What the commands print: on any standard output, whatever is in names and files."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from benchmarks import markdown, memory, throughput
from gpumlp import load_digits
from gpumlp.command import run as run_command
from gpumlp.terminal import Output, console, printable, standard_streams, write_data
from tests.command_helpers import DIGITS, MAINS, finish, run, spawn

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "compare-cpu.json"
NAMES = (
    "Läufe-数字",
    os.fsdecode(b"bytes\xff"),
    "title\x1b]0;owned\x07",
    "clear\x1b[2J\rline\u202e\x9b",
    "n" * 200,
)

# Each command with all that it can print, for the run "run" in the current folder.
COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "train": (MAINS["train"], f"{' '.join(DIGITS)} --hidden 4 --epochs 1 --out new --overwrite"),
    "train --resume": (MAINS["train"], "--resume run"),
    "train --report": (MAINS["train"], "--resume run --report"),
    "sweep": (MAINS["sweep"], f"{' '.join(DIGITS)} --grid hidden=4,5 --epochs 1 --jobs 1 --out sweep"),
    "reproduce": (MAINS["reproduce"], ""),
    "reproduce digits": (MAINS["reproduce"], "digits --device cpu --jobs 1 --seeds 1 --save results.json"),
    "evaluate": (MAINS["evaluate"], "run"),
    "history": (MAINS["history"], "run"),
    "history, several": (MAINS["history"], "run run/../run"),
    "history --csv": (MAINS["history"], "run --csv epochs.csv"),
    "history --csv -": (MAINS["history"], "run --csv -"),
    "diagnose": (MAINS["diagnose"], "run"),
    "info": (MAINS["info"], ""),
    "predict": (MAINS["predict"], "run run/x.npy"),
    "predict --json": (MAINS["predict"], "run run/x.npy --json"),
    "predict --out": (MAINS["predict"], "run run/x.npy --out p.csv"),
    "export": (MAINS["export"], "run --format npz"),
    "export html": (MAINS["export"], "run --format html"),
    "report": (MAINS["report"], "run"),
    "figures": (MAINS["figures"], "activations --out figures"),
    "benchmarks.memory": (memory.main, "--quick"),
    "benchmarks.throughput": (throughput.main, "--quick --devices cpu --networks 784-10 --out results"),
    "benchmarks.markdown": (markdown.main, str(RESULTS)),
}
every_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    assert run("train", *DIGITS, "--hidden", 4, "--epochs", 1, "--quiet", "--out", folder / "run") == 0
    np.save(folder / "run" / "x.npy", load_digits()[1].images[:3])
    return folder


@pytest.fixture
def trained(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, the current one."""
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(shutil.copytree(once, tmp_path / "work"))
    return Path()


def start(command: str, rename: Callable[[str], str] = str) -> int:
    main, words = COMMANDS[command]
    return main([rename(word) for word in words.split()])


def text_file(encoding: str = "utf-8") -> io.TextIOWrapper:
    """A standard output as Python makes it for a pipe: text that its encoding lacks is an error."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)  # type: ignore[attr-defined]


def broken_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def closed_file() -> io.TextIOWrapper:
    stream = text_file()
    stream.close()
    return stream


# -- Standard output and standard error that cannot be written ---------------------------------------------


@every_command
@pytest.mark.parametrize("stream", [lambda: None, closed_file], ids=["None", "closed"])
def test_without_standard_output_the_work_is_done(
    command: str, stream: Callable[[], Any], trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given = stream()
    monkeypatch.setattr(sys, "stdout", given)
    assert start(command) == 0
    assert sys.stdout is given
    assert capsys.readouterr().err == ""


@every_command
def test_a_closed_pipe_ends_each_command_without_a_message(
    command: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with broken_pipe() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert start(command) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@every_command
def test_a_full_disk_under_standard_output_is_one_line(
    command: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert start(command) == 1
    assert capsys.readouterr().err.endswith(": standard output: No space left on device\n")


@pytest.mark.parametrize("stream", [lambda: None, closed_file, FullDisk], ids=["None", "closed", "full disk"])
@pytest.mark.parametrize("command", ["train --resume", "evaluate", "history", "diagnose", "export", "predict"])
def test_without_standard_error_the_exit_code_tells(
    command: str, stream: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # there is no run
    monkeypatch.setattr(sys, "stderr", stream())
    assert start(command) == 2
    assert capsys.readouterr().out == ""  # where print writes in place of a standard error that is None


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_program_that_is_started_without_its_files_writes_none_of_its_output_elsewhere(
    closed: str, trained: Path
) -> None:
    words = (*DIGITS, "--hidden", 4, "--epochs", 1, "--out", "new")
    assert finish(spawn("train", *words, line=f"{{}} {closed}")) == (0, "", "")
    assert "network:" not in "".join(
        path.read_text(errors="replace") for path in Path("new").iterdir() if path.is_file()
    )


# -- Names and encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        (NAMES[0], "ascii"),
        (NAMES[0] + NAMES[1], "cp1252"),
        ("".join(NAMES[:4]), "utf-8"),
        (NAMES[4], "utf-8"),
    ],
    ids=["ASCII", "cp1252", "UTF-8", "long"],
)
def test_any_name_is_shown_without_controlling_the_terminal(
    name: str, encoding: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("run").rename(name)
    for command in (command for command, (_, words) in COMMANDS.items() if "run" in words):
        out, err = text_file(encoding), text_file(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            assert start(command, lambda word: word.replace("run", name)) == 0, (command, content(err))
        for stream in (out, err):
            assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", content(stream)) is None
        assert content(err) == ""


def test_json_holds_the_names_whatever_standard_output_can_encode(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{name}.npy" for name in (*NAMES, "𝒳")]
    for name in names:
        shutil.copy("run/x.npy", name)
    for encoding in ("utf-8", "ascii", "cp1252"):
        monkeypatch.setattr(sys, "stdout", out := text_file(encoding))
        assert run("predict", "run", *names, "--json") == 0
        assert [record["file"] for record in json.loads(content(out))[::3]] == names
        assert ("数字" in content(out)) == (encoding == "utf-8")


def test_csv_is_not_shortened(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "run/" + "../run/" * 500
    monkeypatch.setattr(sys, "stdout", out := text_file("ascii"))
    assert run("history", name, "--csv", "-") == 0
    assert next(csv.DictReader(content(out).splitlines()))["run"] == name


def test_files_of_csv_hold_names_that_are_not_utf8_as_escapes(trained: Path) -> None:
    Path("run").rename(NAMES[1])
    assert run("history", NAMES[1], "--csv", "epochs.csv") == 0
    assert run("predict", NAMES[1], f"{NAMES[1]}/x.npy", "--out", "p.csv") == 0
    for file in ("epochs.csv", "p.csv"):
        assert "bytes\\udcff" in Path(file).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["a\x1b]0;owned\x07", "a" * 60_000, "a " * 30_000])
def test_what_comes_from_a_file_is_escaped_and_shortened(name: str, trained: Path, capsys: Any) -> None:
    with zipfile.ZipFile("two.npz", "w") as archive:
        for array in (name, "b"):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros(3))
            archive.writestr(f"{array}.npy", buffer.getvalue())
    assert run("predict", "run", "two.npz") == 1
    err = capsys.readouterr().err
    assert "two.npz" in err
    assert len(err) < 5000
    assert not set(err) & {"\x1b", "\x07"}


def test_a_table_shows_long_options_in_a_narrow_column(trained: Path, capsys: Any) -> None:
    shutil.copytree("run", "other")
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps({**config, "dataset": "\x1b[31m" + "a" * 60_000}))
    assert run("history", "run", "other") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) < 1000
    assert "\\x1b[31m" in out


# -- The one place -----------------------------------------------------------------------------------------


def test_plain_text_is_shown_as_it_is() -> None:
    text = "a table:\n\tÄ – 数字 ✓ 🎲 C:\\runs\\1\n"
    assert printable(text, "utf-8") == text


def test_what_other_libraries_print_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", err := text_file("ascii"))

    def work() -> int:
        sys.stderr.write("\x1b[2J数")
        return 0

    assert run_command("program", work) == 0
    assert "\\x1b[2J\\u6570" in content(err)


def test_a_table_in_colour_keeps_its_own_escapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := text_file("cp1252"))
    with standard_streams():
        table = Table("file")
        table.add_row(Text(printable("数\x1b[2J")))
        table.add_row("\x1b]0;owned\x07")  # forgotten
        console(force_terminal=True, color_system="standard").print(table)
    assert "\\u6570\\x1b[2J" in content(out)
    assert "\x1b[1m" in content(out)  # the header
    assert not {"\x1b[2J", "\x1b]", "\x07"} & {content(out)[i : i + n] for i in range(2000) for n in (1, 2, 4)}


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_a_progress_bar(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for words in (
        ["--help"],
        ["--lerning-rate", "\x1b]0;owned\x07"],
        ["--resume", "run"],  # which has all its epochs
        [*DIGITS, "--epochs", "2", "--out", NAMES[2]],
    ):
        stream = Terminal(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        MAINS["train"](words)
        text = content(stream)
        assert re.search(r"\x1b\[[0-9?]", text)
        assert not re.search(r"\\x1b\[|\x1b\]|\x07", text)
        assert "epoch 2/1" not in text
    assert "\x1b[2K" in text  # the bar
    assert "run saved in title\\x1b]0;owned\\x07\n" in text


def test_an_output_has_the_attributes_of_its_stream() -> None:
    stream = text_file("cp1252")
    output = Output(stream)
    assert (output.encoding, output.isatty(), output.buffer) == ("cp1252", False, stream.buffer)


@pytest.mark.parametrize("words", ["run", "--help"])
def test_an_interrupt_while_standard_output_is_full_is_one_line(
    words: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Full())
    assert run("history", words) == 130
    assert capsys.readouterr().err == "gpumlp-history: interrupted\n"


def test_a_closed_pipe_on_windows_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    for system, message in (("nt", ""), ("posix", "program: standard output: Invalid argument\n")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Closed())
            patch.setattr(os, "name", system)
            code = run_command("program", lambda: 0)
        assert (code, capsys.readouterr().err) == (1, message)


def test_a_name_of_several_lines_stays_in_its_row(trained: Path, capsys: Any) -> None:
    shutil.copytree("run", "0a\nb")
    Path("run").rename("a\nb")
    assert run("history", "a\nb", "0a\nb") == 0
    assert sum("a\\nb" in line for line in capsys.readouterr().out.splitlines()) == 2


def test_data_can_be_written_without_a_command(capsys: Any) -> None:
    write_data('{"name": "ä\x7f"}\n')
    assert capsys.readouterr().out == '{"name": "ä\\u007f"}\n'
