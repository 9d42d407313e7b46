"""Imported and exported networks give the same predictions, or are refused with the layer named."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    ELU,
    MLP,
    Dataset,
    ImportedModelError,
    Inputs,
    LeakyReLU,
    ModelFileError,
    Tanh,
    fit,
    load_digits,
    load_mnist,
)
from gpumlp.exporting import html_bytes, npz_bytes, onnx_bytes
from gpumlp.interop.torch import _ACTIVATIONS, _one_order
from gpumlp.nn.activations import ACTIVATIONS as BUILT_IN
from gpumlp.nn.layers import Dropout
from gpumlp.nn.losses import LOSSES, LogisticCrossEntropy, PoissonDeviance, SoftmaxCrossEntropy, SquaredError

# -- scikit-learn ------------------------------------------------------------------------------------------


def fitted(x: np.ndarray, y: Any, **options: Any) -> Any:
    neural_network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    estimator = neural_network.MLPClassifier(random_state=0, **{"max_iter": 3, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return estimator.fit(x, y)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("hidden", [(16,), (12, 9), ()])
def test_a_classifier_of_scikit_learn_predicts_the_same(activation: str, hidden: tuple[int, ...]) -> None:
    train, test = load_digits()
    x = train.images.reshape(len(train), -1).astype("float64")
    estimator = fitted(x[:400], train.labels[:400], hidden_layer_sizes=hidden, activation=activation)
    model = MLP.from_sklearn(estimator, device="cpu")
    assert model.sizes == [64, *hidden, 10]
    assert model.dtype == np.float64
    x = test.images.reshape(len(test), -1).astype("float64")
    np.testing.assert_allclose(model.predict_proba(x), estimator.predict_proba(x), atol=1e-12)
    single = MLP.from_sklearn(estimator, device="cpu", dtype="float32")
    np.testing.assert_allclose(single.predict_proba(x), estimator.predict_proba(x), atol=1e-5)
    assert model.class_names == tuple(range(10))


def test_two_classes_have_one_logistic_output_there_and_two_softmax_outputs_here() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = np.where(x[:, 0] > x[:, 1], "yes", "no")
    estimator = fitted(x, y, hidden_layer_sizes=(7,), max_iter=50)
    model = MLP.from_sklearn(estimator, device="cpu")
    assert model.sizes == [5, 7, 2]
    assert model.class_names == ("no", "yes")
    np.testing.assert_allclose(model.predict_proba(9 * x), estimator.predict_proba(9 * x), atol=1e-12)
    assert [model.class_names[i] for i in model.predict(x)] == estimator.predict(x).tolist()


def test_float32_stays_float32() -> None:
    x = np.random.default_rng(0).normal(size=(60, 5)).astype("float32")
    model = MLP.from_sklearn(fitted(x, np.arange(60) % 3), device="cpu")
    assert model.dtype == np.float32


LIBRARIES = ["sklearn.neural_network", "gpumlp.sklearn"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "task", ["two classes", "three classes", "labels", "a value", "two values", "values of 0 or more"]
)
def test_every_kind_of_estimator_becomes_a_network_that_predicts_and_exports_the_same(
    library: str, task: str, tmp_path: Path
) -> None:
    module = pytest.importorskip(library)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    targets = {
        "two classes": np.where(x[:, 0] > 0, "yes", "no"),
        "three classes": 10 * (1 + np.digitize(x[:, 0], [-0.5, 0.5])),
        "labels": (x[:, :3] > 0).astype(int),
        "a value": x[:, 0],
        "two values": x[:, :2],
        "values of 0 or more": np.abs(x[:, :2]),
    }
    kind, options = ("MLPRegressor", {}) if "value" in task else ("MLPClassifier", {})
    if task == "values of 0 or more":
        options = {"loss": "poisson"}
    if library == "gpumlp.sklearn":
        options |= {"device": "cpu", "dtype": "float64"}
    estimator = getattr(module, kind)(hidden_layer_sizes=(7,), max_iter=30, random_state=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        estimator.fit(x, targets[task])
    model = MLP.from_sklearn(estimator, device="cpu")
    assert model.dtype == np.float64
    loss, names = {
        "two classes": ("softmax_cross_entropy", ("no", "yes")),
        "three classes": ("softmax_cross_entropy", (10, 20, 30)),
        "labels": ("logistic_cross_entropy", (0, 1, 2)),
        "values of 0 or more": ("poisson_deviance", None),
    }.get(task, ("squared_error", None))
    assert (model.loss.name, model.class_names) == (loss, names)
    expected, found = estimator.predict(x), model.predict(x)
    if task in ("two classes", "three classes"):
        assert [names[number] for number in found] == expected.tolist()
    else:
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-12)
    first = "outputs" if "value" in task else "probabilities"
    if first == "probabilities":
        expected = estimator.predict_proba(x)
        np.testing.assert_allclose(model.predict_proba(x), expected, atol=1e-12)
    again = MLP.load(model.save(tmp_path), device="cpu")
    assert (again.loss.name, again.class_names, again.inputs) == (loss, names, Inputs((4,), "any", ""))
    np.testing.assert_array_equal(again.logits(x), model.logits(x))
    assert npz_bytes(model)
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
    (exported,) = session(onnx_bytes(model)).run([first], {"samples": x})
    np.testing.assert_allclose(exported.reshape(expected.shape), expected, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_estimators_network_takes_uint8_as_numbers_as_the_estimator_does(library: str) -> None:
    module = pytest.importorskip(library)
    train, _ = load_digits()
    x, y = np.rint(16 * train.images).astype(np.uint8).reshape(len(train), -1), train.labels
    options = {"device": "cpu"} if library == "gpumlp.sklearn" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        estimator = module.MLPClassifier((16,), max_iter=5, random_state=0, **options).fit(x, y)
    model = MLP.from_sklearn(estimator, device="cpu")
    assert model.inputs == Inputs((64,), "any", "")
    for samples in (x, x.astype(np.float32), x.astype(np.int64)):
        np.testing.assert_allclose(model.predict_proba(samples), estimator.predict_proba(samples), atol=1e-5)


def test_labels_that_are_neither_text_nor_numbers_become_text() -> None:
    x, days = (
        np.random.default_rng(0).normal(size=(60, 5)),
        np.array(["2026-01-01", "2026-01-02"], "datetime64[D]"),
    )
    estimator = fitted(x, np.arange(60) % 2)
    estimator.classes_ = days
    assert MLP.from_sklearn(estimator, device="cpu").class_names == ("2026-01-01", "2026-01-02")


def test_anything_but_a_fitted_estimator_is_refused() -> None:
    neural_network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    pipeline = pytest.importorskip("sklearn.pipeline")
    model_selection = pytest.importorskip("sklearn.model_selection")
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    classifier = fitted(x, y)
    with_another = fitted(x, y)
    with_another.activation = "swish"
    not_finite = fitted(x, y)
    not_finite.coefs_[1][0] = np.nan
    for estimator, message in (
        (neural_network.MLPClassifier(), "got one without coefs_; call MLPClassifier.fit first"),
        (neural_network.MLPRegressor(), "got one without coefs_; call MLPRegressor.fit first"),
        (
            neural_network.MLPClassifier,
            "expected a fitted MLPClassifier or MLPRegressor.*got the class MLPClassifier",
        ),
        (pipeline.make_pipeline(classifier), "got Pipeline; give its last step"),
        (model_selection.GridSearchCV(classifier, {}), "got GridSearchCV; give its best_estimator_"),
        (with_another, "the activation 'swish' has no equivalent here"),
        (not_finite, "layers.1.weight is expected to be finite in float64"),
        (fitted(x, np.zeros(40)), r"expected two classes or more, got \[0.0\]"),
        (5, "expected a fitted MLPClassifier or MLPRegressor of scikit-learn or gpumlp.sklearn, got int"),
    ):
        with pytest.raises(ImportedModelError, match=message):
            MLP.from_sklearn(estimator, device="cpu")


# -- PyTorch -----------------------------------------------------------------------------------------------


def torch_probabilities(network: Any, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        outputs = network(torch.from_numpy(x))
    return torch.softmax(outputs, dim=1).numpy()


OPTIONS = {"LeakyReLU": {"negative_slope": 0.3}, "GELU": {"approximate": "tanh"}, "ELU": {"alpha": 0.7}}


@pytest.mark.parametrize("activation", [*_ACTIVATIONS, None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sequential_of_pytorch_predicts_the_same(activation: str | None, dtype: str, nn: Any) -> None:
    import torch

    options = OPTIONS.get(activation, {})
    between = [] if activation is None else [lambda: getattr(nn, activation)(**options)]
    layers = [nn.Linear(12, 9), *(make() for make in between), nn.Linear(9, 7, bias=False)]
    layers += [*(make() for make in between), nn.Linear(7, 4)]
    network = nn.Sequential(*layers).to(getattr(torch, dtype))
    model = MLP.from_torch(network, device="cpu")
    assert (model.sizes, model.dtype.name) == ([12, 9, 7, 4], dtype)
    x = np.random.default_rng(0).normal(size=(50, 12)).astype(dtype)
    atol = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(model.predict_proba(x), torch_probabilities(network, x), atol=atol)

    own = {"LeakyReLU": LeakyReLU(0.3), "ELU": ELU(0.7)}.get(activation, (activation or "identity").lower())
    from_state = MLP.from_torch(network.state_dict(), activation=own, device="cpu")
    np.testing.assert_array_equal(from_state.predict_proba(x), model.predict_proba(x))


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_first_data_decides_on_the_loss_of_a_network_of_pytorch(outputs: int, nn: Any) -> None:
    import torch

    network, rng = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)), np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)).astype("f"), rng.normal(size=(20, outputs))
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    for given in (network, network.state_dict()):
        activation = None if given is network else "tanh"
        model = MLP.from_torch(given, activation=activation, device="cpu")
        found = model.evaluate(Dataset(x, y))
        assert found.mae == pytest.approx(np.abs(expected - y).mean(), rel=1e-5)
        np.testing.assert_allclose(model.predict(x), expected, atol=1e-6)
        model = MLP.from_torch(given, activation=activation, device="cpu")
        model.evaluate(Dataset(x, rng.integers(0, max(2, outputs), 20), classes=max(2, outputs)))
        assert model.loss.name == ("logistic_cross_entropy" if outputs == 1 else "softmax_cross_entropy")
    closed = MLP.from_torch(nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)), device="cpu")
    with pytest.raises(ValueError, match="has the loss softmax_cross_entropy"):
        closed.evaluate(Dataset(x, rng.normal(size=(20, 3))))


def test_each_hidden_layer_may_have_its_own_activation(nn: Any) -> None:
    widths = [3, *(4 + index for index in range(len(_ACTIVATIONS) + 1)), 2]
    between = [getattr(nn, name)(**OPTIONS.get(name, {})) for name in _ACTIVATIONS] + [nn.Identity()]
    layers = [nn.Linear(*sizes) for sizes in itertools.pairwise(widths)]
    network = nn.Sequential(*itertools.chain(*zip(layers, between, strict=False)), layers[-1])
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    model = MLP.from_torch(network, device="cpu")
    assert list(map(str, model.activations)) == [
        *("ReLU()", "LeakyReLU(negative_slope=0.3)", "Tanh()", "Sigmoid()"),
        *("GELU()", "SiLU()", "ELU(alpha=0.7)", "Softplus()", "Identity()"),
    ]
    np.testing.assert_allclose(model.predict_proba(x), torch_probabilities(network, x), atol=1e-6)
    again = MLP.from_torch(network.state_dict(), activation=model.activations, device="cpu")
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    with pytest.raises(ValueError, match="activation"):
        MLP.from_torch(network.state_dict(), activation=["relu"], device="cpu")


def test_dropout_before_a_linear_layer_is_the_networks(nn: Any) -> None:
    network = nn.Sequential(
        *(nn.Dropout(0.2), nn.Flatten(), nn.Linear(12, 6), nn.Dropout(0.5), nn.Identity(), nn.ReLU()),
        *(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.25), nn.Dropout(0.2), nn.Linear(5, 4), nn.SiLU()),
        nn.Linear(4, 3),
    )
    model = MLP.from_torch(network, device="cpu")  # in training mode, which is not the network's
    rates = [(layer.in_features, layer.rate) for layer in model.layers if isinstance(layer, Dropout)]
    assert rates == [(12, 0.2), (6, 0.5), (5, pytest.approx(0.4))]
    x = np.random.default_rng(0).normal(size=(20, 12)).astype("float32")
    np.testing.assert_allclose(model.predict_proba(x), torch_probabilities(network.eval(), x), atol=1e-6)


def test_dropout_elsewhere_is_left_out_in_eval_mode_only(nn: Any) -> None:
    linear = nn.Linear
    for layers, place in (
        ([linear(3, 4), nn.Dropout(), nn.Tanh(), linear(4, 2)], 1),
        ([linear(3, 4), nn.ReLU(), linear(4, 2), nn.Dropout()], 3),
        ([nn.Dropout(1.0), linear(3, 2)], 0),
    ):
        network = nn.Sequential(*layers)
        with pytest.raises(ImportedModelError, match=f"layer {place}, Dropout.*only before a Linear layer"):
            MLP.from_torch(network, device="cpu")
        model = MLP.from_torch(network.eval(), device="cpu")
        assert not any(isinstance(layer, Dropout) for layer in model.layers)


def test_layers_without_effect_and_a_final_softmax_are_accepted(nn: Any) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 4)).astype("float32")
    body = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Dropout(0.5))
    network = nn.Sequential(nn.Flatten(), body, nn.Identity(), nn.Linear(6, 3))
    expected = torch_probabilities(network.eval(), x)
    for end in ([], [nn.Softmax(dim=1)], [nn.LogSoftmax(dim=-1), nn.Identity()]):
        model = MLP.from_torch(nn.Sequential(*network, *end).eval(), device="cpu")
        np.testing.assert_allclose(model.predict_proba(x), expected, atol=1e-6)


def test_a_sigmoid_after_one_output_becomes_a_softmax_over_two(nn: Any) -> None:
    import torch

    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())
    x = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()[:, 0]
    model = MLP.from_torch(network, device="cpu")
    np.testing.assert_allclose(model.predict_proba(x)[:, 1], expected, atol=1e-6)


def test_a_sigmoid_after_several_outputs_is_of_labels(nn: Any) -> None:
    import torch

    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5)).astype("float32")
    data = Dataset(x, rng.integers(0, 2, (20, 3)), task="labels")
    ours = MLP([5, 4, 3], "tanh", device="cpu")
    fit(ours, data, epochs=3, batch_size=10)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Sigmoid())
    names = [f"layers.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")]
    tensors = [torch.from_numpy(ours.state_dict()[name].T) for name in names]
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    again = MLP.from_torch(network, device="cpu")
    np.testing.assert_allclose(again.predict_proba(x), expected, atol=1e-6)
    np.testing.assert_array_equal(again.predict_proba(x), ours.predict_proba(x))
    assert again.evaluate(data) == ours.evaluate(data)


def test_half_precision_becomes_float32(nn: Any) -> None:
    import torch

    network = nn.Sequential(nn.Linear(3, 2)).to(torch.bfloat16)
    model = MLP.from_torch(network, device="cpu")
    assert model.dtype == np.float32
    np.testing.assert_array_equal(
        model.state_dict()["layers.0.weight"], network[0].weight.detach().float().numpy().T
    )


def test_a_layer_without_an_equivalent_is_refused_by_name(nn: Any) -> None:
    linear = nn.Linear
    for network, message in (
        (
            [linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 2)],
            r"layer 1, BatchNorm1d\(4.*has no equivalent here",
        ),
        ([linear(3, 4), nn.Mish(), linear(4, 2)], r"layer 1, Mish\(.*has no equivalent here"),
        (
            [linear(3, 4), nn.GELU(), linear(4, 2)],
            r"layer 1, GELU\(.*expected GELU\(approximate='tanh'\), .* less than 5e-4",
        ),
        ([linear(3, 4), nn.Softplus(beta=2), linear(4, 2)], r"layer 1, Softplus\(.*expected .* beta=1"),
        ([linear(3, 4), nn.Softplus(threshold=5), linear(4, 2)], r"layer 1, Softplus\(.*threshold of 20"),
        ([linear(3, 4), nn.ELU(-1.0), linear(4, 2)], r"layer 1, ELU\(.*above 0, got -1"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), linear(4, 2)], r"layer 0, Conv2d\(.*has no equivalent here"),
        ([linear(3, 4), nn.LeakyReLU(1.5), linear(4, 2)], "layer 1, LeakyReLU.*above 0 and below 1, got 1.5"),
        (
            [linear(3, 4), nn.ReLU(), nn.ReLU(), linear(4, 2)],
            "layer 2, ReLU.*expected a single activation between two",
        ),
        ([nn.ReLU(), linear(4, 2)], "layer 0, ReLU.*expected a single activation between two"),
        ([linear(3, 4), nn.ReLU()], "layer 1, ReLU.*expected a single activation between two"),
        ([linear(3, 4), nn.Sigmoid(), nn.Sigmoid()], "layer 2, Sigmoid.*no layer may follow"),
        ([linear(3, 4), nn.Softmax(dim=0)], "layer 1, Softmax.*expected only at the end, with dim=1"),
        ([linear(3, 1), nn.Softmax(dim=1)], "layer 1, Softmax.*expected 2 outputs or more, got one"),
        ([linear(3, 1), nn.LogSoftmax(dim=1)], "layer 1, LogSoftmax.*expected 2 outputs or more, got one"),
        ([linear(3, 4), nn.Softmax(dim=1), linear(4, 2)], "layer 1, Softmax.*expected only at the end"),
        ([linear(3, 4), nn.Softmax(dim=1), nn.Softmax(dim=1)], "layer 2, Softmax.*no layer may follow"),
        (
            [linear(3, 4), nn.ReLU(), nn.Flatten(), linear(4, 2)],
            "layer 2, Flatten.*expected only as the first layer",
        ),
        ([nn.Flatten(0), linear(4, 2)], "layer 0, Flatten.*expected only as the first layer"),
        ([nn.ReLU()], "expected at least one Linear layer"),
        ([nn.Sequential(linear(3, 4), nn.PReLU()), linear(4, 2)], r"layer 0.1, PReLU\("),
    ):
        with pytest.raises(ImportedModelError, match=message):
            MLP.from_torch(nn.Sequential(*network), device="cpu")

    with pytest.raises(ImportedModelError, match="activation= is only for a state dict"):
        MLP.from_torch(nn.Sequential(linear(3, 2)), activation="relu", device="cpu")


def test_repeated_modules_are_repeated_layers(nn: Any) -> None:
    twice, act = nn.Linear(5, 5), nn.ReLU()
    network = nn.Sequential(twice, act, twice, act, nn.Linear(5, 3))
    x = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    model = MLP.from_torch(network, device="cpu")
    assert model.sizes == [5, 5, 5, 3]
    np.testing.assert_allclose(model.predict_proba(x), torch_probabilities(network, x), atol=1e-5)


def test_a_class_with_the_name_of_pytorchs_may_compute_anything(nn: Any) -> None:
    class Linear(nn.Linear):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    class Sequential(nn.Sequential):  # type: ignore[misc]
        pass

    changed = nn.Sequential(nn.Linear(5, 3))
    changed.forward = lambda x: x
    for network, message in (
        (nn.Sequential(Linear(5, 3)), "expected at least one Linear layer in the Sequential, got none"),
        (nn.Sequential(Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), r"layer 0, Linear.*has no equivalent here"),
        (Sequential(nn.Linear(5, 3)), r"expected a Sequential or a state dict, got .*test_interop.Sequential"),
        (changed, r"Sequential: has a forward\(\) of its own"),
    ):
        with pytest.raises(ImportedModelError, match=message):
            MLP.from_torch(network, device="cpu")


@pytest.mark.parametrize("change", ["hook", "pre_hook", "weight_norm", "parametrization"])
def test_hooks_and_parametrizations_are_refused(change: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.Linear(5, 4)
    if change == "hook":
        layer.register_forward_hook(lambda module, x, out: 2 * out)
    elif change == "pre_hook":
        layer.register_forward_pre_hook(lambda module, x: None)
    elif change == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = torch.nn.utils.weight_norm(layer)
    else:
        layer = torch.nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(ImportedModelError, match=r"(?s)layer 0, .*hooks or parametrizations"):
        MLP.from_torch(torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Linear(4, 3)), device="cpu")


def test_a_layer_that_does_not_fit_is_named() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(3, 3))
    with pytest.raises(ImportedModelError, match=r"layer 2, .*expected 4 inputs"):
        MLP.from_torch(network, device="cpu")
    network = torch.nn.Sequential(torch.nn.Linear(5, 4, device="meta"))
    with pytest.raises(ImportedModelError, match=r"layer 0, .*meta"):
        MLP.from_torch(network, device="cpu")


def test_a_sequential_with_a_hook_of_its_own_is_refused(nn: Any) -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    network.register_forward_hook(lambda module, x, out: 2 * out)
    with pytest.raises(ImportedModelError, match="Sequential: has hooks"):
        MLP.from_torch(network, device="cpu")


# -- What else of PyTorch is given -----------------------------------------------------------------------------


@pytest.fixture
def network(nn: Any) -> Any:
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def assert_taken(given: Any, network: Any, activation: str | None = None) -> None:
    x = np.random.default_rng(0).normal(size=(20, 16)).astype("float32")
    model = MLP.from_torch(given, activation=activation, device="cpu")
    np.testing.assert_allclose(model.predict_proba(x), torch_probabilities(network, x), atol=1e-6)


def test_a_network_of_pytorch_takes_uint8_as_numbers(network: Any) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 16)).astype(np.uint8)
    expected = torch_probabilities(network, x.astype("float32"))
    np.testing.assert_allclose(MLP.from_torch(network, device="cpu").predict_proba(x), expected, atol=1e-4)


@pytest.fixture
def wrapped(request: Any, network: Any, nn: Any) -> Iterator[Any]:
    """The network in one of PyTorch's wrappers, which compute the same."""
    import torch
    import torch.distributed as distributed

    compiled = functools.partial(torch.compile, backend="eager")
    if request.param == "DistributedDataParallel":
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        yield nn.parallel.DistributedDataParallel(network)
        distributed.destroy_process_group()
    else:
        yield {
            "DataParallel": nn.DataParallel,
            "AveragedModel": torch.optim.swa_utils.AveragedModel,
            "compile": compiled,
            "compile(DataParallel)": lambda network: compiled(nn.DataParallel(network)),
            "a compiled layer": lambda network: nn.Sequential(compiled(network[0]), *network[1:]),
        }[request.param](network)


