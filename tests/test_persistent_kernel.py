"""The persistent kernel agrees with the float64 reference, with the same bits in every order of its threads.

The kernel as shipped is run by the emulator (``emulator.py``), and on a GPU where there is one. The usual run
takes a sample of the cases and of the deliberate mistakes; ``-m emulator`` takes all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, AdamW, Dataset, LogisticCrossEntropy, Penalty, SoftmaxCrossEntropy, Trainer
from gpumlp.backends import Backend, StepRun
from gpumlp.backends.cuda.persistent import COMPILER
from gpumlp.backends.cuda.plan import NETWORK, DeviceProperties, Plan, Shape, make_plan
from gpumlp.nn.activations import ACTIVATIONS, ReLU
from gpumlp.nn.losses import LOSSES, get_loss
from tests.data_helpers import reorder
from tests.emulator import COMPILED, SCHEDULES, EmulationError
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend
from tests.host_kernels import network_dtype, network_fields
from tests.strict_device import StrictBackend

SOURCE = files("gpumlp.backends.cuda").joinpath("persistent.cu").read_text(encoding="utf-8")
EPOCHS = 2
TOLERANCES = {3: 1e-5, 2: 1e-4}  # by bfloat16 parts: the largest difference, relative to the largest value


class Case(NamedTuple):
    """A network, and how it is trained.

    Attributes:
        sizes: inputs, units of the hidden layers, outputs.
        batch: samples of a batch.
        samples: of an epoch.
        blocks: the multiprocessors of a network; None: as many as its plan says.
        replicas: among which the samples of a batch are divided.
        networks: trained in one launch.
        shared: KiB of shared memory of a block.
        capability: the major number of the compute capability; rows come by bulk copies from 9 on.
    """

    sizes: tuple[int, ...] = (20, 18, 4)
    batch: int = 16
    samples: int = 60
    blocks: int | None = 2
    replicas: int = 1
    networks: int = 1
    activation: str = "relu"
    loss: Any = "softmax_cross_entropy"
    optimizer: Any = SGD(0.05, momentum=0.9)
    penalty: Penalty = Penalty()
    weighted: bool = False
    dropout: float = 0.0
    input_dropout: float = 0.0
    pixels: bool = True
    parts: int = 3
    shared: int = 227
    capability: int = 9

    def __str__(self) -> str:
        defaults = self._field_defaults
        words = [f"{name}={value}" for name, value in self._asdict().items() if value != defaults[name]]
        return " ".join(words).replace("sizes=", "").replace(", ", "-") or "default"


EVERYTHING = {"penalty": Penalty(l2=1e-2, l1=1e-3), "weighted": True, "dropout": 0.3, "input_dropout": 0.2}
USUAL = [  # a sample of all
    Case((13, 9, 3), batch=7, networks=2, optimizer=Adam(0.01, epsilon=1e-3), capability=8, **EVERYTHING),
    Case((40, 33, 24, 5), batch=33, samples=80, blocks=4, activation="gelu", **EVERYTHING),
    Case((784, 128, 10), batch=32, samples=75, blocks=None),
    Case(
        (30, 100, 2), batch=200, samples=500, blocks=None, networks=3, loss="logistic_cross_entropy", pixels=False
    ),
    Case((16, 8, 8, 8, 2), batch=1, samples=9, blocks=4, networks=2, parts=2),
    Case((20, 18, 3), batch=100, samples=250, loss="squared_error", optimizer=AdamW(0.01, epsilon=1e-3)),
    Case((40, 33, 24, 5), batch=70, samples=150, blocks=6, replicas=3, networks=2, **EVERYTHING),
    Case((30, 33, 2), batch=150, samples=310, replicas=2, loss="logistic_cross_entropy", pixels=False),
]
OPTIMIZERS = [
    *(SGD(0.01), SGD(0.01, momentum=0.9), SGD(0.01, momentum=0.9, nesterov=True)),
    *(kind(0.01, epsilon=1e-3) for kind in (Adam, AdamW)),
]
SHAPES = [
    Case((1, 1, 1), batch=1, samples=5, blocks=1, loss="squared_error"),
    Case((16, 1, 2), batch=1, samples=12, blocks=1),
    Case((13, 9, 3), batch=7),
    Case((33, 24, 5), batch=60, blocks=3),
    Case((20, 18, 4), batch=100, samples=250, blocks=3),
    Case((20, 50, 10), batch=256, samples=600, blocks=7),
    Case((48, 30, 64), batch=33, blocks=4),
    Case((20, 70, 127), batch=16, blocks=3),
    Case((784, 128, 10), batch=100, samples=250, blocks=8),
    Case((784, 64, 10), batch=100, samples=250, blocks=8, shared=99),
    Case((500, 18, 4), batch=100, samples=250, shared=99),  # two slots in evaluation
    Case((400, 16, 4), batch=70, samples=200, shared=48),  # which is by 32 samples at a time
    Case(
        (30, 100, 2),
        batch=200,
        samples=500,
        blocks=None,
        networks=3,
        pixels=False,
        optimizer=Adam(0.01, epsilon=1e-3),
    ),
    Case((400, 50, 7), batch=40, blocks=4, networks=2, parts=2),
    Case((300, 18, 4), batch=40, blocks=3, pixels=False),
    Case((20, 18, 4), batch=560, samples=600, blocks=3),
    Case((20, 9, 7, 4), blocks=1),
    Case((20, 17, 40, 3), batch=100, samples=250, blocks=4),
    Case((100, 64, 48, 10), batch=128, samples=300, blocks=8, networks=2),
    Case((33, 30, 20, 40, 5), batch=7, blocks=6),
    Case((20, 50, 33, 17, 10), batch=256, samples=600, blocks=8),
    Case((784, 256, 128, 10), batch=32, samples=75, blocks=24),
]
REPLICAS = [
    Case((13, 9, 3), batch=64, samples=150, replicas=2, networks=2, optimizer=Adam(0.01, epsilon=1e-3)),
    Case((20, 40, 4), batch=250, samples=540, blocks=15, replicas=5, capability=8, **EVERYTHING),
    Case((20, 18, 4), batch=300, samples=610, blocks=3, replicas=3, **EVERYTHING),  # passes
    Case((784, 128, 10), batch=128, samples=300, blocks=64, replicas=4),
    Case((784, 64, 10), batch=100, samples=250, blocks=16, replicas=2, shared=99),
    Case((20, 50, 33, 17, 10), batch=130, samples=300, blocks=10, replicas=2, optimizer=AdamW(0.01, epsilon=1e-3)),
    Case((100, 64, 48, 10), batch=128, samples=300, blocks=32, replicas=4, parts=2),
    Case((20, 70, 127), batch=40, blocks=6, replicas=2),
    Case((300, 18, 4), batch=70, samples=200, blocks=6, replicas=3, pixels=False),
]
RULES = [
    *(Case(activation=name) for name in ACTIVATIONS if name != "identity"),
    *(Case((20, 18, 9, 4), blocks=4, activation=name, dropout=0.2) for name in ("tanh", "gelu", "silu")),
    *(Case(loss=loss, pixels=False, optimizer=SGD(0.01)) for loss in LOSSES),
    *(Case((20, 18, 9, 1), blocks=3, loss=loss, optimizer=SGD(0.01)) for loss in LOSSES if "softmax" not in loss),
    *(Case(loss=loss(label_smoothing=0.1)) for loss in (SoftmaxCrossEntropy, LogisticCrossEntropy)),
    *(
        Case(sizes, blocks=3, optimizer=optimizer, penalty=Penalty(l2=1e-2, l1=1e-3))
        for sizes in ((20, 18, 4), (20, 18, 24, 4))
        for optimizer in OPTIMIZERS
    ),
    Case(penalty=Penalty(l2=1e-2)),
    Case(penalty=Penalty(l1=1e-3)),
    Case(weighted=True),
    Case(dropout=0.5),
    Case(input_dropout=0.3),
    Case((20, 18, 12, 4), batch=33, samples=80, blocks=3, dropout=0.3, input_dropout=0.3, pixels=False),
    *(Case((20, 18, 12, 4), blocks=2, parts=2, pixels=pixels) for pixels in (True, False)),
]


def random_case(seed: int) -> Case:
    """A network and a way of training it, drawn at random."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(1, 60, rng.integers(1, 4)).tolist()
    wide = len(hidden) == 1 and bool(rng.integers(2))  # few slots for rows
    sizes = (400 if wide else int(rng.integers(1, 80)), *hidden, int(rng.choice([1, 2, 3, 10, 17, 40])))
    batch = int(rng.choice([1, 3, 16, 31, 32, 33, 64, 100, 160]))
    losses = [name for name in LOSSES if sizes[-1] > 1 or "softmax" not in name]
    loss = str(rng.choice(losses))
    exponential = loss == "poisson_deviance"  # which makes differences larger
    case = Case(
        sizes,
        batch,
        samples=2 * batch + int(rng.integers(1, batch + 1)),
        blocks=None if wide else int(rng.integers(1 if len(hidden) == 1 else 4, 9)),
        networks=int(rng.integers(1, 3)),
        activation=str(rng.choice([name for name in ACTIVATIONS if name != "identity"])),
        loss=loss,
        optimizer=SGD(0.001) if exponential else OPTIMIZERS[rng.integers(len(OPTIMIZERS))],
        penalty=Penalty(l2=1e-2 * int(rng.integers(2)), l1=1e-3 * int(rng.integers(2))),
        weighted=bool(rng.integers(2)),
        dropout=float(rng.choice([0, 0.3])),
        input_dropout=float(rng.choice([0, 0.2])),
        pixels=wide or bool(rng.integers(2)),
        parts=3 if exponential else int(rng.choice([3, 3, 3, 2])),
        shared=99 if wide else 227,
        capability=int(rng.choice([8, 9])),
        replicas=int(rng.integers(1, 4)) if not wide and batch > 64 else 1,
    )
    return case if wide else case._replace(blocks=case.blocks * case.replicas)


