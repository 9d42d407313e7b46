"""Training by the persistent kernel on the emulator: the reference's results, the same bits for any division."""

from __future__ import annotations

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
    DivergenceError,
    Loss,
    Penalty,
    SoftmaxCrossEntropy,
    Trainer,
    fit,
    fit_many,
)
from gpumlp.backends import Backend, ExecutionError, StepRun
from tests.data_helpers import reorder
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend
from tests.test_stream import hand_over

# Arguments of the network and of its trainer, and how many multiprocessors it has. An epoch has 4 steps of 16
# samples, the last of 12.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], int | None]] = {
    "plain": ({}, {"optimizer": SGD(0.1)}, None),
    "two multiprocessors": (
        {"hidden": (18,), "activation": "gelu"},
        {"optimizer": SGD(0.05, momentum=0.9, nesterov=True), "penalty": Penalty(l2=1e-3, l1=1e-4)},
        2,
    ),
    "two layers": ({"hidden": (18, 9)}, {"optimizer": SGD(0.05, momentum=0.9), "class_weight": "balanced"}, 4),
    "dropout": (
        {"hidden": (24,), "dropout": 0.5, "input_dropout": 0.2, "loss": SoftmaxCrossEntropy(0.1)},
        {"optimizer": Adam(0.01), "seed": 7},
        3,
    ),
    "three layers, by step": (
        {"hidden": (17, 8, 12), "activation": ["tanh", "relu", "silu"]},
        {"optimizer": AdamW(0.01, weight_decay=0.1), "schedule": Cosine(12), "validation": 0.1},
        2,
    ),
    "numbers": ({"kind": "numbers"}, {"optimizer": SGD(0.01, momentum=0.5)}, None),
    "labels": ({"kind": "labels", "activation": "elu"}, {"optimizer": SGD(0.1)}, None),
}


def persistent_backend(multiprocessors: int | None = None, order: int = 0) -> Backend:
    """The persistent kernel on the CPU; `order` is the seed of the emulator's schedule."""
    backend = host_cuda_backend(execution="persistent", multiprocessors=multiprocessors)
    backend.xp.attributes |= {"CooperativeLaunch": 1, "MultiProcessorCount": 12}
    backend.xp.thread_order = order
    return backend


def samples(kind: str = "classes", seed: int = 0) -> Dataset:
    """60 random samples: pixels in 4 classes or with 3 labels, or 3 numbers from 20 numbers."""
    rng = np.random.default_rng(seed)
    if kind == "numbers":
        return Dataset(rng.normal(size=(60, 20)).astype("float32"), rng.normal(size=(60, 3)).astype("float32"))
    images = rng.integers(0, 256, (60, 20), dtype=np.uint8)
    if kind == "labels":
        return Dataset(images, rng.integers(0, 2, (60, 3)), task="labels")
    return Dataset(images, np.r_[np.arange(4), rng.integers(0, 4, 56)], classes=4)


def trainer_on(
    backend: Backend,
    *,
    kind: str = "classes",
    data: Dataset | None = None,
    hidden: tuple[int, ...] = (16,),
    activation: Any = "relu",
    network_seed: int = 1,
    dtype: str = "float32",
    loss: Any = "auto",
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    **options: Any,
) -> Trainer:
    data = samples(kind) if data is None else data
    sizes, rates = [data.features, *hidden, data.outputs], {"dropout": dropout, "input_dropout": input_dropout}
    model = MLP(sizes, activation, loss=loss, dtype=dtype, seed=network_seed, device=backend, **rates)
    return Trainer(model, data, **{"batch_size": 16, "diagnostics": False} | options)


def arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    """Parameters, buffers and records after training."""
    to_numpy, step = trainer.model.backend.to_numpy, trainer._step
    buffers = {name: to_numpy(buffer) for name, buffer in trainer.optimizer_state.buffers.items()}
    records = {"losses": to_numpy(step.losses), "scores": to_numpy(step.scores)}
    return {"parameters": to_numpy(trainer.model.parameters.data)} | buffers | records