@pytest.mark.parametrize(
    "wrapped",
    [
        *("DataParallel", "DistributedDataParallel", "AveragedModel"),
        *("compile", "compile(DataParallel)", "a compiled layer"),
    ],
    indirect=True,
)
def test_wrapped_networks_and_their_state_dicts_are_unwrapped(wrapped: Any, network: Any) -> None:
    assert_taken(wrapped, network)
    assert_taken(wrapped.state_dict(), network, "relu")
    assert_taken(dict(sorted(wrapped.state_dict().items())), network, "relu")


def test_a_wrapper_with_a_hook_is_refused(network: Any, nn: Any) -> None:
    wrapped = nn.DataParallel(network)
    wrapped.register_forward_hook(lambda module, x, out: 2 * out)
    with pytest.raises(ImportedModelError, match="DataParallel: has hooks"):
        MLP.from_torch(wrapped, device="cpu")


def test_the_network_in_the_checkpoint_of_a_training_is_found(network: Any) -> None:
    import torch

    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 16)).sum().backward()
    optimizer.step()
    state, rest = network.state_dict(), {"epoch": 3, "optimizer": optimizer.state_dict(), "config": {"hidden": 8}}
    lightning = {f"model.{name}": tensor for name, tensor in state.items()}
    for checkpoint in ({"model_state_dict": state}, {"state_dict": lightning}, {"trainer": {"net": state}}):
        assert_taken({**rest, **checkpoint}, network, "relu")
    assert_taken({**rest, "model": network}, network)
    with pytest.raises(ImportedModelError, match=r"several; give given\['model'\] or given\['ema'\]\['net'\]$"):
        MLP.from_torch({"model": state, "ema": {"net": state}}, activation="relu", device="cpu")


