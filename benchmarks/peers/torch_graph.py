"""PyTorch with the whole step as one CUDA graph.

Not yet measured on a GPU: written after PyTorch's notes on CUDA graphs, it has not run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Samples, Setting
from .torch import TorchEager


class TorchGraph(TorchEager):
    """The whole step as one CUDA graph, replayed for each batch; the short last batch has a graph of its own."""

    name = "torch-graph"
    title = "PyTorch, CUDA graph"

    @classmethod
    def why_not(cls, device: str, dtype: str) -> str | None:
        if device == "cpu":
            return "CUDA graphs need a GPU; torch-compiled stands for it on a CPU"
        return super().why_not(device, dtype)

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
