"""The persistent kernel, on the processor: it trains as the reference does, and repeats itself bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gpumlp import SGD, Dataset, DivergenceError, Penalty
from gpumlp.backends import persistent
from gpumlp.nn.activations import ACTIVATIONS
from gpumlp.training.callbacks import Callback
from tests.persistent_helpers import (
    arrays,
    bits,
    change_kernel,
    close,
    host_backend,
    ran,
    trainer_on,
)
from tests.strict_device import StrictBackend

OPTIMIZERS = [SGD(0.1), SGD(0.05, momentum=0.9), SGD(0.05, momentum=0.9, nesterov=True)]
TOLERANCES = {"float32": 2e-5, "float64": 1e-12}
ORDERS = (1, 2, 3, 4)  # random ones
MOMENTUM = {"optimizer": SGD(0.1, momentum=0.9), "penalty": Penalty(l2=1e-3)}


def samples(features: int, classes: int, dtype: str = "uint8", count: int = 60) -> Dataset:
    """Noise, which a network takes long to learn, so that gradients stay large."""
    rng = np.random.default_rng(features)
    images = rng.integers(0, 256, (count, features), dtype=np.uint8)
    if dtype != "uint8":
        images = rng.normal(size=(count, features)).astype(dtype)
    return Dataset(images, np.r_[np.arange(classes), rng.integers(0, classes, count - classes)], classes=classes)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("activation", ACTIVATIONS)
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
    assert ran(trainers[0]), trainers[0].how_steps_ran
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
    close(*trainers, 1e-12)


@pytest.mark.parametrize("images", ["uint8", "float64"])
@pytest.mark.parametrize(
    ("features", "hidden", "classes", "batch_size", "attributes"),
    [
        (13, 18, 3, 7, {}),  # rows that are not made of 16 bytes; an odd batch
        (16, 1, 2, 1, {}),  # less than a block, one sample
        (33, 24, 5, "full", {}),  # one step an epoch, as many blocks as there may be
        (48, 30, 64, 33, {"MultiProcessorCount": 2}),  # 16 units in one block, 14 in the other
        (150, 5, 10, 60, {"MaxSharedMemoryPerBlockOptin": 100_000}),  # more inputs than a warp takes at a time
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
    assert ran(trainers[0]), trainers[0].how_steps_ran
    close(*trainers, 1e-12)


@pytest.mark.parametrize("buffers", [1, 2])
def test_bits_do_not_depend_on_the_order_of_threads(buffers: int) -> None:
    results = []
    for order in (0, *ORDERS):
        # 64 KiB has room for the rows of one batch of 32, but not of two.
        backend = host_backend(order, MaxSharedMemoryPerBlockOptin=64 * 1024 if buffers == 1 else 227 * 1024)
        trainer = trainer_on(backend, samples(784, 10), batch_size=32, **MOMENTUM)
        trainer.run(2)
        assert [sizes.buffers for sizes in backend.persistent._kernels] == [buffers]
        results.append(bits(trainer))
    assert all(one == other for one, other in pairwise(results))


class Listener(Callback):
    """Somebody who listens, so that an epoch is run in many parts."""


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
            trainer.model.backend.run_steps(trainer._step, trainer.batches.slices[start:stop])
    assert bits(by_hand) == bits(whole)


def test_a_training_goes_on_with_the_same_bits(blobs: Dataset) -> None:
    whole, before, after = (trainer_on(host_backend(), blobs, **MOMENTUM) for _ in range(3))
    whole.run(4)
    before.run(2)
    after.model.load_state_dict(before.model.state_dict())
    buffers = {name: array._data for name, array in before.optimizer_state.buffers.items()}
    after.restore(buffers, before.optimizer_state.steps, before.random_state(), before.history)
    after.run(4)
    assert bits(after) == bits(whole)


# -- The double finds what would be a race on a GPU -------------------------------------------------


def end(order: int) -> dict[str, bytes] | None:
    """What a kernel that may be wrong comes to; None if it reads so much nonsense that the training diverges."""
    trainer = trainer_on(host_backend(order), samples(20, 4), **MOMENTUM)
    try:
        trainer.run(2)
    except DivergenceError:
        return None
    assert ran(trainer), trainer.how_steps_ran
    return bits(trainer)


def differs(order: int) -> bool:
    """Does a kernel end otherwise than with its threads in order?"""
    return end(order) != end(0)


STEP = "        __syncthreads();\n"  # the barriers of a step


@pytest.mark.parametrize("occurrence", range(5))
def test_a_missing_barrier_of_a_block_is_found(occurrence: int, monkeypatch: pytest.MonkeyPatch) -> None:
    change_kernel(monkeypatch, STEP, "", occurrence)
    assert any(differs(order) for order in ORDERS)


def test_a_missing_barrier_of_the_grid_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    change_kernel(monkeypatch, "wait(arrived, (step + 1) * BLOCKS);", "__syncthreads();")
    assert any(differs(order) for order in ORDERS)


def test_one_place_for_the_parts_of_the_logits_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    change_kernel(monkeypatch, "(int64)(step % 2)", "(int64)(step % 1)")
    assert any(differs(order) for order in ORDERS)


# -- What it is not for, and what goes wrong ---------------------------------------------------------


def test_a_loss_that_is_not_a_number_ends_the_training_as_elsewhere(blobs: Dataset) -> None:
    messages = []
    for choice in ("on", "off"):
        trainer = trainer_on(host_backend(choice=choice), blobs, optimizer=SGD(1e30), batch_size=32)
        start = arrays(trainer)["parameters"]
        with pytest.raises(DivergenceError) as caught:
            trainer.run(3)
        messages.append(str(caught.value))
        np.testing.assert_array_equal(arrays(trainer)["parameters"], start)
    assert messages[0] == messages[1]


def test_a_gradient_that_was_not_made_is_not_a_number(blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    trainer.run(1)
    parameters = trainer.model.parameters
    for gradient in parameters.views(parameters.gradient).values():
        assert np.isnan(gradient._data).all()
    trainer.keep_gradients()
    trainer.run(2)
    assert "somebody looks at the gradients" in trainer.how_steps_ran
    assert np.isfinite(parameters.data._data).all()  # the padding between tensors, too
    for gradient in parameters.views(parameters.gradient).values():
        assert np.isfinite(gradient._data).all()


def test_a_kernel_that_cannot_be_launched_is_done_without(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    change_kernel(monkeypatch, "#define WARPS (THREADS / 32)", "#error no compiler likes this\n")
    with_it, without = trainer_on(host_backend(), blobs), trainer_on(host_backend(choice="off"), blobs)
    for trainer in (with_it, without):
        trainer.run(2)
    assert with_it.how_steps_ran.startswith("one by one: cuda_graphs is off; the persistent kernel failed: Called")
    assert without.how_steps_ran == "one by one: cuda_graphs is off"
    assert bits(with_it) == bits(without)


@pytest.mark.parametrize("function", ["empty", "zeros"])
def test_without_memory_for_it_the_training_goes_on(
    function: str, blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_it, without = trainer_on(host_backend(), blobs), trainer_on(host_backend(choice="off"), blobs)

    def out_of_memory(*arguments: object, **keywords: object) -> None:
        raise MemoryError("Out of memory allocating 512 bytes")

    monkeypatch.setattr(with_it.model.backend.xp, function, out_of_memory, raising=False)
    for trainer in (with_it, without):
        trainer.run(2)
    assert with_it.how_steps_ran.endswith(
        "; the persistent kernel failed: MemoryError: Out of memory allocating 512 bytes"
    )
    assert bits(with_it) == bits(without)


# -- What CuPy makes of how the kernel is compiled and launched -------------------------------------------


def test_only_the_launch_is_cooperative(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_on(host_backend(), blobs)
    xp, asked = trainer.model.backend.xp, []
    compile_module = xp.RawModule
    monkeypatch.setattr(
        xp, "RawModule", lambda **options: asked.append(options) or compile_module(**options), raising=False
    )
    trainer.run(1)
    assert ran(trainer), trainer.how_steps_ran
    (options,) = (options for options in asked if "-DUNITS=4" in options["options"])
    assert set(options) == {"code", "options"}


def test_the_double_refuses_what_cupy_or_a_gpu_would(blobs: Dataset) -> None:
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
