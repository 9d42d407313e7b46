"""The Dockerfiles, as far as they can be checked without Docker."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parent.parent
SCRIPT = REPOSITORY / "scripts" / "run_dockerfile_steps.py"
DOCKERFILES = [REPOSITORY / "docker" / name for name in ("cpu.Dockerfile", "cuda.Dockerfile")]
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_dockerfile_steps", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each_dockerfile
def test_hadolint_finds_nothing(path: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed; pip install '.[dev]' brings it")
    done = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each_dockerfile
def test_the_image_trains_and_not_as_root(path: Path, script: ModuleType) -> None:
    steps = dict(script.parse(path.read_text()))  # of repeated instructions, the last
    assert re.fullmatch(r"python:3\.12\.\d+-slim-bookworm", steps["FROM"])
    assert steps["USER"] == "1000"
    assert json.loads(steps["ENTRYPOINT"]) == ["python", "-m", "gpumlp.train"]
    assert json.loads(steps["VOLUME"]) == ["/cache", "/app/runs"]


@each_dockerfile
def test_pinned_versions_are_those_the_project_asks_for(path: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [requirements.Requirement(line) for line in project["dependencies"]]
    text = path.read_text().replace("${CUPY}", "cupy-cuda13x")
    if path.name.startswith("cuda"):
        wanted += [requirements.Requirement(line) for line in project["optional-dependencies"]["cuda13"]]
    pinned = dict(re.findall(r"([a-z0-9-]+(?:\[ctk\])?)==([0-9.]+)", text))
    names = {str(r.name) + ("[ctk]" if r.extras else ""): r for r in wanted}
    assert pinned.keys() == names.keys()
    for name, version in pinned.items():
        assert names[name].specifier.contains(version)


def test_both_dockerfiles_pin_the_same_versions() -> None:
    cpu, cuda = (set(re.findall(r"[a-z]+==[0-9.]+", path.read_text())) for path in DOCKERFILES)
    assert cpu
    assert cpu <= cuda


def test_dockerignore_leaves_what_is_copied_and_nothing_else(tmp_path: Path, script: ModuleType) -> None:
    source = tmp_path / "source"
    for name in ("gpumlp/nn/a.py", "gpumlp/nn/__pycache__/a.pyc", "pyproject.toml", "LICENSE", "runs/x", ".git/y"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    shutil.copy(REPOSITORY / ".dockerignore", source)
    script.copy_context(source, tmp_path / "target")
    left = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").rglob("*") if p.is_file()}
    assert left == {"gpumlp/nn/a.py", "pyproject.toml", "LICENSE"}


def run_script(dockerfile: Path, context: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(dockerfile), "--context", str(context), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_steps_of_a_small_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello\n")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        "FROM scratch\n# a comment\nENV WHERE=/data \\\n    WHAT=x\nWORKDIR /src\nCOPY hello.txt ./\n"
        'RUN useradd nobody-here\nVOLUME ["/data"]\nRUN cp hello.txt $WHERE\nWORKDIR /data\n'
        'ENTRYPOINT ["python", "-c", "import sys; print(open(sys.argv[1]).read())"]\n'
    )
    done = run_script(dockerfile, tmp_path, "--", "hello.txt")
    assert done.returncode == 0, done.stderr
    assert "NOT RUN" in done.stdout
    assert "\nhello\n" in done.stdout


def test_a_missing_file_fails(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY nothing.txt ./\n")
    done = run_script(tmp_path / "Dockerfile", tmp_path)
    assert done.returncode == 1
    assert "COPY expects nothing.txt" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    "GPUMLP_TEST_DOCKERFILES" not in os.environ,
    reason="installs packages from the network: set GPUMLP_TEST_DOCKERFILES=1",
)
@each_dockerfile
def test_real_steps(path: Path) -> None:
    cuda = path.name.startswith("cuda")  # 2 GB: only resolved
    words = ["--pip-dry-run"] if cuda else ["--", "--dataset", "digits", "--min-accuracy", "0.95", "--quiet"]
    done = run_script(path, REPOSITORY, *words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_extra_for_the_documentation_brings_all_that_its_modules_import() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    own, pdoc = extras["docs"]
    assert pdoc.startswith("pdoc>=")
    brought = set(own.removeprefix("gpumlp[").removesuffix("]").split(","))
    assert {"report", "sklearn", "tensorboard", "images", "onnx"} <= brought <= extras.keys()
