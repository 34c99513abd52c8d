"""Cotangents of kernels, and what they become at the inputs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Cotangents(NamedTuple):
    """Cotangents of what `KernelValues` holds, None where there are none.

    Attributes:
      nngp: of K [n1, n2].
      ntk: of T [n1, n2].
      cov1: of the variances of x1 [n1].
      cov2: of those of x2 [n2].
    """

    nngp: np.ndarray | None = None
    ntk: np.ndarray | None = None
    cov1: np.ndarray | None = None
    cov2: np.ndarray | None = None


class Pulled(NamedTuple):
    """Cotangents of what a kernel depends on.

    Attributes:
      numbers: of the hyper-parameters of instructions, one row each.
      x1: of the samples of x1; None where not wanted.
      x2: of those of x2; None where not wanted, or where x2 is x1.
    """

    numbers: np.ndarray
    x1: np.ndarray | None
    x2: np.ndarray | None
