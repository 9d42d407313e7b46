"""The emulator of a GPU's threads computes what a GPU does, and says where a kernel breaks a rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.emulator import EmulatedModule, EmulationError
from tests.host_cuda import HostCupy
from tests.host_kernels import HostKernel

KERNELS = Path(__file__).with_name("emulator_kernels.cu")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def module() -> EmulatedModule:
    return EmulatedModule(KERNELS.read_text())


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 256 bytes, as an allocation on a GPU does."""
    raw = np.empty(values.nbytes + 256, np.uint8)
    out = raw[-raw.ctypes.data % 256 :][: values.nbytes].view(values.dtype).reshape(values.shape)
    out[...] = values
    return out


@pytest.mark.parametrize(("sum_bits", "tolerance"), [(1, 2e-6), (-1, 3e-7)])
def test_matrix_products(sum_bits: int, tolerance: float, module: EmulatedModule) -> None:
    a, b, d = X[0].reshape(16, 16), X[1, :128].reshape(8, 16), X[2, :128].reshape(16, 8).copy()
    parts = [(each.view(np.uint32) >> 16).astype(np.uint16) for each in (a, b)]
    a, b = ((each.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64) for each in (a, b))
    want = d + a @ b.T
    module.launch("product", [*parts, d], threads=32, shared_bytes=768, sum_bits=sum_bits)
    np.testing.assert_allclose(d, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operand", range(3))
def test_nan_and_infinity_stay(operand: int, value: float, module: EmulatedModule) -> None:
    a, b, d = np.zeros((16, 16), np.float32), np.ones((8, 16), np.float32), np.ones((16, 8), np.float32)
    (a, b, d)[operand][1, 1] = value
    module.launch(
        "product",
        [*((each.view(np.uint32) >> 16).astype(np.uint16) for each in (a, b)), d],
        threads=32,
        shared_bytes=768,
    )
    assert not np.isfinite(d[1, 1])


def test_rounding_to_bf16(module: EmulatedModule) -> None:
    bits = RNG.integers(0, 2**32, 1024, dtype=np.uint32)
    bits[::7] = bits[::7] & 0xFFFF0000 | 0x8000  # ties
    bits[:4] = 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7FC00001
    out = np.zeros(1024, np.uint16)
    module.launch("to_bf16", [bits, out], grid=(4, 1), threads=256)
    above = (bits & 0xFFFF) + (bits >> 16 & 1) > 0x8000
    np.testing.assert_array_equal(out, np.where(np.isnan(bits.view(np.float32)), 0x7FFF, (bits >> 16) + above))


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (1, r"in\[1\] is not a multiple of 8 bytes\n  in ld of block 0, .*, called at line \d+: if \(bug == 1\)"),
        (2, r"meet in different operations|mask 0xffffffff names lanes that have ended"),
        (3, "the mbarrier at shared 0x0 was overwritten"),
        (4, "the block wrote past its dynamic shared memory"),
        (5, "the block ends while cp.async is still under way"),
        (6, r"deadlock: .*\n  block 0: ld called at .*\(bug == 6\).*: 32 threads, .* spins on in\[2\]"),
        (7, r"access to 0x38, where there is no memory, after the operation\n  in __syncthreads of block 0"),
    ],
)
def test_messages_name_source_lines_and_arrays(bug: int, message: str, module: EmulatedModule) -> None:
    values = aligned(np.zeros(8, np.float32))
    with pytest.raises(EmulationError, match=message):
        module.launch("wrong", [values, np.int32(bug)], threads=32, shared_bytes=128, names={"in": values})


# -- Arrays whose addresses are in device memory -----------------------------------------------------------

NETWORKS = """
typedef long long i64;
struct Network {
    const i64* order;  // (BLOCKS,)
    float* buffers[2];
    int shift;
};
extern "C" __global__ void train_networks(const unsigned char* networks)
{
    const Network& n = ((const Network*)networks)[blockIdx.y / BLOCKS];
    int b = blockIdx.y % BLOCKS;
    cuda_host::barrier_sync();
    n.buffers[1][b + n.shift] = n.buffers[0][n.order[b]];
    if (n.shift == 3) ((i64*)n.order)[b] = 7;
}
"""


class Networks:
    """Two networks, whose kernel reverses an array, on the fake of CuPy."""

    def __init__(self, shift: int = 0, dtype: str = "float32") -> None:
        self.xp = HostCupy()
        self.kernel: HostKernel = self.xp.RawModule(
            code=NETWORKS, options=("-DBLOCKS=4", "-DRESIDENT=2")
        ).get_function("train_networks")
        self.order = self.xp.asarray(np.array([3, 2, 1, 0]))
        self.inputs = [self.xp.asarray(np.arange(4 * k, 4 * k + 4, dtype=dtype)) for k in range(2)]
        self.outputs = self.xp.asarray(np.zeros((2, 7), np.float32))
        dtype = np.dtype([("order", "u8"), ("buffers", "u8", 2), ("shift", "i4")], align=True)
        self.records = np.array(
            [
                (self.order.data.ptr, (x.data.ptr, y.data.ptr), shift)
                for x, y in zip(self.inputs, (self.outputs[k] for k in range(2)), strict=True)
            ],
            dtype,
        )

    def launch(self, blocks: int = 8, cooperative: bool = True) -> None:
        networks = self.xp.asarray(self.records.view(np.uint8))
        self.kernel.kernel((1, blocks), (32,), (networks,), enable_cooperative_groups=cooperative)


def test_networks_are_given_by_addresses() -> None:
    networks = Networks()
    networks.launch()
    np.testing.assert_array_equal(networks.outputs._data[:, :4], [[3, 2, 1, 0], [7, 6, 5, 4]])


def test_addresses_that_a_gpu_would_misread_are_refused() -> None:
    freed, other, outside, constant = Networks(), Networks(dtype="float64"), Networks(shift=4), Networks(shift=3)
    freed.inputs.clear()
    for networks, message in [
        (freed, r"networks\[0\].buffers\[0\] is not the address of an array"),
        (other, r"networks\[0\].buffers\[0\] is not the address of an array"),
        (outside, r"wrote outside of networks\[0\].buffers\[1\]"),
        (constant, r"wrote to networks\[0\].order or .*, which it may only read"),
    ]:
        with pytest.raises((AssertionError, EmulationError), match=message):
            networks.launch()
    for options, message in [
        ({"blocks": 6}, "6 blocks for networks of 4"),
        ({"blocks": 4}, "bytes, expected"),
        ({"cooperative": False}, "blocks wait for others"),
    ]:
        with pytest.raises(AssertionError, match=message):
            Networks().launch(**options)
    with pytest.raises(ValueError, match=r"exceeds the limit \(12\)"):
        Networks().launch(blocks=16)
