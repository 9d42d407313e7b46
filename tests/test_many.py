"""Many networks at once: training runs as generators, networks in lockstep, and `fit_many`."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

from gpumlp import (
    MLP,
    SGD,
    Adam,
    Callback,
    Cosine,
    Dataset,
    DeviceError,
    DivergenceError,
    EarlyStopping,
    FitManyError,
    History,
    StepDecay,
    Trainer,
    fit,
    fit_many,
)
from gpumlp.backends import Backend, Copies, Step, StepRun, Totals
from gpumlp.backends.numpy import NumpyBackend
from gpumlp.training import many
from gpumlp.training.many import run_together
from tests.test_persistent_training import persistent_backend, samples


def model(seed: int = 0, sizes: tuple[int, ...] = (20, 12, 4)) -> MLP:
    return MLP(list(sizes), seed=seed, device="cpu")


def weights(network: MLP) -> bytes:
    return b"".join(tensor.tobytes() for tensor in network.state_dict().values())


# -- A training run as a generator -------------------------------------------------------------------------


def test_the_caller_of_a_training_run_runs_its_steps(blobs: Dataset) -> None:
    networks = model(), model()
    fit(networks[0], blobs, epochs=3, batch_size=32, validation=50)
    trainer = Trainer(networks[1], blobs, batch_size=32, validation=50)
    training, result, kinds = trainer.training(3), None, []
    with suppress(StopIteration):
        while True:
            request = training.send(result)
            kinds.append(type(request))
            (result,) = trainer.model.backend.perform([request])()
    assert kinds == 3 * [Copies, StepRun, Totals, StepRun, Totals]
    assert weights(networks[0]) == weights(networks[1])
    assert len(trainer.history) == 3


def test_a_trainer_trains_one_epoch_at_a_time(blobs: Dataset) -> None:
    network = model()
    trainer = Trainer(network, blobs)
    steps = trainer.training(2)
    network.backend.perform([next(steps)])
    network.backend.perform([steps.send(None)])
    with pytest.raises(RuntimeError, match="an epoch of this trainer is in progress"):
        trainer.run(2)
    steps.close()
    trainer.run(2)
    expected = model()
    fit(expected, blobs, epochs=2)
    assert weights(network) == weights(expected)


def test_a_second_interrupt_undoes_the_epoch_too(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the end of a step and what the trainer does about the first interrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    network = model()
    trainer = Trainer(network, blobs)
    with monkeypatch.context() as patch:
        patch.setattr(network.backend, "run_steps", interrupt)
        patch.setattr("gpumlp.training.trainer.suppress", interrupt)
        with pytest.raises(KeyboardInterrupt) as first:  # which holds on to the generator
            trainer.run(2)
    trainer.run(2)
    expected = model()
    fit(expected, blobs, epochs=2)
    assert weights(network) == weights(expected)
    assert first.value is not None


@pytest.mark.parametrize("at", [Copies, StepRun, Totals])
@pytest.mark.parametrize("way", ["interrupt", "error", "close"])
def test_what_stops_the_work_undoes_the_epoch_and_ends_the_training(blobs: Dataset, way: str, at: type) -> None:
    ended = []

    class End(Callback):
        def on_train_end(self, trainer: Trainer) -> None:
            ended.append(trainer.epoch)

    trainer = Trainer(model(), blobs, optimizer=SGD(0.1), batch_size=32)
    training, result = trainer.training(9, End()), None
    request = None
    while trainer.epoch < 1 or type(request) is not at:  # in the second epoch
        request = training.send(result)
        (result,) = trainer.model.backend.perform([request])()
    if way == "interrupt":
        with pytest.raises(StopIteration):
            training.throw(KeyboardInterrupt())
    elif way == "error":
        with pytest.raises(ZeroDivisionError):
            training.throw(ZeroDivisionError())
    else:
        training.close()
    expected = model()
    fit(expected, blobs, optimizer=SGD(0.1), epochs=1, batch_size=32)
    assert weights(trainer.model) == weights(expected)
    assert (trainer.history.interrupted, ended) == (way == "interrupt", [1])


# -- Networks in lockstep ----------------------------------------------------------------------------------


class Three(NumpyBackend):
    """The CPU as a device that trains three networks at once, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []

    def networks_at_once(self, step: Step) -> int:
        return 3

    def run_many(self, runs: Sequence[StepRun]) -> None:
        self.runs.append(len(runs))
        super().run_many(runs)


