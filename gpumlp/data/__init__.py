"""Data sets: validated arrays, MNIST, the built-in digits, and .npz files."""

from .dataset import Dataset
from .digits import load_digits
from .errors import DataError
from .mnist import load_mnist, mnist_folders
from .npz import load_npz
from .sources import load_dataset

__all__ = ["DataError", "Dataset", "load_dataset", "load_digits", "load_mnist", "load_npz", "mnist_folders"]
