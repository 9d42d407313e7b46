"""``python -m gpumlp.export``: every format of a run or a network, and pages to draw on."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, Inputs, LeakyReLU, load_digits
from gpumlp.exporting import FORMATS
from gpumlp.report import report_page
from tests.command_helpers import DIGITS, run
from tests.data_helpers import small_mnist, write_files


def test_the_safetensors_file_is_loaded_again(tmp_path: Path) -> None:
    model = MLP([784, 40, 10], LeakyReLU(0.3), device="cpu", dtype="float64")
    model.save(tmp_path)
    assert run("export", tmp_path, "--format", "safetensors", "--out", tmp_path / "a.safetensors") == 0
    loaded = MLP.load(tmp_path / "a.safetensors", device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(loaded.logits(images), model.logits(images))


def test_a_run_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert run("train", *DIGITS, "--hidden", 8, "--epochs", 1, "--quiet", "--out", tmp_path / "run") == 0
    for kind in FORMATS:
        assert run("export", tmp_path / "run", "--format", kind) == 0
        path = tmp_path / "run" / f"network.{kind}"
        assert capsys.readouterr().out == f"{path}: MLP([64, 8, 10]), {path.stat().st_size:,} bytes\n"
    _, test = load_digits()
    program = onnxruntime.InferenceSession(tmp_path / "run" / "network.onnx", providers=["CPUExecutionProvider"])
    model = MLP.load(tmp_path / "run", device="cpu")
    (found,) = program.run(["probabilities"], {"samples": test.images})
    np.testing.assert_allclose(found, model.predict_proba(test.images), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net", "--format", "pickle"], "format: expected one of onnx, safetensors, npz, html"),
        (["net", "--format", "npz", "--out", "none/a.npz"], "out: there is no folder none"),
        (["net", "--format", "npz", "--out", "net"], "out: expected the path of a file to write, got net"),
        (["none", "--format", "npz"], "there is no run or saved network none"),
        (["net", "--data-dir", "mnist"], "data_dir: expected only with format html, got onnx"),
        (
            ["net", "--format", "html", "--data-dir", "mnist"],
            "data_dir: expected only with a training run, got net",
        ),
    ],
)
def test_bad_options_are_refused_in_words(
    words: list, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    MLP([3, 2], device="cpu").save("net")
    assert run("export", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["net", "model.safetensors"]


def test_without_onnx_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    MLP([3, 2], device="cpu").save(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run("export", tmp_path) == 2
    assert "exports to ONNX need onnx" in (err := capsys.readouterr().err)
    assert 'pip install ".[onnx]"' in err
    assert not (tmp_path / "network.onnx").exists()


def save_network(folder: Path, dtype: str, class_names: tuple[str | int, ...] | None = None) -> None:
    """An untrained network for images of 8 x 8 in three classes."""
    model = MLP([64, 3], device="cpu")
    model.inputs, model.class_names = Inputs((8, 8), dtype, "own.npz"), class_names
    model.save(folder)


def page_of(folder: Path) -> str:
    """The page that the command writes for a network."""
    assert run("export", folder, "--format", "html") == 0
    return (folder / "network.html").read_text(encoding="utf-8")


def networks_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script[^>]*id="gpumlp-networks"[^>]*>(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize(
    ("shape", "data"), [((28, 28), "mnist"), ((8, 8), "digits"), ((12, 9), "own.npz"), ((8, 8, 1), "own.npz")]
)
def test_the_page_to_draw_on_holds_the_network(shape: tuple[int, int], data: str, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    model = MLP([shape[0] * shape[1], 8, 10], device="cpu")
    model.inputs = Inputs(shape, "uint8", data)
    model.save(tmp_path)
    page = page_of(tmp_path)
    assert page.lstrip().lower().startswith("<!doctype html")
    title = "Draw a digit" if data in ("mnist", "digits") else "Draw for the network"
    assert f"<h1>{title}</h1>" in page


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_the_page_of_a_run_draws_as_its_report_does(shape: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (rng.random((60, *shape)) - 0.5).astype(np.float32)
    x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1] = 5, 5, 5, 5  # the paper
    np.savez(tmp_path / "own.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    words = [
        "--dataset",
        tmp_path / "own.npz",
        "--hidden",
        4,
        "--epochs",
        1,
        "--batch-size",
        20,
        "--validation",
        6,
    ]
    assert run("train", *words, "--device", "cpu", "--quiet", "--out", tmp_path / "run") == 0
    (exported,) = networks_of(page_of(tmp_path / "run"))
    (reported,) = networks_of(report_page([str(tmp_path / "run")]))
    assert exported["background"] == 5
    assert -0.5 <= exported["ink"] < -0.4
    assert {**exported, "name": ""} == {**reported, "name": ""}


def test_data_for_a_page_may_be_missing_but_not_where_the_user_says_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    write_files(tmp_path / "mnist", small_mnist())
    words = ["--dataset", "mnist", "--data-dir", tmp_path / "mnist", "--hidden", 4, "--epochs", 1]
    assert run("train", *words, "--device", "cpu", "--quiet", "--out", tmp_path / "run") == 0
    shutil.rmtree(tmp_path / "mnist")
    assert page_of(tmp_path / "run")
    (tmp_path / "run" / "network.html").unlink()
    capsys.readouterr()
    assert run("export", tmp_path / "run", "--format", "html", "--data-dir", tmp_path / "none") == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert not (tmp_path / "run" / "network.html").exists()


def test_the_page_calls_the_classes_by_their_names(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    save_network(tmp_path, "uint8", ("owl", "</script><b>", 7))
    page = page_of(tmp_path)
    assert networks_of(page)[0]["classes"] == ["owl", "</script><b>", "7"]
    assert "</script><b>" not in page


def test_a_page_for_an_unknown_scale_needs_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_network(tmp_path, "float32")
    assert run("export", tmp_path, "--format", "html") == 2
    assert "it was trained on images of float32 with a scale of their own" in capsys.readouterr().err
    assert not (tmp_path / "network.html").exists()


def test_a_page_to_draw_on_needs_jinja2_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    save_network(tmp_path, "uint8")
    for library in ("matplotlib", "PIL"):
        monkeypatch.setitem(sys.modules, library, None)
    assert run("export", tmp_path, "--format", "html") == 0
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run("export", tmp_path, "--format", "html") == 2
    assert "pages to draw on need jinja2, which is not installed" in capsys.readouterr().err


def test_a_page_to_draw_on_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    MLP([12, 3], device="cpu").save(tmp_path)
    assert run("export", tmp_path, "--format", "html") == 2
    assert "needs a network for images of height x width; this one takes samples of 12" in capsys.readouterr().err
