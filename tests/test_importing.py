"""Networks of scikit-learn and PyTorch: the same predictions, or refused with the layer named."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, LeakyReLU, load_digits
from gpumlp.nn.importing import ImportedModelError


def test_neither_library_is_imported_unless_its_owner_has_done_so() -> None:
    code = (
        "import sys, gpumlp, gpumlp.nn.importing, gpumlp.predict, gpumlp.export\n"
        "print({'torch', 'sklearn', 'PIL', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -- scikit-learn ------------------------------------------------------------------------------------------


def fitted(x: np.ndarray, y: Any, **options: Any) -> Any:
    neural_network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    estimator = neural_network.MLPClassifier(random_state=0, **{"max_iter": 3, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged, of course
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


def test_what_is_no_fitted_classifier_is_refused() -> None:
    neural_network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    pipeline = pytest.importorskip("sklearn.pipeline")
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    several = fitted(x, np.stack([y, 1 - y], axis=1))
    regressor = neural_network.MLPRegressor(max_iter=1, solver="lbfgs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regressor.fit(x, y)
    classifier = fitted(x, y)
    with_another = fitted(x, y)
    with_another.activation = "gelu"
    for estimator, message in (
        (neural_network.MLPClassifier(), "got one without coefs_; call MLPClassifier.fit first"),
        (regressor, "expected an MLPClassifier, got MLPRegressor"),
        (several, "the output layer has 2 outputs and the activation 'logistic'"),
        (pipeline.make_pipeline(classifier), "got Pipeline; give its last step"),
        (with_another, "there is no equal of the activation 'gelu'"),
        (5, "expected a fitted MLPClassifier of scikit-learn, got int"),
    ):
        with pytest.raises(ImportedModelError, match=message):
            MLP.from_sklearn(estimator, device="cpu")


# -- PyTorch -----------------------------------------------------------------------------------------------


def torch_probabilities(network: Any, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        outputs = network(torch.from_numpy(x))
    return torch.softmax(outputs, dim=1).numpy()


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "Tanh", "Sigmoid", None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sequential_of_pytorch_predicts_the_same(activation: str | None, dtype: str, nn: Any) -> None:
    import torch

    options = {"negative_slope": 0.3} if activation == "LeakyReLU" else {}
    between = [] if activation is None else [lambda: getattr(nn, activation)(**options)]
    layers = [nn.Linear(12, 9), *(make() for make in between), nn.Linear(9, 7, bias=False)]
    layers += [*(make() for make in between), nn.Linear(7, 4)]
    network = nn.Sequential(*layers).to(getattr(torch, dtype))
    model = MLP.from_torch(network, device="cpu")
    assert (model.sizes, model.dtype.name) == ([12, 9, 7, 4], dtype)
    x = np.random.default_rng(0).normal(size=(50, 12)).astype(dtype)
    atol = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(model.predict_proba(x), torch_probabilities(network, x), atol=atol)

    own = LeakyReLU(0.3) if activation == "LeakyReLU" else (activation or "identity").lower()
    from_state = MLP.from_torch(network.state_dict(), activation=own, device="cpu")
    np.testing.assert_array_equal(from_state.predict_proba(x), model.predict_proba(x))


def test_what_does_nothing_or_a_softmax_at_the_end_is_understood(nn: Any) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 4)).astype("float32")
    body = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Dropout(0.5))
    network = nn.Sequential(nn.Flatten(), body, nn.Identity(), nn.Linear(6, 3))
    expected = torch_probabilities(network.eval(), x)
    for end in ([], [nn.Softmax(dim=1)], [nn.LogSoftmax(dim=-1), nn.Identity()]):
        model = MLP.from_torch(nn.Sequential(*network, *end).eval(), device="cpu")
        np.testing.assert_allclose(model.predict_proba(x), expected, atol=1e-6)


def test_a_sigmoid_behind_one_output_becomes_a_softmax_over_two(nn: Any) -> None:
    import torch

    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())
    x = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()[:, 0]
    model = MLP.from_torch(network, device="cpu")
    np.testing.assert_allclose(model.predict_proba(x)[:, 1], expected, atol=1e-6)


def test_half_precision_becomes_float32(nn: Any) -> None:
    import torch

    network = nn.Sequential(nn.Linear(3, 2)).to(torch.bfloat16)
    model = MLP.from_torch(network, device="cpu")
    assert model.dtype == np.float32
    np.testing.assert_array_equal(
        model.state_dict()["layers.0.weight"], network[0].weight.detach().float().numpy().T
    )


def test_what_has_no_equal_is_refused_with_the_layer_named(nn: Any) -> None:
    linear = nn.Linear
    for network, message in (
        (
            [linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 2)],
            r"layer 1, BatchNorm1d\(4.*there is no equal",
        ),
        ([linear(3, 4), nn.GELU(), linear(4, 2)], r"layer 1, GELU\(.*there is no equal of it"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), linear(4, 2)], r"layer 0, Conv2d\(.*there is no equal"),
        (
            [linear(3, 4), nn.ReLU(), linear(4, 4), nn.Tanh(), linear(4, 2)],
            r"layer 3, Tanh\(\): expected ReLU\(\)",
        ),
        (
            [linear(3, 4), nn.LeakyReLU(0.1), linear(4, 4), nn.LeakyReLU(0.2), linear(4, 2)],
            r"layer 3, LeakyReLU.*expected LeakyReLU\(negative_slope=0.1\) as in the layers before",
        ),
        ([linear(3, 4), nn.LeakyReLU(1.5), linear(4, 2)], "layer 1, LeakyReLU.*between 0 and 1, got 1.5"),
        ([linear(3, 4), nn.ReLU(), linear(4, 4), linear(4, 2)], "Linear layer 1: no activation follows it"),
        ([linear(3, 4), nn.ReLU(), nn.ReLU(), linear(4, 2)], "layer 2, ReLU.*expected one activation between two"),
        ([nn.ReLU(), linear(4, 2)], "layer 0, ReLU.*expected one activation between two"),
        ([linear(3, 4), nn.ReLU()], "layer 1, ReLU.*expected one activation between two"),
        ([linear(3, 4), nn.Sigmoid()], "layer 1, Sigmoid.*expected one activation between two"),
        ([linear(3, 4), nn.Softmax(dim=0)], "layer 1, Softmax.*expected only at the end, with dim=1"),
        ([linear(3, 4), nn.Softmax(dim=1), linear(4, 2)], "layer 1, Softmax.*expected only at the end"),
        ([linear(3, 4), nn.Softmax(dim=1), nn.Softmax(dim=1)], "layer 2, Softmax.*nothing can follow"),
        ([linear(3, 4), nn.ReLU(), nn.Flatten(), linear(4, 2)], "layer 2, Flatten.*expected only before all else"),
        ([nn.Flatten(0), linear(4, 2)], "layer 0, Flatten.*expected only before all else"),
        (
            [linear(3, 4), nn.ReLU(), nn.Dropout(), linear(4, 2)],
            r"layer 2, Dropout.*training mode.*call .eval\(\)",
        ),
        ([linear(3, 4), nn.ReLU(), linear(4, 1)], "the last layer has one output"),
        ([nn.ReLU()], "expected at least one Linear layer"),
        ([nn.Sequential(linear(3, 4), nn.SiLU()), linear(4, 2)], r"layer 0.1, SiLU\(\)"),
    ):
        with pytest.raises(ImportedModelError, match=message):
            MLP.from_torch(nn.Sequential(*network), device="cpu")

    class Own(nn.Module):
        pass

    with pytest.raises(ImportedModelError, match="got Own, whose order of layers is not known"):
        MLP.from_torch(Own(), device="cpu")
    with pytest.raises(ImportedModelError, match="activation= is for a state dict"):
        MLP.from_torch(nn.Sequential(linear(3, 2)), activation="relu", device="cpu")


def test_modules_that_come_again_are_there_again(nn: Any) -> None:
    twice, act = nn.Linear(5, 5), nn.ReLU()
    network = nn.Sequential(twice, act, twice, act, nn.Linear(5, 3))
    x = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    model = MLP.from_torch(network, device="cpu")
    assert model.sizes == [5, 5, 5, 3]
    np.testing.assert_allclose(model.predict_proba(x), torch_probabilities(network, x), atol=1e-5)


@pytest.mark.parametrize("change", ["hook", "pre_hook", "weight_norm", "parametrization"])
def test_what_computes_something_else_than_its_weights_is_refused(change: str) -> None:
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


def test_a_sequential_whose_layers_do_not_fit_is_named() -> None:
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
