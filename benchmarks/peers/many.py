"""Many networks of one shape at once: by `gpumlp.fit_many`, by gpumlp one by one, and by JAX's `vmap`.

Each network has its own initial weights, learning rate and batch order. All peers train the same networks in the
same order of samples, so that their losses agree. Only ``validated`` also does what a search needs and `fit_many`
does by default: it evaluates samples after every epoch, and has the diagnostics on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from gpumlp import MLP, SGD, Adam, Dataset, Trainer, fit_many, get_backend
from gpumlp.backends import StepRun
from gpumlp.training.batches import ORDER_STREAM
from gpumlp.training.jobs import worker_count
from gpumlp.training.many import run_together

from .gpumlp import Gpumlp, way_of
from .jax import JaxScan, device_of, mean_loss

RATES = 8  # different learning rates; the networks take them in turns


@dataclass(frozen=True)
class Workload:
    """What each of the networks is, and how it is trained.

    `multiprocessors` is how many of a GPU's a network gets from `fit_many`; None: as many as it needs.
    ``VALIDATED`` is the share of the samples that ``validated`` evaluates: as many as a fold of five.
    """

    VALIDATED: ClassVar[float] = 0.2

    sizes: tuple[int, ...]
    batch_size: int
    optimizer: SGD | Adam
    multiprocessors: int | None = None

    def optimizers(self, count: int) -> list[SGD | Adam]:
        """One for each of `count` networks."""
        rates = [self.optimizer.learning_rate * (1 + index % RATES / RATES) for index in range(count)]
        return [replace(self.optimizer, learning_rate=rate) for rate in rates]

    def models(self, count: int, device: Any, dtype: str = "float32") -> list[MLP]:
        """Networks with initial weights of their own."""
        return [MLP(self.sizes, activation="relu", seed=seed, device=device, dtype=dtype) for seed in range(count)]


class Networks(ABC):
    """One library at work on `count` networks.

    Args:
        work: what each of them is.
        data: their samples; moved to the device here.
        count: how many.
        device: ``"cpu"``, ``"cuda:0"``, ...

    Attributes:
        name: as ``--peers`` takes it.
        title: in tables and figures.
        variants: equivalent ways to run it; a trial finds the fastest, and `choose` sets it.
        way: how it runs, as far as there is something to say; known after the first call of `train`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    variants: tuple[str, ...] = ()
    way: str | None = None

    @classmethod
    def unsupported_reason(cls, device: str) -> str | None:
        """Why this peer cannot be measured on a device, in one line, or None if it can."""
        return Gpumlp.unsupported_reason(device, "float32")

    def __init__(self, work: Workload, data: Dataset, count: int, device: str) -> None:
        self.work, self.data, self.count, self.device = work, data, count, device

    @abstractmethod
    def train(self, epochs: int) -> list[float]:
        """Train all networks for some epochs, each in a new random order; the mean losses of the last one."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished its work."""

    def repeat_steps(self) -> bool:
        """Train on the last epoch's batches again, by the device alone; False if that is not possible here."""
        return False

    def choose(self, variant: str) -> None:
        """Run as this one of `variants` from now on."""
        raise ValueError(f"{self.name} has no variants, got {variant!r}")


class OneByOne(Networks):
    """A `Trainer` for each network, which trains while the others wait."""

    name = "one-by-one"
    title = "gpumlp, one by one"
    validated = False

    def __init__(
        self, work: Workload, data: Dataset, count: int, device: str, dtype: str = "float32", **options: Any
    ) -> None:
        super().__init__(work, data, count, device)
        self.backend = get_backend(device, **options)
        models, optimizers = work.models(count, self.backend, dtype), work.optimizers(count)
        given = {"batch_size": work.batch_size, **_validation(self)}
        held_out = given.get("validation", data)
        with data.placed_once(), held_out.placed_once():
            self.trainers = [
                Trainer(model, data, optimizer=rule, seed=seed, **given)
                for seed, (model, rule) in enumerate(zip(models, optimizers, strict=True))
            ]

    def train(self, epochs: int) -> list[float]:
        for trainer in self.trainers:
            trainer.run(trainer.epoch + epochs)
        return self.losses()

    def runs(self) -> list[StepRun]:
        """The steps of an epoch of each network."""
        counts = [len(trainer.batches.slices) for trainer in self.trainers]
        rates = [trainer.optimizer.learning_rate for trainer in self.trainers]
        return [
            StepRun(trainer._step, range(count), [rate] * count)
            for trainer, count, rate in zip(self.trainers, counts, rates, strict=True)
        ]

    def evaluations(self) -> list[StepRun]:
        """The evaluation of each network's held-out samples, if there are some."""
        steps = [trainer._evaluation for trainer in self.trainers if trainer._evaluation is not None]
        return [run for step in steps for run in step.runs()]

    def losses(self) -> list[float]:
        """Mean losses of the last epoch."""
        if self.device != "cpu":
            self.way = way_of(self.trainers[0].execution)
        return [trainer.history["train_loss"][-1] for trainer in self.trainers]

    def synchronize(self) -> None:
        self.backend.synchronize()

    def repeat_steps(self) -> bool:
        if self.device != "cpu":
            with self.backend.activate():
                for run in self.runs():
                    self.backend.run_steps(*run)
        return self.device != "cpu"


