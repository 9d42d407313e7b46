"""How the persistent kernel, ``persistent.cu``, divides a network among multiprocessors, and whether it fits.

A plan depends on the network's shape, the device, and whether the network is trained with others or alone. With
the same number of multiprocessors it is the same, and so are the bits. Nothing here needs a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..base import CudaActivation

LOSSES = "softmax_cross_entropy", "logistic_cross_entropy", "squared_error", "poisson_deviance"
OPTIMIZERS = "plain", "momentum", "nesterov", "adam", "adamw", "none"  # none: evaluation
MOST_HIDDEN_LAYERS = 3
MOST_OUTPUTS = 128
WARPS = 8  # of a block

_BUFFERS = 0, 1, 1, 2, 2, 0  # of each optimizer's state
_CHUNK = 32  # samples that are multiplied at a time
_MOST_SLOTS = 4
# Work of a multiprocessor beyond which another one is worth the exchange: inputs x units of the first layer, all
# weights, and tiles of 8 units (with few inputs, most work is for units). With these, 784-128-10 gets 16
# multiprocessors, 784-512-512-10 64, and 30-100-2 two. Among other networks it is twice as many weights of the
# first layer: on 8 multiprocessors, 784-128-10 takes 1.25 times as long, and twice as many fit into a launch.
_FIRST_WEIGHTS, _WEIGHTS, _TILES = 784 * 8, 10_600, 7
_SMALL_ROW = 512  # bytes; the 32 lanes of a warp copy such a row at once, faster than one lane a whole one
_OTHER_REGISTERS = 72  # of a thread, beside weights, state and sums
_MOST_REPLICAS = 8  # as many times a replica's gradients are read by each
_RECEIVED = 16  # words of gradients at a time
_RESERVED = 1024  # bytes of shared memory that the driver takes of each block

_u64, _i64, _f32, _u32, _i32 = np.uint64, np.int64, np.float32, np.uint32, np.int32

# `struct Network` of the kernel: pointers are uint64.
NETWORK = np.dtype(
    [
        *((name, _u64) for name in ("images", "order", "targets", "sample_weights", "parameters")),
        ("buffers", _u64, 2),
        *((name, _u64) for name in ("losses", "scores", "factors", "exchange", "squares")),
        *(("weight_offset", _i64, 4), ("bias_offset", _i64, 4)),
        *((name, _i64) for name in ("start", "stop", "steps_taken")),
        ("seed", _u64),
        *((name, _f32) for name in ("scale", "momentum", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2")),
        *((name, _f32) for name in ("l2", "l1", "label_smoothing")),
        *(("dropout_threshold", _u32, 4), ("dropout_scale", _f32, 4), ("dropout_layer", _i32, 4)),
    ],
    align=True,
)


class Shape(NamedTuple):
    """What the kernel is compiled for, whatever the device.

    Attributes:
        inputs, outputs: of the network.
        hidden: units of each hidden layer.
        activations: of each hidden layer.
        batch: samples of a full batch.
        pixels: whether the samples are uint8; otherwise they are float32.
        loss: one of `LOSSES`.
        optimizer: one of `OPTIMIZERS`.
        weighted: whether samples have weights.
        squares: whether the squares of the weights are summed.
        dropout: the positions with dropout: 0 for the inputs, l for hidden layer l.
        parts: bf16 numbers that a float32 is multiplied as, 3 or 2.
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activations: tuple[CudaActivation, ...]
    batch: int
    pixels: bool = True
    loss: str = "softmax_cross_entropy"
    optimizer: str = "momentum"
    weighted: bool = False
    squares: bool = False
    dropout: tuple[int, ...] = ()
    parts: int = 3


class DeviceProperties(NamedTuple):
    """The properties of a device that plans depend on. The defaults are those of an H100.

    Attributes:
        multiprocessors: of the device.
        shared_per_block, shared_per_multiprocessor: bytes of shared memory, at most.
        registers: of a multiprocessor.
        bulk_copies: whether a thread can copy a whole row to shared memory: from compute capability 9.0 on.
    """

    multiprocessors: int = 132
    shared_per_block: int = 227 * 1024
    shared_per_multiprocessor: int = 228 * 1024
    registers: int = 65_536
    bulk_copies: bool = True


