"""Kernels of wide finite networks, averaged over random draws: an oracle for the analytic ones.

At width n the mean over draws is K + a / n + O(1 / n^2), so 2 K(2 n) - K(n) is free of the bias.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests import quick

WIDTHS = (64, 128)
DRAWS = 64  # per round, at least one round at each width
MAX_ROUNDS = 400
MAX_ERROR = 0.02
MAX_DEVIATION = 5
TRACED = 2


class Estimate(NamedTuple):
    """Deviations of analytic kernels from estimates, in units of the largest entry of each.

    Attributes:
      deviation: [2, n1, n2], NNGP and NTK.
      error: their standard errors.
    """

    deviation: np.ndarray
    error: np.ndarray


def sample_kernels(
    net: Any, key: jax.Array, x1: jax.Array, x2: jax.Array, mixes: bool
) -> jax.Array:
    """NNGP and NTK [2, n1, n2] of one random finite network, mean over its outputs.

    The NTK takes the first TRACED outputs only: all are alike. One pass over both batches
    compiles and runs faster than two, but a network that mixes samples needs two.
    """
    params = net.init_fn(key, x1.shape)[1]

    def features(x: jax.Array) -> Any:
        def outputs(params: Any) -> Any:
            f = net.apply_fn(params, x)
            return f[:, :TRACED], f

        jacobian, f = jax.jacrev(outputs, has_aux=True)(params)
        return [f, *jax.tree.leaves(jacobian)]

    if mixes:
        first, second = features(x1), features(x2)
    else:
        both, n1 = features(jnp.concatenate([x1, x2])), len(x1)
        first, second = [leaf[:n1] for leaf in both], [leaf[n1:] for leaf in both]
    nngp = first[0] @ second[0].T / first[0].shape[-1]
    products = map(_contract, first[1:], second[1:])
    return jnp.stack([nngp, sum(products) / TRACED])


def _contract(a: jax.Array, b: jax.Array) -> jax.Array:
    return a.reshape(len(a), -1) @ b.reshape(len(b), -1).T


def average(
    net: Any, x1: jax.Array, x2: jax.Array, scale: np.ndarray, target: float, mixes: bool
) -> tuple[Any, Any]:
    """Mean over draws of both kernels over `scale`, and its standard error, `target` if it can."""
    batch = quick.optimised_jit(
        lambda keys: jax.lax.map(lambda k: sample_kernels(net, k, x1, x2, mixes), keys)
    )
    rounds: list[np.ndarray] = []
    for i in range(MAX_ROUNDS):
        keys = jax.random.split(jax.random.PRNGKey(i), DRAWS)
        rounds.append(np.asarray(batch(keys), np.float64) / scale)
        samples = np.concatenate(rounds)
        error = np.std(samples, axis=0, ddof=1) / len(samples) ** 0.5
        if error.max() < target:
            break
    return samples.mean(axis=0), error


class Samples(NamedTuple):
    """Averages over finite networks at each of two widths, and their standard errors."""

    widths: tuple[int, int]
    means: list[np.ndarray]
    errors: list[np.ndarray]
    scales: list[np.ndarray]


def sample(build: Any, x1: np.ndarray, x2: np.ndarray, mixes: bool = False) -> Samples:
    """Averages of the kernels of finite `build(width, outputs)`, at the least cost."""
    x1, x2 = (jnp.asarray(x, jnp.float32) for x in (x1, x2))
    out = Samples(WIDTHS, [], [], [])
    # 4 error(2 n)^2 + error(n)^2 = (0.98 MAX_ERROR)^2
    for width, share in zip(out.widths, (0.55, 0.4), strict=True):
        net = build(width, width)
        scale = np.abs(_analytic(net, x1, x2)).max(axis=(1, 2), keepdims=True)
        scale = np.where(scale == 0, 1, scale)
        mean, error = average(net, x1, x2, scale, share * MAX_ERROR, mixes)
        for values, value in zip(out[1:], (mean, error, scale), strict=True):
            values.append(value)
    return out


def _analytic(net: Any, x1: Any, x2: Any) -> np.ndarray:
    x1, x2 = (np.asarray(x, np.float32) for x in (x1, x2))
    kernel = net.kernel_fn(x1, x2, ("nngp", "ntk"))
    return np.stack([np.asarray(k, np.float64) for k in kernel])


def compare(
    build: Any,
    x1: np.ndarray,
    x2: np.ndarray,
    samples: Samples | None = None,
    mixes: bool = False,
) -> Estimate:
    """Deviations of the kernels of `build(width, outputs)` from their Monte-Carlo estimates.

    Args:
      build: from width and number of outputs to a network.
      x1: inputs.
      x2: inputs.
      samples: the finite networks, if they are not those of `build`.
      mixes: whether a sample of the output depends on others of its batch.
    """
    widths, means, errors, scales = samples or sample(build, x1, x2, mixes)
    deviations = [
        mean - _analytic(build(width, width), x1, x2) / scale
        for width, mean, scale in zip(widths, means, scales, strict=True)
    ]
    error = np.sqrt(errors[0] ** 2 + 4 * errors[1] ** 2)
    return Estimate(2 * deviations[1] - deviations[0], error)


def agrees(estimate: Estimate) -> np.ndarray:
    """Whether NNGP and NTK lie within MAX_DEVIATION standard errors, which must be small enough."""
    assert estimate.error.max() <= MAX_ERROR, f"standard error {estimate.error.max():.3f}: too few"
    floor = 1e-5  # rounding of float32, where a network has no randomness in it
    near = np.abs(estimate.deviation) <= MAX_DEVIATION * estimate.error + floor
    return near.all(axis=(1, 2))
