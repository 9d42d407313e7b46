"""Deskewed images of one width: what an image becomes, and that a network never sees another one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Blocks,
    Committee,
    DataError,
    Dataset,
    Distortion,
    Inputs,
    Preprocessing,
    StreamedDataset,
    fit,
    fit_many,
    load_digits,
)
from gpumlp.backends import Backend
from gpumlp.exporting import html_bytes, npz_bytes, onnx_bytes
from gpumlp.nn.model_file import read_content
from tests.command_helpers import DIGITS, assert_same_run, run

Captured = pytest.CaptureFixture[str]
BOTH = Preprocessing(deskew=True, width=6)


def bars(slopes: list[float], half_width: float = 1.5, size: int = 28) -> np.ndarray:
    """Images of bars, whose middle moves by `slope` columns a row."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = [(np.abs(x - slope * y) <= half_width) & (np.abs(y) < size / 3) for slope in slopes]
    return np.where(inside, 255, 0).astype(np.uint8)


def slope_of(image: np.ndarray) -> float:
    """The slope of the regression of the column on the row."""
    p = image / image.sum()
    y, x = np.indices(image.shape)
    y, x = y - (p * y).sum(), x - (p * x).sum()
    return float((p * x * y).sum() / (p * y * y).sum())


def ink_width(image: np.ndarray, level: float = 0.5) -> int:
    """Columns from the first to the last that are brighter than a share of the brightest."""
    columns = np.flatnonzero(image.max(axis=0) > level * image.max())
    return int(columns[-1] - columns[0] + 1)


# -- Images ------------------------------------------------------------------------------------------------------


def test_slanted_digits_become_upright_and_stay_where_they_are() -> None:
    images = bars([-0.6, -0.2, 0.0, 0.3, 0.7])
    found = Preprocessing(deskew=True)(images)
    for before, after in zip(images, found, strict=True):
        assert abs(slope_of(after)) < 0.01
        p, q = before / before.sum(), after / after.sum()
        for axis in (0, 1):
            assert (p * np.indices(p.shape)[axis]).sum() == pytest.approx(
                (q * np.indices(q.shape)[axis]).sum(), abs=0.02
            )
        np.testing.assert_allclose(after.sum(axis=1), before.sum(axis=1), atol=28)  # rows are only shifted
    np.testing.assert_array_equal(found[2], images[2])


def test_a_flat_line_is_not_turned_upright() -> None:
    line = np.zeros((1, 9, 9), np.uint8)
    line[0, 4, :4], line[0, 5, 4:] = 255, 255  # 9 columns in 2 rows
    assert slope_of(line[0]) > 4
    rows = Preprocessing(deskew=True)(line)[0].astype(float)
    middle = [(row @ np.arange(9)) / row.sum() for row in rows[4:6]]
    assert middle[1] - middle[0] == pytest.approx(6.5 - 1.5 - 1, abs=0.6)  # by 1 column, not by 5


@pytest.mark.parametrize("width", [5, 10, 17, 28])
@pytest.mark.parametrize("half_width", [0.5, 3.5, 9.5])
def test_all_digits_get_the_width_and_the_middle(width: int, half_width: float) -> None:
    image = Preprocessing(width=width)(bars([0.0], half_width))[0]
    assert ink_width(image) == width
    columns = np.flatnonzero(image.max(axis=0) > 127)
    assert abs(columns[0] + columns[-1] - 27) == width % 2  # the middle, to half a pixel


def test_the_width_is_that_of_the_upright_digit() -> None:
    upright = Preprocessing(deskew=True, width=12)(bars([0.0], 3.5))[0]
    slanted = Preprocessing(deskew=True, width=12)(bars([0.5], 3.5))[0]
    assert ink_width(slanted, 0.3) == ink_width(upright, 0.3) == 12
    assert ink_width(Preprocessing(width=12)(bars([0.5], 3.5))[0], 0.3) == 12


