"""``python -m gpumlp.predict``: arrays, pictures, options, output, files and errors."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, SGD, fit, load_digits
from gpumlp.nn import Inputs
from tests.command_helpers import run
from tests.data_helpers import idx_bytes
from tests.photographs import as_file, photograph

pytestmark = pytest.mark.usefixtures("wide_terminal")

Captured = pytest.CaptureFixture[str]


def network(folder: Path, shape: tuple[int, ...], dtype: str, data: str, classes: int = 10) -> MLP:
    """An untrained network for samples of this shape and dtype, saved."""
    model = MLP([int(np.prod(shape)), 8, classes], device="cpu")
    model.inputs = Inputs(shape, dtype, data)
    model.save(folder)
    return model


def output(capsys: Captured) -> Any:
    return json.loads(capsys.readouterr().out)


# -- Arrays ------------------------------------------------------------------------------------------------


def write_arrays(folder: Path, images: np.ndarray) -> dict[str, Path]:
    """The same samples in every format."""
    np.save(folder / "x.npy", images)
    np.savez(folder / "x.npz", x=images)
    np.savez_compressed(folder / "two.npz", x=images, y=np.zeros(3))
    (folder / "x-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / "x-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (folder / "no-suffix").write_bytes((folder / "x.npy").read_bytes())
    return {path.name: path for path in folder.iterdir() if path.is_file()}


def test_batches_go_to_csv_and_npy(tmp_path: Path, capsys: Captured) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 3), dtype=np.uint8)
    files = write_arrays(tmp_path, images)
    model = network(tmp_path / "net", (4, 3), "uint8", "own.npz")
    expected = model.predict_proba(images)
    for name, path in files.items():
        words = ["--array", "x"] if name.endswith(".npz") else []
        assert run("predict", tmp_path / "net", path, *words, "--out", tmp_path / "p.npy") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), expected)
        out = capsys.readouterr().out
        assert "30 more; all are in" in out
    assert run("predict", tmp_path / "net", files["x.npy"], files["x.npz"], "--out", tmp_path / "p.csv") == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "index", "class", *(f"p({number})" for number in range(10))]
    assert [row[0] for row in rows] == [str(files["x.npy"])] * 50 + [str(files["x.npz"])] * 50
    assert [int(row[1]) for row in rows] == [*range(50), *range(50)]
    assert [int(row[2]) for row in rows] == model.predict(images).tolist() * 2
    np.testing.assert_allclose(np.array([row[3:] for row in rows[:50]], dtype=float), expected, rtol=1e-6)


def test_one_sample_is_a_batch_of_one(tmp_path: Path, capsys: Captured) -> None:
    network(tmp_path, (4, 3), "uint8", "own.npz")
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.uint8))
    assert run("predict", tmp_path, tmp_path / "x.npy", "--json") == 0
    assert len(output(capsys)) == 1


@pytest.mark.parametrize(
    ("values", "inputs", "message"),
    [
        (
            np.zeros((5, 13), np.uint8),
            ((4, 3), "uint8", ""),
            "expects 12 features a sample, got 13",
        ),
        (
            np.full((5, 12), 255.0),
            ((4, 3), "uint8", ""),
            "divide the values by 255, or give uint8",
        ),
        (
            np.full((5, 12), 200),
            ((4, 3), "uint8", ""),
            "trained on uint8 pixels, which it divides by",
        ),
        (np.full((5, 64), 16.0), ((8, 8), "float32", "digits"), "got float64 up to 16; divide them by 16"),
        (np.full((5, 13), 16.0), ((8, 8), "float32", "digits"), "expects 64 features a sample, got 13"),
        (
            np.zeros((5, 12), np.uint8),
            ((12,), "float32", ""),
            "trained on float32, got uint8 (shape (5, 12));",
        ),
        (np.zeros((5, 3, 4)), ((4, 3), "float32", ""), "trained on samples of 4 x 3, got 3 x 4 (shape (5, 3, 4))"),
        (np.full((5, 12), np.nan), ((12,), "float32", ""), "images must be finite"),
        (np.zeros(12), ((12,), "float32", ""), "use images.reshape(1, -1) for one sample"),
        (np.array(["a", "b"]), ((12,), "float32", ""), "must be integers or real floats"),
        (np.array([{}, {}]), ((12,), "float32", ""), "found pickled objects, which are not loaded"),
    ],
)
def test_arrays_of_another_size_or_scale_are_refused(
    values: np.ndarray, inputs: tuple, message: str, tmp_path: Path, capsys: Captured
) -> None:
    network(tmp_path, *inputs)
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    assert run("predict", tmp_path, tmp_path / "x.npy") == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_pixels_says_what_uint8_is(tmp_path: Path, capsys: Captured) -> None:
    model = network(tmp_path, (4, 3), "float32", "own.npz")
    values = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    np.save(tmp_path / "x.npy", values)
    for word, scale in (("true", 255), ("false", 1)):
        assert run("predict", tmp_path, tmp_path / "x.npy", "--pixels", word, "--out", tmp_path / "p.npy") == 0
        expected = model.predict_proba((values / scale).astype(np.float32))
        np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected, rtol=1e-5)


def test_a_network_without_training_data_accepts_any_scale(tmp_path: Path, capsys: Captured) -> None:
    MLP([12, 3], device="cpu").save(tmp_path)
    for values in (np.zeros((5, 12), np.uint8), np.full((5, 4, 3), 200.0)):
        np.save(tmp_path / "x.npy", values)
        assert run("predict", tmp_path, tmp_path / "x.npy") == 0


def test_a_damaged_picture_is_one_line_whatever_libraries_print(tmp_path: Path, capfd) -> None:
    network(tmp_path / "model", (28, 28), "uint8", "mnist")
    values = [(256, 9999), (257, 9999), (258, 8), (259, 5), (262, 1), (273, 8), (277, 1), (278, 9999), (279, 9)]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values)
    layers = tags.replace(*(struct.pack("<HHII", 277, 4, 1, count) for count in (1, 65535)))
    for name, entries in (("strip.tif", tags), ("layers.tif", layers)):
        (tmp_path / name).write_bytes(b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(100))
        assert run("predict", tmp_path / "model", tmp_path / name) == 1
        captured = capfd.readouterr()
        assert len((captured.out + captured.err).splitlines()) == 1, captured
        assert name in captured.err


def test_damaged_arrays_are_refused(tmp_path: Path, capsys: Captured) -> None:
    network(tmp_path / "net", (4, 3), "uint8", "own.npz")
    files = write_arrays(tmp_path, np.zeros((5, 4, 3), np.uint8))
    assert run("predict", tmp_path / "net", files["two.npz"]) == 1
    assert "holds x, y; name the one to predict with --array NAME" in capsys.readouterr().err
    assert run("predict", tmp_path / "net", files["two.npz"], "--array", "z") == 1
    assert "expected an array z, found x, y" in capsys.readouterr().err
    for path in files.values():
        path.write_bytes(path.read_bytes()[:-9])
        assert run("predict", tmp_path / "net", path) == 1
        err = capsys.readouterr().err
        assert f"{path.name}: " in err
        assert "Traceback" not in err
        assert err.count("\n") == 1


def test_outputs_that_are_not_finite_are_an_error(tmp_path: Path, capsys: Captured) -> None:
    model = network(tmp_path, (12,), "float32", "own.npz")
    state = {name: np.full_like(tensor, 3e38) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    model.save(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((5, 12), np.float32))
    assert run("predict", tmp_path, tmp_path / "x.npy") == 1
    assert "outputs are not finite" in capsys.readouterr().err


def test_values_too_large_for_the_network_are_refused_in_one_line(tmp_path: Path, capsys: Captured) -> None:
    MLP([12, 3], device="cpu").save(tmp_path)
    np.save(tmp_path / "x.npy", np.full((5, 12), -1e39))
    assert run("predict", tmp_path, tmp_path / "x.npy") == 1
    err = capsys.readouterr().err
    assert "x.npy: images are expected to be finite in float32, but 60 of 60 values are NaN" in err
    assert err.count("\n") == 1


# -- Pictures ----------------------------------------------------------------------------------------------


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
        assert row[3] == "%"  # with a space, as everywhere in gpumlp: "16.71 %"
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
    logits = MLP.logits

    def counted(self: MLP, samples: np.ndarray, **options: Any) -> np.ndarray:
        sizes.append(len(samples))
        return logits(self, samples, **options)

    monkeypatch.setattr(MLP, "logits", counted)
    assert run("predict", digits, *pages(tmp_path, [1, 2, 3, 4])) == 0
    assert sizes == [4]


def test_a_wrong_file_is_named_and_the_rest_predicted(digits: Path, tmp_path: Path, capsys: Captured) -> None:
    good = pages(tmp_path, [0, 6])
    (tmp_path / "black.png").write_bytes(as_file(np.zeros((90, 60), np.uint8), "PNG"))
    (tmp_path / "cut.png").write_bytes(as_file(photograph(np.eye(8), np.random.default_rng(0)), "PNG")[:900])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    wrong = [tmp_path / name for name in ("black.png", "cut.png", "text.png", "none.jpg", "empty")]
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
            "found a file that is not a picture",
            "no such file",
            "expected a folder with pictures, found none in it",
        ),
        strict=True,
    ):
        name = path.name if path.is_file() else path  # all of a path that may be wrong
        assert line.startswith(f"gpumlp-predict: {name}: ")
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


def test_standard_input_is_a_dash(
    digits: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = pages(tmp_path, [6])
    for content, expected in ((path.read_bytes(), 6), (b"", None), (b"hello", None)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code = run("predict", digits, "-", "--json")
        captured = capsys.readouterr()
        (record,) = json.loads(captured.out)
        assert record["file"] == "-"
        if expected is None:
            assert code == 1
            assert captured.err.startswith("gpumlp-predict: standard input: expected a ")
        else:
            assert (code, captured.err, record["class"]) == (0, "", expected)


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
    assert 'pip install ".[images]"' in capsys.readouterr().err


def test_the_preparation_matches_the_training_data(tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "page.png"
    page.write_bytes(as_file(photograph(np.eye(8), np.random.default_rng(0)), "PNG"))
    classes = {}
    for name, shape, dtype, words in (
        ("mnist", (28, 28), "uint8", ()),
        ("digits", (8, 8), "float32", ()),
        ("cifar.npz", (16, 12, 3), "uint8", ()),
        ("letters.npz", (28, 28), "uint8", ("--preparation", "resize")),
        ("letters.npz", (28, 28), "uint8", ("--preparation", "mnist")),
    ):
        folder = tmp_path / Path(name).stem
        network(folder, shape, dtype, name)
        assert run("predict", folder, page, "--json", *words) == 0
        (record,) = output(capsys)
        assert record["preparation"] == (words[1] if words else {"cifar.npz": "resize"}.get(name, name))
        classes[name, words] = record["probabilities"]
    resized, digit = (classes["letters.npz", ("--preparation", way)] for way in ("resize", "mnist"))
    assert digit == classes["mnist", ()] != resized


@pytest.mark.parametrize("data", ["mnist-like", "fashion-mnist", "kmnist", "emnist-letters", "own.npz"])
def test_pictures_for_other_data_than_digits_are_used_as_they_are_or_the_preparation_is_asked_for(
    data: str, tmp_path: Path, capsys: Captured
) -> None:
    model = network(tmp_path / "net", (28, 28), "uint8", data)
    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    (tmp_path / "exact.png").write_bytes(as_file(image, "PNG"))
    (tmp_path / "exact-rgb.png").write_bytes(as_file(np.repeat(image[..., None], 3, axis=2), "PNG"))
    assert run("predict", tmp_path / "net", tmp_path / "exact.png", tmp_path / "exact-rgb.png", "--json") == 0
    for record in output(capsys):
        assert record["preparation"] == "none"
        found, expected = list(record["probabilities"].values()), model.predict_proba(image[None])[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert run("predict", tmp_path / "net", tmp_path / "exact.png") == 0
    assert "1 picture: used as is" in capsys.readouterr().out
    (tmp_path / "larger.png").write_bytes(as_file(np.pad(image, 1), "PNG"))
    (tmp_path / "colour.png").write_bytes(as_file(np.stack([image, image, image.T], axis=2), "PNG"))
    for name in ("larger.png", "colour.png"):
        assert run("predict", tmp_path / "net", tmp_path / name) == 1
        assert f"{name}: expected a grey picture of 28 x 28 pixels, as the network was" in capsys.readouterr().err
        assert run("predict", tmp_path / "net", tmp_path / name, "--preparation", "resize") == 0
        assert "1 picture: resized to the network's size" in capsys.readouterr().out


def test_what_the_pixels_of_pictures_are_must_be_said_for_imported_networks(
    tmp_path: Path, capsys: Captured
) -> None:
    network(tmp_path / "net", (784,), "any", "")
    page = tmp_path / "page.png"
    page.write_bytes(as_file(photograph(np.eye(8), np.random.default_rng(0)), "PNG"))
    words = [tmp_path / "net", page, "--preparation", "mnist", "--json"]
    assert run("predict", *words) == 1
    assert "say with --pixels true or false whether their values, 0 to 255, are divided" in capsys.readouterr().err
    answers = []
    for pixels in ("true", "false"):
        assert run("predict", *words, "--pixels", pixels) == 0
        answers.append(output(capsys)[0]["probabilities"])
    assert answers[0] != answers[1]


# -- Folders, patterns, and names -------------------------------------------------------------------------


def test_a_folder_is_its_pictures_and_a_pattern_is_expanded(
    digits: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, numbers in (("one", [0, 6]), ("two", [4, 6])):
        Path(folder).mkdir()
        pages(Path(folder), numbers)
        Path(folder, "notes.txt").write_text("no picture")
        Path(folder, ".hidden.jpg").write_text("no picture")
    for words, expected in (
        (["one"], ["one/0.jpg", "one/6.jpg"]),
        (["two", "one/6.jpg"], ["two/4.jpg", "two/6.jpg", "one/6.jpg"]),
        (["*/6.jpg"], ["one/6.jpg", "two/6.jpg"]),
        (["t*"], ["two/4.jpg", "two/6.jpg"]),
    ):
        assert run("predict", digits, *words, "--json") == 0
        assert [record["file"] for record in output(capsys)] == [str(Path(name)) for name in expected]
    Path("6[1].jpg").write_bytes(Path("one/6.jpg").read_bytes())  # a name, though it reads like a pattern
    assert run("predict", digits, "6[1].jpg", "--json") == 0
    assert run("predict", digits, "none/*.png") == 1
    assert "none/*.png: expected a pattern that files match, found none" in capsys.readouterr().err


def test_a_message_is_one_line_whatever_the_file_is_called(digits: Path, capsys: Captured) -> None:
    assert run("predict", digits, "a\nb.png") == 1
    assert "gpumlp-predict: a\\nb.png: expected a picture" in capsys.readouterr().err


def test_names_are_short_and_one_line_says_what_was_written(
    digits: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    deep = tmp_path / "a-folder-with-a-long-name" / "and-one-inside-it"
    deep.mkdir(parents=True)
    (page,) = pages(deep, [6])
    long = deep / f"{'n' * 80}.jpg"
    long.write_bytes(page.read_bytes())
    (deep / "text.png").write_text("no picture")
    assert run("predict", digits, deep, "--out", tmp_path / "all.csv") == 1
    captured = capsys.readouterr()
    assert len([line for line in captured.out.splitlines() if line.split()[1:2] == ["6"]]) == 2
    assert re.search(r"^ *6\.jpg +6 ", captured.out, re.MULTILINE)
    assert re.search(r"^ *n+\.\.\.n+\.jpg +6 ", captured.out, re.MULTILINE)
    assert captured.out.splitlines()[-1] == f"written: {tmp_path / 'all.csv'}"
    assert captured.err.startswith("gpumlp-predict: text.png: expected a picture (PNG, ")
    assert str(page) in (tmp_path / "all.csv").read_text()


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
        ((4, 3), "float32", (), "the network was trained on images of float32 with a scale of their own"),
        (
            (4, 3),
            "uint8",
            ("--preparation", "mnist"),
            "the preparation mnist does not suit a network for samples of 4 x 3",
        ),
    ],
)
def test_pictures_are_refused_if_the_preparation_is_unknown(
    shape: tuple, dtype: str, words: tuple, message: str, tmp_path: Path, capsys: Captured
) -> None:
    network(tmp_path, shape, dtype, "own.npz")
    (tmp_path / "page.png").write_bytes(as_file(np.eye(9, dtype=np.uint8), "PNG"))
    assert run("predict", tmp_path, tmp_path / "page.png", *words) == 1
    err = capsys.readouterr().err
    assert f"page.png: {message}" in err
    assert err.count("\n") == 1


# -- Options and classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net"], "expected one file or more to predict"),
        (["net", "-", "-"], "- can be given only once"),
        (["net", "a.png", "--preparation", "magic"], "preparation: expected one of auto, mnist, digits, resize"),
        (["net", "a.png", "--out", "a.txt"], "out: expected a name that ends in .csv or .npy, got a.txt"),
        (["net", "a.png", "--out", "none/a.csv"], "out: there is no folder none"),
        (["net", "a.png", "--device", "tpu"], "device is expected to be"),
        (["none", "a.png"], "there is no run or saved network none"),
        (
            ["net", "a.npy", "b/c.png", "--array", "x"],
            "array: expected only with an .npz file, got a.npy, c.png\n",
        ),
    ],
)
def test_bad_options_are_refused_in_words(
    words: list, message: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "net", (12,), "float32", "")
    assert run("predict", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_names_of_classes_are_shown(tmp_path: Path, capsys: Captured) -> None:
    model = network(tmp_path, (4, 4), "uint8", "flowers.npz", classes=3)
    model.class_names = ("rose", "[lily]", "tulip")
    model.save(tmp_path)
    np.save(tmp_path / "x.npy", np.arange(32, dtype=np.uint8).reshape(2, 4, 4))
    assert run("predict", tmp_path, tmp_path / "x.npy") == 0
    assert "[lily]" in capsys.readouterr().out
    assert run("predict", tmp_path, tmp_path / "x.npy", "--json") == 0
    assert set(output(capsys)[0]["probabilities"]) == {"rose", "[lily]", "tulip"}


def test_labels_that_apply_are_named(tmp_path: Path, capsys: Captured) -> None:
    model = MLP([4, 3], loss="logistic_cross_entropy", device="cpu")
    model.class_names = ("beach", "sea", "sun")
    model.load_state_dict({"layers.0.weight": np.zeros((4, 3)), "layers.0.bias": np.array([2.0, -1.0, 3.0])})
    model.save(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((2, 4)))
    words = ("predict", tmp_path, tmp_path / "x.npy")
    assert run(*words, "--out", tmp_path / "p.csv") == 0
    assert re.search(r"x.npy\[1\] +sun \(95.26 %\), beach \(88.08 %\) +sea \(26.89 %\)", capsys.readouterr().out)
    with (tmp_path / "p.csv").open(newline="") as file:
        header, row, _ = csv.reader(file)
    assert header == ["file", "index", "labels", "p(beach)", "p(sea)", "p(sun)"]
    assert row[:3] == [str(tmp_path / "x.npy"), "0", "beach; sun"]
    assert run(*words, "--json") == 0
    record = output(capsys)[0]
    assert record["labels"] == ["beach", "sun"]
    assert list(record["probabilities"]) == ["beach", "sea", "sun"]
    model.load_state_dict({"layers.0.weight": np.zeros((4, 3)), "layers.0.bias": np.full(3, -1.0)})
    model.save(tmp_path)
    assert run(*words) == 0
    assert re.search(r"x.npy\[0\] +none +beach", capsys.readouterr().out)


@pytest.mark.parametrize("names", [None, ("no", "yes")])
def test_one_output_for_two_classes_gives_the_probability_of_both(
    tmp_path: Path, capsys: Captured, names: tuple | None
) -> None:
    model = MLP([2, 1], loss="logistic_cross_entropy", device="cpu")
    model.class_names = names
    model.load_state_dict({"layers.0.weight": np.zeros((2, 1)), "layers.0.bias": np.array([-1.0])})
    model.save(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((1, 2)))
    assert run("predict", tmp_path, tmp_path / "x.npy", "--json") == 0
    record, no, yes = output(capsys)[0], *(str(name) for name in names or (0, 1))
    assert str(record["class"]) == no
    assert record["probabilities"] == pytest.approx({no: 0.731, yes: 0.269}, abs=1e-3)
    assert MLP.load(tmp_path, device="cpu").class_names == names


@pytest.mark.parametrize(
    ("loss", "outputs"), [("squared_error", 1), ("squared_error", 8), ("poisson_deviance", 2)]
)
def test_numbers_are_predicted(tmp_path: Path, capsys: Captured, loss: str, outputs: int) -> None:
    model = MLP([4, outputs], loss=loss, device="cpu")
    model.save(tmp_path)
    samples = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)
    expected = model.predict(samples)
    words = ("predict", tmp_path, tmp_path / "x.npy")
    assert run(*words, "--out", tmp_path / "p.npy") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), expected)
    out = capsys.readouterr().out
    assert f"{expected[3, 0]:.6g}" in out
    assert "10 more; all are in" in out
    assert run(*words, "--out", tmp_path / "p.csv") == 0
    header, *rows = (tmp_path / "p.csv").read_text().splitlines()
    assert header == "file,index," + ("value" if outputs == 1 else ",".join(f"value {i}" for i in range(outputs)))
    found = [[float(cell) for cell in row.split(",")[2:]] for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    capsys.readouterr()
    assert run(*words, "--json") == 0
    np.testing.assert_allclose([record["values"] for record in output(capsys)], expected, rtol=1e-6)
