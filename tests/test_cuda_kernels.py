"""The CUDA kernels and their launches, compiled for the CPU and compared with the reference.

Also the number of launches of a step, the precision of products, and compilation of the CUDA source.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Activation,
    Adam,
    AdamW,
    Dataset,
    Distortion,
    LogisticCrossEntropy,
    Loss,
    Penalty,
    PoissonDeviance,
    ReLU,
    SoftmaxCrossEntropy,
    SquaredError,
    Trainer,
    get_backend,
)
from gpumlp.backends import DROPOUT, Accumulation, Backend, CudaActivation, Draws, reference_backend
from gpumlp.backends.cuda import kernels
from gpumlp.backends.cuda.kernels import cuda_activation, is_narrow, kernel_source, optimizer_kernel
from gpumlp.backends.cuda.plan import LOSSES
from gpumlp.nn.activations import ACTIVATIONS, get_activation
from gpumlp.nn.metrics import new_scores
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend

SOURCES = sorted(path.name for path in Path(kernels.__file__).parent.glob("*.cu") if path.stem != "persistent")
DTYPES = ["float32", "float64"]
SHAPES = [(1, 1), (7, 3), (33, 65), (128, 10), (130, 31)]  # near multiples of the block sizes
OPTIMIZERS = [SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Adam(), AdamW(weight_decay=0.5)]
RNG = np.random.default_rng(3)
LOSS = SoftmaxCrossEntropy()


def normal(dtype: str, *shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Backend:
    """The kernels on the CPU, and on a GPU if there is one."""
    backend = host_cuda_backend() if request.param == "host" else gpu_backend()
    with backend.activate():
        for dtype in DTYPES:
            backend.kernels(np.dtype(dtype))  # its arrays are made before launches are counted
    return backend


def watch(backend: Backend) -> None:
    """Clear the list of launches."""
    getattr(backend.xp, "launches", []).clear()


def launched(backend: Backend) -> list[str] | None:
    """The launches since `watch`, if the device records them."""
    return getattr(backend.xp, "launches", None)


def guarded(backend: Backend, array: np.ndarray) -> tuple[object, object]:
    """The array on the device, as part of a larger array of 77s that must not change."""
    whole = backend.asarray(np.full(array.size + 32, 77, dtype=array.dtype))
    inside = whole[16 : 16 + array.size].reshape(array.shape)
    backend.xp.copyto(inside, backend.asarray(array))
    return inside, whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gather(device: Backend, shape: tuple[int, int], dtype: str) -> None:
    batch, features = shape
    rows, out = RNG.integers(0, 40, batch), np.zeros(shape, dtype)
    backend = device
    for source in (RNG.integers(0, 256, (40, features), dtype=np.uint8), normal(dtype, 40, features)):
        staging = np.zeros(shape, np.uint8) if source.dtype == np.uint8 else None
        want = out.copy()
        reference_backend(np).gather(source, rows, staging, want)
        inside, whole = guarded(backend, out)
        staging = None if staging is None else backend.asarray(staging)
        watch(backend)
        backend.gather(backend.asarray(source), backend.asarray(rows), staging, inside)
        assert launched(backend) is None or len(launched(backend)) == 1
        np.testing.assert_array_equal(backend.to_numpy(inside), want)  # to the last bit
        assert (backend.to_numpy(whole) == 77).sum() >= 32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_forward(device: Backend, shape: tuple[int, int], activation: str, dtype: str) -> None:
    batch, units = shape
    x, weight, bias = normal(dtype, batch, 5), normal(dtype, 5, units), normal(dtype, units)
    s, a = normal(dtype, batch, units), normal(dtype, batch, units)
    rule = get_activation(activation)
    backend = device
    arrays = [backend.asarray(array) for array in (x, weight, bias, s, a)]
    watch(backend)
    backend.dense_forward(*arrays[:3], rule, *arrays[3:])
    kernel = "bias_activation" if rule.derivative_from == "output" else "bias_activation_apart"
    narrow = activation == "identity" and units <= 16
    assert launched(backend) in (None, ["narrow_forward"] if narrow else ["matmul", kernel])
    reference_backend(np).dense_forward(x, weight, bias, rule, s, a)
    tolerance = 3e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(backend.to_numpy(arrays[4]), a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_activation_backward(device: Backend, shape: tuple[int, int], activation: str, dtype: str) -> None:
    rule = get_activation(activation)
    s, delta = normal(dtype, *shape), normal(dtype, *shape)
    saved = s if rule.derivative_from == "input" else rule(s)
    sums = np.zeros(shape[1], dtype)
    tolerance = 3e-5 if dtype == "float32" else 1e-13
    for last in ((), (sums,)):  # without and with the gradient of the bias
        got = [device.asarray(array.copy()) for array in (saved, delta, *last)]
        watch(device)
        device.activation_backward(rule, *got)
        unchanged = ["column_sums"] if last else []
        assert launched(device) in (None, unchanged if activation == "identity" else ["activation_backward"])
        want = [saved, delta.copy(), *last]
        reference_backend(np).activation_backward(rule, *want)
        for value, expected in zip(got[1:], want[1:], strict=True):
            np.testing.assert_allclose(device.to_numpy(value), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_backward(device: Backend, shape: tuple[int, int], dtype: str) -> None:
    batch, units = shape
    arrays = [normal(dtype, batch, 5), normal(dtype, 5, units), normal(dtype, batch, units)]
    want = [*(array.copy() for array in arrays), *(np.empty(n, dtype) for n in ((5, units), units, (batch, 5)))]
    backend = device
    got = [backend.asarray(array.copy()) for array in want]
    watch(backend)
    backend.dense_backward(*got[:3], Accumulation(got[3]), *got[4:])
    narrow = ["narrow_backward"]
    assert launched(backend) in (None, narrow if units <= 16 else ["matmul", "column_sums", "matmul"])
    reference_backend(np).dense_backward(*want[:3], Accumulation(want[3]), *want[4:])
    tolerance = 3e-5 if dtype == "float32" else 1e-12
    for value, expected in zip(got[3:], want[3:], strict=True):
        np.testing.assert_allclose(backend.to_numpy(value), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 7])  # the order of threads
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (65, 31, 4), (130, 32, 5), (300, 33, 10), (257, 70, 16), (64, 7, 13)]
)
def test_a_narrow_layer(device: Backend, sizes: tuple[int, int, int], seed: int, dtype: str) -> None:
    batch, units, outputs = sizes
    device.xp.thread_order = seed
    arrays = [normal(dtype, *shape) for shape in ((batch, units), (units, outputs), (outputs,), (batch, outputs))]
    got = [device.asarray(array) for array in arrays]
    tolerance = {"float32": 1e-4, "float64": 1e-12}[dtype]
    inside, whole = guarded(device, np.zeros((batch, outputs), dtype))
    device.dense_forward(*got[:3], get_activation("identity"), inside, inside)
    x, weight, bias, delta = arrays
    np.testing.assert_allclose(device.to_numpy(inside), x @ weight + bias, rtol=tolerance, atol=tolerance)
    assert (device.to_numpy(whole) == 77).sum() == 32
    for keep in (0.0, 0.9):
        before = normal(dtype, units, outputs) if keep else np.full((units, outputs), np.nan, dtype)
        results = [(before, keep * np.nan_to_num(before) + x.T @ delta), (bias, delta.sum(axis=0))]
        results += [(x, delta @ weight.T)] * (keep == 0)  # without it, the third array is None
        pairs = [guarded(device, array) for array, _ in results]
        gradient, sums, below = [inside for inside, _ in pairs] + [None] * (keep != 0)
        watch(device)
        device.dense_backward(got[0], got[1], got[3], Accumulation(gradient, keep=keep), sums, below)
        assert launched(device) in (None, ["narrow_backward"])
        for (inside, whole), (_, expected) in zip(pairs, results, strict=True):
            np.testing.assert_allclose(device.to_numpy(inside), expected, rtol=tolerance, atol=tolerance)
            assert (device.to_numpy(whole) == 77).sum() == 32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(300, 10), (600, 65)])
def test_sums_have_the_same_bits_in_any_order_of_threads(sizes: tuple[int, int], dtype: str) -> None:
    backend, rule, found = host_cuda_backend(), get_activation("tanh"), set()
    delta, saved, x = normal(dtype, *sizes), normal(dtype, *sizes), normal(dtype, sizes[0], 5)
    weight = normal(dtype, 5, sizes[1])
    for seed in range(4):
        backend.xp.thread_order = seed
        got = [backend.asarray(array) for array in (x, weight, delta, saved)]
        sums = [backend.asarray(np.zeros(sizes[1], dtype)) for _ in range(2)]
        gradient = backend.asarray(np.zeros_like(weight))
        backend.dense_backward(*got[:3], Accumulation(gradient), sums[0], None)
        backend.activation_backward(rule, got[3], got[2], sums[1])
        found.add(tuple(backend.to_numpy(array).tobytes() for array in (gradient, *sums)))
        np.testing.assert_allclose(backend.to_numpy(sums[0]), delta.sum(axis=0), rtol=1e-4, atol=1e-4)
    assert len(found) == 1


def check_output_error(device: Backend, loss: Loss, want: list[np.ndarray], kernel: str, tolerance: float) -> None:
    """Assert that a device computes what the reference does, in one launch, and writes nothing else."""
    pairs = [guarded(device, array) for array in want]
    watch(device)
    device.output_error(loss, *[inside for inside, _ in pairs])
    assert launched(device) in (None, [kernel])
    reference_backend(np).output_error(loss, *want)
    for (inside, whole), expected in zip(pairs, want, strict=True):
        np.testing.assert_allclose(device.to_numpy(inside), expected, rtol=tolerance, atol=tolerance)
        edges = device.to_numpy(whole)
        np.testing.assert_array_equal(np.r_[edges[:16], edges[-16:]], np.full(32, 77, edges.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 1e4])
@pytest.mark.parametrize("loss", [LOSS, SoftmaxCrossEntropy(label_smoothing=0.1)])
@pytest.mark.parametrize("shape", [(1, 2), (64, 10), (65, 64), (300, 3), (9, 200)])
def test_softmax_cross_entropy(
    device: Backend, shape: tuple[int, int], loss: SoftmaxCrossEntropy, scale: float, dtype: str
) -> None:
    batch, classes = shape
    logits = np.round(normal(dtype, batch, classes), 1)  # rounded, so that some are equal
    logits *= np.dtype(dtype).type(scale)
    want = [logits, RNG.integers(0, classes, batch), np.zeros(batch, dtype), np.zeros(batch, bool)]
    check_output_error(device, loss, want, "softmax_cross_entropy", 3e-6 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "loss", [LogisticCrossEntropy(), LogisticCrossEntropy(0.1), SquaredError(), PoissonDeviance()]
)
@pytest.mark.parametrize("shape", [(1, 1), (300, 3), (33, 70)])
def test_the_other_losses(device: Backend, shape: tuple[int, int], loss: Loss, dtype: str) -> None:
    targets = (RNG.random(shape) < 0.5).astype(dtype)  # 0 and 1, which each of them supports
    outputs = normal(dtype, *shape) * (30 if loss.task == "labels" else 2)
    outputs[0, 0] = 0
    want = [outputs, targets, np.zeros(shape[0], dtype), new_scores(np, loss.task, *shape, dtype)]
    check_output_error(device, loss, want, "independent_outputs", 1e-5 if dtype == "float32" else 1e-13)
    broken = [device.asarray(array) for array in (np.full(shape, np.nan, dtype), *want[1:])]
    device.output_error(loss, *broken)
    assert np.isnan(device.to_numpy(broken[2])).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", [Penalty(), Penalty(l2=0.1), Penalty(l1=0.01), Penalty(l2=0.1, l1=0.01)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_update(device: Backend, optimizer: SGD | Adam, penalty: Penalty, dtype: str) -> None:
    theta, gradients = normal(dtype, 320), [normal(dtype, 320) for _ in range(3)]
    theta[:5] = 0
    backend, results = device, []
    for candidate in (backend, reference_backend(np)):
        parameters = candidate.asarray(theta.copy()) if candidate is backend else theta.copy()
        state = optimizer.init(parameters)
        state.weights = slice(64, 256)
        for step in range(3):
            g = candidate.asarray(gradients[step]) if candidate is backend else gradients[step].copy()
            watch(backend)
            candidate.update(optimizer, penalty, parameters, g, slice(64, 256), state, 0.1 / (step + 1))
            if candidate is backend:
                assert launched(backend) is None or len(launched(backend)) == 1
        arrays = [parameters, g, *state.buffers.values()]
        results.append([backend.to_numpy(a) if candidate is backend else a for a in arrays])
        assert state.steps == 3
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_activation_with_its_derivative_from_the_input(
    device: Backend, shape: tuple[int, int], dtype: str
) -> None:
    batch, units = shape
    x, weight, bias = normal(dtype, batch, 5), normal(dtype, 5, units), normal(dtype, units)
    s, a, delta = np.zeros(shape, dtype), np.zeros(shape, dtype), normal(dtype, batch, units)
    rule = Quadratic()
    got = [device.asarray(array.copy()) for array in (x, weight, bias, s, a, delta)]
    watch(device)
    device.dense_forward(*got[:3], rule, *got[3:5])
    assert launched(device) in (None, ["matmul", "bias_activation_apart"])
    device.activation_backward(rule, got[3], got[5])
    reference_backend(np).dense_forward(x, weight, bias, rule, s, a)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for value, expected in zip(got[3:], (s, a, delta * 2 * s), strict=True):
        np.testing.assert_allclose(device.to_numpy(value), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_dropout(device: Backend, shape: tuple[int, int], rate: float, dtype: str) -> None:
    x, draws = normal(dtype, *shape), Draws(2**63 + 5, DROPOUT, 2**33 + 1, 2, 1000)
    want, kept = np.zeros_like(x), np.zeros(shape, bool)
    reference_backend(np).dropout(x, rate, draws, kept, want)
    inside, whole = guarded(device, np.zeros_like(x))
    watch(device)
    device.dropout(device.asarray(x), rate, draws, None, inside)
    assert launched(device) in (None, ["dropout"])
    np.testing.assert_array_equal(device.to_numpy(inside), want)  # to the last bit
    assert (device.to_numpy(whole) == 77).sum() == 32
    device.dropout_backward(inside, rate, draws, None)
    reference_backend(np).dropout_backward(want, rate, draws, kept)
    np.testing.assert_array_equal(device.to_numpy(inside), want)


DISTORTIONS = {
    "all": Distortion(7.5, 0.12, 0.12, 2.0, (34, 4)),
    "none": Distortion(),
    "elastic": Distortion(elastic=(8, 1)),
    "half turns": Distortion(rotation=180, translation=28),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (20, 33), (1, 5)])
def test_distort(device: Backend, shape: tuple[int, int], name: str, dtype: str) -> None:
    """Pixels are those of array code to one grey level at most, on the CPU to the last bit."""
    rows, epoch = RNG.integers(0, 40, 9), np.array([2**40], np.uint64)
    numbers = np.array([0, 1, 2**33, *range(6)])
    for source in (RNG.integers(0, 256, (40, *shape), dtype=np.uint8), normal(dtype, 40, *shape)):
        source = source.reshape(40, -1)
        want = np.zeros((9, source.shape[1]), dtype)
        warp = DISTORTIONS[name].warp(shape, 2**63 + 5, get_backend("cpu"))
        reference_backend(np).distort(source, rows, numbers, epoch, warp, want)
        inside, whole = guarded(device, np.zeros_like(want))
        warp = DISTORTIONS[name].warp(shape, 2**63 + 5, device)
        arrays = [device.asarray(array) for array in (source, rows, numbers, epoch)]
        watch(device)
        device.distort(*arrays, warp, inside)
        kernel = "distort_pixels" if source.dtype == np.uint8 else "distort_rows"
        assert launched(device) in (None, [kernel])
        got = device.to_numpy(inside)
        # On a GPU the sine and the cosine may differ in the last bit, and so a place by 1/256 of a pixel.
        span = 1.0 if source.dtype == np.uint8 else float(np.ptp(source))
        least = 0.0 if source.dtype == np.uint8 else 1e-5
        np.testing.assert_allclose(got, want, rtol=0, atol=least if launched(device) else 1.01 * span / 255)
        assert (device.to_numpy(whole) == 77).sum() == 32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weigh(device: Backend, shape: tuple[int, int], dtype: str) -> None:
    want = [normal(dtype, *shape), normal(dtype, shape[0]), normal(dtype, shape[0])]
    pairs = [guarded(device, array) for array in want]
    watch(device)
    device.weigh(*(inside for inside, _ in pairs))
    assert launched(device) in (None, ["weigh"])
    reference_backend(np).weigh(*want)
    for (inside, whole), expected in zip(pairs, want, strict=True):
        np.testing.assert_array_equal(device.to_numpy(inside), expected)
        assert (device.to_numpy(whole) == 77).sum() == 32


def test_a_nan_loss_stays_nan(device: Backend) -> None:
    backend = device
    logits, s = np.zeros((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    logits[0, 1] = np.nan
    losses = backend.asarray(np.zeros(2, np.float32))
    backend.output_error(
        LOSS,
        backend.asarray(logits),
        backend.asarray(np.zeros(2, np.int64)),
        losses,
        backend.asarray(np.zeros(2, bool)),
    )
    assert np.isnan(backend.to_numpy(losses)).tolist() == [True, False]
    for name in ACTIVATIONS:
        on_device = backend.asarray(s)
        backend.kernels(np.dtype(np.float32)).bias_activation(
            on_device, backend.asarray(np.zeros(3, np.float32)), cuda_activation(get_activation(name))
        )
        assert np.isnan(backend.to_numpy(on_device)).all(), name


def test_a_small_grid_processes_the_whole_array(device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_MOST_BLOCKS", 2)
    monkeypatch.setattr(kernels, "_SUMMING_BLOCKS", 2)
    test_a_narrow_layer(device, (300, 33, 10), 0, "float32")
    test_gather(device, (130, 200), "float32")
    test_dense_forward(device, (130, 200), "tanh", "float32")
    test_dense_backward(device, (130, 200), "float32")
    test_activation_backward(device, (130, 200), "sigmoid", "float32")
    test_an_activation_with_its_derivative_from_the_input(device, (130, 200), "float32")
    test_dropout(device, (300, 13), 0.5, "float32")
    test_weigh(device, (130, 200), "float32")
    test_softmax_cross_entropy(device, (300, 10), LOSS, 1, "float32")
    test_the_other_losses(device, (300, 3), SquaredError(), "float32")
    test_update(device, Adam(), Penalty(l2=0.1), "float32")


class MyReLU(ReLU):
    """A subclass with another function, to which the kernel does not apply."""

    name = "my_relu"

    def forward(self, xp: object, s: object, out: object) -> None:
        xp.multiply(s, 3, out=out)

    def backward(self, xp: object, a: object, delta: object) -> None:
        xp.multiply(delta, 3, out=delta)


class Softsign(Activation):
    """A custom activation, h(s) = s / (1 + |s|) and h' = (1 - |a|)^2, with CUDA expressions."""

    name = "softsign"
    cuda = CudaActivation("s / (1 + fabs(s))", "(1 - fabs(a)) * (1 - fabs(a))")

    def forward(self, xp: object, s: object, out: object) -> None:
        out[...] = s / (xp.abs(s) + 1)

    def backward(self, xp: object, a: object, delta: object) -> None:
        delta[...] = delta * (1 - xp.abs(a)) * (1 - xp.abs(a))


