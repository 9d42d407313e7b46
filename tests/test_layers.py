"""Layers: dropout and its statistics, networks of given layers, and a complete layer of the user's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    ELU,
    MLP,
    SGD,
    Callback,
    Dataset,
    Dense,
    Dropout,
    Layer,
    ModelFileError,
    Tanh,
    Trainer,
    fit,
    register,
)
from gpumlp.backends import DROPOUT, Backend, Draws, get_backend
from gpumlp.backends.numpy import NumpyBackend
from gpumlp.nn.layers import LAYERS, Cache
from gpumlp.nn.network import Workspace
from tests.own_rules import Scaled
from tests.strict_device import StrictBackend

CPU = get_backend("cpu")
FIRST = Draws(0, DROPOUT, 0, 0, 0)
RATES = [0.0, 0.1, 0.25, 0.5, 0.9]


def mask(rate: float, rows: int, units: int, draws: Draws = FIRST, backend: Backend = CPU) -> np.ndarray:
    """What dropout multiplies with: 0, or 1 / (1 - rate)."""
    ones = backend.asarray(np.ones((rows, units)))
    out, kept = backend.xp.empty_like(ones), backend.xp.empty_like(ones, dtype=bool)
    backend.dropout(ones, rate, draws, kept, out)
    np.testing.assert_array_equal(backend.to_numpy(kept), backend.to_numpy(out) > 0)
    delta = backend.asarray(np.ones((rows, units)))
    backend.dropout_backward(delta, rate, draws, kept)
    np.testing.assert_array_equal(backend.to_numpy(delta), backend.to_numpy(out))
    return backend.to_numpy(out)


def forward(model: MLP, x: np.ndarray, draws: Draws | None = None, training: bool = True) -> np.ndarray:
    workspace = Workspace(model, len(x), pixels=False, training=training)
    workspace.inputs[:] = x
    model.forward_pass(workspace, draws)
    return workspace.logits.copy()


# -- The statistics of dropout -----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_the_share_that_is_dropped_and_the_rest_is_scaled(rate: float) -> None:
    """Within five standard deviations of the binomial distribution, over all, and for each unit and each row."""
    rows, units = 2000, 300
    found = mask(rate, rows, units)
    assert set(np.unique(found)) <= {0.0, 1 / (1 - rate)}
    dropped, deviation = found == 0, np.sqrt(rate * (1 - rate))
    for axis, count in ((None, rows * units), (0, rows), (1, units)):
        assert np.abs(dropped.mean(axis=axis) - rate).max() <= 5 * deviation / np.sqrt(count)
    assert found.mean() == pytest.approx(1, abs=5 * np.sqrt(rate / (1 - rate) / (rows * units)))


def test_units_rows_steps_layers_and_seeds_are_independent() -> None:
    """Correlations of masks are within five standard deviations of 0."""
    draws = FIRST
    base = mask(0.5, 500, 400, draws)
    others = {
        "next unit": (base[:, 1:], base[:, :-1]),
        "next row": (base[1:], base[:-1]),
        "next block of eight": (base[:, 8:], base[:, :-8]),
    }
    for name, changed in {
        "seed": draws._replace(seed=1),
        "large seed": draws._replace(seed=2**40),
        "step": draws._replace(step=1),
        "layer": draws._replace(layer=1),
        "purpose": draws._replace(purpose=DROPOUT + 1),
        "row": draws._replace(row=500),
    }.items():
        others[name] = (base, mask(0.5, 500, 400, changed))
    for name, (one, other) in others.items():
        correlation = np.mean((one - 1) * (other - 1))  # both have mean 1 and variance 1
        assert abs(correlation) < 5 / np.sqrt(one.size), name


def test_a_mask_of_a_higher_rate_drops_more_of_the_same_units() -> None:
    """Each unit has one number, which is compared with the rate."""
    low, high = mask(0.2, 50, 70), mask(0.6, 50, 70)
    assert ((low > 0) >= (high > 0)).all()


@pytest.mark.parametrize("units", [1, 7, 8, 9, 64, 100])
@pytest.mark.parametrize("device", [CPU, StrictBackend()], ids=["cpu", "strict"])
def test_masks_do_not_depend_on_the_device_or_the_division_of_a_batch(units: int, device: Backend) -> None:
    draws = Draws(2**63 + 5, DROPOUT, 12345678901, 3, 0)
    whole = mask(0.4, 20, units, draws)
    parts = [mask(0.4, count, units, draws._replace(row=row), device) for row, count in ((0, 1), (1, 12), (13, 7))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("rate", [1e-12, 1 - 1e-12])
def test_rates_close_to_0_and_1(rate: float) -> None:
    found = mask(rate, 100, 100)
    assert np.isfinite(found).all()
    assert (found > 0).mean() == (1 if rate < 0.5 else 0)


@pytest.mark.parametrize("rate", [1.0, -0.1, 2, np.nan, "half", True])
def test_a_rate_out_of_range_is_refused(rate: Any) -> None:
    with pytest.raises(
        ValueError, match="the rate of dropout is expected to be a number of at least 0 and below 1"
    ):
        Dropout(5, rate)


# -- Dropout in a network ----------------------------------------------------------------------------------


def dropout_net(activation: Any = "tanh", **options: Any) -> MLP:
    options = {"dropout": 0.5, "input_dropout": 0.2, "dtype": "float64", "device": "cpu"} | options
    return MLP([20, 30, 25, 4], activation, seed=1, **options)


def test_the_layers_of_a_network_with_dropout() -> None:
    assert repr(dropout_net().layers) == (
        "[Dropout(20, 0.2), Dense(20, 30, 'tanh'), Dropout(30, 0.5), Dense(30, 25, 'tanh'), Dropout(25, 0.5), "
        "Dense(25, 4, 'identity')]"
    )
    some = MLP([20, 30, 25, 4], dropout=[0.0, 0.3], device="cpu")
    assert repr(some.layers[1:3]) == "[Dense(30, 25, 'relu'), Dropout(25, 0.3)]"
    assert dropout_net().sizes == [20, 30, 25, 4]
    assert [type(layer) for layer in dropout_net().dense_layers] == [Dense] * 3


def test_dropout_changes_neither_initial_weights_nor_their_names() -> None:
    plain, state = dropout_net(dropout=0.0, input_dropout=0.0).state_dict(), dropout_net().state_dict()
    assert list(state) == list(plain)
    for name, tensor in plain.items():
        np.testing.assert_array_equal(state[name], tensor)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("device", ["cpu", StrictBackend()], ids=["cpu", "strict"])
def test_in_inference_nothing_is_dropped_or_scaled(activation: str, device: Any, blobs: Dataset) -> None:
    model = dropout_net(activation, device=device)
    plain = dropout_net(activation, device=device, dropout=0.0, input_dropout=0.0)
    for _ in range(2):
        np.testing.assert_array_equal(model.logits(blobs.images), plain.logits(blobs.images))
        assert model.evaluate(blobs) == plain.evaluate(blobs)
        Trainer(model, blobs, batch_size=32).run(1)
        plain.load_state_dict(model.state_dict())


def test_in_inference_dropout_needs_no_arrays() -> None:
    model, plain = dropout_net(), dropout_net(dropout=0.0, input_dropout=0.0)

    def addresses(model: MLP) -> int:
        arrays = Workspace(model, 16, pixels=False).arrays()
        return sum({array.ctypes.data: array.nbytes for array in arrays}.values())

    assert addresses(model) == addresses(plain)


def test_validation_and_metrics_while_training_are_without_dropout(blobs: Dataset) -> None:
    model = dropout_net()
    history = fit(model, blobs, epochs=2, validation=blobs, batch_size=32)
    assert history["validation_loss"][-1] == pytest.approx(model.evaluate(blobs).loss, rel=1e-12)
    assert history["train_loss"][-1] > history["validation_loss"][-1]  # of networks without half of their units


def test_the_mean_over_the_masks_is_the_output_of_a_linear_network() -> None:
    model = MLP([20, 30, 4], "identity", dropout=0.5, input_dropout=0.2, dtype="float64", device="cpu")
    x = np.random.default_rng(0).normal(size=(3, 20))
    draws = Draws(0, DROPOUT, 0, 0, 0)
    found = np.array([forward(model, x, draws._replace(step=step)) for step in range(4000)])
    error = np.abs(found.mean(axis=0) - forward(model, x, training=False))
    assert (error < 5 * found.std(axis=0) / np.sqrt(4000)).all()


def test_every_layer_has_masks_of_its_own() -> None:
    model = MLP([8, 8, 8, 8], "identity", dropout=0.5, input_dropout=0.5, dtype="float64", device="cpu")
    for layer in model.dense_layers:
        layer.weight[...] = np.eye(8)
        layer.bias[...] = 0
    workspace = Workspace(model, 50, pixels=False, training=True)
    workspace.inputs[:] = 1
    model.forward_pass(workspace, Draws(0, DROPOUT, 0, 0, 0))
    kept = [cache.saved for cache in workspace.caches if cache.saved is not None]
    assert len(kept) == 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 0.3 < (kept[one] == kept[other]).mean() < 0.7
    np.testing.assert_array_equal(workspace.logits, 8.0 * (kept[0] & kept[1] & kept[2]))


def trained(data: Dataset, rows_at_a_time: int | None = None, seed: int = 3, **options: Any) -> MLP:
    backend = copy.copy(CPU)
    backend.rows_at_a_time = rows_at_a_time
    model = dropout_net(device=backend)
    fit(
        model, data, **{"epochs": 3, "batch_size": 64, "optimizer": SGD(0.1, momentum=0.9), "seed": seed} | options
    )
    return model


def test_training_with_dropout_depends_on_the_seed_alone(blobs: Dataset) -> None:
    model = trained(blobs)
    np.testing.assert_array_equal(trained(blobs).parameters.data, model.parameters.data)
    assert np.abs(trained(blobs, seed=4).parameters.data - model.parameters.data).max() > 1e-3
    for rows in (1, 7, 32):
        np.testing.assert_allclose(trained(blobs, rows).parameters.data, model.parameters.data, atol=1e-12)


def test_training_with_dropout_is_the_same_on_every_device(blobs: Dataset) -> None:
    models = []
    for device in ("cpu", StrictBackend()):
        model = dropout_net("silu", device=device)
        fit(model, blobs, epochs=3, batch_size=64, optimizer=SGD(0.1, momentum=0.9))
        models.append(model.state_dict())
    for name, tensor in models[0].items():
        np.testing.assert_allclose(models[1][name], tensor, rtol=0, atol=1e-12)


def test_masks_differ_from_step_to_step(blobs: Dataset) -> None:
    """With a network that does not change and the full batch, only they make the training loss another one."""
    model = dropout_net()
    history = fit(model, blobs, epochs=5, batch_size="full", schedule=lambda learning_rate, epoch: 0.0)
    assert len(set(history["train_loss"])) == 5


def test_a_rate_of_0_is_no_dropout(blobs: Dataset) -> None:
    given = [Dropout(20, 0.0), Dense(20, 4, dtype="float64"), Dropout(4, 0.0), Dense(4, 4, dtype="float64")]
    model, plain = (MLP(layers, dtype="float64", device="cpu") for layers in (given, given[1::2]))
    for each in (model, plain):
        fit(each, blobs, epochs=2, batch_size=32)
    np.testing.assert_array_equal(model.parameters.data, plain.parameters.data)


# -- Networks of given layers ------------------------------------------------------------------------------


def test_given_layers_are_as_the_same_network_by_sizes(blobs: Dataset) -> None:
    one = dropout_net(["tanh", "silu"], dropout=[0.5, 0.0])
    other = MLP(
        [Dropout(20, 0.2), Dense(20, 30, "tanh"), Dropout(30, 0.5), Dense(30, 25, "silu"), Dense(25, 4)],
        dtype="float64",
        device="cpu",
    )
    assert repr(other) == repr(one)
    assert other.activation == other.activations
    assert [each.name for each in other.activation] == ["tanh", "silu"]
    assert other.activation_names == "tanh, silu"
    other.load_state_dict(one.state_dict())
    for model in (one, other):
        fit(model, blobs, epochs=2, batch_size=32)
    np.testing.assert_array_equal(one.parameters.data, other.parameters.data)


def test_given_layers_keep_their_weights_and_stay_independent() -> None:
    first, last = Dense(4, 3, "tanh", seed=5), Dense(3, 2, seed=6)
    before = [layer.weight.copy() for layer in (first, last)]
    model, same = MLP([first, last], device="cpu"), MLP([first, last], device="cpu")
    for layer, own, weight in zip((first, last), model.dense_layers, before, strict=True):
        np.testing.assert_array_equal(own.weight, weight)
        own.weight[...] = 7
        np.testing.assert_array_equal(layer.weight, weight)
    np.testing.assert_array_equal(same.dense_layers[0].weight, before[0])


def test_layers_without_a_seed_are_drawn_from_that_of_the_network() -> None:
    def weights(seed: int) -> list[np.ndarray]:
        layers = [Dense(4, 4, "tanh"), Dense(4, 4, "tanh"), Dense(4, 2)]
        return [layer.weight for layer in MLP(layers, seed=seed, device="cpu", dtype="float64").dense_layers]

    by_size = MLP([4, 4, 4, 2], "tanh", seed=1, device="cpu", dtype="float64").dense_layers
    for one, other, same in zip(weights(0), weights(1), by_size, strict=True):
        assert (one != other).all()
        np.testing.assert_array_equal(other, same.weight)
    first, second, _ = weights(0)
    assert (first != second).all()

    changed = Dense(2, 2)
    np.testing.assert_array_equal(changed.weight, Dense(2, 2, seed=0).weight)
    changed.weight[...] = 7  # it has weights from here on
    assert (MLP([changed], device="cpu").dense_layers[0].weight == 7).all()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("options", [{}, {"seed": 5}], ids=["no seed", "seed"])
def test_copies_of_a_layer_keep_its_weights(options: dict[str, int], copied: Any) -> None:
    layer, x = Dense(3, 2, "tanh", **options), np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(copied(layer)(x), layer(x))
    other = copied(layer)
    np.testing.assert_array_equal(other(x), layer(x))
    other.weight[...] = 0
    assert layer.weight.all()
    mine = Dense(3, 2, device=(backend := NumpyBackend()))
    assert (copied(mine)(x) == mine(x)).all()
    assert mine.backend is backend
    own = copied(with_own_layer().layers[0])
    np.testing.assert_allclose(own.parameters["log_scale"], 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Dense(4, 3), Dense(2, 2)], r"Dense\(4, 3, 'identity'\) has 3 outputs and Dense\(2, 2, .* 2 inputs"),
        ([Dense(4, 3), Dropout(4), Dense(3, 2)], r"has 3 outputs and Dropout\(4, 0.5\) 4 inputs"),
        (
            [Dense(4, 3), Dense(3, 2, "relu")],
            r"last layer .* a Dense without activation, .* got Dense\(3, 2, 'relu'",
        ),
        ([Dense(4, 3), Dropout(3)], r"last layer is expected to be a Dense .* got Dropout\(3, 0.5\)"),
        ([Dense(4, 3), 2], "sizes are expected to be all numbers or all layers, got 2 among them"),
        ([4, Dense(4, 3)], "sizes are expected to be all numbers or all layers, got 4 among them"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(layers, device="cpu")


def test_what_given_layers_settle_is_not_given_again() -> None:
    for options in ({"dropout": 0.5}, {"input_dropout": 0.1}):
        with pytest.raises(
            ValueError, match=r"dropout is expected among the layers, as Dropout\(features, rate\)"
        ):
            MLP([Dense(4, 3), Dense(3, 2)], device="cpu", **options)
    for options in ({"activation": "gelu"}, {"initializer": "he"}):
        with pytest.raises(ValueError, match="activation and initializer are expected in the layers, as Dense"):
            MLP([Dense(4, 3), Dense(3, 2)], device="cpu", **options)


def test_activations_as_a_list() -> None:
    model = MLP([4, 6, 5, 3], ["relu", ELU(0.5)], device="cpu")
    assert [repr(layer) for layer in model.layers] == [
        *("Dense(4, 6, 'relu')", "Dense(6, 5, 'elu')", "Dense(5, 3, 'identity')"),
    ]
    assert "activation=['relu', 'elu']" in repr(model)
    assert MLP([4, 6, 5, 3], ["tanh", Tanh()], device="cpu").activation.name == "tanh"  # one for all
    # Each layer has the initial weights that suit its activation, and the last those of the layer below.
    rules = [
        type(layer.initializer).__name__ for layer in MLP([4, 6, 5, 3], ["relu", "tanh"], device="cpu").layers
    ]
    assert rules == ["He", "Glorot", "Glorot"]


# -- Copies and files --------------------------------------------------------------------------------------


class Times(Layer):
    """A layer of the user's with an option that has the name of an array of `Dense`."""

    name = "test_times"

    def __init__(self, features: int, weight: float) -> None:
        super().__init__(features, features)
        self.weight = weight

    def options(self) -> dict[str, Any]:
        return {"features": self.in_features, "weight": self.weight}

    def forward(self, x: Any, cache: Cache, draws: Draws | None) -> None:
        self.backend.xp.multiply(x, self.weight, out=cache.output)

    def backward(self, x: Any, cache: Cache, draws: Draws | None, input_delta: Any) -> None:
        if input_delta is not None:
            self.backend.xp.multiply(cache.delta, self.weight, out=input_delta)


