"""Mean and covariance of an infinite ensemble at some inputs, and quantities derived from them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from widelimit._pytree import is_concrete
from widelimit.predict.dynamics import Times, trained_covariance
from widelimit.predict.matrices import Targets, from_matrix, row_shape, to_matrix
from widelimit.predict.precision import in_float64
from widelimit.predict.solvers.base import System
from widelimit.predict.solvers.cholesky import Cholesky
from widelimit.predict.spectral import Eigenbasis

# A variance this far below zero, in units of the largest prior variance, is not a rounding error.
_NEGATIVE_VARIANCE = 1e-2


class Loss(NamedTuple):
    """Mean and standard deviation of the loss of a network drawn from an ensemble.

    Attributes:
      mean: expected loss, with the shape of t.
      std: standard deviation of the loss between networks, with the shape of t.
    """

    mean: Array
    std: Array


class Evidence(NamedTuple):
    """The arrays needed for predictions at some inputs; kernels are zipped.

    Attributes:
      system: the regularised training kernel that drives the ensemble.
      times: training times.
      y: training targets.
      nngp_dd: train-train NNGP kernel, an array or an operator with `@`; None where it is not
        needed.
      driving_td: test-train kernel that drives the ensemble (NNGP or NTK).
      nngp_td: test-train NNGP kernel.
      nngp_tt: test-test NNGP kernel, None where no covariance is needed.
    """

    system: System
    times: Times
    y: Any
    nngp_dd: Any
    driving_td: Any
    nngp_td: Any
    nngp_tt: Any


class Layout(NamedTuple):
    """The static description of an ensemble.

    Attributes:
      bayes: whether the NNGP kernel is conditioned on data; otherwise networks are trained.
      targets: layout of the training targets.
      dtype: dtype of results.
    """

    bayes: bool
    targets: Targets
    dtype: jnp.dtype


@in_float64
def ensemble_mean(evidence: Evidence, *, layout: Layout) -> Array:
    """Returns mean outputs (..., t, outputs)."""
    targets = layout.targets
    dynamics = evidence.times.dynamics(evidence.system, evidence.y.size)
    driving = to_matrix("kernel", evidence.driving_td)
    mean = driving @ dynamics.response(targets.to_matrix(evidence.y))
    mean = targets.from_matrix(mean, row_shape(evidence.driving_td))
    return evidence.times.unflatten(mean).astype(layout.dtype)


def _moments(evidence: Evidence, layout: Layout) -> tuple[Array, Array]:
    """Returns means [m, t, outputs] and covariances [m, t, t]."""
    dynamics = evidence.times.dynamics(evidence.system, evidence.y.size)
    driving = to_matrix("kernel", evidence.driving_td)
    mean = driving @ dynamics.response(layout.targets.to_matrix(evidence.y))
    prior = to_matrix("nngp", evidence.nngp_tt)
    if layout.bayes:
        covariance = dynamics.covariance(prior, driving)
    else:
        nngp_td = to_matrix("nngp", evidence.nngp_td)
        nngp_dd = evidence.nngp_dd
        # A kernel that is not in memory has products only.
        nngp_dd = to_matrix("nngp", nngp_dd) if isinstance(nngp_dd, jax.Array) else nngp_dd
        covariance = trained_covariance(dynamics, prior, driving, nngp_td, nngp_dd)
    _check_variances(covariance, prior)
    # Variances that rounding made negative are set to zero in every result.
    eye = jnp.eye(covariance.shape[-1])[None]
    variance = (covariance * eye).sum(-1)
    return mean, covariance + jnp.maximum(-variance, 0.0)[..., None] * eye


@in_float64
def ensemble_covariance(evidence: Evidence, noise: Array, *, layout: Layout) -> Array:
    """Returns covariances (..., t, t), zipped, with noise^2 on the diagonal."""
    _, covariance = _moments(evidence, layout)
    total = covariance + noise**2 * jnp.eye(covariance.shape[-1])[None]
    rows = row_shape(evidence.nngp_tt)
    return evidence.times.unflatten(from_matrix(total, rows, rows)).astype(layout.dtype)


@in_float64
def ensemble_variance(
    evidence: Evidence, noise: Array, *, layout: Layout, root: bool = False
) -> Array:
    """Returns variances (..., t, outputs) plus noise^2, or their roots."""
    _, covariance = _moments(evidence, layout)
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1) + noise**2
    variance = _root(variance) if root else variance
    # Equal for every output, but in the shape of the mean, so that the two can be added.
    spread = jnp.broadcast_to(variance[..., None], (*variance.shape, layout.targets.shape[-1]))
    spread = layout.targets.from_matrix(spread, row_shape(evidence.nngp_tt))
    return evidence.times.unflatten(spread).astype(layout.dtype)


@in_float64
def ensemble_sample(evidence: Evidence, normal: Array, *, layout: Layout) -> Array:
    """Returns draws (n, t, outputs) at one time, from standard normal numbers of the same shape."""
    mean, covariance = _moments(evidence, layout)
    evals, evecs = jnp.linalg.eigh(jax.lax.stop_gradient(covariance[0]))
    # The symmetric root exists for singular matrices, such as that of training points.
    normal = jax.vmap(layout.targets.to_matrix)(normal)
    draws = mean + Eigenbasis(covariance[0], evals, evecs).root(normal)
    return layout.targets.from_matrix(draws, row_shape(evidence.nngp_tt)).astype(layout.dtype)


@in_float64
def ensemble_loss(evidence: Evidence, y: Array, *, layout: Layout) -> Loss:
    """Returns the moments of 0.5 mean((f - y)^2), a quadratic form of Gaussians."""
    mean, covariance = _moments(evidence, layout)
    bias = mean - layout.targets.to_matrix(y)[None]
    outputs = bias.shape[-1]
    trace = jnp.trace(covariance, axis1=-2, axis2=-1)
    expected = ((bias**2).sum((-2, -1)) + outputs * trace) / (2 * y.size)
    carried = jnp.einsum("mrc,mrs,msc->m", bias, covariance, bias)
    std = _root(4 * carried + 2 * outputs * (covariance**2).sum((-2, -1))) / (2 * y.size)
    unflatten = evidence.times.unflatten
    return Loss(unflatten(expected).astype(layout.dtype), unflatten(std).astype(layout.dtype))


@in_float64
def log_marginal_likelihood(system: System, y: Array, *, layout: Layout) -> Array:
    """Returns the log density of the targets under N(0, K + ridge I), summed over outputs."""
    factor, aims = system.factorised(Cholesky()), layout.targets.to_matrix(y)
    rows, outputs = aims.shape
    fit = jnp.trace(factor.quadratic(aims))
    volume = factor.log_determinant() + rows * math.log(2 * math.pi)
    return (-0.5 * (fit + outputs * volume)).astype(layout.dtype)


def _root(variance: Array) -> Array:
    """Returns the square root, with derivative 0 at 0; of negative values 0, of NaN NaN."""
    zero = variance <= 0
    # A quotient: see `widelimit.activations.base.sqrt`.
    return jnp.where(zero, 0.0, variance / jnp.sqrt(jnp.where(zero, 1.0, variance)))


def _check_variances(covariance: Array, prior: Array) -> None:
    """Raises ValueError if a concrete covariance has variances below zero beyond rounding."""
    if not is_concrete(covariance, prior):
        return
    lowest = np.diagonal(np.asarray(covariance), axis1=-2, axis2=-1).min(initial=0.0)
    largest = np.diagonal(np.asarray(prior)).max(initial=0.0)
    if lowest < -_NEGATIVE_VARIANCE * largest:
        raise ValueError(
            f"expected variances of at least 0, got {lowest:.3g} where the largest before training "
            f"is {largest:.3g}: use kernels of training and test inputs from the same function "
            "(estimated ones from the same draws)"
        )