class Quadratic(Activation):
    """h(s) = s^2, whose derivative needs s."""

    name = "quadratic"
    derivative_from = "input"
    cuda = CudaActivation("s * s", "2 * s", derivative_from="input")

    def forward(self, xp: object, s: object, out: object) -> None:
        xp.multiply(s, s, out=out)

    def backward(self, xp: object, saved: object, delta: object) -> None:
        xp.multiply(delta, saved * 2, out=delta)


class Mistaken(Quadratic):
    """An activation whose CUDA expression does not say that the derivative is from the input."""

    name = "mistaken"
    cuda = CudaActivation("s * s", "2 * s")


class MySGD(SGD):
    """A subclass with another rule."""

    def update(
        self, xp: object, parameters: object, gradient: object, state: object, learning_rate: float
    ) -> None:
        xp.multiply(gradient, 2 * learning_rate, out=state.scratch)
        xp.subtract(parameters, state.scratch, out=parameters)


def test_custom_rules_are_computed_as_defined(blobs: Dataset) -> None:
    weights = []
    for device in ("cpu", host_cuda_backend()):
        model = MLP([20, 16, 4], activation=MyReLU(), device=device)
        Trainer(model, blobs, optimizer=MySGD(0.01), batch_size=64).run(2)
        weights.append(model.state_dict())
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_narrow_is_a_product() -> None:
    backend = host_cuda_backend()
    assert is_narrow(backend.asarray(np.zeros((1024, 12), np.float32)))
    for sizes in ((1025, 12), (5, 17)):  # the first does not fit into shared memory
        weight = backend.asarray(np.zeros(sizes, np.float32))
        x, bias, s = (
            backend.asarray(np.zeros(shape, np.float32)) for shape in ((3, sizes[0]), sizes[1], (3, sizes[1]))
        )
        watch(backend)
        backend.dense_forward(x, weight, bias, get_activation("identity"), s, s)
        assert launched(backend) == ["matmul", "bias_activation"]