def bits(trainer: Trainer) -> dict[str, bytes]:
    assert trainer.execution.name == "persistent"
    return {name: array.tobytes() for name, array in arrays(trainer).items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_epochs_are_those_of_the_reference(setting: str) -> None:
    network, options, multiprocessors = SETTINGS[setting]
    found = trainer_on(persistent_backend(multiprocessors), **network, **options)
    reference = trainer_on(StrictBackend(), dtype="float64", **network, **options)
    for trainer in (found, reference):
        trainer.run(3)
    assert found.execution.name == "persistent"
    got, want = arrays(found), arrays(reference)
    for name, array in want.items():
        scale = np.abs(array.astype("float64")).max()
        np.testing.assert_allclose(got[name], array, rtol=0, atol=2e-6 * scale, err_msg=name)
    np.testing.assert_allclose(found.history["train_loss"], reference.history["train_loss"], rtol=2e-6)
    assert found.optimizer_state.steps == reference.optimizer_state.steps


@pytest.mark.parametrize("setting", ["two layers", "dropout"])
def test_neither_the_division_of_a_run_nor_the_order_of_threads_changes_a_bit(setting: str) -> None:
    network, options, multiprocessors = SETTINGS[setting]
    whole = trainer_on(persistent_backend(multiprocessors), **network, **options)
    whole.run(2)
    divided = trainer_on(persistent_backend(multiprocessors, order=3), **network, **options)
    for batches in ((range(2), range(2, 4)), (range(1), range(1, 4))):
        reorder(divided.batches, divided._orders.draw())
        with divided.model.backend.activate():
            for part in batches:
                rate = divided.optimizer.learning_rate
                divided.model.backend.run_steps(divided._step, part, [rate] * len(part))
    assert bits(divided) == bits(whole)


def test_a_restored_run_goes_on_with_the_same_bits() -> None:
    network, options, multiprocessors = SETTINGS["dropout"]
    whole, first, second = (
        trainer_on(persistent_backend(multiprocessors), **network, **options) for _ in range(3)
    )
    whole.run(3)
    first.run(1)
    hand_over(first, second)
    second.run(3)
    assert bits(second) == bits(whole)


class Own(Loss):
    """A loss of the user's that names the kernel, but has no label smoothing."""

    name, kernel, output, task, least_outputs = "own", "softmax_cross_entropy", "softmax", "classes", 2

    def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, scores: Any) -> None:
        SoftmaxCrossEntropy().output_error(backend, outputs, targets, losses, scores)

    def predictions(self, outputs: Any) -> Any:
        return SoftmaxCrossEntropy().predictions(outputs)


def test_a_loss_of_the_users_that_names_the_kernel_is_computed_by_it() -> None:
    own, built_in = (trainer_on(persistent_backend(), loss=loss) for loss in (Own(), SoftmaxCrossEntropy()))
    for trainer in (own, built_in):
        trainer.run(1)
    assert bits(own) == bits(built_in)


def test_a_loss_that_is_not_a_number_ends_training() -> None:
    trainer = trainer_on(persistent_backend(), optimizer=SGD(1e30))
    before = arrays(trainer)["parameters"]
    with pytest.raises(DivergenceError):
        trainer.run(3)
    np.testing.assert_array_equal(arrays(trainer)["parameters"], before)


def test_networks_in_one_launch_are_those_alone() -> None:
    shared = {"hidden": (18, 9), "dropout": 0.2}
    each = [
        {"optimizer": SGD(0.05, momentum=0.9), "network_seed": 1, "seed": 1},
        {"optimizer": SGD(0.1, momentum=0.5), "network_seed": 2, "seed": 2, "penalty": Penalty(l2=0.01)},
        {"optimizer": SGD(0.2, momentum=0.9), "network_seed": 3, "seed": 3, "data": samples(seed=5)},
    ]
    alone = [trainer_on(persistent_backend(4), **shared, **options) for options in each]
    for trainer in alone:
        trainer.run(1)
    backend = persistent_backend(4, order=5)
    together = [trainer_on(backend, **shared, **options) for options in each]
    for trainer in together:
        reorder(trainer.batches, trainer._orders.draw())
    rates = [trainer.optimizer.learning_rate for trainer in together]
    with backend.activate():
        assert backend.networks_at_once(together[0]._step) >= 3
        backend.xp.launches.clear()
        backend.run_many([StepRun(t._step, range(4), [rate] * 4) for t, rate in zip(together, rates, strict=True)])
    assert backend.xp.launches.count("train_networks") == 1
    assert [bits(trainer) for trainer in together] == [bits(trainer) for trainer in alone]


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_networks_are_validated_in_one_launch_as_alone(kind: str) -> None:
    data, held_out, backend = samples(kind), samples(kind, seed=1), persistent_backend(2)
    weighted = Dataset(held_out.images, held_out.targets, task=kind, weights=np.linspace(0.5, 2, 60))
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "diagnostics": False}
    options["validation"] = [held_out, weighted, np.arange(20)]

    def networks(device: Backend) -> list[MLP]:
        sizes = [data.features, 18, data.outputs]
        return [MLP(sizes, seed=seed, device=device, dropout=0.2) for seed in range(3)]

    together = networks(backend)
    backend.xp.launches.clear()
    histories = fit_many(together, data, optimizer=[SGD(0.01), Adam(0.01), SGD(0.01, momentum=0.9)], **options)
    alone = networks(persistent_backend(2))
    optimizers = SGD(0.01), Adam(0.01), SGD(0.01, momentum=0.9)
    for model, rule, validation, history in zip(alone, optimizers, options["validation"], histories, strict=True):
        own = fit(model, data, optimizer=rule, **{**options, "validation": validation})
        assert own["validation_loss"] == history["validation_loss"]
    # The networks are of three kinds for training, and of one for evaluation.
    assert backend.xp.launches.count("train_networks") == 2 * (3 + 1)
    found = together[1].evaluate(weighted).metrics()
    for name, value in found.items():
        assert histories[1][f"validation_{name}"][-1] == pytest.approx(value, rel=1e-5), name


