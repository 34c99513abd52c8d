"""The random key, mask and graph pattern of a finite layer in one call."""

from __future__ import annotations

import dataclasses

import jax

from widelimit._pytree import pytree
from widelimit.typing import Key, Masks, Pattern


@pytree
class Context:
    """The random key, mask and graph pattern of a finite layer in one call.

    Attributes:
      rng: random key of the layer, or None.
      mask: mask of its input (True = masked), a tuple of masks for branches; None without masks.
      pattern: graph pattern of the call, or None.
    """

    rng: Key | None = None
    mask: Masks = None
    pattern: Pattern = None

    def with_rng(self, rng: Key | None) -> Context:
        """Returns the context with another random key.

        Args:
          rng: the key.
        """
        return dataclasses.replace(self, rng=rng)

    def with_mask(self, mask: Masks) -> Context:
        """Returns the context with another mask.

        Args:
          mask: the mask.
        """
        return dataclasses.replace(self, mask=mask)

    def split(self, n: int) -> list[Context]:
        """Returns the contexts of layers inside, each with another random key.

        Args:
          n: number of layers.
        """
        if self.rng is None or n == 0:
            return [self] * n
        return [self.with_rng(key) for key in jax.random.split(self.rng, n)]

    def branches(self, n: int) -> list[Context]:
        """Returns the contexts of layers side by side, each with the mask of its branch too.

        Args:
          n: number of layers.
        """
        masks = (None,) * n if self.mask is None else self.mask
        return [one.with_mask(m) for one, m in zip(self.split(n), masks, strict=True)]
