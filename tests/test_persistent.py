"""The persistent kernel's runner: what it supports, what it gives the kernel, and networks trained together."""

from __future__ import annotations

import ctypes
import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    Dataset,
    Dense,
    Dropout,
    Penalty,
    PoissonDeviance,
    RMSprop,
    SoftmaxCrossEntropy,
    SquaredError,
    Trainer,
)
from gpumlp.backends import Backend, ExecutionError, StepRun
from gpumlp.backends.cuda import persistent, plan
from gpumlp.backends.cuda.persistent import bfloat16_rows
from gpumlp.backends.cuda.plan import NETWORK
from gpumlp.backends.philox import threshold
from gpumlp.nn.activations import ACTIVATIONS, LeakyReLU
from gpumlp.nn.losses import LOSSES
from tests.host_cuda import HostCupy, HostDevice, host_cuda_backend
from tests.host_kernels import HostModule
from tests.own_rules import Scaled
from tests.strict_device import StrictArray

H100 = {"CooperativeLaunch": 1, "MultiProcessorCount": 132}  # with the shared memory of the fake


def values(address: int, dtype: Any, *shape: int) -> np.ndarray:
    """A copy of what is in the memory of the fake device."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(int(address), size), dtype=dtype).reshape(shape)


FACTORS = 1, 1, 1, 2, 3, 0  # how many numbers each optimizer's `step_factors` has, as in persistent.cu


class RecordedKernel:
    """A kernel that computes nothing, but keeps what it is launched with: the arguments, and each network.

    Attributes:
        grids: of each launch.
        networks: of each launch: the structure of each network, the factors of its steps, and its first sample.
        exchanges: the bytes of each launch's exchange.
    """

    def __init__(self, xp: HostCupy, defined: dict[str, str]) -> None:
        self.xp, self.kernel, self.batch = xp, self, int(defined["BATCH"])
        self.factors = FACTORS[int(defined["OPTIMIZER"])]
        self.pairs = int(defined["EXCHANGE"]) if int(defined["BLOCKS"]) > 1 else 0
        self.ptr, self.max_dynamic_shared_size_bytes = 4096, 48 * 1024
        self.grids: list[tuple[int, ...]] = []
        self.networks: list[list[SimpleNamespace]] = []
        self.exchanges: list[bytes] = []

    def get_function(self, name: str) -> RecordedKernel:
        assert name == "train_networks"
        return self

    def __call__(
        self, grid: Any, block: Any, args: Any, *, shared_mem: int, enable_cooperative_groups: bool
    ) -> None:
        assert enable_cooperative_groups
        assert shared_mem == self.max_dynamic_shared_size_bytes
        (networks,) = args
        assert isinstance(networks, StrictArray)
        assert networks.dtype == np.uint8
        self.grids.append(grid)
        structs = networks._data.copy().view(NETWORK)
        self.networks.append([self._network(struct) for struct in structs])
        self.exchanges.append(ctypes.string_at(int(structs[0]["exchange"]), 8 * self.pairs * len(structs)))
        self.xp.launched("train_networks", lambda: None)

    def _network(self, struct: Any) -> SimpleNamespace:
        steps = -(-int(struct["stop"] - struct["start"]) // self.batch)
        factors = values(struct["factors"], np.float32, steps, self.factors)
        return SimpleNamespace(struct=struct, factors=factors, sample=values(struct["images"], np.uint16, 16))


class Recording(HostCupy):
    """The fake of CuPy with `RecordedKernel` for the persistent kernel; `kernels` are those that were compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[RecordedKernel] = []

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:
        if "train_networks" not in code:
            return HostModule(self, code=code, options=options)
        self.kernels.append(RecordedKernel(self, dict(option[2:].split("=") for option in options)))
        return self.kernels[-1]


def recorder(
    execution: str = "persistent", multiprocessors: int | None = None, *, graphs: bool = False, **attributes: int
) -> Backend:
    """A backend whose persistent kernel is only recorded; `graphs`: whether graphs are possible."""
    options = {"execution": execution, "multiprocessors": multiprocessors}
    backend = host_cuda_backend(cupy=Recording(), cublaslt=graphs, **options)
    backend.xp.attributes |= H100 | attributes
    return backend


