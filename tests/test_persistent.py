"""The persistent kernel on the CPU agrees with the reference and is reproducible bit for bit.

Also the steps that it supports, the reasons for others, and the compilation of its source.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    Dataset,
    DivergenceError,
    LeakyReLU,
    Loss,
    Penalty,
    ReLU,
    SoftmaxCrossEntropy,
    SquaredError,
    Trainer,
    get_backend,
)
from gpumlp.backends import Backend, CudaActivation, ExecutionError
from gpumlp.backends.cuda import persistent
from gpumlp.backends.cuda.kernels import kernel_source
from gpumlp.backends.cuda.persistent import SOURCES, PersistentRunner, Sizes
from gpumlp.nn.activations import ACTIVATIONS
from gpumlp.training.callbacks import Callback
from gpumlp.training.step import TrainingStep
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend
from tests.host_kernels import body_of
from tests.strict_device import StrictArray, StrictBackend

FROM_OUTPUT = [name for name in ACTIVATIONS if ACTIVATIONS[name].derivative_from == "output"]
THREADS = 64  # of a block; fewer than on a GPU, because they run in turns
MNIST = Sizes(
    inputs=784, hidden=128, classes=10, batch=32, units=4, buffers=2, itemsize=4, pixels=True
)  # the MNIST network
OPTIMIZERS = [SGD(0.1), SGD(0.05, momentum=0.9), SGD(0.05, momentum=0.9, nesterov=True)]
# After some steps: NumPy's tanh for AVX-512 differs from the C library's in the last digits.
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}
ORDERS = (1, 2, 3, 4)  # random orders
MOMENTUM = {"optimizer": SGD(0.1, momentum=0.9), "penalty": Penalty(l2=1e-3)}


def host_backend(order: int = 0, execution: str = "auto", **attributes: int) -> Backend:
    """The persistent kernel on the CPU.

    Args:
        order: of the threads of all blocks, see ``HostCupy.thread_order``.
        execution: as for `get_backend`.
        attributes: of the device, in addition to the fake's.
    """
    backend = host_cuda_backend(execution=execution)
    backend.persistent._threads = THREADS
    backend.xp.thread_order = order
    backend.xp.attributes |= {"CooperativeLaunch": 1} | attributes
    return backend


def trainer_on(
    backend: Backend,
    data: Dataset,
    hidden: tuple[int, ...] = (18,),
    activation: str = "relu",
    dtype: str = "float32",
    loss: str = "softmax_cross_entropy",
    **options: object,
) -> Trainer:
    sizes = [data.features, *hidden, data.classes]
    model = MLP(sizes, activation=activation, seed=1, device=backend, dtype=dtype, loss=loss)
    return Trainer(model, data, **{"batch_size": 16, "diagnostics": False} | options)


def ran(trainer: Trainer) -> bool:
    """Whether the steps were run by the kernel."""
    return trainer.execution.name == "persistent"


def arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    """Parameters, buffers and records after training."""
    to_numpy, step = trainer.model.backend.to_numpy, trainer._step
    buffers = {name: to_numpy(buffer) for name, buffer in trainer.optimizer_state.buffers.items()}
    results = {"losses": to_numpy(step.losses), "scores": to_numpy(step.scores)}
    return {"parameters": to_numpy(trainer.model.parameters.data)} | buffers | results


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays(trainer).items()}


def close(got: Trainer, want: Trainer, tolerance: float) -> None:
    """Assert that both results agree up to rounding."""
    for name, array in arrays(want).items():
        np.testing.assert_allclose(arrays(got)[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
    for name in ("train_loss", "train_accuracy"):
        np.testing.assert_allclose(got.history[name], want.history[name], rtol=tolerance, atol=tolerance)
    assert got.optimizer_state.steps == want.optimizer_state.steps


def change_kernel(monkeypatch: pytest.MonkeyPatch, before: str, after: str, occurrence: int = 0) -> None:
    """Run a kernel with a changed source."""

    def changed_source(*names: str, activation: CudaActivation | None = None) -> str:
        parts = kernel_source(*names, activation=activation).split(before)
        assert len(parts) > occurrence + 1, f"{before} is not in the kernel so often"
        return before.join(parts[: occurrence + 1]) + after + before.join(parts[occurrence + 1 :])

    monkeypatch.setattr(persistent, "kernel_source", changed_source)


def samples(features: int, classes: int, dtype: str = "uint8", count: int = 60) -> Dataset:
    """Random samples, which are learned slowly, so that gradients stay large."""
    rng = np.random.default_rng(features)
    images = rng.integers(0, 256, (count, features), dtype=np.uint8)
    if dtype != "uint8":
        images = rng.normal(size=(count, features)).astype(dtype)
    return Dataset(images, np.r_[np.arange(classes), rng.integers(0, classes, count - classes)], classes=classes)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("activation", FROM_OUTPUT)
def test_many_steps_are_those_of_the_reference(activation: str, optimizer: SGD, dtype: str) -> None:
    # 60 = 3 x 16 + 12 samples, 18 = 4 x 4 + 2 hidden units: the last batch and the last block are smaller.
    trainers = [
        trainer_on(
            backend, samples(20, 4), activation=activation, dtype=dtype, optimizer=optimizer,
            penalty=Penalty(l2=1e-3, l1=1e-4),
        )
        for backend in (host_backend(), StrictBackend())
    ]  # fmt: skip
    for trainer in trainers:
        trainer.run(5)
    assert ran(trainers[0])
    close(*trainers, TOLERANCES[dtype])


@pytest.mark.parametrize("penalty", [Penalty(), Penalty(l2=0.01), Penalty(l1=0.001)])
def test_penalties(penalty: Penalty) -> None:
    trainers = [
        trainer_on(backend, samples(20, 4), dtype="float64", penalty=penalty, optimizer=SGD(0.1))
        for backend in (host_backend(), StrictBackend())
    ]
    for trainer in trainers:
        trainer.run(3)
    assert ran(trainers[0])
    close(*trainers, TOLERANCES["float64"])


@pytest.mark.parametrize("images", ["uint8", "float64"])
@pytest.mark.parametrize(
    ("features", "hidden", "classes", "batch_size", "attributes"),
    [
        (13, 18, 3, 7, {}),  # rows that are not a multiple of 16 bytes; an odd batch
        (16, 1, 2, 1, {}),  # fewer units than a block, one sample
        (33, 24, 5, "full", {}),  # one step per epoch, the maximum number of blocks
        (48, 30, 64, 33, {"MultiProcessorCount": 2}),  # 16 units in one block, 14 in the other
        (150, 5, 10, 60, {"MaxSharedMemoryPerBlockOptin": 100_000}),  # more inputs than a warp reads at a time
    ],
)
def test_shapes(
    features: int, hidden: int, classes: int, batch_size: object, attributes: dict[str, int], images: str
) -> None:
    data = samples(features, classes, images, count=70)
    trainers = [
        trainer_on(backend, data, (hidden,), "tanh", "float64", batch_size=batch_size, **MOMENTUM)
        for backend in (host_backend(**attributes), StrictBackend())
    ]
    for trainer in trainers:
        trainer.run(3)
    assert ran(trainers[0])
    close(*trainers, TOLERANCES["float64"])


@pytest.mark.parametrize("buffers", [1, 2])
def test_bits_do_not_depend_on_the_order_of_threads(buffers: int) -> None:
    results = []
    for order in (0, *ORDERS):
        # 64 KiB hold the rows of one batch of 32, but not of two.
        backend = host_backend(order, MaxSharedMemoryPerBlockOptin=64 * 1024 if buffers == 1 else 227 * 1024)
        trainer = trainer_on(backend, samples(784, 10), batch_size=32, **MOMENTUM)
        trainer.run(2)
        assert [sizes.buffers for sizes, _ in backend.persistent._kernels] == [buffers]
        results.append(bits(trainer))
    assert all(one == other for one, other in pairwise(results))


class Listener(Callback):
    """A callback for progress, so that an epoch is run in many parts."""


def test_bits_do_not_depend_on_how_an_epoch_is_split(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, in_parts, short, by_hand = (trainer_on(host_backend(), blobs, **MOMENTUM) for _ in range(4))
    for trainer in (whole, by_hand):
        trainer.run(2)
    launches = whole.model.backend.xp.launches
    assert launches.count("train_steps") == 2
    assert "matmul" not in launches
    in_parts.model.backend.steps_at_a_time = 1
    in_parts.run(2, [Listener()])
    assert in_parts.model.backend.xp.launches.count("train_steps") == 2 * 19  # an epoch has 19 batches
    monkeypatch.setattr(persistent, "MOST_STEPS", 7)
    short.run(2)
    assert short.model.backend.xp.launches.count("train_steps") == 2 * 3
    for trainer in (in_parts, short):
        assert bits(trainer) == bits(whole)
        assert trainer.history["train_loss"] == whole.history["train_loss"]
    for trainer, cuts in ((whole, (0, 19)), (by_hand, (0, 1, 12, 18, 19))):
        for start, stop in pairwise(cuts):
            trainer.model.backend.run_steps(trainer._step, range(start, stop), [0.1] * (stop - start))
    assert bits(by_hand) == bits(whole)


def test_a_restored_run_goes_on_with_the_same_bits(blobs: Dataset) -> None:
    whole, before, after = (trainer_on(host_backend(), blobs, **MOMENTUM) for _ in range(3))
    whole.run(4)
    before.run(2)
    after.model.load_state_dict(before.model.state_dict())
    buffers = {name: array._data for name, array in before.optimizer_state.buffers.items()}
    after.restore(buffers, before.optimizer_state.steps, before.random_state(), before.history)
    after.run(4)
    assert bits(after) == bits(whole)


# -- The fake finds race conditions ---------------------------------------------------------------


def end(order: int) -> dict[str, bytes] | None:
    """The result of a changed kernel; None if training diverges."""
    trainer = trainer_on(host_backend(order), samples(20, 4), **MOMENTUM)
    try:
        trainer.run(2)
    except DivergenceError:
        return None
    assert ran(trainer)
    return bits(trainer)


def differs(order: int) -> bool:
    """Whether the result differs from that with threads in order."""
    return end(order) != end(0)


STEP = "        __syncthreads();\n"  # the barriers of a step


@pytest.mark.parametrize("occurrence", range(5))
def test_a_missing_barrier_of_a_block_is_found(occurrence: int, monkeypatch: pytest.MonkeyPatch) -> None:
    change_kernel(monkeypatch, STEP, "", occurrence)
    assert any(differs(order) for order in ORDERS)


def test_a_missing_barrier_of_the_grid_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    change_kernel(monkeypatch, "wait(arrived, (step + 1) * BLOCKS);", "__syncthreads();")
    assert any(differs(order) for order in ORDERS)


def test_a_single_buffer_of_partial_logits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    change_kernel(monkeypatch, "(int64)(step % 2)", "(int64)(step % 1)")
    assert any(differs(order) for order in ORDERS)


# -- Supported steps -----------------------------------------------------------------------------------


class MyReLU(LeakyReLU):
    """A subclass with another function."""

    name = "my_relu"

    def forward(self, xp: object, s: object, out: object) -> None:
        xp.multiply(s, 3, out=out)

    def backward(self, xp: object, a: object, delta: object) -> None:
        xp.multiply(delta, 3, out=delta)


class MyPenalty(Penalty):
    """A subclass with another rule."""

    def add_gradient(self, backend: object, weights: object, gradient: object, scratch: object) -> None:
        pass


class Changing(TrainingStep):
    """A step whose rules change from batch to batch, as the estimators' penalty does."""

    same_rules = False


