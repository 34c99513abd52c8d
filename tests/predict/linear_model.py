"""A finite linear model, for which every prediction is the exponential of a small matrix.

f(x) = phi(x) . theta, where theta starts from N(0, start), `start` being 1 for the first features
and 0 for the others. So the NNGP kernel is that of the first features and the NTK that of all.
"""

from collections import namedtuple
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg


class LinearModel(NamedTuple):
    weights: np.ndarray
    started: int

    def features(self, x):
        return np.cos(np.asarray(x, np.float64) @ self.weights) / np.sqrt(self.weights.shape[1])

    def kernel_fn(self, x1, x2, get, scale=1.0):
        x2 = x1 if x2 is None else x2
        width = self.weights.shape[1]
        phi1, phi2 = (
            jnp.cos(jnp.asarray(x) @ self.weights.astype(x.dtype)) / np.sqrt(width).astype(x.dtype)
            for x in (x1, x2)
        )
        first = slice(None, self.started)
        kernels = {"nngp": phi1[:, first] @ phi2[:, first].T, "ntk": phi1 @ phi2.T}
        if isinstance(get, str):
            return scale * kernels[get]
        return namedtuple("Kernels", get)(*(scale * kernels[name] for name in get))

    def trained(self, x_train, y_train, x, time, get, ridge=0.0):
        """Mean and covariance at x after gradient flow on 0.5 mean((f - y)^2) for a time.

        With a ridge the loss has ridge |theta - theta(0)|^2 / 2 N beside it.
        """
        count = self.started if get == "nngp" else self.weights.shape[1]
        phi, phi_train = self.features(x)[:, :count], self.features(x_train)[:, :count]
        start = np.ones(count)
        if get == "ntk":
            start[self.started :] = 0.0
        size = y_train.size
        hessian = (phi_train.T @ phi_train + ridge * np.eye(count)) / size
        pull = phi_train.T @ y_train / size
        # d(theta - theta_0)/dt = pull - phi^T phi theta_0 / N - hessian (theta - theta_0)
        if np.isinf(time):
            integral = np.linalg.pinv(hessian, rcond=1e-13, hermitian=True)
        else:
            system = np.block([[-hessian, np.eye(count)], [np.zeros((count, 2 * count))]])
            integral = scipy.linalg.expm(system * time)[:count, count:]
        mean = phi @ integral @ pull
        kept = np.eye(count) - integral @ phi_train.T @ phi_train / size
        return mean, phi @ kept @ np.diag(start) @ kept.T @ phi.T


def make(key=0, n=6, t=4, inputs=3, width=16, started=9, outputs=2):
    rng = np.random.default_rng(key)
    model = LinearModel(2 * rng.normal(size=(inputs, width)), started)
    x, x_test = rng.normal(size=(n, inputs)), rng.normal(size=(t, inputs))
    return model, x, rng.normal(size=(n, outputs)), x_test


def finite_difference(function, x, direction, step=1e-5):
    """Central difference along a direction, in float64."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)