def test_a_digit_of_the_width_in_the_middle_stays_as_it_is() -> None:
    images = bars([0.0], 3.5)
    np.testing.assert_array_equal(Preprocessing(width=8)(images), images)


@pytest.mark.parametrize("preprocessing", [BOTH, Preprocessing(deskew=True), Preprocessing(width=3)], ids=str)
def test_blank_images_stay_blank_and_dtypes_stay(preprocessing: Preprocessing) -> None:
    for dtype in ("uint8", "float32", "float64"):
        found = preprocessing(np.zeros((2, 8, 7), dtype))
        assert found.dtype == dtype
        assert not found.any()
    assert preprocessing(np.ones((1, 8, 7), bool)).dtype == np.float32


def test_an_image_depends_on_itself_alone() -> None:
    images = load_digits()[0].images[:700]
    together = BOTH(images)
    for index in (0, 63, 64, 699):
        np.testing.assert_array_equal(BOTH(images[index : index + 1])[0], together[index])


def test_scale_does_not_matter() -> None:
    images = load_digits()[0].images[:50]
    np.testing.assert_allclose(BOTH(images * 7), 7 * BOTH(images), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected with deskew=True, a width, or both, got neither"),
        ({"width": 0}, "width is expected to be a whole number of 1 or more, got 0"),
        ({"width": 2.5}, "width is expected to be a whole number"),
        ({"deskew": "no"}, "deskew is expected to be True or False"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)


def test_images_on_another_background_are_refused() -> None:
    with pytest.raises(ValueError, match=r"on a background of 0, got values from -0\.4"):
        BOTH(np.full((1, 8, 8), -0.4))


# -- Networks ----------------------------------------------------------------------------------------------------


def trained(backend: Backend | str = "cpu", **options: Any) -> MLP:
    model = MLP([64, 16, 10], device=backend)
    fit(model, load_digits()[0], optimizer=SGD(0.3), epochs=2, batch_size=32, validation=100, **options)
    return model


def test_a_network_sees_preprocessed_images_everywhere(backend: Backend) -> None:
    """In training (before they are distorted), validation, evaluation and prediction."""
    train, test = load_digits()
    options: dict[str, Any] = {
        "optimizer": SGD(0.3),
        "epochs": 2,
        "batch_size": 32,
        "augment": Distortion(rotation=5),
    }
    model, expected = MLP([64, 16, 10], device=backend), MLP([64, 16, 10], device=backend)
    history = fit(model, train, validation=test, preprocess=BOTH, **options)
    made = [Dataset(BOTH(data.images), data.labels, classes=10, name="digits") for data in (train, test)]
    other = fit(expected, made[0], validation=made[1], **options)
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        assert history[name] == other[name]
    np.testing.assert_array_equal(model.logits(test.images), expected.logits(made[1].images))
    np.testing.assert_array_equal(
        model.predict_proba(test.images.reshape(360, 64)), expected.predict_proba(made[1].images)
    )
    assert model.evaluate(test) == expected.evaluate(made[1])
    assert model.inputs == Inputs((8, 8), "float32", "digits", BOTH)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_are_no_pixels_are_preprocessed_alike_in_any_dtype(tmp_path: Path, dtype: str) -> None:
    """In training, evaluation and prediction; not rounded as pixels are."""
    digits, found = load_digits()[0], []
    images = np.rint(16 * digits.images[:300]).astype(np.uint8)
    for given in (images, images.astype(np.int16), images.astype(np.float32), images.astype(np.float64)):
        data = Dataset(given, digits.labels[:300], classes=10)
        model = MLP([64, 8, 10], device="cpu", dtype=dtype)
        fit(model, data, preprocess=BOTH, epochs=1, optimizer=SGD(1e-3), pixels=False)
        for other in (data.images, given.astype(np.float64)):
            found.append((model.logits(other, pixels=False).tobytes(), model.evaluate(data, pixels=False)))
    assert found == found[:1] * len(found)


def test_images_on_a_device_stay_there(backend: Backend) -> None:
    model, images = trained(backend, preprocess=BOTH), load_digits()[1].images
    found = model.logits(backend.asarray(images))
    assert backend.owns(found)
    np.testing.assert_allclose(backend.to_numpy(found), model.logits(images), rtol=1e-4, atol=1e-4)


def test_further_training_keeps_the_preprocessing() -> None:
    model, train = trained(preprocess=BOTH), load_digits()[0]
    fit(model, train, epochs=1)
    assert model.inputs is not None
    assert model.inputs.preprocessing == BOTH
    for plain, given in ((model, Preprocessing(width=3)), (trained(), BOTH)):
        with pytest.raises(ValueError, match=r"was trained with the preprocessing .*, got .*; leave it out"):
            fit(plain, train, epochs=1, preprocess=given)


def test_many_networks_have_their_own() -> None:
    models = [MLP([64, 16, 10], device="cpu") for _ in range(2)]
    options: dict[str, Any] = {
        "optimizer": SGD(0.3),
        "epochs": 2,
        "batch_size": 32,
        "validation": 100,
        "n_jobs": 1,
    }
    fit_many(models, load_digits()[0], preprocess=[BOTH, None], **options)
    images = load_digits()[1].images
    for model, alone in zip(models, (trained(preprocess=BOTH), trained()), strict=True):
        np.testing.assert_array_equal(model.logits(images), alone.logits(images))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((64,), r"expected with images of shape \(n, rows, columns\)"),
        ((16, 4), "at most the 4 columns of .*, got 6"),
    ],
)
def test_samples_that_are_no_such_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    train = load_digits()[0]
    data = Dataset(train.images.reshape(-1, *shape), train.labels, classes=10)
    with pytest.raises(ValueError, match=message):
        fit(MLP([64, 10], device="cpu"), data, preprocess=BOTH)
    if len(shape) == 1:
        with pytest.raises(ValueError, match=message):
            trained(preprocess=BOTH).evaluate(data)


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="preprocess is expected to be a Preprocessing"):
        trained(preprocess="deskew")


