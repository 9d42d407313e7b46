"""A whole epoch of a small network in one launch: ``persistent.cu``, and how it is launched.

A cooperative launch of one block for every four hidden units, or a multiple of four, whose weights are in shared
memory from the first step to the last. Blocks tell each other nothing but their parts of the logits, and meet once
a step. An epoch is this launch, and five that set a few numbers; where somebody listens to its progress, each of
the epoch's parts is.

For 784-128-10 at batch 32 that is 32 blocks of 4 units. In a step each reads the 25 kB of the batch's pixels,
writes its 1.3 kB of the logits' parts, and reads all 41 kB of them: 1.3 MB for all blocks, from the second-level
cache. Each adds up 200,704 products, for which the 128 units of a multiprocessor need 1,568 ticks at least: the
floor of this division of the work.

Sums have another order here than in the operations one by one, and so results differ from theirs by rounding: that
is why the kernel runs only where it is asked for. Tested on the processor, with the threads of all blocks taking
turns; not yet measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from .base import PIXEL_SCALE
from .cuda_kernels import kernel_source, real_name
from .cuda_rules import PLAIN, activation_code, sgd_code, slope_of
from .persistent_scope import FailedError, Sizes, UnsuitableError, why_not
from .whole import WholeStep

if TYPE_CHECKING:
    from .cuda_operations import CudaOperations

SOURCES = ("persistent_block.cuh", "persistent.cu")
THREADS = 256  # of a block
UNITS = 4  # of a block, or a multiple: as many as a thread of the kernel takes at a time
MOST_STEPS = 65_536  # in one launch, which nothing can interrupt


class Note(NamedTuple):
    """How the last steps of a training were run.

    Attributes:
        ran: by the kernel?
        words: how, or why not.
        failed: did the kernel suit the training, and something went wrong?
    """

    ran: bool
    words: str
    failed: bool = False


class PersistentRunner:
    """Runs steps for a backend by the persistent kernel, where it suits them.

    Args:
        backend: of the device.
        threads: of a block, a multiple of 32.
    """

    def __init__(self, backend: CudaOperations, threads: int = THREADS) -> None:
        self._backend, self.threads = backend, threads
        self._kernels: dict[Sizes, Any] = {}
        self._failures: dict[Sizes, str] = {}
        self._notes: WeakKeyDictionary[Any, Note] = WeakKeyDictionary()

    def describe(self, step: Any) -> Note:
        """Did the kernel run the last steps of this training? How, or why not."""
        return self._notes.get(step, Note(False, "no step was taken"))

    def run(self, step: Any, batches: Sequence[slice]) -> int:
        """Run a step for each batch, in order, if the kernel suits this training.

        Returns:
            How many of the batches are done: all; or those before a launch that failed; or none.
        """
        done = 0
        try:
            whole, sizes = self._prepare(step, batches)
            while done < len(batches):
                part = batches[done : done + MOST_STEPS]
                self._launch(sizes, whole, part, step.learning_rate)
                step.state.steps += len(part)
                done += len(part)
            self._notes[step] = Note(True, self._in_words(sizes))
        except UnsuitableError as error:
            self._notes[step] = Note(False, str(error), isinstance(error, FailedError))
        return done

    def _prepare(self, step: Any, batches: Sequence[slice]) -> tuple[WholeStep, Sizes]:
        """What the kernel needs to know; an `UnsuitableError` if it cannot run these steps."""
        if not hasattr(step, "whole"):
            raise UnsuitableError("it does not know this kind of step")
        whole: WholeStep = step.whole()
        reason = why_not(whole, batches)
        if reason is not None:
            raise UnsuitableError(reason)
        sizes = self._sizes(whole)
        if sizes in self._failures:
            raise FailedError(self._failures[sizes])
        return whole, sizes

    def _in_words(self, sizes: Sizes) -> str:
        return (
            f"{sizes.blocks} blocks of {self.threads} threads, {sizes.units} hidden units and "
            f"{sizes.shared_bytes / 1024:.0f} KiB of shared memory each"
        )

    def _sizes(self, whole: WholeStep) -> Sizes:
        """The sizes for this device; an `UnsuitableError` if there are none."""
        if not self._fact("CooperativeLaunch"):
            raise UnsuitableError("the device has no cooperative launches")
        inputs, hidden = whole.parameters["layers.0.weight"].shape
        most_blocks, room = self._fact("MultiProcessorCount"), self._fact("MaxSharedMemoryPerBlockOptin")
        dtype = whole.losses.dtype
        sizes = Sizes(
            inputs=inputs,
            hidden=hidden,
            classes=whole.parameters["layers.1.weight"].shape[1],
            batch=whole.batch_size,
            units=UNITS * math.ceil(hidden / UNITS / most_blocks),  # no more blocks than are there at once
            buffers=2,
            itemsize=dtype.itemsize,
            pixels=whole.images.dtype == np.uint8,
        )
        if sizes.shared_bytes > room:
            sizes = sizes._replace(buffers=1)
        if sizes.shared_bytes > room:
            raise UnsuitableError(
                f"a block would need {sizes.shared_bytes / 1024:.0f} KiB of shared memory, for its weights and "
                f"the rows of a batch, and the device has {room / 1024:.0f} KiB"
            )
        return sizes

    def _fact(self, name: str) -> int:
        """An attribute of the device; an `UnsuitableError` where CuPy leaves it out."""
        value: int | None = self._backend.xp.cuda.Device().attributes.get(name)
        if value is None:
            raise UnsuitableError(f"the device does not tell its {name}")
        return value

    def _kernel(self, sizes: Sizes, dtype: np.dtype[Any]) -> Any:
        kernel = self._kernels.get(sizes)
        if kernel is None:
            options = sizes.options(real_name(dtype), self.threads)
            # Without CuPy's `enable_cooperative_groups`, which before 14.2 links with a library that wheels lack:
            # only the launch has to be cooperative.
            module = self._backend.xp.RawModule(code=kernel_source(*SOURCES), options=options)
            kernel = module.get_function("train_steps")
            kernel.max_dynamic_shared_size_bytes = sizes.shared_bytes  # above 48 KiB only for those who ask
            self._kernels[sizes] = kernel
        return kernel

    def _launch(self, sizes: Sizes, whole: WholeStep, batches: Sequence[slice], learning_rate: float) -> None:
        """Run steps that `why_not` has nothing against. Every scalar is of its parameter's type: see `Kernels`."""
        xp, dtype, real = self._backend.xp, whole.losses.dtype, whole.losses.dtype.type
        optimizer, penalty, activation = whole.optimizer, whole.penalty, whole.activations[0]
        code, rule = activation_code(activation), sgd_code(optimizer)
        assert code is not None
        names = [f"layers.{layer}.{tensor}" for layer in (0, 1) for tensor in ("weight", "bias")]
        velocity = {} if rule == PLAIN else whole.buffers["velocity"]
        arguments: tuple[Any, ...] = (
            *(whole.images, whole.order, whole.targets),
            *(np.int64(batches[0].start), np.int64(batches[-1].stop)),
            real(PIXEL_SCALE if sizes.pixels else 1.0),
            *(np.int32(code), real(slope_of(activation))),
            *(np.int32(rule), real(optimizer.momentum), real(learning_rate), real(penalty.l2), real(penalty.l1)),
            *(whole.parameters[name] for name in names),
            *(velocity.get(name, np.uint64(0)) for name in names),
            *(whole.losses, whole.correct),
        )
        try:
            parts = xp.empty(2 * sizes.blocks * sizes.batch * sizes.classes, dtype=dtype)
            arguments = (*arguments, parts, xp.zeros(1, dtype=np.uint32))
            function = self._kernel(sizes, dtype).kernel  # what can be launched in either way
            # Of two dimensions, because of one CuPy would quietly launch as many blocks as are there at once.
            grid = (1, sizes.blocks)
            function(
                grid, (self.threads,), arguments, shared_mem=sizes.shared_bytes, enable_cooperative_groups=True
            )
        except Exception as error:  # CuPy's and CUDA's errors have many types; none may end a training
            first_line = str(error).partition("\n")[0]
            self._failures[sizes] = f"{type(error).__name__}: {first_line}"
            raise FailedError(self._failures[sizes]) from error
        for gradient in whole.gradient.values():
            gradient.fill(math.nan)  # nobody shall take an old one for that of these steps
