"""Networks as files: saved on one device, loaded on any; invalid files are refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from gpumlp import (
    MLP,
    Committee,
    Dataset,
    DeviceError,
    Glorot,
    He,
    LeakyReLU,
    Normal,
    ReLU,
    SoftmaxCrossEntropy,
    SquaredError,
    Tanh,
    fit,
    load_digits,
    register,
)
from gpumlp.backends import Backend
from gpumlp.files import PathError
from gpumlp.nn.activations import ACTIVATIONS
from gpumlp.nn.losses import LOSSES
from gpumlp.nn.model_file import Inputs, ModelFileError
from tests.command_helpers import DIGITS, run
from tests.file_helpers import change_file, change_group, change_header, set_group, set_value
from tests.strict_device import StrictBackend

BUILT_IN = ["relu", LeakyReLU(0.2), "tanh", "sigmoid"]


def rewritten(folder: Path, **changes: object) -> Path:
    """Save the network with a changed description."""
    change_file(folder / "model.safetensors", change_group("model", **changes))
    return folder


@pytest.mark.parametrize("activation", BUILT_IN, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loaded_network_is_the_saved_one_bit_for_bit(activation: object, dtype: str, tmp_path: Path) -> None:
    model = MLP([6, 5, 4, 3], activation, seed=2, device="cpu", dtype=dtype)
    model.save(tmp_path / "a" / "net")
    loaded = MLP.load(tmp_path / "a" / "net", device="cpu")
    assert repr(loaded) == repr(model)
    assert repr(loaded.activation) == repr(model.activation)
    assert loaded.dtype == model.dtype
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].tobytes() == tensor.tobytes()
    x = np.random.default_rng(0).normal(size=(9, 6))
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))


def test_a_network_is_moved_from_every_device_to_the_cpu_and_back(
    backend: Backend, blobs: Dataset, tmp_path: Path
) -> None:
    model = MLP([20, 16, 4], device=backend)
    fit(model, blobs, epochs=2, batch_size=32)
    model.save(tmp_path)
    for device in ("cpu", StrictBackend(), backend):
        loaded = MLP.load(tmp_path, device=device)
        assert loaded.backend.name == (device if isinstance(device, str) else device.name)
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(loaded.state_dict()[name], tensor)
        np.testing.assert_allclose(
            loaded.predict_proba(blobs.images[:20]), model.predict_proba(blobs.images[:20]), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("initializer", ["auto", "he", "glorot", "normal", Normal(0.3)], ids=str)
def test_the_initializer_is_kept(initializer: object, tmp_path: Path) -> None:
    model = MLP([3, 2], initializer=initializer, device="cpu")
    model.save(tmp_path)
    assert MLP.load(tmp_path, device="cpu").initializer == model.initializer
    assert model.initializer in (He(), Glorot(), Normal(), Normal(0.3))


def test_a_custom_initializer_is_not_saved(tmp_path: Path) -> None:
    class Tenth:
        def std(self, in_features: int, out_features: int) -> float:
            return 0.1

    model = MLP([3, 2], initializer=Tenth(), device="cpu")
    model.save(tmp_path)
    np.testing.assert_array_equal(
        MLP.load(tmp_path, device="cpu").state_dict()["layers.0.weight"], model.state_dict()["layers.0.weight"]
    )


@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", "logistic_cross_entropy", "squared_error", "poisson_deviance"]
)
def test_the_loss_is_saved_in_files_and_pickles(loss: str, tmp_path: Path) -> None:
    model = MLP([3, 2], loss=loss, device="cpu")
    model.inputs, model.class_names = Inputs((3,), "float64", "own"), ("a", "b")
    model.save(tmp_path)
    for other in (MLP.load(tmp_path, device="cpu"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert repr(other) == repr(model)
        assert (other.initializer, other.inputs) == (model.initializer, model.inputs)
        assert other.class_names == ("a", "b")


def test_inputs_and_class_names_are_kept(tmp_path: Path) -> None:
    train, _ = load_digits()
    model = MLP([64, 10], device="cpu")
    assert model.inputs is None
    fit(model, train, epochs=1)
    assert model.inputs == Inputs((8, 8), "float32", "digits")
    model.class_names = np.array([f"digit {i}" for i in range(10)])
    model.save(tmp_path)
    loaded = MLP.load(tmp_path, device="cpu")
    assert loaded.inputs == model.inputs
    assert loaded.class_names == tuple(f"digit {i}" for i in range(10))


def test_the_folder_of_a_training_run_can_be_loaded(tmp_path: Path) -> None:
    assert run("train", *DIGITS, "--hidden", 9, "--epochs", 2, "--quiet", "--out", tmp_path / "run") == 0
    _, test = load_digits()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for path in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "checkpoint.safetensors"):
        model = MLP.load(path, device="cpu")
        assert model.accuracy(test) == metrics["test_accuracy"]
        assert (model.sizes, model.inputs) == ([64, 9, 10], Inputs((8, 8), "float32", "digits"))
    with pytest.raises(ModelFileError, match=r"is the folder of a training run.*choose another"):
        model.save(tmp_path / "run")
    model.save(tmp_path / "copy")
    copied = MLP.load(tmp_path / "copy" / "model.safetensors", device="cpu")
    assert copied.accuracy(test) == metrics["test_accuracy"]
    os.replace(tmp_path / "copy" / "model.safetensors", tmp_path / "run" / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"contains both .*give the path of one of them"):
        MLP.load(tmp_path / "run")


class Steep(Tanh):
    name = "steep"

    def __init__(self, steepness: float = 1.0) -> None:
        self.steepness = steepness

    def forward(self, xp: Any, s: Any, out: Any) -> None:
        xp.tanh(self.steepness * s, out=out)


class Smoothed(SoftmaxCrossEntropy):
    name = "smoothed"

    def __init__(self, smoothing: float = 0.1) -> None:
        self.smoothing = smoothing

    def predictions(self, outputs: Any) -> Any:
        return super().predictions(-outputs)


@pytest.mark.parametrize("rule", [{"activation": Steep(3.0)}, {"loss": Smoothed(0.3)}], ids=["activation", "loss"])
def test_a_rule_of_ones_own_is_saved_with_its_options_once_it_is_registered(
    rule: dict[str, Any], tmp_path: Path
) -> None:
    ((what, value),) = rule.items()
    model, kind = MLP([3, 4, 2], device="cpu", **rule), type(value)
    with pytest.raises(ModelFileError, match=rf"call gpumlp.register\({kind.__name__}\) before saving"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    registry: Any = ACTIVATIONS if what == "activation" else LOSSES
    register(kind)
    try:
        assert type(getattr(MLP([3, 4, 2], device="cpu", **{what: value.name}), what)) is kind
        model.save(tmp_path / "model")
        again = MLP.load(tmp_path / "model", device="cpu")
        assert vars(getattr(again, what)) == vars(value)
        np.testing.assert_array_equal(again.predict(np.eye(3)), model.predict(np.eye(3)))
    finally:
        del registry[value.name]
    with pytest.raises(ModelFileError, match=rf"the unknown {what} '{value.name}'; register its class first"):
        MLP.load(tmp_path / "model", device="cpu")


class Nameless(Tanh):
    pass


class Impostor(SquaredError):
    name = "softmax_cross_entropy"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Nameless, ValueError, "Nameless is expected to have a name of its own, such as name = 'my_activation'"),
        (Impostor, ValueError, "'softmax_cross_entropy' is the name of SoftmaxCrossEntropy already"),
        (Steep(), TypeError, r"a subclass of Activation, Loss or Layer is expected, got Steep\("),
        (MLP, TypeError, "a subclass of Activation, Loss or Layer is expected, got the class MLP"),
    ],
)
def test_only_classes_with_a_name_of_their_own_are_registered(
    kind: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        register(kind)


def test_saving_again_replaces(tmp_path: Path) -> None:
    MLP([3, 2], device="cpu").save(tmp_path)
    MLP([5, 2], device="cpu").save(tmp_path)
    assert MLP.load(tmp_path, device="cpu").sizes == [5, 2]


def test_it_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MLP([3, 2], device="cpu").save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        MLP([5, 2], device="cpu").save(tmp_path)
    assert error.value.filename == str(tmp_path / "model.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_network_that_cannot_be_saved_is_refused_before_a_folder_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disguised(ReLU):
        pass

    class Changed(SoftmaxCrossEntropy):
        def predictions(self, outputs: Any) -> Any:
            return super().predictions(-outputs)

    class Unspeakable(Tanh):
        name = "unspeakable"

        def __init__(self, rule: Any = np.sin) -> None:
            self.rule = rule

    class Renamed(Tanh):
        name = "renamed"

        def __init__(self, slope: float = 1.0) -> None:
            self.steepness = slope

    class Doubled(Tanh):
        name = "doubled"

        def __init__(self, slope: float = 1.0) -> None:
            self.slope = 2 * slope

    for kind in (Unspeakable, Renamed, Doubled):
        monkeypatch.setitem(ACTIVATIONS, kind.name, kind)
    for model, message in (
        (MLP([3, 4, 2], Disguised(), device="cpu"), r"Disguised\(\) cannot be saved: 'relu' is the name of ReLU"),
        (
            MLP([3, 2], loss=Changed(), device="cpu"),
            r"Changed\(\) .*'softmax_cross_entropy' is the name of",
        ),
        (
            MLP([3, 4, 2], Unspeakable(), device="cpu"),
            r"Unspeakable\(.*\) cannot be saved: .* not JSON serializable",
        ),
        (
            MLP([3, 4, 2], Renamed(), device="cpu"),
            r"Renamed\(.*\) cannot be saved: its attributes are expected to be",
        ),
        (
            MLP([3, 4, 2], Doubled(), device="cpu"),
            r"Doubled\(.*\) cannot be saved: .*keep each argument as it is given",
        ),
    ):
        with pytest.raises(ModelFileError, match=message):
            model.save(tmp_path / "new")
    model = MLP([3, 2], device="cpu")
    for names in (["only one"], ["half", "\ud800"], ["object", None]):
        model.class_names = names
        with pytest.raises(ModelFileError, match="class_names are expected to be 2 strings or numbers"):
            model.save(tmp_path / "new")
    model.class_names, model.inputs = None, Inputs((2, 2), "uint8")
    with pytest.raises(ModelFileError, match=r"a sample of shape \(2, 2\) does not have 3 features"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", [MLP, Committee])
def test_save_takes_a_folder_or_the_name_of_a_safetensors_file(tmp_path: Path, kind: Any) -> None:
    model = MLP([3, 2], device="cpu")
    saved = model if kind is MLP else Committee([model, model])
    (tmp_path / "there.npz").mkdir()
    for name, file in (
        ("run-0.1", "run-0.1/model.safetensors"),
        ("there.npz", "there.npz/model.safetensors"),
        ("new/net.safetensors", "new/net.safetensors"),
        ("new/NET.SAFETENSORS", "new/NET.SAFETENSORS"),
    ):
        assert saved.save(tmp_path / name) == saved.save(tmp_path / name) == tmp_path / file
        assert (tmp_path / file).is_file()
        assert len(Committee.load(tmp_path / name, device="cpu").members) == (1 if kind is MLP else 2)
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name in (
        "net.npz",
        "new/model.pt",
        "net.ONNX",
        "a.npz/b.safetensors",
        "file",
        "file/a",
        "file/a.safetensors",
    ):
        with pytest.raises(PathError, match=r"expected a folder, .* or the name of a \.safetensors file, got"):
            saved.save(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["", "model.safetensors", "checkpoint.safetensors"])
def test_save_writes_over_no_file_of_a_run(tmp_path: Path, name: str) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_text("of a run")
    model = MLP([3, 2], device="cpu")
    with pytest.raises(ModelFileError, match="of a training run"):
        model.save(tmp_path / name)
    assert checkpoint.read_text() == "of a run"
    assert model.save(tmp_path / "net.safetensors").parent == tmp_path


def test_save_makes_no_folder_that_looks_like_a_run(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"checkpoint.safetensors is the file of a training run"):
        MLP([3, 2], device="cpu").save(tmp_path / "new" / "checkpoint.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "expected checkpoint.safetensors from a training run"),
        (lambda file: file.write_bytes(file.read_bytes()[:-3]), "cannot be read as a safetensors file"),
        (lambda file: file.write_bytes(file.read_bytes()[:20]), "cannot be read as a safetensors file"),
        (lambda file: file.write_bytes(b""), "cannot be read as a safetensors file"),
        (
            lambda file: safetensors.numpy.save_file({"a": np.zeros(2)}, file, {"format": "pt"}),
            "expected format gpumlp-model-2 or gpumlp-checkpoint-2 or gpumlp-committee-1, got pt",
        ),
        (
            lambda file: safetensors.numpy.save_file({"a": np.zeros(2)}, file, {"format": "gpumlp-checkpoint-1"}),
            "was written by a gpumlp before 0.1 and does not describe its network",
        ),
        (lambda file: change_file(file, set_group("model", "{")), "is damaged: model: Expecting property name"),
        (lambda file: change_file(file, set_group("model", "[]")), "is damaged: model: expected a JSON object"),
        (lambda file: change_file(file, set_group("experts", "{}")), "holds 'experts', which this version"),
        (
            lambda file: change_file(file, set_value("layers.0.weight", np.nan)),
            "is damaged: layers.0.weight holds 1 values of 6 that are NaN or infinite",
        ),
        (
            lambda file: change_file(file, set_value("layers.0.weight", 7), checked=False),
            "is damaged: its checksum is not that of its content",
        ),
        (
            lambda file: change_header(
                file, lambda header: header["layers.0.bias"].update(dtype="BF16", shape=[4])
            ),
            "is damaged: expected numbers as NumPy has them, got BF16 in layers.0.bias",
        ),
        (lambda file: (file.unlink(), file.mkdir()), "cannot be read: expected a file, got a folder"),
    ],
)
def test_damaged_and_foreign_files_are_refused(damage, message: str, tmp_path: Path) -> None:
    MLP([3, 2], device="cpu").save(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=message):
        MLP.load(tmp_path, device="cpu")


DENSE = {
    "layer": "dense",
    "in_features": 3,
    "out_features": 2,
    "activation": "identity",
    "activation_options": {},
}
DROPOUT = {"layer": "dropout", "features": 3, "rate": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [3, 4, 2]}, "does not contain the network that it describes: layers.1.weight is missing"),
        ({"dtype": "float64"}, "layers.0.(weight|bias) is expected to be float64, got float32"),
        ({"activation": "mish"}, "the unknown activation 'mish'"),
        ({"initializer": "lecun"}, "describes a network that this version of gpumlp does not support: 'lecun'"),
        ({"activation": "relu", "activation_options": {"a": 1}}, "does not contain the network that it describes"),
        ({"inputs": {"shape": [7], "dtype": "uint8", "data": ""}}, "sample of shape"),
        ({"class_names": ["a"]}, "class_names are expected to be 2"),
        ({"layers": []}, "does not contain the network that it describes"),
        *(
            (
                {"layers": layers},
                "does not contain the network that it describes: layers are expected to be a list",
            )
            for layers in ("dense", 5, 0, True, {"layer": "dense"})
        ),
        ({"layers": [3]}, "does not contain the network that it describes"),
        (
            {"layers": [{"features": 3}]},
            "describes a network that this version of gpumlp does not support: 'layer'",
        ),
        ({"layers": [{"layer": "conv"}]}, "the unknown layer 'conv'"),
        ({"layers": [DROPOUT, DENSE]}, "the rate of dropout is expected to be a number of at least 0 and below 1"),
        ({"layers": [{"layer": "dropout", "features": 3}]}, "layers.0.weight is not part of this network"),
        ({"layers": [{**DENSE, "activation": "mish"}]}, "the unknown activation 'mish'"),
        (
            {"layers": [{**DENSE, "activation": "relu"}]},
            "the last layer is expected to be a Dense without activation",
        ),
        ({"layers": [{**DENSE, "out_features": 4}]}, r"layers.0.weight is expected to have shape \(3, 4\), got"),
        ({"layers": [{**DENSE, "units": 4}]}, "does not contain the network that it describes: .*units"),
        ({"layers": [DENSE], "sizes": [3, 7, 2]}, r"the sizes of its layers are \[3, 2\], but \[3, 7, 2\]"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    MLP([3, 2], device="cpu").save(tmp_path)
    with pytest.raises(ModelFileError, match=message):
        MLP.load(rewritten(tmp_path, **changes), device="cpu")


def test_a_missing_folder_or_device_is_an_error(tmp_path: Path) -> None:
    for name, kind in (("none", "folder"), ("none.safetensors", "file")):
        with pytest.raises(ModelFileError, match=rf"there is no run or saved network .*{name}: no such {kind}"):
            MLP.load(tmp_path / name, device="cpu")
    MLP([3, 2], device="cpu").save(tmp_path)
    with pytest.raises(DeviceError):
        MLP.load(tmp_path, device="cuda:99")
    with pytest.raises(ValueError, match="device is expected to be"):
        MLP.load(tmp_path, device="tpu")


def test_no_code_in_a_file_is_ever_run(tmp_path: Path) -> None:
    MLP([3, 2], device="cpu").save(tmp_path)
    assert b"pickle" not in (tmp_path / "model.safetensors").read_bytes()
    header = json.loads((tmp_path / "model.safetensors").read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    assert set(header) == {"__metadata__", "layers.0.weight", "layers.0.bias"}


def test_a_network_of_version_0_2_is_loaded(tmp_path: Path) -> None:
    model = MLP([3, 4, 2], LeakyReLU(0.2), device="cpu")
    model.save(tmp_path)

    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        del metadata["checksum"]
        description = json.loads(metadata["model"])
        del description["layers"], description["loss_options"]
        metadata.update(format="gpumlp-model-1", epoch="3", validation_loss="0.5", model=json.dumps(description))

    change_file(tmp_path / "model.safetensors", change, checked=False)
    np.testing.assert_array_equal(MLP.load(tmp_path, device="cpu").logits(np.eye(3)), model.logits(np.eye(3)))
