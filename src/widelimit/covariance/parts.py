"""The parts of covariances: x1 with x2, and images of x1 and of x2 with themselves."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from widelimit.covariance.offsets import Need, Offsets


class Pairing(enum.Enum):
    """The sides of the samples that a part of covariances pairs: 0 for x1, 1 for x2."""

    CROSS = (0, 1)
    OWN1 = (0, 0)
    OWN2 = (1, 1)

    @property
    def sides(self) -> tuple[int, int]:
        """The sides of both samples."""
        return self.value

    @property
    def own(self) -> bool:
        """Whether both are the same sample, so that the part has one axis of samples."""
        return self is not Pairing.CROSS

    @property
    def axes(self) -> int:
        """The number of axes of samples."""
        return 1 if self.own else 2

    def of(self, need: Need) -> Offsets:
        """Returns the offsets of this part."""
        return need.own if self.own else need.cross


class Parts(NamedTuple):
    """The arrays of covariances, without the gap.

    Attributes:
      nngp: covariance of x1 with x2, [n1, n2, ...].
      ntk: tangent kernel, same shape; None while structurally zero, or if not requested.
      cov1: covariance of each image of x1 with itself, [n1, ...].
      cov2: the same for x2, [n2, ...]; None if x2 is x1.
    """

    nngp: Array
    ntk: Array | None
    cov1: Array
    cov2: Array | None

    def map(self, function: Callable[[Array, Pairing], Array]) -> Parts:
        """Returns the parts with each array replaced by a function of it and its pairing."""
        return Parts(
            function(self.nngp, Pairing.CROSS),
            None if self.ntk is None else function(self.ntk, Pairing.CROSS),
            function(self.cov1, Pairing.OWN1),
            None if self.cov2 is None else function(self.cov2, Pairing.OWN2),
        )
