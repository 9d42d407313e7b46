"""Committees: the mean of what several networks predict, in Python, in files and in the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, SGD, Committee, Dataset, Inputs, ModelFileError, fit, load_digits
from gpumlp.backends import Backend
from gpumlp.exporting import html_bytes, npz_bytes, onnx_bytes, safetensors_bytes
from gpumlp.nn.losses import softmax
from tests.command_helpers import DIGITS, run

pytestmark = pytest.mark.usefixtures("wide_terminal")

Captured = pytest.CaptureFixture[str]
LOSSES = ["softmax_cross_entropy", "logistic_cross_entropy", "squared_error", "poisson_deviance"]


def networks(loss: str = "softmax_cross_entropy", outputs: int = 4, dtype: str = "float32") -> list[MLP]:
    """Three networks of different layers for samples of 12 values, whose predictions are far apart."""
    result = []
    for seed, hidden in enumerate(([9], [], [7, 5])):
        model = MLP([12, *hidden, outputs], "tanh", seed=seed, loss=loss, device="cpu", dtype=dtype)
        model.load_state_dict({name: 2 * tensor for name, tensor in model.state_dict().items()})
        result.append(model)
    return result


def samples(count: int = 60) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 12)).astype(np.float32)


def mean_of(members: list[MLP], x: np.ndarray) -> np.ndarray:
    predict = MLP.predict if members[0].loss.task == "numbers" else MLP.predict_proba
    return np.mean([predict(member, x).astype(np.float64) for member in members], axis=0)


def data_for(loss: str, x: np.ndarray, outputs: int) -> Dataset:
    rng = np.random.default_rng(1)
    weights = rng.random(len(x))
    if loss == "softmax_cross_entropy":
        return Dataset(x, rng.integers(0, outputs, len(x)), classes=outputs, weights=weights)
    if loss == "logistic_cross_entropy":
        return Dataset(x, rng.integers(0, 2, (len(x), outputs)), task="labels", weights=weights)
    return Dataset(x, rng.random((len(x), outputs)), weights=weights)


# -- The mean ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_predictions_are_the_mean_of_the_members(loss: str) -> None:
    members, x = networks(loss, outputs=2), samples()
    committee, expected = Committee(members), mean_of(members, x)
    if members[0].loss.task == "numbers":
        np.testing.assert_allclose(committee.predict(x), expected, rtol=1e-6)
        with pytest.raises(ValueError, match="are not probabilities"):
            committee.predict_proba(x)
        with pytest.raises(ValueError, match="on which members do not agree or disagree"):
            committee.disagreement(x)
        with pytest.raises(ValueError, match="which have no accuracy"):
            committee.accuracy(data_for(loss, x, 2))
        return
    np.testing.assert_allclose(committee.predict_proba(x), expected, atol=1e-6)
    classes = members[0].loss.task == "classes"
    np.testing.assert_array_equal(committee.predict(x), expected.argmax(axis=1) if classes else expected > 0.5)
    each = np.stack([member.predict(x).reshape(len(x), -1) for member in members])
    disputed = (each != each[0]).any(axis=(0, 2))
    assert 0 < disputed.mean() < 1
    assert committee.disagreement(x) == disputed.mean()
    np.testing.assert_array_equal(committee.vote(x).disputed, disputed)


@pytest.mark.parametrize("loss", LOSSES)
def test_results_on_data_are_those_of_the_mean_with_sample_weights(loss: str) -> None:
    members, x = networks(loss, dtype="float64"), samples()
    data, p = data_for(loss, x, 4), mean_of(members, x)
    inverse = {
        "softmax_cross_entropy": np.log,
        "logistic_cross_entropy": lambda p: np.log(p) - np.log1p(-p),
        "squared_error": lambda p: p,
        "poisson_deviance": np.log,
    }
    outputs = inverse[loss](p)
    identity = MLP([4, 4], loss=loss, device="cpu", dtype="float64")  # the same equations for given outputs
    identity.load_state_dict({"layers.0.weight": np.eye(4), "layers.0.bias": np.zeros(4)})
    targets = data.targets.astype(np.float64) if data.task == "numbers" else data.targets
    right = identity.evaluate(
        Dataset(
            outputs, targets, task=data.task, classes=4 if data.task == "classes" else None, weights=data.weights
        )
    )
    compared = Committee(members).compare(data)
    for name, value in right.metrics().items():
        assert compared.committee.metrics()[name] == pytest.approx(value, rel=1e-9), name
    for member, found in zip(members, compared.members, strict=True):
        assert found.metrics() == pytest.approx(member.evaluate(data).metrics(), rel=1e-9)


def test_the_loss_is_exact_where_all_members_are_sure_and_wrong() -> None:
    members = networks()[:2]
    for member in members:
        last = f"layers.{len(member.dense_layers) - 1}"
        state = {name: 0 * tensor for name, tensor in member.state_dict().items()}
        member.load_state_dict({**state, f"{last}.bias": np.array([0, 500, 0, 0])})  # exp(-500) is 0 in float32
    assert Committee(members).evaluate(Dataset(samples(3), [0, 0, 0], classes=4)).loss == 500


def test_a_committee_of_one_is_its_member() -> None:
    (member, *_), x = networks(), samples()
    committee = Committee([member])
    np.testing.assert_array_equal(committee.predict_proba(x), member.predict_proba(x))
    assert committee.disagreement(x) == 0
    assert str(committee) == str(member)


def test_members_keep_their_own_scale_and_dtype() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 3), dtype=np.uint8)
    pixels, numbers = networks()[:2]
    pixels.inputs, numbers.inputs = Inputs((4, 3), "uint8"), Inputs((12,), "any")
    double = networks(dtype="float64")[2]
    members = [pixels, numbers, double]
    found = Committee(members).predict_proba(images)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, mean_of(members, images), atol=1e-6)


def test_members_are_on_any_devices(backend: Backend, tmp_path: Path) -> None:
    members, images = networks(), samples()
    Committee(members).save(tmp_path)
    moved = Committee([*Committee.load(tmp_path, device=backend).members[:2], members[2]])
    data = data_for("softmax_cross_entropy", images, 4)
    np.testing.assert_allclose(moved.predict_proba(images), Committee(members).predict_proba(images), atol=1e-5)
    assert moved.compare(data).committee.loss == pytest.approx(Committee(members).evaluate(data).loss, rel=1e-4)
    on_device = backend.asarray(images)
    found = Committee(moved.members[:2]).predict_proba(on_device)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, Committee(members[:2]).predict_proba(images), atol=1e-5)


def other(**changes: Any) -> MLP:
    """A network that differs from those of `networks` in one respect."""
    model = MLP(
        [changes.get("inputs", 12), changes.get("outputs", 4)], loss=changes.get("loss", "auto"), device="cpu"
    )
    model.class_names = changes.get("names")
    model.inputs = Inputs(changes["shape"], "float32") if "shape" in changes else None
    return model


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            other(inputs=11),
            "same number of inputs, but the first has 12 and number 4 has 11; leave one of them out",
        ),
        (other(outputs=5), "same number of outputs, but the first has 4 and number 4 has 5"),
        (other(loss="squared_error"), "same loss, but the first has 'softmax_cross_entropy' and number 4"),
        (
            other(names=("a", "b", "c", "d")),
            "same classes, but the first has 0, 1, 2, 3 and number 4 has a, b, c, d",
        ),
        (other(names=(1, 0, 2, 3)), "same classes, but the first has 0, 1, 2, 3 and number 4 has 1, 0, 2, 3"),
        (other(shape=(3, 4)), r"same shape of samples, but the first has \(4, 3\) and number 4 has \(3, 4\)"),
    ],
)
def test_members_that_do_not_fit_are_named(member: MLP, message: str) -> None:
    members = networks()
    members[0].inputs = Inputs((4, 3), "float32")
    with pytest.raises(ValueError, match=message):
        Committee([*members, member])


def test_anything_but_networks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected to be one network or more, got none"):
        Committee([])
    with pytest.raises(TypeError, match=r"expected to be networks \(MLP\), got 'runs/a'"):
        Committee(["runs/a"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected to be a list of networks, got an MLP"):
        Committee(networks()[0])  # type: ignore[arg-type]


def test_arrays_are_evaluated_as_a_data_set_of_them() -> None:
    x, y = samples(), np.arange(len(samples())) % 4
    committee, data = Committee(networks()), Dataset(x, y)
    for model in (committee, committee.members[0]):
        assert model.evaluate(x, y) == model.evaluate(data)
        assert model.accuracy(x, y) == model.accuracy(data)
        with pytest.raises(TypeError, match="targets and sample_weight are expected with an array of samples"):
            model.evaluate(data, y)
    numbers = MLP([12, 1], loss="squared_error", device="cpu")
    two = MLP([12, 1], loss="logistic_cross_entropy", device="cpu")
    for single, targets, task in ((numbers, y, "numbers"), (two, y % 2, None), (two, y % 2 > 0, None)):
        for model in (single, Committee([single, single])):
            assert model.evaluate(x, targets) == model.evaluate(Dataset(x, targets, task=task))


def test_no_samples_are_no_error() -> None:
    committee, none = Committee(networks()), samples()[:0]
    assert committee.predict(none).shape == committee.vote(none).disputed.shape == (0,)
    assert committee.disagreement(none) == 0


# -- Files -------------------------------------------------------------------------------------------------------


def test_a_saved_committee_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    members, x = networks(), samples()
    members[0].inputs = members[1].inputs = Inputs((12,), "float32", "own")
    for member in members:
        member.class_names = ("a", "b", "c", "d")
    committee = Committee(members)
    assert committee.save(tmp_path) == tmp_path / "model.safetensors"
    loaded = Committee.load(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(x), committee.predict_proba(x))
    assert [member.inputs for member in loaded.members] == [member.inputs for member in members]
    assert len(Committee.load(tmp_path, tmp_path / "model.safetensors", device="cpu")) == 6
    with pytest.raises(ModelFileError, match=r"holds a committee of 3 networks; load it with Committee\.load"):
        MLP.load(tmp_path, device="cpu")


def numpy_probabilities(net: Any, prefix: str, x: np.ndarray) -> np.ndarray:
    """The probabilities of a network of tanh units in an .npz file."""
    a = x.reshape(len(x), -1) / net[f"{prefix}divisor"]
    for i in range(n := sum(name.startswith(f"{prefix}weight") for name in net)):
        a = a @ net[f"{prefix}weight_{i}"] + net[f"{prefix}bias_{i}"]
        a = np.tanh(a) if i < n - 1 else a
    return softmax(a)


def image_committee() -> tuple[Committee, np.ndarray]:
    members = networks()
    for member in members:
        member.inputs = Inputs((4, 3), "uint8", "own")
    return Committee(members), np.random.default_rng(0).integers(0, 256, (50, 4, 3), dtype=np.uint8)


def test_an_npz_file_holds_all_members(tmp_path: Path) -> None:
    committee, images = image_committee()
    (tmp_path / "c.npz").write_bytes(npz_bytes(committee))
    net = np.load(tmp_path / "c.npz")
    each = [numpy_probabilities(net, f"member_{k}_", images) for k in range(net["members"])]
    np.testing.assert_allclose(np.mean(each, axis=0), committee.predict_proba(images), atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_onnx_file_gives_the_mean(loss: str, dtype: str) -> None:
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
    runtime = pytest.importorskip("onnxruntime", reason='onnxruntime is not installed: pip install ".[test]"')
    committee, x = Committee(networks(loss, dtype=dtype)), samples().astype(dtype)
    program = runtime.InferenceSession(onnx_bytes(committee), providers=["CPUExecutionProvider"])
    name, *others = [output.name for output in program.get_outputs()]
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    found = program.run([name], {"samples": x})[0]
    np.testing.assert_allclose(found, committee.vote(x).values, rtol=tolerance, atol=tolerance)
    assert name == ("outputs" if committee.members[0].loss.task == "numbers" else "probabilities")
    assert others == (["classes"] if loss == "softmax_cross_entropy" else [])
    if others:
        np.testing.assert_array_equal(program.run(["classes"], {"samples": x})[0], committee.predict(x))


def test_a_safetensors_file_holds_all_members(tmp_path: Path) -> None:
    committee, images = image_committee()
    (tmp_path / "c.safetensors").write_bytes(safetensors_bytes(committee))
    loaded = Committee.load(tmp_path / "c.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(images), committee.predict_proba(images))


def test_members_of_different_scales_have_no_common_input() -> None:
    committee, _ = image_committee()
    committee.members[1].inputs = Inputs((4, 3), "float32", "own")
    for content in (onnx_bytes, html_bytes):
        with pytest.raises(ModelFileError, match="take uint8 and numbers, but the file has one input for all"):
            content(committee)
    committee.members[1] = networks(dtype="float64")[1]
    committee.members[1].inputs = committee.members[0].inputs
    with pytest.raises(ModelFileError, match="compute in float32 and float64"):
        onnx_bytes(committee)


def test_a_page_holds_a_committee_of_at_most_3_mb() -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    members = [MLP([784, 450, 10], seed=seed, device="cpu") for seed in range(3)]
    for member in members:
        member.inputs = Inputs((28, 28), "uint8", "mnist")
    page = html_bytes(Committee(members[:2]))
    assert 2_800_000 < len(page) < 3_000_000
    assert b"committee of 2 networks, relu" in page
    with pytest.raises(
        ModelFileError, match=r"its 3 networks take 4\.3 MB, and a page with a committee has at most 3"
    ):
        html_bytes(Committee(members))


# -- Commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs on the digits, which often disagree."""
    folder = tmp_path_factory.mktemp("members")
    found = [folder / f"run{seed}" for seed in range(3)]
    for seed, path in enumerate(found):
        words = ("--hidden", 6 + seed, "--epochs", 3, "--seed", seed, "--quiet", "--out", path)
        assert run("train", *DIGITS, *words) == 0
    return found


