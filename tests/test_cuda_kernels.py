"""The CUDA kernels and the code that calls them, compiled for the processor and held against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, Penalty, ReLU, Trainer
from gpumlp.backends import Backend, cuda_kernels, cuda_rules, reference_backend
from gpumlp.backends.cuda_rules import ACTIVATION_CODES
from gpumlp.nn.activations import ACTIVATIONS, get_activation
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import host_cuda_backend

DTYPES = ["float32", "float64"]
SHAPES = [(1, 1), (7, 3), (33, 65), (128, 10), (130, 31)]  # around the sizes of blocks
OPTIMIZERS = [SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Adam()]
RNG = np.random.default_rng(3)


def normal(dtype: str, *shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Backend:
    """The kernels on the processor, and on a GPU where there is one."""
    return host_cuda_backend() if request.param == "host" else gpu_backend()


def watch(backend: Backend) -> None:
    """Forget what was launched so far."""
    getattr(backend.xp, "launches", []).clear()


def launched(backend: Backend) -> list[str] | None:
    """What was launched since, where the device can tell."""
    return getattr(backend.xp, "launches", None)


def guarded(backend: Backend, array: np.ndarray) -> tuple[object, object]:
    """The array on the device, and the larger one of 77s around it, in which nothing may change."""
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
    assert launched(backend) in (None, ["matmul", "bias_activation"])
    reference_backend(np).dense_forward(x, weight, bias, rule, s, a)
    tolerance = 3e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(backend.to_numpy(arrays[4]), a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_backward(device: Backend, shape: tuple[int, int], activation: str, dtype: str) -> None:
    batch, units = shape
    rule = get_activation(activation)
    arrays = [rule(normal(dtype, batch, 5)), normal(dtype, 5, units), normal(dtype, batch, units)]
    want = [*(array.copy() for array in arrays), *(np.empty(n, dtype) for n in ((5, units), units, (batch, 5)))]
    backend = device
    got = [backend.asarray(array.copy()) for array in want]
    watch(backend)
    backend.dense_backward(*got[:5], rule, got[5])
    assert launched(backend) in (None, ["matmul", "column_sums", "matmul", "activation_backward"])
    reference_backend(np).dense_backward(*want[:5], rule, want[5])
    tolerance = 3e-5 if dtype == "float32" else 1e-12
    for value, expected in zip(got[3:], want[3:], strict=True):
        np.testing.assert_allclose(backend.to_numpy(value), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 1e4])
@pytest.mark.parametrize("shape", [(1, 2), (64, 10), (65, 64), (300, 3)])
def test_softmax_cross_entropy(device: Backend, shape: tuple[int, int], scale: float, dtype: str) -> None:
    batch, classes = shape
    logits = np.round(normal(dtype, batch, classes), 1) * np.dtype(dtype).type(scale)  # rounded: some are equal
    want = [logits, RNG.integers(0, classes, batch), np.zeros(batch, dtype), np.zeros(batch, bool)]
    backend = device
    pairs = [guarded(backend, array) for array in want]
    watch(backend)
    backend.softmax_cross_entropy(*[inside for inside, _ in pairs])
    assert launched(backend) in (None, ["softmax_cross_entropy"])
    reference_backend(np).softmax_cross_entropy(*want)
    tolerance = 3e-6 if dtype == "float32" else 1e-13
    for (inside, whole), expected in zip(pairs, want, strict=True):
        np.testing.assert_allclose(backend.to_numpy(inside), expected, rtol=tolerance, atol=tolerance)
        edges = backend.to_numpy(whole)
        np.testing.assert_array_equal(np.r_[edges[:16], edges[-16:]], np.full(32, 77, edges.dtype))


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


def test_a_loss_that_is_not_a_number_stays_so(device: Backend) -> None:
    backend = device
    logits, s = np.zeros((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    logits[0, 1] = np.nan
    losses = backend.asarray(np.zeros(2, np.float32))
    backend.softmax_cross_entropy(
        backend.asarray(logits), backend.asarray(np.zeros(2, np.int64)), losses, backend.asarray(np.zeros(2, bool))
    )
    assert np.isnan(backend.to_numpy(losses)).tolist() == [True, False]
    for name in ACTIVATIONS:
        on_device = backend.asarray(s)
        backend.kernels(np.dtype(np.float32)).bias_activation(
            on_device, backend.asarray(np.zeros(3, np.float32)), ACTIVATION_CODES[_full_name(name)], 0.01
        )
        assert np.isnan(backend.to_numpy(on_device)).all(), name


def _full_name(activation: str) -> str:
    return cuda_rules.full_name(ACTIVATIONS[activation]())


def test_a_small_grid_does_all_the_work(device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "_MOST_BLOCKS", 2)
    test_gather(device, (130, 200), "float32")
    test_dense_forward(device, (130, 200), "tanh", "float32")
    test_dense_backward(device, (130, 200), "sigmoid", "float32")
    test_softmax_cross_entropy(device, (300, 10), 1, "float32")
    test_update(device, Adam(), Penalty(l2=0.1), "float32")


class MyReLU(ReLU):
    """A subclass may compute anything, so no kernel stands for it."""

    name = "my_relu"

    def forward(self, xp: object, s: object, out: object) -> None:
        xp.multiply(s, 3, out=out)

    def backward(self, xp: object, a: object, delta: object) -> None:
        xp.multiply(delta, 3, out=delta)


class MySGD(SGD):
    """Likewise."""

    def update(
        self, xp: object, parameters: object, gradient: object, state: object, learning_rate: float
    ) -> None:
        xp.multiply(gradient, 2 * learning_rate, out=state.scratch)
        xp.subtract(parameters, state.scratch, out=parameters)


def test_rules_of_the_users_own_are_computed_as_they_say(blobs: Dataset) -> None:
    weights = []
    for device in ("cpu", host_cuda_backend()):
        model = MLP([20, 16, 4], activation=MyReLU(), device=device)
        Trainer(model, blobs, optimizer=MySGD(0.01), batch_size=64).run(2)
        weights.append(model.state_dict())
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=1e-4, atol=1e-5)


def test_more_classes_than_a_thread_should_take_go_by_the_reference() -> None:
    backend, logits = host_cuda_backend(), normal("float32", 5, 100)
    labels = RNG.integers(0, 100, 5)
    arrays = [backend.asarray(a) for a in (logits, labels, np.empty(5, np.float32), np.zeros(5, bool))]
    backend.xp.launches.clear()
    backend.softmax_cross_entropy(*arrays)
    assert "softmax_cross_entropy" not in backend.xp.launches
