"""Two hundred training steps agree with PyTorch, with equal initial weights and batches, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    Cosine,
    Dataset,
    LogisticCrossEntropy,
    Milestones,
    OneCycle,
    Optimizer,
    Penalty,
    RMSprop,
    Schedule,
    SoftmaxCrossEntropy,
    SquaredError,
    Trainer,
    Warmup,
)
from gpumlp.backends import DROPOUT, Draws
from gpumlp.backends.philox import random_bits, threshold
from gpumlp.nn.schedules import changes_by_step

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[torch]" to compare with it')
torch.set_num_threads(1)  # one thread is fastest for such small networks

SAMPLES, FEATURES, CLASSES, BATCH, EPOCHS, SEED = 58, 12, 4, 16, 50, 5  # 4 steps an epoch, the last of 10 samples
STEPS = 200


NO_PENALTY = Penalty()


@dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    Attributes:
        optimizer, in_torch: ours, and the arguments of PyTorch's of the same name.
        hidden, activation: of the network.
        schedule: ours, and PyTorch's of an optimizer.
        data: of the task.
        loss: ours, and PyTorch's mean loss of a batch, of outputs, targets and the weights of the samples.
        network, options: other arguments of `MLP` and `Trainer`.
        moves: how far every tensor moves at least.
    """

    optimizer: Optimizer
    in_torch: dict[str, Any]
    hidden: tuple[int, ...] = (9,)
    activation: str | list[str] = "relu"
    penalty: Penalty = NO_PENALTY
    schedule: tuple[Schedule, Callable[[Any], Any]] | None = None
    data: str = "classes"
    loss: tuple[Any, Callable[[Any, Any, Any], Any]] = (
        "softmax_cross_entropy",
        lambda s, y, w: weighted(F.cross_entropy(s, y, reduction="none"), w),
    )
    network: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    moves: float = 0.05


F = torch.nn.functional


def weighted(losses: Any, weights: Any) -> Any:
    """The mean of the losses of the samples of a batch; with weights, their weighted mean."""
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


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
    "pixels": Case(*MOMENTUM, data="pixels"),
    "activations": Case(*MOMENTUM, (9, 7, 6), ["silu", "tanh", "gelu"]),
    "label smoothing": Case(
        *MOMENTUM,
        loss=(SoftmaxCrossEntropy(0.1), lambda s, y, w: torch.nn.CrossEntropyLoss(label_smoothing=0.1)(s, y)),
    ),
    "class weights": Case(
        *MOMENTUM,
        loss=(
            "softmax_cross_entropy",
            lambda s, y, w: torch.nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 0.5, 2.0]).double())(s, y),
        ),
        options={"class_weight": {0: 1.0, 1: 3.0, 2: 0.5, 3: 2.0}},
    ),
    "sample weights": Case(*MOMENTUM, (9, 7), "tanh", data="weighted"),
    "sample weights, smoothing": Case(
        *ADAM,
        data="weighted",
        loss=(
            SoftmaxCrossEntropy(0.2),
            lambda s, y, w: weighted(F.cross_entropy(s, y, reduction="none", label_smoothing=0.2), w),
        ),
    ),
    "labels": Case(
        *MOMENTUM,
        data="labels",
        loss=(
            "logistic_cross_entropy",
            lambda s, y, w: torch.nn.BCEWithLogitsLoss(reduction="sum")(s, y) / len(s),  # a sum over the labels
        ),
    ),
    "labels, smoothing": Case(
        *ADAM,
        data="labels",
        loss=(
            LogisticCrossEntropy(0.2),
            lambda s, y, w: F.binary_cross_entropy_with_logits(s, 0.8 * y + 0.1, reduction="sum") / len(s),
        ),
    ),
    "two classes, one output": Case(
        *MOMENTUM,
        data="two classes",
        loss=("logistic_cross_entropy", lambda s, y, w: F.binary_cross_entropy_with_logits(s[:, 0], y.double())),
    ),
    "numbers": Case(
        SGD(0.02, momentum=0.9),
        {"lr": 0.02, "momentum": 0.9},
        (9, 7),
        "tanh",
        data="numbers",
        loss=("auto", lambda s, y, w: torch.nn.MSELoss(reduction="sum")(s, y) / 2 / len(s)),
    ),
    "numbers, weights": Case(
        *ADAM,
        data="weighted numbers",
        loss=(SquaredError(), lambda s, y, w: weighted(F.mse_loss(s, y, reduction="none").sum(1) / 2, w)),
    ),
    "dropout": Case(*MOMENTUM, (19, 17), network={"dropout": 0.5}),
    "dropout, gelu": Case(*ADAM, (19, 17), "gelu", network={"dropout": [0.5, 0.25], "input_dropout": 0.2}),
    "dropout, L2, momentum": Case(
        *MOMENTUM, (19,), "tanh", Penalty(l2=0.02), network={"dropout": 0.3, "input_dropout": 0.1}
    ),
    "max-norm": Case(*PLAIN, (9, 7), options={"max_norm": 1.2}),
    "max-norm, dropout": Case(*MOMENTUM, (19, 17), network={"dropout": 0.5}, options={"max_norm": 0.9}),
    "clipped": Case(*PLAIN, (9, 7), options={"clip_norm": 0.3}),
    "clipped, momentum, L2": Case(*MOMENTUM, (9, 7), "tanh", Penalty(l2=0.02), options={"clip_norm": 0.2}),
    "clipped, adam": Case(*ADAM, (9,), "silu", options={"clip_norm": 0.05}),
    "average": Case(*PLAIN, (9, 7), options={"ema": 0.95}),
    "average, adam": Case(*ADAM, (9,), "tanh", options={"ema": 0.99}),
    "all of it": Case(
        *ADAMW,
        (19, 17),
        ["gelu", "elu"],
        schedule=SCHEDULES["warm-up, cosine"],
        data="weighted",
        loss=(
            SoftmaxCrossEntropy(0.1),
            lambda s, y, w: weighted(F.cross_entropy(s, y, reduction="none", label_smoothing=0.1), w),
        ),
        network={"dropout": [0.5, 0.2], "input_dropout": 0.1},
        options={"clip_norm": 0.5, "max_norm": 1.5, "ema": 0.97},
        moves=0.01,
    ),
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


