"""Two hundred training steps agree with PyTorch, with equal initial weights and batches, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, Milestones, Penalty, Trainer
from gpumlp.nn import Optimizer
from gpumlp.nn.schedules import Schedule

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]' to compare with it")
torch.set_num_threads(1)  # one thread is fastest for such small networks

SAMPLES, FEATURES, CLASSES, BATCH, EPOCHS, SEED = 58, 12, 4, 16, 50, 5  # 4 steps an epoch, the last of 10 samples


class Case(NamedTuple):
    optimizer: Optimizer
    in_torch: dict[str, Any]
    hidden: tuple[int, ...] = (9,)
    activation: str = "relu"
    penalty: Penalty = Penalty()
    schedule: Schedule | None = None


PLAIN = (SGD(0.1), {"lr": 0.1})
MOMENTUM = (SGD(0.05, momentum=0.9), {"lr": 0.05, "momentum": 0.9})
NESTEROV = (SGD(0.05, momentum=0.9, nesterov=True), {"lr": 0.05, "momentum": 0.9, "nesterov": True})
ADAM = (Adam(0.01), {"lr": 0.01})
ADAM_2 = (Adam(0.01, beta1=0.8, beta2=0.9, epsilon=1e-3), {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3})

CASES = {
    f"{name}-{activation}-{len(hidden)} hidden": Case(*rule, hidden, activation)
    for name, rule in {"plain": PLAIN, "momentum": MOMENTUM, "nesterov": NESTEROV, "adam": ADAM}.items()
    for activation in ("relu", "tanh")
    for hidden in ((9,), (9, 7))
} | {
    "softmax regression": Case(*PLAIN, hidden=()),
    "sigmoid": Case(*MOMENTUM, activation="sigmoid"),
    "leaky_relu": Case(*MOMENTUM, activation="leaky_relu"),
    **{name: Case(*MOMENTUM, (9, 7), name) for name in ("gelu", "silu", "elu", "softplus")},
    "adam with other constants": Case(*ADAM_2, activation="tanh"),
    "L2": Case(*PLAIN, penalty=Penalty(l2=0.02)),
    "L2, momentum, two hidden": Case(*MOMENTUM, (9, 7), "tanh", Penalty(l2=0.02)),
    "L2, adam": Case(*ADAM, activation="tanh", penalty=Penalty(l2=0.02)),
    "L1": Case(*PLAIN, activation="tanh", penalty=Penalty(l1=1e-3)),
    "L1 and L2, nesterov": Case(*NESTEROV, (9, 7), "relu", Penalty(l2=0.02, l1=1e-3)),
    "milestones": Case(*MOMENTUM, schedule=Milestones((20, 40))),
}
MODULES: dict[str, Callable[[], Any]] = {
    "relu": torch.nn.ReLU,
    "tanh": torch.nn.Tanh,
    "sigmoid": torch.nn.Sigmoid,
    "leaky_relu": torch.nn.LeakyReLU,
    "gelu": partial(torch.nn.GELU, approximate="tanh"),
    "silu": torch.nn.SiLU,
    "elu": torch.nn.ELU,
    "softplus": torch.nn.Softplus,
}


def the_data(pixels: bool) -> Dataset:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, SAMPLES)
    images = (
        rng.integers(0, 256, (SAMPLES, FEATURES), dtype=np.uint8)
        if pixels
        else rng.normal(size=(SAMPLES, FEATURES))
    )
    return Dataset(images, labels, classes=CLASSES)


def in_torch(
    case: Case, start: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray
) -> tuple[Any, list[float]]:
    """PyTorch's own layers, loss, derivatives and optimizers; the parameters and the mean loss of each epoch."""
    sizes = [FEATURES, *case.hidden, CLASSES]
    linear = [torch.nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
    with torch.no_grad():
        for index, layer in enumerate(linear):
            layer.weight.copy_(torch.tensor(start[f"layers.{index}.weight"].T))
            layer.bias.copy_(torch.tensor(start[f"layers.{index}.bias"]))
    modules = [linear[0]]
    for layer in linear[1:]:
        modules += [MODULES[case.activation](), layer]
    network = torch.nn.Sequential(*modules)
    kind = torch.optim.Adam if isinstance(case.optimizer, Adam) else torch.optim.SGD
    groups = [
        {"params": [layer.weight for layer in linear], "weight_decay": case.penalty.l2},
        {"params": [layer.bias for layer in linear], "weight_decay": 0},
    ]
    optimizer = kind(groups, **case.in_torch)
    x, y = torch.tensor(images, dtype=torch.float64), torch.tensor(labels)
    rng, losses = np.random.default_rng([SEED, 1]), []
    for epoch in range(EPOCHS):
        if case.schedule is not None:
            for group in optimizer.param_groups:
                group["lr"] = case.in_torch["lr"] * 0.5 ** ((epoch >= 20) + (epoch >= 40))
        order, total = rng.permutation(SAMPLES), 0.0
        for first in range(0, SAMPLES, BATCH):
            rows = torch.tensor(order[first : first + BATCH])
            loss = torch.nn.functional.cross_entropy(network(x[rows]), y[rows])
            total += float(loss.detach()) * len(rows)
            optimizer.zero_grad()
            (loss + case.penalty.l1 * sum(layer.weight.abs().sum() for layer in linear)).backward()
            optimizer.step()
        losses.append(total / SAMPLES)
    return linear, losses


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_hundred_steps(case: Case) -> None:
    compare(case, pixels=False)


def test_two_hundred_steps_on_pixels() -> None:
    compare(Case(*MOMENTUM), pixels=True)


def compare(case: Case, pixels: bool) -> None:
    data = the_data(pixels)
    sizes = [FEATURES, *case.hidden, CLASSES]
    model = MLP(sizes, case.activation, dtype="float64", device="cpu", seed=2)
    start = model.state_dict()
    trainer = Trainer(
        model,
        data,
        optimizer=case.optimizer,
        schedule=case.schedule,
        penalty=case.penalty,
        batch_size=BATCH,
        seed=SEED,
    )
    history = trainer.run(EPOCHS)
    assert trainer.optimizer_state.steps == 200
    linear, losses = in_torch(case, start, data.images / 255 if pixels else data.images, data.labels)

    end = model.state_dict()
    for index, layer in enumerate(linear):
        for name, expected in (("weight", layer.weight.detach().numpy().T), ("bias", layer.bias.detach().numpy())):
            tensor = f"layers.{index}.{name}"
            assert np.abs(end[tensor] - start[tensor]).max() > 0.05, f"{tensor} did not move: nothing is compared"
            assert np.abs(end[tensor] - expected).max() < 1e-10, tensor
    np.testing.assert_allclose([record.train_loss for record in history], losses, rtol=0, atol=1e-10)
