"""``python -m gpumlp.export`` to ONNX, NumPy and safetensors: other programs get the same outputs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, Activation, LeakyReLU, load_digits, load_mnist
from gpumlp.exporting import FORMATS, npz_bytes, onnx_bytes
from gpumlp.nn.model_file import Inputs, ModelFileError
from tests.command_helpers import DIGITS, run

ACTIVATIONS = ["relu", LeakyReLU(0.2), "tanh", "sigmoid", "identity"]


def session(content: bytes) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[test]'")
    return runtime.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_images() -> np.ndarray:
    """A thousand images of 28 x 28: MNIST's, or, without it, the built-in digits enlarged."""
    if os.environ.get("GPUMLP_DATA_DIR"):
        return load_mnist(download=False)[1].images[:1000]
    images = np.rint(255 * load_digits()[0].images[:1000]).astype(np.uint8)
    return np.pad(images.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))


test_images.__test__ = False  # type: ignore[attr-defined]


def pixel_network(activation: object, dtype: str) -> MLP:
    model = MLP([784, 40, 30, 10], activation, seed=1, device="cpu", dtype=dtype)
    model.inputs = Inputs((28, 28), "uint8", "mnist")
    return model


# -- ONNX --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_onnxruntime_gives_the_same_on_a_thousand_images(activation: object, dtype: str) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    model, images = pixel_network(activation, dtype), test_images()
    assert images.shape == (1000, 28, 28)
    program = session(onnx_bytes(model))
    (given,) = program.get_inputs()
    assert (given.name, given.type, given.shape) == ("samples", "tensor(uint8)", ["samples", 28, 28])
    probabilities, logits, classes = program.run(["probabilities", "logits", "classes"], {"samples": images})
    assert probabilities.dtype == logits.dtype == dtype
    np.testing.assert_allclose(
        probabilities, model.predict_proba(images), atol=1e-5 if dtype == "float32" else 1e-12
    )
    np.testing.assert_allclose(logits, model.logits(images), atol=1e-5 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(classes, model.predict(images))
    assert program.run(["classes"], {"samples": images[:1]})[0].shape == (1,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [[12, 3], [12, 7, 3]])
def test_values_that_are_no_pixels_are_used_as_they_are(dtype: str, sizes: list[int]) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    model = MLP(sizes, device="cpu", dtype=dtype)
    x = np.random.default_rng(0).normal(size=(20, 12)).astype(dtype)
    for inputs, shape in ((None, (12,)), (Inputs((4, 3), "float32", "own"), (4, 3))):
        model.inputs = inputs
        program = session(onnx_bytes(model))
        assert program.get_inputs()[0].shape == ["samples", *shape]
        (found,) = program.run(["probabilities"], {"samples": x.reshape(20, *shape)})
        np.testing.assert_allclose(found, model.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "names"),
    [("squared_error", ["outputs"]), ("logistic_cross_entropy", ["probabilities", "logits"])],
)
def test_other_losses_have_other_outputs(loss: str, names: list[str]) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    model = MLP([6, 5, 1], "tanh", loss=loss, device="cpu")
    x = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    program = session(onnx_bytes(model))
    assert [output.name for output in program.get_outputs()] == names
    expected = [model.predict_proba(x), model.logits(x)] if len(names) == 2 else [model.predict(x)]
    for found, right in zip(program.run(None, {"samples": x}), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)


def test_the_names_of_classes_are_in_the_file() -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    model = MLP([4, 2], device="cpu")
    model.class_names = ("no", "yes")
    program = onnx.load_from_string(onnx_bytes(model))
    assert json.loads({entry.key: entry.value for entry in program.metadata_props}["class_names"]) == ["no", "yes"]
    assert program.producer_name == "gpumlp"


def test_an_activation_of_ones_own_is_refused() -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")

    class Own(Activation):
        name = "own"

    with pytest.raises(ModelFileError, match=r"ONNX has no equal of the activation Own\(\)"):
        onnx_bytes(MLP([3, 4, 2], Own(), device="cpu"))


# -- NumPy and safetensors ---------------------------------------------------------------------------------


def test_five_lines_of_numpy_run_the_npz(tmp_path: Path) -> None:
    model, images = pixel_network("relu", "float32"), test_images()
    (tmp_path / "network.npz").write_bytes(npz_bytes(model))
    # These lines are in the README.
    net = np.load(tmp_path / "network.npz")
    a = images.reshape(len(images), -1) / net["divisor"]
    for i in range(n := sum(name.startswith("weight") for name in net)):
        a = a @ net[f"weight_{i}"] + net[f"bias_{i}"]
        a = np.maximum(a, 0) if i < n - 1 else a - a.max(axis=1, keepdims=True)
    probabilities = np.exp(a) / np.exp(a).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, model.predict_proba(images), atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_the_npz_holds_all_that_a_network_is(activation: object, tmp_path: Path) -> None:
    model = MLP([6, 5, 3], activation, device="cpu", dtype="float64")
    model.class_names = ("a", "b", "c")
    (tmp_path / "network.npz").write_bytes(npz_bytes(model))
    net = np.load(tmp_path / "network.npz", allow_pickle=False)
    assert sorted(net) == sorted(
        [
            "weight_0",
            "bias_0",
            "weight_1",
            "bias_1",
            "divisor",
            "activation",
            "negative_slope",
            "loss",
            "shape",
            "class_names",
        ]
    )
    assert (str(net["activation"]), net["divisor"], net["shape"].tolist()) == (model.activation.name, 1, [6])
    assert net["negative_slope"] == (0.2 if isinstance(activation, LeakyReLU) else 0)
    assert net["class_names"].tolist() == ["a", "b", "c"]
    assert net["weight_0"].dtype == np.float64
    np.testing.assert_array_equal(net["weight_1"], model.state_dict()["layers.1.weight"])


def test_the_safetensors_file_is_loaded_again(tmp_path: Path) -> None:
    model = pixel_network(LeakyReLU(0.3), "float64")
    model.save(tmp_path)
    assert run("export", tmp_path, "--format", "safetensors", "--out", tmp_path / "a.safetensors") == 0
    loaded = MLP.load(tmp_path / "a.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.logits(test_images()[:9]), model.logits(test_images()[:9]))


# -- The command line --------------------------------------------------------------------------------------


def test_a_run_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    assert run("train", *DIGITS, "--hidden", 8, "--epochs", 1, "--quiet", "--out", tmp_path / "run") == 0
    for kind in FORMATS:
        assert run("export", tmp_path / "run", "--format", kind) == 0
        path = tmp_path / "run" / f"network.{kind}"
        assert capsys.readouterr().out == f"{path}: MLP([64, 8, 10]), {path.stat().st_size:,} bytes\n"
    _, test = load_digits()
    program = session((tmp_path / "run" / "network.onnx").read_bytes())
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
    assert "pip install '.[onnx]'" in err
    assert not (tmp_path / "network.onnx").exists()
