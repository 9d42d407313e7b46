"""Every device agrees with the reference in `Backend`; unusable devices are reported."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpumlp import (
    MLP,
    LogisticCrossEntropy,
    PoissonDeviance,
    ReLU,
    SoftmaxCrossEntropy,
    SquaredError,
    Tanh,
    available_devices,
    get_backend,
)
from gpumlp.backends import (
    DROPOUT,
    Accumulation,
    Backend,
    Copies,
    Copy,
    DeviceError,
    Draws,
    Totals,
    array_namespace,
    host_memory,
    reference_backend,
)
from gpumlp.backends.numpy import NumpyBackend
from gpumlp.backends.philox import philox, random_bits
from gpumlp.nn import SGD, Adam, Penalty
from tests.gpu_helpers import import_showing_warnings, without_gpu
from tests.host_cuda import HostCupy, load_cupy_backend
from tests.strict_device import StrictArray, StrictBackend

OPERATIONS = [
    *("execution", "run_steps", "gather", "dense_forward", "dense_backward", "accumulate_product", "column_sums"),
    *("add_scaled", "output_error", "update", "totals", "all_finite", "activation_backward", "dropout"),
    *("dropout_backward", "weigh", "clip_gradient", "limit_norms", "average", "add_squares", "distort"),
]
RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def compare(backend: Backend, loss: object, arrays: list[np.ndarray]) -> None:
    """Compute a loss on the backend and by the reference and compare all arrays."""
    on_device = [backend.asarray(array.copy()) for array in arrays]
    expected = [array.copy() for array in arrays]
    with backend.activate():
        backend.output_error(loss, *on_device)
    reference_backend(np).output_error(loss, *expected)
    for got, want in zip(on_device, expected, strict=True):
        np.testing.assert_allclose(backend.to_numpy(got), want, rtol=2e-6, atol=2e-6)


def test_gather_scales_pixels(backend: Backend) -> None:
    images = RNG.integers(0, 256, (50, 12), dtype=np.uint8)
    rows = RNG.integers(0, 50, 7)
    out = np.full((7, 12), np.nan, dtype=np.float32)
    device_out = backend.asarray(out)
    backend.gather(
        backend.asarray(images), backend.asarray(rows), backend.asarray(np.zeros((7, 12), np.uint8)), device_out
    )
    np.testing.assert_allclose(backend.to_numpy(device_out), images[rows] / 255, rtol=1e-6)


def test_gather_scales_every_row_of_a_large_batch(backend: Backend) -> None:
    images, rows = RNG.integers(0, 256, (50, 3), dtype=np.uint8), RNG.integers(0, 50, 600)
    staging, out = (backend.asarray(np.zeros((600, 3), dtype)) for dtype in (np.uint8, np.float32))
    backend.gather(backend.asarray(images), backend.asarray(rows), staging, out)
    np.testing.assert_allclose(backend.to_numpy(out), images[rows] / 255, rtol=1e-6)


def test_gather_takes_floats_as_they_are(backend: Backend) -> None:
    images, out = normal(50, 12), np.empty((7, 12), np.float32)
    rows = RNG.integers(0, 50, 7)
    device_out = backend.asarray(out)
    backend.gather(backend.asarray(images), backend.asarray(rows), None, device_out)
    np.testing.assert_array_equal(backend.to_numpy(device_out), images[rows])


@pytest.mark.parametrize("activation", [ReLU(), Tanh()])
def test_dense_forward(backend: Backend, activation: object) -> None:
    x, weight, bias, s, a = normal(9, 5), normal(5, 4), normal(4), normal(9, 4), normal(9, 4)
    on_device = [backend.asarray(array) for array in (x, weight, bias, s, a)]
    with backend.activate():
        backend.dense_forward(*on_device[:3], activation, *on_device[3:])
    np.testing.assert_allclose(backend.to_numpy(on_device[4]), activation(x @ weight + bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", [ReLU(), Tanh()])
def test_activation_backward(backend: Backend, activation: object) -> None:
    s, delta = normal(9, 5), normal(9, 5)
    saved, device = backend.asarray(activation(s)), backend.asarray(delta.copy())
    with backend.activate():
        backend.activation_backward(activation, saved, device)
    np.testing.assert_allclose(backend.to_numpy(device), delta * activation.derivative(s), rtol=1e-5, atol=1e-5)


def test_dense_backward(backend: Backend) -> None:
    x, weight, delta = normal(9, 5), normal(5, 4), normal(9, 4)
    device = [backend.asarray(v.copy()) for v in (x, weight, delta, normal(5, 4), normal(4), normal(9, 5))]
    with backend.activate():
        backend.dense_backward(*device[:3], Accumulation(device[3]), *device[4:])
    got = [backend.to_numpy(v) for v in device[3:]]
    for value, expected in zip(got, [x.T @ delta, delta.sum(axis=0), delta @ weight.T], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("batch", [1, 33])
def test_softmax_cross_entropy(backend: Backend, batch: int, scale: float) -> None:
    labels = RNG.integers(0, 10, batch)
    compare(
        backend,
        SoftmaxCrossEntropy(),
        [normal(batch, 10) * np.float32(scale), labels, np.empty(batch, np.float32), np.zeros(batch, bool)],
    )


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        *((LogisticCrossEntropy(), 1.0), (LogisticCrossEntropy(), 1e4)),
        *((SquaredError(), 1.0), (SquaredError(), 1e4)),
        (PoissonDeviance(), 1.0),  # e^s overflows for large s
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (33, 1), (7, 3)])
def test_losses_of_float_targets(backend: Backend, loss: object, shape: tuple[int, int], scale: float) -> None:
    targets = RNG.integers(0, 2, shape).astype(np.float32)
    losses = np.empty(shape[0], np.float32)
    scores = np.ones(shape, bool if loss.task == "labels" else np.float32)
    compare(backend, loss, [normal(*shape) * np.float32(scale), targets, losses, scores])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "int64"])
def test_totals_are_sums_in_float64(backend: Backend, dtype: str) -> None:
    shapes = [(7, 300), (1,), (0,), (3, 7000), (90_001,)]
    values = [(10 * RNG.normal(size=shape)).astype(dtype) for shape in shapes]
    with backend.activate():
        arrays = [backend.asarray(array) for array in [*values, values[0]]]
        found = [backend.totals(*arrays[:-1], arrays[-1][:, ::2]) for _ in range(2)]
    assert (found[0].shape, found[0].dtype) == ((6,), np.float64)
    wanted = [array.sum(dtype="float64") for array in [*values, values[0][:, ::2]]]
    first, second = map(backend.to_numpy, found)
    np.testing.assert_allclose(first, wanted, rtol=1e-11, atol=1e-11)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("value", [1e38, np.inf, -np.inf, np.nan])
def test_all_finite_finds_a_single_value(backend: Backend, value: float) -> None:
    values = normal(30, 20)
    values[17, 3] = value
    with backend.activate():
        assert backend.all_finite(backend.asarray(values)) is (value == 1e38)


@pytest.mark.parametrize("order", ["C", "F"])
def test_weigh(backend: Backend, order: str) -> None:
    delta = np.array(normal(7, 3), order=order)
    arrays = [delta, normal(7), RNG.random(7).astype(np.float32)]
    on_device = [backend.asarray(array.copy()) for array in arrays]
    with backend.activate():
        backend.weigh(*on_device)
    np.testing.assert_allclose(backend.to_numpy(on_device[0]), delta * arrays[2][:, None], rtol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(on_device[1]), arrays[1] * arrays[2], rtol=1e-6)


# The known answers of the authors' library Random123 (kat_vectors, philox4x64 with 10 rounds).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ((2**64 - 1,) * 4, (2**64 - 1,) * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]
DRAWS = [
    Draws(0, DROPOUT, 0, 0, 0),
    Draws(7, DROPOUT, 5, 2, 9),
    Draws(2**64 - 1, 3, 2**40, 1, 2**20),
    Draws(2**70 + 1, DROPOUT, 1, 3, 1),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: str) -> None:
    words = philox(np, tuple(np.array([word], np.uint64) for word in counter), key)
    assert " ".join(f"{int(word[0]):016x}" for word in words) == answer


@pytest.mark.parametrize("units", [1, 8, 13, 64])
@pytest.mark.parametrize("draws", DRAWS)
def test_random_bits_are_those_of_numpy_and_of_any_part_of_the_batch(draws: Draws, units: int) -> None:
    bits = random_bits(np, draws, 6, units)
    for row in range(6):
        block = (draws.row + row) * -(-units // 8)
        before = (block + (draws.layer << 64) + (draws.step << 128) - 1) % 2**256
        generator = np.random.Philox(key=draws.seed % 2**64 + (draws.purpose << 64), counter=before)
        expected = generator.random_raw(4 * -(-units // 8)).view(np.uint32)[:units]
        np.testing.assert_array_equal(bits[row], expected)
    np.testing.assert_array_equal(random_bits(np, draws._replace(row=draws.row + 2), 3, units), bits[2:5])


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1 - 2**-40])
@pytest.mark.parametrize("units", [1, 8, 13])
@pytest.mark.parametrize("draws", DRAWS)
def test_dropout_is_the_same_on_every_device(backend: Backend, draws: Draws, units: int, rate: float) -> None:
    x, delta = normal(6, units), normal(6, units)
    kept, out = np.zeros((6, units), bool), np.zeros_like(x)
    reference = reference_backend(np)
    reference.dropout(x, rate, draws, kept, out)
    backward = delta.copy()
    reference.dropout_backward(backward, rate, draws, kept)
    device = [backend.asarray(array.copy()) for array in (x, delta)]
    with backend.activate():
        mask = backend.asarray(np.ones_like(kept)) if backend.stores_masks else None
        backend.dropout(device[0], rate, draws, mask, device[0])  # in place
        backend.dropout_backward(device[1], rate, draws, mask)
    np.testing.assert_array_equal(backend.to_numpy(device[0]), out)
    np.testing.assert_array_equal(backend.to_numpy(device[1]), backward)
    assert rate > 0 or (out == x).all()


def test_the_share_of_dropped_units_is_the_rate() -> None:
    kept = np.zeros((1000, 1000), bool)
    ones = np.ones(kept.shape)
    NumpyBackend().dropout(ones, 0.2, Draws(0, DROPOUT, 0, 0, 0), kept, ones)
    assert abs(kept.mean() - 0.8) < 4 * (0.2 * 0.8) ** 0.5 / 1000
    assert set(np.unique(ones)) == {0, 1 / 0.8}


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
def test_clip_gradient(backend: Backend, limit: float) -> None:
    gradient = normal(500)
    device, scratch = backend.asarray(gradient.copy()), backend.asarray(normal(500))
    with backend.activate():
        backend.clip_gradient(device, limit, scratch)
    norm = np.linalg.norm(gradient.astype("float64"))
    np.testing.assert_allclose(
        backend.to_numpy(device), gradient * min(1, limit / (norm + 1e-6)), rtol=2e-6, atol=1e-9
    )


def test_add_squares(backend: Backend) -> None:
    values = normal(500)
    out = backend.asarray(np.array([2.0]))
    with backend.activate():
        backend.add_squares(backend.asarray(values), out, backend.asarray(normal(500)))
    expected = 2 + np.square(values.astype("float64")).sum()
    np.testing.assert_allclose(backend.to_numpy(out), expected, rtol=2e-6)


def test_clip_gradient_keeps_nan(backend: Backend) -> None:
    device = backend.asarray(np.array([1, np.nan], np.float32))
    with backend.activate():
        backend.clip_gradient(device, 1.0, backend.asarray(np.zeros(2, np.float32)))
    assert np.isnan(backend.to_numpy(device)).any()


def test_limit_norms_scales_only_the_columns_above_the_limit(backend: Backend) -> None:
    weight = normal(30, 4) * np.array([0.01, 1, 0, 10], np.float32)
    device = backend.asarray(weight.copy())
    with backend.activate():
        backend.limit_norms(device, 2.0, backend.asarray(normal(30, 4)))
    limited = backend.to_numpy(device)
    np.testing.assert_array_equal(limited[:, [0, 2]], weight[:, [0, 2]])
    np.testing.assert_allclose(np.linalg.norm(limited[:, [1, 3]], axis=0), 2, rtol=1e-6)
    np.testing.assert_allclose(limited[:, 3] / weight[:, 3], 2 / np.linalg.norm(weight[:, 3]), rtol=1e-5)


def test_average(backend: Backend) -> None:
    parameters, average = normal(50), normal(50)
    device = [backend.asarray(array.copy()) for array in (parameters, average, normal(50))]
    with backend.activate():
        backend.average(device[0], device[1], 0.9, device[2])
    np.testing.assert_allclose(backend.to_numpy(device[1]), 0.9 * average + 0.1 * parameters, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(backend.to_numpy(device[0]), parameters)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Adam(), Adam(correct_epsilon=False, epsilon=0.1)],
)
def test_update_leaves_biases_unpenalised(backend: Backend, optimizer: object) -> None:
    theta, gradient = normal(128), normal(128)
    results = []
    for candidate in (backend, reference_backend(np)):
        parameters, g = theta.copy(), gradient.copy()
        if candidate is backend:
            parameters, g = backend.asarray(parameters), backend.asarray(g)
        state = optimizer.init(parameters)
        for _ in range(3):
            candidate.update(optimizer, Penalty(l2=0.1, l1=0.01), parameters, g, slice(0, 64), state, 0.1)
        results.append(backend.to_numpy(parameters) if candidate is backend else parameters)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name in vars(NumpyBackend)])
def test_overrides_have_the_signature_of_the_reference(operation: str) -> None:
    assert inspect.signature(getattr(NumpyBackend, operation)) == inspect.signature(getattr(Backend, operation))


@pytest.mark.gpu
@pytest.mark.parametrize("operation", OPERATIONS)
def test_cupy_overrides_have_the_signature_of_the_reference(operation: str) -> None:
    if importlib.util.find_spec("cupy") is None:
        without_gpu("CuPy is not installed")
    import_showing_warnings("cupy")
    from gpumlp.backends.cuda.backend import CudaBackend

    assert inspect.signature(getattr(CudaBackend, operation)) == inspect.signature(getattr(Backend, operation))


def test_the_cpu_is_always_available() -> None:
    assert available_devices()[0].name == "cpu"
    assert get_backend("cpu").name == "cpu"
    assert get_backend("auto").name in ("cpu", "cuda:0")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", None, 3])
def test_an_invalid_device_name_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="device is expected to be"):
        get_backend(name)


@pytest.mark.parametrize(
    ("option", "choices"),
    [("matmul_precision", "highest, high"), ("execution", "auto, persistent, graphs, eager")],
)
def test_an_invalid_option_is_refused_on_every_device(option: str, choices: str) -> None:
    for device in ("cpu", "auto", NumpyBackend()):
        with pytest.raises(ValueError, match=f"{option} is expected to be one of {choices}, got 'medium'"):
            get_backend(device, **{option: "medium"})


@pytest.mark.parametrize("number", [0, 2.0, True, "2"])
def test_an_invalid_number_of_multiprocessors_is_refused_on_every_device(number: object) -> None:
    for device in ("cpu", "auto", NumpyBackend()):
        with pytest.raises(ValueError, match="multiprocessors is expected to be a whole number of 1 or more, got"):
            get_backend(device, multiprocessors=number)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_options_reach_the_gpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    module = load_cupy_backend(HostCupy())
    monkeypatch.setattr("gpumlp.backends._cuda_module", lambda: module)
    assert (get_backend(device).tf32, get_backend(device).wanted_execution) == (False, "auto")
    chosen = get_backend(device, matmul_precision="high", execution="graphs", multiprocessors=3)
    assert (chosen.tf32, chosen.wanted_execution) == (True, "graphs")
    assert (chosen.persistent._parts, chosen.persistent._multiprocessors) == (2, 3)
    model = MLP([3, 2], device=chosen)
    assert model.backend is chosen


def test_array_namespace_is_the_library_of_an_array() -> None:
    fake = StrictBackend()
    assert array_namespace(np.zeros(2)) is np
    assert array_namespace(fake.asarray([1.0])) is fake.xp
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array"):
        array_namespace([1.0])


def test_the_fake_is_strict() -> None:
    array = StrictBackend().asarray(np.ones(3))
    for mixture in (lambda: np.asarray(array), lambda: np.add(array, 1), lambda: array + np.ones(3)):
        with pytest.raises(TypeError):
            mixture()
    assert isinstance(array + 1, StrictArray)


FAKE_CUPY = """
__version__ = "14.9"
class ndarray: pass
class _Runtime:
    def getDeviceCount(self):
        {count}
    def driverGetVersion(self): return {driver}
    def getDeviceProperties(self, index): return {{"name": b"Fake GPU"}}
