"""Run a Dockerfile's steps without Docker, then its entrypoint with the words after ``--``.

    python scripts/run_dockerfile_steps.py docker/cpu.Dockerfile -- --dataset digits --epochs 5

For machines without a Docker engine. The image is played by an empty folder (``--root``, temporary by default),
its Python by a fresh virtual environment there, and a path such as ``/cache`` by a folder of that name inside.

Checked:
  - every instruction is one known here, and COPY finds its files in a copy of the repository that has had
    ``.dockerignore`` applied to it;
  - the ``pip install`` steps, for real (or, with ``--pip-dry-run``, that their versions can be had together);
  - ENTRYPOINT, in WORKDIR, with only the image's ENV and a minimal PATH beside it.
Not checked:
  - the base image: that it exists, what is in it, its version of Python (this script takes the one that runs it);
  - the steps that make the user and set permissions, which would change this machine: they are listed as NOT
    RUN, and USER and STOPSIGNAL are only read;
  - layers, sizes, the host's driver, anything about a GPU.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# A RUN that begins with one of these is not run.
_CHANGES_THE_MACHINE = ("useradd", "groupadd", "apt-get", "chown")
_ONLY_READ = ("FROM", "USER", "VOLUME", "STOPSIGNAL", "LABEL", "EXPOSE")
# Of this machine's environment, only what pip may need to reach its index.
_KEPT = re.compile(
    r"PIP_.*|(HTTPS?|NO|ALL)_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|OPENBLAS_CORETYPE", re.IGNORECASE
)


class StepError(RuntimeError):
    """A step of the Dockerfile failed or is not understood."""


def parse(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, as pairs of a word and the rest; lines are joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word.upper(), re.sub(r"\s+", " ", rest.strip())) for word, _, rest in pairs]


def copy_context(source: Path, target: Path) -> None:
    """Copy a repository without what its ``.dockerignore`` excludes: the last pattern that matches decides.

    Of Docker's patterns, those this repository uses: names with ``*``, a leading ``!`` or ``**/``.
    """
    ignore_file = source / ".dockerignore"
    lines = ignore_file.read_text(encoding="utf-8").splitlines() if ignore_file.exists() else []
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def excluded(path: Path) -> bool:
        parts, result = path.relative_to(source).parts, False
        for pattern in patterns:
            name = pattern.removeprefix("!").strip("/")
            if name.startswith("**/"):
                matches = any(fnmatch.fnmatch(part, name[3:]) for part in parts)
            else:  # a pattern for a folder holds for all that is in it
                matches = any(fnmatch.fnmatch("/".join(parts[: n + 1]), name) for n in range(len(parts)))
            if matches:
                result = not pattern.startswith("!")
        return result

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if excluded(Path(folder) / name)}

    shutil.copytree(source, target, ignore=ignored)


class Image:
    """A folder that plays an image, as the steps have left it so far."""

    def __init__(self, root: Path, context: Path, pip_dry_run: bool) -> None:
        self.root, self.context, self.pip_dry_run = root, context, pip_dry_run
        self.workdir = root
        self.entrypoint: list[str] = []
        python = root / "venv"
        venv.create(python, with_pip=True)
        kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
        path = os.pathsep.join([str(python / "bin"), "/usr/bin", "/bin"])
        self.env = {**kept, "PATH": path, "HOME": str(root), "LANG": "C.UTF-8"}

    def inside(self, path: str) -> Path:
        """Where a path of the image lies: absolute ones in the root, others in WORKDIR."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.workdir / path

    def step(self, word: str, rest: str) -> None:
        """Do one instruction."""
        print(f"{word} {rest}", flush=True)
        if word == "ENV":
            for setting in shlex.split(rest):
                name, _, value = setting.partition("=")
                self.env[name] = str(self.inside(value)) if value.startswith("/") else value
        elif word == "ARG":
            name, _, value = rest.partition("=")
            self.env.setdefault(name, value)
        elif word == "WORKDIR":
            self.workdir = self.inside(rest)
            self.workdir.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            self._copy(*shlex.split(rest))
        elif word == "RUN":
            self._run(rest)
        elif word == "ENTRYPOINT":
            self.entrypoint = json.loads(rest)
        elif word not in _ONLY_READ:
            raise StepError(f"expected an instruction that this script knows, got {word}")
        if word == "VOLUME":
            for path in json.loads(rest):
                self.inside(path).mkdir(parents=True, exist_ok=True)

    def call(self, words: Sequence[str]) -> None:
        """Run a program as a container would: in WORKDIR, with the image's environment."""
        done = subprocess.run(list(words), cwd=self.workdir, env=self.env)
        if done.returncode:
            raise StepError(f"{shlex.join(words)} failed with exit code {done.returncode}")

    def _copy(self, *paths: str) -> None:
        *sources, target = paths
        for source in sources:
            found, place = self.context / source, self.inside(target)
            if found.is_dir():
                shutil.copytree(found, place, dirs_exist_ok=True)
            elif found.is_file():
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, place)
            else:
                raise StepError(f"COPY expects {source}, which is missing or excluded by .dockerignore")

    def _run(self, command: str) -> None:
        if command.startswith(_CHANGES_THE_MACHINE):
            print("  NOT RUN: it would change this machine")
            return
        if self.pip_dry_run:
            command = command.replace("pip install", "pip install --quiet --dry-run")
        self.call(["/bin/sh", "-euc", command])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, then the entrypoint; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--context", type=Path, default=REPOSITORY, help="the repository (default: this one)")
    parser.add_argument("--root", type=Path, help="an empty or new folder, kept afterwards")
    parser.add_argument("--pip-dry-run", action="store_true", help="resolve versions only, install nothing")
    options, last_words = parser.parse_args(words[:cut]), words[cut + 1 :]
    if options.root is not None and options.root.exists() and any(options.root.iterdir()):
        parser.error(f"--root is expected to be empty, but {options.root} is not")

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root" if options.root is None else options.root.resolve()
        try:
            copy_context(options.context.resolve(), Path(scratch) / "context")
            image = Image(root, Path(scratch) / "context", options.pip_dry_run)
            for word, rest in parse(options.dockerfile.read_text(encoding="utf-8")):
                image.step(word, rest)
            if options.pip_dry_run:
                print("entrypoint NOT RUN: nothing was installed")
            else:
                print(f"running {shlex.join([*image.entrypoint, *last_words])}", flush=True)
                image.call([*image.entrypoint, *last_words])
        except StepError as error:
            print(f"run_dockerfile_steps: {error}", file=sys.stderr)
            return 1
    print(f"all steps passed, with Python {sys.version.split()[0]} in place of the base image")
    return 0


if __name__ == "__main__":
    sys.exit(main())