class Weighted(TrainingStep):
    """A step with sample weights, as in the estimators."""

    sample_weights = property(lambda self: self.losses)


class Other:
    """A layer that is not dense."""

    def __repr__(self) -> str:
        return "Other()"


class Layered(TrainingStep):
    """A step of a network with another layer."""

    same_rules = True
    layers = property(lambda self: [*self.model.layers, Other()])


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("it supports networks with one hidden layer only, this one has 2", {"hidden": (8, 8)}),
        ("it supports networks with one hidden layer only, this one has 0", {"hidden": ()}),
        ("it supports the optimizer SGD only, not Adam(", {"optimizer": Adam()}),
        ("the activation MyReLU(negative_slope=0.01) has no CUDA expression", {"activation": MyReLU()}),
        ("it does not keep the pre-activation, for GELU()", {"activation": "gelu"}),
        ("it does not support the penalty MyPenalty", {"penalty": MyPenalty()}),
        ("a block would need 22 KiB of shared memory, for its weights and the rows", {"batch_size": 256}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unsupported_step_uses_the_next_execution_or_is_an_error(
    reason: str, options: dict[str, object], blobs: Dataset
) -> None:
    auto, eager, named = (
        trainer_on(host_backend(execution=way, MaxSharedMemoryPerBlockOptin=7 * 1024), blobs, **options)
        for way in ("auto", "eager", "persistent")
    )
    for trainer in (auto, eager):
        trainer.run(1)
    assert not ran(auto)
    assert "train_steps" not in auto.model.backend.xp.launches
    assert auto.execution.reason.startswith(f"not persistent: {reason}"), auto.execution.reason
    assert bits(auto) == bits(eager)
    with pytest.raises(ExecutionError, match="execution persistent is not possible: ") as caught:
        named.run(1)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("it does not support the loss SquaredError()", {"loss": SquaredError()}),
        ("its rules change from batch to batch, or a method of it is overridden", {"__class__": Changing}),
        ("it does not support sample weights", {"__class__": Weighted}),
        ("it does not clip gradients", {"clip_norm": 1.0}),
        ("it does not limit the norms of weights", {"max_norm": 1.0}),
        ("it does not average the parameters", {"average": True}),
        ("it does not support the layer Other()", {"__class__": Layered}),
        ("it does not store the gradients that a callback reads", {"gradient_wanted": True}),
    ],
)
def test_unsupported_attributes_of_a_step(reason: str, change: dict[str, object], blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    assert ran(trainer)
    for name, value in change.items():
        setattr(trainer._step, name, value)
    assert trainer.model.backend.persistent.unsupported_reason(trainer._step) == reason


def test_many_classes(blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), Dataset(blobs.images, blobs.labels, classes=65))
    assert "it supports 64 classes at most, not 65" in trainer.execution.reason