class Mixed(Layer):
    """A layer of the user's with two matrices, y = tanh(x A) + x B + c."""

    name = "test_mixed"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        matrix = (self.in_features, self.out_features)
        return {"first": matrix, "second": matrix, "bias": (self.out_features,)}

    def initial(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: rng.normal(0, 0.3, shape) for name, shape in self.shapes().items()}

    def new_cache(self, new: Callable[..., Any], below: Cache, *, training: bool) -> Cache:
        return Cache(new(), new(), new())

    def forward(self, x: Any, cache: Cache, draws: Draws | None) -> None:
        xp, own = self.backend.xp, self.parameters
        xp.tanh(xp.matmul(x, own["first"]), out=cache.saved)
        xp.add(cache.saved, xp.matmul(x, own["second"]) + own["bias"], out=cache.output)

    def backward(self, x: Any, cache: Cache, draws: Draws | None, input_delta: Any) -> None:
        xp, own, inner = self.backend.xp, self.parameters, cache.delta * (1 - cache.saved * cache.saved)
        xp.matmul(x.T, inner, out=self.gradients["first"])
        xp.matmul(x.T, cache.delta, out=self.gradients["second"])
        xp.sum(cache.delta, axis=0, out=self.gradients["bias"])
        if input_delta is not None:
            xp.add(xp.matmul(inner, own["first"].T), xp.matmul(cache.delta, own["second"].T), out=input_delta)


