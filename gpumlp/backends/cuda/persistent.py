"""All steps of an epoch of a small network in one launch: ``persistent.cu``, which steps it runs, and its launch.

A cooperative launch of one block for every four hidden units, or a multiple of four, whose weights are in shared
memory from the first step to the last. Blocks exchange only their parts of the logits, and meet once a step.
A part of an epoch is this launch, and a few that set numbers.

For 784-128-10 at batch 32 that is 32 blocks of 4 units. In a step each reads the 25 kB of the batch's pixels,
writes its 1.3 kB of the logits' parts, and reads all 41 kB of them: 1.3 MB for all blocks, from the second-level
cache. Each adds up 200,704 products, for which the 128 units of a multiprocessor need 1,568 ticks at least: the
floor of this division of the work. On an H100 a step takes 7.2 us at batch 32 and 18.3 at 128
(``docs/`` has all measured tables).

Sums have another order here than in the operations one by one, so results differ from theirs by rounding. They are
the same bits in every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..base import PIXEL_SCALE, CudaActivation, Step
from .graphs import StepKey
from .kernels import (
    Device,
    cuda_activation,
    kernel_source,
    optimizer_kernel,
    real_name,
    sgd_code,
    unsupported_reason,
)

SOURCES = ("persistent_block.cuh", "persistent.cu")
UNITS = 4  # of a block, or a multiple: as many as a thread of the kernel takes at a time
MOST_STEPS = 65_536  # in one launch, which nothing can interrupt
_ALIGNMENT = 16  # bytes in which rows are read
_PADDING = 5 * 31  # bytes, the most that aligning the arrays of a block can take


class Sizes(NamedTuple):
    """What the kernel is compiled for.

    Attributes:
        batch: samples of a full batch.
        units: hidden units of a block; the last block may have fewer.
        buffers: batches whose rows a block has room for; with 2, the next batch is read ahead.
        itemsize: bytes of a parameter.
        pixels: are the inputs uint8?
    """

    inputs: int
    hidden: int
    classes: int
    batch: int
    units: int
    buffers: int
    itemsize: int
    pixels: bool

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return math.ceil(self.hidden / self.units)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, as ``struct Block`` lays it out; the compiler checks that it suffices."""
        stride, rows = 16 * math.ceil(self.inputs / 16), 4 * math.ceil(self.batch / 4)
        state = self.units * (stride + self.classes + 1) + self.classes
        values = 2 * state + 2 * rows * self.units + self.batch * (self.classes | 1)
        row_bytes = stride * (1 if self.pixels else self.itemsize)
        return values * self.itemsize + self.buffers * rows * row_bytes + _PADDING

    def options(self, real: str, threads: int) -> tuple[str, ...]:
        """For the compiler."""
        values = {
            "REAL": real, "PIXELS": int(self.pixels), "INPUTS": self.inputs, "HIDDEN": self.hidden,
            "CLASSES": self.classes, "BATCH": self.batch, "UNITS": self.units, "BLOCKS": self.blocks,
            "BUFFERS": self.buffers, "THREADS": threads, "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip
        return tuple(f"-D{name}={value}" for name, value in values.items())


class PersistentRunner:
    """Runs steps for a backend by the persistent kernel.

    Args:
        backend: of the device.
        threads: of a block, a multiple of 32; None chooses by the batch.
    """

    def __init__(self, backend: Device, threads: int | None = None) -> None:
        self._backend, self._threads = backend, threads
        self._kernels: dict[tuple[Sizes, CudaActivation], Any] = {}
        self._sizes: WeakKeyDictionary[Step, Sizes] = WeakKeyDictionary()

    def threads(self, batch_size: int) -> int:
        """Threads of a block: measured on an H100, 512 are 10 to 14 % faster from batch 64 on."""
        return self._threads or (512 if batch_size >= 64 else 256)

    def unsupported_reason(self, step: Step) -> str | None:
        """Why the kernel cannot run this step on this device, as a sentence; None if it can."""
        reason = unsupported_reason(step) or self._unsupported_shape(step)
        if reason is not None:
            return reason
        self._sizes[step] = sizes = self._fit(step)
        available = self._attribute("MaxSharedMemoryPerBlockOptin")
        if sizes.shared_bytes <= available:
            return None
        return (
            f"a block would need {sizes.shared_bytes / 1024:.0f} KiB of shared memory, for its weights and "
            f"the rows of a batch, and the device has {available / 1024:.0f} KiB"
        )

    def describe(self, step: Step) -> str:
        """How the kernel runs a step that `unsupported_reason` has nothing against, in words."""
        sizes = self._sizes[step]
        return (
            f"{sizes.blocks} blocks of {self.threads(sizes.batch)} threads, {sizes.units} hidden units and "
            f"{sizes.shared_bytes / 1024:.0f} KiB of shared memory each"
        )

    def run(self, step: Step, key: StepKey, batches: range, learning_rates: Sequence[float]) -> int:
        """Run steps that `unsupported_reason` has nothing against. Returns how many: all."""
        for first in range(0, len(batches), MOST_STEPS):
            part = batches[first : first + MOST_STEPS]
            self._launch(self._sizes[step], step, part, learning_rates[first : first + MOST_STEPS])
            step.state.steps += len(part)
        return len(batches)

    def _unsupported_shape(self, step: Step) -> str | None:
        layers = len(step.layers)
        if layers != 2:
            return f"it is for networks of one hidden layer, this one has {layers - 1}"
        reasons = {
            "it is for the optimizer SGD": optimizer_kernel(step.optimizer) != "sgd",
            "it is for outputs without an activation of their own": cuda_activation(step.layers[1].activation)
            != CudaActivation("s", "1", "BIAS"),
            "it never makes the gradients that a callback reads": step.gradient_wanted,
            f"the samples do not begin at a multiple of {_ALIGNMENT} bytes": step.images.data.ptr % _ALIGNMENT
            != 0,
            "the device has no cooperative launches": not self._attribute("CooperativeLaunch"),
        }
        return next((reason for reason, applies in reasons.items() if applies), None)

    def _fit(self, step: Step) -> Sizes:
        """What the kernel is compiled for on this device: two batches of rows where they fit."""
        hidden_layer, output_layer = step.layers
        inputs, hidden = hidden_layer.weight.shape
        sizes = Sizes(
            inputs=inputs,
            hidden=hidden,
            classes=output_layer.bias.size,
            batch=step.batch_size,
            units=UNITS * math.ceil(hidden / UNITS / self._attribute("MultiProcessorCount")),  # all blocks at once
            buffers=2,
            itemsize=step.losses.dtype.itemsize,
            pixels=bool(step.images.dtype == np.uint8),
        )
        if sizes.shared_bytes > self._attribute("MaxSharedMemoryPerBlockOptin"):
            sizes = sizes._replace(buffers=1)
        return sizes

    def _attribute(self, name: str) -> int:
        return int(self._backend.xp.cuda.Device().attributes.get(name, 0))

    def _kernel(self, sizes: Sizes, activation: CudaActivation, dtype: np.dtype[Any]) -> Any:
        kernel = self._kernels.get((sizes, activation))
        if kernel is None:
            options = sizes.options(real_name(dtype), self.threads(sizes.batch))
            # Without CuPy's `enable_cooperative_groups`, which before 14.2 links with a library that wheels lack:
            # only the launch has to be cooperative.
            code = kernel_source(*SOURCES, activation=activation)
            kernel = self._backend.xp.RawModule(code=code, options=options).get_function("train_steps")
            kernel.max_dynamic_shared_size_bytes = sizes.shared_bytes  # more than 48 KiB has to be asked for
            self._kernels[sizes, activation] = kernel
        return kernel

    def _launch(self, sizes: Sizes, step: Step, batches: range, learning_rates: Sequence[float]) -> None:
        """One launch. Every scalar is of its parameter's type: see `Kernels`."""
        xp, dtype, real = self._backend.xp, step.losses.dtype, step.losses.dtype.type
        optimizer, penalty, activation = step.optimizer, step.penalty, cuda_activation(step.layers[0].activation)
        assert activation is not None
        null = np.uint64(0)
        velocities = step.buffer_views("velocity") if optimizer.momentum else [(null, null)] * 2
        arguments: tuple[Any, ...] = (
            *(step.images, step.order, step.targets),
            *(np.int64(step.slices[batches[0]].start), np.int64(step.slices[batches[-1]].stop)),
            real(PIXEL_SCALE if sizes.pixels else 1.0),
            *(sgd_code(optimizer), real(optimizer.momentum)),
            self._backend.asarray(np.array(learning_rates, dtype=dtype)),
            *(real(penalty.l2), real(penalty.l1)),
            *(array for layer in step.layers for array in (layer.weight, layer.bias)),
            *(array for views in velocities for array in views),
            *(step.losses, step.correct),
            xp.empty(2 * sizes.blocks * sizes.batch * sizes.classes, dtype=dtype),
            xp.zeros(1, dtype=np.uint32),
        )
        function = self._kernel(sizes, activation, dtype).kernel  # can be launched cooperatively
        # Of two dimensions, because of one CuPy would silently launch only as many blocks as fit at once.
        function(
            (1, sizes.blocks),
            (self.threads(sizes.batch),),
            arguments,
            shared_mem=sizes.shared_bytes,
            enable_cooperative_groups=True,
        )
        for layer in step.layers:
            for gradient in (layer.weight_gradient, layer.bias_gradient):
                gradient.fill(math.nan)  # poison stale gradients