def trainer_on(
    backend: Backend,
    data: Dataset,
    hidden: tuple[int, ...] = (16,),
    *,
    activation: Any = "relu",
    loss: Any = "auto",
    dtype: str = "float32",
    dropout: Any = 0.0,
    input_dropout: float = 0.0,
    model_seed: int = 1,
    **options: Any,
) -> Trainer:
    sizes, rates = [data.features, *hidden, data.outputs], {"dropout": dropout, "input_dropout": input_dropout}
    model = MLP(sizes, activation, loss=loss, dtype=dtype, seed=model_seed, device=backend, **rates)
    return Trainer(model, data, **{"batch_size": 32, "diagnostics": False} | options)


def run_of(trainer: Trainer, batches: range | None = None, rate: float = 0.1) -> StepRun:
    batches = range(len(trainer.batches.slices)) if batches is None else batches
    return StepRun(trainer._step, batches, [rate] * len(batches))


def train(trainer: Trainer) -> None:
    """An epoch's steps; the recorded kernel writes no losses, so that a whole epoch would seem to diverge."""
    with trainer.model.backend.activate():
        trainer.model.backend.run_steps(*run_of(trainer))


def reason_of(trainer: Trainer) -> str | None:
    return trainer.model.backend.persistent.unsupported_reason(trainer._step)


# -- What it supports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(1,), (30,), (128,), (64, 32), (30, 20, 10)])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
def test_one_to_three_hidden_layers_of_every_activation(
    activation: str, hidden: tuple[int, ...], blobs: Dataset
) -> None:
    trainer = trainer_on(recorder(), blobs, hidden, activation=activation)
    assert reason_of(trainer) is None
    assert str(trainer.execution).startswith("persistent: ")


@pytest.mark.parametrize(
    "loss", [*LOSSES.values(), lambda: SoftmaxCrossEntropy(label_smoothing=0.1)], ids=lambda kind: kind.__name__
)
def test_every_loss(loss: Any, blobs: Dataset) -> None:
    targets = np.random.default_rng(0).integers(0, 2, (300, 3))
    task = loss().task
    data = blobs if task == "classes" else Dataset(blobs.images, targets.astype("float32"), task=task)
    assert reason_of(trainer_on(recorder(), data, loss=loss())) is None


@pytest.mark.parametrize(
    "optimizer", [SGD(0.1), SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9, nesterov=True), Adam(), AdamW()]
)
def test_optimizers_with_penalties_weights_and_dropout(optimizer: Any, blobs: Dataset) -> None:
    trainer = trainer_on(
        recorder(), blobs, (16, 8), dropout=(0.2, 0.5), input_dropout=0.1, optimizer=optimizer,
        penalty=Penalty(l2=1e-3, l1=1e-4), class_weight="balanced",
    )  # fmt: skip
    assert reason_of(trainer) is None


class MyReLU(LeakyReLU):
    def forward(self, xp: Any, s: Any, out: Any) -> None:
        super().forward(xp, s, out)


class MyLoss(SquaredError):
    def output_error(self, *arguments: Any) -> None:
        super().output_error(*arguments)


class MySGD(SGD):
    def update(self, *arguments: Any) -> None:
        super().update(*arguments)


