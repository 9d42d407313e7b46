"""Which trainings the persistent kernel takes, what it says of the others, and what the compiler makes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, LeakyReLU, Penalty, SquaredError, Trainer
from gpumlp.backends.cuda_kernels import kernel_source
from gpumlp.backends.persistent import SOURCES, THREADS
from gpumlp.backends.persistent_scope import Sizes, why_not
from tests.gpu_helpers import gpu_backend
from tests.host_kernels import body_of
from tests.persistent_helpers import bits, change_kernel, host_backend, ran, trainer_on
from tests.strict_device import StrictArray, StrictNamespace

MNIST = Sizes(
    inputs=784, hidden=128, classes=10, batch=32, units=4, buffers=2, itemsize=4, pixels=True
)  # the goal's network


class MyReLU(LeakyReLU):
    """A subclass may compute anything."""

    name = "my_relu"


class MyPenalty(Penalty):
    """Likewise."""


def held(array: np.ndarray) -> StrictArray:
    return StrictArray(array, StrictNamespace())


def refused(trainer: Trainer) -> str:
    """Train by other ways; the reason."""
    trainer.run(1)
    assert not ran(trainer)
    assert "train_steps" not in trainer.model.backend.xp.launches
    assert trainer.history["train_loss"][-1] > 0
    return trainer.how_steps_ran.partition("; not by the persistent kernel: ")[2]


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("it is for networks of one hidden layer, this one has 2", {"hidden": (8, 8)}),
        ("it is for networks of one hidden layer, this one has 0", {"hidden": ()}),
        ("it knows no optimizer but SGD", {"optimizer": Adam()}),
        ("it does not know this activation", {"activation": MyReLU()}),
        ("a block would need 22 KiB of shared memory, for its weights and ", {"batch_size": 256}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_does_not_know_goes_the_other_ways(
    reason: str, options: dict[str, object], blobs: Dataset
) -> None:
    backend = host_backend(MaxSharedMemoryPerBlockOptin=7 * 1024)
    assert refused(trainer_on(backend, blobs, **options)).startswith(reason)
    other = trainer_on(host_backend(choice="off"), blobs, **options)
    other.run(1)
    assert other.how_steps_ran == "one by one: cuda_graphs is off"


def test_many_classes(blobs: Dataset) -> None:
    data = Dataset(blobs.images, blobs.labels, classes=65)
    assert refused(trainer_on(host_backend(), data)) == "it is for 64 classes at most, here are 65"


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("it knows no loss but softmax_cross_entropy", {"loss": SquaredError()}),
        ("it does not know this penalty", {"penalty": MyPenalty()}),
        ("the samples have weights", {"weights": np.ones(300, np.float32)}),
        ("the samples are neither pixels nor of the network's dtype", {"images": np.zeros((300, 20), np.int16)}),
        ("the samples are neither pixels nor of the network's dtype", {"targets": np.zeros(300, np.int32)}),
        ("the arrays have gaps", {"order": np.zeros(600, np.int64)[::2]}),
        ("somebody looks at the gradients, which it never makes", {"gradient_wanted": True}),
    ],
)
def test_what_no_trainer_makes_or_only_some(reason: str, change: dict[str, object], blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    whole, batches = trainer._step.whole(), trainer.batches.slices
    change = {name: held(value) if isinstance(value, np.ndarray) else value for name, value in change.items()}
    assert why_not(whole, batches) is None
    assert why_not(whole._replace(**change), batches) == reason


def test_rows_that_begin_anywhere(blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    images = np.zeros(300 * 20 + 1, np.uint8)[1:].reshape(300, 20)
    whole = trainer._step.whole()._replace(images=held(images))
    assert why_not(whole, trainer.batches.slices) == "the samples do not begin at a multiple of 16 bytes"


def test_a_device_without_cooperative_launches(blobs: Dataset) -> None:
    assert refused(trainer_on(host_backend(CooperativeLaunch=0), blobs)) == (
        "the device has no cooperative launches"
    )


@pytest.mark.parametrize("name", ["CooperativeLaunch", "MultiProcessorCount", "MaxSharedMemoryPerBlockOptin"])
def test_a_device_that_does_not_tell(name: str, blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    del trainer.model.backend.xp.attributes[name]
    assert refused(trainer) == f"the device does not tell its {name}"


def test_before_the_first_step_and_after_it(blobs: Dataset) -> None:
    trainer = trainer_on(host_backend(), blobs)
    assert trainer.how_steps_ran.endswith("not by the persistent kernel: no step was taken")
    trainer.run(1)
    words = "by one persistent kernel: 5 blocks of 64 threads, 4 hidden units and "
    assert trainer.how_steps_ran.startswith(words)


def test_a_step_of_somebodys_own_and_batches_in_another_order(blobs: Dataset) -> None:
    backend = host_backend()
    done: list[slice] = []
    backend.run_steps(done.append, [slice(0, 16), slice(16, 32)])
    assert done == [slice(0, 16), slice(16, 32)]
    trainers = [trainer_on(host_backend(choice=choice), blobs) for choice in ("on", "off")]
    for trainer in trainers:
        trainer.run(1)
        trainer.model.backend.run_steps(trainer._step, trainer.batches.slices[3:1:-1])
    assert trainers[0].how_steps_ran.endswith("the batches do not follow each other")
    backend.run_steps(trainers[0]._step, [])


def test_no_more_blocks_than_are_there_at_once() -> None:
    hidden = {Sizes(20, hidden, 4, 8, units, 2, 4, True).blocks for hidden, units in ((24, 4), (25, 8), (48, 8))}
    assert hidden == {6, 4}


# -- The source -------------------------------------------------------------------------------------------


def test_the_fences_are_there() -> None:
    # On the processor, whose threads take turns, they do nothing, and no other test misses them. This one guards
    # the text; that blocks see each other's parts of the logits, only a GPU can show.
    source = kernel_source(*SOURCES)
    assert re.search(r"__threadfence\(\);\s*atomicAdd\(arrived", body_of(source, "arrive"))
    assert re.search(r"while \(.*arrived < expected\)[^}]*__threadfence\(\);", body_of(source, "wait"))
    taken = body_of(source, "take_parts")
    assert "__ldcg(parts + " in taken
    assert len(re.findall(r"\bparts\b", taken)) == 2  # as parameter, and there


# -- The compiler --------------------------------------------------------------------------------------

COMPILED = [
    MNIST,
    MNIST._replace(batch=128, buffers=1),
    MNIST._replace(batch=16, pixels=False),
    Sizes(inputs=13, hidden=9, classes=3, batch=5, units=8, buffers=2, itemsize=4, pixels=True),
]


@pytest.mark.parametrize("sizes", COMPILED, ids=lambda sizes: "-".join(map(str, sizes)))
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_source_compiles_and_spills_no_register(
    tmp_path: Path, architecture: str, real: str, sizes: Sizes
) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed: the CUDA source cannot be compiled")
    sizes = sizes._replace(itemsize=4 if real == "float" else 8)
    source = tmp_path / "persistent.cu"
    source.write_text(kernel_source(*SOURCES))
    command = [compiler, "-cubin", f"-arch={architecture}", "-Werror", "all-warnings", "--resource-usage"]
    command += [*sizes.options(real, THREADS), "-o", str(tmp_path / "persistent.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert registers <= 65536 // THREADS


# -- A GPU ---------------------------------------------------------------------------------------------


SMALL = {"dtype": "float32", "hidden": 128, "batch_size": 32}  # with MNIST's inputs: runs on every GPU


def ran_or_skip(trainer: Trainer, setting: dict[str, object]) -> None:
    """It was by the kernel, or the card has too little shared memory; but enough for the small setting."""
    refusal = r"; not by the persistent kernel: (a block would need .* of shared memory, .*)"
    too_large = re.search(refusal, trainer.how_steps_ran)
    if too_large and setting != SMALL:
        pytest.skip(too_large[1])
    assert ran(trainer), trainer.how_steps_ran


def test_a_large_setting_may_be_refused_on_a_gpu_and_the_small_one_may_not(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(host_backend(MaxSharedMemoryPerBlockOptin=1024), blobs)
    trainer.run(1)
    with pytest.raises(pytest.skip.Exception, match=r"a block would need 3 KiB of shared memory.*has 1 KiB"):
        ran_or_skip(trainer, SMALL | {"hidden": 600})
    with pytest.raises((AssertionError, pytest.skip.Exception)) as caught:
        ran_or_skip(trainer, dict(SMALL))
    assert caught.type is AssertionError
    change_kernel(monkeypatch, "#define WARPS (THREADS / 32)", "#error too little shared memory\n")
    failed = trainer_on(host_backend(), blobs)
    failed.run(1)
    with pytest.raises((AssertionError, pytest.skip.Exception)) as caught:
        ran_or_skip(failed, SMALL | {"hidden": 600})
    assert caught.type is AssertionError


def test_the_small_setting_has_room_in_64_kib() -> None:
    assert MNIST._replace(buffers=1).shared_bytes <= 64 * 1024
    assert {"hidden": MNIST.hidden, "batch_size": MNIST.batch, "dtype": "float32"} == SMALL


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [128, 600])
@pytest.mark.parametrize("batch_size", [32, 75, 1])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_on_a_gpu_it_trains_as_the_operations_do_and_repeats_itself(
    activation: str, batch_size: int, hidden: int, dtype: str
) -> None:
    rng = np.random.default_rng(4)
    data = Dataset(rng.integers(0, 256, (300, 784), dtype=np.uint8), rng.integers(0, 10, 300), classes=10)
    trainers = []
    for choice in ("on", "on", "off"):
        backend = gpu_backend(persistent_kernel=choice, cuda_graphs="off")
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