# -- What a step launches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "launches"), [([20, 4], 5), ([20, 16, 4], 9), ([20, 32, 24, 4], 14), ([20, 16, 17], 12)]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_the_launches_of_a_step(blobs: Dataset, sizes: list[int], launches: int, optimizer: SGD | Adam) -> None:
    backend = host_cuda_backend()
    trainer = Trainer(
        MLP(sizes, device=backend), blobs, optimizer=optimizer, penalty=Penalty(l2=1e-4), batch_size=32
    )
    trainer.run(1)
    for batch in trainer.batches.slices:  # including the smaller last batch
        backend.xp.launches.clear()
        with backend.ledger.counting() as ledger:
            trainer._step(batch, 0.1)
        assert len(backend.xp.launches) == launches
        assert ledger.allocations == []
        assert ledger.host_reads == ledger.host_writes == ledger.waits == 0


@pytest.mark.parametrize(("precision", "compute_type"), [("highest", 1), ("high", 7)])
def test_the_precision_of_products_applies_while_the_backend_is_active(precision: str, compute_type: int) -> None:
    backend = host_cuda_backend(matmul_precision=precision)
    setting = backend.xp._core._routines_linalg
    for others in (1, 7):  # the setting of the rest of the program
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
    "operation",
    [
        *("gather", "dense_forward", "dense_backward", "activation_backward", "output_error", "weigh", "dropout"),
        *("update", "run_steps", "execution", "distort"),
    ],
)
def test_the_overrides_have_the_signature_of_the_reference(operation: str) -> None:
    override = getattr(type(host_cuda_backend()), operation)
    assert override is not getattr(Backend, operation)
    assert inspect.signature(override) == inspect.signature(getattr(Backend, operation))


