"""``python -m gpumlp.predict``: its options, the names of classes, and samples that are arrays."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from gpumlp import MLP
from tests.command_helpers import run
from tests.data_helpers import idx_bytes
from tests.predict_helpers import Captured, network, output

pytestmark = pytest.mark.usefixtures("wide_terminal")


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
        assert "30 more; --out FILE.csv writes all" in out
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
        (np.zeros((5, 13), np.uint8), ((4, 3), "uint8", ""), r"expected 12 values a sample (4 x 3), got 13"),
        (np.full((5, 12), 255.0), ((4, 3), "uint8", ""), "expected uint8, or values from 0 to 1"),
        (np.full((5, 12), 200), ((4, 3), "uint8", ""), "got float32 up to 200; divide them by 255"),
        (np.full((5, 64), 16.0), ((8, 8), "float32", "digits"), "got float64 up to 16; divide them by 16"),
        (np.zeros((5, 12), np.uint8), ((12,), "float32", ""), "got uint8, which is divided by 255"),
        (np.full((5, 12), np.nan), ((12,), "float32", ""), "images must be finite"),
        (np.zeros(12), ((12,), "float32", ""), "use images.reshape(1, -1) for one sample"),
        (np.array(["a", "b"]), ((12,), "float32", ""), "must be integers or real floats"),
        (np.array([{}, {}]), ((12,), "float32", ""), "allow_pickle=False"),
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


def test_a_network_that_was_never_trained_takes_what_it_gets(tmp_path: Path, capsys: Captured) -> None:
    MLP([12, 3], device="cpu").save(tmp_path)
    for values in (np.zeros((5, 12), np.uint8), np.full((5, 4, 3), 200.0)):
        np.save(tmp_path / "x.npy", values)
        assert run("predict", tmp_path, tmp_path / "x.npy") == 0


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
        assert err.startswith(f"gpumlp-predict: {path}: ")
        assert "Traceback" not in err
        assert err.count("\n") == 1


def test_outputs_that_are_no_numbers_are_no_prediction(tmp_path: Path, capsys: Captured) -> None:
    model = network(tmp_path, (12,), "float32", "own.npz")
    state = {name: np.full_like(tensor, np.nan) for name, tensor in model.state_dict().items()}
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


# -- Options and classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net"], "expected one file or more to predict"),
        (["net", "-", "-"], "- can be given only once"),
        (["net", "a.png", "--preparation", "magic"], "preparation: expected one of auto, mnist, digits, resize"),
        (["net", "a.png", "--out", "a.txt"], "out: expected FILE.csv or FILE.npy, got 'a.txt'"),
        (["net", "a.png", "--out", "none/a.csv"], "out: there is no folder none"),
        (["net", "a.png", "--device", "tpu"], "device is expected to be"),
        (["none", "a.png"], "there is no run or saved network none"),
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


def test_a_regression_has_no_classes(tmp_path: Path, capsys: Captured) -> None:
    MLP([12, 3], loss="squared_error", device="cpu").save(tmp_path)
    assert run("predict", tmp_path, tmp_path / "x.npy") == 2
    assert "the network has the loss squared_error, and so no probabilities of classes" in capsys.readouterr().err