def the_data(kind: str) -> Dataset:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, SAMPLES)
    if kind == "pixels":
        return Dataset(rng.integers(0, 256, (SAMPLES, FEATURES), dtype=np.uint8), labels, classes=CLASSES)
    images, weights = rng.normal(size=(SAMPLES, FEATURES)), None
    if "weighted" in kind:
        weights = rng.uniform(0, 3, SAMPLES)
        weights[::9] = 0
    if kind == "labels":
        return Dataset(images, rng.integers(0, 2, (SAMPLES, 3)))
    if "numbers" in kind:
        return Dataset(images, rng.normal(size=(SAMPLES, 3)), weights=weights)
    return Dataset(images, labels % 2 if kind == "two classes" else labels, weights=weights)


class Masks(torch.nn.Module):
    """Dropout with the masks that our generator gives."""

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.rate, self.layer, self.step = rate, layer, 0

    def forward(self, x: Any) -> Any:
        if self.training:
            bits = random_bits(np, Draws(SEED, DROPOUT, self.step, self.layer, 0), *x.shape)
            self.step += 1
            x = x * torch.tensor((bits >= threshold(self.rate)) / (1 - self.rate))
        return x


def torch_network(case: Case, sizes: list[int], start: dict[str, np.ndarray]) -> Any:
    """PyTorch's network with the same initial parameters."""
    hidden = len(case.hidden)
    several = [
        each if isinstance(each, list) else [each] * hidden
        for each in (case.activation, case.network.get("dropout", 0.0))
    ]
    modules: list[Any] = []
    if rate := case.network.get("input_dropout", 0.0):
        modules.append(Masks(rate, 0))
    places = len(modules)  # of our layers, which count no activations
    for index, size in enumerate(pairwise(sizes)):
        linear = torch.nn.Linear(*size, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(start[f"layers.{index}.weight"].T))
            linear.bias.copy_(torch.tensor(start[f"layers.{index}.bias"]))
        modules.append(linear)
        places += 1
        if index < hidden:
            activation, rate = (each[index] for each in several)
            modules.append(MODULES[activation]())
            if rate:
                modules.append(Masks(rate, places))
                places += 1
    return torch.nn.Sequential(*modules)