def three(count: int) -> tuple[Three, list[MLP]]:
    backend = Three()
    return backend, [MLP([20, 12, 4], seed=seed, device=backend) for seed in range(count)]


def test_a_network_that_ends_leaves_its_place_to_the_next(blobs: Dataset) -> None:
    backend, networks = three(5)
    histories = fit_many(networks, blobs, epochs=[1, 4, 2, 3, 1])
    assert [len(history) for history in histories] == [1, 4, 2, 3, 1]
    # An epoch is one run. 0 1 2 and 3 4 take turns until there is room for all: 0 1 2, 3 4, 1 2, 3 1, 3 1.
    assert backend.runs == [3, 2, 2, 2, 2]
    for seed, network in enumerate(networks):
        expected = model(seed)
        fit(expected, blobs, epochs=[1, 4, 2, 3, 1][seed])
        assert weights(network) == weights(expected)


def test_the_device_trains_some_networks_while_the_host_works_for_others(blobs: Dataset) -> None:
    done: list[str] = []

    class Listed(Three):
        def run_many(self, runs: Sequence[StepRun]) -> None:
            done.append(f"train {len(runs)}")
            super().run_many(runs)

        def begin_reading(self, array: np.ndarray) -> Callable[[], np.ndarray]:
            read = super().begin_reading(array)
            return lambda: (done.append("read"), read())[1]

    backend = Listed()
    networks = [MLP([20, 12, 4], seed=seed, device=backend) for seed in range(5)]
    fit_many(networks, blobs, epochs=2, diagnostics=False)
    assert done == ["train 3", "train 2", "read", "train 3", "read", "train 2", "read", "read"]


@pytest.mark.parametrize("seed", range(20))
def test_no_network_is_lost_whatever_their_shapes_and_epochs(seed: int) -> None:
    """The networks of one shape take a third of the device each, those of the other a half."""

    class Mixed(NumpyBackend):
        def networks_at_once(self, step: Step) -> int:
            return 3 if step.layers[0].weight.shape[1] == 8 else 2

    rng, backend = np.random.default_rng(seed), Mixed()
    widths = [8, 8, 8, 8, 8, 12] if not seed else rng.choice([8, 12], 9).tolist()
    epochs = [1, 1, 1, 4, 2, 4] if not seed else rng.integers(1, 5, 9).tolist()
    data = samples()
    models = [MLP([20, width, 4], device=backend) for width in widths]
    trainings = [(i, backend, Trainer(model, data).training(epochs[i])) for i, model in enumerate(models)]
    assert sorted(key for key, _ in run_together(trainings)) == list(range(len(models)))
    histories = fit_many(models, data, epochs=epochs, n_jobs=1)
    assert [len(history) for history in histories] == epochs


def test_networks_whose_backends_are_equal_are_trained_together(blobs: Dataset) -> None:
    networks = [MLP([20, 12, 4], seed=seed, device=Three()) for seed in range(3)]
    backends = [network.backend for network in networks]
    fit_many(networks, blobs, epochs=2)
    assert [backend.runs for backend in backends] == [[3, 3], [], []]
    assert [network.backend for network in networks] == backends
    assert all(layer.backend is network.backend for network in networks for layer in network.layers)


def test_networks_on_a_gpu_have_the_bits_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(seed: int, backend: Backend) -> MLP:
        return MLP([20, 16, 4], seed=seed, device=backend)

    backend, data = persistent_backend(2), samples()
    networks = [network(seed, backend) for seed in range(3)]
    options: dict[str, Any] = {"optimizer": SGD(0.1, momentum=0.9), "batch_size": 16, "validation": 0.2}
    run_many, at_once = backend.run_many, list[int]()
    monkeypatch.setattr(backend, "run_many", lambda runs: (at_once.append(len(runs)), run_many(runs)))
    histories = fit_many(networks, data, epochs=[2, 1, 3], callbacks=lambda index: lambda trainer: None, **options)
    for seed, together in enumerate(networks):
        alone = network(seed, persistent_backend(2))
        history = fit(alone, data, epochs=[2, 1, 3][seed], **options)
        assert weights(together) == weights(alone)
        assert histories[seed]["validation_loss"] == history["validation_loss"]
    assert (max(at_once), at_once[-1]) == (3, 1)


