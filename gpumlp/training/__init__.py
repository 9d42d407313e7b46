"""The training loop, its history, and the folder a run is saved in."""

from .callbacks import Callback
from .divergence import DivergenceError
from .fitting import fit
from .history import EpochRecord, History
from .trainer import Trainer

__all__ = ["Callback", "DivergenceError", "EpochRecord", "History", "Trainer", "fit"]
