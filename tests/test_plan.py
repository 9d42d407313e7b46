"""How the persistent kernel divides a network among multiprocessors."""

from __future__ import annotations

import ctypes

import pytest

from gpumlp import ReLU
from gpumlp.backends.cuda.plan import NETWORK, DeviceProperties, Plan, Shape, make_plan

H100 = DeviceProperties()
CONSUMER = DeviceProperties(multiprocessors=28, shared_per_block=99 * 1024, shared_per_multiprocessor=100 * 1024)


def shape(*sizes: int, batch: int = 128, **rules: object) -> Shape:
    inputs, *hidden, outputs = sizes
    return Shape(inputs, tuple(hidden), outputs, (ReLU().cuda,) * len(hidden), batch, **rules)


def planned(shape: Shape, device: DeviceProperties = H100, multiprocessors: int | None = None) -> Plan:
    plan = make_plan(shape, device, multiprocessors=multiprocessors)
    assert isinstance(plan, Plan), plan
    return plan


@pytest.mark.parametrize("batch", [1, 32, 128, 256])
@pytest.mark.parametrize("device", [H100, CONSUMER])
def test_a_network_for_mnist_has_16_multiprocessors(batch, device):
    plan = planned(shape(784, 128, 10, batch=batch), device)
    assert (plan.blocks, plan.units, plan.resident) == (16, (8,), 1)
    assert plan.shared_bytes <= device.shared_per_block


@pytest.mark.parametrize(
    ("sizes", "optimizer", "blocks", "among_others"),
    [
        ((784, 128, 10), "momentum", 16, 8),
        ((784, 512, 10), "momentum", 64, 32),
        ((784, 128, 10), "adam", 16, 16),  # on 8 it could not read ahead
        ((784, 499, 241, 10), "momentum", 64, 64),  # two fit, also on 52
        ((784, 16, 10), "momentum", 2, 2),  # on one, batches would be divided into passes
        ((784, 512, 512, 10), "momentum", 64, 64),  # by its middle weights
        ((30, 100, 2), "momentum", 2, 2),
    ],
)
def test_it_has_fewer_among_others_if_more_fit(sizes, optimizer, blocks, among_others):
    network = shape(*sizes, batch=32, optimizer=optimizer)
    assert [make_plan(network, H100, together=each).blocks for each in (False, True)] == [blocks, among_others]


def test_a_middle_layer_is_divided_in_two_dimensions():
    plan = planned(shape(784, 512, 512, 10))
    assert (plan.blocks, plan.rows, plan.units) == (64, (8,), (8, 8))


def test_small_networks_share_a_multiprocessor():
    plan = make_plan(shape(30, 100, 2, batch=200, pixels=False, optimizer="adam"), H100, multiprocessors=1)
    assert plan.blocks == 1
    assert plan.resident == 2
    assert plan.resident * (plan.shared_bytes + 1024) <= H100.shared_per_multiprocessor


def test_one_block_exchanges_numbers_in_its_own_memory():
    assert planned(shape(30, 32, 2)).exchange_pairs == 0
    assert planned(shape(784, 128, 10)).exchange_pairs > 0


@pytest.mark.parametrize("multiprocessors", [1, 3, 8, 100])
def test_units_suffice_on_any_number_of_multiprocessors(multiprocessors):
    for sizes in (64, 100, 10), (40, 100, 36, 10), (40, 100, 36, 50, 10):
        plan = make_plan(shape(*sizes, batch=16), H100, multiprocessors=multiprocessors)
        if isinstance(plan, str):
            assert multiprocessors == 1
            assert "shared memory" in plan
            continue
        assert plan.blocks <= multiprocessors
        assert all(plan.blocks * count >= width for count, width in zip(plan.units, sizes[1:], strict=False))
        assert all(plan.blocks % rows == 0 for rows in plan.rows)


