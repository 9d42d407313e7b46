"""Successful training of every kind gives no finding."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    Cosine,
    Dataset,
    ExponentialDecay,
    OneCycle,
    RMSprop,
    SoftmaxCrossEntropy,
    StepDecay,
    Warmup,
    fit,
    load_mnist,
)
from gpumlp.data import DataError
from gpumlp.diagnostics import trend
from tests.diagnostics_helpers import DIGITS, train

ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "elu", "softplus"]
OPTIMIZERS = [SGD(0.1, momentum=0.9), SGD(0.1), Adam()]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["momentum", "sgd", "adam"])
def test_good_training_on_the_digits_gives_no_finding(activation: str, optimizer: object) -> None:
    validation = (None, 179)[(ACTIVATIONS.index(activation) + OPTIMIZERS.index(optimizer)) % 2]
    history = train([128], activation, optimizer=optimizer, epochs=20, validation=validation)
    assert history["train_accuracy"][-1] > 0.9
    assert (history.findings(), history.trend()) == ([], "converging")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_good_training_of_deep_networks_gives_no_finding(activation: str) -> None:
    hidden = [64] * 3 if activation == "sigmoid" else [32] * 6
    rate = 0.1 if activation == "sigmoid" else 0.01
    epochs = 20 if activation in ("gelu", "silu") else 30  # after which these overfit
    history = train(hidden, activation, optimizer=SGD(rate, momentum=0.9), epochs=epochs)
    assert (history.findings(), history.trend()) == ([], "converging")


@pytest.mark.parametrize("schedule", [None, StepDecay(0.1, 10), ExponentialDecay(0.1)], ids=["", "step", "exp"])
@pytest.mark.parametrize("hidden", [[], [16], [64]])
@pytest.mark.parametrize("classes", [2, 4])
def test_noise_in_the_labels_gives_no_finding(hidden: list[int], classes: int, schedule: object) -> None:
    """At least a fifth of the labels is random."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 6)).astype(np.float32)
    labels = np.minimum((x[:, :2] > 0) @ [1, 2], classes - 1) if classes == 4 else (x[:, 0] > 0).astype(int)
    labels = np.where(rng.random(3000) < 0.4, rng.integers(0, classes, 3000), labels)
    options = {"optimizer": SGD(0.01, momentum=0.9), "schedule": schedule, "epochs": 20, "validation": 500}
    history = train(hidden, data=Dataset(x, labels), **options)
    assert history["train_loss"][-1] > 0.5 * np.log(classes)
    assert (history.findings(), history.trend()) == ([], "converging")


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam()], ids=["momentum", "adam"])
def test_rare_classes_give_no_finding(optimizer: object) -> None:
    rare = np.flatnonzero(DIGITS.labels == 5)[:30]
    rows = np.sort(np.concatenate([np.flatnonzero(DIGITS.labels != 5), rare]))
    data = Dataset(DIGITS.images[rows], (DIGITS.labels[rows] == 5).astype(int))
    history = train([64], data=data, optimizer=optimizer, epochs=20)
    assert (history.findings(), history.trend()) == ([], "converging")