@pytest.fixture
def committee(runs: list[Path]) -> Committee:
    return Committee.load(*runs, device="cpu")


def test_evaluate_shows_each_member_and_their_committee(
    runs: list[Path], committee: Committee, capsys: Captured
) -> None:
    said = []
    for path in runs:
        assert run("evaluate", path) == 0
        said.append(capsys.readouterr().out)
    assert run("evaluate", *runs) == 0
    out = capsys.readouterr().out
    assert out.startswith("".join(said) + "committee of 3 networks\n")
    compared = committee.compare(load_digits()[1])
    correct, samples = compared.committee.correct, compared.committee.samples
    assert f"({correct:,} of {samples:,}), loss {compared.committee.loss:.4f}\n" in out
    disputed = round(compared.disagreement * samples)  # type: ignore[operator]
    assert disputed > 0
    assert out.endswith(
        f"the members disagree on {disputed} of {samples} samples ({100 * disputed / samples:.2f} %)\n"
    )


def test_a_committee_predicts_files(
    runs: list[Path], committee: Committee, tmp_path: Path, capsys: Captured
) -> None:
    images = load_digits()[1].images
    np.save(tmp_path / "x.npy", images)
    assert run("predict", *runs, tmp_path / "x.npy", "--out", tmp_path / "p.npy") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), committee.predict_proba(images))
    disputed = int(committee.vote(images).disputed.sum())  # type: ignore[union-attr]
    line = f"the members disagree on {disputed} of 360 samples ({disputed / 3.6:.2f} %)\n"
    out = capsys.readouterr().out
    assert "committee of MLP([64, 6, 10]), MLP([64, 7, 10]), MLP([64, 8, 10])\n" in out
    assert out.endswith(line)
    assert run("predict", *runs, tmp_path / "x.npy", "--json") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 360
    assert captured.err.endswith(line)


