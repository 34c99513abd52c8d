"""Kernels of wide finite networks, averaged over random draws: an oracle for the analytic ones.

At width n the mean over draws is K + a / n + O(1 / n^2), so 2 K(256) - K(128) is free of the bias.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WIDTHS = (128, 256)
DRAWS = 64  # per round, at least one round at each width
MAX_ROUNDS = 60
MAX_ERROR = 0.02
MAX_DEVIATION = 5


class Estimate(NamedTuple):
    """Deviation of the analytic kernel from the estimate, in units of its largest entry."""

    deviation: np.ndarray
    error: np.ndarray


def tangent_kernel(apply_fn: Any, params: Any, x1: Any, x2: Any) -> jax.Array:
    """Empirical NTK [n1, n2], mean over outputs."""
    j1, j2 = (jax.jacrev(apply_fn)(params, x) for x in (x1, x2))
    terms = jax.tree.map(lambda a, b: jnp.tensordot(_rows(a, x1), _rows(b, x2), ((1, 2), (1, 2))),
                         j1, j2)
    outputs = apply_fn(params, x1).reshape(len(x1), -1).shape[1]
    return sum(jax.tree.leaves(terms)) / outputs


def _rows(jacobian: jax.Array, x: Any) -> jax.Array:
    return jacobian.reshape(len(x), -1, 1) if jacobian.ndim == 2 else jacobian.reshape(
        len(x), jacobian.shape[1], -1)


def covariance(apply_fn: Any, params: Any, x1: Any, x2: Any) -> jax.Array:
    """Products of outputs [n1, n2], mean over channels."""
    f1, f2 = apply_fn(params, x1), apply_fn(params, x2)
    return jnp.einsum("nc,mc->nm", f1, f2) / f1.shape[-1]


def draws(net: Any, statistic: Any, x1: Any, x2: Any, scale: float) -> tuple[Any, Any]:
    """Mean over draws of a statistic over `scale`, and its standard error, at most MAX_ERROR."""

    def one(key: jax.Array) -> jax.Array:
        _, params = net.init_fn(key, (-1, *x1.shape[1:]))
        return statistic(net.apply_fn, params, x1, x2)

    batch = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=8))
    samples: list[np.ndarray] = []
    for i in range(MAX_ROUNDS):
        keys = jax.random.split(jax.random.PRNGKey(i), DRAWS)
        samples.extend(np.asarray(batch(keys), np.float64) / scale)
        error = np.std(samples, axis=0, ddof=1) / len(samples) ** 0.5
        # The two widths add up to sqrt(2^2 + 1) of this.
        if error.max() < 0.9 * MAX_ERROR / 5**0.5:
            break
    return np.mean(samples, axis=0), error


def compare(build: Any, get: str, x1: np.ndarray, x2: np.ndarray, oracle: Any = None) -> Estimate:
    """Deviation of the kernels of `build(width, outputs)` from their Monte-Carlo estimate.

    Args:
      build: from width and number of outputs to a network.
      get: 'nngp' or 'ntk'.
      x1: inputs.
      x2: inputs.
      oracle: like `build`; gives the finite networks, if they are not the ones under test.
    """
    x1, x2 = (jnp.asarray(x, jnp.float32) for x in (x1, x2))
    statistic = covariance if get == "nngp" else tangent_kernel
    deviations, errors = [], []
    for width in WIDTHS:
        outputs = width if get == "nngp" else 2
        analytic = np.asarray(build(width, outputs).kernel_fn(x1, x2, get), np.float64)
        scale = np.abs(analytic).max() or 1.0
        mean, error = draws((oracle or build)(width, outputs), statistic, x1, x2, scale)
        deviations.append(mean - analytic / scale)
        errors.append(error)
    error = np.sqrt(errors[0] ** 2 + 4 * errors[1] ** 2)
    return Estimate(2 * deviations[1] - deviations[0], error)


def agrees(estimate: Estimate) -> bool:
    """Whether the kernel lies within MAX_DEVIATION standard errors, which must be small enough."""
    assert estimate.error.max() <= MAX_ERROR, f"standard error {estimate.error.max():.3f}: too few"
    floor = 1e-5  # rounding of float32, where a network has no randomness in it
    return bool(np.all(np.abs(estimate.deviation) <= MAX_DEVIATION * estimate.error + floor))
