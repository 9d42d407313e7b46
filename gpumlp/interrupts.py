"""Ctrl-C while a command is still starting: one line and exit code 130, as later on. SIGTERM acts like Ctrl-C.

Imported before everything else of the package, and imports as little as possible.
"""

from __future__ import annotations

import os
import signal
import sys

COMMANDS = (
    *("train", "sweep", "shuffle", "evaluate", "history", "diagnose", "info", "predict", "export", "figures"),
    *("report", "reproduce"),
)


# Where mpiexec of different MPIs says how many processes it has started.
_MPI_SIZES = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"


def program() -> str | None:
    """The name of the command that this process runs, such as ``gpumlp-train``; None if it runs something else.

    Known even while ``python -m gpumlp.train`` imports the package.
    """
    words = getattr(sys, "argv", [""])
    if words[:1] == ["-m"]:  # Python has not found the module yet, and its name stands in the whole command line
        name = "".join(sys.orig_argv[-len(words) :][:1]).removeprefix("-m")
    else:
        name = os.path.splitext(os.path.basename(words[0] if words else ""))[0].replace("-", ".")
    package, _, command = name.partition(".")
    return f"gpumlp-{command}" if package == "gpumlp" and command in COMMANDS else None


def _open_streams() -> None:
    """Open the standard streams of a command that are closed: the next file would take their number."""
    for stream in range(3 if program() else 0):
        try:
            os.fstat(stream)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _guard_start() -> bool:
    """From now on, an interrupt ends the process, if it is a command's (returned); see `started`.

    SIGTERM is an interrupt from now on: by it batch systems and ``kill`` end a process.
    """
    global _on_interrupt
    name, before = program(), signal.getsignal(signal.SIGINT)
    if name is None or before not in (signal.default_int_handler, signal.SIG_IGN):
        return False

    def end(*_: object) -> None:
        try:
            os.write(2, f"{name}: interrupted\n".encode())
        finally:
            if any(os.environ.get(size, "1") != "1" for size in _MPI_SIZES):
                # Else mpiexec lets the others wait for this one forever. On Windows the other signal kills, too.
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            os._exit(130)  # an exception could get lost in a module that is being imported, or in tyro

    _on_interrupt = end
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)
    if hasattr(signal, "SIGKILL") and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # not on Windows
        signal.signal(signal.SIGTERM, _terminate)
    return True


def _terminate(*_: object) -> None:
    """Interrupt, also a process that ignores Ctrl-C, such as one that a script starts with ``&``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _on_interrupt)
    signal.raise_signal(signal.SIGINT)


def started() -> None:
    """From now on, an interrupt is a KeyboardInterrupt again."""
    global _on_interrupt
    _on_interrupt = signal.default_int_handler
    if getattr(signal.getsignal(signal.SIGINT), "__module__", None) == __name__:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def work_finished() -> None:
    """From now on, an interrupt changes nothing: all that is left of a command's process is to end."""
    for number in (signal.SIGINT, signal.SIGTERM) if _guarded else ():
        if callable(signal.getsignal(number)):  # Python resets its handlers before it ends: SIGTERM would kill
            signal.signal(number, signal.SIG_IGN)
    if _guarded:
        exec("")  # else "python -m" ends by SIGINT, not with 130, if the last interrupt came within another exec


_on_interrupt: signal._HANDLER = None  # what an interrupt does; Ctrl-C may be ignored
_open_streams()
_guarded = _guard_start()
