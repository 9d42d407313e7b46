"""What the commands share: a command line from a dataclass, checks of output files, and errors as exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from . import interrupts, terminal
from .backends import DeviceError, check_device_name
from .data import DataError
from .extras import MissingExtraError
from .files import PathError, require_distinct, user_path
from .nn import Committee, ModelFileError
from .training.checkpoint import CheckpointError
from .training.config import ConfigError
from .training.divergence import DivergenceError
from .training.group import GroupError
from .training.jobs import worker_count
from .training.progress import percent
from .training.run import RUN_FILES, SWEEP, TABLE, is_run

T = TypeVar("T")

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
USER_ERRORS = (
    *(ConfigError, DataError, DeviceError, CheckpointError, ModelFileError, MissingExtraError, PathError),
    GroupError,
)
PAGES = (".html", ".htm")  # endings of the names of pages


def parse(
    kind: type[T],
    program: str,
    arguments: Sequence[str] | None,
    default: T | None = None,
    description: str | None = None,
    *,
    lenient: bool = False,
) -> T:
    """A dataclass from the command line; exits with code 2 on an unknown option.

    With `lenient`, numbers that do not parse stay text, for the caller to refuse with all other mistakes at once.
    Flags can be set and unset where there is a `default` other than that of the class, such as that of a run.
    """
    pairs = (tyro.conf.FlagCreatePairsOff,) if default is None or default == kind() else ()
    with terminal.styling():
        result = tyro.cli(
            kind,
            prog=program,
            args=arguments,
            default=default,
            description=description,
            registry=_lenient_numbers() if lenient else None,
            config=(*pairs, tyro.conf.OmitArgPrefixes),
        )
    interrupts.started()
    return cast(T, result)


def value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option, before the command line is parsed as a whole."""
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == option and following is not None:
            return following
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return None


def run(program: str, main: Callable[[], int]) -> int:
    """Run a command's work; turn the errors a user can cause into a message and an exit code.

    What it prints goes through `terminal.Output`.
    """
    with terminal.standard_streams():
        code, message = outcome(main)
        for line in message.split("\n") if message else ():
            print(f"{program}: {line}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except (OSError, KeyboardInterrupt):  # what is left cannot be written, and Python would try again at exit
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        interrupts.work_finished()
        return code


def outcome(main: Callable[[], int]) -> tuple[int, str]:
    """The exit code of a command's work, and a message for the user, in lines; empty for none."""
    try:
        try:
            code = main()
        except SystemExit as end:  # --help, an unknown option
            code = end.code if isinstance(end.code, int) else OK if end.code is None else FAILED
        sys.stdout.flush()
        return code, ""
    except USER_ERRORS as error:
        return BAD_INPUT, str(error)
    except DivergenceError as error:
        return FAILED, str(error)
    except BrokenPipeError:  # the reader of a pipe is gone, as in "| head"
        return FAILED, ""
    except OSError as error:
        if error.errno == errno.ENOENT and not error.filename:  # of os.getcwd; libraries give a text of their own
            return FAILED, "the current folder does not exist any more; change to another one"
        where = f"{error.filename}: " if error.filename else ""
        return FAILED, f"{where}{error.strerror or error}"
    except MemoryError as error:
        return FAILED, f"not enough memory: {error}; use fewer hidden units or a smaller batch_size"
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted"


def load_committee(paths: Sequence[str], device: str = "cpu") -> Committee:
    """The networks in folders of runs or files, as a committee.

    Raises:
        PathError: a run is named twice.
        ModelFileError: as for `Committee.load`; also the networks do not fit together.
        DeviceError: the device cannot be used.
    """
    require_distinct(paths)
    try:
        return Committee.load(*paths, device=device)
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(str(error)) from error


def disagreement_line(disputed: int, samples: int) -> str:
    """How often the members of a committee disagree."""
    return f"the members disagree on {disputed:,} of {samples:,} samples ({percent(disputed / samples)})"


def device_problems(name: str) -> list[str]:
    """The problem with the name of a device, if there is one."""
    try:
        check_device_name(name)
    except ValueError as error:
        return [str(error)]
    return []


def workers(jobs: int | None) -> int:
    """As `worker_count`, for the option jobs. Raises ConfigError."""
    try:
        return worker_count(jobs)
    except ValueError as error:
        raise ConfigError(str(error).replace("n_jobs", "jobs")) from error


def check_output(
    option: str, path: str | Path, inputs: Iterable[str | Path] = (), *, endings: Sequence[str] = ()
) -> None:
    """Check that a command may write a file, before it does any work.

    Args:
        option: the option with the path, for the message.
        path: of the file to write. An existing one is replaced.
        inputs: what the command reads; what is not a file is ignored.
        endings: of file names that fit what is written, such as ".html", in lower case; all if there are none. A
            file of another kind is the user's own, and a typing error must not replace it.

    Raises:
        ConfigError: nothing can or may be written there.
    """
    if not str(path):
        raise ConfigError(f"{option}: expected the path of a file to write, got an empty one")
    file = user_path(path)
    if file.is_dir():
        raise ConfigError(f"{option}: expected the path of a file to write, got {path}")
    if not file.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {file.parent}")
    if file.exists() and not file.is_file():
        raise ConfigError(f"{option}: expected the path of a file to write, but {file} is a device or a pipe")
    if file.name in RUN_FILES and is_run(file.parent):
        raise ConfigError(f"{option}: {file} is a file of the run in {file.parent}; choose another name")
    if file.name in (SWEEP, TABLE) and (file.parent / SWEEP).exists():
        raise ConfigError(f"{option}: {file} is a file of the sweep in {file.parent}; choose another name")
    for name in map(user_path, inputs):
        if file.exists() and name.is_file() and os.path.samefile(file, name):
            raise ConfigError(f"{option}: {file} is read by this command; choose another name")
    if endings and file.suffix.lower() not in endings:
        raise ConfigError(
            f"{option}: expected a name that ends in {' or '.join(endings)}, got {file.name}; choose such a name"
        )


def _lenient_numbers() -> ConstructorRegistry:
    """Numbers that do not parse stay text."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number_or_text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        choices = set(get_args(info.type) or [info.type]) - {NoneType}
        if not choices <= {int, float, str}:
            return None
        numbers = [convert for convert in (int, float) if convert in choices]

        def from_text(words: list[str]) -> Any:
            for convert in numbers:
                with suppress(ValueError):
                    return convert(words[0])
            return words[0]

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="|".join(sorted(convert.__name__.upper() for convert in choices)),
            instance_from_str=from_text,
            is_instance=lambda value: value is None or type(value) in choices,
            str_from_instance=lambda value: ["unset" if value is None else str(value)],
        )

    return registry