def test_the_fake_refuses_arguments_that_a_gpu_would_misread() -> None:
    backend = host_cuda_backend()
    code = kernel_source("layers.cu")
    kernel = backend.xp.RawModule(code=code, options=("-DREAL=float",)).get_function("column_sums")
    values, sums = backend.asarray(np.ones((2, 3), np.float32)), backend.asarray(np.zeros(3, np.float32))
    unused = (sums, np.uint64(0))  # by a single block
    kernel((1,), (32, 32), (values, np.int64(2), np.int64(3), *unused, sums))
    assert backend.to_numpy(sums).tolist() == [2, 2, 2]
    for arguments in (
        (values, np.int32(2), np.int64(3), *unused, sums),
        (values, 2, np.int64(3), *unused, sums),
        (values, np.int64(2), np.int64(3), *unused),
        (values, np.int64(2), np.int64(3), *unused, backend.asarray(np.zeros(3))),
        (values.T, np.int64(2), np.int64(3), *unused, sums),
    ):
        with pytest.raises(AssertionError):
            kernel((1,), (32, 32), arguments)


def test_python_and_cuda_number_the_rules_alike() -> None:
    source = kernel_source("layers.cu", "losses.cu", "optimizers.cu")
    defined = {name: int(number) for name, number in re.findall(r"#define (\w+) (\d+)", source)}
    losses = {name.partition("_")[0]: code for code, name in enumerate(LOSSES) if name != "softmax_cross_entropy"}
    for codes in (kernels._SGD_CODES, losses):
        assert {name.upper(): code for name, code in codes.items()}.items() <= defined.items()
    assert (defined["SUM_COLUMNS"], defined["SUM_ROWS"]) == kernels._SUM_BLOCK
    assert (32, defined["NARROW_ROWS"]) == kernels._NARROW_BLOCK
    assert (defined["NARROW"], defined["AT_ONCE"]) == (kernels.NARROW, kernels._AT_ONCE)


