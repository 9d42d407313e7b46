"""README, documentation and notebooks: their code runs and prints the documented output.

The Python blocks of a page run one after another, and so do its commands, in the same folder. An HTML comment
``<!-- only parsed: REASON -->`` before a block keeps it from running: it needs a GPU, Docker or a network, or it
takes long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpumlp
from gpumlp import load_digits
from gpumlp.diagnostics.rules import CLASS_FINDINGS
from gpumlp.exporting import FORMATS
from gpumlp.extras import EXTRAS
from gpumlp.nn.model_file import MODEL
from gpumlp.training.config import Config, options_marked
from gpumlp.training.run import REPORT, RUN_FILES
from tests.command_helpers import ROOT, run

PAGES = [ROOT / "README.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
FENCE = re.compile(
    r"(?:^<!-- only parsed: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\{?[\w-]+\}?)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    language: str
    text: str
    reason: str | None  # why it is not run


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"].strip("{}"), match["text"], match["reason"]) for match in found]


def commands(text: str) -> list[list[str]]:
    """The commands of a block, split into words; a backslash continues a line, && separates commands."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in line.split("&&") if part.strip()]


def plain(text: str) -> list[str]:
    """Lines without values that depend on the machine: numbers, names of processors, spaces."""
    text = re.sub(r"cpu \([^\n]*?\)(?=;|$)", "cpu", text, flags=re.MULTILINE)
    text = re.sub(r"; no usable GPU: .*", "", text)
    text = re.sub(r", after [\d.]+ s of starting", "", text.replace("BLAS threads", "BLAS thread"))
    return [" ".join(re.sub(r"\d[\d,.]*", "#", line).split()) for line in text.splitlines()]


def numbers(text: str) -> list[float]:
    """The numbers of a line, without those that depend on the machine: speeds, seconds, dates."""
    if "throughput" in text or "run saved" in text or "execution" in text:
        return []
    text = re.sub(r"\d{1,3}(?:,\d{3})+$|[\d.]+ s\b|\d{8}-\d{6}|\d+\.\d+\.\d+", "", text.strip())
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def same_numbers(shown: str, printed: str) -> bool:
    """Do lines agree to 5 %, or 0.03? Training differs a little between machines."""
    pairs = zip(numbers(shown), numbers(printed), strict=True)
    return all(abs(one - other) <= max(0.03, 0.05 * abs(one)) for one, other in pairs)


def assert_shows(shown: str, printed: str, where: str) -> None:
    """Are the lines of a page among those that were printed, in this order? ``...`` stands for any."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        if line.strip() in ("", "..."):
            continue
        found = next((other for other in lines if plain(line) == plain(other) and same_numbers(line, other)), None)
        assert found is not None, f"{where}: {line!r} is not, or not here, in\n{printed}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the files that the pages assume."""
    monkeypatch.chdir(tmp_path)
    test = load_digits()[1]
    np.save("batch.npy", test.images[:4])
    if importlib.util.find_spec("PIL"):
        from PIL import Image

        for index, name in enumerate(["photo.jpg", "scan.png"]):
            ink = np.kron(255 - 255 * test.images[index].reshape(8, 8), np.ones((20, 20)))
            Image.fromarray(np.pad(ink.astype(np.uint8), 60, constant_values=255)).save(name)
    return tmp_path


def main_of(name: str) -> Callable[[list[str]], int]:
    """What ``python -m NAME`` calls."""
    module = importlib.import_module(name)
    return getattr(module, "main", None) or importlib.import_module(f"{name}.__main__").main


def run_command(words: list[str], page: Path) -> str:
    """Run ``python -m gpumlp...`` in this process and return its output; check other commands without running."""
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        wanted = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[2])
        assert wanted, words
        assert set((wanted[1] or "").split(",")) - {""} <= set(extras), words
        return ""
    if words[0] == "python" and words[1] == "-m" and words[2].startswith("gpumlp."):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main_of(words[2])(words[3:])
        assert code == 0, f"{page.name}: {shlex.join(words)} ended with {code}"
        return out.getvalue()
    if words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), words
        return ""
    raise AssertionError(f"{page.name}: this test cannot run {shlex.join(words)}; mark the block")


