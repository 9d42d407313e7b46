"""The training loop, its history, and the folder that a run is saved in."""

from .callbacks import BestCheckpoint, EarlyStopping
from .divergence import DivergenceError
from .group import Group, GroupError, MPIGroup
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
    "Group",
    "GroupError",
    "History",
    "LayerStatistics",
    "MPIGroup",
    "Progress",
    "TensorBoard",
    "Trainer",
    "fit",
    "fit_many",
]
