"""The same code trains on every device, without operations that are slow or wrong on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    Dataset,
    OneCycle,
    Penalty,
    RMSprop,
    SoftmaxCrossEntropy,
    StepDecay,
    Trainer,
    fit,
)
from gpumlp.backends import Backend
from gpumlp.nn.activations import ACTIVATIONS
from tests.data_helpers import reorder
from tests.strict_device import StrictBackend

HIDDEN = [name for name in ACTIVATIONS if name != "identity"]


def trainer_on(backend: Backend, data: Dataset, **options: object) -> Trainer:
    model = MLP([data.features, 16, 12, data.classes], seed=3, device=backend)
    return Trainer(model, data, batch_size=32, seed=5, **options)


@pytest.mark.parametrize("activation", HIDDEN)
@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9, nesterov=True), Adam(0.01)])
def test_whole_runs_agree_with_the_cpu(
    backend: Backend, blobs: Dataset, activation: str, optimizer: object
) -> None:
    histories, weights = [], []
    for device in ("cpu", backend):
        model = MLP([20, 16, 4], activation=activation, seed=1, device=device)
        history = fit(
            model, blobs, optimizer=optimizer, epochs=3, batch_size=32, validation=50,
            schedule=StepDecay(0.5, 2), l2=1e-3, l1=1e-5,
        )  # fmt: skip
        histories.append(history)
        weights.append(model.state_dict())
    np.testing.assert_allclose(histories[0]["train_loss"], histories[1]["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(histories[0]["validation_loss"], histories[1]["validation_loss"], rtol=1e-4)
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=1e-3, atol=1e-4)


def test_initial_weights_and_batch_order_are_the_same_on_every_device(backend: Backend, blobs: Dataset) -> None:
    cpu, other = trainer_on("cpu", blobs, validation=50), trainer_on(backend, blobs, validation=50)
    for name, expected in cpu.model.state_dict().items():
        np.testing.assert_array_equal(other.model.state_dict()[name], expected)
    for trainer in (cpu, other):
        reorder(trainer.batches, np.random.default_rng(7).permutation(trainer.batches.rows))
    gathered = []
    for trainer in (cpu, other):
        backend_of = trainer.model.backend
        with backend_of.activate():
            out = backend_of.xp.empty((32, 20), dtype="float32")
            staging = backend_of.xp.empty((32, 20), dtype="uint8")
            labels = trainer.batches.gather(trainer.batches.slices[0], staging, out)
            gathered.append((backend_of.to_numpy(out), backend_of.to_numpy(labels)))
    np.testing.assert_allclose(gathered[0][0], gathered[1][0], rtol=1e-6)
    np.testing.assert_array_equal(gathered[0][1], gathered[1][1])


def test_a_network_trained_on_one_device_loads_on_another(backend: Backend, blobs: Dataset) -> None:
    trained = MLP([20, 16, 4], device=backend)
    fit(trained, blobs, epochs=3, batch_size=32)
    loaded = MLP([20, 16, 4], seed=9, device="cpu")
    loaded.load_state_dict(trained.state_dict())
    assert abs(trained.evaluate(blobs).correct - loaded.evaluate(blobs).correct) <= 2
    assert len(trained.predict(blobs.images[:5])) == 5


@pytest.mark.parametrize("batch_size", [4, 64])
@pytest.mark.parametrize(
    ("validation", "diagnostics", "reads"), [(None, False, 1), (None, True, 2), (50, False, 2), (50, True, 2)]
)
def test_the_host_waits_at_most_twice_per_epoch(
    blobs: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    validation: int | None,
    diagnostics: bool,
    reads: int,
) -> None:
    backend = StrictBackend()
    model = MLP([20, 16, 4], device=backend)
    trainer = Trainer(model, blobs, batch_size=batch_size, validation=validation, diagnostics=diagnostics)
    trainer.run(4)
    monkeypatch.setattr(trainer, "count_predictions", lambda: None)  # once, at the end
    with backend.ledger.counting() as ledger:
        trainer.run(5)  # statistics of layers are computed, too
    assert (ledger.host_reads, ledger.waits) == (reads, reads)
    assert ledger.host_writes == 1  # the order of the samples


# The derivatives of GELU, SiLU and ELU need a temporary array in array code; their kernels do not.
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1),
        SGD(0.1, momentum=0.9),
        SGD(0.1, momentum=0.9, nesterov=True),
        Adam(),
        AdamW(),
        RMSprop(momentum=0.5),
    ],
)
def test_a_step_allocates_no_activation_gradient_or_parameter_array(
    blobs: Dataset, activation: str, optimizer: object
) -> None:
    backend = StrictBackend()
    model = MLP([20, 16, 12, 4], activation=activation, device=backend)
    trainer = Trainer(model, blobs, optimizer=optimizer, penalty=Penalty(l2=1e-3, l1=1e-4), batch_size=32)
    trainer.run(1)
    for batch in trainer.batches.slices:  # including the smaller last batch
        with backend.ledger.counting() as ledger:
            trainer._step(batch, 0.1)
        per_sample = batch.stop - batch.start  # at most one number per sample, as the loss needs
        assert max(ledger.allocations) <= per_sample
        assert ledger.host_reads == ledger.waits == ledger.host_writes == 0


# Options of a network and of its trainer, for which arrays of other sizes may be needed.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "activations": ({"activation": ["gelu", "silu"]}, {}),
    "other activations": ({"activation": ["elu", "softplus"]}, {}),
    "limits": ({}, {"clip_norm": 0.1, "max_norm": 1.0}),
    "average": ({}, {"ema": 0.9, "optimizer": AdamW()}),
    "rmsprop, one cycle": ({}, {"optimizer": RMSprop(momentum=0.5), "schedule": OneCycle(50)}),
    "label smoothing": ({"loss": SoftmaxCrossEntropy(0.1)}, {}),
    "class weights": ({}, {"class_weight": "balanced"}),
    "dropout": ({"dropout": 0.5, "input_dropout": 0.2}, {}),
    "labels": ({"loss": "logistic_cross_entropy"}, {}),
    "numbers": ({"loss": "squared_error"}, {}),
    "counts": ({"loss": "poisson_deviance"}, {}),
}


@pytest.mark.parametrize(("network", "options"), OPTIONS.values(), ids=OPTIONS)
def test_every_option_trains_on_every_device_without_a_wait(
    network: dict[str, Any], options: dict[str, Any], blobs: Dataset
) -> None:
    data, ends = blobs, []
    if network.get("loss") in ("logistic_cross_entropy", "squared_error", "poisson_deviance"):
        targets = np.stack([blobs.labels % 2, blobs.labels > 1], axis=1)
        task = "labels" if network["loss"].startswith("logistic") else "numbers"
        data = Dataset(blobs.images, targets, task=task, weights=np.linspace(0, 2, 300))
    for device in ("cpu", StrictBackend()):
        model = MLP([20, 16, 12, data.outputs], seed=3, device=device, dtype="float64", **network)
        trainer = Trainer(model, data, batch_size=32, validation=0.1, **options)
        trainer.run(2)
        ends.append((model.state_dict(), trainer.history))
        if device != "cpu":
            for batch in trainer.batches.slices:
                with device.ledger.counting() as ledger:
                    trainer._step(batch, 0.01)
                assert ledger.host_reads == ledger.waits == ledger.host_writes == 0
                if not network.keys() & {"dropout", "activation"}:  # in array code, these need temporary arrays
                    assert max(ledger.allocations) <= max(32 * data.outputs, 20)
    for name, tensor in ends[0][0].items():
        np.testing.assert_allclose(ends[1][0][name], tensor, rtol=0, atol=1e-11)
    for column in ("train_loss", "validation_loss", "train_accuracy", "validation_r2"):
        one, other = (end[1][column] for end in ends)
        assert one == (other if other[0] is None else pytest.approx(other, rel=1e-9))


def test_cupy_has_every_function_that_training_uses(blobs: Dataset) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    backend = StrictBackend()
    for optimizer in (SGD(0.1, momentum=0.9), Adam()):
        model = MLP([20, 16, 4], activation="sigmoid", device=backend)
        fit(model, blobs, optimizer=optimizer, epochs=1, validation=50, l1=1e-4, l2=1e-4)
    for network, options in OPTIONS.values():
        if "loss" not in network:
            Trainer(MLP([20, 16, 12, 4], device=backend, **network), blobs, batch_size=32, **options).run(1)
    missing = {name for name in backend.ledger.functions if not hasattr(cupy, name)}
    assert not missing
