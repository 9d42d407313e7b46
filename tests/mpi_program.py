"""A program for mpiexec: ``mpiexec -n 2 python -m tests.mpi_program NAME ARGUMENT ...``."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any

import numpy as np

import gpumlp
from gpumlp import (
    MLP,
    SGD,
    Adam,
    Blocks,
    Callback,
    Dataset,
    Distortion,
    EarlyStopping,
    ExponentialDecay,
    Group,
    MPIGroup,
    StreamedDataset,
    Trainer,
    fit,
    train,
)
from gpumlp.data.rows import FileRows
from gpumlp.training import run
from gpumlp.training.shards import PairwiseSum
from gpumlp.training.step import TrainingStep
from tests.data_helpers import blobs as data
from tests.host_cuda import HostCupy, host_cuda_backend, host_products, load_cupy_backend
from tests.host_nccl import use_host_nccl
from tests.test_resume import SETTINGS, state


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


STREAMS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": SGD(0.05, momentum=0.9)},
    "adam, fraction": {"optimizer": Adam(0.01), "validation": 0.2, "class_weight": "balanced"},
    "small windows": {"order": Blocks(7, 4), "batch_size": 50, "validation": 50},
    "few blocks": {"order": Blocks(100, 1), "batch_size": 29, "ema": 0.9},
    "full": {"order": Blocks(16, 2), "batch_size": "full"},
}


def streams(group: Group) -> dict[str, str]:
    """The state after training on samples in files, the same as in memory; and how often each sample was read."""
    results: dict[str, str] = {}
    memory, seen = data(), np.zeros((group.size, 300), np.uint8)
    weights, read = np.random.default_rng(2).random(300), FileRows.read

    def train(data: Dataset, shards: int, options: dict[str, Any]) -> Trainer:
        model = MLP([20, 16, 4], seed=7, device="cpu")
        options = {"batch_size": 32, "order": Blocks(10, 6), **options}
        trainer = Trainer(model, data, seed=7, shards=shards, group=group, **options)
        trainer.run(3, [EarlyStopping(patience=1)] if options.get("validation") else [])
        return trainer

    def counted(self: FileRows, rows: Any, out: Any) -> None:
        np.add.at(seen[group.rank], rows, 1)
        read(self, rows, out)

    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("images.npy", "labels.npy")]
        for path, values in zip(paths, (memory.images, memory.targets), strict=True):
            np.save(path, values)
        for shards in [shards for shards in (12, 4) if shards % group.size == 0]:
            for name, options in STREAMS.items():
                states = []
                for kind, first in ((Dataset, (memory.images, memory.targets)), (StreamedDataset, paths)):
                    own = {"weights": weights} if name == "momentum" else {}
                    found = kind(*first, classes=4, name="blobs", **own)
                    held_out = {"validation": found} if name == "few blocks" else {}
                    parameters, *rest, records = state(train(found, shards, {**options, **held_out}))
                    for record in records:
                        record.pop("layers")  # measured by process 0
                    states.append(repr((sorted(parameters.items()), *rest, records)))
                assert states[0] == states[1], name
                results[f"{name}, {shards}"] = states[0]
            streamed = StreamedDataset(*paths, classes=4)
            streamed.fingerprint()
            seen[:] = 0
            FileRows.read = counted  # type: ignore[method-assign]
            train(streamed, shards, {"diagnostics": False})
            FileRows.read = read  # type: ignore[method-assign]
            group.merge(seen)
            assert (3 * 300 / group.size * 0.8 < seen.sum(axis=1)).all()
            results[f"read, {shards}"] = str(seen.sum(axis=0).tolist())
    return results


# How a run by fake GPUs goes, and the execution that it ends with.
WAYS = {"auto": "graphs", "eager": "eager", "capture fails in one": "eager", "rules change in process 0": "graphs"}


def on_gpus(group: Group, way: str = "auto") -> dict[str, str]:
    """The state after some epochs on fake GPUs, one for each process of a group, which NCCL connects."""
    results: dict[str, str] = {}
    backend, train = fake_gpu(group, group.rank, way), data()
    backend.steps_at_a_time = 2  # of 7 steps an epoch
    cupy, samples = backend.xp, Dataset(train.images[:100], train.targets[:100], classes=4)

    def change(trainer: Trainer) -> None:
        if way == "rules change in process 0" and trainer.epoch == 2:
            trainer.keep_gradients()

    for name, shards, options in [
        ("momentum", 12, {"optimizer": SGD(0.1, momentum=0.9), "validation": 12}),
        ("adam", 12, {"optimizer": Adam(0.01), "ema": 0.9, "clip_norm": 1.0, "schedule": ExponentialDecay(0.1)}),
        ("stopped", 12, {"optimizer": SGD(2.0), "validation": 12, "dtype": "float64"}),
    ]:
        model = MLP([20, 24, 4], seed=7, device=backend, dropout=0.2, dtype=options.pop("dtype", "float32"))
        trainer = Trainer(model, samples, batch_size=14, seed=7, shards=shards, group=group, **options)
        stopping = [EarlyStopping(patience=1)] if "validation" in options else []
        cupy.launches.clear()
        began = time.perf_counter()
        trainer.run(4, [*stopping, change])
        assert trainer.history.seconds < time.perf_counter() - began
        assert trainer.execution.name == WAYS[way], trainer.execution
        assert ("graph" in cupy.launches) == (WAYS[way] == "graphs")
        assert ("wait" in cupy.launches) == (group.size > 1)  # so that an interrupt is noticed
        buffers = {"data": model.parameters.data, **trainer.state_buffers}
        losses = trainer.history["train_loss"], trainer.history["validation_loss"]
        results[name] = repr(({key: array._data.tobytes().hex() for key, array in buffers.items()}, losses))
    if isinstance(group, MPIGroup):
        calls = backend.nccl.calls
        assert calls[:3] == ["init", "exchange", "exchange"]
        assert calls.count("init") == 1
        if way != "capture fails in one":  # before its first exchange
            group.agree({"calls of NCCL": calls})
            assert ("captured exchange" in calls) == (WAYS[way] == "graphs")
    return results


def fake_gpu(group: Group, index: int, way: str = "auto") -> Any:
    """The backend of a fake GPU, with a fake of NCCL on MPI."""
    cupy = HostCupy()
    cupy.devices = index + 1
    last = group.rank > 0 and group.rank == group.size - 1
    unknown = ("DEFAULT",) if last and way == "capture fails in one" else ()
    options = {"cublaslt": not (last and way == "no cublaslt in one"), "unknown": unknown, "index": index}
    backend = host_cuda_backend(cupy=cupy, execution="eager" if way == "eager" else "auto", **options)
    if isinstance(group, MPIGroup):
        backend.nccl = use_host_nccl(cupy, group._comm.Dup())
    return backend


def train_on_gpus(gpus: str, *words: str) -> None:
    """``python -m gpumlp.train`` on a machine with fake GPUs, so many; a number below 0: without NCCL."""
    from mpi4py import MPI

    cupy = HostCupy()
    cupy.devices = abs(int(gpus))
    module = load_cupy_backend(cupy)
    module._find_products = lambda tf32: host_products(cupy, tf32)
    gpumlp.backends._cuda_module = lambda: module
    if int(gpus) > 0:
        use_host_nccl(cupy, MPI.COMM_WORLD.Dup())
    else:
        sys.modules["nccl"] = sys.modules["nccl.core"] = None
    sys.exit(train.main(words))


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


class Writes(Callback):
    """Writes a file as soon as training makes progress."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        open(self.path, "w").close()