@pytest.fixture
def registered() -> None:
    for kind in (Scaled, Times, Mixed):
        register(kind)


def with_own_layer(device: Any = "cpu") -> MLP:
    layers = [Scaled(20, 0.1), Dense(20, 9, "silu"), Dropout(9, 0.25), Scaled(9), Dense(9, 4)]
    return MLP(layers, device=device, seed=2)


@pytest.mark.parametrize("device", ["cpu", StrictBackend()], ids=["cpu", "strict"])
def test_a_layer_of_the_users_is_trained_with_the_rest(device: Any, blobs: Dataset) -> None:
    model = with_own_layer(device)
    assert model.sizes == [20, 9, 4]
    assert repr(model.layers[0]) == "Scaled(features=20, start=0.1)"
    assert list(model.state_dict()) == [
        *("layers.1.weight", "layers.3.weight"),
        *("layers.0.log_scale", "layers.1.bias", "layers.2.log_scale", "layers.3.bias"),
    ]
    start = model.state_dict()
    history = fit(model, blobs, epochs=15, batch_size=32, validation=0.2, max_norm=2.0, ema=0.9, clip_norm=1.0)
    assert history["validation_accuracy"][-1] > 0.9
    for name, tensor in model.state_dict().items():
        assert np.abs(tensor - start[name]).max() > 1e-3, name


