"""``python -m gpumlp.predict`` on pictures: which preparation, and what it prints, writes, refuses and returns."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed: pip install '.[images]'")

from gpumlp import MLP, SGD, fit, load_digits
from tests.command_helpers import finish, run, spawn
from tests.photographs import as_file, photograph
from tests.predict_helpers import Captured, network, output

pytestmark = pytest.mark.usefixtures("wide_terminal")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for the built-in digits, saved."""
    train, _ = load_digits()
    model = MLP([64, 32, 10], device="cpu")
    fit(model, train, optimizer=SGD(0.1, momentum=0.9), epochs=15, batch_size=32)
    model.save(tmp_path_factory.mktemp("digits"))
    return tmp_path_factory.getbasetemp() / "digits0"


def pages(folder: Path, numbers: list[int]) -> list[Path]:
    """Photographs of built-in test digits."""
    _, test = load_digits()
    rng = np.random.default_rng(0)
    paths = []
    for number in numbers:
        paths.append(folder / f"{number}.jpg")
        ink = np.pad(test.images[test.labels == number][1], 2)
        paths[-1].write_bytes(as_file(photograph(ink, rng), quality=80))
    return paths


# -- Predictions -------------------------------------------------------------------------------------------


def test_photographs_become_a_table(
    digits: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("predict", digits, *pages(Path(), [0, 4, 6]), "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [line.split() for line in captured.out.splitlines() if ".jpg" in line]
    assert [Path(row[0]).name for row in rows] == ["0.jpg", "4.jpg", "6.jpg"]
    assert [row[1] for row in rows] == ["0", "4", "6"]
    for row in rows:
        assert re.fullmatch(r"\d{1,3}\.\d\d", row[2])
        assert row[3] == "%"  # as in all other lines of gpumlp, "16.71 %"
    assert not re.search(r"\d%", captured.out)
    assert captured.out.split()[:4] == ["file", "class", "probability", "then"]


def test_json_has_every_probability(digits: Path, tmp_path: Path, capsys: Captured) -> None:
    paths = pages(tmp_path, [0, 6])
    assert run("predict", digits, *paths, "--json") == 0
    records = output(capsys)
    assert [(record["file"], record["class"]) for record in records] == [(str(paths[0]), 0), (str(paths[1]), 6)]
    for record in records:
        assert list(record["probabilities"]) == [str(number) for number in range(10)]
        assert abs(sum(record["probabilities"].values()) - 1) < 1e-5
        assert record["probability"] == max(record["probabilities"].values())


def test_pictures_are_one_batch(
    digits: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    predict_proba = MLP.predict_proba

    def counted(self: MLP, samples: np.ndarray) -> np.ndarray:
        sizes.append(len(samples))
        return predict_proba(self, samples)

    monkeypatch.setattr(MLP, "predict_proba", counted)
    assert run("predict", digits, *pages(tmp_path, [1, 2, 3, 4])) == 0
    assert sizes == [4]


def test_a_wrong_file_is_named_and_the_rest_predicted(digits: Path, tmp_path: Path, capsys: Captured) -> None:
    good = pages(tmp_path, [0, 6])
    (tmp_path / "black.png").write_bytes(as_file(np.zeros((90, 60), np.uint8), "PNG"))
    (tmp_path / "cut.png").write_bytes(as_file(photograph(np.eye(8), np.random.default_rng(0)), "PNG")[:900])
    (tmp_path / "text.png").write_text("hello")
    wrong = [tmp_path / name for name in ("black.png", "cut.png", "text.png", "none.jpg", ".")]
    words = [wrong[0], good[0], wrong[1], wrong[2], good[1], wrong[3], wrong[4]]
    assert run("predict", digits, *words, "--json", "--out", tmp_path / "all.csv") == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 5
    for line, path, message in zip(
        lines,
        wrong,
        (
            "no digit found: the picture is black all over",
            "damaged",
            "found a file that is none",
            "no such file",
            "folder",
        ),
        strict=True,
    ):
        assert line.startswith(f"gpumlp-predict: {path}: ")
        assert message in line
    records = json.loads(captured.out)
    assert [record.get("class") for record in records] == [None, 0, None, None, 6, None, None]
    assert "black all over" in records[0]["error"]
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 3


def test_an_array_of_fewer_rows_than_files_says_which_have_none(
    digits: Path, tmp_path: Path, capsys: Captured
) -> None:
    good = pages(tmp_path, [0, 6])
    words = [good[0], tmp_path / "none.png", good[1], tmp_path / "neither.png"]
    assert run("predict", digits, *words, "--out", tmp_path / "p.npy") == 1
    assert np.load(tmp_path / "p.npy").argmax(axis=1).tolist() == [0, 6]
    assert capsys.readouterr().err.splitlines()[2:] == [
        f"gpumlp-predict: {tmp_path / 'p.npy'}: has 2 rows, none for {words[1]}, {words[3]}; "
        "--out FILE.csv names the file of each row"
    ]
    assert run("predict", digits, *good, "--out", tmp_path / "p.npy") == 0
    assert capsys.readouterr().err == ""


def test_nothing_is_written_where_nothing_could_be_predicted(
    digits: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert run("predict", digits, tmp_path / "none.png", "--out", tmp_path / "all.npy") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_standard_input_is_a_dash(digits: Path, tmp_path: Path) -> None:
    (path,) = pages(tmp_path, [6])
    for content, expected in ((path.read_bytes(), 6), (b"", None), (b"hello", None)):
        (tmp_path / "input").write_bytes(content)
        with (tmp_path / "input").open("rb") as file:
            code, out, err = finish(spawn("predict", digits, "-", "--json", stdin=file))
        (record,) = json.loads(out)
        assert record["file"] == "-"
        if expected is None:
            assert code == 1
            assert err.startswith("gpumlp-predict: standard input: expected a ")
        else:
            assert (code, err, record["class"]) == (0, "", expected)


def test_without_pillow_pictures_are_refused_and_arrays_predicted(
    digits: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = pages(tmp_path, [1])
    _, test = load_digits()
    np.save(tmp_path / "x.npy", test.images[:3])
    for name in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert run("predict", digits, tmp_path / "x.npy") == 0
    capsys.readouterr()
    assert run("predict", digits, *paths) == 2
    assert "pip install '.[images]'" in capsys.readouterr().err


# -- Which preparation -------------------------------------------------------------------------------------


def test_the_preparation_is_that_of_the_training(tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "page.png"
    page.write_bytes(as_file(photograph(np.eye(8), np.random.default_rng(0)), "PNG"))
    classes = {}
    for name, shape, dtype, words in (
        ("mnist", (28, 28), "uint8", ()),
        ("digits", (8, 8), "float32", ()),
        ("cifar.npz", (16, 12, 3), "uint8", ()),
        ("letters.npz", (28, 28), "uint8", ()),
        ("letters.npz", (28, 28), "uint8", ("--preparation", "mnist")),
    ):
        network(tmp_path / name, shape, dtype, name)
        assert run("predict", tmp_path / name, page, "--json", *words) == 0
        classes[name, words] = output(capsys)[0]["probabilities"]
    assert classes["letters.npz", ("--preparation", "mnist")] == classes["mnist", ()] != classes["letters.npz", ()]


@pytest.mark.parametrize(
    ("shape", "dtype", "words", "message"),
    [
        (
            (12,),
            "float64",
            (),
            "expected samples of 12 values in a .npy or .npz file, as the network was trained on",
        ),
        ((6, 2, 2), "uint8", (), "expected samples of 6 x 2 x 2 values"),
        ((4, 3), "float32", (), "the network was trained on images of float32 in a scale of their own"),
        (
            (4, 3),
            "uint8",
            ("--preparation", "mnist"),
            "the preparation mnist does not suit a network for samples of 4 x 3",
        ),
    ],
)
def test_pictures_are_refused_where_nobody_knows_how(
    shape: tuple, dtype: str, words: tuple, message: str, tmp_path: Path, capsys: Captured
) -> None:
    network(tmp_path, shape, dtype, "own.npz")
    (tmp_path / "page.png").write_bytes(as_file(np.eye(9, dtype=np.uint8), "PNG"))
    assert run("predict", tmp_path, tmp_path / "page.png", *words) == 1
    err = capsys.readouterr().err
    assert f"page.png: {message}" in err
    assert err.count("\n") == 1