def test_networks_come_before_the_first_file(runs: list[Path], tmp_path: Path, capsys: Captured) -> None:
    np.save(tmp_path / "x.npy", load_digits()[1].images)
    saved = MLP.load(runs[1], device="cpu").save(tmp_path / "NET.SAFETENSORS")
    for network in (runs[1], saved):
        assert run("predict", runs[0], tmp_path / "x.npy", network) == 2
        assert f"{network} is a network; give all networks before the first file, {tmp_path / 'x.npy'}" in (
            capsys.readouterr().err
        )
    assert run("predict", *runs) == 2
    assert "expected one file or more to predict" in capsys.readouterr().err


def test_a_committee_is_exported_to_one_file(
    runs: list[Path], committee: Committee, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "c.safetensors"
    assert run("export", *runs, "--format", "safetensors", "--out", out) == 0
    assert capsys.readouterr().out.startswith(f"{out}: committee of MLP([64, 6, 10]), MLP([64, 7, 10])")
    images = load_digits()[1].images
    np.save(tmp_path / "x.npy", images)
    assert run("predict", out, tmp_path / "x.npy", "--out", tmp_path / "p.npy") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), committee.predict_proba(images))
    capsys.readouterr()
    assert run("export", *runs, "--format", "npz") == 2
    assert "out: expected the file to write for a committee of several runs, got none" in capsys.readouterr().err


