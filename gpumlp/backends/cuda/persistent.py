"""The persistent kernel, ``persistent.cu``: many steps of a small network in one launch.

The cooperative launch has one block for every four hidden units, or a multiple of four, and keeps the weights in
shared memory for all steps. Blocks exchange only their partial logits, with one grid-wide barrier per step.

For 784-128-10 at batch 32 these are 32 blocks of 4 units. In each step a block reads 25 kB of pixels, writes 1.3
kB of partial logits, and reads the 41 kB of all blocks (1.3 MB in total, from the L2 cache). It computes 200,704
multiply-adds, for which the 128 FP32 cores of a multiprocessor need at least 1,568 cycles: the lower bound for
this division of the work. On an H100 a step takes 7.2 us at batch 32 and 18.3 us at batch 128; ``docs/`` has all
tables.

Sums are computed in a different order than by the separate operations, so results differ by rounding. They are
reproducible bit for bit.
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
    has_penalty_kernel,
    is_c_contiguous,
    is_dense,
    kernel_source,
    loss_kernel,
    optimizer_kernel,
    real_name,
    sgd_code,
)

SOURCES = ("blocks.cuh", "persistent_block.cuh", "persistent.cu")
MOST_CLASSES = 64  # since one thread processes a row of logits
UNITS = 4  # the units of a block are a multiple of it
MOST_STEPS = 65_536  # per launch, which cannot be interrupted
_ALIGNMENT = 16  # bytes, of the rows that the kernel reads
_PADDING = 5 * 31  # bytes, the maximum for the alignment of a block's arrays


class Sizes(NamedTuple):
    """The sizes that the kernel is compiled for.

    Attributes:
        inputs, hidden, classes: of the network.
        batch: samples of a full batch.
        units: hidden units of a block; the last block may have fewer.
        buffers: batches of rows in shared memory, 1 or 2; with 2, the next batch is prefetched.
        itemsize: bytes of a parameter.
        pixels: whether the inputs are uint8.
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
        """The number of blocks."""
        return math.ceil(self.hidden / self.units)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of a block, for ``struct Block``; the compiler checks that they suffice."""
        stride, rows = 16 * math.ceil(self.inputs / 16), 4 * math.ceil(self.batch / 4)
        state = self.units * (stride + self.classes + 1) + self.classes
        values = 2 * state + 2 * rows * self.units + self.batch * (self.classes | 1)
        row_bytes = stride * (1 if self.pixels else self.itemsize)
        return values * self.itemsize + self.buffers * rows * row_bytes + _PADDING

    def options(self, real: str, threads: int) -> tuple[str, ...]:
        """The options of the compiler."""
        values = {
            "REAL": real, "PIXELS": int(self.pixels), "INPUTS": self.inputs, "HIDDEN": self.hidden,
            "CLASSES": self.classes, "BATCH": self.batch, "UNITS": self.units, "BLOCKS": self.blocks,
            "BUFFERS": self.buffers, "THREADS": threads, "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip
        return tuple(f"-D{name}={value}" for name, value in values.items())


class PersistentRunner:
    """Runs the steps of a backend by the persistent kernel.

    Args:
        backend: the backend.
        threads: threads of a block, a multiple of 32; None selects by the batch size.
    """

    def __init__(self, backend: Device, threads: int | None = None) -> None:
        self._backend, self._threads = backend, threads
        self._kernels: dict[tuple[Sizes, CudaActivation], Any] = {}
        self._sizes: WeakKeyDictionary[Step, Sizes] = WeakKeyDictionary()

    def threads(self, batch_size: int) -> int:
        """Threads of a block; on an H100, 512 are 10 to 14 % faster than 256 from batch 64 on."""
        return self._threads or (512 if batch_size >= 64 else 256)

    def unsupported_reason(self, step: Step) -> str | None:
        """Why the kernel does not support this step on this device; None if it does."""
        reason = _unsupported_rule(step) or self._unsupported_shape(step)
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
        """Describe how the kernel runs a supported step."""
        sizes = self._sizes[step]
        return (
            f"{sizes.blocks} blocks of {self.threads(sizes.batch)} threads, {sizes.units} hidden units and "
            f"{sizes.shared_bytes / 1024:.0f} KiB of shared memory each"
        )

    def run(self, step: Step, key: StepKey, batches: range, learning_rates: Sequence[float]) -> int:
        """Run the batches of a supported step; arguments as for `GraphRunner.run`. Returns their number."""
        for first in range(0, len(batches), MOST_STEPS):
            part = batches[first : first + MOST_STEPS]
            self._launch(self._sizes[step], step, part, learning_rates[first : first + MOST_STEPS])
            step.state.steps += len(part)
        return len(batches)

    def _unsupported_shape(self, step: Step) -> str | None:
        layers = len(step.layers)
        if layers != 2:
            return f"it supports networks with one hidden layer only, this one has {layers - 1}"
        reasons = {
            "it does not support an activation of the outputs": cuda_activation(step.layers[1].activation)
            != CudaActivation("s", "1", "BIAS"),
            "it does not store the gradients that a callback reads": step.gradient_wanted,
            f"the samples are not aligned to {_ALIGNMENT} bytes": step.images.data.ptr % _ALIGNMENT != 0,
            "the device does not support cooperative launches": not self._attribute("CooperativeLaunch"),
        }
        return next((reason for reason, applies in reasons.items() if applies), None)

    def _fit(self, step: Step) -> Sizes:
        """The sizes for this step and device, with two batches of rows if they fit."""
        hidden_layer, output_layer = step.layers
        inputs, hidden = hidden_layer.weight.shape
        sizes = Sizes(
            inputs=inputs,
            hidden=hidden,
            classes=output_layer.bias.size,
            batch=step.batch_size,
            units=UNITS * math.ceil(hidden / UNITS / self._attribute("MultiProcessorCount")),  # all resident
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
            # CuPy's `enable_cooperative_groups` is not needed, since only the launch is cooperative; before CuPy
            # 14.2 it links with a library that the wheels lack.
            code = kernel_source(*SOURCES, activation=activation)
            kernel = self._backend.xp.RawModule(code=code, options=options).get_function("train_steps")
            kernel.max_dynamic_shared_size_bytes = sizes.shared_bytes  # required above 48 KiB
            self._kernels[sizes, activation] = kernel
        return kernel

    def _launch(self, sizes: Sizes, step: Step, batches: range, learning_rates: Sequence[float]) -> None:
        """Launch the kernel. Every scalar has the type of its parameter; see `Kernels`."""
        xp, dtype, real = self._backend.xp, step.losses.dtype, step.losses.dtype.type
        optimizer, penalty, activation = step.optimizer, step.penalty, cuda_activation(step.layers[0].activation)
        assert activation is not None
        null, first = np.uint64(0), step.state.steps + 1
        pairs = zip(range(first, first + len(batches)), learning_rates, strict=True)
        step_sizes = [optimizer.step_factors(number, rate)[0] for number, rate in pairs]
        velocities = step.buffer_views("velocity") if optimizer.momentum else [(null, null)] * 2
        arguments: tuple[Any, ...] = (
            *(step.images, step.order, step.targets),
            *(np.int64(step.slices[batches[0]].start), np.int64(step.slices[batches[-1]].stop)),
            real(PIXEL_SCALE if sizes.pixels else 1.0),
            *(sgd_code(optimizer), real(optimizer.momentum)),
            self._backend.asarray(np.array(step_sizes, dtype=dtype)),
            *(real(penalty.l2), real(penalty.l1)),
            *(array for layer in step.layers for array in (layer.weight, layer.bias)),
            *(array for views in velocities for array in views),
            *(step.losses, step.scores),
            xp.empty(2 * sizes.blocks * sizes.batch * sizes.classes, dtype=dtype),
            xp.zeros(1, dtype=np.uint32),
        )
        function = self._kernel(sizes, activation, dtype).kernel  # supports cooperative launches
        # A two-dimensional grid: CuPy silently limits a one-dimensional one to the blocks that are resident at
        # once.
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


def _unsupported_rule(step: Step) -> str | None:
    """Which part of a step the kernel does not compute; None if it computes all of it."""
    dtype, loss, optimizer = step.losses.dtype, step.loss, step.optimizer
    others = [repr(layer) for layer in step.layers if not is_dense(layer)]
    activations = [layer.activation for layer in step.layers if is_dense(layer)]
    unknown = [repr(activation) for activation in activations if cuda_activation(activation) is None]
    from_input = [repr(rule) for rule in activations if getattr(rule, "derivative_from", "output") == "input"]
    classes = 0 if others else step.layers[-1].bias.size
    reasons = {
        "its rules change from batch to batch, or a method of it is overridden": not step.same_rules,
        f"it does not support the layer {', '.join(others)}": bool(others),
        "it does not support sample weights": step.sample_weights is not None,
        f"it does not support the loss {loss!r}": loss_kernel(loss) != "softmax_cross_entropy"
        or getattr(loss, "label_smoothing", 0) > 0,
        f"it supports {MOST_CLASSES} classes at most, not {classes}": classes > MOST_CLASSES,
        f"the activation {', '.join(unknown)} has no CUDA expression": bool(unknown),
        f"it does not keep the pre-activation, for {', '.join(from_input)}": bool(from_input),
        f"it supports the optimizer SGD only, not {optimizer!r}": optimizer_kernel(optimizer) != "sgd",
        f"it does not support the penalty {step.penalty!r}": not has_penalty_kernel(step.penalty),
        "it does not clip gradients": step.clip_norm is not None,
        "it does not limit the norms of weights": step.max_norm is not None,
        "it does not average the parameters": step.average is not None,
        "it does not sum the squares of the weights": step.squares is not None,
        "the samples are neither uint8 nor of the network's dtype": step.images.dtype not in (np.uint8, dtype),
        "the targets are not int64": step.targets.dtype != np.int64,
        "the scores are not bool": step.scores.dtype != np.bool_,
        "an array is not C-contiguous": not is_c_contiguous(step.images, step.order, step.targets),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
