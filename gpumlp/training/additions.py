"""What the configuration of a run asks for beside the training: early stopping, the best network, a log."""

from __future__ import annotations

from .callbacks import Callback
from .checkpoint import Checkpoint, CheckpointError
from .history import History
from .monitoring import EarlyStopping, best_epoch
from .run import BEST, CHECKPOINT, RunFolder
from .tensorboard import TensorBoard
from .trainer import Trainer

# The options for them, which may change when a run goes on.
ADDITIONS = ("early_stopping", "log")
_MONITOR = "validation_loss"


class BestFolder(Callback):
    """Keeps the state after the epoch of the lowest validation loss: a checkpoint in a folder within the run's."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.path / BEST

    def on_train_begin(self, trainer: Trainer) -> None:
        self.on_epoch_end(trainer)  # the training may have died before this was saved

    def on_epoch_end(self, trainer: Trainer) -> None:
        best = best_epoch(trainer.history, _MONITOR)
        if best is not None and best.since == 0:
            self.path.mkdir(exist_ok=True)
            Checkpoint.of(trainer, self.run.config).save(self.path / CHECKPOINT)
            RunFolder(self.path, self.run.config).remove_all_but_checkpoint()  # it was about another network


def additions(run: RunFolder) -> list[Callback]:
    """The callbacks that the configuration asks for. They go by the history, so that a run resumes exactly."""
    callbacks: list[Callback] = []
    if run.config.early_stopping:
        # The run's own checkpoint stays the one to go on from; the best network is kept beside it.
        callbacks += [
            BestFolder(run),
            EarlyStopping(_MONITOR, patience=run.config.early_stopping, restore_best=False),
        ]
    if run.config.log == "tensorboard":
        callbacks.append(TensorBoard(run.path))
    return callbacks


def where_the_best_is(history: History, run: RunFolder) -> str | None:
    """Was the run stopped early, and which epoch was the best, in words; None where nobody has asked."""
    best = best_epoch(history, _MONITOR) if run.config.early_stopping else None
    if best is None:
        return None
    text = f"the validation loss was lowest after epoch {best.epoch} ({best.value:.4f})"
    if best.since >= run.config.early_stopping:
        text = "stopped early: " + text
    try:
        saved = len(Checkpoint.load(run.path / BEST / CHECKPOINT).history)
    except CheckpointError:
        saved = 0
    return f"{text}; the network of that epoch is in {run.path / BEST}" if saved == best.epoch else text
