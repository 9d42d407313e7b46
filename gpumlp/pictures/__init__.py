"""Photographs and scans of digits: from a picture file to a sample as a network was trained on."""

from .ink import find_ink
from .marks import NoDigitError
from .preparation import CHOICES, DONE, as_digits, as_mnist, as_resized, choose_preparation, read_sample
from .reading import SUFFIXES, read_picture

__all__ = [
    "CHOICES",
    "DONE",
    "SUFFIXES",
    "NoDigitError",
    "as_digits",
    "as_mnist",
    "as_resized",
    "choose_preparation",
    "find_ink",
    "read_picture",
    "read_sample",
]