def test_a_module_of_ones_own_is_refused_with_the_remedy(nn: Any) -> None:
    class Net(nn.Module):
        pass

    for given, remedy in ((Net(), "its "), (nn.DataParallel(Net()), "its "), ({"net": Net()}, "given['net'].")):
        message = f"expected a Sequential or a state dict, got Net; give {remedy}state_dict()"
        with pytest.raises(ImportedModelError, match=f"^{re.escape(message)}$"):
            MLP.from_torch(given, activation="relu", device="cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "got None; give model.state_dict()"),
        (MLP, "got the class MLP; give model.state_dict()"),
        ([np.zeros((2, 3))], "got list; give model.state_dict()"),
        (b"content", "got bytes; give model.state_dict()"),
        ("net.pt", "got the path 'net.pt'; give what torch.load('net.pt') returns"),
        (Path("net.safetensors"), "give what safetensors.numpy.load_file('net.safetensors') returns"),
    ],
    ids=str,
)
def test_what_is_no_network_is_refused(given: Any, message: str) -> None:
    for activation in (None, "relu"):
        with pytest.raises(ImportedModelError, match=f"^expected a Sequential.*{re.escape(message)}$"):
            MLP.from_torch(given, activation=activation, device="cpu")


def test_quantized_layers_are_refused_by_name(network: Any, nn: Any) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        quantized = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    weight = torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)
    for given, name in (
        (quantized, "layer 0, DynamicQuantizedLinear"),
        (quantized.state_dict(), "0._packed_params"),
        ({"0.weight": weight}, "0.weight"),
    ):
        with pytest.raises(ImportedModelError, match=f"^{name}.* is quantized; give the network as it was before"):
            MLP.from_torch(given, activation="relu" if isinstance(given, dict) else None, device="cpu")


