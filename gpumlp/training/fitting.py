"""`fit`: training in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ..data import Dataset
from ..nn.hyperparameters import whole
from ..nn.network import MLP
from ..nn.optimizers import Optimizer, Penalty
from ..nn.schedules import Schedule
from .callbacks import CallbackLike
from .history import History
from .trainer import Trainer


def fit(
    model: MLP,
    train: Dataset,
    *,
    optimizer: Optimizer | None = None,
    epochs: int = 10,
    batch_size: int | Literal["full"] = 128,
    validation: Dataset | int | None = None,
    schedule: Schedule | None = None,
    l2: float = 0.0,
    l1: float = 0.0,
    seed: int = 0,
    callbacks: CallbackLike | Iterable[CallbackLike] = (),
    diagnostics: bool = True,
) -> History:
    """Train a network in place.

    Args:
        model: the network.
        train: the training samples.
        optimizer: ``SGD(learning_rate=0.1)`` by default. Its state starts at zero with every call.
        epochs: passes over the training samples.
        batch_size: samples a step, or ``"full"``.
        validation: a `Dataset`, or how many training samples to hold out; None for no validation.
        schedule: of the learning rate, such as ``StepDecay(gamma=0.5, step_size=20)``.
        l2, l1: weight penalty, see `Penalty`.
        seed: of the held-out samples and of the batch order: same seed, same run, bit for bit, on one
            machine and device.
        callbacks: functions called with the trainer after every epoch, or `Callback` objects, such as
            `Progress`, `EarlyStopping`, `BestCheckpoint` and `TensorBoard`; a list of them, or a single one.
        diagnostics: look at each layer after every epoch (of very short ones, after some), for
            ``history.findings()``; the results are the same.

    Returns:
        The history, one record per epoch, which knows the `findings` and the `trend`. After Ctrl-C, that of the
        finished epochs, with ``history.interrupted`` set and the network as it was after the last of them.

    Raises:
        ValueError: the data does not fit the network, or a value is out of range.
        DivergenceError: the loss became NaN or infinite; the network is that of the last good epoch.

    >>> from gpumlp import MLP, SGD, fit, load_digits
    >>> train, test = load_digits()
    >>> model = MLP([64, 32, 10], device="cpu")
    >>> history = fit(model, train, optimizer=SGD(0.1, momentum=0.9), epochs=5, batch_size=32)
    >>> len(history), model.accuracy(test) > 0.9
    (5, True)
    >>> history.findings(), history.trend()
    ([], 'converging')
    """
    epochs = whole("epochs", epochs, 1)
    trainer = Trainer(
        model,
        train,
        optimizer=optimizer,
        schedule=schedule,
        penalty=Penalty(l2=l2, l1=l1),
        batch_size=batch_size,
        validation=validation,
        seed=seed,
        diagnostics=diagnostics,
    )
    return trainer.run(epochs, callbacks)
