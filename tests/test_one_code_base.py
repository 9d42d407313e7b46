"""The same code trains on every device, without operations that are slow or wrong on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, Penalty, StepDecay, Trainer, fit
from gpumlp.backends import Backend
from tests.strict_device import StrictBackend


def trainer_on(backend: Backend, data: Dataset, **options: object) -> Trainer:
    model = MLP([data.features, 16, 12, data.classes], seed=3, device=backend)
    return Trainer(model, data, batch_size=32, seed=5, **options)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
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
        trainer.batches.reorder(np.random.default_rng(7).permutation(trainer.batches.rows))
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


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
@pytest.mark.parametrize(
    "optimizer", [SGD(0.1), SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9, nesterov=True), Adam()]
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


def test_cupy_has_every_function_that_training_uses(blobs: Dataset) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    backend = StrictBackend()
    for optimizer in (SGD(0.1, momentum=0.9), Adam()):
        model = MLP([20, 16, 4], activation="sigmoid", device=backend)
        fit(model, blobs, optimizer=optimizer, epochs=1, validation=50, l1=1e-4, l2=1e-4)
    missing = {name for name in backend.ledger.functions if not hasattr(cupy, name)}
    assert not missing