def test_the_host_asks_the_device_as_often_for_many_networks_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(count: int, epochs: int) -> list[int]:
        """How often, and in how many launches, for the epochs after the first one."""
        backend = persistent_backend(2)
        networks = [MLP([20, 8, 4], seed=seed, device=backend) for seed in range(count)]
        trainers = [Trainer(network, samples(), batch_size=30, diagnostics=False) for network in networks]
        activate, activations = backend.activate, list[None]()
        monkeypatch.setattr(backend, "activate", lambda: (activations.append(None), activate())[1])
        with backend.ledger.counting():
            for _, error in run_together([(t, backend, t.training(epochs)) for t in trainers]):
                assert error is None
            found = [len(activations), len(backend.xp.launches), len(backend.xp.pinned)]
            return [*found, backend.ledger.host_writes, backend.ledger.host_reads]

    extra = [np.subtract(asked(count, 3), asked(count, 1)).tolist() for count in (1, 3)]
    assert extra[0] == extra[1]


def test_an_error_of_one_network_in_lockstep_is_its_own(blobs: Dataset) -> None:
    def callbacks(index: int) -> list[Callable[[Trainer], object]]:
        return [lambda trainer: 1 / (trainer.epoch - 2)] if index == 1 else []

    _, networks = three(4)
    with pytest.raises(FitManyError) as caught:
        fit_many(networks, blobs, epochs=3, callbacks=callbacks)
    assert [type(error) for error in caught.value.errors.values()] == [ZeroDivisionError]
    assert [len(history) for history in caught.value.histories] == [3, 2, 3, 3]


def test_an_error_of_the_device_in_lockstep_ends_those_that_were_running(blobs: Dataset) -> None:
    class Failing(Three):
        def run_many(self, runs: Sequence[StepRun]) -> None:
            super().run_many(runs)
            if len(self.runs) == 3:  # after an epoch of 0 1 2 and of 3
                raise MemoryError("full")

    backend = Failing()
    networks = [MLP([20, 12, 4], seed=seed, device=backend) for seed in range(4)]
    with pytest.raises(FitManyError) as caught:
        fit_many(networks, blobs, epochs=3)
    assert sorted(caught.value.errors) == [0, 1, 2]
    assert [len(history) for history in caught.value.histories] == [1, 1, 1, 3]
    expected = model()
    fit(expected, blobs, epochs=1)
    assert weights(networks[0]) == weights(expected)


def test_a_device_that_fails_in_lockstep_is_named() -> None:
    class CUDARuntimeError(Exception):
        __module__ = "cupy_backends.cuda.api.runtime"

    def fail(trainer: Trainer) -> None:
        raise CUDARuntimeError("cudaErrorIllegalAddress")

    backend = persistent_backend(2)
    networks = [MLP([20, 8, 4], seed=seed, device=backend) for seed in range(2)]
    with pytest.raises(FitManyError) as caught:
        fit_many(networks, samples(), epochs=2, callbacks=lambda index: [fail] if index else [])
    (error,) = caught.value.errors.values()
    assert re.fullmatch(
        r"cuda:0 \(.*\) failed: CUDARuntimeError: cudaErrorIllegalAddress; check it .*", str(error)
    )
    assert isinstance(error.__cause__, CUDARuntimeError)
    assert error.__traceback__ is not None
    assert [len(history) for history in caught.value.histories] == [2, 1]


def test_a_device_that_cannot_be_activated_ends_what_is_running(blobs: Dataset) -> None:
    class Lost(Three):
        def activate(self) -> Any:
            if len(self.runs) > 1:  # after the second epoch's steps
                raise DeviceError("the GPU has fallen off the bus")
            return super().activate()

    backend = Lost()
    networks = [MLP([20, 12, 4], seed=seed, device=backend) for seed in range(2)]
    with pytest.raises(FitManyError) as caught:
        fit_many(networks, blobs, epochs=3, n_jobs=1)
    assert [type(error) for error in caught.value.errors.values()] == [DeviceError, DeviceError]
    assert [len(history) for history in caught.value.histories] == [1, 1]