def check_words(words: list[str], page: Path) -> None:
    """Check that the module, the script and the options of a command exist, without running it."""
    if words[:2] == ["mpiexec", "-n"]:
        words = words[3:]
    if words[0] == "pip":
        run_command(words, page)
    elif words[:2] == ["python", "-m"] and words[2] != "pytest":
        assert importlib.util.find_spec(words[2]), words
        if words[2].startswith("gpumlp."):
            assert_options_exist(words)
    elif words[0] == "dask":
        assert words[1] in ("scheduler", "worker"), words
    elif words[0].startswith("scripts/"):
        assert (ROOT / words[0]).is_file(), words
    elif words[0] == "docker" and "-f" in words:
        assert (ROOT / words[words.index("-f") + 1]).is_file(), words


def assert_options_exist(words: list[str]) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main_of(words[2])(["--help"])
    for option in (word for word in words[3:] if word.startswith("--")):
        assert option in out.getvalue(), words


def run_python(code: str, names: dict[str, Any], where: str) -> str:
    """Run code as a notebook does, and return its output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, where, "exec"), names)
    return out.getvalue()


@contextlib.contextmanager
def figures_without_windows() -> Iterator[None]:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


def needs_extras(page: Path, text: str) -> None:
    for name in ("sklearn", "matplotlib", "PIL", "onnx", "tensorboardX", "jinja2", "optuna"):
        if name.lower() in text.lower():
            pytest.importorskip(name, reason=f"{page.name} uses {name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs_as_printed(page: Path, folder: Path) -> None:
    needs_extras(page, page.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None  # written by the last block, if it was run
    with figures_without_windows(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, block in enumerate(blocks(page), 1):
            where = f"{page.relative_to(ROOT)}, block {number}"
            if block.language == "text":
                if printed is not None:
                    assert_shows(block.text, printed, where)
            elif block.language == "python":
                if block.reason:
                    compile(block.text, where, "exec")
                else:
                    printed = run_python(block.text, names, where)
            elif block.language == "code-cell":
                if not block.text.startswith(":tags: [figure]"):  # tests/test_figures.py draws every figure
                    run_python(block.text, names, where)
            elif block.language == "sh":
                if block.reason:
                    for words in commands(block.text):
                        check_words(words, page)
                    printed = None
                else:
                    printed = "".join(run_command(words, page) for words in commands(block.text))
            else:
                assert block.language in {"toctree", "eval-rst", "include", "toml"}, where


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_kept_without_outputs(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notebook.parent)
    text = notebook.read_text(encoding="utf-8")
    needs_extras(notebook, text)
    names: dict[str, Any] = {"__name__": "__main__"}
    with figures_without_windows(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, cell in enumerate(json.loads(text)["cells"], 1):
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None
                run_python("".join(cell["source"]), names, f"{notebook.name}, cell {number}")


def test_the_first_command_of_the_readme_prints_what_it_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without options, on MNIST; skipped without MNIST, which the command would download."""
    if not os.environ.get("GPUMLP_DATA_DIR"):
        pytest.skip("GPUMLP_DATA_DIR is not set, so there is no MNIST to train on")
    from gpumlp.train import main

    first, shown = blocks(ROOT / "README.md")[:2]
    assert first.text == 'pip install . && python -m gpumlp.train\npip install ".[test]" && python -m pytest\n'
    monkeypatch.setattr(sys, "argv", ["gpumlp-train"])
    assert main() == 0
    output = capsys.readouterr().out
    (metrics,) = (folder / "runs").glob("*-mnist/metrics.json")
    assert json.loads(metrics.read_text())["test_accuracy"] >= 0.975
    assert_shows(shown.text, output, "README.md")


@pytest.mark.slow
def test_the_preset_of_the_notes_reaches_97_8_percent_on_average(tmp_path: Path) -> None:
    if not os.environ.get("GPUMLP_DATA_DIR"):
        pytest.skip("GPUMLP_DATA_DIR is not set, so there is no MNIST to train on")
    found = []
    for seed in range(2):
        words = ("--dataset", "mnist", "--device", "cpu", "--quiet", "--seed", seed, "--out", tmp_path / str(seed))
        assert run("train", "--preset", "notes", *words) == 0
        found.append(json.loads((tmp_path / str(seed) / "metrics.json").read_text())["test_accuracy"])
    assert statistics.mean(found) >= 0.978


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def text_of(file: str) -> str:
    """The text of a file in one line, so that it does not matter how it is wrapped."""
    return " ".join((ROOT / file).read_text(encoding="utf-8").split())