def test_a_subclass_or_object_that_changes_a_rule_does_not_use_its_kernel() -> None:
    class Same(ReLU):
        name = "same"

    class Mixed(Softsign, ReLU):
        """Inherits methods and attribute from the first class."""

    class Stated(MyReLU):
        cuda = CudaActivation("s * 3", "3")

    assert cuda_activation(Same()) is ReLU.cuda
    assert cuda_activation(Mixed()) is Softsign.cuda
    assert cuda_activation(Stated()) is Stated.cuda
    assert cuda_activation(MyReLU()) is None
    assert cuda_activation(Quadratic()) is Quadratic.cuda
    assert cuda_activation(Mistaken()) is None
    changed = ReLU()
    changed.forward = MyReLU().forward
    assert cuda_activation(changed) is None
    assert optimizer_kernel(SGD()) == "sgd"
    assert optimizer_kernel(MySGD()) is None


def test_a_custom_activation_with_cuda_expressions_runs_in_the_kernels(blobs: Dataset) -> None:
    losses = []
    for device in ("cpu", host_cuda_backend()):
        model = MLP([20, 16, 4], activation=Softsign(), seed=1, device=device)
        losses.append(Trainer(model, blobs, optimizer=SGD(0.01), batch_size=64).run(2)["train_loss"])
    assert {"bias_activation", "activation_backward"} <= set(device.xp.launches)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize(("architecture", "real"), [("sm_80", "float"), ("sm_90", "double")])
def test_the_source_compiles(tmp_path: Path, architecture: str, real: str) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed: the CUDA source cannot be compiled")
    source = tmp_path / "kernels.cu"
    source.write_text(kernel_source(*SOURCES, activation=get_activation("sigmoid").cuda))
    command = [
        compiler,
        "-cubin",
        f"-arch={architecture}",
        f"-DREAL={real}",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v",
    ]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "kernels.cubin"), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert report.count("0 bytes spill stores, 0 bytes spill loads") == report.count("bytes spill stores") > 0
