"""Dropout: a random subset of the units is set to zero in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from widelimit._pytree import is_concrete, pytree, static
from widelimit.covariance.covariances import INPUT, Covariances
from widelimit.covariance.verbs import scale_same
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.typing import Arrays, Needs, Params, Scalar, Signals


@pytree
class Dropout(Layer):
    """Returns a dropout layer.

    In training, units are kept with probability `rate` and divided by it: covariances of equal
    samples at equal positions grow by 1 / rate, others do not change. Samples of x1 and x2 count as
    equal only if x2 is None, or equals x1 as a whole.

    Source: arXiv:1611.01232.

    Args:
      rate: probability that a unit is KEPT, in (0, 1].
      mode: 'train' or 'test' (the identity).

    Raises:
      ValueError: a rate outside (0, 1], another mode, or no `rng` in training.
      NotImplementedError: at kernel time, raw input in training: its kernel is random.

    Example:
      >>> from widelimit import stax
      >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dropout(0.9), stax.Dense(1))
    """

    rate: Scalar
    mode: str = static(default="train")

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_concrete(self.rate) and not 0 < self.rate <= 1:
            raise ValueError(f"expected a probability of keeping in (0, 1], got rate={self.rate}")
        if self.mode not in ("train", "test"):
            raise ValueError(f"expected mode 'train' or 'test', got {self.mode!r}")

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        if self.mode == "test":
            return x
        if context.rng is None:
            raise ValueError("expected rng=key in apply_fn, for Dropout(mode='train'); got None")
        keep = jax.random.bernoulli(context.rng, self.rate, x.shape)
        return jnp.where(keep, x / self.rate, 0)

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return need.with_variances()

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        if self.mode == "test":
            return cov
        if INPUT in cov.origins:
            raise NotImplementedError(
                "expected Dropout after a layer with random weights (Dense, Conv, ...), got raw "
                "input: its channels are finite in number, so their kernel stays random; put a "
                "Dense or Conv layer before it, or use mode='test'"
            )
        return scale_same(cov, 1 / self.rate)