COPIES: dict[str, Callable[[MLP], MLP]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}
MODELS: dict[str, Callable[[], MLP]] = {
    "dropout": dropout_net,
    "activations": lambda: MLP([20, 9, 8, 4], ["gelu", ELU(0.5)], device="cpu", seed=2),
    "activations and dropout": lambda: dropout_net(["gelu", ELU(0.5)], dropout=[0.5, 0.25]),
    "input dropout alone": lambda: MLP([20, 4], input_dropout=0.2, device="cpu"),
    "own layer": with_own_layer,
    "own layer with an option": lambda: MLP([Times(20, 0.5), Dense(20, 9, "tanh"), Dense(9, 4)], device="cpu"),
    "own layers with matrices": lambda: MLP(
        [Mixed(20, 9), Dense(9, 9, "tanh"), Dropout(9, 0.1), Mixed(9, 6), Dense(6, 4)], device="cpu"
    ),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_copies_train_as_the_original(make: Callable[[], MLP], copied: Any, blobs: Dataset) -> None:
    model = make()
    fit(model, blobs, epochs=1, batch_size=32)
    other = copied(model)
    assert repr(other.layers) == repr(model.layers)
    before = other.parameters.data.copy()
    assert all(one is not other for one, other in zip(model.layers, other.layers, strict=True))
    for each in (model, other):
        fit(each, blobs, epochs=2, batch_size=32)
        np.testing.assert_array_equal(other.parameters.data, before if each is model else model.parameters.data)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_saved_network_is_loaded_with_its_layers(
    make: Callable[[], MLP], tmp_path: Path, blobs: Dataset
) -> None:
    model = make()
    fit(model, blobs, epochs=1, batch_size=32)
    model.save(tmp_path)
    loaded = MLP.load(tmp_path, device="cpu")
    assert repr(loaded.layers) == repr(model.layers)
    assert [each.options() for each in loaded.layers if not isinstance(each, Dense)] == [
        each.options() for each in model.layers if not isinstance(each, Dense)
    ]
    assert [vars(each) for each in loaded.activations] == [vars(each) for each in model.activations]
    np.testing.assert_array_equal(loaded.logits(blobs.images), model.logits(blobs.images))
    for each in (model, loaded):
        fit(each, blobs, epochs=2, batch_size=32)
    np.testing.assert_array_equal(loaded.parameters.data, model.parameters.data)


def test_a_network_with_a_layer_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelFileError, match=r"the layer Scaled\(features=20, .*call gpumlp.register\(Scaled\) before saving"
    ):
        with_own_layer().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    register(Scaled)
    with_own_layer().save(tmp_path / "model")
    del LAYERS[Scaled.name]
    with pytest.raises(ModelFileError, match="the unknown layer 'test_scaled'; register its class first"):
        MLP.load(tmp_path / "model", device="cpu")


