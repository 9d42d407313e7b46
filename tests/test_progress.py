"""Progress: slow steps, and the throughput without the start."""

from __future__ import annotations

import pytest

from gpumlp import MLP, Dataset, History, Progress, fit
from gpumlp.backends import Execution
from gpumlp.backends.numpy import NumpyBackend
from gpumlp.training import EpochRecord, progress
from gpumlp.training.history import starting_seconds
from gpumlp.training.progress import Slowdown
from gpumlp.training.session import throughput_line


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run_epoch(slowdown: Slowdown, clock: Clock, seconds: float, parts: int = 10) -> list[bool]:
    """An epoch of `parts` parts of 100 samples that take `seconds` each; a pause comes before it."""
    clock.now += 60
    noticed = []
    for part in range(1, parts + 1):
        clock.now += seconds
        noticed.append(slowdown.notices(100 * part))
    return noticed


def test_steps_that_become_several_times_slower_are_noticed_once() -> None:
    clock = Clock()
    slowdown = Slowdown(clock)
    assert not any(run_epoch(slowdown, clock, 0.5))
    assert not any(run_epoch(slowdown, clock, 1.0))  # twice as slow is not several times
    assert sum(run_epoch(slowdown, clock, 2.5)) == 1
    assert slowdown.factor == pytest.approx(5)
    assert not any(run_epoch(slowdown, clock, 5.0))


def test_steps_that_are_slow_for_a_moment_are_not_noticed() -> None:
    clock = Clock()
    slowdown = Slowdown(clock)
    run_epoch(slowdown, clock, 0.1)
    assert not any(run_epoch(slowdown, clock, 1.0, parts=2))
    assert not any(run_epoch(slowdown, clock, 0.1, parts=30))


@pytest.mark.usefixtures("progress_of_short_epochs")
@pytest.mark.parametrize("threads", [1, 2])
def test_only_several_threads_can_wait_for_each_other(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: int
) -> None:
    clock = Clock()
    steps = iter([0.5] * 20 + [5.0] * 100)

    class Slower(Progress):
        def on_progress(self, trainer, samples):
            clock.now += next(steps)
            super().on_progress(trainer, samples)

    monkeypatch.setattr(progress, "Slowdown", lambda: Slowdown(clock))
    monkeypatch.setattr(NumpyBackend, "execution", lambda self, step: Execution("eager", "", threads))
    fit(MLP([20, 4], device="cpu"), blobs, epochs=6, batch_size=20, callbacks=Slower())
    said = [line for line in capsys.readouterr().out.splitlines() if "times as long" in line]
    assert len(said) == (threads > 1)
    assert all("OPENBLAS_NUM_THREADS=1 may help" in line for line in said)


@pytest.mark.parametrize(
    ("metrics", "header", "line"),
    [
        (
            {"train_accuracy": 0.5, "validation_accuracy": 1.0},
            "  epoch  train loss  accuracy  valid. loss  accuracy  learning rate  samples/s",
            "    3/9      1.5000   50.00 %       2.0000  100.00 %            0.1        500",
        ),
        (
            {"train_accuracy": 0.25, "train_label_accuracy": 0.5, "validation_label_accuracy": 1.0},
            "  epoch  train loss    exact   labels  valid. loss    exact   labels       rate",
            "    3/9      1.5000   25.0 %   50.0 %       2.0000        -  100.0 %        0.1",
        ),
        (
            {"train_r2": -0.25, "train_mae": 12.5, "validation_r2": 1.0},
            "  epoch  train loss       R²      MAE  valid. loss       R²      MAE       rate",
            "    3/9      1.5000  -0.2500  12.5000       2.0000   1.0000        -        0.1",
        ),
    ],
)
def test_an_epoch_is_a_line_with_the_metrics_of_its_targets(
    metrics: dict[str, float], header: str, line: str
) -> None:
    accuracies = {"train_accuracy": None, "validation_accuracy": None}
    options = {"learning_rate": 0.1, "seconds": 2.0, "samples_per_second": 500.0}
    record = EpochRecord(3, train_loss=1.5, validation_loss=2.0, **{**accuracies, **metrics, **options})
    assert progress.epoch_line(record, 9) == line
    assert progress.header_line(record.task) == header
    assert len(header) <= 80


@pytest.mark.parametrize(("targets", "word"), [([0.5, 1.5] * 10, "MAE"), ([[0, 1], [1, 1]] * 10, "labels")])
def test_the_header_is_that_of_the_targets(targets: object, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset([[0.0], [1.0]] * 10, targets)
    fit(MLP([1, data.outputs], device="cpu"), data, epochs=1, callbacks=Progress())
    header, line = capsys.readouterr().out.splitlines()
    assert header.split().count(word) == 2
    assert len(header) == len(line)


def history(*seconds: float) -> History:
    return History([EpochRecord(n, 1, 1, None, None, 0.1, s, 1000 / s) for n, s in enumerate(seconds, 1)])


@pytest.mark.parametrize(
    ("seconds", "first", "line"),
    [
        ((2.0, 0.5, 0.5), 0, "2,000 samples/s, after 1.5 s of starting"),
        ((0.5, 0.5, 0.5), 0, "2,000 samples/s"),
        ((2.0, 0.5, 1.5, 0.25, 0.25), 2, "4,000 samples/s, after 1.2 s of starting"),  # resumed after two epochs
        ((2.0,), 0, "500 samples/s, starting included"),
        ((2.0, 0.5), 2, "800 samples/s"),  # resumed, already complete
    ],
)
def test_the_throughput_leaves_out_the_start(seconds: tuple[float, ...], first: int, line: str) -> None:
    assert throughput_line(history(*seconds), first) == line


def test_the_start_of_a_single_epoch_is_unknown() -> None:
    assert starting_seconds(history(2.0).records) is None
    assert starting_seconds(history(0.4, 0.5, 0.5).records) == 0
