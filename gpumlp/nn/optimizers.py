"""Optimizers and weight penalties.

An optimizer is a frozen set of hyperparameters. Its state between steps is an `OptimizerState` of flat buffers,
which `init` creates and `update` overwrites, so one optimizer can be used for several training runs and a state
can be saved.

    theta: parameters    g: gradient    eta: learning rate
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..backends import Accumulation, Array, Backend, HostArray, array_namespace, stated
from ..words import shown
from .hyperparameters import flag, instance, number, require_arguments, require_in_place, set_number


@dataclass
class OptimizerState:
    """The state of an optimizer between steps.

    Attributes:
        buffers: arrays by name, each of the shape and dtype of the parameters.
        scratch: a temporary array of the same shape and dtype.
        steps: the number of steps taken, counted by the backend; optimizers neither read nor change it.
        weights: the part of the parameters that holds the weights; the biases follow.
    """

    buffers: dict[str, Array]
    scratch: Array
    steps: int = 0
    weights: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True)
class Penalty:
    """The weight penalty R(W) = (l2 / 2) sum W^2 + l1 sum |W|, with the gradient l2 W + l1 sign(W).

    It is added to the loss to keep the weights small; biases are not penalised. The sums are over all weights of
    the network and are not divided by the number of samples, so the effect does not depend on the batch size.
    """

    l2: float = 0.0
    l1: float = 0.0

    kernel: ClassVar[str] = "l2_l1"  # see `gpumlp.backends.stated`

    def __post_init__(self) -> None:
        set_number(self, "l2", 0)
        set_number(self, "l1", 0)

    def __call__(self, weights: Array) -> float:
        """R(W) of an array of weights of any shape, as a Python float. Waits for the device.

        >>> import numpy as np
        >>> Penalty(l2=0.5, l1=1.0)(np.array([[1.0, -2.0]]))
        4.25
        """
        xp = array_namespace(weights)
        return float(self.l2 / 2 * xp.sum(xp.square(weights)) + self.l1 * xp.sum(xp.abs(weights)))

    def add_gradient(self, backend: Backend, weights: Array, gradient: Array, scratch: Array) -> None:
        """``gradient += l2 W + l1 sign(W)`` in place, for vectors of one length; overwrites `scratch`."""
        if self.l2:
            backend.add_scaled(weights, self.l2, gradient, scratch)
        if self.l1:
            backend.xp.sign(weights, out=scratch)
            backend.xp.multiply(scratch, self.l1, out=scratch)
            backend.xp.add(gradient, scratch, out=gradient)


_NO_PENALTY = Penalty()


@dataclass(frozen=True)
class Optimizer:
    """Base class of optimizers. To add one, subclass, set `buffer_names`, and implement `update`.

    If more than the learning rate changes from step to step, override `step_factors` too. A subclass that
    overrides `update` does not inherit `kernel`.

    Attributes:
        learning_rate: eta_0, the initial learning rate.
        buffer_names: the names of its state's buffers.
        kernel: the name by which a device recognizes the rule and selects its own implementation; None for array
            code.
    """

    learning_rate: float

    buffer_names: ClassVar[tuple[str, ...]] = ()
    kernel: ClassVar[str | None] = None

    def init(self, parameters: Array) -> OptimizerState:
        """Create the state for parameters ``(size,)``: zeros on their device."""
        xp = array_namespace(parameters)
        names = self.active_buffers()
        return OptimizerState({name: xp.zeros_like(parameters) for name in names}, xp.zeros_like(parameters))

    def active_buffers(self) -> tuple[str, ...]:
        """The names of the buffers that these hyperparameters need."""
        return self.buffer_names

    def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]:
        """Every number that changes from step to step, as Python floats: the last arguments of `update`.

        Args:
            steps: the number of this step, counted from 1.
            learning_rate: of this step.
        """
        return (learning_rate,)

    def factors_of_steps(self, first: int, learning_rates: Sequence[float]) -> npt.ArrayLike:
        """`step_factors` of consecutive steps, ``(steps, factors)``.

        Args:
            first: the number of the first of them.
            learning_rates: of each.
        """
        if type(self).step_factors is Optimizer.step_factors:
            return np.array(learning_rates)[:, np.newaxis]  # a GPU may take less time for a step than a call
        return [self.step_factors(number, rate) for number, rate in enumerate(learning_rates, first)]

    def update(
        self, xp: Any, parameters: Array, gradient: Array, state: OptimizerState, learning_rate: Any
    ) -> None:
        """Take one step in place.

        Args:
            xp: the array library, ``numpy`` or ``cupy``.
            parameters: ``(size,)``, overwritten.
            gradient: ``(size,)``, kept.
            state: its buffers and `scratch` are overwritten.
            learning_rate: of this step; or, with another `step_factors`, one argument for each of its numbers. A
                Python float, or in a captured graph an array ``()`` on the device.
        """
        raise NotImplementedError

    def accumulation(
        self, parameters: Array, state: OptimizerState, penalty: Penalty, learning_rate: float
    ) -> Accumulation | None:
        """Where the weights' gradient g can be added directly; None if the rule needs g as a separate array.

        Optional. After an accumulation, `complete` replaces the penalty and `update`.
        """
        return None

    def complete(
        self,
        backend: Backend,
        penalty: Penalty,
        parameters: Array,
        gradient: Array,
        weights: slice,
        state: OptimizerState,
        learning_rate: float,
    ) -> None:
        """Complete a step after the accumulation; `gradient` contains the gradient of the biases only."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with optional momentum and Nesterov momentum.

    ::

        v <- mu v + g
        theta <- theta - eta v             (momentum; without it v = g)
        theta <- theta - eta (g + mu v)    (Nesterov)

    B. T. Polyak, 1964; Y. Nesterov, 1983. The form is that of PyTorch, after I. Sutskever et al., "On the
    importance of initialization and momentum in deep learning", ICML 2013.

    >>> import numpy as np
    >>> theta, g = np.array([1.0]), np.array([0.5])
    >>> sgd = SGD(learning_rate=0.1)
    >>> sgd.update(np, theta, g, sgd.init(theta), 0.1)
    >>> theta
    array([0.95])
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False

    buffer_names: ClassVar[tuple[str, ...]] = ("velocity",)
    kernel: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        set_number(self, "learning_rate", 0, open_low=True)
        set_number(self, "momentum", 0, 1, open_high=True)
        flag("nesterov", self.nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is expected to be False if momentum is 0, got True")

    def active_buffers(self) -> tuple[str, ...]:
        return self.buffer_names if self.momentum else ()

    def update(self, xp: Any, parameters: Array, gradient: Array, state: OptimizerState, step_size: Any) -> None:
        step = state.scratch
        if not self.momentum:
            xp.multiply(gradient, step_size, out=step)
        else:
            velocity = state.buffers["velocity"]
            xp.multiply(velocity, self.momentum, out=velocity)
            xp.add(velocity, gradient, out=velocity)
            if self.nesterov:
                xp.multiply(velocity, self.momentum, out=step)
                xp.add(step, gradient, out=step)
                xp.multiply(step, step_size, out=step)
            else:
                xp.multiply(velocity, step_size, out=step)
        xp.subtract(parameters, step, out=parameters)

    def accumulation(
        self, parameters: Array, state: OptimizerState, penalty: Penalty, learning_rate: float
    ) -> Accumulation | None:
        rules = stated(self, "kernel", "update") and stated(penalty, "kernel", "add_gradient")
        if not rules or type(self).step_factors is not Optimizer.step_factors:
            return None  # custom rules, which `complete` does not support
        if self.momentum and not self.nesterov:
            return Accumulation(state.buffers["velocity"], scale=1.0, keep=self.momentum)
        if not self.momentum and penalty == _NO_PENALTY:
            return Accumulation(parameters, scale=-learning_rate, keep=1.0)
        return None

    def complete(
        self,
        backend: Backend,
        penalty: Penalty,
        parameters: Array,
        gradient: Array,
        weights: slice,
        state: OptimizerState,
        learning_rate: float,
    ) -> None:
        xp, biases = backend.xp, slice(weights.stop, None)
        if self.momentum:
            velocity = state.buffers["velocity"]
            penalty.add_gradient(backend, parameters[weights], velocity[weights], state.scratch[weights])
            xp.multiply(velocity[biases], self.momentum, out=velocity[biases])
            xp.add(velocity[biases], gradient[biases], out=velocity[biases])
            backend.add_scaled(velocity, -learning_rate, parameters, state.scratch)
        else:
            step = state.scratch[biases]
            xp.multiply(gradient[biases], learning_rate, out=step)
            xp.subtract(parameters[biases], step, out=parameters[biases])


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: per-parameter step sizes from running means of g and g^2.

    ::

        m <- beta1 m + (1 - beta1) g           v <- beta2 v + (1 - beta2) g^2
        theta <- theta - eta m^ / (sqrt(v^) + epsilon)
        m^ = m / (1 - beta1^t),  v^ = v / (1 - beta2^t),  at step t = 1, 2, ...

    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015. With ``correct_epsilon=False``
    epsilon is added to sqrt(v) instead of sqrt(v^), as at the end of section 2 of that paper and in scikit-learn,
    which amounts to a larger epsilon in the first steps.
    """

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    correct_epsilon: bool = True

    buffer_names: ClassVar[tuple[str, ...]] = ("mean", "mean_square")
    kernel: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        set_number(self, "learning_rate", 0, open_low=True)
        set_number(self, "beta1", 0, 1, open_high=True)
        set_number(self, "beta2", 0, 1, open_high=True)
        set_number(self, "epsilon", 0, open_low=True)
        flag("correct_epsilon", self.correct_epsilon)

    def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]:
        # The bias corrections of both means are scalars, folded into the step size and epsilon.
        mean_correction = 1 - self.beta1**steps
        root_correction = math.sqrt(1 - self.beta2**steps)
        epsilon = self.epsilon * root_correction if self.correct_epsilon else self.epsilon
        return learning_rate * root_correction / mean_correction, epsilon

    def factors_of_steps(self, first: int, learning_rates: Sequence[float]) -> npt.ArrayLike:
        if type(self).step_factors is not Adam.step_factors:
            return super().factors_of_steps(first, learning_rates)
        return self._factors(first, np.array(learning_rates))

    def _factors(self, first: int, rates: HostArray, *more: HostArray) -> HostArray:
        """Those of Adam, as in `step_factors`, and more columns."""
        # The corrections are the same for all networks that are at these steps.
        mean_corrections, root_corrections = _corrections(self.beta1, self.beta2, first, len(rates))
        factors = np.empty((len(rates), 2 + len(more)))
        factors[:, 0] = rates * root_corrections / mean_corrections
        factors[:, 1] = self.epsilon * root_corrections if self.correct_epsilon else self.epsilon
        for index, column in enumerate(more, 2):
            factors[:, index] = column
        return factors

    def update(  # type: ignore[override]  # one argument for each of `step_factors`
        self, xp: Any, parameters: Array, gradient: Array, state: OptimizerState, step_size: Any, epsilon: Any
    ) -> None:
        mean, mean_square, step = state.buffers["mean"], state.buffers["mean_square"], state.scratch
        _add_to_mean(xp, mean, self.beta1, gradient, step)
        xp.multiply(gradient, gradient, out=step)
        _add_to_mean(xp, mean_square, self.beta2, step, step)
        xp.sqrt(mean_square, out=step)
        xp.add(step, epsilon, out=step)
        xp.divide(mean, step, out=step)
        xp.multiply(step, step_size, out=step)
        xp.subtract(parameters, step, out=parameters)


@lru_cache(maxsize=16)
def _corrections(beta1: float, beta2: float, first: int, count: int) -> tuple[HostArray, HostArray]:
    """The corrections of both means at consecutive steps, ``(count,)``, by Python's power as in `step_factors`."""
    steps = range(first, first + count)
    return np.array([1 - beta1**step for step in steps]), np.sqrt([1 - beta2**step for step in steps])


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: the weights shrink by a share of themselves, apart from the gradient.

    ::

        W <- W - eta lambda W              (weights only, not biases)
        theta <- theta - eta m^ / (sqrt(v^) + epsilon)             (see `Adam`)

    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019, with PyTorch's order of
    operations. The gradient of ``Penalty(l2=...)`` is divided by sqrt(v^) like the rest of g, so that weights with
    large gradients decay less; lambda acts on all weights equally.
    """

    weight_decay: float = 0.01

    kernel: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "weight_decay", 0)

    def step_factors(self, steps: int, learning_rate: float) -> tuple[float, ...]:
        return *super().step_factors(steps, learning_rate), learning_rate * self.weight_decay

    def factors_of_steps(self, first: int, learning_rates: Sequence[float]) -> npt.ArrayLike:
        if type(self).step_factors is not AdamW.step_factors:
            return super().factors_of_steps(first, learning_rates)
        rates = np.array(learning_rates)
        return self._factors(first, rates, rates * self.weight_decay)

    def update(  # type: ignore[override]
        self,
        xp: Any,
        parameters: Array,
        gradient: Array,
        state: OptimizerState,
        step_size: Any,
        epsilon: Any,
        decay: Any,
    ) -> None:
        weights, step = parameters[state.weights], state.scratch[state.weights]
        xp.multiply(weights, decay, out=step)
        xp.subtract(weights, step, out=weights)
        super().update(xp, parameters, gradient, state, step_size, epsilon)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop: g is divided by the root of a running mean of g^2, with optional momentum.

    ::

        v <- rho v + (1 - rho) g^2         (rho: decay)
        d = g / (sqrt(v) + epsilon)
        theta <- theta - eta d             (without momentum)
        u <- mu u + d,  theta <- theta - eta u                     (with momentum)

    G. Hinton, "Neural networks for machine learning", lecture 6e, Coursera 2012; epsilon and momentum are as in
    PyTorch.
    """

    learning_rate: float = 0.001
    decay: float = 0.9
    epsilon: float = 1e-8
    momentum: float = 0.0

    buffer_names: ClassVar[tuple[str, ...]] = ("mean_square", "velocity")

    def __post_init__(self) -> None:
        set_number(self, "learning_rate", 0, open_low=True)
        set_number(self, "decay", 0, 1, open_high=True)
        set_number(self, "epsilon", 0, open_low=True)
        set_number(self, "momentum", 0, 1, open_high=True)

    def active_buffers(self) -> tuple[str, ...]:
        return self.buffer_names if self.momentum else ("mean_square",)

    def update(self, xp: Any, parameters: Array, gradient: Array, state: OptimizerState, step_size: Any) -> None:
        mean_square, step = state.buffers["mean_square"], state.scratch
        xp.multiply(gradient, gradient, out=step)
        _add_to_mean(xp, mean_square, self.decay, step, step)
        xp.sqrt(mean_square, out=step)
        xp.add(step, self.epsilon, out=step)
        xp.divide(gradient, step, out=step)
        if self.momentum:
            velocity = state.buffers["velocity"]
            xp.multiply(velocity, self.momentum, out=velocity)
            xp.add(velocity, step, out=velocity)
            xp.multiply(velocity, step_size, out=step)
        else:
            xp.multiply(step, step_size, out=step)
        xp.subtract(parameters, step, out=parameters)


# By their names in the options of a run.
OPTIMIZERS: dict[str, type[SGD | Adam | RMSprop]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}


def checked_optimizer(value: object) -> Optimizer:
    """Return an argument that is an optimizer; one of the user's takes a step on a small example.

    Raises:
        TypeError: it is something else, or a method does not follow `Optimizer`.
        ValueError: its learning rate is not a number above 0.
    """
    optimizer = instance("optimizer", value, Optimizer, "SGD(0.1) or Adam()")
    kind = type(optimizer).__name__
    if type(optimizer).update is Optimizer.update:
        raise TypeError(f"{kind} is expected to define update, see Optimizer")
    rate = number("the optimizer's learning_rate", getattr(optimizer, "learning_rate", None), 0, open_low=True)
    if type(optimizer) in OPTIMIZERS.values():
        return optimizer
    factors: Any = optimizer.step_factors(1, rate)
    if not isinstance(factors, tuple) or not {type(factor) for factor in factors} <= {int, float}:
        raise TypeError(
            f"{kind}.step_factors is expected to return a tuple of Python floats, got {shown(factors)}"
        )
    names = [f"factor {number}" for number, _ in enumerate(factors, 1)] if len(factors) != 1 else ["learning_rate"]
    require_arguments(f"{kind}.update", optimizer.update, "xp", "parameters", "gradient", "state", *names)
    parameters, gradient, used = np.ones(4), np.ones(4), []

    def steps(state: OptimizerState, value: int = 1) -> Any:
        used.append(value)
        return value

    def update() -> Any:
        state = optimizer.init(parameters)
        state.__class__ = type("State", (type(state),), {"steps": property(steps, steps)})
        return optimizer.update(np, parameters, gradient, state, *factors)

    require_in_place(f"{kind}.update", update, parameters)
    if used:
        raise TypeError(
            f"{kind}.update is expected to leave state.steps alone: steps are counted by the training loop; what "
            "changes from step to step comes from step_factors"
        )
    return optimizer


def _add_to_mean(xp: Any, mean: Array, beta: float, values: Array, scratch: Array) -> None:
    """``mean <- beta mean + (1 - beta) values`` in place; `scratch` is overwritten and may be `values`."""
    xp.multiply(values, 1 - beta, out=scratch)
    xp.multiply(mean, beta, out=mean)
    xp.add(mean, scratch, out=mean)