def test_layers_that_have_no_weights_yet_are_named(nn: Any) -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    for given, name in ((lazy, "layer 0, LazyLinear"), (lazy.state_dict(), "0.weight")):
        with pytest.raises(ImportedModelError, match=f"^{name}.* has no weights yet; call the network"):
            MLP.from_torch(given, activation="relu" if isinstance(given, dict) else None, device="cpu")


def test_tensors_that_are_no_plain_arrays_are_named(nn: Any) -> None:
    import torch

    with pytest.raises(ImportedModelError, match=r"^0.weight: cannot be read as an array: .*[Ss]parse") as error:
        MLP.from_torch({"0.weight": torch.ones(3, 4).to_sparse()}, device="cpu")
    assert "\n" not in str(error.value)


# -- State dicts of PyTorch -----------------------------------------------------------------------------------


def test_a_state_dict_is_checked_name_by_name() -> None:
    weight, bias = np.zeros((4, 3)), np.zeros(4)
    layers = OrderedDict({"0.weight": weight, "0.bias": bias, "2.weight": np.zeros((2, 4)), "2.bias": np.zeros(2)})
    assert MLP.from_torch(layers, activation="tanh", device="cpu").sizes == [3, 4, 2]
    for state, message in (
        (layers, "does not contain the activation of the hidden layers; give activation="),
        ({}, "the state dict is empty"),
        ({**layers, "1.weight": bias, "1.running_mean": bias}, r"1.weight of shape \(4,\): expected only weights"),
        ({"0.weight": np.zeros((4, 3, 5, 5))}, r"0.weight of shape \(4, 3, 5, 5\): expected only"),
        ({"0.weight": weight, "2.weight": np.zeros((2, 5))}, "2.weight: expected 4 inputs"),
    ):
        with pytest.raises(ImportedModelError, match=message):
            MLP.from_torch(state, device="cpu", activation=None if state is layers else "relu")


