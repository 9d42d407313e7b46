"""PyTorch: eager, compiled (on a CPU), and with the whole step as a CUDA graph (on a GPU)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from . import Peer, Samples, Setting, layers, missing
from .numpy import thread_counts

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
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
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
        """The forms of SGD to try here: an older PyTorch has no fused one for the CPU."""
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
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
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


class TorchGraph(TorchEager):
    """The whole step as one CUDA graph, replayed for each batch; the short last batch has a graph of its own."""

    name = "torch-graph"
    title = "PyTorch, CUDA graph"

    @classmethod
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
        if device == "cpu":
            return "CUDA graphs need a GPU; torch-compiled takes its place on a CPU"
        return super().unsupported_reason(device, dtype)

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        import torch

        super().__init__(setting, samples, weights, threads)
        with torch.cuda.device(self.device):
            self.total = torch.zeros((), device=self.device, dtype=self.x.dtype)
            sizes = sorted({b.stop - b.start for b in samples.batches(setting.batch_size)})
            self._warm_up(sizes)
            self.graphs = {size: self._capture(size) for size in sizes}
            self._restart()

    def losses(self) -> list[float]:
        import torch

        result = []
        with torch.cuda.device(self.device):
            for rows in torch.arange(self.count, device=self.device).split(self.setting.batch_size):
                self.total.zero_()
                self._replay(rows)
                result.append(self.total.item() / len(rows))
        return result

    def _train(self, order: Any) -> float:
        import torch

        with torch.cuda.device(self.device):
            self.total.zero_()
            for rows in order.split(self.setting.batch_size):
                self._replay(rows)
            return self.total.item() / len(order)

    def _variants(self, threads: int | None) -> tuple[str, ...]:
        return ()

    def _replay(self, rows: Any) -> None:
        graph, static_rows = self.graphs[len(rows)]
        static_rows.copy_(rows)
        graph.replay()

    def _warm_up(self, sizes: list[int]) -> None:
        """Steps on a stream of their own before any capture, as PyTorch's notes ask for."""
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for size in sizes:
                rows = torch.arange(size, device=self.device)
                for _ in range(3):
                    self.total.add_(self._step(rows), alpha=size)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, size: int) -> tuple[Any, Any]:
        """A graph of one step, and the index tensor that it reads."""
        import torch

        rows = torch.arange(size, device=self.device)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)  # so that the gradients come from the graph's own memory
        with torch.cuda.graph(graph):
            self.total.add_(self._step(rows), alpha=size)
        return graph, rows

    def _restart(self) -> None:
        """Initial weights and velocities of zero, in the tensors that the graphs know."""
        self._load_weights()
        for state in self.optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].zero_()


@cache
def own_threads() -> int:
    """PyTorch's own number of threads, asked once: later it is what the last trial has set."""
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
