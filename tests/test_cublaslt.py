"""Matrix products by cuBLASLt, on a fake with its column-major matrices and epilogues."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpumlp import MLP, SGD, Adam, Dataset, ExponentialDecay, Penalty, Trainer
from gpumlp.backends import Accumulation
from gpumlp.backends.cuda.cublaslt import Products
from gpumlp.backends.cuda.graphs import NotCapturableError
from gpumlp.nn.activations import get_activation
from tests.gpu_helpers import gpu_backend
from tests.host_cublaslt import host_bindings
from tests.host_cuda import HostCupy, host_cuda_backend, load_cupy_backend

RNG = np.random.default_rng(4)


def normal(dtype: str, *shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def launches(backend: object) -> list[str]:
    return list(backend.xp.launches)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (33, 7, 10)])
@pytest.mark.parametrize("turned", ["neither", "left", "right"])
def test_products_of_matrices_and_their_transposes(turned: str, sizes: tuple[int, int, int], dtype: str) -> None:
    m, k, n = sizes
    backend = host_cuda_backend(cublaslt=True)
    x, y, out = (backend.asarray(normal(dtype, *shape)) for shape in ((m, k), (k, n), (m, n)))
    if turned == "left":
        x = backend.asarray(normal(dtype, k, m)).T
    if turned == "right":
        y = backend.asarray(normal(dtype, n, k)).T
    for _ in range(2):  # on first use an algorithm is selected
        backend.xp.launches.clear()
        assert backend.products().matmul(x, y, out)
        np.testing.assert_allclose(backend.to_numpy(out), x._data @ y._data, rtol=1e-5, atol=1e-6)
    assert launches(backend) == ["lt-DEFAULT"]


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_bias_and_relu_are_part_of_the_forward_product(activation: str) -> None:
    backend, rule = host_cuda_backend(cublaslt=True), get_activation(activation)
    shapes = ((9, 5), (5, 20), (20,), (9, 20), (9, 20))
    x, weight, bias, s, a = (normal("float32", *shape) for shape in shapes)
    device = [backend.asarray(array) for array in (x, weight, bias, s, a)]
    for _ in range(2):
        backend.xp.launches.clear()
        backend.dense_forward(*device[:3], rule, *device[3:])
        np.testing.assert_allclose(backend.to_numpy(device[4]), rule(x @ weight + bias), rtol=1e-5, atol=1e-6)
    assert launches(backend) == ["lt-RELU_BIAS" if activation == "relu" else "lt-BIAS"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("known", [True, False])
def test_the_weight_gradient_is_added_where_an_accumulation_says(known: bool, dtype: str) -> None:
    backend = host_cuda_backend(cublaslt=True, unknown=() if known else ("DEFAULT",))
    x, delta, start = normal(dtype, 9, 5), normal(dtype, 9, 20), normal(dtype, 5, 20)
    device = [backend.asarray(array) for array in (x, np.zeros_like(start), delta)]
    out, expected = backend.asarray(start), start
    for keep in (0.9, 0.5, 0.9, 0.0, 1.0):  # also the first product, of which there is a trial
        backend.xp.launches.clear()
        backend.dense_backward(*device, Accumulation(out, keep=keep), None, None)
        expected = keep * expected + x.T @ delta
        np.testing.assert_allclose(backend.to_numpy(out), expected, rtol=1e-5, atol=1e-5)
    if known:
        assert launches(backend) == ["lt-DEFAULT"]


def test_momentum_is_part_of_the_product_and_other_rules_read_the_gradient(blobs: Dataset) -> None:
    optimizers = [SGD(momentum=0.9), SGD(), SGD(momentum=0.9, nesterov=True), Adam()]
    for number, optimizer in enumerate(optimizers):
        trainers = []
        for device in (host_cuda_backend(cublaslt=True), "cpu"):
            model = MLP([20, 30, 20, 4], seed=1, device=device, dtype="float64")
            options = {"optimizer": optimizer, "penalty": Penalty(l2=1e-3, l1=1e-4), "batch_size": 64}
            trainers.append(Trainer(model, blobs, schedule=ExponentialDecay(0.5), **options))
            trainers[-1].run(3)
        gradients = trainers[0].model.backend.to_numpy(trainers[0].model.layers[0].weight_gradient)
        assert np.isnan(gradients).all() == (number == 0)  # the others are stored
        for name, expected in trainers[1].model.state_dict().items():
            np.testing.assert_allclose(trainers[0].model.state_dict()[name], expected, rtol=1e-9, atol=1e-11)


def test_each_layer_has_its_own_bias_though_shapes_are_equal() -> None:
    backend, weights = host_cuda_backend(cublaslt=True), []
    x, s, a = (backend.asarray(normal("float32", 6, 4)) for _ in range(3))
    weight = backend.asarray(np.eye(4, dtype=np.float32))
    for value in (1, 5, 1, 5):
        weights.append(backend.asarray(np.full(4, value, np.float32)))
        backend.dense_forward(x, weight, weights[-1], get_activation("identity"), s, a)
        np.testing.assert_allclose(backend.to_numpy(a), x._data + value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unknown", [("RELU_BIAS",), ("BIAS",), ("DEFAULT",)])
def test_unsupported_products_are_computed_by_cupy(blobs: Dataset, unknown: tuple[str, ...]) -> None:
    weights = []
    for device in ("cpu", host_cuda_backend(cublaslt=True, unknown=unknown)):
        model = MLP([20, 32, 24, 20], device=device)
        Trainer(model, blobs, batch_size=64).run(2)
        weights.append(model.state_dict())
    assert not {f"lt-{name}" for name in unknown} & set(device.xp.launches)
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epilogue", ["DEFAULT", "RELU_BIAS", "beta"])
def test_a_product_whose_launch_fails_is_computed_by_cupy(blobs: Dataset, epilogue: str) -> None:
    backend = host_cuda_backend(cublaslt=True)
    backend.products()._lt.refused.add(epilogue)
    model, expected = MLP([20, 24, 4], device=backend), MLP([20, 24, 4], device="cpu")
    with pytest.warns(UserWarning, match="cuBLASLt failed for .* CuPy's product is used: CUBLAS_STATUS"):
        Trainer(model, blobs, optimizer=SGD(momentum=0.9), batch_size=64).run(2)
    Trainer(expected, blobs, optimizer=SGD(momentum=0.9), batch_size=64).run(2)
    for name, values in expected.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_a_relu_that_does_not_propagate_nan_is_not_used(nan_to_zero: bool) -> None:
    backend, relu = host_cuda_backend(cublaslt=True), get_activation("relu")
    backend.products()._lt.nan_to_zero = nan_to_zero
    x, weight, bias, s, a = (
        backend.asarray(normal("float32", *shape)) for shape in ((9, 5), (5, 4), (4,), (9, 4), (9, 4))
    )
    broken = backend.asarray(np.array([1, np.nan, 1, 1], np.float32))
    for vector in (bias, broken, bias):
        backend.xp.launches.clear()
        backend.dense_forward(x, weight, vector, relu, s, a)
        expected = relu(x._data @ weight._data + vector._data)
        np.testing.assert_allclose(backend.to_numpy(a), expected, rtol=1e-5, atol=1e-6)
    assert launches(backend) == (["lt-DEFAULT", "bias_activation"] if nan_to_zero else ["lt-RELU_BIAS"])


def test_unsupported_arrays_are_left_to_cupy() -> None:
    backend = host_cuda_backend(cublaslt=True)
    products, wide = backend.products(), backend.asarray(normal("float32", 6, 8))
    square = backend.asarray(normal("float32", 4, 4))
    assert not products.matmul(wide[:, :4], square, backend.asarray(np.empty((6, 4), np.float32)))  # gaps
    assert not products.matmul(square, square, backend.asarray(np.empty((4, 4))))  # another dtype
    assert not products.matmul(square, square, square.T)
    products.alignment = 2**40
    assert not products.matmul(square, square, backend.asarray(np.empty((4, 4), np.float32)))


def test_in_a_capture_only_algorithms_that_were_chosen_before_are_used() -> None:
    backend = host_cuda_backend(cublaslt=True)
    products, square = backend.products(), backend.asarray(normal("float32", 4, 4))
    out = backend.asarray(np.empty((4, 4), np.float32))
    products.capturing = True
    with pytest.raises(NotCapturableError):
        products.matmul(square, square, out)
    products.capturing = False
    products.matmul(square, square, out)
    products.capturing = True
    assert products.matmul(square, square, out)


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adam()])
@pytest.mark.parametrize(("sizes", "count"), [([20, 4], 5), ([20, 16, 4], 8), ([20, 32, 24, 4], 12)])
def test_a_step_is_four_launches_a_layer(
    blobs: Dataset, sizes: list[int], count: int, optimizer: SGD | Adam
) -> None:
    backend = host_cuda_backend(cublaslt=True)
    trainer = Trainer(MLP(sizes, device=backend), blobs, optimizer=optimizer, batch_size=32)
    trainer.run(1)
    for batch in trainer.batches.slices:
        backend.xp.launches.clear()
        trainer._step(batch, 0.1)
        assert len(backend.xp.launches) == count


@pytest.mark.parametrize(("precision", "compute_type"), [("highest", 68), ("high", 77)])
def test_the_precision_is_part_of_the_product(precision: str, compute_type: int) -> None:
    backend = host_cuda_backend(cublaslt=True, matmul_precision=precision)
    square = backend.asarray(normal("float32", 4, 4))
    assert backend.products().matmul(square, square, backend.asarray(np.empty((4, 4), np.float32)))
    assert backend.products()._lt.compute_types == [compute_type]


def test_the_bindings_are_found_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = HostCupy()
    module = load_cupy_backend(cupy)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert module._find_products(False) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nvmath", SimpleNamespace(bindings=host_bindings(cupy.launched)))
    assert isinstance(module._find_products(False), Products)
    monkeypatch.setitem(sys.modules, "nvmath", SimpleNamespace())
    with pytest.warns(RuntimeWarning, match="nvmath-python is installed, but cannot be used"):
        assert module._find_products(False) is None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_on_a_gpu_training_uses_cublaslt(blobs: Dataset, precision: str) -> None:
    backend = gpu_backend(matmul_precision=precision, execution="eager")
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    sizes = [20, 16, 12, 20]  # more outputs than a narrow layer has
    model, expected = MLP(sizes, device=backend), MLP(sizes, device="cpu")
    for network in (model, expected):
        Trainer(network, blobs, batch_size=64, validation=50).run(2)
    plans = backend.products()._plans
    assert {key[0] for key in plans} == {"DEFAULT", "BIAS", "RELU_BIAS"}
    left = {key[0] for key, plan in plans.items() if plan is None}
    # RELU_BIAS is not used if it does not propagate NaN. Products with and without a bias must be supported.
    assert left <= {"RELU_BIAS"}
    tolerance = 1e-3 if precision == "highest" else 0.1
    for name, values in expected.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], values, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(32, 784, 128), (128, 784, 128), (100, 128, 10), (7, 13, 3), (1024, 512, 512)])
def test_on_a_gpu_products_and_epilogues_are_right(shape: tuple[int, int, int], dtype: str) -> None:
    backend = gpu_backend()
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    batch, m, n = shape
    x, weight, bias, delta = (normal(dtype, *size) for size in ((batch, m), (m, n), (n,), (batch, n)))
    with backend.activate():
        device = [backend.asarray(array) for array in (x, weight, bias, delta)]
        s, a, below = (backend.xp.empty(size, dtype) for size in ((batch, n), (batch, n), (batch, m)))
        gradient, sums = backend.xp.empty((m, n), dtype), backend.xp.empty(n, dtype)
        x64, w64, b64, d64 = (array.astype("float64") for array in (x, weight, bias, delta))
        for name in ("identity", "relu"):
            backend.dense_forward(*device[:3], get_activation(name), s, a)
            relative(backend.to_numpy(a), get_activation(name)(x64 @ w64 + b64), dtype)
        backend.dense_backward(device[0], device[1], device[3], Accumulation(gradient), sums, below)
    relative(backend.to_numpy(gradient), x64.T @ d64, dtype)
    relative(backend.to_numpy(sums), d64.sum(axis=0), dtype)
    relative(backend.to_numpy(below), d64 @ w64.T, dtype)


def relative(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    """The error relative to the largest value, which a wrong layout would make large."""
    assert np.abs(got - want).max() <= {"float32": 1e-5, "float64": 1e-13}[dtype] * np.abs(want).max()
