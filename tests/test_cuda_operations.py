"""What a step launches on a GPU, in which precision, and that the CUDA source compiles."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import gpumlp.nn
from gpumlp import MLP, SGD, Adam, Dataset, Penalty, Trainer
from gpumlp.backends import Backend, cuda_kernels, cuda_rules
from gpumlp.backends.cuda_kernels import kernel_source
from gpumlp.backends.cuda_rules import ACTIVATION_CODES
from gpumlp.nn.activations import ACTIVATIONS
from tests.host_cuda import host_cuda_backend

OPTIMIZERS = [SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Adam()]


@pytest.mark.parametrize(("sizes", "launches"), [([20, 4], 7), ([20, 16, 4], 13), ([20, 16, 12, 4], 19)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_a_step_is_six_launches_a_layer_and_one(
    blobs: Dataset, sizes: list[int], launches: int, optimizer: SGD | Adam
) -> None:
    backend = host_cuda_backend()
    trainer = Trainer(
        MLP(sizes, device=backend), blobs, optimizer=optimizer, penalty=Penalty(l2=1e-4), batch_size=32
    )
    trainer.run(1)
    for batch in trainer.batches.slices:  # the short last batch too
        backend.xp.launches.clear()
        with backend.ledger.counting() as ledger:
            trainer._step(batch)
        assert len(backend.xp.launches) == launches
        assert ledger.allocations == []
        assert ledger.host_reads == ledger.host_writes == ledger.waits == 0


@pytest.mark.parametrize(("precision", "compute_type"), [("highest", 1), ("high", 7)])
def test_the_precision_of_products_holds_while_the_backend_is_active(precision: str, compute_type: int) -> None:
    backend = host_cuda_backend(matmul_precision=precision)
    setting = backend.xp._core._routines_linalg
    for others in (1, 7):  # what the rest of the program has chosen
        setting.set_compute_type("float32", others)
        with suppress(KeyError), backend.activate():
            assert setting.get_compute_type("float32") == compute_type
            raise KeyError("the setting comes back after an error too")
        assert setting.get_compute_type("float32") == others


def test_training_uses_the_precision(blobs: Dataset) -> None:
    backend = host_cuda_backend(matmul_precision="high")
    Trainer(MLP([20, 16, 4], device=backend), blobs).run(1)
    backend.xp.products.clear()
    Trainer(MLP([20, 16, 4], device=backend), blobs, validation=50).run(1)
    assert set(backend.xp.products) == {7}


@pytest.mark.parametrize(
    "operation", ["gather", "dense_forward", "dense_backward", "softmax_cross_entropy", "update"]
)
def test_the_overrides_have_the_signature_of_the_reference(operation: str) -> None:
    override = getattr(type(host_cuda_backend()), operation)
    assert override is not getattr(Backend, operation)
    assert inspect.signature(override) == inspect.signature(getattr(Backend, operation))


def test_the_double_refuses_what_a_gpu_would_misread() -> None:
    backend = host_cuda_backend()
    kernel = backend.xp.RawModule(code=kernel_source(), options=("-DREAL=float",)).get_function("column_sums")
    values, sums = backend.asarray(np.ones((2, 3), np.float32)), backend.asarray(np.zeros(3, np.float32))
    kernel((1,), (32, 32), (values, np.int64(2), np.int64(3), sums))
    assert backend.to_numpy(sums).tolist() == [2, 2, 2]
    for arguments in (
        (values, np.int32(2), np.int64(3), sums),
        (values, 2, np.int64(3), sums),
        (values, np.int64(2), np.int64(3)),
        (values, np.int64(2), np.int64(3), backend.asarray(np.zeros(3))),
        (values.T, np.int64(2), np.int64(3), sums),
    ):
        with pytest.raises(AssertionError):
            kernel((1,), (32, 32), arguments)


def test_python_and_cuda_number_the_rules_alike() -> None:
    defined = {name: int(number) for name, number in re.findall(r"#define (\w+) (\d+)\n", kernel_source())}
    codes = {cuda_rules.full_name(rule()): defined[name.upper()] for name, rule in ACTIVATIONS.items()}
    assert codes == ACTIVATION_CODES
    assert (defined["PLAIN"], defined["MOMENTUM"], defined["NESTEROV"]) == (
        cuda_rules.PLAIN, cuda_rules.MOMENTUM, cuda_rules.NESTEROV,
    )  # fmt: skip
    assert (defined["SUM_COLUMNS"], defined["SUM_ROWS"]) == cuda_kernels._SUM_BLOCK


def test_the_names_of_the_rules_are_those_of_their_classes() -> None:
    rules = (gpumlp.nn.Penalty(), gpumlp.nn.SGD(), gpumlp.nn.Adam())
    known = (cuda_rules.PENALTY, cuda_rules.SGD, cuda_rules.ADAM)
    assert tuple(map(cuda_rules.full_name, rules)) == known


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_source_compiles(tmp_path: Path, architecture: str, real: str) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed: the CUDA source cannot be compiled")
    source = tmp_path / "kernels.cu"
    source.write_text(kernel_source())
    command = [compiler, "-cubin", f"-arch={architecture}", f"-DREAL={real}", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "kernels.cubin"), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
