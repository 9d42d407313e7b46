"""`python -m gpumlp.figures`: files, output and errors."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gpumlp import figures, load_digits
from gpumlp.extras import MissingExtraError, require
from gpumlp.figures import __main__ as command
from gpumlp.figures.style import save
from gpumlp.records import save_result
from tests.command_helpers import ROOT


def run(*words: object) -> int:
    return command.main([str(word) for word in words])


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.mark.usefixtures("_matplotlib")
def test_pictures_and_numbers_are_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schedules", "activations", "schedules", "--out", tmp_path / "new" / "folder") == 0
    folder = tmp_path / "new" / "folder"
    names = [f"{name}.{kind}" for name in ("activations", "schedules") for kind in ("json", "png", "svg")]
    assert sorted(path.name for path in folder.iterdir()) == names
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["schedules", "activations"]
    assert lines[0].endswith(f"{folder / 'schedules'}.png, .svg, .json")
    assert (folder / "schedules.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(folder / "schedules.svg").getroot().tag.endswith("svg")
    report = json.loads((folder / "schedules.json").read_text(encoding="utf-8"))
    assert report["title"] == "Learning-rate schedules"
    assert report["learning_rates"]["step"][:11] == [0.1] * 10 + [0.05]


@pytest.mark.usefixtures("_matplotlib")
def test_results_of_ones_own_are_drawn(tmp_path: Path) -> None:
    label = int(load_digits()[1].labels[4])
    result = {"record": "digits", "device": "cpu", "hardware": "a CPU", "wrong": [1], "seconds": [1.0]}
    result |= {"test_samples": 360, "curves": [[9, 1]], "mistakes": [[(4, (label + 1) % 10)]]}
    save_result(tmp_path / "own.json", result)
    words = ("--record", "digits", "--results", tmp_path / "own.json", "--out", tmp_path)
    assert run("records", "mistakes", *words) == 0
    curves, wrong = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("records", "mistakes"))
    assert curves["records"]["digits"]["curves"] == [[2.5, 0.2777778]]
    assert (wrong["samples"], wrong["labels"], wrong["predictions"]) == (
        [4],
        [label],
        [{str((label + 1) % 10): 1}],
    )


@pytest.mark.usefixtures("_matplotlib")
def test_a_png_has_no_transparency_and_no_colours_without_need(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    result = figures.schedules()
    for colour, mode in (("#445566", "RGB"), ("#555555", "L")):
        for artist in result.figure.findobj(lambda each: hasattr(each, "set_color")):
            artist.set_color(colour)
        result.figure.set_facecolor(colour)
        save(tmp_path, "one", result)
        picture = image.open(tmp_path / "one.png")
        assert picture.mode == mode
        assert picture.convert("RGB").getpixel((0, 0)) == tuple(bytes.fromhex(colour[1:]))


@pytest.mark.usefixtures("_matplotlib")
def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        assert run("backpropagation", "--seed", 3, "--out", tmp_path / folder) == 0
    for kind in ("png", "svg", "json"):
        first, second = (
            (tmp_path / folder / f"backpropagation.{kind}").read_bytes() for folder in ("one", "other")
        )
        assert first == second


@pytest.mark.usefixtures("_matplotlib")
def test_without_mnist_the_digits_are_used_with_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_dataset", lambda name, folder: (*load_digits(), f"no MNIST in {folder}"))
    assert run("first_layer_weights", "--data-dir", "elsewhere", "--out", tmp_path) == 0
    assert "no MNIST in elsewhere" in capsys.readouterr().err
    assert "(in place of MNIST)" in json.loads((tmp_path / "first_layer_weights.json").read_text())["title"]


def test_all_wrong_options_are_reported_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("schedules", "x", "y", "--seed", -1, "--device", "tpu", "--out", tmp_path / "out")
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"gpumlp-figures: there is no figure x, y; there are: {', '.join(figures.FIGURES)}"
    assert lines[1] == "gpumlp-figures: seed: expected a whole number of 0 or more, got -1"
    assert lines[2].startswith("gpumlp-figures: device is expected to be")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("schedules", "--results", "own.json"), "results: expected only with records, mistakes, got schedules"),
        (("records", "--record", "digits"), "record: expected only with mistakes, got records"),
        (
            ("schedules", "activations", "--data-dir", "mnist"),
            "data_dir: expected only with gradient_flow, regularization, first_layer_weights, learning_curves, "
            "optimizer_noise, distortion, mistakes, got schedules, activations",
        ),
    ],
)
def test_an_option_of_other_figures_is_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--out", tmp_path / "out") == 2
    assert capsys.readouterr() == ("", f"gpumlp-figures: {message}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "new/folder"])
def test_a_file_as_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str) -> None:
    (tmp_path / "file").write_text("mine")
    assert run("schedules", "--out", tmp_path / "file" / below) == 2
    assert capsys.readouterr() == (
        "",
        f"gpumlp-figures: out: expected a folder, got the file {tmp_path / 'file'}; choose another name\n",
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_without_matplotlib_the_error_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_matplotlib(monkeypatch)
    assert run("--out", tmp_path / "out") == 2
    assert capsys.readouterr() == (
        "",
        "gpumlp-figures: figures need matplotlib, which is not installed; install it with "
        'pip install ".[report]"\n',
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingExtraError, match="pip install"):
        figures.schedules()


def test_a_broken_library_is_distinguished_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("no such symbol")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingExtraError, match=r"cannot be imported \(no such symbol\)"):
        require("figures", "matplotlib", "report")


@pytest.mark.usefixtures("_matplotlib")
def test_a_figure_that_cannot_be_drawn_leaves_the_old_files_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = figures.schedules()
    before = {path: path.read_bytes() for path in save(tmp_path, "schedules", result)}

    def fails(*arguments: object, **options: object) -> None:
        if options["format"] == "svg":
            raise OSError("no space")

    monkeypatch.setattr(result.figure, "savefig", fails)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, "schedules", result)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("_matplotlib")
def test_matplotlib_is_imported_only_to_draw_and_settings_are_independent() -> None:
    code = (
        "import sys, gpumlp.figures; assert 'matplotlib' not in sys.modules; import matplotlib;"
        "matplotlib.rcParams['font.size'] = 30; figure, _ = gpumlp.figures.schedules();"
        "assert 'matplotlib.pyplot' not in sys.modules; assert matplotlib.rcParams['font.size'] == 30;"
        "print(figure.axes[0].xaxis.label.get_size())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("9.0\n", "")