def test_an_interrupt_in_lockstep_leaves_every_network_after_its_last_epoch(blobs: Dataset) -> None:
    class Interrupted(Three):
        def run_many(self, runs: Sequence[StepRun]) -> None:
            super().run_many(runs)
            if len(self.runs) == 4:  # an epoch of 3 1 2, after those of 0 1 2, 3 and 3 1 2
                raise KeyboardInterrupt

    backend = Interrupted()
    networks = [MLP([20, 12, 4], seed=seed, device=backend) for seed in range(4)]
    histories = fit_many(networks, blobs, epochs=[1, 9, 9, 9])
    assert [len(history) for history in histories] == [1, 2, 2, 2]
    assert backend.runs == [3, 1, 3, 3]
    assert [history.interrupted for history in histories] == [False, True, True, True]
    for seed, history in enumerate(histories):
        expected = model(seed)
        fit(expected, blobs, epochs=len(history))
        assert weights(networks[seed]) == weights(expected)


def test_what_is_no_longer_wanted_in_lockstep_is_undone(blobs: Dataset) -> None:
    backend, networks = three(2)
    trainers = [Trainer(network, blobs) for network in networks]
    together = run_together([(i, backend, trainers[i].training(1 + i)) for i in range(2)])
    assert next(together) == (0, None)
    together.close()
    assert [trainer.epoch for trainer in trainers] == [1, 1]


# -- fit_many ----------------------------------------------------------------------------------------------

CLOCK = {"seconds", "samples_per_second"}