def test_numbers_of_the_pages_are_those_of_the_code() -> None:
    from gpumlp import Blocks, reproduce, sweep
    from gpumlp.data import tables
    from gpumlp.nn.network import CHUNK
    from gpumlp.training import cluster, search

    words = ["no", "one", "two", "three", "four", "five", "six"]
    sentences = [
        ("docs/sweeps.md", f"once {words[search.FIRST]} runs have finished, and not before epoch {search.LEAST},"),
        ("docs/sweeps.md", f"after {words[cluster.DEATHS + 1]} deaths it has failed"),
        ("docs/sweeps.md", f"cannot be reached for {cluster.CONNECT:.0f} seconds"),
        ("docs/stream.md", f"(`--block`, {Blocks.rows:,})"),
        ("docs/stream.md", f"(`--window`, {Blocks.window})"),
        ("docs/stream.md", f"of at most {tables._MAX_GROUP / 1e6:.0f} MB"),
        ("docs/stream.md", f"copied in chunks of {CHUNK:,}"),
        ("docs/records.md", f"`--seeds` is their number ({reproduce.Options.seeds})"),
        ("gpumlp/sweep.py", f"that --random or --search draws ({sweep._TRIALS})"),
        ("gpumlp/training/config.py", f"Samples in a block ({Blocks.rows})"),
        ("gpumlp/training/config.py", f"in memory at a time ({Blocks.window})"),
    ]
    assert [(page, sentence) for page, sentence in sentences if sentence not in text_of(page)] == []


def test_version_changelog_and_citation_agree() -> None:
    changes = re.findall(
        r"^## (\d+\.\d+\.\d+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert changes[0][0] == gpumlp.__version__
    assert f"\nversion: {gpumlp.__version__}\ndate-released: {changes[0][1]}\n" in citation
    assert (ROOT / "gpumlp/py.typed").is_file()


def test_every_public_name_is_in_the_api_reference() -> None:
    listed = re.findall(r"^   ([\w.]+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(gpumlp.__all__) <= set(listed)


def found_in(file: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


RULES, FIGURES = "gpumlp/diagnostics/rules.py", "gpumlp/figures/__init__.py"  # which needs matplotlib

ON_RESUME = ", ".join(f"`--{name.replace('_', '-')}`" for name in options_marked("on_resume") if name != "resume")


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/runs.md", [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)]),
        ("docs/runs.md", [f"Only {ON_RESUME} can be changed"]),
        ("docs/runs.md", {*RUN_FILES, REPORT} - {MODEL}),
        ("docs/runs.md", [f"| `{name}` |" for name in found_in(FIGURES, r"^        (\w+),$")]),
        (
            "docs/runs.md",
            [f"`{name}`" for name in [*found_in(RULES, r'Finding\(\s*"([a-z ]+)"'), *CLASS_FINDINGS]],
        ),
        ("docs/models.md", [f"| `{name}` |" for name in FORMATS]),
        ("docs/start.md", [f"`{name}`" for name in EXTRAS]),
        ("docs/house.md", [path.name for path in (ROOT / "gpumlp").glob("*.py") if path.name != "__init__.py"]),
        ("docs/house.md", [f" {path.parent.name}/" for path in (ROOT / "gpumlp").glob("*/__init__.py")]),
        ("tests/README.md", [f"| `{name}` |" for name in found_in("pyproject.toml", r'^    "(\w+): ')]),
    ],
)
def test_a_page_has_all_there_is(page: str, names: Collection[str]) -> None:
    text = text_of(page)
    assert names
    assert [name for name in names if not re.search(rf"{re.escape(name)}(?![\w-])", text)] == []


def test_the_extra_docs_brings_all_that_the_documented_modules_import() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    brought = set(extras["docs"][0].removeprefix("gpumlp[").removesuffix("]").split(","))
    assert {"report", "sklearn", "tensorboard", "images", "onnx"} <= brought <= extras.keys()