@pytest.mark.parametrize(("name", "gap"), [("images", slice(None, None, 2)), ("order", slice(None, None, 2))])
def test_arrays_with_gaps(name: str, gap: slice, blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    array = getattr(trainer.batches, name)
    setattr(trainer.batches, name, array[gap])
    assert "an array is not C-contiguous" in trainer.execution.reason


def test_rows_without_alignment(blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    images = np.zeros(300 * 20 + 1, np.uint8)[1:].reshape(300, 20)
    trainer.batches.images = StrictArray(images, trainer.model.backend.xp)
    assert "the samples are not aligned to 16 bytes" in trainer.execution.reason


@pytest.mark.parametrize("told", [True, False])
def test_a_device_without_cooperative_launches(told: bool, blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(CooperativeLaunch=0), blobs)
    if not told:  # as in a CuPy without this attribute
        del trainer.model.backend.xp.attributes["CooperativeLaunch"]
    assert "the device does not support cooperative launches" in trainer.execution.reason


def test_the_threads_of_a_block_follow_the_batch(blobs: Dataset) -> None:
    for batch_size, threads in ((32, 256), (63, 256), (64, 512), (300, 512)):
        backend = host_backend()
        backend.persistent._threads = None
        trainer = trainer_on(backend, blobs, batch_size=batch_size)
        assert str(trainer.execution).startswith(f"persistent: 5 blocks of {threads} threads, 4 hidden units")


def test_a_learning_rate_for_every_step(blobs: Dataset) -> None:
    kernel, eager = (trainer_on(host_backend(execution=way), blobs, **MOMENTUM) for way in ("auto", "eager"))
    rates = np.linspace(0.001, 0.2, len(kernel.batches.slices)).tolist()
    for trainer in (kernel, eager):
        trainer.model.backend.run_steps(trainer._step, range(len(rates)), rates)
    close(kernel, eager, 2e-5)


def test_all_blocks_are_resident() -> None:
    hidden = {Sizes(20, hidden, 4, 8, units, 2, 4, True).blocks for hidden, units in ((24, 4), (25, 8), (48, 8))}
    assert hidden == {6, 4}


def test_a_loss_of_the_users_that_states_the_kernel_needs_no_label_smoothing(blobs: Dataset) -> None:
    class Own(Loss):
        name, kernel, output, task, least_outputs = "own", "softmax_cross_entropy", "softmax", "classes", 2

        def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, scores: Any) -> None:
            SoftmaxCrossEntropy().output_error(backend, outputs, targets, losses, scores)

        def predictions(self, outputs: Any) -> Any:
            return SoftmaxCrossEntropy().predictions(outputs)

    for backend in (host_backend(), get_backend("cpu")):
        found, expected = (trainer_on(backend, blobs, loss=loss) for loss in (Own(), SoftmaxCrossEntropy()))
        assert found.execution.name == expected.execution.name
        assert found.run(1)["train_loss"] == expected.run(1)["train_loss"]


def test_a_nan_loss_ends_training(blobs: Dataset) -> None:
    messages = []
    for way in ("auto", "eager"):
        trainer = trainer_on(host_backend(execution=way), blobs, optimizer=SGD(1e30), batch_size=32)
        start = arrays(trainer)["parameters"]
        with pytest.raises(DivergenceError) as caught:
            trainer.run(3)
        messages.append(str(caught.value))
        np.testing.assert_array_equal(arrays(trainer)["parameters"], start)
    assert messages[0] == messages[1]


def test_gradients_that_are_not_stored_are_nan(blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    trainer.run(1)
    parameters = trainer.model.parameters
    for gradient in parameters.views(parameters.gradient).values():
        assert np.isnan(gradient._data).all()
    trainer.keep_gradients()
    trainer.run(2)
    assert "it does not store the gradients that a callback reads" in trainer.execution.reason
    assert np.isfinite(parameters.data._data).all()  # the padding between tensors, too
    for gradient in parameters.views(parameters.gradient).values():
        assert np.isfinite(gradient._data).all()


# -- Compilation and launch by CuPy -----------------------------------------------------------------------


def test_only_the_launch_is_cooperative(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_on(host_backend(), blobs)
    xp, asked = trainer.model.backend.xp, []
    compile_module = xp.RawModule
    monkeypatch.setattr(
        xp, "RawModule", lambda **options: asked.append(options) or compile_module(**options), raising=False
    )
    trainer.run(1)
    assert ran(trainer)
    (options,) = (options for options in asked if "-DUNITS=4" in options["options"])
    assert set(options) == {"code", "options"}


def test_the_fake_refuses_the_same_as_cupy_or_a_gpu(blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    trainer.run(1)
    (kernel,) = trainer.model.backend.persistent._kernels.values()
    with pytest.raises(AssertionError, match="blocks wait for others"):
        kernel((1, 5), (64,), ())
    with pytest.raises(AssertionError, match="blocks wait for others"):
        kernel.kernel((1, 5), (64,), ())
    with pytest.raises(TypeError, match="multiple values for keyword"):
        kernel((1, 5), (64,), (), enable_cooperative_groups=True)
    with pytest.raises(ValueError, match="exceeds the limit"):
        kernel.kernel((1, 7), (64,), (), enable_cooperative_groups=True)
    with pytest.raises(AttributeError):
        kernel.kernel.max_dynamic_shared_size_bytes = 2**16
    with pytest.raises(RuntimeError, match="cudadevrt"):
        trainer.model.backend.xp.RawModule(code="", options=(), enable_cooperative_groups=True)


# -- The source -------------------------------------------------------------------------------------------


def test_the_source_contains_the_fences() -> None:
    # Fences have no effect on the CPU, so no other test detects a missing one; this test checks the source. That
    # blocks read the current partial logits can be tested only on a GPU.
    source = kernel_source(*SOURCES, activation=ReLU.cuda)
    assert re.search(r"__threadfence\(\);\s*atomicAdd\(arrived", body_of(source, "arrive"))
    assert re.search(r"while \(.*arrived < expected\)[^}]*__threadfence\(\);", body_of(source, "wait"))
    taken = body_of(source, "sum_partial_logits")
    assert "__ldcg(parts + " in taken
    assert len(re.findall(r"\bparts\b", taken)) == 2  # the parameter and one use


# -- The compiler --------------------------------------------------------------------------------------

COMPILED = [
    MNIST,
    MNIST._replace(batch=64),
    MNIST._replace(batch=128, buffers=1),
    MNIST._replace(batch=16, pixels=False),
    Sizes(inputs=13, hidden=9, classes=3, batch=5, units=8, buffers=2, itemsize=4, pixels=True),
]


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [("sm_80", COMPILED[0]), ("sm_80", COMPILED[2]), *(("sm_90", sizes) for sizes in COMPILED)],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
@pytest.mark.parametrize("real", ["float", "double"])
def test_the_source_compiles_and_spills_no_register(
    tmp_path: Path, architecture: str, real: str, sizes: Sizes
) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed: the CUDA source cannot be compiled")
    sizes = sizes._replace(itemsize=4 if real == "float" else 8)
    source = tmp_path / "persistent.cu"
    source.write_text(kernel_source(*SOURCES, activation=ReLU.cuda))
    command = [compiler, "-cubin", f"-arch={architecture}", "-Werror", "all-warnings", "--resource-usage"]
    threads = PersistentRunner(None).threads(sizes.batch)
    command += [*sizes.options(real, threads), "-o", str(tmp_path / "persistent.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert registers <= 65536 // threads


# -- A GPU ---------------------------------------------------------------------------------------------


SMALL = {"dtype": "float32", "hidden": 128, "batch_size": 32}  # with MNIST's inputs: runs on every GPU


def ran_or_skip(trainer: Trainer, setting: dict[str, object]) -> None:
    """Skip if the GPU has too little shared memory, except for the small setting."""
    if "of shared memory" in trainer.execution.reason and not ran(trainer) and setting != SMALL:
        pytest.skip(trainer.execution.reason)
    assert ran(trainer), trainer.execution


def test_the_small_setting_has_room_in_64_kib() -> None:
    assert MNIST._replace(buffers=1).shared_bytes <= 64 * 1024
    assert {"hidden": MNIST.hidden, "batch_size": MNIST.batch, "dtype": "float32"} == SMALL


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [128, 600])
@pytest.mark.parametrize("batch_size", [32, 75, 1])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_on_a_gpu_it_agrees_with_eager_training_and_is_reproducible(
    activation: str, batch_size: int, hidden: int, dtype: str
) -> None:
    rng = np.random.default_rng(4)
    data = Dataset(rng.integers(0, 256, (300, 784), dtype=np.uint8), rng.integers(0, 10, 300), classes=10)
    trainers = []
    for way in ("auto", "auto", "eager"):
        backend = gpu_backend(execution=way)
        model = MLP([784, hidden, 10], activation=activation, seed=1, device=backend, dtype=dtype)
        optimizer = SGD(0.003, momentum=0.9, nesterov=True)
        trainers.append(
            Trainer(model, data, optimizer=optimizer, penalty=Penalty(l2=1e-3, l1=1e-5), batch_size=batch_size)
        )
        trainers[-1].run(3)
    ran_or_skip(trainers[0], {"dtype": dtype, "hidden": hidden, "batch_size": batch_size})
    assert bits(trainers[0]) == bits(trainers[1])
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    for name, array in trainers[2].model.state_dict().items():
        np.testing.assert_allclose(trainers[0].model.state_dict()[name], array, rtol=tolerance, atol=tolerance)