def in_torch(case: Case, data: Dataset, network: Any) -> tuple[Any, list[float]]:
    """PyTorch's own loss, derivatives and optimizers; the network, or its average, and each epoch's mean loss."""
    linear = [module for module in network if isinstance(module, torch.nn.Linear)]
    kind = getattr(torch.optim, type(case.optimizer).__name__)
    decay = getattr(case.optimizer, "weight_decay", case.penalty.l2)
    groups = [
        {"params": [layer.weight for layer in linear], "weight_decay": decay},
        {"params": [layer.bias for layer in linear], "weight_decay": 0},
    ]
    optimizer = kind(groups, **case.in_torch)
    schedule, make_scheduler = case.schedule or (None, None)
    scheduler = make_scheduler and make_scheduler(optimizer)
    average = None
    if ema := case.options.get("ema"):
        rule = torch.optim.swa_utils.get_ema_multi_avg_fn(ema)
        average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=rule)
        average.update_parameters(network)  # the first call copies: the average starts at the initial parameters
    x = torch.tensor(data.images / 255 if data.images.dtype == np.uint8 else data.images)
    y, w = torch.tensor(data.targets), None if data.weights is None else torch.tensor(data.weights)
    y = y.double() if y.ndim == 2 else y
    classes = case.options.get("class_weight")
    shares = torch.ones(SAMPLES) if w is None else w  # of each sample in the loss of an epoch
    if classes is not None:
        shares = torch.tensor([classes[int(label)] for label in y])
    rng, losses = np.random.default_rng([SEED, 1]), []
    for _ in range(EPOCHS):
        order, total = rng.permutation(SAMPLES), 0.0
        for first in range(0, SAMPLES, BATCH):
            rows = torch.tensor(order[first : first + BATCH])
            loss = case.loss[1](network(x[rows]), y[rows], w if w is None else w[rows])
            total += float(loss.detach()) * float(shares[rows].sum())
            optimizer.zero_grad()
            loss.backward()
            if limit := case.options.get("clip_norm"):
                torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
            if case.penalty.l1:
                (case.penalty.l1 * sum(layer.weight.abs().sum() for layer in linear)).backward()
            optimizer.step()
            if limit := case.options.get("max_norm"):  # of the incoming weights of each hidden unit
                with torch.no_grad():
                    for layer in linear[:-1]:
                        layer.weight.mul_((limit / layer.weight.norm(dim=1, keepdim=True)).clamp(max=1))
            if average is not None:
                average.update_parameters(network)
            if scheduler and changes_by_step(schedule):
                scheduler.step()
        if scheduler and not changes_by_step(schedule):
            scheduler.step()
        losses.append(total / float(shares.sum()))
    return network if average is None else average.module, losses


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_hundred_steps(case: Case) -> None:
    assert largest_difference(case) < 1e-10


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.network or case.options])
def test_each_option_changes_the_trajectory(case: Case) -> None:
    """Otherwise the comparison with PyTorch would not show that both apply it."""
    end = ours(case)[0].parameters.data
    names = [("network", name) for name in case.network] + [("options", name) for name in case.options]
    for part, name in names:
        without = {key: value for key, value in getattr(case, part).items() if key != name}
        assert np.abs(end - ours(replace(case, **{part: without}))[0].parameters.data).max() > 1e-3, name


def ours(case: Case) -> tuple[MLP, dict[str, np.ndarray], list[float]]:
    """The trained network, its initial parameters, and each epoch's mean loss."""
    data = the_data(case.data)
    outputs = 1 if case.data == "two classes" else data.outputs
    sizes = [FEATURES, *case.hidden, outputs]
    model = MLP(sizes, case.activation, dtype="float64", device="cpu", seed=2, loss=case.loss[0], **case.network)
    start = model.state_dict()
    trainer = Trainer(
        model,
        data,
        optimizer=case.optimizer,
        schedule=case.schedule and case.schedule[0],
        penalty=case.penalty,
        batch_size=BATCH,
        seed=SEED,
        **case.options,
    )
    history = trainer.run(EPOCHS)
    assert trainer.optimizer_state.steps == STEPS
    return model, start, history["train_loss"]


def largest_difference(case: Case) -> float:
    """Between our parameters, outputs and mean losses and PyTorch's."""
    data, (model, start, mean_losses) = the_data(case.data), ours(case)
    network, losses = in_torch(case, data, torch_network(case, model.sizes, start))
    end, differences = model.state_dict(), []
    linear = [module for module in network if isinstance(module, torch.nn.Linear)]
    for index, layer in enumerate(linear):
        for name, expected in (("weight", layer.weight.detach().numpy().T), ("bias", layer.bias.detach().numpy())):
            tensor = f"layers.{index}.{name}"
            moved = np.abs(end[tensor] - start[tensor]).max()
            assert moved > case.moves, f"{tensor} did not move: nothing is compared"
            differences.append(np.abs(end[tensor] - expected).max())
    differences.append(np.abs(np.array(mean_losses) - losses).max())
    x = data.images / 255 if case.data == "pixels" else data.images
    expected = network.eval()(torch.tensor(x)).detach().numpy()  # dropout drops nothing
    differences.append(np.abs(model.logits(data.images) - expected).max())
    return float(max(differences))


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
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = lr.OneCycleLR(optimizer, 0.1, total_steps=ours.steps, cycle_momentum=False, **theirs)
    for step in range(ours.steps):
        assert ours(0.1, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        if step + 1 < ours.steps:
            optimizer.step()
            scheduler.step()