def test_a_single_linear_layer_needs_no_activation() -> None:
    weight = np.arange(6.0).reshape(2, 3)
    model = MLP.from_torch({"weight": weight, "bias": np.array([1.0, 2.0])}, device="cpu")
    np.testing.assert_array_equal(model.logits(np.eye(3)), weight.T + np.array([1, 2]))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": [[1.0, 2.0]]}, "0.weight: expected a tensor or an array, got list"),
        ({"0.weight": np.full((3, 2), np.nan)}, "0.weight: expected finite weights"),
        ({"0.weight": np.ones((3, 2), dtype=complex)}, "0.weight: expected real .* weights, got complex128"),
        ({"0.weight": np.ones((3, 2), dtype=np.int8)}, "0.weight: expected real .* weights, got int8"),
        ({"0.weight": np.ones((3, 2)), "0.bias": np.ones(2)}, "0.weight: expected a bias of 3 values"),
        ({"0.weight": np.ones((3, 2)), "1.weight": np.ones((3, 4))}, "1.weight: expected 3 inputs"),
    ],
)
def test_unusable_weights_are_named(state: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportedModelError, match=message):
        MLP.from_torch(state, activation="relu", device="cpu")


# -- The order of the layers of a state dict ----------------------------------------------------------------


def test_layers_are_ordered_by_their_numbers_not_by_the_file() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    parts = [part for _ in range(12) for part in (torch.nn.Linear(6, 6), torch.nn.Tanh())]
    network = torch.nn.Sequential(*parts, torch.nn.Linear(6, 3))
    x = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(x)), 1).numpy()
    shuffled = dict(sorted(network.state_dict().items()))  # "0", "10", "12", "2", ...: as safetensors has them
    for prefix in ("", "model.net."):
        state = {prefix + name: tensor for name, tensor in shuffled.items()}
        found = MLP.from_torch(state, activation="tanh", device="cpu").predict_proba(x)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_layers_are_ordered_by_numbers_within_names() -> None:
    rng = np.random.default_rng(0)
    layers = {f"fc{number}.weight": rng.normal(size=(4, 4)) for number in range(1, 13)}
    model = MLP.from_torch(dict(sorted(layers.items())), activation="tanh", device="cpu", dtype="float64")
    for index, weight in enumerate(layers.values()):
        np.testing.assert_array_equal(model.state_dict()[f"layers.{index}.weight"], weight.T)


