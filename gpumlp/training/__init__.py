"""The training loop, its history, and the folder a run is saved in."""

from .callbacks import Callback
from .divergence import DivergenceError
from .fitting import fit
from .history import EpochRecord, History
from .monitoring import BestCheckpoint, EarlyStopping
from .progress import ProgressDisplay as Progress
from .tensorboard import TensorBoard
from .trainer import Trainer

__all__ = [
    "BestCheckpoint",
    "Callback",
    "DivergenceError",
    "EarlyStopping",
    "EpochRecord",
    "History",
    "Progress",
    "TensorBoard",
    "Trainer",
    "fit",
]