def records(history: History) -> list[dict[str, Any]]:
    """A history without the clock."""
    return [{name: value for name, value in vars(record).items() if name not in CLOCK} for record in history]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_networks_are_trained_as_one_by_one(blobs: Dataset, n_jobs: int) -> None:
    def make() -> list[MLP]:
        return [
            model(1),
            MLP([20, 7, 5, 4], "tanh", dropout=0.2, device="cpu"),
            MLP([20, 4], dtype="float64", device="cpu"),
        ]

    each: dict[str, Any] = {
        "optimizer": [SGD(0.1, momentum=0.9), Adam(0.01), None],
        "schedule": [Cosine(20), None, StepDecay(0.5, 1)],
        "l2": np.array([0.0, 1e-3, 1e-4]),
        "ema": (None, 0.9, None),
        "seed": [3, 4, 5],
        "batch_size": [32, 50, "full"],
        "validation": [0.2, 50, (blobs.images[:40], blobs.targets[:40])],
        "class_weight": [None, "balanced", {0: 2}],
        "epochs": [3, 2, 4],
    }
    networks = make()
    with threadpoolctl.threadpool_limits(1):
        histories = fit_many(networks, blobs, n_jobs=n_jobs, **each)
        for index, expected in enumerate(make()):
            history = fit(expected, blobs, **{name: values[index] for name, values in each.items()})
            network = networks[index]
            assert weights(network) == weights(expected)
            assert records(histories[index]) == records(history)
            assert histories[index].findings() == history.findings()
            assert network.inputs == expected.inputs
            assert network.class_names == expected.class_names
            assert network.loss == expected.loss or type(network.loss) is type(expected.loss)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_regression_with_rows_that_are_validated_on_others(n_jobs: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    y, weight = x[:, :2] @ [1.0, -2.0], rng.uniform(size=300)
    folds = np.array_split(rng.permutation(300), 3)
    networks, held_out = ([MLP([5, 8, 1], seed=seed, device="cpu") for seed in range(3)] for _ in range(2))
    options: dict[str, Any] = {"optimizer": Adam(0.01), "epochs": 3, "batch_size": 32}
    by_rows = fit_many(networks, x, y, sample_weight=weight, rows=folds, validation=0.25, n_jobs=n_jobs, **options)
    by_fold = fit_many(held_out, x, y, sample_weight=weight, validation=folds, n_jobs=n_jobs, **options)
    for index, fold in enumerate(folds):
        expected = MLP([5, 8, 1], seed=index, device="cpu")
        data = Dataset(x[fold], y[fold], weights=weight[fold])
        assert records(fit(expected, data, validation=0.25, **options)) == records(by_rows[index])
        assert weights(networks[index]) == weights(expected)
        expected = MLP([5, 8, 1], seed=index, device="cpu")
        others = np.setdiff1d(np.arange(300), fold)
        data, test = (Dataset(x[rows], y[rows], weights=weight[rows]) for rows in (others, fold))
        fit(expected, data, validation=test, **options)
        # Weights count relative to the largest, which the fold may have: equal but for rounding.
        np.testing.assert_allclose(held_out[index].parameters.data, expected.parameters.data, rtol=1e-5, atol=1e-6)
        assert by_fold[index]["validation_r2"][-1] == pytest.approx(held_out[index].evaluate(test).r2, rel=1e-5)


def test_rows_of_classes_are_as_a_copy_of_them(blobs: Dataset) -> None:
    rows = np.random.default_rng(1).choice(len(blobs), 200)  # some of them twice
    networks = [model(), model()]
    options: dict[str, Any] = {"class_weight": "balanced", "epochs": 2, "batch_size": 32}
    fit_many(networks, blobs, rows=[rows, None], validation=[0.2, None], n_jobs=1, **options)
    part, whole = model(), model()
    fit(part, blobs.part(blobs.images[rows], blobs.targets[rows]), validation=0.2, **options)
    fit(whole, blobs, **options)
    assert [weights(network) for network in networks] == [weights(part), weights(whole)]


def test_samples_are_shared_by_all_networks_of_a_device(blobs: Dataset) -> None:
    seen: dict[int, list[Any]] = {}

    def callbacks(index: int) -> Callable[[Trainer], object]:
        return lambda trainer: seen.setdefault(index, [trainer.batches.images, trainer.validation_batches.images])

    data = Dataset(blobs.images / 255, blobs.targets)  # float64, converted once for float32
    rows = [None, np.arange(100), None]
    networks = [model(), model(1), MLP([20, 4], dtype="float64", device="cpu")]
    fit_many(networks, data, rows=rows, validation=(data.images, data.targets), n_jobs=1, callbacks=callbacks)
    for place in range(2):
        first, second, other = (seen[index][place] for index in range(3))
        assert first is second
        assert first.dtype != other.dtype


def test_samples_are_not_kept_after_calls_that_overlap() -> None:
    data = Dataset(np.zeros((8, 3)), np.arange(8) % 2)
    with ExitStack() as first, ExitStack() as second:  # as in two threads
        first.enter_context(data.placed_once())
        second.enter_context(data.placed_once())
        fit(MLP([3, 2], device="cpu"), data, epochs=1)
        first.close()
        fit(MLP([3, 2], device="cpu"), data, epochs=1)
    data.images[:] = 1
    placed = data.batches(8, MLP([3, 2], device="cpu").backend, np.float32).images
    assert (placed == 1).all()


def test_workers_map_the_samples_into_memory(blobs: Dataset, tmp_path: Path) -> None:
    class Write(Callback):
        def __init__(self, index: int) -> None:
            self.path = tmp_path / str(index)

        def on_train_begin(self, trainer: Trainer) -> None:
            images, targets = trainer.batches.images, trainer.train_set.targets
            base: Any = images
            while isinstance(base, np.ndarray):
                base = base.base
            self.path.write_text(f"{type(base).__name__} {images.flags.writeable} {targets.flags.writeable}")

    fit_many([model(), model(1)], blobs, epochs=1, n_jobs=2, callbacks=lambda index: Write(index))
    assert {path.read_text() for path in tmp_path.iterdir()} == {"memoryview False False"}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_early_stopping_keeps_its_best_network(blobs: Dataset, n_jobs: int) -> None:
    networks = [model(), model(1)]
    options: dict[str, Any] = {"optimizer": Adam(0.5), "epochs": 60, "batch_size": 32, "validation": 0.3}
    histories = fit_many(
        networks, blobs, n_jobs=n_jobs, callbacks=lambda index: EarlyStopping(patience=1 + index), **options
    )
    for index, network in enumerate(networks):
        expected = model(index)
        history = fit(expected, blobs, callbacks=EarlyStopping(patience=1 + index), **options)
        assert len(history) < 60
        assert records(histories[index]) == records(history)
        assert weights(network) == weights(expected)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_networks_that_fail_are_named_and_all_others_are_trained(blobs: Dataset, n_jobs: int) -> None:
    def callbacks(index: int) -> list[Callable[[Trainer], object]]:
        return [lambda trainer: 1 / (trainer.epoch - 2)] if index == 1 else []

    networks = [MLP([20, 12, 4], "identity", seed=seed, device="cpu") for seed in range(4)]
    options: dict[str, Any] = {"epochs": 3, "batch_size": 16}
    with pytest.raises(
        FitManyError, match=r"2 of 4 networks failed.*network 1: ZeroDivision.*network 2: Diver"
    ) as e:
        fit_many(
            networks,
            blobs,
            optimizer=[SGD(0.1), SGD(0.1), SGD(1e6), SGD(0.1)],
            n_jobs=n_jobs,
            callbacks=callbacks,
            **options,
        )
    errors, histories = e.value.errors, e.value.histories
    assert [type(errors[index]) for index in (1, 2)] == [ZeroDivisionError, DivergenceError]
    assert isinstance(errors[2], DivergenceError)
    assert errors[2].finding.message == str(errors[2])
    assert [len(history) for history in histories] == [3, 2, 0, 3]
    expected = MLP([20, 12, 4], "identity", seed=1, device="cpu")
    fit(expected, blobs, optimizer=SGD(0.1), **(options | {"epochs": 2}))
    assert weights(networks[1]) == weights(expected)
    assert weights(networks[2]) == weights(MLP([20, 12, 4], "identity", seed=2, device="cpu"))
    assert len(pickle.loads(pickle.dumps(e.value)).histories) == 4


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interrupt_of_one_network_is_one_of_all(
    blobs: Dataset, n_jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(trainer: Trainer) -> None:
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    networks = [model(seed) for seed in range(5)]
    histories = fit_many(
        networks,
        blobs,
        epochs=100_000,
        n_jobs=n_jobs,
        callbacks=lambda index: [interrupt] if index == 0 else [],
        progress=True,
    )
    assert ", networks 0/5, " in capsys.readouterr().out.splitlines()[-1], "none is finished"
    assert all(history.interrupted for history in histories)
    assert len(histories[0]) == 2
    assert len(histories[4]) == 0
    for seed in (0, 4):
        expected = model(seed)
        if len(histories[seed]):
            fit(expected, blobs, epochs=len(histories[seed]))
        assert weights(networks[seed]) == weights(expected)


def test_ctrl_c_stops_worker_processes_after_their_last_epochs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib\n"
        "from gpumlp import MLP, fit, fit_many, load_digits\n"
        "data, _ = load_digits()\n"
        "models = [MLP([64, 64, 10], seed=seed, device='cpu') for seed in range(3)]\n"
        "begun = lambda index: [lambda trainer: pathlib.Path(str(index)).touch()]\n"
        "histories = fit_many(models, data, epochs=100_000, n_jobs=2, callbacks=begun)\n"
        "for seed, (model, history) in enumerate(zip(models, histories)):\n"
        "    alone = MLP([64, 64, 10], seed=seed, device='cpu')\n"
        "    if len(history):\n"
        "        fit(alone, data, epochs=len(history))\n"
        "    same = (model.parameters.data == alone.parameters.data).all()\n"
        "    print(seed, len(history) > 0, history.interrupted, same)\n"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(many.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in "01") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    out, err = process.communicate(timeout=120)
    assert (out.splitlines(), err) == (["0 True True True", "1 True True True", "2 False True True"], "")


def test_wrong_arguments_are_refused_before_any_network_is_trained(blobs: Dataset) -> None:
    networks = [model(), model(1)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"seed": [1, 2, 3]}, "seed is expected to be one value, or a list with one for each of the 2 networks"),
        ({"l2": [0.1, -1]}, "network 1: l2 is expected to be a number of 0 or more"),
        ({"epochs": [1, 0]}, "network 1: epochs is expected"),
        ({"optimizer": [SGD(), "adam"]}, "network 1: optimizer"),
        ({"rows": [None, [0, 400_000]]}, "rows is expected to hold row numbers from 0 to"),
        ({"rows": [None, np.ones(3, bool)]}, "row numbers, got shape (3,) of bool; numpy.flatnonzero makes them"),
        ({"rows": [0, 1]}, "network 0: rows is expected to be an array of one or more row numbers, got shape ()"),
        ({"rows": [None, []]}, "rows is expected to be an array of one or more row numbers"),
        ({"validation": np.arange(len(blobs))}, "validation is expected to leave some training samples"),
        ({"callbacks": [EarlyStopping()]}, "callbacks is expected to be a function"),
        ({"callbacks": lambda: None}, "callbacks is expected to be a function of the number of the network"),
        ({"n_jobs": 0}, "n_jobs is expected"),
        ({"progress": "no"}, "progress is expected to be True or False"),
    ]
    for options, message in wrong:
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            fit_many(networks, blobs, **options)
    with pytest.raises(ValueError, match="0 and 2 are the same object"):
        fit_many([*networks, networks[0]], blobs)
    with pytest.raises(ValueError, match="at least one network"):
        fit_many([], blobs)
    with pytest.raises(TypeError, match="models is expected to be a list of networks"):
        fit_many(networks[0], blobs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a model is expected to be an MLP"):
        fit_many([networks[0], "mlp"], blobs)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"network 1: .* expects 7 features"):
        fit_many([networks[0], MLP([7, 4], device="cpu")], blobs)
    assert all(network.inputs is None for network in networks)
    assert [weights(network) for network in networks] == [weights(model()), weights(model(1))]