def test_layers_are_refused_if_names_and_widths_leave_their_order_open() -> None:
    square, names = np.ones((4, 4)), ("first", "second", "last")
    with pytest.raises(ImportedModelError, match="the order of the layers is not known from the names first"):
        MLP.from_torch({f"{name}.weight": square for name in names}, activation="relu", device="cpu")
    shapes = [(5, 3), (5, 5), (2, 5)]
    state = {f"{name}.weight": np.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    assert MLP.from_torch(state, activation="relu", device="cpu").sizes == [3, 5, 5, 2]


def test_a_state_dict_from_pytorch_is_in_the_order_of_the_network(nn: Any) -> None:
    layers = OrderedDict((name, nn.Linear(4, 4)) for name in ("first", "second", "last"))
    state = nn.Sequential(layers).state_dict()
    model = MLP.from_torch(state, activation="relu", device="cpu")
    for index, name in enumerate(layers):
        np.testing.assert_array_equal(model.state_dict()[f"layers.{index}.weight"], state[f"{name}.weight"].T)
    with pytest.raises(ImportedModelError, match="the order of the layers is not known"):
        MLP.from_torch(dict(state), activation="relu", device="cpu")


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_widths_determine_the_order_exactly_if_no_other_fits(layers: int) -> None:
    for widths in itertools.product(range(3), repeat=layers + 1):
        steps = list(itertools.pairwise(widths))
        fitting = [
            order
            for order in itertools.permutations(range(layers))
            if all(steps[a][1] == steps[b][0] for a, b in itertools.pairwise(order))
        ]
        assert _one_order(list(widths)) == (len(fitting) == 1), widths


# -- ONNX --------------------------------------------------------------------------------------------------


# Every built-in activation, those with an argument with another value than the default.
ACTIVATIONS = [{"leaky_relu": LeakyReLU(0.2), "elu": ELU(0.7)}.get(name, name) for name in BUILT_IN]


def session(content: bytes) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason='onnxruntime is not installed: pip install ".[test]"')
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


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_onnxruntime_gives_the_same_on_a_thousand_images(activation: object, dtype: str) -> None:
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
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
def test_onnx_of_a_network_with_different_layers(dtype: str) -> None:
    """In onnxruntime, and in the reference evaluator, which is strict about types."""
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
    from onnx.reference import ReferenceEvaluator

    sizes, activations = [5, *range(6, 6 + len(ACTIVATIONS)), 3], [*ACTIVATIONS[::-1]]
    model = MLP(sizes, activations, dropout=0.5, input_dropout=0.2, seed=2, device="cpu", dtype=dtype)
    x = np.random.default_rng(0).normal(scale=30, size=(50, 5)).astype(dtype)
    content = onnx_bytes(model)
    for program in (session(content), ReferenceEvaluator(content)):
        with np.errstate(over="ignore", invalid="ignore"):  # in the evaluator's sigmoid
            (found,) = program.run(["logits"], {"samples": x})
        assert found.dtype == dtype
        np.testing.assert_allclose(found, model.logits(x), atol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [[12, 3], [12, 7, 3]])
