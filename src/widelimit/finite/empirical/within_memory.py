"""Tangent kernels within a budget of memory, in the way that takes the fewest operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from widelimit.finite.empirical.blocks import BlockWork
from widelimit.finite.empirical.chunks import Work
from widelimit.finite.empirical.implementations import NtkImplementation
from widelimit.finite.empirical.outputs import Call, Output

CutWork: TypeAlias = Work | BlockWork
"""All that is to be done for one kernel, cut so that it fits."""

_WAYS: dict[NtkImplementation, Callable[[Call, Call | None, Output, int], CutWork]] = {
    NtkImplementation.JACOBIAN_CONTRACTION: Work.of,
    NtkImplementation.STRUCTURED_DERIVATIVES: BlockWork.of,
}
CUT = (NtkImplementation.AUTO, *_WAYS)
"""Implementations that work within a budget."""


def work_within(
    first: Call,
    second: Call | None,
    output: Output,
    memory: int,
    implementation: NtkImplementation,
) -> CutWork | None:
    """Returns the work that takes the fewest operations; None if there are no entries at all.

    Args:
      first: the network on x1.
      second: the network on x2; None for x1.
      output: which output.
      memory: bytes that derivatives may take.
      implementation: one of `CUT`.

    Raises:
      TypeError: no derivative exists.
      ValueError: nothing fits.
    """
    if not all(map(math.prod, output.shapes)):
        return None
    ways = [*_WAYS] if implementation is NtkImplementation.AUTO else [implementation]
    found: list[CutWork] = []
    failures: list[Exception] = []
    for way in ways:
        try:
            found.append(_WAYS[way](first, second, output, memory))
        except (TypeError, ValueError) as error:
            failures.append(error)
    if not found:
        raise failures[0]
    return min(found, key=lambda work: work.cost) if len(found) > 1 else found[0]
