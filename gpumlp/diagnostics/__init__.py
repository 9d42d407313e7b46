"""What is wrong with a training: statistics of its layers, and rules that read them and the learning curves."""

from .curve_rules import trend
from .findings import Finding, Setting
from .rules import find
from .statistics import LayerStatistics, Probe

__all__ = ["Finding", "LayerStatistics", "Probe", "Setting", "find", "trend"]