class TogetherOnGpu(OneByOne):
    """What `gpumlp.fit_many` does on a GPU once the trainers are made: steps of all networks in one launch."""

    name = "gpumlp"
    title = "gpumlp, fit_many"

    def __init__(self, work: Workload, data: Dataset, count: int, device: str) -> None:
        super().__init__(work, data, count, device, multiprocessors=work.multiprocessors)

    def train(self, epochs: int) -> list[float]:
        trainings = ((each, self.backend, each.training(each.epoch + epochs)) for each in self.trainers)
        for _, error in run_together(trainings):
            if error is not None:
                raise error
        return self.losses()

    def repeat_steps(self) -> bool:
        with self.backend.activate():
            self.backend.run_many(self.runs())
            self.backend.run_many(self.evaluations())
        return True


class ValidatedOnGpu(TogetherOnGpu):
    """The same with held-out samples and diagnostics."""

    name = "validated"
    title = "gpumlp, fit_many, validated"
    validated = True


class TogetherOnCpu(Networks):
    """`gpumlp.fit_many` in worker processes, which stay for the next call; each call is a training run."""

    name = "gpumlp"
    title = "gpumlp, fit_many"
    validated = False

    def __init__(self, work: Workload, data: Dataset, count: int, device: str) -> None:
        super().__init__(work, data, count, device)
        self.models = work.models(count, device)
        workers = min(worker_count(None), count)
        self.way = f"{workers} process{'es' * (workers > 1)}"

    def train(self, epochs: int) -> list[float]:
        histories = fit_many(
            self.models,
            self.data,
            optimizer=self.work.optimizers(self.count),
            seed=list(range(self.count)),
            epochs=epochs,
            batch_size=self.work.batch_size,
            **_validation(self),
        )
        return [history["train_loss"][-1] for history in histories]

    def synchronize(self) -> None:
        """Nothing runs after a call."""


class ValidatedOnCpu(TogetherOnCpu):
    """The same with held-out samples and diagnostics."""

    name = "validated"
    title = ValidatedOnGpu.title
    validated = True