class Plan(NamedTuple):
    """The sizes that the kernel is compiled for.

    Attributes:
        shape: of the network.
        replicas: among how many groups of blocks the samples of a batch are divided. Each has all parameters, and
            they sum their gradients.
        blocks: multiprocessors of a replica, or parts of one, see `resident`.
        warps_k: among how many of a block's `WARPS` the inputs are divided; the others divide the units.
        slots: chunks of samples in shared memory.
        rows: into how many parts the rows of each middle weight matrix are divided; their columns into ``blocks /
            rows``.
        keep_parts: whether the bf16 parts of the first weights are made once a step.
        state_shared: whether the optimizer's state of the first weights is in shared memory, not in registers.
        resident: blocks on a multiprocessor at a time, at least.
        bulk: whether rows come by bulk copies.
    """

    shape: Shape
    replicas: int
    blocks: int
    warps_k: int
    slots: int
    rows: tuple[int, ...]
    keep_parts: bool
    state_shared: bool
    resident: int
    bulk: bool

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * WARPS

    @property
    def units(self) -> tuple[int, ...]:
        """Units of each hidden layer that a block owns, a multiple of 8."""
        return tuple(_up(-(-width // self.blocks), 8) for width in self.shape.hidden)

    @property
    def multiprocessors(self) -> int:
        """Multiprocessors of the network, or parts of them, see `resident`."""
        return self.replicas * self.blocks

    @property
    def passes(self) -> int:
        """Parts of a replica's samples, each processed forward and backward, before the update."""
        return self._chunks if self.blocks == 1 and len(self.shape.hidden) == 1 else 1

    @property
    def chunks(self) -> int:
        """Chunks of samples of a pass."""
        return self._chunks // self.passes

    @property
    def _chunks(self) -> int:
        """Chunks of a replica's samples."""
        return -(-self.shape.batch // (_CHUNK * self.replicas))

    @property
    def buffers(self) -> int:
        """Numbers of the optimizer's state for each parameter."""
        return _BUFFERS[OPTIMIZERS.index(self.shape.optimizer)]

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of 16 inputs and of 8 units of a warp: an even number, or one."""
        inputs, units = -(-self.shape.inputs // 16), self.units[0] // 8
        across = -(-units // (WARPS // self.warps_k))
        return -(-inputs // self.warps_k), across if across == 1 else _up(across, 2)

    @property
    def registers(self) -> int:
        """Registers of a thread, roughly."""
        inputs, units = self.tiles
        weights = 4 * inputs * units * (1 if self.state_shared else 1 + self.buffers)
        parts = 2 * self.shape.parts * inputs * units if self.keep_parts else 0
        sums = 4 * inputs * max(units, 2)
        received = 4 * (inputs * units + _RECEIVED) + 2 * self.replicas if self.gradient_words else 0
        # With several passes, the sums of gradients are there in the forward pass too.
        return weights + max(received, sums + parts if self.passes > 1 else max(sums, parts)) + _OTHER_REGISTERS

    @property
    def exchange(self) -> int:
        """Pairs (number, tag) by which blocks of a replica tell each other numbers."""
        shape, padded = self.shape, _up(self.shape.outputs, 2)
        samples = min(shape.batch, _CHUNK * self.chunks)
        owned = -(-samples // self.blocks)
        pairs = (self.blocks * self.blocks * owned + _CHUNK * self.chunks) * padded
        for (below, width), rows in zip(pairwise(shape.hidden), self.rows, strict=True):
            columns = self.blocks // rows
            pairs += _CHUNK * self.chunks * (_up(below, 8) * (1 + columns) + _up(width, 8) * (1 + rows))
        return pairs

    @property
    def gradient_words(self) -> int:
        """Words (three numbers, tag) by which a block tells other replicas gradients."""
        if self.replicas == 1 or self.shape.optimizer == "none":
            return 0
        words = -(-self._small // 3) + self.threads * -(-4 * math.prod(self.tiles) // 3)
        for (below, width), rows in zip(pairwise(self.shape.hidden), self.rows, strict=True):
            words += _part(below, rows) * _part(width, self.blocks // rows) // 2  # four numbers are two words
        return words

    @property
    def exchange_pairs(self) -> int:
        """The size of ``Network.exchange``; one block has its pairs in shared memory."""
        pairs = 0 if self.blocks == 1 else self.exchange
        return self.replicas * (pairs + 2 * 2 * self.blocks * self.gradient_words)

    @property
    def _small(self) -> int:
        """Parameters of a block that are not weights of its hidden layers."""
        return self.units[-1] * _up(self.shape.outputs, 4) + sum(self.units) + self.shape.outputs

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of a block, for ``struct Shared``; the compiler checks that they suffice."""
        shape, samples, units = self.shape, _CHUNK * self.chunks, sum(self.units)
        stride = samples + 4
        first = self.units[0]
        sums = 2 * self.warps_k * (_CHUNK if self.warps_k > 1 else 1) * (first + (8 if first % 16 == 0 else 0))
        errors = _up(shape.outputs, 4)
        values = units * stride + samples * (errors + (4 if errors % 8 == 0 else 0))
        values += self._small * (2 + max(1, self.buffers)) + 64
        widest = 0
        for (below, width), rows in zip(pairwise(shape.hidden), self.rows, strict=True):
            height, across = _part(below, rows), _part(width, self.blocks // rows)
            values += height * ((across + 4) * (1 + self.buffers) + stride)
            widest = max(widest, across * stride)
        values += max(sums, widest)
        if self.state_shared:
            values += self.buffers * 4 * math.prod(self.tiles) * self.threads
        masks = units // 8 * samples if any(shape.dropout) else 0
        pairs = self.exchange if self.blocks == 1 else 0
        rows = _CHUNK * (_row_bytes(shape) + 16) + 8
        return self.slots * rows + 4 * values + masks + 8 * pairs + 512

    def options(self) -> tuple[str, ...]:
        """The options of the compiler."""
        shape = self.shape
        hidden, units = ((*each, 0, 0)[:MOST_HIDDEN_LAYERS] for each in (shape.hidden, self.units))
        rows = (*self.rows, 1, 1)[: MOST_HIDDEN_LAYERS - 1]
        values = {
            "INPUTS": shape.inputs, "OUTPUTS": shape.outputs, "BATCH": shape.batch,
            "REPLICAS": self.replicas, "BLOCKS": self.blocks,
            **{f"HIDDEN{layer}": width for layer, width in enumerate(hidden, 1)},
            **{f"UNITS{layer}": count for layer, count in enumerate(units, 1)},
            **{f"ROWS{layer}": count for layer, count in enumerate(rows, 2)},
            "WARPS": WARPS, "WARPS_K": self.warps_k, "SLOTS": self.slots, "PASSES": self.passes,
            "PARTS": shape.parts, "PLANES": 1 if shape.pixels else 3, "LOSS": LOSSES.index(shape.loss),
            "OPTIMIZER": OPTIMIZERS.index(shape.optimizer), "WEIGHTED": int(shape.weighted),
            "SQUARES": int(shape.squares),
            "DROPOUT": sum(1 << position for position in shape.dropout), "KEEP_PARTS": int(self.keep_parts),
            "STATE_SHARED": int(self.state_shared), "RESIDENT": self.resident, "BULK": int(self.bulk),
            "EXCHANGE": self.exchange, "GRADIENT_WORDS": self.gradient_words,
            "RECEIVED": _RECEIVED, "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip
        return tuple(f"-D{name}={value}" for name, value in values.items())

    def definitions(self) -> str:
        """The activations, as lines to put before the source."""
        lines = ""
        for layer, activation in enumerate(self.shape.activations, 1):
            lines += f"#define FORWARD{layer} {activation.forward}\n"
            lines += f"#define DERIVATIVE{layer} {activation.derivative}\n"
        return lines


def make_plan(
    shape: Shape,
    device: DeviceProperties,
    *,
    together: bool = False,
    multiprocessors: int | None = None,
    replicas: int | None = None,
) -> Plan | str:
    """The plan for a network on a device; or why there is none, as a sentence without a full stop.

    Args:
        shape: of the network, with one to `MOST_HIDDEN_LAYERS` hidden layers.
        device: where it runs.
        together: whether it is trained with others. It gets fewer multiprocessors if more networks fit then, and
            samples can still be read ahead.
        multiprocessors: how many the network gets, at most; None: as many as one replica is worth.
        replicas: how many there are. None: as many as there are multiprocessors for.
    """
    if shape.outputs > MOST_OUTPUTS:
        return f"it supports {MOST_OUTPUTS} outputs at most, not {shape.outputs}"
    if multiprocessors is not None and not 1 <= multiprocessors <= device.multiprocessors:
        return f"the device has {device.multiprocessors} multiprocessors, not {multiprocessors}"
    if replicas is not None:
        return _plan_of_replicas(shape, device, replicas, multiprocessors and multiprocessors // replicas)
    plan = _plan_of_replicas(shape, device, 1, None)
    if multiprocessors is None:
        fewer = _plan_of_replicas(shape, device, 1, None, together=True) if together else plan
        if isinstance(plan, Plan) and isinstance(fewer, Plan):
            rooms = [each.resident * device.multiprocessors // each.blocks for each in (plan, fewer)]
            if rooms[1] > rooms[0] and fewer.blocks > 1 and fewer.slots > 1:
                return fewer
        return plan
    blocks = plan.blocks if isinstance(plan, Plan) else _block_counts(shape, device, None)[0]
    chunks = -(-shape.batch // _CHUNK)
    for most in range(max(1, min(_MOST_REPLICAS, chunks, multiprocessors // blocks)), 0, -1):
        replicas = -(-chunks // -(-chunks // most))  # of which each has samples
        most_blocks = multiprocessors // replicas
        for count in range(most_blocks, min(blocks, most_blocks) - 1, -1):
            plan = _plan_of_replicas(shape, device, replicas, count)
            if isinstance(plan, Plan):
                return plan
    return plan


def _plan_of_replicas(
    shape: Shape, device: DeviceProperties, replicas: int, multiprocessors: int | None, together: bool = False
) -> Plan | str:
    """The plan with so many replicas; `multiprocessors` is how many each of them gets, see `make_plan`."""
    least: Plan | None = None
    for blocks in _block_counts(shape, device, multiprocessors, together):
        for plan in _plans(shape, device, replicas, blocks):
            if _fits(plan, device):
                return _extended(plan, device)
            if least is None or plan.shared_bytes < least.shared_bytes:
                least = plan
    assert least is not None
    if least.shared_bytes > device.shared_per_block:
        needed, there = (number / 1024 for number in (least.shared_bytes, device.shared_per_block))
        return (
            f"on {least.multiprocessors} multiprocessors it would need {needed:.0f} KiB of shared memory on each, "
            f"and they have {there:.0f} KiB"
        )
    return f"on {least.multiprocessors} multiprocessors its weights would not fit into the registers"


def _block_counts(
    shape: Shape, device: DeviceProperties, multiprocessors: int | None, together: bool = False
) -> Sequence[int]:
    """Numbers of blocks to try: as many as the network is worth, then more."""
    tiles, most = -(-shape.hidden[0] // 8), multiprocessors or device.multiprocessors
    widths = (_up(shape.inputs, 16), *(_up(width, 8) for width in shape.hidden), shape.outputs)
    weights = [below * width for below, width in pairwise(widths)]
    worth = max(
        -(-weights[0] // (_FIRST_WEIGHTS << together)),
        -(-sum(weights) // _WEIGHTS),
        -(-max(shape.hidden) // (8 * _TILES)),
    )
    wanted = multiprocessors or min(worth, most)
    if len(shape.hidden) == 1:  # each block has at least one tile of units, and all but the last equally many
        first = -(-tiles // wanted)
        each = [first] if multiprocessors else range(first, 0, -1)
        return [count for count in dict.fromkeys(-(-tiles // n) for n in each) if count <= most]
    if multiprocessors:
        return [multiprocessors]
    counts = [n for n in range(1, most + 1) if n >= wanted and (n < 4 or n % 4 == 0)]
    return [*counts, most][:64]


def _plans(shape: Shape, device: DeviceProperties, replicas: int, blocks: int) -> Iterator[Plan]:
    """The plans with these replicas and blocks, the best first: small ones share a multiprocessor."""
    rows = []
    for below, width in pairwise(shape.hidden):
        divisors = [n for n in range(1, blocks + 1) if blocks % n == 0]
        rows.append(min(divisors, key=lambda n: n * _up(width, 16) + blocks // n * _up(below, 16)))
    bulk = device.bulk_copies and _row_bytes(shape) > _SMALL_ROW
    for resident in (2, 1)[replicas > 1 :]:  # replicas are for few networks: they have all registers
        plans = [
            Plan(shape, replicas, blocks, warps_k, 1, tuple(rows), False, False, resident, bulk)
            for warps_k in (1, 2, 4, 8)
        ]
        plan = min(plans, key=_products)
        yield plan
        if plan.buffers:
            yield plan._replace(state_shared=True)


def _products(plan: Plan) -> tuple[int, int]:
    """Tensor core operations of a warp for a chunk, then among how many warps the inputs are divided."""
    inputs, units = plan.tiles
    parts = plan.shape.parts
    return inputs * (2 * units * parts + 4 * -(-units * parts // 2)), plan.warps_k


def _fits(plan: Plan, device: DeviceProperties) -> bool:
    return plan.shared_bytes <= _shared_limit(plan, device) and plan.registers <= _register_limit(plan, device)


def _extended(plan: Plan, device: DeviceProperties) -> Plan:
    """A plan that fits, with as many slots as fit too, and the parts of weights in registers if they fit."""
    for slots in range(2, _MOST_SLOTS + 1):
        more = plan._replace(slots=slots)
        if more.shared_bytes <= _shared_limit(plan, device):
            plan = more
    kept = plan._replace(keep_parts=plan.chunks > 1)
    return kept if kept.registers <= _register_limit(plan, device) else plan


def _shared_limit(plan: Plan, device: DeviceProperties) -> int:
    return min(device.shared_per_block, device.shared_per_multiprocessor // plan.resident - _RESERVED)


def _register_limit(plan: Plan, device: DeviceProperties) -> int:
    return min(255, device.registers // (plan.threads * plan.resident))


def _row_bytes(shape: Shape) -> int:
    """Bytes of a sample in bf16."""
    return 2 * _up(shape.inputs, 16) * (1 if shape.pixels else 3)


def _part(width: int, parts: int) -> int:
    """Units of a part of a layer in a middle weight matrix, a multiple of 16."""
    return _up(-(-width // parts), 16)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
