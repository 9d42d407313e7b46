"""The training loop: results, history, callbacks, interrupts and divergence."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    Blocks,
    Callback,
    Dataset,
    DivergenceError,
    EarlyStopping,
    StepDecay,
    Trainer,
    fit,
)
from gpumlp.backends.numpy import NumpyBackend
from gpumlp.nn.optimizers import Optimizer
from gpumlp.training import EpochRecord
from gpumlp.training.batches import EpochOrders
from gpumlp.training.divergence import smaller_steps
from tests.host_cuda import host_cuda_backend


def model(seed: int = 0, sizes: tuple[int, ...] = (20, 12, 4)) -> MLP:
    return MLP(list(sizes), seed=seed, device="cpu")


def weights(network: MLP) -> bytes:
    return b"".join(tensor.tobytes() for tensor in network.state_dict().values())


def train(data: Dataset, epochs: int = 3, seed: int = 0, **options) -> tuple[MLP, list[dict]]:
    """A trained network, and its history without the clock."""
    network = model(seed)
    options = {"optimizer": SGD(0.1, momentum=0.9), "batch_size": 32, "seed": seed} | options
    history = fit(network, data, epochs=epochs, **options)
    clock = {"seconds", "samples_per_second"}
    return network, [{k: v for k, v in vars(record).items() if k not in clock} for record in history]


def test_a_network_learns(blobs: Dataset) -> None:
    network, history = train(blobs, epochs=20)
    assert network.accuracy(blobs) > 0.95
    assert history[-1]["train_loss"] < 0.2 < history[0]["train_loss"]


def test_same_seed_same_run_bit_for_bit(blobs: Dataset) -> None:
    (one, first), (other, second) = train(blobs, validation=50), train(blobs, validation=50)
    assert weights(one) == weights(other)
    assert first == second


def test_another_seed_gives_another_order_and_other_held_out_samples(blobs: Dataset) -> None:
    def run(seed: int) -> tuple[bytes, float]:
        network = model(seed=0)  # the same initial weights
        history = fit(network, blobs, epochs=1, batch_size=32, validation=50, seed=seed)
        return weights(network), history["validation_loss"][0]

    (one, first), (other, second) = run(1), run(2)
    assert one != other
    assert first != second


def test_the_first_record_is_the_loss_before_the_update(blobs: Dataset) -> None:
    network = model()
    before, order = network.evaluate(blobs), []
    history = fit(network, blobs, epochs=2, batch_size="full", callbacks=[lambda t: order.append(t.epoch)])
    assert history["train_loss"][0] == pytest.approx(before.loss, rel=1e-5)
    assert history["train_accuracy"][0] == before.accuracy
    assert history["epoch"] == order == [1, 2]


def test_the_validation_is_taken_after_the_epoch(blobs: Dataset) -> None:
    network = model()
    history = fit(network, blobs, epochs=2, batch_size=32, validation=blobs)
    after = network.evaluate(blobs)
    assert history["validation_loss"][-1] == pytest.approx(after.loss, rel=1e-5)
    assert history["validation_accuracy"][-1] == after.accuracy


def test_held_out_samples_are_not_trained_on(blobs: Dataset) -> None:
    trainer = Trainer(model(), blobs, batch_size=32, validation=50)
    assert trainer.batches.samples == 250
    assert trainer.validation_batches is not None
    assert trainer.validation_batches.samples == 50
    held_out = set(trainer.validation_batches.rows.tolist())
    assert held_out.isdisjoint(trainer.batches.rows.tolist())
    assert len(held_out | set(trainer.batches.rows.tolist())) == 300


def test_without_validation_its_columns_are_none(blobs: Dataset) -> None:
    for validation in (None, 0):
        history = fit(model(), blobs, epochs=2, validation=validation)
        assert history["validation_loss"] == history["validation_accuracy"] == [None, None]


def test_the_history_has_a_record_an_epoch(blobs: Dataset) -> None:
    history = fit(model(), blobs, epochs=4, validation=50, schedule=StepDecay(0.5, 2), optimizer=SGD(0.2))
    assert history["epoch"] == [1, 2, 3, 4]
    assert history["learning_rate"] == [0.2, 0.2, 0.1, 0.1]
    for record in history:
        assert isinstance(record, EpochRecord)
        assert 0 <= record.train_accuracy <= 1
        assert record.samples_per_second == pytest.approx(250 / record.seconds)
    assert history.seconds == pytest.approx(sum(history["seconds"]))
    assert not history.interrupted


@pytest.mark.parametrize(
    ("batch_size", "steps"), [("full", 1), (300, 1), (1000, 1), (299, 2), (128, 3), (100, 3), (1, 300)]
)
def test_an_epoch_sees_every_sample_once(blobs: Dataset, batch_size, steps: int) -> None:
    trainer = Trainer(model(), blobs, batch_size=batch_size)
    trainer.run(1)
    assert trainer.optimizer_state.steps == steps
    assert sorted(trainer.batches.order.tolist()) == list(range(300))
    assert trainer.batches.slices[-1].stop == 300


def test_a_batch_of_more_than_all_samples_is_the_full_batch(blobs: Dataset) -> None:
    assert weights(train(blobs, batch_size=10_000)[0]) == weights(train(blobs, batch_size="full")[0])


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": "half"}, {"batch_size": 2.5}, {"epochs": 0}, {"l2": -1.0}]
    + [{"validation": count} for count in (-1, 300)]
    + [{"shards": 301}, {"diagnostics": "off"}],
)
def test_wrong_values_are_refused(blobs: Dataset, wrong: dict) -> None:
    network = model()
    before = weights(network)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* expected"):
        fit(network, blobs, **wrong)
    assert weights(network) == before
    assert network.inputs is network.class_names is None


def test_data_that_does_not_fit_is_refused(blobs: Dataset) -> None:
    with pytest.raises(ValueError, match="20"):
        fit(model(sizes=(21, 4)), blobs)
    with pytest.raises(ValueError, match="20"):
        fit(model(), blobs, validation=Dataset(np.zeros((3, 9), np.uint8), [0, 1, 2]))


class Log(Callback):
    def __init__(self) -> None:
        self.calls: list[object] = []

    def on_train_begin(self, trainer: Trainer) -> None:
        self.calls.append("begin")

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        self.calls.append(samples)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.calls.append(f"epoch {trainer.history.records[-1].epoch}")

    def on_train_end(self, trainer: Trainer) -> None:
        self.calls.append("end")


@pytest.mark.usefixtures("progress_of_short_epochs")
def test_callbacks_are_called_in_order(blobs: Dataset) -> None:
    log = Log()
    fit(model(), blobs, epochs=2, batch_size=128, callbacks=[log])
    assert log.calls == ["begin", 128, 256, 300, "epoch 1", 128, 256, 300, "epoch 2", "end"]
    log = Log()
    fit(model(), blobs, epochs=1, batch_size=3, callbacks=[log])
    assert log.calls[1:-2] == list(range(15, 301, 15))  # 20 reports, of 100 steps


def test_callbacks_do_not_change_the_result(blobs: Dataset) -> None:
    assert weights(train(blobs)[0]) == weights(train(blobs, callbacks=[Log(), print])[0])


def test_a_callback_stops_training(blobs: Dataset) -> None:
    history = fit(model(), blobs, epochs=9, callbacks=[lambda trainer: trainer.epoch == 2 and trainer.stop()])
    assert len(history) == 2
    assert not history.interrupted


def test_an_invalid_callback_is_refused(blobs: Dataset) -> None:
    with pytest.raises(TypeError, match="function or a Callback"):
        fit(model(), blobs, callbacks=[3])


class Interrupt(Callback):
    """Raises within an epoch, after its first steps."""

    def __init__(self, epoch: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.epoch, self.error = epoch, error

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if trainer.epoch + 1 == self.epoch and samples > 100:
            raise self.error


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam(0.01)], ids=["sgd", "adam"])
def test_an_interrupted_epoch_is_rolled_back(blobs: Dataset, optimizer) -> None:
    options = {"optimizer": optimizer, "batch_size": 32}
    two_epochs, history = train(blobs, epochs=2, **options)
    network = model()
    trainer = Trainer(network, blobs, **options)
    result = trainer.run(5, [Interrupt(epoch=3)])
    assert result.interrupted
    assert len(result) == 2
    assert weights(network) == weights(two_epochs)
    assert weights(train(blobs, epochs=5, **options)[0]) != weights(network)
    # Optimizer, schedule and batch order are restored, too: training continues as without the interrupt.
    assert not trainer.run(5).interrupted
    assert weights(network) == weights(train(blobs, epochs=5, **options)[0])
    assert history == train(blobs, epochs=2, **options)[1]


def test_any_other_error_rolls_back_to_the_last_finished_epoch(blobs: Dataset) -> None:
    network = model()
    with pytest.raises(ZeroDivisionError):
        fit(network, blobs, epochs=5, batch_size=32, callbacks=[Interrupt(3, ZeroDivisionError)])
    assert weights(network) == weights(train(blobs, epochs=2, optimizer=SGD(0.1))[0])


@pytest.mark.parametrize("scale", [1e20, 1e37])
def test_huge_features_are_diagnosed(scale: float) -> None:
    rng = np.random.default_rng(0)
    data = Dataset((scale * rng.normal(size=(200, 20))).astype(np.float32), rng.integers(0, 4, 200), classes=4)
    network = model()
    before = weights(network)
    with pytest.raises(DivergenceError, match=r"epoch 1.*learning_rate 0\.1.*inputs up to .*scale them") as error:
        fit(network, data, epochs=3)
    assert len(error.value.history) == 0
    assert weights(network) == before


def test_a_divergence_rolls_back_to_the_last_good_epoch(blobs: Dataset) -> None:
    def explode(learning_rate: float, epoch: int) -> float:
        return 1e38 if epoch == 2 else learning_rate

    network = model()
    with pytest.raises(DivergenceError, match=r"epoch 3, .*1e\+38, largest gradient \d.*of layers") as error:
        fit(network, blobs, epochs=5, batch_size=32, schedule=explode, optimizer=SGD(0.1, momentum=0.9))
    assert error.value.history["epoch"] == [1, 2]
    assert weights(network) == weights(train(blobs, epochs=2)[0])
    assert all(math.isfinite(loss) for loss in error.value.history["train_loss"])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_divergence_is_explained_by_the_steps_that_were_taken(dropout: float, blobs: Dataset) -> None:
    """With their learning rates, where these change by step, and their dropout."""

    def explode(learning_rate: float, step: int) -> float:
        return 1e37 if step == 13 else learning_rate

    explode.by_step = True
    rates, losses = [], []
    network = MLP([20, 16, 4], device="cpu", dropout=dropout)
    trainer = Trainer(network, blobs, batch_size=32, schedule=explode)

    class Watch(type(trainer._step)):
        def __call__(self, batch: slice, learning_rate: float) -> None:
            super().__call__(batch, learning_rate)
            rates.append(learning_rate)
            losses.append(self.losses[batch].tobytes())

    trainer._step.__class__ = Watch
    trainer.keep_gradients()  # as the explanation does
    with pytest.raises(DivergenceError, match=r"in epoch 2, at step 5 of 10, .*learning_rate 1e\+37, largest"):
        trainer.run(5)
    assert rates[10:15] == rates[20:]
    assert losses[10:15] == losses[20:]


def test_after_a_divergence_gradients_are_added_where_they_were_before(blobs: Dataset) -> None:
    model = MLP([20, 16, 4], device="cpu")
    trainer = Trainer(model, blobs, optimizer=SGD(1e30), batch_size=32)
    ways = [
        trainer._step._may_accumulate,
        trainer._step.gradient_wanted,
        trainer._step._accumulations(0.1) is None,
    ]
    with pytest.raises(DivergenceError):
        trainer.run(3)
    assert ways == [
        *(trainer._step._may_accumulate, trainer._step.gradient_wanted),
        trainer._step._accumulations(0.1) is None,
    ]


def test_a_loss_that_only_the_validation_sees_is_a_divergence(blobs: Dataset) -> None:
    network = model()  # one step: the training loss was taken before it
    before = weights(network)
    said = r"epoch 1, where the loss of the validation samples became (nan|inf): .* Check that the validation"
    with pytest.raises(DivergenceError, match=said):
        fit(network, blobs, epochs=1, batch_size="full", validation=50, optimizer=SGD(1e30))
    assert weights(network) == before
    with pytest.raises(DivergenceError) as error:  # the step makes the parameters infinite: not for the validation
        fit(network, blobs, epochs=1, batch_size="full", validation=50, optimizer=SGD(1e300))
    assert "validation" not in str(error.value)


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [(SGD(1e30), "0.1"), (SGD(0.5), "0.05"), (Adam(1e30), "0.001"), (Adam(0.001), "0.0001")],
)
def test_after_a_divergence_a_usual_learning_rate_is_advised(optimizer: Optimizer, rate: str) -> None:
    advice = smaller_steps(optimizer, optimizer.learning_rate)
    assert advice == f"Try a learning_rate of {rate} or less, or another initializer"


def test_an_optimizer_without_a_usual_rate_is_advised_a_tenth() -> None:
    class Own(Optimizer):
        pass

    assert "of 20 or less" in smaller_steps(Own(200.0), 200.0)


def test_divergence_with_an_absurd_learning_rate_advises_a_usual_one(blobs: Dataset) -> None:
    with pytest.raises(DivergenceError, match=r"learning_rate 1e\+30.* Try a learning_rate of 0\.1 or less"):
        fit(model(), blobs, epochs=1, batch_size=32, optimizer=SGD(1e30))


class Measure(Callback):
    """Measures the parameters after each epoch, without a separate wait."""

    def __init__(self) -> None:
        self.values: list[list[float]] = []

    def on_measure(self, trainer: Trainer, before):
        now = trainer.model.parameters.data
        return np.array([[trainer.epoch + 1, abs(now - before).max()]])

    def on_measured(self, trainer: Trainer, values: list[float]) -> None:
        self.values.append(values)


@pytest.mark.parametrize("diagnostics", [True, False])
@pytest.mark.parametrize("validation", [None, 50])
def test_what_callbacks_measure_is_read_with_the_validation(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch, diagnostics: bool, validation: int | None
) -> None:
    reads = []
    read = NumpyBackend.to_numpy
    monkeypatch.setattr(NumpyBackend, "to_numpy", lambda self, array: reads.append(1) or read(self, array))
    measure = Measure()
    trainer = Trainer(model(), blobs, validation=validation, diagnostics=diagnostics)
    reads.clear()
    history = trainer.run(2, [measure])
    assert len(reads) == 4 + 2 * diagnostics  # twice an epoch, and for the counts of the classes at the end
    assert [values[0] for values in measure.values] == [1, 2]
    assert all(values[1] > 0 for values in measure.values)
    assert (history.records[0].layers is not None) is diagnostics


def test_training_does_not_need_the_diagnostics() -> None:
    code = (
        "import sys, gpumlp; data = gpumlp.load_digits()[0]; "
        "gpumlp.fit(gpumlp.MLP([64, 10], device='cpu'), data, epochs=1, diagnostics=False); "
        "assert 'gpumlp.diagnostics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_numpy_integer_holds_samples_out(blobs: Dataset) -> None:
    model = MLP([20, 8, 4], device="cpu")
    history = fit(model, blobs, epochs=1, validation=np.int64(50), batch_size=np.int64(32))
    assert history["validation_loss"][0] is not None


@pytest.mark.parametrize(
    "wrong",
    [{"validation": 2.5}, {"validation": 1.0}, {"batch_size": True}, {"batch_size": 2.5}, {"epochs": 2.5}],
)
def test_a_count_that_is_not_an_integer_is_refused(blobs: Dataset, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected to be a whole number"):
        fit(MLP([20, 8, 4], device="cpu"), blobs, **wrong)


def test_a_callback_class_in_place_of_an_object_is_refused(blobs: Dataset) -> None:
    with pytest.raises(TypeError, match="a callback is expected"):
        fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=1, callbacks=[Callback])


@pytest.mark.parametrize("wrong", [5, None, "progress", Callback])
def test_invalid_lists_of_callbacks_are_refused(blobs: Dataset, wrong: Any) -> None:
    with pytest.raises(
        TypeError, match="callbacks is expected to be a list of functions or Callback objects, got"
    ):
        fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=1, callbacks=wrong)


def test_a_single_callback_needs_no_list(blobs: Dataset) -> None:
    epochs: list[int] = []
    fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=2, callbacks=lambda trainer: epochs.append(trainer.epoch))
    assert epochs == [1, 2]
    stopping = EarlyStopping("train_loss", patience=1, min_delta=1e9)
    assert len(fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=5, callbacks=stopping)) == 2


# -- The order of the samples --------------------------------------------------------------------------------


def orders(seed: int = 3) -> EpochOrders:
    return EpochOrders(np.arange(10, 30), np.random.default_rng(seed))


def test_an_order_is_a_permutation_of_the_rows_and_another_one_each_time() -> None:
    drawn = orders()
    first, second = drawn.draw(), drawn.draw()
    assert sorted(first) == sorted(second) == list(range(10, 30))
    assert first.tolist() != second.tolist()


def test_drawing_ahead_changes_no_order_and_no_state() -> None:
    ahead, plain = orders(), orders()
    for _ in range(3):
        ahead.draw_ahead()
        ahead.draw_ahead()  # once is enough
        assert ahead.state == plain.state
        assert ahead.draw().tolist() == plain.draw().tolist()
    assert ahead.state == plain.state


@pytest.mark.parametrize("ahead", [False, True])
def test_orders_continue_from_a_state(ahead: bool) -> None:
    first = orders()
    first.draw()
    if ahead:
        first.draw_ahead()
    second = orders(seed=4)
    second.draw_ahead()
    second.state = first.state
    assert second.draw().tolist() == first.draw().tolist()


@pytest.mark.parametrize("options", [{}, {"order": Blocks(5, 4), "shards": 2}])
def test_a_gpu_trains_while_the_next_order_is_drawn(options: dict[str, Any], blobs: Dataset) -> None:
    """A trainer restored from this state uses the same order."""
    trainer, other = (
        Trainer(MLP([20, 4], device=device), blobs, batch_size=32, **options)
        for device in (host_cuda_backend(), "cpu")
    )
    assert trainer._orders._ahead is None
    steps = trainer.training(1)
    next(steps)
    assert trainer._orders._ahead is not None
    steps.close()
    assert trainer.random_state() == other.random_state()
    trainer.run(1)
    other.restore({}, trainer.optimizer_state.steps, trainer.random_state(), trainer.history)
    np.testing.assert_array_equal(other._orders.draw(), trainer._orders.draw())