class MyPenalty(Penalty):
    def add_gradient(self, *arguments: Any) -> None:
        super().add_gradient(*arguments)


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("it computes in float32 only, not in float64", {"dtype": "float64"}),
        ("it supports one to three hidden layers, this network has 0", {"hidden": ()}),
        ("it supports one to three hidden layers, this network has 4", {"hidden": (8, 8, 8, 8)}),
        ("the activation MyReLU(negative_slope=0.01) has no CUDA expression", {"activation": MyReLU()}),
        ("it does not support the optimizer RMSprop(", {"optimizer": RMSprop()}),
        ("it does not support the optimizer MySGD(", {"optimizer": MySGD(0.1)}),
        ("it does not support the penalty MyPenalty(", {"penalty": MyPenalty()}),
        ("it does not clip gradients", {"clip_norm": 1.0}),
        ("it does not limit the norms of weights", {"max_norm": 1.0}),
        ("it does not average the parameters", {"ema": 0.9}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unsupported_step_is_an_error_with_the_reason(
    reason: str, options: dict[str, Any], blobs: Dataset
) -> None:
    trainer = trainer_on(recorder(), blobs, **options)
    with pytest.raises(ExecutionError) as caught:
        _ = trainer.execution
    assert str(caught.value).startswith(f"execution persistent is not possible: {reason}")


class Overridden(MLP):
    def forward_pass(self, *arguments: Any) -> None:
        super().forward_pass(*arguments)


def reason_for_layers(data: Dataset, *middle: Any, kind: type[MLP] = MLP) -> str | None:
    model = kind([Dense(20, 8, "relu"), *middle, Dense(8, 4)], device=recorder(), seed=1)
    return reason_of(Trainer(model, data, batch_size=32, diagnostics=False))


def test_layers(blobs: Dataset) -> None:
    twice = "it supports one dropout after the inputs and each hidden layer only"
    overridden = "its rules change from batch to batch, or a method of it is overridden"
    assert str(reason_for_layers(blobs, Scaled(8))).startswith("it does not support the layer Scaled(")
    assert reason_for_layers(blobs, Dropout(8), Dropout(8, 0.1)) == twice
    assert reason_for_layers(blobs, Dropout(8)) is None
    assert reason_for_layers(blobs, kind=Overridden) == overridden


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("it does not support the loss MyLoss()", {"loss": MyLoss()}),
        ("it does not store the gradients that a callback reads", {"gradient_wanted": True}),
        ("an array has another dtype or layout than the kernel reads", {"loss": SquaredError()}),
    ],
)
def test_unsupported_attributes_of_a_step(reason: str, change: dict[str, object], blobs: Dataset) -> None:
    trainer = trainer_on(recorder(), blobs)
    for name, value in change.items():
        setattr(trainer._step, name, value)
    assert reason_of(trainer) == reason


@pytest.mark.parametrize("name", ["images", "order"])
def test_arrays_with_gaps(name: str, blobs: Dataset) -> None:
    trainer = trainer_on(recorder(), blobs)
    setattr(trainer.batches, name, getattr(trainer.batches, name)[::2])
    assert reason_of(trainer) == "an array has another dtype or layout than the kernel reads"


def test_parameters_elsewhere(blobs: Dataset) -> None:
    trainer = trainer_on(recorder(), blobs)
    layer = trainer.model.layers[0]
    layer.weight = layer.weight.copy()
    assert reason_of(trainer) == "a layer's parameters are not in the network's buffer"


def capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostDevice, "compute_capability", "75")


