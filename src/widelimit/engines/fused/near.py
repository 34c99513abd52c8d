"""Pairs of images that are so close that float32 loses what lies between them.

The derivative of a kink depends on the angle between two samples, the square root of what 1 -
correlation is: rounded to 6e-8, that is an angle of 3e-4.
"""

from __future__ import annotations

import math

import numpy as np

from widelimit.engines.fused.parallel import one_blas_thread

_CLOSE = 1e-4  # 1 - |correlation| below which pairs are close: an angle of 0.014, known to 1e-5


def nearly_equal(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns which of some pairs [m] are close, up to a factor; equal ones are not meant.

    Whether a pair is close does not depend on the other ones.

    Args:
      first: images of x1 [n1, ...].
      second: images of x2 [n2, ...].
      pairs: their indices [m, 2].
    """
    one, two = _unit(first), _unit(second)
    with one_blas_thread():
        rough = np.abs(one @ two.T) > 1 - 2 * _CLOSE
    found = rough[pairs[:, 0], pairs[:, 1]]
    for i in np.flatnonzero(found):
        a, b = (side[at].astype(np.float64) for side, at in zip((one, two), pairs[i], strict=True))
        found[i] = 0 < min(np.square(a - b).sum(), np.square(a + b).sum()) < 2 * _CLOSE
    return found


def _unit(images: np.ndarray) -> np.ndarray:
    """Returns images as rows of length 1; zeros stay zeros."""
    rows = images.reshape(len(images), math.prod(images.shape[1:]))
    lengths = np.sqrt(np.einsum("nc,nc->n", rows, rows, dtype=np.float64))
    return (rows / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
