"""What training continues from after a resume, an interrupt and a divergence; averages and limits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    Callback,
    Cosine,
    Dataset,
    DivergenceError,
    History,
    OneCycle,
    RMSprop,
    SoftmaxCrossEntropy,
    StepDecay,
    Trainer,
    Warmup,
    fit,
)
from gpumlp.training.checkpoint import Checkpoint
from tests.command_helpers import DIGITS, run
from tests.file_helpers import change_file, change_group
from tests.strict_device import StrictBackend

MOMENTUM = SGD(0.05, momentum=0.9)
# The arguments of a network and of its trainer. An epoch has 9 steps of 32 samples, the last of 4.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "momentum": ({}, {"optimizer": MOMENTUM}),
    "adam": ({}, {"optimizer": Adam(0.01)}),
    "adamw": ({}, {"optimizer": AdamW(0.01, weight_decay=0.1)}),
    "rmsprop": ({}, {"optimizer": RMSprop(0.005, momentum=0.5)}),
    "dropout": ({"dropout": 0.5, "input_dropout": 0.2}, {}),
    "average": ({}, {"ema": 0.9}),
    "average, momentum": ({}, {"ema": 0.9, "optimizer": MOMENTUM}),
    "warm-up, cosine": ({}, {"schedule": Warmup(12, then=Cosine(30))}),
    "warm-up, by epoch": ({}, {"schedule": Warmup(12, then=StepDecay(0.5, 2)), "optimizer": MOMENTUM}),
    "one cycle": ({}, {"schedule": OneCycle(50), "optimizer": Adam(0.02)}),
    "limits": ({}, {"clip_norm": 0.2, "max_norm": 1.0, "optimizer": MOMENTUM}),
    "weights": ({}, {"class_weight": "balanced", "validation": 0.2}),
    "shards": ({"dropout": 0.5}, {"shards": 5, "clip_norm": 0.2, "optimizer": MOMENTUM}),
    "all of it": (
        {"dropout": 0.3, "input_dropout": 0.1, "activation": "gelu", "loss": SoftmaxCrossEntropy(0.1)},
        {
            "optimizer": AdamW(0.01),
            "schedule": Warmup(5, then=Cosine(40)),
            "ema": 0.9,
            "clip_norm": 0.5,
            "max_norm": 2.0,
            "class_weight": {0: 2.0},
            "validation": 0.1,
        },
    ),
}
EVERY = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
DEVICES = pytest.mark.parametrize("device", ["cpu", StrictBackend()], ids=["cpu", "strict"])


def new(
    data: Dataset, setting: tuple[dict[str, Any], dict[str, Any]], device: Any = "cpu", seed: int = 7
) -> Trainer:
    network, options = setting
    model = MLP([20, 16, 12, 4], seed=seed, device=device, **network)
    return Trainer(model, data, batch_size=32, seed=7, **options)


def state(trainer: Trainer) -> list[Any]:
    """Everything that training continues from, and the results."""
    to_host = trainer.model.backend.to_numpy
    buffers = {"model": trainer.model.parameters.data, **trainer.state_buffers}
    clock = {"seconds", "samples_per_second"}
    records = [{k: v for k, v in vars(record).items() if k not in clock} for record in trainer.history]
    return [
        {name: to_host(buffer).tobytes() for name, buffer in buffers.items()},
        trainer.optimizer_state.steps,
        trainer.random_state(),
        records,
    ]


@EVERY
@DEVICES
def test_training_continues_from_a_saved_state(
    setting: tuple[dict[str, Any], dict[str, Any]], device: Any, blobs: Dataset
) -> None:
    whole, first = new(blobs, setting, device), new(blobs, setting, device)
    whole.run(5)
    first.run(2)
    to_host = first.model.backend.to_numpy
    saved = {name: to_host(buffer).copy() for name, buffer in first.state_buffers.items()}
    second = new(blobs, setting, device, seed=99)  # other initial weights
    second.model.load_state_dict(first.model.state_dict())
    random = json.loads(json.dumps(first.random_state()))
    second.restore(saved, first.optimizer_state.steps, random, History(first.history.records))
    assert state(second) == state(first)
    second.run(5)
    assert state(second) == state(whole)


class Interrupt(Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, epoch: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.epoch, self.error = epoch, error

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if trainer.epoch + 1 == self.epoch and samples > 100:
            raise self.error


@EVERY
@DEVICES
def test_an_interrupt_rolls_everything_back_to_the_last_epoch(
    setting: tuple[dict[str, Any], dict[str, Any]], device: Any, blobs: Dataset
) -> None:
    expected, trainer = new(blobs, setting, device), new(blobs, setting, device)
    expected.run(2)
    assert trainer.run(5, Interrupt(3)).interrupted
    assert state(trainer) == state(expected)
    trainer.run(5)
    expected.run(5)
    assert state(trainer) == state(expected)


class Explode(Callback):
    """Makes the parameters that the steps change infinite within an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if trainer.epoch + 1 == self.epoch:
            trainer.trained.parameters.data[:4] = np.inf


