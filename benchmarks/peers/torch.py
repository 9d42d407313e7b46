"""PyTorch: eager, and compiled (on a CPU). Not yet measured on a GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from .base import Peer, Samples, Setting, layers, missing
from .blas import thread_counts

_OPTIMIZERS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


class TorchEager(Peer):
    """`torch.nn.Sequential`, an index tensor for each batch, and the loss summed on the device."""

    name = "torch"
    title = "PyTorch eager"

    @classmethod
    def why_not(cls, device: str, dtype: str) -> str | None:
        return missing("torch") or _no_cuda(device)

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        import torch

        torch.set_float32_matmul_precision("highest")  # no TF32
        self.setting, self.count = setting, len(samples)
        self.device = torch.device(setting.device)
        self.default_threads = threads or own_threads()
        self.threads = self.default_threads
        self.x = torch.from_numpy(samples.inputs).to(self.device)
        self.y = torch.from_numpy(samples.labels).to(self.device)
        self.network, self.loss = self._network_and_loss()
        self.weights = weights
        self.variants = self._variants(threads)
        self._begin("fused" if "fused" in self._optimizers() else "foreach")

    def losses(self) -> list[float]:
        import torch

        rows = torch.arange(self.count, device=self.device)
        return [self._step(batch).item() for batch in rows.split(self.setting.batch_size)]

    def epoch(self, part: int | None = None) -> float:
        import torch

        self._set_threads()
        return self._train(torch.randperm(self.count, device=self.device)[:part])

    def unshuffled_epoch(self) -> float:
        import torch

        self._set_threads()
        return self._train(torch.arange(self.count, device=self.device))

    def _train(self, order: Any) -> float:
        import torch

        total = torch.zeros((), device=self.device, dtype=self.x.dtype)
        for rows in order.split(self.setting.batch_size):
            total.add_(self._step(rows), alpha=len(rows))
        return total.item() / len(order)

    def synchronize(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def choose(self, variant: str) -> None:
        optimizer, _, rest = variant.partition(", ")
        self.threads = int(rest.partition(" ")[0]) if rest else self.default_threads
        self._begin(optimizer)

    def _variants(self, threads: int | None) -> tuple[str, ...]:
        kinds = self._optimizers()
        if self.device.type == "cuda":
            return kinds
        counts = thread_counts(threads, self.default_threads)
        return tuple(f"{kind}, {_threads(n)}" for kind in kinds for n in counts)

    def _step(self, rows: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.x.index_select(0, rows), self.y[rows])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _network_and_loss(self) -> tuple[Any, Callable[..., Any]]:
        import torch

        sizes, steps = self.setting.sizes, []
        for n_in, n_out in pairwise(sizes):
            steps += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        network = torch.nn.Sequential(*steps[:-1]).to(self.device, self.x.dtype)

        def loss(x: Any, y: Any) -> Any:
            return torch.nn.functional.cross_entropy(network(x), y)

        return network, loss

    def _begin(self, optimizer: str) -> None:
        """Everybody's initial weights, and an optimizer that has not seen a gradient."""
        import torch

        self._load_weights()
        rate, momentum = self.setting.learning_rate, self.setting.momentum
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=rate, momentum=momentum, **_OPTIMIZERS[optimizer]
        )

    def _load_weights(self) -> None:
        import torch

        linear = [module for module in self.network if isinstance(module, torch.nn.Linear)]
        with torch.no_grad():
            for module, (weight, bias) in zip(linear, layers(self.setting, self.weights), strict=True):
                module.weight.copy_(torch.from_numpy(weight.T))
                module.bias.copy_(torch.from_numpy(bias))

    def _optimizers(self) -> tuple[str, ...]:
        """The forms of SGD worth a trial here: an older PyTorch has no fused one for the CPU."""
        import torch

        try:
            parameter = torch.zeros(1, device=self.device, requires_grad=True)
            parameter.grad = torch.zeros_like(parameter)
            torch.optim.SGD([parameter], lr=0.1, fused=True).step()
        except (RuntimeError, TypeError):
            return ("foreach", "loop") if self.device.type == "cpu" else ("foreach",)
        return ("fused", "loop") if self.device.type == "cpu" else ("fused", "foreach")

    def _set_threads(self) -> None:
        import torch

        if self.device.type == "cpu" and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


class TorchCompiled(TorchEager):
    """`torch.compile` of network and loss, forward and backward, with fixed shapes.

    The gather and the fused update, which compiling does not make faster, stay outside.
    """

    name = "torch-compiled"
    title = "PyTorch compiled"
    _last: tuple[Any, Any, Callable[..., Any]] | None = (
        None  # compiling takes seconds, and momentum has no part in it
    )

    @classmethod
    def why_not(cls, device: str, dtype: str) -> str | None:
        if device != "cpu":
            return "on a GPU the CUDA graph of the step, torch-graph, takes its place"
        if reason := missing("torch"):
            return reason
        if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))):
            return "torch.compile needs a C++ compiler (g++, or the one that CXX names)"
        return None

    def choose(self, variant: str) -> None:
        """Nothing to choose: compiled code keeps the number of threads that it was compiled for."""

    def _variants(self, threads: int | None) -> tuple[str, ...]:
        return (_threads(self.default_threads),)

    def _network_and_loss(self) -> tuple[Any, Callable[..., Any]]:
        import torch

        key = (self.setting.sizes, self.setting.batch_size, self.setting.dtype, self.setting.device)
        if TorchCompiled._last is None or TorchCompiled._last[0] != key:
            torch.compiler.reset()  # or PyTorch stops to compile after a few shapes
            network, loss = super()._network_and_loss()
            TorchCompiled._last = (key, network, torch.compile(loss, dynamic=False))
        self._set_threads()
        return TorchCompiled._last[1:]


@cache
def own_threads() -> int:
    """PyTorch's own number of threads, asked once: later it would be what the last trial has left behind."""
    import torch

    return torch.get_num_threads()


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _no_cuda(device: str) -> str | None:
    """Why PyTorch cannot use this device, or None."""
    import torch

    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        return f"this PyTorch ({torch.__version__}) finds no usable GPU"
    index = torch.device(device).index or 0
    return None if index < torch.cuda.device_count() else f"PyTorch does not see {device}"
