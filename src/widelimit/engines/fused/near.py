"""Pairs of images that are so close that float32 loses what lies between them.

The derivative of a kink depends on the angle between two samples, sqrt(2 (1 - correlation)). A
correlation that is rounded to 6e-8 leaves an angle of 3e-4 unknown.
"""

from __future__ import annotations

import math

import numpy as np

from widelimit.engines.fused.parallel import one_blas_thread

_CLOSE = 1e-4  # 1 - |correlation| below which pairs are close: an angle of 0.014, known to 1e-5


def nearly_equal(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns which pairs [m] are nearly equal, or nearly multiples of each other; but not equal.

    The answer for a pair does not depend on the other pairs.

    Args:
      first: images of x1 [n1, ...].
      second: images of x2 [n2, ...].
      pairs: their indices [m, 2].
    """
    one, two = (side.reshape(len(side), math.prod(side.shape[1:])) for side in (first, second))
    squares = [np.einsum("nc,nc->n", rows, rows, dtype=np.float64) for rows in (one, two)]
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        rough = np.abs(one @ two.T) > (1 - 2 * _CLOSE) * np.sqrt(np.outer(*squares))
    found = rough[pairs[:, 0], pairs[:, 1]]
    for place in np.flatnonzero(found):
        i, j = pairs[place]
        a, b = one[i] / np.sqrt(squares[0][i]), two[j] / np.sqrt(squares[1][j])
        close = min(np.square(a - b).sum(), np.square(a + b).sum()) < 2 * _CLOSE
        found[place] = close and not np.array_equal(one[i], two[j])
    return found
