"""What finite layers get in one call, beside their parameters and inputs."""

from __future__ import annotations

import dataclasses

import jax

from widelimit._pytree import pytree
from widelimit.typing import Key, Masks, Pattern


@pytree
class Context:
    """What a finite layer gets beside its parameters and its input.

    Attributes:
      rng: random key of the layer; None without randomness.
      mask: mask of its input (True = masked), a tuple of masks for branches; None without masks.
      pattern: graph pattern of the call; None without one.
    """

    rng: Key | None = None
    mask: Masks = None
    pattern: Pattern = None

    def with_rng(self, rng: Key | None) -> Context:
        """Returns the context with another random key."""
        return dataclasses.replace(self, rng=rng)

    def with_mask(self, mask: Masks) -> Context:
        """Returns the context with another mask."""
        return dataclasses.replace(self, mask=mask)

    def split(self, n: int) -> list[Context]:
        """Returns the contexts of n layers inside, each with a random key of its own."""
        if self.rng is None or n == 0:
            return [self] * n
        return [self.with_rng(key) for key in jax.random.split(self.rng, n)]

    def branches(self, n: int) -> list[Context]:
        """Returns the contexts of n layers side by side, each with the mask of its branch too."""
        masks = (None,) * n if self.mask is None else self.mask
        return [one.with_mask(m) for one, m in zip(self.split(n), masks, strict=True)]