def test_commands_refuse_what_is_no_committee(runs: list[Path], tmp_path: Path, capsys: Captured) -> None:
    MLP([64, 9], device="cpu").save(tmp_path / "nine")
    np.save(tmp_path / "x.npy", load_digits()[1].images)
    words = ["--out", tmp_path / "c.npz", "--format", "npz"]
    for command, rest in (("predict", [tmp_path / "x.npy"]), ("export", words)):
        assert run(command, runs[0], tmp_path / "nine", *rest) == 2
        assert "expected to have the same number of outputs, but the first has 10" in capsys.readouterr().err
    for command in ("evaluate", "export"):
        assert run(command) == 2
        assert "expected the folder of a run, or several, got none" in capsys.readouterr().err


def test_members_are_compared_on_one_test_set(runs: list[Path], tmp_path: Path, capsys: Captured) -> None:
    train, test = load_digits()
    arrays = {
        "x_train": train.images,
        "y_train": train.labels,
        "x_test": test.images[:99],
        "y_test": test.labels[:99],
    }
    np.savez(tmp_path / "own.npz", **arrays)
    words = (
        "--dataset",
        tmp_path / "own.npz",
        "--epochs",
        1,
        "--quiet",
        "--device",
        "cpu",
        "--out",
        tmp_path / "own",
    )
    assert run("train", *words) == 0
    capsys.readouterr()
    assert run("evaluate", runs[0], tmp_path / "own") == 2
    assert f"{tmp_path / 'own'}: expected a run with the test set of {runs[0]}" in capsys.readouterr().err


