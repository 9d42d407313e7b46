"""The training loop, its history, and the folder that a run is saved in."""

from .callbacks import BestCheckpoint, EarlyStopping
from .divergence import DivergenceError
from .history import EpochRecord, History, LayerStatistics
from .many import FitManyError, fit_many
from .progress import Progress
from .tensorboard import TensorBoard
from .trainer import Callback, Trainer, fit

__all__ = [
    "BestCheckpoint",
    "Callback",
    "DivergenceError",
    "EarlyStopping",
    "EpochRecord",
    "FitManyError",
    "History",
    "LayerStatistics",
    "Progress",
    "TensorBoard",
    "Trainer",
    "fit",
    "fit_many",
]
