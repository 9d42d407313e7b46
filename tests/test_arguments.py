"""Arguments of the wrong kind in Python: an error before any work that says what is expected and what to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import gpumlp
from gpumlp import (
    MLP,
    SGD,
    Activation,
    Adam,
    BestCheckpoint,
    Callback,
    Constant,
    Dataset,
    Dense,
    He,
    LogisticCrossEntropy,
    Loss,
    Milestones,
    ModelFileError,
    Optimizer,
    Penalty,
    SoftmaxCrossEntropy,
    SquaredError,
    StepDecay,
    Tanh,
    Trainer,
    fit,
)
from gpumlp.backends import Backend

X, Y = np.eye(6, dtype=np.float32), np.arange(6) % 3


def net(**options: Any) -> MLP:
    return MLP([6, 4, 3], device="cpu", **options)


def wrong_state(dtype: str) -> dict[str, Any]:
    return {name: tensor.astype(dtype) for name, tensor in net().state_dict().items()}


DATA = Dataset(X, Y)


# -- Objects of another kind --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fit(net(), (X, Y)),
            r"a Dataset is expected, or an array .* fit\(model, X, y\); got a tuple alone",
        ),
        (lambda: fit(net(), X), r"a Dataset is expected, or .*; got an array of shape \(6, 6\) alone"),
        (lambda: fit(net(), "digits"), "a Dataset is expected, or .*; got 'digits' alone"),
        (
            lambda: fit(net(), DATA, Y),
            "targets and sample_weight are expected with an array of samples; a Dataset",
        ),
        (
            lambda: fit(net(), DATA, sample_weight=np.ones(6)),
            "targets and sample_weight are expected with an array",
        ),
        (lambda: Trainer(net(), X), r"train is expected to be a Dataset, got an array.*; give Dataset\(samples"),
        (lambda: fit(MLP, DATA), r"model is expected to be an MLP, such as MLP\(.*, got the class MLP"),
        (lambda: fit(DATA, net()), r"model is expected to be an MLP, such as MLP\(.*, got Dataset\('arrays'"),
        (
            lambda: fit(net(), DATA, optimizer="adam"),
            r"be an Optimizer, such as SGD\(0.1\) or Adam\(\), got 'adam'",
        ),
        (
            lambda: fit(net(), DATA, optimizer=Adam),
            "optimizer is expected to be an Optimizer.* got the class Adam",
        ),
        (lambda: fit(net(), DATA, optimizer=0.1), "optimizer is expected to be an Optimizer.* got 0.1"),
        (lambda: fit(net(), DATA, schedule="step"), r"schedule .* such as StepDecay\(\), got 'step'"),
        (lambda: fit(net(), DATA, schedule=StepDecay), r"schedule .* got the class StepDecay"),
        (
            lambda: fit(net(), DATA, schedule=lambda epoch: 0.1),
            "a function of the initial learning rate, the epoch",
        ),
        (lambda: Trainer(net(), DATA, penalty=1e-4), r"be a Penalty, such as Penalty\(l2=1e-4\), got 0.0001"),
        (
            lambda: fit(net(), DATA, validation="10%"),
            r"validation .* a Dataset, \(samples, targets\), .* got '10%'",
        ),
        (lambda: fit(net(), DATA, validation=True), "validation is expected to be a Dataset, .* got True"),
        (lambda: fit(net(), DATA, validation=(X, Y, Y)), "validation is expected to be a Dataset, .* got a tuple"),
        (lambda: fit(net(), DATA, class_weight="even"), "class_weight .* 'balanced' or a dict .* got 'even'"),
        (lambda: fit(net(), DATA, class_weight=[1, 2, 3]), r"class_weight .* or a dict .* got \[1, 2, 3\]"),
        (
            lambda: fit(net(), DATA, callbacks=Callback),
            "callbacks is expected to be a list of .* the class Callback",
        ),
        (
            lambda: fit(net(), DATA, callbacks=[None]),
            "a callback is expected to be a function or a Call.* got None",
        ),
        (
            lambda: fit(net(), DATA, callbacks=[lambda: None]),
            "a callback is expected to be a function of the train",
        ),
        (lambda: net().accuracy((X, Y)), "a Dataset is expected, or an array with its targets, got a tuple"),
        (lambda: net().evaluate(X), "a Dataset is expected, or an array with its targets, got an array of shape"),
        (
            lambda: net().load_state_dict([X]),
            r"tensors are expected by name, as state_dict\(\) returns",
        ),
        (lambda: net().predict(DATA), r"expected to be an array, got Dataset\(.*; give dataset.images"),
    ],
)
def test_an_object_of_another_kind_is_named_with_what_to_give(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net(activation=Tanh), r"activation .* relu, .*, or an Activation, got the class Tanh"),
        (
            lambda: net(activation=["relu", "tanh"]),
            r"activation .* for each of 1 hidden layers, got \['relu', 'tanh'",
        ),
        (lambda: net(activation=5), "activation is expected to be one of relu, .*, or an Activation, got 5"),
        (lambda: net(activation=[5]), "activation is expected to be one of relu, .*, or an Activation, got 5"),
        (lambda: net(dropout=1.0), "dropout is expected to be a number of at least 0 and below 1, got 1.0"),
        (lambda: net(dropout=-0.1), "dropout is expected to be a number of at least 0 and below 1, got -0.1"),
        (lambda: net(dropout="half"), "dropout is expected to be a number .*, got 'half'"),
        (lambda: net(dropout=[0.5, 0.5]), r"dropout .* for each of 1 hidden layers, got \[0.5, 0.5\]"),
        (
            lambda: net(input_dropout=1),
            "input_dropout is expected to be a number of at least 0 and below 1, got 1",
        ),
        (lambda: fit(net(), DATA, clip_norm=0), "clip_norm is expected to be a number above 0, got 0"),
        (lambda: fit(net(), DATA, max_norm=-1.0), "max_norm is expected to be a number above 0, got -1.0"),
        (lambda: fit(net(), DATA, ema=1.0), "ema is expected to be a number of at least 0 and below 1, got 1.0"),
        (lambda: SoftmaxCrossEntropy(1.0), "label_smoothing .* of at least 0 and below 1, got 1.0"),
        (lambda: LogisticCrossEntropy(-0.1), "label_smoothing .* of at least 0 and below 1, got -0.1"),
        (lambda: net(loss=SoftmaxCrossEntropy), "loss .* or a Loss, got the class SoftmaxCrossEntropy"),
        (lambda: net(loss={}), "loss is expected to be one of softmax_cross_entropy, .* or a Loss, got {}"),
        (lambda: net(initializer=0.1), r"initializer .* a method std\(in_features, out_features\), got 0.1"),
        (lambda: net(seed=-1), "seed is expected to be a whole number of 0 or more, got -1"),
        (lambda: fit(net(), DATA, seed="a"), "seed is expected to be a whole number of 0 or more, got 'a'"),
        (
            lambda: fit(net(), DATA, validation=1.0),
            r"validation \(if not a fraction below 1\) is expected to be a whole number of 0 or more, got 1.0",
        ),
        (lambda: fit(net(), DATA, validation=[0, 6]), "validation .* row numbers from 0 to 5, got 0 to 6"),
        (lambda: fit(net(), DATA, validation=[X, Y]), "validation is expected to be one array of row numbers"),
        (lambda: fit(net(), DATA, validation=([0], [1])), r"\(samples, targets\), and row numbers one array"),
        (lambda: fit(net(), DATA, validation=0.01), r"leave some of the 6 .* got 0.01 of them, which is 0"),
        (lambda: fit(net(), DATA, validation=0.99), r"leave some of the 6 .* got 0.99 of them, which is 6"),
        (lambda: fit(net(), DATA, validation=0.8), "validation .* to leave one of each of the 3 classes, got 5"),
        (lambda: fit(net(), DATA, class_weight={3: 1.0}), "class_weight is expected to name classes .*, got 3"),
        (
            lambda: fit(net(), DATA, class_weight={0: -1.0}),
            "class_weight .* a finite number of 0 or more, got -1.0",
        ),
        (
            lambda: fit(net(), X, X + 0.5, class_weight="balanced"),
            "class_weight is expected only with classes, but",
        ),
        (lambda: MLP([6, 3], activation=5, device="cpu"), "activation is expected to be one of relu, .* got 5"),
        (lambda: MLP([6, 3], dropout=1.5, device="cpu"), "dropout is expected to be a number .*, got 1.5"),
        (lambda: Trainer(net(), DATA).run("5"), "epochs is expected to be a whole number of 0 or more, got '5'"),
        (lambda: StepDecay(step_size="2"), "step_size is expected to be a whole number of 1 or more, got '2'"),
        (lambda: Milestones(20), "milestones are expected to be several epochs, got 20"),
        (lambda: Milestones(["a"]), "a milestone is expected to be a whole number of 0 or more, got 'a'"),
        (lambda: SGD(momentum=0.9, nesterov="no"), "nesterov is expected to be True or False, got 'no'"),
        (lambda: fit(net(), DATA, diagnostics="off"), "diagnostics is expected to be True or False, got 'off'"),
        (lambda: He(uniform="no"), "uniform is expected to be True or False, got 'no'"),
        (lambda: net(dtype="half a float"), "dtype is expected to be float32 or float64, got 'half a float'"),
        (lambda: Dense("a", 3), "in_features is expected to be a whole number of 1 or more, got 'a'"),
        (lambda: net().load_state_dict({"layers.0.weight": "x"}), r"expected to have shape \(6, 4\), got \(\)"),
        *(
            (
                lambda dtype=dtype: net().load_state_dict(wrong_state(dtype)),
                "weight is expected to hold real numbers, ",
            )
            for dtype in ("U1", "complex64", "O")
        ),
        (lambda: net().predict([[0.0] * 6, [0.0]]), "images cannot be read as one array"),
        (
            lambda: net().predict(X[0]),
            r"have shape \(samples, ...\), got \(6,\); give one sample as images\[None\]",
        ),
        (lambda: net().predict(X[0].reshape(2, 3)), r"got \(2, 3\); give one sample as images\[None\]"),
        (lambda: SGD(learning_rate="0.1"), "learning_rate is expected to be a number above 0, got '0.1'"),
        (lambda: StepDecay(gamma="0.5"), "gamma is expected to be .*, got '0.5'"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_column_that_a_history_does_not_have_is_named_with_those_it_has() -> None:
    with pytest.raises(KeyError, match=r"one of epoch, train_loss, .*, got 'train-loss'"):
        fit(net(), DATA, epochs=1)["train-loss"]


def test_a_failed_call_leaves_the_network_as_it_was() -> None:
    model = net()
    before = model.parameters.data.copy()
    for options in ({"validation": "10%"}, {"schedule": "step"}, {"optimizer": "adam"}, {"callbacks": [3]}):
        with pytest.raises(TypeError):
            fit(model, DATA, **options)
    np.testing.assert_array_equal(model.parameters.data, before)


# -- Rules of one's own that are incomplete -----------------------------------------------------------------------


class Empty(Activation):
    name = "empty"


class OnlyForward(Activation):
    name = "only_forward"

    def forward(self, xp: Any, s: Any, out: Any) -> None: ...


class Unnamed(Activation):
    def forward(self, xp: Any, s: Any, out: Any) -> None: ...
    def backward(self, xp: Any, a: Any, delta: Any) -> None: ...


class WithoutSpace(Tanh):
    def forward(self, s: Any, out: Any) -> None: ...  # type: ignore[override]


class NoPredictions(Loss):
    name = "no_predictions"

    def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, correct: Any) -> None: ...


@dataclass(frozen=True)
class NoUpdate(Optimizer):
    learning_rate: float = 0.1


class Returns(Activation):
    name = "returns"

    def forward(self, xp: Any, s: Any, out: Any) -> Any:
        return xp.maximum(s, 0)

    def backward(self, xp: Any, a: Any, delta: Any) -> Any:
        return delta * (a > 0)


class ReturnsSlope(Tanh):
    def backward(self, xp: Any, a: Any, delta: Any) -> Any:
        return delta * (1 - a * a)


class LeavesLosses(SoftmaxCrossEntropy):
    def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, correct: Any) -> None:
        outputs[...] = 0


class LeavesScores(SquaredError):
    def output_error(self, backend: Any, outputs: Any, targets: Any, losses: Any, scores: Any) -> None:
        outputs -= targets
        losses[...] = (outputs * outputs).sum(axis=1) / 2
        outputs /= len(targets)


class OtherTask(SquaredError):
    task = "regression"


@dataclass(frozen=True)
class ReturnsParameters(SGD):
    def update(self, xp: Any, parameters: Any, gradient: Any, state: Any, learning_rate: float) -> Any:
        return parameters - learning_rate * gradient


class Negative:
    def std(self, in_features: int, out_features: int) -> float:
        return -1.0


class Measures(Callback):
    def __init__(self, value: Any, found: Any = None) -> None:
        self.value, self.found = value, found

    def on_measure(self, trainer: Any, before: Any) -> Any:
        return self.value(trainer.model.backend.xp) if callable(self.value) else self.value

    def on_measured(self, trainer: Any, values: list[float]) -> Any:
        self.values = values
        return self.found


class Eager(Callback):
    def on_epoch_end(self) -> None: ...  # type: ignore[override]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net(activation=Empty()), "Empty is expected to define forward and backward, see Activation"),
        (lambda: net(activation=OnlyForward()), "OnlyForward is expected to define backward"),
        (lambda: net(activation=Unnamed()), "Unnamed is expected to have a name, such as name = 'my_activation'"),
        (
            lambda: net(activation=WithoutSpace()),
            "WithoutSpace.forward is expected to be a function of xp, s, out",
        ),
        (
            lambda: net(activation=Returns()),
            "Returns.forward is expected to write .* returns an array of shape",
        ),
        (lambda: net(activation=ReturnsSlope()), "ReturnsSlope.backward is expected to write its result into the"),
        (lambda: net(loss=LeavesLosses()), "LeavesLosses.output_error .* to return None; it leaves them as they"),
        (lambda: net(loss=LeavesScores()), "LeavesScores.output_error is expected to write scores too"),
        (lambda: net(loss=OtherTask()), "OtherTask.task is expected to be one of classes, labels, numbers, got"),
        (
            lambda: fit(net(), DATA, optimizer=ReturnsParameters()),
            "ReturnsParameters.update .* returns an array",
        ),
        (lambda: net(loss=NoPredictions()), "NoPredictions is expected to define predictions, see Loss"),
        (lambda: fit(net(), DATA, optimizer=NoUpdate()), "NoUpdate is expected to define update, see Optimizer"),
        (
            lambda: fit(net(), DATA, callbacks=Eager()),
            "Eager.on_epoch_end is expected to be a function of trainer",
        ),
        (
            lambda: fit(net(), DATA, callbacks=Measures([1.0])),
            r"Measures.on_measure .* array .* or None, got \[1.0\]",
        ),
        (lambda: fit(net(), DATA, callbacks=Measures(1.0)), "Measures.on_measure .* float64 array .* got 1.0"),
        (lambda: fit(net(), DATA, callbacks=Measures("x")), "Measures.on_measure .* float64 array .* got 'x'"),
        (
            lambda: fit(net(), DATA, callbacks=Measures(np.ones(2), 5)),
            "Measures.on_measured .* tuple of Layer.* got 5",
        ),
    ],
)
def test_an_incomplete_class_is_refused_with_what_it_lacks(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: net(initializer=Negative()),
            "standard deviation that .* gives .* a number of 0 or more, got -1.0",
        ),
        (lambda: fit(net(), DATA, schedule=lambda rate, epoch: None), "schedule gives for epoch 0 .* got None"),
        (lambda: fit(net(), DATA, schedule=lambda rate, epoch: -rate), "schedule gives for epoch 0 .* got -0.1"),
        (lambda: fit(net(), DATA, schedule=lambda rate, epoch: np.nan), "schedule gives for epoch 0 .* got nan"),
    ],
)
def test_what_a_rule_gives_is_checked(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_a_callback_measures_may_be_a_scalar_on_every_device(backend: Backend) -> None:
    measures = Measures(lambda xp: xp.sum(xp.ones(3, dtype="float64")))
    fit(MLP([6, 3], device=backend), DATA, epochs=1, callbacks=[measures])
    assert measures.values == [3.0]


def test_a_network_that_cannot_be_saved_is_refused_before_it_is_trained(tmp_path: Any) -> None:
    class Own(Tanh):
        name: ClassVar[str] = "own"

    model = net(activation=Own())
    best = BestCheckpoint(tmp_path / "new" / "best.safetensors", "train_loss")
    before = model.parameters.data.copy()
    with pytest.raises(ModelFileError, match=r"gpumlp\.register"):
        fit(model, DATA, callbacks=best)
    np.testing.assert_array_equal(model.parameters.data, before)
    assert not (tmp_path / "new").exists()


# -- What an extension needs ---------------------------------------------------------------------------


EXTENSIONS = (
    "Activation Loss Layer Dropout Optimizer OptimizerState Schedule Initializer Callback Backend Penalty "
    "CudaActivation LayerStatistics register Trainer Dataset Inputs"
)


@pytest.mark.parametrize("name", EXTENSIONS.split())
def test_what_an_extension_needs_is_offered(name: str) -> None:
    assert name in gpumlp.__all__
    assert getattr(gpumlp, name).__doc__


def test_a_constant_schedule_and_no_penalty_are_the_defaults() -> None:
    results = [fit(net(), DATA, epochs=3)["train_loss"]]
    trainer = Trainer(net(), DATA, optimizer=SGD(0.1), schedule=Constant(), penalty=Penalty())
    assert trainer.run(3)["train_loss"] == results[0]