CASES = [
    *(pytest.param(case, id=str(case)) for case in USUAL),
    *(pytest.param(case, id=str(case), marks=pytest.mark.emulator) for case in (*SHAPES, *REPLICAS, *RULES)),
    *(pytest.param(random_case(n), id=f"random {n}", marks=pytest.mark.emulator) for n in range(20)),
]


def data_of(case: Case) -> Dataset:
    """Random samples, which are learned slowly, so that gradients stay large."""
    rng = np.random.default_rng(case.sizes[0])
    shape, outputs = (case.samples, case.sizes[0]), case.sizes[-1]
    images: Any = rng.integers(0, 256, shape, dtype=np.uint8)
    if not case.pixels:
        images = rng.normal(size=shape).astype(np.float32)
    task = get_loss(case.loss).task
    if task == "classes":
        targets = rng.integers(0, outputs, len(images))
    elif task == "labels":
        targets = rng.integers(0, 2, (len(images), outputs))
    else:
        targets = rng.integers(0, 5, (len(images), outputs)).astype(np.float32)
    weights = rng.uniform(0.5, 2, len(images)).astype(np.float32) if case.weighted else None
    return Dataset(images, targets, task=task, classes=outputs if task == "classes" else None, weights=weights)


def host_backend(case: Case, seed: int = 0) -> Backend:
    """The kernel on the emulator."""
    backend = with_replicas(case, host_cuda_backend(**options_of(case)))
    backend.xp.thread_order = seed
    shared = {"MaxSharedMemoryPerBlockOptin": case.shared * 1024}
    shared["MaxSharedMemoryPerMultiprocessor"] = (case.shared + 1) * 1024
    device = {"CooperativeLaunch": 1, "MultiProcessorCount": 132, "ComputeCapabilityMajor": case.capability}
    backend.xp.attributes |= device | shared
    return backend