class cuda:
    runtime = _Runtime()
"""


def run_with_cupy(folder: Path, source: str | None, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the train command with a fake cupy module (or one that cannot be found) first on the path."""
    if source is not None:
        (folder / "cupy.py").write_text(source)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "gpumlp.train", *words]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=folder, check=False
    )


@pytest.mark.parametrize(
    ("source", "device", "cause", "cure"),
    [
        ("raise OSError('libcublas.so.13 is missing')", "cuda", "cannot be imported: OSError", "reinstall"),
        (FAKE_CUPY.format(count="raise RuntimeError('x')", driver=0), "cuda", "no NVIDIA driver", "nvidia-smi"),
        (
            FAKE_CUPY.format(count="raise RuntimeError('old')", driver=11040),
            "cuda",
            "CUDA 11.4",
            "update the driver",
        ),
        (FAKE_CUPY.format(count="return 0", driver=13000), "cuda", "shows no GPU", "CUDA_VISIBLE_DEVICES"),
        (FAKE_CUPY.format(count="return 1", driver=13000), "cuda:1", "no device cuda:1", "cuda:0 (Fake GPU)"),
    ],
)
def test_a_gpu_that_cannot_be_used_ends_with_cause_and_cure(
    tmp_path: Path, source: str, device: str, cause: str, cure: str
) -> None:
    result = run_with_cupy(tmp_path, source, "--device", device)
    assert result.returncode == 2
    assert cause in result.stderr
    assert cure in result.stderr
    assert "Traceback" not in result.stderr


