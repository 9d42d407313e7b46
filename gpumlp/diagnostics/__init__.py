"""What is wrong with a training run: statistics of its layers, and rules that read them and the learning curves.

`LayerWatch` is the callback that measures; the trainer works without it.
"""

from ..training.history import Finding, LayerStatistics, Setting
from .findings import Diagnosis, diagnose
from .rules import find, trend
from .statistics import LayerWatch, Probe, is_due

__all__ = [
    "Diagnosis",
    "Finding",
    "LayerStatistics",
    "LayerWatch",
    "Probe",
    "Setting",
    "diagnose",
    "find",
    "is_due",
    "trend",
]