def test_commands_refuse_a_member_that_is_named_twice(runs: list[Path], tmp_path: Path, capsys: Captured) -> None:
    twice = [runs[0], runs[1], f"{runs[0]}/"]
    np.save(tmp_path / "x.npy", load_digits()[1].images)
    for words in (
        ("evaluate", *twice),
        ("export", *twice, "--out", tmp_path / "c.onnx"),
        ("predict", *twice, tmp_path / "x.npy"),
        ("report", *twice, "--out", tmp_path / "c.html"),
    ):
        assert run(*words) == 2
        message = f"gpumlp-{words[0]}: {runs[0]}: expected each run once, got it 2 times\n"
        assert capsys.readouterr() == ("", message)


def test_a_committee_is_better_than_its_members() -> None:
    train, test = load_digits()
    members = [MLP([64, 12, 10], seed=seed, device="cpu") for seed in range(5)]
    for seed, member in enumerate(members):
        fit(member, train, optimizer=SGD(0.3), epochs=8, batch_size=32, seed=seed, diagnostics=False)
    compared = Committee(members).compare(test)
    mean = np.mean([found.accuracy for found in compared.members])
    assert compared.committee.accuracy > mean  # type: ignore[operator]
    assert compared.committee.loss < np.mean([found.loss for found in compared.members])  # by Jensen's inequality