def test_without_cupy_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r'CuPy is not installed; install it with pip install "\.\[cuda13\]"'):
        get_backend("cuda")
    assert get_backend("auto").name == "cpu"


def test_auto_reports_why_it_selects_the_cpu(tmp_path: Path) -> None:
    broken = "raise OSError('libcublas.so.13 is missing')"
    words = ("--dataset", "digits", "--epochs", "1")
    result = run_with_cupy(tmp_path, broken, *words)
    assert result.returncode == 0, result.stderr
    assert "no usable GPU: CuPy is installed, but cannot be imported" in result.stdout


def test_the_memory_of_a_container_is_the_smaller_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [tmp_path / "max", tmp_path / "number", tmp_path / "missing"]
    limits[0].write_text("max\n")
    limits[1].write_text("4096\n")
    monkeypatch.setattr("gpumlp.backends.numpy._MEMORY_LIMITS", limits[:1])
    assert host_memory() > 2**20
    monkeypatch.setattr("gpumlp.backends.numpy._MEMORY_LIMITS", limits)
    assert host_memory() == 4096


def test_training_on_the_cpu_never_imports_cupy(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise SystemExit('cupy was imported')")
    script = (
        "import sys, gpumlp.train, gpumlp.evaluate\n"
        "words = ['--device', 'cpu', '--dataset', 'digits', '--epochs', '1', '--out', 'run']\n"
        "assert gpumlp.train.main(words) == 0\n"
        "assert gpumlp.evaluate.main(['run']) == 0\n"
        "assert 'cupy' not in sys.modules\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, check=True
    )


def test_copies_of_arrays_and_of_rows(backend: Backend) -> None:
    rows = RNG.permutation(70_001)
    with backend.activate():
        cases = []

        def add(source: np.ndarray, given: object, taken: np.ndarray | None = None) -> None:
            wanted = source if taken is None else source[taken]
            cases.append((Copy(given, backend.asarray(np.zeros_like(wanted)), taken), wanted))

        for dtype in ("float32", "float64", "int64", "bool"):
            for shape in ((70_001,), (70_001, 3), (1, 70_001), (70_001, 0)):
                values = RNG.normal(size=shape).astype(dtype)
                add(values, values)
                add(values, backend.asarray(values))
                if len(values) == len(rows):
                    add(values, backend.asarray(values), rows)
        odd = normal(7)  # between others in what goes to the device
        add(odd, odd)
        add(odd[::-1], odd[::-1])
        add(odd[::2], backend.asarray(odd)[::2])
        backend.copy([copy for copy, _ in cases])
        backend.copy([])
        for copy, wanted in cases:
            np.testing.assert_array_equal(backend.to_numpy(copy.out), wanted)


def test_requests_of_several_networks(backend: Backend) -> None:
    values = [normal(30, 2), normal(7)]
    with backend.activate():
        arrays = [backend.asarray(array) for array in values]
        more = backend.asarray(np.array([2.0, 5.0]))
        found = backend.perform([Totals(arrays), Totals(arrays[:1], more)])()
        assert backend.perform([Copies(None, [Copy(values[0], arrays[0])]), Copies(None, [])])() == [None, None]
    sums = [float(array.sum(dtype="float64")) for array in values]
    for numbers, wanted in zip(found, [sums, [sums[0], 2.0, 5.0]], strict=True):
        np.testing.assert_allclose(numbers, wanted, rtol=1e-6)
