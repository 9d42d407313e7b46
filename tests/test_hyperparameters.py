"""Hyperparameters are checked on creation and converted to Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    Dense,
    Dropout,
    ExponentialDecay,
    InverseTimeDecay,
    LogisticCrossEntropy,
    Milestones,
    OneCycle,
    Penalty,
    RMSprop,
    SoftmaxCrossEntropy,
    StepDecay,
    Trainer,
)

WRONG: list[Callable[[], object]] = [
    lambda: SGD(math.inf),
    lambda: SGD(0.1, momentum=1.0),
    lambda: SGD(0.1, nesterov=True),
    lambda: Adam(beta2=1.0),
    lambda: Adam(epsilon=0.0),
    lambda: Penalty(l2=-1.0),
    lambda: Penalty(l1=math.nan),
    lambda: StepDecay(0.5, 0),
    lambda: StepDecay(-1.0, 1),
    lambda: ExponentialDecay(-0.1),
    lambda: InverseTimeDecay(-0.5),
    lambda: Milestones((1,), gamma=0.0),
    lambda: SGD(True),
    lambda: SGD(np.True_),
    lambda: Penalty(l2="1"),
    lambda: Dense(0, 3),
    lambda: SoftmaxCrossEntropy()(np.zeros((3, 3)), np.array([False, False, True])),
    lambda: SoftmaxCrossEntropy()(np.zeros((3, 3), dtype=int), np.array([0, 1, 2])),
]


@pytest.mark.parametrize("make", WRONG)
def test_values_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()


@pytest.mark.parametrize("sizes", ["5,3", 784, [4.7, 3], ["5", 3], {}, None])
def test_sizes_are_whole_numbers(sizes: Any) -> None:
    with pytest.raises(ValueError, match=r"sizes are expected to be .* such as \[784, 128, 10\], got "):
        MLP(sizes, device="cpu")


def test_numpy_scalars_become_python_floats() -> None:
    """A NumPy float64 would promote float32 arrays to float64."""
    value = np.float64(0.5)
    for rule, names in (
        (SGD(value, momentum=value), ("learning_rate", "momentum")),
        (Adam(value, beta1=value), ("learning_rate", "beta1")),
        (Penalty(l2=value, l1=value), ("l2", "l1")),
        (AdamW(weight_decay=value), ("weight_decay",)),
        (RMSprop(decay=value, momentum=value), ("decay", "momentum")),
        (StepDecay(gamma=value), ("gamma",)),
        (Cosine(9, final=value), ("final",)),
        (OneCycle(9, warmup_share=value), ("warmup_share", "start_divisor", "final_divisor")),
        (Dropout(9, value), ("rate",)),
        (SoftmaxCrossEntropy(value), ("label_smoothing",)),
        (LogisticCrossEntropy(value), ("label_smoothing",)),
    ):
        assert {type(getattr(rule, name)) for name in names} == {float}


def test_float32_stays_float32_with_numpy_scalars() -> None:
    value, rng = np.float64(0.5), np.random.default_rng(0)
    model = MLP([4, 5, 3], "gelu", device="cpu", dropout=value, input_dropout=value)
    trainer = Trainer(
        model,
        Dataset(rng.normal(size=(9, 4)), rng.integers(0, 3, 9), weights=rng.uniform(size=9)),
        optimizer=AdamW(value),
        clip_norm=value,
        max_norm=value,
        ema=value,
        class_weight={0: value},
    )
    trainer.run(2)
    arrays = [
        *trainer._step.arrays(),
        *trainer.state_buffers.values(),
        model.parameters.data,
        model.logits(np.eye(4)),
    ]
    assert {array.dtype.name for array in arrays} <= {"float32", "int64", "bool"}


def test_no_samples_give_no_predictions() -> None:
    model = MLP([4, 3], device="cpu")
    assert model.predict(np.zeros((0, 4), np.float32)).shape == (0,)