@EVERY
def test_a_divergence_rolls_everything_back_to_the_last_good_epoch(
    setting: tuple[dict[str, Any], dict[str, Any]], blobs: Dataset
) -> None:
    expected, trainer = new(blobs, setting), new(blobs, setting)
    expected.run(2)
    with pytest.raises(DivergenceError, match="training diverged in epoch 3"):
        trainer.run(5, Explode(3))
    assert state(trainer) == state(expected)
    trainer.run(4)
    expected.run(4)
    assert state(trainer) == state(expected)


@EVERY
def test_callbacks_and_diagnostics_change_nothing(
    setting: tuple[dict[str, Any], dict[str, Any]], blobs: Dataset
) -> None:
    plain, watched = (new(blobs, (setting[0], {**setting[1], "diagnostics": d})) for d in (False, True))
    plain.run(3)
    watched.run(3, [lambda trainer: trainer.model.evaluate(blobs), Callback()])
    assert state(plain)[:3] == state(watched)[:3]


# -- Averages ------------------------------------------------------------------------------------------------


def full_batches(
    data: Dataset, decay: float | None, epochs: int, **options: Any
) -> tuple[Trainer, list[np.ndarray]]:
    """One step an epoch; the parameters before the first step and after each."""
    model = MLP([20, 9, 4], dtype="float64", device="cpu")
    seen = [model.parameters.data.copy()]
    trainer = Trainer(model, data, batch_size="full", ema=decay, **options)
    trainer.run(epochs, lambda trainer: seen.append(trainer.trained.parameters.data.copy()))
    return trainer, seen


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_average_is_over_the_steps_and_starts_at_the_initial_parameters(decay: float, blobs: Dataset) -> None:
    trainer, seen = full_batches(blobs, decay, 8, optimizer=Adam(0.01))
    expected = seen[0]
    for parameters in seen[1:]:
        expected = decay * expected + (1 - decay) * parameters
    np.testing.assert_allclose(trainer.model.parameters.data, expected, rtol=0, atol=1e-14)
    plain, without = full_batches(blobs, None, 8, optimizer=Adam(0.01))
    np.testing.assert_array_equal(seen, without)  # the average does not act on training
    assert plain.trained is plain.model
    assert list(trainer.state_buffers) == ["mean", "mean_square", "trained"]


def test_results_are_those_of_the_average(blobs: Dataset) -> None:
    trainer = Trainer(MLP([20, 9, 4], device="cpu"), blobs, batch_size=32, validation=0.2, ema=0.99)
    seen: list[Any] = []
    trainer.run(3, lambda trainer: seen.append(trainer.model.state_dict()))
    held_out = trainer.validation_batches.rows
    model, part = trainer.model, Dataset(blobs.images[held_out], blobs.labels[held_out], classes=4)
    assert trainer.history["validation_loss"][-1] == pytest.approx(model.evaluate(part).loss, rel=1e-6)
    assert trainer.trained.evaluate(part).loss != pytest.approx(model.evaluate(part).loss, rel=1e-3)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(seen[-1][name], tensor)


