"""A program for mpiexec: ``mpiexec -n 2 python -m tests.mpi_program NAME ARGUMENT ...``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from gpumlp import MLP, SGD, Callback, Dataset, Distortion, EarlyStopping, Group, MPIGroup, Trainer, fit, train
from gpumlp.training.shards import PairwiseSum
from gpumlp.training.step import TrainingStep
from tests.test_resume import SETTINGS, state


def data() -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    centres = rng.integers(0, 256, (4, 20))
    images = np.clip(centres[labels] + rng.normal(0, 25, (300, 20)), 0, 255).astype(np.uint8)
    return Dataset(images, labels, classes=4, name="blobs")


def settings(group: Group) -> dict[str, str]:
    """The state after three epochs with each of the settings and each kind of targets, also stopped early."""
    results: dict[str, str] = {}

    def train(name: str, data: Dataset, network: dict[str, Any], shards: int, **options: Any) -> None:
        model = MLP([20, 16, 12, data.outputs], seed=7, device="cpu", **network)
        options = {"batch_size": 32, "seed": 7, **options, "shards": shards, "group": group}
        trainer = Trainer(model, data, **options)
        stopping = [EarlyStopping(patience=1)] if options.get("validation") else []
        trainer.run(3, stopping)
        parameters, steps, order, records = state(trainer)
        for record in records:
            record.pop("layers")  # measured by process 0
        results[f"{name}, {shards}"] = repr((sorted(parameters.items()), steps, order, records))

    shared = [shards for shards in (12, 4) if shards % group.size == 0]
    for shards in shared:
        for name, (network, options) in SETTINGS.items():
            train(name, data(), network, shards, **{key: each for key, each in options.items() if key != "shards"})
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 20)).astype(np.float32)
    numbers = Dataset(x, x[:, :2] ** 2, weights=rng.random(300))
    train("numbers", numbers, {}, shared[0], optimizer=SGD(0.01, momentum=0.9), validation=0.2)
    train("one batch", data(), {}, shared[0], batch_size="full")
    train("labels", Dataset(x, x[:, :3] > 0, task="labels"), {"dropout": 0.2}, shared[0], validation=50)
    train("stopped", data(), {}, shared[0], optimizer=SGD(2.0), validation=50)
    images = Dataset(data().images.reshape(300, 4, 5), data().labels, classes=4)
    augment = Distortion(rotation=7.5, elastic=(34, 4))
    train("distorted", images, {}, shared[0], augment=augment, batch_size=50, validation=30)
    return results


def sums(group: Group) -> dict[str, str]:
    """Sums of arrays of many lengths, also of fewer elements than processes."""
    results = {}
    for terms in [terms for terms in (4, 12, 24) if terms % group.size == 0]:
        for length in (1, 2, 3, 7, 64, 1000):
            all_terms = np.random.default_rng(length).normal(size=(terms, length)).astype(np.float32)
            each, pieces = terms // group.size, PairwiseSum(np, terms)
            for term in range(group.rank * each, (group.rank + 1) * each):
                pieces.add(all_terms[term], term, term + 1)
            out = pieces.pieces[-1][1]
            group.sum(pieces.pieces, terms, out)
            results[f"{terms}, {length}"] = out.tobytes().hex()
    return results


class Fails(Callback):
    """Raises in one epoch."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        if trainer.epoch == 2:
            raise ArithmeticError("the second epoch is not to my liking")


def train_forever(group: Group, **options: Any) -> int:
    model = MLP([20, 16, 4], seed=0, device="cpu")
    history = fit(model, data(), epochs=100_000, shards=4, group=group, **options)
    print(f"rank {group.rank} interrupted: {history.interrupted}", flush=True)
    return len(history)


def train_and_fail(how: str, *words: str) -> None:
    """``python -m gpumlp.train``, which fails in process 1 in the second epoch."""
    call = TrainingStep.__call__

    def step(self: TrainingStep, *arguments: Any) -> None:
        if self.group.rank == 1 and self.state.steps == 60:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("too little of it") if how == "memory" else ArithmeticError("a bug")
        call(self, *arguments)

    TrainingStep.__call__ = step  # type: ignore[method-assign]
    sys.exit(train.main(words))


def main() -> None:
    name, *words = sys.argv[1:]
    if name == "train":
        train_and_fail(*words)
    group = MPIGroup()
    if name in ("settings", "sums"):
        found = settings(group) if name == "settings" else sums(group)
        group.agree(found)  # all processes have the same
        if group.rank == 0:
            with open(words[0], "w", encoding="utf-8") as file:
                json.dump(found, file)
    elif name == "callback":
        train_forever(group, callbacks=[Fails()])
    elif name == "raise":
        if group.rank == 1:
            raise ValueError("rank 1 cannot go on")
        train_forever(group)
    elif name == "kill":
        if group.rank == 1:
            os.kill(os.getpid(), 9)
        train_forever(group)
    elif name == "interrupt":
        ready = [lambda trainer: open(words[0], "w").close()]
        epochs = train_forever(group, callbacks=ready)
        group.agree({"finished epochs": epochs})
        time.sleep(0.1)
    elif name == "differ":
        what, rank = words[0], group.rank
        model = MLP([20, 16 + (what == "network") * rank, 4], seed=(what == "parameters") * rank, device="cpu")
        rows = data()
        if what == "data" and rank == 1:
            rows = Dataset(rows.images[::-1].copy(), rows.targets, classes=4)
        rate = 0.1 + 0.1 * (what == "optimizer") * rank
        fit(model, rows, optimizer=SGD(rate), epochs=1 + (what == "epochs") * rank, group=group)
    elif name == "part":  # as processors may that round differently
        model = MLP([20, 16, 4], seed=0, device="cpu")
        trainer = Trainer(model, data(), group=group)
        update = model.backend.update

        def rounded(*arguments: Any, **options: Any) -> None:
            update(*arguments, **options)
            if group.rank and trainer.epoch == 1:
                model.parameters.data[0] *= 1 + 1e-6

        model.backend.update = rounded  # type: ignore[method-assign]
        trainer.run(3)


if __name__ == "__main__":
    main()
