"""The ways to compute a tangent kernel, and their contract."""

from __future__ import annotations

import enum
from typing import Protocol, runtime_checkable

from jaxtyping import Array, PyTree

from widelimit.finite.empirical.jacobian import OutputFunction, jacobian_contraction
from widelimit.finite.empirical.kernel_axes import KernelAxes
from widelimit.finite.empirical.structured import structured
from widelimit.finite.empirical.vector_products import ntk_vector_products


class NtkImplementation(enum.IntEnum):
    """Ways to compute the same tangent kernel; the fastest depends on the network.

    Attributes:
      AUTO: the cheapest of the others, by the number of operations.
      JACOBIAN_CONTRACTION: the Jacobians of both outputs, and their product.
      NTK_VECTOR_PRODUCTS: products of the kernel with all unit vectors.
      STRUCTURED_DERIVATIVES: products of Jacobians layer by layer, by the structure of each.
    """

    AUTO = 0
    JACOBIAN_CONTRACTION = 1
    NTK_VECTOR_PRODUCTS = 2
    STRUCTURED_DERIVATIVES = 3


@runtime_checkable
class Implementation(Protocol):
    """The contract of an implementation: a function that works under `jit` and `vmap`."""

    def __call__(
        self, f1: OutputFunction, f2: OutputFunction | None, params: PyTree, axes: KernelAxes
    ) -> Array:
        """Returns the kernel of two outputs, summed (not averaged) over trace axes.

        Args:
          f1: a function of the parameters, with one real array as its output.
          f2: a second function; None for f1 itself.
          params: tree of real arrays.
          axes: trace and diagonal axes of the output.
        """


TABLE: dict[NtkImplementation, Implementation] = {
    NtkImplementation.JACOBIAN_CONTRACTION: jacobian_contraction,
    NtkImplementation.NTK_VECTOR_PRODUCTS: ntk_vector_products,
    NtkImplementation.STRUCTURED_DERIVATIVES: structured,
}


def find_implementation(implementation: object) -> NtkImplementation:
    """Returns the member of the enum.

    Args:
      implementation: a member, its number, or its name.

    Raises:
      KeyError: an unknown implementation.
    """
    if isinstance(implementation, str) and implementation in NtkImplementation.__members__:
        return NtkImplementation[implementation]
    members = {int(member): member for member in NtkImplementation}
    if isinstance(implementation, bool | str) or implementation not in members:
        raise KeyError(
            f"expected implementation to be one of {[*NtkImplementation.__members__]} or 0 to 3, "
            f"got {implementation!r}"
        )
    return members[implementation]
