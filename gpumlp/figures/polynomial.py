"""Fits of a polynomial by gradient descent, with a penalty on its weights.

In powers of x the fit explodes: on [-3, 3] the 15th power reaches 14 million, and no learning rate suits both ends
of that. So x is scaled to [-1, 1], powers are replaced by Legendre polynomials, which are nearly independent of
each other there, and each is standardised over the training points. What can be fitted stays the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import HostArray, get_backend
from ..nn import SGD, ExponentialDecay, Penalty

REACH = 3.0  # of x, to both sides


def true_function(x: HostArray) -> HostArray:
    """sin x + 0.3 x."""
    y: HostArray = np.sin(x) + 0.3 * x
    return y


class Problem:
    """Noisy training points, test points, and a way to fit a polynomial to the former.

    Attributes:
        x, y: training points, `x` drawn evenly from [-3, 3].
        x_test, y_test: 200 evenly spaced ones with noise of their own.
    """

    def __init__(self, degree: int, points: int, noise: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.degree = degree
        self.x = np.sort(rng.uniform(-REACH, REACH, points))
        self.y = true_function(self.x) + rng.normal(0.0, noise, points)
        self.x_test = np.linspace(-REACH, REACH, 200)
        self.y_test = true_function(self.x_test) + rng.normal(0.0, noise, 200)
        raw = self._legendre(self.x)
        self._mean, self._std = raw.mean(axis=0), raw.std(axis=0)

    def _legendre(self, x: HostArray) -> HostArray:
        return np.polynomial.legendre.legvander(x / REACH, self.degree)[:, 1:]

    def features(self, x: HostArray) -> HostArray:
        """``(points, degree + 1)``: standardised Legendre polynomials from degree 1, and a 1 for the bias."""
        return np.column_stack([(self._legendre(x) - self._mean) / self._std, np.ones(len(x))])

    def fit(self, penalty: Penalty, steps: int) -> dict[str, Any]:
        """Gradient descent with momentum on half the mean squared error plus the penalty, the bias left out of it.

        The learning rate falls exponentially: with a constant one, an L1 penalty would leave the weights that it
        should bring to 0 swinging around it.

        Returns:
            ``weights`` (from degree 1), the ``curve`` on ``x_test``, and at about 100 of the steps (``steps``) the
            mean squared errors ``train_mse`` and ``test_mse`` and the weights' ``norms``.
        """
        x, x_test = self.features(self.x), self.features(self.x_test)
        backend, optimizer, schedule = get_backend("cpu"), SGD(0.05, momentum=0.9), ExponentialDecay(4.0 / steps)
        theta, weights = np.zeros(self.degree + 1), slice(0, self.degree)
        state = optimizer.init(theta)
        looks = sorted({0, *np.geomspace(1, steps, 100).astype(int).tolist()})
        train_mse, test_mse, norms = [], [], []
        for step in range(steps + 1):
            residual = x @ theta - self.y
            if step in looks:
                train_mse.append(float(np.mean(residual**2)))
                test_mse.append(float(np.mean((x_test @ theta - self.y_test) ** 2)))
                norms.append(float(np.linalg.norm(theta[weights])))
            gradient = x.T @ residual / len(x)
            penalty.add_gradient(backend, theta[weights], gradient[weights], state.scratch[weights])
            if step < steps:
                rate = schedule(optimizer.learning_rate, step)
                optimizer.update(np, theta, gradient, state, rate)
        return {
            "penalty": repr(penalty),
            "weights": theta[weights].copy(),
            "curve": x_test @ theta,
            "steps": looks,
            "train_mse": train_mse,
            "test_mse": test_mse,
            "norms": norms,
        }