def train_forever(group: Group, device: Any = "cpu", rows: Any = slice(None), **options: Any) -> int:
    model, train = MLP([20, 16, 4], seed=0, device=device), data()
    samples = Dataset(train.images[rows], train.targets[rows], classes=4)
    history = fit(model, samples, epochs=100_000, shards=4, group=group, **options)
    print(f"rank {group.rank} interrupted: {history.interrupted} after {len(history)}", flush=True)
    return len(history)


class Broken(io.BytesIO):
    """A file on a disk that fails."""

    def readinto(self, _: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def train_and_fail(how: str, *words: str) -> None:
    """``python -m gpumlp.train``, which fails in process 1 in the second epoch."""
    call = TrainingStep.__call__

    def step(self: TrainingStep, *arguments: Any) -> None:
        if self.group.rank == 1 and self.state.steps == 60:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how in ("memory", "bug"):
                raise MemoryError("too little of it") if how == "memory" else ArithmeticError("a bug")
            FileRows._opened = lambda *_: Broken()  # type: ignore[method-assign]
        call(self, *arguments)

    TrainingStep.__call__ = step  # type: ignore[method-assign]
    run.INTERVAL = 0.0  # the epoch before is saved
    sys.exit(train.main(words))


def main() -> None:
    name, *words = sys.argv[1:]
    if name == "train":
        train_and_fail(*words)
    if name == "train_on_gpus":
        train_on_gpus(*words)
    group = MPIGroup()
    if name in ("settings", "streams", "sums", "on_gpus"):
        found = globals()[name](group, *words[1:])
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
    elif name == "one_gpu":
        train_forever(group, device=fake_gpu(group, 0))
    elif name == "differ_on_gpus":
        train_forever(group, device=fake_gpu(group, group.rank, "no cublaslt in one"))
    elif name == "interrupt_gpus":  # in the first epoch, which takes longer than the test may
        backend = fake_gpu(group, group.rank)
        long = np.tile(np.arange(300), 40)
        train_forever(group, device=backend, rows=long, batch_size=4, callbacks=[Writes(words[0])])
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