class JaxVmap(Networks):
    """An epoch of all networks in one jitted call, by `vmap` of the scan over batches, or one after another."""

    name = "jax"
    title = "JAX, jit(vmap)"
    variants = ("vmap", "map")

    @classmethod
    def unsupported_reason(cls, device: str) -> str | None:
        return JaxScan.unsupported_reason(device, "float32")

    def __init__(self, work: Workload, data: Dataset, count: int, device: str) -> None:
        import jax

        super().__init__(work, data, count, device)
        jax.config.update("jax_enable_x64", False)
        self.put = partial(jax.device_put, device=device_of(device))
        self.images = self.put(data.images.reshape(len(data), -1))
        if self.images.dtype != np.uint8:
            self.images = self.images.astype(np.float32)
        self.labels = self.put(data.labels.astype(np.int32))
        self.rates = self.put(np.array([each.learning_rate for each in work.optimizers(count)], np.float32))
        self.rngs = [np.random.default_rng([seed, ORDER_STREAM]) for seed in range(count)]  # as gpumlp's
        weights = [model.state_dict() for model in work.models(count, "cpu")]
        names = [f"layers.{layer}.{kind}" for layer in range(len(work.sizes) - 1) for kind in ("weight", "bias")]
        parameters = [np.stack([each[name] for each in weights]) for name in names]
        zeros = [[np.zeros_like(array) for array in parameters] for _ in range(2 if _adam(work) else 1)]
        self.state = self.put((parameters, zeros, np.zeros(count, np.int32)))
        self.choose("vmap")

    def choose(self, variant: str) -> None:
        import jax
        from jax import lax

        epoch = partial(_epoch, self.work, self.device)

        def one_after_another(state: Any, rates: Any, images: Any, labels: Any, orders: Any) -> Any:
            return lax.map(lambda one: epoch(one[0], one[1], images, labels, one[2]), (state, rates, orders))

        function = jax.vmap(epoch, in_axes=(0, 0, None, None, 0)) if variant == "vmap" else one_after_another
        self.epoch, self.way = jax.jit(function, donate_argnums=0), variant

    def train(self, epochs: int) -> list[float]:
        for _ in range(epochs):
            orders = np.stack([rng.permutation(len(self.data)) for rng in self.rngs]).astype(np.int32)
            self.orders = self.put(orders)
            losses = self._train()
        return losses.tolist()

    def _train(self) -> np.ndarray:
        self.state, losses = self.epoch(self.state, self.rates, self.images, self.labels, self.orders)
        return np.asarray(losses)

    def synchronize(self) -> None:
        import jax

        jax.block_until_ready(self.state)

    def repeat_steps(self) -> bool:
        self._train()
        return True


def together(device: str) -> tuple[type[Networks], type[Networks]]:
    """What `gpumlp.fit_many` does on this device: training alone, and with validation and diagnostics."""
    return (TogetherOnCpu, ValidatedOnCpu) if device == "cpu" else (TogetherOnGpu, ValidatedOnGpu)


def _validation(networks: OneByOne | TogetherOnCpu) -> dict[str, Any]:
    """Arguments of a trainer or of `fit_many`; the samples that are evaluated are some of those trained on."""
    if not networks.validated:
        return {"diagnostics": False}
    data, count = networks.data, max(1, int(Workload.VALIDATED * len(networks.data)))
    return {"validation": data.part(data.images[:count], data.targets[:count])}


def _epoch(
    work: Workload, device: str, state: Any, rate: Any, images: Any, labels: Any, order: Any
) -> tuple[Any, Any]:
    """An epoch of one network: all full batches in a scan, the short last one after it; its mean loss."""
    import jax
    from jax import lax

    def step(state: Any, rows: Any) -> tuple[Any, Any]:
        parameters, buffers, taken = state
        x = images[rows]
        if x.dtype == np.uint8:
            x = x.astype(np.float32) * (1 / 255)
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        loss, gradient = jax.value_and_grad(partial(mean_loss, device))(pairs, x, labels[rows])
        gradient = [array for pair in gradient for array in pair]
        update = _adam_step if _adam(work) else _momentum_step
        steps, buffers = update(work.optimizer, buffers, gradient, taken + 1)
        return ([p - rate * s for p, s in zip(parameters, steps, strict=True)], buffers, taken + 1), loss

    size = work.batch_size
    full = len(order) // size * size
    state, losses = lax.scan(step, state, order[:full].reshape(-1, size))
    total = losses.sum() * size
    if full < len(order):
        state, loss = step(state, order[full:])
        total += loss * (len(order) - full)
    return state, total / len(order)


def _momentum_step(rule: Any, buffers: Sequence[Any], gradient: Sequence[Any], _: Any) -> tuple[Any, Any]:
    velocity = [rule.momentum * v + g for v, g in zip(buffers[0], gradient, strict=True)]
    return velocity, [velocity]


def _adam_step(rule: Any, buffers: Sequence[Any], gradient: Sequence[Any], taken: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    mean = [rule.beta1 * m + (1 - rule.beta1) * g for m, g in zip(buffers[0], gradient, strict=True)]
    square = [rule.beta2 * v + (1 - rule.beta2) * g * g for v, g in zip(buffers[1], gradient, strict=True)]
    of_mean, of_square = 1 - rule.beta1**taken, 1 - rule.beta2**taken
    steps = [m / of_mean / (jnp.sqrt(v / of_square) + rule.epsilon) for m, v in zip(mean, square, strict=True)]
    return steps, [mean, square]


def _adam(work: Workload) -> bool:
    return isinstance(work.optimizer, Adam)
