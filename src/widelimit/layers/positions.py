"""Covariances of embeddings of positions, from the distances of the positions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.typing import Function


@functools.lru_cache(maxsize=32)
def similarities(decay: Function, norm: int | float, spatial: tuple[int, ...]) -> np.ndarray:
    """Returns decay(sum over axes of |i - j|^norm) for all pairs of flat positions, [p, p]."""
    grid = np.stack([axis.ravel() for axis in np.indices(spatial)], -1)
    steps = np.abs(grid[:, None] - grid[None]).astype(np.float64)
    distances = (steps**norm).sum(-1)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        values = np.array(decay(jnp.asarray(distances)), np.float64)
    if values.shape != distances.shape or not np.isfinite(values).all():
        raise ValueError(
            "expected pos_emb_decay_fn to return one finite number per distance, got shape "
            f"{values.shape} from {distances.shape}: {values.ravel()[:4]}..."
        )
    values.flags.writeable = False
    return values


def similarity_factor(decay: Function, norm: int | float, spatial: tuple[int, ...]) -> np.ndarray:
    """Returns the Cholesky factor of `similarities`.

    Raises:
      ValueError: the matrix is not positive definite, so it is not a covariance of embeddings.
    """
    values = similarities(decay, norm, spatial)
    try:
        return np.linalg.cholesky(values)
    except np.linalg.LinAlgError:
        raise ValueError(
            "expected pos_emb_decay_fn to give a positive definite matrix of positions, got "
            f"smallest eigenvalue {np.linalg.eigvalsh(values).min():.3g} on a grid {spatial}"
        ) from None