def test_values_other_than_uint8_are_used_as_they_are(dtype: str, sizes: list[int]) -> None:
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
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
    [
        ("squared_error", ["outputs"]),
        ("poisson_deviance", ["outputs"]),
        ("logistic_cross_entropy", ["probabilities", "logits"]),
    ],
)
def test_other_losses_have_other_outputs(loss: str, names: list[str]) -> None:
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
    model = MLP([6, 5, 1], "tanh", loss=loss, device="cpu")
    x = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    program = session(onnx_bytes(model))
    assert [output.name for output in program.get_outputs()] == names
    expected = [model.predict_proba(x), model.logits(x)] if len(names) == 2 else [model.predict(x)]
    for found, right in zip(program.run(None, {"samples": x}), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize(
    "base",
    [SoftmaxCrossEntropy, LogisticCrossEntropy, PoissonDeviance, SquaredError],
    ids=lambda base: base.output,
)
def test_a_loss_of_ones_own_has_the_outputs_of_its_predictions(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')

    class Own(base):  # type: ignore[misc]
        name = "own"

    class Other(Own):  # type: ignore[misc]
        name = "other"

        def predictions(self, outputs: Any) -> Any:
            return super().predictions(-outputs)

    for kind in (Own, Other):
        monkeypatch.setitem(LOSSES, kind.name, kind)
    contents = [onnx_bytes(MLP([6, 3], loss=loss, seed=1, device="cpu")) for loss in (base(), Own())]
    x = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    expected, found = (session(content).run(None, {"samples": x}) for content in contents)
    assert len(found) == len(expected)
    for array, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, right)
    with pytest.raises(ModelFileError, match=r"the loss Other\(\) .*predictions or probabilities of its own"):
        onnx_bytes(MLP([6, 3], loss=Other(), device="cpu"))
    model = MLP([784, 3], loss=Other(), device="cpu")
    model.inputs = Inputs((28, 28), "uint8", "mnist")
    with pytest.raises(ModelFileError, match=r"cannot make a page .* predictions or probabilities of its own"):
        html_bytes(model)


def test_the_names_of_classes_are_in_the_file() -> None:
    onnx = pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')
    model = MLP([4, 2], device="cpu")
    model.class_names = ("no", "yes")
    program = onnx.load_from_string(onnx_bytes(model))
    assert json.loads({entry.key: entry.value for entry in program.metadata_props}["class_names"]) == ["no", "yes"]
    assert program.producer_name == "gpumlp"


@pytest.mark.parametrize("base", [Tanh, LeakyReLU])
def test_a_custom_activation_is_refused(base: Any) -> None:
    pytest.importorskip("onnx", reason='onnx is not installed: pip install ".[onnx]"')

    class Own(base):  # type: ignore[misc]
        name = "own"

    with pytest.raises(ModelFileError, match=r"the activation .* has no equivalent in ONNX"):
        onnx_bytes(MLP([3, 4, 2], Own(), device="cpu"))


# -- NumPy ---------------------------------------------------------------------------------------------------


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
def test_the_npz_file_describes_the_whole_network(activation: object, tmp_path: Path) -> None:
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
            "alpha",
            "loss",
            "shape",
            "class_names",
        ]
    )
    assert (str(net["activation"]), net["divisor"], net["shape"].tolist()) == (model.activation.name, 1, [6])
    assert net["negative_slope"] == (0.2 if isinstance(activation, LeakyReLU) else 0)
    assert net["alpha"] == (0.7 if isinstance(activation, ELU) else 0)
    assert net["class_names"].tolist() == ["a", "b", "c"]
    assert net["weight_0"].dtype == np.float64
    np.testing.assert_array_equal(net["weight_1"], model.state_dict()["layers.1.weight"])