def test_without_joblib_networks_are_trained_in_this_process(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    processes: list[int] = []
    fit_many(
        [model(), model(1)], blobs, epochs=1, callbacks=lambda index: lambda trainer: processes.append(os.getpid())
    )
    assert processes == [os.getpid()] * 2


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_one_line_shows_the_progress_of_all(
    blobs: Dataset, capsys: pytest.CaptureFixture[str], n_jobs: int
) -> None:
    networks = [model(), model(1), model(2)]
    fit_many(networks, blobs, epochs=2, n_jobs=n_jobs)
    assert capsys.readouterr().out == ""
    histories = fit_many(networks, blobs, epochs=[2, 3, 4], validation=0.1, n_jobs=n_jobs, progress=True)
    lines = capsys.readouterr().out.splitlines()
    best = max(max(history["validation_accuracy"]) for history in histories)
    assert re.fullmatch(
        rf"epochs 9/9, networks 3/3, [\d.e+]+/s, best validation accuracy {100 * best:.2f} % \(network \d\)",
        lines[-1],
    )
    assert len(lines) <= 11


def test_on_a_terminal_the_line_changes_in_place_and_the_last_one_stays(
    blobs: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    fit_many([model(), model(1)], blobs, epochs=2, validation=0.1, n_jobs=1, progress=True)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).splitlines()
    last = r"epochs 4/4, networks 2/2, [\d.e+]+/s, best validation accuracy [\d.]+ % \(network \d\)"
    others = [line for line in lines if not re.fullmatch(last, line)]
    assert len(others) == len(lines) - 1
    assert max(map(len, others)) == 40


@pytest.mark.parametrize(("terminal", "name", "value"), [(True, "TERM", "dumb"), (False, "FORCE_COLOR", "1")])
def test_where_the_line_cannot_change_in_place_it_is_printed_anew(
    terminal: bool, name: str, value: str, blobs: Dataset, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv(name, value)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    fit_many([model(), model(1)], blobs, epochs=2, n_jobs=1, progress=True)
    assert re.findall(r"epochs (\d)/4", text := capsys.readouterr().out) == ["1", "2", "3", "4"]
    assert "\x1b" not in text


def test_without_standard_output_progress_is_not_shown(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    fit_many([model(), model(1)], blobs, epochs=1, n_jobs=1, progress=True)


def test_a_range_is_one_value_for_each_network(blobs: Dataset) -> None:
    networks = [model() for seed in range(2)]
    fit_many(networks, blobs, epochs=1, seed=range(2), n_jobs=1)
    expected = model()
    fit(expected, blobs, epochs=1, seed=1)
    assert weights(networks[1]) == weights(expected)


def test_rows_and_seeds_are_whatever_numpy_reads_as_such(blobs: Dataset) -> None:
    def trained(**options: Any) -> bytes:
        network = model()
        fit(network, blobs, epochs=1, **options)
        networks = [model(), model()]
        fit_many(networks, blobs, epochs=1, n_jobs=1, **options)
        assert weights(networks[0]) == weights(networks[1]) == weights(network)
        return weights(network)

    fold = np.arange(20, 60)
    assert trained(seed=np.array(3)) == trained(seed=3) != trained()
    assert trained(validation=range(20, 60)) == trained(validation=fold) != trained()
    network, networks = model(), [model() for _ in range(3)]
    fit(network, blobs, epochs=1, validation=fold.tolist())
    fit_many(networks, blobs, epochs=1, n_jobs=1, validation=[fold, range(20, 60), fold.tolist()])
    assert [weights(each) for each in networks] == [weights(network)] * 3
    with pytest.raises(ValueError, match=r"expected to be \(samples, targets\), and row numbers one array: "):
        fit_many(networks[:2], blobs, validation=(fold, fold))


def test_when_all_networks_fail_the_error_speaks_of_no_others(blobs: Dataset) -> None:
    with pytest.raises(FitManyError, match=r"^1 of 1 networks failed \(histories are in"):
        fit_many([model()], blobs, callbacks=lambda index: [lambda trainer: 1 / 0])