@pytest.mark.parametrize("batch", [32, 100, 200, 256, 1024])
@pytest.mark.parametrize(
    "sizes",
    [(784, 128, 10), (784, 500, 10), (30, 100, 2), (784, 300, 100, 10), (64, 9, 9, 3), (100, 502, 97, 17)],
)
def test_a_number_of_multiprocessors_that_is_recorded_gives_the_same_plan(sizes, batch):
    for device in H100, CONSUMER:
        for asked in None, "together", *range(1, device.multiprocessors + 1):
            options = {"together": True} if asked == "together" else {"multiprocessors": asked}
            plan = make_plan(shape(*sizes, batch=batch), device, **options)
            if isinstance(plan, Plan):
                count = plan.multiprocessors
                assert count <= (asked if isinstance(asked, int) else device.multiprocessors)
                assert planned(shape(*sizes, batch=batch), device, multiprocessors=count) == plan


@pytest.mark.parametrize(
    ("sizes", "batch", "asked", "replicas", "blocks"),
    [
        ((784, 128, 10), 128, None, 1, 16),
        ((784, 128, 10), 128, 8, 1, 8),
        ((784, 128, 10), 128, 31, 1, 16),
        ((784, 128, 10), 128, 64, 4, 16),
        ((784, 128, 10), 128, 132, 4, 16),
        ((784, 128, 10), 8192, 132, 8, 16),
        ((784, 128, 10), 32, 132, 1, 16),
        ((784, 512, 512, 10), 128, 132, 2, 66),
        ((30, 100, 2), 200, 11, 4, 2),  # seven chunks of samples are two for each of four, as for each of five
        ((30, 100, 2), 200, 14, 7, 2),
        ((30, 100, 2), 2000, 132, 8, 13),
        ((100, 502, 97, 17), 1024, 121, 8, 14),  # 15 each would not fit
    ],
)
def test_multiprocessors_beyond_those_of_a_replica_divide_the_samples(sizes, batch, asked, replicas, blocks):
    plan = planned(shape(*sizes, batch=batch), multiprocessors=asked)
    assert (plan.replicas, plan.blocks) == (replicas, blocks)
    assert plan.shared_bytes <= H100.shared_per_block


def test_evaluation_exchanges_no_gradients():
    training = planned(shape(784, 128, 10), multiprocessors=64)
    evaluation = planned(shape(784, 128, 10, optimizer="none"), multiprocessors=64)
    assert training.replicas == evaluation.replicas == 4
    assert training.gradient_words > evaluation.gradient_words == 0


def test_what_does_not_fit_has_a_reason():
    assert make_plan(shape(784, 128, 10, batch=8192), H100) == (
        "on 16 multiprocessors it would need 708 KiB of shared memory on each, and they have 227 KiB"
    )
    assert make_plan(shape(784, 128, 10), H100, multiprocessors=133) == (
        "the device has 132 multiprocessors, not 133"
    )
    assert make_plan(shape(784, 128, 1000), H100) == "it supports 128 outputs at most, not 1000"


def test_options_name_every_size_once():
    options = planned(shape(784, 128, 10, dropout=(0, 1))).options()
    names = [option.removeprefix("-D").split("=")[0] for option in options]
    assert len(set(names)) == len(names)
    assert {"-DINPUTS=784", "-DHIDDEN1=128", "-DHIDDEN2=0", "-DDROPOUT=3", "-DOPTIMIZER=1"} <= set(options)


def test_activations_are_defined_for_each_hidden_layer():
    text = planned(shape(784, 128, 64, 10)).definitions()
    assert "#define FORWARD1 s <= 0 ? 0 : s\n" in text
    assert "#define DERIVATIVE2 a > 0 ? 1 : 0\n" in text


def test_a_network_is_laid_out_as_by_a_compiler():
    pointer, i64, f32, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
    types = [*[pointer] * 5, pointer * 2, *[pointer] * 5, i64 * 4, i64 * 4, *[i64] * 4, *[f32] * 9]
    types += [i32 * 4, f32 * 4, i32 * 4]

    class Network(ctypes.Structure):
        _fields_ = [(name, kind) for name, kind in zip(NETWORK.names, types, strict=True)]

    assert ctypes.sizeof(Network) == NETWORK.itemsize
    assert [getattr(Network, name).offset for name in NETWORK.names] == [
        NETWORK.fields[name][1] for name in NETWORK.names
    ]