def noisy() -> Dataset:
    """Two classes, of which a fifth of the labels is wrong."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 6)).astype(np.float32)
    labels = np.where(rng.random(2000) < 0.4, rng.integers(0, 2, 2000), x[:, 0] > 0)
    return Dataset(x, labels.astype(int))


def rare() -> Dataset:
    """Two classes, of which one has 6 % of the samples."""
    rng = np.random.default_rng(1)
    labels = (rng.random(3000) < 0.06).astype(int)
    x = rng.normal(size=(3000, 5)).astype(np.float32)
    x[:, 0] += 3 * labels
    return Dataset(x, labels)


def regression() -> Dataset:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1000, 8)).astype(np.float32)
    return Dataset(x, np.sin(x[:, :2]) + x[:, 2:4])


DATA = {"digits": DIGITS, "noisy": noisy(), "rare": rare(), "numbers": regression()}
SMOOTH = SoftmaxCrossEntropy(label_smoothing=0.1)
NEW = {
    "dropout": ({"dropout": 0.5}, {}),
    "input dropout": ({"dropout": 0.5, "input_dropout": 0.2}, {"max_norm": 3}),
    "smoothing": ({"loss": SMOOTH}, {}),
    "strong smoothing": ({"loss": SoftmaxCrossEntropy(label_smoothing=0.3)}, {}),
    "smoothing and dropout": ({"loss": SMOOTH, "dropout": 0.5}, {}),
    "weights": ({}, {"class_weight": "balanced"}),
    "weights and dropout": ({"dropout": 0.5}, {"class_weight": "balanced"}),
    "average": ({}, {"ema": 0.99}),
    "clipping": ({}, {"clip_norm": 1.0}),
    "warm-up": ({}, {"schedule": Warmup(50)}),
    "cosine": ({}, {"schedule": Warmup(50, then=Cosine(500))}),
    "one cycle": ({}, {"schedule": OneCycle(800)}),
    "AdamW": ({}, {"optimizer": AdamW()}),
    "RMSprop": ({}, {"optimizer": RMSprop()}),
    "activations": ({"activation": ["relu"]}, {}),
    "all": (
        {"dropout": 0.5, "input_dropout": 0.1, "activation": "gelu", "loss": SMOOTH},
        {"optimizer": AdamW(), "ema": 0.99, "schedule": Warmup(50, then=Cosine(800)), "class_weight": "balanced"},
    ),
}


@pytest.mark.parametrize("option", NEW)
@pytest.mark.parametrize("name", DATA)
def test_good_training_with_each_option_gives_no_finding(name: str, option: str) -> None:
    data, validation = DATA[name], (None, 0.1)[([*NEW].index(option) + [*DATA].index(name)) % 2]
    network, options = NEW[option]
    if data.task == "numbers":
        network = {name: value for name, value in network.items() if name != "loss"}
        options = {name: value for name, value in options.items() if name != "class_weight"}
    model = MLP([data.features, 64, data.outputs], device="cpu", **network)
    rate = 0.01 if data.task == "numbers" else 0.05
    options = {"optimizer": SGD(rate, momentum=0.9), "epochs": 20, "batch_size": 32, **options}
    history = fit(model, data, validation=validation, **options)
    assert history.findings() == []
    assert history.trend() == (None if data.task == "numbers" else "converging")


@pytest.mark.parametrize("seed", [0, 1])
def test_rough_training_that_ends_well_gives_no_finding(seed: int) -> None:
    history = train([64] * 3, optimizer=SGD(0.1, momentum=0.9), epochs=50, seed=seed, validation=None)
    assert history["train_loss"][-1] < 0.001
    assert (history.findings(), history.trend()) == ([], "converging")
    # On the way, one run in ten is unstable for some epochs; which does so is a matter of rounding.
    trends = {trend(history.records[:epochs], history.setting) for epochs in range(2, 51)}
    assert trends <= {"converging", "unstable"}


@pytest.mark.parametrize(
    ("hidden", "activation", "optimizer", "validation"),
    [
        ([128], "relu", SGD(0.1, momentum=0.9), 5000),
        ([128], "tanh", Adam(), None),
        ([128], "sigmoid", SGD(0.1, momentum=0.9), None),
        ([], "relu", SGD(0.1, momentum=0.9), 5000),
    ],
    ids=["default", "adam, tanh", "sigmoid", "softmax regression"],
)
def test_good_training_on_mnist_gives_no_finding(
    hidden: list[int], activation: str, optimizer: object, validation: int | None
) -> None:
    try:
        data = load_mnist(download=False)[0]
    except DataError as error:
        pytest.skip(str(error))
    history = train(hidden, activation, data, optimizer=optimizer, epochs=3, validation=validation, batch_size=128)
    assert (history.findings(), history.trend()) == ([], "converging")
