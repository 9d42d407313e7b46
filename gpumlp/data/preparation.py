"""`as_mnist` under its public path; see `gpumlp.pictures`."""

from ..pictures import as_mnist

__all__ = ["as_mnist"]
