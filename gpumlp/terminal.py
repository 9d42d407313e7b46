"""Standard output and standard error: the one place through which everything goes that a command prints."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST_WORD, _LONGEST_LINE = 400, 4000  # characters that are shown whole

# Control characters, some of which a terminal obeys, marks that change the direction of text, and half surrogates,
# which stand for the bytes of a file name that is not UTF-8.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"  # not \t and \n
)
_STYLING = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|\r)")  # what rich and tyro use: colours, movements of the cursor
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


def printable(text: str, encoding: str | None = None) -> str:
    r"""Text that can be shown: control characters as escapes, very long words and lines shortened.

    Args:
        text: from a file or a path, too.
        encoding: characters that it lacks are escaped as well; by default that of standard output.

    >>> print(printable("run \x1b[31m", "ascii"), len(printable("a" * 60_000)))
    run \x1b[31m 227
    """
    text = _LONG_WORD.sub(lambda word: _shortened(word[0], _LONGEST_WORD), text)
    text = "\n".join(_shortened(line, _LONGEST_LINE) for line in text.split("\n"))
    return _encodable(_UNPRINTABLE.sub(_escaped, text), encoding or _encoding(sys.stdout))


def cell(text: str) -> str:
    """Text for a cell of a table, in one line; see `printable`."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _encoding(stream: Any) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _encodable(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    kept = longest // 4
    return f"{text[:kept]} ... {len(text) - 2 * kept:,} characters ... {text[-kept:]}"


def _escaped(character: re.Match[str]) -> str:
    code = ord(character[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Output:
    """A text stream that takes any text: see `printable`; what its encoding lacks is escaped as well.

    Args:
        stream: to write to.
        name: in error messages; without it, errors are ignored.
        styled: whether text may contain colours and movements of the cursor.
    """

    stream: Any = None  # copy.copy asks for attributes before there are any

    def __init__(self, stream: Any, name: str | None = None, *, styled: bool = False) -> None:
        self.stream, self.name, self.styled = stream, name, styled

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:
        return _encoding(self.stream)

    def write(self, text: str) -> int:
        if self.styled:
            parts = _STYLING.split(text)  # every second one is styling
            parts[::2] = [_UNPRINTABLE.sub(_escaped, part) for part in parts[::2]]
            self.write_whole("".join(parts))
        else:
            self.write_whole(printable(text, self.encoding))
        return len(text)

    def write_whole(self, text: str) -> None:
        """Write text as it is, except for what the encoding lacks."""
        with self._errors():
            self.stream.write(_encodable(text, self.encoding))

    def flush(self) -> None:
        with self._errors():
            self.stream.flush()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.name is not None:
                if os.name == "nt" and error.errno == errno.EINVAL:  # so it says that a pipe's reader is gone
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
                error.filename = self.name
                raise


@contextmanager
def standard_streams() -> Iterator[None]:
    """Within it, ``sys.stdout`` and ``sys.stderr`` are an `Output`; what is None or closed drops all text."""
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:

        def usable(stream: Any) -> Any:
            if stream is None or getattr(stream, "closed", False):
                return stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            return stream

        streams: Any = Output(usable(sys.stdout), "standard output"), Output(usable(sys.stderr))
        sys.stdout, sys.stderr = streams
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def styling() -> Iterator[None]:
    """Within it, text that is printed may contain colours."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Output)]
    for stream in streams:
        stream.styled = True
    try:
        yield
    finally:
        for stream in streams:
            stream.styled = False


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Within it, what libraries write to standard error past Python, such as libtiff on damage, is dropped."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def write_data(text: str) -> None:
    r"""Write JSON or CSV to standard output: never shortened; what cannot be shown there becomes ``\uXXXX``."""
    text = _UNPRINTABLE.sub(_as_json, text)
    try:
        text.encode(_encoding(sys.stdout))
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", _as_json, text)
    if isinstance(sys.stdout, Output):
        sys.stdout.write_whole(text)
    else:
        print(text, end="")


def _as_json(character: re.Match[str]) -> str:
    units = character[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A console of rich on standard output or standard error; make text from files and paths `printable` first."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    file: Any = Output(stream.stream, stream.name, styled=True) if isinstance(stream, Output) else None
    return Console(file=file, stderr=stderr, **options)