def options_of(case: Case) -> dict[str, Any]:
    precision = {3: "highest", 2: "high"}[case.parts]
    return {"execution": "persistent", "multiprocessors": case.blocks, "matmul_precision": precision}


def with_replicas(case: Case, backend: Backend) -> Backend:
    backend.persistent.replicas = case.replicas
    return backend


def trained(
    case: Case, backend: Backend, dtype: str = "float32", *, step_by_step: bool = False
) -> list[dict[str, np.ndarray]]:
    """Parameters, optimizer state, losses and scores of each network after `EPOCHS`.

    An epoch is two launches; or each step is one, before which all replicas read the parameters of the first.
    """
    data = data_of(case)
    trainers = [trainer_on(backend, case, data, number, dtype) for number in range(case.networks)]
    steps = len(trainers[0].batches.slices)
    for epoch in range(EPOCHS):
        for number, trainer in enumerate(trainers):
            reorder(trainer.batches, np.random.default_rng([epoch, number]).permutation(trainer.batches.rows))
        for start, stop in pairwise(range(steps + 1) if step_by_step else sorted({0, steps // 2, steps})):
            rates = [case.optimizer.learning_rate / (1 + number) for number in range(case.networks)]
            pairs = zip(trainers, rates, strict=True)
            backend.run_many(
                [StepRun(each._step, range(start, stop), [rate] * (stop - start)) for each, rate in pairs]
            )
    return [arrays(trainer) for trainer in trainers]


def drift(case: Case, backend: Backend) -> list[dict[str, np.ndarray]]:
    """Where replicas have come apart: results that differ from those of training step by step."""
    pairs = zip(trained(case, backend), trained(case, backend, step_by_step=True), strict=True)
    return [{name: whole[name] != single[name] for name in whole} for whole, single in pairs]


def evaluated(case: Case, backend: Backend, dtype: str = "float32") -> list[dict[str, np.ndarray]]:
    """Losses and scores of each network on held-out samples, with initial weights, by one launch for all."""
    data, rows = data_of(case), np.random.default_rng(1).permutation(case.samples)[: 3 * case.samples // 4]
    steps = [trainer_on(backend, case, data, number, dtype, rows)._evaluation for number in range(case.networks)]
    for step in steps:
        backend.execution(step.evaluates)
    numbers = range(len(steps[0].slices))
    backend.run_many([StepRun(step, numbers, [0.0] * len(numbers)) for step in steps])
    return [{name: backend.to_numpy(getattr(step, name)) for name in ("losses", "scores")} for step in steps]


def trainer_on(
    backend: Backend, case: Case, data: Dataset, number: int, dtype: str, validation: np.ndarray | None = None
) -> Trainer:
    """A network of a case, with the same initial weights on every device."""
    sizes, loss = list(case.sizes), case.loss
    weights = MLP(sizes, case.activation, seed=number, dtype="float32", device="cpu").state_dict().values()
    model = MLP(
        sizes, case.activation, loss=loss, dtype=dtype, device=backend,
        dropout=case.dropout, input_dropout=case.input_dropout,
    )  # fmt: skip
    pairs = zip(model.state_dict(), weights, strict=True)  # names differ where there is dropout
    model.load_state_dict({name: value.astype(dtype) for name, value in pairs})
    return Trainer(
        model, data, optimizer=case.optimizer, penalty=case.penalty, batch_size=case.batch, seed=number,
        diagnostics=False, validation=validation,
    )  # fmt: skip


def arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    to_numpy, step, parameters = trainer.model.backend.to_numpy, trainer._step, trainer.model.parameters
    buffers = {"parameters": parameters.data, **trainer.optimizer_state.buffers}
    named = {
        f"{kind} {name}": view for kind, flat in buffers.items() for name, view in parameters.views(flat).items()
    }
    return {name: to_numpy(each) for name, each in {**named, "losses": step.losses, "scores": step.scores}.items()}


def bits(networks: list[dict[str, np.ndarray]]) -> list[dict[str, bytes]]:
    return [{name: array.tobytes() for name, array in network.items()} for network in networks]


def check(got: list[dict[str, np.ndarray]], case: Case, compute: Any = None) -> None:
    """Assert that results agree with the reference in float64; `compute` is `trained` or `evaluated`."""
    references = (compute or trained)(case, StrictBackend(), "float64")
    for number, (network, reference) in enumerate(zip(got, references, strict=True)):
        assert network.keys() == reference.keys()
        for name, want in reference.items():
            largest = max(
                np.abs(other).max() for kind, other in reference.items() if kind.split()[0] == name.split()[0]
            )
            difference = np.abs(network[name].astype(np.float64) - want).max() / max(largest, 1e-3)
            tolerance = 0 if want.dtype == bool else TOLERANCES[case.parts]
            assert difference <= tolerance, f"network {number}, {name}: {difference:.1e}"


@pytest.mark.parametrize("compute", [trained, evaluated])
@pytest.mark.parametrize("case", CASES)
def test_it_agrees_with_the_reference_in_every_order_of_threads(case: Case, compute: Any) -> None:
    start = crc32(str(case).encode())
    first, *others = (compute(case, host_backend(case, (start + 5 * k) % SCHEDULES)) for k in range(3))
    check(first, case, compute)
    if case.replicas > 1 and compute is trained:
        others.append(trained(case, host_backend(case), step_by_step=True))
    assert all(bits(other) == bits(first) for other in others)


@pytest.mark.parametrize("compute", [trained, evaluated])
def test_a_network_has_the_same_bits_alone_and_among_others(compute: Any) -> None:
    case = USUAL[0]
    alone = compute(case._replace(networks=1), host_backend(case))
    assert bits(alone)[0] == bits(compute(case, host_backend(case)))[0]


@pytest.mark.parametrize("outputs", [4, 64])  # a lane has one or two outputs
def test_of_equal_logits_the_first_is_the_prediction(outputs: int) -> None:
    case = Case((20, 18, outputs), samples=16)
    trainer = trainer_on(host_backend(case), case, data_of(case), 0, "float32")
    backend, step = trainer.model.backend, trainer._step
    trainer.model.parameters.data.fill(0)
    backend.run_many([StepRun(step, range(1), [0.1])])
    np.testing.assert_array_equal(backend.to_numpy(step.scores), backend.to_numpy(step.targets) == 0)


@pytest.mark.parametrize(
    "case",
    [
        Case(blocks=3, penalty=Penalty(l2=1e-2)),
        Case((20, 18, 24, 9, 4), batch=40, blocks=6, replicas=2, penalty=Penalty(l2=1e-2)),
    ],
    ids=str,
)
def test_the_squares_of_the_weights_before_each_step_are_summed(case: Case) -> None:
    sums = []
    for backend, dtype in ((host_backend(case), "float32"), (StrictBackend(), "float64")):
        trainer = trainer_on(backend, case, data_of(case), 0, dtype)
        trainer._step.squares = backend.xp.zeros(8, dtype="float64")
        for batches in (range(1), range(1, len(trainer._step.slices))):  # launches
            backend.run_many([StepRun(trainer._step, batches, [0.1] * len(batches))])
        sums.append(backend.to_numpy(trainer._step.squares).sum())
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


@pytest.mark.parametrize("case", [USUAL[1], USUAL[3], USUAL[5], USUAL[6]], ids=str)
def test_numbers_that_are_not_finite_stay_and_nobody_waits_for_ever(case: Case) -> None:
    backend = host_backend(case)
    trainer = trainer_on(backend, case, data_of(case), 0, "float32")
    *_, bias = trainer.model.parameters.views(trainer.model.parameters.data).values()
    bias[0] = np.nan
    backend.run_many([StepRun(trainer._step, range(2), [0.1] * 2)])
    for name, array in arrays(trainer).items():
        if name.split()[0] == "parameters":
            assert np.isnan(array).all(), name
    assert np.isnan(backend.to_numpy(trainer._step.losses)[: 2 * case.batch]).all()


def test_the_structure_of_a_network_is_that_of_the_source() -> None:
    assert network_dtype(network_fields(SOURCE)) == NETWORK


# -- Deliberate mistakes -----------------------------------------------------------------------------------


BARRIER = "__syncthreads();\n"


def without_barrier(before: str, after: str = "") -> dict[str, str]:
    """The change that leaves out the barrier between two texts; indentation is part of them."""
    return {f"{before}{BARRIER}{after}": f"{before}{after}"}


CHUNKS = Case((40, 18, 4), batch=160, samples=400, blocks=3, capability=8)  # five chunks of samples in four slots
ONE_SLOT = Case((400, 16, 4), batch=70, samples=200, shared=48)
FEW_SLOTS = Case((600, 16, 4), batch=70, shared=72)  # one in evaluation, too, for four chunks
MIDDLE = Case((20, 40, 40, 20, 5), batch=64, samples=150, blocks=4)
MIDDLE_OF_ONE_CHUNK = MIDDLE._replace(batch=32)
SHORT = Case((20, 18, 24, 4))
SHARED_BATCH = Case((20, 18, 24, 4), batch=64, samples=500, blocks=4, replicas=2)
INPUTS = CHUNKS._replace(input_dropout=0.3)
BULK = CHUNKS._replace(sizes=(300, 18, 4), capability=9)
USUAL_MISTAKES = {
    "no wait for the rows": (CHUNKS, {"        wait(&s.full[at], phase);\n": ""}),
    "rows are replaced too early": (CHUNKS, {"if (k > 0) __syncthreads();": ""}),
    "no barrier after the output errors": (CHUNKS, without_barrier("w.receive_errors();\n        ")),
    "the second of two tags is not checked": (MIDDLE, {" && __float_as_uint(two.w) == tag": ""}),
    "small parameters are updated too early": (
        MIDDLE_OF_ONE_CHUNK,
        without_barrier("w.middle_backward<2>();\n            "),
    ),
    "tags do not change": (CHUNKS, {"tag = turn + 1": "tag = 1"}),
    "gradients have one place": (SHARED_BATCH, {"(step & 1) * REPLICAS": "0 * REPLICAS"}),
    "no wait for gradients": (SHARED_BATCH, {"three.tag == tag": "true"}),
}
MISTAKES = {
    "the phase ignores the turns before": (CHUNKS, {"base_phase ^ (number / SLOTS & 1)": "number / SLOTS & 1"}),
    "the phase of a turn does not change": (CHUNKS, {", base_phase ^= LOADS / SLOTS & 1;": ";"}),
    "rows are read too far ahead": (CHUNKS, {"k < SLOTS; k++) rows.issue();": "k <= SLOTS; k++) rows.issue();"}),
    "the count of an mbarrier is too small": (CHUNKS, {"BULK ? 1 : THREADS": "THREADS - 1"}),
    "the count of an mbarrier is too large": (CHUNKS, {"BULK ? 1 : THREADS": "THREADS + 1"}),
    "no barrier after mbarriers are made": (
        CHUNKS,
        without_barrier("BULK ? 1 : THREADS);\n    fence_copies();\n    "),
    ),
    "bulk copies of a row are not expected": (BULK, {"min(32, remaining())": "min(31, remaining())"}),
    "bulk copies are expected beyond the samples": (BULK, {"max(0, min(32, remaining()))": "32"}),
    "no barrier before sums are added": (CHUNKS, {"if (c + 1 < CHUNKS) __syncthreads();": ""}),
    "one buffer of sums": (CHUNKS, {"sums[chunk & 1][warp": "sums[0][warp", "sums[chunk & 1][k]": "sums[0][k]"}),
    "no barrier before error terms are read": (CHUNKS, without_barrier("w.middle_backward<2>();\n            ")),
    "a single slot is replaced too early": (
        ONE_SLOT,
        without_barrier("if constexpr (TRAINING && SLOTS == 1) {\n            "),
    ),
    "parameters are written too early": (SHORT, without_barrier("    ", "    if (replica() > 0) return;")),
    "no barrier after inputs are dropped": (
        INPUTS,
        without_barrier("        }\n        fence_copies();\n        "),
    ),
    "pairs are vectors of floats": (
        MIDDLE,
        {"store(words, v, 8, 2)": "store(words, v, 4, 4)", "load(words, &r, 8, 2)": "load(words, &r, 4, 4)"},
    ),
    "no wait for words": (CHUNKS, {"__float_as_uint(word.y) == tag": "true"}),
    "no wait for pairs of words": (
        CHUNKS,
        {"__float_as_uint(two.y) == tag && __float_as_uint(two.w) == tag": "true"},
    ),
    "padding is not sent": (CHUNKS, {"b >= TURN ||": "b >= rest ||"}),
    "no barrier after activations": (MIDDLE, without_barrier("W::BELOW, s.middle + M::INPUT);\n        ")),
    "no barrier after error terms": (MIDDLE, without_barrier("W::WIDTH, errors);\n        ")),
    "weights are updated too early": (MIDDLE, {"__syncthreads();  // all products have read the weights": ""}),
    "no barrier before bias gradients": (
        MIDDLE,
        without_barrier("        ", "        bias_gradients<LAYER - 1>();"),
    ),
    "gradients are vectors of floats": (
        SHARED_BATCH,
        {"store(words, &v, 16, 1)": "store(words, &v, 4, 4)", "load(words, &r, 16, 1)": "load(words, &r, 4, 4)"},
    ),
    "gradients have one place, with passes": (
        Case(batch=120, samples=1200, replicas=2),
        {"(step & 1) * REPLICAS": "0 * REPLICAS"},
    ),
    "partial sums overwrite each other": (MIDDLE, {"(i64)row * SAMPLES * W::WIDTH": "0"}),
}


MISTAKES_OF_EVALUATION = {
    "rows are read as in training": (FEW_SLOTS, {"TRAINING && CHUNKS > SLOTS": "CHUNKS > SLOTS"}),
    "rows are issued as in training": (
        FEW_SLOTS,
        {"if (!TRAINING || c < CHUNKS - SLOTS)": "if (c < CHUNKS - SLOTS)"},
    ),
    "no wait for the rows": USUAL_MISTAKES["no wait for the rows"],
    "no barrier between turns of one chunk": (
        Case((20, 16, 4), samples=420, blocks=1),
        without_barrier("w.receive_errors();\n        "),
    ),
    "no barrier between chunks": (CHUNKS, {"if (c + 1 < CHUNKS) __syncthreads();": ""}),
    "turns do not wait for each other": (CHUNKS, {"w.receive_errors();": "if (TRAINING) w.receive_errors();"}),
    "tags do not change": USUAL_MISTAKES["tags do not change"],
    "no barrier after activations": MISTAKES["no barrier after activations"],
}


# All replicas are right, but not by the same bits.
DRIFT = (
    SHARED_BATCH._replace(batch=96, blocks=6, replicas=3, samples=250),
    {"gradients_of(k % REPLICAS, first": "gradients_of((k + replica()) % REPLICAS, first"},
)


@pytest.mark.parametrize(
    ("case", "changes", "compute"),
    [
        pytest.param(*DRIFT, drift, id="replicas sum gradients in different orders"),
        *(pytest.param(*mistake, trained, id=name) for name, mistake in USUAL_MISTAKES.items()),
        *(
            pytest.param(*mistake, trained, id=name, marks=pytest.mark.emulator)
            for name, mistake in MISTAKES.items()
        ),
        *(
            pytest.param(case._replace(samples=1000), changes, evaluated, id=f"evaluation: {name}")
            for name, (case, changes) in MISTAKES_OF_EVALUATION.items()
        ),
    ],
)
def test_a_mistake_is_found(case: Case, changes: dict[str, str], compute: Any) -> None:
    want = bits(compute(case, host_backend(case)))
    assert any(is_found(case, changes, seed, want, compute) for seed in range(SCHEDULES))


def is_found(case: Case, changes: dict[str, str], seed: int, want: list[dict[str, bytes]], compute: Any) -> bool:
    """Whether the changed kernel breaks a rule, or has other results, in one order of its threads.

    `changes` are texts that are in the source once, and their replacements.
    """
    backend = host_backend(case, seed)
    compile_module = backend.xp.RawModule

    def compile_changed(*, code: str, **options: Any) -> Any:
        for before, after in changes.items():
            assert code.count(before) == 1, f"not once in the source: {before}"
            code = code.replace(before, after)
        return compile_module(code=code, **options)

    backend.xp.RawModule = compile_changed
    try:
        return bits(compute(case, backend)) != want
    except EmulationError:
        return True


# -- The compiler ------------------------------------------------------------------------------------------

# Devices of each architecture: multiprocessors, KiB of shared memory of a block and of a multiprocessor.
ARCHITECTURES = {
    "sm_80": DeviceProperties(108, 163 * 1024, 164 * 1024, bulk_copies=False),
    "sm_86": DeviceProperties(82, 99 * 1024, 100 * 1024, bulk_copies=False),
    "sm_89": DeviceProperties(128, 99 * 1024, 100 * 1024, bulk_copies=False),
    "sm_90a": DeviceProperties(132, 227 * 1024, 228 * 1024),
    "sm_100": DeviceProperties(148, 227 * 1024, 228 * 1024),
    "sm_120": DeviceProperties(170, 99 * 1024, 100 * 1024),
}
RELU = ReLU.cuda
STANDARD = {
    **{f"784-128-10 at {batch}": Shape(784, (128,), 10, (RELU,), batch) for batch in (32, 128, 256)},
    "784-512-512-10 at 128": Shape(784, (512, 512), 10, (RELU, RELU), 128),
    "30-100-2 at 200": Shape(30, (100,), 2, (RELU,), 200, pixels=False, optimizer="adam"),
}
STANDARD |= {
    f"evaluation of {name}": STANDARD[name]._replace(batch=128, optimizer="none")
    for name in ("784-128-10 at 128", "784-512-512-10 at 128", "30-100-2 at 200")
}
ON_MORE = {"784-128-10 at 128": 64, "784-512-512-10 at 128": 128, "30-100-2 at 200": 14}  # multiprocessors
# 100 KiB of shared memory for a multiprocessor are too few.
DO_NOT_FIT = {
    (architecture, f"{which}784-512-512-10 at 128", asked)
    for architecture in ("sm_86", "sm_89", "sm_120")
    for which, asked in (("", None), ("evaluation of ", None), ("", 128))
} | {("sm_80", "784-512-512-10 at 128", 128)}
# Bytes that a thread spills (stores and loads) where it spills at all, with nvcc 13.0; they must not grow.
SPILLS = {("sm_80", "784-512-512-10 at 128", None): 348}


class Usage(NamedTuple):
    """What the compiler reports."""

    registers: int
    spills: int


def usage(plan: Plan, architecture: str) -> Usage:
    """Registers and spilled bytes of the kernel for a plan, by nvcc; kept for the next time."""
    code = plan.definitions() + SOURCE
    command = [
        "nvcc",
        "-cubin",
        f"-arch={architecture}",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v",
        *COMPILER,
        *plan.options(),
    ]
    key = sha256("\0".join((code, *command)).encode()).hexdigest()[:16]
    report = COMPILED / f"{key}.nvcc"
    if not report.exists():
        COMPILED.mkdir(exist_ok=True)
        source, cubin = COMPILED / f"{key}.cu", COMPILED / f"{key}.cubin"
        source.write_text(code)
        done = subprocess.run(
            [*command, "-o", str(cubin), str(source)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        report.write_text(done.stdout + done.stderr)
    text = report.read_text()
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", text)
    return Usage(int(re.search(r"Used (\d+) registers", text)[1]), sum(map(int, spills)))


@pytest.mark.nvcc
def test_it_compiles_for_every_architecture_and_spills_no_more_than_before() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: the CUDA source cannot be compiled")
    planned = {
        (architecture, name, asked): make_plan(STANDARD[name], device, multiprocessors=asked)
        for architecture, device in ARCHITECTURES.items()
        for name, asked in (*((name, None) for name in STANDARD), *ON_MORE.items())
    }
    plans = {key: plan for key, plan in planned.items() if isinstance(plan, Plan)}
    assert planned.keys() - plans.keys() == DO_NOT_FIT
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(plans, pool.map(usage, plans.values(), (key[0] for key in plans)), strict=True))
    for key, (registers, spills) in found.items():
        plan = plans[key]
        print(*key, f"{plan.multiprocessors} blocks, {registers} registers, {spills} bytes spilled")
        assert registers * plan.threads * plan.resident <= 65_536
    assert {key: each.spills for key, each in found.items() if each.spills > SPILLS.get(key, 0)} == {}
    assert not any(architecture in ("sm_90a", "sm_100", "sm_120") for architecture, *_ in SPILLS)


# -- A GPU -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("case", "compute"),
    [
        *(pytest.param(case, trained, id=str(case)) for case in (*USUAL, *SHAPES, *REPLICAS, *RULES)),
        *(pytest.param(case, evaluated, id=f"evaluated {case}") for case in USUAL),
    ],
)
def test_on_a_gpu_it_agrees_with_the_reference_and_is_reproducible(case: Case, compute: Any) -> None:
    first, second = (compute(case, with_replicas(case, gpu_backend(**options_of(case)))) for _ in range(2))
    check(first, case, compute)
    assert bits(second) == bits(first)
    if case.replicas > 1 and compute is trained:
        backend = with_replicas(case, gpu_backend(**options_of(case)))
        assert bits(trained(case, backend, step_by_step=True)) == bits(first)
    if case.networks > 1:
        assert (
            bits(compute(case._replace(networks=1), with_replicas(case, gpu_backend(**options_of(case)))))[0]
            == bits(first)[0]
        )
