"""JAX: a whole epoch in one jitted `lax.scan`, with donated state."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

from . import Peer, Samples, Setting, first_line, layers, missing


class JaxScan(Peer):
    """Pixels stay uint8 on the device and are scaled where a batch is gathered, which XLA fuses.

    The order is drawn on the host, which is quicker than `jax.random.permutation` on a CPU (it sorts).
    """

    name = "jax"
    title = "JAX, jit(scan)"

    @classmethod
    def unsupported_reason(cls, device: str, dtype: str) -> str | None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or it takes most of the GPU for itself
        if reason := missing("jax"):
            return reason
        try:
            device_of(device)
        except (RuntimeError, IndexError) as error:
            return f'this JAX finds no {device}: {first_line(error)}; pip install "jax[cuda13]" brings it'
        return None

    def __init__(
        self, setting: Setting, samples: Samples, weights: dict[str, np.ndarray], threads: int | None = None
    ) -> None:
        import jax

        jax.config.update("jax_enable_x64", setting.dtype == "float64")
        self.setting, self.count = setting, len(samples)
        self.put = partial(jax.device_put, device=device_of(setting.device))
        self.images, self.labels = self.put(samples.images), self.put(samples.labels.astype(np.int32))
        parameters = self.put(layers(setting, weights))
        velocity = self.put(jax.tree.map(np.zeros_like, layers(setting, weights))) if setting.momentum else None
        self.state = (parameters, velocity)
        self.rng = np.random.default_rng(0)
        self._epoch = jax.jit(partial(_epoch, setting), donate_argnums=0)
        self._step = jax.jit(partial(_step, setting), donate_argnums=0)
        jax.block_until_ready((self.state, self.images, self.labels))

    def losses(self) -> list[float]:
        rows, size, result = np.arange(self.count, dtype=np.int32), self.setting.batch_size, []
        for start in range(0, self.count, size):
            batch = self.put(rows[start : start + size])
            self.state, loss = self._step(self.state, self.images, self.labels, batch)
            result.append(float(loss))
        return result

    def epoch(self, part: int | None = None) -> float:
        return self._train(self.rng.permutation(self.count))

    def unshuffled_epoch(self) -> float:
        return self._train(np.arange(self.count))

    def _train(self, order: np.ndarray) -> float:
        rows = self.put(order.astype(np.int32))
        self.state, loss = self._epoch(self.state, self.images, self.labels, rows)
        return float(loss)

    def synchronize(self) -> None:
        import jax

        jax.block_until_ready(self.state)


def _epoch(setting: Setting, state: Any, images: Any, labels: Any, order: Any) -> tuple[Any, Any]:
    """All full batches in one scan, the short last one after it; the new state and the mean loss."""
    from jax import lax

    size = setting.batch_size
    full = len(order) // size * size

    def body(state: Any, rows: Any) -> tuple[Any, Any]:
        return _step(setting, state, images, labels, rows)

    state, losses = lax.scan(body, state, order[:full].reshape(-1, size))
    total = losses.sum() * size
    if full < len(order):
        state, loss = _step(setting, state, images, labels, order[full:])
        total += loss * (len(order) - full)
    return state, total / len(order)


def _step(setting: Setting, state: Any, images: Any, labels: Any, rows: Any) -> tuple[Any, Any]:
    """One step of SGD; the new state, and the mean loss before it."""
    import jax

    parameters, velocity = state
    x = images[rows].astype(setting.dtype) * (1 / 255)
    loss, gradient = jax.value_and_grad(partial(mean_loss, setting.device))(parameters, x, labels[rows])
    if velocity is not None:
        velocity = gradient = jax.tree.map(lambda v, g: setting.momentum * v + g, velocity, gradient)
    parameters = jax.tree.map(lambda p, g: p - setting.learning_rate * g, parameters, gradient)
    return (parameters, velocity), loss


def mean_loss(device: str, parameters: Any, x: Any, y: Any) -> Any:
    """Mean cross-entropy of a ReLU network.

    Args:
        device: by gpumlp's name.
        parameters: weight and bias of each layer.
        x: ``(batch, features)``.
        y: ``(batch,)`` class numbers.
    """
    import jax
    import jax.numpy as jnp

    # On a GPU XLA's default would round float32 factors to TF32.
    precision = None if device == "cpu" else jax.lax.Precision.HIGHEST
    for index, (weight, bias) in enumerate(parameters):
        x = jnp.matmul(x, weight, precision=precision) + bias
        if index < len(parameters) - 1:
            x = jax.nn.relu(x)
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()


def device_of(name: str) -> Any:
    """A JAX device by gpumlp's name.

    Raises:
        RuntimeError, IndexError: there is none.
    """
    import jax

    kind, _, index = name.partition(":")
    return jax.devices(kind)[int(index or 0)]