def streamed(folder: Path, images: np.ndarray) -> StreamedDataset:
    np.save(folder / "x.npy", images)
    np.save(folder / "y.npy", load_digits()[0].labels)
    return StreamedDataset(folder / "x.npy", folder / "y.npy")


@pytest.mark.parametrize(("dtype", "pixels"), [("uint8", True), ("uint8", False), ("float32", None)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_streamed_samples_are_preprocessed_as_those_in_memory(
    tmp_path: Path, dtype: str, pixels: bool | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpumlp.data.rows._PIECE", 7_000)  # pieces that divide no window
    images = (load_digits()[0].images * (255 if dtype == "uint8" else 1)).astype(dtype)
    data = streamed(tmp_path, images)
    found = []
    for each in (data, data.in_memory()):
        model = MLP([64, 8, 10], device="cpu", dtype=precision)
        options: dict[str, Any] = {"order": Blocks(50, 3), "validation": 0.1, "epochs": 2, "pixels": pixels}
        history = fit(model, each, preprocess=BOTH, optimizer=SGD(1e-3), **options)
        found.append((model.parameters.data.tobytes(), history["validation_loss"], model.evaluate(each)))
    assert found[0] == found[1]
    assert (data.images[:] == images).all()


def test_a_streamed_sample_below_the_background_is_one_sentence(tmp_path: Path) -> None:
    images, labels = load_digits()[0].images.copy(), load_digits()[0].labels
    images[700, 3, 3] = -1
    np.save(tmp_path / "y.npy", labels)
    (tmp_path / "x").mkdir()
    for number, part in enumerate(np.split(images, [600])):
        np.save(tmp_path / "x" / f"{number}.npy", part)
    data = StreamedDataset(tmp_path / "x", tmp_path / "y.npy")
    message = r"1\.npy: sample 100: .* on a background of 0, got values from -1; add what"
    with pytest.raises(DataError, match=message):
        fit(MLP([64, 10], device="cpu"), data, preprocess=BOTH, epochs=1)


@pytest.mark.parametrize("words", [(), ("--test-curve",)])
def test_a_test_set_below_the_background_is_one_sentence_before_training(
    tmp_path: Path, capsys: Captured, words: tuple[str, ...]
) -> None:
    """Where it is in memory; of one that is streamed, the epochs that are trained before it is read are kept."""
    train, test = load_digits()
    arrays = {"x": train.images, "y": train.labels, "bad": test.images - 1, "good": test.images, "t": test.labels}
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    np.savez(
        tmp_path / "own.npz", x_train=arrays["x"], y_train=arrays["y"], x_test=arrays["bad"], y_test=arrays["t"]
    )
    own = ["--device", "cpu", "--preprocess", "deskew", "--epochs", 2, "--out", tmp_path / "run", *words]
    files = [
        "--dataset",
        tmp_path / "x.npy",
        tmp_path / "y.npy",
        "--test",
        tmp_path / "bad.npy",
        tmp_path / "t.npy",
    ]
    for name, data in (("own.npz", ["--dataset", tmp_path / "own.npz"]), ("bad.npy", files)):
        assert run("train", *own, *data) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"gpumlp-train: {name}: test samples: Preprocessing(")
        assert error.endswith("on a background of 0, got values from -1; add what is missing, or leave it out\n")
        assert not (tmp_path / "run").exists()
    assert run("train", *own, *files, "--stream") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"bad\.npy: sample 0: .* got values from -1; add what is missing, or leave it out$", error)
    assert run("report", tmp_path / "run") == 2
    assert re.search(r"bad\.npy: sample 0: .* got values from -1", capsys.readouterr().err)
    (tmp_path / "good.npy").replace(tmp_path / "bad.npy")
    assert run("train", "--resume", tmp_path / "run") == 0
    assert f"after epoch {1 if words else 2} of 2" in capsys.readouterr().out
    model = MLP.load(tmp_path / "run", device="cpu")
    with pytest.raises(DataError, match=r"^digits: .* on a background of 0, got values from -1"):
        model.evaluate(Dataset(arrays["good"] - 1, test.labels, classes=10, name="digits"))


# -- Files and commands ------------------------------------------------------------------------------------------


def test_it_is_saved_with_the_network(tmp_path: Path) -> None:
    model, images = trained(preprocess=BOTH), load_digits()[1].images
    model.save(tmp_path / "one")
    Committee([model, trained()]).save(tmp_path / "two")
    loaded, (first, second) = MLP.load(tmp_path / "one", device="cpu"), Committee.load(tmp_path / "two").members
    assert loaded.inputs == first.inputs == model.inputs
    assert second.inputs == Inputs((8, 8), "float32", "digits")
    np.testing.assert_array_equal(loaded.logits(images), model.logits(images))


def test_versions_that_do_not_know_it_refuse_the_file(tmp_path: Path) -> None:
    """They refuse a description with an unknown name; without preprocessing it has the names that they know."""
    trained(preprocess=BOTH).save(tmp_path / "one")
    trained().save(tmp_path / "two")
    one, two = (read_content(tmp_path / name / "model.safetensors").groups["model"] for name in ("one", "two"))
    assert one["preprocessing"] == {"deskew": True, "width": 6}
    assert set(one) - set(two) == {"preprocessing"}
    assert set(one["inputs"]) == set(two["inputs"]) == {"shape", "dtype", "data"}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_onnx_file_preprocesses_its_samples(dtype: str) -> None:
    """All members from one input, also blank, flat, slanted and full images."""
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
    runtime = pytest.importorskip("onnxruntime", reason='onnxruntime is not installed: pip install ".[test]"')
    digits = np.rint(255 * load_digits()[0].images[:300]).astype(np.uint8)
    images = np.pad(digits.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    images = np.concatenate([images, bars([-0.6, 0.0, 0.3, 2.0]), np.full((1, 28, 28), 255, np.uint8)])
    images[0], images[1, 1:] = 0, 0
    given = images if dtype == "uint8" else (images / 255).astype(np.float32)
    members = []
    for seed, options in enumerate(
        ({"deskew": True}, {}, {"width": 10}, {"deskew": True, "width": 17}, {"width": 28})
    ):
        member = MLP([784, 20, 10], seed=seed, device="cpu")
        member.inputs = Inputs((28, 28), dtype, "own", Preprocessing(**options) if options else None)  # type: ignore[arg-type]
        members.append(member)
    for model in (Committee(members), *members):
        program = runtime.InferenceSession(onnx_bytes(model), providers=["CPUExecutionProvider"])
        (found,) = program.run(["probabilities"], {"samples": given})
        np.testing.assert_allclose(found, model.predict_proba(given), atol=1e-6)


def test_a_page_is_refused_for_other_images() -> None:
    pytest.importorskip("jinja2", reason='jinja2 is not installed: pip install ".[report]"')
    from gpumlp.report import drawing_page

    test, model = load_digits()[1], trained(preprocess=BOTH)
    for given in (model, Committee([trained(), model])):
        with pytest.raises(ValueError, match="preprocesses images of 8 x 8, got 4 x 16; give the image_shape"):
            drawing_page(given, (4, 16))
        data = Dataset(test.images - 1, test.labels, classes=10)
        with pytest.raises(ValueError, match="on a background of 0, got data with values from -1; give data as"):
            drawing_page(given, (8, 8), data=data)
        assert html_bytes(given)


def test_an_npz_file_says_what_is_to_be_done(tmp_path: Path) -> None:
    models = [trained(), trained(preprocess=BOTH), trained(preprocess=Preprocessing(deskew=True))]
    (tmp_path / "c.npz").write_bytes(npz_bytes(Committee(models)))
    net = np.load(tmp_path / "c.npz")
    assert "member_0_deskew" not in net
    found = [(net[f"member_{k}_deskew"].item(), net[f"member_{k}_width"].item()) for k in (1, 2)]
    assert found == [(True, 6), (True, 0)]
    (tmp_path / "one.npz").write_bytes(npz_bytes(models[1]))
    assert {"deskew", "width"} < set(np.load(tmp_path / "one.npz"))


def test_a_run_is_trained_resumed_evaluated_and_used_with_it(tmp_path: Path, capsys: Captured) -> None:
    words = [*DIGITS, "--hidden", 16, "--preprocess", "deskew", "width=6", "--augment", "rotation=5", "--quiet"]
    assert run("train", *words, "--epochs", 3, "--out", tmp_path / "whole") == 0
    assert run("train", *words, "--epochs", 2, "--out", tmp_path / "run") == 0
    assert run("train", "--resume", tmp_path / "run", "--epochs", 3, "--quiet") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["preprocess"] == ["deskew", "width=6"]
    model, (_, test) = MLP.load(tmp_path / "run", device="cpu"), load_digits()
    assert run("evaluate", tmp_path / "run") == 0
    assert f"({model.evaluate(test).correct} of 360)" in capsys.readouterr().out
    np.save(tmp_path / "x.npy", test.images)
    assert run("predict", tmp_path / "run", tmp_path / "x.npy", "--out", tmp_path / "p.npy") == 0
    plain = MLP.load(tmp_path / "run", device="cpu")
    plain.inputs = None
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), plain.predict_proba(BOTH(test.images)))
    assert run("report", tmp_path / "run") == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    found = re.search(r'id="gpumlp-networks">(.*?)</script>', page, re.S)
    assert found
    (network,) = json.loads(found[1])
    assert [(each["deskew"], each["width"]) for each in network["preprocessing"]] == [(True, 6)]


@pytest.mark.parametrize("words", [["deskew=1"], ["width"], ["width=0"], ["width=6", "width=7"], ["slant"]])
def test_bad_options_are_refused_in_words(words: list[str], capsys: Captured) -> None:
    assert run("train", *DIGITS, "--preprocess", *words) == 2
    assert "preprocess: expected deskew, width=PIXELS (1 or more), or both, got" in capsys.readouterr().err