def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostDevice, "mem_info", (300 * 32 * 2 - 1, 2**31))


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("nvrtc: error\nline 2")

    monkeypatch.setattr(RecordedKernel, "get_function", fail)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("it needs compute capability 8.0, the device has 7.5", capability),
        ("its copy of the samples takes 0.0 GiB, and 0.0 GiB are free", no_memory),
        ("its kernel cannot be compiled: RuntimeError: nvrtc: error", no_compiler),
    ],
)
def test_devices_that_cannot_run_it(
    reason: str, change: Any, blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(recorder(), blobs)
    change(monkeypatch)
    assert reason_of(trainer) == reason


@pytest.mark.parametrize(("capability", "bulk"), [("80", False), ("89", False), ("90", True), ("120", True)])
def test_bulk_copies_are_for_devices_that_have_them(
    capability: str, bulk: bool, blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostDevice, "compute_capability", capability)
    monkeypatch.setattr(plan, "_SMALL_ROW", 0)  # otherwise, rows of few inputs come without them
    trainer = trainer_on(recorder(), blobs)
    assert reason_of(trainer) is None
    assert trainer.model.backend.persistent._networks[trainer._step].plan.bulk == bulk


def test_a_device_without_cooperative_launches_or_room(blobs: Dataset) -> None:
    assert reason_of(trainer_on(recorder(CooperativeLaunch=0), blobs)) == (
        "the device does not support cooperative launches"
    )
    small = recorder(MaxSharedMemoryPerBlockOptin=4096)
    assert "of shared memory" in str(reason_of(trainer_on(small, blobs, (64,))))
    assert reason_of(trainer_on(recorder(MaxThreadsPerMultiProcessor=0), blobs)) == (
        "its blocks (1) have to be resident at once, and the device has room for 0"
    )
    assert reason_of(trainer_on(recorder(multiprocessors=133), blobs)) == (
        "the device has 132 multiprocessors, not 133"
    )


# -- What the kernel is given -----------------------------------------------------------------------------------


def rows_of(xp: Any, samples: StrictArray) -> np.ndarray:
    count, inputs = samples.shape
    out = xp.zeros((count, 1 if samples.dtype == np.uint8 else 3, -(-inputs // 16) * 16), dtype="uint16")
    bfloat16_rows(xp, samples, out)
    return out._data


@pytest.mark.parametrize("inputs", [1, 16, 20])
def test_samples_in_bfloat16_are_exact(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent, "_ROWS", 7)  # of 30 rows, so that the last chunk is smaller
    xp, rng = HostCupy(), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, inputs), dtype=np.uint8)
    scales = np.exp(rng.uniform(-20, 20, (30, inputs)))
    numbers = (rng.normal(size=(30, inputs)) * scales).astype("float32")
    for samples, planes in ((pixels, 1), (numbers, 3)):
        got = rows_of(xp, xp.asarray(samples))
        assert (got.shape, got.dtype) == ((30, planes, -(-inputs // 16) * 16), np.uint16)
        parts = (got.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        np.testing.assert_array_equal(parts.sum(axis=1)[:, :inputs], samples)
        assert not got[:, :, inputs:].any()
    assert not xp.compiled_reductions


def test_the_structure_of_a_network(blobs: Dataset) -> None:
    trainer = trainer_on(
        recorder(), blobs, (16, 8), dropout=(0.0, 0.25), input_dropout=0.5, class_weight="balanced",
        optimizer=Adam(0.02, beta1=0.8, beta2=0.99), penalty=Penalty(l2=0.5, l1=0.25), seed=2**63 + 5,
        loss=SoftmaxCrossEntropy(label_smoothing=0.125),
    )  # fmt: skip
    step, backend = trainer._step, trainer.model.backend
    with backend.activate():
        backend.run_steps(step, range(2), [0.02, 0.01])
        backend.run_steps(step, range(2, 10), [0.02] * 8)
    assert step.state.steps == 10
    (kernel,) = backend.xp.kernels
    (first,), (second,) = kernel.networks
    arrays = {
        "order": step.order, "targets": step.targets, "sample_weights": step.sample_weights,
        "parameters": step.parameters, "losses": step.losses, "scores": step.scores,
    }  # fmt: skip
    for name, array in arrays.items():
        assert first.struct[name] == second.struct[name] == array.data.ptr, name
    buffers = [step.state.buffers[name].data.ptr for name in ("mean", "mean_square")]
    assert first.struct["buffers"].tolist() == buffers
    samples = rows_of(backend.xp, step.images)
    np.testing.assert_array_equal(values(first.struct["images"], np.uint16, *samples.shape), samples)

    dense = [layer for layer in step.layers if isinstance(layer, Dense)]
    for number, layer in enumerate(dense):
        for name, array in (("weight_offset", layer.weight), ("bias_offset", layer.bias)):
            place = trainer.model.parameters.data._data[first.struct[name][number] :]
            np.testing.assert_array_equal(place[: array.size], array._data.reshape(-1), err_msg=name)
    assert [(each.struct["start"], each.struct["stop"]) for each in (first, second)] == [(0, 64), (64, 300)]
    assert [each.struct["steps_taken"] for each in (first, second)] == [0, 2]
    assert first.struct["seed"] == 2**63 + 5
    expected = {
        "scale": 1 / 255, "beta1": 0.8, "one_minus_beta1": 0.2, "beta2": 0.99, "one_minus_beta2": 0.01,
        "l2": 0.5, "l1": 0.25, "label_smoothing": 0.125, "momentum": 0,
    }  # fmt: skip
    for name, value in expected.items():
        assert first.struct[name] == np.float32(value), name
    assert [type(step.layers[number]) for number in first.struct["dropout_layer"][[0, 2]]] == [Dropout, Dropout]
    assert first.struct["dropout_threshold"].tolist() == [threshold(0.5), 0, threshold(0.25), 0]
    np.testing.assert_array_equal(first.struct["dropout_scale"][[0, 2]], np.float32([2, 1 / 0.75]))
    want = [trainer.optimizer.step_factors(1, 0.02), trainer.optimizer.step_factors(2, 0.01)]
    np.testing.assert_array_equal(first.factors, np.float32(want))


def test_unused_parts_of_a_network_are_null(blobs: Dataset) -> None:
    numbers = Dataset(blobs.images.astype("float32"), np.ones((300, 2), "float32"), task="numbers")
    trainer = trainer_on(recorder(), numbers, loss=PoissonDeviance(), optimizer=SGD(0.1))
    train(trainer)
    ((network,),) = trainer.model.backend.xp.kernels[0].networks
    for name in ("sample_weights", "seed", "momentum", "label_smoothing", "beta1", "l2"):
        assert network.struct[name] == 0, name
    assert network.struct["buffers"].tolist() == [0, 0]
    assert network.struct["scale"] == 1


def test_pairs_of_an_exchange_are_zero_at_the_launch(blobs: Dataset) -> None:
    backend = recorder(multiprocessors=2)
    trainers = [trainer_on(backend, blobs, model_seed=seed) for seed in range(3)]
    with backend.activate():
        backend.run_many([run_of(trainer) for trainer in trainers])
    (kernel,) = backend.xp.kernels
    (networks,) = kernel.networks
    pairs = backend.persistent._networks[trainers[0]._step].plan.exchange_pairs
    assert pairs > 0
    places = [int(network.struct["exchange"]) for network in networks]
    assert np.diff(places).tolist() == [8 * pairs] * 2
    assert kernel.exchanges == [b"\0" * 8 * pairs * 3]


def test_long_runs_are_several_launches(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent, "MOST_STEPS", 4)
    backend = recorder()
    trainers = [trainer_on(backend, blobs, batch_size=size) for size in (30, 30, 30)]
    lengths = (10, 3, 8)
    with backend.activate():
        backend.run_many([run_of(t, range(n)) for t, n in zip(trainers, lengths, strict=True)])
    assert [t._step.state.steps for t in trainers] == list(lengths)
    launches = [
        [(n.struct["steps_taken"], n.struct["stop"]) for n in each] for each in backend.xp.kernels[0].networks
    ]
    assert launches == [[(0, 120), (0, 90), (0, 120)], [(4, 240), (4, 240)], [(8, 300)]]


def test_gradients_that_are_not_stored_are_nan(blobs: Dataset) -> None:
    trainer = trainer_on(recorder(), blobs)
    train(trainer)
    parameters = trainer.model.parameters
    for gradient in parameters.views(parameters.gradient).values():
        assert np.isnan(gradient._data).all()


def test_networks_on_the_same_samples_share_their_copy(blobs: Dataset) -> None:
    backend = recorder()
    trainers = [trainer_on(backend, blobs, model_seed=seed) for seed in range(3)]
    for trainer in trainers[1:]:
        trainer.batches.images = trainers[0].batches.images[:]  # another object, the same memory
    with backend.activate():
        backend.run_many([run_of(trainer) for trainer in trainers])
    (networks,) = backend.xp.kernels[0].networks
    assert len({int(network.struct["images"]) for network in networks}) == 1
    other = trainer_on(backend, blobs)
    with backend.activate():
        backend.run_many([run_of(other)])
    assert len(backend.persistent._rows) == 2
    del trainers, trainer, other
    gc.collect()
    assert len(backend.persistent._rows) == 0


def test_samples_that_are_replaced_are_read(blobs: Dataset) -> None:
    trainer = trainer_on(recorder(), blobs)
    train(trainer)
    trainer.batches.images = trainer.model.backend.asarray(255 - blobs.images)
    train(trainer)
    first, second = (each[0].sample for each in trainer.model.backend.xp.kernels[0].networks)
    assert (first != second).any()
    assert len(trainer.model.backend.persistent._rows) == 1


def test_samples_that_were_changed_in_place_are_read_by_the_next_network(blobs: Dataset) -> None:
    backend = recorder()
    first, second = (trainer_on(backend, blobs, model_seed=seed) for seed in (1, 2))
    second.batches.images = images = first.batches.images
    train(first)
    images[...] = backend.asarray(255 - blobs.images)
    train(second)
    before, after = (each[0].sample for each in backend.xp.kernels[0].networks)
    assert (before != after).any()
    assert len(backend.persistent._rows) == 1


# -- The choice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "graphs", "name"),
    [(256, True, "persistent"), (257, True, "graphs"), (257, False, "persistent")],
)
def test_auto_prefers_graphs_for_large_batches(batch_size: int, graphs: bool, name: str, blobs: Dataset) -> None:
    trainer = trainer_on(recorder("auto", graphs=graphs), blobs, batch_size=batch_size)
    assert trainer.execution.name == name
    assert bool(trainer.model.backend.xp.kernels) == (name == "persistent")
    words = "not graphs: CuPy's products cannot be captured" if not graphs else "float32 as 3 bfloat16 parts"
    if name == "graphs":
        words = "in one launch; not persistent: graphs are as fast for batches above 256"
    assert words in trainer.execution.reason


def test_networks_that_are_trained_together_are_its_own_for_any_batch_size_down_to_the_last(
    blobs: Dataset,
) -> None:
    backend = recorder("auto", graphs=True)
    trainers = [trainer_on(backend, blobs, batch_size=300, model_seed=seed) for seed in range(3)]
    with backend.activate():
        backend.run_many([run_of(trainer) for trainer in trainers[:2]])
        backend.run_many([run_of(trainers[0])])  # the last one left
        assert backend.networks_at_once(trainers[2]._step) > 1
        backend.run_many([run_of(trainers[2])])  # alone from the start
        assert [len(each) for each in backend.xp.kernels[0].networks] == [2, 1, 1]
        train(trainers[0])
    assert {trainer.execution.name for trainer in trainers} == {"persistent"}
    assert len(backend.xp.kernels[0].networks) == 4
    alone = trainer_on(backend, blobs, batch_size=300)
    with backend.activate():
        backend.run_many([run_of(alone)])
    assert alone.execution.name == "graphs"


def test_a_network_among_others_has_fewer_multiprocessors_so_that_more_fit() -> None:
    rng = np.random.default_rng(0)
    digits = Dataset(rng.integers(0, 256, (64, 784), dtype=np.uint8), rng.integers(0, 10, 64), classes=10)
    backend = recorder("auto")
    together = [trainer_on(backend, digits, (128,), model_seed=seed, validation=0.2) for seed in range(2)]
    alone, again = (
        trainer_on(each, digits, (128,), validation=0.2) for each in (backend, recorder(multiprocessors=8))
    )
    with backend.activate():
        backend.run_many([run_of(trainer) for trainer in together])
        assert {backend.networks_at_once(trainer._step) for trainer in together} == {132 // 8}
    assert len(backend.xp.kernels) == 1
    counts = [trainer.execution.multiprocessors for trainer in (*together, alone, again)]
    assert counts == [8, 8, 16, 8]
    plans = [each.model.backend.persistent._plan(each._step) for each in (together[0], again)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("batch", [32, 256])
@pytest.mark.parametrize("sizes", [(784, 128), (784, 16), (64, 32, 32), (30, 100, 50)])
@pytest.mark.parametrize("together", [False, True])
def test_a_resumed_run_is_evaluated_as_before(sizes: tuple[int, ...], batch: int, together: bool) -> None:
    rng, (features, *hidden) = np.random.default_rng(0), sizes
    data = Dataset(rng.integers(0, 256, (300, features), dtype=np.uint8), rng.integers(0, 10, 300), classes=10)

    def plan_of_evaluation(backend: Backend, together: bool = False) -> Any:
        trainer = trainer_on(backend, data, tuple(hidden), optimizer=Adam(), batch_size=batch, validation=0.1)
        with backend.activate():
            _ = backend.networks_at_once(trainer._step) if together else None
        assert trainer.execution.name == "persistent"
        return trainer.execution.multiprocessors, backend.persistent._plan(trainer._evaluation)

    count, plan = plan_of_evaluation(recorder(), together)
    assert plan.replicas == 1
    assert plan_of_evaluation(recorder(multiprocessors=count)) == (count, plan)


@pytest.mark.parametrize("execution", ["eager", "graphs"])
def test_another_execution_that_is_asked_for_is_taken_for_many_too(execution: str, blobs: Dataset) -> None:
    backend = recorder(execution, graphs=True)
    trainers = [trainer_on(backend, blobs, model_seed=seed) for seed in range(2)]
    with backend.activate():
        assert backend.networks_at_once(trainers[0]._step) == 1
        backend.run_many([run_of(trainer) for trainer in trainers])
    assert not backend.xp.kernels
    assert {trainer.execution.name for trainer in trainers} == {execution}


def test_networks_for_which_there_is_room_once_only_are_trained_as_each_alone(blobs: Dataset) -> None:
    room = {"multiprocessors": 2, "MultiProcessorCount": 3, "MaxThreadsPerMultiProcessor": 256}
    backend = recorder("auto", graphs=True, **room)
    trainers = [trainer_on(backend, blobs, batch_size=300, model_seed=seed) for seed in range(2)]
    with backend.activate():
        assert backend.networks_at_once(trainers[0]._step) == 1
        backend.run_many([run_of(trainer) for trainer in trainers])
        assert backend.networks_at_once(trainers[0]._step) == 1
    assert {trainer.execution.name for trainer in trainers} == {"graphs"}
    assert not any(kernel.networks for kernel in backend.xp.kernels)


def test_networks_that_it_does_not_support_are_trained_beside_those_that_it_does(blobs: Dataset) -> None:
    backend = recorder("auto")
    rules = (SGD(0.1), RMSprop(), SGD(0.1))
    trainers = [trainer_on(backend, blobs, optimizer=rule) for rule in rules]
    before = trainers[1].model.state_dict()
    with backend.activate():
        assert [backend.networks_at_once(trainer._step) for trainer in trainers][1] == 1
        backend.run_many([run_of(trainer) for trainer in trainers])
    assert len(backend.xp.kernels[0].networks[0]) == 2
    assert [trainer.optimizer_state.steps for trainer in trainers] == [10] * 3
    assert (trainers[1].model.state_dict()["layers.0.weight"] != before["layers.0.weight"]).any()
    assert trainers[1].execution.name == "eager"
    assert "not persistent: it does not support the optimizer RMSprop" in trainers[1].execution.reason


def test_networks_of_one_plan_share_a_launch_and_others_do_not(blobs: Dataset) -> None:
    backend = recorder()
    same = [
        {"optimizer": SGD(0.1, momentum=0.9), "seed": 1},
        {"optimizer": SGD(0.2, momentum=0.5), "seed": 2, "penalty": Penalty(l2=0.1)},
    ]
    others = [{"optimizer": SGD(0.1)}, {"activation": "tanh"}, {"hidden": (17,)}, {"dropout": 0.5}]
    momentum = {"optimizer": SGD(0.1, momentum=0.9)}
    trainers = [trainer_on(backend, blobs, **options) for options in (*same, *({**momentum, **o} for o in others))]
    with backend.activate():
        backend.run_many([run_of(trainer) for trainer in trainers])
    assert sorted(len(each) for kernel in backend.xp.kernels for each in kernel.networks) == [1, 1, 1, 1, 2]


def test_more_networks_than_fit_are_several_launches(blobs: Dataset) -> None:
    backend = recorder(multiprocessors=2, MultiProcessorCount=5, MaxThreadsPerMultiProcessor=256)
    trainers = [trainer_on(backend, blobs, model_seed=seed) for seed in range(5)]
    with backend.activate():
        at_once = backend.networks_at_once(trainers[0]._step)
        backend.run_many([run_of(trainer) for trainer in trainers])
    (kernel,) = backend.xp.kernels
    assert at_once == 2
    assert [len(each) for each in kernel.networks] == [2, 2, 1]
    assert kernel.grids == [(1, 4), (1, 4), (1, 2)]


def test_the_number_of_multiprocessors_is_recorded_and_gives_the_same_plan_again(blobs: Dataset) -> None:
    for hidden in ((16,), (100,), (30, 50), (40, 40, 40)):
        for asked in (None, 2, 3, 4):
            trainer = trainer_on(recorder(multiprocessors=asked), blobs, hidden)
            count = trainer.execution.multiprocessors
            again = trainer_on(recorder(multiprocessors=count), blobs, hidden)
            plans = [t.model.backend.persistent._plan(t._step) for t in (trainer, again)]
            assert plans[0] == plans[1]
            assert count == plans[0].multiprocessors <= (asked or 132)
    assert trainer_on(recorder("eager"), blobs).execution.multiprocessors is None


def test_high_precision_is_two_parts(blobs: Dataset) -> None:
    for precision, parts in (("highest", 3), ("high", 2)):
        backend = host_cuda_backend(cupy=Recording(), execution="persistent", matmul_precision=precision)
        backend.xp.attributes |= H100
        assert f"float32 as {parts} bfloat16 parts" in trainer_on(backend, blobs).execution.reason
