"""Commands overwrite neither their input nor the files of a run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpumlp import MLP, load_digits
from gpumlp.report import write_page
from tests.command_helpers import DIGITS, run


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    assert run("train", *DIGITS, "--hidden", 8, "--epochs", 1, "--quiet", "--out", folder / "run") == 0
    assert run("export", folder / "run", "--format", "safetensors", "--out", folder / "net.safetensors") == 0
    np.save(folder / "in.npy", load_digits()[1].images[:3])
    return folder


@pytest.fixture
def trained(once: Path, tmp_path: Path) -> Path:
    """A folder with a run, an exported network and samples, which a test may change."""
    return Path(shutil.copytree(once, tmp_path / "folder"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "export run --format npz --out run/checkpoint.safetensors",
            "run/checkpoint.safetensors is a file of the",
        ),
        ("export run --format npz --out run/metrics.json", "run/metrics.json is a file of the run in run"),
        ("export run --format safetensors --out run/model.safetensors", "run/model.safetensors is a file of the"),
        ("export net.safetensors --format npz --out net.safetensors", "net.safetensors is read by this command"),
        ("report run --out run/config.json", "run/config.json is a file of the run in run; choose another name"),
        ("report run --out none/page.html", "there is no folder none"),
        ("history run --csv run/history.jsonl", "csv: run/history.jsonl is a file of the run in run"),
        ("history run --csv run", "csv: expected the path of a file to write, got run"),
        ("history run --csv /dev/null", "csv: expected the path of a file to write, but /dev/null is a device"),
        (
            "report run --out in.npy",
            "out: expected a name that ends in .html or .htm, got in.npy; choose such a name",
        ),
        ("export run --format html --out in.npy", "out: expected a name that ends in .html or .htm, got in.npy"),
        (
            "export run --format npz --out in.npy",
            "out: expected a name that ends in .npz, got in.npy; choose such",
        ),
        (
            "export run --format safetensors --out net.onnx",
            "out: expected a name that ends in .safetensors, got net",
        ),
        ("export run --out net.html", "out: expected a name that ends in .onnx, got net.html"),
        ("history run --csv in.npy", "csv: expected a name that ends in .csv, got in.npy; choose such a name"),
        ("predict run in.npy --out net.npz", "out: expected a name that ends in .csv or .npy, got net.npz"),
        ("predict run in.npy --out in.npy", "out: in.npy is read by this command; choose another name"),
        ("predict run in.npy --out run/../in.npy", "is read by this command"),
        ("predict run in.npy --out none/a.npy", "out: there is no folder none"),
    ],
)
def test_no_command_writes_over_a_run_or_its_input(
    trained: Path, words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    before = contents(trained)
    assert run(*words.split()) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
    assert contents(trained) == before


@pytest.mark.parametrize(
    "words",
    [
        ("train", *DIGITS, "--epochs", "1"),
        ("sweep", *DIGITS, "--epochs", "1", "--grid", "momentum=0,0.9"),
        ("reproduce", "digits"),
        ("figures", "activations"),
        ("shuffle", "in.npy", "in.npy"),
    ],
)
def test_no_folder_is_made_with_the_name_of_a_file(
    trained: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    before = contents(trained)
    for name, message in (
        ("", "out: expected a folder, got ''"),
        ("new/net.npz", "out: expected a folder, got new/net.npz, the name of a file; leave out .npz"),
        ("in.npy", "out: expected a folder, got the file in.npy; choose another name"),
    ):
        assert run(*words, *(() if words[0] == "shuffle" else ("--out",)), name) == 2
        assert f"gpumlp-{words[0]}: {message}\n" in capsys.readouterr().err
    assert contents(trained) == before
    assert not (trained / "new").exists()


def test_a_link_to_a_folder_that_is_gone_is_named_as_such(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    Path("runs").symlink_to("cleared")
    message = "runs: expected a folder, found a link to cleared, which does not exist"
    for words in (
        *(("train", *DIGITS), ("train", *DIGITS, "--out", "runs"), ("train", *DIGITS, "--out", "runs/new/one")),
        *(("sweep", *DIGITS, "--grid", "hidden=4"), ("sweep", *DIGITS, "--grid", "hidden=4", "--out", "runs")),
        *(("reproduce", "digits"), ("shuffle", "in.npy", "in.npy", "runs")),
    ):
        assert run(*words) == 1
        assert message in capsys.readouterr().err
    for call in (lambda: MLP([4, 2], device="cpu").save("runs"), lambda: write_page("runs/page.html", "")):
        with pytest.raises(FileNotFoundError, match=re.escape(message.partition(": ")[2])):
            call()
    assert not Path("cleared").exists()


def test_a_file_of_such_a_name_is_written_where_there_is_no_run(trained: Path) -> None:
    (trained / "elsewhere").mkdir()
    out = trained / "elsewhere" / "model.safetensors"
    assert run("export", trained / "run", "--format", "safetensors", "--out", out) == 0
    assert out.is_file()


@pytest.mark.parametrize("name", ["page.htm", "PAGE.HTML"])
def test_a_page_may_have_either_ending(trained: Path, name: str) -> None:
    pytest.importorskip("jinja2")
    for command in (("report",), ("export", "--format", "html")):
        assert run(*command, trained / "run", "--out", trained / name) == 0
        assert (trained / name).read_text(encoding="utf-8").startswith("<!doctype html>")
        (trained / name).unlink()
