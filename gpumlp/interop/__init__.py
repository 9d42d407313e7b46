"""Networks from and to other libraries: scikit-learn, PyTorch, ONNX and NumPy. None of them is imported here."""

from .importing import ImportedModelError

__all__ = ["ImportedModelError"]