def test_the_npz_file_names_the_activation_of_each_layer(tmp_path: Path) -> None:
    model = MLP([6, 5, 4, 4, 3], [ELU(0.5), "relu", LeakyReLU(0.25)], dropout=0.5, device="cpu", dtype="float64")
    (tmp_path / "network.npz").write_bytes(npz_bytes(model))
    net = np.load(tmp_path / "network.npz", allow_pickle=False)
    assert net["activation"].tolist() == ["elu", "relu", "leaky_relu"]
    assert (net["alpha"].tolist(), net["negative_slope"].tolist()) == ([0.5, 0, 0], [0, 0, 0.25])


@pytest.mark.parametrize("names", [None, ("no", "yes")])
def test_the_npz_file_names_both_classes_of_one_output(names: object, tmp_path: Path) -> None:
    model = MLP([6, 1], loss="logistic_cross_entropy", device="cpu")
    model.class_names = names  # type: ignore[assignment]
    (tmp_path / "network.npz").write_bytes(npz_bytes(model))
    net = np.load(tmp_path / "network.npz", allow_pickle=False)
    assert net["class_names"].tolist() == list(names or (0, 1))  # type: ignore[call-overload]


@pytest.mark.parametrize("content", [npz_bytes, onnx_bytes])
def test_a_layer_of_the_users_is_not_exported(content: Any) -> None:
    class Own(Dropout):
        name = "own"

    model = MLP([Own(3), *MLP([3, 2], device="cpu").layers], device="cpu")
    with pytest.raises(ModelFileError, match=r"the layer .* has no equivalent outside gpumlp"):
        content(model)
