"""Two hundred training steps agree with PyTorch, with equal initial weights and batches, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    Cosine,
    Dataset,
    Milestones,
    OneCycle,
    Optimizer,
    Penalty,
    RMSprop,
    Schedule,
    Trainer,
    Warmup,
)
from gpumlp.nn.schedules import changes_by_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]' to compare with it")
torch.set_num_threads(1)  # one thread is fastest for such small networks

SAMPLES, FEATURES, CLASSES, BATCH, EPOCHS, SEED = 58, 12, 4, 16, 50, 5  # 4 steps an epoch, the last of 10 samples
STEPS = 200


class Case(NamedTuple):
    optimizer: Optimizer
    in_torch: dict[str, Any]
    hidden: tuple[int, ...] = (9,)
    activation: str = "relu"
    penalty: Penalty = Penalty()
    schedule: tuple[Schedule, Callable[[Any], Any]] | None = None  # ours, and PyTorch's of an optimizer


PLAIN = (SGD(0.1), {"lr": 0.1})
MOMENTUM = (SGD(0.05, momentum=0.9), {"lr": 0.05, "momentum": 0.9})
NESTEROV = (SGD(0.05, momentum=0.9, nesterov=True), {"lr": 0.05, "momentum": 0.9, "nesterov": True})
ADAM = (Adam(0.01), {"lr": 0.01})
ADAMW = (AdamW(0.01, weight_decay=0.1), {"lr": 0.01})
RMSPROP = (RMSprop(0.002), {"lr": 0.002, "alpha": 0.9})
RMSPROP_2 = (
    RMSprop(0.001, decay=0.8, epsilon=1e-4, momentum=0.7),
    {"lr": 0.001, "alpha": 0.8, "eps": 1e-4, "momentum": 0.7},
)
ADAM_2 = (Adam(0.01, beta1=0.8, beta2=0.9, epsilon=1e-3), {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3})

lr = torch.optim.lr_scheduler


def linear_warmup(optimizer: Any, steps: int) -> Any:
    return lr.LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)


def warmup_then_cosine(optimizer: Any) -> Any:
    parts = [linear_warmup(optimizer, 40), lr.CosineAnnealingLR(optimizer, STEPS - 40)]
    return lr.SequentialLR(optimizer, parts, milestones=[40])


SCHEDULES: dict[str, tuple[Schedule, Callable[[Any], Any]]] = {
    "milestones": (Milestones((20, 40)), lambda optimizer: lr.MultiStepLR(optimizer, [20, 40], 0.5)),
    "warm-up": (Warmup(100), lambda optimizer: linear_warmup(optimizer, 100)),
    "cosine": (Cosine(STEPS), lambda optimizer: lr.CosineAnnealingLR(optimizer, STEPS)),
    "warm-up, cosine": (Warmup(40, then=Cosine(STEPS - 40)), warmup_then_cosine),
    "one cycle": (
        OneCycle(STEPS),
        lambda optimizer: lr.OneCycleLR(
            optimizer, optimizer.param_groups[0]["lr"], total_steps=STEPS, cycle_momentum=False
        ),
    ),
}

CASES = {
    f"{name}-{activation}-{len(hidden)} hidden": Case(*rule, hidden, activation)
    for name, rule in {
        "plain": PLAIN,
        "momentum": MOMENTUM,
        "nesterov": NESTEROV,
        "adam": ADAM,
        "adamw": ADAMW,
        "rmsprop": RMSPROP,
        "rmsprop with momentum": RMSPROP_2,
    }.items()
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
    "L2, rmsprop": Case(*RMSPROP, activation="tanh", penalty=Penalty(l2=0.02)),
    **{name: Case(*MOMENTUM, schedule=schedule) for name, schedule in SCHEDULES.items()},
    "adamw, warm-up, cosine": Case(*ADAMW, (9, 7), "tanh", schedule=SCHEDULES["warm-up, cosine"]),
    "rmsprop, one cycle": Case(*RMSPROP, activation="tanh", schedule=SCHEDULES["one cycle"]),
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
    kind = getattr(torch.optim, type(case.optimizer).__name__)
    decay = getattr(case.optimizer, "weight_decay", case.penalty.l2)
    groups = [
        {"params": [layer.weight for layer in linear], "weight_decay": decay},
        {"params": [layer.bias for layer in linear], "weight_decay": 0},
    ]
    optimizer = kind(groups, **case.in_torch)
    schedule, make_scheduler = case.schedule or (None, None)
    scheduler = make_scheduler and make_scheduler(optimizer)
    x, y = torch.tensor(images, dtype=torch.float64), torch.tensor(labels)
    rng, losses = np.random.default_rng([SEED, 1]), []
    for _ in range(EPOCHS):
        order, total = rng.permutation(SAMPLES), 0.0
        for first in range(0, SAMPLES, BATCH):
            rows = torch.tensor(order[first : first + BATCH])
            loss = torch.nn.functional.cross_entropy(network(x[rows]), y[rows])
            total += float(loss.detach()) * len(rows)
            optimizer.zero_grad()
            (loss + case.penalty.l1 * sum(layer.weight.abs().sum() for layer in linear)).backward()
            optimizer.step()
            if scheduler and changes_by_step(schedule):
                scheduler.step()
        if scheduler and not changes_by_step(schedule):
            scheduler.step()
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
        schedule=case.schedule and case.schedule[0],
        penalty=case.penalty,
        batch_size=BATCH,
        seed=SEED,
    )
    history = trainer.run(EPOCHS)
    assert trainer.optimizer_state.steps == STEPS
    linear, losses = in_torch(case, start, data.images / 255 if pixels else data.images, data.labels)

    end = model.state_dict()
    for index, layer in enumerate(linear):
        for name, expected in (("weight", layer.weight.detach().numpy().T), ("bias", layer.bias.detach().numpy())):
            tensor = f"layers.{index}.{name}"
            assert np.abs(end[tensor] - start[tensor]).max() > 0.05, f"{tensor} did not move: nothing is compared"
            assert np.abs(end[tensor] - expected).max() < 1e-10, tensor
    np.testing.assert_allclose([record.train_loss for record in history], losses, rtol=0, atol=1e-10)


def rates_in_torch(make: Callable[[Any], Any], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler, rates = make(optimizer), [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (OneCycle(STEPS), {}),
        (OneCycle(37), {}),
        (OneCycle(3), {}),
        (OneCycle(50, 0.25, 10, 100), {"pct_start": 0.25, "div_factor": 10, "final_div_factor": 100}),
        (OneCycle(50, 0.0), {"pct_start": 0.0}),
        (OneCycle(50, 1.0), {"pct_start": 1.0}),
    ],
)
def test_one_cycle(ours: OneCycle, theirs: dict[str, float]) -> None:
    def in_torch(optimizer: Any) -> Any:
        return lr.OneCycleLR(optimizer, 0.1, total_steps=ours.steps, cycle_momentum=False, **theirs)

    expected = rates_in_torch(in_torch, ours.steps)
    np.testing.assert_allclose([ours(0.1, step) for step in range(ours.steps)], expected, rtol=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine(final: float) -> None:
    expected = rates_in_torch(lambda optimizer: lr.CosineAnnealingLR(optimizer, 100, 0.1 * final), 101)
    np.testing.assert_allclose([Cosine(100, final)(0.1, t) for t in range(101)], expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("steps", [2, 100])
def test_warmup(steps: int) -> None:
    expected = rates_in_torch(lambda optimizer: linear_warmup(optimizer, steps), steps + 5)
    np.testing.assert_allclose([Warmup(steps)(0.1, t) for t in range(steps + 5)], expected, rtol=1e-12)