def test_held_out_samples_that_do_not_fit_the_kernel_are_evaluated_by_array_code() -> None:
    trainer = trainer_on(persistent_backend(), validation=samples(seed=1))
    backend, step = trainer.model.backend, trainer._evaluation
    backend.persistent._plan = lambda step: "it does not fit"
    with pytest.raises(ExecutionError):
        backend.execution(trainer._step)
    del backend.persistent._plan
    assert trainer.execution.name == "persistent"
    backend.persistent._plan = lambda step: "it does not fit"
    trainer.run(1)
    assert backend.execution(step) == ("eager", "it does not fit", None, None)
    assert trainer.history["validation_loss"] == [trainer.model.evaluate(samples(seed=1)).loss]


def test_networks_in_one_launch_may_train_for_different_numbers_of_steps() -> None:
    backend = persistent_backend()
    trainers = [trainer_on(backend, network_seed=seed, optimizer=SGD(0.1)) for seed in (1, 2)]
    alone = [trainer_on(persistent_backend(), network_seed=seed, optimizer=SGD(0.1)) for seed in (1, 2)]
    parts = (range(3), range(1, 2))
    with backend.activate():
        backend.run_many([StepRun(t._step, p, [0.1] * len(p)) for t, p in zip(trainers, parts, strict=True)])
    for trainer, part in zip(alone, parts, strict=True):
        with trainer.model.backend.activate():
            trainer.model.backend.run_steps(trainer._step, part, [0.1] * len(part))
    ends = [
        [trainer.model.backend.to_numpy(trainer.model.parameters.data) for trainer in some]
        for some in (trainers, alone)
    ]
    np.testing.assert_array_equal(*ends)


# -- A GPU ------------------------------------------------------------------------------------------------------

SHAPES = [
    *(([784, 128, 10], 32), ([784, 128, 10], 100), ([784, 128, 10], 256)),
    *(([784, 512, 512, 10], 128), ([30, 100, 2], 200)),
]


def on_a_gpu(backend: Backend, sizes: list[int], batch_size: int, seed: int, **options: Any) -> Trainer:
    rng = np.random.default_rng(4)
    images, labels = rng.integers(0, 256, (650, sizes[0]), dtype=np.uint8), rng.integers(0, sizes[-1], 650)
    model = MLP(sizes, seed=seed, device=backend, dropout=0.1)
    options = {"batch_size": batch_size, "seed": seed, "diagnostics": False} | options
    return Trainer(model, Dataset(images, labels, classes=sizes[-1]), **options)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "optimizer", [SGD(0.01, momentum=0.9), Adam(0.001, epsilon=1e-3)], ids=["momentum", "adam"]
)
@pytest.mark.parametrize(("sizes", "batch_size"), SHAPES)
def test_on_a_gpu_it_agrees_with_eager_training_alone_and_together(
    sizes: list[int], batch_size: int, optimizer: Any
) -> None:
    options = {"optimizer": optimizer, "penalty": Penalty(l2=1e-4)}
    backend = gpu_backend(execution="persistent")
    try:
        alone = [on_a_gpu(backend, sizes, batch_size, seed, **options) for seed in range(3)]
        _ = alone[0].execution
    except ExecutionError as error:
        pytest.skip(str(error))
    again = on_a_gpu(backend, sizes, batch_size, 0, **options)
    eager = on_a_gpu(gpu_backend(execution="eager"), sizes, batch_size, 0, **options)
    for trainer in (*alone, again, eager):
        trainer.run(1)
    assert bits(again) == bits(alone[0])
    for name, array in arrays(eager).items():
        if array.dtype != bool:
            scale = np.abs(array).max()
            np.testing.assert_allclose(arrays(alone[0])[name], array, rtol=0, atol=1e-4 * scale, err_msg=name)
    together = [on_a_gpu(backend, sizes, batch_size, seed, **options) for seed in range(3)]
    with backend.activate():
        for trainer in together:
            reorder(trainer.batches, trainer._orders.draw())
        count = len(together[0].batches.slices)
        backend.run_many([StepRun(t._step, range(count), [optimizer.learning_rate] * count) for t in together])
    assert [bits(trainer) for trainer in together] == [bits(trainer) for trainer in alone]
