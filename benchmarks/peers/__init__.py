"""The libraries that are compared, one small file for each, written as its own users would write it.

No file imports its library before one of its peers is made, so that any of them may be missing.
"""

from .base import Peer, Samples, Setting
from .gpumlp import Gpumlp, GpumlpPersistent
from .jax import JaxScan
from .sklearn import ScikitLearn
from .textbook import Textbook
from .torch import TorchCompiled, TorchEager
from .torch_graph import TorchGraph

ALL: tuple[type[Peer], ...] = (
    Gpumlp,
    TorchEager,
    TorchCompiled,
    TorchGraph,
    JaxScan,
    ScikitLearn,
    Textbook,
    GpumlpPersistent,
)

__all__ = ["ALL", "Peer", "Samples", "Setting"]