def test_the_average_of_a_noisy_run_is_better_than_its_last_step() -> None:
    """B. T. Polyak and A. B. Juditsky, 1992: at a constant rate, averages have less of the noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 10))
    y = x @ rng.normal(size=(10, 1)) + rng.normal(size=(2000, 1))
    model = MLP([10, 1], device="cpu")
    trainer = Trainer(model, Dataset(x, y), batch_size=8, optimizer=SGD(0.05), ema=0.99)
    trainer.run(10)
    best = np.linalg.lstsq(np.hstack([x, np.ones((2000, 1))]), y, rcond=None)[0][:10]
    distance = [np.linalg.norm(each.dense_layers[0].weight - best) for each in (model, trainer.trained)]
    assert distance[0] < 0.5 * distance[1]


def test_the_trained_network_keeps_what_the_first_data_settle(blobs: Dataset) -> None:
    trainer = Trainer(
        MLP([20, 9, 3], device="cpu"), Dataset(blobs.images, np.eye(3)[blobs.labels % 3] + 0.5), ema=0.9
    )
    for each in (trainer.model, trainer.trained):
        assert (each.loss.name, each.inputs.shape) == ("squared_error", (20,))


def test_training_on_after_fit_starts_from_the_average(blobs: Dataset) -> None:
    model = MLP([20, 9, 4], device="cpu")
    fit(model, blobs, epochs=2, ema=0.9)
    other = copy.deepcopy(model)
    for each in (model, other):
        fit(each, blobs, epochs=2, ema=0.9)
    np.testing.assert_array_equal(model.parameters.data, other.parameters.data)


# -- Limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_incoming_weights_of_hidden_units_stay_below_max_norm(activation: str, blobs: Dataset) -> None:
    model = MLP([20, 16, 12, 4], activation, device="cpu")
    norms: list[float] = []

    def measure(trainer: Trainer) -> None:
        norms.extend(np.linalg.norm(layer.weight, axis=0).max() for layer in model.dense_layers[:-1])

    fit(model, blobs, epochs=10, batch_size=32, optimizer=SGD(0.3), max_norm=0.8, callbacks=measure)
    assert 0.8 * (1 - 1e-6) < max(norms) <= 0.8 * (1 + 1e-6)
    assert np.linalg.norm(model.dense_layers[-1].weight, axis=0).max() > 0.8  # outputs are not limited


@pytest.mark.parametrize("limit", [1e6, 1e300])  # the second is beyond float32
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float64", 1e-12)])
def test_a_limit_that_is_never_reached_changes_nothing(
    dtype: str, atol: float, limit: float, blobs: Dataset
) -> None:
    ends = []
    for limits in ({}, {"max_norm": limit}, {"clip_norm": limit}):
        model = MLP([20, 16, 4], device="cpu", dtype=dtype)
        fit(model, blobs, epochs=3, batch_size=32, optimizer=MOMENTUM, **limits)
        ends.append(model.parameters.data)
    np.testing.assert_array_equal(ends[1], ends[0])
    np.testing.assert_allclose(ends[2], ends[0], rtol=0, atol=atol)  # the gradient is an array, not accumulated


@pytest.mark.parametrize("limit", [1e-30, 1e-300])
def test_max_norm_close_to_0_leaves_units_without_weights_alone(limit: float, blobs: Dataset) -> None:
    model = MLP([20, 16, 4], device="cpu")
    model.dense_layers[0].weight[:, 3] = 0
    history = fit(model, Dataset(0 * blobs.images, blobs.labels), epochs=1, batch_size=32, max_norm=limit)
    assert np.isfinite(model.parameters.data).all()
    assert np.isfinite(history["train_loss"]).all()


def test_a_step_is_no_longer_than_the_clipped_gradient(blobs: Dataset) -> None:
    _, seen = full_batches(blobs, None, 5, optimizer=SGD(0.1), clip_norm=0.01)
    lengths = [np.linalg.norm(after - before) for before, after in pairwise(seen)]
    np.testing.assert_allclose(lengths, 0.1 * 0.01, rtol=1e-3)


# -- Schedules by step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [Warmup(30), Cosine(25, final=0.1), OneCycle(40), Warmup(10, then=Cosine(20))], ids=repr
)
def test_every_step_has_its_rate(schedule: Callable[[float, int], float], blobs: Dataset) -> None:
    trainer = Trainer(MLP([20, 4], device="cpu"), blobs, batch_size=32, schedule=schedule, optimizer=SGD(0.1))
    rates: list[float] = []
    step = trainer._step.__class__.__call__

    class Watched(type(trainer._step)):  # type: ignore[misc]
        def __call__(self, batch: slice, learning_rate: float) -> None:
            rates.append(learning_rate)
            step(self, batch, learning_rate)

    trainer._step.__class__ = Watched
    history = trainer.run(4)
    assert rates == [schedule(0.1, number) for number in range(40)]
    assert history["learning_rate"] == rates[9::10]


def test_a_resumed_run_says_if_the_number_of_blas_threads_is_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *DIGITS, "--hidden", 4, "--epochs", 1, "--out", tmp_path / "run") == 0
    file = tmp_path / "run" / "checkpoint.safetensors"
    threads = Checkpoint.load(file).execution["threads"]
    if threads is None:
        pytest.skip("the number of threads is not known of this BLAS")
    for epochs, had in ((2, threads), (3, threads + 1)):
        change_file(file, change_group("execution", threads=had))
        assert run("train", "--resume", tmp_path / "run", "--epochs", epochs) == 0
        said = f"BLAS threads: {threads} instead of {threads + 1}: results may differ by rounding\n"
        assert (said in capsys.readouterr().out) is (had != threads)
