"""Inputs of estimators: tables or images, standardised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Standardiser(NamedTuple):
    """What is subtracted from inputs, and what they are divided by.

    Attributes:
      mean: weighted mean of each feature, or of each channel over all positions.
      std: the standard deviation, 0 for constants.
    """

    mean: Float[np.ndarray, " features"]
    std: Float[np.ndarray, " features"]

    @classmethod
    def of(cls, x: Float[np.ndarray, "n *shape"], weights: np.ndarray) -> Standardiser:
        """Returns the moments of the last axis of x."""
        share = weights / weights.sum()
        rows = x.reshape(len(x), -1, x.shape[-1])
        largest = np.abs(rows).max((0, 1), initial=np.finfo(np.float64).tiny)
        rows = rows / largest  # squares neither overflow nor vanish
        mean = share @ rows.mean(1)
        std = np.sqrt(share @ ((rows - mean) ** 2).mean(1))
        # Rounding of the mean alone is not a spread.
        std = np.where(std > 10 * np.finfo(np.float64).eps, std, 0.0)
        return cls(mean * largest, std * largest)

    def __call__(self, x: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n *shape"]:
        """Returns x with mean zero and variance one; what was constant is zero everywhere."""
        difference = x - self.mean
        return np.divide(difference, self.std, out=np.zeros_like(x), where=self.std > 0)


def shaped(x: np.ndarray, image_shape: Sequence[int] | None) -> np.ndarray:
    """Returns float64 inputs, rows of a table as images of a shape unless that is None.

    Raises:
      ValueError: rows of another length.
    """
    x = np.asarray(x, np.float64)
    if image_shape is None:
        return x
    shape = tuple(int(size) for size in image_shape)
    if x.shape[1:] == shape:
        return x
    if x.ndim != 2 or x.shape[1] != np.prod(shape):
        raise ValueError(
            f"expected rows of {np.prod(shape)} numbers for image_shape={shape}, or images of "
            f"that shape, got X of shape {x.shape}"
        )
    return x.reshape(len(x), *shape)