class NoBackward(Layer):
    name = "no_backward"

    def forward(self, x: Any, cache: Any, draws: Any) -> None: ...


class OtherArguments(Scaled):
    def backward(self, x: Any, cache: Any) -> None: ...  # type: ignore[override]


class OtherDense(Dense):
    name = "other_dense"

    def backward(self, x: Any, cache: Any, draws: Any = None, input_delta: Any = None) -> None: ...  # type: ignore[override]


class Nameless(Layer):
    def forward(self, x: Any, cache: Any, draws: Any) -> None: ...
    def backward(self, x: Any, cache: Any, draws: Any, input_delta: Any) -> None: ...


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (NoBackward(4, 4), "NoBackward is expected to define backward, see Layer"),
        (
            OtherArguments(4),
            "OtherArguments.backward is expected to be a function of x, cache, draws, input_delta",
        ),
        (
            OtherDense(4, 4),
            "OtherDense.backward is expected to be a function of x, cache, draws, input_delta, weight_gradient",
        ),
        (Nameless(4, 4), "Nameless is expected to have a name, such as name = 'my_layer'"),
    ],
)
def test_an_incomplete_layer_is_refused_with_what_it_lacks(layer: Layer, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MLP([layer, Dense(4, 2)], device="cpu")


def test_a_layer_without_a_network_has_sizes_of_1_or_more() -> None:
    with pytest.raises(ValueError, match="in_features is expected to be a whole number of 1 or more, got 0"):
        Dropout(0)


def test_diagnostics_leave_gradients_of_own_layers_alone(blobs: Dataset) -> None:
    model = MLP([Mixed(20, 9), Dense(9, 4)], device="cpu", seed=1)
    trainer, seen = Trainer(model, blobs, batch_size=32, validation=20), []
    trainer.keep_gradients()

    class Watch(Callback):
        def on_progress(self, trainer: Trainer, samples: int) -> None:
            seen.append(trainer.trained.parameters.gradient.copy())

    trainer.run(1, Watch())
    np.testing.assert_array_equal(model.parameters.gradient, seen[-1])
    norms = [layer.weight_norm for layer in trainer.history.records[-1].layers or ()]
    np.testing.assert_allclose(norms, [np.linalg.norm(model.dense_layers[0].weight)], rtol=1e-6)


def test_a_network_shows_its_layers() -> None:
    model = MLP([6, 5, 3], dropout=0.5, input_dropout=0.2, device="cpu")
    layers = "[Dropout(6, 0.2), Dense(6, 5, 'relu'), Dropout(5, 0.5), Dense(5, 3, 'identity')]"
    assert repr(model) == f"MLP({layers}, device='cpu', dtype='float32')  # 53 parameters"


def test_max_norm_is_of_the_weights_of_dense_hidden_layers_alone() -> None:
    data = Dataset(np.ones((8, 6)), np.arange(8) % 3)
    model = MLP([Dense(6, 5, "relu"), Mixed(5, 5), Dense(5, 3)], seed=0, dtype="float64", device="cpu")
    before = model.state_dict()
    fit(model, data, optimizer=SGD(1e-300), max_norm=0.01, epochs=1, batch_size=8)
    changed = [name for name, tensor in model.state_dict().items() if not np.allclose(tensor, before[name])]
    assert changed == ["layers.0.weight"]
    norms = np.linalg.norm(model.dense_layers[0].weight, axis=0)
    np.testing.assert_allclose(norms, 0.01, rtol=1e-12)
