"""Ctrl-C or SIGTERM while a command starts ends a command as at any other time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpumlp.interrupts import COMMANDS
from tests.command_helpers import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a signal ends a process on Windows")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A folder for modules that are interrupted as they are imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    return folder


def interrupt(folder: Path, module: str, number: int = signal.SIGINT) -> None:
    lines = "import os, signal, time", f"os.kill(os.getpid(), {int(number)})", "time.sleep(10)"
    # As libraries do that take any error in a part of theirs for one that is missing.
    text = "try:\n" + "".join(f"    {line}\n" for line in lines) + "except BaseException: raise ImportError\n"
    (folder / f"{module}.py").write_text(text)


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


# imported with the package, and with the command
@pytest.mark.parametrize(
    ("command", "module", "number"),
    [
        *((command, "threadpoolctl", signal.SIGINT) for command in COMMANDS),
        *(("train", "tyro", number) for number in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_an_interrupted_import_is_one_line(
    command: str, module: str, number: signal.Signals, interrupted: Path
) -> None:
    interrupt(interrupted, module, number)
    done = python(interrupted, "-m", f"gpumlp.{command}", "--help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"gpumlp-{command}: interrupted\n")


def test_an_interrupt_is_not_lost_in_a_parser_that_takes_any_error(interrupted: Path, tmp_path: Path) -> None:
    program = tmp_path / "gpumlp-info"
    program.write_text(
        "import os, signal, sys, tyro\n"
        "from gpumlp.info import main\n"
        "parse = tyro.cli\n"
        "def cli(*words, **options):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException:\n"
        "        pass\n"
        "    return parse(*words, **options)\n"
        "tyro.cli = cli\n"
        "sys.exit(main())\n"
    )
    done = python(interrupted, str(program))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gpumlp-info: interrupted\n")


@pytest.mark.parametrize("module", ["threadpoolctl", "tyro"])
def test_the_installed_programs_end_so_too(module: str, interrupted: Path, tmp_path: Path) -> None:
    interrupt(interrupted, module)
    program = tmp_path / "gpumlp-history"
    program.write_text("import sys\nfrom gpumlp.history import main\nsys.exit(main())\n")
    done = python(interrupted, str(program), "run")
    assert (done.returncode, done.stderr) == (130, "gpumlp-history: interrupted\n")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_below_mpiexec_the_process_is_killed(
    name: str, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(interrupted, "tyro")
    if name == "SIGTERM":  # which kills on Windows, where there is no other
        (interrupted / "sitecustomize.py").write_text("import signal\ndel signal.SIGKILL\n")
    monkeypatch.setenv("PMI_SIZE", "2")
    done = python(interrupted, "-m", "gpumlp.train", "--help")
    assert (done.returncode, done.stderr) == (-getattr(signal, name), "gpumlp-train: interrupted\n")


AT_EXIT = "atexit.register(os.kill, os.getpid(), number)"
AT_THE_VERY_END = """class End:
    def __del__(self, kill=os.kill, process=os.getpid(), number=number): kill(process, number)
end = End()
"""  # after Python has reset its handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lines", [AT_EXIT, AT_THE_VERY_END])
@pytest.mark.parametrize(("word", "code"), [("missing", 2), ("--help", 0)])
def test_an_interrupt_after_the_work_changes_nothing(
    word: str, code: int, lines: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import atexit, os\nnumber = {int(number)}\n{lines}")
    done = python(tmp_path, "-m", "gpumlp.history", word)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, code > 0)


def test_an_interrupt_in_code_that_a_library_generates_has_the_same_exit_code(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import io, sys\n"
        "class Interrupted(io.TextIOWrapper):\n"
        "    def flush(self):\n"
        "        Interrupted.flush = io.TextIOWrapper.flush\n"
        "        exec('raise KeyboardInterrupt')\n"
        "sys.stdout = Interrupted(io.BytesIO())\n"
    )
    done = python(tmp_path, "-m", "gpumlp.history", "--help")
    assert (done.returncode, done.stderr) == (130, "gpumlp-history: interrupted\n")


def test_a_program_of_the_user_gets_its_exception(interrupted: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, gpumlp\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('mine')\n"
    )
    done = python(interrupted, str(program))
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", "")


# like "&" in a script
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 7), (signal.SIGTERM, 130)])
def test_ctrl_c_that_is_ignored_stays_ignored_but_sigterm_is_an_interrupt(
    number: signal.Signals, code: int, interrupted: Path, tmp_path: Path
) -> None:
    (interrupted / "tyro.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nraise SystemExit(7)\n")
    program = tmp_path / "nohup.py"
    program.write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'gpumlp.info'])\n"
    )
    assert python(interrupted, str(program)).returncode == code


def test_every_command_is_guarded() -> None:
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {f"gpumlp-{name}" for name in COMMANDS} == set(scripts)
